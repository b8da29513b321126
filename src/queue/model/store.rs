//! The store of the model engine: what PostgreSQL keeps in its tables, as rows in memory that several replicas share.
//!
//! Each function is one transaction, and they run one after the other. What they do is what the statements of
//! `queue/postgres/` do, written as plainly as possible. Its clock is tokio's: no replica's wall clock matters.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use tokio::time::Instant;

use super::held::HeldRow;
use crate::clock::UnixMillis;
use crate::event::{ContentKey, Event, EventId};
use crate::queue::persons::user_number;
use crate::queue::resume::Unanswered;
use crate::queue::stored::HELD;
use crate::queue::{AttemptNote, AttemptRecord, DeliveryState, Disposition, Settlement};

/// How long the slot of a silent replica is kept.
const SLOT_KEPT: Duration = Duration::from_secs(600);
const SLOTS: u64 = 64;

/// Identifies a delivery.
type Way = (EventId, Arc<str>);

/// A rule that the engine does not keep: a simulation must find that out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum BrokenRule {
    /// It keeps them all.
    #[default]
    None,
    /// Leases are used although no proof of life was confirmed for long.
    Fence,
    /// The deliveries of a silent replica are taken over while its attempts may run.
    Takeover,
    /// A settlement is accepted from a replica that does not hold the delivery.
    Holder,
    /// The same push may be stored twice.
    Known,
    /// A push whose outcome is unknown is answered as stored.
    Outcome,
    /// A reply is stored after it was decided that there is none.
    Reply,
    /// The next delivery of a user does not wait for the earlier one.
    Order,
    /// A replica leases again what was taken over and given back, before it has settled its own attempt.
    Attempted,
}

/// The store; replicas share it.
#[derive(Debug, Default)]
pub(crate) struct ModelStore {
    rows: Mutex<StoreRows>,
    pub(crate) broken: BrokenRule,
}

impl ModelStore {
    /// An empty store, whose replicas do not keep this rule.
    pub(crate) fn new(broken: BrokenRule) -> Arc<Self> {
        Arc::new(Self { rows: Mutex::new(StoreRows { broken, ..StoreRows::default() }), broken })
    }

    /// Its rows; a caller that keeps them keeps every transaction waiting.
    pub(crate) fn rows(&self) -> MutexGuard<'_, StoreRows> {
        self.rows.lock()
    }
}

/// The tables.
#[derive(Debug, Default)]
pub(crate) struct StoreRows {
    pub(crate) events: BTreeMap<EventId, EventRow>,
    pub(crate) deliveries: BTreeMap<Way, DeliveryRow>,
    pub(crate) held: Vec<HeldRow>,
    known: HashMap<ContentKey, EventId>,
    replicas: BTreeMap<u32, ReplicaRow>,
    pub(super) paused: BTreeSet<String>,
    /// The number of the last action of an operator.
    change: i64,
    turns: u64,
    incarnations: u32,
    broken: BrokenRule,
}

/// An event as it is stored.
#[derive(Debug)]
pub(crate) struct EventRow {
    pub(super) event: Arc<Event>,
    pub(super) key: ContentKey,
    pub(super) reply: Option<String>,
    pub(super) asking: Asking,
    targets: usize,
}

/// Whether an event's reply is known.
#[derive(Clone, Copy, Debug)]
pub(super) enum Asking {
    /// It is the stored one.
    Known,
    /// A target is asked for it, until then.
    Until(Instant),
    /// There is none.
    Decided,
}

/// A delivery as it is stored.
#[derive(Debug)]
pub(crate) struct DeliveryRow {
    pub(crate) state: DeliveryState,
    pub(crate) due: UnixMillis,
    pub(crate) attempts: u32,
    pub(crate) failures: u32,
    pub(crate) ended_at: Option<UnixMillis>,
    /// The user, where order is kept.
    pub(crate) user: Option<i64>,
    pub(crate) records: Vec<AttemptRecord>,
    turn: u64,
    /// The incarnation that holds it.
    holder: Option<u32>,
}

