//! The keys that events are encrypted with: which one an event has, and encrypting and decrypting its columns.
//!
//! The store gives each key a number, and `event.key` names it. Either the whole payload of an event is encrypted with
//! that key or nothing is: a later reply or answer is stored like its event. Invariant: a store is not written while a
//! key is missing that one of its events needs; the engines check that when they open it.

use std::collections::BTreeMap;

use super::encryption::{DecryptError, EncryptError, EncryptionKey, EncryptionKeys, Fingerprint, SealContext};
use super::{Error, NewEvent};
use crate::event::EventId;
use crate::ordered;

/// The keys that a store names, by number: each the key itself where it is configured, else its fingerprint.
#[derive(Clone, Default)]
pub(super) struct KeyRing(BTreeMap<i64, Result<EncryptionKey, Fingerprint>>);

/// Encrypts fresh events.
#[derive(Clone)]
pub(super) struct EventSealer {
    number: i64,
    key: EncryptionKey,
}

/// What a fresh event's row holds instead of clear texts.
pub(super) struct SealedColumns {
    /// The number of the key.
    pub(super) key: i64,
    pub(super) query: Vec<u8>,
    pub(super) body: Vec<u8>,
    pub(super) clear: Option<Vec<u8>>,
    pub(super) reply: Option<Vec<u8>>,
}

/// The columns of an event's row that may be encrypted, in the clear.
pub(super) struct OpenedPayload {
    pub(super) query: String,
    pub(super) body: Vec<u8>,
    pub(super) clear: Option<Vec<u8>>,
}

/// Whether and how the events of a store are encrypted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EncryptionStatus {
    /// The keys that some of them are encrypted with.
    pub keys: Vec<Fingerprint>,
    /// Whether some are in the clear.
    pub in_clear: bool,
}

/// Why a value cannot be encrypted like its event.
#[derive(Debug, thiserror::Error)]
pub(super) enum SealError {
    #[error(transparent)]
    Key(#[from] DecryptError),
    #[error(transparent)]
    Value(#[from] EncryptError),
}

impl KeyRing {
    /// Of a store that names no key.
    pub(super) const EMPTY: Self = Self(BTreeMap::new());

    /// The keys of these numbers, as far as they are configured.
    pub(super) fn of(named: Vec<(i64, Fingerprint)>, configured: &EncryptionKeys) -> Self {
        let named = named.into_iter();
        Self(ordered::map(named.map(|(number, print)| (number, configured.find(print).cloned().ok_or(print)))))
    }

    /// Whether the store names no key.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Decrypts a value of an event that is encrypted with the key of that number.
    pub(super) fn open(&self, number: i64, context: SealContext, sealed: &[u8]) -> Result<Vec<u8>, DecryptError> {
        self.key(number)?.open(context, sealed).ok_or(DecryptError::Damaged)
    }

    /// As [`KeyRing::open`], for a text.
    pub(super) fn open_text(&self, number: i64, context: SealContext, sealed: &[u8]) -> Result<String, DecryptError> {
        String::from_utf8(self.open(number, context, sealed)?).map_err(|_| DecryptError::Damaged)
    }

    /// Decrypts the columns `query`, `body` and `clear`.
    pub(super) fn open_payload(
        &self,
        number: i64,
        id: EventId,
        [query, body, clear]: [Option<&[u8]>; 3],
    ) -> Result<OpenedPayload, DecryptError> {
        let query = self.open_text(number, SealContext::Query(id), query.unwrap_or_default())?;
        let body = self.open(number, SealContext::Body(id), body.unwrap_or_default())?;
        let clear = clear.map(|clear| self.open(number, SealContext::Clear(id), clear)).transpose()?;
        Ok(OpenedPayload { query, body, clear })
    }

    /// Encrypts a value with the key of that number.
    pub(super) fn seal(&self, number: i64, context: SealContext, clear: &[u8]) -> Result<Vec<u8>, SealError> {
        Ok(self.key(number)?.seal(context, clear)?)
    }

    /// The sealer for fresh events, if a key is configured.
    pub(super) fn sealer(&self, configured: &EncryptionKeys) -> Option<EventSealer> {
        let key = configured.first()?;
        let is_first = |named: &Result<EncryptionKey, _>| {
            named.as_ref().is_ok_and(|named| named.fingerprint() == key.fingerprint())
        };
        let number = self.0.iter().find(|(_, named)| is_first(named)).map(|(number, _)| *number)?;
        Some(EventSealer { number, key: key.clone() })
    }

    fn key(&self, number: i64) -> Result<&EncryptionKey, DecryptError> {
        match self.0.get(&number) {
            None => Err(DecryptError::KeyUnknown),
            Some(Err(missing)) => Err(DecryptError::KeyMissing(*missing)),
            Some(Ok(key)) => Ok(key),
        }
    }
}

impl EventSealer {
    /// Encrypts a fresh event, on the caller's thread.
    pub(super) fn seal(&self, new: &NewEvent) -> Result<SealedColumns, Error> {
        let (event, id) = (&*new.event, new.event.id);
        let seal = |context, clear: &[u8]| self.key.seal(context, clear).map_err(Error::NotEncrypted);
        let clear = (event.clear != event.body).then_some(&event.clear);
        Ok(SealedColumns {
            key: self.number,
            query: seal(SealContext::Query(id), event.query.as_bytes())?,
            body: seal(SealContext::Body(id), &event.body)?,
            clear: clear.map(|clear| seal(SealContext::Clear(id), clear)).transpose()?,
            reply: new.reply.as_ref().map(|reply| seal(SealContext::Reply(id), reply.as_bytes())).transpose()?,
        })
    }
}

impl SealedColumns {
    /// The encrypted reply.
    pub(super) fn reply(&self) -> Option<&[u8]> {
        self.reply.as_deref()
    }
}
