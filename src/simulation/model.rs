//! The promises: every push and its answer, every attempt and its end; and what must hold at each of these.
//!
//! The model knows nothing of the store's contents: [`super::ledger`] reads them and compares them with the model.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use rusqlite::{Connection, OptionalExtension, params};

use crate::backoff::Schedule;
use crate::clock::UnixMillis;
use crate::deliver::{AttemptRequest, Outcome, Role};
use crate::event::EventId;
use crate::queue;

/// Identifies a delivery.
pub(super) type DeliveryKey = (EventId, Arc<str>);

/// A target's settings.
#[derive(Clone, Debug)]
pub(super) struct TargetSpec {
    pub(super) name: Arc<str>,
    pub(super) role: Role,
    pub(super) retry: Schedule,
    pub(super) expire_after: Option<Duration>,
    pub(super) concurrency: usize,
    pub(super) timeout: Duration,
    pub(super) order: queue::DeliveryOrder,
}

/// One event at WeChat, which may take several pushes.
#[derive(Debug)]
pub(super) struct PushContent {
    pub(super) user: u64,
    pub(super) targets: Vec<Arc<str>>,
    /// The event that it is known to be stored as.
    pub(super) stored: Option<EventId>,
    /// The reply that is known to be stored with it, and since when.
    pub(super) reply: Option<(u64, String)>,
}

#[derive(Debug)]
pub(super) struct SimulatedPush {
    pub(super) content: usize,
    pub(super) received_at: UnixMillis,
    /// When it was handed to the queue, and when it was answered, by [`Model::tick`].
    pub(super) asked: u64,
    pub(super) answered: u64,
    pub(super) answer: PushResult,
    /// The targets that keep order, by the settings of that moment.
    pub(super) ordered: (u64, Vec<Arc<str>>),
}

/// The answer to a push.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PushResult {
    /// No answer, yet or for ever.
    None,
    Fresh,
    Duplicate,
    Failed,
}

/// All that is known of a delivery.
#[derive(Debug, Default)]
pub(super) struct SimulatedDelivery {
    pub(super) attempts: Vec<SimulatedAttempt>,
    /// An operator may have revived it, or dropped it.
    pub(super) revived: bool,
    pub(super) dropped: bool,
}

#[derive(Debug)]
pub(super) struct SimulatedAttempt {
    pub(super) number: u32,
    pub(super) life: u32,
    pub(super) probe: bool,
    pub(super) spec: Arc<TargetSpec>,
    pub(super) ended: Option<SimulatedEnd>,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct SimulatedEnd {
    pub(super) at: UnixMillis,
    pub(super) elapsed: Duration,
    pub(super) outcome: Outcome,
}

impl SimulatedAttempt {
    /// Whether it uses up one of the delivery's attempts.
    pub(super) fn counts(&self) -> bool {
        match self.ended.map(|ended| ended.outcome) {
            None | Some(Outcome::Delivered) => false,
            Some(Outcome::Reject) => true,
            Some(Outcome::Retry { .. }) => !self.probe,
        }
    }
}

/// Consecutive failures of a target, while one lane serves it.
#[derive(Debug, Default)]
struct FailureStreak {
    counted: u32,
    first: Option<EventId>,
    of_several: bool,
}

#[derive(Debug, Default)]
pub(super) struct Model {
    /// The first violation.
    pub(super) wrong: Option<String>,
    pub(super) life: u32,
    pub(super) contents: Vec<PushContent>,
    pub(super) pushes: BTreeMap<EventId, SimulatedPush>,
    pub(super) deliveries: BTreeMap<DeliveryKey, SimulatedDelivery>,
    /// How often the clock went back.
    pub(super) back: u32,
    /// The latest the clock ever showed.
    pub(super) latest: UnixMillis,
    /// The shortest expiry that each target ever had.
    pub(super) expiries: BTreeMap<Arc<str>, Duration>,
    /// When the dispatcher last got other settings, by [`Model::tick`].
    pub(super) applied: u64,
    failing: BTreeMap<Arc<str>, FailureStreak>,
    /// The targets that have answered since their lane began.
    answering: BTreeSet<Arc<str>>,
    ticks: u64,
}

impl Model {
    /// Counts on: returns a moment after all earlier ones.
    pub(super) fn tick(&mut self) -> u64 {
        self.latest = self.latest.max(UnixMillis::now());
        self.ticks += 1;
        self.ticks
    }

