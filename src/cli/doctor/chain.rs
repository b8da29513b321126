//! Certificate chains: their content, whether they are trusted, and what is wrong with them.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use parking_lot::Mutex;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, DigitallySignedStruct, SignatureScheme};
use rustls_platform_verifier::Verifier;

use super::report::{CheckFailure, CheckResult, DoctorCheck};
use crate::bounded_file;
use crate::clock::UnixMillis;
use crate::server::Validity;

const DAY: i64 = 86_400;
const RENEW: &str = "renew it and reload the server";

/// Why the trust store cannot be loaded.
#[derive(Debug, thiserror::Error)]
pub(super) enum TrustStoreError {
    #[error("--ca {path}: {source}")]
    File { path: String, source: pem::Error },
    /// The system has no certificate authorities.
    #[error("no certificate authorities to trust ({0})")]
    None(#[from] rustls::Error),
}

impl From<&TrustStoreError> for CheckFailure {
    fn from(error: &TrustStoreError) -> Self {
        let remedy = match error {
            TrustStoreError::File { .. } => "give a PEM file of certificates",
            TrustStoreError::None(_) => "install ca-certificates, or set SSL_CERT_FILE",
        };
        Self::new(error.to_string(), remedy)
    }
}

/// The trusted authorities, or why they cannot be loaded; shared by all URLs.
pub(super) type TrustStore = Result<Arc<dyn ServerCertVerifier>, Arc<TrustStoreError>>;

/// The system's authorities, and those of a file.
pub(super) fn authorities(ca: Option<&Path>) -> TrustStore {
    load(ca).map_err(Arc::new)
}

fn load(ca: Option<&Path>) -> Result<Arc<dyn ServerCertVerifier>, TrustStoreError> {
    let more = match ca {
        None => Vec::new(),
        Some(path) => {
            let file = |source| TrustStoreError::File { path: path.display().to_string(), source };
            bounded_file::read_certificates(path).map_err(file)?
        }
    };
    Ok(Arc::new(Verifier::new_with_extra_roots(more, provider())?))
}

pub(super) fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

/// The fields of a server's own certificate.
pub(super) struct LeafCertificate {
    names: Vec<String>,
    validity: Option<Validity>,
    is_self_issued: bool,
}

impl LeafCertificate {
    /// `None` if it cannot be parsed.
    pub(super) fn of(chain: &[CertificateDer<'_>]) -> Option<Self> {
        let der = chain.first()?;
        let parsed = webpki::EndEntityCert::try_from(der).ok()?;
        Some(Self {
            names: parsed.valid_dns_names().map(str::to_owned).collect(),
            validity: Validity::of(der),
            is_self_issued: parsed.issuer() == parsed.subject(),
        })
    }

    /// Whether issuer and subject are the same.
    pub(super) fn is_self_issued(&self) -> bool {
        self.is_self_issued
    }

    /// A host name to verify it with: the certificate's first, with a label in place of a `*`.
    pub(super) fn sample_name(&self) -> Option<String> {
        self.names.first().map(|name| name.replacen('*', "www", 1))
    }

    /// The day on which it expires.
    fn expiry_day(&self) -> String {
        let day = self.validity.map(|validity| UnixMillis(validity.until.saturating_mul(1000)).to_string());
        day.map_or_else(|| "an unknown day".to_owned(), |text| text.chars().take(10).collect())
    }

    /// The result for a certificate that is valid except, possibly, for its expiry.
    pub(super) fn check_expiry(&self, check: &DoctorCheck, what: &str) -> CheckResult {
        let text = format!("{what}, expires on {}", self.expiry_day());
        let now = UnixMillis::now().seconds();
        let Some(validity) = self.validity.filter(|validity| now > validity.renew_by()) else {
            return check.ok(text);
        };
        let days = (validity.until - now).div_euclid(DAY);
        if days < 0 {
            return check.failed(format!("the certificate expired on {}", self.expiry_day()), RENEW);
        }
        check.warning(format!("{text}, in {days} days"), "renew it now, and check why it was not renewed automatically")
    }
}

/// The DNS names, shortened.
impl fmt::Display for LeafCertificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.names[..] {
            [] => f.write_str("no name"),
            [names @ .., last] if names.len() < 4 => {
                names.iter().try_for_each(|name| write!(f, "{name}, "))?;
                f.write_str(last)
            }
            names => write!(f, "{} and {} more names", names[0], names.len() - 1),
        }
    }
}

