//! `wxrelay events tail`: each push and each attempt as it happens.
//!
//! A relay that cannot be reached at the start is an error. If it stops later, for a restart, the command reports that
//! on stderr and retries every second, until the relay is back or Ctrl-C. Activity missed meanwhile is in `events ls`.

use std::collections::HashMap;
use std::io::Write;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use http::{Response, StatusCode};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::Value;
use tokio::task::JoinHandle;

use super::api::Api;
use super::display::{ActivityFormat, ActivityLine, TimeArgs};
use super::{changes, output};
use crate::admin::Status;
use crate::clock::UnixMillis;

/// Longer than the 15 s after which the relay sends at least a comment.
const SILENCE_TIMEOUT: Duration = Duration::from_secs(45);
/// The wait between two tries to reconnect.
const RECONNECT_WAIT: Duration = Duration::from_secs(1);
/// Between two questions who is alive.
const LOOK: Duration = Duration::from_secs(2);
/// The longest line that is accepted, in bytes; no activity is nearly as long.
const MAX_LINE: usize = 64 << 10;

/// How lines are written; `None` for JSON.
type Format = Option<Arc<ActivityFormat>>;

#[derive(clap::Args)]
pub(super) struct Args {
    /// Follow one account, such as shop
    #[arg(long)]
    account: Option<String>,
    /// Follow pushes of one kind and their attempts, such as SCAN or text
    #[arg(long)]
    event: Option<String>,
    /// Follow one user, by OpenID in clear or as the log shows it
    #[arg(long)]
    from: Option<String>,
    /// Follow attempts at one target, such as crm; no pushes
    #[arg(long)]
    target: Option<String>,
    /// Follow all replicas that share the store, and not only the one that is asked
    #[arg(long)]
    all: bool,
}

pub(super) async fn run(api: &Api, args: &Args, times: TimeArgs, json: bool) -> anyhow::Result<ExitCode> {
    // Lines name their account unless there is only one; a relay that does not say so yet may have several.
    let several = match api.get::<Status>("/api/status").await {
        Ok(status) => {
            args.check(&status)?;
            args.account.is_none() && status.accounts.len() > 1
        }
        Err(_) => args.account.is_none(),
    };
    let format = if json { None } else { Some(Arc::new(ActivityFormat::stdout(times, several))) };
    if args.all {
        return follow_all(api, args, format).await;
    }
    let path = args.path();
    let mut answer = accepted(api, api.open(&path).await?).await?;
    loop {
        let why = follow(answer, format.as_deref(), None).await?;
        writeln!(output::stderr(), "-- {why}; retrying every second until it is back, Ctrl-C ends")?;
        answer = reconnect(api, &path).await?;
        writeln!(output::stderr(), "-- connected again; missed activity is in `wxrelay events ls`")?;
    }
}

impl Args {
    /// Fails for a name that the relay does not know: nothing would ever be followed.
    fn check(&self, status: &Status) -> anyhow::Result<()> {
        let accounts = status.accounts.iter().map(|account| account.name.clone()).collect();
        let targets = status.targets.iter().map(|target| target.name.clone()).collect();
        for (kind, name, known) in [("account", &self.account, accounts), ("target", &self.target, targets)] {
            let known: Vec<String> = known;
            if let Some(name) = name.as_ref().filter(|name| !known.contains(name)) {
                return Err(changes::unknown(kind, name, &known));
            }
        }
        Ok(())
    }

    fn path(&self) -> String {
        let Self { account, event, from, target, all: _ } = self;
        let filters = [("account", account), ("event", event), ("from", from), ("target", target)];
        let given = filters.into_iter().filter_map(|(key, value)| Some((key, value.as_ref()?)));
        let query = given.map(|(key, value)| format!("{key}={}", utf8_percent_encode(value, NON_ALPHANUMERIC)));
        format!("/api/tail?{}", query.collect::<Vec<_>>().join("&"))
    }
}

