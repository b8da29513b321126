//! The engine: what its workers share, and the handle that callers have.
//!
//! A push goes through `append.rs`, an attempt's outcome through `settle.rs`, a lease through `lease.rs`. `replica.rs`
//! keeps this replica's leases alive and frees those of dead ones; `house.rs` folds the tally and deletes what is old.

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use super::append::{Append, BATCH, BUDGET};
use super::connect::Connector;
use super::failure::Failure;
use super::health::Health;
use super::lease::Cursors;
use super::ledger::OldestPending;
use super::observe::{Observation, Observer};
use super::peers::Peers;
use super::pinned::PinnedSession;
use super::replica::Membership;
use super::session::Session;
use super::settings;
use super::settle::Change;
use super::spool::Spool;
use super::targets::TargetNumbers;
use super::values::{event_id, id_of, read_verified};
use super::{append, keys, schema, settle};
use crate::clock::{ClockEvidence, UnixMillis};
use crate::event::EventId;
use crate::queue::inboxes::Inboxes;
use crate::queue::key_ring::{EventSealer, KeyRing};
use crate::queue::lease_table::LeaseTable;
use crate::queue::memory::{MemoryBudget, MemoryUsage};
use crate::queue::{
    AttemptNote, DeliveryOrder, EncryptionKeys, Enqueued, Error, Inbox, NewEvent, Obstacle, ReplyState, Settings,
    Settlement, Share, SpoolUsage,
};
use crate::tuning::Tuning;
use crate::wechat::{Credentials, Query};

/// The workers that store pushes, and those that store outcomes.
pub(super) const APPENDERS: usize = 2;
pub(super) const SETTLERS: usize = 2;
/// How long a statement of an operator, a reader or the housekeeping may take.
pub(super) const PATIENCE: Duration = Duration::from_secs(30);

/// Those of deleted events too, as far as they are still known.
const LAST_ID: &str = "SELECT greatest((SELECT max(id) FROM event), (SELECT max(event) FROM retired_key))";

/// What the workers share.
pub(super) struct Engine {
    pub(super) settings: Settings,
    pub(super) connector: Connector,
    pub(super) tuning: Tuning,
    pub(super) inboxes: Inboxes,
    pub(super) leases: Mutex<LeaseTable>,
    memory: Arc<MemoryBudget>,
    pub(super) targets: TargetNumbers,
    /// The keys that the store names, once it could be asked.
    keys: OnceLock<(KeyRing, Option<EventSealer>)>,
    pub(super) spool: Option<Arc<Spool>>,
    /// Whether this process is one of the replicas, or needs not be.
    joined: AtomicBool,
    /// Whether the dispatcher knows which targets are paused: until then nothing is leased.
    pauses_read: AtomicBool,
    pub(super) clock: ClockEvidence,
    pub(super) health: Health,
    pub(super) observer: Mutex<Observer>,
    /// The number of the last action of an operator, by whichever process.
    pub(super) operator_changes: watch::Sender<i64>,
    pub(super) cursors: Cursors,
    /// By target, the wall clock's offset when its due times were last compared with the clock.
    pub(super) pulled_in: Mutex<HashMap<Arc<str>, i64>>,
    /// Leases, and what else must not wait behind a batch.
    pub(super) leasing: PinnedSession,
    /// Readers and operators.
    pub(super) reading: PinnedSession,
    pub(super) membership: Membership,
    pub(super) peers: Peers,
    pub(super) oldest: Mutex<OldestPending>,
    /// The last id that was given.
    last_id: AtomicU64,
    /// In milliseconds: see [`Settings::replay_window`].
    pub(super) replay_window: AtomicU64,
    on_commit: Mutex<Box<dyn Fn(Duration) + Send>>,
    pub(super) stop: CancellationToken,
}

/// A handle to the engine; cheap to clone.
#[derive(Clone)]
pub struct Postgres {
    pub(super) engine: Arc<Engine>,
    appends: mpsc::Sender<Append>,
    changes: mpsc::Sender<Change>,
    workers: TaskTracker,
    /// Ends the workers with the last handle.
    _guard: Arc<DropGuard>,
}

