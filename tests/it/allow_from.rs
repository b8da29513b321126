//! `allow_from`: pushes from elsewhere are logged, and refused only with `action = "deny"`.

use serde_json::Value;

use crate::support::http::{exchange, exchange_from};
use crate::support::relay::{Relay, Setup};
use crate::support::target::Target;
use crate::support::wechat::{PATH, WeChat, text};

const METRIC: &str = "wxrelay_outside_allow_from_total";

#[tokio::test]
async fn an_unlisted_address_is_counted_and_logged_and_its_push_accepted() {
    for allow_from in ["[\"127.5.0.0/16\"]", "{ networks = \"127.5.0.0/16\" }"] {
        let (wechat, crm, relay) = relay(allow_from).await;
        assert_eq!(push(&wechat, &relay, "127.5.1.1").await, 200);
        assert_eq!(relay.metric(METRIC, &[]).await, 0.0, "a listed address is nothing to tell of");
        for _ in 0..5 {
            assert_eq!(push(&wechat, &relay, "127.6.1.1").await, 200);
        }
        crm.wait_for(6).await;
        assert_eq!(relay.metric(METRIC, &[("account", "shop"), ("result", "accepted")]).await, 5.0);
        let line = relay.log("the line of the unexpected client", outside).await;
        let said = [&line["level"], &line["account"], &line["peer"], &line["result"]];
        assert_eq!(said, ["WARN", "shop", "127.6.1.1", "accepted"], "{line}");
        let lines = relay.lines();
        assert_eq!(lines.iter().filter(|line| line.contains("outside allow_from")).count(), 1, "no flood");
    }
}

#[tokio::test]
async fn an_unlisted_address_is_refused_where_that_is_asked_for() {
    let (wechat, crm, relay) = relay("{ networks = [\"127.5.0.0/16\", \"::1\"], action = \"deny\" }").await;
    assert_eq!(push(&wechat, &relay, "127.6.1.1").await, 403);
    let query = wechat.verification(crate::support::wechat::now(), "123");
    let verification = format!("GET {PATH}?{query} HTTP/1.0\r\n\r\n");
    assert_eq!(exchange_from("127.6.1.1", &relay.push, verification.as_bytes()).await.status, 403);
    assert_eq!(push(&wechat, &relay, "127.5.1.1").await, 200);
    crm.wait_for(1).await;
    assert_eq!(relay.metric(METRIC, &[("result", "source")]).await, 2.0);
    assert_eq!(relay.metric("wxrelay_pushes_total", &[("result", "source")]).await, 2.0);
    assert_eq!(relay.audit().await["events"], 1);
}

#[tokio::test]
async fn the_client_address_comes_from_a_trusted_proxy() {
    let (wechat, _crm, relay) = relay("{ networks = [\"203.0.113.0/24\"], action = \"deny\" }").await;
    for (claim, source, status) in
        [("203.0.113.7", "127.0.0.1", 200), ("198.51.100.7", "127.0.0.1", 403), ("203.0.113.7", "127.6.1.1", 403)]
    {
        let request = String::from_utf8(wechat.push(&text("o1", "hello")).request(PATH)).expect("text");
        let request = request.replacen("Accept: */*", &format!("X-Forwarded-For: {claim}"), 1);
        let answer = exchange_from(source, &relay.push, request.as_bytes()).await;
        assert_eq!(answer.status, status, "{claim} by {source}");
    }
    assert_eq!(exchange(&relay.push, &wechat.push(&text("o1", "hello")).request(PATH)).await.status, 403);
}

#[tokio::test]
async fn a_reload_changes_the_list() {
    let (wechat, crm, mut relay) = relay("{ networks = \"127.5.0.0/16\", action = \"deny\" }").await;
    assert_eq!(push(&wechat, &relay, "127.6.1.1").await, 403);
    relay.configure(wechat.account() + "allow_from = \"127.6.0.0/16\"\n" + &crm.config("crm", ""));
    assert_eq!(crate::support::http::post(&relay.admin, "/api/reload").await.status, 200);
    assert_eq!(push(&wechat, &relay, "127.6.1.1").await, 200);
    crm.wait_for(1).await;
}

async fn push(wechat: &WeChat, relay: &Relay, source: &str) -> u16 {
    exchange_from(source, &relay.push, &wechat.push(&text("o1", "hello")).request(PATH)).await.status
}

fn outside(line: &Value) -> bool {
    line["message"] == "request from outside allow_from"
}

async fn relay(allow_from: &str) -> (WeChat, Target, Relay) {
    let (wechat, crm) = (WeChat::secure(), Target::start().await);
    let account = wechat.account() + &format!("allow_from = {allow_from}\n");
    let setup = Setup::new(account + &crm.config("crm", "")).server("trusted_proxies = [\"127.0.0.1\"]");
    (wechat, crm, setup.start().await)
}
