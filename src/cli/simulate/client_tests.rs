//! The client against a scripted server on loopback.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use super::*;
use crate::secret::Secret;
use crate::wechat::{AesKey, Credentials, Mode, Query, ReplySealing, Salt, Syntax};

const CLEAR: &str = "<xml><ToUserName>gh_1</ToUserName><FromUserName>oU</FromUserName><CreateTime>1</CreateTime>\
                     <MsgType>text</MsgType><Content>hi</Content></xml>";
const REPLY: &str = "<xml><ToUserName>oU</ToUserName><FromUserName>gh_1</FromUserName><CreateTime>2</CreateTime>\
                     <MsgType>text</MsgType><Content>you</Content></xml>";

fn credentials(mode: Mode) -> Credentials {
    Credentials {
        app_id: "wx1".into(),
        token: Secret::new("AAAAA"),
        previous_token: None,
        aes_key: Some(AesKey::parse("abcdefghijklmnopqrstuvwxyz0123456789ABCDEFG").unwrap()),
        previous_aes_key: None,
        mode,
    }
}

fn client(mode: Mode) -> WechatClient {
    let timing = RetryTiming { limit: Duration::from_secs(5), tries: 3, retry_after: Duration::ZERO };
    WechatClient::new(credentials(mode)).with_timing(timing)
}

