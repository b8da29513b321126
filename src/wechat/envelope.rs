//! The encrypted form of a text: AES-256-CBC over random bytes, a length, the text and an AppID, then base64.
//!
//! Layout of the clear side: 16 random bytes | length as u32, big-endian | text | AppID, padded to a multiple of 32 by
//! 1 to 32 bytes that each say how many they are. The IV is the first half of the key (developers.weixin.qq.com,
//! guide/dev/push/encryption).
//!
//! Invariants: the AppID is always checked; every fault inside gives the same error, so that there is no padding
//! oracle; keys are wiped on drop and never shown. Deliberately not here: the signature that must be checked first.

use std::fmt;
use std::sync::LazyLock;

use aes::cipher::block_padding::NoPadding;
use aes::cipher::{BlockModeDecrypt, BlockModeEncrypt, InnerIvInit, KeyInit};
use aes::{Aes256Dec, Aes256Enc};
use base64::Engine as _;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use bytes::Bytes;
use subtle::{ConditionallySelectable, ConstantTimeEq, ConstantTimeGreater, ConstantTimeLess};
use zeroize::Zeroizing;

/// The clear side is padded to a multiple of this; AES itself needs only 16.
const PAD_UNIT: usize = 32;
/// Random bytes and length.
const HEAD: usize = 20;
/// Characters of an EncodingAESKey.
const KEY_LENGTH: usize = 43;

#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
type Base64Engine = base64::engine::Simd;
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
type Base64Engine = GeneralPurpose;

static BASE64: LazyLock<Base64Engine> = LazyLock::new(|| {
    #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
    let engine = Base64Engine::standard(GeneralPurposeConfig::new());
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    let engine = base64::engine::general_purpose::STANDARD;
    engine
});

/// 43 characters are 258 bits and the key has 256: in WeChat's console the last two are random, so three keys in four
/// are not canonical base64, and strict decoders refuse them.
const KEY_BASE64: GeneralPurpose = GeneralPurpose::new(
    &base64::alphabet::STANDARD,
    GeneralPurposeConfig::new()
        .with_decode_allow_trailing_bits(true)
        .with_decode_padding_mode(DecodePaddingMode::RequireNone),
);

/// The characters that end a key whose last two bits are 0.
const CANONICAL_ENDS: &[u8; 16] = b"AEIMQUYcgkosw048";

/// A text that is not an EncodingAESKey.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("an aes_key is the EncodingAESKey of WeChat's console: 43 characters of A-Z, a-z, 0-9")]
pub struct KeyError;

/// A text that is not base64 of a multiple of 32 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("Encrypt is not base64 of a multiple of 32 bytes")]
pub struct NotCiphertext;

/// An envelope that does not open. It does not say which of padding, length and AppID is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the envelope does not open with this aes_key and app_id")]
pub struct EnvelopeError;

/// An encrypted text, decoded from base64: a multiple of 32 bytes and not empty.
#[derive(Clone)]
pub struct Ciphertext(Vec<u8>);

impl Ciphertext {
    /// Decodes the text of an `Encrypt` element. Blanks and line ends, which no real push has, are skipped.
    pub fn decode(base64: &str) -> Result<Self, NotCiphertext> {
        let decoded = BASE64.decode(base64).or_else(|error| {
            let dense: Vec<u8> = base64.bytes().filter(|byte| !byte.is_ascii_whitespace()).collect();
            if dense.len() < base64.len() { BASE64.decode(dense) } else { Err(error) }
        });
        let bytes = decoded.map_err(|_| NotCiphertext)?;
        if bytes.is_empty() || bytes.len() % PAD_UNIT != 0 { Err(NotCiphertext) } else { Ok(Self(bytes)) }
    }
}

/// The length alone: the bytes say nothing.
impl fmt::Debug for Ciphertext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Ciphertext({} bytes)", self.0.len())
    }
}

