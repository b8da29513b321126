//! The settings of the queue.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::EncryptionKeys;
#[cfg(feature = "postgres")]
use super::postgres;

/// A [`Settings::max_size`] without a limit.
pub const UNLIMITED: u64 = u64::MAX;

/// `[queue]` of the configuration.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where the store is.
    pub engine: Engine,
    /// How long finished events are kept.
    pub retention: Duration,
    /// How long a push's retries are recognised, also when finished events must be deleted early.
    pub dedup_window: Duration,
    /// How long a push is recognised at least, even when its event is deleted: as long as a copy of it is accepted.
    pub replay_window: Duration,
    /// The most bytes that the store may take: at this size new events are refused. Finished events are deleted from a
    /// little below it on. [`UNLIMITED`]: as much as there is.
    pub max_size: u64,
    /// About how many bytes of events wait in memory for targets, from the lease to the settlement. The rest waits in
    /// the store.
    pub max_memory: u64,
    /// The keys that payloads are encrypted with; none = payloads are stored in the clear.
    pub encryption_keys: EncryptionKeys,
}

/// The engine, and what it alone needs.
#[derive(Clone, Debug, PartialEq)]
pub enum Engine {
    /// SQLite in this folder.
    Embedded {
        /// The folder that holds the store.
        path: PathBuf,
    },
    /// PostgreSQL.
    #[cfg(feature = "postgres")]
    Postgres(Box<postgres::Settings>),
}

impl Settings {
    /// Of a store in this folder that keeps everything for ever.
    #[cfg(test)]
    pub(crate) fn for_tests(folder: &Path) -> Self {
        let day = Duration::from_secs(86_400);
        Self {
            engine: Engine::Embedded { path: folder.to_owned() },
            // Many events of the tests are of a fixed day; none is to be old.
            retention: day * 365_000,
            dedup_window: day,
            replay_window: day * 365_000,
            max_size: 1 << 40,
            max_memory: 64 << 20,
            encryption_keys: EncryptionKeys::default(),
        }
    }

    /// The folder that holds the store, if it is one of files.
    pub fn folder(&self) -> Option<&Path> {
        match &self.engine {
            Engine::Embedded { path } => Some(path),
            #[cfg(feature = "postgres")]
            Engine::Postgres(_) => None,
        }
    }

    /// The folder of the spool, if there is one.
    pub fn spool(&self) -> Option<&Path> {
        match &self.engine {
            Engine::Embedded { .. } => None,
            #[cfg(feature = "postgres")]
            Engine::Postgres(postgres) => postgres.spool.as_deref(),
        }
    }

    /// The limit of the store's size, if it has one.
    pub fn size_limit(&self) -> Option<u64> {
        (self.max_size != UNLIMITED).then_some(self.max_size)
    }
}
