//! The console without JavaScript, as a browser asks for it: login, pages, forms, and who is kept out.

use crate::support::http::{Answer, exchange};
use crate::support::relay::{Relay, Setup};
use crate::support::target::{Reaction, Reply, Target};
use crate::support::wechat::{WeChat, event, text};

const USERS: &str = "token = \"the-admin-token-of-the-tests\"\n\
    users.wang = { token = \"the-token-of-wang-in-tests\", role = \"viewer\" }\n";
const PAGES: [&str; 5] = ["/console/", "/console/dead", "/console/events", "/console/live", "/console/targets/crm"];
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; \
                      form-action 'self'; base-uri 'none'; frame-ancestors 'none'";

#[tokio::test]
async fn every_page_is_there_with_a_strict_policy_in_both_languages() {
    let (relay, wechat, crm) = relay("").await;
    relay.accept(&wechat, &text("o1", "hello")).await;
    let id = crm.delivery(0).await.header("wxrelay-event-id").to_owned();
    let browser = Browser::new(&relay, "");
    let pages = PAGES.map(str::to_owned).into_iter().chain([format!("/console/events/{id}")]);
    for path in pages {
        for (language, word) in [("en", "Dead letters"), ("zh-CN", "死信")] {
            let page = browser.ask("GET", &path, &format!("Accept-Language: {language}\r\n"), "").await;
            assert_eq!(page.status, 200, "{path}: {}", page.text());
            assert_eq!(page.header("content-security-policy"), Some(POLICY), "{path}");
            assert!(page.header("content-type").is_some_and(|kind| kind.starts_with("text/html")), "{path}");
            assert!(page.text().contains(word) && page.text().contains(&format!("lang=\"{language}\"")), "{path}");
            assert!(!page.text().contains(" style=") && !page.text().contains("<script>"), "{path}: nothing is inline");
            let links: Vec<&str> = attributes(page.text(), "href").chain(attributes(page.text(), "src")).collect();
            assert!(links.len() > 8, "{path}: {links:?}");
            for link in links {
                let followed = browser.ask("GET", &link.replace("&amp;", "&"), "", "").await;
                assert!([200, 303].contains(&followed.status), "{path} leads to {link}: {}", followed.status);
            }
        }
    }
    assert_eq!(browser.ask("GET", "/", "", "").await.header("location"), Some("/console/"));
    let missing = browser.ask("GET", "/console/targets/nobody", "", "").await;
    assert!(missing.status == 404 && missing.text().contains("no target of this name"), "{}", missing.text());
}

#[tokio::test]
async fn dead_letters_are_retried_from_the_group_to_a_clean_audit() {
    let (relay, wechat, crm) = relay("").await;
    crm.then(Reaction::Answer(Reply::status(410)));
    for number in 0..60 {
        relay.accept(&wechat, &text("o1", &format!("message {number}"))).await;
    }
    relay.audited("dead", 60).await;
    let browser = Browser::new(&relay, "");
    let page = browser.page("/console/dead?target=crm").await;
    assert_eq!(page.matches("<tr data-id=").count(), 50, "a page of letters");
    assert!(page.contains("rel=\"next\""), "and a link to the others");
    let asked = browser.send(&page, "/console/dead", &[("action", "retry"), ("target", "crm")]).await;
    assert!(asked.contains("60: crm"), "all of them, not the visible ones: {asked}");
    assert_eq!(relay.audit().await["dead"], 60, "nothing happens before that is confirmed");
    crm.then(Reaction::Answer(Reply::status(200)));
    let done = browser.send(&asked, "/console/dead", &[("action", "retry"), ("target", "crm"), ("sure", "yes")]).await;
    assert!(done.contains("60"), "{done}");
    let audit = relay.audited("delivered", 60).await;
    assert_eq!((&audit["dead"], &audit["unaccounted"]), (&0.into(), &0.into()));
}

