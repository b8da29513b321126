//! The relay on PostgreSQL beside the relay on SQLite, in turn, over HTTP, each event for two targets.
//!
//! `cargo bench --bench cluster [-- --rounds 3 --seconds 5 --held 60 --idle 30 --only NAME,..]`
//!
//! A round is SQLite, PostgreSQL, and PostgreSQL with a synchronous standby (`sqlite`, `postgres`, `standby`), each with
//! an empty store and the same load:
//!
//! - Stored: pushes over 64 kept connections, each when the previous one on its connection is answered, while both targets
//!   are paused.
//! - Drain: the targets resume; the time runs from their first delivery to their last.
//! - Answered and delivered: the same load while the targets take deliveries. What is delivered and settled is counted at
//!   the last answer; "both together" runs until the last delivery.
//! - Paced: 1,000 pushes a second on a schedule (`support/schedule.rs`); an answer's time counts from when it was due.
//!
//! With `three`, a round also has three relays on one PostgreSQL, each with a third of the connections: its rates are the
//! rows that begin with "three replicas".
//!
//! Then on PostgreSQL alone:
//!
//! - `held`: the load with deliveries, before, while and after a transaction is held open, that many seconds. For the
//!   published figure: `--only held --held 600`, which takes 10 GB.
//! - `idle`: what PostgreSQL logs with `log_statement = all` while nothing happens.
//!
//! Stores and PostgreSQL's data are in the folder for temporary files, on one disk; with `--memory` in `/dev/shm`. The
//! servers have PostgreSQL's defaults but for [`SETTINGS`], and are reached by TCP.
//!
//! `--most` bounds the pushes a second that are prepared, where the sender itself is slow to make them (a debug build).
//! Sender, relay, PostgreSQL and targets share the machine: the numbers are of all together, and nothing else should run.
//! Exit code 1 if a median is more than a fifth worse than its goal.

#![expect(clippy::expect_used, reason = "in a benchmark a failed expectation is the failure")]

#[path = "../../tests/it/support/postgres.rs"]
mod postgres;
// Each benchmark uses a part of it.
#[path = "../support/mod.rs"]
#[allow(dead_code)]
mod support;
mod table;

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use rustix::process::Signal;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use postgres::Cluster;
use support::figures::{Latency, median, millis};
use support::relay::{Relay, processor};
use support::schedule::Schedule;
use support::target::{Behaviour, Target};
use support::wechat::{WeChat, account, read_answer};
use support::{argument, nanos, word};
use table::{Column, Table};
use tokio::io::AsyncWriteExt as _;

/// As on a server of this size that is there for the relay.
const SETTINGS: &str = "shared_buffers = 512MB\nmax_wal_size = 4GB\nlog_line_prefix = '%d '";
const CONNECTIONS: usize = 64;
/// More than the relay answers in a second on such a machine. A phase ends early when all are answered.
const MOST: u64 = 16_000;
const PACE: f64 = 1000.0;
const TARGETS: [&str; 2] = ["crm", "shop"];
/// Statistics that are asked for later than this are fresh.
const FRESH: Duration = Duration::from_millis(1100);

#[tokio::main]
async fn main() {
    let only = word("--only").unwrap_or_else(|| "sqlite,postgres,three,standby,held,idle".to_owned());
    let is_wanted = |name: &str| only.split(',').any(|word| word == name);
    let (rounds, span) = (argument("--rounds", 3), Duration::from_secs(argument("--seconds", 5)));
    let memory = std::env::args().any(|word| word == "--memory");
    let base = if memory { PathBuf::from("/dev/shm") } else { std::env::temp_dir() };
    let Some(alone) = postgres::own_in(&base, SETTINGS) else { return };
    let pair = if is_wanted("standby") { Some(Pair::start(&base).await) } else { None };
    let flush = flush(&base);
    println!("cluster: {rounds} rounds, phases of {} s; a flush takes {flush:.2} ms", span.as_secs());
    let mut table = Table::new(flush);
    for _ in 0..rounds {
        if is_wanted("sqlite") {
            compare(&mut table, Column::Sqlite, &base, None, span).await;
        }
        if is_wanted("postgres") {
            compare(&mut table, Column::Postgres, &base, Some(&[&alone]), span).await;
        }
        if is_wanted("three") {
            share(&mut table, &base, &alone, span).await;
        }
        if let Some(Pair { primary, standby }) = &pair {
            compare(&mut table, Column::Standby, &base, Some(&[primary, standby]), span).await;
        }
    }
    drop(pair);
    if is_wanted("held") {
        hold(&mut table, &base, &alone, span, Duration::from_secs(argument("--held", 60))).await;
    }
    if is_wanted("idle") {
        idle(&mut table, &base, &alone, Duration::from_secs(argument("--idle", 30))).await;
    }
    std::process::exit(i32::from(!table.end()));
}

