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

mod clock;
#[cfg(test)]
mod conformance;
mod encryption;
#[cfg(test)]
mod encryption_tests;
mod error;
#[cfg(test)]
mod forget_tests;
mod lease_table;
mod memory;
mod obstacle;
#[cfg(test)]
mod order_tests;
mod resume;
mod settings;
mod sqlite;
mod sweep;
#[cfg(test)]
mod sweep_tests;
pub mod view;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::{Notify, mpsc, oneshot};

use crate::clock::UnixMillis;
use crate::event::{ContentKey, Event, EventId};
use crate::tuning::Tuning;
use crate::wechat::ReplyError;

pub use self::encryption::{DecryptError, EncryptionKey, EncryptionKeys, Fingerprint};
pub use self::error::Error;
use self::lease_table::LeaseGuard;
pub use self::memory::MemoryUsage;
pub use self::obstacle::Obstacle;
pub use self::resume::Unanswered;
pub use self::settings::Settings;
#[cfg(test)]
pub(crate) use self::sqlite::Faults;
pub use self::sqlite::Sqlite;
pub use self::sqlite::build_options::SqliteBuild;
pub use self::sqlite::check_owner;
pub use self::sqlite::damage::find_damage;
pub use self::sqlite::damage::quarantine::{DamageReason, DamagedStore, MoveRecord, list_damaged};
pub use self::sqlite::deep::{Flaw, OpenDelivery, StoredEvent};
pub use self::sqlite::inspect::Inspect;
pub use self::sqlite::key_ring::EncryptionStatus;
pub use self::sqlite::salvage::{Salvage, SalvageFlaw, SalvageReport, SalvagedStore, run as salvage};
pub use self::sqlite::survey::{LockHolder, SCHEMA, Survey, survey};
pub use self::sweep::{Sweep, SweepAction, SweepProgress};
pub use self::view::{Audit, DeadLetter, EventDetail, EventFilter, EventSummary, Stats};

/// The exit code of a process whose store failed or is damaged: `EX_IOERR` of sysexits.h.
pub const EXIT_IO: u8 = 74;

/// The durable queue; cheap to clone.
#[derive(Clone, Debug)]
pub enum Queue {
    /// SQLite, in this process.
    Embedded(Sqlite),
}

impl Queue {
    /// Opens the queue, and creates it if it does not exist. `on_commit` is called with the duration of each commit.
    ///
    /// Call it in the runtime of the callers: a task of that runtime sends the answers.
    ///
    /// # Errors
    /// If the store is in use by another process, is on a network filesystem, was made by a newer release or by another
    /// program, holds events that are encrypted with a key not configured, or cannot be opened.
    pub fn open(settings: &Settings, on_commit: impl Fn(Duration) + Send + 'static) -> Result<Self, Error> {
        Self::open_tuned(settings, &Tuning::default(), on_commit)
    }

    /// Checks that the store can be opened, without opening or changing it; a running relay may have it open.
    ///
    /// # Errors
    /// The errors of [`Queue::open`] that a restart does not fix.
    pub fn check(settings: &Settings) -> Result<(), Error> {
        sqlite::startable::check(settings)
    }

    /// As [`Queue::open`], with other sizes than the shipped ones.
    ///
    /// # Errors
    /// As for [`Queue::open`].
    pub fn open_tuned(
        settings: &Settings,
        tuning: &Tuning,
        on_commit: impl Fn(Duration) + Send + 'static,
    ) -> Result<Self, Error> {
        Sqlite::open(settings, tuning, Box::new(on_commit)).map(Self::Embedded)
    }

    /// Opens the queue as a part of a simulation: all its work is done by tasks of the runtime that it is opened in.
    #[cfg(test)]
    pub(crate) fn simulated(
        settings: &Settings,
        on_commit: impl Fn(Duration) + Send + 'static,
        faults: Faults,
    ) -> Result<Self, Error> {
        Sqlite::simulated(settings, Box::new(on_commit), faults).map(Self::Embedded)
    }

    /// Stores a fresh event with its deliveries; returns when they are on stable storage.
    ///
    /// Waits while the channel to the writer is full. If this future is dropped, the event may or may not be stored.
    ///
    /// # Errors
    /// [`Error::Full`] when there is no space on the disk or within `max_size`: enqueue again later. Whatever the
    /// error, the event is not stored.
    pub async fn enqueue(&self, new: NewEvent) -> Result<Enqueued, Error> {
        match self {
            Self::Embedded(engine) => engine.enqueue(new).await,
        }
    }

