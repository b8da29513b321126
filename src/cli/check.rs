//! `wxrelay check`: all that is wrong with a configuration, or the routing table it makes.

use std::io::{self, Write};
use std::process::ExitCode;

use super::ConfigArgs;
use crate::config::table;

/// `wxrelay check`
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    config: ConfigArgs,
    /// Print the routing table as JSON
    #[arg(long)]
    json: bool,
}

/// Prints the table to stdout, or every error to stderr.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let config = args.config.load()?;
    for warning in &config.warnings {
        writeln!(io::stderr(), "warning: {warning}")?;
    }
    if args.json {
        writeln!(io::stdout(), "{:#}", table::json(&config))?;
    } else {
        write!(io::stdout(), "{}", table::text(&config))?;
    }
    Ok(ExitCode::SUCCESS)
}
