//! Sweeps: what an operator does to many deliveries at once, checked through nothing but [`Queue`] and [`Inspect`].

use std::collections::BTreeMap;

use proptest::prelude::*;
use proptest::test_runner::TestCaseError;
use tokio::time::timeout;

use super::fixture::{DAY, NOW, PATIENCE, QueueFixture, TestEngine, concurrently, ids, on_every_engine, settlement};
use super::*;
use crate::tuning::Tuning;

impl QueueFixture {
    /// Makes a whole sweep of all deliveries that the filter lets through.
    async fn sweep(&self, filter: EventFilter, action: SweepAction) -> u64 {
        let sweep = Sweep { filter, events: None, action };
        let counted = self.inspect().await.count(&sweep, None).await.unwrap();
        let changed = self.queue.sweep_all(sweep, NOW).await.unwrap();
        assert_eq!(counted, changed, "counted before, changed then");
        changed
    }

    async fn sweep_events(&self, events: &[EventId], filter: EventFilter, action: SweepAction) -> u64 {
        let sweep = Sweep { filter, events: Some(events.to_vec()), action };
        let counted = self.inspect().await.count(&sweep, None).await.unwrap();
        let changed = self.queue.sweep_all(sweep, NOW).await.unwrap();
        assert_eq!(counted, changed, "counted before, changed then");
        changed
    }

    /// The states of an event's deliveries, by target.
    async fn states(&self, event: EventId) -> Vec<(String, DeliveryState)> {
        let detail = self.inspect().await.event(event).await.unwrap().unwrap();
        detail.deliveries.into_iter().map(|delivery| (delivery.target, delivery.state)).collect()
    }

    /// Stores `count` events with an ended delivery for `crm`.
    async fn store_ended(&self, count: usize, state: DeliveryState) {
        let stored = (0..count).map(|n| {
            let new = self.event(&format!("{state:?} {n}"), &["crm"]);
            async move {
                let id = new.event.id;
                self.queue.enqueue(new).await.unwrap();
                self.end(id, "crm", state).await;
            }
        });
        concurrently(stored).await;
    }
}

fn all() -> EventFilter {
    EventFilter::default()
}

fn of_target(target: &str) -> EventFilter {
    EventFilter { target: Some(target.to_owned()), ..EventFilter::default() }
}

fn in_state(state: DeliveryState) -> EventFilter {
    EventFilter { state: Some(state), ..EventFilter::default() }
}

async fn dead_letters_are_retried_with_a_new_schedule(engine: TestEngine) {
    let fixture = QueueFixture::open_tuned(engine, Tuning::small()).await;
    let inbox = fixture.queue.subscribe("crm".into(), 1);
    let mut dead = Vec::new();
    for content in ["a", "b", "c"] {
        let id = fixture.store(content, &["crm", "bot"]).await;
        fixture.queue.settle(settlement(id, "crm", Disposition::Retry(NOW), 1)).await.unwrap();
        fixture.queue.settle(settlement(id, "crm", Disposition::End(DeliveryState::Dead), 2)).await.unwrap();
        dead.push(id);
    }
    let sweep = async |target: &str, events, action| {
        fixture.queue.sweep_all(Sweep::dead(target, events, action), NOW).await.unwrap()
    };
    assert_eq!(sweep("bot", None, SweepAction::Replay).await, 0);
    assert_eq!(sweep("nobody", None, SweepAction::Replay).await, 0);
    assert_eq!(sweep("crm", Some(vec![dead[1], EventId(7)]), SweepAction::Replay).await, 1);
    timeout(PATIENCE, inbox.wake.notified()).await.unwrap();
    let leases = fixture.lease("crm", 10, NOW).await;
    assert_eq!(ids(&leases), [dead[1]]);
    assert_eq!((leases.due[0].attempt, leases.due[0].failures), (3, 0), "numbered on, its schedule restarted");
    assert_eq!(sweep("crm", Some(vec![dead[0]]), SweepAction::Drop).await, 1);
    assert_eq!(sweep("crm", None, SweepAction::Replay).await, 1);
    let counts = fixture.audit().await.counts;
    assert_eq!((counts.dead, counts.cancelled, counts.pending), (0, 1, 5));
}

