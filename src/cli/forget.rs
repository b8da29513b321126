//! `wxrelay events forget`: deletes all that the store holds about a user.
//!
//! It runs step by step, as a replay does, and can be repeated at any time: an interrupted run continues. Backups, logs
//! and the data of handlers are not changed, as the command prints.

use std::io::{self, BufRead, IsTerminal, Write};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context as _, bail};
use serde_json::json;

use super::access::Access;
use super::api::Api;
use super::steps::{self, Executor, Step, StepsResult};
use super::{changes, output};
use crate::clock::UnixMillis;
use crate::escape;
use crate::event::EventId;
use crate::queue::{DeliveryState, EventFilter, Seen, Sweep, SweepAction};

/// `wxrelay events forget`
#[derive(clap::Args)]
pub(super) struct Args {
    /// Name the user by OpenID
    #[arg(long, value_name = "ID", value_parser = openid)]
    openid: String,
    /// Delete only events of this account, such as shop [default: every account]
    #[arg(long)]
    account: Option<String>,
    /// Do not ask for confirmation
    #[arg(long)]
    yes: bool,
}

/// Asks, forgets, and prints how many events were deleted.
pub(super) async fn run(access: &Access, args: Args, json: bool) -> anyhow::Result<ExitCode> {
    let Args { openid, account, yes } = args;
    if !yes && !io::stdin().is_terminal() {
        bail!("no terminal for the confirmation: add --yes to forget without it");
    }
    // Excludes events that are received from now on.
    let until = Some(access.end().await?);
    let filter = EventFilter { from: Some(openid), account, until, ..EventFilter::default() };
    let sweep = Arc::new(Sweep { filter, events: None, action: SweepAction::Forget });
    let count = access.count(&sweep, None).await?;
    if !yes && count != Some(0) && !confirm(access, &sweep, count).await? {
        writeln!(output::stderr(), "nothing is forgotten")?;
        return Ok(ExitCode::FAILURE);
    }
    // Even if there is nothing to delete: an earlier run may have been stopped before the wipe.
    let executor = Executor::of(access).await?;
    let done = steps::run(None, &steps::progress_bar(count, "events"), async |after| match &executor {
        Executor::Local(queue) => Ok(queue.sweep(&sweep, after, UnixMillis::now()).await?.into()),
        Executor::Relay(api) => page(api, &sweep, after).await,
    })
    .await;
    let wiped = match &executor {
        Executor::Local(queue) => queue.wipe().await,
        // The relay wipes with the last page.
        Executor::Relay(_) => Ok(()),
    };
    let seen = executor.close().await;
    let StepsResult { changed: forgotten, next, seen: told, failed } = done;
    if let Some(error) = failed.or(wiped.err().map(Into::into)) {
        return Err(error.context(format!("forgot {forgotten} events; run it again to continue")));
    }
    print_result(forgotten, seen.or(told), json)?;
    if next.is_none() {
        return Ok(ExitCode::SUCCESS);
    }
    writeln!(output::stderr(), "stopped; run it again to continue")?;
    Ok(ExitCode::FAILURE)
}

fn print_result(forgotten: u64, seen: Option<Seen>, json: bool) -> io::Result<()> {
    match (json, forgotten) {
        (true, _) => writeln!(output::stdout(), "{}", changes::with_seen(json!({ "forgotten": forgotten }), seen)),
        (false, 0) => writeln!(output::stderr(), "no event of this user"),
        (false, _) => {
            writeln!(output::stdout(), "forgot {forgotten} events")?;
            changes::print_seen(seen)?;
            writeln!(output::stderr(), "not changed: backups, logs, and the data of handlers")
        }
    }
}

/// Asks for confirmation on the terminal.
async fn confirm(access: &Access, sweep: &Sweep, count: Option<u64>) -> anyhow::Result<bool> {
    let filter = EventFilter { state: Some(DeliveryState::Pending), ..sweep.filter.clone() };
    let pending = access.count(&Sweep { filter, ..sweep.clone() }, None).await?.unwrap_or(0);
    let count = count.map_or_else(|| "all".to_owned(), |count| count.to_string());
    let shown: String = sweep.filter.from.iter().flat_map(|openid| openid.chars()).take(4).collect();
    let waiting = match pending {
        0 => String::new(),
        pending => format!(", {pending} of them with deliveries still pending"),
    };
    let mut out = output::stderr();
    write!(out, "forget {count} events of {}...{waiting}? [y/N] ", escape::line(&shown))?;
    out.flush()?;
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer).context("the answer cannot be read")?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

/// A page of steps, made by the relay.
async fn page(api: &Api, sweep: &Sweep, after: Option<EventId>) -> anyhow::Result<Step> {
    let EventFilter { from, account, until, .. } = &sweep.filter;
    let body = json!({
        "openid": from,
        "account": account,
        "until": until.map(|until| until.to_string()),
        "cursor": after.map(|id| id.to_string()),
    });
    steps::parse_step(&api.post("/api/events/forget", Some(&body)).await?, "forgotten")
}

fn openid(text: &str) -> Result<String, &'static str> {
    if text.is_empty() { Err("expected an OpenID") } else { Ok(text.to_owned()) }
}
