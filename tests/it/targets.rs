//! Pending deliveries of a target that does not accept them: dropped, or redirected to another.

use serde_json::Value;

use crate::support::command::{Finished, free_address};
use crate::support::http::{post, post_with};
use crate::support::relay::{Relay, Setup};
use crate::support::target::{Reaction, Reply, Target};
use crate::support::wechat::{WeChat, text};

#[tokio::test]
async fn what_waits_for_a_removed_target_is_dropped() {
    let (mut relay, wechat, crm) = relay("").await;
    relay.accept(&wechat, &text("o1", "one")).await;
    relay.audited("delivered", 1).await;
    relay.configure(wechat.account() + &crm.config("crm", ""));
    assert_eq!(post(&relay.admin, "/api/reload").await.status, 200);

    let listed = relay.run(&["targets", "ls"]).await;
    let line = |name: &str| listed.stdout.lines().find(|line| line.starts_with(name)).unwrap_or_default().to_owned();
    assert!(line("old").contains("removed") && line("crm").contains(" configured"), "{}", listed.stdout);
    let dropped = relay.run(&["targets", "drop", "old", "--yes"]).await;
    assert_eq!((dropped.code, dropped.stdout.as_str()), (Some(0), "dropped 1 pending deliveries of old\n"));
    let audit = relay.audit().await;
    assert_eq!((&audit["cancelled"], &audit["delivered"], &audit["pending"]), (&1.into(), &1.into(), &0.into()));

    relay.stop().await;
    let dropped = relay.run(&["targets", "drop", "old", "--yes", "--json"]).await;
    assert_eq!(json(&dropped), serde_json::json!({ "target": "old", "dropped": 0 }));
}

