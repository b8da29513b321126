//! Live activity: `/api/tail` and `wxrelay events tail`.

use std::sync::atomic::{AtomicU32, Ordering};

use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpSocket, TcpStream};

use crate::support::command::free_address;
use crate::support::http::Connection;
use crate::support::relay::{Relay, Setup};
use crate::support::target::{Reaction, Reply, Target};
use crate::support::wechat::{WeChat, event, text};
use crate::support::{eventually, soon};

#[tokio::test]
async fn each_push_and_each_attempt_is_sent_as_it_happens() {
    let (wechat, crm) = (WeChat::secure(), Target::start().await);
    crm.script([Reaction::Answer(Reply::status(500))]);
    let relay = Relay::start(wechat.account() + &crm.config("crm", "retry = [\"20ms\"]")).await;
    let mut stream = Stream::open(&relay.admin, "").await;
    relay.accept(&wechat, &text("oPerson", "a message that nobody else reads")).await;
    let output = [stream.next().await, stream.next().await, stream.next().await];
    let (pushes, attempts): (Vec<_>, Vec<_>) = output.iter().partition(|(name, _)| name == "push");
    let (push, id) = (&pushes[0].1, &pushes[0].1["event"]);
    assert_eq!(
        (&push["account"], &push["kind"], &push["result"]),
        (&"shop".into(), &"text".into(), &"accepted".into())
    );
    assert!(push["stamp"].is_i64() && push["duration_ms"].is_f64(), "{push}");
    let attempts: Vec<_> = attempts.iter().map(|(_, attempt)| attempt).collect();
    for (attempt, outcome, status) in [(attempts[0], "retry", 500), (attempts[1], "delivered", 200)] {
        assert_eq!((&attempt["outcome"], &attempt["status"]), (&outcome.into(), &status.into()), "{attempt}");
        assert_eq!((&attempt["event"], &attempt["target"]), (id, &"crm".into()));
        assert_eq!(attempt["openid"], push["openid"], "the same user");
    }
    let all = format!("{output:?}");
    assert!(!all.contains("oPerson") && !all.contains("nobody else") && !all.contains("signature"), "{all}");
}

#[tokio::test]
async fn a_filter_lets_through_what_is_asked_for_and_an_unknown_one_is_refused() {
    let (wechat, crm) = (WeChat::secure(), Target::start().await);
    let relay = Relay::start(wechat.account() + &crm.config("crm", "")).await;
    let mut scans = Stream::open(&relay.admin, "?event=SCAN").await;
    let mut attempts = Stream::open(&relay.admin, "?target=crm&from=o2").await;
    let mut others = Stream::open(&relay.admin, "?account=other").await;
    relay.accept(&wechat, &text("o1", "hello")).await;
    relay.accept(&wechat, &event("o2", "SCAN", "login_7")).await;
    assert_eq!(scans.next().await.1["kind"], "scan");
    let (name, attempt) = attempts.next().await;
    assert_eq!((name.as_str(), &attempt["kind"]), ("attempt", &"scan".into()));
    let refused = relay.get("/api/tail?colour=blue").await;
    assert_eq!(refused.status, 400);
    assert!(refused.text().contains("colour"), "{}", refused.text());
    let mut relay = relay;
    relay.stop().await;
    assert!(others.end().await, "nothing of another account, and the stream ends with the relay");
}

#[tokio::test]
async fn a_stalled_reader_blocks_nothing_and_learns_how_much_it_missed() {
    let (wechat, crm) = (WeChat::secure(), Target::start().await);
    let relay = Relay::start(wechat.account() + &crm.config("crm", "")).await;
    let mut stalled = Stream::open(&relay.admin, "?account=shop").await;
    // Refused pushes are the cheapest activity. Many are needed, as the system's buffers hold many.
    let mut storm = Connection::open(&relay.push).await.expect("the relay listens");
    let request = b"GET /wechat/events?x HTTP/1.1\r\nHost: relay.test\r\n\r\n".repeat(500);
    let mut pushed = 0_u64;
    for _ in 0..50 {
        storm.write(&request).await.expect("pushes are accepted");
        for _ in 0..500 {
            assert_eq!(soon("an answer", storm.read()).await.expect("an answer").status, 400);
            pushed += 1;
        }
    }
    relay.accept(&wechat, &text("o1", "the last one")).await;
    let (mut seen, mut missed) = (0, 0);
    loop {
        let (name, news) = stalled.next().await;
        match name.as_str() {
            "lagged" => missed += news["missed"].as_u64().expect("a number"),
            "push" if news["result"] == "accepted" => break,
            "push" => seen += 1,
            _ => {}
        }
    }
    assert!(missed > 0, "{seen} seen");
    assert!((pushed..=pushed + 1).contains(&(seen + missed)), "{seen} seen and {missed} missed of {pushed}");
}

