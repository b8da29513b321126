//! HTTP as WeChat receives it: versions 1.0 and 1.1, lengths, methods.

use crate::support::http::{Answer, Connection, exchange};
use crate::support::relay::{Relay, Setup};
use crate::support::soon;
use crate::support::target::{Reaction, Reply, Target};
use crate::support::wechat::{Mode, PATH, WeChat, event, now, text, text_reply};

const REPLY: &str = "[[accounts.shop.routes]]\nmatch = { event = \"subscribe\" }\nto = [\"crm\"]\nreply = { text = \"hi\" }\n\
                     [[accounts.shop.routes]]\notherwise = true\nto = [\"crm\"]\n";

#[tokio::test]
async fn http_1_0_gets_a_length_and_the_end_of_the_connection() {
    let (relay, wechat, _crm) = relay().await;
    for clear in [text("o1", "hello"), event("o1", "subscribe", "")] {
        let mut connection = open(&relay).await;
        let answer = ask(&mut connection, &wechat.push(&clear).request(PATH)).await;
        assert_eq!(answer.status, 200);
        plain(&answer);
        assert!(connection.ends().await, "WeChat makes a new connection for every push");
    }
}

#[tokio::test]
async fn http_1_1_keeps_the_connection() {
    let (relay, wechat, crm) = relay().await;
    let mut connection = open(&relay).await;
    for clear in [text("o1", "one"), event("o1", "subscribe", ""), text("o1", "three")] {
        let answer = ask(&mut connection, &wechat.push(&clear).kept_alive(PATH)).await;
        assert_eq!((answer.status, answer.version.as_str()), (200, "HTTP/1.1"));
        plain(&answer);
    }
    crm.wait_for(3).await;
}

#[tokio::test]
async fn http_1_1_ends_the_connection_where_it_is_asked_to() {
    let (relay, wechat, _crm) = relay().await;
    let mut connection = open(&relay).await;
    let request = String::from_utf8(wechat.push(&text("o1", "hello")).kept_alive(PATH)).expect("text");
    let answer = ask(&mut connection, request.replace("keep-alive", "close").as_bytes()).await;
    assert_eq!(answer.status, 200);
    assert!(connection.ends().await);
}

#[tokio::test]
async fn chunked_pushes_are_read_and_answered_with_a_length() {
    let (relay, wechat, crm) = relay().await;
    let push = wechat.push(&text("o1", "hello"));
    let head = format!("POST {PATH}?{} HTTP/1.1\r\nHost: relay.test\r\nTransfer-Encoding: chunked\r\n\r\n", push.query);
    let (one, two) = push.body.split_at(100);
    let chunk = |part: &[u8]| [format!("{:x}\r\n", part.len()).as_bytes(), part, b"\r\n"].concat();
    let answer = exchange(&relay.push, &[head.as_bytes(), &chunk(one), &chunk(two), b"0\r\n\r\n"].concat()).await;
    assert_eq!(answer.status, 200);
    plain(&answer);
    crm.wait_for(1).await;
}

#[tokio::test]
async fn answers_are_never_compressed() {
    let (relay, wechat, _crm) = relay().await;
    let request = String::from_utf8(wechat.push(&event("o1", "subscribe", "")).request(PATH)).expect("text");
    let asked = request.replace("Accept: */*", "Accept: */*\r\nAccept-Encoding: gzip, deflate, br");
    let answer = exchange(&relay.push, asked.as_bytes()).await;
    assert!(wechat.open_reply(answer.text()).contains("hi"));
    plain(&answer);
}

#[tokio::test]
async fn the_content_type_of_a_push_makes_no_difference() {
    let (relay, wechat, crm) = relay().await;
    for kind in ["application/json", "text/xml; charset=gbk", "multipart/form-data"] {
        let request = String::from_utf8(wechat.push(&text("o1", kind)).request(PATH)).expect("text");
        let answer = exchange(&relay.push, request.replace("text/xml", kind).as_bytes()).await;
        assert_eq!(answer.status, 200, "{kind}");
    }
    crm.wait_for(3).await;
}

#[tokio::test]
async fn other_methods_are_answered_405() {
    let (relay, wechat, _crm) = relay().await;
    let query = wechat.verification(now(), "123");
    for method in ["PUT", "DELETE", "PATCH", "OPTIONS"] {
        let head = format!("{method} {PATH}?{query} HTTP/1.0\r\nHost: relay.test\r\nContent-Length: 0\r\n\r\n");
        let answer = exchange(&relay.push, head.as_bytes()).await;
        assert_eq!(answer.status, 405, "{method}");
        plain(&answer);
    }
    assert_eq!(relay.audit().await["events"], 0);
}

#[tokio::test]
async fn a_push_is_taken_without_a_host_header() {
    let (relay, wechat, crm) = relay().await;
    let request = String::from_utf8(wechat.push(&text("o1", "hello")).request(PATH)).expect("text");
    assert_eq!(exchange(&relay.push, request.replace("Host: relay.test\r\n", "").as_bytes()).await.status, 200);
    crm.wait_for(1).await;
}

