//! The durable queue: events, their deliveries, and the ledger over both.
//!
//! [`Queue`] is a closed set of engines. The contract that each keeps, and that `conformance.rs` checks:
//!
//! - [`Queue::enqueue`] returns `Fresh` only when the event and all its deliveries are on stable storage, and
//!   `Duplicate` when an event of the same [`ContentKey`] already is.
//! - A delivery is `pending` until it is settled into one of the other states, or an operator's [`Sweep`] cancels it;
//!   nothing else ends it. Only a sweep makes an ended delivery pending again, adds a delivery to an event, or deletes
//!   one that is pending or dead, with its event.
//! - A [`Lease`] is the right to make one attempt. At most one lease of a delivery is outstanding at a time; it ends
//!   with [`Queue::settle`], when it is dropped, or with the process that holds it. A fresh event's first leases go to
//!   the [`Inbox`] of their target in memory, before [`Queue::enqueue`] returns. [`Queue::lease`] returns the
//!   deliveries that do not fit there, and those that a retry or a crash leaves pending.
//! - The events of all leases together take no more memory than [`Settings::max_memory`]; `memory.rs` has the shares.
//!
//! The relay owns schedules and retry rules; the engine owns durability, dedup and leases. This split lets a
//! distributed engine, with consumers on several machines, become another variant.

#![warn(missing_docs)]
#![cfg_attr(
    not(feature = "postgres"),
    allow(dead_code, irrefutable_let_patterns, unused_variables, reason = "what engines share; SQLite needs a part")
)]

mod checksum;
mod clock;
mod columns;
#[cfg(test)]
mod conformance;
#[cfg(feature = "postgres")]
pub mod copy;
mod encryption;
#[cfg(test)]
mod encryption_tests;
mod error;
#[cfg(test)]
mod fixture;
#[cfg(test)]
mod forget_tests;
mod held;
#[cfg(test)]
mod held_tests;
mod inboxes;
mod inspect;
mod kept;
mod key_ring;
mod lease;
mod lease_table;
mod memory;
#[cfg(test)]
pub(crate) mod model;
#[cfg(test)]
mod model_tests;
mod obstacle;
#[cfg(test)]
mod order_tests;
mod persons;
#[cfg(feature = "postgres")]
pub mod postgres;
mod push_tries;
mod read_back;
mod replicas;
mod replies;
mod resume;
mod settings;
mod settlement;
mod share;
mod sqlite;
mod stored;
mod sweep;
#[cfg(test)]
mod sweep_tests;
pub mod view;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use crate::clock::UnixMillis;
use crate::event::{ContentKey, Event, EventId};
use crate::tuning::Tuning;

pub use self::encryption::{DecryptError, EncryptionKey, EncryptionKeys, Fingerprint};
pub use self::error::Error;
pub use self::held::{
    GivenReply, HeldQuery, HeldReply, HeldState, LateReply, MAX_HELD, ReplyState, ReplyUse, SettledReply, TakeReply,
};
pub use self::inspect::{Inspect, Spools};
pub use self::key_ring::EncryptionStatus;
pub use self::lease::{Inbox, Lease, Leases};
pub use self::memory::MemoryUsage;
pub use self::obstacle::Obstacle;
pub use self::push_tries::PushTries;
pub use self::read_back::{Flaw, OpenDelivery, StoredEvent, StoredPage};
pub use self::replicas::{Replica, ReplicaFacts, Seen};
pub use self::replies::{AwaitedReply, Known, OfferedReply, ReplyChoice, ReplyOffer};
pub use self::resume::Unanswered;
pub use self::settings::{Engine, Settings, UNLIMITED};
pub use self::settlement::{AttemptNote, AttemptRecord, DeliveryState, Disposition, Settlement};
pub use self::share::Share;
#[cfg(test)]
pub(crate) use self::sqlite::Faults;
pub use self::sqlite::build_options::SqliteBuild;
pub use self::sqlite::damage::find_damage;
pub use self::sqlite::damage::quarantine::{DamageReason, DamagedStore, MoveRecord, list_damaged};
pub use self::sqlite::salvage::{Salvage, SalvageFlaw, SalvageReport, SalvagedStore, run as salvage};
pub use self::sqlite::survey::{LockHolder, SCHEMA, Survey, survey};
pub use self::sqlite::{Sqlite, check_owner};
pub use self::sweep::{Sweep, SweepAction, SweepProgress};
pub use self::view::{Audit, DeadLetter, EventDetail, EventFilter, EventSummary, Stats};

/// The exit code of a process whose store failed or is damaged: `EX_IOERR` of sysexits.h.
pub const EXIT_IO: u8 = 74;

