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
    longest_attempts: Mutex<HashMap<Arc<str>, Duration>>,
}

#[derive(Debug)]
struct InboxSender {
    fresh: mpsc::Sender<Lease>,
    awaited: mpsc::Sender<Lease>,
    wake: Arc<Notify>,
    /// Whether leases come in: not while the target is down.
    accepts: bool,
    /// How many fresh leases may wait.
    room: usize,
}

impl InboxSender {
    /// Where such a lease goes, if there is room for it.
    fn sender(&self, is_awaited: bool) -> Option<&mpsc::Sender<Lease>> {
        if is_awaited {
            return Some(&self.awaited);
        }
        let waiting = self.fresh.max_capacity() - self.fresh.capacity();
        (waiting < self.room).then_some(&self.fresh)
    }
}

impl Inboxes {
    /// A new inbox for the target; an earlier one is closed.
    pub(super) fn open(&self, target: Arc<str>, capacity: usize) -> Inbox {
        let (fresh, fresh_inbox) = mpsc::channel(capacity.max(1));
        let (awaited, awaited_inbox) = mpsc::channel(capacity.max(1));
        let wake = Arc::new(Notify::new());
        // There may be pending deliveries from before.
        wake.notify_one();
        let sender = InboxSender { fresh, awaited, wake: Arc::clone(&wake), accepts: true, room: usize::MAX };
        self.lock().insert(target, sender);
        Inbox { fresh: fresh_inbox, awaited: awaited_inbox, wake }
    }

    /// Whether a user's events go to the target one after the other.
    pub(super) fn in_order(&self, target: &str) -> bool {
        self.in_order.lock().contains(target)
    }

    /// How many targets keep order.
    pub(super) fn count_in_order(&self) -> usize {
        self.in_order.lock().len()
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

    /// Sets the longest that an attempt at the target takes.
    pub(super) fn bound_attempts(&self, target: &Arc<str>, longest: Duration) {
        self.longest_attempts.lock().insert(Arc::clone(target), longest);
    }

    /// The targets whose attempts are bounded.
    #[cfg(test)]
    pub(super) fn bounded_targets(&self) -> Vec<Arc<str>> {
        let mut targets: Vec<_> = self.longest_attempts.lock().keys().cloned().collect();
        targets.sort_unstable();
        targets
    }

    /// The longest that an attempt at the target takes; `None` if it is not known.
    pub(super) fn longest_attempt(&self, target: &str) -> Option<Duration> {
        self.longest_attempts.lock().get(target).copied()
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

    /// A place in the target's inbox, if it has one and is not full.
    pub(super) fn reserve(&self, target: &str, is_awaited: bool) -> Option<mpsc::OwnedPermit<Lease>> {
        let inboxes = self.lock();
        let inbox = inboxes.get(target).filter(|inbox| inbox.accepts)?;
        inbox.sender(is_awaited)?.clone().try_reserve_owned().ok()
    }

    /// Puts the lease into its target's inbox. Returns it if there is none, or it is full.
    pub(super) fn offer(&self, lease: Lease) -> Option<Lease> {
        let inboxes = self.lock();
        let Some(inbox) = inboxes.get(&lease.target).filter(|inbox| inbox.accepts) else { return Some(lease) };
        let Some(sender) = inbox.sender(lease.reply.is_some()) else { return Some(lease) };
        sender.try_send(lease).err().map(mpsc::error::TrySendError::into_inner)
    }

    /// Sets whether fresh leases come into the target's inbox.
    pub(super) fn set_accepting(&self, target: &str, accepts: bool) {
        if let Some(inbox) = self.lock().get_mut(target) {
            inbox.accepts = accepts;
        }
    }

    /// Sets how many fresh leases may wait in the target's inbox, besides its capacity.
    pub(super) fn set_room(&self, target: &str, room: usize) {
        if let Some(inbox) = self.lock().get_mut(target) {
            inbox.room = room;
        }
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
