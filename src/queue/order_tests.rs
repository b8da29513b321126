//! `DeliveryOrder::PerUser`: one user's events one after the other, whatever happens in between, and no other user
//! waits.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use proptest::prelude::*;
use proptest::test_runner::TestCaseError;

use super::fixture::{NOW, QueueFixture, TestEngine, on_every_engine};
use super::{DeliveryOrder, DeliveryState, Disposition, Enqueued, Lease, NewEvent, Queue, Settlement};
use crate::clock::UnixMillis;
use crate::event::{ContentKey, Event, EventId};
use crate::wechat::{Message, Mode};

struct OrderFixture {
    fixture: Option<QueueFixture>,
    queue: Queue,
    target: Arc<str>,
    pushes: u64,
    /// The outstanding leases, by event.
    out: HashMap<EventId, Lease>,
}

impl OrderFixture {
    async fn open(engine: TestEngine) -> Self {
        let fixture = QueueFixture::open(engine).await;
        let (queue, target) = (fixture.queue.clone(), Arc::from("crm"));
        queue.keep_order(&target, DeliveryOrder::PerUser);
        Self { fixture: Some(fixture), queue, target, pushes: 0, out: HashMap::new() }
    }

    /// Leases are lost, the store stays.
    async fn reopen(&mut self) {
        self.out.clear();
        let fixture = self.fixture.take().unwrap().reopen().await;
        self.queue = fixture.queue.clone();
        self.queue.keep_order(&self.target, DeliveryOrder::PerUser);
        self.fixture = Some(fixture);
    }

    async fn push(&mut self, user: u8) -> EventId {
        self.pushes += 1;
        let clear = Bytes::from(format!(
            "<xml><FromUserName>o{user}</FromUserName><CreateTime>1</CreateTime><Content>{}</Content></xml>",
            self.pushes
        ));
        let message = Message::parse(&clear).unwrap();
        let event = Event {
            id: self.queue.next_id(NOW),
            account: "shop".into(),
            app_id: "wx1".into(),
            mode: Mode::Secure,
            received_at: NOW,
            query: String::new(),
            body: Bytes::from_static(b"sealed"),
            message,
            clear,
            traceparent: None,
        };
        let (id, key) = (event.id, ContentKey::of("wx1", &event.message, &event.clear));
        let targets = vec![Arc::clone(&self.target)];
        let new = NewEvent { event: Arc::new(event), key, targets, reply: None, awaited: Vec::new() };
        assert!(matches!(self.queue.enqueue(new).await.unwrap(), Enqueued::Fresh));
        id
    }

    /// Leases all that can be leased, and returns which events that were.
    async fn lease(&mut self) -> Vec<EventId> {
        let due = self.queue.lease(&self.target, 100, NOW).await.unwrap().due;
        let ids = due.iter().map(|lease| lease.event.id).collect();
        self.out.extend(due.into_iter().map(|lease| (lease.event.id, lease)));
        ids
    }

    async fn settle(&mut self, event: EventId, disposition: Disposition) {
        let settlement = Settlement {
            event,
            target: Arc::clone(&self.target),
            disposition,
            decided_at: NOW,
            attempt: None,
            reply: None,
        };
        self.queue.settle(settlement).await.unwrap();
        self.out.remove(&event);
    }
}

async fn a_users_next_event_waits_for_the_one_before_and_other_users_go_on(engine: TestEngine) {
    let mut fixture = OrderFixture::open(engine).await;
    let (first, second, other) = (fixture.push(1).await, fixture.push(1).await, fixture.push(2).await);
    assert_eq!(fixture.lease().await, [first, other]);
    fixture.settle(first, Disposition::Retry(NOW)).await;
    assert_eq!(fixture.lease().await, [first], "a retry keeps its place");
    fixture.settle(first, Disposition::End(DeliveryState::Dead)).await;
    assert_eq!(fixture.lease().await, [second]);
}

async fn fresh_events_are_handed_over_in_memory_only_when_it_is_their_turn(engine: TestEngine) {
    let mut fixture = OrderFixture::open(engine).await;
    let mut inbox = fixture.queue.subscribe(Arc::clone(&fixture.target), 8);
    let (first, second) = (fixture.push(1).await, fixture.push(1).await);
    let lease = inbox.fresh.recv().await.unwrap();
    assert_eq!(lease.event.id, first);
    assert!(inbox.fresh.try_recv().is_err());
    fixture.settle(first, Disposition::End(DeliveryState::Delivered)).await;
    assert_eq!(fixture.lease().await, [second]);
}

