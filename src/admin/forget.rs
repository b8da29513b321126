//! Forgets a user: deletes all that the store holds about the user, page by page, like a replay.
//!
//! The OpenID is accepted in the body only, and no log line has it in clear. The last page also wipes the remains of
//! the events from the store's files.

use axum::extract::Request;
use axum::response::Response;
use serde::Deserialize;
use serde_json::json;

use super::endpoint::{self, body};
use super::events::Filters;
use super::{Context, Error, object};
use crate::clock::UnixMillis;
use crate::queue::{Sweep, SweepAction};
use crate::telemetry::{self, OpenIds};

/// Selects a user's events.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ForgetRequest {
    openid: String,
    account: Option<String>,
    /// Only events received before this time; all without it.
    until: Option<String>,
    /// The `next` of the previous page.
    cursor: Option<String>,
}

pub(super) async fn page(context: Context, request: Request) -> Result<Response, Error> {
    if request.uri().query().is_some_and(|query| !query.is_empty()) {
        return Err(Error::ForgetQuery);
    }
    let body = body(request).await?;
    let ForgetRequest { openid, account, until, cursor } = object(&body).map_err(Error::Json)?;
    if openid.is_empty() {
        return Err(Error::BadBody("an `openid`"));
    }
    let after = cursor.map(|id| id.parse()).transpose()?;
    let hash = telemetry::openid(OpenIds::Hash, &openid).into_owned();
    let filters = Filters { from: Some(openid), account, until, ..Filters::default() };
    let mut filter = filters.parse(UnixMillis::now())?;
    if filter.until.is_none() {
        filter.until = Some(context.inspect(|store| async move { store.end().await }).await?);
    }
    let page = context.sweep(Sweep { filter, events: None, action: SweepAction::Forget }, after).await?;
    tracing::info!(count = page.changed, openid = hash, "events of a user forgotten");
    if page.next.is_none() {
        context.state.queue.wipe().await.map_err(Error::NotWiped)?;
    }
    let answer = json!({ "forgotten": page.changed, "next": page.next.map(|id| id.to_string()) });
    if page.next.is_none() { context.acted(answer).await } else { endpoint::json(&answer) }
}