impl Postgres {
    /// See [`super::super::Queue::open`].
    pub(in crate::queue) async fn open(
        postgres: &settings::Settings,
        settings: &Settings,
        tuning: &Tuning,
        on_commit: Box<dyn Fn(Duration) + Send>,
    ) -> Result<Self, Error> {
        let spool = Spool::open(postgres, settings, tuning).await?.map(Arc::new);
        let connector = Connector::new(postgres);
        let membership = Membership::new(postgres, &settings.encryption_keys, &tuning.replica);
        let handle = Self::start(connector, settings, tuning, membership, spool, on_commit);
        let engine = &handle.engine;
        match (engine.join().await, &engine.spool) {
            (Ok(()), _) => {
                engine.pauses_read.store(true, Ordering::Release);
                engine.follow_replicas(&handle.workers);
            }
            (Err(error), Some(spool)) if error.is_away() => {
                tracing::warn!(%error, remedy = error.remedy(), "started without postgresql; pushes are spooled");
                drop(spool.begin().await);
            }
            (Err(error), _) => {
                handle.close().await;
                return Err(error);
            }
        }
        handle.workers.spawn(handle.engine.clone().drain_spool(handle.workers.clone()));
        Ok(handle)
    }

    /// See [`super::super::Queue::open_for_commands`].
    pub(in crate::queue) async fn open_for_commands(
        postgres: &settings::Settings,
        settings: &Settings,
    ) -> Result<Self, Error> {
        let connector = Connector::new(postgres);
        let session = connector.connect().await.map_err(Failure::from)?;
        schema::expect(&session, postgres).await?;
        let keys = keys::load(&session, &settings.encryption_keys).await?;
        let tuning = Tuning::default();
        let membership = Membership::new(postgres, &EncryptionKeys::default(), &tuning.replica);
        let handle = Self::start(connector, settings, &tuning, membership, None, Box::new(drop));
        handle.engine.use_keys(keys);
        handle.engine.joined.store(true, Ordering::Release);
        Ok(handle)
    }

    /// The engine with the workers that every handle needs.
    fn start(
        connector: Connector,
        settings: &Settings,
        tuning: &Tuning,
        membership: Membership,
        spool: Option<Arc<Spool>>,
        on_commit: Box<dyn Fn(Duration) + Send>,
    ) -> Self {
        let memory = MemoryBudget::new(settings.max_memory);
        let stop = CancellationToken::new();
        let pinned = || PinnedSession::new(connector.clone());
        let engine = Arc::new(Engine {
            settings: settings.clone(),
            tuning: *tuning,
            inboxes: Inboxes::default(),
            leases: Mutex::new(LeaseTable::fenced(Arc::clone(&memory), membership.fence())),
            memory,
            targets: TargetNumbers::default(),
            keys: OnceLock::new(),
            joined: AtomicBool::new(false),
            pauses_read: AtomicBool::new(false),
            clock: ClockEvidence::default(),
            health: Health::new(APPENDERS + SETTLERS),
            observer: Mutex::default(),
            operator_changes: watch::Sender::new(0),
            cursors: Cursors::new(tuning.replica.rescan),
            pulled_in: Mutex::default(),
            leasing: pinned(),
            reading: pinned(),
            oldest: Mutex::default(),
            membership,
            peers: Peers::default(),
            last_id: AtomicU64::new(spool.as_ref().map_or(0, |spool| spool.last_id().0)),
            spool,
            replay_window: AtomicU64::new(0),
            on_commit: Mutex::new(on_commit),
            stop: stop.clone(),
            connector: connector.clone(),
        });
        engine.set_replay_window(settings.replay_window);
        let (appends, append_queue) = mpsc::channel(4 * BATCH);
        let (changes, change_queue) = mpsc::channel(4 * BATCH);
        let (append_queue, change_queue) = (Arc::new(append_queue.into()), Arc::new(change_queue.into()));
        let workers = TaskTracker::new();
        for worker in 0..APPENDERS {
            let session = PinnedSession::prepared(connector.clone(), append::prepare);
            workers.spawn(engine.clone().append_all(Arc::clone(&append_queue), session, worker));
        }
        for worker in APPENDERS..APPENDERS + SETTLERS {
            let session = PinnedSession::prepared(connector.clone(), settle::prepare);
            workers.spawn(engine.clone().settle_all(Arc::clone(&change_queue), session, worker));
        }
        workers.spawn(engine.clone().return_dropped());
        workers.close();
        Self { engine, appends, changes, workers, _guard: Arc::new(stop.drop_guard()) }
    }

