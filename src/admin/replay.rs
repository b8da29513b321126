//! Delivers events again.
//!
//! A replay by filter runs page by page, so that no request takes long: a page's `next` is the `cursor` of the next
//! page, and the place where an interrupted replay continues.

use axum::extract::Request;
use axum::response::Response;
use serde::Deserialize;
use serde_json::json;

use super::endpoint::{self, body, parameter};
use super::events::Filters;
use super::{Context, Error, object, targets};
use crate::clock::UnixMillis;
use crate::event::EventId;
use crate::queue::{EventFilter, Sweep, SweepAction, SweepProgress};

/// Selects events and a target, in the query or as JSON.
#[derive(Default, Deserialize, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub(super) struct ReplayRequest {
    account: Option<String>,
    event: Option<String>,
    from: Option<String>,
    target: Option<String>,
    state: Option<String>,
    since: Option<String>,
    until: Option<String>,
    /// The target to deliver to; without it, every target that had a delivery.
    to: Option<String>,
    /// Confirms that no filter is intended.
    all: bool,
    /// The `next` of the previous page.
    cursor: Option<String>,
    /// Counts the deliveries, and replays none.
    dry_run: bool,
}

/// Selects deliveries of one event, and a target.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct ReplayOneRequest {
    target: Option<String>,
    state: Option<String>,
    to: Option<String>,
    /// Counts the deliveries, and replays none.
    dry_run: bool,
}

pub(super) async fn page(context: Context, request: Request) -> Result<Response, Error> {
    let query: ReplayRequest = endpoint::query(&request)?;
    let body = body(request).await?;
    let asked = match body.is_empty() {
        true => query,
        false if query == ReplayRequest::default() => object(&body).map_err(Error::Json)?,
        false => return Err(Error::BadBody("none, as the query says what to replay")),
    };
    let ReplayRequest { account, event, from, target, state, since, until, to, all, cursor, dry_run } = asked;
    let after = cursor.map(|id| id.parse()).transpose()?;
    let filters = Filters { account, event, from, target, state, since, until, ..Filters::default() };
    let filter = filters.parse(UnixMillis::now())?;
    if !all && filter.is_all() {
        return Err(Error::NoFilter);
    }
    let sweep = sweep(&context, filter, None, to).await?;
    if dry_run {
        let would_replay = count(&context, sweep, after).await?;
        return endpoint::json(&json!({ "replayed": 0, "next": null, "would_replay": would_replay }));
    }
    let swept = replay(&context, sweep, after).await?;
    let answer = json!({ "replayed": swept.changed, "next": swept.next.map(|id| id.to_string()) });
    // The last page has the total.
    if swept.next.is_none() { context.acted(answer).await } else { endpoint::json(&answer) }
}

pub(super) async fn one(context: Context, mut request: Request) -> Result<Response, Error> {
    let id: EventId = parameter(&mut request).await?.parse()?;
    let body = body(request).await?;
    let asked = if body.is_empty() { Ok(ReplayOneRequest::default()) } else { object(&body) };
    let ReplayOneRequest { target, state, to, dry_run } = asked.map_err(Error::Json)?;
    if context.inspect(move |store| async move { store.event(id).await }).await?.is_none() {
        return Err(Error::NoSuchEvent);
    }
    let filter = Filters { target, state, ..Filters::default() }.parse(UnixMillis::now())?;
    let sweep = sweep(&context, filter, Some(vec![id]), to).await?;
    if dry_run {
        return endpoint::json(&json!({ "replayed": 0, "would_replay": count(&context, sweep, None).await? }));
    }
    let swept = replay(&context, sweep, None).await?;
    context.acted(json!({ "replayed": swept.changed })).await
}

/// Delivers one event again, to its targets or to one of them; how many deliveries wait again.
pub(super) async fn replay_event(context: &Context, id: EventId, target: Option<&str>) -> Result<u64, Error> {
    let filter = Filters { target: target.map(str::to_owned), ..Filters::default() }.parse(UnixMillis::now())?;
    let sweep = sweep(context, filter, Some(vec![id]), None).await?;
    Ok(replay(context, sweep, None).await?.changed)
}

/// The sweep that a request describes.
async fn sweep(
    context: &Context,
    filter: EventFilter,
    events: Option<Vec<EventId>>,
    to: Option<String>,
) -> Result<Sweep, Error> {
    if let Some(target) = &filter.target {
        targets::expect_known(context, target).await?;
    }
    if let Some(to) = &to {
        targets::expect_configured(context, to)?;
    }
    let action = to.as_deref().map_or(SweepAction::Replay, |to| SweepAction::ReplayTo(to.into()));
    Ok(Sweep { filter, events, action })
}

/// How many deliveries a sweep would change.
async fn count(context: &Context, sweep: Sweep, after: Option<EventId>) -> Result<u64, Error> {
    context.inspect(move |store| async move { store.count(&sweep, after).await }).await
}

/// Replays a page.
async fn replay(context: &Context, sweep: Sweep, after: Option<EventId>) -> Result<SweepProgress, Error> {
    let to = match &sweep.action {
        SweepAction::ReplayTo(to) => Some(to.clone()),
        _ => None,
    };
    let page = context.sweep(sweep, after).await?;
    tracing::info!(count = page.changed, to = to.as_deref(), "events replayed by an operator");
    Ok(page)
}
