//! The model engine: several replicas share a store in memory. For simulations of a cluster, in paused time.
//!
//! It keeps the contract of the queue in the way that PostgreSQL's engine does (`queue/postgres/`): each delivery has a
//! holder, a replica proves each second that it lives, what a silent one holds is taken over, a call whose answer is lost
//! is made again with the same id. There is no SQL, no connection and no batch. `store.rs` has the rows and what a
//! transaction does with them, `link.rs` the way there with its faults, `replica.rs` the proof of life.

mod fresh;
mod held;
mod link;
mod replica;
mod store;
mod tests;

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::{Instant, sleep};
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use self::fresh::Place;
pub(crate) use self::link::{LinkCut, StoreLink};
use self::replica::ModelMembership;
pub(in crate::queue) use self::store::{AppendRow, AppendTarget, Appended, DeliveryRow};
pub(crate) use self::store::{BrokenRule, ModelStore, StoreRows};
use crate::clock::{ClockEvidence, UnixMillis};
use crate::event::{Event, EventId};
use crate::queue::inboxes::Inboxes;
use crate::queue::lease_table::LeaseTable;
use crate::queue::memory::{MemoryBudget, MemoryUsage};
use crate::queue::resume::Unanswered;
use crate::queue::view::{Counts, TargetStats};
use crate::queue::{
    AttemptNote, AwaitedReply, DeliveryOrder, DeliveryState, Disposition, Enqueued, Error, Inbox, Lease, Leases,
    NewEvent, Obstacle, ReplyState, SettledReply, Settlement, Share, Stats, Sweep, SweepProgress,
};
use crate::tuning::Tuning;

/// As in `queue/postgres/append.rs`: how long a push may take, one try of it, and the pause before the next.
const BUDGET: Duration = Duration::from_millis(4400);
const APPEND_TRY: Duration = Duration::from_secs(2);
const APPEND_PAUSE: Duration = Duration::from_millis(50);
const RENEWAL: Duration = Duration::from_millis(300);
/// As in `queue/postgres/settle.rs`.
const SETTLE_TRY: Duration = Duration::from_secs(5);
const SETTLE_PAUSE: Duration = Duration::from_millis(200);
/// As in `queue/postgres/lease.rs`.
const LEASE_TRY: Duration = Duration::from_secs(3);
const RETURN_EVERY: Duration = Duration::from_millis(200);
/// As in `queue/postgres/replies.rs`.
const REPLY_EVERY: Duration = Duration::from_millis(100);
const REPLY_TRY: Duration = Duration::from_secs(2);

/// A replica's handle to the store; cheap to clone. Public as its variant of the queue is.
#[derive(Clone)]
pub struct ModelEngine {
    replica: Arc<ModelReplica>,
    workers: TaskTracker,
    /// Ends the workers with the last handle.
    _guard: Arc<DropGuard>,
}

/// What the tasks of a replica share.
struct ModelReplica {
    store: Arc<ModelStore>,
    link: Arc<StoreLink>,
    tuning: Tuning,
    inboxes: Inboxes,
    leases: Mutex<LeaseTable>,
    memory: Arc<MemoryBudget>,
    clock: ClockEvidence,
    membership: ModelMembership,
    operator_changes: watch::Sender<i64>,
    last_id: AtomicU64,
    stop: CancellationToken,
}

