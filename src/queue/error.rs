//! What can go wrong in the queue, told so that the operator knows what to do.

use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use rusqlite::ErrorCode;
use rusqlite::ffi;

use super::encryption::Fingerprint;

/// Why the queue could not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no room; it recovers by itself when there is.
    #[error("the store is full: free some disk space, or raise [queue] max_size")]
    Full,
    /// The queue was closed.
    #[error("the queue is closed")]
    Closed,
    /// Another program keeps the store locked.
    #[error("the store is locked by another program: end the transaction left open there, as in a sqlite3 shell")]
    Busy,
    /// Another relay uses the store.
    #[error("{} is in use by process {}: stop it, or set another [queue] path", path.display(), known(*pid))]
    Locked {
        /// The folder of the store.
        path: PathBuf,
        /// The process that holds it, if it said so.
        pid: Option<u32>,
    },
    /// The store is on a filesystem whose locks and flushes cannot be relied on.
    #[error("{} is on {filesystem}, a network filesystem: set [queue] path to a local disk", path.display())]
    NetworkFilesystem {
        /// The folder of the store.
        path: PathBuf,
        /// The name of the filesystem.
        filesystem: &'static str,
    },
    /// The disk may only be read.
    #[error("{} is on a read-only filesystem: remount it for writing, or set [queue] path to another disk", path.display())]
    ReadOnly {
        /// The file or folder.
        path: PathBuf,
    },
    /// There is no store.
    #[error("there is no store at {}: look at [queue] path, or start the relay once", path.display())]
    Missing {
        /// Where it was looked for.
        path: PathBuf,
    },
    /// The file belongs to another program.
    #[error("{} is not a wxrelay store: set [queue] path to another folder", path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
    },
    /// The store was written by a newer release.
    #[error("{} has schema {found}, this release knows {known}: run the newer release again", path.display())]
    Schema {
        /// The file.
        path: PathBuf,
        /// The version in the file.
        found: i64,
        /// The newest version that this release knows.
        known: i64,
    },
    /// The store was written by an earlier release.
    #[error(
        "{} has schema {found}, this release reads {known}: start the relay once, which brings it up to date",
        path.display()
    )]
    Outdated {
        /// The file.
        path: PathBuf,
        /// The version in the file.
        found: i64,
        /// The version that this release reads.
        known: i64,
    },
    /// Events are sealed by a key that is not given.
    #[error(
        "{} has events that are sealed by the key {key}, which queue.encryption_keys lacks: put it back there, behind \
         the first one, until no event needs it (`wxrelay doctor` tells)",
        path.display()
    )]
    KeyMissing {
        /// The folder of the store.
        path: PathBuf,
        /// What the key is known by.
        key: Fingerprint,
    },
    /// A setting that the store's promises rest on did not take.
    #[error("SQLite did not accept {pragma} = {wanted}, it stays {found}: the store was made by another program")]
    Pragma {
        /// The setting.
        pragma: &'static str,
        /// What it must be.
        wanted: &'static str,
        /// What it is.
        found: String,
    },
    /// A file or folder of the store could not be used.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The engine failed.
    #[error("the store failed: {0}")]
    Engine(#[source] rusqlite::Error),
}

impl Error {
    /// A file or folder of the store could not be used.
    pub(super) fn io(path: &Path, source: io::Error) -> Self {
        match source.kind() {
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded => Self::Full,
            ErrorKind::ReadOnlyFilesystem => Self::ReadOnly { path: path.to_owned() },
            _ => Self::Io { path: path.to_owned(), source },
        }
    }
}

fn known(pid: Option<u32>) -> String {
    pid.map_or_else(|| "unknown".to_owned(), |pid| pid.to_string())
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

/// Whether there was no room on the disk.
pub(super) fn is_full(error: &rusqlite::Error) -> bool {
    error.sqlite_error().is_some_and(|failure| {
        // The shared-memory file could not grow: what a full disk looks like when it comes first there.
        failure.code == ErrorCode::DiskFull || failure.extended_code == ffi::SQLITE_IOERR_SHMSIZE
    })
}

/// Whether the system refused a write, for whatever reason but a full disk.
pub(super) fn is_write_failure(error: &rusqlite::Error) -> bool {
    error.sqlite_error().is_some_and(|failure| failure.extended_code == ffi::SQLITE_IOERR_WRITE)
}

/// Whether another program's lock was in the way: it will be in everybody's.
pub(super) fn is_busy(error: &rusqlite::Error) -> bool {
    error.sqlite_error_code() == Some(ErrorCode::DatabaseBusy)
}

/// Whether what is in memory and what is on disk may differ from now on: a failed flush, or a damaged file.
pub(super) fn is_lost(error: &rusqlite::Error) -> bool {
    error.sqlite_error().is_some_and(|failure| {
        matches!(failure.code, ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase)
            || matches!(failure.extended_code, ffi::SQLITE_IOERR_FSYNC | ffi::SQLITE_IOERR_DIR_FSYNC)
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
