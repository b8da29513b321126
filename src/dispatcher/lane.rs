//! One target's lane: takes leases while it has room, fresh ones from memory and the rest from the store.
//!
//! What a backlog goes out at is up to the target: the lane looks into the store for more before it has run out, and an
//! attempt's room is free again once the target has answered, not when the store has noted it. What is under way or
//! not noted yet is bounded, as a crash makes it all go out again.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::Policy;
use super::attempt::{Bench, End, Unsettled};
use super::breaker::Breaker;
use crate::clock::UnixMillis;
use crate::deliver::Role;
use crate::queue::{Error, Inbox, Lease, Leases};

/// How many leases are read from the store at a time: few, as pushes wait meanwhile; and fewer in the simulation, to have
/// more than one look.
const BATCH: usize = if cfg!(test) { 6 } else { 64 };
/// When fewer leases are ready, the store is asked for more.
const AHEAD: usize = 2 * BATCH;
/// The most deliveries that are attempted or wait to be settled, where `concurrency` does not ask for more, and as many
/// again whose reply is awaited: so many are repeated after a crash at most. Few in the simulation, to be reached.
const IN_FLIGHT: usize = if cfg!(test) { 4 } else { 256 };
/// How long it sleeps at most while something is due later: by then it has seen that the clock was set.
const LOOK_AGAIN: Duration = Duration::from_secs(60);
/// After the store failed to answer.
const STORE_PAUSE: Duration = Duration::from_secs(1);
/// The longest wait between two probes of a target that is down: at most so late do its deliveries go on.
const PROBE_WAIT: Duration = Duration::from_secs(30);
/// The same for an identity provider, for which a person waits.
const IDENTITY_PROBE_WAIT: Duration = Duration::from_secs(5);

/// Serves one target until `stop`, then settles what is under way.
pub(super) async fn run(
    bench: Bench,
    name: Arc<str>,
    inbox: Inbox,
    policy: watch::Receiver<Arc<Policy>>,
    stop: CancellationToken,
) {
    let longest_wait = match policy.borrow().upstream.target().role {
        Role::Identity => IDENTITY_PROBE_WAIT,
        Role::Handler => PROBE_WAIT,
    };
    let breaker = Breaker::new(longest_wait);
    let mut lane = Lane {
        name,
        inbox,
        policy,
        bench: Arc::new(bench),
        breaker,
        stop,
        ready: VecDeque::new(),
        attempts: JoinSet::new(),
        awaited: JoinSet::new(),
        settling: JoinSet::new(),
        look: JoinSet::new(),
        look_at: Some(Instant::now()),
    };
    while lane.step().await {}
    lane.finish().await;
}

struct Lane {
    name: Arc<str>,
    inbox: Inbox,
    policy: watch::Receiver<Arc<Policy>>,
    bench: Arc<Bench>,
    breaker: Breaker,
    stop: CancellationToken,
    /// Leased, waiting for room.
    ready: VecDeque<Lease>,
    attempts: JoinSet<Ended>,
    /// Attempts whose reply WeChat waits for: they have room of their own, so that a backlog can't hold them up.
    awaited: JoinSet<Ended>,
    /// Attempts that are over, on their way into the store.
    settling: JoinSet<()>,
    /// The one look into the store that is under way, with the time it is as of.
    look: JoinSet<(UnixMillis, Result<Leases, Error>)>,
    /// When to look for due deliveries in the store; `None` = when told.
    look_at: Option<Instant>,
}

/// An attempt's end, what is to be settled of it, and whether it was a probe.
type Ended = (End, Option<Unsettled>, bool);

impl Lane {
    /// Starts what there is room for, then waits for the next thing to happen. False when it is time to stop.
    async fn step(&mut self) -> bool {
        let concurrency = self.policy.borrow().concurrency;
        self.start(concurrency);
        let free = self.has_room(concurrency);
        let room = self.ready.is_empty() && free;
        let room_awaited = self.awaited.len() < concurrency && self.in_flight() < 2 * IN_FLIGHT.max(concurrency);
        // Ahead of need, but not for a target that is down.
        let wanted = if self.breaker.is_closed() { self.ready.len() < AHEAD } else { self.ready.is_empty() };
        let look_at = self.look_at.filter(|_| wanted && self.look.is_empty());
        let probe_at = self.breaker.probe_at().filter(|_| free && !self.ready.is_empty());
        tokio::select! {
            biased;
            () = self.stop.cancelled() => return false,
            Some(lease) = self.inbox.awaited.recv(), if room_awaited => self.start_awaited(lease),
            Some(ended) = self.awaited.join_next() => self.account(ended.ok()),
            Some(ended) = self.attempts.join_next() => self.account(ended.ok()),
            Some(_) = self.settling.join_next() => {}
            Some(found) = self.look.join_next() => self.take(found.ok()),
            () = self.inbox.wake.notified() => self.look_at = Some(Instant::now()),
            () = until(look_at) => self.look(),
            () = until(probe_at) => {}
            Some(lease) = self.inbox.fresh.recv(), if room => self.ready.push_back(lease),
            Ok(()) = self.policy.changed() => {}
        }
        true
    }

