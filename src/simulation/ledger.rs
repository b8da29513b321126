//! The contents of the store, row by row, compared with the promises.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use super::model::{DeliveryKey, Model, PushResult, SimulatedAttempt, SimulatedDelivery, SimulatedEnd, TargetSpec};
use super::reader::StoreReader;
use crate::clock::UnixMillis;
use crate::deliver::{Outcome, Role};
use crate::event::EventId;
use crate::queue::DeliveryState;

/// How long after its end an attempt is settled at the latest, unless the store is in trouble.
const SETTLED: Duration = Duration::from_secs(2);
/// Due at the end of time: held behind an earlier delivery of the user.
const HELD: UnixMillis = UnixMillis(i64::MAX);

/// A delivery as it is stored.
#[derive(Clone, Debug)]
pub(super) struct DeliverySnapshot {
    pub(super) state: DeliveryState,
    pub(super) due: UnixMillis,
    pub(super) attempts: u32,
    pub(super) failures: u32,
    pub(super) ended_at: Option<UnixMillis>,
    /// The user, where order is kept.
    pub(super) user: Option<i64>,
    /// The records of attempts: how many, and the last one's number.
    pub(super) records: (u32, u32),
}

/// The store at one moment.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    pub(super) deliveries: BTreeMap<DeliveryKey, DeliverySnapshot>,
    events: BTreeSet<EventId>,
    /// How often the clock had gone back by then.
    back: u32,
}

/// What else is known at the moment of a check.
pub(super) struct CheckContext {
    pub(super) now: UnixMillis,
    pub(super) elapsed: Duration,
    /// When the store's last trouble ended, or will end.
    pub(super) trouble: Duration,
    /// How long finished events are kept at least.
    pub(super) kept: Duration,
}

impl Ledger {
    pub(super) fn read(reader: &StoreReader, back: u32) -> Self {
        let (events, deliveries) = reader.snapshot();
        Self { deliveries, events, back }
    }

    pub(super) fn pending(&self) -> impl Iterator<Item = (&DeliveryKey, &DeliverySnapshot)> {
        self.deliveries.iter().filter(|(_, entry)| entry.state == DeliveryState::Pending)
    }

    /// Compares the store with the model, and with its contents `before`; returns the first violation.
    pub(super) fn check(&self, before: &Self, model: &mut Model, moment: &CheckContext) -> Option<String> {
        self.events(model, moment).or_else(|| {
            let model = &*model;
            self.deliveries.iter().find_map(|(way, entry)| {
                let wrong = self
                    .explain(model, way, entry, moment)
                    .or_else(|| self.changed(model, way, entry, before, moment))
                    .or_else(|| self.held(way, entry));
                wrong.map(|wrong| format!("{} {}: {wrong}; stored is {entry:?}", way.1, way.0))
            })
        })
    }

    /// Every content is stored once, unchanged, until retention may delete it; and nothing else is stored.
    fn events(&self, model: &mut Model, moment: &CheckContext) -> Option<String> {
        for event in &self.events {
            let Some(push) = model.pushes.get(event) else { return Some(format!("{event} is stored, but not pushed")) };
            if push.answer == PushResult::Failed {
                return Some(format!("{event} is stored, but its push was told that it is not"));
            }
            let content = &mut model.contents[push.content];
            match content.stored.replace(*event) {
                Some(other) if other != *event && self.events.contains(&other) => {
                    return Some(format!("{event} and {other} are the same, and both stored"));
                }
                Some(_) | None => {}
            }
            let whole = content.targets.iter().all(|t| self.deliveries.contains_key(&(*event, Arc::clone(t))));
            if !whole {
                return Some(format!("{event} is stored without all its deliveries"));
            }
        }
        for at in 0..model.contents.len() {
            let Some(event) = model.contents[at].stored.filter(|event| !self.events.contains(event)) else { continue };
            if !model.may_be_deleted(event) || model.latest < event.moment().after(moment.kept) {
                return Some(format!("{event} is lost"));
            }
            model.contents[at].stored = None;
            model.contents[at].reply = None;
        }
        None
    }