/// The durable queue; cheap to clone.
#[derive(Clone, Debug)]
pub enum Queue {
    /// SQLite, in this process.
    Embedded(Sqlite),
    /// PostgreSQL, which several processes may share.
    #[cfg(feature = "postgres")]
    Postgres(postgres::Postgres),
    /// A store in memory, which the replicas of a simulation share.
    #[cfg(test)]
    Model(model::ModelEngine),
}

/// Calls a method of whichever engine it is.
macro_rules! on_engine {
    ($queue:expr, $engine:ident => $call:expr) => {
        match $queue {
            $crate::queue::Queue::Embedded($engine) => $call,
            #[cfg(feature = "postgres")]
            $crate::queue::Queue::Postgres($engine) => $call,
            #[cfg(test)]
            $crate::queue::Queue::Model($engine) => $call,
        }
    };
}
pub(super) use on_engine;

/// What PostgreSQL alone has; the other engines answer alike.
macro_rules! on_postgres {
    ($queue:expr, $engine:ident => $call:expr, else $other:expr) => {
        match $queue {
            #[cfg(feature = "postgres")]
            Queue::Postgres($engine) => $call,
            Queue::Embedded(_) => $other,
            #[cfg(test)]
            Queue::Model(_) => $other,
        }
    };
}
use on_postgres;

impl Queue {
    /// Opens the queue, and creates it if it does not exist. `on_commit` is called with the duration of each commit.
    ///
    /// Call it in the runtime of the callers: a task of that runtime sends the answers.
    ///
    /// # Errors
    /// If the store is in use by another process, is on a network filesystem, was made by a newer release or by another
    /// program, holds events that are encrypted with a key not configured, or cannot be opened.
    pub async fn open(settings: &Settings, on_commit: impl Fn(Duration) + Send + 'static) -> Result<Self, Error> {
        Self::open_tuned(settings, &Tuning::default(), on_commit).await
    }

    /// Checks that the store can be opened, without opening or changing it; a running relay may have it open.
    ///
    /// # Errors
    /// The errors of [`Queue::open`] that a restart does not fix.
    pub fn check(settings: &Settings) -> Result<(), Error> {
        match &settings.engine {
            Engine::Embedded { path } => sqlite::startable::check(path, &settings.encryption_keys),
            // Only a connection shows more: `check --online` and the start.
            #[cfg(feature = "postgres")]
            Engine::Postgres(postgres) => postgres.spool.as_ref().map_or(Ok(()), |path| {
                let checked = sqlite::startable::check(path, &settings.encryption_keys);
                checked.map_err(|error| Error::Spool(Box::new(error)))
            }),
        }
    }

    /// Opens the queue for a command: it changes what is stored, and delivers nothing. `None` if a relay has the store
    /// open, and only it may change it.
    ///
    /// # Errors
    /// As for [`Queue::open`].
    pub async fn open_for_commands(settings: &Settings) -> Result<Option<Self>, Error> {
        match &settings.engine {
            Engine::Embedded { .. } => match Self::open(settings, drop).await {
                Ok(queue) => Ok(Some(queue)),
                Err(Error::Locked { .. }) => Ok(None),
                Err(error) => Err(error),
            },
            #[cfg(feature = "postgres")]
            Engine::Postgres(postgres) => {
                postgres::Postgres::open_for_commands(postgres, settings).await.map(Self::Postgres).map(Some)
            }
        }
    }

    /// As [`Queue::open`], with other sizes than the shipped ones.
    ///
    /// # Errors
    /// As for [`Queue::open`].
    pub async fn open_tuned(
        settings: &Settings,
        tuning: &Tuning,
        on_commit: impl Fn(Duration) + Send + 'static,
    ) -> Result<Self, Error> {
        match &settings.engine {
            Engine::Embedded { path } => Sqlite::open(path, settings, tuning, Box::new(on_commit)).map(Self::Embedded),
            #[cfg(feature = "postgres")]
            Engine::Postgres(postgres) => {
                postgres::Postgres::open(postgres, settings, tuning, Box::new(on_commit)).await.map(Self::Postgres)
            }
        }
    }

    /// Opens the queue as a part of a simulation: all its work is done by tasks of the runtime that it is opened in.
    #[cfg(test)]
    pub(crate) fn simulated(
        settings: &Settings,
        on_commit: impl Fn(Duration) + Send + 'static,
        faults: Faults,
    ) -> Result<Self, Error> {
        let path = settings.folder().expect("simulations are of the embedded engine");
        Sqlite::simulated(path, settings, Box::new(on_commit), faults).map(Self::Embedded)
    }

    /// Opens a replica of a cluster in memory, as a part of a simulation.
    #[cfg(test)]
    pub(crate) async fn model(
        store: &Arc<model::ModelStore>,
        link: Arc<model::StoreLink>,
        tuning: &Tuning,
    ) -> Result<Self, Error> {
        model::ModelEngine::open(store, link, 64 << 20, tuning).await.map(Self::Model)
    }

