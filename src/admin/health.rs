//! Liveness and readiness: whether the process works, and whether it accepts pushes.

use std::sync::Arc;

use axum::extract::Request;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use tokio::sync::watch;

use super::{Context, Error};

/// Whether pushes are accepted, shared between the app, which sets it, and `/readyz`. Initially `starting`.
#[derive(Clone, Debug)]
pub struct Ready {
    phase: Arc<watch::Sender<Option<&'static str>>>,
    /// A part of the relay that makes no progress, in one word.
    stuck: Arc<watch::Sender<Option<&'static str>>>,
}

impl Default for Ready {
    fn default() -> Self {
        Self { phase: Arc::new(watch::Sender::new(Some("starting"))), stuck: Arc::default() }
    }
}

impl Ready {
    pub fn set_ready(&self) {
        self.phase.send_replace(None);
    }

    /// Sets why pushes are not accepted, in one word, such as `draining`.
    pub fn set_unready(&self, reason: &'static str) {
        self.phase.send_replace(Some(reason));
    }

    /// Sets which part makes no progress, such as `dispatcher-stalled`; `None` if all do.
    pub fn set_stuck(&self, part: Option<&'static str>) {
        self.stuck.send_replace(part);
    }

    /// Why pushes are not accepted; `None` if they are.
    pub fn obstacle(&self) -> Option<&'static str> {
        let phase = *self.phase.borrow();
        phase.or_else(|| *self.stuck.borrow())
    }

    /// Which part makes no progress.
    pub fn stuck(&self) -> Option<&'static str> {
        *self.stuck.borrow()
    }
}

pub(super) async fn livez(_: Context, _: Request) -> Result<Response, Error> {
    Ok("ok".into_response())
}

/// The reason is one word, as unauthenticated clients can read it: `starting`, `draining`,
/// `dispatcher-stalled`, or a word of [`crate::queue::Obstacle`].
pub(super) async fn readyz(context: Context, _: Request) -> Result<Response, Error> {
    Ok(answer(context.obstacle().await))
}

/// Whether pushes are stored where they are delivered from: a balancer prefers such replicas to those that spool.
pub(super) async fn readyz_direct(context: Context, _: Request) -> Result<Response, Error> {
    Ok(answer(context.direct_obstacle().await))
}

fn answer(obstacle: Option<&'static str>) -> Response {
    match obstacle {
        None => "ready".into_response(),
        Some(obstacle) => (StatusCode::SERVICE_UNAVAILABLE, obstacle).into_response(),
    }
}
