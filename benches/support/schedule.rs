//! Pushes on a schedule: evenly spread, each due at its moment, whether earlier ones are answered or not.
//!
//! The time of an answer counts from when its push was due. So the wait for a free connection counts, and a slow answer
//! is not hidden by the pushes that it delays (no coordinated omission). The sender's own lateness, some 60 us, counts
//! too. A thread keeps the schedule: tokio's timer has a resolution of a millisecond, which at thousands a second would
//! make bursts.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use rustix::event::{Timespec, poll};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::task::{JoinSet, spawn_blocking};

use super::nanos;
use super::target::seal;
use super::wechat::{WeChat, read_answer};

/// From the last preparation to the first push, in nanoseconds.
const LEAD: u64 = 100_000_000;

/// A rate of pushes a second for a time.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Schedule {
    pub(crate) rate: f64,
    pub(crate) span: Duration,
    /// Most concurrent connections.
    pub(crate) connections: usize,
    /// Whether a connection is for many pushes, or one for each as WeChat makes them.
    pub(crate) kept: bool,
}

/// The results.
#[derive(Default)]
pub(crate) struct Outcome {
    /// Of those answered 200: from the moment when it was due to the last byte in, in nanoseconds.
    pub(crate) answers: Vec<u64>,
    /// Of those too, by the push's [`seal`]: when its first byte was about to be written, in `nanos()`.
    pub(crate) written: HashMap<u128, u64>,
    pub(crate) failed: u64,
}

impl Schedule {
    /// Makes all pushes first, so that they cost nothing during the measurement; then sends them.
    pub(crate) async fn keep(self, wechat: &WeChat, to: SocketAddr) -> Outcome {
        let count = (self.rate * self.span.as_secs_f64()) as usize;
        let pushes = (0..count).map(|_| wechat.request(self.kept)).collect();
        let line = Arc::new(Line {
            pushes,
            begin: nanos() + LEAD,
            gap: 1e9 / self.rate,
            due: Semaphore::new(0),
            next: AtomicUsize::new(0),
            to,
        });
        let mut senders = JoinSet::new();
        for _ in 0..self.connections {
            senders.spawn(Arc::clone(&line).send(self.kept));
        }
        let timekeeper = spawn_blocking(move || line.keep_time(self.connections));
        let mut whole = Outcome::default();
        for part in senders.join_all().await {
            whole.answers.extend(part.answers);
            whole.written.extend(part.written);
            whole.failed += part.failed;
        }
        timekeeper.await.expect("the timekeeper does not panic");
        whole
    }
}

/// The queue of due pushes, shared by the connections.
struct Line {
    pushes: Vec<Vec<u8>>,
    /// When the first push is due, in `nanos()`.
    begin: u64,
    /// Nanoseconds between two.
    gap: f64,
    /// A permit for each due push, and at the end one for each connection, so that it sees the end.
    due: Semaphore,
    next: AtomicUsize,
    to: SocketAddr,
}

impl Line {
    fn keep_time(&self, connections: usize) {
        for index in 0..self.pushes.len() {
            loop {
                let left = self.due_at(index).saturating_sub(nanos());
                if left == 0 {
                    break;
                }
                let left = Duration::from_nanos(left);
                let timeout = Timespec {
                    tv_sec: left.as_secs().try_into().expect("some seconds"),
                    tv_nsec: left.subsec_nanos().into(),
                };
                // If a signal interrupts the wait, the next turn makes up for it.
                poll(&mut [], Some(&timeout)).ok();
            }
            self.due.add_permits(1);
        }
        self.due.add_permits(connections);
    }

    fn due_at(&self, index: usize) -> u64 {
        self.begin + (index as f64 * self.gap) as u64
    }

    async fn send(self: Arc<Self>, kept: bool) -> Outcome {
        let mut outcome = Outcome::default();
        let mut idle = if kept { connect(self.to).await.ok() } else { None };
        loop {
            self.due.acquire().await.expect("it is never closed").forget();
            let index = self.next.fetch_add(1, Ordering::Relaxed);
            let Some(push) = self.pushes.get(index) else { return outcome };
            match exchange(idle.take(), self.to, push, kept).await {
                Ok(Exchanged { stream, written, accepted: true }) => {
                    outcome.answers.push(nanos() - self.due_at(index));
                    outcome.written.insert(seal(push).expect("a sealed push"), written);
                    idle = stream;
                }
                Ok(Exchanged { accepted: false, .. }) | Err(_) => outcome.failed += 1,
            }
        }
    }
}

struct Exchanged {
    /// For the next push, if it is kept.
    stream: Option<TcpStream>,
    written: u64,
    /// Whether the answer was 200.
    accepted: bool,
}

/// One push, on this connection or on a new one.
async fn exchange(idle: Option<TcpStream>, to: SocketAddr, push: &[u8], keep: bool) -> io::Result<Exchanged> {
    let mut stream = match idle {
        Some(stream) => stream,
        None => connect(to).await?,
    };
    let written = nanos();
    stream.write_all(push).await?;
    let mut answer = vec![0; 1024];
    let length = read_answer(&mut stream, &mut answer).await?;
    let accepted = answer[..length].get(9..12) == Some(b"200");
    if !keep {
        // To its end, as WeChat reads.
        if stream.read(&mut answer).await? > 0 {
            return Err(io::ErrorKind::InvalidData.into());
        }
        return Ok(Exchanged { stream: None, written, accepted });
    }
    Ok(Exchanged { stream: Some(stream), written, accepted })
}

async fn connect(to: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(to).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}
