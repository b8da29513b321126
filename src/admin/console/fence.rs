//! Who may see a page or send a form, before any page runs.
//!
//! Cookies do not know ports, and other ports of one host are the same site, so `SameSite` is not the fence: the fence is
//! where the browser says that a request comes from, and for forms a token that only a page of the session has.

use std::net::IpAddr;
use std::sync::Arc;

use axum::body::{Body, to_bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::Response;
use subtle::ConstantTimeEq;

use super::frame::{self, Frame};
use super::see_other;
use super::session::{self, EndedSessions, Session};
use crate::admin::caller::{Caller, User};
use crate::admin::guard::{self, AccessControl};

/// The largest form: a selection of dead letters.
const MAX_FORM: usize = 64 << 10;

/// Shared by all pages.
#[derive(Clone)]
pub(super) struct Fence {
    pub(super) access: AccessControl,
    pub(super) ended: Arc<EndedSessions>,
    /// Names of this host besides addresses and `localhost`.
    hosts: Arc<[String]>,
    /// Seals the forms.
    key: Arc<[u8]>,
}

/// What a form has.
#[derive(Clone, Default)]
pub(super) struct Form(Arc<Vec<(String, String)>>);

/// The token of the forms of this page.
#[derive(Clone)]
pub(super) struct FormToken(pub(super) String);

impl Form {
    pub(super) fn of(request: &Request) -> Self {
        request.extensions().get().cloned().unwrap_or_default()
    }

    /// The first value of the key; empty if there is none.
    pub(super) fn get(&self, key: &'static str) -> &str {
        self.all(key).next().unwrap_or_default()
    }

    pub(super) fn all(&self, key: &'static str) -> impl Iterator<Item = &str> {
        self.0.iter().filter(move |(name, _)| name == key).map(|(_, value)| &**value)
    }
}

impl Fence {
    pub(super) fn new(access: AccessControl, hosts: &[String]) -> Self {
        Self { access, ended: Arc::default(), hosts: hosts.into(), key: session::random_key() }
    }

    fn users(&self) -> &[User] {
        self.access.users()
    }

    /// Whether `Host` names this host in a way that no other name can be made to lead to: an address is no name.
    /// Without a token only a loopback name will do, as for the API.
    fn is_our_host(&self, headers: &HeaderMap) -> bool {
        let Some(host) = guard::text(headers, &header::HOST) else { return false };
        if self.users().is_empty() {
            return guard::is_loopback(host);
        }
        let Ok(authority) = host.parse::<http::uri::Authority>() else { return false };
        let name = authority.host().trim_start_matches('[').trim_end_matches(']');
        name.parse::<IpAddr>().is_ok()
            || name.eq_ignore_ascii_case("localhost")
            || self.hosts.iter().any(|known| known.eq_ignore_ascii_case(name))
    }

    fn session(&self, headers: &HeaderMap) -> Option<Session> {
        session::find(headers, self.users(), &self.ended)
    }

    fn token(&self, nonce: &str) -> FormToken {
        FormToken(session::form_token(&self.key, nonce))
    }

    /// Reads a form, whose token must be that of the session.
    async fn form(&self, request: &mut Request, nonce: &str) -> Result<Form, StatusCode> {
        let body = std::mem::take(request.body_mut());
        let bytes = to_bytes(body, MAX_FORM).await.map_err(|_| StatusCode::PAYLOAD_TOO_LARGE)?;
        let pairs = form_pairs(&bytes);
        let form = Form(Arc::new(pairs));
        let expected = self.token(nonce).0;
        let is_ours = !self.key.is_empty() && bool::from(expected.as_bytes().ct_eq(form.get("form").as_bytes()));
        if is_ours { Ok(form) } else { Err(StatusCode::FORBIDDEN) }
    }
}

/// The pairs of `application/x-www-form-urlencoded`.
fn form_pairs(bytes: &[u8]) -> Vec<(String, String)> {
    let decoded = |text: &[u8]| {
        let spaced: Vec<u8> = text.iter().map(|byte| if *byte == b'+' { b' ' } else { *byte }).collect();
        percent_encoding::percent_decode(&spaced).decode_utf8_lossy().into_owned()
    };
    let pairs = bytes.split(|byte| *byte == b'&').filter(|pair| !pair.is_empty());
    pairs
        .map(|pair| {
            let at = pair.iter().position(|byte| *byte == b'=').unwrap_or(pair.len());
            (decoded(&pair[..at]), decoded(pair.get(at + 1..).unwrap_or_default()))
        })
        .collect()
}

/// Whether the browser says that a request comes from a page of ours, or for GET from no page at all. Programs that
/// say nothing may read, and change nothing.
fn is_from_here(method: &Method, headers: &HeaderMap) -> bool {
    let is_reading = matches!(*method, Method::GET | Method::HEAD);
    let site = guard::text(headers, &header::HeaderName::from_static("sec-fetch-site"));
    match (site, guard::text(headers, &header::ORIGIN)) {
        (Some("same-origin"), _) => true,
        (Some("none"), _) => is_reading,
        // A link elsewhere may lead here, but may not make a frame or an image of it.
        (Some(_), _) => {
            is_reading
                && headers.get("sec-fetch-mode").is_some_and(|mode| mode == "navigate")
                && headers.get("sec-fetch-dest").is_some_and(|dest| dest == "document")
        }
        (None, Some(origin)) => {
            let host = guard::text(headers, &header::HOST);
            origin.split_once("://").is_some_and(|(_, of)| Some(of) == host)
        }
        (None, None) => is_reading && !headers.contains_key(header::ORIGIN),
    }
}

/// Passes a request for a page on with its caller, or leads to the login.
pub(super) async fn admit(State(fence): State<Fence>, mut request: Request, next: Next) -> Response {
    if let Some(refused) = refusal(&fence, &request) {
        return refused;
    }
    let (caller, nonce) = if fence.users().is_empty() {
        (Caller::local(), String::new())
    } else if let Some(session) = fence.session(request.headers()) {
        let caller = Caller { name: Arc::clone(&session.user.name), role: session.user.role };
        let nonce = session.nonce.clone();
        request.extensions_mut().insert(session);
        (caller, nonce)
    } else if request.method() == Method::GET {
        let path = request.uri().path_and_query().map_or("/console/", |path| path.as_str());
        let encoded = percent_encoding::utf8_percent_encode(path, percent_encoding::NON_ALPHANUMERIC);
        return see_other(&format!("/console/login?next={encoded}"));
    } else {
        return see_other("/console/login");
    };
    let is_logout = request.uri().path() == "/console/logout";
    if request.method() != Method::GET && request.method() != Method::HEAD {
        if caller.is_viewer() && !is_logout {
            return refuse(&request, StatusCode::FORBIDDEN, frame::VIEWER);
        }
        match fence.form(&mut request, &nonce).await {
            Ok(form) => request.extensions_mut().insert(form),
            Err(status) => return refuse(&request, status, frame::OLD_FORM),
        };
    }
    request.extensions_mut().insert(caller);
    request.extensions_mut().insert(fence.token(&nonce));
    request.extensions_mut().insert(fence);
    next.run(request).await
}

/// The same for the login, which has no caller yet, and whose form has a token of its own.
pub(super) async fn admit_to_login(State(fence): State<Fence>, mut request: Request, next: Next) -> Response {
    if let Some(refused) = refusal(&fence, &request) {
        return refused;
    }
    if request.method() == Method::POST {
        match fence.form(&mut request, "login").await {
            Ok(form) => request.extensions_mut().insert(form),
            Err(status) => return refuse(&request, status, frame::OLD_FORM),
        };
        *request.body_mut() = Body::empty();
    }
    request.extensions_mut().insert(fence.token("login"));
    request.extensions_mut().insert(fence);
    next.run(request).await
}

fn refusal(fence: &Fence, request: &Request) -> Option<Response> {
    if !fence.is_our_host(request.headers()) {
        return Some(refuse(request, StatusCode::FORBIDDEN, frame::OTHER_HOST));
    }
    if !is_from_here(request.method(), request.headers()) {
        return Some(refuse(request, StatusCode::FORBIDDEN, frame::OTHER_PAGE));
    }
    None
}

fn refuse(request: &Request, status: StatusCode, why: (&'static str, &'static str)) -> Response {
    Frame::bare(request).refusal(status, why)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_accepted(method: &Method, headers: &[(&'static str, &'static str)]) -> bool {
        let headers = headers.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect();
        is_from_here(method, &headers)
    }

    #[test]
    fn a_form_comes_from_a_page_of_ours() {
        let host = ("host", "127.0.0.1:9180");
        let accepted = |headers: &[_]| is_accepted(&Method::POST, headers);
        assert!(accepted(&[host, ("sec-fetch-site", "same-origin")]));
        assert!(accepted(&[host, ("origin", "http://127.0.0.1:9180")]), "an older browser");
        for site in ["none", "same-site", "cross-site"] {
            assert!(!accepted(&[host, ("sec-fetch-site", site), ("origin", "http://127.0.0.1:9180")]), "{site}");
        }
        for origin in ["http://127.0.0.1:8000", "null", "http://evil.example"] {
            assert!(!accepted(&[host, ("origin", origin)]), "{origin}");
        }
        assert!(!accepted(&[host]), "nothing tells where it is from");
    }

    #[test]
    fn a_page_is_opened_by_hand_or_by_a_link_but_in_no_frame() {
        let accepted = |headers: &[_]| is_accepted(&Method::GET, headers);
        assert!(accepted(&[("sec-fetch-site", "none")]) && accepted(&[]));
        let link = [("sec-fetch-site", "cross-site"), ("sec-fetch-mode", "navigate"), ("sec-fetch-dest", "document")];
        assert!(accepted(&link));
        assert!(!accepted(&[link[0], link[1], ("sec-fetch-dest", "iframe")]));
        assert!(!accepted(&[("sec-fetch-site", "same-site"), ("sec-fetch-mode", "no-cors")]));
    }

    #[test]
    fn a_form_is_read_as_browsers_write_it() {
        let pairs = form_pairs("a=1+2&b=%E5%BE%85%26&c&=d&&e=f=g".as_bytes());
        let expected = [("a", "1 2"), ("b", "待&"), ("c", ""), ("", "d"), ("e", "f=g")];
        assert_eq!(pairs, expected.map(|(name, value)| (name.to_owned(), value.to_owned())));
    }
}
