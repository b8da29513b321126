//! Every route of the admin listener, from its own `/api/openapi.json`: it is authenticated, has headers for browsers,
//! changes nothing on a GET, and is not served by the push listener.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::support::http::connect_from;
use crate::support::relay::{Relay, Setup};
use crate::support::soon;
use crate::support::target::Target;
use crate::support::wechat::{WeChat, text};

const TOKEN: &str = "the-Admin-token-of-this-relay";

/// The headers that restrict browsers.
const HEADERS: [(&str, &str); 6] = [
    ("x-content-type-options", "nosniff"),
    ("cache-control", "no-store"),
    ("content-security-policy", "default-src 'none'; frame-ancestors 'none'"),
    ("x-frame-options", "DENY"),
    ("referrer-policy", "no-referrer"),
    ("cross-origin-resource-policy", "same-origin"),
];

#[tokio::test]
async fn every_route_is_served_to_the_tokens_bearer_alone() {
    let relay = relay(&format!("token = \"{TOKEN}\"")).await;
    let short = &TOKEN[..TOKEN.len() - 1];
    let wrong = [
        String::new(),
        "Authorization: Bearer\r\n".to_owned(),
        "Authorization: Bearer \r\n".to_owned(),
        format!("Authorization: Bearer {short}\r\n"),
        format!("Authorization: Bearer {TOKEN}x\r\n"),
        format!("Authorization: Bearer {}\r\n", TOKEN.to_lowercase()),
        format!("Authorization: Basic {TOKEN}\r\n"),
        format!("Authorization: {TOKEN}\r\n"),
        format!("Cookie: token={TOKEN}\r\nX-Api-Key: {TOKEN}\r\n"),
        format!("Authorization: Bearer x\r\nAuthorization: Bearer {TOKEN}\r\n"),
    ];
    let mut tried = 0;
    for route in routes(&relay).await {
        let source = source();
        for headers in &wrong {
            let answer = ask(&relay.admin, &source, &route.method, &route.path, headers).await;
            let expected = if route.guarded { 401 } else { route.health };
            assert_eq!(answer.status, expected, "{route:?} with {headers:?}");
            answer.is_hardened(&route);
            tried += 1;
        }
        // Nor is it accepted in the query, as queries end up in logs.
        let query = format!("{}?token={TOKEN}&access_token={TOKEN}", route.path);
        let answer = ask(&relay.admin, &self::source(), &route.method, &query, "").await;
        assert_eq!(answer.status == 401, route.guarded, "{route:?}: {}", answer.status);

        let right = format!("Authorization: Bearer {TOKEN}\r\n");
        let answer = ask(&relay.admin, &source, &route.method, &route.path, &right).await;
        assert!(![401, 403, 405, 429].contains(&answer.status), "{route:?} with the right token: {}", answer.status);
        answer.is_hardened(&route);
    }
    let answer = ask(&relay.admin, &source(), "GET", "/nothing", "").await;
    assert_eq!(answer.status, 401, "an unauthenticated client learns nothing about routes");
    println!("{tried} wrong tokens");
    assert!(tried > 150, "only {tried}");
}

#[tokio::test]
async fn without_a_token_no_route_is_served_to_web_pages() {
    let relay = relay("").await;
    let mut tried = 0;
    for route in routes(&relay).await.iter().filter(|route| route.guarded) {
        for headers in [
            "Host: evil.example\r\n",
            "Host: 127.0.0.1.evil.example\r\n",
            "Host: localhost\r\nHost: evil.example\r\n",
            "Host: localhost\r\nOrigin: https://evil.example\r\n",
            "Host: localhost\r\nOrigin: null\r\n",
            "Host: localhost\r\nOrigin: http://localhost.evil.example\r\n",
            "Host: localhost\r\nSec-Fetch-Site: cross-site\r\n",
            "Host: localhost\r\nSec-Fetch-Site: same-site\r\n",
            "",
        ] {
            let answer = send(&relay.admin, &source(), &route.method, &route.path, headers).await;
            assert!([400, 403].contains(&answer.status), "{route:?} with {headers:?}: {}", answer.status);
            if answer.status == 403 {
                answer.is_hardened(route);
            }
            tried += 1;
        }
        let local = "Host: localhost\r\nOrigin: http://localhost:3000\r\nSec-Fetch-Site: same-origin\r\n";
        let answer = send(&relay.admin, &source(), &route.method, &route.path, local).await;
        assert!(![401, 403, 405].contains(&answer.status), "{route:?} from this machine: {}", answer.status);
    }
    assert!(tried > 100, "only {tried}");
}

