//! Regression tests: each name states what the relay must never do again.

use std::time::Duration;

use rustix::process::Signal;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::support::http::{Connection, exchange, post};
use crate::support::relay::{Relay, Setup};
use crate::support::target::{Reaction, Reply, Target};
use crate::support::wechat::{PATH, WeChat, now, text, text_reply};
use crate::support::{eventually, soon};

#[tokio::test]
async fn in_a_rush_the_events_that_came_first_are_not_passed_by_later_ones() {
    /// The size of a target's inbox.
    const EARLY: usize = 1024;
    let (wechat, crm) = (WeChat::secure(), Target::always(Reaction::Hold(Reply::status(200))).await);
    let relay = Relay::start(wechat.account() + &crm.config("crm", "concurrency = 1\ntimeout = \"60s\"")).await;
    relay.accept(&wechat, &text("o1", "under way")).await;
    crm.wait_for(1).await;
    let mut sent = JoinSet::new();
    for lane in 0..16 {
        let requests: Vec<_> = (0..EARLY / 16).map(|_| wechat.push(&text("o1", "early")).request(PATH)).collect();
        let address = relay.push.clone();
        sent.spawn(async move {
            for request in requests {
                assert_eq!(exchange(&address, &request).await.status, 200, "sender {lane}");
            }
        });
    }
    sent.join_all().await;
    for _ in 0..3 {
        relay.accept(&wechat, &text("o1", "late")).await;
    }
    crm.release(1);
    assert!(crm.delivery(1).await.text().contains("early"), "what overflowed the memory is served first");
}

#[tokio::test]
async fn attempts_that_wait_for_their_turn_by_the_rate_do_not_hold_up_the_end() {
    let (wechat, crm) = (WeChat::secure(), Target::start().await);
    let config = wechat.account() + &crm.config("crm", "rate = \"1/s\"");
    let mut relay = Setup::new(config).server("drain = \"3s\"").start().await;
    for _ in 0..16 {
        relay.accept(&wechat, &text("o1", "hello")).await;
    }
    crm.wait_for(1).await;
    relay.signal(Signal::TERM);
    relay.log("line that says stopped", |line| line["message"] == "stopped").await;
    let lines = relay.lines();
    assert!(!lines.iter().any(|line| line.contains("cut off")), "nothing was under way: {lines:?}");
    assert_eq!(relay.end().await, Some(0));
}

#[tokio::test]
async fn what_waited_behind_a_hanging_target_that_was_removed_goes_out_when_it_is_back() {
    let (wechat, hanging, healed) = (WeChat::secure(), Target::always(Reaction::Hang).await, Target::start().await);
    let other = Target::start().await;
    let settings = "concurrency = 1\ntimeout = \"5m\"";
    let rest = wechat.account() + &other.config("other", "");
    let mut relay = Relay::start(rest.clone() + &hanging.config("crm", settings)).await;
    relay.accept(&wechat, &text("o1", "under way")).await;
    hanging.wait_for(1).await;
    relay.accept(&wechat, &text("o1", "waiting")).await;
    relay.configure(rest.clone());
    assert_eq!(post(&relay.admin, "/api/reload").await.status, 200);
    relay.configure(rest + &healed.config("crm", settings));
    assert_eq!(post(&relay.admin, "/api/reload").await.status, 200);
    assert!(healed.delivery(0).await.text().contains("waiting"));
}

#[tokio::test]
async fn a_reload_names_every_change_that_needs_a_restart() {
    let (wechat, crm) = (WeChat::secure(), Target::start().await);
    let config = wechat.account() + &crm.config("crm", "");
    let mut relay = Setup::new(config.clone()).admin("token = \"0123456789abcdef\"").start().await;
    relay.configure_all(
        Setup::new(format!("format = \"text\"\n{config}"))
            .server("drain = \"3s\"\nmax_body = \"2MiB\"\nhttp2 = true\ntrusted_proxies = [\"10.0.0.0/8\"]")
            .admin("token = \"another-token-0123\"")
            .queue("retention = \"9d\"\nmax_size = \"9GiB\""),
    );
    relay.signal(Signal::HUP);
    for key in [
        "server.drain",
        "server.max_body",
        "server.http2",
        "server.trusted_proxies",
        "admin.token",
        "queue.retention",
        "queue.max_size",
        "log.format",
    ] {
        relay.log(key, |line| line["level"] == "WARN" && line["key"] == key).await;
    }
    relay.log("line that says reloaded", |line| line["message"] == "config reloaded").await;
    assert!(!relay.lines().iter().any(|line| line.contains("server.listen") || line.contains("0123456789abcdef")));
}

