//! Forgetting a user, checked through nothing but [`Queue`], [`Inspect`] and the bytes of the store's files.

use proptest::prelude::*;
use proptest::test_runner::TestCaseError;
use sha2::{Digest, Sha256};
use tokio::time::timeout;

use super::fixture::{
    NOW, PATIENCE, QueueFixture, TestEngine, concurrently, ids, new_event_of, on_every_engine, settlement,
};
use super::*;
use crate::tuning::Tuning;

/// As long as WeChat's.
const USER: &str = "oForgetMe6a8b7c6d5e4f3a2b1c0";
const OTHER: &str = "oKeepMe0a1b2c3d4e5f6a7b8c9d0";
/// Is in a text of the user, and in the answers of targets to it.
const MARKER: &str = "meet me at nine by the fountain";

impl QueueFixture {
    async fn store_of(&self, user: &str, content: &str, targets: &[&str]) -> EventId {
        let new = new_event_of(self.queue.next_id(NOW), user, content, targets);
        let id = new.event.id;
        assert!(matches!(self.queue.enqueue(new).await.unwrap(), Enqueued::Fresh));
        id
    }

    /// Forgets a user as far as the filter goes; how many events are gone.
    async fn forget(&self, filter: EventFilter) -> u64 {
        let sweep = Sweep { filter, events: None, action: SweepAction::Forget };
        let counted = self.inspect().await.count(&sweep, None).await.unwrap();
        let forgotten = self.queue.sweep_all(sweep, NOW).await.unwrap();
        assert_eq!(counted, forgotten, "counted before, forgotten then");
        self.queue.wipe().await.unwrap();
        forgotten
    }

    /// A user's events, the newest first.
    async fn of(&self, user: &str) -> Vec<EventSummary> {
        self.inspect().await.events(&EventFilter { limit: usize::MAX, ..of(user) }).await.unwrap()
    }
}

fn of(user: &str) -> EventFilter {
    EventFilter { from: Some(user.to_owned()), ..EventFilter::default() }
}

async fn everything_of_a_user_goes_whatever_has_become_of_it_and_nothing_of_others(engine: TestEngine) {
    let fixture = QueueFixture::open(engine).await;
    let verdicts =
        [Disposition::Retry(NOW), Disposition::End(DeliveryState::Dead), Disposition::End(DeliveryState::Delivered)];
    for user in [USER, OTHER] {
        fixture.store_of(user, &format!("{user} unrouted"), &[]).await;
        for (n, disposition) in verdicts.into_iter().enumerate() {
            let id = fixture.store_of(user, &format!("{user} {n} {MARKER}"), &["crm", "bot"]).await;
            fixture.queue.settle(settlement(id, "crm", disposition, 1)).await.unwrap();
            fixture.queue.record_reply(id, format!("<xml>to {user} {MARKER}</xml>"), None).await.unwrap();
        }
    }
    let kept = fixture.of(OTHER).await;
    assert!(fixture.holds(USER) && fixture.holds(OTHER));
    assert_eq!(fixture.forget(of(USER)).await, 4);
    assert!(fixture.of(USER).await.is_empty() && !fixture.holds(USER));
    assert_eq!(fixture.of(OTHER).await, kept);
    let audit = fixture.audit().await;
    assert_eq!((audit.events, audit.deliveries, audit.counts.pending), (4, 6, 4));
    assert_eq!(fixture.queue.stats().await.unwrap().events, 4);
    assert_eq!(fixture.forget(of(USER)).await, 0, "again");
    assert_eq!(fixture.forget(of(OTHER)).await, 4);
    assert!(!fixture.holds(OTHER) && !fixture.holds(MARKER));
    assert_eq!(fixture.audit().await.counts.total(), 0);
}

