//! WeChat's sending side: scans, each by a user of its own, encrypted and signed in secure mode.
//!
//! Each push has the time at which it was sent, for the target to read. The library under test encrypts the pushes:
//! `tests/` checks that it is right.

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{Duration, Instant, MissedTickBehavior, interval};
use tokio_rustls::TlsConnector;
use wxrelay::clock::UnixMillis;
use wxrelay::secret::Secret;
use wxrelay::wechat::{AesKey, Credentials, Mode, Salt};

use super::nanos;
use super::target::{content_length, find};
use super::tls::localhost;

const PATH: &str = "/wechat/events";
const APP_ID: &str = "wxb11529c136998cb6";
const TOKEN: &str = "pamtest";
pub(crate) const KEY: &str = "abcdefghijklmnopqrstuvwxyz0123456789ABCDEFG";
/// The prefix of the sending time in a push's EventKey.
pub(crate) const MARK: &[u8] = b"sent-at-";

/// Its `[accounts.shop]`, open for routes to be added.
pub(crate) fn account() -> String {
    account_marked("")
}

/// The same with a suffix to its name, path, AppID and token, for several accounts.
pub(crate) fn account_marked(mark: &str) -> String {
    format!(
        "[accounts.shop{mark}]\npath = \"{PATH}{mark}\"\napp_id = \"{APP_ID}{mark}\"\ntoken = \"{TOKEN}{mark}\"\n\
         encoding_aes_key = \"{KEY}\"\nmode = \"secure\"\n"
    )
}

/// One official account, as WeChat knows it.
pub(crate) struct WeChat {
    path: String,
    credentials: Credentials,
    tls: Option<TlsConnector>,
    sent: AtomicU64,
}

/// The results of pushes at a steady rate.
#[derive(Default)]
pub(crate) struct Steady {
    /// From the first byte out to the last byte in, in nanoseconds.
    pub(crate) answers: Vec<u64>,
    /// Pushes that were not answered 200.
    pub(crate) failed: u64,
    /// Pushes that were, but not at the first try.
    pub(crate) repeated: u64,
}

impl WeChat {
    pub(crate) fn new() -> Arc<Self> {
        Self::made("", None)
    }

    /// That of the account with this mark.
    pub(crate) fn marked(mark: &str) -> Arc<Self> {
        Self::made(mark, None)
    }

    /// One that pushes over TLS, a full handshake for each.
    pub(crate) fn over(tls: TlsConnector) -> Arc<Self> {
        Self::made("", Some(tls))
    }

    fn made(mark: &str, tls: Option<TlsConnector>) -> Arc<Self> {
        let credentials = Credentials {
            app_id: format!("{APP_ID}{mark}").into(),
            token: Secret::new(format!("{TOKEN}{mark}")),
            previous_token: None,
            aes_key: Some(AesKey::parse(KEY).expect("a key of 43 characters")),
            previous_aes_key: None,
            mode: Mode::Secure,
        };
        Arc::new(Self { path: format!("{PATH}{mark}"), credentials, tls, sent: AtomicU64::new(0) })
    }

    /// How many pushes were made.
    pub(crate) fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// A push as WeChat writes it, HTTP/1.0 on a connection of its own, or for a connection that is kept.
    pub(crate) fn request(&self, keep: bool) -> Vec<u8> {
        let number = self.sent.fetch_add(1, Ordering::Relaxed);
        let now = UnixMillis::now().seconds();
        let clear = format!(
            "<xml><ToUserName><![CDATA[gh_0a1b2c3d4e5f]]></ToUserName>\n\
             <FromUserName><![CDATA[oBench{number:022}]]></FromUserName>\n<CreateTime>{now}</CreateTime>\n\
             <MsgType><![CDATA[event]]></MsgType>\n<Event><![CDATA[SCAN]]></Event>\n\
             <EventKey><![CDATA[{}{:020}-{number}]]></EventKey>\n\
             <Ticket><![CDATA[gQGh8TwAAAAAAAAAAS5odHRwOi8vd2VpeGluLnFxLmNvbS9xLzAyQ1ZpcjFfRGpmRzExMDAwMHcwN1oAAgQ]]></Ticket>\n\
             </xml>",
            str::from_utf8(MARK).expect("ASCII"),
            nanos(),
        );
        let mut random = [0; 24];
        random[..8].copy_from_slice(&number.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes());
        // A hex digit each, because a salt takes no more of a byte: no two pushes' encrypted texts begin alike.
        for (place, byte) in random[8..].iter_mut().rev().enumerate() {
            *byte = (number >> (4 * place)) as u8 & 15;
        }
        let openid = format!("oBench{number:022}");
        let push = self.credentials.push(&clear, &openid, &Salt::new(now, random));
        let (version, connection) = if keep { ("HTTP/1.1", "keep-alive") } else { ("HTTP/1.0", "close") };
        let head = format!(
            "POST {}?{} {version}\r\nUser-Agent: Mozilla/4.0\r\nAccept: */*\r\nHost: relay.test\r\n\
             Pragma: no-cache\r\nConnection: {connection}\r\nContent-Type: text/xml\r\nContent-Length: {}\r\n\r\n",
            self.path,
            push.query,
            push.body.len()
        );
        [head.as_bytes(), push.body.as_bytes()].concat()
    }

    /// Sends one push on a connection of its own, and waits for its answer: whether that was 200.
    pub(crate) async fn push(&self, to: SocketAddr) -> io::Result<bool> {
        self.attempt(to, &self.request(false)).await
    }

    async fn attempt(&self, to: SocketAddr, request: &[u8]) -> io::Result<bool> {
        let stream = TcpStream::connect(to).await?;
        match &self.tls {
            None => exchange(stream, request).await,
            Some(tls) => exchange(tls.connect(localhost(), stream).await?, request).await,
        }
    }

