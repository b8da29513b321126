//! The queue's errors: what failed, and how the operator fixes it.

use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
#[cfg(feature = "postgres")]
use std::sync::Arc;

use rusqlite::ErrorCode;
use rusqlite::ffi;
use rustix::io::Errno;

use super::encryption::{EncryptError, Fingerprint};
#[cfg(feature = "postgres")]
use super::postgres::Failure;
use super::sqlite::damage::quarantine::DamageReason;

/// Why a call of the queue failed. Its text says what failed and where; [`Error::remedy`] says how to fix it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no free space for the embedded engine. New events are accepted again when there is.
    #[error("the store is full")]
    Full,
    /// The queue was closed.
    #[error("the queue is closed")]
    Closed,
    /// Another program keeps the store locked.
    #[error("the store is locked by another program")]
    Busy,
    /// Another relay uses the store.
    #[error("{} is in use by process {}", path.display(), known(*pid))]
    Locked {
        /// The folder of the store.
        path: PathBuf,
        /// The process that holds the lock, if it wrote down its id.
        pid: Option<u32>,
    },
    /// The store is on a filesystem whose locks and flushes cannot be relied on.
    #[error("{} is on {filesystem}, a network filesystem", path.display())]
    NetworkFilesystem {
        /// The folder of the store.
        path: PathBuf,
        /// The name of the filesystem.
        filesystem: &'static str,
    },
    /// The filesystem is read-only.
    #[error("{} is on a read-only filesystem", path.display())]
    ReadOnly {
        /// The file or folder.
        path: PathBuf,
    },
    /// There is no store.
    #[error("there is no store at {}", path.display())]
    Missing {
        /// The folder that should hold it.
        path: PathBuf,
    },
    /// A file of the store is a link, or no file. A link could lead the relay's writes to any file of its user.
    #[error("{} is a symbolic link or no regular file", path.display())]
    NotAFile {
        /// The link.
        path: PathBuf,
    },
    /// The store belongs to another user, who could replace its files.
    #[error("{} belongs to user {owner}, and the relay runs as root", path.display())]
    ForeignOwner {
        /// The folder of the store.
        path: PathBuf,
        /// The user's number.
        owner: u32,
    },
    /// The file belongs to another program.
    #[error("{} is not a wxrelay store", path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
    },
    /// The store was written by a newer release.
    #[error("{} has schema {found}, this release knows {known}", path.display())]
    Schema {
        /// The file.
        path: PathBuf,
        /// The version in the file.
        found: i64,
        /// The newest version that this release knows.
        known: i64,
    },
    /// The store was written by an older release.
    #[error("{} has schema {found}, this release reads {known}", path.display())]
    Outdated {
        /// The file.
        path: PathBuf,
        /// The version in the file.
        found: i64,
        /// The version that this release reads.
        known: i64,
    },
    /// Events are encrypted with a key that is not configured.
    #[error("{} has events that are encrypted with the key {key}, which queue.encryption_keys lacks", path.display())]
    KeyMissing {
        /// The folder of the store.
        path: PathBuf,
        /// The key's fingerprint.
        key: Fingerprint,
    },
    /// SQLite refused a setting that the store's guarantees depend on.
    #[error("SQLite did not accept {pragma} = {wanted}, it stays {found}")]
    Pragma {
        /// The setting.
        pragma: &'static str,
        /// What it must be.
        wanted: &'static str,
        /// What it is.
        found: String,
    },
    /// There was a log without its database. It is in a folder of its own now.
    #[error("store without its database ({}), moved to {}", reason.word(), path.display())]
    MovedAside {
        /// The folder that holds it now.
        path: PathBuf,
        /// What was found.
        reason: DamageReason,
    },
    /// A file or folder of the store could not be used.
    #[error("{}: {cause}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// Why. Not the error's source, as its text is in this one's.
        cause: io::Error,
    },
    /// PostgreSQL is away, and the spool has no space.
    #[error("the spool is full, and postgresql is away")]
    SpoolFull,
    /// The spool cannot be used.
    #[error("spool: {0}")]
    Spool(Box<Self>),
    /// PostgreSQL was not reached in time, or its answer was lost. A change may be stored or not.
    #[error("postgresql did not answer in time")]
    Away,
    /// PostgreSQL cannot be used, or refused something.
    #[cfg(feature = "postgres")]
    #[error(transparent)]
    Postgres(Arc<Failure>),
    /// A payload could not be encrypted.
    #[error("not encrypted: {0}")]
    NotEncrypted(EncryptError),
    /// The engine failed.
    #[error("the store failed: {0}")]
    Engine(rusqlite::Error),
}