async fn a_lease_that_is_out_is_revoked_and_its_end_is_harmless(engine: TestEngine) {
    let fixture = QueueFixture::open(engine).await;
    let mut inbox = fixture.queue.subscribe("crm".into(), 8);
    let (a, other) = (fixture.store_of(USER, "a", &["crm"]).await, fixture.store_of(OTHER, "b", &["crm"]).await);
    let (under_way, of_other) = (inbox.fresh.recv().await.unwrap(), inbox.fresh.recv().await.unwrap());
    assert_eq!(fixture.forget(of(USER)).await, 1);
    assert!(under_way.is_revoked() && !of_other.is_revoked());
    let note = AttemptNote { event: a, target: "crm".into(), attempt: 1, error: Some(MARKER.to_owned()) };
    for disposition in [Disposition::Retry(NOW), Disposition::Postpone(NOW), Disposition::End(DeliveryState::Delivered)]
    {
        fixture.queue.settle(settlement(a, "crm", disposition, 1)).await.unwrap();
        fixture.queue.annotate(note.clone()).await.unwrap();
        fixture.queue.record_reply(a, MARKER.to_owned(), None).await.unwrap();
    }
    drop(under_way);
    fixture.end(other, "crm", DeliveryState::Delivered).await;
    assert!(fixture.lease("crm", 10, NOW).await.due.is_empty());
    assert_eq!(fixture.audit().await.counts.delivered, 1);
    assert!(!fixture.holds(USER) && !fixture.holds(MARKER));
}

async fn where_order_is_kept_what_is_held_goes_too_and_what_is_not_meant_is_released(engine: TestEngine) {
    let fixture = QueueFixture::open(engine).await;
    fixture.queue.keep_order(&"crm".into(), DeliveryOrder::PerUser);
    for content in ["a", "b", "c"] {
        fixture.store_of(USER, content, &["crm"]).await;
    }
    let others = [fixture.store_of(OTHER, "d", &["crm"]).await, fixture.store_of(OTHER, "e", &["crm"]).await];
    let until = fixture.inspect().await.end().await.unwrap();
    let since = fixture.queue.next_id(until);
    let late = new_event_of(since, USER, "late", &["crm"]);
    fixture.queue.enqueue(late).await.unwrap();
    let leases = fixture.lease("crm", 10, NOW).await;
    let inbox = fixture.queue.subscribe("crm".into(), 1);
    while timeout(Duration::ZERO, inbox.wake.notified()).await.is_ok() {}
    assert_eq!(fixture.forget(EventFilter { until: Some(until), ..of(USER) }).await, 3);
    timeout(PATIENCE, inbox.wake.notified()).await.unwrap();
    assert_eq!(leases.due.iter().map(Lease::is_revoked).collect::<Vec<_>>(), [true, false]);
    drop(leases);
    let leases = fixture.lease("crm", 10, until).await;
    assert_eq!(ids(&leases), [others[0], since], "each user's first");
    fixture.end(others[0], "crm", DeliveryState::Delivered).await;
    drop(leases);
    assert_eq!(ids(&fixture.lease("crm", 10, until).await), [others[1], since]);
    fixture.audit().await;
    assert_eq!(fixture.forget(of(USER)).await, 1);
    // The user's number, by which order is kept, is a trace too.
    let number = |user: &str| Sha256::digest(user)[..8].to_vec();
    assert!(!fixture.holds(USER));
    assert!(!fixture.holds(number(USER)));
    assert!(fixture.holds(number(OTHER)));
}

async fn only_what_one_account_got_is_forgotten_where_that_is_asked_for(engine: TestEngine) {
    let fixture = QueueFixture::open(engine).await;
    for account in ["shop", "club"] {
        let mut new = new_event_of(fixture.queue.next_id(NOW), USER, account, &["crm"]);
        Arc::get_mut(&mut new.event).unwrap().account = account.into();
        fixture.queue.enqueue(new).await.unwrap();
    }
    let of_account = |account: &str| EventFilter { account: Some(account.to_owned()), ..of(USER) };
    assert_eq!(fixture.forget(of_account("nobody")).await, 0);
    assert_eq!(fixture.forget(of_account("shop")).await, 1);
    assert_eq!(fixture.of(USER).await.iter().map(|event| event.account.as_str()).collect::<Vec<_>>(), ["club"]);
    fixture.audit().await;
}

