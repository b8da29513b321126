//! One target: its state, schedule and failures, and a probe of it.
//!
//! What attempts have shown is known to the process that made them: with PostgreSQL each replica has its own. Counts are
//! those of the store.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::Request;
use axum::response::Response;
use serde_json::{Value, json};

use super::endpoint::{self, parameter};
use super::{Context, Error, TargetOverview, targets};
use crate::backoff::Schedule;
use crate::clock::UnixMillis;
use crate::deliver::{FailureCount, ProbeReport, Role, TargetFindings, TargetHealth, Upstream};

/// What the app knows of a configured target.
pub struct TargetFacts {
    pub upstream: Arc<Upstream>,
    /// Its word in the configuration.
    pub format: &'static str,
    pub retry: Schedule,
    pub expire_after: Option<Duration>,
    /// Of all replicas.
    pub concurrency: usize,
    pub paused: bool,
    pub health: Arc<TargetHealth>,
    /// The account whose credentials a probe uses, where the target can verify them.
    pub account: Option<Arc<str>>,
}

/// A target as `/api/targets/{name}` and its page show it.
pub(super) struct TargetDetail {
    pub(super) counts: TargetOverview,
    /// `None` for a target that is not configured any more.
    pub(super) facts: Option<TargetFacts>,
    pub(super) found: TargetFindings,
    /// Up, down, paused or removed.
    pub(super) state: &'static str,
}

impl TargetDetail {
    /// Fails for a target that is neither configured nor in the store.
    pub(super) async fn of(context: &Context, name: &str) -> Result<Self, Error> {
        let paused = context.inspect(|store| async move { store.paused().await }).await?;
        let all = targets::overviews(context, paused).await?;
        let counts = all.into_iter().find(|target| target.name == name).ok_or(Error::NoSuchTarget)?;
        let facts = (context.state.target)(name);
        let found = facts.as_ref().map(|facts| facts.health.findings(UnixMillis::now())).unwrap_or_default();
        let state = match &facts {
            None => "removed",
            Some(facts) if facts.paused => "paused",
            Some(_) if found.is_down => "down",
            Some(_) => "up",
        };
        Ok(Self { counts, facts, found, state })
    }

    /// When the oldest delivery that is pending is given up: at the earliest, where the schedule decides, as a probe of
    /// a target that is down uses up no attempt.
    pub(super) fn gives_up_at(&self) -> Option<UnixMillis> {
        let (oldest, facts) = (self.counts.oldest_pending?, self.facts.as_ref()?);
        let schedule: Duration = facts.retry.waits().iter().sum();
        Some(oldest.after(facts.expire_after.unwrap_or(schedule)))
    }

    pub(super) fn url(&self) -> Option<String> {
        self.facts.as_ref().map(|facts| shown_url(&facts.upstream))
    }

    fn json(&self) -> Value {
        let Self { counts, facts, found, state } = self;
        let failure = |one: &FailureCount| json!({ "status": one.status, "error": one.error, "count": one.count, "last": one.last });
        let failures: Vec<Value> = found.failures.iter().map(failure).collect();
        let mut shown = json!(counts);
        for (key, value) in [
            ("state", (*state).into()),
            ("since", json!(found.since)),
            ("role", facts.as_ref().map(|facts| role(facts)).into()),
            ("format", facts.as_ref().map(|facts| facts.format).into()),
            ("url", self.url().into()),
            ("concurrency", facts.as_ref().map(|facts| facts.concurrency).into()),
            ("timeout_seconds", facts.as_ref().map(|facts| facts.upstream.target().timeout.as_secs_f64()).into()),
            ("retry_seconds", facts.as_ref().map_or_else(Vec::new, |facts| seconds(&facts.retry)).into()),
            (
                "expire_after_seconds",
                facts.as_ref().and_then(|facts| facts.expire_after).map(|span| span.as_secs_f64()).into(),
            ),
            ("last_success", json!(found.last_success)),
            ("last_failure", json!(found.last_failure)),
            ("next_probe", json!(found.next_probe)),
            ("next_attempt", json!(found.next_due)),
            ("gives_up_at", json!(self.gives_up_at())),
            ("failures", failures.into()),
        ] {
            shown[key] = value;
        }
        shown
    }
}

pub(super) fn role(facts: &TargetFacts) -> &'static str {
    match facts.upstream.target().role {
        Role::Identity => "identity",
        Role::Handler => "handler",
    }
}

/// The waits between attempts.
pub(super) fn seconds(retry: &Schedule) -> Vec<f64> {
    retry.waits().iter().map(Duration::as_secs_f64).collect()
}

/// The URL without its query, which may be a secret; of an identity provider without its path, which is one.
fn shown_url(upstream: &Upstream) -> String {
    let target = upstream.target();
    let origin = format!(
        "{}://{}",
        target.url.scheme_str().unwrap_or("http"),
        target.url.authority().map_or("", |authority| authority.as_str().rsplit('@').next().unwrap_or_default())
    );
    match (target.role, target.url.query()) {
        (Role::Identity, _) => origin + "/...",
        (Role::Handler, None) => origin + target.url.path(),
        (Role::Handler, Some(_)) => origin + target.url.path() + "?...",
    }
}

pub(super) async fn get(context: Context, mut request: Request) -> Result<Response, Error> {
    let name = parameter(&mut request).await?;
    endpoint::json(&show(&context, &name).await?)
}

pub(super) async fn post_probe(context: Context, mut request: Request) -> Result<Response, Error> {
    let name = parameter(&mut request).await?;
    endpoint::json(&probed(&name, &probe(&context, &name).await?))
}

/// The answer to `GET /api/targets/{name}`.
pub(super) async fn show(context: &Context, name: &str) -> Result<Value, Error> {
    Ok(TargetDetail::of(context, name).await?.json())
}

/// Probes a configured target; neither its circuit breaker nor the store learns of it.
pub(super) async fn probe(context: &Context, name: &str) -> Result<ProbeReport, Error> {
    let facts = (context.state.target)(name).ok_or(Error::NoSuchTarget)?;
    let found = facts.upstream.probe(facts.account.as_deref(), UnixMillis::now()).await;
    tracing::info!(target = name, ok = found.ok, "target probed by an operator");
    Ok(found)
}

/// The answer to `POST /api/targets/{name}/probe`.
pub(super) fn probed(name: &str, found: &ProbeReport) -> Value {
    let result = match found.ok {
        Some(true) => "ok",
        Some(false) => "failed",
        None => "warning",
    };
    let ms = found.took.map(|took| took.as_secs_f64() * 1e3);
    json!({ "name": name, "result": result, "ms": ms, "text": found.text, "remedy": found.remedy })
}
