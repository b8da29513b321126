//! Events whose reply was awaited when an earlier process ended: their first deliveries are leased again with a place
//! for the reply, so that WeChat's next try gets it.

use std::sync::Arc;

use crate::clock::UnixMillis;
use crate::event::{ContentKey, Event};
use crate::queue::on_engine;
use crate::queue::{AwaitedReply, Error, Lease, Queue};

/// A stored event with a delivery that was never attempted to its end.
#[derive(Debug)]
pub struct Unanswered {
    /// The event.
    pub event: Arc<Event>,
    /// Its content key.
    pub key: ContentKey,
    /// The clear reply that is stored with it.
    pub reply: Option<String>,
}

impl Queue {
    /// The newest events since that moment that have such a delivery, the newest first: at most about a thousand, and
    /// no more than fit into some memory.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub async fn unanswered(&self, since: UnixMillis) -> Result<Vec<Unanswered>, Error> {
        on_engine!(self, engine => engine.unanswered(since).await)
    }

    /// Leases the deliveries of an event to these targets whose first attempt is due and has not ended.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub async fn lease_awaited(
        &self,
        event: Arc<Event>,
        awaited: Vec<(Arc<str>, AwaitedReply)>,
    ) -> Result<Vec<Lease>, Error> {
        on_engine!(self, engine => engine.lease_awaited(event, awaited).await)
    }

    /// Puts the lease into its target's inbox; without one, or if it is full, the delivery waits in the store.
    pub fn hand_over(&self, lease: Lease) {
        on_engine!(self, engine => engine.hand_over(lease))
    }
}
