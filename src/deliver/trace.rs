//! W3C Trace Context: one trace for an event, one span for each attempt.

use http::HeaderValue;
use sha2::{Digest, Sha256};

use crate::event::Event;

/// The `traceparent` of one attempt: the trace that the push came with, or one that follows from the event's id, and a
/// span of its own. Nothing need be stored for repeats to share a trace. Whether the trace is recorded is its
/// beginner's choice; ours are.
pub(super) fn parent(event: &Event) -> HeaderValue {
    let span = getrandom::u64().map_or(event.id.0, |random| random.max(1));
    let text = match event.traceparent.as_deref().and_then(trace) {
        Some((trace, recorded)) => format!("00-{trace}-{span:016x}-{:02x}", u8::from(recorded)),
        None => {
            let hash = Sha256::digest(event.id.0.to_be_bytes());
            let mut id = [0; 16];
            id.copy_from_slice(&hash[..16]);
            format!("00-{:032x}-{span:016x}-01", u128::from_be_bytes(id))
        }
    };
    HeaderValue::try_from(text).unwrap_or_else(|_| HeaderValue::from_static(""))
}

/// The trace id of a well-formed `traceparent`, and whether it is recorded (w3.org/TR/trace-context, 3.2.2). Versions
/// to come may have more parts.
fn trace(text: &str) -> Option<(&str, bool)> {
    let mut parts = text.split('-');
    let (version, trace, span, flags) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    let hex = |part: &str, len| part.len() == len && part.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    let some = |part: &str| part.bytes().any(|b| b != b'0');
    let known = version != "ff" && (version != "00" || parts.next().is_none());
    let right = known && hex(version, 2) && hex(trace, 32) && some(trace) && hex(span, 16) && some(span);
    let flags = u8::from_str_radix(flags, 16).ok().filter(|_| hex(flags, 2))?;
    right.then_some((trace, flags & 1 == 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";

    #[test]
    fn a_well_formed_parent_goes_on_recorded_or_not() {
        assert_eq!(trace(&format!("00-{TRACE}-00f067aa0ba902b7-01")), Some((TRACE, true)));
        assert_eq!(trace(&format!("00-{TRACE}-00f067aa0ba902b7-02")), Some((TRACE, false)));
        assert_eq!(trace(&format!("01-{TRACE}-00f067aa0ba902b7-01-more")), Some((TRACE, true)));
    }

    #[test]
    fn no_other_does() {
        for bad in [
            "",
            "00",
            "00-0-0-0",
            &format!("ff-{TRACE}-00f067aa0ba902b7-01"),
            &format!("0-{TRACE}-00f067aa0ba902b7-01"),
            &format!("00-{TRACE}-00f067aa0ba902b7"),
            &format!("00-{TRACE}-00f067aa0ba902b7-1"),
            &format!("00-{TRACE}-00f067aa0ba902b7-+1"),
            &format!("00-{TRACE}-00f067aa0ba902b7-01-more"),
            &format!("00-{TRACE}-0000000000000000-01"),
            &format!("00-{}-00f067aa0ba902b7-01", "0".repeat(32)),
            &format!("00-{}-00f067aa0ba902b7-01", TRACE.to_uppercase()),
        ] {
            assert_eq!(trace(bad), None, "{bad}");
        }
    }
}
