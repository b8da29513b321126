//! Health by evidence: a store that stands still is not ready, and everybody is told before a push is late.

use tokio::time::Instant;

use crate::support::eventually;
use crate::support::hang::Hang;
use crate::support::http::Connection;
use crate::support::relay::Setup;
use crate::support::target::Target;
use crate::support::wechat::{PATH, WeChat, text};

#[tokio::test]
async fn a_store_that_stands_still_is_not_ready_and_is_logged_before_a_push_is_late() {
    let Some(hang) = Hang::build() else { return };
    let (wechat, crm) = (WeChat::secure(), Target::start().await);
    let mut relay = hang.preload(Setup::new(wechat.account() + &crm.config("crm", ""))).start().await;
    relay.accept(&wechat, &text("o1", "stored")).await;
    relay.audited("delivered", 1).await;
    hang.flushes();
    let mut waiting = Connection::open(&relay.push).await.expect("the relay listens");
    let late = text("o1", "waits for its flush");
    waiting.write(&wechat.push(&late).request(PATH)).await.expect("the relay reads");
    let begun = Instant::now();
    let line = relay.log("the line about it", |line| line["message"] == "store stalled, pushes are not stored").await;
    let told = begun.elapsed();
    assert!(
        line["level"] == "WARN" && line["remedy"].is_string() && line["waited_ms"].as_u64() >= Some(2000),
        "{line}"
    );
    assert!(!relay.lines().iter().any(|line| line.contains("\"result\":\"late\"")), "no push was late before");
    println!("logged after {told:?}");
    let readiness = relay.get("/readyz").await;
    assert_eq!((readiness.status, readiness.text()), (503, "store-stalled"));
    assert_eq!(relay.get("/livez").await.status, 200);
    assert_eq!(relay.get("/api/status").await.json()["not_ready_because"], "store-stalled");
    assert!(relay.metric("wxrelay_commit_wait_seconds", &[]).await >= 2.0);
    assert_eq!(relay.metric("wxrelay_ready", &[]).await, 0.0);

    hang.release_flushes();
    let ended = |line: &serde_json::Value| line["message"] == "stall ended" && line["part"] == "store";
    relay.log("the line about the end", ended).await;
    eventually("the relay is ready", async || (relay.get("/readyz").await.status == 200).then_some(())).await;
    assert_eq!(relay.metric("wxrelay_commit_wait_seconds", &[]).await, 0.0);
    relay.accept(&wechat, &late).await;
    relay.audited("delivered", 2).await;
    relay.stop().await;
}

#[tokio::test]
async fn the_health_check_fails_while_the_store_stands_still() {
    let Some(hang) = Hang::build() else { return };
    let (wechat, crm) = (WeChat::secure(), Target::start().await);
    let setup = Setup::new(wechat.account() + &crm.config("crm", ""));
    let relay = hang.preload(setup.admin_at(crate::support::command::free_address())).start().await;
    assert_eq!(relay.run(&["healthcheck"]).await.code, Some(0));
    hang.flushes();
    let mut waiting = Connection::open(&relay.push).await.expect("the relay listens");
    waiting.write(&wechat.push(&text("o1", "waits")).request(PATH)).await.expect("the relay reads");
    relay.log("the line about it", |line| line["message"] == "store stalled, pushes are not stored").await;
    let finished = relay.run(&["healthcheck"]).await;
    assert_eq!((finished.code, finished.stderr.contains("store-stalled")), (Some(1), true), "{finished:?}");
    hang.release_flushes();
}
