//! The store's folder: its permissions, its files, and the filesystems that it must not be on.

use std::fs::{self, DirBuilder, File, Metadata, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{OFlags, Stat};
use rustix::io::Errno;

use super::lock::StoreLock;
use crate::clock::UnixMillis;
use crate::queue::Error;

/// The database in the store's folder.
pub(super) const DATABASE: &str = "wxrelay.db";
/// The database while it is created.
pub(super) const NEW: &str = "wxrelay.db.new";

/// Creates the folder if it is missing, for its owner alone, and takes the lock.
///
/// The store belongs to this process until the returned lock is dropped.
pub(super) fn claim(folder: &Path) -> Result<StoreLock, Error> {
    make(folder)?;
    refuse_network_filesystem(folder)?;
    refuse_links(folder)?;
    StoreLock::take(folder)
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

pub(super) fn remove(path: &Path) -> Result<(), Error> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Error::io(path, error)),
        _ => Ok(()),
    }
}

/// The write-ahead log of a database.
pub(super) fn log_of(database: &Path) -> PathBuf {
    beside(database, "-wal")
}

/// The file of a database whose name has this end.
pub(super) fn beside(database: &Path, end: &str) -> PathBuf {
    let mut name = database.as_os_str().to_owned();
    name.push(end);
    name.into()
}

/// The folder, or the nearest one above it that exists.
///
/// # Errors
/// If it is a file.
pub(super) fn existing_part(folder: &Path) -> Result<&Path, Error> {
    let existing = folder.ancestors().find(|path| path.exists()).unwrap_or(folder);
    let fault = |cause| Error::Io { path: existing.to_owned(), cause };
    match fs::metadata(existing) {
        Ok(metadata) if !metadata.is_dir() => Err(fault(io::ErrorKind::NotADirectory.into())),
        _ => Ok(existing),
    }
}

/// The flush of a file does not reach the entries of new folders above it, so those are flushed here.
pub(super) fn make(folder: &Path) -> Result<(), Error> {
    existing_part(folder)?;
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

/// A second as the names of folders have it: `20261130T081500Z`.
pub(super) fn stamp(now: UnixMillis) -> String {
    let second = now.to_string().replace(['-', ':'], "");
    format!("{}Z", second.split('.').next().unwrap_or_default())
}

/// A file, whatever its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FileId {
    device: u64,
    inode: u64,
}

impl FileId {
    pub(super) fn of(metadata: &Metadata) -> Self {
        Self { device: metadata.dev(), inode: metadata.ino() }
    }

    pub(super) fn of_stat(stat: &Stat) -> Self {
        Self { device: stat.st_dev, inode: stat.st_ino }
    }

    /// The file that has this name now.
    pub(super) fn at(path: &Path) -> io::Result<Self> {
        Ok(Self::of(&fs::symlink_metadata(path)?))
    }
}

/// Opens a file of the store for reading and writing, and if `create`, makes it where it is missing.
///
/// Only what the relay writes for itself is opened: not through a symbolic link, and not under one of several names. A
/// file with another name is replaced by a new one, or not opened.
pub(super) fn open_own(path: &Path, create: bool) -> io::Result<File> {
    // `NONBLOCK`, or a pipe would block.
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed();
    let mut options = OpenOptions::new();
    options.read(true).write(true).mode(0o600).custom_flags(flags);
    let file = options.clone().create(create).truncate(false).open(path)?;
    let metadata = file.metadata()?;
    match metadata.is_file() {
        true if metadata.nlink() <= 1 => Ok(file),
        true if create => fs::remove_file(path).and_then(|()| options.create_new(true).open(path)),
        _ => Err(Errno::LOOP.into()),
    }
}

/// Refuses links and special files among the files of the store.
///
/// SQLite opens its log and its index without following links, but not the database.
pub(super) fn refuse_links(folder: &Path) -> Result<(), Error> {
    let io = |source| Error::io(folder, source);
    for entry in fs::read_dir(folder).map_err(io)? {
        let entry = entry.map_err(io)?;
        let is_ours = entry.file_name().as_encoded_bytes().starts_with(b"wxrelay.");
        if is_ours && !entry.file_type().map_err(io)?.is_file() {
            return Err(Error::NotAFile { path: entry.path() });
        }
    }
    Ok(())
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
        assert_eq!(mode(&folder.join("wxrelay.lock")), 0o600);
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
        assert!(refused.to_string().contains(&std::process::id().to_string()), "{refused}");
        assert!(refused.remedy().unwrap().contains("queue.path"));
        drop(lock);
        claim(folder.path()).unwrap();
    }

    #[test]
    fn no_file_is_opened_through_a_link_or_under_a_second_name() {
        let (folder, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (path, victim) = (folder.path().join("wxrelay.lock"), other.path().join("victim"));
        fs::write(&victim, "precious").unwrap();
        std::os::unix::fs::symlink(&victim, &path).unwrap();
        assert!(matches!(refuse_links(folder.path()), Err(Error::NotAFile { path: link }) if link == path));
        for create in [false, true] {
            let error = Error::io(&path, open_own(&path, create).unwrap_err());
            assert!(matches!(error, Error::NotAFile { .. }), "{error}");
        }
        fs::remove_file(&path).unwrap();
        rustix::fs::mkfifoat(rustix::fs::CWD, &path, rustix::fs::Mode::RUSR).unwrap();
        assert!(refuse_links(folder.path()).is_err() && open_own(&path, true).is_err());
        fs::remove_file(&path).unwrap();
        fs::hard_link(&victim, &path).unwrap();
        assert!(open_own(&path, false).is_err());
        open_own(&path, true).unwrap().set_len(0).unwrap();
        assert_eq!(fs::read(&victim).unwrap(), b"precious");
        assert_eq!(fs::read(&path).unwrap(), b"");
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
