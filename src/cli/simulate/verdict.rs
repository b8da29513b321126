//! What WeChat makes of an answer. Pure.
//!
//! Stricter than most SDKs on purpose: what passes here should pass at WeChat. Sources: WeChat's pages on passive
//! replies and on alarms; where they are silent, the field reports named beside the rule.

use super::wire::{Failure, Response};
use crate::wechat::reply::ReplyError;
use crate::wechat::{Credentials, Message, Mode, OpenError, Reply, xml};

/// What the user of WeChat is shown in place of a reply.
pub const USER_SEES: &str = "该公众号提供的服务出现故障，请稍后再试";

/// What WeChat makes of an answer.
#[derive(Debug)]
pub enum Verdict {
    /// The URL verification passed.
    Verified,
    /// The push was received, and there is no reply.
    Received,
    /// The user is shown this reply: the clear XML.
    Replied(String),
    /// The user is told that the service is out of order, and WeChat counts a failure.
    Fault(Fault),
}

impl Verdict {
    /// Whether WeChat is content.
    pub fn is_ok(&self) -> bool {
        !matches!(self, Self::Fault(_))
    }

    /// One word for scripts.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Verified => "verified",
            Self::Received => "received",
            Self::Replied(_) => "replied",
            Self::Fault(_) => "fault",
        }
    }
}

/// What is wrong with an answer. The texts hold their causes: they are shown as they are.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// There is none.
    #[error(transparent)]
    NoAnswer(Failure),
    /// WeChat follows no redirect and takes nothing but 200 for an answer.
    #[error("status {0}; WeChat expects 200")]
    Status(u16),
    /// The body of a verification is not the echostr.
    #[error("the body is not the bare echostr (the console says token验证失败)")]
    NotEchoed,
    /// WeChat asked by HTTP/1.0, which knows no chunks, and without Accept-Encoding.
    #[error("the body has a {0}; WeChat reads neither chunks nor compressed bodies")]
    Coded(&'static str),
    /// Neither empty, nor `success`, nor one XML document.
    #[error("the body is neither empty, nor `success`, nor reply XML")]
    NotReply,
    /// Secure mode takes sealed replies only.
    #[error("the reply is not sealed, and the account is in secure mode")]
    Clear,
    /// Plaintext mode knows no sealed replies.
    #[error("the reply is sealed, and the account is in plaintext mode")]
    NotClear,
    /// The seal is broken.
    #[error("the sealed reply does not open ({0}); are token, EncodingAESKey and AppID the same on both sides?")]
    Sealed(OpenError),
    /// The opened reply is not legal.
    #[error("the reply is illegal: {0}")]
    Illegal(ReplyError),
    /// An element that every reply has is missing or empty.
    #[error("the reply has no {0}")]
    Lacks(&'static str),
    /// It goes to somebody else than the sender of the push.
    #[error("the reply's {0} is not the push's {1}")]
    Misdirected(&'static str, &'static str),
}

/// Judges the answer to a URL verification.
pub(super) fn of_verification(response: &Response, echostr: &str) -> Verdict {
    if response.status != 200 {
        Verdict::Fault(Fault::Status(response.status))
    } else if let Err(fault) = uncoded(response) {
        Verdict::Fault(fault)
    } else if response.body != echostr.as_bytes() {
        Verdict::Fault(Fault::NotEchoed)
    } else {
        Verdict::Verified
    }
}

/// Judges the answer to a push of this clear text.
pub(super) fn of_push(response: &Response, credentials: &Credentials, clear: &str) -> Verdict {
    match reply(response, credentials, clear) {
        Ok(None) => Verdict::Received,
        Ok(Some(reply)) => Verdict::Replied(reply),
        Err(fault) => Verdict::Fault(fault),
    }
}

fn reply(response: &Response, credentials: &Credentials, clear: &str) -> Result<Option<String>, Fault> {
    if response.status != 200 {
        return Err(Fault::Status(response.status));
    }
    uncoded(response)?;
    if response.body.is_empty() || response.body == b"success" {
        return Ok(None);
    }
    let reply = opened(&response.body, credentials)?;
    check(&reply, clear)?;
    Ok(Some(reply))
}

fn uncoded(response: &Response) -> Result<(), Fault> {
    if response.header("transfer-encoding").is_some() {
        return Err(Fault::Coded("Transfer-Encoding"));
    }
    if response.header("content-encoding").is_some_and(|coding| coding != "identity") {
        return Err(Fault::Coded("Content-Encoding"));
    }
    Ok(())
}

/// The clear text of a reply. Compatible mode takes sealed and clear ones.
fn opened(body: &[u8], credentials: &Credentials) -> Result<String, Fault> {
    let outer = Message::parse(body).map_err(|_| Fault::NotReply)?.root;
    let sealed = outer.child("Encrypt").is_some();
    let clear = match (credentials.mode, sealed) {
        (Mode::Secure | Mode::Compatible, true) => credentials.open_reply(body).map_err(Fault::Sealed)?.to_vec(),
        (Mode::Secure, false) => return Err(Fault::Clear),
        (Mode::Plaintext, true) => return Err(Fault::NotClear),
        (Mode::Plaintext | Mode::Compatible, false) => body.to_vec(),
    };
    String::from_utf8(clear).map_err(|_| Fault::NotReply)
}

fn check(reply: &str, push: &str) -> Result<(), Fault> {
    // WeChat takes a BOM or anything else before `<xml` for an illegal reply, whatever our own parser forgives.
    if !reply.starts_with('<') {
        return Err(Fault::NotReply);
    }
    let root = xml::parse(reply).map_err(|_| Fault::NotReply)?;
    for name in ["ToUserName", "FromUserName", "CreateTime", "MsgType"] {
        if root.text_of(name).is_none_or(str::is_empty) {
            return Err(Fault::Lacks(name));
        }
    }
    if Reply::parse(reply.as_bytes()).map_err(Fault::Illegal)?.is_none() {
        return Err(Fault::NotReply);
    }
    let Ok(push) = Message::parse(push.as_bytes()) else { return Ok(()) };
    if root.text_of("ToUserName") != Some(push.from_user()) {
        return Err(Fault::Misdirected("ToUserName", "FromUserName"));
    }
    if root.text_of("FromUserName") != Some(push.to_user()) {
        return Err(Fault::Misdirected("FromUserName", "ToUserName"));
    }
    Ok(())
}
