//! The open database: its settings, its schema, and one transaction at a time.
//!
//! Every setting that a promise depends on is read back, because SQLite silently ignores a setting that it cannot
//! apply. All writes go through [`Store::transact`], which keeps the running ledger (`tally`) in step with the rows.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::hooks::Wal;
use rusqlite::{Connection, OptionalExtension, ffi, params};

use super::damage::last_commit::{self, CommitLog};
use super::dedup_index::DedupIndex;
use super::file_watch::{FileFault, FileWatch, LostFile};
use super::log_format::{FRAME, PAGE};
use super::{files, key_table, schema};
use crate::event::EventId;
use crate::queue::encryption::EncryptionKeys;
use crate::queue::error::is_full;
use crate::queue::key_ring::KeyRing;
use crate::queue::{DeliveryState, Error};
use crate::telemetry::LogThrottle;

/// How long a write waits for another program's lock: well within WeChat's 5 s.
const BUSY_TIMEOUT: Duration = Duration::from_secs(2);

/// The settings that must hold before the first answer. `auto_vacuum` comes first: it is ignored once a table or the
/// log exists.
const PRAGMAS: [(&str, &str, &str); 10] = [
    ("auto_vacuum", "INCREMENTAL", "2"),
    ("journal_mode", "WAL", "wal"),
    ("synchronous", "FULL", "2"),
    // SQLite's automatic checkpoint does not report a failed flush; `Store::checkpoint` does.
    ("wal_autocheckpoint", "0", "0"),
    // Deleted data is overwritten where that takes no further write; see `removal.rs`.
    ("secure_delete", "FAST", "2"),
    ("journal_size_limit", "67108864", "67108864"),
    ("cell_size_check", "ON", "1"),
    ("trusted_schema", "OFF", "0"),
    ("foreign_keys", "ON", "1"),
    ("temp_store", "MEMORY", "2"),
];

/// Pages in the log that make a checkpoint due: few enough for a small log and a short checkpoint.
const CHECKPOINT_PAGES: i32 = 1000;

/// The database, as its one writer sees it.
///
/// Its methods by file, each group with the tables it changes. [`DedupIndex`] (`known`, `known_until`, `retired_key`) and `key_table.rs`
/// (`key`) own their SQL and are called from these:
///
/// | file | methods |
/// |---|---|
/// | here | opening and closing: `open`, `with_keys`, `close`; the log: `checkpoint`, `write_log_back`, `is_checkpoint_due`, `keep_log_below`, `touch`, `log_bytes`, `held_bytes`; `check_files`; `transact`, and the tally within it: `count`, `count_events`; target numbers: `number`, `known_number`; measures: `last_id`, `used_bytes`, `pragma` |
/// | `statements.rs` | events and deliveries: `enqueue`, `find_duplicate`, `settle`, `record_reply`, `annotate`, `pause`; order: `first_pending`, `release_next`, `set_due`; reading for leases: `list_due`, `load_event` |
/// | `sweep.rs` | an operator's step over many deliveries: `sweep` |
/// | `held.rs` | replies of accounts that keep them: `give`, `take`, `await_late`, `supersede`, `end_wait`, `expire_held` |
/// | `removal.rs` | deleting an event: `remove`, `with_erased_pages`; shrinking the files: `empty_log`, `shrink`, `limit_step` |
pub(super) struct Store {
    pub(super) connection: Connection,
    /// The pages that the log held after the last commit, or 0 after a checkpoint.
    log_pages: Arc<AtomicI32>,
    /// The same, but not changed by a checkpoint.
    log_frames: Arc<AtomicI32>,
    /// Whether nothing kept the log from starting again when it was last written back.
    is_log_free: Cell<bool>,
    /// The files that the connection has open.
    pub(super) files: FileWatch,
    /// The same, if that commit is not in `commits` yet; else 0.
    unnoted: Arc<AtomicI32>,
    /// The second place that knows the last commit; `None` while the store is created.
    commits: Option<RefCell<CommitLog>>,
    commits_trouble: LogThrottle,
    /// The newest event that was stored, also if its transaction was rolled back.
    pub(super) newest: EventId,
    /// The pages in the log that make a checkpoint due, and about the most that one of our transactions may write.
    pub(super) log_limit: i32,
    /// The keys that events are encrypted with.
    pub(super) keys: KeyRing,
    /// Finds the event of a content key.
    pub(super) dedup: DedupIndex,
    /// The numbers of the target names met so far.
    numbers: HashMap<Arc<str>, i64>,
    /// What the open transaction changes in the running ledger.
    pub(super) changes: HashMap<(i64, i64), i64>,
}

