//! The requests to targets: method, headers and bytes of every format.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use hmac::{Hmac, KeyInit, Mac};
use jiff::Timestamp;
use serde_json::{Value, json};
use sha2::Sha256;

use crate::support::http::exchange;
use crate::support::relay::Relay;
use crate::support::target::{Delivery, Reaction, Reply, Target};
use crate::support::wechat::{GH, Mode, PATH, Push, WeChat, element, event, now, parameter, text};

#[tokio::test]
async fn raw_is_what_wechat_sent() {
    for mode in [Mode::Plaintext, Mode::Compatible, Mode::Secure] {
        let (push, delivery) = deliver(&WeChat::new(mode), "format = \"raw\"", &text("o1", "hello")).await;
        assert_eq!(delivery.body, push.body, "{mode:?}");
        assert_eq!(delivery.query, Some(push.query));
        assert!(delivery.header("content-type").starts_with("text/xml"));
    }
}

#[tokio::test]
async fn authing_json_is_byte_for_byte_what_authings_own_sample_sends() {
    let clear = event("o1", "SCAN", "110");
    let part = |name| element(&clear, name).expect("the event has it");
    let (time, ticket) = (part("CreateTime"), part("Ticket"));
    let plain = format!(
        "\"tousername\":[\"{GH}\"],\"fromusername\":[\"o1\"],\"createtime\":[\"{time}\"],\"msgtype\":[\"event\"],\
         \"event\":[\"SCAN\"],\"eventkey\":[\"110\"],\"ticket\":[\"{ticket}\"]"
    );
    for mode in [Mode::Plaintext, Mode::Compatible, Mode::Secure] {
        let wechat = WeChat::new(mode);
        let (push, delivery) = deliver(&wechat, "role = \"identity\"\nformat = \"authing-json\"", &clear).await;
        let encrypt = element(std::str::from_utf8(&push.body).expect("UTF-8"), "Encrypt").unwrap_or_default();
        let expected = match mode {
            Mode::Plaintext => format!("{{\"xml\":{{{plain}}}}}"),
            Mode::Compatible => format!("{{\"xml\":{{{plain},\"encrypt\":[\"{encrypt}\"]}}}}"),
            Mode::Secure => format!("{{\"xml\":{{\"tousername\":[\"{GH}\"],\"encrypt\":[\"{encrypt}\"]}}}}"),
        };
        assert_eq!(delivery.text(), expected, "{mode:?}");
        assert_eq!(delivery.query, None, "the sample sends no query");
        assert_eq!(delivery.header("content-type"), "application/json");
    }
}

#[tokio::test]
async fn authing_json_nests_repeats_and_trims_as_the_samples_parser_does() {
    let clear = pictures().replace("<Count>2</Count>", "<Count> 2\n </Count><Empty></Empty>");
    let (_, delivery) = deliver(&WeChat::new(Mode::Plaintext), "format = \"authing-json\"", &clear).await;
    let expected = "\"sendpicsinfo\":[{\"count\":[\"2\"],\"empty\":[\"\"],\
                    \"piclist\":[{\"item\":[{\"picmd5sum\":[\"a\"]},{\"picmd5sum\":[\"b\"]}]}]}]";
    assert!(delivery.text().contains(expected), "{}", delivery.text());
}

#[tokio::test]
async fn authing_targets_get_authing_json_at_the_connections_path() {
    let (wechat, login) = (WeChat::secure(), Target::start().await);
    let base = login.url().replace("/hook", "");
    let target = format!(
        "[targets.login]\nrole = \"identity\"\nprovider = \"authing\"\nidentifier = \"my-connection\"\n\
         user_pool_id = \"0123456789abcdef\"\nbase_url = \"{base}\"\n"
    );
    let relay = Relay::start(wechat.account() + &target).await;
    relay.accept(&wechat, &event("o1", "SCAN", "login_7")).await;
    let delivery = login.delivery(0).await;
    assert_eq!(delivery.path, "/connections/social/my-connection/0123456789abcdef/events");
    assert_eq!(delivery.json()["xml"]["tousername"], json!([GH]));
}