async fn more_than_one_step_takes_is_swept_whole(engine: TestEngine) {
    let fixture = QueueFixture::open_tuned(engine, Tuning::small()).await;
    fixture.store_ended(600, DeliveryState::Dead).await;
    fixture.store_ended(600, DeliveryState::Delivered).await;
    let dead = Sweep::dead("crm", None, SweepAction::Replay);
    assert_eq!(fixture.queue.sweep_all(dead, NOW).await.unwrap(), 600);
    assert_eq!(fixture.audit().await.counts.pending, 600);
    assert_eq!(fixture.sweep(of_target("crm"), SweepAction::Replay).await, 600);
    assert_eq!(fixture.sweep(all(), SweepAction::ReplayTo("bot".into())).await, 1200);
    assert_eq!(fixture.sweep(of_target("crm"), SweepAction::Redirect("other".into())).await, 1200);
    assert_eq!(fixture.sweep(of_target("other"), SweepAction::Drop).await, 1200);
    let audit = fixture.audit().await;
    assert_eq!((audit.deliveries, audit.counts.cancelled, audit.counts.pending), (3600, 2400, 1200));
}

async fn a_sweep_that_was_interrupted_goes_on_where_it_stopped(engine: TestEngine) {
    let fixture = QueueFixture::open_tuned(engine, Tuning::small()).await;
    fixture.store_ended(600, DeliveryState::Delivered).await;
    let sweep = Arc::new(Sweep { filter: all(), events: None, action: SweepAction::Replay });
    let first = fixture.queue.sweep(&sweep, None, NOW).await.unwrap();
    assert!(first.changed < 600 && first.next.is_some(), "{first:?}");
    let fixture = fixture.reopen().await;
    let rest = fixture.inspect().await.count(&sweep, first.next).await.unwrap();
    assert_eq!(first.changed + rest, 600);
    let (mut changed, mut after) = (first.changed, first.next);
    while let Some(last) = after {
        // The sweep does not meet again a delivery that it has passed and that has ended again.
        for lease in fixture.lease("crm", 1000, NOW).await.due {
            fixture.end(lease.event.id, "crm", DeliveryState::Delivered).await;
        }
        let step = fixture.queue.sweep(&sweep, Some(last), NOW).await.unwrap();
        (changed, after) = (changed + step.changed, step.next);
    }
    assert_eq!(changed, 600);
    assert_eq!(
        fixture.queue.sweep(&sweep, Some(EventId(u64::MAX)), NOW).await.unwrap(),
        SweepProgress { changed: 0, next: None }
    );
}

async fn a_replay_takes_what_has_ended_and_leaves_what_is_pending(engine: TestEngine) {
    let fixture = QueueFixture::open_tuned(engine, Tuning::small()).await;
    let inbox = fixture.queue.subscribe("bot".into(), 1);
    let event = fixture.store("a", &["crm", "bot", "login"]).await;
    fixture.end(event, "crm", DeliveryState::Delivered).await;
    fixture.end(event, "login", DeliveryState::Expired).await;
    let due = NOW.after(DAY);
    fixture.queue.settle(settlement(event, "bot", Disposition::Retry(due), 1)).await.unwrap();
    while timeout(std::time::Duration::ZERO, inbox.wake.notified()).await.is_ok() {}
    assert_eq!(fixture.sweep_events(&[event], in_state(DeliveryState::Expired), SweepAction::Replay).await, 1);
    assert_eq!(fixture.sweep_events(&[event], all(), SweepAction::Replay).await, 1);
    assert_eq!(fixture.lease("bot", 1, NOW).await.next_due, Some(due), "its own schedule stands");
    assert_eq!(fixture.lease("crm", 1, NOW).await.due[0].attempt, 2);
    let counts = fixture.audit().await.counts;
    assert_eq!((counts.pending, counts.total()), (3, 3));
}

