//! HTTP in: listeners, connections, drain. Does not depend on WeChat's protocol.
//!
//! - `settings.rs`: [`Settings`], [`Listen`], [`Options`]
//! - `socket.rs`: [`bind_all`], the listening sockets
//! - `mod.rs`: [`serve`], one accept loop per socket and one task per connection
//! - `stack.rs`: [`stack::around`], the layers that any public service needs
//! - `tls.rs`: [`tls::Acceptor`], the certificates that are served; `challenge.rs`: the answers to an ACME authority's
//!   validation
//! - `certificate_watch.rs`: reloads renewed certificates, warns before they expire; `acme/`: orders and renews them
//! - `connection_slots.rs`: the limit on connections, and which are evicted; `descriptors.rs`: the file descriptors that
//!   they may take
//! - `transport.rs`: the byte stream of a connection; `half_close.rs`: clients that end their sending side;
//!   `write_timeout.rs`: the limit for a client that does not read
//! - `peer.rs`: [`Peer`], the client of a request; `proxied.rs`: the client that a PROXY header names
//!
//! Imports go one way: `acme` uses `certificate_watch`, both use `tls`, and `tls` uses `challenge`.
//!
//! Invariants: no client can block the accept loop: handshake and headers are read in the connection's own task, each
//! with a timeout. Every connection's task is owned by its accept loop and ends with it. An accepted connection has its
//! first request answered, even if the stop precedes that request. The service runs in the connection's task, so a
//! client that hangs up cancels it: a service must spawn work that has to finish.

pub mod acme;
pub mod certificate_watch;
mod challenge;
mod connection_slots;
pub mod descriptors;
mod half_close;
mod peer;
pub mod proxied;
mod settings;
mod socket;
pub mod stack;
pub mod tls;
mod transport;
mod write_timeout;

use std::io;
use std::ops::DerefMut;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use proxy_header::io::ProxiedStream;
use tokio::io::{AsyncRead, AsyncWriteExt as _};
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout, timeout_at};
use tokio_util::sync::CancellationToken;
use tower::util::ServiceExt;
use tower::{BoxError, Service};
use tower_http::body::UnsyncBoxBody;

pub use crate::certificate::Validity;
pub use connection_slots::ConnectionLimit;
pub use peer::Peer;
pub use settings::{AcmeSettings, Certificate, Listen, MAX_CONNECTIONS, Options, Settings, TlsFiles};
pub use socket::{BindError, Bound, bind, bind_all, check, check_unused};

use connection_slots::{ConnectionSlot, ConnectionSlots};
use half_close::HalfCloseStream;
use proxied::ProxyHeaderError;
use socket::Stream;
use stack::BoxedResponse;
use transport::Transport;
use write_timeout::WriteTimeout;

use crate::telemetry::LogThrottle;

/// Serves until `shutdown`, then waits up to `drain` for active requests, and closes the rest.
///
/// TLS is for TCP sockets only. Returns when no connection is left. The service should always respond: if it returns an
/// error, the connection is closed without a response.
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
    let slots = ConnectionSlots::new(options.max_connections.clone());
    let refusals = Arc::new(LogThrottle::default());
    let boxed = |response: Response<B>| response.map(|body| UnsyncBoxBody::new(body.map_err(Into::into)));
    let service = service.map_response(boxed).map_err(Into::into);
    let handler: Handler = Arc::new(move |request| Box::pin(service.clone().oneshot(request)));
    let server = Server { handler, tls, slots, options: Arc::new(options), refusals };
    let loops = bound.into_iter().map(|bound| server.clone().run(bound, shutdown.clone(), drain));
    loops.collect::<JoinSet<()>>().join_all().await;
}

/// A service. One type for all, since HTTP/1 and HTTP/2 are compiled once for each type.
type Handler = Arc<dyn Fn(Request<Incoming>) -> Handling + Send + Sync>;
type Handling = Pin<Box<dyn Future<Output = Result<BoxedResponse, BoxError>> + Send>>;

/// What every accept loop shares.
#[derive(Clone)]
struct Server {
    handler: Handler,
    tls: Option<tls::Acceptor>,
    slots: Arc<ConnectionSlots>,
    options: Arc<Options>,
    refusals: Arc<LogThrottle>,
}

