//! The queue's statistics, cached for a second for all requests, and published as metrics with each refresh.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Mutex;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};

use super::Error;
use crate::clock::UnixMillis;
use crate::metrics::{Backlog, Metrics, NO_LABEL};
#[cfg(feature = "postgres")]
use crate::queue::postgres::Observation;
#[cfg(feature = "postgres")]
use crate::queue::{Obstacle, Replica};
use crate::queue::{Queue, Stats};
use crate::telemetry::LogThrottle;

/// How long statistics are served from the cache.
const MAX_AGE: Duration = Duration::from_secs(1);
/// The timeout of the queue: a store that needs longer cannot accept pushes in time either.
const TIMEOUT: Duration = Duration::from_secs(2);

/// Shared by all requests.
#[derive(Clone)]
pub(super) struct StatsCache {
    queue: Queue,
    /// The store's folder, if it has one: for the free space of its disk.
    folder: Option<Arc<Path>>,
    metrics: Arc<Metrics>,
    warnings: Arc<LogThrottle>,
    cache: Arc<Mutex<Cache>>,
}

#[derive(Default)]
struct Cache {
    last: Option<CachedStats>,
    /// The refresh in progress. One at a time, as each may block a thread for as long as the disk hangs.
    running: Option<JoinHandle<Option<Arc<Stats>>>>,
}

/// The last refresh. A failure is cached too, so that waiting requests do not wait for another timeout.
struct CachedStats {
    at: Instant,
    stats: Option<Arc<Stats>>,
}

impl StatsCache {
    pub(super) fn new(queue: Queue, folder: Option<&Path>, metrics: Arc<Metrics>) -> Self {
        Self { queue, folder: folder.map(Arc::from), metrics, warnings: Arc::default(), cache: Arc::default() }
    }

    /// The queue's statistics, not older than a second.
    pub(super) async fn get(&self) -> Result<Arc<Stats>, Error> {
        // Held during the refresh, so that concurrent requests wait for the same result.
        let mut cache = self.cache.lock().await;
        if let Some(cached) = cache.last.as_ref().filter(|cached| cached.at.elapsed() < MAX_AGE) {
            return cached.stats.clone().ok_or(Error::NoStats);
        }
        let running = cache.running.get_or_insert_with(|| tokio::spawn(self.clone().refresh()));
        let stats = match timeout(TIMEOUT, running).await {
            Ok(refreshed) => {
                cache.running = None;
                refreshed.ok().flatten()
            }
            Err(_) => {
                if let Some(suppressed) = self.warnings.allow() {
                    tracing::warn!(held_back = suppressed, "queue statistics timed out");
                }
                None
            }
        };
        cache.last = Some(CachedStats { at: Instant::now(), stats: stats.clone() });
        stats.ok_or(Error::NoStats)
    }

    async fn refresh(self) -> Option<Arc<Stats>> {
        let free = self.disk_free().await;
        #[cfg(feature = "postgres")]
        if let Some(seen) = self.queue.observation() {
            self.publish_observation(&seen);
        }
        match self.queue.stats().await {
            Ok(stats) => {
                self.publish(&stats, free);
                Some(Arc::new(stats))
            }
            Err(error) => {
                if let Some(suppressed) = self.warnings.allow() {
                    let remedy = error.remedy();
                    tracing::warn!(%error, remedy, held_back = suppressed, "queue statistics failed");
                }
                None
            }
        }
    }

    /// Makes the next request refresh, after a change by the API.
    pub(super) async fn invalidate(&self) {
        *self.cache.lock().await = Cache::default();
    }

    /// Makes the next request refresh, after a look that nobody asked for: an operator gets what is there now. A refresh
    /// in progress stays the only one.
    pub(super) async fn expire(&self) {
        self.cache.lock().await.last = None;
    }

    /// The free bytes of the store's disk for this user. Runs on a blocking thread, as the disk may hang.
    async fn disk_free(&self) -> Option<u64> {
        let folder = self.folder.clone()?;
        let disk = tokio::task::spawn_blocking(move || rustix::fs::statvfs(&*folder)).await.ok()?.ok()?;
        Some(disk.f_bavail.saturating_mul(disk.f_frsize))
    }

    #[cfg(feature = "postgres")]
    fn publish_observation(&self, seen: &Observation) {
        let is_up = self.queue.direct_obstacle() != Some(Obstacle::Away);
        self.metrics.store_up.with_label_values(NO_LABEL).set(is_up.into());
        if let Some(has_standby) = seen.has_standby {
            self.metrics.store_standby.with_label_values(NO_LABEL).set(has_standby.into());
        }
        let replicas = self.queue.replicas().unwrap_or_default();
        let count = |which: fn(&&Replica) -> bool| replicas.iter().filter(which).count().try_into().unwrap_or(i64::MAX);
        self.metrics.replicas.with_label_values(NO_LABEL).set(count(|one| one.live));
        self.metrics.replicas_differ.with_label_values(NO_LABEL).set(count(|one| one.live && !one.same_config));
        for (table, rows) in &seen.dead_tuples {
            self.metrics.store_dead_tuples.with_label_values(&[table]).set(*rows);
        }
        self.metrics.store_xmin_age.with_label_values(NO_LABEL).set(seen.xmin_age.as_secs_f64());
    }

    fn publish(&self, stats: &Stats, disk_free: Option<u64>) {
        let now = UnixMillis::now();
        if let Some(free) = disk_free {
            self.metrics.disk_free_bytes.with_label_values(NO_LABEL).set(i64::try_from(free).unwrap_or(i64::MAX));
        }
        self.metrics.queue_bytes.set(i64::try_from(stats.bytes).unwrap_or(i64::MAX));
        let memory = self.queue.memory().used;
        self.metrics.queue_memory_bytes.set(i64::try_from(memory).unwrap_or(i64::MAX));
        self.metrics.unaccounted.set(i64::try_from(stats.unaccounted).unwrap_or(i64::MAX));
        self.metrics.set_held_replies(&stats.held_replies);
        self.metrics.store_damaged.set(i64::try_from(stats.damaged.len()).unwrap_or(i64::MAX));
        self.metrics.set_backlogs(stats.targets.iter().map(|target| {
            let oldest = target.oldest_pending.map_or(Duration::ZERO, |received| now.since(received));
            (&*target.target, Backlog { pending: target.counts.pending, oldest, dead: target.counts.dead })
        }));
    }
}
