//! What replicas share beside the queue: values that are sealed, work that one of them does at a time, and the answers to
//! an authority's challenges.

use std::time::Duration;

use sha2::{Digest as _, Sha256};
use tokio_postgres::types::Type;

use super::engine::{PATIENCE, Postgres};
use super::failure::Failure;
use super::inspect::first;
use super::locks::LOCK_CHANGES;
use super::session::{BoundQuery, Value};
use crate::queue::Error;
use crate::queue::encryption::{EncryptionKey, Fingerprint, SealContext};

const FIND: &str = "SELECT fingerprint, value FROM kept WHERE name = $1";
const KEEP: &str = "WITH k AS (INSERT INTO kept (name, fingerprint, value) VALUES ($1, $2, $3) ON CONFLICT (name) \
    DO UPDATE SET fingerprint = excluded.fingerprint, value = excluded.value) UPDATE meta SET change = change + 1";
/// The work of a replica that is gone is free at once.
const CLAIM: &str = "INSERT INTO claim AS c (name, incarnation, until) \
    VALUES ($1, $2, clock_timestamp() + $3::float8 * interval '1 second') ON CONFLICT (name) \
    DO UPDATE SET incarnation = excluded.incarnation, until = excluded.until \
     WHERE c.until < clock_timestamp() OR c.incarnation = excluded.incarnation OR NOT EXISTS (SELECT FROM replica r \
       WHERE r.incarnation = c.incarnation AND r.alive_at > clock_timestamp() - interval '10 s') RETURNING true";
const RELEASE: &str = "DELETE FROM claim WHERE name = $1 AND incarnation = $2";
/// An answer outlives a replica that ends in the middle of an order, but not for long.
const OFFER: &str = "WITH c AS (INSERT INTO challenge (domain, digest, until) \
       VALUES ($1, $2, clock_timestamp() + interval '10 minutes') ON CONFLICT (domain) \
       DO UPDATE SET digest = excluded.digest, until = excluded.until) UPDATE meta SET change = change + 1";
const WITHDRAW: &str = "WITH c AS (DELETE FROM challenge WHERE domain = ANY($1) OR until < clock_timestamp()) \
    UPDATE meta SET change = change + 1";
const OFFERED: &str = "SELECT domain, digest FROM challenge WHERE until > clock_timestamp()";

impl Postgres {
    /// The value of that name; `None` if there is none, or if it is sealed with a key that is not configured.
    pub(in crate::queue) async fn kept(&self, name: &str) -> Result<Option<Vec<u8>>, Error> {
        let rows = self.run_alone("", FIND, &[(&name, Type::TEXT)]).await?;
        let Some(row) = rows.first() else { return Ok(None) };
        let (print, sealed) = (row.try_get::<_, &[u8]>(0), row.try_get::<_, &[u8]>(1));
        let (print, sealed) = (print.map_err(Failure::from)?, sealed.map_err(Failure::from)?);
        let print = print.try_into().map(Fingerprint).ok();
        let key = print.and_then(|print| self.engine.settings.encryption_keys.find(print));
        Ok(key.and_then(|key| key.open(context(name), sealed)))
    }

    /// Encrypts and stores a value, and announces the change to every replica.
    pub(in crate::queue) async fn keep(&self, name: &str, value: &[u8]) -> Result<(), Error> {
        let key: Option<&EncryptionKey> = self.engine.settings.encryption_keys.first();
        // The configuration asks for a key where something is kept.
        let Some(key) = key else { return Err(Failure::Internal("no key to seal a value with".to_owned()).into()) };
        let sealed = key.seal(context(name), value).map_err(Error::NotEncrypted)?;
        let print = key.fingerprint().bytes().to_vec();
        let values: [Value<'_>; 3] = [(&name, Type::TEXT), (&print, Type::BYTEA), (&sealed, Type::BYTEA)];
        self.run_alone(LOCK_CHANGES, KEEP, &values).await.map(drop)
    }

    /// Whether this replica may do the work of that name, for so long and while it lives.
    pub(in crate::queue) async fn claim(&self, name: &str, time: Duration) -> Result<bool, Error> {
        let (me, seconds) = (self.engine.incarnation(), time.as_secs_f64());
        let values: [Value<'_>; 3] = [(&name, Type::TEXT), (&me, Type::INT4), (&seconds, Type::FLOAT8)];
        Ok(first(&self.run_alone("", CLAIM, &values).await?, false)?)
    }

    pub(in crate::queue) async fn release(&self, name: &str) -> Result<(), Error> {
        let me = self.engine.incarnation();
        self.run_alone("", RELEASE, &[(&name, Type::TEXT), (&me, Type::INT4)]).await.map(drop)
    }

    /// Lets every replica answer an authority that validates this domain; they are told by the number of the change.
    pub(in crate::queue) async fn offer(&self, domain: &str, digest: &[u8; 32]) -> Result<(), Error> {
        let digest = &digest[..];
        self.run_alone(LOCK_CHANGES, OFFER, &[(&domain, Type::TEXT), (&digest, Type::BYTEA)]).await.map(drop)
    }

    pub(in crate::queue) async fn withdraw(&self, domains: &[String]) -> Result<(), Error> {
        self.run_alone(LOCK_CHANGES, WITHDRAW, &[(&domains, Type::TEXT_ARRAY)]).await.map(drop)
    }

    pub(in crate::queue) async fn offered(&self) -> Result<Vec<(String, [u8; 32])>, Error> {
        let mut offered = Vec::new();
        for row in self.run_alone("", OFFERED, &[]).await? {
            let (domain, digest) = (row.try_get(0), row.try_get::<_, &[u8]>(1));
            let (domain, digest) = (domain.map_err(Failure::from)?, digest.map_err(Failure::from)?);
            offered.extend(digest.try_into().ok().map(|digest| (domain, digest)));
        }
        Ok(offered)
    }

    async fn run_alone(
        &self,
        setup: &str,
        sql: &'static str,
        values: &[Value<'_>],
    ) -> Result<Vec<tokio_postgres::Row>, Error> {
        let queries = [BoundQuery { sql, values }];
        let done = self.engine.reading.call(PATIENCE, async |session| session.transact(setup, &queries).await);
        Ok(done.await?.pop().unwrap_or_default())
    }
}

/// A value opens under its own name only.
fn context(name: &str) -> SealContext {
    let hash = Sha256::digest(name);
    let part = |at: usize| hash[at..at + 8].iter().fold(0_u64, |number, byte| number << 8 | u64::from(*byte));
    SealContext::Kept([part(0), part(8), part(16)])
}
