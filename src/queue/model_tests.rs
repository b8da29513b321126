//! Every engine against the model engine's store: random operations, crashes and clock jumps, by one process or by two
//! that share the store, have the model's answers.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use proptest::sample::Index;
use proptest::test_runner::TestCaseError;
use tokio::time::{Instant, sleep};

use super::fixture::{NOW, PATIENCE, QueueFixture, TestEngine, new_event_of, on_every_engine, settlement};
use super::model::{AppendRow, AppendTarget, Appended, DeliveryRow, StoreRows};
use super::*;

const TARGETS: [&str; 2] = ["crm", "in-order"];
const USERS: u8 = 3;

/// A step; an index points into what there is at that time.
#[derive(Clone, Debug)]
enum Step {
    Push {
        replica: usize,
        text: u8,
    },
    Reply(Index),
    Lease {
        replica: usize,
        target: usize,
        max: usize,
    },
    Settle {
        lease: Index,
        outcome: Outcome,
    },
    /// A lease is dropped unsettled.
    Return(Index),
    /// All processes end at once.
    Crash,
    /// The clock jumps by this number of seconds.
    Jump(i64),
}

#[derive(Clone, Copy, Debug)]
enum Outcome {
    Deliver,
    Die,
    /// After this number of seconds.
    Retry(u64),
    Postpone(u64),
}

fn step() -> impl Strategy<Value = Step> {
    let outcome = prop_oneof![
        3 => Just(Outcome::Deliver),
        1 => Just(Outcome::Die),
        2 => prop::sample::select(vec![0, 30, 600]).prop_map(Outcome::Retry),
        1 => prop::sample::select(vec![0, 30]).prop_map(Outcome::Postpone),
    ];
    prop_oneof![
        6 => (0..2_usize, 0..14_u8).prop_map(|(replica, text)| Step::Push { replica, text }),
        1 => any::<Index>().prop_map(Step::Reply),
        5 => (0..2_usize, 0..TARGETS.len(), prop::sample::select(vec![1, 2, 100]))
            .prop_map(|(replica, target, max)| Step::Lease { replica, target, max }),
        6 => (any::<Index>(), outcome).prop_map(|(lease, outcome)| Step::Settle { lease, outcome }),
        2 => any::<Index>().prop_map(Step::Return),
        1 => Just(Step::Crash),
        2 => prop::sample::select(vec![-1000, -20, 20, 700]).prop_map(Step::Jump),
    ]
}

/// The contract: the rows of the model engine, and the id of each text's event.
struct Oracle {
    rows: StoreRows,
    /// Holds what any of the processes has leased.
    holder: u32,
    events: BTreeMap<u8, EventId>,
}

impl Oracle {
    fn new() -> Self {
        let mut rows = StoreRows::default();
        let (holder, ..) = rows.join().unwrap();
        Self { rows, holder, events: BTreeMap::new() }
    }

    /// What the push is answered: with the reply, if the event was stored before.
    fn push(&mut self, text: u8, new: &NewEvent) -> Option<(EventId, Option<String>)> {
        let of = |name: &Arc<str>| AppendTarget {
            name: Arc::clone(name),
            due: new.event.received_at,
            in_order: **name == *TARGETS[1],
            is_held: false,
        };
        let row = AppendRow {
            event: Arc::clone(&new.event),
            key: new.key,
            reply: None,
            asked: Duration::ZERO,
            targets: new.targets.iter().map(of).collect(),
            was_sent: false,
        };
        match self.rows.append(&row, self.holder) {
            Appended::Fresh(_) => {
                self.events.insert(text, new.event.id);
                None
            }
            Appended::Duplicate { id, reply, .. } => Some((id, reply)),
        }
    }

    /// What a lease of all would return, as it would.
    fn due(&self, target: usize, now: UnixMillis) -> Vec<EventId> {
        self.rows.due(TARGETS[target], now)
    }

