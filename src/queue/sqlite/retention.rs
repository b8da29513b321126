//! Deleting finished events, and giving their space back.
//!
//! An event is finished when none of its deliveries is pending or dead: a dead letter waits for a person. It goes when
//! it is older than `retention`, or earlier, the oldest first, when the store outgrows `max_size`; never within
//! `dedup_window`, in which WeChat may push it again. What is not finished is never deleted: if nothing else is left to
//! drop, the store is full and refuses new events.
//!
//! All in steps so short that a push hardly waits for one.

use std::mem;
use std::time::Duration;

use rusqlite::params;
use tokio::time::Instant;

use super::store::Store;
use crate::clock::UnixMillis;
use crate::event::EventId;
use crate::queue::{Settings, State};

/// Events looked at in one step.
const LOOK: usize = 1000;
/// Events deleted in one step.
const DELETE: usize = 200;
/// Pages given back to the filesystem in one step, and how many free ones are worth keeping for new events.
const VACUUM: i64 = 200;
const SLACK: i64 = 1024;
/// Between two steps of a pass.
const BREATH: Duration = Duration::from_millis(20);
/// Between two passes.
const REST: Duration = Duration::from_secs(10);
/// Between two passes over a store that is full.
const REST_WHEN_FULL: Duration = Duration::from_secs(1);

/// Where the deletion stands.
pub(super) struct Retention {
    keep: Duration,
    dedup_window: Duration,
    max_size: u64,
    due: Instant,
    /// The last event this pass looked at.
    cursor: EventId,
    /// How many events this pass deleted.
    deleted: usize,
}

impl Retention {
    pub(super) fn new(settings: &Settings) -> Self {
        let dedup_window = settings.dedup_window;
        let keep = settings.retention.max(dedup_window);
        Self { keep, dedup_window, max_size: settings.max_size, due: Instant::now(), cursor: EventId(0), deleted: 0 }
    }

    /// When the next step is to be made.
    pub(super) fn due(&self) -> Instant {
        self.due
    }

    /// Makes one step.
    pub(super) fn step(&mut self, store: &mut Store, now: UnixMillis) -> rusqlite::Result<()> {
        // Also what holds if the step fails.
        self.due = Instant::now() + REST;
        let over = store.used_bytes()? > self.max_size;
        store.full &= over;
        let keep = if over { self.dedup_window } else { self.keep };
        let before = EventId::first_at(UnixMillis(now.0.saturating_sub(millis(keep))));
        let seen = look(store, self.cursor, before)?;
        let finished: Vec<EventId> =
            seen.iter().filter(|(_, finished)| *finished).map(|(id, _)| *id).take(DELETE).collect();
        delete(store, &finished)?;
        self.deleted += finished.len();
        let rest = if seen.len() == LOOK || finished.len() == DELETE {
            // Goes on behind the last one deleted, or behind all that were looked at.
            let last = if finished.len() == DELETE { finished.last() } else { seen.last().map(|(id, _)| id) };
            self.cursor = last.copied().unwrap_or(self.cursor);
            if over { Duration::ZERO } else { BREATH }
        } else {
            self.end_pass(store, over)?
        };
        self.due = Instant::now() + rest;
        Ok(())
    }

    fn end_pass(&mut self, store: &mut Store, over: bool) -> rusqlite::Result<Duration> {
        let deleted = mem::take(&mut self.deleted);
        store.full = over && deleted == 0;
        self.cursor = EventId(0);
        if store.full {
            Ok(REST_WHEN_FULL)
        } else if over {
            Ok(Duration::ZERO)
        } else if vacuum(store)? {
            Ok(BREATH)
        } else {
            Ok(REST)
        }
    }
}

fn millis(span: Duration) -> i64 {
    i64::try_from(span.as_millis()).unwrap_or(i64::MAX)
}

/// The next events between the two ids, each with whether it is finished.
fn look(store: &Store, after: EventId, before: EventId) -> rusqlite::Result<Vec<(EventId, bool)>> {
    let mut find = store.connection.prepare_cached(
        "SELECT id, NOT EXISTS (SELECT 1 FROM delivery WHERE event = id AND state IN (0, 2)) \
           FROM event WHERE id > ?1 AND id < ?2 ORDER BY id LIMIT ?3",
    )?;
    find.query_map(params![after, before, LOOK.cast_signed() as i64], |row| Ok((row.get(0)?, row.get(1)?)))?.collect()
}

fn delete(store: &mut Store, events: &[EventId]) -> rusqlite::Result<()> {
    if events.is_empty() {
        return Ok(());
    }
    store.transact(|store| {
        let mut accepted: i64 = 0;
        for event in events {
            let mut ended: Vec<(i64, State)> = Vec::new();
            {
                let mut deliveries =
                    store.connection.prepare_cached("DELETE FROM delivery WHERE event = ?1 RETURNING target, state")?;
                let rows = deliveries.query_map([event], |row| Ok((row.get(0)?, row.get(1)?)))?;
                for row in rows {
                    ended.push(row?);
                }
            }
            for (target, state) in ended {
                store.count(target, state, -1);
            }
            store.connection.prepare_cached("DELETE FROM attempt WHERE event = ?1")?.execute([event])?;
            let mut delete = store.connection.prepare_cached("DELETE FROM event WHERE id = ?1 RETURNING targets")?;
            accepted += delete.query_row([event], |row| row.get::<_, i64>(0))?;
        }
        store.count_events(-(events.len().cast_signed() as i64), -accepted);
        Ok(())
    })
}

