//! The world around queue and dispatcher: time, random numbers, targets with their behavior, a store that fails.
//!
//! All of it is one [`WorldState`] behind a lock that is never waited for, as everything runs on one thread. Code that
//! holds it calls neither queue nor dispatcher.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hasher as _};
use std::panic::resume_unwind;
use std::sync::Arc;
use std::time::Duration;

use http::header::RETRY_AFTER;
use http::{HeaderMap, HeaderValue, StatusCode};
use parking_lot::{Mutex, MutexGuard};
use rusqlite::Connection;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::model::{Model, ReachedAttempt, TargetSpec};
use super::reader::StoreReader;
use crate::clock::UnixMillis;
use crate::deliver::scripted::{PendingAnswer, Script, ScriptedAnswer};
use crate::deliver::{AttemptRequest, Outcome};
use crate::dispatcher::simulated::is_probe;
use crate::event::EventId;
use crate::queue::model::StoreLink;

/// Random numbers by the seed (SplitMix64).
#[derive(Clone, Debug)]
pub(super) struct SimulationRng(u64);

impl SimulationRng {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x2545_f491_4f6c_dd1d) ^ 0x5851_f42d_4c95_7f2d)
    }

    pub(super) fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// 0 or more, less than `end`.
    pub(super) fn below(&mut self, end: u64) -> u64 {
        self.roll() % end
    }

    pub(super) fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    pub(super) fn millis(&mut self, from: u64, to: u64) -> Duration {
        Duration::from_millis(from + self.below(to - from + 1))
    }

    pub(super) fn pick<T: Clone>(&mut self, of: &[T]) -> T {
        of[usize::try_from(self.below(of.len() as u64)).unwrap()].clone()
    }

    /// A generator of its own for a part of the world, so that its draws do not change those of other parts.
    pub(super) fn split(&mut self) -> Self {
        Self(self.roll())
    }
}

/// How a target answers.
#[derive(Clone, Copy, Debug)]
pub(super) enum TargetBehavior {
    Up,
    /// Answers, but takes up to its timeout and a little more.
    Slow,
    /// Fails this percentage of attempts.
    Flaky(u64),
    Down,
    /// Accepts the request and never answers.
    Silent,
    /// 503 with `Retry-After`, in seconds.
    Busy(u64),
    /// Answers 410 to this percentage of attempts.
    Gone(u64),
}

/// How a target responds to one attempt.
#[derive(Clone, Copy, Debug)]
enum ScriptedResponse {
    Status(u16, Option<u64>),
    Broken,
    Silence,
}

/// Where the process crashes: when this has happened the given number of times.
#[derive(Clone, Copy, Debug)]
pub(super) enum CrashPoint {
    /// A commit is done, and no caller has been answered.
    Commit(u64),
    /// An attempt reaches its target.
    Begin(u64),
    /// The target has answered, and the relay has not read it.
    End(u64),
}

/// Faults of the store, each until a moment of [`WorldState::elapsed`].
#[derive(Debug, Default)]
pub(super) struct StoreFaults {
    pub(super) stall: (Duration, Duration),
    /// This percentage of commits fails.
    pub(super) fail: (Duration, u64),
    /// Another program holds the write lock.
    pub(super) lock: (Duration, Option<Connection>),
}

impl StoreFaults {
    /// When all faults have ended and the delayed commands are executed.
    pub(super) fn end(&self) -> Duration {
        (self.stall.0 + self.stall.1 * 3).max(self.fail.0).max(self.lock.0)
    }
}

/// The simulated world of one seed.
pub(super) struct World {
    state: Mutex<WorldState>,
    /// Notified when the run ends: at a crash or a violation.
    pub(super) end: Notify,
}

pub(super) struct WorldState {
    pub(super) model: Model,
    pub(super) behaviors: BTreeMap<Arc<str>, TargetBehavior>,
    /// Whether targets now accept the events that some of them failed on.
    pub(super) cured: bool,
    pub(super) faults: StoreFaults,
    pub(super) crash_point: Option<CrashPoint>,
    /// What happens between the next commit and its answers.
    pub(super) at_commit: Option<Box<dyn FnOnce() + Send>>,
    /// The process has crashed, though some of its tasks may still run.
    pub(super) dead: bool,
    pub(super) reader: Option<StoreReader>,
    rng: SimulationRng,
    /// How long earlier runs took, and when this one began.
    earlier: Duration,
    began: Option<Instant>,
    trace: Vec<String>,
    hash: DefaultHasher,
}

