//! Live activity, each push and each attempt: for watchers, and as spans of a trace for the exporter.
//!
//! Invariants: publishing never waits, and costs next to nothing without a watcher. A watcher that reads too slowly
//! misses the oldest activity, and is told how much; if the exporter is too slow, the newest spans are dropped and
//! counted. An activity has the contents of a log line: OpenIDs as `log.openid` shows them, no message text, no query.
//! Nothing is stored here.

use std::borrow::Cow;
use std::sync::Arc;

use serde::{Serialize, Serializer};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, broadcast, mpsc};
use tokio_util::sync::CancellationToken;

use crate::clock::{UnixMillis, UnixNanos};
use crate::event::EventId;
use crate::metrics::SpanMetrics;
use crate::trace::SpanContext;

/// How many activities a watcher may lag behind before it misses some.
const MAX_LAG: usize = 1024;
/// The most spans that are queued for the exporter; they take a few MiB.
const MAX_SPANS: usize = 4096;
/// The most concurrent watchers.
pub const WATCHERS: usize = 16;

/// A push or an attempt, as watchers see it.
#[derive(Clone, Debug, Serialize)]
#[serde(tag = "what", rename_all = "lowercase")]
pub enum Activity {
    /// A request to an account, answered or not.
    Push(PushActivity),
    /// An attempt, or a delivery that expired before its next attempt.
    Attempt(AttemptActivity),
}

/// A request to an account, with the contents of its log line.
#[derive(Clone, Debug, Serialize)]
pub struct PushActivity {
    /// When it ended.
    #[serde(serialize_with = "text")]
    pub at: UnixMillis,
    /// The event that it became.
    #[serde(serialize_with = "id_or_null")]
    pub event: Option<EventId>,
    #[serde(serialize_with = "text")]
    pub account: Arc<str>,
    /// `verify`, the kind of the message, or `none`.
    pub kind: &'static str,
    /// `accepted`, `duplicate`, `verified`, or the reason of a refusal.
    pub result: &'static str,
    pub duration_ms: f64,
    pub openid: Option<String>,
    /// CreateTime, or the query's timestamp if the push was not decrypted; in seconds since 1970.
    pub stamp: Option<i64>,
}

/// An attempt, with the contents of its log line.
#[derive(Clone, Debug, Serialize)]
pub struct AttemptActivity {
    /// When it ended.
    #[serde(serialize_with = "text")]
    pub at: UnixMillis,
    #[serde(serialize_with = "text")]
    pub event: EventId,
    #[serde(serialize_with = "text")]
    pub account: Arc<str>,
    pub kind: &'static str,
    #[serde(serialize_with = "text")]
    pub target: Arc<str>,
    /// From 1.
    pub attempt: u32,
    /// `delivered`, `retry`, `dead` or `expired`.
    pub outcome: &'static str,
    pub status: Option<u16>,
    pub duration_ms: f64,
    pub error: Option<String>,
    pub openid: String,
    /// CreateTime, in seconds since 1970.
    pub stamp: Option<i64>,
}

/// The kind of a span.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TracedKind {
    Push,
    Attempt,
    /// A delivery that expired before another attempt.
    Expiry,
}

/// A push or an attempt as a span of its trace.
#[derive(Clone, Debug)]
pub struct Span {
    pub kind: TracedKind,
    pub context: SpanContext,
    /// The event, even if the activity does not have it yet.
    pub event: EventId,
    pub started: UnixNanos,
    pub ended: UnixNanos,
    /// The HTTP status sent to WeChat, or received from the target.
    pub status: Option<u16>,
    /// The reason of a failure, in one word.
    pub failure: Option<Cow<'static, str>>,
    pub activity: Activity,
}

/// Publishes activity to watchers and spans to the exporter. Clones share the channels.
#[derive(Clone, Debug)]
pub struct Tail {
    activity: broadcast::Sender<Arc<Activity>>,
    watchers: Arc<Semaphore>,
    end: CancellationToken,
    spans: Option<(mpsc::Sender<Span>, SpanMetrics)>,
}

impl Default for Tail {
    fn default() -> Self {
        let (watchers, end) = (Arc::new(Semaphore::new(WATCHERS)), CancellationToken::new());
        Self { activity: broadcast::Sender::new(MAX_LAG), watchers, end, spans: None }
    }
}

impl Tail {
    /// Makes a tail that also collects spans, and their receiver.
    pub fn traced(metrics: SpanMetrics) -> (Self, mpsc::Receiver<Span>) {
        let (sender, spans) = mpsc::channel(MAX_SPANS);
        (Self { spans: Some((sender, metrics)), ..Self::default() }, spans)
    }

