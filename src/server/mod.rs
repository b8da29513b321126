//! HTTP in: listeners, connections, drain. Knows nothing of WeChat.
//!
//! - `socket.rs`: [`bind`], the listening sockets
//! - `mod.rs`: [`serve`], one accept loop per socket and one task per connection
//! - `stack.rs`: [`stack::around`], the layers that any public service wants
//! - `tls.rs`: [`tls::Acceptor`], certificates that can be loaded anew; `certificate.rs`: when they end;
//!   `watch.rs`: taken up when renewed, told of when they end soon; `acme/`: ordered and renewed by ourselves
//! - `places.rs`: how many connections there may be, and which are closed for others
//! - `wire.rs`: what a connection is read from and written to
//! - `peer.rs`: [`Peer`], whom a request comes from; `proxied.rs`: what the PROXY protocol says of that
//!
//! Invariants: nothing a client does or leaves undone holds up the accept loop: handshake and headers are read in the
//! connection's own task, each within a limit. Every connection's task is owned by its accept loop and ends with it.
//! Whoever was accepted has its first request answered, also when the stop comes before that request.
//! The service runs in the connection's task, so a client that hangs up ends it: what must finish is the service's to
//! spawn.

pub mod acme;
mod certificate;
mod peer;
mod places;
pub mod proxied;
mod socket;
pub mod stack;
pub mod tls;
pub mod watch;
mod wire;

use std::fmt::{self, Display};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::DerefMut;
use std::path::PathBuf;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::GracefulConnection;
use proxy_header::io::ProxiedStream;
use tokio::io::{AsyncRead, AsyncWriteExt as _};
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_util::sync::CancellationToken;
use tower::util::ServiceExt;
use tower::{BoxError, Service};
use tower_http::body::UnsyncBoxBody;

pub use certificate::Validity;
pub use peer::Peer;
pub use socket::{BindError, Bound, bind};
pub use tls::{Certificate, TlsFiles};

use places::{Place, Places};
use proxied::Refused;
use socket::Stream;
use stack::Answer;
use wire::Wire;

use crate::telemetry::LogThrottle;

/// `[server]` of the configuration.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where pushes are taken.
    pub listen: Vec<Listen>,
    /// The certificates to serve, the default first; none if TLS does not end here.
    pub tls: Vec<Certificate>,
    /// Whose `X-Forwarded-For` is believed.
    pub trusted_proxies: Vec<ipnet::IpNet>,
    /// Whether every connection begins with a PROXY header, from one of `trusted_proxies`.
    pub proxy_protocol: bool,
    /// Whether HTTP/2 is spoken.
    pub http2: bool,
    /// How long a stop waits for what is under way.
    pub drain: Duration,
    /// The largest body taken, in bytes.
    pub max_body: usize,
}

/// One place to listen at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Listen {
    /// A TCP address; port 0 lets the system choose.
    Tcp(SocketAddr),
    /// A Unix socket.
    Unix(PathBuf),
    /// The sockets that systemd passes.
    Systemd,
}

/// As the configuration writes it.
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
    /// What a program of this machine connects to: loopback for "any address". `None` where that can't be known.
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

/// How connections are treated.
#[derive(Clone, Debug)]
pub struct Options {
    /// Whether HTTP/2 is spoken; if not, its code is not reached.
    pub http2: bool,
    /// Whether every connection begins with a PROXY header.
    pub proxy_protocol: bool,
    /// How long a TLS handshake may take.
    pub handshake_timeout: Duration,
    /// How long a new connection's first request may take to arrive, headers only; a PROXY header too.
    pub header_timeout: Duration,
    /// How long a connection may stay without the headers of a further request. Longer than a reverse proxy keeps its
    /// idle connections (nginx: 60 s), so that it is the proxy that closes and no push meets a closing connection.
    pub idle_timeout: Duration,
    /// The most connections held at a time; for further ones those are closed that have no request under way.
    pub max_connections: usize,
    /// Whose `X-Forwarded-For` and PROXY header are believed.
    pub trusted_proxies: Arc<[ipnet::IpNet]>,
}

