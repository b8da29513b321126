//! `wxrelay events`: finds events, tells all about one, follows what happens, delivers them again, forgets a user.

use std::io::{self, Write};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::Subcommand;

use super::description::description;
use super::{ConfigArgs, forget, replay, tail};
use crate::clock::UnixMillis;
use crate::event::EventId;
use crate::queue::view::EventSummary;
use crate::queue::{DeliveryState, EventFilter, Inspect};

/// `wxrelay events`
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    config: ConfigArgs,
    /// Print JSON, one object a line
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    /// List events, the newest first
    Ls(Ls),
    /// Show one event with every attempt
    Show {
        /// evt_...
        id: EventId,
        /// Show the opened text, the reply and what targets answered too
        #[arg(long)]
        text: bool,
    },
    /// Follow what the relay does: each push and each attempt as it happens, until Ctrl-C
    Tail(tail::Args),
    /// Deliver events again, under the same ids: one, or those of a filter
    Replay(replay::Args),
    /// Delete all that the store holds about a user, for good
    ///
    /// Every event of the user goes with its deliveries and attempts, whatever has become of them: what is pending is
    /// cancelled first. What backups and logs hold, and what handlers were given, is not reached.
    Forget(forget::Args),
}

#[derive(clap::Args)]
struct Ls {
    #[command(flatten)]
    filter: FilterArgs,
    /// Those older than this event: the last of the page before
    #[arg(long, visible_alias = "cursor")]
    before: Option<EventId>,
    /// The most to list
    #[arg(long, default_value_t = 50)]
    limit: usize,
}

/// Which events.
#[derive(clap::Args)]
pub(super) struct FilterArgs {
    /// Those of one account
    #[arg(long)]
    account: Option<String>,
    /// Those of one event name or message type, as in SCAN or text
    #[arg(long)]
    event: Option<String>,
    /// Those of one OpenID
    #[arg(long)]
    from: Option<String>,
    /// Those for one target
    #[arg(long)]
    target: Option<String>,
    /// Those with a delivery in this state: pending, delivered, dead, expired or cancelled
    #[arg(long, value_parser = state)]
    state: Option<DeliveryState>,
    /// Those received since then: RFC 3339, or an age as in 2h
    #[arg(long, value_parser = moment)]
    since: Option<UnixMillis>,
    /// Those received before then
    #[arg(long, value_parser = moment)]
    until: Option<UnixMillis>,
}

impl FilterArgs {
    pub(super) fn filter(self) -> EventFilter {
        let Self { account, event, from, target, state, since, until } = self;
        EventFilter { account, event, from, target, state, since, until, ..EventFilter::default() }
    }
}

/// Reads the store itself, so it works while a relay runs and while none does; replays and forgets through the relay
/// while it runs, and follows a relay that runs.
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
        write!(io::stdout(), "{}", description(&serde_json::to_value(&event)?, text))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn state(text: &str) -> anyhow::Result<DeliveryState> {
    let known = DeliveryState::ALL.into_iter().find(|state| state.name() == text);
    known.context("expected pending, delivered, dead, expired or cancelled")
}

/// A time of RFC 3339, or an age.
fn moment(text: &str) -> anyhow::Result<UnixMillis> {
    if let Ok(moment) = text.parse::<jiff::Timestamp>() {
        return Ok(UnixMillis(moment.as_millisecond()));
    }
    let age: Duration = humantime::parse_duration(text).context("expected 2026-11-20T08:00:00Z, or an age as in 2h")?;
    Ok(UnixMillis(UnixMillis::now().0 - i64::try_from(age.as_millis())?))
}
