//! Judges an answer as WeChat does. Pure.
//!
//! Stricter than most SDKs on purpose: an answer that passes here should pass at WeChat. Sources: WeChat's pages on
//! passive replies and on alarms; where they are silent, the field reports named beside the rule.

use super::http10::{Http10Error, RawResponse};
use crate::wechat::reply::{MAX_TEXT, ReplyError};
use crate::wechat::{Credentials, Message, Mode, OpenError, Reply, xml};

/// The text that WeChat shows to the user in place of a reply.
pub const USER_SEES: &str = "该公众号提供的服务出现故障，请稍后再试";

/// WeChat's reaction to an answer.
#[derive(Debug)]
pub enum AnswerVerdict {
    /// The URL verification passed.
    Verified,
    /// The push was received, and there is no reply.
    Received,
    /// The user sees this reply, here as clear XML.
    Replied(String),
    /// The user sees an error message, and WeChat counts a failure.
    Fault(AnswerError),
}

impl AnswerVerdict {
    /// Whether WeChat accepts the answer.
    pub fn is_ok(&self) -> bool {
        !matches!(self, Self::Fault(_))
    }

    /// The verdict's name in JSON.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Verified => "verified",
            Self::Received => "received",
            Self::Replied(_) => "replied",
            Self::Fault(_) => "fault",
        }
    }
}

