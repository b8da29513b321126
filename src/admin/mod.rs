//! The admin listener: health, metrics, and an API for operators.
//!
//! | route | file | what |
//! |---|---|---|
//! | `GET /livez` | health.rs | 200 while the process serves |
//! | `GET /readyz` | health.rs | 200, or 503 and the reason in one word |
//! | `GET /readyz/direct` | health.rs | the same, not counting a spool |
//! | `GET /metrics` | metrics.rs | Prometheus' text format |
//! | `GET /api/me` | caller.rs | whom the token belongs to |
//! | `GET /api/status` | status.rs | version, accounts, targets, and the queue's totals |
//! | `GET /api/audit` | audit.rs | the ledger, counted row by row |
//! | `GET /api/events` | events.rs | lists events by filter, newest first |
//! | `GET /api/events/{id}` | events.rs | shows one event with every attempt |
//! | `POST /api/events/replay` | replay.rs | delivers a page of the events of a filter again |
//! | `POST /api/events/{id}/replay` | replay.rs | delivers one event again |
//! | `POST /api/events/forget` | forget.rs | deletes a page of a user's events with their deliveries and attempts |
//! | `POST /api/store/salvage` | salvage.rs | reads back damaged stores in the background |
//! | `GET /api/store/salvage` | salvage.rs | shows how far that is, and its report |
//! | `GET /api/tail` | tail.rs | streams each push and each attempt as server-sent events |
//! | `GET /api/checks` | checks/ | what needs a hand, with what to do |
//! | `GET /api/history` | history.rs | the last hour of an account, a target or all, in steps of 10 s |
//! | `GET /api/targets` | targets.rs | counts the deliveries of each target by state |
//! | `GET /api/targets/{name}` | target.rs | shows one target: state, schedule, failures of the last hour |
//! | `POST /api/targets/{name}/probe` | target.rs | connects to a target, without an event |
//! | `POST /api/targets/{name}/pause`, `/resume` | targets.rs | stops the attempts for a target, or resumes them |
//! | `POST /api/targets/{name}/retry-dead` | targets.rs | makes dead letters pending again |
//! | `POST /api/targets/{name}/drop-dead` | targets.rs | cancels dead letters |
//! | `POST /api/targets/{name}/drop-pending` | targets.rs | cancels pending deliveries |
//! | `POST /api/targets/{name}/redirect` | targets.rs | moves pending deliveries to another target |
//! | `POST /api/reload` | reload.rs | reloads the configuration, and shows what changed |
//! | `GET /api/openapi.json` | openapi.rs | describes the API as an OpenAPI 3.1 document |
//!
//! Invariants: everything except health passes the guard (`guard.rs`, `failures.rs`) and then admission
//! (`admission.rs`), so that nobody waits for a client that sends or reads nothing; every failure is answered
//! `{"error":".."}` (`error.rs`); no response may be read by another origin (no CORS). This module has access to the
//! queue and to what the app passes in [`State`]; it knows neither pushes nor the dispatcher.

