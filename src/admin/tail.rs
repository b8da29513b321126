//! What happens, as it happens, as server-sent events: `push`, `attempt`, and `lagged` for who reads too slowly.
//!
//! The stream is made when the connection can take it, so a reader that stalls costs what `tail` keeps for it, no more.
//! It ends when the relay stops.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context as Poller, Poll, ready};
use std::time::Duration;

use axum::body::Body;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http_body::Frame;
use serde::Deserialize;
use serde_json::json;

use super::{Context, Error};
use crate::tail::{Activity, WATCHERS, Watch, WatchItem};
use crate::telemetry::{self, OpenIds};

/// How long nothing is said before a comment shows that the connection lives.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// Which news; what is `None` does not matter. Unknown keys are errors.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Wanted {
    account: Option<String>,
    /// The kind, case-blind, as in `SCAN` or `text`.
    event: Option<String>,
    /// An OpenID, in clear or as the log shows it.
    from: Option<String>,
    /// Attempts for this target alone; no pushes then.
    target: Option<String>,
}

pub(super) async fn tail(
    State(context): State<Context>,
    wanted: Result<Query<Wanted>, QueryRejection>,
) -> Result<Response, Error> {
    let Query(wanted) = wanted?;
    let watch = context.state.tail.watch().ok_or(Error::TooManyWatch(WATCHERS))?;
    let reader = Reader { wanted: wanted.hashed(), watch };
    let hello = async { Some((Bytes::from_static(b": connected\n\n"), reader)) };
    let body = Body::new(Stream(Some(Box::pin(hello))));
    Ok(([(header::CONTENT_TYPE, "text/event-stream")], body).into_response())
}

/// Who reads, and what.
struct Reader {
    wanted: Filter,
    watch: Watch,
}

/// What is wanted, ready to be compared.
struct Filter {
    wanted: Wanted,
    /// `from` as a log with hashes shows it.
    hashed: Option<String>,
}

impl Wanted {
    fn hashed(self) -> Filter {
        let hashed = self.from.as_deref().map(|from| telemetry::openid(OpenIds::Hash, from).into_owned());
        Filter { wanted: self, hashed }
    }
}

impl Filter {
    fn lets_through(&self, news: &Activity) -> bool {
        let (account, kind, openid, target) = match news {
            Activity::Push(push) => (&push.account, push.kind, push.openid.as_deref(), None),
            Activity::Attempt(attempt) => {
                (&attempt.account, attempt.kind, Some(&*attempt.openid), Some(&*attempt.target))
            }
        };
        let Wanted { account: wanted_account, event, from, target: wanted_target } = &self.wanted;
        wanted_account.as_ref().is_none_or(|wanted| **wanted == **account)
            && event.as_ref().is_none_or(|wanted| wanted.eq_ignore_ascii_case(kind))
            && (from.is_none() || openid.is_some() && (openid == from.as_deref() || openid == self.hashed.as_deref()))
            && wanted_target.as_ref().is_none_or(|wanted| Some(&**wanted) == target)
    }
}

impl Reader {
    /// The next piece of the stream, and who reads on.
    async fn next(mut self) -> Option<(Bytes, Self)> {
        loop {
            let said = match tokio::time::timeout(KEEP_ALIVE, self.watch.next()).await {
                Err(_) => ": still here\n\n".to_owned(),
                Ok(None) => return None,
                Ok(Some(WatchItem::Lagged(missed))) => said("lagged", &json!({ "what": "lagged", "missed": missed })),
                Ok(Some(WatchItem::Activity(news))) if self.wanted.lets_through(&news) => match *news {
                    Activity::Push(_) => said("push", &*news),
                    Activity::Attempt(_) => said("attempt", &*news),
                },
                Ok(Some(WatchItem::Activity(_))) => continue,
            };
            return Some((said.into(), self));
        }
    }
}

/// One server-sent event.
fn said(event: &str, data: &impl serde::Serialize) -> String {
    // JSON has no line breaks, and these shapes have no keys that are not text.
    let data = serde_json::to_string(data).unwrap_or_default();
    format!("event: {event}\ndata: {data}\n\n")
}

type Next = Pin<Box<dyn Future<Output = Option<(Bytes, Reader)>> + Send>>;

/// The body: what comes next, until nothing does.
struct Stream(Option<Next>);

impl http_body::Body for Stream {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, poller: &mut Poller<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let Some(next) = &mut self.0 else { return Poll::Ready(None) };
        let piece = ready!(next.as_mut().poll(poller));
        Poll::Ready(match piece {
            Some((bytes, reader)) => {
                self.0 = Some(Box::pin(reader.next()));
                Some(Ok(Frame::data(bytes)))
            }
            None => {
                self.0 = None;
                None
            }
        })
    }
}
