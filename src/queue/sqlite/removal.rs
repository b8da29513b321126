//! Deleting an event, with all its rows and its part of the tally; and erasing deleted bytes from the store's files.
//!
//! Deleted rows are overwritten within the pages that stay in use (`secure_delete = FAST`, set in `store.rs`). Events
//! that are forgotten on request are overwritten in the pages that become free as well. `scrub.rs` erases the rest:
//! free pages that retention did not overwrite, the log, and old bytes that SQLite leaves in pages where it moves rows.

use std::time::Duration;

use rusqlite::OptionalExtension;

use super::damage::last_commit::CommitLog;
use super::store::Store;
use crate::clock::UnixMillis;
use crate::event::{ContentKey, EventId};
use crate::queue::DeliveryState;

/// The most pages returned to the filesystem in one step.
const VACUUM: usize = 256;

/// How far a step of [`Scrub`](super::scrub::Scrub) came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum WipeProgress {
    /// There is more to do.
    Partial,
    /// A reader of the store keeps the log from being emptied.
    Blocked,
    /// No deleted data remains.
    Complete,
}

impl Store {
    /// Deletes an event with its deliveries and attempts, whatever their states; false if it does not exist. Its content
    /// key outlives it until the replay window is over.
    pub(super) fn remove(&mut self, event: EventId, now: UnixMillis) -> rusqlite::Result<bool> {
        let mut delete =
            self.connection.prepare_cached("DELETE FROM event WHERE id = ?1 RETURNING targets, content_key")?;
        let deleted =
            delete.query_row([event], |row| Ok((row.get::<_, i64>(0)?, row.get(1).map(ContentKey)))).optional()?;
        drop(delete);
        let Some((accepted, key)) = deleted else { return Ok(false) };
        // A damaged row has no key to be found by.
        if let Ok(key) = key {
            self.dedup.remove(&self.connection, key, event, now)?;
        }
        let mut deliveries =
            self.connection.prepare_cached("DELETE FROM delivery WHERE event = ?1 RETURNING target, state")?;
        let ended = deliveries.query_map([event], |row| Ok((row.get(0)?, row.get(1)?)))?;
        let ended: Vec<(i64, DeliveryState)> = ended.collect::<rusqlite::Result<_>>()?;
        drop(deliveries);
        for (target, state) in ended {
            self.count(target, state, -1);
        }
        self.connection.prepare_cached("DELETE FROM attempt WHERE event = ?1")?.execute([event])?;
        self.remove_replies(event)?;
        self.count_events(-1, -accepted);
        Ok(true)
    }

    /// Runs `work`, and overwrites the pages that it frees.
    pub(super) fn with_erased_pages<T>(
        &mut self,
        work: impl FnOnce(&mut Self) -> rusqlite::Result<T>,
    ) -> rusqlite::Result<T> {
        self.connection.execute_batch("PRAGMA secure_delete = ON")?;
        let done = work(self);
        self.connection.execute_batch("PRAGMA secure_delete = FAST")?;
        done
    }

    /// Writes the log back and truncates it; false if a reader still needs it.
    pub(super) fn empty_log(&self) -> rusqlite::Result<bool> {
        self.note_commit();
        self.flush_notes()?;
        self.checkpoint()?;
        let timeout = Duration::from_millis(self.pragma("busy_timeout")?.cast_unsigned());
        self.connection.busy_timeout(Duration::ZERO)?;
        let busy = self.connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get::<_, i64>(0));
        self.connection.busy_timeout(timeout)?;
        let is_emptied = busy? == 0;
        if is_emptied {
            // Before a scrub changes the page that the last commit ended with.
            self.note(CommitLog::note_written_back);
            self.flush_notes()?;
        }
        Ok(is_emptied)
    }

    /// Returns some free pages to the filesystem; false if there are no more than are to be kept.
    pub(super) fn shrink(&self, kept: i64, most: usize) -> rusqlite::Result<bool> {
        if self.pragma("freelist_count")? <= kept {
            return Ok(false);
        }
        let most = self.limit_step(most.min(VACUUM));
        let mut vacuum = self.connection.prepare(&format!("PRAGMA incremental_vacuum({most})"))?;
        // Each page takes a step of the statement; a single one would free a single page.
        let mut rows = vacuum.query([])?;
        while rows.next()?.is_some() {}
        self.note_commit();
        Ok(true)
    }

    /// How much of `most` one step may do, so that it fits into the log of a small disk too.
    pub(super) fn limit_step(&self, most: usize) -> usize {
        usize::try_from(self.log_limit / 4).unwrap_or(0).clamp(1, most)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use rusqlite::Connection;

    use super::super::files;
    use super::*;

    const EVENT: EventId = EventId(1);
    const MARKER: &[u8] = b"meet me at nine by the fountain";

    /// A store with one event, whose body fills some pages of its own.
    fn store(folder: &Path) -> Store {
        let mut store = Store::open(folder).unwrap();
        let body = MARKER.repeat(1000);
        let fill = store.transact(|store| {
            store.count_events(1, 0);
            store.connection.execute(
                "INSERT INTO event VALUES (?1, randomblob(24), 0, 0, 0, '', '', '', '', '', '', NULL, NULL, '', ?2, NULL, NULL, NULL, NULL)",
                (EVENT, body),
            )?;
            Ok(())
        });
        fill.unwrap();
        store
    }

    fn is_in_the_file(folder: &Path) -> bool {
        fs::read(folder.join(files::DATABASE)).unwrap().windows(MARKER.len()).any(|part| part == MARKER)
    }

    #[test]
    fn pages_that_go_free_are_overwritten_where_that_is_asked_for() {
        for is_asked in [false, true] {
            let folder = tempfile::tempdir().unwrap();
            let mut store = store(folder.path());
            store.checkpoint().unwrap();
            assert!(is_in_the_file(folder.path()));
            let remove = |store: &mut Store| store.remove(EVENT, UnixMillis(0)).map(|gone| assert!(gone));
            store.transact(|store| if is_asked { store.with_erased_pages(remove) } else { remove(store) }).unwrap();
            store.checkpoint().unwrap();
            assert!(store.pragma("freelist_count").unwrap() > 3);
            assert_eq!(is_in_the_file(folder.path()), !is_asked);
            while store.shrink(0, VACUUM).unwrap() {}
            assert!(store.empty_log().unwrap() && !is_in_the_file(folder.path()), "nor in pages that were free before");
            assert!(!store.remove(EVENT, UnixMillis(0)).unwrap(), "gone already");
        }
    }

    #[test]
    fn the_log_is_emptied_when_nobody_reads_in_it_and_nobody_is_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let store = store(folder.path());
        let log = || fs::metadata(files::log_of(&folder.path().join(files::DATABASE))).unwrap().len();
        let reader = Connection::open(folder.path().join(files::DATABASE)).unwrap();
        let reading = reader.unchecked_transaction().unwrap();
        let count: i64 = reading.query_row("SELECT count(*) FROM event", [], |row| row.get(0)).unwrap();
        assert_eq!((count, store.empty_log().unwrap()), (1, false));
        assert!(log() > 0);
        drop(reading);
        assert_eq!((store.empty_log().unwrap(), log()), (true, 0));
    }
}
