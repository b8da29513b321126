//! The world around queue and dispatcher: time, chance, targets with their moods, a store that fails.
//!
//! All of it is one [`State`] behind a lock that is never waited for, as everything runs on one thread. Whoever holds it
//! calls neither queue nor dispatcher.

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

use super::model::{Model, Spec};
use crate::clock::UnixMillis;
use crate::deliver::scripted::{PendingAnswer, Script, ScriptedAnswer};
use crate::deliver::{AttemptRequest, Outcome};
use crate::dispatcher::simulated::is_probe;
use crate::event::EventId;

/// Chance, by the seed (SplitMix64).
#[derive(Clone, Debug)]
pub(super) struct Dice(u64);

impl Dice {
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

    /// Chance of its own for a part of the world, so that one part's rolls do not change another's.
    pub(super) fn split(&mut self) -> Self {
        Self(self.roll())
    }
}

/// How a target answers.
#[derive(Clone, Copy, Debug)]
pub(super) enum Mood {
    Up,
    /// Answers, but takes up to its timeout and a little more.
    Slow,
    /// Fails so many of a hundred attempts.
    Flaky(u64),
    Down,
    /// Takes the request and says nothing.
    Silent,
    /// 503 with `Retry-After`, in seconds.
    Busy(u64),
    /// 410 to so many of a hundred.
    Gone(u64),
}

/// What an attempt meets.
#[derive(Clone, Copy, Debug)]
enum Play {
    Status(u16, Option<u64>),
    Broken,
    Silence,
}

/// Where the process ends without warning: at the so many-th time that this happens.
#[derive(Clone, Copy, Debug)]
pub(super) enum Fuse {
    /// A commit is done, and nobody has been told.
    Commit(u64),
    /// An attempt reaches its target.
    Begin(u64),
    /// The target has answered, and nobody has heard.
    End(u64),
}

/// Troubles of the store, each until a moment of [`State::elapsed`].
#[derive(Debug, Default)]
pub(super) struct Troubles {
    pub(super) stall: (Duration, Duration),
    /// So many of a hundred commits fail.
    pub(super) fail: (Duration, u64),
    /// Another program holds the write lock.
    pub(super) lock: (Duration, Option<Connection>),
}

impl Troubles {
    /// From when on everything that was asked before is done.
    pub(super) fn end(&self) -> Duration {
        (self.stall.0 + self.stall.1 * 3).max(self.fail.0).max(self.lock.0)
    }
}

/// The simulated world of one seed.
pub(super) struct World {
    state: Mutex<State>,
    /// Told when the life ends: by a crash, or because something is wrong.
    pub(super) end: Notify,
}

pub(super) struct State {
    pub(super) model: Model,
    pub(super) moods: BTreeMap<Arc<str>, Mood>,
    /// Whether the events that some targets choke on go through now.
    pub(super) cured: bool,
    pub(super) troubles: Troubles,
    pub(super) fuse: Option<Fuse>,
    /// What happens between the next commit and its answers.
    pub(super) at_commit: Option<Box<dyn FnOnce() + Send>>,
    /// The process is gone, though parts of it may still move.
    pub(super) dead: bool,
    pub(super) reader: Option<Connection>,
    dice: Dice,
    /// How long earlier lives took, and when this one began.
    earlier: Duration,
    began: Option<Instant>,
    trace: Vec<String>,
    hash: DefaultHasher,
}

