//! The last hour of each account, each target and the process, in steps of 10 s, in memory. Pure but for [`watch`].
//!
//! A step holds what was counted in it, and the gauges at its end. Steps that were not measured, such as those before a
//! start, are absent. A ring takes 16 KiB; above [`RINGS`] of them the subjects with the least traffic have none.

use std::collections::BTreeMap;
use std::time::Duration;

use axum::extract::Request;
use axum::response::Response;
use parking_lot::Mutex;
use serde_json::{Map, Value, json};

use super::{Context, Error, endpoint};
use crate::clock::UnixMillis;
use crate::metrics::{Buckets, Reading, Subject};
use crate::telemetry;

/// The length of a step.
pub(super) const STEP: Duration = Duration::from_secs(10);
/// How many steps are kept.
pub(super) const STEPS: usize = 360;
/// The most rings.
const RINGS: usize = 60;
/// The values of a step.
const FIELDS: usize = 11;
/// Not measured.
const NONE: u32 = u32::MAX;
/// Of the traffic of a subject, what remains after each step: a half after 23 minutes.
const FADING: f64 = 0.995;

/// A value of a step; those that a subject does not have are 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub(super) enum Field {
    /// Pushes that were accepted, attempts that delivered, lost spans.
    Done = 0,
    /// Repeated pushes, failed attempts, lost log lines.
    Second = 1,
    /// Refused pushes, expired deliveries.
    Third = 2,
    /// Pushes that were not stored.
    Failed = 3,
    /// Pushes that WeChat gave up.
    HungUp = 4,
    /// 1 where the reply window is closed; pending deliveries; live replicas.
    Gauge = 5,
    /// Dead letters.
    Dead = 6,
    /// Microseconds that half of the answers, attempts or commits took at most.
    Median = 7,
    /// The same of 99 of 100.
    P99 = 8,
    /// Answers, logins or commits.
    Timed = 9,
    /// Tenths of those that took longer than the limit of the check.
    Slow = 10,
}

/// What is shown of a subject: the name in the API, the field, and by how much it is divided.
pub(super) type Series = (&'static str, Field, u32);

const ACCOUNT: &[Series] = &[
    ("answered", Field::Done, 1),
    ("repeated", Field::Second, 1),
    ("refused", Field::Third, 1),
    ("not_stored", Field::Failed, 1),
    ("hung_up", Field::HungUp, 1),
    ("p50_ms", Field::Median, 1000),
    ("p99_ms", Field::P99, 1000),
];
const TARGET: &[Series] = &[
    ("delivered", Field::Done, 1),
    ("failed", Field::Second, 1),
    ("expired", Field::Third, 1),
    ("pending", Field::Gauge, 1),
    ("dead", Field::Dead, 1),
    ("p50_ms", Field::Median, 1000),
    ("p99_ms", Field::P99, 1000),
];

/// The series of a subject.
pub(super) fn series(subject: Subject) -> &'static [Series] {
    match subject {
        Subject::Account => ACCOUNT,
        Subject::Target => TARGET,
        Subject::Process => &[],
    }
}

/// The limits of the checks that count what takes long, in seconds: answers, logins, commits.
pub(super) const SLOW: [f64; 3] = [3.0, 3.0, 0.5];

/// The last hour.
pub(super) struct History(Mutex<Hour>);

struct Hour {
    /// The number of the last step, since the epoch.
    step: Option<i64>,
    subjects: BTreeMap<(Subject, String), Measured>,
}

/// One subject; the name is empty for the sum of all of its kind.
struct Measured {
    /// The last reading.
    before: Reading,
    /// Its recent traffic.
    traffic: f64,
    /// [`FIELDS`] values for each step; `None` where others have more traffic.
    ring: Option<Vec<u32>>,
}

impl History {
    pub(super) fn new() -> Self {
        Self(Mutex::new(Hour { step: None, subjects: BTreeMap::new() }))
    }

    /// Ends the step of `now`. A second call within a step adds to it; a clock that was set back begins anew.
    pub(super) fn record(&self, now: UnixMillis, readings: Vec<Reading>) {
        let mut hour = self.0.lock();
        let step = now.0.div_euclid(i64::try_from(STEP.as_millis()).unwrap_or(i64::MAX));
        hour.advance(step);
        let mut sums: [Option<Reading>; 2] = [None, None];
        for reading in readings {
            if let Some(sum) = sums.get_mut(usize::from(reading.subject == Subject::Target))
                && reading.subject != Subject::Process
            {
                add(sum.get_or_insert_with(|| Reading::new(reading.subject, String::new())), &reading);
            }
            hour.note(step, reading);
        }
        sums.into_iter().flatten().for_each(|sum| hour.note(step, sum));
        hour.divide_rings();
    }

