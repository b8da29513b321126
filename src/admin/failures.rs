//! Wrong tokens, counted by where they come from.
//!
//! More than [`ALLOWED`] within [`PERIOD`] from one source are told of in the log, and answered late and few at a time.
//! Invariants: the right token never comes here, so somebody who guesses behind the same address can't lock an operator
//! out; the table is bounded, however many sources there are. A long token is what makes guessing hopeless: this keeps
//! it from costing anything.

use std::collections::HashMap;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep};

use crate::server::Peer;
use crate::telemetry::LogThrottle;

/// The failures of one source that are answered at once.
const ALLOWED: u32 = 10;
/// Within that time.
const PERIOD: Duration = Duration::from_secs(60);
/// Further ones are answered after it.
const PAUSE: Duration = Duration::from_secs(1);
/// So many at a time; the others wait for their turn.
const PAUSES: usize = 64;
/// The most sources that are told apart.
const SOURCES: usize = 1024;

/// The failures of late.
pub(super) struct Failures {
    /// By source; `None` is all that came when the table was full.
    counts: Mutex<HashMap<Option<Peer>, Count>>,
    pauses: Semaphore,
    told: LogThrottle,
}

struct Count {
    since: Instant,
    failures: u32,
}

impl Failures {
    pub(super) fn new() -> Self {
        Self { counts: Mutex::default(), pauses: Semaphore::new(PAUSES), told: LogThrottle::default() }
    }

    /// Counts one. If there were too many, says so after a pause: in how long they are forgotten.
    pub(super) async fn count(&self, peer: Peer) -> Option<Duration> {
        let left = self.note(peer.subscriber())?;
        if let Some(held_back) = self.told.due() {
            let peer = peer.0.map(tracing::field::display);
            tracing::warn!(
                peer,
                held_back,
                "wrong admin tokens, more than {ALLOWED} in a minute: somebody is guessing"
            );
        }
        // Never closed; and without a place there is no pause, which is no harm.
        let place = self.pauses.acquire().await;
        sleep(PAUSE).await;
        drop(place);
        Some(left)
    }

    fn note(&self, source: Peer) -> Option<Duration> {
        let now = Instant::now();
        let mut source = Some(source);
        let mut counts = self.counts.lock();
        if counts.len() >= SOURCES && !counts.contains_key(&source) {
            counts.retain(|_, count| now < count.since + PERIOD);
            if counts.len() >= SOURCES {
                source = None;
            }
        }
        let count = counts.entry(source).or_insert(Count { since: now, failures: 0 });
        if now >= count.since + PERIOD {
            *count = Count { since: now, failures: 0 };
        }
        count.failures = count.failures.saturating_add(1);
        (count.failures > ALLOWED).then(|| (count.since + PERIOD).duration_since(now))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noted(failures: &Failures, peer: &str) -> bool {
        failures.note(Peer(Some(peer.parse().unwrap())).subscriber()).is_some()
    }

    #[tokio::test(start_paused = true)]
    async fn ten_failures_a_minute_are_let_pass_by_source() {
        let failures = Failures::new();
        for peer in ["192.0.2.1", "::ffff:192.0.2.2", "2001:db8::1"] {
            assert!((0..ALLOWED).all(|_| !noted(&failures, peer)), "{peer}");
            assert!(noted(&failures, peer), "{peer}");
        }
        assert!(noted(&failures, "192.0.2.2") && noted(&failures, "2001:db8::ffff:1"), "the same in another form");
        assert!(!noted(&failures, "192.0.2.3") && !noted(&failures, "2001:db8:0:1::1"));
        let before = Instant::now();
        assert_eq!(failures.count(Peer(Some("192.0.2.1".parse().unwrap()))).await, Some(PERIOD));
        assert_eq!(before.elapsed(), PAUSE);
        tokio::time::advance(PERIOD).await;
        assert!(!noted(&failures, "192.0.2.1"), "forgotten");
    }

    #[tokio::test(start_paused = true)]
    async fn the_table_is_bounded_and_what_overflows_it_is_counted_as_one() {
        let failures = Failures::new();
        let peer = |number: u32| Peer(Some(std::net::Ipv4Addr::from(number).into()));
        assert_eq!(
            (0..100_000).filter(|number| failures.note(peer(*number)).is_none()).count(),
            SOURCES + ALLOWED as usize
        );
        assert_eq!(failures.counts.lock().len(), SOURCES + 1);
        tokio::time::advance(PERIOD).await;
        assert!(failures.note(peer(200_000)).is_none());
        assert_eq!(failures.counts.lock().len(), 1, "the old ones make room");
    }
}
