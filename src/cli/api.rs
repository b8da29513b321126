//! The admin API of a running relay, as the commands use it.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context as _, ensure};
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

use super::fixable::fixable;
use crate::config::{AdminAccess, StoreAccess};
use crate::queue::Replica;
use crate::secret::Secret;
use crate::server::Listen;

/// The timeout of a GET.
const TIMEOUT: Duration = Duration::from_secs(5);
/// The timeout of an action: retrying a million dead letters takes minutes.
const ACTION_TIMEOUT: Duration = Duration::from_secs(600);
const ANSWER_CAP: usize = 16 << 20;

/// The admin listener of a running relay.
#[derive(Clone)]
pub(super) struct Api {
    address: AdminAddress,
    token: Option<Secret>,
    /// Why there is no token, where the configuration names one.
    token_problem: Option<String>,
}

/// Where an admin listener is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum AdminAddress {
    /// `admin.listen` of the configuration.
    Configured(Listen),
    /// `http://HOST:PORT`, as host and port.
    Url(String),
    /// `unix:/PATH`.
    Socket(PathBuf),
}

/// As it was given.
impl fmt::Display for AdminAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Configured(listen) => write!(f, "admin.listen = \"{listen}\""),
            Self::Url(authority) => write!(f, "http://{authority}"),
            Self::Socket(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// A URL, an address with a port, or a Unix socket.
impl FromStr for AdminAddress {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let expected = "expected a URL such as http://127.0.0.1:9180, or unix:/PATH";
        let text = text.trim();
        if let Some(path) = text.strip_prefix("unix:") {
            return if path.is_empty() { Err(expected) } else { Ok(Self::Socket(path.into())) };
        }
        if text.starts_with("https:") {
            return Err("the admin listener has no TLS: expected a URL such as http://127.0.0.1:9180");
        }
        let authority = text.strip_prefix("http://").unwrap_or(text).trim_end_matches('/');
        let authority: http::uri::Authority = authority.parse().map_err(|_| expected)?;
        let is_whole = !authority.host().is_empty() && !authority.as_str().contains('@');
        let port = authority.port_u16().unwrap_or(80);
        if is_whole && port > 0 { Ok(Self::Url(format!("{}:{port}", authority.host()))) } else { Err(expected) }
    }
}

impl Api {
    /// The relay that has this store open.
    pub(super) fn of(store: &StoreAccess) -> anyhow::Result<Self> {
        let admin = store.admin.clone().map_err(|problem| {
            fixable(
                format!("the relay has the store open, and its address is not known: {problem}"),
                "give it by --admin URL",
            )
        })?;
        Self::configured(admin)
    }

    /// The relay whose configuration has this `[admin]`. Fails if its address cannot be known from outside.
    pub(super) fn configured(AdminAccess { listen, token }: AdminAccess) -> anyhow::Result<Self> {
        ensure!(
            matches!(listen, Listen::Unix(_)) || listen.reachable().is_some(),
            "admin.listen = \"{listen}\" is no address to connect to; set a TCP address with a port, or a Unix socket"
        );
        let (token, token_problem) = token.map_or_else(|problem| (None, Some(problem)), |token| (token, None));
        Ok(Self { address: AdminAddress::Configured(listen), token, token_problem })
    }

    /// The relay at an address.
    pub(super) fn at(address: AdminAddress) -> Self {
        Self { address, token: None, token_problem: None }
    }

    pub(super) fn with_token(mut self, token: Option<Secret>) -> Self {
        self.token = token.or(self.token);
        self
    }

    /// Another replica, with the same token; `None` if it has not told its address.
    pub(super) fn of_replica(&self, replica: &Replica) -> Option<Self> {
        let address = replica.admin.as_ref()?.parse().ok()?;
        Some(Self { address, ..self.clone() })
    }

    /// Whether anything listens there.
    pub(super) async fn is_reachable(&self) -> bool {
        matches!(tokio::time::timeout(TIMEOUT, self.connect()).await, Ok(Ok(_)))
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
        if status.is_success() { Ok(answer) } else { Err(self.refusal(status, error)) }
    }

    /// The error for an answer that refuses.
    pub(super) fn refusal(&self, status: StatusCode, error: &str) -> anyhow::Error {
        let problem = format!("the relay answered {status}: {error}");
        if status != StatusCode::UNAUTHORIZED {
            return anyhow::Error::msg(problem);
        }
        let why = self.token_problem.as_ref().map(|why| format!("; its token cannot be read here: {why}"));
        let remedy = "give the relay's admin token by --admin-token-file FILE or $WXRELAY_ADMIN_TOKEN";
        fixable(problem + &why.unwrap_or_default(), remedy).into()
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
        if let Some(token) = &self.token {
            request = request.header(AUTHORIZATION, format!("Bearer {}", token.expose()));
        }
        let body = body.map_or_else(Bytes::new, |body| body.to_string().into());
        let request = request.header(CONTENT_TYPE, "application/json").body(Full::new(body))?;
        Ok(sender.send_request(request).await?)
    }

    async fn connect(&self) -> anyhow::Result<Box<dyn AdminStream>> {
        let unreachable = || unreachable(&self.address);
        let (socket, address) = match &self.address {
            AdminAddress::Socket(path) | AdminAddress::Configured(Listen::Unix(path)) => (Some(path), String::new()),
            AdminAddress::Url(authority) => (None, authority.clone()),
            AdminAddress::Configured(listen) => (None, listen.reachable().with_context(unreachable)?.to_string()),
        };
        Ok(match socket {
            Some(path) => Box::new(UnixStream::connect(path).await.with_context(unreachable)?),
            None => Box::new(TcpStream::connect(address).await.with_context(unreachable)?),
        })
    }
}

/// A connection over TCP or a Unix socket.
trait AdminStream: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> AdminStream for T {}

fn unreachable(address: &AdminAddress) -> String {
    let question = match address {
        AdminAddress::Configured(_) => "is it running, with this configuration?",
        AdminAddress::Url(_) | AdminAddress::Socket(_) => {
            "is it running, and is this the address of its admin listener?"
        }
    };
    format!("no relay answers at {address}; {question}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_a_url_an_address_or_a_socket() {
        for (text, shown) in [
            ("http://127.0.0.1:9180", "http://127.0.0.1:9180"),
            ("http://relay.example:9180/", "http://relay.example:9180"),
            ("[::1]:9180", "http://[::1]:9180"),
            ("localhost", "http://localhost:80"),
            (" unix:/run/x.sock", "unix:/run/x.sock"),
        ] {
            assert_eq!(text.parse::<AdminAddress>().map(|address| address.to_string()), Ok(shown.to_owned()));
        }
        for broken in ["", "unix:", "https://a:1", "http://", "http://a/b", "http://u@a:1", "a b", "a:0"] {
            assert!(broken.parse::<AdminAddress>().is_err(), "{broken}");
        }
    }
}
