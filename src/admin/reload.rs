//! Passes requests to reload the configuration to the app.

use axum::extract::Request;
use axum::response::Response;
use tokio::sync::oneshot;

use super::endpoint::json;
use super::{Context, Error, ReloadReport};

/// A request to reload.
#[derive(Debug)]
pub struct Reload {
    /// Receives what changed, or every error as text for the operator, without secrets.
    pub answer: oneshot::Sender<Result<ReloadReport, Vec<String>>>,
}

pub(super) async fn reload(context: Context, _: Request) -> Result<Response, Error> {
    let (answer, answered) = oneshot::channel();
    context.state.reload.send(Reload { answer }).await.map_err(|_| Error::NoReload)?;
    let report = answered.await.map_err(|_| Error::NoReload)?.map_err(Error::Reload)?;
    // A target that was removed is known by its deliveries alone.
    context.stats.invalidate().await;
    json(&report)
}
