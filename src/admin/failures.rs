//! Wrong admin tokens, counted by source.
//!
//! More than [`ALLOWED`] within [`PERIOD`] from one source are logged, and answered late while few are delayed: a delayed
//! request holds its connection, so it must not be cheap to hold them all.
//! Invariants: a request with the right token is never counted or delayed, so an attacker behind the same address
//! cannot lock an operator out; the table is bounded. The token's length defeats guessing; this keeps guesses cheap.

use std::collections::HashMap;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep};

use crate::server::Peer;
use crate::telemetry::LogThrottle;

/// The failures of one source that are answered at once, within [`PERIOD`].
const ALLOWED: u32 = 10;
const PERIOD: Duration = Duration::from_secs(60);
/// The delay of further failures.
const DELAY: Duration = Duration::from_secs(1);
/// The most concurrent delays; further requests are answered at once.
const MAX_DELAYED: usize = 64;
/// The most sources that are counted separately.
const MAX_SOURCES: usize = 1024;

pub(super) struct TokenFailures {
    /// The counts by source; that of `None` is for all sources that did not fit into the table.
    counts: Mutex<HashMap<Option<Peer>, FailureCount>>,
    delayed: Semaphore,
    warnings: LogThrottle,
}

struct FailureCount {
    since: Instant,
    failures: u32,
}

impl TokenFailures {
    pub(super) fn new() -> Self {
        Self { counts: Mutex::default(), delayed: Semaphore::new(MAX_DELAYED), warnings: LogThrottle::default() }
    }

    /// Counts a failure. After too many from one source, returns late, with the time until their count is reset.
    pub(super) async fn record(&self, peer: Peer) -> Option<Duration> {
        let remaining = self.count(peer.subscriber())?;
        if let Some(suppressed) = self.warnings.allow() {
            let peer = peer.0.map(tracing::field::display);
            tracing::warn!(
                peer,
                held_back = suppressed,
                limit = ALLOWED,
                "too many wrong admin tokens within a minute"
            );
        }
        if let Ok(_permit) = self.delayed.try_acquire() {
            sleep(DELAY).await;
        }
        Some(remaining)
    }

    fn count(&self, source: Peer) -> Option<Duration> {
        let now = Instant::now();
        let mut source = Some(source);
        let mut counts = self.counts.lock();
        if counts.len() >= MAX_SOURCES && !counts.contains_key(&source) {
            counts.retain(|_, count| now < count.since + PERIOD);
            if counts.len() >= MAX_SOURCES {
                source = None;
            }
        }
        let count = counts.entry(source).or_insert(FailureCount { since: now, failures: 0 });
        if now >= count.since + PERIOD {
            *count = FailureCount { since: now, failures: 0 };
        }
        count.failures = count.failures.saturating_add(1);
        (count.failures > ALLOWED).then(|| (count.since + PERIOD).duration_since(now))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_limited(failures: &TokenFailures, peer: &str) -> bool {
        failures.count(Peer(Some(peer.parse().unwrap())).subscriber()).is_some()
    }

    #[tokio::test(start_paused = true)]
    async fn ten_failures_a_minute_are_allowed_per_source() {
        let failures = TokenFailures::new();
        for peer in ["192.0.2.1", "::ffff:192.0.2.2", "2001:db8::1"] {
            assert!((0..ALLOWED).all(|_| !is_limited(&failures, peer)), "{peer}");
            assert!(is_limited(&failures, peer), "{peer}");
        }
        assert!(
            is_limited(&failures, "192.0.2.2") && is_limited(&failures, "2001:db8::ffff:1"),
            "the same in another form"
        );
        assert!(!is_limited(&failures, "192.0.2.3") && !is_limited(&failures, "2001:db8:0:1::1"));
        let before = Instant::now();
        assert_eq!(failures.record(Peer(Some("192.0.2.1".parse().unwrap()))).await, Some(PERIOD));
        assert_eq!(before.elapsed(), DELAY);
        tokio::time::advance(PERIOD).await;
        assert!(!is_limited(&failures, "192.0.2.1"), "forgotten");
    }

    #[tokio::test(start_paused = true)]
    async fn the_table_is_bounded_and_what_overflows_it_is_counted_as_one() {
        let failures = TokenFailures::new();
        let peer = |number: u32| Peer(Some(std::net::Ipv4Addr::from(number).into()));
        assert_eq!(
            (0..100_000).filter(|number| failures.count(peer(*number)).is_none()).count(),
            MAX_SOURCES + ALLOWED as usize
        );
        assert_eq!(failures.counts.lock().len(), MAX_SOURCES + 1);
        tokio::time::advance(PERIOD).await;
        assert!(failures.count(peer(200_000)).is_none());
        assert_eq!(failures.counts.lock().len(), 1, "the old ones are removed");
    }
}
