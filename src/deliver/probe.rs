//! Probes a target without an event, for `check --online` and `doctor`.
//!
//! A `wechat` target gets the GET by which WeChat verifies a server URL, signed with the token that it shares with the
//! relay, over the same client as its deliveries. Every other target gets only a connection, or a HEAD. The results are
//! facts; the commands put them into words. Deliberately not here: the choice of targets, and any POST.

use std::time::Duration;

use http::header::{CONTENT_ENCODING, DATE, LOCATION, USER_AGENT};
use http::{HeaderMap, Method, Request, StatusCode, Uri};
use tokio::time::{Instant, timeout};

use super::client::{AnswerBody, BodyEnd, ConnectError, Connector, ExchangeError, RequestBody, SystemRoots, read};
use super::{AGENT, ANSWER_CAP, ClientError, Upstream, with_query};
use crate::clock::UnixMillis;
use crate::escape;
use crate::wechat::Salt;

/// As long as WeChat waits for an answer.
const LIMIT: Duration = Duration::from_secs(5);
/// The most characters of an unexpected body that are reported.
const BODY_EXCERPT: usize = 60;

/// Why a target fails the verification that WeChat would make.
#[derive(Debug)]
pub enum VerificationFailure {
    /// The account is not configured.
    UnknownAccount,
    /// The system gives no random bytes.
    Random(getrandom::Error),
    /// The URL cannot take the query.
    Request(http::Error),
    /// No connection, or a broken one.
    Exchange(ExchangeError),
    /// No whole answer within this time.
    Timeout(Duration),
    /// The connection broke within the answer.
    Interrupted,
    /// A redirect, which neither WeChat nor the relay follows.
    Redirect {
        /// The status.
        status: u16,
        /// The `Location`, without the query.
        location: Option<String>,
    },
    /// 401 or 403: it does not accept the signature.
    Unauthorized(u16),
    /// 404.
    NotFound,
    /// 405: the path exists, but not for GET.
    MethodNotAllowed,
    /// Any other status than 200.
    Status(u16),
    /// The answer is compressed; WeChat asks without Accept-Encoding.
    Compressed,
    /// 200 without a body.
    EmptyBody,
    /// The right text, with something around it.
    Wrapped(EchostrWrapping),
    /// Another text, which is not shown: it contains our signature.
    RequestEchoed,
    /// The beginning of another text.
    OtherBody(String),
}

impl From<getrandom::Error> for VerificationFailure {
    fn from(error: getrandom::Error) -> Self {
        Self::Random(error)
    }
}

impl From<http::Error> for VerificationFailure {
    fn from(error: http::Error) -> Self {
        Self::Request(error)
    }
}

impl From<ExchangeError> for VerificationFailure {
    fn from(error: ExchangeError) -> Self {
        Self::Exchange(error)
    }
}

/// What surrounds an echostr that came back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EchostrWrapping {
    /// A byte order mark.
    ByteOrderMark,
    /// Quotes, as around a JSON string.
    Quotes,
    /// A JSON document.
    Json,
    /// Blanks or line ends.
    Whitespace,
    /// Markup or other text.
    OtherText,
}

/// Why a target cannot be reached.
#[derive(Debug)]
pub enum ReachFailure {
    /// Its certificates or key are unusable.
    Client(ClientError),
    /// DNS, TCP, the proxy or TLS failed.
    Connect(ConnectError),
    /// No connection, or a broken one.
    Exchange(ExchangeError),
    /// No connection within this time.
    ConnectTimeout(Duration),
    /// No answer within this time.
    AnswerTimeout(Duration),
}

impl From<ClientError> for ReachFailure {
    fn from(error: ClientError) -> Self {
        Self::Client(error)
    }
}

impl From<ConnectError> for ReachFailure {
    fn from(error: ConnectError) -> Self {
        Self::Connect(error)
    }
}

impl From<ExchangeError> for ReachFailure {
    fn from(error: ExchangeError) -> Self {
        Self::Exchange(error)
    }
}

/// A verification that a target passed.
#[derive(Clone, Copy, Debug)]
pub struct Verification {
    /// How long it took.
    pub took: Duration,
    /// The target's clock, in whole seconds.
    pub date: Option<UnixMillis>,
}

/// What a target answers to a HEAD.
#[derive(Clone, Debug)]
pub struct HeadAnswer {
    /// The status.
    pub status: u16,
    /// Where a redirect leads, without the query.
    pub location: Option<String>,
    /// How long it took.
    pub took: Duration,
    /// The target's clock, in whole seconds.
    pub date: Option<UnixMillis>,
}