    pub(in crate::queue) async fn enqueue(&self, new: NewEvent) -> Result<Enqueued, Error> {
        let sealed = self.engine.sealer().map(|sealer| sealer.seal(&new)).transpose()?;
        let began = Instant::now();
        let deadline = began + BUDGET;
        let (answer, outcome) = oneshot::channel();
        let append = Append { new, sealed, began, deadline, answer, places: Vec::new(), was_sent: false };
        let stored = async {
            self.appends.send(append).await.map_err(|_| Error::Closed)?;
            outcome.await.map_err(|_| Error::Closed)?
        };
        timeout_at(deadline, stored).await.unwrap_or(Err(Error::Away))
    }

    pub(in crate::queue) async fn settle(&self, settlement: Settlement) -> Result<Option<ReplyState>, Error> {
        let number = settlement.attempt.as_ref().map(|attempt| attempt.number);
        let lease = self.engine.leases.lock().lease_of(&settlement.target, settlement.event, number);
        let holder = lease.map(|_| self.engine.incarnation());
        self.change(|answer| Change::Settle { settlement, holder, lease, answer }).await
    }

    pub(in crate::queue) fn note_no_reply(&self, event: EventId) {
        // Without it, a retry elsewhere waits a little longer.
        drop(self.changes.try_send(Change::Reply { event, reply: None, given: None, answer: None }));
    }

    pub(in crate::queue) async fn annotate(&self, note: AttemptNote) -> Result<(), Error> {
        self.change(|answer| Change::Annotate { note, answer }).await
    }

    /// Settles a delivery that this replica holds, whether or not there is a lease.
    pub(super) async fn settle_held(&self, settlement: Settlement) -> Result<Option<ReplyState>, Error> {
        let holder = Some(self.engine.incarnation());
        self.change(|answer| Change::Settle { settlement, holder, lease: None, answer }).await
    }

    pub(super) async fn change<T>(
        &self,
        change: impl FnOnce(oneshot::Sender<Result<T, Error>>) -> Change,
    ) -> Result<T, Error> {
        let (answer, outcome) = oneshot::channel();
        self.changes.send(change(answer)).await.map_err(|_| Error::Closed)?;
        outcome.await.map_err(|_| Error::Closed)?
    }

    pub(in crate::queue) fn subscribe(&self, target: Arc<str>, capacity: usize) -> Inbox {
        self.engine.inboxes.open(target, capacity)
    }

    pub(in crate::queue) fn unsubscribe(&self, target: &str) {
        self.engine.inboxes.close(target);
    }

    pub(in crate::queue) fn set_accepting(&self, target: &str, accepts: bool) {
        self.engine.inboxes.set_accepting(target, accepts);
    }

    pub(in crate::queue) fn set_room(&self, target: &str, room: usize) {
        self.engine.inboxes.set_room(target, room);
    }

    pub(in crate::queue) fn shares(&self) -> watch::Receiver<Share> {
        self.engine.membership.shares()
    }

    pub(in crate::queue) fn keep_order(&self, target: &Arc<str>, order: DeliveryOrder) {
        self.engine.inboxes.keep_order(target, order);
    }

    pub(in crate::queue) fn bound_waits(&self, target: &Arc<str>, longest: Duration) {
        self.engine.inboxes.bound_waits(target, longest);
    }

    pub(in crate::queue) fn bound_attempts(&self, target: &Arc<str>, longest: Duration) {
        self.engine.inboxes.bound_attempts(target, longest);
    }

