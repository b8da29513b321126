//! Commands act on a store in PostgreSQL themselves, from any machine, whether a relay runs or not.

use serde_json::Value;

use crate::support::command::{free_address, run, wxrelay};
use crate::support::eventually;
use crate::support::postgres;
use crate::support::relay::Setup;
use crate::support::target::{Reaction, Reply, Target};
use crate::support::wechat::{WeChat, element, event};

#[tokio::test]
async fn commands_act_on_postgresql_whether_a_relay_runs_or_not() {
    let Some(cluster) = postgres::shared() else { return };
    let database = cluster.database();
    let (wechat, crm) = (WeChat::secure(), Target::start().await);
    crm.then(Reaction::Answer(Reply::status(500)));
    let body = wechat.account() + &crm.config("crm", "retry = []");
    let mut relay = Setup::new(body).postgres(&database.url()).start().await;
    for (user, key) in [("oOne", "one"), ("oTwo", "two"), ("oOne", "three")] {
        relay.accept(&wechat, &event(user, "CLICK", key)).await;
    }
    relay.audited("dead", 3).await;
    let listed = relay.run(&["events", "ls", "--json"]).await;
    assert_eq!(listed.stdout.lines().count(), 3, "{listed:?}");
    let first: Value = serde_json::from_str(listed.stdout.lines().next().unwrap_or_default()).expect("JSON");
    let id = first["id"].as_str().expect("an id").to_owned();
    let shown = relay.run(&["events", "show", &id]).await;
    assert!(shown.code == Some(0) && shown.stdout.contains("crm"), "{shown:?}");

    // The running relay delivers what the command made pending.
    crm.then(Reaction::Answer(Reply::status(200)));
    let retried = relay.run(&["dead", "retry", "crm", "--yes"]).await;
    assert!(retried.code == Some(0) && retried.stdout.contains('3'), "{retried:?}");
    relay.audited("delivered", 3).await;
    let paused = relay.run(&["targets", "pause", "crm"]).await;
    assert_eq!(paused.code, Some(0), "{paused:?}");
    eventually("the relay sees the pause", async || {
        (relay.metric("wxrelay_target_paused", &[("target", "crm")]).await == 1.0).then_some(())
    })
    .await;

    relay.stop().await;
    let forgotten = relay.run(&["events", "forget", "--openid", "oOne", "--yes"]).await;
    assert_eq!((forgotten.code, forgotten.stdout.as_str()), (Some(0), "forgot 2 events\n"), "{forgotten:?}");
    let audit = relay.audit().await;
    assert_eq!((&audit["events"], &audit["delivered"]), (&1.into(), &1.into()), "{audit}");
    let deep = relay.run(&["audit", "--deep"]).await;
    assert_eq!(deep.code, Some(0), "{deep:?}");
    let targets = relay.run(&["targets", "ls", "--json"]).await;
    assert!(targets.stdout.contains("\"paused\":true"), "{targets:?}");
}

#[tokio::test]
async fn an_alarm_leads_to_its_event_whether_a_relay_runs_or_not() {
    let Some(cluster) = postgres::shared() else { return };
    let database = cluster.database();
    let (wechat, crm) = (WeChat::secure(), Target::start().await);
    crm.script([Reaction::Answer(Reply::status(500))]);
    let body = wechat.account() + &crm.config("crm", "retry = [\"20ms\"]");
    let mut relay = Setup::new(body).postgres(&database.url()).admin_at(free_address()).start().await;
    let clear = event("oAlarmed", "CLICK", "menu");
    let stamp = element(&clear, "CreateTime").expect("it has one");
    relay.accept(&wechat, &clear).await;
    relay.accept(&wechat, &event("oQuiet", "CLICK", "menu")).await;
    relay.audited("delivered", 2).await;
    for (runs, nothing) in [(true, "never_arrived"), (false, "refused_or_never_arrived")] {
        if !runs {
            relay.stop().await;
        }
        let line = format!("Appid: {}\n[OpenID=oAlarmed][Stamp={stamp}][Event=Click]", wechat.app_id);
        let found = relay.run(&["why", &line]).await;
        assert_eq!(found.code, Some(0), "{found:?}");
        assert_eq!(found.stdout.matches("evt_").count(), 1, "{found:?}");
        for part in ["event CLICK menu", "oAlarmed", "attempt 1", "500", "attempt 2"] {
            assert!(found.stdout.contains(part), "no {part} in {found:?}");
        }
        for (line, word) in [
            (format!("[OpenID=oNobody][Stamp={stamp}]"), nothing),
            (format!("Appid: wx0000000000000000\n[OpenID=oNobody][Stamp={stamp}]"), "other_account"),
        ] {
            let found = relay.run(&["why", "--json", &line]).await;
            let report: Value = serde_json::from_str(&found.stdout).expect("JSON");
            assert_eq!((found.code, &report["not_found"]), (Some(3), &word.into()), "{line}: {found:?}");
        }
    }
}

#[tokio::test]
async fn the_demo_runs_on_postgresql_and_leaves_nothing_there() {
    let Some(cluster) = postgres::shared() else { return };
    let database = cluster.database();
    let finished = run(wxrelay(["demo", "--once", "--postgres", &database.url()])).await;
    assert_eq!(finished.code, Some(0), "{finished:?}");
    assert!(finished.stdout.contains("in the schema wxrelay_demo_"), "{finished:?}");
    assert_eq!(database.sql("SELECT count(*) FROM pg_namespace WHERE nspname LIKE 'wxrelay%'"), "0");
    let refused = run(wxrelay(["demo", "--once", "--postgres", "mysql://wx:hunter2@127.0.0.1/x"])).await;
    assert!(refused.code == Some(1) && refused.stderr.contains("postgres://USER@HOST"), "{refused:?}");
    assert!(!refused.stderr.contains("hunter2"), "{refused:?}");
}
