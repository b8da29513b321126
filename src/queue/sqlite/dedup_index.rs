//! The dedup index: finds the event of a content key, and so recognises a repeated push.
//!
//! Keys of the same second are in no order. The simple version, a UNIQUE index of the event table, wrote a page of its
//! own for nearly every event, into the log and again into the database. Here the keys of the newest events are held in
//! memory and go into the table `known` in sorted runs of [`RUN`], so that one page takes the keys of many events. A
//! key is still as durable as its event: it is a column of the event's row, and keys that are in no run yet are read
//! from there when the store is opened.
//!
//! A key outlives its event: a captured push could be repeated for as long as its timestamp is accepted, and would be
//! another event if the first one were deleted by then. Within the replay window, `remove` leaves the key in `known` and
//! lists it in `retired_key`, by the event's id and so by time; [`DedupIndex::delete_retired`] deletes it when the
//! window is over.
//!
//! Invariant: every stored event up to `until` is in the table, every later one in memory; the keys of deleted events
//! are in the table. Changes belong to the writer's open transaction: [`DedupIndex::commit`] or
//! [`DedupIndex::roll_back`] follows each.

use std::collections::HashMap;
use std::mem;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rusqlite::{Connection, OptionalExtension, params};

use crate::clock::UnixMillis;
use crate::event::{ContentKey, EventId};

/// How many keys make a run: enough to spread the pages that it writes over many events, few enough for a run to be
/// written in a millisecond or two, as pushes wait meanwhile.
const RUN: usize = 1024;

/// How long the keys of deleted events are kept. A reload may change it, so all handles share it; cheap to clone.
#[derive(Clone, Debug, Default)]
pub(super) struct ReplayWindow(Arc<AtomicU64>);