#[tokio::test]
async fn a_target_is_paused_resumed_and_probed() {
    let (relay, ..) = relay("").await;
    let (browser, path) = (Browser::new(&relay, ""), "/console/targets/crm");
    let page = browser.page(path).await;
    browser.send(&page, path, &[("action", "pause")]).await;
    assert!(browser.page(path).await.contains("‖ paused") && browser.page("/console/").await.contains("‖ paused"));
    browser.send(&page, path, &[("action", "resume")]).await;
    assert!(browser.page(path).await.contains("✓ up"));
    let probed = browser.send(&page, path, &[("action", "probe")]).await;
    assert!(probed.contains("id=\"result\""), "{probed}");
}

#[tokio::test]
async fn a_session_begins_with_a_token_ends_by_logout_and_opens_no_api() {
    let (relay, ..) = relay(USERS).await;
    let nobody = Browser::new(&relay, "");
    for path in PAGES {
        let answer = nobody.ask("GET", path, "", "").await;
        let to = answer.header("location").unwrap_or_default();
        assert!(answer.status == 303 && to.starts_with("/console/login?next=%2Fconsole"), "{path}: {to}");
    }
    let login = nobody.page("/console/login").await;
    assert!(!login.contains("wxrelay_") && !login.contains("<nav"), "the login page shows nothing else: {login}");
    let wrong = nobody.post(&login, "/console/login", &[("token", "a-wrong-token")]).await;
    assert!(wrong.status == 401 && wrong.text().contains("not known"), "{}", wrong.text());

    let browser = nobody.log_in("the-admin-token-of-the-tests").await;
    let page = browser.page("/console/").await;
    assert!(page.contains("admin (operator)") && page.contains("Log out"), "{page}");
    for (method, path) in [("GET", "/api/status"), ("POST", "/api/targets/crm/pause"), ("GET", "/metrics")] {
        assert_eq!(browser.ask(method, path, "", "").await.status, 401, "a stolen cookie on {path}");
    }
    let out = browser.post(&page, "/console/logout", &[]).await;
    assert_eq!((out.status, out.header("location")), (303, Some("/console/login")));
    assert_eq!(browser.ask("GET", "/console/", "", "").await.status, 303, "the cookie is worth nothing any more");
}

#[tokio::test]
async fn a_viewer_is_refused_on_every_form_and_sees_nothing_personal() {
    let (relay, wechat, crm) = relay(USERS).await;
    relay.accept(&wechat, &text("o-of-a-user-who-is-secret", "a very private text")).await;
    let id = crm.delivery(0).await.header("wxrelay-event-id").to_owned();
    let viewer = Browser::new(&relay, "").log_in("the-token-of-wang-in-tests").await;
    let page = viewer.page("/console/").await;
    for path in forms() {
        let answer = viewer.post(&page, &path, &[("action", "pause"), ("sure", "yes")]).await;
        let expected = if path == "/console/logout" { 303 } else { 403 };
        assert_eq!(answer.status, expected, "{path}: {}", answer.text());
    }
    let viewer = Browser::new(&relay, "").log_in("the-token-of-wang-in-tests").await;
    for path in ["/console/events".to_owned(), format!("/console/events/{id}")] {
        let page = viewer.page(&path).await;
        assert!(page.contains(&id) && !page.contains("o-of-a-user") && !page.contains("private"), "{path}: {page}");
        assert!(!page.contains("data-action"), "{path}: {page}");
    }
}

#[tokio::test]
async fn openid_and_text_are_shown_when_asked_for_and_that_is_logged() {
    let (relay, wechat, crm) = relay("").await;
    relay.accept(&wechat, &text("o-of-a-user-who-is-secret", "a very private text")).await;
    let path = format!("/console/events/{}", crm.delivery(0).await.header("wxrelay-event-id"));
    let browser = Browser::new(&relay, "");
    let page = browser.page(&path).await;
    assert!(!page.contains("o-of-a-user") && !page.contains("private"), "{page}");
    let shown = browser.send(&page, &path, &[("action", "show")]).await;
    assert!(shown.contains("o-of-a-user-who-is-secret") && shown.contains("a very private text"), "{shown}");
    let line = relay.log("the action", |line| line["message"] == "operator action").await;
    assert_eq!((&line["who"], &line["action"]), (&"this machine".into(), &"show".into()));
}

