//! The embedded engine: SQLite in a folder of its own, one writer thread, one commit for all commands that wait.
//!
//! [`Sqlite`] is the handle: it puts commands into the writer's bounded channel and awaits their answers. The writer
//! ([`writer`]) owns all state; operators and metrics read through connections of their own ([`inspect`]). The head of
//! `schema.sql` describes what is stored.

pub(super) mod build_options;
mod capacity;
mod channel;
mod checksum;
mod command;
#[cfg(feature = "postgres")]
pub(super) mod copy;
pub(super) mod damage;
mod dedup_index;
pub(super) mod deep;
mod due;
#[cfg(test)]
mod engine_tests;
mod file_watch;
mod files;
mod held;
pub(super) mod import;
mod inspect;
mod key_table;
mod ledger;
mod lock;
mod log_format;
mod log_watch;
mod removal;
mod reserve_file;
mod resume;
mod retention;
pub(super) mod salvage;
mod schema;
mod scrub;
mod selection;
#[cfg(test)]
mod simulated;
#[cfg(feature = "postgres")]
pub(super) mod spooled;
pub(super) mod startable;
mod statements;
mod store;
pub(super) mod survey;
mod sweep;
mod upkeep;
mod values;
mod wait_clock;
mod write_back;
mod writer;

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::{oneshot, watch};
use tokio::time::Instant;

use self::build_options::SqliteBuild;
use self::capacity::{Capacity, ObstacleWatch};
use self::command::{Waiter, WriterCommand};
use self::dedup_index::ReplayWindow;
use self::import::{ImportStep, SalvagedEvent};
use self::inspect::OldestPending;
pub(super) use self::inspect::SqliteReader;
pub use self::lock::check_owner;
use self::log_watch::LogWatch;
use self::removal::WipeProgress;
use self::reserve_file::ReserveFile;
use self::retention::Retention;
use self::scrub::Scrub;
use self::selection::SweepCandidates;
#[cfg(test)]
pub(crate) use self::simulated::Faults;
use self::store::Store;
use self::upkeep::OpenOptions;
use self::writer::Writer;
use super::inboxes::Inboxes;
use super::key_ring::EventSealer;
use super::lease_table::LeaseTable;
use super::memory::{MemoryBudget, MemoryUsage};
use super::view::Stats;
use super::{
    AttemptNote, DeliveryOrder, EncryptionKeys, Enqueued, Error, GivenReply, Inbox, Leases, NewEvent, Obstacle,
    ReplyState, Settings, Settlement, Sweep, SweepProgress,
};
use crate::clock::{ClockEvidence, UnixMillis};
use crate::event::EventId;
use crate::tuning::Tuning;

/// How many times in a row emptying the log is tried while a reader needs it, and the pause between two tries.
const WIPE_TRIES: usize = 100;
const WIPE_PAUSE: Duration = Duration::from_millis(50);

/// Commands that may wait for the writer; callers beyond that wait to send theirs.
const WAITING_COMMANDS: usize = 1024;

/// After this wait for the writer the store counts as stalled: long before a push is late, and longer than any commit of
/// a disk that works.
const STALLED_AFTER: Duration = Duration::from_secs(2);

/// A handle to the embedded engine; cheap to clone.
#[derive(Clone)]
pub struct Sqlite {
    commands: channel::CommandSender,
    inboxes: Arc<Inboxes>,
    /// Encrypts fresh events, if a key is configured.
    sealer: Option<EventSealer>,
    last_id: Arc<AtomicU64>,
    obstacle: ObstacleWatch,
    memory: Arc<MemoryBudget>,
    replay_window: ReplayWindow,
    folder: Arc<PathBuf>,
    /// How often dead letters were revived: a revived one may be older than the oldest pending delivery in `oldest`.
    revivals: Arc<AtomicU64>,
    /// The oldest pending deliveries that the last statistics found, and the value of `revivals` at that time.
    oldest: Arc<Mutex<(u64, OldestPending)>>,
    /// Whether the writer copies the store, and answers nothing meanwhile.
    is_writing_back: Arc<AtomicBool>,
    /// See [`Tuning::sweep_scan_rows`].
    sweep_scan_rows: usize,
    clock: ClockEvidence,
}

