//! `wxrelay top`: a live screen out of the admin API: accounts, targets, rates, what waits, what is dead.
//!
//! Plain ANSI and the terminal's own settings: a screen of text once a second needs no more. It takes no store and no
//! lock, so as many may look as the API serves. The terminal is given back as it was, however this ends.

mod frame;
mod terminal;

use std::io::{self, Write};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{bail, ensure};
use http::Method;
use serde_json::Value;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::Instant;

use super::ConfigArgs;
use super::api::Api;
use frame::{Look, frame};
use terminal::Terminal;

/// Between two looks.
const REFRESH: Duration = Duration::from_secs(1);
/// What `--once` prints is as wide as this, and as long as it must be.
const WIDTH: usize = 80;

/// `wxrelay top`
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    config: ConfigArgs,
    /// Print one frame as plain text, with the rates of one second, and end
    #[arg(long)]
    once: bool,
}

/// Shows frames until `q` or Ctrl-C.
pub async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let config = args.config.load()?;
    let api = Api::of(&config)?;
    if args.once {
        let before = look(&api).await?;
        tokio::time::sleep(REFRESH).await;
        let now = look(&api).await?;
        for line in frame(&now, Some(&before), WIDTH, usize::MAX) {
            writeln!(io::stdout(), "{line}")?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    let Some(mut terminal) = Terminal::take()? else {
        bail!("top needs a terminal; in scripts use `wxrelay top --once`");
    };
    let shown = show(&api, &mut terminal).await;
    terminal.give_back();
    shown?;
    Ok(ExitCode::SUCCESS)
}

async fn show(api: &Api<'_>, terminal: &mut Terminal) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hangup = signal(SignalKind::hangup())?;
    let mut resized = signal(SignalKind::window_change())?;
    let mut refresh = tokio::time::interval(REFRESH);
    refresh.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let (mut last, mut lines): (Option<Look>, Vec<String>) = (None, vec!["asking the relay ..".to_owned()]);
    loop {
        let (width, height) = terminal.size();
        terminal.draw(&lines, width, height)?;
        tokio::select! {
            key = terminal.key() => match key {
                // Ctrl-C comes as a signal; so may Ctrl-D, as a key.
                Some(b'q' | b'Q' | 3 | 4) | None => return Ok(()),
                Some(_) => {}
            },
            _ = terminate.recv() => return Ok(()),
            _ = interrupt.recv() => return Ok(()),
            _ = hangup.recv() => return Ok(()),
            _ = resized.recv() => {}
            () = async { refresh.tick().await; } => match look(api).await {
                Ok(now) => {
                    lines = frame(&now, last.as_ref(), width, height);
                    last = Some(now);
                }
                Err(error) => {
                    last = None;
                    lines = vec![format!("{error:#}"), String::new(), "trying again every second; q ends".to_owned()];
                }
            },
        }
    }
}

/// Asks the relay for all that a frame shows.
async fn look(api: &Api<'_>) -> anyhow::Result<Look> {
    let ask = async |path: &str| -> anyhow::Result<Value> {
        let (status, answer) = api.call(Method::GET, path, None).await?;
        ensure!(
            status.is_success(),
            "the relay answered {status}: {}",
            answer["error"].as_str().unwrap_or("no reason given")
        );
        Ok(answer)
    };
    let (status, targets, metrics) = (ask("/api/status").await?, ask("/api/targets").await?, ask("/metrics").await?);
    let metrics = metrics.as_str().unwrap_or_default().to_owned();
    Ok(Look { at: Instant::now(), status, targets, metrics })
}
