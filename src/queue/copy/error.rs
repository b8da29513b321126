//! Why a store is not copied, and what to do.

use std::path::PathBuf;

use crate::event::EventId;
use crate::queue::Error;
use crate::queue::encryption::Fingerprint;
use crate::queue::postgres::Failure;

/// Why a store was not copied, or not to the end. What was copied until then stays, and another run continues.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// Both configurations name the same kind of store, or even the same one.
    #[error("both configurations keep the store in {0}: there is nothing to move")]
    SameKind(&'static str),
    /// A relay has the store open.
    #[error("a relay uses the store in {} (process {})", path.display(), pid.map_or_else(|| "unknown".to_owned(), |pid| pid.to_string()))]
    RelayRuns {
        /// The folder of the store.
        path: PathBuf,
        /// The relay's process, if it is known.
        pid: Option<u32>,
    },
    /// Replicas are alive.
    #[error("replicas are alive on the store in PostgreSQL: {0}")]
    ReplicasRun(String),
    /// The store that is copied changed meanwhile.
    #[error("replicas have worked on the store in PostgreSQL while it was copied")]
    ChangedMeanwhile,
    /// There are events in the spool of this machine.
    #[error("the spool of this machine holds {0} events that PostgreSQL does not have")]
    Spooled(u64),
    /// There is something else in the place for the copy.
    #[error("{0} is not empty, and no copy of this store")]
    NotEmpty(String),
    /// The copy that was begun there is one of another store, or of another state of this one.
    #[error("{0} holds a copy of another store, or this store has changed since that copy was begun")]
    OtherCopy(String),
    /// The replicas could not read what is encrypted.
    #[error("events are encrypted with the key {0}, which queue.encryption_keys of the other configuration lacks")]
    KeyMissing(Fingerprint),
    /// A value does not fit into a column of the other engine.
    #[error("{what} of {event} cannot be copied")]
    Unfit {
        /// The event.
        event: EventId,
        /// The column.
        what: &'static str,
    },
    /// A number of a target or a key does not fit.
    #[error("the number {0} of a target or a key is too great for PostgreSQL")]
    Number(i64),
    /// One of the stores failed.
    #[error(transparent)]
    Store(#[from] Error),
}

impl CopyError {
    /// How the operator fixes it, where that is known.
    pub fn remedy(&self) -> Option<&'static str> {
        Some(match self {
            Self::SameKind(_) => {
                "name by --to a configuration whose [queue] has the other type; to copy files, stop the relay and copy \
                 the folder; for PostgreSQL use pg_dump"
            }
            Self::RelayRuns { .. } => "stop it: a store is copied while nothing changes it",
            Self::ReplicasRun(_) => "stop them: a store is copied while nothing changes it",
            Self::ChangedMeanwhile => "stop them, remove wxrelay.db.copy from the new folder, and copy again",
            Self::Spooled(_) => "let the replicas run until they have stored it, and stop them then",
            Self::NotEmpty(_) => "name another queue.schema or queue.path in the other configuration",
            Self::OtherCopy(_) => {
                "name another queue.schema or queue.path in the other configuration, or remove that copy and begin again"
            }
            Self::KeyMissing(_) => "put that key into it, behind the first one",
            Self::Unfit { .. } => "`wxrelay audit --deep` says what is wrong with it",
            Self::Number(_) => return None,
            Self::Store(error) => return error.remedy(),
        })
    }
}

impl From<Failure> for CopyError {
    fn from(failure: Failure) -> Self {
        Self::Store(failure.into())
    }
}
