//! Whether there is room for new events, and what is done where there is not.
//!
//! - The disk is full: the ballast is let go, so that what is stored can still be delivered and settled; new events are
//!   refused without a write; finished events go early. It ends when the ballast can be had again.
//! - The store cannot be written: each write is tried all the same.
//! - The store holds `max_size`: new events are refused. Finished ones begin to go a little before that.
//!
//! The first two end by a probe, which is a real write and a checkpoint, so that they end without a push.

use std::io::{self, ErrorKind};
use std::sync::Arc;
use std::time::Duration;

use rusqlite::ErrorCode;
use tokio::sync::watch;
use tokio::time::Instant;

use super::ballast::Ballast;
use super::store::Store;
use crate::queue::Obstacle;
use crate::queue::error::{is_full, is_write_failure};

/// Between two probes: at first, and at most.
const SOON: Duration = Duration::from_millis(100);
const AT_MOST: Duration = Duration::from_secs(1);
/// After so long without trouble, the next one is probed soon again.
const CALM: Duration = Duration::from_secs(10);

/// How old a look may be that found plenty of room, and what is plenty: more than comes in by then.
const LOOK_AGAIN: Duration = Duration::from_millis(100);
const PLENTY: u64 = 64 << 20;

/// Where the queue tells what keeps new events out.
pub(super) type Told = Arc<watch::Sender<Option<Obstacle>>>;

/// How badly finished events have to go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shortage {
    /// When they are old.
    None,
    /// Earlier, until the store holds no more bytes than that.
    Size(u64),
    /// So too, and their room has to go back to the disk.
    Disk(u64),
}

/// The room that the store has.
pub(super) struct Room {
    ballast: Ballast,
    max_size: u64,
    /// As of the last look.
    used: u64,
    /// What new events may take, as of the last look or of what was stored since; and when that look was.
    left: u64,
    looked: Option<Instant>,
    /// Whether the store holds `max_size`, and has not since fallen a little below.
    is_over: bool,
    trouble: Option<Trouble>,
    /// When the last trouble ended.
    ended: Option<Instant>,
    told: Told,
}

/// What only a probe ends.
struct Trouble {
    what: Obstacle,
    probe: Instant,
    pause: Duration,
}

impl Room {
    /// Takes the ballast; without it, the disk counts as full.
    pub(super) fn new(ballast: Ballast, max_size: u64, told: Told) -> Self {
        let (used, left, looked) = (0, 0, None);
        let (is_over, trouble, ended) = (false, None, None);
        let mut room = Self { ballast, max_size, used, left, looked, is_over, trouble, ended, told };
        if let Err(error) = room.ballast.take() {
            let what = if is_no_room(&error) { Obstacle::DiskFull } else { Obstacle::Failing };
            room.begin(what, &error);
        }
        room
    }

    /// How many bytes new events may take, about. Looks at the store unless there was plenty of room just now.
    pub(super) fn left(&mut self, store: &Store) -> rusqlite::Result<u64> {
        let is_recent = self.looked.is_some_and(|looked| looked.elapsed() < LOOK_AGAIN);
        if !is_recent || self.left < PLENTY || self.trouble.is_some() {
            self.look(store)?;
        }
        Ok(self.left)
    }

    /// Notes how many bytes are left after new events were stored.
    pub(super) fn leaves(&mut self, left: u64) {
        self.left = left;
    }

    /// Looks at the store, and tells if that changes anything.
    pub(super) fn look(&mut self, store: &Store) -> rusqlite::Result<()> {
        self.used = store.used_bytes()?;
        self.looked = Some(Instant::now());
        self.is_over = is_over(self.is_over, self.used, self.max_size);
        self.tell(None);
        let refused = self.is_over || self.has(Obstacle::DiskFull);
        self.left = if refused { 0 } else { self.max_size.saturating_sub(self.used) };
        Ok(())
    }

    /// How badly finished events have to go, as of the last look.
    pub(super) fn shortage(&self) -> Shortage {
        if self.has(Obstacle::DiskFull) {
            Shortage::Disk(self.used.saturating_sub(self.ballast.size() / 4 * 5))
        } else if self.used > soft_limit(self.max_size) {
            Shortage::Size(soft_limit(self.max_size))
        } else {
            Shortage::None
        }
    }

