//! SIGHUP and the API reload the configuration; a bad file changes nothing.

use std::collections::BTreeSet;

use rustix::process::Signal;

use crate::support::relay::Relay;
use crate::support::storm::Storm;
use crate::support::target::Target;
use crate::support::wechat::{WeChat, text};
use crate::support::{eventually, http};

#[tokio::test]
async fn sighup_takes_a_new_file_without_a_new_socket() {
    let (wechat, old, new) = (WeChat::secure(), Target::start().await, Target::start().await);
    let mut relay = Relay::start(wechat.account() + &old.config("crm", "")).await;
    relay.accept(&wechat, &text("o1", "before")).await;
    old.wait_for(1).await;

    let before = relay.samples("wxrelay_config_info").await;
    relay.configure(wechat.account() + &new.config("crm", ""));
    relay.signal(Signal::HUP);
    let changed =
        async || Some(relay.samples("wxrelay_config_info").await).filter(|now| *now != before && !now.is_empty());
    let after = eventually("the configuration in the metrics is another", changed).await;
    assert_eq!(after.len(), 1, "the earlier one is gone: {after:?}");

    relay.accept(&wechat, &text("o1", "after")).await;
    new.wait_for(1).await;
    assert_eq!(old.deliveries().len(), 1);
    relay.audited("delivered", 2).await;
}

#[tokio::test]
async fn sighup_under_load_refuses_nothing_and_loses_nothing() {
    let (wechat, old, new) = (WeChat::secure(), Target::start().await, Target::start().await);
    let mut relay = Relay::start(wechat.account() + &old.config("crm", "")).await;
    let storm = Storm::begin(&relay.push, &wechat);
    for reload in 0..10 {
        storm.answered(20).await;
        let before = relay.samples("wxrelay_config_info").await;
        let target = if reload % 2 == 0 { &new } else { &old };
        relay.configure(wechat.account() + &target.config("crm", ""));
        relay.signal(Signal::HUP);
        let changed = async || (relay.samples("wxrelay_config_info").await != before).then_some(());
        eventually("the configuration in the metrics is another", changed).await;
    }
    assert_eq!(storm.failures(), Vec::<String>::new(), "every push is answered 200 at its first try");
    let (pushed, _) = storm.end().await;
    relay.audited("delivered", pushed.len() as u64).await;
    let both = [old.deliveries(), new.deliveries()].concat();
    let delivered: BTreeSet<_> = both.iter().map(|one| one.json()["xml"].as_str().map(str::to_owned)).collect();
    assert_eq!(delivered, pushed.into_iter().map(Some).collect());
    assert!(!new.deliveries().is_empty(), "both were in use");
}

#[tokio::test]
async fn a_bad_file_changes_nothing() {
    let (wechat, crm) = (WeChat::secure(), Target::start().await);
    let mut relay = Relay::start(wechat.account() + &crm.config("crm", "")).await;
    let before = relay.samples("wxrelay_config_info").await;
    relay.configure("[accounts.shop]\npath = \"nonsense\"\n");
    relay.signal(Signal::HUP);
    relay.log("error about the file", |line| line["level"] == "ERROR").await;
    relay.accept(&wechat, &text("o1", "hello")).await;
    crm.wait_for(1).await;
    assert_eq!(relay.samples("wxrelay_config_info").await, before);
}

#[tokio::test]
async fn the_api_reloads_too_and_says_what_is_wrong() {
    let (wechat, crm, bot) = (WeChat::secure(), Target::start().await, Target::start().await);
    let mut relay = Relay::start(wechat.account() + &crm.config("crm", "")).await;
    relay.configure(wechat.account() + &crm.config("crm", "timeout = \"fast\""));
    let answer = http::post(&relay.admin, "/api/reload").await;
    assert!((400..500).contains(&answer.status), "{answer:?}");
    assert!(answer.text().contains("targets.crm.timeout"), "{}", answer.text());

    relay.configure(wechat.account() + &crm.config("crm", "") + &bot.config("bot", ""));
    assert_eq!(http::post(&relay.admin, "/api/reload").await.status, 200);
    relay.accept(&wechat, &text("o1", "hello")).await;
    bot.wait_for(1).await;
    relay.audited("delivered", 2).await;
}

#[tokio::test]
async fn deliveries_of_a_target_that_was_removed_stay_accounted_for() {
    let (wechat, crm, bot) = (WeChat::secure(), Target::start().await, Target::start().await);
    let gone = bot.config("bot", "retry = [\"1h\"]");
    drop(bot);
    let mut relay = Relay::start(wechat.account() + &crm.config("crm", "") + &gone).await;
    relay.accept(&wechat, &text("o1", "hello")).await;
    relay.audited("delivered", 1).await;
    relay.configure(wechat.account() + &crm.config("crm", ""));
    assert_eq!(http::post(&relay.admin, "/api/reload").await.status, 200);
    relay.accept(&wechat, &text("o1", "again")).await;
    let audit = relay.audited("delivered", 2).await;
    assert_eq!((&audit["deliveries"], &audit["unaccounted"]), (&3.into(), &0.into()), "{audit}");
}
