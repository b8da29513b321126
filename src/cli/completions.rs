//! `wxrelay completions`: what a shell needs to complete the commands and their flags.

use std::io::{self, Write as _};
use std::process::ExitCode;

use clap::CommandFactory as _;
use clap_complete::Shell;

use super::Cli;

/// `wxrelay completions`
#[derive(clap::Args)]
pub struct Args {
    /// Whose completions
    shell: Shell,
}

/// Prints them.
///
/// # Errors
/// If they cannot be written.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    // Not straight to stdout: a reader that leaves early would be a panic there.
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "wxrelay", &mut script);
    io::stdout().lock().write_all(&script)?;
    Ok(ExitCode::SUCCESS)
}
