//! HTTPS to an authority. Each exchange has a timeout, each response a size limit.

use std::pin::Pin;
use std::time::Duration;

use bytes::Bytes;
use http::Request;
use http::uri::Scheme;
use http_body_util::{BodyExt as _, Limited};
use instant_acme::{BodyWrapper, BytesResponse, Error, HttpClient};
use tokio::time::timeout;

use crate::deliver::{self, ClientError, ConnectOptions, RequestBody, SystemRoots, TlsOptions};
use crate::server::AcmeSettings;

const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// The most bytes of a response body; a chain has a few thousand.
const ANSWER_CAP: usize = 256 << 10;

/// The connections to one authority.
pub(super) struct Client(deliver::PooledClient);

impl Client {
    pub(super) fn new(settings: &AcmeSettings) -> Result<Self, ClientError> {
        let tls = TlsOptions { ca: settings.ca.clone(), client: None };
        let options =
            ConnectOptions { https: true, timeout: ANSWER_TIMEOUT, tls: &tls, proxy: None, deny_private: false };
        Ok(Self(deliver::PooledClient::new(&options, &SystemRoots::default())?))
    }
}

impl HttpClient for Client {
    fn request(
        &self,
        request: Request<BodyWrapper<Bytes>>,
    ) -> Pin<Box<dyn Future<Output = Result<BytesResponse, Error>> + Send>> {
        let client = self.0.clone();
        Box::pin(async move {
            // The directory may contain any URL.
            if request.uri().scheme() != Some(&Scheme::HTTPS) {
                return Err(Error::Str("the authority names a URL that is not https"));
            }
            match timeout(ANSWER_TIMEOUT, client.send(whole(request).await)).await {
                Ok(Ok(answer)) => Ok(answer.map(|body| Limited::new(body, ANSWER_CAP)).into()),
                Ok(Err(error)) => Err(Error::Other(Box::new(error))),
                Err(late) => Err(Error::Other(Box::new(late))),
            }
        })
    }
}

#[expect(clippy::disallowed_methods, reason = "the body is our own")]
async fn whole(request: Request<BodyWrapper<Bytes>>) -> Request<RequestBody> {
    let (parts, body) = request.into_parts();
    let Ok(body) = body.collect().await;
    Request::from_parts(parts, RequestBody::new(body.to_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_url_that_is_not_https_is_not_asked() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let tls = TlsOptions::default();
        let way = ConnectOptions { https: false, timeout: ANSWER_TIMEOUT, tls: &tls, proxy: None, deny_private: false };
        let client = Client(deliver::PooledClient::new(&way, &SystemRoots::default()).unwrap());
        let url = format!("http://{}/new-nonce", listener.local_addr().unwrap());
        let answer = client.request(Request::get(url).body(BodyWrapper::default()).unwrap()).await;
        assert!(answer.is_err_and(|error| error.to_string().contains("not https")));
        listener.set_nonblocking(true).unwrap();
        assert!(listener.accept().is_err(), "nobody has connected");
    }
}
