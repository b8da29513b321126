//! A scripted target: records every delivery and answers by the test's script.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response};
use http_body::{Body, Frame, SizeHint};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{self, Instant};
use tokio_rustls::TlsAcceptor;

use super::soon;

/// The reaction to a delivery.
#[derive(Clone, Debug)]
pub(crate) enum Reaction {
    /// Answer at once.
    Answer(Reply),
    /// Answer after that time.
    Slow(Duration, Reply),
    /// Answer when the test calls [`Target::release`].
    Hold(Reply),
    /// Never answer.
    Hang,
    /// End the connection without an answer.
    Close,
    /// Announce the whole answer, send half of its body, and break the connection.
    BreakOff(Reply),
}

/// An answer.
#[derive(Clone, Debug)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(&'static str, String)>,
    pub(crate) body: Vec<u8>,
}

impl Reply {
    pub(crate) fn status(status: u16) -> Self {
        Self { status, headers: Vec::new(), body: Vec::new() }
    }

    pub(crate) fn body(content_type: &str, body: impl Into<Vec<u8>>) -> Self {
        Self { status: 200, headers: vec![("content-type", content_type.to_owned())], body: body.into() }
    }

    pub(crate) fn xml(body: impl Into<Vec<u8>>) -> Self {
        Self::body("text/xml", body)
    }
}

/// A delivery as received.
#[derive(Clone, Debug)]
pub(crate) struct Delivery {
    pub(crate) at: Instant,
    pub(crate) method: Method,
    pub(crate) path: String,
    pub(crate) query: Option<String>,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Delivery {
    pub(crate) fn header(&self, name: &str) -> &str {
        let value = self.headers.get(name).unwrap_or_else(|| panic!("the delivery has no {name}: {:?}", self.headers));
        value.to_str().expect("a header is text")
    }

    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.body).expect("the body is UTF-8")
    }

    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("not JSON ({error}): {}", self.text()))
    }
}

/// The receiver; it stops listening when dropped.
pub(crate) struct Target {
    scheme: &'static str,
    address: SocketAddr,
    shared: Arc<Shared>,
    count: watch::Receiver<usize>,
    task: JoinHandle<()>,
}

struct Shared {
    script: Mutex<Script>,
    deliveries: Mutex<Vec<Delivery>>,
    count: watch::Sender<usize>,
    held: Semaphore,
}

struct Script {
    next: VecDeque<Reaction>,
    then: Reaction,
}

impl Target {
    /// A receiver that answers 200 without a body by default.
    pub(crate) async fn start() -> Self {
        Self::always(Reaction::Answer(Reply::status(200))).await
    }

    /// A receiver with one fixed reaction.
    pub(crate) async fn always(then: Reaction) -> Self {
        Self::listen(then, None).await
    }

    /// A receiver that is reached by https.
    pub(crate) async fn secured(acceptor: TlsAcceptor) -> Self {
        Self::listen(Reaction::Answer(Reply::status(200)), Some(acceptor)).await
    }

    async fn listen(then: Reaction, tls: Option<TlsAcceptor>) -> Self {
        let scheme = if tls.is_some() { "https" } else { "http" };
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
        let address = listener.local_addr().expect("a bound socket has an address");
        let (sender, count) = watch::channel(0);
        let shared = Arc::new(Shared {
            script: Mutex::new(Script { next: VecDeque::new(), then }),
            deliveries: Mutex::default(),
            count: sender,
            held: Semaphore::new(0),
        });
        let task = tokio::spawn(accept(listener, tls, Arc::clone(&shared)));
        Self { scheme, address, shared, count, task }
    }

    /// Its `[targets.NAME]`, with further lines of that table; the format is `json` if they name none.
    pub(crate) fn config(&self, name: &str, lines: &str) -> String {
        let format = if lines.contains("format = ") { "" } else { "format = \"json\"\n" };
        format!("[targets.{name}]\nurl = \"{}\"\n{format}{lines}\n", self.url())
    }

    pub(crate) fn url(&self) -> String {
        // The name in the certificate.
        let host = if self.scheme == "https" { "localhost".to_owned() } else { self.address.ip().to_string() };
        format!("{}://{host}:{}/hook", self.scheme, self.address.port())
    }

    /// Sets the reactions to the next deliveries, in order.
    pub(crate) fn script(&self, reactions: impl IntoIterator<Item = Reaction>) {
        self.shared.script().next.extend(reactions);
    }

    /// Sets the reaction after the end of the script.
    pub(crate) fn then(&self, then: Reaction) {
        self.shared.script().then = then;
    }

