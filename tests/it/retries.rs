//! Every delivery ends in a named state: retries, dead letters, expiry.

use std::time::Duration;

use crate::support::command::free_address;
use crate::support::relay::{Relay, Setup};
use crate::support::target::{Delivery, Reaction, Reply, Target};
use crate::support::wechat::{WeChat, event, text};
use crate::support::{eventually, http};

#[tokio::test]
async fn a_target_that_fails_gets_the_same_event_again_until_it_heals() {
    let (relay, wechat, crm) = relay("retry = [\"50ms\", \"50ms\", \"50ms\", \"50ms\"]\ntimeout = \"500ms\"").await;
    crm.script([Reaction::Answer(Reply::status(500)), Reaction::Close, Reaction::Hang]);
    relay.accept(&wechat, &text("o1", "hello")).await;
    let deliveries = crm.wait_for(4).await;
    assert_eq!(attempts(&deliveries), ["1", "2", "3", "4"]);
    let id = deliveries[0].header("wxrelay-event-id");
    assert!(deliveries.iter().all(|delivery| delivery.header("wxrelay-event-id") == id), "the id stays");
    assert!(deliveries.iter().all(|delivery| delivery.body == deliveries[0].body), "the body stays");
    let audit = relay.audited("delivered", 1).await;
    assert_eq!((&audit["deliveries"], &audit["dead"]), (&1.into(), &0.into()));
}

#[tokio::test]
async fn no_status_code_drops_an_event() {
    let (relay, wechat, crm) = relay("retry = [\"20ms\", \"20ms\", \"20ms\", \"20ms\"]").await;
    let statuses = [301, 400, 404, 501];
    crm.script(statuses.map(|status| {
        let elsewhere = vec![("location", "http://127.0.0.1:9/elsewhere".to_owned())];
        Reaction::Answer(Reply { headers: elsewhere, ..Reply::status(status) })
    }));
    relay.accept(&wechat, &text("o1", "hello")).await;
    crm.wait_for(statuses.len() + 1).await;
    relay.audited("delivered", 1).await;
}

#[tokio::test]
async fn retry_after_lengthens_the_wait() {
    let (relay, wechat, crm) = relay("retry = [\"20ms\", \"20ms\"]").await;
    let later = Reply { headers: vec![("retry-after", "2".to_owned())], ..Reply::status(503) };
    crm.script([Reaction::Answer(later)]);
    relay.accept(&wechat, &text("o1", "hello")).await;
    let deliveries = crm.wait_for(2).await;
    assert!(deliveries[1].at - deliveries[0].at >= Duration::from_millis(1900), "the target asked for two seconds");
    relay.audited("delivered", 1).await;
}

#[tokio::test]
async fn retry_after_does_not_shorten_the_wait() {
    let (relay, wechat, crm) = relay("retry = [\"2s\"]").await;
    let soon = Reply { headers: vec![("retry-after", "0".to_owned())], ..Reply::status(503) };
    crm.script([Reaction::Answer(soon)]);
    relay.accept(&wechat, &text("o1", "hello")).await;
    let deliveries = crm.wait_for(2).await;
    // Jitter may shorten the two seconds.
    assert!(deliveries[1].at - deliveries[0].at >= Duration::from_millis(800));
}

#[tokio::test]
async fn when_the_schedule_ends_the_delivery_is_a_dead_letter() {
    let (relay, wechat, crm) = relay("retry = [\"20ms\", \"20ms\"]").await;
    crm.then(Reaction::Answer(Reply::status(500)));
    relay.accept(&wechat, &text("o1", "hello")).await;
    let audit = relay.audited("dead", 1).await;
    assert_eq!((&audit["pending"], &audit["unaccounted"]), (&0.into(), &0.into()), "{audit}");
    assert_eq!(attempts(&crm.deliveries()), ["1", "2", "3"]);
    let dead = async || Some(relay.metric("wxrelay_dead", &[("target", "crm")]).await).filter(|dead| *dead == 1.0);
    eventually("the dead letter in the metrics", dead).await;
}

#[tokio::test]
async fn a_target_that_is_gone_gets_no_second_attempt() {
    let (relay, wechat, crm) = relay("retry = [\"20ms\", \"20ms\"]").await;
    crm.then(Reaction::Answer(Reply::status(410)));
    relay.accept(&wechat, &text("o1", "hello")).await;
    relay.audited("dead", 1).await;
    assert_eq!(crm.deliveries().len(), 1);
}