/// A server and its synchronous standby.
struct Pair {
    primary: Cluster,
    standby: Cluster,
}

impl Pair {
    async fn start(base: &Path) -> Self {
        let primary = postgres::own_in(base, SETTINGS).expect("PostgreSQL is there");
        let standby = primary.standby("b");
        primary.set("synchronous_standby_names", Some("b"));
        let is_synchronous = "SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'sync'";
        while primary.sql("postgres", is_synchronous) != "1" {
            sleep(Duration::from_millis(50)).await;
        }
        Self { primary, standby }
    }
}

/// Milliseconds that a flush of a written page takes.
fn flush(base: &Path) -> f64 {
    let folder = tempfile::tempdir_in(base).expect("a temporary folder");
    let mut file = fs::File::create(folder.path().join("file")).expect("a file");
    let mut one = || {
        let begun = Instant::now();
        file.write_all(&[1; 8192]).expect("it can be written");
        file.sync_data().expect("it can be flushed");
        millis(begun.elapsed())
    };
    median((0..100).map(|_| one()).collect::<Vec<_>>())
}

/// A relay with an empty store, its targets, and the servers that it uses.
struct Stand<'a> {
    relay: Relay,
    /// The other replicas, which have the same store.
    beside: Vec<Relay>,
    targets: Vec<Target>,
    wechat: Arc<WeChat>,
    servers: &'a [&'a Cluster],
    _folder: tempfile::TempDir,
}

/// What a loaded phase gave.
struct Loaded {
    answers: Latency,
    took: Duration,
    /// Processor time of the relay, of PostgreSQL, and of sender and targets.
    processor: [Duration; 3],
}

impl Loaded {
    fn rate(&self) -> f64 {
        self.answers.count as f64 / self.took.as_secs_f64()
    }
}

impl<'a> Stand<'a> {
    async fn start(base: &Path, servers: Option<&'a [&'a Cluster]>, replicas: usize) -> Self {
        let folder = tempfile::tempdir_in(base).expect("a temporary folder");
        let mut config = account() + &format!("[[accounts.shop.routes]]\notherwise = true\nto = {TARGETS:?}\n");
        let mut targets = Vec::new();
        for name in TARGETS {
            let target = Target::start(Behaviour::Fast).await;
            config += &format!("[targets.{name}]\nurl = \"http://{}/\"\nformat = \"json\"\n", target.address);
            targets.push(target);
        }
        let mut beside = Vec::new();
        let relay = match servers {
            None => Relay::start(folder.path(), "max_size = \"100GiB\"\n", &config).await,
            Some(servers) => {
                let url = servers.first().expect("a server").database().url();
                let first = Relay::start_on_postgres(folder.path(), &url, &config).await;
                for number in 1..replicas {
                    let folder = folder.path().join(number.to_string());
                    fs::create_dir(&folder).expect("a folder");
                    beside.push(Relay::start_on_postgres(&folder, &url, &config).await);
                }
                first
            }
        };
        Self { relay, beside, targets, wechat: WeChat::new(), servers: servers.unwrap_or_default(), _folder: folder }
    }

    fn relays(&self) -> impl Iterator<Item = &Relay> + Clone {
        std::iter::once(&self.relay).chain(&self.beside)
    }

    /// Pushes as fast as they are answered.
    async fn load(&self, span: Duration) -> Loaded {
        let limit = span.as_secs() * argument("--most", MOST);
        // Made before, so that they cost nothing while it is measured.
        let pushes: Arc<[_]> = (0..limit).map(|_| self.wechat.request(true)).collect();
        let next = Arc::new(AtomicUsize::new(0));
        let (before, begun) = (self.processor(), Instant::now());
        let mut senders = JoinSet::new();
        for relay in self.relays().cycle().take(CONNECTIONS) {
            let (pushes, next, to) = (Arc::clone(&pushes), Arc::clone(&next), relay.push);
            senders.spawn(async move {
                let mut stream = TcpStream::connect(to).await.expect("the relay listens");
                stream.set_nodelay(true).expect("a TCP socket");
                let (mut answer, mut answers) = (vec![0; 1024], Vec::new());
                while begun.elapsed() < span {
                    let Some(push) = pushes.get(next.fetch_add(1, Ordering::Relaxed)) else { break };
                    let sent = nanos();
                    stream.write_all(push).await.expect("the relay reads");
                    let length = read_answer(&mut stream, &mut answer).await.expect("the relay answers");
                    let answer = String::from_utf8_lossy(&answer[..length]);
                    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
                    answers.push(nanos() - sent);
                }
                answers
            });
        }
        let answers = Latency::of(senders.join_all().await.concat());
        let (took, after) = (begun.elapsed(), self.processor());
        let processor = [0, 1, 2].map(|who| after[who].saturating_sub(before[who]));
        Loaded { answers, took, processor }
    }

    fn processor(&self) -> [Duration; 3] {
        let servers = self.servers.iter().flat_map(|server| processes(server.pid()));
        let relays = self.relays().map(|relay| processor(relay.id())).sum();
        [relays, servers.map(processor).sum(), processor(std::process::id())]
    }

    fn delivered(&self) -> u64 {
        self.targets.iter().map(Target::count).sum()
    }

    async fn arrive(&self, count: u64) {
        while self.delivered() < count {
            sleep(Duration::from_millis(2)).await;
        }
    }

    async fn all(&self, action: &str) {
        for name in TARGETS {
            let done = self.relay.ask("POST", &format!("/api/targets/{name}/{action}")).await;
            done.expect("the relay does it");
        }
    }

    async fn settled(&self) {
        while self.relay.metric("wxrelay_pending{").await > 0.0 {
            sleep(Duration::from_millis(100)).await;
        }
    }

    /// Ends the relays, and removes their tables.
    async fn end(self) {
        for relay in std::iter::once(self.relay).chain(self.beside) {
            relay.end(Signal::TERM).await;
        }
        if let Some(primary) = self.servers.first() {
            let databases = "SELECT datname FROM pg_database WHERE datname LIKE 'test%'";
            for name in primary.sql("postgres", databases).lines() {
                primary.sql("postgres", &format!("DROP DATABASE {name} WITH (FORCE)"));
            }
            primary.sql("postgres", "CHECKPOINT");
        }
    }
}

