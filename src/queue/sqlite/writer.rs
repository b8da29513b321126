//! The one writer: takes what waits, commits it as one transaction, then answers and hands over.
//!
//! - One commit serves all who waited for it, so the rate of commits does not bound the rate of pushes.
//! - Nobody is answered before the commit that holds his change.
//! - Leases are granted after the commit, out of what it left, so that one never meets a settlement half done.
//! - After a failed flush nothing is answered any more; the process ends.

use std::fs::File;
use std::mem;
use std::process;
use std::slice;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::time::{Instant, timeout_at};

use super::channel::Receiver;
use super::command::Command;
use super::inboxes::Inboxes;
use super::removal::Wiped;
use super::retention::Retention;
use super::room::Room;
use super::scrub::Scrub;
use super::statements::Waiting;
use super::store::Store;
use crate::clock::UnixMillis;
use crate::event::EventId;
use crate::queue::error::{is_busy, is_lost};
use crate::queue::holds::Holds;
use crate::queue::{
    AttemptRecord, DeliveryState, Disposition, Enqueued, Error, Flaw, Lease, Leases, NewEvent, Settlement,
};
use crate::telemetry;

/// The most commands of one transaction: bounds how long the first of them waits for the last.
const BATCH: usize = 256;
/// How long settlements wait for company, and how many are company enough. A push ends the wait at once.
const LINGER: Duration = Duration::from_millis(5);
const COMPANY: usize = 64;
/// When so many pushes have come during one commit, more are sure to come soon: waiting that long for them, or until there
/// are enough, halves the commits, and a push that comes alone waits for nobody.
const CROWD: usize = 8;
const CROWD_LINGER: Duration = Duration::from_millis(1);
const CROWD_ENOUGH: usize = 32;
/// How long a lease that was dropped unsettled stays out at most, when nothing else happens.
const TICK: Duration = Duration::from_secs(1);
/// `EX_IOERR` of sysexits.h.
const EXIT_IO: i32 = 74;

/// The writer's thread and all it owns.
pub(super) struct Writer {
    pub(super) store: Store,
    pub(super) room: Room,
    pub(super) retention: Retention,
    pub(super) scrub: Scrub,
    pub(super) inboxes: Arc<Inboxes>,
    pub(super) holds: Holds,
    /// How often dead letters were revived, for statistics.
    pub(super) revivals: Arc<AtomicU64>,
    /// Where those who ask are.
    pub(super) callers: Handle,
    /// Told how long each commit took.
    pub(super) on_commit: Box<dyn Fn(Duration) + Send>,
    /// Held for its lock; let go last.
    pub(super) lock: File,
}

impl Writer {
    /// Works until all senders are gone or it is told to close, and everything sent until then is committed.
    ///
    /// Blocks between its awaits: it is the only task of its runtime.
    pub(super) async fn run(mut self, mut commands: Receiver) {
        let mut batch = Vec::with_capacity(BATCH);
        let mut closers = Vec::new();
        while self.fill(&mut batch, &mut commands).await {
            if !batch.is_empty() {
                self.retention.disturb();
            }
            for target in self.holds.take_back() {
                self.inboxes.wake(&target);
            }
            let (writes, others): (Vec<_>, Vec<_>) = batch.drain(..).partition(Command::writes);
            self.commit(writes);
            for command in others {
                match command {
                    Command::Lease { target, max, now, waiter } => waiter.answer(self.lease(&target, max, now)),
                    Command::Wipe { is_first, waiter } => waiter.answer(self.wipe(is_first)),
                    Command::Close(done) => {
                        commands.close();
                        closers.push(done);
                    }
                    Command::Enqueue { .. }
                    | Command::Settle(..)
                    | Command::Reply(..)
                    | Command::Annotate(..)
                    | Command::Pause(..)
                    | Command::Sweep { .. } => {}
                }
            }
            if self.retention.due(self.room.shortage()) <= Instant::now() {
                self.keep_house();
            }
            self.keep_log_small();
            if self.room.probe_due().is_some_and(|due| due <= Instant::now()) {
                self.probe();
            }
        }
        self.inboxes.close_all();
        if let Err(error) = self.store.close() {
            stop_if_lost(&error);
            tracing::warn!(%error, "the store's log was not written back at the end; the next start does it");
        }
        drop(self.lock);
        for done in closers {
            done.send(()).ok();
        }
    }

    /// Waits for work, but not for long, as there may be housekeeping to do; false at the end.
    async fn fill(&mut self, batch: &mut Vec<Command>, commands: &mut Receiver) -> bool {
        let tick = Instant::now() + TICK;
        let end = self.retention.due(self.room.shortage()).min(self.room.probe_due().unwrap_or(tick)).min(tick);
        match timeout_at(end, commands.take(batch, BATCH)).await {
            Err(_) => return true,
            Ok(0) => return false,
            Ok(_) => {}
        }
        let pushes = urgent(batch);
        if (1..CROWD).contains(&pushes) {
            return true;
        }
        let is_crowd = pushes > 0;
        let (linger, enough) = if is_crowd { (CROWD_LINGER, CROWD_ENOUGH) } else { (LINGER, COMPANY) };
        commands.gather(batch, enough, !is_crowd, Instant::now() + linger).await;
        true
    }

