//! Notifications to systemd while the relay runs: the watchdog and a status line.
//!
//! Invariant: WATCHDOG=1 is sent only after every part has answered again, never by a timer alone. So systemd restarts
//! a relay that hangs (`WatchdogSec=`), but not one whose store rejects events: a restart does not fix that.

use std::sync::Arc;
use std::time::Duration;

use sd_notify::NotifyState;
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval, timeout};

use crate::app::App;

/// The longest interval between two status lines.
const STATUS_INTERVAL: Duration = Duration::from_secs(10);

/// The task that notifies systemd.
pub(super) struct SystemdReporter(Option<JoinHandle<()>>);

impl SystemdReporter {
    /// Starts the task if `NOTIFY_SOCKET` is set.
    pub(super) fn start(app: &Arc<App>) -> Self {
        let is_asked = std::env::var_os("NOTIFY_SOCKET").is_some();
        Self(is_asked.then(|| tokio::spawn(report(app.clone(), sd_notify::watchdog_enabled()))))
    }

    pub(super) fn stop(self) {
        self.0.iter().for_each(JoinHandle::abort);
    }
}

/// Notifies systemd if `NOTIFY_SOCKET` is set.
pub(super) fn notify(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!(%error, "systemd can't be notified");
    }
}

/// Notifies systemd at an interval. `limit` is systemd's watchdog timeout.
async fn report(app: Arc<App>, limit: Option<Duration>) {
    // Half of the timeout, so that one late answer does not restart the relay.
    let period = limit.map_or(STATUS_INTERVAL, |limit| (limit / 2).min(STATUS_INTERVAL));
    let mut ticks = interval(period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let pulse = timeout(period, app.pulse()).await.unwrap_or(Err("store"));
        if let Err(part) = pulse {
            tracing::error!(part, "component not responding, systemd will restart the relay if it stays so");
        }
        if let Some(sign) = watchdog_notification(pulse, limit) {
            notify(&[sign]);
        }
        let summary = timeout(period / 2, app.summary()).await;
        let summary = pulse.map_err(|part| format!("{part}: no answer")).map(|()| summary);
        let text = match &summary {
            Err(text) | Ok(Ok(text)) => text,
            Ok(Err(_)) => "the store did not answer in time",
        };
        notify(&[NotifyState::Status(text)]);
    }
}

/// WATCHDOG=1 if every part has answered and systemd has a watchdog.
fn watchdog_notification(pulse: Result<(), &'static str>, limit: Option<Duration>) -> Option<NotifyState<'static>> {
    (pulse.is_ok() && limit.is_some()).then_some(NotifyState::Watchdog)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_watchdog_is_notified_of_a_pulse_and_of_nothing_else() {
        let limit = Some(Duration::from_secs(60));
        assert!(matches!(watchdog_notification(Ok(()), limit), Some(NotifyState::Watchdog)));
        assert!(watchdog_notification(Err("store"), limit).is_none(), "a part that hangs or has ended");
        assert!(watchdog_notification(Ok(()), None).is_none(), "no watchdog");
    }
}
