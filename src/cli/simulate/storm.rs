//! `simulate storm`: many concurrent pushes, and the counts of their results.
//!
//! Every push is complete, retries included. Up to `concurrency` are in flight; none is kept once it is counted.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio::time::{Instant, interval, sleep_until};

use super::client::{PushAnswer, WechatClient};
use super::kind::{MessageAddresses, MessageIds, PushKind};
use super::report;
use super::url::ServerUrl;
use super::verdict::{AnswerError, AnswerVerdict};
use crate::cli::output;

/// `wxrelay simulate storm`
#[derive(Clone, clap::Args)]
pub(super) struct Args {
    /// Send this many pushes
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u64).range(1..))]
    count: u64,
    /// Send at most this many pushes per second, such as 100/s [default: as fast as they are answered]
    #[arg(long, value_parser = rate)]
    rate: Option<f64>,
    /// Keep at most this many pushes in flight
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u16).range(1..))]
    concurrency: u16,
    /// Push as this many users
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u64).range(1..))]
    users: u64,
    /// Choose the kinds of pushes
    #[arg(long, value_enum, default_value_t = StormMix::Mixed)]
    mix: StormMix,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum StormMix {
    /// In turn: text, scan, follow by QR code, menu click
    Mixed,
    /// Text messages
    Text,
    /// Scans
    Scan,
}

impl StormMix {
    fn kind(self, number: u64) -> PushKind {
        let turn = match self {
            Self::Mixed => number % 4,
            Self::Text => 0,
            Self::Scan => 1,
        };
        match turn {
            0 => PushKind::Text { content: format!("storm {number}") },
            1 => PushKind::Scan { scene: format!("storm_{number}") },
            2 => PushKind::Subscribe { scene: Some(format!("storm_{number}")) },
            _ => PushKind::Click { key: format!("storm_{number}") },
        }
    }
}

