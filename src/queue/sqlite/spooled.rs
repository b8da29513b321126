//! Reading what a spool holds: the oldest events as they were stored, to be stored elsewhere and then deleted here.

use std::sync::Arc;

use rusqlite::{Row, Transaction, params};

use super::inspect::SqliteReader;
use super::statements::{is_reply_intact, read_event};
use super::{Sqlite, checksum};
use crate::clock::UnixMillis;
use crate::event::{ContentKey, EventId};
use crate::queue::encryption::{EncryptionKeys, SealContext};
use crate::queue::key_ring::KeyRing;
use crate::queue::{Error, EventFilter, Flaw, NewEvent, Sweep, SweepAction};

/// A page of events ends at this many bytes.
const PAGE_BYTES: usize = 8 << 20;

/// An event of a spool.
#[derive(Debug)]
pub(in crate::queue) struct SpooledEvent {
    pub(in crate::queue) id: EventId,
    /// As it was stored, but that no reply of a target is awaited; or why it is unreadable.
    pub(in crate::queue) new: Result<NewEvent, Flaw>,
}

impl Sqlite {
    /// The first `most` events in the order of their ids.
    pub(in crate::queue) async fn spooled(
        &self,
        keys: &EncryptionKeys,
        most: usize,
    ) -> Result<Vec<SpooledEvent>, Error> {
        let keys = keys.clone();
        self.read(move |store| store.spooled(&keys, most)).await
    }

    /// Deletes events that are stored elsewhere now, with the free pages that they leave. Returns how many there were.
    pub(in crate::queue) async fn remove_spooled(&self, events: Vec<EventId>) -> Result<u64, Error> {
        let sweep = Sweep { filter: EventFilter::default(), events: Some(events), action: SweepAction::Forget };
        let (sweep, mut after, mut removed) = (Arc::new(sweep), Some(EventId(0)), 0);
        while let Some(from) = after {
            let step = self.sweep(&sweep, from, UnixMillis::now()).await?;
            removed += step.changed;
            after = step.next;
        }
        Ok(removed)
    }

    /// The greatest id that was given or is stored.
    pub(in crate::queue) fn last_id(&self) -> EventId {
        EventId(self.last_id.load(std::sync::atomic::Ordering::Relaxed))
    }
}

impl SqliteReader {
    fn spooled(&self, keys: &EncryptionKeys, most: usize) -> Result<Vec<SpooledEvent>, Error> {
        let snapshot = self.connection.unchecked_transaction()?;
        let keys = super::key_table::load(&snapshot, keys)?;
        let mut find = snapshot.prepare_cached(
            "SELECT id, account, app_id, mode, received_at, query, body, clear, traceparent, key, \
                    content_key, checksum, targets, msg_type, event, event_key, from_user, reply, reply_checksum \
               FROM event ORDER BY id LIMIT ?1",
        )?;
        let mut rows = find.query([i64::try_from(most).unwrap_or(i64::MAX)])?;
        let (mut found, mut bytes) = (Vec::new(), 0);
        while let Some(row) = rows.next()? {
            let id = row.get(0)?;
            let new = read(&snapshot, row, &keys).unwrap_or_else(|error| Err(Flaw::Unreadable(error.to_string())));
            bytes += new.as_ref().map_or(0, |new| new.event.memory_bytes());
            found.push(SpooledEvent { id, new });
            if bytes >= PAGE_BYTES as u64 {
                break;
            }
        }
        Ok(found)
    }
}

fn read(snapshot: &Transaction<'_>, row: &Row<'_>, keys: &KeyRing) -> rusqlite::Result<Result<NewEvent, Flaw>> {
    let event = match read_event(row, keys)? {
        Ok(event) => event,
        Err(flaw) => return Ok(Err(flaw)),
    };
    if !checksum::is_intact(row)? {
        return Ok(Err(Flaw::Checksum));
    }
    let key: Vec<u8> = row.get("content_key")?;
    let Ok(key) = key.try_into().map(ContentKey) else { return Ok(Err(Flaw::ContentKey)) };
    let reply = match row.get::<_, Option<i64>>("key")? {
        _ if !is_reply_intact(event.id, row.get_ref("reply")?, row.get_ref("reply_checksum")?) => None,
        None => row.get("reply")?,
        Some(number) => {
            let sealed: Option<Vec<u8>> = row.get("reply")?;
            match sealed.map(|sealed| keys.open_text(number, SealContext::Reply(event.id), &sealed)).transpose() {
                Ok(reply) => reply,
                Err(unopened) => return Ok(Err(Flaw::Encrypted(unopened))),
            }
        }
    };
    let mut find =
        snapshot.prepare_cached("SELECT t.name FROM delivery d JOIN target t ON t.no = d.target WHERE d.event = ?1")?;
    let targets = find.query_map(params![event.id], |row| row.get::<_, String>(0))?;
    let targets: Vec<Arc<str>> = targets.map(|name| name.map(Into::into)).collect::<rusqlite::Result<_>>()?;
    let (stored, found) = (row.get("targets")?, targets.len().cast_signed() as i64);
    if stored != found {
        return Ok(Err(Flaw::Deliveries { stored, found }));
    }
    Ok(Ok(NewEvent { event: Arc::new(event), key, targets, reply, awaited: Vec::new() }))
}
