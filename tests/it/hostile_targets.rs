//! Hostile targets, and names that resolve to forbidden addresses: the relay keeps working with bounded memory, and
//! other targets are served.

use std::fs;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio::time::{self, Instant};

use crate::support::command::{run, wxrelay};
use crate::support::relay::{Relay, Setup};
use crate::support::target::{Reaction, Reply, Target};
use crate::support::wechat::{WeChat, text};
use crate::support::{eventually, soon};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

/// The default reply budget: WeChat must be answered within it.
const BUDGET: Duration = Duration::from_millis(4500);

/// More bytes than the sockets and buffers on the way can hold of an unread answer.
const ON_THE_WAY: u64 = 16 * MIB;

#[tokio::test]
async fn a_name_that_leads_to_this_machine_is_refused_at_the_connection() {
    let (wechat, inside) = (WeChat::secure(), Target::start().await);
    let port = inside.url().rsplit_once(':').expect("a port").1.to_owned();
    let target = |name: &str, host: &str, settings: &str| {
        format!("[targets.{name}]\nurl = \"http://{host}:{port}\"\nformat = \"json\"\nretry = [\"20ms\"]\n{settings}\n")
    };
    let config = wechat.account()
        + &target("denied", "localhost", "deny_private = true")
        + &target("free", "localhost", "deny_private = false");
    let relay = Relay::start(config).await;
    relay.accept(&wechat, &text("o1", "hello")).await;
    let event = inside.delivery(0).await.header("wxrelay-event-id").to_owned();
    for number in [1, 2] {
        let attempt = relay.attempt(&event, "denied", number, |_| true).await;
        let error = attempt["error"].as_str().unwrap_or_default().to_owned();
        assert!(error.contains("denied: ") && error.contains("loopback"), "{attempt}");
        assert!(attempt["status"].is_null(), "{attempt}");
    }
    let audit = relay.audited("dead", 1).await;
    assert_eq!(audit["delivered"], 1);
    assert_eq!(inside.deliveries().len(), 1, "only the one that may");
    // The commands that check targets report the same, and make no connection either.
    let online = relay.run(&["check", "--online"]).await;
    assert!(online.stdout.contains("denied: "), "{}", online.stdout);
}

#[tokio::test]
async fn an_address_that_is_denied_is_a_config_error_in_every_form() {
    let mut tried = 0;
    for host in [
        "127.0.0.1",
        "127.1",
        "0x7f.1",
        "0177.0.0.1",
        "2130706433",
        "0x7f000001",
        "0",
        "10.0.0.1",
        "100.100.100.200",
        "169.254.169.254",
        "0xa9fea9fe",
        "172.16.0.1",
        "192.168.1.1",
        "224.0.0.1",
        "255.255.255.255",
        "203.0.113.1",
        "[::]",
        "[::1]",
        "[::127.0.0.1]",
        "[::ffff:127.0.0.1]",
        "[::ffff:a9fe:a9fe]",
        "[64:ff9b::7f00:1]",
        "[64:ff9b:1::1]",
        "[2002:7f00:1::]",
        "[fd00:ec2::254]",
        "[fe80::1]",
        "[ff02::1]",
    ] {
        for (settings, code) in [("deny_private = true", 78), ("deny_private = false", 0), ("", 0)] {
            let finished = check(&format!("url = \"http://{host}/hook\"\n{settings}")).await;
            assert_eq!(finished.code, Some(code), "{host}, {settings}: {finished:?}");
            assert_eq!(
                finished.stderr.contains("targets.crm.deny_private: "),
                code == 78,
                "{host}: {}",
                finished.stderr
            );
            tried += 1;
        }
    }
    for host in ["1.1.1.1", "[2606:4700::1111]", "[64:ff9b::808:808]", "crm.example", "localhost"] {
        let finished = check(&format!("url = \"http://{host}/hook\"\ndeny_private = true")).await;
        assert_eq!(finished.code, Some(0), "{host}: {finished:?}");
        tried += 1;
    }
    // The same rule applies to the provider's own domain.
    let finished =
        check("provider = \"bamboocloud\"\ndomain = \"127.1:8443\"\nidp_id = \"1\"\ndeny_private = true").await;
    assert_eq!(finished.code, Some(78), "{finished:?}");
    println!("{tried} URLs");
}

