//! The contract of `mod.rs`, checked on an engine through nothing but [`Queue`] and [`Inspect`].
//!
//! Sweeps are in `sweep_tests.rs`, order in `order_tests.rs`. Another engine passes the same suite: only
//! [`QueueFixture`] knows how an engine is opened.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::*;
use crate::event::Event;
use crate::wechat::{Message, Mode};

pub(super) const NOW: UnixMillis = UnixMillis(1_795_161_600_000);
pub(super) const DAY: Duration = Duration::from_secs(86_400);
/// Longer than anything here takes; only a failing test waits for it.
pub(super) const PATIENCE: Duration = Duration::from_secs(20);

/// A queue in a folder of its own.
pub(super) struct QueueFixture {
    pub(super) folder: tempfile::TempDir,
    pub(super) queue: Queue,
    commits: Arc<AtomicU64>,
    tuning: Tuning,
}

impl QueueFixture {
    /// With the shipped sizes.
    pub(super) fn open() -> Self {
        Self::open_tuned(Tuning::default())
    }

    pub(super) fn open_tuned(tuning: Tuning) -> Self {
        Self::open_in(tempfile::tempdir().unwrap(), tuning)
    }

    fn open_in(folder: tempfile::TempDir, tuning: Tuning) -> Self {
        let commits = Arc::new(AtomicU64::new(0));
        let counter = Arc::clone(&commits);
        let count = move |_| {
            counter.fetch_add(1, Ordering::Relaxed);
        };
        let queue = Queue::open_tuned(&settings(folder.path()), &tuning, count).unwrap();
        Self { folder, queue, commits, tuning }
    }

    pub(super) async fn reopen(self) -> Self {
        self.queue.close().await;
        Self::open_in(self.folder, self.tuning)
    }

    /// The store as a crash at this moment would leave it, opened by another process.
    pub(super) fn crashed(&self) -> Self {
        let image = tempfile::tempdir().unwrap();
        for file in ["wxrelay.db", "wxrelay.db-wal"] {
            fs::copy(self.folder.path().join(file), image.path().join(file)).unwrap();
        }
        Self::open_in(image, self.tuning)
    }

    pub(super) fn event(&self, content: &str, targets: &[&str]) -> NewEvent {
        new_event(self.queue.next_id(NOW), content, targets)
    }

    pub(super) async fn store(&self, content: &str, targets: &[&str]) -> EventId {
        let new = self.event(content, targets);
        let id = new.event.id;
        assert!(matches!(self.queue.enqueue(new).await.unwrap(), Enqueued::Fresh));
        id
    }

    pub(super) async fn end(&self, event: EventId, target: &str, state: DeliveryState) {
        self.queue.settle(settlement(event, target, Disposition::End(state), 1)).await.unwrap();
    }

    pub(super) async fn lease(&self, target: &str, max: usize, now: UnixMillis) -> Leases {
        self.queue.lease(target, max, now).await.unwrap()
    }

    /// The audit, after making sure that it adds up.
    pub(super) fn audit(&self) -> Audit {
        let audit = Inspect::open(self.folder.path()).unwrap().audit().unwrap();
        assert!(audit.is_clean(), "{audit:?}");
        audit
    }
}

fn settings(path: &Path) -> Settings {
    Settings {
        path: path.to_owned(),
        // The events here are of a fixed day; none is to be old.
        retention: DAY * 365_000,
        dedup_window: DAY,
        replay_window: DAY * 365_000,
        max_size: 1 << 40,
        max_memory: 64 << 20,
        encryption_keys: EncryptionKeys::default(),
    }
}

pub(super) fn new_event(id: EventId, content: &str, targets: &[&str]) -> NewEvent {
    new_event_of(id, "o1", content, targets)
}

