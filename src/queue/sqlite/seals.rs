//! Which key a stored event is sealed by, and opening and sealing what stands in its rows.
//!
//! The table `key` gives each key that an event is sealed by a number, and `event.key` has it. All of one event is
//! sealed by that key, or nothing is: what comes later, a reply or a target's answer, follows the event. Invariant: a
//! store is not written with a key missing that one of its events is sealed by ([`adopt`]).

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::Path;

use rusqlite::types::ToSql;
use rusqlite::{Connection, OptionalExtension, Row, params};

use super::store::Store;
use crate::event::EventId;
use crate::queue::encryption::{EncryptionKey, EncryptionKeys, Fingerprint, Place, Unopened};
use crate::queue::{Error, NewEvent};

/// The keys that a store names, by number: each as far as it is given.
#[derive(Clone, Default)]
pub(super) struct Seals(BTreeMap<i64, Result<EncryptionKey, Fingerprint>>);

/// What seals fresh events.
#[derive(Clone)]
pub(super) struct Sealer {
    number: i64,
    key: EncryptionKey,
}

/// What a fresh event's row holds instead of clear texts.
pub(super) struct Sealed {
    key: i64,
    query: Vec<u8>,
    body: Vec<u8>,
    clear: Option<Vec<u8>>,
    reply: Option<Vec<u8>>,
}

/// The part of an event's row that may be sealed, opened.
pub(super) struct Payload {
    pub(super) query: String,
    pub(super) body: Vec<u8>,
    pub(super) clear: Option<Vec<u8>>,
}

/// How the events of a store are kept.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sealing {
    /// The keys that some of them are sealed by.
    pub keys: Vec<Fingerprint>,
    /// Whether some are in the clear.
    pub in_clear: bool,
}

impl Seals {
    /// The keys that the store names, out of those that are given.
    pub(super) fn read(connection: &Connection, given: &EncryptionKeys) -> rusqlite::Result<Self> {
        let named = named(connection)?.into_iter();
        Ok(Self(named.map(|(number, print)| (number, given.find(print).cloned().ok_or(print))).collect()))
    }

    /// Opens a value of an event that is sealed by the key of that number.
    pub(super) fn open(&self, number: i64, place: Place, sealed: &[u8]) -> Result<Vec<u8>, Unopened> {
        match self.0.get(&number) {
            None => Err(Unopened::KeyUnknown),
            Some(Err(missing)) => Err(Unopened::KeyMissing(*missing)),
            Some(Ok(key)) => key.open(place, sealed).ok_or(Unopened::Damaged),
        }
    }

    /// The same for a text.
    pub(super) fn open_text(&self, number: i64, place: Place, sealed: &[u8]) -> Result<String, Unopened> {
        String::from_utf8(self.open(number, place, sealed)?).map_err(|_| Unopened::Damaged)
    }

    /// Opens the columns `query`, `body` and `clear`, which stand in the row one after the other from `first` on.
    pub(super) fn payload(
        &self,
        number: i64,
        id: EventId,
        row: &Row<'_>,
        first: usize,
    ) -> rusqlite::Result<Result<Payload, Unopened>> {
        let value = |column| Ok::<_, rusqlite::Error>(row.get_ref(first + column)?.as_bytes_or_null()?);
        let (query, body, clear) = (value(0)?, value(1)?, value(2)?);
        let open = || {
            let query = self.open_text(number, Place::Query(id), query.unwrap_or_default())?;
            let body = self.open(number, Place::Body(id), body.unwrap_or_default())?;
            let clear = clear.map(|clear| self.open(number, Place::Clear(id), clear)).transpose()?;
            Ok(Payload { query, body, clear })
        };
        Ok(open())
    }

    fn seal(&self, number: i64, place: Place, clear: &[u8]) -> rusqlite::Result<Vec<u8>> {
        match self.0.get(&number) {
            Some(Ok(key)) => key.seal(place, clear).map_err(failed),
            Some(Err(missing)) => Err(failed(Unopened::KeyMissing(*missing))),
            None => Err(failed(Unopened::KeyUnknown)),
        }
    }

    /// What seals fresh events from now on, if a key is given for that.
    pub(super) fn sealer(&self, given: &EncryptionKeys) -> Option<Sealer> {
        let key = given.first()?;
        let is_first = |named: &Result<EncryptionKey, _>| {
            named.as_ref().is_ok_and(|named| named.fingerprint() == key.fingerprint())
        };
        let number = self.0.iter().find(|(_, named)| is_first(named)).map(|(number, _)| *number)?;
        Some(Sealer { number, key: key.clone() })
    }
}

