//! `tries = "each"`: bots that count on WeChat's retries get each of them, and their reply reaches the user.

use std::time::Duration;

use serde_json::Value;
use tokio::time::{Instant, timeout};

use crate::support::http::{Answer, Connection};
use crate::support::relay::Relay;
use crate::support::target::{Delivery, Reaction, Reply, Target};
use crate::support::wechat::{GH, PATH, WeChat, element, text, text_reply};
use crate::support::{eventually, soon};

const TIMEOUTS: &str = "wxrelay_reply_window_timeouts_total";

/// The longest window, so that no test reaches its end; tries are answered, or not, within a second.
const WINDOW: &str = "reply_budget = \"1s\"\nreply_window = \"14.5s\"\n";

/// For a bot that is asked again and again; a second try by the relay comes 5 s after the first.
const EACH: &str = "tries = \"each\"\nnot_yet_after = \"300ms\"\ntimeout = \"30s\"\nretry = [\"1h\"]\n";

/// CowAgent's manner: it works on after WeChat hung up, and answers `success` then.
#[tokio::test]
async fn a_bot_that_answers_success_when_nobody_listens_gives_its_reply_to_the_next_try() {
    for format in ["wechat", "raw"] {
        let Stage { relay, wechat, bot } = stage(WINDOW, &format!("format = \"{format}\"\n{EACH}")).await;
        let reply = text_reply("o1", "thought through");
        let reply = Reply::xml(if format == "wechat" { wechat.seal_reply(&reply) } else { reply });
        bot.script([Reaction::Hold(success()), Reaction::Answer(reply)]);
        let clear = text("o1", "think");
        hold(&relay, &wechat, &clear, 1.0).await;
        bot.release(1);
        let answer = relay.accept(&wechat, &clear).await;
        assert_eq!(content(&wechat, &answer).as_deref(), Some("thought through"), "{format}");
        let tries = bot.deliveries();
        assert_eq!(numbers(&tries), ["1", "2"]);
        for delivery in &tries {
            let opened = wechat.open_push(delivery.query.as_deref().expect("a query"), delivery.text());
            assert_eq!((opened, delivery.header("wxrelay-attempt")), (clear.clone(), "1"), "{format}");
        }
        let audit = relay.audited("delivered", 1).await;
        assert_eq!(audit["events"], 1);
        assert_eq!(record(&relay, &tries[0], 1).await["error"], "reply at try 2 of 2");
        assert_eq!(relay.metric(TIMEOUTS, &[]).await, 1.0);
    }
}

/// Dify's manner.
#[tokio::test]
async fn a_bot_that_answers_500_until_its_reply_is_ready_is_tried_again_in_silence() {
    let Stage { relay, wechat, bot } = stage(WINDOW, EACH).await;
    bot.script([500, 500].map(|status| Reaction::Answer(Reply::status(status))));
    bot.then(Reaction::Answer(reply("at the third")));
    let clear = text("o1", "think");
    for held in [1.0, 2.0] {
        hold(&relay, &wechat, &clear, held).await;
    }
    let answer = relay.accept(&wechat, &clear).await;
    assert_eq!(content(&wechat, &answer).as_deref(), Some("at the third"));
    assert_eq!(numbers(&bot.deliveries()), ["1", "2", "3"]);
    let audit = relay.audited("delivered", 1).await;
    assert_eq!((&audit["dead"], &audit["pending"]), (&0.into(), &0.into()), "{audit}");
    assert_eq!(record(&relay, &bot.deliveries()[0], 1).await["error"], "reply at try 3 of 3");
}

/// WeRoBot's manner.
#[tokio::test]
async fn a_bot_that_simply_waits_answers_the_newest_try() {
    let Stage { relay, wechat, bot } = stage(WINDOW, EACH).await;
    bot.script([Reaction::Hold(reply("worth waiting"))]);
    bot.then(Reaction::Hang);
    let clear = text("o1", "think");
    hold(&relay, &wechat, &clear, 1.0).await;
    let mut second = relay.begin(&wechat, &clear).await;
    assert_eq!(numbers(&bot.wait_for(2).await), ["1", "2"], "they overlap");
    bot.release(1);
    assert_eq!(content(&wechat, &answer(&mut second).await).as_deref(), Some("worth waiting"));
    relay.audited("delivered", 1).await;
    assert_eq!(record(&relay, &bot.deliveries()[0], 1).await["error"], "reply at try 1 of 2");
    let third = relay.accept(&wechat, &clear).await;
    assert_eq!(content(&wechat, &third).as_deref(), Some("worth waiting"), "if that connection was gone");
    assert_eq!(bot.deliveries().len(), 2);
}