    /// Whether the store cannot be written, for another reason than a full disk.
    pub(super) fn is_failing(&self) -> bool {
        self.has(Obstacle::Failing)
    }

    /// Notes that a write failed. True if there is more room now than there was: try it again.
    pub(super) fn failed(&mut self, error: &rusqlite::Error) -> bool {
        if is_full(error) || is_write_failure(error) && self.ballast.is_at_the_end() {
            let gave = self.ballast.let_go();
            self.begin(Obstacle::DiskFull, error);
            gave
        } else {
            if is_failing(error) {
                self.begin(Obstacle::Failing, error);
            }
            false
        }
    }

    /// When to probe next, if there is need to.
    pub(super) fn probe_due(&self) -> Option<Instant> {
        self.trouble.as_ref().map(|trouble| trouble.probe)
    }

    /// Probes at the next opportunity: something may have changed.
    pub(super) fn probe_soon(&mut self) {
        if let Some(trouble) = &mut self.trouble {
            trouble.probe = Instant::now();
        }
    }

    /// Ends the trouble if there is room again and the store can be written.
    pub(super) fn probe(&mut self, store: &Store) -> rusqlite::Result<()> {
        let Some(trouble) = &mut self.trouble else { return Ok(()) };
        trouble.pause = (trouble.pause * 2).min(AT_MOST);
        trouble.probe = Instant::now() + trouble.pause;
        if trouble.what == Obstacle::DiskFull && self.ballast.take().is_err() {
            return Ok(());
        }
        store.touch().and_then(|()| store.checkpoint()).inspect_err(|error| {
            self.failed(error);
        })?;
        self.trouble = None;
        self.ended = Some(Instant::now());
        self.tell(None);
        Ok(())
    }

    fn has(&self, what: Obstacle) -> bool {
        self.trouble.as_ref().is_some_and(|trouble| trouble.what == what)
    }

    /// A full disk is not taken for a failing one afterwards: it stays what it is until the probe.
    fn begin(&mut self, what: Obstacle, error: &dyn std::error::Error) {
        if self.has(what) || self.has(Obstacle::DiskFull) {
            return;
        }
        let is_again = self.ended.is_some_and(|ended| ended.elapsed() < CALM);
        let pause = if is_again { AT_MOST } else { SOON };
        self.trouble = Some(Trouble { what, probe: Instant::now() + pause, pause });
        self.tell(Some(error));
    }

    /// Says what keeps new events out, where that has changed.
    fn tell(&self, error: Option<&dyn std::error::Error>) {
        let now = self.trouble.as_ref().map(|trouble| trouble.what).or(self.is_over.then_some(Obstacle::SizeLimit));
        let before = *self.told.borrow();
        if now == before {
            return;
        }
        self.told.send_replace(now);
        match (now, before) {
            (Some(now), _) => {
                let error = error.map(tracing::field::display);
                tracing::warn!(
                    obstacle = now.word(),
                    error,
                    "new events cannot be stored; this ends by itself with its cause"
                );
            }
            (None, Some(before)) => tracing::info!(obstacle = before.word(), "new events can be stored again"),
            (None, None) => {}
        }
    }
}

/// From here on finished events go early.
fn soft_limit(max_size: u64) -> u64 {
    max_size - max_size / 16
}

/// Begins at the limit, and ends only a little below it.
fn is_over(was: bool, used: u64, max_size: u64) -> bool {
    used >= if was { max_size - max_size / 128 } else { max_size }
}

fn is_no_room(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded)
}

