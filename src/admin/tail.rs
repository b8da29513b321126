//! Activity as server-sent events: `push`, `attempt`, and `lagged` for a client that reads too slowly.
//!
//! The stream is produced as fast as the connection accepts it, so a stalled client costs no more than its buffer in
//! `tail`. The stream ends when the relay stops.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context as Poller, Poll, ready};
use std::time::Duration;

use axum::body::Body;
use axum::extract::Request;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http_body::Frame;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::caller::{Caller, hashed};
use super::endpoint::query;
use super::{Context, Error};
use crate::tail::{Activity, WATCHERS, Watch, WatchItem};
use crate::telemetry::{self, OpenIds};

/// A comment after this silence shows that the connection is alive.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// The length of an OpenID that is a hash already, as `log.openid` says.
const HASHED: usize = 12;

/// Filters activity; `None` matches all. Unknown keys are errors.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct TailQuery {
    account: Option<String>,
    /// The kind, in any case, as in `SCAN` or `text`.
    event: Option<String>,
    /// An OpenID, in clear or as the log shows it.
    from: Option<String>,
    /// Only attempts at this target, and no pushes.
    target: Option<String>,
}

pub(super) async fn tail(context: Context, request: Request) -> Result<Response, Error> {
    let hides = Caller::of(&request).is_viewer();
    stream(&context, &request, hides)
}

/// The stream that a request asks for. `hides`: OpenIDs as hashes.
pub(super) fn stream(context: &Context, request: &Request, hides: bool) -> Result<Response, Error> {
    let query: TailQuery = query(request)?;
    let watch = context.state.tail.watch().ok_or(Error::TooManyWatchers(WATCHERS))?;
    let reader = EventReader { filter: query.into_filter(), watch, hides };
    let hello = async { Some((Bytes::from_static(b": connected\n\n"), reader)) };
    let body = Body::new(EventStream(Some(Box::pin(hello))));
    Ok(([(header::CONTENT_TYPE, "text/event-stream")], body).into_response())
}

struct EventReader {
    filter: TailFilter,
    watch: Watch,
    /// Whether OpenIDs are shown as hashes, whatever the log does.
    hides: bool,
}

/// A query, prepared for comparisons.
struct TailFilter {
    query: TailQuery,
    /// `from` as a hash, as the log may show it.
    hashed: Option<String>,
}

impl TailQuery {
    fn into_filter(self) -> TailFilter {
        let hashed = self.from.as_deref().map(|from| telemetry::openid(OpenIds::Hash, from).into_owned());
        TailFilter { query: self, hashed }
    }
}

impl TailFilter {
    fn matches(&self, activity: &Activity) -> bool {
        let (account, kind, openid, target) = match activity {
            Activity::Push(push) => (&push.account, push.kind, push.openid.as_deref(), None),
            Activity::Attempt(attempt) => {
                (&attempt.account, attempt.kind, Some(&*attempt.openid), Some(&*attempt.target))
            }
        };
        let TailQuery { account: wanted_account, event, from, target: wanted_target } = &self.query;
        wanted_account.as_ref().is_none_or(|wanted| **wanted == **account)
            && event.as_ref().is_none_or(|wanted| wanted.eq_ignore_ascii_case(kind))
            && (from.is_none() || openid.is_some() && (openid == from.as_deref() || openid == self.hashed.as_deref()))
            && wanted_target.as_ref().is_none_or(|wanted| Some(&**wanted) == target)
    }
}

impl EventReader {
    /// The next piece of the stream, and the reader for the one after.
    async fn next(mut self) -> Option<(Bytes, Self)> {
        // One deadline for all that the filter drops: a quiet filter on a busy relay needs its keep-alive too.
        let keep_alive = Instant::now() + KEEP_ALIVE;
        loop {
            let piece = match tokio::time::timeout_at(keep_alive, self.watch.next()).await {
                Err(_) => ": keep-alive\n\n".to_owned(),
                Ok(None) => return None,
                Ok(Some(WatchItem::Lagged(missed))) => {
                    server_sent_event("lagged", &json!({ "what": "lagged", "missed": missed }))
                }
                Ok(Some(WatchItem::Activity(activity))) if self.filter.matches(&activity) => {
                    let kind = match *activity {
                        Activity::Push(_) => "push",
                        Activity::Attempt(_) => "attempt",
                    };
                    server_sent_event(kind, &shown(&activity, self.hides))
                }
                Ok(Some(WatchItem::Activity(_))) => continue,
            };
            return Some((piece.into(), self));
        }
    }
}

fn shown(activity: &Activity, hides: bool) -> Value {
    // Serializing cannot fail: all keys of these types are text.
    let mut shown = serde_json::to_value(activity).unwrap_or_default();
    if let (true, Some(openid)) = (hides, shown["openid"].as_str().filter(|openid| openid.len() > HASHED)) {
        shown["openid"] = hashed(openid).into();
    }
    shown
}

/// One server-sent event. Compact JSON has no line breaks.
fn server_sent_event(event: &str, data: &Value) -> String {
    format!("event: {event}\ndata: {data}\n\n")
}

type Next = Pin<Box<dyn Future<Output = Option<(Bytes, EventReader)>> + Send>>;

/// The body: piece after piece, until the tail is closed.
struct EventStream(Option<Next>);

impl http_body::Body for EventStream {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tail::Tail;

    #[tokio::test(start_paused = true)]
    async fn a_filter_that_drops_everything_keeps_the_connection_alive() {
        let tail = Tail::default();
        let query = TailQuery { account: Some("other".to_owned()), ..TailQuery::default() };
        let reader = EventReader { filter: query.into_filter(), watch: tail.watch().unwrap(), hides: false };
        let busy = async {
            for _ in 0..9 {
                tokio::time::sleep(KEEP_ALIVE / 3).await;
                tail.publish(Activity::sample_push);
            }
        };
        let started = Instant::now();
        let piece = tokio::select! {
            next = reader.next() => next.unwrap().0,
            () = busy => panic!("no keep-alive"),
        };
        assert!(piece.starts_with(b":"), "{piece:?}");
        assert_eq!(started.elapsed(), KEEP_ALIVE);
    }
}
