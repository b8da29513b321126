//! One delivery as the sink received it, and how it is printed.

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::{HeaderMap, Method};
use serde_json::{Map, Value, json};

use crate::clock::UnixMillis;

#[derive(Clone, Debug)]
pub struct ReceivedDelivery {
    /// When it had arrived completely.
    pub at: UnixMillis,
    pub method: Method,
    pub path: String,
    /// Without `?`; empty if there is none.
    pub query: String,
    pub headers: HeaderMap,
    pub body: Bytes,
    /// What the user did, in lower case: `text`, `scan`, ...; `verification`, `sealed` or `unknown`.
    pub kind: String,
    /// The decrypted text of an encrypted push.
    pub opened: Option<String>,
    pub check: SignatureCheck,
    /// The status it was answered with.
    pub status: u16,
    /// Whether it was answered with a reply.
    pub replied: bool,
}

/// Whether the signature of a delivery is valid.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SignatureCheck {
    /// The sink has no secret or credentials to check it.
    Unchecked,
    Good,
    /// Invalid, with the reason.
    Bad(String),
}

impl ReceivedDelivery {
    /// `wxrelay-event-id`.
    pub fn event_id(&self) -> Option<&str> {
        self.header("wxrelay-event-id")
    }

    /// `wxrelay-attempt`, from 1.
    pub fn attempt(&self) -> Option<u32> {
        self.header("wxrelay-attempt")?.parse().ok()
    }

    /// Whether the relay waits for a reply; `None` for what no relay sent, and for further attempts, which never wait.
    pub fn reply_awaited(&self) -> Option<bool> {
        (self.attempt()? == 1).then(|| self.headers.contains_key("wxrelay-deadline-ms"))
    }

    /// A header's value; `None` if it is not text.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// The whole delivery, for scripts. A body that is not UTF-8 is in `body_base64`.
    pub fn to_json(&self) -> Value {
        let headers: Map<String, Value> =
            self.headers.keys().map(|name| (name.to_string(), self.joined(name))).collect();
        let (signature, reason) = match &self.check {
            SignatureCheck::Unchecked => ("unchecked", None),
            SignatureCheck::Good => ("ok", None),
            SignatureCheck::Bad(reason) => ("bad", Some(reason)),
        };
        let (body, base64) = match std::str::from_utf8(&self.body) {
            Ok(text) => (Some(text), None),
            Err(_) => (None, Some(STANDARD.encode(&self.body))),
        };
        json!({
            "at": self.at.to_string(),
            "event_id": self.event_id(),
            "account": self.header("wxrelay-account"),
            "attempt": self.attempt(),
            "kind": self.kind,
            "signature": signature,
            "reason": reason,
            "status": self.status,
            "reply_awaited": self.reply_awaited(),
            "method": self.method.as_str(),
            "path": self.path,
            "query": self.query,
            "headers": headers,
            "body": body,
            "body_base64": base64,
            "opened": self.opened,
        })
    }

    fn joined(&self, name: &http::HeaderName) -> Value {
        let values = self.headers.get_all(name).iter().map(|value| String::from_utf8_lossy(value.as_bytes()));
        values.collect::<Vec<_>>().join(", ").into()
    }
}

/// One line for people.
impl fmt::Display for ReceivedDelivery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}  {:20}", self.at, self.event_id().unwrap_or("-"))?;
        match self.attempt() {
            Some(attempt) => write!(f, "  attempt {attempt}")?,
            None => f.write_str("  attempt -")?,
        }
        write!(f, "  {}  {} bytes", self.kind, self.body.len())?;
        match &self.check {
            SignatureCheck::Unchecked => {}
            SignatureCheck::Good => f.write_str("  signature ok")?,
            SignatureCheck::Bad(reason) => write!(f, "  signature BAD ({reason})")?,
        }
        write!(f, "  -> {}", self.status)?;
        if self.replied && self.reply_awaited() == Some(false) {
            f.write_str("  reply NOT AWAITED: name this target in `reply` of the route")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn delivery(body: &'static [u8]) -> ReceivedDelivery {
        let mut headers = HeaderMap::new();
        headers.insert("wxrelay-event-id", "evt_0000000000000001".parse().unwrap());
        headers.insert("wxrelay-attempt", "2".parse().unwrap());
        headers.append("x-many", "a".parse().unwrap());
        headers.append("x-many", "b".parse().unwrap());
        ReceivedDelivery {
            at: UnixMillis(1_795_161_600_120),
            method: Method::POST,
            path: "/wechat".to_owned(),
            query: "a=1".to_owned(),
            headers,
            body: Bytes::from_static(body),
            kind: "text".to_owned(),
            opened: None,
            check: SignatureCheck::Bad("no webhook-id header".to_owned()),
            status: 401,
            replied: false,
        }
    }

    #[test]
    fn a_line_tells_event_attempt_kind_size_and_check() {
        let line = "2026-11-20T08:00:00.120Z  evt_0000000000000001  attempt 2  text  2 bytes  \
                    signature BAD (no webhook-id header)  -> 401";
        assert_eq!(delivery(b"{}").to_string(), line);
    }

    #[test]
    fn a_line_tells_of_a_reply_that_no_route_asks_for() {
        let mut delivery = ReceivedDelivery { replied: true, ..delivery(b"{}") };
        let told = |delivery: &ReceivedDelivery| delivery.to_string().contains("NOT AWAITED");
        assert!(!told(&delivery), "a further attempt");
        delivery.headers.insert("wxrelay-attempt", "1".parse().unwrap());
        assert!(told(&delivery) && delivery.to_json()["reply_awaited"] == json!(false));
        delivery.headers.insert("wxrelay-deadline-ms", "4500".parse().unwrap());
        assert!(!told(&delivery) && delivery.to_json()["reply_awaited"] == json!(true));
    }

    #[test]
    fn json_has_every_header_and_any_body() {
        let json = delivery(b"{}").to_json();
        assert_eq!((&json["headers"]["x-many"], &json["attempt"]), (&json!("a, b"), &json!(2)));
        assert_eq!((&json["body"], &json["body_base64"]), (&json!("{}"), &Value::Null));
        let json = delivery(b"\xff").to_json();
        assert_eq!((&json["body"], &json["body_base64"]), (&Value::Null, &json!("/w==")));
    }
}
