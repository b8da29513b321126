//! Who may use the API.
//!
//! With a token: who sends it, and wrong ones are counted (`failures.rs`). Without one the listener is on loopback or a
//! Unix socket, and the danger is a web page in a browser of this machine: a page that resolves its own name to
//! 127.0.0.1 still says its own name in Host, and a page that posts from elsewhere says so in Origin or Sec-Fetch-Site.

use std::net::IpAddr;
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::Error;
use super::failures::Failures;
use crate::secret::Secret;
use crate::server::Peer;

/// The guard, with the token it asks for.
#[derive(Clone)]
pub(super) struct Guard {
    token: Option<Arc<Secret>>,
    failures: Arc<Failures>,
}

impl Guard {
    pub(super) fn new(token: Option<Secret>) -> Self {
        Self { token: token.map(Arc::new), failures: Arc::new(Failures::new()) }
    }

    fn admits(&self, headers: &HeaderMap) -> Result<(), Error> {
        match &self.token {
            Some(token) => bearer(headers).filter(|sent| token.matches(sent)).map(|_| ()).ok_or(Error::Token),
            None => from_this_machine(headers),
        }
    }
}

/// Lets a request through, or answers it.
pub(super) async fn check(State(guard): State<Guard>, request: Request, next: Next) -> Response {
    match guard.admits(request.headers()) {
        Ok(()) => next.run(request).await,
        // Who sends none does not guess.
        Err(Error::Token) if request.headers().contains_key(header::AUTHORIZATION) => {
            let peer = request.extensions().get::<Peer>().copied().unwrap_or(Peer(None));
            guard.failures.count(peer).await.map_or(Error::Token, Error::TooManyTokens).into_response()
        }
        Err(error) => error.into_response(),
    }
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    let (scheme, token) = text(headers, &header::AUTHORIZATION)?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

fn from_this_machine(headers: &HeaderMap) -> Result<(), Error> {
    if !text(headers, &header::HOST).is_some_and(is_loopback) {
        return Err(Error::Host);
    }
    let local_origin = |origin: &str| origin.split_once("://").is_some_and(|(_, host)| is_loopback(host));
    if headers.contains_key(header::ORIGIN) && !text(headers, &header::ORIGIN).is_some_and(local_origin) {
        return Err(Error::Origin);
    }
    // Browsers leave Origin out of a plain GET; this they send with every request.
    let from_elsewhere = |site: &HeaderValue| !matches!(site.as_bytes(), b"none" | b"same-origin");
    if headers.get_all("sec-fetch-site").iter().any(from_elsewhere) { Err(Error::Origin) } else { Ok(()) }
}

/// Whether `host` or `host:port` names the machine itself.
fn is_loopback(authority: &str) -> bool {
    let Ok(authority) = authority.parse::<http::uri::Authority>() else { return false };
    let host = authority.host().trim_start_matches('[').trim_end_matches(']');
    host.eq_ignore_ascii_case("localhost") || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// A header that stands there once: of two, somebody in front may have looked at the other.
fn text<'h>(headers: &'h HeaderMap, name: &header::HeaderName) -> Option<&'h str> {
    let mut values = headers.get_all(name).iter();
    let value = values.next()?.to_str().ok()?;
    values.next().is_none().then_some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn admits(token: Option<&str>, headers: &[(&'static str, &'static str)]) -> bool {
        let headers = headers.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect();
        Guard::new(token.map(Secret::new)).admits(&headers).is_ok()
    }

    #[test]
    fn a_token_is_asked_for_and_nothing_else() {
        let admitted = |value| admits(Some("t0ken"), &[("authorization", value), ("host", "relay.example")]);
        assert!(admitted("Bearer t0ken") && admitted("bearer t0ken"));
        assert!(!admitted("Bearer t0kem") && !admitted("Bearer") && !admitted("Basic t0ken") && !admitted("t0ken"));
        assert!(!admits(Some("t0ken"), &[("host", "127.0.0.1")]), "loopback is no token");
    }

    #[test]
    fn without_a_token_the_host_is_a_loopback_name() {
        for host in ["127.0.0.1:9180", "localhost", "LOCALHOST:1", "[::1]:9180", "127.8.9.10"] {
            assert!(admits(None, &[("host", host)]), "{host}");
        }
        for host in ["evil.example", "localhost.evil.example", "10.0.0.1:9180", "127.0.0.1.evil.example", "", "[::2]"] {
            assert!(!admits(None, &[("host", host)]), "{host}");
        }
        assert!(!admits(None, &[]));
    }

    #[test]
    fn without_a_token_no_page_of_another_site_gets_in() {
        let admitted = |name, value| admits(None, &[("host", "localhost:9180"), (name, value)]);
        assert!(admitted("origin", "http://localhost:9180") && admitted("origin", "http://[::1]:3000"));
        assert!(!admitted("origin", "https://evil.example") && !admitted("origin", "null"));
        assert!(!admitted("origin", "http://localhost@evil.example") && !admitted("origin", "http://localhost/.evil"));
        assert!(admitted("sec-fetch-site", "none") && admitted("sec-fetch-site", "same-origin"));
        assert!(!admitted("sec-fetch-site", "cross-site") && !admitted("sec-fetch-site", "same-site"));
    }
}
