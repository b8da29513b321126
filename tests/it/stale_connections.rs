//! A connection that a target closed while it was idle costs no reply: the awaited first attempt is repeated once.
//!
//! Sources: InsForge/InsForge #1813, emqxarchive/emqx-web-hook #271. Servers close idle connections (Node and uvicorn
//! after 5 s, gunicorn after 2 s), and a request may be sent just then. Here the target closes at a connection's second
//! request, which makes the race certain.

use std::io::ErrorKind;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::support::relay::Relay;
use crate::support::target::{Delivery, Reaction, Reply, Target};
use crate::support::wechat::{WeChat, element, event, text, text_reply};
use crate::tls::Certificate;

const ROUTES: &str = "[[accounts.shop.routes]]\nmatch = { msg_type = \"text\" }\nto = [\"crm\"]\nreply = \"crm\"\n\
                      [[accounts.shop.routes]]\notherwise = true\nto = [\"crm\"]\n";

#[tokio::test]
async fn an_awaited_first_attempt_is_repeated_once_on_a_fresh_connection() {
    let wechat = WeChat::secure();
    let files = Certificate::new();
    for secured in [false, true] {
        let crm = if secured { Target::secured(files.acceptor()).await } else { Target::start().await };
        let ca = format!("ca = \"{}\"\n", files.cert());
        let settings = format!("{}retry = [\"1h\"]", if secured { &ca } else { "" });
        let relay = Relay::start(wechat.account() + ROUTES + &crm.config("crm", &settings)).await;
        for (round, reactions) in
            [vec![reply("one")], vec![Reaction::Close, reply("two")], vec![reply("three")]].into_iter().enumerate()
        {
            crm.script(reactions);
            let clear = wechat.open_reply(relay.accept(&wechat, &text("o1", "hi")).await.text());
            let expected = ["one", "two", "three"][round];
            assert_eq!(element(&clear, "Content").as_deref(), Some(expected), "secured: {secured}");
        }
        relay.audited("delivered", 3).await;
        let deliveries = crm.deliveries();
        let (ids, attempts) = columns(&deliveries);
        assert_eq!(attempts, ["1", "1", "1", "1"], "the repeat is the same attempt");
        assert!(ids[1] == ids[2] && ids[0] != ids[1] && ids[2] != ids[3], "{ids:?}");
        let attempt = relay.attempt(ids[1], "crm", 1, |_| true).await;
        assert_eq!((&attempt["status"], &attempt["error"]), (&200.into(), &serde_json::Value::Null), "{attempt}");
    }
}

#[tokio::test]
async fn it_is_repeated_once_only() {
    let (wechat, crm) = (WeChat::secure(), Target::start().await);
    let relay = Relay::start(wechat.account() + ROUTES + &crm.config("crm", "retry = [\"20ms\"]")).await;
    crm.script([reply("one"), Reaction::Close, Reaction::Close, reply("late")]);
    relay.accept(&wechat, &text("o1", "hi")).await;
    assert_eq!(relay.accept(&wechat, &text("o1", "hi")).await.text(), "success");
    let deliveries = crm.wait_for(4).await;
    assert_eq!(columns(&deliveries).1, ["1", "1", "1", "2"]);
    relay.audited("delivered", 2).await;
}

#[tokio::test]
async fn a_fresh_connection_and_an_attempt_that_nobody_waits_for_are_not_repeated() {
    let (wechat, crm) = (WeChat::secure(), Target::start().await);
    let relay = Relay::start(wechat.account() + ROUTES + &crm.config("crm", "retry = [\"20ms\"]")).await;
    // A connection that was not used before.
    crm.script([Reaction::Close, reply("late")]);
    assert_eq!(relay.accept(&wechat, &text("o1", "hi")).await.text(), "success");
    assert_eq!(columns(&crm.wait_for(2).await).1, ["1", "2"]);
    // A connection that was used, where nobody waits for a reply.
    crm.script([Reaction::Close, reply("unasked")]);
    relay.accept(&wechat, &event("o1", "CLICK", "menu")).await;
    assert_eq!(columns(&crm.wait_for(4).await).1[2..], ["1", "2"]);
    relay.audited("delivered", 2).await;
}

#[tokio::test]
async fn nothing_is_repeated_once_any_of_the_answer_has_come() {
    for (sent, repeated) in [
        ("", true),
        ("HTTP/1.1 200 OK\r\ncontent-le", false),
        ("H", false),
        ("HTTP/1.1 103 Early Hints\r\n\r\n", false),
        ("HTTP/1.1 200 OK\r\ncontent-length: 50\r\n\r\n<xml>", false),
    ] {
        for reset in [false, true] {
            let wechat = WeChat::secure();
            let (address, requests) = closing_at_the_second(sent, reset).await;
            let crm = format!("[targets.crm]\nurl = \"http://{address}/\"\nformat = \"json\"\nretry = [\"1h\"]\n");
            let relay = Relay::start(wechat.account() + ROUTES + &crm).await;
            let first = relay.accept(&wechat, &text("o1", "hi")).await;
            assert!(wechat.open_reply(first.text()).contains("answered"), "{sent}");
            let second = relay.accept(&wechat, &text("o1", "hi")).await;
            assert_eq!(second.text() == "success", !repeated, "{sent:?}, reset: {reset}");
            assert_eq!(requests.load(Ordering::Relaxed), if repeated { 3 } else { 2 }, "{sent:?}, reset: {reset}");
        }
    }
}

fn reply(text: &str) -> Reaction {
    Reaction::Answer(Reply::xml(text_reply("o1", text)))
}

/// The event ids and the numbers of the attempts.
fn columns(deliveries: &[Delivery]) -> (Vec<&str>, Vec<&str>) {
    deliveries.iter().map(|one| (one.header("wxrelay-event-id"), one.header("wxrelay-attempt"))).unzip()
}

/// A server that answers the first request of each connection with a reply, and the second with `sent`, after which it
/// closes the connection or resets it. Returns its address, and how many requests it got.
async fn closing_at_the_second(sent: &'static str, reset: bool) -> (String, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
    let address = listener.local_addr().expect("a bound socket has an address").to_string();
    let requests = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&requests);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(serve(stream, sent, reset, Arc::clone(&counted)));
        }
    });
    (address, requests)
}

async fn serve(mut stream: TcpStream, sent: &str, reset: bool, requests: Arc<AtomicUsize>) -> std::io::Result<()> {
    let body = text_reply("o1", "answered");
    let whole = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len());
    for answer in [whole.as_str(), sent] {
        read_request(&mut stream).await?;
        requests.fetch_add(1, Ordering::Relaxed);
        stream.write_all(answer.as_bytes()).await?;
    }
    if reset {
        // What was sent has to arrive before the reset, which may overtake it: the relay reads it first on loopback.
        stream.set_zero_linger()?;
    }
    Ok(())
}

/// Reads a request with a Content-Length.
async fn read_request(stream: &mut TcpStream) -> std::io::Result<()> {
    let (mut read, mut buffer) = (Vec::new(), [0; 4096]);
    loop {
        let text = String::from_utf8_lossy(&read);
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length =
                head.lines().find_map(|line| line.to_ascii_lowercase().strip_prefix("content-length: ")?.parse().ok());
            if body.len() >= length.unwrap_or(0) {
                return Ok(());
            }
        }
        let count = stream.read(&mut buffer).await?;
        if count == 0 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        read.extend_from_slice(&buffer[..count]);
    }
}
