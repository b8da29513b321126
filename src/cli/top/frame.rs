//! The lines that `wxrelay top` shows. Pure except for the ages.

use std::cmp::Reverse;

use serde_json::Value;
use tokio::time::Instant;

use super::digest::{Digest, Latencies, Pushes, latency};
use super::view::{KEYS, Sort, View};
use crate::admin::{AccountOverview, Status, TargetOverview};
use crate::cli::display::{self, Color, Column, StyledLine, Table, span, state_color, target_color, trouble};
use crate::cli::{checks, samples};
use crate::clock::UnixMillis;
use crate::ordered;
use crate::queue::view::EventSummary;

/// How long a delivery may wait before that is trouble, in seconds.
const LONG_WAIT: f64 = 10.0;
/// The most lines of accounts while targets need lines, and the last events.
const ACCOUNTS: usize = 4;
const EVENTS: usize = 3;
/// The most lines of checks, and the least height at which they have any.
const CHECKS: usize = 4;
const HEIGHT_FOR_CHECKS: usize = 12;
/// The least height at which the last events have lines.
const HEIGHT_FOR_EVENTS: usize = 20;

/// The relay's state at one moment.
pub(super) struct Snapshot {
    pub(super) at: Instant,
    pub(super) status: Status,
    pub(super) targets: Vec<TargetOverview>,
    /// Of all replicas that answered.
    pub(super) digest: Digest,
    /// Of how many replicas these are, with `--all`.
    pub(super) replicas: Option<Answered>,
    /// The newest events.
    pub(super) events: Vec<EventSummary>,
    /// What needs a hand, as the API writes it.
    pub(super) checks: Vec<Value>,
}

/// The replicas that have answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Answered {
    /// By the numbers of their starts.
    pub(super) incarnations: Vec<i32>,
    pub(super) live: usize,
}

/// What a frame is made of.
pub(super) struct Frame<'a> {
    pub(super) now: &'a Snapshot,
    /// Rates are those since then; `-` without it.
    pub(super) before: Option<&'a Snapshot>,
    /// Those of the last minute, or of all time.
    pub(super) latencies: &'a Latencies,
    pub(super) settings: &'a display::Settings,
}

