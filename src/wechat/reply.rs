//! Passive replies: what a target may answer to a push, and what WeChat accepts.
//!
//! Invariants: every reply that [`Reply::parse`] accepts is legal for WeChat, which shows users an error for anything
//! else, but that a text may be too long; errors never quote the reply, and `Debug` shows its kind alone. Limits are
//! WeChat's page on passive replies and what was measured (text: 2048 bytes). Deliberately not here: sealing
//! (`sealing`).

use std::fmt;

use serde::{Deserialize, Deserializer};

use super::account::OpenError;
use super::json;
use super::message::{Element, Message, MessageError, Syntax, trim};
use super::xml;

/// Bytes of UTF-8 that a text reply may have; above, users see WeChat's error.
pub const MAX_TEXT: usize = 2048;
/// The most articles that a reply may have. WeChat shows all or the first, by the kind of event.
const MAX_ARTICLES: usize = 8;

/// A reply in clear. Missing parts of its envelope are taken from the push when it is rendered.
#[derive(Clone, PartialEq, Eq, Deserialize)]
pub struct Reply {
    /// The OpenID that it goes to.
    #[serde(default)]
    pub to_user: Option<String>,
    /// The account's `gh_` name.
    #[serde(default)]
    pub from_user: Option<String>,
    /// Seconds since 1970.
    #[serde(default)]
    pub create_time: Option<u64>,
    /// Its kind and content.
    #[serde(flatten)]
    pub body: ReplyBody,
}

/// The kinds of reply, by `msg_type`.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(tag = "msg_type", rename_all = "snake_case")]
pub enum ReplyBody {
    /// A text; what is longer than WeChat takes is cut or split before it is sent (`long_text`).
    Text {
        /// The text; line ends are kept.
        content: String,
    },
    /// A picture.
    Image {
        /// The id of an uploaded picture.
        media_id: String,
    },
    /// A voice message.
    Voice {
        /// The id of an uploaded recording.
        media_id: String,
    },
    /// A video.
    Video {
        /// The id of an uploaded video.
        media_id: String,
        /// Its title.
        #[serde(default)]
        title: Option<String>,
        /// Its description.
        #[serde(default)]
        description: Option<String>,
    },
    /// A piece of music.
    Music {
        /// Its title.
        #[serde(default)]
        title: Option<String>,
        /// Its description.
        #[serde(default)]
        description: Option<String>,
        /// Where it is.
        #[serde(default)]
        music_url: Option<String>,
        /// Where it is in better quality.
        #[serde(default)]
        hq_music_url: Option<String>,
        /// The id of an uploaded thumbnail. WeChat's page requires it, and WeChat does without.
        #[serde(default)]
        thumb_media_id: Option<String>,
    },
    /// Links with pictures.
    News {
        /// One to eight.
        articles: Vec<Article>,
    },
    /// Transfers the user to the account's customer service.
    TransferCustomerService {
        /// The account of the agent to transfer to.
        #[serde(default)]
        kf_account: Option<String>,
    },
}

/// One link of a `news` reply. An element that is missing (`None`) is not sent either, and an empty one is sent empty:
/// WeChat takes both from those who answer it directly.
#[derive(Clone, PartialEq, Eq, Deserialize)]
pub struct Article {
    /// Its title.
    pub title: String,
    /// Its description.
    #[serde(default = "empty")]
    pub description: Option<String>,
    /// The URL of its picture.
    #[serde(default = "empty")]
    pub pic_url: Option<String>,
    /// Where it leads; without it, the user sees the article and cannot tap it.
    #[serde(default = "empty")]
    pub url: Option<String>,
}

/// An element that is there and empty, as the SDKs write what an article lacks.
#[expect(clippy::unnecessary_wraps, reason = "the type of the fields")]
fn empty() -> Option<String> {
    Some(String::new())
}

