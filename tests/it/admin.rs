//! The admin listener: health, metrics, API, and its authentication.

use crate::support::eventually;
use crate::support::http::exchange;
use crate::support::relay::{Relay, Setup};
use crate::support::target::{Reaction, Reply, Target};
use crate::support::wechat::{WeChat, event, text};

/// Every metric of the contract that exists without TLS.
const METRICS: [&str; 20] = [
    "wxrelay_pushes_total",
    "wxrelay_push_duration_seconds",
    "wxrelay_duplicates_total",
    "wxrelay_deliveries_total",
    "wxrelay_delivery_duration_seconds",
    "wxrelay_identity_latency_seconds",
    "wxrelay_pending",
    "wxrelay_oldest_pending_seconds",
    "wxrelay_dead",
    "wxrelay_target_up",
    "wxrelay_target_paused",
    "wxrelay_replies_total",
    "wxrelay_unaccounted_deliveries",
    "wxrelay_store_damaged",
    "wxrelay_commit_duration_seconds",
    "wxrelay_queue_bytes",
    "wxrelay_ready",
    "wxrelay_config_info",
    "wxrelay_build_info",
    "wxrelay_clock_skew_seconds",
];

#[tokio::test]
async fn health_needs_no_token() {
    let (relay, ..) = relay("").await;
    for path in ["/livez", "/readyz"] {
        assert_eq!(relay.get(path).await.status, 200, "{path}");
    }
    let (relay, ..) = self::relay("token = \"the-admin-token\"").await;
    for path in ["/livez", "/readyz"] {
        assert_eq!(relay.get(path).await.status, 200, "{path} with a token configured");
    }
}

#[tokio::test]
async fn every_metric_of_the_contract_is_there() {
    let (relay, wechat, _login, _crm) = relay("").await;
    relay.accept(&wechat, &event("o1", "SCAN", "login_7")).await;
    relay.accept(&wechat, &text("o1", "hello")).await;
    relay.audited("delivered", 2).await;
    let answer = relay.get("/metrics").await;
    assert!(answer.header("content-type").is_some_and(|kind| kind.starts_with("text/plain")));
    for name in METRICS {
        assert!(answer.text().contains(&format!("# TYPE {name} ")), "{name}");
        assert!(answer.text().contains(&format!("# HELP {name} ")), "{name}");
    }
    assert!(answer.text().contains("process_resident_memory_bytes "));
}

#[tokio::test]
async fn metrics_tell_what_happened() {
    let (relay, wechat, login, crm) = relay("").await;
    crm.then(Reaction::Answer(Reply::status(410)));
    relay.accept(&wechat, &event("o1", "SCAN", "login_7")).await;
    let clear = text("o1", "hello");
    relay.accept(&wechat, &clear).await;
    relay.accept(&wechat, &clear).await;
    login.wait_for(1).await;
    relay.audited("dead", 1).await;
    relay.audited("delivered", 1).await;
    let (shop, login, crm) = (("account", "shop"), ("target", "login"), ("target", "crm"));
    for (name, labels, value) in [
        ("wxrelay_pushes_total", &[shop, ("kind", "scan")][..], 1.0),
        ("wxrelay_pushes_total", &[shop, ("kind", "text")], 2.0),
        ("wxrelay_push_duration_seconds_count", &[shop], 3.0),
        ("wxrelay_duplicates_total", &[shop], 1.0),
        ("wxrelay_deliveries_total", &[login, ("outcome", "delivered")], 1.0),
        ("wxrelay_deliveries_total", &[crm, ("outcome", "dead")], 1.0),
        ("wxrelay_delivery_duration_seconds_count", &[login], 1.0),
        ("wxrelay_identity_latency_seconds_count", &[login], 1.0),
        ("wxrelay_pending", &[login], 0.0),
        ("wxrelay_dead", &[crm], 1.0),
        ("wxrelay_target_up", &[login], 1.0),
        ("wxrelay_unaccounted_deliveries", &[], 0.0),
        ("wxrelay_config_info", &[], 1.0),
    ] {
        let what = format!("{name} {labels:?} is {value}");
        eventually(&what, async || (relay.metric(name, labels).await == value).then_some(())).await;
    }
    assert!(relay.metric("wxrelay_commit_duration_seconds_count", &[]).await >= 2.0);
    assert!(relay.metric("wxrelay_queue_bytes", &[]).await > 0.0);
}

