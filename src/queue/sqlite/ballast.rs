//! The ballast: a file of no content beside the database that holds some room on the disk, to be let go when the disk
//! is full.
//!
//! It outlives the process, a killed one too, so that a start on a full disk has room as well. What it holds is never
//! read, nor flushed.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Seek, Write};
use std::mem;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::FallocateFlags;
use rustix::io::Errno;

const NAME: &str = "wxrelay.ballast";
/// The most it takes: room for hundreds of thousands of settlements.
const LARGEST: u64 = 64 << 20;
/// The least it takes, but on a small disk: room to write the log back once.
const LEAST: u64 = 4 << 20;
/// What a little room is, to ask whether there is any.
const CRUMB: u64 = 64 << 10;

/// The file, and whether it holds room now.
pub(super) struct Ballast {
    path: PathBuf,
    file: Option<File>,
    size: u64,
    held: bool,
}

impl Ballast {
    /// The one that an earlier process left in the folder, or one that holds nothing yet.
    pub(super) fn find(folder: &Path) -> Self {
        let path = folder.join(NAME);
        let file = OpenOptions::new().write(true).open(&path).ok();
        let found = file.as_ref().and_then(|file| file.metadata().ok());
        let (length, held) = found.map_or((0, 0), |found| (found.len(), found.blocks().saturating_mul(512)));
        let (free, total) = rustix::fs::statvfs(folder).map_or((0, 0), |disk| {
            (disk.f_bavail.saturating_mul(disk.f_frsize), disk.f_blocks.saturating_mul(disk.f_frsize))
        });
        Self { path, file, size: size(free.saturating_add(held), total, length), held: held > 0 }
    }

    /// One that is quickly taken, for a store that does not live long.
    #[cfg(test)]
    pub(super) fn small(folder: &Path) -> Self {
        Self { path: folder.join(NAME), file: None, size: 1 << 20, held: false }
    }

    /// How many bytes it holds when it does.
    pub(super) fn size(&self) -> u64 {
        self.size
    }

    /// Takes the room. Once it was let go there has to be a quarter more than that, for new events.
    pub(super) fn take(&mut self) -> io::Result<()> {
        let file = match &self.file {
            Some(file) => file,
            None => {
                let opened =
                    OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&self.path)?;
                self.file.insert(opened)
            }
        };
        let beside = if mem::take(&mut self.held) { 0 } else { self.size / 4 };
        let taken = allocate(file, self.size + beside).and_then(|()| file.set_len(self.size));
        match &taken {
            Ok(()) => self.held = true,
            Err(_) => empty(file, self.size)?,
        }
        taken
    }

    /// Gives the room back; false if it held none.
    pub(super) fn let_go(&mut self) -> bool {
        mem::take(&mut self.held) && self.file.as_ref().is_some_and(|file| empty(file, self.size).is_ok())
    }

    /// Whether not even a little more can be had. SQLite tells a full disk, but not a quota used up.
    pub(super) fn is_at_the_end(&self) -> bool {
        let Some(file) = self.file.as_ref().filter(|_| self.held) else { return false };
        let grown = rustix::fs::fallocate(file, FallocateFlags::empty(), self.size, CRUMB);
        file.set_len(self.size).ok();
        matches!(grown, Err(Errno::NOSPC | Errno::DQUOT))
    }
}

/// An eighth of what is free, within bounds; but what it was before, as the disk may have filled up since.
fn size(free: u64, total: u64, before: u64) -> u64 {
    let size = (free / 8).clamp((total / 64).clamp(CRUMB, LEAST), LARGEST);
    size.max(before.min(total / 8).min(LARGEST))
}

/// Leaves a hole of that size: so much is to be had again.
fn empty(file: &File, size: u64) -> io::Result<()> {
    file.set_len(0)?;
    file.set_len(size)
}

fn allocate(mut file: &File, size: u64) -> io::Result<()> {
    match rustix::fs::fallocate(file, FallocateFlags::empty(), 0, size) {
        Err(Errno::OPNOTSUPP | Errno::NOSYS) => {}
        other => return other.map_err(io::Error::from),
    }
    file.rewind()?;
    let zeros = vec![0; usize::try_from(CRUMB).map_err(|_| ErrorKind::InvalidInput)?];
    for _ in 0..size.div_ceil(CRUMB) {
        file.write_all(&zeros)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn it_is_large_on_a_large_disk_and_leaves_most_of_a_small_one() {
        assert_eq!(size(500 << 30, 1 << 40, 0), LARGEST);
        assert_eq!(size(40 << 20, 1 << 40, 0), 5 << 20);
        assert_eq!(size(0, 1 << 40, 0), LEAST, "a full disk: what is waited for before new events are taken");
        assert_eq!(size(4 << 20, 4 << 20, 0), 512 << 10);
        assert_eq!(size(0, 4 << 20, 0), CRUMB);
        assert_eq!(size(0, 0, 0), CRUMB, "a filesystem that does not tell");
    }

    #[test]
    fn it_does_not_become_smaller_from_start_to_start_unless_the_disk_does() {
        assert_eq!(size(0, 1 << 40, LARGEST), LARGEST);
        assert_eq!(size(0, 80 << 20, LARGEST), 10 << 20);
        assert_eq!(size(0, 1 << 40, u64::MAX), LARGEST);
    }

    #[test]
    fn it_holds_room_on_the_disk_until_it_is_let_go_and_outlives_its_process() {
        let folder = tempfile::tempdir().unwrap();
        let mut ballast = Ballast::find(folder.path());
        assert!(!ballast.let_go(), "nothing held yet");
        ballast.take().unwrap();
        let file = || fs::metadata(folder.path().join(NAME)).unwrap();
        assert_eq!(file().len(), ballast.size());
        assert!(file().blocks() * 512 >= ballast.size(), "it is no hole");
        assert_eq!(file().permissions().mode() & 0o777, 0o600);
        assert!(!ballast.is_at_the_end());
        assert_eq!(file().len(), ballast.size());

        let mut next = Ballast::find(folder.path());
        assert!(next.let_go(), "the one left behind holds room");
        assert_eq!((file().blocks(), file().len()), (0, next.size()));
        assert!(!next.let_go());
        assert!(!Ballast::find(folder.path()).let_go(), "a hole holds nothing");
        next.take().unwrap();
        assert!(file().blocks() * 512 >= next.size());
    }
}
