//! Writing the store back after somebody removed, renamed or replaced its files under the running relay.
//!
//! The files are still open, so nothing is lost yet: their content is copied into new files under the right names, and
//! the relay continues with those. The simple version, to end the process as after a failed flush, would lose every
//! event of files that have no name any more.
//!
//! The copy is complete and flushed under a name of its own before anything else is touched: from then on a crash loses
//! nothing, and the next start finishes what is left to do. What is in its place is moved aside if it is not ours.

use std::fs::{self, DirBuilder, File};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::file_watch::FileWatch;
use super::files::{self, DATABASE, FileId, NEW};
use super::lock::StoreLock;
use super::store::Store;
use crate::clock::UnixMillis;
use crate::queue::Error;

/// The complete copy, until it is in place.
const COPY: &str = "wxrelay.db.copy";
/// Folders of files that were found in the place of ours.
const REPLACED: &str = "replaced-";
/// What a database consists of besides its own file, and the record of its last commit.
const PARTS: [&str; 5] = [DATABASE, "wxrelay.db-wal", "wxrelay.db-journal", "wxrelay.db-shm", "wxrelay.commit"];
/// The most folders that one second can name.
const SAME_SECOND: u32 = 1000;

/// Copies what the store's open files hold into `folder`, under their names. Returns the lock of the folder, if that is
/// another one than before: it was renamed, and one made in its place.
///
/// # Errors
/// [`Error::Locked`] if another relay uses the folder now.
pub(super) fn write_back(store: &Store, folder: &Path, lock: &StoreLock) -> Result<Option<StoreLock>, Error> {
    files::make(folder)?;
    let new_lock = if lock.is_of(folder) { None } else { Some(StoreLock::take(folder)?) };
    files::refuse_network_filesystem(folder)?;
    let (new, copy) = (folder.join(NEW), folder.join(COPY));
    files::remove(&new)?;
    let made = File::options().write(true).create_new(true).mode(0o600).open(&new);
    made.map_err(|source| Error::io(&new, source))?;
    let text = new.to_str().ok_or_else(|| Error::io(&new, ErrorKind::InvalidFilename.into()))?;
    let copied = store.connection.execute("VACUUM INTO ?1", [text]).map_err(Error::from);
    if let Err(error) = copied.and_then(|_| files::flush(&new)) {
        files::remove(&new)?;
        return Err(error);
    }
    fs::rename(&new, &copy).map_err(|source| Error::io(&copy, source))?;
    files::flush(folder)?;
    put_in_place(folder, Some(&store.files))?;
    Ok(new_lock)
}

/// Puts the copy in place that an earlier process completed, if it did.
pub(super) fn finish(folder: &Path) -> Result<(), Error> {
    if !folder.join(COPY).exists() {
        return Ok(());
    }
    put_in_place(folder, None)?;
    tracing::warn!(path = %folder.display(), "store written back, as begun before");
    Ok(())
}

fn put_in_place(folder: &Path, ours: Option<&FileWatch>) -> Result<(), Error> {
    let mut aside = None;
    for name in PARTS {
        let path = folder.join(name);
        let found = match fs::symlink_metadata(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => continue,
            found => found.map_err(|source| Error::io(&path, source))?,
        };
        let is_ours = ours.is_some_and(|ours| ours.contains(FileId::of(&found)));
        // The index and the record mean nothing beside another log. All that our files hold is in the copy.
        let is_void = !name.starts_with(DATABASE) || name.ends_with("-shm") || found.len() == 0 || is_ours;
        if is_void {
            files::remove(&path)?;
            continue;
        }
        let aside: &PathBuf = match &mut aside {
            Some(aside) => aside,
            none => none.insert(make_aside(folder).map_err(|source| Error::io(folder, source))?),
        };
        fs::rename(&path, aside.join(name)).map_err(|source| Error::io(&path, source))?;
        tracing::warn!(path = %path.display(), to = %aside.display(), "file that is not the relay's moved aside");
    }
    let (copy, database) = (folder.join(COPY), folder.join(DATABASE));
    fs::rename(&copy, &database).map_err(|source| Error::io(&database, source))?;
    files::flush(folder)
}

fn make_aside(folder: &Path) -> io::Result<PathBuf> {
    let now = files::stamp(UnixMillis::now());
    for number in 1..SAME_SECOND {
        let suffix = if number == 1 { String::new() } else { format!("-{number}") };
        let path = folder.join(format!("{REPLACED}{now}{suffix}"));
        match DirBuilder::new().mode(0o700).create(&path) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
            made => return made.map(|()| path),
        }
    }
    Err(ErrorKind::AlreadyExists.into())
}