/// Whether the next write may well fail for the same reason, whatever it writes.
fn is_failing(error: &rusqlite::Error) -> bool {
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

    fn room(folder: &std::path::Path, max_size: u64) -> (Store, Room, Told) {
        let (store, told) = (Store::open(folder).unwrap(), Told::default());
        let room = Room::new(Ballast::find(folder), max_size, Arc::clone(&told));
        (store, room, told)
    }

    #[test]
    fn on_a_full_disk_the_ballast_goes_once_and_comes_back_with_the_probe() {
        let folder = tempfile::tempdir().unwrap();
        let (store, mut room, told) = room(folder.path(), u64::MAX);
        assert_ne!(room.left(&store).unwrap(), 0);
        assert!(room.failed(&failure(ffi::SQLITE_FULL)), "there is room to try again");
        assert!(!room.failed(&failure(ffi::SQLITE_FULL)), "once");
        assert!(!room.failed(&failure(ffi::SQLITE_IOERR_WRITE)));
        assert_eq!(*told.borrow(), Some(Obstacle::DiskFull), "not taken for a failing one");
        assert_eq!(room.left(&store).unwrap(), 0);
        assert!(matches!(room.shortage(), Shortage::Disk(_)));
        room.probe(&store).unwrap();
        assert_eq!(*told.borrow(), None);
        assert_ne!(room.left(&store).unwrap(), 0);
        assert_eq!(room.probe_due(), None);
        assert!(room.failed(&failure(ffi::SQLITE_FULL)), "the ballast is there again");
    }

    #[test]
    fn a_store_that_cannot_be_written_is_tried_all_the_same_until_the_probe_can() {
        let folder = tempfile::tempdir().unwrap();
        let (store, mut room, told) = room(folder.path(), u64::MAX);
        let shell = rusqlite::Connection::open(folder.path().join("wxrelay.db")).unwrap();
        shell.execute_batch("BEGIN IMMEDIATE").unwrap();
        for code in [ffi::SQLITE_BUSY, ffi::SQLITE_IOERR_WRITE, ffi::SQLITE_READONLY, ffi::SQLITE_FULL] {
            let is_full = code == ffi::SQLITE_FULL;
            assert_eq!(room.failed(&failure(code)), is_full);
            let expected = if is_full { Obstacle::DiskFull } else { Obstacle::Failing };
            assert_eq!((*told.borrow(), room.is_failing()), (Some(expected), !is_full), "{code}");
            assert_eq!(room.left(&store).unwrap() == 0, is_full);
            room.probe(&store).unwrap_err();
            assert_eq!(*told.borrow(), Some(expected), "the probe cannot write either");
        }
        shell.execute_batch("ROLLBACK").unwrap();
        room.probe(&store).unwrap();
        assert_eq!(*told.borrow(), None);
    }

    #[test]
    fn a_fault_of_one_command_is_no_trouble_of_the_store() {
        let folder = tempfile::tempdir().unwrap();
        let (_store, mut room, told) = room(folder.path(), u64::MAX);
        for code in [ffi::SQLITE_CONSTRAINT_PRIMARYKEY, ffi::SQLITE_TOOBIG] {
            assert!(!room.failed(&failure(code)));
        }
        assert!(!room.failed(&rusqlite::Error::QueryReturnedNoRows));
        assert_eq!(*told.borrow(), None);
    }

    #[test]
    fn probes_come_soon_at_first_and_every_second_in_the_end() {
        let folder = tempfile::tempdir().unwrap();
        let (store, mut room, _told) = room(folder.path(), u64::MAX);
        let pause = |room: &Room| room.trouble.as_ref().unwrap().pause;
        let shell = rusqlite::Connection::open(folder.path().join("wxrelay.db")).unwrap();
        shell.execute_batch("BEGIN IMMEDIATE").unwrap();
        room.failed(&failure(ffi::SQLITE_BUSY));
        assert_eq!(pause(&room), SOON);
        for _ in 0..5 {
            room.probe(&store).unwrap_err();
        }
        assert_eq!(pause(&room), AT_MOST);
        shell.execute_batch("ROLLBACK").unwrap();
        room.probe(&store).unwrap();
        room.failed(&failure(ffi::SQLITE_BUSY));
        assert_eq!(pause(&room), AT_MOST, "trouble that comes and goes is told once a second at most");
    }

    #[test]
    fn finished_events_go_before_new_ones_are_refused_and_the_refusal_does_not_flap() {
        let folder = tempfile::tempdir().unwrap();
        let (store, mut room, told) = room(folder.path(), u64::MAX);
        let used = store.used_bytes().unwrap();
        let mut at = |max_size| {
            room.max_size = max_size;
            let left = room.left(&store).unwrap();
            (left > 0, room.shortage() != Shortage::None, *told.borrow())
        };
        assert_eq!(at(used * 2), (true, false, None));
        assert_eq!(at(used + used / 32), (true, true, None));
        assert_eq!(at(used), (false, true, Some(Obstacle::SizeLimit)));
        assert_eq!(at(used + used / 256), (false, true, Some(Obstacle::SizeLimit)), "a little below is not enough");
        assert_eq!(at(used + used / 64), (true, true, None));
    }
}
