//! Replicas beside each other: slots, the one reply of a push, and what is held without a lease.

use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::sleep;

use super::test_server;
use crate::clock::UnixMillis;
use crate::queue::fixture::{NOW, QueueFixture, TestEngine, concurrently, ids, new_event};
use crate::queue::{AwaitedReply, Enqueued, EventId, Known, NewEvent, Queue};
use crate::tuning::{ReplicaTiming, Tuning};

/// Stores a push whose reply a target is asked for, for a minute.
async fn ask(queue: &Queue, content: &str) -> (EventId, Enqueued) {
    let (sender, _) = oneshot::channel();
    let until = UnixMillis::now().after(Duration::from_secs(60));
    let new = new_event(queue.next_id(NOW), content, &["bot"]);
    let id = new.event.id;
    let awaited = vec![("bot".into(), AwaitedReply { until, first: true, tries: Default::default(), sender })];
    (id, queue.enqueue(NewEvent { awaited, ..new }).await.unwrap())
}

/// What a retry at this replica is told.
async fn known(queue: &Queue, content: &str) -> Known {
    match ask(queue, content).await.1 {
        Enqueued::Duplicate { reply, .. } => reply,
        Enqueued::Fresh => panic!("stored twice"),
    }
}

#[tokio::test]
async fn replicas_that_start_at_once_get_slots_of_their_own() {
    if test_server::shared().is_none() {
        return;
    }
    let first = QueueFixture::open(TestEngine::Postgres).await;
    let others = parking_lot::Mutex::new(Vec::new());
    let start = async || {
        let other = first.another().await;
        others.lock().push(other);
    };
    concurrently((0..6).map(|_| start())).await;
    let slots = first.texts("SELECT count(DISTINCT slot)::text FROM replica");
    assert_eq!(slots, [Some("7".to_owned())]);
}

#[tokio::test]
async fn whichever_is_stored_first_is_the_reply_to_every_try() {
    if test_server::shared().is_none() {
        return;
    }
    let first = QueueFixture::open(TestEngine::Postgres).await;
    let second = first.another().await;
    let (replied, _) = ask(&first.queue, "replied").await;
    assert!(matches!(known(&second.queue, "replied").await, Known::Asking(_)));
    assert!(first.queue.record_reply(replied, "<xml/>".to_owned(), None).await.unwrap());
    assert!(!second.queue.record_reply(replied, "<other/>".to_owned(), None).await.unwrap(), "it has one");
    assert!(first.queue.record_reply(replied, "<xml/>".to_owned(), None).await.unwrap(), "it is this one");
    assert_eq!(second.queue.decide_no_reply(replied).await.unwrap().as_deref(), Some("<xml/>"));
    assert_eq!(known(&second.queue, "replied").await, Known::Answered(Some("<xml/>".to_owned())));
    let (decided, _) = ask(&first.queue, "decided").await;
    assert_eq!(second.queue.decide_no_reply(decided).await.unwrap(), None);
    assert!(!first.queue.record_reply(decided, "<xml/>".to_owned(), None).await.unwrap(), "it comes too late");
    assert_eq!(known(&first.queue, "decided").await, Known::Answered(None));
}

/// The asker's clock and the reader's may be apart by more than a window.
#[tokio::test]
async fn how_long_a_target_is_asked_does_not_depend_on_the_replicas_clocks() {
    if test_server::shared().is_none() {
        return;
    }
    let first = QueueFixture::open(TestEngine::Postgres).await;
    let second = first.another().await;
    ask(&first.queue, "asked").await;
    let now = UnixMillis::now();
    crate::clock::simulated::set(Some(now.after(Duration::from_secs(300))));
    let reply = known(&second.queue, "asked").await;
    let until = match reply {
        Known::Asking(until) => until.since(UnixMillis::now()),
        Known::Answered(reply) => panic!("{reply:?}"),
    };
    crate::clock::simulated::set(None);
    assert!((Duration::from_secs(1)..=Duration::from_secs(60)).contains(&until), "{until:?}");
}

#[tokio::test]
async fn what_was_answered_without_a_reply_is_not_asked_again_after_a_restart() {
    if test_server::shared().is_none() {
        return;
    }
    let fixture = QueueFixture::open(TestEngine::Postgres).await;
    let (open, _) = ask(&fixture.queue, "open").await;
    let (answered, _) = ask(&fixture.queue, "answered").await;
    fixture.queue.decide_no_reply(answered).await.unwrap();
    fixture.execute("UPDATE delivery SET holder = NULL");
    let unanswered = fixture.queue.unanswered(UnixMillis(0)).await.unwrap();
    assert_eq!(unanswered.iter().map(|unanswered| unanswered.event.id).collect::<Vec<_>>(), [open]);
}

#[tokio::test]
async fn only_what_is_held_without_a_lease_as_the_same_attempt_is_given_back() {
    if test_server::shared().is_none() {
        return;
    }
    let ms = Duration::from_millis;
    let replica = ReplicaTiming { beat: ms(20), fence: ms(120_000), orphaned: ms(200), ..ReplicaTiming::default() };
    let first = QueueFixture::open_tuned(TestEngine::Postgres, Tuning { replica, ..Tuning::default() }).await;
    let id = first.store("a", &["crm"]).await;
    first.execute("UPDATE delivery SET holder = (SELECT max(incarnation) FROM replica)");
    for attempts in 1..20 {
        // A lease whose answer is on its way, in each look another one.
        first.execute(&format!("UPDATE delivery SET attempts = {attempts}"));
        let seen = first.texts("SELECT alive_at::text FROM replica");
        while first.texts("SELECT alive_at::text FROM replica") == seen {
            // The replica's tasks are of this thread.
            sleep(ms(5)).await;
        }
        assert_eq!(first.texts("SELECT count(holder)::text FROM delivery"), [Some("1".to_owned())], "{attempts}");
    }
    while first.texts("SELECT count(holder)::text FROM delivery") != [Some("0".to_owned())] {
        sleep(ms(5)).await;
    }
    assert_eq!(ids(&first.lease("crm", 1, NOW).await), [id], "found at once");
}
