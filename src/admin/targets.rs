//! Targets: the deliveries of each, and the operator actions on them.

use std::collections::BTreeSet;

use axum::Json;
use axum::body::Bytes;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Context, Error, TargetList, TargetOverview, object};
use crate::event::EventId;
use crate::queue::{Sweep, SweepAction};

type Name = Result<Path<String>, PathRejection>;

pub(super) async fn list(State(context): State<Context>) -> Result<Json<TargetList>, Error> {
    let paused = context.inspect(|store| async move { store.paused().await }).await?;
    Ok(Json(TargetList { targets: overviews(&context, paused).await? }))
}

pub(super) async fn pause(context: State<Context>, name: Name) -> Result<Json<Value>, Error> {
    set_paused(&context, name, true).await
}

pub(super) async fn resume(context: State<Context>, name: Name) -> Result<Json<Value>, Error> {
    set_paused(&context, name, false).await
}

async fn set_paused(context: &Context, name: Name, paused: bool) -> Result<Json<Value>, Error> {
    let Path(name) = name?;
    expect_known(context, &name).await?;
    (context.state.pause)(name.clone(), paused).await.map_err(Error::Store)?;
    Ok(context.acted(json!({ "name": name, "paused": paused })).await)
}

pub(super) async fn retry_dead(State(context): State<Context>, name: Name, body: Bytes) -> Result<Json<Value>, Error> {
    let (name, letters) = selection(&context, name, &body).await?;
    sweep_all(&context, Sweep::dead(&name, letters, SweepAction::Replay), "revived").await
}

pub(super) async fn drop_dead(State(context): State<Context>, name: Name, body: Bytes) -> Result<Json<Value>, Error> {
    let (name, letters) = selection(&context, name, &body).await?;
    sweep_all(&context, Sweep::dead(&name, letters, SweepAction::Drop), "cancelled").await
}

pub(super) async fn drop_pending(State(context): State<Context>, name: Name) -> Result<Json<Value>, Error> {
    let Path(name) = name?;
    expect_known(&context, &name).await?;
    sweep_all(&context, Sweep::pending(&name, SweepAction::Drop), "cancelled").await
}

/// `{"to":"other"}`
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RedirectRequest {
    to: String,
}

pub(super) async fn redirect(State(context): State<Context>, name: Name, body: Bytes) -> Result<Json<Value>, Error> {
    let Path(name) = name?;
    let RedirectRequest { to } = object(&body).map_err(|_| Error::BadBody("{\"to\":\"other\"}"))?;
    expect_known(&context, &name).await?;
    expect_configured(&context, &to)?;
    if to == name {
        return Err(Error::ToItself);
    }
    sweep_all(&context, Sweep::pending(&name, SweepAction::Redirect(to.into())), "redirected").await
}

/// The target and the dead letters that a request selects.
async fn selection(context: &Context, name: Name, body: &[u8]) -> Result<(String, Option<Vec<EventId>>), Error> {
    let (Path(name), letters) = (name?, parse_ids(body)?);
    expect_known(context, &name).await?;
    Ok((name, letters))
}

/// Runs a whole sweep; logs and returns how many deliveries changed.
async fn sweep_all(context: &Context, sweep: Sweep, fate: &'static str) -> Result<Json<Value>, Error> {
    let target = sweep.filter.target.clone();
    let count = context.sweep_all(sweep).await;
    // Also after a failure: the steps before it are committed.
    context.stats.invalidate().await;
    let count = count?;
    tracing::info!(target, fate, count, "deliveries changed by an operator");
    Ok(context.acted(json!({ fate: count })).await)
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
    let targets = overviews(context, BTreeSet::new()).await?;
    if targets.iter().any(|target| target.name == name) { Ok(()) } else { Err(Error::NoSuchTarget) }
}

/// Fails for a target that is not configured: deliveries to it would stay pending for ever.
pub(super) fn expect_configured(context: &Context, name: &str) -> Result<(), Error> {
    let configured = (context.state.targets)().ok_or(Error::Stopped)?;
    if configured.iter().any(|target| target.name == name) { Ok(()) } else { Err(Error::NotConfigured) }
}

async fn overviews(context: &Context, paused: BTreeSet<String>) -> Result<Vec<TargetOverview>, Error> {
    let stats = context.stats.get().await?;
    let configured = (context.state.targets)().ok_or(Error::Stopped)?;
    Ok(TargetOverview::merge(configured.iter().map(|target| &*target.name), &stats.targets, &paused))
}
