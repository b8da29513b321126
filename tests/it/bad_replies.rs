//! Replies that break WeChat's rules: WeChat gets `success` in time, the event counts as delivered, and the attempt's
//! record has the reason.

use std::time::Duration;

use tokio::time::Instant;

use crate::support::http::Answer;
use crate::support::relay::Relay;
use crate::support::target::{Reaction, Reply, Target};
use crate::support::wechat::{GH, WeChat, text, text_reply};

#[tokio::test]
async fn an_unusable_reply_in_clear_is_answered_success_and_its_record_says_why() {
    let image = format!(
        "<xml><ToUserName>o1</ToUserName><FromUserName>{GH}</FromUserName><CreateTime>1</CreateTime>\
         <MsgType>image</MsgType><Image><MediaId></MediaId></Image></xml>"
    );
    let not_utf8 = text_reply("o1", "caf@").replace('@', "\u{e9}").chars().map(|c| c as u8).collect::<Vec<_>>();
    let padded = text_reply("o1", "hello") + &" ".repeat(257 * 1024);
    let rows = [
        ("hello", Reply::body("text/plain", "hello"), "neither XML nor JSON"),
        ("a bare word", Reply::body("text/plain", "ok\n"), "neither XML nor JSON"),
        ("cut XML", Reply::xml("<xml><MsgType>text</MsgType>"), "not well-formed XML"),
        ("an error page", Reply::body("text/html", "<!DOCTYPE html><html><h1>Oops</h1></html>"), "not well-formed XML"),
        ("a page that is XML", Reply::body("text/html", "<html><h1>Oops</h1></html>"), "MsgType is unknown"),
        ("other JSON", Reply::body("application/json", "{\"errcode\":0}"), "JSON is not"),
        ("a list", Reply::body("application/json", "[1]"), "neither XML nor JSON"),
        ("257 KiB", Reply::body("text/plain", "x".repeat(257 * 1024)), "longer than 256 KiB"),
        ("257 KiB of blanks", Reply::xml(padded), "longer than 256 KiB"),
        ("an empty MediaId", Reply::xml(image), "MediaId is missing or empty"),
        ("no Content", Reply::xml("<xml><MsgType>text</MsgType></xml>"), "Content is missing or empty"),
        ("bytes that are not UTF-8", Reply::xml(not_utf8), "not UTF-8"),
        ("a sealed one where none is due", Reply::xml(WeChat::secure().seal_reply("<xml/>")), "the reply is encrypted"),
    ];
    each_is_refused("", rows.map(|(what, reply, why)| (what, Reaction::Answer(reply), why))).await;
}

#[tokio::test]
async fn an_unusable_sealed_reply_is_answered_success_and_its_record_says_why() {
    let own = WeChat::secure();
    let clear = text_reply("o1", "hello");
    let other_key = WeChat { aes_key: own.aes_key.replace('a', "b"), ..own.clone() };
    let other_app = WeChat { app_id: "wx0000000000000001".to_owned(), ..own.clone() };
    let other_token = WeChat { token: "anothertoken".to_owned(), ..own.clone() };
    let sealed = |wechat: &WeChat| Reaction::Answer(Reply::xml(wechat.seal_reply(&clear)));
    let rows = [
        ("the wrong key", sealed(&other_key), "does not open with"),
        ("the wrong AppID", sealed(&other_app), "does not open with"),
        ("the wrong MsgSignature", sealed(&other_token), "the signature does not match"),
    ];
    each_is_refused("format = \"wechat\"", rows).await;
}

#[tokio::test]
async fn a_reply_that_breaks_off_is_answered_success_and_delivered() {
    let reply = Reply::xml(text_reply("o1", "whole"));
    each_is_refused("", [("half a reply", Reaction::BreakOff(reply), "broke off before its end")]).await;
}

#[tokio::test]
async fn a_reply_after_the_deadline_is_answered_success_and_delivered() {
    let (wechat, crm) = (WeChat::secure(), Target::start().await);
    crm.then(Reaction::Hold(Reply::xml(text_reply("o1", "too late"))));
    let relay = relay(&(wechat.account() + "reply_budget = \"300ms\"\n"), &crm, "").await;
    assert_eq!(relay.accept(&wechat, &text("o1", "hi")).await.text(), "success");
    crm.release(1);
    let event = crm.delivery(0).await.header("wxrelay-event-id").to_owned();
    let attempt = relay.attempt(&event, "crm", 1, |_| true).await;
    assert_eq!((&attempt["status"], &attempt["error"]), (&200.into(), &"reply too late".into()));
    assert!(attempt["answer"].as_str().is_some_and(|answer| answer.contains("too late")), "{attempt}");
    relay.audited("delivered", 1).await;
}

/// Pushes a text for each row; the target answers with the row's reply, and the attempt must have the row's reason.
async fn each_is_refused<const N: usize>(settings: &str, rows: [(&str, Reaction, &str); N]) {
    let (wechat, crm) = (WeChat::secure(), Target::start().await);
    let relay = relay(&wechat.account(), &crm, settings).await;
    for (index, (what, reaction, why)) in rows.into_iter().enumerate() {
        crm.script([reaction]);
        let sent = Instant::now();
        let answer: Answer = relay.accept(&wechat, &text("o1", what)).await;
        assert_eq!(answer.text(), "success", "{what}");
        assert!(sent.elapsed() < Duration::from_millis(4500), "{what}: {:?}", sent.elapsed());
        let event = crm.delivery(index).await.header("wxrelay-event-id").to_owned();
        let attempt = relay.attempt(&event, "crm", 1, |_| true).await;
        let error = attempt["error"].as_str().unwrap_or_default();
        assert!(error.starts_with("reply breaks WeChat's rules: ") && error.contains(why), "{what}: {attempt}");
        assert_eq!(attempt["status"], 200, "{what}");
        let told = |line: &serde_json::Value| line["event"] == event && line["outcome"] == "delivered";
        let logged = relay.log("line of the attempt", told).await;
        assert_eq!(logged["error"], attempt["error"], "{what}");
    }
    assert_eq!(relay.metric("wxrelay_replies_total", &[("result", "illegal")]).await, N as f64);
    assert_eq!(relay.metric("wxrelay_replies_total", &[]).await, N as f64, "each is counted once");
    relay.audited("delivered", N as u64).await;
    // A valid reply would have been used.
    let sound = text_reply("o1", "sound");
    crm.script([Reaction::Answer(Reply::xml(sound))]);
    let answer = relay.accept(&wechat, &text("o1", "hi")).await;
    assert!(wechat.open_reply(answer.text()).contains("sound"));
}

async fn relay(account: &str, crm: &Target, settings: &str) -> Relay {
    let route = "[[accounts.shop.routes]]\notherwise = true\nto = [\"crm\"]\nreply = \"crm\"\n";
    Relay::start(account.to_owned() + route + &crm.config("crm", settings)).await
}
