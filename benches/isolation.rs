//! What bad targets cost other targets and WeChat: latencies beside six bad targets, relative to the quiet case.
//!
//! `cargo bench --bench isolation [-- --seconds 10 --rate 300 --rounds 3]`
//!
//! Pushes come at a steady rate, each on a connection of its own as WeChat sends them, whether earlier ones are
//! answered or not. Two healthy targets, an identity provider and a handler, are measured. Every event goes to them
//! and, by case, to six more targets:
//!
//! - `alone`: to no others.
//! - `healthy`: to six healthy ones. This is the quiet case that the promise is compared with: eight deliveries of an
//!   event have a cost, whether the targets are good or bad.
//! - `bad`: to one that is dead, one that hangs for its whole timeout, one that answers one byte a second, one that
//!   sends an endless body, one that flips between up and down each half second, one whose name does not resolve.
//!
//! The cases take turns, in another order each round and each time with a fresh relay. Medians over the rounds are
//! compared.

#![expect(clippy::expect_used, reason = "in a benchmark a failed expectation is the failure")]
// Each benchmark uses a part of it.
#[allow(dead_code)]
mod support;

use std::fmt::Write as _;
use std::time::Duration;

use rustix::process::Signal;

use support::argument;
use support::figures::{Latency, median, millis};
use support::relay::Relay;
use support::target::{Behaviour, Down, Target};
use support::wechat::{WeChat, account};

/// How much slower than in the quiet case the measured targets may be.
const PROMISE: f64 = 1.2;
/// Pushes before the measurement: connections are made, breakers have opened.
const WARM_UP: Duration = Duration::from_secs(2);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Case {
    Alone,
    Healthy,
    Bad,
}

const CASES: [Case; 3] = [Case::Alone, Case::Healthy, Case::Bad];

impl Case {
    fn name(self) -> &'static str {
        match self {
            Self::Alone => "alone",
            Self::Healthy => "healthy",
            Self::Bad => "bad",
        }
    }
}

/// The result of one turn of a case.
struct Turn {
    case: Case,
    answer: Latency,
    identity: Latency,
    handler: Latency,
    /// For each push.
    commits: f64,
}

#[tokio::main]
async fn main() {
    let (seconds, rate) = (argument("--seconds", 10), argument("--rate", 300));
    let rounds = argument("--rounds", 3);
    println!("isolation: {rounds} rounds of {seconds} s each at {rate} pushes/s");
    let mut turns = Vec::new();
    for round in 0..rounds {
        let mut cases = CASES;
        cases.rotate_left(usize::try_from(round).expect("few rounds") % CASES.len());
        for case in cases {
            let turn = measure(case, rate, Duration::from_secs(seconds)).await;
            println!("{:8} answer    {}", turn.case.name(), turn.answer);
            println!("{:8} identity  {}", "", turn.identity);
            println!("{:8} handler   {}", "", turn.handler);
            println!("{:8} commits   {:.2} for each push", "", turn.commits);
            turns.push(turn);
        }
    }
    for quiet in [Case::Alone, Case::Healthy] {
        println!("bad over {}:", quiet.name());
        compare(&turns, quiet, "answer", |turn| turn.answer);
        compare(&turns, quiet, "identity", |turn| turn.identity);
        compare(&turns, quiet, "handler", |turn| turn.handler);
    }
}

async fn measure(case: Case, rate: u64, span: Duration) -> Turn {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (identity, handler) = (Target::start(Behaviour::Fast).await, Target::start(Behaviour::Fast).await);
    let mut targets = table("identity", &identity.address.to_string(), "role = \"identity\"");
    targets += &table("handler", &handler.address.to_string(), "");
    let mut others = Vec::new();
    let down = Down::new();
    let more: Vec<(String, Option<Behaviour>)> = match case {
        Case::Alone => Vec::new(),
        Case::Healthy => (1..=6).map(|number| (format!("healthy{number}"), Some(Behaviour::Fast))).collect(),
        Case::Bad => [
            ("dead", None),
            ("hangs", Some(Behaviour::Hangs)),
            ("drips", Some(Behaviour::Drips)),
            ("endless", Some(Behaviour::Endless)),
            ("flips", Some(Behaviour::Flips)),
            ("nameless", None),
        ]
        .map(|(name, behaviour)| (name.to_owned(), behaviour))
        .into(),
    };
    let mut names = vec!["identity".to_owned(), "handler".to_owned()];
    for (name, behaviour) in more {
        let address = match behaviour {
            Some(behaviour) => {
                let target = Target::start(behaviour).await;
                let address = target.address.to_string();
                others.push(target);
                address
            }
            None if name == "dead" => down.address().to_string(),
            None => "nothing.invalid:80".to_owned(),
        };
        // Not the default of 15 s, so that timeouts happen while it is measured.
        targets += &table(&name, &address, "timeout = \"1s\"");
        names.push(name);
    }
    let route = format!("[[accounts.shop.routes]]\notherwise = true\nto = {names:?}\n");
    let relay = Relay::start(folder.path(), "", &(account() + &route + &targets)).await;

    let wechat = WeChat::new();
    wechat.steady(relay.push, rate, WARM_UP).await;
    for target in [&identity, &handler] {
        target.keep_latencies();
    }
    let steady = wechat.steady(relay.push, rate, span).await;
    assert_eq!(steady.failed, 0, "every push is answered 200");
    let expected = wechat.sent();
    for target in [&identity, &handler] {
        while target.count() < expected {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
    let commits = relay.metric("wxrelay_commit_duration_seconds_count").await / expected as f64;
    relay.end(Signal::TERM).await;
    let latency = |target: &Target| Latency::of(target.take_latencies());
    let answer = Latency::of(steady.answers);
    Turn { case, answer, identity: latency(&identity), handler: latency(&handler), commits }
}

fn table(name: &str, address: &str, lines: &str) -> String {
    let mut table = String::new();
    write!(table, "[targets.{name}]\nurl = \"http://{address}/hook\"\nformat = \"json\"\n{lines}\n")
        .expect("a string takes all");
    table
}

fn compare(turns: &[Turn], quiet: Case, what: &str, latency: impl Fn(&Turn) -> Latency) {
    let of = |case: Case| turns.iter().filter(move |turn| turn.case == case).map(&latency);
    for (rank, pick) in [("p50", (|l: Latency| l.p50) as fn(Latency) -> Duration), ("p99", |l: Latency| l.p99)] {
        let (quiet, bad) = (median(of(quiet).map(|l| millis(pick(l)))), median(of(Case::Bad).map(|l| millis(pick(l)))));
        let ratio = bad / quiet;
        let verdict = if ratio <= PROMISE { "pass" } else { "over 1.2x" };
        println!("  {what:8} {rank}  {bad:6.2} ms / {quiet:6.2} ms = {ratio:.2}  {verdict}");
    }
}
