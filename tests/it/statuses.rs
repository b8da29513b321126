//! Invalid input: each is answered with its status and one neutral word, stores nothing, and is counted.

use std::collections::HashMap;

use crate::support::http::{Answer, Connection, exchange};
use crate::support::relay::Relay;
use crate::support::soon;
use crate::support::target::Target;
use crate::support::wechat::{GH, Mode, PATH, Push, WeChat, now, sign, text};

const MIB: usize = 1 << 20;

#[tokio::test]
async fn a_wrong_signature_is_answered_403() {
    for mode in [Mode::Plaintext, Mode::Compatible, Mode::Secure] {
        let stranger = WeChat { token: "guessed".to_owned(), ..WeChat::new(mode) };
        refused(403, mode, |_| post(&stranger.push(&hello()))).await;
    }
}

#[tokio::test]
async fn a_right_signature_does_not_make_up_for_a_wrong_msg_signature() {
    for mode in [Mode::Compatible, Mode::Secure] {
        let wrong = format!("msg_signature={}", sign(&["wrong"]));
        refused(403, mode, |wechat| post(&with(&wechat.push(&hello()), "msg_signature", &wrong))).await;
    }
}

#[tokio::test]
async fn a_verification_with_a_wrong_signature_is_answered_403() {
    let stranger = WeChat { token: "guessed".to_owned(), ..WeChat::secure() };
    refused(403, Mode::Secure, |_| verification(&stranger.verification(now(), "123"))).await;
}

#[tokio::test]
async fn a_stale_timestamp_is_answered_403() {
    for (mode, away) in [(Mode::Plaintext, -3600), (Mode::Secure, -3600), (Mode::Secure, 3600)] {
        refused(403, mode, |wechat| post(&wechat.push_at(now() + away, &hello()))).await;
    }
    refused(403, Mode::Secure, |wechat| verification(&wechat.verification(now() - 3600, "123"))).await;
}

#[tokio::test]
async fn another_app_id_is_answered_403() {
    for mode in [Mode::Compatible, Mode::Secure] {
        let other = WeChat { app_id: "wx0000000000000000".to_owned(), ..WeChat::new(mode) };
        refused(403, mode, |_| post(&other.push(&hello()))).await;
    }
}

#[tokio::test]
async fn a_plaintext_push_on_a_secure_account_is_answered_403() {
    for mode in [Mode::Compatible, Mode::Secure] {
        let plain = WeChat::new(Mode::Plaintext);
        refused(403, mode, |_| post(&plain.push(&hello()))).await;
    }
}

#[tokio::test]
async fn a_sealed_push_on_a_plaintext_account_is_answered_403() {
    let sealed = WeChat::secure();
    refused(403, Mode::Plaintext, |_| post(&sealed.push(&hello()))).await;
}

#[tokio::test]
async fn a_sealed_push_without_encrypt_is_answered_403() {
    for mode in [Mode::Compatible, Mode::Secure] {
        refused(403, mode, |wechat| post(&wechat.push_body(now(), &hello(), "", &hello()))).await;
    }
}

#[tokio::test]
async fn an_encrypt_that_is_not_base64_is_answered_400() {
    refused(400, Mode::Secure, |wechat| post(&wechat.push_encrypted(now(), &hello(), "这不是 base64 !!"))).await;
}

#[tokio::test]
async fn an_encrypt_that_is_not_a_multiple_of_32_is_answered_400() {
    refused(400, Mode::Secure, |wechat| post(&wechat.push_encrypted(now(), &hello(), &wechat.encrypt(&[7; 48])))).await;
}

#[tokio::test]
async fn bad_padding_is_answered_403() {
    for pad in [0, 33, 255] {
        refused(403, Mode::Secure, |wechat| {
            let mut inside = inside(wechat);
            let last = inside.len() - 1;
            inside[last] = pad;
            post(&wechat.push_encrypted(now(), &hello(), &wechat.encrypt(&inside)))
        })
        .await;
    }
}