/// The reaction of the scripted server to one connection.
enum Act {
    /// Answers with a status and a body.
    Answer(u16, String),
    /// Sends bytes as they are.
    Bytes(&'static str),
    /// Answers a verification with its echostr, followed by a text.
    Echo(&'static str),
    /// Reads and never answers; ends the script.
    Silence,
}

/// Plays the acts, one per connection; the task returns the requests.
async fn server(acts: impl IntoIterator<Item = Act>) -> (ServerUrl, JoinHandle<Vec<String>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/wx", listener.local_addr().unwrap()).parse().unwrap();
    let mut acts: VecDeque<Act> = acts.into_iter().collect();
    let playing = tokio::spawn(async move {
        let mut requests = Vec::new();
        while let Some(act) = acts.pop_front() {
            let (mut stream, _) = listener.accept().await.unwrap();
            let request = read_request(&mut stream).await;
            let answer = match act {
                Act::Answer(status, body) => {
                    format!("HTTP/1.0 {status} X\r\nContent-Length: {}\r\n\r\n{body}", body.len())
                }
                Act::Bytes(bytes) => bytes.to_owned(),
                Act::Echo(tail) => {
                    let query = request.split(['?', ' ']).nth(2).unwrap().to_owned();
                    let query = Query::parse(&query).unwrap();
                    let echostr = credentials(Mode::Secure).verify_url(&query).unwrap().to_owned();
                    format!("HTTP/1.0 200 OK\r\n\r\n{echostr}{tail}")
                }
                Act::Silence => std::future::pending().await,
            };
            requests.push(request);
            stream.write_all(answer.as_bytes()).await.unwrap();
        }
        requests
    });
    (url, playing)
}

async fn read_request(stream: &mut tokio::net::TcpStream) -> String {
    let mut request = Vec::new();
    loop {
        let text = String::from_utf8_lossy(&request).into_owned();
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length = head.split("Content-Length: ").nth(1).and_then(|rest| rest.lines().next());
            if body.len() >= length.map_or(0, |length| length.parse().unwrap()) {
                return text;
            }
        }
        assert!(stream.read_buf(&mut request).await.unwrap() > 0, "request cut short: {text}");
    }
}

fn answer(body: impl Into<String>) -> Act {
    Act::Answer(200, body.into())
}

fn sealed(reply: &str) -> String {
    let salt = Salt::new(1_700_000_000, [9; 24]);
    credentials(Mode::Secure).seal_reply(reply, ReplySealing::current(Syntax::Xml), &salt)
}

async fn verdict(mode: Mode, act: Act) -> AnswerVerdict {
    let (url, _playing) = server([act]).await;
    let timing = RetryTiming { tries: 1, ..RetryTiming::default() };
    WechatClient::new(credentials(mode)).with_timing(timing).push(&url, CLEAR, "oU").await.unwrap().verdict
}

#[tokio::test]
async fn a_push_is_sealed_and_acknowledged() {
    let (url, playing) = server([answer("success")]).await;
    let answer = client(Mode::Secure).push(&url, CLEAR, "oU").await.unwrap();
    assert!(matches!(answer.verdict, AnswerVerdict::Received));
    assert_eq!((answer.status, answer.tries), (Some(200), 1));
    let request = playing.await.unwrap().remove(0);
    let (head, body) = request.split_once("\r\n\r\n").unwrap();
    let query = head.split(['?', ' ']).nth(2).unwrap();
    let opened = credentials(Mode::Secure).open(&Query::parse(query).unwrap(), &body.to_owned().into()).unwrap();
    assert_eq!(opened.clear, CLEAR);
    assert!(query.contains("&openid=oU&"));
}

#[tokio::test]
async fn a_sealed_reply_is_opened() {
    let (url, _playing) = server([answer(sealed(REPLY))]).await;
    let answer = client(Mode::Secure).push(&url, CLEAR, "oU").await.unwrap();
    assert_eq!(answer.opened(), Some(REPLY));
}

#[tokio::test]
async fn a_push_is_tried_again_with_the_same_bytes() {
    let (url, playing) = server([Act::Answer(503, String::new()), Act::Bytes(""), answer("success")]).await;
    let answer = client(Mode::Secure).push(&url, CLEAR, "oU").await.unwrap();
    assert!(answer.verdict.is_ok());
    assert_eq!(answer.tries, 3);
    let [refused, broken] = &answer.earlier[..] else { panic!("{:?}", answer.earlier) };
    assert!(matches!(refused.verdict, AnswerVerdict::Fault(AnswerError::Status(503))) && refused.tries == 1);
    assert!(matches!(broken.verdict, AnswerVerdict::Fault(AnswerError::NoAnswer(_))) && broken.tries == 2);
    let requests = playing.await.unwrap();
    assert!(requests.iter().all(|request| *request == requests[0]));
}

#[tokio::test]
async fn after_three_tries_it_is_a_fault() {
    let (url, playing) = server([500, 500, 503].map(|status| Act::Answer(status, String::new()))).await;
    let answer = client(Mode::Secure).push(&url, CLEAR, "oU").await.unwrap();
    assert!(matches!(answer.verdict, AnswerVerdict::Fault(AnswerError::Status(503))));
    assert_eq!((answer.tries, playing.await.unwrap().len()), (3, 3));
}

#[tokio::test]
async fn an_illegal_reply_is_final() {
    let (url, playing) = server([answer("oops")]).await;
    let answer = client(Mode::Secure).push(&url, CLEAR, "oU").await.unwrap();
    assert!(matches!(answer.verdict, AnswerVerdict::Fault(AnswerError::NotReply)));
    assert_eq!((answer.tries, playing.await.unwrap().len()), (1, 1));
}

#[tokio::test]
async fn silence_ends_at_the_limit() {
    let (url, _playing) = server([Act::Silence]).await;
    let timing = RetryTiming { limit: Duration::from_millis(50), tries: 1, retry_after: Duration::ZERO };
    let answer =
        WechatClient::new(credentials(Mode::Secure)).with_timing(timing).push(&url, CLEAR, "oU").await.unwrap();
    assert!(matches!(answer.verdict, AnswerVerdict::Fault(AnswerError::NoAnswer(Http10Error::Timeout))));
    assert!(answer.took >= Duration::from_millis(50) && answer.status.is_none());
}

#[tokio::test]
async fn a_try_begins_when_the_one_before_has_ended() {
    let (url, _playing) = server([Act::Silence]).await;
    let limit = Duration::from_millis(200);
    let timing = RetryTiming { limit, ..RetryTiming::default() };
    let answer =
        WechatClient::new(credentials(Mode::Secure)).with_timing(timing).push(&url, CLEAR, "oU").await.unwrap();
    let starts: Vec<_> = answer.earlier.iter().chain([&answer]).map(|attempt| attempt.started).collect();
    assert_eq!((starts.len(), answer.tries), (3, 3));
    for pair in starts.windows(2) {
        assert!((limit..limit * 3).contains(&(pair[1] - pair[0])), "{starts:?}");
    }
}

#[tokio::test]
async fn a_closed_port_is_an_error_with_a_remedy() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url: ServerUrl = format!("http://{}/", listener.local_addr().unwrap()).parse().unwrap();
    drop(listener);
    let answer = client(Mode::Secure).push(&url, CLEAR, "oU").await.unwrap();
    assert_eq!(answer.tries, 3);
    let AnswerVerdict::Fault(fault) = answer.verdict else { panic!("{:?}", answer.verdict) };
    assert!(fault.remedy().is_some_and(|remedy| remedy.contains("is the server running")), "{fault}");
    assert!(fault.to_string().contains("refused"), "{fault}");
}

