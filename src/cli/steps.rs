//! Runs the steps of a sweep in this process, or in the relay that has the store open, until the end or Ctrl-C.
//!
//! The command defines the steps and prints the result.

use anyhow::Context as _;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use super::access::Access;
use super::api::Api;
use super::store;
use crate::event::EventId;
use crate::queue::{Queue, SweepProgress};

/// Where the steps run.
pub(super) enum Executor {
    /// In this process: no relay runs.
    Local(Queue),
    /// In the relay that has the store open, one page of steps per request.
    Relay(Api),
}

impl Executor {
    pub(super) fn of(access: &Access) -> anyhow::Result<Self> {
        let config = match access {
            Access::Store(config) => config,
            Access::Relay(api) => return Ok(Self::Relay(api.clone())),
        };
        Ok(match store::open(config)? {
            Some(queue) => Self::Local(queue),
            None => Self::Relay(Api::of(config)?),
        })
    }

    pub(super) async fn close(self) {
        if let Self::Local(queue) = self {
            queue.close().await;
        }
    }
}

/// The result of the steps.
pub(super) struct StepsResult {
    pub(super) changed: u64,
    /// The event after which to continue; `None` at the end and before the first step.
    pub(super) next: Option<EventId>,
    /// The error of a step.
    pub(super) failed: Option<anyhow::Error>,
}

/// Runs one step after another, the first after the event `after`.
pub(super) async fn run(
    after: Option<EventId>,
    bar: &ProgressBar,
    mut step: impl AsyncFnMut(Option<EventId>) -> anyhow::Result<SweepProgress>,
) -> StepsResult {
    let stop = CancellationToken::new();
    let interrupted = stop.clone();
    let listening = tokio::spawn(async move {
        if tokio::signal::ctrl_c().await.is_ok() {
            interrupted.cancel();
        }
    });
    let mut done = StepsResult { changed: 0, next: after, failed: None };
    loop {
        match step(done.next).await {
            Err(error) => {
                done.failed = Some(error);
                break;
            }
            Ok(SweepProgress { changed, next }) => {
                done.changed += changed;
                done.next = next;
                bar.inc(changed);
                if next.is_none() || stop.is_cancelled() {
                    break;
                }
            }
        }
    }
    listening.abort();
    bar.finish_and_clear();
    done
}

/// Parses a step from the relay's response; `count` is the key of the number of changes.
pub(super) fn parse_step(answer: &Value, count: &str) -> anyhow::Result<SweepProgress> {
    let changed = answer[count].as_u64().context("the relay's answer has no count")?;
    Ok(SweepProgress { changed, next: answer["next"].as_str().map(str::parse).transpose()? })
}

/// A progress bar, which is shown on a terminal only.
pub(super) fn progress_bar(total: Option<u64>, what: &str) -> ProgressBar {
    let Some(total) = total else { return ProgressBar::new_spinner() };
    let bar = ProgressBar::new(total);
    match ProgressStyle::with_template(&format!("{{bar:40}} {{pos}}/{{len}} {what}, {{eta}} left")) {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}
