//! The targets' inboxes: leases of fresh events go there in memory, without a read of the store; and which targets keep
//! order.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::{Notify, mpsc};

use crate::queue::{DeliveryOrder, Inbox, Lease};

/// The sending end of every subscribed inbox.
#[derive(Debug, Default)]
pub(super) struct Inboxes {
    senders: Mutex<BTreeMap<Arc<str>, InboxSender>>,
    in_order: Mutex<HashSet<Arc<str>>>,
    longest_waits: Mutex<HashMap<Arc<str>, Duration>>,
}

#[derive(Debug)]
struct InboxSender {
    fresh: mpsc::Sender<Lease>,
    awaited: mpsc::Sender<Lease>,
    wake: Arc<Notify>,
}

impl Inboxes {
    /// A new inbox for the target; an earlier one is closed.
    pub(super) fn open(&self, target: Arc<str>, capacity: usize) -> Inbox {
        let (fresh, fresh_inbox) = mpsc::channel(capacity.max(1));
        let (awaited, awaited_inbox) = mpsc::channel(capacity.max(1));
        let wake = Arc::new(Notify::new());
        // There may be pending deliveries from before.
        wake.notify_one();
        self.lock().insert(target, InboxSender { fresh, awaited, wake: Arc::clone(&wake) });
        Inbox { fresh: fresh_inbox, awaited: awaited_inbox, wake }
    }

    /// Whether a user's events go to the target one after the other.
    pub(super) fn in_order(&self, target: &str) -> bool {
        self.in_order.lock().contains(target)
    }

    pub(super) fn keep_order(&self, target: &Arc<str>, order: DeliveryOrder) {
        let mut in_order = self.in_order.lock();
        match order {
            DeliveryOrder::None => drop(in_order.remove(target)),
            DeliveryOrder::PerUser => drop(in_order.insert(Arc::clone(target))),
        }
    }

    pub(super) fn bound_waits(&self, target: &Arc<str>, longest: Duration) {
        self.longest_waits.lock().insert(Arc::clone(target), longest);
    }

    /// The longest wait that the target's retries have; `None` if it is not known.
    pub(super) fn longest_wait(&self, target: &str) -> Option<Duration> {
        self.longest_waits.lock().get(target).copied()
    }

    /// Closes the target's inbox.
    pub(super) fn close(&self, target: &str) {
        self.lock().remove(target);
    }

    /// Closes them all.
    pub(super) fn close_all(&self) {
        self.lock().clear();
    }

    /// Puts the lease into its target's inbox, unless there is none or it is full.
    pub(super) fn offer(&self, lease: Lease) -> Result<(), Lease> {
        let inboxes = self.lock();
        let Some(inbox) = inboxes.get(&lease.target) else { return Err(lease) };
        let sender = if lease.reply.is_some() { &inbox.awaited } else { &inbox.fresh };
        sender.try_send(lease).map_err(mpsc::error::TrySendError::into_inner)
    }

    /// Wakes the target's consumer: there may be something to lease.
    pub(super) fn wake(&self, target: &str) {
        if let Some(inbox) = self.lock().get(target) {
            inbox.wake.notify_one();
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Arc<str>, InboxSender>> {
        self.senders.lock()
    }
}
