//! Leases, and where a target's consumer gets them.

use std::sync::Arc;

use tokio::sync::{Notify, mpsc};

use super::lease_table::LeaseGuard;
use super::replies::AwaitedReply;
use crate::clock::UnixMillis;
use crate::event::Event;

/// The right to make one attempt at a delivery.
#[derive(Debug)]
pub struct Lease {
    /// The event to deliver.
    pub event: Arc<Event>,
    /// The name of the target to deliver it to.
    pub target: Arc<str>,
    /// The number of this attempt, from 1.
    pub attempt: u32,
    /// How many attempts have failed since the retry schedule last started: the position in the schedule.
    pub failures: u32,
    /// Where the target's reply goes, if it is awaited.
    pub reply: Option<AwaitedReply>,
    /// Returns the delivery when the lease is dropped unsettled.
    pub(super) guard: LeaseGuard,
}

impl Lease {
    /// Whether an operator has cancelled the delivery since the lease was granted: then make no attempt.
    pub fn is_revoked(&self) -> bool {
        self.guard.is_revoked()
    }
}

/// What [`super::Queue::lease`] found.
#[derive(Debug, Default)]
pub struct Leases {
    /// The deliveries that are due, oldest first.
    pub due: Vec<Lease>,
    /// When the next delivery that is not leased becomes due, if there is one.
    pub next_due: Option<UnixMillis>,
    /// Whether more deliveries are due, but the target may not take more memory: lease again when one of its leases has
    /// ended.
    pub is_short_of_memory: bool,
}

/// A target's end of the queue, held by its one consumer.
#[derive(Debug)]
pub struct Inbox {
    /// Leases of fresh events.
    pub fresh: mpsc::Receiver<Lease>,
    /// Leases whose reply is awaited: in a channel of their own, so that no backlog delays them.
    pub awaited: mpsc::Receiver<Lease>,
    /// Notified when [`super::Queue::lease`] may return more, or earlier than it announced: the inbox was full, a delivery is
    /// to be retried, a lease was dropped, an operator made deliveries pending.
    pub wake: Arc<Notify>,
}
