//! Behind nginx and HAProxy, which run with the files of `deploy/`: a push reaches the relay unchanged, and a forwarded
//! address is accepted from a trusted proxy only.

use crate::support::http::{Answer, exchange, exchange_from};
use crate::support::proxy::{Counter, Proxy, Software};
use crate::support::relay::{Relay, Setup};
use crate::support::target::{Reaction, Reply, Target};
use crate::support::wechat::{PATH, Push, WeChat, text};
use crate::tls::{Certificate, over_tls, over_tls_from};

/// The address of the clients of these tests; the proxy itself connects from 127.0.0.1.
const CLIENT: &str = "127.7.7.7";

#[tokio::test]
async fn nginx_passes_pushes_on_as_they_came() {
    passes_pushes_on(Software::Nginx).await;
}

#[tokio::test]
async fn haproxy_passes_pushes_on_as_they_came() {
    passes_pushes_on(Software::Haproxy).await;
}

#[tokio::test]
async fn a_503_reaches_wechat_through_either_proxy() {
    let full = Target::always(Reaction::Answer(Reply::status(503))).await;
    let upstream = full.url();
    let upstream = upstream.trim_start_matches("http://").split('/').next().expect("an address");
    let (wechat, files) = (WeChat::secure(), Certificate::new());
    for software in [Software::Nginx, Software::Haproxy].into_iter().filter(|software| !software.is_missing()) {
        let proxy = Proxy::http(software, upstream, &files.cert(), &files.key()).await;
        let push = wechat.push(&text("o1", "hello"));
        assert_eq!(push.send(&proxy.http).await.status, 503, "{software:?}");
    }
}

#[tokio::test]
async fn a_forged_address_of_an_untrusted_peer_is_not_believed() {
    let (wechat, crm) = (WeChat::secure(), Target::start().await);
    let relay = relay(&wechat, &crm).await;
    let push = wechat.push(&text("o1", "hello"));
    assert_eq!(exchange_from(CLIENT, &relay.push, &forged(&push)).await.status, 200);
    assert_eq!(relay.peer(0).await, CLIENT);
}

#[tokio::test]
async fn a_proxy_header_carries_the_client_address_through_nginx_with_tls() {
    tells_who_calls(Software::Nginx).await;
}

#[tokio::test]
async fn a_proxy_header_carries_the_client_address_through_haproxy_with_tls() {
    tells_who_calls(Software::Haproxy).await;
}

async fn tells_who_calls(software: Software) {
    if software.is_missing() || software.is_missing_for_tcp() {
        return;
    }
    let (wechat, crm, files) = (WeChat::secure(), Target::start().await, Certificate::new());
    let tls = format!("tls = {{ cert = \"{}\", key = \"{}\" }}", files.cert(), files.key());
    let server = format!("{tls}\ntrusted_proxies = [\"127.0.0.1\"]\nproxy_protocol = true");
    let relay = Setup::new(wechat.account() + &crm.config("crm", "")).server(&server).start().await;
    let proxy = Proxy::tcp(software, &relay.push).await;
    // The client's own header is inside TLS, where the proxy cannot replace it; the client is not trusted.
    let answer = over_tls_from(CLIENT, &proxy.https, &files, &forged(&wechat.push(&text("o1", "hello")))).await;
    assert!(answer.starts_with("HTTP/1.0 200 OK\r\n") && answer.ends_with("\r\n\r\nsuccess"), "{answer}");
    assert_eq!(relay.peer(0).await, CLIENT);
    assert_eq!(crm.delivery(0).await.json()["message"]["Content"], "hello");
}

async fn passes_pushes_on(software: Software) {
    if software.is_missing() {
        return;
    }
    let (wechat, crm, files) = (WeChat::secure(), Target::start().await, Certificate::new());
    let relay = relay(&wechat, &crm).await;
    let counter = Counter::before(&relay.push).await;
    let proxy = Proxy::http(software, &counter.address.to_string(), &files.cert(), &files.key()).await;

    // Pushes as WeChat sends them, with a forged address. The query must arrive unchanged, including its order.
    for count in 0..10 {
        let mut push = wechat.push(&text("o1", "hello"));
        push.query += "&odd=%2F%2f+~!*()'&empty=&flag";
        let answer = exchange_from(CLIENT, &proxy.http, &forged(&push)).await;
        plain(&answer);
        let delivery = crm.delivery(count).await;
        assert_eq!(delivery.query.as_deref(), Some(push.query.as_str()), "{software:?}");
        assert_eq!(delivery.body, push.body, "{software:?}");
        assert_eq!(relay.peer(count).await, CLIENT, "{software:?} passes on the client");
    }
    let opened = counter.opened();
    assert!(opened <= 3, "{software:?} keeps connections for other clients' pushes, not {opened} for 10");

    let answer = over_tls(&proxy.https, &files, &wechat.push(&text("o1", "sealed")).request(PATH)).await;
    assert!(answer.contains(" 200 OK\r\n") && answer.ends_with("\r\n\r\nsuccess"), "{answer}");

    let mut push = wechat.push(&text("o1", &"x".repeat(700_000)));
    push.body.resize(1 << 20, b'\n');
    assert_eq!(push.send(&proxy.http).await.status, 200, "a body of max_body through {software:?}");
    assert_eq!(crm.delivery(11).await.body.len(), 1 << 20);
    // The body is only declared: a client that still sends after an answer may lose the answer.
    push.body.push(b'\n');
    let head = push.request(PATH);
    let refused = exchange(&proxy.http, &head[..head.len() - push.body.len()]).await;
    assert_eq!(refused.status, 413, "and not a byte more through {software:?}");

    for (path, status) in [(format!("{PATH}/"), 200), (format!("{PATH}/x"), 404), ("/metrics".to_owned(), 404)] {
        let request = wechat.push(&text("o1", "elsewhere")).request(&path);
        assert_eq!(exchange(&proxy.http, &request).await.status, status, "{path} through {software:?}");
    }
    let log = proxy.access_log();
    assert!(log.contains(PATH) && !log.contains("signature"), "no query in the log of {software:?}:\n{log}");
}

async fn relay(wechat: &WeChat, crm: &Target) -> Relay {
    let config = wechat.account() + &crm.config("crm", "format = \"raw\"");
    Setup::new(config).server("trusted_proxies = [\"127.0.0.1/32\"]").start().await
}

/// The request with a forged client address.
fn forged(push: &Push) -> Vec<u8> {
    let request = String::from_utf8(push.request(PATH)).expect("text");
    request.replacen("Accept: */*", "Accept: */*\r\nX-Forwarded-For: 203.0.113.66", 1).into_bytes()
}

/// Asserts that WeChat can read the answer: it uses HTTP/1.0 and needs a length.
fn plain(answer: &Answer) {
    assert_eq!((answer.status, answer.text()), (200, "success"));
    assert_eq!(answer.header("content-length"), Some("7"));
    assert_eq!(answer.header("transfer-encoding"), None);
    assert_eq!(answer.header("content-encoding"), None);
    assert_ne!(answer.header("connection"), Some("keep-alive"));
}
