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
#[cfg(test)]
pub(crate) mod simulated;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::backoff::Schedule;
use crate::deliver::{Target, Upstream};
use crate::metrics::{Metrics, TargetMetrics};
use crate::queue::{self, DeliveryOrder, Queue};
use crate::tail::Tail;
use crate::telemetry::OpenIds;
use crate::tuning::Tuning;

use attempt::AttemptContext;
use heartbeat::Heartbeat;

/// One `[targets.NAME]` of the configuration.
#[derive(Clone, Debug)]
pub struct TargetSettings {
    /// Where and how it is reached.
    pub target: Target,
    /// When a failed attempt is made again.
    pub retry: Schedule,
    /// How long after the push a delivery is still useful; `None` = always.
    pub expire_after: Option<Duration>,
    /// How many concurrent attempts are made.
    pub concurrency: usize,
    /// The most attempts a second; `None` = no limit.
    pub rate: Option<NonZeroU32>,
    /// In what order events go out.
    pub order: DeliveryOrder,
}

/// A target as its lane serves it: replaced as a whole when the configuration changes.
#[derive(Debug)]
pub struct Policy {
    /// Where attempts go.
    pub upstream: Upstream,
    /// When a failed attempt is made again.
    pub retry: Schedule,
    /// How long after the push a delivery is still useful.
    pub expire_after: Option<Duration>,
    /// How many concurrent attempts are made.
    pub concurrency: usize,
    /// Limits attempts to the target's rate.
    pub rate: Option<RateLimiter>,
    /// In what order events go out.
    pub order: DeliveryOrder,
    /// How OpenIDs are shown in logs.
    pub openids: OpenIds,
}

/// A token bucket.
pub type RateLimiter = governor::DefaultDirectRateLimiter;

impl Policy {
    pub fn new(settings: &TargetSettings, upstream: Upstream, openids: OpenIds) -> Self {
        Self {
            upstream,
            retry: settings.retry.clone(),
            expire_after: settings.expire_after,
            concurrency: settings.concurrency,
            rate: settings.rate.map(|rate| RateLimiter::direct(governor::Quota::per_second(rate))),
            order: settings.order,
            openids,
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
        let named: BTreeMap<_, _> = policies.into_iter().map(|p| (p.upstream.target().name.clone(), p)).collect();
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
            match lanes.get(&name) {
                Some(lane) => drop(lane.policy.send_replace(Arc::new(policy))),
                None => {
                    let policy = watch::Sender::new(Arc::new(policy));
                    let mut lane = Lane { policy, stop: None, heartbeat: Arc::default() };
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
        let mut lanes = self.lanes();
        {
            let mut all = self.paused.lock();
            if paused {
                all.insert(target.to_owned())
            } else {
                all.remove(target)
            };
        }
        let Some(lane) = lanes.get_mut(target) else { return Ok(()) };
        let name = lane.policy.borrow().upstream.target().name.clone();
        match (paused, lane.stop.is_some()) {
            (true, true) => {
                self.stop(&name, lane);
                self.metrics.target(&name).paused.set(1);
                tracing::info!(target = %name, "target paused");
            }
            (false, false) => {
                self.start(&name, lane);
                self.metrics.target(&name).paused.set(0);
                tracing::info!(target = %name, "target resumed");
            }
            (true, false) | (false, true) => {}
        }
        Ok(())
    }

    fn start(&self, name: &Arc<str>, lane: &mut Lane) {
        let metrics: TargetMetrics = self.metrics.target(name);
        let stop = CancellationToken::new();
        let inbox = self.queue.subscribe(name.clone(), self.tuning.inbox_leases);
        let watched = lane.policy.subscribe();
        let context = AttemptContext::new(self.queue.clone(), metrics, self.tail.clone(), stop.clone());
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
