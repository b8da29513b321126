//! Real pushes of every mode are accepted, and every target gets them.

use serde_json::Value;

use crate::support::http::exchange;
use crate::support::relay::Relay;
use crate::support::target::Target;
use crate::support::wechat::{Mode, Push, WeChat, element, event, sign, text};
use crate::vectors::Vector;

#[tokio::test]
async fn pushes_recorded_from_real_accounts_reach_the_identity_provider_and_the_handler() {
    let vectors: Vec<_> = Vector::all().into_iter().filter(|vector| vector.get("kind").starts_with("push_")).collect();
    let modes = [Mode::Plaintext, Mode::Compatible, Mode::Secure];
    assert!(modes.iter().all(|mode| vectors.iter().any(|vector| vector.wechat().mode == *mode)), "every mode is there");
    let (login, crm) = (Target::start().await, Target::start().await);
    let mut config =
        login.config("login", "role = \"identity\"\nformat = \"raw\"") + &crm.config("crm", "format = \"json\"");
    for vector in &vectors {
        let name = vector.get("name");
        config += &vector.wechat().account_named(name, &format!("/{name}"));
        config +=
            &format!("max_skew = \"off\"\n[[accounts.{name}.routes]]\notherwise = true\nto = [\"login\", \"crm\"]\n");
    }
    let relay = Relay::start(config).await;

    for (index, vector) in vectors.iter().enumerate() {
        let (name, push) = (vector.get("name"), recorded(vector));
        let answer = exchange(&relay.push, &push.request(&format!("/{name}"))).await;
        assert_eq!((answer.status, answer.text()), (200, "success"), "{name}");
        let raw = login.delivery(index).await;
        assert_eq!(raw.body, push.body, "{name}: the identity provider gets WeChat's bytes");
        assert_eq!(raw.query.as_ref(), Some(&push.query), "{name}: and WeChat's query");
        let json = crm.delivery(index).await.json();
        assert_eq!(json["account"], name);
        check_opened(vector, &json);
    }
    let audit = relay.audited("delivered", vectors.len() as u64 * 2).await;
    assert_eq!(audit["events"], vectors.len());
}

#[tokio::test]
async fn only_the_sealed_text_of_a_compatible_push_counts() {
    let wechat = WeChat::new(Mode::Compatible);
    let crm = Target::start().await;
    let relay = Relay::start(wechat.account() + &crm.config("crm", "")).await;
    let clear = text("o_true", "true");
    let mut push = wechat.push(&clear);
    let forged = String::from_utf8(push.body).expect("UTF-8").replace("<![CDATA[true]]>", "<![CDATA[forged]]>");
    push.body = forged.into_bytes();
    assert_eq!(push.send(&relay.push).await.status, 200);
    let json = crm.delivery(0).await.json();
    assert_eq!((&json["message"]["Content"], &json["from_user"]), (&Value::from("true"), &Value::from("o_true")));
    assert_eq!(json["xml"], clear.as_str());
}

#[tokio::test]
async fn control_characters_reach_the_handler_as_they_came() {
    let wechat = WeChat::secure();
    let crm = Target::start().await;
    let relay = Relay::start(wechat.account() + &crm.config("crm", "format = \"wechat\"")).await;
    let clear = text("o1", "before\u{1d}\u{10}\u{0}after 😀");
    relay.accept(&wechat, &clear).await;
    let delivery = crm.delivery(0).await;
    assert_eq!(wechat.open_push(delivery.query.as_deref().expect("a query"), delivery.text()), clear);
}

#[tokio::test]
async fn events_of_unknown_kinds_are_accepted_and_delivered() {
    let wechat = WeChat::secure();
    let crm = Target::start().await;
    let relay = Relay::start(wechat.account() + &crm.config("crm", "")).await;
    relay.accept(&wechat, &event("o1", "an_event_of_2031", "")).await;
    assert_eq!(crm.delivery(0).await.json()["event"], "an_event_of_2031");
}

