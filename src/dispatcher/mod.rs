//! The background side: leases deliveries, makes attempts, settles them.
//!
//! Each target has a lane of its own: its own task, its own share of the queue, its own connections. So a target that is
//! dead, slow or flooded delays nobody but itself, and an identity provider never waits behind a handler. What an
//! attempt leads to is decided in `attempt.rs`, once.

mod attempt;
mod breaker;
mod lane;

use std::collections::HashMap;
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::backoff::Schedule;
use crate::deliver::{Target, Upstream};
use crate::metrics::{Metrics, TargetMetrics};
use crate::queue::{Order, Queue};
use crate::telemetry::OpenIds;

/// How many fresh events wait for a target in memory; the rest wait on disk.
const INBOX: usize = 1024;

/// One `[targets.NAME]` of the configuration.
#[derive(Clone, Debug)]
pub struct TargetSettings {
    /// Where and how it is reached.
    pub target: Target,
    /// When a failed attempt is made again.
    pub retry: Schedule,
    /// How long after the push a delivery is still of use; `None` = always.
    pub expire_after: Option<Duration>,
    /// How many attempts are made at one time.
    pub concurrency: usize,
    /// The most attempts a second; `None` = no limit.
    pub rate: Option<NonZeroU32>,
    /// In what order events go out.
    pub order: Order,
}

/// A target as its lane serves it: replaced as a whole when the configuration changes.
#[derive(Debug)]
pub struct Policy {
    /// Where attempts go.
    pub upstream: Upstream,
    /// When a failed attempt is made again.
    pub retry: Schedule,
    /// How long after the push a delivery is still of use.
    pub expire_after: Option<Duration>,
    /// How many attempts are made at one time.
    pub concurrency: usize,
    /// Holds attempts back to the target's rate.
    pub rate: Option<RateLimiter>,
    /// In what order events go out.
    pub order: Order,
    /// How OpenIDs are shown in logs.
    pub openids: OpenIds,
}

/// A token bucket.
pub type RateLimiter = governor::DefaultDirectRateLimiter;

impl Policy {
    /// The policy for a target's settings.
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
    lanes: Mutex<HashMap<Arc<str>, Lane>>,
    tasks: TaskTracker,
}

struct Lane {
    policy: watch::Sender<Arc<Policy>>,
    stop: CancellationToken,
}

impl Dispatcher {
    /// A dispatcher without lanes.
    pub fn new(queue: Queue, metrics: Arc<Metrics>) -> Self {
        Self { queue, metrics, lanes: Mutex::default(), tasks: TaskTracker::new() }
    }

    /// Serves exactly these targets from now on. A lane whose target goes on is kept, with what it has under way;
    /// one whose target is gone ends, and its deliveries stay pending.
    pub fn apply(&self, policies: Vec<Policy>) {
        let mut lanes = self.lanes.lock().unwrap_or_else(PoisonError::into_inner);
        let named: HashMap<_, _> = policies.into_iter().map(|p| (p.upstream.target().name.clone(), p)).collect();
        lanes.retain(|name, lane| {
            let kept = named.contains_key(name);
            if !kept {
                lane.stop.cancel();
                self.queue.unsubscribe(name);
            }
            kept
        });
        for (name, policy) in named {
            self.queue.keep_order(&name, policy.order);
            match lanes.get(&name) {
                Some(lane) => drop(lane.policy.send_replace(Arc::new(policy))),
                None => drop(lanes.insert(name.clone(), self.start(name, policy))),
            }
        }
    }

    fn start(&self, name: Arc<str>, policy: Policy) -> Lane {
        let metrics: TargetMetrics = self.metrics.target(&name);
        let (policy, watched) = watch::channel(Arc::new(policy));
        let stop = CancellationToken::new();
        let inbox = self.queue.subscribe(name.clone(), INBOX);
        self.tasks.spawn(lane::run(self.queue.clone(), name, inbox, watched, metrics, stop.clone()));
        Lane { policy, stop }
    }

    /// Stops leasing and waits for the attempts under way to be settled; what is pending stays so.
    pub async fn drain(&self) {
        for lane in self.lanes.lock().unwrap_or_else(PoisonError::into_inner).values() {
            lane.stop.cancel();
        }
        self.tasks.close();
        self.tasks.wait().await;
    }
}