#[tokio::test]
async fn no_route_lets_another_origin_read_or_write() {
    for admin in [String::new(), format!("token = \"{TOKEN}\"")] {
        let relay = relay(&admin).await;
        for route in routes(&relay).await {
            for headers in [
                "Origin: https://evil.example\r\nAccess-Control-Request-Method: POST\r\n\
                 Access-Control-Request-Headers: authorization\r\nAccess-Control-Request-Private-Network: true\r\n",
                "Origin: http://localhost:3000\r\nAccess-Control-Request-Method: GET\r\n",
            ] {
                for with in [headers.to_owned(), format!("{headers}Authorization: Bearer {TOKEN}\r\n")] {
                    let answer = ask(&relay.admin, &source(), "OPTIONS", &route.path, &with).await;
                    assert!([401, 403, 405].contains(&answer.status), "{route:?}: {}", answer.status);
                    answer.is_hardened(&route);
                }
            }
        }
    }
}

#[tokio::test]
async fn no_get_changes_anything_and_no_other_method_is_taken() {
    let relay = relay(&format!("token = \"{TOKEN}\"")).await;
    let right = format!("Authorization: Bearer {TOKEN}\r\n");
    let state = async || {
        let mut output = Vec::new();
        for path in ["/api/audit", "/api/targets", "/api/events"] {
            output.push(ask(&relay.admin, &source(), "GET", path, &right).await.body);
        }
        let status = ask(&relay.admin, &source(), "GET", "/api/status", &right).await;
        let status: Value = serde_json::from_str(&status.body).expect("JSON");
        (output, status["generation"].clone(), status["targets"].clone())
    };
    let before = state().await;
    let (mut refused, mut posts) = (0, 0);
    let routes = routes(&relay).await;
    for route in &routes {
        let taken = |method: &str| routes.iter().any(|other| other.path == route.path && other.method == method);
        let mut others = vec!["PUT", "DELETE", "PATCH", "CONNECTED", "OPTIONS"];
        others.extend(["GET", "POST"].into_iter().filter(|method| !taken(method)));
        if !taken("GET") {
            others.push("HEAD");
        }
        posts += usize::from(route.method == "POST");
        for method in others {
            for headers in [right.clone(), format!("{right}X-HTTP-Method-Override: {}\r\n", route.method)] {
                let path = format!("{}?_method={}", route.path, route.method);
                let answer = ask(&relay.admin, &source(), method, &path, &headers).await;
                assert_eq!(answer.status, 405, "{method} {path}");
                answer.is_hardened(route);
                refused += 1;
            }
        }
        if route.method == "GET" {
            let answer = ask(&relay.admin, &source(), "GET", &route.path, &right).await;
            assert!(answer.status < 500, "{route:?}: {}", answer.status);
        }
    }
    assert_eq!(state().await, before);
    assert!(refused > 200 && posts > 7, "{refused} requests, {posts} routes that change something");
}

#[tokio::test]
async fn no_route_is_reached_by_the_push_listener() {
    let relay = relay(&format!("token = \"{TOKEN}\"")).await;
    for route in routes(&relay).await {
        for headers in [String::new(), format!("Authorization: Bearer {TOKEN}\r\n")] {
            for prefix in
                ["", "/wechat/events/..", "/wechat/events/%2e%2e", "//127.0.0.1:9180", "http://127.0.0.1:9180"]
            {
                let path = format!("{prefix}{}", route.path);
                let answer = ask(&relay.push, &source(), &route.method, &path, &headers).await;
                assert_eq!((answer.status, answer.body.as_str()), (404, "unknown"), "{path}");
            }
        }
    }
}

#[tokio::test]
async fn wrong_tokens_are_slowed_down_by_source_and_the_right_one_never() {
    let relay = relay(&format!("token = \"{TOKEN}\"")).await;
    let (guesser, right) = (source(), format!("Authorization: Bearer {TOKEN}\r\n"));
    let guess = "Authorization: Bearer guessed\r\n";
    for _ in 0..10 {
        assert_eq!(ask(&relay.admin, &guesser, "GET", "/api/status", guess).await.status, 401);
    }
    let begun = Instant::now();
    let answer = ask(&relay.admin, &guesser, "GET", "/api/status", guess).await;
    assert_eq!(answer.status, 429);
    assert!(begun.elapsed() >= Duration::from_secs(1), "{:?}", begun.elapsed());
    let left = answer.header("retry-after").and_then(|left| left.parse::<u64>().ok());
    assert!(left.is_some_and(|left| (1..=60).contains(&left)), "{left:?}");
    assert!(answer.body.contains("too many wrong tokens") && !answer.body.contains(TOKEN), "{}", answer.body);
    assert_eq!(
        ask(&relay.admin, &guesser, "GET", "/api/status", "").await.status,
        401,
        "who sends none does not guess"
    );
    let other = ask(&relay.admin, &source(), "GET", "/api/status", guess).await;
    assert_eq!(other.status, 401, "another source is not meant");

    // While a hundred guesses are in flight, the operator behind the same address is served at once.
    let mut guesses = JoinSet::new();
    for _ in 0..100 {
        let (admin, guesser) = (relay.admin.clone(), guesser.clone());
        guesses.spawn(async move { ask(&admin, &guesser, "GET", "/api/status", guess).await.status });
    }
    let mut fastest = Duration::MAX;
    for _ in 0..20 {
        let begun = Instant::now();
        assert_eq!(ask(&relay.admin, &guesser, "GET", "/api/status", &right).await.status, 200);
        fastest = fastest.min(begun.elapsed());
    }
    assert!(fastest < Duration::from_millis(900), "each would take a second if it waited: {fastest:?}");
    assert!(guesses.join_all().await.into_iter().all(|status| status == 429));
    let output = |line: &Value| line["level"] == "WARN" && line["peer"] == guesser.as_str();
    let line = relay.log("a line about it", output).await;
    assert!(line["message"].as_str().is_some_and(|message| message.contains("wrong admin tokens")), "{line}");
    let lines = relay.lines().iter().filter(|line| line.contains("wrong admin tokens")).count();
    assert_eq!(lines, 1, "a line a while, not one a guess");
}

