//! WeChat's message-push protocol: signatures, envelope, XML and JSON, replies.
//!
//! Pure: no network, no clock, no configuration; the time and random bytes come in as arguments. The facts are WeChat's
//! own (developers.weixin.qq.com, guide/dev/push) and, beyond those, what SDK authors found out; each is cited where it
//! matters.

#![warn(missing_docs)]

pub mod account;
mod addressing;
pub mod envelope;
pub mod json;
mod long_text;
pub mod message;
mod outer;
pub mod query;
pub mod reply;
mod sealing;
pub mod signature;
pub mod xml;

#[cfg(test)]
mod account_tests;
#[cfg(test)]
mod timing_tests;
#[cfg(test)]
mod vector_tests;

pub use account::{Credentials, KeyVersion, Mode, OpenError, Opened, ReplySealing};
pub use envelope::AesKey;
pub use long_text::{LongText, MAX_CONTENT, NextReply, Piece, ReplyContent};
pub use message::{Element, Message, MessageError, Syntax};
pub use query::{Query, QueryError};
pub use reply::{Reply, ReplyBody, ReplyError};
pub use sealing::{Salt, SealedPush};
pub use xml::XmlError;