/// Sends the storm, prints its progress to stderr and its summary to stdout; stops sending on SIGINT.
pub(super) async fn run(
    client: WechatClient,
    to: &[ServerUrl],
    account: &str,
    args: &Args,
    json: bool,
) -> anyhow::Result<ExitCode> {
    let client = Arc::new(client);
    let mut under_way = JoinSet::new();
    let mut tally = Tally::default();
    let start = Instant::now();
    let mut progress = interval(Duration::from_secs(1));
    progress.reset();
    let mut stop = std::pin::pin!(tokio::signal::ctrl_c());
    let (mut sent, mut count) = (0, args.count);
    while sent < count || !under_way.is_empty() {
        let due = args.rate.map_or(start, |rate| start + Duration::from_secs_f64(sent as f64 / rate));
        let room = under_way.len() < usize::from(args.concurrency);
        tokio::select! {
            Some(done) = under_way.join_next() => {
                let (url, kind, openid, answer): (ServerUrl, PushKind, String, anyhow::Result<PushAnswer>) = done?;
                let answer = answer?;
                tally.add(&answer);
                if json {
                    writeln!(output::stdout(), "{}", report::line(&url, kind.name(), &openid, &answer))?;
                }
            }
            () = sleep_until(due), if room && sent < count => {
                let url = to[usize::try_from(sent)? % to.len()].clone();
                under_way.spawn(one(Arc::clone(&client), url, account.to_owned(), args.mix.kind(sent), sent % args.users));
                sent += 1;
            }
            _ = progress.tick() => writeln!(output::stderr(), "{}", tally.progress(sent, count, start.elapsed()))?,
            _ = &mut stop, if sent < count => {
                writeln!(output::stderr(), "stopped; waiting for the {} pushes under way", under_way.len())?;
                count = sent;
            }
        }
    }
    let summary = tally.summary(start.elapsed());
    let mut out = output::stdout();
    if json {
        writeln!(out, "{}", json!({ "summary": summary }))?;
    } else {
        print_summary(&mut out, &summary)?;
    }
    Ok(if tally.ok == sent { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn one(
    client: Arc<WechatClient>,
    url: ServerUrl,
    account: String,
    kind: PushKind,
    user: u64,
) -> (ServerUrl, PushKind, String, anyhow::Result<PushAnswer>) {
    let openid = format!("oStorm{user:022}");
    let answer = match MessageIds::now() {
        Ok(ids) => {
            let clear = kind.clear_xml(MessageAddresses { openid: &openid, account: &account }, &ids);
            client.push(&url, &clear, &openid).await
        }
        Err(error) => Err(error.into()),
    };
    (url, kind, openid, answer)
}

/// The counts of the pushes so far.
#[derive(Default)]
struct Tally {
    ok: u64,
    retried: u64,
    by_status: BTreeMap<String, u64>,
    by_verdict: BTreeMap<&'static str, u64>,
    took: Vec<Duration>,
}

impl Tally {
    fn add(&mut self, answer: &PushAnswer) {
        self.ok += u64::from(answer.verdict.is_ok());
        self.retried += u64::from(answer.tries > 1);
        *self.by_verdict.entry(answer.verdict.name()).or_default() += 1;
        let status = match (&answer.verdict, answer.status) {
            (_, Some(status)) => status.to_string(),
            (AnswerVerdict::Fault(AnswerError::NoAnswer(failure)), None) => failure.word().to_owned(),
            (_, None) => "none".to_owned(),
        };
        *self.by_status.entry(status).or_default() += 1;
        self.took.push(answer.took);
    }

    fn progress(&self, sent: u64, count: u64, since: Duration) -> String {
        let done = self.took.len();
        let rate = done as f64 / since.as_secs_f64();
        format!("{sent}/{count} sent, {done} answered ({rate:.0}/s), {} not ok", done as u64 - self.ok)
    }

    fn summary(&self, elapsed: Duration) -> Value {
        let mut took = self.took.clone();
        took.sort_unstable();
        let rank = |percent: usize| took.get((took.len() * percent / 100).min(took.len().saturating_sub(1)));
        let millis = |took: Option<&Duration>| took.map(|took| round(took.as_secs_f64() * 1000.0));
        json!({
            "pushes": took.len(),
            "ok": self.ok,
            "retried": self.retried,
            "status": self.by_status,
            "verdict": self.by_verdict,
            "seconds": round(elapsed.as_secs_f64()),
            "per_second": round(took.len() as f64 / elapsed.as_secs_f64()),
            "took_ms": { "p50": millis(rank(50)), "p90": millis(rank(90)), "p99": millis(rank(99)), "max": millis(took.last()) },
        })
    }
}

fn print_summary(out: &mut impl Write, summary: &Value) -> io::Result<()> {
    let part = |name: &str| summary.get(name).map(Value::to_string).unwrap_or_default();
    writeln!(out, "{} pushes in {} s ({}/s)", part("pushes"), part("seconds"), part("per_second"))?;
    writeln!(out, "  ok       {} ({} retried)", part("ok"), part("retried"))?;
    writeln!(out, "  status   {}", pairs(&summary["status"]))?;
    writeln!(out, "  verdict  {}", pairs(&summary["verdict"]))?;
    writeln!(out, "  took ms  {}", pairs(&summary["took_ms"]))
}

fn pairs(object: &Value) -> String {
    let pairs = object.as_object().into_iter().flatten().map(|(name, value)| format!("{name} {value}"));
    pairs.collect::<Vec<_>>().join(", ")
}

/// Rounds to two decimals.
fn round(number: f64) -> f64 {
    (number * 100.0).round() / 100.0
}

fn rate(text: &str) -> Result<f64, String> {
    let rate = text.trim_end_matches("/s").parse().ok().filter(|rate: &f64| rate.is_finite() && *rate > 0.0);
    rate.ok_or_else(|| "expected pushes per second, such as 100/s".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(millis: u64, status: u16) -> PushAnswer {
        let verdict =
            if status == 200 { AnswerVerdict::Received } else { AnswerVerdict::Fault(AnswerError::Status(status)) };
        let (body, started, earlier) = Default::default();
        PushAnswer {
            verdict,
            status: Some(status),
            body,
            location: None,
            started,
            took: Duration::from_millis(millis),
            tries: 1,
            earlier,
        }
    }

    #[test]
    fn the_summary_counts_statuses_and_ranks_times() {
        let mut tally = Tally::default();
        (1..=100).for_each(|millis| tally.add(&answer(millis, if millis == 7 { 503 } else { 200 })));
        let summary = tally.summary(Duration::from_secs(2));
        assert_eq!(summary["ok"], 99);
        assert_eq!(summary["status"], json!({ "200": 99, "503": 1 }));
        assert_eq!(summary["took_ms"], json!({ "p50": 51.0, "p90": 91.0, "p99": 100.0, "max": 100.0 }));
        assert_eq!(summary["per_second"], 50.0);
    }

    #[test]
    fn an_empty_storm_has_a_summary() {
        assert_eq!(Tally::default().summary(Duration::from_secs(1))["took_ms"]["p50"], Value::Null);
    }

    #[test]
    fn a_rate_is_a_positive_number() {
        assert_eq!(rate("100/s"), Ok(100.0));
        assert!(rate("0").is_err() && rate("-1").is_err() && rate("inf").is_err() && rate("fast").is_err());
    }
}
