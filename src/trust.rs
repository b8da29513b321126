//! The servers that a `ca` file trusts, and why a server's certificate is refused, in plain words.
//!
//! A certificate in the file counts twice: as an authority, and as itself. A server that shows exactly this certificate
//! is trusted even where rustls-webpki would refuse it: `openssl req -x509` makes self-signed certificates that are
//! marked as an authority's (CA:TRUE), and a certificate of an unknown issuer may be named too. Name and dates are
//! checked in both cases, and the handshake proves that the server has the key.

use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_name;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};

use crate::certificate::Validity;

/// Verifies servers against the certificates of a file.
#[derive(Debug)]
pub struct FileVerifier {
    authorities: Arc<WebPkiServerVerifier>,
    certificates: Vec<CertificateDer<'static>>,
}

impl FileVerifier {
    /// Needs at least one certificate.
    pub fn new(certificates: Vec<CertificateDer<'static>>, provider: &Arc<CryptoProvider>) -> Result<Self, Error> {
        let mut roots = RootCertStore::empty();
        for certificate in &certificates {
            roots.add(certificate.clone())?;
        }
        let authorities = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider.clone());
        let authorities = authorities.build().map_err(|error| Error::General(error.to_string()))?;
        Ok(Self { authorities, certificates })
    }
}

impl ServerCertVerifier for FileVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        if !self.certificates.iter().any(|certificate| **certificate == **end_entity) {
            return self.authorities.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now);
        }
        verify_server_name(&ParsedCertificate::try_from(end_entity)?, server_name)?;
        check_dates(end_entity, now)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.authorities.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.authorities.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.authorities.supported_verify_schemes()
    }
}

fn check_dates(certificate: &[u8], time: UnixTime) -> Result<(), CertificateError> {
    let Validity { from, until } = Validity::of(certificate).ok_or(CertificateError::BadEncoding)?;
    let moment =
        |seconds: i64| UnixTime::since_unix_epoch(std::time::Duration::from_secs(seconds.max(0).unsigned_abs()));
    let (not_before, not_after) = (moment(from), moment(until));
    if time.as_secs() < not_before.as_secs() {
        return Err(CertificateError::NotValidYetContext { time, not_before });
    }
    if time.as_secs() > not_after.as_secs() {
        return Err(CertificateError::ExpiredContext { time, not_after });
    }
    Ok(())
}

/// What is wrong with a server's certificate, where rustls' own text is only a name of its code.
pub fn plain_text(error: &Error) -> Option<String> {
    let Error::InvalidCertificate(problem) = error else { return None };
    Some(match problem {
        CertificateError::UnknownIssuer => {
            "the server's certificate was issued by an authority that is not trusted (UnknownIssuer); `ca` names a PEM \
             file of the authority, or of the certificate itself"
                .to_owned()
        }
        CertificateError::BadSignature => {
            "the server's certificate was issued by an authority that is not trusted, though another one of its name is \
             (BadSignature); `ca` names a PEM file of the authority, or of the certificate itself"
                .to_owned()
        }
        CertificateError::Other(other) => match other.0.downcast_ref::<webpki::Error>() {
            Some(webpki::Error::CaUsedAsEndEntity) => {
                "the server's certificate is marked as an authority's (CaUsedAsEndEntity); `ca` can name a PEM file of \
                 exactly this certificate"
                    .to_owned()
            }
            Some(webpki::Error::UnsupportedCertVersion) => {
                "the server's certificate is not of X.509 version 3, which has no names to check".to_owned()
            }
            _ => format!("the server's certificate is unusable: {other}"),
        },
        _ => return None,
    })
}
