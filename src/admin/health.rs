//! Whether the process lives, and whether it takes pushes.

use std::sync::Arc;

use axum::extract::State;
use axum::http::StatusCode;
use tokio::sync::watch;

use super::Context;

/// Whether pushes are taken, shared between the app, which sets it, and `/readyz`. At first: "starting".
#[derive(Clone, Debug)]
pub struct Ready(Arc<watch::Sender<Option<&'static str>>>);

impl Default for Ready {
    fn default() -> Self {
        Self(Arc::new(watch::Sender::new(Some("starting"))))
    }
}

impl Ready {
    /// From now on pushes are taken.
    pub fn set_ready(&self) {
        self.0.send_replace(None);
    }

    /// From now on pushes are not taken, for a reason of one word, such as "draining".
    pub fn set_unready(&self, reason: &'static str) {
        self.0.send_replace(Some(reason));
    }

    /// Why pushes are not taken; `None` when they are.
    pub fn obstacle(&self) -> Option<&'static str> {
        *self.0.borrow()
    }
}

pub(super) async fn livez() -> &'static str {
    "ok"
}

/// The reason is one word: anyone who reaches the listener can read it. `starting`, `draining`, or what keeps events out
/// of the store, as [`crate::queue::Obstacle`] calls it.
pub(super) async fn readyz(State(context): State<Context>) -> (StatusCode, &'static str) {
    match context.obstacle().await {
        None => (StatusCode::OK, "ready"),
        Some(obstacle) => (StatusCode::SERVICE_UNAVAILABLE, obstacle),
    }
}