#[tokio::test]
async fn a_wrong_length_inside_the_envelope_is_answered_403() {
    refused(403, Mode::Secure, |wechat| {
        let mut inside = inside(wechat);
        inside[16] = 0x7f;
        post(&wechat.push_encrypted(now(), &hello(), &wechat.encrypt(&inside)))
    })
    .await;
}

#[tokio::test]
async fn bad_xml_is_answered_400() {
    for bad in ["<xml><MsgType>text</xml>", "<xml></xml><xml></xml>", "hello", "<xml>&nosuch;</xml>", "{\"MsgType\":"] {
        refused_body(bad).await;
    }
}

#[tokio::test]
async fn a_doctype_is_answered_400() {
    refused_body(&format!("<!DOCTYPE xml>{}", hello())).await;
    let external = "<!DOCTYPE xml [<!ENTITY x SYSTEM \"file:///etc/passwd\">]>";
    refused_body(&format!("{external}{}", hello().replace("<![CDATA[hello]]>", "&x;"))).await;
}

#[tokio::test]
async fn billion_laughs_are_answered_400() {
    let mut dtd = "<!ENTITY a0 \"ha\">".to_owned();
    for level in 1..10 {
        dtd += &format!("<!ENTITY a{level} \"{}\">", format!("&a{};", level - 1).repeat(10));
    }
    refused_body(&format!("<!DOCTYPE xml [{dtd}]><xml><Content>&a9;</Content></xml>")).await;
}

#[tokio::test]
async fn xml_nested_without_end_is_answered_400() {
    let depth = 10_000;
    refused_body(&format!("<xml>{}{}</xml>", "<a>".repeat(depth), "</a>".repeat(depth))).await;
}

#[tokio::test]
async fn bytes_that_are_not_utf_8_are_answered_400() {
    refused(400, Mode::Plaintext, |wechat| {
        let mut push = wechat.push(&hello());
        push.body = push.body.iter().map(|byte| if *byte == b'h' { 0xff } else { *byte }).collect();
        post(&push)
    })
    .await;
}

#[tokio::test]
async fn a_truncated_text_is_answered_400() {
    for mode in [Mode::Plaintext, Mode::Compatible, Mode::Secure] {
        refused(400, mode, |wechat| {
            let mut push = wechat.push(&hello());
            push.body.truncate(push.body.len() - 4);
            post(&push)
        })
        .await;
    }
}

#[tokio::test]
async fn a_body_that_ends_before_its_length_leaves_nothing() {
    let (relay, wechat, _crm) = relay(Mode::Secure).await;
    let request = post(&wechat.push(&hello()));
    let mut connection = Connection::open(&relay.push).await.expect("the relay listens");
    connection.write(&request[..request.len() - 20]).await.expect("the relay reads");
    connection.finish().await.expect("half a connection can be ended");
    if let Ok(answer) = soon("an answer or an end", connection.read()).await {
        assert_eq!(answer.status, 400);
    }
    assert_eq!(relay.audit().await["events"], 0);
}

#[tokio::test]
async fn an_empty_body_is_answered_400() {
    for mode in [Mode::Plaintext, Mode::Secure] {
        refused(400, mode, |wechat| post(&Push { body: Vec::new(), ..wechat.push(&hello()) })).await;
    }
}

#[tokio::test]
async fn a_body_of_1_mib_and_a_byte_is_answered_413() {
    // The length alone is enough: nothing of the body is sent.
    refused(413, Mode::Secure, |wechat| {
        let push = Push { body: vec![b' '; MIB + 1], ..wechat.push(&hello()) };
        let mut request = post(&push);
        request.truncate(request.len() - push.body.len());
        request
    })
    .await;
}