impl DeliveryRow {
    fn is_pending(&self) -> bool {
        self.state == DeliveryState::Pending
    }
}

#[derive(Debug)]
struct ReplicaRow {
    alive_at: Instant,
    slot: u64,
}

/// An event to be stored, as one replica asks for it.
#[derive(Clone, Debug)]
pub(in crate::queue) struct AppendRow {
    pub(in crate::queue) event: Arc<Event>,
    pub(in crate::queue) key: ContentKey,
    pub(in crate::queue) reply: Option<String>,
    /// How long a target is asked for a reply.
    pub(in crate::queue) asked: Duration,
    pub(in crate::queue) targets: Vec<AppendTarget>,
    /// Whether an earlier try may have been committed.
    pub(in crate::queue) was_sent: bool,
}

#[derive(Clone, Debug)]
pub(in crate::queue) struct AppendTarget {
    pub(in crate::queue) name: Arc<str>,
    pub(in crate::queue) due: UnixMillis,
    pub(in crate::queue) in_order: bool,
    /// Whether the lease has a place in the inbox.
    pub(in crate::queue) is_held: bool,
}

/// What an append did.
#[derive(Debug)]
pub(in crate::queue) enum Appended {
    /// It is stored; these deliveries are not held by the replica.
    Fresh(Vec<Arc<str>>),
    Duplicate {
        id: EventId,
        reply: Option<String>,
        asking: Option<Duration>,
    },
}

/// A delivery that was leased.
#[derive(Debug)]
pub(super) struct LeasedDelivery {
    pub(super) event: Arc<Event>,
    /// Which attempt it is, from 1.
    pub(super) attempt: u32,
    pub(super) failures: u32,
}

/// What a replica sees when it proves that it lives.
#[derive(Debug)]
pub(super) struct Renewal {
    pub(super) is_member: bool,
    pub(super) change: i64,
    /// Every replica, and for how long it has been silent.
    pub(super) replicas: Vec<(u32, Duration)>,
    /// What it holds, with the attempts made.
    pub(super) held: Vec<(Way, u32)>,
    /// When the first free delivery of each target is due.
    pub(super) due: BTreeMap<Arc<str>, UnixMillis>,
}

impl StoreRows {
    /// Becomes a replica: its incarnation, its slot, and how many others there are.
    pub(in crate::queue) fn join(&mut self) -> Option<(u32, u64, u32)> {
        self.replicas.retain(|_, replica| replica.alive_at.elapsed() < SLOT_KEPT);
        let others = u32::try_from(self.replicas.len()).unwrap_or(u32::MAX);
        let slot = (0..SLOTS).find(|slot| self.replicas.values().all(|replica| replica.slot != *slot))?;
        self.incarnations += 1;
        self.replicas.insert(self.incarnations, ReplicaRow { alive_at: Instant::now(), slot });
        self.free_orphans();
        Some((self.incarnations, slot, others))
    }

    /// Frees what is held by incarnations that there are no more: a push may be stored after its replica has left.
    fn free_orphans(&mut self) {
        let there: BTreeSet<u32> = self.replicas.keys().copied().collect();
        let orphans = self.deliveries.values_mut().filter(|row| row.holder.is_some_and(|by| !there.contains(&by)));
        orphans.for_each(|row| row.holder = None);
    }

    pub(in crate::queue) fn leave(&mut self, me: u32) {
        self.deliveries.values_mut().filter(|row| row.holder == Some(me)).for_each(|row| row.holder = None);
        self.replicas.remove(&me);
    }

