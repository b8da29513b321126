//! An attacker cannot use up the resources that WeChat needs. `cargo bench --bench floods` measures this at full rate.

use serde_json::Value;

use crate::support::http::{Connection, exchange};
use crate::support::relay::{Relay, Setup};
use crate::support::soon;
use crate::support::target::Target;
use crate::support::wechat::{PATH, WeChat, text};

#[tokio::test]
async fn bodies_of_strangers_that_do_not_arrive_take_nothing_from_wechat() {
    let (wechat, crm) = (WeChat::secure(), Target::start().await);
    let relay = Relay::start(wechat.account() + &crm.config("crm", "")).await;
    let forged = WeChat { token: "another".to_owned(), ..WeChat::secure() };
    let mut held = Vec::new();
    for _ in 0..64 {
        held.push(waiting(&relay, &announced(&forged)).await);
    }
    let mut late = Connection::open(&relay.push).await.expect("the relay listens");
    late.write(&announced(&forged)).await.expect("the relay reads");
    assert_eq!(late.read().await.expect("an answer").status, 503);
    assert_eq!(relay.metric("wxrelay_pushes_total", &[("result", "busy")]).await, 1.0);

    relay.accept(&wechat, &text("o1", "at once")).await;
    let _slow = waiting(&relay, &announced(&wechat)).await;
    drop(held);
    crm.wait_for(1).await;
}

#[tokio::test]
async fn forged_pushes_take_up_nothing_that_lasts() {
    let (wechat, crm) = (WeChat::secure(), Target::start().await);
    let relay = Relay::start(wechat.account() + &crm.config("crm", "")).await;
    let forged = WeChat { token: "another".to_owned(), ..WeChat::secure() };
    for _ in 0..200 {
        assert_eq!(exchange(&relay.push, &forged.push(&text("o1", "x")).request(PATH)).await.status, 403);
    }
}

#[tokio::test]
async fn forged_pushes_do_not_fill_the_log() {
    let wechat = WeChat::secure();
    let relay = Relay::start(wechat.account() + "[[accounts.shop.routes]]\notherwise = true\nto = []\n").await;
    let forged = WeChat { token: "another".to_owned(), ..WeChat::secure() };
    for _ in 0..300 {
        assert_eq!(exchange(&relay.push, &forged.push(&text("o1", "x")).request(PATH)).await.status, 403);
    }
    relay.accept(&wechat, &text("o1", "logged all the same")).await;
    relay.log("the good push", |line| line["result"] == "accepted").await;
    let refused = relay.lines().iter().filter(|line| line.contains("\"signature\"")).count();
    // A hundred in ten seconds, however slow the machine is.
    assert!((100..=200).contains(&refused), "{refused} lines");
    assert_eq!(relay.metric("wxrelay_pushes_total", &[("result", "signature")]).await, 300.0);
}

#[tokio::test]
async fn a_captured_url_admits_one_waiting_body_and_takes_nothing_from_wechat() {
    let (wechat, crm) = (WeChat::secure(), Target::start().await);
    let relay = Relay::start(wechat.account() + &crm.config("crm", "")).await;
    let captured = wechat.push(&text("o1", "captured"));
    let mut held = waiting(&relay, &captured.announced(PATH)).await;
    for _ in 0..30 {
        let newest = waiting(&relay, &captured.announced(PATH)).await;
        let mut older = std::mem::replace(&mut held, newest);
        assert_eq!(soon("the older is refused", older.read()).await.expect("an answer").status, 503);
    }
    assert_eq!(captured.send(&relay.push).await.status, 200, "WeChat's own, with the same query");
    relay.accept(&wechat, &text("o1", "another")).await;
    // The body that still waits keeps its slot.
    held.write(&captured.body).await.expect("the relay reads");
    assert_eq!(soon("an answer", held.read()).await.expect("an answer").status, 200);
    crm.wait_for(2).await;
    assert_eq!(relay.metric("wxrelay_pushes_total", &[("result", "busy")]).await, 30.0);
}

/// A proxy's log has many URLs. With few connections there are few slots for bodies, so that 28 are too many.
#[tokio::test]
async fn captured_urls_of_one_account_leave_the_others_theirs() {
    let (wechat, crm) = (WeChat::secure(), Target::start().await);
    let other = WeChat { token: "another".to_owned(), app_id: "wx0000000000000001".to_owned(), ..WeChat::secure() };
    let accounts = wechat.account() + &other.account_named("other", "/other");
    let relay = Setup::new(accounts + &crm.config("crm", "")).ulimit("-n 256").start().await;
    // It waits longest of all, and its account has only this one.
    let slow = other.push(&text("o1", "slow"));
    let mut waits = waiting(&relay, &slow.announced("/other")).await;
    let (mut held, chunked) = (Vec::new(), "Transfer-Encoding: chunked\r\n");
    for number in 0..28 {
        let head = String::from_utf8(wechat.push(&text("o1", &number.to_string())).announced(PATH)).expect("text");
        let (before, rest) = head.split_once("Content-Length: ").expect("a length");
        let (_, after) = rest.split_once("\r\n").expect("another line");
        let head = if number % 2 == 0 { format!("{before}{chunked}{after}") } else { head };
        held.push(waiting(&relay, head.as_bytes()).await);
        if number % 14 == 13 {
            relay.accept(&wechat, &text("o1", &format!("of the same account {number}"))).await;
            assert_eq!(exchange(&relay.push, &other.push(&text("o1", "x")).request("/other")).await.status, 200);
        }
    }
    assert_eq!(soon("the oldest is refused", held[0].read()).await.expect("an answer").status, 503);
    waits.write(&slow.body).await.expect("the relay reads");
    assert_eq!(soon("an answer", waits.read()).await.expect("an answer").status, 200);
    let evicted = |line: &Value| line["message"] == "too many bodies that do not arrive, the oldest refused";
    assert_eq!(relay.log("a line about the bodies", evicted).await["account"], "shop");
}

/// A connection whose request waits for its body.
async fn waiting(relay: &Relay, head: &[u8]) -> Connection {
    let mut connection = Connection::open(&relay.push).await.expect("the relay listens");
    connection.write(head).await.expect("the relay reads");
    connection.continued().await;
    connection
}

/// The head of a push whose body is still to come.
fn announced(wechat: &WeChat) -> Vec<u8> {
    wechat.push(&text("o1", "slow")).announced(PATH)
}