impl World {
    pub(super) fn new(rng: SimulationRng, model: Model) -> Arc<Self> {
        let state = WorldState {
            model,
            behaviors: BTreeMap::new(),
            cured: false,
            faults: StoreFaults::default(),
            crash_point: None,
            at_commit: None,
            dead: false,
            reader: None,
            rng,
            earlier: Duration::ZERO,
            began: None,
            trace: Vec::new(),
            hash: DefaultHasher::new(),
        };
        Arc::new(Self { state: Mutex::new(state), end: Notify::new() })
    }

    pub(super) fn state(&self) -> MutexGuard<'_, WorldState> {
        self.state.lock()
    }

    pub(super) fn note(&self, what: impl FnOnce() -> String) {
        self.state().note(what());
    }

    /// Whether a violation was found; then the run ends.
    pub(super) fn has_violation(&self) -> bool {
        self.state().model.wrong.is_some()
    }

    /// After a commit, before its answers.
    pub(super) fn committed(&self) {
        let mut state = self.state();
        if state.dead {
            return;
        }
        if state.count_down(|crash_point| if let CrashPoint::Commit(left) = crash_point { Some(left) } else { None }) {
            state.note("crash: a commit is done, and nobody knows".to_owned());
            state.dead = true;
            drop(state);
            self.end_if_dead();
            // Stops the writer here, without the hook that prints panics.
            resume_unwind(Box::new("crash"));
        }
        let meanwhile = state.at_commit.take();
        drop(state);
        if let Some(meanwhile) = meanwhile {
            meanwhile();
        }
    }

    /// How long a command takes to reach the store.
    pub(super) fn stall(&self) -> Duration {
        let state = self.state();
        let (until, stall) = state.faults.stall;
        if state.elapsed() < until { stall } else { Duration::ZERO }
    }

    /// Whether this commit fails.
    pub(super) fn fails(&self) -> bool {
        let mut state = self.state();
        let (until, percent) = state.faults.fail;
        let fails = state.elapsed() < until && state.rng.chance(percent);
        if fails {
            state.note("a commit fails".to_owned());
        }
        fails
    }

    /// The target of these settings.
    pub(super) fn script(self: &Arc<Self>, spec: &Arc<TargetSpec>) -> Script {
        let (world, spec) = (Arc::clone(self), Arc::clone(spec));
        Script(Arc::new(move |order| world.meet(&spec, &reached(order, 0), None)))
    }

    /// The target of these settings, as a replica meets it: a frozen one sends nothing, and reads no answer.
    pub(super) fn script_of(self: &Arc<Self>, spec: &Arc<TargetSpec>, replica: u32, link: &Arc<StoreLink>) -> Script {
        let (world, spec, link) = (Arc::clone(self), Arc::clone(spec), Arc::clone(link));
        Script(Arc::new(move |order| {
            let reached = reached(order, replica);
            let (world, spec, link) = (Arc::clone(&world), Arc::clone(&spec), Arc::clone(&link));
            let mut unsent = UnsentAttempt { world, spec, reached, link, sent: false };
            Box::pin(async move {
                unsent.link.runs().await;
                unsent.sent = true;
                let link = Some(Arc::clone(&unsent.link));
                unsent.world.meet(&unsent.spec, &unsent.reached, link).await
            })
        }))
    }

    fn meet(
        self: &Arc<Self>,
        spec: &Arc<TargetSpec>,
        reached: &ReachedAttempt,
        link: Option<Arc<StoreLink>>,
    ) -> PendingAnswer {
        let begun = self.state().begin(spec, reached);
        if self.has_violation() {
            self.end.notify_one();
        }
        let Some((delay, play)) = begun else {
            self.end_if_dead();
            return Box::pin(std::future::pending());
        };
        let (world, spec) = (Arc::clone(self), Arc::clone(spec));
        let guard = AttemptInFlight { world, event: reached.event, replica: reached.replica, spec, link, open: true };
        Box::pin(async move {
            tokio::time::sleep(delay).await;
            let mut guard = guard;
            if let Some(link) = &guard.link {
                link.runs().await;
            }
            match play {
                ScriptedResponse::Silence => std::future::pending().await,
                ScriptedResponse::Broken => {
                    guard.end(Outcome::Retry { after: None }).await;
                    ScriptedAnswer::Broken
                }
                ScriptedResponse::Status(status, retry_after) => {
                    let after = retry_after.map(Duration::from_secs);
                    guard.end(outcome(status, after)).await;
                    let mut headers = HeaderMap::new();
                    headers.extend(retry_after.map(|seconds| (RETRY_AFTER, HeaderValue::from(seconds))));
                    ScriptedAnswer::Status(StatusCode::from_u16(status).unwrap(), headers)
                }
            }
        })
    }

    fn end_if_dead(&self) {
        let state = self.state();
        if state.dead && state.began.is_some() {
            self.end.notify_one();
        }
    }
}

