//! An event: one verified push, and its two identifiers.
//!
//! [`EventId`] identifies the event for people and handlers; [`ContentKey`] makes WeChat's own retry of a push the same
//! event. Pure.

#![warn(missing_docs)]

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use sha2::{Digest, Sha256};

use crate::clock::UnixMillis;
use crate::wechat::{Message, Mode};

/// A push that was verified and opened. `Debug` shows nothing of its contents.
pub struct Event {
    /// The same at every delivery.
    pub id: EventId,
    /// The name of the account that received it.
    pub account: Arc<str>,
    /// The account's AppID.
    pub app_id: Arc<str>,
    /// The account's mode at that time.
    pub mode: Mode,
    /// When it was received.
    pub received_at: UnixMillis,
    /// The query WeChat sent, without `?`. Holds signatures: never logged.
    pub query: String,
    /// The body WeChat sent, byte for byte.
    pub body: Bytes,
    /// The opened text; in plaintext mode the body itself.
    pub clear: Bytes,
    /// The opened text, parsed.
    pub message: Message,
    /// The W3C trace context the push came with, if any.
    pub traceparent: Option<String>,
}

impl fmt::Debug for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { id, account, received_at, message, .. } = self;
        let mut debug = f.debug_struct("Event");
        debug.field("id", id).field("account", account).field("received_at", received_at).field("message", message);
        debug.finish_non_exhaustive()
    }
}

impl Event {
    /// What strings, the parsed elements and the allocator take beside the texts, for a usual push.
    const OVERHEAD: usize = 1024;

    /// About how many bytes it takes in memory while it is delivered: its own texts, and what is written for a target.
    pub fn memory_bytes(&self) -> u64 {
        // In plaintext mode the clear text is the body.
        let clear = if self.clear.as_ptr() == self.body.as_ptr() { 0 } else { self.clear.len() };
        // Once in the parsed message, and about twice in what is written: JSON holds it as elements and as XML.
        let copies = 3 * self.clear.len();
        (self.body.len() + clear + copies + self.query.len() + Self::OVERHEAD) as u64
    }
}

/// 43 bits of milliseconds, then 20 bits of sequence within the millisecond.
///
/// Ids grow with time, so the store appends, and a span of time is a span of ids. Written `evt_` and 16 hex digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EventId(pub u64);

impl EventId {
    const SEQUENCE_BITS: u32 = 20;

    /// The smallest id of a moment: what `since` and `until` filters compare with.
    pub fn first_at(moment: UnixMillis) -> Self {
        let millis = u64::try_from(moment.0).unwrap_or(0).min((1 << 43) - 1);
        Self(millis << Self::SEQUENCE_BITS)
    }

    /// The next id after `last` for an event received at `moment`; never goes back when the clock does.
    pub fn next(last: Self, moment: UnixMillis) -> Self {
        Self(Self::first_at(moment).0.max(last.0 + 1))
    }

    /// As [`EventId::next`], where several processes give ids: each has a slot, 6 of the sequence's bits, and so 16,384
    /// ids a millisecond.
    pub fn next_in_slot(last: Self, moment: UnixMillis, slot: u64) -> Self {
        const SLOT_SHIFT: u32 = EventId::SEQUENCE_BITS - 6;
        let slot = (slot & 63) << SLOT_SHIFT;
        let next = last.0 + 1;
        let is_of_slot = next & (63 << SLOT_SHIFT) == slot;
        let after_last = if last.0 == 0 || is_of_slot {
            next
        } else {
            // The millisecond's sequence is used up, or the slot is another one now.
            (((last.0 >> Self::SEQUENCE_BITS) + 1) << Self::SEQUENCE_BITS) | slot
        };
        Self((Self::first_at(moment).0 | slot).max(after_last))
    }

    /// The moment in the id.
    pub fn moment(self) -> UnixMillis {
        UnixMillis(i64::try_from(self.0 >> Self::SEQUENCE_BITS).unwrap_or(i64::MAX))
    }
}

impl fmt::Display for EventId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "evt_{:016x}", self.0)
    }
}

/// A text that is not an event id.
#[derive(Debug, thiserror::Error)]
#[error("an event id is `evt_` and 16 hex digits, as in evt_01a2b3c4d5e6f708")]
pub struct BadEventId;

/// As [`fmt::Display`] writes it.
impl Serialize for EventId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for EventId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

impl FromStr for EventId {
    type Err = BadEventId;

    fn from_str(text: &str) -> Result<Self, BadEventId> {
        let hex = text.strip_prefix("evt_").filter(|hex| hex.len() == 16).ok_or(BadEventId)?;
        if !hex.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(BadEventId);
        }
        u64::from_str_radix(hex, 16).map(Self).map_err(|_| BadEventId)
    }
}

/// What makes two pushes the same event: the account's AppID and the opened text.
///
/// WeChat's advice (MsgId, or FromUserName and CreateTime) merges different events of one second, as SDK trackers
/// report (WxJava #239, #2231, #333), so the whole text counts. The first 8 bytes are CreateTime, which is part of the
/// text anyway: keys then arrive nearly in order, and an index on them grows at its end whatever its size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ContentKey(pub [u8; 24]);

impl ContentKey {
    /// The key of an opened text.
    pub fn of(app_id: &str, message: &Message, clear: &[u8]) -> Self {
        let hash = Sha256::new().chain_update(app_id).chain_update([0]).chain_update(clear).finalize();
        let mut key = [0; 24];
        key[..8].copy_from_slice(&message.create_time().unwrap_or(0).to_be_bytes());
        key[8..].copy_from_slice(&hash[..16]);
        Self(key)
    }
}

/// An event whose text has about that many bytes.
#[cfg(test)]
pub(crate) fn sample(id: EventId, bytes: usize) -> Event {
    let text = format!("<xml><MsgType>text</MsgType><Content>{}</Content></xml>", "x".repeat(bytes));
    let body = Bytes::from(text);
    Event {
        id,
        account: "shop".into(),
        app_id: "wx1".into(),
        mode: Mode::Plaintext,
        received_at: UnixMillis(0),
        query: String::new(),
        clear: body.clone(),
        message: Message::parse(&body).expect("it is well-formed"),
        body,
        traceparent: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_grow_even_when_the_clock_goes_back() {
        let first = EventId::next(EventId(0), UnixMillis(1_000_000));
        let second = EventId::next(first, UnixMillis(999_000));
        assert!(second > first);
        assert_eq!(second.moment(), UnixMillis(1_000_000));
    }

    #[test]
    fn ids_are_read_as_they_are_written() {
        let id = EventId::first_at(UnixMillis(1_795_161_600_120));
        assert_eq!(id.to_string().parse::<EventId>().ok(), Some(id));
        for bad in ["", "evt_", "evt_+123456789abcdef", "evt_0123", "0123456789abcdef", "evt_0123456789abcdeg"] {
            assert!(bad.parse::<EventId>().is_err(), "{bad}");
        }
    }
}
