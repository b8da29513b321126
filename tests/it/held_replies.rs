//! `held_replies`: a reply that comes late, or is too long, waits for the user's next message, and is given once.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

use crate::support::command::free_address;
use crate::support::eventually;
use crate::support::http::Answer;
use crate::support::postgres;
use crate::support::relay::{Relay, Setup};
use crate::support::target::{Reaction, Reply, Target};
use crate::support::wechat::{Mode, PATH, Push, WeChat, element, text, text_reply};

const ACCOUNT: &str = "reply_budget = \"400ms\"\nheld_replies = \"10m\"\nheld_prompt = { text = \"One moment.\" }\n\
                       held_none = { text = \"Sorry.\" }\n";
const ROUTE: &str = "[[accounts.shop.routes]]\notherwise = true\nto = [\"crm\", \"bot\"]\nreply = \"bot\"\n";

/// A bot that is asked for replies, and a target that is not.
struct Stage {
    relay: Relay,
    wechat: WeChat,
    bot: Target,
    crm: Target,
}

impl Stage {
    async fn new(account: &str) -> Self {
        Self::with(WeChat::secure(), account, |setup| setup).await
    }

    async fn with(wechat: WeChat, account: &str, change: impl FnOnce(Setup) -> Setup) -> Self {
        let (bot, crm) = (Target::start().await, Target::start().await);
        let body = wechat.account() + account + ROUTE + &targets(&bot, &crm);
        Self { relay: change(Setup::new(body)).start().await, wechat, bot, crm }
    }

    /// What the user reads in answer to a message; empty for nothing.
    async fn say(&self, content: &str) -> String {
        let answer = self.relay.accept(&self.wechat, &text("o1", content)).await;
        read(&self.wechat, &answer)
    }

    /// Asks a question whose reply is held.
    async fn ask_late(&self, question: &str, answers: &str) {
        let before = self.held().await;
        self.bot.script([Reaction::Hold(reply(answers))]);
        assert_eq!(self.say(question).await, "One moment.");
        self.bot.release(1);
        self.holds(before + 1.0).await;
    }

    async fn held(&self) -> f64 {
        self.relay.metric("wxrelay_held_replies", &[("account", "shop")]).await
    }

    async fn holds(&self, count: f64) {
        eventually(&format!("{count} held replies"), async || (self.held().await == count).then_some(())).await;
    }

    async fn counted(&self, result: &str) -> f64 {
        self.relay.metric("wxrelay_replies_total", &[("result", result)]).await
    }

    /// The ledger of replies, which adds up.
    async fn ledger(&self, field: &str, count: u64) {
        let what = format!("{count} replies {field}");
        let audit = eventually(&what, async || {
            let audit = self.relay.audit().await;
            (audit["replies"][field] == count).then_some(audit)
        });
        let audit = audit.await;
        let replies = audit["replies"].as_object().expect("the counts");
        let of = |name: &str| replies[name].as_u64().expect("a count");
        let states = ["sent", "held", "picked_up", "superseded", "dropped", "expired"];
        assert_eq!(of("given"), states.iter().map(|state| of(state)).sum::<u64>(), "{audit}");
        assert_eq!((&audit["unaccounted"], &audit["drift"]), (&0.into(), &0.into()), "{audit}");
    }
}

fn targets(bot: &Target, crm: &Target) -> String {
    bot.config("bot", "retry = [\"300ms\", \"300ms\"]") + &crm.config("crm", "")
}

fn reply(content: &str) -> Reply {
    Reply::xml(text_reply("o1", content))
}

fn read(wechat: &WeChat, answer: &Answer) -> String {
    if answer.text() == "success" {
        return String::new();
    }
    let clear =
        if wechat.mode == Mode::Plaintext { answer.text().to_owned() } else { wechat.open_reply(answer.text()) };
    element(&clear, "Content").expect("a text")
}

fn id_of(delivery: &crate::support::target::Delivery) -> String {
    delivery.header("wxrelay-event-id").to_owned()
}