#[tokio::test]
async fn a_form_from_elsewhere_or_without_its_token_is_refused() {
    let (relay, ..) = relay(USERS).await;
    let browser = Browser::new(&relay, "").log_in("the-admin-token-of-the-tests").await;
    let page = browser.page("/console/").await;
    let token = form_token(&page);
    for path in forms() {
        for headers in [
            "Sec-Fetch-Site: same-site\r\n",
            "Sec-Fetch-Site: cross-site\r\n",
            "Sec-Fetch-Site: none\r\n",
            "Origin: http://127.0.0.1:1\r\n",
            "Origin: null\r\n",
            "",
        ] {
            let answer = browser.ask("POST", &path, headers, &format!("form={token}&action=pause")).await;
            assert_eq!(answer.status, 403, "{path} {headers}");
        }
        for body in ["action=pause", "form=&action=pause", "form=0123456789abcdef&action=pause"] {
            let answer = browser.ask("POST", &path, "Sec-Fetch-Site: same-origin\r\n", body).await;
            assert_eq!(answer.status, 403, "{path} {body}");
        }
    }
    let other = Browser::new(&relay, "").log_in("the-admin-token-of-the-tests").await;
    let form = format!("form={token}&action=pause");
    let answer = other.ask("POST", "/console/targets/crm", "Sec-Fetch-Site: same-origin\r\n", &form).await;
    assert_eq!(answer.status, 403, "the token of another session");
    let frame = "Sec-Fetch-Site: cross-site\r\nSec-Fetch-Mode: navigate\r\nSec-Fetch-Dest: iframe\r\n";
    assert_eq!(browser.ask("GET", "/console/", frame, "").await.status, 403, "in a frame");
    let (local, ..) = self::relay("").await;
    let proxied = "GET /console/ HTTP/1.1\r\nHost: 10.0.0.5\r\nConnection: close\r\n\r\n";
    assert_eq!(exchange(&local.admin, proxied.as_bytes()).await.status, 403, "without a token only on this machine");
    let rebound = format!(
        "GET /console/ HTTP/1.1\r\nHost: evil.example\r\nCookie: {}\r\nConnection: close\r\n\r\n",
        browser.cookie
    );
    assert_eq!(exchange(&relay.admin, rebound.as_bytes()).await.status, 403, "a name that leads to this machine");
}

#[tokio::test]
async fn hostile_texts_are_drawn_as_text_on_every_page() {
    let (relay, wechat, crm) = relay("").await;
    let hostile = "\"><script>alert(1)</script><img src=x onerror=alert(2)>'\u{202e}";
    crm.then(Reaction::Answer(Reply { status: 410, ..Reply::body("text/plain", hostile) }));
    relay.accept(&wechat, &event("o1", "SCAN", hostile)).await;
    relay.audited("dead", 1).await;
    let path = format!("/console/events/{}", crm.delivery(0).await.header("wxrelay-event-id"));
    let browser = Browser::new(&relay, "");
    let shown = browser.send(&browser.page(&path).await, &path, &[("action", "show")]).await;
    assert!(shown.contains("&lt;script&gt;alert(1)") && shown.contains("\\u202e"), "{shown}");
    let searched = browser.page(&format!("/console/events?account={}", percent(hostile))).await;
    for page in [&shown, &searched, &browser.page("/console/dead").await, &browser.page("/console/").await] {
        assert!(!page.contains("<script>") && !page.contains("<img"), "{page}");
        assert!(!page.contains('\u{202e}'), "{page}");
    }
}

