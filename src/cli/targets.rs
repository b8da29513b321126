//! `wxrelay targets`: the deliveries of each target, configured or not, and actions on them.

use std::io::Write;
use std::process::ExitCode;

use anyhow::ensure;
use clap::Subcommand;
use serde_json::json;

use super::access::{Access, RelayArgs};
use super::changes::{self, Changed, SweepRequest};
use super::confirmation::{ConfirmationArgs, PlannedAction, confirm, counted};
use super::display::{self, Color, Column, StyledLine, Table, TimeArgs, target_color, trouble};
use super::output;
use super::steps::Executor;
use crate::admin::TargetOverview;
use crate::queue::{Sweep, SweepAction};

/// `wxrelay targets`
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    relay: RelayArgs,
    /// Print JSON, one object per line
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    /// List the configured targets, and removed ones that still have deliveries
    #[command(alias = "list")]
    Ls,
    /// Pause a target until it is resumed, also over restarts; its deliveries stay pending
    Pause {
        /// Name the target, such as crm
        target: String,
    },
    /// Resume a target
    Resume {
        /// Name the target, such as crm
        target: String,
    },
    /// Cancel the pending deliveries of a target
    Drop {
        /// Name the target, such as crm
        target: String,
        #[command(flatten)]
        confirmation: ConfirmationArgs,
    },
    /// Move the pending deliveries of a target to another target
    Redirect {
        /// Name the target, such as crm
        target: String,
        /// Name the target that gets them, such as crm
        #[arg(long, value_name = "TARGET")]
        to: String,
        #[command(flatten)]
        confirmation: ConfirmationArgs,
    },
}

/// Lists from the store; changes through the relay while it runs, else in the store.
pub async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let access = args.relay.access().await?;
    let (sweep, request, target, confirmation, [verb, done], undo) = match args.action {
        Action::Ls => return list(&access, args.json).await,
        Action::Pause { target } => return pause(&access, &target, true, args.json).await,
        Action::Resume { target } => return pause(&access, &target, false, args.json).await,
        Action::Drop { target, confirmation } => {
            let path = format!("/api/targets/{target}/drop-pending");
            let request = SweepRequest { path, body: None, count: "cancelled" };
            let undo = format!("{}, while queue.retention keeps it", changes::replay_cancelled(&target));
            (Sweep::pending(&target, SweepAction::Drop), request, target, confirmation, ["drop", "dropped"], undo)
        }
        Action::Redirect { target, to, confirmation } => {
            changes::expect_configured(&access, &to).await?;
            ensure!(to != target, "the deliveries of `{target}` cannot be redirected to itself");
            let path = format!("/api/targets/{target}/redirect");
            let request = SweepRequest { path, body: Some(json!({ "to": to })), count: "redirected" };
            // Not by a redirect back: it would also move what was pending for that target before.
            let replay = changes::replay_cancelled(&target);
            let undo = format!("{replay}, and `wxrelay targets drop {to}` cancels all that is pending for {to}");
            let sweep = Sweep::pending(&target, SweepAction::Redirect(to.into()));
            (sweep, request, target, confirmation, ["redirect", "redirected"], undo)
        }
    };
    let counts: Vec<_> = access.targets().await?.into_iter().map(|one| (one.name, one.counts.pending)).collect();
    changes::expect(&target, counts.iter().map(|(name, _)| name.clone()).collect())?;
    let count = counts.into_iter().find(|(name, _)| *name == target).map_or(0, |(_, count)| count);
    if confirmation.dry_run {
        return changes::print_dry_run(verb, "pending deliveries", &[(target, count)], args.json);
    }
    let pending = counted(count, "pending delivery", "pending deliveries");
    let planned = PlannedAction { count: Some(count), action: format!("{verb} {pending} of {target}"), undo };
    if !confirm(confirmation, &planned)? {
        return Ok(ExitCode::FAILURE);
    }
    let Changed { count: changed, seen } = changes::sweep(&access, sweep, request).await?;
    if args.json {
        let printed = changes::with_seen(json!({ "target": target, done: changed }), seen);
        writeln!(output::stdout(), "{printed}")?;
    } else {
        writeln!(output::stdout(), "{done} {changed} pending deliveries of {target}")?;
        changes::print_seen(seen)?;
        if changed > 0 {
            output::stderr().write_line(&format!("undo: {}", planned.undo))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

async fn pause(access: &Access, target: &str, paused: bool, json: bool) -> anyhow::Result<ExitCode> {
    changes::expect_known(access, target).await?;
    let seen = match Executor::of(access).await? {
        Executor::Local(queue) => {
            let stored = queue.pause(target.into(), paused).await;
            let seen = if stored.is_ok() { changes::await_seen(&queue).await } else { None };
            queue.close().await;
            stored?;
            seen
        }
        Executor::Relay(api) => {
            let action = if paused { "pause" } else { "resume" };
            changes::parse_seen(&api.post(&format!("/api/targets/{target}/{action}"), None).await?)
        }
    };
    if json {
        let printed = changes::with_seen(json!({ "target": target, "paused": paused }), seen);
        writeln!(output::stdout(), "{printed}")?;
    } else {
        writeln!(output::stdout(), "{} {target}", if paused { "paused" } else { "resumed" })?;
        changes::print_seen(seen)?;
    }
    Ok(ExitCode::SUCCESS)
}

const COLUMNS: [Column; 8] = [
    Column::elided("TARGET", 8),
    Column::text("STATE"),
    Column::number("PENDING"),
    Column::number("OLDEST"),
    Column::number("DELIVERED"),
    Column::number("DEAD"),
    Column::number("EXPIRED"),
    Column::number("CANCELLED"),
];

async fn list(access: &Access, json: bool) -> anyhow::Result<ExitCode> {
    let targets = access.targets().await?;
    if json {
        for target in &targets {
            writeln!(output::stdout(), "{}", serde_json::to_string(target)?)?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    // No times are shown, but ages.
    let settings = display::Settings::new(TimeArgs { utc: true });
    let mut table = Table::new(&COLUMNS);
    for TargetOverview { name, configured, paused, counts, oldest_pending } in targets {
        let state = match (configured, paused) {
            (true, false) => "configured",
            (true, true) => "paused",
            (false, false) => "removed",
            (false, true) => "removed, paused",
        };
        let oldest = oldest_pending.map_or_else(|| "-".to_owned(), display::age);
        table.push(vec![
            name.into(),
            StyledLine::new(state, target_color(state)),
            counts.pending.to_string().into(),
            oldest.into(),
            counts.delivered.to_string().into(),
            trouble(counts.dead, Color::Red),
            trouble(counts.expired, Color::Magenta),
            counts.cancelled.to_string().into(),
        ]);
    }
    table.print(&settings)?;
    Ok(ExitCode::SUCCESS)
}