#[tokio::test]
async fn a_late_reply_waits_for_the_users_next_message_and_is_given_once() {
    let stage = Stage::new(ACCOUNT).await;
    stage.ask_late("why?", "because").await;
    stage.ledger("held", 1).await;
    let question = id_of(&stage.bot.delivery(0).await);
    let shown = stage.relay.run(&["events", "show", &question]).await.stdout;
    assert!(shown.contains("reply held until 20"), "{shown}");
    let pick_up = stage.wechat.push(&text("o1", " 1 "));
    let answers = [pick_up.send(&stage.relay.push).await, pick_up.send(&stage.relay.push).await];
    assert_eq!(answers.map(|answer| read(&stage.wechat, &answer)), ["because", "because"], "and at WeChat's retry");
    let got = stage.crm.wait_for(2).await;
    assert_eq!(stage.bot.deliveries().len(), 1, "the message that picks it up is no question");
    let shown = stage.relay.run(&["events", "show", &question]).await.stdout;
    assert!(shown.contains(&format!("reply picked up by {}", id_of(&got[1]))), "{shown}");
    let shown = stage.relay.run(&["events", "show", &id_of(&got[1])]).await.stdout;
    assert!(shown.contains(&format!("picked up the reply to {question}")), "{shown}");
    assert_eq!((stage.counted("held").await, stage.counted("picked_up").await), (1.0, 1.0));
    stage.holds(0.0).await;
    stage.ledger("picked_up", 1).await;
    stage.bot.then(Reaction::Answer(reply("an answer to 1")));
    assert_eq!(stage.say("1").await, "an answer to 1", "nothing is held: a message like any other");
    stage.ledger("sent", 1).await;
    let audit = stage.relay.run(&["audit"]).await;
    assert!(
        audit.code == Some(0) && audit.stdout.contains("2 replies given: 1 sent, 0 held, 1 picked up"),
        "{audit:?}"
    );
}

#[tokio::test]
async fn a_long_text_comes_in_pieces_and_the_next_one_continues_it() {
    let stage = Stage::new(&(ACCOUNT.to_owned() + "held_more = \"(1)\"\n")).await;
    let long = format!("{}\n\n{}", "字".repeat(600), "尾".repeat(900));
    stage.bot.then(Reaction::Answer(reply(&long)));
    let mut pieces = vec![stage.say("tell me").await];
    for _ in 0..2 {
        stage.holds(1.0).await;
        pieces.push(stage.say("more").await);
    }
    assert!(pieces.iter().all(|piece| piece.len() <= 2048 && !piece.is_empty()), "{pieces:?}");
    let joined: Vec<_> = pieces.iter().map(|piece| piece.strip_suffix("(1)").unwrap_or(piece)).collect();
    assert_eq!(joined.concat(), long);
    assert!(pieces[0].ends_with("\n\n(1)") && !pieces[2].ends_with("(1)"));
    assert_eq!((stage.counted("replied").await, stage.counted("split").await), (1.0, 2.0));
    stage.ledger("picked_up", 1).await;
}

#[tokio::test]
async fn without_held_replies_a_long_text_is_cut() {
    let (wechat, bot, crm) = (WeChat::secure(), Target::start().await, Target::start().await);
    let long = "字".repeat(700);
    bot.then(Reaction::Answer(reply(&long)));
    let fixed = format!("[[accounts.shop.routes]]\nmatch = {{ event = \"SCAN\" }}\nreply = {{ text = \"{long}\" }}\n");
    let relay = Relay::start(wechat.account() + &fixed + ROUTE + &targets(&bot, &crm)).await;
    let clears = [text("o1", "hi"), crate::support::wechat::event("o1", "SCAN", "7")];
    for clear in clears {
        let got = read(&wechat, &relay.accept(&wechat, &clear).await);
        assert!(got.len() <= 2048 && got.ends_with("字…"), "{} bytes", got.len());
    }
    assert_eq!(relay.metric("wxrelay_replies_total", &[("result", "cut")]).await, 2.0);
}

#[tokio::test]
async fn while_an_attempt_runs_the_user_is_prompted_again_and_gets_what_comes_in_time() {
    let stage = Stage::new(ACCOUNT).await;
    stage.bot.then(Reaction::Hold(reply("at last")));
    assert_eq!(stage.say("why?").await, "One moment.");
    assert_eq!(stage.say("1").await, "One moment.", "nothing yet");
    let mut waits = stage.relay.begin(&stage.wechat, &text("o1", "继续")).await;
    stage.crm.wait_for(3).await;
    stage.bot.release(1);
    let answer = waits.read().await.expect("an answer");
    assert_eq!(read(&stage.wechat, &answer), "at last");
    assert_eq!(stage.bot.deliveries().len(), 1);
}