impl Server {
    async fn run(mut self, bound: Bound, shutdown: CancellationToken, drain: Duration) {
        if bound.is_plain() {
            self.tls = None;
        }
        let accept_grace = ACCEPT_GRACE.min(drain);
        let mut connections = JoinSet::new();
        let mut listener = RetryingListener::new(bound, self.slots.clone());
        loop {
            let stream = tokio::select! {
                () = shutdown.cancelled() => break,
                Some(_) = connections.join_next(), if !connections.is_empty() => continue,
                stream = listener.accept() => stream,
            };
            // Not in the select, which would drop the connection if another branch were ready first.
            if let Some(slot) = acquire_slot(&self.slots, stream.peer(), &shutdown, accept_grace).await {
                self.spawn_connection(&mut connections, stream, slot, &shutdown);
            }
        }
        // Closing the socket would reset the connections in the system's backlog, so these are accepted first.
        let now = Instant::now();
        let (until, end) = (now + accept_grace, now + drain);
        while Instant::now() < until
            && let Ok(stream) = timeout(BACKLOG_POLL, listener.accept()).await
            && let Some(slot) = acquire_slot(&self.slots, stream.peer(), &shutdown, accept_grace).await
        {
            self.spawn_connection(&mut connections, stream, slot, &shutdown);
        }
        // From now on the system refuses new connections; with a socket of systemd, it queues them for the next
        // process.
        drop(listener);
        let ended = async { while connections.join_next().await.is_some() {} };
        if timeout_at(end, ended).await.is_err() {
            tracing::warn!(connections = connections.len(), "drain timed out, connections closed");
        }
        connections.shutdown().await;
    }

    fn spawn_connection(
        &self,
        connections: &mut JoinSet<()>,
        stream: Stream,
        slot: ConnectionSlot,
        shutdown: &CancellationToken,
    ) {
        let (server, slot, shutdown) = (self.clone(), Arc::new(slot), shutdown.clone());
        connections.spawn(async move {
            tokio::select! {
                biased;
                () = server.serve_connection(stream, slot.clone(), shutdown) => {}
                () = slot.evicted() => tracing::debug!("idle connection evicted"),
            }
        });
    }

    async fn serve_connection(self, stream: Stream, slot: Arc<ConnectionSlot>, shutdown: CancellationToken) {
        let Self { handler, tls, options, refusals, .. } = self;
        let Some((transport, peer)) = handshake(stream, tls.as_ref(), &options, &refusals, &slot).await else { return };
        let mut stream = HalfCloseStream::new(transport, slot.clone());
        // For the preface and the first request together.
        let deadline = Instant::now() + options.header_timeout;
        let Some(is_http2) = speaks_http2(&mut stream, options.http2, deadline).await else { return };
        let io = TokioIo::new(WriteTimeout::new(stream, options.write_timeout));
        let first_request = Arc::new(Notify::new());
        let trusted_proxies = options.trusted_proxies.clone();
        let service = Connected { handler, peer, slot, first_request: first_request.clone(), trusted_proxies };
        if is_http2 {
            // Boxed, like the handshake: else each connection's task would reserve the space that few need.
            let connection = Box::pin(http2(&options).serve_connection(io, service));
            let shut_down = http2::Connection::graceful_shutdown;
            until_closed(connection, shut_down, deadline, &first_request, shutdown).await;
        } else {
            let connection = pin!(http1(&options).serve_connection(io, service));
            let shut_down = http1::Connection::graceful_shutdown;
            until_closed(connection, shut_down, deadline, &first_request, shutdown).await;
        }
    }
}

/// Reads the PROXY header and makes the TLS handshake, if they are configured.
async fn handshake(
    stream: Stream,
    tls: Option<&tls::Acceptor>,
    options: &Options,
    refusals: &LogThrottle,
    slot: &ConnectionSlot,
) -> Option<(Transport, Peer)> {
    let (transport, peer) = match stream {
        Stream::Unix(stream) => {
            let (io, peer) = read_proxy_header(stream, Peer(None), options, refusals).await?;
            (Transport::Unix(io), peer)
        }
        Stream::Tcp(stream, peer) => {
            let (io, peer) = read_proxy_header(stream, peer, options, refusals).await?;
            (Transport::Tcp(io), peer)
        }
    };
    if options.proxy_protocol {
        slot.set_peer(peer);
    }
    let (io, tls) = match (transport, tls) {
        (Transport::Tcp(io), Some(tls)) => (io, tls),
        (transport, _) => return Some((transport, peer)),
    };
    let limit = options.handshake_timeout;
    match timeout(limit, Box::pin(tls.accept(io))).await {
        // An ACME authority needs only the handshake (RFC 8737, 3).
        Ok(Ok(mut io)) if challenge::is_validation(io.get_ref().1.alpn_protocol()) => {
            tracing::debug!("ACME authority validated a domain");
            timeout(limit, io.shutdown()).await.ok();
            return None;
        }
        Ok(Ok(io)) => return Some((Transport::Tls(Box::new(io)), peer)),
        Ok(Err(error)) => tracing::debug!(%error, "TLS handshake failed"),
        Err(_) => tracing::debug!("TLS handshake timed out"),
    }
    None
}

