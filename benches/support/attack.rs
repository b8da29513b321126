//! Attackers: hostile clients that send as fast as they can, until a deadline.
//!
//! They know the address and the account's path, and no secret. Bytes and frames are written by hand.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout_at};
use tokio_rustls::TlsConnector;

use super::tls::localhost;
use super::wechat::{captured, forged};

/// The path of the login that [`login`] configures.
const LOGIN_PATH: &str = "/login/site";

/// The listener that is attacked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Listener {
    Clear,
    Tls,
    Http2,
}

/// A kind of attack.
pub(crate) struct Flood {
    pub(crate) name: &'static str,
    pub(crate) listener: Listener,
    /// Concurrent connections; each is opened again when it ends.
    connections: usize,
    from: Source,
    /// What an attacker does with one connection, until it breaks.
    attack: fn(TcpStream, Arc<Counts>) -> AttackFuture,
}

/// The attackers' addresses.
#[derive(Clone, Copy)]
enum Source {
    Everywhere,
    /// WeChat's own address, as all clients have behind a load balancer that hides them.
    WeChat,
}

type AttackFuture = Pin<Box<dyn Future<Output = ()> + Send>>;

/// What the attackers achieved, and what their TLS handshakes need.
pub(crate) struct Counts {
    connections: AtomicU64,
    sent: AtomicU64,
    tls: Option<TlsConnector>,
}

const fn flood(
    name: &'static str,
    listener: Listener,
    connections: usize,
    from: Source,
    attack: fn(TcpStream, Arc<Counts>) -> AttackFuture,
) -> Flood {
    Flood { name, listener, connections, from, attack }
}

pub(crate) const FLOODS: &[Flood] = &[
    flood("10,000 idle connections", Listener::Clear, 10_000, Source::Everywhere, |stream, _| Box::pin(idle(stream))),
    flood("10,000 idle, from WeChat's address", Listener::Clear, 10_000, Source::WeChat, |stream, _| {
        Box::pin(silence(stream))
    }),
    flood("connections made and closed", Listener::Clear, 64, Source::Everywhere, |_, _| Box::pin(async {})),
    flood("headers that trickle", Listener::Clear, 6_000, Source::Everywhere, |stream, counts| {
        Box::pin(trickle(stream, counts, forged("Content-Length: 9\r\n", b"")))
    }),
    flood("bodies that trickle", Listener::Clear, 6_000, Source::Everywhere, |stream, counts| {
        Box::pin(slow_body(stream, counts, forged("Content-Length: 100000\r\n", b"<")))
    }),
    flood("bodies of a captured URL", Listener::Clear, 3_000, Source::Everywhere, |stream, counts| {
        Box::pin(slow_body(stream, counts, captured("Content-Length: 100000\r\n")))
    }),
    flood("forged pushes, kept connections", Listener::Clear, 64, Source::Everywhere, |stream, counts| {
        Box::pin(repeat(stream, counts, forged(&format!("Content-Length: {}\r\n", BODY.len()), BODY)))
    }),
    flood("forged pushes, a connection each", Listener::Clear, 64, Source::Everywhere, |stream, counts| {
        Box::pin(once(
            stream,
            counts,
            forged(&format!("Connection: close\r\nContent-Length: {}\r\n", BODY.len()), BODY),
        ))
    }),
    flood("declared bodies of 1 MiB + 1", Listener::Clear, 64, Source::Everywhere, |stream, counts| {
        Box::pin(repeat(stream, counts, forged("Content-Length: 1048577\r\n", &[b'a'; 65536])))
    }),
    flood("chunked bodies without end", Listener::Clear, 64, Source::Everywhere, |stream, counts| {
        Box::pin(endless(stream, counts, forged("Transfer-Encoding: chunked\r\n", b""), chunk()))
    }),
    flood("headers without end", Listener::Clear, 64, Source::Everywhere, |stream, counts| {
        Box::pin(endless(stream, counts, b"POST / HTTP/1.1\r\nX: ".to_vec(), vec![b'a'; 16384]))
    }),
    flood("a thousand headers", Listener::Clear, 64, Source::Everywhere, |stream, counts| {
        Box::pin(once(stream, counts, forged(&"X: y\r\n".repeat(1000), b"")))
    }),
    flood("queries of 30 KiB", Listener::Clear, 64, Source::Everywhere, |stream, counts| {
        let query = "nonce%".repeat(5000);
        Box::pin(repeat(stream, counts, format!("GET /wechat/events?{query} HTTP/1.1\r\nHost: x\r\n\r\n").into_bytes()))
    }),
    flood("logins", Listener::Clear, 64, Source::Everywhere, |stream, counts| {
        Box::pin(repeat(
            stream,
            counts,
            format!("GET {LOGIN_PATH}?code=0&state=0 HTTP/1.1\r\nHost: x\r\n\r\n").into_bytes(),
        ))
    }),
    flood("pipelining, answers not read", Listener::Clear, 64, Source::Everywhere, |stream, counts| {
        Box::pin(unread(stream, counts, "GET / HTTP/1.1\r\nHost: x\r\n\r\n".repeat(500).into_bytes()))
    }),
    flood("TLS handshakes", Listener::Tls, 64, Source::Everywhere, |stream, counts| {
        Box::pin(handshake(stream, counts))
    }),
    flood("half of a TLS handshake", Listener::Tls, 6_000, Source::Everywhere, |mut stream, counts| {
        Box::pin(async move {
            // The head of a record of 512 bytes, and the first of them.
            if stream.write_all(b"\x16\x03\x01\x02\x00\x01\x00").await.is_ok() {
                counts.sent.fetch_add(1, Ordering::Relaxed);
                silence(stream).await;
            }
        })
    }),
    flood("h2: rapid reset", Listener::Http2, 16, Source::Everywhere, |stream, counts| {
        Box::pin(h2(stream, counts, |stream| {
            [frame(1, 5, stream, REQUEST), frame(3, 0, stream, &[0, 0, 0, 8])].concat()
        }))
    }),
    flood("h2: CONTINUATION without end", Listener::Http2, 16, Source::Everywhere, |stream, counts| {
        Box::pin(h2(stream, counts, |stream| match stream {
            1 => frame(1, 1, 1, REQUEST),
            _ => frame(9, 0, 1, &b"\x40\x01x\x01y".repeat(1000)),
        }))
    }),
    flood("h2: empty DATA", Listener::Http2, 16, Source::Everywhere, |stream, counts| {
        Box::pin(h2(stream, counts, |stream| match stream {
            1 => frame(1, 4, 1, POST),
            _ => frame(0, 0, 1, b""),
        }))
    }),
    flood("h2: SETTINGS", Listener::Http2, 16, Source::Everywhere, |stream, counts| {
        Box::pin(h2(stream, counts, |_| frame(4, 0, 0, &[0, 4, 0, 1, 0, 0])))
    }),
    flood("h2: PING", Listener::Http2, 16, Source::Everywhere, |stream, counts| {
        Box::pin(h2(stream, counts, |_| frame(6, 0, 0, b"wxrelay?")))
    }),
    flood("h2: windows of no size", Listener::Http2, 16, Source::Everywhere, |stream, counts| {
        Box::pin(h2(stream, counts, |stream| match stream {
            1 => frame(4, 0, 0, &[0, 4, 0, 0, 0, 0]),
            _ => frame(1, 5, stream, REQUEST),
        }))
    }),
];