impl Error {
    /// How the operator fixes it, where that is known.
    pub fn remedy(&self) -> Option<&'static str> {
        Some(match self {
            Self::Full => "free some disk space, or raise queue.max_size",
            Self::SpoolFull => "bring PostgreSQL back; meanwhile free some disk space, or raise queue.spool_size",
            Self::Spool(error) => return remedy_of_spool(error),
            Self::Busy => "end the transaction that another program left open, for example a sqlite3 shell",
            Self::Locked { .. } => "stop that process, or set another queue.path",
            Self::NetworkFilesystem { .. } => "set queue.path to a local disk",
            Self::ReadOnly { .. } => "remount it for writing, or set queue.path to another disk",
            Self::Missing { .. } => "check queue.path, or start the relay once, which makes the store",
            Self::NotAFile { .. } => {
                "put the file itself there, or remove the link; to keep the store on another disk, set queue.path to a \
                 folder there"
            }
            Self::ForeignOwner { .. } => "run the relay as that user, or chown -R the folder to the relay's user",
            Self::Foreign { .. } | Self::Pragma { .. } => "set queue.path to a folder of its own",
            Self::Schema { .. } => "run the newer release again",
            Self::Outdated { .. } => "start the relay once, which migrates the store",
            Self::KeyMissing { .. } => {
                "put that key back into queue.encryption_keys, behind the first one, until `wxrelay doctor` shows that \
                 no event needs it"
            }
            Self::MovedAside { .. } => {
                "check queue.path; the next start makes a new store, and `wxrelay store salvage` reads back what can be \
                 read of the damaged one"
            }
            Self::Engine(error) if is_damaged(error) => {
                "keep a copy of the store's folder and check the disk; a start moves a store aside that cannot be \
                 used, and `wxrelay store salvage` reads back what can be read"
            }
            Self::Io { cause, .. } if cause.kind() == ErrorKind::NotADirectory => "set queue.path to a folder",
            #[cfg(feature = "postgres")]
            Self::Postgres(failure) => return failure.remedy(),
            Self::Away => "check that PostgreSQL runs and can be reached: `wxrelay check --online`",
            Self::Closed | Self::Io { .. } | Self::NotEncrypted(_) | Self::Engine(_) => return None,
        })
    }

    /// The key of the configuration that names the store.
    pub fn key(&self) -> &'static str {
        match self {
            Self::Away => "queue.url",
            Self::SpoolFull => "queue.spool_size",
            Self::Spool(_) => "queue.spool",
            #[cfg(feature = "postgres")]
            Self::Postgres(_) => "queue.url",
            _ => "queue.path",
        }
    }

    /// Whether the store is damaged: the process ends with [`super::EXIT_IO`], and its next start continues.
    pub fn is_damage(&self) -> bool {
        match self {
            Self::MovedAside { .. } => true,
            Self::Engine(error) => is_lost(error),
            Self::Spool(error) => error.is_damage(),
            _ => false,
        }
    }

    /// Whether PostgreSQL was not reached, or its answer was lost, so that another try may succeed.
    pub fn is_away(&self) -> bool {
        match self {
            Self::Away => true,
            #[cfg(feature = "postgres")]
            Self::Postgres(failure) => failure.is_away() && !failure.is_configuration(),
            _ => false,
        }
    }

    /// Whether only a change of the configuration, or of what it names, fixes it: a restart does not.
    pub fn is_configuration(&self) -> bool {
        match self {
            Self::NetworkFilesystem { .. }
            | Self::ReadOnly { .. }
            | Self::Foreign { .. }
            | Self::NotAFile { .. }
            | Self::ForeignOwner { .. }
            | Self::Schema { .. }
            | Self::KeyMissing { .. } => true,
            Self::Spool(error) => error.is_configuration(),
            #[cfg(feature = "postgres")]
            Self::Postgres(failure) => failure.is_configuration(),
            Self::Io { cause, .. } => {
                matches!(
                    cause.kind(),
                    ErrorKind::NotADirectory
                        | ErrorKind::AlreadyExists
                        | ErrorKind::PermissionDenied
                        | ErrorKind::InvalidFilename
                )
            }
            _ => false,
        }
    }

    /// The error for a file or folder of the store; a full disk and a read-only filesystem have variants of their own.
    pub(super) fn io(path: &Path, source: io::Error) -> Self {
        match source.kind() {
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded => Self::Full,
            ErrorKind::ReadOnlyFilesystem => Self::ReadOnly { path: path.to_owned() },
            // What `O_NOFOLLOW` makes of a link.
            _ if source.raw_os_error() == Some(Errno::LOOP.raw_os_error()) => Self::NotAFile { path: path.to_owned() },
            _ => Self::Io { path: path.to_owned(), cause: source },
        }
    }
}