    /// Whether some targets fail on this event.
    pub(super) fn is_poison(&self, event: EventId) -> bool {
        self.pushes.get(&event).is_some_and(|push| push.content % 13 == 5)
    }

    /// The text of a content; its length varies.
    pub(super) fn text(content: usize, user: u64) -> String {
        let padding = "x".repeat(content * 37 % 400);
        format!(
            "<xml><ToUserName>gh</ToUserName><FromUserName>o{user}</FromUserName><CreateTime>{}</CreateTime>\
             <MsgType>text</MsgType><PushContent>{content}{padding}</PushContent></xml>",
            1_795_161_600 + content
        )
    }

    /// Notes that a new lane serves the target.
    pub(super) fn lane_begins(&mut self, target: &Arc<str>) {
        self.failing.remove(target);
        self.answering.remove(target);
    }

    pub(super) fn asked(
        &mut self,
        event: EventId,
        content: usize,
        received_at: UnixMillis,
        ordered: (u64, Vec<Arc<str>>),
    ) {
        let asked = self.tick();
        let push = SimulatedPush { content, received_at, asked, answered: 0, answer: PushResult::None, ordered };
        self.pushes.insert(event, push);
    }

    /// Records the answer to a push; returns what is wrong with it.
    pub(super) fn answered(
        &mut self,
        reader: &Connection,
        event: EventId,
        result: &Result<queue::Enqueued, queue::Error>,
    ) -> Option<String> {
        let now = self.tick();
        let applied = self.applied;
        let push = self.pushes.get_mut(&event)?;
        push.answered = now;
        // Which order held when it was stored is not known then.
        if applied > push.ordered.0 {
            push.ordered.1.clear();
        }
        let (content, asked) = (push.content, push.asked);
        match result {
            Err(_) => {
                push.answer = PushResult::Failed;
                None
            }
            Ok(queue::Enqueued::Fresh) => {
                push.answer = PushResult::Fresh;
                let before = self.contents[content].stored.replace(event).filter(|before| *before != event);
                self.contents[content].reply = None;
                let expected = self.contents[content].targets.len();
                if stored_deliveries(reader, event) != expected {
                    return Some("answered as stored, but it is not, or not for all its targets".to_owned());
                }
                let before = before?;
                let there = stored(reader, before);
                (there || !self.may_be_deleted(before))
                    .then(|| format!("taken as fresh, but it was stored as {before}"))
            }
            Ok(queue::Enqueued::Duplicate { id, reply }) => {
                push.answer = PushResult::Duplicate;
                if self.pushes.get(id).is_none_or(|first| first.content != content) {
                    return Some(format!("called a duplicate of {id}, which it is not"));
                }
                let known = &mut self.contents[content];
                if known.stored.is_some_and(|stored| stored != *id) && self.pushes[id].answer != PushResult::None {
                    return Some(format!("called a duplicate of {id}, but stored as {:?}", known.stored));
                }
                known.stored = Some(*id);
                let promised = known.reply.as_ref().filter(|(since, _)| *since < asked);
                let lost = promised.filter(|(_, promised)| reply.as_ref() != Some(promised));
                lost.map(|(_, promised)| format!("the reply is {promised:?}, a repeat was told {reply:?}"))
            }
        }
    }

