//! `wxrelay serve`: runs the relay until SIGTERM; SIGHUP reloads the configuration.
//!
//! - A stop takes at most `server.drain` and a second, whatever hangs: a flush, the resolver, a client, a target.
//! - A signal counts from the first statement of `main` on (`early_signals.rs`): a stop before the relay is ready ends
//!   the process at once, as nothing was answered yet; a reload waits until it is ready.

use std::process::{self, ExitCode};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use tokio::runtime::Handle;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use tokio::task::spawn_blocking;
use tokio::time::Instant;

use super::display::ActivityFormat;
use super::fixable::on_one_line;
use super::service::{self, notify};
use super::{BadConfig, ConfigArgs, early_signals};
use crate::admin::{Reload, ReloadReport};
use crate::app::App;
use crate::config::Config;
use crate::secret::seal_process;
use crate::server::descriptors;
use crate::{health, queue, telemetry};

/// `wxrelay serve`
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    config: ConfigArgs,
}

/// `EX_SOFTWARE` of sysexits.h.
const EXIT_INTERNAL: u8 = 70;
/// What a stop may take beyond `server.drain`, the log's last lines included.
const LOG_GRACE: Duration = Duration::from_millis(800);
/// The same for [`end_process_after`].
const PROCESS_GRACE: Duration = Duration::from_millis(900);

/// Runs until SIGTERM or SIGINT.
pub async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let mut log_limit = Duration::from_secs(1);
    let ended = serve(args, &mut log_limit).await;
    telemetry::flush_within(log_limit);
    ended
}

async fn serve(args: Args, log_limit: &mut Duration) -> anyhow::Result<ExitCode> {
    let mut stop = StopSignals::new()?;
    let hangup = signal(SignalKind::hangup())?;
    // Must precede the read of the first secret.
    let sealed = seal_process();
    descriptors::raise_limit();
    let Some(config) = stop.or(load(&args.config)).await else { return Ok(ExitCode::SUCCESS) };
    let config = config?;
    let format = ActivityFormat::log(config.accounts.len() > 1);
    let logs = telemetry::init(&config.log, Box::new(move |line| format.log_line(line)))?;
    if let Err(error) = sealed {
        tracing::warn!(%error, "core dumps not disabled, they would hold tokens and keys; set LimitCORE=0");
    }
    let Some(app) = stop.or(start(config)).await else {
        tracing::info!("stopped before the relay was ready");
        return Ok(ExitCode::SUCCESS);
    };
    let app = app?;
    let requests = app.take_reloads().context("reloads are taken once")?;
    notify(&[sd_notify::NotifyState::Ready]);
    let reporter = service::SystemdReporter::start(&app);
    let reloads =
        tokio::spawn(Reloader { app: app.clone(), args: args.config, logs: logs.into() }.run(hangup, requests));
    let ended = tokio::select! {
        () = stop.received() => Ended::Asked,
        part = health::watch(&app) => Ended::Part(part),
        error = app.queue().outdated() => Ended::Outdated(error),
    };
    match &ended {
        Ended::Asked => {}
        Ended::Part(part) => {
            tracing::error!(part, remedy = "report it with the error before this line", "component ended, exiting");
        }
        Ended::Outdated(error) => {
            tracing::error!(%error, remedy = error.remedy(), "store too new for this release, exiting");
        }
    }
    let end = Instant::now() + app.drain() + LOG_GRACE;
    end_process_after(app.drain() + PROCESS_GRACE);
    reloads.abort();
    reporter.stop();
    notify(&[sd_notify::NotifyState::Stopping, sd_notify::NotifyState::Status("draining")]);
    let stopped = app.stop().await;
    *log_limit = end.saturating_duration_since(Instant::now());
    if let Err(error) = &stopped {
        tracing::error!(%error, remedy = error.remedy(), "stop incomplete, exiting");
    }
    Ok(match (ended, stopped) {
        (Ended::Part(_), _) => EXIT_INTERNAL.into(),
        // As a start would: a restart of this release is of no use.
        (Ended::Outdated(_), _) => BadConfig::EXIT_CODE.into(),
        (Ended::Asked, Err(_)) => queue::EXIT_IO.into(),
        (Ended::Asked, Ok(())) => ExitCode::SUCCESS,
    })
}