async fn a_replay_to_a_target_adds_the_delivery_that_was_never_there(engine: TestEngine) {
    let fixture = QueueFixture::open_tuned(engine, Tuning::small()).await;
    let inbox = fixture.queue.subscribe("new".into(), 8);
    timeout(PATIENCE, inbox.wake.notified()).await.unwrap();
    let (routed, unrouted, dead) =
        (fixture.store("a", &["crm"]).await, fixture.store("b", &[]).await, fixture.store("c", &["crm"]).await);
    fixture.end(dead, "crm", DeliveryState::Dead).await;
    assert_eq!(fixture.sweep(in_state(DeliveryState::Dead), SweepAction::ReplayTo("new".into())).await, 1);
    timeout(PATIENCE, inbox.wake.notified()).await.unwrap();
    let under_way = fixture.lease("new", 10, NOW).await;
    assert_eq!(ids(&under_way), [dead]);
    assert_eq!(fixture.sweep(all(), SweepAction::ReplayTo("new".into())).await, 2, "one is pending already");
    assert_eq!(ids(&fixture.lease("new", 10, NOW).await), [routed, unrouted]);
    fixture.end(dead, "new", DeliveryState::Delivered).await;
    assert_eq!(fixture.sweep(of_target("new"), SweepAction::ReplayTo("new".into())).await, 1, "again");
    assert_eq!(fixture.states(unrouted).await, [("new".to_owned(), DeliveryState::Pending)]);
    let audit = fixture.audit().await;
    assert_eq!((audit.deliveries, audit.counts.pending, audit.counts.dead), (5, 4, 1));
    assert_eq!(fixture.queue.stats().await.unwrap().unaccounted, 0);
}

async fn what_waits_is_dropped_and_what_has_ended_is_not(engine: TestEngine) {
    let fixture = QueueFixture::open_tuned(engine, Tuning::small()).await;
    let (waits, done) = (fixture.store("a", &["crm", "bot"]).await, fixture.store("b", &["crm"]).await);
    fixture.end(done, "crm", DeliveryState::Delivered).await;
    assert_eq!(fixture.queue.sweep_all(Sweep::pending("crm", SweepAction::Drop), NOW).await.unwrap(), 1);
    assert_eq!(
        fixture.states(waits).await,
        [("bot".to_owned(), DeliveryState::Pending), ("crm".to_owned(), DeliveryState::Cancelled)]
    );
    assert_eq!(fixture.states(done).await, [("crm".to_owned(), DeliveryState::Delivered)]);
    assert!(fixture.lease("crm", 10, NOW).await.due.is_empty());
    fixture.audit().await;
}

async fn what_waits_moves_to_another_target_unless_it_has_it(engine: TestEngine) {
    let fixture = QueueFixture::open_tuned(engine, Tuning::small()).await;
    let (moves, both) = (fixture.store("a", &["old"]).await, fixture.store("b", &["old", "new"]).await);
    fixture.end(both, "new", DeliveryState::Delivered).await;
    let redirect = Sweep::pending("old", SweepAction::Redirect("new".into()));
    assert_eq!(fixture.queue.sweep_all(redirect.clone(), NOW).await.unwrap(), 2);
    let (old, new) = ("old".to_owned(), "new".to_owned());
    assert_eq!(
        fixture.states(moves).await,
        [(new.clone(), DeliveryState::Pending), (old.clone(), DeliveryState::Cancelled)]
    );
    assert_eq!(fixture.states(both).await, [(new, DeliveryState::Delivered), (old, DeliveryState::Cancelled)]);
    assert_eq!(ids(&fixture.lease("new", 10, NOW).await), [moves]);
    assert_eq!(fixture.queue.sweep_all(redirect, NOW).await.unwrap(), 0);
    assert_eq!(fixture.sweep(of_target("new"), SweepAction::Redirect("new".into())).await, 0, "to itself");
    assert_eq!(fixture.audit().await.deliveries, 4);
}