fn outcome(status: u16, after: Option<Duration>) -> Outcome {
    match status {
        200..300 => Outcome::Delivered,
        410 => Outcome::Reject,
        _ => Outcome::Retry { after },
    }
}

fn reached(order: &AttemptRequest<'_>, replica: u32) -> ReachedAttempt {
    ReachedAttempt {
        event: order.event.id,
        clear: order.event.clear.clone(),
        number: order.attempt,
        decided: order.now,
        probe: is_probe(),
        replica,
    }
}

/// An attempt of a frozen replica that is not sent yet; dropped when its time is over. The relay counts it.
struct UnsentAttempt {
    world: Arc<World>,
    spec: Arc<TargetSpec>,
    reached: ReachedAttempt,
    link: Arc<StoreLink>,
    sent: bool,
}

impl Drop for UnsentAttempt {
    fn drop(&mut self) {
        let mut state = self.world.state();
        if self.sent || self.link.is_dead() || state.began.is_none() {
            return;
        }
        state.note(format!("{} {} attempt {} is not sent", self.spec.name, self.reached.event, self.reached.number));
        state.model.record(&self.spec, &self.reached);
        let elapsed = state.elapsed();
        let attempt = (self.reached.event, self.reached.replica);
        state.model.end(&self.spec, attempt, Outcome::Retry { after: None }, UnixMillis::now(), elapsed);
    }
}

/// An attempt in progress at a target; dropped when the relay no longer waits for the answer.
struct AttemptInFlight {
    world: Arc<World>,
    event: EventId,
    replica: u32,
    spec: Arc<TargetSpec>,
    link: Option<Arc<StoreLink>>,
    open: bool,
}

impl AttemptInFlight {
    /// The target answers; the process may have ended before that.
    async fn end(&mut self, outcome: Outcome) {
        self.open = false;
        if self.world.state().end(&self.spec, (self.event, self.replica), outcome) {
            return;
        }
        self.world.end_if_dead();
        std::future::pending().await
    }
}

impl Drop for AttemptInFlight {
    fn drop(&mut self) {
        if self.open && !self.link.as_ref().is_some_and(|link| link.is_dead()) {
            self.world.state().end(&self.spec, (self.event, self.replica), Outcome::Retry { after: None });
            self.world.end_if_dead();
        }
    }
}

impl WorldState {
    /// Starts a process.
    pub(super) fn live(&mut self) {
        self.began = Some(Instant::now());
        self.dead = false;
        self.model.life += 1;
    }

    /// Removes what belonged to the ended process.
    pub(super) fn clear(&mut self) {
        self.reader = None;
        self.at_commit = None;
        self.crash_point = None;
        self.faults = StoreFaults::default();
    }

    /// The last step of a run, while its clock still runs.
    pub(super) fn end_run(&mut self) {
        self.dead = true;
        self.earlier = self.elapsed();
        self.began = None;
    }

    /// The time since the beginning of the first run, whatever the wall clock shows.
    pub(super) fn elapsed(&self) -> Duration {
        self.earlier + self.began.map_or(Duration::ZERO, |began| began.elapsed())
    }

    pub(super) fn note(&mut self, what: String) {
        let line = format!("{:>12.3} {what}", self.elapsed().as_secs_f64());
        self.hash.write(line.as_bytes());
        if super::variable(super::ONE_SEED).is_some() {
            println!("{line}");
        }
        self.trace.push(line);
    }