#[tokio::test]
async fn the_clock_skew_is_how_far_wechats_clock_is_ahead_of_ours() {
    let (wechat, crm) = (WeChat::secure(), Target::start().await);
    let relay = Relay::start(wechat.account() + &crm.config("crm", "")).await;
    let push = wechat.push_at(now() - 60, &text("o1", "from the past"));
    assert_eq!(push.send(&relay.push).await.status, 200);
    let skew = relay.metric("wxrelay_clock_skew_seconds", &[]).await;
    assert!((-75.0..=-60.0).contains(&skew), "{skew}");
}

#[tokio::test]
async fn a_body_that_trickles_in_is_refused_by_the_budget_and_leaves_nothing() {
    let (wechat, crm) = (WeChat::secure(), Target::start().await);
    let relay = Relay::start(wechat.account() + "reply_budget = \"1s\"\n" + &crm.config("crm", "")).await;
    let request = wechat.push(&text("o1", "slow")).request(PATH);
    let mut connection = Connection::open(&relay.push).await.expect("the relay listens");
    let sent = Instant::now();
    connection.write(&request[..request.len() - 1]).await.expect("the relay reads");
    let answer = soon("the answer", connection.read()).await.expect("an answer");
    assert_eq!(answer.status, 503);
    assert!(sent.elapsed() < Duration::from_secs(5), "{:?}", sent.elapsed());
    assert_eq!(relay.audit().await["events"], 0);
}