#[tokio::test]
async fn a_reply_that_finds_no_connection_is_kept_for_the_next_try() {
    let Stage { relay, wechat, bot } = stage(WINDOW, EACH).await;
    bot.script([Reaction::Hold(reply("between two tries"))]);
    let clear = text("o1", "think");
    hold(&relay, &wechat, &clear, 1.0).await;
    bot.release(1);
    relay.audited("delivered", 1).await;
    let second = relay.accept(&wechat, &clear).await;
    assert_eq!(content(&wechat, &second).as_deref(), Some("between two tries"));
    assert_eq!(numbers(&bot.deliveries()), ["1"]);
}

#[tokio::test]
async fn a_quick_empty_answer_and_a_refusal_are_final() {
    let Stage { relay, wechat, bot } = stage(WINDOW, EACH).await;
    for (number, reaction) in [success(), Reply::status(204), Reply::status(403)].into_iter().enumerate() {
        bot.script([Reaction::Answer(reaction)]);
        assert_eq!(relay.accept(&wechat, &text("o1", "hi")).await.text(), "success");
        assert_eq!(numbers(&bot.deliveries()).len(), number + 1);
    }
    relay.audited("delivered", 2).await;
    assert_eq!(relay.audited("pending", 1).await["events"], 3, "the refused one is tried again by schedule");
    assert_eq!(relay.metric(TIMEOUTS, &[]).await, 0.0, "no try was left to time out");
    assert_eq!(record(&relay, &bot.deliveries()[0], 1).await["error"], Value::Null);
}

#[tokio::test]
async fn tries_that_all_fail_are_one_failed_attempt_of_the_schedule() {
    let settings = "tries = \"each\"\nnot_yet_after = \"300ms\"\ntimeout = \"1s\"\nretry = [\"100ms\"]\n";
    let Stage { relay, wechat, bot } = stage("", settings).await;
    bot.script([Reaction::Answer(Reply::status(500))]);
    assert_eq!(relay.accept(&wechat, &text("o1", "hi")).await.text(), "success");
    let again = bot.delivery(1).await;
    assert_eq!((numbers(&bot.deliveries()[..1]), again.header("wxrelay-attempt")), (vec!["1"], "2"));
    assert!(again.headers.get("wxrelay-try").is_none(), "nobody waits for its reply");
    relay.audited("delivered", 1).await;
    let failed = record(&relay, &again, 1).await;
    assert_eq!((&failed["status"], &failed["error"]), (&500.into(), &"answered 500".into()));
}

#[tokio::test]
async fn not_yet_opens_no_breaker() {
    let settings = "tries = \"each\"\nnot_yet_after = \"300ms\"\ntimeout = \"1s\"\nretry = [\"1h\"]\n";
    let Stage { relay, wechat, bot } = stage("", settings).await;
    bot.script([Reaction::Answer(Reply::status(500)), Reaction::Hang].into_iter().cycle().take(8));
    let mut asked = Vec::new();
    for user in ["o1", "o2", "o3", "o4", "o5", "o6", "o7", "o8"] {
        asked.push(relay.begin(&wechat, &text(user, "think")).await);
    }
    for connection in &mut asked {
        assert_eq!(answer(connection).await.text(), "success");
    }
    relay.audited("pending", 8).await;
    bot.then(Reaction::Answer(reply("quick")));
    let answer = relay.accept(&wechat, &text("o1", "quick")).await;
    assert_eq!(content(&wechat, &answer).as_deref(), Some("quick"));
    assert_eq!(relay.metric("wxrelay_target_up", &[("target", "bot")]).await, 1.0);
}

#[tokio::test]
async fn without_a_window_the_relay_makes_the_further_tries() {
    let Stage { relay, wechat, bot } = stage("reply_budget = \"300ms\"\n", EACH).await;
    bot.script([Reaction::Hang, Reaction::Answer(reply("too late"))]);
    assert_eq!(relay.accept(&wechat, &text("o1", "think")).await.text(), "success");
    let tries = bot.wait_for(2).await;
    assert_eq!(numbers(&tries), ["1", "2"]);
    let apart = tries[1].at - tries[0].at;
    assert!((Duration::from_millis(4900)..Duration::from_secs(8)).contains(&apart), "{apart:?}");
    relay.audited("delivered", 1).await;
    assert_eq!(record(&relay, &tries[0], 1).await["error"], "reply too late; reply at try 2 of 2");
}