/// Why a target's answer is not a reply that WeChat would take. The texts name the form that is expected.
#[derive(Debug, thiserror::Error)]
pub enum ReplyError {
    /// Neither XML nor JSON.
    #[error("the answer is no reply; expected nothing, `success`, reply XML or {JSON_FORM}")]
    Unreadable(#[source] MessageError),
    /// JSON, but not `{"reply":{"msg_type":...}}` with the fields of its kind.
    #[error("the answer's JSON is not a reply; expected {JSON_FORM}, with the fields of its kind")]
    Json,
    /// XML of an unknown MsgType, or of none.
    #[error(
        "the reply's MsgType is unknown to WeChat; expected <xml> with the MsgType text, image, voice, video, music, \
         news or transfer_customer_service"
    )]
    MsgType,
    /// It is encrypted, where a clear one is expected.
    #[error("the reply is encrypted; expected a clear one, as the target's format has no key")]
    Sealed,
    /// It is encrypted, and cannot be decrypted with the credentials that the target shares with the relay.
    #[error("the encrypted reply does not open with the token, aes_key and AppID of its push")]
    Unopened(#[source] OpenError),
    /// A field that its kind needs is missing or empty; its name in XML.
    #[error("the reply's {0} is missing or empty")]
    Empty(&'static str),
    /// No article, or more than eight.
    #[error("the reply has {0} articles; expected 1 to 8")]
    Articles(usize),
    /// It names another user than the sender of the push.
    #[error("it names another user than the sender of the push, and may be the reply to that user")]
    OtherUser,
    /// It is compressed: the relay sends no `Accept-Encoding`, and decompresses nothing. The coding's name.
    #[error("the answer has Content-Encoding {0}; expected one without it")]
    Encoded(&'static str),
    /// It is longer than the part of an answer that is read.
    #[error("the answer is longer than 256 KiB")]
    TooLarge,
    /// Its end did not arrive.
    #[error("the reply broke off before its end")]
    BrokenOff,
}

/// The form of a reply in JSON, for the texts of errors.
const JSON_FORM: &str = r#"{"reply":{"msg_type":"text","content":"..."}}"#;

impl Reply {
    /// A reply whose envelope is filled in when it is rendered.
    pub fn new(body: ReplyBody) -> Self {
        Self { to_user: None, from_user: None, create_time: None, body }
    }

    /// Whether WeChat would accept it.
    pub fn check(&self) -> Result<(), ReplyError> {
        match &self.body {
            ReplyBody::Text { content } => filled(content, "Content"),
            ReplyBody::Image { media_id } | ReplyBody::Voice { media_id } | ReplyBody::Video { media_id, .. } => {
                filled(media_id, "MediaId")
            }
            ReplyBody::Music { music_url, hq_music_url, thumb_media_id, .. } => {
                let any = [music_url, hq_music_url, thumb_media_id].into_iter().any(|part| filled_in(part).is_some());
                if any { Ok(()) } else { Err(ReplyError::Empty("MusicUrl")) }
            }
            ReplyBody::News { articles } => match articles.len() {
                1..=MAX_ARTICLES => articles.iter().try_for_each(|article| filled(&article.title, "Title")),
                number => Err(ReplyError::Articles(number)),
            },
            ReplyBody::TransferCustomerService { .. } => Ok(()),
        }
    }

    /// Reads a target's answer; `None` where it has nothing to say: nothing, blanks or `success`.
    pub fn parse(body: &[u8]) -> Result<Option<Self>, ReplyError> {
        let text = body.strip_prefix("\u{feff}".as_bytes()).unwrap_or(body).trim_ascii();
        if text.is_empty() || text == b"success" {
            return Ok(None);
        }
        let reply = if text.starts_with(b"{") {
            let sealed = || Message::parse(text).is_ok_and(|message| message.root.child("Encrypt").is_some());
            let answer = serde_json::from_slice(text);
            let JsonReply { reply } =
                answer.map_err(|_| if sealed() { ReplyError::Sealed } else { ReplyError::Json })?;
            reply
        } else {
            let message = Message::parse(text).map_err(ReplyError::Unreadable)?;
            Some(Self::of_element(&message.root)?)
        };
        if let Some(reply) = &reply {
            reply.check()?;
        }
        Ok(reply)
    }

    /// The clear reply to a push, in the push's own notation.
    ///
    /// It goes from the push's receiver to its sender unless it says otherwise. Characters that XML forbids are left
    /// out: the users of WeChat would see an error instead of the reply.
    pub fn render(&self, message: &Message, now_seconds: i64) -> String {
        let create_time = self.create_time.and_then(seconds).unwrap_or(u64::try_from(now_seconds).unwrap_or(0));
        let (to, from) = (self.to_user.as_deref().and_then(clean_name), self.from_user.as_deref().and_then(clean_name));
        let mut root = Element::new("xml");
        root.children = vec![
            text("ToUserName", to.as_deref().unwrap_or(message.from_user())),
            text("FromUserName", from.as_deref().unwrap_or(message.to_user())),
            text("CreateTime", &create_time.to_string()),
            text("MsgType", self.body.msg_type()),
        ];
        self.body.write(&mut root.children);
        match message.syntax {
            Syntax::Xml => xml::render(&root),
            Syntax::Json => {
                let mut object = json::message(&root);
                object["CreateTime"] = create_time.into();
                object.to_string()
            }
        }
    }

    fn of_element(root: &Element) -> Result<Self, ReplyError> {
        if root.child("Encrypt").is_some() {
            return Err(ReplyError::Sealed);
        }
        let name = |element| root.text_of(element).and_then(clean_name);
        Ok(Self {
            to_user: name("ToUserName"),
            from_user: name("FromUserName"),
            create_time: root.text_of("CreateTime").and_then(|text| text.trim_ascii().parse().ok()),
            body: ReplyBody::of_element(root)?,
        })
    }
}

impl fmt::Debug for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reply").field("body", &self.body).finish_non_exhaustive()
    }
}

