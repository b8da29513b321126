//! One target as `/api/targets/NAME` shows it, and the probe, which changes nothing.

use serde_json::Value;

use crate::support::command::free_address;
use crate::support::eventually;
use crate::support::http::post;
use crate::support::relay::Relay;
use crate::support::target::{Reaction, Reply, Target};
use crate::support::wechat::{WeChat, event, text};

#[tokio::test]
async fn a_target_is_shown_with_its_state_schedule_and_failures_by_cause() {
    let (wechat, crm) = (WeChat::secure(), Target::always(Reaction::Answer(Reply::status(503))).await);
    let login = Target::start().await;
    let handler = crm.config("crm", "retry = [\"400ms\", \"1h\"]");
    let identity = login.config("login", "role = \"identity\"\nexpire_after = \"90s\"");
    let mut relay = Relay::start(wechat.account() + &handler + &identity).await;
    crm.script([Reaction::Answer(Reply::status(500))]);
    for user in ["o1", "o2", "o3", "o4", "o5", "o6"] {
        relay.accept(&wechat, &text(user, "hello")).await;
    }
    let down = eventually("the target is down, with a probe to come", async || {
        let shown = show(&relay, "crm").await;
        (shown["state"] == "down" && shown["next_probe"].is_string() && shown["pending"] == 6).then_some(shown)
    })
    .await;
    assert!(down["since"].as_str() >= down["oldest_pending"].as_str(), "{down}");
    assert_eq!((&down["pending"], &down["role"], &down["format"]), (&6.into(), &"handler".into(), &"json".into()));
    assert_eq!((&down["url"], &down["last_success"]), (&crm.url().into(), &Value::Null));
    assert_eq!(down["retry_seconds"], serde_json::json!([0.4, 3600.0]));
    let moment = |key: &str| down[key].as_str().map(str::to_owned);
    assert!(moment("last_failure") >= moment("oldest_pending") && moment("gives_up_at") > moment("last_failure"));
    let causes: Vec<_> =
        down["failures"].as_array().into_iter().flatten().map(|one| (&one["status"], &one["error"])).collect();
    assert_eq!(causes.len(), 2, "{down}");
    assert!(causes.contains(&(&500.into(), &"answered 500".into())), "{down}");
    assert!(causes.contains(&(&503.into(), &"answered 503".into())), "{down}");

    relay.accept(&wechat, &event("o1", "SCAN", "login_7")).await;
    let up = eventually("the login was delivered", async || {
        let shown = show(&relay, "login").await;
        shown["last_success"].is_string().then_some(shown)
    })
    .await;
    assert_eq!((&up["state"], &up["role"]), (&"up".into(), &"identity".into()));
    assert_eq!((&up["expire_after_seconds"], up["failures"].as_array().map(Vec::len)), (&90.0.into(), Some(0)));
    let origin = login.url().replace("/hook", "");
    assert_eq!(up["url"], format!("{origin}/..."), "an identity provider's path is a secret");

    // What is left of a target that is not configured any more is what the store has.
    relay.configure(wechat.account() + &identity);
    assert_eq!(post(&relay.admin, "/api/reload").await.status, 200);
    let removed = show(&relay, "crm").await;
    assert_eq!((&removed["state"], &removed["pending"]), (&"removed".into(), &6.into()));
    assert_eq!((&removed["url"], &removed["gives_up_at"]), (&Value::Null, &Value::Null));
    assert_eq!(relay.get("/api/targets/cmr").await.status, 404);
    assert_eq!(post(&relay.admin, "/api/targets/crm/probe").await.status, 404, "nothing says where it is");
}

#[tokio::test]
async fn a_probe_reaches_a_target_and_changes_neither_its_state_nor_its_deliveries() {
    let (wechat, crm) = (WeChat::secure(), Target::always(Reaction::Answer(Reply::status(503))).await);
    let gone = format!("[targets.gone]\nurl = \"http://{}/hook\"\nformat = \"json\"\n", free_address());
    let relay = Relay::start(wechat.account() + &crm.config("crm", "") + &gone).await;
    assert_eq!(post(&relay.admin, "/api/targets/crm/pause").await.status, 200);
    relay.accept(&wechat, &text("o1", "hello")).await;
    let before = show(&relay, "crm").await;
    let failed = probe(&relay, "crm").await;
    assert_eq!((&failed["result"], &failed["name"]), (&"failed".into(), &"crm".into()));
    assert!(failed["text"].as_str().unwrap_or_default().starts_with("answered 503 to a HEAD"), "{failed}");
    crm.then(Reaction::Answer(Reply::status(200)));
    let passed = probe(&relay, "crm").await;
    assert_eq!((&passed["result"], &passed["remedy"]), (&"ok".into(), &Value::Null));
    assert!(passed["ms"].as_f64().is_some_and(|ms| ms > 0.0), "{passed}");
    assert_eq!(show(&relay, "crm").await, before, "still paused, with one delivery, and no failure");
    let asked = crm.deliveries();
    assert_eq!(asked.len(), 2);
    assert!(asked.iter().all(|request| request.method == "HEAD" && request.text().is_empty()), "no event was sent");

    let refused = probe(&relay, "gone").await;
    assert_eq!((&refused["result"], &refused["ms"]), (&"failed".into(), &Value::Null));
    assert!(refused["remedy"].as_str().unwrap_or_default().contains("`url`"), "{refused}");
    assert_eq!(post(&relay.admin, "/api/targets/cmr/probe").await.status, 404);
    assert_eq!(relay.get("/api/targets/crm/probe").await.status, 405);
}

#[tokio::test]
async fn a_probe_of_a_backend_that_speaks_wechats_protocol_is_its_verification() {
    let (wechat, backend) = (WeChat::secure(), Target::start().await);
    let relay = Relay::start(wechat.account() + &backend.config("backend", "format = \"wechat\"")).await;
    let failed = probe(&relay, "backend").await;
    let said = failed["text"].as_str().unwrap_or_default();
    assert_eq!(failed["result"], "failed", "{failed}");
    assert!(said.starts_with("WeChat's verification: answered 200 without a body"), "{said}");
    let asked = backend.delivery(0).await;
    assert_eq!(asked.method, "GET");
}

async fn show(relay: &Relay, name: &str) -> Value {
    let answer = relay.get(&format!("/api/targets/{name}")).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.json()
}

async fn probe(relay: &Relay, name: &str) -> Value {
    let answer = post(&relay.admin, &format!("/api/targets/{name}/probe")).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.json()
}
