//! What happens, as it happens, for whoever watches: each push and each attempt; and the same as spans of a trace, for
//! the one who exports them.
//!
//! Invariants: telling never waits, and costs next to nothing while nobody watches. Who reads too slowly misses the
//! oldest news, and learns how many; of spans the newest are missed, and counted. News holds what a log line holds:
//! OpenIDs as `log.openid` shows them, no message text, no query. Nothing is kept: what was is in the store.

use std::borrow::Cow;
use std::sync::Arc;

use serde::{Serialize, Serializer};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, broadcast, mpsc};
use tokio_util::sync::CancellationToken;

use crate::clock::{UnixMillis, UnixNanos};
use crate::event::EventId;
use crate::metrics::SpanMetrics;
use crate::trace::SpanContext;

/// How many news a reader may be behind before it misses some.
const BEHIND: usize = 1024;
/// How many spans wait for the exporter at most; some MiB.
const SPANS: usize = 4096;
/// The most who watch at a time.
pub const WATCHERS: usize = 16;

/// Something that happened.
#[derive(Clone, Debug, Serialize)]
#[serde(tag = "what", rename_all = "lowercase")]
pub enum Activity {
    /// A request to an account got its answer, or went without one.
    Push(PushActivity),
    /// An attempt was made, or its delivery had expired before it.
    Attempt(AttemptActivity),
}

/// A request to an account, as its log line tells it.
#[derive(Clone, Debug, Serialize)]
pub struct PushActivity {
    /// When it was over.
    #[serde(serialize_with = "text")]
    pub at: UnixMillis,
    /// The event that it came to.
    #[serde(serialize_with = "id_or_null")]
    pub event: Option<EventId>,
    /// The account.
    #[serde(serialize_with = "text")]
    pub account: Arc<str>,
    /// `verify`, the kind of the message, or `none`.
    pub kind: &'static str,
    /// `accepted`, `duplicate`, `verified`, or why it was refused.
    pub result: &'static str,
    /// How long it took.
    pub duration_ms: f64,
    /// Whom it came from.
    pub openid: Option<String>,
    /// WeChat's stamp: CreateTime, or the query's timestamp where the push was not opened; in seconds since 1970.
    pub stamp: Option<i64>,
}

/// An attempt, as its log line tells it.
#[derive(Clone, Debug, Serialize)]
pub struct AttemptActivity {
    /// When it was over.
    #[serde(serialize_with = "text")]
    pub at: UnixMillis,
    /// The event.
    #[serde(serialize_with = "text")]
    pub event: EventId,
    /// The account it came in by.
    #[serde(serialize_with = "text")]
    pub account: Arc<str>,
    /// The kind of its message.
    pub kind: &'static str,
    /// Where it went.
    #[serde(serialize_with = "text")]
    pub target: Arc<str>,
    /// From 1.
    pub attempt: u32,
    /// `delivered`, `retry`, `dead` or `expired`.
    pub outcome: &'static str,
    /// The HTTP status, if there was an answer.
    pub status: Option<u16>,
    /// How long it took.
    pub duration_ms: f64,
    /// Why it failed.
    pub error: Option<String>,
    /// Whom the event came from.
    pub openid: String,
    /// CreateTime, in seconds since 1970.
    pub stamp: Option<i64>,
}

/// What a span is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TracedKind {
    /// A try of a push.
    Push,
    /// An attempt.
    Attempt,
    /// The end of a delivery that had expired before another attempt.
    Expiry,
}

/// A push or an attempt as its trace tells it.
#[derive(Clone, Debug)]
pub struct Span {
    /// What it is of.
    pub what: TracedKind,
    /// Where it hangs.
    pub place: SpanContext,
    /// The event, also where the news does not know it yet.
    pub event: EventId,
    /// When it began.
    pub begun: UnixNanos,
    /// When it was over.
    pub ended: UnixNanos,
    /// The HTTP status that WeChat got, or that the target gave.
    pub status: Option<u16>,
    /// In one word why it failed, if it did.
    pub failure: Option<Cow<'static, str>>,
    /// What the log says of it.
    pub news: Activity,
}

/// Where news is told, and watched. Clones are the same one.
#[derive(Clone, Debug)]
pub struct Tail {
    news: broadcast::Sender<Arc<Activity>>,
    places: Arc<Semaphore>,
    end: CancellationToken,
    spans: Option<(mpsc::Sender<Span>, SpanMetrics)>,
}

impl Default for Tail {
    fn default() -> Self {
        let (places, end) = (Arc::new(Semaphore::new(WATCHERS)), CancellationToken::new());
        Self { news: broadcast::Sender::new(BEHIND), places, end, spans: None }
    }
}

