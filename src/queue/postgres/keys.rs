//! The table `key`, which gives each encryption key of the store a number.

use tokio_postgres::Row;
use tokio_postgres::types::Type;

use super::failure::Failure;
use super::session::{BoundQuery, Session, Value};
use crate::queue::Error;
use crate::queue::encryption::{EncryptionKey, EncryptionKeys, Fingerprint};
use crate::queue::key_ring::KeyRing;

pub(super) const NAMED: &str = "SELECT no, fingerprint FROM key ORDER BY no";
/// There is no index for this: it reads events until it finds one, the oldest first. It is asked for only where a key is
/// no longer configured.
const IS_USED: &str = "SELECT EXISTS (SELECT FROM event WHERE key = $1)";
const REMOVE: &str = "DELETE FROM key WHERE no = $1";
const ADD: &str = "INSERT INTO key (no, fingerprint) SELECT coalesce((SELECT max(no) FROM key), 0) + 1, $1 \
    WHERE NOT EXISTS (SELECT FROM key WHERE fingerprint = $1)";
/// Two replicas that start together would give one number twice.
const LOCK: &str = "SELECT pg_advisory_xact_lock(2003, -3);";

/// The keys that the store names, as far as they are configured.
pub(super) async fn load(session: &Session, configured: &EncryptionKeys) -> Result<KeyRing, Failure> {
    Ok(KeyRing::of(named(session.query(NAMED, &[]).await?)?, configured))
}

/// Makes the configured keys those of the store: the first gets a number, and a key that is no longer configured is
/// removed.
///
/// # Errors
/// [`Error::KeyMissing`] if an event is still encrypted with a key that is not configured.
pub(super) async fn adopt(session: &Session, schema: &str, configured: &EncryptionKeys) -> Result<KeyRing, Error> {
    let named = named(session.query(NAMED, &[]).await?)?;
    for (number, print) in named.iter().filter(|(_, print)| configured.find(*print).is_none()) {
        let number = i16::try_from(*number).unwrap_or_default();
        if is_used(session, number).await? {
            return Err(Error::KeyMissing { path: schema.into(), key: *print });
        }
        session.query(REMOVE, &[(&number, Type::INT2)]).await?;
        tracing::info!(key = %print, "encryption key removed from the store: no event needs it");
    }
    if let Some(first) = configured.first().map(EncryptionKey::fingerprint)
        && named.iter().all(|(_, print)| *print != first)
    {
        let bytes = first.bytes().to_vec();
        let values: [Value<'_>; 1] = [(&bytes, Type::BYTEA)];
        session.transact(LOCK, &[BoundQuery { sql: ADD, values: &values }]).await?;
        tracing::info!(key = %first, "encryption key added to the store: new payloads are encrypted with it");
    }
    Ok(load(session, configured).await?)
}

/// The numbers and fingerprints of such rows.
pub(super) fn named(rows: Vec<Row>) -> Result<Vec<(i64, Fingerprint)>, Failure> {
    let mut named = Vec::new();
    for row in rows {
        let (number, print): (i16, &[u8]) = (row.try_get(0)?, row.try_get(1)?);
        let print = print.try_into().map_err(|_| Failure::Internal("a fingerprint is not 8 bytes".to_owned()))?;
        named.push((number.into(), Fingerprint(print)));
    }
    Ok(named)
}

async fn is_used(session: &Session, number: i16) -> Result<bool, Failure> {
    let rows = session.query(IS_USED, &[(&number, Type::INT2)]).await?;
    rows.first().map_or(Ok(false), |row| Ok(row.try_get(0)?))
}
