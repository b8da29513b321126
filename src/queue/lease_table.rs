//! The outstanding leases, in memory: which deliveries are being attempted right now.
//!
//! Only the engine's one writer grants and ends leases, so the two cannot race. Each lease holds a [`LeaseGuard`],
//! which returns the delivery if it is dropped unsettled: neither a bug nor a cancelled task of a consumer can exclude
//! a delivery from further attempts. The table is not stored: after a crash every pending delivery can be leased.

use std::collections::{HashMap, HashSet};
use std::mem;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use super::memory::{MemoryBudget, MemoryHold, TargetMemory};
use crate::event::{Event, EventId};

/// Which grant of a lease this is: the same delivery may be leased again later.
pub(super) type Token = u64;

/// Messages between the guards and the table.
#[derive(Debug, Default)]
struct LeaseNotices {
    /// Written by dropped guards, read by [`LeaseTable::reclaim_dropped`].
    returned: Vec<(Arc<str>, EventId, Token)>,
    /// Written by the table, read by [`LeaseGuard::is_revoked`].
    revoked: HashSet<Token>,
}

/// Whether leases may be used: where several processes share a store, one that has not proved for a while that it lives
/// may have lost its leases to another.
#[derive(Debug)]
pub(super) struct Fence {
    start: Instant,
    limit: Duration,
    /// When the last confirmed proof was sent, in milliseconds since `start`. No other memory is published with it.
    proved: AtomicU64,
}

impl Fence {
    /// Up, until a proof is confirmed.
    pub(super) fn new(limit: Duration) -> Self {
        // So that a fence that was never lowered is up.
        let start = Instant::now().checked_sub(limit * 2).unwrap_or_else(Instant::now);
        Self { start, limit, proved: AtomicU64::new(0) }
    }

    /// Notes a confirmed proof, sent at that moment; true if the fence was up before.
    pub(super) fn lower(&self, sent: Instant) -> bool {
        let was_up = self.is_up();
        let sent = u64::try_from(sent.saturating_duration_since(self.start).as_millis()).unwrap_or(u64::MAX);
        self.proved.fetch_max(sent, Ordering::Relaxed);
        was_up
    }

    /// Whether the last proof is too old.
    pub(super) fn is_up(&self) -> bool {
        let proved = self.start + Duration::from_millis(self.proved.load(Ordering::Relaxed));
        proved.elapsed() > self.limit
    }
}

/// Every outstanding lease.
#[derive(Debug)]
pub(super) struct LeaseTable {
    outstanding: HashMap<Arc<str>, TargetLeases>,
    last_token: Token,
    notices: Arc<Mutex<LeaseNotices>>,
    budget: Arc<MemoryBudget>,
    fence: Option<Arc<Fence>>,
}

/// The leases of one target.
#[derive(Debug)]
struct TargetLeases {
    events: HashMap<EventId, Outstanding>,
    memory: Arc<TargetMemory>,
}

#[derive(Clone, Copy, Debug)]
struct Outstanding {
    token: Token,
    /// Which attempt it is for. 0 for a place: the delivery is not known to be stored, and nobody attempts it.
    attempt: u32,
}

impl LeaseTable {
    /// No leases; those to come share this budget.
    pub(super) fn new(budget: Arc<MemoryBudget>) -> Self {
        Self { outstanding: HashMap::new(), last_token: 0, notices: Arc::default(), budget, fence: None }
    }

    /// As [`LeaseTable::new`], with leases that are revoked while the fence is up.
    pub(super) fn fenced(budget: Arc<MemoryBudget>, fence: Arc<Fence>) -> Self {
        Self { fence: Some(fence), ..Self::new(budget) }
    }

    /// Whether the target may take no more events into memory.
    pub(super) fn is_short_of_memory(&self, target: &str) -> bool {
        self.outstanding.get(target).is_some_and(|leases| !leases.memory.allows(1, false))
    }

