//! The pooled HTTP client of one target (or collector), and the capped read of its answers.

use std::cell::OnceCell;
use std::error::Error as _;
use std::fmt;
use std::path::{Path, PathBuf};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use http::{Extensions, Request, Response, Uri};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::connect::proxy::Tunnel;
use hyper_util::client::legacy::{Client as Pool, Error as PoolError};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::{self, PemObject as _};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};
use rustls_platform_verifier::Verifier;
use tokio::sync::Notify;
use tokio::time::Instant;
use tower::{BoxError, Service, ServiceExt as _};

use super::connection_use::{ConnectionUse, TargetStream};
use super::resolver::Resolver;
use crate::bounded_file;
use crate::trust::{self, FileVerifier};

/// What is sent: whole, with a Content-Length.
pub type RequestBody = Full<Bytes>;

/// The most time to set up a connection, within the target's own timeout.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// The longest head of an answer. One read is parsed in one go, so this bounds how long a target that floods occupies a
/// thread.
const HEAD_CAP: usize = 32 * 1024;
/// The most interim answers (1xx) before the final one; hyper skips any number of them.
const MAX_INTERIM: u32 = 16;
/// Shorter than the keep-alive of usual servers, so that a connection is rarely closed under a request.
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);

/// How an https target is verified, and the certificate that we show it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TlsOptions {
    /// A PEM file of the certificates to trust instead of the system's: of authorities, or of servers themselves.
    pub ca: Option<PathBuf>,
    /// PEM files of our own certificate and key.
    pub client: Option<(PathBuf, PathBuf)>,
}

/// How to connect: to a target, to the collector of traces, or to a certificate authority.
pub struct ConnectOptions<'a> {
    /// Whether by TLS.
    pub https: bool,
    /// The most time to set up a connection, if that is less than 5 s.
    pub timeout: Duration,
    /// The authorities to trust, and our own certificate.
    pub tls: &'a TlsOptions,
    /// An HTTP proxy to go through.
    pub proxy: Option<&'a Uri>,
    /// Whether names that resolve to private addresses are refused.
    pub deny_private: bool,
}

/// Why a target's connections can't be made.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// A certificate or key file is unusable.
    #[error("{path}: expected a PEM file")]
    Pem {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: rustls::pki_types::pem::Error,
    },
    /// The certificates or the key are refused by rustls, or do not fit together.
    #[error("TLS")]
    Tls(#[from] rustls::Error),
}

/// Why an exchange failed, with the whole chain of causes in its text.
#[derive(Debug, thiserror::Error)]
pub enum ExchangeError {
    /// No connection, a broken one, or an answer that is not HTTP.
    #[error("{}", chain(.0))]
    Http(#[from] PoolError),
    /// Too many interim answers (1xx).
    #[error("too many interim answers (1xx)")]
    Interim,
}

/// Why a connection can't be made, with the whole chain of causes in its text.
#[derive(Debug, thiserror::Error)]
#[error("{}", causes("can't connect", Some(&*self.0)))]
pub struct ConnectError(BoxError);

impl ExchangeError {
    /// Whether the target had probably closed the connection before the request came: nothing of an answer arrived, on
    /// a connection that was used before. The target may have the request all the same.
    pub(super) fn is_stale_connection(&self) -> bool {
        let Self::Http(error) = self else { return false };
        let mut extras = Extensions::new();
        if let Some(connected) = error.connect_info().filter(|_| !error.is_connect()) {
            connected.get_extras(&mut extras);
        }
        extras.get::<Arc<ConnectionUse>>().is_some_and(|state| state.is_stale())
    }

    /// The kind of failure in one word.
    pub(super) fn word(&self) -> &'static str {
        match self {
            Self::Http(error) if error.is_connect() => "connect",
            Self::Http(_) | Self::Interim => "broken",
        }
    }
}

/// hyper's own text alone says just "client error (Connect)".
fn chain(error: &PoolError) -> String {
    causes(if error.is_connect() { "can't connect" } else { "connection broken" }, error.source())
}

