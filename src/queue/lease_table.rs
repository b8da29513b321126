//! The outstanding leases, in memory: which deliveries are being attempted right now.
//!
//! Only the engine's one writer grants and ends leases, so the two cannot race. Each lease holds a [`LeaseGuard`],
//! which returns the delivery if it is dropped unsettled: neither a bug nor a cancelled task of a consumer can exclude
//! a delivery from further attempts. The table is not stored: after a crash every pending delivery can be leased.

use std::collections::{HashMap, HashSet};
use std::mem;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::event::EventId;

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
#[derive(Debug, Default)]
pub(super) struct LeaseTable {
    outstanding: HashMap<Arc<str>, HashMap<EventId, Token>>,
    last_token: Token,
    notices: Arc<Mutex<LeaseNotices>>,
}

impl LeaseTable {
    /// Marks the delivery as being attempted.
    pub(super) fn grant(&mut self, target: &Arc<str>, event: EventId) -> LeaseGuard {
        self.last_token += 1;
        let token = self.last_token;
        self.outstanding.entry(Arc::clone(target)).or_default().insert(event, token);
        LeaseGuard { target: Arc::clone(target), event, token, notices: Arc::clone(&self.notices) }
    }

    /// Ends the delivery's lease, even while its guard lives.
    pub(super) fn end(&mut self, target: &str, event: EventId) {
        if let Some(events) = self.outstanding.get_mut(target) {
            events.remove(&event);
        }
    }

    /// Marks the delivery's lease as cancelled. It remains outstanding until its guard is dropped.
    pub(super) fn revoke(&mut self, target: &str, event: EventId) {
        if let Some(token) = self.outstanding.get(target).and_then(|events| events.get(&event)) {
            self.notices.lock().revoked.insert(*token);
        }
    }

    /// Whether the delivery is being attempted.
    pub(super) fn contains(&self, target: &str, event: EventId) -> bool {
        self.outstanding.get(target).is_some_and(|events| events.contains_key(&event))
    }

    /// How many leases of the target are outstanding.
    pub(super) fn count(&self, target: &str) -> usize {
        self.outstanding.get(target).map_or(0, HashMap::len)
    }

    /// Ends the leases whose guards were dropped unsettled; returns their targets.
    pub(super) fn reclaim_dropped(&mut self) -> Vec<Arc<str>> {
        let returned = mem::take(&mut self.notices.lock().returned);
        let mut targets = Vec::new();
        for (target, event, token) in returned {
            if let Some(events) = self.outstanding.get_mut(&target)
                && events.get(&event) == Some(&token)
            {
                events.remove(&event);
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

    #[test]
    fn a_dropped_lease_frees_its_delivery() {
        let mut table = LeaseTable::default();
        let target: Arc<str> = "crm".into();
        let guard = table.grant(&target, EventId(1));
        assert!(table.contains("crm", EventId(1)));
        drop(guard);
        assert_eq!(table.reclaim_dropped(), [Arc::clone(&target)]);
        assert_eq!(table.count("crm"), 0);
    }

    #[test]
    fn a_revoked_lease_says_so_and_stays_out_until_it_is_dropped() {
        let mut table = LeaseTable::default();
        let target: Arc<str> = "crm".into();
        let (guard, other) = (table.grant(&target, EventId(1)), table.grant(&target, EventId(2)));
        table.revoke("crm", EventId(1));
        table.revoke("crm", EventId(7));
        assert!(guard.is_revoked() && !other.is_revoked() && table.contains("crm", EventId(1)));
        drop(guard);
        assert_eq!(table.reclaim_dropped(), [Arc::clone(&target)]);
        assert!(!table.grant(&target, EventId(1)).is_revoked(), "a new lease is a new right");
    }

    #[test]
    fn a_late_drop_does_not_end_the_next_lease_of_the_same_delivery() {
        let mut table = LeaseTable::default();
        let target: Arc<str> = "crm".into();
        let first = table.grant(&target, EventId(1));
        table.end("crm", EventId(1));
        let _second = table.grant(&target, EventId(1));
        drop(first);
        assert!(table.reclaim_dropped().is_empty());
        assert!(table.contains("crm", EventId(1)));
    }
}