async fn what_was_redirected_is_delivered_where_it_is_redirected_back_to(engine: TestEngine) {
    let fixture = QueueFixture::open_tuned(engine, Tuning::small()).await;
    fixture.queue.keep_order(&"old".into(), DeliveryOrder::PerUser);
    let (a, b) = (fixture.store("a", &["old"]).await, fixture.store("b", &["old", "new"]).await);
    let dead = fixture.store("c", &["old", "new"]).await;
    fixture.end(dead, "old", DeliveryState::Dead).await;
    assert_eq!(fixture.sweep(of_target("old"), SweepAction::Redirect("new".into())).await, 2);
    assert_eq!(fixture.sweep(of_target("new"), SweepAction::Redirect("old".into())).await, 3);
    let (old, new) = ("old".to_owned(), "new".to_owned());
    let states = [(new.clone(), DeliveryState::Cancelled), (old.clone(), DeliveryState::Pending)];
    assert_eq!([fixture.states(a).await, fixture.states(b).await], [states.clone(), states], "somebody gets it");
    assert_eq!(
        fixture.states(dead).await,
        [(new, DeliveryState::Cancelled), (old, DeliveryState::Dead)],
        "what has failed is tried again by its own command"
    );
    assert!(fixture.lease("new", 10, NOW).await.due.is_empty());
    for event in [a, b] {
        assert_eq!(ids(&fixture.lease("old", 10, NOW).await), [event], "in order");
        fixture.end(event, "old", DeliveryState::Delivered).await;
    }
    assert_eq!(fixture.audit().await.deliveries, 6);
}

async fn a_lease_of_a_cancelled_delivery_says_so_and_its_end_changes_nothing(engine: TestEngine) {
    let fixture = QueueFixture::open_tuned(engine, Tuning::small()).await;
    let mut inbox = fixture.queue.subscribe("crm".into(), 8);
    let (a, b) = (fixture.store("a", &["crm"]).await, fixture.store("b", &["crm"]).await);
    let (under_way, waiting) = (inbox.fresh.recv().await.unwrap(), inbox.fresh.recv().await.unwrap());
    assert!(!under_way.is_revoked());
    assert_eq!(fixture.queue.sweep_all(Sweep::pending("crm", SweepAction::Drop), NOW).await.unwrap(), 2);
    assert!(under_way.is_revoked() && waiting.is_revoked());
    fixture.end(a, "crm", DeliveryState::Delivered).await;
    assert_eq!(fixture.states(a).await, [("crm".to_owned(), DeliveryState::Cancelled)]);
    // Replayed while the revoked lease is outstanding: it is leased again when that lease is returned.
    assert_eq!(fixture.sweep_events(&[b], all(), SweepAction::Replay).await, 1);
    assert!(fixture.lease("crm", 10, NOW).await.due.is_empty());
    drop(waiting);
    let leases = fixture.lease("crm", 10, NOW).await;
    assert_eq!(ids(&leases), [b]);
    assert!(!leases.due[0].is_revoked());
    fixture.audit().await;
}

async fn where_order_is_kept_the_next_is_released_when_the_first_is_dropped(engine: TestEngine) {
    let fixture = QueueFixture::open_tuned(engine, Tuning::small()).await;
    fixture.queue.keep_order(&"crm".into(), DeliveryOrder::PerUser);
    let (a, b, c) =
        (fixture.store("a", &["crm"]).await, fixture.store("b", &["crm"]).await, fixture.store("c", &["crm"]).await);
    assert_eq!(fixture.sweep_events(&[b], all(), SweepAction::Drop).await, 1, "one that is held");
    assert_eq!(ids(&fixture.lease("crm", 10, NOW).await), [a]);
    assert_eq!(fixture.sweep_events(&[a], all(), SweepAction::Drop).await, 1);
    assert_eq!(ids(&fixture.lease("crm", 10, NOW).await), [c]);
}

