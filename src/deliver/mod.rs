//! HTTP out: one attempt at one target.
//!
//! [`Upstream::deliver`] writes the event in the target's format, sends it, reads the answer and classifies it. It
//! knows nothing of the queue: when to retry is the dispatcher's business. Bounds: every attempt ends within the
//! target's timeout, no more than [`ANSWER_CAP`] bytes of an answer are read, redirects are not followed.

#![warn(missing_docs)]

pub mod address;
mod client;
pub mod format;
mod outcome;
mod post;
mod probe;
mod resolver;
#[cfg(test)]
pub(crate) mod scripted;
mod webhook;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use http::header::{CONTENT_TYPE, HeaderName, HeaderValue, USER_AGENT};
use http::{HeaderMap, Method, Request, StatusCode, Uri};
use tokio::time::Instant;

use crate::clock::{UnixMillis, UnixNanos};
use crate::event::Event;
use crate::secret::Secret;
use crate::trace::{SpanId, Trace};
use crate::wechat::{AesKey, Credentials, Mode, Reply, ReplyError};

use client::{AnswerBody, BodyEnd, read};
pub use client::{
    ClientError, ConnectError, ConnectOptions, ExchangeError, PooledClient, RequestBody, SystemRoots, TlsOptions,
};
pub use outcome::Outcome;
pub use post::{PostAnswer, PostClient, PostError};
pub use probe::{
    EchostrWrapping, HeadAnswer, ReachFailure, Verification, VerificationFailure, VerificationRequest, date_header,
    judge_verification,
};
pub use webhook::SigningKey;

/// The most bytes of an answer that are read.
pub const ANSWER_CAP: usize = 64 * 1024;
/// The same of an answer that may be a reply: more than is held of one, so that a longer one is cut, not refused.
const REPLY_CAP: usize = 256 * 1024;
/// The most bytes of an answer that are kept with the attempt.
const ANSWER_EXCERPT: usize = 1024;

const EVENT_ID: HeaderName = HeaderName::from_static("wxrelay-event-id");
const ACCOUNT: HeaderName = HeaderName::from_static("wxrelay-account");
const ATTEMPT: HeaderName = HeaderName::from_static("wxrelay-attempt");
const TRY: HeaderName = HeaderName::from_static("wxrelay-try");
const DEADLINE: HeaderName = HeaderName::from_static("wxrelay-deadline-ms");
const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const AGENT: HeaderValue = HeaderValue::from_static(concat!("wxrelay/", env!("CARGO_PKG_VERSION")));

/// Where and how one target is reached.
#[derive(Clone, Debug)]
pub struct Target {
    /// Its name in the configuration.
    pub name: Arc<str>,
    /// Its purpose.
    pub role: Role,
    /// The full URL.
    pub url: Uri,
    /// How an event is written for it.
    pub format: Format,
    /// The most time one attempt may take.
    pub timeout: Duration,
    /// How often one attempt sends an event whose reply is awaited.
    pub tries: Tries,
    /// Extra request headers.
    pub headers: HeaderMap,
    /// Standard Webhooks signing keys, the newest first; empty = unsigned.
    pub signing_keys: Vec<SigningKey>,
    /// For `wechat`: what differs from the account's own credentials.
    pub credentials: CredentialsOverride,
    /// For https: the authorities to trust, and our own certificate.
    pub tls: TlsOptions,
    /// An HTTP proxy to go through.
    pub proxy: Option<Uri>,
    /// Whether its name must resolve to public addresses. An address in the URL itself is not checked here: the
    /// configuration refuses those.
    pub deny_private: bool,
    /// What its provider does otherwise than a handler.
    pub provider: ProviderRules,
}

/// What an identity provider expects and answers otherwise than a handler, as its source says.
#[derive(Clone, Copy, Debug, Default)]
pub struct ProviderRules {
    /// With `wechat`: the key of a follow is the scene alone, as in a scan, without `qrscene_`.
    pub bare_scene: bool,
    /// A 2xx counts only with a body that WeChat would accept: errors come with status 200 too.
    pub body_counts: bool,
}

