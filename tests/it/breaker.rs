//! The circuit breaker: a target that keeps failing gets single probes, and its pending deliveries lose no attempts.

use crate::support::eventually;
use crate::support::relay::Relay;
use crate::support::target::{Reaction, Reply, Target};
use crate::support::wechat::{WeChat, text};

#[tokio::test]
async fn an_outage_kills_nothing_however_short_the_schedule() {
    let (wechat, crm) = (WeChat::secure(), Target::always(Reaction::Answer(Reply::status(503))).await);
    // Three attempts within a second: without the breaker all deliveries would be dead before the outage ends.
    let relay = Relay::start(wechat.account() + &crm.config("crm", "retry = [\"400ms\", \"400ms\"]")).await;
    for user in ["o1", "o2", "o3", "o4", "o5", "o6"] {
        relay.accept(&wechat, &text(user, "hello")).await;
    }
    let up = async || relay.metric("wxrelay_target_up", &[("target", "crm")]).await;
    eventually("the target counts as down", async || (up().await == 0.0).then_some(())).await;
    // Two probes later, without the breaker the deliveries would have used up the schedule.
    let tried = crm.deliveries().len();
    crm.wait_for(tried + 2).await;
    crm.then(Reaction::Answer(Reply::status(200)));
    let audit = relay.audited("delivered", 6).await;
    assert_eq!(audit["dead"], 0, "{audit}");
    eventually("the target counts as up", async || (up().await == 1.0).then_some(())).await;
}

#[tokio::test]
async fn one_event_that_always_fails_ends_as_a_dead_letter() {
    let (wechat, crm) = (WeChat::secure(), Target::always(Reaction::Answer(Reply::status(500))).await);
    let retry = format!("retry = [{}]", ["\"10ms\""; 9].join(", "));
    let relay = Relay::start(wechat.account() + &crm.config("crm", &retry)).await;
    relay.accept(&wechat, &text("o1", "poison")).await;
    relay.audited("dead", 1).await;
    assert_eq!(crm.deliveries().len(), 10);
}