/// The `[logins.site]` that is attacked.
pub(crate) fn login() -> String {
    format!("[logins.site]\npath = \"{LOGIN_PATH}\"\nto = \"https://www.example.com/callback\"\n")
}

/// One flood against one relay.
pub(crate) struct Attack {
    target: SocketAddr,
    end: Instant,
    connections: usize,
    from: Source,
    attack: fn(TcpStream, Arc<Counts>) -> AttackFuture,
    counts: Arc<Counts>,
}

impl Attack {
    pub(crate) fn new(flood: &Flood, target: SocketAddr, end: Instant, tls: Option<TlsConnector>) -> Self {
        let Flood { connections, from, attack, .. } = *flood;
        let counts = Counts { connections: AtomicU64::new(0), sent: AtomicU64::new(0), tls };
        Self { target, end, connections, from, attack, counts: Arc::new(counts) }
    }

    /// Starts them; they end by themselves.
    pub(crate) fn begin(self: &Arc<Self>) -> JoinSet<()> {
        (0..self.connections).map(|number| Arc::clone(self).attacker(number)).collect()
    }

    async fn attacker(self: Arc<Self>, number: usize) {
        let from = match self.from {
            Source::Everywhere => Ipv4Addr::new(127, 0, 1, u8::try_from(number % 200).expect("under 200") + 1),
            Source::WeChat => Ipv4Addr::LOCALHOST,
        };
        let deeds = async {
            loop {
                match connect(from, self.target).await {
                    Ok(stream) => {
                        self.counts.connections.fetch_add(1, Ordering::Relaxed);
                        (self.attack)(stream, self.counts.clone()).await;
                    }
                    // The machine has no ports left, or the relay accepts too slowly.
                    Err(_) => sleep(Duration::from_millis(10)).await,
                }
            }
        };
        // The deadline is the intended end.
        timeout_at(self.end, deeds).await.ok();
    }
}

impl fmt::Display for Attack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = |count: &AtomicU64| count.load(Ordering::Relaxed);
        write!(f, "{} connections, {} times sent", count(&self.counts.connections), count(&self.counts.sent))
    }
}

