//! Replay: events are delivered again, by command and API, one or many, to the same targets or others.

use std::path::Path;

use rusqlite::Connection;
use serde_json::Value;

use crate::support::command::{Finished, free_address};
use crate::support::http::{Answer, post, post_with};
use crate::support::relay::{Relay, Setup};
use crate::support::target::{Reaction, Reply, Target};
use crate::support::wechat::{WeChat, event, text};

#[tokio::test]
async fn one_event_is_replayed_under_its_id() {
    let (relay, wechat, crm, _bot) = relay().await;
    relay.accept(&wechat, &text("o1", "hello")).await;
    let id = crm.delivery(0).await.header("wxrelay-event-id").to_owned();
    relay.audited("delivered", 1).await;

    let answer = post(&relay.admin, &format!("/api/events/{id}/replay")).await;
    assert_eq!((answer.status, &answer.json()["replayed"]), (200, &1.into()));
    assert_eq!(crm.delivery(1).await.header("wxrelay-attempt"), "2");
    relay.audited("delivered", 1).await;
    let finished = relay.run(&["events", "replay", &id, &id, "--json"]).await;
    assert_eq!(json(&finished)["replayed"], 1, "{finished:?}");
    let third = crm.delivery(2).await;
    assert_eq!((third.header("wxrelay-event-id"), third.header("wxrelay-attempt")), (id.as_str(), "3"));
    assert_eq!(third.body, crm.deliveries()[0].body, "the body stays");
    let audit = relay.audited("delivered", 1).await;
    assert_eq!((&audit["deliveries"], &audit["unaccounted"]), (&1.into(), &0.into()));
}

