//! `wxrelay events`: lists events, shows one, follows activity, replays events, forgets a user.

use std::io::{self, Write};
use std::process::ExitCode;

use anyhow::bail;
use clap::Subcommand;

use super::access::{Access, RelayArgs};
use super::description::{EventTexts, description};
use super::display::{self, Color, Column, StyledLine, Table, TimeArgs, state_color};
use super::event_filter::FilterArgs;
use super::output;
use super::{changes, forget, replay, tail};
use crate::event::EventId;
use crate::queue::EventFilter;
use crate::queue::view::{EventDetail, EventSummary};

/// `wxrelay events`
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    relay: RelayArgs,
    #[command(flatten)]
    times: TimeArgs,
    /// Print JSON, one object per line
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    /// List events, newest first
    #[command(alias = "list")]
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
    if let Action::Tail(tail) = &args.action {
        return tail::run(&args.relay.api()?, tail, args.times, args.json).await;
    }
    let access = args.relay.access().await?;
    match args.action {
        Action::Ls(ls) => list(&access, &args.relay, ls, args.times, args.json).await,
        Action::Show { id, text } => show(&access, id, text, args.json).await,
        Action::Tail(_) => Ok(ExitCode::SUCCESS),
        Action::Replay(replay) => replay::run(&access, replay, args.times, args.json).await,
        Action::Forget(forget) => forget::run(&access, forget, args.json).await,
    }
}

const COLUMNS: [Column; 6] = [
    Column::text("TIME"),
    Column::text("ID"),
    Column::elided("ACCOUNT", 4),
    Column::elided("EVENT", 4),
    Column::elided("KEY", 5),
    Column::elided("DELIVERIES", 12),
];

async fn list(access: &Access, relay: &RelayArgs, ls: Ls, times: TimeArgs, json: bool) -> anyhow::Result<ExitCode> {
    let Ls { filter, before, limit } = ls;
    let filter = EventFilter { before, limit, ..filter.filter(times) };
    let found = access.events(&filter).await?;
    if found.is_empty() {
        changes::expect_filter(access, relay, filter.account.as_deref(), filter.target.as_deref()).await?;
    }
    if json {
        for event in &found {
            writeln!(output::stdout(), "{}", serde_json::to_string(event)?)?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    if found.is_empty() {
        writeln!(output::stderr(), "no such event")?;
        return Ok(ExitCode::SUCCESS);
    }
    let settings = display::Settings::new(times);
    let mut table = Table::new(&COLUMNS);
    found.iter().for_each(|event| table.push(cells(event, &settings)));
    table.print(&settings)?;
    if let Some(last) = found.last().filter(|_| found.len() == limit) {
        writeln!(output::stderr(), "there may be more: add --before {}", last.id)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn cells(event: &EventSummary, settings: &display::Settings) -> Vec<StyledLine> {
    let name = if event.event.is_empty() { &event.msg_type } else { &event.event };
    let mut deliveries = StyledLine::default();
    for delivery in &event.deliveries {
        let comma = if deliveries.is_empty() { "" } else { ", " };
        deliveries.push(&format!("{comma}{} ", delivery.target), Color::Plain);
        deliveries.push(delivery.state.name(), state_color(delivery.state));
    }
    if deliveries.is_empty() {
        deliveries = StyledLine::new("no target", Color::Dim);
    }
    let key = if event.event_key.is_empty() { "-" } else { &event.event_key };
    let [time, id] = [settings.time(event.received_at), event.id.to_string()];
    vec![time.into(), id.into(), event.account.as_str().into(), name.as_str().into(), key.into(), deliveries]
}

async fn show(access: &Access, id: EventId, text: bool, json: bool) -> anyhow::Result<ExitCode> {
    let Some(event) = access.event(id).await? else {
        bail!("{id} is not in the store; it may be older than queue.retention");
    };
    if json {
        writeln!(output::stdout(), "{}", serde_json::to_string(&event)?)?;
    } else {
        print_description(&event, text)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Prints an event for people; with its texts as they are where a program reads them.
fn print_description(event: &EventDetail, with_texts: bool) -> io::Result<()> {
    if with_texts && !output::is_terminal() {
        return output::exact_stdout().write_all(description(event, EventTexts::Exact).as_bytes());
    }
    let texts = if with_texts { EventTexts::Escaped } else { EventTexts::LeftOut };
    output::stdout().write_all(description(event, texts).as_bytes())
}