    /// Stores a fresh event with its deliveries; returns when they are on stable storage.
    ///
    /// Waits while the channel to the writer is full. If this future is dropped, the event may or may not be stored.
    ///
    /// # Errors
    /// [`Error::Full`] when the embedded engine has no space, on the disk or within `max_size`: enqueue again later.
    /// Whatever the error, the event is not stored.
    pub async fn enqueue(&self, new: NewEvent) -> Result<Enqueued, Error> {
        on_engine!(self, engine => engine.enqueue(new).await)
    }

    /// Leases up to `max` deliveries of a target that are due at `now`.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub async fn lease(&self, target: &str, max: usize, now: UnixMillis) -> Result<Leases, Error> {
        on_engine!(self, engine => engine.lease(target, max, now).await)
    }

    /// Records the outcome of an attempt, or ends a delivery without one; returns when that is on stable storage.
    ///
    /// A delivery that has ended already does not change. May take some milliseconds more than a commit, as settlements
    /// wait for others to share one. Returns what became of its reply, where that is new.
    ///
    /// # Errors
    /// If it could not be stored: the lease is still outstanding then, so settle again, or drop the lease to have the
    /// delivery attempted again.
    pub async fn settle(&self, settlement: Settlement) -> Result<Option<ReplyState>, Error> {
        on_engine!(self, engine => engine.settle(settlement).await)
    }

    /// Changes the error of an attempt's record; does nothing where there is no such record.
    ///
    /// # Errors
    /// If it could not be stored.
    pub async fn annotate(&self, note: AttemptNote) -> Result<(), Error> {
        on_engine!(self, engine => engine.annotate(note).await)
    }

    /// Opens a target's inbox for up to `capacity` fresh leases; an earlier inbox of that target is closed.
    ///
    /// Its `wake` is notified once at the start: [`Queue::lease`] returns what was pending before.
    pub fn subscribe(&self, target: Arc<str>, capacity: usize) -> Inbox {
        on_engine!(self, engine => engine.subscribe(target, capacity))
    }

    /// Sets whether fresh leases come into a target's inbox. While they do not, its consumer is woken for each, and
    /// [`Queue::lease`] returns it: what waits in an inbox is kept from every other consumer.
    pub fn set_accepting(&self, target: &str, accepts: bool) {
        on_engine!(self, engine => engine.set_accepting(target, accepts))
    }

    /// Sets how many fresh leases may wait in a target's inbox, besides its capacity.
    pub fn set_room(&self, target: &str, room: usize) {
        on_engine!(self, engine => engine.set_room(target, room))
    }

    /// Sets the order in which a target gets the events stored from now on; [`DeliveryOrder::None`] until it is set.
    pub fn keep_order(&self, target: &Arc<str>, order: DeliveryOrder) {
        on_engine!(self, engine => engine.keep_order(target, order))
    }

    /// Sets how long a push is recognised at least, even when its event is deleted; see [`Settings::replay_window`].
    pub fn set_replay_window(&self, window: Duration) {
        on_engine!(self, engine => engine.set_replay_window(window))
    }

    /// Closes a target's inbox: its receivers end once they are empty. The target's deliveries stay pending.
    pub fn unsubscribe(&self, target: &str) {
        on_engine!(self, engine => engine.unsubscribe(target))
    }

    /// Stores whether a target is paused; the dispatcher acts on it.
    ///
    /// # Errors
    /// If it could not be stored.
    pub async fn pause(&self, target: Arc<str>, paused: bool) -> Result<(), Error> {
        on_engine!(self, engine => engine.pause(target, paused).await)
    }

    /// The targets that are paused.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub async fn paused(&self) -> Result<BTreeSet<String>, Error> {
        on_engine!(self, engine => engine.paused().await)
    }

    /// Waits until the writer has executed all earlier commands. Never returns if the writer hangs.
    ///
    /// # Errors
    /// [`Error::Closed`] if the writer has ended.
    pub async fn ping(&self) -> Result<(), Error> {
        on_engine!(self, engine => engine.ping().await)
    }

    /// A summary of the queue; cheap enough for every scrape.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub async fn stats(&self) -> Result<Stats, Error> {
        on_engine!(self, engine => engine.stats().await)
    }

    /// The bytes that wait in memory for targets. Does not read the store.
    pub fn memory(&self) -> MemoryUsage {
        on_engine!(self, engine => engine.memory())
    }

    /// Why the queue refuses new events now, if it does. Does not read the store.
    pub fn obstacle(&self) -> Option<Obstacle> {
        on_engine!(self, engine => engine.obstacle())
    }

    /// Changes when an operator has acted by way of another process; `None` where none can.
    pub fn operator_changes(&self) -> Option<watch::Receiver<i64>> {
        on_engine!(self, engine => engine.operator_changes())
    }

    /// Says that this process has acted on what operators did, up to that number of [`Queue::operator_changes`].
    pub async fn note_acted(&self, change: i64) {
        on_postgres!(self, engine => engine.note_acted(change).await, else ())
    }

    /// Waits until every live replica has acted on all that operators did until now, at most so long; `None` where there
    /// is one process only.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub async fn await_seen(&self, wait: Duration) -> Result<Option<Seen>, Error> {
        on_postgres!(self, engine => engine.await_seen(wait).await.map(Some), else Ok(None))
    }

    /// Sets what this process tells the other replicas of itself.
    pub fn tell(&self, facts: ReplicaFacts) {
        on_postgres!(self, engine => engine.tell(facts), else ())
    }

    /// The replicas that share the store, as they were seen last; `None` where there is one process only. Does not read
    /// the store.
    pub fn replicas(&self) -> Option<Vec<Replica>> {
        on_postgres!(self, engine => Some(engine.replicas()), else None)
    }

    /// Returns when a newer release has made the store unusable for this one, with the reason.
    pub async fn outdated(&self) -> Error {
        on_postgres!(self, engine => engine.outdated().await, else std::future::pending().await)
    }

    /// This process's share of each target's limits and of each account's budget; changes as replicas come and go.
    pub fn shares(&self) -> watch::Receiver<Share> {
        match self {
            Self::Embedded(_) => watch::channel(Share::WHOLE).1,
            #[cfg(feature = "postgres")]
            Self::Postgres(engine) => engine.shares(),
            #[cfg(test)]
            Self::Model(engine) => engine.shares(),
        }
    }

    /// What was seen last of PostgreSQL's upkeep; `None` with another engine.
    #[cfg(feature = "postgres")]
    pub fn observation(&self) -> Option<postgres::Observation> {
        if let Self::Postgres(engine) = self { Some(engine.observation()) } else { None }
    }

    /// Lets what a spool holds be stored; call it when [`Queue::keep_order`] has been called for each target.
    pub fn begin_draining(&self) {
        on_postgres!(self, engine => engine.begin_draining(), else ());
    }

    /// What the spool holds; `None` without one.
    pub fn spool(&self) -> Option<SpoolUsage> {
        on_postgres!(self, engine => engine.spool_usage(), else None)
    }

    /// Why new events are not stored where they are delivered from: as [`Queue::obstacle`], but for a spool.
    pub fn direct_obstacle(&self) -> Option<Obstacle> {
        on_postgres!(self, engine => engine.direct_obstacle(), else self.obstacle())
    }

    /// How long the oldest change has been waiting for its commit; zero if none waits. Does not wait for the writer.
    pub fn oldest_wait(&self) -> Duration {
        on_engine!(self, engine => engine.oldest_wait())
    }

    /// Commits the waiting commands, closes all inboxes, and releases the store; returns when another process may open
    /// it.
    ///
    /// Later calls fail with [`Error::Closed`], also through other handles.
    pub async fn close(self) {
        on_engine!(self, engine => engine.close().await)
    }

    /// The id for an event received at `now`: greater than every id given before, by this process or an earlier one.
    pub fn next_id(&self, now: UnixMillis) -> EventId {
        on_engine!(self, engine => engine.next_id(now))
    }
}