/// An operation of the document, with its parameters filled in.
#[derive(Debug)]
struct Route {
    method: String,
    path: String,
    guarded: bool,
    /// The status without a token, for operations that need none.
    health: u16,
}

async fn routes(relay: &Relay) -> Vec<Route> {
    let right = format!("Authorization: Bearer {TOKEN}\r\n");
    let answer = ask(&relay.admin, &source(), "GET", "/api/openapi.json", &right).await;
    let document: Value = serde_json::from_str(&answer.body).expect("JSON");
    let mut routes = Vec::new();
    for (path, methods) in document["paths"].as_object().expect("paths") {
        for (method, operation) in methods.as_object().expect("methods") {
            let path = path.replace("{id}", "evt_0000000000000001").replace("{name}", "crm");
            assert!(!path.contains('{'), "{path}");
            let guarded = operation["security"].as_array().is_none_or(|security| !security.is_empty());
            routes.push(Route { method: method.to_uppercase(), path, guarded, health: 200 });
        }
    }
    let open: Vec<_> = routes.iter().filter(|route| !route.guarded).map(|route| route.path.as_str()).collect();
    assert_eq!(open, ["/livez", "/readyz", "/readyz/direct"], "nothing else is for everybody");
    assert!(routes.len() > 17, "only {}", routes.len());
    routes
}

struct Answer {
    status: u16,
    headers: Vec<(String, String)>,
    /// The body, if the response declares its length.
    body: String,
}

impl Answer {
    fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    fn is_hardened(&self, route: &Route) {
        for (name, value) in HEADERS {
            assert_eq!(self.header(name), Some(value), "{route:?}: {name} of a {}", self.status);
        }
        let cors = self.headers.iter().find(|(name, _)| name.starts_with("access-control-"));
        assert_eq!(cors, None, "{route:?}");
    }
}

/// A source address that no other request has, as failures are counted by address.
fn source() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(1);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    format!("127.{}.{}.{}", 64 + (number >> 16), number >> 8 & 255, number & 255)
}

async fn ask(address: &str, source: &str, method: &str, path: &str, headers: &str) -> Answer {
    send(address, source, method, path, &format!("Host: {address}\r\n{headers}")).await
}

/// Sends a request and reads the answer's head, and its body if it has a length, as a stream of events is endless.
async fn send(address: &str, source: &str, method: &str, path: &str, headers: &str) -> Answer {
    let request = format!("{method} {path} HTTP/1.1\r\n{headers}Content-Length: 0\r\nConnection: close\r\n\r\n");
    soon("an answer", async {
        let mut stream = connect_from(source, address).await.expect("somebody listens");
        stream.write_all(request.as_bytes()).await.expect("the request can be sent");
        let mut bytes = Vec::new();
        let (head, mut body) = loop {
            if let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
                break (String::from_utf8_lossy(&bytes[..end]).into_owned(), bytes.split_off(end + 4));
            }
            let read = stream.read_buf(&mut bytes).await.expect("the answer can be read");
            assert!(read > 0, "an answer without end: {}", String::from_utf8_lossy(&bytes));
        };
        let mut lines = head.lines();
        let status = lines.next().and_then(|line| line.split(' ').nth(1)).and_then(|word| word.parse().ok());
        let headers: Vec<_> = lines
            .filter_map(|line| line.split_once(':'))
            .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
            .collect();
        let length = headers.iter().find(|(name, _)| name == "content-length").map(|(_, length)| length);
        let length: usize = length.and_then(|length| length.parse().ok()).unwrap_or(0);
        let length = if method == "HEAD" { 0 } else { length };
        while body.len() < length {
            assert!(stream.read_buf(&mut body).await.expect("the answer can be read") > 0, "a body without end");
        }
        let body = String::from_utf8_lossy(&body).into_owned();
        Answer { status: status.expect("a status"), headers, body }
    })
    .await
}

/// A relay with an event in each final state.
async fn relay(admin: &str) -> Relay {
    let (wechat, crm) = (WeChat::secure(), Target::start().await);
    let relay = Setup::new(wechat.account() + &crm.config("crm", "")).admin(admin).start().await;
    relay.accept(&wechat, &text("o1", "hello")).await;
    relay.audited("delivered", 1).await;
    relay
}
