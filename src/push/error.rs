//! Why a push is refused, what WeChat sees of it, and its names in metrics and logs.

use bytes::Bytes;
use http::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use http::{Response, StatusCode};
use http_body_util::Full;

use crate::wechat::{OpenError, QueryError};

/// Why a push is refused.
#[derive(Debug, thiserror::Error)]
pub enum PushError {
    /// No account has this path.
    #[error("unknown path")]
    UnknownPath,
    /// It comes from outside the account's `allow_from`, whose `deny` is set.
    #[error("not from an allowed address")]
    Source,
    /// Its `Host` is missing, repeated or malformed.
    #[error("bad host")]
    Host,
    /// Neither GET nor POST.
    #[error("method not allowed")]
    Method,
    /// The query is malformed.
    #[error("bad query")]
    Query(#[from] QueryError),
    /// It fails verification or decryption.
    #[error("refused")]
    Open(#[from] OpenError),
    /// Its timestamp is too far from our clock.
    #[error("stale timestamp")]
    Stale,
    /// The body is larger than `server.max_body`.
    #[error("body too large")]
    TooLarge,
    /// The body ended early or its framing is wrong.
    #[error("broken body")]
    BrokenBody,
    /// Too many bodies are still to come, or another one came with the same signature.
    #[error("busy")]
    Busy,
    /// It could not be stored; a retry may succeed.
    #[error("can't be stored")]
    Unavailable,
    /// It was not received, or not stored, by the deadline; it may be stored later.
    #[error("too late")]
    Late,
    /// An internal error.
    #[error("internal error")]
    Internal,
}

impl PushError {
    /// The status that WeChat sees.
    pub fn status(&self) -> StatusCode {
        match self {
            Self::UnknownPath => StatusCode::NOT_FOUND,
            Self::Method => StatusCode::METHOD_NOT_ALLOWED,
            Self::Host | Self::Query(_) | Self::BrokenBody => StatusCode::BAD_REQUEST,
            Self::Open(error) => open_error(error).0,
            Self::Stale | Self::Source => StatusCode::FORBIDDEN,
            Self::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::Busy | Self::Unavailable | Self::Late => StatusCode::SERVICE_UNAVAILABLE,
            Self::Internal => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    /// The `result` label of `wxrelay_pushes_total`.
    pub fn label(&self) -> &'static str {
        match self {
            Self::UnknownPath => "unknown_path",
            Self::Method => "method",
            Self::Host | Self::Query(_) | Self::BrokenBody => "malformed",
            Self::Open(error) => open_error(error).1,
            Self::Source => "source",
            Self::Stale => "stale",
            Self::TooLarge => "too_large",
            Self::Busy => "busy",
            Self::Unavailable => "unavailable",
            Self::Late => "late",
            Self::Internal => "internal",
        }
    }

    /// The body is one neutral word: WeChat's alarms quote it.
    pub fn response(&self) -> Response<Full<Bytes>> {
        let status = self.status();
        let word: &'static [u8] = match status {
            StatusCode::BAD_REQUEST => b"bad",
            StatusCode::FORBIDDEN => b"forbidden",
            StatusCode::NOT_FOUND => b"unknown",
            StatusCode::METHOD_NOT_ALLOWED => b"method",
            StatusCode::PAYLOAD_TOO_LARGE => b"large",
            StatusCode::SERVICE_UNAVAILABLE => b"busy",
            _ => b"error",
        };
        let mut response = Response::new(Full::new(Bytes::from_static(word)));
        *response.status_mut() = status;
        response.headers_mut().insert(CONTENT_TYPE, super::PLAIN);
        if matches!(self, Self::Method) {
            response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, POST"));
        }
        response
    }
}

/// The status and the label of a push that fails verification or decryption.
///
/// A request that could be WeChat's push to another account, or an attack, gets 403; one that is not a push gets 400. A
/// signature that is not hex is a wrong signature.
fn open_error(error: &OpenError) -> (StatusCode, &'static str) {
    match error {
        OpenError::Signature | OpenError::Malformed("signature" | "msg_signature") => {
            (StatusCode::FORBIDDEN, "signature")
        }
        OpenError::ModeMismatch => (StatusCode::FORBIDDEN, "mode"),
        OpenError::Envelope(_) | OpenError::Addressee => (StatusCode::FORBIDDEN, "envelope"),
        OpenError::BadQuery(_) | OpenError::Missing(_) | OpenError::Malformed(_) => {
            (StatusCode::BAD_REQUEST, "malformed")
        }
        OpenError::EmptyBody | OpenError::Body(_) | OpenError::NotBase64 | OpenError::Clear(_) => {
            (StatusCode::BAD_REQUEST, "bad_body")
        }
        OpenError::NoKey => (StatusCode::INTERNAL_SERVER_ERROR, "internal"),
    }
}
