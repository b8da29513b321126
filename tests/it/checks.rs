//! What needs a hand: `wxrelay checks` and `/api/checks`, `wxrelay top` above its tables, and the history of an hour that
//! checks are judged by.

use serde_json::Value;

use crate::support::command::free_address;
use crate::support::eventually;
use crate::support::http::{self, post};
use crate::support::relay::{Relay, Setup};
use crate::support::target::{Reaction, Reply, Target};
use crate::support::wechat::{WeChat, text};

#[tokio::test]
async fn a_target_that_is_down_needs_a_hand_until_it_answers() {
    let (wechat, crm) = (WeChat::secure(), Target::always(Reaction::Answer(Reply::status(503))).await);
    let body = wechat.account() + &crm.config("crm", "retry = [\"400ms\", \"1h\"]");
    let relay = Setup::new(body).admin_at(free_address()).start().await;
    let quiet = relay.run(&["checks", "--exit-code"]).await;
    assert_eq!((quiet.code, &*quiet.stdout, &*quiet.stderr), (Some(0), "", "nothing needs a hand\n"));
    for user in ["o1", "o2", "o3", "o4", "o5", "o6"] {
        relay.accept(&wechat, &text(user, "hello")).await;
    }
    let all_wait = |check: &Value| check["value"] == 6.0;
    let down = async || check(&relay, "target-down").await.filter(all_wait);
    let down = eventually("the target is down", down).await;
    assert_eq!(
        (&down["subject"], &down["severity"], &down["alert"]),
        (&"crm".into(), &"page".into(), &"WxrelayTargetDown".into())
    );
    assert_eq!(down["firing"], false, "the alert waits for two minutes");
    let said = down["text"].as_str().unwrap_or_default();
    assert_eq!(said, "down, and 6 deliveries are pending: answered 503");
    let runbook = down["runbook"].as_str().unwrap_or_default();
    assert!(runbook.contains("`wxrelay events ls --target crm --state pending`"), "{runbook}");

    let listed = relay.run(&["checks", "--urgent", "--exit-code"]).await;
    assert_eq!(listed.code, Some(1), "{listed:?}");
    assert!(listed.stdout.contains("target-down") && listed.stdout.contains(said), "{}", listed.stdout);
    assert!(listed.stdout.contains(&format!("target-down: {runbook}")), "{}", listed.stdout);
    assert_eq!(relay.run(&["checks"]).await.code, Some(0), "without --exit-code");
    let top = relay.run(&["top", "--once"]).await;
    assert!(top.stdout.lines().any(|line| line == format!("! crm  {said}")), "{}", top.stdout);

    // An operator has dealt with it: what is left can wait until morning.
    assert_eq!(post(&relay.admin, "/api/targets/crm/pause").await.status, 200);
    let listed = relay.run(&["checks", "--json"]).await;
    let paused: Vec<Value> = listed.stdout.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let ids: Vec<_> = paused.iter().map(|check| (&check["id"], &check["severity"])).collect();
    assert_eq!(ids, [(&"target-paused".into(), &"ticket".into())]);
    assert_eq!(relay.run(&["checks", "--urgent", "--exit-code"]).await.code, Some(0));

    crm.then(Reaction::Answer(Reply::status(200)));
    assert_eq!(post(&relay.admin, "/api/targets/crm/resume").await.status, 200);
    relay.accept(&wechat, &text("o7", "hello")).await;
    eventually("nothing needs a hand", async || check(&relay, "target-paused").await.is_none().then_some(())).await;
}

#[tokio::test]
async fn the_last_hour_has_what_was_counted_and_gaps_where_nothing_was_measured() {
    let (wechat, crm) = (WeChat::secure(), Target::start().await);
    let mut relay = Relay::start(wechat.account() + &crm.config("crm", "")).await;
    for user in ["o1", "o2", "o3"] {
        relay.accept(&wechat, &text(user, "hello")).await;
    }
    relay.audited("delivered", 3).await;
    for (of, series, time) in [
        ("account:shop", "answered", "p99_ms"),
        ("target:crm", "delivered", "p50_ms"),
        ("total", "answered", "p99_ms"),
        ("total", "delivered", "attempt_p99_ms"),
    ] {
        let history = eventually(of, async || {
            let history = history(&relay, of).await;
            (values(&history, series).iter().sum::<f64>() == 3.0).then_some(history)
        })
        .await;
        assert!(values(&history, time).iter().any(|ms| *ms > 0.0), "{of}: {history}");
        assert_eq!(
            (&history["step_seconds"], history["series"][series].as_array().map(Vec::len)),
            (&10.into(), Some(360))
        );
        assert!(history["series"][series][0].is_null(), "before the start: {history}");
    }
    relay.stop().await;
    relay.restart().await;
    let history = eventually("a step", async || {
        let history = history(&relay, "target:crm").await;
        (!values(&history, "delivered").is_empty()).then_some(history)
    })
    .await;
    assert_eq!(values(&history, "delivered").iter().sum::<f64>(), 0.0, "it is in memory alone");
    for (query, status) in [("", 400), ("?of=crm", 400), ("?of=target:", 400), ("?of=target:cmr", 404)] {
        assert_eq!(relay.get(&format!("/api/history{query}")).await.status, status, "{query}");
    }
}

/// The check of that id, if its condition holds.
async fn check(relay: &Relay, id: &str) -> Option<Value> {
    let answer = http::get(&relay.admin, "/api/checks").await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.json()["checks"].as_array()?.iter().find(|check| check["id"] == id).cloned()
}

async fn history(relay: &Relay, of: &str) -> Value {
    let answer = relay.get(&format!("/api/history?of={of}")).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.json()
}

/// The measured ones.
fn values(history: &Value, series: &str) -> Vec<f64> {
    history["series"][series].as_array().into_iter().flatten().filter_map(Value::as_f64).collect()
}
