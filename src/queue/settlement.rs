//! The outcome of an attempt, as the queue records it, and the states of a delivery.

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::SettledReply;
use crate::clock::UnixMillis;
use crate::event::EventId;

/// The outcome of an attempt, to be recorded.
#[derive(Clone, Debug)]
pub struct Settlement {
    /// The event.
    pub event: EventId,
    /// The target.
    pub target: Arc<str>,
    /// The next state of the delivery.
    pub disposition: Disposition,
    /// When that was decided, by the clock of then.
    pub decided_at: UnixMillis,
    /// The attempt that led to it; `None` without one, as when an old delivery expires.
    pub attempt: Option<AttemptRecord>,
    /// What it means for the replies to the event, where the account keeps them.
    pub reply: Option<SettledReply>,
}

impl Settlement {
    /// When the next attempt is due, as of `now`; `None` if the delivery ends. If that was decided in the future, the clock
    /// was set back while this waited for the store: the wait starts again.
    pub(super) fn next_due(&self, now: UnixMillis) -> Option<UnixMillis> {
        let (Disposition::Retry(due) | Disposition::Postpone(due)) = self.disposition else { return None };
        Some(if self.decided_at > now { now.after(due.since(self.decided_at)) } else { due })
    }
}

/// What a settlement does to a delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Disposition {
    /// It stays pending; the next attempt is due at this time.
    Retry(UnixMillis),
    /// As `Retry`, but the attempt does not count against the retry schedule.
    Postpone(UnixMillis),
    /// It ends in this state.
    End(DeliveryState),
}

/// The state of a delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DeliveryState {
    /// Waiting for an attempt, or in one.
    Pending,
    /// The target answered 2xx.
    Delivered,
    /// Its attempts are used up, or the target refused it for good; an operator can retry it.
    Dead,
    /// Its deadline passed before it was delivered.
    Expired,
    /// An operator ended it.
    Cancelled,
}

impl DeliveryState {
    /// Every state, in the order of their numbers in the store.
    pub const ALL: [Self; 5] = [Self::Pending, Self::Delivered, Self::Dead, Self::Expired, Self::Cancelled];

    /// Its name in the store's views, the API and the metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Delivered => "delivered",
            Self::Dead => "dead",
            Self::Expired => "expired",
            Self::Cancelled => "cancelled",
        }
    }
}

/// The record of one attempt.
#[derive(Clone, Debug)]
pub struct AttemptRecord {
    /// Its number, from 1.
    pub number: u32,
    /// When it began.
    pub at: UnixMillis,
    /// How long it took.
    pub duration: Duration,
    /// The HTTP status, if there was an answer.
    pub status: Option<u16>,
    /// Why it failed, or why its reply was not used, in a few words without secrets.
    pub error: Option<String>,
    /// The first 1 KiB of the answer's body, or of the clear reply; `None` for an answer that is empty or `success`.
    pub answer: Option<Vec<u8>>,
}

/// A change of the `error` of an attempt's record.
#[derive(Clone, Debug)]
pub struct AttemptNote {
    /// The event.
    pub event: EventId,
    /// The target.
    pub target: Arc<str>,
    /// The number of the attempt.
    pub attempt: u32,
    /// The new text; until it is known whether a reply in reserve is used, the text for one that is.
    pub error: Option<String>,
}