impl Frame<'_> {
    /// The lines, none wider than the terminal, at most `height`; changes the view to what can be shown.
    pub(super) fn lines(&self, view: &mut View, height: usize) -> Vec<StyledLine> {
        let width = self.settings.width;
        let mut lines = self.head(view);
        if height >= HEIGHT_FOR_CHECKS {
            lines.extend(self.checks());
        }
        let accounts = self.accounts().lines(width);
        let targets = self.targets(view.sort).lines(width);
        let keys = usize::from(height < usize::MAX);
        let events = if height >= HEIGHT_FOR_EVENTS { self.events().lines(width) } else { Vec::new() };
        let events = if events.len() > 1 { events } else { Vec::new() };
        let for_events = if events.is_empty() { 0 } else { 1 + events.len().min(EVENTS + 1) };
        // Two title lines and two blank ones, for the two tables.
        let room = height.saturating_sub(lines.len() + 4 + for_events + keys);
        let (for_accounts, for_targets) = shares(accounts.len() - 1, targets.len() - 1, room);
        lines.push(StyledLine::default());
        lines.extend(first(accounts, for_accounts));
        lines.push(StyledLine::default());
        lines.extend(scrolled(targets, for_targets, view));
        if for_events > 0 {
            lines.push(StyledLine::default());
            lines.extend(events.into_iter().take(EVENTS + 1));
        }
        if keys > 0 {
            lines.truncate(height.saturating_sub(1));
            lines.resize(height.saturating_sub(1), StyledLine::default());
            lines.push(StyledLine::new(KEYS, Color::Dim));
            lines.truncate(height);
        }
        lines.into_iter().map(|line| line.truncate(width.unwrap_or(usize::MAX))).collect()
    }

    fn head(&self, view: &View) -> Vec<StyledLine> {
        let Snapshot { status, .. } = self.now;
        let (version, queue) = (&status.version, &status.queue);
        let mut first = StyledLine::new("wxrelay", Color::Bold).with(&format!(" {version}  "), Color::Plain);
        match &status.not_ready_because {
            None => first.push("ready", Color::Green),
            Some(obstacle) => first.push(&format!("NOT READY: {obstacle}"), Color::Red),
        }
        first.push(&format!("  up {}", span(status.uptime_seconds as f64)), Color::Plain);
        if let Some(Answered { incarnations, live }) = &self.now.replicas {
            first.push(&format!("  {} of {live} replicas", incarnations.len()), Color::Plain);
        }
        first.push(&format!("  by {}", view.sort.word()), Color::Dim);
        let counts = queue.counts;
        let (size, waiting, delivered) = (bytesize::ByteSize(queue.bytes), counts.pending, counts.delivered);
        let (dead, expired) = (counts.dead, counts.expired);
        let mut second =
            StyledLine::plain(&format!("{} events, {size}  waiting {waiting}  delivered {delivered}  ", queue.events));
        second.push(&format!("dead {dead}"), if dead > 0 { Color::Red } else { Color::Plain });
        second.push(&format!("  expired {expired}"), Color::Plain);
        let mut third = StyledLine::new("p99", Color::Dim);
        for (name, histogram) in ["answer", "identity", "attempt"].iter().zip(&self.latencies.0) {
            third.push(&format!("  {name} "), Color::Dim);
            third.push(&latency(histogram.p99()), Color::Plain);
        }
        vec![first, second, third]
    }

    /// What needs a hand: those that wake somebody up are first.
    fn checks(&self) -> Vec<StyledLine> {
        let line = |check: &Value| {
            let subject = checks::text(check, "subject");
            let sign = StyledLine::new("! ", checks::color(check)).with(subject, Color::Bold);
            sign.with(if subject.is_empty() { "" } else { "  " }, Color::Plain)
                .with(checks::text(check, "text"), Color::Plain)
        };
        let mut lines: Vec<_> = self.now.checks.iter().take(CHECKS).map(line).collect();
        let more = self.now.checks.len().saturating_sub(CHECKS);
        let rest = || StyledLine::new(&format!(".. and {more} more: wxrelay checks"), Color::Dim);
        lines.extend((more > 0).then(rest));
        lines
    }

    fn accounts(&self) -> Table<'static> {
        const COLUMNS: [Column; 7] = [
            Column::elided("ACCOUNT", 8),
            Column::text("MODE"),
            Column::number("PUSH/S"),
            Column::number("OK"),
            Column::number("REPEATED"),
            Column::number("REFUSED"),
            Column::elided("REASONS", 7),
        ];
        let mut table = Table::new(&COLUMNS);
        let none = Pushes::default();
        for AccountOverview { name, mode, .. } in &self.now.status.accounts {
            let pushes = self.now.digest.pushes.get(name).unwrap_or(&none);
            let rate = self.rate(|digest| digest.pushes.get(name).map_or(0.0, Pushes::total));
            let mut reasons: Vec<_> = pushes.refused.iter().filter(|(_, count)| **count > 0.0).collect();
            ordered::sort(&mut reasons, |one: &(&String, &f64), other| other.1.total_cmp(one.1));
            let reasons: Vec<_> = reasons.iter().map(|(reason, count)| format!("{reason} {count}")).collect();
            table.push(vec![
                name.as_str().into(),
                mode.as_str().into(),
                shown(rate).into(),
                pushes.accepted.to_string().into(),
                pushes.repeated.to_string().into(),
                StyledLine::new(
                    &pushes.refused().to_string(),
                    if reasons.is_empty() { Color::Plain } else { Color::Yellow },
                ),
                StyledLine::new(&reasons.join(", "), Color::Dim),
            ]);
        }
        table
    }

    fn targets(&self, sort: Sort) -> Table<'static> {
        const COLUMNS: [Column; 8] = [
            Column::elided("TARGET", 8),
            Column::text("STATE"),
            Column::number("DONE/S"),
            Column::number("FAIL/S"),
            Column::number("WAITING"),
            Column::number("OLDEST"),
            Column::number("DEAD"),
            Column::number("EXPIRED"),
        ];
        let mut rows: Vec<TargetRow<'_>> = self.now.targets.iter().map(|target| self.row(target)).collect();
        ordered::sort(&mut rows, |one, other| one.compare(other, sort));
        let mut table = Table::new(&COLUMNS);
        for TargetRow { target, state, done, failed, waits } in rows {
            let counts = target.counts;
            let long = if waits > LONG_WAIT { Color::Yellow } else { Color::Plain };
            table.push(vec![
                target.name.as_str().into(),
                StyledLine::new(state, target_color(state)),
                shown(done).into(),
                StyledLine::new(&shown(failed), if failed > Some(0.0) { Color::Yellow } else { Color::Plain }),
                counts.pending.to_string().into(),
                StyledLine::new(&target.oldest_pending.map_or_else(|| "-".to_owned(), |_| span(waits)), long),
                trouble(counts.dead, Color::Red),
                trouble(counts.expired, Color::Magenta),
            ]);
        }
        table
    }

    fn row<'t>(&self, target: &'t TargetOverview) -> TargetRow<'t> {
        let attempts =
            |of: usize| self.rate(|digest: &Digest| digest.attempts.get(&target.name).map_or(0.0, |counts| counts[of]));
        let is_down = self.now.digest.down.contains(&target.name);
        let waits = target.oldest_pending.map_or(0.0, |at| UnixMillis::now().since(at).as_secs_f64());
        TargetRow { target, state: state(target, is_down), done: attempts(0), failed: attempts(1), waits }
    }

    fn events(&self) -> Table<'static> {
        const COLUMNS: [Column; 4] = [
            Column::text("LAST EVENT"),
            Column::elided("KIND", 4),
            Column::elided("KEY", 4),
            Column::elided("DELIVERIES", 10),
        ];
        let mut table = Table::new(&COLUMNS);
        for event in &self.now.events {
            let name = if event.event.is_empty() { &event.msg_type } else { &event.event };
            let mut deliveries = StyledLine::default();
            for delivery in &event.deliveries {
                let comma = if deliveries.is_empty() { "" } else { ", " };
                deliveries.push(&format!("{comma}{} ", delivery.target), Color::Plain);
                deliveries.push(delivery.state.name(), state_color(delivery.state));
            }
            let time = self.settings.zone.time_of_day(event.received_at);
            table.push(vec![time.into(), name.as_str().into(), event.event_key.as_str().into(), deliveries]);
        }
        table
    }

    /// The growth of a count per second; `None` if it is unknown.
    fn rate(&self, count: impl Fn(&Digest) -> f64) -> Option<f64> {
        // The counts of other replicas are others.
        let before = self.before.filter(|before| before.replicas == self.now.replicas)?;
        let seconds = self.now.at.duration_since(before.at).as_secs_f64();
        let grown = count(&self.now.digest) - count(&before.digest);
        // A restarted relay counts from 0.
        if seconds <= 0.0 || grown < 0.0 { None } else { Some(grown / seconds) }
    }
}

