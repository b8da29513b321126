//! `wxrelay replicas`: the replicas that share a store in PostgreSQL, read there, so from any machine and whether they run
//! or not.

use std::io::Write as _;
use std::process::ExitCode;

use serde_json::json;

use super::access::{Access, ReportArgs};
use super::display::{self, Color, Column, StyledLine, Table, TimeArgs};
use super::output;
use crate::admin::Status;
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
    if args.json {
        for replica in &replicas {
            writeln!(output::stdout(), "{}", json!(replica))?;
        }
    } else {
        // No times are shown, but ages.
        table(&replicas).print(&display::Settings::new(TimeArgs { utc: true }))?;
    }
    Ok(if replicas.iter().any(|replica| replica.live) { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

const COLUMNS: [Column; 9] = [
    Column::elided("REPLICA", 8),
    Column::text("STATE"),
    Column::number("SLOT"),
    Column::elided("RELEASE", 5),
    Column::number("UP"),
    Column::number("BEAT"),
    Column::number("HELD"),
    Column::elided("CONFIG", 12),
    Column::elided("ADMIN", 9),
];

/// A row for each.
pub(super) fn table(replicas: &[Replica]) -> Table<'static> {
    let mut table = Table::new(&COLUMNS);
    replicas.iter().for_each(|replica| table.push(cells(replica)));
    table
}

fn cells(replica: &Replica) -> Vec<StyledLine> {
    let Replica { name, slot, release, started_at, last_beat_ms, held, admin, .. } = replica;
    let state = if replica.live { ("alive", Color::Green) } else { ("SILENT", Color::Red) };
    let beat = format!("{:.1}s", *last_beat_ms as f64 / 1000.0);
    let held = held.map_or_else(|| "-".to_owned(), |held| held.to_string());
    let known_and_different = !replica.config_sha256.is_empty() && !replica.same_config;
    vec![
        name.as_str().into(),
        StyledLine::new(state.0, state.1),
        slot.to_string().into(),
        release.as_str().into(),
        display::age(*started_at).into(),
        beat.into(),
        held.into(),
        StyledLine::new(&config(replica), if known_and_different { Color::Red } else { Color::Plain }),
        admin.as_deref().unwrap_or("-").into(),
    ]
}

/// The start of the configuration's hash, and whether it is that of the others.
fn config(replica: &Replica) -> String {
    match replica.config_sha256.get(..12) {
        None => "not told".to_owned(),
        Some(start) if replica.same_config => format!("{start} same"),
        Some(start) => format!("{start} DIFFERS"),
    }
}