async fn a_forgotten_push_that_comes_again_makes_no_second_event(engine: TestEngine) {
    let fixture = QueueFixture::open(engine).await;
    let first = fixture.store_of(USER, "hello", &["crm"]).await;
    assert_eq!(fixture.forget(of(USER)).await, 1);
    let new = new_event_of(fixture.queue.next_id(NOW), USER, "hello", &["crm"]);
    let again = fixture.queue.enqueue(new).await.unwrap();
    assert!(matches!(again, Enqueued::Duplicate { id, reply: Known::Answered(None) } if id == first), "{again:?}");
    assert!(fixture.lease("crm", 10, NOW).await.due.is_empty());
    assert_eq!(fixture.audit().await.events, 0);
}

async fn a_crash_in_the_middle_leaves_a_clean_ledger_and_forgetting_again_ends_it(engine: TestEngine) {
    let fixture = QueueFixture::open_tuned(engine, Tuning::small()).await;
    let stored = (0..600).map(|n| {
        let user = if n % 3 == 0 { OTHER } else { USER };
        let fixture = &fixture;
        async move {
            fixture.store_of(user, &format!("{n} {MARKER}"), &["crm", "bot"]).await;
        }
    });
    concurrently(stored).await;
    let sweep = Arc::new(Sweep { filter: of(USER), events: None, action: SweepAction::Forget });
    let (mut after, mut steps) = (None, 0);
    loop {
        let step = fixture.queue.sweep(&sweep, after, NOW).await.unwrap();
        steps += 1;
        after = step.next;
        if after.is_none() {
            break;
        }
        if steps % 20 != 1 {
            continue;
        }
        let crashed = fixture.crashed().await;
        let left = crashed.of(USER).await.len() as u64;
        assert_eq!(crashed.audit().await.events, left + 200);
        assert_eq!(crashed.forget(of(USER)).await, left);
        assert!(!crashed.holds(USER));
        assert_eq!((crashed.audit().await.events, crashed.of(OTHER).await.len()), (200, 200));
    }
    assert!(steps > 40, "{steps} steps");
}

/// SQLite leaves old bytes of rows where it moves them within a page, as when a late reply makes one longer.
#[tokio::test]
async fn nothing_is_left_in_pages_where_rows_were_moved() {
    let fixture = QueueFixture::open(TestEngine::Embedded).await;
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        usize::try_from(state % below as u64).unwrap()
    };
    let (mut open, mut users) = (Vec::new(), [0; 2]);
    for n in 0..500 {
        let at = usize::from(random(3) == 0);
        let user = [OTHER, USER][at];
        users[at] += 1;
        let content = format!("{n} {user} {}", "x".repeat([20, 300, 900, 1500][random(4)]));
        open.push((fixture.store_of(user, &content, &["crm", "bot"]).await, user));
        while open.len() > 6 {
            let (id, user) = open.swap_remove(random(6));
            if random(2) == 0 {
                let reply = format!("<xml>{user} {}</xml>", "y".repeat(random(500)));
                fixture.queue.record_reply(id, reply, None).await.unwrap();
            }
            for target in ["crm", "bot"] {
                let mut end = settlement(id, target, Disposition::End(DeliveryState::Delivered), 1);
                let answer = format!("{user} {}", "z".repeat(random(700)));
                end.attempt.as_mut().unwrap().answer = Some(answer.into_bytes());
                fixture.queue.settle(end).await.unwrap();
            }
        }
    }
    let kept = fixture.of(OTHER).await;
    assert_eq!(fixture.forget(of(USER)).await, users[1]);
    assert!(!fixture.holds(USER));
    assert_eq!(fixture.of(OTHER).await, kept);
    assert_eq!(fixture.inspect().await.check_file().await.unwrap(), [""; 0]);
    // The writer continues with the pages as they are now.
    for (id, _) in open.iter().filter(|(_, user)| *user == OTHER) {
        fixture.queue.record_reply(*id, "y".repeat(3000), None).await.unwrap();
    }
    let fixture = fixture.reopen().await;
    assert!(!fixture.holds(USER));
    assert_eq!((fixture.audit().await.events, fixture.of(OTHER).await), (users[0], kept));
    assert_eq!(fixture.inspect().await.check_file().await.unwrap(), [""; 0]);
}

