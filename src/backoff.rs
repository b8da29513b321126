//! When to retry: a schedule of waits, jittered, that a target can only lengthen. Pure.

#![warn(missing_docs)]

use std::time::Duration;

/// The longest wait that a target's `Retry-After` can ask for.
const RETRY_AFTER_CAP: Duration = Duration::from_secs(3600);

/// The waits between attempts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Schedule {
    waits: Vec<Duration>,
    repeat_last: bool,
}

impl Schedule {
    /// A schedule that ends after its last wait: one attempt more than `waits`.
    pub fn ending(waits: Vec<Duration>) -> Self {
        Self { waits, repeat_last: false }
    }

    /// A schedule whose last wait repeats; the delivery's expiry ends it.
    pub fn repeating(waits: Vec<Duration>) -> Self {
        Self { waits, repeat_last: true }
    }

    /// The wait after failed attempt number `attempt` (from 1), or `None` after the last.
    ///
    /// `jitter` is a random number from 0 to 1 that spreads the wait over 80 % to 120 %; `retry_after` is what the
    /// target asked for: it can only lengthen the wait, to one hour at most.
    pub fn wait(&self, attempt: u32, jitter: f64, retry_after: Option<Duration>) -> Option<Duration> {
        let index = usize::try_from(attempt.saturating_sub(1)).unwrap_or(usize::MAX);
        let last = if self.repeat_last { self.waits.last() } else { None };
        let wait = self.waits.get(index).or(last)?.mul_f64(0.8 + 0.4 * jitter.clamp(0.0, 1.0));
        Some(retry_after.map_or(wait, |asked| wait.max(asked.min(RETRY_AFTER_CAP))))
    }

    /// The longest wait that this schedule and a target's `Retry-After` can lead to.
    pub fn longest_wait(&self) -> Duration {
        self.waits.iter().max().map_or(RETRY_AFTER_CAP, |longest| longest.mul_f64(1.2).max(RETRY_AFTER_CAP))
    }

    /// The waits as configured.
    pub fn waits(&self) -> &[Duration] {
        &self.waits
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn ends_after_the_last_wait_unless_it_repeats() {
        let waits = vec![SECOND, 5 * SECOND];
        let ending = Schedule::ending(waits.clone());
        assert_eq!(ending.wait(1, 0.5, None), Some(SECOND));
        assert_eq!(ending.wait(2, 0.5, None), Some(5 * SECOND));
        assert_eq!(ending.wait(3, 0.5, None), None);
        assert_eq!(Schedule::repeating(waits).wait(99, 0.5, None), Some(5 * SECOND));
        assert_eq!(Schedule::repeating(Vec::new()).wait(1, 0.5, None), None);
    }

    #[test]
    fn jitter_stays_within_a_fifth() {
        let schedule = Schedule::ending(vec![10 * SECOND]);
        assert_eq!(schedule.wait(1, 0.0, None), Some(8 * SECOND));
        assert_eq!(schedule.wait(1, 1.0, None), Some(12 * SECOND));
    }

    #[test]
    fn retry_after_only_lengthens_and_is_capped() {
        let schedule = Schedule::ending(vec![10 * SECOND]);
        assert_eq!(schedule.wait(1, 0.5, Some(SECOND)), Some(10 * SECOND));
        assert_eq!(schedule.wait(1, 0.5, Some(60 * SECOND)), Some(60 * SECOND));
        assert_eq!(schedule.wait(1, 0.5, Some(90_000 * SECOND)), Some(RETRY_AFTER_CAP));
    }
}