    /// Leases up to `max` deliveries of a target that are due at `now`.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub async fn lease(&self, target: &str, max: usize, now: UnixMillis) -> Result<Leases, Error> {
        match self {
            Self::Embedded(engine) => engine.lease(target, max, now).await,
        }
    }

    /// Records the outcome of an attempt, or ends a delivery without one; returns when that is on stable storage.
    ///
    /// A delivery that has ended already does not change. May take some milliseconds more than a commit, as settlements
    /// wait for others to share one.
    ///
    /// # Errors
    /// If it could not be stored: the lease is still outstanding then, so settle again, or drop the lease to have the
    /// delivery attempted again.
    pub async fn settle(&self, settlement: Settlement) -> Result<(), Error> {
        match self {
            Self::Embedded(engine) => engine.settle(settlement).await,
        }
    }

    /// Stores the clear reply that an event was answered with, for WeChat's retries of it.
    ///
    /// # Errors
    /// If it could not be stored.
    pub async fn record_reply(&self, event: EventId, reply: String) -> Result<(), Error> {
        match self {
            Self::Embedded(engine) => engine.record_reply(event, reply).await,
        }
    }

    /// Changes the error of an attempt's record; does nothing where there is no such record.
    ///
    /// # Errors
    /// If it could not be stored.
    pub async fn annotate(&self, note: AttemptNote) -> Result<(), Error> {
        match self {
            Self::Embedded(engine) => engine.annotate(note).await,
        }
    }

    /// Opens a target's inbox for up to `capacity` fresh leases; an earlier inbox of that target is closed.
    ///
    /// Its `wake` is notified once at the start: [`Queue::lease`] returns what was pending before.
    pub fn subscribe(&self, target: Arc<str>, capacity: usize) -> Inbox {
        match self {
            Self::Embedded(engine) => engine.subscribe(target, capacity),
        }
    }

    /// Sets the order in which a target gets the events stored from now on; [`DeliveryOrder::None`] until it is set.
    pub fn keep_order(&self, target: &Arc<str>, order: DeliveryOrder) {
        match self {
            Self::Embedded(engine) => engine.keep_order(target, order),
        }
    }

    /// Sets how long a push is recognised at least, even when its event is deleted; see [`Settings::replay_window`].
    pub fn set_replay_window(&self, window: Duration) {
        match self {
            Self::Embedded(engine) => engine.set_replay_window(window),
        }
    }

    /// Closes a target's inbox: its receivers end once they are empty. The target's deliveries stay pending.
    pub fn unsubscribe(&self, target: &str) {
        match self {
            Self::Embedded(engine) => engine.unsubscribe(target),
        }
    }

    /// Stores whether a target is paused; the dispatcher acts on it.
    ///
    /// # Errors
    /// If it could not be stored.
    pub async fn pause(&self, target: Arc<str>, paused: bool) -> Result<(), Error> {
        match self {
            Self::Embedded(engine) => engine.pause(target, paused).await,
        }
    }

    /// The targets that are paused.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub async fn paused(&self) -> Result<BTreeSet<String>, Error> {
        match self {
            Self::Embedded(engine) => engine.paused().await,
        }
    }

    /// Waits until the writer has executed all earlier commands. Never returns if the writer hangs.
    ///
    /// # Errors
    /// [`Error::Closed`] if the writer has ended.
    pub async fn ping(&self) -> Result<(), Error> {
        match self {
            Self::Embedded(engine) => engine.ping().await,
        }
    }

    /// A summary of the queue; cheap enough for every scrape.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub async fn stats(&self) -> Result<Stats, Error> {
        match self {
            Self::Embedded(engine) => engine.stats().await,
        }
    }

    /// The bytes that wait in memory for targets. Does not read the store.
    pub fn memory(&self) -> MemoryUsage {
        match self {
            Self::Embedded(engine) => engine.memory(),
        }
    }

    /// Why the queue refuses new events now, if it does. Does not read the store.
    pub fn obstacle(&self) -> Option<Obstacle> {
        match self {
            Self::Embedded(engine) => engine.obstacle(),
        }
    }

    /// How long the oldest change has been waiting for its commit; zero if none waits. Does not wait for the writer.
    pub fn oldest_wait(&self) -> Duration {
        match self {
            Self::Embedded(engine) => engine.oldest_wait(),
        }
    }

    /// Commits the waiting commands, closes all inboxes, and releases the store; returns when another process may open
    /// it.
    ///
    /// Later calls fail with [`Error::Closed`], also through other handles.
    pub async fn close(self) {
        match self {
            Self::Embedded(engine) => engine.close().await,
        }
    }

    /// The id for an event received at `now`: greater than every id given before, by this process or an earlier one.
    pub fn next_id(&self, now: UnixMillis) -> EventId {
        match self {
            Self::Embedded(engine) => engine.next_id(now),
        }
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

/// A reply that WeChat's push waits for.
#[derive(Debug)]
pub struct AwaitedReply {
    /// Until when it is useful.
    pub until: UnixMillis,
    /// Whether the target is the first that is asked: its reply is used if it comes in time. A reply of any other
    /// target is held in reserve.
    pub first: bool,
    /// Where the target's answer goes; dropped without one if the attempt failed.
    pub sender: oneshot::Sender<ReplyOffer>,
}

/// A target's answer, offered to the push that waits.
#[derive(Debug)]
pub struct ReplyOffer {
    /// The clear reply; `None` where the target sends none.
    pub reply: Result<Option<String>, ReplyError>,
    /// Receives whether the reply is used; dropped if the push no longer waits.
    pub choice: oneshot::Sender<ReplyChoice>,
}

/// Whether a reply is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReplyChoice {
    /// WeChat gets it.
    Used,
    /// WeChat gets the reply of another target.
    Outdone,
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
        /// The clear reply that it was answered with, if any.
        reply: Option<String>,
    },
}

