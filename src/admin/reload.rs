//! Passes requests to reload the configuration to the app.

use axum::Json;
use axum::extract::State;
use serde_json::{Value, json};
use tokio::sync::oneshot;

use super::{Context, Error};

/// A request to reload.
#[derive(Debug)]
pub struct Reload {
    /// Receives the result; an error is text for the operator, without secrets.
    pub answer: oneshot::Sender<Result<(), String>>,
}

pub(super) async fn reload(State(context): State<Context>) -> Result<Json<Value>, Error> {
    let (answer, answered) = oneshot::channel();
    context.state.reload.send(Reload { answer }).await.map_err(|_| Error::NoReload)?;
    answered.await.map_err(|_| Error::NoReload)?.map_err(Error::Reload)?;
    Ok(Json(json!({ "reloaded": true })))
}
