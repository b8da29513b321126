//! One push, request side: THE LINE, top to bottom.
//!
//! [`Pipeline::handle`] turns what `Pipeline::answer` says into a response, once. A POST goes: path -> account, query, body,
//! open, fresh enough, twin or first. The first is relayed (`Pipeline::relay`: plan, enqueue, reply), and that goes on in a
//! task of its own when hyper drops the request's future, as WeChat hangs up after 5 s (`persistent.rs`). Each try waits
//! for what the relaying comes to (`Pipeline::landed`): to the end of its budget, or longer in a reply window.
//!
//! Invariants: the mode comes from the account, never from the request. 200 is said only after the queue has the event
//! on disk. Nothing of a push's query or body gets into a log.

mod error;
mod flight;
mod persistent;
mod record;
mod reply;
mod sources;
mod window;

use std::collections::HashMap;
use std::convert::Infallible;
use std::net::IpAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full, Limited};
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::clock::UnixMillis;
use crate::event::{ContentKey, Event, EventId};
use crate::metrics::{AccountMetrics, Metrics};
use crate::queue::{Enqueued, NewEvent, Queue};
use crate::route;
use crate::tail::Tail;
use crate::telemetry::{LogThrottle, OpenIds};
use crate::trace::Trace;
use crate::wechat::{Credentials, Message, Opened, Query, ReplySealing, Salt};

pub use error::PushError;
pub use sources::AllowFrom;
pub use window::ReplyWindow;

use flight::{Flight, Flights, Landing, Seat};
use persistent::Persistent;
use record::Record;
use reply::{Chosen, Replier};
use window::Guard;

/// What a target's reply must leave of the budget, to be sealed and sent.
const REPLY_MARGIN: Duration = Duration::from_millis(100);

/// How much of that storing the reply may take, where nothing else is left.
const STORE_MARGIN: Duration = Duration::from_millis(50);

/// Pushes under way that nobody waits for any more, as those that were answered "try again" while the disk stalls; bounds the
/// memory they take.
const UNDER_WAY: usize = 8192;

const PLAIN: HeaderValue = HeaderValue::from_static("text/plain; charset=utf-8");
const XML: HeaderValue = HeaderValue::from_static("text/xml; charset=utf-8");

/// Log lines in ten seconds, per account, about requests that were not opened: enough for all of WeChat's while an
/// operator has the token wrong, and nothing to a disk.
const REFUSALS: u32 = 100;

/// How many bodies are waited for at a time whose senders have not shown that they know the token.
const STRANGERS: usize = 64;

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
    /// Within which a late reply may answer WeChat's 2nd or 3rd try; `None` = never.
    pub reply_window: Option<ReplyWindow>,
    /// Where its pushes are expected from; `None` = anywhere.
    pub allow_from: Option<AllowFrom>,
    /// Which targets an event goes to, and who replies.
    pub routes: route::Table,
}

/// The line that every push goes along.
pub struct Pipeline {
    accounts: ArcSwap<Accounts>,
    queue: Queue,
    flights: Flights,
    metrics: Arc<Metrics>,
    tail: Tail,
    tasks: TaskTracker,
    /// From here on no try is held beyond its budget.
    stop: CancellationToken,
    strangers: Semaphore,
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
    guard: Arc<Guard>,
    /// How often the log tells of requests from elsewhere.
    elsewhere: LogThrottle,
    /// How often it tells of requests that were not opened.
    refusals: LogThrottle,
}

/// What WeChat is told, before it is written as HTTP.
struct Answer {
    /// `verified`, `accepted` or `duplicate`: how metrics and logs call it.
    result: &'static str,
    body: Bytes,
    content_type: HeaderValue,
}

impl Accounts {
    /// Accounts by their paths.
    pub fn new(accounts: Vec<Account>, openids: OpenIds, metrics: &Metrics) -> Self {
        let entry = |account: Account| {
            let metrics = metrics.account(&account.name);
            let guard = Guard::new(account.name.clone(), metrics.clone());
            let (elsewhere, refusals) = (LogThrottle::default(), LogThrottle::at_most(REFUSALS));
            (account.path.clone(), Arc::new(Entry { account, metrics, guard, elsewhere, refusals }))
        };
        Self { by_path: accounts.into_iter().map(entry).collect(), openids }
    }

