//! One log line and one count for each request to an account, also when WeChat hangs up before its answer.
//!
//! Of what does not open, so many lines and no more: strangers could fill the disk.

use std::borrow::Cow;
use std::net::IpAddr;
use std::sync::Arc;

use http::StatusCode;
use tokio::time::Instant;

use super::Entry;
use crate::clock::{UnixMillis, UnixNanos};
use crate::event::EventId;
use crate::tail::{Activity, PushActivity, Span, Tail, TracedKind};
use crate::telemetry::{self, OpenIds};
use crate::trace::{SpanId, Trace};

/// How a push is counted that nobody waited for to the end.
const HUNG_UP: &str = "hung_up";

/// What is known of a request; filled as the line goes on, told when dropped.
pub(super) struct Record {
    entry: Arc<Entry>,
    openids: OpenIds,
    tail: Tail,
    peer: Option<IpAddr>,
    started: Instant,
    /// `verify`, or the kind of the message.
    pub(super) kind: Option<&'static str>,
    pub(super) event: Option<EventId>,
    /// Of a push that has been opened.
    pub(super) openid: Option<String>,
    /// Of a push that has been opened: the trace of the event that it would be.
    pub(super) trace: Option<Trace>,
    /// Where it is a further try of an event: that event's trace.
    pub(super) first: Option<Trace>,
    /// Whether it comes from outside the account's `allow_from`.
    pub(super) from_elsewhere: bool,
    /// WeChat's: CreateTime, or until that is known the query's timestamp; in seconds since 1970.
    pub(super) stamp: Option<i64>,
    /// Whether the failure that WeChat sees is counted already, as one made on purpose.
    pub(super) spent: bool,
    result: &'static str,
    /// What it was answered; `None` while it was not.
    status: Option<StatusCode>,
}

impl Record {
    pub(super) fn new(entry: Arc<Entry>, openids: OpenIds, tail: Tail, peer: Option<IpAddr>, started: Instant) -> Self {
        let from_elsewhere = entry.account.allow_from.as_ref().is_some_and(|from| !from.lists(peer));
        Self {
            entry,
            openids,
            tail,
            peer,
            started,
            kind: None,
            event: None,
            openid: None,
            trace: None,
            first: None,
            from_elsewhere,
            stamp: None,
            spent: false,
            result: HUNG_UP,
            status: None,
        }
    }

    /// The request has its answer.
    pub(super) fn answered(mut self, result: &'static str, status: StatusCode) {
        (self.result, self.status) = (result, Some(status));
    }

    /// The result says what it means: `accepted` from an unlisted address is WeChat's new one, or somebody who has the
    /// token.
    fn tell_of_elsewhere(&self) {
        let (account, peer) = (&self.entry.account.name, self.peer.map(tracing::field::display));
        self.entry.metrics.from_elsewhere(self.result);
        if let Some(suppressed) = self.entry.elsewhere.allow() {
            tracing::warn!(%account, peer, result = self.result, held_back = suppressed, "a request from outside allow_from");
        }
    }

    /// Whether WeChat takes it for a failure of ours.
    fn failed(&self) -> bool {
        self.status.is_none_or(|status| status.is_server_error())
    }

    /// Whether it is WeChat that it failed: what does not even open is anybody's.
    fn failed_wechat(&self) -> bool {
        self.failed() && self.openid.is_some()
    }

    /// Only what was opened is traced: what is refused is no event, and strangers can send any number of it.
    fn trace(&self, news: impl FnOnce() -> Activity) {
        let Some(trace) = self.trace else { return };
        let (event, took) = (self.first.unwrap_or(trace).event, self.started.elapsed());
        let place = || match self.first {
            None => trace.push(),
            Some(first) => first.repeat(SpanId::random(trace.event), trace.caller),
        };
        self.tail.trace(place, |place| {
            let (ended, status) = (UnixNanos::now(), self.status.map(|status| status.as_u16()));
            let failure = self.failed().then_some(Cow::Borrowed(self.result));
            let (what, begun) = (TracedKind::Push, ended.before(took));
            Span { what, place, event, begun, ended, status, failure, news: news() }
        });
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        let (entry, took) = (&self.entry, self.started.elapsed());
        let kind = self.kind.unwrap_or("none");
        entry.metrics.push(kind, self.result);
        if self.result != HUNG_UP {
            entry.metrics.push_duration.observe(took.as_secs_f64());
        }
        if self.failed_wechat() && !self.spent {
            entry.guard.failed();
        }
        if self.from_elsewhere {
            self.tell_of_elsewhere();
        }
        let (event, result, stamp, duration_ms) = (self.event, self.result, self.stamp, took.as_secs_f64() * 1e3);
        let openid = self.openid.as_deref().map(|openid| telemetry::openid(self.openids, openid));
        let by_stranger = self.openid.is_none() && self.status != Some(StatusCode::OK);
        if let Some(suppressed) = if by_stranger { entry.refusals.allow() } else { Some(0) } {
            tracing::info!(
                account = %entry.account.name,
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
        let news = || {
            let (account, openid) = (entry.account.name.clone(), openid.clone().map(Cow::into_owned));
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
        self.tail.tell(news);
        self.trace(news);
    }
}
