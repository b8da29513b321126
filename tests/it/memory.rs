//! Memory: events that wait for targets take a bounded number of bytes, whatever their size and however many come. The
//! rest waits in the store.

use std::fs;

use crate::support::eventually;
use crate::support::relay::{Relay, Setup};
use crate::support::target::{Reaction, Reply, Target};
use crate::support::wechat::{Mode, WeChat, event, text};

const MIB: u64 = 1 << 20;
/// So large that few events fill the memory of these tests, and small enough for a debug build on a busy machine.
const LARGE: usize = 300_000;
/// What one large event counts for, at most: `Event::memory_bytes`.
const COUNTED: u64 = 2 * MIB;

#[tokio::test]
async fn a_target_that_hangs_keeps_few_large_events_in_memory_and_loses_none() {
    const EVENTS: usize = 20;
    let (wechat, idp) = (WeChat::new(Mode::Plaintext), Target::start().await);
    let crm = Target::always(Reaction::Hold(Reply::status(200))).await;
    let targets = crm.config("crm", "timeout = \"60s\"\nconcurrency = 64") + &idp.config("idp", "role = \"identity\"");
    let relay = Setup::new(wechat.account() + &targets).queue("max_memory = \"2MiB\"").start().await;
    let large = "x".repeat(LARGE);
    for index in 0..EVENTS {
        relay.accept(&wechat, &text("o1", &format!("{index} {large}"))).await;
        let (used, limit) = memory(&relay).await;
        assert_eq!(limit, 2 * MIB);
        assert!(used <= limit / 2 + COUNTED, "{used} bytes after {index} events: one target takes a half");
        assert!(resident(&relay) < 128 * MIB, "{} bytes after {index} events", resident(&relay));
    }
    // A login does not wait for the handler that hangs.
    relay.accept(&wechat, &event("o1", "SCAN", "login")).await;
    idp.wait_for(1).await;
    relay.audited("delivered", 1).await;

    crm.then(Reaction::Answer(Reply::status(200)));
    crm.release(EVENTS);
    crm.wait_for(EVENTS).await;
    relay.audited("delivered", EVENTS as u64 + 1).await;
    eventually("the memory is free again", async || (memory(&relay).await.0 == 0).then_some(())).await;
    assert_eq!(relay.metric("wxrelay_queue_memory_bytes", &[]).await, 0.0);
    assert_eq!(relay.metric("wxrelay_queue_max_memory_bytes", &[]).await, (2 * MIB) as f64);
}

#[tokio::test]
async fn an_event_larger_than_the_memory_is_delivered_to_every_target() {
    let wechat = WeChat::new(Mode::Plaintext);
    let targets = [Target::start().await, Target::start().await, Target::start().await];
    let names = ["crm", "erp", "log"].into_iter().zip(&targets);
    let body = names.fold(wechat.account(), |body, (name, target)| body + &target.config(name, ""));
    let relay = Setup::new(body).queue("max_memory = \"1MiB\"").start().await;
    let large = "x".repeat(LARGE);
    for index in 0..3 {
        relay.accept(&wechat, &text("o1", &format!("{index} {large}"))).await;
    }
    relay.audited("delivered", 9).await;
    targets.iter().for_each(|target| assert_eq!(target.deliveries().len(), 3));
}

/// The bytes that wait in memory for targets, and their limit.
async fn memory(relay: &Relay) -> (u64, u64) {
    let status = relay.get("/api/status").await.json();
    let number = |field: &str| status["queue"][field].as_u64().expect("a number");
    (number("memory_bytes"), number("max_memory_bytes"))
}

/// The memory that the process takes.
fn resident(relay: &Relay) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", relay.id())).expect("the process runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("a line");
    line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") * 1024
}
