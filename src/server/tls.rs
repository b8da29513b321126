//! The certificates that are served, and TLS handshakes with them.
//!
//! A client gets the first certificate that is valid for the requested name, else the first of all: WeChat and old
//! clients may send no name. Only an ACME authority that validates a domain gets the answer to its challenge.
//! Invariants: TLS 1.2 and 1.3 by rustls and ring; a certificate that cannot be reloaded does not replace the one in
//! use; sessions outlive a certificate's renewal; while ACME has issued none for an entry yet, the others are served.
//! The caller decides when to reload.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use arc_swap::ArcSwapOption;
use rustls::client::verify_server_name;
use rustls::crypto::hash::HashAlgorithm;
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::{ClientHello, ParsedCertificate, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{ServerConfig, SupportedCipherSuite};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::Validity;
use super::challenge::{self, Challenges};
use super::settings::{AcmeSettings, Certificate, TlsFiles};
use crate::bounded_file;

/// Accepts TLS connections, with the certificates that were loaded last.
#[derive(Clone)]
pub struct Acceptor {
    config: Arc<ServerConfig>,
    served: Arc<[Served]>,
    challenges: Challenges,
    reloads: watch::Sender<()>,
}

/// One certificate: its source, and the version that was loaded last.
struct Served {
    source: Certificate,
    /// `None` until ACME has issued one.
    loaded: ArcSwapOption<Loaded>,
}

struct Loaded {
    certified: Arc<CertifiedKey>,
    validity: Option<Validity>,
    modified: Modified,
}

/// The modification times of the certificate's and the key's file, if the file system has them.
type Modified = [Option<SystemTime>; 2];

/// Why a certificate cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot read {path}")]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{path} is not a PEM file")]
    Pem {
        path: PathBuf,
        #[source]
        source: pem::Error,
    },
    /// A PEM file without the expected item.
    #[error("{path} holds no {what}")]
    Missing { path: PathBuf, what: &'static str },
    #[error("TLS cannot be set up")]
    Setup(#[source] rustls::Error),
    /// The configured domains are not those that it was ordered for.
    #[error("the certificate in {path} is not for {domain}")]
    Misnamed { path: PathBuf, domain: String },
    #[error("the certificate in {cert} cannot be served with the key in {key}")]
    Unfit {
        cert: PathBuf,
        key: PathBuf,
        #[source]
        source: rustls::Error,
    },
}

impl Error {
    /// Whether only a change of the configuration, or of what it names, fixes it: a restart does not.
    pub fn is_configuration(&self) -> bool {
        !matches!(self, Self::Setup(_))
    }

    /// How to fix it.
    pub fn remedy(&self) -> &'static str {
        match self {
            Self::Read { .. } => "check server.tls, that the file exists, and that this user may read it",
            Self::Pem { .. } => "use PEM, as certbot and acme.sh write it",
            Self::Missing { .. } => "check that server.tls.cert and server.tls.key are not swapped",
            Self::Setup(_) => "check that this machine has a source of random numbers",
            Self::Misnamed { .. } => "remove the stored certificate, and the relay orders another",
            Self::Unfit { .. } => {
                "use the key that the certificate was ordered with: this one is another certificate's"
            }
        }
    }
}

/// Suites with SHA-384 come last: a handshake hashes much, and processors have instructions only for SHA-256. In
/// rustls' own order, SHA-384 took 6 % of a push's processor time over a resumed session.
fn provider() -> CryptoProvider {
    let mut provider = ring::default_provider();
    provider.cipher_suites.sort_by_key(|suite| {
        let common = match suite {
            SupportedCipherSuite::Tls12(suite) => &suite.common,
            SupportedCipherSuite::Tls13(suite) => &suite.common,
        };
        common.hash_provider.algorithm() == HashAlgorithm::SHA384
    });
    provider
}

impl Acceptor {
    /// Loads certificates and their keys, at least one; with `http2`, h2 is offered too. A certificate from ACME may be
    /// missing or unusable: the latter is logged, and `acme` orders another.
    pub fn load(certificates: &[Certificate], http2: bool) -> Result<Self, Error> {
        let served = |source: &Certificate| {
            let loaded = match source {
                Certificate::Files(files) => Some(load(files)?),
                Certificate::Acme(settings) => stored(settings).unwrap_or_else(|error| {
                    tracing::warn!(%error, "stored certificate unusable, ordering another");
                    None
                }),
            };
            Ok(Served { source: source.clone(), loaded: ArcSwapOption::from_pointee(loaded) })
        };
        let served: Arc<[Served]> = certificates.iter().map(served).collect::<Result<_, Error>>()?;
        let challenges = Challenges::default();
        let mut config = ServerConfig::builder_with_provider(Arc::new(provider()))
            .with_safe_default_protocol_versions()
            .map_err(Error::Setup)?
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(ByName { served: served.clone(), challenges: challenges.clone() }));
        config.ignore_client_order = true;
        // WeChat opens a connection per push: with the ticket of one, the next resumes without a full handshake.
        config.ticketer = ring::Ticketer::new().map_err(Error::Setup)?;
        config.send_tls13_tickets = 1;
        config.alpn_protocols = if http2 { vec![b"h2".into(), b"http/1.1".into()] } else { vec![b"http/1.1".into()] };
        if certificates.iter().any(|source| matches!(source, Certificate::Acme(_))) {
            config.alpn_protocols.push(challenge::PROTOCOL.into());
        }
        Ok(Self { config: Arc::new(config), served, challenges, reloads: watch::Sender::new(()) })
    }

    /// Reloads all files, for new connections, and lets ACME retry failed orders at once. On an error all certificates
    /// in use stay.
    pub fn reload(&self) -> Result<(), Error> {
        let files = self.served.iter().filter_map(|served| Some((served, served.files()?)));
        let loaded = files.map(|(served, files)| Ok((served, load(files)?))).collect::<Result<Vec<_>, Error>>()?;
        for (served, loaded) in loaded {
            served.loaded.store(Some(Arc::new(loaded)));
        }
        self.reloads.send_replace(());
        Ok(())
    }

    /// Reloads the certificates whose files changed, each by itself: an unusable one does not affect the others.
    /// Returns the files of the reloaded ones, and the errors.
    pub fn reload_changed(&self) -> Vec<Result<&Path, Error>> {
        let changed = self.served.iter().filter_map(|served| {
            let files = served.files()?;
            let loaded = served.loaded.load();
            let same = loaded.as_ref().is_some_and(|loaded| loaded.modified == modified(files));
            (!same).then_some((served, files))
        });
        let reload = |served: &Served, files| -> Result<(), Error> {
            served.loaded.store(Some(Arc::new(load(files)?)));
            Ok(())
        };
        changed.map(|(served, files)| reload(served, files).map(|()| files.cert.as_path())).collect()
    }

    /// The validity of each certificate in use, with its file.
    pub fn validities(&self) -> impl Iterator<Item = (&Path, Validity)> {
        self.served.iter().filter_map(|served| {
            let validity = served.loaded.load().as_ref()?.validity?;
            Some((served.source.chain(), validity))
        })
    }

    /// The entries with certificates from ACME, with their index.
    pub(super) fn acme_entries(&self) -> impl Iterator<Item = (usize, &AcmeSettings)> {
        self.served.iter().enumerate().filter_map(|(index, served)| match &served.source {
            Certificate::Files(_) => None,
            Certificate::Acme(settings) => Some((index, settings)),
        })
    }

    /// The validity of the entry's certificate; `None` if there is none, or its validity cannot be read.
    pub(super) fn validity(&self, index: usize) -> Option<Validity> {
        self.served.get(index)?.loaded.load().as_ref()?.validity
    }

    /// Serves an issued certificate, given as it is stored: chain and key in one text.
    pub(super) fn install(&self, index: usize, pem: &[u8]) -> Result<(), Error> {
        if let Some(served) = self.served.get(index)
            && let Certificate::Acme(settings) = &served.source
        {
            let path = settings.file.as_path();
            let loaded = parse((path, pem), (path, pem), Modified::default())?;
            served.loaded.store(Some(Arc::new(check_domains(loaded, settings)?)));
        }
        Ok(())
    }

    /// Whether certificates are kept in PostgreSQL.
    pub(super) fn is_shared(&self) -> bool {
        self.acme_entries().any(|(_, settings)| settings.shared)
    }

    pub(super) fn challenges(&self) -> &Challenges {
        &self.challenges
    }

    /// Changes with every [`Acceptor::reload`].
    pub(super) fn subscribe_reloads(&self) -> watch::Receiver<()> {
        self.reloads.subscribe()
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
        f.debug_list().entries(self.served.iter().map(|served| &served.source)).finish()
    }
}

