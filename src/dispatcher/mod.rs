//! The background side: leases deliveries, makes attempts, settles them.
//!
//! Each target has a lane of its own: its own task, its own share of the queue, its own connections. So a target that
//! is down, slow or flooded delays no other, and an identity provider never waits behind a handler. The outcome of an
//! attempt is decided in one place, `attempt.rs`.

mod attempt;
mod breaker;
mod heartbeat;
mod lane;
mod offer;
mod reply_rules;
#[cfg(test)]
pub(crate) mod simulated;
#[cfg(test)]
mod tests;
mod tries;

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::watch;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::backoff::Schedule;
use crate::clock::UnixMillis;
use crate::deliver::{Target, TargetHealth, Upstream};
use crate::metrics::{Metrics, TargetMetrics};
use crate::ordered;
use crate::queue::{self, DeliveryOrder, Queue, Share};
use crate::tail::Tail;
use crate::telemetry::OpenIds;
use crate::tuning::Tuning;

use attempt::AttemptContext;
use heartbeat::Heartbeat;
pub use reply_rules::{AccountReplies, ReplyRules};

/// Between two tries to read which targets are paused.
const PAUSES_RETRY: Duration = Duration::from_secs(1);

/// One `[targets.NAME]` of the configuration.
#[derive(Clone, Debug)]
pub struct TargetSettings {
    /// Where and how it is reached.
    pub target: Target,
    /// When a failed attempt is made again.
    pub retry: Schedule,
    /// How long after the push a delivery is still useful; `None` = always.
    pub expire_after: Option<Duration>,
    /// How many concurrent attempts are made, by all replicas.
    pub concurrency: usize,
    /// The most attempts a second, of all replicas; `None` = no limit.
    pub rate: Option<NonZeroU32>,
    /// In what order events go out.
    pub order: DeliveryOrder,
}

/// A target as its lane serves it: replaced as a whole when the configuration changes.
#[derive(Debug)]
pub struct Policy {
    /// Where attempts go.
    pub upstream: Arc<Upstream>,
    /// When a failed attempt is made again.
    pub retry: Schedule,
    /// How long after the push a delivery is still useful.
    pub expire_after: Option<Duration>,
    /// How many concurrent attempts this process makes; 0 = the other replicas make them all.
    pub concurrency: usize,
    /// Limits attempts to this process's share of the target's rate.
    pub rate: Option<RateLimiter>,
    /// What all replicas together may do.
    limits: TargetLimits,
    /// This process's share of that.
    share: Share,
    /// In what order events go out.
    pub order: DeliveryOrder,
    /// How OpenIDs are shown in logs.
    pub openids: OpenIds,
    /// What becomes of replies.
    replies: Arc<ReplyRules>,
}

/// A token bucket.
pub type RateLimiter = governor::DefaultDirectRateLimiter;

/// What limits a target's attempts, wherever they are made.
#[derive(Clone, Copy, Debug)]
struct TargetLimits {
    concurrency: usize,
    rate: Option<NonZeroU32>,
}

impl TargetLimits {
    /// A share of the rate. It is exact, so that no replica is left without: one attempt a second is one in three
    /// seconds for each of three.
    fn rate_of(self, share: Share) -> Option<RateLimiter> {
        let rate = self.rate?;
        let interval = Duration::from_secs(1) * share.live() / rate.get();
        let burst = NonZeroU32::new(rate.get() / share.live()).unwrap_or(NonZeroU32::MIN);
        Some(RateLimiter::direct(governor::Quota::with_period(interval)?.allow_burst(burst)))
    }
}

impl Policy {
    /// The policy of the only replica.
    pub fn new(settings: &TargetSettings, upstream: Upstream, openids: OpenIds) -> Self {
        let limits = TargetLimits { concurrency: settings.concurrency, rate: settings.rate };
        Self {
            upstream: Arc::new(upstream),
            retry: settings.retry.clone(),
            expire_after: settings.expire_after,
            concurrency: limits.concurrency,
            rate: limits.rate_of(Share::WHOLE),
            limits,
            share: Share::WHOLE,
            order: settings.order,
            openids,
            replies: Arc::default(),
        }
    }

    /// With the accounts' rules about replies.
    pub fn with_replies(self, replies: Arc<ReplyRules>) -> Self {
        Self { replies, ..self }
    }