async fn after_the_clock_went_back_a_users_next_event_is_due_when_its_turn_comes(engine: TestEngine) {
    let mut fixture = OrderFixture::open(engine).await;
    // An id from before, when the clock was an hour ahead.
    fixture.queue.next_id(UnixMillis::now().after(std::time::Duration::from_secs(3600)));
    let (first, second) = (fixture.push(1).await, fixture.push(1).await);
    fixture.lease().await;
    fixture.settle(first, Disposition::End(DeliveryState::Delivered)).await;
    let due = fixture.queue.lease(&fixture.target, 100, UnixMillis::now()).await.unwrap().due;
    assert_eq!(due.iter().map(|lease| lease.event.id).collect::<Vec<_>>(), [second]);
}

async fn what_was_held_is_told_of_though_the_target_keeps_order_no_more(engine: TestEngine) {
    let mut fixture = OrderFixture::open(engine).await;
    let (first, second) = (fixture.push(1).await, fixture.push(1).await);
    fixture.lease().await;
    let inbox = fixture.queue.subscribe(Arc::clone(&fixture.target), 8);
    inbox.wake.notified().await;
    fixture.queue.keep_order(&fixture.target, DeliveryOrder::None);
    fixture.settle(first, Disposition::End(DeliveryState::Delivered)).await;
    let told = tokio::time::timeout(std::time::Duration::from_secs(20), inbox.wake.notified());
    assert!(told.await.is_ok());
    assert_eq!(fixture.lease().await, [second]);
}

#[derive(Clone, Debug)]
enum Step {
    Push(u8),
    Lease,
    /// The outstanding lease at that index is settled.
    Deliver(prop::sample::Index),
    Retry(prop::sample::Index),
    Die(prop::sample::Index),
    Restart,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0..3_u8).prop_map(Step::Push),
        3 => Just(Step::Lease),
        2 => any::<prop::sample::Index>().prop_map(Step::Deliver),
        2 => any::<prop::sample::Index>().prop_map(Step::Retry),
        1 => any::<prop::sample::Index>().prop_map(Step::Die),
        1 => Just(Step::Restart),
    ]
}

fn whatever_happens_each_user_is_served_in_order(engine: TestEngine) {
    proptest!(engine.cases(24), |(steps in prop::collection::vec(step(), 1..60))| {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(run(engine, steps))?;
    });
}

/// Plays the steps against the simplest model: each user's pending events in a list, of which the first may be leased.
async fn run(engine: TestEngine, steps: Vec<Step>) -> Result<(), TestCaseError> {
    let mut fixture = OrderFixture::open(engine).await;
    let mut pending: HashMap<u8, Vec<EventId>> = HashMap::new();
    for step in steps {
        match step {
            Step::Push(user) => pending.entry(user).or_default().push(fixture.push(user).await),
            Step::Lease => check_lease(&mut fixture, &pending).await?,
            Step::Restart => fixture.reopen().await,
            Step::Deliver(at) => {
                end(&mut fixture, &mut pending, |len| at.index(len), Some(DeliveryState::Delivered)).await
            }
            Step::Die(at) => end(&mut fixture, &mut pending, |len| at.index(len), Some(DeliveryState::Dead)).await,
            Step::Retry(at) => end(&mut fixture, &mut pending, |len| at.index(len), None).await,
        }
    }
    // In the end every event is delivered.
    for _ in 0..pending.values().map(Vec::len).sum() {
        check_lease(&mut fixture, &pending).await?;
        end(&mut fixture, &mut pending, |_| 0, Some(DeliveryState::Delivered)).await;
    }
    prop_assert!(pending.values().all(Vec::is_empty));
    Ok(())
}

async fn check_lease(fixture: &mut OrderFixture, pending: &HashMap<u8, Vec<EventId>>) -> Result<(), TestCaseError> {
    fixture.lease().await;
    let mut out: Vec<_> = fixture.out.keys().copied().collect();
    let mut heads: Vec<_> = pending.values().filter_map(|events| events.first().copied()).collect();
    out.sort_unstable();
    heads.sort_unstable();
    prop_assert_eq!(out, heads, "each user's first, and no other");
    Ok(())
}

/// Settles one of the outstanding leases, if there is one.
async fn end(
    fixture: &mut OrderFixture,
    pending: &mut HashMap<u8, Vec<EventId>>,
    pick: impl Fn(usize) -> usize,
    state: Option<DeliveryState>,
) {
    let mut out: Vec<_> = fixture.out.keys().copied().collect();
    if out.is_empty() {
        return;
    }
    out.sort_unstable();
    let event = out[pick(out.len())];
    fixture.settle(event, state.map_or(Disposition::Retry(NOW), Disposition::End)).await;
    if state.is_some() {
        pending.values_mut().for_each(|events| events.retain(|other| *other != event));
    }
}

on_every_engine!(
    a_users_next_event_waits_for_the_one_before_and_other_users_go_on,
    fresh_events_are_handed_over_in_memory_only_when_it_is_their_turn,
    after_the_clock_went_back_a_users_next_event_is_due_when_its_turn_comes,
    what_was_held_is_told_of_though_the_target_keeps_order_no_more;
    properties: whatever_happens_each_user_is_served_in_order
);