/// Whether the chain's leaf is valid for a host name.
pub(super) fn is_for(chain: &[CertificateDer<'_>], host: &str) -> bool {
    let (Some(leaf), Ok(name)) = (chain.first(), ServerName::try_from(host)) else { return false };
    webpki::EndEntityCert::try_from(leaf).is_ok_and(|leaf| leaf.verify_is_valid_for_subject_name(&name).is_ok())
}

/// Whether the certificate is valid except that its issuer is not trusted here.
pub(super) fn is_untrusted_only(error: &rustls::Error) -> bool {
    use CertificateError as Why;
    let rustls::Error::InvalidCertificate(why) = error else { return false };
    let expired = matches!(why, Why::Expired | Why::ExpiredContext { .. });
    let early = matches!(why, Why::NotValidYet | Why::NotValidYetContext { .. });
    let misnamed = matches!(why, Why::NotValidForName | Why::NotValidForNameContext { .. });
    !expired && !early && !misnamed
}

/// Why a chain is rejected. `None` if the error is not about the chain.
pub(super) fn explain_rejection(
    error: &rustls::Error,
    chain: &[CertificateDer<'_>],
    host: &str,
) -> Option<CheckFailure> {
    let rustls::Error::InvalidCertificate(error) = error else { return None };
    let leaf = LeafCertificate::of(chain)?;
    let (text, remedy) = match error {
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            (format!("the certificate expired on {}", leaf.expiry_day()), RENEW)
        }
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            ("the certificate is not valid yet".to_owned(), "check this machine's clock, or wait")
        }
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => (
            format!("the certificate is for {leaf}, not for {host}"),
            "get one for this name, or let the server select its certificate by SNI",
        ),
        CertificateError::ApplicationVerificationFailure => (
            "another certificate is served than that in server.tls.cert".to_owned(),
            "reload the relay, and check that it is the relay that listens there: ss -ltnp",
        ),
        // rustls has several errors for it: by openssl's default it also claims to be an authority.
        _ if leaf.is_self_issued => (
            "the certificate is self-signed, which WeChat does not accept".to_owned(),
            "get one of a public authority, such as Let's Encrypt",
        ),
        CertificateError::UnknownIssuer if chain.len() == 1 => (
            "the certificate is sent without the intermediate certificate that issued it".to_owned(),
            "serve the full chain (fullchain.pem: leaf first, intermediates behind it); for a private authority \
             give --ca",
        ),
        CertificateError::UnknownIssuer | CertificateError::BadSignature => (
            "the chain ends in an authority that this machine does not trust".to_owned(),
            "get a certificate of a public authority, or check that the intermediates belong to it; for a private one \
             give --ca",
        ),
        other => (format!("the certificate is rejected: {other}"), "get a new one of a public authority"),
    };
    Some(CheckFailure { text, remedy })
}

/// A certificate verifier that applies a policy and records the chain.
#[derive(Debug)]
pub(super) struct ChainRecorder {
    trust: TrustPolicy,
    provider: Arc<CryptoProvider>,
    chain: Mutex<Vec<CertificateDer<'static>>>,
}

#[derive(Debug)]
pub(super) enum TrustPolicy {
    /// Accept certificates issued by the trust store's authorities.
    Authorities(Arc<dyn ServerCertVerifier>),
    /// Accept this certificate only, which is from our own file.
    Own(CertificateDer<'static>),
}

impl ChainRecorder {
    pub(super) fn new(trust: TrustPolicy) -> Self {
        Self { trust, provider: provider(), chain: Mutex::default() }
    }

    /// The server's chain, leaf first; empty if the handshake failed before it was sent.
    pub(super) fn chain(&self) -> Vec<CertificateDer<'static>> {
        self.chain.lock().clone()
    }
}

impl ServerCertVerifier for ChainRecorder {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let chain = [leaf].into_iter().chain(intermediates).map(|one| one.clone().into_owned()).collect();
        *self.chain.lock() = chain;
        match &self.trust {
            TrustPolicy::Authorities(authorities) => {
                authorities.verify_server_cert(leaf, intermediates, name, ocsp, now)
            }
            TrustPolicy::Own(own) if own == leaf => Ok(ServerCertVerified::assertion()),
            TrustPolicy::Own(_) => Err(CertificateError::ApplicationVerificationFailure.into()),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, leaf, signed, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, leaf, signed, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
