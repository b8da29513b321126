//! Lanes in simulated time, against targets that answer by a script.

use bytes::Bytes;
use http::{HeaderMap, StatusCode, Uri};
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::*;
use crate::clock::{UnixMillis, simulated};
use crate::deliver::scripted::{Script, ScriptedAnswer};
use crate::deliver::{AnswerRules, CredentialsOverride, Format, Role, TlsOptions, Tries};
use crate::event::{ContentKey, Event};
use crate::queue::model::{BrokenRule, LinkCut, ModelStore, StoreLink};
use crate::queue::{AwaitedReply, Faults, NewEvent, Settings};
use crate::wechat::{Message, Mode};

const NOW: UnixMillis = UnixMillis(1_795_161_600_000);
const HOUR: Duration = Duration::from_secs(3600);

fn queue(path: &std::path::Path) -> Queue {
    let settings = Settings { dedup_window: HOUR, replay_window: HOUR, ..Settings::for_tests(path) };
    let faults = Faults { stall: Box::new(|| Duration::ZERO), fails: Box::new(|| false) };
    Queue::simulated(&settings, drop, faults).unwrap()
}

/// A target that accepts events, but fails those of the user `bad`, does not answer those of `mute`, and takes a second
/// for those of `slow`.
fn policy(concurrency: usize) -> Policy {
    let target = Target {
        name: "crm".into(),
        role: Role::Handler,
        url: Uri::from_static("http://crm.example/"),
        format: Format::Raw,
        timeout: HOUR,
        headers: HeaderMap::new(),
        signing_keys: Vec::new(),
        credentials: CredentialsOverride::default(),
        tls: TlsOptions::default(),
        proxy: None,
        deny_private: false,
        tries: Tries::Once,
        bare_scene: false,
        answers: AnswerRules::default(),
    };
    let script = Script(Arc::new(|order| match order.event.message.from_user() {
        "mute" => Box::pin(std::future::pending()),
        "bad" => Box::pin(async { ScriptedAnswer::Broken }),
        "slow" => Box::pin(async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            ScriptedAnswer::Status(StatusCode::OK, HeaderMap::new())
        }),
        _ => Box::pin(async { ScriptedAnswer::Status(StatusCode::OK, HeaderMap::new()) }),
    }));
    let upstream = Upstream::scripted(target.clone(), script).unwrap();
    let retry = Schedule::ending(vec![HOUR]);
    let settings =
        TargetSettings { target, retry, expire_after: None, concurrency, rate: None, order: DeliveryOrder::None };
    Policy::new(&settings, upstream, OpenIds::Hash)
}

async fn push(queue: &Queue, received_at: UnixMillis, user: &str) {
    queue.enqueue(event(queue, received_at, user)).await.unwrap();
}

fn event(queue: &Queue, received_at: UnixMillis, user: &str) -> NewEvent {
    let id = queue.next_id(received_at);
    let clear = Bytes::from(format!("<xml><FromUserName>{user}</FromUserName><MsgId>{}</MsgId></xml>", id.0));
    let message = Message::parse(&clear).unwrap();
    let key = ContentKey::of("wx1", &message, &clear);
    let event = Event {
        id,
        account: "shop".into(),
        app_id: "wx1".into(),
        mode: Mode::Plaintext,
        received_at,
        query: String::new(),
        body: clear.clone(),
        clear,
        message,
        traceparent: None,
    };
    NewEvent { event: Arc::new(event), key, targets: vec!["crm".into()], reply: None, awaited: Vec::new() }
}

/// As on a machine without a clock of its own, which learns the time some seconds after its start.
#[tokio::test(start_paused = true)]
async fn what_is_due_in_hours_goes_out_soon_after_the_clock_is_set_forward() {
    let folder = tempfile::tempdir().unwrap();
    simulated::set(Some(NOW));
    let queue = queue(folder.path());
    push(&queue, NOW.after(3 * HOUR), "o1").await;
    let dispatcher = Dispatcher::new(queue.clone(), Metrics::new(), Tail::default(), BTreeSet::new());
    dispatcher.apply(vec![policy(1)]);
    tokio::time::sleep(Duration::from_secs(10)).await;
    simulated::set(Some(NOW.after(4 * HOUR)));
    tokio::time::sleep(Duration::from_secs(61)).await;
    dispatcher.drain().await;
    queue.close().await;
    let audit = crate::queue::Inspect::open(&Settings::for_tests(folder.path())).await.unwrap().audit().await.unwrap();
    simulated::set(None);
    assert_eq!(audit.counts.delivered, 1);
}

/// Otherwise a crash while the other attempt is in progress would repeat the ended one.
#[tokio::test(start_paused = true)]
async fn a_lane_that_ends_settles_an_awaited_attempt_though_another_is_still_under_way() {
    let folder = tempfile::tempdir().unwrap();
    let queue = queue(folder.path());
    let dispatcher = Dispatcher::new(queue.clone(), Metrics::new(), Tail::default(), BTreeSet::new());
    dispatcher.apply(vec![policy(2)]);
    push(&queue, UnixMillis::now(), "mute").await;
    let (sender, reply) = oneshot::channel();
    let awaited = AwaitedReply { until: UnixMillis::now().after(HOUR), first: true, tries: Arc::default(), sender };
    let new = event(&queue, UnixMillis::now(), "slow");
    queue.enqueue(NewEvent { awaited: vec![("crm".into(), awaited)], ..new }).await.unwrap();
    tokio::time::sleep(Duration::from_millis(500)).await;
    dispatcher.apply(Vec::new());
    assert!(reply.await.is_ok(), "the reply is offered");
    tokio::time::sleep(Duration::from_secs(1)).await;
    let counts = queue.stats().await.unwrap().targets[0].counts;
    assert_eq!((counts.delivered, counts.pending), (1, 1));
}