    /// Whether other replicas make attempts too.
    fn is_shared(&self) -> bool {
        self.share.live() > 1
    }

    /// The same target, of whose limits this process has another share.
    fn with_share(&self, share: Share) -> Self {
        Self {
            upstream: Arc::clone(&self.upstream),
            retry: self.retry.clone(),
            expire_after: self.expire_after,
            concurrency: share.of(self.limits.concurrency),
            rate: self.limits.rate_of(share),
            limits: self.limits,
            share,
            order: self.order,
            openids: self.openids,
            replies: Arc::clone(&self.replies),
        }
    }
}

/// Every target's lane.
pub struct Dispatcher {
    queue: Queue,
    metrics: Arc<Metrics>,
    tail: Tail,
    lanes: Mutex<BTreeMap<Arc<str>, Lane>>,
    /// The targets that get no attempts, configured or not.
    paused: Mutex<BTreeSet<String>>,
    /// Of the targets' limits; changed together with the lanes' policies.
    share: Mutex<Share>,
    /// Allows one change of `paused` at a time, in the store and here.
    pausing: tokio::sync::Mutex<()>,
    tasks: TaskTracker,
    tuning: Tuning,
}

struct Lane {
    policy: watch::Sender<Arc<Policy>>,
    /// Ends the task; `None` while the target is paused.
    stop: Option<CancellationToken>,
    heartbeat: Arc<Heartbeat>,
    health: Arc<TargetHealth>,
}

impl Dispatcher {
    /// A dispatcher without lanes; these targets are paused.
    pub fn new(queue: Queue, metrics: Arc<Metrics>, tail: Tail, paused: BTreeSet<String>) -> Self {
        let (lanes, pausing) = Default::default();
        Self {
            queue,
            metrics,
            tail,
            lanes,
            paused: Mutex::new(paused),
            share: Mutex::new(Share::WHOLE),
            pausing,
            tasks: TaskTracker::new(),
            tuning: Tuning::default(),
        }
    }

    /// With other sizes than the shipped ones, for lanes that start from now on.
    #[cfg(test)]
    pub(crate) fn with_tuning(self, tuning: Tuning) -> Self {
        Self { tuning, ..self }
    }

    /// Serves exactly these targets from now on, except those that are paused. A lane whose target remains is kept,
    /// with its attempts in progress; one whose target is gone stops, and its deliveries stay pending.
    pub fn apply(&self, policies: Vec<Policy>) {
        let mut lanes = self.lanes();
        let share = *self.share.lock();
        let policies = policies.into_iter().map(|policy| policy.with_share(share));
        let named = ordered::map(policies.map(|policy| (policy.upstream.target().name.clone(), policy)));
        lanes.retain(|name, lane| {
            let kept = named.contains_key(name);
            if !kept {
                self.stop(name, lane);
            }
            kept
        });
        for (name, policy) in named {
            self.queue.keep_order(&name, policy.order);
            self.queue.bound_waits(&name, policy.retry.longest_wait());
            self.queue.bound_attempts(&name, policy.upstream.target().timeout);
            match lanes.get(&name) {
                Some(lane) => drop(lane.policy.send_replace(Arc::new(policy))),
                None => {
                    let policy = watch::Sender::new(Arc::new(policy));
                    let mut lane = Lane { policy, stop: None, heartbeat: Arc::default(), health: Arc::default() };
                    let paused = self.is_paused(&name);
                    self.metrics.target(&name).paused.set(paused.into());
                    if paused {
                        tracing::warn!(target = %name, "target still paused");
                    } else {
                        self.start(&name, &mut lane);
                    }
                    lanes.insert(name, lane);
                }
            }
        }
    }

    /// Takes another share of every target's limits.
    pub fn divide(&self, share: Share) {
        let lanes = self.lanes();
        *self.share.lock() = share;
        for lane in lanes.values() {
            lane.policy.send_modify(|policy| *policy = Arc::new(policy.with_share(share)));
        }
    }

    /// How a configured target is served, and what its attempts have shown.
    pub fn target(&self, name: &str) -> Option<(Arc<Policy>, Arc<TargetHealth>)> {
        let lanes = self.lanes();
        let lane = lanes.get(name)?;
        Some((lane.policy.borrow().clone(), lane.health.clone()))
    }

    /// Whether an operator has paused a target.
    pub fn is_paused(&self, target: &str) -> bool {
        self.paused.lock().contains(target)
    }

