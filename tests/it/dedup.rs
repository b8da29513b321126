//! Deduplication: WeChat's retries store no second event and get the answer of the first try.

use std::path::Path;
use std::time::Duration;

use crate::support::http::{self, Answer, Connection, exchange};
use crate::support::relay::{Relay, Setup};
use crate::support::soon;
use crate::support::target::{Reaction, Reply, Target};
use crate::support::wechat::{Mode, PATH, WeChat, event, now, text, text_reply};

const REPLY_BY_CRM: &str =
    "[[accounts.shop.routes]]\nmatch = { msg_type = \"text\" }\nto = [\"crm\"]\nreply = \"crm\"\n";
const DUPLICATES: &str = "wxrelay_duplicates_total";

#[tokio::test]
async fn a_retry_makes_no_second_event_in_any_mode() {
    for mode in [Mode::Plaintext, Mode::Compatible, Mode::Secure] {
        let (wechat, crm) = (WeChat::new(mode), Target::start().await);
        let relay = Relay::start(wechat.account() + &crm.config("crm", "")).await;
        let clear = text("o1", "once");
        for _ in 0..3 {
            // Signed and encrypted again each time, as WeChat may do.
            assert_eq!(relay.accept(&wechat, &clear).await.text(), "success");
        }
        let audit = relay.audited("delivered", 1).await;
        assert_eq!((&audit["events"], &audit["deliveries"]), (&1.into(), &1.into()), "{mode:?}: {audit}");
        assert_eq!(crm.deliveries().len(), 1, "{mode:?}");
        assert_eq!(relay.metric(DUPLICATES, &[("account", "shop")]).await, 2.0);
    }
}

#[tokio::test]
async fn the_very_same_bytes_make_no_second_event() {
    let (relay, wechat, crm) = relay("").await;
    let push = wechat.push(&text("o1", "once"));
    for _ in 0..2 {
        assert_eq!(push.send(&relay.push).await.status, 200);
    }
    assert_eq!(relay.audited("delivered", 1).await["events"], 1);
    assert_eq!(crm.deliveries().len(), 1);
}

#[tokio::test]
async fn different_events_of_one_user_in_one_second_stay_different() {
    let (relay, wechat, crm) = relay("").await;
    let first = event("o1", "CLICK", "menu");
    let second = first.replace("[CLICK]", "[VIEW]");
    let other_user = first.replace("[o1]", "[o2]");
    for clear in [&first, &second, &other_user] {
        relay.accept(&wechat, clear).await;
    }
    crm.wait_for(3).await;
    assert_eq!(relay.audited("delivered", 3).await["events"], 3);
}

#[tokio::test]
async fn a_retry_after_the_first_answer_gets_the_same_reply() {
    let (relay, wechat, crm) = relay(REPLY_BY_CRM).await;
    crm.script([Reaction::Answer(Reply::xml(text_reply("o1", "first"))), Reaction::Answer(Reply::xml("second"))]);
    let clear = text("o1", "hello");
    let first = wechat.open_reply(relay.accept(&wechat, &clear).await.text());
    assert!(first.contains("first"), "{first}");
    assert_eq!(wechat.open_reply(relay.accept(&wechat, &clear).await.text()), first);
    assert_eq!(crm.deliveries().len(), 1);
}

#[tokio::test]
async fn a_retry_joins_the_first_try_that_is_still_being_worked_on() {
    let (relay, wechat, crm) = relay(REPLY_BY_CRM).await;
    crm.then(Reaction::Hold(Reply::xml(text_reply("o1", "worth waiting for"))));
    let clear = text("o1", "hello");
    let mut first = send(&relay, &wechat, &clear).await;
    crm.wait_for(1).await;
    let mut second = send(&relay, &wechat, &clear).await;
    // The answer to a later request shows that the relay has read the retry.
    relay.accept(&wechat, &event("o1", "CLICK", "menu")).await;
    crm.release(1);

    let replies = [answer(&mut first).await, answer(&mut second).await];
    let [one, other] = replies.each_ref().map(|reply| wechat.open_reply(reply.text()));
    assert!(one.contains("worth waiting for"), "{one}");
    assert_eq!(one, other);
    assert_eq!(relay.audited("delivered", 1).await["events"], 2);
    assert_eq!(crm.deliveries().len(), 1);
}

