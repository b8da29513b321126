//! The answers to an ACME authority that validates a domain by TLS-ALPN-01 (RFC 8737). `acme` offers them, `tls` serves
//! them.
//!
//! Invariants: an answer is served from its offer until its [`OfferedChallenge`] is dropped, however an order ends; a
//! domain without an order has no answer.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use rcgen::{CertificateParams, CustomExtension, KeyPair};
use rustls::crypto::ring;
use rustls::pki_types::PrivatePkcs8KeyDer;
use rustls::sign::CertifiedKey;

/// The protocol (ALPN) of a validation (RFC 8737, 6.2).
pub(super) const PROTOCOL: &[u8] = b"acme-tls/1";

/// Whether a client that offers these protocols is an authority: it offers that one and no other (RFC 8737, 3).
pub(super) fn asks_for_validation<'a>(mut protocols: impl Iterator<Item = &'a [u8]>) -> bool {
    protocols.next() == Some(PROTOCOL) && protocols.next().is_none()
}

/// Whether the protocol that was agreed on is the authority's, which ends with the handshake.
pub(super) fn is_validation(agreed: Option<&[u8]>) -> bool {
    agreed == Some(PROTOCOL)
}

/// The answers, by domain.
#[derive(Clone, Default)]
pub(super) struct Challenges {
    own: Arc<Mutex<HashMap<String, Arc<CertifiedKey>>>>,
    /// Those of other replicas' orders.
    shared: Arc<Mutex<HashMap<String, SharedAnswer>>>,
}

/// A proof, and the answer that is made of it.
type SharedAnswer = ([u8; 32], Arc<CertifiedKey>);

/// Why a challenge cannot be answered.
#[derive(Debug, thiserror::Error)]
pub enum ChallengeError {
    #[error(transparent)]
    Made(#[from] rcgen::Error),
    #[error(transparent)]
    Served(#[from] rustls::Error),
}

impl Challenges {
    /// The certificate that answers a validation of a domain.
    pub(super) fn answer(&self, domain: &str) -> Option<Arc<CertifiedKey>> {
        let domain = domain.to_ascii_lowercase();
        let own = self.own.lock().get(&domain).cloned();
        own.or_else(|| self.shared.lock().get(&domain).map(|(_, answer)| answer.clone()))
    }

    /// Serves the proofs of other replicas' orders, and no earlier ones.
    pub(super) fn follow(&self, proofs: &[(String, [u8; 32])]) {
        let before = std::mem::take(&mut *self.shared.lock());
        let mut answers = HashMap::new();
        for (domain, sha256) in proofs {
            let known = before.get(domain).filter(|(known, _)| known == sha256).map(|(_, answer)| answer.clone());
            // One that cannot be made here is missing here: the authority says so to who orders.
            if let Some(answer) = known.or_else(|| make(domain, sha256).ok()) {
                answers.insert(domain.clone(), (*sha256, answer));
            }
        }
        *self.shared.lock() = answers;
    }

    /// Serves the proof for a key authorization, given by its SHA-256, until the result is dropped.
    pub(super) fn offer(&self, domain: &str, sha256: &[u8; 32]) -> Result<OfferedChallenge, ChallengeError> {
        let answer = make(domain, sha256)?;
        self.own.lock().insert(domain.to_owned(), answer);
        Ok(OfferedChallenge { challenges: self.clone(), domain: domain.to_owned() })
    }
}

fn make(domain: &str, sha256: &[u8; 32]) -> Result<Arc<CertifiedKey>, ChallengeError> {
    let mut params = CertificateParams::new([domain.to_owned()])?;
    params.custom_extensions.push(CustomExtension::new_acme_identifier(sha256));
    let key = KeyPair::generate()?;
    let chain = vec![params.self_signed(&key)?.der().clone()];
    let secret = ring::sign::any_supported_type(&PrivatePkcs8KeyDer::from(key.serialize_der()).into())?;
    // Not `from_der`: webpki does not know this critical extension.
    Ok(Arc::new(CertifiedKey::new(chain, secret)))
}

/// Withdraws its answer when dropped.
#[must_use]
pub(super) struct OfferedChallenge {
    challenges: Challenges,
    domain: String,
}

impl Drop for OfferedChallenge {
    fn drop(&mut self) {
        self.challenges.own.lock().remove(&self.domain);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_there_for_its_domain_and_as_long_as_it_is_offered() {
        let challenges = Challenges::default();
        let offered = challenges.offer("wx.example.com", &[7; 32]).unwrap();
        let shown = challenges.answer("WX.example.com").unwrap();
        // RFC 8737, 3: a critical extension 1.3.6.1.5.5.7.1.31 that holds the SHA-256 as an OCTET STRING.
        let extension =
            [&b"\x06\x08\x2b\x06\x01\x05\x05\x07\x01\x1f\x01\x01\xff\x04\x22\x04\x20"[..], &[7; 32]].concat();
        let der = shown.end_entity_cert().unwrap();
        assert!(der.windows(extension.len()).any(|part| part == extension));
        assert!(challenges.answer("other.example.com").is_none());
        drop(offered);
        assert!(challenges.answer("wx.example.com").is_none());
    }

    #[test]
    fn only_who_offers_that_protocol_alone_is_an_authority() {
        for (offered, is) in
            [(&[PROTOCOL][..], true), (&[PROTOCOL, b"h2"], false), (&[b"http/1.1"], false), (&[], false)]
        {
            assert_eq!(asks_for_validation(offered.iter().copied()), is, "{offered:?}");
        }
    }
}
