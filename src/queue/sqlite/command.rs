//! The commands to the writer, and how it answers them.

use std::sync::Arc;

use tokio::sync::oneshot;

use super::held::{HeldAnswer, HeldCommand};
use super::import::{ImportStep, SalvagedEvent};
use super::removal::WipeProgress;
use super::sweep::SweepStep;
use crate::clock::UnixMillis;
use crate::event::{Event, EventId};
use crate::queue::key_ring::SealedColumns;
use crate::queue::{
    AttemptNote, AwaitedReply, Enqueued, Error, GivenReply, Lease, Leases, NewEvent, ReplyState, Settlement, Sweep,
    Unanswered,
};

/// What a settlement did.
#[derive(Debug, Default)]
pub(super) struct Settled {
    /// Whether another delivery became due because of it.
    pub(super) released: bool,
    /// What became of the reply, if one was given.
    pub(super) reply: Option<ReplyState>,
}

/// A command to the writer.
pub(super) enum WriterCommand {
    Enqueue {
        new: NewEvent,
        /// The columns that replace clear texts, if the event is to be encrypted.
        sealed: Option<SealedColumns>,
        /// Set by the writer: the targets whose delivery waits for an earlier one of the user.
        held: Vec<Arc<str>>,
        waiter: Waiter<Enqueued>,
    },
    Settle(Settlement, Waiter<Settled>),
    Reply(EventId, String, Option<Box<GivenReply>>, Waiter<()>),
    Held(HeldCommand, Waiter<HeldAnswer>),
    Annotate(AttemptNote, Waiter<()>),
    /// Whether the target is paused from now on.
    Pause(Arc<str>, bool, Waiter<()>),
    /// A step over these events.
    Sweep {
        events: Vec<EventId>,
        sweep: Arc<Sweep>,
        now: UnixMillis,
        waiter: Waiter<SweepStep>,
    },
    /// Events that were read back from a damaged store.
    Import {
        events: Vec<(SalvagedEvent, Option<SealedColumns>)>,
        now: UnixMillis,
        waiter: Waiter<ImportStep>,
    },
    Lease {
        target: Arc<str>,
        max: usize,
        now: UnixMillis,
        waiter: Waiter<Leases>,
    },
    /// The newest events since then with a delivery that was never attempted to its end.
    Unanswered {
        since: UnixMillis,
        waiter: Waiter<Vec<Unanswered>>,
    },
    /// Leases the first deliveries of an event, whose reply is awaited again.
    LeaseAwaited {
        event: Arc<Event>,
        awaited: Vec<(Arc<str>, AwaitedReply)>,
        waiter: Waiter<Vec<Lease>>,
    },
    /// A step of erasing what was deleted from the files; `is_first` starts a pass.
    Wipe {
        is_first: bool,
        waiter: Waiter<WipeProgress>,
    },
    /// Changes nothing: its answer shows that the writer works.
    Ping(Waiter<()>),
    /// Answered when the store is closed and free for another process.
    Close(oneshot::Sender<()>),
}

impl WriterCommand {
    /// Whether it may wait a little for others to share its commit: no caller of the relay waits for it, and losing it
    /// costs a repeat.
    pub(super) fn is_deferrable(&self) -> bool {
        matches!(self, Self::Settle(..) | Self::Annotate(..))
    }

    /// Whether it shares a commit with others.
    pub(super) fn writes(&self) -> bool {
        match self {
            Self::Held(HeldCommand::Find(_), _) => false,
            Self::Enqueue { .. }
            | Self::Settle(..)
            | Self::Reply(..)
            | Self::Held(..)
            | Self::Annotate(..)
            | Self::Pause(..)
            | Self::Sweep { .. }
            | Self::Import { .. } => true,
            Self::Lease { .. }
            | Self::Unanswered { .. }
            | Self::LeaseAwaited { .. }
            | Self::Wipe { .. }
            | Self::Ping(_)
            | Self::Close(_) => false,
        }
    }

    /// Sends the answer that was kept.
    pub(super) fn answer_kept(self) {
        match self {
            Self::Enqueue { waiter, .. } => waiter.answer_kept(),
            Self::Settle(_, waiter) => waiter.answer_kept(),
            Self::Held(_, waiter) => waiter.answer_kept(),
            Self::Reply(.., waiter) | Self::Annotate(_, waiter) | Self::Pause(_, _, waiter) => waiter.answer_kept(),
            Self::Sweep { waiter, .. } => waiter.answer_kept(),
            Self::Import { waiter, .. } => waiter.answer_kept(),
            Self::Lease { .. }
            | Self::Unanswered { .. }
            | Self::LeaseAwaited { .. }
            | Self::Wipe { .. }
            | Self::Ping(_)
            | Self::Close(_) => {}
        }
    }

    /// Answers that it failed.
    pub(super) fn fail(self, error: Error) {
        match self {
            Self::Enqueue { waiter, .. } => waiter.answer(Err(error)),
            Self::Settle(_, waiter) => waiter.answer(Err(error)),
            Self::Held(_, waiter) => waiter.answer(Err(error)),
            Self::Reply(.., waiter) | Self::Annotate(_, waiter) | Self::Pause(_, _, waiter) | Self::Ping(waiter) => {
                waiter.answer(Err(error))
            }
            Self::Sweep { waiter, .. } => waiter.answer(Err(error)),
            Self::Import { waiter, .. } => waiter.answer(Err(error)),
            Self::Lease { waiter, .. } => waiter.answer(Err(error)),
            Self::Unanswered { waiter, .. } => waiter.answer(Err(error)),
            Self::LeaseAwaited { waiter, .. } => waiter.answer(Err(error)),
            Self::Wipe { waiter, .. } => waiter.answer(Err(error)),
            Self::Close(done) => drop(done),
        }
    }
}

/// The caller that waits for an answer; keeps the answer until the change is on stable storage.
pub(super) struct Waiter<T> {
    answer: oneshot::Sender<Result<T, Error>>,
    kept: Option<Result<T, Error>>,
}

impl<T> Waiter<T> {
    pub(super) fn new() -> (Self, oneshot::Receiver<Result<T, Error>>) {
        let (answer, receiver) = oneshot::channel();
        (Self { answer, kept: None }, receiver)
    }

    /// Keeps an answer until after the commit.
    pub(super) fn keep(&mut self, result: Result<T, Error>) {
        self.kept = Some(result);
    }

    /// The answer that is kept.
    pub(super) fn kept(&self) -> Option<&Result<T, Error>> {
        self.kept.as_ref()
    }

    /// The answer that is kept, if it is a success.
    pub(super) fn kept_ok(&self) -> Option<&T> {
        self.kept()?.as_ref().ok()
    }

    /// Sends the answer that was kept.
    pub(super) fn answer_kept(mut self) {
        if let Some(result) = self.kept.take() {
            self.answer(result);
        }
    }

    /// Answers at once. A caller that no longer waits misses the answer; the change stands.
    pub(super) fn answer(self, result: Result<T, Error>) {
        self.answer.send(result).ok();
    }
}
