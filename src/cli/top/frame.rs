//! The lines of text that `wxrelay top` shows. Pure except for the age of the oldest pending delivery.

use tokio::time::Instant;

use crate::admin::{AccountOverview, Status, TargetOverview};
use crate::cli::samples::{self, Sample};
use crate::clock::UnixMillis;

/// The relay's state at one moment.
pub(super) struct Snapshot {
    pub(super) at: Instant,
    pub(super) status: Status,
    pub(super) targets: Vec<TargetOverview>,
    /// `/metrics`, of all replicas one after the other.
    pub(super) metrics: String,
    /// Of how many replicas these are, with `--all`.
    pub(super) replicas: Option<Answered>,
}

/// The replicas that have answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Answered {
    /// By the numbers of their starts.
    pub(super) incarnations: Vec<i32>,
    pub(super) live: usize,
}

/// The lines of one frame, none wider than `width`, at most `height`. Rates are those since `before`; `-` without it.
pub(super) fn frame(now: &Snapshot, before: Option<&Snapshot>, width: usize, height: usize) -> Vec<String> {
    // The counts of other replicas are others.
    let before = before.filter(|before| before.replicas == now.replicas);
    let mut lines = head(now);
    let accounts = accounts(now, before);
    let targets = targets(now, before);
    // Two title lines and two blank ones, for the two tables.
    let room = height.saturating_sub(lines.len() + 4);
    let (for_accounts, for_targets) = shares(accounts.len(), targets.len(), room);
    lines.push(String::new());
    lines
        .push(format!("{:16} {:10} {:>8} {:>8} {:>8} {:>8}", "ACCOUNT", "MODE", "PUSH/S", "OK", "REPEATED", "REFUSED"));
    lines.extend(cut(accounts, for_accounts));
    lines.push(String::new());
    lines.push(format!(
        "{:16} {:9} {:>7} {:>7} {:>8} {:>8} {:>7} {:>9}",
        "TARGET", "STATE", "DONE/S", "FAIL/S", "WAITING", "OLDEST", "DEAD", "EXPIRED"
    ));
    lines.extend(cut(targets, for_targets));
    lines.into_iter().map(|line| line.trim_end().chars().take(width).collect()).collect()
}

fn head(now: &Snapshot) -> Vec<String> {
    let Snapshot { status, .. } = now;
    let ready = match &status.not_ready_because {
        None => "ready".to_owned(),
        Some(obstacle) => format!("NOT READY: {obstacle}"),
    };
    let (version, queue) = (&status.version, &status.queue);
    let up = span(status.uptime_seconds as f64);
    let unaccounted = samples::of(&now.metrics, "wxrelay_unaccounted_deliveries");
    // Each replica counts all.
    let unaccounted = unaccounted.iter().map(|sample| sample.value).fold(0.0, f64::max);
    let unaccounted = if unaccounted == 0.0 { String::new() } else { format!("  UNACCOUNTED {unaccounted}") };
    let of_replicas =
        |Answered { incarnations, live }: &Answered| format!("  {} of {live} replicas", incarnations.len());
    let replicas = now.replicas.as_ref().map(of_replicas).unwrap_or_default();
    vec![
        format!("wxrelay {version}  {ready}  up {up}{replicas}  q ends"),
        format!(
            "{} events, {:.1} MiB  waiting {}  delivered {}  dead {}  expired {}  cancelled {}{unaccounted}",
            queue.events,
            queue.bytes as f64 / f64::from(1 << 20),
            queue.counts.pending,
            queue.counts.delivered,
            queue.counts.dead,
            queue.counts.expired,
            queue.counts.cancelled
        ),
    ]
}