/// A fresh event to be stored.
#[derive(Debug)]
pub struct NewEvent {
    /// The event.
    pub event: Arc<Event>,
    /// Identifies a second push of the event as a duplicate.
    pub key: ContentKey,
    /// The names of the targets it is for, each once.
    pub targets: Vec<Arc<str>>,
    /// The clear reply, where it is known before any target answers: it is stored with the event.
    pub reply: Option<String>,
    /// The targets whose answers may become the reply, and where those answers go.
    pub awaited: Vec<(Arc<str>, AwaitedReply)>,
}

/// The spool of this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SpoolUsage {
    /// How many events it holds.
    pub events: u64,
    /// How many pushes were answered from it since the start.
    pub spooled: u64,
}

/// The result of [`Queue::enqueue`].
#[derive(Debug)]
pub enum Enqueued {
    /// It is stored, with all its deliveries.
    Fresh,
    /// The event was stored before.
    Duplicate {
        /// The id of the stored event.
        id: EventId,
        /// What it was answered.
        reply: Known,
    },
}

/// The order in which a target gets its events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeliveryOrder {
    /// As they come, concurrently.
    None,
    /// The events of one user one at a time, in the order in which WeChat sent them: while one is pending, later ones
    /// are not leased. A delivery that an operator makes pending again takes its place in that order.
    PerUser,
}
