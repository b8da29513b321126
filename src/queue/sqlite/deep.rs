//! Reading every stored event back and checking it against its own rows: the base of `wxrelay audit --deep`.
//!
//! Events are read as the dispatcher reads them, a page at a time. Each page is a snapshot of
//! its own: a reader that stays open keeps the log from being restarted. Not here: whether the stored push can still
//! be decrypted with its account's keys, and whether a target's format can be written; the queue knows neither.

use rusqlite::types::Value;
use rusqlite::{Row, Transaction, params};

use super::checksum;
use super::inspect::SqliteReader;
use super::statements::read_event;
use crate::event::{Event, EventId};
use crate::queue::checksum as checksums;
use crate::queue::encryption::{DecryptError, SealContext};
use crate::queue::key_ring::KeyRing;
use crate::queue::read_back::{Flaw, OpenDelivery, StoredEvent, StoredPage, flaws_of_columns};
use crate::queue::stored::key_of;
use crate::queue::{DeliveryState, Error};

/// Events of one page: few enough not to keep the log from being written back. A page ends earlier at this many bytes.
const PAGE: i64 = 500;
const PAGE_BYTES: u64 = 32 << 20;
/// The most findings of SQLite's own check.
const FILE_FINDINGS: u32 = 20;

impl SqliteReader {
    /// What SQLite's `integrity_check` finds in the file, indexes included: a delivery that is in its table but not in
    /// an index would never be leased. Reads the whole file in one snapshot.
    ///
    /// # Errors
    /// If the check cannot be begun.
    pub(in crate::queue) fn check_file(&self) -> Result<Vec<String>, Error> {
        let mut check = self.connection.prepare(&format!("PRAGMA integrity_check({FILE_FINDINGS})"))?;
        let found = check.query_map([], |row| row.get::<_, String>(0))?;
        // The check itself ends at damage that it cannot step over.
        let found = found.map(|finding| finding.unwrap_or_else(|error| error.to_string()));
        Ok(found.take(FILE_FINDINGS as usize).filter(|finding| finding != "ok").collect())
    }

    /// The newest event, at which a walk over the store ends.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub(in crate::queue) fn newest(&self) -> Result<Option<EventId>, Error> {
        Ok(self.connection.query_row("SELECT max(id) FROM event", [], |row| row.get(0))?)
    }

    /// The first events that deliveries are of and that are gone.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub(in crate::queue) fn orphans(&self, most: usize) -> Result<Vec<EventId>, Error> {
        let mut find = self.connection.prepare(
            "SELECT DISTINCT event FROM delivery d WHERE NOT EXISTS (SELECT 1 FROM event WHERE id = d.event) LIMIT ?1",
        )?;
        let found = find.query_map([i64::try_from(most).unwrap_or(i64::MAX)], |row| row.get(0))?;
        Ok(found.collect::<rusqlite::Result<_>>()?)
    }

    /// Reads back the page of events behind `after`, up to `until`.
    ///
    /// # Errors
    /// If the store cannot be read, beyond single rows.
    pub(in crate::queue) fn read_back(&self, after: Option<EventId>, until: EventId) -> Result<StoredPage, Error> {
        let snapshot = self.connection.unchecked_transaction()?;
        let keys = self.key_ring(&snapshot)?;
        let mut find = snapshot.prepare_cached(
            "SELECT id, account, app_id, mode, received_at, query, body, clear, traceparent, key, \
                    content_key, checksum, targets, msg_type, event, event_key, from_user, reply \
               FROM event WHERE id > ?1 AND id <= ?2 ORDER BY id LIMIT ?3",
        )?;
        let (mut last, mut events, mut bytes) = (after, Vec::new(), 0);
        let mut rows = find.query(params![after.unwrap_or(BEFORE_ALL), until, PAGE])?;
        loop {
            match rows.next() {
                Ok(None) => break,
                Ok(Some(row)) => {
                    let id = row.get(0)?;
                    last = Some(id);
                    let stored = read(&snapshot, id, row, &keys);
                    bytes += stored.event.as_ref().map_or(0, |event| event.memory_bytes());
                    events.push(stored);
                    if bytes > PAGE_BYTES {
                        break;
                    }
                }
                // Damage within a row: its id and the rows behind it can still be read.
                Err(error) => match Error::from(error) {
                    Error::Engine(error) => {
                        let Some(id) = next_id(&snapshot, last)? else { return Err(Error::Engine(error)) };
                        last = Some(id);
                        events.push(StoredEvent::unreadable(id, &error));
                        break;
                    }
                    passing => return Err(passing),
                },
            }
        }
        Ok(StoredPage { events, last: last.filter(|_| last != after) })
    }
}

impl StoredEvent {
    fn unreadable(id: EventId, error: &rusqlite::Error) -> Self {
        Self { id, event: None, flaws: vec![Flaw::Unreadable(error.to_string())], open: Vec::new() }
    }
}

/// Smaller than any id.
const BEFORE_ALL: EventId = EventId(i64::MIN.cast_unsigned());

fn next_id(snapshot: &Transaction<'_>, after: Option<EventId>) -> rusqlite::Result<Option<EventId>> {
    let mut find = snapshot.prepare_cached("SELECT min(id) FROM event WHERE id > ?1")?;
    find.query_row([after.unwrap_or(BEFORE_ALL)], |row| row.get(0))
}