    /// Commits the commands together; if that fails, each alone, so that one cannot fail another.
    fn commit(&mut self, mut commands: Vec<Command>) {
        if commands.is_empty() {
            return;
        }
        let Err(error) = self.transact(&mut commands) else { return self.finish(commands) };
        let made_room = self.room.failed(&error);
        match error {
            // The room that was given up is for all but the events, which are refused from here on.
            _ if made_room => self.commit(commands),
            error if commands.len() == 1 || is_busy(&error) => {
                let mut error = Some(Error::from(error));
                for command in commands {
                    command.fail(error.take().unwrap_or(Error::Busy));
                }
            }
            _ => {
                for mut command in commands {
                    match self.transact(slice::from_mut(&mut command)) {
                        Ok(()) => self.finish(vec![command]),
                        Err(error) => {
                            self.room.failed(&error);
                            command.fail(error.into());
                        }
                    }
                }
            }
        }
    }

    fn transact(&mut self, commands: &mut [Command]) -> rusqlite::Result<()> {
        let start = Instant::now();
        let inboxes = &self.inboxes;
        let done = self.room.left(&self.store).and_then(|mut left| {
            let work = |store: &mut Store| {
                commands.iter_mut().try_for_each(|command| apply(store, inboxes, &mut left, command))
            };
            self.store.transact(work)?;
            self.room.leaves(left);
            Ok(())
        });
        match &done {
            Ok(()) => (self.on_commit)(start.elapsed()),
            Err(error) => stop_if_lost(error),
        }
        done
    }

    /// Does what follows from committed changes, and answers.
    ///
    /// All answers are one task for the callers' runtime: given one by one from here, each could wake a thread that takes
    /// the processor from this one, to find a single answer.
    fn finish(&mut self, mut commands: Vec<Command>) {
        commands.iter_mut().for_each(|command| self.follow(command));
        self.callers.spawn(async move { commands.into_iter().for_each(Command::answer_kept) });
    }

    /// Does what follows from a committed change.
    fn follow(&mut self, command: &mut Command) {
        match command {
            Command::Enqueue { new, held, waiter, .. } => {
                if matches!(waiter.kept(), Some(Ok(Enqueued::Fresh))) {
                    self.hand_over(new, held);
                }
            }
            Command::Settle(settlement, waiter) => {
                self.holds.end(&settlement.target, settlement.event);
                // Also where the target keeps order no more: what was held before is released one by one all the same.
                let released = matches!(waiter.kept(), Some(Ok(true)));
                if released || matches!(settlement.verdict, Disposition::Retry(_) | Disposition::Postpone(_)) {
                    self.inboxes.wake(&settlement.target);
                }
            }
            Command::Sweep { waiter, .. } => {
                if let Some(done) = waiter.kept_ok() {
                    self.revivals.fetch_add(u64::from(!done.touched.is_empty()), Ordering::Release);
                    done.revoked.iter().for_each(|(target, event)| self.holds.revoke(target, *event));
                    done.touched.iter().for_each(|target| self.inboxes.wake(target));
                }
            }
            Command::Reply(..)
            | Command::Annotate(..)
            | Command::Pause(..)
            | Command::Lease { .. }
            | Command::Wipe { .. }
            | Command::Close(_) => {}
        }
    }

    /// Gives the first leases of a fresh event to its targets; what finds no room waits in the store.
    fn hand_over(&mut self, new: &mut NewEvent, held: &[Arc<str>]) {
        for target in mem::take(&mut new.targets).into_iter().filter(|target| !held.contains(target)) {
            let awaited = new.awaited.iter().position(|(awaited, _)| *awaited == target);
            let reply = awaited.map(|place| new.awaited.swap_remove(place).1);
            let hold = self.holds.grant(&target, new.event.id);
            let lease = Lease { event: Arc::clone(&new.event), target, attempt: 1, failures: 0, reply, hold };
            if let Err(lease) = self.inboxes.offer(lease) {
                self.holds.end(&lease.target, lease.event.id);
                self.inboxes.wake(&lease.target);
            }
        }
    }

    fn lease(&mut self, target: &Arc<str>, max: usize, now: UnixMillis) -> Result<Leases, Error> {
        self.due(target, max, now).map_err(|error| {
            stop_if_lost(&error);
            error.into()
        })
    }

