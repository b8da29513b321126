//! The relay beside other software at WeChat's server URL: answers a second, latency, processor time, memory.
//!
//! `cargo bench --bench compare [-- --seconds 3 --rounds 3 --only keep-64]`
//!
//! Peers: nginx and HAProxy, which forward pushes to a handler and return its answer; a Node server like the identity
//! provider's own sample (`mode2.mjs`), where `node` is installed; the relay, once without targets and once with a
//! delivery of each push to the handler. Only the relay stores anything: every push is on disk before its answer. A
//! peer whose program is missing is skipped with a visible line.
//!
//! In each setting the peers take turns, round by round, on the same number of fresh pushes, so that a busy machine is
//! busy for all of them. Load, peer and handler share the machine. Ratios are to nginx in the same round. WeChat opens
//! a connection for every push.

#![expect(clippy::expect_used, reason = "in a benchmark a failed expectation is the failure")]

mod load;
mod peers;
// Each benchmark uses a part of it.
#[allow(dead_code)]
#[path = "../support/mod.rs"]
mod support;

use std::time::Duration;

use load::{ConnectionUse, Load, Measured};
use peers::{Environment, Peer};
use support::figures::{ends, mebibytes, median};
use support::target::{Behaviour, Down, Target};
use support::wechat::WeChat;
use support::{argument, word};

/// The conditions of a comparison.
struct Setting {
    name: &'static str,
    connections: ConnectionUse,
    /// Concurrent connections.
    concurrency: usize,
    /// `None`: without a listener.
    handler: Option<Behaviour>,
}

const fn setting(name: &'static str, connections: ConnectionUse, concurrency: usize) -> Setting {
    Setting { name, connections, concurrency, handler: Some(Behaviour::Fast) }
}

const SETTINGS: [Setting; 17] = [
    setting("keep-1", ConnectionUse::Kept, 1),
    setting("keep-64", ConnectionUse::Kept, 64),
    setting("keep-512", ConnectionUse::Kept, 512),
    setting("each-1", ConnectionUse::Each, 1),
    setting("each-64", ConnectionUse::Each, 64),
    setting("each-512", ConnectionUse::Each, 512),
    setting("tls-full-1", ConnectionUse::TlsFull, 1),
    setting("tls-full-64", ConnectionUse::TlsFull, 64),
    setting("tls-full-512", ConnectionUse::TlsFull, 512),
    setting("tls-resumed-1", ConnectionUse::TlsResumed, 1),
    setting("tls-resumed-64", ConnectionUse::TlsResumed, 64),
    setting("tls-resumed-512", ConnectionUse::TlsResumed, 512),
    setting("tls12-resumed-1", ConnectionUse::Tls12Resumed, 1),
    setting("tls12-resumed-64", ConnectionUse::Tls12Resumed, 64),
    setting("tls12-resumed-512", ConnectionUse::Tls12Resumed, 512),
    Setting {
        handler: Some(Behaviour::Slow(Duration::from_millis(50))),
        ..setting("each-64-handler-50ms", ConnectionUse::Each, 64)
    },
    Setting { handler: None, ..setting("each-64-handler-dead", ConnectionUse::Each, 64) },
];

#[tokio::main]
async fn main() {
    let (span, rounds) = (Duration::from_secs(argument("--seconds", 3)), argument("--rounds", 3));
    let only = word("--only");
    for setting in SETTINGS.iter().filter(|setting| only.as_ref().is_none_or(|only| setting.name == only)) {
        compare(setting, span, rounds).await;
    }
}

/// Runs the peers in turn, and prints the results.
async fn compare(setting: &Setting, span: Duration, rounds: u64) {
    println!("{} ({} at a time, {} s, {rounds} rounds)", setting.name, setting.concurrency, span.as_secs());
    let (down, handler) = match setting.handler {
        Some(behaviour) => (None, Some(Target::start(behaviour).await)),
        None => (Some(Down::new()), None),
    };
    let address = handler.as_ref().map(|handler| handler.address).or(down.as_ref().map(Down::address));
    let environment = Environment::new(address.expect("one of the two"));
    let wechat = WeChat::new();
    let mut results: Vec<(Peer, Vec<Measured>)> = Vec::new();
    for round in 0..rounds {
        for (place, peer) in Peer::ALL.into_iter().filter(|peer| environment.has(*peer)).enumerate() {
            if round == 0 {
                results.push((peer, Vec::new()));
            }
            let running = environment.start(peer, setting.connections.is_tls()).await;
            let load = Load { connections: setting.connections, concurrency: setting.concurrency, span };
            let expected = handler.as_ref().filter(|_| peer == Peer::RelayDelivers);
            results[place]
                .1
                .push(load.put_on(&wechat, &running, || environment.connector(setting.connections), expected).await);
            running.stop().await;
        }
    }
    for (peer, measured) in &results {
        tell(*peer, measured, &results);
    }
}

fn tell(peer: Peer, measured: &[Measured], all: &[(Peer, Vec<Measured>)]) {
    let column = |pick: fn(&Measured) -> f64| median(measured.iter().map(pick));
    let nginx = all.iter().find(|(peer, _)| *peer == Peer::Nginx).map(|(_, measured)| measured.as_slice());
    let against = |pick: fn(&Measured) -> f64| -> String {
        let answered = |runs: &&[Measured]| runs.iter().all(|run| run.rate > 0.0);
        let Some(nginx) = nginx.filter(|_| peer != Peer::Nginx).filter(answered) else { return String::new() };
        let ratios = measured.iter().zip(nginx).map(|(mine, theirs)| pick(mine) / pick(theirs));
        let (least, most) = ends(ratios.clone());
        format!("{:.2}x [{least:.2} {most:.2}]", median(ratios))
    };
    println!(
        "  {:16} {:>7.0}/s {:18} p50 {:>7.2} ms  p99 {:>7.2} ms  {:>6.1} s CPU a million {:18} {:>6.1} MiB{}{}{}",
        peer.name(),
        column(|run| run.rate),
        against(|run| run.rate),
        column(|run| run.p50),
        column(|run| run.p99),
        column(|run| run.processor),
        against(|run| run.processor),
        mebibytes(measured.iter().map(|run| run.memory).max().unwrap_or_default()),
        if peer == Peer::RelayDelivers {
            format!("  delivered {:.0}/s", column(|run| run.delivered))
        } else {
            String::new()
        },
        match column(|run| run.resumed) {
            0.0 => String::new(),
            resumed => format!("  {:.0} % resumed", resumed * 100.0),
        },
        match measured.iter().map(|run| run.failed).sum::<u64>() {
            0 => String::new(),
            failed => format!("  {failed} not answered 200"),
        },
    );
}
