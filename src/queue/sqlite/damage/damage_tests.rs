//! The verdict over a store after kills, power cuts, other programs and restored backups, and after damage.

use std::path::PathBuf;

use rusqlite::Connection;
use rusqlite::config::DbConfig;
use tempfile::TempDir;

use super::super::log_format::FRAME;
use super::quarantine::list_damaged;
use super::*;
use crate::queue::sqlite::store::Store;

/// The folder of a store, open or not.
struct Stand {
    folder: TempDir,
    store: Option<Store>,
    stored: u64,
}

impl Stand {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store = Some(Store::open(folder.path()).unwrap());
        Self { folder, store, stored: 0 }
    }

    /// With some commits in its log, as a killed process leaves it.
    fn killed(commits: u64) -> Self {
        let mut stand = Self::new();
        (0..commits).for_each(|_| stand.commit());
        stand.kill();
        stand
    }

    /// Stores an event of several pages in a transaction of its own.
    fn commit(&mut self) {
        self.stored += 1;
        let id = EventId(self.stored);
        let store = self.store.as_mut().unwrap();
        let stored = store.transact(|store| {
            store.count_events(1, 0);
            store.newest = store.newest.max(id);
            let row = "INSERT INTO event (id, content_key, targets, mode, received_at, account, app_id, msg_type, \
                       event, event_key, from_user, query, body) \
                       VALUES (?1, randomblob(24), 0, 0, 0, '', '', '', '', '', '', '', randomblob(9000))";
            store.connection.execute(row, [id]).map(drop)
        });
        stored.unwrap();
    }

    fn kill(&mut self) {
        let store = self.store.take().unwrap();
        store.connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true).unwrap();
        drop(store);
    }

    fn reopen(&mut self) {
        self.store = Some(Store::open(self.path()).unwrap());
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    fn file(&self, name: &str) -> PathBuf {
        self.path().join(name)
    }

    fn log(&self) -> PathBuf {
        self.file("wxrelay.db-wal")
    }

    fn verdict(&self) -> Verdict {
        judge(self.path()).unwrap()
    }

    /// The reason for which it would be moved aside.
    fn reason(&self) -> Option<DamageReason> {
        match self.verdict() {
            Verdict::Damaged(reason, _) => Some(reason),
            _ => None,
        }
    }

    /// Flips a bit of a file, and returns its bytes from before.
    fn flip(&self, path: &Path, at: usize) -> Vec<u8> {
        let good = fs::read(path).unwrap();
        let mut bytes = good.clone();
        bytes[at] ^= 4;
        // Written into the same file, as a disk would.
        fs::write(path, &bytes).unwrap();
        good
    }

    fn events(&self) -> i64 {
        let connection = Connection::open(self.file(files::DATABASE)).unwrap();
        connection.query_row("SELECT count(*) FROM event", [], |row| row.get(0)).unwrap()
    }
}

#[test]
fn nothing_is_wrong_after_a_kill_a_stop_or_another_program() {
    let mut stand = Stand::killed(3);
    assert_eq!(stand.verdict(), Verdict::Sound, "killed");
    // The log begins again.
    stand.reopen();
    (0..3).for_each(|_| stand.commit());
    stand.kill();
    assert_eq!(stand.verdict(), Verdict::Sound, "killed after a restart of the log");
    // As a sqlite3 shell does it: the log is written back and removed.
    drop(
        Connection::open(stand.file(files::DATABASE)).map(|connection| {
            connection.query_row("SELECT count(*) FROM event", [], |row| row.get::<_, i64>(0)).unwrap()
        }),
    );
    assert!(!stand.log().exists());
    assert_eq!(stand.verdict(), Verdict::Sound, "written back by another program");
    stand.reopen();
    stand.commit();
    assert!(stand.store.as_ref().unwrap().empty_log().unwrap());
    stand.kill();
    // As scrubbing does it, once the log is empty: unused bytes of pages change.
    let record = CommitRecord::read(stand.path()).unwrap();
    stand.flip(&stand.file(files::DATABASE), (record.page as usize - 1) * PAGE + PAGE / 2);
    assert_eq!(stand.verdict(), Verdict::Sound, "emptied");
    stand.reopen();
    stand.commit();
    stand.store.take().unwrap().close().unwrap();
    assert_eq!(CommitRecord::read(stand.path()).unwrap().state, StoreState::WrittenBack);
    assert_eq!(stand.verdict(), Verdict::Sound, "stopped");
    assert_eq!(stand.events(), 8);
}

