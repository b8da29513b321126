//! `reply_window`: a late reply answers WeChat's 2nd or 3rd try, and the number of failed tries is limited.

use std::time::Duration;

use rustix::process::Signal;
use tokio::time::{Instant, timeout};

use crate::support::http::{Answer, Connection};
use crate::support::relay::{Relay, Setup};
use crate::support::target::{Reaction, Reply, Target};
use crate::support::wechat::{WeChat, element, text, text_reply};
use crate::support::{eventually, soon};

const TIMEOUTS: &str = "wxrelay_reply_window_timeouts_total";
const OPEN: &str = "wxrelay_reply_window_open";

/// The longest window, so that no test reaches its end, with a short budget.
const LONG: &str = "reply_budget = \"400ms\"\nreply_window = \"14s\"\n";

/// A handler that needs 9 s, and a sender with WeChat's timing: it hangs up after 5 s and tries three times.
#[tokio::test]
async fn a_handler_that_needs_9_s_answers_wechats_second_try() {
    let (relay, wechat, crm) = stage("reply_window = \"14s\"\n").await;
    crm.then(Reaction::Slow(Duration::from_secs(9), reply("worth 9 s")));
    let clear = text("o1", "think");
    let mut answered = None;
    for number in 1..=3 {
        let mut connection = relay.begin(&wechat, &clear).await;
        if let Ok(answer) = timeout(Duration::from_secs(5), connection.read()).await {
            answered = Some((number, answer.expect("an answer")));
            break;
        }
    }
    let (number, answer) = answered.expect("WeChat gets an answer");
    assert_eq!((number, content(&wechat, &answer).as_deref()), (2, Some("worth 9 s")));
    let left: u64 = crm.delivery(0).await.header("wxrelay-deadline-ms").parse().expect("milliseconds");
    assert!((13_000..14_000).contains(&left), "the handler is told how long it has: {left}");
    let audit = relay.audited("delivered", 1).await;
    assert_eq!((&audit["events"], crm.deliveries().len()), (&1.into(), 1), "once: {audit}");
    assert_eq!(relay.metric(TIMEOUTS, &[("account", "shop")]).await, 1.0);
    for result in ["hung_up", "duplicate"] {
        assert_eq!(relay.metric("wxrelay_pushes_total", &[("result", result)]).await, 1.0, "{result}");
    }
    assert_eq!(relay.metric("wxrelay_replies_total", &[("result", "rescued")]).await, 1.0);
}

#[tokio::test]
async fn the_third_try_carries_the_reply_too_and_a_fourth_gets_it_again() {
    let (relay, wechat, crm) = stage(LONG).await;
    crm.then(Reaction::Hold(reply("late")));
    let clear = text("o1", "think");
    for held in [1.0, 2.0] {
        hold(&relay, &wechat, &clear, held).await;
    }
    let mut third = relay.begin(&wechat, &clear).await;
    crm.release(1);
    for answer in [answer(&mut third).await, relay.accept(&wechat, &clear).await] {
        assert_eq!(content(&wechat, &answer).as_deref(), Some("late"));
    }
    let audit = relay.audited("delivered", 1).await;
    assert_eq!((&audit["events"], crm.deliveries().len()), (&1.into(), 1), "once: {audit}");
}

#[tokio::test]
async fn the_third_try_is_wechats_last_and_is_answered_in_time() {
    let (relay, wechat, crm) = stage(LONG).await;
    crm.then(Reaction::Hang);
    let clear = text("o1", "think");
    for held in [1.0, 2.0] {
        hold(&relay, &wechat, &clear, held).await;
    }
    let sent = Instant::now();
    assert_eq!(relay.accept(&wechat, &clear).await.text(), "success");
    assert!(sent.elapsed() < Duration::from_secs(4), "{:?}", sent.elapsed());
    assert_eq!(relay.metric(TIMEOUTS, &[]).await, 2.0);
}