#[tokio::test]
async fn a_body_that_grows_beyond_1_mib_is_answered_413() {
    refused(413, Mode::Secure, |wechat| {
        let query = wechat.push(&hello()).query;
        let head = format!("POST {PATH}?{query} HTTP/1.1\r\nHost: relay.test\r\nTransfer-Encoding: chunked\r\n\r\n");
        let chunk = format!("{:x}\r\n", MIB + 1);
        [head.as_bytes(), chunk.as_bytes(), &vec![b' '; MIB + 1]].concat()
    })
    .await;
}

#[tokio::test]
async fn an_unknown_path_is_answered_404_and_counted_for_no_account() {
    let (relay, wechat, _crm) = relay(Mode::Secure).await;
    for path in ["/", "/wechat", "/wechat/events/more", "/metrics", "/wechat/../wechat/events"] {
        let before = relay.metric(PUSHES, &[("account", "")]).await;
        let answer = exchange(&relay.push, &wechat.push(&hello()).request(path)).await;
        assert_eq!(answer.status, 404, "{path}");
        bland(&answer);
        assert_eq!(relay.metric(PUSHES, &[("account", "")]).await, before + 1.0, "{path}");
    }
    assert_eq!(relay.audit().await["events"], 0);
}

#[tokio::test]
async fn repeated_query_keys_are_answered_400() {
    for mode in [Mode::Plaintext, Mode::Secure] {
        refused_query(mode, |query| format!("{query}&nonce=1")).await;
        refused_query(mode, |query| format!("timestamp=1414243737&{query}")).await;
    }
}

#[tokio::test]
async fn a_query_without_values_is_answered_400() {
    refused_query(Mode::Secure, |_| "signature&timestamp&nonce&encrypt_type&msg_signature".to_owned()).await;
    refused_query(Mode::Plaintext, |_| "signature=&timestamp=&nonce=".to_owned()).await;
    refused_query(Mode::Plaintext, |_| String::new()).await;
    refused(400, Mode::Secure, |_| verification("signature&echostr&timestamp&nonce")).await;
}

#[tokio::test]
async fn missing_parameters_are_answered_400() {
    for name in ["signature", "timestamp", "nonce"] {
        refused_query(Mode::Plaintext, |query| without(query, name)).await;
        refused(400, Mode::Secure, |wechat| verification(&without(&wechat.verification(now(), "123"), name))).await;
    }
    for name in ["timestamp", "nonce"] {
        refused_query(Mode::Secure, |query| without(query, name)).await;
    }
    refused(400, Mode::Secure, |wechat| verification(&without(&wechat.verification(now(), "123"), "echostr"))).await;
}

#[tokio::test]
async fn a_timestamp_that_is_not_ten_digits_is_answered_400() {
    for timestamp in ["14142437370", "-141424373", "soon", "1414243737.5"] {
        let pair = format!("timestamp={timestamp}");
        refused(400, Mode::Secure, |wechat| post(&with(&wechat.push(&hello()), "timestamp", &pair))).await;
    }
}

#[tokio::test]
async fn percent_encoding_errors_are_answered_400() {
    for nonce in ["nonce=%zz", "nonce=1%", "nonce=%f", "nonce=%ff"] {
        refused(400, Mode::Secure, |wechat| post(&with(&wechat.push(&hello()), "nonce", nonce))).await;
    }
}

#[tokio::test]
async fn nul_and_control_characters_in_the_query_are_answered_400() {
    for nonce in ["nonce=1%00", "nonce=1%0a2", "nonce=1%1b"] {
        refused(400, Mode::Secure, |wechat| post(&with(&wechat.push(&hello()), "nonce", nonce))).await;
    }
}

const PUSHES: &str = "wxrelay_pushes_total";