/// Follows every replica that is alive; those that come later too.
async fn follow_all(api: &Api, args: &Args, format: Format) -> anyhow::Result<ExitCode> {
    let path: Arc<str> = args.path().into();
    let mut followed: HashMap<i32, JoinHandle<()>> = HashMap::new();
    let mut status: Status = api.get("/api/status").await?;
    ensure!(!status.replicas.is_empty(), "the store is not in PostgreSQL, and there are no replicas: leave --all out");
    loop {
        followed.retain(|_, task| !task.is_finished());
        for replica in status.replicas.iter().filter(|replica| replica.live) {
            let Some(api) = api.of_replica(replica) else { continue };
            let (name, path, format) = (replica.name.clone(), Arc::clone(&path), format.clone());
            followed.entry(replica.incarnation).or_insert_with(|| {
                tokio::spawn(async move {
                    let why = match follow_replica(&api, &name, &path, format.as_deref()).await {
                        Ok(why) => why.to_owned(),
                        Err(error) => format!("{error:#}"),
                    };
                    // Nothing is left to report to.
                    output::stderr().write_line(&format!("-- {name}: {why}")).ok();
                })
            });
        }
        tokio::time::sleep(LOOK).await;
        // If the one that is asked is gone, the others are followed on.
        if let Ok(now) = api.get("/api/status").await {
            status = now;
        }
    }
}

async fn follow_replica(
    api: &Api,
    name: &str,
    path: &str,
    format: Option<&ActivityFormat>,
) -> anyhow::Result<&'static str> {
    let answer = accepted(api, api.open(path).await?).await?;
    output::stderr().write_line(&format!("-- {name}: followed"))?;
    follow(answer, format, Some(name)).await
}

/// Retries until a relay answers.
async fn reconnect(api: &Api, path: &str) -> anyhow::Result<Response<Incoming>> {
    loop {
        tokio::time::sleep(RECONNECT_WAIT).await;
        match api.open(path).await {
            Ok(answer) if answer.status() == StatusCode::SERVICE_UNAVAILABLE => {}
            Ok(answer) => return accepted(api, answer).await,
            Err(_) => {}
        }
    }
}

async fn accepted(api: &Api, answer: Response<Incoming>) -> anyhow::Result<Response<Incoming>> {
    let status = answer.status();
    if status.is_success() {
        return Ok(answer);
    }
    let mut body = answer.into_body();
    let said = body.frame().await.and_then(Result::ok).and_then(|frame| frame.into_data().ok()).unwrap_or_default();
    let said: Value = serde_json::from_slice(&said).unwrap_or_default();
    Err(api.refusal(status, said["error"].as_str().unwrap_or("no reason given")))
}

/// Prints the stream; returns why it ended.
async fn follow(
    answer: Response<Incoming>,
    format: Option<&ActivityFormat>,
    replica: Option<&str>,
) -> anyhow::Result<&'static str> {
    let (mut body, mut rest) = (answer.into_body(), Vec::new());
    loop {
        let frame = match tokio::time::timeout(SILENCE_TIMEOUT, body.frame()).await {
            Err(_) => return Ok("the relay is silent"),
            Ok(None | Some(Err(_))) => return Ok("the relay is gone"),
            Ok(Some(Ok(frame))) => frame,
        };
        rest.extend_from_slice(&frame.into_data().unwrap_or_default());
        while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = rest.drain(..=end).collect();
            if let Some(data) = line.strip_prefix(b"data: ") {
                print(data.trim_ascii_end(), format, replica)?;
            }
        }
        ensure!(rest.len() <= MAX_LINE, "not a relay: its line has no end");
    }
}

fn print(data: &[u8], format: Option<&ActivityFormat>, replica: Option<&str>) -> anyhow::Result<()> {
    let mut out = output::stdout();
    if format.is_none() && replica.is_none() {
        out.write_all(data)?;
        writeln!(out)?;
        return Ok(out.flush()?);
    }
    let mut activity: Value = serde_json::from_slice(data).context("the relay sent no JSON")?;
    if let Some(format) = format {
        output::print_encoded(&line(&activity, format, replica))?;
    } else {
        activity["replica"] = replica.into();
        writeln!(out, "{activity}")?;
    }
    Ok(out.flush()?)
}

fn line(activity: &Value, format: &ActivityFormat, replica: Option<&str>) -> String {
    if activity["what"] == "lagged" {
        return format!("-- {} lines missed: the reader was too slow", activity["missed"]);
    }
    let field = |name: &str| match &activity[name] {
        Value::Null => None,
        Value::String(text) => Some(text.clone()),
        other => Some(other.to_string()),
    };
    let at = serde_json::from_value(activity["at"].clone()).unwrap_or_else(|_| UnixMillis::now());
    format.line(&ActivityLine { at, is_push: activity["what"] == "push", replica, field: &field })
}
