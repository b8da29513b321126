//! Changes of the store by commands. Of a store of files: in this process while no relay runs, else through the relay
//! that has it open. With PostgreSQL: always in this process, whether relays run or not.

use std::io::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use serde_json::{Value, json};

use super::access::{Access, RelayArgs};
use super::fixable::{UsageError, fixable};
use super::output;
use super::steps::Executor;
use crate::admin::Status;
use crate::clock::UnixMillis;
use crate::config::StoreAccess;
use crate::queue::{Queue, Seen, Sweep};

/// A request for the relay: path, body, and the key of the count in its response.
pub(super) struct SweepRequest<'r> {
    pub(super) path: String,
    pub(super) body: Option<Value>,
    pub(super) count: &'r str,
}

/// Opens the store; `None` if a relay has it open alone.
pub(super) async fn open(store: &StoreAccess) -> anyhow::Result<Option<Queue>> {
    let Some(queue) = Queue::open_for_commands(&store.queue).await? else { return Ok(None) };
    if let Some(problem) = &store.targets_problem {
        queue.close().await;
        let problem = format!("the order of the targets is not known, so nothing is changed: {problem}");
        return Err(fixable(problem, "correct it; `wxrelay check` shows all errors").into());
    }
    for (target, order) in &store.targets {
        queue.keep_order(target, *order);
    }
    Ok(Some(queue))
}

/// How long a command waits until every replica has seen what it did.
const SEEN_WAIT: Duration = Duration::from_secs(2);

/// What a sweep did.
pub(super) struct Changed {
    /// How many deliveries changed.
    pub(super) count: u64,
    pub(super) seen: Option<Seen>,
}

/// Waits a moment until every replica has seen what was done; `None` without replicas.
pub(super) async fn await_seen(queue: &Queue) -> Option<Seen> {
    // It is done, whatever becomes of this question.
    queue.await_seen(SEEN_WAIT).await.ok().flatten()
}

/// The same in the relay's answer.
pub(super) fn parse_seen(answer: &Value) -> Option<Seen> {
    serde_json::from_value(answer.clone()).ok()
}

/// Adds it to what is printed as JSON.
pub(super) fn with_seen(mut printed: Value, seen: Option<Seen>) -> Value {
    if let Some(Seen { replicas, seen }) = seen {
        (printed["replicas"], printed["seen"]) = (replicas.into(), seen.into());
    }
    printed
}

/// Says it to people, if replicas run.
pub(super) fn print_seen(seen: Option<Seen>) -> std::io::Result<()> {
    let Some(Seen { replicas, seen }) = seen.filter(|seen| seen.replicas > 0) else { return Ok(()) };
    let rest = if seen < replicas { "; the others act on it once they reach PostgreSQL" } else { "" };
    output::stderr().write_line(&format!("seen by {seen} of {replicas} replicas{rest}"))
}

/// Runs a whole sweep.
pub(super) async fn sweep(access: &Access, sweep: Sweep, request: SweepRequest<'_>) -> anyhow::Result<Changed> {
    let executor = Executor::of(access).await?;
    let queue = match executor {
        Executor::Local(queue) => queue,
        Executor::Relay(api) => {
            let answer = api.post(&request.path, request.body.as_ref()).await?;
            let count = answer[request.count].as_u64().context("the relay's answer has no count")?;
            return Ok(Changed { count, seen: parse_seen(&answer) });
        }
    };
    let changed = queue.sweep_all(sweep, UnixMillis::now()).await;
    let seen = if changed.is_ok() { await_seen(&queue).await } else { None };
    queue.close().await;
    Ok(Changed { count: changed?, seen })
}

/// Prints what an action would change, by target.
pub(super) fn print_dry_run(verb: &str, what: &str, counts: &[(String, u64)], json: bool) -> anyhow::Result<ExitCode> {
    let mut out = output::stdout();
    for (target, count) in counts {
        if json {
            writeln!(out, "{}", json!({ "target": target, "dry_run": true, "would_change": count }))?;
        } else {
            out.write_line(&format!("would {verb} {count} {what} of {target}"))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// The command that delivers what an operator cancelled.
pub(super) fn replay_cancelled(target: &str) -> String {
    format!("`wxrelay events replay --target {target} --state cancelled` delivers all that was cancelled for it")
}

/// The targets that are configured or have deliveries.
pub(super) async fn known_targets(access: &Access) -> anyhow::Result<Vec<String>> {
    Ok(access.targets().await?.into_iter().map(|target| target.name).collect())
}

/// Fails for a target that is neither configured nor in the store: a misspelt name is an error, not a target without
/// deliveries.
pub(super) async fn expect_known(access: &Access, name: &str) -> anyhow::Result<()> {
    expect(name, known_targets(access).await?)
}

/// Fails for a target that is not configured.
pub(super) async fn expect_configured(access: &Access, name: &str) -> anyhow::Result<()> {
    let targets = match access {
        Access::Store(store) => store.targets.iter().map(|(name, _)| name.to_string()).collect(),
        Access::Relay(_) => {
            access.targets().await?.into_iter().filter(|target| target.configured).map(|target| target.name).collect()
        }
    };
    expect(name, targets)
}

pub(super) fn expect(name: &str, mut known: Vec<String>) -> anyhow::Result<()> {
    if !known.iter().any(|one| one == name) {
        known.sort_unstable();
        return Err(unknown("target", name, &known));
    }
    Ok(())
}

/// The error for a name that is none of those that are known.
pub(super) fn unknown(kind: &str, name: &str, known: &[String]) -> anyhow::Error {
    let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
    UsageError(format!("there is no {kind} `{name}`; expected one of: {known}")).into()
}

/// Fails if a filter that found nothing has a name that is not known.
pub(super) async fn expect_filter(
    access: &Access,
    relay: &RelayArgs,
    account: Option<&str>,
    target: Option<&str>,
) -> anyhow::Result<()> {
    if let Some(target) = target {
        expect_known(access, target).await?;
    }
    let Some(account) = account else { return Ok(()) };
    let known: Vec<String> = match access {
        Access::Relay(api) => {
            let status: Status = api.get("/api/status").await?;
            status.accounts.into_iter().map(|account| account.name).collect()
        }
        Access::Store(_) => match relay.configured_names() {
            Some(configured) => configured.accounts,
            None => return Ok(()),
        },
    };
    if known.iter().any(|one| one == account) { Ok(()) } else { Err(unknown("account", account, &known)) }
}
