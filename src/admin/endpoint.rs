//! One type of handler for all routes: axum makes some kilobytes of code for each type.

use std::pin::Pin;

use axum::body::Bytes;
use axum::extract::{FromRequest, FromRequestParts, Path, Query, Request};
use axum::handler::Handler;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{Context, Error};

pub(super) type Work<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// Answers requests to a route.
#[derive(Clone, Copy)]
pub(super) struct Endpoint(pub(super) fn(Context, Request) -> Work<Result<Response, Error>>);

impl Handler<(), Context> for Endpoint {
    type Future = Work<Response>;

    fn call(self, request: Request, context: Context) -> Self::Future {
        let answer = (self.0)(context, request);
        Box::pin(async { answer.await.unwrap_or_else(IntoResponse::into_response) })
    }
}

/// An async function of this module as an [`Endpoint`].
macro_rules! endpoint {
    ($handler:path) => {
        $crate::admin::endpoint::Endpoint(|context, request| Box::pin($handler(context, request)))
    };
}
pub(super) use endpoint;

/// The `{..}` in the path of a route.
pub(super) async fn parameter(request: &mut Request) -> Result<String, Error> {
    let (mut head, body) = std::mem::take(request).into_parts();
    let found = Path::from_request_parts(&mut head, &()).await;
    *request = Request::from_parts(head, body);
    let Path(text) = found?;
    Ok(text)
}

/// The query. Unknown and repeated keys are errors where the type says so.
pub(super) fn query<T: DeserializeOwned>(request: &Request) -> Result<T, Error> {
    Ok(Query::try_from_uri(request.uri())?.0)
}

/// The body, which admission has received.
pub(super) async fn body(request: Request) -> Result<Bytes, Error> {
    Bytes::from_request(request, &()).await.map_err(|_| Error::Internal)
}

/// An answer in JSON.
pub(super) fn json(value: &impl Serialize) -> Result<Response, Error> {
    serde_json::to_vec(value).map(json_bytes).map_err(|_| Error::Internal)
}

fn json_bytes(bytes: Vec<u8>) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], bytes).into_response()
}