/// Why the relay ends.
enum Ended {
    Asked,
    /// This part has ended by itself.
    Part(&'static str),
    /// A newer release has changed the tables.
    Outdated(queue::Error),
}

/// Reads the configuration, on a thread that may block: a file may be on a disk that hangs.
async fn load(args: &ConfigArgs) -> anyhow::Result<Config> {
    let args = args.clone();
    Ok(spawn_blocking(move || args.load()).await??)
}

/// Starts the relay, on a thread that may block: a migration of the store may take minutes.
async fn start(config: Config) -> anyhow::Result<Arc<App>> {
    let started = spawn_blocking(move || Handle::current().block_on(App::start(config)));
    started.await?.context("the relay can't start")
}

/// The signals that stop the relay.
struct StopSignals {
    terminate: Signal,
    interrupt: Signal,
}

impl StopSignals {
    fn new() -> anyhow::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    /// Returns when the relay is asked to stop.
    async fn received(&mut self) {
        // After the handlers of `new` are there, so that each signal is seen by one of them.
        if early_signals::is_stop_requested() {
            return;
        }
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }

    /// The result of `work`; `None` if the relay is asked to stop before.
    async fn or<T>(&mut self, work: impl Future<Output = T>) -> Option<T> {
        tokio::select! {
            biased;
            () = self.received() => None,
            done = work => Some(done),
        }
    }
}

/// Ends the process after `limit`, if a stop has not ended it by then: the last resort, on a thread that needs nothing
/// of the runtime.
fn end_process_after(limit: Duration) {
    #[expect(clippy::disallowed_methods, reason = "a thread of its own, which blocks no task")]
    let wait_and_end = move || {
        std::thread::sleep(limit);
        tracing::error!("stop timed out, exiting");
        telemetry::flush_within(Duration::from_millis(20));
        process::exit(EXIT_INTERNAL.into());
    };
    // Without this thread, a stop only lacks the last resort.
    std::thread::Builder::new().name("stop-limit".to_owned()).spawn(wait_and_end).ok();
}

/// Reloads the configuration on request. A task of its own, so that a file that hangs does not delay a stop.
struct Reloader {
    app: Arc<App>,
    args: ConfigArgs,
    logs: Arc<telemetry::Handle>,
}

impl Reloader {
    async fn run(self, mut hangup: Signal, mut requests: mpsc::Receiver<Reload>) {
        loop {
            tokio::select! {
                _ = hangup.recv() => drop(self.reload().await),
                Some(request) = requests.recv() => drop(request.answer.send(self.reload().await)),
            }
        }
    }

    /// Reloads the configuration. An invalid file changes nothing; its errors go to the log and to the caller.
    async fn reload(&self) -> Result<ReloadReport, Vec<String>> {
        if let Ok(reloading) = sd_notify::NotifyState::monotonic_usec_now() {
            notify(&[sd_notify::NotifyState::Reloading, reloading]);
        }
        let result = self.try_reload().await;
        match &result {
            Ok(report) => {
                let changed: Vec<_> = report.changes.iter().map(|change| &*change.key).collect();
                tracing::info!(changed = changed.join(", "), "config reloaded");
            }
            Err(errors) => {
                let error = errors.join("\n");
                tracing::error!(error, "config reload failed, the old configuration stays in use");
            }
        }
        notify(&[sd_notify::NotifyState::Ready]);
        result
    }

    async fn try_reload(&self) -> Result<ReloadReport, Vec<String>> {
        let (app, args, logs) = (self.app.clone(), self.args.clone(), self.logs.clone());
        let reload = move || {
            let config =
                args.load().map_err(|BadConfig(errors)| errors.iter().map(ToString::to_string).collect::<Vec<_>>())?;
            let level = config.log.level.clone();
            let report = app.reload(config).map_err(|error| vec![on_one_line(&error.into())])?;
            logs.set_level(&level).map_err(|error| vec![error.to_string()])?;
            Ok(report)
        };
        spawn_blocking(reload).await.map_err(|error| vec![error.to_string()])?
    }
}
