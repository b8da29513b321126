//! The admin API of a running relay, as the commands use it.

use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_TYPE, HOST};
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};

use crate::config::Config;
use crate::server::Listen;

/// The timeout of a GET.
const TIMEOUT: Duration = Duration::from_secs(5);
/// The timeout of an action: retrying a million dead letters takes minutes.
const ACTION_TIMEOUT: Duration = Duration::from_secs(600);
const ANSWER_CAP: usize = 16 << 20;

/// The admin listener of the relay that runs with a configuration.
pub(super) struct Api<'c> {
    config: &'c Config,
}

impl<'c> Api<'c> {
    /// Fails if the listener's address cannot be known from outside.
    pub(super) fn of(config: &'c Config) -> anyhow::Result<Self> {
        let listen = &config.admin.listen;
        ensure!(
            matches!(listen, Listen::Unix(_)) || listen.reachable().is_some(),
            "admin.listen = \"{listen}\" is no address to connect to; set a TCP address with a port, or a Unix socket"
        );
        Ok(Self { config })
    }

    /// Posts an action; fails with the relay's error if the relay refuses it.
    pub(super) async fn post(&self, path: &str, body: Option<&Value>) -> anyhow::Result<Value> {
        self.succeed(Method::POST, path, body).await
    }

    /// Gets a JSON document; fails with the relay's error if the relay refuses.
    pub(super) async fn get<T: DeserializeOwned>(&self, path: &str) -> anyhow::Result<T> {
        let answer = self.succeed(Method::GET, path, None).await?;
        serde_json::from_value(answer)
            .with_context(|| format!("unexpected answer to {path}: is the relay's version another?"))
    }

    async fn succeed(&self, method: Method, path: &str, body: Option<&Value>) -> anyhow::Result<Value> {
        let (status, answer) = self.call(method, path, body).await?;
        let error = answer["error"].as_str().unwrap_or("no reason given");
        ensure!(status.is_success(), "the relay answered {status}: {error}");
        Ok(answer)
    }

    /// One request, one JSON response; a text response becomes a JSON string.
    #[expect(clippy::disallowed_methods, reason = "the body is limited")]
    pub(super) async fn call(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> anyhow::Result<(StatusCode, Value)> {
        let limit = if method == Method::GET { TIMEOUT } else { ACTION_TIMEOUT };
        let exchange = async {
            let answer = self.send(method, path, body).await?;
            let status = answer.status();
            let read = Limited::new(answer.into_body(), ANSWER_CAP).collect().await;
            let text = read.map_err(|error| anyhow::anyhow!(error))?.to_bytes();
            let text = String::from_utf8_lossy(&text);
            Ok((status, serde_json::from_str(&text).unwrap_or_else(|_| Value::String(text.trim().to_owned()))))
        };
        tokio::time::timeout(limit, exchange).await.context("the relay does not answer")?
    }

    /// Gets a response whose body may be endless, such as a stream of activity.
    pub(super) async fn open(&self, path: &str) -> anyhow::Result<Response<Incoming>> {
        let answer = self.send(Method::GET, path, None);
        tokio::time::timeout(TIMEOUT, answer).await.context("the relay does not answer")?
    }

    /// Sends a request on a connection of its own, which lives as long as the response is read.
    async fn send(&self, method: Method, path: &str, body: Option<&Value>) -> anyhow::Result<Response<Incoming>> {
        let (mut sender, connection) = http1::handshake(TokioIo::new(self.connect().await?)).await?;
        tokio::spawn(connection);
        let mut request = Request::builder().method(method).uri(path).header(HOST, "localhost");
        if let Some(token) = &self.config.admin.token {
            request = request.header(AUTHORIZATION, format!("Bearer {}", token.expose()));
        }
        let body = body.map_or_else(Bytes::new, |body| body.to_string().into());
        let request = request.header(CONTENT_TYPE, "application/json").body(Full::new(body))?;
        Ok(sender.send_request(request).await?)
    }

    async fn connect(&self) -> anyhow::Result<Box<dyn AdminStream>> {
        let listen = &self.config.admin.listen;
        let unreachable = || unreachable(listen);
        Ok(match (listen, listen.reachable()) {
            (Listen::Unix(socket), _) => Box::new(UnixStream::connect(socket).await.with_context(unreachable)?),
            (_, Some(address)) => Box::new(TcpStream::connect(address).await.with_context(unreachable)?),
            (_, None) => bail!(unreachable()),
        })
    }
}

/// A connection over TCP or a Unix socket.
trait AdminStream: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> AdminStream for T {}

fn unreachable(listen: &Listen) -> String {
    format!("no relay answers at admin.listen = \"{listen}\"; is it running, with this configuration?")
}
