//! The ledger: how many deliveries are in each state, and whether they add up.

use axum::Json;
use axum::extract::State;

use super::{Context, Error};
use crate::queue::Audit;

/// Counts every delivery in the store, and sets the metric of unaccounted ones.
pub(super) async fn audit(State(context): State<Context>) -> Result<Json<Audit>, Error> {
    let audit = context.inspect(|store| async move { store.audit().await }).await?;
    context.state.metrics.unaccounted.set(i64::try_from(audit.unaccounted).unwrap_or(i64::MAX));
    Ok(Json(audit))
}