    /// Whether another attempt may be made.
    fn has_room(&self, concurrency: usize) -> bool {
        self.attempts.len() < concurrency && self.in_flight() < IN_FLIGHT.max(concurrency)
    }

    /// How many deliveries would be repeated after a crash at this moment.
    fn in_flight(&self) -> usize {
        self.attempts.len() + self.awaited.len() + self.settling.len()
    }

    /// Starts attempts as far as there is room; of a target that is down just the probe that is due.
    fn start(&mut self, concurrency: usize) {
        while !self.ready.is_empty() && self.has_room(concurrency) {
            let probe = !self.breaker.is_closed();
            if probe && !self.breaker.probe(Instant::now()) {
                return;
            }
            if let Some(lease) = self.ready.pop_front() {
                self.attempts.spawn(self.attempt(lease, probe));
            }
        }
    }

    /// Of a target that is down no reply can be had: dropping the lease says so, and leaves the delivery pending.
    fn start_awaited(&mut self, lease: Lease) {
        if self.breaker.is_closed() {
            self.awaited.spawn(self.attempt(lease, false));
        }
    }

    fn attempt(&self, lease: Lease, probe: bool) -> impl Future<Output = Ended> + Send + 'static {
        let attempt = self.bench.clone().attempt(self.policy.borrow().clone(), lease, probe);
        async move {
            let (end, unsettled) = attempt.await;
            (end, unsettled, probe)
        }
    }

    /// Takes an attempt's end to the store and to the breaker. One that panicked has told the log, and its lease is
    /// back.
    fn account(&mut self, ended: Option<Ended>) {
        let was_closed = self.breaker.is_closed();
        let (end, unsettled, probe) = ended.unwrap_or((End::NotMade, None, !was_closed));
        if let Some(unsettled) = unsettled {
            self.settling.spawn(self.bench.clone().settle(unsettled));
        }
        match (end, probe) {
            (End::Answered, _) => self.breaker.answered(),
            (End::Failed(event), probe) if probe || was_closed => self.breaker.failed(event, Instant::now()),
            (End::NotMade, true) => self.breaker.returned(Instant::now()),
            (End::Failed(_) | End::NotMade, _) => {}
        }
        match (was_closed, self.breaker.is_closed()) {
            (true, false) => {
                self.bench.metrics.up.set(0);
                tracing::warn!(target = %self.name, "the target keeps failing; only probes until it answers");
            }
            (false, true) => {
                self.bench.metrics.up.set(1);
                tracing::info!(target = %self.name, "the target answers again");
            }
            (true, true) | (false, false) => {}
        }
    }

    /// Begins to look for what is due in the store.
    fn look(&mut self) {
        self.look_at = None;
        let (bench, name, now) = (self.bench.clone(), self.name.clone(), UnixMillis::now());
        self.look.spawn(async move { (now, bench.queue.lease(&name, BATCH, now).await) });
    }

    /// Takes what waits in memory and then what was due in the store, a bounded part of each: so neither starves the
    /// other, and what overflowed the memory does not pass what came before it.
    fn take(&mut self, found: Option<(UnixMillis, Result<Leases, Error>)>) {
        let next = match found {
            Some((now, Ok(found))) => {
                let more = found.due.len() == BATCH;
                while let Ok(lease) = self.inbox.fresh.try_recv() {
                    self.ready.push_back(lease);
                }
                self.ready.extend(found.due);
                let next = found.next_due.map(|due| Instant::now() + due.since(now).min(LOOK_AGAIN));
                if more { Some(Instant::now()) } else { next }
            }
            Some((_, Err(error))) => {
                tracing::warn!(target = %self.name, %error, remedy = error.remedy(), "the store gives no leases; trying again");
                Some(Instant::now() + STORE_PAUSE)
            }
            None => Some(Instant::now() + STORE_PAUSE),
        };
        // It may have been told to look again meanwhile.
        self.look_at = self.look_at.into_iter().chain(next).min();
    }

    async fn finish(mut self) {
        // Handed back at once: if the target comes back, nothing waits for the attempts that are under way.
        drop((self.ready, self.inbox));
        self.look.shutdown().await;
        // What has ended is settled at once, whatever is still under way beside it.
        loop {
            let ended = tokio::select! {
                Some(ended) = self.attempts.join_next() => ended,
                Some(ended) = self.awaited.join_next() => ended,
                Some(_) = self.settling.join_next() => continue,
                else => break,
            };
            if let Ok((_, Some(unsettled), _)) = ended {
                self.settling.spawn(self.bench.clone().settle(unsettled));
            }
        }
        self.bench.notes.close();
        self.bench.notes.wait().await;
    }
}

/// Sleeps until then; for ever without a time.
async fn until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}