impl World {
    pub(super) fn new(dice: Dice, model: Model) -> Arc<Self> {
        let state = State {
            model,
            moods: BTreeMap::new(),
            cured: false,
            troubles: Troubles::default(),
            fuse: None,
            at_commit: None,
            dead: false,
            reader: None,
            dice,
            earlier: Duration::ZERO,
            began: None,
            trace: Vec::new(),
            hash: DefaultHasher::new(),
        };
        Arc::new(Self { state: Mutex::new(state), end: Notify::new() })
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    pub(super) fn note(&self, what: impl FnOnce() -> String) {
        self.state().note(what());
    }

    /// Whether something is wrong; then the life ends.
    pub(super) fn is_wrong(&self) -> bool {
        self.state().model.wrong.is_some()
    }

    /// After a commit, before its answers.
    pub(super) fn committed(&self) {
        let mut state = self.state();
        if state.dead {
            return;
        }
        if state.burn(|fuse| if let Fuse::Commit(left) = fuse { Some(left) } else { None }) {
            state.note("crash: a commit is done, and nobody knows".to_owned());
            state.dead = true;
            drop(state);
            self.end_if_dead();
            // The writer goes no further; the hook that prints panics is not for this one.
            resume_unwind(Box::new("crash"));
        }
        let meanwhile = state.at_commit.take();
        drop(state);
        if let Some(meanwhile) = meanwhile {
            meanwhile();
        }
    }

    /// How long the store takes to hear what it is asked.
    pub(super) fn stall(&self) -> Duration {
        let state = self.state();
        let (until, stall) = state.troubles.stall;
        if state.elapsed() < until { stall } else { Duration::ZERO }
    }

    /// Whether this commit fails.
    pub(super) fn fails(&self) -> bool {
        let mut state = self.state();
        let (until, percent) = state.troubles.fail;
        let fails = state.elapsed() < until && state.dice.chance(percent);
        if fails {
            state.note("a commit fails".to_owned());
        }
        fails
    }

    /// The target of these settings.
    pub(super) fn script(self: &Arc<Self>, spec: &Arc<Spec>) -> Script {
        let (world, spec) = (Arc::clone(self), Arc::clone(spec));
        Script(Arc::new(move |order| world.meet(&spec, order)))
    }

    fn meet(self: &Arc<Self>, spec: &Arc<Spec>, order: &AttemptRequest<'_>) -> PendingAnswer {
        let begun = self.state().begin(spec, order);
        if self.is_wrong() {
            self.end.notify_one();
        }
        let Some((delay, play)) = begun else {
            self.end_if_dead();
            return Box::pin(std::future::pending());
        };
        let world = Arc::clone(self);
        let guard = Attempting { world, event: order.event.id, spec: Arc::clone(spec), open: true };
        Box::pin(async move {
            tokio::time::sleep(delay).await;
            let mut guard = guard;
            match play {
                Play::Silence => std::future::pending().await,
                Play::Broken => {
                    guard.end(Outcome::Retry { after: None }).await;
                    ScriptedAnswer::Broken
                }
                Play::Status(status, retry_after) => {
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

/// An attempt that is under way at a target; dropped when nobody waits for the answer any more.
struct Attempting {
    world: Arc<World>,
    event: EventId,
    spec: Arc<Spec>,
    open: bool,
}

impl Attempting {
    /// The target answers; the process may have ended by then.
    async fn end(&mut self, outcome: Outcome) {
        self.open = false;
        if self.world.state().end(&self.spec, self.event, outcome) {
            return;
        }
        self.world.end_if_dead();
        std::future::pending().await
    }
}

impl Drop for Attempting {
    fn drop(&mut self) {
        if self.open {
            self.world.state().end(&self.spec, self.event, Outcome::Retry { after: None });
            self.world.end_if_dead();
        }
    }
}

impl State {
    /// A new process; `earlier` ones took so long together.
    pub(super) fn live(&mut self) {
        self.began = Some(Instant::now());
        self.dead = false;
        self.model.life += 1;
    }

    /// The process is gone, and what it had open.
    pub(super) fn buried(&mut self) {
        self.reader = None;
        self.at_commit = None;
        self.fuse = None;
        self.troubles = Troubles::default();
    }

    /// The last thing in a life, while its clock still runs.
    pub(super) fn die(&mut self) {
        self.dead = true;
        self.earlier = self.elapsed();
        self.began = None;
    }

    /// The time since the beginning of the first life, whatever the wall clock shows.
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

    /// Says what is wrong, and remembers the first such thing.
    pub(super) fn blame(&mut self, what: String) {
        self.note(format!("WRONG: {what}"));
        self.model.wrong.get_or_insert(what);
    }

    /// Counts one; true if the fuse of this kind has burnt down.
    fn burn(&mut self, of: impl Fn(&mut Fuse) -> Option<&mut u64>) -> bool {
        let Some(left) = self.fuse.as_mut().and_then(of) else { return false };
        *left = left.saturating_sub(1);
        let burnt = *left == 0;
        if burnt {
            self.fuse = None;
        }
        burnt
    }

    /// An attempt reaches its target; `None` when the process has ended.
    fn begin(&mut self, spec: &Arc<Spec>, order: &AttemptRequest<'_>) -> Option<(Duration, Play)> {
        if self.dead {
            return None;
        }
        let probe = is_probe();
        let (event, name) = (order.event.id, &spec.name);
        self.note(format!("{name} {event} attempt {}{}", order.attempt, if probe { ", a probe" } else { "" }));
        let wrong = match &self.reader {
            Some(reader) => self.model.begin(reader, spec, order, probe),
            None => Some("an attempt without a store".to_owned()),
        };
        if let Some(wrong) = wrong {
            self.blame(format!("{name} {event}: {wrong}"));
        }
        if self.burn(|fuse| if let Fuse::Begin(left) = fuse { Some(left) } else { None }) {
            self.note("crash: an attempt is under way".to_owned());
            self.dead = true;
            return None;
        }
        Some(self.play(spec, event))
    }

    fn play(&mut self, spec: &Spec, event: EventId) -> (Duration, Play) {
        let dice = &mut self.dice;
        let soon = dice.millis(0, 150);
        let broken = |dice: &mut Dice| match dice.below(4) {
            0 => Play::Broken,
            1 => Play::Silence,
            2 => Play::Status(500, None),
            _ => Play::Status(404, None),
        };
        if !self.cured && self.model.is_poison(event) {
            return (soon, Play::Status(500, None));
        }
        match self.moods.get(&spec.name).copied().unwrap_or(Mood::Up) {
            Mood::Up => (soon, Play::Status(200, None)),
            Mood::Slow => {
                let longest = u64::try_from(spec.timeout.as_millis()).unwrap() * 5 / 4;
                (dice.millis(0, longest), Play::Status(204, None))
            }
            Mood::Flaky(percent) if dice.chance(percent) => (soon, broken(dice)),
            Mood::Gone(percent) if dice.chance(percent) => (soon, Play::Status(410, None)),
            Mood::Flaky(_) | Mood::Gone(_) => (soon, Play::Status(200, None)),
            Mood::Down => (soon, broken(dice)),
            Mood::Silent => (soon, Play::Silence),
            Mood::Busy(seconds) => (soon, Play::Status(503, Some(seconds))),
        }
    }

    /// The target has answered, or the relay has given up; false when the process ends with that.
    fn end(&mut self, spec: &Spec, event: EventId, outcome: Outcome) -> bool {
        if self.began.is_none() {
            return false;
        }
        self.note(format!("{} {event} {outcome:?}", spec.name));
        let elapsed = self.elapsed();
        self.model.end(spec, event, outcome, UnixMillis::now(), elapsed);
        // In the moment of a crash a part of the process may still settle this.
        if self.dead {
            return false;
        }
        if self.burn(|fuse| if let Fuse::End(left) = fuse { Some(left) } else { None }) {
            self.note("crash: the target has answered, and nobody knows".to_owned());
            self.dead = true;
            return false;
        }
        true
    }
}
