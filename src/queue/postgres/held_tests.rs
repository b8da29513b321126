//! While somebody holds a snapshot, PostgreSQL removes nothing that is dead: what is done again and again must not read it.

use std::time::Duration;

use tokio::time::{sleep, timeout};
use tokio_postgres::types::Type;

use super::house::{FOLD, FOLD_ALL_EVERY, FOLD_STEP, FoldPlace};
use super::looks::{DUE, Look};
use super::replica::FREE_ORPHANS;
use super::test_server;
use super::{PinnedSession, Session, Value};
use crate::queue::Queue;
use crate::queue::fixture::{NOW, PATIENCE, QueueFixture, TestEngine, ids};
use crate::queue::postgres::engine::Engine;
use crate::tuning::{ReplicaTiming, Tuning};

const HELD_BY_ME: &str = "UPDATE delivery SET holder = (SELECT max(incarnation) FROM replica) WHERE state = 0";

fn engine(fixture: &QueueFixture) -> &Engine {
    match &fixture.queue {
        Queue::Postgres(postgres) => &postgres.engine,
        Queue::Embedded(_) | Queue::Model(_) => panic!("only of PostgreSQL"),
    }
}

/// The pages that a statement touches, which is executed.
async fn pages(session: &Session, sql: &str, values: &[Value<'_>]) -> u64 {
    let sql = format!("EXPLAIN (ANALYZE, BUFFERS, COSTS OFF, TIMING OFF) {sql}");
    let rows = session.query_once(&sql, values).await.unwrap();
    let lines: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
    let line = lines.iter().find_map(|line| line.trim_start().strip_prefix("Buffers: shared ")).unwrap_or_default();
    let of = |word: &str| Some(word.strip_prefix("hit=").or(word.strip_prefix("read="))?.parse::<u64>().unwrap());
    line.split(' ').filter_map(of).sum()
}

#[tokio::test]
async fn with_a_held_snapshot_a_fold_reads_no_more_for_what_was_folded_before() {
    if test_server::shared().is_none() {
        return;
    }
    let fixture = QueueFixture::open(TestEngine::Postgres).await;
    let engine = engine(&fixture);
    let (folder, reader) = (PinnedSession::new(engine.connector.clone()), engine.connector.connect().await.unwrap());
    let mut holder = engine.connector.connect().await.unwrap();
    let snapshot = holder.snapshot().await.unwrap();
    snapshot.query("SELECT 1", &[]).await.unwrap();
    let sum = || {
        let all = "SELECT count FROM tally WHERE target = 9 UNION ALL SELECT count FROM tally_delta WHERE target = 9";
        fixture.texts(&format!("SELECT sum(count)::text FROM ({all}) t")).remove(0).unwrap()
    };
    // What was folded in an hour, less.
    fixture.execute("INSERT INTO tally_delta SELECT 9, 1, 0 FROM generate_series(1, 500000); DELETE FROM tally_delta");
    let mut place = FoldPlace::new();
    engine.fold_tally(&folder, &mut place).await.unwrap();
    fixture.execute("INSERT INTO tally_delta SELECT 9, 1, 1 FROM generate_series(1, 300)");
    let start = format!("({},0)", place.start());
    let read = pages(&reader, FOLD, &[(&FOLD_STEP, Type::INT8), (&start, Type::TEXT)]).await;
    // Each row is found, locked and deleted.
    assert!(read < 2000, "{read} pages from {start} on");
    assert_eq!(sum(), "300");
    snapshot.end().await.unwrap();
    // Now the beginning of the table is used again: what is stored there counts, and is found later.
    fixture.execute("VACUUM tally_delta; INSERT INTO tally_delta SELECT 9, 1, 1 FROM generate_series(1, 10)");
    engine.fold_tally(&folder, &mut place).await.unwrap();
    assert_eq!(sum(), "310");
    place.whole_at -= FOLD_ALL_EVERY;
    engine.fold_tally(&folder, &mut place).await.unwrap();
    assert_eq!(sum(), "310");
    assert_eq!(fixture.texts("SELECT count(*)::text FROM tally_delta"), [Some("0".to_owned())]);
}

#[tokio::test]
async fn with_a_held_snapshot_a_proof_of_life_reads_no_more_for_what_was_held_before() {
    if test_server::shared().is_none() {
        return;
    }
    let fixture = QueueFixture::open(TestEngine::Postgres).await;
    let engine = engine(&fixture);
    let id = fixture.store("a", &["crm"]).await;
    let leased = fixture.lease("crm", 1, NOW).await;
    let (mut holder, reader) = (engine.connector.connect().await.unwrap(), engine.connector.connect().await.unwrap());
    let snapshot = holder.snapshot().await.unwrap();
    snapshot.query("SELECT 1", &[]).await.unwrap();
    // Delivered at once, and after a wait.
    fixture.execute(
        "INSERT INTO delivery (event, target, state, holder, attempts, failures, due)
           SELECT n, 1, 0, CASE WHEN n % 2 = 0 THEN (SELECT max(incarnation) FROM replica) END, 0, 0, n
             FROM generate_series(1, 20000) n ORDER BY md5(n::text);
         UPDATE delivery SET state = 1, holder = NULL WHERE event <= 20000",
    );
    let me = engine.incarnation();
    let whole = pages(&reader, Look::default().sql(), &Look::default().held(&me)).await;
    assert!(whole > 5000, "{whole} pages: is the snapshot held?");
    // As such a look takes after some minutes.
    engine.membership.looks.pace.lock().note(Duration::from_secs(2));
    let look = engine.next_look();
    for (sql, values) in [(look.sql(), look.held(&me)), (DUE, look.due().to_vec()), (FREE_ORPHANS, Vec::new())] {
        let read = pages(&reader, sql, &values).await;
        assert!(read < 200, "{read} pages: {sql}");
    }
    let held = reader.query(look.sql(), &look.held(&me)).await.unwrap();
    assert_eq!(engine.note_look(&look, &held, &[]).unwrap().into_keys().collect::<Vec<_>>(), [(id, 1)]);
    assert_eq!(ids(&leased), [id]);
    snapshot.end().await.unwrap();
}

/// Whole looks take so long that the next one is far away. One that is under way may say otherwise.
async fn make_rare(fixture: &QueueFixture) {
    let (looks, long) = (&engine(fixture).membership.looks, Duration::from_millis(500));
    while looks.pace.lock().took() != long {
        looks.pace.lock().note(long);
        for _ in 0..2 {
            let seen = fixture.texts("SELECT alive_at::text FROM replica");
            while fixture.texts("SELECT alive_at::text FROM replica") == seen {
                sleep(Duration::from_millis(5)).await;
            }
        }
    }
}

async fn until(is_so: impl Fn() -> bool) {
    let wait = async {
        while !is_so() {
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, wait).await.unwrap();
}

#[tokio::test]
async fn while_whole_looks_are_rare_leases_are_compared_and_what_a_failed_call_left_is_found() {
    if test_server::shared().is_none() {
        return;
    }
    let ms = Duration::from_millis;
    let replica = ReplicaTiming {
        beat: ms(20),
        fence: ms(120_000),
        orphaned: ms(200),
        cheap_look: Duration::ZERO,
        ..ReplicaTiming::default()
    };
    let fixture = QueueFixture::open_tuned(TestEngine::Postgres, Tuning { replica, ..Tuning::default() }).await;
    let looks = &engine(&fixture).membership.looks;
    fixture.store("a", &["crm"]).await;
    let mut leased = fixture.lease("crm", 1, NOW).await;
    let lease = leased.due.remove(0);
    sleep(ms(100)).await;
    assert!(!lease.is_revoked());
    make_rare(&fixture).await;
    fixture.execute("UPDATE delivery SET holder = NULL");
    until(|| lease.is_revoked()).await;
    drop(lease);
    engine(&fixture).give_back_dropped().await.unwrap();
    let count = || fixture.texts("SELECT count(holder)::text FROM delivery").remove(0).unwrap();
    make_rare(&fixture).await;
    fixture.execute(HELD_BY_ME);
    sleep(ms(600)).await;
    assert_eq!(count(), "1", "nobody asks for it");
    looks.hurry();
    until(|| count() == "0").await;
}
