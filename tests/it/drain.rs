//! SIGTERM drains: requests in flight are answered, answered events are stored, and the exit code is 0.

use rustix::process::Signal;

use crate::support::http::{Connection, try_exchange};
use crate::support::relay::Relay;
use crate::support::target::{Reaction, Reply, Target};
use crate::support::wechat::{PATH, WeChat, text, text_reply};
use crate::support::{eventually, soon};

#[tokio::test]
async fn a_push_under_way_is_answered_and_the_relay_ends_well() {
    let (wechat, crm) = (WeChat::secure(), Target::start().await);
    crm.script([Reaction::Hold(Reply::xml(text_reply("o1", "the last word")))]);
    let route = "[[accounts.shop.routes]]\notherwise = true\nto = [\"crm\"]\nreply = \"crm\"\n";
    let mut relay = Relay::start(wechat.account() + route + &crm.config("crm", "")).await;
    let mut connection = Connection::open(&relay.push).await.expect("the relay listens");
    connection.write(&wechat.push(&text("o1", "hello")).request(PATH)).await.expect("the relay reads");
    crm.wait_for(1).await;

    relay.signal(Signal::TERM);
    let late = text("o2", "late");
    eventually("no more pushes are accepted", async || {
        let answer = try_exchange(&relay.push, &wechat.push(&late).request(PATH)).await;
        answer.map_or(true, |answer| answer.status == 503).then_some(())
    })
    .await;
    crm.release(1);
    let answer = soon("the answer", connection.read()).await.expect("an answer");
    assert!(wechat.open_reply(answer.text()).contains("the last word"));
    assert_eq!(relay.end().await, Some(0));
    assert_eq!(relay.audit().await["unaccounted"], 0);
}

#[tokio::test]
async fn what_is_pending_at_the_end_is_delivered_after_the_next_start() {
    let (wechat, crm) = (WeChat::secure(), Target::start().await);
    crm.script([Reaction::Answer(Reply::status(500))]);
    let mut relay = Relay::start(wechat.account() + &crm.config("crm", "retry = [\"1s\"]")).await;
    relay.accept(&wechat, &text("o1", "hello")).await;
    crm.wait_for(1).await;
    relay.stop().await;
    assert_eq!(relay.audit().await["pending"], 1, "the audit reads the store of a relay that is not running");
    relay.restart().await;
    assert_eq!(crm.wait_for(2).await[1].header("wxrelay-attempt"), "2");
    relay.audited("delivered", 1).await;
}

#[tokio::test]
async fn an_attempt_under_way_is_settled_before_the_end() {
    let (wechat, crm) = (WeChat::secure(), Target::start().await);
    crm.script([Reaction::Hold(Reply::status(200))]);
    let mut relay = Relay::start(wechat.account() + &crm.config("crm", "")).await;
    relay.accept(&wechat, &text("o1", "hello")).await;
    crm.wait_for(1).await;
    relay.signal(Signal::TERM);
    relay.log("line that says draining", |line| line["message"] == "draining").await;
    crm.release(1);
    assert_eq!(relay.end().await, Some(0));
    assert_eq!(relay.audit().await["delivered"], 1, "or the target would get it again after the next start");
}

#[tokio::test]
async fn whoever_was_connected_is_still_answered() {
    let (wechat, crm) = (WeChat::secure(), Target::start().await);
    let mut relay = Relay::start(wechat.account() + &crm.config("crm", "")).await;
    let requests = [text("o1", "not begun"), text("o2", "half sent")].map(|clear| wechat.push(&clear).request(PATH));
    let mut fresh = Connection::open(&relay.push).await.expect("the relay listens");
    let mut half = Connection::open(&relay.push).await.expect("the relay listens");
    let (head, rest) = requests[1].split_at(50);
    half.write(head).await.expect("the relay reads");
    // The relay accepts connections in order, so it has accepted these two.
    relay.accept(&wechat, &text("o3", "later")).await;
    relay.signal(Signal::TERM);
    eventually("new connections are refused", async || Connection::open(&relay.push).await.is_err().then_some(()))
        .await;

    fresh.write(&requests[0]).await.expect("the relay still reads");
    half.write(rest).await.expect("the relay still reads");
    for connection in [&mut fresh, &mut half] {
        let answer = soon("the answer", connection.read()).await.expect("an answer");
        assert_eq!((answer.status, answer.text()), (200, "success"));
    }
    assert_eq!(relay.end().await, Some(0));
    assert_eq!(relay.audit().await["events"], 3);
}

#[tokio::test]
async fn a_second_sigterm_changes_nothing() {
    let (wechat, crm) = (WeChat::secure(), Target::start().await);
    crm.script([Reaction::Hold(Reply::xml(text_reply("o1", "the last word")))]);
    let route = "[[accounts.shop.routes]]\notherwise = true\nto = [\"crm\"]\nreply = \"crm\"\n";
    let mut relay = Relay::start(wechat.account() + route + &crm.config("crm", "")).await;
    let mut connection = Connection::open(&relay.push).await.expect("the relay listens");
    connection.write(&wechat.push(&text("o1", "hello")).request(PATH)).await.expect("the relay reads");
    crm.wait_for(1).await;
    relay.signal(Signal::TERM);
    relay.log("line that says draining", |line| line["message"] == "draining").await;
    relay.signal(Signal::TERM);
    relay.signal(Signal::INT);
    crm.release(1);
    let answer = soon("the answer", connection.read()).await.expect("an answer");
    assert!(wechat.open_reply(answer.text()).contains("the last word"));
    assert_eq!(relay.end().await, Some(0));
    assert_eq!(relay.audit().await["delivered"], 1);
}

#[tokio::test]
async fn readyz_says_no_while_draining() {
    let (wechat, crm) = (WeChat::secure(), Target::start().await);
    crm.script([Reaction::Hold(Reply::status(200))]);
    let route = "[[accounts.shop.routes]]\notherwise = true\nto = [\"crm\"]\nreply = \"crm\"\n";
    let mut relay = Relay::start(wechat.account() + route + &crm.config("crm", "")).await;
    let mut connection = Connection::open(&relay.push).await.expect("the relay listens");
    connection.write(&wechat.push(&text("o1", "hello")).request(PATH)).await.expect("the relay reads");
    crm.wait_for(1).await;
    relay.signal(Signal::TERM);
    let request = format!("GET /readyz HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", relay.admin);
    eventually("readyz says 503 while a push is under way", async || {
        let answer = try_exchange(&relay.admin, request.as_bytes()).await.expect("the admin listener ends last");
        (answer.status == 503).then_some(())
    })
    .await;
    crm.release(1);
    assert_eq!(soon("the answer", connection.read()).await.expect("an answer").text(), "success");
    assert_eq!(relay.end().await, Some(0));
}
