//! The peers of one relay: the senders of its accounts, and its targets, all in this process.

use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::sleep;

use super::axis::{Axis, mark};
use super::support::figures::Latency;
use super::support::nanos;
use super::support::relay::Relay;
use super::support::target::{Behaviour, Target};
use super::support::wechat::{WeChat, read_answer};

/// How many pushes may have deliveries outstanding: fewer than the inbox of a lane holds.
const AHEAD: u64 = 128;

pub(crate) struct Peers {
    /// The relay's configuration: accounts, routes and targets.
    pub(crate) config: String,
    /// How many targets each push goes to.
    pub(crate) fanout: u64,
    shared: Arc<Shared>,
}

struct Shared {
    accounts: Vec<Arc<WeChat>>,
    targets: Vec<Target>,
    fanout: u64,
    /// Pushes begun.
    sent: AtomicU64,
}

impl Peers {
    pub(crate) async fn new(axis: Axis, size: u64) -> Self {
        let mut config = axis.config(size);
        let mut targets = Vec::new();
        for number in 0..axis.targets(size) {
            let target = Target::start(Behaviour::Fast).await;
            write!(config, "[targets.app{number}]\nurl = \"http://{}/hook\"\n", target.address)
                .expect("a string takes all");
            targets.push(target);
        }
        let accounts = (0..axis.accounts(size)).map(|number| WeChat::marked(&mark(number))).collect();
        let fanout = axis.fanout(size);
        Self { config, fanout, shared: Arc::new(Shared { accounts, targets, fanout, sent: AtomicU64::new(0) }) }
    }

    /// Sends pushes over kept connections, to each account in turn; returns the latencies of the answers.
    pub(crate) async fn send(&self, relay: &Relay, connections: usize, count: u64) -> Latency {
        let begun = Arc::new(AtomicU64::new(0));
        let mut senders = JoinSet::new();
        for _ in 0..connections {
            let (shared, begun, to) = (Arc::clone(&self.shared), Arc::clone(&begun), relay.push);
            senders.spawn(async move {
                let mut stream = TcpStream::connect(to).await.expect("the relay listens");
                stream.set_nodelay(true).expect("a TCP socket");
                let (mut answer, mut took) = (vec![0; 1024], Vec::new());
                while begun.fetch_add(1, Ordering::Relaxed) < count {
                    let push = shared.next().await;
                    let sent = nanos();
                    stream.write_all(&push).await.expect("the relay reads");
                    let length = read_answer(&mut stream, &mut answer).await.expect("the relay answers");
                    let answer = &answer[..length];
                    assert!(answer.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(answer));
                    took.push(nanos() - sent);
                }
                took
            });
        }
        Latency::of(senders.join_all().await.concat())
    }

    /// Waits until all pushes are delivered and settled.
    pub(crate) async fn settled(&self, relay: &Relay) {
        while self.shared.behind() > 0 || relay.metric("wxrelay_pending{").await > 0.0 {
            sleep(Duration::from_millis(20)).await;
        }
    }
}

impl Shared {
    /// The next push, when the targets are not too far behind.
    async fn next(&self) -> Vec<u8> {
        while self.behind() > AHEAD * self.fanout {
            sleep(Duration::from_millis(1)).await;
        }
        let number = self.sent.fetch_add(1, Ordering::Relaxed);
        let account = usize::try_from(number).expect("few enough") % self.accounts.len();
        self.accounts[account].request(true)
    }

    /// Deliveries of sent pushes that are outstanding.
    fn behind(&self) -> u64 {
        let received: u64 = self.targets.iter().map(Target::count).sum();
        (self.sent.load(Ordering::Relaxed) * self.fanout).saturating_sub(received)
    }
}
