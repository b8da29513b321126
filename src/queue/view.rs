//! The queue's contents in the shapes that `--json` and the API print.
//!
//! Ids are written `evt_...`, times in RFC 3339. Nothing here holds a query or a signature.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{DeliveryState, ReplyState};
use crate::clock::UnixMillis;
use crate::event::EventId;

/// How many deliveries are in each state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Waiting for an attempt, or in one.
    pub pending: u64,
    /// Answered 2xx.
    pub delivered: u64,
    /// Given up.
    pub dead: u64,
    /// Not delivered before their deadline.
    pub expired: u64,
    /// Ended by an operator.
    pub cancelled: u64,
}

impl Counts {
    /// All of them.
    pub fn total(&self) -> u64 {
        self.pending + self.delivered + self.dead + self.expired + self.cancelled
    }

    /// The count of one state.
    pub(super) fn of(&mut self, state: DeliveryState) -> &mut u64 {
        match state {
            DeliveryState::Pending => &mut self.pending,
            DeliveryState::Delivered => &mut self.delivered,
            DeliveryState::Dead => &mut self.dead,
            DeliveryState::Expired => &mut self.expired,
            DeliveryState::Cancelled => &mut self.cancelled,
        }
    }
}

/// The ledger of the replies that accounts keep: what became of each that a target gave.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplyCounts {
    /// Given by targets.
    pub given: u64,
    /// The answer to their own push.
    pub sent: u64,
    /// Waiting for the user's next message.
    pub held: u64,
    /// Given to later messages of the user.
    pub picked_up: u64,
    /// Their event had a reply before.
    pub superseded: u64,
    /// The user had too many held replies.
    pub dropped: u64,
    /// Not asked for in time.
    pub expired: u64,
}

impl ReplyCounts {
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Those that are in a state.
    pub fn total(&self) -> u64 {
        self.sent + self.held + self.picked_up + self.superseded + self.dropped + self.expired
    }

    /// The count of one state; of those that are none of a reply, the replies given.
    pub(super) fn of(&mut self, state: ReplyState) -> &mut u64 {
        match state {
            ReplyState::Sent => &mut self.sent,
            ReplyState::Held => &mut self.held,
            ReplyState::PickedUp => &mut self.picked_up,
            ReplyState::Superseded => &mut self.superseded,
            ReplyState::Dropped => &mut self.dropped,
            ReplyState::Expired => &mut self.expired,
            ReplyState::Awaited | ReplyState::Ended => &mut self.given,
        }
    }

    /// The sum of the differences of each count.
    pub(super) fn drift(mut self, mut tallied: Self) -> u64 {
        let states = ReplyState::GIVEN.into_iter().chain([ReplyState::Awaited]);
        states.map(|state| self.of(state).abs_diff(*tallied.of(state))).sum()
    }
}

/// A summary of the queue, from its running tally.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stats {
    /// Events in the store.
    pub events: u64,
    /// The difference between the deliveries accepted and the deliveries in all states. Anything but 0 is a bug.
    pub unaccounted: u64,
    /// Bytes on disk, the log included.
    pub bytes: u64,
    /// Every target that ever had a delivery, by name.
    pub targets: Vec<TargetStats>,
    /// How many replies are held for users, by account; accounts without any are missing.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub held_replies: BTreeMap<String, u64>,
    /// The folders of damaged stores that were moved aside and not salvaged yet.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub damaged: Vec<String>,
}

/// A summary of one target.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TargetStats {
    /// Its name.
    pub target: String,
    /// Its deliveries.
    #[serde(flatten)]
    pub counts: Counts,
    /// When the event of its oldest pending delivery was received.
    pub oldest_pending: Option<UnixMillis>,
}

/// The ledger, counted row by row.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Audit {
    /// Events in the store.
    pub events: u64,
    /// Deliveries that were accepted with them.
    pub deliveries: u64,
    /// The same deliveries by state.
    #[serde(flatten)]
    pub counts: Counts,
    /// Deliveries that are in no known state, missing, or of no event. Anything but 0 is a bug or a damaged store.
    pub unaccounted: u64,
    /// The difference between this count and the running tally and dedup index. Anything but 0 is a bug, or another
    /// program wrote to the store.
    pub drift: u64,
    /// The counts of each target, by name.
    pub targets: Vec<TargetCounts>,
    /// The replies of accounts that keep them; left out without any.
    #[serde(default, skip_serializing_if = "ReplyCounts::is_empty")]
    pub replies: ReplyCounts,
}

impl Audit {
    /// Whether every delivery and every reply is accounted for.
    pub fn is_clean(&self) -> bool {
        let is_complete = self.deliveries == self.counts.total() && self.replies.given == self.replies.total();
        self.unaccounted == 0 && self.drift == 0 && is_complete
    }
}

/// One target's part of an audit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TargetCounts {
    /// Its name.
    pub target: String,
    /// Its deliveries.
    #[serde(flatten)]
    pub counts: Counts,
}

