//! Passes requests to reload the configuration to the app.

use axum::Json;
use axum::extract::State;
use tokio::sync::oneshot;

use super::{Context, Error, ReloadReport};

/// A request to reload.
#[derive(Debug)]
pub struct Reload {
    /// Receives what changed, or every error as text for the operator, without secrets.
    pub answer: oneshot::Sender<Result<ReloadReport, Vec<String>>>,
}

pub(super) async fn reload(State(context): State<Context>) -> Result<Json<ReloadReport>, Error> {
    let (answer, answered) = oneshot::channel();
    context.state.reload.send(Reload { answer }).await.map_err(|_| Error::NoReload)?;
    answered.await.map_err(|_| Error::NoReload)?.map(Json).map_err(Error::Reload)
}
