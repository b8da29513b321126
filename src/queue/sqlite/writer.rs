//! The one writer: receives the waiting commands, commits them as one transaction, then answers and hands out leases.
//!
//! - One commit serves all commands of a batch, so the rate of commits does not bound the rate of pushes. Under load
//!   some twenty pushes share one, at about 15 µs of this thread for each (`docs/performance.md`). The simple version,
//!   a commit for each push, costs a flush for each.
//! - When [`BATCH_TRIGGER`] pushes came during one commit, the next batch waits up to [`MAX_PUSH_WAIT`] for
//!   [`PUSH_BATCH_ENOUGH`], which halves the commits. A push that comes alone waits for nothing.
//! - No caller is answered before the commit that holds its change.
//! - Leases are granted after the commit, from the state that it left, so that no lease meets a half-recorded
//!   settlement.
//! - After a failed flush nothing is answered any more; the process ends.

use std::collections::HashMap;
use std::mem;
use std::process;
use std::slice;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::time::{Instant, timeout_at};

use super::capacity::{Capacity, Pressure};
use super::channel::CommandReceiver;
use super::command::WriterCommand;
use super::file_watch::LostFile;
use super::lock::StoreLock;
use super::log_watch::LogWatch;
use super::removal::WipeProgress;
use super::retention::Retention;
use super::scrub::Scrub;
use super::statements::DueDelivery;
use super::store::Store;
use super::upkeep::OpenOptions;
use crate::clock::{ClockEvidence, UnixMillis};
use crate::queue::error::{is_busy, is_damaged, is_lost};
use crate::queue::inboxes::Inboxes;
use crate::queue::lease_table::LeaseTable;
use crate::queue::stored::unreadable;
use crate::queue::{Disposition, EXIT_IO, Enqueued, Error, Lease, Leases, NewEvent};
use crate::telemetry;

/// The most commands of one transaction: bounds how long the first of them waits for the last.
const BATCH: usize = 256;
/// How long deferrable commands alone wait for more, and how many are enough. An urgent command ends the wait at once.
const MAX_WAIT: Duration = Duration::from_millis(5);
const BATCH_ENOUGH: usize = 64;
/// If this many urgent commands came during one commit, more will come soon: wait for them up to `MAX_PUSH_WAIT`, or
/// until there are `PUSH_BATCH_ENOUGH`.
const BATCH_TRIGGER: usize = 8;
const MAX_PUSH_WAIT: Duration = Duration::from_millis(1);
const PUSH_BATCH_ENOUGH: usize = 32;
/// How long a lease that was dropped unsettled remains outstanding at most, while the writer is idle.
pub(super) const TICK: Duration = Duration::from_secs(1);

/// The writer's thread and all it owns.
pub(super) struct Writer {
    pub(super) clock: ClockEvidence,
    /// By target, the wall clock's offset when its due times were last compared with the clock; see `due.rs`.
    pub(super) pulled_in: HashMap<Arc<str>, i64>,
    pub(super) store: Store,
    pub(super) capacity: Capacity,
    pub(super) retention: Retention,
    pub(super) scrub: Scrub,
    pub(super) inboxes: Arc<Inboxes>,
    pub(super) leases: LeaseTable,
    /// How often dead letters were revived, for statistics.
    pub(super) revivals: Arc<AtomicU64>,
    /// The callers' runtime, on which answers are sent.
    pub(super) callers: Handle,
    /// Called with the duration of each commit.
    pub(super) on_commit: Box<dyn Fn(Duration) + Send>,
    /// Held until the store is closed.
    pub(super) lock: StoreLock,
    /// Whether readers let the log be written back.
    pub(super) log: LogWatch,
    pub(super) open_options: OpenOptions,
    /// Whether the writer is busy with writing the store back, which takes long for a large one.
    pub(super) is_writing_back: Arc<AtomicBool>,
    /// When the store's files were last looked for.
    pub(super) checked: Instant,
}