pub(super) fn new_event_of(id: EventId, user: &str, content: &str, targets: &[&str]) -> NewEvent {
    let clear = Bytes::from(format!(
        "<xml><ToUserName>gh</ToUserName><FromUserName>{user}</FromUserName><CreateTime>1</CreateTime>\
         <MsgType>text</MsgType><Content>{content}</Content></xml>"
    ));
    let message = Message::parse(&clear).unwrap();
    let key = ContentKey::of("wx1", &message, &clear);
    let event = Event {
        id,
        account: "shop".into(),
        app_id: "wx1".into(),
        mode: Mode::Secure,
        received_at: NOW,
        query: format!("timestamp=1&openid={user}"),
        body: Bytes::from_static(b"sealed"),
        clear,
        message,
        traceparent: None,
    };
    let targets = targets.iter().map(|name| Arc::from(*name)).collect();
    NewEvent { event: Arc::new(event), key, targets, reply: None, awaited: Vec::new() }
}

pub(super) fn settlement(event: EventId, target: &str, disposition: Disposition, number: u32) -> Settlement {
    let (status, error, answer) = (Some(503), Some("503".to_owned()), Some(b"busy".to_vec()));
    let attempt = AttemptRecord { number, at: NOW, duration: Duration::from_millis(7), status, error, answer };
    Settlement { event, target: target.into(), disposition, attempt: Some(attempt) }
}

pub(super) fn ids(leases: &Leases) -> Vec<EventId> {
    leases.due.iter().map(|lease| lease.event.id).collect()
}

#[tokio::test]
async fn a_second_push_of_the_same_text_is_a_duplicate_of_the_first() {
    let fixture = QueueFixture::open();
    let first = fixture.store("hello", &["crm"]).await;
    let again = fixture.queue.enqueue(fixture.event("hello", &["crm"])).await.unwrap();
    assert!(matches!(again, Enqueued::Duplicate { id, reply: None } if id == first));
    fixture.store("hello!", &["crm"]).await;
    assert_eq!(fixture.audit().deliveries, 2);
}

#[tokio::test]
async fn a_duplicate_is_known_with_its_reply_after_a_restart() {
    let fixture = QueueFixture::open();
    let first = fixture.store("late reply", &["crm"]).await;
    fixture.queue.record_reply(first, "<xml>late</xml>".to_owned()).await.unwrap();
    let known = NewEvent { reply: Some("<xml>known</xml>".to_owned()), ..fixture.event("known reply", &["crm"]) };
    fixture.queue.enqueue(known).await.unwrap();
    let fixture = fixture.reopen().await;
    for (content, expected) in [("late reply", "<xml>late</xml>"), ("known reply", "<xml>known</xml>")] {
        let again = fixture.queue.enqueue(fixture.event(content, &["crm"])).await.unwrap();
        assert!(matches!(again, Enqueued::Duplicate { reply: Some(reply), .. } if reply == expected), "{content}");
    }
    assert_eq!(fixture.audit().events, 2);
}

#[tokio::test]
async fn a_fresh_event_goes_to_each_inbox_and_the_awaited_one_can_reply() {
    let fixture = QueueFixture::open();
    let mut crm = fixture.queue.subscribe("crm".into(), 8);
    let mut bot = fixture.queue.subscribe("bot".into(), 8);
    let (reply, mut answer) = oneshot::channel();
    let new = NewEvent {
        awaited: vec![("bot".into(), AwaitedReply { until: NOW, first: true, sender: reply })],
        ..fixture.event("hi", &["crm", "bot"])
    };
    let id = new.event.id;
    fixture.queue.enqueue(new).await.unwrap();
    let (to_crm, to_bot) = (crm.fresh.recv().await.unwrap(), bot.awaited.recv().await.unwrap());
    assert_eq!((to_crm.event.id, to_crm.attempt, &*to_crm.target), (id, 1, "crm"));
    assert!(to_crm.reply.is_none() && to_bot.reply.is_some());
    assert!(fixture.lease("crm", 10, NOW).await.due.is_empty(), "leased already");
    drop(to_bot);
    assert!(answer.try_recv().is_err(), "told that there will be no reply");
}

