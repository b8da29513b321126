//! The admin listener's routes over a real store.

use std::collections::HashMap;
use std::time::Duration;

use axum::body::Body;
use axum::http::{Method, Request, StatusCode};
use bytes::Bytes;
use http_body_util::BodyExt;
use serde_json::{Value, json};
use tempfile::TempDir;
use tower::ServiceExt;

use super::*;
use crate::clock::UnixMillis;
use crate::deliver;
use crate::event::{ContentKey, Event, EventId};
use crate::queue::{self, Disposition, NewEvent, Settlement};
use crate::wechat::{Message, Mode};

fn configured() -> Vec<ConfiguredTarget> {
    ["crm", "quiet"].map(|name| ConfiguredTarget { name: name.to_owned(), paused: false }).into()
}

/// `crm` alone, which fails.
fn facts(name: &str) -> Option<TargetFacts> {
    let config = "http://127.0.0.1:9/hook?key=5ec7e7";
    let target = deliver::Target {
        name: name.into(),
        role: deliver::Role::Handler,
        url: config.parse().unwrap(),
        format: deliver::Format::Raw,
        timeout: Duration::from_secs(10),
        tries: deliver::Tries::Once,
        headers: axum::http::HeaderMap::new(),
        signing_keys: Vec::new(),
        credentials: deliver::CredentialsOverride::default(),
        tls: deliver::TlsOptions::default(),
        proxy: None,
        deny_private: false,
        bare_scene: false,
        answers: deliver::AnswerRules::default(),
    };
    let upstream = deliver::Upstream::new(target, [], &deliver::SystemRoots::default()).unwrap();
    let health = deliver::TargetHealth::default();
    let (now, soon) = (UnixMillis::now(), UnixMillis::now().after(Duration::from_secs(60)));
    health.note_state(now, true);
    health.note_success(now);
    health.note_failure(now, Some(503), "answered 503");
    health.note_probe(Some(soon));
    health.note_due(Some(soon));
    (name == "crm").then(|| TargetFacts {
        upstream: Arc::new(upstream),
        format: "raw",
        retry: crate::backoff::Schedule::ending(vec![Duration::from_secs(5)]),
        expire_after: Some(Duration::from_secs(60)),
        concurrency: 32,
        paused: false,
        health: Arc::new(health),
        account: None,
    })
}

fn status(obstacle: Option<&'static str>, queue: QueueTotals) -> Status {
    let [name, path, mode, app_id] = ["shop", "/wx", "plaintext", "wx1"].map(str::to_owned);
    Status {
        version: "1.2.3".to_owned(),
        started_at: UnixMillis(0),
        uptime_seconds: 1,
        generation: 1,
        config_sha256: "aa".to_owned(),
        config_since: Some(UnixMillis(0)),
        needs_restart: vec!["server.listen".to_owned()],
        warnings: vec!["targets: none".to_owned()],
        store: "/var/lib/wxrelay".to_owned(),
        listen: vec!["127.0.0.1:8080".to_owned()],
        accounts: vec![AccountOverview { name, path, mode, app_id }],
        targets: configured(),
        ready: obstacle.is_none(),
        not_ready_because: obstacle.map(str::to_owned),
        clock: "agrees".to_owned(),
        queue,
        replicas: Vec::new(),
    }
}

pub(super) fn report() -> ReloadReport {
    ReloadReport {
        reloaded: true,
        generation: 2,
        config_sha256: "aa".to_owned(),
        changes: vec![KeyChange { key: "targets.crm.url".to_owned(), change: KeyChangeKind::Changed }],
        needs_restart: vec!["server.listen".to_owned()],
        warnings: vec!["targets: none".to_owned()],
    }
}

/// A relay without listeners: the store, and the other state that the app would pass.
pub(super) struct Relay {
    pub(super) state: State,
    pub(super) reloads: mpsc::Receiver<Reload>,
    pub(super) folder: TempDir,
}