impl Options {
    /// What `[server]` says; the rest as by default.
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
            max_connections: 4096,
            trusted_proxies: Arc::new([]),
        }
    }
}

/// Serves until `shutdown`, then lets what is under way end for at most `drain`, and cuts the rest off.
///
/// TLS is spoken on TCP sockets only. Returns when no connection is left. The service should answer whatever happens: on
/// its errors the connection is closed without an answer.
pub async fn serve<S, B>(
    bound: Vec<Bound>,
    tls: Option<tls::Acceptor>,
    service: S,
    options: Options,
    shutdown: CancellationToken,
    drain: Duration,
) where
    S: Service<Request<Incoming>, Response = Response<B>> + Clone + Send + Sync + 'static,
    S::Future: Send,
    S::Error: Into<BoxError>,
    B: Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
{
    let places = Places::new(options.max_connections);
    let refusals = Arc::new(LogThrottle::default());
    let boxed = |answer: Response<B>| answer.map(|body| UnsyncBoxBody::new(body.map_err(Into::into)));
    let service = service.map_response(boxed).map_err(Into::into);
    let handler: Handler = Arc::new(move |request| Box::pin(service.clone().oneshot(request)));
    let server = Server { handler, tls, places, options: Arc::new(options), refusals };
    let loops = bound.into_iter().map(|bound| server.clone().run(bound, shutdown.clone(), drain));
    loops.collect::<JoinSet<()>>().join_all().await;
}

/// A service. One type for all, since HTTP/1 and HTTP/2 are compiled anew for each.
type Handler = Arc<dyn Fn(Request<Incoming>) -> Handling + Send + Sync>;
type Handling = Pin<Box<dyn Future<Output = Result<Answer, BoxError>> + Send>>;

/// What every accept loop shares.
#[derive(Clone)]
struct Server {
    handler: Handler,
    tls: Option<tls::Acceptor>,
    places: Arc<Places>,
    options: Arc<Options>,
    refusals: Arc<LogThrottle>,
}

impl Server {
    async fn run(mut self, bound: Bound, shutdown: CancellationToken, drain: Duration) {
        if bound.is_clear() {
            self.tls = None;
        }
        let last_call = LAST_CALL.min(drain);
        let mut connections = JoinSet::new();
        loop {
            let stream = tokio::select! {
                () = shutdown.cancelled() => break,
                Some(_) = connections.join_next(), if !connections.is_empty() => continue,
                stream = accept(&bound) => stream,
            };
            // Not in the select, which would drop the connection where another branch is ready first.
            if let Some(place) = place(&self.places, stream.peer(), &shutdown, last_call).await {
                self.hold(&mut connections, stream, place, &shutdown);
            }
        }
        // Whom the system has let in already would be cut off with the socket.
        let now = Instant::now();
        let (until, end) = (now + last_call, now + drain);
        while Instant::now() < until
            && let Ok(stream) = timeout(ARRIVED, accept(&bound)).await
            && let Some(place) = place(&self.places, stream.peer(), &shutdown, last_call).await
        {
            self.hold(&mut connections, stream, place, &shutdown);
        }
        // From here on the system refuses new connections, or keeps them for the next process where systemd has the socket.
        drop(bound);
        let ended = async { while connections.join_next().await.is_some() {} };
        if timeout_at(end, ended).await.is_err() {
            tracing::warn!(connections = connections.len(), "drain over, connections cut off");
        }
        connections.shutdown().await;
    }

    /// Gives a connection a task of its own.
    fn hold(&self, connections: &mut JoinSet<()>, stream: Stream, place: Place, shutdown: &CancellationToken) {
        let (server, place, shutdown) = (self.clone(), Arc::new(place), shutdown.clone());
        connections.spawn(async move {
            tokio::select! {
                biased;
                () = server.connection(stream, place.clone(), shutdown) => {}
                () = place.leave() => tracing::debug!("connection closed to make room for another"),
            }
        });
    }