impl Sealer {
    /// Seals a fresh event, beside the writer.
    pub(super) fn seal(&self, new: &NewEvent) -> Result<Sealed, Error> {
        let (event, id) = (&*new.event, new.event.id);
        let seal = |place, clear: &[u8]| self.key.seal(place, clear).map_err(|error| Error::from(failed(error)));
        let clear = (event.clear != event.body).then_some(&event.clear);
        Ok(Sealed {
            key: self.number,
            query: seal(Place::Query(id), event.query.as_bytes())?,
            body: seal(Place::Body(id), &event.body)?,
            clear: clear.map(|clear| seal(Place::Clear(id), clear)).transpose()?,
            reply: new.reply.as_ref().map(|reply| seal(Place::Reply(id), reply.as_bytes())).transpose()?,
        })
    }
}

impl Sealed {
    /// The columns `reply`, `query`, `body`, `clear` and `key`.
    pub(super) fn columns(&self) -> [&dyn ToSql; 5] {
        [&self.reply, &self.query, &self.body, &self.clear, &self.key]
    }
}

impl Store {
    /// A later value of an event as it is to be stored: sealed by the event's key, if it has one.
    pub(super) fn sealed_as<'v>(
        &self,
        event: EventId,
        place: Place,
        value: &'v [u8],
    ) -> rusqlite::Result<Cow<'v, [u8]>> {
        if self.seals.0.is_empty() {
            return Ok(Cow::Borrowed(value));
        }
        let mut find = self.connection.prepare_cached("SELECT key FROM event WHERE id = ?1")?;
        let key: Option<i64> = find.query_row([event], |row| row.get(0)).optional()?.flatten();
        key.map_or(Ok(Cow::Borrowed(value)), |number| self.seals.seal(number, place, value).map(Cow::Owned))
    }
}

/// Makes the store's keys those that are given: the first gets a number, and one that is not given any more is let go.
///
/// # Errors
/// [`Error::KeyMissing`] if an event is still sealed by one that is not given.
pub(super) fn adopt(store: &mut Store, given: &EncryptionKeys, path: &Path) -> Result<(), Error> {
    let named = named(&store.connection)?;
    for (number, print) in named.iter().filter(|(_, print)| given.find(*print).is_none()) {
        if is_in_use(&store.connection, *number)? {
            return Err(Error::KeyMissing { path: path.to_owned(), key: *print });
        }
        store.transact(|store| store.connection.execute("DELETE FROM key WHERE no = ?1", [number]).map(drop))?;
        tracing::info!(key = %print, "no event is sealed by this key any more; the store has let go of it");
    }
    if let Some(first) = given.first().map(EncryptionKey::fingerprint)
        && named.iter().all(|(_, print)| *print != first)
    {
        let insert = "INSERT INTO key (fingerprint) VALUES (?1)";
        store.transact(|store| store.connection.execute(insert, params![first.0]).map(drop))?;
        tracing::info!(key = %first, "payloads are sealed by this key from now on");
    }
    store.seals = Seals::read(&store.connection, given)?;
    Ok(())
}

/// How the events of the store are kept.
pub(super) fn survey(connection: &Connection) -> rusqlite::Result<Sealing> {
    let mut keys = Vec::new();
    for (number, print) in named(connection)? {
        keys.extend(is_in_use(connection, number)?.then_some(print));
    }
    let in_clear = "SELECT EXISTS (SELECT 1 FROM event WHERE key IS NULL)";
    Ok(Sealing { keys, in_clear: connection.query_row(in_clear, [], |row| row.get(0))? })
}

/// There is no index for this: it looks at the events one by one, the oldest first, and where a key was changed long ago
/// at all of them. That is asked for only when a key has gone.
fn is_in_use(connection: &Connection, number: i64) -> rusqlite::Result<bool> {
    connection.query_row("SELECT EXISTS (SELECT 1 FROM event WHERE key = ?1)", [number], |row| row.get(0))
}

fn named(connection: &Connection) -> rusqlite::Result<Vec<(i64, Fingerprint)>> {
    let mut find = connection.prepare("SELECT no, fingerprint FROM key ORDER BY no")?;
    find.query_map([], |row| Ok((row.get(0)?, Fingerprint(row.get(1)?))))?.collect()
}

/// As a failure of the statement that the value is for.
fn failed(error: impl std::error::Error + Send + Sync + 'static) -> rusqlite::Error {
    rusqlite::Error::ToSqlConversionFailure(Box::new(error))
}
