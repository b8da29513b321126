//! The cost of a backlog: memory, start, ingest, statistics, drain and disk with many deliveries pending.
//!
//! `cargo bench --bench backlog [-- --deliveries 1000000 --targets 1]`
//!
//! 1. Fill: pushes over 64 kept connections, each event for all targets, which are down, until that many deliveries are
//!    pending. Then the same load in turns against this relay and a fresh one without a backlog: does a backlog slow
//!    ingest? (Compared by the medians of the turns.)
//! 2. Start: the relay is killed with SIGKILL and started again: how long until `/readyz` answers 200, and until the
//!    first push is answered 200. How long a scrape of `/metrics` takes.
//! 3. Drain: the targets come up, and the time runs from their first delivery to their last, while 100 pushes a second
//!    come in, each on a connection of its own.
//! 4. After: the audit, and at a million with a retention of two minutes how far the file shrinks.
//!
//! Resident memory is sampled ten times a second throughout. With one target, a push makes one delivery; with ten (the
//! default from 10,000,000 on) it makes ten, or filling would take most of an hour.

#![expect(clippy::expect_used, reason = "in a benchmark a failed expectation is the failure")]
// Each benchmark uses a part of it.
#[allow(dead_code)]
mod support;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustix::process::Signal;
use tokio::time::{Instant, sleep};

use support::figures::{Latency, mebibytes, median, millis};
use support::relay::{Relay, audit};
use support::target::{Down, Target};
use support::wechat::{WeChat, account};
use support::{argument, nanos};

const CONNECTIONS: usize = 64;
/// Turns against the full and the fresh relay, and how long each takes.
const TURNS: usize = 5;
const TURN: Duration = Duration::from_secs(2);
/// Pushes a second during the drain.
const RATE: u64 = 100;
/// The largest memory promised at a million pending deliveries.
const MEMORY: f64 = 64.0;

#[tokio::main]
async fn main() {
    let deliveries = argument("--deliveries", 1_000_000);
    let targets = argument("--targets", if deliveries >= 10_000_000 { 10 } else { 1 });
    println!("backlog: {deliveries} deliveries to {targets} target(s)");
    let folder = tempfile::tempdir().expect("a temporary folder");
    let down: Vec<Down> = (0..targets).map(|_| Down::new()).collect();
    let config = config(&down);
    let wechat = WeChat::new();

    let relay = Relay::start(folder.path(), QUEUE, &config).await;
    let filled = fill(&relay, &wechat, deliveries / targets).await;
    tell_memory("filled", &relay);
    compare_ingest(&relay, &wechat, down.len()).await;
    println!("store     {:.0} MiB for {filled} events", mebibytes(relay.store_bytes()));
    relay.end(Signal::KILL).await;

    let begun = Instant::now();
    let relay = Relay::start(folder.path(), QUEUE, &config).await;
    let accepted = wechat.push(relay.push).await.expect("the relay answers");
    println!(
        "start     /readyz 200 after {:.0} ms, the first push answered {} after {:.0} ms",
        millis(relay.ready_after),
        if accepted { "200" } else { "an error" },
        millis(begun.elapsed()),
    );
    scrape(&relay).await;
    tell_memory("started", &relay);

    let up = down.into_iter().map(Down::come_up).collect::<Vec<_>>();
    drain(&relay, &wechat, &up).await;
    tell_memory("drained", &relay);
    relay.end(Signal::TERM).await;
    let (clean, report) = audit(folder.path());
    println!("audit     {}", if clean { "clean" } else { "NOT CLEAN" });
    println!("{report}");
    if deliveries <= 1_000_000 {
        shrink(folder.path(), &config).await;
    }
}

/// Enough capacity, and no housekeeping except what is measured.
const QUEUE: &str = "max_size = \"200GiB\"\nretention = \"30d\"\n";
/// The shortest retention: duplicates are recognised for two minutes.
const SHORT_QUEUE: &str = "max_size = \"200GiB\"\nretention = \"2m\"\n";
/// A store of this size has released its free space: its write-ahead log alone may have 64 MiB.
const SMALL: u64 = 96 << 20;
/// How long the file may stay the same size until the wait ends: old events are deleted before space is released.
const STANDSTILL: Duration = Duration::from_secs(900);

fn config(down: &[Down]) -> String {
    let names: Vec<String> = (0..down.len()).map(|number| format!("target{number}")).collect();
    let mut config = account() + &format!("[[accounts.shop.routes]]\notherwise = true\nto = {names:?}\n");
    for (name, down) in names.iter().zip(down) {
        config += &format!("[targets.{name}]\nurl = \"http://{}/hook\"\nformat = \"json\"\n", down.address());
    }
    config
}

