//! One push, request side: THE LINE, top to bottom.
//!
//! [`Line::handle`] turns what `Line::answer` says into a response, once. A POST goes: path -> account, query, body,
//! open, fresh enough, and from there on in a task of its own (`Line::relay`), because hyper drops the request's future
//! when WeChat hangs up after 5 s: twin or first, plan, enqueue, reply.
//!
//! Invariants: the mode comes from the account, never from the request. 200 is said only after the queue has the event
//! on disk. Nothing of a push's query or body gets into a log.

mod error;
mod flight;
mod reply;

use std::collections::HashMap;
use std::convert::Infallible;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderValue};
use http::{Method, Request, Response};
use http_body_util::{BodyExt as _, Full, Limited};
use tokio::time::Instant;
use tokio_util::task::TaskTracker;

use crate::clock::UnixMillis;
use crate::event::{ContentKey, Event};
use crate::metrics::{AccountMetrics, Metrics};
use crate::queue::{Enqueued, NewEvent, Queue};
use crate::route;
use crate::telemetry::{self, OpenIds};
use crate::wechat::{Credentials, Opened, Query, Salt};

pub use error::PushError;
use flight::{Flight, Flights};
use reply::Replier;

/// What a target's reply must leave of the budget, to be sealed and sent.
const REPLY_MARGIN: Duration = Duration::from_millis(100);

/// Pushes under way, those that were answered "try again" while the disk stalls included; bounds the memory they take.
const UNDER_WAY: usize = 8192;

const PLAIN: HeaderValue = HeaderValue::from_static("text/plain; charset=utf-8");
const XML: HeaderValue = HeaderValue::from_static("text/xml; charset=utf-8");

/// One `[accounts.NAME]` of the configuration.
#[derive(Clone, Debug)]
pub struct Account {
    /// Its name in the configuration.
    pub name: Arc<str>,
    /// The path of its server URL, without a trailing slash.
    pub path: String,
    /// Its token, key and mode.
    pub credentials: Credentials,
    /// How far a push's timestamp may be from our clock; `None` = any distance.
    pub max_skew: Option<Duration>,
    /// How long after its arrival a push is answered at the latest.
    pub reply_budget: Duration,
    /// Which targets an event goes to, and who replies.
    pub routes: route::Table,
}

/// The line that every push goes along.
pub struct Line {
    accounts: ArcSwap<Accounts>,
    queue: Queue,
    flights: Flights,
    metrics: Arc<Metrics>,
    tasks: TaskTracker,
    max_body: usize,
}

/// The accounts that pushes are taken for: replaced as a whole when the configuration changes.
pub struct Accounts {
    by_path: HashMap<String, Arc<Entry>>,
    openids: OpenIds,
}

struct Entry {
    account: Account,
    metrics: AccountMetrics,
}

/// What WeChat is told, before it is written as HTTP.
struct Answer {
    /// `verified`, `accepted` or `duplicate`: how metrics and logs call it.
    result: &'static str,
    body: Bytes,
    content_type: HeaderValue,
}

/// What is known of a push for its log line; filled as the line goes on.
#[derive(Default)]
struct Seen {
    kind: Option<&'static str>,
    event: Option<String>,
    openid: Option<String>,
    peer: Option<IpAddr>,
}

impl Accounts {
    /// Accounts by their paths.
    pub fn new(accounts: Vec<Account>, openids: OpenIds, metrics: &Metrics) -> Self {
        let entry = |account: Account| {
            let metrics = metrics.account(&account.name);
            (account.path.clone(), Arc::new(Entry { account, metrics }))
        };
        Self { by_path: accounts.into_iter().map(entry).collect(), openids }
    }

    fn at(&self, path: &str) -> Option<Arc<Entry>> {
        self.by_path.get(path.trim_end_matches('/')).cloned()
    }
}

impl Line {
    /// A line into `queue`. Bodies over `max_body` bytes are refused.
    pub fn new(accounts: Accounts, queue: Queue, metrics: Arc<Metrics>, max_body: usize) -> Self {
        let accounts = ArcSwap::from_pointee(accounts);
        Self { accounts, queue, flights: Flights::default(), metrics, tasks: TaskTracker::new(), max_body }
    }

