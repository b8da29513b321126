//! `wxrelay status`: the running relay on one screen.

use std::io::Write as _;
use std::process::ExitCode;

use http::{Method, StatusCode};
use serde_json::{Value, json};

use super::access::ReportArgs;
use super::top::frame::{span, target_state};
use super::{output, replicas};
use crate::admin::{Status, TargetList, TargetOverview};
use crate::clock::UnixMillis;
use crate::escape;
use crate::queue::Replica;

/// Exit code 0 if the relay is ready, else 1.
pub async fn run(args: ReportArgs) -> anyhow::Result<ExitCode> {
    let api = args.relay.api()?;
    let (code, answer) = api.call(Method::GET, "/api/status", None).await?;
    if code == StatusCode::SERVICE_UNAVAILABLE {
        // The store does not answer; readiness needs no store, and its word is the reason.
        let (_, ready) = api.call(Method::GET, "/readyz", None).await?;
        let (ready, error) = (ready.as_str().unwrap_or("unknown"), answer["error"].as_str().unwrap_or_default());
        if args.json {
            writeln!(output::stdout(), "{}", json!({ "ready": false, "not_ready_because": ready, "error": error }))?;
        } else {
            output::stdout().write_line(&format!("ready     NO: {ready}; {error}"))?;
        }
        return Ok(ExitCode::FAILURE);
    }
    if !code.is_success() {
        return Err(api.refusal(code, answer["error"].as_str().unwrap_or("no reason given")));
    }
    let status: Status = serde_json::from_value(answer.clone())?;
    let TargetList { targets } = api.get("/api/targets").await?;
    let metrics: String = api.get("/metrics").await?;
    let targets: Vec<_> = targets.into_iter().map(|target| (target_state(&target, &metrics), target)).collect();
    if args.json {
        writeln!(output::stdout(), "{}", to_json(answer, &targets)?)?;
    } else {
        output::stdout().write_all(screen(&status, &targets).as_bytes())?;
    }
    Ok(if status.ready { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The API's status, with the state and the deliveries of each target.
fn to_json(mut status: Value, targets: &[(&str, TargetOverview)]) -> anyhow::Result<Value> {
    let with_state = |(state, target): &(&str, TargetOverview)| {
        let mut value = serde_json::to_value(target)?;
        value["state"] = state.to_lowercase().into();
        Ok(value)
    };
    status["targets"] = targets.iter().map(with_state).collect::<anyhow::Result<Vec<_>>>()?.into();
    Ok(status)
}

fn screen(status: &Status, targets: &[(&str, TargetOverview)]) -> String {
    let mut text = String::new();
    let mut push = |name: &str, fact: String| text += &format!("{name:<9} {}\n", escape::line(&fact));
    push("wxrelay", format!("{}, up {}", status.version, span(status.uptime_seconds as f64)));
    push("config", config(status));
    push("ready", status.not_ready_because.as_ref().map_or_else(|| "yes".to_owned(), |why| format!("NO: {why}")));
    push("listen", status.listen.join(", "));
    for account in &status.accounts {
        push("account", format!("{}  {}  {}  {}", account.name, account.mode, account.path, account.app_id));
    }
    for (state, target) in targets {
        let TargetOverview { name, counts, oldest_pending, .. } = target;
        let oldest =
            oldest_pending.map(|at| format!(", the oldest for {}", span(UnixMillis::now().since(at).as_secs_f64())));
        let (waiting, dead) = (counts.pending, counts.dead);
        push("target", format!("{name}  {state}  {waiting} waiting{}, {dead} dead", oldest.unwrap_or_default()));
    }
    let queue = &status.queue;
    let size = bytesize::ByteSize(queue.bytes);
    push(
        "store",
        format!(
            "{}: {} events, {size}, {} waiting, {} dead",
            status.store, queue.events, queue.counts.pending, queue.counts.dead
        ),
    );
    for replica in &status.replicas {
        let state = if replica.live { "alive" } else { "SILENT" };
        let beat = replica.last_beat_ms as f64 / 1000.0;
        let (name, release, config) = (&replica.name, &replica.release, replicas::config(replica));
        push("replica", format!("{name}  {state}, last beat {beat:.1}s ago  {release}  configuration {config}"));
    }
    for warning in warnings(status) {
        push("warning", warning);
    }
    text
}

fn config(status: &Status) -> String {
    let sha256 = status.config_sha256.get(..12).unwrap_or(&status.config_sha256);
    let since = status
        .config_since
        .map(|at| format!(", in use since {at} ({})", span(UnixMillis::now().since(at).as_secs_f64())));
    format!("{sha256}, generation {}{}", status.generation, since.unwrap_or_default())
}

/// What an operator should look at.
fn warnings(status: &Status) -> Vec<String> {
    let mut warnings = Vec::new();
    if let "differs" | "jumped" = &*status.clock {
        warnings.push(format!("the clock is suspect: {}; see `wxrelay doctor`", status.clock));
    }
    let restart = |key: &String| format!("{key}: changed in the file; restart the relay to apply it");
    warnings.extend(status.needs_restart.iter().map(restart));
    let damaged = |folder: &String| format!("damaged store moved aside: {folder}; see `wxrelay store salvage`");
    warnings.extend(status.queue.damaged.iter().map(damaged));
    let differs = |replica: &&Replica| replica.live && !replica.same_config;
    let told = |replica: &Replica| {
        let name = &replica.name;
        format!("the configuration of {name} differs: write the same file on all replicas, and reload each")
    };
    warnings.extend(status.replicas.iter().filter(differs).map(told));
    warnings.extend(status.warnings.iter().cloned());
    warnings
}