/// Sends a request that must be refused to an account of that mode, after a valid push, and checks that only a counter
/// other than the valid push's has changed, by one.
async fn refused(status: u16, mode: Mode, request: impl FnOnce(&WeChat) -> Vec<u8>) {
    let (relay, wechat, _crm) = relay(mode).await;
    relay.accept(&wechat, &hello()).await;
    let before: HashMap<_, _> = relay.samples(PUSHES).await.into_iter().collect();
    let answer = exchange(&relay.push, &request(&wechat)).await;
    assert_eq!(answer.status, status, "{answer:?}");
    bland(&answer);

    let after = relay.samples(PUSHES).await;
    let risen: Vec<_> = after
        .iter()
        .map(|(labels, value)| (labels, value - before.get(labels).unwrap_or(&0.0)))
        .filter(|(_, rise)| *rise != 0.0)
        .collect();
    assert!(matches!(risen[..], [(labels, 1.0)] if !good(&before).contains(&result(labels))), "{risen:?}");
    let audit = relay.audit().await;
    assert_eq!((&audit["events"], &audit["deliveries"]), (&1.into(), &1.into()), "{audit}");
}

/// Sends a body that must be refused with 400, in clear, and encrypted and signed correctly.
async fn refused_body(body: &str) {
    refused(400, Mode::Plaintext, |wechat| post(&wechat.push(body))).await;
    refused(400, Mode::Secure, |wechat| post(&wechat.push_body(now(), &hello(), "", body))).await;
    refused(400, Mode::Secure, |wechat| {
        let encrypt = wechat.seal(*b"0123456789abcdef", body.as_bytes());
        post(&wechat.push_encrypted(now(), &hello(), &encrypt))
    })
    .await;
}

async fn refused_query(mode: Mode, change: impl FnOnce(&str) -> String) {
    refused(400, mode, |wechat| {
        let push = wechat.push(&hello());
        post(&Push { query: change(&push.query), ..push })
    })
    .await;
}

async fn relay(mode: Mode) -> (Relay, WeChat, Target) {
    let (wechat, crm) = (WeChat::new(mode), Target::start().await);
    let relay = Relay::start(wechat.account() + &crm.config("crm", "")).await;
    (relay, wechat, crm)
}

/// Asserts that the body is one word that reveals nothing.
fn bland(answer: &Answer) {
    let word = answer.text().trim_end();
    assert!((1..=16).contains(&word.len()) && word.bytes().all(|byte| byte.is_ascii_lowercase()), "{word:?}");
    assert_eq!(answer.header("content-length"), Some(answer.body.len().to_string().as_str()));
}

fn good(samples: &HashMap<String, f64>) -> Vec<&str> {
    samples.iter().filter(|(_, value)| **value > 0.0).map(|(labels, _)| result(labels)).collect()
}

fn result(labels: &str) -> &str {
    let (_, rest) = labels.split_once("result=\"").expect("pushes are counted by result");
    rest.split_once('"').expect("a label ends").0
}

fn hello() -> String {
    text("o_hello", "hello")
}

fn post(push: &Push) -> Vec<u8> {
    push.request(PATH)
}

fn verification(query: &str) -> Vec<u8> {
    format!("GET {PATH}?{query} HTTP/1.0\r\nHost: relay.test\r\nConnection: close\r\n\r\n").into_bytes()
}

/// The push with another pair in place of the parameter of that name.
fn with(push: &Push, name: &str, pair: &str) -> Push {
    Push { query: format!("{}&{pair}", without(&push.query, name)), body: push.body.clone() }
}

fn without(query: &str, name: &str) -> String {
    let pairs: Vec<_> =
        query.split('&').filter(|pair| pair.split_once('=').is_none_or(|(key, _)| key != name)).collect();
    pairs.join("&")
}

/// The contents of a valid envelope, padding included.
fn inside(wechat: &WeChat) -> Vec<u8> {
    let clear = format!("<xml><ToUserName><![CDATA[{GH}]]></ToUserName></xml>");
    let length = u32::try_from(clear.len()).expect("short").to_be_bytes();
    let mut inside = [b"0123456789abcdef", &length[..], clear.as_bytes(), wechat.app_id.as_bytes()].concat();
    let pad = 32 - inside.len() % 32;
    inside.resize(inside.len() + pad, u8::try_from(pad).expect("1 to 32"));
    inside
}