#[tokio::test]
async fn without_the_console_nothing_is_there() {
    let (relay, ..) = relay("console = false\n").await;
    for path in ["/", "/console/", "/console/login", "/console/app.js"] {
        assert_eq!(relay.get(path).await.status, 404, "{path}");
    }
}

/// Every route that changes something, as the router has them.
fn forms() -> Vec<String> {
    let source = include_str!("../../src/admin/console/mod.rs");
    let changing = source.lines().filter(|line| line.contains(".route(\"") && line.contains(".post("));
    let paths = changing.filter_map(|line| line.split('"').nth(1)).filter(|path| *path != "/console/login");
    let paths: Vec<String> =
        paths.map(|path| path.replace("{name}", "crm").replace("{id}", "evt_1a1fe9c9a6a00000")).collect();
    assert!(paths.len() > 3, "{paths:?}: is the router where it was?");
    paths
}

struct Browser<'r> {
    relay: &'r Relay,
    cookie: String,
}

impl<'r> Browser<'r> {
    fn new(relay: &'r Relay, cookie: &str) -> Self {
        Self { relay, cookie: cookie.to_owned() }
    }

    async fn ask(&self, method: &str, path: &str, headers: &str, body: &str) -> Answer {
        let cookie = if self.cookie.is_empty() { String::new() } else { format!("Cookie: {}\r\n", self.cookie) };
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: {}\r\n{headers}{cookie}Content-Length: {}\r\nConnection: close\r\n\r\n{body}",
            self.relay.admin,
            body.len()
        );
        exchange(&self.relay.admin, request.as_bytes()).await
    }

    async fn page(&self, path: &str) -> String {
        let answer = self.ask("GET", path, "Accept-Language: en\r\n", "").await;
        assert_eq!(answer.status, 200, "{path}: {}", answer.text());
        answer.text().to_owned()
    }

    /// Sends a form of the page.
    async fn post(&self, page: &str, path: &str, fields: &[(&str, &str)]) -> Answer {
        let fields = fields.iter().map(|(key, value)| format!("&{key}={}", percent(value)));
        let body = format!("form={}{}", form_token(page), fields.collect::<String>());
        let headers = "Accept-Language: en\r\nSec-Fetch-Site: same-origin\r\n";
        self.ask("POST", path, headers, &body).await
    }

    async fn send(&self, page: &str, path: &str, fields: &[(&str, &str)]) -> String {
        let answer = self.post(page, path, fields).await;
        assert!([200, 303].contains(&answer.status), "{path}: {} {}", answer.status, answer.text());
        answer.text().to_owned()
    }

    async fn log_in(&self, token: &str) -> Browser<'r> {
        let answer = self.post(&self.page("/console/login").await, "/console/login", &[("token", token)]).await;
        assert_eq!(answer.status, 303, "{}", answer.text());
        let cookie = answer.header("set-cookie").expect("a cookie").to_owned();
        assert!(cookie.contains("HttpOnly") && cookie.contains("SameSite=Strict"), "{cookie}");
        Browser::new(self.relay, cookie.split(';').next().expect("a pair"))
    }
}

async fn relay(admin: &str) -> (Relay, WeChat, Target) {
    let (wechat, crm) = (WeChat::secure(), Target::start().await);
    let relay = Setup::new(wechat.account() + &crm.config("crm", "")).admin(admin).start().await;
    (relay, wechat, crm)
}

fn form_token(page: &str) -> String {
    let (_, rest) = page.split_once("name=\"form\" value=\"").expect("a form");
    rest.split('"').next().expect("a value").to_owned()
}

fn attributes<'p>(page: &'p str, name: &str) -> impl Iterator<Item = &'p str> {
    let start = format!(" {name}=\"");
    let found: Vec<&str> = page.split(&*start).skip(1).filter_map(|rest| rest.split('"').next()).collect();
    found.into_iter().filter(|link| link.starts_with('/'))
}

fn percent(text: &str) -> String {
    text.bytes().map(|byte| format!("%{byte:02x}")).collect()
}
