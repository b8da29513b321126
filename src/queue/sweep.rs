//! What an operator does to many deliveries or events at once: which ones, and what becomes of them.
//!
//! A sweep goes forward by event id, in steps that are short for who pushes meanwhile. What it has passed it does not
//! meet again, so it ends, whatever becomes of the deliveries behind it; and one that was interrupted goes on from the
//! last step's [`Swept::next`].

use std::sync::Arc;

use super::{DeliveryState, Error, EventFilter, Queue};
use crate::clock::UnixMillis;
use crate::event::EventId;

/// A change of many deliveries.
#[derive(Clone, Debug)]
pub struct Sweep {
    /// Which deliveries: `target` and `state` are their own, the rest is their event's. `before` and `limit` are for
    /// lists, and mean nothing here.
    pub filter: EventFilter,
    /// Only those of these events.
    pub events: Option<Vec<EventId>>,
    /// What becomes of them.
    pub fate: Fate,
}

/// What becomes of the deliveries of a [`Sweep`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fate {
    /// Those that have ended become pending: due at once, their retry schedule started over, their attempts kept.
    Replayed,
    /// Their events are delivered to this target, for the first time or again; a delivery pending there is left alone.
    /// If the filter names neither target nor state, events without any delivery are meant too.
    ReplayedTo(Arc<str>),
    /// Those that are pending or dead become cancelled.
    Dropped,
    /// Those that are pending become cancelled, and this target has one in their place, unless their event has one for
    /// it already.
    Redirected(Arc<str>),
    /// Their events are deleted with all that belongs to them, whatever has become of it; what is pending is cancelled
    /// first. If the filter names neither target nor state, events without any delivery are meant too.
    Forgotten,
}

/// What one step of a [`Sweep`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Swept {
    /// How many deliveries changed; of [`Fate::Forgotten`], how many events are gone.
    pub changed: u64,
    /// Where the next step goes on: behind this event. `None` at the end.
    pub next: Option<EventId>,
}

impl Sweep {
    /// Dead letters of a target: all, or those of these events.
    pub fn dead(target: &str, events: Option<Vec<EventId>>, fate: Fate) -> Self {
        Self { events, ..Self::of(target, DeliveryState::Dead, fate) }
    }

    /// What waits for a target.
    pub fn pending(target: &str, fate: Fate) -> Self {
        Self::of(target, DeliveryState::Pending, fate)
    }

    fn of(target: &str, state: DeliveryState, fate: Fate) -> Self {
        let filter = EventFilter { target: Some(target.to_owned()), state: Some(state), ..EventFilter::default() };
        Self { filter, events: None, fate }
    }
}

impl Queue {
    /// Makes the next step of a sweep, behind `after`; from the beginning without it.
    ///
    /// # Errors
    /// If it could not be stored; the steps before it stand.
    pub async fn sweep(&self, sweep: &Arc<Sweep>, after: Option<EventId>, now: UnixMillis) -> Result<Swept, Error> {
        match self {
            Self::Embedded(engine) => engine.sweep(sweep, after.unwrap_or(EventId(0)), now).await,
        }
    }

    /// Makes the store's files hold nothing of what was forgotten before: neither in unused pages nor in the log.
    ///
    /// # Errors
    /// If it could not be written; [`Error::Busy`] if somebody reads the store all the time. Trying again goes on.
    pub async fn wipe(&self) -> Result<(), Error> {
        match self {
            Self::Embedded(engine) => engine.wipe().await,
        }
    }

    /// Makes all steps of a sweep. Returns how much changed.
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