#[tokio::test]
async fn the_api_shows_status_audit_and_events() {
    let (relay, wechat, login, _crm) = relay("").await;
    relay.accept(&wechat, &event("o1", "SCAN", "login_7")).await;
    relay.accept(&wechat, &text("o2", "hello")).await;
    relay.audited("delivered", 2).await;

    let status = relay.get("/api/status").await;
    assert_eq!(status.status, 200);
    let output = status.json().to_string();
    assert!(["shop", "login", "crm"].iter().all(|name| output.contains(name)), "{output}");

    let audit = relay.get("/api/audit").await.json();
    assert_eq!((&audit["events"], &audit["delivered"], &audit["unaccounted"]), (&2.into(), &2.into(), &0.into()));

    let id = login.delivery(0).await.header("wxrelay-event-id").to_owned();
    let all = relay.get("/api/events").await.text().to_owned();
    assert_eq!(all.matches("evt_").count(), 2, "{all}");
    for filter in ["event=SCAN", "from=o1", "target=login", "account=shop&limit=5&event=scan"] {
        let some = relay.get(&format!("/api/events?{filter}")).await.text().to_owned();
        assert_eq!((some.matches("evt_").count(), some.contains(&id)), (1, true), "{filter}: {some}");
    }
    for (filter, count) in [
        ("state=delivered", 2),
        ("state=dead", 0),
        ("since=1h", 2),
        ("until=1h", 0),
        ("until=2999-01-01T00:00:00Z", 2),
        ("limit=1", 1),
        (&format!("cursor={id}"), 0),
    ] {
        let some = relay.get(&format!("/api/events?{filter}")).await.json();
        assert_eq!(some["events"].as_array().map(Vec::len), Some(count), "{filter}: {some}");
        let args: Vec<_> = filter.split('=').collect();
        let listed = relay.run(&["events", "ls", "--json", &format!("--{}", args[0]), args[1]]).await;
        assert_eq!((listed.code, listed.stdout.lines().count()), (Some(0), count), "{filter}: {listed:?}");
    }
    for (filter, named) in
        [("colour=blue", "colour"), ("state=lost", "state"), ("since=soon", "since"), ("limit=0", "limit")]
    {
        let refused = relay.get(&format!("/api/events?{filter}")).await;
        assert_eq!(refused.status, 400, "{filter}");
        assert!(refused.text().contains(named), "{filter}: {}", refused.text());
        let (key, value) = filter.split_once('=').expect("a key and a value");
        let refused = relay.run(&["events", "ls", &format!("--{key}"), value]).await;
        assert!(key == "limit" || refused.code == Some(2), "{filter}: {refused:?}");
    }
    let described = relay.get("/api/openapi.json").await;
    assert_eq!((described.status, &described.json()["openapi"]), (200, &"3.1.0".into()));
    let one = relay.get(&format!("/api/events/{id}")).await;
    assert_eq!(one.status, 200);
    assert!(one.text().contains("login_7"));
    assert_eq!(relay.get("/api/events/evt_0000000000000001").await.status, 404);
    assert_eq!(relay.get("/api/events/nonsense").await.status, 400);
}

#[tokio::test]
async fn without_a_token_no_web_page_can_ask() {
    let (relay, ..) = relay("").await;
    for headers in [
        "Host: evil.example",
        "Host: 127.0.0.1.evil.example",
        "Host: localhost\r\nOrigin: https://evil.example",
        "Host: localhost\r\nOrigin: null",
    ] {
        let head = format!("GET /api/status HTTP/1.1\r\n{headers}\r\nConnection: close\r\n\r\n");
        let answer = exchange(&relay.admin, head.as_bytes()).await;
        assert_eq!(answer.status, 403, "{headers}");
        assert_eq!(answer.header("access-control-allow-origin"), None);
    }
    let head = "GET /api/status HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    assert_eq!(exchange(&relay.admin, head.as_bytes()).await.status, 200);
}

#[tokio::test]
async fn with_a_token_only_its_bearer_can_ask() {
    let (relay, ..) = relay("token = \"the-admin-token\"").await;
    let ask = async |authorization: &str| {
        let head = format!("GET /api/status HTTP/1.1\r\nHost: relay.test\r\n{authorization}Connection: close\r\n\r\n");
        exchange(&relay.admin, head.as_bytes()).await.status
    };
    assert_eq!(ask("Authorization: Bearer the-admin-token\r\n").await, 200);
    assert_eq!(ask("Authorization: Bearer the-admin-tokem\r\n").await, 401);
    assert_eq!(ask("Authorization: Basic the-admin-token\r\n").await, 401);
    assert_eq!(ask("").await, 401);
}

#[tokio::test]
async fn the_admin_listener_takes_no_pushes_and_unknown_paths_are_404() {
    let (relay, wechat, ..) = relay("").await;
    let push = wechat.push(&text("o1", "hello"));
    let request = String::from_utf8(push.request("/wechat/events")).expect("text").replace("relay.test", "localhost");
    assert_eq!(exchange(&relay.admin, request.as_bytes()).await.status, 404);
    assert_eq!(relay.get("/nothing").await.status, 404);
    assert_eq!(relay.audit().await["events"], 0);
}

async fn relay(admin: &str) -> (Relay, WeChat, Target, Target) {
    let (wechat, login, crm) = (WeChat::secure(), Target::start().await, Target::start().await);
    let targets = login.config("login", "role = \"identity\"") + &crm.config("crm", "");
    let routes = "[[accounts.shop.routes]]\nmatch = { event = \"SCAN\" }\nto = [\"login\"]\nreply = { text = \"hi\" }\n\
                  [[accounts.shop.routes]]\notherwise = true\nto = [\"crm\"]\n";
    let relay = Setup::new(wechat.account() + routes + &targets).admin(admin).start().await;
    (relay, wechat, login, crm)
}