#[tokio::test]
async fn a_retry_gets_the_reply_when_wechat_hung_up_on_the_first_try() {
    let (relay, wechat, crm) = relay(REPLY_BY_CRM).await;
    crm.then(Reaction::Hold(Reply::xml(text_reply("o1", "late"))));
    let clear = text("o1", "hello");
    let first = send(&relay, &wechat, &clear).await;
    crm.wait_for(1).await;
    drop(first);
    let mut second = send(&relay, &wechat, &clear).await;
    crm.release(1);
    assert!(wechat.open_reply(answer(&mut second).await.text()).contains("late"));
    assert_eq!(relay.audited("delivered", 1).await["events"], 1);
    assert_eq!(crm.deliveries().len(), 1);
}

#[tokio::test]
async fn a_retry_after_a_crash_makes_no_second_event_and_gets_the_same_reply() {
    let (mut relay, wechat, crm) = relay(REPLY_BY_CRM).await;
    crm.then(Reaction::Answer(Reply::xml(text_reply("o1", "before the crash"))));
    let (clear, silent) = (text("o1", "hello"), event("o1", "CLICK", "menu"));
    let first = wechat.open_reply(relay.accept(&wechat, &clear).await.text());
    relay.accept(&wechat, &silent).await;
    relay.audited("delivered", 1).await;
    relay.kill().await;
    relay.restart().await;
    assert_eq!(wechat.open_reply(relay.accept(&wechat, &clear).await.text()), first);
    assert_eq!(relay.accept(&wechat, &silent).await.text(), "success");
    let audit = relay.audited("delivered", 1).await;
    assert_eq!((&audit["events"], &audit["deliveries"]), (&2.into(), &1.into()), "{audit}");
    assert_eq!(crm.deliveries().len(), 1);
}

/// More keys than the store holds in memory: some are read from its index, some from the events.
#[tokio::test]
async fn retries_are_known_after_a_crash_though_a_thousand_events_came_between() {
    const EVENTS: usize = 1100;
    let (mut relay, wechat, _crm) = relay(REPLY_BY_CRM).await;
    let clear: Vec<String> = (0..EVENTS).map(|number| event("o1", "CLICK", &number.to_string())).collect();
    let mut connection = Connection::open(&relay.push).await.expect("the relay listens");
    for clear in &clear {
        connection.write(&wechat.push(clear).kept_alive(PATH)).await.expect("the relay reads");
        answer(&mut connection).await;
    }
    for crashes in 0..2 {
        for clear in [&clear[0], &clear[EVENTS / 2], &clear[EVENTS - 1]] {
            relay.accept(&wechat, clear).await;
        }
        let audit = relay.audit().await;
        assert_eq!(
            (&audit["events"], &audit["drift"]),
            (&EVENTS.into(), &0.into()),
            "after {crashes} crashes: {audit}"
        );
        relay.kill().await;
        relay.restart().await;
    }
}

/// A relay that delivers texts to `crm`; without routes, all events.
async fn relay(routes: &str) -> (Relay, WeChat, Target) {
    let (wechat, crm) = (WeChat::secure(), Target::start().await);
    let relay = Relay::start(wechat.account() + &crm.config("crm", "") + routes).await;
    (relay, wechat, crm)
}

async fn send(relay: &Relay, wechat: &WeChat, clear: &str) -> Connection {
    let mut connection = Connection::open(&relay.push).await.expect("the relay listens");
    connection.write(&wechat.push(clear).request(PATH)).await.expect("the relay reads");
    connection
}

async fn answer(connection: &mut Connection) -> Answer {
    let answer = soon("the answer to a push", connection.read()).await.expect("an answer");
    assert_eq!(answer.status, 200);
    answer
}

#[tokio::test]
async fn twins_that_come_at_the_same_time_make_one_event() {
    let (relay, wechat, crm) = relay("").await;
    let clear = text("o1", "twins");
    let requests: Vec<_> = (0..8).map(|_| wechat.push(&clear).request(PATH)).collect();
    let mut sent = tokio::task::JoinSet::new();
    for request in requests {
        let address = relay.push.clone();
        sent.spawn(async move { exchange(&address, &request).await });
    }
    for answer in sent.join_all().await {
        assert_eq!((answer.status, answer.text()), (200, "success"));
    }
    assert_eq!(relay.audited("delivered", 1).await["events"], 1);
    assert_eq!(crm.deliveries().len(), 1);
}

