//! The store's lock: on its folder, and on the file `wxrelay.lock`, which holds the process id.
//!
//! The folder's lock is the one that counts: a cleaner may remove the file, but not the folder while it holds a store.
//! The file is locked too, as earlier versions know only its lock. Neither is SQLite's own exclusive mode, so that
//! operators can read the store while the relay runs. The system releases both with the process, even a killed one.

use std::fs::{self, File, Metadata, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process;

use rustix::fs::OFlags;
use rustix::process::geteuid;

use super::files::{FileId, open_own};
use crate::queue::Error;
use crate::telemetry::LogThrottle;

const FILE_NAME: &str = "wxrelay.lock";

/// A store that belongs to this process until this is dropped.
#[derive(Debug)]
pub(super) struct StoreLock {
    folder: File,
    file: File,
    path: PathBuf,
    throttle: LogThrottle,
}

impl StoreLock {
    /// Takes the lock of a folder that exists.
    ///
    /// # Errors
    /// [`Error::Locked`] if another process has it.
    pub(super) fn take(folder: &Path) -> Result<Self, Error> {
        let path = folder.join(FILE_NAME);
        let locked = || Error::Locked { path: folder.to_owned(), pid: read_pid(&path) };
        let directory = open_folder(folder).map_err(|source| Error::io(folder, source))?;
        match directory.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(locked()),
            // A filesystem that locks no folders.
            Err(TryLockError::Error(error)) => {
                tracing::warn!(path = %folder.display(), %error, "store folder cannot be locked; its lock file must stay");
            }
        }
        let file = match lock_file(&path) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Err(locked()),
            taken => taken.map_err(|source| Error::io(&path, source))?,
        };
        Ok(Self { folder: directory, file, path, throttle: LogThrottle::default() })
    }

    /// Whether the folder of that name is the one that is locked.
    pub(super) fn is_of(&self, folder: &Path) -> bool {
        let is_same = |ours: &Metadata| fs::metadata(folder).is_ok_and(|found| FileId::of(&found) == FileId::of(ours));
        self.folder.metadata().is_ok_and(|ours| is_same(&ours))
    }

    /// The name that the folder has now, as far as the system tells.
    pub(super) fn present_path(&self) -> Option<PathBuf> {
        fs::read_link(format!("/proc/self/fd/{}", self.folder.as_raw_fd())).ok()
    }

    /// Makes the lock file again if it was removed or replaced: it names this process to others.
    pub(super) fn restore_file(&mut self) {
        let is_ours = self.file.metadata().is_ok_and(|ours| FileId::at(&self.path).ok() == Some(FileId::of(&ours)));
        if is_ours {
            return;
        }
        let made = lock_file(&self.path);
        if let Some(suppressed) = self.throttle.allow() {
            let (path, error) = (self.path.display(), made.as_ref().err().map(ToString::to_string));
            tracing::warn!(%path, error, suppressed, "lock file removed by another program; making it again");
        }
        if let Ok(file) = made {
            self.file = file;
        }
    }
}

/// The process that has locked the folder; `None` if none has.
pub(super) fn find_holder(folder: &Path) -> Option<Option<u32>> {
    let path = folder.join(FILE_NAME);
    let file = OpenOptions::new().read(true).custom_flags(own_flags()).open(&path);
    let is_locked =
        |file: io::Result<File>| matches!(file.map(|file| file.try_lock_shared()), Ok(Err(TryLockError::WouldBlock)));
    (is_locked(open_folder(folder)) || is_locked(file)).then(|| read_pid(&path))
}

/// Refuses a folder of another user while this process is root: that user could replace files which root then writes.
///
/// # Errors
/// [`Error::ForeignOwner`].
pub fn check_owner(folder: &Path) -> Result<(), Error> {
    match fs::metadata(folder).map(|metadata| metadata.uid()) {
        Ok(owner) if owner != 0 && geteuid().is_root() => Err(Error::ForeignOwner { path: folder.to_owned(), owner }),
        _ => Ok(()),
    }
}

fn open_folder(folder: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).custom_flags(OFlags::DIRECTORY.bits().cast_signed()).open(folder)
}

fn own_flags() -> i32 {
    (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed()
}

fn lock_file(path: &Path) -> io::Result<File> {
    let mut file = open_own(path, true)?;
    file.try_lock()?;
    file.set_len(0).and_then(|()| file.rewind())?;
    match writeln!(file, "{}", process::id()) {
        // The lock works without the process id.
        Err(error) if error.kind() == io::ErrorKind::StorageFull => {}
        written => written?,
    }
    Ok(file)
}

fn read_pid(path: &Path) -> Option<u32> {
    let file = OpenOptions::new().read(true).custom_flags(own_flags()).open(path).ok()?;
    let mut text = String::new();
    file.take(32).read_to_string(&mut text).ok()?;
    text.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lock_holds_without_its_file_which_is_made_again() {
        let folder = tempfile::tempdir().unwrap();
        let mut lock = StoreLock::take(folder.path()).unwrap();
        let path = folder.path().join(FILE_NAME);
        fs::remove_file(&path).unwrap();
        assert!(matches!(StoreLock::take(folder.path()), Err(Error::Locked { pid: None, .. })));
        assert_eq!(find_holder(folder.path()), Some(None));
        lock.restore_file();
        assert_eq!(find_holder(folder.path()), Some(Some(process::id())));
        assert!(matches!(StoreLock::take(folder.path()), Err(Error::Locked { pid: Some(_), .. })));
        drop(lock);
        assert_eq!(find_holder(folder.path()), None);
        StoreLock::take(folder.path()).unwrap();
    }

    #[test]
    fn the_lock_of_an_earlier_version_is_respected() {
        let folder = tempfile::tempdir().unwrap();
        let earlier = lock_file(&folder.path().join(FILE_NAME)).unwrap();
        assert!(matches!(StoreLock::take(folder.path()), Err(Error::Locked { pid: Some(_), .. })));
        drop(earlier);
        StoreLock::take(folder.path()).unwrap();
    }
}
