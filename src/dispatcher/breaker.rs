//! The circuit breaker: a target that keeps failing is tried by single probes until it answers again. Pure.
//!
//! While it is open no attempt but a probe is made, and a probe that fails does not use up its delivery's attempts: an
//! outage, however long, kills nothing that waits. One event that fails again and again does not open it: that may be
//! the event's fault, and its own schedule ends it.

use std::time::Duration;

use tokio::time::Instant;

use crate::event::EventId;

/// Failures in a row, of more than one event, that open it.
const OPENS_AFTER: u32 = 5;
/// The wait for the first probe; each that fails doubles it.
const FIRST_WAIT: Duration = Duration::from_secs(1);

/// Whether attempts may be made.
#[derive(Debug)]
pub(super) struct Breaker {
    state: State,
    longest_wait: Duration,
}

#[derive(Debug)]
enum State {
    Closed(Failures),
    Open { probe_at: Instant, wait: Duration },
    Probing { wait: Duration },
}

/// The failures in a row.
#[derive(Clone, Copy, Debug, Default)]
struct Failures {
    count: u32,
    first: Option<EventId>,
    of_several: bool,
}

impl Failures {
    fn and(self, event: EventId) -> Self {
        let first = self.first.unwrap_or(event);
        Self { count: self.count + 1, first: Some(first), of_several: self.of_several || first != event }
    }
}

impl Breaker {
    /// Closed. `longest_wait` bounds the time between two probes.
    pub(super) fn new(longest_wait: Duration) -> Self {
        Self { state: State::Closed(Failures::default()), longest_wait }
    }

    pub(super) fn is_closed(&self) -> bool {
        matches!(self.state, State::Closed(_))
    }

    /// When the next probe may be made; `None` while it is closed or a probe is under way.
    pub(super) fn probe_at(&self) -> Option<Instant> {
        match self.state {
            State::Open { probe_at, .. } => Some(probe_at),
            State::Closed(_) | State::Probing { .. } => None,
        }
    }

    /// Asks for a probe, which must be made or given back with [`Breaker::returned`].
    pub(super) fn probe(&mut self, now: Instant) -> bool {
        match self.state {
            State::Open { probe_at, wait } if now >= probe_at => {
                self.state = State::Probing { wait };
                true
            }
            State::Closed(_) | State::Open { .. } | State::Probing { .. } => false,
        }
    }

    /// The target answered.
    pub(super) fn answered(&mut self) {
        self.state = State::Closed(Failures::default());
    }

    /// An attempt failed. Those that were under way when it opened change nothing.
    pub(super) fn failed(&mut self, event: EventId, now: Instant) {
        match self.state {
            State::Closed(failures) => {
                let failures = failures.and(event);
                let opens = failures.count >= OPENS_AFTER && failures.of_several;
                let open = State::Open { probe_at: now + FIRST_WAIT, wait: FIRST_WAIT };
                self.state = if opens { open } else { State::Closed(failures) };
            }
            State::Probing { wait } => {
                let wait = (wait * 2).min(self.longest_wait);
                self.state = State::Open { probe_at: now + wait, wait };
            }
            State::Open { .. } => {}
        }
    }

    /// A probe that was not made: its delivery had expired.
    pub(super) fn returned(&mut self, now: Instant) {
        if let State::Probing { wait } = self.state {
            self.state = State::Open { probe_at: now, wait };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONGEST: Duration = Duration::from_secs(5);

    fn failing(times: u64, now: Instant) -> Breaker {
        let mut breaker = Breaker::new(LONGEST);
        (0..times).for_each(|event| breaker.failed(EventId(event), now));
        breaker
    }

    #[tokio::test]
    async fn it_opens_after_failures_in_a_row_only() {
        let now = Instant::now();
        let mut breaker = failing(4, now);
        breaker.answered();
        (0..4).for_each(|event| breaker.failed(EventId(event), now));
        assert!(breaker.is_closed(), "the answer began the count anew");
        breaker.failed(EventId(9), now);
        assert!(!breaker.is_closed());
    }

    #[tokio::test]
    async fn one_event_that_fails_for_ever_does_not_open_it() {
        let now = Instant::now();
        let mut breaker = Breaker::new(LONGEST);
        (0..100).for_each(|_| breaker.failed(EventId(7), now));
        assert!(breaker.is_closed());
        breaker.failed(EventId(8), now);
        assert!(!breaker.is_closed());
    }

    #[tokio::test]
    async fn while_open_one_probe_at_a_time_ever_more_rarely() {
        let mut now = Instant::now();
        let mut breaker = failing(5, now);
        for wait in [1, 2, 4, 5, 5].map(Duration::from_secs) {
            assert!(!breaker.probe(now));
            now += wait;
            assert_eq!(breaker.probe_at(), Some(now));
            assert!(breaker.probe(now));
            assert!(!breaker.probe(now + LONGEST), "a probe is under way");
            breaker.failed(EventId(1), now);
        }
        assert!(breaker.probe(now + LONGEST));
        breaker.answered();
        assert!(breaker.is_closed() && breaker.probe_at().is_none());
    }

    #[tokio::test]
    async fn a_probe_that_was_not_made_is_had_again() {
        let now = Instant::now();
        let mut breaker = failing(5, now);
        let then = now + FIRST_WAIT;
        assert!(breaker.probe(then));
        breaker.returned(then);
        assert!(breaker.probe(then));
    }
}