/// A server's processes, sessions included.
fn processes(first: i32) -> Vec<u32> {
    let first = u32::try_from(first).expect("a process");
    let entries = fs::read_dir("/proc").expect("it runs on Linux").flatten();
    let children = entries.filter_map(|entry| {
        let stat = fs::read_to_string(entry.path().join("stat")).ok()?;
        let parent = stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse::<u32>().ok()?;
        (parent == first).then(|| entry.file_name().to_str()?.parse::<u32>().ok())?
    });
    std::iter::once(first).chain(children).collect()
}

/// All phases of a round for one engine.
async fn compare(table: &mut Table, column: Column, base: &Path, servers: Option<&[&Cluster]>, span: Duration) {
    let stand = Stand::start(base, servers, 1).await;
    // Connections and statements are made.
    let warm_up = stand.load(Duration::from_secs(1)).await;
    stand.arrive(2 * warm_up.answers.count as u64).await;

    stand.all("pause").await;
    sleep(FRESH).await;
    let before = stand.delivered();
    let stored = stand.load(span).await;
    table.loaded(column, "stored", &stored);

    let pending = 2 * stored.answers.count as u64 - (stand.delivered() - before);
    let paused = stand.delivered();
    stand.all("resume").await;
    stand.arrive(paused + 1).await;
    let begun = Instant::now();
    stand.arrive(paused + pending).await;
    table.note(column, "drain, deliveries a second", pending as f64 / begun.elapsed().as_secs_f64());
    stand.settled().await;
    sleep(FRESH).await;

    let before = stand.delivered();
    let both = stand.load(span).await;
    let (delivered, answered) = (stand.delivered() - before, Instant::now());
    let settled = 2.0 * both.answers.count as f64 - stand.relay.metric("wxrelay_pending{").await;
    stand.arrive(before + 2 * both.answers.count as u64).await;
    let together = both.answers.count as f64 / (both.took + answered.elapsed()).as_secs_f64();
    table.loaded(column, "answered and delivered", &both);
    table.note(column, "  delivered a second meanwhile", delivered as f64 / both.took.as_secs_f64());
    table.note(column, "  settled a second meanwhile", settled / both.took.as_secs_f64());
    table.note(column, "  both together, events a second", together);
    stand.settled().await;

    let schedule = Schedule { rate: PACE, span, connections: CONNECTIONS, kept: true };
    let paced = schedule.keep(&stand.wechat, stand.relay.push).await;
    table.note(column, "not answered 200", paced.failed as f64);
    table.paced(column, &Latency::of(paced.answers));
    stand.end().await;
}