#[tokio::test]
async fn json_says_everything_about_the_event() {
    let clear = event("o1", "SCAN", "login_7");
    let (_, delivery) = deliver(&WeChat::secure(), "", &clear).await;
    assert_eq!(delivery.header("content-type"), "application/json");
    let json = delivery.json();
    let part = |name| element(&clear, name).expect("the event has it");
    let expected = json!({
        "account": "shop", "app_id": "wxb11529c136998cb6", "mode": "secure", "to_user": GH, "from_user": "o1",
        "msg_type": "event", "event": "SCAN", "event_key": "login_7", "scene": "login_7", "xml": clear,
        "message": {
            "ToUserName": GH, "FromUserName": "o1", "CreateTime": part("CreateTime"), "MsgType": "event",
            "Event": "SCAN", "EventKey": "login_7", "Ticket": part("Ticket"),
        },
    });
    for (key, value) in expected.as_object().expect("an object") {
        assert_eq!(json[key], *value, "{key}");
    }
    assert_eq!(json["id"], delivery.header("wxrelay-event-id"));
    assert_eq!(json["create_time"].as_i64().map(|time| time.to_string()), Some(part("CreateTime")));
    let received: Timestamp = json["received_at"].as_str().expect("a text").parse().expect("RFC 3339");
    assert!((received.as_second() - now()).abs() < 60, "{received}");
}

#[tokio::test]
async fn json_keeps_nested_and_repeated_elements_and_long_numbers() {
    let (_, delivery) = deliver(&WeChat::secure(), "", &pictures()).await;
    let message = &delivery.json()["message"];
    let expected = json!({ "Count": "2", "PicList": { "item": [{ "PicMd5Sum": "a" }, { "PicMd5Sum": "b" }] } });
    assert_eq!(message["SendPicsInfo"], expected);
    let clear = text("o1", "hello");
    let (_, delivery) = deliver(&WeChat::secure(), "", &clear).await;
    assert_eq!(delivery.json()["message"]["MsgId"].as_str(), element(&clear, "MsgId").as_deref());
}

#[tokio::test]
async fn wechat_is_a_fresh_push_sealed_for_the_targets_own_credentials() {
    let legacy = WeChat {
        token: "legacytoken".to_owned(),
        aes_key: "jWmYm7qr5nMoAUwZRjGtBxmz3KA1tkAj3ykkR6q2B2C".to_owned(),
        ..WeChat::secure()
    };
    let own = format!("token = \"{}\"\nencoding_aes_key = \"{}\"\nmode = \"secure\"", legacy.token, legacy.aes_key);
    for mode in [Mode::Plaintext, Mode::Secure] {
        let clear = event("o1", "SCAN", "login_7");
        let (push, delivery) = deliver(&WeChat::new(mode), &format!("format = \"wechat\"\n{own}"), &clear).await;
        let query = delivery.query.as_deref().expect("a query");
        assert_eq!(legacy.open_push(query, delivery.text()), clear);
        assert_eq!(parameter(query, "openid"), Some("o1"));
        assert_ne!(parameter(query, "nonce"), parameter(&push.query, "nonce"), "signed anew");
        let stamped: i64 = parameter(query, "timestamp").expect("a timestamp").parse().expect("seconds");
        assert!((stamped - now()).abs() < 60);
        assert_eq!(element(delivery.text(), "ToUserName").as_deref(), Some(GH));
        assert!(delivery.header("content-type").starts_with("text/xml"));
    }
}

#[tokio::test]
async fn wechat_is_signed_and_encrypted_again_at_each_attempt_around_the_same_text() {
    let (wechat, crm, clear) = (WeChat::secure(), Target::start().await, text("o1", "hello"));
    crm.script([Reaction::Answer(Reply::status(500))]);
    let relay = Relay::start(wechat.account() + &crm.config("crm", "format = \"wechat\"\nretry = [\"20ms\"]")).await;
    relay.accept(&wechat, &clear).await;
    let sent = crm.wait_for(2).await;
    let queries: Vec<_> = sent.iter().map(|delivery| delivery.query.as_deref().expect("a query")).collect();
    for (delivery, query) in sent.iter().zip(&queries) {
        assert_eq!(wechat.open_push(query, delivery.text()), clear);
        let names: Vec<_> = query.split('&').filter_map(|pair| Some(pair.split_once('=')?.0)).collect();
        assert_eq!(
            names,
            ["signature", "timestamp", "nonce", "openid", "encrypt_type", "msg_signature"],
            "in WeChat's order"
        );
    }
    for name in ["nonce", "signature", "msg_signature"] {
        assert_ne!(parameter(queries[0], name), parameter(queries[1], name), "{name}");
    }
    assert_ne!(element(sent[0].text(), "Encrypt"), element(sent[1].text(), "Encrypt"), "encrypted again");
}

