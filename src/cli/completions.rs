//! `wxrelay completions`: completion scripts for shells.

use std::io::Write as _;
use std::process::ExitCode;

use clap::CommandFactory as _;
use clap_complete::Shell;

use super::Cli;
use super::output;

/// `wxrelay completions`
#[derive(clap::Args)]
pub struct Args {
    /// Print the script for this shell, such as bash
    shell: Shell,
}

/// Prints the script.
///
/// # Errors
/// If it cannot be written.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    // Buffered, since clap_complete panics if stdout is closed early.
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "wxrelay", &mut script);
    output::exact_stdout().write_all(&script)?;
    Ok(ExitCode::SUCCESS)
}