    /// A delivery's state follows from its attempts.
    fn explain(
        &self,
        model: &Model,
        way: &DeliveryKey,
        entry: &DeliverySnapshot,
        moment: &CheckContext,
    ) -> Option<String> {
        let nothing = SimulatedDelivery::default();
        let delivery = model.deliveries.get(way).unwrap_or(&nothing);
        if entry.records != (entry.attempts, entry.attempts) {
            return Some("the records of attempts have gaps".to_owned());
        }
        if let Some(lost) = delivery.attempts.iter().find(|attempt| is_lost(model, attempt, entry, moment)) {
            return Some(format!("attempt {} is not settled", lost.number));
        }
        // An attempt that was not settled is made again under its number: the last one of a number is what counts. Where
        // there are several replicas, it may be any of them.
        let mut settled: BTreeMap<u32, Vec<&SimulatedAttempt>> = BTreeMap::new();
        for attempt in delivery.attempts.iter().filter(|a| a.ended.is_some() && a.number <= entry.attempts) {
            let same = settled.entry(attempt.number).or_default();
            if !model.is_cluster {
                same.clear();
            }
            same.push(attempt);
        }
        if settled.len() != entry.attempts as usize {
            return Some(format!("{} attempts are known", settled.len()));
        }
        let most = settled.values().filter(|same| same.iter().any(|attempt| attempt.counts())).count();
        let least = settled.values().filter(|same| same.iter().all(|attempt| attempt.counts())).count();
        if entry.failures as usize > most || !delivery.revived && !delivery.dropped && (entry.failures as usize) < least
        {
            return Some(format!("{most} attempts count"));
        }
        match settled.last_key_value() {
            Some((_, last)) => {
                let wrong: Vec<_> = last.iter().map(|last| wrong_end(model, way, entry, last, delivery)).collect();
                wrong.into_iter().min_by_key(Option::is_some).flatten()
            }
            None => wrong_start(model, way, entry, delivery),
        }
    }

    /// An ended delivery stays as it is, unless an operator changes it.
    fn changed(
        &self,
        model: &Model,
        way: &DeliveryKey,
        entry: &DeliverySnapshot,
        before: &Self,
        moment: &CheckContext,
    ) -> Option<String> {
        let was = before.deliveries.get(way)?;
        let released = was.due == HELD && entry.due != HELD && entry.attempts == was.attempts;
        if released && before.back == self.back && entry.due > moment.now {
            return Some(format!("its turn has come, but it is due later than {}", moment.now));
        }
        let by_hand = model.deliveries.get(way);
        let ended = was.state != DeliveryState::Pending;
        let legal = match (was.state, entry.state) {
            (from, to) if from == to => !ended || from == DeliveryState::Dead || entry.ended_at == was.ended_at,
            (DeliveryState::Pending, _) => true,
            (DeliveryState::Dead, DeliveryState::Cancelled) => by_hand.is_some_and(|delivery| delivery.dropped),
            (DeliveryState::Dead, _) => by_hand.is_some_and(|delivery| delivery.revived),
            _ => false,
        };
        (!legal).then(|| format!("it was {}", was.state.name()))
    }

    /// A held delivery waits for an earlier one of its user.
    fn held(&self, way: &DeliveryKey, entry: &DeliverySnapshot) -> Option<String> {
        if entry.state != DeliveryState::Pending || entry.due != HELD {
            return None;
        }
        let before = self.pending().any(|((_, target), other)| {
            *target == way.1 && other.due != HELD && other.user.is_some() && other.user == entry.user
        });
        (!before).then(|| "held behind nobody".to_owned())
    }
}

/// Whether the attempt's end should be stored by now, and is not.
fn is_lost(model: &Model, attempt: &SimulatedAttempt, entry: &DeliverySnapshot, moment: &CheckContext) -> bool {
    attempt.ended.is_some_and(|ended| {
        attempt.life == model.life
            && attempt.number > entry.attempts
            && ended.elapsed >= moment.trouble
            && moment.elapsed > ended.elapsed + SETTLED
    })
}

