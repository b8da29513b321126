//! `wxrelay dead`: dead letters, target by target.

use std::io::{self, Write};
use std::process::ExitCode;

use clap::Subcommand;

use super::ConfigArgs;
use super::description::excerpt;
use super::store::{self, SweepRequest};
use crate::config::Config;
use crate::event::EventId;
use crate::queue::{Inspect, Sweep, SweepAction};

/// `wxrelay dead`
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    config: ConfigArgs,
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
    let config = args.config.load()?;
    let (target, ids, action, done) = match args.action {
        Action::Ls { target, before, limit } => {
            return list(&config, target.as_deref(), before, limit, args.json);
        }
        Action::Retry { target, ids } => (target, ids, SweepAction::Replay, "retried"),
        Action::Drop { target, ids } => (Some(target), ids, SweepAction::Drop, "dropped"),
    };
    let targets = targets(&config, target)?;
    for target in targets {
        let changed = change(&config, &target, &ids, action.clone()).await?;
        if args.json {
            writeln!(io::stdout(), "{}", serde_json::json!({ "target": target, done: changed }))?;
        } else {
            writeln!(io::stdout(), "{done} {changed} dead letters of {target}")?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// The named target, or all in the store.
fn targets(config: &Config, named: Option<String>) -> anyhow::Result<Vec<String>> {
    let Some(named) = named else { return store::stored_targets(config) };
    store::expect_known(config, &named)?;
    Ok(vec![named])
}

fn list(
    config: &Config,
    target: Option<&str>,
    before: Option<EventId>,
    limit: usize,
    json: bool,
) -> anyhow::Result<ExitCode> {
    let mut out = io::stdout().lock();
    let store = Inspect::open(&config.queue.path)?.with_keys(&config.queue.encryption_keys);
    let found = store.dead(target, limit, before)?;
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
        writeln!(out, "{at}  {id}  {target:16} {name:20} {} attempts  {error}{answer}", letter.attempts)?;
    }
    if found.is_empty() && !json {
        writeln!(io::stderr(), "no dead letters")?;
    }
    Ok(ExitCode::SUCCESS)
}

async fn change(config: &Config, target: &str, ids: &[EventId], action: SweepAction) -> anyhow::Result<u64> {
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
    store::sweep(config, Sweep::dead(target, events, action), request).await
}