#[tokio::test]
async fn what_the_further_tries_bring_is_held_for_the_user() {
    let held = "held_replies = \"10m\"\nheld_prompt = { text = \"Thinking.\" }\nheld_pickup = [\"1\"]\n";
    let Stage { relay, wechat, bot } = stage(&format!("reply_budget = \"1s\"\n{held}"), EACH).await;
    bot.script([Reaction::Answer(Reply::status(500)), Reaction::Answer(reply("held"))]);
    let prompt = relay.accept(&wechat, &text("o1", "think")).await;
    assert_eq!(content(&wechat, &prompt).as_deref(), Some("Thinking."));
    assert_eq!(numbers(&bot.wait_for(2).await), ["1", "2"]);
    relay.audited("delivered", 1).await;
    let picked_up = relay.accept(&wechat, &text("o1", "1")).await;
    assert_eq!(content(&wechat, &picked_up).as_deref(), Some("held"));
}

#[tokio::test]
async fn silence_is_paid_for_by_the_failure_budget_and_ends_with_it() {
    let account = WINDOW.to_owned() + "reply_window_failures = \"1/1h\"\n";
    let Stage { relay, wechat, bot } = stage(&account, EACH).await;
    bot.then(Reaction::Hang);
    let first = text("o1", "think");
    hold(&relay, &wechat, &first, 1.0).await;
    for clear in [text("o2", "think"), first] {
        let sent = Instant::now();
        assert_eq!(relay.accept(&wechat, &clear).await.text(), "success");
        assert!(sent.elapsed() < Duration::from_secs(4), "within its budget: {:?}", sent.elapsed());
    }
    assert_eq!(relay.metric(TIMEOUTS, &[]).await, 1.0);
    assert_eq!(numbers(&bot.wait_for(3).await), ["1", "1", "2"], "the first message's second try is passed on");
}

/// In WeChat's own time: tries at 0, 5 and 10 s, each judged.
#[tokio::test]
async fn simulate_tries_at_wechats_rhythm_and_the_third_try_brings_the_reply() {
    let Stage { relay, wechat: _, bot } = stage("reply_window = \"14.5s\"\n", EACH).await;
    bot.script([500, 500].map(|status| Reaction::Answer(Reply::status(status))));
    bot.then(Reaction::Answer(reply("at the third")));
    let pushed = simulate(&relay).await;
    assert_eq!((&pushed["tries"], &pushed["verdict"]), (&3.into(), &"replied".into()), "{pushed}");
    let attempts = pushed["attempts"].as_array().expect("a list");
    for (number, (attempt, verdict)) in attempts.iter().zip(["fault", "fault", "replied"]).enumerate() {
        let (started, due) = (attempt["started_ms"].as_u64().expect("a number"), 5000 * number as u64);
        assert!((due..due + 2000).contains(&started), "{attempt}");
        assert_eq!((&attempt["try"], &attempt["verdict"]), (&(number + 1).into(), &verdict.into()), "{attempt}");
    }
    assert_eq!(numbers(&bot.deliveries()), ["1", "2", "3"]);
}

/// WeChat's last try begins at 10 s, and has the whole reply budget.
#[tokio::test]
async fn a_reply_after_14_2_s_answers_the_third_try() {
    let Stage { relay, wechat: _, bot } = stage("reply_window = \"14.5s\"\n", "timeout = \"30s\"\n").await;
    bot.then(Reaction::Slow(Duration::from_millis(14_200), reply("just in time")));
    let pushed = simulate(&relay).await;
    assert_eq!((&pushed["tries"], &pushed["verdict"]), (&3.into(), &"replied".into()), "{pushed}");
    assert_eq!(bot.deliveries().len(), 1);
    assert!(bot.deliveries()[0].headers.get("wxrelay-try").is_none());
}