/// An account's EncodingAESKey, ready for use.
#[derive(Clone)]
pub struct AesKey {
    iv: Zeroizing<[u8; 16]>,
    encrypt: Aes256Enc,
    decrypt: Aes256Dec,
    canonical: bool,
}

impl AesKey {
    /// Reads the 43 characters of the console; surrounding blanks are an error too.
    pub fn parse(encoding_aes_key: &str) -> Result<Self, KeyError> {
        let given = encoding_aes_key.as_bytes();
        if given.len() != KEY_LENGTH || !given.iter().all(u8::is_ascii_alphanumeric) {
            return Err(KeyError);
        }
        let mut key = Zeroizing::new([0; 32]);
        let length = KEY_BASE64.decode_slice(given, key.as_mut_slice()).map_err(|_| KeyError)?;
        let half = *key.first_chunk().ok_or(KeyError)?;
        if length != key.len() {
            return Err(KeyError);
        }
        let schedule = (&*key).into();
        let (encrypt, decrypt) = (Aes256Enc::new(schedule), Aes256Dec::new(schedule));
        let canonical = given.last().is_some_and(|last| CANONICAL_ENDS.contains(last));
        Ok(Self { iv: Zeroizing::new(half), encrypt, decrypt, canonical })
    }

    /// Whether the text was canonical base64, which strict decoders require and WeChat's console does not ensure.
    pub fn is_canonical(&self) -> bool {
        self.canonical
    }

    /// Decrypts a text that was encrypted for `app_id`, in place.
    pub fn open(&self, sealed: Ciphertext, app_id: &str) -> Result<Bytes, EnvelopeError> {
        let Ciphertext(mut bytes) = sealed;
        // By reference: cbc would wipe an owned cipher after each use, and each use would compute the key schedule
        // again.
        cbc::Decryptor::inner_iv_init(&self.decrypt, (&*self.iv).into())
            .decrypt_padded::<NoPadding>(&mut bytes)
            .map_err(|_| EnvelopeError)?;
        let end = text_end(&bytes, app_id).ok_or(EnvelopeError)?;
        Ok(Bytes::from(bytes).slice(HEAD..end))
    }

    /// Encrypts a text for `app_id`; the result is base64. Needs fresh random bytes each time.
    pub fn seal(&self, clear: &[u8], app_id: &str, random: [u8; 16]) -> String {
        let length = HEAD + clear.len() + app_id.len();
        let pad = PAD_UNIT - length % PAD_UNIT;
        let mut bytes = Vec::with_capacity(length + pad);
        bytes.extend_from_slice(&random);
        // Bodies are capped at a few megabytes long before this.
        bytes.extend_from_slice(&(clear.len() as u32).to_be_bytes());
        bytes.extend_from_slice(clear);
        bytes.extend_from_slice(app_id.as_bytes());
        // At most 32, by the line above.
        bytes.resize(length + pad, pad as u8);
        let cipher = cbc::Encryptor::inner_iv_init(&self.encrypt, (&*self.iv).into());
        match cipher.encrypt_padded::<NoPadding>(&mut bytes, length + pad) {
            Ok(sealed) => BASE64.encode(sealed),
            Err(_) => String::new(),
        }
    }
}

impl fmt::Debug for AesKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MASKED")
    }
}

/// A new EncodingAESKey out of random bytes.
pub fn generate_key(random: [u8; KEY_LENGTH]) -> String {
    alphanumeric(&random)
}

/// A new token out of random bytes; 32 characters are the most that WeChat's console takes.
pub fn generate_token(random: [u8; 32]) -> String {
    alphanumeric(&random)
}

/// One character for each byte. 62 does not divide 256, which costs a hundredth of a bit per character.
fn alphanumeric(random: &[u8]) -> String {
    const ALPHABET: &[u8; 62] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789";
    random.iter().map(|byte| char::from(ALPHABET[usize::from(*byte) % ALPHABET.len()])).collect()
}