impl Writer {
    /// Runs until all senders are dropped or `Close` comes, and everything sent before that is committed.
    ///
    /// Blocks between its awaits: it is the only task of its runtime.
    pub(super) async fn run(mut self, mut commands: CommandReceiver) {
        let mut batch = Vec::with_capacity(BATCH);
        let mut closers = Vec::new();
        while self.fill_batch(&mut batch, &mut commands).await {
            commands.begin_batch();
            if !batch.is_empty() {
                self.retention.note_activity();
            }
            for target in self.leases.reclaim_dropped() {
                self.inboxes.wake(&target);
            }
            let (writes, others): (Vec<_>, Vec<_>) = batch.drain(..).partition(WriterCommand::writes);
            self.commit(writes);
            for command in others {
                match command {
                    WriterCommand::Lease { target, max, now, waiter } => waiter.answer(self.lease(&target, max, now)),
                    WriterCommand::Unanswered { since, waiter } => {
                        waiter.answer(self.store.list_unanswered(since).map_err(Error::from))
                    }
                    WriterCommand::Held(command, waiter) => {
                        waiter.answer(self.store.find_held(&command).map_err(Error::from));
                    }
                    WriterCommand::LeaseAwaited { event, awaited, waiter } => {
                        waiter.answer(self.lease_awaited(&event, awaited).map_err(Error::from));
                    }
                    WriterCommand::Wipe { is_first, waiter } => waiter.answer(self.wipe(is_first)),
                    WriterCommand::Ping(waiter) => waiter.answer(Ok(())),
                    WriterCommand::Close(done) => {
                        commands.close();
                        closers.push(done);
                    }
                    WriterCommand::Enqueue { .. }
                    | WriterCommand::Settle(..)
                    | WriterCommand::Reply(..)
                    | WriterCommand::Annotate(..)
                    | WriterCommand::Pause(..)
                    | WriterCommand::Sweep { .. }
                    | WriterCommand::Import { .. } => {}
                }
            }
            commands.finish_batch();
            if self.retention.due(self.capacity.pressure()) <= Instant::now() {
                self.delete_old();
            }
            self.keep_log_small();
            if self.capacity.probe_due().is_some_and(|due| due <= Instant::now()) {
                self.probe();
            }
            self.check_files_if_due();
        }
        self.inboxes.close_all();
        // The last chance: the close releases files that have no name any more.
        self.keep_files();
        if let Err(error) = self.store.close() {
            stop_if_lost(None, &error);
            tracing::warn!(%error, "write-ahead log not written back at close; the next start does it");
        }
        drop(self.lock);
        for done in closers {
            done.send(()).ok();
        }
    }

    /// Waits for work, but not for long, as there may be housekeeping to do; false at the end.
    async fn fill_batch(&mut self, batch: &mut Vec<WriterCommand>, commands: &mut CommandReceiver) -> bool {
        let tick = Instant::now() + TICK;
        let due = [self.capacity.probe_due(), self.log.retry_at()].into_iter().flatten();
        let end = due.fold(tick, Instant::min).min(self.retention.due(self.capacity.pressure()));
        match timeout_at(end, commands.recv_batch(batch, BATCH)).await {
            Err(_) => return true,
            Ok(0) => return false,
            Ok(_) => {}
        }
        let urgent = count_urgent(batch);
        if (1..BATCH_TRIGGER).contains(&urgent) {
            return true;
        }
        let has_urgent = urgent > 0;
        let (wait, enough) = if has_urgent { (MAX_PUSH_WAIT, PUSH_BATCH_ENOUGH) } else { (MAX_WAIT, BATCH_ENOUGH) };
        commands.gather(batch, enough, !has_urgent, Instant::now() + wait).await;
        true
    }

