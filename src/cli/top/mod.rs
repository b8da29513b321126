//! `wxrelay top`: a live screen from the admin API: accounts, targets, rates, pending and dead deliveries.
//!
//! Plain ANSI and termios: a screen of text once a second needs no terminal library, and ratatui with crossterm would
//! take 340 KB. The command opens no store and takes no lock, so any number of operators can watch. The terminal is
//! restored, however the command ends.

mod digest;
mod frame;
#[cfg(test)]
mod frame_tests;
mod terminal;
mod view;

use std::collections::VecDeque;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::bail;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;
use tokio::time::Instant;

pub(super) use frame::{is_down, target_state};

use super::access::RelayArgs;
use super::api::Api;
use super::display::{self, StyledLine, TimeArgs, Zone, allows_color};
use super::{checks, output};
use crate::admin::{EventPage, Status, TargetList};
use crate::queue::Replica;
use digest::{Digest, Latencies};
use frame::{Answered, Frame, Snapshot};
use terminal::Terminal;
use view::{Action, View};

/// The time between two snapshots.
const REFRESH: Duration = Duration::from_secs(1);
/// The snapshots whose latencies are kept: those of a minute.
const WINDOW: usize = 60;
/// The width of `--once`; its height is not limited.
const WIDTH: usize = 80;

/// `wxrelay top`
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    relay: RelayArgs,
    #[command(flatten)]
    times: TimeArgs,
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
        let settings = display::Settings { width: Some(WIDTH), color: false, zone: Zone::new(args.times) };
        let latencies = &now.digest.latencies;
        let frame = Frame { now: &now, before: Some(&before), latencies, settings: &settings };
        output::print_lines(&frame.lines(&mut View::default(), usize::MAX), false)?;
        return Ok(ExitCode::SUCCESS);
    }
    let Some(mut terminal) = Terminal::open()? else {
        bail!("top needs a terminal; in scripts use `wxrelay top --once`");
    };
    let shown = show(&api, &args, &mut terminal).await;
    terminal.restore();
    shown?;
    Ok(ExitCode::SUCCESS)
}

async fn show(api: &Api, args: &Args, terminal: &mut Terminal) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hangup = signal(SignalKind::hangup())?;
    let mut resized = signal(SignalKind::window_change())?;
    let mut refresh = tokio::time::interval(REFRESH);
    refresh.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut settings = display::Settings { width: None, color: allows_color(), zone: Zone::new(args.times) };
    let (mut history, mut view) = (History::default(), View::default());
    let mut problem = vec![StyledLine::plain("connecting to the relay ..")];
    loop {
        let (width, height) = terminal.size();
        // The last column stays free: a terminal delays the wrap there.
        settings.width = Some(width.saturating_sub(1));
        let lines = history.frame(&settings, &mut view, height);
        terminal.draw(lines.as_ref().unwrap_or(&problem), &settings, height)?;
        tokio::select! {
            byte = terminal.key() => {
                if byte.is_none_or(|byte| view.press(byte) == Action::End) {
                    return Ok(());
                }
            }
            _ = terminate.recv() => return Ok(()),
            _ = interrupt.recv() => return Ok(()),
            _ = hangup.recv() => return Ok(()),
            _ = resized.recv() => {}
            () = async { refresh.tick().await; } => match snapshot(api, args.all).await {
                Ok(now) => history.push(now),
                Err(error) => {
                    history = History::default();
                    problem = vec![
                        format!("{error:#}").into(),
                        StyledLine::default(),
                        "retrying every second; q ends".into(),
                    ];
                }
            },
        }
    }
}

/// What was seen: the last two snapshots, and the latencies of the last minute.
#[derive(Default)]
struct History {
    before: Option<Snapshot>,
    now: Option<Snapshot>,
    latencies: VecDeque<Latencies>,
}

impl History {
    fn push(&mut self, now: Snapshot) {
        self.latencies.push_back(now.digest.latencies.clone());
        if self.latencies.len() > WINDOW {
            self.latencies.pop_front();
        }
        self.before = self.now.replace(now);
    }

    /// `None` before the first snapshot.
    fn frame(&self, settings: &display::Settings, view: &mut View, height: usize) -> Option<Vec<StyledLine>> {
        let now = self.now.as_ref()?;
        // Of all time, until there is a second snapshot.
        let first = self.latencies.front().filter(|_| self.latencies.len() > 1);
        let latencies = first.map_or_else(|| now.digest.latencies.clone(), |first| now.digest.latencies.since(first));
        let frame = Frame { now, before: self.before.as_ref(), latencies: &latencies, settings };
        Some(frame.lines(view, height))
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
    // The rest is worth a frame without them, too.
    let events = api.get::<EventPage>("/api/events?limit=3").await.map_or_else(|_| Vec::new(), |page| page.events);
    let checks = checks::get(api).await.unwrap_or_default();
    Ok(Snapshot { at: Instant::now(), status, targets, digest: Digest::new(&metrics), replicas, events, checks })
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
