//! The URL verification that WeChat's console makes when an operator saves a server URL.

use crate::support::http::{Answer, exchange};
use crate::support::relay::Relay;
use crate::support::target::Target;
use crate::support::wechat::{Mode, PATH, WeChat, now};
use crate::vectors::Vector;

const ECHO: &str = "4375120948345356249";

#[tokio::test]
async fn answers_the_bare_echostr_in_every_mode() {
    for mode in [Mode::Plaintext, Mode::Compatible, Mode::Secure] {
        let wechat = WeChat::new(mode);
        let relay = relay(&wechat, "").await;
        let answer = verify(&relay, PATH, &wechat.verification(now(), ECHO)).await;
        assert_eq!((answer.status, answer.text()), (200, ECHO), "{mode:?}");
        assert_eq!(answer.header("content-type"), Some("text/plain; charset=utf-8"));
        assert_eq!(answer.header("x-content-type-options"), Some("nosniff"));
        assert_eq!(answer.header("content-length"), Some("19"));
    }
}

#[tokio::test]
async fn answers_the_official_example() {
    let vector = Vector::named("official-url-verify");
    let relay = relay(&vector.wechat(), "max_skew = \"off\"").await;
    let [signature, echostr, timestamp, nonce] =
        ["expected_signature", "echostr", "timestamp", "nonce"].map(|key| vector.get(key));
    let query = format!("signature={signature}&echostr={echostr}&timestamp={timestamp}&nonce={nonce}");
    let answer = verify(&relay, PATH, &query).await;
    assert_eq!((answer.status, answer.text()), (200, vector.get("expected_reply")));
}

#[tokio::test]
async fn a_trailing_slash_makes_no_difference() {
    let wechat = WeChat::secure();
    let relay = relay(&wechat, "").await;
    let answer = verify(&relay, &format!("{PATH}/"), &wechat.verification(now(), ECHO)).await;
    assert_eq!((answer.status, answer.text()), (200, ECHO));
}

#[tokio::test]
async fn the_order_of_the_parameters_makes_no_difference() {
    let wechat = WeChat::secure();
    let relay = relay(&wechat, "").await;
    let query = wechat.verification(now(), ECHO);
    let turned: Vec<_> = query.split('&').rev().collect();
    assert_eq!(verify(&relay, PATH, &turned.join("&")).await.status, 200);
}

#[tokio::test]
async fn the_previous_token_proves_the_url_while_tokens_are_changed() {
    let wechat = WeChat::secure();
    let relay = relay(&wechat, "previous_token = \"theonebefore\"").await;
    let before = WeChat { token: "theonebefore".to_owned(), ..wechat.clone() };
    for wechat in [before, wechat] {
        assert_eq!(verify(&relay, PATH, &wechat.verification(now(), ECHO)).await.status, 200, "{}", wechat.token);
    }
}

#[tokio::test]
async fn is_counted_and_stores_nothing() {
    let wechat = WeChat::secure();
    let relay = relay(&wechat, "").await;
    verify(&relay, PATH, &wechat.verification(now(), ECHO)).await;
    let labels = [("account", "shop"), ("kind", "verify")];
    assert_eq!(relay.metric("wxrelay_pushes_total", &labels).await, 1.0);
    assert_eq!(relay.audit().await["events"], 0);
}

async fn relay(wechat: &WeChat, lines: &str) -> Relay {
    let crm = Target::start().await;
    Relay::start(format!("{}{lines}\n{}", wechat.account(), crm.config("crm", ""))).await
}

async fn verify(relay: &Relay, path: &str, query: &str) -> Answer {
    let head = "User-Agent: Mozilla/4.0\r\nAccept: */*\r\nHost: relay.test\r\nPragma: no-cache\r\nConnection: close";
    exchange(&relay.push, format!("GET {path}?{query} HTTP/1.0\r\n{head}\r\n\r\n").as_bytes()).await
}
