//! The keys that events are encrypted with: which one an event has, and encrypting and decrypting its columns.
//!
//! The table `key` gives each key a number, and `event.key` names it. Either the whole payload of an event is encrypted
//! with that key or nothing is: a later reply or answer is stored like its event. Invariant: a store is not written
//! while a key is missing that one of its events needs ([`KeyRing::adopt`]).

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::Path;

use rusqlite::types::ToSql;
use rusqlite::{Connection, OptionalExtension, Row, Transaction, TransactionBehavior, params};

use crate::event::EventId;
use crate::queue::encryption::{DecryptError, EncryptionKey, EncryptionKeys, Fingerprint, SealContext};
use crate::queue::{Error, NewEvent};

/// The keys that a store names, by number: each the key itself where it is configured, else its fingerprint.
#[derive(Clone, Default)]
pub(super) struct KeyRing(BTreeMap<i64, Result<EncryptionKey, Fingerprint>>);

/// Encrypts fresh events.
#[derive(Clone)]
pub(super) struct EventSealer {
    number: i64,
    key: EncryptionKey,
}

/// What a fresh event's row holds instead of clear texts.
pub(super) struct SealedColumns {
    key: i64,
    query: Vec<u8>,
    body: Vec<u8>,
    clear: Option<Vec<u8>>,
    reply: Option<Vec<u8>>,
}

/// The columns of an event's row that may be encrypted, in the clear.
pub(super) struct OpenedPayload {
    pub(super) query: String,
    pub(super) body: Vec<u8>,
    pub(super) clear: Option<Vec<u8>>,
}

/// Whether and how the events of a store are encrypted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EncryptionStatus {
    /// The keys that some of them are encrypted with.
    pub keys: Vec<Fingerprint>,
    /// Whether some are in the clear.
    pub in_clear: bool,
}

impl KeyRing {
    /// The keys that the store names, as far as they are configured.
    pub(super) fn load(connection: &Connection, configured: &EncryptionKeys) -> rusqlite::Result<Self> {
        Ok(Self::of(named_keys(connection)?, configured))
    }

    /// The keys of these numbers, as far as they are configured.
    pub(super) fn of(named: Vec<(i64, Fingerprint)>, configured: &EncryptionKeys) -> Self {
        let named = named.into_iter();
        Self(named.map(|(number, print)| (number, configured.find(print).cloned().ok_or(print))).collect())
    }

    /// Checks that every key that an event needs is configured.
    ///
    /// # Errors
    /// [`Error::KeyMissing`] if one is not.
    pub(super) fn check(connection: &Connection, configured: &EncryptionKeys, path: &Path) -> Result<(), Error> {
        for (number, print) in named_keys(connection)? {
            if configured.find(print).is_none() && is_in_use(connection, number)? {
                return Err(Error::KeyMissing { path: path.to_owned(), key: print });
            }
        }
        Ok(())
    }

    /// Makes the configured keys those of the store: the first gets a number, and a key that is no longer configured is
    /// removed.
    ///
    /// # Errors
    /// [`Error::KeyMissing`] if an event is still encrypted with a key that is not configured.
    pub(super) fn adopt(connection: &Connection, configured: &EncryptionKeys, path: &Path) -> Result<Self, Error> {
        let named = named_keys(connection)?;
        for (number, print) in named.iter().filter(|(_, print)| configured.find(*print).is_none()) {
            if is_in_use(connection, *number)? {
                return Err(Error::KeyMissing { path: path.to_owned(), key: *print });
            }
            transact(connection, |t| t.execute("DELETE FROM key WHERE no = ?1", [number]))?;
            tracing::info!(key = %print, "encryption key removed from the store: no event needs it");
        }
        if let Some(first) = configured.first().map(EncryptionKey::fingerprint)
            && named.iter().all(|(_, print)| *print != first)
        {
            transact(connection, |t| t.execute("INSERT INTO key (fingerprint) VALUES (?1)", params![first.0]))?;
            tracing::info!(key = %first, "encryption key added to the store: new payloads are encrypted with it");
        }
        Ok(Self::load(connection, configured)?)
    }

    /// Decrypts a value of an event that is encrypted with the key of that number.
    pub(super) fn open(&self, number: i64, context: SealContext, sealed: &[u8]) -> Result<Vec<u8>, DecryptError> {
        match self.0.get(&number) {
            None => Err(DecryptError::KeyUnknown),
            Some(Err(missing)) => Err(DecryptError::KeyMissing(*missing)),
            Some(Ok(key)) => key.open(context, sealed).ok_or(DecryptError::Damaged),
        }
    }

    /// As [`KeyRing::open`], for a text.
    pub(super) fn open_text(&self, number: i64, context: SealContext, sealed: &[u8]) -> Result<String, DecryptError> {
        String::from_utf8(self.open(number, context, sealed)?).map_err(|_| DecryptError::Damaged)
    }

    /// Decrypts the columns `query`, `body` and `clear`, which follow each other in the row from `first` on.
    pub(super) fn open_payload(
        &self,
        number: i64,
        id: EventId,
        row: &Row<'_>,
        first: usize,
    ) -> rusqlite::Result<Result<OpenedPayload, DecryptError>> {
        let value = |column| Ok::<_, rusqlite::Error>(row.get_ref(first + column)?.as_bytes_or_null()?);
        let (query, body, clear) = (value(0)?, value(1)?, value(2)?);
        let open = || {
            let query = self.open_text(number, SealContext::Query(id), query.unwrap_or_default())?;
            let body = self.open(number, SealContext::Body(id), body.unwrap_or_default())?;
            let clear = clear.map(|clear| self.open(number, SealContext::Clear(id), clear)).transpose()?;
            Ok(OpenedPayload { query, body, clear })
        };
        Ok(open())
    }

