//! The spool: pushes that are answered while PostgreSQL is away, on the disk of this machine, until they are stored there.
//!
//! - It is a store of the embedded engine. Nobody subscribes to its inboxes, so nothing is ever delivered from it.
//! - A push that PostgreSQL has not stored within [`SPOOL_AFTER`] goes to the spool, and from then on each one at once,
//!   until the spool is empty: so pushes keep their order. It is answered when it is flushed here.
//! - What is spooled is stored in the order of its ids, under the same ids, as pushes are: the table `known` decides
//!   which of two replicas' copies becomes the event, and whether an earlier try of ours was stored after all. Then it is
//!   deleted here. A crash in between repeats that, without effect.
//! - An event that cannot be stored stays in the spool, and the others go past it.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{Notify, RwLock, RwLockReadGuard};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};
use tokio_postgres::error::SqlState;
use tokio_util::task::TaskTracker;

use super::append::{Append, BATCH};
use super::engine::Engine;
use super::failure::Failure;
use super::pinned::PinnedSession;
use super::settings;
use crate::event::{Event, EventId};
use crate::queue::inboxes::Inboxes;
use crate::queue::sqlite::Sqlite;
use crate::queue::sqlite::spooled::SpooledEvent;
use crate::queue::{EncryptionKeys, Error, NewEvent, Obstacle, Settings, SpoolUsage};
use crate::telemetry::LogThrottle;
use crate::tuning::Tuning;

/// How long a push waits for PostgreSQL before it goes to the spool: WeChat hangs up after 5 s.
pub(super) const SPOOL_AFTER: Duration = Duration::from_secs(2);
/// How often PostgreSQL is tried while it is away.
const PROBE_PAUSE: Duration = Duration::from_millis(500);
/// How long storing a batch may take.
const TRY: Duration = Duration::from_secs(5);
/// A write, so that neither a primary that was demoted nor one whose standby hangs counts as back.
const PROBE: &str = "SELECT pg_logical_emit_message(true, 'wxrelay', '')::text";

/// The spool of this replica.
pub(super) struct Spool {
    store: Sqlite,
    keys: EncryptionKeys,
    /// Whether pushes go to the spool. Set while `gate` is read, unset while it is written.
    is_open: AtomicBool,
    /// Held for reading while pushes are being spooled: the spool is found empty only when none is.
    gate: RwLock<()>,
    /// Events in the spool, and how many this process has spooled. No other memory is published with them.
    waiting: AtomicU64,
    spooled: AtomicU64,
    opened: Notify,
    /// Notified when the orders of the targets are known: what is stored before has none.
    ordered: Notify,
    /// Events that cannot be stored.
    refused: Mutex<HashSet<EventId>>,
    throttle: LogThrottle,
}

impl Spool {
    /// Opens the spool of these settings, if they have one.
    pub(super) async fn open(
        postgres: &settings::Settings,
        settings: &Settings,
        tuning: &Tuning,
    ) -> Result<Option<Self>, Error> {
        let Some(folder) = &postgres.spool else { return Ok(None) };
        // What is deleted is stored in PostgreSQL, which recognises its retries.
        let settings = Settings { max_size: postgres.spool_size, replay_window: Duration::ZERO, ..settings.clone() };
        let of_spool = |error| Error::Spool(Box::new(error));
        let store = Sqlite::open(folder, &settings, tuning, Box::new(drop)).map_err(of_spool)?;
        let waiting = store.stats().await.map_err(of_spool)?.events;
        if waiting > 0 {
            tracing::warn!(events = waiting, folder = %folder.display(), "spool holds events of an earlier process");
        }
        Ok(Some(Self {
            store,
            keys: settings.encryption_keys,
            is_open: AtomicBool::new(waiting > 0),
            gate: RwLock::default(),
            waiting: AtomicU64::new(waiting),
            spooled: AtomicU64::new(0),
            opened: Notify::new(),
            ordered: Notify::new(),
            refused: Mutex::default(),
            throttle: LogThrottle::default(),
        }))
    }

    /// Whether pushes go to the spool.
    pub(super) fn is_open(&self) -> bool {
        self.is_open.load(Ordering::Acquire)
    }

    /// Lets what it holds be stored: the orders of the targets are known.
    pub(super) fn begin_draining(&self, inboxes: &Inboxes) {
        let (events, targets_in_order) = (self.usage().events, inboxes.count_in_order());
        if events > 0 {
            tracing::info!(events, targets_in_order, "spooled events go to postgresql as soon as it can be used");
        }
        self.ordered.notify_one();
    }

    pub(super) fn usage(&self) -> SpoolUsage {
        SpoolUsage { events: self.waiting.load(Ordering::Relaxed), spooled: self.spooled.load(Ordering::Relaxed) }
    }

