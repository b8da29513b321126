//! The clear text of a push as a tree, and the few fields that the relay itself reads.
//!
//! Invariants: order and repeats of elements are kept, and every text stays text (a MsgId has 64 bits, which no JSON
//! number preserves). Unknown message types and events are treated like known ones. `Debug` of a [`Message`] shows its
//! kind and nothing that a user wrote. Deliberately not here: the notations themselves (`xml`, `json`).

use std::fmt;

use super::json::{self, JsonError};
use super::xml::{self, XmlError};

/// One element: its name, attributes, text and children.
///
/// The text is the concatenation of CDATA, plain text and references; blank text between children is dropped.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Element {
    /// The name as written; WeChat's names differ by case alone (`MsgId`, `MsgID`).
    pub name: String,
    /// Attributes in order. No known push has any.
    pub attributes: Vec<(String, String)>,
    /// The text.
    pub text: String,
    /// The children in order, repeats included.
    pub children: Vec<Self>,
}

impl Element {
    /// An empty element.
    pub fn new(name: impl Into<String>) -> Self {
        Self { name: name.into(), ..Self::default() }
    }

    /// An element that holds a text.
    pub fn with_text(name: impl Into<String>, text: impl Into<String>) -> Self {
        Self { name: name.into(), text: text.into(), ..Self::default() }
    }

    /// The first child of that name, compared by case.
    pub fn child(&self, name: &str) -> Option<&Self> {
        self.children.iter().find(|child| child.name == name)
    }

    /// The text of the first child of that name.
    pub fn text_of(&self, name: &str) -> Option<&str> {
        self.child(name).map(|child| child.text.as_str())
    }
}

/// The notation of a body. Mini programs may choose JSON; official accounts always send XML.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Syntax {
    /// `<xml>...</xml>`
    Xml,
    /// `{...}`
    Json,
}

/// The parsed clear text of a push.
#[derive(Clone, PartialEq, Eq)]
pub struct Message {
    /// The `<xml>` element; for JSON the outermost object under that name.
    pub root: Element,
    /// How it was written.
    pub syntax: Syntax,
}

/// Why a text is not a message.
#[derive(Debug, thiserror::Error)]
pub enum MessageError {
    /// It has bytes that are not UTF-8, WeChat's only charset.
    #[error("the text is not UTF-8")]
    NotUtf8,
    /// It begins with something else than `<` or `{`.
    #[error("the text is neither XML nor JSON")]
    Unknown,
    /// It begins as XML, but is malformed.
    #[error("the text is not well-formed XML")]
    Xml(#[from] XmlError),
    /// It begins as JSON, but is malformed.
    #[error("the text is not well-formed JSON")]
    Json(#[from] JsonError),
}

impl Message {
    /// Parses a clear text. Its first character decides the notation: WeChat labels JSON pushes `text/xml` too.
    pub fn parse(clear: &[u8]) -> Result<Self, MessageError> {
        let (text, syntax) = notation(clear)?;
        let root = match syntax {
            Syntax::Xml => xml::parse(text)?,
            Syntax::Json => json::parse(text.as_bytes())?,
        };
        Ok(Self { root, syntax })
    }

    /// `ToUserName`, the account's `gh_` name; empty if absent.
    pub fn to_user(&self) -> &str {
        self.field("ToUserName")
    }

    /// `FromUserName`, the OpenID; empty if absent.
    pub fn from_user(&self) -> &str {
        self.field("FromUserName")
    }

    /// `MsgType` as sent; empty if absent.
    pub fn msg_type(&self) -> &str {
        self.field("MsgType")
    }

    /// `Event` as sent; empty if absent.
    pub fn event(&self) -> &str {
        self.field("Event")
    }

    /// `EventKey` as sent, `qrscene_` included; empty if absent.
    pub fn event_key(&self) -> &str {
        self.field("EventKey")
    }

    /// `Content` of a text; empty if absent.
    pub fn content(&self) -> &str {
        self.field("Content")
    }

    /// `CreateTime` in seconds since 1970.
    pub fn create_time(&self) -> Option<u64> {
        trim(self.field("CreateTime")).parse().ok()
    }

    /// `MsgId`. Not `MsgID`, which is the number of a mass job.
    pub fn msg_id(&self) -> Option<&str> {
        self.root.text_of("MsgId")
    }

    /// The scene of a parametric QR code: of a scan, or of the follow that a scan led to.
    ///
    /// A follow's key has `qrscene_` before the scene, a scan's has not; some pages claim otherwise, so the prefix is
    /// removed from either. Other follows (`last_trade_no_...` after a payment) have a key but no scene.
    pub fn scene(&self) -> Option<&str> {
        const PREFIX: &str = "qrscene_";
        let event = self.event_name()?;
        let scene = if event.eq_ignore_ascii_case("subscribe") {
            trim(self.event_key()).strip_prefix(PREFIX)
        } else if event.eq_ignore_ascii_case("SCAN") {
            let key = trim(self.event_key());
            Some(key.strip_prefix(PREFIX).unwrap_or(key))
        } else {
            None
        };
        scene.filter(|scene| !scene.is_empty())
    }

    /// The text of a follow with the bare scene as its key, as a scan's is; `None` for every other message.
    pub fn with_bare_scene(&self) -> Option<String> {
        let scene = self.scene().filter(|scene| *scene != self.event_key())?;
        let mut root = self.root.clone();
        let key = root.children.iter_mut().find(|child| child.name == "EventKey")?;
        key.text = scene.to_owned();
        Some(match self.syntax {
            Syntax::Xml => xml::render(&root),
            Syntax::Json => json::message(&root).to_string(),
        })
    }

    /// `Event` of an event, without white space around it; `None` for another message.
    pub fn event_name(&self) -> Option<&str> {
        trim(self.msg_type()).eq_ignore_ascii_case("event").then(|| trim(self.event()))
    }

    /// Whether it is that event; case does not matter, as WeChat's own pages disagree about it.
    pub fn is_event(&self, name: &str) -> bool {
        self.event_name().is_some_and(|event| event.eq_ignore_ascii_case(name))
    }

    /// A label from a closed list, for metrics: the message type, for events the event's name in lower case.
    ///
    /// `component` for pushes to an open-platform component, `other` for what the lists do not have. The event
    /// LOCATION is `event_location`, since `location` is the message that a user sends.
    pub fn kind(&self) -> &'static str {
        let (name, list) = if self.msg_type().eq_ignore_ascii_case("event") {
            (self.event(), EVENTS)
        } else if self.msg_type().is_empty() && self.root.child("InfoType").is_some() {
            return "component";
        } else {
            (self.msg_type(), MESSAGES)
        };
        match list.iter().find(|known| known.eq_ignore_ascii_case(name)) {
            Some(&"location") if self.msg_type().eq_ignore_ascii_case("event") => "event_location",
            Some(known) => known,
            None => "other",
        }
    }

    /// What a name is known as, in lower case or not: a message type, an event, both or neither.
    pub fn known_as(name: &str) -> (bool, bool) {
        let is_in = |list: &[&str]| list.iter().any(|known| known.eq_ignore_ascii_case(name));
        (is_in(MESSAGES) || name.eq_ignore_ascii_case("event"), is_in(EVENTS))
    }

    /// The known names of events, in lower case.
    pub fn event_names() -> &'static [&'static str] {
        EVENTS
    }

