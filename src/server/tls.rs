//! The certificates that are served, and TLS handshakes with them.
//!
//! A client gets the first certificate that is good for the name it asks for, else the first of all: WeChat and old
//! clients may ask for none. Invariants: TLS 1.2 and 1.3 by rustls and ring; a certificate that cannot be loaded anew
//! leaves the one in use; sessions outlive a certificate's renewal. When to load anew is the caller's to decide.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use arc_swap::ArcSwap;
use rustls::ServerConfig;
use rustls::client::verify_server_name;
use rustls::crypto::ring;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::{ClientHello, ParsedCertificate, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::{TlsFiles, certificate};

/// Makes TLS connections of plain ones, with the certificates loaded last.
#[derive(Clone)]
pub struct Acceptor {
    config: Arc<ServerConfig>,
    served: Arc<[Served]>,
}

/// One pair of files, and what it held last.
struct Served {
    files: TlsFiles,
    loaded: ArcSwap<Loaded>,
}

struct Loaded {
    certified: Arc<CertifiedKey>,
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
    /// TLS itself cannot be set up.
    #[error("TLS cannot be set up: this machine gives no random numbers, or knows none of its ciphers")]
    Setup(#[source] rustls::Error),
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
    /// Loads certificates and their keys, at least one pair; with `http2`, h2 is offered too.
    pub fn load(files: &[TlsFiles], http2: bool) -> Result<Self, Error> {
        let served = |files: &TlsFiles| {
            let loaded = ArcSwap::from_pointee(load(files)?);
            Ok(Served { files: files.clone(), loaded })
        };
        let served: Arc<[Served]> = files.iter().map(served).collect::<Result<_, Error>>()?;
        let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(Error::Setup)?
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(ByName(served.clone())));
        // WeChat opens a connection per push: tickets spare it the full handshake.
        config.ticketer = ring::Ticketer::new().map_err(Error::Setup)?;
        config.alpn_protocols = if http2 { vec![b"h2".into(), b"http/1.1".into()] } else { vec![b"http/1.1".into()] };
        Ok(Self { config: Arc::new(config), served })
    }

    /// Loads all files anew, for connections to come; on an error every certificate in use stays.
    pub fn reload(&self) -> Result<(), Error> {
        let loaded = self.served.iter().map(|served| load(&served.files)).collect::<Result<Vec<_>, _>>()?;
        for (served, loaded) in self.served.iter().zip(loaded) {
            served.loaded.store(Arc::new(loaded));
        }
        Ok(())
    }

    /// Loads those anew whose files were written since; each by itself, so that a bad one keeps no other from being
    /// renewed. Says which were loaded, and what is wrong with those that were not.
    pub fn reload_changed(&self) -> Vec<Result<&Path, Error>> {
        let changed = self.served.iter().filter(|served| modified(&served.files) != served.loaded.load().modified);
        let reload = |served: &'_ Served| {
            served.loaded.store(Arc::new(load(&served.files)?));
            Ok(())
        };
        changed.map(|served| reload(served).map(|()| served.files.cert.as_path())).collect()
    }

    /// When the certificates in use end, by their files, in seconds since the epoch.
    pub fn expiries(&self) -> impl Iterator<Item = (&Path, i64)> {
        self.served.iter().filter_map(|served| Some((served.files.cert.as_path(), served.loaded.load().expires?)))
    }

    pub(super) async fn accept<I>(&self, io: I) -> io::Result<TlsStream<I>>
    where
        I: AsyncRead + AsyncWrite + Unpin,
    {
        TlsAcceptor::from(self.config.clone()).accept(io).await
    }
}

impl fmt::Debug for Acceptor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.served.iter().map(|served| &served.files)).finish()
    }
}

/// Chooses a certificate for each handshake.
struct ByName(Arc<[Served]>);

impl ResolvesServerCert for ByName {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let name = hello.server_name().and_then(|name| ServerName::try_from(name).ok());
        let certified = self.0.iter().map(|served| served.loaded.load().certified.clone());
        let usable = |certified: &Arc<CertifiedKey>| certified.key.choose_scheme(hello.signature_schemes()).is_some();
        let mut usable = certified.filter(usable).peekable();
        let default = usable.peek().cloned();
        name.and_then(|name| usable.find(|certified| is_for(certified, &name))).or(default)
    }
}

