//! Asks a target whether it is there and takes us for WeChat, without an event: `check --online` and the like.
//!
//! A `wechat` target gets the GET by which WeChat verifies a server URL, signed with the token that it shares with us,
//! over the same client as its deliveries. Every other target is only connected to, or sent a HEAD. What is wrong is told
//! with its remedy. Deliberately not here: the choice of targets, and any POST.

use std::error::Error as _;
use std::time::Duration;

use http::header::{CONTENT_ENCODING, DATE, LOCATION, USER_AGENT};
use http::{HeaderMap, Method, Request, StatusCode, Uri};
use tokio::time::{Instant, timeout};

use super::client::{Body, BodyEnd, ConnectError, Connector, ExchangeError, RequestBody, SystemRoots, read};
use super::{AGENT, Upstream, with_query};
use crate::clock::UnixMillis;
use crate::wechat::Salt;

/// As long as WeChat waits for an answer.
const LIMIT: Duration = Duration::from_secs(5);
/// The most characters of an answer that are shown.
const SHOWN: usize = 60;

/// Why a target does not pass the verification that WeChat would make, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum Unverified {
    /// The account is not configured.
    #[error("no account of that name shares its credentials with this target")]
    Account,
    /// No random bytes.
    #[error("the system gives no random bytes")]
    Random(#[from] getrandom::Error),
    /// The URL can't take the query.
    #[error("the request can't be made; look at `url`")]
    Request(#[from] http::Error),
    /// No connection, or a broken one.
    #[error("{0}; does the backend run, and is `url` right?")]
    Exchange(#[from] ExchangeError),
    /// WeChat would not have waited longer.
    #[error("no whole answer within {0:?}; WeChat waits no longer than 5s")]
    Late(Duration),
    /// The answer broke off.
    #[error("the connection broke within the answer")]
    Broken,
    /// A redirect, which neither WeChat nor the relay follows.
    #[error("answered {status}, a redirect{}, which is not followed; put the final URL into `url`", To(.to.as_deref()))]
    Redirect {
        /// The status.
        status: u16,
        /// Where to, without the query.
        to: Option<String>,
    },
    /// It does not take the signature.
    #[error(
        "answered {0}: it does not take our signature; `token` of this target must be the token that the backend is set up with"
    )]
    Refused(u16),
    /// Nothing answers there.
    #[error("answered 404: the backend has no such path; compare `url` with the path that its SDK listens on")]
    NotFound,
    /// The path is there, but not for GET.
    #[error("answered 405: the backend takes no GET here; its SDK's handler must get GET as well as POST")]
    NoGet,
    /// Any other status.
    #[error("answered {0}, expected 200; look into the backend's log")]
    Status(u16),
    /// WeChat asks without Accept-Encoding.
    #[error("the answer is compressed; switch that off for this path, WeChat does not read it")]
    Compressed,
    /// Nothing came back.
    #[error("answered 200 without a body, expected the bare echostr; is it the SDK's handler that answers at `url`?")]
    Empty,
    /// The right text, with something around it.
    #[error("the echostr came back {0}; WeChat takes it bare: no quotes, no JSON, no BOM, no line end")]
    Wrapped(Wrapping),
    /// Another text, which is not shown: our query stands in it.
    #[error("answered 200 with a page that repeats our request; it is not the SDK that answers")]
    Repeated,
    /// Another text.
    #[error(
        "answered 200 with something else than the echostr: `{0}`; a wrong `token`, or it is not the SDK that answers"
    )]
    Other(String),
}

/// What stood around the echostr.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wrapping {
    /// A byte order mark.
    Bom,
    /// Quotes, as a JSON string has.
    Quotes,
    /// A JSON document.
    Json,
    /// Blanks or line ends.
    Blanks,
    /// Markup or other text.
    Text,
}

impl std::fmt::Display for Wrapping {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Bom => "behind a byte order mark",
            Self::Quotes => "in quotes",
            Self::Json => "inside JSON",
            Self::Blanks => "with blanks or a line end",
            Self::Text => "inside other text",
        })
    }
}