    /// The sum of a field over the last steps; 0 of those that were not measured.
    pub(super) fn sum(&self, subject: Subject, name: &str, field: Field, span: Duration) -> f64 {
        self.values(subject, name, field, span).into_iter().flatten().fold(0.0, |sum, value| sum + f64::from(value))
    }

    /// The greatest value of a field in the last steps.
    pub(super) fn max(&self, subject: Subject, name: &str, field: Field, span: Duration) -> u32 {
        self.values(subject, name, field, span).into_iter().flatten().max().unwrap_or(0)
    }

    /// By how much a gauge has grown over the last steps.
    pub(super) fn growth(&self, subject: Subject, name: &str, field: Field, span: Duration) -> f64 {
        let values: Vec<_> = self.values(subject, name, field, span).into_iter().flatten().collect();
        let [first, .., last] = values[..] else { return 0.0 };
        f64::from(last) - f64::from(first)
    }

    /// The values of a field in the last steps, the oldest first. Empty of a subject without a ring.
    pub(super) fn values(&self, subject: Subject, name: &str, field: Field, span: Duration) -> Vec<Option<u32>> {
        let hour = self.0.lock();
        let (Some(last), Some(ring)) = (hour.step, hour.ring(subject, name)) else { return Vec::new() };
        let steps = i64::try_from(span.as_secs().div_ceil(STEP.as_secs())).unwrap_or(0);
        let value = |step: i64| ring.get(slot(step) + field as usize).copied().filter(|value| *value != NONE);
        (last + 1 - steps..=last).map(value).collect()
    }

    /// The names of the subjects of a kind that have a ring.
    pub(super) fn names(&self, subject: Subject) -> Vec<String> {
        let hour = self.0.lock();
        let of = hour.subjects.iter().filter(|((kind, name), one)| {
            *kind == subject && one.ring.is_some() && (!name.is_empty() || subject == Subject::Process)
        });
        of.map(|((_, name), _)| name.clone()).collect()
    }

    /// The end of the last step.
    pub(super) fn until(&self) -> Option<UnixMillis> {
        let step = self.0.lock().step?;
        Some(UnixMillis((step + 1) * i64::try_from(STEP.as_millis()).unwrap_or(i64::MAX)))
    }
}

impl Hour {
    /// Empties the steps that were not measured.
    fn advance(&mut self, step: i64) {
        let first = match self.step {
            Some(last) if last <= step => last + 1,
            Some(_) | None => i64::MIN,
        };
        let first = first.max(step.saturating_sub(STEPS as i64 - 1));
        for ring in self.subjects.values_mut().filter_map(|one| one.ring.as_mut()) {
            for empty in first..=step {
                let at = slot(empty);
                ring[at..at + FIELDS].fill(NONE);
            }
        }
        self.step = Some(step);
    }

    fn note(&mut self, step: i64, reading: Reading) {
        let key = (reading.subject, reading.name.clone());
        let new = || Measured { before: Reading::new(key.0, String::new()), traffic: 0.0, ring: None };
        let one = self.subjects.entry(key.clone()).or_insert_with(new);
        let grown = grown(&one.before, &reading);
        let pushes: u32 = grown[..5].iter().fold(0, |sum, count| sum.saturating_add(*count));
        one.traffic = one.traffic * FADING + f64::from(pushes);
        if let Some(ring) = &mut one.ring {
            let at = slot(step);
            for (index, (value, new)) in ring[at..at + FIELDS].iter_mut().zip(grown).enumerate() {
                let adds = index < Field::Gauge as usize || index > Field::P99 as usize;
                *value = if adds && *value != NONE { value.saturating_add(new).min(NONE - 1) } else { new };
            }
        }
        one.before = reading;
    }