impl Store {
    /// Opens the database in the folder, and creates it if it is missing.
    ///
    /// It is created under another name: a database that a power cut left half made looks like a damaged one.
    pub(super) fn open(folder: &Path) -> Result<Self, Error> {
        let database = folder.join(files::DATABASE);
        if files::is_missing(&database)? {
            files::begin_new(folder)?;
            Self::at(&folder.join(files::NEW), folder)?.close()?;
            files::put_in_place(folder)?;
        }
        let mut store = Self::at(&database, folder)?;
        store.newest = store.last_id()?;
        let commits = CommitLog::open(folder, store.newest);
        let commits = commits.map_err(|source| Error::io(&folder.join(last_commit::FILE_NAME), source))?;
        store.newest = commits.last_id();
        store.commits = Some(RefCell::new(commits));
        // Opening has written too.
        store.note_commit();
        files::flush(folder)?;
        Ok(store)
    }

    /// Reads a little of each table and index, so that damage at their roots is found at the start.
    pub(super) fn probe_tables(&self) -> rusqlite::Result<()> {
        // Both ends of each tree, by way of its order: `min` and `max` in one query would read all of it.
        for (rows, order) in [
            ("id FROM event", "id"),
            ("event FROM delivery", "event"),
            ("target FROM delivery INDEXED BY delivery_pending WHERE state = 0", "target"),
            ("target FROM delivery INDEXED BY delivery_dead WHERE state = 2", "target"),
            ("target FROM delivery INDEXED BY delivery_user WHERE state = 0 AND user IS NOT NULL", "target"),
            ("event FROM attempt", "event"),
            ("event FROM known", "content_key"),
            ("event FROM retired_key", "event"),
            ("event FROM held_reply", "event"),
            ("event FROM held_reply INDEXED BY held_reply_user WHERE expires_at IS NOT NULL", "account"),
            ("event FROM held_reply INDEXED BY held_reply_expiry WHERE expires_at IS NOT NULL", "expires_at"),
        ] {
            for direction in ["ASC", "DESC"] {
                let find = format!("SELECT {rows} ORDER BY {order} {direction} LIMIT 1");
                self.connection.query_row(&find, [], |_| Ok(())).optional()?;
            }
        }
        // These are small.
        for all in [
            "SELECT sum(length(name)), sum(paused) FROM target NOT INDEXED",
            "SELECT sum(length(name)) FROM target INDEXED BY sqlite_autoindex_target_1",
            "SELECT sum(count), sum(target) FROM tally",
            "SELECT sum(no), sum(length(fingerprint)) FROM key",
        ] {
            self.connection.query_row(all, [], |_| Ok(()))?;
        }
        Ok(())
    }

    /// Loads the keys that payloads are encrypted with.
    ///
    /// # Errors
    /// [`Error::KeyMissing`] if an event needs another one.
    pub(super) fn with_keys(mut self, given: &EncryptionKeys, folder: &Path) -> Result<Self, Error> {
        self.keys = key_table::adopt(&self.connection, given, folder)?;
        self.note_commit();
        Ok(self)
    }

