//! One target's lane: takes leases while it has capacity, fresh ones from memory and the rest from the store.
//!
//! The target alone limits how fast a backlog goes out: the lane polls the store for more before it has run out, and an
//! attempt's slot is free again once the target has answered, not when the attempt is settled. The attempts in progress
//! or not settled yet are bounded, as a crash repeats them all.

use std::collections::VecDeque;
use std::mem;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::Policy;
use super::attempt::{AttemptContext, AttemptEnd, UnsettledAttempt};
use super::breaker::Breaker;
use super::heartbeat::Heartbeat;
use crate::clock::UnixMillis;
use crate::deliver::Role;
use crate::queue::{Error, Inbox, Lease, Leases};
use crate::telemetry::LogThrottle;
use crate::tuning::Tuning;

/// The longest sleep while a delivery is due later: by then the lane notices that the clock was set.
const MAX_SLEEP: Duration = Duration::from_secs(60);
/// The pause before the next poll, after a failed one.
const STORE_PAUSE: Duration = Duration::from_secs(1);
/// The pause before the next poll, after one that found more than the target may take into memory, unless an attempt
/// ends before: others may have released some.
const MEMORY_PAUSE: Duration = Duration::from_secs(1);
/// The longest wait between two probes of a target that is down: its deliveries resume at most this much later.
const PROBE_WAIT: Duration = Duration::from_secs(30);
/// The same for an identity provider, for which a person waits.
const IDENTITY_PROBE_WAIT: Duration = Duration::from_secs(5);

/// Serves one target until `stop`, then settles the attempts in progress.
pub(super) async fn run(
    context: AttemptContext,
    name: Arc<str>,
    inbox: Inbox,
    policy: watch::Receiver<Arc<Policy>>,
    heartbeat: Arc<Heartbeat>,
    stop: CancellationToken,
    tuning: Tuning,
) {
    let longest_wait = match policy.borrow().upstream.target().role {
        Role::Identity => IDENTITY_PROBE_WAIT,
        Role::Handler => PROBE_WAIT,
    };
    let breaker = Breaker::new(longest_wait);
    let mut lane = LaneTask {
        name,
        inbox,
        policy,
        context: Arc::new(context),
        breaker,
        heartbeat,
        stop,
        tuning,
        ready: VecDeque::new(),
        attempts: JoinSet::new(),
        awaited: JoinSet::new(),
        settling: JoinSet::new(),
        poll: JoinSet::new(),
        poll_at: Some(Instant::now()),
        is_short_of_memory: false,
        poll_throttle: LogThrottle::default(),
    };
    lane.context.health.note_state(UnixMillis::now(), false);
    lane.apply_share();
    while lane.step().await {}
    lane.finish().await;
}

/// Pairs with [`Lane`](super::Lane), the dispatcher's handle to this task.
struct LaneTask {
    name: Arc<str>,
    inbox: Inbox,
    policy: watch::Receiver<Arc<Policy>>,
    context: Arc<AttemptContext>,
    breaker: Breaker,
    heartbeat: Arc<Heartbeat>,
    stop: CancellationToken,
    tuning: Tuning,
    /// Leased, waiting for a slot.
    ready: VecDeque<Lease>,
    attempts: JoinSet<EndedAttempt>,
    /// Attempts whose reply WeChat waits for: they have slots of their own, so that no backlog delays them.
    awaited: JoinSet<EndedAttempt>,
    /// Ended attempts, until they are in the store.
    settling: JoinSet<()>,
    /// The one poll of the store in progress, with the time for which it asks.
    poll: JoinSet<(UnixMillis, Result<Leases, Error>)>,
    /// When to poll the store for due deliveries; `None` = when woken.
    poll_at: Option<Instant>,
    /// Whether more is due in the store than the target may take into memory now.
    is_short_of_memory: bool,
    /// Limits log lines about polls that fail.
    poll_throttle: LogThrottle,
}

struct EndedAttempt {
    end: AttemptEnd,
    unsettled: Option<UnsettledAttempt>,
    probe: bool,
}

