//! `wxrelay targets`: what waits for each target, configured or not, and what to do about it.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::process::ExitCode;

use anyhow::ensure;
use clap::Subcommand;
use serde_json::json;

use super::ConfigArgs;
use super::store::{self, Request};
use crate::config::Config;
use crate::queue::view::TargetStats;
use crate::queue::{Fate, Inspect, Sweep};

/// `wxrelay targets`
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
    /// List the configured targets, and those that are not configured any more but have deliveries
    Ls,
    /// Give up what waits for a target: its pending deliveries become `cancelled`
    Drop {
        /// Whose
        target: String,
    },
    /// Let another target have what waits for this one
    Redirect {
        /// Whose
        target: String,
        /// Who gets it
        #[arg(long, value_name = "TARGET")]
        to: String,
    },
}

/// Lists out of the store itself; changes through the relay while it runs, else in the store.
pub async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let config = args.config.load()?;
    let (sweep, request, target, done) = match args.action {
        Action::Ls => return list(&config, args.json),
        Action::Drop { target } => {
            let path = format!("/api/targets/{target}/drop-pending");
            let request = Request { path, body: None, count: "cancelled" };
            (Sweep::pending(&target, Fate::Dropped), request, target, "dropped")
        }
        Action::Redirect { target, to } => {
            store::expect_configured(&config, &to)?;
            ensure!(to != target, "what waits for `{target}` can't be redirected to itself");
            let path = format!("/api/targets/{target}/redirect");
            let request = Request { path, body: Some(json!({ "to": to })), count: "redirected" };
            (Sweep::pending(&target, Fate::Redirected(to.into())), request, target, "redirected")
        }
    };
    store::expect_known(&config, &target)?;
    let changed = store::sweep(&config, sweep, request).await?;
    if args.json {
        writeln!(io::stdout(), "{}", json!({ "target": target, done: changed }))?;
    } else {
        writeln!(io::stdout(), "{done} {changed} pending deliveries of {target}")?;
    }
    Ok(ExitCode::SUCCESS)
}

fn list(config: &Config, json: bool) -> anyhow::Result<ExitCode> {
    let stored = Inspect::open(&config.queue.path)?.stats()?.targets;
    let mut targets: BTreeMap<String, (bool, Option<TargetStats>)> =
        stored.into_iter().map(|stats| (stats.target.clone(), (false, Some(stats)))).collect();
    for settings in &config.targets {
        targets.entry(settings.target.name.to_string()).or_default().0 = true;
    }
    let mut out = io::stdout().lock();
    if !json {
        writeln!(
            out,
            "{:20} {:14} {:>10} {:>10} {:>10} {:>10} {:>10}  oldest pending",
            "target", "configured", "pending", "delivered", "dead", "expired", "cancelled"
        )?;
    }
    for (name, (configured, stats)) in targets {
        let counts = stats.as_ref().map(|stats| stats.counts).unwrap_or_default();
        let oldest = stats.and_then(|stats| stats.oldest_pending).map(|at| at.to_string());
        if json {
            let mut line = json!({ "name": name, "configured": configured });
            if let (Some(line), serde_json::Value::Object(counts)) =
                (line.as_object_mut(), serde_json::to_value(counts)?)
            {
                line.extend(counts);
                line.insert("oldest_pending".to_owned(), oldest.into());
            }
            writeln!(out, "{line}")?;
            continue;
        }
        writeln!(
            out,
            "{name:20} {:14} {:>10} {:>10} {:>10} {:>10} {:>10}  {}",
            if configured { "configured" } else { "not configured" },
            counts.pending,
            counts.delivered,
            counts.dead,
            counts.expired,
            counts.cancelled,
            oldest.as_deref().unwrap_or("-")
        )?;
    }
    Ok(ExitCode::SUCCESS)
}
