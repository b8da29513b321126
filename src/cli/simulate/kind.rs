//! The clear text of each kind of push.
//!
//! Pure except for [`MessageIds::now`]. Elements and their order follow the pages Receiving_standard_messages and
//! Receiving_event_pushes of developers.weixin.qq.com.

use crate::cli::keygen;
use crate::clock::UnixMillis;
use crate::wechat::{Element, envelope, xml};

/// A kind of push: what the user does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PushKind {
    /// Sends a text message.
    Text { content: String },
    /// Follows the account; with a scene, by a parametric QR code.
    Subscribe {
        /// The scene of the QR code.
        scene: Option<String>,
    },
    /// Scans a parametric QR code as a follower.
    Scan {
        /// The scene of the QR code.
        scene: String,
    },
    /// Leaves the account.
    Unsubscribe,
    /// Taps a menu button.
    Click {
        /// The button's key.
        key: String,
    },
    /// Taps a menu link.
    View {
        /// The link's URL.
        url: String,
    },
}

/// Sender and receiver of a push.
#[derive(Clone, Copy, Debug)]
pub struct MessageAddresses<'a> {
    pub openid: &'a str,
    /// The account's original id, `gh_...`.
    pub account: &'a str,
}

#[derive(Clone, Debug)]
pub struct MessageIds {
    /// Seconds since 1970.
    pub create_time: i64,
    /// 19 digits, as real ones have.
    pub msg_id: u64,
    pub ticket: String,
}

impl MessageIds {
    /// Makes them of the current time, a random id and a random ticket.
    pub fn now() -> Result<Self, getrandom::Error> {
        let msg_id = 6_000_000_000_000_000_000 + getrandom::u64()? % 1_000_000_000_000_000_000;
        let ticket = format!("gQ{}", envelope::generate_key(keygen::random()?));
        Ok(Self { create_time: UnixMillis::now().seconds(), msg_id, ticket })
    }
}

impl PushKind {
    /// The kind's name on the command line.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Text { .. } => "text",
            Self::Subscribe { .. } => "subscribe",
            Self::Scan { .. } => "scan",
            Self::Unsubscribe => "unsubscribe",
            Self::Click { .. } => "click",
            Self::View { .. } => "view",
        }
    }

    pub fn clear_xml(&self, addresses: MessageAddresses<'_>, ids: &MessageIds) -> String {
        let mut fields = vec![
            ("ToUserName", addresses.account.to_owned()),
            ("FromUserName", addresses.openid.to_owned()),
            ("CreateTime", ids.create_time.to_string()),
        ];
        let ticket = || ("Ticket", ids.ticket.clone());
        let mut event = |name: &str, key: &str| {
            fields.push(("MsgType", "event".to_owned()));
            fields.push(("Event", name.to_owned()));
            fields.push(("EventKey", key.to_owned()));
        };
        match self {
            Self::Text { content } => {
                fields.push(("MsgType", "text".to_owned()));
                fields.push(("Content", content.clone()));
                fields.push(("MsgId", ids.msg_id.to_string()));
            }
            Self::Subscribe { scene: None } => event("subscribe", ""),
            Self::Subscribe { scene: Some(scene) } => {
                event("subscribe", &format!("qrscene_{scene}"));
                fields.push(ticket());
            }
            Self::Scan { scene } => {
                event("SCAN", scene);
                fields.push(ticket());
            }
            Self::Unsubscribe => event("unsubscribe", ""),
            Self::Click { key } => event("CLICK", key),
            Self::View { url } => event("VIEW", url),
        }
        let mut root = Element::new("xml");
        root.children = fields.into_iter().map(|(name, text)| Element::with_text(name, text)).collect();
        xml::render(&root)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wechat::Message;

    fn message(kind: &PushKind) -> Message {
        let ids = MessageIds::now().unwrap();
        Message::parse(kind.clear_xml(MessageAddresses { openid: "oUser", account: "gh_1" }, &ids).as_bytes()).unwrap()
    }

    #[test]
    fn a_text_has_its_content_and_a_message_id() {
        let message = message(&PushKind::Text { content: "a ]]> b & <c>".to_owned() });
        assert_eq!((message.to_user(), message.from_user()), ("gh_1", "oUser"));
        assert_eq!((message.msg_type(), message.content()), ("text", "a ]]> b & <c>"));
        assert_eq!(message.msg_id().map(str::len), Some(19));
        assert!(message.create_time().is_some());
    }

    #[test]
    fn a_follow_by_qr_code_has_the_prefix_and_a_scan_has_not() {
        let follow = message(&PushKind::Subscribe { scene: Some("login_7".to_owned()) });
        assert_eq!((follow.event(), follow.event_key()), ("subscribe", "qrscene_login_7"));
        let scan = message(&PushKind::Scan { scene: "login_7".to_owned() });
        assert_eq!((scan.event(), scan.event_key()), ("SCAN", "login_7"));
        assert_ne!(follow.root.text_of("Ticket"), scan.root.text_of("Ticket"));
        assert_eq!(message(&PushKind::Subscribe { scene: None }).root.text_of("Ticket"), None);
    }

    #[test]
    fn menu_events_carry_their_key() {
        let click = message(&PushKind::Click { key: "V1".to_owned() });
        assert_eq!((click.event(), click.event_key(), click.msg_id()), ("CLICK", "V1", None));
        let view = message(&PushKind::View { url: "https://e.com/?a=1&b=2".to_owned() });
        assert_eq!((view.event(), view.event_key()), ("VIEW", "https://e.com/?a=1&b=2"));
    }
}
