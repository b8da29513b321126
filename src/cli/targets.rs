//! `wxrelay targets`: the deliveries of each target, configured or not, and actions on them.

use std::io::Write;
use std::process::ExitCode;

use anyhow::ensure;
use clap::Subcommand;
use serde_json::json;

use super::access::{Access, RelayArgs};
use super::output;
use super::steps::Executor;
use super::store::{self, SweepRequest};
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
    },
    /// Move the pending deliveries of a target to another target
    Redirect {
        /// Name the target, such as crm
        target: String,
        /// Name the target that gets them, such as crm
        #[arg(long, value_name = "TARGET")]
        to: String,
    },
}

/// Lists from the store; changes through the relay while it runs, else in the store.
pub async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let access = args.relay.access().await?;
    let (sweep, request, target, done) = match args.action {
        Action::Ls => return list(&access, args.json).await,
        Action::Pause { target } => return pause(&access, &target, true, args.json).await,
        Action::Resume { target } => return pause(&access, &target, false, args.json).await,
        Action::Drop { target } => {
            let path = format!("/api/targets/{target}/drop-pending");
            let request = SweepRequest { path, body: None, count: "cancelled" };
            (Sweep::pending(&target, SweepAction::Drop), request, target, "dropped")
        }
        Action::Redirect { target, to } => {
            store::expect_configured(&access, &to).await?;
            ensure!(to != target, "the deliveries of `{target}` cannot be redirected to itself");
            let path = format!("/api/targets/{target}/redirect");
            let request = SweepRequest { path, body: Some(json!({ "to": to })), count: "redirected" };
            (Sweep::pending(&target, SweepAction::Redirect(to.into())), request, target, "redirected")
        }
    };
    store::expect_known(&access, &target).await?;
    let changed = store::sweep(&access, sweep, request).await?;
    if args.json {
        writeln!(output::stdout(), "{}", json!({ "target": target, done: changed }))?;
    } else {
        writeln!(output::stdout(), "{done} {changed} pending deliveries of {target}")?;
    }
    Ok(ExitCode::SUCCESS)
}

async fn pause(access: &Access, target: &str, paused: bool, json: bool) -> anyhow::Result<ExitCode> {
    store::expect_known(access, target).await?;
    match Executor::of(access)? {
        Executor::Local(queue) => {
            let stored = queue.pause(target.into(), paused).await;
            queue.close().await;
            stored?;
        }
        Executor::Relay(api) => {
            let action = if paused { "pause" } else { "resume" };
            api.post(&format!("/api/targets/{target}/{action}"), None).await?;
        }
    }
    if json {
        writeln!(output::stdout(), "{}", json!({ "target": target, "paused": paused }))?;
    } else {
        writeln!(output::stdout(), "{} {target}", if paused { "paused" } else { "resumed" })?;
    }
    Ok(ExitCode::SUCCESS)
}

async fn list(access: &Access, json: bool) -> anyhow::Result<ExitCode> {
    let targets = access.targets().await?;
    let mut out = output::stdout();
    if json {
        for target in &targets {
            writeln!(out, "{}", serde_json::to_string(target)?)?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    writeln!(
        out,
        "{:20} {:22} {:>10} {:>10} {:>10} {:>10} {:>10}  oldest pending",
        "target", "", "pending", "delivered", "dead", "expired", "cancelled"
    )?;
    for TargetOverview { name, configured, paused, counts, oldest_pending } in targets {
        writeln!(
            out,
            "{name:20} {:22} {:>10} {:>10} {:>10} {:>10} {:>10}  {}",
            match (configured, paused) {
                (true, false) => "configured",
                (true, true) => "configured, paused",
                (false, false) => "not configured",
                (false, true) => "not configured, paused",
            },
            counts.pending,
            counts.delivered,
            counts.dead,
            counts.expired,
            counts.cancelled,
            oldest_pending.map_or_else(|| "-".to_owned(), |at| at.to_string())
        )?;
    }
    Ok(ExitCode::SUCCESS)
}
