//! HTTP out: one attempt at one target.
//!
//! [`Upstream::deliver`] writes the event in the target's format, sends it, reads the answer and classifies it. It
//! knows nothing of the queue: when to retry is the dispatcher's business. Bounds: every attempt ends within the
//! target's timeout, no more than [`ANSWER_CAP`] bytes of an answer are read, redirects are not followed. A request is
//! repeated at most once within its attempt, on a fresh connection.

#![warn(missing_docs)]

pub mod address;
mod answer_rules;
mod client;
mod connection_use;
pub mod format;
mod health;
mod outcome;
mod post;
mod probe;
mod problem;
mod report;
mod resolver;
#[cfg(test)]
pub(crate) mod scripted;
mod webhook;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use http::header::{CONTENT_TYPE, HeaderName, HeaderValue, USER_AGENT};
use http::{HeaderMap, Method, Request, StatusCode, Uri};
use tokio::time::Instant;

use crate::clock::{UnixMillis, UnixNanos};
use crate::event::Event;
use crate::secret::Secret;
use crate::trace::{SpanId, Trace};
use crate::wechat::{AesKey, Credentials, Mode, Reply, ReplyError};

pub use answer_rules::{AnswerPatterns, AnswerRules};
use client::ConnectionChoice;
pub use client::{
    ClientError, ConnectError, ConnectOptions, ExchangeError, PooledClient, RequestBody, SystemRoots, TlsOptions,
};
pub use health::{FailureCount, TargetFindings, TargetHealth};
pub use outcome::Outcome;
pub use post::{PostAnswer, PostClient, PostError};
pub use probe::{
    EchostrWrapping, HeadAnswer, ReachFailure, Verification, VerificationFailure, VerificationRequest, date_header,
    judge_verification,
};
pub use problem::{ProbeReport, TargetProblem};
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
    /// With `wechat`: the key of a follow is the scene alone, as in a scan, without `qrscene_`, for providers that
    /// expect it so.
    pub bare_scene: bool,
    /// What the text of a 2xx answer means.
    pub answers: AnswerRules,
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
    /// By account: those that the target shares with it, or with `raw` the account's own.
    credentials: HashMap<Arc<str>, Credentials>,
    /// The accounts with a route that asks the target for replies.
    asked_by: Vec<Arc<str>>,
    /// Whether the log has said that no route asks it.
    told_unasked: AtomicBool,
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

impl AttemptRequest<'_> {
    fn is_first_and_awaited(&self) -> bool {
        self.attempt == 1 && self.reply_until.is_some()
    }
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
    /// The beginning of the answer's body, unless that is empty or `success`.
    pub answer: Option<Vec<u8>>,
    /// How long it took.
    pub duration: Duration,
    /// When it ended.
    pub ended: UnixNanos,
    /// Its span in the event's trace, as sent to the target.
    pub span: SpanId,
    /// The reply in a 2xx answer, where one was awaited.
    pub reply: Option<Result<Option<Reply>, ReplyError>>,
    /// What was done to this reply.
    pub reply_note: Option<ReplyNote>,
}

/// What was done to a reply before it is offered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReplyNote {
    /// Its names were wrong, and are replaced by those of the push: what was wrong, without the names.
    Corrected(String),
    /// It counts as no reply, by the target's `no_reply_if`.
    RuledOut,
}

impl ReplyNote {
    /// For the attempt's record.
    pub fn remark(&self) -> String {
        match self {
            Self::Corrected(wrong) => format!("reply used with corrected names: {wrong}"),
            Self::RuledOut => "counted as no reply: `no_reply_if` matches".to_owned(),
        }
    }
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
        let shared = |own: &Credentials| match target.format {
            // It has what WeChat sealed, also by the previous key.
            Format::Raw | Format::AuthingJson => own.clone(),
            Format::Wechat | Format::Json | Format::CloudEvents => target.credentials.over(own),
        };
        let credentials = accounts.into_iter().map(|(name, own)| (name.clone(), shared(own))).collect();
        Ok(Self {
            target,
            client,
            credentials,
            asked_by: Vec::new(),
            told_unasked: AtomicBool::new(false),
            #[cfg(test)]
            script: None,
        })
    }

    /// Sets the accounts with a route that asks the target for replies.
    #[must_use]
    pub fn asked_by(self, accounts: Vec<Arc<str>>) -> Self {
        Self { asked_by: accounts, ..self }
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
        let deadline = started + self.target.timeout;
        let mut choice = ConnectionChoice::Pooled;
        let answer = loop {
            let request = match self.request(&order, span) {
                Ok(request) => request,
                Err(error) => return AttemptReport::failed("unwritten", error.to_string(), started, span),
            };
            let answer = tokio::time::timeout_at(deadline, self.client.send_over(choice, request)).await;
            let may_repeat = choice == ConnectionChoice::Pooled && order.is_first_and_awaited();
            match &answer {
                // A user waits, and the next attempt would come too late for the reply.
                Ok(Err(error)) if may_repeat && error.is_stale_connection() => choice = ConnectionChoice::Fresh,
                _ => break answer,
            }
        };
        match answer {
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

    /// Whether a reply has wrong names, be they corrected or another user's.
    pub fn is_misaddressed(&self) -> bool {
        matches!(self.reply, Some(Err(ReplyError::OtherUser)))
            || matches!(self.reply_note, Some(ReplyNote::Corrected(_)))
    }

    /// What the record says of a reply that is used, if there is anything to say.
    pub fn correction(&self) -> Option<String> {
        self.reply_note.as_ref().map(ReplyNote::remark)
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
            reply_note: None,
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
