//! The cost of a push as the relay grows: routes, accounts, targets, deliveries of each push, stored events.
//!
//! `cargo bench --bench growth [-- --only routes,events --seconds 4 --rounds 5 --most 10000000 --chart
//! docs/performance.svg]`
//!
//! For each axis relays of each size take turns, round by round, on the same number of fresh pushes over 64 kept
//! connections (5,000 for each of `--seconds`). The cost is the relay's own processor time, user and system, from the
//! first push until every delivery is settled in the store, by push; on the axis of deliveries by delivery, with as
//! many deliveries in every turn. Pushes never run ahead of deliveries by more than 128, so that it is the cost of
//! keeping up that is measured, not that of a backlog (`backlog` measures that). Ratios are to the smallest size in the
//! same round; load and targets share the machine. Beside it, for information: the rate, the answer's p50 one push at a
//! time, memory.
//!
//! `--most` bounds the stored events: ten million take 8 GB in the folder for temporary files and some minutes to
//! write. `--chart` draws what was printed. Exit code 1 if a size costs over a tenth more than the smallest, by the
//! median.

#![expect(clippy::expect_used, reason = "in a benchmark a failed expectation is the failure")]

mod axis;
mod chart;
mod machine;
mod store;
// Each benchmark uses a part of it.
mod peers;
#[allow(dead_code)]
#[path = "../support/mod.rs"]
mod support;

use std::fs;
use std::path::Path;
use std::process::ExitCode;

use rustix::process::Signal;
use tempfile::TempDir;
use tokio::time::Instant;

use axis::Axis;
use chart::{Curve, Point};
use machine::Machine;
use peers::Peers;
use support::figures::{ends, mebibytes, median, millis};
use support::relay::Relay;
use support::{argument, raise_descriptors, word};

/// Connections of the load.
const CONNECTIONS: usize = 64;
/// Deliveries for each second of a turn: somewhat fewer than such a machine does.
const A_SECOND: u64 = 5000;
/// Deliveries before the measurement: connections are made, statements prepared, pages read.
const WARM_UP: u64 = 2000;
/// Pushes sent one at a time.
const ALONE: u64 = 300;
/// Over this a size is not flat.
const FLAT: f64 = 1.1;
/// Stores up to this size are written again for each turn, because its pushes would add to them noticeably.
const CHEAP: u64 = 100_000;

/// The result of one relay in one round.
struct Turn {
    /// Processor time in microseconds, by push or by delivery.
    cost: f64,
    /// Pushes a second.
    rate: f64,
    /// Milliseconds from the first byte out to the last in, at the middle, one push at a time.
    answer: f64,
    /// Peak of resident bytes.
    memory: u64,
}

#[tokio::main]
async fn main() -> ExitCode {
    let (seconds, rounds) = (argument("--seconds", 4), argument("--rounds", 5));
    let (most, only) = (argument("--most", 10_000_000), word("--only"));
    raise_descriptors();
    let machine = Machine::look();
    println!("{machine}\n{rounds} rounds, {} deliveries in each turn", seconds * A_SECOND);
    let chosen = |axis: &Axis| only.as_ref().is_none_or(|only| only.split(',').any(|name| name == axis.name()));
    let mut curves = Vec::new();
    for axis in Axis::ALL.into_iter().filter(chosen) {
        let sizes = axis.sizes(most);
        println!("{}: {}", axis.name(), axis.explanation());
        let turns = measure(axis, &sizes, rounds, seconds * A_SECOND).await;
        curves.push(tell(axis, &sizes, &turns));
    }
    assert!(!curves.is_empty(), "--only takes {:?}", Axis::ALL.map(Axis::name));
    if let Some(file) = word("--chart") {
        fs::write(root().join(file), chart::draw(&curves, &machine)).expect("the chart can be written");
    }
    let steep = curves.iter().flat_map(|curve| &curve.points).any(|point| point.middle > FLAT);
    if steep { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

/// The turns of each size, by rounds.
async fn measure(axis: Axis, sizes: &[u64], rounds: u64, deliveries: u64) -> Vec<Vec<Turn>> {
    let mut kept: Vec<Option<TempDir>> = sizes.iter().map(|_| None).collect();
    let mut turns: Vec<Vec<Turn>> = sizes.iter().map(|_| Vec::new()).collect();
    for _ in 0..rounds {
        for (place, size) in sizes.iter().enumerate() {
            let stored = if axis == Axis::Events { *size } else { 0 };
            let folder = match kept[place].take() {
                Some(folder) => folder,
                None => store::made(stored, stored > CHEAP).await,
            };
            turns[place].push(turn(axis, *size, folder.path(), deliveries).await);
            kept[place] = Some(folder).filter(|_| stored > CHEAP);
        }
    }
    turns
}

async fn turn(axis: Axis, size: u64, folder: &Path, deliveries: u64) -> Turn {
    let peers = Peers::new(axis, size).await;
    let relay = Relay::start(folder, store::QUEUE, &peers.config).await;
    peers.send(&relay, CONNECTIONS, WARM_UP.div_ceil(peers.fanout)).await;
    peers.settled(&relay).await;

    let (processor, begun, pushes) = (relay.processor(), Instant::now(), deliveries.div_ceil(peers.fanout));
    peers.send(&relay, CONNECTIONS, pushes).await;
    let took = begun.elapsed();
    peers.settled(&relay).await;
    let spent = relay.processor() - processor;

    let alone = peers.send(&relay, 1, ALONE).await;
    peers.settled(&relay).await;
    let memory = relay.memory().peak;
    relay.end(Signal::TERM).await;
    Turn {
        cost: spent.as_secs_f64() * 1e6 / (pushes * peers.fanout) as f64,
        rate: pushes as f64 / took.as_secs_f64(),
        answer: millis(alone.p50),
        memory,
    }
}

/// Prints an axis, and returns its curve for the chart.
fn tell(axis: Axis, sizes: &[u64], turns: &[Vec<Turn>]) -> Curve {
    let mut points = Vec::new();
    for (size, mine) in sizes.iter().zip(turns) {
        let column = |pick: fn(&Turn) -> f64| median(mine.iter().map(pick));
        let (least, most) = ends(mine.iter().map(|turn| turn.cost));
        let ratios: Vec<f64> = mine.iter().zip(&turns[0]).map(|(mine, smallest)| mine.cost / smallest.cost).collect();
        let (low, high) = ends(ratios.iter().copied());
        let point = Point { size: *size, middle: median(ratios), low, high };
        println!(
            "  {size:>9} {:>6.1} us [{least:.1} {most:.1}]  {:.2}x [{low:.2} {high:.2}] {}  {:>6.0} pushes/s  alone p50 {:.2} ms  {:.1} MiB",
            column(|turn| turn.cost),
            point.middle,
            if point.middle > FLAT { "OVER 1.1x" } else { "flat" },
            column(|turn| turn.rate),
            column(|turn| turn.answer),
            mebibytes(mine.iter().map(|turn| turn.memory).max().unwrap_or_default()),
        );
        points.push(point);
    }
    Curve { label: axis.label(), points }
}

/// Benchmarks run in the package's folder, and files are named relative to it.
fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}