    /// Gives a ring to each subject; where there are too many, to those with the most traffic.
    fn divide_rings(&mut self) {
        while self.subjects.values().filter(|one| one.ring.is_some()).count() < RINGS {
            let Some(next) = self.busiest_without() else { return };
            next.ring = Some(vec![NONE; FIELDS * STEPS]);
        }
        let least = self.subjects.iter().filter(|((_, name), one)| !name.is_empty() && one.ring.is_some());
        let Some((key, traffic)) = least
            .min_by(|(_, one), (_, other)| one.traffic.total_cmp(&other.traffic))
            .map(|(key, one)| (key.clone(), one.traffic))
        else {
            return;
        };
        // Twice as much, so that two do not take turns.
        let Some(next) = self.busiest_without().filter(|next| next.traffic > 2.0 * traffic + 1.0) else { return };
        next.ring = Some(vec![NONE; FIELDS * STEPS]);
        if let Some(one) = self.subjects.get_mut(&key) {
            one.ring = None;
        }
    }

    /// Of those without a ring; the sums and the process come first.
    fn busiest_without(&mut self) -> Option<&mut Measured> {
        let without = self.subjects.iter_mut().filter(|(_, one)| one.ring.is_none());
        let rank = |name: &str, one: &Measured| if name.is_empty() { f64::INFINITY } else { one.traffic };
        let busiest = without
            .max_by(|((_, one), of_one), ((_, other), of_other)| rank(one, of_one).total_cmp(&rank(other, of_other)));
        busiest.map(|(_, one)| one)
    }

    fn ring(&self, subject: Subject, name: &str) -> Option<&Vec<u32>> {
        // A range, as the key of a pair needs an owned name.
        let one = self.subjects.iter().find(|((kind, of), _)| *kind == subject && of == name)?.1;
        one.ring.as_ref()
    }
}

/// Where the values of a step begin.
fn slot(step: i64) -> usize {
    usize::try_from(step.rem_euclid(STEPS as i64)).unwrap_or(0) * FIELDS
}

/// The fields of the step between two readings.
fn grown(before: &Reading, now: &Reading) -> [u32; FIELDS] {
    let mut fields = [0; FIELDS];
    for (index, field) in fields.iter_mut().take(5).enumerate() {
        *field = capped(now.counters[index].saturating_sub(before.counters[index]));
    }
    [fields[Field::Gauge as usize], fields[Field::Dead as usize]] = now.gauges.map(capped);
    let times = between(&before.times, &now.times);
    // 0 where nothing was counted, which is no time: of a step without attempts there is none.
    let micros = |share: f64| quantile(&times, share).map_or(NONE, |seconds| capped((seconds * 1e6) as u64));
    (fields[Field::Median as usize], fields[Field::P99 as usize]) = (micros(0.5), micros(0.99));
    let (measured, limit) = match now.subject {
        Subject::Account => (times, SLOW[0]),
        Subject::Target => (between(&before.logins, &now.logins), SLOW[1]),
        Subject::Process => (times, SLOW[2]),
    };
    fields[Field::Timed as usize] = capped(measured.last().map_or(0, |(_, count)| *count));
    fields[Field::Slow as usize] = capped((slower(&measured, limit) * 10.0).round() as u64);
    fields
}

fn capped(count: u64) -> u32 {
    u32::try_from(count).unwrap_or(NONE).min(NONE - 1)
}

/// The observations between two readings.
fn between(before: &Buckets, now: &Buckets) -> Buckets {
    let known = |index: usize| before.get(index).map_or(0, |(_, count)| *count);
    now.iter().enumerate().map(|(index, (bound, count))| (*bound, count.saturating_sub(known(index)))).collect()
}

/// The time in seconds that this share of the observations stayed below, as Prometheus estimates it; at most the last
/// bound.
fn quantile(buckets: &Buckets, share: f64) -> Option<f64> {
    let rank = buckets.last().map_or(0.0, |(_, count)| *count as f64) * share;
    let (mut below, mut bound_below) = (0.0, 0.0);
    for (bound, count) in buckets.iter().map(|(bound, count)| (*bound, *count as f64)) {
        if count >= rank && count > 0.0 {
            let within = if count > below { (rank - below) / (count - below) } else { 1.0 };
            return Some(if bound.is_finite() { bound_below + (bound - bound_below) * within } else { bound_below });
        }
        (below, bound_below) = (count, bound);
    }
    None
}