    /// A later value of an event as it is to be stored: encrypted with the event's key, if it has one.
    pub(super) fn seal_like_event<'v>(
        &self,
        connection: &Connection,
        event: EventId,
        context: SealContext,
        value: &'v [u8],
    ) -> rusqlite::Result<Cow<'v, [u8]>> {
        if self.0.is_empty() {
            return Ok(Cow::Borrowed(value));
        }
        let mut find = connection.prepare_cached("SELECT key FROM event WHERE id = ?1")?;
        let key: Option<i64> = find.query_row([event], |row| row.get(0)).optional()?.flatten();
        key.map_or(Ok(Cow::Borrowed(value)), |number| self.seal(number, context, value).map(Cow::Owned))
    }

    fn seal(&self, number: i64, context: SealContext, clear: &[u8]) -> rusqlite::Result<Vec<u8>> {
        match self.0.get(&number) {
            Some(Ok(key)) => key.seal(context, clear).map_err(as_statement_failure),
            Some(Err(missing)) => Err(as_statement_failure(DecryptError::KeyMissing(*missing))),
            None => Err(as_statement_failure(DecryptError::KeyUnknown)),
        }
    }

    /// The sealer for fresh events, if a key is configured.
    pub(super) fn sealer(&self, configured: &EncryptionKeys) -> Option<EventSealer> {
        let key = configured.first()?;
        let is_first = |named: &Result<EncryptionKey, _>| {
            named.as_ref().is_ok_and(|named| named.fingerprint() == key.fingerprint())
        };
        let number = self.0.iter().find(|(_, named)| is_first(named)).map(|(number, _)| *number)?;
        Some(EventSealer { number, key: key.clone() })
    }
}

impl EventSealer {
    /// Encrypts a fresh event, on the caller's thread.
    pub(super) fn seal(&self, new: &NewEvent) -> Result<SealedColumns, Error> {
        let (event, id) = (&*new.event, new.event.id);
        let seal = |context, clear: &[u8]| {
            self.key.seal(context, clear).map_err(|error| Error::from(as_statement_failure(error)))
        };
        let clear = (event.clear != event.body).then_some(&event.clear);
        Ok(SealedColumns {
            key: self.number,
            query: seal(SealContext::Query(id), event.query.as_bytes())?,
            body: seal(SealContext::Body(id), &event.body)?,
            clear: clear.map(|clear| seal(SealContext::Clear(id), clear)).transpose()?,
            reply: new.reply.as_ref().map(|reply| seal(SealContext::Reply(id), reply.as_bytes())).transpose()?,
        })
    }
}

impl SealedColumns {
    /// The columns `reply`, `query`, `body`, `clear` and `key`.
    pub(super) fn values(&self) -> [&dyn ToSql; 5] {
        [&self.reply, &self.query, &self.body, &self.clear, &self.key]
    }

    /// The columns `query`, `body` and `clear`.
    pub(super) fn payload(&self) -> [Option<&[u8]>; 3] {
        [Some(&self.query), Some(&self.body), self.clear.as_deref()]
    }

    /// The encrypted reply.
    pub(super) fn reply(&self) -> Option<&[u8]> {
        self.reply.as_deref()
    }

    /// The number of the key.
    pub(super) fn key(&self) -> i64 {
        self.key
    }
}

/// Whether and how the events of the store are encrypted.
pub(super) fn survey(connection: &Connection) -> rusqlite::Result<EncryptionStatus> {
    let mut keys = Vec::new();
    for (number, print) in named_keys(connection)? {
        keys.extend(is_in_use(connection, number)?.then_some(print));
    }
    let in_clear = "SELECT EXISTS (SELECT 1 FROM event WHERE key IS NULL)";
    Ok(EncryptionStatus { keys, in_clear: connection.query_row(in_clear, [], |row| row.get(0))? })
}

/// There is no index for this: it reads the events one by one, the oldest first, and all of them if the key was changed
/// long ago. It is called only for a key that is no longer configured.
fn is_in_use(connection: &Connection, number: i64) -> rusqlite::Result<bool> {
    connection.query_row("SELECT EXISTS (SELECT 1 FROM event WHERE key = ?1)", [number], |row| row.get(0))
}

fn named_keys(connection: &Connection) -> rusqlite::Result<Vec<(i64, Fingerprint)>> {
    let mut find = connection.prepare("SELECT no, fingerprint FROM key ORDER BY no")?;
    find.query_map([], |row| Ok((row.get(0)?, Fingerprint(row.get(1)?))))?.collect()
}

/// Not by `Store::transact`: keys are in no tally and in no index.
fn transact(
    connection: &Connection,
    work: impl FnOnce(&Connection) -> rusqlite::Result<usize>,
) -> rusqlite::Result<()> {
    let transaction = Transaction::new_unchecked(connection, TransactionBehavior::Immediate)?;
    work(&transaction)?;
    transaction.commit()
}

/// As a failure of the statement that the value is for.
fn as_statement_failure(error: impl std::error::Error + Send + Sync + 'static) -> rusqlite::Error {
    rusqlite::Error::ToSqlConversionFailure(Box::new(error))
}
