//! Reading the columns of an event that may be encrypted, for people: what cannot be decrypted is left out, and why.

use super::encryption::{DecryptError, SealContext};
use super::key_ring::KeyRing;

/// Reads the columns of one event.
pub(super) struct ColumnReader<'s> {
    keys: &'s KeyRing,
    /// The number of the event's key; `None` if the event is in the clear.
    key: Option<i64>,
    /// The first error in decrypting a column.
    error: Option<DecryptError>,
}

impl<'s> ColumnReader<'s> {
    pub(super) fn new(keys: &'s KeyRing, key: Option<i64>) -> Self {
        Self { keys, key, error: None }
    }

    /// A column, if it is there and can be decrypted.
    pub(super) fn text(&mut self, column: Option<&[u8]>, context: SealContext) -> Option<String> {
        let bytes = column?;
        let Some(key) = self.key else { return Some(String::from_utf8_lossy(bytes).into_owned()) };
        match self.keys.open(key, context, bytes) {
            Ok(bytes) => Some(String::from_utf8_lossy(&bytes).into_owned()),
            Err(error) => {
                self.error.get_or_insert(error);
                None
            }
        }
    }

    /// Why a column is left out.
    pub(super) fn error_text(&self) -> Option<String> {
        self.error.as_ref().map(DecryptError::to_string)
    }
}
