//! The ledger: how many deliveries are in each state, and whether they add up.

use axum::extract::Request;
use axum::response::Response;

use super::endpoint::json;
use super::{Context, Error};

/// Counts every delivery in the store, and sets the metric of unaccounted ones.
pub(super) async fn audit(context: Context, _: Request) -> Result<Response, Error> {
    let audit = context.inspect(|store| async move { store.audit().await }).await?;
    context.state.metrics.unaccounted.set(i64::try_from(audit.unaccounted).unwrap_or(i64::MAX));
    json(&audit)
}
