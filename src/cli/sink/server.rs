//! The sink's HTTP server: accepts, verifies, records, answers.
//!
//! Every task belongs to the [`Sink`] and ends with it. Deliveries wait for their reader in a bounded channel; while it
//! is full, answers wait too.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicU32, Ordering};
use std::time::Duration;

use anyhow::Context;
use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderName, HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::content::DeliveryContent;
use super::delivery::{ReceivedDelivery, SignatureCheck};
use super::webhook::{self, WebhookKey};
use crate::cli::fixable::fixable;
use crate::cli::simulate;
use crate::clock::UnixMillis;
use crate::server::{self, Bound, Listen};
use crate::wechat::{Credentials, OpenError, Query};

/// The largest body accepted, in bytes.
const MAX_BODY: usize = 16 << 20;

/// The most deliveries that wait for the receiver.
const MAX_UNREAD: usize = 4096;

/// The behaviour of a sink.
#[derive(Clone)]
pub struct Options {
    /// The address to listen on; port 0 selects a free one.
    pub listen: SocketAddr,
    pub reply: Option<String>,
    /// The status of its answers; one other than 2xx is sent without the reply.
    pub status: StatusCode,
    /// How many of the first deliveries are answered 503.
    pub fail: u32,
    /// How long it waits before every answer.
    pub stall: Duration,
    /// The keys of the Standard Webhooks signature, one of which must match. If there are any, a delivery without a
    /// valid signature is answered 401, and an invalid CloudEvent 400.
    pub secrets: Vec<WebhookKey>,
    /// The credentials that decrypt pushes in WeChat's own form. With them, a push that cannot be verified or decrypted
    /// is answered 403.
    pub credentials: Option<Credentials>,
    /// A header that only the relay sends. With it, every other request is answered 200 with a sentence, and not received.
    pub marker: Option<(HeaderName, HeaderValue)>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            reply: None,
            status: StatusCode::OK,
            fail: 0,
            stall: Duration::ZERO,
            secrets: Vec::new(),
            credentials: None,
            marker: None,
        }
    }
}

/// A running sink; dropped, it closes its listener and all connections.
pub struct Sink {
    pub address: SocketAddr,
    /// The received deliveries, verifications included. At 4096 unread ones the sink stops answering.
    pub received: mpsc::Receiver<ReceivedDelivery>,
    state: Arc<SinkState>,
    /// The accept loop, which owns the connections; aborted on drop.
    _serving: JoinSet<()>,
}

impl Sink {
    /// Changes the status of all further answers.
    pub fn set_status(&self, status: StatusCode) {
        self.state.status.store(status.as_u16(), Ordering::Relaxed);
    }

    /// Answers the next `count` deliveries with 503.
    pub fn fail_next(&self, count: u32) {
        self.state.failing.store(count, Ordering::Relaxed);
    }
}

struct SinkState {
    options: Options,
    status: AtomicU16,
    failing: AtomicU32,
    deliveries: mpsc::Sender<ReceivedDelivery>,
}

/// Binds the address and serves.
///
/// # Errors
/// If the address is in use, or is not an address of this machine.
pub async fn start(options: Options) -> anyhow::Result<Sink> {
    let bound = server::bind(&Listen::Tcp(options.listen)).await;
    let problem = || format!("can't listen on {}", options.listen);
    let bound =
        bound.with_context(|| fixable(problem(), "stop another sink that runs, or listen on port 0 for a free one"))?;
    let address = bound.iter().find_map(Bound::tcp_address).unwrap_or(options.listen);
    let (deliveries, received) = mpsc::channel(MAX_UNREAD);
    let state = Arc::new(SinkState {
        status: AtomicU16::new(options.status.as_u16()),
        failing: AtomicU32::new(options.fail),
        options,
        deliveries,
    });
    let served = Arc::clone(&state);
    let service = tower::service_fn(move |request| {
        let state = Arc::clone(&served);
        async move { Ok::<_, Infallible>(handle(&state, request).await) }
    });
    let mut serving = JoinSet::new();
    let never = CancellationToken::new();
    serving.spawn(server::serve(bound, None, service, server::Options::default(), never, Duration::ZERO));
    Ok(Sink { address, received, state, _serving: serving })
}

