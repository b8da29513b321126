//! The body of a delivery: the relay's JSON, or a push in WeChat's own format, clear or encrypted. Pure.

use bytes::Bytes;
use http::HeaderMap;
use http::header::CONTENT_TYPE;
use serde_json::{Value, json};

use crate::wechat::{Credentials, Message, OpenError, Opened, Query, Reply, ReplyBody, Salt};

/// The body of a delivery, read as far as it can be.
pub(super) enum DeliveryContent {
    /// JSON in one of the relay's formats: `json`, `cloudevents` or `authing-json`.
    Json(Value),
    /// A push that the given credentials verified and decrypted.
    Opened(Box<Opened>),
    /// A clear push, recognised by its elements and not verified.
    Clear(Message),
    /// An encrypted push, without credentials to decrypt it.
    Sealed,
    /// A push that the given credentials cannot verify or decrypt.
    Refused(OpenError),
    Other,
}

/// Why a delivery with the content type of CloudEvents is invalid.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum CloudEventError {
    #[error("the content type is application/cloudevents+json, and the body is no JSON object")]
    NotJson,
    /// A required attribute is missing, empty or not a text.
    #[error("the CloudEvent has no `{0}`")]
    Lacks(&'static str),
    #[error("the CloudEvent's specversion is not 1.0")]
    Version,
    /// `id` and `webhook-id` name different events.
    #[error("the CloudEvent's id is not the webhook-id")]
    Id,
}

impl DeliveryContent {
    /// Parses a body. A push in WeChat's form is verified and decrypted if there are credentials.
    pub(super) fn read(query: &str, body: &Bytes, credentials: Option<&Credentials>) -> Self {
        if let Ok(value @ Value::Object(_)) = serde_json::from_slice::<Value>(body)
            && value.get("Encrypt").is_none()
            && value.get("MsgType").is_none()
        {
            return Self::Json(value);
        }
        if let Some(credentials) = credentials {
            let opened = Query::parse(query).map_err(OpenError::from).and_then(|query| credentials.open(&query, body));
            return opened.map_or_else(Self::Refused, |opened| Self::Opened(Box::new(opened)));
        }
        match Message::parse(body) {
            Ok(message) if message.root.child("MsgType").is_some() => Self::Clear(message),
            Ok(message) if message.root.child("Encrypt").is_some() => Self::Sealed,
            Ok(_) | Err(_) => Self::Other,
        }
    }

    /// Checks a CloudEvent against CloudEvents 1.0.2, section 3.1, and its id against the signed `webhook-id`.
    pub(super) fn check_cloud_event(&self, headers: &HeaderMap) -> Result<(), CloudEventError> {
        let header = |name| headers.get(name).and_then(|value: &http::HeaderValue| value.to_str().ok());
        if !header(CONTENT_TYPE.as_str()).is_some_and(|kind| kind.starts_with("application/cloudevents+json")) {
            return Ok(());
        }
        let Self::Json(event) = self else { return Err(CloudEventError::NotJson) };
        let text = |name| {
            let text = event.get(name).and_then(Value::as_str).filter(|text| !text.is_empty());
            text.ok_or(CloudEventError::Lacks(name))
        };
        if text("specversion")? != "1.0" {
            return Err(CloudEventError::Version);
        }
        let (id, _, _) = (text("id")?, text("source")?, text("type")?);
        if header("webhook-id").is_some_and(|signed| signed != id) { Err(CloudEventError::Id) } else { Ok(()) }
    }

    /// What the user did, in lower case, if the body has it.
    pub(super) fn kind(&self) -> String {
        match self {
            Self::Json(value) => json_kind(value).to_ascii_lowercase(),
            Self::Opened(opened) => message_kind(&opened.message),
            Self::Clear(message) => message_kind(message),
            Self::Sealed => "sealed".to_owned(),
            Self::Refused(_) | Self::Other => "unknown".to_owned(),
        }
    }

    /// The decrypted text of an encrypted push.
    pub(super) fn opened(&self) -> Option<String> {
        match self {
            Self::Opened(opened) => Some(String::from_utf8_lossy(&opened.clear).into_owned()),
            Self::Json(_) | Self::Clear(_) | Self::Sealed | Self::Refused(_) | Self::Other => None,
        }
    }

    /// A text reply in the form of the delivery, with its content type; `None` where none can be made.
    pub(super) fn reply(
        &self,
        text: &str,
        credentials: Option<&Credentials>,
        salt: &Salt,
    ) -> Option<(&'static str, String)> {
        let xml = |message: &Message| {
            let reply = Reply::new(ReplyBody::Text { content: text.to_owned() });
            reply.render(message, salt.timestamp)
        };
        match self {
            Self::Json(_) => {
                let reply = json!({ "reply": { "msg_type": "text", "content": text } });
                Some(("application/json", reply.to_string()))
            }
            Self::Clear(message) => Some(("text/xml", xml(message))),
            Self::Opened(opened) => {
                let clear = xml(&opened.message);
                let sealed = credentials?.seal_reply(&clear, opened.manner, salt);
                Some(("text/xml", sealed))
            }
            Self::Sealed | Self::Refused(_) | Self::Other => None,
        }
    }
}