    async fn connection(self, stream: Stream, place: Arc<Place>, shutdown: CancellationToken) {
        let Self { handler, tls, options, refusals, .. } = self;
        let Some((wire, peer)) = open(stream, tls.as_ref(), &options, &refusals, &place).await else { return };
        let io = TokioIo::new(wire);
        let begun = Arc::new(Notify::new());
        let trusted_proxies = options.trusted_proxies.clone();
        let service = Connected { handler, peer, place, begun: begun.clone(), trusted_proxies };
        if options.http2 {
            let builder = http1_and_2(&options);
            // On the heap, as the handshake is: each connection's task would have room for what few need.
            let connection = Box::pin(builder.serve_connection(io, service));
            until_closed(connection, options.header_timeout, &begun, shutdown).await;
        } else {
            let connection = pin!(http1_only(&options).serve_connection(io, service));
            until_closed(connection, options.header_timeout, &begun, shutdown).await;
        }
    }
}

/// What comes before HTTP: the PROXY header and the TLS handshake, where there have to be any.
async fn open(
    stream: Stream,
    tls: Option<&tls::Acceptor>,
    options: &Options,
    refusals: &LogThrottle,
    place: &Place,
) -> Option<(Wire, Peer)> {
    let (wire, peer) = match stream {
        Stream::Unix(stream) => {
            let (io, peer) = announced(stream, Peer(None), options, refusals).await?;
            (Wire::Unix(io), peer)
        }
        Stream::Tcp(stream, peer) => {
            let (io, peer) = announced(stream, peer, options, refusals).await?;
            (Wire::Tcp(io), peer)
        }
    };
    if options.proxy_protocol {
        place.is_of(peer);
    }
    let (io, tls) = match (wire, tls) {
        (Wire::Tcp(io), Some(tls)) => (io, tls),
        (wire, _) => return Some((wire, peer)),
    };
    let limit = options.handshake_timeout;
    match timeout(limit, Box::pin(tls.accept(io))).await {
        // The handshake was all that an ACME authority wanted to see (RFC 8737, 3).
        Ok(Ok(mut io)) if acme::is_validation(io.get_ref().1.alpn_protocol()) => {
            tracing::debug!("an ACME authority has looked");
            timeout(limit, io.shutdown()).await.ok();
            return None;
        }
        Ok(Ok(io)) => return Some((Wire::Tls(Box::new(io)), peer)),
        Ok(Err(error)) => tracing::debug!(%error, "no TLS handshake"),
        Err(_) => tracing::debug!("TLS handshake too slow"),
    }
    None
}

/// Takes the PROXY header off, where there has to be one. The log cannot be flooded by those who send none.
async fn announced<I: AsyncRead + Unpin>(
    io: I,
    peer: Peer,
    options: &Options,
    refusals: &LogThrottle,
) -> Option<(ProxiedStream<I>, Peer)> {
    if !options.proxy_protocol {
        return Some((ProxiedStream::unproxied(io), peer));
    }
    let refused = match timeout(options.header_timeout, proxied::accept(io, peer, &options.trusted_proxies)).await {
        Ok(Ok(announced)) => return Some(announced),
        // As the checks of load balancers do that only look whether somebody listens.
        Ok(Err(Refused::Broken(error))) => {
            tracing::debug!(%error, "ended before its PROXY header");
            return None;
        }
        Ok(Err(refused)) => refused,
        Err(_) => Refused::Late,
    };
    if let Some(held_back) = refusals.due() {
        let peer = peer.0.map(tracing::field::display);
        tracing::warn!(peer, reason = %refused, held_back, "connection refused");
    }
    None
}

