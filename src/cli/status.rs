//! `wxrelay status`: the running relay on one screen.

use std::io::Write as _;
use std::process::ExitCode;

use http::{Method, StatusCode};
use serde_json::{Value, json};

use super::access::ReportArgs;
use super::display::{self, Color, Column, StyledLine, Table, TimeArgs, target_color, trouble, wrap};
use super::top::target_state;
use super::{output, replicas};
use crate::admin::{Status, TargetList, TargetOverview};
use crate::queue::Replica;

/// `wxrelay status`
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    report: ReportArgs,
    #[command(flatten)]
    times: TimeArgs,
}

/// The columns of a fact's name.
const MARGIN: usize = 10;

/// Exit code 0 if the relay is ready, else 1.
pub async fn run(Args { report: args, times }: Args) -> anyhow::Result<ExitCode> {
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
        let settings = display::Settings::new(times);
        output::print_lines(&screen(&status, &targets, &settings), settings.color)?;
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

fn screen(status: &Status, targets: &[(&str, TargetOverview)], settings: &display::Settings) -> Vec<StyledLine> {
    let mut lines = Vec::new();
    let mut push = |name: &str, fact: &str, color: Color| {
        let fact = wrap(&format!("{name:<9} {fact}"), settings.width.unwrap_or(usize::MAX), MARGIN);
        let (name, fact) = fact.split_at(MARGIN);
        let mut name = Some(StyledLine::new(name, Color::Dim));
        let margin = || StyledLine::plain(&" ".repeat(MARGIN));
        for (number, line) in fact.split('\n').enumerate() {
            let text = if number == 0 { line } else { line.trim_start() };
            lines.push(name.take().unwrap_or_else(margin).with(text, color));
        }
    };
    let up = display::span(status.uptime_seconds as f64);
    push("wxrelay", &format!("{}, up {up}", status.version), Color::Plain);
    push("config", &config(status, settings), Color::Plain);
    match &status.not_ready_because {
        None => push("ready", "yes", Color::Green),
        Some(why) => push("ready", &format!("NO: {why}"), Color::Red),
    }
    push("listen", &status.listen.join(", "), Color::Plain);
    let queue = &status.queue;
    let (store, events, size) = (&status.store, queue.events, bytesize::ByteSize(queue.bytes));
    let (waiting, dead) = (queue.counts.pending, queue.counts.dead);
    push("store", &format!("{store}: {events} events, {size}, {waiting} waiting, {dead} dead"), Color::Plain);
    for warning in warnings(status) {
        push("warning", &warning, Color::Yellow);
    }
    for table in [accounts(status), of_targets(targets)].into_iter().chain(of_replicas(&status.replicas)) {
        lines.push(StyledLine::default());
        lines.extend(table.lines(settings.width));
    }
    lines
}

fn accounts(status: &Status) -> Table<'static> {
    const COLUMNS: [Column; 4] =
        [Column::elided("ACCOUNT", 8), Column::text("MODE"), Column::elided("PATH", 12), Column::text("APPID")];
    let mut table = Table::new(&COLUMNS);
    for account in &status.accounts {
        table.push(
            [&account.name, &account.mode, &account.path, &account.app_id].map(|text| text.as_str().into()).into(),
        );
    }
    table
}

fn of_targets(targets: &[(&str, TargetOverview)]) -> Table<'static> {
    const COLUMNS: [Column; 5] = [
        Column::elided("TARGET", 8),
        Column::text("STATE"),
        Column::number("WAITING"),
        Column::number("OLDEST"),
        Column::number("DEAD"),
    ];
    let mut table = Table::new(&COLUMNS);
    for (state, target) in targets {
        let TargetOverview { name, counts, oldest_pending, .. } = target;
        let oldest = oldest_pending.map_or_else(|| "-".to_owned(), display::age);
        table.push(vec![
            name.as_str().into(),
            StyledLine::new(state, target_color(state)),
            counts.pending.to_string().into(),
            oldest.into(),
            trouble(counts.dead, Color::Red),
        ]);
    }
    table
}

fn of_replicas(found: &[Replica]) -> Option<Table<'static>> {
    if found.is_empty() { None } else { Some(replicas::table(found)) }
}

fn config(status: &Status, settings: &display::Settings) -> String {
    let sha256 = status.config_sha256.get(..12).unwrap_or(&status.config_sha256);
    let since = status.config_since.map(|at| format!(", in use since {} ({})", settings.time(at), display::age(at)));
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
