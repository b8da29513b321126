//! `wxrelay checks`: what needs a hand, as the running relay judges it.

use std::io::Write as _;
use std::process::ExitCode;

use serde_json::Value;

use super::access::ReportArgs;
use super::api::Api;
use super::display::{self, Color, Column, StyledLine, Table, TimeArgs};
use super::output;
use crate::clock::UnixMillis;

/// `wxrelay checks`
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    report: ReportArgs,
    #[command(flatten)]
    times: TimeArgs,
    /// Leave out what can wait until morning
    #[arg(long)]
    urgent: bool,
    /// Exit with 1 if anything is listed
    #[arg(long)]
    exit_code: bool,
}

const COLUMNS: [Column; 5] = [
    Column::text("SEVERITY"),
    Column::text("CHECK"),
    Column::elided("ON", 6),
    Column::number("SINCE"),
    Column::elided("WHAT", 20),
];

/// Lists them, with what to do about each.
pub async fn run(Args { report, times, urgent, exit_code }: Args) -> anyhow::Result<ExitCode> {
    let mut found = get(&report.relay.api()?).await?;
    found.retain(|check| !urgent || is_urgent(check));
    if report.json {
        for check in &found {
            writeln!(output::stdout(), "{check}")?;
        }
    } else if found.is_empty() {
        output::stderr().write_line("nothing needs a hand")?;
    } else {
        print(&found, &display::Settings::new(times))?;
    }
    Ok(if exit_code && !found.is_empty() { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// The checks that hold, as the API writes them.
pub(super) async fn get(api: &Api) -> anyhow::Result<Vec<Value>> {
    let mut answer: Value = api.get("/api/checks").await?;
    Ok(answer["checks"].as_array_mut().map(std::mem::take).unwrap_or_default())
}

/// Whether it wakes somebody up.
fn is_urgent(check: &Value) -> bool {
    check["severity"] == "page"
}

pub(super) fn color(check: &Value) -> Color {
    if is_urgent(check) { Color::Red } else { Color::Yellow }
}

pub(super) fn text<'c>(check: &'c Value, key: &str) -> &'c str {
    check[key].as_str().unwrap_or_default()
}

fn print(found: &[Value], settings: &display::Settings) -> anyhow::Result<()> {
    let mut table = Table::new(&COLUMNS);
    for check in found {
        let subject = text(check, "subject");
        let since: Option<UnixMillis> = serde_json::from_value(check["since"].clone()).ok();
        table.push(vec![
            StyledLine::new(text(check, "severity"), color(check)),
            text(check, "id").into(),
            if subject.is_empty() { "-" } else { subject }.into(),
            since.map_or_else(|| "-".to_owned(), display::age).into(),
            text(check, "text").into(),
        ]);
    }
    table.print(settings)?;
    let mut lines = vec![StyledLine::default()];
    for check in found {
        let todo = format!("{}: {}", text(check, "id"), text(check, "runbook"));
        let todo = display::wrap(&todo, settings.width.unwrap_or(usize::MAX), 2);
        let todo: Vec<_> = todo.lines().map(StyledLine::plain).collect();
        // Twice the same for two targets, but for their names.
        if !lines.ends_with(&todo) {
            lines.extend(todo);
        }
    }
    Ok(output::print_lines(&lines, settings.color)?)
}
