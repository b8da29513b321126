//! The sink, with deliveries by `simulate`'s client and with bare requests.

use http::StatusCode;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::{Options, SignatureCheck, Sink, start};
use crate::cli::simulate::{
    AnswerError, AnswerVerdict, MessageAddresses, MessageIds, PushKind, RetryTiming, ServerUrl, WechatClient,
};
use crate::secret::Secret;
use crate::wechat::{AesKey, Credentials, Mode};

fn credentials(mode: Mode, token: &str) -> Credentials {
    Credentials {
        app_id: "wx1".into(),
        token: Secret::new(token),
        previous_token: None,
        aes_key: Some(AesKey::parse("abcdefghijklmnopqrstuvwxyz0123456789ABCDEFG").unwrap()),
        previous_aes_key: None,
        mode,
    }
}

fn sender(mode: Mode) -> WechatClient {
    let timing = RetryTiming { tries: 1, ..RetryTiming::default() };
    WechatClient::new(credentials(mode, "AAAAA")).with_timing(timing)
}

fn clear() -> String {
    let kind = PushKind::Text { content: "hello".to_owned() };
    kind.clear_xml(MessageAddresses { openid: "oU", account: "gh_1" }, &MessageIds::now().unwrap())
}

fn url(sink: &Sink) -> ServerUrl {
    format!("http://{}/wx", sink.address).parse().unwrap()
}

async fn post(sink: &Sink, headers: &str, body: &str) -> String {
    let mut stream = TcpStream::connect(sink.address).await.unwrap();
    let request = format!("POST /h HTTP/1.0\r\n{headers}Content-Length: {}\r\n\r\n{body}", body.len());
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

#[tokio::test]
async fn a_push_in_each_mode_gets_a_reply_that_wechat_takes() {
    for mode in [Mode::Plaintext, Mode::Compatible, Mode::Secure] {
        let reply = Some("you wrote".to_owned());
        let credentials = Some(credentials(mode, "AAAAA"));
        let mut sink = start(Options { reply, credentials, ..Options::default() }).await.unwrap();
        let answer = sender(mode).push(&url(&sink), &clear(), "oU").await.unwrap();
        assert!(answer.opened().is_some_and(|reply| reply.contains("you wrote")), "{mode}: {:?}", answer.verdict);
        let delivery = sink.received.recv().await.unwrap();
        assert_eq!((delivery.kind.as_str(), delivery.check, delivery.status), ("text", SignatureCheck::Good, 200));
        assert!(delivery.opened.unwrap().contains("hello"));
    }
}

#[tokio::test]
async fn a_push_of_another_token_is_refused() {
    let credentials = Some(credentials(Mode::Secure, "BBBBB"));
    let mut sink = start(Options { credentials, ..Options::default() }).await.unwrap();
    let answer = sender(Mode::Secure).push(&url(&sink), &clear(), "oU").await.unwrap();
    assert!(matches!(answer.verdict, AnswerVerdict::Fault(AnswerError::Status(403))));
    assert!(matches!(sink.received.recv().await.unwrap().check, SignatureCheck::Bad(_)));
}

#[tokio::test]
async fn a_verification_is_answered_for_the_right_token_only() {
    for (token, passes) in [("AAAAA", true), ("BBBBB", false)] {
        let credentials = Some(credentials(Mode::Secure, token));
        let sink = start(Options { credentials, ..Options::default() }).await.unwrap();
        let answer = sender(Mode::Secure).verify(&url(&sink)).await.unwrap();
        assert_eq!(answer.verdict.is_ok(), passes, "{token}");
    }
}

#[tokio::test]
async fn the_first_deliveries_fail_then_the_status_counts() {
    let sink = start(Options { fail: 2, ..Options::default() }).await.unwrap();
    let mut statuses = Vec::new();
    for _ in 0..3 {
        statuses.push(sender(Mode::Secure).push(&url(&sink), &clear(), "oU").await.unwrap().status);
    }
    assert_eq!(statuses, [Some(503), Some(503), Some(200)]);
    sink.set_status(StatusCode::GONE);
    assert!(post(&sink, "", "{}").await.starts_with("HTTP/1.0 410"));
    sink.fail_next(1);
    assert!(post(&sink, "", "{}").await.starts_with("HTTP/1.0 503"));
}

#[tokio::test]
async fn json_gets_a_json_reply() {
    let mut sink = start(Options { reply: Some("hi".to_owned()), ..Options::default() }).await.unwrap();
    let headers = "wxrelay-event-id: evt_0000000000000001\r\nwxrelay-attempt: 3\r\n";
    let answer = post(&sink, headers, r#"{"msg_type":"event","event":"CLICK"}"#).await;
    assert!(answer.ends_with(r#"{"reply":{"msg_type":"text","content":"hi"}}"#), "{answer}");
    let delivery = sink.received.recv().await.unwrap();
    assert_eq!((delivery.event_id(), delivery.attempt()), (Some("evt_0000000000000001"), Some(3)));
    assert_eq!((delivery.kind.as_str(), delivery.check), ("click", SignatureCheck::Unchecked));
}

#[tokio::test]
async fn a_delivery_without_the_webhook_signature_is_refused() {
    let secrets = vec!["whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw".parse().unwrap()];
    let mut sink = start(Options { secrets, ..Options::default() }).await.unwrap();
    assert!(post(&sink, "", "{}").await.starts_with("HTTP/1.0 401"));
    assert!(sink.received.recv().await.unwrap().to_string().contains("BAD"));
}

#[tokio::test]
async fn a_dropped_sink_closes_its_listener() {
    let sink = start(Options::default()).await.unwrap();
    let address = sink.address;
    drop(sink);
    tokio::task::yield_now().await;
    assert!(TcpStream::connect(address).await.is_err());
}
