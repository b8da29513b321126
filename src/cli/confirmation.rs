//! Confirms an action on many deliveries: shows the count, asks on a terminal, and needs `--yes` elsewhere.

use std::io::{self, BufRead as _, IsTerminal as _, Write as _};

use anyhow::Context as _;

use super::fixable::fixable;
use super::output;
use crate::escape;

/// Whether to ask.
#[derive(Clone, Copy, Debug, clap::Args)]
pub(super) struct ConfirmationArgs {
    /// Do not ask for confirmation; required without a terminal
    #[arg(long)]
    pub(super) yes: bool,
    /// Print how many deliveries would change, and change nothing
    #[arg(long, conflicts_with = "yes")]
    pub(super) dry_run: bool,
}

/// What is about to change.
pub(super) struct PlannedAction {
    /// How many deliveries; `None` where that is not known.
    pub(super) count: Option<u64>,
    /// What happens to them, as in `retry 3 dead letters of crm`.
    pub(super) action: String,
    /// How to undo it, or that it cannot be undone.
    pub(super) undo: String,
}

/// Whether the action may run. On a terminal the operator is asked, unless there is nothing to change.
///
/// # Errors
/// Without a terminal and without `--yes`.
pub(super) fn confirm(args: ConfirmationArgs, planned: &PlannedAction) -> anyhow::Result<bool> {
    let PlannedAction { count, action, undo } = planned;
    if args.yes {
        return Ok(true);
    }
    // Also where there is nothing to change: a script must not fail on the first day that there is.
    if !io::stdin().is_terminal() {
        let remedy = "add --yes; --dry-run prints the count alone";
        return Err(fixable(format!("would {action}: no terminal for the confirmation"), remedy).into());
    }
    if *count == Some(0) {
        return Ok(true);
    }
    let mut out = output::stderr();
    out.write_line(&format!("undo: {undo}"))?;
    write!(out, "{}? [y/N] ", escape::line(action))?;
    out.flush()?;
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer).context("the answer cannot be read")?;
    let is_agreed = matches!(answer.trim(), "y" | "Y" | "yes");
    if !is_agreed {
        writeln!(out, "nothing is changed")?;
    }
    Ok(is_agreed)
}

/// `1 dead letter`, `2 dead letters`.
pub(super) fn counted(count: u64, one: &str, many: &str) -> String {
    format!("{count} {}", if count == 1 { one } else { many })
}