async fn connect(from: Ipv4Addr, to: SocketAddr) -> std::io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.bind((IpAddr::V4(from), 0).into())?;
    let stream = socket.connect(to).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Sends nothing, and waits for the end.
async fn silence(mut stream: TcpStream) {
    let mut scrap = [0; 64];
    while stream.read(&mut scrap).await.is_ok_and(|read| read > 0) {}
}

/// The same, and pauses before it reconnects: an attacker with ten thousand connections has time.
async fn idle(stream: TcpStream) {
    silence(stream).await;
    sleep(Duration::from_millis(500)).await;
}

/// A byte every 100 ms.
async fn trickle(mut stream: TcpStream, counts: Arc<Counts>, bytes: Vec<u8>) {
    for byte in bytes {
        if stream.write_all(&[byte]).await.is_err() {
            return;
        }
        counts.sent.fetch_add(1, Ordering::Relaxed);
        sleep(Duration::from_millis(100)).await;
    }
}

async fn slow_body(mut stream: TcpStream, counts: Arc<Counts>, head: Vec<u8>) {
    if stream.write_all(&head).await.is_ok() {
        trickle(stream, counts, vec![b'a'; 1000]).await;
    }
}

/// The same request again and again, each after the answer to the one before.
async fn repeat(mut stream: TcpStream, counts: Arc<Counts>, request: Vec<u8>) {
    let mut answer = [0; 4096];
    while stream.write_all(&request).await.is_ok() {
        counts.sent.fetch_add(1, Ordering::Relaxed);
        if !stream.read(&mut answer).await.is_ok_and(|read| read > 0) {
            return;
        }
    }
}

async fn once(mut stream: TcpStream, counts: Arc<Counts>, request: Vec<u8>) {
    if stream.write_all(&request).await.is_ok() {
        counts.sent.fetch_add(1, Ordering::Relaxed);
        silence(stream).await;
    }
}

/// A prefix, then the same bytes without end.
async fn endless(mut stream: TcpStream, counts: Arc<Counts>, begin: Vec<u8>, more: Vec<u8>) {
    let mut go = stream.write_all(&begin).await;
    while go.is_ok() {
        counts.sent.fetch_add(1, Ordering::Relaxed);
        go = stream.write_all(&more).await;
    }
}

/// Requests as fast as they are accepted, and no answer is ever read.
async fn unread(mut stream: TcpStream, counts: Arc<Counts>, requests: Vec<u8>) {
    while stream.write_all(&requests).await.is_ok() {
        counts.sent.fetch_add(1, Ordering::Relaxed);
    }
}

async fn handshake(stream: TcpStream, counts: Arc<Counts>) {
    let tls = counts.tls.as_ref().expect("a relay that speaks TLS");
    if tls.connect(localhost(), stream).await.is_ok() {
        counts.sent.fetch_add(1, Ordering::Relaxed);
    }
}

/// HTTP/2 in clear: the frames that `make` returns for stream 1, 3, 5 and so on. Answers are discarded.
async fn h2(stream: TcpStream, counts: Arc<Counts>, make: fn(u32) -> Vec<u8>) {
    let (mut from, mut to) = stream.into_split();
    let send = async {
        let preface = [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", frame(4, 0, 0, b"").as_slice()].concat();
        let mut go = to.write_all(&preface).await;
        for stream in (1..u32::MAX >> 1).step_by(2) {
            if go.is_err() {
                return;
            }
            counts.sent.fetch_add(1, Ordering::Relaxed);
            go = to.write_all(&make(stream)).await;
        }
    };
    let receive = async {
        let mut scrap = vec![0; 16384];
        while from.read(&mut scrap).await.is_ok_and(|read| read > 0) {}
    };
    tokio::select! {
        () = send => {}
        () = receive => {}
    }
}

/// RFC 9113, 4.1: length, type, flags, stream, content.
fn frame(kind: u8, flags: u8, stream: u32, content: &[u8]) -> Vec<u8> {
    let length = u32::try_from(content.len()).expect("a short frame").to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), content].concat()
}

/// HPACK: `:method GET`, `:scheme http`, `:path /`, `:authority x`.
const REQUEST: &[u8] = b"\x82\x86\x84\x41\x01x";
/// The same with `:method POST`.
const POST: &[u8] = b"\x83\x86\x84\x41\x01x";
/// In the right form, but without a valid signature.
const BODY: &[u8] = b"<xml><ToUserName><![CDATA[gh_0a1b2c3d4e5f]]></ToUserName><Encrypt><![CDATA[AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=]]></Encrypt></xml>";

fn chunk() -> Vec<u8> {
    [b"4000\r\n", vec![b'a'; 0x4000].as_slice(), b"\r\n"].concat()
}
