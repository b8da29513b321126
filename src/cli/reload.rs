//! `wxrelay reload`: lets the running relay read its configuration again, and prints what changed.

use std::io::Write as _;
use std::process::ExitCode;

use http::{Method, StatusCode};

use super::access::ReportArgs;
use super::{BadConfig, output};
use crate::admin::ReloadReport;
use crate::escape;

/// Waits for the relay's answer. Exit code 78 if the configuration has errors: the old one stays in use.
pub async fn run(args: ReportArgs) -> anyhow::Result<ExitCode> {
    let api = args.relay.api()?;
    let (status, answer) = api.call(Method::POST, "/api/reload", None).await?;
    let is_refused = status == StatusCode::UNPROCESSABLE_ENTITY;
    if !status.is_success() && !is_refused {
        return Err(api.refusal(status, answer["error"].as_str().unwrap_or("no reason given")));
    }
    if args.json {
        writeln!(output::stdout(), "{answer}")?;
    } else if is_refused {
        let errors: Vec<_> = answer["errors"].as_array().into_iter().flatten().filter_map(|one| one.as_str()).collect();
        for error in &errors {
            output::stderr().write_line(error)?;
        }
        writeln!(output::stderr(), "not reloaded: {} errors; the old configuration stays in use", errors.len())?;
    } else {
        print_report(&serde_json::from_value(answer)?)?;
    }
    Ok(if is_refused { BadConfig::EXIT_CODE.into() } else { ExitCode::SUCCESS })
}

fn print_report(report: &ReloadReport) -> anyhow::Result<()> {
    let ReloadReport { reloaded: _, generation, config_sha256, changes, needs_restart, warnings } = report;
    let sha256 = config_sha256.get(..12).unwrap_or(config_sha256);
    let mut text = format!("reloaded: configuration {sha256}, generation {generation}\n");
    if changes.is_empty() {
        text += "  no key changed\n";
    }
    for change in changes {
        text += &format!("  {:<8} {}\n", change.change.word(), escape::line(&change.key));
    }
    for key in needs_restart {
        text += &format!("  {key}: restart the relay to apply it\n");
    }
    output::stdout().write_all(text.as_bytes())?;
    for warning in warnings {
        output::stderr().write_line(&format!("warning: {warning}"))?;
    }
    Ok(())
}