#[tokio::test]
async fn a_handler_that_is_never_ready_is_answered_success_before_the_window_ends() {
    let (relay, wechat, crm) = stage("reply_budget = \"500ms\"\nreply_window = \"2s\"\n").await;
    crm.then(Reaction::Hang);
    let clear = text("o1", "think");
    let sent = Instant::now();
    hold(&relay, &wechat, &clear, 1.0).await;
    // This connection stays open, and is answered all the same.
    let mut second = relay.begin(&wechat, &clear).await;
    assert_eq!(answer(&mut second).await.text(), "success");
    assert!(sent.elapsed() < Duration::from_secs(4), "{:?}", sent.elapsed());
    assert_eq!(relay.metric("wxrelay_replies_total", &[("result", "timeout")]).await, 1.0);
    assert_eq!((relay.audit().await["events"].as_u64(), crm.deliveries().len()), (Some(1), 1));
}

#[tokio::test]
async fn a_try_that_none_can_follow_in_the_window_is_answered_within_its_budget() {
    // The next try would come after the window.
    let (relay, wechat, crm) = stage("reply_budget = \"1s\"\nreply_window = \"1.05s\"\n").await;
    crm.then(Reaction::Hang);
    assert_eq!(relay.accept(&wechat, &text("o1", "hi")).await.text(), "success");
    assert_eq!(relay.metric(TIMEOUTS, &[]).await, 0.0, "nothing was left to time out");
}

#[tokio::test]
async fn a_handler_in_time_costs_nothing_and_one_without_a_reply_is_not_waited_for() {
    let (relay, wechat, crm) = stage("reply_window = \"14s\"\n").await;
    crm.script([Reaction::Answer(reply("in time")), Reaction::Answer(Reply::status(500))]);
    let answer = relay.accept(&wechat, &text("o1", "hi")).await;
    assert_eq!(content(&wechat, &answer).as_deref(), Some("in time"));
    for _ in 0..2 {
        let sent = Instant::now();
        assert_eq!(relay.accept(&wechat, &text("o1", "hi")).await.text(), "success");
        assert!(sent.elapsed() < Duration::from_secs(4), "{:?}", sent.elapsed());
    }
    assert_eq!(relay.metric(TIMEOUTS, &[]).await, 0.0);
}

#[tokio::test]
async fn the_window_closes_when_its_failures_are_spent_and_opens_when_they_have_aged_out() {
    let account = LONG.to_owned() + "reply_window_failures = \"2/5s\"\n";
    let (relay, wechat, crm) = stage(&account).await;
    crm.then(Reaction::Hang);
    assert_eq!(relay.metric(OPEN, &[("account", "shop")]).await, 1.0);
    // Both are held at the same time, and a third one with them exceeds the budget.
    let mut together = Vec::new();
    for _ in 0..3 {
        together.push(relay.begin(&wechat, &text("o1", "think")).await);
    }
    let closes = |line: &serde_json::Value| line["message"] == "reply window closed";
    let closed = relay.log("line that says closed", closes).await;
    assert_eq!((&closed["level"], &closed["account"]), (&"WARN".into(), &"shop".into()));
    assert_eq!(relay.metric(OPEN, &[]).await, 0.0);
    let sent = Instant::now();
    assert_eq!(relay.accept(&wechat, &text("o1", "now")).await.text(), "success");
    assert!(sent.elapsed() < Duration::from_secs(3), "in time again: {:?}", sent.elapsed());
    assert_eq!(relay.metric(TIMEOUTS, &[]).await, 2.0);
    eventually("the window opens again", async || (relay.metric(OPEN, &[]).await > 0.0).then_some(())).await;
    let opens = |line: &serde_json::Value| line["message"] == "reply window opened";
    relay.log("line that says open", opens).await;
    hold(&relay, &wechat, &text("o1", "again"), 3.0).await;
}

#[tokio::test]
async fn who_finds_the_window_closed_gets_what_there_is_within_its_budget() {
    let rule = "[\"crm\", { text = \"One moment.\" }]";
    let account = "reply_budget = \"1s\"\nreply_window = \"14s\"\nreply_window_failures = \"1/1h\"\n";
    let (relay, wechat, crm) = stage_with(account, rule).await;
    crm.then(Reaction::Hang);
    let (mut first, mut second) =
        (relay.begin(&wechat, &text("o1", "one")).await, relay.begin(&wechat, &text("o1", "two")).await);
    let answer = soon("one of the two is answered", async {
        tokio::select! { answer = first.read() => answer, answer = second.read() => answer }
    })
    .await
    .expect("an answer");
    assert_eq!(content(&wechat, &answer).as_deref(), Some("One moment."));
    assert_eq!(relay.metric(TIMEOUTS, &[]).await, 1.0, "the other is held");
}

