//! What runs.

use axum::Json;
use axum::extract::State;
use serde_json::{Value, json};

use super::{Context, Error};

/// What the app says of itself, whether it is ready, and the queue's totals.
pub(super) async fn status(State(context): State<Context>) -> Result<Json<Value>, Error> {
    let stats = context.stats.get().await?;
    let sum = |count: fn(&crate::queue::view::Counts) -> u64| -> u64 {
        stats.targets.iter().map(|target| count(&target.counts)).sum()
    };
    let obstacle = context.obstacle().await;
    let mut status = (context.state.status)();
    status["ready"] = json!(obstacle.is_none());
    status["not_ready_because"] = json!(obstacle);
    status["queue"] = json!({
        "events": stats.events,
        "bytes": stats.bytes,
        "pending": sum(|counts| counts.pending),
        "delivered": sum(|counts| counts.delivered),
        "dead": sum(|counts| counts.dead),
        "expired": sum(|counts| counts.expired),
        "cancelled": sum(|counts| counts.cancelled),
    });
    Ok(Json(status))
}