    /// Marks this attempt of the delivery as being made; `None` if the target may not take the event into memory.
    /// `is_awaited` if WeChat waits for the reply.
    pub(super) fn grant(
        &mut self,
        target: &Arc<str>,
        event: &Event,
        attempt: u32,
        is_awaited: bool,
    ) -> Option<LeaseGuard> {
        let bytes = event.memory_bytes();
        let budget = &self.budget;
        let new = || TargetLeases { events: HashMap::new(), memory: TargetMemory::new(budget) };
        let leases = self.outstanding.entry(Arc::clone(target)).or_insert_with(new);
        if !leases.memory.allows(bytes, is_awaited) {
            return None;
        }
        self.last_token += 1;
        let token = self.last_token;
        leases.events.insert(event.id, Outstanding { token, attempt });
        let (target, notices, memory) = (Arc::clone(target), Arc::clone(&self.notices), leases.memory.take(bytes));
        let fence = self.fence.clone();
        Some(LeaseGuard { target, event: event.id, token, notices, fence, _memory: memory })
    }

    /// As [`LeaseTable::grant`] before the delivery is stored: until [`LeaseTable::confirm`] it may be leased otherwise.
    pub(super) fn reserve(&mut self, target: &Arc<str>, event: &Event, is_awaited: bool) -> Option<LeaseGuard> {
        self.grant(target, event, 0, is_awaited)
    }

    /// Makes a place the lease of the first attempt, unless it has ended or the delivery was leased meanwhile.
    pub(super) fn confirm(&mut self, guard: &LeaseGuard) -> bool {
        let leases = self.outstanding.get_mut(&guard.target);
        let place = leases.and_then(|leases| leases.events.get_mut(&guard.event));
        let Some(place) = place.filter(|place| place.token == guard.token) else { return false };
        place.attempt = 1;
        true
    }

    /// Ends the delivery's lease, even while its guard lives.
    pub(super) fn end(&mut self, target: &str, event: EventId) {
        if let Some(leases) = self.outstanding.get_mut(target) {
            leases.events.remove(&event);
        }
    }

    fn find(&self, target: &str, event: EventId) -> Option<Outstanding> {
        self.outstanding.get(target)?.events.get(&event).copied()
    }

    /// The outstanding lease of this attempt; where no attempt was made, of any.
    pub(super) fn lease_of(&self, target: &str, event: EventId, attempt: Option<u32>) -> Option<Token> {
        let lease = self.find(target, event)?;
        attempt.is_none_or(|attempt| attempt == lease.attempt).then_some(lease.token)
    }

    /// Whether this attempt of the delivery is under way here, or was and is not settled yet, although the store leases it
    /// again: others may have taken it over and given it back. It stays held for that attempt. A second lease of it would
    /// end with what settles the first one, while it is used.
    pub(super) fn is_attempted(&self, target: &str, event: EventId, attempt: u32) -> bool {
        self.find(target, event).is_some_and(|lease| lease.attempt >= attempt)
    }

    /// Ends this lease, even while its guard lives; a later one of the same delivery stays.
    pub(super) fn end_lease(&mut self, target: &str, event: EventId, token: Token) {
        if self.find(target, event).is_some_and(|lease| lease.token == token) {
            self.end(target, event);
        }
    }

    /// Ends this lease; a later one of the same delivery stays.
    pub(super) fn drop_guard(&mut self, guard: LeaseGuard) {
        self.end_lease(&guard.target, guard.event, guard.token);
    }

    /// Marks the delivery's lease as cancelled. It remains outstanding until its guard is dropped.
    pub(super) fn revoke(&mut self, target: &str, event: EventId) {
        if let Some(lease) = self.find(target, event) {
            self.notices.lock().revoked.insert(lease.token);
        }
    }

    /// Marks every lease as cancelled.
    pub(super) fn revoke_all(&mut self) {
        let leases = self.outstanding.values().flat_map(|leases| leases.events.values());
        self.notices.lock().revoked.extend(leases.map(|lease| lease.token));
    }

