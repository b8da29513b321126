//! The wall clock. Only this file reads it; all others get a [`UnixMillis`], or a [`UnixNanos`] for traces.

mod evidence;

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

pub use self::evidence::{ClockEvidence, ClockState};

/// A moment: milliseconds since 1970-01-01T00:00:00Z.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UnixMillis(pub i64);

/// A moment: nanoseconds since 1970-01-01T00:00:00Z, for traces, whose spans are shorter than a millisecond.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct UnixNanos(pub u64);

impl UnixNanos {
    pub fn now() -> Self {
        Self(u64::try_from(since_epoch().as_nanos()).unwrap_or(u64::MAX))
    }

    /// This moment minus `span`, but not before the epoch.
    pub fn before(self, span: Duration) -> Self {
        Self(self.0.saturating_sub(u64::try_from(span.as_nanos()).unwrap_or(u64::MAX)))
    }
}

impl UnixMillis {
    pub fn now() -> Self {
        Self(i64::try_from(since_epoch().as_millis()).unwrap_or(i64::MAX))
    }

    /// Whole seconds since the epoch, as WeChat's `timestamp` and `CreateTime` count.
    pub fn seconds(self) -> i64 {
        self.0.div_euclid(1000)
    }

    /// This moment plus `wait`, saturating.
    pub fn after(self, wait: Duration) -> Self {
        Self(self.0.saturating_add(i64::try_from(wait.as_millis()).unwrap_or(i64::MAX)))
    }

    /// This moment minus `span`, saturating.
    pub fn before(self, span: Duration) -> Self {
        Self(self.0.saturating_sub(i64::try_from(span.as_millis()).unwrap_or(i64::MAX)))
    }

    /// The time since `earlier`; zero if that is in the future.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0))
    }
}

#[expect(clippy::disallowed_methods, reason = "this is the place the ban points to")]
fn since_epoch() -> Duration {
    #[cfg(test)]
    if let Some(now) = simulated::now() {
        return now.since(UnixMillis(0));
    }
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default()
}

/// RFC 3339 in UTC with milliseconds: `2026-11-20T08:00:00.123Z`.
impl fmt::Display for UnixMillis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match jiff::Timestamp::from_millisecond(self.0) {
            Ok(moment) => write!(f, "{moment:.3}"),
            Err(_) => write!(f, "{}ms", self.0),
        }
    }
}

/// As [`fmt::Display`] writes it.
impl Serialize for UnixMillis {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Any time of RFC 3339.
impl<'de> Deserialize<'de> for UnixMillis {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let moment: jiff::Timestamp = text.parse().map_err(de::Error::custom)?;
        Ok(Self(moment.as_millisecond()))
    }
}

/// A wall clock for simulations, one per thread: it advances with tokio's clock, and jumps when set.
#[cfg(test)]
pub(crate) mod simulated {
    use std::cell::Cell;

    use tokio::time::Instant;

    use super::UnixMillis;

    thread_local! {
        static SET: Cell<Option<(Instant, UnixMillis)>> = const { Cell::new(None) };
    }

    /// Sets this thread's clock; `None` returns to the system's.
    pub(crate) fn set(now: Option<UnixMillis>) {
        SET.set(now.map(|now| (Instant::now(), now)));
    }

    /// Whether this thread's clock is a simulated one.
    pub(crate) fn is_set() -> bool {
        SET.get().is_some()
    }

    pub(super) fn now() -> Option<UnixMillis> {
        SET.get().map(|(at, set)| set.after(at.elapsed()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prints_rfc_3339_with_milliseconds() {
        assert_eq!(UnixMillis(1_795_161_600_120).to_string(), "2026-11-20T08:00:00.120Z");
    }

    #[test]
    fn arithmetic_saturates() {
        assert_eq!(UnixMillis(5).since(UnixMillis(9)), Duration::ZERO);
        assert_eq!(UnixMillis(5).after(Duration::MAX), UnixMillis(i64::MAX));
        assert_eq!(UnixNanos(5).before(Duration::from_nanos(2)), UnixNanos(3));
        assert_eq!(UnixNanos(5).before(Duration::MAX), UnixNanos(0));
    }
}
