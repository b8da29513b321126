//! Pushes as fast as they are answered, over a number of connections.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use rustls::HandshakeKind;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};
use tokio_rustls::TlsConnector;

use super::peers::Running;
use super::support::figures::{Latency, millis};
use super::support::nanos;
use super::support::target::Target;
use super::support::tls::localhost;
use super::support::wechat::{WeChat, read_answer};

/// More than any peer answers in a second on such a machine: a peer that has answered all starts over.
const PUSHES_A_SECOND: usize = 40_000;

/// How connections are used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ConnectionUse {
    /// Each for many pushes.
    Kept,
    /// A connection per push, as WeChat does.
    Each,
    /// The same over TLS 1.3, a full handshake each.
    TlsFull,
    /// The same, with a resumed session.
    TlsResumed,
    /// The same with TLS 1.2, where a resumed session needs no new key exchange.
    Tls12Resumed,
}

impl ConnectionUse {
    pub(crate) fn is_tls(self) -> bool {
        matches!(self, Self::TlsFull | Self::TlsResumed | Self::Tls12Resumed)
    }
}

pub(crate) struct Load {
    pub(crate) connections: ConnectionUse,
    pub(crate) concurrency: usize,
    pub(crate) span: Duration,
}

/// The result of one peer in one round.
pub(crate) struct Measured {
    /// Answers 200, a second.
    pub(crate) rate: f64,
    /// Deliveries a second, until the last one; 0 where none are expected.
    pub(crate) delivered: f64,
    /// In milliseconds.
    pub(crate) p50: f64,
    pub(crate) p99: f64,
    /// The peer's processor seconds for a million pushes, deliveries included.
    pub(crate) processor: f64,
    /// Resident bytes of all its processes, at the end.
    pub(crate) memory: u64,
    pub(crate) failed: u64,
    /// The share of the answers with a resumed TLS session.
    pub(crate) resumed: f64,
}

/// The sum over the connections of one sender.
#[derive(Default)]
struct Answers {
    nanos: Vec<u64>,
    failed: u64,
    /// Answers with a resumed TLS session.
    resumed: u64,
}

impl Load {
    /// Loads a peer for the span. Where a handler is given, waits until it has every push that was answered.
    pub(crate) async fn put_on(
        &self,
        wechat: &WeChat,
        peer: &Running,
        connector: impl Fn() -> Option<TlsConnector>,
        handler: Option<&Target>,
    ) -> Measured {
        let count = usize::try_from(self.span.as_secs()).expect("some seconds") * PUSHES_A_SECOND;
        let pushes: Arc<[_]> = (0..count).map(|_| wechat.request(self.connections == ConnectionUse::Kept)).collect();
        let (next, before) = (Arc::new(AtomicUsize::new(0)), handler.map_or(0, Target::count));
        let (processor, begun) = (peer.processor(), Instant::now());
        let end = begun + self.span;
        let mut senders = JoinSet::new();
        for _ in 0..self.concurrency {
            let (pushes, next, tls) = (Arc::clone(&pushes), Arc::clone(&next), connector());
            let (to, connections) = (peer.address, self.connections);
            senders.spawn(async move {
                let mut answers = Answers::default();
                while Instant::now() < end {
                    // A kept connection that breaks is opened again.
                    let ended = match connections {
                        ConnectionUse::Kept => keep(to, &pushes, &next, end, &mut answers).await,
                        ConnectionUse::Each
                        | ConnectionUse::TlsFull
                        | ConnectionUse::TlsResumed
                        | ConnectionUse::Tls12Resumed => {
                            one(
                                to,
                                tls.as_ref(),
                                &pushes[next.fetch_add(1, Ordering::Relaxed) % pushes.len()],
                                &mut answers,
                            )
                            .await
                        }
                    };
                    answers.failed += u64::from(ended.is_err());
                }
                answers
            });
        }
        let all = senders.join_all().await;
        let answered = begun.elapsed();
        let failed = all.iter().map(|answers| answers.failed).sum();
        let resumed: u64 = all.iter().map(|answers| answers.resumed).sum();
        let latency = Latency::of(all.into_iter().flat_map(|answers| answers.nanos).collect());
        let count = latency.count as u64;
        while handler.is_some_and(|handler| handler.count() - before < count) {
            sleep(Duration::from_millis(2)).await;
        }
        let delivered = handler.map_or(0.0, |_| count as f64 / begun.elapsed().as_secs_f64());
        Measured {
            rate: count as f64 / answered.as_secs_f64(),
            delivered,
            p50: millis(latency.p50),
            p99: millis(latency.p99),
            processor: (peer.processor() - processor).as_secs_f64() / count as f64 * 1e6,
            memory: peer.memory(),
            failed,
            resumed: resumed as f64 / count.max(1) as f64,
        }
    }
}

async fn keep(
    to: std::net::SocketAddr,
    pushes: &[Vec<u8>],
    next: &AtomicUsize,
    end: Instant,
    answers: &mut Answers,
) -> io::Result<()> {
    let mut stream = TcpStream::connect(to).await?;
    stream.set_nodelay(true)?;
    let mut answer = vec![0; 4096];
    while Instant::now() < end {
        let begun = nanos();
        stream.write_all(&pushes[next.fetch_add(1, Ordering::Relaxed) % pushes.len()]).await?;
        let length = read_answer(&mut stream, &mut answer).await?;
        answers.take(&answer[..length], begun);
    }
    Ok(())
}

async fn one(
    to: std::net::SocketAddr,
    tls: Option<&TlsConnector>,
    push: &[u8],
    answers: &mut Answers,
) -> io::Result<()> {
    let begun = nanos();
    let stream = TcpStream::connect(to).await?;
    stream.set_nodelay(true)?;
    let answer = match tls {
        None => whole(stream, push).await?,
        Some(tls) => {
            let stream = tls.connect(localhost(), stream).await?;
            answers.resumed += u64::from(stream.get_ref().1.handshake_kind() == Some(HandshakeKind::Resumed));
            whole(stream, push).await?
        }
    };
    answers.take(&answer, begun);
    Ok(())
}

async fn whole(mut stream: impl AsyncRead + AsyncWrite + Unpin, push: &[u8]) -> io::Result<Vec<u8>> {
    stream.write_all(push).await?;
    let mut answer = Vec::with_capacity(512);
    match stream.read_to_end(&mut answer).await {
        // Not every peer sends a TLS close_notify.
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof && !answer.is_empty() => Ok(answer),
        ended => ended.map(|_| answer),
    }
}

impl Answers {
    fn take(&mut self, answer: &[u8], begun: u64) {
        if answer.get(9..12) == Some(b"200") { self.nanos.push(nanos() - begun) } else { self.failed += 1 }
    }
}