async fn where_order_is_kept_what_comes_by_hand_takes_its_place(engine: TestEngine) {
    let fixture = QueueFixture::open_tuned(engine, Tuning::small()).await;
    fixture.queue.keep_order(&"new".into(), DeliveryOrder::PerUser);
    let (a, b, c) =
        (fixture.store("a", &["old"]).await, fixture.store("b", &["new"]).await, fixture.store("c", &["old"]).await);
    assert_eq!(fixture.sweep(of_target("old"), SweepAction::Redirect("new".into())).await, 2);
    let d = fixture.store("d", &["new"]).await;
    for event in [a, b, c, d] {
        let leases = fixture.lease("new", 10, NOW).await;
        assert_eq!(ids(&leases), [event]);
        fixture.end(event, "new", DeliveryState::Delivered).await;
    }
    // As a replay, too; and a retry of an attempt in progress waits for earlier deliveries.
    assert_eq!(fixture.sweep_events(&[c], all(), SweepAction::Replay).await, 2, "to `old`, which keeps no order, too");
    let under_way = fixture.lease("new", 10, NOW).await;
    assert_eq!(ids(&under_way), [c]);
    assert!(!under_way.due[0].is_revoked());
    assert_eq!(fixture.sweep_events(&[b], of_target("new"), SweepAction::Replay).await, 1);
    assert!(under_way.due[0].is_revoked(), "an attempt that was not begun yet is not begun out of turn");
    fixture.queue.settle(settlement(c, "new", Disposition::Retry(NOW), 2)).await.unwrap();
    for event in [b, c] {
        let leases = fixture.lease("new", 10, NOW).await;
        assert_eq!(ids(&leases), [event]);
        let delivered = Disposition::End(DeliveryState::Delivered);
        fixture.queue.settle(settlement(event, "new", delivered, leases.due[0].attempt)).await.unwrap();
    }
}

const TARGETS: [&str; 3] = ["a", "b", "in-order"];

/// A step; an index points into the deliveries that exist at that time.
#[derive(Clone, Debug)]
enum Happening {
    Push(usize),
    /// Leases what is due; the first `count` leases are settled.
    Serve {
        target: usize,
        disposition: Option<DeliveryState>,
        count: usize,
    },
    Replay {
        target: Option<usize>,
        state: Option<DeliveryState>,
    },
    ReplayTo {
        target: Option<usize>,
        state: Option<DeliveryState>,
        to: usize,
    },
    Redirect {
        target: usize,
        to: usize,
    },
    Drop {
        target: usize,
        state: DeliveryState,
    },
    Restart,
}

fn happening() -> impl Strategy<Value = Happening> {
    let target = 0..TARGETS.len();
    let some = prop::option::of(target.clone());
    let state = || prop::option::of(prop::sample::select(DeliveryState::ALL.to_vec()));
    let disposition = prop::option::of(prop::sample::select(vec![
        DeliveryState::Delivered,
        DeliveryState::Dead,
        DeliveryState::Expired,
    ]));
    prop_oneof![
        6 => (0..8_usize).prop_map(Happening::Push),
        6 => (target.clone(), disposition, 0..4_usize)
            .prop_map(|(target, disposition, count)| Happening::Serve { target, disposition, count }),
        2 => (some.clone(), state()).prop_map(|(target, state)| Happening::Replay { target, state }),
        2 => (some, state(), target.clone())
            .prop_map(|(target, state, to)| Happening::ReplayTo { target, state, to }),
        2 => (target.clone(), target.clone()).prop_map(|(target, to)| Happening::Redirect { target, to }),
        1 => (target, prop::sample::select(vec![DeliveryState::Pending, DeliveryState::Dead]))
            .prop_map(|(target, state)| Happening::Drop { target, state }),
        1 => Just(Happening::Restart),
    ]
}