/// Reads the PROXY header, if it is configured. Clients that send none cannot flood the log.
async fn read_proxy_header<I: AsyncRead + Unpin>(
    io: I,
    peer: Peer,
    options: &Options,
    refusals: &LogThrottle,
) -> Option<(ProxiedStream<I>, Peer)> {
    if !options.proxy_protocol {
        return Some((ProxiedStream::unproxied(io), peer));
    }
    let refused = match timeout(options.header_timeout, proxied::read_header(io, peer, &options.trusted_proxies)).await
    {
        Ok(Ok(proxied)) => return Some(proxied),
        // TCP health checks of load balancers connect and close.
        Ok(Err(ProxyHeaderError::Broken(error))) => {
            tracing::debug!(%error, "connection ended before its PROXY header");
            return None;
        }
        Ok(Err(refused)) => refused,
        Err(_) => ProxyHeaderError::Late,
    };
    if let Some(suppressed) = refusals.allow() {
        let peer = peer.0.map(tracing::field::display);
        tracing::warn!(peer, reason = %refused, held_back = suppressed, "connection refused");
    }
    None
}

/// Whether the client begins with HTTP/2's preface, with TLS or without; `None` if it ends or says nothing in time.
///
/// hyper-util has this too, but with it come HTTP/2's client into the pool of connections to targets, and its code once
/// more for the stream that tells: 260 KB.
async fn speaks_http2(stream: &mut HalfCloseStream, is_offered: bool, deadline: Instant) -> Option<bool> {
    if !is_offered {
        return Some(false);
    }
    match timeout_at(deadline, stream.begins_with(HTTP2_PREFACE)).await {
        Ok(Ok(is_http2)) => return Some(is_http2),
        Ok(Err(error)) => tracing::debug!(%error, "connection failed"),
        Err(_) => tracing::debug!("first request timed out"),
    }
    None
}

/// Drives a connection to its end; the first request must come by `deadline`.
///
/// hyper has one timeout for the headers of a first request and for the pause before a further one; this adds the
/// shorter timeout for the first. Before the first request is read, `shut_down` would close without a response, so it is
/// called after that.
async fn until_closed<P, C>(
    mut connection: Pin<P>,
    shut_down: fn(Pin<&mut C>),
    deadline: Instant,
    first_request: &Notify,
    shutdown: CancellationToken,
) where
    P: DerefMut<Target = C>,
    C: Future<Output = hyper::Result<()>>,
{
    let ended = tokio::select! {
        ended = connection.as_mut() => Some(ended),
        first = timeout_at(deadline, first_request.notified()) => match first {
            Ok(()) => None,
            Err(_) => return tracing::debug!("first request timed out"),
        },
    };
    let ended = match ended {
        Some(ended) => ended,
        None => tokio::select! {
            ended = connection.as_mut() => ended,
            () = shutdown.cancelled() => {
                shut_down(connection.as_mut());
                connection.await
            }
        },
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "connection failed");
    }
}

/// The service of one connection: adds the peer to each request, and reports its start and end to the slot.
struct Connected {
    handler: Handler,
    peer: Peer,
    slot: Arc<ConnectionSlot>,
    /// Wakes [`until_closed`].
    first_request: Arc<Notify>,
    trusted_proxies: Arc<[ipnet::IpNet]>,
}

impl hyper::service::Service<Request<Incoming>> for Connected {
    type Response = BoxedResponse;
    type Error = BoxError;
    type Future = Handling;

    fn call(&self, mut request: Request<Incoming>) -> Self::Future {
        self.first_request.notify_one();
        let active = self.slot.begin_request();
        let peer = self.peer.behind_proxies(request.headers(), &self.trusted_proxies);
        request.extensions_mut().insert(peer);
        let response = (self.handler)(request);
        Box::pin(async move {
            let response = response.await;
            active.answered(response.as_ref().is_ok_and(|response| response.status().is_success()));
            response
        })
    }
}