    fn at(&self, path: &str) -> Option<Arc<Entry>> {
        self.by_path.get(path.trim_end_matches('/')).cloned()
    }

    /// Puts the guards on duty: those of `before` where the account was there, so that no failure is forgotten.
    fn with_guards_of(mut self, before: Option<&Self>) -> Self {
        let mut old: HashMap<&str, &Arc<Guard>> = HashMap::new();
        for entry in before.into_iter().flat_map(|before| before.by_path.values()) {
            old.insert(&entry.account.name, &entry.guard);
        }
        for entry in self.by_path.values_mut().filter_map(Arc::get_mut) {
            if let Some(guard) = old.remove(&*entry.account.name) {
                entry.guard = guard.clone();
            }
            entry.guard.adopt(entry.account.reply_window);
        }
        for gone in old.into_values() {
            gone.adopt(None);
        }
        self
    }
}

impl Pipeline {
    /// A line into `queue`. Bodies over `max_body` bytes are refused.
    pub fn new(accounts: Accounts, queue: Queue, metrics: Arc<Metrics>, tail: Tail, max_body: usize) -> Self {
        let accounts = ArcSwap::from_pointee(accounts.with_guards_of(None));
        let (flights, tasks, stop) = (Flights::default(), TaskTracker::new(), CancellationToken::new());
        Self { accounts, queue, flights, metrics, tail, tasks, stop, strangers: Semaphore::new(STRANGERS), max_body }
    }

    /// Takes pushes for these accounts from now on; pushes under way end as they began.
    pub fn apply(&self, accounts: Accounts) {
        let accounts = accounts.with_guards_of(Some(&self.accounts.load()));
        self.accounts.store(Arc::new(accounts));
    }

    /// Closes every reply window for good: what waits in one is answered, as no further try will find us.
    pub fn close_windows(&self) {
        self.stop.cancel();
    }

    /// Waits for the pushes whose connection is gone already.
    pub async fn drain(&self) {
        self.tasks.close();
        self.tasks.wait().await;
    }