/// Which events to list; `None` in a field = any.
#[derive(Clone, Debug, Default)]
pub struct EventFilter {
    /// The account they came in by.
    pub account: Option<String>,
    /// Their event name or message type, case-blind: `scan`, `text`.
    pub event: Option<String>,
    /// The OpenID they came from.
    pub from: Option<String>,
    /// A target they have a delivery for.
    pub target: Option<String>,
    /// The state of one of their deliveries; of the delivery to `target`, if that is given.
    pub state: Option<DeliveryState>,
    /// Received at this time or later.
    pub since: Option<UnixMillis>,
    /// Received before this.
    pub until: Option<UnixMillis>,
    /// Older than this event: the last one of the previous page.
    pub before: Option<EventId>,
    /// The most to list.
    pub limit: usize,
}

impl EventFilter {
    /// Whether it lets every event through.
    pub fn is_all(&self) -> bool {
        let Self { account, event, from, target, state, since, until, before: _, limit: _ } = self;
        let texts = [account, event, from, target].iter().all(|part| part.is_none());
        texts && state.is_none() && since.is_none() && until.is_none()
    }
}

/// A line of a list of events.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventSummary {
    /// Its id.
    pub id: EventId,
    /// When it was received.
    pub received_at: UnixMillis,
    /// The account it came in by.
    pub account: String,
    /// `MsgType`.
    pub msg_type: String,
    /// `Event`, or empty.
    pub event: String,
    /// `EventKey`, or empty.
    pub event_key: String,
    /// The OpenID it came from.
    pub from: String,
    /// Its deliveries, by target name.
    pub deliveries: Vec<DeliverySummary>,
}

/// A delivery in a list of events.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeliverySummary {
    /// Its target.
    pub target: String,
    /// Its state.
    pub state: DeliveryState,
    /// How many attempts were made.
    pub attempts: u32,
}

/// An event in full.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EventDetail {
    /// Its id.
    pub id: EventId,
    /// When it was received.
    pub received_at: UnixMillis,
    /// The account it came in by.
    pub account: String,
    /// The AppID of that account.
    pub app_id: String,
    /// The mode of that account.
    pub mode: String,
    /// `MsgType`.
    pub msg_type: String,
    /// `Event`, or empty.
    pub event: String,
    /// `EventKey`, or empty.
    pub event_key: String,
    /// The OpenID it came from.
    pub from: String,
    /// The clear text.
    pub text: String,
    /// The clear passive reply it was answered with.
    pub reply: Option<String>,
    /// Why its text, its reply or an answer is left out: it cannot be decrypted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sealed: Option<String>,
    /// The trace it belongs to.
    pub traceparent: Option<String>,
    /// Its deliveries with every attempt, by target name.
    pub deliveries: Vec<DeliveryDetail>,
    /// What became of the replies to it, where its account keeps them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub replies: Vec<ReplyDetail>,
    /// The event whose reply, or a part of it, was the reply to this one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub picked_up: Option<EventId>,
}

/// What became of a reply.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplyDetail {
    /// The target.
    pub target: String,
    /// The state: `awaited` while one may still come, `none` after none came.
    pub state: ReplyState,
    /// The number of the attempt that gave it.
    pub attempt: Option<u32>,
    /// When that attempt began.
    pub at: Option<UnixMillis>,
    /// Until when a message of the user gets it.
    pub expires_at: Option<UnixMillis>,
    /// The last message that got it, or a part of it.
    pub picked_up_by: Option<EventId>,
}

/// A delivery in full.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DeliveryDetail {
    /// Its target.
    pub target: String,
    /// Its state.
    pub state: DeliveryState,
    /// When the next attempt is due, while it is pending.
    pub due: Option<UnixMillis>,
    /// When it ended.
    pub ended_at: Option<UnixMillis>,
    /// Every attempt, in order.
    pub attempts: Vec<AttemptDetail>,
}

/// An attempt in full.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AttemptDetail {
    /// From 1.
    pub number: u32,
    /// When it began.
    pub at: UnixMillis,
    /// How long it took, in milliseconds.
    pub duration_ms: f64,
    /// The HTTP status, if there was an answer.
    pub status: Option<u16>,
    /// Why it failed, or why its reply was not used.
    pub error: Option<String>,
    /// The first 1 KiB of the answer's body, or of the clear reply; none for an answer that is empty or `success`.
    pub answer: Option<String>,
}

/// A delivery that was given up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeadLetter {
    /// The event.
    pub id: EventId,
    /// The target.
    pub target: String,
    /// When the event was received.
    pub received_at: UnixMillis,
    /// When the delivery was given up.
    pub ended_at: Option<UnixMillis>,
    /// The account the event came in by.
    pub account: String,
    /// `MsgType`.
    pub msg_type: String,
    /// `Event`, or empty.
    pub event: String,
    /// How many attempts were made.
    pub attempts: u32,
    /// The last attempt's HTTP status, if there was an answer.
    pub status: Option<u16>,
    /// Why the last attempt failed.
    pub error: Option<String>,
    /// The first 1 KiB of the last answer's body.
    pub answer: Option<String>,
    /// Why the answer is left out: it cannot be decrypted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sealed: Option<String>,
}
