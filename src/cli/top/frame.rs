//! What `wxrelay top` shows, as lines of text. Pure, but for the clock it is handed in [`Look`].

use serde_json::Value;
use tokio::time::Instant;

use crate::cli::samples::{self, Sample};
use crate::clock::UnixMillis;

/// What the relay said at one moment.
pub(super) struct Look {
    pub(super) at: Instant,
    /// `/api/status`
    pub(super) status: Value,
    /// `/api/targets`
    pub(super) targets: Value,
    /// `/metrics`
    pub(super) metrics: String,
}

/// The lines of one frame, none wider than `width`, at most `height`. Rates are those since `before`; `-` without it.
pub(super) fn frame(now: &Look, before: Option<&Look>, width: usize, height: usize) -> Vec<String> {
    let mut lines = head(now);
    let accounts = accounts(now, before);
    let targets = targets(now, before);
    // Title lines and blanks around the two tables.
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

fn head(now: &Look) -> Vec<String> {
    let Look { status, .. } = now;
    let ready = match status["not_ready_because"].as_str() {
        None => "ready".to_owned(),
        Some(obstacle) => format!("NOT READY: {obstacle}"),
    };
    let version = status["version"].as_str().unwrap_or("?");
    let up = span(status["uptime_seconds"].as_f64().unwrap_or_default());
    let count = |key: &str| status["queue"][key].as_u64().unwrap_or_default();
    let unaccounted = samples::of(&now.metrics, "wxrelay_unaccounted_deliveries").iter().map(|s| s.value).sum::<f64>();
    let unaccounted = if unaccounted == 0.0 { String::new() } else { format!("  UNACCOUNTED {unaccounted}") };
    vec![
        format!("wxrelay {version}  {ready}  up {up}  q ends"),
        format!(
            "{} events, {:.1} MiB  waiting {}  delivered {}  dead {}  expired {}  cancelled {}{unaccounted}",
            count("events"),
            count("bytes") as f64 / f64::from(1 << 20),
            count("pending"),
            count("delivered"),
            count("dead"),
            count("expired"),
            count("cancelled")
        ),
    ]
}

fn accounts(now: &Look, before: Option<&Look>) -> Vec<String> {
    let name = |account: &Value| account["name"].as_str().unwrap_or_default().to_owned();
    let line = |account: &Value| {
        let of = |look: &Look, results: fn(&str) -> bool| {
            sum(look, "wxrelay_pushes_total", |sample| {
                sample.label("account") == account["name"].as_str() && sample.label("result").is_some_and(results)
            })
        };
        let rate = rate(now, before, |look| of(look, |_| true));
        let taken = of(now, |result| matches!(result, "accepted" | "verified"));
        let repeated = of(now, |result| result == "duplicate");
        let refused = of(now, |_| true) - taken - repeated;
        let mode = account["mode"].as_str().unwrap_or_default();
        format!("{:16} {mode:10} {rate:>8} {taken:>8} {repeated:>8} {refused:>8}", short(&name(account)))
    };
    now.status["accounts"].as_array().into_iter().flatten().map(line).collect()
}

fn targets(now: &Look, before: Option<&Look>) -> Vec<String> {
    let line = |target: &Value| {
        let name = target["name"].as_str().unwrap_or_default();
        let of = |look: &Look, outcomes: fn(&str) -> bool| {
            sum(look, "wxrelay_deliveries_total", |sample| {
                sample.label("target") == Some(name) && sample.label("outcome").is_some_and(outcomes)
            })
        };
        let done = rate(now, before, |look| of(look, |outcome| outcome == "delivered"));
        let failed = rate(now, before, |look| of(look, |outcome| outcome != "delivered"));
        let down = samples::of(&now.metrics, "wxrelay_target_up")
            .iter()
            .any(|sample| sample.label("target") == Some(name) && sample.value == 0.0);
        let state = match (target["configured"] == true, target["paused"] == true, down) {
            (false, ..) => "removed",
            (true, true, _) => "paused",
            (true, false, true) => "DOWN",
            (true, false, false) => "up",
        };
        let count = |key: &str| target[key].as_u64().unwrap_or_default();
        let oldest = target["oldest_pending"].as_str().and_then(|at| at.parse::<jiff::Timestamp>().ok());
        let oldest = oldest.map_or_else(
            || "-".to_owned(),
            |at| span(UnixMillis::now().since(UnixMillis(at.as_millisecond())).as_secs_f64()),
        );
        let (waiting, dead, expired) = (count("pending"), count("dead"), count("expired"));
        format!("{:16} {state:9} {done:>7} {failed:>7} {waiting:>8} {oldest:>8} {dead:>7} {expired:>9}", short(name))
    };
    now.targets["targets"].as_array().into_iter().flatten().map(line).collect()
}

fn sum(look: &Look, metric: &str, which: impl Fn(&Sample<'_>) -> bool) -> f64 {
    // Not `sum`, which makes -0 of nothing.
    samples::of(&look.metrics, metric).iter().filter(|sample| which(sample)).fold(0.0, |sum, sample| sum + sample.value)
}

/// By how much a count grew in a second; `-` where that is not known.
fn rate(now: &Look, before: Option<&Look>, count: impl Fn(&Look) -> f64) -> String {
    let Some(before) = before else { return "-".to_owned() };
    let seconds = now.at.duration_since(before.at).as_secs_f64();
    let grown = count(now) - count(before);
    // A relay that was started again counts from 0.
    if seconds <= 0.0 || grown < 0.0 { "-".to_owned() } else { format!("{:.1}", grown / seconds) }
}

/// How many lines of each table there is room for: half each, and what one does not need is the other's.
fn shares(accounts: usize, targets: usize, room: usize) -> (usize, usize) {
    let for_targets = targets.min(room - (room / 2).min(accounts));
    (accounts.min(room - for_targets), for_targets)
}

/// The first lines, and how many there are more.
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
fn span(seconds: f64) -> String {
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

    use serde_json::json;

    use super::*;

    fn look(at: Instant, delivered: u32, targets: usize) -> Look {
        let target = |number: usize| {
            json!({ "name": format!("target-{number}"), "configured": true, "paused": number == 1, "pending": 2,
                    "dead": 1, "expired": 0, "oldest_pending": null })
        };
        let metrics = format!(
            "wxrelay_pushes_total{{account=\"shop\",kind=\"text\",result=\"accepted\"}} {delivered}\n\
             wxrelay_pushes_total{{account=\"shop\",kind=\"none\",result=\"signature\"}} 2\n\
             wxrelay_deliveries_total{{target=\"target-0\",outcome=\"delivered\"}} {delivered}\n\
             wxrelay_target_up{{target=\"target-0\"}} 0\n"
        );
        let status = json!({ "version": "1.2.3", "uptime_seconds": 3720, "not_ready_because": null,
            "accounts": [{ "name": "shop", "mode": "secure" }], "queue": { "events": 7, "bytes": 1 << 20 } });
        let targets = json!({ "targets": (0..targets).map(target).collect::<Vec<_>>() });
        Look { at, status, targets, metrics }
    }

    #[test]
    fn rates_are_those_since_the_look_before() {
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
