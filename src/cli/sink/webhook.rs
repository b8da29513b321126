//! The receiving side of Standard Webhooks, symmetric signatures (`v1`). Pure.
//!
//! Written independently of the relay's signing code, so that each tests the other.
//! Source: github.com/standard-webhooks/standard-webhooks, spec/standard-webhooks.md.

use std::str::FromStr;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use http::HeaderMap;
use sha2::Sha256;
use zeroize::Zeroizing;

use crate::clock::UnixMillis;

/// The largest difference between a delivery's timestamp and our clock.
const TOLERANCE: Duration = Duration::from_secs(5 * 60);

/// A decoded `whsec_` secret.
#[derive(Clone)]
pub struct WebhookKey(Zeroizing<Vec<u8>>);

#[derive(Debug, thiserror::Error)]
#[error("expected `whsec_` and base64, as `wxrelay keygen` prints it")]
pub struct WebhookSecretError;

/// Why a delivery's signature is invalid.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WebhookSignatureError {
    /// A header is missing or not text.
    #[error("no {0} header")]
    Missing(&'static str),
    /// The timestamp is no number, or too far from our clock.
    #[error("webhook-timestamp is more than 5 minutes off")]
    Stale,
    #[error("webhook-signature does not match the body and the secret")]
    Mismatch,
}

impl FromStr for WebhookKey {
    type Err = WebhookSecretError;

    fn from_str(text: &str) -> Result<Self, WebhookSecretError> {
        let key =
            STANDARD.decode(text.strip_prefix("whsec_").ok_or(WebhookSecretError)?).map_err(|_| WebhookSecretError)?;
        if key.is_empty() { Err(WebhookSecretError) } else { Ok(Self(Zeroizing::new(key))) }
    }
}

/// Checks a delivery that arrived at `now`: one of `keys` must have signed it. The error is that of the last key.
pub(super) fn verify(
    keys: &[WebhookKey],
    headers: &HeaderMap,
    body: &[u8],
    now: UnixMillis,
) -> Result<(), WebhookSignatureError> {
    let mut result = Err(WebhookSignatureError::Mismatch);
    for key in keys {
        result = key.verify(headers, body, now);
        if result.is_ok() {
            break;
        }
    }
    result
}

impl WebhookKey {
    /// The same for one key. The header may hold several signatures during a rotation of secrets.
    pub fn verify(&self, headers: &HeaderMap, body: &[u8], now: UnixMillis) -> Result<(), WebhookSignatureError> {
        let header =
            |name| headers.get(name).and_then(|value| value.to_str().ok()).ok_or(WebhookSignatureError::Missing(name));
        let (id, timestamp) = (header("webhook-id")?, header("webhook-timestamp")?);
        let signatures = header("webhook-signature")?;
        let seconds: i64 = timestamp.parse().map_err(|_| WebhookSignatureError::Stale)?;
        if now.seconds().abs_diff(seconds) > TOLERANCE.as_secs() {
            return Err(WebhookSignatureError::Stale);
        }
        let mac = Hmac::<Sha256>::new_from_slice(&self.0).map_err(|_| WebhookSignatureError::Mismatch)?;
        let mac = mac.chain_update(id).chain_update(".").chain_update(timestamp).chain_update(".").chain_update(body);
        let matches = |given: &str| {
            let given = given.strip_prefix("v1,").and_then(|given| STANDARD.decode(given).ok());
            given.is_some_and(|given| mac.clone().verify_slice(&given).is_ok())
        };
        if signatures.split(' ').any(matches) { Ok(()) } else { Err(WebhookSignatureError::Mismatch) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // From the example of the standard's own libraries.
    const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
    const BODY: &[u8] = br#"{"test": 2432232314}"#;
    const NOW: UnixMillis = UnixMillis(1_614_265_330_000);

    fn headers(timestamp: &str, signature: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert("webhook-id", "msg_p5jXN8AQM9LWM0D4loKWxJek".parse().unwrap());
        headers.insert("webhook-timestamp", timestamp.parse().unwrap());
        headers.insert("webhook-signature", signature.parse().unwrap());
        headers
    }

    fn verify(timestamp: &str, signature: &str, body: &[u8], now: UnixMillis) -> Result<(), WebhookSignatureError> {
        SECRET.parse::<WebhookKey>().unwrap().verify(&headers(timestamp, signature), body, now)
    }

    #[test]
    fn the_standards_own_example_holds() {
        let good = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=";
        assert_eq!(verify("1614265330", good, BODY, NOW), Ok(()));
        let among_others = format!("v1,AAAA v2,{} {good}", &good[3..]);
        assert_eq!(verify("1614265330", &among_others, BODY, NOW), Ok(()));
    }

    #[test]
    fn other_bodies_times_and_versions_do_not() {
        let good = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=";
        assert_eq!(verify("1614265330", good, b"{}", NOW), Err(WebhookSignatureError::Mismatch));
        assert_eq!(verify("1614265331", good, BODY, NOW), Err(WebhookSignatureError::Mismatch));
        assert_eq!(verify("1614265330", &good.replace("v1", "v2"), BODY, NOW), Err(WebhookSignatureError::Mismatch));
        let later = NOW.after(Duration::from_secs(301));
        assert_eq!(verify("1614265330", good, BODY, later), Err(WebhookSignatureError::Stale));
        assert_eq!(verify("soon", good, BODY, NOW), Err(WebhookSignatureError::Stale));
    }

    #[test]
    fn one_of_several_keys_is_enough_and_none_of_them_is_not() {
        let other: WebhookKey = "whsec_MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE=".parse().unwrap();
        let good = headers("1614265330", "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
        for keys in [[SECRET.parse().unwrap(), other.clone()], [other.clone(), SECRET.parse().unwrap()]] {
            assert_eq!(super::verify(&keys, &good, BODY, NOW), Ok(()));
        }
        assert_eq!(super::verify(&[other], &good, BODY, NOW), Err(WebhookSignatureError::Mismatch));
        assert_eq!(super::verify(&[], &good, BODY, NOW), Err(WebhookSignatureError::Mismatch));
    }

    #[test]
    fn a_delivery_without_signature_is_refused() {
        let key: WebhookKey = SECRET.parse().unwrap();
        assert_eq!(key.verify(&HeaderMap::new(), BODY, NOW), Err(WebhookSignatureError::Missing("webhook-id")));
    }

    #[test]
    fn secrets_are_base64_behind_their_prefix() {
        for bad in ["", "whsec_", "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "whsec_!"] {
            assert!(bad.parse::<WebhookKey>().is_err(), "{bad}");
        }
    }
}
