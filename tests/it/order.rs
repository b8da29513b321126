//! `order = "per_user"`: one user's events reach the target as WeChat sent them, over retries and a crash.

use crate::support::relay::Relay;
use crate::support::target::{Delivery, Reaction, Reply, Target};
use crate::support::wechat::{WeChat, text};

const IN_ORDER: &str = "order = \"per_user\"\nretry = [\"20ms\", \"20ms\", \"20ms\", \"20ms\"]";

#[tokio::test]
async fn a_users_events_wait_for_a_retry_and_other_users_go_on() {
    let (wechat, crm) = (WeChat::secure(), Target::start().await);
    crm.script([Reaction::Hold(Reply::status(500))]);
    let relay = Relay::start(wechat.account() + &crm.config("crm", IN_ORDER)).await;
    for content in ["a1", "a2", "a3"] {
        relay.accept(&wechat, &text("o_a", content)).await;
    }
    crm.wait_for(1).await;
    relay.accept(&wechat, &text("o_b", "b1")).await;
    assert_eq!(contents(&crm.wait_for(2).await), ["a1", "b1"]);
    crm.release(1);
    assert_eq!(contents(&crm.wait_for(5).await), ["a1", "b1", "a1", "a2", "a3"]);
    relay.audited("delivered", 4).await;
}

#[tokio::test]
async fn the_order_outlives_a_crash() {
    let (wechat, crm) = (WeChat::secure(), Target::start().await);
    crm.then(Reaction::Hang);
    let mut relay = Relay::start(wechat.account() + &crm.config("crm", IN_ORDER)).await;
    for content in ["1", "2", "3", "4"] {
        relay.accept(&wechat, &text("o_a", content)).await;
    }
    assert_eq!(contents(&crm.wait_for(1).await), ["1"]);
    relay.kill().await;
    crm.then(Reaction::Answer(Reply::status(200)));
    relay.restart().await;
    assert_eq!(contents(&crm.wait_for(5).await), ["1", "1", "2", "3", "4"]);
}

fn contents(deliveries: &[Delivery]) -> Vec<String> {
    let content = |delivery: &Delivery| delivery.json()["message"]["Content"].as_str().expect("a text").to_owned();
    deliveries.iter().map(content).collect()
}
