//! The layers around a public service, each with its reason. Only layers that suit any HTTP service are here.

use std::convert::Infallible;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use tower::limit::GlobalConcurrencyLimitLayer;
use tower::timeout::TimeoutLayer;
use tower::{BoxError, Service, ServiceBuilder};
use tower_http::body::UnsyncBoxBody;
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::set_header::SetResponseHeaderLayer;

/// A response whose body has the same type in every layer.
pub type BoxedResponse = Response<UnsyncBoxBody<Bytes, BoxError>>;

/// The limits of a public service.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// The most concurrent requests, over all connections.
    pub concurrency: usize,
    /// The timeout of one request, the arrival of its body included; longer than any intended delay of an answer.
    pub deadline: Duration,
}

impl Limits {
    /// The limits for pushes: WeChat hangs up after 5 s, and a reply window ends after 14 s, so nobody receives an
    /// answer after 15 s; 450 pushes a second that each wait the default 4.5 s for a reply are 2025 concurrent
    /// requests.
    pub const PUSHES: Self = Self { concurrency: 2048, deadline: Duration::from_secs(15) };
}

/// Puts the layers around `service`; the first one listed gets a request first and its response last. There is always a
/// response; the error type is only that of load-shed.
pub fn around<S>(
    service: S,
    limits: Limits,
) -> impl Service<Request<Incoming>, Response = BoxedResponse, Error = BoxError, Future: Send> + Clone + Send + Sync + 'static
where
    S: Service<Request<Incoming>, Response = Response<Full<Bytes>>, Error = Infallible> + Clone + Send + Sync + 'static,
    S::Future: Send,
{
    let Limits { concurrency, deadline } = limits;
    ServiceBuilder::new()
        // Outermost, so that every response has the header, errors too: no browser may guess a content type.
        .layer(SetResponseHeaderLayer::if_not_present(
            header::X_CONTENT_TYPE_OPTIONS,
            HeaderValue::from_static("nosniff"),
        ))
        // Around all that can panic: a bug costs one request, not its connection. The panic hook has logged it.
        .layer(CatchPanicLayer::custom(|_| word(StatusCode::INTERNAL_SERVER_ERROR, "error")))
        // Above load-shed and the deadline, which return an `Err`: hyper would close the connection without an answer.
        .map_result(|answer: Result<_, BoxError>| {
            Ok(answer.unwrap_or_else(|_| word(StatusCode::SERVICE_UNAVAILABLE, "busy")))
        })
        // Above the limit: over it, requests are refused at once. WeChat tries again; a wait here could exceed its 5 s.
        .load_shed()
        // Global, as each connection has its own clone of the service.
        .layer(GlobalConcurrencyLimitLayer::new(concurrency))
        // Innermost, so that the timeout releases the limit's permit, which a slow body must not keep.
        .layer(TimeoutLayer::new(deadline))
        .service(service)
}

/// An error response: its body is one word, which reveals nothing to an unauthenticated client.
fn word(status: StatusCode, word: &'static str) -> Response<Full<Bytes>> {
    let mut answer = Response::new(Full::from(word));
    *answer.status_mut() = status;
    let text = HeaderValue::from_static("text/plain; charset=utf-8");
    answer.headers_mut().insert(header::CONTENT_TYPE, text);
    answer
}