impl Upstream {
    /// Sends the verification that WeChat would, with the credentials that the target shares with `account`.
    pub async fn verify(&self, account: &str, now: UnixMillis) -> Result<Verification, VerificationFailure> {
        let credentials = self.credentials.get(account).ok_or(VerificationFailure::UnknownAccount)?;
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
            let date = date_header(&head.headers);
            let AnswerBody { bytes, end } = read(body, ANSWER_CAP, started + limit).await;
            if end == BodyEnd::BrokenOff {
                let late = started.elapsed() >= limit;
                return Err(if late { VerificationFailure::Timeout(limit) } else { VerificationFailure::Interrupted });
            }
            let request = VerificationRequest { echostr: &echostr, query: &query };
            judge_verification(head.status, &head.headers, &bytes, &request)?;
            Ok(Verification { took: started.elapsed(), date })
        };
        timeout(limit, exchange).await.unwrap_or(Err(VerificationFailure::Timeout(limit)))
    }

    /// Sends a HEAD over the same client as its deliveries: safe by HTTP's rules, without body, event or signature.
    pub async fn send_head(&self) -> Result<HeadAnswer, ReachFailure> {
        let mut request = Request::new(RequestBody::default());
        *request.method_mut() = Method::HEAD;
        *request.uri_mut() = self.target.url.clone();
        request.headers_mut().insert(USER_AGENT, AGENT);
        request.headers_mut().extend(self.target.headers.clone());
        let (started, limit) = (Instant::now(), LIMIT.min(self.target.timeout));
        let answer =
            timeout(limit, self.client.send(request)).await.map_err(|_| ReachFailure::AnswerTimeout(limit))??;
        let (location, date) = (location(answer.headers()), date_header(answer.headers()));
        Ok(HeadAnswer { status: answer.status().as_u16(), location, took: started.elapsed(), date })
    }

    /// Connects as for a delivery, TLS and proxy included, and sends nothing. Returns the time it took.
    pub async fn connect(&self) -> Result<Duration, ReachFailure> {
        let (started, limit) = (Instant::now(), LIMIT.min(self.target.timeout));
        let connect =
            Connector::new(&self.target.connect_options(), &SystemRoots::default())?.connect(self.target.url.clone());
        timeout(limit, connect).await.map_err(|_| ReachFailure::ConnectTimeout(limit))??;
        Ok(started.elapsed())
    }
}

/// What a verification sent.
#[derive(Clone, Copy)]
pub struct VerificationRequest<'a> {
    /// The text that must come back.
    pub echostr: &'a str,
    /// The signed query, which no report may show.
    pub query: &'a str,
}

impl VerificationRequest<'_> {
    /// Whether a text repeats the signature, with which any reader could send the same request.
    fn is_repeated_in(&self, text: &str) -> bool {
        let mut parts = self.query.split('&').filter_map(|part| part.split_once('='));
        let signature = parts.find(|(name, _)| *name == "signature").map(|(_, value)| value);
        signature.is_some_and(|signature| text.contains(signature))
    }
}

/// Whether WeChat would accept this answer.
pub fn judge_verification(
    status: StatusCode,
    headers: &HeaderMap,
    body: &[u8],
    request: &VerificationRequest<'_>,
) -> Result<(), VerificationFailure> {
    let echostr = request.echostr;
    match status.as_u16() {
        200 => {}
        300..=399 => {
            return Err(VerificationFailure::Redirect { status: status.as_u16(), location: location(headers) });
        }
        status @ (401 | 403) => return Err(VerificationFailure::Unauthorized(status)),
        404 => return Err(VerificationFailure::NotFound),
        405 => return Err(VerificationFailure::MethodNotAllowed),
        status => return Err(VerificationFailure::Status(status)),
    }
    if headers.get(CONTENT_ENCODING).is_some_and(|coding| coding != "identity") {
        return Err(VerificationFailure::Compressed);
    }
    if body == echostr.as_bytes() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(body);
    let bare = text.trim_start_matches('\u{feff}').trim();
    if bare.is_empty() {
        return Err(VerificationFailure::EmptyBody);
    }
    if request.is_repeated_in(bare) {
        return Err(VerificationFailure::RequestEchoed);
    }
    if !bare.contains(echostr) {
        return Err(VerificationFailure::OtherBody(escape::line(bare).chars().take(BODY_EXCERPT).collect()));
    }
    Err(VerificationFailure::Wrapped(match bare.trim_matches(['"', '\'']) {
        _ if text.starts_with('\u{feff}') => EchostrWrapping::ByteOrderMark,
        inner if bare == echostr || inner.is_empty() => EchostrWrapping::Whitespace,
        inner if inner == echostr => EchostrWrapping::Quotes,
        _ if bare.starts_with(['{', '[']) => EchostrWrapping::Json,
        _ => EchostrWrapping::OtherText,
    }))
}

