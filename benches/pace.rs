//! The relay's absolute numbers, each beside its goal: rate, latencies, memory, start, size.
//!
//! `cargo bench --bench pace [-- --seconds 5 --rounds 3 --starts 10 --quiet 10]`
//!
//! - The peak: pushes over 64 kept connections, each when the previous one on its connection is answered; every push is
//!   a scan with one delivery to a handler.
//! - Answers at half of the peak's median: the same connections and handler, pushes on a schedule
//!   (`support/schedule.rs`). The same schedule also runs against a target instead of the relay: that is the machine's
//!   own latency, and shows whether the machine is idle enough for these numbers.
//! - Identity: 1,000 scans a second for an identity provider in its default settings, each push on a connection of its
//!   own as WeChat makes them. Forwarded: from just before the push's first byte is written until the provider has the
//!   whole request, so that reading the push counts too.
//! - Memory: resident, before the peak, and its maximum at the peak.
//! - The start: from before the process exists until `/readyz` answers 200, polled each millisecond or two; once with
//!   an existing empty store, once without a store.
//!
//! The binary that `cargo bench` builds has the tests' features of the dependencies, and is larger than what is
//! shipped: for the size, name `target/dist/wxrelay` by `WXRELAY_BENCH_BINARY`.
//!
//! Load, relay and targets share the machine: the numbers are of all three together, and nothing else should run. A
//! missed goal is marked, and does not fail the benchmark.

#![expect(clippy::expect_used, reason = "in a benchmark a failed expectation is the failure")]
// Each benchmark uses a part of it.
#[allow(dead_code)]
mod support;

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use rustix::process::Signal;
use tokio::time::{Instant, sleep};

use support::argument;
use support::figures::{Latency, ends, mebibytes, median, millis};
use support::relay::{Relay, binary};
use support::schedule::{Outcome, Schedule};
use support::target::{Behaviour, Target};
use support::wechat::{WeChat, account, exchanges};

const CONNECTIONS: usize = 64;
/// More than the relay answers in a second on such a machine. A round ends early when all are answered.
const PUSHES_A_SECOND: u64 = 40_000;
/// Scans a second for the identity provider.
const SCANS: f64 = 1000.0;
/// Before a measurement on a schedule: connections are made.
const WARM_UP: Duration = Duration::from_secs(1);

#[tokio::main]
async fn main() {
    let (span, rounds) = (Duration::from_secs(argument("--seconds", 5)), argument("--rounds", 3));
    let mut table = Table::begin();
    let size = fs::metadata(binary()).expect("the binary is there").len();
    table.row("size of the binary, MiB", [mebibytes(size)], Goal::Under(12.8));
    starts(&mut table, argument("--starts", 10)).await;
    handled(&mut table, span, rounds, Duration::from_secs(argument("--quiet", 10))).await;
    identified(&mut table, span, rounds).await;
    table.end();
}

async fn starts(table: &mut Table, count: u64) {
    let target = Target::start(Behaviour::Fast).await;
    let config = handler(&target);
    let kept = tempfile::tempdir().expect("a temporary folder");
    Relay::start(kept.path(), "", &config).await.end(Signal::TERM).await;
    let (mut with, mut without) = (Vec::new(), Vec::new());
    for _ in 0..count {
        let fresh = tempfile::tempdir().expect("a temporary folder");
        for (folder, took) in [(&kept, &mut with), (&fresh, &mut without)] {
            let relay = Relay::start(folder.path(), "", &config).await;
            took.push(millis(relay.ready_after));
            relay.end(Signal::TERM).await;
        }
    }
    table.row("start to ready, an empty store, ms", with, Goal::Under(50.0));
    table.row("start to ready, no store, ms", without, Goal::Under(50.0));
}

/// Everything with a handler: idle, at the peak, at half of it.
async fn handled(table: &mut Table, span: Duration, rounds: u64, quiet: Duration) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let target = Target::start(Behaviour::Fast).await;
    let relay = Relay::start(folder.path(), "", &handler(&target)).await;
    table.row("memory when ready, MiB", [mebibytes(relay.memory().now)], Goal::Under(20.0));
    sleep(quiet).await;
    let figure = format!("memory {} s later, MiB", quiet.as_secs());
    table.row(&figure, [mebibytes(relay.memory().now)], Goal::Under(20.0));

    let wechat = WeChat::new();
    let (mut answered, mut delivered) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        let peak = peak(&relay, &wechat, &target, span).await;
        answered.push(peak.answered);
        delivered.push(peak.delivered);
    }
    let half = median(answered.iter().copied()) / 2.0;
    table.row("peak, pushes answered a second", answered, Goal::Unset);
    table.row("peak, pushes answered and delivered a second", delivered, Goal::Unset);
    table.row("memory at the peak, MiB", [mebibytes(relay.memory().peak)], Goal::Under(64.0));

    let schedule = Schedule { rate: half, span, connections: CONNECTIONS, kept: true };
    let mut alone = Vec::new();
    for _ in 0..rounds {
        alone.push(Latency::of(schedule.keep(&wechat, target.address).await.answers));
    }
    table.latency("  the same without a relay", &alone, Goal::Unset);
    let (latencies, failed) = measured(schedule, &relay, &wechat, &target, rounds, |outcome, _| outcome.answers).await;
    table.latency(&format!("answer at {half:.0} pushes/s"), &latencies, Goal::Under(10.0));
    table.row("  not answered 200", [failed as f64], Goal::Zero);
    table.row("memory after all that, MiB", [mebibytes(relay.memory().now)], Goal::Unset);
    relay.end(Signal::TERM).await;
}

struct Peak {
    /// Pushes a second, until the last answer.
    answered: f64,
    /// The same, until the last delivery.
    delivered: f64,
}

