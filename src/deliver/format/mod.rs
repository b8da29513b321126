//! How an event is written for a target: one file per format, each a pure function of the event.

mod authing_json;
mod cloudevents;
mod json;
pub(super) mod wechat;

use bytes::Bytes;

use super::{Format, Target};
use crate::clock::UnixMillis;
use crate::event::Event;
use crate::wechat::Credentials;

/// An event, written for a target.
#[derive(Debug)]
pub(super) struct Encoded {
    pub(super) query: Option<String>,
    pub(super) content_type: &'static str,
    pub(super) body: Bytes,
}

/// Why an event can't be written.
#[derive(Debug, thiserror::Error)]
pub enum EncodeError {
    /// The account's token and key are needed to sign for this target.
    #[error("the account is no longer configured, and `wechat` needs its credentials")]
    UnknownAccount,
    /// No random bytes.
    #[error("the system gives no random bytes")]
    Random(#[from] getrandom::Error),
    /// The request's URL or headers can't be made.
    #[error("the request can't be made")]
    Http(#[from] http::Error),
    /// A header's value can't be sent.
    #[error("a header can't be sent")]
    Header(#[from] http::header::InvalidHeaderValue),
    /// The JSON can't be written.
    #[error("the JSON can't be written")]
    Json(#[from] serde_json::Error),
    /// The stored push does not parse.
    #[error("the stored push does not parse")]
    Stored(#[source] crate::wechat::MessageError),
}

/// Writes `event` for a target. `credentials` are those the target shares with the event's account.
pub(super) fn encode(
    target: &Target,
    event: &Event,
    credentials: Option<&Credentials>,
    now: UnixMillis,
) -> Result<Encoded, EncodeError> {
    match target.format {
        Format::Raw => {
            Ok(Encoded { query: Some(event.query.clone()), content_type: "text/xml", body: event.body.clone() })
        }
        Format::Wechat => {
            let credentials = credentials.ok_or(EncodeError::UnknownAccount)?;
            wechat::encode(event, credentials, target.bare_scene, now)
        }
        Format::Json => json::encode(event),
        Format::CloudEvents => cloudevents::encode(event),
        Format::AuthingJson => authing_json::encode(event),
    }
}

/// The text of an event's message as XML; a JSON push is converted.
fn xml(event: &Event) -> std::borrow::Cow<'_, str> {
    use crate::wechat::{Syntax, xml};
    match event.message.syntax {
        // Checked as a whole, as it is sound: `from_utf8_lossy` looks for what to replace, for 2,500 instructions more.
        Syntax::Xml => std::str::from_utf8(&event.clear)
            .map_or_else(|_| String::from_utf8_lossy(&event.clear), std::borrow::Cow::Borrowed),
        Syntax::Json => xml::render(&event.message.root).into(),
    }
}

fn or_null(text: &str) -> Option<&str> {
    (!text.is_empty()).then_some(text)
}
