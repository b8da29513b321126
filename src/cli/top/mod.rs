//! `wxrelay top`: a live screen from the admin API: accounts, targets, rates, pending and dead deliveries.
//!
//! Plain ANSI and termios: a screen of text once a second needs no terminal library. The command opens no store and
//! takes no lock, so any number of operators can watch. The terminal is restored, however the command ends.

pub(super) mod frame;
mod terminal;

use std::process::ExitCode;
use std::time::Duration;

use anyhow::bail;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::access::RelayArgs;
use super::api::Api;
use super::output;
use crate::admin::{Status, TargetList};
use crate::queue::Replica;
use frame::{Answered, Snapshot, frame};
use terminal::Terminal;

/// The time between two snapshots.
const REFRESH: Duration = Duration::from_secs(1);
/// The width of `--once`; its height is not limited.
const WIDTH: usize = 80;

/// `wxrelay top`
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    relay: RelayArgs,
    /// Print one frame as plain text, with the rates of one second, and exit
    #[arg(long)]
    once: bool,
    /// Watch all replicas that share the store, and not only the one that is asked
    #[arg(long)]
    all: bool,
}

/// Shows frames until `q` or Ctrl-C.
pub async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let api = args.relay.api()?;
    if args.once {
        let before = snapshot(&api, args.all).await?;
        tokio::time::sleep(REFRESH).await;
        let now = snapshot(&api, args.all).await?;
        for line in frame(&now, Some(&before), WIDTH, usize::MAX) {
            output::stdout().write_line(&line)?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    let Some(mut terminal) = Terminal::open()? else {
        bail!("top needs a terminal; in scripts use `wxrelay top --once`");
    };
    let shown = show(&api, args.all, &mut terminal).await;
    terminal.restore();
    shown?;
    Ok(ExitCode::SUCCESS)
}

async fn show(api: &Api, all: bool, terminal: &mut Terminal) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hangup = signal(SignalKind::hangup())?;
    let mut resized = signal(SignalKind::window_change())?;
    let mut refresh = tokio::time::interval(REFRESH);
    refresh.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let (mut last, mut lines): (Option<Snapshot>, Vec<String>) = (None, vec!["connecting to the relay ..".to_owned()]);
    loop {
        let (width, height) = terminal.size();
        terminal.draw(&lines, width, height)?;
        tokio::select! {
            key = terminal.key() => match key {
                // Ctrl-D (4) arrives as a key; Ctrl-C (3) only where the terminal makes no signal of it.
                Some(b'q' | b'Q' | 3 | 4) | None => return Ok(()),
                Some(_) => {}
            },
            _ = terminate.recv() => return Ok(()),
            _ = interrupt.recv() => return Ok(()),
            _ = hangup.recv() => return Ok(()),
            _ = resized.recv() => {}
            () = async { refresh.tick().await; } => match snapshot(api, all).await {
                Ok(now) => {
                    lines = frame(&now, last.as_ref(), width, height);
                    last = Some(now);
                }
                Err(error) => {
                    last = None;
                    lines = vec![format!("{error:#}"), String::new(), "retrying every second; q ends".to_owned()];
                }
            },
        }
    }
}

/// Gets all that a frame shows.
async fn snapshot(api: &Api, all: bool) -> anyhow::Result<Snapshot> {
    let status: Status = api.get("/api/status").await?;
    let TargetList { targets } = api.get("/api/targets").await?;
    let (metrics, replicas) = match all && !status.replicas.is_empty() {
        true => metrics_of_all(api, &status.replicas).await,
        false => (api.get("/metrics").await?, None),
    };
    Ok(Snapshot { at: Instant::now(), status, targets, metrics, replicas })
}

/// The metrics of all live replicas that answer.
async fn metrics_of_all(api: &Api, replicas: &[Replica]) -> (String, Option<Answered>) {
    let live: Vec<_> = replicas.iter().filter(|replica| replica.live).collect();
    let mut asked = JoinSet::new();
    for replica in &live {
        let (api, incarnation) = (api.of_replica(replica), replica.incarnation);
        asked.spawn(async move { Some((incarnation, api?.get::<String>("/metrics").await.ok()?)) });
    }
    let mut found: Vec<_> = asked.join_all().await.into_iter().flatten().collect();
    found.sort_unstable();
    let incarnations = found.iter().map(|(incarnation, _)| *incarnation).collect();
    let metrics = found.into_iter().map(|(_, metrics)| metrics + "\n").collect();
    (metrics, Some(Answered { incarnations, live: live.len() }))
}
