//! The reply to an event: awaited from a target, stored, and the same for every try of the push.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;

use super::{Error, GivenReply, PushTries, Queue};
use crate::clock::UnixMillis;
use crate::event::EventId;
use crate::wechat::ReplyError;

/// A reply that WeChat's push waits for.
#[derive(Debug)]
pub struct AwaitedReply {
    /// Until when it is useful.
    pub until: UnixMillis,
    /// Whether the target is the first that is asked: its reply is used if it comes in time. A reply of any other
    /// target is held in reserve.
    pub first: bool,
    /// WeChat's tries of the push, for a target that gets each of them.
    pub tries: Arc<PushTries>,
    /// Where the target's answer goes; dropped without one if the attempt failed.
    pub sender: oneshot::Sender<ReplyOffer>,
}

/// A target's answer, offered to the push that waits.
#[derive(Debug)]
pub struct ReplyOffer {
    /// The reply; `None` where the target sends none.
    pub reply: Result<Option<OfferedReply>, ReplyError>,
    /// Where the attempt failed: whether another one follows.
    pub failed: Option<bool>,
    /// Receives whether the reply is used; dropped if the push no longer waits.
    pub choice: oneshot::Sender<ReplyChoice>,
}

/// A reply that may be used.
#[derive(Debug)]
pub struct OfferedReply {
    /// In the clear, as WeChat gets it.
    pub clear: String,
    /// Whether the rest of its text is left out.
    pub is_cut: bool,
    /// Up to which byte its text is in it; `None`: to the end.
    pub end: Option<usize>,
    /// All of it, where the account keeps replies.
    pub given: Option<GivenReply>,
}

/// Whether a reply is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReplyChoice {
    /// WeChat gets it.
    Used,
    /// WeChat gets the reply of another target.
    Outdone,
}

/// What is known of the reply to an event that was stored before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Known {
    /// The clear reply that it was answered with; `None` where there was none.
    Answered(Option<String>),
    /// Another process may still get one from a target, until then; [`Queue::reply_of`] waits for it.
    Asking(UnixMillis),
}

impl Queue {
    /// Stores the clear reply that an event was answered with, for WeChat's retries of it, and `given` in the ledger of
    /// replies. False where another process has answered it otherwise meanwhile: then this one is not used, and
    /// `given` is held or superseded.
    ///
    /// # Errors
    /// If it could not be stored.
    pub async fn record_reply(&self, event: EventId, reply: String, given: Option<GivenReply>) -> Result<bool, Error> {
        match self {
            Self::Embedded(engine) => engine.record_reply(event, reply, given).await.map(|()| true),
            #[cfg(feature = "postgres")]
            Self::Postgres(engine) => engine.record_reply(event, reply, given).await,
            #[cfg(test)]
            Self::Model(engine) => engine.record_reply(event, reply, given).await,
        }
    }

    /// Notes that no target's reply comes any more: the event was answered with what is stored. Waits for nothing.
    pub fn note_no_reply(&self, event: EventId) {
        match self {
            // No other process waits for it.
            Self::Embedded(_) => {}
            #[cfg(feature = "postgres")]
            Self::Postgres(engine) => engine.note_no_reply(event),
            #[cfg(test)]
            Self::Model(engine) => engine.note_no_reply(event),
        }
    }

    /// Waits until an event that another process asks a target about has its reply; decides at that time that it has
    /// none.
    ///
    /// # Errors
    /// If the store cannot be read: then nothing is decided.
    pub async fn reply_of(&self, event: EventId, until: UnixMillis) -> Result<Option<String>, Error> {
        match self {
            // It has no other process.
            Self::Embedded(_) => Ok(None),
            #[cfg(feature = "postgres")]
            Self::Postgres(engine) => engine.reply_of(event, until).await,
            #[cfg(test)]
            Self::Model(engine) => engine.reply_of(event, until).await,
        }
    }

    /// Decides that an event has no reply, unless it has one by now: that one is returned. Whichever is stored first is
    /// what every try of the push is answered.
    ///
    /// # Errors
    /// If that could not be stored.
    pub async fn decide_no_reply(&self, event: EventId) -> Result<Option<String>, Error> {
        match self {
            // It has no other process.
            Self::Embedded(_) => Ok(None),
            #[cfg(feature = "postgres")]
            Self::Postgres(engine) => engine.decide_no_reply(event).await,
            #[cfg(test)]
            Self::Model(engine) => engine.decide_no_reply(event).await,
        }
    }

    /// How long storing a reply may delay it, where no other time is left.
    pub fn reply_margin(&self) -> Duration {
        match self {
            Self::Embedded(_) => Duration::from_millis(50),
            #[cfg(feature = "postgres")]
            Self::Postgres(_) => Duration::from_millis(250),
            #[cfg(test)]
            Self::Model(_) => Duration::from_millis(250),
        }
    }
}