async fn peak(relay: &Relay, wechat: &WeChat, target: &Target, span: Duration) -> Peak {
    let limit = span.as_secs() * PUSHES_A_SECOND;
    // Made before, so that they cost nothing while it is measured.
    let pushes: Arc<[_]> = (0..limit).map(|_| wechat.request(true)).collect();
    let next = Arc::new(AtomicUsize::new(0));
    let push = move || pushes[next.fetch_add(1, Ordering::Relaxed)].clone();
    let (before, begun) = (target.count(), Instant::now());
    let go = move |taken| taken < limit && begun.elapsed() < span;
    let count = exchanges(relay.push, CONNECTIONS, go, push, "HTTP/1.1 200").await;
    let answered = count as f64 / begun.elapsed().as_secs_f64();
    arrived(target, before + count).await;
    Peak { answered, delivered: count as f64 / begun.elapsed().as_secs_f64() }
}

/// Identity in its default settings, routes included.
async fn identified(table: &mut Table, span: Duration, rounds: u64) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let target = Target::start(Behaviour::Fast).await;
    let config = format!(
        "{}[targets.login]\nrole = \"identity\"\nprovider = \"authing\"\nidentifier = \"bench\"\n\
         user_pool_id = \"0123456789abcdef\"\nbase_url = \"http://{}\"\n",
        account(),
        target.address
    );
    let relay = Relay::start(folder.path(), "", &config).await;
    target.keep_arrivals();
    let wechat = WeChat::new();
    // At most as many as come in 200 ms.
    let schedule = Schedule { rate: SCANS, span, connections: 200, kept: false };
    let forwarded = |outcome: Outcome, target: &Target| {
        let arrivals = target.take_arrivals().into_iter();
        arrivals.filter_map(|(at, seal)| Some(at.saturating_sub(*outcome.written.get(&seal)?))).collect()
    };
    let (latencies, failed) = measured(schedule, &relay, &wechat, &target, rounds, forwarded).await;
    table.latency(&format!("identity at {SCANS:.0} scans/s, forwarded"), &latencies, Goal::Under(5.0));
    table.row("  not answered 200", [failed as f64], Goal::Zero);
    table.row("memory after that, MiB", [mebibytes(relay.memory().now)], Goal::Unset);
    relay.end(Signal::TERM).await;
}

/// A schedule round by round, each until all is delivered: the latencies that `pick` selects, and the failures.
async fn measured(
    schedule: Schedule,
    relay: &Relay,
    wechat: &WeChat,
    target: &Target,
    rounds: u64,
    pick: impl Fn(Outcome, &Target) -> Vec<u64>,
) -> (Vec<Latency>, u64) {
    let warm_up = Schedule { span: WARM_UP, ..schedule };
    let before = target.count();
    let outcome = warm_up.keep(wechat, relay.push).await;
    arrived(target, before + outcome.answers.len() as u64).await;
    let (mut latencies, mut failed) = (Vec::new(), 0);
    for _ in 0..rounds {
        let before = target.count();
        let outcome = schedule.keep(wechat, relay.push).await;
        arrived(target, before + outcome.answers.len() as u64).await;
        failed += outcome.failed;
        latencies.push(Latency::of(pick(outcome, target)));
    }
    (latencies, failed)
}

async fn arrived(target: &Target, count: u64) {
    while target.count() < count {
        sleep(Duration::from_millis(2)).await;
    }
}

/// An account whose scans all go to one handler, in its default settings but for the format.
fn handler(target: &Target) -> String {
    format!(
        "{}[[accounts.shop.routes]]\notherwise = true\nto = [\"app\"]\n[targets.app]\nurl = \"http://{}/\"\nformat = \"json\"\n",
        account(),
        target.address
    )
}

/// The printed table, a line as soon as its number is known.
struct Table {
    missed: u32,
    held: u32,
}

/// The goal for the median of a number.
#[derive(Clone, Copy)]
enum Goal {
    Under(f64),
    /// It must be zero.
    Zero,
    /// No goal: for information.
    Unset,
}

impl Table {
    fn begin() -> Self {
        println!("{:46} {:>10} {:>10} {:>10}  goal", "", "median", "least", "most");
        Self { missed: 0, held: 0 }
    }

    fn latency(&mut self, figure: &str, rounds: &[Latency], p99: Goal) {
        let column = |pick: fn(&Latency) -> Duration| rounds.iter().map(move |round| millis(pick(round)));
        self.row(&format!("{figure}, p50, ms"), column(|round| round.p50), Goal::Unset);
        self.row(&format!("{figure}, p99, ms"), column(|round| round.p99), p99);
        self.row(&format!("{figure}, longest, ms"), column(|round| round.longest), Goal::Unset);
    }

    fn row(&mut self, figure: &str, values: impl IntoIterator<Item = f64>, goal: Goal) {
        let values: Vec<f64> = values.into_iter().collect();
        let middle = median(values.iter().copied());
        let (held, wish) = match goal {
            Goal::Under(limit) => (middle < limit, format!("< {limit}")),
            Goal::Zero => (middle == 0.0, "0".to_owned()),
            Goal::Unset => (true, String::new()),
        };
        if !matches!(goal, Goal::Unset) {
            *if held { &mut self.held } else { &mut self.missed } += 1;
        }
        let spread = match values.as_slice() {
            [_] => format!("{:21}", ""),
            values => {
                let (least, most) = ends(values.iter().copied());
                format!("{least:>10.2} {most:>10.2}")
            }
        };
        println!("{figure:46} {middle:>10.2} {spread}  {wish:8}{}", if held { "" } else { "MISSED" });
    }

    fn end(&self) {
        println!("{} held, {} missed", self.held, self.missed);
    }
}