impl Sqlite {
    /// See [`super::Queue::open`].
    pub(super) fn open(
        folder: &Path,
        settings: &Settings,
        tuning: &Tuning,
        on_commit: Box<dyn Fn(Duration) + Send>,
    ) -> Result<Self, Error> {
        let build = SqliteBuild::read()?;
        if let Some(differences) = build.differences() {
            tracing::warn!(version = build.version, differences, "sqlite built with untested options");
        }
        let (sqlite, writer, receiver) = Self::assemble(folder, settings, tuning, ReserveFile::find, on_commit)?;
        let io = |source| Error::io(folder, source);
        // A runtime of its own, for a channel with a timeout: the disk must not block the relay's runtime.
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().map_err(io)?;
        let thread = std::thread::Builder::new().name("queue-writer".to_owned());
        thread.spawn(move || runtime.block_on(writer.run(receiver))).map_err(io)?;
        Ok(sqlite)
    }

    /// The handle, the writer, and the writer's end of the channel between them.
    fn assemble(
        folder: &Path,
        settings: &Settings,
        tuning: &Tuning,
        find_reserve: fn(&Path) -> ReserveFile,
        on_commit: Box<dyn Fn(Duration) + Send>,
    ) -> Result<(Self, Writer, channel::CommandReceiver), Error> {
        let lock = files::claim(folder)?;
        write_back::finish(folder)?;
        damage::prepare(folder)?;
        let mut reserve = find_reserve(folder);
        let mut store = Self::open_store(folder, &settings.encryption_keys, &mut reserve)?;
        let sealer = store.keys.sealer(&settings.encryption_keys);
        let reserve_size = reserve.size();
        store.keep_log_below(reserve_size);
        let replay_window = store.dedup.replay_window.clone();
        replay_window.set(settings.replay_window);
        let last_id = store.newest;
        let inboxes = Arc::new(Inboxes::default());
        let (commands, receiver) = channel::channel(WAITING_COMMANDS);
        let obstacle = ObstacleWatch::default();
        let mut capacity = Capacity::new(reserve, settings.max_size, Arc::clone(&obstacle));
        capacity.measure(&store)?;
        let retention = Retention::new(settings);
        let is_writing_back = Arc::<AtomicBool>::default();
        let open_options = OpenOptions {
            folder: folder.to_owned(),
            encryption_keys: settings.encryption_keys.clone(),
            scrub_pages: tuning.scrub_pages,
            free: reserve_size,
        };
        let memory = MemoryBudget::new(settings.max_memory);
        let (leases, revivals) = (LeaseTable::new(Arc::clone(&memory)), Arc::<AtomicU64>::default());
        let clock = ClockEvidence::default();
        if let Some(stamp) = store.newest_stamp() {
            clock.record_stored(stamp);
        }
        let writer = Writer {
            clock: clock.clone(),
            pulled_in: HashMap::new(),
            store,
            capacity,
            retention,
            scrub: Scrub::new(folder, tuning.scrub_pages),
            inboxes: Arc::clone(&inboxes),
            leases,
            revivals: Arc::clone(&revivals),
            callers: Handle::current(),
            on_commit,
            lock,
            log: LogWatch::new(folder),
            open_options,
            is_writing_back: Arc::clone(&is_writing_back),
            checked: Instant::now(),
        };
        let sqlite = Self {
            commands,
            inboxes,
            sealer,
            last_id: Arc::new(AtomicU64::new(last_id.0)),
            obstacle,
            memory,
            replay_window,
            folder: Arc::new(folder.to_owned()),
            revivals,
            oldest: Arc::default(),
            is_writing_back,
            sweep_scan_rows: tuning.sweep_scan_rows,
            clock,
        };
        Ok((sqlite, writer, receiver))
    }

    /// Opens the store; one that cannot be read is moved aside, and a new one takes its place.
    fn open_store(folder: &Path, keys: &EncryptionKeys, reserve: &mut ReserveFile) -> Result<Store, Error> {
        let open = || -> Result<Store, Error> {
            let store = Store::open(folder)?.with_keys(keys, folder)?;
            store.probe_tables()?;
            Ok(store)
        };
        let mut opened = open();
        // Delivering what is pending takes a little space, which the reserve file releases.
        if matches!(opened, Err(Error::Full)) && reserve.release() {
            opened = open();
        }
        opened.or_else(|error| {
            damage::replace_unreadable(folder, error)?;
            open()
        })
    }