fn read(snapshot: &Transaction<'_>, id: EventId, row: &Row<'_>, keys: &KeyRing) -> StoredEvent {
    let judged = judge(row, keys).and_then(|(event, mut flaws)| {
        if event.is_some()
            && let Some(unopened) = rest(snapshot, id, row, keys)?
        {
            flaws.push(Flaw::Encrypted(unopened));
        }
        if event.is_some()
            && let Some(flaw) = held_replies(snapshot, id, row, keys)?
        {
            flaws.push(flaw);
        }
        if event.is_some() && !is_known(snapshot, id, row)? {
            flaws.push(Flaw::Unknown);
        }
        let (found, open) = deliveries(snapshot, id)?;
        let stored = row.get("targets")?;
        if found != stored {
            flaws.push(Flaw::Deliveries { stored, found });
        }
        Ok(StoredEvent { id, event, flaws, open })
    });
    judged.unwrap_or_else(|error| StoredEvent::unreadable(id, &error))
}

/// The event, and how the rest of its row agrees with it.
fn judge(row: &Row<'_>, keys: &KeyRing) -> rusqlite::Result<(Option<Event>, Vec<Flaw>)> {
    let event = match read_event(row, keys)? {
        Ok(event) => event,
        Err(flaw) => return Ok((None, vec![flaw])),
    };
    // The columns of the texts come after those that the event is read from.
    let texts = [row.get(COLUMNS_OF_TEXT)?, row.get(COLUMNS_OF_TEXT + 1)?, row.get(COLUMNS_OF_TEXT + 2)?];
    let texts: [String; 3] = texts;
    let mut flaws = flaws_of_columns(&event, [&texts[0], &texts[1], &texts[2]], row.get_ref("from_user")?.as_str()?);
    if row.get::<_, Vec<u8>>("content_key")? != key_of(&event).0 {
        flaws.push(Flaw::ContentKey);
    }
    if !checksum::is_intact(row)? {
        flaws.push(Flaw::Checksum);
    }
    Ok((Some(event), flaws))
}

/// The index of the first column that was read out of the text.
const COLUMNS_OF_TEXT: usize = 13;

/// Why the reply to an encrypted event, or a target's answer, cannot be decrypted.
fn rest(
    snapshot: &Transaction<'_>,
    id: EventId,
    row: &Row<'_>,
    keys: &KeyRing,
) -> rusqlite::Result<Option<DecryptError>> {
    let Some(key) = row.get("key")? else { return Ok(None) };
    let reply: Option<Vec<u8>> = row.get("reply")?;
    if let Some(Err(unopened)) = reply.map(|reply| keys.open_text(key, SealContext::Reply(id), &reply)) {
        return Ok(Some(unopened));
    }
    let mut find = snapshot
        .prepare_cached("SELECT target, number, answer FROM attempt WHERE event = ?1 AND answer IS NOT NULL")?;
    let mut rows = find.query([id])?;
    while let Some(row) = rows.next()? {
        let (target, number, answer): (_, _, Vec<u8>) = (row.get(0)?, row.get(1)?, row.get(2)?);
        if let Err(unopened) = keys.open(key, SealContext::Answer(id, target, number), &answer) {
            return Ok(Some(unopened));
        }
    }
    Ok(None)
}

/// What is wrong with a held reply.
fn held_replies(
    snapshot: &Transaction<'_>,
    id: EventId,
    row: &Row<'_>,
    keys: &KeyRing,
) -> rusqlite::Result<Option<Flaw>> {
    let key: Option<i64> = row.get("key")?;
    let mut find = snapshot
        .prepare_cached("SELECT coalesce(at, 0), checksum, content FROM held_reply WHERE event = ?1 AND state = 2")?;
    let mut rows = find.query([id])?;
    while let Some(row) = rows.next()? {
        let (at, sum): (i64, Option<i64>) = (row.get(0)?, row.get(1)?);
        let stored = row.get_ref(2)?.as_bytes_or_null()?.unwrap_or_default();
        if sum != Some(checksums::of_held(id, at, stored)) {
            return Ok(Some(Flaw::HeldReply));
        }
        if let Some(Err(unopened)) = key.map(|key| keys.open_text(key, SealContext::Held(id, at), stored)) {
            return Ok(Some(Flaw::Encrypted(unopened)));
        }
    }
    Ok(None)
}

/// Whether the index of content keys leads to the event, if it is old enough to be in there.
fn is_known(snapshot: &Transaction<'_>, id: EventId, row: &Row<'_>) -> rusqlite::Result<bool> {
    let mut find = snapshot.prepare_cached(
        "SELECT ?1 > (SELECT event FROM known_until) OR ?1 IS (SELECT event FROM known WHERE content_key = ?2)",
    )?;
    find.query_row(params![id, row.get::<_, Value>("content_key")?], |row| row.get(0))
}

/// How many deliveries an event has, and which of them are open.
fn deliveries(snapshot: &Transaction<'_>, event: EventId) -> rusqlite::Result<(i64, Vec<OpenDelivery>)> {
    let mut find = snapshot.prepare_cached(
        "SELECT t.name, d.state FROM delivery d LEFT JOIN target t ON t.no = d.target WHERE d.event = ?1",
    )?;
    let (mut found, mut open) = (0, Vec::new());
    let mut rows = find.query([event])?;
    while let Some(row) = rows.next()? {
        found += 1;
        // An unknown state is reported by the audit of the ledger.
        if let Ok(state @ (DeliveryState::Pending | DeliveryState::Dead)) = row.get(1) {
            open.push(OpenDelivery { target: row.get(0)?, state });
        }
    }
    Ok((found, open))
}