fn whatever_happens_the_ledger_adds_up(engine: TestEngine) {
    proptest!(engine.cases(24), |(happenings in prop::collection::vec(happening(), 1..50))| {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(play(engine, happenings))?;
    });
}

/// The simplest model: the state of each delivery.
type Model = BTreeMap<EventId, BTreeMap<usize, DeliveryState>>;

async fn play(engine: TestEngine, happenings: Vec<Happening>) -> Result<(), TestCaseError> {
    let (mut fixture, mut model) = (QueueFixture::open_tuned(engine, Tuning::small()).await, Model::new());
    let keep_order = |fixture: &QueueFixture| fixture.queue.keep_order(&TARGETS[2].into(), DeliveryOrder::PerUser);
    keep_order(&fixture);
    for happening in happenings {
        let filter = |target: Option<usize>, state| EventFilter {
            target: target.map(|target| TARGETS[target].to_owned()),
            state,
            ..EventFilter::default()
        };
        match happening {
            Happening::Push(targets) => {
                let targets: Vec<_> = (0..TARGETS.len()).filter(|target| targets >> target & 1 == 1).collect();
                let names: Vec<_> = targets.iter().map(|target| TARGETS[*target]).collect();
                let id = fixture.store(&model.len().to_string(), &names).await;
                model.insert(id, targets.into_iter().map(|target| (target, DeliveryState::Pending)).collect());
            }
            Happening::Serve { target, disposition, count } => {
                serve(&fixture, &mut model, target, disposition, count).await?
            }
            Happening::Replay { target, state } => {
                let changed = fixture.sweep(filter(target, state), SweepAction::Replay).await;
                let meant = chosen(&mut model, target, state).filter(|(.., state)| **state != DeliveryState::Pending);
                prop_assert_eq!(changed, meant.map(|(.., state)| *state = DeliveryState::Pending).count() as u64);
            }
            Happening::ReplayTo { target, state, to } => {
                let changed = fixture.sweep(filter(target, state), SweepAction::ReplayTo(TARGETS[to].into())).await;
                let any = target.is_none() && state.is_none();
                let mut meant: Vec<_> = chosen(&mut model, target, state).map(|(event, ..)| event).collect();
                if any {
                    meant = model.keys().copied().collect();
                }
                meant.dedup();
                let events =
                    meant.into_iter().map(|event| model.get_mut(&event).unwrap().insert(to, DeliveryState::Pending));
                prop_assert_eq!(
                    changed,
                    events.filter(|before| *before != Some(DeliveryState::Pending)).count() as u64
                );
            }
            Happening::Redirect { target, to } => {
                let changed =
                    fixture.sweep(filter(Some(target), None), SweepAction::Redirect(TARGETS[to].into())).await;
                let pending = chosen(&mut model, Some(target), Some(DeliveryState::Pending)).filter(|_| target != to);
                let moved: Vec<_> =
                    pending.map(|(event, _, state)| (*state = DeliveryState::Cancelled, event).1).collect();
                prop_assert_eq!(changed, moved.len() as u64);
                for event in moved {
                    let there = model.get_mut(&event).unwrap().entry(to).or_insert(DeliveryState::Pending);
                    if *there == DeliveryState::Cancelled {
                        *there = DeliveryState::Pending;
                    }
                }
            }
            Happening::Drop { target, state } => {
                let changed = fixture.sweep(filter(Some(target), Some(state)), SweepAction::Drop).await;
                let dropped = chosen(&mut model, Some(target), Some(state));
                prop_assert_eq!(changed, dropped.map(|(.., state)| *state = DeliveryState::Cancelled).count() as u64);
            }
            Happening::Restart => {
                fixture = fixture.reopen().await;
                keep_order(&fixture);
            }
        }
        check(&fixture, &model).await?;
    }
    serve_all(&fixture, &mut model).await
}

