//! Whether there is space for new events, and what is done when there is none.
//!
//! - The disk is full: the reserve file is released, so that what is stored can still be delivered and settled; new
//!   events are refused without a write; finished events are deleted early. This ends when the reserve file can be
//!   allocated again.
//! - The store cannot be written: each write is still tried.
//! - The store holds `max_size`: new events are refused. Finished ones are deleted from a little below it on. A log that
//!   a reader keeps from being written back counts too; but no event is deleted for it, as that makes it longer.
//!
//! A probe, which is a real write and a checkpoint, ends the first two, so that they end without a push.

use std::io::{self, ErrorKind};
use std::mem;
use std::sync::Arc;
use std::time::Duration;

use rusqlite::ErrorCode;
use tokio::sync::watch;
use tokio::time::Instant;

use super::reserve_file::ReserveFile;
use super::store::Store;
use crate::queue::error::{is_full, is_write_failure};
use crate::queue::{Error, Obstacle};

/// The pause between two probes: the first, and the longest, as it doubles.
const FIRST_PROBE_PAUSE: Duration = Duration::from_millis(100);
const MAX_PROBE_PAUSE: Duration = Duration::from_secs(1);
/// After this time without trouble, the pause starts again at the first one.
const STABLE_AFTER: Duration = Duration::from_secs(10);

/// How long a measurement of ample space stays valid, and how many bytes are ample: more than come in during that time.
const MEASURE_INTERVAL: Duration = Duration::from_millis(100);
const AMPLE: u64 = 64 << 20;

/// Holds the obstacle that the queue publishes.
pub(super) type ObstacleWatch = Arc<watch::Sender<Option<Obstacle>>>;

/// How urgently finished events have to be deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pressure {
    /// Only after `retention`.
    None,
    /// Earlier, until the store holds no more than this many bytes.
    Size(u64),
    /// As `Size`, and their space must be returned to the disk.
    Disk(u64),
}

/// The space that the store has.
pub(super) struct Capacity {
    reserve: ReserveFile,
    max_size: u64,
    /// Bytes, as last measured.
    used: u64,
    /// How many bytes new events may take, as last measured or as of what was stored since.
    remaining: u64,
    measured_at: Option<Instant>,
    /// Whether the store holds `max_size`, and has not fallen a little below since.
    is_over: bool,
    trouble: Option<Trouble>,
    trouble_ended: Option<Instant>,
    /// How many events were refused since the last one was accepted.
    refused: u64,
    watch: ObstacleWatch,
}

/// A condition that only a probe ends.
struct Trouble {
    obstacle: Obstacle,
    probe_at: Instant,
    pause: Duration,
}

impl Capacity {
    /// Allocates the reserve file; without it, the disk counts as full.
    pub(super) fn new(reserve: ReserveFile, max_size: u64, watch: ObstacleWatch) -> Self {
        let mut capacity = Self {
            reserve,
            max_size,
            used: 0,
            remaining: 0,
            measured_at: None,
            is_over: false,
            trouble: None,
            trouble_ended: None,
            refused: 0,
            watch,
        };
        if let Err(error) = capacity.reserve.allocate() {
            let obstacle = if is_no_space(&error) { Obstacle::DiskFull } else { Obstacle::Failing };
            capacity.enter_trouble(obstacle, &error);
        }
        capacity
    }

    /// About how many bytes new events may take. Measures the store unless there was ample space just now.
    pub(super) fn remaining(&mut self, store: &Store) -> rusqlite::Result<u64> {
        let is_recent = self.measured_at.is_some_and(|measured| measured.elapsed() < MEASURE_INTERVAL);
        if !is_recent || self.remaining < AMPLE || self.trouble.is_some() {
            self.measure(store)?;
        }
        Ok(self.remaining)
    }

    /// Notes how many bytes remain after new events were stored.
    pub(super) fn set_remaining(&mut self, remaining: u64) {
        self.remaining = remaining;
    }

