//! Clients cannot use up the file descriptors that pushes, probes, targets and the store need.

use std::fs;

use rustix::process::{Pid, Resource, Rlimit, prlimit};
use serde_json::Value;

use crate::support::eventually;
use crate::support::http::{Connection, connect_from, exchange, post};
use crate::support::relay::{Relay, Setup};
use crate::support::target::Target;
use crate::support::wechat::{PATH, WeChat, text};

/// More than the limit of open files, of a client that knows nothing.
const SILENT: usize = 300;

#[tokio::test]
async fn silent_connections_keep_out_neither_pushes_nor_probes_nor_deliveries() {
    let (wechat, crm) = (WeChat::secure(), Target::start().await);
    let config = wechat.account() + &crm.config("crm", "");
    let relay = Setup::new(config).ulimit("-n 256").start().await;
    let few = relay.log("a warning of few descriptors", |line| line["message"] == "few file descriptors").await;
    assert_eq!((&few["level"], &few["limit"]), (&"WARN".into(), &256.into()), "{few}");
    assert!(few["remedy"].as_str().is_some_and(|remedy| remedy.contains("LimitNOFILE")), "{few}");
    relay.accept(&wechat, &text("o1", "before")).await;
    let mut silent = Vec::new();
    for number in 0..SILENT {
        let listener = if number % 4 == 0 { &relay.admin } else { &relay.push };
        silent.push(connect_from("127.0.0.2", listener).await.expect("the system queues it"));
        if number % 50 == 0 {
            relay.accept(&wechat, &text("o1", &format!("meanwhile {number}"))).await;
            assert_eq!(relay.get("/readyz").await.status, 200);
        }
    }
    relay.accept(&wechat, &text("o1", "after")).await;
    relay.audited("delivered", SILENT as u64 / 50 + 2).await;
    assert!(open_files(&relay) < 256);
    assert!(!failed(&relay), "no accept fails");
}

#[tokio::test]
async fn a_reload_that_adds_a_target_leaves_descriptors_for_it() {
    let (wechat, crm) = (WeChat::secure(), Target::start().await);
    let mut relay = Setup::new(wechat.account()).ulimit("-n 256").start().await;
    let places = async |relay: &Relay, fewer_than: u64| {
        let few = |line: &Value| {
            line["message"] == "few file descriptors"
                && line["places"].as_u64().is_some_and(|places| places < fewer_than)
        };
        relay.log("a warning of few descriptors", few).await["places"].as_u64().unwrap_or_default()
    };
    let before = places(&relay, u64::MAX).await;
    relay.configure(wechat.account() + &crm.config("crm", "concurrency = 20"));
    assert_eq!(post(&relay.admin, "/api/reload").await.status, 200);
    // Twice its concurrency, as replies have slots of their own, and its resolver.
    assert_eq!(before - places(&relay, before).await, 44);
}

#[tokio::test]
async fn the_soft_limit_is_raised_to_the_hard_one() {
    let relay = Setup::new(WeChat::secure().account()).ulimit("-Sn 200").start().await;
    let limits = fs::read_to_string(format!("/proc/{}/limits", relay.id())).expect("the relay runs on Linux");
    let files = limits.lines().find_map(|line| line.strip_prefix("Max open files")).expect("a limit of files");
    let (soft, hard) = files.trim().split_once(' ').expect("two numbers");
    assert!(hard.trim().starts_with(soft) && soft != "200", "{files}");
}

#[tokio::test]
async fn when_no_descriptor_is_left_idle_connections_are_evicted() {
    let (wechat, crm) = (WeChat::secure(), Target::start().await);
    let relay = Relay::start(wechat.account() + &crm.config("crm", "")).await;
    let before = open_files(&relay);
    let mut idle = Vec::new();
    for _ in 0..70 {
        idle.push(connect_from("127.0.0.2", &relay.push).await.expect("the relay listens"));
    }
    eventually("all are accepted", async || (open_files(&relay) >= before + 70).then_some(())).await;
    exhaust(&relay);
    relay.accept(&wechat, &text("o1", "hello")).await;
    crm.wait_for(1).await;
    let line = relay.log("the failed accept", |line| line["message"] == "accept failed, retrying").await;
    assert!(line["closed"].as_u64() > Some(0), "{line}");
}

/// Connections that end, and requests that are made, must not shorten the pause: else the log fills.
#[tokio::test]
async fn a_failed_accept_pauses_whatever_else_happens_and_is_logged_once() {
    let wechat = WeChat::secure();
    let relay = Relay::start(wechat.account() + "[[accounts.shop.routes]]\notherwise = true\nto = []\n").await;
    let mut kept = Vec::new();
    for number in 0..20 {
        let mut connection = Connection::open(&relay.push).await.expect("the relay listens");
        connection
            .write(&wechat.push(&text("o1", &number.to_string())).announced(PATH))
            .await
            .expect("the relay reads");
        connection.continued().await;
        kept.push(connection);
    }
    // None of them is idle, so nothing can be evicted.
    exhaust(&relay);
    let mut late = Connection::open(&relay.push).await.expect("the system queues it");
    late.write(&wechat.push(&text("o1", "late")).request(PATH)).await.expect("the system takes it");
    relay.log("the failed accept", |line| line["message"] == "accept failed, retrying").await;
    for connection in kept.drain(..) {
        connection.reset();
    }
    assert_eq!(late.read().await.expect("an answer").status, 200);
    let lines = relay.lines().iter().filter(|line| line.contains("accept failed")).count();
    assert_eq!(lines, 1);
    assert_eq!(exchange(&relay.push, &wechat.push(&text("o1", "on")).request(PATH)).await.status, 200);
}

fn failed(relay: &Relay) -> bool {
    relay.lines().iter().any(|line| line.contains("accept failed"))
}

fn open_files(relay: &Relay) -> usize {
    fs::read_dir(format!("/proc/{}/fd", relay.id())).expect("the relay runs on Linux").count()
}

/// Sets the limit of open files of the running relay so that it can open none more. The limit is one of the numbers of
/// descriptors, so the first that is free counts; some are in use for a moment only.
fn exhaust(relay: &Relay) {
    let is_open = |number: &usize| fs::symlink_metadata(format!("/proc/{}/fd/{number}", relay.id())).is_ok();
    let first_free = || (0..).find(|number| !is_open(number)).unwrap_or_default();
    let files = (0..20).map(|_| first_free()).min().unwrap_or_default();
    let pid = i32::try_from(relay.id()).ok().and_then(Pid::from_raw).expect("a process id");
    let limit = Rlimit { current: Some(files as u64), maximum: Some(files as u64) };
    prlimit(Some(pid), Resource::Nofile, limit).expect("the limit of a process of this user may be lowered");
}
