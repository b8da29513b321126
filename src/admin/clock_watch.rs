//! Reports whether the wall clock is believed: a metric, and a log line for each change.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::clock::{ClockEvidence, ClockState};
use crate::metrics::Metrics;

/// How often the clock is compared.
const PERIOD: Duration = Duration::from_secs(1);

const REMEDY: &str = "run NTP on this machine; until the clock agrees, nothing is deleted or expired by age";

/// Compares until `stop`. A jump is noted here too, when neither a push nor the deletion looks at the clock.
pub async fn watch_clock(clock: ClockEvidence, metrics: Arc<Metrics>, stop: CancellationToken) {
    let mut was_suspect = false;
    loop {
        let state = clock.state();
        let is_suspect = state.is_suspect();
        metrics.clock_suspect.set(is_suspect.into());
        match (was_suspect, is_suspect) {
            (false, true) => {
                let ahead_seconds = if let ClockState::Differs(seconds) = state { Some(seconds) } else { None };
                tracing::warn!(clock = state.name(), ahead_seconds, remedy = REMEDY, "clock suspect");
            }
            (true, false) => tracing::warn!(clock = state.name(), "clock no longer suspect"),
            (true, true) | (false, false) => {}
        }
        was_suspect = is_suspect;
        tokio::select! {
            () = tokio::time::sleep(PERIOD) => {}
            () = stop.cancelled() => return,
        }
    }
}
