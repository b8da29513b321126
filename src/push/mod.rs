//! The push pipeline: one request of WeChat, top to bottom.
//!
//! [`Pipeline::handle`] turns the outcome of `Pipeline::answer` into a response, once. A POST goes through: path ->
//! account, query, body, open, freshness, leader or follower. The leader relays the push (`Pipeline::relay`: plan,
//! enqueue, reply). When hyper drops the request's future, because WeChat hangs up after 5 s, the relaying continues in
//! a task of its own (`detach_on_drop.rs`). Each try waits for the outcome (`Pipeline::await_outcome`): to the end of
//! its reply budget, or longer in a reply window.
//!
//! Invariants: the mode comes from the account, never from the request. WeChat gets a 200 only after the queue has the
//! event on disk. Nothing of a push's query or body gets into a log.

mod account;
mod bodies;
mod detach_on_drop;
mod error;
mod held;
mod inflight;
mod reply;
mod request_log;
mod resume;
mod sources;
#[cfg(test)]
mod tests;
mod window;

use std::convert::Infallible;
use std::net::IpAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::clock::UnixMillis;
use crate::event::{ContentKey, Event, EventId};
use crate::host;
use crate::metrics::Metrics;
use crate::queue::{Enqueued, Known, NewEvent, Queue, Share};
use crate::tail::Tail;
use crate::trace::Trace;
use crate::wechat::{Credentials, Message, Opened, Query, ReplySealing, Salt};

pub use account::{Account, Accounts, HeldReplies};
pub use error::PushError;
pub use sources::AllowFrom;
pub use window::ReplyWindow;

use account::ServedAccount;
use bodies::{BodyTable, SignatureKey};
use detach_on_drop::DetachOnDrop;
use held::LatePush;
use inflight::{Follower, Inflight, Joined, Leader};
use reply::{ChosenReply, Replier};
use request_log::RequestLog;
use window::FailureCharge;

/// How much of the budget must remain after a target's reply, to encrypt and send it.
const REPLY_MARGIN: Duration = Duration::from_millis(100);

/// The most pushes in progress whose request is gone, for example answered 503 while the disk stalls; bounds the memory
/// that they take.
const MAX_DETACHED: usize = 8192;

const PLAIN: HeaderValue = HeaderValue::from_static("text/plain; charset=utf-8");
const XML: HeaderValue = HeaderValue::from_static("text/xml; charset=utf-8");

/// The push pipeline, which all requests share.
pub struct Pipeline {
    accounts: ArcSwap<Accounts>,
    queue: Queue,
    inflight: Inflight,
    metrics: Arc<Metrics>,
    tail: Tail,
    tasks: TaskTracker,
    /// Once cancelled, no try is held beyond its budget.
    stop: CancellationToken,
    bodies: BodyTable,
}

/// The answer to WeChat, before it is written as HTTP.
struct WeChatAnswer {
    /// `verified`, `accepted` or `duplicate`, as in metrics and logs.
    result: &'static str,
    body: Bytes,
    content_type: HeaderValue,
}

impl Pipeline {
    /// A pipeline into `queue`. Bodies over `max_body` bytes are refused.
    pub fn new(accounts: Accounts, queue: Queue, metrics: Arc<Metrics>, tail: Tail, max_body: usize) -> Self {
        let accounts = ArcSwap::from_pointee(accounts.with_budgets_of(None, *queue.shares().borrow()));
        let (inflight, tasks, stop) = (Inflight::default(), TaskTracker::new(), CancellationToken::new());
        let bodies = BodyTable::new(max_body, usize::MAX);
        Self { accounts, queue, inflight, metrics, tail, tasks, stop, bodies }
    }

    /// Sets how many connections may be open, of which bodies that are still to come take a share.
    pub fn set_connections(&self, connections: usize) {
        self.bodies.set_connections(connections);
    }

    /// Accepts pushes for these accounts from now on; pushes in progress finish with the old ones.
    pub fn apply(&self, accounts: Accounts) {
        let share = *self.queue.shares().borrow();
        let accounts = accounts.with_budgets_of(Some(&self.accounts.load()), share);
        self.accounts.store(Arc::new(accounts));
    }

    /// Takes another share of every account's failure budget.
    pub fn divide(&self, share: Share) {
        self.accounts.load().divide(share);
    }

    /// Closes every reply window for good: pushes that wait in one are answered, as no further try will reach this
    /// process.
    pub fn close_windows(&self) {
        self.stop.cancel();
    }