    /// Commits the commands together; if that fails, each alone, so that one cannot fail another.
    fn commit(&mut self, mut commands: Vec<WriterCommand>) {
        if commands.is_empty() {
            return;
        }
        let Err(error) = self.transact(&mut commands) else { return self.finish(commands) };
        let has_released = self.capacity.note_failure(&error);
        match error {
            // The released space is for all commands but new events, which are refused from now on.
            _ if has_released => self.commit(commands),
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
                            self.capacity.note_failure(&error);
                            command.fail(error.into());
                        }
                    }
                }
            }
        }
    }

    fn transact(&mut self, commands: &mut [WriterCommand]) -> rusqlite::Result<()> {
        // Before too: the log's next frames would hide that it was truncated.
        self.keep_files();
        let start = Instant::now();
        let inboxes = &self.inboxes;
        let done = self.capacity.remaining(&self.store).and_then(|mut remaining| {
            let work = |store: &mut Store| {
                commands.iter_mut().try_for_each(|command| apply(store, inboxes, &mut remaining, command))
            };
            self.store.transact(work)?;
            self.capacity.set_remaining(remaining);
            Ok(())
        });
        match &done {
            Ok(()) => {
                (self.on_commit)(start.elapsed());
                self.keep_files();
            }
            Err(error) => stop_if_lost(Some(&self.store), error),
        }
        done
    }

    /// Does what follows from committed changes, and answers.
    ///
    /// One task in the callers' runtime sends all answers. Sent one by one from here (the simple version), each could
    /// wake a thread that takes the processor from this one for a single answer.
    fn finish(&mut self, mut commands: Vec<WriterCommand>) {
        commands.iter_mut().for_each(|command| self.follow_up(command));
        self.callers.spawn(async move { commands.into_iter().for_each(WriterCommand::answer_kept) });
    }

    /// Does what follows from a committed change.
    fn follow_up(&mut self, command: &mut WriterCommand) {
        match command {
            WriterCommand::Enqueue { new, held, waiter, .. } => match waiter.kept() {
                Some(Ok(Enqueued::Fresh)) => self.hand_over(new, held),
                Some(Err(Error::Full)) => self.capacity.note_refusal(),
                Some(Ok(Enqueued::Duplicate { .. }) | Err(_)) | None => {}
            },
            WriterCommand::Settle(settlement, waiter) => {
                self.leases.end(&settlement.target, settlement.event);
                // Also if the target no longer keeps order: deliveries that were held until then are still released one
                // by one.
                let released = waiter.kept_ok().is_some_and(|settled| settled.released);
                if released || matches!(settlement.disposition, Disposition::Retry(_) | Disposition::Postpone(_)) {
                    self.inboxes.wake(&settlement.target);
                }
            }
            WriterCommand::Sweep { waiter, .. } => {
                if let Some(done) = waiter.kept_ok() {
                    // Pairs with the Acquire load in `Sqlite::stats`.
                    self.revivals.fetch_add(u64::from(!done.touched.is_empty()), Ordering::Release);
                    done.revoked.iter().for_each(|(target, event)| self.leases.revoke(target, *event));
                    done.touched.iter().for_each(|target| self.inboxes.wake(target));
                }
            }
            WriterCommand::Import { waiter, .. } => {
                if let Some(done) = waiter.kept_ok() {
                    self.revivals.fetch_add(u64::from(!done.touched.is_empty()), Ordering::Release);
                    done.revoked.iter().for_each(|(target, event)| self.leases.revoke(target, *event));
                    done.touched.iter().for_each(|target| self.inboxes.wake(target));
                }
            }
            WriterCommand::Reply(..)
            | WriterCommand::Held(..)
            | WriterCommand::Annotate(..)
            | WriterCommand::Pause(..)
            | WriterCommand::Lease { .. }
            | WriterCommand::Unanswered { .. }
            | WriterCommand::LeaseAwaited { .. }
            | WriterCommand::Wipe { .. }
            | WriterCommand::Ping(_)
            | WriterCommand::Close(_) => {}
        }
    }

    /// Gives the first leases of a fresh event to its targets' inboxes; what does not fit there waits in the store.
    fn hand_over(&mut self, new: &mut NewEvent, held: &[Arc<str>]) {
        for target in mem::take(&mut new.targets).into_iter().filter(|target| !held.contains(target)) {
            let awaited = new.awaited.iter().position(|(awaited, _)| *awaited == target);
            let reply = awaited.map(|place| new.awaited.swap_remove(place).1);
            let Some(guard) = self.leases.grant(&target, &new.event, 1, reply.is_some()) else {
                self.inboxes.wake(&target);
                continue;
            };
            let lease = Lease { event: Arc::clone(&new.event), target, attempt: 1, failures: 0, reply, guard };
            if let Some(lease) = self.inboxes.offer(lease) {
                self.leases.end(&lease.target, lease.event.id);
                self.inboxes.wake(&lease.target);
            }
        }
    }

    fn lease(&mut self, target: &Arc<str>, max: usize, now: UnixMillis) -> Result<Leases, Error> {
        let leased = self.lease_due(target, max, now);
        checked(&self.store, leased)
    }

    fn lease_due(&mut self, target: &Arc<str>, max: usize, now: UnixMillis) -> rusqlite::Result<Leases> {
        let mut leases = Leases::default();
        let Some(number) = self.store.known_number(target)? else { return Ok(leases) };
        // The lease may have waited for the disk, and what was stored meanwhile is not late.
        self.pull_in_due(target, number, UnixMillis::now())?;
        let mut unread = Vec::new();
        // One read transaction: without it SQLite takes and releases its locks for each row.
        let reading = self.store.connection.unchecked_transaction()?;
        // One more than could be leased or skipped, so that the next due time is known too.
        let limit = max.saturating_add(self.leases.count(target)).saturating_add(1);
        for DueDelivery { event: id, due } in self.store.list_due(number, limit)? {
            if self.leases.contains(target, id) {
                continue;
            }
            if due > now || leases.due.len() == max {
                leases.next_due = Some(due);
                break;
            }
            if self.leases.is_short_of_memory(target) {
                leases.is_short_of_memory = true;
                break;
            }
            let loaded = self.store.load_event(id, number)?;
            let attempt = loaded.attempts + 1;
            let event = match loaded.event {
                Ok(event) => event,
                Err(flaw) => {
                    unread.push(unreadable(id, target, attempt, now, &flaw));
                    // This read may yield no lease although more deliveries are due.
                    leases.next_due = Some(now);
                    continue;
                }
            };
            let Some(guard) = self.leases.grant(target, &event, attempt, false) else {
                leases.is_short_of_memory = true;
                break;
            };
            let (event, target) = (Arc::new(event), Arc::clone(target));
            leases.due.push(Lease { event, target, attempt, failures: loaded.failures, reply: None, guard });
        }
        reading.finish()?;
        if !unread.is_empty() {
            self.store
                .transact(|store| unread.iter().try_for_each(|settlement| store.settle(settlement, now).map(drop)))?;
        }
        Ok(leases)
    }

    fn delete_old(&mut self) {
        let pressure = self.capacity.pressure();
        // Without pressure only age decides: nothing is old enough while the clock is not believed.
        let by_age = pressure == Pressure::None;
        let now = if by_age && self.clock.holds_age() { UnixMillis(0) } else { self.clock.earliest() };
        let done = self.retention.step(&mut self.store, now, pressure);
        match done.and_then(|has_shrunk| self.capacity.measure(&self.store).map(|()| has_shrunk)) {
            Ok(true) => self.capacity.probe_soon(),
            Ok(false) => {}
            Err(error) => {
                stop_if_lost(Some(&self.store), &error);
                self.capacity.note_failure(&error);
                if let Some(suppressed) = self.retention.failure_throttle.allow() {
                    tracing::warn!(%error, held_back = suppressed, "old events not deleted; trying again later");
                }
            }
        }
    }

    fn wipe(&mut self, is_first: bool) -> Result<WipeProgress, Error> {
        if is_first {
            self.scrub.restart();
        }
        self.scrub.step(&mut self.store).map_err(|error| {
            stop_if_lost(Some(&self.store), &error);
            self.capacity.note_failure(&error);
            error.into()
        })
    }

    fn probe(&mut self) {
        if let Err(error) = self.capacity.probe(&self.store) {
            stop_if_lost(Some(&self.store), &error);
        }
    }
}

