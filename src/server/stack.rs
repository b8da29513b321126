//! The layers around a public service, each with its why. For what any HTTP service has; what only a relay has is a
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

/// What leaves the layers.
pub type Answer = Response<UnsyncBoxBody<Bytes, BoxError>>;

/// How much is taken on.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// The most requests worked on at a time, over all connections.
    pub concurrency: usize,
    /// How long one request may take, its body's arrival included; longer than any answer is held back on purpose.
    pub deadline: Duration,
}

impl Limits {
    /// What suits pushes: WeChat hangs up after 5 s, and a reply window ends after 14 s, so an answer after 15 s is for
    /// nobody; 2048 at a time is what 500 pushes a second make when each awaits a slow reply.
    pub const PUSHES: Self = Self { concurrency: 2048, deadline: Duration::from_secs(15) };
}

/// Puts the layers around `service`; the first one listed sees a request first and its answer last. There is always
/// an answer; the error type only says what load-shed could do.
pub fn around<S>(
    service: S,
    limits: Limits,
) -> impl Service<Request<Incoming>, Response = Answer, Error = BoxError, Future: Send> + Clone + Send + Sync + 'static
where
    S: Service<Request<Incoming>, Response = Response<Full<Bytes>>, Error = Infallible> + Clone + Send + Sync + 'static,
    S::Future: Send,
{
    let Limits { concurrency, deadline } = limits;
    ServiceBuilder::new()
        // Outermost, so that every answer has it, errors too: nobody may take a body for what it is not.
        .layer(SetResponseHeaderLayer::if_not_present(
            header::X_CONTENT_TYPE_OPTIONS,
            HeaderValue::from_static("nosniff"),
        ))
        // Around all that can go wrong: a bug costs one request, not its connection. The panic hook has told the log.
        .layer(CatchPanicLayer::custom(|_| word(StatusCode::INTERNAL_SERVER_ERROR, "error")))
        // Above load-shed and the deadline, which refuse with an `Err`: hyper would close on it without an answer.
        .map_result(|answer: Result<_, BoxError>| {
            Ok(answer.unwrap_or_else(|_| word(StatusCode::SERVICE_UNAVAILABLE, "busy")))
        })
        // Above the limit: over it, refuse at once; WeChat tries again, and waiting here would outlast its 5 s.
        .load_shed()
        // Global, as each connection has its own clone of the service.
        .layer(GlobalConcurrencyLimitLayer::new(concurrency))
        // Innermost, so that it gives the limit's place back: a body that trickles in must not hold it.
        .layer(TimeoutLayer::new(deadline))
        .service(service)
}

/// An error's whole body: one bland word, which tells a stranger nothing.
fn word(status: StatusCode, word: &'static str) -> Response<Full<Bytes>> {
    let mut answer = Response::new(Full::from(word));
    *answer.status_mut() = status;
    let text = HeaderValue::from_static("text/plain; charset=utf-8");
    answer.headers_mut().insert(header::CONTENT_TYPE, text);
    answer
}