#[tokio::test]
async fn an_attempt_that_ends_without_a_reply_is_said_once() {
    let stage = Stage::new(ACCOUNT).await;
    stage.bot.script([Reaction::Hold(Reply::status(410)), Reaction::Answer(reply("hello"))]);
    assert_eq!(stage.say("why?").await, "One moment.");
    stage.bot.release(1);
    stage.relay.audited("dead", 1).await;
    assert_eq!(stage.say("1").await, "Sorry.");
    assert_eq!(stage.say("1").await, "hello", "then it is a message like any other");
    stage.bot.script([Reaction::Answer(Reply::status(410))]);
    assert_eq!(stage.say("what?").await, "", "no prompt where nothing can come");
}

#[tokio::test]
async fn what_a_scheduled_retry_brings_is_held() {
    let stage = Stage::new(ACCOUNT).await;
    let refusal = || Reaction::Answer(Reply::status(500));
    stage.bot.script([refusal(), refusal(), Reaction::Answer(reply("the third time"))]);
    assert_eq!(stage.say("why?").await, "One moment.", "at once: the retry comes later");
    stage.holds(1.0).await;
    assert_eq!(stage.say("1").await, "the third time");
}

#[tokio::test]
async fn held_replies_survive_kill_9_and_keys_that_change() {
    let key = |fill: u8| format!("\"{}\"", STANDARD.encode([fill; 32]));
    let keys = |list: &[u8]| {
        format!("encryption_keys = [{}]", list.iter().map(|fill| key(*fill)).collect::<Vec<_>>().join(", "))
    };
    let mut stage = Stage::with(WeChat::secure(), ACCOUNT, |setup| setup.queue(&keys(&[1]))).await;
    let secret = "an answer for one pair of eyes";
    stage.ask_late("why?", secret).await;
    stage.relay.kill().await;
    let stored = std::fs::read(stage.relay.store().join("wxrelay.db-wal")).unwrap_or_default();
    assert!(!stored.windows(secret.len()).any(|part| part == secret.as_bytes()), "sealed");
    // The account's key too: the reply is sealed by that of the message that picks it up.
    let old = stage.wechat.aes_key.clone();
    stage.wechat.aes_key = old.replace('a', "b");
    let previous = format!("previous_encoding_aes_key = \"{old}\"\n");
    let body = stage.wechat.account() + &previous + ACCOUNT + ROUTE + &targets(&stage.bot, &stage.crm);
    stage.relay.configure_all(Setup::new(body).queue(&keys(&[2, 1])));
    stage.relay.restart().await;
    assert_eq!(stage.say("1").await, secret);
    stage.ledger("picked_up", 1).await;
    let deep = stage.relay.run(&["audit", "--deep"]).await;
    assert_eq!(deep.code, Some(0), "{deep:?}");
}

#[tokio::test]
async fn a_try_after_kill_9_is_prompted_and_the_reply_is_held() {
    let mut stage = Stage::new(ACCOUNT).await;
    stage.bot.script([Reaction::Hang, Reaction::Hold(reply("once more"))]);
    let clear = text("o1", "why?");
    let _first = stage.relay.begin(&stage.wechat, &clear).await;
    stage.bot.wait_for(1).await;
    stage.relay.kill().await;
    stage.relay.restart().await;
    let answer = stage.relay.accept(&stage.wechat, &clear).await;
    assert_eq!(read(&stage.wechat, &answer), "One moment.");
    stage.bot.wait_for(2).await;
    stage.bot.release(1);
    stage.holds(1.0).await;
    assert_eq!(stage.say("1").await, "once more");
}

#[tokio::test]
async fn wechats_retry_of_the_question_gets_what_is_held_by_then() {
    let stage = Stage::new(ACCOUNT).await;
    stage.bot.script([Reaction::Hold(reply("because"))]);
    let clear = text("o1", "why?");
    let push = stage.wechat.push(&clear);
    assert_eq!(read(&stage.wechat, &push.send(&stage.relay.push).await), "One moment.");
    stage.bot.release(1);
    stage.holds(1.0).await;
    for _ in 0..2 {
        assert_eq!(read(&stage.wechat, &push.send(&stage.relay.push).await), "because");
    }
    stage.ledger("sent", 1).await;
}

#[tokio::test]
async fn five_are_held_the_sixth_is_dropped_and_counted_and_they_come_in_order() {
    let stage = Stage::new(ACCOUNT).await;
    for number in 1..=5 {
        stage.ask_late(&format!("question {number}"), &format!("answer {number}")).await;
    }
    stage.bot.script([Reaction::Hold(reply("answer 6"))]);
    assert_eq!(stage.say("question 6").await, "One moment.");
    stage.bot.release(1);
    stage.ledger("dropped", 1).await;
    assert_eq!(stage.counted("dropped").await, 1.0);
    for number in 1..=5 {
        assert_eq!(stage.say("1").await, format!("answer {number}"));
    }
}

