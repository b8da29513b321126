//! A certificate authority with an intermediate, servers with certificates of all sorts, and a proxy that terminates
//! TLS.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use rustls::ServerConfig;
use rustls::crypto::ring;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;

/// A certificate authority; clients trust it by its file.
pub(crate) struct Authority {
    dir: TempDir,
    intermediate: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
}

/// A server's certificates, leaf first, and its key.
pub(crate) struct Identity {
    pub(crate) chain: Vec<CertificateDer<'static>>,
    key: KeyPair,
}

/// The parameters of a certificate for that name, for the caller to change.
pub(crate) fn server_for(name: &str) -> CertificateParams {
    let mut params = CertificateParams::new([name.to_owned()]).expect("a sound name");
    params.distinguished_name.push(DnType::CommonName, name);
    params
}

fn authority(name: &str) -> CertificateParams {
    let mut params = CertificateParams::new(Vec::new()).expect("no name is a sound one");
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params
}

fn key() -> KeyPair {
    KeyPair::generate().expect("a key")
}

impl Authority {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let (root_key, own_key) = (key(), key());
        let root = authority("wxrelay test root");
        let certificate = root.self_signed(&root_key).expect("a root");
        fs::write(dir.path().join("ca.pem"), certificate.pem()).expect("it can be written");
        let own = authority("wxrelay test intermediate");
        let signed = own.signed_by(&own_key, &Issuer::new(root, root_key)).expect("an intermediate");
        Self { dir, intermediate: signed.der().clone(), issuer: Issuer::new(own, own_key) }
    }

    /// The PEM file of the root.
    pub(crate) fn file(&self) -> PathBuf {
        self.dir.path().join("ca.pem")
    }

    /// A certificate with its full chain.
    pub(crate) fn issue(&self, params: &CertificateParams) -> Identity {
        let key = key();
        let leaf = params.signed_by(&key, &self.issuer).expect("a certificate");
        Identity { chain: vec![leaf.der().clone(), self.intermediate.clone()], key }
    }
}

impl Identity {
    pub(crate) fn self_signed(params: &CertificateParams) -> Self {
        let key = key();
        Self { chain: vec![params.self_signed(&key).expect("a certificate").der().clone()], key }
    }

    /// Keeps only the leaf, as a server sends it with cert.pem in place of fullchain.pem.
    pub(crate) fn alone(mut self) -> Self {
        self.chain.truncate(1);
        self
    }

    /// Writes the files to a folder; returns the `tls = ..` line of `[server]`.
    pub(crate) fn written(&self, dir: &std::path::Path) -> String {
        let (cert, key) = (dir.join("cert.pem"), dir.join("key.pem"));
        let chain: String = self.chain.iter().map(pem).collect();
        fs::write(&cert, chain).expect("it can be written");
        fs::write(&key, self.key.serialize_pem()).expect("it can be written");
        format!("tls = {{ cert = \"{}\", key = \"{}\" }}\n", cert.display(), key.display())
    }

    fn acceptor(&self) -> TlsAcceptor {
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(self.key.serialize_der()));
        let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("ring knows them")
            .with_no_client_auth()
            .with_single_cert(self.chain.clone(), key)
            .expect("they fit");
        TlsAcceptor::from(Arc::new(config))
    }
}

fn pem(certificate: &CertificateDer<'static>) -> String {
    use base64::Engine as _;
    let text = base64::engine::general_purpose::STANDARD.encode(certificate);
    let lines: Vec<_> = text.as_bytes().chunks(64).map(String::from_utf8_lossy).collect();
    format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", lines.join("\n"))
}

/// The upstream of a [`ReverseProxy`].
#[derive(Clone)]
pub(crate) enum Upstream {
    /// A relay, at that address.
    Relay(String),
    /// A page: the proxy itself answers with this head (status line and headers) and a body made of the request line.
    Page(&'static str, fn(&str) -> String),
}

/// A reverse proxy with or without TLS, which forwards the bytes. It stops listening when dropped.
pub(crate) struct ReverseProxy {
    pub(crate) address: String,
    task: JoinHandle<()>,
}

impl ReverseProxy {
    pub(crate) async fn start(identity: Option<&Identity>, upstream: Upstream) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
        let address = listener.local_addr().expect("a bound socket has an address").to_string();
        let tls = identity.map(Identity::acceptor);
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, tls.clone(), upstream.clone()));
            }
        });
        Self { address, task }
    }
}

impl Drop for ReverseProxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(stream: TcpStream, tls: Option<TlsAcceptor>, upstream: Upstream) {
    match tls {
        None => pass(stream, upstream).await,
        // Some tests break off the handshake on purpose.
        Some(tls) => {
            if let Ok(stream) = tls.accept(stream).await {
                pass(stream, upstream).await;
            }
        }
    }
}

async fn pass(mut stream: impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin, upstream: Upstream) {
    match upstream {
        Upstream::Relay(address) => {
            let mut relay = TcpStream::connect(address).await.expect("the relay listens");
            // Passes on the end of either side.
            drop(copy_bidirectional(&mut stream, &mut relay).await);
        }
        Upstream::Page(head, page) => {
            let mut request = vec![0; 4096];
            let length = stream.read(&mut request).await.unwrap_or(0);
            let line = String::from_utf8_lossy(&request[..length]).lines().next().unwrap_or_default().to_owned();
            let body = page(&line);
            let answer =
                format!("HTTP/1.1 {head}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}", body.len());
            drop(stream.write_all(answer.as_bytes()).await);
        }
    }
}
