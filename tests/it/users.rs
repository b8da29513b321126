//! `[admin.users]`: who may do what by the admin API.

use serde_json::Value;

use crate::support::http::exchange;
use crate::support::relay::{Relay, Setup};
use crate::support::target::Target;
use crate::support::wechat::{WeChat, text};

const USERS: &str = "token = \"the-admin-token-of-the-tests\"\n\
    users.li = { token = \"the-token-of-li-in-the-tests\", role = \"operator\" }\n\
    users.wang = { token = \"the-token-of-wang-in-tests\", role = \"viewer\" }\n";
const LI: &str = "the-token-of-li-in-the-tests";
const WANG: &str = "the-token-of-wang-in-tests";
const OPENAPI: &str = include_str!("../../src/admin/openapi.json");

#[tokio::test]
async fn a_viewer_is_refused_on_every_route_that_changes_something() {
    let (relay, ..) = relay().await;
    let document: Value = serde_json::from_str(OPENAPI).expect("it is JSON");
    let paths = document["paths"].as_object().expect("it has paths");
    let (mut changing, mut reading) = (0, 0);
    for (path, methods) in paths {
        let path = path.replace("{name}", "crm").replace("{id}", "evt_1a1fe9c9a6a00000");
        let is_open = ["/livez", "/readyz", "/readyz/direct"].contains(&path.as_str());
        for method in methods.as_object().expect("it has methods").keys() {
            if method == "get" {
                // The tail does not end.
                let status = if path == "/api/tail" { 200 } else { ask(&relay, "GET", &path, WANG).await.0 };
                assert!(![401, 403].contains(&status), "{path}: {status}");
                reading += 1;
            } else {
                let (status, body) = ask(&relay, "POST", &path, WANG).await;
                assert_eq!(status, 403, "{path}: {body}");
                assert!(body.contains("viewer"), "{path}: {body}");
                changing += 1;
            }
            let expected = if is_open { 200 } else { 401 };
            let method = method.to_uppercase();
            assert_eq!(ask(&relay, &method, &path, "").await.0, expected, "{path} without a token");
        }
    }
    assert!(changing > 9 && reading > 9, "{changing} {reading}");
    assert_eq!(ask(&relay, "DELETE", "/api/targets/crm", WANG).await.0, 403, "whatever the method");
}

#[tokio::test]
async fn an_operator_acts_and_everyone_is_known_by_the_token() {
    let (relay, ..) = relay().await;
    for (token, name, role) in
        [("the-admin-token-of-the-tests", "admin", "operator"), (LI, "li", "operator"), (WANG, "wang", "viewer")]
    {
        let (status, body) = ask(&relay, "GET", "/api/me", token).await;
        let me: Value = serde_json::from_str(&body).expect("it is JSON");
        assert_eq!((status, &me["name"], &me["role"]), (200, &name.into(), &role.into()));
    }
    assert_eq!(ask(&relay, "POST", "/api/targets/crm/pause", LI).await.0, 200);
    assert_eq!(ask(&relay, "POST", "/api/targets/crm/resume", WANG).await.0, 403);
    assert_eq!(ask(&relay, "GET", "/api/events?from=o1", WANG).await.0, 403, "whether there is such a user");
    assert_eq!(ask(&relay, "GET", "/api/events?from=o1", LI).await.0, 200);
}

#[tokio::test]
async fn a_viewer_sees_no_openid_text_or_answer() {
    let (relay, wechat, crm) = relay().await;
    relay.accept(&wechat, &text("o-of-a-user-who-is-secret", "a very private text")).await;
    let id = crm.delivery(0).await.header("wxrelay-event-id").to_owned();
    for path in ["/api/events".to_owned(), format!("/api/events/{id}")] {
        let (_, all) = ask(&relay, "GET", &path, LI).await;
        assert!(all.contains("o-of-a-user-who-is-secret"), "{path}: {all}");
        let (status, some) = ask(&relay, "GET", &path, WANG).await;
        assert!(status == 200 && some.contains(&id), "{path}: {some}");
        assert!(!some.contains("o-of-a-user") && !some.contains("private"), "{path}: {some}");
    }
}

#[tokio::test]
async fn without_a_token_the_caller_is_whoever_uses_this_machine() {
    let wechat = WeChat::secure();
    let crm = Target::start().await;
    let relay = Setup::new(wechat.account() + &crm.config("crm", "")).start().await;
    let me = relay.get("/api/me").await.json();
    assert_eq!((&me["name"], &me["role"]), (&"this machine".into(), &"operator".into()));
}

async fn relay() -> (Relay, WeChat, Target) {
    let (wechat, crm) = (WeChat::secure(), Target::start().await);
    let relay = Setup::new(wechat.account() + &crm.config("crm", "")).admin(USERS).start().await;
    (relay, wechat, crm)
}

/// The status and the body of an answer; an empty token is not sent.
async fn ask(relay: &Relay, method: &str, path: &str, token: &str) -> (u16, String) {
    let bearer = if token.is_empty() { String::new() } else { format!("Authorization: Bearer {token}\r\n") };
    let head = format!(
        "{method} {path} HTTP/1.1\r\nHost: localhost\r\n{bearer}Content-Length: 0\r\nConnection: close\r\n\r\n"
    );
    let answer = exchange(&relay.admin, head.as_bytes()).await;
    (answer.status, answer.text().to_owned())
}