    /// Sends a span to the exporter, if there is one and the trace is recorded. When the buffer is full the span is
    /// dropped and counted.
    pub fn trace(&self, context: impl FnOnce() -> SpanContext, span: impl FnOnce(SpanContext) -> Span) {
        let Some((sender, metrics)) = &self.spans else { return };
        let context = context();
        // After the end of the exporter, dropped spans are not counted.
        if context.recorded
            && let Err(mpsc::error::TrySendError::Full(_)) = sender.try_send(span(context))
        {
            metrics.dropped.inc();
        }
    }

    /// Publishes to all watchers, without waiting.
    pub fn publish(&self, activity: impl FnOnce() -> Activity) {
        if self.activity.receiver_count() > 0 {
            // Fails if the last watcher has just been dropped.
            self.activity.send(Arc::new(activity())).ok();
        }
    }

    /// Watches all activity from now on; `None` if there are [`WATCHERS`] already.
    pub fn watch(&self) -> Option<Watch> {
        let permit = self.watchers.clone().try_acquire_owned().ok()?;
        Some(Watch { activity: self.activity.subscribe(), end: self.end.clone(), _permit: permit })
    }

    /// Ends every watch, once it has read what was published.
    pub fn close(&self) {
        self.end.cancel();
    }
}

/// A watcher's receiver.
#[derive(Debug)]
pub struct Watch {
    activity: broadcast::Receiver<Arc<Activity>>,
    end: CancellationToken,
    _permit: OwnedSemaphorePermit,
}

/// One item of a watch.
#[derive(Clone, Debug)]
pub enum WatchItem {
    Activity(Arc<Activity>),
    /// The watcher was too slow and missed this many activities.
    Lagged(u64),
}

impl Watch {
    /// The next item; `None` once the tail is closed.
    pub async fn next(&mut self) -> Option<WatchItem> {
        tokio::select! {
            biased;
            activity = self.activity.recv() => match activity {
                Ok(activity) => Some(WatchItem::Activity(activity)),
                Err(broadcast::error::RecvError::Lagged(missed)) => Some(WatchItem::Lagged(missed)),
                Err(broadcast::error::RecvError::Closed) => None,
            },
            () = self.end.cancelled() => None,
        }
    }
}

fn text<T: std::fmt::Display, S: Serializer>(value: &T, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(value)
}

fn id_or_null<S: Serializer>(value: &Option<EventId>, serializer: S) -> Result<S::Ok, S::Error> {
    match value {
        Some(id) => serializer.collect_str(id),
        None => serializer.serialize_none(),
    }
}

#[cfg(test)]
impl Activity {
    /// A push to the account `shop`.
    pub(crate) fn sample_push() -> Self {
        Self::Push(PushActivity {
            at: UnixMillis(0),
            event: None,
            account: "shop".into(),
            kind: "text",
            result: "accepted",
            duration_ms: 1.0,
            openid: None,
            stamp: None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trace::Trace;

    #[tokio::test]
    async fn a_slow_watcher_learns_how_much_it_missed_and_blocks_nobody() {
        let tail = Tail::default();
        let mut watch = tail.watch().unwrap();
        (0..MAX_LAG + 3).for_each(|_| tail.publish(Activity::sample_push));
        tail.close();
        assert!(matches!(watch.next().await, Some(WatchItem::Lagged(3))));
        for _ in 0..MAX_LAG {
            assert!(matches!(watch.next().await, Some(WatchItem::Activity(_))));
        }
        assert!(watch.next().await.is_none(), "closed, and all is read");
    }

    #[tokio::test]
    async fn spans_that_do_not_fit_are_counted_and_block_nobody() {
        let metrics = crate::metrics::Metrics::new();
        let (tail, mut spans) = Tail::traced(metrics.spans());
        let recorded = Trace::new(EventId(1), None).push();
        let span = |context| {
            let (started, ended) = (UnixNanos(1), UnixNanos(2));
            let (kind, event) = (TracedKind::Push, EventId(1));
            Span {
                kind,
                context,
                event,
                started,
                ended,
                status: Some(200),
                failure: None,
                activity: Activity::sample_push(),
            }
        };
        (0..MAX_SPANS + 3).for_each(|_| tail.trace(|| recorded, span));
        tail.trace(|| SpanContext { recorded: false, ..recorded }, |_| panic!("nobody wants it recorded"));
        Tail::default().trace(|| panic!("nobody exports"), span);
        assert_eq!(metrics.spans().dropped.get(), 3);
        spans.close();
        let mut taken = Vec::new();
        assert_eq!(spans.recv_many(&mut taken, 2 * MAX_SPANS).await, MAX_SPANS);
    }

    #[test]
    fn watchers_are_limited_and_nothing_is_built_without_one() {
        let tail = Tail::default();
        tail.publish(|| panic!("nobody watches"));
        let watches: Vec<_> = (0..WATCHERS).map(|_| tail.watch().unwrap()).collect();
        assert!(tail.watch().is_none());
        drop(watches);
        assert!(tail.watch().is_some());
    }
}
