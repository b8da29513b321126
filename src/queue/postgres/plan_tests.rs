//! The plan of each statement that many events wait for: on an empty store, on a full one without statistics, and on a
//! full one with them. PostgreSQL plans some once per connection, so a plan of an empty store may meet a full one.

use std::fmt::Write as _;

use super::test_server::{self, Database};
use super::{append, house, lease, looks, replica, replies, schema, session, settings, settle};

/// What a statement is, its text, and the indexes that it uses.
const HOT: [(&str, &str, &[&str]); 25] = [
    ("append", append::APPEND, &[]),
    ("append in order", append::APPEND_IN_ORDER, &["delivery_user"]),
    ("duplicates", append::DUPLICATES, &["known_pkey", "event_pkey"]),
    ("free deliveries", append::FREE, &["delivery_pkey"]),
    ("settle", settle::SETTLE, &["delivery_pkey"]),
    ("users", settle::USERS, &["delivery_pkey"]),
    ("hold", settle::HOLD, &["delivery_pkey", "delivery_user"]),
    ("release", settle::RELEASE, &["delivery_user", "delivery_pkey"]),
    ("reply", settle::REPLY, &["event_pkey"]),
    ("keys", settle::KEYS, &["event_pkey"]),
    ("annotate", settle::ANNOTATE, &["attempt_pkey"]),
    ("reply of another", replies::FIND, &["event_pkey"]),
    ("lease", lease::LEASE, &["delivery_free", "delivery_pkey", "event_pkey"]),
    ("next due", lease::NEXT_DUE, &["delivery_free"]),
    ("give back", lease::GIVE_BACK, &["delivery_pkey"]),
    ("lease awaited", lease::LEASE_AWAITED, &["delivery_pkey"]),
    ("held", looks::HELD, &["delivery_held"]),
    ("held of some", looks::HELD_OF, &["delivery_pkey"]),
    ("due", looks::DUE, &["delivery_free"]),
    ("take over", replica::TAKE_OVER, &["delivery_held"]),
    ("free orphans", replica::FREE_ORPHANS, &["delivery_held"]),
    ("fold", house::FOLD, &[]),
    ("delete old", house::DELETE_OLD, &["event_pkey", "delivery_pkey", "attempt_pkey", "known_pkey"]),
    ("first pending of each user", house::FIRST_PENDING, &["delivery_user"]),
    ("delete keys", house::DELETE_KEYS, &["retired_key_pkey", "known_pkey"]),
];
/// The tables that grow with the events.
const LARGE: [&str; 5] = ["event", "known", "retired_key", "delivery", "attempt"];
/// Their indexes, and what an entry is found by.
const INDEXES: [(&str, &[&str]); 8] = [
    ("event_pkey", &["id"]),
    ("known_pkey", &["content_key ="]),
    ("retired_key_pkey", &["event"]),
    ("attempt_pkey", &["event ="]),
    ("delivery_pkey", &["event ="]),
    ("delivery_free", &["target ="]),
    ("delivery_held", &["holder =", "holder > gaps.low"]),
    // The first entry behind a user.
    ("delivery_user", &["usr =", "usr) > ROW("]),
];

/// A day of 30,000 events with two deliveries each: few are pending, and of these a third each is free, held, and held
/// behind an earlier one.
const FILL: &str = "
    INSERT INTO target (no, name) VALUES (1, 'crm'), (2, 'bot');
    INSERT INTO event (id, content_key, targets, mode, received_at, account, app_id, msg_type, event, event_key,
                       from_user, query, body)
      SELECT n, sha256(n::text::bytea), 2, 2, n, 'shop', 'wx1', 'text', '', '', 'o' || n % 1000, '', ''
        FROM generate_series(1, 30000) n;
    INSERT INTO known SELECT content_key, id FROM event;
    INSERT INTO retired_key SELECT -n, sha256((-n)::text::bytea) FROM generate_series(1, 1000) n;
    INSERT INTO delivery (event, target, state, holder, attempts, failures, due, ended_at, usr, turn)
      SELECT n, t, CASE WHEN n % 100 = 0 THEN 0 ELSE 1 END, CASE WHEN n % 300 = 0 THEN 1 END, 1, 0,
             CASE WHEN n % 300 = 100 THEN 9223372036854775807 ELSE n END, n, CASE WHEN t = 2 THEN n % 1000 END, n
        FROM generate_series(1, 30000) n, generate_series(1, 2) t;
    INSERT INTO attempt SELECT event, target, 1, 0, 0, 200 FROM delivery WHERE state = 1;
    INSERT INTO tally VALUES (0, 0, 30000), (1, 0, 300), (1, 1, 29700), (2, 0, 300), (2, 1, 29700);
    ";

/// The plans of all statements.
fn plans(database: &Database<'_>) -> Vec<String> {
    let settings = settings::Settings::new(&database.url()).unwrap();
    let mut script = session::session_settings(&settings);
    for (place, (_, sql, _)) in HOT.iter().enumerate() {
        let count = (1..40).take_while(|number| sql.contains(&format!("${number}"))).count();
        let values = vec!["NULL"; count].join(", ");
        let values = if count == 0 { String::new() } else { format!("({values})") };
        write!(script, "\nPREPARE p{place} AS {sql};\n\\echo =====\nEXPLAIN EXECUTE p{place}{values};").unwrap();
    }
    database.sql(&script).split("=====\n").skip(1).map(str::to_owned).collect()
}

fn check(database: &Database<'_>, store: &str) {
    let plans = plans(database);
    assert_eq!(plans.len(), HOT.len());
    let mut wrong = String::new();
    for ((name, _, indexes), plan) in HOT.iter().zip(plans) {
        let lines: Vec<&str> = plan.lines().collect();
        let mut used = Vec::new();
        let mut is_good = !LARGE.iter().any(|table| plan.contains(&format!("Seq Scan on {table}")));
        for (place, line) in lines.iter().enumerate() {
            // An insertion looks for conflicts there.
            if line.contains("Conflict Arbiter") {
                continue;
            }
            let words: Vec<&str> = line.split_whitespace().collect();
            let Some((index, found_by)) = INDEXES.iter().find(|(index, _)| words.contains(index)) else { continue };
            used.push(*index);
            // Without a condition it is read whole.
            let condition = lines.get(place + 1).filter(|line| line.contains("Index Cond:"));
            is_good &= condition.is_some_and(|line| found_by.iter().any(|by| line.contains(by)));
        }
        is_good &= indexes.iter().all(|index| used.contains(index)) && used.iter().all(|index| indexes.contains(index));
        if !is_good {
            write!(wrong, "{name}, {store}: {used:?}, not {indexes:?}\n{plan}\n").unwrap();
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}

#[tokio::test]
async fn every_hot_statement_uses_its_indexes_whatever_the_statistics_say() {
    let Some(cluster) = test_server::shared() else { return };
    let database = cluster.database();
    database.sql(&schema::script("wxrelay", &database.role));
    let tables = [&LARGE[..], &["tally", "tally_delta", "target"]].concat();
    for table in &tables {
        database.sql(&format!("ALTER TABLE wxrelay.{table} SET (autovacuum_enabled = off)"));
    }
    check(&database, "empty");
    database.sql(&format!("SET search_path TO wxrelay; {FILL}"));
    check(&database, "without statistics");
    database.sql("VACUUM ANALYZE");
    check(&database, "with statistics");
}
