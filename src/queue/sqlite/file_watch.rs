//! Whether the names of the store's files still lead to the files that are open.
//!
//! A process keeps a file that is removed, renamed or replaced, and its writes and flushes go on to succeed. The next
//! process does not find what was committed there. So the writer looks before it answers: two calls of `stat` for each
//! commit, about 2 µs beside a flush.

use std::cell::Cell;
use std::ffi::{CString, OsStr};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::{fmt, io};

use rustix::io::Errno;

use super::files::{self, FileId};
use super::log_format::{FRAME, HEADER};
use crate::queue::Error;

/// The files that the database's connection has opened.
#[derive(Debug)]
pub(super) struct FileWatch {
    database: WatchedFile,
    log: WatchedFile,
    /// Readers that do not share it with the writer could read pages that are being overwritten.
    index: WatchedFile,
    /// The least bytes that the database may have: only our checkpoints make it shorter.
    database_size: Cell<u64>,
}

#[derive(Debug)]
struct WatchedFile {
    /// As the system call takes it: each push pays for the call.
    path: CString,
    id: FileId,
}

/// A file that the next process would not find as it should be.
#[derive(Debug)]
pub(super) struct LostFile {
    pub(super) path: PathBuf,
    pub(super) fault: FileFault,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FileFault {
    Missing,
    Replaced,
    Truncated,
}

impl fmt::Display for FileFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Missing => "removed or renamed",
            Self::Replaced => "replaced by another file",
            Self::Truncated => "truncated",
        })
    }
}

impl FileWatch {
    /// Of a database that was just opened, and whose log and index exist.
    pub(super) fn new(database: &Path) -> Result<Self, Error> {
        let watched = |path: PathBuf| WatchedFile::new(&path).map_err(|source| Error::io(&path, source));
        let [log, index] = ["-wal", "-shm"].map(|end| watched(files::beside(database, end)));
        Ok(Self { database: watched(database.to_owned())?, log: log?, index: index?, database_size: Cell::new(0) })
    }

    /// Looks at the database and its log, which holds `frames` pages.
    pub(super) fn check(&self, frames: u64) -> Result<(), LostFile> {
        let size = self.database.check(self.database_size.get())?;
        self.database_size.set(self.database_size.get().max(size));
        let least = if frames == 0 { 0 } else { HEADER as u64 + frames * FRAME as u64 };
        self.log.check(least).map(drop)
    }

    /// Looks at the index, without which no other process reads right.
    pub(super) fn check_index(&self) -> Result<(), LostFile> {
        self.index.check(0).map(drop)
    }

    /// Notes that a checkpoint may have made the database shorter.
    pub(super) fn note_checkpoint(&self) {
        self.database_size.set(0);
    }

    /// Whether a file is one of these, whatever its name.
    pub(super) fn contains(&self, id: FileId) -> bool {
        [&self.database, &self.log, &self.index].iter().any(|file| file.id == id)
    }

    pub(super) fn is_log(&self, path: &Path) -> bool {
        self.log.path() == path
    }
}

impl WatchedFile {
    fn new(path: &Path) -> io::Result<Self> {
        Ok(Self { path: CString::new(path.as_os_str().as_bytes())?, id: FileId::at(path)? })
    }

    fn path(&self) -> &Path {
        Path::new(OsStr::from_bytes(self.path.as_bytes()))
    }

    /// Its size.
    fn check(&self, least: u64) -> Result<u64, LostFile> {
        let lost = |fault| Err(LostFile { path: self.path().to_owned(), fault });
        // The plain call: the standard library's asks for more than is needed, with every push.
        match rustix::fs::lstat(&*self.path).map(|found| (FileId::of_stat(&found), found.st_size.cast_unsigned())) {
            Ok((id, _)) if id != self.id => lost(FileFault::Replaced),
            Ok((_, size)) if size < least => lost(FileFault::Truncated),
            Ok((_, size)) => Ok(size),
            Err(Errno::NOENT | Errno::NOTDIR) => lost(FileFault::Missing),
            // Such as a folder above that may not be entered: the files are there.
            Err(_) => Ok(least),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_file_that_is_no_longer_what_was_opened_is_found() {
        let folder = tempfile::tempdir().unwrap();
        let database = folder.path().join("wxrelay.db");
        let log = files::beside(&database, "-wal");
        for end in ["", "-wal", "-shm"] {
            fs::write(files::beside(&database, end), vec![0; 8192]).unwrap();
        }
        let watch = FileWatch::new(&database).unwrap();
        let fault = |frames| watch.check(frames).map_err(|lost| (lost.path, lost.fault));
        assert_eq!(fault(1), Ok(()));
        assert_eq!(fault(2), Err((log.clone(), FileFault::Truncated)));
        fs::write(&database, [0; 4096]).unwrap();
        assert_eq!(fault(0), Err((database.clone(), FileFault::Truncated)));
        watch.note_checkpoint();
        assert_eq!(fault(0), Ok(()));
        fs::rename(&log, folder.path().join("elsewhere")).unwrap();
        assert_eq!(fault(0), Err((log.clone(), FileFault::Missing)));
        fs::write(&log, [0; 8192]).unwrap();
        assert_eq!(fault(0), Err((log, FileFault::Replaced)));
        assert!(watch.check_index().is_ok());
        fs::remove_file(files::beside(&database, "-shm")).unwrap();
        assert_eq!(watch.check_index().unwrap_err().fault, FileFault::Missing);
    }
}
