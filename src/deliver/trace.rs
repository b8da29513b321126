//! W3C Trace Context: one trace for an event, one span for each attempt.

use http::HeaderValue;
use sha2::{Digest, Sha256};

use crate::event::Event;

/// The `traceparent` of one attempt: the trace that the push came with, or one that follows from the event's id, and a
/// span of its own. Nothing need be stored for repeats to share a trace.
pub(super) fn parent(event: &Event) -> HeaderValue {
    let span = getrandom::u64().map_or(event.id.0, |random| random.max(1));
    let text = match event.traceparent.as_deref().and_then(trace_id) {
        Some(trace) => format!("00-{trace}-{span:016x}-01"),
        None => {
            let hash = Sha256::digest(event.id.0.to_be_bytes());
            let mut id = [0; 16];
            id.copy_from_slice(&hash[..16]);
            format!("00-{:032x}-{span:016x}-01", u128::from_be_bytes(id))
        }
    };
    HeaderValue::try_from(text).unwrap_or_else(|_| HeaderValue::from_static(""))
}

/// The trace id of a well-formed `traceparent`.
fn trace_id(text: &str) -> Option<&str> {
    let mut parts = text.split('-');
    let (version, trace, span) = (parts.next()?, parts.next()?, parts.next()?);
    let hex = |part: &str, len| part.len() == len && part.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    let right = hex(version, 2) && version != "ff" && hex(trace, 32) && hex(span, 16) && parts.next().is_some();
    (right && trace.bytes().any(|b| b != b'0')).then_some(trace)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_well_formed_parent_goes_on() {
        let good = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        assert_eq!(trace_id(good), Some("4bf92f3577b34da6a3ce929d0e0e4736"));
        for bad in ["", "00", "00-0-0-0", "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"] {
            assert_eq!(trace_id(bad), None, "{bad}");
        }
        assert_eq!(trace_id(&good.replace("4bf92f3577b34da6a3ce929d0e0e4736", &"0".repeat(32))), None);
    }
}
