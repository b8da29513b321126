//! Access control of the API.
//!
//! With tokens every request must have one, wrong ones are counted (`failures.rs`), and who has a viewer's may only read.
//! Without any the listener is on loopback or a Unix socket, and the threat is a web page in a browser of this machine. A
//! page whose name resolves to 127.0.0.1 (DNS rebinding) still sends its own name in Host; a page of another site is
//! recognised by Origin or Sec-Fetch-Site.

use std::net::IpAddr;
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::caller::{ADMIN, Caller, User, UserRole};
use super::failures::TokenFailures;
use super::{Error, Settings};
use crate::server::Peer;

/// The access check, with everyone who has a token.
#[derive(Clone)]
pub(super) struct AccessControl {
    users: Arc<[User]>,
    failures: Arc<TokenFailures>,
}

impl AccessControl {
    pub(super) fn new(settings: &Settings) -> Self {
        let admin = settings.token.iter().map(|token| User {
            name: ADMIN.into(),
            token: token.clone(),
            role: UserRole::Operator,
        });
        let users = admin.chain(settings.users.iter().cloned()).collect();
        Self { users, failures: Arc::new(TokenFailures::new()) }
    }

    pub(super) fn users(&self) -> &[User] {
        &self.users
    }

    /// The user whose token is sent by the console's form.
    pub(super) async fn login(&self, peer: Peer, token: &str) -> Result<User, Error> {
        match self.find(token) {
            Some(user) => Ok(user.clone()),
            None => Err(self.failed(peer).await),
        }
    }

    /// Compared with all of them, so that the time does not tell whose it is.
    fn find(&self, token: &str) -> Option<&User> {
        let mut found = None;
        for user in self.users.iter().filter(|user| user.token.matches(token)) {
            found = Some(user);
        }
        found
    }

    /// Counts a wrong token.
    async fn failed(&self, peer: Peer) -> Error {
        self.failures.record(peer).await.map_or(Error::Token, Error::TooManyTokens)
    }

    fn admits(&self, headers: &HeaderMap) -> Result<Caller, Error> {
        if self.users.is_empty() {
            return from_this_machine(headers).map(|()| Caller::local());
        }
        let found = bearer(headers).and_then(|sent| self.find(sent)).ok_or(Error::Token)?;
        Ok(Caller { name: Arc::clone(&found.name), role: found.role })
    }
}

/// Passes a request on, or refuses it.
pub(super) async fn check(State(access): State<AccessControl>, mut request: Request, next: Next) -> Response {
    match access.admits(request.headers()) {
        Ok(caller) if caller.is_viewer() && !matches!(*request.method(), Method::GET | Method::HEAD) => {
            Error::Viewer.into_response()
        }
        Ok(caller) => {
            request.extensions_mut().insert(caller);
            next.run(request).await
        }
        // A request without a token is not counted: it guesses nothing.
        Err(Error::Token) if request.headers().contains_key(header::AUTHORIZATION) => {
            access.failed(peer_of(&request)).await.into_response()
        }
        Err(error) => error.into_response(),
    }
}

/// Who sent a request.
pub(super) fn peer_of(request: &Request) -> Peer {
    request.extensions().get().copied().unwrap_or(Peer(None))
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
    // Browsers send no Origin with a plain GET, but Sec-Fetch-Site with every request.
    let is_cross_site = |site: &HeaderValue| !matches!(site.as_bytes(), b"none" | b"same-origin");
    if headers.get_all("sec-fetch-site").iter().any(is_cross_site) { Err(Error::Origin) } else { Ok(()) }
}

/// Whether `host` or `host:port` names this machine.
pub(super) fn is_loopback(authority: &str) -> bool {
    let Ok(authority) = authority.parse::<http::uri::Authority>() else { return false };
    let host = authority.host().trim_start_matches('[').trim_end_matches(']');
    host.eq_ignore_ascii_case("localhost") || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// A header that occurs exactly once: of two, a proxy in front may have checked the other.
pub(super) fn text<'h>(headers: &'h HeaderMap, name: &header::HeaderName) -> Option<&'h str> {
    let mut values = headers.get_all(name).iter();
    let value = values.next()?.to_str().ok()?;
    values.next().is_none().then_some(value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::secret::Secret;
    use crate::server::Listen;

    fn admits(token: Option<&str>, headers: &[(&'static str, &'static str)]) -> bool {
        let headers = headers.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect();
        let settings = Settings {
            listen: Listen::Systemd,
            token: token.map(Secret::new),
            users: Vec::new(),
            console: false,
            console_hosts: Vec::new(),
        };
        AccessControl::new(&settings).admits(&headers).is_ok()
    }

    #[test]
    fn a_token_is_required_and_nothing_else() {
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
    fn without_a_token_pages_of_other_sites_are_refused() {
        let admitted = |name, value| admits(None, &[("host", "localhost:9180"), (name, value)]);
        assert!(admitted("origin", "http://localhost:9180") && admitted("origin", "http://[::1]:3000"));
        assert!(!admitted("origin", "https://evil.example") && !admitted("origin", "null"));
        assert!(!admitted("origin", "http://localhost@evil.example") && !admitted("origin", "http://localhost/.evil"));
        assert!(admitted("sec-fetch-site", "none") && admitted("sec-fetch-site", "same-origin"));
        assert!(!admitted("sec-fetch-site", "cross-site") && !admitted("sec-fetch-site", "same-site"));
    }
}
