//! Targets: what waits for each, and what an operator does about dead letters.

use std::collections::BTreeMap;

use axum::Json;
use axum::body::Bytes;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{Context, Error};
use crate::clock::UnixMillis;
use crate::queue::{self, DeadLetters, view};

/// A target, configured or not: deliveries stay when their target leaves the configuration.
#[derive(Serialize)]
pub(super) struct Target {
    name: String,
    configured: bool,
    #[serde(flatten)]
    counts: view::Counts,
    oldest_pending: Option<String>,
}

pub(super) async fn list(State(context): State<Context>) -> Result<Json<Value>, Error> {
    let targets = targets(&context).await?;
    Ok(Json(json!({ "targets": targets.into_values().collect::<Vec<_>>() })))
}

pub(super) async fn retry_dead(
    State(context): State<Context>,
    name: Result<Path<String>, PathRejection>,
    body: Bytes,
) -> Result<Json<Value>, Error> {
    let (name, letters) = chosen(&context, name, &body).await?;
    let revived = context.state.queue.revive(&name, letters, UnixMillis::now()).await;
    changed(&context, &name, "revived", revived).await
}

pub(super) async fn drop_dead(
    State(context): State<Context>,
    name: Result<Path<String>, PathRejection>,
    body: Bytes,
) -> Result<Json<Value>, Error> {
    let (name, letters) = chosen(&context, name, &body).await?;
    let cancelled = context.state.queue.drop_dead(&name, letters, UnixMillis::now()).await;
    changed(&context, &name, "cancelled", cancelled).await
}

/// The target and its dead letters that a request is about.
async fn chosen(
    context: &Context,
    name: Result<Path<String>, PathRejection>,
    body: &[u8],
) -> Result<(String, DeadLetters), Error> {
    let (Path(name), letters) = (name?, letters(body)?);
    known(context, &name).await?;
    Ok((name, letters))
}

/// Tells log and caller what became of how many.
async fn changed(
    context: &Context,
    target: &str,
    fate: &'static str,
    count: Result<u64, queue::Error>,
) -> Result<Json<Value>, Error> {
    // Also after a failure: the steps before it stand.
    context.glance.forget().await;
    let count = count.map_err(Error::Store)?;
    tracing::info!(target, fate, count, "dead letters changed");
    Ok(Json(json!({ fate: count })))
}

/// Which dead letters an operator means.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Which {
    ids: Vec<String>,
}

/// Without a body all of the target's; with `{"ids":["evt_..", ..]}` those.
fn letters(body: &[u8]) -> Result<DeadLetters, Error> {
    if body.is_empty() {
        return Ok(DeadLetters::All);
    }
    let Which { ids } = serde_json::from_slice(body).map_err(|_| Error::BadBody)?;
    let ids = ids.iter().map(|id| id.parse()).collect::<Result<_, _>>().map_err(|_| Error::BadBody)?;
    Ok(DeadLetters::Of(ids))
}

/// A misspelt name is an error, not a target without dead letters.
async fn known(context: &Context, name: &str) -> Result<(), Error> {
    if targets(context).await?.contains_key(name) { Ok(()) } else { Err(Error::NoSuchTarget) }
}

async fn targets(context: &Context) -> Result<BTreeMap<String, Target>, Error> {
    let (stats, status) = (context.glance.stats().await?, (context.state.status)());
    let configured = status["targets"].as_array().into_iter().flatten().filter_map(|target| target["name"].as_str());
    let mut targets: BTreeMap<_, _> = configured
        .map(|name| {
            let (name, counts) = (name.to_owned(), view::Counts::default());
            (name.clone(), Target { name, configured: true, counts, oldest_pending: None })
        })
        .collect();
    for stored in &stats.targets {
        let target = targets.entry(stored.target.clone()).or_insert_with(|| Target {
            name: stored.target.clone(),
            configured: false,
            counts: stored.counts,
            oldest_pending: None,
        });
        target.counts = stored.counts;
        target.oldest_pending = stored.oldest_pending.map(|moment| moment.to_string());
    }
    Ok(targets)
}
