//! Targets: what waits for each, and what an operator does about it.

use std::collections::BTreeMap;

use axum::Json;
use axum::body::Bytes;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{Context, Error, object};
use crate::clock::UnixMillis;
use crate::event::EventId;
use crate::queue::{Fate, Inspect, Sweep, view};

/// The name in a request's path.
type Name = Result<Path<String>, PathRejection>;

/// A target, configured or not: deliveries stay when their target leaves the configuration.
#[derive(Serialize)]
pub(super) struct Target {
    name: String,
    configured: bool,
    paused: bool,
    #[serde(flatten)]
    counts: view::Counts,
    oldest_pending: Option<String>,
}

pub(super) async fn list(State(context): State<Context>) -> Result<Json<Value>, Error> {
    let mut targets = targets(&context).await?;
    for paused in context.inspect(Inspect::paused).await? {
        targets.entry(paused).and_modify(|target| target.paused = true);
    }
    Ok(Json(json!({ "targets": targets.into_values().collect::<Vec<_>>() })))
}

pub(super) async fn pause(context: State<Context>, name: Name) -> Result<Json<Value>, Error> {
    set_paused(&context, name, true).await
}

pub(super) async fn resume(context: State<Context>, name: Name) -> Result<Json<Value>, Error> {
    set_paused(&context, name, false).await
}

async fn set_paused(context: &Context, name: Name, paused: bool) -> Result<Json<Value>, Error> {
    let Path(name) = name?;
    known(context, &name).await?;
    (context.state.pause)(name.clone(), paused).await.map_err(Error::Store)?;
    Ok(Json(json!({ "name": name, "paused": paused })))
}

pub(super) async fn retry_dead(State(context): State<Context>, name: Name, body: Bytes) -> Result<Json<Value>, Error> {
    let (name, letters) = chosen(&context, name, &body).await?;
    changed(&context, Sweep::dead(&name, letters, Fate::Replayed), "revived").await
}

pub(super) async fn drop_dead(State(context): State<Context>, name: Name, body: Bytes) -> Result<Json<Value>, Error> {
    let (name, letters) = chosen(&context, name, &body).await?;
    changed(&context, Sweep::dead(&name, letters, Fate::Dropped), "cancelled").await
}

pub(super) async fn drop_pending(State(context): State<Context>, name: Name) -> Result<Json<Value>, Error> {
    let Path(name) = name?;
    known(&context, &name).await?;
    changed(&context, Sweep::pending(&name, Fate::Dropped), "cancelled").await
}

/// `{"to":"other"}`
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Elsewhere {
    to: String,
}

pub(super) async fn redirect(State(context): State<Context>, name: Name, body: Bytes) -> Result<Json<Value>, Error> {
    let Path(name) = name?;
    let Elsewhere { to } = object(&body).map_err(|_| Error::BadBody("{\"to\":\"other\"}"))?;
    known(&context, &name).await?;
    configured(&context, &to)?;
    if to == name {
        return Err(Error::ToItself);
    }
    changed(&context, Sweep::pending(&name, Fate::Redirected(to.into())), "redirected").await
}

/// The target and its dead letters that a request is about.
async fn chosen(context: &Context, name: Name, body: &[u8]) -> Result<(String, Option<Vec<EventId>>), Error> {
    let (Path(name), letters) = (name?, letters(body)?);
    known(context, &name).await?;
    Ok((name, letters))
}

/// Makes the whole sweep; tells log and caller what became of how many.
async fn changed(context: &Context, sweep: Sweep, fate: &'static str) -> Result<Json<Value>, Error> {
    let target = sweep.filter.target.clone();
    let count = context.state.queue.sweep_all(sweep, UnixMillis::now()).await;
    // Also after a failure: the steps before it stand.
    context.stats.invalidate().await;
    let count = count.map_err(Error::Store)?;
    tracing::info!(target, fate, count, "deliveries changed by hand");
    Ok(Json(json!({ fate: count })))
}

/// Which dead letters an operator means.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Which {
    ids: Vec<String>,
}

/// Without a body all of the target's; with `{"ids":["evt_..", ..]}` those.
fn letters(body: &[u8]) -> Result<Option<Vec<EventId>>, Error> {
    const EXPECTED: &str = "none, or {\"ids\":[\"evt_...\"]}";
    if body.is_empty() {
        return Ok(None);
    }
    let Which { ids } = object(body).map_err(|_| Error::BadBody(EXPECTED))?;
    let ids = ids.iter().map(|id| id.parse()).collect::<Result<_, _>>().map_err(|_| Error::BadBody(EXPECTED))?;
    Ok(Some(ids))
}

/// A misspelt name is an error, not a target without deliveries.
pub(super) async fn known(context: &Context, name: &str) -> Result<(), Error> {
    if targets(context).await?.contains_key(name) { Ok(()) } else { Err(Error::NoSuchTarget) }
}

/// What is sent to a target that nobody serves would wait for ever.
pub(super) fn configured(context: &Context, name: &str) -> Result<(), Error> {
    if names(&(context.state.status)()).any(|configured| configured == name) {
        Ok(())
    } else {
        Err(Error::NotConfigured)
    }
}

/// The names of the configured targets, as the app tells them.
fn names(status: &Value) -> impl Iterator<Item = &str> {
    status["targets"].as_array().into_iter().flatten().filter_map(|target| target["name"].as_str())
}

async fn targets(context: &Context) -> Result<BTreeMap<String, Target>, Error> {
    let (stats, status) = (context.stats.get().await?, (context.state.status)());
    let mut targets: BTreeMap<_, _> = names(&status)
        .map(|name| {
            let (name, counts) = (name.to_owned(), view::Counts::default());
            (name.clone(), Target { name, configured: true, paused: false, counts, oldest_pending: None })
        })
        .collect();
    for stored in &stats.targets {
        let target = targets.entry(stored.target.clone()).or_insert_with(|| Target {
            name: stored.target.clone(),
            configured: false,
            paused: false,
            counts: stored.counts,
            oldest_pending: None,
        });
        target.counts = stored.counts;
        target.oldest_pending = stored.oldest_pending.map(|moment| moment.to_string());
    }
    Ok(targets)
}