#[tokio::test]
async fn with_a_proxy_the_proxy_must_deny_and_check_says_so() {
    let finished = check("url = \"http://crm.example/\"\nproxy = \"http://127.0.0.1:3128\"\ndeny_private = true").await;
    assert_eq!(finished.code, Some(0), "{finished:?}");
    assert!(finished.stderr.contains("targets.crm.deny_private: the proxy resolves the name"), "{}", finished.stderr);
}

#[tokio::test]
async fn a_redirect_into_the_machine_or_to_the_clouds_metadata_is_not_followed() {
    let (wechat, trap) = (WeChat::secure(), Target::start().await);
    let places = [trap.url(), "http://169.254.169.254/latest/meta-data/".to_owned(), "//[::1]/".to_owned()];
    let (mut config, mut targets) = (wechat.account(), Vec::new());
    for status in [301, 302, 303, 307, 308] {
        let target = Target::start().await;
        target.script(places.iter().map(|place| {
            let headers = vec![("location", place.clone()), ("refresh", format!("0; url={place}"))];
            Reaction::Answer(Reply { headers, ..Reply::status(status) })
        }));
        config += &target.config(&format!("t{status}"), "retry = [\"10ms\", \"10ms\", \"10ms\"]");
        targets.push(target);
    }
    let relay = Relay::start(config).await;
    relay.accept(&wechat, &text("o1", "hello")).await;
    relay.audited("delivered", targets.len() as u64).await;
    for target in &targets {
        let deliveries = target.deliveries();
        assert_eq!(deliveries.len(), places.len() + 1, "each redirect is a failed attempt");
        assert!(deliveries.iter().all(|delivery| delivery.method == "POST" && delivery.path == "/hook"));
    }
    assert_eq!(trap.deliveries().len(), 0);
}

#[tokio::test]
async fn hostile_answers_are_cut_cost_no_memory_and_hold_nobody_up() {
    const PUSHES: u64 = 4;
    let wechat = WeChat::secure();
    let headers = Hostile::start(Answer::EndlessHeaders).await;
    let status = Hostile::start(Answer::EndlessStatus).await;
    let drip = Hostile::start(Answer::Drip).await;
    let flood = Hostile::start(Answer::Flood(1 << 30)).await;
    let endless = Hostile::start(Answer::EndlessChunks).await;
    let informs = Hostile::start(Answer::EndlessInformation).await;
    let hostile = [
        ("headers", &headers, false),
        ("status", &status, false),
        ("drip", &drip, true),
        ("flood", &flood, true),
        ("endless", &endless, true),
        ("informs", &informs, false),
    ];
    let good = Target::start().await;
    let mut config = wechat.account() + &good.config("good", "");
    for (name, target, _) in hostile {
        let url = format!("http://{}/", target.address);
        config += &format!("[targets.{name}]\nurl = \"{url}\"\ntimeout = \"2s\"\nretry = []\nformat = \"json\"\n");
    }
    let relay = Setup::new(config).log("level = \"info\"").start().await;
    relay.accept(&wechat, &text("o1", "warm")).await;
    good.wait_for(1).await;
    let before = memory(&relay);
    // Fewer failures than open the circuit breaker: then the target would get single probes.
    for _ in 1..PUSHES {
        let sent = Instant::now();
        assert_eq!(relay.accept(&wechat, &text("o1", "hello")).await.text(), "success");
        assert!(sent.elapsed() < BUDGET, "an answer took {:?}", sent.elapsed());
    }
    good.wait_for(usize::try_from(PUSHES).expect("few")).await;
    // Each delivery has ended: with a 2xx it is delivered, whatever follows; all others are dead after one attempt.
    let delivered = hostile.iter().filter(|(_, _, delivers)| *delivers).count() as u64;
    let audit = relay.audited("pending", 0).await;
    assert_eq!(audit["delivered"], PUSHES * (delivered + 1), "{audit}");
    assert_eq!(audit["dead"], PUSHES * (hostile.len() as u64 - delivered), "{audit}");
    for (name, target, _) in hostile {
        let (written, taken) = (target.written.load(Ordering::Relaxed), target.taken.load(Ordering::Relaxed));
        assert!(taken >= PUSHES, "{name}: {taken} deliveries");
        // Hints are skipped until the target's timeout; everything else is read up to a limit.
        let bounded = name == "informs" || written < taken * ON_THE_WAY;
        assert!(bounded, "{name}: {} KiB in {taken} answers were read", written / KIB);
        // Nothing is read any more, so every connection ends.
        eventually(&format!("the end of {name}'s connections"), async || {
            (target.open.load(Ordering::Relaxed) == 0).then_some(())
        })
        .await;
    }
    // The test does not wait for its attempt: hints would keep a thread busy until the timeout.
    let event = good.delivery(0).await.header("wxrelay-event-id").to_owned();
    let attempt = relay.attempt(&event, "informs", 1, |_| true).await;
    assert_eq!(attempt["error"], "too many interim answers (1xx)", "{attempt}");
    let after = memory(&relay);
    println!("memory: {} KiB before, {} KiB at most", before / KIB, after / KIB);
    assert!(after < before + 48 * MIB, "{} KiB before, {} KiB at most", before / KIB, after / KIB);
    // Each log line has a bounded length.
    let longest = relay.lines().iter().map(String::len).max();
    assert!(longest.is_some_and(|longest| longest < 4096), "{longest:?}");
}

