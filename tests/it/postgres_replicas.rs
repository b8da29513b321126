//! Several relays on one PostgreSQL: what an operator does is seen by all, and what differs between them is shown.

use serde_json::Value;
use tokio::time::Instant;

use crate::support::eventually;
use crate::support::http::post;
use crate::support::postgres::{self, Database};
use crate::support::relay::{Relay, Setup};
use crate::support::target::{Reaction, Reply, Target};
use crate::support::wechat::{WeChat, event};

/// A replica of that name.
async fn replica(database: &Database<'_>, name: &str, body: &str) -> Relay {
    Setup::new(body).postgres(&database.url()).queue(&format!("replica = \"{name}\"")).start().await
}

/// The lines of `wxrelay replicas --json`, by name.
async fn listed(relay: &Relay) -> Vec<Value> {
    let found = relay.run(&["replicas", "--json"]).await;
    assert_eq!(found.code, Some(0), "{found:?}");
    found.stdout.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

#[tokio::test]
async fn an_operators_action_is_seen_by_every_replica_and_the_answer_says_so() {
    let Some(cluster) = postgres::shared() else { return };
    let database = cluster.database();
    let (wechat, crm) = (WeChat::secure(), Target::start().await);
    crm.then(Reaction::Answer(Reply::status(500)));
    let body = wechat.account() + &crm.config("crm", "retry = []");
    let first = replica(&database, "a", &body).await;
    let second = replica(&database, "b", &body).await;
    let third = replica(&database, "c", &body).await;
    let relays = [&first, &second, &third];
    eventually("three live replicas", async || (first.metric("wxrelay_replicas", &[]).await == 3.0).then_some(()))
        .await;

    let answer = post(&first.admin, "/api/targets/crm/pause").await;
    let expected = r#"{"name":"crm","paused":true,"replicas":3,"seen":3}"#;
    assert_eq!((answer.status, answer.text()), (200, expected));
    for relay in relays {
        assert_eq!(relay.metric("wxrelay_target_paused", &[("target", "crm")]).await, 1.0, "seen is acted on");
    }
    let resumed = second.run(&["targets", "resume", "crm"]).await;
    assert_eq!((resumed.code, resumed.stdout.as_str()), (Some(0), "resumed crm\n"), "{resumed:?}");
    assert!(resumed.stderr.contains("seen by 3 of 3 replicas"), "{resumed:?}");

    first.accept(&wechat, &event("oOne", "CLICK", "one")).await;
    first.audited("dead", 1).await;
    let retried = third.run(&["dead", "retry", "crm", "--yes", "--json"]).await;
    let retried: Value = serde_json::from_str(&retried.stdout).expect("JSON");
    assert_eq!((&retried["retried"], &retried["replicas"], &retried["seen"]), (&1.into(), &3.into(), &3.into()));
    first.audited("dead", 1).await;
    let replayed = post(&second.admin, "/api/events/replay?all=true&to=crm").await.json();
    assert_eq!((&replayed["replayed"], &replayed["seen"]), (&1.into(), &3.into()), "{replayed}");

    // A replica that is gone without a word is counted for as long as it may be alive, and no longer.
    let mut third = third;
    third.kill().await;
    let started = Instant::now();
    let paused = first.run(&["targets", "pause", "crm", "--json"]).await;
    let paused: Value = serde_json::from_str(&paused.stdout).expect("JSON");
    assert_eq!(paused["seen"], 2, "{paused}");
    assert!(started.elapsed().as_secs() < 10, "the wait has an end");
    eventually("two live replicas", async || (first.metric("wxrelay_replicas", &[]).await == 2.0).then_some(())).await;
}

#[tokio::test]
async fn replicas_are_listed_and_one_whose_configuration_differs_is_named() {
    let Some(cluster) = postgres::shared() else { return };
    let database = cluster.database();
    let (wechat, crm) = (WeChat::secure(), Target::start().await);
    let body = wechat.account() + &crm.config("crm", "concurrency = 2");
    let first = replica(&database, "a", &body).await;
    let second = replica(&database, "b", &body).await;
    let other = wechat.account() + &crm.config("crm", "concurrency = 3");
    let mut third = replica(&database, "c", &other).await;
    eventually("a difference", async || (first.metric("wxrelay_replicas_differ", &[]).await == 1.0).then_some(()))
        .await;

    let found = listed(&second).await;
    let of = |key: &str| found.iter().map(|replica| replica[key].clone()).collect::<Vec<_>>();
    assert_eq!(of("name"), ["a", "b", "c"]);
    assert_eq!(of("live"), [true; 3]);
    assert_eq!(of("same_config"), [true, true, false]);
    assert_eq!(of("held"), [0; 3]);
    assert_eq!(of("release"), [env!("CARGO_PKG_VERSION"); 3]);
    let admin = |relay: &Relay| Value::from(relay.admin.clone());
    assert_eq!(of("admin"), [admin(&first), admin(&second), admin(&third)]);
    let text = first.run(&["replicas"]).await;
    assert!(text.stdout.contains("DIFFERS") && text.stdout.contains("alive"), "{text:?}");
    let status: Value = first.get("/api/status").await.json();
    assert_eq!(status["replicas"].as_array().map(Vec::len), Some(3), "{status}");

    let online = first.run(&["check", "--online"]).await;
    for line in ["target crm: concurrency 2 among 3 replicas: 1, 1, 0", "replica c: warning"] {
        assert!(online.stdout.contains(line), "no `{line}` in {online:?}");
    }
    let doctor = first.run(&["doctor"]).await;
    assert!(doctor.stdout.contains("the configuration differs: c"), "{doctor:?}");

    let tail = second.spawn(&["events", "tail", "--all", "--json", "--admin", &second.admin]);
    for name in ["a", "b", "c"] {
        let told = format!("-- {name}: followed");
        tail.find("a line that says so", |line| (line == told).then_some(())).await;
    }
    third.accept(&wechat, &event("oOne", "CLICK", "one")).await;
    let of_third = |line: &str| serde_json::from_str::<Value>(line).ok().filter(|line| line["replica"] == "c");
    let seen = tail.find("what the third replica does", of_third).await;
    assert!(seen["account"].is_string(), "{seen}");
    let top = first.run(&["top", "--once", "--all", "--admin", &first.admin]).await;
    assert!(top.code == Some(0) && top.stdout.contains("3 of 3 replicas"), "{top:?}");

    third.configure(body);
    assert_eq!(post(&third.admin, "/api/reload").await.status, 200);
    eventually("no difference", async || (first.metric("wxrelay_replicas_differ", &[]).await == 0.0).then_some(()))
        .await;
    third.stop().await;
    assert_eq!(listed(&first).await.len(), 2, "one that has stopped is gone at once");
}

#[tokio::test]
async fn a_replica_that_is_too_old_for_the_tables_drains_and_ends_with_the_reason() {
    let Some(cluster) = postgres::shared() else { return };
    let database = cluster.database();
    let (wechat, crm) = (WeChat::secure(), Target::start().await);
    let body = wechat.account() + &crm.config("crm", "");
    let mut relay = replica(&database, "a", &body).await;
    relay.accept(&wechat, &event("oOne", "CLICK", "one")).await;
    crm.wait_for(1).await;
    // A release that adds something, and that this one may run beside.
    database.sql("UPDATE wxrelay.meta SET schema = 99");
    relay.accept(&wechat, &event("oOne", "CLICK", "two")).await;
    crm.wait_for(2).await;
    database.sql("UPDATE wxrelay.meta SET oldest_reader = 99");
    let told = relay.log("the reason", |line| line["message"] == "store too new for this release, exiting").await;
    let error = told["error"].as_str().unwrap_or_default();
    assert!(error.contains("has version 99, which needs a release that knows 99"), "{told}");
    assert!(told["remedy"].as_str().is_some_and(|remedy| remedy.contains("upgrade")), "{told}");
    assert_eq!(relay.end().await, Some(78), "as a start would");
    assert_eq!(database.sql("SELECT count(*) FROM wxrelay.replica"), "0", "it has left");
    assert_eq!(database.sql("SELECT count(*) FROM wxrelay.delivery WHERE state = 1"), "2");
}

#[tokio::test]
async fn the_tables_of_the_release_before_are_brought_up_to_date_while_they_are_in_use() {
    let Some(cluster) = postgres::shared() else { return };
    let database = cluster.database();
    let (wechat, crm) = (WeChat::secure(), Target::start().await);
    let body = wechat.account() + &crm.config("crm", "");
    let mut relay = replica(&database, "a", &body).await;
    relay.stop().await;
    database.sql("ALTER TABLE wxrelay.replica DROP COLUMN started_at; UPDATE wxrelay.meta SET schema = 1");
    let text = relay.run(&["replicas"]).await;
    assert_eq!(text.code, Some(1), "commands read them as they are: {text:?}");
    relay.restart().await;
    assert_eq!(database.sql("SELECT schema, oldest_reader FROM wxrelay.meta"), "3|1");
    assert_eq!(listed(&relay).await[0]["live"], true);
}
