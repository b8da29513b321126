//! `wxrelay doctor`: checks everything between WeChat and the targets; each failed check has a remedy.
//!
//! - `report.rs`: the results, as text and JSON
//! - `accounts.rs`: keys, and a self-test of every mode
//! - `machine.rs`: the store's folder, disk, space, contents; open files
//! - `postgres.rs`: the database, where the store is in PostgreSQL
//! - `local.rs`: the certificate, the listeners, the running relay
//! - `public.rs`: the server URL as WeChat sees it; `exchange.rs`: TLS and the verification; `answer.rs`: its result;
//!   `chain.rs`: certificates
//! - `logins.rs`: logins and verification files
//! - `targets.rs`: every target
//! - `clock.rs`: our clock compared with the peers'
//!
//! No event is sent and nothing is changed, so it may run beside a relay. Checks that wait for the network or the disk
//! run concurrently, each with a timeout; the results have a fixed order. No result holds a token, a key, a signature or
//! a query.

mod accounts;
mod answer;
mod chain;
mod clock;
mod exchange;
mod local;
mod logins;
mod machine;
#[cfg(feature = "postgres")]
mod postgres;
mod public;
mod report;
mod targets;

use std::io::Write;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use indicatif::ProgressBar;
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio::time::timeout;

use self::public::{PublicUrl, UrlArg};
use self::report::{CheckResult, CheckResults, DoctorCheck, DoctorReport};
use super::ConfigArgs;
use super::console_paths::SERVER_SETTINGS;
use super::output;
use crate::config::Config;
use crate::ordered;
use crate::queue::{self, Engine};

/// WeChat's timeout.
const LIMIT: Duration = Duration::from_secs(5);
/// The exit code that clap has for wrong arguments.
const WRONG_ARGUMENTS: u8 = 2;

/// `wxrelay doctor`
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    config: ConfigArgs,
    /// Check the server URL from WeChat's console as WeChat does, such as https://wx.example.com/wechat/events, or a
    /// login's redirect_uri as a browser does; may be repeated [default account: the one with its path, or the only one]
    #[arg(long, value_name = "[ACCOUNT=]URL")]
    url: Vec<UrlArg>,
    /// Connect to this address instead of the one that the name resolves to, such as 192.168.1.5:443
    #[arg(long, value_name = "IP:PORT", requires = "url")]
    connect: Option<SocketAddr>,
    /// Trust the certificate authorities in this PEM file too, for --url and server.tls
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Prints the results; exit code 1 if a check failed.
pub async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let config = Arc::new(args.config.load()?);
    let urls: Vec<_> = match args.url.iter().map(|named| PublicUrl::of(named, &config)).collect() {
        Ok(urls) => urls,
        Err(unassigned) => {
            let unassigned: public::UrlArgError = unassigned;
            writeln!(output::stderr(), "{unassigned}")?;
            return Ok(WRONG_ARGUMENTS.into());
        }
    };
    // Visible on a terminal only.
    let progress = ProgressBar::new_spinner().with_message("checking; what does not answer takes up to 5 s");
    progress.enable_steady_tick(Duration::from_millis(200));
    let lines = run_checks(&config, urls, &args).await?;
    progress.finish_and_clear();
    let report = DoctorReport(&lines);
    if args.json {
        writeln!(output::stdout(), "{:#}", report.to_json())?;
    } else {
        write!(output::stdout(), "{report}")?;
    }
    Ok(if report.is_well() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Runs all checks; the results are in the order in which they are printed.
async fn run_checks(config: &Arc<Config>, urls: Vec<PublicUrl>, args: &Args) -> anyhow::Result<Vec<CheckResult>> {
    let trust = chain::authorities(args.ca.as_deref());
    let holder = config.queue.folder().and_then(machine::holder);
    let mut lines = settings(config);
    lines.extend(accounts::check(config));

    let hosts: Vec<&str> = urls.iter().map(PublicUrl::host).collect();
    let certificates = local::certificates(config, &hosts, trust.as_deref().ok());
    let seen = async {
        if urls.is_empty() {
            return skipped_url(config).into();
        }
        let checks = urls.into_iter().map(|url| public::check(url, args.connect, trust.clone()));
        let mut findings = CheckResults::default();
        join_ordered(checks).await.into_iter().for_each(|found| findings.add(found));
        findings
    };
    let (store, listeners, admin, seen, clients, targets) = tokio::join!(
        store(config.queue.clone()),
        local::listeners(config),
        local::admin(Arc::clone(config), holder),
        seen,
        logins::check_clients(config, &trust),
        targets::check(Arc::clone(config)),
    );

    lines.extend(store.lines);
    if config.queue.folder().is_some() {
        lines.push(machine::sqlite());
    }
    lines.push(machine::files(config, holder));
    lines.extend(certificates);
    lines.extend(listeners);
    lines.push(admin);
    let mut answered = seen;
    answered.lines.extend(clients);
    answered.add(targets);
    let clock = clock::check(config, &answered.clocks);
    lines.extend(answered.lines);
    lines.push(clock);
    Ok(lines)
}

/// The store, and what it is on.
async fn store(settings: queue::Settings) -> CheckResults {
    match &settings.engine {
        Engine::Embedded { .. } => machine::store(settings).await,
        #[cfg(feature = "postgres")]
        Engine::Postgres(database) => postgres::check(database, &settings).await,
    }
}

/// The configuration's counts and warnings. A configuration with errors has ended the command already.
fn settings(config: &Config) -> Vec<CheckResult> {
    let check = DoctorCheck::new("config", "");
    let counted = format!("accounts: {}, targets: {}, no error", config.accounts.len(), config.targets.len());
    let remedy = "if it is intended, ignore this; else `wxrelay check` shows the routing table";
    let warned = config.warnings.iter().map(|warning| check.warning(warning, remedy));
    [check.ok(counted)].into_iter().chain(warned).collect()
}

/// Without `--url` the public URL cannot be checked.
fn skipped_url(config: &Config) -> CheckResult {
    let path = config.accounts.first().map_or("", |account| &account.path);
    DoctorCheck::new("url", "").warning(
        "not checked: DNS, port, certificate and verification as WeChat sees them",
        format!("add --url https://your.domain{path}, the URL at {}", SERVER_SETTINGS.path),
    )
}

/// Runs the futures concurrently; the results are in their order.
async fn join_ordered<T: Send + 'static>(
    futures: impl Iterator<Item = impl Future<Output = T> + Send + 'static>,
) -> Vec<T> {
    let mut running = JoinSet::new();
    for (index, future) in futures.enumerate() {
        running.spawn(async move { (index, future.await) });
    }
    let mut results = running.join_all().await;
    ordered::sort(&mut results, |one, other| one.0.cmp(&other.0));
    results.into_iter().map(|(_, result)| result).collect()
}

/// Runs work that may hang in the system, on a thread that the command does not join at its end. `None` if it takes
/// longer than `limit`.
async fn run_detached<T: Send + 'static>(limit: Duration, work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    let (done, result) = oneshot::channel();
    let thread = std::thread::Builder::new().name("doctor".to_owned());
    // If no thread can be started, the sender is dropped, which is a timeout too.
    thread.spawn(move || done.send(work()).ok()).ok()?;
    timeout(limit, result).await.ok()?.ok()
}
