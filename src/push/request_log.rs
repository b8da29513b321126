//! One log line and one count for each request to an account, also when WeChat hangs up before its answer.
//!
//! Requests that fail verification or decryption are logged at a limited rate: unauthenticated clients could fill the
//! disk. So are verified pushes that are answered 5xx: each push is while the store is full. Nothing is decided here: the
//! destructor only reports.

use std::borrow::Cow;
use std::net::IpAddr;
use std::sync::Arc;

use http::StatusCode;
use tokio::time::Instant;

use super::account::ServedAccount;
use crate::clock::{UnixMillis, UnixNanos};
use crate::escape;
use crate::event::EventId;
use crate::tail::{Activity, PushActivity, Span, Tail, TracedKind};
use crate::telemetry::{self, OpenIds};
use crate::trace::{SpanId, Trace};

/// The result of a push whose client hung up before its answer.
const HUNG_UP: &str = "hung_up";

/// The beginning of a path that no account has, for the log.
pub(super) fn shown_path(path: &str) -> Cow<'_, str> {
    const SHOWN: usize = 128;
    let end = path.char_indices().nth(SHOWN).map_or(path.len(), |(end, _)| end);
    escape::line(&path[..end])
}

/// What is known of a request; filled along the pipeline, logged when dropped.
pub(super) struct RequestLog {
    served: Arc<ServedAccount>,
    openids: OpenIds,
    tail: Tail,
    peer: Option<IpAddr>,
    started: Instant,
    /// `verify`, or the kind of the message.
    pub(super) kind: Option<&'static str>,
    pub(super) event: Option<EventId>,
    /// Of a push that has been opened.
    pub(super) openid: Option<String>,
    /// Of a push that has been opened: the trace of the event that it would become.
    pub(super) trace: Option<Trace>,
    /// Where it is a further try of an event: that event's trace.
    pub(super) first: Option<Trace>,
    /// Whether it comes from outside the account's `allow_from`.
    pub(super) from_unlisted: bool,
    /// WeChat's time: CreateTime, or until that is known the query's timestamp; in seconds since 1970.
    pub(super) stamp: Option<i64>,
    result: &'static str,
    /// `None` until it is answered.
    status: Option<StatusCode>,
}

impl RequestLog {
    pub(super) fn new(
        served: Arc<ServedAccount>,
        openids: OpenIds,
        tail: Tail,
        peer: Option<IpAddr>,
        started: Instant,
    ) -> Self {
        let from_unlisted = served.account.allow_from.as_ref().is_some_and(|from| !from.lists(peer));
        Self {
            served,
            openids,
            tail,
            peer,
            started,
            kind: None,
            event: None,
            openid: None,
            trace: None,
            first: None,
            from_unlisted,
            stamp: None,
            result: HUNG_UP,
            status: None,
        }
    }

    /// Completes the log line with the answer.
    pub(super) fn finish(mut self, result: &'static str, status: StatusCode) {
        (self.result, self.status) = (result, Some(status));
    }

    /// `accepted` from an unlisted address means a new address of WeChat, or another client that has the token.
    fn log_unlisted(&self) {
        let (account, peer) = (&self.served.account.name, self.peer.map(tracing::field::display));
        self.served.metrics.from_elsewhere(self.result);
        if let Some(suppressed) = self.served.unlisted_throttle.allow() {
            tracing::warn!(%account, peer, result = self.result, held_back = suppressed, "request from outside allow_from");
        }
    }

    /// Allows the line of the request, with the number of those like it that were suppressed.
    fn allow_line(&self) -> Option<u64> {
        let served = &self.served;
        match self.status {
            Some(StatusCode::OK) => Some(0),
            _ if self.openid.is_none() => served.refusal_throttle.allow(),
            Some(status) if status.is_server_error() => served.failures.of_result(self.result).allow(),
            Some(_) | None => Some(0),
        }
    }

    /// Whether WeChat counts the answer as a failure.
    fn failed(&self) -> bool {
        self.status.is_none_or(|status| status.is_server_error())
    }

    /// Only opened pushes are traced: a refused one is no event, and unauthenticated clients can send any number.
    fn publish_span(&self, activity: impl FnOnce() -> Activity) {
        let Some(trace) = self.trace else { return };
        let (event, took) = (self.first.unwrap_or(trace).event, self.started.elapsed());
        let context = || match self.first {
            None => trace.push(),
            Some(first) => first.repeat(SpanId::random(trace.event), trace.caller),
        };
        self.tail.trace(context, |context| {
            let (ended, status) = (UnixNanos::now(), self.status.map(|status| status.as_u16()));
            let failure = self.failed().then_some(Cow::Borrowed(self.result));
            let (kind, started) = (TracedKind::Push, ended.before(took));
            Span { kind, context, event, started, ended, status, failure, activity: activity() }
        });
    }
}

impl Drop for RequestLog {
    fn drop(&mut self) {
        let (served, took) = (&self.served, self.started.elapsed());
        let kind = self.kind.unwrap_or("none");
        served.metrics.push(kind, self.result);
        if self.result != HUNG_UP {
            served.metrics.push_duration.observe(took.as_secs_f64());
        }
        if self.from_unlisted {
            self.log_unlisted();
        }
        let (event, result, stamp, duration_ms) = (self.event, self.result, self.stamp, took.as_secs_f64() * 1e3);
        let openid = self.openid.as_deref().map(|openid| telemetry::openid(self.openids, openid));
        if let Some(suppressed) = self.allow_line() {
            tracing::info!(
                account = %served.account.name,
                kind,
                result,
                event = event.map(tracing::field::display),
                peer = self.peer.map(tracing::field::display),
                duration_ms,
                openid = openid.as_deref(),
                stamp,
                held_back = Some(suppressed).filter(|count| *count > 0),
                "push"
            );
        }
        let activity = || {
            let (account, openid) = (served.account.name.clone(), openid.clone().map(Cow::into_owned));
            Activity::Push(PushActivity {
                at: UnixMillis::now(),
                event,
                account,
                kind,
                result,
                duration_ms,
                openid,
                stamp,
            })
        };
        self.tail.publish(activity);
        self.publish_span(activity);
    }
}