#[tokio::test]
async fn another_method_is_405_whatever_its_query() {
    let (wechat, crm) = (WeChat::secure(), Target::start().await);
    let relay = Relay::start(wechat.account() + &crm.config("crm", "")).await;
    let request = format!("PUT {PATH}?nonce=%zz HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
    assert_eq!(exchange(&relay.push, request.as_bytes()).await.status, 405);
}

#[tokio::test]
async fn a_misspelt_target_of_dead_letters_is_an_error_while_no_relay_runs_too() {
    let (wechat, crm) = (WeChat::secure(), Target::always(Reaction::Answer(Reply::status(410))).await);
    let mut relay = Relay::start(wechat.account() + &crm.config("crm", "")).await;
    relay.accept(&wechat, &text("o1", "hello")).await;
    relay.audited("dead", 1).await;
    relay.stop().await;
    for args in [["dead", "retry", "crmm"], ["dead", "drop", "crmm"]] {
        let finished = relay.run(&args).await;
        assert_eq!(finished.code, Some(2), "{finished:?}");
        assert!(finished.stderr.contains("crmm") && finished.stderr.contains("crm"), "{finished:?}");
    }
    let dropped = relay.run(&["dead", "drop", "crm", "--yes"]).await;
    assert_eq!(dropped.code, Some(0), "{dropped:?}");
    relay.audited("cancelled", 1).await;
}

#[tokio::test]
async fn the_demo_refuses_a_reload_instead_of_leaving_it_unanswered() {
    let demo = crate::support::command::Running::spawn(crate::support::command::wxrelay(["demo"]));
    let export = |line: &str| line.trim().strip_prefix("export WXRELAY_CONFIG=").map(str::to_owned);
    let config = std::fs::read_to_string(demo.find("the file", export).await).expect("it can be read");
    let (_, admin) = config.split_once("[admin]\nlisten = \"").expect("an admin listener");
    let admin = admin.split('"').next().expect("its address").to_owned();
    let answer = eventually("the answer", async || Some(post(&admin, "/api/reload").await)).await;
    assert_eq!(answer.status, 503, "{answer:?}");
    demo.signal(Signal::TERM);
    assert_eq!(demo.end().await, Some(0));
}

#[tokio::test]
async fn reloads_in_a_rush_that_take_a_target_away_and_back_lose_and_repeat_nothing() {
    const PUSHES: usize = 200;
    let (wechat, crm, bot) = (WeChat::secure(), Target::start().await, Target::start().await);
    bot.then(Reaction::Slow(Duration::from_millis(20), Reply::status(200)));
    let routes = "[[accounts.shop.routes]]\notherwise = true\nto = [\"crm\", \"bot\"]\n";
    let without = wechat.account() + &crm.config("crm", "concurrency = 2");
    let with = wechat.account() + routes + &crm.config("crm", "") + &bot.config("bot", "concurrency = 2");
    let mut relay = Relay::start(with.clone()).await;
    let mut sent = JoinSet::new();
    for _ in 0..4 {
        let requests: Vec<_> = (0..PUSHES / 4).map(|_| wechat.push(&text("o1", "rush")).request(PATH)).collect();
        let address = relay.push.clone();
        sent.spawn(async move {
            for request in requests {
                assert_eq!(exchange(&address, &request).await.status, 200);
            }
        });
    }
    while !sent.is_empty() {
        for config in [&without, &with] {
            relay.configure(config.clone());
            assert_eq!(post(&relay.admin, "/api/reload").await.status, 200);
        }
        while sent.try_join_next().is_some() {}
    }
    let audit = relay.audited("pending", 0).await;
    assert_eq!((&audit["events"], &audit["delivered"]), (&PUSHES.into(), &audit["deliveries"]), "{audit}");
    for target in [crm, bot] {
        let mut ids: Vec<_> =
            target.deliveries().iter().map(|sent| sent.header("wxrelay-event-id").to_owned()).collect();
        let all = ids.len();
        ids.sort_unstable();
        ids.dedup();
        assert_eq!(ids.len(), all, "nothing twice");
    }
}

#[tokio::test]
async fn a_push_that_was_stored_too_late_for_its_answer_is_known_to_its_retry() {
    let (wechat, crm, folder) = (WeChat::secure(), Target::start().await, tempfile::tempdir().expect("a folder"));
    crm.then(Reaction::Answer(Reply::xml(text_reply("o1", "by the crm"))));
    let route = "[[accounts.shop.routes]]\notherwise = true\nto = [\"crm\"]\nreply = { text = \"fixed\" }\n";
    let config = wechat.account() + "reply_budget = \"500ms\"\n" + route + &crm.config("crm", "");
    let relay = Setup::new(config).queue_at(folder.path()).start().await;
    let shell = rusqlite::Connection::open(folder.path().join("wxrelay.db")).expect("the store is SQLite");
    shell.execute_batch("BEGIN IMMEDIATE").expect("a lock");
    let clear = text("o1", "hello");
    assert_eq!(wechat.push(&clear).send(&relay.push).await.status, 503, "not stored, so not answered 200");
    shell.execute_batch("ROLLBACK").expect("no lock");
    relay.audited("delivered", 1).await;
    assert!(wechat.open_reply(relay.accept(&wechat, &clear).await.text()).contains("fixed"));
    assert_eq!(relay.audit().await["events"], 1);
    assert_eq!(relay.metric("wxrelay_pushes_total", &[("result", "late")]).await, 1.0);
}

#[tokio::test]
async fn a_target_that_hangs_does_not_hold_up_the_end_beyond_the_drain_time() {
    let (wechat, crm) = (WeChat::secure(), Target::always(Reaction::Hang).await);
    let config = wechat.account() + &crm.config("crm", "timeout = \"5m\"");
    let mut relay = Setup::new(config).server("drain = \"500ms\"").start().await;
    relay.accept(&wechat, &text("o1", "hello")).await;
    crm.wait_for(1).await;
    relay.stop().await;
    assert_eq!(relay.audit().await["pending"], 1);
    crm.then(Reaction::Answer(Reply::status(200)));
    relay.restart().await;
    relay.audited("delivered", 1).await;
}
