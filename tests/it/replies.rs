//! Passive replies: a handler's reply reaches WeChat encrypted, in time, and never as an invalid body.

use std::time::Duration;

use serde_json::json;
use tokio::time::Instant;

use crate::support::http::Answer;
use crate::support::relay::Relay;
use crate::support::target::{Reaction, Reply, Target};
use crate::support::wechat::{GH, Mode, WeChat, element, event, text, text_reply};

#[tokio::test]
async fn a_fixed_text_is_sealed_for_wechat_in_every_mode() {
    for mode in [Mode::Plaintext, Mode::Compatible, Mode::Secure] {
        let wechat = WeChat::new(mode);
        let (relay, _crm) = relay(&wechat, "", "{ text = \"Welcome! ]]> 欢迎\" }").await;
        let answer = relay.accept(&wechat, &event("o1", "subscribe", "")).await;
        assert_eq!(answer.header("content-type"), Some("text/xml; charset=utf-8"), "{mode:?}");
        let clear = wechat.open_reply(answer.text());
        let part = |name| element(&clear, name);
        assert_eq!(part("ToUserName").as_deref(), Some("o1"));
        assert_eq!(part("FromUserName").as_deref(), Some(GH));
        assert_eq!(part("MsgType").as_deref(), Some("text"));
        let content = part("Content").map(|text| text.replace("]]><![CDATA[", ""));
        assert_eq!(content.as_deref(), Some("Welcome! ]]> 欢迎"), "{clear}");
        assert_eq!(part("CreateTime").map(|time| time.len()), Some(10), "seconds");
        relay.audited("delivered", 1).await;
    }
}

#[tokio::test]
async fn other_fixed_replies_have_wechats_shape() {
    for (rule, kind, has) in [
        ("{ image = \"MEDIA_1\" }", "image", "<Image><MediaId><![CDATA[MEDIA_1]]></MediaId>"),
        ("{ voice = \"V_1\" }", "voice", "<Voice><MediaId><![CDATA[V_1]]></MediaId></Voice>"),
        ("{ voice = { media_id = \"V_2\" } }", "voice", "<Voice><MediaId><![CDATA[V_2]]></MediaId></Voice>"),
        (
            "{ video = { media_id = \"V\", title = \"T\", description = \"D\" } }",
            "video",
            "<Video><MediaId><![CDATA[V]]></MediaId><Title><![CDATA[T]]></Title><Description><![CDATA[D]]></Description></Video>",
        ),
        (
            "{ music = { thumb_media_id = \"M\", title = \"T\", music_url = \"https://e.com/a\", hq_music_url = \"https://e.com/b\" } }",
            "music",
            "<HQMusicUrl><![CDATA[https://e.com/b]]></HQMusicUrl><ThumbMediaId><![CDATA[M]]></ThumbMediaId></Music>",
        ),
        (
            "{ transfer_customer_service = { kf_account = \"a@b\" } }",
            "transfer_customer_service",
            "<TransInfo><KfAccount><![CDATA[a@b]]></KfAccount></TransInfo>",
        ),
        ("{ transfer_customer_service = true }", "transfer_customer_service", "</xml>"),
        (
            "{ news = { title = \"T\", description = \"D\", pic_url = \"https://e.com/p\", url = \"https://e.com\" } }",
            "news",
            "<ArticleCount>1</ArticleCount>",
        ),
    ] {
        let wechat = WeChat::secure();
        let (relay, _crm) = relay(&wechat, "", rule).await;
        let clear = wechat.open_reply(relay.accept(&wechat, &text("o1", "hi")).await.text());
        assert_eq!(element(&clear, "MsgType").as_deref(), Some(kind), "{clear}");
        assert!(clear.replace('\n', "").contains(has), "{clear}");
    }
}

#[tokio::test]
async fn a_targets_clear_xml_is_sealed_for_wechat() {
    let (wechat, answer) = answer_to("", Reply::xml(text_reply("o1", "from the handler"))).await;
    assert_eq!(content(&wechat, &answer).as_deref(), Some("from the handler"));
    assert_eq!(answer.header("content-type"), Some("text/xml; charset=utf-8"));
}

#[tokio::test]
async fn a_targets_json_becomes_reply_xml_with_the_missing_parts_filled_in() {
    let json = json!({ "reply": { "msg_type": "text", "content": "你好" } }).to_string();
    let (wechat, answer) = answer_to("", Reply::body("application/json", json)).await;
    let clear = wechat.open_reply(answer.text());
    let parts = ["Content", "ToUserName", "FromUserName"].map(|name| element(&clear, name));
    assert_eq!(parts, ["你好", "o1", GH].map(|text| Some(text.to_owned())), "{clear}");
    assert_eq!(element(&clear, "CreateTime").map(|time| time.len()), Some(10));
}

#[tokio::test]
async fn what_would_break_the_xml_is_split_or_left_out() {
    let json = json!({ "reply": { "msg_type": "text", "content": "a]]>b\u{1}\u{1d}\u{fffe}c" } }).to_string();
    let (wechat, answer) = answer_to("", Reply::body("application/json", json)).await;
    let clear = wechat.open_reply(answer.text());
    assert!(clear.contains("<![CDATA[a]]]]><![CDATA[>bc]]>"), "{clear}");
}

