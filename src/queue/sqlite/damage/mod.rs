//! What a store's folder looks like before SQLite opens it: whether something is missing or damaged that a commit left
//! there, and what is then done.
//!
//! SQLite takes a log without its database for a leftover and deletes it, and a log that does not verify for one that
//! ends there. Both are right after a power cut, and a silent loss of answered events after anything else.

pub(in crate::queue) mod quarantine;

use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use self::quarantine::DamageReason;
use super::files;
use crate::queue::Error;

/// The length of a log's header: a log that is not longer holds nothing.
const LOG_HEADER: u64 = 32;

/// Moves the store in the folder aside if it must not be opened. Call it with the lock held.
///
/// # Errors
/// [`Error::MovedAside`] if there was no database: the folder may be the wrong one, or somebody may be at work in it,
/// so the next start makes a new store, and not this one.
pub(super) fn prepare(folder: &Path) -> Result<(), Error> {
    quarantine::finish_moves(folder)?;
    let database = folder.join(files::DATABASE);
    if !files::is_missing(&database)? {
        return Ok(());
    }
    let log = size(&files::log_of(&database))?.unwrap_or(0);
    if log <= LOG_HEADER {
        return Ok(());
    }
    let reason = if database.exists() { DamageReason::EmptyDatabase } else { DamageReason::MissingDatabase };
    let path = quarantine::move_aside(folder, reason, &format!("the log beside it has {log} bytes"))?;
    Err(Error::MovedAside { path, reason })
}

/// The size of a file, if it exists.
fn size(path: &Path) -> Result<Option<u64>, Error> {
    match fs::metadata(path) {
        Ok(metadata) => Ok(Some(metadata.len())),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(source) => Err(Error::io(path, source)),
    }
}
