//! Three replicas on one store in memory: pushes and their repeats at any of them, replicas that are cut off, frozen,
//! killed and restarted, clocks that are apart.
//!
//! One runtime holds them all. A killed replica's tasks stay in it, but none of its calls and attempts returns.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};

use super::ledger::{CheckContext, Ledger};
use super::model::{Model, PushContent, TargetSpec};
use super::reader::StoreReader;
use super::traffic::{PlannedPush, QueuedPush, WINDOW, behavior, policy, spec};
use super::world::{SimulationRng, World};
use crate::clock::{UnixMillis, simulated};
use crate::dispatcher::{Dispatcher, Policy};
use crate::event::EventId;
use crate::metrics::Metrics;
use crate::queue::model::{BrokenRule, LinkCut, ModelStore, StoreLink};
use crate::queue::{DeliveryOrder, Enqueued, Known, Queue};
use crate::tail::Tail;
use crate::tuning::{ReplicaTiming, Tuning};

const START: UnixMillis = UnixMillis(1_795_161_600_000);
const REPLICAS: usize = 3;
/// The longest delay of a call or its answer: less than a replica waits before it frees what it holds in vain.
const DELAY: u64 = 4_000;
/// How long after the last fault all is as usual: what was taken over and what was held in vain is free by then.
const SETTLED: Duration = Duration::from_secs(25);
/// How long after the end of all faults every delivery must have ended: a takeover, a probe's wait, and some.
const HEALED: Duration = Duration::from_secs(90);

/// Plays a seed with three replicas.
pub(super) struct ClusterDriver {
    world: Arc<World>,
    rng: SimulationRng,
    specs: BTreeMap<Arc<str>, (TargetSpec, bool)>,
    store: Arc<ModelStore>,
    replicas: Vec<Option<ClusterReplica>>,
    started: u32,
    steps: u64,
    pace: u64,
    /// When the last fault ends, in the time of `WorldState::elapsed`.
    trouble: Duration,
    last: Ledger,
}

/// A running process.
struct ClusterReplica {
    number: u32,
    link: Arc<StoreLink>,
    queue: Queue,
    dispatcher: Arc<Dispatcher>,
}

/// A push, as one replica gets it.
struct ClusterPush {
    push: PlannedPush,
    link: Arc<StoreLink>,
}

impl ClusterDriver {
    pub(super) fn new(seed: u64, broken: BrokenRule) -> (Self, Arc<World>) {
        let mut rng = SimulationRng::new(seed);
        let apart = rng.pick(&[0, 1_500, 30_000]);
        let model = Model::of_cluster(Duration::from_millis(2 * apart));
        let world = World::new(rng.split(), model);
        let names: Vec<Arc<str>> = ["idp", "crm", "erp", "log"].map(Arc::from).into();
        let mut specs = BTreeMap::new();
        for name in names.into_iter().take(2 + usize::try_from(rng.below(3)).unwrap()) {
            specs.insert(Arc::clone(&name), (spec(&mut rng, name), true));
        }
        let steps = if rng.chance(5) { 200 } else { 20 + rng.below(60) };
        let pace = rng.pick(&[200, 3000, 3000, 20_000]);
        let driver = Self {
            world: Arc::clone(&world),
            rng,
            specs,
            store: ModelStore::new(broken),
            replicas: (0..REPLICAS).map(|_| None).collect(),
            started: 0,
            steps,
            pace,
            trouble: Duration::ZERO,
            last: Ledger::default(),
        };
        (driver, world)
    }

    /// Plays until the seed ends or a violation is found.
    pub(super) fn run(mut self) {
        let jitter = std::cell::RefCell::new(self.rng.split());
        crate::dispatcher::simulated::set_jitter(Some(Box::new(move || {
            jitter.borrow_mut().below(1001) as f64 / 1000.0
        })));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
        let runtime = runtime.unwrap();
        runtime.block_on(async {
            simulated::set(Some(START));
            self.world.state().live();
            self.world.state().reader = Some(StoreReader::Model(Arc::clone(&self.store)));
            let world = Arc::clone(&self.world);
            tokio::select! {
                biased;
                () = world.end.notified() => {}
                () = self.live() => {}
            }
            self.world.state().end_run();
        });
        drop(runtime);
        self.world.state().clear();
        crate::dispatcher::simulated::set_jitter(None);
        simulated::set(None);
    }