impl fmt::Debug for ReplyBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.msg_type())
    }
}

impl fmt::Debug for Article {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Article").finish_non_exhaustive()
    }
}

impl ReplyBody {
    /// The `MsgType` of WeChat.
    pub fn msg_type(&self) -> &'static str {
        match self {
            Self::Text { .. } => "text",
            Self::Image { .. } => "image",
            Self::Voice { .. } => "voice",
            Self::Video { .. } => "video",
            Self::Music { .. } => "music",
            Self::News { .. } => "news",
            Self::TransferCustomerService { .. } => "transfer_customer_service",
        }
    }

    fn of_element(root: &Element) -> Result<Self, ReplyError> {
        let none = Element::default();
        let part = |name| root.child(name).unwrap_or(&none);
        Ok(match trim(root.text_of("MsgType").unwrap_or_default()) {
            "text" => Self::Text { content: required(root, "Content") },
            "image" => Self::Image { media_id: required(part("Image"), "MediaId") },
            "voice" => Self::Voice { media_id: required(part("Voice"), "MediaId") },
            "video" => {
                let video = part("Video");
                Self::Video {
                    media_id: required(video, "MediaId"),
                    title: optional(video, "Title"),
                    description: optional(video, "Description"),
                }
            }
            "music" => {
                let music = part("Music");
                Self::Music {
                    title: optional(music, "Title"),
                    description: optional(music, "Description"),
                    music_url: optional(music, "MusicUrl"),
                    hq_music_url: optional(music, "HQMusicUrl"),
                    thumb_media_id: optional(music, "ThumbMediaId"),
                }
            }
            "news" => Self::News { articles: part("Articles").children.iter().map(Article::of_element).collect() },
            "transfer_customer_service" => {
                Self::TransferCustomerService { kf_account: optional(part("TransInfo"), "KfAccount") }
            }
            _ => return Err(ReplyError::MsgType),
        })
    }

    fn write(&self, out: &mut Vec<Element>) {
        match self {
            Self::Text { content } => out.push(text("Content", content)),
            Self::Image { media_id } => out.push(group("Image", [("MediaId", Some(media_id))])),
            Self::Voice { media_id } => out.push(group("Voice", [("MediaId", Some(media_id))])),
            Self::Video { media_id, title, description } => out.push(group(
                "Video",
                [("MediaId", Some(media_id)), ("Title", filled_in(title)), ("Description", filled_in(description))],
            )),
            Self::Music { title, description, music_url, hq_music_url, thumb_media_id } => out.push(group(
                "Music",
                [
                    ("Title", filled_in(title)),
                    ("Description", filled_in(description)),
                    ("MusicUrl", filled_in(music_url)),
                    ("HQMusicUrl", filled_in(hq_music_url)),
                    ("ThumbMediaId", filled_in(thumb_media_id)),
                ],
            )),
            Self::News { articles } => {
                out.push(text("ArticleCount", &articles.len().to_string()));
                let children = articles.iter().map(Article::element).collect();
                out.push(Element { children, ..Element::new("Articles") });
            }
            Self::TransferCustomerService { kf_account } => {
                out.extend(filled_in(kf_account).map(|account| group("TransInfo", [("KfAccount", Some(account))])));
            }
        }
    }
}

