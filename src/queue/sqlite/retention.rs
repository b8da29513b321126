//! Deleting finished events, and returning their space.
//!
//! An event is finished when none of its deliveries is pending or dead, as a dead letter waits for an operator, and no
//! reply to it is held. It is
//! deleted when it is older than `retention`, or earlier, the oldest first, when the store nears `max_size` or the disk
//! is full; never within `dedup_window`, in which WeChat may push it again. What is not finished is never deleted here.
//! Content keys outlive their events (`dedup_index.rs`): those whose replay window is over are deleted in the same pass.
//!
//! It works in steps that adapt to [`STEP_TARGET`], so that a push hardly waits for one. The pauses between them are so
//! long that all steps together take a twentieth of a busy writer's time, a tenth under pressure, and a quarter while
//! the writer is idle: so the space is returned in quiet hours, and a flood is not delayed.

use std::mem;
use std::ops::RangeInclusive;
use std::time::Duration;

use rusqlite::params;
use tokio::time::Instant;

use super::capacity::Pressure;
use super::store::Store;
use crate::clock::UnixMillis;
use crate::event::EventId;
use crate::queue::Settings;
use crate::telemetry::LogThrottle;

/// How long a step should take. The next one is made smaller if it took longer, larger if it took less than half.
const STEP_TARGET: Duration = Duration::from_millis(4);
/// How many events one step reads, and how many of them it may delete: reading is far cheaper.
const SCAN_SIZE: RangeInclusive<usize> = 16..=1024;
const DELETE_LIMIT: usize = 256;
/// How many free pages are worth keeping for new events.
const KEPT_FREE_PAGES: i64 = 1024;
/// The least pause between two steps of a pass.
const STEP_PAUSE: Duration = Duration::from_millis(20);
/// The least pause between two passes, without and with pressure.
const PASS_PAUSE: Duration = Duration::from_secs(10);
const PASS_PAUSE_UNDER_PRESSURE: Duration = Duration::from_secs(1);
/// The longest pause between any two steps, as a step may have waited for a slow disk.
const MAX_PAUSE: Duration = Duration::from_secs(300);

/// The progress of the deletion.
pub(super) struct Retention {
    keep: Duration,
    dedup_window: Duration,
    /// When the last step ended, how long it took, and what is to do next.
    ended: Instant,
    took: Duration,
    next: NextStep,
    /// Whether the writer got any command since the last step.
    is_busy: bool,
    /// How many events the next step reads.
    size: usize,
    /// The last event that this pass read.
    cursor: EventId,
    /// How many events this pass deleted.
    deleted: usize,
    /// Whether pages were released by which the file has not become shorter yet.
    is_truncation_due: bool,
    /// Limits log lines about steps that fail.
    pub(super) failure_throttle: LogThrottle,
}

/// What follows a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum NextStep {
    /// The pass continues.
    Continue,
    /// The pass continues; pages were returned to the filesystem.
    ContinueAfterShrink,
    /// The pass is over: pause until the next one.
    Rest,
}

impl Retention {
    pub(super) fn new(settings: &Settings) -> Self {
        let dedup_window = settings.dedup_window;
        let keep = settings.retention.max(dedup_window);
        Self {
            keep,
            dedup_window,
            ended: Instant::now(),
            took: Duration::ZERO,
            next: NextStep::Continue,
            is_busy: false,
            size: *SCAN_SIZE.start(),
            cursor: EventId(0),
            deleted: 0,
            is_truncation_due: false,
            failure_throttle: LogThrottle::default(),
        }
    }

    /// Notes that the writer got a command.
    pub(super) fn note_activity(&mut self) {
        self.is_busy = true;
    }

    /// When the next step is to be made.
    pub(super) fn due(&self, pressure: Pressure) -> Instant {
        self.ended + pause_after(self.next, self.took, pressure, self.is_busy)
    }

    /// Makes one step; true if pages were returned to the filesystem.
    pub(super) fn step(&mut self, store: &mut Store, now: UnixMillis, pressure: Pressure) -> rusqlite::Result<bool> {
        let start = Instant::now();
        let done = self.run_step(store, now, pressure);
        self.took = start.elapsed();
        self.ended = Instant::now();
        self.is_busy = false;
        self.size = adapt_size(self.size, self.took);
        self.next = *done.as_ref().unwrap_or(&NextStep::Rest);
        done.map(|next| next == NextStep::ContinueAfterShrink)
    }

