//! W3C Trace Context: one trace for an event, with a span for its push and one for each attempt. Pure, except that a
//! new span gets a random id.
//!
//! The ids of the push span and, without a `traceparent`, of the trace are derived from the event's id; so attempts
//! hours later and after a restart join the trace, and nothing is stored for that. The caller decides whether its trace
//! is recorded; ours are.

#![warn(missing_docs)]

use sha2::{Digest, Sha256};

use crate::event::{Event, EventId};

/// Never 0, which is invalid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SpanId(pub u64);

impl SpanId {
    /// A new random id, for a span of this event.
    pub fn random(event: EventId) -> Self {
        Self::new(getrandom::u64().unwrap_or(event.0))
    }

    /// The id with this value; 1 for 0.
    pub fn new(number: u64) -> Self {
        Self(number.max(1))
    }
}

/// The span that sent a push, from its `traceparent`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ParentSpan {
    trace: u128,
    span: SpanId,
    recorded: bool,
}

impl ParentSpan {
    /// Reads a well-formed `traceparent` (w3.org/TR/trace-context, 3.2.2). Versions to come may have more parts.
    pub fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split('-');
        let (version, trace, span, flags) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
        let known = version != "ff" && (version != "00" || parts.next().is_none());
        hex(version, 2).filter(|_| known)?;
        let (trace, span, flags) = (hex(trace, 32)?, hex(span, 16)?, hex(flags, 2)?);
        let span = SpanId(u64::try_from(span).ok().filter(|span| *span != 0)?);
        (trace != 0).then_some(Self { trace, span, recorded: flags & 1 == 1 })
    }
}

/// Exactly `length` lower-case hex digits.
fn hex(part: &str, length: usize) -> Option<u128> {
    let right = part.len() == length && part.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    u128::from_str_radix(part, 16).ok().filter(|_| right)
}

/// The trace of one event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trace {
    /// The event.
    pub event: EventId,
    /// The span that sent its push.
    pub caller: Option<ParentSpan>,
}

/// The ids of a span, its parent and its trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SpanContext {
    /// The trace.
    pub trace: u128,
    /// The span.
    pub span: SpanId,
    /// The parent span.
    pub parent: Option<SpanId>,
    /// Whether the parent is a span of another program.
    pub remote: bool,
    /// Whether to record it.
    pub recorded: bool,
}

impl Trace {
    /// The trace of an event whose push was sent by `caller`.
    pub fn new(event: EventId, caller: Option<ParentSpan>) -> Self {
        Self { event, caller }
    }

    /// The trace of a stored event.
    pub fn of(event: &Event) -> Self {
        Self::new(event.id, event.traceparent.as_deref().and_then(ParentSpan::parse))
    }

    /// The `traceparent` to send with one of its spans.
    pub fn traceparent(&self, span: SpanId) -> String {
        let SpanContext { trace, recorded, .. } = self.push();
        format!("00-{trace:032x}-{:016x}-{:02x}", span.0, u8::from(recorded))
    }

    /// The span of the event's push.
    pub fn push(&self) -> SpanContext {
        let (mut trace, mut span) = ([0; 16], [0; 8]);
        let hash = Sha256::digest(self.event.0.to_be_bytes());
        trace.copy_from_slice(&hash[..16]);
        span.copy_from_slice(&hash[16..24]);
        SpanContext {
            trace: self.caller.map_or(u128::from_be_bytes(trace), |caller| caller.trace),
            span: SpanId::new(u64::from_be_bytes(span)),
            parent: self.caller.map(|caller| caller.span),
            remote: self.caller.is_some(),
            recorded: self.caller.is_none_or(|caller| caller.recorded),
        }
    }

    /// The span of a retry of the push: in the trace of its own `traceparent` if it has one, else below the first try.
    pub fn repeat(&self, span: SpanId, caller: Option<ParentSpan>) -> SpanContext {
        match caller {
            Some(caller) => SpanContext { span, ..Self::new(self.event, Some(caller)).push() },
            None => self.attempt(span),
        }
    }

    /// The span of an attempt, below the push.
    pub fn attempt(&self, span: SpanId) -> SpanContext {
        let push = self.push();
        SpanContext { span, parent: Some(push.span), remote: false, ..push }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
    const EVENT: EventId = EventId(0x01a2_b3c4_d5e6_f708);

    fn parsed(text: &str) -> Option<(String, bool)> {
        ParentSpan::parse(text).map(|caller| (format!("{:032x}", caller.trace), caller.recorded))
    }

    #[test]
    fn a_well_formed_parent_continues_recorded_or_not() {
        assert_eq!(parsed(&format!("00-{TRACE}-00f067aa0ba902b7-01")), Some((TRACE.to_owned(), true)));
        assert_eq!(parsed(&format!("00-{TRACE}-00f067aa0ba902b7-02")), Some((TRACE.to_owned(), false)));
        assert_eq!(parsed(&format!("01-{TRACE}-00f067aa0ba902b7-01-more")), Some((TRACE.to_owned(), true)));
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
            assert_eq!(parsed(bad), None, "{bad}");
        }
    }

    #[test]
    fn attempts_are_below_the_push_whatever_its_parent() {
        let caller = ParentSpan::parse(&format!("00-{TRACE}-00f067aa0ba902b7-00"));
        let (ours, theirs) = (Trace::new(EVENT, None), Trace::new(EVENT, caller));
        let (push, attempt) = (ours.push(), ours.attempt(SpanId(7)));
        assert_eq!((push.parent, push.recorded), (None, true));
        assert_eq!((attempt.trace, attempt.parent, attempt.span), (push.trace, Some(push.span), SpanId(7)));
        let (push, attempt) = (theirs.push(), theirs.attempt(SpanId(7)));
        assert_eq!((push.parent, push.remote, push.recorded), (Some(SpanId(0x00f0_67aa_0ba9_02b7)), true, false));
        assert_eq!((attempt.trace, attempt.parent, attempt.remote), (push.trace, Some(push.span), false));
        assert_eq!(theirs.traceparent(SpanId(7)), format!("00-{TRACE}-0000000000000007-00"));
    }

    #[test]
    fn a_retry_is_in_its_own_trace_or_below_the_first_try() {
        let first = Trace::new(EVENT, None);
        let plain = first.repeat(SpanId(7), None);
        assert_eq!((plain.trace, plain.parent), (first.push().trace, Some(first.push().span)));
        let own = first.repeat(SpanId(7), ParentSpan::parse(&format!("00-{TRACE}-00f067aa0ba902b7-01")));
        assert_eq!((format!("{:032x}", own.trace).as_str(), own.remote, own.span), (TRACE, true, SpanId(7)));
    }

    #[test]
    fn a_trace_of_ours_is_the_beginning_of_the_hash_of_the_events_id() {
        // echo -n 01a2b3c4d5e6f708 | xxd -r -p | sha256sum
        assert_eq!(
            Trace::new(EVENT, None).traceparent(SpanId(1)),
            "00-b1df158126177a3348e4fb0fb26ff489-0000000000000001-01"
        );
    }
}
