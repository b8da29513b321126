//! Stored before answered: an answered push survives `kill -9`.

use std::collections::HashSet;
use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::task::JoinSet;

use crate::support::http::try_exchange;
use crate::support::relay::Relay;
use crate::support::target::{Delivery, Reaction, Reply, Target};
use crate::support::wechat::{PATH, WeChat, element, text};
use crate::support::{eventually, soon};

const PUSHES: usize = 200;
const SENDERS: usize = 8;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_answered_push_is_delivered_after_kill_9_in_the_middle_of_200() {
    let wechat = WeChat::secure();
    let crm = Target::always(Reaction::Slow(Duration::from_millis(50), Reply::status(200))).await;
    let mut relay = Relay::start(wechat.account() + &crm.config("crm", "concurrency = 2")).await;
    let clears: Arc<Vec<_>> = Arc::new((0..PUSHES).map(|index| text("o1", &format!("push {index}"))).collect());

    let answered = send_until_killed(&mut relay, &wechat, &clears).await;
    assert!((PUSHES / 2..PUSHES).contains(&answered.len()), "killed in the middle: {} answered", answered.len());
    let before = crm.deliveries().len();
    assert!(before < answered.len(), "killed while the handler was behind: {before} of {}", answered.len());

    relay.restart().await;
    let audit = relay.audited("pending", 0).await;
    let delivered = ids(&crm.deliveries());
    let lost: Vec<_> = answered.iter().filter(|index| !delivered.contains(&id(&clears[**index]))).collect();
    assert!(lost.is_empty(), "answered 200 and never delivered: {lost:?}");
    assert!(audit["events"].as_u64() >= Some(answered.len() as u64), "{audit}");

    // WeChat retries the others, and then each event is stored once.
    for clear in clears.iter() {
        relay.accept(&wechat, clear).await;
    }
    assert_eq!(relay.audited("delivered", PUSHES as u64).await["events"], PUSHES);
    assert_eq!(ids(&crm.deliveries()).len(), PUSHES);
}

#[tokio::test]
async fn a_delivery_that_was_under_way_is_made_again_with_the_same_id() {
    let (wechat, crm) = (WeChat::secure(), Target::start().await);
    crm.script([Reaction::Hang]);
    let mut relay = Relay::start(wechat.account() + &crm.config("crm", "timeout = \"60s\"")).await;
    relay.accept(&wechat, &text("o1", "hello")).await;
    crm.wait_for(1).await;
    relay.kill().await;
    relay.restart().await;
    let deliveries = crm.wait_for(2).await;
    assert_eq!(deliveries[0].header("wxrelay-event-id"), deliveries[1].header("wxrelay-event-id"));
    assert_eq!(deliveries[0].body, deliveries[1].body);
    relay.audited("delivered", 1).await;
}

#[tokio::test]
async fn a_second_relay_on_the_same_store_is_refused() {
    let (wechat, crm) = (WeChat::secure(), Target::start().await);
    let relay = Relay::start(wechat.account() + &crm.config("crm", "")).await;
    let second = relay.run(&["serve"]).await;
    assert!(second.code.is_some_and(|code| code != 0), "{second:?}");
    assert_eq!(relay.accept(&wechat, &text("o1", "hello")).await.status, 200, "the first relay still works");
}

#[tokio::test]
async fn a_removed_lock_file_lets_no_second_relay_start_and_is_made_again() {
    let (wechat, crm) = (WeChat::secure(), Target::start().await);
    let relay = Relay::start(wechat.account() + &crm.config("crm", "")).await;
    let lock = relay.store().join("wxrelay.lock");
    fs::remove_file(&lock).expect("it is there");
    let second = relay.run(&["serve"]).await;
    assert!(second.code.is_some_and(|code| code != 0) && second.stderr.contains("is in use by process"), "{second:?}");
    let id = format!("{}\n", relay.id());
    eventually("the lock file names the relay", async || {
        fs::read_to_string(&lock).ok().filter(|text| *text == id).map(drop)
    })
    .await;
    fs::write(relay.store().join("other"), "").expect("a file can be made");
    fs::rename(relay.store().join("other"), &lock).expect("the lock file can be replaced");
    let second = relay.run(&["serve"]).await;
    assert!(second.code.is_some_and(|code| code != 0), "{second:?}");
    relay.accept(&wechat, &text("o1", "hello")).await;
}

/// Pushes all texts from several senders, kills the relay when half are answered, and returns those answered 200.
async fn send_until_killed(relay: &mut Relay, wechat: &WeChat, clears: &Arc<Vec<String>>) -> HashSet<usize> {
    let (next, good, half) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)), Arc::new(Notify::new()));
    let mut senders = JoinSet::new();
    for _ in 0..SENDERS {
        let (address, wechat, clears) = (relay.push.clone(), wechat.clone(), Arc::clone(clears));
        let (next, good, half) = (Arc::clone(&next), Arc::clone(&good), Arc::clone(&half));
        senders.spawn(async move {
            let mut answered = Vec::new();
            loop {
                let index = next.fetch_add(1, Ordering::Relaxed);
                let Some(clear) = clears.get(index) else { return answered };
                match try_exchange(&address, &wechat.push(clear).request(PATH)).await {
                    Ok(answer) if answer.status == 200 => answered.push(index),
                    Ok(answer) => panic!("{answer:?}"),
                    Err(_) => continue,
                }
                if good.fetch_add(1, Ordering::Relaxed) + 1 == PUSHES / 2 {
                    half.notify_one();
                }
            }
        });
    }
    soon("half of the pushes are answered", half.notified()).await;
    relay.kill().await;
    senders.join_all().await.into_iter().flatten().collect()
}

fn ids(deliveries: &[Delivery]) -> HashSet<String> {
    deliveries.iter().map(|delivery| id(delivery.json()["xml"].as_str().expect("the text"))).collect()
}

fn id(clear: &str) -> String {
    element(clear, "MsgId").expect("a message has an id")
}
