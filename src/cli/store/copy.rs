//! `wxrelay store copy`: copies a store from SQLite to PostgreSQL, or back.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

use crate::cli::fixable::fixable;
use crate::cli::{BadConfig, ConfigArgs, audit, output};
use crate::config::{self, StoreAccess};
use crate::queue::copy::{CopyError, CopyProgress, CopyReport, CopyStep, StoreCopy, copy_store};

#[derive(clap::Args)]
pub(super) struct Args {
    /// Copy into the store of this configuration, of which only [queue] is read
    #[arg(long, value_name = "FILE")]
    to: PathBuf,
    /// End when the replicas may be started; run it again without this for the rest
    #[arg(long)]
    only_open: bool,
    /// Check both stores and count, and change nothing
    #[arg(long)]
    dry_run: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Copies; exit code 1 if the counts differ at the end.
pub(super) async fn run(config: &ConfigArgs, args: Args) -> anyhow::Result<ExitCode> {
    let from = config.load_store()?;
    let to = target(&args)?;
    let screen = Screen::new();
    let copy = StoreCopy { from: &from.queue, to: &to.queue, only_open: args.only_open, dry_run: args.dry_run };
    let copied = copy_store(&copy, &mut |progress| screen.show(progress)).await;
    screen.bar.finish_and_clear();
    let report = copied.map_err(as_fixable)?;
    let text = if args.json { serde_json::to_string(&report)? + "\n" } else { text(&report, args.only_open) };
    output::stdout().write_all(text.as_bytes())?;
    Ok(if report.differences.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The other configuration. One without `[queue]` would name the default folder, which nobody wrote.
fn target(args: &Args) -> anyhow::Result<StoreAccess> {
    let to = config::store_access(Some(&args.to), config::environment()).map_err(BadConfig)?;
    if to.is_named {
        return Ok(to);
    }
    let problem = format!("{} has no [queue], so it names no store", args.to.display());
    Err(fixable(problem, "write the [queue] of the other store into it, with its encryption_keys").into())
}

fn as_fixable(error: CopyError) -> anyhow::Error {
    match error.remedy() {
        Some(remedy) => fixable(&error, remedy).into(),
        None => error.into(),
    }
}

/// Shows how far it is: with a bar on a terminal, else with lines.
struct Screen {
    bar: ProgressBar,
}

impl Screen {
    fn new() -> Self {
        let bar = ProgressBar::new_spinner();
        bar.enable_steady_tick(Duration::from_millis(200));
        Self { bar }
    }

    fn show(&self, progress: CopyProgress) {
        match progress {
            CopyProgress::Began(step, events) => {
                let line = match step {
                    CopyStep::Open => format!("step 1: copying {events} unfinished or new events"),
                    CopyStep::Finished => format!("step 2: copying {events} finished events"),
                    CopyStep::Done => format!("copying {events} events"),
                };
                // It is where no terminal reads it.
                if !self.bar.is_hidden() {
                    if let Ok(style) =
                        ProgressStyle::with_template("{msg} {bar:40} {human_pos}/{human_len}, {eta} left")
                    {
                        self.bar.set_style(style);
                    }
                    self.bar.reset();
                    self.bar.set_length(events);
                    self.bar.set_message(line);
                } else {
                    self.say(&line);
                }
            }
            CopyProgress::Copied(events) => self.bar.inc(events),
            CopyProgress::ReplicasMayStart => self.say("the replicas may be started now"),
            CopyProgress::Comparing => self.bar.set_message("comparing the counts"),
        }
    }

    fn say(&self, line: &str) {
        // Nobody may be left to read it.
        self.bar.suspend(|| output::stderr().write_line(line).ok());
    }
}

fn text(report: &CopyReport, only_open: bool) -> String {
    let mut text = String::new();
    let CopyReport { dry_run, complete, events, open_events, pushed_again, source, copy, differences } = report;
    if *dry_run {
        return match open_events {
            0 => format!("would copy {events} events; nothing was changed\n"),
            open => format!(
                "would copy {events} events, {open} of them before the replicas may start; nothing was changed\n"
            ),
        };
    }
    let mut add = |line: String| text += &(line + "\n");
    add(format!("{events} events copied"));
    if *pushed_again > 0 {
        add(format!("{pushed_again} events left out: the same push came again since, and is stored as another event"));
    }
    for difference in differences {
        add(format!("DIFFERS: {difference}"));
    }
    if *complete {
        add("complete: all counts of the store are those of the copy".to_owned());
    } else if only_open {
        add("not complete: start the replicas, and run this again without --only-open".to_owned());
    }
    for (name, counts) in [("store", source), ("copy", copy)] {
        if let Some(counts) = counts {
            text += &format!("\n{name}:\n{}", audit::text(counts));
        }
    }
    text
}