#[tokio::test]
async fn what_does_not_fit_the_inbox_is_leased_from_the_store() {
    let fixture = QueueFixture::open();
    let mut inbox = fixture.queue.subscribe("crm".into(), 2);
    timeout(PATIENCE, inbox.wake.notified()).await.unwrap();
    let mut stored = Vec::new();
    for content in ["1", "2", "3", "4"] {
        stored.push(fixture.store(content, &["crm"]).await);
    }
    timeout(PATIENCE, inbox.wake.notified()).await.unwrap();
    let (first, second) = (inbox.fresh.recv().await.unwrap(), inbox.fresh.recv().await.unwrap());
    assert_eq!([first.event.id, second.event.id], stored[..2]);
    let rest = fixture.lease("crm", 10, NOW).await;
    assert_eq!(ids(&rest), stored[2..]);
    assert_eq!(rest.next_due, None);
    let event = &rest.due[0].event;
    let original = new_event(stored[2], "3", &["crm"]).event;
    assert_eq!(format!("{event:?}"), format!("{original:?}"), "read back as it was");
    assert_eq!((&event.clear, &event.query), (&original.clear, &original.query));
}

#[tokio::test]
async fn leases_come_oldest_first_and_name_the_next_moment() {
    let fixture = QueueFixture::open();
    let (a, b, c) =
        (fixture.store("a", &["crm"]).await, fixture.store("b", &["crm"]).await, fixture.store("c", &["crm"]).await);
    fixture.queue.settle(settlement(a, "crm", Disposition::Retry(NOW.after(DAY)), 1)).await.unwrap();
    let first = fixture.lease("crm", 1, NOW).await;
    assert_eq!((ids(&first), first.next_due), (vec![b], Some(NOW)), "c is due as well");
    let second = fixture.lease("crm", 1, NOW).await;
    assert_eq!((ids(&second), second.next_due), (vec![c], Some(NOW.after(DAY))));
    let third = fixture.lease("crm", 1, NOW.after(DAY)).await;
    assert_eq!((ids(&third), third.next_due), (vec![a], None));
    assert_eq!((third.due[0].attempt, third.due[0].failures), (2, 1));
    assert!(fixture.lease("nobody", 1, NOW).await.due.is_empty());
}

#[tokio::test]
async fn a_retry_wakes_the_consumer_and_frees_the_delivery() {
    let fixture = QueueFixture::open();
    let mut inbox = fixture.queue.subscribe("crm".into(), 8);
    timeout(PATIENCE, inbox.wake.notified()).await.unwrap();
    let id = fixture.store("a", &["crm"]).await;
    let lease = inbox.fresh.recv().await.unwrap();
    let due = NOW.after(Duration::from_secs(5));
    fixture.queue.settle(settlement(id, "crm", Disposition::Retry(due), 1)).await.unwrap();
    timeout(PATIENCE, inbox.wake.notified()).await.unwrap();
    assert_eq!(fixture.lease("crm", 1, NOW).await.next_due, Some(due));
    let again = fixture.lease("crm", 1, due).await;
    drop(lease);
    assert_eq!(ids(&again), [id]);
    assert!(fixture.lease("crm", 1, due).await.due.is_empty(), "the first lease's end does not free the second");
    assert_eq!(fixture.audit().counts.pending, 1);
}

#[tokio::test]
async fn a_lease_that_is_dropped_unsettled_is_had_again() {
    let fixture = QueueFixture::open();
    let mut inbox = fixture.queue.subscribe("crm".into(), 8);
    let (a, b) = (fixture.store("a", &["crm"]).await, fixture.store("b", &["crm"]).await);
    let attempted = inbox.fresh.recv().await.unwrap();
    assert!(fixture.lease("crm", 10, NOW).await.due.is_empty());
    // As when a task is cancelled, and a target is taken out of the configuration and put back.
    drop(attempted);
    drop(inbox);
    let later = fixture.queue.subscribe("crm".into(), 8);
    timeout(PATIENCE, later.wake.notified()).await.unwrap();
    assert_eq!(ids(&fixture.lease("crm", 10, NOW).await), [a, b]);
}