    /// Whether retention may have deleted the event: it has no delivery that waits for a target or an operator.
    pub(super) fn may_be_deleted(&self, event: EventId) -> bool {
        let Some(push) = self.pushes.get(&event) else { return false };
        self.contents[push.content].targets.iter().all(|target| {
            let delivery = self.deliveries.get(&(event, Arc::clone(target)));
            let delivered = |delivery: &SimulatedDelivery| {
                delivery.dropped
                    || delivery
                        .attempts
                        .iter()
                        .any(|attempt| attempt.ended.is_some_and(|ended| ended.outcome == Outcome::Delivered))
            };
            delivery.is_some_and(delivered) || self.may_have_expired(target, push)
        })
    }

    /// Whether the delivery may have become too old at any time.
    pub(super) fn may_have_expired(&self, target: &Arc<str>, push: &SimulatedPush) -> bool {
        self.expiries.get(target).is_some_and(|span| self.latest >= push.received_at.after(*span))
    }

    /// Records that an attempt reaches its target; returns what is wrong with it.
    pub(super) fn begin(
        &mut self,
        reader: &Connection,
        spec: &Arc<TargetSpec>,
        order: &AttemptRequest<'_>,
        probe: bool,
    ) -> Option<String> {
        let event = order.event;
        let wrong = self.wrong_with(reader, spec, order, probe);
        let record =
            SimulatedAttempt { number: order.attempt, life: self.life, probe, spec: Arc::clone(spec), ended: None };
        self.deliveries.entry((event.id, Arc::clone(&spec.name))).or_default().attempts.push(record);
        wrong
    }

