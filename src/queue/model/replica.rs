//! A replica of the model engine proves that it lives: the rules of `queue/postgres/replica.rs`.

use std::collections::{BTreeMap, BTreeSet};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};

use super::ModelReplica;
use super::store::{BrokenRule, Renewal};
use crate::clock::UnixMillis;
use crate::event::EventId;
use crate::queue::lease_table::Fence;
use crate::queue::{Error, Share};
use crate::tuning::ReplicaTiming;

/// The longest that one renewal may take.
const TRY: Duration = Duration::from_secs(3);

/// A delivery that is held, as the attempt that it is held for.
type HeldAttempt = (EventId, Arc<str>, u32);

/// Who this replica is among the others.
pub(super) struct ModelMembership {
    incarnation: AtomicU32,
    slot: AtomicU64,
    fence: Arc<Fence>,
    /// Since when the fence has not been up.
    answered_since: Mutex<Instant>,
    /// Held rows that are unknown here: since which look.
    unknown: Mutex<BTreeMap<HeldAttempt, Instant>>,
    /// Leases that were not in the store at the last look.
    missing: Mutex<BTreeSet<(EventId, Arc<str>)>>,
    share: watch::Sender<Share>,
    renewal_wanted: Notify,
    renewed: Notify,
}

impl ModelMembership {
    pub(super) fn new(timing: &ReplicaTiming) -> Self {
        Self {
            incarnation: AtomicU32::new(0),
            slot: AtomicU64::new(0),
            fence: Arc::new(Fence::new(timing.fence)),
            answered_since: Mutex::new(Instant::now()),
            unknown: Mutex::default(),
            missing: Mutex::default(),
            share: watch::Sender::new(Share::WHOLE),
            renewal_wanted: Notify::new(),
            renewed: Notify::new(),
        }
    }

    pub(super) fn incarnation(&self) -> u32 {
        self.incarnation.load(Ordering::Acquire)
    }

    pub(super) fn slot(&self) -> u64 {
        self.slot.load(Ordering::Relaxed)
    }

    pub(super) fn fence(&self) -> Arc<Fence> {
        Arc::clone(&self.fence)
    }

    pub(super) fn shares(&self) -> watch::Receiver<Share> {
        self.share.subscribe()
    }

    /// Proves at once that this replica lives; waits for that at most so long.
    pub(super) async fn renew_now(&self, wait: Duration) {
        let mut renewed = pin!(self.renewed.notified());
        renewed.as_mut().enable();
        self.renewal_wanted.notify_one();
        drop(timeout(wait, renewed).await);
    }
}

impl ModelReplica {
    pub(super) fn is_fenced(&self) -> bool {
        self.store.broken != BrokenRule::Fence && self.membership.fence.is_up()
    }

    /// Becomes a replica.
    pub(super) async fn enter(&self) -> Result<(), Error> {
        let sent = Instant::now();
        let (incarnation, slot, others) = self.call(TRY, |rows| rows.join()).await?.ok_or(Error::Closed)?;
        self.membership.incarnation.store(incarnation, Ordering::Release);
        self.membership.slot.store(slot, Ordering::Relaxed);
        self.membership.share.send_replace(Share::new(others, others + 1));
        let _had_gap = self.membership.fence.lower(sent);
        Ok(())
    }

