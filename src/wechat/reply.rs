//! Passive replies: what a target may answer to a push, and what WeChat accepts.
//!
//! Invariants: every reply that [`Reply::parse`] accepts is legal for WeChat, which shows users an error for anything
//! else, but that a text may be too long; errors never quote the reply, and `Debug` shows its kind alone. Limits are WeChat's page on passive replies
//! and what was measured (text: 2048 bytes). Deliberately not here: sealing (`sealing`).

use std::fmt;

use serde::{Deserialize, Deserializer};

use super::account::OpenError;
use super::json;
use super::message::{Element, Message, MessageError, Syntax};
use super::xml;

/// Bytes of UTF-8 that a text reply may have; above, users see WeChat's error.
pub(super) const MAX_TEXT: usize = 2048;

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
        /// The id of an uploaded thumbnail.
        thumb_media_id: String,
    },
    /// A link with a picture; one since October 2018.
    News {
        /// Exactly one.
        articles: Vec<Article>,
    },
    /// Transfers the user to the account's customer service.
    TransferCustomerService {
        /// The account of the agent to transfer to.
        #[serde(default)]
        kf_account: Option<String>,
    },
}

/// One link of a `news` reply.
#[derive(Clone, PartialEq, Eq, Deserialize)]
pub struct Article {
    /// Its title.
    pub title: String,
    /// Its description.
    #[serde(default)]
    pub description: String,
    /// The URL of its picture.
    #[serde(default)]
    pub pic_url: String,
    /// Where it leads.
    pub url: String,
}

/// Why a target's answer is not a reply that WeChat would take.
#[derive(Debug, thiserror::Error)]
pub enum ReplyError {
    /// Neither XML nor JSON.
    #[error("the reply is neither empty, nor `success`, nor well-formed XML or JSON")]
    Unreadable(#[source] MessageError),
    /// JSON, but not `{"reply":{"msg_type":...}}` with the fields of its kind.
    #[error("the reply's JSON is not {{\"reply\":{{\"msg_type\":...}}}} with the fields of its kind")]
    Json,
    /// XML of an unknown MsgType, or of none.
    #[error("the reply's MsgType is unknown to WeChat")]
    MsgType,
    /// It is encrypted, where a clear one is expected.
    #[error("the reply is encrypted, and the target is not of format `wechat`")]
    Sealed,
    /// It is encrypted, and cannot be decrypted with the target's credentials.
    #[error("the encrypted reply does not open with the target's token, aes_key and AppID")]
    Unopened(#[source] OpenError),
    /// A field that its kind needs is missing or empty; its name in XML.
    #[error("the reply's {0} is missing or empty")]
    Empty(&'static str),
    /// Not exactly one article.
    #[error("the reply has not exactly one article")]
    Articles,
    /// It is longer than the part of an answer that is read.
    #[error("the answer is longer than 256 KiB")]
    TooLarge,
    /// Its end did not arrive.
    #[error("the reply broke off before its end")]
    BrokenOff,
}

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
            ReplyBody::Music { thumb_media_id, .. } => filled(thumb_media_id, "ThumbMediaId"),
            ReplyBody::News { articles } => match articles.as_slice() {
                [article] => filled(&article.title, "Title").and_then(|()| filled(&article.url, "Url")),
                _ => Err(ReplyError::Articles),
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
        let mut root = Element::new("xml");
        root.children = vec![
            text("ToUserName", filled_in(&self.to_user).map_or(message.from_user(), String::as_str)),
            text("FromUserName", filled_in(&self.from_user).map_or(message.to_user(), String::as_str)),
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
        let owned = |name| root.text_of(name).filter(|text| !text.is_empty()).map(str::to_owned);
        Ok(Self {
            to_user: owned("ToUserName"),
            from_user: owned("FromUserName"),
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
        Ok(match root.text_of("MsgType").unwrap_or_default() {
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
                    thumb_media_id: required(music, "ThumbMediaId"),
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
                    ("ThumbMediaId", Some(thumb_media_id)),
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
            description: required(item, "Description"),
            pic_url: required(item, "PicUrl"),
            url: required(item, "Url"),
        }
    }

    fn element(&self) -> Element {
        let Self { title, description, pic_url, url } = self;
        group(
            "item",
            [("Title", Some(title)), ("Description", Some(description)), ("PicUrl", Some(pic_url)), ("Url", Some(url))],
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