    pub(in crate::queue) fn set_replay_window(&self, window: Duration) {
        self.engine.set_replay_window(window);
    }

    pub(in crate::queue) fn clock(&self) -> &ClockEvidence {
        &self.engine.clock
    }

    pub(in crate::queue) fn memory(&self) -> MemoryUsage {
        self.engine.memory.usage()
    }

    pub(in crate::queue) fn obstacle(&self) -> Option<Obstacle> {
        let obstacle = self.direct_obstacle();
        match &self.engine.spool {
            // Pushes go to the spool then.
            Some(spool) if !matches!(obstacle, Some(Obstacle::Closed | Obstacle::NoStandby)) => {
                if spool.is_open() {
                    spool.obstacle()
                } else {
                    None
                }
            }
            _ => obstacle,
        }
    }

    pub(in crate::queue) fn begin_draining(&self) {
        if let Some(spool) = &self.engine.spool {
            spool.begin_draining(&self.engine.inboxes);
        }
    }

    pub(in crate::queue) fn spool_usage(&self) -> Option<SpoolUsage> {
        self.engine.spool.as_ref().map(|spool| spool.usage())
    }

    pub(in crate::queue) fn direct_obstacle(&self) -> Option<Obstacle> {
        if self.appends.is_closed() || self.engine.stop.is_cancelled() {
            return Some(Obstacle::Closed);
        }
        if !self.engine.is_joined() {
            return Some(Obstacle::Away);
        }
        let lacks_standby = || self.engine.observer.lock().lacks_standby(self.engine.connector.settings().standby);
        self.engine.health.obstacle().or_else(|| lacks_standby().then_some(Obstacle::NoStandby))
    }

    pub(in crate::queue) fn operator_changes(&self) -> Option<watch::Receiver<i64>> {
        Some(self.engine.operator_changes.subscribe())
    }

    pub(in crate::queue) fn observation(&self) -> Observation {
        self.engine.observation()
    }

    pub(in crate::queue) fn oldest_wait(&self) -> Duration {
        self.engine.health.oldest_wait()
    }

    /// Whether the workers run. PostgreSQL may be away: a restart would not bring it back.
    pub(in crate::queue) async fn ping(&self) -> Result<(), Error> {
        if self.engine.stop.is_cancelled() { Err(Error::Closed) } else { Ok(()) }
    }

    /// Commits what waits, gives all leases back, and leaves.
    pub(in crate::queue) async fn close(self) {
        self.engine.inboxes.close_all();
        self.engine.stop.cancel();
        self.workers.wait().await;
        if let Some(spool) = &self.engine.spool {
            spool.close().await;
        }
        if self.engine.incarnation() != 0 {
            self.engine.leave().await;
        }
    }

    pub(in crate::queue) fn next_id(&self, now: UnixMillis) -> EventId {
        self.engine.next_id(now)
    }
}

/// The greatest id that is stored; ids of this process go on behind it, whatever its clock says.
async fn last_id(session: &Session) -> Result<EventId, Failure> {
    let rows = session.query(LAST_ID, &[]).await?;
    let last: Option<i64> = rows.first().map_or(Ok(None), |row| row.try_get(0))?;
    Ok(event_id(last.unwrap_or(0)))
}

impl fmt::Debug for Postgres {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Postgres").field("schema", &self.engine.connector.settings().schema).finish_non_exhaustive()
    }
}

/// The newest event.
const NEWEST: &str = "SELECT e.id, e.account, e.app_id, e.mode, e.received_at, e.query, e.body, e.clear, \
    e.traceparent, e.key, e.content_key, e.checksum FROM event e ORDER BY e.id DESC LIMIT 1";

impl Engine {
    /// Becomes one of the replicas; what it needs of PostgreSQL before that is made or checked.
    pub(super) async fn join(&self) -> Result<(), Error> {
        let postgres = self.connector.settings();
        let session = self.connector.connect().await.map_err(Failure::from)?;
        schema::prepare(&session, postgres).await?;
        self.use_keys(keys::adopt(&session, &postgres.schema, &self.settings.encryption_keys).await?);
        self.membership.enter(&session).await?;
        self.note_standby(session.facts().has_standby);
        self.catch_up(&session).await?;
        self.joined.store(true, Ordering::Release);
        self.health.note_answer();
        Ok(())
    }