/// How many observations took longer, by the same estimate.
fn slower(buckets: &Buckets, limit: f64) -> f64 {
    let total = buckets.last().map_or(0.0, |(_, count)| *count as f64);
    let (mut below, mut bound_below) = (0.0, 0.0);
    for (bound, count) in buckets.iter().map(|(bound, count)| (*bound, *count as f64)) {
        if bound >= limit {
            let share = if bound.is_finite() { (limit - bound_below) / (bound - bound_below) } else { 0.0 };
            return total - below - (count - below) * share;
        }
        (below, bound_below) = (count, bound);
    }
    0.0
}

/// Adds a reading to the sum of all of its kind. Whether a reply window is closed has no sum.
fn add(sum: &mut Reading, one: &Reading) {
    sum.counters.iter_mut().zip(one.counters).for_each(|(sum, count)| *sum += count);
    sum.gauges.iter_mut().zip(one.gauges).for_each(|(sum, count)| *sum += count);
    for (sum, buckets) in [(&mut sum.times, &one.times), (&mut sum.logins, &one.logins)] {
        if sum.is_empty() {
            sum.clone_from(buckets);
            continue;
        }
        sum.iter_mut().zip(buckets).for_each(|((_, sum), (_, count))| *sum += count);
    }
}

/// Measures at the end of each step, until it is dropped.
pub(super) async fn watch(context: Context) {
    loop {
        context.state.metrics.log_lines_lost.inc_by(telemetry::take_dropped());
        // Refreshes the gauges of the queue; if the store does not answer they stay, and the log says so.
        context.stats.get().await.ok();
        let now = UnixMillis::now();
        context.history.record(now, context.state.metrics.readings());
        // So that the checks know since when a condition holds.
        super::checks::current(&context).await;
        context.stats.expire().await;
        let step = i64::try_from(STEP.as_millis()).unwrap_or(i64::MAX);
        let rest = u64::try_from(step - UnixMillis::now().0.rem_euclid(step)).unwrap_or(1000);
        tokio::time::sleep(Duration::from_millis(rest)).await;
    }
}

pub(super) async fn list(context: Context, request: Request) -> Result<Response, Error> {
    let query: BTreeMap<String, String> = endpoint::query(&request)?;
    endpoint::json(&show(&context, query.get("of").map_or("", String::as_str))?)
}

/// The answer to `/api/history` for `account:NAME`, `target:NAME` or `total`.
pub(super) fn show(context: &Context, of: &str) -> Result<Value, Error> {
    let span = STEP * u32::try_from(STEPS).unwrap_or(u32::MAX);
    if context.history.until().is_none() {
        // Asked before the first step has begun.
        context.history.record(UnixMillis::now(), context.state.metrics.readings());
    }
    let subjects: Vec<(Subject, &str)> = match of.split_once(':') {
        None if of == "total" => vec![(Subject::Account, ""), (Subject::Target, "")],
        Some(("account", name)) if !name.is_empty() => vec![(Subject::Account, name)],
        Some(("target", name)) if !name.is_empty() => vec![(Subject::Target, name)],
        Some(_) | None => return Err(Error::HistoryOf),
    };
    let mut shown = Map::new();
    for (subject, name) in &subjects {
        for (series, field, divisor) in series(*subject) {
            let values = context.history.values(*subject, name, *field, span);
            if values.is_empty() && !name.is_empty() {
                return Err(Error::NoHistory);
            }
            // Both kinds have times: those of the targets are of attempts.
            let key = if shown.contains_key(*series) { format!("attempt_{series}") } else { (*series).to_owned() };
            shown.insert(key, values.into_iter().map(|value| scaled(value, *divisor)).collect());
        }
    }
    let until = context.history.until();
    Ok(json!({ "of": of, "until": until, "step_seconds": STEP.as_secs(), "series": shown }))
}

