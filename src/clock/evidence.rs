//! Whether the wall clock can be believed: it is compared with the timestamps that WeChat signed, and with the
//! monotonic clock.
//!
//! A signed timestamp cannot be from the future of WeChat's clock, but a captured push can be sent again at any time.
//! So the newest one counts: at the moment it came, WeChat's clock showed at least that time, and since then as much
//! more as the monotonic clock measured. Older timestamps change nothing. The wall clock agrees while it is within the
//! bound of that time.
//!
//! | the wall clock | what holds |
//! |---|---|
//! | agrees with the newest timestamp | it is believed |
//! | is behind it | it is wrong, until it agrees |
//! | is ahead of it, has jumped, or there is no timestamp yet | it is not believed until it agrees, or until for [`PATIENCE`] neither it jumped nor a timestamp confirmed the disagreement |
//!
//! While it is not believed, nothing is deleted or expired by age. The last row has an end, as an account may get no
//! push, or only copies of old ones.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use super::UnixMillis;

/// How long a disagreement that no signed timestamp confirms any more keeps old data from being deleted.
const PATIENCE: Duration = Duration::from_secs(24 * 3600);
/// The bound where no account has a `max_skew`.
const DEFAULT_BOUND: Duration = Duration::from_secs(600);
/// The least bound: a push takes some seconds to arrive.
const LEAST_BOUND: Duration = Duration::from_secs(60);
/// A step back of the wall clock that is noted. Less may be a thread that was suspended between two readings.
const SET_BACK: i64 = 1000;

/// Whether the wall clock is believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClockState {
    /// It agrees with WeChat's signed timestamps, or nothing has spoken against it for a day.
    Agrees,
    /// The process is young, and no push has confirmed it yet.
    Unconfirmed,
    /// It is this many seconds ahead of WeChat's signed timestamps, or behind them if negative.
    Differs(i64),
    /// It jumped, and no push has confirmed it since.
    Jumped,
}

impl ClockState {
    /// Its name in the API.
    pub fn name(self) -> &'static str {
        match self {
            Self::Agrees => "agrees",
            Self::Unconfirmed => "unconfirmed",
            Self::Differs(_) => "differs",
            Self::Jumped => "jumped",
        }
    }

    /// Whether there is evidence against the clock.
    pub fn is_suspect(self) -> bool {
        matches!(self, Self::Differs(_) | Self::Jumped)
    }
}

/// What is known about the wall clock; cheap to clone.
#[derive(Clone, Debug)]
pub struct ClockEvidence(Arc<Mutex<Evidence>>);

/// Offsets are the difference of a clock from the monotonic one, in milliseconds: while both run at the same speed, an
/// offset does not change.
#[derive(Debug)]
struct Evidence {
    /// The zero of the monotonic clock.
    start: Instant,
    bound: i64,
    /// The wall clock's offset at the last reading.
    wall: i64,
    /// The offset of the newest signed timestamp: the largest one.
    signed: Option<i64>,
    /// Whether that timestamp came to this process, not to an earlier one.
    is_live: bool,
    /// Whether the wall clock jumped, and has not agreed since.
    has_jumped: bool,
    /// When the process started, the clock jumped, or a timestamp near the newest came: the latest of these.
    since: Instant,
    /// When the wall clock was last set back; the start of the process if it never was.
    set_back_at: Instant,
    #[cfg(test)]
    is_trusted: bool,
}

impl Default for ClockEvidence {
    fn default() -> Self {
        let start = Instant::now();
        Self(Arc::new(Mutex::new(Evidence {
            start,
            bound: millis(DEFAULT_BOUND),
            wall: UnixMillis::now().0,
            signed: None,
            is_live: false,
            has_jumped: false,
            since: start,
            set_back_at: start,
            #[cfg(test)]
            is_trusted: false,
        })))
    }
}

impl ClockEvidence {
    /// Sets how far the clock may be from WeChat's timestamps: the longest `max_skew` of an account; `None` if all of
    /// them accept any timestamp.
    pub fn set_bound(&self, max_skew: Option<Duration>) {
        self.0.lock().bound = millis(max_skew.unwrap_or(DEFAULT_BOUND).max(LEAST_BOUND));
    }