#[tokio::test]
async fn dead_letters_are_listed_and_retried_by_command() {
    let (wechat, crm) = (WeChat::secure(), Target::start().await);
    let said = Reply { status: 410, ..Reply::body("text/plain", "gone\nfor \u{1b}[31mgood") };
    crm.script([Reaction::Answer(said.clone()), Reaction::Answer(said)]);
    let config = wechat.account() + &crm.config("crm", "retry = [\"20ms\"]");
    let relay = Setup::new(config).admin_at(free_address()).start().await;
    relay.accept(&wechat, &text("o1", "one")).await;
    relay.accept(&wechat, &text("o1", "two")).await;
    relay.audited("dead", 2).await;
    let id = crm.delivery(0).await.header("wxrelay-event-id").to_owned();

    let listed = relay.run(&["dead", "ls"]).await;
    assert_eq!(listed.code, Some(0), "{listed:?}");
    assert!(listed.stdout.contains(&id) && listed.stdout.contains("crm"), "{}", listed.stdout);
    let on_one_line = "\"gone\\nfor \\u001b[31mgood\"";
    assert!(listed.stdout.contains(on_one_line), "what the target said: {}", listed.stdout);
    let shown = relay.run(&["events", "show", &id]).await;
    assert!(shown.stdout.contains(on_one_line), "{}", shown.stdout);
    let listed = relay.run(&["dead", "ls", "--json"]).await;
    let letter = listed.stdout.lines().next().expect("a line for each dead letter");
    let letter: serde_json::Value = serde_json::from_str(letter).expect("a line of JSON");
    assert_eq!(letter["answer"], "gone\nfor \u{1b}[31mgood");
    let retried = relay.run(&["dead", "retry", "--yes"]).await;
    assert_eq!(retried.code, Some(0), "{retried:?}");
    let audit = relay.audited("delivered", 2).await;
    assert_eq!((&audit["dead"], &audit["deliveries"]), (&0.into(), &2.into()));
    assert_eq!(crm.wait_for(4).await[3].header("wxrelay-attempt"), "2", "attempts go on counting");
}

#[tokio::test]
async fn dead_letters_are_retried_by_the_api() {
    let (relay, wechat, crm) = relay("retry = []").await;
    crm.script([Reaction::Answer(Reply::status(500))]);
    relay.accept(&wechat, &text("o1", "hello")).await;
    relay.audited("dead", 1).await;
    let answer = http::post(&relay.admin, "/api/targets/crm/retry-dead").await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    relay.audited("delivered", 1).await;
}

#[tokio::test]
async fn a_login_that_comes_too_late_expires() {
    let (wechat, login) = (WeChat::secure(), Target::always(Reaction::Answer(Reply::status(503))).await);
    let settings = "role = \"identity\"\nretry = [\"50ms\"]\nexpire_after = \"400ms\"";
    let relay = Relay::start(wechat.account() + &login.config("login", settings)).await;
    relay.accept(&wechat, &event("o1", "SCAN", "login_7")).await;
    let audit = relay.audited("expired", 1).await;
    assert_eq!((&audit["dead"], &audit["pending"]), (&0.into(), &0.into()), "{audit}");
    assert!(login.deliveries().len() > 1, "the last wait repeats until then");
    let labels = [("target", "login"), ("outcome", "expired")];
    assert_eq!(relay.metric("wxrelay_deliveries_total", &labels).await, 1.0);
}

#[tokio::test]
async fn an_outage_of_the_identity_provider_heals_without_loss() {
    const SCANS: usize = 12;
    let (wechat, login) = (WeChat::secure(), Target::always(Reaction::Answer(Reply::status(503))).await);
    let settings = "role = \"identity\"\nretry = [\"50ms\", \"200ms\"]\nexpire_after = \"2m\"";
    let relay = Relay::start(wechat.account() + &login.config("login", settings)).await;
    for scan in 0..SCANS {
        relay.accept(&wechat, &event("o1", "SCAN", &format!("login_{scan}"))).await;
    }
    login.wait_for(3).await;
    login.then(Reaction::Answer(Reply::status(200)));
    let audit = relay.audited("delivered", SCANS as u64).await;
    assert_eq!(audit["expired"], 0);
}

async fn relay(settings: &str) -> (Relay, WeChat, Target) {
    let (wechat, crm) = (WeChat::secure(), Target::start().await);
    let relay = Relay::start(wechat.account() + &crm.config("crm", settings)).await;
    (relay, wechat, crm)
}

fn attempts(deliveries: &[Delivery]) -> Vec<&str> {
    deliveries.iter().map(|delivery| delivery.header("wxrelay-attempt")).collect()
}