    fn run_step(&mut self, store: &mut Store, now: UnixMillis, pressure: Pressure) -> rusqlite::Result<NextStep> {
        if matches!(pressure, Pressure::Disk(_)) && store.shrink(0, self.size)? {
            // Only a checkpoint makes the file shorter.
            store.checkpoint()?;
            return Ok(NextStep::ContinueAfterShrink);
        }
        let (keep, enough) = match pressure {
            Pressure::None => (self.keep, 0),
            Pressure::Size(enough) | Pressure::Disk(enough) => (self.dedup_window, enough),
        };
        let before = EventId::first_at(UnixMillis(now.0.saturating_sub(millis(keep))));
        let seen = list_events(store, self.cursor, before, self.size)?;
        let at_once = store.limit_step(DELETE_LIMIT);
        let finished: Vec<EventId> =
            seen.iter().filter(|(_, finished)| *finished).map(|(id, _)| *id).take(at_once).collect();
        let deleted = delete(store, &finished, enough, now)?;
        self.deleted += deleted;
        let is_cut_short = deleted == at_once || deleted < finished.len();
        if is_cut_short || seen.len() == self.size {
            // Continues behind the last one deleted, or behind all that were read.
            let last = if is_cut_short { finished[..deleted].last() } else { seen.last().map(|(id, _)| id) };
            self.cursor = last.copied().unwrap_or(self.cursor);
            return Ok(NextStep::Continue);
        }
        if delete_retired_keys(store, now, at_once)? == at_once {
            return Ok(NextStep::Continue);
        }
        self.cursor = EventId(0);
        let deleted = mem::take(&mut self.deleted);
        let continues =
            if pressure == Pressure::None { store.shrink(KEPT_FREE_PAGES, self.size)? } else { deleted > 0 };
        self.is_truncation_due |= continues;
        if !continues && mem::take(&mut self.is_truncation_due) {
            // Only a checkpoint makes the file shorter, and without pushes nothing else would write the log back.
            store.checkpoint()?;
        }
        Ok(if continues { NextStep::Continue } else { NextStep::Rest })
    }
}

/// How long to pause after a step.
fn pause_after(next: NextStep, took: Duration, pressure: Pressure, is_busy: bool) -> Duration {
    let is_under_pressure = pressure != Pressure::None;
    let least = match next {
        NextStep::Continue | NextStep::ContinueAfterShrink => STEP_PAUSE,
        NextStep::Rest if is_under_pressure => PASS_PAUSE_UNDER_PRESSURE,
        NextStep::Rest => PASS_PAUSE,
    };
    let times = match (is_busy, is_under_pressure) {
        (false, _) => 3,
        (true, true) => 9,
        (true, false) => 19,
    };
    (took * times).clamp(least, MAX_PAUSE)
}

/// The size of the next step, after one of that size took so long.
fn adapt_size(size: usize, took: Duration) -> usize {
    let size = match took {
        took if took > STEP_TARGET => size / 2,
        took if took < STEP_TARGET / 2 => size * 2,
        _ => size,
    };
    size.clamp(*SCAN_SIZE.start(), *SCAN_SIZE.end())
}

fn millis(span: Duration) -> i64 {
    i64::try_from(span.as_millis()).unwrap_or(i64::MAX)
}

/// The next events between the two ids, each with whether it is finished.
fn list_events(store: &Store, after: EventId, before: EventId, most: usize) -> rusqlite::Result<Vec<(EventId, bool)>> {
    let mut find = store.connection.prepare_cached(
        "SELECT id, NOT EXISTS (SELECT 1 FROM delivery WHERE event = id AND state IN (0, 2)) \
                    AND NOT EXISTS (SELECT 1 FROM held_reply WHERE event = id AND state = 2) \
           FROM event WHERE id > ?1 AND id < ?2 ORDER BY id LIMIT ?3",
    )?;
    find.query_map(params![after, before, most.cast_signed() as i64], |row| Ok((row.get(0)?, row.get(1)?)))?.collect()
}

/// Deletes these events in order, until the store holds no more than `enough` bytes; returns how many.
fn delete(store: &mut Store, events: &[EventId], enough: u64, now: UnixMillis) -> rusqlite::Result<usize> {
    if events.is_empty() {
        return Ok(0);
    }
    let mut deleted: usize = 0;
    store.transact(|store| {
        for event in events {
            deleted += usize::from(store.remove(*event, now)?);
            if store.used_bytes()? <= enough {
                break;
            }
        }
        Ok(())
    })?;
    Ok(deleted)
}

