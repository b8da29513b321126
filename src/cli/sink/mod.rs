//! `wxrelay sink`: acts as a handler. Verifies and prints deliveries; replies, fails or stalls on request.
//!
//! [`start`] also works without the command line. A tool for testing: it prints bodies and queries in full, which the
//! relay itself never does.

mod content;
mod delivery;
mod server;
#[cfg(test)]
mod server_tests;
mod webhook;

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use http::StatusCode;
use tokio::signal::unix::{SignalKind, signal};

pub use self::delivery::{ReceivedDelivery, SignatureCheck};
pub use self::server::{Options, Sink, start};
pub use self::webhook::{WebhookKey, WebhookSecretError};
use super::fixable::fixable;
use super::output;
use super::simulate::CredentialArgs;

/// `wxrelay sink`
#[derive(clap::Args)]
pub struct Args {
    /// Listen on this address, which the first line prints; port 0 selects a free port
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:9000")]
    listen: SocketAddr,
    /// Reply with this text: as JSON to JSON deliveries, as reply XML to XML, encrypted to encrypted deliveries
    #[arg(long, value_name = "TEXT")]
    reply: Option<String>,
    /// Answer with this status
    #[arg(long, default_value = "200")]
    status: StatusCode,
    /// Answer the first N deliveries with 503
    #[arg(long, value_name = "N", default_value_t = 0)]
    fail: u32,
    /// Wait this long before every answer, such as 3s
    #[arg(long, value_name = "DURATION", default_value = "0s", value_parser = humantime::parse_duration)]
    stall: Duration,
    /// Verify the Standard Webhooks signature with this secret (`wxrelay keygen` prints one), and answer 401 if it is
    /// invalid; may be repeated, for a rotation. Checks CloudEvents against their specification too
    #[arg(long, value_name = "WHSEC")]
    secret: Vec<WebhookKey>,
    /// Append every delivery to this file, one JSON object per line
    #[arg(long, value_name = "FILE")]
    record: Option<PathBuf>,
    /// Print every delivery as one JSON object, with headers, query and body
    #[arg(long)]
    json: bool,
    /// For deliveries in WeChat's own form (`raw`, `wechat`)
    #[command(flatten)]
    given: CredentialArgs,
}

/// Listens until SIGINT or SIGTERM.
pub async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let mut record = args.record.as_deref().map(append_to).transpose()?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut sink = start(Options {
        listen: args.listen,
        reply: args.reply,
        status: args.status,
        fail: args.fail,
        stall: args.stall,
        secrets: args.secret,
        credentials: args.given.credentials()?,
        marker: None,
    })
    .await?;
    writeln!(output::stdout(), "listening on http://{}", sink.address)?;
    loop {
        let delivery = tokio::select! {
            Some(delivery) = sink.received.recv() => delivery,
            _ = interrupt.recv() => break,
            _ = terminate.recv() => break,
        };
        if let Some(file) = &mut record {
            writeln!(file, "{}", delivery.to_json()).context("--record")?;
        }
        if args.json {
            writeln!(output::stdout(), "{}", delivery.to_json())?;
        } else {
            output::stdout().write_line(&delivery.to_string())?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn append_to(path: &Path) -> anyhow::Result<File> {
    let file = OpenOptions::new().create(true).append(true).open(path);
    let problem = || format!("can't write {}", path.display());
    file.with_context(|| fixable(problem(), "give --record a path in a folder that exists"))
}
