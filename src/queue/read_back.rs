//! A stored event that was read back and compared with its own rows: what every engine finds, and how it says so.

use super::{DecryptError, DeliveryState, persons};
use crate::event::{Event, EventId};

/// Events that were read back, in the order of their ids.
#[derive(Debug, Default)]
pub struct StoredPage {
    /// The events.
    pub events: Vec<StoredEvent>,
    /// The last one, to continue behind it; `None` when there are no more.
    pub last: Option<EventId>,
}

/// A stored event, read back.
#[derive(Debug)]
pub struct StoredEvent {
    /// Its id.
    pub id: EventId,
    /// The event as a lease would give it; `None` if it is unreadable.
    pub event: Option<Event>,
    /// Where its rows contradict each other.
    pub flaws: Vec<Flaw>,
    /// Its deliveries that an attempt may still be made at: pending or dead.
    pub open: Vec<OpenDelivery>,
}

/// A delivery that is pending or dead.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenDelivery {
    /// Its target, if the store has its name.
    pub target: Option<String>,
    /// Its state.
    pub state: DeliveryState,
}

/// What is wrong with a stored event. No text quotes it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Flaw {
    /// The row cannot be read, or a column is of another type.
    #[error("its row cannot be read: {0}")]
    Unreadable(String),
    /// An encrypted column cannot be decrypted.
    #[error(transparent)]
    Encrypted(DecryptError),
    /// The clear text does not parse.
    #[error("its stored text does not parse")]
    Text,
    /// A column that was read out of the text differs from it.
    #[error("the column {0} differs from the stored text")]
    Column(&'static str),
    /// The content key is not that of the text, so that WeChat's retry would be a second event.
    #[error("its content key is not that of the stored text")]
    ContentKey,
    /// What was stored and is delivered is not what is read back.
    #[error("its row differs from its checksum")]
    Checksum,
    /// A held reply is not what was stored.
    #[error("a reply that is held for its user differs from its checksum")]
    HeldReply,
    /// A delivery is there and its event is not.
    #[error("its row is gone")]
    Missing,
    /// The dedup index does not lead to it, so that WeChat's retry would be a second event.
    #[error("its content key is not in the dedup index, or leads to another event")]
    Unknown,
    /// A delivery has no row, or there is one too many.
    #[error("{stored} deliveries were stored with it, {found} are there")]
    Deliveries {
        /// How many there must be.
        stored: i64,
        /// How many there are.
        found: i64,
    },
}

/// Where columns that were read out of the text differ from it: `msg_type`, `event`, `event_key` and `from_user`.
pub(super) fn flaws_of_columns(event: &Event, texts: [&str; 3], persons: &str) -> Vec<Flaw> {
    let message = &event.message;
    let of_text = [("msg_type", message.msg_type()), ("event", message.event()), ("event_key", message.event_key())];
    let mut flaws = Vec::new();
    for (stored, (name, text)) in texts.into_iter().zip(of_text) {
        if stored != text {
            flaws.push(Flaw::Column(name));
        }
    }
    if !persons::is_of(event, persons) {
        flaws.push(Flaw::Column("from_user"));
    }
    flaws
}