/// One attempt at a time in all replicas is none at a time in most of them.
#[tokio::test(start_paused = true)]
async fn a_replica_without_a_share_makes_awaited_attempts_alone() {
    let folder = tempfile::tempdir().unwrap();
    let queue = queue(folder.path());
    let dispatcher = Dispatcher::new(queue.clone(), Metrics::new(), Tail::default(), BTreeSet::new());
    dispatcher.apply(vec![policy(1)]);
    dispatcher.divide(Share::new(1, 2));
    tokio::time::sleep(Duration::from_millis(100)).await;
    let delivered = async || queue.stats().await.unwrap().targets[0].counts.delivered;
    push(&queue, UnixMillis::now(), "o1").await;
    let (sender, reply) = oneshot::channel();
    let awaited = AwaitedReply { until: UnixMillis::now().after(HOUR), first: true, tries: Arc::default(), sender };
    let new = event(&queue, UnixMillis::now(), "o2");
    queue.enqueue(NewEvent { awaited: vec![("crm".into(), awaited)], ..new }).await.unwrap();
    tokio::time::sleep(Duration::from_secs(70)).await;
    assert!(reply.await.is_ok(), "no other replica can make this attempt");
    assert_eq!(delivered().await, 1, "the other one is another replica's");
    dispatcher.divide(Share::WHOLE);
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(delivered().await, 2);
}

/// Else they would wait here until the replicas change again.
#[tokio::test(start_paused = true)]
async fn what_is_on_its_way_to_a_replica_that_loses_its_share_is_left_to_the_others() {
    let store = ModelStore::new(BrokenRule::None);
    let link = StoreLink::new(|end| end - 1, 0);
    let queue = Queue::model(&store, Arc::clone(&link), &Tuning::default()).await.unwrap();
    let dispatcher = Dispatcher::new(queue.clone(), Metrics::new(), Tail::default(), BTreeSet::new());
    dispatcher.divide(Share::new(0, 2));
    dispatcher.apply(vec![policy(1)]);
    let delay = Duration::from_secs(1);
    let slow = || LinkCut { until: Instant::now() + 3 * delay, lost: 0, unanswered: 0, delay: delay * 2 / 5 };
    for poll_is_slow in [false, true] {
        dispatcher.divide(Share::new(0, 2));
        tokio::time::sleep(delay).await;
        let new = event(&queue, NOW, "o1");
        let id = new.event.id;
        if poll_is_slow {
            dispatcher.divide(Share::new(1, 2));
            tokio::time::sleep(delay).await;
            queue.enqueue(new).await.unwrap();
            link.cut(slow());
            dispatcher.divide(Share::new(0, 2));
            tokio::time::sleep(delay / 2).await;
            dispatcher.divide(Share::new(1, 2));
        } else {
            link.cut(slow());
            let lose = async {
                tokio::time::sleep(delay / 2).await;
                dispatcher.divide(Share::new(1, 2));
            };
            let (stored, ()) = tokio::join!(queue.enqueue(new), lose);
            stored.unwrap();
        }
        tokio::time::sleep(10 * delay).await;
        assert_eq!(store.rows().due("crm", NOW.after(HOUR)), [id], "slow poll: {poll_is_slow}");
        dispatcher.divide(Share::new(0, 2));
        tokio::time::sleep(10 * delay).await;
        assert!(store.rows().due("crm", NOW.after(HOUR)).is_empty(), "delivered");
    }
}

#[test]
fn replicas_divide_a_rate_exactly() {
    let limits = TargetLimits { concurrency: 1, rate: NonZeroU32::new(2) };
    let rate = limits.rate_of(Share::new(2, 4)).unwrap();
    assert!(rate.check().is_ok() && rate.check().is_err(), "one in two seconds");
    let limits = TargetLimits { concurrency: 1, rate: NonZeroU32::new(9) };
    let rate = limits.rate_of(Share::new(0, 3)).unwrap();
    assert!((0..3).all(|_| rate.check().is_ok()) && rate.check().is_err());
}

/// A lane in a busy loop would stop the simulated time for ever, so another thread watches this one.
#[test]
fn a_lane_without_a_slot_for_a_probe_waits_for_one() {
    let (tell, hear) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
        runtime.unwrap().block_on(async {
            let folder = tempfile::tempdir().unwrap();
            let queue = queue(folder.path());
            let dispatcher = Dispatcher::new(queue.clone(), Metrics::new(), Tail::default(), BTreeSet::new());
            let dispatcher = dispatcher.with_tuning(Tuning::small());
            dispatcher.apply(vec![policy(2)]);
            for user in ["mute", "bad", "bad", "bad", "bad", "bad", "bad"] {
                push(&queue, UnixMillis::now(), user).await;
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
            dispatcher.apply(vec![policy(1)]);
            tokio::time::sleep(Duration::from_secs(10)).await;
            tell.send(()).unwrap();
        });
    });
    assert!(hear.recv_timeout(Duration::from_secs(20)).is_ok(), "the lane spins");
}