    fn due(&mut self, target: &Arc<str>, max: usize, now: UnixMillis) -> rusqlite::Result<Leases> {
        let mut leases = Leases::default();
        let Some(number) = self.store.known_number(target)? else { return Ok(leases) };
        let mut unread = Vec::new();
        // One read of the store: else SQLite takes and leaves its locks for each row.
        let reading = self.store.connection.unchecked_transaction()?;
        // One more than could be leased or skipped, so that what comes next is seen too.
        let limit = max.saturating_add(self.holds.count(target)).saturating_add(1);
        for Waiting { event: id, due } in self.store.waiting(number, limit)? {
            if self.holds.contains(target, id) {
                continue;
            }
            if due > now || leases.due.len() == max {
                leases.next_due = Some(due);
                break;
            }
            let loaded = self.store.load(id, number)?;
            let attempt = loaded.attempts + 1;
            let event = match loaded.event {
                Ok(event) => event,
                Err(flaw) => {
                    unread.push(unreadable(id, target, attempt, now, &flaw));
                    // Nothing may come of this look though there is more behind it.
                    leases.next_due = Some(now);
                    continue;
                }
            };
            let hold = self.holds.grant(target, id);
            let (event, target) = (Arc::new(event), Arc::clone(target));
            leases.due.push(Lease { event, target, attempt, failures: loaded.failures, reply: None, hold });
        }
        reading.finish()?;
        if !unread.is_empty() {
            self.store
                .transact(|store| unread.iter().try_for_each(|settlement| store.settle(settlement, now).map(drop)))?;
        }
        Ok(leases)
    }

    /// After the answers: what was committed is durable in the log, and nobody need wait for its way into the database.
    fn keep_log_small(&mut self) {
        // While the store fails, that is the probe's.
        if !self.store.is_checkpoint_due() || self.room.is_failing() {
            return;
        }
        while let Err(error) = self.store.checkpoint() {
            stop_if_lost(&error);
            if !self.room.failed(&error) {
                break;
            }
        }
    }

    fn keep_house(&mut self) {
        let shortage = self.room.shortage();
        let done = self.retention.step(&mut self.store, UnixMillis::now(), shortage);
        match done.and_then(|gave_back| self.room.look(&self.store).map(|()| gave_back)) {
            Ok(true) => self.room.probe_soon(),
            Ok(false) => {}
            Err(error) => {
                stop_if_lost(&error);
                self.room.failed(&error);
                tracing::warn!(%error, "old events were not deleted; trying again later");
            }
        }
    }

    fn wipe(&mut self, is_first: bool) -> Result<Wiped, Error> {
        if is_first {
            self.scrub.begin();
        }
        self.scrub.step(&mut self.store).map_err(|error| {
            stop_if_lost(&error);
            self.room.failed(&error);
            error.into()
        })
    }

    fn probe(&mut self) {
        if let Err(error) = self.room.probe(&self.store) {
            stop_if_lost(&error);
        }
    }
}

/// How many of the commands are waited for.
fn urgent(commands: &[Command]) -> usize {
    commands.iter().filter(|command| !command.is_patient()).count()
}

/// `left`: how many bytes new events may still take.
fn apply(store: &mut Store, inboxes: &Inboxes, left: &mut u64, command: &mut Command) -> rusqlite::Result<()> {
    match command {
        Command::Enqueue { new, waiter, .. } if *left == 0 => {
            waiter.keep(store.duplicate(new.key)?.ok_or(Error::Full));
        }
        Command::Enqueue { new, sealed, held, waiter } => {
            *left = left.saturating_sub(new.event.body.len() as u64);
            waiter.keep(Ok(store.enqueue(new, sealed.as_ref(), |target| inboxes.in_order(target), held)?));
        }
        Command::Settle(settlement, waiter) => waiter.keep(Ok(store.settle(settlement, UnixMillis::now())?)),
        Command::Reply(event, reply, waiter) => waiter.keep(Ok(store.record_reply(*event, reply)?)),
        Command::Annotate(note, waiter) => waiter.keep(Ok(store.annotate(note)?)),
        Command::Pause(target, paused, waiter) => waiter.keep(Ok(store.pause(target, *paused)?)),
        Command::Sweep { events, sweep, now, waiter } => {
            waiter.keep(Ok(store.sweep(events, sweep, |target| inboxes.in_order(target), *now)?));
        }
        Command::Lease { .. } | Command::Wipe { .. } | Command::Close(_) => {}
    }
    Ok(())
}

/// A stored text that cannot be opened or parsed any more must not stop its target: the delivery is put where people look.
fn unreadable(event: EventId, target: &Arc<str>, number: u32, at: UnixMillis, flaw: &Flaw) -> Settlement {
    tracing::error!(%event, %target, %flaw, "a stored event cannot be read; its delivery is dead");
    let error = Some("the stored event cannot be read".to_owned());
    let attempt = AttemptRecord { number, at, duration: Duration::ZERO, status: None, error, answer: None };
    Settlement {
        event,
        target: Arc::clone(target),
        verdict: Disposition::End(DeliveryState::Dead),
        attempt: Some(attempt),
    }
}

/// Ends the process if the store and our memory of it may have parted.
///
/// After a failed fsync the kernel may have marked the lost pages clean, so that a second one succeeds without them
/// (ext4, XFS, Btrfs): only reading the file anew tells what is there, and that is what a restart does. Nobody who
/// waits is answered, so WeChat pushes again.
fn stop_if_lost(error: &rusqlite::Error) {
    if is_lost(error) {
        tracing::error!(%error, "the disk failed or the store is damaged; ending before anything else is answered");
        telemetry::flush();
        process::exit(EXIT_IO);
    }
}

#[cfg(test)]
#[path = "writer_tests.rs"]
mod tests;
