//! Login callbacks and verification files: what WeChat allows only once per domain, shared by several clients.
//!
//! WeChat's login redirects a browser to one callback domain with a `code` and the client's own `state`. Each
//! [`Login`] is one path on that domain and one fixed URL: [`Logins::answer`] sends the browser there with a 303. No
//! request names a target, so there is no open redirect to close; nothing is stored, and no secret is needed. The
//! client's own check of its `state` stays in force.
//!
//! A [`VerifyFile`] is what WeChat's console asks for at the root of a domain; it is served byte for byte.
//!
//! Invariants: a Location begins with the configured URL; a code gets into no log, metric, page or header but that
//! Location; the push pipeline does not know this module.

mod page;
mod query;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use arc_swap::ArcSwap;
use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use tokio::time::Instant;

use crate::host;
use crate::metrics::{LoginMetrics, Metrics};
use crate::telemetry::LogThrottle;

pub use self::query::{DEFAULT_PASS, MAX_QUERY, Malformed, Passed, pass};

/// The most log lines in ten seconds, per login: every client can send any number of requests.
const LOG_LINES: u32 = 100;

/// One `[logins.NAME]` of the configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Login {
    /// Its name in the configuration.
    pub name: Arc<str>,
    /// Its path on the callback domain, without a trailing slash.
    pub path: String,
    /// The URL that a browser is sent to. It may have a query, but none of the keys in `pass`.
    pub to: String,
    /// The parameters that are passed on.
    pub pass: Vec<String>,
    /// The page that the error page links to.
    pub home: Option<String>,
}

/// A verification file of WeChat's console.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerifyFile {
    /// Its name, which is also its path below the root.
    pub name: String,
    pub content: Bytes,
}

/// `[logins.*]` and `server.verify_files`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    pub logins: Vec<Login>,
    pub verify_files: Vec<VerifyFile>,
}

/// The logins and verification files in use. A reload replaces them as a whole.
#[derive(Default)]
pub struct Logins {
    served: ArcSwap<Served>,
}

/// What is served at a path.
#[derive(Clone)]
enum Page {
    Login(Arc<ServedLogin>),
    VerifyFile(Bytes),
    /// A login that an earlier configuration had.
    Removed,
}

/// A login with the state that its requests share.
struct ServedLogin {
    login: Login,
    metrics: LoginMetrics,
    throttle: LogThrottle,
}

#[derive(Default)]
struct Served {
    by_path: HashMap<String, Page>,
}

impl Logins {
    /// Serves these from now on. The path of a removed login keeps its error page.
    pub fn apply(&self, settings: &Settings, metrics: &Metrics) {
        let mut by_path: HashMap<String, Page> =
            self.served.load().login_paths().map(|path| (path, Page::Removed)).collect();
        for login in &settings.logins {
            let metrics = metrics.login(&login.name);
            let (path, throttle) = (login.path.clone(), LogThrottle::at_most(LOG_LINES));
            by_path.insert(path, Page::Login(Arc::new(ServedLogin { login: login.clone(), metrics, throttle })));
        }
        for file in &settings.verify_files {
            by_path.insert(format!("/{}", file.name), Page::VerifyFile(file.content.clone()));
        }
        self.served.store(Arc::new(Served { by_path }));
    }

    /// The answer to a request, or `None` if its path belongs to no login and no verification file.
    pub fn answer<B>(&self, request: &Request<B>, peer: Option<IpAddr>) -> Option<Response<Full<Bytes>>> {
        let served = self.served.load();
        if served.by_path.is_empty() {
            return None;
        }
        Some(match served.by_path.get(request.uri().path().trim_end_matches('/'))? {
            Page::Login(login) => login.answer(request, peer),
            Page::VerifyFile(content) => verify_file(request, content),
            Page::Removed => page::page(StatusCode::NOT_FOUND, None),
        })
    }
}

impl Served {
    /// The paths of all logins, removed ones included.
    fn login_paths(&self) -> impl Iterator<Item = String> {
        let is_login = |page: &Page| matches!(page, Page::Login(_) | Page::Removed);
        self.by_path.iter().filter(move |(_, page)| is_login(page)).map(|(path, _)| path.clone())
    }
}

impl ServedLogin {
    fn answer<B>(&self, request: &Request<B>, peer: Option<IpAddr>) -> Response<Full<Bytes>> {
        let started = Instant::now();
        let (result, response) = self.login.redirect(request);
        self.metrics.count(result);
        if let Some(suppressed) = self.throttle.allow() {
            tracing::info!(
                login = %self.login.name,
                result,
                status = response.status().as_u16(),
                duration_ms = started.elapsed().as_secs_f64() * 1e3,
                peer = peer.map(tracing::field::display),
                held_back = Some(suppressed).filter(|count| *count > 0),
                "login"
            );
        }
        response
    }
}

impl Login {
    /// The result for metrics and log, and the response: the redirect, or the page for a person.
    ///
    /// HEAD is refused as well: a preview that follows links must not use up a code.
    fn redirect<B>(&self, request: &Request<B>) -> (&'static str, Response<Full<Bytes>>) {
        let malformed = |status| ("malformed", page::page(status, self.home.as_deref()));
        if request.method() != Method::GET {
            let (result, mut response) = malformed(StatusCode::METHOD_NOT_ALLOWED);
            response.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET"));
            return (result, response);
        }
        if !host::is_valid(request) {
            return malformed(StatusCode::BAD_REQUEST);
        }
        let query = request.uri().query().unwrap_or_default();
        let passed = query::pass(query, &self.pass);
        let located = passed.and_then(|passed| {
            let location = HeaderValue::try_from(self.location(&passed.pairs)).map_err(|_| Malformed)?;
            Ok((passed.has_code, location))
        });
        let Ok((has_code, location)) = located else { return malformed(StatusCode::BAD_REQUEST) };
        let mut response = Response::new(Full::default());
        // 303 and not 307: the next request is a GET, whatever this one was (RFC 9700, section 4.12).
        *response.status_mut() = StatusCode::SEE_OTHER;
        response.headers_mut().insert(header::LOCATION, location);
        keep_private(response.headers_mut());
        (if has_code { "passed" } else { "refused_by_user" }, response)
    }

    /// The configured URL with the pairs behind it.
    pub fn location(&self, pairs: &str) -> String {
        let separator = match self.to.split_once('?') {
            None => "?",
            Some((_, query)) if query.is_empty() || query.ends_with('&') => "",
            Some(_) => "&",
        };
        format!("{}{separator}{pairs}", self.to)
    }
}

/// No cache keeps a code, and no page that comes next gets it as a referrer.
fn keep_private(headers: &mut HeaderMap) {
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
}

fn verify_file<B>(request: &Request<B>, content: &Bytes) -> Response<Full<Bytes>> {
    let (status, body) = match *request.method() {
        Method::GET | Method::HEAD if host::is_valid(request) => (StatusCode::OK, content.clone()),
        Method::GET | Method::HEAD => (StatusCode::BAD_REQUEST, Bytes::from_static(b"host")),
        _ => (StatusCode::METHOD_NOT_ALLOWED, Bytes::from_static(b"method")),
    };
    let mut response = Response::new(Full::new(body));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    if status == StatusCode::METHOD_NOT_ALLOWED {
        headers.insert(header::ALLOW, HeaderValue::from_static("GET, HEAD"));
    }
    response
}
