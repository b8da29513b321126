//! The keys of stored payloads, and their authenticated encryption: XChaCha20-Poly1305 (draft-irtf-cfrg-xchacha-03).
//!
//! A sealed value is a nonce of 24 bytes, the ciphertext, and a tag of 16. Invariants: nonces are random and long
//! enough never to repeat, even if a store continues from a backup; a value opens only in its own [`SealContext`];
//! texts show only the [`Fingerprint`] of a key. Not here: which key an event has; the engine decides that.

use std::fmt;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use chacha20poly1305::{AeadInOut as _, Key, KeyInit as _, Tag, XChaCha20Poly1305, XNonce};
use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

use crate::event::EventId;

const KEY: usize = 32;
const NONCE: usize = 24;
const TAG: usize = 16;

/// The keys of `queue.encryption_keys`: the first encrypts, every one decrypts. Without keys, payloads are stored in
/// the clear.
#[derive(Clone, Default)]
pub struct EncryptionKeys(Vec<EncryptionKey>);

impl EncryptionKeys {
    /// Keys in the order of the configuration.
    pub fn new(keys: Vec<EncryptionKey>) -> Self {
        Self(keys)
    }

    /// The one that encrypts.
    pub fn first(&self) -> Option<&EncryptionKey> {
        self.0.first()
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = &EncryptionKey> {
        self.0.iter()
    }

    /// The one with that fingerprint.
    pub(super) fn find(&self, fingerprint: Fingerprint) -> Option<&EncryptionKey> {
        self.0.iter().find(|key| key.fingerprint == fingerprint)
    }
}

impl PartialEq for EncryptionKeys {
    fn eq(&self, other: &Self) -> bool {
        self.iter().map(|key| key.fingerprint).eq(other.iter().map(|key| key.fingerprint))
    }
}

impl fmt::Debug for EncryptionKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

/// A key; cheap to clone, and in memory once.
#[derive(Clone)]
pub struct EncryptionKey {
    bytes: Arc<Zeroizing<[u8; KEY]>>,
    fingerprint: Fingerprint,
}

impl EncryptionKey {
    /// Reads the base64 of 32 bytes.
    pub fn parse(text: &str) -> Option<Self> {
        // The decoder needs space for the most bytes that a text of that length can hold.
        let mut decoded = Zeroizing::new([0; KEY + 1]);
        let length = STANDARD.decode_slice(text, &mut decoded[..]).ok()?;
        // Filled in place: moving a value leaves a copy behind.
        let mut bytes = Arc::new(Zeroizing::new([0; KEY]));
        Arc::get_mut(&mut bytes)?.copy_from_slice(decoded.get(..length).filter(|bytes| bytes.len() == KEY)?);
        let hash = Sha256::new().chain_update("wxrelay queue.encryption_keys").chain_update(&bytes[..]).finalize();
        let mut fingerprint = [0; 8];
        fingerprint.copy_from_slice(&hash[..8]);
        Some(Self { bytes, fingerprint: Fingerprint(fingerprint) })
    }

    /// Its fingerprint.
    pub fn fingerprint(&self) -> Fingerprint {
        self.fingerprint
    }

    /// Encrypts a value for its context.
    pub(super) fn seal(&self, context: SealContext, clear: &[u8]) -> Result<Vec<u8>, EncryptError> {
        let mut nonce = [0; NONCE];
        getrandom::fill(&mut nonce).map_err(EncryptError::Random)?;
        let mut sealed = Vec::with_capacity(NONCE + clear.len() + TAG);
        sealed.extend_from_slice(&nonce);
        sealed.extend_from_slice(clear);
        let text = (&mut sealed[NONCE..]).into();
        let tag = self.cipher().encrypt_inout_detached(&XNonce::from(nonce), &context.bytes(), text);
        sealed.extend_from_slice(&tag.map_err(|_| EncryptError::TooLong)?);
        Ok(sealed)
    }

    /// Decrypts a value, if it was sealed for this context with this key.
    pub(super) fn open(&self, context: SealContext, sealed: &[u8]) -> Option<Vec<u8>> {
        let (nonce, rest) = sealed.split_first_chunk::<NONCE>()?;
        let (text, tag) = rest.split_last_chunk::<TAG>()?;
        let (nonce, tag) = (<&XNonce>::from(nonce), <&Tag>::from(tag));
        let mut clear = text.to_vec();
        let opened = self.cipher().decrypt_inout_detached(nonce, &context.bytes(), clear.as_mut_slice().into(), tag);
        opened.ok().map(|()| clear)
    }

    /// The cipher wipes its copy of the key when dropped.
    fn cipher(&self) -> XChaCha20Poly1305 {
        let bytes: &[u8; KEY] = &self.bytes;
        XChaCha20Poly1305::new(<&Key>::from(bytes))
    }
}

impl fmt::Debug for EncryptionKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MASKED")
    }
}

/// Identifies a key, in texts and in the store: 8 bytes of a hash.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Fingerprint(pub(super) [u8; 8]);

impl Fingerprint {
    /// As a store holds it.
    pub(super) fn bytes(self) -> [u8; 8] {
        self.0
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", u64::from_be_bytes(self.0))
    }
}

/// The column and row of a sealed value: the associated data of its encryption, so that no value passes for another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SealContext {
    Query(EventId),
    Body(EventId),
    Clear(EventId),
    Reply(EventId),
    /// A target's answer to an attempt: the event, the number of the target in the store, the number of the attempt.
    Answer(EventId, i64, i64),
    /// A held reply: the event, and when the attempt began that gave it.
    Held(EventId, i64),
    /// A value of a replica's beside the events: the hash of its name.
    #[cfg(feature = "postgres")]
    Kept([u64; 3]),
}

