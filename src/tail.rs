//! What happens, as it happens, for whoever watches: each push and each attempt.
//!
//! Invariants: telling never waits, and costs next to nothing while nobody watches. Who reads too slowly misses the
//! oldest news, and learns how many. News holds what a log line holds: OpenIDs as `log.openid` shows them, no message
//! text, no query. Nothing is kept: what was is in the store.

use std::sync::Arc;

use serde::{Serialize, Serializer};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, broadcast};
use tokio_util::sync::CancellationToken;

use crate::clock::UnixMillis;
use crate::event::EventId;

/// How many news a reader may be behind before it misses some.
const BEHIND: usize = 1024;
/// The most who watch at a time.
pub const WATCHERS: usize = 16;

/// Something that happened.
#[derive(Clone, Debug, Serialize)]
#[serde(tag = "what", rename_all = "lowercase")]
pub enum News {
    /// A request to an account got its answer, or went without one.
    Push(Push),
    /// An attempt was made, or its delivery had expired before it.
    Attempt(Attempt),
}

/// A request to an account, as its log line tells it.
#[derive(Clone, Debug, Serialize)]
pub struct Push {
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
pub struct Attempt {
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

/// Where news is told, and watched. Clones are the same one.
#[derive(Clone, Debug)]
pub struct Tail {
    news: broadcast::Sender<Arc<News>>,
    places: Arc<Semaphore>,
    end: CancellationToken,
}

impl Default for Tail {
    fn default() -> Self {
        let (places, end) = (Arc::new(Semaphore::new(WATCHERS)), CancellationToken::new());
        Self { news: broadcast::Sender::new(BEHIND), places, end }
    }
}

impl Tail {
    /// Tells whoever watches; nobody is waited for.
    pub fn tell(&self, news: impl FnOnce() -> News) {
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
    news: broadcast::Receiver<Arc<News>>,
    end: CancellationToken,
    _place: OwnedSemaphorePermit,
}

/// What a watch sees.
#[derive(Clone, Debug)]
pub enum Seen {
    /// Something that happened.
    News(Arc<News>),
    /// So many news were missed, as they were read too slowly.
    Lagged(u64),
}

impl Watch {
    /// What comes next; `None` once the tail is closed.
    pub async fn next(&mut self) -> Option<Seen> {
        tokio::select! {
            biased;
            news = self.news.recv() => match news {
                Ok(news) => Some(Seen::News(news)),
                Err(broadcast::error::RecvError::Lagged(missed)) => Some(Seen::Lagged(missed)),
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

    fn push() -> News {
        News::Push(Push {
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
        assert!(matches!(watch.next().await, Some(Seen::Lagged(3))));
        for _ in 0..BEHIND {
            assert!(matches!(watch.next().await, Some(Seen::News(_))));
        }
        assert!(watch.next().await.is_none(), "closed, and all is read");
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
