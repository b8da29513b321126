//! Liveness and readiness: whether the process works, and whether it accepts pushes.

use std::sync::Arc;

use axum::extract::State;
use axum::http::StatusCode;
use tokio::sync::watch;

use super::Context;

/// Whether pushes are accepted, shared between the app, which sets it, and `/readyz`. Initially `starting`.
#[derive(Clone, Debug)]
pub struct Ready(Arc<watch::Sender<Option<&'static str>>>);

impl Default for Ready {
    fn default() -> Self {
        Self(Arc::new(watch::Sender::new(Some("starting"))))
    }
}

impl Ready {
    pub fn set_ready(&self) {
        self.0.send_replace(None);
    }

    /// Sets why pushes are not accepted, in one word, such as `draining`.
    pub fn set_unready(&self, reason: &'static str) {
        self.0.send_replace(Some(reason));
    }

    /// Why pushes are not accepted; `None` if they are.
    pub fn obstacle(&self) -> Option<&'static str> {
        *self.0.borrow()
    }
}

pub(super) async fn livez() -> &'static str {
    "ok"
}

/// The reason is one word, as unauthenticated clients can read it: `starting`, `draining`, or a word of
/// [`crate::queue::Obstacle`].
pub(super) async fn readyz(State(context): State<Context>) -> (StatusCode, &'static str) {
    match context.obstacle().await {
        None => (StatusCode::OK, "ready"),
        Some(obstacle) => (StatusCode::SERVICE_UNAVAILABLE, obstacle),
    }
}
