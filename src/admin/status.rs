//! The status of the running relay.

use axum::extract::Request;
use axum::response::Response;

use super::endpoint::json;
use super::{Context, Error, QueueTotals};

pub(super) async fn status(context: Context, _: Request) -> Result<Response, Error> {
    let totals = QueueTotals::new(&*context.stats.get().await?, context.state.queue.memory());
    let obstacle = context.obstacle().await;
    json(&(context.state.status)(obstacle, totals).ok_or(Error::Stopped)?)
}
