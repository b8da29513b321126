//! `wxrelay targets`: what waits for each target, configured or not, and what to do about it.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::process::ExitCode;

use anyhow::ensure;
use clap::Subcommand;
use serde_json::json;

use super::ConfigArgs;
use super::api::Api;
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
    /// Make no attempts at a target until it is resumed, also over restarts; its deliveries wait
    Pause {
        /// Which
        target: String,
    },
    /// Make attempts at a target again
    Resume {
        /// Which
        target: String,
    },
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
        Action::Pause { target } => return pause(&config, &target, true, args.json).await,
        Action::Resume { target } => return pause(&config, &target, false, args.json).await,
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

async fn pause(config: &Config, target: &str, paused: bool, json: bool) -> anyhow::Result<ExitCode> {
    store::expect_known(config, target)?;
    match store::claim(config)? {
        Some(queue) => {
            let stored = queue.pause(target.into(), paused).await;
            queue.close().await;
            stored?;
        }
        None => {
            let action = if paused { "pause" } else { "resume" };
            Api::of(config)?.post(&format!("/api/targets/{target}/{action}"), None).await?;
        }
    }
    if json {
        writeln!(io::stdout(), "{}", json!({ "target": target, "paused": paused }))?;
    } else {
        writeln!(io::stdout(), "{} {target}", if paused { "paused" } else { "resumed" })?;
    }
    Ok(ExitCode::SUCCESS)
}

fn list(config: &Config, json: bool) -> anyhow::Result<ExitCode> {
    let store = Inspect::open(&config.queue.path)?;
    let (stored, paused) = (store.stats()?.targets, store.paused()?);
    let mut targets: BTreeMap<String, (bool, Option<TargetStats>)> =
        stored.into_iter().map(|stats| (stats.target.clone(), (false, Some(stats)))).collect();
    for settings in &config.targets {
        targets.entry(settings.target.name.to_string()).or_default().0 = true;
    }
    let mut out = io::stdout().lock();
    if !json {
        writeln!(
            out,
            "{:20} {:22} {:>10} {:>10} {:>10} {:>10} {:>10}  oldest pending",
            "target", "", "pending", "delivered", "dead", "expired", "cancelled"
        )?;
    }
    for (name, (configured, stats)) in targets {
        let paused = paused.contains(&name);
        let counts = stats.as_ref().map(|stats| stats.counts).unwrap_or_default();
        let oldest = stats.and_then(|stats| stats.oldest_pending).map(|at| at.to_string());
        if json {
            let mut line = json!({ "name": name, "configured": configured, "paused": paused });
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
            oldest.as_deref().unwrap_or("-")
        )?;
    }
    Ok(ExitCode::SUCCESS)
}
