//! Pushes under way: a retry that arrives while the first try is still being worked on joins it.
//!
//! WeChat tries again after 5 s and shows a reply to any of its tries (protocol facts from SDK authors), so a retry that
//! were answered `success` at once would destroy the reply. What has landed is the queue's to remember, not ours: the
//! map holds no more entries than there are pushes under way.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{PushError, Relayed};
use crate::event::ContentKey;
use crate::trace::Trace;

/// How far a push has come.
enum Progress {
    /// It is not stored yet.
    Taken,
    /// It is stored, and a target is asked for the reply.
    Asking,
    /// What it came to; `None` where it could not be relayed.
    Landed(Option<Relayed>),
}

/// The pushes under way, by content.
#[derive(Clone, Default)]
pub(super) struct Flights(Arc<Mutex<HashMap<ContentKey, Seat>>>);

/// How a push goes on.
pub(super) enum Flight {
    /// It is the first of its content, and has to be relayed.
    First(Landing, Seat),
    /// Its twin is under way.
    Twin(Seat),
}

/// The duty to say how it ended; dropping it says so too.
pub(super) struct Landing {
    flights: Flights,
    key: ContentKey,
    progress: watch::Sender<Progress>,
}

/// The place of one try, from which it sees how the push ends.
#[derive(Clone)]
pub(super) struct Seat {
    progress: watch::Receiver<Progress>,
    /// When the first try was there.
    pub(super) boarded: Instant,
    /// The trace that the first try began.
    pub(super) trace: Trace,
    /// When its reply window ends, if it has one.
    pub(super) window_ends: Option<Instant>,
    /// Ends the waiting for a reply: WeChat is to be answered now.
    pub(super) hurry: CancellationToken,
}

impl Flights {
    pub(super) fn board(&self, key: ContentKey, trace: Trace, window_ends: Option<Instant>) -> Flight {
        let mut flights = self.0.lock();
        if let Some(seat) = flights.get(&key) {
            return Flight::Twin(seat.clone());
        }
        let (tell, progress) = watch::channel(Progress::Taken);
        let (boarded, hurry) = (Instant::now(), CancellationToken::new());
        let seat = Seat { progress, boarded, trace, window_ends, hurry };
        flights.insert(key, seat.clone());
        Flight::First(Landing { flights: self.clone(), key, progress: tell }, seat)
    }
}

impl Landing {
    pub(super) fn key(&self) -> ContentKey {
        self.key
    }

    /// From here on it is only the reply that is waited for.
    pub(super) fn ask(&self) {
        self.progress.send_replace(Progress::Asking);
    }

    pub(super) fn land(self, relayed: Option<Relayed>) {
        self.progress.send_replace(Progress::Landed(relayed));
    }
}

impl Drop for Landing {
    fn drop(&mut self) {
        self.flights.0.lock().remove(&self.key);
    }
}

impl Seat {
    /// What the push comes to, as another try sees it.
    pub(super) async fn landed(mut self) -> Result<Relayed, PushError> {
        let has_landed = |progress: &Progress| matches!(progress, Progress::Landed(_));
        let progress = self.progress.wait_for(has_landed).await.map_err(|_| PushError::Internal)?;
        match &*progress {
            Progress::Landed(Some(relayed)) => Ok(relayed.clone()),
            Progress::Landed(None) | Progress::Taken | Progress::Asking => Err(PushError::Unavailable),
        }
    }

    /// Whether it is stored, and nothing is missing but the reply.
    pub(super) fn awaits_reply(&self) -> bool {
        matches!(*self.progress.borrow(), Progress::Asking)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::EventId;

    const KEY: ContentKey = ContentKey([7; 24]);

    fn trace() -> Trace {
        Trace::new(EventId(1), None)
    }

    fn relayed() -> Relayed {
        Relayed { event: EventId(1), result: "accepted", reply: Some("hello".into()) }
    }

    #[tokio::test]
    async fn a_twin_gets_what_the_first_got_and_the_next_flies_alone() {
        let flights = Flights::default();
        let Flight::First(landing, _) = flights.board(KEY, trace(), None) else { panic!("nobody is under way") };
        let Flight::Twin(twin) = flights.board(KEY, trace(), None) else { panic!("the first is under way") };
        landing.land(Some(relayed()));
        assert_eq!(twin.landed().await.unwrap().reply.as_deref(), Some("hello"));
        assert!(matches!(flights.board(KEY, trace(), None), Flight::First(..)));
    }

    #[tokio::test]
    async fn a_first_that_vanishes_leaves_no_twin_waiting() {
        let flights = Flights::default();
        let Flight::First(landing, _) = flights.board(KEY, trace(), None) else { panic!("nobody is under way") };
        let Flight::Twin(twin) = flights.board(KEY, trace(), None) else { panic!("the first is under way") };
        drop(landing);
        assert!(matches!(twin.landed().await, Err(PushError::Internal)));
    }
}