    /// Why it refuses pushes, if it does.
    pub(super) fn obstacle(&self) -> Option<Obstacle> {
        self.store.obstacle()
    }

    /// The greatest id that it holds.
    pub(super) fn last_id(&self) -> EventId {
        self.store.last_id()
    }

    /// Lets pushes go to the spool, if they do; what is done under the guard is done before that ends.
    pub(super) async fn enter(&self) -> Option<RwLockReadGuard<'_, ()>> {
        if !self.is_open() {
            return None;
        }
        let gate = self.gate.read().await;
        self.is_open().then_some(gate)
    }

    /// From now on, pushes go to the spool.
    pub(super) async fn begin(&self) -> RwLockReadGuard<'_, ()> {
        let gate = self.gate.read().await;
        if !self.is_open.swap(true, Ordering::AcqRel) {
            tracing::warn!("pushes go to the spool: postgresql does not store them");
            self.opened.notify_one();
        }
        gate
    }

    /// Stores pushes here and answers them.
    pub(super) async fn take(self: &Arc<Self>, batch: Vec<Append>) {
        let mut tasks = JoinSet::new();
        for append in batch {
            let spool = Arc::clone(self);
            tasks.spawn(async move {
                let Append { mut new, answer, .. } = append;
                // Their targets are asked when the event is in PostgreSQL: too late for a reply.
                new.awaited.clear();
                let stored = spool.store.enqueue(new).await;
                if matches!(stored, Ok(crate::queue::Enqueued::Fresh)) {
                    spool.waiting.fetch_add(1, Ordering::Relaxed);
                    spool.spooled.fetch_add(1, Ordering::Relaxed);
                }
                let of_spool = |error| match error {
                    Error::Full => Error::SpoolFull,
                    Error::Closed => Error::Closed,
                    other => Error::Spool(Box::new(other)),
                };
                answer.send(stored.map_err(of_spool)).ok();
            });
        }
        while tasks.join_next().await.is_some() {}
    }

    /// The first events that may be stored.
    async fn page(&self) -> Result<Vec<SpooledEvent>, Error> {
        let refused = self.refused.lock().len();
        let mut page = self.store.spooled(&self.keys, BATCH + refused).await?;
        let refused = self.refused.lock();
        page.retain(|event| !refused.contains(&event.id));
        page.truncate(BATCH);
        Ok(page)
    }

    /// Deletes what is stored in PostgreSQL.
    async fn remove(&self, events: Vec<EventId>) -> Result<(), Error> {
        let removed = self.store.remove_spooled(events).await?;
        self.waiting.fetch_sub(removed.min(self.waiting.load(Ordering::Relaxed)), Ordering::Relaxed);
        Ok(())
    }

    /// Leaves an event in the spool.
    fn refuse(&self, event: EventId, error: &dyn std::fmt::Display) {
        if self.refused.lock().insert(event) {
            tracing::error!(%event, %error, "spooled event cannot be stored in postgresql; it stays in the spool");
        }
    }

    pub(super) async fn close(&self) {
        self.store.clone().close().await;
    }
}

impl Engine {
    /// Stores what the spool holds whenever PostgreSQL can be used, until the end. Joins the replicas first, if this
    /// process has started without PostgreSQL.
    pub(super) async fn drain_spool(self: Arc<Self>, workers: TaskTracker) {
        let Some(spool) = self.spool.clone() else { return };
        let session = PinnedSession::prepared(self.connector.clone(), super::append::prepare);
        tokio::select! {
            () = spool.ordered.notified() => {}
            () = self.stop.cancelled() => return,
        }
        loop {
            let work = async {
                if !spool.is_open() {
                    spool.opened.notified().await;
                }
                if !self.is_joined() {
                    self.join().await?;
                    Self::follow_replicas(&self, &workers);
                }
                self.drain(&spool, &session).await
            };
            let done = tokio::select! {
                done = work => done,
                () = self.stop.cancelled() => return,
            };
            if let Err(error) = done {
                self.note_drain_failure(&spool, &error);
                tokio::select! {
                    () = sleep(PROBE_PAUSE) => {}
                    () = self.stop.cancelled() => return,
                }
            }
        }
    }

    fn note_drain_failure(&self, spool: &Spool, error: &Error) {
        match error {
            Error::Postgres(failure) if failure.is_away() => self.health.note_away(failure),
            _ => {
                if let Error::Postgres(failure) = error
                    && let Some(code) = failure.code()
                {
                    self.health.note_refusal(code);
                }
                if let Some(suppressed) = spool.throttle.allow() {
                    let remedy = error.remedy();
                    tracing::warn!(%error, remedy, held_back = suppressed, "spool not stored in postgresql; trying again");
                }
            }
        }
    }

