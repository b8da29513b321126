//! Certificates: what a chain holds, whom it is trusted by, and in words what is wrong with it.

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

use super::report::{Check, Line};
use crate::bounded_file;
use crate::clock::UnixMillis;
use crate::server::Validity;

const DAY: i64 = 86_400;
const RENEW: &str = "renew it and reload the server";

/// Why there is nobody to trust.
#[derive(Debug, thiserror::Error)]
pub(super) enum Untrusting {
    /// The file of `--ca`.
    #[error("--ca {path}: {source}; expected a PEM file of certificates")]
    File {
        /// The file.
        path: String,
        /// What is wrong with it.
        source: pem::Error,
    },
    /// The system has no certificate authorities.
    #[error("no certificate authorities to trust ({0}); install ca-certificates or set SSL_CERT_FILE")]
    None(#[from] rustls::Error),
}

/// Whom to trust, or why there is nobody; the same for every URL.
pub(super) type Authorities = Result<Arc<dyn ServerCertVerifier>, Arc<Untrusting>>;

/// The system's authorities, and those of a file.
pub(super) fn authorities(ca: Option<&Path>) -> Authorities {
    load(ca).map_err(Arc::new)
}

fn load(ca: Option<&Path>) -> Result<Arc<dyn ServerCertVerifier>, Untrusting> {
    let more = match ca {
        None => Vec::new(),
        Some(path) => {
            let file = |source| Untrusting::File { path: path.display().to_string(), source };
            bounded_file::read_certificates(path).map_err(file)?
        }
    };
    Ok(Arc::new(Verifier::new_with_extra_roots(more, provider())?))
}

pub(super) fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

/// What a certificate says of itself.
pub(super) struct Leaf {
    names: Vec<String>,
    validity: Option<Validity>,
    is_self_issued: bool,
}

impl Leaf {
    /// `None` of what is no certificate.
    pub(super) fn of(chain: &[CertificateDer<'_>]) -> Option<Self> {
        let der = chain.first()?;
        let parsed = webpki::EndEntityCert::try_from(der).ok()?;
        Some(Self {
            names: parsed.valid_dns_names().map(str::to_owned).collect(),
            validity: Validity::of(der),
            is_self_issued: parsed.issuer() == parsed.subject(),
        })
    }

    /// Whether it says that it issued itself.
    pub(super) fn is_self_issued(&self) -> bool {
        self.is_self_issued
    }

    /// A name to try it by: the first, with something for a `*`.
    pub(super) fn some_name(&self) -> Option<String> {
        self.names.first().map(|name| name.replacen('*', "www", 1))
    }

    /// The day it ends on.
    fn end(&self) -> String {
        let day = self.validity.map(|validity| UnixMillis(validity.until.saturating_mul(1000)).to_string());
        day.map_or_else(|| "an unknown day".to_owned(), |text| text.chars().take(10).collect())
    }

    /// The line of a certificate that nothing is wrong with but its end, maybe.
    pub(super) fn lasts(&self, check: &Check, what: &str) -> Line {
        let text = format!("{what}, ends on {}", self.end());
        let now = UnixMillis::now().seconds();
        let Some(validity) = self.validity.filter(|validity| now > validity.renew_by()) else {
            return check.ok(text);
        };
        let days = (validity.until - now).div_euclid(DAY);
        if days < 0 {
            return check.failed(format!("the certificate has expired: it ended on {}", self.end()), RENEW);
        }
        check.warning(format!("{text}, in {days} days"), "renew it now, and see why that did not happen by itself")
    }
}

/// The names of a certificate, for people.
impl fmt::Display for Leaf {
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

/// Whether the chain's leaf has that name.
pub(super) fn is_for(chain: &[CertificateDer<'_>], host: &str) -> bool {
    let (Some(leaf), Ok(name)) = (chain.first(), ServerName::try_from(host)) else { return false };
    webpki::EndEntityCert::try_from(leaf).is_ok_and(|leaf| leaf.verify_is_valid_for_subject_name(&name).is_ok())
}

/// Whether it is only that nobody here vouches for a certificate, which is sound otherwise.
pub(super) fn is_unvouched(error: &rustls::Error) -> bool {
    use CertificateError as Why;
    let rustls::Error::InvalidCertificate(why) = error else { return false };
    let expired = matches!(why, Why::Expired | Why::ExpiredContext { .. });
    let early = matches!(why, Why::NotValidYet | Why::NotValidYetContext { .. });
    let misnamed = matches!(why, Why::NotValidForName | Why::NotValidForNameContext { .. });
    !expired && !early && !misnamed
}

/// What is wrong with a chain that is not trusted, and what to do. `None` if it is not the chain that is wrong.
pub(super) fn refusal(
    error: &rustls::Error,
    chain: &[CertificateDer<'_>],
    host: &str,
) -> Option<(String, &'static str)> {
    let rustls::Error::InvalidCertificate(error) = error else { return None };
    let leaf = Leaf::of(chain)?;
    Some(match error {
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            (format!("the certificate has expired: it ended on {}", leaf.end()), RENEW)
        }
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            ("the certificate is not valid yet".to_owned(), "look at this machine's clock, or wait")
        }
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => (
            format!("the certificate is for {leaf}, not for {host}"),
            "get one for this name, or let the server choose its certificate by SNI",
        ),
        CertificateError::ApplicationVerificationFailure => (
            "another certificate is served than that in server.tls.cert".to_owned(),
            "reload the relay, and see that it is the relay that listens there: ss -ltnp",
        ),
        // Whatever rustls makes of it: a twin among the authorities, or that it says to be one, as openssl's do.
        _ if leaf.is_self_issued => (
            "the certificate is self-signed, which WeChat does not take".to_owned(),
            "get one of a public authority, such as Let's Encrypt",
        ),
        CertificateError::UnknownIssuer if chain.len() == 1 => (
            "the certificate comes alone, without the intermediate certificate that issued it".to_owned(),
            "serve the full chain (fullchain.pem: leaf first, intermediates behind it); for a private authority \
             give --ca",
        ),
        CertificateError::UnknownIssuer | CertificateError::BadSignature => (
            "the chain leads to an authority that this machine does not know".to_owned(),
            "get a certificate of a public authority, or see that the intermediates are the leaf's; for a private one \
             give --ca",
        ),
        other => (format!("the certificate is refused: {other}"), "get a new one of a public authority"),
    })
}

/// Trusts as told, and keeps what it was shown.
#[derive(Debug)]
pub(super) struct Recorder {
    trust: Trust,
    provider: Arc<CryptoProvider>,
    shown: Mutex<Vec<CertificateDer<'static>>>,
}

/// Which certificates are taken.
#[derive(Debug)]
pub(super) enum Trust {
    /// Those of authorities.
    Authorities(Arc<dyn ServerCertVerifier>),
    /// This one, of our own file.
    Own(CertificateDer<'static>),
}

impl Recorder {
    pub(super) fn new(trust: Trust) -> Self {
        Self { trust, provider: provider(), shown: Mutex::default() }
    }

    /// The chain that was shown, leaf first; empty before a handshake came so far.
    pub(super) fn shown(&self) -> Vec<CertificateDer<'static>> {
        self.shown.lock().clone()
    }
}

impl ServerCertVerifier for Recorder {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let chain = [leaf].into_iter().chain(intermediates).map(|one| one.clone().into_owned()).collect();
        *self.shown.lock() = chain;
        match &self.trust {
            Trust::Authorities(authorities) => authorities.verify_server_cert(leaf, intermediates, name, ocsp, now),
            Trust::Own(own) if own == leaf => Ok(ServerCertVerified::assertion()),
            Trust::Own(_) => Err(CertificateError::ApplicationVerificationFailure.into()),
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
