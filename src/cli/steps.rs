//! Runs the steps of a sweep in this process, or in the relay that has the store open alone, until the end or Ctrl-C.
//!
//! The command defines the steps and prints the result.

use anyhow::Context as _;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use super::access::Access;
use super::api::Api;
use super::changes;
use crate::event::EventId;
use crate::queue::{Queue, Seen, SweepProgress};

/// Where the steps run.
pub(super) enum Executor {
    /// In this process: no relay has the store open alone.
    Local(Queue),
    /// In the relay that has the store of files open, one page of steps per request.
    Relay(Api),
}

impl Executor {
    pub(super) async fn of(access: &Access) -> anyhow::Result<Self> {
        let store = match access {
            Access::Store(store) => store,
            Access::Relay(api) => return Ok(Self::Relay(api.clone())),
        };
        Ok(match changes::open(store).await? {
            Some(queue) => Self::Local(queue),
            None => Self::Relay(Api::of(store)?),
        })
    }

    /// Closes the store; with replicas, waits a moment before until they have seen what was done.
    pub(super) async fn close(self) -> Option<Seen> {
        let Self::Local(queue) = self else { return None };
        let seen = changes::await_seen(&queue).await;
        queue.close().await;
        seen
    }
}

/// A step, made here or by the relay.
pub(super) struct Step {
    pub(super) progress: SweepProgress,
    /// Who has seen it, if the relay said so.
    pub(super) seen: Option<Seen>,
}

impl From<SweepProgress> for Step {
    fn from(progress: SweepProgress) -> Self {
        Self { progress, seen: None }
    }
}

/// The result of the steps.
pub(super) struct StepsResult {
    pub(super) changed: u64,
    /// The event after which to continue; `None` at the end and before the first step.
    pub(super) next: Option<EventId>,
    /// Who has seen the last step, as the relay said.
    pub(super) seen: Option<Seen>,
    /// The error of a step.
    pub(super) failed: Option<anyhow::Error>,
}

/// Runs one step after another, the first after the event `after`.
pub(super) async fn run(
    after: Option<EventId>,
    bar: &ProgressBar,
    mut step: impl AsyncFnMut(Option<EventId>) -> anyhow::Result<Step>,
) -> StepsResult {
    let stop = CancellationToken::new();
    let interrupted = stop.clone();
    let listening = tokio::spawn(async move {
        if tokio::signal::ctrl_c().await.is_ok() {
            interrupted.cancel();
        }
    });
    let mut done = StepsResult { changed: 0, next: after, seen: None, failed: None };
    loop {
        match step(done.next).await {
            Err(error) => {
                done.failed = Some(error);
                break;
            }
            Ok(Step { progress: SweepProgress { changed, next }, seen }) => {
                done.changed += changed;
                done.seen = seen;
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
pub(super) fn parse_step(answer: &Value, count: &str) -> anyhow::Result<Step> {
    let changed = answer[count].as_u64().context("the relay's answer has no count")?;
    let progress = SweepProgress { changed, next: answer["next"].as_str().map(str::parse).transpose()? };
    Ok(Step { progress, seen: changes::parse_seen(answer) })
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
