//! WeChat's signature: SHA-1 over the parts, sorted by bytes and joined without a delimiter.
//!
//! Without a delimiter, parts cut differently have the same signature. The caller must therefore pin the shape of every
//! part before it verifies; `account` does. The comparison takes constant time.

use sha1::{Digest, Sha1};
use subtle::ConstantTimeEq;

/// The signature of the parts, 40 lower-case hex digits.
pub fn signature<const N: usize>(parts: [&str; N]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digest = digest(parts);
    let hex = digest.iter().flat_map(|byte| [byte >> 4, byte & 15]).map(|digit| char::from(DIGITS[usize::from(digit)]));
    hex.collect()
}

/// Whether `given` is the parts' signature. Hex digits may have either case.
pub fn verify<const N: usize>(parts: [&str; N], given: &str) -> bool {
    ClaimedSignature::parse(given).is_some_and(|given| given.matches(parts))
}

/// The signature that a request claims: 40 hex digits, not verified yet.
#[derive(Clone, Copy)]
pub(super) struct ClaimedSignature([u8; 20]);

impl ClaimedSignature {
    pub(super) fn parse(text: &str) -> Option<Self> {
        let hex: &[u8; 40] = text.as_bytes().try_into().ok()?;
        let mut digest = [0; 20];
        for (byte, pair) in digest.iter_mut().zip(hex.chunks_exact(2)) {
            *byte = value(pair[0])? << 4 | value(pair[1])?;
        }
        Some(Self(digest))
    }

    pub(super) fn matches<const N: usize>(self, parts: [&str; N]) -> bool {
        digest(parts).ct_eq(&self.0).into()
    }
}

fn digest<const N: usize>(mut parts: [&str; N]) -> [u8; 20] {
    parts.sort_unstable();
    let mut sha1 = Sha1::new();
    for part in parts {
        sha1.update(part);
    }
    sha1.finalize().into()
}

fn value(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        b'A'..=b'F' => Some(digit - b'A' + 10),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // The worked example of WeChat's page on message push.
    const PARTS: [&str; 3] = ["AAAAA", "1714036504", "1514711492"];
    const SIGNATURE: &str = "f464b24fc39322e44b38aa78f5edd27bd1441696";

    #[test]
    fn signs_as_the_official_example_in_any_order_of_parts() {
        assert_eq!(signature(PARTS), SIGNATURE);
        assert_eq!(signature([PARTS[2], PARTS[0], PARTS[1]]), SIGNATURE);
    }

    #[test]
    fn either_case_of_hex_is_right_and_one_wrong_digit_is_not() {
        assert!(verify(PARTS, SIGNATURE));
        assert!(verify(PARTS, &SIGNATURE.to_uppercase()));
        for place in 0..40 {
            let mut wrong = SIGNATURE.to_owned();
            wrong.replace_range(place..=place, if &SIGNATURE[place..=place] == "0" { "1" } else { "0" });
            assert!(!verify(PARTS, &wrong), "{place}");
        }
    }

    #[test]
    fn only_forty_hex_digits_are_a_signature() {
        let long = format!("{SIGNATURE}0");
        let word = SIGNATURE.replace('f', "g");
        for wrong in ["", &SIGNATURE[..39], &long, &word, &format!("+{}", &SIGNATURE[1..])] {
            assert!(ClaimedSignature::parse(wrong).is_none(), "{wrong}");
            assert!(!verify(PARTS, wrong), "{wrong}");
        }
    }
}
