//! HTTPS to an authority: each exchange within a limit, and no more of an answer than an authority has to say.

use std::pin::Pin;
use std::time::Duration;

use bytes::Bytes;
use http::Request;
use http_body_util::Limited;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client as Pool;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use instant_acme::{BodyWrapper, BytesResponse, Error, HttpClient};
use tokio::time::timeout;

use super::Settings;
use crate::deliver::{ClientError, ExchangeError, TlsOptions, tls_config};

/// The longest that setting up a connection may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// The longest until an answer begins.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// The most bytes of an answer's head.
const HEAD_CAP: usize = 32 << 10;
/// The most bytes of an answer's body; a chain takes some thousand.
const ANSWER_CAP: usize = 256 << 10;

/// The connections to one authority.
pub(super) struct Client(Pool<HttpsConnector<HttpConnector>, BodyWrapper<Bytes>>);

impl Client {
    pub(super) fn new(settings: &Settings) -> Result<Self, ClientError> {
        let tls = tls_config(&TlsOptions { ca: settings.ca.clone(), client: None })?;
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        tcp.set_connect_timeout(Some(CONNECT_TIMEOUT));
        let connector = HttpsConnectorBuilder::new().with_tls_config(tls).https_only().enable_http1();
        let pool =
            Pool::builder(TokioExecutor::new()).http1_max_buf_size(HEAD_CAP).build(connector.wrap_connector(tcp));
        Ok(Self(pool))
    }
}

impl HttpClient for Client {
    fn request(
        &self,
        request: Request<BodyWrapper<Bytes>>,
    ) -> Pin<Box<dyn Future<Output = Result<BytesResponse, Error>> + Send>> {
        let answer = self.0.request(request);
        Box::pin(async move {
            match timeout(ANSWER_TIMEOUT, answer).await {
                Ok(Ok(answer)) => Ok(answer.map(|body| Limited::new(body, ANSWER_CAP)).into()),
                Ok(Err(error)) => Err(Error::Other(Box::new(ExchangeError::from(error)))),
                Err(late) => Err(Error::Other(Box::new(late))),
            }
        })
    }
}