    /// Leases one; returns which attempt it is, and how many have failed.
    fn lease(&mut self, target: usize, event: EventId) -> (u32, u32) {
        self.rows.lease_one(event, &TARGETS[target].into(), self.holder).unwrap()
    }

    fn settle(&mut self, settlement: &Settlement) {
        // By the wall clock, as the engines do it.
        self.rows.settle(settlement, Some(self.holder), UnixMillis::now());
    }

    fn give_back(&mut self, target: usize, event: EventId) {
        self.rows.give_back(&[(event, TARGETS[target].into())], self.holder);
    }

    fn crash(&mut self) {
        self.rows.leave(self.holder);
        (self.holder, ..) = self.rows.join().unwrap();
    }

    fn lines(&self) -> Vec<Option<String>> {
        let line = |((event, target), row): (&(EventId, Arc<str>), &DeliveryRow)| {
            Some(format!("{} {target} {} {} {}", event.0, row.state as u8, row.attempts, row.failures))
        };
        self.rows.deliveries.iter().map(line).collect()
    }
}

/// The processes, and the leases that they hold.
struct Replicas {
    replicas: Vec<QueueFixture>,
    leases: Vec<(usize, usize, Lease)>,
    now: UnixMillis,
}

impl Replicas {
    async fn new(engine: TestEngine) -> Self {
        Self::beside(engine, QueueFixture::open(engine).await).await
    }

    async fn beside(engine: TestEngine, first: QueueFixture) -> Self {
        let mut replicas = vec![first];
        if let Some(second) = replicas[0].beside(engine).await {
            replicas.push(second);
        }
        for replica in &replicas {
            replica.queue.keep_order(&TARGETS[1].into(), DeliveryOrder::PerUser);
        }
        Self { replicas, leases: Vec::new(), now: NOW }
    }

    fn queue(&self, replica: usize) -> &Queue {
        &self.replicas[replica % self.replicas.len()].queue
    }

    async fn push(&self, oracle: &mut Oracle, replica: usize, text: u8) -> Result<(), TestCaseError> {
        let (queue, user) = (self.queue(replica), format!("o{}", text % USERS));
        let mut new = new_event_of(queue.next_id(self.now), &user, &text.to_string(), &TARGETS);
        Arc::get_mut(&mut new.event).unwrap().received_at = self.now;
        let expected = oracle.push(text, &new);
        let answer = match queue.enqueue(new).await.unwrap() {
            Enqueued::Fresh => None,
            Enqueued::Duplicate { id, reply: Known::Answered(reply) } => Some((id, reply)),
            asking @ Enqueued::Duplicate { .. } => return Err(TestCaseError::fail(format!("{asking:?}"))),
        };
        prop_assert_eq!(answer, expected);
        Ok(())
    }

    /// Leases until as many are leased as there should be: one process may see what another freed some time later.
    async fn lease(
        &mut self,
        oracle: &mut Oracle,
        replica: usize,
        target: usize,
        max: usize,
    ) -> Result<(), TestCaseError> {
        let wanted = oracle.due(target, self.now).len().min(max);
        let (mut found, end) = (0, Instant::now() + PATIENCE);
        loop {
            let leases = match self.queue(replica).lease(TARGETS[target], max - found, self.now).await {
                Ok(leases) => leases,
                Err(Error::Away) if Instant::now() < end => {
                    sleep(Duration::from_millis(20)).await;
                    continue;
                }
                Err(error) => return Err(TestCaseError::fail(error.to_string())),
            };
            let due = oracle.due(target, self.now);
            let places: Vec<_> =
                leases.due.iter().map(|lease| due.iter().position(|id| *id == lease.event.id)).collect();
            prop_assert!(places.iter().all(Option::is_some) && places.is_sorted(), "{:?} of {:?}", places, due);
            for lease in leases.due {
                prop_assert_eq!((lease.attempt, lease.failures), oracle.lease(target, lease.event.id));
                found += 1;
                self.leases.push((replica, target, lease));
            }
            if found == wanted {
                return Ok(());
            }
            prop_assert!(Instant::now() < end, "{} of {} leased", found, wanted);
            sleep(Duration::from_millis(20)).await;
        }
    }