/// Without `pipeline_flush`: with it, hyper 1.12 delays a response while its buffer has unread bytes, so that a request
/// that it cannot parse gets no response.
fn http1(options: &Options) -> http1::Builder {
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(options.idle_timeout)
        .max_headers(MAX_HEADERS)
        .max_buf_size(MAX_BUFFER)
        // `HalfCloseStream` finds clients that are gone.
        .half_close(true);
    builder
}

fn http2(options: &Options) -> http2::Builder<TokioExecutor> {
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder
        .timer(TokioTimer::new())
        .max_concurrent_streams(100)
        .max_header_list_size(16 << 10)
        .keep_alive_interval(options.idle_timeout)
        .keep_alive_timeout(options.header_timeout);
    builder
}

/// What a client of HTTP/2 sends first (RFC 9113, 3.4).
const HTTP2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// The wait for one more connection from the backlog.
const BACKLOG_POLL: Duration = Duration::from_millis(1);
/// The pause after a failed `accept`.
const ACCEPT_RETRY: Duration = Duration::from_millis(250);
/// How long a stop still accepts connections from the backlog.
const ACCEPT_GRACE: Duration = Duration::from_millis(500);
/// The most headers of a request; WeChat sends about ten, and a chain of proxies adds as many.
const MAX_HEADERS: usize = 64;
/// The most bytes read ahead on a connection, which also bounds the headers.
const MAX_BUFFER: usize = 32 << 10;

/// Waits for a slot; `None` if there is none until `accept_grace` after the start of the stop.
async fn acquire_slot(
    slots: &Arc<ConnectionSlots>,
    peer: Peer,
    shutdown: &CancellationToken,
    accept_grace: Duration,
) -> Option<ConnectionSlot> {
    let too_late = async {
        shutdown.cancelled().await;
        tokio::time::sleep(accept_grace).await;
    };
    tokio::select! {
        biased;
        slot = slots.acquire(peer) => Some(slot),
        () = too_late => None,
    }
}

/// A listener, with its recovery from failures of the system.
struct RetryingListener {
    bound: Bound,
    slots: Arc<ConnectionSlots>,
    /// The end of the pause after a failure. Kept here, as [`Self::accept`] is cancelled by every connection that
    /// ends meanwhile.
    retry_at: Option<Instant>,
    failures: LogThrottle,
}

impl RetryingListener {
    fn new(bound: Bound, slots: Arc<ConnectionSlots>) -> Self {
        Self { bound, slots, retry_at: None, failures: LogThrottle::default() }
    }

    /// Accepts the next connection. Errors of one client are skipped. When no file descriptor is left, idle connections
    /// are evicted. After any other error of the system it pauses, as retrying at once would spin.
    async fn accept(&mut self) -> Stream {
        loop {
            if let Some(at) = self.retry_at {
                sleep_until(at).await;
                self.retry_at = None;
            }
            match self.bound.accept().await {
                Ok(stream) => return stream,
                Err(error) if concerns_one_client(&error) => tracing::debug!(%error, "connection lost before accept"),
                // Without a descriptor, `accept` fails even if no connection waits.
                Err(error) if lacks_descriptors(&error) && !self.bound.has_waiting() => {
                    self.retry_at = Some(Instant::now() + connection_slots::EVICTION_RETRY);
                }
                Err(error) => {
                    let closed = if lacks_descriptors(&error) { self.slots.make_room() } else { 0 };
                    let pause = if closed > 0 { connection_slots::EVICTION_RETRY } else { ACCEPT_RETRY };
                    self.retry_at = Some(Instant::now() + pause);
                    self.log_failure(&error, closed);
                }
            }
        }
    }

    fn log_failure(&self, error: &io::Error, closed: usize) {
        let Some(suppressed) = self.failures.allow() else { return };
        let remedy = lacks_descriptors(error).then_some(descriptors::REMEDY);
        let address = self.bound.address();
        tracing::error!(%error, address, closed, remedy, held_back = suppressed, "accept failed, retrying");
    }
}

/// Whether the process (EMFILE) or the system (ENFILE) has no file descriptor left.
fn lacks_descriptors(error: &io::Error) -> bool {
    use rustix::io::Errno;
    error.raw_os_error().is_some_and(|code| [Errno::MFILE, Errno::NFILE].map(Errno::raw_os_error).contains(&code))
}

fn concerns_one_client(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted)
}

#[cfg(test)]
mod tests;