/// hyper has one limit for a first request's headers and for the pause before a further request; this adds the shorter
/// one for the first. And a connection that is told to end before its first request was read would be closed without an
/// answer; so it is told after that.
async fn until_closed<P, C>(
    mut connection: Pin<P>,
    header_timeout: Duration,
    begun: &Notify,
    shutdown: CancellationToken,
) where
    P: DerefMut<Target = C>,
    C: GracefulConnection,
    C::Error: Display,
{
    let ended = tokio::select! {
        ended = connection.as_mut() => Some(ended),
        begun = timeout(header_timeout, begun.notified()) => match begun {
            Ok(()) => None,
            Err(_) => return tracing::debug!("first request too slow"),
        },
    };
    let ended = match ended {
        Some(ended) => ended,
        None => tokio::select! {
            ended = connection.as_mut() => ended,
            () = shutdown.cancelled() => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        },
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "connection broken");
    }
}

/// The service as one connection sees it: tells it the peer, and remembers that a request came and how it ended.
struct Connected {
    handler: Handler,
    peer: Peer,
    place: Arc<Place>,
    begun: Arc<Notify>,
    trusted_proxies: Arc<[ipnet::IpNet]>,
}

impl hyper::service::Service<Request<Incoming>> for Connected {
    type Response = Answer;
    type Error = BoxError;
    type Future = Handling;

    fn call(&self, mut request: Request<Incoming>) -> Self::Future {
        self.begun.notify_one();
        let under_way = self.place.begin();
        let peer = self.peer.behind_proxies(request.headers(), &self.trusted_proxies);
        request.extensions_mut().insert(peer);
        let answer = (self.handler)(request);
        Box::pin(async move {
            let answer = answer.await;
            under_way.answered(answer.as_ref().is_ok_and(|answer| answer.status().is_success()));
            answer
        })
    }
}

/// Without `pipeline_flush`: with it, hyper 1.12 holds an answer back while unread bytes lie in its buffer, so that a
/// request it cannot parse gets none.
fn http1_only(options: &Options) -> http1::Builder {
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(options.idle_timeout)
        .max_headers(MAX_HEADERS)
        .max_buf_size(MAX_BUFFER);
    builder
}

fn http1_and_2(options: &Options) -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(options.idle_timeout)
        .max_headers(MAX_HEADERS)
        .max_buf_size(MAX_BUFFER);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(100)
        .max_header_list_size(16 << 10)
        .keep_alive_interval(options.idle_timeout)
        .keep_alive_timeout(options.header_timeout);
    builder
}

/// Long enough to see that nobody else has arrived.
const ARRIVED: Duration = Duration::from_millis(1);
/// How long a stop takes in whom it finds waiting, at the most.
const LAST_CALL: Duration = Duration::from_millis(500);
/// The most headers a request may have; WeChat's has about ten, a chain of proxies adds as many.
const MAX_HEADERS: usize = 64;
/// The most bytes read ahead on a connection, which also bounds the headers.
const MAX_BUFFER: usize = 32 << 10;

/// A place for a connection; none if there is none `last_call` after the stop has begun.
async fn place(places: &Arc<Places>, peer: Peer, shutdown: &CancellationToken, last_call: Duration) -> Option<Place> {
    let too_late = async {
        shutdown.cancelled().await;
        tokio::time::sleep(last_call).await;
    };
    tokio::select! {
        biased;
        place = places.take(peer) => Some(place),
        () = too_late => None,
    }
}

/// The next connection. What fails for one client is skipped; what fails for want of descriptors or memory is waited
/// out, as trying at once would only spin.
async fn accept(bound: &Bound) -> Stream {
    loop {
        match bound.accept().await {
            Ok(stream) => return stream,
            Err(error) if concerns_one_client(&error) => tracing::debug!(%error, "connection lost before accept"),
            Err(error) => {
                tracing::error!(%error, address = bound.address(), "cannot accept connections, trying again in 1 s");
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        }
    }
}

fn concerns_one_client(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted)
}

#[cfg(test)]
mod tests;