    fn wrong_with(
        &self,
        reader: &Connection,
        spec: &Arc<TargetSpec>,
        order: &AttemptRequest<'_>,
        probe: bool,
    ) -> Option<String> {
        let (event, now) = (order.event, UnixMillis::now());
        let Some(push) = self.pushes.get(&event.id) else { return Some("nobody pushed this".to_owned()) };
        let content = &self.contents[push.content];
        if event.clear != Self::text(push.content, content.user) {
            return Some("not the text that was pushed".to_owned());
        }
        let row = reader
            .prepare_cached(
                "SELECT d.state, d.due, d.attempts FROM delivery d JOIN target t ON t.no = d.target \
                  WHERE d.event = ?1 AND t.name = ?2",
            )
            .unwrap()
            .query_row(params![event.id, &*spec.name], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)));
        let Some((state, due, attempts)) = row.optional().unwrap() else {
            return Some("attempted, but not stored".to_owned());
        };
        let (state, due, attempts): (queue::DeliveryState, UnixMillis, u32) = (state, due, attempts);
        if state != queue::DeliveryState::Pending {
            return Some(format!("attempted, but it is {}", state.name()));
        }
        if order.attempt != attempts + 1 {
            return Some(format!("attempt {} after {attempts}", order.attempt));
        }
        if due == UnixMillis(i64::MAX) || due > now && self.back == 0 {
            return Some(format!("attempted at {now}, due at {due}"));
        }
        if let Some(span) = spec.expire_after
            && now >= push.received_at.after(span)
        {
            return Some(format!("attempted at {now}, but expired after {span:?}"));
        }
        let same = self.deliveries.get(&(event.id, Arc::clone(&spec.name)));
        if same.is_some_and(|delivery| delivery.attempts.iter().any(|attempt| self.is_under_way(attempt))) {
            return Some("attempted twice at once".to_owned());
        }
        let at_target = || self.deliveries.iter().filter(|((_, target), _)| *target == spec.name);
        let under_way = at_target().flat_map(|(_, delivery)| &delivery.attempts).filter(|a| self.is_under_way(a));
        // A lane that ends still has attempts in progress when the next one begins.
        let same_settings = under_way.filter(|attempt| Arc::ptr_eq(&attempt.spec, spec)).collect::<Vec<_>>();
        if same_settings.len() >= spec.concurrency * 2 {
            return Some(format!("{} attempts under way already", same_settings.len()));
        }
        // An answer to an earlier attempt closes the breaker while a probe is in progress, and five failures open it
        // again.
        if probe && !self.answering.contains(&spec.name) && same_settings.iter().any(|attempt| attempt.probe) {
            return Some("two probes at once".to_owned());
        }
        self.breaker_is_late(spec, probe).or_else(|| self.out_of_turn(reader, spec, event.id, push))
    }

    fn is_under_way(&self, attempt: &SimulatedAttempt) -> bool {
        attempt.life == self.life && attempt.ended.is_none()
    }

    /// A target that keeps failing gets only probes; attempts in progress when the breaker opened count, too.
    fn breaker_is_late(&self, spec: &TargetSpec, probe: bool) -> Option<String> {
        let row = self.failing.get(&spec.name)?;
        let late = !probe && row.of_several && row.counted > 5 + 8;
        late.then(|| format!("not a probe after {} failures in a row", row.counted))
    }

    /// In the order in which WeChat sent them: every event that was stored before this one was pushed has ended.
    fn out_of_turn(
        &self,
        reader: &Connection,
        spec: &TargetSpec,
        event: EventId,
        push: &SimulatedPush,
    ) -> Option<String> {
        let revived = |event| self.deliveries.get(&(event, Arc::clone(&spec.name))).is_some_and(|d| d.revived);
        // An attempt may come before the push is answered, and so before `answered` has checked whether the order is
        // known.
        let unknown = self.applied > push.ordered.0;
        if !push.ordered.1.contains(&spec.name) || unknown && push.answer == PushResult::None || revived(event) {
            return None;
        }
        let mut earlier = reader
            .prepare_cached(
                "SELECT d.event FROM delivery d JOIN target t ON t.no = d.target \
                  WHERE d.state = 0 AND t.name = ?1 AND d.event < ?2",
            )
            .unwrap();
        let earlier = earlier.query_map(params![&*spec.name, event], |row| row.get::<_, EventId>(0)).unwrap();
        let user = self.contents[push.content].user;
        earlier.map(Result::unwrap).filter(|other| !revived(*other)).find_map(|other| {
            let before = self.pushes.get(&other)?;
            let same_user = self.contents[before.content].user == user;
            let known = before.answer == PushResult::Fresh && before.answered < push.asked;
            (same_user && known && before.ordered.1.contains(&spec.name))
                .then(|| format!("attempted before {other} of the same user"))
        })
    }

    /// Records the end of an attempt.
    pub(super) fn end(
        &mut self,
        spec: &TargetSpec,
        event: EventId,
        outcome: Outcome,
        at: UnixMillis,
        elapsed: Duration,
    ) {
        let Some(delivery) = self.deliveries.get_mut(&(event, Arc::clone(&spec.name))) else { return };
        let Some(record) = delivery.attempts.last_mut() else { return };
        record.ended = Some(SimulatedEnd { at, elapsed, outcome });
        let counts = record.counts();
        let row = self.failing.entry(Arc::clone(&spec.name)).or_default();
        if !matches!(outcome, Outcome::Retry { .. }) {
            *row = FailureStreak::default();
            self.answering.insert(Arc::clone(&spec.name));
        } else if counts {
            let first = *row.first.get_or_insert(event);
            row.of_several |= first != event;
            // A single event may fail any number of times.
            row.counted = if row.of_several { row.counted + 1 } else { 1 };
        }
    }
}

fn stored_deliveries(reader: &Connection, event: EventId) -> usize {
    let mut count = reader.prepare_cached("SELECT count(*) FROM delivery WHERE event = ?1").unwrap();
    usize::try_from(count.query_row([event], |row| row.get::<_, i64>(0)).unwrap()).unwrap()
}

fn stored(reader: &Connection, event: EventId) -> bool {
    reader.prepare_cached("SELECT 1 FROM event WHERE id = ?1").unwrap().exists([event]).unwrap()
}