impl Tail {
    /// One that tells of spans too, and where they come out.
    pub fn traced(metrics: SpanMetrics) -> (Self, mpsc::Receiver<Span>) {
        let (sender, spans) = mpsc::channel(SPANS);
        (Self { spans: Some((sender, metrics)), ..Self::default() }, spans)
    }

    /// Hands a span to the exporter, if there is one and the trace is recorded; where there is no room, it is counted
    /// and lost.
    pub fn trace(&self, place: impl FnOnce() -> SpanContext, span: impl FnOnce(SpanContext) -> Span) {
        let Some((sender, metrics)) = &self.spans else { return };
        let place = place();
        // After its end the exporter takes none, and there is nobody left to miss them.
        if place.recorded
            && let Err(mpsc::error::TrySendError::Full(_)) = sender.try_send(span(place))
        {
            metrics.dropped.inc();
        }
    }

    /// Tells whoever watches; nobody is waited for.
    pub fn tell(&self, news: impl FnOnce() -> Activity) {
        if self.news.receiver_count() > 0 {
            // Fails when the last watcher has just gone.
            self.news.send(Arc::new(news())).ok();
        }
    }

    /// What is told from now on; `None` if [`WATCHERS`] watch already.
    pub fn watch(&self) -> Option<Watch> {
        let place = self.places.clone().try_acquire_owned().ok()?;
        Some(Watch { news: self.news.subscribe(), end: self.end.clone(), _place: place })
    }

    /// Ends every watch, once it has read what was told.
    pub fn close(&self) {
        self.end.cancel();
    }
}

/// One who watches.
#[derive(Debug)]
pub struct Watch {
    news: broadcast::Receiver<Arc<Activity>>,
    end: CancellationToken,
    _place: OwnedSemaphorePermit,
}

/// What a watch sees.
#[derive(Clone, Debug)]
pub enum WatchItem {
    /// Something that happened.
    Activity(Arc<Activity>),
    /// So many news were missed, as they were read too slowly.
    Lagged(u64),
}

impl Watch {
    /// What comes next; `None` once the tail is closed.
    pub async fn next(&mut self) -> Option<WatchItem> {
        tokio::select! {
            biased;
            news = self.news.recv() => match news {
                Ok(news) => Some(WatchItem::Activity(news)),
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
mod tests {
    use super::*;
    use crate::trace::Trace;

    fn push() -> Activity {
        Activity::Push(PushActivity {
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

    #[tokio::test]
    async fn a_slow_reader_learns_how_many_it_missed_and_holds_nobody_up() {
        let tail = Tail::default();
        let mut watch = tail.watch().unwrap();
        (0..BEHIND + 3).for_each(|_| tail.tell(push));
        tail.close();
        assert!(matches!(watch.next().await, Some(WatchItem::Lagged(3))));
        for _ in 0..BEHIND {
            assert!(matches!(watch.next().await, Some(WatchItem::Activity(_))));
        }
        assert!(watch.next().await.is_none(), "closed, and all is read");
    }

    #[tokio::test]
    async fn spans_that_find_no_room_are_counted_and_hold_nobody_up() {
        let metrics = crate::metrics::Metrics::new();
        let (tail, mut spans) = Tail::traced(metrics.spans());
        let recorded = Trace::new(EventId(1), None).push();
        let span = |place| {
            let (begun, ended) = (UnixNanos(1), UnixNanos(2));
            let (what, event) = (TracedKind::Push, EventId(1));
            Span { what, place, event, begun, ended, status: Some(200), failure: None, news: push() }
        };
        (0..SPANS + 3).for_each(|_| tail.trace(|| recorded, span));
        tail.trace(|| SpanContext { recorded: false, ..recorded }, |_| panic!("nobody wants it recorded"));
        Tail::default().trace(|| panic!("nobody exports"), span);
        assert_eq!(metrics.spans().dropped.get(), 3);
        spans.close();
        let mut taken = Vec::new();
        assert_eq!(spans.recv_many(&mut taken, 2 * SPANS).await, SPANS);
    }

    #[test]
    fn only_so_many_watch_and_nothing_is_made_for_nobody() {
        let tail = Tail::default();
        tail.tell(|| panic!("nobody watches"));
        let watches: Vec<_> = (0..WATCHERS).map(|_| tail.watch().unwrap()).collect();
        assert!(tail.watch().is_none());
        drop(watches);
        assert!(tail.watch().is_some());
    }
}