    /// Sends one push, again if it is not answered 200; returns the number of the answered try.
    async fn insist(&self, to: SocketAddr, tries: u32) -> Option<u32> {
        let request = self.request(false);
        for number in 1..=tries {
            if self.attempt(to, &request).await.unwrap_or(false) {
                return Some(number);
            }
        }
        None
    }

    /// Sends pushes at a rate for a time, each on a connection of its own, whether earlier ones are answered or not.
    pub(crate) async fn steady(self: &Arc<Self>, to: SocketAddr, rate: u64, span: Duration) -> Steady {
        self.steady_with(to, rate, span, 1).await
    }

    /// The same, with a number of tries for each; WeChat makes three.
    pub(crate) async fn steady_with(self: &Arc<Self>, to: SocketAddr, rate: u64, span: Duration, tries: u32) -> Steady {
        let mut pushes = JoinSet::new();
        let mut tick = interval(Duration::from_secs(1) / u32::try_from(rate).expect("a moderate rate"));
        tick.set_missed_tick_behavior(MissedTickBehavior::Burst);
        let end = Instant::now() + span;
        while Instant::now() < end {
            tick.tick().await;
            let wechat = Arc::clone(self);
            pushes.spawn(async move {
                let begun = nanos();
                wechat.insist(to, tries).await.map(|tried| (tried, nanos() - begun))
            });
        }
        let mut steady = Steady::default();
        while let Some(answered) = pushes.join_next().await {
            match answered.expect("no push panics") {
                Some((tried, took)) => {
                    steady.answers.push(took);
                    steady.repeated += u64::from(tried > 1);
                }
                None => steady.failed += 1,
            }
        }
        steady
    }

    /// Sends pushes over kept connections, each when the previous one on its connection is answered 200, while `go`
    /// allows it; returns their number.
    pub(crate) async fn flood(
        self: &Arc<Self>,
        to: SocketAddr,
        connections: usize,
        go: impl Fn(u64) -> bool + Clone + Send + 'static,
    ) -> u64 {
        let wechat = Arc::clone(self);
        exchanges(to, connections, go, move || wechat.request(true), "HTTP/1.1 200").await
    }
}

/// Sends requests over kept connections, each when the previous one on its connection has the expected answer, while
/// `go` allows it; returns their number.
pub(crate) async fn exchanges(
    to: SocketAddr,
    connections: usize,
    go: impl Fn(u64) -> bool + Clone + Send + 'static,
    request: impl Fn() -> Vec<u8> + Clone + Send + 'static,
    expected: &'static str,
) -> u64 {
    let taken = Arc::new(AtomicU64::new(0));
    let mut senders = JoinSet::new();
    for _ in 0..connections {
        let (go, request, taken) = (go.clone(), request.clone(), Arc::clone(&taken));
        senders.spawn(async move {
            let mut stream = TcpStream::connect(to).await.expect("the relay listens");
            stream.set_nodelay(true).expect("a TCP socket");
            let mut answer = vec![0; 1024];
            let mut answered = 0;
            while go(taken.fetch_add(1, Ordering::Relaxed)) {
                stream.write_all(&request()).await.expect("the relay reads");
                let length = read_answer(&mut stream, &mut answer).await.expect("the relay answers");
                let answer = &answer[..length];
                assert!(answer.starts_with(expected.as_bytes()), "{}", String::from_utf8_lossy(answer));
                answered += 1;
            }
            answered
        });
    }
    senders.join_all().await.into_iter().sum()
}

/// Whether the answer to a request on a connection of its own is 200.
async fn exchange(mut stream: impl AsyncRead + AsyncWrite + Unpin, request: &[u8]) -> io::Result<bool> {
    stream.write_all(request).await?;
    let mut answer = Vec::with_capacity(512);
    stream.read_to_end(&mut answer).await?;
    Ok(answer.get(9..12) == Some(b"200"))
}

/// A push of an attacker without token and key, with more headers; over HTTP/1.1, kept alive unless they close it.
pub(crate) fn forged(headers: &str, body: &[u8]) -> Vec<u8> {
    let now = UnixMillis::now().seconds();
    let signature = "0123456789abcdef0123456789abcdef01234567";
    let head = format!(
        "POST {PATH}?signature={signature}&timestamp={now}&nonce=1234567890&openid=oForged&encrypt_type=aes\
         &msg_signature={signature} HTTP/1.1\r\nHost: relay.test\r\nContent-Type: text/xml\r\n{headers}\r\n"
    );
    [head.as_bytes(), body].concat()
}

/// The head of a request with a URL that WeChat signed, the same each time, and an attacker's headers.
pub(crate) fn captured(headers: &str) -> Vec<u8> {
    static QUERY: OnceLock<String> = OnceLock::new();
    let query = QUERY.get_or_init(|| {
        let salt = Salt::new(UnixMillis::now().seconds(), [7; 24]);
        WeChat::new().credentials.push("<xml></xml>", "oCaptured", &salt).query
    });
    format!("POST {PATH}?{query} HTTP/1.1\r\nHost: relay.test\r\nContent-Type: text/xml\r\n{headers}\r\n").into_bytes()
}

/// Reads an answer of a known length, which fits; returns its length with the head.
pub(crate) async fn read_answer(stream: &mut TcpStream, answer: &mut [u8]) -> io::Result<usize> {
    let mut length = 0;
    loop {
        let read = stream.read(&mut answer[length..]).await?;
        length += read;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if let Some(head) = find(&answer[..length], b"\r\n\r\n") {
            let body = content_length(&answer[..head]).ok_or(io::ErrorKind::InvalidData)?;
            if length >= head + 4 + body {
                return Ok(length);
            }
        }
    }
}