fn message_kind(message: &Message) -> String {
    let event = message.event();
    if event.is_empty() { message.msg_type() } else { event }.to_ascii_lowercase()
}

/// The kind by format: `json` has `event` and `msg_type`, `cloudevents` a `type` that ends in them, `authing-json` has
/// arrays.
fn json_kind(value: &Value) -> &str {
    let text = |pointer: &str| value.pointer(pointer).and_then(Value::as_str).filter(|text| !text.is_empty());
    text("/event")
        .or_else(|| text("/msg_type"))
        .or_else(|| text("/type").and_then(|kind| kind.rsplit('.').next()))
        .or_else(|| text("/xml/event/0"))
        .or_else(|| text("/xml/msgtype/0"))
        .or_else(|| text("/xml/encrypt/0").map(|_| "sealed"))
        .unwrap_or("unknown")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(body: &str) -> String {
        DeliveryContent::read("", &Bytes::copy_from_slice(body.as_bytes()), None).kind()
    }

    #[test]
    fn every_format_tells_its_kind() {
        assert_eq!(kind(r#"{"msg_type":"event","event":"SCAN"}"#), "scan");
        assert_eq!(kind(r#"{"msg_type":"text","event":""}"#), "text");
        assert_eq!(kind(r#"{"specversion":"1.0","type":"com.tencent.weixin.mp.event.SCAN"}"#), "scan");
        assert_eq!(kind(r#"{"xml":{"msgtype":["event"],"event":["subscribe"]}}"#), "subscribe");
        assert_eq!(kind(r#"{"xml":{"tousername":["gh_1"],"encrypt":["AAAA"]}}"#), "sealed");
        assert_eq!(kind("<xml><MsgType>text</MsgType></xml>"), "text");
        assert_eq!(kind("<xml><Encrypt>AAAA</Encrypt></xml>"), "sealed");
        assert_eq!(kind(r#"{"MsgType":"event","Event":"CLICK"}"#), "click");
        assert_eq!(kind("hello"), "unknown");
        assert_eq!(kind("[]"), "unknown");
    }

    #[test]
    fn a_cloud_event_needs_its_attributes_and_the_signed_id() {
        let check = |body: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(CONTENT_TYPE, "application/cloudevents+json; charset=utf-8".parse().unwrap());
            headers.insert("webhook-id", "evt_1".parse().unwrap());
            DeliveryContent::read("", &Bytes::copy_from_slice(body.as_bytes()), None).check_cloud_event(&headers)
        };
        assert_eq!(check(r#"{"specversion":"1.0","id":"evt_1","source":"/a","type":"t"}"#), Ok(()));
        assert_eq!(check(r#"{"specversion":"1.0","id":"evt_2","source":"/a","type":"t"}"#), Err(CloudEventError::Id));
        assert_eq!(
            check(r#"{"specversion":"0.3","id":"evt_1","source":"/a","type":"t"}"#),
            Err(CloudEventError::Version)
        );
        assert_eq!(check(r#"{"specversion":"1.0","id":"evt_1","type":"t"}"#), Err(CloudEventError::Lacks("source")));
        assert_eq!(check("[]"), Err(CloudEventError::NotJson));
        let plain = DeliveryContent::read("", &Bytes::from_static(b"{}"), None);
        assert_eq!(plain.check_cloud_event(&HeaderMap::new()), Ok(()), "no CloudEvent at all");
    }

    #[test]
    fn a_clear_push_gets_a_clear_reply_to_its_sender() {
        let body = "<xml><ToUserName>gh_1</ToUserName><FromUserName>oU</FromUserName><MsgType>text</MsgType></xml>";
        let content = DeliveryContent::read("", &Bytes::from_static(body.as_bytes()), None);
        let (kind, reply) = content.reply("hi", None, &Salt::new(1_700_000_000, [7; 24])).unwrap();
        let reply = Reply::parse(reply.as_bytes()).unwrap().unwrap();
        assert_eq!(
            (kind, reply.to_user.as_deref(), reply.from_user.as_deref()),
            ("text/xml", Some("oU"), Some("gh_1"))
        );
        assert_eq!(reply.body, ReplyBody::Text { content: "hi".to_owned() });
    }

    #[test]
    fn what_cannot_be_opened_gets_no_reply() {
        let sealed = Bytes::from_static(b"<xml><Encrypt>AAAA</Encrypt></xml>");
        assert_eq!(DeliveryContent::read("", &sealed, None).reply("hi", None, &Salt::new(0, [0; 24])), None);
    }
}