    /// Waits for the pushes whose connection is gone.
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
        let Some(served) = accounts.at(request.uri().path()) else {
            self.metrics.push_to_unknown_path();
            // At `debug` only, as anyone can send any number of them.
            tracing::debug!(path = &*request_log::shown_path(request.uri().path()), "push to an unknown path");
            let error = if host::is_valid(&request) { PushError::UnknownPath } else { PushError::Host };
            return Ok(error.response());
        };
        let mut log = RequestLog::new(served.clone(), accounts.openids, self.tail.clone(), peer, started);
        let answer = self.answer(&served, request, started, &mut log).await;
        let status = answer.as_ref().map_or_else(PushError::status, |_| StatusCode::OK);
        log.finish(answer.as_ref().map_or_else(PushError::label, |answer| answer.result), status);
        Ok(answer.map_or_else(|error| error.response(), WeChatAnswer::into_response))
    }

    async fn answer<B>(
        self: &Arc<Self>,
        served: &Arc<ServedAccount>,
        request: Request<B>,
        started: Instant,
        log: &mut RequestLog,
    ) -> Result<WeChatAnswer, PushError>
    where
        B: http_body::Body<Data = Bytes> + Send + 'static,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let now = UnixMillis::now();
        let account = &served.account;
        if log.from_unlisted && account.allow_from.as_ref().is_some_and(|from| from.deny) {
            return Err(PushError::Source);
        }
        if !host::is_valid(&request) {
            return Err(PushError::Host);
        }
        let (parts, body) = request.into_parts();
        if parts.method != Method::GET && parts.method != Method::POST {
            return Err(PushError::Method);
        }
        let query = Query::parse(parts.uri.query().unwrap_or_default())?;
        let timestamp = Credentials::timestamp(&query);
        log.stamp = timestamp.as_ref().ok().copied();
        let skew = timestamp.map(|timestamp| timestamp - now.seconds());
        let is_fresh = skew.as_ref().is_ok_and(|skew| account.allows_skew(*skew));
        if parts.method == Method::GET {
            log.kind = Some("verify");
            let echostr = account.credentials.verify_url(&query)?;
            self.check_fresh(skew?, is_fresh, now)?;
            return Ok(WeChatAnswer::plain("verified", Bytes::copy_from_slice(echostr.as_bytes())));
        }
        let deadline = started + account.reply_budget;
        let body = self.read(body, account, &query, is_fresh);
        let body = tokio::time::timeout_at(deadline, body).await.map_err(|_| PushError::Late)??;
        let Opened { clear, message, manner } = account.credentials.open(&query, &body)?;
        self.check_fresh(skew?, is_fresh, now)?;
        let event = Arc::new(self.event(account, &parts, body, (clear, message), now));
        log.kind = Some(event.message.kind());
        log.openid = Some(event.message.from_user().to_owned());
        log.stamp = event.message.create_time().and_then(|stamp| i64::try_from(stamp).ok()).or(log.stamp);

        let mut charge = FailureCharge::new(&served.budget);
        let answer = self.answer_opened(served, event, manner, started, &mut charge, log).await;
        charge.settle(answer.as_ref().is_err_and(|error| error.status().is_server_error()));
        answer
    }

    /// Answers a verified push: as the leader, which relays it, or as a follower of one that is in progress.
    async fn answer_opened(
        self: &Arc<Self>,
        served: &Arc<ServedAccount>,
        event: Arc<Event>,
        manner: ReplySealing,
        started: Instant,
        charge: &mut FailureCharge<'_>,
        log: &mut RequestLog,
    ) -> Result<WeChatAnswer, PushError> {
        let (received_at, trace) = (event.received_at, Trace::of(&event));
        log.trace = Some(trace);
        let deadline = started + served.account.reply_budget;
        let key = ContentKey::of(&event.app_id, &event.message, &event.clear);
        let window_ends = served.budget.window().map(|length| started + length);
        let (outcome, is_retry) = match self.inflight.join(key, trace, window_ends) {
            Joined::Leader(leader, follower) => {
                if self.tasks.len() >= MAX_DETACHED {
                    return Err(PushError::Unavailable);
                }
                let relay = self.clone().relay(served.clone(), event, leader, follower.clone(), deadline);
                let relay = pin!(DetachOnDrop::new(relay, &self.tasks));
                (self.await_outcome(served, &follower, relay, deadline, charge).await?, false)
            }
            Joined::Follower(follower) => {
                log.first = Some(follower.trace);
                served.metrics.duplicates.inc();
                let outcome = pin!(follower.clone().outcome());
                (self.await_outcome(served, &follower, outcome, deadline, charge).await?, true)
            }
        };
        let result = if is_retry { "duplicate" } else { outcome.result };
        log.event = Some(outcome.event);
        if outcome.event != trace.event {
            log.first.get_or_insert(Trace::new(outcome.event, None));
        }
        match outcome.reply {
            Some(clear) => WeChatAnswer::reply(&served.account.credentials, manner, result, &clear, received_at),
            None => Ok(WeChatAnswer::plain(result, Bytes::from_static(b"success"))),
        }
    }

    /// Reads the body. A valid `signature` is enough to get more than the few slots of unauthenticated clients: it
    /// covers no body, but its sender knows the token, or has seen one that does.
    async fn read<B>(&self, body: B, account: &Account, query: &Query<'_>, is_fresh: bool) -> Result<Bytes, PushError>
    where
        B: http_body::Body<Data = Bytes>,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let signed = is_fresh && account.credentials.signed(query).unwrap_or(false);
        match query.signature.as_deref().and_then(SignatureKey::of).filter(|_| signed) {
            Some(signature) => self.bodies.read_signed(body, &account.name, signature).await,
            None => self.bodies.read_unauthenticated(body).await,
        }
    }

    /// Waits for the outcome of a push until `deadline`, where this try's reply budget ends. In a reply window a try is
    /// held beyond it if WeChat's next one can still bring the reply: WeChat gives this one up.
    async fn await_outcome(
        &self,
        served: &ServedAccount,
        push: &Follower,
        mut outcome: Pin<&mut (dyn Future<Output = Result<RelayOutcome, PushError>> + Send)>,
        mut deadline: Instant,
        charge: &mut FailureCharge<'_>,
    ) -> Result<RelayOutcome, PushError> {
        if let Some(window_ends) = push.window_ends {
            let decision = deadline - REPLY_MARGIN;
            if let Ok(outcome) = tokio::time::timeout_at(decision, outcome.as_mut()).await {
                return outcome;
            }
            // WeChat need not wait for a push that is not stored yet: it is answered 503 and retries.
            if push.awaits_reply() {
                // WeChat retries as soon as it gives up: after 5 s, by the default budget of 4.5 s.
                let next_try = deadline + served.account.reply_budget / 9;
                let is_followed = next_try < window_ends && !push.is_last();
                if is_followed && !self.stop.is_cancelled() && charge.spend() {
                    tokio::select! {
                        outcome = tokio::time::timeout_at(window_ends, outcome.as_mut()) => {
                            if let Ok(outcome) = outcome { return outcome }
                        }
                        () = self.stop.cancelled() => {}
                    }
                    deadline = Instant::now() + REPLY_MARGIN;
                }
                push.answer_now.cancel();
            }
        }
        // The relaying continues if the deadline passes first: WeChat's next try then finds its outcome.
        tokio::time::timeout_at(deadline, outcome).await.map_err(|_| PushError::Late)?
    }

    /// Relays a verified push: WeChat's event is lost for good if it is lost from here on.
    async fn relay(
        self: Arc<Self>,
        served: Arc<ServedAccount>,
        event: Arc<Event>,
        leader: Leader,
        push: Follower,
        deadline: Instant,
    ) -> Result<RelayOutcome, PushError> {
        let plan = served.account.routes.plan(&event.message);
        // The prompt is given only when the store knows of it.
        let margin = served.account.held.as_ref().map_or(Duration::ZERO, |_| self.queue.reply_margin());
        let reply_deadline = push.window_ends.unwrap_or(deadline) - REPLY_MARGIN - margin;
        let (replier, awaited) = Replier::new(plan.reply, &event, reply_deadline);
        leader.share_tries(replier.tries());
        let id = event.id;
        let late = LatePush::new(&served, &event, plan.reply);
        let picks_up = match &late {
            Some(late) => match Box::pin(self.is_pick_up(late)).await {
                Ok(picks_up) => picks_up.then_some(late),
                Err(error) => {
                    leader.finish(None);
                    return Err(error);
                }
            },
            None => None,
        };
        let is_told = |target: &&Arc<str>| picks_up.is_none_or(|late| !late.asks(target));
        let new = NewEvent {
            event,
            key: leader.key(),
            targets: plan.targets.into_iter().filter(is_told).cloned().collect(),
            reply: if picks_up.is_some() { None } else { replier.fixed() },
            awaited: if picks_up.is_some() { Vec::new() } else { awaited },
        };
        // The event goes with it: waiting for the reply must not keep it in memory.
        let outcome = match self.queue.enqueue(new).await {
            Ok(Enqueued::Fresh) => {
                let reply = match picks_up {
                    Some(late) => Box::pin(self.pick_up(late, id, &push, deadline)).await,
                    None => {
                        leader.await_reply();
                        self.reply(replier, late.as_ref(), id, &served, &push, reply_deadline).await
                    }
                };
                reply.map(|reply| RelayOutcome { event: id, result: "accepted", reply })
            }
            Ok(Enqueued::Duplicate { id, reply }) => {
                served.metrics.duplicates.inc();
                let reply = match reply {
                    Known::Answered(reply) => Ok(reply),
                    Known::Asking(until) => {
                        leader.await_reply();
                        self.reply_elsewhere(id, until, &push, reply_deadline).await
                    }
                };
                let reply = match (reply, &late) {
                    (Ok(None), Some(late)) => Box::pin(self.answer_again(late, id, &push, deadline)).await,
                    (reply, _) => reply.map(|reply| reply.map(Into::into)),
                };
                reply.map(|reply| RelayOutcome { event: id, result: "duplicate", reply })
            }
            Err(error) => {
                if let Some(suppressed) = served.failures.unstored.allow() {
                    let (account, remedy) = (&served.account.name, error.remedy());
                    tracing::error!(%account, %error, remedy, held_back = suppressed, "push not stored; WeChat will retry");
                }
                Err(PushError::Unavailable)
            }
        };
        leader.finish(outcome.as_ref().ok().cloned());
        outcome
    }

    /// The clear reply. A target's reply is stored before WeChat sees it, so that a retry, even after a restart, gets
    /// the same one.
    async fn reply(
        &self,
        replier: Replier,
        late: Option<&LatePush>,
        event: EventId,
        served: &ServedAccount,
        push: &Follower,
        deadline: Instant,
    ) -> Result<Option<Arc<str>>, PushError> {
        let asks = replier.asks();
        let over = async || drop(tokio::time::timeout_at(deadline, push.answer_now.cancelled()).await);
        let ChosenReply { reply, by_target, result, long, given, can_come } =
            replier.reply(event, &served.metrics, &served.failures.reply_illegal, over()).await;
        if let Some(result) = result {
            let rescued = by_target && push.first_arrival.elapsed() > served.account.reply_budget;
            served.metrics.reply(if rescued { "rescued" } else { result });
        }
        if let Some(long) = long {
            served.metrics.reply(long);
        }
        if asks && !by_target {
            // A retry that reaches another process waits no longer.
            self.queue.note_no_reply(event);
        }
        if let Some(late) = late.filter(|_| can_come) {
            return Box::pin(self.late_reply(late, event, Instant::now(), reply.map(Into::into))).await;
        }
        let Some(clear) = reply else { return Ok(None) };
        if by_target {
            let ends = async {
                over().await;
                tokio::time::sleep(self.queue.reply_margin()).await;
            };
            let stored = tokio::select! {
                stored = self.queue.record_reply(event, clear.clone(), given) => stored.ok(),
                () = ends => None,
            };
            if stored == Some(false) {
                tracing::info!(%event, "reply not used: another replica has answered with another, or with none");
                let other = self.queue.decide_no_reply(event).await.map_err(|_| PushError::Unavailable)?;
                let Some(late) = late.filter(|_| other.is_none()) else { return Ok(other.map(Into::into)) };
                return Box::pin(self.late_reply(late, event, Instant::now(), None)).await;
            }
            // The reply goes out all the same: the event is stored, and only a retry would miss the reply.
            if stored.is_none()
                && let Some(suppressed) = served.failures.reply_unstored.allow()
            {
                tracing::warn!(%event, held_back = suppressed, "reply not stored in time");
            }
        }
        Ok(Some(clear.into()))
    }

    /// Measures the skew of a verified request, which is evidence about our clock, and refuses one that is not fresh.
    fn check_fresh(&self, skew: i64, is_fresh: bool, received_at: UnixMillis) -> Result<(), PushError> {
        self.metrics.clock_skew.set(skew as f64);
        self.queue.clock().record(received_at.seconds().saturating_add(skew));
        if is_fresh { Ok(()) } else { Err(PushError::Stale) }
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

/// The outcome of a push, which followers get too.
#[derive(Clone, Debug)]
struct RelayOutcome {
    event: EventId,
    result: &'static str,
    reply: Option<Arc<str>>,
}

impl WeChatAnswer {
    fn plain(result: &'static str, body: Bytes) -> Self {
        Self { result, body, content_type: PLAIN }
    }

    /// Encrypted and signed with the token and key that opened this push.
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
