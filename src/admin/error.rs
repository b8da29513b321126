//! The API's error responses: `{"error":".."}`.

use std::time::Duration;

use axum::Json;
use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::json;

use crate::event::BadEventId;
use crate::queue;

/// Why a request failed. The texts are for the operator who sent it.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error("a bearer token is needed: send `Authorization: Bearer` and the token of [admin] or of a user")]
    Token,
    #[error("too many wrong tokens from this address; the right one is served at any time")]
    TooManyTokens(Duration),
    #[error("without a token, only programs of this machine are served: use a loopback address")]
    Host,
    #[error("without a token, web pages of other sites are not served")]
    Origin,
    #[error("a viewer may only read, and look for no OpenID: send an operator's token")]
    Viewer,
    #[error("send Host once, as a host with a port or without")]
    BadHost,
    #[error("there is nothing at this path")]
    NoSuchPath,
    #[error("this path takes another method")]
    Method,
    #[error("{}", .0.body_text())]
    Query(#[from] QueryRejection),
    #[error("{}", .0.body_text())]
    Path(#[from] PathRejection),
    #[error("`{0}`: expected a time as 2026-11-20T08:00:00Z, or how long ago as 2h")]
    Time(&'static str),
    #[error("`state`: expected pending, delivered, dead, expired or cancelled")]
    State,
    #[error("`of`: expected account:NAME, target:NAME or total")]
    HistoryOf,
    #[error("nothing is known of this account or target; of many, only the busiest have a history")]
    NoHistory,
    #[error("`limit`: expected 1 to {0}")]
    Limit(usize),
    #[error("{0}")]
    EventId(#[from] BadEventId),
    #[error("there is no such event; finished ones are kept for `retention` of [queue]")]
    NoSuchEvent,
    #[error("there is no target of this name, neither configured nor with deliveries in the store")]
    NoSuchTarget,
    #[error("{}", with_remedy(.0))]
    Store(#[source] queue::Error),
    #[error("the store does not answer; see the relay's log")]
    NoStats,
    #[error("the relay is stopping")]
    Stopped,
    /// The configuration's errors, as text from the app.
    #[error("not reloaded; the old configuration stays in use: {}", .0.join("\n"))]
    Reload(Vec<String>),
    #[error("the relay accepts no reload now")]
    NoReload,
    #[error("the body: expected {0}")]
    BadBody(&'static str),
    #[error("the body did not come in time; send it with the head")]
    LateBody,
    #[error("the body: expected at most {} MiB", .0 >> 20)]
    LargeBody(usize),
    #[error("the relay is busy with other requests to the API; try again")]
    Busy,
    #[error("not done within {} s; what was done is stored, send it again; see the relay's log", .0.as_secs())]
    Late(Duration),
    #[error("{0}")]
    Json(#[source] serde_json::Error),
    #[error("send the OpenID in the body: queries end up in logs")]
    ForgetQuery,
    #[error("the events are deleted, but the store's files still hold unused bytes of them; retry: {}", with_remedy(.0))]
    NotWiped(#[source] queue::Error),
    #[error("which events? give one of account, event, from, target, state, since, until, or `all` as true")]
    NoFilter,
    #[error("too many watchers (limit {0})")]
    TooManyWatchers(usize),
    #[error("a target's deliveries can't be redirected to itself")]
    ToItself,
    #[error("`to`: there is no target of this name in the configuration")]
    NotConfigured,
    #[error("`folder`: there is no such folder in queue.path")]
    NoSuchFolder,
    #[error("a salvage runs already; GET /api/store/salvage shows it")]
    SalvageRuns,
    #[error("internal error; see the relay's log")]
    Internal,
}

/// What is wrong with the store, and how to fix it.
fn with_remedy(error: &queue::Error) -> String {
    error.remedy().map_or_else(|| error.to_string(), |remedy| format!("{error}: {remedy}"))
}

impl Error {
    pub(super) fn status(&self) -> StatusCode {
        match self {
            Self::Token => StatusCode::UNAUTHORIZED,
            Self::TooManyTokens(_) => StatusCode::TOO_MANY_REQUESTS,
            Self::Host | Self::Origin | Self::Viewer => StatusCode::FORBIDDEN,
            Self::NoSuchPath | Self::NoSuchEvent | Self::NoSuchTarget | Self::NoSuchFolder | Self::NoHistory => {
                StatusCode::NOT_FOUND
            }
            Self::Method => StatusCode::METHOD_NOT_ALLOWED,
            Self::BadHost
            | Self::Query(_)
            | Self::Path(_)
            | Self::Time(_)
            | Self::State
            | Self::Limit(_)
            | Self::HistoryOf
            | Self::EventId(_)
            | Self::BadBody(_)
            | Self::Json(_)
            | Self::ForgetQuery
            | Self::NoFilter
            | Self::ToItself
            | Self::NotConfigured => StatusCode::BAD_REQUEST,
            Self::LateBody => StatusCode::REQUEST_TIMEOUT,
            Self::LargeBody(_) => StatusCode::PAYLOAD_TOO_LARGE,
            Self::SalvageRuns => StatusCode::CONFLICT,
            Self::Reload(_) => StatusCode::UNPROCESSABLE_ENTITY,
            Self::Store(_)
            | Self::NotWiped(_)
            | Self::NoStats
            | Self::Stopped
            | Self::Busy
            | Self::Late(_)
            | Self::NoReload
            | Self::TooManyWatchers(_) => StatusCode::SERVICE_UNAVAILABLE,
            Self::Internal => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }
}

impl IntoResponse for Error {
    fn into_response(self) -> Response {
        let mut body = json!({ "error": self.to_string() });
        if let Self::Reload(errors) = &self {
            body["errors"] = json!(errors);
        }
        let mut response = (self.status(), Json(body)).into_response();
        match self {
            Self::Token => response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer")),
            Self::TooManyTokens(remaining) => {
                response.headers_mut().insert(header::RETRY_AFTER, (remaining.as_secs() + 1).into())
            }
            _ => None,
        };
        response
    }
}