/// The result of a read; one that shows a damaged store ends the process.
fn checked<T>(store: &Store, read: rusqlite::Result<T>) -> Result<T, Error> {
    read.map_err(|error| {
        stop_if_lost(Some(store), &error);
        error.into()
    })
}

/// How many of the commands are urgent.
fn count_urgent(commands: &[WriterCommand]) -> usize {
    commands.iter().filter(|command| !command.is_deferrable()).count()
}

/// `remaining`: how many bytes new events may still take.
fn apply(
    store: &mut Store,
    inboxes: &Inboxes,
    remaining: &mut u64,
    command: &mut WriterCommand,
) -> rusqlite::Result<()> {
    match command {
        WriterCommand::Enqueue { new, waiter, .. } if *remaining == 0 => {
            waiter.keep(store.find_duplicate(new.key)?.ok_or(Error::Full));
        }
        WriterCommand::Enqueue { new, sealed, held, waiter } => {
            *remaining = remaining.saturating_sub(new.event.body.len() as u64);
            waiter.keep(Ok(store.enqueue(new, sealed.as_ref(), |target| inboxes.in_order(target), held)?));
        }
        WriterCommand::Settle(settlement, waiter) => waiter.keep(Ok(store.settle(settlement, UnixMillis::now())?)),
        WriterCommand::Reply(event, reply, given, waiter) => {
            store.record_reply(*event, reply)?;
            if let Some(given) = given {
                store.give(given, UnixMillis::now())?;
            }
            waiter.keep(Ok(()));
        }
        WriterCommand::Held(command, waiter) => waiter.keep(Ok(store.change_held(command)?)),
        WriterCommand::Annotate(note, waiter) => waiter.keep(Ok(store.annotate(note)?)),
        WriterCommand::Pause(target, paused, waiter) => waiter.keep(Ok(store.pause(target, *paused)?)),
        WriterCommand::Sweep { events, sweep, now, waiter } => {
            waiter.keep(Ok(store.sweep(events, sweep, |target| inboxes.in_order(target), *now)?));
        }
        WriterCommand::Import { waiter, .. } if *remaining == 0 => waiter.keep(Err(Error::Full)),
        WriterCommand::Import { events, now, waiter } => {
            let bytes: usize = events.iter().map(|(event, _)| event.new.event.body.len()).sum();
            *remaining = remaining.saturating_sub(bytes as u64);
            waiter.keep(Ok(store.import(events, |target| inboxes.in_order(target), *now)?));
        }
        WriterCommand::Lease { .. }
        | WriterCommand::Unanswered { .. }
        | WriterCommand::LeaseAwaited { .. }
        | WriterCommand::Wipe { .. }
        | WriterCommand::Ping(_)
        | WriterCommand::Close(_) => {}
    }
    Ok(())
}

/// Ends the process if memory and store may differ.
///
/// After a failed fsync the kernel may have marked the lost pages clean, so that a second one succeeds without them
/// (ext4, XFS, Btrfs): only reading the file again shows what is there, and that is what a restart does. No waiting
/// caller is answered, so WeChat pushes again.
pub(super) fn stop_if_lost(store: Option<&Store>, error: &rusqlite::Error) {
    if is_lost(error) {
        if let Some(store) = store.filter(|_| is_damaged(error)) {
            // A read may find a file truncated before the next look at the files does.
            if let Some(LostFile { path, fault }) = store.lost_file() {
                tracing::error!(path = %path.display(), %fault, "store file lost while open");
            }
            store.note_damage();
        }
        tracing::error!(%error, "disk failed or store damaged; exiting before anything else is answered");
        telemetry::flush();
        process::exit(EXIT_IO.into());
    }
}

#[cfg(test)]
#[path = "writer_tests.rs"]
mod tests;