    async fn live(&mut self) {
        for place in 0..REPLICAS {
            self.start(place).await;
        }
        while self.steps > 0 && !self.world.has_violation() {
            self.steps -= 1;
            let wait = if self.rng.chance(25) { Duration::ZERO } else { self.rng.millis(0, self.pace) };
            sleep(wait).await;
            self.step().await;
        }
        if !self.world.has_violation() {
            self.heal().await;
        }
    }

    /// Starts a process where none runs.
    async fn start(&mut self, place: usize) {
        if self.replicas[place].is_some() {
            return;
        }
        self.started += 1;
        let number = self.started;
        let mut draws = self.rng.split();
        let apart = i64::try_from(self.world.state().model.apart.as_millis() / 2).unwrap();
        let ahead = self.rng.pick(&[0, apart, -apart]);
        let link = StoreLink::new(move |end| draws.below(end), ahead);
        let tuning = Tuning { replica: ReplicaTiming::default(), ..Tuning::small() };
        let queue = Queue::model(&self.store, Arc::clone(&link), &tuning).await.expect("there are slots enough");
        self.world.note(|| format!("replica {number} starts, its clock {ahead} ms ahead"));
        let dispatcher = Dispatcher::new(queue.clone(), Metrics::new(), Tail::default(), BTreeSet::new());
        let dispatcher = Arc::new(dispatcher.with_tuning(tuning));
        let mut shares = queue.shares();
        dispatcher.divide(*shares.borrow_and_update());
        let divided = Arc::clone(&dispatcher);
        tokio::spawn(async move {
            while shares.changed().await.is_ok() {
                divided.divide(*shares.borrow_and_update());
            }
        });
        self.replicas[place] = Some(ClusterReplica { number, link, queue, dispatcher });
        self.apply();
    }

    /// Applies the configured targets at every replica, as a reload does.
    fn apply(&mut self) {
        let mut state = self.world.state();
        state.model.applied = state.model.tick();
        for (spec, _) in self.specs.values() {
            let Some(span) = spec.expire_after else { continue };
            let shortest = state.model.expiries.entry(Arc::clone(&spec.name)).or_insert(span);
            *shortest = span.min(*shortest);
        }
        drop(state);
        for replica in self.replicas.iter().flatten() {
            self.specs.keys().for_each(|name| self.world.state().model.lane_begins_at(replica.number, name));
            let configured = self.specs.values().filter(|(_, configured)| *configured);
            let of = |(spec, _): &(TargetSpec, bool)| {
                policy(self.world.script_of(&Arc::new(spec.clone()), replica.number, &replica.link), spec)
            };
            let policies: Vec<Policy> = configured.map(of).collect();
            replica.dispatcher.apply(policies);
        }
    }

    async fn step(&mut self) {
        match self.rng.below(1000) {
            0..380 => self.push_new(1, 1).await,
            380..430 => self.push_new(2, 1).await,
            430..480 => {
                let many = 3 + self.rng.below(9);
                self.push_new(1, many).await;
            }
            480..600 => self.push_again().await,
            600..710 => {
                let names: Vec<_> = self.specs.keys().cloned().collect();
                let (name, behavior) = (self.rng.pick(&names), behavior(&mut self.rng));
                self.world.note(|| format!("{name} is {behavior:?}"));
                self.world.state().behaviors.insert(name, behavior);
            }
            710..750 => self.reconfigure(),
            750..830 => self.cut(),
            830..870 => self.freeze(),
            870..910 => self.kill(),
            910..940 => self.stop().await,
            940..980 => {
                for place in 0..REPLICAS {
                    self.start(place).await;
                }
            }
            _ => self.check(),
        }
    }

    fn live_places(&self) -> Vec<usize> {
        (0..REPLICAS).filter(|place| self.replicas[*place].is_some()).collect()
    }

    /// A user's next events, each pushed `times` at once, at any replicas.
    async fn push_new(&mut self, times: u32, events: u64) {
        let user = self.rng.below(5);
        for _ in 0..events {
            let everybody: Vec<_> = self.specs.keys().cloned().collect();
            let mut targets: Vec<_> = everybody.into_iter().filter(|_| self.rng.chance(70)).collect();
            if targets.is_empty() {
                targets = self.specs.keys().take(1).cloned().collect();
            }
            let content = PushContent { user, targets, stored: None, reply: None, told: None };
            let number = {
                let mut state = self.world.state();
                state.model.contents.push(content);
                state.model.contents.len() - 1
            };
            for _ in 0..times {
                self.push(number).await;
            }
        }
    }