/// One event of a history: whether it is the user's, for which targets, the end of each delivery, if it ends, and the
/// padding of its text.
type Past = (bool, usize, Vec<Option<DeliveryState>>, usize);

const TARGETS: [&str; 3] = ["a", "b", "in-order"];

fn the_events_of_others_stay_as_they_are_and_are_delivered(engine: TestEngine) {
    proptest!(engine.cases(32), |(
        history in prop::collection::vec(
            (
                any::<bool>(),
                0..8_usize,
                prop::collection::vec(
                    prop::option::of(prop::sample::select(vec![DeliveryState::Delivered, DeliveryState::Dead, DeliveryState::Expired])),
                    TARGETS.len(),
                ),
                prop::sample::select(vec![0_usize, 700, 2_000, 9_000]),
            ),
            1..40,
        ))| {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(play(engine, history))?;
    });
}

async fn play(engine: TestEngine, history: Vec<Past>) -> Result<(), TestCaseError> {
    let fixture = QueueFixture::open(engine).await;
    fixture.queue.keep_order(&TARGETS[2].into(), DeliveryOrder::PerUser);
    for (n, (is_forgotten, targets, ends, size)) in history.into_iter().enumerate() {
        let user = if is_forgotten { USER } else { OTHER };
        let names: Vec<_> = TARGETS.into_iter().enumerate().filter(|(at, _)| targets >> at & 1 == 1).collect();
        let content = format!("{n} of {user} {}", "x".repeat(size));
        let id = fixture.store_of(user, &content, &names.iter().map(|(_, name)| *name).collect::<Vec<_>>()).await;
        for (at, name) in names {
            if let Some(state) = ends[at] {
                fixture.end(id, name, state).await;
            }
        }
        if n % 4 == 0 {
            fixture.queue.record_reply(id, format!("<xml>{user} {}</xml>", "y".repeat(size / 3)), None).await.unwrap();
        }
    }
    let (meant, kept) = (fixture.of(USER).await, fixture.of(OTHER).await);
    prop_assert_eq!(fixture.forget(of(USER)).await, meant.len() as u64);
    prop_assert!(fixture.of(USER).await.is_empty());
    prop_assert_eq!(fixture.of(OTHER).await, kept);
    let file = fixture.inspect().await.check_file().await.unwrap();
    prop_assert!(file.is_empty(), "{:?}", file);
    // Nothing is held for ever.
    for target in TARGETS {
        loop {
            let due = ids(&fixture.lease(target, 100, NOW).await);
            if due.is_empty() {
                break;
            }
            for event in due {
                fixture.end(event, target, DeliveryState::Delivered).await;
            }
        }
    }
    prop_assert_eq!(fixture.audit().await.counts.pending, 0);
    Ok(())
}

on_every_engine!(
    everything_of_a_user_goes_whatever_has_become_of_it_and_nothing_of_others,
    a_lease_that_is_out_is_revoked_and_its_end_is_harmless,
    where_order_is_kept_what_is_held_goes_too_and_what_is_not_meant_is_released,
    only_what_one_account_got_is_forgotten_where_that_is_asked_for,
    a_forgotten_push_that_comes_again_makes_no_second_event,
    a_crash_in_the_middle_leaves_a_clean_ledger_and_forgetting_again_ends_it;
    properties: the_events_of_others_stay_as_they_are_and_are_delivered
);