    /// Lets this many held deliveries be answered, later ones included.
    pub(crate) fn release(&self, count: usize) {
        self.shared.held.add_permits(count);
    }

    /// Every delivery so far.
    pub(crate) fn deliveries(&self) -> Vec<Delivery> {
        self.shared.deliveries.lock().expect("no receiver panics").clone()
    }

    /// Waits until there are this many; returns all of them.
    pub(crate) async fn wait_for(&self, count: usize) -> Vec<Delivery> {
        let mut count_watch = self.count.clone();
        let what = format!("{count} deliveries at {}", self.address);
        soon(&what, count_watch.wait_for(|have| *have >= count)).await.expect("the receiver lives");
        self.deliveries()
    }

    /// Waits for the delivery of that number, from 0.
    pub(crate) async fn delivery(&self, index: usize) -> Delivery {
        self.wait_for(index + 1).await.swap_remove(index)
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Shared {
    fn script(&self) -> MutexGuard<'_, Script> {
        self.script.lock().expect("no receiver panics")
    }

    fn reaction(&self) -> Reaction {
        let mut script = self.script();
        script.next.pop_front().unwrap_or_else(|| script.then.clone())
    }

    fn record(&self, delivery: Delivery) {
        let mut deliveries = self.deliveries.lock().expect("no receiver panics");
        deliveries.push(delivery);
        self.count.send_replace(deliveries.len());
    }
}

async fn accept(listener: TcpListener, tls: Option<TlsAcceptor>, shared: Arc<Shared>) {
    let mut connections = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        let (shared, tls) = (Arc::clone(&shared), tls.clone());
        connections.spawn(async move {
            match tls {
                None => serve(stream, &shared).await,
                Some(tls) => {
                    if let Ok(stream) = tls.accept(stream).await {
                        serve(stream, &shared).await;
                    }
                }
            }
        });
    }
}

async fn serve(stream: impl AsyncRead + AsyncWrite + Unpin, shared: &Shared) {
    let service = service_fn(|request| receive(request, shared));
    // The client or the script may break the connection.
    drop(http1::Builder::new().serve_connection(TokioIo::new(stream), service).await);
}

async fn receive(request: Request<Incoming>, shared: &Shared) -> io::Result<Response<Sent>> {
    let (head, body) = request.into_parts();
    #[expect(clippy::disallowed_methods, reason = "capped by Limited")]
    let body = Limited::new(body, 8 << 20).collect().await.map_err(io::Error::other)?.to_bytes();
    let reaction = shared.reaction();
    shared.record(Delivery {
        at: Instant::now(),
        method: head.method,
        path: head.uri.path().to_owned(),
        query: head.uri.query().map(str::to_owned),
        headers: head.headers,
        body,
    });
    let mut missing = 0;
    let reply = match reaction {
        Reaction::Answer(reply) => reply,
        Reaction::BreakOff(mut reply) => {
            missing = reply.body.len() - reply.body.len() / 2;
            reply.body.truncate(reply.body.len() / 2);
            reply
        }
        Reaction::Slow(wait, reply) => {
            time::sleep(wait).await;
            reply
        }
        Reaction::Hold(reply) => {
            shared.held.acquire().await.expect("never closed").forget();
            reply
        }
        Reaction::Hang => match std::future::pending::<Infallible>().await {},
        Reaction::Close => return Err(io::ErrorKind::ConnectionAborted.into()),
    };
    let mut response = Response::builder().status(reply.status);
    for (name, value) in reply.headers {
        response = response.header(name, value);
    }
    response
        .body(Sent { bytes: Some(reply.body.into()), missing: missing as u64, flushed: false })
        .map_err(io::Error::other)
}

/// A body that may end before its declared length.
struct Sent {
    bytes: Option<Bytes>,
    missing: u64,
    flushed: bool,
}

impl Body for Sent {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        if let Some(bytes) = self.bytes.take() {
            return Poll::Ready(Some(Ok(Frame::data(bytes))));
        }
        if self.missing == 0 {
            return Poll::Ready(None);
        }
        if !self.flushed {
            // The server flushes when the body is not ready.
            self.flushed = true;
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        Poll::Ready(Some(Err(io::ErrorKind::ConnectionReset.into())))
    }

    fn is_end_stream(&self) -> bool {
        self.bytes.as_ref().is_none_or(Bytes::is_empty) && self.missing == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.missing + self.bytes.as_ref().map_or(0, |bytes| bytes.len() as u64))
    }
}
