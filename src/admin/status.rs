//! The status of the running relay.

use axum::Json;
use axum::extract::State;

use super::{Context, Error, QueueTotals, Status};

pub(super) async fn status(State(context): State<Context>) -> Result<Json<Status>, Error> {
    let totals = QueueTotals::new(&*context.stats.get().await?, context.state.queue.memory());
    let obstacle = context.obstacle().await;
    (context.state.status)(obstacle, totals).map(Json).ok_or(Error::Stopped)
}