    /// Counts an event that is refused.
    pub(super) fn note_refusal(&mut self) {
        self.refused += 1;
    }

    /// Measures the store, and publishes what that changes.
    pub(super) fn measure(&mut self, store: &Store) -> rusqlite::Result<()> {
        self.used = store.used_bytes()?;
        self.measured_at = Some(Instant::now());
        let occupied = self.used.saturating_add(store.held_bytes());
        self.is_over = is_over(self.is_over, occupied, self.max_size);
        self.publish(None);
        let refused = self.is_over || self.is_in_trouble(Obstacle::DiskFull);
        self.remaining = if refused { 0 } else { self.max_size.saturating_sub(occupied) };
        Ok(())
    }

    /// How urgently finished events have to be deleted, as last measured.
    pub(super) fn pressure(&self) -> Pressure {
        if self.is_in_trouble(Obstacle::DiskFull) {
            Pressure::Disk(self.used.saturating_sub(self.reserve.size() / 4 * 5))
        } else if self.used > soft_limit(self.max_size) {
            Pressure::Size(soft_limit(self.max_size))
        } else {
            Pressure::None
        }
    }

    /// Whether the store cannot be written, for another reason than a full disk.
    pub(super) fn is_failing(&self) -> bool {
        self.is_in_trouble(Obstacle::Failing)
    }

    /// Notes that a write failed. Returns true if that released space: retry the write.
    pub(super) fn note_failure(&mut self, error: &rusqlite::Error) -> bool {
        if is_full(error) || is_write_failure(error) && self.reserve.is_disk_full() {
            let released = self.reserve.release();
            self.enter_trouble(Obstacle::DiskFull, error);
            released
        } else {
            if is_lasting(error) {
                self.enter_trouble(Obstacle::Failing, error);
            }
            false
        }
    }

    /// Releases the reserve file for something that must be written now. Returns true if that released space.
    pub(super) fn release_reserve(&mut self) -> bool {
        let has_released = self.reserve.release();
        if has_released {
            self.enter_trouble(Obstacle::DiskFull, &Error::Full);
        }
        has_released
    }

    /// When to probe next, if there is need to.
    pub(super) fn probe_due(&self) -> Option<Instant> {
        self.trouble.as_ref().map(|trouble| trouble.probe_at)
    }

    /// Probes at the next opportunity: something may have changed.
    pub(super) fn probe_soon(&mut self) {
        if let Some(trouble) = &mut self.trouble {
            trouble.probe_at = Instant::now();
        }
    }

    /// Ends the trouble if there is space again and the store can be written.
    pub(super) fn probe(&mut self, store: &Store) -> rusqlite::Result<()> {
        let Some(trouble) = &mut self.trouble else { return Ok(()) };
        trouble.pause = (trouble.pause * 2).min(MAX_PROBE_PAUSE);
        trouble.probe_at = Instant::now() + trouble.pause;
        if trouble.obstacle == Obstacle::DiskFull && self.reserve.allocate().is_err() {
            return Ok(());
        }
        store.touch().and_then(|()| store.checkpoint()).inspect_err(|error| {
            self.note_failure(error);
        })?;
        self.trouble = None;
        self.trouble_ended = Some(Instant::now());
        self.publish(None);
        Ok(())
    }

    fn is_in_trouble(&self, obstacle: Obstacle) -> bool {
        self.trouble.as_ref().is_some_and(|trouble| trouble.obstacle == obstacle)
    }

    /// A full disk does not become a failing one afterwards: it stays what it is until the probe.
    fn enter_trouble(&mut self, obstacle: Obstacle, error: &dyn std::error::Error) {
        if self.is_in_trouble(obstacle) || self.is_in_trouble(Obstacle::DiskFull) {
            return;
        }
        let is_again = self.trouble_ended.is_some_and(|ended| ended.elapsed() < STABLE_AFTER);
        let pause = if is_again { MAX_PROBE_PAUSE } else { FIRST_PROBE_PAUSE };
        self.trouble = Some(Trouble { obstacle, probe_at: Instant::now() + pause, pause });
        self.publish(Some(error));
    }

