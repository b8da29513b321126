//! Fresh leases: they have a place in their target's inbox before the push is stored, and are handed over in memory.

use std::sync::Arc;

use tokio::sync::mpsc;

use super::ModelReplica;
use super::store::Appended;
use crate::clock::UnixMillis;
use crate::queue::lease_table::LeaseGuard;
use crate::queue::{Enqueued, Known, Lease, NewEvent};

/// A place in a target's inbox, with the memory that the event takes there.
pub(super) struct Place {
    permit: mpsc::OwnedPermit<Lease>,
    guard: LeaseGuard,
}

impl ModelReplica {
    pub(super) fn reserve_places(&self, new: &NewEvent) -> Vec<Option<Place>> {
        let place = |target: &Arc<str>| {
            if self.is_fenced() {
                return None;
            }
            let is_awaited = new.awaited.iter().any(|(awaited, _)| awaited == target);
            let permit = self.inboxes.reserve(target, is_awaited)?;
            let guard = self.leases.lock().reserve(target, &new.event, is_awaited)?;
            Some(Place { permit, guard })
        };
        new.targets.iter().map(place).collect()
    }

    pub(super) fn release_places(&self, places: Vec<Option<Place>>) {
        places.into_iter().flatten().for_each(|place| self.leases.lock().drop_guard(place.guard));
    }

    /// Hands fresh leases over in memory.
    pub(super) fn finish(&self, mut new: NewEvent, places: Vec<Option<Place>>, appended: Appended) -> Enqueued {
        let free = match appended {
            Appended::Fresh(free) => free,
            Appended::Duplicate { id, reply, asking } => {
                self.release_places(places);
                let asking = asking.map(|left| Known::Asking(UnixMillis::now().after(left)));
                return Enqueued::Duplicate { id, reply: asking.unwrap_or(Known::Answered(reply)) };
            }
        };
        for (target, place) in new.targets.iter().zip(places) {
            match place {
                Some(Place { permit, guard }) if !free.contains(target) && self.leases.lock().confirm(&guard) => {
                    let awaited = new.awaited.iter().position(|(awaited, _)| awaited == target);
                    let reply = awaited.map(|place| new.awaited.swap_remove(place).1);
                    let (event, target) = (Arc::clone(&new.event), Arc::clone(target));
                    permit.send(Lease { event, target, attempt: 1, failures: 0, reply, guard });
                }
                Some(place) => {
                    self.leases.lock().drop_guard(place.guard);
                    self.inboxes.wake(target);
                }
                None => self.inboxes.wake(target),
            }
        }
        Enqueued::Fresh
    }
}