impl Served {
    /// The files to reload; `None` for ACME.
    fn files(&self) -> Option<&TlsFiles> {
        match &self.source {
            Certificate::Files(files) => Some(files),
            Certificate::Acme(_) => None,
        }
    }
}

/// Chooses a certificate for each handshake.
struct ByName {
    served: Arc<[Served]>,
    challenges: Challenges,
}

impl ResolvesServerCert for ByName {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        if hello.alpn().is_some_and(challenge::asks_for_validation) {
            return self.challenges.answer(hello.server_name()?);
        }
        let name = hello.server_name().and_then(|name| ServerName::try_from(name).ok());
        let certified = self.served.iter().filter_map(|served| Some(served.loaded.load().as_ref()?.certified.clone()));
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

/// Whether a certificate from ACME is stored and can be served.
pub fn is_stored(settings: &AcmeSettings) -> Result<bool, Error> {
    stored(settings).map(|loaded| loaded.is_some())
}

fn stored(settings: &AcmeSettings) -> Result<Option<Loaded>, Error> {
    if settings.shared {
        return Ok(None);
    }
    let file = &settings.file;
    let loaded = match load(&TlsFiles { cert: file.clone(), key: file.clone() }) {
        Err(Error::Read { source, .. }) if source.kind() == io::ErrorKind::NotFound => return Ok(None),
        loaded => loaded?,
    };
    check_domains(loaded, settings).map(Some)
}

/// Checks that the certificate is for every ordered domain.
fn check_domains(loaded: Loaded, settings: &AcmeSettings) -> Result<Loaded, Error> {
    let has = |domain: &str| ServerName::try_from(domain).is_ok_and(|name| is_for(&loaded.certified, &name));
    match settings.domains.iter().find(|domain| !has(domain)) {
        Some(domain) => Err(Error::Misnamed { path: settings.file.clone(), domain: domain.clone() }),
        None => Ok(loaded),
    }
}

fn load(files: &TlsFiles) -> Result<Loaded, Error> {
    // Before reading, so that a file that is written meanwhile counts as changed.
    let modified = modified(files);
    let read = |path: &Path| {
        let read = bounded_file::read(path).map(|(bytes, _)| bytes);
        read.map_err(|source| Error::Read { path: path.to_owned(), source })
    };
    parse((&files.cert, &read(&files.cert)?), (&files.key, &read(&files.key)?), modified)
}

/// Parses a chain and a key, each with the path of its file.
fn parse(cert: (&Path, &[u8]), key: (&Path, &[u8]), modified: Modified) -> Result<Loaded, Error> {
    let ((cert, chain), (key, secret)) = (cert, key);
    let chain = CertificateDer::pem_slice_iter(chain)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| unreadable(cert, "certificate", error))?;
    let Some(leaf) = chain.first() else {
        return Err(Error::Missing { path: cert.to_owned(), what: "certificate" });
    };
    let validity = Validity::of(leaf);
    let secret = PrivateKeyDer::from_pem_slice(secret).map_err(|error| unreadable(key, "private key", error))?;
    let certified = CertifiedKey::from_der(chain, secret, &ring::default_provider())
        .map_err(|source| Error::Unfit { cert: cert.to_owned(), key: key.to_owned(), source })?;
    Ok(Loaded { certified: Arc::new(certified), validity, modified })
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
        let error = Acceptor::load(&[Certificate::Files(files)], false).unwrap_err();
        assert!(matches!(error, Error::Unfit { .. }), "{error:?}");
        assert!(error.to_string().contains("cert.pem") && error.to_string().contains("key.pem"), "{error}");
    }

    #[test]
    fn swapped_and_absent_files_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let TlsFiles { cert, key } = self_signed(folder.path());
        let swapped = TlsFiles { cert: key.clone(), key: cert.clone() };
        let error = Acceptor::load(&[Certificate::Files(swapped)], false).unwrap_err();
        assert!(matches!(&error, Error::Missing { path, what: "certificate" } if *path == key), "{error:?}");
        let absent = TlsFiles { cert, key: folder.path().join("absent.pem") };
        let error = Acceptor::load(&[Certificate::Files(absent.clone())], false).unwrap_err();
        assert!(matches!(&error, Error::Read { path, .. } if *path == absent.key), "{error:?}");
    }

    #[test]
    fn a_bad_reload_keeps_the_certificate_in_use_and_hinders_no_other() {
        let folders = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        let [one, two] = [self_signed(folders[0].path()), self_signed(folders[1].path())];
        let acceptor = Acceptor::load(&[one.clone(), two.clone()].map(Certificate::Files), false).unwrap();
        let certified = |served: &Served| served.loaded.load().as_ref().unwrap().certified.clone();
        let in_use = || acceptor.served.iter().map(certified).collect::<Vec<_>>();
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
        // Set explicitly: the file system's clock may not have advanced since the last write.
        static CLOCK: AtomicU64 = AtomicU64::new(0);
        let written = SystemTime::UNIX_EPOCH + Duration::from_secs(CLOCK.fetch_add(1, Ordering::Relaxed));
        std::fs::File::options().append(true).open(&files.key).unwrap().set_modified(written).unwrap();
        files
    }
}