#[tokio::test]
async fn several_accounts_into_one_backend_that_knows_a_single_app_id() {
    let (shop, target) = (WeChat::secure(), Target::start().await);
    let club = WeChat { app_id: "wxclub".to_owned(), token: "clubtoken".to_owned(), ..WeChat::new(Mode::Plaintext) };
    let backend = WeChat { app_id: "wxbackend".to_owned(), token: "legacytoken".to_owned(), ..WeChat::secure() };
    let route = |name: &str| format!("[[accounts.{name}.routes]]\notherwise = true\nto = [\"t\"]\n");
    let own = format!("app_id = \"wxbackend\"\ntoken = \"legacytoken\"\nencoding_aes_key = \"{}\"", backend.aes_key);
    let config = [
        shop.account_named("shop", "/shop") + &route("shop"),
        club.account_named("club", "/club") + &route("club"),
        target.config("t", &format!("format = \"wechat\"\nmode = \"secure\"\n{own}")),
    ];
    let relay = Relay::start(config.concat()).await;
    for (index, (account, path)) in [(&shop, "/shop"), (&club, "/club")].into_iter().enumerate() {
        let clear = text("o1", path);
        assert_eq!(exchange(&relay.push, &account.push(&clear).request(path)).await.status, 200);
        let delivery = target.delivery(index).await;
        assert_eq!(backend.open_push(delivery.query.as_deref().expect("a query"), delivery.text()), clear);
    }
}

#[tokio::test]
async fn wechat_uses_the_accounts_credentials_where_the_target_has_none() {
    let (wechat, clear) = (WeChat::secure(), text("o1", "hello"));
    let (_, delivery) = deliver(&wechat, "format = \"wechat\"", &clear).await;
    assert_eq!(wechat.open_push(delivery.query.as_deref().expect("a query"), delivery.text()), clear);
}

#[tokio::test]
async fn cloudevents_is_a_structured_cloud_event() {
    let (_, delivery) = deliver(&WeChat::secure(), "format = \"cloudevents\"", &event("o1", "SCAN", "login_7")).await;
    assert!(delivery.header("content-type").starts_with("application/cloudevents+json"));
    let json = delivery.json();
    let expected = json!({
        "specversion": "1.0", "type": "com.tencent.weixin.mp.event.SCAN", "source": "/accounts/shop", "subject": "o1",
        "id": delivery.header("wxrelay-event-id"),
    });
    for (key, value) in expected.as_object().expect("an object") {
        let (have, want) = (json[key].as_str().unwrap_or_default(), value.as_str().unwrap_or_default());
        assert!(have.eq_ignore_ascii_case(want), "{key}: {have}, not {want}");
    }
    assert_eq!(json["data"]["EventKey"], "login_7");
    json["time"].as_str().expect("a text").parse::<Timestamp>().expect("RFC 3339");
}

#[tokio::test]
async fn every_delivery_says_which_event_attempt_and_trace_it_is() {
    let (_, delivery) = deliver(&WeChat::secure(), "headers = { x-tenant = \"blue\" }", &text("o1", "hello")).await;
    assert_eq!(delivery.method, "POST");
    assert_eq!(delivery.path, "/hook");
    assert!(delivery.header("wxrelay-event-id").starts_with("evt_"));
    assert_eq!(delivery.header("wxrelay-account"), "shop");
    assert_eq!(delivery.header("wxrelay-attempt"), "1");
    assert_eq!(delivery.header("x-tenant"), "blue");
    let trace: Vec<_> = delivery.header("traceparent").split('-').map(str::len).collect();
    assert_eq!(trace, [2, 32, 16, 2]);
    assert_eq!(delivery.headers.get("webhook-signature"), None, "unsigned without a secret");
}

#[tokio::test]
async fn the_trace_of_a_push_is_continued_and_kept_over_a_retry() {
    const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
    let (wechat, crm) = (WeChat::secure(), Target::start().await);
    crm.script([Reaction::Answer(Reply::status(500))]);
    let relay = Relay::start(wechat.account() + &crm.config("crm", "retry = [\"20ms\"]")).await;
    let request = String::from_utf8(wechat.push(&text("o1", "hello")).request(PATH)).expect("text");
    let request = request.replace("Accept: */*", &format!("traceparent: 00-{TRACE}-00f067aa0ba902b7-01"));
    assert_eq!(exchange(&relay.push, request.as_bytes()).await.status, 200);
    let spans: Vec<_> = crm.wait_for(2).await.iter().map(|sent| sent.header("traceparent").to_owned()).collect();
    assert!(spans.iter().all(|span| span.contains(TRACE)), "{spans:?}");
    assert!(spans[0] != spans[1] && !spans[0].contains("00f067aa0ba902b7"), "a span for each attempt: {spans:?}");
}