/// The `Date` of an answer, by its server's clock (RFC 9110, 6.6.1).
pub fn date_header(headers: &HeaderMap) -> Option<UnixMillis> {
    let text = headers.get(DATE)?.to_str().ok()?;
    let date = jiff::fmt::rfc2822::DateTimeParser::new().parse_timestamp(text).ok()?;
    Some(UnixMillis(date.as_millisecond()))
}

/// The `Location` of a redirect, without the query, which repeats our signature.
fn location(headers: &HeaderMap) -> Option<String> {
    let uri: Uri = headers.get(LOCATION)?.to_str().ok()?.parse().ok()?;
    let place = uri.authority().map(|authority| format!("{}://{authority}", uri.scheme_str().unwrap_or("http")));
    Some(place.unwrap_or_default() + uri.path())
}

#[cfg(test)]
mod tests {
    use super::*;

    const ECHO: &str = "4375120948345356249";

    fn judged(status: u16, header: Option<(&'static str, &str)>, body: &str) -> Result<(), VerificationFailure> {
        let mut headers = HeaderMap::new();
        if let Some((name, value)) = header {
            headers.insert(name, value.parse().unwrap());
        }
        let query = "signature=f464b24f&echostr=4375120948345356249&timestamp=1";
        let request = VerificationRequest { echostr: ECHO, query };
        judge_verification(StatusCode::from_u16(status).unwrap(), &headers, body.as_bytes(), &request)
    }

    fn failure(status: u16, header: Option<(&'static str, &str)>, body: &str) -> VerificationFailure {
        judged(status, header, body).unwrap_err()
    }

    #[test]
    fn only_the_bare_echostr_passes_and_what_surrounds_it_is_named() {
        assert!(judged(200, None, ECHO).is_ok());
        for (body, expected) in [
            (format!("\u{feff}{ECHO}"), EchostrWrapping::ByteOrderMark),
            (format!("\"{ECHO}\""), EchostrWrapping::Quotes),
            (format!("{{\"echostr\":\"{ECHO}\"}}"), EchostrWrapping::Json),
            (format!("{ECHO}\n"), EchostrWrapping::Whitespace),
            (format!("<p>{ECHO}</p>"), EchostrWrapping::OtherText),
        ] {
            let VerificationFailure::Wrapped(wrapping) = failure(200, None, &body) else { panic!("{body}") };
            assert_eq!(wrapping, expected, "{body}");
        }
        assert!(matches!(failure(200, None, " \n"), VerificationFailure::EmptyBody));
        let VerificationFailure::OtherBody(text) = failure(200, None, "Invalid\u{7} signature") else { panic!() };
        assert_eq!(text, "Invalid\\u0007 signature");
        assert!(matches!(failure(200, Some(("content-encoding", "gzip")), ECHO), VerificationFailure::Compressed));
    }

    #[test]
    fn a_page_that_repeats_the_signature_is_not_reported() {
        let page = "you asked for /wx?signature=f464b24f&timestamp=1";
        assert!(matches!(failure(200, None, page), VerificationFailure::RequestEchoed));
    }

    #[test]
    fn a_date_is_read_as_http_writes_it() {
        let mut headers = HeaderMap::new();
        assert_eq!(date_header(&headers), None);
        headers.insert(DATE, "Sun, 06 Nov 1994 08:49:37 GMT".parse().unwrap());
        assert_eq!(date_header(&headers), Some(UnixMillis(784_111_777_000)));
    }

    #[test]
    fn a_redirect_is_reported_without_its_query() {
        for (status, target, expected) in [
            (301, Some("https://a.example/wx/?signature=00"), Some("https://a.example/wx/")),
            (302, Some("/wx/"), Some("/wx/")),
            (307, None, None),
        ] {
            let redirect = failure(status, target.map(|target| ("location", target)), "");
            let VerificationFailure::Redirect { status: found, location } = redirect else { panic!("{redirect:?}") };
            assert_eq!((found, location.as_deref()), (status, expected));
        }
    }
}