impl LaneTask {
    /// Starts attempts in free slots, then waits for the next thing to happen. False when it is time to stop.
    async fn step(&mut self) -> bool {
        self.heartbeat.beat();
        let concurrency = self.policy.borrow().concurrency;
        if concurrency == 0 {
            // The others make these. It was on its way here, from a push or a poll, when this replica lost its share.
            self.ready.clear();
        }
        self.start_attempts(concurrency);
        let has_slot = self.has_slot(concurrency);
        let takes_fresh = concurrency == 0 || self.ready.is_empty() && has_slot;
        // A reply is awaited here and nowhere else.
        let takes_awaited =
            self.awaited.len() < concurrency.max(1) && self.in_flight() < 2 * self.tuning.in_flight.max(concurrency);
        let poll_at = self.next_poll().filter(|_| self.poll.is_empty());
        let probe_at = self.breaker.probe_at().filter(|_| has_slot && !self.ready.is_empty());
        tokio::select! {
            biased;
            () = self.stop.cancelled() => return false,
            () = self.heartbeat.asked() => {}
            Some(lease) = self.inbox.awaited.recv(), if takes_awaited => self.start_awaited(lease),
            Some(ended) = self.awaited.join_next() => self.handle_ended(ended.ok()),
            Some(ended) = self.attempts.join_next() => self.handle_ended(ended.ok()),
            Some(_) = self.settling.join_next() => self.note_release(),
            Some(found) = self.poll.join_next() => self.take_leases(found.ok()),
            // While memory is short each push wakes the lane, and a poll would find nothing that it may take.
            () = self.inbox.wake.notified(), if !self.is_short_of_memory => self.poll_at = Some(Instant::now()),
            () = until(poll_at) => self.poll_store(),
            () = until(probe_at) => {}
            Some(lease) = self.inbox.fresh.recv(), if takes_fresh => self.ready.push_back(lease),
            Ok(()) = self.policy.changed() => self.apply_share(),
        }
        true
    }

    /// When to poll the store: ahead of need, but for a target that is down only when a probe is due. What is leased by
    /// then is kept from others that may reach the target.
    fn next_poll(&self) -> Option<Instant> {
        if self.breaker.is_closed() {
            let batch = self.lease_batch();
            return self.poll_at.filter(|_| batch > 0 && self.ready.len() < 2 * batch);
        }
        let at = self.poll_at.filter(|_| self.ready.is_empty() && self.lease_batch() > 0)?;
        Some(at.max(self.breaker.probe_at()?))
    }

    /// Bounds what waits here by what is attempted here: others could do it. Without slots nothing waits, but awaited
    /// attempts are made.
    fn apply_share(&mut self) {
        let (concurrency, is_shared) = {
            let policy = self.policy.borrow();
            (policy.concurrency, policy.is_shared())
        };
        self.context.queue.set_room(&self.name, if is_shared { 2 * concurrency } else { usize::MAX });
        if concurrency == 0 {
            while self.inbox.fresh.try_recv().is_ok() {}
        }
        self.poll_at = Some(Instant::now());
    }

    /// Returns the leases of a target that is down.
    fn release_leases(&mut self) {
        self.context.queue.set_accepting(&self.name, false);
        self.ready.clear();
        while self.inbox.fresh.try_recv().is_ok() {}
        while self.inbox.awaited.try_recv().is_ok() {}
    }

    /// A lease has ended: there may be memory for another.
    fn note_release(&mut self) {
        if mem::take(&mut self.is_short_of_memory) {
            self.poll_at = Some(Instant::now());
        }
    }

    /// Whether another attempt may be made.
    fn has_slot(&self, concurrency: usize) -> bool {
        self.attempts.len() < concurrency && self.in_flight() < self.tuning.in_flight.max(concurrency)
    }

    /// How many deliveries a crash at this moment would repeat.
    fn in_flight(&self) -> usize {
        self.attempts.len() + self.awaited.len() + self.settling.len()
    }

    /// Starts attempts while there are slots; for a target that is down, only the probe that is due.
    fn start_attempts(&mut self, concurrency: usize) {
        while !self.ready.is_empty() && self.has_slot(concurrency) {
            let probe = !self.breaker.is_closed();
            if probe && !self.breaker.take_probe(Instant::now()) {
                return;
            }
            if let Some(lease) = self.ready.pop_front() {
                self.attempts.spawn(self.attempt(lease, probe));
            }
        }
    }

    /// A target that is down gives no reply: dropping the lease closes the reply's channel, and leaves the delivery
    /// pending.
    fn start_awaited(&mut self, lease: Lease) {
        if self.breaker.is_closed() {
            self.awaited.spawn(self.attempt(lease, false));
        }
    }

