//! `wxrelay doctor`: everything between WeChat and the targets, looked at once, each line with what to do.
//!
//! - `report.rs`: what a check says, for people and for scripts
//! - `accounts.rs`: keys, and every mode against itself
//! - `machine.rs`: the store's folder, disk, room, contents; open files
//! - `local.rs`: the certificate, the listeners, the running relay
//! - `public.rs`: the server URL as WeChat sees it; `exchange.rs`: TLS and the verification; `answer.rs`: what its
//!   answer means; `chain.rs`: certificates
//! - `targets.rs`: every target
//! - `clock.rs`: our clock against theirs
//!
//! No event is sent and nothing is changed, so it may run beside a relay. What waits for the network or the disk runs
//! at the same time, each within a limit; the lines come in one order all the same. No line holds a token, a key, a
//! signature or a query.

mod accounts;
mod answer;
mod chain;
mod clock;
mod exchange;
mod local;
mod machine;
mod public;
mod report;
mod targets;

use std::io::{self, Write};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use indicatif::ProgressBar;
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio::time::timeout;

use self::public::{Named, Public};
use self::report::{Check, Findings, Line, Report};
use super::ConfigArgs;
use crate::config::Config;

/// As long as WeChat waits for an answer.
const LIMIT: Duration = Duration::from_secs(5);
/// As clap ends with.
const WRONG_ARGUMENTS: u8 = 2;

/// `wxrelay doctor`
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    config: ConfigArgs,
    /// The server URL as it stands in WeChat's console, looked at as WeChat does; may be repeated. The account is the
    /// one with its path, or the only one
    #[arg(long, value_name = "[ACCOUNT=]URL")]
    url: Vec<Named>,
    /// Connect to this address instead of the one that --url leads to: before the name is in the DNS, or behind a NAT
    #[arg(long, value_name = "IP:PORT", requires = "url")]
    connect: Option<SocketAddr>,
    /// Trust these certificate authorities too, for --url and server.tls: a PEM file
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Prints a line a check; exit code 1 if one failed.
pub async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let config = Arc::new(args.config.load()?);
    let urls: Vec<_> = match args.url.iter().map(|named| Public::of(named, &config)).collect() {
        Ok(urls) => urls,
        Err(unassigned) => {
            let unassigned: public::Unassigned = unassigned;
            writeln!(io::stderr(), "{unassigned}")?;
            return Ok(WRONG_ARGUMENTS.into());
        }
    };
    // Shows itself on a terminal alone.
    let progress = ProgressBar::new_spinner().with_message("looking; what does not answer takes up to 5 s");
    progress.enable_steady_tick(Duration::from_millis(200));
    let lines = examine(&config, urls, &args).await?;
    progress.finish_and_clear();
    let report = Report(&lines);
    if args.json {
        writeln!(io::stdout(), "{:#}", report.to_json())?;
    } else {
        write!(io::stdout(), "{report}")?;
    }
    Ok(if report.is_well() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The list of all checks, in the order they are printed.
async fn examine(config: &Arc<Config>, urls: Vec<Public>, args: &Args) -> anyhow::Result<Vec<Line>> {
    let trust = chain::authorities(args.ca.as_deref());
    let holder = machine::holder(&config.queue.path);
    let mut lines = settings(config);
    lines.extend(accounts::check(config));

    let hosts: Vec<&str> = urls.iter().map(Public::host).collect();
    let certificates = local::certificates(config, &hosts, trust.as_deref().ok());
    let seen = async {
        if urls.is_empty() {
            return unseen(config).into();
        }
        let looked = urls.into_iter().map(|url| public::check(url, args.connect, trust.clone()));
        let mut findings = Findings::default();
        all(looked).await.into_iter().for_each(|found| findings.add(found));
        findings
    };
    let (store, listeners, admin, seen, targets) = tokio::join!(
        machine::store(config.queue.clone()),
        local::listeners(config),
        local::admin(Arc::clone(config), holder),
        seen,
        targets::check(Arc::clone(config)),
    );

    lines.extend(store.lines);
    lines.push(machine::sqlite());
    lines.push(machine::files(config, holder));
    lines.extend(certificates);
    lines.extend(listeners);
    lines.push(admin);
    let mut answered = seen;
    answered.add(targets);
    let clock = clock::check(config, &answered.clocks);
    lines.extend(answered.lines);
    lines.push(clock);
    Ok(lines)
}

/// What the configuration itself says: it has no error, or we were not here.
fn settings(config: &Config) -> Vec<Line> {
    let check = Check::new("config", "");
    let counted = format!("accounts: {}, targets: {}, no error", config.accounts.len(), config.targets.len());
    let remedy = "if it is meant, let it be; else `wxrelay check` shows what the configuration makes";
    let warned = config.warnings.iter().map(|warning| check.warning(warning, remedy));
    [check.ok(counted)].into_iter().chain(warned).collect()
}

/// Without `--url` nobody knows what WeChat sees.
fn unseen(config: &Config) -> Line {
    let path = config.accounts.first().map_or("", |account| &account.path);
    Check::new("url", "").warning(
        "not looked at: DNS, port, certificate and verification as WeChat sees them",
        format!("give the URL as it stands in WeChat's console: --url https://your.domain{path}"),
    )
}

/// All results, in the order of the futures, which run at the same time.
async fn all<T: Send + 'static>(futures: impl Iterator<Item = impl Future<Output = T> + Send + 'static>) -> Vec<T> {
    let mut running = JoinSet::new();
    for (index, future) in futures.enumerate() {
        running.spawn(async move { (index, future.await) });
    }
    let mut results = running.join_all().await;
    results.sort_by_key(|(index, _)| *index);
    results.into_iter().map(|(_, result)| result).collect()
}

/// Work that may hang in the system, in a thread that the end of the command does not wait for. `None` if it is not
/// done within `limit`.
async fn aside<T: Send + 'static>(limit: Duration, work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    let (done, result) = oneshot::channel();
    let thread = std::thread::Builder::new().name("doctor".to_owned());
    // Where no thread can be had, the sender is dropped: the same as no answer.
    thread.spawn(move || done.send(work()).ok()).ok()?;
    timeout(limit, result).await.ok()?.ok()
}
