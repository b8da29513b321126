//! The relay addresses replies: wrong names are corrected from the push, and a reply that names another user goes
//! nowhere.
//!
//! Sources: binarywang/WxJava #3597, netcccyun/wxredirect #17. WeChat shows an error for a reply whose names are not
//! the push's, and the relay's own `simulate` calls it a fault.

use serde_json::{Value, json};

use crate::support::relay::Relay;
use crate::support::target::{Reaction, Reply, Target};
use crate::support::wechat::{GH, Mode, PATH, WeChat, element, text};

const ROUTE: &str = "[[accounts.shop.routes]]\notherwise = true\nto = [\"crm\"]\nreply = \"crm\"\n";

#[tokio::test]
async fn wrong_names_are_corrected_counted_and_recorded() {
    let wechat = WeChat::secure();
    let app_id = wechat.app_id.as_str();
    let rows: [(&str, Reply, Option<&str>); 13] = [
        ("right", named(Some("o1"), Some(GH)), None),
        ("right, with white space", named(Some("\n o1 "), Some(&format!(" {GH}\n"))), None),
        ("not swapped", named(Some(GH), Some("o1")), Some("ToUserName was the account, FromUserName was the user")),
        ("the AppID", named(Some("o1"), Some(app_id)), Some("FromUserName was the AppID")),
        ("the AppID, not swapped", named(Some(app_id), Some("o1")), Some("ToUserName was the AppID")),
        ("no names", named(None, None), Some("ToUserName was missing, FromUserName was missing")),
        ("no ToUserName", named(None, Some(GH)), Some("ToUserName was missing")),
        ("no FromUserName", named(Some("o1"), None), Some("FromUserName was missing")),
        ("empty names", named(Some(""), Some("")), Some("ToUserName was missing, FromUserName was missing")),
        ("the account twice", named(Some(GH), Some(GH)), Some("ToUserName was the account")),
        ("the user twice", named(Some("o1"), Some("o1")), Some("FromUserName was the user")),
        ("JSON without names", in_json(json!({})), None),
        ("JSON, not swapped", in_json(json!({ "to_user": GH, "from_user": "o1" })), Some("ToUserName was the account")),
    ];
    let wrong = rows.iter().filter(|(_, _, remark)| remark.is_some()).count();
    let number = rows.len();
    let (relay, crm) = relay(&wechat, "").await;
    for (index, (what, reply, remark)) in rows.into_iter().enumerate() {
        crm.then(Reaction::Answer(reply));
        let judged = simulate(&relay, what).await;
        assert_eq!(judged["verdict"], "replied", "{what}: {judged}");
        let clear = judged["reply"].as_str().unwrap_or_default();
        let names = ["ToUserName", "FromUserName"].map(|name| element(clear, name));
        assert_eq!(names, [Some("o1".to_owned()), Some(GH.to_owned())], "{what}: {clear}");
        let id = crm.delivery(index).await.header("wxrelay-event-id").to_owned();
        let attempt = relay.attempt(&id, "crm", 1, |_| true).await;
        let error = attempt["error"].as_str();
        match remark {
            None => assert_eq!(error, None, "{what}"),
            Some(remark) => {
                let expected = format!("reply used with corrected names: {remark}");
                assert!(error.is_some_and(|error| error.starts_with(&expected)), "{what}: {attempt}");
            }
        }
        assert!(relay.run(&["events", "show", &id]).await.stdout.contains(remark.unwrap_or("reply used")), "{what}");
    }
    assert_eq!(relay.metric("wxrelay_replies_total", &[("result", "misaddressed")]).await, wrong as f64);
    assert_eq!(relay.metric("wxrelay_replies_total", &[("result", "replied")]).await, number as f64);
}

