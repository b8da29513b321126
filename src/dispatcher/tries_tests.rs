//! The rhythm of the tries and what their answers mean, in simulated time.

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, Uri};
use parking_lot::Mutex;
use tokio::sync::oneshot;
use tokio::time::sleep;

use super::*;
use crate::backoff::Schedule;
use crate::deliver::scripted::{Script, ScriptedAnswer};
use crate::deliver::{AnswerRules, CredentialsOverride, Format, Role, Target, TlsOptions, Tries, Upstream};
use crate::dispatcher::TargetSettings;
use crate::event::EventId;
use crate::queue::DeliveryOrder;
use crate::telemetry::OpenIds;
use crate::wechat::{Message, Mode};

const NOT_YET_AFTER: Duration = Duration::from_secs(3);

/// How the target reacts to a try.
#[derive(Clone, Copy)]
enum Reaction {
    Answer(u16),
    /// After that many seconds.
    Slow(u64, u16),
    Break,
    Hang,
}

/// One attempt at a target, and what is known of it.
struct Fixture {
    policy: Policy,
    awaited: AwaitedReply,
    stop: CancellationToken,
    /// The tries that the target got: the number, and the time in tenths of a second.
    got: Arc<Mutex<Vec<(u32, u128)>>>,
}

impl Fixture {
    /// The target reacts to its tries in turn, and to all later ones as to the last.
    fn new(timeout: u64, reactions: &'static [Reaction]) -> Self {
        let (got, started) = (Arc::new(Mutex::new(Vec::new())), Instant::now());
        let script = Script(Arc::new({
            let got = got.clone();
            move |request| {
                let number = request.try_number.unwrap();
                got.lock().push((number, started.elapsed().as_millis() / 100));
                let reaction = reactions[(number as usize).min(reactions.len()) - 1];
                Box::pin(async move {
                    let status =
                        |status| ScriptedAnswer::Status(StatusCode::from_u16(status).unwrap(), HeaderMap::new());
                    match reaction {
                        Reaction::Answer(code) => status(code),
                        Reaction::Slow(seconds, code) => {
                            sleep(Duration::from_secs(seconds)).await;
                            status(code)
                        }
                        Reaction::Break => ScriptedAnswer::Broken,
                        Reaction::Hang => std::future::pending().await,
                    }
                })
            }
        }));
        let (sender, _) = oneshot::channel();
        let until = UnixMillis::now().after(Duration::from_secs(14));
        let awaited = AwaitedReply { until, first: true, tries: Arc::default(), sender };
        awaited.tries.record(1);
        Self { policy: policy(timeout, script), awaited, stop: CancellationToken::new(), got }
    }

    async fn run(&self) -> Tried {
        AttemptTries::new(&self.policy, &event(), 1, Some(&self.awaited), NOT_YET_AFTER).run(&self.stop).await
    }

    fn got(&self) -> Vec<(u32, u128)> {
        self.got.lock().clone()
    }
}

fn policy(timeout: u64, script: Script) -> Policy {
    let target = Target {
        name: "bot".into(),
        role: Role::Handler,
        url: Uri::from_static("http://bot.example/"),
        format: Format::Raw,
        timeout: Duration::from_secs(timeout),
        tries: Tries::Each { not_yet_after: NOT_YET_AFTER },
        headers: HeaderMap::new(),
        signing_keys: Vec::new(),
        credentials: CredentialsOverride::default(),
        tls: TlsOptions::default(),
        proxy: None,
        deny_private: false,
        bare_scene: false,
        answers: AnswerRules::default(),
    };
    let upstream = Upstream::scripted(target.clone(), script).unwrap();
    let (retry, order) = (Schedule::ending(Vec::new()), DeliveryOrder::None);
    let settings = TargetSettings { target, retry, expire_after: None, concurrency: 1, rate: None, order };
    Policy::new(&settings, upstream, OpenIds::Hash)
}

fn event() -> Event {
    let clear = Bytes::from_static(b"<xml><FromUserName>o1</FromUserName><MsgId>1</MsgId></xml>");
    Event {
        id: EventId(1),
        account: "shop".into(),
        app_id: "wx1".into(),
        mode: Mode::Plaintext,
        received_at: UnixMillis::now(),
        query: String::new(),
        body: clear.clone(),
        message: Message::parse(&clear).unwrap(),
        clear,
        traceparent: None,
    }
}