#[test]
fn each_flipped_bit_of_a_log_is_found() {
    let stand = Stand::killed(4);
    let length = fs::read(stand.log()).unwrap().len();
    let places = [0, 3, 9, 17, 25, 31].into_iter().chain(
        (0..length / FRAME).flat_map(|frame| [0, 5, 9, 17, 24, 2000, FRAME - 1].map(|at| HEADER + frame * FRAME + at)),
    );
    for at in places {
        let good = stand.flip(&stand.log(), at);
        assert_eq!(stand.reason(), Some(DamageReason::DamagedLog), "byte {at} of {length}");
        fs::write(stand.log(), good).unwrap();
    }
    assert_eq!(stand.verdict(), Verdict::Sound);
    // In a store of an earlier release, which has no record: all but the last commit.
    fs::remove_file(stand.file(last_commit::FILE_NAME)).unwrap();
    for (at, reason) in
        [(20, Some(DamageReason::DamagedLog)), (2000, Some(DamageReason::DamagedLog)), (length - 9, None)]
    {
        let good = stand.flip(&stand.log(), at);
        assert_eq!(stand.reason(), reason, "byte {at} of {length}, without a record");
        fs::write(stand.log(), good).unwrap();
    }
}

#[test]
fn a_log_that_was_removed_or_cut_short_is_found() {
    let stand = Stand::killed(4);
    let good = fs::read(stand.log()).unwrap();
    for length in [HEADER, 0] {
        fs::write(stand.log(), &good[..length]).unwrap();
        assert_eq!(stand.reason(), Some(DamageReason::MissingLog), "{length}");
    }
    for length in [HEADER + 100, HEADER + FRAME, good.len() - FRAME, good.len() - 1] {
        fs::write(stand.log(), &good[..length]).unwrap();
        let reason = stand.reason();
        assert!(matches!(reason, Some(DamageReason::DamagedLog | DamageReason::MissingLog)), "{length}: {reason:?}");
    }
    fs::remove_file(stand.log()).unwrap();
    assert_eq!(stand.reason(), Some(DamageReason::MissingLog));
    prepare(stand.path()).unwrap();
    assert_eq!(list_damaged(stand.path()).unwrap().len(), 1);
    let next = Store::open(stand.path()).unwrap();
    assert!(next.newest >= EventId(4), "ids of the new store come after those of the other one");
}

#[test]
fn damage_in_a_log_that_the_database_has_all_of_loses_nothing() {
    let mut stand = Stand::killed(4);
    stand.reopen();
    stand.kill();
    let length = fs::read(stand.log()).unwrap().len();
    for at in [9, HEADER + 3 * FRAME + 700, length - 5] {
        let good = stand.flip(&stand.log(), at);
        assert_eq!(stand.verdict(), Verdict::LogWrittenBack, "byte {at} of {length}");
        fs::write(stand.log(), good).unwrap();
    }
    stand.flip(&stand.log(), HEADER + 2 * FRAME + 700);
    prepare(stand.path()).unwrap();
    assert_eq!((list_damaged(stand.path()).unwrap(), stand.events()), (Vec::new(), 4));
}

#[test]
fn a_torn_tail_of_which_nobody_was_answered_is_no_damage() {
    let mut stand = Stand::new();
    (0..3).for_each(|_| stand.commit());
    let record = fs::read(stand.file(last_commit::FILE_NAME)).unwrap();
    let whole = fs::read(stand.log()).unwrap().len();
    stand.commit();
    stand.kill();
    // The power was cut during the last commit, and the record of the commit before is the last one.
    fs::write(stand.file(last_commit::FILE_NAME), &record).unwrap();
    let torn = fs::read(stand.log()).unwrap();
    assert!((torn.len() - whole) / FRAME > 3);
    for length in [whole, whole + 10, whole + FRAME, torn.len() - 1] {
        fs::write(stand.log(), &torn[..length]).unwrap();
        assert_eq!(stand.verdict(), Verdict::Sound, "{length}");
    }
    // Blocks reach the disk in any order: one in the middle is missing, and the commit's own is there.
    let mut holed = torn.clone();
    holed[whole + FRAME..whole + 2 * FRAME].fill(0);
    fs::write(stand.log(), &holed).unwrap();
    assert_eq!(stand.verdict(), Verdict::Sound);
    holed[whole - 2 * FRAME..whole - FRAME].fill(0);
    fs::write(stand.log(), &holed).unwrap();
    assert_eq!(stand.reason(), Some(DamageReason::DamagedLog), "and one that was committed");
}

