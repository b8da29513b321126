//! The dedup index: finds the event of a content key, and so recognises a repeated push.
//!
//! Keys of the same second are in no order. The simple version, a UNIQUE index of the event table, wrote a page of its
//! own for nearly every event, into the log and again into the database. Here the keys of the newest events are held in
//! memory and go into the table `known` in sorted runs of [`RUN`], so that one page takes the keys of many events. A
//! key is still as durable as its event: it is a column of the event's row, and keys that are in no run yet are read
//! from there when the store is opened.
//!
//! Invariant: every stored event up to `until` is in the table, every later one in memory. Changes belong to the
//! writer's open transaction: [`DedupIndex::commit`] or [`DedupIndex::roll_back`] follows each.

use std::collections::HashMap;
use std::mem;

use rusqlite::{Connection, OptionalExtension, params};

use crate::event::{ContentKey, EventId};

/// How many keys make a run: enough to spread the pages that it writes over many events, few enough for a run to be
/// written in a millisecond or two, as pushes wait meanwhile.
const RUN: usize = 1024;

/// The keys that are in no run yet, and what the open transaction changes in them.
#[derive(Debug)]
pub(super) struct DedupIndex {
    until: EventId,
    recent: HashMap<ContentKey, EventId>,
    /// What the open transaction changed in `recent`, and what was there before.
    undo: Vec<(ContentKey, Option<EventId>)>,
    /// Up to which event the open transaction has written a run.
    run: Option<EventId>,
}

impl DedupIndex {
    /// Reads the keys that are in no run yet.
    pub(super) fn load(connection: &Connection) -> rusqlite::Result<Self> {
        let until = connection.query_row("SELECT event FROM known_until", [], |row| row.get(0))?;
        let mut find = connection.prepare("SELECT content_key, id FROM event WHERE id > ?1")?;
        // A damaged row does not prevent the start: it has no key to be found by.
        let recent = find.query_map([until], |row| Ok((row.get(0).map(ContentKey), row.get(1)?)))?;
        let recent = recent.filter_map(|row| row.map(|(key, event)| Some((key.ok()?, event))).transpose());
        Ok(Self { until, recent: recent.collect::<rusqlite::Result<_>>()?, undo: Vec::new(), run: None })
    }

    /// The event of that content key.
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

    /// Removes the key of an event that is deleted in the open transaction.
    pub(super) fn remove(&mut self, connection: &Connection, key: ContentKey, event: EventId) -> rusqlite::Result<()> {
        if event <= self.until {
            let mut delete = connection.prepare_cached("DELETE FROM known WHERE content_key = ?1 AND event = ?2")?;
            delete.execute(params![key.0, event])?;
        } else if let Some(event) = self.recent.remove(&key) {
            self.undo.push((key, Some(event)));
        }
        Ok(())
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
                              (?1, ?2, 0, 0, 0, '', '', '', '', '', '', NULL, NULL, '', '', NULL, NULL)";
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
            store.remove(EventId(3))?;
            store.remove(EventId(last)).map(drop)
        })
        .unwrap();
        assert_eq!(unknown(&open, 1..=last), [3, last]);
        assert_eq!(in_runs(&open), RUN - 1);
    }

    #[test]
    fn a_failed_transaction_changes_nothing_of_what_is_known() {
        let folder = tempfile::tempdir().unwrap();
        let mut open = Store::open(folder.path()).unwrap();
        store(&mut open, 1..RUN as u64).unwrap();
        let failed = open.transact(|store| {
            store.remove(EventId(1))?;
            store.dedup.insert(&store.connection, key(9999), EventId(9999))?;
            store.dedup.remove(&store.connection, key(9999), EventId(9999))?;
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
