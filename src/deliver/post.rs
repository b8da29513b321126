//! POSTs to somebody who is no target: the collector of traces.
//!
//! Over a client like the targets', with the same bounds: a timeout for the whole, a cap on the answer, no redirects.

use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, USER_AGENT};
use http::{HeaderMap, HeaderValue, Method, Request, Uri};
use tokio::time::Instant;

use super::client::{Client, ClientError, ConnectOptions, ExchangeError, RequestBody, SystemRoots, TlsOptions, read};
use super::{AGENT, Outcome, outcome};
use crate::clock::UnixMillis;

/// Where it goes, and the connections there.
#[derive(Debug)]
pub struct Post {
    client: Client,
    url: Uri,
    headers: HeaderMap,
    timeout: Duration,
}

/// What came back.
#[derive(Debug)]
pub struct Posted {
    /// The status.
    pub status: u16,
    /// The answerer's `Retry-After`, if it did not take what it was sent.
    pub retry_after: Option<Duration>,
    /// The answer, as far as it was read.
    pub body: Vec<u8>,
}

/// Why nothing came back.
#[derive(Debug, thiserror::Error)]
pub enum PostError {
    /// No connection, or a broken one.
    #[error(transparent)]
    Exchange(#[from] ExchangeError),
    /// It took too long.
    #[error("no answer within {0:?}")]
    Late(Duration),
}

impl Post {
    /// Connections to `url`, which every request goes to with these headers. https is verified by the system's
    /// certificate authorities.
    pub fn new(url: Uri, headers: HeaderMap, timeout: Duration) -> Result<Self, ClientError> {
        let (https, tls) = (url.scheme_str() == Some("https"), TlsOptions::default());
        let client = Client::new(
            &ConnectOptions { https, timeout, tls: &tls, proxy: None, deny_private: false },
            &SystemRoots::default(),
        )?;
        Ok(Self { client, url, headers, timeout })
    }

    /// Sends that body and reads the answer.
    pub async fn send(&self, content_type: &'static str, body: Bytes) -> Result<Posted, PostError> {
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
        let retry_after = match outcome::judge(status, response.headers(), UnixMillis::now()) {
            Outcome::Retry { after } => after,
            Outcome::Delivered | Outcome::Reject => None,
        };
        let body = read(response.into_body(), deadline).await;
        Ok(Posted { status: status.as_u16(), retry_after, body: body.bytes })
    }
}