/// Why WeChat rejects an answer. The texts contain their causes.
#[derive(Debug, thiserror::Error)]
pub enum AnswerError {
    #[error(transparent)]
    NoAnswer(Http10Error),
    /// WeChat follows no redirects and accepts 200 only.
    #[error("status {0}, expected 200")]
    Status(u16),
    #[error("the body is not the bare echostr (the console says token验证失败)")]
    NotEchoed,
    /// WeChat's request is HTTP/1.0, which has no chunks, and has no Accept-Encoding.
    #[error("the body has a {0}: WeChat reads neither chunks nor compressed bodies")]
    Coded(&'static str),
    #[error("the body is neither empty, nor `success`, nor reply XML")]
    NotReply,
    /// Secure mode accepts encrypted replies only.
    #[error("the reply is not encrypted, and the account is in secure mode")]
    Clear,
    /// Plaintext mode has no encrypted replies.
    #[error("the reply is encrypted, and the account is in plaintext mode")]
    NotClear,
    #[error("the encrypted reply cannot be decrypted ({0})")]
    Sealed(OpenError),
    #[error("the reply is illegal: {0}")]
    Illegal(ReplyError),
    /// Its text is too long.
    #[error("the reply's text is longer than {MAX_TEXT} bytes")]
    TooLong,
    /// An element that every reply has is missing or empty.
    #[error("the reply has no {0}")]
    Lacks(&'static str),
    /// It is addressed to another user than the sender of the push.
    #[error("the reply's {0} is not the push's {1}")]
    Misdirected(&'static str, &'static str),
}

impl AnswerError {
    /// How to fix the error, if that is known.
    pub fn remedy(&self) -> Option<&'static str> {
        match self {
            Self::NoAnswer(error) => error.remedy(),
            Self::Sealed(_) => Some("are token, EncodingAESKey and AppID the same on both sides?"),
            Self::Status(300..=399) => Some("WeChat follows no redirect: enter the final URL in its console"),
            Self::Status(403) => {
                Some("are token, EncodingAESKey, mode and AppID the same on both sides, and is the clock right?")
            }
            Self::Status(404) => Some("is the path of the URL that of an account?"),
            Self::Status(_)
            | Self::NotEchoed
            | Self::Coded(_)
            | Self::NotReply
            | Self::Clear
            | Self::NotClear
            | Self::Illegal(_)
            | Self::TooLong
            | Self::Lacks(_)
            | Self::Misdirected(..) => None,
        }
    }
}

/// Judges the answer to a URL verification.
pub(super) fn of_verification(response: &RawResponse, echostr: &str) -> AnswerVerdict {
    if response.status != 200 {
        AnswerVerdict::Fault(AnswerError::Status(response.status))
    } else if let Err(fault) = check_encoding(response) {
        AnswerVerdict::Fault(fault)
    } else if response.body != echostr.as_bytes() {
        AnswerVerdict::Fault(AnswerError::NotEchoed)
    } else {
        AnswerVerdict::Verified
    }
}

/// Judges the answer to a push of this clear text.
pub(super) fn of_push(response: &RawResponse, credentials: &Credentials, clear: &str) -> AnswerVerdict {
    match reply(response, credentials, clear) {
        Ok(None) => AnswerVerdict::Received,
        Ok(Some(reply)) => AnswerVerdict::Replied(reply),
        Err(fault) => AnswerVerdict::Fault(fault),
    }
}

fn reply(response: &RawResponse, credentials: &Credentials, clear: &str) -> Result<Option<String>, AnswerError> {
    if response.status != 200 {
        return Err(AnswerError::Status(response.status));
    }
    check_encoding(response)?;
    if response.body.is_empty() || response.body == b"success" {
        return Ok(None);
    }
    let reply = decrypt_reply(&response.body, credentials)?;
    check_reply(&reply, clear)?;
    Ok(Some(reply))
}

fn check_encoding(response: &RawResponse) -> Result<(), AnswerError> {
    if response.header("transfer-encoding").is_some() {
        return Err(AnswerError::Coded("Transfer-Encoding"));
    }
    if response.header("content-encoding").is_some_and(|coding| coding != "identity") {
        return Err(AnswerError::Coded("Content-Encoding"));
    }
    Ok(())
}

/// Decrypts a reply. Compatible mode accepts both encrypted and clear replies.
fn decrypt_reply(body: &[u8], credentials: &Credentials) -> Result<String, AnswerError> {
    let outer = Message::parse(body).map_err(|_| AnswerError::NotReply)?.root;
    let sealed = outer.child("Encrypt").is_some();
    let clear = match (credentials.mode, sealed) {
        (Mode::Secure | Mode::Compatible, true) => credentials.open_reply(body).map_err(AnswerError::Sealed)?.to_vec(),
        (Mode::Secure, false) => return Err(AnswerError::Clear),
        (Mode::Plaintext, true) => return Err(AnswerError::NotClear),
        (Mode::Plaintext | Mode::Compatible, false) => body.to_vec(),
    };
    String::from_utf8(clear).map_err(|_| AnswerError::NotReply)
}

fn check_reply(reply: &str, push: &str) -> Result<(), AnswerError> {
    // WeChat rejects a reply with a BOM or anything else before `<xml`, which our own parser accepts.
    if !reply.starts_with('<') {
        return Err(AnswerError::NotReply);
    }
    let root = xml::parse(reply).map_err(|_| AnswerError::NotReply)?;
    for name in ["ToUserName", "FromUserName", "CreateTime", "MsgType"] {
        if root.text_of(name).is_none_or(str::is_empty) {
            return Err(AnswerError::Lacks(name));
        }
    }
    if Reply::parse(reply.as_bytes()).map_err(AnswerError::Illegal)?.is_none() {
        return Err(AnswerError::NotReply);
    }
    if root.text_of("MsgType") == Some("text") && root.text_of("Content").is_some_and(|text| text.len() > MAX_TEXT) {
        return Err(AnswerError::TooLong);
    }
    let Ok(push) = Message::parse(push.as_bytes()) else { return Ok(()) };
    if root.text_of("ToUserName") != Some(push.from_user()) {
        return Err(AnswerError::Misdirected("ToUserName", "FromUserName"));
    }
    if root.text_of("FromUserName") != Some(push.to_user()) {
        return Err(AnswerError::Misdirected("FromUserName", "ToUserName"));
    }
    Ok(())
}