    async fn settle(&mut self, oracle: &mut Oracle, place: usize, outcome: Outcome) {
        let (replica, target, lease) = self.leases.swap_remove(place);
        let disposition = match outcome {
            Outcome::Deliver => Disposition::End(DeliveryState::Delivered),
            Outcome::Die => Disposition::End(DeliveryState::Dead),
            Outcome::Retry(seconds) => Disposition::Retry(self.now.after(Duration::from_secs(seconds))),
            Outcome::Postpone(seconds) => Disposition::Postpone(self.now.after(Duration::from_secs(seconds))),
        };
        let settlement = settlement(lease.event.id, TARGETS[target], disposition, lease.attempt);
        oracle.settle(&settlement);
        self.queue(replica).settle(settlement).await.unwrap();
    }

    fn check(&self, oracle: &Oracle) -> Result<(), TestCaseError> {
        let lines = "SELECT d.event || ' ' || t.name || ' ' || d.state || ' ' || d.attempts || ' ' || d.failures \
                       FROM delivery d JOIN target t ON t.no = d.target ORDER BY d.event, t.name";
        prop_assert_eq!(self.replicas[0].texts(lines), oracle.lines());
        Ok(())
    }
}

async fn play(engine: TestEngine, steps: Vec<Step>) -> Result<(), TestCaseError> {
    let (mut replicas, mut oracle) = (Replicas::new(engine).await, Oracle::new());
    for step in steps {
        let leased = replicas.leases.len();
        match step {
            Step::Push { replica, text } => replicas.push(&mut oracle, replica, text).await?,
            Step::Reply(event) if !oracle.events.is_empty() => {
                let id = *event.get(&Vec::from_iter(oracle.events.values().copied()));
                let reply = format!("reply to {id}");
                oracle.rows.reply(id, Some(reply.clone()));
                replicas.queue(0).record_reply(id, reply, None).await.unwrap();
            }
            Step::Lease { replica, target, max } => replicas.lease(&mut oracle, replica, target, max).await?,
            Step::Settle { lease, outcome } if leased > 0 => {
                replicas.settle(&mut oracle, lease.index(leased), outcome).await;
            }
            Step::Return(lease) if leased > 0 => {
                let (_, target, lease) = replicas.leases.swap_remove(lease.index(leased));
                oracle.give_back(target, lease.event.id);
            }
            Step::Crash => {
                let crashed = replicas.replicas[0].crashed().await;
                let now = replicas.now;
                replicas = Replicas { now, ..Replicas::beside(engine, crashed).await };
                oracle.crash();
                replicas.check(&oracle)?;
            }
            Step::Jump(seconds) => replicas.now = UnixMillis(replicas.now.0 + seconds * 1000),
            Step::Reply(_) | Step::Settle { .. } | Step::Return(_) => {}
        }
    }
    // In the end everything is delivered.
    replicas.now = UnixMillis(replicas.now.0 + 100_000_000);
    for target in 0..TARGETS.len() {
        loop {
            while let Some(place) = replicas.leases.iter().position(|(_, of, _)| *of == target) {
                replicas.settle(&mut oracle, place, Outcome::Deliver).await;
            }
            if oracle.due(target, replicas.now).is_empty() {
                break;
            }
            replicas.lease(&mut oracle, 0, target, 100).await?;
        }
    }
    replicas.check(&oracle)
}

fn whatever_happens_the_answers_are_those_of_the_model(engine: TestEngine) {
    proptest!(engine.cases(48), |(steps in prop::collection::vec(step(), 1..60))| {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(play(engine, steps))?;
    });
}

on_every_engine!(; properties: whatever_happens_the_answers_are_those_of_the_model);