    /// Stores and deletes all that is in the spool; then pushes go to PostgreSQL again.
    async fn drain(&self, spool: &Spool, session: &PinnedSession) -> Result<(), Error> {
        let (began, mut stored) = (Instant::now(), 0);
        if spool.page().await?.is_empty() {
            session.call(TRY, async |session| session.query(PROBE, &[]).await).await?;
        }
        loop {
            let mut page = spool.page().await?;
            if page.is_empty() {
                let _none_is_being_spooled = spool.gate.write().await;
                page = spool.page().await?;
                if page.is_empty() {
                    spool.is_open.store(false, Ordering::Release);
                    let seconds = began.elapsed().as_secs_f64();
                    tracing::info!(events = stored, seconds, "spool stored in postgresql; pushes go there again");
                    return Ok(());
                }
            }
            stored += self.drain_page(spool, session, page).await?;
        }
    }

    async fn drain_page(
        &self,
        spool: &Spool,
        session: &PinnedSession,
        page: Vec<SpooledEvent>,
    ) -> Result<usize, Error> {
        let mut batch = Vec::with_capacity(page.len());
        for SpooledEvent { id, new } in page {
            match new {
                Ok(new) => batch.push((id, self.spooled_append(new)?)),
                Err(flaw) => spool.refuse(id, &flaw),
            }
        }
        let (ids, appends): (Vec<EventId>, Vec<Append>) = batch.into_iter().unzip();
        match self.store_spooled(session, &appends).await {
            Ok(()) => {}
            Err(Failure::Data { .. } | Failure::Internal(_)) => {
                let mut stored = Vec::new();
                for (id, append) in ids.into_iter().zip(appends) {
                    match self.store_spooled_alone(session, append).await {
                        Ok(()) => stored.push(id),
                        Err(failure @ (Failure::Data { .. } | Failure::Internal(_))) => spool.refuse(id, &failure),
                        Err(failure) => {
                            spool.remove(stored).await?;
                            return Err(failure.into());
                        }
                    }
                }
                let count = stored.len();
                spool.remove(stored).await?;
                return Ok(count);
            }
            Err(failure) => return Err(failure.into()),
        }
        let count = ids.len();
        spool.remove(ids).await?;
        Ok(count)
    }

    async fn store_spooled_alone(&self, session: &PinnedSession, append: Append) -> Result<(), Failure> {
        match self.store_spooled(session, std::slice::from_ref(&append)).await {
            // Another event has its id: that of a replica which also started without PostgreSQL, and had the same slot.
            Err(Failure::Data { code, .. }) if code == SqlState::UNIQUE_VIOLATION => {
                let id = self.next_id(append.new.event.received_at);
                let event = Arc::new(Event { id, ..copy_of(&append.new.event) });
                let append = self.spooled_append(NewEvent { event, ..append.new });
                let append = append.map_err(|error| Failure::Internal(error.to_string()))?;
                self.store_spooled(session, std::slice::from_ref(&append)).await
            }
            outcome => outcome,
        }
    }

    async fn store_spooled(&self, session: &PinnedSession, appends: &[Append]) -> Result<(), Failure> {
        if appends.is_empty() {
            return Ok(());
        }
        let began = Instant::now();
        self.try_append(session, appends, TRY).await?;
        self.note_commit(began.elapsed());
        self.health.note_stored();
        for append in appends {
            for target in &append.new.targets {
                self.wake_at(target, append.new.event.received_at, append.new.event.id);
            }
        }
        Ok(())
    }

    /// A push as it is stored from the spool: held by nobody, as if it had been sent before.
    fn spooled_append(&self, new: NewEvent) -> Result<Append, Error> {
        let sealed = self.sealer().map(|sealer| sealer.seal(&new)).transpose()?;
        let places = new.targets.iter().map(|_| None).collect();
        let (answer, _) = tokio::sync::oneshot::channel();
        Ok(Append {
            new,
            sealed,
            began: Instant::now(),
            deadline: Instant::now() + TRY,
            answer,
            places,
            was_sent: true,
        })
    }
}

fn copy_of(event: &Event) -> Event {
    let Event { id, account, app_id, mode, received_at, query, body, clear, message, traceparent } = event;
    Event {
        id: *id,
        account: Arc::clone(account),
        app_id: Arc::clone(app_id),
        mode: *mode,
        received_at: *received_at,
        query: query.clone(),
        body: body.clone(),
        clear: clear.clone(),
        message: message.clone(),
        traceparent: traceparent.clone(),
    }
}
