//! What systemd is told while the relay runs: that it lives, and how it stands.
//!
//! Invariant: WATCHDOG=1 is sent only after every part has answered anew, never by a timer alone. So a relay that hangs
//! is restarted by systemd (`WatchdogSec=`), and a store that fails, which a restart does not mend, is not.

use std::sync::Arc;
use std::time::Duration;

use sd_notify::NotifyState;
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval, timeout};

use crate::app::App;

/// How often the status is told at least.
const STATUS: Duration = Duration::from_secs(10);

/// The task that reports.
pub(super) struct Reports(Option<JoinHandle<()>>);

impl Reports {
    /// Reports from now on, if somebody listens.
    pub(super) fn begin(app: &Arc<App>) -> Self {
        let is_asked = std::env::var_os("NOTIFY_SOCKET").is_some();
        Self(is_asked.then(|| tokio::spawn(report(app.clone(), sd_notify::watchdog_enabled()))))
    }

    /// Reports no more.
    pub(super) fn end(self) {
        self.0.iter().for_each(JoinHandle::abort);
    }
}

/// Tells systemd, if it asked to be told.
pub(super) fn notify(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!(%error, "systemd can't be notified");
    }
}

/// `limit`: how long systemd waits for a sign of life.
async fn report(app: Arc<App>, limit: Option<Duration>) {
    // Twice as often as systemd looks, so that one late answer is no death.
    let period = limit.map_or(STATUS, |limit| (limit / 2).min(STATUS));
    let mut ticks = interval(period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let pulse = timeout(period, app.pulse()).await.unwrap_or(Err("store"));
        if let Err(part) = pulse {
            tracing::error!(part, "a part of the relay does not answer; systemd will restart the relay if that lasts");
        }
        if let Some(sign) = sign_of_life(pulse, limit) {
            notify(&[sign]);
        }
        let summary = timeout(period / 2, app.summary()).await;
        let summary = pulse.map_err(|part| format!("{part}: no answer")).map(|()| summary);
        let text = match &summary {
            Err(text) | Ok(Ok(text)) => text,
            Ok(Err(_)) => "the store cannot be read in time",
        };
        notify(&[NotifyState::Status(text)]);
    }
}

/// What the watchdog is told of the pulse that was felt.
fn sign_of_life(pulse: Result<(), &'static str>, limit: Option<Duration>) -> Option<NotifyState<'static>> {
    (pulse.is_ok() && limit.is_some()).then_some(NotifyState::Watchdog)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_watchdog_is_told_of_a_pulse_and_of_nothing_else() {
        let limit = Some(Duration::from_secs(60));
        assert!(matches!(sign_of_life(Ok(()), limit), Some(NotifyState::Watchdog)));
        assert!(sign_of_life(Err("store"), limit).is_none(), "a part that hangs or has ended");
        assert!(sign_of_life(Ok(()), None).is_none(), "nobody asked");
    }
}