    /// Opens a file, and creates its tables if it is empty or migrates them.
    pub(super) fn at(path: &Path, folder: &Path) -> Result<Self, Error> {
        let mut connection = Connection::open(path)?;
        connection.busy_timeout(BUSY_TIMEOUT)?;
        // Until it is open: the log of a store that cannot be opened stays as it is.
        connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
        connection.set_prepared_statement_cache_capacity(64);
        let version = schema::version(&connection, path)?;
        let [log_pages, log_frames, unnoted] = [0; 3].map(|pages| Arc::new(AtomicI32::new(pages)));
        watch_commits(&mut connection, [&log_pages, &log_frames, &unnoted])?;
        for (pragma, wanted, meaning) in PRAGMAS {
            set_pragma(&connection, pragma, wanted, meaning)?;
        }
        schema::migrate(&connection, path, version)?;
        schema::verify(&connection)?;
        // If the flush of a change to WAL fails, SQLite silently undoes the change but reports it as done: only the
        // file of the log shows which.
        connection.execute_batch("BEGIN IMMEDIATE; COMMIT")?;
        let log = files::log_of(path);
        if !log.exists() {
            return Err(Error::Pragma { pragma: "journal_mode", wanted: "WAL", found: "no log".to_owned() });
        }
        let files = FileWatch::new(path)?;
        // The setting of automatic checkpoints has removed it.
        watch_commits(&mut connection, [&log_pages, &log_frames, &unnoted])?;
        let store = Self {
            log_pages,
            log_frames,
            is_log_free: Cell::new(true),
            files,
            unnoted,
            commits: None,
            commits_trouble: LogThrottle::default(),
            newest: EventId(0),
            log_limit: CHECKPOINT_PAGES,
            keys: KeyRing::default(),
            dedup: DedupIndex::load(&connection)?,
            numbers: HashMap::new(),
            changes: HashMap::new(),
            connection,
        };
        // The log of a killed process may never have been flushed, and callers rely on its contents from now on.
        match store.checkpoint() {
            Err(error) if is_full(&error) => files::flush(&log)?,
            done => done?,
        }
        store.connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, false)?;
        files::flush(folder)?;
        Ok(store)
    }

    /// Notes the last commit in the second place. Its failure fails no commit: the earlier record stays right.
    pub(super) fn note_commit(&self) {
        let frames = u32::try_from(self.unnoted.swap(0, Ordering::Relaxed)).unwrap_or(0);
        if frames > 0 {
            self.note(|commits| commits.note_commit(frames, self.newest));
        }
    }

    /// Notes that SQLite found the database damaged: the next start moves it aside.
    pub(super) fn note_damage(&self) {
        self.note(CommitLog::note_damage);
    }

    /// Makes the notes durable. A failed flush is as fatal as one of the database.
    pub(super) fn flush_notes(&self) -> rusqlite::Result<()> {
        self.commits.as_ref().map_or(Ok(()), |commits| as_failed_flush(commits.borrow().flush()))
    }

    pub(super) fn note(&self, note: impl FnOnce(&mut CommitLog) -> io::Result<()>) {
        let Some(commits) = &self.commits else { return };
        let mut commits = commits.borrow_mut();
        if let Err(error) = note(&mut commits)
            && let Some(suppressed) = self.commits_trouble.allow()
        {
            let path = commits.path();
            tracing::warn!(path = %path.display(), %error, held_back = suppressed, "last commit not recorded");
        }
    }

    /// Limits the log, so that a checkpoint fits into `free` bytes and leaves space for further commits.
    pub(super) fn keep_log_below(&mut self, free: u64) {
        self.log_limit = i32::try_from(free / PAGE as u64 / 4).unwrap_or(i32::MAX).min(CHECKPOINT_PAGES);
    }

    /// Writes one page without a change of content. Does not wait for another program's lock.
    pub(super) fn touch(&self) -> rusqlite::Result<()> {
        let timeout = Duration::from_millis(self.pragma("busy_timeout")?.cast_unsigned());
        self.connection.busy_timeout(Duration::ZERO)?;
        let touched = self.connection.execute_batch(&format!("PRAGMA user_version = {}", schema::VERSION));
        self.connection.busy_timeout(timeout)?;
        touched
    }

    /// Whether the log has grown enough to be written back.
    pub(super) fn is_checkpoint_due(&self) -> bool {
        self.log_pages.load(Ordering::Relaxed) >= self.log_limit
    }

    /// Writes the log back into the database, as far as readers allow it.
    pub(super) fn checkpoint(&self) -> rusqlite::Result<()> {
        self.run_checkpoint().map(drop)
    }

    /// Returns the pages that the log holds, and how many of them are in the database now.
    fn run_checkpoint(&self) -> rusqlite::Result<(i32, i32)> {
        self.log_pages.store(0, Ordering::Relaxed);
        let mut checkpoint = self.connection.prepare_cached("PRAGMA wal_checkpoint(PASSIVE)")?;
        let done = checkpoint.query_row([], |row| Ok((row.get(1)?, row.get(2)?)));
        self.files.note_checkpoint();
        done
    }

    /// As [`Store::checkpoint`]; false if a reader keeps the log from starting again at its beginning.
    ///
    /// Readers that take turns never stop a checkpoint, but the log starts again only in a moment without any: so a log
    /// that is long though it is written back is emptied as soon as that is possible.
    pub(super) fn write_log_back(&self) -> rusqlite::Result<bool> {
        let (pages, done) = self.run_checkpoint()?;
        let is_free = done >= pages && (pages < self.log_allowance() || self.empty_log()?);
        self.is_log_free.set(is_free);
        Ok(is_free)
    }

    /// The bytes of the log.
    pub(super) fn log_bytes(&self) -> u64 {
        u64::from(self.log_frames.load(Ordering::Relaxed).cast_unsigned()) * FRAME as u64
    }

    /// The bytes by which the log is longer than usual, because a reader keeps it from being written back.
    pub(super) fn held_bytes(&self) -> u64 {
        let usual = u64::from(self.log_allowance().cast_unsigned()) * FRAME as u64;
        if self.is_log_free.get() { 0 } else { self.log_bytes().saturating_sub(usual) }
    }

    /// The pages that the log may have while it is written back in time.
    fn log_allowance(&self) -> i32 {
        self.log_limit.saturating_mul(2)
    }

    /// Whether the names of the store's files still lead to those that are open, with all that was committed.
    pub(super) fn check_files(&self) -> Result<(), LostFile> {
        let Some(lost) = self.lost_file() else { return Ok(()) };
        if lost.fault == FileFault::Truncated && self.files.is_log(&lost.path) {
            // SQLite empties its log in this way too, also from another program: its index tells how long it should be.
            if let Ok((pages, _)) = self.run_checkpoint() {
                self.log_frames.store(pages.max(0), Ordering::Relaxed);
            }
        }
        self.lost_file().map_or(Ok(()), Err)
    }

    /// A file that is not what it was, as it seems. Writes nothing.
    pub(super) fn lost_file(&self) -> Option<LostFile> {
        let frames = u64::from(self.log_frames.load(Ordering::Relaxed).cast_unsigned());
        self.files.check(frames).err()
    }

    /// Runs the work in one transaction; when it returns `Ok`, all of it is on stable storage.
    pub(super) fn transact(&mut self, work: impl FnOnce(&mut Self) -> rusqlite::Result<()>) -> rusqlite::Result<()> {
        self.connection.prepare_cached("BEGIN IMMEDIATE")?.execute([])?;
        let work = work(self).and_then(|()| self.write_tally()).and_then(|()| self.dedup.write_run(&self.connection));
        let done = work.and_then(|()| {
            self.connection.prepare_cached("COMMIT")?.execute([])?;
            Ok(())
        });
        if done.is_ok() {
            self.note_commit();
            self.dedup.commit();
        } else {
            self.dedup.roll_back();
            self.changes.clear();
            self.numbers.clear();
            // Some failures, a full disk among them, have ended the transaction already.
            if !self.connection.is_autocommit() {
                self.connection.execute_batch("ROLLBACK")?;
            }
        }
        done
    }

    /// Notes that a delivery entered a state, or (with -1) left it.
    pub(super) fn count(&mut self, target: i64, state: DeliveryState, change: i64) {
        *self.changes.entry((target, state as i64)).or_default() += change;
    }

    /// Notes that this many events with this many deliveries in all were stored or, if negative, deleted.
    pub(super) fn count_events(&mut self, events: i64, deliveries: i64) {
        self.count(0, DeliveryState::Pending, events);
        self.count(0, DeliveryState::Delivered, deliveries);
    }

    fn write_tally(&mut self) -> rusqlite::Result<()> {
        let mut add = self.connection.prepare_cached(
            "INSERT INTO tally (target, state, count) VALUES (?1, ?2, ?3) \
             ON CONFLICT DO UPDATE SET count = count + excluded.count",
        )?;
        for ((target, state), change) in self.changes.drain().filter(|(_, change)| *change != 0) {
            add.execute(params![target, state, change])?;
        }
        Ok(())
    }

    /// The number of a target name; a name not met before gets one.
    pub(super) fn number(&mut self, name: &Arc<str>) -> rusqlite::Result<i64> {
        if let Some(number) = self.known_number(name)? {
            return Ok(number);
        }
        self.connection.prepare_cached("INSERT INTO target (name) VALUES (?1)")?.execute([&**name])?;
        let number = self.connection.last_insert_rowid();
        self.numbers.insert(Arc::clone(name), number);
        Ok(number)
    }

    /// The number of a target name, unless it never had a delivery.
    pub(super) fn known_number(&mut self, name: &Arc<str>) -> rusqlite::Result<Option<i64>> {
        if let Some(number) = self.numbers.get(name) {
            return Ok(Some(*number));
        }
        let mut find = self.connection.prepare_cached("SELECT no FROM target WHERE name = ?1")?;
        let number = find.query_row([&**name], |row| row.get(0)).optional()?;
        if let Some(number) = number {
            self.numbers.insert(Arc::clone(name), number);
        }
        Ok(number)
    }

    /// The newest event's id, or zero.
    pub(super) fn last_id(&self) -> rusqlite::Result<EventId> {
        self.connection.query_row("SELECT coalesce(max(id), 0) FROM event", [], |row| row.get(0))
    }

    /// The bytes that the database holds, free pages not counted.
    pub(super) fn used_bytes(&self) -> rusqlite::Result<u64> {
        let pages = self.pragma("page_count")?.saturating_sub(self.pragma("freelist_count")?);
        Ok(pages.saturating_mul(self.pragma("page_size")?).cast_unsigned())
    }

    /// A numeric setting or measure of SQLite's.
    pub(super) fn pragma(&self, name: &str) -> rusqlite::Result<i64> {
        self.connection.prepare_cached(&format!("PRAGMA {name}"))?.query_row([], |row| row.get(0))
    }

    /// Writes the log back into the database and closes it.
    pub(super) fn close(mut self) -> rusqlite::Result<()> {
        self.note_commit();
        self.flush_notes()?;
        let log = self.connection.path().map(|path| files::log_of(Path::new(path)));
        let commits = self.commits.take();
        self.connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))?;
        self.connection.close().map_err(|(_, error)| error)?;
        // Another program may still have the log open.
        if let (Some(commits), Some(log)) = (commits, log)
            && log.metadata().map_or(true, |log| log.len() == 0)
        {
            let mut commits = commits.into_inner();
            match commits.note_written_back() {
                Ok(()) => return as_failed_flush(commits.flush()),
                Err(error) => tracing::warn!(%error, "last commit not recorded"),
            }
        }
        Ok(())
    }
}