/// The right to make one attempt at a delivery.
#[derive(Debug)]
pub struct Lease {
    /// The event to deliver.
    pub event: Arc<Event>,
    /// The name of the target to deliver it to.
    pub target: Arc<str>,
    /// The number of this attempt, from 1.
    pub attempt: u32,
    /// How many attempts have failed since the retry schedule last started: the position in the schedule.
    pub failures: u32,
    /// Where the target's reply goes, if it is awaited.
    pub reply: Option<AwaitedReply>,
    /// Returns the delivery when the lease is dropped unsettled.
    guard: LeaseGuard,
}

impl Lease {
    /// Whether an operator has cancelled the delivery since the lease was granted: then make no attempt.
    pub fn is_revoked(&self) -> bool {
        self.guard.is_revoked()
    }
}

/// What [`Queue::lease`] found.
#[derive(Debug, Default)]
pub struct Leases {
    /// The deliveries that are due, oldest first.
    pub due: Vec<Lease>,
    /// When the next delivery that is not leased becomes due, if there is one.
    pub next_due: Option<UnixMillis>,
    /// Whether more deliveries are due, but the target may not take more memory: lease again when one of its leases has
    /// ended.
    pub is_short_of_memory: bool,
}

/// A target's end of the queue, held by its one consumer.
#[derive(Debug)]
pub struct Inbox {
    /// Leases of fresh events.
    pub fresh: mpsc::Receiver<Lease>,
    /// Leases whose reply is awaited: in a channel of their own, so that no backlog delays them.
    pub awaited: mpsc::Receiver<Lease>,
    /// Notified when [`Queue::lease`] may return more, or earlier than it announced: the inbox was full, a delivery is
    /// to be retried, a lease was dropped, an operator made deliveries pending.
    pub wake: Arc<Notify>,
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

/// The outcome of an attempt, to be recorded.
#[derive(Clone, Debug)]
pub struct Settlement {
    /// The event.
    pub event: EventId,
    /// The target.
    pub target: Arc<str>,
    /// The next state of the delivery.
    pub disposition: Disposition,
    /// The attempt that led to it; `None` without one, as when an old delivery expires.
    pub attempt: Option<AttemptRecord>,
}

/// What a settlement does to a delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Disposition {
    /// It stays pending; the next attempt is due at this time.
    Retry(UnixMillis),
    /// As `Retry`, but the attempt does not count against the retry schedule.
    Postpone(UnixMillis),
    /// It ends in this state.
    End(DeliveryState),
}

/// The state of a delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DeliveryState {
    /// Waiting for an attempt, or in one.
    Pending,
    /// The target answered 2xx.
    Delivered,
    /// Its attempts are used up, or the target refused it for good; an operator can retry it.
    Dead,
    /// Its deadline passed before it was delivered.
    Expired,
    /// An operator ended it.
    Cancelled,
}

impl DeliveryState {
    /// Every state, in the order of their numbers in the store.
    pub const ALL: [Self; 5] = [Self::Pending, Self::Delivered, Self::Dead, Self::Expired, Self::Cancelled];

    /// Its name in the store's views, the API and the metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Delivered => "delivered",
            Self::Dead => "dead",
            Self::Expired => "expired",
            Self::Cancelled => "cancelled",
        }
    }
}

/// The record of one attempt.
#[derive(Clone, Debug)]
pub struct AttemptRecord {
    /// Its number, from 1.
    pub number: u32,
    /// When it began.
    pub at: UnixMillis,
    /// How long it took.
    pub duration: Duration,
    /// The HTTP status, if there was an answer.
    pub status: Option<u16>,
    /// Why it failed, or why its reply was not used, in a few words without secrets.
    pub error: Option<String>,
    /// The first 1 KiB of a failed answer's body, or of the clear reply.
    pub answer: Option<Vec<u8>>,
}

/// A change of the `error` of an attempt's record.
#[derive(Clone, Debug)]
pub struct AttemptNote {
    /// The event.
    pub event: EventId,
    /// The target.
    pub target: Arc<str>,
    /// The number of the attempt.
    pub attempt: u32,
    /// The new text.
    pub error: Option<String>,
}
