//! A certificate for the relay, and clients that trust it.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::crypto::ring;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore, SupportedProtocolVersion};
use tokio_rustls::TlsConnector;

/// Self-signed, for `localhost`.
pub(crate) struct Certificate {
    cert: PathBuf,
    key: PathBuf,
    der: CertificateDer<'static>,
}

impl Certificate {
    pub(crate) fn new(folder: &Path) -> Self {
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate");
        let (cert, key) = (folder.join("cert.pem"), folder.join("key.pem"));
        fs::write(&cert, made.cert.pem()).expect("the folder can be written");
        fs::write(&key, made.signing_key.serialize_pem()).expect("the folder can be written");
        Self { cert, key, der: made.cert.der().clone() }
    }

    /// Its line of `[server]`.
    pub(crate) fn setting(&self) -> String {
        format!("tls = {{ cert = \"{}\", key = \"{}\" }}\n", self.cert.display(), self.key.display())
    }

    /// The files of its chain and key.
    pub(crate) fn files(&self) -> (&Path, &Path) {
        (&self.cert, &self.key)
    }

    /// A client that trusts only it, and resumes no session: each handshake is a full one.
    pub(crate) fn connector(&self) -> TlsConnector {
        let mut config = self.client(rustls::ALL_VERSIONS);
        config.resumption = rustls::client::Resumption::disabled();
        TlsConnector::from(Arc::new(config))
    }

    /// A client that trusts only it, and resumes its sessions.
    pub(crate) fn resuming_connector(&self) -> TlsConnector {
        TlsConnector::from(Arc::new(self.client(rustls::ALL_VERSIONS)))
    }

    /// The same, with TLS 1.2 at most.
    pub(crate) fn resuming_connector_of_old(&self) -> TlsConnector {
        TlsConnector::from(Arc::new(self.client(&[&rustls::version::TLS12])))
    }

    fn client(&self, versions: &[&'static SupportedProtocolVersion]) -> ClientConfig {
        let mut roots = RootCertStore::empty();
        roots.add(self.der.clone()).expect("a certificate");
        let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()));
        let builder = builder.with_protocol_versions(versions).expect("versions that ring has");
        builder.with_root_certificates(roots).with_no_client_auth()
    }
}

pub(crate) fn localhost() -> ServerName<'static> {
    ServerName::try_from("localhost").expect("a name")
}
