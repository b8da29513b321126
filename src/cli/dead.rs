//! `wxrelay dead`: dead letters, target by target.

use std::io::Write;
use std::process::ExitCode;

use clap::Subcommand;

use super::access::{Access, RelayArgs};
use super::changes::{self, Changed, SweepRequest};
use super::confirmation::{ConfirmationArgs, PlannedAction, confirm, counted};
use super::description::excerpt;
use super::display::{self, Column, Table, TimeArgs};
use super::output;
use crate::event::EventId;
use crate::queue::view::{DeadLetter, EventDetail};
use crate::queue::{DeliveryState, Sweep, SweepAction};

/// `wxrelay dead`
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    relay: RelayArgs,
    #[command(flatten)]
    times: TimeArgs,
    /// Print JSON
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    /// List dead letters, newest first
    #[command(alias = "list")]
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
        /// Retry those of these events: evt_... [default: all, after a confirmation]
        ids: Vec<EventId>,
        #[command(flatten)]
        confirmation: ConfirmationArgs,
    },
    /// Cancel a target's dead letters for good
    Drop {
        /// Name the target, such as crm
        target: String,
        /// Cancel those of these events: evt_... [default: all, after a confirmation]
        ids: Vec<EventId>,
        #[command(flatten)]
        confirmation: ConfirmationArgs,
    },
}

/// Lists from the store; changes through the relay while it runs, else in the store.
pub async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let access = args.relay.access().await?;
    let (target, ids, confirmation, action, [verb, done]) = match args.action {
        Action::Ls { target, before, limit } => {
            let found = access.dead(target.as_deref(), limit, before).await?;
            if found.is_empty() {
                changes::expect_filter(&access, &args.relay, None, target.as_deref()).await?;
            }
            return list(&found, args.times, args.json);
        }
        Action::Retry { target, ids, confirmation } => {
            (target, ids, confirmation, SweepAction::Replay, ["retry", "retried"])
        }
        Action::Drop { target, ids, confirmation } => {
            (Some(target), ids, confirmation, SweepAction::Drop, ["drop", "dropped"])
        }
    };
    let counts = counts(&access, target, &ids).await?;
    if confirmation.dry_run {
        return changes::print_dry_run(verb, "dead letters", &counts, args.json);
    }
    let planned = plan(verb, &counts, &action);
    // Events that are named need no confirmation.
    if ids.is_empty() && !confirm(confirmation, &planned)? {
        return Ok(ExitCode::FAILURE);
    }
    let (mut total, mut last) = (0, None);
    for (target, _) in counts {
        let Changed { count: changed, seen } = change(&access, &target, &ids, action.clone()).await?;
        total += changed;
        last = seen;
        if args.json {
            let printed = changes::with_seen(serde_json::json!({ "target": target, done: changed }), seen);
            writeln!(output::stdout(), "{printed}")?;
        } else {
            writeln!(output::stdout(), "{done} {changed} dead letters of {target}")?;
        }
    }
    if total > 0 && !args.json {
        changes::print_seen(last)?;
        output::stderr().write_line(&format!("undo: {}", planned.undo))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// The named target or all, each with the number of its dead letters, or of those among the named events.
async fn counts(access: &Access, named: Option<String>, ids: &[EventId]) -> anyhow::Result<Vec<(String, u64)>> {
    let mut counts: Vec<_> = access.targets().await?.into_iter().map(|one| (one.name, one.counts.dead)).collect();
    if let Some(named) = named {
        changes::expect(&named, counts.iter().map(|(name, _)| name.clone()).collect())?;
        counts.retain(|(name, _)| *name == named);
    }
    if ids.is_empty() {
        return Ok(counts);
    }
    let mut events = Vec::new();
    for id in ids {
        events.extend(access.event(*id).await?);
    }
    let is_dead = |target: &str, event: &EventDetail| {
        event.deliveries.iter().any(|one| one.target == target && one.state == DeliveryState::Dead)
    };
    for (target, count) in &mut counts {
        *count = events.iter().filter(|event| is_dead(target, event)).count() as u64;
    }
    Ok(counts)
}

fn plan(verb: &str, counts: &[(String, u64)], action: &SweepAction) -> PlannedAction {
    let count = counts.iter().map(|(_, count)| count).sum();
    let names: Vec<_> = counts.iter().filter(|(_, count)| *count > 0).map(|(name, _)| name.as_str()).collect();
    let (one, letters) = (names.first().copied().unwrap_or("TARGET"), counted(count, "dead letter", "dead letters"));
    let undo = match action {
        SweepAction::Drop => format!("{}, while queue.retention keeps them", changes::replay_cancelled(one)),
        _ if names.len() > 1 => {
            "`wxrelay targets drop TARGET` cancels those not delivered yet; a delivery cannot be undone".to_owned()
        }
        _ => format!("`wxrelay targets drop {one}` cancels those not delivered yet; a delivery cannot be undone"),
    };
    let of = match (&names[..], counts) {
        ([], [(target, _)]) => target.clone(),
        ([], _) => "any target".to_owned(),
        (names, _) => names.join(", "),
    };
    PlannedAction { count: Some(count), action: format!("{verb} {letters} of {of}"), undo }
}

const COLUMNS: [Column; 6] = [
    Column::text("TIME"),
    Column::text("ID"),
    Column::elided("TARGET", 6),
    Column::elided("EVENT", 4),
    Column::number("TRIES"),
    Column::elided("ERROR", 12),
];

fn list(found: &[DeadLetter], times: TimeArgs, json: bool) -> anyhow::Result<ExitCode> {
    if json {
        for letter in found {
            writeln!(output::stdout(), "{}", serde_json::to_string(letter)?)?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    if found.is_empty() {
        writeln!(output::stderr(), "no dead letters")?;
        return Ok(ExitCode::SUCCESS);
    }
    let settings = display::Settings::new(times);
    let mut table = Table::new(&COLUMNS);
    for letter in found {
        let name = if letter.event.is_empty() { &letter.msg_type } else { &letter.event };
        let error = letter.error.as_deref().unwrap_or_default();
        let sealed = letter.sealed.as_ref().map(|why| format!("  [answer left out: {why}]"));
        let answer = letter.answer.as_deref().map(excerpt).or(sealed).unwrap_or_default();
        let [time, id] = [settings.time(letter.received_at), letter.id.to_string()];
        let why = format!("{error}{answer}");
        let cells = [time, id, letter.target.clone(), name.clone(), letter.attempts.to_string(), why];
        table.push(cells.map(Into::into).into());
    }
    table.print(&settings)?;
    Ok(ExitCode::SUCCESS)
}

async fn change(access: &Access, target: &str, ids: &[EventId], action: SweepAction) -> anyhow::Result<Changed> {
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
    changes::sweep(access, Sweep::dead(target, events, action), request).await
}