/// The causes, innermost last.
fn causes(what: &str, mut cause: Option<&(dyn std::error::Error + 'static)>) -> String {
    let mut text = what.to_owned();
    while let Some(inner) = cause {
        text.push_str(": ");
        text.push_str(&plain(inner));
        cause = inner.source();
    }
    text
}

/// The text of one cause. An error of TLS is inside errors of I/O, which show the same text and hide its type.
fn plain(cause: &(dyn std::error::Error + 'static)) -> String {
    let mut inner = cause;
    loop {
        if let Some(text) = inner.downcast_ref::<rustls::Error>().and_then(trust::plain_text) {
            return text;
        }
        match inner.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref) {
            Some(inside) => inner = inside,
            None => return cause.to_string(),
        }
    }
}

/// Makes the connections to one target. One type for both variants, since the pool's code is compiled for each type.
#[derive(Clone)]
pub(super) enum Connector {
    Direct(HttpsConnector<HttpConnector<Resolver>>),
    /// Through a proxy, by CONNECT for http too.
    Proxied(HttpsConnector<Tunnel<HttpConnector<Resolver>>>),
}

impl Connector {
    pub(super) fn new(options: &ConnectOptions<'_>, trust: &SystemRoots) -> Result<Self, ClientError> {
        // The operator chose the address of the proxy, and the proxy resolves the name of the target.
        let mut tcp = HttpConnector::new_with_resolver(Resolver::new(options.deny_private && options.proxy.is_none()));
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        tcp.set_connect_timeout(Some(CONNECT_TIMEOUT.min(options.timeout)));
        tcp.set_keepalive(Some(Duration::from_secs(60)));
        // Also of a connection that is closed: else the kernel sends the request of an attempt that has timed out as soon
        // as the network is back, perhaps after the next attempt.
        #[cfg(target_os = "linux")]
        tcp.set_tcp_user_timeout(Some(options.timeout));
        let tls = if options.https { client_config(options.tls, trust)? } else { no_tls() };
        let connector = HttpsConnectorBuilder::new().with_tls_config(tls).https_or_http().enable_http1();
        Ok(match options.proxy {
            None => Self::Direct(connector.wrap_connector(tcp)),
            Some(proxy) => Self::Proxied(connector.wrap_connector(Tunnel::new(proxy.clone(), tcp))),
        })
    }

    /// Makes one connection, TLS included, and drops it.
    pub(super) async fn connect(self, url: Uri) -> Result<(), ConnectError> {
        self.oneshot(url).await.map(drop).map_err(ConnectError)
    }
}

impl Service<Uri> for Connector {
    type Response = TokioIo<TargetStream>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, BoxError>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        match self {
            Self::Direct(connector) => connector.poll_ready(context),
            Self::Proxied(connector) => connector.poll_ready(context),
        }
    }

    fn call(&mut self, url: Uri) -> Self::Future {
        let connecting = match self {
            Self::Direct(connector) => connector.call(url),
            Self::Proxied(connector) => connector.call(url),
        };
        Box::pin(async move { connecting.await.map(|stream| TokioIo::new(TargetStream::new(stream))) })
    }
}

/// A connection pool. Each target has its own, so that none can use up another's.
#[derive(Clone)]
pub struct PooledClient {
    pool: Pool<Connector, RequestBody>,
    connector: Connector,
}

impl fmt::Debug for PooledClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PooledClient")
    }
}

impl PooledClient {
    /// Makes no connection yet.
    ///
    /// # Errors
    /// If a certificate cannot be read, or the system has none to trust.
    pub fn new(options: &ConnectOptions<'_>, trust: &SystemRoots) -> Result<Self, ClientError> {
        let connector = Connector::new(options, trust)?;
        Ok(Self { pool: pool(&connector, usize::MAX), connector })
    }

    /// Sends a request and returns the head of the answer; its body is still to be read.
    pub async fn send(&self, request: Request<RequestBody>) -> Result<Response<Incoming>, ExchangeError> {
        self.send_over(ConnectionChoice::Pooled, request).await
    }

    /// As [`PooledClient::send`], over a connection of this choice.
    pub(super) async fn send_over(
        &self,
        choice: ConnectionChoice,
        mut request: Request<RequestBody>,
    ) -> Result<Response<Incoming>, ExchangeError> {
        let interim = limit_interim(&mut request);
        let answer = match choice {
            ConnectionChoice::Pooled => self.pool.request(request),
            ConnectionChoice::Fresh => pool(&self.connector, 0).request(request),
        };
        tokio::select! {
            biased;
            answer = answer => Ok(answer?),
            () = interim.notified() => Err(ExchangeError::Interim),
        }
    }
}

/// The connection that a request is sent over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ConnectionChoice {
    /// An idle one, or else a new one.
    Pooled,
    /// A new one, closed after the answer.
    Fresh,
}

