//! Targets: a fast one that records the arrival of each delivery, and several kinds of bad ones.

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::sleep;

use super::nanos;
use super::wechat::MARK;

/// How a target behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Behaviour {
    /// Answers 200 at once.
    Fast,
    /// Answers 200 after a time.
    Slow(Duration),
    /// Reads the delivery and never answers.
    Hangs,
    /// Answers one byte a second.
    Drips,
    /// Answers 200 and a body without end.
    Endless,
    /// Answers 200 for half a second and 503 for the next.
    Flips,
}

/// A target; it stops listening when dropped.
pub(crate) struct Target {
    pub(crate) address: SocketAddr,
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

type Reading = fn(&[u8]) -> Option<u128>;

#[derive(Default)]
struct Shared {
    count: AtomicU64,
    /// How the push of a delivery is identified, while that is recorded.
    reading: OnceLock<Reading>,
    /// When deliveries came, in `nanos()`, and their pushes.
    arrivals: Mutex<Vec<(u64, u128)>>,
}

/// A port for a target that is down: no other process gets it, and connections are refused.
pub(crate) struct Down(TcpSocket);

impl Down {
    pub(crate) fn new() -> Self {
        let socket = TcpSocket::new_v4().expect("a socket");
        socket.bind(SocketAddr::from(([127, 0, 0, 1], 0))).expect("a port is free");
        Self(socket)
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.0.local_addr().expect("a bound socket has an address")
    }

    /// From now on it is up.
    pub(crate) fn come_up(self) -> Target {
        Target::serve(self.0.listen(1024).expect("the socket is bound"), Behaviour::Fast)
    }
}

impl Target {
    pub(crate) async fn start(behaviour: Behaviour) -> Self {
        Self::serve(TcpListener::bind("127.0.0.1:0").await.expect("a port is free"), behaviour)
    }

    fn serve(listener: TcpListener, behaviour: Behaviour) -> Self {
        let address = listener.local_addr().expect("a bound socket has an address");
        let shared = Arc::<Shared>::default();
        let task = tokio::spawn(accept(listener, behaviour, Arc::clone(&shared)));
        Self { address, shared, task }
    }

    /// The deliveries it got so far.
    pub(crate) fn count(&self) -> u64 {
        self.shared.count.load(Ordering::Relaxed)
    }

    /// Records the latency of every delivery from now on.
    pub(crate) fn keep_latencies(&self) {
        self.shared.reading.set(|delivery| sent_at(delivery).map(u128::from)).expect("only once");
    }

    /// The recorded latencies: from making the push to the arrival of its delivery, in nanoseconds.
    pub(crate) fn take_latencies(&self) -> Vec<u64> {
        let sent = |read| u64::try_from(read).expect("as it was read");
        self.take_arrivals().into_iter().map(|(at, read)| at.saturating_sub(sent(read))).collect()
    }

    /// Records the arrival of every encrypted delivery from now on.
    pub(crate) fn keep_arrivals(&self) {
        self.shared.reading.set(seal).expect("only once");
    }

    /// The recorded arrivals: when, and of which [`seal`].
    pub(crate) fn take_arrivals(&self) -> Vec<(u64, u128)> {
        std::mem::take(&mut *self.shared.arrivals.lock().expect("no connection panics"))
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn accept(listener: TcpListener, behaviour: Behaviour, shared: Arc<Shared>) {
    let mut connections = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        let shared = Arc::clone(&shared);
        connections.spawn(async move {
            // A broken connection comes from the relay, or is the point of the behaviour.
            drop(serve(stream, behaviour, &shared).await);
        });
        while connections.try_join_next().is_some() {}
    }
}

async fn serve(mut stream: TcpStream, behaviour: Behaviour, shared: &Shared) -> io::Result<()> {
    const OK: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
    const UNAVAILABLE: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n";
    stream.set_nodelay(true)?;
    let mut buffer = Vec::with_capacity(8 << 10);
    while read_delivery(&mut stream, &mut buffer).await? {
        let now = nanos();
        shared.count.fetch_add(1, Ordering::Relaxed);
        if let Some(read) = shared.reading.get().and_then(|reading| reading(&buffer)) {
            shared.arrivals.lock().expect("no connection panics").push((now, read));
        }
        buffer.clear();
        match behaviour {
            Behaviour::Fast => stream.write_all(OK).await?,
            Behaviour::Slow(pause) => {
                sleep(pause).await;
                stream.write_all(OK).await?;
            }
            Behaviour::Hangs => std::future::pending().await,
            Behaviour::Drips => {
                for byte in OK {
                    stream.write_all(&[*byte]).await?;
                    sleep(Duration::from_secs(1)).await;
                }
            }
            Behaviour::Endless => {
                stream.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").await?;
                let chunk = [&b"1000\r\n"[..], &[b'x'; 0x1000], b"\r\n"].concat();
                loop {
                    stream.write_all(&chunk).await?;
                    // As fast as a network, not as loopback: otherwise this benchmark would measure its own copying.
                    sleep(Duration::from_millis(1)).await;
                }
            }
            Behaviour::Flips => {
                let up = (now / 500_000_000).is_multiple_of(2);
                stream.write_all(if up { OK } else { UNAVAILABLE }).await?;
            }
        }
    }
    Ok(())
}

/// Reads a request to its end; false when there is no more.
async fn read_delivery(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> io::Result<bool> {
    loop {
        if let Some(head) = find(buffer, b"\r\n\r\n") {
            let length = content_length(&buffer[..head]).ok_or(io::ErrorKind::InvalidData)?;
            if buffer.len() >= head + 4 + length {
                return Ok(true);
            }
        }
        if stream.read_buf(buffer).await? == 0 {
            return Ok(false);
        }
    }
}

pub(crate) fn content_length(head: &[u8]) -> Option<usize> {
    let length = number(head, b"content-length: ").or_else(|| number(head, b"Content-Length: "));
    length.and_then(|length| usize::try_from(length).ok())
}

fn sent_at(delivery: &[u8]) -> Option<u64> {
    number(delivery, MARK)
}

/// What identifies a push, in the push itself and in a delivery that forwards it unchanged: the beginning of the
/// encrypted text, which is the random part.
pub(crate) fn seal(text: &[u8]) -> Option<u128> {
    let marks: [&[u8]; 2] = [b"<Encrypt><![CDATA[", b"\"encrypt\":[\""];
    let behind = |mark: &[u8]| find(text, mark).map(|begin| &text[begin + mark.len()..]);
    marks.into_iter().find_map(behind)?.first_chunk().copied().map(u128::from_be_bytes)
}

/// The number behind a mark.
fn number(text: &[u8], mark: &[u8]) -> Option<u64> {
    let rest = &text[find(text, mark)? + mark.len()..];
    let digits = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
    str::from_utf8(&rest[..digits]).ok()?.parse().ok()
}

pub(crate) fn find(text: &[u8], part: &[u8]) -> Option<usize> {
    text.windows(part.len()).position(|window| window == part)
}
