//! Whether a target answers, as the attempts of this process have shown.

use std::sync::atomic::{AtomicI64, Ordering};

use parking_lot::Mutex;

use crate::clock::UnixMillis;
use crate::ordered;

/// How long failures are counted, in minutes.
const MINUTES: usize = 60;
/// The most kinds of failures; further ones count as the last.
const KINDS: usize = 20;
/// What further ones are called.
const OTHERS: &str = "other errors";
/// No such moment.
const NEVER: i64 = 0;

/// What the attempts at one target have shown. Written by its lane, read by operators.
#[derive(Debug, Default)]
pub struct TargetHealth {
    /// As milliseconds; without a lock, as every delivery writes it.
    last_success: AtomicI64,
    next_due: AtomicI64,
    seen: Mutex<TargetFindings>,
}

/// A copy of what is known.
#[derive(Clone, Debug, Default)]
pub struct TargetFindings {
    /// Whether the circuit breaker is open.
    pub is_down: bool,
    /// Since when it is up, down or paused; `None` if it is paused since before the start.
    pub since: Option<UnixMillis>,
    /// When the next probe may be made; `None` while it is up, or a probe is in progress.
    pub next_probe: Option<UnixMillis>,
    /// When the next delivery is due that waits for a retry.
    pub next_due: Option<UnixMillis>,
    /// The last delivery.
    pub last_success: Option<UnixMillis>,
    /// The last attempt that failed.
    pub last_failure: Option<UnixMillis>,
    /// The failures of the last hour by cause, the latest first.
    pub failures: Vec<FailureCount>,
}

/// The failures of the last hour with one status and one error.
#[derive(Clone, Debug)]
pub struct FailureCount {
    /// The status of the answer, if there was one.
    pub status: Option<u16>,
    /// What the attempts' records say.
    pub error: String,
    /// How many.
    pub count: u32,
    /// The latest.
    pub last: UnixMillis,
    /// By minute, so that they leave the hour.
    minutes: [u32; MINUTES],
}

impl TargetHealth {
    /// A delivery was made.
    pub fn note_success(&self, at: UnixMillis) {
        self.last_success.store(at.0, Ordering::Relaxed);
    }

    /// An attempt failed.
    pub fn note_failure(&self, at: UnixMillis, status: Option<u16>, error: &str) {
        let mut seen = self.seen.lock();
        seen.last_failure = Some(at);
        seen.forget(at);
        let known = seen.failures.iter().position(|one| one.status == status && one.error == error);
        let index = known.unwrap_or_else(|| {
            let is_full = seen.failures.len() >= KINDS;
            if is_full && seen.failures.last().is_some_and(|last| last.error == OTHERS) {
                return seen.failures.len() - 1;
            }
            let (status, error) = if is_full { (None, OTHERS) } else { (status, error) };
            let new = FailureCount { status, error: error.to_owned(), count: 0, last: at, minutes: [0; MINUTES] };
            seen.failures.push(new);
            seen.failures.len() - 1
        });
        if let Some(one) = seen.failures.get_mut(index) {
            one.count = one.count.saturating_add(1);
            one.last = at;
            let minute = &mut one.minutes[minute(at)];
            *minute = minute.saturating_add(1);
        }
    }

    /// The circuit breaker opened or closed, or the lane has begun.
    pub fn note_state(&self, at: UnixMillis, is_down: bool) {
        let mut seen = self.seen.lock();
        (seen.is_down, seen.since) = (is_down, Some(at));
        seen.next_probe = None;
    }

    /// When the next probe may be made.
    pub fn note_probe(&self, at: Option<UnixMillis>) {
        self.seen.lock().next_probe = at;
    }

    /// When the next delivery is due that waits for a retry.
    pub fn note_due(&self, at: Option<UnixMillis>) {
        self.next_due.store(at.map_or(NEVER, |at| at.0), Ordering::Relaxed);
    }