#[tokio::test]
async fn a_consumer_is_told_of_leases_that_were_dropped() {
    let fixture = QueueFixture::open();
    let mut inbox = fixture.queue.subscribe("crm".into(), 8);
    timeout(PATIENCE, inbox.wake.notified()).await.unwrap();
    fixture.store("a", &["crm"]).await;
    drop(inbox.fresh.recv().await);
    timeout(PATIENCE, inbox.wake.notified()).await.unwrap();
}

#[tokio::test]
async fn a_delivery_ends_once() {
    let fixture = QueueFixture::open();
    let id = fixture.store("a", &["crm", "bot"]).await;
    fixture.end(id, "crm", DeliveryState::Delivered).await;
    fixture.end(id, "crm", DeliveryState::Dead).await;
    fixture.queue.settle(settlement(id, "crm", Disposition::Retry(NOW), 2)).await.unwrap();
    fixture.end(id, "nobody", DeliveryState::Dead).await;
    fixture.end(EventId(7), "crm", DeliveryState::Dead).await;
    let counts = fixture.audit().counts;
    assert_eq!((counts.delivered, counts.pending, counts.total()), (1, 1, 2));
    let detail = Inspect::open(fixture.folder.path()).unwrap().event(id).unwrap().unwrap();
    assert_eq!(detail.deliveries[1].attempts.len(), 1, "what came too late left no trace");
}

#[tokio::test]
async fn every_state_is_accounted_for() {
    let fixture = QueueFixture::open();
    for (place, state) in DeliveryState::ALL.into_iter().enumerate() {
        let id = fixture.store(&place.to_string(), &["crm", "bot"]).await;
        fixture.audit();
        if state != DeliveryState::Pending {
            let end = Settlement { attempt: None, ..settlement(id, "crm", Disposition::End(state), 1) };
            fixture.queue.settle(end).await.unwrap();
        }
        fixture.audit();
    }
    let (audit, stats) = (fixture.audit(), fixture.queue.stats().await.unwrap());
    assert_eq!((audit.events, audit.deliveries, audit.counts.pending), (5, 10, 6));
    let counts: Vec<_> = audit.targets.iter().map(|part| (part.target.as_str(), part.counts)).collect();
    let quick: Vec<_> = stats.targets.iter().map(|part| (part.target.as_str(), part.counts)).collect();
    assert_eq!(counts, quick);
    assert_eq!(stats.events, 5);
    assert_eq!(stats.targets[0].oldest_pending, Some(NOW));
    assert!(stats.bytes > 0);
}

#[tokio::test]
async fn those_who_wait_share_commits() {
    let fixture = QueueFixture::open();
    let before = fixture.commits.load(Ordering::Relaxed);
    concurrently((0..200).map(|n| {
        let new = fixture.event(&n.to_string(), &["crm"]);
        async { assert!(matches!(fixture.queue.enqueue(new).await.unwrap(), Enqueued::Fresh)) }
    }))
    .await;
    let commits = fixture.commits.load(Ordering::Relaxed) - before;
    assert!(commits < 100, "{commits} commits for 200 events");
    assert_eq!(fixture.audit().events, 200);
}

#[tokio::test]
async fn a_crash_loses_nothing_that_was_answered_and_frees_all_leases() {
    let fixture = QueueFixture::open();
    let mut inbox = fixture.queue.subscribe("crm".into(), 8);
    let (a, b) = (fixture.store("a", &["crm"]).await, fixture.store("b", &["crm"]).await);
    let _leases = (inbox.fresh.recv().await.unwrap(), inbox.fresh.recv().await.unwrap());
    fixture.end(a, "crm", DeliveryState::Delivered).await;
    let after = fixture.crashed();
    assert_eq!(after.audit(), fixture.audit());
    assert_eq!(ids(&after.lease("crm", 10, NOW).await), [b]);
    assert!(after.queue.next_id(UnixMillis(0)) > b, "ids go on where they were");
}