impl Target {
    fn connect_options(&self) -> ConnectOptions<'_> {
        let Self { url, timeout, tls, proxy, deny_private, .. } = self;
        let https = url.scheme_str() == Some("https");
        ConnectOptions { https, timeout: *timeout, tls, proxy: proxy.as_ref(), deny_private: *deny_private }
    }
}

/// The purpose of a target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// An identity provider, for which a person who logs in waits: served first, and useless when late.
    Identity,
    /// An operator's own handler.
    Handler,
}

/// How often one attempt sends an event whose reply is awaited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tries {
    /// Once: the answer is the reply.
    Once,
    /// At WeChat's rhythm until there is a reply, for a bot that counts on WeChat's retries.
    Each {
        /// An empty answer sooner than this is final: there is no reply.
        not_yet_after: Duration,
    },
}

/// How an event is written for a target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// The bytes that WeChat sent.
    Raw,
    /// A new push, signed and encrypted for the target.
    Wechat,
    /// The relay's own JSON.
    Json,
    /// CloudEvents 1.0, structured.
    CloudEvents,
    /// `{"xml":{...}}` as Authing's Mode 2 sample sends it.
    AuthingJson,
}

/// The credentials that a `wechat` target overrides; the rest are the account's.
#[derive(Clone, Debug, Default)]
pub struct CredentialsOverride {
    /// The AppID that it is configured with, for a backend that gets events of several accounts and knows one.
    pub app_id: Option<Arc<str>>,
    /// Its token.
    pub token: Option<Secret>,
    /// Its EncodingAESKey.
    pub aes_key: Option<AesKey>,
    /// Its mode.
    pub mode: Option<Mode>,
}

impl CredentialsOverride {
    /// The credentials that this target and `account` share.
    fn over(&self, account: &Credentials) -> Credentials {
        let own_key = self.aes_key.clone();
        Credentials {
            app_id: self.app_id.clone().unwrap_or_else(|| account.app_id.clone()),
            token: self.token.clone().unwrap_or_else(|| account.token.clone()),
            previous_token: None,
            aes_key: own_key.or_else(|| account.aes_key.clone()),
            previous_aes_key: None,
            mode: self.mode.unwrap_or(account.mode),
        }
    }
}

/// A target, ready to be delivered to: its connections, and the credentials for each account's events.
#[derive(Debug)]
pub struct Upstream {
    target: Target,
    client: PooledClient,
    credentials: HashMap<Arc<str>, Credentials>,
    #[cfg(test)]
    script: Option<scripted::Script>,
}

/// One attempt to make.
#[derive(Debug)]
pub struct AttemptRequest<'e> {
    /// The event.
    pub event: &'e Event,
    /// The number of the attempt, from 1.
    pub attempt: u32,
    /// The number of the try within the attempt, from 1, where it has several; `None` where it has one.
    pub try_number: Option<u32>,
    /// Until when WeChat waits for a reply; `None` = it does not.
    pub reply_until: Option<UnixMillis>,
    /// Whether a reply is wanted, be it late.
    pub asked: bool,
    /// The current time.
    pub now: UnixMillis,
}

/// The result of an attempt.
#[derive(Debug)]
pub struct AttemptReport {
    /// What it means for the delivery.
    pub outcome: Outcome,
    /// The status, if there was an answer.
    pub status: Option<StatusCode>,
    /// Why it failed, for the log.
    pub error: Option<String>,
    /// The same in one word, where there was no answer.
    pub no_answer: Option<&'static str>,
    /// The beginning of a body that shows the fault: of a failed answer, or of an unusable reply.
    pub answer: Option<Vec<u8>>,
    /// How long it took.
    pub duration: Duration,
    /// When it ended.
    pub ended: UnixNanos,
    /// Its span in the event's trace, as sent to the target.
    pub span: SpanId,
    /// The reply in a 2xx answer, where one was awaited.
    pub reply: Option<Result<Option<Reply>, ReplyError>>,
}

