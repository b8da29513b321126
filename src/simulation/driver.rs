//! What happens, one step after the other, by the seed: pushes, changes of targets, reloads, clock jumps, crashes and
//! starts.
//!
//! A run is a process of the relay: a runtime of its own, which is dropped with all its tasks when it crashes. The
//! store, the world and the model outlast it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rusqlite::{Connection, OpenFlags};
use tokio_util::task::TaskTracker;

use super::ledger::{CheckContext, Ledger};
use super::model::{Model, PushContent, TargetSpec};
use super::reader::StoreReader;
use super::traffic::{PlannedPush, behavior, policy, spec};
use super::world::{CrashPoint, SimulationRng, World};
use crate::clock::{UnixMillis, simulated};
use crate::dispatcher::{Dispatcher, Policy};
use crate::metrics::Metrics;
use crate::queue::{
    DeliveryOrder, EncryptionKey, EncryptionKeys, Engine, Faults, Inspect, Queue, Settings, Sweep, SweepAction,
};
use crate::tail::Tail;
use crate::tuning::Tuning;

const START: UnixMillis = UnixMillis(1_795_161_600_000);
const YEARS: Duration = Duration::from_secs(365_000 * 86_400);
/// How long after the end of all faults every delivery must have ended: the wait for one probe, and some. Less than a
/// lane's longest sleep, so that a lane that misses its wake-up fails the seed.
const HEALED: Duration = Duration::from_secs(50);
/// How long a lane may take to see that the clock was set.
const CLOCK_SEEN: Duration = Duration::from_secs(60);

/// How a run ended.
enum RunEnd {
    Crashed,
    Stopped,
    /// The seed is played to its end.
    Done,
}

/// Plays a seed.
pub(super) struct Driver {
    pub(super) world: Arc<World>,
    pub(super) rng: SimulationRng,
    /// Every target there is, and whether it is configured.
    specs: BTreeMap<Arc<str>, (TargetSpec, bool)>,
    pub(super) settings: Settings,
    steps: u64,
    /// The most milliseconds between two steps.
    pace: u64,
    wall: UnixMillis,
    /// When the clock was last set, in the time of `WorldState::elapsed`.
    set_at: Option<Duration>,
    last: Ledger,
}

/// A running process.
pub(super) struct RelayRun {
    queue: Queue,
    dispatcher: Arc<Dispatcher>,
    pub(super) tasks: TaskTracker,
}

impl Driver {
    pub(super) fn new(seed: u64, path: PathBuf) -> (Self, Arc<World>) {
        let mut rng = SimulationRng::new(seed);
        let world = World::new(rng.split(), Model::default());
        let names: Vec<Arc<str>> = ["idp", "crm", "erp", "log"].map(Arc::from).into();
        let mut specs = BTreeMap::new();
        for name in names.into_iter().take(2 + usize::try_from(rng.below(3)).unwrap()) {
            specs.insert(Arc::clone(&name), (spec(&mut rng, name), true));
        }
        let short = rng.chance(30);
        let settings = Settings {
            engine: Engine::Embedded { path },
            retention: if short { Duration::from_secs(300) } else { YEARS },
            dedup_window: Duration::from_secs(if short { 60 } else { 86_400 }),
            replay_window: Duration::from_secs(if short { 60 } else { 86_400 }),
            max_size: if rng.chance(10) { 120_000 } else { 1 << 40 },
            // So little for each fifth seed that leases wait for it.
            max_memory: if seed.is_multiple_of(5) { 12_000 } else { 64 << 20 },
            // The seed decides, without a draw from the generator; the random bytes of the encryption change nothing
            // else.
            encryption_keys: EncryptionKeys::new(if seed.is_multiple_of(2) { key() } else { Vec::new() }),
        };
        let steps = if rng.chance(5) { 150 } else { 15 + rng.below(45) };
        let pace = rng.pick(&[200, 3000, 3000, 40_000]);
        let last = Ledger::default();
        let driver =
            Self { world: Arc::clone(&world), rng, specs, settings, steps, pace, wall: START, set_at: None, last };
        (driver, world)
    }

    /// Runs process after process, until the seed is played or a violation is found.
    pub(super) fn run(mut self) {
        let jitter = std::cell::RefCell::new(self.rng.split());
        crate::dispatcher::simulated::set_jitter(Some(Box::new(move || {
            jitter.borrow_mut().below(1001) as f64 / 1000.0
        })));
        loop {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
            let runtime = runtime.unwrap();
            let end = runtime.block_on(self.life());
            drop(runtime);
            self.world.state().clear();
            if matches!(end, RunEnd::Done) || self.world.has_violation() {
                break;
            }
        }
        crate::dispatcher::simulated::set_jitter(None);
        simulated::set(None);
    }