    /// Takes pushes for these accounts from now on; pushes under way end as they began.
    pub fn apply(&self, accounts: Accounts) {
        self.accounts.store(Arc::new(accounts));
    }

    /// Waits for the pushes whose connection is gone already.
    pub async fn drain(&self) {
        self.tasks.close();
        self.tasks.wait().await;
    }

    /// One request, one response; every error becomes a status here. `peer` is for the log.
    pub async fn handle<B>(
        self: Arc<Self>,
        request: Request<B>,
        peer: Option<IpAddr>,
    ) -> Result<Response<Full<Bytes>>, Infallible>
    where
        B: http_body::Body<Data = Bytes> + Send + 'static,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let started = Instant::now();
        let accounts = self.accounts.load_full();
        let Some(entry) = accounts.at(request.uri().path()) else {
            self.metrics.account("").push("none", PushError::UnknownPath.label());
            return Ok(PushError::UnknownPath.response());
        };
        let mut seen = Seen { peer, ..Seen::default() };
        let answer = self.answer(&entry, request, started, &mut seen).await;
        let result = answer.as_ref().map_or_else(PushError::label, |answer| answer.result);
        observe(&entry, accounts.openids, &seen, result, started.elapsed());
        Ok(answer.map_or_else(|error| error.response(), Answer::into_response))
    }

    async fn answer<B>(
        self: &Arc<Self>,
        entry: &Arc<Entry>,
        request: Request<B>,
        started: Instant,
        seen: &mut Seen,
    ) -> Result<Answer, PushError>
    where
        B: http_body::Body<Data = Bytes> + Send + 'static,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let now = UnixMillis::now();
        let account = &entry.account;
        let (parts, body) = request.into_parts();
        if parts.method != Method::GET && parts.method != Method::POST {
            return Err(PushError::Method);
        }
        let query = Query::parse(parts.uri.query().unwrap_or_default())?;
        if parts.method == Method::GET {
            seen.kind = Some("verify");
            let echostr = account.credentials.verify_url(&query)?;
            self.check_skew(account, &query, now)?;
            return Ok(Answer::plain("verified", Bytes::copy_from_slice(echostr.as_bytes())));
        }
        let deadline = started + account.reply_budget;
        let body = read(body, self.max_body);
        let body = tokio::time::timeout_at(deadline, body).await.map_err(|_| PushError::Late)??;
        let opened = account.credentials.open(&query, &body)?;
        self.check_skew(account, &query, now)?;
        let event = Arc::new(self.event(account, &parts, body, &opened, now));
        seen.kind = Some(event.message.kind());
        seen.openid = Some(event.message.from_user().to_owned());

        if self.tasks.len() >= UNDER_WAY {
            return Err(PushError::Unavailable);
        }
        let task = self.tasks.spawn(self.clone().relay(entry.clone(), event, deadline));
        // The task goes on if the deadline passes first: WeChat's next try then finds its result.
        let relayed = tokio::time::timeout_at(deadline, task).await.map_err(|_| PushError::Late)?;
        let relayed = relayed.map_err(|_| PushError::Internal)??;
        seen.event = Some(relayed.event.to_string());
        Ok(match relayed.reply {
            Some(clear) => Answer::reply(&account.credentials, &opened, relayed.result, &clear, now)?,
            None => Answer::plain(relayed.result, Bytes::from_static(b"success")),
        })
    }

    /// From here on the push is WeChat's word: what is lost now is lost for good.
    async fn relay(
        self: Arc<Self>,
        entry: Arc<Entry>,
        event: Arc<Event>,
        deadline: Instant,
    ) -> Result<Relayed, PushError> {
        let key = ContentKey::of(&event.app_id, &event.message, &event.clear);
        let landing = match self.flights.board(key) {
            Flight::Twin(first) => {
                entry.metrics.duplicates.inc();
                let first = first.landed().await.ok_or(PushError::Unavailable)?;
                return Ok(Relayed { result: "duplicate", ..first });
            }
            Flight::First(landing) => landing,
        };
        let plan = entry.account.routes.plan(&event.message);
        let reply_deadline = deadline - REPLY_MARGIN;
        let (replier, awaited) = Replier::new(plan.reply, &event, reply_deadline);
        let new = NewEvent {
            event: event.clone(),
            key,
            targets: plan.targets.into_iter().cloned().collect(),
            reply: replier.fixed(),
            awaited,
        };
        let relayed = match self.queue.enqueue(new).await {
            Ok(Enqueued::Fresh) => {
                let reply = replier.reply(&self.queue, &event, &entry.metrics, reply_deadline).await;
                Ok(Relayed { event: event.id, result: "accepted", reply })
            }
            Ok(Enqueued::Duplicate { id, reply }) => {
                entry.metrics.duplicates.inc();
                Ok(Relayed { event: id, result: "duplicate", reply: reply.map(Into::into) })
            }
            Err(error) => {
                tracing::error!(account = %entry.account.name, %error, "can't store the push; WeChat is told to try again");
                Err(PushError::Unavailable)
            }
        };
        landing.land(relayed.as_ref().ok().cloned());
        relayed
    }

    fn check_skew(&self, account: &Account, query: &Query<'_>, now: UnixMillis) -> Result<(), PushError> {
        let skew = Credentials::timestamp(query)? - now.seconds();
        self.metrics.clock_skew.set(skew as f64);
        match account.max_skew {
            Some(max) if skew.unsigned_abs() > max.as_secs() => Err(PushError::Stale),
            _ => Ok(()),
        }
    }

    fn event(
        &self,
        account: &Account,
        parts: &http::request::Parts,
        body: Bytes,
        opened: &Opened,
        now: UnixMillis,
    ) -> Event {
        let traceparent = parts.headers.get("traceparent").and_then(|value| value.to_str().ok());
        Event {
            id: self.queue.next_id(now),
            account: account.name.clone(),
            app_id: account.credentials.app_id.clone(),
            mode: account.credentials.mode,
            received_at: now,
            query: parts.uri.query().unwrap_or_default().to_owned(),
            body,
            clear: opened.clear.clone(),
            message: opened.message.clone(),
            traceparent: traceparent.map(ToOwned::to_owned),
        }
    }
}

