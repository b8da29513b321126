//! Floods: are WeChat's pushes answered during an attack, and what does it cost?
//!
//! `cargo bench --bench floods [-- --seconds 5 --rate 50 --only NAME --files 1024]`
//!
//! Each flood runs against a fresh relay for that many seconds, as fast as the machine can, from 200 addresses of the
//! loopback network or, where its name has it, from WeChat's own. Beside it pushes come at a steady rate, from a thread
//! of their own, each on a new connection, up to three times as WeChat does. With `--files` the relay's limit of open
//! files is that low, so that it can accept far fewer connections than the floods make. Per flood: the answers to these pushes,
//! how many got none, the relay's peak memory, the descriptors that were not closed, and what the attackers achieved.
//! Exit code 1 if a push was not answered 200, if the slowest hundredth took longer than WeChat waits, if memory
//! exceeded its limit, if a descriptor stayed open, or if the audit finds another number of events than of pushes.

#![expect(clippy::expect_used, reason = "in a benchmark a failed expectation is the failure")]
// Each benchmark uses a part of it.
#[allow(dead_code)]
mod support;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rustix::process::Signal;
use tokio::runtime::Builder;
use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep};

use support::attack::{Attack, FLOODS, Flood, Listener, login};
use support::figures::{Latency, mebibytes};
use support::relay::{Relay, audit};
use support::tls::Certificate;
use support::wechat::{Steady, WeChat, account};
use support::{argument, raise_descriptors, word};

/// How long WeChat waits for an answer.
const WECHAT_TIMEOUT: Duration = Duration::from_secs(5);
/// The limit of the relay's memory, in MiB: 4096 connections with the bytes read of each.
const MEMORY: f64 = 256.0;
/// How long after a flood its last connections may stay: the timeout of a TLS handshake and of first headers.
const AFTERMATH: Duration = Duration::from_secs(20);

#[tokio::main]
async fn main() {
    let (seconds, rate) = (argument("--seconds", 5), argument("--rate", 50));
    let only = word("--only");
    raise_descriptors();
    let files = word("--files").map(|files| files.parse().expect("--files takes a number"));
    let limit = files.map_or_else(String::new, |files: u64| format!(", {files} open files"));
    println!("floods: {seconds} s each, beside {rate} pushes/s{limit}");
    let (mut passed, mut failed) = (0, 0);
    for flood in FLOODS.iter().filter(|flood| only.as_ref().is_none_or(|only| flood.name.contains(only.as_str()))) {
        if suffer(flood, Duration::from_secs(seconds), rate, files).await { passed += 1 } else { failed += 1 }
    }
    println!("{passed} passed, {failed} failed");
    std::process::exit(i32::from(failed > 0 || passed == 0));
}

async fn suffer(flood: &Flood, span: Duration, rate: u64, files: Option<u64>) -> bool {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let certificate = (flood.listener == Listener::Tls).then(|| Certificate::new(folder.path()));
    let server = match &certificate {
        Some(certificate) => certificate.setting(),
        None => format!("http2 = {}\n", flood.listener == Listener::Http2),
    };
    let route = "[[accounts.shop.routes]]\notherwise = true\nto = []\n";
    let relay = Relay::start_limited(folder.path(), &server, "", &(account() + route + &login()), files).await;
    let tls = certificate.as_ref().map(Certificate::connector);
    let wechat = match &tls {
        Some(tls) => WeChat::over(tls.clone()),
        None => WeChat::new(),
    };
    assert!(wechat.push(relay.push).await.expect("the relay answers"), "the first push");
    let before = relay.descriptors();

    let attack = Arc::new(Attack::new(flood, relay.push, Instant::now() + span, tls));
    let attackers = attack.begin();
    let steady = apart(wechat.clone(), relay.push, rate, span).await;
    attackers.join_all().await;

    let aftermath = Instant::now();
    while relay.descriptors() > before && aftermath.elapsed() < AFTERMATH {
        sleep(Duration::from_millis(20)).await;
    }
    let left = relay.descriptors().saturating_sub(before);
    let memory = mebibytes(relay.memory().peak);
    let events = relay.metric("wxrelay_pushes_total{account=\"shop\",kind=\"scan\",result=\"accepted\"}").await;
    relay.end(Signal::TERM).await;
    let (clean, _) = audit(folder.path());

    let (sent, answers) = (wechat.sent(), Latency::of(steady.answers));
    let whole = steady.failed == 0 && answers.p99 < WECHAT_TIMEOUT && clean && (events as u64) == sent;
    let passed = whole && memory < MEMORY && left == 0;
    println!(
        "{}  {:34} answers {answers}, {} not answered 200, {} at a later try; {memory:5.1} MiB; {left} descriptors left; {attack}",
        if passed { "pass" } else { "FAIL" },
        flood.name,
        steady.failed,
        steady.repeated,
    );
    if !whole {
        println!("      {events} events of {sent} pushes, audit {}", if clean { "clean" } else { "NOT CLEAN" });
    }
    passed
}

/// The pushes come from a thread of their own: among ten thousand attackers' tasks, a push would be scheduled so late
/// that its connection is opened, found idle and closed before the push is written.
async fn apart(wechat: Arc<WeChat>, to: SocketAddr, rate: u64, span: Duration) -> Steady {
    let push = move || {
        let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(wechat.steady_with(to, rate, span, 3))
    };
    spawn_blocking(push).await.expect("no push panics")
}
