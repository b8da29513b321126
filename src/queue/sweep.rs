//! Operator actions on many deliveries or events at once: which ones, and the action.
//!
//! A sweep goes forward by event id, in steps so short that pushes hardly wait for one. It never returns to an event
//! that it has passed, so it ends even if deliveries behind it change again. An interrupted sweep continues from the
//! last step's [`SweepProgress::next`].

use std::sync::Arc;

use super::{DeliveryState, Error, EventFilter, Queue};
use crate::clock::UnixMillis;
use crate::event::EventId;
use crate::queue::on_engine;

/// A change of many deliveries.
#[derive(Clone, Debug)]
pub struct Sweep {
    /// Which deliveries: `target` and `state` are compared with the delivery, the rest with its event. `before` and
    /// `limit` are for lists and are ignored here.
    pub filter: EventFilter,
    /// Only deliveries of these events.
    pub events: Option<Vec<EventId>>,
    /// What happens to them.
    pub action: SweepAction,
}

/// What a [`Sweep`] does to its deliveries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SweepAction {
    /// Ended deliveries become pending: due at once, with a restarted retry schedule. The records of their attempts are
    /// kept.
    Replay,
    /// The events are delivered to this target, for the first time or again; a delivery that is pending there does not
    /// change. If the filter names neither target nor state, events without any delivery are included.
    ReplayTo(Arc<str>),
    /// Pending and dead deliveries become cancelled.
    Drop,
    /// Pending deliveries become cancelled, and this target gets one in their place, unless the event has a delivery
    /// for it already: a cancelled one becomes pending again, as for [`SweepAction::Replay`], and others stay.
    Redirect(Arc<str>),
    /// The events are deleted with all that belongs to them, whatever the state of their deliveries; pending ones are
    /// cancelled first. If the filter names neither target nor state, events without any delivery are included.
    Forget,
}

/// What one step of a [`Sweep`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SweepProgress {
    /// How many deliveries changed; of [`SweepAction::Forget`], how many events were deleted.
    pub changed: u64,
    /// The next step continues behind this event. `None` at the end.
    pub next: Option<EventId>,
}

impl Sweep {
    /// Dead letters of a target: all, or those of these events.
    pub fn dead(target: &str, events: Option<Vec<EventId>>, action: SweepAction) -> Self {
        Self { events, ..Self::of(target, DeliveryState::Dead, action) }
    }

    /// The pending deliveries of a target.
    pub fn pending(target: &str, action: SweepAction) -> Self {
        Self::of(target, DeliveryState::Pending, action)
    }

    fn of(target: &str, state: DeliveryState, action: SweepAction) -> Self {
        let filter = EventFilter { target: Some(target.to_owned()), state: Some(state), ..EventFilter::default() };
        Self { filter, events: None, action }
    }
}

impl Queue {
    /// Makes the next step of a sweep, behind `after`, or from the beginning.
    ///
    /// # Errors
    /// If the step could not be stored; earlier steps remain stored.
    pub async fn sweep(
        &self,
        sweep: &Arc<Sweep>,
        after: Option<EventId>,
        now: UnixMillis,
    ) -> Result<SweepProgress, Error> {
        on_engine!(self, engine => engine.sweep(sweep, after.unwrap_or(EventId(0)), now).await)
    }

    /// Erases deleted data from the store's files: from unused pages and from the log.
    ///
    /// # Errors
    /// If it could not be written; [`Error::Busy`] if readers keep the log in use all the time. Another call continues.
    pub async fn wipe(&self) -> Result<(), Error> {
        on_engine!(self, engine => engine.wipe().await)
    }

    /// Makes all steps of a sweep. Returns the sum of [`SweepProgress::changed`].
    ///
    /// # Errors
    /// As for [`Queue::sweep`].
    pub async fn sweep_all(&self, sweep: Sweep, now: UnixMillis) -> Result<u64, Error> {
        let (sweep, mut total, mut after) = (Arc::new(sweep), 0, None);
        loop {
            let swept = self.sweep(&sweep, after, now).await?;
            total += swept.changed;
            match swept.next {
                Some(next) => after = Some(next),
                None => return Ok(total),
            }
        }
    }
}
