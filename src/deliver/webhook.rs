//! Standard Webhooks 1.0: the three headers by which a handler verifies the relay (standardwebhooks.com, spec 1.0.0).

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit as _, Mac as _};
use http::header::{HeaderMap, HeaderName, HeaderValue, InvalidHeaderValue};
use sha2::Sha256;
use zeroize::Zeroizing;

use crate::clock::UnixMillis;
use crate::event::EventId;

const ID: HeaderName = HeaderName::from_static("webhook-id");
const TIMESTAMP: HeaderName = HeaderName::from_static("webhook-timestamp");
const SIGNATURE: HeaderName = HeaderName::from_static("webhook-signature");

/// A signing key: the bytes behind `whsec_`.
#[derive(Clone)]
pub struct SigningKey(Zeroizing<Vec<u8>>);

impl SigningKey {
    /// Reads `whsec_` and the base64 of 24 to 64 bytes.
    pub fn parse(secret: &str) -> Option<Self> {
        let key = STANDARD.decode(secret.strip_prefix("whsec_")?).ok()?;
        (24..=64).contains(&key.len()).then(|| Self(Zeroizing::new(key)))
    }

    /// The `v1` signature of one message: base64 of HMAC-SHA256 over `id.timestamp.body`.
    pub fn sign(&self, id: &str, timestamp: &str, body: &[u8]) -> String {
        let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(&self.0) else {
            unreachable!("HMAC takes a key of any length")
        };
        for part in [id.as_bytes(), b".", timestamp.as_bytes(), b".", body] {
            mac.update(part);
        }
        format!("v1,{}", STANDARD.encode(mac.finalize().into_bytes()))
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MASKED")
    }
}

/// Adds the headers, with a signature by each key, so that a handler can rotate its key.
pub(super) fn sign(
    headers: &mut HeaderMap,
    keys: &[SigningKey],
    event: EventId,
    now: UnixMillis,
    body: &[u8],
) -> Result<(), InvalidHeaderValue> {
    if keys.is_empty() {
        return Ok(());
    }
    let (id, timestamp) = (event.to_string(), now.seconds().to_string());
    let signatures: Vec<_> = keys.iter().map(|key| key.sign(&id, &timestamp, body)).collect();
    headers.insert(ID, HeaderValue::try_from(id)?);
    headers.insert(TIMESTAMP, HeaderValue::try_from(timestamp)?);
    headers.insert(SIGNATURE, HeaderValue::try_from(signatures.join(" "))?);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The worked example of the Standard Webhooks libraries' own test-suites.
    #[test]
    fn signs_as_the_published_example() {
        let key = SigningKey::parse("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").unwrap();
        let signature = key.sign("msg_p5jXN8AQM9LWM0D4loKWxJek", "1614265330", br#"{"test": 2432232314}"#);
        assert_eq!(signature, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
    }

    #[test]
    fn every_key_signs() {
        let key = |fill: u8| SigningKey(Zeroizing::new(vec![fill; 24]));
        let mut headers = HeaderMap::new();
        sign(&mut headers, &[key(1), key(2)], EventId(7), UnixMillis(1_000), b"{}").unwrap();
        let listed = headers[SIGNATURE].to_str().unwrap();
        let expected = format!(
            "{} {}",
            key(1).sign("evt_0000000000000007", "1", b"{}"),
            key(2).sign("evt_0000000000000007", "1", b"{}")
        );
        assert_eq!(listed, expected);
    }

    #[test]
    fn a_key_needs_its_prefix_and_24_to_64_bytes() {
        for bad in ["", "whsec_", "whsec_MTIz", "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "whsec_!!!!"] {
            assert!(SigningKey::parse(bad).is_none(), "{bad}");
        }
    }
}
