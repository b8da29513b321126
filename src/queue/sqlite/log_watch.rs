//! Readers that keep the write-ahead log from being written back: how long they have, and who they are.
//!
//! A program that leaves a read transaction open, such as a `sqlite3` shell, needs the log as it was. The log then grows
//! with every commit. It counts against `queue.max_size`, and the readers are named in a warning.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process;
use std::time::Duration;

use rustix::fs::{major, minor};
use tokio::time::Instant;

use super::files;
use crate::telemetry::LogThrottle;

/// How often the log is tried to be written back while a reader needs it.
const RETRY: Duration = Duration::from_millis(250);
/// How long a reader may need the log before that is logged.
const WARN_AFTER: Duration = Duration::from_secs(10);
/// The bytes of the index that readers lock (`WAL_READ_LOCK` in SQLite's wal.c).
const READ_LOCKS: std::ops::RangeInclusive<u64> = 123..=127;
/// How often `/proc/locks` is read until a reader is found. The kernel hands it out a page at a time, by position: where
/// locks are taken and released meanwhile, an entry may be skipped.
const LOOKS: usize = 16;

/// Whether the log can be written back.
pub(super) struct LogWatch {
    database: PathBuf,
    blocked: Option<BlockedLog>,
    throttle: LogThrottle,
}

struct BlockedLog {
    since: Instant,
    retry_at: Instant,
    is_logged: bool,
}

impl LogWatch {
    /// For the store in a folder.
    pub(super) fn new(folder: &Path) -> Self {
        Self { database: folder.join(files::DATABASE), blocked: None, throttle: LogThrottle::default() }
    }

    /// When to write the log back again, if the last try could not.
    pub(super) fn retry_at(&self) -> Option<Instant> {
        self.blocked.as_ref().map(|blocked| blocked.retry_at)
    }

    /// Whether to write the log back now, if `is_long`.
    pub(super) fn is_due(&self, is_long: bool) -> bool {
        self.retry_at().map_or(is_long, |at| at <= Instant::now())
    }

    /// Notes whether the log, of that many bytes, could be written back whole.
    pub(super) fn note(&mut self, is_free: bool, bytes: u64) {
        let now = Instant::now();
        if is_free {
            if self.blocked.take().is_some_and(|blocked| blocked.is_logged) {
                tracing::info!("write-ahead log written back again");
            }
            return;
        }
        let blocked = self.blocked.get_or_insert(BlockedLog { since: now, retry_at: now, is_logged: false });
        blocked.retry_at = now + RETRY;
        let time = now - blocked.since;
        if time < WARN_AFTER {
            return;
        }
        if let Some(suppressed) = self.throttle.allow() {
            blocked.is_logged = true;
            let (readers, seconds) = (find_readers(&self.database), time.as_secs());
            tracing::warn!(
                path = %files::log_of(&self.database).display(), bytes, seconds, readers, suppressed,
                remedy = "end the transaction that the reader left open, or the reader",
                "write-ahead log grows, a reader keeps it from being written back"
            );
        }
    }
}

/// The processes that read the database now, as `12345 (sqlite3)`.
fn find_readers(database: &Path) -> String {
    let index = files::beside(database, "-shm");
    let look = |file: &fs::Metadata| {
        let locks = fs::read_to_string("/proc/locks").unwrap_or_default();
        list_pids(&locks, (major(file.dev()), minor(file.dev())), file.ino())
    };
    let found = fs::metadata(&index)
        .map(|file| (0..LOOKS).map(|_| look(&file)).find(|pids| !pids.is_empty()).unwrap_or_default());
    let named = |pid: u32| match fs::read_to_string(format!("/proc/{pid}/comm")) {
        _ if pid == process::id() => format!("{pid} (this relay)"),
        Ok(name) => format!("{pid} ({})", name.trim_end()),
        Err(_) => pid.to_string(),
    };
    let names: Vec<_> = found.unwrap_or_default().into_iter().map(named).collect();
    match names.as_slice() {
        [] => format!("unknown; fuser {} lists them", index.display()),
        names => names.join(", "),
    }
}

/// The processes that hold a read lock on the index, by `/proc/locks`. Some filesystems show another device there than
/// to `stat`, so where none has the right one, the inode decides.
fn list_pids(locks: &str, device: (u32, u32), inode: u64) -> Vec<u32> {
    let readers = locks.lines().filter_map(|line| {
        let mut words = line.split_ascii_whitespace().skip(1);
        let (Some("POSIX"), Some(_), Some("READ")) = (words.next(), words.next(), words.next()) else { return None };
        let pid: u32 = words.next()?.parse().ok()?;
        let mut file = words.next()?.split(':');
        let mut device = || u32::from_str_radix(file.next()?, 16).ok();
        let device = (device()?, device()?);
        let (found, start) = (file.next()?.parse::<u64>().ok()?, words.next()?.parse().ok()?);
        (found == inode && READ_LOCKS.contains(&start)).then_some((device, pid))
    });
    let readers: Vec<_> = readers.collect();
    let exact = |reader: &&((u32, u32), u32)| reader.0 == device;
    let is_exact = readers.iter().any(|reader| exact(&reader));
    let mut pids: Vec<u32> = readers.iter().filter(|reader| !is_exact || exact(reader)).map(|(_, pid)| *pid).collect();
    pids.sort_unstable();
    pids.dedup();
    pids
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readers_are_found_by_their_locks_on_the_index() {
        let locks = "1: POSIX  ADVISORY  READ 100 08:02:77 124 124\n\
                     2: POSIX  ADVISORY  READ 100 08:02:77 128 128\n\
                     2: -> POSIX  ADVISORY  WRITE 105 08:02:77 123 123\n\
                     3: POSIX  ADVISORY  WRITE 101 08:02:77 120 120\n\
                     4: FLOCK  ADVISORY  WRITE 102 08:02:77 0 EOF\n\
                     5: POSIX  ADVISORY  READ 103 00:1f:77 123 123\n\
                     6: POSIX  ADVISORY  READ 104 08:02:78 124 124\n";
        assert_eq!(list_pids(locks, (8, 2), 77), [100]);
        assert_eq!(list_pids(locks, (0, 31), 77), [103]);
        assert_eq!(list_pids(locks, (0, 32), 77), [100, 103]);
        assert_eq!(list_pids("", (8, 2), 77), [0; 0]);
    }

    #[test]
    fn a_reader_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let database = folder.path().join(files::DATABASE);
        let writer = rusqlite::Connection::open(&database).unwrap();
        writer.execute_batch("PRAGMA journal_mode = WAL; CREATE TABLE x (y)").unwrap();
        let reading = writer.unchecked_transaction().unwrap();
        let _: i64 = reading.query_row("SELECT count(*) FROM x", [], |row| row.get(0)).unwrap();
        assert_eq!(find_readers(&database), format!("{} (this relay)", process::id()));
    }
}