impl Article {
    fn of_element(item: &Element) -> Self {
        Self {
            title: required(item, "Title"),
            description: item.text_of("Description").map(str::to_owned),
            pic_url: item.text_of("PicUrl").map(str::to_owned),
            url: item.text_of("Url").map(str::to_owned),
        }
    }

    fn element(&self) -> Element {
        let Self { title, description, pic_url, url } = self;
        group(
            "item",
            [
                ("Title", Some(title)),
                ("Description", description.as_ref()),
                ("PicUrl", pic_url.as_ref()),
                ("Url", url.as_ref()),
            ],
        )
    }
}

/// `null` is no reply, but the key is required: JSON without it is not a reply.
#[derive(Deserialize)]
struct JsonReply {
    #[serde(deserialize_with = "reply_or_null")]
    reply: Option<Reply>,
}

fn reply_or_null<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Reply>, D::Error> {
    Option::deserialize(deserializer)
}

/// Whether anything remains of a text without the characters that XML forbids.
fn filled(value: &str, name: &'static str) -> Result<(), ReplyError> {
    if legal(value).trim_ascii().is_empty() { Err(ReplyError::Empty(name)) } else { Ok(()) }
}

/// In seconds: the npm packages `wechat` and `co-wechat` write milliseconds. Any other number is no time.
fn seconds(create_time: u64) -> Option<u64> {
    match create_time {
        ..=99_999_999_999 => Some(create_time),
        100_000_000_000..=99_999_999_999_999 => Some(create_time / 1000),
        _ => None,
    }
}

/// The child's text; empty where it is missing, for [`Reply::check`] to find.
fn required(element: &Element, name: &str) -> String {
    element.text_of(name).unwrap_or_default().to_owned()
}

/// A name without what XML forbids and the white space around the rest; `None` where nothing is left.
pub(super) fn clean_name(name: &str) -> Option<String> {
    let legal = legal(name);
    let name = trim(&legal);
    (!name.is_empty()).then(|| name.to_owned())
}

/// An optional text, left out where nothing of it would be sent.
fn filled_in(text: &Option<String>) -> Option<&String> {
    text.as_ref().filter(|text| !legal(text).is_empty())
}

fn optional(element: &Element, name: &str) -> Option<String> {
    element.text_of(name).filter(|text| !text.is_empty()).map(str::to_owned)
}

fn text(name: &str, value: &str) -> Element {
    Element::with_text(name, legal(value))
}

fn group<const N: usize>(name: &str, fields: [(&str, Option<&String>); N]) -> Element {
    let children = fields.into_iter().filter_map(|(name, value)| value.map(|value| text(name, value))).collect();
    Element { children, ..Element::new(name) }
}

/// The text without what XML 1.0 forbids.
pub(super) fn legal(text: &str) -> String {
    text.chars().filter(|c| matches!(c, '\t' | '\n' | '\r' | '\u{20}'..='\u{fffd}' | '\u{10000}'..)).collect()
}

#[cfg(test)]
#[path = "reply_tests.rs"]
mod tests;