fn scaled(value: Option<u32>, divisor: u32) -> Value {
    match value {
        None => Value::Null,
        Some(value) if divisor == 1 => value.into(),
        Some(value) => (f64::from(value) / f64::from(divisor)).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    fn at(step: i64) -> UnixMillis {
        UnixMillis(1_795_161_600_000 + step * 10_000)
    }

    fn crm(delivered: u64, pending: u64) -> Reading {
        let times = vec![(0.1, delivered / 2), (0.5, delivered), (f64::INFINITY, delivered)];
        Reading { counters: [delivered, 0, 0, 0, 0], gauges: [pending, 0], times, ..named("crm") }
    }

    fn named(name: &str) -> Reading {
        Reading::new(Subject::Target, name.to_owned())
    }

    fn values(history: &History, field: Field, span: Duration) -> Vec<Option<u32>> {
        history.values(Subject::Target, "crm", field, span)
    }

    #[test]
    fn a_step_has_what_was_counted_in_it_and_gaps_are_absent() {
        let history = History::new();
        for (step, delivered) in [(0, 5), (1, 7), (3, 7), (4, 17)] {
            history.record(at(step), vec![crm(delivered, delivered + 1)]);
        }
        let (none, some) = (None, Some);
        // The ring begins with the second reading.
        assert_eq!(values(&history, Field::Done, MINUTE), [none, none, some(2), none, some(0), some(10)]);
        assert_eq!(values(&history, Field::Gauge, MINUTE), [none, none, some(8), none, some(8), some(18)]);
        assert_eq!(history.sum(Subject::Target, "crm", Field::Done, MINUTE), 12.0);
        assert_eq!(history.sum(Subject::Target, "crm", Field::Done, STEP), 10.0);
        assert_eq!(history.growth(Subject::Target, "crm", Field::Gauge, MINUTE), 10.0);
        assert_eq!(history.values(Subject::Target, "", Field::Done, STEP), [some(10)], "the sum of all");
        assert_eq!(history.until(), Some(at(5)));
        history.record(at(4), vec![crm(20, 3)]);
        assert_eq!(values(&history, Field::Done, STEP), [some(13)], "the same step");
        assert_eq!(values(&history, Field::Gauge, STEP), [some(3)]);
    }

    #[test]
    fn an_hour_is_kept_and_a_long_gap_or_a_clock_set_back_leaves_none() {
        let history = History::new();
        let hour = MINUTE * 60;
        let known = || values(&history, Field::Done, hour).into_iter().flatten().count();
        (0..1000).for_each(|step| history.record(at(step), vec![crm(0, 0)]));
        assert_eq!((values(&history, Field::Done, hour).len(), known()), (360, 360));
        history.record(at(1180), vec![crm(0, 0)]);
        assert_eq!(known(), 180, "half an hour is absent, and the first half hour gone");
        history.record(at(100_000), vec![crm(0, 0)]);
        assert_eq!(known(), 1);
        history.record(at(50_000), vec![crm(0, 0)]);
        assert_eq!(known(), 1);
    }

    #[test]
    fn times_are_estimated_within_their_buckets() {
        let history = History::new();
        history.record(at(0), vec![crm(0, 0)]);
        history.record(at(1), vec![crm(100, 0)]);
        assert_eq!(values(&history, Field::Median, STEP), [Some(100_000)]);
        assert_eq!(values(&history, Field::P99, STEP), [Some(492_000)], "the 99th of 50 between 0.1 and 0.5 s");
        history.record(at(2), vec![crm(100, 0)]);
        assert_eq!(values(&history, Field::P99, STEP), [None], "no attempt was made");
        let buckets = vec![(2.5, 90), (5.0, 100), (f64::INFINITY, 104)];
        assert!((slower(&buckets, 3.0) - 12.0).abs() < 1e-9, "4, and 8 of the 10 between 2.5 and 5 s");
        assert_eq!((slower(&buckets, 5.0), slower(&Vec::new(), 1.0)), (4.0, 0.0));
        assert_eq!(quantile(&buckets, 0.99), Some(5.0), "at most the last bound");
    }

    #[test]
    fn the_busiest_have_rings() {
        let history = History::new();
        let many = |busy: u64| {
            let one = |number: u64| {
                let counters = [if number == 7 { busy } else { 0 }, 0, 0, 0, 0];
                Reading { counters, ..named(&format!("target-{number:02}")) }
            };
            (0..100).map(one).collect::<Vec<_>>()
        };
        history.record(at(0), many(0));
        history.record(at(1), many(0));
        assert_eq!(history.names(Subject::Target).len(), RINGS - 1, "and the sum has one");
        assert!(history.values(Subject::Target, "target-07", Field::Done, STEP).is_empty());
        history.record(at(2), many(50));
        history.record(at(3), many(60));
        assert_eq!(history.names(Subject::Target).len(), RINGS - 1);
        assert_eq!(history.values(Subject::Target, "target-07", Field::Done, STEP), [Some(10)]);
    }
}
