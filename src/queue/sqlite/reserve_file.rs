//! The reserve file: a file without content beside the database, which occupies disk space and releases it when the
//! disk is full.
//!
//! Gain: on a full disk the relay keeps delivering and settling what is stored, and a start on a full disk works.
//! Without it (the simple version) the first settlement after the disk filled up failed, and every delivered event
//! would have been delivered again. Its 4 to 64 MiB are space for hundreds of thousands of settlements.
//!
//! The file outlives the process, also a killed one. It is never read nor flushed.

use std::fs::File;
use std::io::{self, ErrorKind, Seek, Write};
use std::mem;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::FallocateFlags;
use rustix::io::Errno;

use super::files::open_own;

const FILE_NAME: &str = "wxrelay.ballast";
/// The largest size in bytes: space for hundreds of thousands of settlements.
const MAX_SIZE: u64 = 64 << 20;
/// The smallest size in bytes, except on a small disk: space to write the log back once.
const MIN_SIZE: u64 = 4 << 20;
/// How many bytes are allocated to learn whether any are free; also the block that is written where the filesystem has
/// no `fallocate`.
const PROBE_SIZE: u64 = 64 << 10;

/// The file, and whether it occupies space now.
pub(super) struct ReserveFile {
    path: PathBuf,
    file: Option<File>,
    size: u64,
    is_allocated: bool,
}

impl ReserveFile {
    /// The file that an earlier process left in the folder, or one that occupies nothing yet.
    pub(super) fn find(folder: &Path) -> Self {
        let path = folder.join(FILE_NAME);
        let file = open_own(&path, false).ok();
        let found = file.as_ref().and_then(|file| file.metadata().ok());
        let (length, occupied) = found.map_or((0, 0), |found| (found.len(), found.blocks().saturating_mul(512)));
        let (free, total) = rustix::fs::statvfs(folder).map_or((0, 0), |disk| {
            (disk.f_bavail.saturating_mul(disk.f_frsize), disk.f_blocks.saturating_mul(disk.f_frsize))
        });
        let size = choose_size(free.saturating_add(occupied), total, length);
        Self { path, file, size, is_allocated: occupied > 0 }
    }

    /// One that is quickly allocated, for a store that does not live long.
    #[cfg(test)]
    pub(super) fn small(folder: &Path) -> Self {
        Self { path: folder.join(FILE_NAME), file: None, size: 1 << 20, is_allocated: false }
    }

    /// How many bytes it occupies when it is allocated.
    pub(super) fn size(&self) -> u64 {
        self.size
    }

    /// Allocates the space. After a release a quarter more than that must be free, for new events.
    pub(super) fn allocate(&mut self) -> io::Result<()> {
        let file = match &self.file {
            Some(file) => file,
            None => self.file.insert(open_own(&self.path, true)?),
        };
        let beside = if mem::take(&mut self.is_allocated) { 0 } else { self.size / 4 };
        let allocated = allocate_blocks(file, self.size + beside).and_then(|()| file.set_len(self.size));
        match &allocated {
            Ok(()) => self.is_allocated = true,
            Err(_) => punch_hole(file, self.size)?,
        }
        allocated
    }

    /// Releases the space; false if it occupied none.
    pub(super) fn release(&mut self) -> bool {
        mem::take(&mut self.is_allocated) && self.file.as_ref().is_some_and(|file| punch_hole(file, self.size).is_ok())
    }

    /// Whether not even [`PROBE_SIZE`] is free. SQLite reports a full disk, but not an exhausted quota.
    pub(super) fn is_disk_full(&self) -> bool {
        let Some(file) = self.file.as_ref().filter(|_| self.is_allocated) else { return false };
        let grown = rustix::fs::fallocate(file, FallocateFlags::empty(), self.size, PROBE_SIZE);
        file.set_len(self.size).ok();
        matches!(grown, Err(Errno::NOSPC | Errno::DQUOT))
    }
}

/// An eighth of what is free, within bounds; but not less than before, as the disk may have filled up since.
fn choose_size(free: u64, total: u64, before: u64) -> u64 {
    let size = (free / 8).clamp((total / 64).clamp(PROBE_SIZE, MIN_SIZE), MAX_SIZE);
    size.max(before.min(total / 8).min(MAX_SIZE))
}

/// Leaves a hole of that size, so that the next process knows how much to allocate again.
fn punch_hole(file: &File, size: u64) -> io::Result<()> {
    file.set_len(0)?;
    file.set_len(size)
}

fn allocate_blocks(mut file: &File, size: u64) -> io::Result<()> {
    match rustix::fs::fallocate(file, FallocateFlags::empty(), 0, size) {
        Err(Errno::OPNOTSUPP | Errno::NOSYS) => {}
        other => return other.map_err(io::Error::from),
    }
    file.rewind()?;
    let zeros = vec![0; usize::try_from(PROBE_SIZE).map_err(|_| ErrorKind::InvalidInput)?];
    for _ in 0..size.div_ceil(PROBE_SIZE) {
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
        assert_eq!(choose_size(500 << 30, 1 << 40, 0), MAX_SIZE);
        assert_eq!(choose_size(40 << 20, 1 << 40, 0), 5 << 20);
        assert_eq!(
            choose_size(0, 1 << 40, 0),
            MIN_SIZE,
            "a full disk: what must be free before new events are accepted"
        );
        assert_eq!(choose_size(4 << 20, 4 << 20, 0), 512 << 10);
        assert_eq!(choose_size(0, 4 << 20, 0), PROBE_SIZE);
        assert_eq!(choose_size(0, 0, 0), PROBE_SIZE, "a filesystem that does not say");
    }

    #[test]
    fn it_does_not_become_smaller_from_start_to_start_unless_the_disk_does() {
        assert_eq!(choose_size(0, 1 << 40, MAX_SIZE), MAX_SIZE);
        assert_eq!(choose_size(0, 80 << 20, MAX_SIZE), 10 << 20);
        assert_eq!(choose_size(0, 1 << 40, u64::MAX), MAX_SIZE);
    }

    #[test]
    fn it_occupies_disk_space_until_it_is_released_and_outlives_its_process() {
        let folder = tempfile::tempdir().unwrap();
        let mut reserve = ReserveFile::find(folder.path());
        assert!(!reserve.release(), "nothing allocated yet");
        reserve.allocate().unwrap();
        let file = || fs::metadata(folder.path().join(FILE_NAME)).unwrap();
        assert_eq!(file().len(), reserve.size());
        assert!(file().blocks() * 512 >= reserve.size(), "it is no hole");
        assert_eq!(file().permissions().mode() & 0o777, 0o600);
        assert!(!reserve.is_disk_full());
        assert_eq!(file().len(), reserve.size());

        let mut next = ReserveFile::find(folder.path());
        assert!(next.release(), "the one left behind occupies space");
        assert_eq!((file().blocks(), file().len()), (0, next.size()));
        assert!(!next.release());
        assert!(!ReserveFile::find(folder.path()).release(), "a hole occupies nothing");
        next.allocate().unwrap();
        assert!(file().blocks() * 512 >= next.size());
    }
}