impl ModelEngine {
    /// Another replica.
    ///
    /// # Errors
    /// If the store cannot be reached, or has no slot for it.
    pub(in crate::queue) async fn open(
        store: &Arc<ModelStore>,
        link: Arc<StoreLink>,
        max_memory: u64,
        tuning: &Tuning,
    ) -> Result<Self, Error> {
        let membership = ModelMembership::new(&tuning.replica);
        let memory = MemoryBudget::new(max_memory);
        let leases = if store.broken == BrokenRule::Fence {
            LeaseTable::new(Arc::clone(&memory))
        } else {
            LeaseTable::fenced(Arc::clone(&memory), membership.fence())
        };
        let (stop, clock) = (CancellationToken::new(), ClockEvidence::default());
        clock.trust();
        let replica = Arc::new(ModelReplica {
            store: Arc::clone(store),
            link,
            tuning: *tuning,
            inboxes: Inboxes::default(),
            leases: leases.into(),
            memory,
            clock,
            membership,
            operator_changes: watch::Sender::new(0),
            last_id: AtomicU64::new(0),
            stop: stop.clone(),
        });
        replica.enter().await?;
        let last = replica.call(LEASE_TRY, |rows| rows.events.keys().next_back().copied()).await?;
        replica.last_id.store(last.map_or(0, |last| last.0), Ordering::Relaxed);
        let workers = TaskTracker::new();
        workers.spawn(Arc::clone(&replica).keep_alive());
        workers.spawn(Arc::clone(&replica).return_dropped());
        workers.close();
        Ok(Self { replica, workers, _guard: Arc::new(stop.drop_guard()) })
    }

