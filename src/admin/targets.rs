//! Targets: the deliveries of each, and the operator actions on them.

use std::collections::BTreeSet;

use axum::body::Bytes;
use axum::extract::Request;
use axum::response::Response;
use serde::Deserialize;
use serde_json::json;

use super::endpoint::{self, body, parameter};
use super::{Context, Error, TargetList, TargetOverview, object};
use crate::event::EventId;
use crate::queue::{Sweep, SweepAction};

pub(super) async fn list(context: Context, _: Request) -> Result<Response, Error> {
    let paused = context.inspect(|store| async move { store.paused().await }).await?;
    endpoint::json(&TargetList { targets: overviews(&context, paused).await? })
}

pub(super) async fn pause(context: Context, request: Request) -> Result<Response, Error> {
    set_paused(&context, request, true).await
}

pub(super) async fn resume(context: Context, request: Request) -> Result<Response, Error> {
    set_paused(&context, request, false).await
}

async fn set_paused(context: &Context, request: Request, paused: bool) -> Result<Response, Error> {
    let name = known(context, request).await?.0;
    (context.state.pause)(name.clone(), paused).await.map_err(Error::Store)?;
    context.acted(json!({ "name": name, "paused": paused })).await
}

pub(super) async fn retry_dead(context: Context, request: Request) -> Result<Response, Error> {
    let (name, body) = known(&context, request).await?;
    sweep_all(&context, Sweep::dead(&name, parse_ids(&body)?, SweepAction::Replay), "revived").await
}

pub(super) async fn drop_dead(context: Context, request: Request) -> Result<Response, Error> {
    let (name, body) = known(&context, request).await?;
    sweep_all(&context, Sweep::dead(&name, parse_ids(&body)?, SweepAction::Drop), "cancelled").await
}

pub(super) async fn drop_pending(context: Context, request: Request) -> Result<Response, Error> {
    let (name, _) = known(&context, request).await?;
    sweep_all(&context, Sweep::pending(&name, SweepAction::Drop), "cancelled").await
}

/// `{"to":"other"}`
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RedirectRequest {
    to: String,
}

pub(super) async fn redirect(context: Context, request: Request) -> Result<Response, Error> {
    let (name, body) = known(&context, request).await?;
    let RedirectRequest { to } = object(&body).map_err(|_| Error::BadBody("{\"to\":\"other\"}"))?;
    expect_configured(&context, &to)?;
    if to == name {
        return Err(Error::ToItself);
    }
    sweep_all(&context, Sweep::pending(&name, SweepAction::Redirect(to.into())), "redirected").await
}

/// The target that a request names, and the request's body.
async fn known(context: &Context, mut request: Request) -> Result<(String, Bytes), Error> {
    let name = parameter(&mut request).await?;
    expect_known(context, &name).await?;
    Ok((name, body(request).await?))
}

async fn sweep_all(context: &Context, sweep: Sweep, fate: &'static str) -> Result<Response, Error> {
    let count = self::sweep(context, sweep, fate).await?;
    context.acted(json!({ fate: count })).await
}

/// Runs a whole sweep; logs and returns how many deliveries changed.
pub(super) async fn sweep(context: &Context, sweep: Sweep, fate: &'static str) -> Result<u64, Error> {
    let target = sweep.filter.target.clone();
    let count = context.sweep_all(sweep).await;
    // Also after a failure: the steps before it are committed.
    context.stats.invalidate().await;
    let count = count?;
    tracing::info!(target, fate, count, "deliveries changed by an operator");
    Ok(count)
}

/// Selects dead letters.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct DeadLetterSelection {
    ids: Vec<String>,
}

/// The events of `{"ids":["evt_..", ..]}`; `None` without a body, for all of the target's.
fn parse_ids(body: &[u8]) -> Result<Option<Vec<EventId>>, Error> {
    const EXPECTED: &str = "none, or {\"ids\":[\"evt_...\"]}";
    if body.is_empty() {
        return Ok(None);
    }
    let DeadLetterSelection { ids } = object(body).map_err(|_| Error::BadBody(EXPECTED))?;
    let ids = ids.iter().map(|id| id.parse()).collect::<Result<_, _>>().map_err(|_| Error::BadBody(EXPECTED))?;
    Ok(Some(ids))
}

/// Fails for a target that is neither configured nor in the store: a misspelt name is an error, not a target without
/// deliveries.
pub(super) async fn expect_known(context: &Context, name: &str) -> Result<(), Error> {
    for _ in 0..2 {
        let targets = overviews(context, BTreeSet::new()).await?;
        if targets.iter().any(|target| target.name == name) {
            return Ok(());
        }
        // Its first delivery may be younger than the statistics.
        context.stats.invalidate().await;
    }
    Err(Error::NoSuchTarget)
}

/// Fails for a target that is not configured: deliveries to it would stay pending for ever.
pub(super) fn expect_configured(context: &Context, name: &str) -> Result<(), Error> {
    let configured = (context.state.targets)().ok_or(Error::Stopped)?;
    if configured.iter().any(|target| target.name == name) { Ok(()) } else { Err(Error::NotConfigured) }
}

pub(super) async fn overviews(context: &Context, paused: BTreeSet<String>) -> Result<Vec<TargetOverview>, Error> {
    let stats = context.stats.get().await?;
    let configured = (context.state.targets)().ok_or(Error::Stopped)?;
    Ok(TargetOverview::merge(configured.iter().map(|target| &*target.name), &stats.targets, &paused))
}