impl Relay {
    pub(super) async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let settings = queue::Settings::for_tests(folder.path());
        let (reload, reloads) = mpsc::channel(1);
        let state = State {
            queue: Queue::open(&settings, |_| {}).await.unwrap(),
            store: settings,
            metrics: Metrics::new(),
            ready: Ready::default(),
            targets: Arc::new(|| Some(configured())),
            status: Arc::new(|obstacle, queue| Some(status(obstacle, queue))),
            pause: Arc::new(|_, _| Box::pin(async { Ok(()) })),
            tail: Tail::default(),
            reload,
            target: Arc::new(facts),
            stop: CancellationToken::new(),
        };
        state.ready.set_ready();
        Self { state, reloads, folder }
    }

    /// Stores a text message for `crm`.
    pub(super) async fn push(&self, content: &str) -> EventId {
        let text = format!(
            "<xml><ToUserName>gh_1</ToUserName><FromUserName>o1</FromUserName><CreateTime>1414387151</CreateTime>\
             <MsgType>text</MsgType><Content>{content}</Content></xml>"
        );
        let (clear, received_at) = (Bytes::from(text), UnixMillis::now());
        let message = Message::parse(&clear).unwrap();
        let id = self.state.queue.next_id(received_at);
        let key = ContentKey::of("wx1", &message, &clear);
        let event = Event {
            id,
            account: "shop".into(),
            app_id: "wx1".into(),
            mode: Mode::Plaintext,
            received_at,
            query: "signature=5ec7e7".to_owned(),
            body: clear.clone(),
            clear,
            message,
            traceparent: None,
        };
        let event =
            NewEvent { event: Arc::new(event), key, targets: vec!["crm".into()], reply: None, awaited: Vec::new() };
        self.state.queue.enqueue(event).await.unwrap();
        id
    }

    async fn die(&self, event: EventId) {
        let disposition = Disposition::End(queue::DeliveryState::Dead);
        let settlement = Settlement {
            event,
            target: "crm".into(),
            disposition,
            decided_at: UnixMillis(0),
            attempt: None,
            reply: None,
        };
        self.state.queue.settle(settlement).await.unwrap();
    }

    pub(super) fn router(&self, token: Option<&str>) -> Router {
        let listen = Listen::Tcp("127.0.0.1:0".parse().unwrap());
        service(
            self.state.clone(),
            &Settings {
                listen,
                token: token.map(Secret::new),
                users: Vec::new(),
                console: true,
                console_hosts: Vec::new(),
            },
        )
    }

    pub(super) async fn ask(&self, method: Method, path: &str) -> (StatusCode, String) {
        let request = Request::builder().method(method).uri(path).header("host", "localhost");
        send(self.router(None), request.body(Body::empty()).unwrap()).await
    }

    async fn get(&self, path: &str) -> (StatusCode, Value) {
        let (status, text) = self.ask(Method::GET, path).await;
        (status, serde_json::from_str(&text).unwrap_or_else(|_| panic!("no JSON: {text}")))
    }

    async fn post(&self, path: &str) -> (StatusCode, Value) {
        let (status, text) = self.ask(Method::POST, path).await;
        (status, serde_json::from_str(&text).unwrap_or_else(|_| panic!("no JSON: {text}")))
    }
}

async fn send(router: Router, request: Request<Body>) -> (StatusCode, String) {
    let answer = router.oneshot(request).await.unwrap();
    let (head, body) = answer.into_parts();
    assert_eq!(head.headers["x-content-type-options"], "nosniff");
    assert_eq!(head.headers["cache-control"], "no-store");
    assert!(!head.headers.contains_key("access-control-allow-origin"));
    #[expect(clippy::disallowed_methods, reason = "our own service's answer")]
    let text = body.collect().await.unwrap().to_bytes();
    (head.status, String::from_utf8(text.to_vec()).unwrap())
}