/// Why there is no connection to a target.
#[derive(Debug, thiserror::Error)]
pub enum Unreached {
    /// The certificates do not fit.
    #[error("{}{}", .0, Cause(.0))]
    Client(#[from] super::ClientError),
    /// DNS, TCP, the proxy or TLS.
    #[error("{0}; is `url` right, and may this machine go there?")]
    Connect(#[from] ConnectError),
    /// No connection, or a broken one.
    #[error("{0}; does it run, is `url` right, and may this machine go there?")]
    Exchange(#[from] ExchangeError),
    /// Nobody answers.
    #[error("no connection within {0:?}; is `url` right, and may this machine go there?")]
    Late(Duration),
    /// Nothing comes back.
    #[error("no answer within {0:?}; does it run, is `url` right, and may this machine go there?")]
    Silent(Duration),
}

/// An answer that is as it should be.
#[derive(Clone, Copy, Debug)]
pub struct Answered {
    /// How long it took.
    pub took: Duration,
    /// The answerer's clock, in whole seconds.
    pub date: Option<UnixMillis>,
}

/// What a target answers to a request without an event.
#[derive(Clone, Debug)]
pub struct Greeting {
    /// The status.
    pub status: u16,
    /// Where a redirect leads, without the query.
    pub to: Option<String>,
    /// How long it took.
    pub took: Duration,
    /// The target's clock, in whole seconds.
    pub date: Option<UnixMillis>,
}

impl Upstream {
    /// Sends the verification that WeChat would, with the credentials that the target shares with `account`.
    pub async fn verify(&self, account: &str, now: UnixMillis) -> Result<Answered, Unverified> {
        let credentials = self.credentials.get(account).ok_or(Unverified::Account)?;
        let mut random = [0; 24];
        getrandom::fill(&mut random)?;
        let echostr = (1_000_000_000_000_000_000 + getrandom::u64()? % 8_000_000_000_000_000_000).to_string();
        let query = credentials.verification(&echostr, &Salt::new(now.seconds(), random));
        let mut request = Request::new(RequestBody::default());
        *request.uri_mut() = with_query(&self.target.url, Some(&query))?;
        request.headers_mut().insert(USER_AGENT, AGENT);
        request.headers_mut().extend(self.target.headers.clone());
        let (started, limit) = (Instant::now(), LIMIT.min(self.target.timeout));
        let exchange = async {
            let (head, body) = self.client.send(request).await?.into_parts();
            let date = date(&head.headers);
            let Body { bytes, end } = read(body, started + limit).await;
            if end == BodyEnd::BrokenOff {
                let late = started.elapsed() >= limit;
                return Err(if late { Unverified::Late(limit) } else { Unverified::Broken });
            }
            judge(head.status, &head.headers, &bytes, &Asked { echostr: &echostr, query: &query })?;
            Ok(Answered { took: started.elapsed(), date })
        };
        timeout(limit, exchange).await.unwrap_or(Err(Unverified::Late(limit)))
    }

    /// Sends a HEAD over the same client as its deliveries: safe by HTTP's rules, without body, event or signature.
    pub async fn greet(&self) -> Result<Greeting, Unreached> {
        let mut request = Request::new(RequestBody::default());
        *request.method_mut() = Method::HEAD;
        *request.uri_mut() = self.target.url.clone();
        request.headers_mut().insert(USER_AGENT, AGENT);
        request.headers_mut().extend(self.target.headers.clone());
        let (started, limit) = (Instant::now(), LIMIT.min(self.target.timeout));
        let answer = timeout(limit, self.client.send(request)).await.map_err(|_| Unreached::Silent(limit))??;
        let (to, date) = (location(answer.headers()), date(answer.headers()));
        Ok(Greeting { status: answer.status().as_u16(), to, took: started.elapsed(), date })
    }

    /// Connects as for a delivery, TLS and proxy included, and sends nothing. The time it took.
    pub async fn reach(&self) -> Result<Duration, Unreached> {
        let (started, limit) = (Instant::now(), LIMIT.min(self.target.timeout));
        let connect = Connector::new(&self.target.way(), &SystemRoots::default())?.connect(self.target.url.clone());
        timeout(limit, connect).await.map_err(|_| Unreached::Late(limit))??;
        Ok(started.elapsed())
    }
}

/// What was asked in a verification.
#[derive(Clone, Copy)]
pub struct Asked<'a> {
    /// What is to come back.
    pub echostr: &'a str,
    /// The signed query, which no text may show.
    pub query: &'a str,
}

impl Asked<'_> {
    /// Whether a text repeats the signature, by which anybody could ask the same.
    fn is_repeated_in(&self, text: &str) -> bool {
        let mut parts = self.query.split('&').filter_map(|part| part.split_once('='));
        let signature = parts.find(|(name, _)| *name == "signature").map(|(_, value)| value);
        signature.is_some_and(|signature| text.contains(signature))
    }
}

/// Whether WeChat would take this answer for the right one.
pub fn judge(status: StatusCode, headers: &HeaderMap, body: &[u8], asked: &Asked<'_>) -> Result<(), Unverified> {
    let echostr = asked.echostr;
    match status.as_u16() {
        200 => {}
        300..=399 => return Err(Unverified::Redirect { status: status.as_u16(), to: location(headers) }),
        status @ (401 | 403) => return Err(Unverified::Refused(status)),
        404 => return Err(Unverified::NotFound),
        405 => return Err(Unverified::NoGet),
        status => return Err(Unverified::Status(status)),
    }
    if headers.get(CONTENT_ENCODING).is_some_and(|coding| coding != "identity") {
        return Err(Unverified::Compressed);
    }
    if body == echostr.as_bytes() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(body);
    let bare = text.trim_start_matches('\u{feff}').trim();
    if bare.is_empty() {
        return Err(Unverified::Empty);
    }
    if asked.is_repeated_in(bare) {
        return Err(Unverified::Repeated);
    }
    if !bare.contains(echostr) {
        return Err(Unverified::Other(bare.chars().filter(|sign| !sign.is_control()).take(SHOWN).collect()));
    }
    Err(Unverified::Wrapped(match bare.trim_matches(['"', '\'']) {
        _ if text.starts_with('\u{feff}') => Wrapping::Bom,
        inner if bare == echostr || inner.is_empty() => Wrapping::Blanks,
        inner if inner == echostr => Wrapping::Quotes,
        _ if bare.starts_with(['{', '[']) => Wrapping::Json,
        _ => Wrapping::Text,
    }))
}

/// When the answer was written, by the clock of whoever wrote it (RFC 9110, 6.6.1).
pub fn date(headers: &HeaderMap) -> Option<UnixMillis> {
    let text = headers.get(DATE)?.to_str().ok()?;
    let date = jiff::fmt::rfc2822::DateTimeParser::new().parse_timestamp(text).ok()?;
    Some(UnixMillis(date.as_millisecond()))
}

/// Where a redirect leads, without the query, which repeats our signature.
fn location(headers: &HeaderMap) -> Option<String> {
    let uri: Uri = headers.get(LOCATION)?.to_str().ok()?.parse().ok()?;
    let place = uri.authority().map(|authority| format!("{}://{authority}", uri.scheme_str().unwrap_or("http")));
    Some(place.unwrap_or_default() + uri.path())
}

struct To<'a>(Option<&'a str>);