#[tokio::test]
async fn what_waits_is_redirected_by_command_and_api() {
    let (mut relay, wechat, crm) = relay("").await;
    let new = Target::start().await;
    relay.accept(&wechat, &text("o1", "one")).await;
    relay.audited("delivered", 1).await;
    relay.configure(wechat.account() + &crm.config("crm", "") + &new.config("new", ""));
    assert_eq!(post(&relay.admin, "/api/reload").await.status, 200);
    let moved = relay.run(&["targets", "redirect", "old", "--to", "new", "--yes", "--json"]).await;
    assert_eq!(json(&moved), serde_json::json!({ "target": "old", "redirected": 1 }));
    assert!(new.delivery(0).await.text().contains("one"));
    assert_eq!(new.delivery(0).await.header("wxrelay-event-id"), crm.delivery(0).await.header("wxrelay-event-id"));
    let audit = relay.audited("delivered", 2).await;
    assert_eq!((&audit["deliveries"], &audit["cancelled"], &audit["pending"]), (&3.into(), &1.into(), &0.into()));

    // An event that `new` has received already is not delivered there twice.
    post_with(&relay.admin, "/api/events/replay", r#"{"target":"old"}"#).await;
    relay.audited("pending", 1).await;
    let moved = post_with(&relay.admin, "/api/targets/old/redirect", r#"{"to":"new"}"#).await;
    assert_eq!((moved.status, moved.text()), (200, r#"{"redirected":1}"#));
    let audit = relay.audit().await;
    assert_eq!((&audit["deliveries"], &audit["delivered"], &audit["pending"]), (&3.into(), &2.into(), &0.into()));
    assert_eq!(new.deliveries().len(), 1);
}

#[tokio::test]
async fn redirected_while_no_relay_runs_it_keeps_the_new_targets_order() {
    let (mut relay, wechat, crm) = relay("").await;
    let new = Target::start().await;
    for content in ["one", "two", "three"] {
        relay.accept(&wechat, &text("o1", content)).await;
    }
    relay.audited("delivered", 3).await;
    relay.stop().await;
    relay.configure(wechat.account() + &crm.config("crm", "") + &new.config("new", "order = \"per_user\""));
    let moved = relay.run(&["targets", "redirect", "old", "--to", "new", "--yes"]).await;
    assert_eq!((moved.code, moved.stdout.as_str()), (Some(0), "redirected 3 pending deliveries of old\n"));
    new.script([Reaction::Hold(Reply::status(200))]);
    relay.restart().await;
    assert!(new.delivery(0).await.text().contains("one"));
    relay.accept(&wechat, &text("o2", "another user's")).await;
    assert!(new.delivery(1).await.text().contains("another user's"), "nobody else waits");
    new.release(1);
    let deliveries = new.wait_for(4).await;
    assert!(deliveries[2].text().contains("two") && deliveries[3].text().contains("three"));
    relay.audited("delivered", 8).await;
}

#[tokio::test]
async fn what_was_dropped_is_not_attempted_any_more() {
    let (wechat, slow) = (WeChat::secure(), Target::start().await);
    let config = wechat.account() + &slow.config("slow", "concurrency = 1");
    let relay = Setup::new(config).start().await;
    slow.script([Reaction::Hold(Reply::status(200))]);
    for content in ["under way", "waiting in memory", "waiting too"] {
        relay.accept(&wechat, &text("o1", content)).await;
    }
    slow.wait_for(1).await;
    let dropped = post(&relay.admin, "/api/targets/slow/drop-pending").await;
    assert_eq!(dropped.text(), r#"{"cancelled":3}"#);
    relay.accept(&wechat, &text("o1", "later")).await;
    slow.release(1);
    let deliveries = slow.wait_for(2).await;
    assert!(deliveries[1].text().contains("later"), "{}", deliveries[1].text());
    let audit = relay.audited("delivered", 1).await;
    assert_eq!((&audit["cancelled"], &audit["pending"]), (&3.into(), &0.into()), "what ended late changed nothing");
}

#[tokio::test]
async fn a_change_that_is_not_meant_is_refused() {
    let (mut relay, wechat, _crm) = relay("").await;
    relay.accept(&wechat, &text("o1", "one")).await;
    relay.audited("delivered", 1).await;
    for (path, body, status, output) in [
        ("/api/targets/odl/drop-pending", "", 404, "no target"),
        ("/api/targets/odl/redirect", r#"{"to":"crm"}"#, 404, "no target"),
        ("/api/targets/old/redirect", r#"{"to":"old"}"#, 400, "to itself"),
        ("/api/targets/old/redirect", r#"{"to":"crn"}"#, 400, "no target"),
        ("/api/targets/old/redirect", "", 400, "the body"),
        ("/api/targets/old/redirect", r#"{"to":"crm","and":"bot"}"#, 400, "the body"),
        ("/api/targets/old/retry-dead", r#"{"ids":["12"]}"#, 400, "the body"),
    ] {
        let answer = post_with(&relay.admin, path, body).await;
        assert_eq!(answer.status, status, "{path} {body}: {}", answer.text());
        let error = answer.json()["error"].as_str().unwrap_or_default().to_owned();
        assert!(error.contains(output), "{path} {body}: {error}");
    }
    for runs in [true, false] {
        for (args, output) in [
            (&["drop", "odl"][..], "expected one of: crm, old"),
            (&["redirect", "odl", "--to", "crm"], "expected one of: crm, old"),
            (&["redirect", "old", "--to", "crn"], "expected one of: crm, old"),
            (&["redirect", "old", "--to", "old"], "itself"),
            (&["redirect", "old"], "--to"),
        ] {
            let finished = relay.run(&[&["targets"], args].concat()).await;
            assert!(finished.code.is_some_and(|code| code != 0), "{args:?}: {finished:?}");
            assert!(finished.stderr.contains(output), "{args:?}: {finished:?}");
        }
        if runs {
            relay.stop().await;
        }
    }
    assert_eq!(relay.audit().await["cancelled"], 0);
}

/// `crm` accepts everything; `old` is down, and its deliveries are pending.
async fn relay(settings: &str) -> (Relay, WeChat, Target) {
    let (wechat, crm, old) = (WeChat::secure(), Target::start().await, Target::start().await);
    let gone = old.config("old", &format!("retry = [\"1h\"]\n{settings}"));
    drop(old);
    let config = wechat.account() + &crm.config("crm", "") + &gone;
    let relay = Setup::new(config).admin_at(free_address()).start().await;
    (relay, wechat, crm)
}

fn json(finished: &Finished) -> Value {
    assert_eq!(finished.code, Some(0), "{finished:?}");
    serde_json::from_str(&finished.stdout).unwrap_or_else(|error| panic!("{error}: {finished:?}"))
}
