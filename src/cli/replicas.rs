//! `wxrelay replicas`: the replicas that share a store in PostgreSQL, read there, so from any machine and whether they run
//! or not.

use std::io::Write as _;
use std::process::ExitCode;

use serde_json::json;

use super::access::{Access, ReportArgs};
use super::output;
use super::top::frame::span;
use crate::admin::Status;
use crate::clock::UnixMillis;
use crate::queue::{Inspect, Replica};

/// Exit code 0 if a replica is alive, else 1.
pub async fn run(args: ReportArgs) -> anyhow::Result<ExitCode> {
    let found = match args.relay.access().await? {
        Access::Store(store) => Inspect::open(&store.queue).await?.replicas().await?,
        Access::Relay(api) => {
            let status: Status = api.get("/api/status").await?;
            Some(status.replicas).filter(|replicas| !replicas.is_empty())
        }
    };
    let Some(replicas) = found else {
        output::stderr().write_line("the store is not in PostgreSQL: one relay uses it, and there are no replicas")?;
        return Ok(ExitCode::FAILURE);
    };
    let mut out = output::stdout();
    if args.json {
        for replica in &replicas {
            writeln!(out, "{}", json!(replica))?;
        }
    } else {
        out.write_line(&header())?;
        for replica in &replicas {
            out.write_line(&line(replica))?;
        }
    }
    Ok(if replicas.iter().any(|replica| replica.live) { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn header() -> String {
    let [state, slot, release, up, beat, held] = ["state", "slot", "release", "up", "last beat", "held"];
    let name = "replica";
    format!("{name:20} {state:6} {slot:>4} {release:>8} {up:>8} {beat:>9} {held:>7}  {:21} admin", "config")
}

fn line(replica: &Replica) -> String {
    let Replica { name, slot, release, started_at, last_beat_ms, held, admin, .. } = replica;
    let state = if replica.live { "alive" } else { "SILENT" };
    let up = span(UnixMillis::now().since(*started_at).as_secs_f64());
    let beat = format!("{:.1}s", *last_beat_ms as f64 / 1000.0);
    let held = held.map_or_else(|| "-".to_owned(), |held| held.to_string());
    let (config, admin) = (config(replica), admin.as_deref().unwrap_or("-"));
    format!("{name:20} {state:6} {slot:>4} {release:>8} {up:>8} {beat:>9} {held:>7}  {config:21} {admin}")
}

/// The start of the configuration's hash, and whether it is that of the others.
pub(super) fn config(replica: &Replica) -> String {
    match replica.config_sha256.get(..12) {
        None => "not told".to_owned(),
        Some(start) if replica.same_config => format!("{start} same"),
        Some(start) => format!("{start} DIFFERS"),
    }
}
