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
use crate::queue::PushTries;
use crate::trace::Trace;

/// How often WeChat tries a push, by field reports; its page says once more. A reply to the last try is the last that the
/// user is shown, so that one is not left unanswered.
const WECHAT_TRIES: u32 = 3;
/// How many tries are passed on to targets: a copy of a push that is sent again and again makes no load there.
const MAX_PASSED_ON: u32 = WECHAT_TRIES + 1;

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
    state: Mutex<PushState>,
    /// Notified at the end of its progress.
    ended: Notify,
}

struct PushState {
    progress: Progress,
    /// Where targets hear of the tries; `None` where none is asked for a reply, and at the end.
    tries: Option<Arc<PushTries>>,
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
    /// The number of this try among WeChat's tries of the push that reached this process, from 1; 0 for the relaying of
    /// one that was resumed after a crash.
    pub(super) number: u32,
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
    /// Joins the push of this content with a try of WeChat, or begins it.
    pub(super) fn join(&self, key: ContentKey, trace: Trace, window_ends: Option<Instant>) -> Joined {
        self.join_as(1, key, trace, window_ends)
    }

    /// Begins the push of this content without a try of WeChat, unless it is in progress.
    pub(super) fn resume(&self, key: ContentKey, trace: Trace, window_ends: Option<Instant>) -> Joined {
        self.join_as(0, key, trace, window_ends)
    }

    fn join_as(&self, tries: u32, key: ContentKey, trace: Trace, window_ends: Option<Instant>) -> Joined {
        let mut pushes = self.0.lock();
        if let Some(follower) = pushes.get_mut(&key) {
            follower.number += tries;
            if let Some(tries) = &follower.push.state.lock().tries {
                tries.record(follower.number.min(MAX_PASSED_ON));
            }
            return Joined::Follower(follower.clone());
        }
        let state = PushState { progress: Progress::Storing, tries: None };
        let push = Arc::new(Push { state: Mutex::new(state), ended: Notify::new() });
        let (first_arrival, answer_now) = (Instant::now(), CancellationToken::new());
        let follower = Follower { push: push.clone(), number: tries, first_arrival, trace, window_ends, answer_now };
        pushes.insert(key, follower.clone());
        Joined::Leader(Leader { inflight: self.clone(), key, push }, follower)
    }
}

impl Leader {
    pub(super) fn key(&self) -> ContentKey {
        self.key
    }

    /// Lets the targets that are asked for the reply hear of WeChat's tries, those included that were made already.
    pub(super) fn share_tries(&self, tries: Option<&Arc<PushTries>>) {
        let Some(tries) = tries else { return };
        // Held to the end, so that no try comes in between.
        let pushes = self.inflight.0.lock();
        if let Some(push) = pushes.get(&self.key) {
            tries.record(push.number.min(MAX_PASSED_ON));
            self.push.state.lock().tries = Some(tries.clone());
        }
    }

    /// Publishes that the push is stored, and that only its reply is awaited.
    pub(super) fn await_reply(&self) {
        self.push.state.lock().progress = Progress::AwaitingReply;
    }

    /// Publishes the outcome to the followers.
    pub(super) fn finish(self, outcome: Option<RelayOutcome>) {
        self.push.state.lock().progress = Progress::Finished(outcome);
    }
}

impl Drop for Leader {
    fn drop(&mut self) {
        self.inflight.0.lock().remove(&self.key);
        let mut state = self.push.state.lock();
        if !matches!(state.progress, Progress::Finished(_)) {
            state.progress = Progress::Abandoned;
        }
        let tries = state.tries.take();
        drop(state);
        if let Some(tries) = tries {
            tries.end();
        }
        self.push.ended.notify_waiters();
    }
}

impl Follower {
    /// Waits for the outcome of the push, as another try sees it.
    pub(super) async fn outcome(self) -> Result<RelayOutcome, PushError> {
        loop {
            // First, so that an end after the look is not missed.
            let ended = self.push.ended.notified();
            match &self.push.state.lock().progress {
                Progress::Finished(Some(outcome)) => return Ok(outcome.clone()),
                Progress::Finished(None) => return Err(PushError::Unavailable),
                Progress::Abandoned => return Err(PushError::Internal),
                Progress::Storing | Progress::AwaitingReply => {}
            }
            ended.await;
        }
    }

    /// Whether WeChat makes no further try after this one.
    pub(super) fn is_last(&self) -> bool {
        self.number >= WECHAT_TRIES
    }

    /// Whether the push is stored, and only its reply is awaited.
    pub(super) fn awaits_reply(&self) -> bool {
        matches!(self.push.state.lock().progress, Progress::AwaitingReply)
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

    #[test]
    fn tries_are_numbered_and_the_third_is_the_last() {
        let inflight = Inflight::default();
        let Joined::Leader(_leader, first) = inflight.join(KEY, trace(), None) else {
            panic!("no push is in progress")
        };
        assert_eq!((first.number, first.is_last()), (1, false));
        for (number, is_last) in [(2, false), (3, true), (4, true)] {
            let Joined::Follower(next) = inflight.join(KEY, trace(), None) else { panic!("the first is in progress") };
            assert_eq!((next.number, next.is_last()), (number, is_last));
        }
    }

    #[tokio::test]
    async fn targets_hear_of_each_try_and_of_the_end() {
        let (inflight, tries) = (Inflight::default(), Arc::default());
        let (leader, _second) = leader_and_follower(&inflight);
        leader.share_tries(Some(&tries));
        assert!(tries.more_than(1).await, "of those that were made before");
        for _ in 3..=9 {
            inflight.join(KEY, trace(), None);
        }
        assert!(tries.more_than(MAX_PASSED_ON - 1).await);
        let further = tokio::spawn({
            let tries = tries.clone();
            async move { tries.more_than(MAX_PASSED_ON).await }
        });
        tokio::task::yield_now().await;
        leader.finish(Some(outcome()));
        assert!(!further.await.unwrap(), "WeChat has its answer");
    }

    #[test]
    fn the_first_try_of_a_resumed_push_is_number_1() {
        let inflight = Inflight::default();
        let Joined::Leader(_leader, _) = inflight.resume(KEY, trace(), None) else { panic!("no push is in progress") };
        let Joined::Follower(next) = inflight.join(KEY, trace(), None) else { panic!("it is in progress") };
        assert_eq!(next.number, 1);
    }

    #[tokio::test]
    async fn a_leader_that_vanishes_leaves_no_follower_waiting() {
        let (leader, follower) = leader_and_follower(&Inflight::default());
        drop(leader);
        assert!(matches!(follower.outcome().await, Err(PushError::Internal)));
    }
}
