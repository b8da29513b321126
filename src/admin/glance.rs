//! The queue at a glance: its statistics, asked for at most once a second however many ask here, and put into the
//! metrics each time.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Mutex;
use tokio::time::{Instant, timeout};

use super::Error;
use crate::clock::UnixMillis;
use crate::metrics::{Backlog, Metrics};
use crate::queue::{Queue, Stats};

/// How long an answer of the queue is good for.
const FRESH: Duration = Duration::from_secs(1);
/// How long the queue may take: a store that needs longer for this cannot take pushes in time either.
const PATIENCE: Duration = Duration::from_secs(2);

/// Shared by all requests.
#[derive(Clone)]
pub(super) struct Glance {
    queue: Queue,
    /// The store's folder, for the room on its disk.
    store: Arc<PathBuf>,
    metrics: Arc<Metrics>,
    last: Arc<Mutex<Option<Answer>>>,
}

/// When the queue was asked last, and what it answered, if it did. A failure counts too: it took its time, and who
/// waits behind it need not wait for another.
struct Answer {
    at: Instant,
    stats: Option<Arc<Stats>>,
}

impl Glance {
    pub(super) fn new(queue: Queue, store: PathBuf, metrics: Arc<Metrics>) -> Self {
        Self { queue, store: Arc::new(store), metrics, last: Arc::default() }
    }

    /// The queue's statistics, not older than a second.
    pub(super) async fn stats(&self) -> Result<Arc<Stats>, Error> {
        // Held while the queue is asked, so that who comes meanwhile waits for the same answer.
        let mut last = self.last.lock().await;
        if let Some(answer) = last.as_ref().filter(|answer| answer.at.elapsed() < FRESH) {
            return answer.stats.clone().ok_or(Error::NoStats);
        }
        let stats = self.ask().await;
        *last = Some(Answer { at: Instant::now(), stats: stats.clone() });
        stats.ok_or(Error::NoStats)
    }

    async fn ask(&self) -> Option<Arc<Stats>> {
        match timeout(PATIENCE, async { (self.disk_free().await, self.queue.stats().await) }).await {
            Ok((free, Ok(stats))) => {
                self.measure(&stats, free);
                return Some(Arc::new(stats));
            }
            Ok((_, Err(error))) => tracing::warn!(%error, remedy = error.remedy(), "the queue has no statistics"),
            Err(_) => tracing::warn!("the queue does not answer in time"),
        }
        None
    }

    /// Lets the next look ask the queue again, after something was changed here.
    pub(super) async fn forget(&self) {
        *self.last.lock().await = None;
    }

    /// The bytes that are free for us on the store's disk. On another thread: a disk that hangs does so here too.
    async fn disk_free(&self) -> Option<u64> {
        let store = self.store.clone();
        let room = tokio::task::spawn_blocking(move || rustix::fs::statvfs(&*store)).await.ok()?.ok()?;
        Some(room.f_bavail.saturating_mul(room.f_frsize))
    }

    fn measure(&self, stats: &Stats, disk_free: Option<u64>) {
        let now = UnixMillis::now();
        if let Some(free) = disk_free {
            self.metrics.disk_free_bytes.set(i64::try_from(free).unwrap_or(i64::MAX));
        }
        self.metrics.queue_bytes.set(i64::try_from(stats.bytes).unwrap_or(i64::MAX));
        self.metrics.unaccounted.set(i64::try_from(stats.unaccounted).unwrap_or(i64::MAX));
        self.metrics.set_backlogs(stats.targets.iter().map(|target| {
            let oldest = target.oldest_pending.map_or(Duration::ZERO, |received| now.since(received));
            (&*target.target, Backlog { pending: target.counts.pending, oldest, dead: target.counts.dead })
        }));
    }
}