    /// Boxed, as is its settling: starting and ending a task would copy these large futures eight times.
    fn attempt(&self, lease: Lease, probe: bool) -> Pin<Box<impl Future<Output = EndedAttempt> + Send + 'static>> {
        let attempt = self.context.clone().attempt(self.policy.borrow().clone(), lease, probe);
        Box::pin(async move {
            let (end, unsettled) = attempt.await;
            EndedAttempt { end, unsettled, probe }
        })
    }

    /// Settles an attempt and updates the breaker. One that panicked (`None`) is in the log, and its lease is released.
    fn handle_ended(&mut self, ended: Option<EndedAttempt>) {
        let was_closed = self.breaker.is_closed();
        let not_made = EndedAttempt { end: AttemptEnd::NotMade, unsettled: None, probe: !was_closed };
        let EndedAttempt { end, unsettled, probe } = ended.unwrap_or(not_made);
        match unsettled {
            Some(unsettled) => drop(self.settling.spawn(Box::pin(self.context.clone().settle(unsettled)))),
            None => self.note_release(),
        }
        match (end, probe) {
            (AttemptEnd::Answered, _) => self.breaker.record_success(),
            (AttemptEnd::Failed(event), probe) if probe || was_closed => {
                self.breaker.record_failure(event, Instant::now())
            }
            (AttemptEnd::NotMade, true) => self.breaker.return_probe(Instant::now()),
            (AttemptEnd::Failed(_) | AttemptEnd::NotYet | AttemptEnd::NotMade, _) => {}
        }
        match (was_closed, self.breaker.is_closed()) {
            (true, false) => {
                self.release_leases();
                self.context.metrics.up.set(0);
                self.context.health.note_state(UnixMillis::now(), true);
                tracing::warn!(target = %self.name, "breaker opened");
            }
            (false, true) => {
                self.context.queue.set_accepting(&self.name, true);
                self.poll_at = Some(Instant::now());
                self.context.metrics.up.set(1);
                self.context.health.note_state(UnixMillis::now(), false);
                tracing::info!(target = %self.name, "breaker closed");
            }
            (true, true) | (false, false) => {}
        }
        if !self.breaker.is_closed() {
            let wait = self.breaker.probe_at().map(|at| at.saturating_duration_since(Instant::now()));
            self.context.health.note_probe(wait.map(|wait| UnixMillis::now().after(wait)));
        }
    }

    /// How many deliveries to lease at a time: one, to probe with, while the target is down; of a target that others
    /// serve too, no more than soon get a slot.
    fn lease_batch(&self) -> usize {
        let policy = self.policy.borrow();
        let most = if policy.is_shared() { 2 * policy.concurrency } else { usize::MAX };
        if self.breaker.is_closed() { self.tuning.lease_batch.min(most) } else { 1.min(most) }
    }

    /// Starts to lease due deliveries from the store.
    fn poll_store(&mut self) {
        (self.poll_at, self.is_short_of_memory) = (None, false);
        let (context, name, now) = (self.context.clone(), self.name.clone(), UnixMillis::now());
        let batch = self.lease_batch();
        self.poll.spawn(async move { (now, context.queue.lease(&name, batch, now).await) });
    }

    /// Takes the leases that wait in memory and then those from the store, a bounded number of each: so neither starves
    /// the other, and deliveries that did not fit into the inbox do not overtake earlier ones.
    fn take_leases(&mut self, found: Option<(UnixMillis, Result<Leases, Error>)>) {
        let next = match found {
            Some((now, Ok(found))) => {
                // A poll that began before the breaker opened or closed asked for another number.
                let more = found.due.len() >= self.lease_batch();
                while let Ok(lease) = self.inbox.fresh.try_recv() {
                    self.ready.push_back(lease);
                }
                self.ready.extend(found.due);
                if !self.breaker.is_closed() {
                    // The poll began before the breaker opened.
                    self.ready.truncate(1);
                }
                self.context.health.note_due(found.next_due);
                let next = found.next_due.map(|due| Instant::now() + due.since(now).min(MAX_SLEEP));
                self.is_short_of_memory = found.is_short_of_memory;
                if found.is_short_of_memory {
                    Some(Instant::now() + MEMORY_PAUSE)
                } else if more {
                    Some(Instant::now())
                } else {
                    next
                }
            }
            Some((_, Err(error))) => {
                if let Some(suppressed) = self.poll_throttle.allow() {
                    let (target, remedy) = (&self.name, error.remedy());
                    tracing::warn!(%target, %error, remedy, held_back = suppressed, "store not polled; retrying");
                }
                Some(Instant::now() + STORE_PAUSE)
            }
            None => Some(Instant::now() + STORE_PAUSE),
        };
        // It may have been woken meanwhile.
        self.poll_at = self.poll_at.into_iter().chain(next).min();
    }

    /// Settles the attempts in progress.
    async fn finish(mut self) {
        // Released at once: if the target is configured again, no lease waits for the attempts in progress.
        drop((self.ready, self.inbox));
        self.poll.shutdown().await;
        // Ended attempts are settled at once, even while other attempts are in progress.
        loop {
            let ended = tokio::select! {
                Some(ended) = self.attempts.join_next() => ended,
                Some(ended) = self.awaited.join_next() => ended,
                Some(_) = self.settling.join_next() => continue,
                else => break,
            };
            if let Ok(EndedAttempt { unsettled: Some(unsettled), .. }) = ended {
                self.settling.spawn(Box::pin(self.context.clone().settle(unsettled)));
            }
        }
        self.context.annotations.close();
        self.context.annotations.wait().await;
    }
}

/// Sleeps until that time; for ever without one.
async fn until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}