#[tokio::test]
async fn bombs_and_split_headers_in_a_reply_reach_no_user() {
    let (wechat, bot) = (WeChat::secure(), Target::start().await);
    let route = "[[accounts.shop.routes]]\notherwise = true\nto = [\"bot\"]\nreply = \"bot\"\n";
    let relay = Relay::start(wechat.account() + route + &bot.config("bot", "")).await;
    let laughs: String = (1..10).fold("<!ENTITY a0 \"ha\">".to_owned(), |dtd, level| {
        dtd + &format!("<!ENTITY a{level} \"{}\">", format!("&a{};", level - 1).repeat(10))
    });
    let text_of = |content: &str| {
        format!("<xml><ToUserName>o1</ToUserName><MsgType>text</MsgType><Content>{content}</Content></xml>")
    };
    let (depth, json) = (20_000, "{\"reply\":{\"msg_type\":\"text\",\"content\":");
    let bombs = [
        ("an entity bomb", format!("<!DOCTYPE xml [{laughs}]>{}", text_of("&a9;"))),
        ("an external entity", format!("<!DOCTYPE x [<!ENTITY x SYSTEM \"file:///etc/passwd\">]>{}", text_of("&x;"))),
        ("a parameter entity", format!("<!DOCTYPE x [<!ENTITY % p SYSTEM \"http://127.0.0.1/\">%p;]>{}", text_of("x"))),
        ("an unknown entity", text_of("&nosuch;")),
        ("elements without end", "<a>".repeat(depth)),
        ("deep elements", format!("<xml>{}{}</xml>", "<a>".repeat(6_000), "</a>".repeat(6_000))),
        ("attributes without end", format!("<xml {}/>", "a='1' ".repeat(9_000))),
        ("deep lists", format!("{json}{}", "[".repeat(depth))),
        ("deep objects", format!("{json}{}", "{\"a\":".repeat(9_000))),
        ("a number without end", format!("{json}{}}}}}", "9".repeat(60_000))),
        (
            "an XInclude",
            "<xml xmlns:x=\"http://www.w3.org/2001/XInclude\"><x:include href=\"/etc/passwd\"/></xml>".to_owned(),
        ),
    ];
    let count = bombs.len();
    for (index, (what, body)) in bombs.into_iter().enumerate() {
        bot.script([Reaction::Answer(Reply::xml(body))]);
        let sent = Instant::now();
        let answer = relay.accept(&wechat, &text("o1", what)).await;
        assert_eq!(answer.text(), "success", "{what}");
        assert!(sent.elapsed() < BUDGET, "{what}: {:?}", sent.elapsed());
        bot.wait_for(index + 1).await;
    }
    relay.audited("delivered", count as u64).await;

    // Whatever headers a target sends, WeChat gets only the relay's own.
    let expected = names(&relay.accept(&wechat, &text("o1", "plain")).await);
    let splits = [
        "HTTP/1.1 200 OK\r\nX-A: b\r\n\r\nHTTP/1.1 200 OK\r\nSet-Cookie: a=b\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nSet-Cookie: a=b\r\nLocation: http://evil.example/\r\nRefresh: 0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Type: text/html\rSet-Cookie: a=b\r\nContent-Length: 0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nX-A: b\r\n Set-Cookie: folded=1\r\nContent-Length: 0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nX-A: b\0c\r\nContent-Length: 0\r\n\r\n",
        "HTTP/1.1 503 No\r\nRetry-After: 1\r\nRetry-After: 9999999999999999999999\r\nContent-Length: 0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 50\r\n\r\nhello",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\nfffffffffffffffff\r\n",
        "HTTP/9.9 200 OK\r\n\r\n",
        "ICY 200 OK\r\n\r\n",
        "\0\0\0\0",
    ];
    for split in splits {
        let raw = Hostile::start(Answer::Bytes(split)).await;
        let target = format!("[targets.bot]\nurl = \"http://{}/\"\nformat = \"json\"\nretry = []\n", raw.address);
        let relay = Relay::start(wechat.account() + route + &target).await;
        let answer = soon("an answer", relay.accept(&wechat, &text("o1", "hello"))).await;
        assert_eq!((answer.text(), names(&answer)), ("success", expected.clone()), "{split:?}");
        relay.audited("pending", 0).await;
    }
}