    async fn life(&mut self) -> RunEnd {
        simulated::set(Some(self.wall));
        self.world.state().live();
        let world = Arc::clone(&self.world);
        let end = tokio::select! {
            biased;
            () = world.end.notified() => RunEnd::Crashed,
            end = self.live() => end,
        };
        self.wall = UnixMillis::now();
        self.world.state().end_run();
        end
    }

    async fn live(&mut self) -> RunEnd {
        let Some(life) = self.start() else { return RunEnd::Done };
        while self.steps > 0 {
            self.steps -= 1;
            let wait = if self.rng.chance(25) { Duration::ZERO } else { self.rng.millis(0, self.pace) };
            tokio::time::sleep(wait).await;
            if let Some(end) = self.step(&life).await {
                return end;
            }
            if self.world.has_violation() {
                return RunEnd::Done;
            }
        }
        self.heal(life).await;
        RunEnd::Done
    }

    fn start(&mut self) -> Option<RelayRun> {
        let world = Arc::clone(&self.world);
        let (committed, stall, fails) = (Arc::clone(&world), Arc::clone(&world), Arc::clone(&world));
        let faults = Faults { stall: Box::new(move || stall.stall()), fails: Box::new(move || fails.fails()) };
        let queue = match Queue::simulated(&self.settings, move |_| committed.committed(), faults) {
            Ok(queue) => queue,
            Err(error) => {
                world.state().report_violation(format!("the store does not open: {error}"));
                return None;
            }
        };
        world.state().reader = Some(self.reader());
        world.note(|| "start".to_owned());
        self.check();
        let dispatcher = Dispatcher::new(queue.clone(), Metrics::new(), Tail::default(), BTreeSet::new());
        let dispatcher = Arc::new(dispatcher.with_tuning(Tuning::small()));
        let names: Vec<_> = self.specs.keys().cloned().collect();
        names.iter().for_each(|name| world.state().model.lane_begins(name));
        self.apply(&dispatcher);
        Some(RelayRun { queue, dispatcher, tasks: TaskTracker::new() })
    }