fn accounts(now: &Snapshot, before: Option<&Snapshot>) -> Vec<String> {
    let line = |account: &AccountOverview| {
        let AccountOverview { name, mode, .. } = account;
        let of = |look: &Snapshot, results: fn(&str) -> bool| {
            sum(look, "wxrelay_pushes_total", |sample| {
                sample.label("account") == Some(name) && sample.label("result").is_some_and(results)
            })
        };
        let rate = rate(now, before, |look| of(look, |_| true));
        let taken = of(now, |result| matches!(result, "accepted" | "verified"));
        let repeated = of(now, |result| result == "duplicate");
        let refused = of(now, |_| true) - taken - repeated;
        format!("{:16} {mode:10} {rate:>8} {taken:>8} {repeated:>8} {refused:>8}", short(name))
    };
    now.status.accounts.iter().map(line).collect()
}

fn targets(now: &Snapshot, before: Option<&Snapshot>) -> Vec<String> {
    let line = |target: &TargetOverview| {
        let TargetOverview { name, counts, oldest_pending, .. } = target;
        let of = |look: &Snapshot, outcomes: fn(&str) -> bool| {
            sum(look, "wxrelay_deliveries_total", |sample| {
                sample.label("target") == Some(name) && sample.label("outcome").is_some_and(outcomes)
            })
        };
        let done = rate(now, before, |look| of(look, |outcome| outcome == "delivered"));
        let failed = rate(now, before, |look| of(look, |outcome| outcome != "delivered"));
        let state = target_state(target, &now.metrics);
        let oldest = oldest_pending.map(|at| span(UnixMillis::now().since(at).as_secs_f64()));
        let oldest = oldest.as_deref().unwrap_or("-");
        let (waiting, dead, expired) = (counts.pending, counts.dead, counts.expired);
        format!("{:16} {state:9} {done:>7} {failed:>7} {waiting:>8} {oldest:>8} {dead:>7} {expired:>9}", short(name))
    };
    now.targets.iter().map(line).collect()
}

/// The word for a target's state.
pub(in crate::cli) fn target_state(target: &TargetOverview, metrics: &str) -> &'static str {
    let is_down = samples::of(metrics, "wxrelay_target_up")
        .iter()
        .any(|sample| sample.label("target") == Some(&target.name) && sample.value == 0.0);
    match (target.configured, target.paused, is_down) {
        (false, ..) => "removed",
        (true, true, _) => "paused",
        (true, false, true) => "DOWN",
        (true, false, false) => "up",
    }
}