    /// Proves that this replica lives, and keeps house.
    pub(super) fn follow_replicas(self: &Arc<Self>, workers: &TaskTracker) {
        let pinned = || PinnedSession::new(self.connector.clone());
        workers.spawn(self.clone().keep_alive(pinned()));
        workers.spawn(self.clone().follow_silence(pinned()));
        workers.spawn(self.clone().keep_house(pinned()));
        // The pauses, if they are not known yet.
        self.operator_changes.send_if_modified(|_| !self.pauses_read.load(Ordering::Acquire));
    }

    /// Whether PostgreSQL could be used since the start.
    pub(super) fn is_joined(&self) -> bool {
        self.joined.load(Ordering::Acquire)
    }

    /// The targets' pauses are known from now on.
    pub(super) fn note_pauses_read(&self) {
        self.pauses_read.store(true, Ordering::Release);
    }

    fn use_keys(&self, keys: KeyRing) {
        let sealer = keys.sealer(&self.settings.encryption_keys);
        // Set twice only where joining failed in between: the same keys.
        drop(self.keys.set((keys, sealer)));
    }

    /// The keys that the store names.
    pub(super) fn keys(&self) -> &KeyRing {
        static NONE: KeyRing = KeyRing::EMPTY;
        self.keys.get().map_or(&NONE, |(keys, _)| keys)
    }

    pub(super) fn sealer(&self) -> Option<&EventSealer> {
        self.keys.get().and_then(|(_, sealer)| sealer.as_ref())
    }

    /// See [`super::super::Queue::next_id`].
    pub(super) fn next_id(&self, now: UnixMillis) -> EventId {
        let slot = self.membership.slot();
        let next = |last| Some(EventId::next_in_slot(EventId(last), now, slot).0);
        let last = self.last_id.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next).unwrap_or_default();
        EventId::next_in_slot(EventId(last), now, slot)
    }

    /// Learns what was stored before this start, and frees what nobody holds any more.
    async fn catch_up(&self, session: &Session) -> Result<(), Failure> {
        self.free_orphans(session).await?;
        self.last_id.fetch_max(last_id(session).await?.0, Ordering::Relaxed);
        if let Some(stamp) = self.newest_stamp(session).await? {
            self.clock.record_stored(stamp);
        }
        Ok(())
    }

    /// The signed timestamp of the newest event, in seconds, if it can be read.
    async fn newest_stamp(&self, session: &Session) -> Result<Option<i64>, Failure> {
        let rows = session.query(NEWEST, &[]).await?;
        let Some(row) = rows.first() else { return Ok(None) };
        let Ok(event) = read_verified(row, 0, self.keys())? else { return Ok(None) };
        let query = Query::parse(&event.query).ok();
        Ok(query.and_then(|query| Credentials::timestamp(&query).ok()))
    }

    pub(super) fn incarnation(&self) -> i32 {
        self.membership.incarnation()
    }

    /// Whether this replica may have been declared dead: it begins nothing.
    pub(super) fn is_fenced(&self) -> bool {
        self.membership.fence().is_up() || !self.pauses_read.load(Ordering::Acquire)
    }

    /// Something may be due anywhere.
    pub(super) fn wake(&self, target: &str) {
        self.cursors.reset(target);
        self.inboxes.wake(target);
    }

    /// This delivery is free, and due then.
    pub(super) fn wake_at(&self, target: &str, due: UnixMillis, event: EventId) {
        self.cursors.lower(target, (due.0, id_of(event)));
        self.inboxes.wake(target);
    }

    pub(super) fn note_commit(&self, took: Duration) {
        (self.on_commit.lock())(took);
    }

    fn set_replay_window(&self, window: Duration) {
        // A number of its own: no other memory is published with it.
        self.replay_window.store(u64::try_from(window.as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }
}
