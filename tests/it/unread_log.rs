//! A slow or stopped reader of the log does not delay a push.

use rustix::process::Signal;

use crate::support::relay::{Relay, Setup};
use crate::support::wechat::{WeChat, event};

#[tokio::test]
async fn pushes_are_answered_while_nobody_reads_the_log_and_what_is_lost_of_it_is_told() {
    let wechat = WeChat::secure();
    let mut relay = Setup::new(wechat.account()).log("openid = \"clear\"").start().await;
    // Lines of 16 KiB: 64 fit into the buffer, 64 into a batch that is being written, and a few into the pipe.
    let openid = "o".repeat(16 << 10);
    let unread = relay.stop_reading();
    for number in 0..150 {
        relay.accept(&wechat, &event(&openid, "CLICK", &number.to_string())).await;
    }
    assert!(lost(&relay).await > 0);
    drop(unread);
    let output = relay.log("what was lost", |line| line["level"] == "WARN" && line["lost"].is_u64()).await;
    let pushes = relay.lines().iter().filter(|line| line.contains("\"message\":\"push\"")).count() as u64;
    assert_eq!(pushes + output["lost"].as_u64().unwrap(), 150);
    relay.accept(&wechat, &event("oUser", "CLICK", "after")).await;
    relay.log("what comes after", |line| line["message"] == "push" && line["openid"] == "oUser").await;
    relay.signal(Signal::TERM);
    relay.log("its last word", |line| line["message"] == "stopped").await;
    assert_eq!(relay.end().await, Some(0));
}

async fn lost(relay: &Relay) -> u64 {
    let metrics = relay.get("/metrics").await.text().to_owned();
    let line = metrics.lines().find_map(|line| line.strip_prefix("wxrelay_log_lines_lost_total "));
    line.and_then(|count| count.parse().ok()).expect("the metric is there")
}
