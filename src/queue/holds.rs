//! The leases that are out, in memory: which deliveries somebody is making an attempt at right now.
//!
//! Held by the engine's one writer, which alone grants and ends leases, so there is no race between the two. A
//! [`Hold`] travels in each lease; dropped before its delivery was settled, it hands the delivery back, so that no bug
//! or cancelled task of a consumer can keep one from ever being attempted again. Nothing here survives the process, and
//! nothing must: after a crash every pending delivery is free.

use std::collections::{HashMap, HashSet};
use std::mem;
use std::sync::Arc;

use parking_lot::{Mutex, MutexGuard};

use crate::event::EventId;

/// Which grant of a lease this is: the same delivery may be leased again later.
type Token = u64;

/// What holds and their holder tell each other.
#[derive(Debug, Default)]
struct Board {
    /// Dropped, not yet taken back.
    returned: Vec<(Arc<str>, EventId, Token)>,
    /// Worth nothing any more, not yet dropped.
    revoked: HashSet<Token>,
}

type SharedBoard = Arc<Mutex<Board>>;

/// Every lease that is out.
#[derive(Debug, Default)]
pub(super) struct Holds {
    out: HashMap<Arc<str>, HashMap<EventId, Token>>,
    last: Token,
    board: SharedBoard,
}

impl Holds {
    /// Marks the delivery as being attempted.
    pub(super) fn grant(&mut self, target: &Arc<str>, event: EventId) -> Hold {
        self.last += 1;
        self.out.entry(Arc::clone(target)).or_default().insert(event, self.last);
        Hold { target: Arc::clone(target), event, token: self.last, board: Arc::clone(&self.board) }
    }

    /// Ends the delivery's lease, whoever holds it.
    pub(super) fn end(&mut self, target: &str, event: EventId) {
        if let Some(events) = self.out.get_mut(target) {
            events.remove(&event);
        }
    }

    /// Tells whoever holds the delivery's lease that it was cancelled. It stays out until he gives it back.
    pub(super) fn revoke(&mut self, target: &str, event: EventId) {
        if let Some(token) = self.out.get(target).and_then(|events| events.get(&event)) {
            lock(&self.board).revoked.insert(*token);
        }
    }

    /// Whether the delivery is being attempted.
    pub(super) fn contains(&self, target: &str, event: EventId) -> bool {
        self.out.get(target).is_some_and(|events| events.contains_key(&event))
    }

    /// How many leases of the target are out.
    pub(super) fn count(&self, target: &str) -> usize {
        self.out.get(target).map_or(0, HashMap::len)
    }

    /// Ends the leases that were dropped unsettled; tells their targets.
    pub(super) fn take_back(&mut self) -> Vec<Arc<str>> {
        let returned = mem::take(&mut lock(&self.board).returned);
        let mut targets = Vec::new();
        for (target, event, token) in returned {
            if let Some(events) = self.out.get_mut(&target)
                && events.get(&event) == Some(&token)
            {
                events.remove(&event);
                targets.push(target);
            }
        }
        targets
    }
}

/// Keeps a lease out while it lives.
#[derive(Debug)]
pub(super) struct Hold {
    target: Arc<str>,
    event: EventId,
    token: Token,
    board: SharedBoard,
}

impl Hold {
    /// Whether the delivery was cancelled since the lease was granted.
    pub(super) fn is_revoked(&self) -> bool {
        lock(&self.board).revoked.contains(&self.token)
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        let mut board = lock(&self.board);
        board.revoked.remove(&self.token);
        board.returned.push((Arc::clone(&self.target), self.event, self.token));
    }
}

fn lock(board: &SharedBoard) -> MutexGuard<'_, Board> {
    board.lock()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dropped_lease_frees_its_delivery() {
        let mut holds = Holds::default();
        let target: Arc<str> = "crm".into();
        let hold = holds.grant(&target, EventId(1));
        assert!(holds.contains("crm", EventId(1)));
        drop(hold);
        assert_eq!(holds.take_back(), [Arc::clone(&target)]);
        assert_eq!(holds.count("crm"), 0);
    }

    #[test]
    fn a_revoked_lease_says_so_and_stays_out_until_it_is_dropped() {
        let mut holds = Holds::default();
        let target: Arc<str> = "crm".into();
        let (hold, other) = (holds.grant(&target, EventId(1)), holds.grant(&target, EventId(2)));
        holds.revoke("crm", EventId(1));
        holds.revoke("crm", EventId(7));
        assert!(hold.is_revoked() && !other.is_revoked() && holds.contains("crm", EventId(1)));
        drop(hold);
        assert_eq!(holds.take_back(), [Arc::clone(&target)]);
        assert!(!holds.grant(&target, EventId(1)).is_revoked(), "a new lease is a new right");
    }

    #[test]
    fn a_late_drop_does_not_end_the_next_lease_of_the_same_delivery() {
        let mut holds = Holds::default();
        let target: Arc<str> = "crm".into();
        let first = holds.grant(&target, EventId(1));
        holds.end("crm", EventId(1));
        let _second = holds.grant(&target, EventId(1));
        drop(first);
        assert!(holds.take_back().is_empty());
        assert!(holds.contains("crm", EventId(1)));
    }
}