    pub(super) fn renew(&mut self, me: u32) -> Renewal {
        let mine = self.replicas.get_mut(&me);
        let is_member = mine.map(|replica| replica.alive_at = Instant::now()).is_some();
        self.free_orphans();
        let mut due = BTreeMap::new();
        for ((_, target), row) in self.deliveries.iter().filter(|(_, row)| row.is_pending() && row.holder.is_none()) {
            let first = due.entry(Arc::clone(target)).or_insert(row.due);
            *first = row.due.min(*first);
        }
        let held = self.deliveries.iter().filter(|(_, row)| row.is_pending() && row.holder == Some(me));
        Renewal {
            is_member,
            change: self.change,
            replicas: self.replicas.iter().map(|(other, row)| (*other, row.alive_at.elapsed())).collect(),
            held: held.map(|(way, row)| (way.clone(), row.attempts)).collect(),
            due,
        }
    }

    /// Frees what a replica holds for a target, if it has been silent for so long.
    pub(super) fn take_over(&mut self, other: u32, target: &Arc<str>, after: Duration) -> Vec<Way> {
        let is_silent = self.replicas.get(&other).is_some_and(|replica| replica.alive_at.elapsed() > after);
        if !is_silent {
            return Vec::new();
        }
        let held = self.deliveries.iter_mut().filter(|((_, of), row)| of == target && row.holder == Some(other));
        held.filter(|(_, row)| row.is_pending())
            .map(|(way, row)| {
                row.holder = None;
                way.clone()
            })
            .collect()
    }

    pub(in crate::queue) fn give_back(&mut self, given: &[Way], me: u32) {
        for way in given {
            if let Some(row) = self.deliveries.get_mut(way).filter(|row| row.holder == Some(me)) {
                row.holder = None;
            }
        }
    }

    pub(in crate::queue) fn append(&mut self, new: &AppendRow, me: u32) -> Appended {
        let id = new.event.id;
        if let Some(known) = self.known.get(&new.key).copied().filter(|_| self.broken != BrokenRule::Known) {
            if known == id && new.was_sent {
                let is_free = |target: &AppendTarget| {
                    let row = self.deliveries.get(&(id, Arc::clone(&target.name)));
                    row.is_some_and(|row| !row.is_pending() || row.holder != Some(me))
                };
                let free = new.targets.iter().filter(|target| is_free(target));
                return Appended::Fresh(free.map(|target| Arc::clone(&target.name)).collect());
            }
            let row = self.events.get(&known);
            let asking = row.and_then(|row| match row.asking {
                Asking::Until(until) => Some(until.saturating_duration_since(Instant::now())),
                Asking::Known | Asking::Decided => None,
            });
            return Appended::Duplicate { id: known, reply: row.and_then(|row| row.reply.clone()), asking };
        }
        self.known.insert(new.key, id);
        let asking = if new.asked.is_zero() { Asking::Known } else { Asking::Until(Instant::now() + new.asked) };
        let (event, reply) = (Arc::clone(&new.event), new.reply.clone());
        self.events.insert(id, EventRow { event, key: new.key, reply, asking, targets: new.targets.len() });
        let mut free = Vec::new();
        for target in &new.targets {
            let user = target.in_order.then(|| user_number(new.event.message.from_user()));
            let waits = self.broken != BrokenRule::Order && self.first_of(&target.name, user).is_some();
            self.turns += 1;
            let holder = (target.is_held && !waits).then_some(me);
            if holder.is_none() {
                free.push(Arc::clone(&target.name));
            }
            let row = DeliveryRow {
                state: DeliveryState::Pending,
                due: if waits { HELD } else { target.due },
                attempts: 0,
                failures: 0,
                ended_at: None,
                user,
                records: Vec::new(),
                turn: self.turns,
                holder,
            };
            self.deliveries.insert((id, Arc::clone(&target.name)), row);
        }
        Appended::Fresh(free)
    }

    /// The user's delivery whose turn it is.
    fn first_of(&self, target: &Arc<str>, user: Option<i64>) -> Option<Way> {
        let user = user?;
        let theirs = self.deliveries.iter().filter(|((_, of), row)| of == target && row.user == Some(user));
        theirs.filter(|(_, row)| row.is_pending()).min_by_key(|(_, row)| row.turn).map(|(way, _)| way.clone())
    }

