//! The circuit breaker: a target that keeps failing gets single probes until it answers again. Pure.
//!
//! While it is open only probes are made, and a probe that fails does not use up its delivery's attempts: an outage,
//! however long, makes no dead letters. One event that fails again and again does not open it: that may be the event's
//! fault, and its own schedule ends it.

use std::time::Duration;

use tokio::time::Instant;

use crate::event::EventId;

/// How many consecutive failures, of more than one event, open it.
const OPENS_AFTER: u32 = 5;
/// The wait for the first probe; each failed probe doubles it.
const FIRST_WAIT: Duration = Duration::from_secs(1);

/// Whether attempts may be made.
#[derive(Debug)]
pub(super) struct Breaker {
    state: BreakerState,
    longest_wait: Duration,
}

#[derive(Debug)]
enum BreakerState {
    Closed(ConsecutiveFailures),
    Open { probe_at: Instant, wait: Duration },
    Probing { wait: Duration },
}

#[derive(Clone, Copy, Debug, Default)]
struct ConsecutiveFailures {
    count: u32,
    first: Option<EventId>,
    of_several_events: bool,
}

impl ConsecutiveFailures {
    fn with(self, event: EventId) -> Self {
        let first = self.first.unwrap_or(event);
        Self { count: self.count + 1, first: Some(first), of_several_events: self.of_several_events || first != event }
    }
}

impl Breaker {
    /// Closed. `longest_wait` bounds the time between two probes.
    pub(super) fn new(longest_wait: Duration) -> Self {
        Self { state: BreakerState::Closed(ConsecutiveFailures::default()), longest_wait }
    }

    pub(super) fn is_closed(&self) -> bool {
        matches!(self.state, BreakerState::Closed(_))
    }

    /// When the next probe may be made; `None` while it is closed or a probe is in progress.
    pub(super) fn probe_at(&self) -> Option<Instant> {
        match self.state {
            BreakerState::Open { probe_at, .. } => Some(probe_at),
            BreakerState::Closed(_) | BreakerState::Probing { .. } => None,
        }
    }

    /// Takes the probe; false if none is due. The caller makes it, or returns it with [`Breaker::return_probe`].
    pub(super) fn take_probe(&mut self, now: Instant) -> bool {
        match self.state {
            BreakerState::Open { probe_at, wait } if now >= probe_at => {
                self.state = BreakerState::Probing { wait };
                true
            }
            BreakerState::Closed(_) | BreakerState::Open { .. } | BreakerState::Probing { .. } => false,
        }
    }

    pub(super) fn record_success(&mut self) {
        self.state = BreakerState::Closed(ConsecutiveFailures::default());
    }

    /// Counts a failed attempt. Those that were in progress when it opened change nothing.
    pub(super) fn record_failure(&mut self, event: EventId, now: Instant) {
        match self.state {
            BreakerState::Closed(failures) => {
                let failures = failures.with(event);
                let opens = failures.count >= OPENS_AFTER && failures.of_several_events;
                let open = BreakerState::Open { probe_at: now + FIRST_WAIT, wait: FIRST_WAIT };
                self.state = if opens { open } else { BreakerState::Closed(failures) };
            }
            BreakerState::Probing { wait } => {
                let wait = (wait * 2).min(self.longest_wait);
                self.state = BreakerState::Open { probe_at: now + wait, wait };
            }
            BreakerState::Open { .. } => {}
        }
    }

    /// Returns a probe that was not made, because its delivery had expired.
    pub(super) fn return_probe(&mut self, now: Instant) {
        if let BreakerState::Probing { wait } = self.state {
            self.state = BreakerState::Open { probe_at: now, wait };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONGEST: Duration = Duration::from_secs(5);

    fn failing(times: u64, now: Instant) -> Breaker {
        let mut breaker = Breaker::new(LONGEST);
        (0..times).for_each(|event| breaker.record_failure(EventId(event), now));
        breaker
    }

    #[tokio::test]
    async fn it_opens_after_failures_in_a_row_only() {
        let now = Instant::now();
        let mut breaker = failing(4, now);
        breaker.record_success();
        (0..4).for_each(|event| breaker.record_failure(EventId(event), now));
        assert!(breaker.is_closed(), "the success restarted the count");
        breaker.record_failure(EventId(9), now);
        assert!(!breaker.is_closed());
    }

    #[tokio::test]
    async fn one_event_that_fails_for_ever_does_not_open_it() {
        let now = Instant::now();
        let mut breaker = Breaker::new(LONGEST);
        (0..100).for_each(|_| breaker.record_failure(EventId(7), now));
        assert!(breaker.is_closed());
        breaker.record_failure(EventId(8), now);
        assert!(!breaker.is_closed());
    }

    #[tokio::test]
    async fn while_open_one_probe_at_a_time_ever_more_rarely() {
        let mut now = Instant::now();
        let mut breaker = failing(5, now);
        for wait in [1, 2, 4, 5, 5].map(Duration::from_secs) {
            assert!(!breaker.take_probe(now));
            now += wait;
            assert_eq!(breaker.probe_at(), Some(now));
            assert!(breaker.take_probe(now));
            assert!(!breaker.take_probe(now + LONGEST), "a probe is in progress");
            breaker.record_failure(EventId(1), now);
        }
        assert!(breaker.take_probe(now + LONGEST));
        breaker.record_success();
        assert!(breaker.is_closed() && breaker.probe_at().is_none());
    }

    #[tokio::test]
    async fn a_probe_that_was_not_made_is_available_again() {
        let now = Instant::now();
        let mut breaker = failing(5, now);
        let then = now + FIRST_WAIT;
        assert!(breaker.take_probe(then));
        breaker.return_probe(then);
        assert!(breaker.take_probe(then));
    }
}
