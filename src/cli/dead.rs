//! `wxrelay dead`: dead letters, target by target.

use std::io::Write;
use std::process::ExitCode;

use clap::Subcommand;

use super::access::{Access, RelayArgs};
use super::description::excerpt;
use super::output;
use super::store::{self, SweepRequest};
use crate::event::EventId;
use crate::queue::{Sweep, SweepAction};

/// `wxrelay dead`
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    relay: RelayArgs,
    /// Print JSON
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    /// List dead letters, newest first
    Ls {
        /// List those of one target, such as crm
        #[arg(long)]
        target: Option<String>,
        /// List those of events older than this one, the last of the previous page: evt_...
        #[arg(long)]
        before: Option<EventId>,
        /// List up to this many
        #[arg(long, default_value_t = 50)]
        limit: usize,
    },
    /// Deliver dead letters again, with a fresh retry schedule
    Retry {
        /// Retry those of this target, such as crm [default: every target's]
        target: Option<String>,
        /// Retry those of these events: evt_... [default: all]
        ids: Vec<EventId>,
    },
    /// Cancel a target's dead letters for good
    Drop {
        /// Name the target, such as crm
        target: String,
        /// Cancel those of these events: evt_... [default: all]
        ids: Vec<EventId>,
    },
}

/// Lists from the store; changes through the relay while it runs, else in the store.
pub async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let access = args.relay.access().await?;
    let (target, ids, action, done) = match args.action {
        Action::Ls { target, before, limit } => {
            return list(&access, target.as_deref(), before, limit, args.json).await;
        }
        Action::Retry { target, ids } => (target, ids, SweepAction::Replay, "retried"),
        Action::Drop { target, ids } => (Some(target), ids, SweepAction::Drop, "dropped"),
    };
    let targets = targets(&access, target).await?;
    for target in targets {
        let changed = change(&access, &target, &ids, action.clone()).await?;
        if args.json {
            writeln!(output::stdout(), "{}", serde_json::json!({ "target": target, done: changed }))?;
        } else {
            writeln!(output::stdout(), "{done} {changed} dead letters of {target}")?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// The named target, or all.
async fn targets(access: &Access, named: Option<String>) -> anyhow::Result<Vec<String>> {
    let Some(named) = named else { return store::known_targets(access).await };
    store::expect_known(access, &named).await?;
    Ok(vec![named])
}

async fn list(
    access: &Access,
    target: Option<&str>,
    before: Option<EventId>,
    limit: usize,
    json: bool,
) -> anyhow::Result<ExitCode> {
    let mut out = output::stdout();
    let found = access.dead(target, limit, before).await?;
    for letter in &found {
        if json {
            writeln!(out, "{}", serde_json::to_string(letter)?)?;
            continue;
        }
        let name = if letter.event.is_empty() { &letter.msg_type } else { &letter.event };
        let error = letter.error.as_deref().unwrap_or_default();
        let (at, id, target) = (letter.received_at, letter.id, &letter.target);
        let sealed = letter.sealed.as_ref().map(|why| format!("  [answer left out: {why}]"));
        let answer = letter.answer.as_deref().map(excerpt).or(sealed).unwrap_or_default();
        let attempts = letter.attempts;
        out.write_line(&format!("{at}  {id}  {target:16} {name:20} {attempts} attempts  {error}{answer}"))?;
    }
    if found.is_empty() && !json {
        writeln!(output::stderr(), "no dead letters")?;
    }
    Ok(ExitCode::SUCCESS)
}

async fn change(access: &Access, target: &str, ids: &[EventId], action: SweepAction) -> anyhow::Result<u64> {
    let (path, count) = match action {
        SweepAction::Replay => ("retry-dead", "revived"),
        SweepAction::Drop | SweepAction::ReplayTo(_) | SweepAction::Redirect(_) | SweepAction::Forget => {
            ("drop-dead", "cancelled")
        }
    };
    let listed = serde_json::json!({ "ids": ids.iter().map(ToString::to_string).collect::<Vec<_>>() });
    let body = Some(listed).filter(|_| !ids.is_empty());
    let events = Some(ids.to_vec()).filter(|ids| !ids.is_empty());
    let request = SweepRequest { path: format!("/api/targets/{target}/{path}"), body, count };
    store::sweep(access, Sweep::dead(target, events, action), request).await
}
