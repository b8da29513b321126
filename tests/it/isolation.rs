//! No target can delay another, nor the answer to WeChat.

use std::time::Duration;

use crate::support::relay::Relay;
use crate::support::target::{Reaction, Reply, Target};
use crate::support::wechat::{WeChat, event, text};

#[tokio::test]
async fn a_target_that_hangs_delays_only_itself() {
    const PUSHES: usize = 20;
    let (wechat, stuck, crm) = (WeChat::secure(), Target::always(Reaction::Hang).await, Target::start().await);
    let targets = stuck.config("stuck", "concurrency = 1\ntimeout = \"60s\"") + &crm.config("crm", "");
    let relay = Relay::start(wechat.account() + &targets).await;
    for _ in 0..PUSHES {
        assert_eq!(relay.accept(&wechat, &text("o1", "hello")).await.text(), "success");
    }
    crm.wait_for(PUSHES).await;
    let audit = relay.audited("delivered", PUSHES as u64).await;
    assert_eq!(audit["pending"], PUSHES);
    assert_eq!(stuck.deliveries().len(), 1, "one at a time, as configured");
}

#[tokio::test]
async fn a_target_that_is_not_there_delays_only_itself() {
    let (wechat, gone, crm) = (WeChat::secure(), Target::start().await, Target::start().await);
    let targets = gone.config("gone", "retry = [\"1h\"]") + &crm.config("crm", "");
    drop(gone);
    let relay = Relay::start(wechat.account() + &targets).await;
    for _ in 0..5 {
        relay.accept(&wechat, &text("o1", "hello")).await;
    }
    crm.wait_for(5).await;
    assert_eq!(relay.audited("delivered", 5).await["pending"], 5);
}

#[tokio::test]
async fn a_target_with_a_rate_gets_no_more_attempts_than_that() {
    let (wechat, crm) = (WeChat::secure(), Target::start().await);
    let relay = Relay::start(wechat.account() + &crm.config("crm", "rate = \"2/s\"")).await;
    for _ in 0..5 {
        relay.accept(&wechat, &text("o1", "hello")).await;
    }
    let deliveries = crm.wait_for(5).await;
    // Two at once, then one each half second.
    let took = deliveries[4].at - deliveries[0].at;
    assert!(took >= Duration::from_millis(1300), "{took:?}");
}

#[tokio::test]
async fn the_identity_provider_is_served_while_handlers_are_stuck() {
    let (wechat, login, stuck) = (WeChat::secure(), Target::start().await, Target::always(Reaction::Hang).await);
    let targets = login.config("login", "role = \"identity\"") + &stuck.config("stuck", "timeout = \"60s\"");
    let relay = Relay::start(wechat.account() + &targets).await;
    for _ in 0..50 {
        relay.accept(&wechat, &text("o1", "hello")).await;
    }
    relay.accept(&wechat, &event("o1", "SCAN", "login_7")).await;
    login.wait_for(1).await;
}

#[tokio::test]
async fn an_answer_without_end_is_cut_and_counts_as_delivered() {
    let (wechat, crm) = (WeChat::secure(), Target::start().await);
    crm.then(Reaction::Answer(Reply::xml("x".repeat(4 << 20))));
    let route = "[[accounts.shop.routes]]\notherwise = true\nto = [\"crm\"]\nreply = \"crm\"\n";
    let relay = Relay::start(wechat.account() + route + &crm.config("crm", "")).await;
    assert_eq!(relay.accept(&wechat, &text("o1", "hello")).await.text(), "success");
    relay.audited("delivered", 1).await;
}
