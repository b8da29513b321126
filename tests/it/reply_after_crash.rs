//! A reply that is awaited when the relay is killed: WeChat's next try gets it from the delivery that is made again.

use crate::support::http::{Answer, Connection};
use crate::support::relay::Relay;
use crate::support::soon;
use crate::support::target::{Reaction, Reply, Target};
use crate::support::wechat::{WeChat, element, text, text_reply};

#[tokio::test]
async fn the_try_after_kill_9_waits_for_the_delivery_that_is_made_again() {
    let Fixture { mut relay, wechat, bot, crm } = fixture("[\"bot\", \"crm\"]").await;
    bot.script([Reaction::Hang, Reaction::Hold(reply("the bot's"))]);
    crm.script([Reaction::Hang, Reaction::Answer(reply("the crm's"))]);
    let clear = text("o1", "hi");
    let _first = relay.begin(&wechat, &clear).await;
    bot.wait_for(1).await;
    crm.wait_for(1).await;
    relay.kill().await;
    relay.restart().await;
    let mut next = relay.begin(&wechat, &clear).await;
    let again = bot.delivery(1).await;
    assert!(again.header("wxrelay-deadline-ms").parse::<u64>().is_ok(), "the reply is asked for again");
    crm.wait_for(2).await;
    bot.release(1);
    assert_eq!(content(&wechat, &answer(&mut next).await).as_deref(), Some("the bot's"), "the first in the list");
    let audit = relay.audited("delivered", 2).await;
    assert_eq!(audit["events"], 1);
    assert_eq!(content(&wechat, &relay.accept(&wechat, &clear).await).as_deref(), Some("the bot's"), "once more");
}

#[tokio::test]
async fn a_reply_that_comes_before_the_try_after_kill_9_is_kept_for_it() {
    for (rule, then, expected) in [
        ("\"bot\"", Reaction::Answer(reply("the bot's")), "the bot's"),
        ("[\"bot\", { text = \"One moment.\" }]", Reaction::Answer(reply("the bot's")), "the bot's"),
        ("[\"bot\", { text = \"One moment.\" }]", Reaction::Answer(Reply::status(200)), "One moment."),
    ] {
        let Fixture { mut relay, wechat, bot, crm: _crm } = fixture(rule).await;
        bot.script([Reaction::Hang, then]);
        let clear = text("o1", "hi");
        let _first = relay.begin(&wechat, &clear).await;
        bot.wait_for(1).await;
        relay.kill().await;
        relay.restart().await;
        relay.audited("delivered", 2).await;
        let answer = relay.accept(&wechat, &clear).await;
        assert_eq!(content(&wechat, &answer).as_deref(), Some(expected), "{rule}");
        assert_eq!(bot.deliveries().len(), 2, "asked once more, not twice");
    }
}

struct Fixture {
    relay: Relay,
    wechat: WeChat,
    bot: Target,
    crm: Target,
}

async fn fixture(rule: &str) -> Fixture {
    let (wechat, bot, crm) = (WeChat::secure(), Target::start().await, Target::start().await);
    let route = format!("[[accounts.shop.routes]]\notherwise = true\nto = [\"crm\", \"bot\"]\nreply = {rule}\n");
    let targets = bot.config("bot", "timeout = \"60s\"") + &crm.config("crm", "timeout = \"60s\"");
    let relay = Relay::start(wechat.account() + &route + &targets).await;
    Fixture { relay, wechat, bot, crm }
}

fn reply(content: &str) -> Reply {
    Reply::xml(text_reply("o1", content))
}

async fn answer(connection: &mut Connection) -> Answer {
    soon("the answer to a push", connection.read()).await.expect("an answer")
}

fn content(wechat: &WeChat, answer: &Answer) -> Option<String> {
    (answer.text() != "success").then(|| element(&wechat.open_reply(answer.text()), "Content"))?
}
