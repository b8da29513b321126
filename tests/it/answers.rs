//! What targets answer with status 200 is kept, shown, and judged by its text.
//!
//! Sources: casdoor/casdoor #2655 and its `ResponseError`, MicrosoftDocs/msteams-docs #9064: errors with status 200.

use serde_json::{Value, json};

use crate::support::relay::{Relay, Setup};
use crate::support::target::{Reaction, Reply, Target};
use crate::support::wechat::{PATH, WeChat, element, event, text, text_reply};

const REFUSAL: &str = r#"{"status":"error","msg":"ticket not found","data":null}"#;
const ROUTE: &str = "[[accounts.shop.routes]]\notherwise = true\nto = [\"crm\"]\nreply = \"crm\"\n";

#[tokio::test]
async fn the_beginning_of_every_answer_is_shown_whatever_its_status() {
    let (wechat, login) = (WeChat::secure(), Target::start().await);
    let relay = Relay::start(wechat.account() + &login.config("login", "role = \"identity\"\nretry = [\"30s\"]")).await;
    for (index, status) in [200, 201, 404, 503].into_iter().enumerate() {
        login.then(Reaction::Answer(Reply { status, ..Reply::body("application/json", REFUSAL) }));
        relay.accept(&wechat, &event("o1", "SCAN", "7")).await;
        let id = login.delivery(index).await.header("wxrelay-event-id").to_owned();
        let attempt = relay.attempt(&id, "login", 1, |_| true).await;
        assert_eq!((&attempt["status"], &attempt["answer"]), (&json!(status), &json!(REFUSAL)), "{attempt}");
        let shown = relay.run(&["events", "show", &id]).await.stdout;
        assert!(shown.contains("ticket not found"), "{status}: {shown}");
    }
}

#[tokio::test]
async fn an_answer_that_says_nothing_is_not_stored_and_a_long_one_is_cut() {
    let (wechat, crm) = (WeChat::secure(), Target::start().await);
    let relay = Relay::start(wechat.account() + &crm.config("crm", "")).await;
    let long = "x".repeat(1025);
    for (index, (body, kept)) in
        [("", None), ("success", None), (" success\n", None), ("ok", Some("ok")), (&long, Some(&long[..1024]))]
            .into_iter()
            .enumerate()
    {
        crm.then(Reaction::Answer(Reply::body("text/plain", body)));
        relay.accept(&wechat, &text("o1", "hi")).await;
        let id = crm.delivery(index).await.header("wxrelay-event-id").to_owned();
        let attempt = relay.attempt(&id, "crm", 1, |_| true).await;
        assert_eq!(attempt["answer"].as_str(), kept, "{body:?}");
        assert_eq!(attempt["error"], Value::Null, "{body:?}");
    }
}

#[tokio::test]
async fn the_answer_of_a_200_is_encrypted_in_the_store_where_keys_are_set() {
    let (wechat, crm) = (WeChat::secure(), Target::start().await);
    crm.then(Reaction::Answer(Reply::body("application/json", REFUSAL)));
    let key = "encryption_keys = [\"AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=\"]";
    for (queue, found) in [("", true), (key, false)] {
        let mut relay = Setup::new(wechat.account() + &crm.config("crm", "")).queue(queue).start().await;
        relay.accept(&wechat, &text("o1", "hi")).await;
        relay.audited("delivered", 1).await;
        let logged = relay.lines().concat();
        assert!(!logged.contains("ticket not found"), "{logged}");
        relay.stop().await;
        let mut files = Vec::new();
        for entry in std::fs::read_dir(relay.store()).expect("the store is a folder") {
            files.extend(std::fs::read(entry.expect("an entry").path()).unwrap_or_default());
        }
        let needle = b"ticket not found";
        assert_eq!(files.windows(needle.len()).any(|window| window == needle), found, "{queue}");
    }
}

