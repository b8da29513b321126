//! `reply = ["bot", "crm"]`: all targets are called concurrently; of those that reply, the first in the list is used.

use std::time::Duration;

use serde_json::Value;

use crate::support::http::{Answer, Connection};
use crate::support::relay::Relay;
use crate::support::soon;
use crate::support::target::{Reaction, Reply, Target};
use crate::support::wechat::{PATH, WeChat, element, text, text_reply};

const RESERVE: &str = "reply in reserve: another target's comes first";
const OUTDONE: &str = "reply not used: another target's was";

#[tokio::test]
async fn the_first_in_the_list_wins_though_another_replies_sooner() {
    let Fixture { relay, wechat, bot, crm } = fixture("", "[\"bot\", \"crm\"]").await;
    bot.then(Reaction::Hold(reply("the bot's")));
    crm.then(Reaction::Answer(reply("the crm's")));
    let mut connection = push(&relay, &wechat).await;
    for target in [&bot, &crm] {
        assert!(target.delivery(0).await.header("wxrelay-deadline-ms").parse::<u64>().is_ok(), "both are asked");
    }
    let event = event(&crm).await;
    let says = |text: &'static str| move |attempt: &Value| attempt["error"] == text;
    let reserve = relay.attempt(&event, "crm", 1, says(RESERVE)).await;
    assert!(reserve["answer"].as_str().is_some_and(|answer| answer.contains("the crm's")), "{reserve}");
    bot.release(1);
    assert_eq!(content(&wechat, &answer(&mut connection).await).as_deref(), Some("the bot's"));
    relay.attempt(&event, "crm", 1, says(OUTDONE)).await;
    let used = relay.attempt(&event, "bot", 1, |_| true).await;
    assert_eq!(used["error"], Value::Null);
    assert!(used["answer"].as_str().is_some_and(|answer| answer.contains("the bot's")), "{used}");
    assert_eq!(relay.metric("wxrelay_replies_total", &[("result", "replied")]).await, 1.0);
    let shown = relay.run(&["events", "show", &event, "--text"]).await.stdout;
    assert!(shown.contains("reply used") && shown.contains(OUTDONE) && shown.contains("the crm's"), "{shown}");
}

#[tokio::test]
async fn the_first_in_the_list_wins_as_soon_as_it_replies() {
    let Fixture { relay, wechat, bot, crm } = fixture("", "[\"bot\", \"crm\"]").await;
    bot.then(Reaction::Answer(reply("the bot's")));
    crm.then(Reaction::Hold(reply("the crm's")));
    let answer = relay.accept(&wechat, &text("o1", "hi")).await;
    assert_eq!(content(&wechat, &answer).as_deref(), Some("the bot's"), "while the crm is still being asked");
    crm.release(1);
    relay.attempt(&event(&crm).await, "crm", 1, |attempt| attempt["error"] == OUTDONE).await;
    relay.audited("delivered", 2).await;
}

#[tokio::test]
async fn the_next_replies_where_the_first_says_nothing_fails_or_breaks_the_rules() {
    for bots in [
        Reaction::Answer(Reply::status(200)),
        Reaction::Answer(Reply::body("text/plain", "success")),
        Reaction::Answer(Reply::status(204)),
        Reaction::Answer(Reply { status: 500, ..reply("from an error page") }),
        Reaction::Answer(Reply::body("text/html", "<html></html>")),
        Reaction::BreakOff(reply("half")),
        Reaction::Close,
    ] {
        let what = format!("{bots:?}");
        let Fixture { relay, wechat, bot, crm } = fixture("", "[\"bot\", \"crm\"]").await;
        bot.then(bots);
        crm.then(Reaction::Answer(reply("the crm's")));
        let answer = relay.accept(&wechat, &text("o1", "hi")).await;
        assert_eq!(content(&wechat, &answer).as_deref(), Some("the crm's"), "{what}");
        let used = relay.attempt(&event(&crm).await, "crm", 1, |attempt| attempt["error"].is_null()).await;
        assert!(used["answer"].as_str().is_some_and(|answer| answer.contains("the crm's")), "{what}: {used}");
    }
}

#[tokio::test]
async fn the_next_replies_where_the_first_is_down() {
    let down = Target::start().await;
    let config = down.config("bot", "");
    drop(down);
    let (wechat, crm) = (WeChat::secure(), Target::always(Reaction::Answer(reply("the crm's"))).await);
    let relay = Relay::start(wechat.account() + &route("[\"bot\", \"crm\"]") + &config + &crm.config("crm", "")).await;
    for _ in 0..8 {
        // After some of these, the bot's circuit breaker is open, and it is not called.
        let answer = relay.accept(&wechat, &text("o1", "hi")).await;
        assert_eq!(content(&wechat, &answer).as_deref(), Some("the crm's"));
    }
}

