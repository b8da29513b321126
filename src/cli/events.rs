//! `wxrelay events`: lists events, shows one, follows activity, replays events, forgets a user.

use std::io::{self, Write};
use std::process::ExitCode;

use anyhow::bail;
use clap::Subcommand;

use super::description::description;
use super::event_filter::FilterArgs;
use super::{ConfigArgs, forget, replay, tail};
use crate::event::EventId;
use crate::queue::view::EventSummary;
use crate::queue::{EventFilter, Inspect};

/// `wxrelay events`
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    config: ConfigArgs,
    /// Print JSON, one object per line
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    /// List events, newest first
    Ls(Ls),
    /// Show one event with every attempt
    Show {
        /// Name the event: evt_...
        id: EventId,
        /// Also show the decrypted text, the reply and the answers of targets
        #[arg(long)]
        text: bool,
    },
    /// Follow pushes and attempts as they happen, until Ctrl-C
    Tail(tail::Args),
    /// Deliver events again, with the same ids: by id, or by filter
    Replay(replay::Args),
    /// Delete all that the store holds about a user, for good
    ///
    /// Deletes every event of the user with its deliveries and attempts, in any state. Pending deliveries are cancelled
    /// first. Backups, logs and the data of handlers are not changed.
    Forget(forget::Args),
}

#[derive(clap::Args)]
struct Ls {
    #[command(flatten)]
    filter: FilterArgs,
    /// List events older than this one, the last of the previous page: evt_...
    #[arg(long, visible_alias = "cursor")]
    before: Option<EventId>,
    /// List up to this many
    #[arg(long, default_value_t = 50)]
    limit: usize,
}

/// Reads the store, so it works with and without a running relay; replays and forgets through the relay while it runs;
/// `tail` needs a running relay.
pub async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let config = args.config.load()?;
    let keys = &config.queue.encryption_keys;
    let store = || Inspect::open(&config.queue.path).map(|store| store.with_keys(keys));
    match args.action {
        Action::Ls(ls) => list(&store()?, ls, args.json),
        Action::Show { id, text } => show(&store()?, id, text, args.json),
        Action::Tail(tail) => tail::run(&config, &tail, args.json).await,
        Action::Replay(replay) => {
            drop(store()?);
            replay::run(&config, replay, args.json).await
        }
        Action::Forget(forget) => {
            drop(store()?);
            forget::run(&config, forget, args.json).await
        }
    }
}

fn list(store: &Inspect, ls: Ls, json: bool) -> anyhow::Result<ExitCode> {
    let Ls { filter, before, limit } = ls;
    let found = store.events(&EventFilter { before, limit, ..filter.filter() })?;
    let mut out = io::stdout().lock();
    for event in &found {
        if json {
            writeln!(out, "{}", serde_json::to_string(event)?)?;
        } else {
            writeln!(out, "{}", line(event))?;
        }
    }
    if found.is_empty() && !json {
        writeln!(io::stderr(), "no such event")?;
    }
    if let Some(last) = found.last().filter(|_| found.len() == limit && !json) {
        writeln!(io::stderr(), "there may be more: add --before {}", last.id)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn line(event: &EventSummary) -> String {
    let name = if event.event.is_empty() { &event.msg_type } else { &event.event };
    let deliveries: Vec<_> = event.deliveries.iter().map(|d| format!("{} {}", d.target, d.state.name())).collect();
    let deliveries = if deliveries.is_empty() { "no target".to_owned() } else { deliveries.join(", ") };
    format!("{}  {}  {:12} {:20} {:24} {deliveries}", event.received_at, event.id, event.account, name, event.event_key)
}

fn show(store: &Inspect, id: EventId, text: bool, json: bool) -> anyhow::Result<ExitCode> {
    let Some(event) = store.event(id)? else {
        bail!("{id} is not in the store; it may be older than queue.retention");
    };
    if json {
        writeln!(io::stdout(), "{}", serde_json::to_string(&event)?)?;
    } else {
        write!(io::stdout(), "{}", description(&event, text))?;
    }
    Ok(ExitCode::SUCCESS)
}
