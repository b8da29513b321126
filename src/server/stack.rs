//! The layers around a public service, each with its reason. Only what any HTTP service has; what only a relay has is a
//! function of the relay.

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

/// A response whose body has one type, whatever made it.
pub type BoxedResponse = Response<UnsyncBoxBody<Bytes, BoxError>>;

/// How much is accepted.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// The most concurrent requests, over all connections.
    pub concurrency: usize,
    /// How long one request may take, its body's arrival included; longer than any answer is delayed on purpose.
    pub deadline: Duration,
}

impl Limits {
    /// What suits pushes: WeChat hangs up after 5 s, and a reply window ends after 14 s, so nobody
    /// receives an answer after 15 s; 500 pushes a second that each await a slow reply are 2048 concurrent requests.
    pub const PUSHES: Self = Self { concurrency: 2048, deadline: Duration::from_secs(15) };
}

/// Puts the layers around `service`; the first one listed sees a request first and its response last. There is always
/// a response; the error type only says what load-shed could return.
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
        // Outermost, so that every response has it, errors too: no browser may guess a content type.
        .layer(SetResponseHeaderLayer::if_not_present(
            header::X_CONTENT_TYPE_OPTIONS,
            HeaderValue::from_static("nosniff"),
        ))
        // Around all that can panic: a bug costs one request, not its connection. The panic hook has logged it.
        .layer(CatchPanicLayer::custom(|_| word(StatusCode::INTERNAL_SERVER_ERROR, "error")))
        // Above load-shed and the deadline, which refuse with an `Err`: hyper would close on it without an answer.
        .map_result(|answer: Result<_, BoxError>| {
            Ok(answer.unwrap_or_else(|_| word(StatusCode::SERVICE_UNAVAILABLE, "busy")))
        })
        // Above the limit: over it, refuse at once; WeChat tries again, and waiting here would outlast its 5 s.
        .load_shed()
        // Global, as each connection has its own clone of the service.
        .layer(GlobalConcurrencyLimitLayer::new(concurrency))
        // Innermost, so that it releases the limit's permit: a slow body must not keep it.
        .layer(TimeoutLayer::new(deadline))
        .service(service)
}

/// An error's whole body: one word, which tells an unauthenticated client nothing.
fn word(status: StatusCode, word: &'static str) -> Response<Full<Bytes>> {
    let mut answer = Response::new(Full::from(word));
    *answer.status_mut() = status;
    let text = HeaderValue::from_static("text/plain; charset=utf-8");
    answer.headers_mut().insert(header::CONTENT_TYPE, text);
    answer
}