/// Sends this many pushes, and prints the rate of each tenth.
async fn fill(relay: &Relay, wechat: &Arc<WeChat>, events: u64) -> u64 {
    let begun = Instant::now();
    let mut rates = Vec::new();
    for part in 0..10 {
        let count = events * (part + 1) / 10 - events * part / 10;
        let begun = Instant::now();
        wechat.flood(relay.push, CONNECTIONS, move |taken| taken < count).await;
        rates.push(count as f64 / begun.elapsed().as_secs_f64());
    }
    let parts: Vec<String> = rates.iter().map(|rate| format!("{rate:.0}")).collect();
    println!("fill      {:.0} pushes/s; by tenths {}", events as f64 / begun.elapsed().as_secs_f64(), parts.join(" "));
    events
}

/// The same load in turns against this relay and one that has only the deliveries of the turns pending.
async fn compare_ingest(full: &Relay, wechat: &Arc<WeChat>, targets: usize) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let down: Vec<Down> = (0..targets).map(|_| Down::new()).collect();
    let empty = Relay::start(folder.path(), QUEUE, &config(&down)).await;
    let (mut with, mut without) = (Vec::new(), Vec::new());
    for _ in 0..TURNS {
        for (relay, rates) in [(full, &mut with), (&empty, &mut without)] {
            let begun = Instant::now();
            let end = begun + TURN;
            let count = wechat.flood(relay.push, CONNECTIONS, move |_| Instant::now() < end).await;
            rates.push(count as f64 / begun.elapsed().as_secs_f64());
        }
    }
    let (with, without) = (median(with), median(without));
    println!("ingest    {with:.0} pushes/s onto the backlog, {without:.0} onto nothing: ratio {:.2}", with / without);
    empty.end(Signal::TERM).await;
}

/// Scrapes further apart than an answer is cached.
async fn scrape(relay: &Relay) {
    let mut took = Vec::new();
    for _ in 0..5 {
        sleep(Duration::from_millis(1100)).await;
        let begun = nanos();
        relay.get("/metrics").await.expect("the metrics are there");
        took.push(nanos() - begun);
    }
    let took = Latency::of(took);
    println!("scrape    {took}, longest {:.2} ms", millis(took.longest));
}

/// Waits until nothing is pending, while pushes continue.
async fn drain(relay: &Relay, wechat: &Arc<WeChat>, targets: &[Target]) {
    let received = || targets.iter().map(Target::count).sum::<u64>();
    let pending = relay.metric("wxrelay_pending{").await;
    while received() == 0 {
        sleep(Duration::from_millis(1)).await;
    }
    let (begun, processor) = (Instant::now(), relay.processor());
    let (mut answers, mut failed, mut sent) = (Vec::new(), 0, 0);
    let mut highest = 0;
    let mut last;
    loop {
        let slice = wechat.steady(relay.push, RATE, Duration::from_millis(500)).await;
        sent += slice.answers.len() as u64 + slice.failed;
        failed += slice.failed;
        answers.extend(slice.answers);
        highest = highest.max(relay.memory().now);
        last = (received(), begun.elapsed());
        if last.0 as f64 >= pending {
            break;
        }
    }
    let processor = (relay.processor() - processor).as_secs_f64() / last.1.as_secs_f64();
    println!(
        "drain     {:.0} deliveries/s ({} in {:.1} s; the relay took {processor:.2} cores)",
        last.0 as f64 / last.1.as_secs_f64(),
        last.0,
        last.1.as_secs_f64()
    );
    println!(
        "answers   {} meanwhile, {failed} failed; memory up to {:.1} MiB",
        Latency::of(answers),
        mebibytes(highest)
    );
    let expected = pending as u64 + sent * targets.len() as u64;
    while relay.metric("wxrelay_pending{").await > 0.0 {
        sleep(Duration::from_millis(100)).await;
    }
    println!("received  {} deliveries for {expected} that were pending", received());
}

/// Restarts with a short retention and waits until the file is small, or stops shrinking.
async fn shrink(folder: &Path, config: &str) {
    let relay = Relay::start(folder, SHORT_QUEUE, config).await;
    let (before, begun) = (relay.store_bytes(), Instant::now());
    let mut smallest = (before, begun.elapsed());
    while smallest.0 > SMALL && begun.elapsed() - smallest.1 < STANDSTILL {
        sleep(Duration::from_millis(500)).await;
        let bytes = relay.store_bytes();
        if bytes < smallest.0 {
            smallest = (bytes, begun.elapsed());
        }
    }
    println!(
        "shrink    from {:.0} MiB to {:.1} MiB in {:.0} s",
        mebibytes(before),
        mebibytes(smallest.0),
        smallest.1.as_secs_f64()
    );
    tell_memory("deleted", &relay);
    relay.end(Signal::TERM).await;
}

fn tell_memory(when: &str, relay: &Relay) {
    let memory = relay.memory();
    let (now, peak) = (mebibytes(memory.now), mebibytes(memory.peak));
    let verdict = if peak < MEMORY { "pass" } else { "over 64 MiB" };
    println!("memory    {when}: {now:.1} MiB, at most {peak:.1} MiB since its start  {verdict}");
}
