//! What is true of PostgreSQL alone: replicas beside each other, commits of unknown outcome, a standby that is away.

use std::collections::{BTreeSet, HashSet};
use std::io::Write as _;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{sleep, timeout};

use super::test_server::{self, Cluster};
use crate::queue::fixture::{
    DAY, NOW, PATIENCE, QueueFixture, TestEngine, concurrently, ids, new_event, new_event_of, settlement,
};
use crate::queue::{
    AttemptNote, DeliveryOrder, DeliveryState, Disposition, Enqueued, EventId, Known, NewEvent, Queue, Settlement,
    Share,
};
use crate::tuning::{ReplicaTiming, Tuning};

/// The next commits wait for a standby that there is not, until [`RELEASE`].
fn hold_commits(cluster: &Cluster) {
    cluster.set("synchronous_standby_names", Some("nobody"));
}

const RELEASE: &str = "ALTER SYSTEM RESET synchronous_standby_names; SELECT pg_reload_conf();";

/// Parts of the statements that store pushes, and outcomes.
const STORING_PUSHES: &str = "INSERT INTO known";
const STORING_OUTCOMES: &str = "UPDATE delivery d SET state";

/// Waits until such a statement waits for the standby; then ends its session, and executes `then`.
async fn end_waiting(cluster: &'static Cluster, statement: &str, then: &'static str) {
    // Not on this thread, which the push needs.
    let execute = async |sql: String| tokio::task::spawn_blocking(move || cluster.sql("postgres", &sql)).await.unwrap();
    // In one session: on a busy machine each further one would come too late for a push.
    let end = format!(
        "DO $$ DECLARE ended bigint; BEGIN FOR i IN 1..4000 LOOP
             PERFORM pg_sleep(0.005), pg_stat_clear_snapshot();
             SELECT count(pg_terminate_backend(pid)) INTO ended FROM pg_stat_activity
              WHERE wait_event = 'SyncRep' AND query LIKE '%{statement}%' AND pid <> pg_backend_pid();
             EXIT WHEN ended > 0;
         END LOOP; END $$"
    );
    let ended = async {
        execute(end).await;
        execute(then.to_owned()).await
    };
    timeout(PATIENCE, ended).await.unwrap();
}

/// A statement that waits until there is a row of these.
fn until(rows: &str) -> String {
    format!(
        "DO $$ BEGIN FOR i IN 1..4000 LOOP
             PERFORM pg_sleep(0.005), pg_stat_clear_snapshot();
             EXIT WHEN EXISTS (SELECT FROM {rows});
         END LOOP; END $$"
    )
}