#[tokio::test]
async fn a_queue_that_is_dropped_lets_the_store_go_with_everything_in_it() {
    let fixture = QueueFixture::open();
    let mut inbox = fixture.queue.subscribe("crm".into(), 8);
    fixture.store("a", &["crm"]).await;
    drop(fixture.queue);
    assert!(inbox.fresh.recv().await.is_some());
    assert!(inbox.fresh.recv().await.is_none(), "ends with the queue");
    let reopened = loop {
        match Queue::open(&settings(fixture.folder.path()), drop) {
            Err(Error::Locked { .. }) => tokio::task::yield_now().await,
            other => break other.unwrap(),
        }
    };
    assert_eq!(reopened.lease("crm", 10, NOW).await.unwrap().due.len(), 1);
}

#[tokio::test]
async fn closing_commits_what_waits_and_refuses_the_rest() {
    let fixture = QueueFixture::open();
    let (other, folder) = (fixture.queue.clone(), fixture.folder);
    let waiting = new_event(EventId(1), "a", &["crm"]);
    let late = new_event(EventId(2), "b", &["crm"]);
    let (stored, ()) = tokio::join!(other.enqueue(waiting), fixture.queue.close());
    assert!(matches!(stored.unwrap(), Enqueued::Fresh));
    assert!(matches!(other.enqueue(late).await, Err(Error::Closed)));
    let audit = QueueFixture::open_in(folder, Tuning::default()).audit();
    assert_eq!(audit.events, 1);
}

#[tokio::test]
async fn a_second_relay_is_refused() {
    let fixture = QueueFixture::open();
    let Err(refused) = Queue::open(&settings(fixture.folder.path()), drop) else { panic!("opened twice") };
    assert!(matches!(refused, Error::Locked { pid: Some(pid), .. } if pid == std::process::id()), "{refused}");
}

#[tokio::test]
async fn a_full_store_refuses_what_is_new_and_knows_what_is_not() {
    let folder = tempfile::tempdir().unwrap();
    let queue = Queue::open(&settings(folder.path()), drop).unwrap();
    queue.enqueue(new_event(EventId(1), "1", &["crm"])).await.unwrap();
    queue.close().await;
    let queue = Queue::open(&Settings { max_size: 1, ..settings(folder.path()) }, drop).unwrap();
    // Events are accepted until retention has found nothing to delete, soon after the start.
    let mut last = 1;
    let refused = loop {
        last += 1;
        match queue.enqueue(new_event(EventId(last), &last.to_string(), &["crm"])).await {
            Ok(_) if last < 10_000 => {}
            other => break other,
        }
    };
    assert!(matches!(refused, Err(Error::Full)), "{refused:?}");
    let known = queue.enqueue(new_event(EventId(last + 1), "1", &["crm"])).await.unwrap();
    assert!(matches!(known, Enqueued::Duplicate { id: EventId(1), .. }));
    queue.settle(settlement(EventId(1), "crm", Disposition::End(DeliveryState::Delivered), 1)).await.unwrap();
}

