//! `wxrelay man`: manual pages, generated from the same texts as `--help`.

use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Command, CommandFactory as _};
use clap_mangen::Man;

use super::Cli;
use super::fixable::fixable;
use super::{help, output};

/// `wxrelay man`
#[derive(clap::Args)]
pub struct Args {
    /// Write one page for each command into this folder [default: print the first page]
    #[arg(long)]
    dir: Option<PathBuf>,
}

/// Sections of every page.
const SECTIONS: [(&str, &str); 3] = [
    (
        "FILES",
        "\
config.toml, /etc/wxrelay/config.toml
       The configuration, where neither -c nor WXRELAY_CONFIG names one.
/var/lib/wxrelay
       The store of the packaged service.",
    ),
    (
        "ENVIRONMENT",
        "\
WXRELAY_CONFIG
       The configuration file.
WXRELAY__TABLE__KEY
       A value of the configuration, such as WXRELAY__LOG__LEVEL=debug.
WXRELAY_ADMIN, WXRELAY_ADMIN_TOKEN
       The running relay's admin address, and its token.
CREDENTIALS_DIRECTORY
       Where secrets of the form { credential = \"NAME\" } are.
NO_COLOR
       If it is not empty, no colours.
TZ
       The time zone of times [default: /etc/localtime].",
    ),
    (
        "EXIT STATUS",
        "\
0      Success.
1      Failure, such as a failed check, or a relay that is not ready.
2      Wrong arguments, among them a filter with an unknown name.
3      why found no event, or store salvage could not read everything.
70     A part of the relay ended or hung: a bug.
74     The disk failed, or the store was damaged.
78     The configuration is wrong; a restart does not help.",
    ),
];

/// Prints the page, or writes all of them.
///
/// # Errors
/// If they cannot be written.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let mut command = Cli::command().disable_help_subcommand(true);
    command.build();
    match &args.dir {
        None => output::exact_stdout().write_all(&page(&command)?)?,
        Some(dir) => {
            let written = fs::create_dir_all(dir).and_then(|()| write_pages(&command, dir));
            let problem = || format!("can't write {}", dir.display());
            written.with_context(|| fixable(problem(), "choose another --dir"))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Writes the page of a command and of those below it.
fn write_pages(command: &Command, dir: &Path) -> io::Result<()> {
    for below in command.get_subcommands() {
        write_pages(below, dir)?;
    }
    fs::write(dir.join(Man::new(command.clone()).get_filename()), page(command)?)
}

fn page(command: &Command) -> io::Result<Vec<u8>> {
    let mut page = Vec::new();
    Man::new(command.clone()).render(&mut page)?;
    let name = command.get_display_name().unwrap_or_else(|| command.get_name());
    let name = name.strip_prefix("wxrelay").unwrap_or_default().replace('-', " ");
    let examples = help::examples(name.trim_start()).join("\n");
    for (title, text) in [("EXAMPLES", &*examples)].into_iter().chain(SECTIONS) {
        // As it is: filling would join the lines. No line begins with a full stop, which would be a request.
        let text = text.replace('\\', "\\\\").replace('-', "\\-");
        page.extend_from_slice(format!(".SH \"{title}\"\n.nf\n{text}\n.fi\n").as_bytes());
    }
    Ok(page)
}