#[tokio::test]
async fn a_wechat_targets_encrypted_reply_is_decrypted_and_encrypted_again() {
    let legacy = WeChat { token: "legacytoken".to_owned(), ..WeChat::secure() };
    let settings = format!("format = \"wechat\"\ntoken = \"{}\"", legacy.token);
    let reply = Reply::xml(legacy.seal_reply(&text_reply("o1", "sealed by the backend")));
    let (wechat, answer) = answer_to(&settings, reply).await;
    assert_eq!(content(&wechat, &answer).as_deref(), Some("sealed by the backend"));
}

#[tokio::test]
async fn success_an_empty_body_and_204_are_no_reply() {
    for reply in [Reply::status(200), Reply::body("text/plain", "success"), Reply::status(204)] {
        let what = format!("{reply:?}");
        let (_, answer) = answer_to("", reply).await;
        assert_eq!(answer.text(), "success", "{what}");
        assert!(answer.header("content-type").is_some_and(|kind| kind.starts_with("text/plain")));
    }
}

#[tokio::test]
async fn a_failing_replier_is_answered_success_and_tried_again() {
    let wechat = WeChat::secure();
    let (relay, crm) = relay(&wechat, "retry = [\"50ms\"]", "\"crm\"").await;
    crm.script([Reaction::Answer(Reply { status: 500, ..Reply::xml(text_reply("o1", "from an error page")) })]);
    assert_eq!(relay.accept(&wechat, &text("o1", "hi")).await.text(), "success");
    crm.wait_for(2).await;
    relay.audited("delivered", 1).await;
}

#[tokio::test]
async fn a_replier_that_hangs_is_answered_success_within_wechats_five_seconds() {
    let wechat = WeChat::secure();
    let (relay, crm) = relay(&wechat, "timeout = \"6s\"\nretry = [\"50ms\"]", "\"crm\"").await;
    crm.script([Reaction::Hang]);
    let sent = Instant::now();
    assert_eq!(relay.accept(&wechat, &text("o1", "hi")).await.text(), "success");
    let took = sent.elapsed();
    assert!((Duration::from_secs(4)..Duration::from_millis(4900)).contains(&took), "{took:?}");
    let left: u64 = crm.delivery(0).await.header("wxrelay-deadline-ms").parse().expect("milliseconds");
    assert!(left <= 4500, "{left}");
    relay.audited("delivered", 1).await;
}

#[tokio::test]
async fn a_reply_does_not_wait_behind_what_nobody_waits_for() {
    let (wechat, crm) = (WeChat::secure(), Target::start().await);
    crm.script([Reaction::Hang]);
    crm.then(Reaction::Answer(Reply::xml(text_reply("o1", "at once"))));
    let routes = "[[accounts.shop.routes]]\nmatch = { msg_type = \"text\" }\nto = [\"crm\"]\nreply = \"crm\"\n\
                  [[accounts.shop.routes]]\notherwise = true\nto = [\"crm\"]\n";
    let relay =
        Relay::start(wechat.account() + routes + &crm.config("crm", "concurrency = 1\ntimeout = \"60s\"")).await;
    for _ in 0..3 {
        relay.accept(&wechat, &event("o1", "CLICK", "menu")).await;
    }
    crm.wait_for(1).await;
    let answer = relay.accept(&wechat, &text("o1", "hi")).await;
    assert_eq!(content(&wechat, &answer).as_deref(), Some("at once"));
}

#[tokio::test]
async fn only_the_named_target_replies() {
    let (wechat, crm, other) = (WeChat::secure(), Target::start().await, Target::start().await);
    crm.then(Reaction::Answer(Reply::xml(text_reply("o1", "mine"))));
    other.then(Reaction::Answer(Reply::xml(text_reply("o1", "not mine"))));
    let route = "[[accounts.shop.routes]]\notherwise = true\nto = [\"other\", \"crm\"]\nreply = \"crm\"\n";
    let targets = crm.config("crm", "") + &other.config("other", "");
    let relay = Relay::start(wechat.account() + route + &targets).await;
    let answer = relay.accept(&wechat, &text("o1", "hi")).await;
    assert_eq!(content(&wechat, &answer).as_deref(), Some("mine"));
    assert!(other.delivery(0).await.headers.get("wxrelay-deadline-ms").is_none(), "no reply is awaited");
}

/// The answer to WeChat when the target, with these settings, gives that reply to a text of `o1`.
async fn answer_to(settings: &str, reply: Reply) -> (WeChat, Answer) {
    let wechat = WeChat::secure();
    let (relay, crm) = relay(&wechat, settings, "\"crm\"").await;
    crm.then(Reaction::Answer(reply));
    let answer = relay.accept(&wechat, &text("o1", "hi")).await;
    relay.audited("delivered", 1).await;
    (wechat, answer)
}

async fn relay(wechat: &WeChat, settings: &str, rule: &str) -> (Relay, Target) {
    let crm = Target::start().await;
    let route = format!("[[accounts.shop.routes]]\notherwise = true\nto = [\"crm\"]\nreply = {rule}\n");
    let relay = Relay::start(wechat.account() + &route + &crm.config("crm", settings)).await;
    (relay, crm)
}

fn content(wechat: &WeChat, answer: &Answer) -> Option<String> {
    element(&wechat.open_reply(answer.text()), "Content")
}
