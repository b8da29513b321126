//! `wxrelay events tail`: each push and each attempt as it happens.
//!
//! A relay that cannot be reached at the start is an error. If it stops later, for a restart, the command reports that
//! on stderr and retries every second, until the relay is back or Ctrl-C. Activity missed meanwhile is in `events ls`.

use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use http::{Response, StatusCode};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::Value;

use super::api::Api;
use super::output;

/// Longer than the 15 s after which the relay sends at least a comment.
const SILENCE_TIMEOUT: Duration = Duration::from_secs(45);
/// The wait between two tries to reconnect.
const RECONNECT_WAIT: Duration = Duration::from_secs(1);
/// The longest line that is accepted, in bytes; no activity is nearly as long.
const MAX_LINE: usize = 64 << 10;

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
}

pub(super) async fn run(api: &Api, args: &Args, json: bool) -> anyhow::Result<ExitCode> {
    let path = args.path();
    let mut answer = accepted(api, api.open(&path).await?).await?;
    loop {
        let why = follow(answer, json).await?;
        writeln!(output::stderr(), "-- {why}; retrying every second until it is back, Ctrl-C ends")?;
        answer = reconnect(api, &path).await?;
        writeln!(output::stderr(), "-- connected again; missed activity is in `wxrelay events ls`")?;
    }
}

impl Args {
    fn path(&self) -> String {
        let Self { account, event, from, target } = self;
        let filters = [("account", account), ("event", event), ("from", from), ("target", target)];
        let given = filters.into_iter().filter_map(|(key, value)| Some((key, value.as_ref()?)));
        let query = given.map(|(key, value)| format!("{key}={}", utf8_percent_encode(value, NON_ALPHANUMERIC)));
        format!("/api/tail?{}", query.collect::<Vec<_>>().join("&"))
    }
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
async fn follow(answer: Response<Incoming>, json: bool) -> anyhow::Result<&'static str> {
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
                print(data.trim_ascii_end(), json)?;
            }
        }
        ensure!(rest.len() <= MAX_LINE, "not a relay: its line has no end");
    }
}

fn print(data: &[u8], json: bool) -> anyhow::Result<()> {
    let mut out = output::stdout();
    if json {
        out.write_all(data)?;
        writeln!(out)?;
    } else {
        let activity: Value = serde_json::from_slice(data).context("the relay sent no JSON")?;
        out.write_line(&line(&activity))?;
    }
    Ok(out.flush()?)
}

fn line(activity: &Value) -> String {
    if activity["what"] == "lagged" {
        return format!("-- {} lines missed: the reader was too slow", activity["missed"]);
    }
    let text = |key: &str| activity[key].as_str().unwrap_or("-").to_owned();
    let took = activity["duration_ms"].as_f64().unwrap_or_default();
    let what = if activity["what"] == "push" {
        format!("push     {:20} {}", text("kind"), text("result"))
    } else {
        let status = activity["status"].as_u64().map_or_else(|| "no answer".to_owned(), |status| status.to_string());
        let made = format!("{} #{} {} {status}", text("target"), activity["attempt"], text("outcome"));
        let error = activity["error"].as_str().map(|error| format!("  {error}")).unwrap_or_default();
        format!("attempt  {:20} {made}{error}", text("kind"))
    };
    let (at, event, account, openid) = (text("at"), text("event"), text("account"), text("openid"));
    format!("{at}  {event:20}  {account:12} {openid:12}  {what}  {took:.1} ms")
}