#[tokio::test]
async fn a_push_sent_again_after_retention_deleted_its_event_makes_no_second_event() {
    let (wechat, crm) = (WeChat::secure(), Target::start().await);
    let mut relay = Setup::new(wechat.account() + &crm.config("crm", "")).queue("retention = \"3m\"").start().await;
    let push = wechat.push(&text("o1", "once"));
    assert_eq!(push.send(&relay.push).await.text(), "success");
    relay.audited("delivered", 1).await;
    relay.stop().await;
    make_events_older(&relay.store(), Duration::from_secs(300));
    relay.restart().await;
    confirm_clock(&relay, &wechat).await;
    relay.audited("events", 0).await;
    for _ in 0..2 {
        assert_eq!(push.send(&relay.push).await.text(), "success");
        relay.kill().await;
        relay.restart().await;
    }
    let audit = relay.audit().await;
    assert_eq!((&audit["events"], &audit["drift"]), (&0.into(), &0.into()), "{audit}");
    assert_eq!(crm.deliveries().len(), 1);
    // Eleven minutes more, and no copy of the push is accepted any longer: the key goes too.
    let keys = || count_rows(&relay.store(), "known");
    assert_eq!(keys(), 1);
    relay.stop().await;
    make_events_older(&relay.store(), Duration::from_secs(1200));
    relay.restart().await;
    confirm_clock(&relay, &wechat).await;
    crate::support::eventually("the key is deleted", async || (count_rows(&relay.store(), "known") == 0).then_some(()))
        .await;
    assert_eq!(count_rows(&relay.store(), "retired_key"), 0);
}

#[tokio::test]
async fn a_push_sent_again_after_a_full_store_deleted_its_event_makes_no_second_event() {
    let (wechat, crm) = (WeChat::new(Mode::Plaintext), Target::start().await);
    let mut relay = Setup::new(wechat.account() + &crm.config("crm", "")).queue("max_size = \"16MiB\"").start().await;
    let large = "x".repeat(900_000);
    let push = wechat.push(&text("o1", &format!("first {large}")));
    assert_eq!(push.send(&relay.push).await.text(), "success");
    let mut stored = 1;
    while wechat.push(&text("o1", &format!("{stored} {large}"))).send(&relay.push).await.status == 200 {
        stored += 1;
    }
    relay.audited("delivered", stored).await;
    relay.stop().await;
    make_events_older(&relay.store(), Duration::from_secs(300));
    relay.restart().await;
    let fewer = async || Some(relay.audit().await).filter(|audit| audit["events"].as_u64() < Some(stored));
    crate::support::eventually("the oldest events are deleted", fewer).await;
    assert_eq!(push.send(&relay.push).await.text(), "success");
    let audit = relay.audit().await;
    assert!(audit["events"].as_u64() < Some(stored), "{audit}");
    assert_eq!(crm.deliveries().len() as u64, stored, "the first one was not delivered again");
}

#[tokio::test]
async fn a_push_sent_again_after_its_user_was_forgotten_makes_no_second_event() {
    let (mut relay, wechat, crm) = relay(REPLY_BY_CRM).await;
    crm.then(Reaction::Answer(Reply::xml(text_reply("oGone", "the reply"))));
    let push = wechat.push(&text("oGone", "once"));
    assert!(wechat.open_reply(push.send(&relay.push).await.text()).contains("the reply"));
    relay.audited("delivered", 1).await;
    relay.stop().await;
    assert_eq!(relay.run(&["events", "forget", "--openid", "oGone", "--yes"]).await.stdout, "forgot 1 events\n");
    relay.restart().await;
    assert_eq!(push.send(&relay.push).await.text(), "success", "the reply is forgotten too");
    assert_eq!(relay.audit().await["events"], 0);
    assert_eq!(crm.deliveries().len(), 1);
}

/// Changes the store of a relay that is stopped, as if its events had come so much earlier.
/// Nothing is deleted by age before a signed timestamp has confirmed the clock.
async fn confirm_clock(relay: &Relay, wechat: &WeChat) {
    let query = wechat.verification(now(), "123");
    assert_eq!(http::get(&relay.push, &format!("{PATH}?{query}")).await.status, 200);
}

fn make_events_older(store: &Path, by: Duration) {
    let by = by.as_millis() << 20;
    let store = rusqlite::Connection::open(store.join("wxrelay.db")).expect("the store");
    let tables =
        [("event", "id"), ("delivery", "event"), ("attempt", "event"), ("known", "event"), ("retired_key", "event")];
    for (table, column) in tables {
        store.execute(&format!("UPDATE {table} SET {column} = {column} - {by}"), []).expect("the rows can be changed");
    }
}

fn count_rows(store: &Path, table: &str) -> i64 {
    let store = rusqlite::Connection::open(store.join("wxrelay.db")).expect("the store");
    store.query_row(&format!("SELECT count(*) FROM {table}"), [], |row| row.get(0)).expect("a count")
}