#[tokio::test]
async fn ready_means_started_not_draining_and_with_a_store() {
    let relay = Relay::new().await;
    let readyz = async || relay.ask(Method::GET, "/readyz").await;
    assert_eq!(readyz().await, (StatusCode::OK, "ready".to_owned()));
    relay.state.ready.set_unready("draining");
    assert_eq!(readyz().await, (StatusCode::SERVICE_UNAVAILABLE, "draining".to_owned()));
    assert_eq!(relay.ask(Method::GET, "/livez").await.0, StatusCode::OK);
    relay.state.ready.set_ready();
    std::fs::remove_file(relay.folder.path().join("wxrelay.db")).unwrap();
    assert_eq!(readyz().await, (StatusCode::SERVICE_UNAVAILABLE, "store-failing".to_owned()));
    assert_eq!(relay.get("/api/status").await.0, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(Ready::default().obstacle(), Some("starting"));
    // Else the writer puts the store back while its folder is removed.
    relay.state.queue.clone().close().await;
}

#[tokio::test]
async fn all_but_health_is_guarded() {
    let relay = Relay::new().await;
    let ask = async |path: &str, headers: &[(&str, &str)], token| {
        let mut request = Request::get(path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        send(relay.router(token), request.body(Body::empty()).unwrap()).await.0
    };
    for path in ["/metrics", "/api/status", "/api/audit", "/api/events", "/api/targets", "/nothing"] {
        assert_eq!(ask(path, &[("host", "localhost")], Some("t0ken")).await, StatusCode::UNAUTHORIZED, "{path}");
        assert_eq!(ask(path, &[("host", "evil.example")], None).await, StatusCode::FORBIDDEN, "{path}");
        assert_ne!(
            ask(path, &[("host", "relay.test"), ("authorization", "Bearer t0ken")], Some("t0ken")).await,
            StatusCode::UNAUTHORIZED
        );
    }
    for path in ["/livez", "/readyz"] {
        assert_eq!(ask(path, &[("host", "relay.test")], Some("t0ken")).await, StatusCode::OK, "{path}");
    }
}

#[tokio::test]
async fn a_scrape_shows_what_waits() {
    let relay = Relay::new().await;
    let dead = relay.push("first").await;
    relay.push("second").await;
    relay.die(dead).await;
    let (status, text) = relay.ask(Method::GET, "/metrics").await;
    assert_eq!(status, StatusCode::OK);
    for line in [r#"wxrelay_pending{target="crm"} 1"#, r#"wxrelay_dead{target="crm"} 1"#] {
        assert!(text.lines().any(|l| l == line), "{line} is not in\n{text}");
    }
    assert!(!text.contains("wxrelay_queue_bytes 0\n"), "{text}");
    assert!(!text.contains("wxrelay_disk_free_bytes 0\n"), "{text}");
}

#[tokio::test(start_paused = true)]
async fn the_queue_is_asked_once_a_second_at_most() {
    let relay = Relay::new().await;
    let state = &relay.state;
    let stats = StatsCache::new(state.queue.clone(), state.store.folder(), state.metrics.clone());
    let pending = async || stats.get().await.unwrap().targets.iter().map(|target| target.counts.pending).sum::<u64>();
    assert_eq!(pending().await, 0);
    relay.push("first").await;
    assert_eq!(pending().await, 0);
    tokio::time::advance(Duration::from_secs(1)).await;
    assert_eq!(pending().await, 1);
}

#[tokio::test]
async fn status_is_what_the_app_says_and_the_queue() {
    let relay = Relay::new().await;
    relay.push("first").await;
    let (_, status) = relay.get("/api/status").await;
    assert_eq!((&status["version"], &status["ready"]), (&json!("1.2.3"), &json!(true)));
    assert_eq!((&status["queue"]["events"], &status["queue"]["pending"]), (&json!(1), &json!(1)));
}

#[tokio::test]
async fn the_audit_adds_up() {
    let relay = Relay::new().await;
    let dead = relay.push("first").await;
    relay.push("second").await;
    relay.die(dead).await;
    relay.state.metrics.unaccounted.set(7);
    let (status, audit) = relay.get("/api/audit").await;
    assert_eq!(status, StatusCode::OK);
    for (name, count) in [("events", 2), ("deliveries", 2), ("pending", 1), ("dead", 1), ("unaccounted", 0)] {
        assert_eq!(audit[name], json!(count), "{name} of {audit}");
    }
    assert_eq!(relay.state.metrics.unaccounted.get(), 0);
}

#[tokio::test]
async fn events_come_by_page_the_newest_first() {
    let relay = Relay::new().await;
    let mut ids = Vec::new();
    for content in ["a", "b", "c"] {
        ids.push(relay.push(content).await.to_string());
    }
    let listed = |page: &Value| -> Vec<String> {
        page["events"].as_array().unwrap().iter().map(|event| event["id"].as_str().unwrap().to_owned()).collect()
    };
    let (_, first) = relay.get("/api/events?limit=2").await;
    assert_eq!(listed(&first), [&*ids[2], &*ids[1]]);
    let cursor = first["cursor"].as_str().unwrap();
    let (_, second) = relay.get(&format!("/api/events?limit=2&cursor={cursor}")).await;
    assert_eq!((listed(&second), &second["cursor"]), (vec![ids[0].clone()], &Value::Null));
}

#[tokio::test]
async fn events_are_filtered() {
    let relay = Relay::new().await;
    let dead = relay.push("first").await;
    relay.push("second").await;
    relay.die(dead).await;
    let expected = HashMap::from([
        ("state=dead", 1),
        ("state=dead&target=crm", 1),
        ("target=login", 0),
        ("account=shop&event=text&from=o1", 2),
        ("from=o2", 0),
        ("since=1h", 2),
        ("until=2020-01-01T00:00:00Z", 0),
    ]);
    for (filter, count) in expected {
        let (status, page) = relay.get(&format!("/api/events?{filter}")).await;
        assert_eq!(status, StatusCode::OK, "{filter}: {page}");
        assert_eq!(page["events"].as_array().unwrap().len(), count, "{filter}: {page}");
    }
}

#[tokio::test]
async fn an_event_shows_its_text_and_never_its_signature() {
    let relay = Relay::new().await;
    let id = relay.push("first").await;
    let (status, event) = relay.get(&format!("/api/events/{id}")).await;
    assert_eq!((status, &event["id"]), (StatusCode::OK, &json!(id.to_string())));
    assert!(event["text"].as_str().unwrap().contains("<Content>first</Content>"), "{event}");
    assert!(!event.to_string().contains("5ec7e7"), "{event}");
}

#[tokio::test]
async fn what_is_asked_wrongly_is_told_in_json() {
    let relay = Relay::new().await;
    for (path, status, part) in [
        ("/api/events?state=lost", StatusCode::BAD_REQUEST, "state"),
        ("/api/events?since=yesterday", StatusCode::BAD_REQUEST, "since"),
        ("/api/events?limit=0", StatusCode::BAD_REQUEST, "1 to 500"),
        ("/api/events?limit=501", StatusCode::BAD_REQUEST, "1 to 500"),
        ("/api/events?stat=dead", StatusCode::BAD_REQUEST, "stat"),
        ("/api/events?cursor=12", StatusCode::BAD_REQUEST, "evt_"),
        ("/api/events/12", StatusCode::BAD_REQUEST, "evt_"),
        ("/api/events/evt_0000000000000001", StatusCode::NOT_FOUND, "no such event"),
        ("/api/nothing", StatusCode::NOT_FOUND, "nothing at this path"),
        ("/api/reload", StatusCode::METHOD_NOT_ALLOWED, "another method"),
        ("/api/targets/crm/retry-dead", StatusCode::METHOD_NOT_ALLOWED, "another method"),
    ] {
        let (found, answer) = relay.get(path).await;
        assert_eq!(found, status, "{path}: {answer}");
        assert!(answer["error"].as_str().unwrap().contains(part), "{path}: {answer}");
    }
}

#[tokio::test]
async fn targets_are_those_configured_and_those_with_deliveries() {
    let relay = Relay::new().await;
    relay.push("first").await;
    let (_, answer) = relay.get("/api/targets").await;
    let targets = answer["targets"].as_array().unwrap();
    assert_eq!(targets.len(), 2, "{answer}");
    assert_eq!((&targets[0]["name"], &targets[0]["pending"]), (&json!("crm"), &json!(1)));
    assert!(targets[0]["oldest_pending"].is_string(), "{answer}");
    assert_eq!((&targets[1]["name"], &targets[1]["pending"]), (&json!("quiet"), &json!(0)));
}

#[tokio::test]
async fn dead_letters_are_retried_and_dropped_by_target() {
    let relay = Relay::new().await;
    let dead = relay.push("first").await;
    relay.die(dead).await;
    assert_eq!(relay.post("/api/targets/crm/retry-dead").await, (StatusCode::OK, json!({ "revived": 1 })));
    assert_eq!(relay.post("/api/targets/crm/retry-dead").await, (StatusCode::OK, json!({ "revived": 0 })));
    relay.die(dead).await;
    assert_eq!(relay.post("/api/targets/crm/drop-dead").await, (StatusCode::OK, json!({ "cancelled": 1 })));
    assert_eq!(relay.post("/api/targets/quiet/retry-dead").await, (StatusCode::OK, json!({ "revived": 0 })));
    assert_eq!(relay.post("/api/targets/cmr/retry-dead").await.0, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn a_reload_is_answered_by_the_app() {
    let mut relay = Relay::new().await;
    for (result, status) in
        [(Ok(report()), StatusCode::OK), (Err(vec!["queue.path: ..".to_owned()]), StatusCode::UNPROCESSABLE_ENTITY)]
    {
        let router = relay.router(None);
        let request = Request::post("/api/reload").header("host", "localhost").body(Body::empty()).unwrap();
        let asked = tokio::spawn(send(router, request));
        relay.reloads.recv().await.unwrap().answer.send(result).unwrap();
        let (found, text) = asked.await.unwrap();
        assert_eq!(found, status);
        let answer: Value = serde_json::from_str(&text).unwrap();
        if status == StatusCode::OK {
            assert_eq!(answer["changes"], json!([{ "key": "targets.crm.url", "change": "changed" }]));
        } else {
            assert_eq!(answer["errors"], json!(["queue.path: .."]));
        }
    }
    relay.reloads.close();
    assert_eq!(relay.post("/api/reload").await.0, StatusCode::SERVICE_UNAVAILABLE);
}

#[tokio::test]
async fn the_listener_serves_it() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let relay = Relay::new().await;
    let bound = crate::server::bind(&Listen::Tcp("127.0.0.1:0".parse().unwrap())).await.unwrap();
    let address = bound[0].tcp_address().unwrap();
    let options = crate::server::Options::default();
    let serving = crate::server::serve(bound, None, relay.router(None), options, Default::default(), Duration::ZERO);
    tokio::spawn(serving);
    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
    stream.write_all(format!("GET /metrics HTTP/1.0\r\nhost: {address}\r\n\r\n").as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.0 200 ") && answer.contains("wxrelay_build_info"), "{answer}");
}