/// A target, with what it is sorted by.
struct TargetRow<'t> {
    target: &'t TargetOverview,
    state: &'static str,
    done: Option<f64>,
    failed: Option<f64>,
    /// For how long its oldest delivery waits, in seconds.
    waits: f64,
}

impl TargetRow<'_> {
    fn compare(&self, other: &Self, sort: Sort) -> std::cmp::Ordering {
        let rate = |row: &Self| row.done.unwrap_or(0.0) + row.failed.unwrap_or(0.0);
        let by_rate = || rate(other).total_cmp(&rate(self));
        let counts = |row: &Self| row.target.counts;
        let order = match sort {
            Sort::Trouble => {
                let rank = |row: &Self| match row.state {
                    "DOWN" => 0,
                    "paused" => 1,
                    _ if row.waits > LONG_WAIT => 2,
                    _ if counts(row).dead > 0 => 3,
                    _ => 4,
                };
                let waits = |row: &Self| if row.waits > LONG_WAIT { row.waits } else { 0.0 };
                let by_rank = rank(self).cmp(&rank(other)).then(waits(other).total_cmp(&waits(self)));
                by_rank.then(counts(other).dead.cmp(&counts(self).dead)).then_with(by_rate)
            }
            Sort::Rate => by_rate(),
            Sort::Waiting => Reverse(counts(self).pending).cmp(&Reverse(counts(other).pending)),
            Sort::Oldest => other.waits.total_cmp(&self.waits),
            Sort::Dead => Reverse(counts(self).dead).cmp(&Reverse(counts(other).dead)),
            Sort::Name => std::cmp::Ordering::Equal,
        };
        order.then_with(|| self.target.name.cmp(&other.target.name))
    }
}

/// The word for a target's state.
pub(in crate::cli) fn target_state(target: &TargetOverview, metrics: &str) -> &'static str {
    state(target, is_down(&target.name, metrics))
}

/// Whether a target's circuit breaker is open.
pub(in crate::cli) fn is_down(target: &str, metrics: &str) -> bool {
    let samples = samples::of(metrics, "wxrelay_target_up");
    samples.iter().any(|sample| sample.label("target") == Some(target) && sample.value == 0.0)
}

fn state(target: &TargetOverview, is_down: bool) -> &'static str {
    match (target.configured, target.paused, is_down) {
        (false, ..) => "removed",
        (true, true, _) => "paused",
        (true, false, true) => "DOWN",
        (true, false, false) => "up",
    }
}

fn shown(rate: Option<f64>) -> String {
    rate.map_or_else(|| "-".to_owned(), |rate| format!("{rate:.1}"))
}

/// How many lines of each table fit: a few of accounts while targets need lines, and lines that one does not need go to
/// the other.
fn shares(accounts: usize, targets: usize, room: usize) -> (usize, usize) {
    let for_targets = targets.min(room - (room / 2).min(accounts).min(ACCOUNTS));
    (accounts.min(room - for_targets), for_targets)
}

/// The title and the first rows of a table, and the number of those left out.
fn first(mut lines: Vec<StyledLine>, room: usize) -> Vec<StyledLine> {
    if lines.len() - 1 > room {
        let more = lines.len() - room.max(1);
        lines.truncate(room.max(1));
        lines.extend((room > 0).then(|| StyledLine::new(&format!(".. and {more} more"), Color::Dim)));
    }
    lines
}

/// The title and the rows of a table below those that are scrolled away; the last line counts what is not shown.
fn scrolled(mut lines: Vec<StyledLine>, room: usize, view: &mut View) -> Vec<StyledLine> {
    let all = lines.len() - 1;
    if all <= room {
        (view.scroll, view.page) = (0, room);
        return lines;
    }
    let rows = room.saturating_sub(1);
    view.page = rows;
    view.scroll = view.scroll.min(all - rows);
    let (from, to) = (view.scroll + 1, view.scroll + rows);
    lines.drain(1..=view.scroll);
    lines.truncate(1 + rows);
    lines.extend((room > 0).then(|| StyledLine::new(&format!(".. {from} to {to} of {all} targets"), Color::Dim)));
    lines
}
