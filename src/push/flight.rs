//! Pushes under way: a retry that arrives while the first try is still being worked on joins it.
//!
//! WeChat tries again after 5 s and shows a reply to any of its tries (protocol facts from SDK authors), so a retry that
//! were answered `success` at once would destroy the reply. What has landed is the queue's to remember, not ours: the
//! map holds no more entries than there are pushes under way.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::watch;

use super::Relayed;
use crate::event::ContentKey;

/// `None` while under way, then what it came to; `Some(None)` where it could not be relayed.
type Landed = Option<Option<Relayed>>;

/// The pushes under way, by content.
#[derive(Clone, Default)]
pub(super) struct Flights(Arc<Mutex<HashMap<ContentKey, watch::Receiver<Landed>>>>);

/// How a push goes on.
pub(super) enum Flight {
    /// It is the first of its content.
    First(Landing),
    /// Its twin is under way.
    Twin(Twin),
}

/// The duty to say how it ended; dropping it says so too.
pub(super) struct Landing {
    flights: Flights,
    key: ContentKey,
    result: watch::Sender<Landed>,
}

/// Waits for the first.
pub(super) struct Twin(watch::Receiver<Landed>);

impl Flights {
    pub(super) fn board(&self, key: ContentKey) -> Flight {
        let mut flights = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(first) = flights.get(&key) {
            return Flight::Twin(Twin(first.clone()));
        }
        let (result, landed) = watch::channel(None);
        flights.insert(key, landed);
        Flight::First(Landing { flights: self.clone(), key, result })
    }
}

impl Landing {
    pub(super) fn land(self, relayed: Option<Relayed>) {
        self.result.send_replace(Some(relayed));
    }
}

impl Drop for Landing {
    fn drop(&mut self) {
        self.flights.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.key);
    }
}

impl Twin {
    /// What the first came to; `None` if it could not be relayed.
    pub(super) async fn landed(mut self) -> Option<Relayed> {
        self.0.wait_for(Option::is_some).await.ok().and_then(|landed| landed.clone().flatten())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::EventId;

    const KEY: ContentKey = ContentKey([7; 24]);

    fn relayed() -> Relayed {
        Relayed { event: EventId(1), result: "accepted", reply: Some("hello".into()) }
    }

    #[tokio::test]
    async fn a_twin_gets_what_the_first_got_and_the_next_flies_alone() {
        let flights = Flights::default();
        let Flight::First(landing) = flights.board(KEY) else { panic!("nobody is under way") };
        let Flight::Twin(twin) = flights.board(KEY) else { panic!("the first is under way") };
        landing.land(Some(relayed()));
        assert_eq!(twin.landed().await.unwrap().reply.as_deref(), Some("hello"));
        assert!(matches!(flights.board(KEY), Flight::First(_)));
    }

    #[tokio::test]
    async fn a_first_that_vanishes_leaves_no_twin_waiting() {
        let flights = Flights::default();
        let Flight::First(landing) = flights.board(KEY) else { panic!("nobody is under way") };
        let Flight::Twin(twin) = flights.board(KEY) else { panic!("the first is under way") };
        drop(landing);
        assert!(twin.landed().await.is_none());
    }
}
