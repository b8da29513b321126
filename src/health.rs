//! Watches the parts of a running relay, with and without a supervisor.
//!
//! - A part that has ended by itself (the store's writer, a lane, a listener) ends the process: half a relay would accept
//!   events and deliver none, or the reverse.
//! - A part that makes no progress is logged, and `/readyz` names it. It may continue, as a disk does; so the process
//!   stays, unless systemd's watchdog restarts it (`cli/service.rs`).
//!
//! Invariant: this waits for none of the parts.

use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior, interval};

use crate::app::App;
use crate::queue::Obstacle;
use crate::telemetry::LogThrottle;

/// Between two looks; a stall of the store is logged before a push is late.
const PERIOD: Duration = Duration::from_millis(250);
/// After this time without a turn of its loop a lane counts as stuck. None waits that long within a turn.
const LANE_LIMIT: Duration = Duration::from_secs(10);

/// Watches until a part has ended; returns its name.
pub async fn watch(app: &App) -> &'static str {
    let mut ticks = interval(PERIOD);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut store, mut lanes) = (StallLog::new("store"), StallLog::new("dispatcher"));
    loop {
        ticks.tick().await;
        if let Some(part) = app.ended_part() {
            return part;
        }
        let stalled = app.queue().obstacle() == Some(Obstacle::Stalled);
        store.observe(stalled, || {
            let remedy = match app.config().queue.folder() {
                Some(_) => "check the disk, which completes no flush; the relay continues by itself",
                None => {
                    "check PostgreSQL: its disk, locks, and the synchronous standby that commits wait for; the relay \
                     continues by itself"
                }
            };
            tracing::warn!(
                waited_ms = u64::try_from(app.queue().oldest_wait().as_millis()).unwrap_or(u64::MAX),
                remedy,
                "store stalled, pushes are not stored"
            );
        });
        let stuck = app.dispatcher().stuck_lanes(LANE_LIMIT);
        app.ready().set_stuck((!stuck.is_empty()).then_some("dispatcher-stalled"));
        lanes.observe(!stuck.is_empty(), || {
            tracing::error!(
                targets = stuck.join(","),
                remedy = "restart the relay, which continues the deliveries, and report it",
                "deliveries stalled"
            );
        });
    }
}

/// Logs when a stall begins and when it ends; one that comes and goes is logged once per period.
struct StallLog {
    part: &'static str,
    /// Since when it stalls.
    since: Option<Instant>,
    /// Whether the beginning is in the log, so that the end belongs there too.
    is_logged: bool,
    throttle: LogThrottle,
}

impl StallLog {
    fn new(part: &'static str) -> Self {
        Self { part, since: None, is_logged: false, throttle: LogThrottle::default() }
    }

    fn observe(&mut self, is_stalled: bool, log: impl FnOnce()) {
        match (self.since, is_stalled) {
            (None, true) => {
                self.since = Some(Instant::now());
                self.is_logged = self.throttle.allow().is_some();
                if self.is_logged {
                    log();
                }
            }
            (Some(since), false) => {
                self.since = None;
                if self.is_logged {
                    let stalled_ms = u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX);
                    tracing::info!(part = self.part, stalled_ms, "stall ended");
                }
            }
            (None, false) | (Some(_), true) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use tokio::runtime;
    use tokio::time::timeout;

    use super::*;
    use crate::config::{self, Config};

    const SOON: Duration = Duration::from_secs(20);
    const TARGET: &str = "[targets.crm]\nurl = \"http://127.0.0.1:9/\"\n";

    /// Only a bug ends a lane's task; the test ends it by shutting down the runtime that it runs on.
    #[tokio::test]
    async fn a_lane_that_has_ended_by_itself_is_reported() {
        let folder = tempfile::tempdir().unwrap();
        let app = App::start(config(folder.path(), "")).await.unwrap();
        let other = runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        {
            let _spawned_there = other.enter();
            app.reload(config(folder.path(), TARGET)).unwrap();
        }
        assert_eq!(app.pulse().await, Ok(()));
        other.shutdown_background();
        assert_eq!(timeout(SOON, watch(&app)).await, Ok("dispatcher"));
        assert_eq!(app.pulse().await, Err("dispatcher"));
        app.stop().await.unwrap();
    }

    /// The runtime that the lane's task runs on is never polled.
    #[tokio::test]
    async fn a_lane_that_makes_no_progress_is_stuck() {
        let folder = tempfile::tempdir().unwrap();
        let app = App::start(config(folder.path(), "")).await.unwrap();
        let idle = runtime::Builder::new_current_thread().enable_all().build().unwrap();
        {
            let _spawned_there = idle.enter();
            app.reload(config(folder.path(), TARGET)).unwrap();
        }
        assert!(app.dispatcher().stuck_lanes(Duration::ZERO).is_empty(), "asked for the first time");
        let stuck = async {
            while app.dispatcher().stuck_lanes(Duration::ZERO).is_empty() {
                tokio::task::yield_now().await;
            }
        };
        timeout(SOON, stuck).await.unwrap();
        assert_eq!(app.dispatcher().stuck_lanes(Duration::ZERO), ["crm".into()]);
        let word = "dispatcher-stalled";
        app.ready().set_stuck(Some(word));
        assert_eq!((app.pulse().await, app.ready().obstacle()), (Err(word), Some(word)));
        idle.shutdown_background();
        app.stop().await.unwrap();
    }

    #[tokio::test]
    async fn a_writer_that_has_ended_is_reported() {
        let folder = tempfile::tempdir().unwrap();
        let app = App::start(config(folder.path(), "")).await.unwrap();
        app.queue().clone().close().await;
        assert_eq!(timeout(SOON, watch(&app)).await, Ok("store"));
    }

    fn config(folder: &Path, targets: &str) -> Config {
        let path = folder.join("config.toml");
        let text = "[server]\nlisten = \"127.0.0.1:0\"\n[admin]\nlisten = \"127.0.0.1:0\"\n[queue]\npath = \"store\"\n\
                    [accounts.shop]\npath = \"/wx\"\napp_id = \"wx0\"\ntoken = \"abc\"\nmode = \"plaintext\"\n";
        std::fs::write(&path, format!("{text}{targets}")).unwrap();
        config::load(Some(&path), [], &[]).unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn a_stall_is_logged_once_when_it_begins_and_at_most_once_per_period() {
        let mut log = StallLog::new("store");
        let mut lines = 0;
        for is_stalled in [false, true, true, true, false, true, false] {
            log.observe(is_stalled, || lines += 1);
        }
        assert_eq!(lines, 1, "the second one came in the same period");
        tokio::time::advance(Duration::from_secs(11)).await;
        log.observe(true, || lines += 1);
        assert_eq!(lines, 2);
    }
}