    /// Publishes and logs the obstacle, if it has changed.
    fn publish(&mut self, error: Option<&dyn std::error::Error>) {
        let trouble = self.trouble.as_ref().map(|trouble| trouble.obstacle);
        let now = trouble.or(self.is_over.then_some(Obstacle::SizeLimit));
        let before = *self.watch.borrow();
        if now == before {
            return;
        }
        self.watch.send_replace(now);
        match (now, before) {
            (Some(now), _) => {
                let error = error.map(tracing::field::display);
                tracing::warn!(obstacle = now.word(), error, "new events refused until the obstacle is gone");
            }
            (None, Some(before)) => {
                let refused = mem::take(&mut self.refused);
                tracing::info!(obstacle = before.word(), refused, "new events accepted again");
            }
            (None, None) => {}
        }
    }
}

/// From here on finished events are deleted early.
fn soft_limit(max_size: u64) -> u64 {
    max_size - max_size / 16
}

/// Begins at the limit, and ends only a little below it, so that it does not flap.
fn is_over(was: bool, used: u64, max_size: u64) -> bool {
    used >= if was { max_size - max_size / 128 } else { max_size }
}

fn is_no_space(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded)
}

/// Whether the next write may well fail for the same reason, whatever it writes.
fn is_lasting(error: &rusqlite::Error) -> bool {
    error.sqlite_error_code().is_some_and(|code| {
        matches!(
            code,
            ErrorCode::SystemIoFailure
                | ErrorCode::ReadOnly
                | ErrorCode::CannotOpen
                | ErrorCode::PermissionDenied
                | ErrorCode::DatabaseBusy
                | ErrorCode::DatabaseLocked
                | ErrorCode::FileLockingProtocolFailed
                | ErrorCode::OutOfMemory
        )
    })
}

#[cfg(test)]
mod tests {
    use rusqlite::ffi;

    use super::*;

    fn failure(code: i32) -> rusqlite::Error {
        rusqlite::Error::SqliteFailure(ffi::Error::new(code), None)
    }

    fn open(folder: &std::path::Path, max_size: u64) -> (Store, Capacity, ObstacleWatch) {
        let (store, watch) = (Store::open(folder).unwrap(), ObstacleWatch::default());
        let capacity = Capacity::new(ReserveFile::find(folder), max_size, Arc::clone(&watch));
        (store, capacity, watch)
    }

    #[test]
    fn on_a_full_disk_the_reserve_file_is_released_once_and_allocated_by_the_probe() {
        let folder = tempfile::tempdir().unwrap();
        let (store, mut capacity, watch) = open(folder.path(), u64::MAX);
        assert_ne!(capacity.remaining(&store).unwrap(), 0);
        assert!(capacity.note_failure(&failure(ffi::SQLITE_FULL)), "there is space to try again");
        assert!(!capacity.note_failure(&failure(ffi::SQLITE_FULL)), "once");
        assert!(!capacity.note_failure(&failure(ffi::SQLITE_IOERR_WRITE)));
        assert_eq!(*watch.borrow(), Some(Obstacle::DiskFull), "not taken for a failing one");
        assert_eq!(capacity.remaining(&store).unwrap(), 0);
        assert!(matches!(capacity.pressure(), Pressure::Disk(_)));
        capacity.probe(&store).unwrap();
        assert_eq!(*watch.borrow(), None);
        assert_ne!(capacity.remaining(&store).unwrap(), 0);
        assert_eq!(capacity.probe_due(), None);
        assert!(capacity.note_failure(&failure(ffi::SQLITE_FULL)), "the reserve file is there again");
    }