#[test]
fn a_restored_backup_is_used_and_what_it_lacks_is_reported() {
    let mut stand = Stand::new();
    stand.commit();
    let backup = stand.file("backup");
    stand.store.as_ref().unwrap().connection.execute("VACUUM INTO ?1", [backup.to_str().unwrap()]).unwrap();
    let restore = |stand: &Stand| {
        fs::copy(&backup, stand.file("copy")).unwrap();
        fs::rename(stand.file("copy"), stand.file(files::DATABASE)).unwrap();
        fs::remove_file(stand.log()).ok();
    };
    stand.commit();
    stand.store.take().unwrap().close().unwrap();
    restore(&stand);
    assert_eq!(stand.verdict(), Verdict::Sound, "of a store that was stopped");
    stand.reopen();
    stand.commit();
    stand.kill();
    restore(&stand);
    assert!(matches!(stand.verdict(), Verdict::Replaced(_)), "{:?}", stand.verdict());
    prepare(stand.path()).unwrap();
    assert_eq!((list_damaged(stand.path()).unwrap().len(), stand.events()), (1, 1));
    assert_eq!(stand.verdict(), Verdict::Sound, "reported once");
    stand.reopen();
    assert!(stand.store.as_ref().unwrap().newest >= EventId(3));
    stand.commit();
    stand.kill();
    restore(&stand);
    fs::remove_file(stand.file(last_commit::FILE_NAME)).unwrap();
    assert_eq!(stand.verdict(), Verdict::Sound, "with its record removed, as docs/operate.md says");
}

#[test]
fn a_database_that_is_not_the_recorded_one_any_more_is_found() {
    let mut stand = Stand::new();
    (0..9).for_each(|_| stand.commit());
    stand.store.take().unwrap().close().unwrap();
    let database = stand.file(files::DATABASE);
    let good = fs::read(&database).unwrap();
    for at in [3, 17, 18, 19, 22, 69] {
        stand.flip(&database, at);
        assert_eq!(stand.reason(), Some(DamageReason::DamagedDatabase), "byte {at} of the header");
        fs::write(&database, &good).unwrap();
    }
    for length in [60, 700, PAGE, good.len() - PAGE, good.len() - 1] {
        fs::write(&database, &good[..length]).unwrap();
        assert_eq!(stand.reason(), Some(DamageReason::DamagedDatabase), "{length} of {} bytes", good.len());
    }
    fs::write(&database, &good).unwrap();
    assert_eq!(stand.verdict(), Verdict::Sound);
    stand.reopen();
    stand.store.as_ref().unwrap().note_damage();
    stand.kill();
    assert_eq!(stand.reason(), Some(DamageReason::DamagedDatabase), "noted while the relay ran");
}

#[test]
fn a_missing_or_empty_database_is_found_by_its_log_or_by_its_record() {
    for is_closed in [false, true] {
        for is_empty in [false, true] {
            let mut stand = Stand::killed(3);
            if is_closed {
                stand.reopen();
                stand.store.take().unwrap().close().unwrap();
            }
            let database = stand.file(files::DATABASE);
            if is_empty {
                fs::write(&database, []).unwrap()
            } else {
                fs::remove_file(&database).unwrap()
            }
            let refused = prepare(stand.path()).unwrap_err();
            let wanted = if is_empty { DamageReason::EmptyDatabase } else { DamageReason::MissingDatabase };
            assert!(matches!(refused, Error::MovedAside { reason, .. } if reason == wanted), "{refused}");
            assert_eq!(stand.verdict(), Verdict::Sound, "the next start makes a new store");
        }
    }
    // A store that never had an event is nothing to be missed.
    let mut stand = Stand::new();
    stand.store.take().unwrap().close().unwrap();
    fs::remove_file(stand.file(files::DATABASE)).unwrap();
    assert_eq!(stand.verdict(), Verdict::Sound);
}