impl ReplayWindow {
    pub(super) fn set(&self, window: Duration) {
        // A number of its own: no other memory is published with it.
        self.0.store(u64::try_from(window.as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// The first event whose key is still needed at `now`, should a copy of its push come.
    pub(super) fn start(&self, now: UnixMillis) -> EventId {
        let window = i64::try_from(self.0.load(Ordering::Relaxed)).unwrap_or(i64::MAX);
        EventId::first_at(UnixMillis(now.0.saturating_sub(window)))
    }
}

/// The keys that are in no run yet, and what the open transaction changes in them.
#[derive(Debug)]
pub(super) struct DedupIndex {
    until: EventId,
    recent: HashMap<ContentKey, EventId>,
    /// What the open transaction changed in `recent`, and what was there before.
    undo: Vec<(ContentKey, Option<EventId>)>,
    /// Up to which event the open transaction has written a run.
    run: Option<EventId>,
    pub(super) replay_window: ReplayWindow,
}

impl DedupIndex {
    /// Reads the keys that are in no run yet.
    pub(super) fn load(connection: &Connection) -> rusqlite::Result<Self> {
        let until = connection.query_row("SELECT event FROM known_until", [], |row| row.get(0))?;
        let mut find = connection.prepare("SELECT content_key, id FROM event WHERE id > ?1")?;
        // A damaged row does not prevent the start: it has no key to be found by.
        let recent = find.query_map([until], |row| Ok((row.get(0).map(ContentKey), row.get(1)?)))?;
        let recent = recent.filter_map(|row| row.map(|(key, event)| Some((key.ok()?, event))).transpose());
        let (recent, replay_window) = (recent.collect::<rusqlite::Result<_>>()?, ReplayWindow::default());
        Ok(Self { until, recent, undo: Vec::new(), run: None, replay_window })
    }

    /// The event of that content key; it may be deleted already.
    pub(super) fn find(&self, connection: &Connection, key: ContentKey) -> rusqlite::Result<Option<EventId>> {
        if let Some(event) = self.recent.get(&key) {
            return Ok(Some(*event));
        }
        let mut find = connection.prepare_cached("SELECT event FROM known WHERE content_key = ?1")?;
        find.query_row([key.0], |row| row.get(0)).optional()
    }

    /// Adds the key of an event that is stored in the open transaction.
    pub(super) fn insert(&mut self, connection: &Connection, key: ContentKey, event: EventId) -> rusqlite::Result<()> {
        // Ids are given before the events reach the writer, so one may come after the run that its neighbours are in.
        if event <= self.until {
            let mut insert = connection.prepare_cached("INSERT OR REPLACE INTO known VALUES (?1, ?2)")?;
            insert.execute(params![key.0, event])?;
            return Ok(());
        }
        let before = self.recent.insert(key, event);
        self.undo.push((key, before));
        Ok(())
    }

    /// Removes the key of an event that is deleted in the open transaction; within the replay window, retires it.
    pub(super) fn remove(
        &mut self,
        connection: &Connection,
        key: ContentKey,
        event: EventId,
        now: UnixMillis,
    ) -> rusqlite::Result<()> {
        if event >= self.replay_window.start(now) {
            if event > self.until
                && let Some(event) = self.recent.remove(&key)
            {
                self.undo.push((key, Some(event)));
            }
            let mut insert = connection.prepare_cached("INSERT OR REPLACE INTO known VALUES (?1, ?2)")?;
            insert.execute(params![key.0, event])?;
            let mut retire = connection.prepare_cached("INSERT OR REPLACE INTO retired_key VALUES (?1, ?2)")?;
            retire.execute(params![event, key.0])?;
        } else if event <= self.until {
            let mut delete = connection.prepare_cached("DELETE FROM known WHERE content_key = ?1 AND event = ?2")?;
            delete.execute(params![key.0, event])?;
        } else if let Some(event) = self.recent.remove(&key) {
            self.undo.push((key, Some(event)));
        }
        Ok(())
    }

    /// Deletes up to `most` retired keys that are out of the replay window; returns how many.
    pub(super) fn delete_retired(
        &mut self,
        connection: &Connection,
        now: UnixMillis,
        most: usize,
    ) -> rusqlite::Result<usize> {
        let mut find =
            connection.prepare_cached("SELECT event, content_key FROM retired_key WHERE event < ?1 LIMIT ?2")?;
        let most = most.cast_signed() as i64;
        let rows =
            find.query_map(params![self.replay_window.start(now), most], |row| Ok((row.get(0)?, row.get(1)?)))?;
        let keys: Vec<(EventId, Vec<u8>)> = rows.collect::<rusqlite::Result<_>>()?;
        let mut delete = connection.prepare_cached("DELETE FROM known WHERE content_key = ?1 AND event = ?2")?;
        let mut unlist = connection.prepare_cached("DELETE FROM retired_key WHERE event = ?1")?;
        for (event, key) in &keys {
            delete.execute(params![key, event])?;
            unlist.execute([event])?;
        }
        Ok(keys.len())
    }

    /// Writes a run, if there are keys enough for one.
    pub(super) fn write_run(&mut self, connection: &Connection) -> rusqlite::Result<()> {
        if self.recent.len() < RUN {
            return Ok(());
        }
        let mut run: Vec<_> = self.recent.iter().collect();
        run.sort_unstable_by_key(|(key, _)| key.0);
        let mut insert = connection.prepare_cached("INSERT OR REPLACE INTO known VALUES (?1, ?2)")?;
        for (key, event) in &run {
            insert.execute(params![key.0, event])?;
        }
        let until = run.iter().map(|(_, event)| **event).max();
        connection.prepare_cached("UPDATE known_until SET event = ?1")?.execute([until])?;
        self.run = until;
        Ok(())
    }

    /// The transaction was committed.
    pub(super) fn commit(&mut self) {
        self.undo.clear();
        if let Some(until) = self.run.take() {
            self.until = until;
            self.recent.clear();
        }
    }

    /// The transaction was rolled back.
    pub(super) fn roll_back(&mut self) {
        self.run = None;
        for (key, before) in mem::take(&mut self.undo).into_iter().rev() {
            match before {
                Some(event) => self.recent.insert(key, event),
                None => self.recent.remove(&key),
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::store::Store;
    use super::*;

    const NOW: UnixMillis = UnixMillis(1_795_161_600_000);

    fn key(number: u64) -> ContentKey {
        // Keys in an order unlike that of the events.
        let mut key = [0; 24];
        key[16..].copy_from_slice(&number.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes());
        ContentKey(key)
    }

    fn store(store: &mut Store, numbers: impl Iterator<Item = u64>) -> rusqlite::Result<()> {
        store.transact(|store| {
            for number in numbers {
                let insert = "INSERT INTO event VALUES \
                              (?1, ?2, 0, 0, 0, '', '', '', '', '', '', NULL, NULL, '', '', NULL, NULL, NULL, NULL)";
                store.connection.prepare_cached(insert)?.execute(params![EventId(number), key(number).0])?;
                store.dedup.insert(&store.connection, key(number), EventId(number))?;
            }
            Ok(())
        })
    }

    fn in_runs(store: &Store) -> usize {
        let count: i64 = store.connection.query_row("SELECT count(*) FROM known", [], |row| row.get(0)).unwrap();
        count.try_into().unwrap()
    }

    fn unknown(store: &Store, numbers: impl Iterator<Item = u64>) -> Vec<u64> {
        numbers
            .filter(|number| store.dedup.find(&store.connection, key(*number)).unwrap() != Some(EventId(*number)))
            .collect()
    }

    #[test]
    fn what_was_stored_is_known_in_a_run_before_one_and_after_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let mut open = Store::open(folder.path()).unwrap();
        let last = 2 * RUN as u64 + 100;
        // 7 was given before its neighbours were stored, and comes after the run that they are in.
        for number in (1..=last).filter(|number| *number != 7).chain([7]) {
            store(&mut open, [number].into_iter()).unwrap();
        }
        assert_eq!(in_runs(&open), 2 * RUN + 1);
        assert_eq!(unknown(&open, 1..=last), [0; 0]);
        assert_eq!(open.dedup.find(&open.connection, key(last + 1)).unwrap(), None);
        drop(open);
        let open = Store::open(folder.path()).unwrap();
        assert_eq!(unknown(&open, 1..=last), [0; 0]);
        assert_eq!(open.dedup.recent.len(), 99);
    }

    #[test]
    fn what_was_deleted_is_not_known() {
        let folder = tempfile::tempdir().unwrap();
        let mut open = Store::open(folder.path()).unwrap();
        let last = RUN as u64 + 10;
        store(&mut open, 1..=RUN as u64).unwrap();
        store(&mut open, RUN as u64 + 1..=last).unwrap();
        open.transact(|store| {
            store.remove(EventId(3), NOW)?;
            store.remove(EventId(last), NOW).map(drop)
        })
        .unwrap();
        assert_eq!(unknown(&open, 1..=last), [3, last]);
        assert_eq!(in_runs(&open), RUN - 1);
    }

    #[test]
    fn the_key_of_a_deleted_event_is_known_until_the_replay_window_is_over() {
        let folder = tempfile::tempdir().unwrap();
        let mut open = Store::open(folder.path()).unwrap();
        let window = Duration::from_secs(60);
        open.dedup.replay_window.set(window);
        let first = EventId::first_at(NOW).0;
        let events = first..=first + RUN as u64 + 10;
        store(&mut open, first..first + RUN as u64).unwrap();
        store(&mut open, first + RUN as u64..=*events.end()).unwrap();
        // One whose key is in a run, and one whose key is in memory.
        let deleted = [first, *events.end()].map(EventId);
        open.transact(|store| deleted.iter().try_for_each(|event| store.remove(*event, NOW).map(drop))).unwrap();
        assert_eq!(unknown(&open, events.clone()), [0; 0]);
        drop(open);
        let mut open = Store::open(folder.path()).unwrap();
        open.dedup.replay_window.set(window);
        assert_eq!(unknown(&open, events.clone()), [0; 0], "after a restart");
        let mut delete = |after: Duration| {
            let mut count = 0;
            open.transact(|store| {
                count = store.dedup.delete_retired(&store.connection, NOW.after(after), 10)?;
                Ok(())
            })
            .unwrap();
            (count, unknown(&open, events.clone()).len())
        };
        assert_eq!(delete(window), (0, 0));
        assert_eq!(delete(window + Duration::from_millis(1)), (2, 2));
        assert_eq!(delete(window * 2), (0, 2), "the keys of stored events stay");
    }

    #[test]
    fn a_failed_transaction_changes_nothing_of_what_is_known() {
        let folder = tempfile::tempdir().unwrap();
        let mut open = Store::open(folder.path()).unwrap();
        store(&mut open, 1..RUN as u64).unwrap();
        let failed = open.transact(|store| {
            store.remove(EventId(1), NOW)?;
            store.dedup.insert(&store.connection, key(9999), EventId(9999))?;
            store.dedup.remove(&store.connection, key(9999), EventId(9999), NOW)?;
            store.dedup.insert(&store.connection, key(8888), EventId(8888))?;
            store.connection.execute_batch("not sql")
        });
        failed.unwrap_err();
        assert_eq!(unknown(&open, 1..RUN as u64), [0; 0]);
        assert_eq!(
            (
                open.dedup.find(&open.connection, key(8888)).unwrap(),
                open.dedup.find(&open.connection, key(9999)).unwrap()
            ),
            (None, None)
        );

        open.connection
            .execute_batch("CREATE TEMP TRIGGER no BEFORE UPDATE ON known_until BEGIN SELECT raise(ABORT, ''); END")
            .unwrap();
        store(&mut open, RUN as u64..=RUN as u64).unwrap_err();
        assert_eq!((in_runs(&open), open.dedup.find(&open.connection, key(RUN as u64)).unwrap()), (0, None));
        open.connection.execute_batch("DROP TRIGGER no").unwrap();
        store(&mut open, RUN as u64..=RUN as u64).unwrap();
        assert_eq!((in_runs(&open), unknown(&open, 1..=RUN as u64)), (RUN, vec![]));
    }
}