/// A pool that keeps up to `idle` connections.
fn pool(connector: &Connector, idle: usize) -> Pool<Connector, RequestBody> {
    let mut pool = Pool::builder(TokioExecutor::new());
    pool.pool_timer(TokioTimer::new()).pool_idle_timeout(IDLE_TIMEOUT).pool_max_idle_per_host(idle);
    pool.http1_max_buf_size(HEAD_CAP).build(connector.clone())
}

/// Notified when the request gets too many interim answers.
fn limit_interim(request: &mut Request<RequestBody>) -> Arc<Notify> {
    let (count, too_many) = (AtomicU32::new(0), Arc::new(Notify::new()));
    let notify = Arc::clone(&too_many);
    hyper::ext::on_informational(request, move |_| {
        if count.fetch_add(1, Ordering::Relaxed) >= MAX_INTERIM {
            notify.notify_one();
            spend_coop_budget();
        }
    });
    too_many
}

/// Takes one unit of tokio's cooperative budget. hyper reads and parses until the budget is used up: for seconds, if
/// the data arrives in small pieces and never ends.
fn spend_coop_budget() {
    let taking = pin!(tokio::task::coop::consume_budget());
    // Taken, or nothing was left to take: both are fine.
    let _either = taking.poll(&mut Context::from_waker(Waker::noop()));
}

/// The system's certificate authorities, read when they are first needed, once for all targets that are made together:
/// reading them takes milliseconds. A reload makes new ones, so it picks up changes.
#[derive(Debug, Default)]
pub struct SystemRoots(OnceCell<Arc<Verifier>>);

impl SystemRoots {
    fn verifier(&self, provider: &Arc<CryptoProvider>) -> Result<Arc<Verifier>, rustls::Error> {
        if let Some(verifier) = self.0.get() {
            return Ok(verifier.clone());
        }
        let verifier = Arc::new(Verifier::new(provider.clone())?);
        Ok(self.0.get_or_init(|| verifier).clone())
    }
}

fn client_config(options: &TlsOptions, trust: &SystemRoots) -> Result<ClientConfig, ClientError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions()?;
    let builder = match &options.ca {
        None => builder.dangerous().with_custom_certificate_verifier(trust.verifier(&provider)?),
        Some(path) => {
            let trusted = certificates(path)?;
            if trusted.is_empty() {
                return Err(ClientError::Pem { path: path.clone(), source: pem::Error::NoItemsFound });
            }
            let verifier = FileVerifier::new(trusted, &provider)?;
            builder.dangerous().with_custom_certificate_verifier(Arc::new(verifier))
        }
    };
    match &options.client {
        None => Ok(builder.with_no_client_auth()),
        Some((cert, key)) => {
            let fault = |source| ClientError::Pem { path: key.clone(), source };
            let (pem, _) = bounded_file::read(key).map_err(|error| fault(pem::Error::Io(error)))?;
            let key_der = PrivateKeyDer::from_pem_slice(&pem).map_err(fault)?;
            Ok(builder.with_client_auth_cert(certificates(cert)?, key_der)?)
        }
    }
}

/// For http targets, which show no certificate: avoids reading the system's roots.
fn no_tls() -> ClientConfig {
    ClientConfig::builder().with_root_certificates(RootCertStore::empty()).with_no_client_auth()
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, ClientError> {
    bounded_file::read_certificates(path).map_err(|source| ClientError::Pem { path: path.to_owned(), source })
}

/// The part of an answer's body that was read.
#[derive(Debug)]
pub(super) struct AnswerBody {
    pub(super) bytes: Vec<u8>,
    pub(super) end: BodyEnd,
}

/// Why no more was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BodyEnd {
    /// It was read to its end.
    Whole,
    /// More bytes than are read.
    Capped,
    /// The connection broke, or the rest did not come in time.
    BrokenOff,
}

/// Reads a body until `deadline`, and up to `cap` bytes; if there is more, the connection is closed, not
/// reused.
pub(super) async fn read(mut body: Incoming, cap: usize, deadline: Instant) -> AnswerBody {
    let mut bytes = Vec::new();
    let end = loop {
        match tokio::time::timeout_at(deadline, body.frame()).await {
            Ok(None) => break BodyEnd::Whole,
            Err(_) | Ok(Some(Err(_))) => break BodyEnd::BrokenOff,
            Ok(Some(Ok(frame))) => {
                let Ok(data) = frame.into_data() else { continue };
                let remaining = cap - bytes.len();
                bytes.extend_from_slice(&data[..data.len().min(remaining)]);
                if data.len() > remaining {
                    break BodyEnd::Capped;
                }
            }
        }
    };
    AnswerBody { bytes, end }
}