    /// All that is known.
    pub fn findings(&self, now: UnixMillis) -> TargetFindings {
        let mut seen = self.seen.lock();
        seen.forget(now);
        let mut found = seen.clone();
        drop(seen);
        let moment = |of: &AtomicI64| Some(of.load(Ordering::Relaxed)).filter(|at| *at != NEVER).map(UnixMillis);
        found.last_success = moment(&self.last_success);
        found.next_due = moment(&self.next_due).filter(|at| *at > now);
        ordered::sort(&mut found.failures, |one, other| other.last.cmp(&one.last));
        found
    }
}

impl TargetFindings {
    /// Drops the failures that are older than an hour.
    fn forget(&mut self, now: UnixMillis) {
        let hour = MINUTES as i64;
        for one in &mut self.failures {
            let passed = now.0.div_euclid(60_000) - one.last.0.div_euclid(60_000);
            // The minutes after its last failure have nothing, and those of the hour before may not count as now.
            for later in 1..=passed.clamp(0, hour) {
                one.minutes[minute(UnixMillis(one.last.0 + later * 60_000))] = 0;
            }
            one.count = one.minutes.iter().fold(0, |sum, count| sum.saturating_add(*count));
        }
        self.failures.retain(|one| one.count > 0);
    }
}

/// Where the failures of a minute are counted.
fn minute(at: UnixMillis) -> usize {
    usize::try_from(at.0.div_euclid(60_000).rem_euclid(MINUTES as i64)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(minutes: i64) -> UnixMillis {
        UnixMillis(1_795_161_600_000 + minutes * 60_000)
    }

    fn counts(health: &TargetHealth, now: UnixMillis) -> Vec<(Option<u16>, String, u32)> {
        health.findings(now).failures.into_iter().map(|one| (one.status, one.error, one.count)).collect()
    }

    #[test]
    fn failures_are_counted_by_cause_for_an_hour() {
        let health = TargetHealth::default();
        for minutes in [0, 0, 10, 59] {
            health.note_failure(at(minutes), Some(503), "answered 503");
        }
        health.note_failure(at(60), None, "timed out");
        let [unavailable, late] = ["answered 503", "timed out"].map(str::to_owned);
        let both = [(None, late.clone(), 1), (Some(503), unavailable.clone(), 2)];
        assert_eq!(counts(&health, at(60)), both, "the first two are an hour old");
        assert_eq!(counts(&health, at(119)), [(None, late, 1)]);
        assert!(counts(&health, at(120)).is_empty());
        assert_eq!(health.findings(at(500)).last_failure, Some(at(60)));
        health.note_failure(at(501), Some(503), "answered 503");
        assert_eq!(counts(&health, at(501)), [(Some(503), unavailable, 1)]);
    }

    #[test]
    fn any_number_of_causes_takes_bounded_memory() {
        let health = TargetHealth::default();
        (0..1000).for_each(|number| health.note_failure(at(number / 500), None, &format!("error {number}")));
        let found = counts(&health, at(1));
        assert_eq!(found.len(), KINDS + 1);
        assert_eq!(found.iter().map(|(.., count)| count).sum::<u32>(), 1000);
        assert!(found.contains(&(None, OTHERS.to_owned(), 980)));
    }

    #[test]
    fn a_state_has_its_beginning_and_a_due_time_in_the_past_is_none() {
        let health = TargetHealth::default();
        health.note_state(at(1), true);
        health.note_probe(Some(at(2)));
        health.note_due(Some(at(3)));
        let found = health.findings(at(2));
        assert_eq!((found.is_down, found.since, found.next_probe), (true, Some(at(1)), Some(at(2))));
        assert_eq!((found.next_due, found.last_success), (Some(at(3)), None));
        health.note_state(at(3), false);
        health.note_success(at(4));
        let found = health.findings(at(4));
        assert_eq!((found.is_down, found.since, found.next_probe), (false, Some(at(3)), None));
        assert_eq!((found.next_due, found.last_success), (None, Some(at(4))));
    }
}
