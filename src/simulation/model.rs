//! The promises: every push and its answer, every attempt and its end; and what must hold at each of these.
//!
//! The model knows nothing of the store's contents: [`super::ledger`] reads them and compares them with the model.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::reader::StoreReader;
use crate::backoff::Schedule;
use crate::clock::UnixMillis;
use crate::deliver::{Outcome, Role};
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
    /// What the sender was answered first, in a cluster: every answer is that.
    pub(super) told: Option<Option<String>>,
}

/// An attempt that reaches its target.
#[derive(Clone, Debug)]
pub(super) struct ReachedAttempt {
    pub(super) event: EventId,
    pub(super) clear: Bytes,
    pub(super) number: u32,
    /// When the relay decided to make it.
    pub(super) decided: UnixMillis,
    pub(super) probe: bool,
    /// Which process makes it; 0 where there is one at a time.
    pub(super) replica: u32,
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
    pub(super) replica: u32,
    /// Which of the target's lanes made it: the breaker of the next one does not count it.
    pub(super) lane: u32,
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
    /// Whether several processes share the store, and how far their clocks are apart.
    pub(super) is_cluster: bool,
    pub(super) apart: Duration,
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
    failing: BTreeMap<(u32, Arc<str>), FailureStreak>,
    /// How many lanes have served a target of a replica.
    lanes: BTreeMap<(u32, Arc<str>), u32>,
    /// The targets that have answered since their lane began.
    answering: BTreeSet<(u32, Arc<str>)>,
    ticks: u64,
}

