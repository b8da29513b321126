//! `wxrelay audit`: the ledger, counted anew out of the store itself.

use std::io::{self, Write};
use std::process::ExitCode;

use super::ConfigArgs;
use crate::queue::{Audit, Inspect};

/// `wxrelay audit`
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    config: ConfigArgs,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Prints the ledger; exit code 1 if one delivery is unaccounted for.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let config = args.config.load()?;
    let audit = Inspect::open(&config.queue.path)?.audit()?;
    if args.json {
        writeln!(io::stdout(), "{}", serde_json::to_string(&audit)?)?;
    } else {
        write!(io::stdout(), "{}", text(&audit))?;
    }
    Ok(if audit.is_clean() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The ledger as a table for people.
pub fn text(audit: &Audit) -> String {
    let row = |name: &str, total, counts: &crate::queue::view::Counts| {
        format!(
            "{name:20} {total:>10} {:>10} {:>10} {:>10} {:>10} {:>10}\n",
            counts.delivered, counts.dead, counts.expired, counts.cancelled, counts.pending
        )
    };
    let mut text = format!(
        "{:20} {:>10} {:>10} {:>10} {:>10} {:>10} {:>10}\n",
        "target", "accepted", "delivered", "dead", "expired", "cancelled", "pending"
    );
    for target in &audit.targets {
        text += &row(&target.target, target.counts.total(), &target.counts);
    }
    text += &row("all", audit.deliveries, &audit.counts);
    text += &format!("{} events, {} deliveries, {} unaccounted for", audit.events, audit.deliveries, audit.unaccounted);
    text += match (audit.is_clean(), audit.drift) {
        (true, _) => ": accepted = delivered + dead + expired + cancelled + pending\n",
        (false, 0) => ": THE LEDGER DOES NOT ADD UP; keep the store and report this\n",
        (false, _) => ": the running counts differ from the rows; keep the store and report this\n",
    };
    text
}
