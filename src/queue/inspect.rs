//! Reading the queue without its writer: for the command line, the admin API and the demo.
//!
//! It works beside a running relay and without one, changes nothing, and never delays a push. Each answer is one
//! snapshot. The readers of the engines are in their folders.

use std::collections::BTreeSet;
use std::fmt;
#[cfg(feature = "postgres")]
use std::path::Path;
use std::sync::Arc;

use parking_lot::Mutex;

#[cfg(feature = "postgres")]
use super::postgres::PostgresReader;
use super::sqlite::{self, SqliteReader};
use super::{
    Audit, DeadLetter, EncryptionStatus, Engine, Error, EventDetail, EventFilter, EventSummary, Replica, Settings,
    Stats, StoredPage, Sweep,
};
use crate::clock::UnixMillis;
use crate::event::EventId;

/// A read-only view of a queue.
pub enum Inspect {
    /// Of the embedded engine's store.
    Embedded(BlockingReader),
    /// Of tables of PostgreSQL.
    #[cfg(feature = "postgres")]
    Postgres(Box<PostgresReader>),
}

/// What is known of the replicas' spools.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Spools {
    /// How many events that of this machine holds; `None` if there is none here.
    pub events: Option<u64>,
    /// The replicas whose spool is on another machine.
    pub unseen: Vec<String>,
}

/// A reader whose calls block: each runs on a thread that may.
pub struct BlockingReader(Arc<Mutex<SqliteReader>>);

impl Inspect {
    /// Opens the store. Values that need a key which is not configured are left out of the answers, with the reason.
    ///
    /// # Errors
    /// If there is none, it is not one that this release can read, or it cannot be reached.
    pub async fn open(settings: &Settings) -> Result<Self, Error> {
        match &settings.engine {
            #[cfg(feature = "postgres")]
            Engine::Postgres(postgres) => {
                let reader = PostgresReader::open(postgres, &settings.encryption_keys).await?;
                Ok(Self::Postgres(Box::new(reader)))
            }
            Engine::Embedded { path } => {
                let (folder, keys) = (path.clone(), settings.encryption_keys.clone());
                let reader = sqlite::run_blocking(move || Ok(SqliteReader::open(&folder)?.with_keys(&keys))).await?;
                Ok(Self::Embedded(BlockingReader(Arc::new(Mutex::new(reader)))))
            }
        }
    }