    pub(in crate::queue) async fn enqueue(&self, new: NewEvent) -> Result<Enqueued, Error> {
        let deadline = Instant::now() + BUDGET;
        let replica = &self.replica;
        if replica.stop.is_cancelled() {
            return Err(Error::Closed);
        }
        if replica.is_fenced() {
            replica.membership.renew_now(RENEWAL).await;
        }
        let places = replica.reserve_places(&new);
        let asked = new.awaited.iter().map(|(_, awaited)| awaited.until.since(UnixMillis::now())).max();
        let of = |(target, place): (&Arc<str>, &Option<Place>)| AppendTarget {
            name: Arc::clone(target),
            due: replica.local(new.event.received_at),
            in_order: replica.inboxes.in_order(target),
            is_held: place.is_some(),
        };
        let mut row = AppendRow {
            event: Arc::clone(&new.event),
            key: new.key,
            reply: new.reply.clone(),
            asked: asked.unwrap_or_default(),
            targets: new.targets.iter().zip(&places).map(of).collect(),
            was_sent: false,
        };
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                replica.release_places(places);
                return Err(Error::Away);
            }
            let (sent, me) = (row.clone(), replica.membership.incarnation());
            match replica.call(APPEND_TRY.min(left), move |rows| rows.append(&sent, me)).await {
                Ok(appended) => return Ok(replica.finish(new, places, appended)),
                Err(_) if replica.store.broken == BrokenRule::Outcome => {
                    replica.release_places(places);
                    return Ok(Enqueued::Fresh);
                }
                Err(_) => row.was_sent = true,
            }
            sleep(APPEND_PAUSE).await;
        }
    }

    pub(in crate::queue) async fn lease(&self, target: &str, max: usize, now: UnixMillis) -> Result<Leases, Error> {
        let replica = &self.replica;
        let target: Arc<str> = target.into();
        replica.give_back_dropped().await?;
        if replica.is_fenced() {
            return Err(Error::Away);
        }
        // A target that may take nothing more leases nothing, but learns whether something is due.
        let max = if replica.leases.lock().is_short_of_memory(&target) { 0 } else { max };
        let (me, now, name) = (replica.membership.incarnation(), replica.local(now), Arc::clone(&target));
        let (rows, next) = replica.call(LEASE_TRY, move |rows| rows.lease(&name, max, now, me)).await?;
        let next_due = next.map(|next| UnixMillis(next.0.saturating_sub(replica.link.ahead())));
        let mut leases = Leases { next_due, ..Leases::default() };
        let mut refused = Vec::new();
        for row in rows {
            let mut table = replica.leases.lock();
            if replica.store.broken != BrokenRule::Attempted && table.is_attempted(&target, row.event.id, row.attempt) {
                continue;
            }
            match table.grant(&target, &row.event, row.attempt, false) {
                Some(guard) => {
                    let (attempt, failures, target) = (row.attempt, row.failures, Arc::clone(&target));
                    leases.due.push(Lease { event: row.event, target, attempt, failures, reply: None, guard });
                }
                None => refused.push((row.event.id, Arc::clone(&target))),
            }
        }
        leases.is_short_of_memory = !refused.is_empty();
        replica.give_back(refused).await?;
        Ok(leases)
    }

    pub(in crate::queue) async fn settle(&self, settlement: Settlement) -> Result<Option<ReplyState>, Error> {
        let replica = &self.replica;
        let number = settlement.attempt.as_ref().map(|attempt| attempt.number);
        let lease = replica.leases.lock().lease_of(&settlement.target, settlement.event, number);
        let holder = lease.map(|_| replica.membership.incarnation());
        let mut stored = settlement.clone();
        if let Disposition::Retry(due) | Disposition::Postpone(due) = &mut stored.disposition {
            *due = replica.local(*due);
        }
        let settle = move |rows: &mut StoreRows| {
            let next = rows.settle(&stored, holder, UnixMillis::now()).and_then(|way| due_of(rows, way));
            let became = match &stored.reply {
                Some(SettledReply::Given(given)) => rows.give(given, UnixMillis::now()),
                Some(SettledReply::None) => {
                    rows.end_wait(stored.event, &stored.target);
                    None
                }
                None => None,
            };
            (next, became)
        };
        let (next, became) = replica.insist(settle).await?;
        if let Some(lease) = lease {
            replica.leases.lock().end_lease(&settlement.target, settlement.event, lease);
        }
        let is_due_again = matches!(settlement.disposition, Disposition::Retry(_) | Disposition::Postpone(_));
        if next.is_some() || is_due_again {
            replica.inboxes.wake(&settlement.target);
        }
        Ok(became)
    }

    pub(in crate::queue) async fn annotate(&self, note: AttemptNote) -> Result<(), Error> {
        self.replica.insist(move |rows| rows.annotate(note.clone())).await
    }

    pub(in crate::queue) fn note_no_reply(&self, event: EventId) {
        let replica = Arc::clone(&self.replica);
        tokio::spawn(async move { replica.insist(move |rows| rows.reply(event, None)).await });
    }

    pub(in crate::queue) async fn reply_of(&self, event: EventId, until: UnixMillis) -> Result<Option<String>, Error> {
        while UnixMillis::now() < until {
            if let Some(known) = self.replica.call(REPLY_TRY, move |rows| rows.known_reply(event)).await? {
                return Ok(known);
            }
            sleep(REPLY_EVERY).await;
        }
        self.decide_no_reply(event).await
    }

    pub(in crate::queue) async fn decide_no_reply(&self, event: EventId) -> Result<Option<String>, Error> {
        self.replica.call(REPLY_TRY, move |rows| rows.decide(event)).await
    }

    pub(in crate::queue) fn subscribe(&self, target: Arc<str>, capacity: usize) -> Inbox {
        self.replica.inboxes.open(target, capacity)
    }

    pub(in crate::queue) fn unsubscribe(&self, target: &str) {
        self.replica.inboxes.close(target);
    }

    pub(in crate::queue) fn set_accepting(&self, target: &str, accepts: bool) {
        self.replica.inboxes.set_accepting(target, accepts);
    }

    pub(in crate::queue) fn set_room(&self, target: &str, room: usize) {
        self.replica.inboxes.set_room(target, room);
    }

    pub(in crate::queue) fn keep_order(&self, target: &Arc<str>, order: DeliveryOrder) {
        self.replica.inboxes.keep_order(target, order);
    }

    pub(in crate::queue) fn bound_waits(&self, target: &Arc<str>, longest: Duration) {
        self.replica.inboxes.bound_waits(target, longest);
    }

    pub(in crate::queue) fn bound_attempts(&self, target: &Arc<str>, longest: Duration) {
        self.replica.inboxes.bound_attempts(target, longest);
    }

    /// Nothing is deleted.
    pub(in crate::queue) fn set_replay_window(&self, _window: Duration) {}

    pub(in crate::queue) async fn pause(&self, target: Arc<str>, paused: bool) -> Result<(), Error> {
        self.replica.call(LEASE_TRY, move |rows| rows.pause(&target, paused)).await
    }

    pub(in crate::queue) async fn paused(&self) -> Result<BTreeSet<String>, Error> {
        self.replica.call(LEASE_TRY, |rows| rows.paused.clone()).await
    }

    pub(in crate::queue) async fn ping(&self) -> Result<(), Error> {
        if self.replica.stop.is_cancelled() { Err(Error::Closed) } else { Ok(()) }
    }

    pub(in crate::queue) async fn stats(&self) -> Result<Stats, Error> {
        self.replica.call(LEASE_TRY, |rows| stats(rows)).await
    }

    pub(in crate::queue) fn memory(&self) -> MemoryUsage {
        self.replica.memory.usage()
    }

    pub(in crate::queue) fn obstacle(&self) -> Option<Obstacle> {
        if self.replica.stop.is_cancelled() {
            return Some(Obstacle::Closed);
        }
        self.replica.is_fenced().then_some(Obstacle::Away)
    }

    pub(in crate::queue) fn operator_changes(&self) -> Option<watch::Receiver<i64>> {
        Some(self.replica.operator_changes.subscribe())
    }

    pub(in crate::queue) fn shares(&self) -> watch::Receiver<Share> {
        self.replica.membership.shares()
    }

    pub(in crate::queue) fn clock(&self) -> &ClockEvidence {
        &self.replica.clock
    }

    /// Its calls wait for no commit.
    pub(in crate::queue) fn oldest_wait(&self) -> Duration {
        Duration::ZERO
    }

    pub(in crate::queue) async fn close(self) {
        self.replica.inboxes.close_all();
        self.replica.stop.cancel();
        self.workers.wait().await;
        let me = self.replica.membership.incarnation();
        // Without it, others take over what is held.
        drop(self.replica.call(LEASE_TRY, move |rows| rows.leave(me)).await);
    }

    pub(in crate::queue) fn next_id(&self, now: UnixMillis) -> EventId {
        let (slot, now) = (self.replica.membership.slot(), self.replica.local(now));
        let next = |last| Some(EventId::next_in_slot(EventId(last), now, slot).0);
        let last = self.replica.last_id.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next).unwrap_or_default();
        EventId::next_in_slot(EventId(last), now, slot)
    }

    pub(in crate::queue) async fn unanswered(&self, since: UnixMillis) -> Result<Vec<Unanswered>, Error> {
        let first = EventId::first_at(since);
        self.replica.call(LEASE_TRY, move |rows| rows.unanswered(first)).await
    }

    pub(in crate::queue) async fn lease_awaited(
        &self,
        event: Arc<Event>,
        awaited: Vec<(Arc<str>, AwaitedReply)>,
    ) -> Result<Vec<Lease>, Error> {
        let (replica, id) = (&self.replica, event.id);
        let mut leases = Vec::new();
        for (target, reply) in awaited {
            let (me, name) = (replica.membership.incarnation(), Arc::clone(&target));
            if !replica.call(LEASE_TRY, move |rows| rows.lease_first(id, &name, me)).await? {
                continue;
            }
            let granted = {
                let mut table = replica.leases.lock();
                if table.is_attempted(&target, id, 1) {
                    continue;
                }
                table.grant(&target, &event, 1, true)
            };
            match granted {
                Some(guard) => {
                    let event = Arc::clone(&event);
                    leases.push(Lease { event, target, attempt: 1, failures: 0, reply: Some(reply), guard });
                }
                None => replica.give_back(vec![(id, target)]).await?,
            }
        }
        Ok(leases)
    }

    pub(in crate::queue) fn hand_over(&self, lease: Lease) {
        // A lease that does not fit is dropped, which returns its delivery.
        drop(self.replica.inboxes.offer(lease));
    }

    /// Sweeps are not modelled: their suites run on the engines that store something.
    pub(in crate::queue) async fn sweep(&self, _: &Sweep, _: EventId, _: UnixMillis) -> Result<SweepProgress, Error> {
        Ok(SweepProgress { changed: 0, next: None })
    }

    pub(in crate::queue) async fn wipe(&self) -> Result<(), Error> {
        Ok(())
    }
}