/// A push once it is through: what its twin is told too.
#[derive(Clone, Debug)]
struct Relayed {
    event: crate::event::EventId,
    result: &'static str,
    reply: Option<Arc<str>>,
}

#[expect(clippy::disallowed_methods, reason = "the body is limited")]
async fn read<B>(body: B, max: usize) -> Result<Bytes, PushError>
where
    B: http_body::Body<Data = Bytes>,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    // What is known to be too large need not arrive.
    if body.size_hint().lower() > max as u64 {
        return Err(PushError::TooLarge);
    }
    match Limited::new(body, max).collect().await {
        Ok(collected) => Ok(collected.to_bytes()),
        Err(error) if error.is::<http_body_util::LengthLimitError>() => Err(PushError::TooLarge),
        Err(_) => Err(PushError::BrokenBody),
    }
}

fn observe(entry: &Entry, openids: OpenIds, seen: &Seen, result: &'static str, took: Duration) {
    let kind = seen.kind.unwrap_or("none");
    entry.metrics.push(kind, result);
    entry.metrics.push_duration.observe(took.as_secs_f64());
    tracing::info!(
        account = %entry.account.name,
        kind,
        result,
        event = seen.event,
        peer = seen.peer.map(tracing::field::display),
        duration_ms = took.as_secs_f64() * 1e3,
        openid = seen.openid.as_deref().map(|openid| telemetry::openid(openids, openid).into_owned()),
        "push"
    );
}

impl Answer {
    fn plain(result: &'static str, body: Bytes) -> Self {
        Self { result, body, content_type: PLAIN }
    }

    /// Seals with the token and key that opened this very push.
    fn reply(
        credentials: &Credentials,
        opened: &Opened,
        result: &'static str,
        clear: &str,
        now: UnixMillis,
    ) -> Result<Self, PushError> {
        let mut random = [0; 24];
        getrandom::fill(&mut random).map_err(|_| PushError::Internal)?;
        let salt = Salt::new(now.seconds(), random);
        let sealed = credentials.seal_reply(clear, opened.key, opened.token, opened.syntax, &salt);
        Ok(Self { result, body: sealed.into(), content_type: XML })
    }

    fn into_response(self) -> Response<Full<Bytes>> {
        let mut response = Response::new(Full::new(self.body));
        response.headers_mut().insert(CONTENT_TYPE, self.content_type);
        response
    }
}