impl Upstream {
    /// Makes the connection pool of a target that gets events of `accounts`; `trust` is shared by all that are made
    /// together.
    pub fn new<'a>(
        target: Target,
        accounts: impl IntoIterator<Item = (&'a Arc<str>, &'a Credentials)>,
        trust: &SystemRoots,
    ) -> Result<Self, ClientError> {
        let client = PooledClient::new(&target.connect_options(), trust)?;
        let credentials =
            accounts.into_iter().map(|(name, own)| (name.clone(), target.credentials.over(own))).collect();
        Ok(Self {
            target,
            client,
            credentials,
            #[cfg(test)]
            script: None,
        })
    }

    /// The target.
    pub fn target(&self) -> &Target {
        &self.target
    }

    /// Makes one attempt. Never fails: the report holds the error.
    pub async fn deliver(&self, order: AttemptRequest<'_>) -> AttemptReport {
        let started = Instant::now();
        #[cfg(test)]
        if let Some(script) = &self.script {
            return self.play(script, &order, started).await;
        }
        let span = SpanId::random(order.event.id);
        let request = match self.request(&order, span) {
            Ok(request) => request,
            Err(error) => return AttemptReport::failed("unwritten", error.to_string(), started, span),
        };
        match tokio::time::timeout_at(started + self.target.timeout, self.client.send(request)).await {
            Err(_) => AttemptReport::timed_out(self.target.timeout, started, span),
            Ok(Err(error)) => AttemptReport::failed(error.word(), error.to_string(), started, span),
            Ok(Ok(response)) => self.report(response, &order, started, span).await,
        }
    }

    /// Whether this event could be sent: writes the whole request, and sends nothing.
    ///
    /// # Errors
    /// What [`Upstream::deliver`] would report before it connects.
    pub fn rehearse(&self, event: &Event, now: UnixMillis) -> Result<(), format::EncodeError> {
        let order = AttemptRequest { event, attempt: 1, try_number: None, reply_until: None, asked: false, now };
        self.request(&order, SpanId::new(event.id.0)).map(drop)
    }

    fn request(&self, order: &AttemptRequest<'_>, span: SpanId) -> Result<Request<RequestBody>, format::EncodeError> {
        let event = order.event;
        let credentials = self.credentials.get(&event.account);
        let encoded = format::encode(&self.target, event, credentials, order.now)?;
        let mut request = Request::new(RequestBody::new(encoded.body.clone()));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = with_query(&self.target.url, encoded.query.as_deref())?;
        let headers = request.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(encoded.content_type));
        headers.insert(USER_AGENT, AGENT);
        headers.insert(EVENT_ID, HeaderValue::try_from(event.id.to_string())?);
        headers.insert(ACCOUNT, HeaderValue::from_str(&event.account)?);
        headers.insert(ATTEMPT, HeaderValue::from(order.attempt));
        if let Some(number) = order.try_number {
            headers.insert(TRY, HeaderValue::from(number));
        }
        headers.insert(TRACEPARENT, HeaderValue::try_from(Trace::of(event).traceparent(span))?);
        if let Some(until) = order.reply_until {
            let left = until.since(order.now).as_millis();
            headers.insert(DEADLINE, HeaderValue::from(u64::try_from(left).unwrap_or(u64::MAX)));
        }
        webhook::sign(headers, &self.target.signing_keys, event.id, order.now, &encoded.body)?;
        for (name, value) in &self.target.headers {
            headers.insert(name, value.clone());
        }
        Ok(request)
    }

    /// A 2xx status settles the delivery, unless the provider's body counts too; else the body matters only to a reply.
    async fn report(
        &self,
        response: http::Response<hyper::body::Incoming>,
        order: &AttemptRequest<'_>,
        started: Instant,
        span: SpanId,
    ) -> AttemptReport {
        let status = response.status();
        let mut outcome = outcome::classify(status, response.headers(), order.now);
        let cap = if order.asked { REPLY_CAP } else { ANSWER_CAP };
        let body = read(response.into_body(), cap, started + self.target.timeout).await;
        let mut error = (outcome != Outcome::Delivered).then(|| format!("answered {}", status.as_u16()));
        if error.is_none() && self.target.provider.body_counts && !self.is_acceptable(&body, order.event) {
            outcome = Outcome::Retry { after: None };
            error = Some(format!("answered {} with an error in the body", status.as_u16()));
        }
        let failed = error.is_some();
        let asked = order.asked && !failed;
        let reply = asked.then(|| self.reply(&body, order.event));
        let keep_body = failed || matches!(reply, Some(Err(_)));
        AttemptReport {
            outcome,
            status: Some(status),
            error,
            no_answer: None,
            answer: (keep_body && !body.bytes.is_empty()).then(|| excerpt(&body.bytes)),
            duration: started.elapsed(),
            ended: UnixNanos::now(),
            span,
            reply,
        }
    }

    /// Whether WeChat would accept the body: it has no reply, or one in XML.
    fn is_acceptable(&self, body: &AnswerBody, event: &Event) -> bool {
        !body.bytes.trim_ascii_start().starts_with(b"{") && self.reply(body, event).is_ok()
    }

    fn reply(&self, body: &AnswerBody, event: &Event) -> Result<Option<Reply>, ReplyError> {
        match body.end {
            BodyEnd::Whole => {}
            BodyEnd::Capped => return Err(ReplyError::TooLarge),
            BodyEnd::BrokenOff => return Err(ReplyError::BrokenOff),
        }
        match (self.target.format, self.credentials.get(&event.account)) {
            (Format::Wechat, Some(credentials)) => format::wechat::read_reply(credentials, &body.bytes),
            _ => Reply::parse(&body.bytes),
        }
    }
}