    fn reader(&self) -> StoreReader {
        let path = self.settings.folder().unwrap().join("wxrelay.db");
        StoreReader::Sqlite(Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY).unwrap())
    }

    async fn step(&mut self, life: &RelayRun) -> Option<RunEnd> {
        match self.rng.below(1000) {
            0..400 => self.push_new(life, 1, 1),
            400..440 => self.push_new(life, 2, 1),
            440..490 => {
                let many = 3 + self.rng.below(9);
                self.push_new(life, 1, many);
            }
            490..600 => self.push_again(life),
            600..730 => self.change_behavior(),
            730..780 => {
                self.reconfigure();
                self.apply(&life.dispatcher);
            }
            780..790 => self.apply_at_commit(&life.dispatcher),
            790..830 => self.jump(),
            830..890 => self.trouble(life),
            890..930 => self.operate(life),
            930..955 => self.check(),
            955..980 => self.set_crash_point(),
            980..990 => {
                // At any point between two tasks of one moment.
                for _ in 0..self.rng.below(12) {
                    tokio::task::yield_now().await;
                }
                self.world.note(|| "crash: at rest".to_owned());
                return Some(RunEnd::Crashed);
            }
            _ => return Some(self.stop(life).await),
        }
        None
    }

    /// A user's next events, each pushed `times` at once.
    fn push_new(&mut self, life: &RelayRun, times: u32, events: u64) {
        let user = self.rng.below(5);
        for _ in 0..events {
            let everybody: Vec<_> = self.specs.keys().cloned().collect();
            let mut targets: Vec<_> = everybody.into_iter().filter(|_| self.rng.chance(70)).collect();
            if targets.is_empty() {
                targets = self.specs.keys().take(1).cloned().collect();
            }
            let content = PushContent { user, targets, stored: None, reply: None, told: None };
            let mut state = self.world.state();
            state.model.contents.push(content);
            let number = state.model.contents.len() - 1;
            drop(state);
            for _ in 0..times {
                self.push(life, number);
            }
        }
    }

    /// WeChat tries again.
    fn push_again(&mut self, life: &RelayRun) {
        let contents = self.world.state().model.contents.len() as u64;
        if contents > 0 {
            // Recent ones rather than old ones.
            let back = if self.rng.chance(70) { contents.min(5) } else { contents };
            let content = contents - 1 - self.rng.below(back);
            self.push(life, usize::try_from(content).unwrap());
        }
    }

    fn push(&mut self, life: &RelayRun, content: usize) {
        let waits = self.rng.chance(25);
        let replies = self.rng.chance(20);
        let ordered = |(name, (spec, configured)): (&Arc<str>, &(TargetSpec, bool))| {
            (*configured && spec.order == DeliveryOrder::PerUser).then(|| Arc::clone(name))
        };
        let ordered = (self.world.state().model.tick(), self.specs.iter().filter_map(ordered).collect());
        let (world, queue) = (Arc::clone(&self.world), life.queue.clone());
        drop(life.tasks.spawn(PlannedPush { world, queue, content, ordered, waits, replies }.run()));
    }

    fn change_behavior(&mut self) {
        let name = self.any_target();
        let behavior = behavior(&mut self.rng);
        self.world.note(|| format!("{name} is {behavior:?}"));
        self.world.state().behaviors.insert(name, behavior);
    }

    fn any_target(&mut self) -> Arc<str> {
        let names: Vec<_> = self.specs.keys().cloned().collect();
        self.rng.pick(&names)
    }

    fn reconfigure(&mut self) {
        let name = self.any_target();
        let new = spec(&mut self.rng, Arc::clone(&name));
        let gone = self.rng.chance(35);
        let (spec, configured) = self.specs.get_mut(&name).unwrap();
        match (*configured, gone) {
            (true, true) => *configured = false,
            (true, false) => *spec = TargetSpec { role: spec.role, ..new },
            (false, _) => {
                *configured = true;
                self.world.state().model.lane_begins(&name);
            }
        }
        self.world.note(|| format!("{name} is configured: {} {spec:?}", *configured));
    }

    fn policies(&self) -> Vec<Policy> {
        let configured = self.specs.values().filter(|(_, configured)| *configured);
        configured.map(|(spec, _)| policy(self.world.script(&Arc::new(spec.clone())), spec)).collect()
    }

    /// Applies the configured targets, as a reload does.
    fn apply(&mut self, dispatcher: &Dispatcher) {
        let mut state = self.world.state();
        state.model.applied = state.model.tick();
        for (spec, _) in self.specs.values() {
            let Some(span) = spec.expire_after else { continue };
            let shortest = state.model.expiries.entry(Arc::clone(&spec.name)).or_insert(span);
            *shortest = span.min(*shortest);
        }
        state.at_commit = None;
        state.note("settings applied".to_owned());
        drop(state);
        dispatcher.apply(self.policies());
    }

    /// Removes all targets and restores them, between a commit and its answers.
    fn apply_at_commit(&mut self, dispatcher: &Arc<Dispatcher>) {
        let (all, dispatcher, world) = (self.policies(), Arc::clone(dispatcher), Arc::clone(&self.world));
        let names: Vec<_> = self.specs.keys().cloned().collect();
        self.world.state().at_commit = Some(Box::new(move || {
            let mut state = world.state();
            state.note("all targets are gone and back".to_owned());
            state.model.applied = state.model.tick();
            names.iter().for_each(|name| state.model.lane_begins(name));
            drop(state);
            dispatcher.apply(Vec::new());
            dispatcher.apply(all);
        }));
    }

    /// Sets the wall clock.
    fn jump(&mut self) {
        self.check();
        let far = self.rng.pick(&[2_000, 90_000, 5 * 3_600_000]);
        let far = self.rng.millis(1, far).as_millis() as i64;
        let (now, back) = (UnixMillis::now(), self.rng.chance(50));
        let then = UnixMillis(if back { now.0 - far } else { now.0 + far });
        let mut state = self.world.state();
        state.model.back += u32::from(back);
        state.note(format!("the clock jumps to {then}"));
        drop(state);
        self.set_clock(then);
    }

    fn set_clock(&mut self, now: UnixMillis) {
        simulated::set(Some(now));
        self.set_at = Some(self.world.state().elapsed());
    }

    /// An operator acts on the dead letters of a target.
    fn operate(&mut self, life: &RelayRun) {
        let (target, revive) = (self.any_target(), self.rng.chance(70));
        let dead: Vec<_> = {
            self.world.note(|| format!("dead letters of {target}: {}", if revive { "revive" } else { "drop" }));
            let known: Vec<_> = self.world.state().model.pushes.keys().copied().collect();
            known.into_iter().filter(|_| self.rng.chance(30)).collect()
        };
        let events = if self.rng.chance(50) { None } else { Some(dead) };
        let (world, queue) = (Arc::clone(&self.world), life.queue.clone());
        // Any of them may be dead by the time that the store executes the sweep.
        let marked = Arc::clone(&target);
        let mark = move |world: &World| {
            let mut state = world.state();
            let model = &mut state.model;
            for event in model.pushes.keys() {
                let delivery = model.deliveries.entry((*event, Arc::clone(&marked))).or_default();
                if revive { delivery.revived = true } else { delivery.dropped = true }
            }
        };
        mark(&world);
        drop(life.tasks.spawn(async move {
            let now = UnixMillis::now();
            let action = if revive { SweepAction::Replay } else { SweepAction::Drop };
            let done = queue.sweep_all(Sweep::dead(&target, events, action), now).await;
            mark(&world);
            world.note(|| format!("dead letters of {target}: {done:?}"));
        }));
    }

    fn set_crash_point(&mut self) {
        let left = 1 + self.rng.below(12);
        let crash_point = self.rng.pick(&[CrashPoint::Commit(left), CrashPoint::Begin(left), CrashPoint::End(left)]);
        self.world.note(|| format!("crash at {crash_point:?}"));
        self.world.state().crash_point = Some(crash_point);
    }

    /// As `App::stop` does it: pushes first, then attempts, then the store.
    async fn stop(&mut self, life: &RelayRun) -> RunEnd {
        self.world.note(|| "stop".to_owned());
        // There is no reload during a stop.
        self.world.state().at_commit = None;
        self.check();
        life.tasks.close();
        if self.rng.chance(80) {
            life.tasks.wait().await;
        }
        life.dispatcher.drain().await;
        life.queue.clone().close().await;
        self.world.note(|| "stopped".to_owned());
        self.check();
        RunEnd::Stopped
    }

    /// Ends all faults and lets all targets answer: then every pending delivery must end, and soon.
    async fn heal(&mut self, life: RelayRun) {
        self.world.note(|| "all is well from here on".to_owned());
        {
            let mut state = self.world.state();
            state.crash_point = None;
            state.at_commit = None;
            state.cured = true;
            state.behaviors.clear();
            let now = state.elapsed();
            state.faults.stall.0 = now.min(state.faults.stall.0);
            state.faults.fail.0 = now.min(state.faults.fail.0);
            state.faults.lock = (now.min(state.faults.lock.0), None);
        }
        for (name, (_, configured)) in &mut self.specs {
            if !std::mem::replace(configured, true) {
                self.world.state().model.lane_begins(name);
            }
        }
        self.apply(&life.dispatcher);
        life.tasks.close();
        life.tasks.wait().await;
        self.check();
        let due = |ledger: &Ledger| ledger.pending().map(|(_, entry)| entry.due).filter(|due| due.0 < i64::MAX).max();
        let wait = due(&self.last).map_or(Duration::ZERO, |due| due.since(UnixMillis::now()));
        // A delivery that is due in hours is due at once when the clock is set forward.
        if wait > Duration::from_secs(3600) || self.rng.chance(50) {
            let then = UnixMillis::now().after(wait);
            self.world.note(|| format!("the clock is set to {then}"));
            self.set_clock(then);
        } else {
            tokio::time::sleep(wait).await;
        }
        let start = self.world.state().elapsed();
        let unseen = self.set_at.map_or(Duration::ZERO, |at| (at + CLOCK_SEEN).saturating_sub(start));
        let end = start + unseen + HEALED;
        loop {
            tokio::time::sleep(Duration::from_secs(2)).await;
            self.check();
            if self.world.has_violation() {
                return;
            }
            let Some((way, entry)) = self.last.pending().next() else { break };
            if self.world.state().elapsed() > end {
                let wrong = format!("{} {} still waits, {:?} after all is well: {entry:?}", way.1, way.0, end - start);
                self.world.state().report_violation(wrong);
                return;
            }
        }
        self.stop(&life).await;
        if let Err(wrong) = self.audit().await {
            self.world.state().report_violation(wrong);
        }
    }

    async fn audit(&self) -> Result<(), String> {
        let inspect = Inspect::open(&self.settings).await.map_err(|error| error.to_string())?;
        let audit = inspect.audit().await.map_err(|error| error.to_string())?;
        let stats = inspect.stats().await.map_err(|error| error.to_string())?;
        if audit.is_clean() && stats.unaccounted == 0 { Ok(()) } else { Err(format!("{audit:?} {stats:?}")) }
    }

    /// Compares the store with the model.
    fn check(&mut self) {
        let mut state = self.world.state();
        let now = UnixMillis::now();
        state.model.latest = state.model.latest.max(now);
        let moment = CheckContext {
            now,
            elapsed: state.elapsed(),
            trouble: state.faults.end(),
            kept: self.settings.dedup_window.min(self.settings.retention),
        };
        let Some(reader) = state.reader.take() else { return };
        let ledger = Ledger::read(&reader, state.model.back);
        state.reader = Some(reader);
        if let Some(wrong) = ledger.check(&self.last, &mut state.model, &moment) {
            state.report_violation(wrong);
        }
        state.note(format!("{} deliveries, {} pending", ledger.deliveries.len(), ledger.pending().count()));
        self.last = ledger;
    }
}

/// The key of the store of every second seed.
fn key() -> Vec<EncryptionKey> {
    EncryptionKey::parse("AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=").into_iter().collect()
}