impl Model {
    /// Of several replicas, whose clocks are so far apart.
    pub(super) fn of_cluster(apart: Duration) -> Self {
        Self { is_cluster: true, apart, ..Self::default() }
    }

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
        self.lane_begins_at(0, target);
    }

    pub(super) fn lane_begins_at(&mut self, replica: u32, target: &Arc<str>) {
        let lane = (replica, Arc::clone(target));
        self.failing.remove(&lane);
        self.answering.remove(&lane);
        *self.lanes.entry(lane).or_default() += 1;
    }

    fn lane_of(&self, replica: u32, target: &Arc<str>) -> u32 {
        self.lanes.get(&(replica, Arc::clone(target))).copied().unwrap_or_default()
    }

    /// Notes that a process has ended: what it had under way is not known any more.
    pub(super) fn kill(&mut self, replica: u32) {
        let all = self.deliveries.values_mut().flat_map(|delivery| &mut delivery.attempts);
        all.filter(|attempt| attempt.replica == replica).for_each(|attempt| attempt.life = 0);
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
        reader: &StoreReader,
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
                // In a cluster it may be stored.
                push.answer = if self.is_cluster { PushResult::None } else { PushResult::Failed };
                None
            }
            Ok(queue::Enqueued::Fresh) => {
                push.answer = PushResult::Fresh;
                let before = self.contents[content].stored.replace(event).filter(|before| *before != event);
                self.contents[content].reply = None;
                let expected = self.contents[content].targets.len();
                if reader.deliveries_of(event) != expected {
                    return Some("answered as stored, but it is not, or not for all its targets".to_owned());
                }
                let before = before?;
                let there = reader.is_stored(before);
                (there || !self.may_be_deleted(before))
                    .then(|| format!("taken as fresh, but it was stored as {before}"))
            }
            Ok(queue::Enqueued::Duplicate { id, reply: queue::Known::Asking(_) }) if !self.is_cluster => {
                Some(format!("{id} is said to be asked about elsewhere"))
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
                let queue::Known::Answered(reply) = reply else { return None };
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

    /// Records what the sender was answered, in a cluster; returns what is wrong with it.
    pub(super) fn told(&mut self, content: usize, reply: Option<String>) -> Option<String> {
        let told = self.contents[content].told.get_or_insert_with(|| reply.clone());
        (*told != reply).then(|| format!("answered {reply:?}, and before {told:?}"))
    }

    /// Records that an attempt reaches its target; returns what is wrong with it.
    pub(super) fn begin(
        &mut self,
        reader: &StoreReader,
        spec: &Arc<TargetSpec>,
        reached: &ReachedAttempt,
    ) -> Option<String> {
        let wrong = self.wrong_with(reader, spec, reached);
        self.record(spec, reached);
        wrong
    }

    /// Records an attempt.
    pub(super) fn record(&mut self, spec: &Arc<TargetSpec>, reached: &ReachedAttempt) {
        let ReachedAttempt { event, number, probe, replica, .. } = *reached;
        let lane = self.lane_of(replica, &spec.name);
        let record =
            SimulatedAttempt { number, life: self.life, probe, replica, lane, spec: Arc::clone(spec), ended: None };
        self.deliveries.entry((event, Arc::clone(&spec.name))).or_default().attempts.push(record);
    }

    fn wrong_with(&self, reader: &StoreReader, spec: &Arc<TargetSpec>, reached: &ReachedAttempt) -> Option<String> {
        let ReachedAttempt { event, number, probe, replica, .. } = *reached;
        let now = UnixMillis::now();
        let Some(push) = self.pushes.get(&event) else { return Some("nobody pushed this".to_owned()) };
        let content = &self.contents[push.content];
        if reached.clear != Self::text(push.content, content.user) {
            return Some("not the text that was pushed".to_owned());
        }
        let Some((state, due, attempts)) = reader.delivery(event, &spec.name) else {
            return Some("attempted, but not stored".to_owned());
        };
        if state != queue::DeliveryState::Pending {
            return Some(format!("attempted, but it is {}", state.name()));
        }
        if number != attempts + 1 {
            return Some(format!("attempt {number} after {attempts}"));
        }
        if due == UnixMillis(i64::MAX) || due > now.after(self.apart) && self.back == 0 {
            return Some(format!("attempted at {now}, due at {due}"));
        }
        if let Some(span) = spec.expire_after
            && reached.decided >= push.received_at.after(span)
        {
            return Some(format!("attempted at {now}, but expired after {span:?}"));
        }
        let same = self.deliveries.get(&(event, Arc::clone(&spec.name)));
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
        let lane = (replica, Arc::clone(&spec.name));
        if probe && !self.answering.contains(&lane) && same_settings.iter().any(|attempt| attempt.probe) {
            return Some("two probes at once".to_owned());
        }
        self.breaker_is_late(&lane, probe).or_else(|| self.out_of_turn(reader, spec, event, push))
    }

    fn is_under_way(&self, attempt: &SimulatedAttempt) -> bool {
        attempt.life == self.life && attempt.ended.is_none()
    }

    /// A target that keeps failing gets only probes; attempts in progress when the breaker opened count, too.
    fn breaker_is_late(&self, lane: &(u32, Arc<str>), probe: bool) -> Option<String> {
        let row = self.failing.get(lane)?;
        let late = !probe && row.of_several && row.counted > 5 + 8;
        late.then(|| format!("not a probe after {} failures in a row", row.counted))
    }

    /// In the order in which WeChat sent them: every event that was stored before this one was pushed has ended.
    fn out_of_turn(
        &self,
        reader: &StoreReader,
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
        let earlier = reader.pending(&spec.name).into_iter().filter(|other| *other != event);
        let user = self.contents[push.content].user;
        earlier.filter(|other| !revived(*other)).find_map(|other| {
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
        (event, replica): (EventId, u32),
        outcome: Outcome,
        at: UnixMillis,
        elapsed: Duration,
    ) {
        let lane = self.lane_of(replica, &spec.name);
        let Some(delivery) = self.deliveries.get_mut(&(event, Arc::clone(&spec.name))) else { return };
        let is_this = |attempt: &&mut SimulatedAttempt| attempt.replica == replica && attempt.ended.is_none();
        let Some(record) = delivery.attempts.iter_mut().rev().find(is_this) else { return };
        record.ended = Some(SimulatedEnd { at, elapsed, outcome });
        let counts = record.counts();
        if record.lane != lane {
            return;
        }
        let row = self.failing.entry((replica, Arc::clone(&spec.name))).or_default();
        if !matches!(outcome, Outcome::Retry { .. }) {
            *row = FailureStreak::default();
            self.answering.insert((replica, Arc::clone(&spec.name)));
        } else if counts {
            let first = *row.first.get_or_insert(event);
            row.of_several |= first != event;
            // A single event may fail any number of times.
            row.counted = if row.of_several { row.counted + 1 } else { 1 };
        }
    }
}