impl ModelReplica {
    async fn call<T: Send + 'static>(
        &self,
        limit: Duration,
        transaction: impl FnOnce(&mut StoreRows) -> T + Send + 'static,
    ) -> Result<T, Error> {
        self.link.call(&self.store, limit, transaction).await
    }

    /// Makes a change however long the store is away, until the engine stops.
    async fn insist<T: Send + 'static>(
        &self,
        change: impl Fn(&mut StoreRows) -> T + Clone + Send + 'static,
    ) -> Result<T, Error> {
        loop {
            let change = change.clone();
            match self.call(SETTLE_TRY, move |rows| change(rows)).await {
                Err(_) if !self.stop.is_cancelled() => sleep(SETTLE_PAUSE).await,
                made => return made,
            }
        }
    }

    /// A moment by this replica's wall clock.
    fn local(&self, moment: UnixMillis) -> UnixMillis {
        UnixMillis(moment.0.saturating_add(self.link.ahead()))
    }

    async fn give_back_dropped(&self) -> Result<(), Error> {
        let dropped = self.leases.lock().take_dropped();
        self.give_back(dropped).await
    }

    /// Frees deliveries that this replica holds. Where that fails, they are found as held in vain.
    async fn give_back(&self, given: Vec<(EventId, Arc<str>)>) -> Result<(), Error> {
        if given.is_empty() {
            return Ok(());
        }
        let targets: BTreeSet<Arc<str>> = given.iter().map(|(_, target)| Arc::clone(target)).collect();
        let me = self.membership.incarnation();
        self.call(LEASE_TRY, move |rows| rows.give_back(&given, me)).await?;
        targets.iter().for_each(|target| self.inboxes.wake(target));
        Ok(())
    }

    /// Frees what is dropped, also while nothing is leased, until the engine stops.
    async fn return_dropped(self: Arc<Self>) {
        loop {
            tokio::select! {
                biased;
                () = self.stop.cancelled() => return,
                () = sleep(RETURN_EVERY) => {}
            }
            drop(self.give_back_dropped().await);
        }
    }
}

fn due_of(rows: &StoreRows, way: (EventId, Arc<str>)) -> Option<UnixMillis> {
    rows.deliveries.get(&way).map(|row| row.due)
}

fn stats(rows: &StoreRows) -> Stats {
    let mut targets: std::collections::BTreeMap<&Arc<str>, (Counts, Option<UnixMillis>)> = Default::default();
    for ((event, target), row) in &rows.deliveries {
        let (counts, oldest) = targets.entry(target).or_default();
        *counts.of(row.state) += 1;
        if row.state == DeliveryState::Pending {
            let received = rows.events.get(event).map(|row| row.event.received_at);
            *oldest = (*oldest).into_iter().chain(received).min();
        }
    }
    let targets = targets.into_iter().map(|(target, (counts, oldest_pending))| TargetStats {
        target: target.to_string(),
        counts,
        oldest_pending,
    });
    let events = rows.events.len() as u64;
    let (targets, held_replies) = (targets.collect(), std::collections::BTreeMap::new());
    Stats { events, unaccounted: 0, bytes: 0, targets, held_replies, damaged: Vec::new() }
}

impl fmt::Debug for ModelEngine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ModelEngine")
    }
}
