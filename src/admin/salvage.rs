//! Reads back stores that were moved aside, in the background: one run at a time, and its report stays.

use std::sync::Arc;

use axum::extract::Request;
use axum::response::Response;
use parking_lot::Mutex;
use serde::Deserialize;
use serde_json::json;

use super::endpoint::{self, body};
use super::{Context, Error, object};
use crate::queue::{Salvage, SalvageReport, salvage};

/// The last run.
#[derive(Clone, Debug, Default)]
pub(super) struct SalvageRun(Arc<Mutex<RunState>>);

#[derive(Debug, Default)]
enum RunState {
    #[default]
    None,
    Running,
    Done(SalvageReport),
    Failed(String),
}

/// Selects a store that was moved aside.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct SalvageRequest {
    /// Its folder's name within the store's folder; without it, all of them.
    folder: Option<String>,
    /// Only read and count.
    dry_run: bool,
}

pub(super) async fn start(context: Context, request: Request) -> Result<Response, Error> {
    let body = body(request).await?;
    let asked = if body.is_empty() { Ok(SalvageRequest::default()) } else { object(&body) };
    let SalvageRequest { folder, dry_run } = asked.map_err(Error::Json)?;
    let store = context.state.store.folder().ok_or(Error::NoSuchFolder)?.to_owned();
    let from = match folder {
        Some(name) if name.contains('/') || name.starts_with('.') || !store.join(&name).is_dir() => {
            return Err(Error::NoSuchFolder);
        }
        name => name.map(|name| store.join(name)),
    };
    let run = context.salvage.clone();
    {
        let mut state = run.0.lock();
        if matches!(*state, RunState::Running) {
            return Err(Error::SalvageRuns);
        }
        *state = RunState::Running;
    }
    let (queue, keys) = (context.state.queue.clone(), context.state.store.encryption_keys.clone());
    let order = Salvage { store, from, dry_run, keys };
    tokio::spawn(async move {
        let ended = match salvage(&queue, &order).await {
            Ok(report) => RunState::Done(report),
            Err(error) => {
                tracing::error!(%error, remedy = error.remedy(), "damaged store not salvaged");
                RunState::Failed(error.remedy().map_or_else(|| error.to_string(), |fix| format!("{error}: {fix}")))
            }
        };
        *run.0.lock() = ended;
        context.stats.invalidate().await;
    });
    endpoint::json(&json!({ "state": "running" }))
}

pub(super) async fn show(context: Context, _: Request) -> Result<Response, Error> {
    endpoint::json(&match &*context.salvage.0.lock() {
        RunState::None => json!({ "state": "none" }),
        RunState::Running => json!({ "state": "running" }),
        RunState::Done(report) => json!({ "state": "done", "report": report }),
        RunState::Failed(error) => json!({ "state": "failed", "error": error }),
    })
}