/// The model's deliveries that a filter selects.
fn chosen(
    model: &mut Model,
    target: Option<usize>,
    state: Option<DeliveryState>,
) -> impl Iterator<Item = (EventId, usize, &mut DeliveryState)> {
    let all = model.iter_mut().flat_map(|(event, of)| of.iter_mut().map(|(target, state)| (*event, *target, state)));
    all.filter(move |(_, of, is)| target.is_none_or(|t| t == *of) && state.is_none_or(|state| state == **is))
}

/// Leases what is due, and settles some of it; the rest is returned.
async fn serve(
    fixture: &QueueFixture,
    model: &mut Model,
    target: usize,
    disposition: Option<DeliveryState>,
    count: usize,
) -> Result<(), TestCaseError> {
    let due = fixture.lease(TARGETS[target], 100, NOW).await.due;
    let pending: Vec<_> = chosen(model, Some(target), Some(DeliveryState::Pending)).map(|(event, ..)| event).collect();
    // All events are of one user: where order is kept only the first can be leased, elsewhere all.
    let turn = if target == 2 { &pending[..pending.len().min(1)] } else { &pending[..] };
    let mut leased: Vec<_> = due.iter().map(|lease| lease.event.id).collect();
    leased.sort_unstable();
    prop_assert_eq!(&leased, turn);
    for event in leased.into_iter().take(count) {
        let attempt = due.iter().find(|lease| lease.event.id == event).unwrap().attempt;
        let disposition = disposition.map_or(Disposition::Retry(NOW), Disposition::End);
        fixture.queue.settle(settlement(event, TARGETS[target], disposition, attempt)).await.unwrap();
        if let Disposition::End(state) = disposition {
            model.get_mut(&event).unwrap().insert(target, state);
        }
    }
    Ok(())
}

async fn check(fixture: &QueueFixture, model: &Model) -> Result<(), TestCaseError> {
    let audit = fixture.audit().await;
    let mut counts = view::Counts::default();
    model.values().flat_map(BTreeMap::values).for_each(|state| *counts.of(*state) += 1);
    prop_assert_eq!((audit.events, audit.deliveries, audit.counts), (model.len() as u64, counts.total(), counts));
    for (event, deliveries) in model {
        let mut expected: Vec<_> =
            deliveries.iter().map(|(target, state)| (TARGETS[*target].to_owned(), *state)).collect();
        expected.sort_unstable_by(|a, b| a.0.cmp(&b.0));
        prop_assert_eq!(fixture.states(*event).await, expected);
    }
    Ok(())
}

/// In the end everything is delivered: nothing is held for ever.
async fn serve_all(fixture: &QueueFixture, model: &mut Model) -> Result<(), TestCaseError> {
    for target in 0..TARGETS.len() {
        while chosen(model, Some(target), Some(DeliveryState::Pending)).next().is_some() {
            serve(fixture, model, target, Some(DeliveryState::Delivered), 100).await?;
        }
    }
    check(fixture, model).await
}

on_every_engine!(
    dead_letters_are_retried_with_a_new_schedule,
    more_than_one_step_takes_is_swept_whole,
    a_sweep_that_was_interrupted_goes_on_where_it_stopped,
    a_replay_takes_what_has_ended_and_leaves_what_is_pending,
    a_replay_to_a_target_adds_the_delivery_that_was_never_there,
    what_waits_is_dropped_and_what_has_ended_is_not,
    what_waits_moves_to_another_target_unless_it_has_it,
    what_was_redirected_is_delivered_where_it_is_redirected_back_to,
    a_lease_of_a_cancelled_delivery_says_so_and_its_end_changes_nothing,
    where_order_is_kept_the_next_is_released_when_the_first_is_dropped,
    where_order_is_kept_what_comes_by_hand_takes_its_place;
    properties: whatever_happens_the_ledger_adds_up
);
