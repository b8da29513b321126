//! Sweeps: what an operator does to many deliveries at once, checked through nothing but [`Queue`] and [`Inspect`].

use std::collections::BTreeMap;

use proptest::prelude::*;
use proptest::test_runner::TestCaseError;
use tokio::time::timeout;

use super::conformance::{Bench, DAY, NOW, PATIENCE, concurrently, ids, settlement};
use super::*;

impl Bench {
    /// Makes a whole sweep of all deliveries that the filter lets through.
    async fn sweep(&self, filter: EventFilter, fate: Fate) -> u64 {
        let sweep = Sweep { filter, events: None, fate };
        let counted = Inspect::open(self.folder.path()).unwrap().count(&sweep, None).unwrap();
        let changed = self.queue.sweep_all(sweep, NOW).await.unwrap();
        assert_eq!(counted, changed, "counted before, changed then");
        changed
    }

    async fn sweep_events(&self, events: &[EventId], filter: EventFilter, fate: Fate) -> u64 {
        let sweep = Sweep { filter, events: Some(events.to_vec()), fate };
        let counted = Inspect::open(self.folder.path()).unwrap().count(&sweep, None).unwrap();
        let changed = self.queue.sweep_all(sweep, NOW).await.unwrap();
        assert_eq!(counted, changed, "counted before, changed then");
        changed
    }

    /// The states of an event's deliveries, by target.
    fn states(&self, event: EventId) -> Vec<(String, DeliveryState)> {
        let detail = Inspect::open(self.folder.path()).unwrap().event(event).unwrap().unwrap();
        detail.deliveries.into_iter().map(|delivery| (delivery.target, delivery.state)).collect()
    }

