//! The outstanding leases, in memory: which deliveries are being attempted right now.
//!
//! Only the engine's one writer grants and ends leases, so the two cannot race. Each lease holds a [`LeaseGuard`],
//! which returns the delivery if it is dropped unsettled: neither a bug nor a cancelled task of a consumer can exclude
//! a delivery from further attempts. The table is not stored: after a crash every pending delivery can be leased.

use std::collections::{HashMap, HashSet};
use std::mem;
use std::sync::Arc;

use parking_lot::Mutex;

use super::memory::{MemoryBudget, MemoryHold, TargetMemory};
use crate::event::{Event, EventId};

/// Which grant of a lease this is: the same delivery may be leased again later.
type Token = u64;

/// Messages between the guards and the table.
#[derive(Debug, Default)]
struct LeaseNotices {
    /// Written by dropped guards, read by [`LeaseTable::reclaim_dropped`].
    returned: Vec<(Arc<str>, EventId, Token)>,
    /// Written by the table, read by [`LeaseGuard::is_revoked`].
    revoked: HashSet<Token>,
}

/// Every outstanding lease.
#[derive(Debug)]
pub(super) struct LeaseTable {
    outstanding: HashMap<Arc<str>, TargetLeases>,
    last_token: Token,
    notices: Arc<Mutex<LeaseNotices>>,
    budget: Arc<MemoryBudget>,
}

/// The leases of one target.
#[derive(Debug)]
struct TargetLeases {
    events: HashMap<EventId, Token>,
    memory: Arc<TargetMemory>,
}

impl LeaseTable {
    /// No leases; those to come share this budget.
    pub(super) fn new(budget: Arc<MemoryBudget>) -> Self {
        Self { outstanding: HashMap::new(), last_token: 0, notices: Arc::default(), budget }
    }

    /// Whether the target may take no more events into memory.
    pub(super) fn is_short_of_memory(&self, target: &str) -> bool {
        self.outstanding.get(target).is_some_and(|leases| !leases.memory.allows(1, false))
    }

    /// Marks the delivery as being attempted; `None` if the target may not take the event into memory. `is_awaited` if
    /// WeChat waits for the reply.
    pub(super) fn grant(&mut self, target: &Arc<str>, event: &Event, is_awaited: bool) -> Option<LeaseGuard> {
        let bytes = event.memory_bytes();
        let budget = &self.budget;
        let new = || TargetLeases { events: HashMap::new(), memory: TargetMemory::new(budget) };
        let leases = self.outstanding.entry(Arc::clone(target)).or_insert_with(new);
        if !leases.memory.allows(bytes, is_awaited) {
            return None;
        }
        self.last_token += 1;
        let token = self.last_token;
        leases.events.insert(event.id, token);
        let (target, notices, memory) = (Arc::clone(target), Arc::clone(&self.notices), leases.memory.take(bytes));
        Some(LeaseGuard { target, event: event.id, token, notices, _memory: memory })
    }

    /// Ends the delivery's lease, even while its guard lives.
    pub(super) fn end(&mut self, target: &str, event: EventId) {
        if let Some(leases) = self.outstanding.get_mut(target) {
            leases.events.remove(&event);
        }
    }

    /// Marks the delivery's lease as cancelled. It remains outstanding until its guard is dropped.
    pub(super) fn revoke(&mut self, target: &str, event: EventId) {
        if let Some(token) = self.outstanding.get(target).and_then(|leases| leases.events.get(&event)) {
            self.notices.lock().revoked.insert(*token);
        }
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
        let returned = mem::take(&mut self.notices.lock().returned);
        let mut targets = Vec::new();
        for (target, event, token) in returned {
            if let Some(leases) = self.outstanding.get_mut(&target)
                && leases.events.get(&event) == Some(&token)
            {
                leases.events.remove(&event);
                targets.push(target);
            }
        }
        targets
    }
}

/// Keeps a lease outstanding while it lives.
#[derive(Debug)]
pub(super) struct LeaseGuard {
    target: Arc<str>,
    event: EventId,
    token: Token,
    notices: Arc<Mutex<LeaseNotices>>,
    /// Released with it.
    _memory: MemoryHold,
}

impl LeaseGuard {
    /// Whether the delivery was cancelled since the lease was granted.
    pub(super) fn is_revoked(&self) -> bool {
        self.notices.lock().revoked.contains(&self.token)
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
        table.grant(target, &sample(EventId(event), 10), false).unwrap()
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
    fn what_a_target_holds_in_memory_is_released_with_its_leases_and_not_when_they_are_settled() {
        let mut table = LeaseTable::new(MemoryBudget::new(100_000));
        let (target, other): (Arc<str>, Arc<str>) = ("crm".into(), "idp".into());
        let large = |event| sample(EventId(event), 10_000);
        let first = table.grant(&target, &large(1), false).unwrap();
        assert!(table.grant(&target, &large(2), false).is_none() && table.count("crm") == 1);
        assert!(table.grant(&other, &large(2), false).is_some(), "another target has its own share");
        table.end("crm", EventId(1));
        assert!(table.grant(&target, &large(2), false).is_none(), "the attempt still holds the event");
        drop(first);
        assert!(table.grant(&target, &large(2), false).is_some());
        assert!(table.grant(&target, &large(3), true).is_some(), "nothing was kept");
    }
}