/// Deletes up to `most` content keys whose replay window is over; returns how many.
fn delete_retired_keys(store: &mut Store, now: UnixMillis, most: usize) -> rusqlite::Result<usize> {
    // A transaction takes a commit, and there is seldom something to do.
    let mut find = store.connection.prepare_cached("SELECT min(event) FROM retired_key")?;
    let oldest: Option<EventId> = find.query_row([], |row| row.get(0))?;
    drop(find);
    if oldest.is_none_or(|oldest| oldest >= store.dedup.replay_window.start(now)) {
        return Ok(0);
    }
    let mut deleted = 0;
    store.transact(|store| {
        deleted = store.dedup.delete_retired(&store.connection, now, most)?;
        Ok(())
    })?;
    Ok(deleted)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::queue::DeliveryState;
    use crate::queue::sqlite::SqliteReader;

    const NOW: UnixMillis = UnixMillis(1_795_161_600_000);
    const DAY: Duration = Duration::from_secs(86_400);

    /// A store with events of one delivery each: so many, received so long ago, in that state.
    fn store(folder: &std::path::Path, parts: &[(u64, Duration, DeliveryState)]) -> Store {
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

    fn insert(store: &Store, id: EventId, target: i64, state: DeliveryState) -> rusqlite::Result<usize> {
        store.connection.execute(
            "INSERT INTO event VALUES \
               (?1, randomblob(24), 1, 0, 0, '', '', '', '', '', '', NULL, NULL, '', zeroblob(3000), NULL, NULL, NULL, NULL)",
            [id],
        )?;
        let delivery = "INSERT INTO delivery VALUES (?1, ?2, ?3, 1, 0, 0, 0, NULL)";
        store.connection.execute(delivery, params![id, target, state])?;
        let attempt = "INSERT INTO attempt VALUES (?1, ?2, 1, 0, 0, 200, NULL, NULL)";
        store.connection.execute(attempt, params![id, target])
    }

    fn retention(retention: Duration) -> Retention {
        let window = Duration::from_secs(120);
        let settings = Settings::for_tests(std::path::Path::new("unused"));
        Retention::new(&Settings { retention, dedup_window: window, replay_window: window, ..settings })
    }

    /// Makes steps to the end of a pass that finds nothing to do. There is pressure while more than `limit` is used.
    fn settle(retention: &mut Retention, store: &mut Store, limit: u64) {
        for _ in 0..1000 {
            let is_under_pressure = store.used_bytes().unwrap() > limit;
            let pressure = if is_under_pressure { Pressure::Size(limit) } else { Pressure::None };
            if retention.run_step(store, NOW, pressure).unwrap() == NextStep::Rest {
                return;
            }
        }
        panic!("never at rest");
    }

    fn count_remaining(folder: &std::path::Path) -> (u64, u64) {
        let audit = SqliteReader::open(folder).unwrap().audit().unwrap();
        assert!(audit.is_clean(), "{audit:?}");
        (audit.counts.pending, audit.deliveries - audit.counts.pending)
    }

    #[test]
    fn finished_events_go_when_they_are_old_and_pending_and_dead_ones_never() {
        let folder = tempfile::tempdir().unwrap();
        let parts = [
            (1500, DAY * 9, DeliveryState::Pending),
            (700, DAY * 8, DeliveryState::Delivered),
            (5, DAY * 10, DeliveryState::Dead),
        ];
        let mut store = store(folder.path(), &parts);
        settle(&mut retention(DAY * 7), &mut store, u64::MAX);
        assert_eq!(count_remaining(folder.path()), (1500, 5));
        let attempts: i64 = store.connection.query_row("SELECT count(*) FROM attempt", [], |row| row.get(0)).unwrap();
        assert_eq!(attempts, 1505);
    }

    #[test]
    fn the_file_shrinks() {
        let folder = tempfile::tempdir().unwrap();
        let mut store = store(folder.path(), &[(5000, DAY * 8, DeliveryState::Delivered)]);
        let before = store.pragma("page_count").unwrap();
        settle(&mut retention(DAY * 7), &mut store, u64::MAX);
        assert!(store.pragma("page_count").unwrap() < KEPT_FREE_PAGES + 100, "of {before} pages");
    }

    #[test]
    fn over_the_limit_the_oldest_finished_go_first_and_only_as_many_as_needed() {
        let folder = tempfile::tempdir().unwrap();
        let mut store =
            store(folder.path(), &[(1000, DAY * 2, DeliveryState::Delivered), (1000, DAY, DeliveryState::Delivered)]);
        let limit = store.used_bytes().unwrap() / 4 * 3;
        settle(&mut retention(DAY * 7), &mut store, limit);
        let used = store.used_bytes().unwrap();
        assert!((limit - 50_000..=limit).contains(&used), "{used} of {limit}");
        let oldest = store.connection.query_row(
            "SELECT count(*) FROM event WHERE id < ?1",
            [EventId::first_at(UnixMillis(NOW.0 - millis(DAY)))],
            |row| row.get::<_, i64>(0),
        );
        assert!((300..700).contains(&oldest.unwrap()));
        assert!(count_remaining(folder.path()).1 > 1300);
    }

    #[test]
    fn neither_what_is_pending_nor_what_may_be_pushed_again_goes_under_any_pressure() {
        let folder = tempfile::tempdir().unwrap();
        let parts = [(100, DAY, DeliveryState::Pending), (100, Duration::from_secs(5), DeliveryState::Delivered)];
        let mut store = store(folder.path(), &parts);
        settle(&mut retention(DAY * 7), &mut store, 0);
        assert_eq!(count_remaining(folder.path()), (100, 100));
        let finish = "UPDATE delivery SET state = 1; UPDATE tally SET count = 200 * state WHERE target > 0";
        store.connection.execute_batch(finish).unwrap();
        settle(&mut retention(DAY * 7), &mut store, 0);
        assert_eq!(count_remaining(folder.path()), (0, 100));
    }

    #[test]
    fn on_a_full_disk_every_free_page_is_returned_before_more_is_deleted() {
        let folder = tempfile::tempdir().unwrap();
        let mut store =
            store(folder.path(), &[(300, DAY, DeliveryState::Delivered), (10, DAY * 2, DeliveryState::Pending)]);
        let mut retention = retention(DAY * 7);
        let size = || std::fs::metadata(folder.path().join(super::super::files::DATABASE)).unwrap().len();
        store.checkpoint().unwrap();
        let before = size();
        while retention.run_step(&mut store, NOW, Pressure::Disk(0)).unwrap() != NextStep::Rest {
            let free = store.pragma("freelist_count").unwrap();
            assert!(free <= 4 * 200, "{free} pages are free: what one step leaves, at most");
        }
        assert_eq!(store.pragma("freelist_count").unwrap(), 0);
        assert!(size() < before / 4, "{} of {before} bytes", size());
    }

    #[test]
    fn when_the_last_page_was_returned_the_file_is_shorter_though_no_push_comes() {
        let folder = tempfile::tempdir().unwrap();
        let mut store = store(folder.path(), &[(6000, DAY * 8, DeliveryState::Delivered)]);
        let mut retention = retention(DAY * 7);
        let size = || std::fs::metadata(folder.path().join(super::super::files::DATABASE)).unwrap().len();
        store.checkpoint().unwrap();
        let (before, kept) = (size(), 4096 * (KEPT_FREE_PAGES.cast_unsigned() + 64));
        assert!(before > kept, "{before} bytes are too few to show it");
        while retention.run_step(&mut store, NOW, Pressure::None).unwrap() != NextStep::Rest {}
        assert!(size() <= kept, "{} of {before} bytes", size());
    }

    #[test]
    fn steps_grow_while_they_are_short_and_shrink_when_they_are_long() {
        let sizes = |took| std::iter::successors(Some(64), move |size| Some(adapt_size(*size, took))).take(8);
        assert_eq!(sizes(STEP_TARGET / 4).last(), Some(1024));
        assert_eq!(sizes(STEP_TARGET * 2).last(), Some(16));
        assert_eq!(sizes(STEP_TARGET).last(), Some(64));
    }

    #[test]
    fn housekeeping_takes_a_twentieth_of_the_time_a_tenth_under_pressure_and_more_when_the_writer_is_idle() {
        let ms = Duration::from_millis;
        assert_eq!(pause_after(NextStep::Continue, ms(10), Pressure::None, true), ms(190));
        assert_eq!(pause_after(NextStep::Continue, ms(10), Pressure::Size(0), true), ms(90));
        assert_eq!(pause_after(NextStep::Continue, ms(10), Pressure::None, false), ms(30));
        assert_eq!(pause_after(NextStep::Continue, Duration::ZERO, Pressure::Disk(0), true), STEP_PAUSE);
        assert_eq!(pause_after(NextStep::Rest, ms(1), Pressure::None, true), PASS_PAUSE);
        assert_eq!(pause_after(NextStep::Rest, ms(1), Pressure::Size(0), true), PASS_PAUSE_UNDER_PRESSURE);
        assert_eq!(pause_after(NextStep::Rest, ms(1000), Pressure::None, true), ms(19_000), "a long last step");
        assert_eq!(pause_after(NextStep::Rest, ms(60_000), Pressure::None, true), MAX_PAUSE, "a disk that stalled");
    }
}
