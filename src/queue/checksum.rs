//! The checksums of stored events: whether what is read from the disk is what was written.
//!
//! The content key covers an event's text and AppID only, and SQLite's database file has no checksums at all, that of
//! PostgreSQL only where its cluster was made with them: a flipped bit in a row is read like any other value.
//! `event.checksum` covers whatever leaves the relay in a delivery, and `event.reply_checksum` the reply to WeChat.
//! CRC-32 finds every error of up to 32 bits in a row, and misses one of four billion others. It costs a few
//! instructions per 16 bytes; the simple version, a second SHA-256, costs a dozen per byte.

use super::NewEvent;
use super::key_ring::SealedColumns;
use super::stored::mode_number;
use crate::event::{Event, EventId};

/// The checksum of values in a fixed order. They are gathered, as one long calculation costs less than many short ones.
#[derive(Default)]
pub(super) struct Checksum(Vec<u8>);

impl Checksum {
    pub(super) fn add_null(&mut self) {
        self.0.push(0);
    }

    pub(super) fn add_number(&mut self, number: i64) {
        self.0.extend(number.to_le_bytes());
    }

    /// Adds a text or bytes. The length goes first, so that no two rows run together to the same bytes.
    pub(super) fn add_bytes(&mut self, bytes: &[u8]) {
        self.0.extend((bytes.len() as u64).to_le_bytes());
        self.0.extend(bytes);
    }

    fn add_some(&mut self, bytes: Option<&[u8]>) {
        match bytes {
            None => self.add_null(),
            Some(bytes) => self.add_bytes(bytes),
        }
    }

    /// As it is stored.
    pub(super) fn value(self) -> i64 {
        crc32fast::hash(&self.0).into()
    }
}

/// The columns that `event.checksum` covers, in the order in which it does.
pub(super) struct CoveredColumns<'a> {
    pub(super) id: EventId,
    pub(super) content_key: &'a [u8],
    pub(super) mode: i64,
    pub(super) received_at: i64,
    pub(super) account: &'a str,
    pub(super) app_id: &'a str,
    pub(super) traceparent: Option<&'a str>,
    pub(super) query: &'a [u8],
    pub(super) body: &'a [u8],
    pub(super) clear: Option<&'a [u8]>,
    pub(super) key: Option<i64>,
}

impl CoveredColumns<'_> {
    pub(super) fn checksum(&self) -> i64 {
        let mut checksum = Checksum(Vec::with_capacity(512 + 2 * self.body.len()));
        checksum.add_number(self.id.0.cast_signed());
        checksum.add_bytes(self.content_key);
        checksum.add_number(self.mode);
        checksum.add_number(self.received_at);
        checksum.add_bytes(self.account.as_bytes());
        checksum.add_bytes(self.app_id.as_bytes());
        checksum.add_some(self.traceparent.map(str::as_bytes));
        checksum.add_bytes(self.query);
        checksum.add_bytes(self.body);
        checksum.add_some(self.clear);
        match self.key {
            None => checksum.add_null(),
            Some(key) => checksum.add_number(key),
        }
        checksum.value()
    }
}

/// The columns of a fresh event's row.
pub(super) fn columns_of<'a>(new: &'a NewEvent, sealed: Option<&'a SealedColumns>) -> CoveredColumns<'a> {
    let Event { id, account, app_id, mode, received_at, query, body, clear, traceparent, .. } = &*new.event;
    let in_clear = (query.as_bytes(), &body[..], (clear != body).then_some(&clear[..]), None);
    let (query, body, clear, key) = sealed
        .map_or(in_clear, |sealed| (&sealed.query[..], &sealed.body[..], sealed.clear.as_deref(), Some(sealed.key)));
    CoveredColumns {
        id: *id,
        content_key: &new.key.0,
        mode: mode_number(*mode).into(),
        received_at: received_at.0,
        account,
        app_id,
        traceparent: traceparent.as_deref(),
        query,
        body,
        clear,
        key,
    }
}

/// Whether a stored reply is what was written. One that is not counts as none, so that WeChat's retry is answered all the
/// same. A row of an earlier schema has no checksum, and counts as intact.
pub(super) fn is_reply_intact(event: EventId, stored: &[u8], checksum: Option<i64>) -> bool {
    let is_intact = checksum.is_none_or(|checksum| checksum == of_reply(event, stored));
    if !is_intact {
        tracing::error!(%event, "stored reply damaged; not sent");
    }
    is_intact
}

/// The checksum of an event's reply as it is stored, in the clear or encrypted.
pub(super) fn of_reply(event: EventId, stored: &[u8]) -> i64 {
    let mut checksum = Checksum::default();
    checksum.add_number(event.0.cast_signed());
    checksum.add_bytes(stored);
    checksum.value()
}

/// The checksum of a held reply as it is stored, in the clear or encrypted; `at`: when its attempt began.
pub(super) fn of_held(event: EventId, at: i64, stored: &[u8]) -> i64 {
    let mut checksum = Checksum::default();
    checksum.add_number(event.0.cast_signed());
    checksum.add_number(at);
    checksum.add_bytes(stored);
    checksum.value()
}
