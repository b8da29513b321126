//! Pushes in progress: a retry that arrives while the first try is still being processed joins it (singleflight).
//!
//! WeChat retries after 5 s and shows a reply to any of its tries (protocol facts from SDK authors), so a retry that is
//! answered `success` at once would destroy the reply. The queue remembers finished pushes: this map has no more
//! entries than there are pushes in progress.
//!
//! The leader does not wait for the publishing of a result that it computes itself. The simple version, in which it was a
//! follower too, woke the connection's task once more for each push.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{PushError, RelayOutcome};
use crate::event::ContentKey;
use crate::trace::Trace;

/// How far a push has come.
enum Progress {
    /// It is not stored yet.
    Storing,
    /// It is stored, and its reply is awaited.
    AwaitingReply,
    /// `None` where it could not be relayed.
    Finished(Option<RelayOutcome>),
    /// The leader is gone without an outcome, as by a panic.
    Abandoned,
}

/// What the tries of one push share.
///
/// Not a `watch` channel, which has eight lists of waiters to go through at each change: 1,000 instructions per push.
struct Push {
    progress: Mutex<Progress>,
    /// Notified at the end of [`Self::progress`].
    ended: Notify,
}

/// The pushes in progress, by content.
#[derive(Clone, Default)]
pub(super) struct Inflight(Arc<Mutex<HashMap<ContentKey, Follower>>>);

/// The role of a try in its push.
pub(super) enum Joined {
    /// The first of its content: it has to relay the push. It can also follow its own relaying.
    Leader(Leader, Follower),
    /// A retry of a push in progress.
    Follower(Follower),
}

/// The duty to publish the outcome, which ends with it.
pub(super) struct Leader {
    inflight: Inflight,
    key: ContentKey,
    push: Arc<Push>,
}

/// One try's view of its push.
#[derive(Clone)]
pub(super) struct Follower {
    push: Arc<Push>,
    /// When the first try arrived.
    pub(super) first_arrival: Instant,
    /// The trace that the first try began.
    pub(super) trace: Trace,
    /// When the reply window ends; `None` without one.
    pub(super) window_ends: Option<Instant>,
    /// Cancelled when WeChat is to be answered now, without waiting for a reply. Any try may cancel it; the relaying
    /// watches it.
    pub(super) answer_now: CancellationToken,
}

impl Inflight {
    /// Joins the push of this content, or begins it.
    pub(super) fn join(&self, key: ContentKey, trace: Trace, window_ends: Option<Instant>) -> Joined {
        let mut pushes = self.0.lock();
        if let Some(follower) = pushes.get(&key) {
            return Joined::Follower(follower.clone());
        }
        let push = Arc::new(Push { progress: Mutex::new(Progress::Storing), ended: Notify::new() });
        let (first_arrival, answer_now) = (Instant::now(), CancellationToken::new());
        let follower = Follower { push: push.clone(), first_arrival, trace, window_ends, answer_now };
        pushes.insert(key, follower.clone());
        Joined::Leader(Leader { inflight: self.clone(), key, push }, follower)
    }
}

impl Leader {
    pub(super) fn key(&self) -> ContentKey {
        self.key
    }

    /// Publishes that the push is stored, and that only its reply is awaited.
    pub(super) fn await_reply(&self) {
        *self.push.progress.lock() = Progress::AwaitingReply;
    }

    /// Publishes the outcome to the followers.
    pub(super) fn finish(self, outcome: Option<RelayOutcome>) {
        *self.push.progress.lock() = Progress::Finished(outcome);
    }
}

impl Drop for Leader {
    fn drop(&mut self) {
        self.inflight.0.lock().remove(&self.key);
        let mut progress = self.push.progress.lock();
        if !matches!(*progress, Progress::Finished(_)) {
            *progress = Progress::Abandoned;
        }
        drop(progress);
        self.push.ended.notify_waiters();
    }
}

impl Follower {
    /// Waits for the outcome of the push, as another try sees it.
    pub(super) async fn outcome(self) -> Result<RelayOutcome, PushError> {
        loop {
            // First, so that an end after the look is not missed.
            let ended = self.push.ended.notified();
            match &*self.push.progress.lock() {
                Progress::Finished(Some(outcome)) => return Ok(outcome.clone()),
                Progress::Finished(None) => return Err(PushError::Unavailable),
                Progress::Abandoned => return Err(PushError::Internal),
                Progress::Storing | Progress::AwaitingReply => {}
            }
            ended.await;
        }
    }

    /// Whether the push is stored, and only its reply is awaited.
    pub(super) fn awaits_reply(&self) -> bool {
        matches!(*self.push.progress.lock(), Progress::AwaitingReply)
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

    fn outcome() -> RelayOutcome {
        RelayOutcome { event: EventId(1), result: "accepted", reply: Some("hello".into()) }
    }

    fn leader_and_follower(inflight: &Inflight) -> (Leader, Follower) {
        let Joined::Leader(leader, _) = inflight.join(KEY, trace(), None) else { panic!("no push is in progress") };
        let Joined::Follower(follower) = inflight.join(KEY, trace(), None) else { panic!("the first is in progress") };
        (leader, follower)
    }

    #[tokio::test]
    async fn a_follower_gets_the_leaders_outcome_and_the_next_try_leads() {
        let inflight = Inflight::default();
        let (leader, follower) = leader_and_follower(&inflight);
        leader.finish(Some(outcome()));
        assert_eq!(follower.outcome().await.unwrap().reply.as_deref(), Some("hello"));
        assert!(matches!(inflight.join(KEY, trace(), None), Joined::Leader(..)));
    }

    #[tokio::test]
    async fn a_leader_that_vanishes_leaves_no_follower_waiting() {
        let (leader, follower) = leader_and_follower(&Inflight::default());
        drop(leader);
        assert!(matches!(follower.outcome().await, Err(PushError::Internal)));
    }
}