    /// Notes the timestamp of a request with a valid signature, in seconds, whether the request is accepted or not.
    pub fn record(&self, signed: i64) {
        let mut evidence = self.0.lock();
        let now = evidence.read();
        let signed = signed.saturating_mul(1000).saturating_sub(evidence.monotonic(now));
        let newest = evidence.signed.map_or(signed, |newest| newest.max(signed));
        if signed >= newest.saturating_sub(evidence.bound) {
            evidence.since = now;
            evidence.is_live = true;
        }
        evidence.signed = Some(newest);
    }

    /// Notes the timestamp of the newest event that an earlier process stored. It is a lower bound alone.
    pub fn record_stored(&self, signed: i64) {
        let mut evidence = self.0.lock();
        let now = evidence.read();
        let signed = signed.saturating_mul(1000).saturating_sub(evidence.monotonic(now));
        evidence.signed = Some(evidence.signed.map_or(signed, |newest| newest.max(signed)));
    }

    /// Compares the wall clock with what is known.
    pub fn state(&self) -> ClockState {
        let mut evidence = self.0.lock();
        let now = evidence.read();
        evidence.state(now)
    }

    /// Whether nothing may be deleted or expired by age now.
    pub fn holds_age(&self) -> bool {
        #[cfg(test)]
        if self.0.lock().is_trusted {
            return false;
        }
        self.state() != ClockState::Agrees
    }

    /// The time for what must be judged by some clock even while the wall clock is not believed: then that of the newest
    /// signed timestamp, if it is earlier.
    pub fn earliest(&self) -> UnixMillis {
        let mut evidence = self.0.lock();
        let now = evidence.read();
        let wall = UnixMillis::now();
        #[cfg(test)]
        if evidence.is_trusted {
            return wall;
        }
        let signed = evidence.signed.map(|signed| UnixMillis(signed.saturating_add(evidence.monotonic(now))));
        signed.filter(|_| evidence.state(now) != ClockState::Agrees).map_or(wall, |signed| signed.min(wall))
    }

    /// The age of what was received at that time. A time in the future is one of a clock that was set back since: then
    /// it is at least as old as that.
    pub fn age(&self, received_at: UnixMillis) -> Duration {
        let mut evidence = self.0.lock();
        let now = evidence.read();
        let wall = UnixMillis::now();
        #[cfg(test)]
        if evidence.is_trusted {
            return wall.since(received_at);
        }
        if received_at > wall { now.duration_since(evidence.set_back_at) } else { wall.since(received_at) }
    }

    /// The wall clock's difference from the monotonic one, in milliseconds: it becomes less when the clock is set back.
    pub fn wall_offset(&self) -> i64 {
        let mut evidence = self.0.lock();
        evidence.read();
        evidence.wall
    }

    /// Believes the clock whatever it shows: for simulations, which set it.
    #[cfg(test)]
    pub(crate) fn trust(&self) {
        self.0.lock().is_trusted = true;
    }
}

impl Evidence {
    /// Reads both clocks, and notes a jump of the wall clock.
    fn read(&mut self) -> Instant {
        let now = Instant::now();
        let wall = UnixMillis::now().0.saturating_sub(self.monotonic(now));
        if wall.abs_diff(self.wall) > self.bound.unsigned_abs() {
            self.has_jumped = true;
            self.since = now;
        }
        if wall < self.wall.saturating_sub(SET_BACK) {
            self.set_back_at = now;
        }
        self.wall = wall;
        now
    }

    fn monotonic(&self, now: Instant) -> i64 {
        millis(now.duration_since(self.start))
    }

    fn state(&mut self, now: Instant) -> ClockState {
        let ahead = self.signed.map(|signed| self.wall.saturating_sub(signed));
        if ahead.is_some_and(|ahead| ahead.unsigned_abs() <= self.bound.unsigned_abs()) {
            self.has_jumped = false;
            return ClockState::Agrees;
        }
        let seconds = ahead.unwrap_or_default() / 1000;
        if seconds < 0 {
            return ClockState::Differs(seconds);
        }
        if now.duration_since(self.since) > PATIENCE {
            return ClockState::Agrees;
        }
        match (self.is_live, self.has_jumped) {
            (true, _) => ClockState::Differs(seconds),
            (false, true) => ClockState::Jumped,
            (false, false) => ClockState::Unconfirmed,
        }
    }
}

