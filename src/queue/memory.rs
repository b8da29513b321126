//! How many bytes of events wait in memory for targets, and which target may take more.
//!
//! A lease holds its event from the inbox until the attempt is settled. A bound on the number of leases bounds no
//! memory, as an event may have 16 MiB. What does not fit waits in the store, and is leased when there is space.
//!
//! A target may take more only while it holds less than is free (the dynamic threshold of switches with shared memory,
//! Choudhury and Hahne 1998). One target that hangs so takes at most a half, two take a third each, and some space is
//! always free for the others, without a fixed share that is idle while its owner is. Two exceptions: a target that
//! holds nothing may take one event, whatever its size, so that none starves; a lease whose reply is awaited needs only
//! free space.
//!
//! Only the writer takes, so its check and its addition need not be one step: meanwhile others only release.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// The bytes of all targets. Counters only: no other memory is published with them.
#[derive(Debug)]
pub(super) struct MemoryBudget {
    limit: u64,
    used: AtomicU64,
}

impl MemoryBudget {
    pub(super) fn new(limit: u64) -> Arc<Self> {
        Arc::new(Self { limit, used: AtomicU64::new(0) })
    }

    /// How much is used, and the limit.
    pub(super) fn usage(&self) -> MemoryUsage {
        MemoryUsage { used: self.used.load(Ordering::Relaxed), limit: self.limit }
    }

    fn free(&self) -> u64 {
        self.limit.saturating_sub(self.used.load(Ordering::Relaxed))
    }
}

/// The bytes that wait in memory for targets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoryUsage {
    /// The estimated size of the leased events, each counted for each of its targets.
    pub used: u64,
    /// `queue.max_memory`.
    pub limit: u64,
}

/// The bytes of one target.
#[derive(Debug)]
pub(super) struct TargetMemory {
    budget: Arc<MemoryBudget>,
    held: AtomicU64,
}

impl TargetMemory {
    pub(super) fn new(budget: &Arc<MemoryBudget>) -> Arc<Self> {
        Arc::new(Self { budget: Arc::clone(budget), held: AtomicU64::new(0) })
    }

    /// Whether the target may take this much; `is_awaited` if WeChat waits for its reply.
    pub(super) fn allows(&self, bytes: u64, is_awaited: bool) -> bool {
        let (held, free) = (self.held.load(Ordering::Relaxed), self.budget.free());
        held == 0 || bytes <= if is_awaited { free } else { free.saturating_sub(held) }
    }

    /// Takes this much until the result is dropped.
    pub(super) fn take(self: &Arc<Self>, bytes: u64) -> MemoryHold {
        self.held.fetch_add(bytes, Ordering::Relaxed);
        self.budget.used.fetch_add(bytes, Ordering::Relaxed);
        MemoryHold { memory: Arc::clone(self), bytes }
    }
}

/// What a lease takes of the budget while it lives.
#[derive(Debug)]
pub(super) struct MemoryHold {
    memory: Arc<TargetMemory>,
    bytes: u64,
}

impl Drop for MemoryHold {
    fn drop(&mut self) {
        self.memory.held.fetch_sub(self.bytes, Ordering::Relaxed);
        self.memory.budget.used.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes as much as it may, in parts of 1; returns what it holds.
    fn fill(memory: &Arc<TargetMemory>) -> Vec<MemoryHold> {
        let mut holds = Vec::new();
        while memory.allows(1, false) {
            holds.push(memory.take(1));
        }
        holds
    }

    #[test]
    fn targets_that_hang_share_what_there_is_and_leave_some() {
        let budget = MemoryBudget::new(1200);
        let targets: Vec<_> = (0..3).map(|_| TargetMemory::new(&budget)).collect();
        let first = fill(&targets[0]);
        assert_eq!(first.len(), 600, "one of them a half");
        let second = fill(&targets[1]);
        assert_eq!(second.len(), 300, "the next a half of the rest");
        drop(first);
        drop(second);
        assert_eq!(budget.usage(), MemoryUsage { used: 0, limit: 1200 });
    }

    #[test]
    fn a_target_that_holds_nothing_may_take_one_event_of_any_size() {
        let budget = MemoryBudget::new(100);
        let (hog, other) = (TargetMemory::new(&budget), TargetMemory::new(&budget));
        assert!(hog.allows(5000, false));
        let hold = hog.take(5000);
        assert!(!hog.allows(1, false) && !hog.allows(1, true));
        assert!(other.allows(5000, false));
        drop(hold);
        assert!(hog.allows(50, false));
    }

    #[test]
    fn an_awaited_lease_needs_free_space_only() {
        let budget = MemoryBudget::new(100);
        let target = TargetMemory::new(&budget);
        let _held = target.take(60);
        assert!(!target.allows(10, false) && target.allows(40, true) && !target.allows(41, true));
    }
}