    /// The outstanding leases.
    pub(super) fn list(&self) -> Vec<(Arc<str>, EventId)> {
        let of = |(target, leases): (&Arc<str>, &TargetLeases)| {
            leases.events.keys().map(|event| (Arc::clone(target), *event)).collect::<Vec<_>>()
        };
        self.outstanding.iter().flat_map(of).collect()
    }

    /// Whether the delivery is being attempted.
    pub(super) fn contains(&self, target: &str, event: EventId) -> bool {
        self.outstanding.get(target).is_some_and(|leases| leases.events.contains_key(&event))
    }

    /// How many leases of the target are outstanding.
    pub(super) fn count(&self, target: &str) -> usize {
        self.outstanding.get(target).map_or(0, |leases| leases.events.len())
    }

    /// Ends the leases whose guards were dropped unsettled; returns their targets.
    pub(super) fn reclaim_dropped(&mut self) -> Vec<Arc<str>> {
        self.take_dropped().into_iter().map(|(_, target)| target).collect()
    }

    /// As [`LeaseTable::reclaim_dropped`], with the events.
    pub(super) fn take_dropped(&mut self) -> Vec<(EventId, Arc<str>)> {
        let returned = mem::take(&mut self.notices.lock().returned);
        let mut dropped = Vec::new();
        for (target, event, token) in returned {
            if let Some(leases) = self.outstanding.get_mut(&target)
                && leases.events.get(&event).is_some_and(|lease| lease.token == token)
            {
                leases.events.remove(&event);
                dropped.push((event, target));
            }
        }
        dropped
    }
}

/// Keeps a lease outstanding while it lives.
#[derive(Debug)]
pub(super) struct LeaseGuard {
    target: Arc<str>,
    event: EventId,
    token: Token,
    notices: Arc<Mutex<LeaseNotices>>,
    fence: Option<Arc<Fence>>,
    /// Released with it.
    _memory: MemoryHold,
}

impl LeaseGuard {
    /// Whether the delivery was cancelled since the lease was granted, or may belong to another process now.
    pub(super) fn is_revoked(&self) -> bool {
        self.fence.as_ref().is_some_and(|fence| fence.is_up()) || self.notices.lock().revoked.contains(&self.token)
    }
}

