//! `wxrelay events replay`: delivers events again.

use std::io::Write;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context as _, bail};
use serde_json::{Value, json};

use super::access::Access;
use super::api::Api;
use super::event_filter::FilterArgs;
use super::output;
use super::steps::{self, Executor, StepsResult};
use crate::clock::UnixMillis;
use crate::event::EventId;
use crate::queue::{Sweep, SweepAction, SweepProgress};

/// The key of the number of replayed deliveries in the API's responses.
const COUNT: &str = "replayed";

/// `wxrelay events replay`
#[derive(clap::Args)]
pub(super) struct Args {
    /// Replay these events: evt_...
    #[arg(conflicts_with_all = ["account", "event", "from", "since", "until", "all", "after"])]
    ids: Vec<EventId>,
    #[command(flatten)]
    filter: FilterArgs,
    /// Deliver to this target, such as crm, also events that it never had [default: every target that had the event]
    #[arg(long)]
    to: Option<String>,
    /// Replay every event
    #[arg(long)]
    all: bool,
    /// Continue after this event, where an earlier replay stopped: evt_...
    #[arg(long, value_name = "ID")]
    after: Option<EventId>,
}

/// Counts, then replays step by step; if it is stopped, prints how to continue.
pub(super) async fn run(access: &Access, args: Args, json: bool) -> anyhow::Result<ExitCode> {
    let Args { ids, filter, to, all, after } = args;
    let mut filter = filter.filter();
    if ids.is_empty() && !all && filter.is_all() {
        bail!("which events? Give an id, a filter (--target, --state, --since, ..), or --all");
    }
    if let Some(target) = &filter.target {
        super::store::expect_known(access, target).await?;
    }
    if let Some(to) = &to {
        super::store::expect_configured(access, to).await?;
    }
    for id in &ids {
        access
            .event(*id)
            .await?
            .with_context(|| format!("{id} is not in the store; it may be older than queue.retention"))?;
    }
    // Excludes events that are received from now on, and those that this replay causes.
    filter.until = Some(filter.until.unwrap_or_else(UnixMillis::now)).filter(|_| ids.is_empty());
    let until = filter.until;
    let action = to.map_or(SweepAction::Replay, |to| SweepAction::ReplayTo(to.into()));
    let sweep = Arc::new(Sweep { filter, events: Some(ids).filter(|ids| !ids.is_empty()), action });
    let bar = steps::progress_bar(access.count(&sweep, after)?, "deliveries");
    let executor = Executor::of(access)?;
    let StepsResult { changed: replayed, next, failed } = steps::run(after, &bar, async |after| match &executor {
        Executor::Local(queue) => Ok(queue.sweep(&sweep, after, UnixMillis::now()).await?),
        Executor::Relay(api) => page(api, &sweep, after).await,
    })
    .await;
    executor.close().await;
    let how_to_continue = || {
        let until = until.map(|until| format!(" --until {until}")).unwrap_or_default();
        let after = next.map(|next| format!(" --after {next}")).unwrap_or_default();
        format!("to continue, add{after}{until}")
    };
    if let Some(error) = failed {
        return Err(error.context(format!("replayed {replayed}; {}", how_to_continue())));
    }
    if json {
        let next = next.map(|id| id.to_string());
        writeln!(output::stdout(), "{}", json!({ "replayed": replayed, "next": next }))?;
    } else {
        writeln!(output::stdout(), "replayed {replayed} deliveries")?;
    }
    if next.is_none() {
        return Ok(ExitCode::SUCCESS);
    }
    writeln!(output::stderr(), "stopped; {}", how_to_continue())?;
    Ok(ExitCode::FAILURE)
}

/// Replays a page, or one of the named events.
async fn page(api: &Api, sweep: &Sweep, after: Option<EventId>) -> anyhow::Result<SweepProgress> {
    match &sweep.events {
        None => steps::parse_step(&api.post("/api/events/replay", Some(&filter(sweep, after))).await?, COUNT),
        Some(events) => one(api, sweep, events, after).await,
    }
}

/// Replays the next of the named events.
async fn one(api: &Api, sweep: &Sweep, events: &[EventId], after: Option<EventId>) -> anyhow::Result<SweepProgress> {
    let mut rest: Vec<_> = events.iter().copied().filter(|event| Some(*event) > after).collect();
    rest.sort_unstable();
    rest.dedup();
    let Some(id) = rest.first() else { return Ok(SweepProgress { changed: 0, next: None }) };
    let (target, state) = (&sweep.filter.target, sweep.filter.state.map(|state| state.name()));
    let body = json!({ "target": target, "state": state, "to": to(sweep) });
    let answer = api.post(&format!("/api/events/{id}/replay"), Some(&body)).await?;
    let SweepProgress { changed, .. } = steps::parse_step(&answer, COUNT)?;
    Ok(SweepProgress { changed, next: Some(*id).filter(|_| rest.len() > 1) })
}

fn filter(sweep: &Sweep, after: Option<EventId>) -> Value {
    let filter = &sweep.filter;
    json!({
        "account": filter.account,
        "event": filter.event,
        "from": filter.from,
        "target": filter.target,
        "state": filter.state.map(|state| state.name()),
        "since": filter.since.map(|since| since.to_string()),
        "until": filter.until.map(|until| until.to_string()),
        "to": to(sweep),
        "cursor": after.map(|id| id.to_string()),
    })
}

fn to(sweep: &Sweep) -> Option<&str> {
    match &sweep.action {
        SweepAction::ReplayTo(to) => Some(to),
        SweepAction::Replay | SweepAction::Drop | SweepAction::Redirect(_) | SweepAction::Forget => None,
    }
}