#[tokio::test]
async fn a_200_counts_only_if_its_text_says_so() {
    let body = |text: &str| Reaction::Answer(Reply::body("text/plain", text));
    let mut gzip = Reply::body("text/plain", "ok");
    gzip.headers.push(("content-encoding", "gzip".to_owned()));
    for (rule, failing, sound) in [
        ("delivered_if = [\"ok\", \"re:^done\"]", vec![body("no"), body(""), Reaction::Answer(gzip)], body(" ok\n")),
        ("delivered_if = [\"\", \"success\"]", vec![body(REFUSAL), body("<html>")], body("")),
        ("delivered_if = \"json\"", vec![body(REFUSAL), body("ok")], body("{\"errcode\":0}")),
        ("failed_if = \"json\"", vec![body(REFUSAL), body("{\"errcode\":40001}")], body("<html>")),
        ("failed_if = 're:\"status\":\\s*\"error\"'", vec![body(REFUSAL)], body("{\"status\":\"ok\"}")),
        ("failed_if = \"*error*\"", vec![body("an\nerror."), Reaction::BreakOff(Reply::xml("fine"))], body("fine")),
    ] {
        let (wechat, crm) = (WeChat::secure(), Target::start().await);
        let attempts = failing.len() + 1;
        crm.script(failing);
        crm.then(sound);
        let relay = Relay::start(
            wechat.account() + &crm.config("crm", &format!("{rule}\nretry = [\"20ms\", \"20ms\", \"20ms\"]")),
        )
        .await;
        relay.accept(&wechat, &text("o1", "hi")).await;
        let id = crm.delivery(0).await.header("wxrelay-event-id").to_owned();
        let last = attempts as u64;
        let first = relay.attempt(&id, "crm", 1, |_| true).await;
        assert!(first["error"].as_str().is_some_and(|error| error.starts_with("answered 200 ")), "{rule}: {first}");
        let ended = relay.attempt(&id, "crm", last, |_| true).await;
        assert_eq!(ended["error"], Value::Null, "{rule}: {ended}");
        relay.audited("delivered", 1).await;
        assert_eq!(crm.deliveries().len(), attempts, "{rule}");
    }
}

#[tokio::test]
async fn retry_after_counts_where_a_200_is_an_error() {
    let (wechat, crm) = (WeChat::secure(), Target::start().await);
    let mut busy = Reply::body("application/json", REFUSAL);
    busy.headers.push(("retry-after", "3600".to_owned()));
    crm.then(Reaction::Answer(busy));
    let relay = Relay::start(wechat.account() + &crm.config("crm", "failed_if = \"json\"\nretry = [\"20ms\"]")).await;
    relay.accept(&wechat, &text("o1", "hi")).await;
    let id = crm.delivery(0).await.header("wxrelay-event-id").to_owned();
    relay.attempt(&id, "crm", 1, |_| true).await;
    relay.audited("pending", 1).await;
    assert_eq!(crm.deliveries().len(), 1, "the target asked for an hour");
}

#[tokio::test]
async fn a_reply_that_is_none_lets_the_next_target_reply() {
    let (wechat, bot, crm) = (WeChat::secure(), Target::start().await, Target::start().await);
    crm.then(Reaction::Answer(Reply::xml(text_reply("o1", "the crm's"))));
    let route = "[[accounts.shop.routes]]\notherwise = true\nto = [\"bot\", \"crm\"]\nreply = [\"bot\", \"crm\"]\n";
    let targets = bot.config("bot", "no_reply_if = [\"re:^busy\", \"plain\"]") + &crm.config("crm", "");
    let relay = Relay::start(wechat.account() + route + &targets).await;
    let json = json!({ "reply": { "msg_type": "text", "content": "busy, ask later" } }).to_string();
    for (index, (reply, used)) in [
        (Reply::xml(text_reply("o1", "busy")), "the crm's"),
        (Reply::body("application/json", json), "the crm's"),
        (Reply::body("text/plain", "plain\n"), "the crm's"),
        (Reply::xml(text_reply("o1", "not busy")), "not busy"),
    ]
    .into_iter()
    .enumerate()
    {
        bot.then(Reaction::Answer(reply));
        let clear = wechat.open_reply(relay.accept(&wechat, &text("o1", "hi")).await.text());
        assert_eq!(element(&clear, "Content").as_deref(), Some(used), "{index}");
        let id = bot.delivery(index).await.header("wxrelay-event-id").to_owned();
        let attempt = relay.attempt(&id, "bot", 1, |_| true).await;
        let ruled_out = attempt["error"].as_str().is_some_and(|error| error.contains("`no_reply_if` matches"));
        assert_eq!(ruled_out, used == "the crm's", "{attempt}");
    }
    assert_eq!(relay.metric("wxrelay_replies_total", &[("result", "illegal")]).await, 0.0, "{route}");
}