#[tokio::test]
async fn a_half_closed_client_gets_its_answer() {
    let (relay, wechat, crm) = relay().await;
    let push = |clear: &str| wechat.push(clear);
    for request in [push(&text("o1", "one")).request(PATH), push(&text("o1", "two")).kept_alive(PATH)] {
        let mut connection = open(&relay).await;
        connection.write(&request).await.expect("the relay reads");
        connection.finish().await.expect("the sending side can be closed");
        assert_eq!(soon("an answer", connection.read()).await.expect("an answer").text(), "success");
        assert!(connection.ends().await);
    }
    crm.wait_for(2).await;
    let mut admin = Connection::open(&relay.admin).await.expect("the relay listens");
    admin.write(b"GET /api/status HTTP/1.1\r\nHost: localhost\r\n\r\n").await.expect("the relay reads");
    admin.finish().await.expect("the sending side can be closed");
    assert_eq!(soon("an answer", admin.read()).await.expect("an answer").status, 200);
    assert_eq!(relay.metric("wxrelay_pushes_total", &[("result", "hung_up")]).await, 0.0);
}

#[tokio::test]
async fn a_half_closed_client_gets_a_reply_that_takes_a_while() {
    let (wechat, crm) = (WeChat::secure(), Target::start().await);
    let route = "[[accounts.shop.routes]]\notherwise = true\nto = [\"crm\"]\nreply = \"crm\"\n";
    let relay = Relay::start(wechat.account() + route + &crm.config("crm", "")).await;
    crm.then(Reaction::Hold(Reply::xml(text_reply("o1", "worth it"))));
    let mut connection = open(&relay).await;
    connection.write(&wechat.push(&text("o1", "hi")).request(PATH)).await.expect("the relay reads");
    crm.wait_for(1).await;
    connection.finish().await.expect("the sending side can be closed");
    // The answer to another request shows that the relay has had the time to see the end.
    assert_eq!(relay.get("/livez").await.status, 200);
    crm.release(1);
    let answer = soon("an answer", connection.read()).await.expect("an answer");
    assert!(wechat.open_reply(answer.text()).contains("worth it"));
}

/// Two readers of such a request may see two hosts (RFC 9112, 3.2).
#[tokio::test]
async fn a_request_names_its_host_once_and_as_a_host() {
    let (relay, wechat, crm) = relay().await;
    let with = |version: &str, hosts: &str, number: u32| {
        let request = wechat.push(&text("o1", &number.to_string())).request(PATH);
        let request = String::from_utf8(request).expect("text");
        request.replace("HTTP/1.0", version).replace("Host: relay.test\r\n", hosts).into_bytes()
    };
    let malformed = ["Host: user@relay.test\r\n", "Host: relay.test, evil.test\r\n", "Host: a/b\r\n", "Host: a:b\r\n"];
    let mut refused: Vec<_> = malformed.iter().flat_map(|hosts| [("HTTP/1.0", *hosts), ("HTTP/1.1", *hosts)]).collect();
    let twice = "Host: relay.test\r\nHost: evil.test\r\n";
    refused.extend([("HTTP/1.1", ""), ("HTTP/1.0", twice), ("HTTP/1.1", twice)]);
    for (version, hosts) in refused {
        let answer = exchange(&relay.push, &with(version, hosts, 0)).await;
        assert_eq!((answer.status, answer.text()), (400, "bad"), "{version} {hosts}");
        let admin = format!("GET /livez {version}\r\n{hosts}\r\n");
        let answer = exchange(&relay.admin, admin.as_bytes()).await;
        assert_eq!(answer.status, 400, "{version} {hosts}");
        assert!(answer.json()["error"].as_str().is_some_and(|error| error.contains("Host")), "{answer:?}");
    }
    for (number, hosts) in (1..).zip(["Host: [::1]:8080\r\n", "Host: 127.0.0.1\r\n", "Host:\r\n"]) {
        assert_eq!(exchange(&relay.push, &with("HTTP/1.1", hosts, number)).await.status, 200, "{hosts}");
    }
    crm.wait_for(3).await;
    assert_eq!(relay.metric("wxrelay_pushes_total", &[("result", "malformed")]).await, 11.0);
}

#[tokio::test]
async fn a_trailing_slash_is_not_redirected() {
    let (relay, wechat, crm) = relay().await;
    let request = wechat.push(&text("o1", "hello")).request(&format!("{PATH}/"));
    assert_eq!(exchange(&relay.push, &request).await.status, 200);
    crm.wait_for(1).await;
}

#[tokio::test]
async fn the_largest_body_is_a_setting() {
    let (wechat, crm) = (WeChat::secure(), Target::start().await);
    let config = wechat.account() + &crm.config("crm", "");
    let relay = Setup::new(config).server("max_body = \"4KiB\"").start().await;
    for (length, status) in [(1000, 200), (4000, 413)] {
        let push = wechat.push(&text("o1", &"x".repeat(length)));
        assert_eq!(push.send(&relay.push).await.status, status, "{length}");
    }
    assert_eq!(relay.audit().await["events"], 1);
}

async fn relay() -> (Relay, WeChat, Target) {
    let (wechat, crm) = (WeChat::new(Mode::Secure), Target::start().await);
    let relay = Relay::start(wechat.account() + &crm.config("crm", "") + REPLY).await;
    (relay, wechat, crm)
}

async fn open(relay: &Relay) -> Connection {
    Connection::open(&relay.push).await.expect("the relay listens")
}

async fn ask(connection: &mut Connection, request: &[u8]) -> Answer {
    connection.write(request).await.expect("the relay reads");
    soon("an answer", connection.read()).await.expect("an answer")
}

/// Asserts that an answer has a length, and no chunks, compression or redirect.
fn plain(answer: &Answer) {
    assert_eq!(answer.header("content-length"), Some(answer.body.len().to_string().as_str()), "{answer:?}");
    for name in ["transfer-encoding", "content-encoding", "location"] {
        assert_eq!(answer.header(name), None, "{name}");
    }
}