fn as_failed_flush(flushed: io::Result<()>) -> rusqlite::Result<()> {
    flushed.map_err(|error| {
        rusqlite::Error::SqliteFailure(ffi::Error::new(ffi::SQLITE_IOERR_FSYNC), Some(error.to_string()))
    })
}

/// Notes at each commit how many pages the log has.
fn watch_commits(connection: &mut Connection, noted: [&Arc<AtomicI32>; 3]) -> rusqlite::Result<()> {
    let noted = noted.map(Arc::clone);
    connection.wal_hook(Some(move |_: &mut Wal, pages| {
        noted.iter().for_each(|noted| noted.store(pages, Ordering::Relaxed));
        Ok(())
    }))
}

fn set_pragma(connection: &Connection, pragma: &'static str, wanted: &'static str, meaning: &str) -> Result<(), Error> {
    connection.execute_batch(&format!("PRAGMA {pragma} = {wanted}"))?;
    let found = connection.query_row(&format!("PRAGMA {pragma}"), [], |row| row.get::<_, rusqlite::types::Value>(0))?;
    let found = match found {
        rusqlite::types::Value::Integer(number) => number.to_string(),
        rusqlite::types::Value::Text(text) => text,
        other @ (rusqlite::types::Value::Null | rusqlite::types::Value::Real(_) | rusqlite::types::Value::Blob(_)) => {
            format!("{other:?}")
        }
    };
    if found == meaning { Ok(()) } else { Err(Error::Pragma { pragma, wanted, found }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_setting_that_does_not_take_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(files::DATABASE);
        let foreign = format!(
            "PRAGMA journal_mode = WAL; CREATE TABLE x (y); DROP TABLE x; PRAGMA application_id = {}",
            schema::APPLICATION_ID
        );
        Connection::open(&path).unwrap().execute_batch(&foreign).unwrap();
        let Err(error) = Store::open(folder.path()) else { panic!("opened") };
        assert!(matches!(error, Error::Pragma { pragma: "auto_vacuum", .. }), "{error}");
    }

    #[test]
    fn a_failed_transaction_leaves_nothing_behind() {
        let folder = tempfile::tempdir().unwrap();
        let mut store = Store::open(folder.path()).unwrap();
        let name: Arc<str> = "crm".into();
        let failed = store.transact(|store| {
            store.number(&name)?;
            store.count_events(1, 1);
            store.connection.execute_batch("not sql")
        });
        assert!(failed.is_err());
        assert_eq!(store.known_number(&name).unwrap(), None);
        store.transact(|_| Ok(())).unwrap();
        let tally: i64 = store.connection.query_row("SELECT count(*) FROM tally", [], |row| row.get(0)).unwrap();
        assert_eq!(tally, 0);
    }
}
