//! `wxrelay events forget`: deletes all that the store holds about a user.
//!
//! Step by step, as a replay goes. It can be made again at any time: what was stopped goes on so, and what is gone is
//! gone. Backups, logs and what handlers were given are out of its reach, and it says so.

use std::io::{self, BufRead, IsTerminal, Write};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context as _, bail};
use serde_json::json;

use super::api::Api;
use super::steps::{self, By, Done};
use crate::clock::UnixMillis;
use crate::config::Config;
use crate::event::EventId;
use crate::queue::{DeliveryState, EventFilter, Inspect, Sweep, SweepAction, SweepProgress};

/// `wxrelay events forget`
#[derive(clap::Args)]
pub(super) struct Args {
    /// The user
    #[arg(long, value_name = "ID", value_parser = openid)]
    openid: String,
    /// Only what this account got of it [default: every account]
    #[arg(long)]
    account: Option<String>,
    /// Don't ask first
    #[arg(long)]
    yes: bool,
}

/// Asks, forgets, and says how many events are gone.
pub(super) async fn run(config: &Config, args: Args, json: bool) -> anyhow::Result<ExitCode> {
    let Args { openid, account, yes } = args;
    if !yes && !io::stdin().is_terminal() {
        bail!("there is no terminal to ask on: add --yes to forget without a question");
    }
    let look = Inspect::open(&config.queue.path)?;
    // What comes in from now on is not meant.
    let filter = EventFilter { from: Some(openid), account, until: Some(look.end()?), ..EventFilter::default() };
    let sweep = Arc::new(Sweep { filter, events: None, action: SweepAction::Forget });
    let count = look.count(&sweep, None)?;
    if !yes && count > 0 && !is_meant(&look, &sweep, count)? {
        writeln!(io::stderr(), "nothing is forgotten")?;
        return Ok(ExitCode::FAILURE);
    }
    drop(look);
    // Also where there is nothing to delete: an earlier one may have been stopped before all of it was wiped.
    let by = By::of(config)?;
    let done = steps::make(None, &steps::bar(count, "events"), async |after| match &by {
        By::Us(queue) => Ok(queue.sweep(&sweep, after, UnixMillis::now()).await?),
        By::Relay(api) => page(api, &sweep, after).await,
    })
    .await;
    let wiped = match &by {
        By::Us(queue) => queue.wipe().await,
        // It wipes with the last page.
        By::Relay(_) => Ok(()),
    };
    by.close().await;
    let Done { changed: forgotten, next, failed } = done;
    if let Some(error) = failed.or(wiped.err().map(Into::into)) {
        return Err(error.context(format!("forgot {forgotten} events; run it again to go on")));
    }
    tell(forgotten, json)?;
    if next.is_none() {
        return Ok(ExitCode::SUCCESS);
    }
    writeln!(io::stderr(), "stopped; run it again to go on")?;
    Ok(ExitCode::FAILURE)
}

fn tell(forgotten: u64, json: bool) -> io::Result<()> {
    match (json, forgotten) {
        (true, _) => writeln!(io::stdout(), "{}", json!({ "forgotten": forgotten })),
        (false, 0) => writeln!(io::stderr(), "no event of this user"),
        (false, _) => {
            writeln!(io::stdout(), "forgot {forgotten} events")?;
            writeln!(io::stderr(), "not reached: backups, logs, and what handlers were given")
        }
    }
}

/// Asks on the terminal.
fn is_meant(look: &Inspect, sweep: &Sweep, count: u64) -> anyhow::Result<bool> {
    let filter = EventFilter { state: Some(DeliveryState::Pending), ..sweep.filter.clone() };
    let pending = look.count(&Sweep { filter, ..sweep.clone() }, None)?;
    let shown: String = sweep.filter.from.iter().flat_map(|openid| openid.chars()).take(4).collect();
    let waiting = match pending {
        0 => String::new(),
        pending => format!(", {pending} of them with deliveries still pending"),
    };
    let mut out = io::stderr();
    write!(out, "forget {count} events of {}...{waiting}? [y/N] ", shown.escape_debug())?;
    out.flush()?;
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer).context("the answer cannot be read")?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

/// A page of steps, made by the relay.
async fn page(api: &Api<'_>, sweep: &Sweep, after: Option<EventId>) -> anyhow::Result<SweepProgress> {
    let EventFilter { from, account, until, .. } = &sweep.filter;
    let body = json!({
        "openid": from,
        "account": account,
        "until": until.map(|until| until.to_string()),
        "cursor": after.map(|id| id.to_string()),
    });
    steps::told(&api.post("/api/events/forget", Some(&body)).await?, "forgotten")
}

fn openid(text: &str) -> Result<String, &'static str> {
    if text.is_empty() { Err("expected an OpenID") } else { Ok(text.to_owned()) }
}