#[tokio::test]
async fn a_trace_that_is_none_is_not_passed_on() {
    let (wechat, crm) = (WeChat::secure(), Target::start().await);
    let relay = Relay::start(wechat.account() + &crm.config("crm", "")).await;
    for (index, bad) in
        ["00-0-0-0", "00-ABCDEF3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", "hello"].iter().enumerate()
    {
        let request = String::from_utf8(wechat.push(&text("o1", "hello")).request(PATH)).expect("text");
        let request = request.replace("Accept: */*", &format!("traceparent: {bad}"));
        assert_eq!(exchange(&relay.push, request.as_bytes()).await.status, 200);
        let sent = crm.delivery(index).await.header("traceparent").to_owned();
        let parts: Vec<_> = sent.split('-').map(str::len).collect();
        assert_eq!(parts, [2, 32, 16, 2], "{sent}");
        assert!(!sent.to_lowercase().contains("abcdef35") && !sent.contains(&"0".repeat(32)), "{sent}");
    }
}

#[tokio::test]
async fn a_secret_signs_by_standard_webhooks() {
    let key = b"0123456789abcdef01234567";
    let secret = format!("secret = \"whsec_{}\"", BASE64.encode(key));
    let (_, delivery) = deliver(&WeChat::secure(), &secret, &text("o1", "hello")).await;
    let (id, time) = (delivery.header("webhook-id"), delivery.header("webhook-timestamp"));
    assert_eq!(id, delivery.header("wxrelay-event-id"));
    assert!((time.parse::<i64>().expect("seconds") - now()).abs() < 60);
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("any length");
    mac.update(format!("{id}.{time}.{}", delivery.text()).as_bytes());
    let signature = format!("v1,{}", BASE64.encode(mac.finalize().into_bytes()));
    assert!(delivery.header("webhook-signature").split(' ').any(|given| given == signature));
}

#[tokio::test]
async fn while_a_secret_is_changed_both_sign() {
    let (new, old) = (b"0123456789abcdef01234567", b"76543210fedcba9876543210");
    let whsec = |key: &[u8]| format!("whsec_{}", BASE64.encode(key));
    let secret = format!("secret = [\"{}\", \"{}\"]", whsec(new), whsec(old));
    let (_, delivery) = deliver(&WeChat::secure(), &secret, &text("o1", "hello")).await;
    let (id, time) = (delivery.header("webhook-id"), delivery.header("webhook-timestamp"));
    let signature = |key: &[u8]| {
        let mac = Hmac::<Sha256>::new_from_slice(key).expect("any length");
        let mac = mac.chain_update(format!("{id}.{time}.{}", delivery.text()));
        format!("v1,{}", BASE64.encode(mac.finalize().into_bytes()))
    };
    assert_eq!(delivery.header("webhook-signature"), format!("{} {}", signature(new), signature(old)));
}

/// The delivery of one push to a target with these settings.
async fn deliver(wechat: &WeChat, settings: &str, clear: &str) -> (Push, Delivery) {
    let target = Target::start().await;
    let route = "[[accounts.shop.routes]]\notherwise = true\nto = [\"t\"]\n";
    let relay = Relay::start(wechat.account() + route + &target.config("t", settings)).await;
    let push = wechat.push(clear);
    assert_eq!(push.send(&relay.push).await.status, 200);
    let delivery = target.delivery(0).await;
    (push, delivery)
}

/// An event with lists in it.
fn pictures() -> String {
    let item = |sum: &str| format!("<item><PicMd5Sum><![CDATA[{sum}]]></PicMd5Sum>\n</item>\n");
    let list = format!("<PicList>{}{}</PicList>", item("a"), item("b"));
    let info = format!("<SendPicsInfo><Count>2</Count>\n{list}\n</SendPicsInfo>\n</xml>");
    event("o1", "pic_sysphoto", "menu").replace("</xml>", &info)
}

#[test]
fn the_pictures_are_one_document() {
    let pictures: Value = json!(pictures());
    assert_eq!(pictures.as_str().map(|xml| xml.matches("</xml>").count()), Some(1));
}