    /// Stores so many events with an ended delivery for `crm`.
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

#[tokio::test]
async fn dead_letters_are_retried_with_a_new_schedule() {
    let bench = Bench::open();
    let inbox = bench.queue.subscribe("crm".into(), 1);
    let mut dead = Vec::new();
    for content in ["a", "b", "c"] {
        let id = bench.store(content, &["crm", "bot"]).await;
        bench.queue.settle(settlement(id, "crm", Disposition::Retry(NOW), 1)).await.unwrap();
        bench.queue.settle(settlement(id, "crm", Disposition::End(DeliveryState::Dead), 2)).await.unwrap();
        dead.push(id);
    }
    let sweep =
        async |target: &str, events, fate| bench.queue.sweep_all(Sweep::dead(target, events, fate), NOW).await.unwrap();
    assert_eq!(sweep("bot", None, Fate::Replayed).await, 0);
    assert_eq!(sweep("nobody", None, Fate::Replayed).await, 0);
    assert_eq!(sweep("crm", Some(vec![dead[1], EventId(7)]), Fate::Replayed).await, 1);
    timeout(PATIENCE, inbox.wake.notified()).await.unwrap();
    let leases = bench.lease("crm", 10, NOW).await;
    assert_eq!(ids(&leases), [dead[1]]);
    assert_eq!((leases.due[0].attempt, leases.due[0].failures), (3, 0), "numbered on, scheduled anew");
    assert_eq!(sweep("crm", Some(vec![dead[0]]), Fate::Dropped).await, 1);
    assert_eq!(sweep("crm", None, Fate::Replayed).await, 1);
    let counts = bench.audit().counts;
    assert_eq!((counts.dead, counts.cancelled, counts.pending), (0, 1, 5));
}

#[tokio::test]
async fn more_than_one_step_takes_is_swept_whole() {
    let bench = Bench::open();
    bench.store_ended(600, DeliveryState::Dead).await;
    bench.store_ended(600, DeliveryState::Delivered).await;
    let dead = Sweep::dead("crm", None, Fate::Replayed);
    assert_eq!(bench.queue.sweep_all(dead, NOW).await.unwrap(), 600);
    assert_eq!(bench.audit().counts.pending, 600);
    assert_eq!(bench.sweep(of_target("crm"), Fate::Replayed).await, 600);
    assert_eq!(bench.sweep(all(), Fate::ReplayedTo("bot".into())).await, 1200);
    assert_eq!(bench.sweep(of_target("crm"), Fate::Redirected("other".into())).await, 1200);
    assert_eq!(bench.sweep(of_target("other"), Fate::Dropped).await, 1200);
    let audit = bench.audit();
    assert_eq!((audit.deliveries, audit.counts.cancelled, audit.counts.pending), (3600, 2400, 1200));
}

#[tokio::test]
async fn a_sweep_that_was_interrupted_goes_on_where_it_stopped() {
    let bench = Bench::open();
    bench.store_ended(600, DeliveryState::Delivered).await;
    let sweep = Arc::new(Sweep { filter: all(), events: None, fate: Fate::Replayed });
    let first = bench.queue.sweep(&sweep, None, NOW).await.unwrap();
    assert!(first.changed < 600 && first.next.is_some(), "{first:?}");
    let bench = bench.reopen().await;
    let rest = Inspect::open(bench.folder.path()).unwrap().count(&sweep, first.next).unwrap();
    assert_eq!(first.changed + rest, 600);
    let (mut changed, mut after) = (first.changed, first.next);
    while let Some(last) = after {
        // What was passed and has ended again is not met again.
        for lease in bench.lease("crm", 1000, NOW).await.due {
            bench.end(lease.event.id, "crm", DeliveryState::Delivered).await;
        }
        let step = bench.queue.sweep(&sweep, Some(last), NOW).await.unwrap();
        (changed, after) = (changed + step.changed, step.next);
    }
    assert_eq!(changed, 600);
    assert_eq!(
        bench.queue.sweep(&sweep, Some(EventId(u64::MAX)), NOW).await.unwrap(),
        Swept { changed: 0, next: None }
    );
}

#[tokio::test]
async fn a_replay_takes_what_has_ended_and_leaves_what_is_pending() {
    let bench = Bench::open();
    let inbox = bench.queue.subscribe("bot".into(), 1);
    let event = bench.store("a", &["crm", "bot", "login"]).await;
    bench.end(event, "crm", DeliveryState::Delivered).await;
    bench.end(event, "login", DeliveryState::Expired).await;
    let due = NOW.after(DAY);
    bench.queue.settle(settlement(event, "bot", Disposition::Retry(due), 1)).await.unwrap();
    while timeout(std::time::Duration::ZERO, inbox.wake.notified()).await.is_ok() {}
    assert_eq!(bench.sweep_events(&[event], in_state(DeliveryState::Expired), Fate::Replayed).await, 1);
    assert_eq!(bench.sweep_events(&[event], all(), Fate::Replayed).await, 1);
    assert_eq!(bench.lease("bot", 1, NOW).await.next_due, Some(due), "its own schedule stands");
    assert_eq!(bench.lease("crm", 1, NOW).await.due[0].attempt, 2);
    let counts = bench.audit().counts;
    assert_eq!((counts.pending, counts.total()), (3, 3));
}

#[tokio::test]
async fn a_replay_to_a_target_adds_the_delivery_that_was_never_there() {
    let bench = Bench::open();
    let inbox = bench.queue.subscribe("new".into(), 8);
    timeout(PATIENCE, inbox.wake.notified()).await.unwrap();
    let (routed, unrouted, dead) =
        (bench.store("a", &["crm"]).await, bench.store("b", &[]).await, bench.store("c", &["crm"]).await);
    bench.end(dead, "crm", DeliveryState::Dead).await;
    assert_eq!(bench.sweep(in_state(DeliveryState::Dead), Fate::ReplayedTo("new".into())).await, 1);
    timeout(PATIENCE, inbox.wake.notified()).await.unwrap();
    let under_way = bench.lease("new", 10, NOW).await;
    assert_eq!(ids(&under_way), [dead]);
    assert_eq!(bench.sweep(all(), Fate::ReplayedTo("new".into())).await, 2, "one is pending already");
    assert_eq!(ids(&bench.lease("new", 10, NOW).await), [routed, unrouted]);
    bench.end(dead, "new", DeliveryState::Delivered).await;
    assert_eq!(bench.sweep(of_target("new"), Fate::ReplayedTo("new".into())).await, 1, "again");
    assert_eq!(bench.states(unrouted), [("new".to_owned(), DeliveryState::Pending)]);
    let audit = bench.audit();
    assert_eq!((audit.deliveries, audit.counts.pending, audit.counts.dead), (5, 4, 1));
    assert_eq!(bench.queue.stats().await.unwrap().unaccounted, 0);
}

#[tokio::test]
async fn what_waits_is_dropped_and_what_has_ended_is_not() {
    let bench = Bench::open();
    let (waits, done) = (bench.store("a", &["crm", "bot"]).await, bench.store("b", &["crm"]).await);
    bench.end(done, "crm", DeliveryState::Delivered).await;
    assert_eq!(bench.queue.sweep_all(Sweep::pending("crm", Fate::Dropped), NOW).await.unwrap(), 1);
    assert_eq!(
        bench.states(waits),
        [("bot".to_owned(), DeliveryState::Pending), ("crm".to_owned(), DeliveryState::Cancelled)]
    );
    assert_eq!(bench.states(done), [("crm".to_owned(), DeliveryState::Delivered)]);
    assert!(bench.lease("crm", 10, NOW).await.due.is_empty());
    bench.audit();
}

#[tokio::test]
async fn what_waits_moves_to_another_target_unless_it_has_it() {
    let bench = Bench::open();
    let (moves, both) = (bench.store("a", &["old"]).await, bench.store("b", &["old", "new"]).await);
    bench.end(both, "new", DeliveryState::Delivered).await;
    let redirect = Sweep::pending("old", Fate::Redirected("new".into()));
    assert_eq!(bench.queue.sweep_all(redirect.clone(), NOW).await.unwrap(), 2);
    let (old, new) = ("old".to_owned(), "new".to_owned());
    assert_eq!(bench.states(moves), [(new.clone(), DeliveryState::Pending), (old.clone(), DeliveryState::Cancelled)]);
    assert_eq!(bench.states(both), [(new, DeliveryState::Delivered), (old, DeliveryState::Cancelled)]);
    assert_eq!(ids(&bench.lease("new", 10, NOW).await), [moves]);
    assert_eq!(bench.queue.sweep_all(redirect, NOW).await.unwrap(), 0);
    assert_eq!(bench.sweep(of_target("new"), Fate::Redirected("new".into())).await, 0, "to itself");
    assert_eq!(bench.audit().deliveries, 4);
}

#[tokio::test]
async fn a_lease_of_a_cancelled_delivery_says_so_and_its_end_changes_nothing() {
    let bench = Bench::open();
    let mut inbox = bench.queue.subscribe("crm".into(), 8);
    let (a, b) = (bench.store("a", &["crm"]).await, bench.store("b", &["crm"]).await);
    let (under_way, waiting) = (inbox.fresh.recv().await.unwrap(), inbox.fresh.recv().await.unwrap());
    assert!(!under_way.is_revoked());
    assert_eq!(bench.queue.sweep_all(Sweep::pending("crm", Fate::Dropped), NOW).await.unwrap(), 2);
    assert!(under_way.is_revoked() && waiting.is_revoked());
    bench.end(a, "crm", DeliveryState::Delivered).await;
    assert_eq!(bench.states(a), [("crm".to_owned(), DeliveryState::Cancelled)]);
    // Replayed while the worthless lease is out: it is leased anew when that is given back.
    assert_eq!(bench.sweep_events(&[b], all(), Fate::Replayed).await, 1);
    assert!(bench.lease("crm", 10, NOW).await.due.is_empty());
    drop(waiting);
    let leases = bench.lease("crm", 10, NOW).await;
    assert_eq!(ids(&leases), [b]);
    assert!(!leases.due[0].is_revoked());
    bench.audit();
}

#[tokio::test]
async fn where_order_is_kept_the_next_is_released_when_the_first_is_dropped() {
    let bench = Bench::open();
    bench.queue.keep_order(&"crm".into(), DeliveryOrder::PerUser);
    let (a, b, c) =
        (bench.store("a", &["crm"]).await, bench.store("b", &["crm"]).await, bench.store("c", &["crm"]).await);
    assert_eq!(bench.sweep_events(&[b], all(), Fate::Dropped).await, 1, "one that is held");
    assert_eq!(ids(&bench.lease("crm", 10, NOW).await), [a]);
    assert_eq!(bench.sweep_events(&[a], all(), Fate::Dropped).await, 1);
    assert_eq!(ids(&bench.lease("crm", 10, NOW).await), [c]);
}

#[tokio::test]
async fn where_order_is_kept_what_comes_by_hand_takes_its_place() {
    let bench = Bench::open();
    bench.queue.keep_order(&"new".into(), DeliveryOrder::PerUser);
    let (a, b, c) =
        (bench.store("a", &["old"]).await, bench.store("b", &["new"]).await, bench.store("c", &["old"]).await);
    assert_eq!(bench.sweep(of_target("old"), Fate::Redirected("new".into())).await, 2);
    let d = bench.store("d", &["new"]).await;
    for event in [a, b, c, d] {
        let leases = bench.lease("new", 10, NOW).await;
        assert_eq!(ids(&leases), [event]);
        bench.end(event, "new", DeliveryState::Delivered).await;
    }
    // As a replay, too; and a retry of what was under way waits for what went before it.
    assert_eq!(bench.sweep_events(&[c], all(), Fate::Replayed).await, 2, "to `old`, which keeps no order, too");
    let under_way = bench.lease("new", 10, NOW).await;
    assert_eq!(ids(&under_way), [c]);
    assert!(!under_way.due[0].is_revoked());
    assert_eq!(bench.sweep_events(&[b], of_target("new"), Fate::Replayed).await, 1);
    assert!(under_way.due[0].is_revoked(), "an attempt that was not begun yet is not begun out of turn");
    bench.queue.settle(settlement(c, "new", Disposition::Retry(NOW), 2)).await.unwrap();
    for event in [b, c] {
        assert_eq!(ids(&bench.lease("new", 10, NOW).await), [event]);
        bench.end(event, "new", DeliveryState::Delivered).await;
    }
}

const TARGETS: [&str; 3] = ["a", "b", "in-order"];

/// Something that happens; places point into what there is then.
#[derive(Clone, Debug)]
enum Happening {
    Push(usize),
    /// What is due is leased; the first so many are settled.
    Serve {
        target: usize,
        verdict: Option<DeliveryState>,
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
    let verdict = prop::option::of(prop::sample::select(vec![
        DeliveryState::Delivered,
        DeliveryState::Dead,
        DeliveryState::Expired,
    ]));
    prop_oneof![
        6 => (0..8_usize).prop_map(Happening::Push),
        6 => (target.clone(), verdict, 0..4_usize)
            .prop_map(|(target, verdict, count)| Happening::Serve { target, verdict, count }),
        2 => (some.clone(), state()).prop_map(|(target, state)| Happening::Replay { target, state }),
        2 => (some, state(), target.clone())
            .prop_map(|(target, state, to)| Happening::ReplayTo { target, state, to }),
        2 => (target.clone(), target.clone()).prop_map(|(target, to)| Happening::Redirect { target, to }),
        1 => (target, prop::sample::select(vec![DeliveryState::Pending, DeliveryState::Dead]))
            .prop_map(|(target, state)| Happening::Drop { target, state }),
        1 => Just(Happening::Restart),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_the_ledger_adds_up(happenings in prop::collection::vec(happening(), 1..50)) {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(play(happenings))?;
    }
}

/// The plainest model: the state of each delivery.
type Model = BTreeMap<EventId, BTreeMap<usize, DeliveryState>>;

async fn play(happenings: Vec<Happening>) -> Result<(), TestCaseError> {
    let (mut bench, mut model) = (Bench::open(), Model::new());
    let keep_order = |bench: &Bench| bench.queue.keep_order(&TARGETS[2].into(), DeliveryOrder::PerUser);
    keep_order(&bench);
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
                let id = bench.store(&model.len().to_string(), &names).await;
                model.insert(id, targets.into_iter().map(|target| (target, DeliveryState::Pending)).collect());
            }
            Happening::Serve { target, verdict, count } => serve(&bench, &mut model, target, verdict, count).await?,
            Happening::Replay { target, state } => {
                let changed = bench.sweep(filter(target, state), Fate::Replayed).await;
                let meant = chosen(&mut model, target, state).filter(|(.., state)| **state != DeliveryState::Pending);
                prop_assert_eq!(changed, meant.map(|(.., state)| *state = DeliveryState::Pending).count() as u64);
            }
            Happening::ReplayTo { target, state, to } => {
                let changed = bench.sweep(filter(target, state), Fate::ReplayedTo(TARGETS[to].into())).await;
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
                let changed = bench.sweep(filter(Some(target), None), Fate::Redirected(TARGETS[to].into())).await;
                let pending = chosen(&mut model, Some(target), Some(DeliveryState::Pending)).filter(|_| target != to);
                let moved: Vec<_> =
                    pending.map(|(event, _, state)| (*state = DeliveryState::Cancelled, event).1).collect();
                prop_assert_eq!(changed, moved.len() as u64);
                for event in moved {
                    model.get_mut(&event).unwrap().entry(to).or_insert(DeliveryState::Pending);
                }
            }
            Happening::Drop { target, state } => {
                let changed = bench.sweep(filter(Some(target), Some(state)), Fate::Dropped).await;
                let dropped = chosen(&mut model, Some(target), Some(state));
                prop_assert_eq!(changed, dropped.map(|(.., state)| *state = DeliveryState::Cancelled).count() as u64);
            }
            Happening::Restart => {
                bench = bench.reopen().await;
                keep_order(&bench);
            }
        }
        check(&bench, &model)?;
    }
    serve_all(&bench, &mut model).await
}