#[tokio::test]
async fn lists_are_filtered_and_paged() {
    let fixture = QueueFixture::open();
    let (a, b) = (fixture.store("a", &["crm"]).await, fixture.store("b", &["crm", "bot"]).await);
    fixture.end(a, "crm", DeliveryState::Dead).await;
    fixture.end(b, "bot", DeliveryState::Dead).await;
    let inspect = Inspect::open(fixture.folder.path()).unwrap();
    let found = |filter: EventFilter| -> Vec<EventId> {
        inspect.events(&EventFilter { limit: 10, ..filter }).unwrap().iter().map(|summary| summary.id).collect()
    };
    let some = |text: &str| Some(text.to_owned());
    assert_eq!(found(EventFilter::default()), [b, a]);
    assert_eq!(found(EventFilter { before: Some(b), ..EventFilter::default() }), [a]);
    assert_eq!(found(EventFilter { since: Some(NOW), until: Some(NOW.after(DAY)), ..EventFilter::default() }), [b, a]);
    assert!(found(EventFilter { until: Some(NOW), ..EventFilter::default() }).is_empty());
    assert_eq!(found(EventFilter { target: some("bot"), ..EventFilter::default() }), [b]);
    assert_eq!(found(EventFilter { state: Some(DeliveryState::Pending), ..EventFilter::default() }), [b]);
    assert_eq!(
        found(EventFilter { target: some("crm"), state: Some(DeliveryState::Dead), ..EventFilter::default() }),
        [a]
    );
    assert_eq!(
        found(EventFilter { event: some("TEXT"), from: some("o1"), account: some("shop"), ..EventFilter::default() }),
        [b, a]
    );
    assert!(found(EventFilter { from: some("o2"), ..EventFilter::default() }).is_empty());
    let dead = |target, before| -> Vec<(EventId, String)> {
        inspect.dead(target, 1, before).unwrap().into_iter().map(|letter| (letter.id, letter.target)).collect()
    };
    assert_eq!(dead(None, None), [(b, "bot".to_owned())]);
    assert_eq!(dead(None, Some(b)), [(a, "crm".to_owned())]);
    assert_eq!(dead(Some("crm"), None), [(a, "crm".to_owned())]);
}

#[tokio::test]
async fn an_event_is_shown_with_every_attempt_and_without_its_signature() {
    let fixture = QueueFixture::open();
    let id = fixture.store("a", &["crm"]).await;
    fixture.queue.settle(settlement(id, "crm", Disposition::Retry(NOW), 1)).await.unwrap();
    fixture.queue.settle(settlement(id, "crm", Disposition::End(DeliveryState::Dead), 2)).await.unwrap();
    let note = AttemptNote { event: id, target: "crm".into(), attempt: 1, error: Some("noted later".to_owned()) };
    fixture.queue.annotate(note).await.unwrap();
    let inspect = Inspect::open(fixture.folder.path()).unwrap();
    let shown = serde_json::to_value(inspect.event(id).unwrap().unwrap()).unwrap();
    assert_eq!(shown["id"], id.to_string());
    assert_eq!(shown["received_at"], "2026-11-20T08:00:00.000Z");
    assert_eq!(shown["deliveries"][0]["state"], "dead");
    assert_eq!(shown["deliveries"][0]["attempts"][0]["error"], "noted later");
    assert_eq!(shown["deliveries"][0]["attempts"][1]["answer"], "busy");
    assert_eq!(shown["deliveries"][0]["attempts"][1]["duration_ms"], 7.0);
    assert!(shown["text"].as_str().unwrap().contains("<Content>a</Content>"));
    assert!(!shown.to_string().contains("timestamp="));
    assert_eq!(inspect.event(EventId(7)).unwrap(), None);
    let dead = inspect.dead(None, 10, None).unwrap().remove(0);
    assert_eq!((dead.error.as_deref(), dead.answer.as_deref()), (Some("503"), Some("busy")));
}

#[tokio::test]
async fn a_store_is_read_while_no_relay_runs() {
    let fixture = QueueFixture::open();
    fixture.store("a", &["crm"]).await;
    fixture.queue.close().await;
    assert_eq!(Inspect::open(fixture.folder.path()).unwrap().audit().unwrap().events, 1);
    let nowhere = tempfile::tempdir().unwrap();
    assert!(matches!(Inspect::open(nowhere.path()), Err(Error::Missing { .. })));
}

/// Polls all of them together on this task.
pub(super) async fn concurrently<F: Future<Output = ()>>(futures: impl Iterator<Item = F>) {
    let mut waiting: Vec<_> = futures.map(Box::pin).collect();
    std::future::poll_fn(|context| {
        waiting.retain_mut(|future| future.as_mut().poll(context).is_pending());
        if waiting.is_empty() { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
    })
    .await;
}