/// Waits until a query says `t`.
async fn wait_for(fixture: &QueueFixture, sql: &str) {
    let is_so = async {
        while fixture.texts(sql) != [Some("t".to_owned())] {
            sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(PATIENCE, is_so).await.unwrap();
}

fn count(fixture: &QueueFixture, of: &str) -> String {
    fixture.texts(&format!("SELECT count(*)::text FROM {of}")).remove(0).unwrap()
}

fn end(event: EventId, state: DeliveryState) -> Settlement {
    settlement(event, "crm", Disposition::End(state), 1)
}

/// A server of the test's own, whose settings it changes. It ends with the process.
fn own_server() -> Option<&'static Cluster> {
    test_server::own("").map(|cluster| &*Box::leak(Box::new(cluster)))
}

#[tokio::test]
async fn a_settlement_of_what_another_replica_took_over_changes_nothing() {
    if test_server::shared().is_none() {
        return;
    }
    let first = QueueFixture::open(TestEngine::Postgres).await;
    let second = first.another().await;
    let mut inbox = first.queue.subscribe("crm".into(), 8);
    let id = first.store("a", &["crm"]).await;
    let stale = inbox.fresh.recv().await.unwrap();
    assert!(second.lease("crm", 10, NOW).await.due.is_empty(), "the first one holds it");
    first.execute("UPDATE delivery SET holder = NULL");
    let lease = second.lease("crm", 10, NOW).await;
    assert_eq!(ids(&lease), [id]);
    first.queue.settle(end(id, DeliveryState::Delivered)).await.unwrap();
    first.queue.settle(settlement(id, "crm", Disposition::Retry(NOW), 1)).await.unwrap();
    drop(stale);
    assert!(first.lease("crm", 10, NOW).await.due.is_empty());
    assert_eq!((count(&first, "attempt"), count(&first, "delivery WHERE state = 0")), ("0".to_owned(), "1".to_owned()));
    second.queue.settle(end(id, DeliveryState::Dead)).await.unwrap();
    assert_eq!(count(&first, "delivery WHERE state = 2 AND holder IS NULL"), "1");
}

/// As where others have taken it over and given it back, while this replica was frozen.
#[tokio::test]
async fn what_is_not_settled_here_is_not_leased_again_although_it_is_free() {
    if test_server::shared().is_none() {
        return;
    }
    let fixture = QueueFixture::open(TestEngine::Postgres).await;
    let mut inbox = fixture.queue.subscribe("crm".into(), 8);
    let (id, unused) = (fixture.store("a", &["crm"]).await, fixture.store("b", &["crm"]).await);
    let (attempt, returned) = (inbox.fresh.recv().await.unwrap(), inbox.fresh.recv().await.unwrap());
    fixture.execute("UPDATE delivery SET holder = NULL");
    assert!(fixture.lease("crm", 10, NOW).await.due.is_empty(), "attempted twice at once");
    drop(returned);
    let leases = fixture.lease("crm", 10, NOW).await;
    assert_eq!((ids(&leases), leases.due[0].attempt), (vec![unused], 1));
    fixture.queue.settle(settlement(id, "crm", Disposition::Retry(NOW), 1)).await.unwrap();
    drop(attempt);
    let leases = fixture.lease("crm", 10, NOW).await;
    assert_eq!((ids(&leases), leases.due[0].attempt), (vec![id], 2));
    fixture.queue.settle(settlement(id, "crm", Disposition::End(DeliveryState::Delivered), 2)).await.unwrap();
    assert_eq!(count(&fixture, "delivery WHERE state = 1"), "1");
}

#[tokio::test]
async fn crashes_do_not_use_up_the_slots_and_what_the_dead_hold_is_freed() {
    if test_server::shared().is_none() {
        return;
    }
    let first = QueueFixture::open(TestEngine::Postgres).await;
    let _inbox = first.queue.subscribe("crm".into(), 8);
    let id = first.store("a", &["crm"]).await;
    assert_eq!(count(&first, "delivery WHERE holder IS NOT NULL"), "1");
    first.execute(
        "INSERT INTO replica (incarnation, name, slot, release, schema, alive_at, seen, config, keys)
         SELECT 1000 + s, 'dead', s, '', 1, clock_timestamp() - interval '3 minutes', 0, '', '{}'
           FROM generate_series(0, 63) s WHERE s NOT IN (SELECT slot FROM replica)",
    );
    first.execute("UPDATE delivery SET holder = (SELECT max(incarnation) FROM replica)");
    let second = first.another().await;
    assert_eq!(ids(&second.lease("crm", 10, NOW).await), [id]);
    assert_eq!(count(&first, "replica"), "2");
}

#[tokio::test]
async fn replicas_learn_their_shares_as_others_come_and_go() {
    if test_server::shared().is_none() {
        return;
    }
    let first = QueueFixture::open(TestEngine::Postgres).await;
    let mut shares = first.queue.shares();
    assert_eq!(*shares.borrow(), Share::WHOLE);
    let second = first.another().await;
    let mut wait = async |share| drop(timeout(PATIENCE, shares.wait_for(|now| *now == share)).await.unwrap().unwrap());
    assert_eq!(*second.queue.shares().borrow(), Share::new(1, 2), "from its start");
    wait(Share::new(0, 2)).await;
    second.queue.close().await;
    wait(Share::WHOLE).await;
}

/// A replica is frozen as a runtime that nobody drives.
#[test]
fn a_replica_that_was_frozen_begins_nothing_and_settles_nothing_that_others_have() {
    if test_server::shared().is_none() {
        return;
    }
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (frozen, other) = (runtime(), runtime());
    let ms = Duration::from_millis;
    let replica = ReplicaTiming { beat: ms(50), fence: ms(600), grace: ms(200), ..ReplicaTiming::default() };
    let tuning = Tuning { replica, ..Tuning::default() };
    let (first, id, lease) = frozen.block_on(async {
        let first = QueueFixture::open_tuned(TestEngine::Postgres, tuning).await;
        first.queue.bound_attempts(&"crm".into(), ms(100));
        let mut inbox = first.queue.subscribe("crm".into(), 8);
        let id = first.store("a", &["crm"]).await;
        let lease = inbox.fresh.recv().await.unwrap();
        assert!(!lease.is_revoked());
        (first, id, lease)
    });
    let second = other.block_on(async {
        let second = first.another().await;
        second.queue.bound_attempts(&"crm".into(), ms(100));
        let taken = async {
            loop {
                let leases = second.lease("crm", 10, NOW).await;
                if !leases.due.is_empty() {
                    return leases;
                }
                sleep(ms(20)).await;
            }
        };
        let leases = timeout(PATIENCE, taken).await.unwrap();
        assert!(lease.is_revoked(), "what others may have is not begun");
        assert_eq!(ids(&leases), [id]);
        second.queue.settle(end(id, DeliveryState::Delivered)).await.unwrap();
        second
    });
    frozen.block_on(async {
        first.queue.settle(end(id, DeliveryState::Dead)).await.unwrap();
        assert_eq!(count(&first, "delivery WHERE state = 1"), "1");
        drop(lease);
        let goes_on = async {
            while first.queue.lease("crm", 10, NOW).await.is_err() {
                sleep(ms(20)).await;
            }
        };
        timeout(PATIENCE, goes_on).await.unwrap();
    });
    drop(second);
}

#[tokio::test]
async fn a_push_whose_commit_is_cut_off_is_tried_again_with_its_id_and_stored_once() {
    let Some(cluster) = own_server() else { return };
    let fixture = QueueFixture::open_on(cluster).await;
    let mut inbox = fixture.queue.subscribe("crm".into(), 8);
    fixture.store("before", &["crm"]).await;
    inbox.fresh.recv().await.unwrap();
    hold_commits(cluster);
    let new = fixture.event("cut off", &["crm", "bot"]);
    let id = new.event.id;
    let cut = end_waiting(cluster, STORING_PUSHES, RELEASE);
    let ((), stored) = tokio::join!(cut, fixture.queue.enqueue(new));
    assert!(matches!(stored.unwrap(), Enqueued::Fresh));
    assert_eq!(inbox.fresh.recv().await.unwrap().event.id, id);
    assert!(inbox.fresh.try_recv().is_err(), "handed over once");
    assert_eq!((count(&fixture, "event"), count(&fixture, "delivery")), ("2".to_owned(), "3".to_owned()));
    assert_eq!(ids(&fixture.lease("bot", 10, NOW).await), [id]);
}

#[tokio::test]
async fn what_is_leased_while_a_commit_is_of_unknown_outcome_is_not_handed_over_again() {
    let Some(cluster) = own_server() else { return };
    let fixture = QueueFixture::open_on(cluster).await;
    fixture.queue.keep_order(&"crm".into(), DeliveryOrder::PerUser);
    let mut inbox = fixture.queue.subscribe("crm".into(), 8);
    let earlier = fixture.store("earlier", &["crm"]).await;
    let lease = inbox.fresh.recv().await.unwrap();
    hold_commits(cluster);
    // So that the push is not tried again before the turn of its delivery has come.
    let mut session = fixture.psql().spawn().unwrap();
    let mut input = session.stdin.take().unwrap();
    let storing = "pg_locks JOIN pg_stat_activity USING (pid) WHERE relation = 'wxrelay.known'::regclass";
    let committing = until(&format!("{storing} AND mode = 'RowExclusiveLock' AND wait_event = 'SyncRep'"));
    writeln!(input, "{committing}; BEGIN; LOCK TABLE wxrelay.known;").unwrap();
    let new = fixture.event("cut off", &["crm"]);
    let id = new.event.id;
    let pushed = fixture.queue.enqueue(new);
    let meanwhile = async {
        let waits = until(&format!("{storing} AND NOT granted"));
        let end_it = format!("SELECT pg_terminate_backend(pid) FROM {storing} AND mode = 'RowExclusiveLock'");
        let (mut psql, statements) = (fixture.psql(), format!("{waits}; {end_it}; {RELEASE}"));
        tokio::task::spawn_blocking(move || {
            let mut session = psql.spawn().unwrap();
            session.stdin.take().unwrap().write_all(statements.as_bytes()).unwrap();
            session.wait().unwrap();
        })
        .await
        .unwrap();
        fixture.queue.settle(end(earlier, DeliveryState::Delivered)).await.unwrap();
        drop(lease);
        let leased = fixture.lease("crm", 10, NOW.after(DAY)).await;
        assert_eq!(ids(&leased), [id]);
        drop(input);
        leased
    };
    let (stored, leased) = tokio::join!(pushed, meanwhile);
    assert!(matches!(stored.unwrap(), Enqueued::Fresh));
    assert!(inbox.fresh.try_recv().is_err(), "leased twice");
    assert!(!leased.due[0].is_revoked());
    fixture.queue.settle(end(id, DeliveryState::Delivered)).await.unwrap();
    assert_eq!(count(&fixture, "delivery WHERE state = 1"), "2");
    session.wait().unwrap();
}

#[tokio::test]
async fn a_duplicate_is_answered_only_when_the_standby_has_what_it_stands_on() {
    let Some(cluster) = own_server() else { return };
    let first = QueueFixture::open_on(cluster).await;
    let second = first.another().await;
    second.store("before", &["crm"]).await;
    hold_commits(cluster);
    let new = first.event("a", &["crm"]);
    let id = new.event.id;
    let cut_off = async {
        end_waiting(cluster, STORING_PUSHES, "").await;
        wait_for(&first, "SELECT count(*) = 2 FROM event").await;
    };
    // The process that got the first push ends here; its commit was never confirmed.
    tokio::select! {
        stored = first.queue.enqueue(new) => panic!("{stored:?}"),
        () = cut_off => {}
    }
    let again = timeout(Duration::from_secs(1), second.queue.enqueue(second.event("a", &["crm"]))).await;
    assert!(again.is_err(), "{again:?}");
    cluster.sql("postgres", RELEASE);
    let again = second.queue.enqueue(second.event("a", &["crm"])).await.unwrap();
    assert!(matches!(again, Enqueued::Duplicate { id: stored, reply: Known::Answered(None) } if stored == id));
}

#[tokio::test]
async fn a_settlement_whose_commit_is_cut_off_counts_its_failure_once() {
    let Some(cluster) = own_server() else { return };
    let fixture = QueueFixture::open_on(cluster).await;
    let mut inbox = fixture.queue.subscribe("crm".into(), 8);
    let id = fixture.store("a", &["crm"]).await;
    let lease = inbox.fresh.recv().await.unwrap();
    hold_commits(cluster);
    let failed = settlement(id, "crm", Disposition::Retry(NOW), 1);
    let ((), settled) = tokio::join!(end_waiting(cluster, STORING_OUTCOMES, RELEASE), fixture.queue.settle(failed));
    settled.unwrap();
    drop(lease);
    assert_eq!(count(&fixture, "attempt"), "1");
    let leases = fixture.lease("crm", 1, NOW).await;
    assert_eq!((ids(&leases), leases.due[0].attempt, leases.due[0].failures), (vec![id], 2, 1));
}

#[tokio::test]
async fn nul_is_stored_as_the_replacement_character() {
    if test_server::shared().is_none() {
        return;
    }
    let fixture = QueueFixture::open(TestEngine::Postgres).await;
    let mut new = fixture.event("a", &["crm"]);
    Arc::get_mut(&mut new.event).unwrap().account = "sh\0op".into();
    let id = new.event.id;
    fixture.queue.enqueue(new).await.unwrap();
    let mut failed = settlement(id, "crm", Disposition::Retry(NOW), 1);
    let attempt = failed.attempt.as_mut().unwrap();
    (attempt.error, attempt.answer) = (Some("bro\0ken".to_owned()), Some(b"an\0swer".to_vec()));
    fixture.queue.settle(failed).await.unwrap();
    assert_eq!(&*fixture.lease("crm", 1, NOW).await.due[0].event.account, "sh\u{fffd}op");
    assert_eq!(fixture.texts("SELECT error FROM attempt"), [Some("bro\u{fffd}ken".to_owned())]);
    assert_eq!(fixture.texts("SELECT encode(answer, 'hex') FROM attempt"), [Some("616e0073776572".to_owned())]);
    let note = AttemptNote { event: id, target: "crm".into(), attempt: 1, error: Some("\0".to_owned()) };
    fixture.queue.annotate(note).await.unwrap();
    assert_eq!(fixture.texts("SELECT error FROM attempt"), [Some("\u{fffd}".to_owned())]);
}

#[tokio::test]
async fn replicas_that_get_the_same_pushes_in_another_order_do_not_block_each_other() {
    if test_server::shared().is_none() {
        return;
    }
    const PUSHES: u64 = 120;
    let first = QueueFixture::open(TestEngine::Postgres).await;
    let second = first.another().await;
    let fresh = parking_lot::Mutex::new(0);
    let known = parking_lot::Mutex::new(HashSet::new());
    let push = async |queue: &Queue, number: u64| {
        let new = new_event(queue.next_id(NOW), &number.to_string(), &["crm", "bot"]);
        let id = new.event.id;
        match queue.enqueue(new).await.unwrap() {
            Enqueued::Fresh => {
                *fresh.lock() += 1;
                known.lock().insert(id);
            }
            Enqueued::Duplicate { id, .. } => {
                known.lock().insert(id);
            }
        }
    };
    let forth = (0..PUSHES).map(|number| push(&first.queue, number));
    let back = (0..PUSHES).rev().map(|number| push(&second.queue, number));
    tokio::join!(concurrently(forth), concurrently(back));
    assert_eq!((*fresh.lock(), known.lock().len() as u64), (PUSHES, PUSHES), "each is one event, with one id");
    let deadlocks = "SELECT deadlocks::text FROM pg_stat_database WHERE datname = current_database()";
    assert_eq!(first.texts(deadlocks), [Some("0".to_owned())]);
}

#[tokio::test]
async fn nobody_is_held_for_ever_while_replicas_store_and_settle_at_the_same_time() {
    if test_server::shared().is_none() {
        return;
    }
    const PUSHES: usize = 150;
    let first = QueueFixture::open(TestEngine::Postgres).await;
    let second = first.another().await;
    for fixture in [&first, &second] {
        fixture.queue.keep_order(&"crm".into(), DeliveryOrder::PerUser);
    }
    let pushed = parking_lot::Mutex::new(0);
    let delivered = parking_lot::Mutex::new(BTreeSet::new());
    let push = async |queue: &Queue| {
        for number in 0..PUSHES / 2 {
            let user = format!("o{}", number % 3);
            let id = queue.next_id(NOW);
            let new = NewEvent { ..new_event_of(id, &user, &id.to_string(), &["crm"]) };
            assert!(matches!(queue.enqueue(new).await.unwrap(), Enqueued::Fresh));
            *pushed.lock() += 1;
        }
    };
    let serve = async |fixture: &QueueFixture| {
        while delivered.lock().len() < PUSHES {
            // On a busy machine PostgreSQL may be late: then it is asked again.
            let leases = fixture.queue.lease("crm", 10, NOW).await.unwrap_or_default();
            if leases.due.is_empty() {
                // The housekeeping would release what is stuck, later.
                let stuck = "SELECT count(*)::text FROM delivery d WHERE state = 0 AND due = 9223372036854775807 AND NOT \
                             EXISTS (SELECT FROM delivery p WHERE p.usr = d.usr AND p.state = 0 AND p.turn < d.turn)";
                assert!(fixture.texts(stuck) == [Some("0".to_owned())] || *pushed.lock() < PUSHES, "one is stuck");
                sleep(Duration::from_millis(5)).await;
            }
            for lease in &leases.due {
                fixture.queue.settle(end(lease.event.id, DeliveryState::Delivered)).await.unwrap();
                assert!(delivered.lock().insert(lease.event.id), "delivered twice");
            }
        }
    };
    let all = async {
        tokio::join!(push(&first.queue), push(&second.queue), serve(&first), serve(&second));
    };
    timeout(PATIENCE * 2, all).await.unwrap();
    assert_eq!(count(&first, "delivery WHERE state = 1"), PUSHES.to_string());
}