impl Drop for LeaseGuard {
    fn drop(&mut self) {
        let mut notices = self.notices.lock();
        notices.revoked.remove(&self.token);
        notices.returned.push((Arc::clone(&self.target), self.event, self.token));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::sample;

    fn table() -> LeaseTable {
        LeaseTable::new(MemoryBudget::new(1 << 20))
    }

    fn grant(table: &mut LeaseTable, target: &Arc<str>, event: u64) -> LeaseGuard {
        table.grant(target, &sample(EventId(event), 10), 1, false).unwrap()
    }

    #[test]
    fn a_dropped_lease_frees_its_delivery() {
        let mut table = table();
        let target: Arc<str> = "crm".into();
        let guard = grant(&mut table, &target, 1);
        assert!(table.contains("crm", EventId(1)));
        drop(guard);
        assert_eq!(table.reclaim_dropped(), [Arc::clone(&target)]);
        assert_eq!(table.count("crm"), 0);
    }

    #[test]
    fn a_lease_that_was_followed_by_another_ends_alone() {
        let mut table = table();
        let target: Arc<str> = "crm".into();
        let (first, second) = (grant(&mut table, &target, 1), grant(&mut table, &target, 1));
        table.drop_guard(first);
        assert!(table.contains("crm", EventId(1)));
        table.drop_guard(second);
        assert!(!table.contains("crm", EventId(1)));
    }

    #[test]
    fn a_place_is_no_attempt_until_it_is_confirmed_and_never_where_the_delivery_was_leased_meanwhile() {
        let mut table = table();
        let target: Arc<str> = "crm".into();
        let places = [1, 2, 3].map(|event| table.reserve(&target, &sample(EventId(event), 10), false).unwrap());
        assert!(table.contains("crm", EventId(1)) && !table.is_attempted("crm", EventId(1), 1));
        let lease = grant(&mut table, &target, 2);
        table.end("crm", EventId(3));
        assert_eq!(places.each_ref().map(|place| table.confirm(place)), [true, false, false]);
        assert_eq!([1, 2, 3].map(|event| table.is_attempted("crm", EventId(event), 1)), [true, true, false]);
        drop(places);
        assert_eq!(table.reclaim_dropped().len(), 1);
        assert!(!lease.is_revoked() && table.is_attempted("crm", EventId(2), 1));
    }

    #[test]
    fn what_settles_an_attempt_ends_no_lease_of_a_later_one() {
        let mut table = table();
        let target: Arc<str> = "crm".into();
        let _first = grant(&mut table, &target, 1);
        assert!(table.is_attempted("crm", EventId(1), 1) && !table.is_attempted("crm", EventId(1), 2));
        let _second = table.grant(&target, &sample(EventId(1), 10), 2, false).unwrap();
        assert_eq!(table.lease_of("crm", EventId(1), Some(1)), None);
        assert_eq!(table.lease_of("crm", EventId(1), Some(2)), table.lease_of("crm", EventId(1), None));
    }

    #[test]
    fn a_revoked_lease_says_so_and_stays_out_until_it_is_dropped() {
        let mut table = table();
        let target: Arc<str> = "crm".into();
        let (guard, other) = (grant(&mut table, &target, 1), grant(&mut table, &target, 2));
        table.revoke("crm", EventId(1));
        table.revoke("crm", EventId(7));
        assert!(guard.is_revoked() && !other.is_revoked() && table.contains("crm", EventId(1)));
        drop(guard);
        assert_eq!(table.reclaim_dropped(), [Arc::clone(&target)]);
        assert!(!grant(&mut table, &target, 1).is_revoked(), "a new lease is a new right");
    }

    #[test]
    fn a_late_drop_does_not_end_the_next_lease_of_the_same_delivery() {
        let mut table = table();
        let target: Arc<str> = "crm".into();
        let first = grant(&mut table, &target, 1);
        table.end("crm", EventId(1));
        let _second = grant(&mut table, &target, 1);
        drop(first);
        assert!(table.reclaim_dropped().is_empty());
        assert!(table.contains("crm", EventId(1)));
    }

    #[test]
    fn a_lease_that_is_ended_late_does_not_end_the_next_one_of_the_same_delivery() {
        let mut table = table();
        let target: Arc<str> = "crm".into();
        let _first = grant(&mut table, &target, 1);
        let lease = table.lease_of("crm", EventId(1), Some(1)).unwrap();
        let _second = grant(&mut table, &target, 1);
        table.end_lease("crm", EventId(1), lease);
        assert!(table.contains("crm", EventId(1)));
        let lease = table.lease_of("crm", EventId(1), Some(1)).unwrap();
        table.end_lease("crm", EventId(1), lease);
        assert!(!table.contains("crm", EventId(1)));
    }

    #[test]
    fn what_a_target_holds_in_memory_is_released_with_its_leases_and_not_when_they_are_settled() {
        let mut table = LeaseTable::new(MemoryBudget::new(100_000));
        let (target, other): (Arc<str>, Arc<str>) = ("crm".into(), "idp".into());
        let large = |event| sample(EventId(event), 10_000);
        let first = table.grant(&target, &large(1), 1, false).unwrap();
        assert!(table.grant(&target, &large(2), 1, false).is_none() && table.count("crm") == 1);
        assert!(table.grant(&other, &large(2), 1, false).is_some(), "another target has its own share");
        table.end("crm", EventId(1));
        assert!(table.grant(&target, &large(2), 1, false).is_none(), "the attempt still holds the event");
        drop(first);
        assert!(table.grant(&target, &large(2), 1, false).is_some());
        assert!(table.grant(&target, &large(3), 1, true).is_some(), "nothing was kept");
    }
}
