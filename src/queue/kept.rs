//! What replicas share beside their events; with SQLite, where there is one process only, nothing is.

use std::time::Duration;

use super::{Error, Queue, on_postgres};

impl Queue {
    /// The value of that name which replicas share; `None` if there is none that this process can open.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub async fn kept(&self, name: &str) -> Result<Option<Vec<u8>>, Error> {
        on_postgres!(self, engine => engine.kept(name).await, else Ok(None))
    }

    /// Seals and stores a value for all replicas; their [`Queue::operator_changes`] change.
    ///
    /// # Errors
    /// If it could not be stored.
    pub async fn keep(&self, name: &str, value: &[u8]) -> Result<(), Error> {
        on_postgres!(self, engine => engine.keep(name, value).await, else Ok(()))
    }

    /// Whether this replica may do the work of that name: no other one does for so long, while this one lives.
    ///
    /// # Errors
    /// If that could not be stored.
    pub async fn claim(&self, name: &str, time: Duration) -> Result<bool, Error> {
        on_postgres!(self, engine => engine.claim(name, time).await, else Ok(true))
    }

    /// Lets another replica do that work.
    ///
    /// # Errors
    /// If that could not be stored.
    pub async fn release(&self, name: &str) -> Result<(), Error> {
        on_postgres!(self, engine => engine.release(name).await, else Ok(()))
    }

    /// Stores the proof for a domain, which an authority may ask any replica for; their [`Queue::operator_changes`]
    /// change.
    ///
    /// # Errors
    /// If it could not be stored.
    pub async fn offer(&self, domain: &str, digest: &[u8; 32]) -> Result<(), Error> {
        on_postgres!(self, engine => engine.offer(domain, digest).await, else Ok(()))
    }

    /// Removes the proofs for these domains.
    ///
    /// # Errors
    /// If that could not be stored.
    pub async fn withdraw(&self, domains: &[String]) -> Result<(), Error> {
        on_postgres!(self, engine => engine.withdraw(domains).await, else Ok(()))
    }

    /// The proofs that every replica offers.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub async fn offered(&self) -> Result<Vec<(String, [u8; 32])>, Error> {
        on_postgres!(self, engine => engine.offered().await, else Ok(Vec::new()))
    }

    /// Says that this process offers the proofs that there were at that number of [`Queue::operator_changes`].
    pub async fn note_offers_seen(&self, change: i64) {
        on_postgres!(self, engine => engine.note_offers_seen(change).await, else ())
    }
}