    /// One request, one response; every error becomes a status here. `peer` is for the log and for `allow_from`.
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
        let mut record = Record::new(entry.clone(), accounts.openids, self.tail.clone(), peer, started);
        let answer = self.answer(&entry, request, started, &mut record).await;
        let status = answer.as_ref().map_or_else(PushError::status, |_| StatusCode::OK);
        record.answered(answer.as_ref().map_or_else(PushError::label, |answer| answer.result), status);
        Ok(answer.map_or_else(|error| error.response(), Answer::into_response))
    }

    async fn answer<B>(
        self: &Arc<Self>,
        entry: &Arc<Entry>,
        request: Request<B>,
        started: Instant,
        record: &mut Record,
    ) -> Result<Answer, PushError>
    where
        B: http_body::Body<Data = Bytes> + Send + 'static,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let now = UnixMillis::now();
        let account = &entry.account;
        if record.from_elsewhere && account.allow_from.as_ref().is_some_and(|from| from.deny) {
            return Err(PushError::Source);
        }
        let (parts, body) = request.into_parts();
        if parts.method != Method::GET && parts.method != Method::POST {
            return Err(PushError::Method);
        }
        let query = Query::parse(parts.uri.query().unwrap_or_default())?;
        record.stamp = Credentials::timestamp(&query).ok();
        if parts.method == Method::GET {
            record.kind = Some("verify");
            let echostr = account.credentials.verify_url(&query)?;
            self.check_skew(account, &query, now)?;
            return Ok(Answer::plain("verified", Bytes::copy_from_slice(echostr.as_bytes())));
        }
        let deadline = started + account.reply_budget;
        let stranger = self.admit(account, &query, now)?;
        let body = read(body, self.max_body);
        let body = tokio::time::timeout_at(deadline, body).await.map_err(|_| PushError::Late)??;
        drop(stranger);
        let Opened { clear, message, manner } = account.credentials.open(&query, &body)?;
        self.check_skew(account, &query, now)?;
        let event = Arc::new(self.event(account, &parts, body, (clear, message), now));
        let trace = Trace::of(&event);
        record.trace = Some(trace);
        record.kind = Some(event.message.kind());
        record.openid = Some(event.message.from_user().to_owned());
        record.stamp = event.message.create_time().and_then(|stamp| i64::try_from(stamp).ok()).or(record.stamp);

        let key = ContentKey::of(&event.app_id, &event.message, &event.clear);
        let window_ends = entry.guard.window().map(|length| started + length);
        let (relayed, twin) = match self.flights.board(key, trace, window_ends) {
            Flight::First(landing, seat) => {
                if self.tasks.len() >= UNDER_WAY {
                    return Err(PushError::Unavailable);
                }
                let relay = self.clone().relay(entry.clone(), event, landing, seat.clone(), deadline);
                let relay = pin!(Persistent::new(relay, &self.tasks));
                (self.landed(entry, &seat, relay, deadline, record).await?, false)
            }
            Flight::Twin(seat) => {
                record.first = Some(seat.trace);
                entry.metrics.duplicates.inc();
                (self.landed(entry, &seat, pin!(seat.clone().landed()), deadline, record).await?, true)
            }
        };
        let result = if twin { "duplicate" } else { relayed.result };
        record.event = Some(relayed.event);
        if relayed.event != trace.event {
            record.first.get_or_insert(Trace::new(relayed.event, None));
        }
        Ok(match relayed.reply {
            Some(clear) => Answer::reply(&account.credentials, manner, result, &clear, now)?,
            None => Answer::plain(result, Bytes::from_static(b"success")),
        })
    }

    /// Leave to wait for the body. Few strangers have it at a time, so that what trickles in, and the memory it takes, is
    /// nothing to WeChat. A good `signature` is enough: it covers no body, but whoever makes it knows the token.
    fn admit(
        &self,
        account: &Account,
        query: &Query<'_>,
        now: UnixMillis,
    ) -> Result<Option<SemaphorePermit<'_>>, PushError> {
        let known = account.credentials.signed(query).unwrap_or(false) && self.check_skew(account, query, now).is_ok();
        if known { Ok(None) } else { self.strangers.try_acquire().map(Some).map_err(|_| PushError::Busy) }
    }

    /// What a push comes to, waited for until `deadline`, where this try's budget ends. In a reply window a try is held
    /// beyond it if WeChat's next one can still bring the reply: WeChat gives this one up.
    async fn landed(
        &self,
        entry: &Entry,
        seat: &Seat,
        mut relayed: Pin<&mut (dyn Future<Output = Result<Relayed, PushError>> + Send)>,
        mut deadline: Instant,
        record: &mut Record,
    ) -> Result<Relayed, PushError> {
        if let Some(window_ends) = seat.window_ends {
            let decision = deadline - REPLY_MARGIN;
            if let Ok(relayed) = tokio::time::timeout_at(decision, relayed.as_mut()).await {
                return relayed;
            }
            // What is not stored yet is not WeChat's to wait for: it is told to try again.
            if seat.awaits_reply() {
                // WeChat tries again as soon as it gives up: after 5 s, by the default budget of 4.5 s.
                let next_try = deadline + entry.account.reply_budget / 9;
                record.spent = next_try < window_ends && !self.stop.is_cancelled() && entry.guard.spend();
                if record.spent {
                    tokio::select! {
                        relayed = tokio::time::timeout_at(window_ends, relayed.as_mut()) => if let Ok(relayed) = relayed { return relayed },
                        () = self.stop.cancelled() => {}
                    }
                    deadline = Instant::now() + REPLY_MARGIN;
                }
                seat.hurry.cancel();
            }
        }
        // The relaying goes on if the deadline passes first: WeChat's next try then finds its result.
        tokio::time::timeout_at(deadline, relayed).await.map_err(|_| PushError::Late)?
    }

    /// From here on the push is WeChat's word: what is lost now is lost for good.
    async fn relay(
        self: Arc<Self>,
        entry: Arc<Entry>,
        event: Arc<Event>,
        landing: Landing,
        seat: Seat,
        deadline: Instant,
    ) -> Result<Relayed, PushError> {
        let plan = entry.account.routes.plan(&event.message);
        let reply_deadline = seat.window_ends.unwrap_or(deadline) - REPLY_MARGIN;
        let (replier, awaited) = Replier::new(plan.reply, &event, reply_deadline);
        let new = NewEvent {
            event: event.clone(),
            key: landing.key(),
            targets: plan.targets.into_iter().cloned().collect(),
            reply: replier.fixed(),
            awaited,
        };
        let relayed = match self.queue.enqueue(new).await {
            Ok(Enqueued::Fresh) => {
                landing.ask();
                let reply = self.reply(replier, &event, &entry, &seat, reply_deadline).await;
                Ok(Relayed { event: event.id, result: "accepted", reply })
            }
            Ok(Enqueued::Duplicate { id, reply }) => {
                entry.metrics.duplicates.inc();
                Ok(Relayed { event: id, result: "duplicate", reply: reply.map(Into::into) })
            }
            Err(error) => {
                tracing::error!(account = %entry.account.name, %error, remedy = error.remedy(), "can't store the push; WeChat is told to try again");
                Err(PushError::Unavailable)
            }
        };
        landing.land(relayed.as_ref().ok().cloned());
        relayed
    }

    /// The clear reply. A target's is stored before WeChat sees it, so that a retry, even after a restart, is answered
    /// with the same.
    async fn reply(
        &self,
        replier: Replier,
        event: &Event,
        entry: &Entry,
        seat: &Seat,
        deadline: Instant,
    ) -> Option<Arc<str>> {
        let over = async || drop(tokio::time::timeout_at(deadline, seat.hurry.cancelled()).await);
        let Chosen { reply, given, result } = replier.reply(event, &entry.metrics, over()).await;
        if let Some(result) = result {
            let rescued = given && seat.boarded.elapsed() > entry.account.reply_budget;
            entry.metrics.reply(if rescued { "rescued" } else { result });
        }
        let clear = reply?;
        if given {
            let late = async {
                over().await;
                tokio::time::sleep(STORE_MARGIN).await;
            };
            let stored = tokio::select! {
                stored = self.queue.record_reply(event.id, clear.clone()) => stored.is_ok(),
                () = late => false,
            };
            if !stored {
                // It goes out all the same: the event is safe, only a retry would miss the reply.
                tracing::warn!(event = %event.id, "the reply could not be stored in time");
            }
        }
        Some(clear.into())
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
        (clear, message): (Bytes, Message),
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
            clear,
            message,
            traceparent: traceparent.map(ToOwned::to_owned),
        }
    }
}