    #[test]
    fn a_store_that_cannot_be_written_is_tried_all_the_same_until_the_probe_can() {
        let folder = tempfile::tempdir().unwrap();
        let (store, mut capacity, watch) = open(folder.path(), u64::MAX);
        let shell = rusqlite::Connection::open(folder.path().join("wxrelay.db")).unwrap();
        shell.execute_batch("BEGIN IMMEDIATE").unwrap();
        for code in [ffi::SQLITE_BUSY, ffi::SQLITE_IOERR_WRITE, ffi::SQLITE_READONLY, ffi::SQLITE_FULL] {
            let is_full = code == ffi::SQLITE_FULL;
            assert_eq!(capacity.note_failure(&failure(code)), is_full);
            let expected = if is_full { Obstacle::DiskFull } else { Obstacle::Failing };
            assert_eq!((*watch.borrow(), capacity.is_failing()), (Some(expected), !is_full), "{code}");
            assert_eq!(capacity.remaining(&store).unwrap() == 0, is_full);
            capacity.probe(&store).unwrap_err();
            assert_eq!(*watch.borrow(), Some(expected), "the probe cannot write either");
        }
        shell.execute_batch("ROLLBACK").unwrap();
        capacity.probe(&store).unwrap();
        assert_eq!(*watch.borrow(), None);
    }

    #[test]
    fn a_fault_of_one_command_is_no_trouble_of_the_store() {
        let folder = tempfile::tempdir().unwrap();
        let (_store, mut capacity, watch) = open(folder.path(), u64::MAX);
        for code in [ffi::SQLITE_CONSTRAINT_PRIMARYKEY, ffi::SQLITE_TOOBIG] {
            assert!(!capacity.note_failure(&failure(code)));
        }
        assert!(!capacity.note_failure(&rusqlite::Error::QueryReturnedNoRows));
        assert_eq!(*watch.borrow(), None);
    }

    #[test]
    fn probes_come_soon_at_first_and_every_second_in_the_end() {
        let folder = tempfile::tempdir().unwrap();
        let (store, mut capacity, _watch) = open(folder.path(), u64::MAX);
        let pause = |capacity: &Capacity| capacity.trouble.as_ref().unwrap().pause;
        let shell = rusqlite::Connection::open(folder.path().join("wxrelay.db")).unwrap();
        shell.execute_batch("BEGIN IMMEDIATE").unwrap();
        capacity.note_failure(&failure(ffi::SQLITE_BUSY));
        assert_eq!(pause(&capacity), FIRST_PROBE_PAUSE);
        for _ in 0..5 {
            capacity.probe(&store).unwrap_err();
        }
        assert_eq!(pause(&capacity), MAX_PROBE_PAUSE);
        shell.execute_batch("ROLLBACK").unwrap();
        capacity.probe(&store).unwrap();
        capacity.note_failure(&failure(ffi::SQLITE_BUSY));
        assert_eq!(pause(&capacity), MAX_PROBE_PAUSE, "trouble that comes and goes is watch once a second at most");
    }

    #[test]
    fn finished_events_go_before_new_ones_are_refused_and_the_refusal_does_not_flap() {
        let folder = tempfile::tempdir().unwrap();
        let (store, mut capacity, watch) = open(folder.path(), u64::MAX);
        let used = store.used_bytes().unwrap();
        let mut at = |max_size| {
            capacity.max_size = max_size;
            let remaining = capacity.remaining(&store).unwrap();
            (remaining > 0, capacity.pressure() != Pressure::None, *watch.borrow())
        };
        assert_eq!(at(used * 2), (true, false, None));
        assert_eq!(at(used + used / 32), (true, true, None));
        assert_eq!(at(used), (false, true, Some(Obstacle::SizeLimit)));
        assert_eq!(at(used + used / 256), (false, true, Some(Obstacle::SizeLimit)), "a little below is not enough");
        assert_eq!(at(used + used / 64), (true, true, None));
    }
}