/// What is wrong with a delivery of which no attempt is settled.
fn wrong_start(
    model: &Model,
    way: &DeliveryKey,
    entry: &DeliverySnapshot,
    delivery: &SimulatedDelivery,
) -> Option<String> {
    let push = &model.pushes[&way.0];
    let legal = match entry.state {
        DeliveryState::Pending => {
            entry.due == HELD || entry.due >= push.received_at.before(model.apart) || model.back > 0
        }
        DeliveryState::Expired => model.may_have_expired(&way.1, push),
        DeliveryState::Cancelled => delivery.dropped,
        DeliveryState::Delivered | DeliveryState::Dead => false,
    };
    (!legal).then(|| "that without an attempt".to_owned())
}

/// What is wrong with a delivery after its last settled attempt.
fn wrong_end(
    model: &Model,
    way: &DeliveryKey,
    entry: &DeliverySnapshot,
    last: &SimulatedAttempt,
    delivery: &SimulatedDelivery,
) -> Option<String> {
    let SimulatedEnd { at, outcome, .. } = last.ended?;
    let push = &model.pushes[&way.0];
    let expired = model.may_have_expired(&way.1, push);
    let legal = match (outcome, entry.state) {
        (_, DeliveryState::Cancelled) => delivery.dropped,
        (Outcome::Delivered, state) => state == DeliveryState::Delivered,
        (_, DeliveryState::Pending) if delivery.revived && entry.failures == 0 => true,
        // Behind an earlier event of its user that an operator made pending again; due at once when its turn comes.
        (_, DeliveryState::Pending) if entry.due == HELD => true,
        // No later than its id says, which may lie ahead of a clock that was set back.
        (_, DeliveryState::Pending)
            if delivery.revived && entry.user.is_some() && entry.due <= at.max(way.0.moment()) =>
        {
            true
        }
        (_, DeliveryState::Expired) if expired => true,
        (Outcome::Reject, state) => state == DeliveryState::Dead,
        // Earlier where the clock was set back since.
        (Outcome::Retry { .. }, DeliveryState::Pending) if last.probe => {
            entry.due <= at.after(model.apart) && (entry.due >= at.before(model.apart) || model.back > 0)
        }
        (Outcome::Retry { .. }, _) if last.probe => false,
        (Outcome::Retry { after }, state) => {
            let wait = wait(&last.spec, entry.failures, after);
            let expiry = last.spec.expire_after.map(|span| push.received_at.after(span));
            match (wait, state) {
                (Some((least, most)), DeliveryState::Pending) => {
                    let (least, most) = (at.after(least), at.after(most));
                    // Earlier where the clock was set back since.
                    (least.before(model.apart) <= entry.due || model.back > 0)
                        && entry.due <= most.after(model.apart)
                        && expiry.is_none_or(|expiry| entry.due < expiry.after(model.apart))
                }
                (Some((_, most)), DeliveryState::Expired) => expiry.is_some_and(|expiry| at.after(most) >= expiry),
                (None, DeliveryState::Dead) => true,
                _ => false,
            }
        }
    };
    (!legal).then(|| format!("that after attempt {}, which ended at {at}: {outcome:?}", last.number))
}

/// The shortest and the longest wait after so many failures: a fifth less and more than configured, or what the target
/// asked for; none at the schedule's end.
fn wait(spec: &TargetSpec, failures: u32, asked: Option<Duration>) -> Option<(Duration, Duration)> {
    let waits = spec.retry.waits();
    let at = (failures as usize).checked_sub(1)?;
    let last = if spec.role == Role::Identity { waits.last() } else { None };
    let wait = waits.get(at).or(last)?;
    let asked = asked.unwrap_or_default();
    Some(((*wait * 4 / 5).max(asked), (*wait * 6 / 5).max(asked)))
}
