//! What the writer can be asked, and how it answers.

use std::sync::Arc;

use tokio::sync::oneshot;

use super::removal::Wiped;
use super::seals::Sealed;
use super::sweep::Stepped;
use crate::clock::UnixMillis;
use crate::event::EventId;
use crate::queue::{AttemptNote, Enqueued, Error, Leases, NewEvent, Settlement, Sweep};

/// A request to the writer.
pub(super) enum Command {
    Enqueue {
        new: NewEvent,
        /// What stands in its row instead of clear texts, where it is to be sealed.
        sealed: Option<Sealed>,
        /// The targets whose delivery waits for an earlier one of the user.
        held: Vec<Arc<str>>,
        waiter: Waiter<Enqueued>,
    },
    /// Answered with whether another delivery is due through it.
    Settle(Settlement, Waiter<bool>),
    Reply(EventId, String, Waiter<()>),
    Annotate(AttemptNote, Waiter<()>),
    /// Whether the target is paused from now on.
    Pause(Arc<str>, bool, Waiter<()>),
    /// A step over these events.
    Sweep {
        events: Vec<EventId>,
        sweep: Arc<Sweep>,
        now: UnixMillis,
        waiter: Waiter<Stepped>,
    },
    Lease {
        target: Arc<str>,
        max: usize,
        now: UnixMillis,
        waiter: Waiter<Leases>,
    },
    /// A step toward files that hold nothing of what was deleted; the first of a pass says so.
    Wipe {
        is_first: bool,
        waiter: Waiter<Wiped>,
    },
    /// Answered when the store is closed and free for another process.
    Close(oneshot::Sender<()>),
}

impl Command {
    /// Whether it may wait a little for others to share its commit: losing it costs a repeat, and nobody's time.
    pub(super) fn is_patient(&self) -> bool {
        matches!(self, Self::Settle(..) | Self::Annotate(..))
    }

    /// Whether it shares a commit with others.
    pub(super) fn writes(&self) -> bool {
        !matches!(self, Self::Lease { .. } | Self::Wipe { .. } | Self::Close(_))
    }

    /// Answers with what was kept.
    pub(super) fn answer_kept(self) {
        match self {
            Self::Enqueue { waiter, .. } => waiter.answer_kept(),
            Self::Settle(_, waiter) => waiter.answer_kept(),
            Self::Reply(_, _, waiter) | Self::Annotate(_, waiter) | Self::Pause(_, _, waiter) => waiter.answer_kept(),
            Self::Sweep { waiter, .. } => waiter.answer_kept(),
            Self::Lease { .. } | Self::Wipe { .. } | Self::Close(_) => {}
        }
    }

    /// Answers that it failed.
    pub(super) fn fail(self, error: Error) {
        match self {
            Self::Enqueue { waiter, .. } => waiter.answer(Err(error)),
            Self::Settle(_, waiter) => waiter.answer(Err(error)),
            Self::Reply(_, _, waiter) | Self::Annotate(_, waiter) | Self::Pause(_, _, waiter) => {
                waiter.answer(Err(error))
            }
            Self::Sweep { waiter, .. } => waiter.answer(Err(error)),
            Self::Lease { waiter, .. } => waiter.answer(Err(error)),
            Self::Wipe { waiter, .. } => waiter.answer(Err(error)),
            Self::Close(done) => drop(done),
        }
    }
}

/// Who waits for an answer; keeps the answer until it is on stable storage.
pub(super) struct Waiter<T> {
    answer: oneshot::Sender<Result<T, Error>>,
    kept: Option<Result<T, Error>>,
}

impl<T> Waiter<T> {
    pub(super) fn new() -> (Self, oneshot::Receiver<Result<T, Error>>) {
        let (answer, receiver) = oneshot::channel();
        (Self { answer, kept: None }, receiver)
    }

    /// Keeps what to answer after the commit.
    pub(super) fn keep(&mut self, result: Result<T, Error>) {
        self.kept = Some(result);
    }

    /// What will be answered.
    pub(super) fn kept(&self) -> Option<&Result<T, Error>> {
        self.kept.as_ref()
    }

    /// What will be answered, if it is no failure.
    pub(super) fn kept_ok(&self) -> Option<&T> {
        self.kept()?.as_ref().ok()
    }

    /// Answers what was kept.
    pub(super) fn answer_kept(mut self) {
        if let Some(result) = self.kept.take() {
            self.answer(result);
        }
    }

    /// Answers at once. Whoever does not wait any more has lost interest in the answer, not in the deed.
    pub(super) fn answer(self, result: Result<T, Error>) {
        self.answer.send(result).ok();
    }
}
