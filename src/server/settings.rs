//! The settings of `[server]`, and the options of a server's connections.

use std::fmt::{self, Display};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::ConnectionLimit;

/// `[server]` of the configuration.
#[derive(Clone, Debug)]
pub struct Settings {
    pub listen: Vec<Listen>,
    /// The certificates to serve, the default first; none if a proxy in front terminates TLS.
    pub tls: Vec<Certificate>,
    /// The proxies whose `X-Forwarded-For` is trusted.
    pub trusted_proxies: Vec<ipnet::IpNet>,
    /// Whether every connection begins with a PROXY header, from one of `trusted_proxies`.
    pub proxy_protocol: bool,
    pub http2: bool,
    /// The timeout of a stop for active requests.
    pub drain: Duration,
    /// The size limit of a request body, in bytes.
    pub max_body: usize,
}

/// An address to listen at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Listen {
    /// A TCP address; port 0 lets the system choose.
    Tcp(SocketAddr),
    Unix(PathBuf),
    /// The sockets that systemd passes (socket activation).
    Systemd,
}

/// The form of the configuration.
impl Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => write!(f, "{address}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Systemd => f.write_str("systemd"),
        }
    }
}

impl Listen {
    /// The address that a program on this machine connects to: loopback for "any address". `None` if it cannot be
    /// known.
    pub fn reachable(&self) -> Option<SocketAddr> {
        let Self::Tcp(mut address) = *self else { return None };
        match address.ip() {
            IpAddr::V4(Ipv4Addr::UNSPECIFIED) => address.set_ip(Ipv4Addr::LOCALHOST.into()),
            IpAddr::V6(Ipv6Addr::UNSPECIFIED) => address.set_ip(Ipv6Addr::LOCALHOST.into()),
            IpAddr::V4(_) | IpAddr::V6(_) => {}
        }
        Some(address).filter(|address| address.port() != 0)
    }
}

/// The most open connections of a server, where the limit of open files allows as many.
pub const MAX_CONNECTIONS: usize = 4096;

/// Limits and protocols of a server's connections.
#[derive(Clone, Debug)]
pub struct Options {
    /// Without it, HTTP/2's code is never reached.
    pub http2: bool,
    /// Whether every connection begins with a PROXY header.
    pub proxy_protocol: bool,
    pub handshake_timeout: Duration,
    /// The timeout for the headers of a new connection's first request, and for a PROXY header.
    pub header_timeout: Duration,
    /// The timeout for the headers of a further request. Longer than a reverse proxy keeps its idle connections (nginx:
    /// 60 s), so that the proxy closes them and no push is sent on a connection that the relay is closing.
    pub idle_timeout: Duration,
    /// How long a client may read nothing of an answer that waits for it.
    pub write_timeout: Duration,
    /// The most open connections, which may change. At the limit, idle ones are evicted for new ones.
    pub max_connections: ConnectionLimit,
    /// The proxies whose `X-Forwarded-For` and PROXY header are trusted.
    pub trusted_proxies: Arc<[ipnet::IpNet]>,
}

impl Options {
    /// Takes the values that `[server]` sets; the rest are defaults.
    pub fn new(settings: &Settings) -> Self {
        let trusted_proxies = settings.trusted_proxies.as_slice().into();
        Self { http2: settings.http2, proxy_protocol: settings.proxy_protocol, trusted_proxies, ..Self::default() }
    }
}

impl Default for Options {
    fn default() -> Self {
        Self {
            http2: false,
            proxy_protocol: false,
            handshake_timeout: Duration::from_secs(3),
            header_timeout: Duration::from_secs(2),
            idle_timeout: Duration::from_secs(75),
            write_timeout: Duration::from_secs(30),
            max_connections: ConnectionLimit::new(MAX_CONNECTIONS),
            trusted_proxies: Arc::new([]),
        }
    }
}

/// Where a certificate comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Certificate {
    /// Files that another program renews.
    Files(TlsFiles),
    /// Ordered from an authority by ACME.
    Acme(AcmeSettings),
}

impl Certificate {
    /// The file with the chain; with ACME it may not exist yet.
    pub fn chain(&self) -> &Path {
        match self {
            Self::Files(files) => &files.cert,
            Self::Acme(settings) => &settings.file,
        }
    }
}

/// The PEM files of a certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// The full chain, leaf first.
    pub cert: PathBuf,
    /// The leaf's private key.
    pub key: PathBuf,
}

/// `acme` of an entry of `server.tls`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AcmeSettings {
    /// The names that the certificate is for, in lower case; at least one.
    pub domains: Vec<String>,
    /// The contact for the authority.
    pub email: Option<String>,
    /// The URL of the authority's directory.
    pub directory: String,
    /// A PEM file of the certificate authorities to trust for that URL instead of the system's.
    pub ca: Option<PathBuf>,
    /// The file that the certificate is stored in, by [`acme::file`](super::acme::file). A name only where it is shared.
    pub file: PathBuf,
    /// Whether it is kept in PostgreSQL, for all replicas.
    pub shared: bool,
}

impl AcmeSettings {
    /// The first domain: the name of the certificate in logs and metrics.
    pub(super) fn domain(&self) -> &str {
        self.domains.first().map_or("", String::as_str)
    }
}