    /// Pauses a target, or resumes it; this outlasts a restart. The target need not be configured yet. A paused target
    /// is treated like a removed one: its deliveries stay pending.
    ///
    /// # Errors
    /// If that could not be stored; then nothing changes.
    pub async fn pause(&self, target: &str, paused: bool) -> Result<(), queue::Error> {
        let _one_at_a_time = self.pausing.lock().await;
        self.queue.pause(target.into(), paused).await?;
        self.note_pause(target, paused);
        Ok(())
    }

    /// Follows the operators that pause and resume targets by way of other processes. Never returns where they can.
    pub async fn follow_pauses(&self) {
        let Some(mut changes) = self.queue.operator_changes() else { return };
        while changes.changed().await.is_ok() {
            let change = *changes.borrow_and_update();
            let _one_at_a_time = self.pausing.lock().await;
            let Ok(stored) = self.queue.paused().await else {
                // The queue logs why.
                sleep(PAUSES_RETRY).await;
                changes.mark_changed();
                continue;
            };
            let before = self.paused.lock().clone();
            for target in before.symmetric_difference(&stored) {
                self.note_pause(target, stored.contains(target));
            }
            self.queue.note_acted(change).await;
        }
    }

    /// Acts on a pause that is stored.
    fn note_pause(&self, target: &str, paused: bool) {
        let mut lanes = self.lanes();
        {
            let mut all = self.paused.lock();
            if paused {
                all.insert(target.to_owned())
            } else {
                all.remove(target)
            };
        }
        let Some(lane) = lanes.get_mut(target) else { return };
        let name = lane.policy.borrow().upstream.target().name.clone();
        match (paused, lane.stop.is_some()) {
            (true, true) => {
                self.stop(&name, lane);
                self.metrics.target(&name).paused.set(1);
                lane.health.note_state(UnixMillis::now(), false);
                tracing::info!(target = %name, "target paused");
            }
            (false, false) => {
                self.start(&name, lane);
                self.metrics.target(&name).paused.set(0);
                tracing::info!(target = %name, "target resumed");
            }
            (true, false) | (false, true) => {}
        }
    }

    fn start(&self, name: &Arc<str>, lane: &mut Lane) {
        let metrics: TargetMetrics = self.metrics.target(name);
        let stop = CancellationToken::new();
        let inbox = self.queue.subscribe(name.clone(), self.tuning.inbox_leases);
        let watched = lane.policy.subscribe();
        let all = self.metrics.clone();
        let context = AttemptContext::new(
            self.queue.clone(),
            (metrics, lane.health.clone()),
            all,
            self.tail.clone(),
            stop.clone(),
        );
        // A fresh one: the previous task may still settle its attempts.
        lane.heartbeat = Arc::default();
        let heartbeat = lane.heartbeat.clone();
        self.tasks.spawn(lane::run(context, name.clone(), inbox, watched, heartbeat, stop.clone(), self.tuning));
        lane.stop = Some(stop);
    }

    fn stop(&self, name: &str, lane: &mut Lane) {
        if let Some(stop) = lane.stop.take() {
            stop.cancel();
            self.queue.unsubscribe(name);
        }
    }

    fn lanes(&self) -> MutexGuard<'_, BTreeMap<Arc<str>, Lane>> {
        self.lanes.lock()
    }

    /// Whether each target that gets attempts still has its task: after a panic it would get no attempts any more.
    pub fn is_whole(&self) -> bool {
        // The task holds the receiver of its policy until its end.
        self.lanes().values().all(|lane| lane.stop.is_none() || lane.policy.receiver_count() > 0)
    }

    /// The targets whose task has not come around its loop for longer than `limit`, since this was first asked.
    pub fn stuck_lanes(&self, limit: Duration) -> Vec<Arc<str>> {
        let lanes = self.lanes();
        let running = lanes.iter().filter(|(_, lane)| lane.stop.is_some());
        running.filter(|(_, lane)| lane.heartbeat.check() > limit).map(|(name, _)| name.clone()).collect()
    }

    /// Stops leasing and waits until the attempts in progress are settled; pending deliveries stay pending.
    pub async fn drain(&self) {
        for lane in self.lanes().values() {
            lane.stop.iter().for_each(CancellationToken::cancel);
        }
        self.tasks.close();
        self.tasks.wait().await;
    }
}