    /// Which keys events are encrypted with. May read every event.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub async fn encryption_status(&self) -> Result<EncryptionStatus, Error> {
        match self {
            Self::Embedded(reader) => reader.run(SqliteReader::encryption_status).await,
            #[cfg(feature = "postgres")]
            Self::Postgres(reader) => reader.encryption_status().await,
        }
    }

    /// Events, deliveries and backlog by the running ledger: cheap at any size of the store, except for a search for
    /// the oldest pending delivery of each target.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub async fn stats(&self) -> Result<Stats, Error> {
        match self {
            Self::Embedded(reader) => reader.run(SqliteReader::stats).await,
            #[cfg(feature = "postgres")]
            Self::Postgres(reader) => reader.stats().await,
        }
    }

    /// Counts the whole ledger again. Reads every row, but no bodies.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub async fn audit(&self) -> Result<Audit, Error> {
        match self {
            Self::Embedded(reader) => reader.run(SqliteReader::audit).await,
            #[cfg(feature = "postgres")]
            Self::Postgres(reader) => reader.audit().await,
        }
    }

    /// The spools of these settings' replicas, as far as they can be seen from here; `None` without any.
    ///
    /// # Errors
    /// If the store, or the spool of this machine, cannot be read.
    #[cfg(not(feature = "postgres"))]
    pub async fn spools(&self, _settings: &Settings) -> Result<Option<Spools>, Error> {
        Ok(None)
    }

    /// The spools of these settings' replicas, as far as they can be seen from here; `None` without any.
    ///
    /// # Errors
    /// If the store, or the spool of this machine, cannot be read.
    #[cfg(feature = "postgres")]
    pub async fn spools(&self, settings: &Settings) -> Result<Option<Spools>, Error> {
        let (Some(folder), Self::Postgres(reader), Engine::Postgres(postgres)) =
            (settings.spool().map(Path::to_owned), self, &settings.engine)
        else {
            return Ok(None);
        };
        let here = sqlite::run_blocking(move || match SqliteReader::open(&folder) {
            Ok(store) => store.stats().map(|stats| Some(stats.events)),
            Err(Error::Missing { .. }) => Ok(None),
            Err(error) => Err(error),
        });
        let events = here.await.map_err(|error| Error::Spool(Box::new(error)))?;
        let replicas = reader.replicas().await?.into_iter();
        let mut unseen: Vec<String> = replicas.map(|replica| replica.name).collect();
        unseen.sort_unstable();
        unseen.dedup();
        unseen.retain(|name| events.is_none() || *name != postgres.replica);
        Ok(Some(Spools { events, unseen }))
    }

    /// The newest events that the filter lets through.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub async fn events(&self, filter: &EventFilter) -> Result<Vec<EventSummary>, Error> {
        match self {
            Self::Embedded(reader) => {
                let filter = filter.clone();
                reader.run(move |store| store.events(&filter)).await
            }
            #[cfg(feature = "postgres")]
            Self::Postgres(reader) => reader.events(filter).await,
        }
    }

    /// The replicas that share the store; `None` where there is one process only.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub async fn replicas(&self) -> Result<Option<Vec<Replica>>, Error> {
        match self {
            Self::Embedded(_) => Ok(None),
            #[cfg(feature = "postgres")]
            Self::Postgres(reader) => reader.replicas().await.map(Some),
        }
    }

    /// The targets that an operator has paused.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub async fn paused(&self) -> Result<BTreeSet<String>, Error> {
        match self {
            Self::Embedded(reader) => reader.run(SqliteReader::paused).await,
            #[cfg(feature = "postgres")]
            Self::Postgres(reader) => reader.paused().await,
        }
    }

    /// One event with its text, deliveries and every attempt.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub async fn event(&self, id: EventId) -> Result<Option<EventDetail>, Error> {
        match self {
            Self::Embedded(reader) => reader.run(move |store| store.event(id)).await,
            #[cfg(feature = "postgres")]
            Self::Postgres(reader) => reader.event(id).await,
        }
    }

    /// Dead letters, those of the newest events first; `limit` counts events, so that a page never splits one.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub async fn dead(
        &self,
        target: Option<&str>,
        limit: usize,
        before: Option<EventId>,
    ) -> Result<Vec<DeadLetter>, Error> {
        match self {
            Self::Embedded(reader) => {
                let target = target.map(str::to_owned);
                reader.run(move |store| store.dead(target.as_deref(), limit, before)).await
            }
            #[cfg(feature = "postgres")]
            Self::Postgres(reader) => reader.dead(target, limit, before).await,
        }
    }

    /// How much a sweep would change now, behind `after`: see
    /// [`SweepProgress::changed`](crate::queue::SweepProgress::changed).
    ///
    /// # Errors
    /// If the store cannot be read.
    pub async fn count(&self, sweep: &Sweep, after: Option<EventId>) -> Result<u64, Error> {
        match self {
            Self::Embedded(reader) => {
                let sweep = sweep.clone();
                reader.run(move |store| store.count(&sweep, after)).await
            }
            #[cfg(feature = "postgres")]
            Self::Postgres(reader) => reader.count(sweep, after).await,
        }
    }

    /// The first moment after now and after every stored event: a sweep up to it covers all of them. Ids may be ahead
    /// of a clock that was set back.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub async fn end(&self) -> Result<UnixMillis, Error> {
        match self {
            Self::Embedded(reader) => reader.run(SqliteReader::end).await,
            #[cfg(feature = "postgres")]
            Self::Postgres(reader) => reader.end().await,
        }
    }

    /// What the engine's own check finds in the store: an index that lacks a row, a page that cannot be read.
    ///
    /// # Errors
    /// If the check cannot be begun.
    pub async fn check_file(&self) -> Result<Vec<String>, Error> {
        match self {
            Self::Embedded(reader) => reader.run(SqliteReader::check_file).await,
            #[cfg(feature = "postgres")]
            Self::Postgres(reader) => reader.check_file().await,
        }
    }

    /// The newest event, at which a walk over the store ends.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub async fn newest(&self) -> Result<Option<EventId>, Error> {
        match self {
            Self::Embedded(reader) => reader.run(SqliteReader::newest).await,
            #[cfg(feature = "postgres")]
            Self::Postgres(reader) => reader.newest().await,
        }
    }

    /// The first events that deliveries are of and that are gone.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub async fn orphans(&self, most: usize) -> Result<Vec<EventId>, Error> {
        match self {
            Self::Embedded(reader) => reader.run(move |store| store.orphans(most)).await,
            #[cfg(feature = "postgres")]
            Self::Postgres(reader) => reader.orphans(most).await,
        }
    }

    /// Reads back the page of events behind `after`, up to `until`.
    ///
    /// # Errors
    /// If the store cannot be read, beyond single rows.
    pub async fn read_back(&self, after: Option<EventId>, until: EventId) -> Result<StoredPage, Error> {
        match self {
            Self::Embedded(reader) => reader.run(move |store| store.read_back(after, until)).await,
            #[cfg(feature = "postgres")]
            Self::Postgres(reader) => reader.read_back(after, until).await,
        }
    }
}

impl BlockingReader {
    async fn run<T: Send + 'static>(
        &self,
        read: impl FnOnce(&SqliteReader) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let reader = Arc::clone(&self.0);
        sqlite::run_blocking(move || read(&reader.lock())).await
    }
}

impl fmt::Debug for Inspect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Embedded(_) => f.write_str("Inspect::Embedded"),
            #[cfg(feature = "postgres")]
            Self::Postgres(reader) => reader.fmt(f),
        }
    }
}