async fn handle(state: &SinkState, request: Request<Incoming>) -> Response<Full<Bytes>> {
    let (head, body) = request.into_parts();
    if let Some((name, value)) = &state.options.marker
        && head.headers.get(name) != Some(value)
    {
        let text = "This is a stand-in of the demo. It takes deliveries of its relay alone.\n".to_owned();
        return response(StatusCode::OK, Some(("text/plain", text)));
    }
    #[expect(clippy::disallowed_methods, reason = "bounded by Limited")]
    let Ok(body) = Limited::new(body, MAX_BODY).collect().await else {
        return response(StatusCode::PAYLOAD_TOO_LARGE, None);
    };
    let mut delivery = ReceivedDelivery {
        at: UnixMillis::now(),
        path: head.uri.path().to_owned(),
        query: head.uri.query().unwrap_or_default().to_owned(),
        method: head.method,
        headers: head.headers,
        body: body.to_bytes(),
        kind: "unknown".to_owned(),
        opened: None,
        check: SignatureCheck::Unchecked,
        status: 0,
        replied: false,
    };
    let (status, reply) = match delivery.method {
        Method::GET => state.verification(&mut delivery),
        _ => state.push(&mut delivery),
    };
    delivery.status = status.as_u16();
    delivery.replied = reply.is_some();
    // An error means that the receiver is gone: the sink is being dropped.
    state.deliveries.send(delivery).await.ok();
    sleep(state.options.stall).await;
    response(status, reply)
}

type SinkReply = Option<(&'static str, String)>;

fn with_remedy(error: &OpenError) -> String {
    error.remedy().map_or_else(|| error.to_string(), |remedy| format!("{error}; {remedy}"))
}

impl SinkState {
    /// Answers WeChat's verification. Without credentials it returns every echostr: this is a tool for testing.
    fn verification(&self, delivery: &mut ReceivedDelivery) -> (StatusCode, SinkReply) {
        delivery.kind = "verification".to_owned();
        let Ok(query) = Query::parse(&delivery.query) else { return (StatusCode::BAD_REQUEST, None) };
        let Some(credentials) = &self.options.credentials else {
            return match query.echostr {
                Some(echostr) => (StatusCode::OK, Some(("text/plain; charset=utf-8", echostr.into_owned()))),
                None => (StatusCode::BAD_REQUEST, None),
            };
        };
        match credentials.verify_url(&query) {
            Ok(echostr) => {
                delivery.check = SignatureCheck::Good;
                (StatusCode::OK, Some(("text/plain; charset=utf-8", echostr.to_owned())))
            }
            Err(error) => {
                delivery.check = SignatureCheck::Bad(with_remedy(&error));
                (StatusCode::FORBIDDEN, None)
            }
        }
    }

    fn push(&self, delivery: &mut ReceivedDelivery) -> (StatusCode, SinkReply) {
        let credentials = self.options.credentials.as_ref();
        let content = DeliveryContent::read(&delivery.query, &delivery.body, credentials);
        delivery.kind = content.kind();
        delivery.opened = content.opened();
        if let DeliveryContent::Refused(error) = &content {
            delivery.check = SignatureCheck::Bad(with_remedy(error));
            return (StatusCode::FORBIDDEN, None);
        }
        if let DeliveryContent::Opened(_) = &content {
            delivery.check = SignatureCheck::Good;
        }
        if !self.options.secrets.is_empty() {
            if let Err(error) = webhook::verify(&self.options.secrets, &delivery.headers, &delivery.body, delivery.at) {
                delivery.check = SignatureCheck::Bad(error.to_string());
                return (StatusCode::UNAUTHORIZED, None);
            }
            if let Err(error) = content.check_cloud_event(&delivery.headers) {
                delivery.check = SignatureCheck::Bad(error.to_string());
                return (StatusCode::BAD_REQUEST, None);
            }
            delivery.check = SignatureCheck::Good;
        }
        let status = self.next_status();
        let text = self.options.reply.as_deref().filter(|_| status.is_success());
        let salt = simulate::salt().ok();
        let reply = text.zip(salt).and_then(|(text, salt)| content.reply(text, credentials, &salt));
        (status, reply)
    }

    fn next_status(&self) -> StatusCode {
        let one_less = |left: u32| left.checked_sub(1);
        if self.failing.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_less).is_ok() {
            return StatusCode::SERVICE_UNAVAILABLE;
        }
        StatusCode::from_u16(self.status.load(Ordering::Relaxed)).unwrap_or_default()
    }
}

fn response(status: StatusCode, reply: SinkReply) -> Response<Full<Bytes>> {
    let (kind, body) = reply.unwrap_or_default();
    let mut response = Response::new(Full::from(body));
    *response.status_mut() = status;
    if !kind.is_empty() {
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    }
    response
}
