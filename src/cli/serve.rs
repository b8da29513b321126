//! `wxrelay serve`: runs the relay until SIGTERM; SIGHUP reloads the configuration.

use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context as _;
use tokio::signal::unix::{SignalKind, signal};

use super::ConfigArgs;
use super::service::{self, notify};
use crate::app::App;
use crate::secret::seal_process;
use crate::telemetry;

/// `wxrelay serve`
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    config: ConfigArgs,
}

/// Runs until SIGTERM or SIGINT.
pub async fn run(args: Args) -> anyhow::Result<ExitCode> {
    // Must precede the read of the first secret.
    let sealed = seal_process();
    let config = args.config.load()?;
    let logs = telemetry::init(&config.log)?;
    if let Err(error) = sealed {
        tracing::warn!(%error, "core dumps not disabled, they would hold tokens and keys; set LimitCORE=0");
    }
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hangup = signal(SignalKind::hangup())?;
    let app = App::start(config).await.context("the relay can't start")?;
    let mut requests = app.take_reloads().context("reloads are taken once")?;
    notify(&[sd_notify::NotifyState::Ready]);
    let reporter = service::SystemdReporter::start(&app);
    loop {
        tokio::select! {
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            _ = hangup.recv() => drop(reload(&app, &args.config, &logs)),
            Some(request) = requests.recv() => drop(request.answer.send(reload(&app, &args.config, &logs))),
        }
    }
    reporter.stop();
    notify(&[sd_notify::NotifyState::Stopping, sd_notify::NotifyState::Status("draining")]);
    app.stop().await;
    Ok(ExitCode::SUCCESS)
}

/// Reloads the configuration. An invalid file changes nothing; its errors go to the log and to the caller.
fn reload(app: &Arc<App>, args: &ConfigArgs, logs: &telemetry::Handle) -> Result<(), String> {
    if let Ok(reloading) = sd_notify::NotifyState::monotonic_usec_now() {
        notify(&[sd_notify::NotifyState::Reloading, reloading]);
    }
    let result = reloaded(app, args, logs);
    match &result {
        Ok(()) => tracing::info!("config reloaded"),
        Err(error) => tracing::error!(%error, "config reload failed, the old configuration stays in use"),
    }
    notify(&[sd_notify::NotifyState::Ready]);
    result
}

fn reloaded(app: &Arc<App>, args: &ConfigArgs, logs: &telemetry::Handle) -> Result<(), String> {
    let config = args.load().map_err(|errors| errors.to_string())?;
    let level = config.log.level.clone();
    app.reload(config).map_err(|error| format!("{:#}", anyhow::Error::from(error)))?;
    logs.set_level(&level).map_err(|error| error.to_string())
}