    /// Stores an outcome, if `holder` has the delivery still. Returns what became due at another target's turn.
    pub(in crate::queue) fn settle(
        &mut self,
        settlement: &Settlement,
        holder: Option<u32>,
        now: UnixMillis,
    ) -> Option<Way> {
        let way = (settlement.event, Arc::clone(&settlement.target));
        let is_anybodys = self.broken == BrokenRule::Holder;
        let row = self.deliveries.get_mut(&way)?;
        let number = settlement.attempt.as_ref().map(|attempt| attempt.number);
        let is_holders = row.holder.or(holder) == holder || is_anybodys;
        if !row.is_pending() || !is_holders || number.is_some_and(|number| row.attempts >= number) {
            return None;
        }
        row.holder = None;
        row.due = settlement.next_due(now).unwrap_or(row.due);
        let counts = match settlement.disposition {
            Disposition::End(state) => {
                (row.state, row.ended_at) = (state, Some(now));
                state != DeliveryState::Delivered
            }
            Disposition::Retry(_) => true,
            Disposition::Postpone(_) => false,
        };
        if let Some(attempt) = &settlement.attempt {
            row.attempts = attempt.number;
            row.failures += u32::from(counts);
            row.records.push(attempt.clone());
        }
        let user = row.user;
        let first = self.first_of(&settlement.target, user)?;
        if first != way
            && let Some(row) = self.deliveries.get_mut(&way).filter(|row| row.is_pending())
        {
            row.due = HELD;
        }
        let next = self.deliveries.get_mut(&first).filter(|row| row.due == HELD)?;
        next.due = first.0.moment().min(now);
        Some(first)
    }

    /// Stores the reply, or that none comes any more. False if it was decided before that there is none.
    pub(in crate::queue) fn reply(&mut self, event: EventId, reply: Option<String>) -> bool {
        let is_anytime = self.broken == BrokenRule::Reply;
        let Some(row) = self.events.get_mut(&event) else { return true };
        match (reply, row.asking) {
            (Some(_), Asking::Decided) if !is_anytime => return false,
            (Some(reply), Asking::Known) if !is_anytime && row.reply.as_ref().is_some_and(|known| *known != reply) => {
                return false;
            }
            (Some(reply), _) => (row.reply, row.asking) = (Some(reply), Asking::Known),
            (None, _) if row.reply.is_none() => row.asking = Asking::Decided,
            (None, _) => {}
        }
        true
    }

    /// Whether it was decided that an event has no reply.
    pub(super) fn is_decided(&self, event: EventId) -> bool {
        self.events.get(&event).is_some_and(|row| matches!(row.asking, Asking::Decided))
    }

    /// Stores the reply to an event that asks no target any more.
    pub(super) fn set_reply(&mut self, event: EventId, reply: String) {
        if let Some(row) = self.events.get_mut(&event) {
            (row.reply, row.asking) = (Some(reply), Asking::Known);
        }
    }

    /// Decides that an event has no reply, unless it has one.
    pub(super) fn decide(&mut self, event: EventId) -> Option<String> {
        self.reply(event, None);
        self.events.get(&event)?.reply.clone()
    }

    /// The event's reply, if it is known whether it has one.
    pub(super) fn known_reply(&self, event: EventId) -> Option<Option<String>> {
        let Some(row) = self.events.get(&event) else { return Some(None) };
        (!matches!(row.asking, Asking::Until(_))).then(|| row.reply.clone())
    }

    pub(super) fn annotate(&mut self, note: AttemptNote) {
        let row = self.deliveries.get_mut(&(note.event, note.target));
        let record = row.and_then(|row| row.records.iter_mut().find(|record| record.number == note.attempt));
        if let Some(record) = record {
            record.error = note.error;
        }
    }

    pub(super) fn pause(&mut self, target: &str, paused: bool) {
        if paused {
            self.paused.insert(target.to_owned())
        } else {
            self.paused.remove(target)
        };
        self.change += 1;
    }