    pub(super) async fn enqueue(&self, new: NewEvent) -> Result<Enqueued, Error> {
        // Encrypted here, not on the writer's thread, which serves all callers.
        let sealed = self.sealer.as_ref().map(|sealer| sealer.seal(&new)).transpose()?;
        self.execute(|waiter| WriterCommand::Enqueue { new, sealed, held: Vec::new(), waiter }).await
    }

    /// Stores events that were read back from a damaged store.
    pub(super) async fn import(&self, events: Vec<SalvagedEvent>) -> Result<ImportStep, Error> {
        let seal = |event: SalvagedEvent| {
            // No later event may get an id that is taken.
            self.last_id.fetch_max(event.new.event.id.0, Ordering::Relaxed);
            let sealed = self.sealer.as_ref().map(|sealer| sealer.seal(&event.new)).transpose()?;
            Ok((event, sealed))
        };
        let events = events.into_iter().map(seal).collect::<Result<Vec<_>, Error>>()?;
        self.execute(|waiter| WriterCommand::Import { events, now: UnixMillis::now(), waiter }).await
    }

    pub(super) async fn lease(&self, target: &str, max: usize, now: UnixMillis) -> Result<Leases, Error> {
        self.execute(|waiter| WriterCommand::Lease { target: target.into(), max, now, waiter }).await
    }

    pub(super) async fn ping(&self) -> Result<(), Error> {
        // A supervisor that ended the process now would end the store.
        if self.is_writing_back.load(Ordering::Relaxed) {
            return Ok(());
        }
        self.execute(WriterCommand::Ping).await
    }

    pub(super) async fn settle(&self, settlement: Settlement) -> Result<Option<ReplyState>, Error> {
        self.execute(|waiter| WriterCommand::Settle(settlement, waiter)).await.map(|settled| settled.reply)
    }

    pub(super) async fn record_reply(
        &self,
        event: EventId,
        reply: String,
        given: Option<GivenReply>,
    ) -> Result<(), Error> {
        self.execute(|waiter| WriterCommand::Reply(event, reply, given.map(Box::new), waiter)).await
    }

    pub(super) async fn annotate(&self, note: AttemptNote) -> Result<(), Error> {
        self.execute(|waiter| WriterCommand::Annotate(note, waiter)).await
    }

    pub(super) fn subscribe(&self, target: Arc<str>, capacity: usize) -> Inbox {
        self.inboxes.open(target, capacity)
    }

    pub(super) fn set_room(&self, target: &str, room: usize) {
        self.inboxes.set_room(target, room);
    }

    pub(super) fn set_accepting(&self, target: &str, accepts: bool) {
        self.inboxes.set_accepting(target, accepts);
    }

    pub(super) fn keep_order(&self, target: &Arc<str>, order: DeliveryOrder) {
        self.inboxes.keep_order(target, order);
    }

    pub(super) fn set_replay_window(&self, window: Duration) {
        self.replay_window.set(window);
    }

    pub(super) fn bound_waits(&self, target: &Arc<str>, longest: Duration) {
        self.inboxes.bound_waits(target, longest);
    }

    pub(super) fn bound_attempts(&self, target: &Arc<str>, longest: Duration) {
        self.inboxes.bound_attempts(target, longest);
    }

    pub(super) fn clock(&self) -> &ClockEvidence {
        &self.clock
    }

    pub(super) fn unsubscribe(&self, target: &str) {
        self.inboxes.close(target);
    }

    /// Finds what to change on a connection of its own; then the writer changes it.
    pub(super) async fn sweep(
        &self,
        sweep: &Arc<Sweep>,
        after: EventId,
        now: UnixMillis,
    ) -> Result<SweepProgress, Error> {
        let SweepCandidates { events, next } = match &sweep.events {
            Some(listed) => SweepCandidates::among(listed, after),
            None => {
                let sweep = Arc::clone(sweep);
                let limit = self.sweep_scan_rows;
                self.read(move |store| store.find_candidates(&sweep, after, limit)).await?
            }
        };
        if events.is_empty() {
            return Ok(SweepProgress { changed: 0, next });
        }
        let sweep = Arc::clone(sweep);
        let stepped = self.execute(|waiter| WriterCommand::Sweep { events, sweep, now, waiter }).await?;
        Ok(SweepProgress { changed: stepped.changed, next })
    }