mod admission;
mod audit;
mod caller;
mod checks;
mod clock_watch;
mod console;
mod endpoint;
mod error;
mod events;
mod failures;
mod forget;
mod guard;
mod health;
mod history;
mod metrics;
mod openapi;
mod overview;
mod reload;
mod replay;
mod salvage;
mod stats_cache;
mod status;
mod tail;
mod target;
mod targets;

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::Request;
use axum::http::{HeaderValue, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use tokio::sync::{Semaphore, mpsc};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tower_http::catch_panic::CatchPanicLayer;

use crate::clock::UnixMillis;
use crate::event::EventId;
use crate::host;
use crate::metrics::Metrics;
use crate::queue::{self, Inspect, Obstacle, Queue, Seen, Sweep, SweepProgress};
use crate::secret::Secret;
use crate::server::Listen;
use crate::tail::Tail;

pub use caller::{ADMIN, User, UserRole};
pub use clock_watch::watch_clock;
pub use health::Ready;
pub use overview::{
    AccountOverview, ConfiguredTarget, EventPage, KeyChange, KeyChangeKind, QueueTotals, ReloadReport, Status,
    TargetList, TargetOverview,
};
pub use reload::Reload;
pub use target::TargetFacts;

use admission::Admission;
use endpoint::endpoint;
use error::Error;
use stats_cache::StatsCache;

/// `[admin]` of the configuration.
#[derive(Clone, Debug)]
pub struct Settings {
    pub listen: Listen,
    /// The required bearer token; `None` on loopback and Unix sockets, or where there are users.
    pub token: Option<Secret>,
    /// Who else may use the API, each by a token of their own.
    pub users: Vec<User>,
    /// Whether the console is served.
    pub console: bool,
    /// Names by which browsers may open it, besides addresses and `localhost`.
    pub console_hosts: Vec<String>,
}

/// Pauses and resumes targets, by the dispatcher.
pub type Pause =
    Arc<dyn Fn(String, bool) -> Pin<Box<dyn Future<Output = Result<(), queue::Error>> + Send>> + Send + Sync>;

/// Finds a configured target by its name.
pub type FindTarget = Arc<dyn Fn(&str) -> Option<TargetFacts> + Send + Sync>;

/// What the app passes to the listener.
#[derive(Clone)]
pub struct State {
    pub queue: Queue,
    /// The settings of the queue, whose store the API also reads by itself.
    pub store: queue::Settings,
    pub metrics: Arc<Metrics>,
    pub ready: Ready,
    /// The configured targets; `None` once the app has stopped.
    pub targets: Arc<dyn Fn() -> Option<Vec<ConfiguredTarget>> + Send + Sync>,
    /// The status, from why pushes are not accepted and the queue's totals; `None` once the app has stopped.
    pub status: Arc<dyn Fn(Option<&'static str>, QueueTotals) -> Option<Status> + Send + Sync>,
    /// A configured target; `None` for any other name, and once the app has stopped.
    pub target: FindTarget,
    /// Pauses the target of that name, or with `false` resumes it.
    pub pause: Pause,
    /// The source of live activity.
    pub tail: Tail,
    /// Passes requests to reload to the app.
    pub reload: mpsc::Sender<Reload>,
    /// Ends what the listener does by itself.
    pub stop: CancellationToken,
}

/// The steps of one page of a sweep: some thousand deliveries.
const STEPS: usize = 10;
/// The most concurrent requests to the API, as they read the disk that pushes are written to, and how many wait.
const API_SLOTS: usize = 8;
const API_WAITING: usize = 32;
/// The same for `/metrics`, which shares none of them: it is needed most when the API is busy.
const METRICS_SLOTS: usize = 4;
const METRICS_WAITING: usize = 16;
/// How long an action waits until every replica has seen it.
const SEEN_WAIT: Duration = Duration::from_secs(2);
/// The deadline of a request.
const DEADLINE: Duration = Duration::from_secs(30);
/// The deadline of an operator action on many deliveries. As long as the commands wait, since a million takes minutes.
const ACTION_DEADLINE: Duration = Duration::from_secs(600);
/// The deadline of each of its steps: it may take long, but not stand still.
const STEP_DEADLINE: Duration = Duration::from_secs(30);

/// The admin listener's service, for [`crate::server::serve`].
pub fn service(state: State, settings: &Settings) -> Router {
    let context = Context {
        stats: StatsCache::new(state.queue.clone(), state.store.folder(), state.metrics.clone()),
        salvage: salvage::SalvageRun::default(),
        readers: Arc::new(Semaphore::new(API_SLOTS)),
        history: Arc::new(history::History::new()),
        since: Arc::default(),
        state,
    };
    let (stop, watch) = (context.state.stop.clone(), history::watch(context.clone()));
    tokio::spawn(async move { stop.run_until_cancelled(watch).await });
    let guard = guard::AccessControl::new(settings);
    let api = Admission::new(API_SLOTS, API_WAITING, DEADLINE);
    let requests = Router::new()
        .route("/api/me", get(endpoint!(caller::me)))
        .route("/api/status", get(endpoint!(status::status)))
        .route("/api/audit", get(endpoint!(audit::audit)))
        .route("/api/events", get(endpoint!(events::list)))
        .route("/api/events/{id}", get(endpoint!(events::show)))
        .route("/api/store/salvage", get(endpoint!(salvage::show)))
        .route("/api/store/salvage", post(endpoint!(salvage::start)))
        .route("/api/tail", get(endpoint!(tail::tail)))
        .route("/api/targets", get(endpoint!(targets::list)))
        .route("/api/checks", get(endpoint!(checks::list)))
        .route("/api/history", get(endpoint!(history::list)))
        .route("/api/targets/{name}", get(endpoint!(target::get)))
        .route("/api/targets/{name}/probe", post(endpoint!(target::post_probe)))
        .route("/api/targets/{name}/pause", post(endpoint!(targets::pause)))
        .route("/api/targets/{name}/resume", post(endpoint!(targets::resume)))
        .route("/api/reload", post(endpoint!(reload::reload)))
        .route("/api/openapi.json", get(endpoint!(openapi::openapi)))
        .route_layer(middleware::from_fn_with_state(api.clone(), admission::admit));
    let actions = Router::new()
        .route("/api/events/replay", post(endpoint!(replay::page)))
        .route("/api/events/{id}/replay", post(endpoint!(replay::one)))
        .route("/api/events/forget", post(endpoint!(forget::page)))
        .route("/api/targets/{name}/retry-dead", post(endpoint!(targets::retry_dead)))
        .route("/api/targets/{name}/drop-dead", post(endpoint!(targets::drop_dead)))
        .route("/api/targets/{name}/drop-pending", post(endpoint!(targets::drop_pending)))
        .route("/api/targets/{name}/redirect", post(endpoint!(targets::redirect)))
        .route_layer(middleware::from_fn_with_state(api.with_deadline(ACTION_DEADLINE), admission::admit));
    let scrapes = Admission::new(METRICS_SLOTS, METRICS_WAITING, DEADLINE);
    let metrics = Router::new()
        .route("/metrics", get(endpoint!(metrics::scrape)))
        .route_layer(middleware::from_fn_with_state(scrapes, admission::admit_unread));
    let guarded = requests
        .merge(actions)
        .merge(metrics)
        .fallback(async || Error::NoSuchPath)
        .method_not_allowed_fallback(async || Error::Method)
        // Around admission, so that unauthenticated clients cannot use up its slots.
        .layer(middleware::from_fn_with_state(guard.clone(), guard::check));
    let console = if settings.console { console::routes(&guard, &settings.console_hosts) } else { Router::new() };
    // Health stays outside the guard: probes have no token, and learn one word.
    Router::new()
        .route("/livez", get(endpoint!(health::livez)))
        .route("/readyz", get(endpoint!(health::readyz)))
        .route("/readyz/direct", get(endpoint!(health::readyz_direct)))
        .merge(console)
        .merge(guarded)
        .layer(middleware::from_fn(check_host))
        .layer(CatchPanicLayer::custom(|_| Error::Internal.into_response()))
        .layer(middleware::map_response(harden))
        .with_state(context)
}

/// The state of every handler.
#[derive(Clone)]
struct Context {
    state: State,
    stats: StatsCache,
    /// Held by each read of the store until its thread has ended, which on a disk that hangs outlives the request.
    readers: Arc<Semaphore>,
    salvage: salvage::SalvageRun,
    /// The last hour.
    history: Arc<history::History>,
    /// Since when checks hold.
    since: Arc<checks::Since>,
}

impl Context {
    /// Why pushes are not accepted, in one word; `None` if they are.
    async fn obstacle(&self) -> Option<&'static str> {
        match self.state.ready.obstacle().or_else(|| self.state.queue.obstacle().map(Obstacle::word)) {
            // The queue's writer has its files open, and may not notice that the store was removed. With PostgreSQL the
            // queue knows.
            None if self.state.store.folder().is_some() && self.stats.get().await.is_err() => {
                Some(Obstacle::Failing.word())
            }
            obstacle => obstacle,
        }
    }

    /// The answer to an action, with how many replicas have seen it; waits for them a moment.
    async fn acted(&self, mut answer: Value) -> Result<Response, Error> {
        // The action is done, whatever becomes of this question.
        if let Ok(Some(Seen { replicas, seen })) = self.state.queue.await_seen(SEEN_WAIT).await {
            (answer["replicas"], answer["seen"]) = (replicas.into(), seen.into());
        }
        endpoint::json(&answer)
    }

    /// As [`Context::obstacle`], but for a spool.
    async fn direct_obstacle(&self) -> Option<&'static str> {
        match self.obstacle().await {
            None => self.state.queue.direct_obstacle().map(Obstacle::word),
            obstacle => obstacle,
        }
    }

    /// Runs one page of a sweep's steps, which begins after the event `after`.
    async fn sweep(&self, sweep: Sweep, mut after: Option<EventId>) -> Result<SweepProgress, Error> {
        let (sweep, now) = (Arc::new(sweep), UnixMillis::now());
        let mut page = SweepProgress { changed: 0, next: None };
        for _ in 0..STEPS {
            let step = self.sweep_step(&sweep, after, now).await;
            // Also after a failure: the steps before it are committed.
            self.stats.invalidate().await;
            let SweepProgress { changed, next } = step?;
            page = SweepProgress { changed: page.changed + changed, next };
            after = next;
            if next.is_none() {
                break;
            }
        }
        Ok(page)
    }

    /// Runs a whole sweep.
    async fn sweep_all(&self, sweep: Sweep) -> Result<u64, Error> {
        let (sweep, now, mut total, mut after) = (Arc::new(sweep), UnixMillis::now(), 0, None);
        loop {
            let SweepProgress { changed, next } = self.sweep_step(&sweep, after, now).await?;
            total += changed;
            after = next;
            if next.is_none() {
                return Ok(total);
            }
        }
    }

    async fn sweep_step(
        &self,
        sweep: &Arc<Sweep>,
        after: Option<EventId>,
        now: UnixMillis,
    ) -> Result<SweepProgress, Error> {
        let step = timeout(STEP_DEADLINE, self.state.queue.sweep(sweep, after, now)).await;
        step.map_err(|_| Error::Late(STEP_DEADLINE))?.map_err(Error::Store)
    }

    /// Reads the store; to its end, even if the request is gone, so that no more readers run than are allowed.
    async fn inspect<T, F, R>(&self, read: F) -> Result<T, Error>
    where
        T: Send + 'static,
        F: FnOnce(Inspect) -> R + Send + 'static,
        R: Future<Output = Result<T, queue::Error>> + Send,
    {
        let store = self.state.store.clone();
        // The semaphore is never closed.
        let permit = self.readers.clone().acquire_owned().await.map_err(|_| Error::Internal)?;
        let reading = tokio::spawn(async move {
            let _permit = permit;
            read(Inspect::open(&store).await?).await
        });
        reading.await.map_err(|_| Error::Internal)?.map_err(Error::Store)
    }
}

/// Refuses a request whose `Host` is not as RFC 9112 demands.
async fn check_host(request: Request, next: Next) -> Response {
    if host::is_valid(&request) { next.run(request).await } else { Error::BadHost.into_response() }
}

/// Adds headers by which browsers do not cache, frame or run a response, nor let another site read it.
async fn harden(mut answer: Response) -> Response {
    let headers = answer.headers_mut();
    for (name, value) in [
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::CACHE_CONTROL, "no-store"),
        (header::CONTENT_SECURITY_POLICY, "default-src 'none'; frame-ancestors 'none'"),
        (header::X_FRAME_OPTIONS, "DENY"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
    ] {
        // The console has a policy of its own, and files that may be kept.
        headers.entry(name).or_insert(HeaderValue::from_static(value));
    }
    answer
}

/// Parses a body that must be a JSON object: for a struct, serde would also accept a list of its fields.
fn object<T: DeserializeOwned>(body: &[u8]) -> serde_json::Result<T> {
    serde_json::from_slice::<Map<String, Value>>(body).and_then(|object| serde_json::from_value(Value::Object(object)))
}

#[cfg(test)]
mod openapi_tests;
#[cfg(test)]
mod tests;