    /// WeChat tries again, at any replica.
    async fn push_again(&mut self) {
        let contents = self.world.state().model.contents.len() as u64;
        if contents > 0 {
            let back = if self.rng.chance(70) { contents.min(5) } else { contents };
            let content = contents - 1 - self.rng.below(back);
            self.push(usize::try_from(content).unwrap()).await;
        }
    }

    async fn push(&mut self, content: usize) {
        if self.live_places().is_empty() {
            self.start(0).await;
        }
        let (waits, replies) = (self.rng.chance(35), self.rng.chance(60));
        let first = self.push_at(content, waits, replies);
        drop(tokio::spawn(first.run()));
        if waits && self.rng.chance(50) {
            // While the reply is awaited, or just afterwards.
            let later = self.rng.millis(0, 7_000);
            let again = self.push_at(content, false, false);
            tokio::spawn(async move {
                sleep(later).await;
                again.run().await;
            });
        }
    }

    /// The content's push at any replica that runs.
    fn push_at(&mut self, content: usize, waits: bool, replies: bool) -> ClusterPush {
        let place = self.rng.pick(&self.live_places());
        let replica = self.replicas[place].as_ref().expect("it runs");
        let ordered = |(name, (spec, configured)): (&Arc<str>, &(TargetSpec, bool))| {
            (*configured && spec.order == DeliveryOrder::PerUser).then(|| Arc::clone(name))
        };
        let ordered = (self.world.state().model.tick(), self.specs.iter().filter_map(ordered).collect());
        let (world, queue, link) = (Arc::clone(&self.world), replica.queue.clone(), Arc::clone(&replica.link));
        ClusterPush { push: PlannedPush { world, queue, content, ordered, waits, replies }, link }
    }

    fn reconfigure(&mut self) {
        let names: Vec<_> = self.specs.keys().cloned().collect();
        let name = self.rng.pick(&names);
        let new = spec(&mut self.rng, Arc::clone(&name));
        let gone = self.rng.chance(35);
        let (spec, configured) = self.specs.get_mut(&name).unwrap();
        match (*configured, gone) {
            (true, true) => *configured = false,
            // A longer timeout would have to be known before the attempts are made that others wait for.
            (true, false) => *spec = TargetSpec { role: spec.role, timeout: spec.timeout, ..new },
            (false, _) => *configured = true,
        }
        let (configured, spec) = (*configured, spec.clone());
        self.world.note(|| format!("{name} is configured: {configured} {spec:?}"));
        self.apply();
    }

    /// A replica and the store do not reach each other, or badly.
    fn cut(&mut self) {
        let Some((place, time)) = self.fault() else { return };
        let (lost, unanswered) = self.rng.pick(&[(100, 0), (0, 100), (50, 50), (20, 20), (0, 0)]);
        let delay = Duration::from_millis(self.rng.pick(&[0, 50, 1_000, DELAY]));
        let Some(replica) = &self.replicas[place] else { return };
        self.world.note(|| {
            format!("replica {}: {lost} % lost, {unanswered} % unanswered, {delay:?}, for {time:?}", replica.number)
        });
        replica.link.cut(LinkCut { until: Instant::now() + time, lost, unanswered, delay });
    }

    fn freeze(&mut self) {
        let Some((place, time)) = self.fault() else { return };
        let Some(replica) = &self.replicas[place] else { return };
        self.world.note(|| format!("replica {} is frozen for {time:?}", replica.number));
        replica.link.freeze(Instant::now() + time);
    }

    /// Which replica is in trouble, and for how long.
    fn fault(&mut self) -> Option<(usize, Duration)> {
        let places = self.live_places();
        if places.is_empty() {
            return None;
        }
        let longest = self.rng.pick(&[1_000, 6_000, 40_000]);
        let time = self.rng.millis(10, longest);
        self.trouble = self.trouble.max(self.world.state().elapsed() + time);
        Some((self.rng.pick(&places), time))
    }

    fn kill(&mut self) {
        let Some((place, _)) = self.fault() else { return };
        if let Some(replica) = self.replicas[place].take() {
            self.world.note(|| format!("replica {} is killed", replica.number));
            replica.end(&self.world);
        }
    }

