//! How the relay's own types are stored in columns, and read from them.

use std::borrow::Cow;

use tokio_postgres::Row;

use super::failure::Failure;
use crate::clock::UnixMillis;
use crate::event::{Event, EventId};
use crate::queue::DeliveryState;
use crate::queue::checksum::CoveredColumns;
use crate::queue::key_ring::{KeyRing, OpenedPayload};
use crate::queue::stored::{StoredRow, key_of, mode_of};
use crate::queue::{DecryptError, Flaw};

/// The number of an event in the store.
pub(super) fn id_of(event: EventId) -> i64 {
    event.0.cast_signed()
}

/// The event with that number.
pub(super) fn event_id(number: i64) -> EventId {
    EventId(number.cast_unsigned())
}

/// The number of a state in the store.
pub(super) fn state_number(state: DeliveryState) -> i16 {
    state as i16
}

/// The state with that number in the store.
///
/// # Errors
/// If there is none.
pub(super) fn state_of(number: i16) -> Result<DeliveryState, Failure> {
    let found = DeliveryState::ALL.into_iter().find(|state| *state as i16 == number);
    found.ok_or_else(|| Failure::Internal(format!("the state {number} of a delivery is unknown")))
}

/// A text as PostgreSQL stores it: it refuses NUL.
pub(super) fn text(text: &str) -> Cow<'_, str> {
    if text.contains('\0') { Cow::Owned(text.replace('\0', "\u{fffd}")) } else { Cow::Borrowed(text) }
}

/// Reads an event from the row's columns from `first` on: `id, account, app_id, mode, received_at, query, body, clear,
/// traceparent, key`; or why it is unreadable.
pub(super) fn read_event(row: &Row, first: usize, keys: &KeyRing) -> Result<Result<Event, Flaw>, Failure> {
    let Some(number) = row.try_get::<_, Option<i64>>(first)? else { return Ok(Err(Flaw::Missing)) };
    let id = event_id(number);
    let Some(mode) = mode_of(row.try_get::<_, i16>(first + 3)?.into()) else {
        return Ok(Err(Flaw::Unreadable("its mode is unknown".to_owned())));
    };
    let (query, body): (Vec<u8>, Vec<u8>) = (row.try_get(first + 5)?, row.try_get(first + 6)?);
    let clear: Option<Vec<u8>> = row.try_get(first + 7)?;
    let payload = match row.try_get::<_, Option<i16>>(first + 9)? {
        None => match String::from_utf8(query) {
            Ok(query) => Ok(OpenedPayload { query, body, clear }),
            Err(_) => return Ok(Err(Flaw::Unreadable("its query is not UTF-8".to_owned()))),
        },
        Some(key) => keys.open_payload(key.into(), id, [Some(&query), Some(&body), clear.as_deref()]),
    };
    let payload = match payload {
        Ok(payload) => payload,
        Err(unopened) => return Ok(Err(Flaw::Encrypted(unopened))),
    };
    Ok(StoredRow {
        id,
        account: row.try_get(first + 1)?,
        app_id: row.try_get(first + 2)?,
        mode,
        received_at: UnixMillis(row.try_get(first + 4)?),
        traceparent: row.try_get(first + 8)?,
        payload,
    }
    .into_event())
}

/// As [`read_event`], where `content_key` and `checksum` follow; what is not what was received is an error.
pub(super) fn read_verified(row: &Row, first: usize, keys: &KeyRing) -> Result<Result<Event, Flaw>, Failure> {
    let event = match read_event(row, first, keys)? {
        Ok(_) if !is_intact(row, first)? => return Ok(Err(Flaw::Checksum)),
        Ok(event) => event,
        Err(flaw) => return Ok(Err(flaw)),
    };
    let is_keyed = row.try_get::<_, Option<&[u8]>>(first + 10)? == Some(&key_of(&event).0[..]);
    Ok(if is_keyed { Ok(event) } else { Err(Flaw::ContentKey) })
}

/// Whether a row with the columns of [`read_verified`] is what was written. One without a checksum counts as intact.
pub(super) fn is_intact(row: &Row, first: usize) -> Result<bool, Failure> {
    let Some(stored) = row.try_get::<_, Option<i64>>(first + 11)? else { return Ok(true) };
    let covered = CoveredColumns {
        id: event_id(row.try_get(first)?),
        content_key: row.try_get(first + 10)?,
        mode: row.try_get::<_, i16>(first + 3)?.into(),
        received_at: row.try_get(first + 4)?,
        account: row.try_get(first + 1)?,
        app_id: row.try_get(first + 2)?,
        traceparent: row.try_get(first + 8)?,
        query: row.try_get(first + 5)?,
        body: row.try_get(first + 6)?,
        clear: row.try_get(first + 7)?,
        key: row.try_get::<_, Option<i16>>(first + 9)?.map(i64::from),
    };
    Ok(covered.checksum() == stored)
}

/// A stored reply in the clear; `key` is that of its event.
pub(super) fn open_reply(
    keys: &KeyRing,
    event: EventId,
    key: Option<i16>,
    reply: Vec<u8>,
) -> Result<String, DecryptError> {
    match key {
        None => String::from_utf8(reply).map_err(|_| DecryptError::Damaged),
        Some(key) => keys.open_text(key.into(), crate::queue::encryption::SealContext::Reply(event), &reply),
    }
}