/// Where the text ends, if padding, length and AppID are all valid.
///
/// Takes the same time whatever is wrong, and whichever byte.
fn text_end(bytes: &[u8], app_id: &str) -> Option<usize> {
    let last = *bytes.last()?;
    let in_range = !last.ct_eq(&0) & !last.ct_gt(&(PAD_UNIT as u8));
    let pad = u8::conditional_select(&(PAD_UNIT as u8), &last, in_range);
    let mut sound = in_range;
    for (place, byte) in (0..PAD_UNIT as u8).zip(bytes.iter().rev()) {
        sound &= byte.ct_eq(&pad) | !place.ct_lt(&pad);
    }
    // The AppID is before the padding, and the text is between the head and it.
    let body = bytes.len().saturating_sub(usize::from(pad));
    let end = body.saturating_sub(app_id.len());
    sound &= bytes.get(end..body)?.ct_eq(app_id.as_bytes());
    let length = u32::from_be_bytes(*bytes.get(16..HEAD)?.first_chunk()?);
    sound &= (u64::from(length) + HEAD as u64).ct_eq(&(end as u64));
    bool::from(sound).then_some(end)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const KEY: &str = "abcdefghijklmnopqrstuvwxyz0123456789ABCDEFG";
    const RANDOM: [u8; 16] = *b"aaaabbbbccccdddd";

    fn key() -> AesKey {
        AesKey::parse(KEY).unwrap()
    }

    fn open(base64: &str, app_id: &str) -> Result<Bytes, EnvelopeError> {
        key().open(Ciphertext::decode(base64).unwrap(), app_id)
    }

    /// Encrypts a clear side as it stands, valid or not.
    fn encrypt(mut clear: Vec<u8>) -> String {
        let key = key();
        let length = clear.len();
        let cipher = cbc::Encryptor::inner_iv_init(&key.encrypt, (&*key.iv).into());
        BASE64.encode(cipher.encrypt_padded::<NoPadding>(&mut clear, length).unwrap())
    }

    fn clear_side(length: u32, text: &str, app_id: &str, pad: &[u8]) -> Vec<u8> {
        [&RANDOM[..], &length.to_be_bytes(), text.as_bytes(), app_id.as_bytes(), pad].concat()
    }

    #[test]
    fn every_padding_from_1_to_32_is_written_and_read() {
        let mut pads = [false; 33];
        for length in 0..64 {
            let text = "x".repeat(length);
            let sealed = key().seal(text.as_bytes(), "wx1", RANDOM);
            assert_eq!(open(&sealed, "wx1").unwrap(), text);
            let pad = 32 - (23 + length) % 32;
            pads[pad] = true;
            assert_eq!(encrypt(clear_side(length as u32, &text, "wx1", &vec![pad as u8; pad])), sealed, "{pad}");
        }
        assert!(pads[1..].iter().all(|seen| *seen));
    }

    #[test]
    fn a_wrong_padding_length_or_app_id_gives_one_and_the_same_error() {
        // 16 + 4 + 5 + 3 = 28 bytes, so the right padding is four times 4.
        assert_eq!(open(&encrypt(clear_side(5, "hello", "wx1", &[4; 4])), "wx1").unwrap(), "hello");
        for (wrong, what) in [
            (clear_side(5, "hello", "wx2", &[4; 4]), "another AppID"),
            (clear_side(6, "hello", "wx1", &[4; 4]), "a length one too long"),
            (clear_side(4, "hello", "wx1", &[4; 4]), "a length one too short"),
            (clear_side(u32::MAX, "hello", "wx1", &[4; 4]), "a length beyond the end"),
            (clear_side(0x7fff_ffff, "hello", "wx1", &[4; 4]), "a length far beyond the end"),
            (clear_side(5, "hello", "wx1", &[4, 4, 3, 4]), "a padding byte that differs"),
            (clear_side(5, "hello", "wx1", &[3; 4]), "a padding that is one short"),
            (clear_side(5, "hello", "wx1", &[0; 4]), "padding 0"),
            (clear_side(5, "hello", "wx1", &[36; 36]), "padding 36, on a sound multiple of 32"),
            (clear_side(5, "hello", "wx1", &[33; 36]), "padding 33"),
            (clear_side(5, "hello", "wx1", &[255; 4]), "padding beyond the beginning"),
            (vec![32; 32], "nothing but padding"),
            (vec![13; 32], "no whole length"),
        ] {
            assert_eq!(open(&encrypt(wrong), "wx1"), Err(EnvelopeError), "{what}");
        }
        assert_eq!(open(&key().seal(b"hello", "wx1", RANDOM), ""), Err(EnvelopeError));
        assert_eq!(open(&key().seal(b"hello", "wx1", RANDOM), "wx"), Err(EnvelopeError));
    }

    #[test]
    fn keys_with_any_last_character_are_read_and_those_that_agree_in_256_bits_are_one() {
        for last in ('A'..='Z').chain('a'..='z').chain('0'..='9') {
            let text = format!("{}{last}", &KEY[..42]);
            assert!(AesKey::parse(&text).is_ok(), "{text}");
        }
        // E, F, G and H differ in the two bits that are not part of the key.
        for last in ["E", "F", "H"] {
            let twin = AesKey::parse(&format!("{}{last}", &KEY[..42])).unwrap();
            assert_eq!(twin.open(Ciphertext::decode(&key().seal(b"x", "wx1", RANDOM)).unwrap(), "wx1").unwrap(), "x");
        }
    }

    #[test]
    fn one_last_character_in_four_is_canonical() {
        let ends: String = ('A'..='Z').chain('a'..='z').chain('0'..='9').collect();
        let strict = |text: &str| base64::engine::general_purpose::STANDARD_NO_PAD.decode(text).is_ok();
        for last in ends.chars() {
            let text = format!("{}{last}", &KEY[..42]);
            assert_eq!(AesKey::parse(&text).unwrap().is_canonical(), strict(&text), "{last}");
        }
    }

    #[test]
    fn what_is_no_key_is_refused() {
        for text in
            ["", &KEY[..42], &format!("{KEY}A"), &format!("{KEY}="), &KEY.replace('a', "+"), &KEY.replace('a', "你")]
        {
            assert_eq!(AesKey::parse(text).err(), Some(KeyError), "{text}");
        }
        assert_eq!(format!("{:?}", key()), "MASKED");
    }

    #[test]
    fn only_base64_of_a_multiple_of_32_bytes_is_sealed_text() {
        let sealed = key().seal(b"hello", "wx1", RANDOM);
        let folded = format!(" {}\n{}\r\n", &sealed[..20], &sealed[20..]);
        assert_eq!(open(&folded, "wx1").unwrap(), "hello");
        for wrong in
            ["", " ", "encrypt", "92106704", "AAAA", &sealed[..40], sealed.trim_end_matches('='), &format!("{sealed}!")]
        {
            assert_eq!(Ciphertext::decode(wrong).err(), Some(NotCiphertext), "{wrong}");
        }
        assert!(Ciphertext::decode(&BASE64.encode([0; 48])).is_err());
    }

    #[test]
    fn generated_keys_and_tokens_are_what_the_console_takes() {
        let random: [u8; 43] = std::array::from_fn(|place| (place * 6) as u8);
        let generated = generate_key(random);
        assert!(AesKey::parse(&generated).is_ok(), "{generated}");
        let token = generate_token([255; 32]);
        assert!(token.len() == 32 && token.bytes().all(|byte| byte.is_ascii_alphanumeric()));
    }

    proptest! {
        #[test]
        fn what_is_sealed_opens(clear in any::<Vec<u8>>(), app_id in "[a-z0-9]{0,20}", random in any::<[u8; 16]>()) {
            let sealed = key().seal(&clear, &app_id, random);
            prop_assert_eq!(open(&sealed, &app_id).unwrap(), clear);
        }

        #[test]
        fn no_bytes_make_opening_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(sealed) = Ciphertext::decode(&BASE64.encode(bytes)) {
                prop_assert!(key().open(sealed, "wx1").is_err());
            }
        }
    }
}