impl std::fmt::Display for To<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.map_or(Ok(()), |to| write!(f, " to {to}"))
    }
}

struct Cause<'a>(&'a super::ClientError);

impl std::fmt::Display for Cause<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.source().map_or(Ok(()), |cause| write!(f, ": {cause}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ECHO: &str = "4375120948345356249";

    fn told(status: u16, header: Option<(&'static str, &str)>, body: &str) -> String {
        let mut headers = HeaderMap::new();
        if let Some((name, value)) = header {
            headers.insert(name, value.parse().unwrap());
        }
        let asked = Asked { echostr: ECHO, query: "signature=f464b24f&echostr=4375120948345356249&timestamp=1" };
        let judged = judge(StatusCode::from_u16(status).unwrap(), &headers, body.as_bytes(), &asked);
        judged.map_or_else(|error| error.to_string(), |()| "ok".to_owned())
    }

    #[test]
    fn only_the_bare_echostr_passes_and_what_is_around_it_is_named() {
        assert_eq!(told(200, None, ECHO), "ok");
        for (body, what) in [
            (format!("\u{feff}{ECHO}"), "behind a byte order mark"),
            (format!("\"{ECHO}\""), "in quotes"),
            (format!("{{\"echostr\":\"{ECHO}\"}}"), "inside JSON"),
            (format!("{ECHO}\n"), "with blanks or a line end"),
            (format!("<p>{ECHO}</p>"), "inside other text"),
        ] {
            assert!(told(200, None, &body).contains(what), "{body}: {}", told(200, None, &body));
        }
        assert!(told(200, None, " \n").contains("without a body"));
        assert!(told(200, None, "Invalid\u{7} signature").contains("`Invalid signature`"));
        assert!(told(200, Some(("content-encoding", "gzip")), ECHO).contains("compressed"));
    }

    #[test]
    fn a_page_that_repeats_the_signature_is_not_shown() {
        let told = told(200, None, "you asked for /wx?signature=f464b24f&timestamp=1");
        assert!(told.contains("repeats our request") && !told.contains("f464b24f"), "{told}");
    }

    #[test]
    fn a_date_is_read_as_http_writes_it() {
        let mut headers = HeaderMap::new();
        assert_eq!(date(&headers), None);
        headers.insert(DATE, "Sun, 06 Nov 1994 08:49:37 GMT".parse().unwrap());
        assert_eq!(date(&headers), Some(UnixMillis(784_111_777_000)));
    }

    #[test]
    fn a_status_is_told_with_its_remedy() {
        for (status, remedy) in [
            (401, "`token`"),
            (403, "`token`"),
            (404, "`url`"),
            (405, "GET as well as POST"),
            (500, "log"),
            (204, "200"),
        ] {
            assert!(told(status, None, ECHO).contains(remedy), "{status}");
        }
        let moved = told(301, Some(("location", "https://a.example/wx/?signature=00")), "");
        assert!(moved.contains("301") && moved.contains("to https://a.example/wx/,"), "{moved}");
        assert!(!moved.contains("signature=00"), "{moved}");
        assert!(told(302, Some(("location", "/wx/")), "").contains(" to /wx/,"));
        assert!(told(307, None, "").contains("a redirect, which"));
    }
}
