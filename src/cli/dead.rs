//! `wxrelay dead`: dead letters, target by target.

use std::collections::BTreeSet;
use std::io::{self, Write};
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use clap::Subcommand;
use http::Method;

use super::ConfigArgs;
use super::api::Api;
use crate::clock::UnixMillis;
use crate::config::Config;
use crate::event::EventId;
use crate::queue::{DeadLetters, Inspect, Queue};

/// `wxrelay dead`
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    config: ConfigArgs,
    /// Print JSON
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    /// List dead letters, the newest first
    Ls {
        /// Those of one target
        #[arg(long)]
        target: Option<String>,
        /// Those of events older than this one: the last of the page before
        #[arg(long)]
        before: Option<EventId>,
        /// The most to list
        #[arg(long, default_value_t = 50)]
        limit: usize,
    },
    /// Deliver dead letters again, with a fresh retry schedule
    Retry {
        /// Those of one target [default: every target's]
        target: Option<String>,
        /// Only these events
        ids: Vec<EventId>,
    },
    /// Give a target's dead letters up for good: they become `cancelled`
    Drop {
        /// Whose
        target: String,
        /// Only these events
        ids: Vec<EventId>,
    },
}

#[derive(Clone, Copy)]
enum Fate {
    Retry,
    Drop,
}

/// Lists out of the store itself; changes through the relay while it runs, else in the store.
pub async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let config = args.config.load()?;
    let (target, ids, fate, done) = match args.action {
        Action::Ls { target, before, limit } => {
            return list(&config, target.as_deref(), before, limit, args.json);
        }
        Action::Retry { target, ids } => (target, ids, Fate::Retry, "retried"),
        Action::Drop { target, ids } => (Some(target), ids, Fate::Drop, "dropped"),
    };
    let targets = targets(&config, target)?;
    for target in targets {
        let changed = change(&config, &target, &ids, fate).await?;
        if args.json {
            writeln!(io::stdout(), "{}", serde_json::json!({ "target": target, done: changed }))?;
        } else {
            writeln!(io::stdout(), "{done} {changed} dead letters of {target}")?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// The target that is named, or all that the store knows. A misspelt name is an error, not a target without dead letters.
fn targets(config: &Config, named: Option<String>) -> anyhow::Result<Vec<String>> {
    let stored = Inspect::open(&config.queue.path)?.stats()?.targets.into_iter().map(|stats| stats.target);
    let stored: Vec<_> = stored.collect();
    let Some(named) = named else { return Ok(stored) };
    let configured = config.targets.iter().map(|settings| settings.target.name.to_string());
    let known: BTreeSet<_> = configured.chain(stored).collect();
    if !known.contains(&named) {
        let known: Vec<_> = known.into_iter().collect();
        bail!("there is no target `{named}`; expected one of: {}", known.join(", "));
    }
    Ok(vec![named])
}

fn list(
    config: &Config,
    target: Option<&str>,
    before: Option<EventId>,
    limit: usize,
    json: bool,
) -> anyhow::Result<ExitCode> {
    let mut out = io::stdout().lock();
    let found = Inspect::open(&config.queue.path)?.dead(target, limit, before)?;
    for letter in &found {
        if json {
            writeln!(out, "{}", serde_json::to_string(letter)?)?;
            continue;
        }
        let name = if letter.event.is_empty() { &letter.msg_type } else { &letter.event };
        let error = letter.error.as_deref().unwrap_or_default();
        let (at, id, target) = (letter.received_at, letter.id, &letter.target);
        writeln!(out, "{at}  {id}  {target:16} {name:20} {} attempts  {error}", letter.attempts)?;
    }
    if found.is_empty() && !json {
        writeln!(io::stderr(), "no dead letters")?;
    }
    Ok(ExitCode::SUCCESS)
}

async fn change(config: &Config, target: &str, ids: &[EventId], fate: Fate) -> anyhow::Result<u64> {
    let queue = match Queue::open(&config.queue, |_| {}) {
        Ok(queue) => queue,
        Err(crate::queue::Error::Locked { .. }) => return ask(config, target, ids, fate).await,
        Err(error) => return Err(error.into()),
    };
    let letters = if ids.is_empty() { DeadLetters::All } else { DeadLetters::Of(ids.to_vec()) };
    let changed = match fate {
        Fate::Retry => queue.revive(target, letters, UnixMillis::now()).await,
        Fate::Drop => queue.drop_dead(target, letters, UnixMillis::now()).await,
    };
    queue.close().await;
    Ok(changed?)
}

/// The running relay owns the store: it is asked through its admin listener.
async fn ask(config: &Config, target: &str, ids: &[EventId], fate: Fate) -> anyhow::Result<u64> {
    let (action, count) = match fate {
        Fate::Retry => ("retry-dead", "revived"),
        Fate::Drop => ("drop-dead", "cancelled"),
    };
    let listed = serde_json::json!({ "ids": ids.iter().map(ToString::to_string).collect::<Vec<_>>() });
    let body = Some(&listed).filter(|_| !ids.is_empty());
    let path = format!("/api/targets/{target}/{action}");
    let (status, answer) = Api::of(config)?.call(Method::POST, &path, body).await?;
    if !status.is_success() {
        bail!("the relay answered {status}: {}", answer["error"].as_str().unwrap_or("no reason given"));
    }
    answer[count].as_u64().context("the relay's answer has no count")
}