impl SealContext {
    fn bytes(self) -> [u8; 25] {
        let (column, event, target, attempt) = match self {
            Self::Query(event) => (0, event, 0, 0),
            Self::Body(event) => (1, event, 0, 0),
            Self::Clear(event) => (2, event, 0, 0),
            Self::Reply(event) => (3, event, 0, 0),
            Self::Answer(event, target, attempt) => (4, event, target, attempt),
            Self::Held(event, at) => (6, event, at, 0),
            #[cfg(feature = "postgres")]
            Self::Kept([first, second, third]) => (5, EventId(first), second.cast_signed(), third.cast_signed()),
        };
        let mut bytes = [column; 25];
        bytes[1..9].copy_from_slice(&event.0.to_be_bytes());
        bytes[9..17].copy_from_slice(&target.to_be_bytes());
        bytes[17..].copy_from_slice(&attempt.to_be_bytes());
        bytes
    }
}

/// Why a value could not be encrypted.
#[derive(Debug, thiserror::Error)]
pub enum EncryptError {
    /// The system gives no random bytes.
    #[error("the system's random generator failed: {0}")]
    Random(#[source] getrandom::Error),
    /// Far longer than any body that is accepted.
    #[error("the text is too long to be encrypted")]
    TooLong,
}

/// Why a stored value could not be decrypted. No text quotes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecryptError {
    /// Its key is not configured.
    #[error("it is encrypted with the key {0}, which queue.encryption_keys lacks")]
    KeyMissing(Fingerprint),
    /// The store has no key with the number in its row.
    #[error("it is encrypted with a key that the store does not name")]
    KeyUnknown,
    /// It was not sealed for that context, or its bytes have changed.
    #[error("it cannot be decrypted: it is not what was stored")]
    Damaged,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn key(fill: u8) -> EncryptionKey {
        EncryptionKey::parse(&STANDARD.encode([fill; KEY])).unwrap()
    }

    #[test]
    fn a_key_is_the_base64_of_32_bytes() {
        assert!(EncryptionKey::parse(&STANDARD.encode([7; 32])).is_some());
        let (url_safe, hex) = ("_".repeat(43) + "=", "07".repeat(32));
        for broken in [&STANDARD.encode([7; 31]), &STANDARD.encode([7; 33]), &hex, &url_safe, "", "secret"] {
            assert!(EncryptionKey::parse(broken).is_none(), "{broken}");
        }
    }

    #[test]
    fn a_key_is_shown_by_its_fingerprint_alone() {
        assert_eq!(format!("{:?}", EncryptionKeys::new(vec![key(1), key(2)])), "[MASKED, MASKED]");
        // By Python's hashlib. Stores identify keys by this hash: another one would make every encrypted event
        // unreadable.
        assert_eq!(key(0x42).fingerprint().to_string(), "b3ec5edee0fe696b");
        assert_ne!(key(1).fingerprint(), key(2).fingerprint());
    }

    /// By libsodium, `crypto_aead_xchacha20poly1305_ietf_encrypt` of PyNaCl 1.6.2.
    #[test]
    fn opens_what_another_implementation_sealed() {
        const SEALED: &str = "000102030405060708090a0b0c0d0e0f1011121314151617eddcf082bfd5e7b49a07d066635691cab9bc799af3\
                              dd25cada21ffa5e1be09922b09303075f626197d54762cb30da389cdb9";
        let byte = |at| u8::from_str_radix(&SEALED[at..at + 2], 16).unwrap();
        let sealed: Vec<u8> = (0..SEALED.len()).step_by(2).map(byte).collect();
        let context = SealContext::Answer(EventId(0x0102_0304_0506_0708), 9, 10);
        assert_eq!(key(0x42).open(context, &sealed).as_deref(), Some(&b"a text that another program sealed"[..]));
    }

    #[test]
    fn no_two_values_look_alike() {
        let context = SealContext::Body(EventId(1));
        assert_ne!(key(1).seal(context, b"same").unwrap(), key(1).seal(context, b"same").unwrap());
    }

    fn context() -> impl Strategy<Value = SealContext> {
        let event = || (0..3u64).prop_map(EventId);
        prop_oneof![
            event().prop_map(SealContext::Query),
            event().prop_map(SealContext::Body),
            event().prop_map(SealContext::Clear),
            event().prop_map(SealContext::Reply),
            (event(), 0..3i64).prop_map(|(event, no)| SealContext::Held(event, no)),
            (event(), 0..3i64, 0..3i64)
                .prop_map(|(event, target, attempt)| SealContext::Answer(event, target, attempt)),
        ]
    }

    proptest! {
        #[test]
        fn a_value_opens_with_its_key_in_its_context_and_nowhere_else(
            clear in prop::collection::vec(any::<u8>(), 0..300),
            (at, elsewhere) in (context(), context()),
            (flip, cut) in (any::<prop::sample::Index>(), any::<prop::sample::Index>()),
        ) {
            let sealed = key(1).seal(at, &clear).unwrap();
            prop_assert_eq!(sealed.len(), NONCE + clear.len() + TAG);
            prop_assert_eq!(key(1).open(at, &sealed), Some(clear));
            prop_assert_eq!(key(2).open(at, &sealed), None);
            prop_assert!(at == elsewhere || key(1).open(elsewhere, &sealed).is_none());
            let mut changed = sealed.clone();
            changed[flip.index(sealed.len())] ^= 1;
            prop_assert_eq!(key(1).open(at, &changed), None);
            prop_assert_eq!(key(1).open(at, &sealed[..cut.index(sealed.len())]), None);
        }

        #[test]
        fn no_text_makes_a_key_panic(text in "\\PC{0,60}") {
            drop(EncryptionKey::parse(&text));
        }
    }
}