    /// Proves that this replica lives, and acts on what it sees, until it stops.
    pub(super) async fn keep_alive(self: Arc<Self>) {
        let mut ticks = interval(self.tuning.replica.beat);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                () = self.stop.cancelled() => return,
                () = self.membership.renewal_wanted.notified() => {}
                _ = ticks.tick() => {}
            }
            let sent = Instant::now();
            if matches!(timeout(TRY, self.renew(sent)).await, Ok(Ok(()))) {
                self.membership.renewed.notify_waiters();
            }
        }
    }

    async fn renew(&self, sent: Instant) -> Result<(), Error> {
        let me = self.membership.incarnation();
        let seen = self.call(TRY, move |rows| rows.renew(me)).await?;
        if !seen.is_member {
            self.leases.lock().revoke_all();
            return self.enter().await;
        }
        self.operator_changes.send_if_modified(|last| std::mem::replace(last, seen.change) != seen.change);
        self.divide(&seen, me);
        self.compare_held(&seen, sent).await?;
        // Not before: what others have taken over meanwhile is revoked by now.
        if self.membership.fence.lower(sent) {
            *self.membership.answered_since.lock() = Instant::now();
        }
        let now = self.local(UnixMillis::now());
        seen.due.iter().filter(|(_, due)| **due <= now).for_each(|(target, _)| self.inboxes.wake(target));
        self.take_over(&seen, me).await
    }

    /// Revokes what is held no more, and frees what is held in vain.
    async fn compare_held(&self, seen: &Renewal, sent: Instant) -> Result<(), Error> {
        let held: BTreeMap<_, _> = seen.held.iter().cloned().collect();
        let outstanding: BTreeSet<_> =
            self.leases.lock().list().into_iter().map(|(target, event)| (event, target)).collect();
        let missing: BTreeSet<_> = outstanding.iter().filter(|way| !held.contains_key(way)).cloned().collect();
        let before = std::mem::replace(&mut *self.membership.missing.lock(), missing.clone());
        for (event, target) in missing {
            // Nothing is leased behind the fence: what is missing was taken over. Else it may be a moment between a
            // commit and what follows from it.
            if self.is_fenced() || before.contains(&(event, Arc::clone(&target))) {
                self.leases.lock().revoke(&target, event);
            }
        }
        let orphaned: Vec<_> = {
            let mut since = self.membership.unknown.lock();
            let unknown = held.into_iter().filter(|(way, _)| !outstanding.contains(way));
            let now: BTreeMap<HeldAttempt, Instant> = unknown
                .map(|((event, target), attempts)| (event, target, attempts))
                .map(|row| (row.clone(), since.get(&row).copied().unwrap_or(sent)))
                .collect();
            let long = self.tuning.replica.orphaned;
            let orphaned = now.iter().filter(|(_, first)| sent.duration_since(**first) >= long);
            let orphaned = orphaned.map(|((event, target, _), _)| (*event, Arc::clone(target))).collect();
            *since = now;
            orphaned
        };
        self.give_back(orphaned).await
    }

    /// Takes this replica's share. A silent one counts as long as its attempts may run.
    fn divide(&self, seen: &Renewal, me: u32) {
        let timing = &self.tuning.replica;
        let targets = self.inboxes.bounded_targets();
        let timeouts = targets.iter().filter_map(|target| self.inboxes.longest_attempt(target));
        let counted = timing.fence + timeouts.max().unwrap_or_default() + timing.grace;
        let live = seen.replicas.iter().filter(|(other, silent)| *other == me || *silent <= counted);
        let live: Vec<u32> = live.map(|(other, _)| *other).collect();
        let rank = live.iter().filter(|other| **other < me).count();
        let share = Share::new(u32::try_from(rank).unwrap_or(0), u32::try_from(live.len()).unwrap_or(1));
        self.membership.share.send_if_modified(|last| std::mem::replace(last, share) != share);
    }

    /// Frees what silent replicas hold, for each target after its own time.
    async fn take_over(&self, seen: &Renewal, me: u32) -> Result<(), Error> {
        let timing = &self.tuning.replica;
        let answered = self.membership.answered_since.lock().elapsed();
        for (other, silent) in seen.replicas.iter().filter(|(other, _)| *other != me).copied() {
            for target in self.inboxes.bounded_targets() {
                let longest = self.inboxes.longest_attempt(&target).unwrap_or_default();
                let after = match self.store.broken {
                    BrokenRule::Takeover => timing.beat * 2,
                    _ => timing.fence + longest + timing.grace,
                };
                if silent <= after || answered < after {
                    continue;
                }
                let name = Arc::clone(&target);
                let freed = self.call(TRY, move |rows| rows.take_over(other, &name, after)).await?;
                if !freed.is_empty() {
                    self.inboxes.wake(&target);
                }
            }
        }
        Ok(())
    }
}