    /// The known message types, without `event`.
    pub fn message_types() -> &'static [&'static str] {
        MESSAGES
    }

    fn field(&self, name: &str) -> &str {
        self.root.text_of(name).unwrap_or_default()
    }
}

impl fmt::Debug for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Message").field("kind", &self.kind()).field("syntax", &self.syntax).finish_non_exhaustive()
    }
}

/// The text without a byte order mark, and its notation by the first character that is not blank.
pub fn notation(body: &[u8]) -> Result<(&str, Syntax), MessageError> {
    let text = std::str::from_utf8(body).map_err(|_| MessageError::NotUtf8)?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(text).trim_ascii();
    match text.as_bytes().first() {
        Some(b'<') => Ok((text, Syntax::Xml)),
        Some(b'{') => Ok((text, Syntax::Json)),
        _ => Err(MessageError::Unknown),
    }
}

/// Message types, the frequent first.
const MESSAGES: &[&str] = &[
    "text",
    "image",
    "voice",
    "video",
    "shortvideo",
    "location",
    "link",
    "file",
    "miniprogrampage",
    "device_event",
    "device_text",
    "device_status",
];

/// Event names in lower case, the frequent first (WxJava's WxConsts, Senparc's Enums and WeChat's pages).
#[rustfmt::skip]
const EVENTS: &[&str] = &[
    "scan", "subscribe", "unsubscribe", "click", "view", "location",
    "view_miniprogram", "scancode_push", "scancode_waitmsg", "pic_sysphoto", "pic_photo_or_album", "pic_weixin",
    "location_select", "enter",
    "templatesendjobfinish", "masssendjobfinish", "publishjobfinish", "freepublishjobfinish",
    "subscribe_msg_popup_event", "subscribe_msg_change_event", "subscribe_msg_sent_event",
    "kf_create_session", "kf_close_session", "kf_switch_session",
    "user_info_modified", "user_authorization_revoke", "user_authorization_cancellation",
    "qualification_verify_success", "qualification_verify_fail", "naming_verify_success", "naming_verify_fail",
    "annual_renew", "verify_expired",
    "card_pass_check", "card_not_pass_check", "user_get_card", "user_gifting_card", "user_del_card",
    "user_consume_card", "user_pay_from_pay_cell", "user_view_card", "user_enter_session_from_card",
    "update_member_card", "card_sku_remind", "card_pay_order", "submit_membercard_user_info", "giftcard_pay_done",
    "giftcard_send_to_friend", "giftcard_user_accept", "merchant_order", "poi_check_notify", "wificonnected",
    "shakearoundusershake", "user_scan_product", "user_scan_product_enter_session", "user_scan_product_async",
    "user_scan_product_verify_action", "subscribe_scan_product", "user_authorize_invoice", "update_invoice_status",
    "submit_invoice_title", "apply_merchant_audit_info", "create_map_poi_audit_info", "add_store_audit_info",
    "modify_store_audit_info", "bind", "unbind", "subscribe_status", "unsubscribe_status", "guide_qrcode_scan_event",
    "open_product_order_pay",
    "user_enter_tempsession", "weapp_audit_success", "weapp_audit_fail", "weapp_audit_delay", "wxa_media_check",
    "wxa_nickname_audit", "wxa_illegal_record", "wxa_appeal_record", "wxa_privacy_apply", "wxa_category_audit",
    "wx_verify_pay_succ", "wx_verify_dispatch", "debug_demo",
];