/// A push once it is through: what its twin is told too.
#[derive(Clone, Debug)]
struct Relayed {
    event: EventId,
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
        // Copied: it is kept for longer than the connection's buffer, which it would hold on to, eight times its size.
        Ok(collected) => Ok(Bytes::copy_from_slice(&collected.to_bytes())),
        Err(error) if error.is::<http_body_util::LengthLimitError>() => Err(PushError::TooLarge),
        Err(_) => Err(PushError::BrokenBody),
    }
}

impl Answer {
    fn plain(result: &'static str, body: Bytes) -> Self {
        Self { result, body, content_type: PLAIN }
    }

    /// Seals with the token and key that opened this very push.
    fn reply(
        credentials: &Credentials,
        manner: ReplySealing,
        result: &'static str,
        clear: &str,
        now: UnixMillis,
    ) -> Result<Self, PushError> {
        let mut random = [0; 24];
        getrandom::fill(&mut random).map_err(|_| PushError::Internal)?;
        let salt = Salt::new(now.seconds(), random);
        let sealed = credentials.seal_reply(clear, manner, &salt);
        Ok(Self { result, body: sealed.into(), content_type: XML })
    }

    fn into_response(self) -> Response<Full<Bytes>> {
        let mut response = Response::new(Full::new(self.body));
        response.headers_mut().insert(CONTENT_TYPE, self.content_type);
        response
    }
}
