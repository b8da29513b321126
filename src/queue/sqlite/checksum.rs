//! The checksums of stored events: whether what is read from the disk is what was written.
//!
//! The content key covers an event's text and AppID only, and SQLite's database file has no checksums at all: a flipped
//! bit in a row is read like any other value. `event.checksum` covers whatever leaves the relay in a delivery, and
//! `event.reply_checksum` the reply to WeChat. CRC-32 finds every error of up to 32 bits in a row, and misses one of four
//! billion others. It costs a few instructions per 16 bytes; the simple version, a second SHA-256, costs a dozen per
//! byte.

use rusqlite::Row;
use rusqlite::types::ValueRef;

use super::key_ring::SealedColumns;
use crate::event::{Event, EventId};
use crate::queue::NewEvent;

/// The columns that `event.checksum` covers, in the order in which it does.
pub(super) const COVERED: [&str; 11] =
    ["id", "content_key", "mode", "received_at", "account", "app_id", "traceparent", "query", "body", "clear", "key"];

/// The checksum of values in a fixed order. They are gathered, as one long calculation costs less than many short ones.
#[derive(Default)]
pub(super) struct Checksum(Vec<u8>);

impl Checksum {
    /// Adds a value. Its length goes first, so that no two rows run together to the same bytes.
    pub(super) fn add(&mut self, value: ValueRef<'_>) {
        match value {
            ValueRef::Null => self.0.push(0),
            ValueRef::Integer(number) => self.0.extend(number.to_le_bytes()),
            ValueRef::Real(number) => self.0.extend(number.to_bits().to_le_bytes()),
            ValueRef::Text(bytes) | ValueRef::Blob(bytes) => {
                self.0.extend((bytes.len() as u64).to_le_bytes());
                self.0.extend(bytes);
            }
        }
    }

    /// As it is stored.
    pub(super) fn value(self) -> i64 {
        crc32fast::hash(&self.0).into()
    }
}

fn bytes(value: Option<&[u8]>) -> ValueRef<'_> {
    value.map_or(ValueRef::Null, ValueRef::Blob)
}

/// The checksum of a fresh event's row.
pub(super) fn of_event(new: &NewEvent, sealed: Option<&SealedColumns>) -> i64 {
    let Event { id, account, app_id, mode, received_at, query, body, clear, traceparent, .. } = &*new.event;
    let in_clear = [ValueRef::Blob(query.as_bytes()), ValueRef::Blob(body), bytes((clear != body).then_some(&**clear))];
    let ([query, body, clear], key) = match sealed {
        None => (in_clear, ValueRef::Null),
        Some(sealed) => (sealed.payload().map(bytes), ValueRef::Integer(sealed.key())),
    };
    let mut checksum = Checksum(Vec::with_capacity(512 + 2 * new.event.body.len()));
    for value in [
        ValueRef::Integer(id.0.cast_signed()),
        ValueRef::Blob(&new.key.0),
        ValueRef::Integer(super::values::mode_number(*mode)),
        ValueRef::Integer(received_at.0),
        ValueRef::Blob(account.as_bytes()),
        ValueRef::Blob(app_id.as_bytes()),
        bytes(traceparent.as_deref().map(str::as_bytes)),
        query,
        body,
        clear,
        key,
    ] {
        checksum.add(value);
    }
    checksum.value()
}

/// Whether a row that has the columns of [`COVERED`] and `checksum` is what was written. A row of an earlier schema has
/// no checksum, and counts as intact.
pub(super) fn is_intact(row: &Row<'_>) -> rusqlite::Result<bool> {
    let Some(stored) = row.get::<_, Option<i64>>("checksum")? else { return Ok(true) };
    let mut checksum = Checksum::default();
    for column in COVERED {
        checksum.add(row.get_ref(column)?);
    }
    Ok(checksum.value() == stored)
}

/// The checksum of an event's reply as it is stored, in the clear or encrypted.
pub(super) fn of_reply(event: EventId, stored: &[u8]) -> i64 {
    let mut checksum = Checksum::default();
    checksum.add(ValueRef::Integer(event.0.cast_signed()));
    checksum.add(ValueRef::Blob(stored));
    checksum.value()
}
