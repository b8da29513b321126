//! Inspecting a store's folder from outside, without making or changing anything there.
//!
//! It is safe while a relay runs. To learn whether the lock is held, it shares the lock for a moment, on what is opened
//! for reading: a relay that starts in that very moment fails because the store is in use.

use std::path::Path;

use super::{files, lock, schema};
use crate::queue::Error;

/// The schema that this release writes.
pub const SCHEMA: i64 = schema::VERSION;

/// The result of a survey.
#[derive(Debug)]
pub struct Survey {
    /// Whether the filesystem is one that a store can be on.
    pub filesystem: Result<(), Error>,
    /// The process that uses the store, if one does.
    pub holder: Option<LockHolder>,
}

/// A process that uses a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LockHolder {
    /// Its id, if it wrote it down; as seen from its own namespace.
    pub pid: Option<u32>,
}

/// Inspects a folder that exists.
pub fn survey(folder: &Path) -> Survey {
    let holder = lock::find_holder(folder).map(|pid| LockHolder { pid });
    Survey { filesystem: files::refuse_network_filesystem(folder), holder }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_holder_is_named_while_it_holds_and_nothing_is_made() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(survey(folder.path()).holder, None);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
        let lock = files::claim(folder.path()).unwrap();
        assert_eq!(survey(folder.path()).holder, Some(LockHolder { pid: Some(std::process::id()) }));
        drop(lock);
        assert_eq!(survey(folder.path()).holder, None);
        files::claim(folder.path()).unwrap();
    }
}