/// The phases with full load, of three replicas.
async fn share(table: &mut Table, base: &Path, server: &Cluster, span: Duration) {
    let servers = [server];
    let stand = Stand::start(base, Some(&servers), 3).await;
    let warm_up = stand.load(Duration::from_secs(1)).await;
    stand.arrive(2 * warm_up.answers.count as u64).await;
    stand.all("pause").await;
    sleep(FRESH).await;
    let stored = stand.load(span).await;
    table.loaded(Column::Postgres, "three replicas: stored", &stored);
    stand.all("resume").await;
    sleep(FRESH).await;
    stand.settled().await;
    let (before, both) = (stand.delivered(), stand.load(span).await);
    let answered = Instant::now();
    stand.arrive(before + 2 * both.answers.count as u64).await;
    let together = both.answers.count as f64 / (both.took + answered.elapsed()).as_secs_f64();
    table.loaded(Column::Postgres, "three replicas: answered and delivered", &both);
    table.note(Column::Postgres, "  three replicas: both together, events a second", together);
    stand.settled().await;
    stand.end().await;
}

/// Deliveries run while a transaction is held open: what is dead stays in the tables and indexes.
async fn hold(table: &mut Table, base: &Path, server: &Cluster, span: Duration, held: Duration) {
    let servers = [server];
    let stand = Stand::start(base, Some(&servers), 1).await;
    // The tables and their caches grow alike, held or not: so the comparison begins with some rows.
    stand.load(span).await;
    let rate = async || {
        let before = stand.delivered();
        let loaded = stand.load(span).await;
        let answered = Instant::now();
        stand.arrive(before + 2 * loaded.answers.count as u64).await;
        let rate = loaded.answers.count as f64 / (loaded.took + answered.elapsed()).as_secs_f64();
        println!("  {rate:.0} events/s answered and delivered, answers {}", loaded.answers);
        rate
    };
    println!("held: before");
    let before = median([rate().await, rate().await, rate().await]);
    let mut session = server.psql("postgres").spawn().expect("psql runs");
    let mut input = session.stdin.take().expect("a pipe");
    let database = server.sql("postgres", "SELECT datname FROM pg_database WHERE datname LIKE 'test%'");
    writeln!(input, "\\c {database}\nBEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1;").expect("psql reads");
    let mut reply = String::new();
    BufReader::new(session.stdout.take().expect("a pipe")).read_line(&mut reply).expect("psql answers");
    println!("held: a transaction is open");
    let begun = Instant::now();
    let mut rates = Vec::new();
    while begun.elapsed() < held || rates.len() < 3 {
        rates.push(rate().await);
    }
    let last = median(rates.iter().rev().take(3).copied());
    let tables =
        "SELECT relname || ' ' || n_dead_tup FROM pg_stat_user_tables WHERE n_dead_tup > 0 ORDER BY n_dead_tup DESC";
    println!("  dead rows: {}", server.sql(&database, tables).replace('\n', ", "));
    drop(input);
    session.wait().expect("psql ends");
    println!("held: the transaction has ended");
    let after = median([rate().await, rate().await, rate().await]);
    table.note(Column::Postgres, "before a held transaction, events a second", before);
    table.note(Column::Postgres, &format!("  after {} s of it", begun.elapsed().as_secs()), last);
    table.note(Column::Postgres, "  of the rate before, per cent", 100.0 * last / before);
    table.note(Column::Postgres, "  once it has ended", after);
    stand.end().await;
}

/// The statements while nothing happens.
async fn idle(table: &mut Table, base: &Path, server: &Cluster, span: Duration) {
    let servers = [server];
    let stand = Stand::start(base, Some(&servers), 1).await;
    assert!(stand.wechat.push(stand.relay.push).await.expect("the relay answers"), "the first push");
    stand.arrive(2).await;
    server.set("log_statement", Some("all"));
    sleep(Duration::from_secs(3)).await;
    let log = || fs::read_to_string(server.folder.join("server.log")).expect("its log");
    let (before, begun) = (log().len(), Instant::now());
    sleep(span).await;
    let (log, seconds) = (log(), begun.elapsed().as_secs_f64());
    let lines = log[before..].lines().filter(|line| line.starts_with("test"));
    let lines = lines.filter(|line| line.contains("LOG:  statement:") || line.contains("LOG:  execute "));
    let all: Vec<&str> = lines.collect();
    println!("idle: {} statements in {seconds:.0} s", all.len());
    for line in all.iter().take(12) {
        println!("  {}", line.chars().take(150).collect::<String>());
    }
    table.note(Column::Postgres, "idle, statements a second", all.len() as f64 / seconds);
    server.set("log_statement", None);
    stand.end().await;
}