#[tokio::test(start_paused = true)]
async fn once_wechat_makes_no_further_try_they_are_made_5_s_apart_until_the_timeout() {
    let fixture = Fixture::new(22, &[Reaction::Hang]);
    fixture.awaited.tries.end();
    let tried = fixture.run().await;
    assert_eq!(fixture.got(), [(1, 0), (2, 50), (3, 100), (4, 150), (5, 200)]);
    assert_eq!(tried.report.duration.as_secs(), 22);
    assert!(matches!(tried.report.outcome, Outcome::Retry { .. }) && tried.not_yet);
    assert!(tried.report.error.is_some_and(|error| error.starts_with("no answer")));
    assert_eq!(tried.note.as_deref(), Some("no reply in 5 tries"));
}

#[tokio::test(start_paused = true)]
async fn wechats_own_tries_are_passed_on_and_one_that_does_not_come_is_replaced() {
    let fixture = Fixture::new(12, &[Reaction::Hang]);
    let tries = fixture.awaited.tries.clone();
    let wechat = async {
        sleep(Duration::from_millis(4900)).await;
        tries.record(2);
        sleep(Duration::from_secs(60)).await;
    };
    tokio::select! { _ = fixture.run() => {}, () = wechat => unreachable!() }
    assert_eq!(fixture.got(), [(1, 0), (2, 49), (3, 109)]);
}

#[tokio::test(start_paused = true)]
async fn errors_and_slow_empty_answers_mean_not_yet_and_the_target_has_the_event() {
    let fixture = Fixture::new(20, &[Reaction::Answer(500), Reaction::Slow(4, 200), Reaction::Break, Reaction::Hang]);
    fixture.awaited.tries.end();
    let tried = fixture.run().await;
    assert_eq!(fixture.got().len(), 4);
    assert!(tried.report.outcome == Outcome::Delivered && !tried.not_yet);
    assert_eq!(tried.report.error, None);
    assert_eq!(tried.note.as_deref(), Some("no reply in 4 tries"));
}

#[tokio::test(start_paused = true)]
async fn a_quick_empty_answer_is_final_as_is_a_status_that_refuses() {
    for (reactions, outcome) in [
        (&[Reaction::Answer(500), Reaction::Answer(200)][..], Outcome::Delivered),
        (&[Reaction::Answer(500), Reaction::Answer(410)], Outcome::Reject),
        (&[Reaction::Answer(500), Reaction::Answer(403)], Outcome::Retry { after: None }),
        (&[Reaction::Answer(429), Reaction::Slow(2, 204)], Outcome::Delivered),
    ] {
        let fixture = Fixture::new(60, reactions);
        fixture.awaited.tries.end();
        let tried = fixture.run().await;
        assert_eq!((tried.report.outcome, fixture.got().len()), (outcome, 2));
    }
}

#[tokio::test(start_paused = true)]
async fn a_quick_empty_answer_leaves_earlier_tries_their_time() {
    let fixture = Fixture::new(60, &[Reaction::Slow(8, 500), Reaction::Answer(200)]);
    fixture.awaited.tries.end();
    let tried = fixture.run().await;
    assert_eq!((tried.report.duration.as_secs(), fixture.got().len()), (8, 2));
    assert_eq!(tried.report.outcome, Outcome::Delivered);
}

#[tokio::test(start_paused = true)]
async fn a_target_that_no_try_reaches_is_down() {
    let fixture = Fixture::new(12, &[Reaction::Break]);
    fixture.awaited.tries.end();
    let tried = fixture.run().await;
    assert!(matches!(tried.report.outcome, Outcome::Retry { .. }) && !tried.not_yet);
    assert_eq!(fixture.got().len(), 3);
}

#[tokio::test(start_paused = true)]
async fn a_lane_that_stops_waits_for_the_tries_in_progress_alone() {
    let fixture = Fixture::new(60, &[Reaction::Slow(9, 200)]);
    fixture.awaited.tries.end();
    let stop = async {
        sleep(Duration::from_secs(6)).await;
        fixture.stop.cancel();
        std::future::pending::<()>().await;
    };
    let tried = tokio::select! { tried = fixture.run() => tried, () = stop => unreachable!() };
    assert_eq!((tried.report.duration.as_secs(), fixture.got().len()), (14, 2));
}
