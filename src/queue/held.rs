//! Replies that nobody waits for any more: kept for the user's next message, and the ledger of what became of each.
//!
//! An account with `held_replies` has a row for each reply that a target gave: given = sent + held + picked up +
//! superseded + dropped + expired. A row goes with its event. Rows of the states [`ReplyState::Awaited`] and
//! [`ReplyState::Ended`] are no replies: they say that one may still come, or that none did.
//!
//! - A reply is stored in the transaction that settles its attempt: until then the handler is asked again after a crash.
//! - What is taken is taken in the transaction that stores it as the reply of the push that takes it: once, whichever
//!   replica gets the user's message, and WeChat's retry of that push gets it again.

use std::sync::Arc;
use std::time::Duration;

use super::{Error, Queue, on_engine};
use crate::clock::UnixMillis;
use crate::event::EventId;

/// The most replies that are held for one user of an account.
pub const MAX_HELD: usize = 5;

/// What became of a reply. The numbers are those in the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReplyState {
    /// None was given yet; one may still come.
    Awaited = 0,
    /// It answered its own push.
    Sent = 1,
    /// It waits for the user's next message, all of it or what is left.
    Held = 2,
    /// Messages of the user got it.
    PickedUp = 3,
    /// Its event had a reply before.
    Superseded = 4,
    /// The user had [`MAX_HELD`] held replies.
    Dropped = 5,
    /// The user did not ask for it in time.
    Expired = 6,
    /// None was given, and none will come.
    #[serde(rename = "none")]
    Ended = 7,
}

impl ReplyState {
    /// Those of a reply that was given, in the order of the ledger.
    pub const GIVEN: [Self; 6] =
        [Self::Sent, Self::Held, Self::PickedUp, Self::Superseded, Self::Dropped, Self::Expired];

    /// The state with that number.
    pub(super) fn of(number: i64) -> Option<Self> {
        [Self::Awaited, Self::Ended].into_iter().chain(Self::GIVEN).find(|state| *state as i64 == number)
    }

    /// Its name in the API and the metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Awaited => "awaited",
            Self::Sent => "sent",
            Self::Held => "held",
            Self::PickedUp => "picked_up",
            Self::Superseded => "superseded",
            Self::Dropped => "dropped",
            Self::Expired => "expired",
            Self::Ended => "none",
        }
    }
}

/// How the push of its event used a reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReplyUse {
    /// It answered WeChat with the beginning of it, up to this byte; `None`: with all of it.
    Sent(Option<usize>),
    /// It answered WeChat with the reply of another target.
    Outdone,
    /// It was not waiting any more.
    Late,
}

/// A reply of a target that a route asks for one.
#[derive(Clone, Debug)]
pub struct GivenReply {
    /// The event.
    pub event: EventId,
    /// The target.
    pub target: Arc<str>,
    /// The attempt, and when it began: a reply that is stored twice is known by these.
    pub attempt: (u32, UnixMillis),
    /// The account of the event.
    pub account: Arc<str>,
    /// The OpenID that it is for.
    pub user: String,
    /// The reply, as [`crate::wechat::ReplyContent`] writes it.
    pub content: String,
    /// How long it is held.
    pub keep: Duration,
    /// What the push did with it.
    pub used: ReplyUse,
}

/// What an attempt meant for the replies of its event.
#[derive(Clone, Debug)]
pub enum SettledReply {
    /// It gave one.
    Given(Box<GivenReply>),
    /// It gave none, and no attempt follows.
    None,
}

/// A reply, or a part of one, that waits for a message of its user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeldReply {
    /// The event that it replies to.
    pub event: EventId,
    /// Its number among the event's.
    pub no: i64,
    /// All of it, as [`crate::wechat::ReplyContent`] writes it.
    pub content: String,
    /// How many bytes of it the user has got already.
    pub taken: usize,
}

/// What there is for a user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HeldState {
    /// A reply.
    Held(HeldReply),
    /// None yet, but a target is still asked.
    Running,
    /// None: the target gave none for this event.
    Ended(EventId),
    /// Nothing was asked lately.
    Nothing,
}

/// Whose replies are looked for.
#[derive(Clone, Debug)]
pub struct HeldQuery {
    /// The account.
    pub account: Arc<str>,
    /// The OpenID.
    pub user: String,
    /// Only the replies to this event.
    pub event: Option<EventId>,
    /// The current time.
    pub now: UnixMillis,
}

/// A push that ends without the reply that its targets may still give.
#[derive(Clone, Debug)]
pub struct LateReply {
    /// The event.
    pub event: EventId,
    /// The targets that were asked.
    pub targets: Vec<Arc<str>>,
    /// The account.
    pub account: Arc<str>,
    /// The OpenID.
    pub user: String,
    /// Until when a message of the user may ask for it.
    pub until: UnixMillis,
    /// The current time.
    pub now: UnixMillis,
}

/// Giving a held reply to a push.
#[derive(Clone, Debug)]
pub struct TakeReply {
    /// What is given, as it was found.
    pub held: HeldReply,
    /// How many bytes of it the user has then; `None`: all.
    pub until: Option<usize>,
    /// The push that gets it, which is stored.
    pub by: EventId,
    /// The clear reply to that push.
    pub reply: String,
    /// When the rest expires.
    pub expires_at: UnixMillis,
}

/// The state of a new reply, by what its event and its user have already.
pub(super) fn state_of(used: ReplyUse, given_before: bool, held: usize) -> ReplyState {
    match used {
        ReplyUse::Outdone => ReplyState::Superseded,
        _ if given_before => ReplyState::Superseded,
        ReplyUse::Sent(None) => ReplyState::Sent,
        ReplyUse::Sent(Some(_)) => ReplyState::Held,
        ReplyUse::Late if held >= MAX_HELD => ReplyState::Dropped,
        ReplyUse::Late => ReplyState::Held,
    }
}

impl Queue {
    /// Looks for what a user may be given: the rest of a reply before others, and the reply to an earlier event first.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub async fn held(&self, query: HeldQuery) -> Result<HeldState, Error> {
        on_engine!(self, engine => engine.held(query).await)
    }

    /// Notes that a push ends without a reply that may still come, so that the user's next message finds it. Returns
    /// what there is for the event by now.
    ///
    /// # Errors
    /// If it could not be stored.
    pub async fn await_late(&self, late: LateReply) -> Result<HeldState, Error> {
        on_engine!(self, engine => engine.await_late(late).await)
    }

    /// Gives a held reply to a push, and stores it as the reply of that push. False where another push has got it.
    ///
    /// # Errors
    /// If it could not be stored: then nobody has got it.
    pub async fn take(&self, take: TakeReply) -> Result<bool, Error> {
        on_engine!(self, engine => engine.take(take).await)
    }

    /// Notes that a user was told that no reply to this event will come.
    ///
    /// # Errors
    /// If it could not be stored.
    pub async fn forget_ended(&self, event: EventId) -> Result<(), Error> {
        on_engine!(self, engine => engine.forget_ended(event).await)
    }

    /// Ends what nobody asked for in time. Returns how many replies of each account.
    ///
    /// # Errors
    /// If it could not be stored.
    pub async fn expire_held(&self, now: UnixMillis) -> Result<Vec<(String, u64)>, Error> {
        on_engine!(self, engine => engine.expire_held(now).await)
    }
}