    /// Leases free deliveries that are due; returns also when the next one is.
    pub(super) fn lease(
        &mut self,
        target: &Arc<str>,
        max: usize,
        now: UnixMillis,
        me: u32,
    ) -> (Vec<LeasedDelivery>, Option<UnixMillis>) {
        let free = self.free(target);
        let count = free.iter().take(max).take_while(|(due, _)| *due <= now).count();
        let next = free.get(count).map(|(due, _)| *due);
        let mut leased = Vec::new();
        for (_, id) in free.into_iter().take(count) {
            let counts = self.lease_one(id, target, me);
            if let (Some((attempt, failures)), Some(event)) = (counts, self.events.get(&id)) {
                leased.push(LeasedDelivery { event: Arc::clone(&event.event), attempt, failures });
            }
        }
        (leased, next)
    }

    /// The deliveries that nobody holds and that wait for no other, in the order in which they are leased.
    fn free(&self, target: &str) -> Vec<(UnixMillis, EventId)> {
        let free = self.deliveries.iter().filter(|((_, of), row)| **of == *target && row.is_pending());
        let free = free.filter(|(_, row)| row.holder.is_none() && row.due < HELD);
        let mut free: Vec<_> = free.map(|((event, _), row)| (row.due, *event)).collect();
        free.sort_unstable();
        free
    }

    /// Those of them that are due.
    pub(crate) fn due(&self, target: &str, now: UnixMillis) -> Vec<EventId> {
        self.free(target).into_iter().take_while(|(due, _)| *due <= now).map(|(_, event)| event).collect()
    }

    /// Leases a delivery if it is free; returns which attempt it is, and how many have failed.
    pub(in crate::queue) fn lease_one(&mut self, event: EventId, target: &Arc<str>, me: u32) -> Option<(u32, u32)> {
        let row = self.deliveries.get_mut(&(event, Arc::clone(target)))?;
        (row.is_pending() && row.holder.is_none()).then(|| {
            row.holder = Some(me);
            (row.attempts + 1, row.failures)
        })
    }

    /// Leases the first attempt of an event, if it is free and due.
    pub(super) fn lease_first(&mut self, event: EventId, target: &Arc<str>, me: u32) -> bool {
        let row = self.deliveries.get_mut(&(event, Arc::clone(target)));
        let is_free = |row: &&mut DeliveryRow| row.is_pending() && row.attempts == 0 && row.holder.is_none();
        row.filter(is_free).filter(|row| row.due < HELD).map(|row| row.holder = Some(me)).is_some()
    }

    /// The events from `first` on that have a first attempt to be made, and no decision about their reply.
    pub(super) fn unanswered(&self, first: EventId) -> Vec<Unanswered> {
        let is_open = |event: EventId| {
            let theirs = self.deliveries.iter().filter(|((of, _), row)| *of == event && row.is_pending());
            theirs.filter(|(_, row)| row.attempts == 0).any(|(_, row)| row.holder.is_none())
        };
        let rows = self
            .events
            .range(first..)
            .rev()
            .filter(|(event, row)| !matches!(row.asking, Asking::Decided) && is_open(**event));
        let of = |row: &EventRow| Unanswered { event: Arc::clone(&row.event), key: row.key, reply: row.reply.clone() };
        rows.map(|(_, row)| of(row)).collect()
    }

    /// What is wrong with the rows: a delivery of no event, or an event without all of its own.
    pub(crate) fn flaw(&self) -> Option<String> {
        let orphan = self.deliveries.keys().find(|(event, _)| !self.events.contains_key(event));
        if let Some((event, target)) = orphan {
            return Some(format!("{target} has a delivery of {event}, which is not stored"));
        }
        let counted = |event: EventId| self.deliveries.keys().filter(|(of, _)| *of == event).count();
        let short = self.events.iter().find(|(event, row)| counted(**event) != row.targets);
        short.map(|(event, row)| format!("{event} has not the {} deliveries that it was stored with", row.targets))
    }
}
