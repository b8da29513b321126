//! `wxrelay check`: all that is wrong with a configuration, or the routing table it makes; with `--online` also whether
//! every target is there.

use std::io::{self, Write};
use std::process::ExitCode;

use super::ConfigArgs;
use super::online::{self, Finding};
use crate::config::table;

/// `wxrelay check`
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    config: ConfigArgs,
    /// Send each `wechat` target the GET verification that WeChat would, connect to every other target, and exit with 1 if
    /// one is not as it should be. Sends no event
    #[arg(long)]
    online: bool,
    /// Print the routing table as JSON
    #[arg(long)]
    json: bool,
}

/// Prints the table to stdout, or every error to stderr.
pub async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let config = args.config.load()?;
    for warning in &config.warnings {
        writeln!(io::stderr(), "warning: {warning}")?;
    }
    if !args.json {
        write!(io::stdout(), "{}", table::text(&config))?;
    }
    let findings = if args.online { online::probe(&config).await } else { Vec::new() };
    if args.json {
        let mut table = table::json(&config);
        if args.online {
            table["online"] = findings.iter().map(Finding::to_json).collect();
        }
        writeln!(io::stdout(), "{table:#}")?;
    } else if !findings.is_empty() {
        writeln!(io::stdout(), "\nonline")?;
        for finding in &findings {
            writeln!(io::stdout(), "  {finding}")?;
        }
    }
    let well = findings.iter().all(|finding| finding.result.is_ok());
    Ok(if well { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