fn millis(span: Duration) -> i64 {
    i64::try_from(span.as_millis()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::simulated;

    const NOW: UnixMillis = UnixMillis(1_795_161_600_000);
    const MINUTE: Duration = Duration::from_secs(60);
    const DAY: Duration = Duration::from_secs(86_400);

    fn evidence() -> ClockEvidence {
        simulated::set(Some(NOW));
        let evidence = ClockEvidence::default();
        evidence.set_bound(Some(5 * MINUTE));
        evidence
    }

    fn jump(by: i64) {
        simulated::set(Some(UnixMillis(UnixMillis::now().0 + by * 1000)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_clock_is_believed_once_a_push_agrees_or_after_a_day_without_any() {
        let clock = evidence();
        assert_eq!(clock.state(), ClockState::Unconfirmed);
        assert!(clock.holds_age() && !clock.state().is_suspect());
        clock.record(NOW.seconds() - 20);
        assert_eq!(clock.state(), ClockState::Agrees);
        let quiet = evidence();
        tokio::time::advance(DAY + MINUTE).await;
        assert_eq!(quiet.state(), ClockState::Agrees);
    }

    #[tokio::test(start_paused = true)]
    async fn a_clock_that_jumps_ahead_is_suspect_until_it_is_set_right() {
        let clock = evidence();
        clock.record(NOW.seconds());
        jump(8 * 86_400);
        assert_eq!(clock.state(), ClockState::Differs(8 * 86_400));
        for _ in 0..48 {
            tokio::time::advance(60 * MINUTE).await;
            clock.record(UnixMillis::now().seconds() - 8 * 86_400);
            assert!(clock.holds_age(), "each push confirms it");
        }
        jump(-8 * 86_400);
        assert_eq!(clock.state(), ClockState::Agrees, "without a further push");
    }

    #[tokio::test(start_paused = true)]
    async fn a_jump_before_the_first_push_is_suspect_until_one_agrees() {
        let clock = evidence();
        jump(8 * 86_400);
        assert_eq!(clock.state(), ClockState::Jumped);
        clock.record(UnixMillis::now().seconds());
        assert_eq!(clock.state(), ClockState::Agrees);
    }

    #[tokio::test(start_paused = true)]
    async fn copies_of_old_pushes_hold_nothing_while_true_ones_come_and_a_day_at_most_otherwise() {
        let clock = evidence();
        clock.record(NOW.seconds());
        for _ in 0..100 {
            clock.record(NOW.seconds() - 3 * 86_400);
            assert_eq!(clock.state(), ClockState::Agrees);
        }
        let quiet = evidence();
        let mut held = 0;
        for _ in 0..72 {
            quiet.record(NOW.seconds() - 3 * 86_400);
            held += u32::from(quiet.holds_age());
            tokio::time::advance(60 * MINUTE).await;
        }
        assert_eq!(held, 25, "the same copy counts once");
        quiet.record(UnixMillis::now().seconds());
        assert_eq!(quiet.state(), ClockState::Agrees);
    }

    #[tokio::test(start_paused = true)]
    async fn a_clock_behind_a_signed_timestamp_is_wrong_for_as_long_as_it_is() {
        let clock = evidence();
        clock.record(NOW.seconds() + 86_400);
        tokio::time::advance(30 * DAY).await;
        assert_eq!(clock.state(), ClockState::Differs(-86_400));
        jump(86_400);
        assert_eq!(clock.state(), ClockState::Agrees);
    }

    #[tokio::test(start_paused = true)]
    async fn after_a_short_restart_the_newest_stored_push_is_enough() {
        let clock = evidence();
        clock.record_stored(NOW.seconds() - 30);
        assert_eq!(clock.state(), ClockState::Agrees);
        let later = evidence();
        later.record_stored(NOW.seconds() - 86_400);
        assert_eq!(later.state(), ClockState::Unconfirmed, "an earlier process's push does not accuse the clock");
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_received_by_a_clock_that_was_ahead_ages_all_the_same() {
        let clock = evidence();
        let received = NOW.after(60 * MINUTE);
        tokio::time::advance(MINUTE).await;
        assert_eq!(clock.age(received), MINUTE, "it came before the process");
        assert_eq!(clock.age(NOW), MINUTE);
        jump(-60);
        assert_eq!(clock.age(NOW), Duration::ZERO);
        tokio::time::advance(MINUTE).await;
        assert_eq!(clock.age(received), MINUTE);
    }
}
