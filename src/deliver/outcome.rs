//! What an answer means: the table from status to outcome, and `Retry-After`.

use std::time::Duration;

use http::header::RETRY_AFTER;
use http::{HeaderMap, StatusCode};

use crate::clock::UnixMillis;

/// What an attempt means for its delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The target has the event.
    Delivered,
    /// Retry by the schedule, and not before `after` if the target asked for that.
    Retry {
        /// The target's `Retry-After`.
        after: Option<Duration>,
    },
    /// The target wants no further attempt (410): a dead letter at once.
    Reject,
}

/// No status ever drops an event: all but 2xx and 410 are retried.
pub(super) fn classify(status: StatusCode, headers: &HeaderMap, now: UnixMillis) -> Outcome {
    match status.as_u16() {
        200..=299 => Outcome::Delivered,
        410 => Outcome::Reject,
        _ => Outcome::Retry { after: retry_after(headers, now) },
    }
}

/// `Retry-After` in either of its forms (RFC 9110, 10.2.3): seconds or a date.
pub(super) fn retry_after(headers: &HeaderMap, now: UnixMillis) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = text.parse::<u64>() {
        return Some(Duration::from_secs(seconds));
    }
    let date = jiff::fmt::rfc2822::DateTimeParser::new().parse_timestamp(text).ok()?;
    Some(UnixMillis(date.as_millisecond()).since(now))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: UnixMillis = UnixMillis(1_795_161_600_000);

    fn classified(status: u16, retry_after: Option<&str>) -> Outcome {
        let mut headers = HeaderMap::new();
        if let Some(value) = retry_after {
            headers.insert(RETRY_AFTER, value.parse().unwrap());
        }
        classify(StatusCode::from_u16(status).unwrap(), &headers, NOW)
    }

    #[test]
    fn nothing_is_dropped_by_its_status() {
        for status in 100..=599 {
            let expected = match status {
                200..=299 => Outcome::Delivered,
                410 => Outcome::Reject,
                _ => Outcome::Retry { after: None },
            };
            assert_eq!(classified(status, None), expected, "{status}");
        }
    }

    #[test]
    fn retry_after_is_read_as_seconds_and_as_a_date() {
        let after = |text| match classified(503, Some(text)) {
            Outcome::Retry { after } => after.map(|wait| wait.as_secs()),
            Outcome::Delivered | Outcome::Reject => None,
        };
        assert_eq!(after("120"), Some(120));
        assert_eq!(after("Fri, 20 Nov 2026 08:01:30 GMT"), Some(90));
        assert_eq!(after("Fri, 20 Nov 2020 08:01:30 GMT"), Some(0));
        assert_eq!(after("soon"), None);
        assert_eq!(after("-1"), None);
    }
}