#[tokio::test]
async fn a_reply_that_no_route_asks_for_is_reported() {
    let (wechat, crm) = (WeChat::secure(), Target::start().await);
    crm.then(Reaction::Answer(Reply::xml(text_reply("o1", "nobody asks"))));
    let relay = Relay::start(wechat.account() + &crm.config("crm", "")).await;
    for index in 0..3 {
        assert_eq!(relay.accept(&wechat, &text("o1", "hi")).await.text(), "success");
        let id = crm.delivery(index).await.header("wxrelay-event-id").to_owned();
        let attempt = relay.attempt(&id, "crm", 1, |_| true).await;
        let error = attempt["error"].as_str().unwrap_or_default();
        assert_eq!(error, "reply not used: no route of the account names this target in `reply`");
        assert!(relay.run(&["events", "show", &id]).await.stdout.contains(error));
    }
    relay.audited("delivered", 3).await;
    let warned = relay.lines().into_iter().filter(|line| line.contains("no route asks this target for one"));
    assert_eq!(warned.count(), 1, "once for each target");
    let url = format!("http://{}{PATH}", relay.push);
    let simulated = relay.run(&["simulate", "--to", &url, "--tries", "1", "text", "hi"]).await;
    assert_eq!(simulated.code, Some(0), "{simulated:?}");
    assert!(simulated.stdout.contains("add reply = \"crm\" to its route"), "{simulated:?}");
}

#[tokio::test]
async fn a_reply_to_another_event_than_the_route_asks_about_is_not_blamed_on_the_route() {
    let (wechat, crm) = (WeChat::secure(), Target::start().await);
    crm.then(Reaction::Answer(Reply::xml(text_reply("o1", "always"))));
    let routes = "[[accounts.shop.routes]]\nmatch = { msg_type = \"text\" }\nto = [\"crm\"]\nreply = \"crm\"\n\
                  [[accounts.shop.routes]]\notherwise = true\nto = [\"crm\"]\n";
    let relay = Relay::start(wechat.account() + routes + &crm.config("crm", "")).await;
    relay.accept(&wechat, &event("o1", "CLICK", "menu")).await;
    let id = crm.delivery(0).await.header("wxrelay-event-id").to_owned();
    let attempt = relay.attempt(&id, "crm", 1, |_| true).await;
    assert_eq!(attempt["error"], "reply not used: no reply was awaited");
    assert!(!relay.lines().concat().contains("no route asks this target for one"));
}

#[tokio::test]
async fn the_sink_marks_a_reply_that_no_route_asks_for() {
    let wechat = WeChat::secure();
    for (route, marked) in [("", true), (ROUTE, false)] {
        let sink = crate::support::command::Running::spawn(crate::support::command::wxrelay([
            "sink",
            "--listen",
            "127.0.0.1:0",
            "--reply",
            "hi",
        ]));
        let address = sink.find("the address", |line| line.strip_prefix("listening on ").map(str::to_owned)).await;
        let target = format!("[targets.crm]\nurl = \"{address}/\"\nformat = \"json\"\n");
        let relay = Relay::start(wechat.account() + route + &target).await;
        relay.accept(&wechat, &text("o1", "hi")).await;
        let line = sink.find("the delivery", |line| line.contains("attempt 1").then(|| line.to_owned())).await;
        assert_eq!(line.contains("reply NOT AWAITED"), marked, "{line}");
    }
}