/// Gives some free pages back; false if there are too few to be worth it.
fn vacuum(store: &Store) -> rusqlite::Result<bool> {
    if store.pragma("freelist_count")? <= SLACK {
        return Ok(false);
    }
    let mut vacuum = store.connection.prepare(&format!("PRAGMA incremental_vacuum({VACUUM})"))?;
    // Each page takes a step of the statement; a single one would free a single page.
    let mut rows = vacuum.query([])?;
    while rows.next()?.is_some() {}
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::queue::Inspect;

    const NOW: UnixMillis = UnixMillis(1_795_161_600_000);
    const DAY: Duration = Duration::from_secs(86_400);

    /// A store with events of one delivery each: so many, received so long ago, in that state.
    fn store(folder: &std::path::Path, parts: &[(u64, Duration, State)]) -> Store {
        let mut store = Store::open(folder).unwrap();
        let fill = store.transact(|store| {
            let target = store.number(&"crm".into())?;
            for (count, ago, state) in parts {
                let first = EventId::first_at(UnixMillis(NOW.0 - millis(*ago))).0;
                for id in (first..first + count).map(EventId) {
                    insert(store, id, target, *state)?;
                }
                store.count(target, *state, count.cast_signed());
                store.count_events(count.cast_signed(), count.cast_signed());
            }
            Ok(())
        });
        fill.unwrap();
        store
    }

    fn insert(store: &Store, id: EventId, target: i64, state: State) -> rusqlite::Result<usize> {
        store.connection.execute(
            "INSERT INTO event VALUES \
               (?1, randomblob(24), 1, 0, 0, '', '', '', '', '', '', NULL, NULL, '', zeroblob(3000), NULL)",
            [id],
        )?;
        let delivery = "INSERT INTO delivery VALUES (?1, ?2, ?3, 1, 0, 0, 0, NULL)";
        store.connection.execute(delivery, params![id, target, state])?;
        let attempt = "INSERT INTO attempt VALUES (?1, ?2, 1, 0, 0, 200, NULL, NULL)";
        store.connection.execute(attempt, params![id, target])
    }

    fn retention(retention: Duration, max_size: u64) -> Retention {
        Retention::new(&Settings { path: "unused".into(), retention, dedup_window: Duration::from_secs(120), max_size })
    }

    /// Makes steps as long as they come one after the other.
    fn settle(retention: &mut Retention, store: &mut Store) {
        for _ in 0..1000 {
            let start = Instant::now();
            retention.step(store, NOW).unwrap();
            if retention.due() >= start + REST_WHEN_FULL {
                return;
            }
        }
        panic!("never at rest");
    }

    fn left(folder: &std::path::Path) -> (u64, u64) {
        let audit = Inspect::open(folder).unwrap().audit().unwrap();
        assert!(audit.is_clean(), "{audit:?}");
        (audit.counts.pending, audit.deliveries - audit.counts.pending)
    }

    #[test]
    fn finished_events_go_when_they_are_old_and_pending_and_dead_ones_never() {
        let folder = tempfile::tempdir().unwrap();
        let parts = [(1500, DAY * 9, State::Pending), (700, DAY * 8, State::Delivered), (5, DAY * 10, State::Dead)];
        let mut store = store(folder.path(), &parts);
        settle(&mut retention(DAY * 7, u64::MAX), &mut store);
        assert_eq!(left(folder.path()), (1500, 5));
        let attempts: i64 = store.connection.query_row("SELECT count(*) FROM attempt", [], |row| row.get(0)).unwrap();
        assert_eq!(attempts, 1505);
    }

    #[test]
    fn the_file_shrinks() {
        let folder = tempfile::tempdir().unwrap();
        let mut store = store(folder.path(), &[(5000, DAY * 8, State::Delivered)]);
        let before = store.pragma("page_count").unwrap();
        settle(&mut retention(DAY * 7, u64::MAX), &mut store);
        assert!(store.pragma("page_count").unwrap() < SLACK + 100, "of {before} pages");
    }

    #[test]
    fn over_the_limit_the_oldest_finished_go_first_and_only_as_many_as_needed() {
        let folder = tempfile::tempdir().unwrap();
        let mut store = store(folder.path(), &[(1000, DAY * 2, State::Delivered), (1000, DAY, State::Delivered)]);
        let limit = store.used_bytes().unwrap() / 4 * 3;
        settle(&mut retention(DAY * 7, limit), &mut store);
        assert!(store.used_bytes().unwrap() <= limit && !store.full);
        let oldest = store.connection.query_row(
            "SELECT count(*) FROM event WHERE id < ?1",
            [EventId::first_at(UnixMillis(NOW.0 - millis(DAY)))],
            |row| row.get::<_, i64>(0),
        );
        assert!((300..700).contains(&oldest.unwrap()));
        assert!(left(folder.path()).1 > 1300);
    }

    #[test]
    fn a_store_with_nothing_to_drop_is_full_until_there_is_room() {
        let folder = tempfile::tempdir().unwrap();
        let parts = [(100, DAY, State::Pending), (100, Duration::from_secs(5), State::Delivered)];
        let mut store = store(folder.path(), &parts);
        let mut retention = retention(DAY * 7, 100_000);
        settle(&mut retention, &mut store);
        assert!(store.full);
        assert_eq!(left(folder.path()), (100, 100), "neither what is pending nor what may be pushed again");
        let finish = "UPDATE delivery SET state = 1; UPDATE tally SET count = 200 * state WHERE target > 0";
        store.connection.execute_batch(finish).unwrap();
        settle(&mut retention, &mut store);
        assert_eq!(left(folder.path()), (0, 100));
        retention.max_size = u64::MAX;
        settle(&mut retention, &mut store);
        assert!(!store.full);
    }
}