    pub(super) fn trace(&self) -> (&[String], u64) {
        (&self.trace, self.hash.finish())
    }

    /// Reports a violation; the first one is kept.
    pub(super) fn report_violation(&mut self, what: String) {
        self.note(format!("WRONG: {what}"));
        self.model.wrong.get_or_insert(what);
    }

    /// Counts down the crash point of this kind; true when it is reached.
    fn count_down(&mut self, of: impl Fn(&mut CrashPoint) -> Option<&mut u64>) -> bool {
        let Some(left) = self.crash_point.as_mut().and_then(of) else { return false };
        *left = left.saturating_sub(1);
        let is_reached = *left == 0;
        if is_reached {
            self.crash_point = None;
        }
        is_reached
    }

    /// An attempt reaches its target; `None` when the process has ended.
    fn begin(&mut self, spec: &Arc<TargetSpec>, reached: &ReachedAttempt) -> Option<(Duration, ScriptedResponse)> {
        if self.dead {
            return None;
        }
        let (event, name) = (reached.event, &spec.name);
        let at = if self.model.is_cluster { format!(" of replica {}", reached.replica) } else { String::new() };
        let probe = if reached.probe { ", a probe" } else { "" };
        self.note(format!("{name} {event} attempt {}{at}{probe}", reached.number));
        let wrong = match &self.reader {
            Some(reader) => self.model.begin(reader, spec, reached),
            None => Some("an attempt without a store".to_owned()),
        };
        if let Some(wrong) = wrong {
            self.report_violation(format!("{name} {event}: {wrong}"));
        }
        if self.count_down(|crash_point| if let CrashPoint::Begin(left) = crash_point { Some(left) } else { None }) {
            self.note("crash: an attempt is under way".to_owned());
            self.dead = true;
            return None;
        }
        Some(self.play(spec, event))
    }

    fn play(&mut self, spec: &TargetSpec, event: EventId) -> (Duration, ScriptedResponse) {
        let rng = &mut self.rng;
        let soon = rng.millis(0, 150);
        let broken = |rng: &mut SimulationRng| match rng.below(4) {
            0 => ScriptedResponse::Broken,
            1 => ScriptedResponse::Silence,
            2 => ScriptedResponse::Status(500, None),
            _ => ScriptedResponse::Status(404, None),
        };
        if !self.cured && self.model.is_poison(event) {
            return (soon, ScriptedResponse::Status(500, None));
        }
        match self.behaviors.get(&spec.name).copied().unwrap_or(TargetBehavior::Up) {
            TargetBehavior::Up => (soon, ScriptedResponse::Status(200, None)),
            TargetBehavior::Slow => {
                let longest = u64::try_from(spec.timeout.as_millis()).unwrap() * 5 / 4;
                (rng.millis(0, longest), ScriptedResponse::Status(204, None))
            }
            TargetBehavior::Flaky(percent) if rng.chance(percent) => (soon, broken(rng)),
            TargetBehavior::Gone(percent) if rng.chance(percent) => (soon, ScriptedResponse::Status(410, None)),
            TargetBehavior::Flaky(_) | TargetBehavior::Gone(_) => (soon, ScriptedResponse::Status(200, None)),
            TargetBehavior::Down => (soon, broken(rng)),
            TargetBehavior::Silent => (soon, ScriptedResponse::Silence),
            TargetBehavior::Busy(seconds) => (soon, ScriptedResponse::Status(503, Some(seconds))),
        }
    }

    /// The target has answered, or the relay has given up; false when the process ends with that.
    fn end(&mut self, spec: &TargetSpec, attempt: (EventId, u32), outcome: Outcome) -> bool {
        if self.began.is_none() {
            return false;
        }
        self.note(format!("{} {} {outcome:?}", spec.name, attempt.0));
        let elapsed = self.elapsed();
        self.model.end(spec, attempt, outcome, UnixMillis::now(), elapsed);
        // At the moment of a crash a part of the process may still settle this.
        if self.dead {
            return false;
        }
        if self.count_down(|crash_point| if let CrashPoint::End(left) = crash_point { Some(left) } else { None }) {
            self.note("crash: the target has answered, and nobody knows".to_owned());
            self.dead = true;
            return false;
        }
        true
    }
}