#[tokio::test]
async fn at_the_deadline_the_best_that_is_there_wins() {
    let Fixture { relay, wechat, bot, crm } = fixture("reply_budget = \"1s\"\n", "[\"bot\", \"crm\"]").await;
    bot.then(Reaction::Hold(reply("the bot's")));
    crm.then(Reaction::Answer(reply("the crm's")));
    let answer = relay.accept(&wechat, &text("o1", "hi")).await;
    assert_eq!(content(&wechat, &answer).as_deref(), Some("the crm's"));
    bot.release(1);
    let event = event(&bot).await;
    relay.attempt(&event, "bot", 1, |attempt| attempt["error"] == "reply too late").await;
    relay.attempt(&event, "crm", 1, |attempt| attempt["error"].is_null() && !attempt["answer"].is_null()).await;
    relay.audited("delivered", 2).await;
}

#[tokio::test]
async fn a_fixed_reply_at_the_end_is_the_last_resort_also_after_a_crash() {
    let rule = "[\"bot\", { text = \"One moment.\" }]";
    let Fixture { mut relay, wechat, bot, .. } = fixture("reply_budget = \"1s\"\n", rule).await;
    bot.script([
        Reaction::Answer(reply("the bot's")),
        Reaction::Answer(Reply::status(500)),
        Reaction::Answer(Reply::status(200)),
        Reaction::Hang,
    ]);
    let mut pushes = Vec::new();
    for expected in ["the bot's", "One moment.", "One moment.", "One moment."] {
        let clear = text("o1", "hi");
        let answer = relay.accept(&wechat, &clear).await;
        assert_eq!(content(&wechat, &answer).as_deref(), Some(expected));
        pushes.push((clear, expected));
        bot.wait_for(pushes.len()).await;
    }
    relay.kill().await;
    relay.restart().await;
    for (clear, expected) in pushes {
        let answer = relay.accept(&wechat, &clear).await;
        assert_eq!(content(&wechat, &answer).as_deref(), Some(expected), "the same again");
    }
    assert_eq!(relay.audit().await["events"], 4);
}

#[tokio::test]
async fn a_slow_target_does_not_keep_the_others_delivery_open() {
    let Fixture { relay, wechat, bot, crm } = fixture("", "[\"bot\", \"crm\"]").await;
    bot.then(Reaction::Slow(Duration::from_secs(3), reply("the bot's")));
    crm.then(Reaction::Answer(reply("the crm's")));
    let mut connection = push(&relay, &wechat).await;
    relay.audited("delivered", 1).await;
    assert_eq!(relay.audit().await["pending"], 1, "the bot is still at it");
    assert_eq!(content(&wechat, &answer(&mut connection).await).as_deref(), Some("the bot's"));
}

struct Fixture {
    relay: Relay,
    wechat: WeChat,
    bot: Target,
    crm: Target,
}

async fn fixture(account: &str, rule: &str) -> Fixture {
    let (wechat, bot, crm) = (WeChat::secure(), Target::start().await, Target::start().await);
    let targets = bot.config("bot", "retry = [\"1h\"]\ntimeout = \"60s\"") + &crm.config("crm", "");
    let relay = Relay::start(wechat.account() + account + &route(rule) + &targets).await;
    Fixture { relay, wechat, bot, crm }
}

fn route(rule: &str) -> String {
    format!("[[accounts.shop.routes]]\notherwise = true\nto = [\"crm\", \"bot\"]\nreply = {rule}\n")
}

fn reply(content: &str) -> Reply {
    Reply::xml(text_reply("o1", content))
}

async fn push(relay: &Relay, wechat: &WeChat) -> Connection {
    let mut connection = Connection::open(&relay.push).await.expect("the relay listens");
    connection.write(&wechat.push(&text("o1", "hi")).request(PATH)).await.expect("the relay reads");
    connection
}

async fn answer(connection: &mut Connection) -> Answer {
    soon("the answer to a push", connection.read()).await.expect("an answer")
}

async fn event(target: &Target) -> String {
    target.delivery(0).await.header("wxrelay-event-id").to_owned()
}

fn content(wechat: &WeChat, answer: &Answer) -> Option<String> {
    element(&wechat.open_reply(answer.text()), "Content")
}