#[tokio::test]
async fn pushes_that_could_not_be_stored_count_as_failures_too() {
    let (wechat, crm, folder) = (WeChat::secure(), Target::start().await, tempfile::tempdir().expect("a folder"));
    let account = wechat.account() + LONG + "reply_window_failures = \"1/1h\"\n";
    let relay = Setup::new(account + &crm.config("crm", "")).queue_at(folder.path()).start().await;
    let shell = rusqlite::Connection::open(folder.path().join("wxrelay.db")).expect("the store is SQLite");
    shell.execute_batch("BEGIN IMMEDIATE").expect("a lock");
    assert_eq!(wechat.push(&text("o1", "hi")).send(&relay.push).await.status, 503);
    shell.execute_batch("ROLLBACK").expect("no lock");
    eventually("the window is closed", async || (relay.metric(OPEN, &[]).await == 0.0).then_some(())).await;
    assert_eq!(relay.metric(TIMEOUTS, &[]).await, 0.0, "not one on purpose");
}

#[tokio::test]
async fn a_try_after_a_restart_is_answered_as_its_event_was_stored() {
    let (mut relay, wechat, crm) = stage(LONG).await;
    crm.then(Reaction::Hang);
    let clear = text("o1", "think");
    hold(&relay, &wechat, &clear, 1.0).await;
    relay.kill().await;
    relay.restart().await;
    assert_eq!(relay.accept(&wechat, &clear).await.text(), "success");
    assert_eq!(relay.audit().await["events"], 1);
}

#[tokio::test]
async fn a_push_that_is_held_is_answered_when_the_relay_stops() {
    let (wechat, crm) = (WeChat::secure(), Target::always(Reaction::Hang).await);
    let config = wechat.account() + LONG + &route("\"crm\"") + &crm.config("crm", "timeout = \"60s\"");
    let mut relay = Setup::new(config).server("drain = \"3s\"").start().await;
    let mut held = relay.begin(&wechat, &text("o1", "think")).await;
    timed_out(&relay, 1.0).await;
    relay.signal(Signal::TERM);
    assert_eq!(answer(&mut held).await.text(), "success");
    assert_eq!(relay.end().await, Some(0));
}

async fn stage(account: &str) -> (Relay, WeChat, Target) {
    stage_with(account, "\"crm\"").await
}

async fn stage_with(account: &str, rule: &str) -> (Relay, WeChat, Target) {
    let (wechat, crm) = (WeChat::secure(), Target::start().await);
    let targets = crm.config("crm", "timeout = \"60s\"\nretry = [\"1h\"]");
    let relay = Relay::start(wechat.account() + account + &route(rule) + &targets).await;
    (relay, wechat, crm)
}

fn route(rule: &str) -> String {
    format!("[[accounts.shop.routes]]\notherwise = true\nto = [\"crm\"]\nreply = {rule}\n")
}

fn reply(content: &str) -> Reply {
    Reply::xml(text_reply("o1", content))
}

/// A try that gets no answer, as WeChat hangs up. It is the `held`th of the relay.
async fn hold(relay: &Relay, wechat: &WeChat, clear: &str, held: f64) {
    let mut connection = relay.begin(wechat, clear).await;
    timed_out(relay, held).await;
    assert!(timeout(Duration::ZERO, connection.read()).await.is_err(), "no answer");
}

async fn timed_out(relay: &Relay, held: f64) {
    eventually("the try is held", async || (relay.metric(TIMEOUTS, &[]).await == held).then_some(())).await;
}

async fn answer(connection: &mut Connection) -> Answer {
    let answer = soon("the answer to a push", connection.read()).await.expect("an answer");
    assert_eq!(answer.status, 200);
    answer
}

fn content(wechat: &WeChat, answer: &Answer) -> Option<String> {
    element(&wechat.open_reply(answer.text()), "Content")
}
