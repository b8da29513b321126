//! The checksums of stored events (`queue/checksum.rs`) over values of SQLite.

use rusqlite::Row;
use rusqlite::types::ValueRef;

use crate::queue::checksum::Checksum;

/// The columns that `event.checksum` covers, in the order in which it does.
pub(super) const COVERED: [&str; 11] =
    ["id", "content_key", "mode", "received_at", "account", "app_id", "traceparent", "query", "body", "clear", "key"];

/// Adds a value.
pub(super) fn add(checksum: &mut Checksum, value: ValueRef<'_>) {
    match value {
        ValueRef::Null => checksum.add_null(),
        ValueRef::Integer(number) => checksum.add_number(number),
        ValueRef::Real(number) => checksum.add_number(number.to_bits().cast_signed()),
        ValueRef::Text(bytes) | ValueRef::Blob(bytes) => checksum.add_bytes(bytes),
    }
}

/// Whether a row that has the columns of [`COVERED`] and `checksum` is what was written. A row of an earlier schema has
/// no checksum, and counts as intact.
pub(super) fn is_intact(row: &Row<'_>) -> rusqlite::Result<bool> {
    let Some(stored) = row.get::<_, Option<i64>>("checksum")? else { return Ok(true) };
    let mut checksum = Checksum::default();
    for column in COVERED {
        add(&mut checksum, row.get_ref(column)?);
    }
    Ok(checksum.value() == stored)
}
