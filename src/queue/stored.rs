//! What every engine makes of a stored event: the event as a lease gives it, or a dead letter.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::key_ring::OpenedPayload;
use super::{AttemptRecord, DeliveryState, Disposition, Flaw, Settlement};
use crate::clock::UnixMillis;
use crate::event::{ContentKey, Event, EventId};
use crate::wechat::{Message, Mode};

/// The due time of a delivery that is held behind an earlier one of its user.
pub(super) const HELD: UnixMillis = UnixMillis(i64::MAX);

/// The mode with that number in the store.
pub(super) fn mode_of(number: i64) -> Option<Mode> {
    usize::try_from(number).ok().and_then(|place| MODES.get(place)).copied()
}

pub(super) const MODES: [Mode; 3] = [Mode::Plaintext, Mode::Compatible, Mode::Secure];

/// The number of a mode in the store.
pub(super) fn mode_number(mode: Mode) -> i16 {
    match mode {
        Mode::Plaintext => 0,
        Mode::Compatible => 1,
        Mode::Secure => 2,
    }
}

/// The columns that an event is made of.
pub(super) struct StoredRow {
    pub(super) id: EventId,
    pub(super) account: String,
    pub(super) app_id: String,
    pub(super) mode: Mode,
    pub(super) received_at: UnixMillis,
    pub(super) traceparent: Option<String>,
    pub(super) payload: OpenedPayload,
}

impl StoredRow {
    /// The event, unless its text does not parse.
    pub(super) fn into_event(self) -> Result<Event, Flaw> {
        let OpenedPayload { query, body, clear } = self.payload;
        let body = Bytes::from(body);
        let clear = clear.map_or_else(|| body.clone(), Bytes::from);
        let Ok(message) = Message::parse(&clear) else { return Err(Flaw::Text) };
        Ok(Event {
            id: self.id,
            account: self.account.into(),
            app_id: self.app_id.into(),
            mode: self.mode,
            received_at: self.received_at,
            query,
            body,
            clear,
            message,
            traceparent: self.traceparent,
        })
    }
}

/// The content key of a stored event's text.
pub(super) fn key_of(event: &Event) -> ContentKey {
    ContentKey::of(&event.app_id, &event.message, &event.clear)
}

/// A stored event that cannot be decrypted or parsed any more, or is not what was received, must not stop its target,
/// and is not delivered: the delivery becomes a dead letter.
pub(super) fn unreadable(event: EventId, target: &Arc<str>, number: u32, at: UnixMillis, flaw: &Flaw) -> Settlement {
    tracing::error!(%event, %target, %flaw, "stored event unreadable; its delivery is dead");
    let error = Some(match flaw {
        Flaw::Checksum | Flaw::ContentKey => "damaged: the stored event is not what was received".to_owned(),
        _ => "the stored event cannot be read".to_owned(),
    });
    let attempt = AttemptRecord { number, at, duration: Duration::ZERO, status: None, error, answer: None };
    Settlement {
        event,
        target: Arc::clone(target),
        disposition: Disposition::End(DeliveryState::Dead),
        decided_at: at,
        attempt: Some(attempt),
        reply: None,
    }
}
