//! An attacker cannot use up the resources that WeChat needs. `cargo bench --bench floods` measures this at full rate.

use crate::support::http::{Connection, exchange};
use crate::support::relay::Relay;
use crate::support::target::Target;
use crate::support::wechat::{PATH, WeChat, text};

#[tokio::test]
async fn bodies_of_strangers_that_do_not_arrive_take_nothing_from_wechat() {
    let (wechat, crm) = (WeChat::secure(), Target::start().await);
    let relay = Relay::start(wechat.account() + &crm.config("crm", "")).await;
    let forged = WeChat { token: "another".to_owned(), ..WeChat::secure() };
    let mut held = Vec::new();
    for _ in 0..64 {
        let mut connection = Connection::open(&relay.push).await.expect("the relay listens");
        connection.write(&announced(&forged)).await.expect("the relay reads");
        connection.continued().await;
        held.push(connection);
    }
    let mut late = Connection::open(&relay.push).await.expect("the relay listens");
    late.write(&announced(&forged)).await.expect("the relay reads");
    assert_eq!(late.read().await.expect("an answer").status, 503);
    assert_eq!(relay.metric("wxrelay_pushes_total", &[("result", "busy")]).await, 1.0);

    relay.accept(&wechat, &text("o1", "at once")).await;
    let mut slow = Connection::open(&relay.push).await.expect("the relay listens");
    slow.write(&announced(&wechat)).await.expect("the relay reads");
    slow.continued().await;
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

/// The head of a push whose body is still to come.
fn announced(wechat: &WeChat) -> Vec<u8> {
    let request = wechat.push(&text("o1", "slow")).kept_alive(PATH);
    let head = String::from_utf8_lossy(&request);
    let (head, _) = head.split_once("\r\n\r\n").expect("a head and a body");
    format!("{head}\r\nExpect: 100-continue\r\n\r\n").into_bytes()
}