/// The model's deliveries that a filter means.
fn chosen(
    model: &mut Model,
    target: Option<usize>,
    state: Option<DeliveryState>,
) -> impl Iterator<Item = (EventId, usize, &mut DeliveryState)> {
    let all = model.iter_mut().flat_map(|(event, of)| of.iter_mut().map(|(target, state)| (*event, *target, state)));
    all.filter(move |(_, of, is)| target.is_none_or(|t| t == *of) && state.is_none_or(|state| state == **is))
}

/// Leases what is due, and settles some of it; the rest is given back.
async fn serve(
    bench: &Bench,
    model: &mut Model,
    target: usize,
    verdict: Option<DeliveryState>,
    count: usize,
) -> Result<(), TestCaseError> {
    let due = bench.lease(TARGETS[target], 100, NOW).await.due;
    let pending: Vec<_> = chosen(model, Some(target), Some(DeliveryState::Pending)).map(|(event, ..)| event).collect();
    // They are all of one user: where order is kept his first, elsewhere all.
    let turn = if target == 2 { &pending[..pending.len().min(1)] } else { &pending[..] };
    let mut leased: Vec<_> = due.iter().map(|lease| lease.event.id).collect();
    leased.sort_unstable();
    prop_assert_eq!(&leased, turn);
    for event in leased.into_iter().take(count) {
        let attempt = due.iter().find(|lease| lease.event.id == event).unwrap().attempt;
        let verdict = verdict.map_or(Disposition::Retry(NOW), Disposition::End);
        bench.queue.settle(settlement(event, TARGETS[target], verdict, attempt)).await.unwrap();
        if let Disposition::End(state) = verdict {
            model.get_mut(&event).unwrap().insert(target, state);
        }
    }
    Ok(())
}

fn check(bench: &Bench, model: &Model) -> Result<(), TestCaseError> {
    let audit = bench.audit();
    let mut counts = view::Counts::default();
    model.values().flat_map(BTreeMap::values).for_each(|state| *counts.of(*state) += 1);
    prop_assert_eq!((audit.events, audit.deliveries, audit.counts), (model.len() as u64, counts.total(), counts));
    for (event, deliveries) in model {
        let mut expected: Vec<_> =
            deliveries.iter().map(|(target, state)| (TARGETS[*target].to_owned(), *state)).collect();
        expected.sort_unstable_by(|a, b| a.0.cmp(&b.0));
        prop_assert_eq!(bench.states(*event), expected);
    }
    Ok(())
}

/// In the end everything is delivered: nothing is held for ever.
async fn serve_all(bench: &Bench, model: &mut Model) -> Result<(), TestCaseError> {
    for target in 0..TARGETS.len() {
        while chosen(model, Some(target), Some(DeliveryState::Pending)).next().is_some() {
            serve(bench, model, target, Some(DeliveryState::Delivered), 100).await?;
        }
    }
    check(bench, model)
}