#[tokio::test]
async fn a_plain_server_at_an_https_url_is_a_tls_fault() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url: ServerUrl = format!("https://{}/", listener.local_addr().unwrap()).parse().unwrap();
    let plain = tokio::spawn(async move { while listener.accept().await.is_ok() {} });
    match client(Mode::Secure).push(&url, CLEAR, "oU").await {
        Ok(answer) => {
            assert!(matches!(answer.verdict, AnswerVerdict::Fault(AnswerError::NoAnswer(Http10Error::Tls(_)))))
        }
        // A machine without certificate authorities: the error names what to install.
        Err(error) => {
            assert!(crate::cli::remedy(&error).is_some_and(|remedy| remedy.contains("ca-certificates")), "{error:#}")
        }
    }
    plain.abort();
}

#[tokio::test]
async fn each_mode_takes_the_replies_that_wechat_takes() {
    assert!(matches!(verdict(Mode::Secure, answer(REPLY)).await, AnswerVerdict::Fault(AnswerError::Clear)));
    assert!(matches!(verdict(Mode::Compatible, answer(REPLY)).await, AnswerVerdict::Replied(_)));
    assert!(matches!(verdict(Mode::Compatible, answer(sealed(REPLY))).await, AnswerVerdict::Replied(_)));
    assert!(matches!(verdict(Mode::Plaintext, answer(REPLY)).await, AnswerVerdict::Replied(_)));
    assert!(matches!(
        verdict(Mode::Plaintext, answer(sealed(REPLY))).await,
        AnswerVerdict::Fault(AnswerError::NotClear)
    ));
    assert!(matches!(verdict(Mode::Plaintext, answer("")).await, AnswerVerdict::Received));
}

#[tokio::test]
async fn replies_that_the_user_would_not_see_are_faults() {
    let fault = async |body: &str| match verdict(Mode::Plaintext, answer(body)).await {
        AnswerVerdict::Fault(fault) => fault,
        other => panic!("{body}: {other:?}"),
    };
    assert!(matches!(fault("\"success\"").await, AnswerError::NotReply));
    assert!(matches!(fault("{\"reply\":{\"msg_type\":\"text\",\"content\":\"hi\"}}").await, AnswerError::NotReply));
    assert!(matches!(fault("\u{feff}success").await, AnswerError::NotReply));
    assert!(matches!(fault(&format!("\u{feff}{REPLY}")).await, AnswerError::NotReply));
    assert!(matches!(fault(&REPLY.replace(">oU<", ">oV<")).await, AnswerError::Misdirected("ToUserName", _)));
    assert!(matches!(fault(&REPLY.replace("gh_1", "gh_2")).await, AnswerError::Misdirected("FromUserName", _)));
    assert!(matches!(fault(&REPLY.replace("<CreateTime>2</CreateTime>", "")).await, AnswerError::Lacks("CreateTime")));
    assert!(matches!(fault(&REPLY.replace("you", "")).await, AnswerError::Illegal(_)));
    assert!(matches!(fault(&REPLY.replace("you", &"y".repeat(2049))).await, AnswerError::TooLong));
}

#[tokio::test]
async fn a_seal_by_other_credentials_is_a_fault() {
    let tampered = sealed(REPLY).replace("<TimeStamp>1", "<TimeStamp>2");
    assert!(matches!(verdict(Mode::Secure, answer(tampered)).await, AnswerVerdict::Fault(AnswerError::Sealed(_))));
}

#[tokio::test]
async fn chunks_and_compression_are_faults() {
    let chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n7\r\nsuccess\r\n0\r\n\r\n";
    assert!(matches!(verdict(Mode::Secure, Act::Bytes(chunked)).await, AnswerVerdict::Fault(AnswerError::Coded(_))));
    let gzip = "HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 7\r\n\r\nsuccess";
    assert!(matches!(verdict(Mode::Secure, Act::Bytes(gzip)).await, AnswerVerdict::Fault(AnswerError::Coded(_))));
}

#[tokio::test]
async fn a_verification_passes_with_the_bare_echostr_only() {
    for (tail, passes) in [("", true), ("\n", false)] {
        let (url, _playing) = server([Act::Echo(tail)]).await;
        let answer = client(Mode::Secure).verify(&url).await.unwrap();
        assert_eq!(matches!(answer.verdict, AnswerVerdict::Verified), passes, "{tail:?}");
    }
}