/// As [`Error::remedy`], where the key is another one.
fn remedy_of_spool(error: &Error) -> Option<&'static str> {
    Some(match error {
        Error::Full => "free some disk space, or raise queue.spool_size",
        Error::Locked { .. } => "stop that process, or set another queue.spool",
        Error::NetworkFilesystem { .. } => "set queue.spool to a local disk",
        Error::ReadOnly { .. } => "remount it for writing, or set queue.spool to another disk",
        Error::NotAFile { .. } | Error::Foreign { .. } | Error::Pragma { .. } => {
            "set queue.spool to a folder of its own"
        }
        Error::Io { .. } => "set queue.spool to a folder that the relay's user may write",
        other => return other.remedy(),
    })
}

fn known(pid: Option<u32>) -> String {
    pid.map_or_else(|| "unknown".to_owned(), |pid| pid.to_string())
}

#[cfg(feature = "postgres")]
impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        Self::from(Arc::new(failure))
    }
}

#[cfg(feature = "postgres")]
impl From<Arc<Failure>> for Error {
    fn from(failure: Arc<Failure>) -> Self {
        Self::Postgres(failure)
    }
}

impl From<rusqlite::Error> for Error {
    fn from(error: rusqlite::Error) -> Self {
        if is_full(&error) {
            Self::Full
        } else if is_busy(&error) {
            Self::Busy
        } else {
            Self::Engine(error)
        }
    }
}

/// Whether the disk was full.
pub(super) fn is_full(error: &rusqlite::Error) -> bool {
    error.sqlite_error().is_some_and(|failure| {
        // The shared-memory file could not grow: on a full disk, SQLite may meet this error first.
        failure.code == ErrorCode::DiskFull || failure.extended_code == ffi::SQLITE_IOERR_SHMSIZE
    })
}

/// Whether the system refused a write, for whatever reason but a full disk.
pub(super) fn is_write_failure(error: &rusqlite::Error) -> bool {
    error.sqlite_error().is_some_and(|failure| failure.extended_code == ffi::SQLITE_IOERR_WRITE)
}

/// Whether another program held a lock: every other command would fail for the same reason.
pub(super) fn is_busy(error: &rusqlite::Error) -> bool {
    error.sqlite_error_code() == Some(ErrorCode::DatabaseBusy)
}

/// Whether SQLite found the database damaged.
pub(super) fn is_damaged(error: &rusqlite::Error) -> bool {
    let code = error.sqlite_error_code();
    matches!(code, Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase))
}

/// Whether memory and disk may differ from now on: after a failed flush, or with a damaged file.
pub(super) fn is_lost(error: &rusqlite::Error) -> bool {
    is_damaged(error)
        || error.sqlite_error().is_some_and(|failure| {
            matches!(failure.extended_code, ffi::SQLITE_IOERR_FSYNC | ffi::SQLITE_IOERR_DIR_FSYNC)
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failure(code: i32) -> rusqlite::Error {
        rusqlite::Error::SqliteFailure(ffi::Error::new(code), None)
    }

    #[test]
    fn a_full_disk_is_told_from_a_failing_one() {
        assert!(matches!(Error::from(failure(ffi::SQLITE_FULL)), Error::Full));
        assert!(matches!(Error::from(failure(ffi::SQLITE_IOERR_SHMSIZE)), Error::Full));
        assert!(matches!(Error::from(failure(ffi::SQLITE_BUSY)), Error::Busy));
        assert!(matches!(Error::from(failure(ffi::SQLITE_IOERR_WRITE)), Error::Engine(_)));
    }

    #[cfg(feature = "postgres")]
    #[test]
    fn the_remedy_for_a_full_disk_is_that_of_the_engine() {
        let (code, message) = (tokio_postgres::error::SqlState::DISK_FULL, "no space left on device".to_owned());
        let remedy = Error::from(Failure::Refused { code, message }).remedy().unwrap();
        assert!(remedy.contains("disk of PostgreSQL") && !remedy.contains("max_size"), "{remedy}");
        assert!(Error::Full.remedy().is_some_and(|remedy| remedy.contains("queue.max_size")));
    }

    #[test]
    fn only_a_failed_flush_or_a_damaged_file_ends_the_process() {
        for code in [ffi::SQLITE_IOERR_FSYNC, ffi::SQLITE_IOERR_DIR_FSYNC, ffi::SQLITE_CORRUPT, ffi::SQLITE_NOTADB] {
            assert!(is_lost(&failure(code)), "{code}");
        }
        for code in [ffi::SQLITE_FULL, ffi::SQLITE_IOERR_WRITE, ffi::SQLITE_BUSY, ffi::SQLITE_CONSTRAINT] {
            assert!(!is_lost(&failure(code)), "{code}");
        }
    }
}