#[tokio::test]
async fn only_so_many_can_watch() {
    let (wechat, crm) = (WeChat::secure(), Target::start().await);
    let relay = Relay::start(wechat.account() + &crm.config("crm", "")).await;
    let mut streams = Vec::new();
    for _ in 0..16 {
        streams.push(Stream::open(&relay.admin, "").await);
    }
    assert_eq!(relay.get("/api/tail").await.status, 503);
    assert_eq!(relay.get("/api/status").await.status, 200, "a watcher takes no other connection's slot");
}

#[tokio::test]
async fn events_tail_follows_a_relay_over_its_restart() {
    let (wechat, crm) = (WeChat::secure(), Target::start().await);
    let setup = Setup::new(wechat.account() + &crm.config("crm", "")).admin_at(free_address());
    let mut relay = setup.start().await;
    let people = relay.spawn(&["events", "tail"]);
    let scripts = relay.spawn(&["events", "tail", "--json", "--target", "crm"]);
    // Following begins when the relay confirms it; earlier pushes are not sent.
    let pushes = AtomicU32::new(0);
    let begun = async |relay: &Relay| {
        for tail in [&people, &scripts] {
            let before = tail.lines().len();
            eventually("news on the screen", async || {
                let content = format!("push {}", pushes.fetch_add(1, Ordering::Relaxed));
                relay.accept(&wechat, &text("o1", &content)).await;
                (tail.lines().iter().skip(before).any(|line| line.contains("delivered") || line.contains("-> crm 200")))
                    .then_some(())
            })
            .await;
        }
    };
    begun(&relay).await;
    people.find("a push", |line| line.contains("  accepted  ").then_some(())).await;
    people.find("an attempt", |line| line.contains("-> crm 200").then_some(())).await;
    let json = |line: &str| serde_json::from_str::<Value>(line).ok();
    scripts.find("an attempt", |line| json(line).filter(|news| news["what"] == "attempt")).await;
    relay.stop().await;
    people.find("line about the relay", |line| line.contains("the relay is gone").then_some(())).await;
    relay.restart().await;
    people.find("line about the relay", |line| line.contains("connected again").then_some(())).await;
    begun(&relay).await;
    assert!(scripts.lines().iter().all(|line| json(line).is_none_or(|news| news["what"] == "attempt")));
}

#[tokio::test]
async fn events_tail_without_a_relay_fails_at_once() {
    let (wechat, crm) = (WeChat::secure(), Target::start().await);
    let mut relay = Setup::new(wechat.account() + &crm.config("crm", "")).admin_at(free_address()).start().await;
    relay.stop().await;
    let finished = relay.run(&["events", "tail"]).await;
    assert_eq!(finished.code, Some(1), "{finished:?}");
    assert!(finished.stderr.contains("no relay answers at admin.listen"), "{finished:?}");
}

/// A stream of server-sent events, read line by line.
struct Stream(BufReader<TcpStream>);

impl Stream {
    /// Opens it; on return the relay sends activity.
    async fn open(address: &str, query: &str) -> Self {
        let socket = TcpSocket::new_v4().expect("a socket");
        // The system then buffers little for a client that does not read.
        socket.set_recv_buffer_size(4096).expect("a small buffer");
        let address = address.parse().expect("an address");
        let mut stream = BufReader::new(socket.connect(address).await.expect("the relay listens"));
        let request = format!("GET /api/tail{query} HTTP/1.1\r\nHost: localhost\r\n\r\n");
        stream.write_all(request.as_bytes()).await.expect("the request can be sent");
        let mut stream = Self(stream);
        let head = stream.line().await.expect("an answer");
        assert!(head.starts_with("HTTP/1.1 200"), "{head}");
        let mut kind = None;
        loop {
            let line = stream.line().await.expect("a comment that says hello");
            kind = line.strip_prefix("content-type: ").map(str::to_owned).or(kind);
            if line.starts_with(": connected") {
                break;
            }
        }
        assert_eq!(kind.as_deref(), Some("text/event-stream"));
        stream
    }

    /// The next one's name and data.
    async fn next(&mut self) -> (String, Value) {
        let mut name = String::new();
        loop {
            let line = self.line().await.expect("the stream continues");
            if let Some(said) = line.strip_prefix("event: ") {
                name = said.to_owned();
            }
            if let Some(data) = line.strip_prefix("data: ") {
                return (name, serde_json::from_str(data).expect("JSON"));
            }
        }
    }

    /// Whether it ends without a further event.
    async fn end(&mut self) -> bool {
        while let Some(line) = self.line().await {
            if line.starts_with("event: ") {
                return false;
            }
        }
        true
    }

    async fn line(&mut self) -> Option<String> {
        let mut line = String::new();
        let read = soon("a line of the stream", self.0.read_line(&mut line)).await;
        read.ok().filter(|length| *length > 0).map(|_| line.trim_end().to_owned())
    }
}
