//! The steps of a sweep, made by this process or by the relay that has the store, until the end or Ctrl-C.
//!
//! Which steps, and what is said about them, is the command's.

use anyhow::Context as _;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use super::api::Api;
use super::store;
use crate::config::Config;
use crate::event::EventId;
use crate::queue::{Queue, SweepProgress};

/// Who makes the steps.
pub(super) enum By<'c> {
    /// This process: no relay runs.
    Us(Queue),
    /// The relay that has the store, a page of steps at a time.
    Relay(Api<'c>),
}

impl<'c> By<'c> {
    pub(super) fn of(config: &'c Config) -> anyhow::Result<Self> {
        Ok(match store::claim(config)? {
            Some(queue) => Self::Us(queue),
            None => Self::Relay(Api::of(config)?),
        })
    }

    pub(super) async fn close(self) {
        if let Self::Us(queue) = self {
            queue.close().await;
        }
    }
}

/// How the steps ended.
pub(super) struct Done {
    /// How much was changed.
    pub(super) changed: u64,
    /// Behind which event there may be more; `None` at the end, and before the first step.
    pub(super) next: Option<EventId>,
    /// What a step failed with.
    pub(super) failed: Option<anyhow::Error>,
}

/// Makes one step after the other, the first behind `after`.
pub(super) async fn make(
    after: Option<EventId>,
    bar: &ProgressBar,
    mut step: impl AsyncFnMut(Option<EventId>) -> anyhow::Result<SweepProgress>,
) -> Done {
    let stop = CancellationToken::new();
    let asked = stop.clone();
    let listening = tokio::spawn(async move {
        if tokio::signal::ctrl_c().await.is_ok() {
            asked.cancel();
        }
    });
    let mut done = Done { changed: 0, next: after, failed: None };
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

/// A step from the relay's answer: `count` is its name for what changed.
pub(super) fn told(answer: &Value, count: &str) -> anyhow::Result<SweepProgress> {
    let changed = answer[count].as_u64().context("the relay's answer has no count")?;
    Ok(SweepProgress { changed, next: answer["next"].as_str().map(str::parse).transpose()? })
}

/// Shown on a terminal alone.
pub(super) fn bar(total: u64, what: &str) -> ProgressBar {
    let bar = ProgressBar::new(total);
    match ProgressStyle::with_template(&format!("{{bar:40}} {{pos}}/{{len}} {what}, {{eta}} left")) {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}