#[tokio::test]
async fn check_warns_of_settings_that_lose_replies() {
    let Stage { mut relay, wechat, bot } = stage("", EACH).await;
    let warned = relay.run(&["check"]).await;
    let off = "targets.bot.tries: accounts.shop.reply_window and accounts.shop.held_replies are off";
    assert!(warned.code == Some(0) && warned.stderr.contains(off), "{warned:?}");
    relay.configure(wechat.account() + &bot.config("bot", EACH).replace("json", "wechat"));
    let warned = relay.run(&["check"]).await;
    assert!(warned.stderr.contains("targets.bot.tries: no route asks this target"), "{warned:?}");
}

#[tokio::test]
async fn check_warns_of_a_backend_that_was_too_slow_to_reply() {
    let Stage { mut relay, wechat, bot } = stage("reply_budget = \"300ms\"\n", "timeout = \"30s\"\n").await;
    let slow = "targets.bot: 1 of its last 2 answers took longer than accounts.shop.reply_budget (300ms)";
    relay.accept(&wechat, &text("o1", "hi")).await;
    bot.then(Reaction::Slow(Duration::from_millis(600), reply("too late")));
    relay.accept(&wechat, &text("o1", "think")).await;
    relay.audited("delivered", 2).await;
    let warned = relay.run(&["check"]).await;
    assert!(warned.code == Some(0) && warned.stderr.contains(slow), "{warned:?}");
    for (account, settings) in [("reply_window = \"14s\"\n", ""), ("held_replies = \"10m\"\n", ""), ("", EACH)] {
        relay.configure(config(&wechat, &bot, &format!("reply_budget = \"300ms\"\n{account}"), settings));
        let warned = relay.run(&["check"]).await;
        assert!(warned.code == Some(0) && !warned.stderr.contains("answers took longer"), "{warned:?}");
    }
}

struct Stage {
    relay: Relay,
    wechat: WeChat,
    bot: Target,
}

async fn stage(account: &str, settings: &str) -> Stage {
    let (wechat, bot) = (WeChat::secure(), Target::start().await);
    let relay = Relay::start(config(&wechat, &bot, account, settings)).await;
    Stage { relay, wechat, bot }
}

/// One bot that replies, in the format `wechat` unless the settings name another.
fn config(wechat: &WeChat, bot: &Target, account: &str, settings: &str) -> String {
    let route = "[[accounts.shop.routes]]\notherwise = true\nto = [\"bot\"]\nreply = \"bot\"\n";
    let format = if settings.contains("format = ") { "" } else { "format = \"wechat\"\n" };
    wechat.account() + account + route + &bot.config("bot", &format!("{format}{settings}"))
}

fn reply(content: &str) -> Reply {
    Reply::xml(text_reply("o1", content))
}

fn success() -> Reply {
    Reply::body("text/plain", "success")
}

/// The numbers of the tries.
fn numbers(deliveries: &[Delivery]) -> Vec<&str> {
    deliveries.iter().map(|delivery| delivery.header("wxrelay-try")).collect()
}

async fn record(relay: &Relay, delivery: &Delivery, number: u64) -> Value {
    relay.attempt(delivery.header("wxrelay-event-id"), "bot", number, |_| true).await
}

/// A try that gets no answer, as WeChat hangs up. It is the `held`th of the relay.
async fn hold(relay: &Relay, wechat: &WeChat, clear: &str, held: f64) {
    let mut connection = relay.begin(wechat, clear).await;
    let timeouts = async || (relay.metric(TIMEOUTS, &[]).await == held).then_some(());
    eventually("the try is held", timeouts).await;
    assert!(timeout(Duration::ZERO, connection.read()).await.is_err(), "no answer");
}

async fn answer(connection: &mut Connection) -> Answer {
    let answer = soon("the answer to a push", connection.read()).await.expect("an answer");
    assert_eq!(answer.status, 200);
    answer
}

/// What `simulate` says of a text message.
async fn simulate(relay: &Relay) -> Value {
    let to = format!("http://{}{PATH}", relay.push);
    let args = ["simulate", "--to", &to, "--openid", "o1", "--original-id", GH, "--json", "text", "think"];
    let finished = relay.run(&args).await;
    assert_eq!(finished.code, Some(0), "{finished:?}");
    serde_json::from_str(&finished.stdout).unwrap_or_else(|error| panic!("{error}: {finished:?}"))
}

fn content(wechat: &WeChat, answer: &Answer) -> Option<String> {
    (answer.text() != "success").then(|| element(&wechat.open_reply(answer.text()), "Content"))?
}
