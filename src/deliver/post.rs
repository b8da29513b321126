//! POSTs to the collector of traces.
//!
//! It uses a client like those of the targets, with the same bounds: a timeout for the whole exchange, a cap on the
//! answer, no redirects.

use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, USER_AGENT};
use http::{HeaderMap, HeaderValue, Method, Request, Uri};
use tokio::time::Instant;

use super::client::{
    ClientError, ConnectOptions, ExchangeError, PooledClient, RequestBody, SystemRoots, TlsOptions, read,
};
use super::{AGENT, ANSWER_CAP, Outcome, outcome};
use crate::clock::UnixMillis;

/// A client for one URL.
#[derive(Debug)]
pub struct PostClient {
    client: PooledClient,
    url: Uri,
    headers: HeaderMap,
    timeout: Duration,
}

/// The answer to a POST.
#[derive(Debug)]
pub struct PostAnswer {
    /// The status.
    pub status: u16,
    /// The `Retry-After` of an answer other than 2xx and 410.
    pub retry_after: Option<Duration>,
    /// The part of the body that was read.
    pub body: Vec<u8>,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum PostError {
    /// No connection, or a broken one.
    #[error(transparent)]
    Exchange(#[from] ExchangeError),
    /// It took too long.
    #[error("no answer within {0:?}")]
    Late(Duration),
}

impl PostClient {
    /// Connections to `url`, which every request goes to with these headers. https is verified by the system's
    /// certificate authorities.
    pub fn new(url: Uri, headers: HeaderMap, timeout: Duration) -> Result<Self, ClientError> {
        let (https, tls) = (url.scheme_str() == Some("https"), TlsOptions::default());
        let client = PooledClient::new(
            &ConnectOptions { https, timeout, tls: &tls, proxy: None, deny_private: false },
            &SystemRoots::default(),
        )?;
        Ok(Self { client, url, headers, timeout })
    }

    /// Sends a body and reads the answer.
    pub async fn send(&self, content_type: &'static str, body: Bytes) -> Result<PostAnswer, PostError> {
        let deadline = Instant::now() + self.timeout;
        let mut request = Request::new(RequestBody::new(body));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = self.url.clone();
        let headers = request.headers_mut();
        headers.insert(USER_AGENT, AGENT);
        headers.extend(self.headers.clone());
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
        let sent = tokio::time::timeout_at(deadline, self.client.send(request)).await;
        let response = sent.map_err(|_| PostError::Late(self.timeout))??;
        let status = response.status();
        let retry_after = match outcome::classify(status, response.headers(), UnixMillis::now()) {
            Outcome::Retry { after } => after,
            Outcome::Delivered | Outcome::Reject => None,
        };
        let body = read(response.into_body(), ANSWER_CAP, deadline).await;
        Ok(PostAnswer { status: status.as_u16(), retry_after, body: body.bytes })
    }
}
