//! `wxrelay man`: manual pages, generated from the same texts as `--help`.

use std::fs;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::CommandFactory as _;
use clap_mangen::Man;

use super::Cli;
use super::fixable::fixable;
use super::output;

/// `wxrelay man`
#[derive(clap::Args)]
pub struct Args {
    /// Write one page for each command into this folder [default: print the first page]
    #[arg(long)]
    dir: Option<PathBuf>,
}

/// Prints the page, or writes all of them.
///
/// # Errors
/// If they cannot be written.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    match &args.dir {
        None => {
            let mut page = Vec::new();
            Man::new(Cli::command()).render(&mut page)?;
            output::exact_stdout().write_all(&page)?;
        }
        Some(dir) => {
            let written = fs::create_dir_all(dir).and_then(|()| clap_mangen::generate_to(Cli::command(), dir));
            let problem = || format!("can't write {}", dir.display());
            written.with_context(|| fixable(problem(), "choose another --dir"))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}