    /// Works step by step, so that pushes come in between.
    pub(super) async fn wipe(&self) -> Result<(), Error> {
        let (mut blocked, mut is_first) = (0, true);
        while blocked < WIPE_TRIES {
            match self.execute(|waiter| WriterCommand::Wipe { is_first, waiter }).await? {
                WipeProgress::Complete => return Ok(()),
                WipeProgress::Partial => blocked = 0,
                WipeProgress::Blocked => {
                    blocked += 1;
                    tokio::time::sleep(WIPE_PAUSE).await;
                }
            }
            is_first = false;
        }
        Err(Error::Busy)
    }

    pub(super) async fn pause(&self, target: Arc<str>, paused: bool) -> Result<(), Error> {
        self.execute(|waiter| WriterCommand::Pause(target, paused, waiter)).await
    }

    pub(super) async fn paused(&self) -> Result<BTreeSet<String>, Error> {
        self.read(|store| store.paused()).await
    }

    pub(super) async fn stats(&self) -> Result<Stats, Error> {
        let known = Arc::clone(&self.oldest);
        // Pairs with the Release increment in `Writer::follow_up`, which comes after the commit: the read below sees
        // every revival that is counted here.
        let revivals = self.revivals.load(Ordering::Acquire);
        let clock = self.clock.clone();
        let stats = move |store: &SqliteReader| {
            let (as_of, mut oldest) = known.lock().clone();
            if as_of != revivals {
                oldest = OldestPending::default();
            }
            let mut stats = store.stats_since(&mut oldest)?;
            let now = UnixMillis::now();
            for oldest in stats.targets.iter_mut().filter_map(|target| target.oldest_pending.as_mut()) {
                *oldest = (*oldest).min(now.before(clock.age(*oldest)));
            }
            *known.lock() = (revivals, oldest);
            Ok(stats)
        };
        self.read(stats).await
    }

    pub(super) fn memory(&self) -> MemoryUsage {
        self.memory.usage()
    }

    pub(super) fn obstacle(&self) -> Option<Obstacle> {
        if self.commands.is_closed() {
            return Some(Obstacle::Closed);
        }
        // What the writer knows says more: while another program holds a lock, commands wait too.
        let known = *self.obstacle.borrow();
        known.or_else(|| (self.oldest_wait() > STALLED_AFTER).then_some(Obstacle::Stalled))
    }

    /// The store is this process's alone.
    pub(super) fn operator_changes(&self) -> Option<watch::Receiver<i64>> {
        None
    }

    pub(super) fn oldest_wait(&self) -> Duration {
        self.commands.oldest_wait()
    }

    pub(super) async fn close(self) {
        let (done, closed) = oneshot::channel();
        if self.commands.send(WriterCommand::Close(done)).await.is_ok() {
            closed.await.ok();
        }
    }

    pub(super) fn next_id(&self, now: UnixMillis) -> EventId {
        let next = |last| EventId::next(EventId(last), now).0;
        EventId(next(
            self.last_id
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |last| Some(next(last)))
                .unwrap_or_default(),
        ))
    }

    /// Reads on a connection of its own, beside the writer.
    async fn read<T: Send + 'static>(
        &self,
        query: impl FnOnce(&SqliteReader) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let folder = Arc::clone(&self.folder);
        run_blocking(move || query(&SqliteReader::open(&folder)?)).await
    }

    async fn execute<T>(&self, command: impl FnOnce(Waiter<T>) -> WriterCommand) -> Result<T, Error> {
        let (waiter, answer) = Waiter::new();
        self.commands.send(command(waiter)).await?;
        answer.await.map_err(|_| Error::Closed)?
    }
}

/// Runs work on a thread that may block.
///
/// The task is one type for all, and sends the result back: tokio's tasks are compiled once for each type, and there are
/// some fifty callers.
pub(super) async fn run_blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    #[cfg(test)]
    if crate::clock::simulated::is_set() {
        // A result from another thread would arrive at a moment that no seed decides.
        return work();
    }
    let (sender, result) = oneshot::channel();
    let task: Box<dyn FnOnce() + Send> = Box::new(move || drop(sender.send(work())));
    tokio::task::spawn_blocking(task);
    result.await.map_err(|_| Error::Closed)?
}

impl fmt::Debug for Sqlite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sqlite").field("folder", &self.folder).finish_non_exhaustive()
    }
}