fn sum(look: &Snapshot, metric: &str, which: impl Fn(&Sample<'_>) -> bool) -> f64 {
    // Not `sum`: the sum of no samples would be -0, and shown as such.
    samples::of(&look.metrics, metric).iter().filter(|sample| which(sample)).fold(0.0, |sum, sample| sum + sample.value)
}

/// The growth of a count per second; `-` if it is unknown.
fn rate(now: &Snapshot, before: Option<&Snapshot>, count: impl Fn(&Snapshot) -> f64) -> String {
    let Some(before) = before else { return "-".to_owned() };
    let seconds = now.at.duration_since(before.at).as_secs_f64();
    let grown = count(now) - count(before);
    // A restarted relay counts from 0.
    if seconds <= 0.0 || grown < 0.0 { "-".to_owned() } else { format!("{:.1}", grown / seconds) }
}

/// How many lines of each table fit: half each, and lines that one does not need go to the other.
fn shares(accounts: usize, targets: usize, room: usize) -> (usize, usize) {
    let for_targets = targets.min(room - (room / 2).min(accounts));
    (accounts.min(room - for_targets), for_targets)
}

/// The first lines, and the number of those left out.
fn cut(mut lines: Vec<String>, room: usize) -> Vec<String> {
    if lines.len() > room {
        let more = lines.len() - room.saturating_sub(1);
        lines.truncate(room.saturating_sub(1));
        lines.extend((room > 0).then(|| format!(".. and {more} more")));
    }
    lines
}

fn short(name: &str) -> String {
    name.chars().take(16).collect()
}

/// A span of time in its two largest units, as in `3h 20m`.
pub(in crate::cli) fn span(seconds: f64) -> String {
    let (minutes, hours, days) = (seconds / 60.0, seconds / 3600.0, seconds / 86400.0);
    if days >= 1.0 {
        format!("{}d {}h", days.floor(), (hours % 24.0).floor())
    } else if hours >= 1.0 {
        format!("{}h {}m", hours.floor(), (minutes % 60.0).floor())
    } else if minutes >= 1.0 {
        format!("{}m {}s", minutes.floor(), (seconds % 60.0).floor())
    } else {
        format!("{}s", seconds.floor())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::admin::QueueTotals;
    use crate::queue::view::Counts;

    fn look(at: Instant, delivered: u32, targets: usize) -> Snapshot {
        let counts = Counts { pending: 2, dead: 1, ..Counts::default() };
        let target = |number: usize| TargetOverview {
            name: format!("target-{number}"),
            configured: true,
            paused: number == 1,
            counts,
            oldest_pending: None,
        };
        let metrics = format!(
            "wxrelay_pushes_total{{account=\"shop\",kind=\"text\",result=\"accepted\"}} {delivered}\n\
             wxrelay_pushes_total{{account=\"shop\",kind=\"none\",result=\"signature\"}} 2\n\
             wxrelay_deliveries_total{{target=\"target-0\",outcome=\"delivered\"}} {delivered}\n\
             wxrelay_target_up{{target=\"target-0\"}} 0\n"
        );
        let [name, path, mode, app_id] = ["shop", "/wx", "secure", "wx1"].map(str::to_owned);
        let status = Status {
            version: "1.2.3".to_owned(),
            started_at: UnixMillis(0),
            uptime_seconds: 3720,
            generation: 1,
            config_sha256: String::new(),
            config_since: None,
            needs_restart: Vec::new(),
            warnings: Vec::new(),
            store: String::new(),
            listen: Vec::new(),
            accounts: vec![AccountOverview { name, path, mode, app_id }],
            targets: Vec::new(),
            ready: true,
            not_ready_because: None,
            clock: "agrees".to_owned(),
            queue: QueueTotals { events: 7, bytes: 1 << 20, counts, ..QueueTotals::default() },
            replicas: Vec::new(),
        };
        Snapshot { at, status, targets: (0..targets).map(target).collect(), metrics, replicas: None }
    }

    #[test]
    fn rates_are_those_since_the_previous_snapshot() {
        let start = Instant::now();
        let (before, now) = (look(start, 10, 2), look(start + Duration::from_secs(2), 15, 2));
        let shown = frame(&now, Some(&before), 80, 24).join("\n");
        assert!(shown.contains("wxrelay 1.2.3  ready  up 1h 2m"), "{shown}");
        let line = |name: &str| shown.lines().find(|line| line.starts_with(name)).unwrap().to_owned();
        let words = |line: String| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(words(line("shop")), ["shop", "secure", "2.5", "15", "0", "2"]);
        assert_eq!(words(line("target-0")), ["target-0", "DOWN", "2.5", "0.0", "2", "-", "1", "0"]);
        assert_eq!(words(line("target-1"))[1], "paused");
        assert!(frame(&before, Some(&now), 80, 24).join("\n").contains(" - "), "a count that fell is no rate");
    }

    #[test]
    fn a_frame_fits_its_screen_and_says_what_it_leaves_out() {
        let many = look(Instant::now(), 10, 100);
        for (width, height) in [(80, 24), (40, 10), (20, 3), (0, 0)] {
            let lines = frame(&many, None, width, height.max(8));
            assert!(lines.len() <= height.max(8), "{height}: {lines:?}");
            assert!(lines.iter().all(|line| line.chars().count() <= width), "{width}: {lines:?}");
        }
        let lines = frame(&many, None, 80, 24);
        assert_eq!((lines.len(), lines[23].as_str()), (24, ".. and 84 more"));
        assert_eq!(frame(&many, None, 80, usize::MAX).len(), 2 + 4 + 1 + 100);
    }
}