/// A field's text without white space around it.
///
/// Nearly every text begins and ends with a visible character of ASCII, which two comparisons show; `str::trim` decodes
/// the characters at both ends. It saves 500 instructions of a plan's 2,800.
pub fn trim(text: &str) -> &str {
    let is_visible = |end: Option<&u8>| end.is_none_or(u8::is_ascii_graphic);
    let bytes = text.as_bytes();
    if is_visible(bytes.first()) && is_visible(bytes.last()) { text } else { text.trim() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(name: &str, key: &str) -> Message {
        let text = format!(
            "<xml><MsgType><![CDATA[event]]></MsgType>\n<Event><![CDATA[{name}]]></Event>\n<EventKey><![CDATA[{key}]]></EventKey>\n</xml>"
        );
        Message::parse(text.as_bytes()).unwrap()
    }

    #[test]
    fn a_scene_is_found_in_scans_and_in_follows_by_qr_code_alone() {
        for (name, key, scene) in [
            ("SCAN", "login_7", Some("login_7")),
            ("scan", "qrscene_login_7", Some("login_7")),
            ("subscribe", "qrscene_123", Some("123")),
            ("subscribe", "last_trade_no_400", None),
            ("subscribe", "scanbarcode|a|b", None),
            ("subscribe", "qrscene_", None),
            ("subscribe", "", None),
            ("SCAN", "", None),
            ("CLICK", "qrscene_123", None),
        ] {
            assert_eq!(event(name, key).scene(), scene, "{name} {key}");
        }
    }

    #[test]
    fn the_fields_are_read_and_msgid_is_not_taken_for_a_job_number() {
        let text = "\u{feff} <xml><ToUserName><![CDATA[gh_1]]></ToUserName><FromUserName>o1</FromUserName>\
            <CreateTime> 1414387151 </CreateTime><MsgType>text</MsgType><Content>hi</Content><MsgID>9</MsgID></xml>";
        let message = Message::parse(text.as_bytes()).unwrap();
        assert_eq!((message.to_user(), message.from_user(), message.content()), ("gh_1", "o1", "hi"));
        assert_eq!(message.create_time(), Some(1_414_387_151));
        assert_eq!((message.msg_id(), message.event(), message.event_key()), (None, "", ""));
    }

    #[test]
    fn kinds_come_from_a_closed_list() {
        assert_eq!(event("TEMPLATESENDJOBFINISH", "").kind(), "templatesendjobfinish");
        assert_eq!(event("WifiConnected", "").kind(), "wificonnected");
        assert_eq!(event("LOCATION", "").kind(), "event_location");
        assert_eq!(event("made_up_tomorrow", "").kind(), "other");
        for (text, kind) in [
            ("<xml><MsgType>location</MsgType></xml>", "location"),
            ("<xml><MsgType>TEXT</MsgType></xml>", "text"),
            ("<xml><InfoType>component_verify_ticket</InfoType></xml>", "component"),
            ("<xml></xml>", "other"),
            (r#"{"MsgType":"event","Event":"debug_demo"}"#, "debug_demo"),
        ] {
            assert_eq!(Message::parse(text.as_bytes()).unwrap().kind(), kind, "{text}");
        }
        assert!(EVENTS.iter().all(|name| *name == name.to_ascii_lowercase()));
        let catalogue = include_str!("../../tests/data/pushes/catalogue.txt");
        let listed: Vec<_> = catalogue.lines().filter_map(|line| line.strip_prefix("Event ")).collect();
        assert_eq!(listed.len(), EVENTS.len());
        assert!(listed.iter().all(|name| event(name, "").kind() != "other"), "{listed:?}");
    }

    #[test]
    fn debug_shows_nothing_a_user_wrote() {
        let message = Message::parse(b"<xml><MsgType>text</MsgType><Content>my secret</Content></xml>").unwrap();
        assert_eq!(format!("{message:?}"), r#"Message { kind: "text", syntax: Xml, .. }"#);
    }

    #[test]
    fn what_is_neither_notation_is_refused() {
        assert!(matches!(Message::parse(b"success"), Err(MessageError::Unknown)));
        assert!(matches!(Message::parse(b" "), Err(MessageError::Unknown)));
        assert!(matches!(Message::parse(b"<xml>\xff</xml>"), Err(MessageError::NotUtf8)));
    }
}
