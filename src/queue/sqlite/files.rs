//! The store's folder: its permissions, its lock, and the filesystems that it must not be on.
//!
//! The lock is a file of ours and not SQLite's own exclusive mode, so that operators can read the store while the relay
//! runs. The system releases it with the process, even a killed one.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process;

use crate::queue::Error;

/// The database in the store's folder.
pub(super) const DATABASE: &str = "wxrelay.db";
/// The database while it is created.
pub(super) const NEW: &str = "wxrelay.db.new";
pub(super) const LOCK: &str = "wxrelay.lock";

/// Creates the folder if it is missing, for its owner alone, and takes the lock.
///
/// The store belongs to this process until the returned file is dropped.
pub(super) fn claim(folder: &Path) -> Result<File, Error> {
    make(folder)?;
    refuse_network_filesystem(folder)?;
    lock(folder)
}

/// Whether there is no database, or nothing in it.
pub(super) fn is_missing(database: &Path) -> Result<bool, Error> {
    match fs::metadata(database) {
        Ok(metadata) => Ok(metadata.len() == 0),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(true),
        Err(source) => Err(Error::io(database, source)),
    }
}

/// Creates the empty file of a new database, for its owner alone, and removes files that SQLite would take for parts of
/// it. None of them holds an event: the log of a database that was lost is moved aside before (`damage/`).
pub(super) fn begin_new(folder: &Path) -> Result<(), Error> {
    for name in [NEW, DATABASE] {
        for end in ["-wal", "-shm", "-journal"] {
            remove(&folder.join(format!("{name}{end}")))?;
        }
    }
    let new = folder.join(NEW);
    remove(&new)?;
    let made = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new);
    made.map(drop).map_err(|source| Error::io(&new, source))
}

/// Renames a new database, complete and closed, to its final name.
pub(super) fn put_in_place(folder: &Path) -> Result<(), Error> {
    let (new, database) = (folder.join(NEW), folder.join(DATABASE));
    flush(&new)?;
    fs::rename(&new, &database).map_err(|source| Error::io(&database, source))?;
    flush(folder)
}

fn remove(path: &Path) -> Result<(), Error> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Error::io(path, error)),
        _ => Ok(()),
    }
}

/// The write-ahead log of a database.
pub(super) fn log_of(database: &Path) -> PathBuf {
    let mut log = database.as_os_str().to_owned();
    log.push("-wal");
    log.into()
}

/// The flush of a file does not reach the entries of new folders above it, so those are flushed here.
fn make(folder: &Path) -> Result<(), Error> {
    let missing: Vec<&Path> = folder.ancestors().take_while(|path| !path.exists()).collect();
    let made = DirBuilder::new().recursive(true).mode(0o700).create(folder);
    made.map_err(|source| Error::io(folder, source))?;
    for parent in missing.into_iter().filter_map(Path::parent) {
        let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
        flush(parent)?;
    }
    Ok(())
}

/// Makes a file, or the names in a folder, durable. SQLite does so too, but does not report a failure for a folder.
pub(super) fn flush(path: &Path) -> Result<(), Error> {
    let flushed = File::open(path).and_then(|file| file.sync_all());
    flushed.map_err(|source| Error::io(path, source))
}

fn lock(folder: &Path) -> Result<File, Error> {
    let path = folder.join(LOCK);
    let io = |source| Error::io(&path, source);
    let options = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(&path);
    let mut file = options.map_err(io)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut text = String::new();
            let pid = file.read_to_string(&mut text).ok().and_then(|_| text.trim().parse().ok());
            return Err(Error::Locked { path: folder.to_owned(), pid });
        }
        Err(TryLockError::Error(source)) => return Err(io(source)),
    }
    file.set_len(0).and_then(|()| file.rewind()).map_err(io)?;
    match writeln!(file, "{}", process::id()) {
        // The lock works without the process id.
        Err(error) if error.kind() == io::ErrorKind::StorageFull => {}
        written => written.map_err(io)?,
    }
    Ok(file)
}

/// The bytes that the database and its log take on disk.
pub(super) fn size(folder: &Path) -> u64 {
    ["", "-wal"]
        .iter()
        .filter_map(|end| fs::metadata(folder.join(format!("{DATABASE}{end}"))).ok())
        .map(|m| m.len())
        .sum()
}

#[cfg(target_os = "linux")]
pub(super) fn refuse_network_filesystem(folder: &Path) -> Result<(), Error> {
    let found = rustix::fs::statfs(folder).map_err(|source| Error::io(folder, source.into()))?;
    // The field's width and sign differ between architectures; the magic numbers are of 32 bits.
    let kind = found.f_type as u32;
    match network_filesystem(kind) {
        Some("FUSE") => {
            tracing::warn!(path = %folder.display(), "store on a FUSE filesystem; check that it honours fsync");
            Ok(())
        }
        Some(filesystem) => Err(Error::NetworkFilesystem { path: folder.to_owned(), filesystem }),
        None => Ok(()),
    }
}

#[cfg(not(target_os = "linux"))]
pub(super) fn refuse_network_filesystem(_folder: &Path) -> Result<(), Error> {
    Ok(())
}

/// The filesystems of linux/magic.h and statfs(2) on which SQLite's locks or flushes cannot be relied on.
#[cfg(target_os = "linux")]
fn network_filesystem(kind: u32) -> Option<&'static str> {
    Some(match kind {
        0x6969 => "NFS",
        0x517b => "SMB",
        0xff53_4d42 => "CIFS",
        0xfe53_4d42 => "SMB2",
        0x5346_414f | 0x6b41_4653 => "AFS",
        0x00c3_6400 => "Ceph",
        0x0102_1997 => "9p",
        0x7375_7245 => "Coda",
        0x564c => "NCP",
        0x6573_5546 => "FUSE",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn the_store_is_for_its_owner_alone() {
        let parent = tempfile::tempdir().unwrap();
        let folder = parent.path().join("a/b");
        let _lock = claim(&folder).unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        begin_new(&folder).unwrap();
        put_in_place(&folder).unwrap();
        assert_eq!(mode(&folder), 0o700);
        assert_eq!(mode(&folder.join(DATABASE)), 0o600);
        assert_eq!(mode(&folder.join(LOCK)), 0o600);
    }

    #[test]
    fn what_is_left_of_an_earlier_database_is_no_part_of_a_new_one() {
        let folder = tempfile::tempdir().unwrap();
        let leftovers =
            ["wxrelay.db-wal", "wxrelay.db.new", "wxrelay.db.new-journal"].map(|name| folder.path().join(name));
        leftovers.iter().for_each(|path| fs::write(path, "left over").unwrap());
        begin_new(folder.path()).unwrap();
        assert_eq!(leftovers.map(|path| fs::read(path).ok()), [None, Some(Vec::new()), None]);
    }

    #[test]
    fn the_refusal_of_a_second_user_names_the_first() {
        let folder = tempfile::tempdir().unwrap();
        let lock = claim(folder.path()).unwrap();
        let refused = claim(folder.path()).unwrap_err();
        assert!(refused.to_string().contains(&process::id().to_string()), "{refused}");
        assert!(refused.remedy().unwrap().contains("queue.path"));
        drop(lock);
        claim(folder.path()).unwrap();
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn network_filesystems_are_known_by_their_number() {
        assert_eq!(network_filesystem(0x6969), Some("NFS"));
        assert_eq!(network_filesystem(0xff53_4d42), Some("CIFS"));
        assert_eq!(network_filesystem(0xef53), None, "ext4");
        assert_eq!(network_filesystem(0x0102_1994), None, "tmpfs");
    }
}