#[tokio::test]
async fn an_event_is_replayed_to_a_target_that_never_had_it() {
    let (relay, wechat, crm, bot) = relay().await;
    relay.accept(&wechat, &text("o1", "hello")).await;
    let id = crm.delivery(0).await.header("wxrelay-event-id").to_owned();
    relay.audited("delivered", 1).await;

    let finished = relay.run(&["events", "replay", &id, "--to", "bot"]).await;
    assert_eq!((finished.code, finished.stdout.as_str()), (Some(0), "replayed 1 deliveries\n"), "{finished:?}");
    assert_eq!(bot.delivery(0).await.header("wxrelay-event-id"), id);
    relay.audited("delivered", 2).await;
    let answer = post_with(&relay.admin, &format!("/api/events/{id}/replay"), r#"{"to":"bot"}"#).await;
    assert_eq!(answer.json()["replayed"], 1, "{}", answer.text());
    bot.wait_for(2).await;
    let audit = relay.audited("delivered", 2).await;
    assert_eq!((&audit["events"], &audit["deliveries"]), (&1.into(), &2.into()));
    assert_eq!(crm.deliveries().len(), 1);
}

#[tokio::test]
async fn a_filter_says_which_events_are_replayed() {
    let (relay, wechat, crm, bot) = relay().await;
    bot.script([Reaction::Answer(Reply::status(410))]);
    relay.accept(&wechat, &text("o1", "one")).await;
    relay.accept(&wechat, &event("o2", "CLICK", "two")).await;
    relay.audited("dead", 1).await;
    relay.audited("delivered", 1).await;

    let answer = post(&relay.admin, "/api/events/replay?event=click&state=dead").await;
    assert_eq!(answer.text(), r#"{"replayed":1,"next":null}"#);
    bot.wait_for(2).await;
    relay.audited("delivered", 2).await;
    let answer = post_with(&relay.admin, "/api/events/replay", r#"{"from":"o1","since":"1h","to":"bot"}"#).await;
    assert_eq!(answer.json()["replayed"], 1, "{}", answer.text());
    for path in
        ["/api/events/replay", &format!("/api/events/{}/replay", bot.delivery(0).await.header("wxrelay-event-id"))]
    {
        assert_eq!(post_with(&relay.admin, path, "[null, null]").await.status, 400, "{path}: a list is no object");
    }
    assert_eq!(bot.delivery(2).await.json()["from_user"], "o1");
    relay.audited("delivered", 3).await;
    for (filter, count) in [
        (&["--account", "shop", "--event", "text", "--target", "bot"][..], 1),
        (&["--from", "o2", "--since", "1h"], 1),
        (&["--state", "dead"], 0),
        (&["--until", "1h"], 0),
        (&["--all"], 3),
    ] {
        let finished = relay.run(&[&["events", "replay", "--yes", "--json"], filter].concat()).await;
        assert_eq!(json(&finished)["replayed"], count, "{filter:?}: {finished:?}");
        relay.audited("delivered", 3).await;
    }
    assert_eq!(crm.deliveries().len() + bot.deliveries().len(), 2 + 1 + 1 + 5);
}

#[tokio::test]
async fn a_replay_while_no_relay_runs_is_delivered_when_one_does() {
    let (mut relay, wechat, crm, _bot) = relay().await;
    relay.accept(&wechat, &text("o1", "one")).await;
    relay.accept(&wechat, &text("o2", "two")).await;
    relay.audited("delivered", 2).await;
    relay.stop().await;
    let finished = relay.run(&["events", "replay", "--from", "o2", "--yes", "--json"]).await;
    assert_eq!(json(&finished)["replayed"], 1, "{finished:?}");
    assert_eq!(relay.audit().await["pending"], 1);
    relay.restart().await;
    assert_eq!(crm.delivery(2).await.json()["from_user"], "o2");
    relay.audited("delivered", 2).await;
}

#[tokio::test]
async fn a_replay_that_is_not_meant_is_refused() {
    let (mut relay, wechat, crm, _bot) = relay().await;
    relay.accept(&wechat, &text("o1", "hello")).await;
    let id = crm.delivery(0).await.header("wxrelay-event-id").to_owned();
    relay.audited("delivered", 1).await;
    let one = format!("/api/events/{id}/replay");
    for (path, body, status, output) in [
        ("/api/events/replay", "", 400, "which events"),
        ("/api/events/replay?to=bot", "", 400, "which events"),
        ("/api/events/replay", r#"{"all":false}"#, 400, "which events"),
        ("/api/events/replay?all=true&cursor=12", "", 400, "evt_"),
        ("/api/events/replay?state=lost", "", 400, "state"),
        ("/api/events/replay?target=crm", r#"{"all":true}"#, 400, "the body"),
        ("/api/events/replay", r#"{"stat":"dead"}"#, 400, "stat"),
        ("/api/events/replay", "all", 400, "expected"),
        ("/api/events/replay?target=crn", "", 404, "no target"),
        ("/api/events/replay?target=crm&to=crn", "", 400, "no target"),
        ("/api/events/evt_0000000000000001/replay", "", 404, "no such event"),
        ("/api/events/12/replay", "", 400, "evt_"),
        (&one, r#"{"to":"crn"}"#, 400, "no target"),
        (&one, r#"{"from":"o1"}"#, 400, "from"),
    ] {
        let answer = post_with(&relay.admin, path, body).await;
        assert_eq!(answer.status, status, "{path} {body}: {}", answer.text());
        assert!(error(&answer).contains(output), "{path} {body}: {}", answer.text());
    }
    let commands = [
        (&[][..], "which events"),
        (&["--to", "bot"], "which events"),
        (&["--target", "crn"], "expected one of: bot, crm"),
        (&["--all", "--to", "crn"], "expected one of: bot, crm"),
        (&["evt_0000000000000001"], "not in the store"),
        (&["nonsense"], "evt_"),
        (&[id.as_str(), "--all"], "cannot be used with"),
    ];
    for runs in [true, false] {
        for (args, output) in commands {
            let finished = relay.run(&[&["events", "replay", "--yes"], args].concat()).await;
            assert!(finished.code.is_some_and(|code| code != 0), "{args:?}: {finished:?}");
            assert!(finished.stderr.contains(output), "{args:?}: {finished:?}");
        }
        if runs {
            relay.stop().await;
        }
    }
    assert_eq!(crm.deliveries().len(), 1);
}

#[tokio::test]
async fn twenty_thousand_events_are_replayed_page_by_page() {
    const EVENTS: u64 = 20_000;
    let (mut relay, wechat, crm, _bot) = relay().await;
    relay.accept(&wechat, &text("o1", "hello")).await;
    relay.audited("delivered", 1).await;
    relay.stop().await;
    multiply(&relay.store(), EVENTS);
    relay.restart().await;
    relay.audited("delivered", EVENTS).await;

    // Events before the cursor are delivered again meanwhile, and are not selected a second time.
    let (mut replayed, mut pages, mut cursor) = (0, 0, String::new());
    loop {
        let answer = post(&relay.admin, &format!("/api/events/replay?target=crm&state=delivered{cursor}")).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        let page = answer.json();
        replayed += page["replayed"].as_u64().expect("a count");
        pages += 1;
        let Some(next) = page["next"].as_str() else { break };
        cursor = format!("&cursor={next}");
        // The second half by command, from where the pages stopped.
        if replayed > EVENTS / 2 {
            let args =
                ["events", "replay", "--target", "crm", "--state", "delivered", "--after", next, "--yes", "--json"];
            let finished = relay.run(&args).await;
            replayed += json(&finished)["replayed"].as_u64().expect("a count");
            break;
        }
    }
    assert!(pages > 2, "{pages} pages");
    assert_eq!(replayed, EVENTS);
    for some in (2500..=EVENTS).step_by(2500) {
        crm.wait_for(1 + some as usize).await;
    }
    let audit = relay.audited("delivered", EVENTS).await;
    assert_eq!((&audit["deliveries"], &audit["unaccounted"], &audit["drift"]), (&EVENTS.into(), &0.into(), &0.into()));
    assert_eq!(crm.deliveries().len() as u64, 1 + EVENTS, "each once");
}

/// Copies the one event of a closed store many times, with all its rows.
pub(crate) fn multiply(folder: &Path, count: u64) {
    let store = Connection::open(folder.join("wxrelay.db")).expect("the store opens");
    let copies = format!(
        "BEGIN;
         CREATE TEMP TABLE n AS WITH RECURSIVE n(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < {count} - 1)
           SELECT n FROM n;
         INSERT INTO event SELECT id + n, content_key, targets, mode, received_at, account, app_id, msg_type, event,
           event_key, from_user, traceparent, reply, query, body, clear, key, NULL, NULL FROM event, n;
         INSERT INTO delivery SELECT event + n, target, state, attempts, failures, due, ended_at, user FROM delivery, n;
         UPDATE tally SET count = count * {count};
         COMMIT;"
    );
    store.execute_batch(&copies).expect("the rows are copied");
}

/// A relay that delivers texts to `crm`, and all other events to `bot`.
async fn relay() -> (Relay, WeChat, Target, Target) {
    let (wechat, crm, bot) = (WeChat::secure(), Target::start().await, Target::start().await);
    let routes = "[[accounts.shop.routes]]\nmatch = { msg_type = \"text\" }\nto = [\"crm\"]\n\
                  [[accounts.shop.routes]]\notherwise = true\nto = [\"bot\"]\n";
    let targets = crm.config("crm", "retry = [\"1h\"]") + &bot.config("bot", "retry = []");
    let relay = Setup::new(wechat.account() + routes + &targets).admin_at(free_address()).start().await;
    (relay, wechat, crm, bot)
}

fn json(finished: &Finished) -> Value {
    assert_eq!(finished.code, Some(0), "{finished:?}");
    serde_json::from_str(&finished.stdout).unwrap_or_else(|error| panic!("{error}: {finished:?}"))
}

fn error(answer: &Answer) -> String {
    answer.json()["error"].as_str().unwrap_or_else(|| panic!("no error in {}", answer.text())).to_owned()
}
