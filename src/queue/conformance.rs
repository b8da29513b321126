//! The contract of `mod.rs`, checked on an engine through nothing but [`Queue`] and [`Inspect`].
//!
//! Sweeps are in `sweep_tests.rs`, order in `order_tests.rs`. Another engine passes the same suite: only [`Bench`] knows how one is opened.

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
pub(super) struct Bench {
    pub(super) folder: tempfile::TempDir,
    pub(super) queue: Queue,
    commits: Arc<AtomicU64>,
}

impl Bench {
    pub(super) fn open() -> Self {
        Self::open_in(tempfile::tempdir().unwrap())
    }

    fn open_in(folder: tempfile::TempDir) -> Self {
        let commits = Arc::new(AtomicU64::new(0));
        let counter = Arc::clone(&commits);
        let count = move |_| {
            counter.fetch_add(1, Ordering::Relaxed);
        };
        let queue = Queue::open(&settings(folder.path()), count).unwrap();
        Self { folder, queue, commits }
    }

    pub(super) async fn reopen(self) -> Self {
        self.queue.close().await;
        Self::open_in(self.folder)
    }

    /// The store as a crash at this moment would leave it, opened by another process.
    pub(super) fn crashed(&self) -> Self {
        let image = tempfile::tempdir().unwrap();
        for file in ["wxrelay.db", "wxrelay.db-wal"] {
            fs::copy(self.folder.path().join(file), image.path().join(file)).unwrap();
        }
        Self::open_in(image)
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
        max_size: 1 << 40,
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

pub(super) fn settlement(event: EventId, target: &str, verdict: Disposition, number: u32) -> Settlement {
    let (status, error, answer) = (Some(503), Some("503".to_owned()), Some(b"busy".to_vec()));
    let attempt = AttemptRecord { number, at: NOW, duration: Duration::from_millis(7), status, error, answer };
    Settlement { event, target: target.into(), verdict, attempt: Some(attempt) }
}

pub(super) fn ids(leases: &Leases) -> Vec<EventId> {
    leases.due.iter().map(|lease| lease.event.id).collect()
}

#[tokio::test]
async fn a_second_push_of_the_same_text_is_a_duplicate_of_the_first() {
    let bench = Bench::open();
    let first = bench.store("hello", &["crm"]).await;
    let again = bench.queue.enqueue(bench.event("hello", &["crm"])).await.unwrap();
    assert!(matches!(again, Enqueued::Duplicate { id, reply: None } if id == first));
    bench.store("hello!", &["crm"]).await;
    assert_eq!(bench.audit().deliveries, 2);
}

#[tokio::test]
async fn a_duplicate_is_known_with_its_reply_after_a_restart() {
    let bench = Bench::open();
    let first = bench.store("late reply", &["crm"]).await;
    bench.queue.record_reply(first, "<xml>late</xml>".to_owned()).await.unwrap();
    let known = NewEvent { reply: Some("<xml>known</xml>".to_owned()), ..bench.event("known reply", &["crm"]) };
    bench.queue.enqueue(known).await.unwrap();
    let bench = bench.reopen().await;
    for (content, expected) in [("late reply", "<xml>late</xml>"), ("known reply", "<xml>known</xml>")] {
        let again = bench.queue.enqueue(bench.event(content, &["crm"])).await.unwrap();
        assert!(matches!(again, Enqueued::Duplicate { reply: Some(reply), .. } if reply == expected), "{content}");
    }
    assert_eq!(bench.audit().events, 2);
}

#[tokio::test]
async fn a_fresh_event_goes_to_each_inbox_and_the_awaited_one_can_reply() {
    let bench = Bench::open();
    let mut crm = bench.queue.subscribe("crm".into(), 8);
    let mut bot = bench.queue.subscribe("bot".into(), 8);
    let (reply, mut answer) = oneshot::channel();
    let new = NewEvent {
        awaited: vec![("bot".into(), AwaitedReply { until: NOW, first: true, sender: reply })],
        ..bench.event("hi", &["crm", "bot"])
    };
    let id = new.event.id;
    bench.queue.enqueue(new).await.unwrap();
    let (to_crm, to_bot) = (crm.fresh.recv().await.unwrap(), bot.awaited.recv().await.unwrap());
    assert_eq!((to_crm.event.id, to_crm.attempt, &*to_crm.target), (id, 1, "crm"));
    assert!(to_crm.reply.is_none() && to_bot.reply.is_some());
    assert!(bench.lease("crm", 10, NOW).await.due.is_empty(), "leased already");
    drop(to_bot);
    assert!(answer.try_recv().is_err(), "told that there will be no reply");
}

#[tokio::test]
async fn what_does_not_fit_the_inbox_is_leased_from_the_store() {
    let bench = Bench::open();
    let mut inbox = bench.queue.subscribe("crm".into(), 2);
    timeout(PATIENCE, inbox.wake.notified()).await.unwrap();
    let mut stored = Vec::new();
    for content in ["1", "2", "3", "4"] {
        stored.push(bench.store(content, &["crm"]).await);
    }
    timeout(PATIENCE, inbox.wake.notified()).await.unwrap();
    let (first, second) = (inbox.fresh.recv().await.unwrap(), inbox.fresh.recv().await.unwrap());
    assert_eq!([first.event.id, second.event.id], stored[..2]);
    let rest = bench.lease("crm", 10, NOW).await;
    assert_eq!(ids(&rest), stored[2..]);
    assert_eq!(rest.next_due, None);
    let event = &rest.due[0].event;
    let original = new_event(stored[2], "3", &["crm"]).event;
    assert_eq!(format!("{event:?}"), format!("{original:?}"), "read back as it was");
    assert_eq!((&event.clear, &event.query), (&original.clear, &original.query));
}

#[tokio::test]
async fn leases_come_oldest_first_and_name_the_next_moment() {
    let bench = Bench::open();
    let (a, b, c) =
        (bench.store("a", &["crm"]).await, bench.store("b", &["crm"]).await, bench.store("c", &["crm"]).await);
    bench.queue.settle(settlement(a, "crm", Disposition::Retry(NOW.after(DAY)), 1)).await.unwrap();
    let first = bench.lease("crm", 1, NOW).await;
    assert_eq!((ids(&first), first.next_due), (vec![b], Some(NOW)), "c is due as well");
    let second = bench.lease("crm", 1, NOW).await;
    assert_eq!((ids(&second), second.next_due), (vec![c], Some(NOW.after(DAY))));
    let third = bench.lease("crm", 1, NOW.after(DAY)).await;
    assert_eq!((ids(&third), third.next_due), (vec![a], None));
    assert_eq!((third.due[0].attempt, third.due[0].failures), (2, 1));
    assert!(bench.lease("nobody", 1, NOW).await.due.is_empty());
}

#[tokio::test]
async fn a_retry_wakes_the_consumer_and_frees_the_delivery() {
    let bench = Bench::open();
    let mut inbox = bench.queue.subscribe("crm".into(), 8);
    timeout(PATIENCE, inbox.wake.notified()).await.unwrap();
    let id = bench.store("a", &["crm"]).await;
    let lease = inbox.fresh.recv().await.unwrap();
    let due = NOW.after(Duration::from_secs(5));
    bench.queue.settle(settlement(id, "crm", Disposition::Retry(due), 1)).await.unwrap();
    timeout(PATIENCE, inbox.wake.notified()).await.unwrap();
    assert_eq!(bench.lease("crm", 1, NOW).await.next_due, Some(due));
    let again = bench.lease("crm", 1, due).await;
    drop(lease);
    assert_eq!(ids(&again), [id]);
    assert!(bench.lease("crm", 1, due).await.due.is_empty(), "the first lease's end does not free the second");
    assert_eq!(bench.audit().counts.pending, 1);
}

#[tokio::test]
async fn a_lease_that_is_dropped_unsettled_is_had_again() {
    let bench = Bench::open();
    let mut inbox = bench.queue.subscribe("crm".into(), 8);
    let (a, b) = (bench.store("a", &["crm"]).await, bench.store("b", &["crm"]).await);
    let attempted = inbox.fresh.recv().await.unwrap();
    assert!(bench.lease("crm", 10, NOW).await.due.is_empty());
    // As when a task is cancelled, and a target is taken out of the configuration and put back.
    drop(attempted);
    drop(inbox);
    let later = bench.queue.subscribe("crm".into(), 8);
    timeout(PATIENCE, later.wake.notified()).await.unwrap();
    assert_eq!(ids(&bench.lease("crm", 10, NOW).await), [a, b]);
}

#[tokio::test]
async fn a_consumer_is_told_of_leases_that_were_dropped() {
    let bench = Bench::open();
    let mut inbox = bench.queue.subscribe("crm".into(), 8);
    timeout(PATIENCE, inbox.wake.notified()).await.unwrap();
    bench.store("a", &["crm"]).await;
    drop(inbox.fresh.recv().await);
    timeout(PATIENCE, inbox.wake.notified()).await.unwrap();
}

#[tokio::test]
async fn a_delivery_ends_once() {
    let bench = Bench::open();
    let id = bench.store("a", &["crm", "bot"]).await;
    bench.end(id, "crm", DeliveryState::Delivered).await;
    bench.end(id, "crm", DeliveryState::Dead).await;
    bench.queue.settle(settlement(id, "crm", Disposition::Retry(NOW), 2)).await.unwrap();
    bench.end(id, "nobody", DeliveryState::Dead).await;
    bench.end(EventId(7), "crm", DeliveryState::Dead).await;
    let counts = bench.audit().counts;
    assert_eq!((counts.delivered, counts.pending, counts.total()), (1, 1, 2));
    let detail = Inspect::open(bench.folder.path()).unwrap().event(id).unwrap().unwrap();
    assert_eq!(detail.deliveries[1].attempts.len(), 1, "what came too late left no trace");
}

#[tokio::test]
async fn every_state_is_accounted_for() {
    let bench = Bench::open();
    for (place, state) in DeliveryState::ALL.into_iter().enumerate() {
        let id = bench.store(&place.to_string(), &["crm", "bot"]).await;
        bench.audit();
        if state != DeliveryState::Pending {
            let end = Settlement { attempt: None, ..settlement(id, "crm", Disposition::End(state), 1) };
            bench.queue.settle(end).await.unwrap();
        }
        bench.audit();
    }
    let (audit, stats) = (bench.audit(), bench.queue.stats().await.unwrap());
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
    let bench = Bench::open();
    let before = bench.commits.load(Ordering::Relaxed);
    concurrently((0..200).map(|n| {
        let new = bench.event(&n.to_string(), &["crm"]);
        async { assert!(matches!(bench.queue.enqueue(new).await.unwrap(), Enqueued::Fresh)) }
    }))
    .await;
    let commits = bench.commits.load(Ordering::Relaxed) - before;
    assert!(commits < 100, "{commits} commits for 200 events");
    assert_eq!(bench.audit().events, 200);
}

#[tokio::test]
async fn a_crash_loses_nothing_that_was_answered_and_frees_all_leases() {
    let bench = Bench::open();
    let mut inbox = bench.queue.subscribe("crm".into(), 8);
    let (a, b) = (bench.store("a", &["crm"]).await, bench.store("b", &["crm"]).await);
    let _leases = (inbox.fresh.recv().await.unwrap(), inbox.fresh.recv().await.unwrap());
    bench.end(a, "crm", DeliveryState::Delivered).await;
    let after = bench.crashed();
    assert_eq!(after.audit(), bench.audit());
    assert_eq!(ids(&after.lease("crm", 10, NOW).await), [b]);
    assert!(after.queue.next_id(UnixMillis(0)) > b, "ids go on where they were");
}

#[tokio::test]
async fn a_queue_that_is_dropped_lets_the_store_go_with_everything_in_it() {
    let bench = Bench::open();
    let mut inbox = bench.queue.subscribe("crm".into(), 8);
    bench.store("a", &["crm"]).await;
    drop(bench.queue);
    assert!(inbox.fresh.recv().await.is_some());
    assert!(inbox.fresh.recv().await.is_none(), "ends with the queue");
    let reopened = loop {
        match Queue::open(&settings(bench.folder.path()), drop) {
            Err(Error::Locked { .. }) => tokio::task::yield_now().await,
            other => break other.unwrap(),
        }
    };
    assert_eq!(reopened.lease("crm", 10, NOW).await.unwrap().due.len(), 1);
}

#[tokio::test]
async fn closing_commits_what_waits_and_refuses_the_rest() {
    let bench = Bench::open();
    let (other, folder) = (bench.queue.clone(), bench.folder);
    let waiting = new_event(EventId(1), "a", &["crm"]);
    let late = new_event(EventId(2), "b", &["crm"]);
    let (stored, ()) = tokio::join!(other.enqueue(waiting), bench.queue.close());
    assert!(matches!(stored.unwrap(), Enqueued::Fresh));
    assert!(matches!(other.enqueue(late).await, Err(Error::Closed)));
    let audit = Bench::open_in(folder).audit();
    assert_eq!(audit.events, 1);
}

#[tokio::test]
async fn a_second_relay_is_refused() {
    let bench = Bench::open();
    let Err(refused) = Queue::open(&settings(bench.folder.path()), drop) else { panic!("opened twice") };
    assert!(matches!(refused, Error::Locked { pid: Some(pid), .. } if pid == std::process::id()), "{refused}");
}

#[tokio::test]
async fn a_full_store_refuses_what_is_new_and_knows_what_is_not() {
    let folder = tempfile::tempdir().unwrap();
    let queue = Queue::open(&settings(folder.path()), drop).unwrap();
    queue.enqueue(new_event(EventId(1), "1", &["crm"])).await.unwrap();
    queue.close().await;
    let queue = Queue::open(&Settings { max_size: 1, ..settings(folder.path()) }, drop).unwrap();
    // That there is nothing to drop is found out soon after the start.
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
    let bench = Bench::open();
    let (a, b) = (bench.store("a", &["crm"]).await, bench.store("b", &["crm", "bot"]).await);
    bench.end(a, "crm", DeliveryState::Dead).await;
    bench.end(b, "bot", DeliveryState::Dead).await;
    let inspect = Inspect::open(bench.folder.path()).unwrap();
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
    let bench = Bench::open();
    let id = bench.store("a", &["crm"]).await;
    bench.queue.settle(settlement(id, "crm", Disposition::Retry(NOW), 1)).await.unwrap();
    bench.queue.settle(settlement(id, "crm", Disposition::End(DeliveryState::Dead), 2)).await.unwrap();
    let note = AttemptNote { event: id, target: "crm".into(), attempt: 1, error: Some("noted later".to_owned()) };
    bench.queue.annotate(note).await.unwrap();
    let inspect = Inspect::open(bench.folder.path()).unwrap();
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
    let bench = Bench::open();
    bench.store("a", &["crm"]).await;
    bench.queue.close().await;
    assert_eq!(Inspect::open(bench.folder.path()).unwrap().audit().unwrap().events, 1);
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
