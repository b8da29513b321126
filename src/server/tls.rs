//! The certificate that is served, and TLS handshakes with it.
//!
//! Invariants: TLS 1.2 and 1.3 by rustls and ring; a certificate that cannot be loaded anew leaves the one in use. When
//! to load anew is the caller's to decide.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use arc_swap::ArcSwap;
use rustls::ServerConfig;
use rustls::crypto::ring;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::{TlsFiles, certificate};

/// Makes TLS connections of plain ones, with the certificate loaded last.
#[derive(Clone)]
pub struct Acceptor(Arc<Inner>);

struct Inner {
    files: TlsFiles,
    http2: bool,
    loaded: ArcSwap<Loaded>,
}

struct Loaded {
    config: Arc<ServerConfig>,
    expires: Option<i64>,
    modified: Modified,
}

/// When the certificate's and the key's file were written last, where the file system says.
type Modified = [Option<SystemTime>; 2];

/// Why a certificate cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file cannot be read.
    #[error("cannot read {path}: check server.tls, that the file exists, and that this user may read it")]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's word.
        #[source]
        source: io::Error,
    },
    /// A file is not PEM.
    #[error("{path} is no PEM file")]
    Pem {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: pem::Error,
    },
    /// A file is PEM, without what is looked for.
    #[error("{path} holds no {what}: check that server.tls.cert and server.tls.key are not swapped")]
    Missing {
        /// The file.
        path: PathBuf,
        /// What is looked for.
        what: &'static str,
    },
    /// The two do not work together.
    #[error("the certificate in {cert} cannot be served with the key in {key}: is the key another certificate's?")]
    Unfit {
        /// The certificate's file.
        cert: PathBuf,
        /// The key's file.
        key: PathBuf,
        /// rustls' word.
        #[source]
        source: rustls::Error,
    },
}

impl Acceptor {
    /// Loads the certificate and its key; with `http2`, h2 is offered too.
    pub fn load(files: &TlsFiles, http2: bool) -> Result<Self, Error> {
        let loaded = ArcSwap::from_pointee(load(files, http2)?);
        Ok(Self(Arc::new(Inner { files: files.clone(), http2, loaded })))
    }

    /// Loads both files anew, for connections to come; on an error the certificate in use stays.
    pub fn reload(&self) -> Result<(), Error> {
        self.0.loaded.store(Arc::new(load(&self.0.files, self.0.http2)?));
        Ok(())
    }

    /// Like [`Acceptor::reload`] if a file was written since the last load; says whether it did.
    pub fn reload_if_changed(&self) -> Result<bool, Error> {
        let changed = modified(&self.0.files) != self.0.loaded.load().modified;
        if changed {
            self.reload()?;
        }
        Ok(changed)
    }

    /// When the certificate in use ends, in seconds since the epoch.
    pub fn expires(&self) -> Option<i64> {
        self.0.loaded.load().expires
    }

    pub(super) async fn accept<I>(&self, io: I) -> io::Result<TlsStream<I>>
    where
        I: AsyncRead + AsyncWrite + Unpin,
    {
        let config = self.0.loaded.load().config.clone();
        TlsAcceptor::from(config).accept(io).await
    }
}

impl fmt::Debug for Acceptor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Acceptor").field(&self.0.files).finish()
    }
}

fn load(files: &TlsFiles, http2: bool) -> Result<Loaded, Error> {
    // Before reading, so that a file written meanwhile counts as changed.
    let modified = modified(files);
    let chain = CertificateDer::pem_file_iter(&files.cert)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|error| unreadable(&files.cert, "certificate", error))?;
    let Some(leaf) = chain.first() else {
        return Err(Error::Missing { path: files.cert.clone(), what: "certificate" });
    };
    let expires = certificate::not_after(leaf);
    let key = PrivateKeyDer::from_pem_file(&files.key).map_err(|error| unreadable(&files.key, "private key", error))?;
    let unfit = |source| Error::Unfit { cert: files.cert.clone(), key: files.key.clone(), source };
    let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .and_then(|builder| builder.with_no_client_auth().with_single_cert(chain, key))
        .map_err(unfit)?;
    // WeChat opens a connection per push: tickets spare it the full handshake.
    config.ticketer = ring::Ticketer::new().map_err(unfit)?;
    config.alpn_protocols = if http2 { vec![b"h2".into(), b"http/1.1".into()] } else { vec![b"http/1.1".into()] };
    Ok(Loaded { config: Arc::new(config), expires, modified })
}

fn modified(files: &TlsFiles) -> Modified {
    [&files.cert, &files.key].map(|path| std::fs::metadata(path).and_then(|file| file.modified()).ok())
}

fn unreadable(path: &Path, what: &'static str, error: pem::Error) -> Error {
    let path = path.to_owned();
    match error {
        pem::Error::Io(source) => Error::Read { path, source },
        pem::Error::NoItemsFound => Error::Missing { path, what },
        source => Error::Pem { path, source },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_of_another_certificate_is_refused_with_both_files_named() {
        let folder = tempfile::tempdir().unwrap();
        let files = self_signed(folder.path());
        std::fs::write(&files.key, rcgen::KeyPair::generate().unwrap().serialize_pem()).unwrap();
        let error = Acceptor::load(&files, false).unwrap_err();
        assert!(matches!(error, Error::Unfit { .. }), "{error:?}");
        assert!(error.to_string().contains("cert.pem") && error.to_string().contains("key.pem"), "{error}");
    }

    #[test]
    fn swapped_and_absent_files_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let TlsFiles { cert, key } = self_signed(folder.path());
        let swapped = TlsFiles { cert: key.clone(), key: cert.clone() };
        let error = Acceptor::load(&swapped, false).unwrap_err();
        assert!(matches!(&error, Error::Missing { path, what: "certificate" } if *path == key), "{error:?}");
        let absent = TlsFiles { cert, key: folder.path().join("absent.pem") };
        let error = Acceptor::load(&absent, false).unwrap_err();
        assert!(matches!(&error, Error::Read { path, .. } if *path == absent.key), "{error:?}");
    }

    #[test]
    fn a_bad_reload_keeps_the_certificate_in_use() {
        let folder = tempfile::tempdir().unwrap();
        let files = self_signed(folder.path());
        let acceptor = Acceptor::load(&files, false).unwrap();
        let before = acceptor.0.loaded.load().config.clone();
        assert!(!acceptor.reload_if_changed().unwrap());
        std::fs::remove_file(&files.key).unwrap();
        assert!(acceptor.reload_if_changed().is_err());
        assert!(Arc::ptr_eq(&before, &acceptor.0.loaded.load().config));
        self_signed(folder.path());
        assert!(acceptor.reload_if_changed().unwrap());
        assert!(!Arc::ptr_eq(&before, &acceptor.0.loaded.load().config));
    }

    fn self_signed(folder: &Path) -> TlsFiles {
        let files = TlsFiles { cert: folder.join("cert.pem"), key: folder.join("key.pem") };
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        std::fs::write(&files.cert, made.cert.pem()).unwrap();
        std::fs::write(&files.key, made.signing_key.serialize_pem()).unwrap();
        files
    }
}