/// The part of a body that is kept with an attempt.
pub fn excerpt(body: &[u8]) -> Vec<u8> {
    body[..body.len().min(ANSWER_EXCERPT)].to_vec()
}

impl AttemptReport {
    /// The report of an attempt that got no answer within `timeout`.
    pub fn timed_out(timeout: Duration, started: Instant, span: SpanId) -> Self {
        Self::failed("timeout", format!("no answer within {timeout:?}"), started, span)
    }

    fn failed(word: &'static str, error: String, started: Instant, span: SpanId) -> Self {
        Self {
            outcome: Outcome::Retry { after: None },
            status: None,
            error: Some(error),
            no_answer: Some(word),
            answer: None,
            duration: started.elapsed(),
            ended: UnixNanos::now(),
            span,
            reply: None,
        }
    }
}

/// The target's URL, with `query` after its own query, if it has one.
fn with_query(url: &Uri, query: Option<&str>) -> Result<Uri, http::Error> {
    let Some(query) = query.filter(|query| !query.is_empty()) else { return Ok(url.clone()) };
    let joined = match url.query() {
        Some(own) => format!("{}?{own}&{query}", url.path()),
        None => format!("{}?{query}", url.path()),
    };
    let mut parts = url.clone().into_parts();
    parts.path_and_query = Some(joined.try_into()?);
    Ok(Uri::from_parts(parts)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_goes_behind_the_urls_own() {
        let url = |text: &'static str| Uri::from_static(text);
        assert_eq!(with_query(&url("http://h/a"), Some("b=1")).unwrap(), url("http://h/a?b=1"));
        assert_eq!(with_query(&url("http://h/a?z=0"), Some("b=1")).unwrap(), url("http://h/a?z=0&b=1"));
        assert_eq!(with_query(&url("http://h"), Some("b=1")).unwrap(), url("http://h/?b=1"));
        assert_eq!(with_query(&url("http://h/a"), None).unwrap(), url("http://h/a"));
    }
}