impl fmt::Debug for ByName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ByName")
    }
}

fn is_for(certified: &CertifiedKey, name: &ServerName<'_>) -> bool {
    let leaf = certified.end_entity_cert().and_then(ParsedCertificate::try_from);
    leaf.is_ok_and(|leaf| verify_server_name(&leaf, name).is_ok())
}

fn load(files: &TlsFiles) -> Result<Loaded, Error> {
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
    let certified = CertifiedKey::from_der(chain, key, &ring::default_provider()).map_err(|source| Error::Unfit {
        cert: files.cert.clone(),
        key: files.key.clone(),
        source,
    })?;
    Ok(Loaded { certified: Arc::new(certified), expires, modified })
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
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_key_of_another_certificate_is_refused_with_both_files_named() {
        let folder = tempfile::tempdir().unwrap();
        let files = self_signed(folder.path());
        std::fs::write(&files.key, rcgen::KeyPair::generate().unwrap().serialize_pem()).unwrap();
        let error = Acceptor::load(std::slice::from_ref(&files), false).unwrap_err();
        assert!(matches!(error, Error::Unfit { .. }), "{error:?}");
        assert!(error.to_string().contains("cert.pem") && error.to_string().contains("key.pem"), "{error}");
    }

    #[test]
    fn swapped_and_absent_files_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let TlsFiles { cert, key } = self_signed(folder.path());
        let swapped = TlsFiles { cert: key.clone(), key: cert.clone() };
        let error = Acceptor::load(&[swapped], false).unwrap_err();
        assert!(matches!(&error, Error::Missing { path, what: "certificate" } if *path == key), "{error:?}");
        let absent = TlsFiles { cert, key: folder.path().join("absent.pem") };
        let error = Acceptor::load(std::slice::from_ref(&absent), false).unwrap_err();
        assert!(matches!(&error, Error::Read { path, .. } if *path == absent.key), "{error:?}");
    }

    #[test]
    fn a_bad_reload_keeps_the_certificate_in_use_and_hinders_no_other() {
        let folders = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        let [one, two] = [self_signed(folders[0].path()), self_signed(folders[1].path())];
        let acceptor = Acceptor::load(&[one.clone(), two.clone()], false).unwrap();
        let in_use = || acceptor.served.iter().map(|served| served.loaded.load().certified.clone()).collect::<Vec<_>>();
        let same = |before: &[Arc<CertifiedKey>]| {
            in_use().iter().zip(before).map(|(now, before)| Arc::ptr_eq(now, before)).collect::<Vec<_>>()
        };
        let before = in_use();
        assert!(acceptor.reload_changed().is_empty());
        std::fs::remove_file(&one.key).unwrap();
        self_signed(folders[1].path());
        assert!(acceptor.reload().is_err());
        assert_eq!(same(&before), [true, true], "all or nothing where it is asked for");
        assert!(matches!(&acceptor.reload_changed()[..], [Err(Error::Read { path, .. }), Ok(_)] if *path == one.key));
        assert_eq!(same(&before), [true, false]);
        self_signed(folders[0].path());
        assert!(matches!(&acceptor.reload_changed()[..], [Ok(path)] if *path == one.cert));
        assert_eq!(same(&before), [false, false]);
    }

    fn self_signed(folder: &Path) -> TlsFiles {
        let files = TlsFiles { cert: folder.join("cert.pem"), key: folder.join("key.pem") };
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        std::fs::write(&files.cert, made.cert.pem()).unwrap();
        std::fs::write(&files.key, made.signing_key.serialize_pem()).unwrap();
        // The file system's clock may not have moved since the last time.
        static CLOCK: AtomicU64 = AtomicU64::new(0);
        let written = SystemTime::UNIX_EPOCH + Duration::from_secs(CLOCK.fetch_add(1, Ordering::Relaxed));
        std::fs::File::options().append(true).open(&files.key).unwrap().set_modified(written).unwrap();
        files
    }
}
