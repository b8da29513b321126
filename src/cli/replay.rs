//! `wxrelay events replay`: delivers events again.

use std::io::Write;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context as _, bail};
use serde_json::{Value, json};

use super::access::Access;
use super::api::Api;
use super::changes;
use super::confirmation::{ConfirmationArgs, PlannedAction, confirm};
use super::display::TimeArgs;
use super::event_filter::FilterArgs;
use super::output;
use super::steps::{self, Executor, Step, StepsResult};
use crate::clock::UnixMillis;
use crate::event::EventId;
use crate::ordered;
use crate::queue::{Sweep, SweepAction, SweepProgress};

/// The key of the number of replayed deliveries in the API's responses.
const COUNT: &str = "replayed";
/// The same where nothing is replayed.
const WOULD_REPLAY: &str = "would_replay";

/// `wxrelay events replay`
#[derive(clap::Args)]
pub(super) struct Args {
    /// Replay these events: evt_...
    #[arg(conflicts_with_all = ["account", "event", "from", "since", "until", "all", "after"])]
    ids: Vec<EventId>,
    #[command(flatten)]
    filter: FilterArgs,
    /// Deliver to this target, such as crm, also events that it never had [default: every target that had the event]
    #[arg(long, value_name = "TARGET")]
    to: Option<String>,
    /// Replay every event
    #[arg(long)]
    all: bool,
    #[command(flatten)]
    confirmation: ConfirmationArgs,
    /// Continue after this event, where an earlier replay stopped: evt_...
    #[arg(long, value_name = "ID")]
    after: Option<EventId>,
}

/// Counts, then replays step by step; if it is stopped, prints how to continue.
pub(super) async fn run(access: &Access, args: Args, times: TimeArgs, json: bool) -> anyhow::Result<ExitCode> {
    let Args { ids, filter, to, all, after, confirmation } = args;
    let mut filter = filter.filter(times);
    if ids.is_empty() && !all && filter.is_all() {
        bail!("which events? Give an id, a filter (--target, --state, --since, ..), or --all");
    }
    if let Some(target) = &filter.target {
        changes::expect_known(access, target).await?;
    }
    if let Some(to) = &to {
        changes::expect_configured(access, to).await?;
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
    // Events that are named need no confirmation.
    let is_named = sweep.events.is_some();
    let count = if is_named && !confirmation.dry_run { None } else { count(access, &sweep, after).await? };
    let planned = plan(&sweep, count);
    if confirmation.dry_run {
        return print_dry_run(&planned, json);
    }
    if !is_named && !confirm(confirmation, &planned)? {
        return Ok(ExitCode::FAILURE);
    }
    let bar = steps::progress_bar(count, "deliveries");
    let executor = Executor::of(access).await?;
    let StepsResult { changed: replayed, next, seen, failed } =
        steps::run(after, &bar, async |after| match &executor {
            Executor::Local(queue) => Ok(queue.sweep(&sweep, after, UnixMillis::now()).await?.into()),
            Executor::Relay(api) => page(api, &sweep, after).await,
        })
        .await;
    let seen = executor.close().await.or(seen);
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
        writeln!(output::stdout(), "{}", changes::with_seen(json!({ "replayed": replayed, "next": next }), seen))?;
    } else {
        writeln!(output::stdout(), "replayed {replayed} deliveries")?;
        if replayed > 0 {
            changes::print_seen(seen)?;
            output::stderr().write_line(&format!("undo: {}", planned.undo))?;
        }
    }
    if next.is_none() {
        return Ok(ExitCode::SUCCESS);
    }
    writeln!(output::stderr(), "stopped; {}", how_to_continue())?;
    Ok(ExitCode::FAILURE)
}

fn print_dry_run(planned: &PlannedAction, json: bool) -> anyhow::Result<ExitCode> {
    let count = planned.count.context("the relay's answer has no count")?;
    if json {
        writeln!(output::stdout(), "{}", json!({ "dry_run": true, "would_change": count }))?;
    } else {
        output::stdout().write_line(&format!("would {}", planned.action))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// How many deliveries would change.
async fn count(access: &Access, sweep: &Sweep, after: Option<EventId>) -> anyhow::Result<Option<u64>> {
    let api = match access {
        Access::Store(_) => return access.count(sweep, after).await,
        Access::Relay(api) => api,
    };
    let Some(events) = &sweep.events else {
        let mut body = filter(sweep, after);
        body["dry_run"] = true.into();
        return Ok(api.post("/api/events/replay", Some(&body)).await?[WOULD_REPLAY].as_u64());
    };
    let mut total = 0;
    for id in ordered::set(events) {
        let mut body = of_one(sweep);
        body["dry_run"] = true.into();
        let answer = api.post(&format!("/api/events/{id}/replay"), Some(&body)).await?;
        total += answer[WOULD_REPLAY].as_u64().unwrap_or(0);
    }
    Ok(Some(total))
}

fn plan(sweep: &Sweep, count: Option<u64>) -> PlannedAction {
    let deliveries = count.map_or_else(|| "the".to_owned(), |count| count.to_string());
    let target = to(sweep).or(sweep.filter.target.as_deref());
    let action = match to(sweep) {
        Some(to) => format!("replay {deliveries} deliveries to {to}"),
        None => format!("replay {deliveries} deliveries"),
    };
    let target = target.unwrap_or("TARGET");
    let undo = format!("`wxrelay targets drop {target}` cancels those not delivered yet; a delivery cannot be undone");
    PlannedAction { count, action, undo }
}

/// Replays a page, or one of the named events.
async fn page(api: &Api, sweep: &Sweep, after: Option<EventId>) -> anyhow::Result<Step> {
    match &sweep.events {
        None => steps::parse_step(&api.post("/api/events/replay", Some(&filter(sweep, after))).await?, COUNT),
        Some(events) => one(api, sweep, events, after).await,
    }
}

/// Replays the next of the named events.
async fn one(api: &Api, sweep: &Sweep, events: &[EventId], after: Option<EventId>) -> anyhow::Result<Step> {
    let mut rest: Vec<_> = events.iter().copied().filter(|event| Some(*event) > after).collect();
    rest.sort_unstable();
    rest.dedup();
    let Some(id) = rest.first() else { return Ok(SweepProgress { changed: 0, next: None }.into()) };
    let answer = api.post(&format!("/api/events/{id}/replay"), Some(&of_one(sweep))).await?;
    let mut step = steps::parse_step(&answer, COUNT)?;
    step.progress.next = Some(*id).filter(|_| rest.len() > 1);
    Ok(step)
}

/// The body of a replay of one event.
fn of_one(sweep: &Sweep) -> Value {
    let (target, state) = (&sweep.filter.target, sweep.filter.state.map(|state| state.name()));
    json!({ "target": target, "state": state, "to": to(sweep) })
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