    /// As SIGTERM does it.
    async fn stop(&mut self) {
        let Some((place, _)) = self.fault() else { return };
        let Some(replica) = self.replicas[place].take() else { return };
        self.world.note(|| format!("replica {} stops", replica.number));
        let drained = timeout(Duration::from_secs(20), replica.dispatcher.drain()).await;
        let closed = timeout(Duration::from_secs(10), replica.queue.clone().close()).await;
        self.world.note(|| format!("replica {} has stopped: {drained:?} {closed:?}", replica.number));
        replica.end(&self.world);
        self.trouble = self.trouble.max(self.world.state().elapsed());
    }

    /// Ends all faults and lets all targets answer: then every pending delivery must end, and soon.
    async fn heal(&mut self) {
        self.world.note(|| "all is well from here on".to_owned());
        {
            let mut state = self.world.state();
            state.cured = true;
            state.behaviors.clear();
        }
        self.specs.values_mut().for_each(|(_, configured)| *configured = true);
        self.replicas.iter().flatten().for_each(|replica| replica.link.heal());
        self.trouble = self.trouble.min(self.world.state().elapsed());
        for place in 0..REPLICAS {
            self.start(place).await;
        }
        self.apply();
        self.check();
        let due = |ledger: &Ledger| ledger.pending().map(|(_, entry)| entry.due).filter(|due| due.0 < i64::MAX).max();
        let wait = due(&self.last).map_or(Duration::ZERO, |due| due.since(UnixMillis::now()));
        let apart = self.world.state().model.apart;
        sleep(wait + apart).await;
        let end = self.world.state().elapsed() + HEALED;
        loop {
            sleep(Duration::from_secs(2)).await;
            self.check();
            if self.world.has_violation() {
                return;
            }
            let Some((way, entry)) = self.last.pending().next() else { break };
            if self.world.state().elapsed() > end {
                let wrong = format!("{} {} still waits, {HEALED:?} after all is well: {entry:?}", way.1, way.0);
                return self.world.state().report_violation(wrong);
            }
        }
        if let Some(flaw) = self.store.rows().flaw() {
            self.world.state().report_violation(flaw);
        }
    }

    /// Compares the store with the model.
    fn check(&mut self) {
        let mut state = self.world.state();
        let now = UnixMillis::now();
        state.model.latest = state.model.latest.max(now);
        let elapsed = state.elapsed();
        let moment = CheckContext { now, elapsed, trouble: self.trouble + SETTLED, kept: Duration::MAX };
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

impl ClusterReplica {
    /// The process is no more.
    fn end(self, world: &World) {
        self.link.kill();
        world.state().model.kill(self.number);
    }
}

impl ClusterPush {
    /// As the push pipeline makes it: whatever is answered, the store knows it.
    async fn run(self) {
        let Self { push, link } = self;
        link.runs().await;
        let Some(QueuedPush { id, result, asked }) = push.enqueue().await else { return };
        let PlannedPush { world, queue, content, waits, replies, .. } = push;
        let told = match result {
            Ok(Enqueued::Fresh) if waits => {
                drop(timeout(WINDOW, asked).await);
                answer(&queue, id, replies).await
            }
            Ok(Enqueued::Fresh) => Some(None),
            Ok(Enqueued::Duplicate { reply: Known::Answered(reply), .. }) => Some(reply),
            Ok(Enqueued::Duplicate { id, reply: Known::Asking(until) }) => queue.reply_of(id, until).await.ok(),
            Err(_) => None,
        };
        link.runs().await;
        let Some(told) = told else { return };
        let mut state = world.state();
        state.note(format!("push {id} is answered {told:?}"));
        if let Some(wrong) = state.model.told(content, told) {
            state.report_violation(format!("push {id}: {wrong}"));
        }
        drop(state);
        if world.has_violation() {
            world.end.notify_one();
        }
    }
}

/// What a push that asked a target is answered, once that is stored.
async fn answer(queue: &Queue, id: EventId, replies: bool) -> Option<Option<String>> {
    let text = format!("reply to {id}");
    if !replies {
        return queue.decide_no_reply(id).await.ok();
    }
    let is_used = queue.record_reply(id, text.clone(), None).await.ok()?;
    Some(is_used.then_some(text))
}
