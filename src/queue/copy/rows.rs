//! Rows as they are copied: the values of both engines, nothing of them decrypted.

use sha2::{Digest as _, Sha256};

use crate::queue::encryption::Fingerprint;

/// The name of a target, and its number: sealed answers can be opened under this number alone.
#[derive(Clone, Debug)]
pub(in crate::queue) struct TargetRow {
    pub(in crate::queue) number: i64,
    pub(in crate::queue) name: String,
    pub(in crate::queue) paused: bool,
}

/// The key of an event that is deleted, while a copy of its push would still be accepted.
#[derive(Clone, Debug)]
pub(in crate::queue) struct RetiredKey {
    pub(in crate::queue) event: i64,
    pub(in crate::queue) content_key: Vec<u8>,
}

#[derive(Clone, Debug)]
pub(in crate::queue) struct EventRow {
    pub(in crate::queue) id: i64,
    pub(in crate::queue) content_key: Vec<u8>,
    pub(in crate::queue) targets: i64,
    pub(in crate::queue) mode: i64,
    pub(in crate::queue) key: Option<i64>,
    pub(in crate::queue) received_at: i64,
    pub(in crate::queue) checksum: Option<i64>,
    pub(in crate::queue) reply_checksum: Option<i64>,
    pub(in crate::queue) account: String,
    pub(in crate::queue) app_id: String,
    pub(in crate::queue) msg_type: String,
    pub(in crate::queue) event: String,
    pub(in crate::queue) event_key: String,
    pub(in crate::queue) from_user: String,
    pub(in crate::queue) traceparent: Option<String>,
    pub(in crate::queue) reply: Option<Vec<u8>>,
    pub(in crate::queue) query: Vec<u8>,
    pub(in crate::queue) body: Vec<u8>,
    pub(in crate::queue) clear: Option<Vec<u8>>,
}

#[derive(Clone, Debug)]
pub(in crate::queue) struct DeliveryRow {
    pub(in crate::queue) event: i64,
    pub(in crate::queue) target: i64,
    pub(in crate::queue) state: i64,
    pub(in crate::queue) attempts: i64,
    pub(in crate::queue) failures: i64,
    pub(in crate::queue) due: i64,
    pub(in crate::queue) ended_at: Option<i64>,
    pub(in crate::queue) user: Option<i64>,
}

#[derive(Clone, Debug)]
pub(in crate::queue) struct AttemptRow {
    pub(in crate::queue) event: i64,
    pub(in crate::queue) target: i64,
    pub(in crate::queue) number: i64,
    pub(in crate::queue) at: i64,
    pub(in crate::queue) duration_us: i64,
    pub(in crate::queue) status: Option<i64>,
    pub(in crate::queue) error: Option<String>,
    pub(in crate::queue) answer: Option<Vec<u8>>,
}

/// What became of a reply.
#[derive(Clone, Debug)]
pub(in crate::queue) struct ReplyRow {
    pub(in crate::queue) event: i64,
    pub(in crate::queue) no: i64,
    pub(in crate::queue) target: i64,
    pub(in crate::queue) state: i64,
    pub(in crate::queue) attempt: Option<i64>,
    pub(in crate::queue) at: Option<i64>,
    pub(in crate::queue) taken: i64,
    pub(in crate::queue) expires_at: Option<i64>,
    pub(in crate::queue) picked_by: Option<i64>,
    pub(in crate::queue) account: String,
    pub(in crate::queue) user: String,
    pub(in crate::queue) checksum: Option<i64>,
    pub(in crate::queue) content: Option<Vec<u8>>,
}

/// Events with all that belongs to them, in the order of their ids.
#[derive(Debug, Default)]
pub(in crate::queue) struct CopyPage {
    pub(in crate::queue) events: Vec<EventRow>,
    pub(in crate::queue) deliveries: Vec<DeliveryRow>,
    pub(in crate::queue) attempts: Vec<AttemptRow>,
    pub(in crate::queue) replies: Vec<ReplyRow>,
}

impl CopyPage {
    pub(in crate::queue) fn last(&self) -> Option<i64> {
        self.events.last().map(|event| event.id)
    }
}

/// What is small in a store, and copied first.
#[derive(Clone, Debug, Default)]
pub(in crate::queue) struct StoreHead {
    pub(in crate::queue) targets: Vec<TargetRow>,
    /// The keys of payloads by their numbers, and whether an event needs them.
    pub(in crate::queue) keys: Vec<(i64, Fingerprint, bool)>,
    /// What identifies the contents, beside names and keys: counts that change with whatever a relay does.
    pub(in crate::queue) counts: Vec<i64>,
}

impl StoreHead {
    /// Identifies this store in this state: any event, any end of a delivery and any attempt of a pending one changes it.
    pub(in crate::queue) fn digest(&self) -> [u8; 16] {
        let mut hash = Sha256::new();
        for TargetRow { number, name, .. } in &self.targets {
            hash.update(number.to_le_bytes());
            hash.update(name.as_bytes());
            hash.update([0]);
        }
        for (number, print, _) in &self.keys {
            hash.update(number.to_le_bytes());
            hash.update(print.bytes());
        }
        for count in &self.counts {
            hash.update(count.to_le_bytes());
        }
        let mut digest = [0; 16];
        digest.copy_from_slice(&hash.finalize()[..16]);
        digest
    }
}