#[tokio::test]
async fn what_nobody_asks_for_in_time_expires() {
    let account = ACCOUNT.replace("10m", "1s");
    let stage = Stage::new(&account).await;
    stage.ask_late("why?", "because").await;
    stage.ledger("expired", 1).await;
    assert_eq!(stage.counted("held_expired").await, 1.0);
    stage.holds(0.0).await;
    stage.bot.then(Reaction::Answer(reply("one what?")));
    assert_eq!(stage.say("1").await, "one what?");
}

#[tokio::test]
async fn users_and_accounts_do_not_get_each_others_replies() {
    let (shop, club) = (WeChat::secure(), WeChat { token: "another1".to_owned(), ..WeChat::new(Mode::Plaintext) });
    let bot = Target::start().await;
    let route = |name: &str| format!("[[accounts.{name}.routes]]\notherwise = true\nto = [\"bot\"]\nreply = \"bot\"\n");
    let body =
        shop.account() + ACCOUNT + &route("shop") + &club.account_named("club", "/club") + ACCOUNT + &route("club");
    let relay = Relay::start(body + &bot.config("bot", "")).await;
    let at_club = async |clear: &str| {
        let Push { query, body } = club.push(clear);
        let push = Push { query, body };
        let answer = crate::support::http::exchange(&relay.push, &push.request("/club")).await;
        read(&club, &answer)
    };
    let at_shop = async |user: &str, content: &str| read(&shop, &relay.accept(&shop, &text(user, content)).await);
    assert!(relay.push.contains(':') && PATH != "/club");
    bot.script([
        Reaction::Hold(Reply::body("application/json", json("to o1"))),
        Reaction::Hold(Reply::body("application/json", json("to the club"))),
    ]);
    assert_eq!(at_shop("o1", "why?").await, "One moment.");
    assert_eq!(at_club(&text("o1", "why?")).await, "One moment.");
    bot.release(2);
    let held = |account: &'static str| {
        let relay = &relay;
        async move {
            eventually("it is held", async || {
                (relay.metric("wxrelay_held_replies", &[("account", account)]).await == 1.0).then_some(())
            })
            .await;
        }
    };
    held("shop").await;
    held("club").await;
    bot.then(Reaction::Answer(Reply::status(200)));
    assert_eq!(at_shop("o2", "1").await, "", "another user");
    assert_eq!(at_club(&text("o1", "1")).await, "to the club");
    assert_eq!(at_shop("o1", "1").await, "to o1");
}

fn json(content: &str) -> String {
    format!("{{\"reply\":{{\"msg_type\":\"text\",\"content\":\"{content}\"}}}}")
}

#[tokio::test]
async fn a_reply_of_more_than_64_kib_is_cut_and_its_record_says_so() {
    let stage = Stage::new(ACCOUNT).await;
    stage.ask_late("tell me all", &"long words ".repeat(7000)).await;
    let question = id_of(&stage.bot.delivery(0).await);
    let attempt = stage.relay.attempt(&question, "bot", 1, |_| true).await;
    assert_eq!(attempt["error"], "reply cut to 64 KiB", "{attempt}");
    let mut bytes = 0;
    for _ in 0..40 {
        let piece = stage.say("1").await;
        bytes += piece.len();
        if piece.ends_with('…') {
            break;
        }
        assert!(!piece.is_empty(), "more of {bytes} bytes");
    }
    assert!((60_000..=64 * 1024).contains(&bytes), "{bytes} bytes");
}

#[tokio::test]
async fn a_pattern_that_matches_everything_picks_up_and_asks_all_the_same() {
    let stage = Stage::new(&(ACCOUNT.to_owned() + "held_pickup = \"*\"\n")).await;
    stage.ask_late("why?", "because").await;
    assert_eq!(stage.say("anything").await, "because");
    stage.bot.then(Reaction::Answer(reply("an answer")));
    assert_eq!(stage.say("anything").await, "an answer", "nothing is held");
}

#[tokio::test]
async fn who_is_forgotten_leaves_no_reply_behind() {
    let stage = Stage::with(WeChat::secure(), ACCOUNT, |setup| setup.admin_at(free_address())).await;
    let secret = "an answer for one pair of eyes";
    stage.ask_late("why?", secret).await;
    let gone = stage.relay.run(&["events", "forget", "--openid", "o1", "--yes"]).await;
    assert_eq!(gone.code, Some(0), "{gone:?}");
    stage.holds(0.0).await;
    stage.bot.then(Reaction::Answer(reply("who are you?")));
    assert_eq!(stage.say("1").await, "who are you?");
    let audit: Value = stage.relay.audit().await;
    assert_eq!((&audit["replies"]["given"], &audit["drift"]), (&1.into(), &0.into()), "{audit}");
}

