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
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};

use crate::config::Config;
use crate::server::Listen;

/// For a question.
const PATIENCE: Duration = Duration::from_secs(5);
/// For a deed: reviving a million dead letters takes a while.
const LONG_PATIENCE: Duration = Duration::from_secs(600);
const ANSWER_CAP: usize = 16 << 20;

/// The admin listener of the relay that runs by a configuration.
pub(super) struct Api<'c> {
    config: &'c Config,
}

impl<'c> Api<'c> {
    /// Fails if the listener's address can't be known from outside.
    pub(super) fn of(config: &'c Config) -> anyhow::Result<Self> {
        let listen = &config.admin.listen;
        ensure!(
            matches!(listen, Listen::Unix(_)) || listen.reachable().is_some(),
            "admin.listen = \"{listen}\" tells no address to call; set a TCP address with a port, or a Unix socket"
        );
        Ok(Self { config })
    }

    /// A deed, and the relay's answer to it; fails with what it says when it refuses.
    pub(super) async fn post(&self, path: &str, body: Option<&Value>) -> anyhow::Result<Value> {
        let (status, answer) = self.call(Method::POST, path, body).await?;
        if !status.is_success() {
            bail!("the relay answered {status}: {}", answer["error"].as_str().unwrap_or("no reason given"));
        }
        Ok(answer)
    }

    /// One request, one JSON answer; a text answer comes as a JSON string.
    #[expect(clippy::disallowed_methods, reason = "the body is limited")]
    pub(super) async fn call(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> anyhow::Result<(StatusCode, Value)> {
        let patience = if method == Method::GET { PATIENCE } else { LONG_PATIENCE };
        let exchange = async {
            let answer = self.send(method, path, body).await?;
            let status = answer.status();
            let read = Limited::new(answer.into_body(), ANSWER_CAP).collect().await;
            let text = read.map_err(|error| anyhow::anyhow!(error))?.to_bytes();
            let text = String::from_utf8_lossy(&text);
            Ok((status, serde_json::from_str(&text).unwrap_or_else(|_| Value::String(text.trim().to_owned()))))
        };
        tokio::time::timeout(patience, exchange).await.context("the relay does not answer")?
    }

    /// A question, and the answer's head: its body comes as the relay says it, without end perhaps.
    pub(super) async fn open(&self, path: &str) -> anyhow::Result<Response<Incoming>> {
        let answer = self.send(Method::GET, path, None);
        tokio::time::timeout(PATIENCE, answer).await.context("the relay does not answer")?
    }

    /// Sends a request on a connection of its own, which lasts as long as the answer is read.
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

    async fn connect(&self) -> anyhow::Result<Box<dyn Wire>> {
        let listen = &self.config.admin.listen;
        let silent = || silent(listen);
        Ok(match (listen, listen.reachable()) {
            (Listen::Unix(socket), _) => Box::new(UnixStream::connect(socket).await.with_context(silent)?),
            (_, Some(address)) => Box::new(TcpStream::connect(address).await.with_context(silent)?),
            (_, None) => bail!(silent()),
        })
    }
}

/// A connection, whatever it is made of.
trait Wire: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Wire for T {}

fn silent(listen: &Listen) -> String {
    format!("no relay answers at admin.listen = \"{listen}\"; is it running, with this configuration?")
}