/// The names of an answer's headers.
fn names(answer: &crate::support::http::Answer) -> Vec<String> {
    answer.headers.iter().map(|(name, _)| name.clone()).collect()
}

/// Runs `wxrelay check` on a configuration whose target has these lines.
async fn check(target: &str) -> crate::support::command::Finished {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("config.toml");
    let config = format!("{}[targets.crm]\nrole = \"handler\"\n{target}\n", WeChat::secure().account());
    fs::write(&path, config).expect("the config can be written");
    let mut command = wxrelay(["check", "-c"]);
    command.arg(&path);
    run(command).await
}

/// The relay's peak memory, in bytes.
fn memory(relay: &Relay) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", relay.id())).expect("the relay runs on Linux");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("Linux reports it");
    line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") * KIB
}

/// The answer of a hostile target to every delivery.
#[derive(Clone, Copy, Debug)]
enum Answer {
    /// Sends these bytes, then closes the connection.
    Bytes(&'static str),
    /// Sends one header after the other.
    EndlessHeaders,
    /// Sends a status line that does not end.
    EndlessStatus,
    /// Sends one `103 Early Hints` after the other.
    EndlessInformation,
    /// Sends 200, then a byte from time to time.
    Drip,
    /// Sends 200 and this many bytes, with their length declared.
    Flood(u64),
    /// Sends 200 and one chunk after the other.
    EndlessChunks,
}

/// A target that counts the bytes that it could send.
struct Hostile {
    address: SocketAddr,
    written: Arc<AtomicU64>,
    taken: Arc<AtomicU64>,
    open: Arc<AtomicU64>,
    task: JoinHandle<()>,
}

impl Hostile {
    async fn start(answer: Answer) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
        let address = listener.local_addr().expect("a bound socket has an address");
        let [written, taken, open]: [Arc<AtomicU64>; 3] = std::array::from_fn(|_| Arc::default());
        let counts = [&written, &taken, &open].map(Arc::clone);
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let [written, taken, open] = counts.clone();
                tokio::spawn(async move {
                    open.fetch_add(1, Ordering::Relaxed);
                    // Fails when the relay stops reading.
                    drop(serve(stream, answer, &written, &taken).await);
                    open.fetch_sub(1, Ordering::Relaxed);
                });
            }
        });
        Self { address, written, taken, open, task }
    }
}

impl Drop for Hostile {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(mut stream: TcpStream, answer: Answer, written: &AtomicU64, taken: &AtomicU64) -> std::io::Result<()> {
    let mut request = vec![0; 64 * 1024];
    if stream.read(&mut request).await? == 0 {
        return Ok(());
    }
    taken.fetch_add(1, Ordering::Relaxed);
    let kilobyte = "x".repeat(1000);
    let (head, part) = match answer {
        Answer::Bytes(bytes) => {
            stream.write_all(bytes.as_bytes()).await?;
            return stream.shutdown().await;
        }
        Answer::EndlessHeaders => ("HTTP/1.1 200 OK\r\n".to_owned(), format!("X-A: {kilobyte}\r\n")),
        Answer::EndlessStatus => ("HTTP/1.1 200 ".to_owned(), kilobyte),
        Answer::EndlessInformation => (String::new(), "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n".to_owned()),
        Answer::Drip => ("HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n".to_owned(), "x".to_owned()),
        Answer::Flood(length) => {
            (format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n"), "x".repeat(64 * 1024))
        }
        Answer::EndlessChunks => {
            ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n".to_owned(), format!("3e8\r\n{kilobyte}\r\n"))
        }
    };
    stream.write_all(head.as_bytes()).await?;
    loop {
        stream.write_all(part.as_bytes()).await?;
        written.fetch_add(part.len() as u64, Ordering::Relaxed);
        if let Answer::Drip = answer {
            time::sleep(Duration::from_millis(100)).await;
        }
    }
}