#[tokio::test]
async fn replicas_give_a_held_reply_once_whichever_gets_the_message() {
    let Some(cluster) = postgres::shared() else { return };
    let database = cluster.database();
    let (wechat, bot, crm) = (WeChat::secure(), Target::start().await, Target::start().await);
    let body = wechat.account() + ACCOUNT + ROUTE + &targets(&bot, &crm);
    let replica = async |name: &str| {
        let setup = Setup::new(body.clone()).postgres(&database.url()).queue(&format!("replica = \"{name}\""));
        setup.start().await
    };
    let (first, second) = (replica("a").await, replica("b").await);
    bot.script([Reaction::Hold(reply("because"))]);
    assert_eq!(read(&wechat, &first.accept_again(&wechat, &text("o1", "why?")).await), "One moment.");
    bot.release(1);
    let held = async || (second.metric("wxrelay_held_replies", &[("account", "shop")]).await == 1.0).then_some(());
    eventually("the other replica knows of it", held).await;
    bot.then(Reaction::Answer(Reply::status(200)));
    let (one, two) = (text("o1", "1"), text("o1", "more"));
    let both = tokio::join!(first.accept_again(&wechat, &one), second.accept_again(&wechat, &two));
    let mut got = [read(&wechat, &both.0), read(&wechat, &both.1)];
    got.sort();
    assert_eq!(got, ["", "because"], "one of the two messages");
    let again = [second.accept_again(&wechat, &one).await, first.accept_again(&wechat, &two).await];
    let again = again.map(|answer| read(&wechat, &answer));
    assert!(again.contains(&"because".to_owned()), "WeChat's retry gets it at the other replica too: {again:?}");
    let audit = first.audit().await;
    assert_eq!((&audit["replies"]["picked_up"], &audit["replies"]["given"]), (&1.into(), &1.into()), "{audit}");
    assert_eq!((&audit["drift"], &audit["unaccounted"]), (&0.into(), &0.into()), "{audit}");
    let mut first = first;
    first.kill().await;
    bot.script([Reaction::Hold(reply("again"))]);
    assert_eq!(read(&wechat, &second.accept_again(&wechat, &text("o1", "how?")).await), "One moment.");
}

#[tokio::test]
async fn the_second_reply_to_a_question_is_superseded() {
    let (wechat, bot, crm) = (WeChat::secure(), Target::start().await, Target::start().await);
    let route = ROUTE.replace("\"bot\"\n", "[\"bot\", \"crm\"]\n");
    let relay = Relay::start(wechat.account() + ACCOUNT + &route + &targets(&bot, &crm)).await;
    let stage = Stage { relay, wechat, bot, crm };
    stage.bot.script([Reaction::Hold(reply("the bot's"))]);
    stage.crm.script([Reaction::Hold(reply("the crm's"))]);
    assert_eq!(stage.say("why?").await, "One moment.");
    stage.crm.release(1);
    stage.holds(1.0).await;
    stage.bot.release(1);
    stage.ledger("superseded", 1).await;
    assert_eq!(stage.say("1").await, "the crm's");
    assert_eq!(stage.counted("superseded").await, 1.0);
    stage.ledger("picked_up", 1).await;
}

#[tokio::test]
async fn without_a_prompt_or_with_a_fixed_reply_the_late_one_is_held_too() {
    let account = "reply_budget = \"400ms\"\nheld_replies = \"10m\"\n";
    let stage = Stage::new(account).await;
    stage.bot.script([Reaction::Slow(Duration::from_millis(600), reply("because"))]);
    assert_eq!(stage.say("why?").await, "");
    stage.holds(1.0).await;
    assert_eq!(stage.say("1").await, "because");

    let (wechat, bot, crm) = (WeChat::secure(), Target::start().await, Target::start().await);
    let route = ROUTE.replace("\"bot\"\n", "[\"bot\", { text = \"Say 1 soon.\" }]\n");
    let relay = Relay::start(wechat.account() + account + &route + &targets(&bot, &crm)).await;
    let stage = Stage { relay, wechat, bot, crm };
    stage.bot.script([Reaction::Slow(Duration::from_millis(600), reply("because"))]);
    assert_eq!(stage.say("why?").await, "Say 1 soon.");
    stage.holds(1.0).await;
    assert_eq!(stage.say("1").await, "because");
}
