//! The PROXY protocol: the header sets the client's address, and connections without one are closed.

use serde_json::Value;

use crate::support::http::{Answer, connect_from, exchange, try_exchange};
use crate::support::relay::{Relay, Setup};
use crate::support::soon;
use crate::support::target::Target;
use crate::support::wechat::{PATH, WeChat, text};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

#[tokio::test]
async fn both_versions_and_families_tell_who_calls_and_local_is_the_balancer_itself() {
    let (wechat, _crm, relay) = relay().await;
    let version_2 = |family: u8, block: &[u8]| {
        let length = u16::try_from(block.len()).expect("short").to_be_bytes();
        [b"\r\n\r\n\0\r\nQUIT\n", &[if block.is_empty() { 0x20 } else { 0x21 }, family][..], &length, block].concat()
    };
    let v6 = [&[0x20, 1, 0x0d, 0xb8][..], &[0; 11], &[9], &[0; 16], &[1, 1, 2, 2]].concat();
    let headers = [
        (b"PROXY TCP4 203.0.113.7 192.0.2.1 4711 443\r\n".to_vec(), "203.0.113.7"),
        (b"PROXY TCP6 2001:db8::7 2001:db8::1 4711 443\r\n".to_vec(), "2001:db8::7"),
        (b"PROXY UNKNOWN\r\n".to_vec(), "127.0.0.1"),
        (version_2(0x11, &[203, 0, 113, 8, 192, 0, 2, 1, 1, 1, 2, 2]), "203.0.113.8"),
        (version_2(0x21, &v6), "2001:db8::9"),
        (version_2(0, &[]), "127.0.0.1"),
    ];
    for (count, (header, expected)) in headers.into_iter().enumerate() {
        let push = wechat.push(&text("o1", "hello")).request(PATH);
        let answer = exchange(&relay.push, &[header, push].concat()).await;
        assert_eq!((answer.status, answer.text()), (200, "success"), "{expected}");
        assert_eq!(relay.peer(count).await, expected);
    }
}

#[tokio::test]
async fn connections_without_a_header_are_closed_and_logged_once() {
    let (wechat, crm, relay) = relay().await;
    let push = wechat.push(&text("o1", "hello")).request(PATH);
    for _ in 0..50 {
        assert!(try_exchange(&relay.push, &push).await.is_err(), "closed without an answer");
    }
    let line = relay.log("the refusal", |line| line["message"] == "connection refused").await;
    assert_eq!((&line["level"], &line["peer"]), (&Value::from("WARN"), &Value::from("127.0.0.1")), "{line}");
    assert!(line["reason"].as_str().is_some_and(|reason| reason.contains("no PROXY header")), "{line}");
    let lines = relay.lines();
    assert_eq!(lines.iter().filter(|line| line.contains("connection refused")).count(), 1);

    let header = b"PROXY TCP4 203.0.113.7 192.0.2.1 4711 443\r\n".to_vec();
    assert_eq!(exchange(&relay.push, &[header, push].concat()).await.status, 200, "others are served all the same");
    crm.wait_for(1).await;
}

#[tokio::test]
async fn a_header_of_a_stranger_is_not_read() {
    let (wechat, _crm, relay) = relay().await;
    let push = wechat.push(&text("o1", "hello")).request(PATH);
    let header = b"PROXY TCP4 203.0.113.7 192.0.2.1 4711 443\r\n".to_vec();
    let mut stream = connect_from("127.9.9.9", &relay.push).await.expect("the relay listens");
    // The relay may have closed the connection already.
    stream.write_all(&[header, push].concat()).await.ok();
    let mut answer = Vec::new();
    soon("the end of the connection", stream.read_to_end(&mut answer)).await.ok();
    assert!(answer.is_empty());
    let line = relay.log("the refusal", |line| line["message"] == "connection refused").await;
    assert!(line["reason"].as_str().is_some_and(|reason| reason.contains("server.trusted_proxies")), "{line}");
    assert_eq!(relay.audit().await["events"], 0);
}

#[tokio::test]
async fn a_header_that_does_not_end_is_waited_for_no_longer_than_a_request() {
    let (_wechat, _crm, relay) = relay().await;
    let mut stream = connect_from("127.0.0.1", &relay.push).await.expect("the relay listens");
    stream.write_all(b"PROXY TCP4 203.0.113.7 ").await.expect("it can be sent");
    let mut answer = Vec::new();
    soon("the end of the connection", stream.read_to_end(&mut answer)).await.expect("closed in peace");
    assert!(answer.is_empty());
    let line = relay.log("the refusal", |line| line["message"] == "connection refused").await;
    assert!(line["reason"].as_str().is_some_and(|reason| reason.contains("in time")), "{line}");
}

#[tokio::test]
async fn the_admin_listener_speaks_no_proxy_protocol() {
    let (_wechat, _crm, relay) = relay().await;
    let Answer { status, .. } = relay.get("/readyz").await;
    assert_eq!(status, 200);
}

async fn relay() -> (WeChat, Target, Relay) {
    let (wechat, crm) = (WeChat::secure(), Target::start().await);
    let config = wechat.account() + &crm.config("crm", "");
    let server = "trusted_proxies = [\"127.0.0.1\"]\nproxy_protocol = true";
    let relay = Setup::new(config).server(server).start().await;
    (wechat, crm, relay)
}