#[tokio::test]
async fn the_previous_key_opens_while_keys_are_changed_and_seals_the_reply() {
    let (now, before) = (WeChat::secure(), "jWmYm7qr5nMoAUwZRjGtBxmz3KA1tkAj3ykkR6q2B2C".to_owned());
    let crm = Target::start().await;
    let account = format!("{}previous_encoding_aes_key = \"{before}\"\n", now.account());
    let route = "[[accounts.shop.routes]]\notherwise = true\nto = [\"crm\"]\nreply = { text = \"hi\" }\n";
    let relay = Relay::start(account + &crm.config("crm", "") + route).await;
    for wechat in [WeChat { aes_key: before, ..now.clone() }, now] {
        let answer = relay.accept(&wechat, &text("o1", "hello")).await;
        assert!(wechat.open_reply(answer.text()).contains("hi"), "sealed with the key that opened");
    }
}

#[tokio::test]
async fn the_previous_token_opens_while_tokens_are_changed_and_signs_the_reply() {
    let (now, crm) = (WeChat::secure(), Target::start().await);
    let before = "theonebefore".to_owned();
    let account = format!("{}previous_token = \"{before}\"\n", now.account());
    let route = "[[accounts.shop.routes]]\notherwise = true\nto = [\"crm\"]\nreply = { text = \"hi\" }\n";
    let relay = Relay::start(account + &crm.config("crm", "") + route).await;
    for wechat in [WeChat { token: before, ..now.clone() }, now] {
        let answer = relay.accept(&wechat, &text("o1", "hello")).await;
        assert!(wechat.open_reply(answer.text()).contains("hi"), "signed with the token that the push was signed with");
    }
}

/// The push as it was recorded; parts that the entry lacks are made up in WeChat's form.
fn recorded(vector: &Vector) -> Push {
    let [token, timestamp, nonce] = ["token", "timestamp", "nonce"].map(|key| vector.get(key));
    let signature = sign(&[token, timestamp, nonce]);
    let plain = format!("signature={signature}&timestamp={timestamp}&nonce={nonce}");
    let sealed = format!("{plain}&encrypt_type=aes&msg_signature={}", vector.get("expected_msg_signature"));
    let query = match vector.get("query") {
        "" if vector.has("expected_msg_signature") => sealed,
        "" => plain,
        query => query.to_owned(),
    };
    Push { query, body: outer(vector).into_bytes() }
}

fn outer(vector: &Vector) -> String {
    let encrypt = vector.get("ciphertext");
    if vector.has("body_json") {
        return vector.value("body_json").to_string();
    }
    if vector.get("plaintext").starts_with('{') {
        let inner: Value = serde_json::from_str(vector.get("plaintext")).expect("it is JSON");
        return serde_json::json!({ "ToUserName": inner["ToUserName"], "Encrypt": encrypt }).to_string();
    }
    let envelope = format!("<Encrypt><![CDATA[{encrypt}]]></Encrypt>\n</xml>");
    if vector.has("clear_siblings_of_Encrypt") {
        return vector.get("plaintext").replace("</xml>", &envelope);
    }
    let inner = vector.get("plaintext");
    let name = if inner.contains("<AppId>") { "AppId" } else { "ToUserName" };
    let value = element(inner, name).expect("the push says for whom it is");
    format!("<xml>\n    <{name}><![CDATA[{value}]]></{name}>\n    {envelope}")
}

fn check_opened(vector: &Vector, json: &Value) {
    let (name, clear) = (vector.get("name"), vector.get("plaintext"));
    if clear.starts_with('<') {
        assert_eq!(json["xml"], clear, "{name}");
        return;
    }
    let said: Value = if clear.is_empty() {
        vector.value("body_json").clone()
    } else {
        serde_json::from_str(clear).expect("it is JSON")
    };
    for key in ["ToUserName", "FromUserName", "Event", "debug_str"] {
        assert_eq!(json["message"][key], said[key], "{name}: {key}");
    }
}