#[tokio::test]
async fn a_reply_that_names_another_user_is_never_sent_nor_stored_as_a_reply() {
    for mode in [Mode::Plaintext, Mode::Secure] {
        let wechat = WeChat::new(mode);
        let app_id = wechat.app_id.as_str();
        let rows = [
            ("another user", named(Some("o2"), Some(GH))),
            ("not swapped", named(Some(GH), Some("o2"))),
            ("the AppID", named(Some(app_id), Some("o2"))),
            ("no ToUserName", named(None, Some("o2"))),
            ("a reply of o2 to o1", named(Some("o1"), Some("o2"))),
            ("other case", named(Some("O1"), Some(GH))),
            ("JSON", in_json(json!({ "to_user": "o2" }))),
        ];
        let number = rows.len() as f64;
        let (relay, crm) = relay(&wechat, "").await;
        for (index, (what, reply)) in rows.into_iter().enumerate() {
            crm.then(Reaction::Answer(reply));
            let push = text("o1", what);
            assert_eq!(relay.accept(&wechat, &push).await.text(), "success", "{what}");
            let id = crm.delivery(index).await.header("wxrelay-event-id").to_owned();
            let attempt = relay.attempt(&id, "crm", 1, |_| true).await;
            let error = attempt["error"].as_str().unwrap_or_default();
            assert!(error.contains("names another user"), "{what}: {attempt}");
            assert_eq!(attempt["answer"], Value::Null, "{what}: it may be the other user's");
            let detail = relay.get(&format!("/api/events/{id}")).await.json();
            assert_eq!(detail["reply"], Value::Null, "{what}");
            assert_eq!(relay.accept(&wechat, &push).await.text(), "success", "{what}: WeChat's retry");
            assert_eq!(crm.deliveries().len(), index + 1, "{what}: the retry is no event");
        }
        assert_eq!(relay.metric("wxrelay_replies_total", &[("result", "misaddressed")]).await, number);
        assert_eq!(relay.metric("wxrelay_replies_total", &[("result", "illegal")]).await, number);
        assert_eq!(relay.metric("wxrelay_replies_total", &[("result", "replied")]).await, 0.0);
    }
}

#[tokio::test]
async fn the_next_target_replies_where_the_first_names_another_user() {
    let (wechat, bot, crm) = (WeChat::secure(), Target::start().await, Target::start().await);
    bot.then(Reaction::Answer(named(Some("o2"), Some(GH))));
    crm.then(Reaction::Answer(named(Some(GH), Some("o1"))));
    let route = "[[accounts.shop.routes]]\notherwise = true\nto = [\"bot\", \"crm\"]\nreply = [\"bot\", \"crm\"]\n";
    let targets = bot.config("bot", "") + &crm.config("crm", "");
    let relay = Relay::start(wechat.account() + route + &targets).await;
    let clear = wechat.open_reply(relay.accept(&wechat, &text("o1", "hi")).await.text());
    assert_eq!(element(&clear, "Content").as_deref(), Some("hi"));
    // The reply of the second was in reserve: its record is annotated later, and keeps what was corrected.
    let id = crm.delivery(0).await.header("wxrelay-event-id").to_owned();
    let corrected = |attempt: &Value| attempt["error"].as_str().is_some_and(|error| error.contains("corrected names"));
    relay.attempt(&id, "crm", 1, corrected).await;
}

/// What `simulate`, in the role of WeChat and of user `o1`, makes of the answer.
async fn simulate(relay: &Relay, text: &str) -> Value {
    let url = format!("http://{}{PATH}", relay.push);
    let arguments =
        ["simulate", "--to", &url, "--json", "--openid", "o1", "--original-id", GH, "--tries", "1", "text", text];
    let judged = relay.run(&arguments).await;
    serde_json::from_str(&judged.stdout).unwrap_or_else(|error| panic!("{error}: {judged:?}"))
}

async fn relay(wechat: &WeChat, settings: &str) -> (Relay, Target) {
    let crm = Target::start().await;
    let relay = Relay::start(wechat.account() + ROUTE + &crm.config("crm", settings)).await;
    (relay, crm)
}

fn named(to: Option<&str>, from: Option<&str>) -> Reply {
    let name = |element: &str, name: Option<&str>| {
        name.map(|name| format!("<{element}><![CDATA[{name}]]></{element}>")).unwrap_or_default()
    };
    Reply::xml(format!(
        "<xml>{}{}<CreateTime>1700000000</CreateTime><MsgType>text</MsgType><Content>hi</Content></xml>",
        name("ToUserName", to),
        name("FromUserName", from)
    ))
}

fn in_json(mut names: Value) -> Reply {
    names["msg_type"] = "text".into();
    names["content"] = "hi".into();
    Reply::body("application/json", json!({ "reply": names }).to_string())
}
