//! The table `key`, which gives each encryption key of the store a number.

use std::borrow::Cow;
use std::path::Path;

use rusqlite::types::ToSql;
use rusqlite::{Connection, OptionalExtension, Transaction, TransactionBehavior, params};

use crate::event::EventId;
use crate::queue::Error;
use crate::queue::encryption::{EncryptionKey, EncryptionKeys, Fingerprint, SealContext};
use crate::queue::key_ring::{EncryptionStatus, KeyRing, SealedColumns};

/// The keys that the store names, as far as they are configured.
pub(super) fn load(connection: &Connection, configured: &EncryptionKeys) -> rusqlite::Result<KeyRing> {
    Ok(KeyRing::of(named_keys(connection)?, configured))
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
pub(super) fn adopt(connection: &Connection, configured: &EncryptionKeys, path: &Path) -> Result<KeyRing, Error> {
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
    Ok(load(connection, configured)?)
}

/// A later value of an event as it is to be stored: encrypted with the event's key, if it has one.
pub(super) fn seal_like_event<'v>(
    keys: &KeyRing,
    connection: &Connection,
    event: EventId,
    context: SealContext,
    value: &'v [u8],
) -> rusqlite::Result<Cow<'v, [u8]>> {
    if keys.is_empty() {
        return Ok(Cow::Borrowed(value));
    }
    let mut find = connection.prepare_cached("SELECT key FROM event WHERE id = ?1")?;
    let key: Option<i64> = find.query_row([event], |row| row.get(0)).optional()?.flatten();
    let seal = |number| keys.seal(number, context, value).map(Cow::Owned).map_err(as_statement_failure);
    key.map_or(Ok(Cow::Borrowed(value)), seal)
}

/// The columns `reply`, `query`, `body`, `clear` and `key`.
pub(super) fn columns(sealed: &SealedColumns) -> [&dyn ToSql; 5] {
    [&sealed.reply, &sealed.query, &sealed.body, &sealed.clear, &sealed.key]
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

/// The keys of the store, and whether events need them.
#[cfg(feature = "postgres")]
pub(super) fn named_with_use(connection: &Connection) -> rusqlite::Result<Vec<(i64, Fingerprint, bool)>> {
    let named = named_keys(connection)?.into_iter();
    named.map(|(number, print)| Ok((number, print, is_in_use(connection, number)?))).collect()
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
