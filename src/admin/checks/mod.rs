//! What needs a hand: the conditions of `deploy/prometheus/alerts.yml` that one process can judge.
//!
//! Counters are summed up over the [history](super::history); the store's figures are those of all replicas.

mod judge;
mod rules;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::time::Duration;

use axum::extract::Request;
use axum::response::Response;
use parking_lot::Mutex;
use serde_json::{Value, json};

use super::{Context, Error, endpoint};
use crate::clock::UnixMillis;
use crate::ordered;

use judge::{Facts, TargetFact, judge};
pub(super) use rules::{Rule, Unit};

/// A check whose condition holds.
pub(super) struct Check {
    pub(super) rule: &'static Rule,
    /// The account, the target or the certificate; empty for the relay.
    pub(super) subject: String,
    /// What the rule's text has.
    pub(super) value: f64,
    /// What the text ends with: why pushes are not accepted, or the last error of a target.
    pub(super) detail: String,
    /// Since when it holds, as far as this process knows.
    pub(super) since: Option<UnixMillis>,
}

/// Since when each check holds, by its id and its subject.
#[derive(Default)]
pub(super) struct Since(Mutex<BTreeMap<(&'static str, String), UnixMillis>>);

impl Check {
    fn new(id: &'static str, subject: &str, value: f64) -> Self {
        let rule = rules::rule(id);
        Self { rule, subject: subject.to_owned(), value, detail: String::new(), since: None }
    }

    pub(super) fn severity(&self) -> &'static str {
        if self.rule.is_page { "page" } else { "ticket" }
    }

    /// What is wrong, in English.
    pub(super) fn text(&self) -> String {
        let text = self.rule.text.replace("{}", &self.shown_value());
        if self.detail.is_empty() { text } else { format!("{text}: {}", self.detail) }
    }

    /// The value with its unit.
    pub(super) fn shown_value(&self) -> String {
        match self.rule.unit {
            Unit::Count => self.value.round().to_string(),
            Unit::Seconds => shown_span(self.value),
            Unit::Share => format!("{:.0} %", self.value * 100.0),
            Unit::Bytes => bytesize::ByteSize(self.value as u64).to_string(),
        }
    }

    /// What to do.
    pub(super) fn runbook(&self) -> String {
        self.rule.runbook.replace("{}", &self.subject)
    }

    /// Whether it has held for as long as the alert waits.
    pub(super) fn is_firing(&self, now: UnixMillis) -> bool {
        let hold = Duration::from_secs(self.rule.hold.into());
        hold.is_zero() || self.since.is_some_and(|since| now.since(since) >= hold)
    }

    fn json(&self, now: UnixMillis) -> Value {
        let subject = Some(&*self.subject).filter(|subject| !subject.is_empty());
        json!({
            "id": self.rule.id, "alert": self.rule.alert, "severity": self.severity(), "subject": subject,
            "value": self.value, "text": self.text(), "since": self.since, "firing": self.is_firing(now),
            "runbook": self.runbook(),
        })
    }
}

/// A span in its two largest units.
pub(super) fn shown_span(seconds: f64) -> String {
    let whole = seconds.max(0.0) as u64;
    let (minutes, hours, days) = (whole / 60, whole / 3600, whole / 86_400);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{whole}s"),
        (0, 0, _) => format!("{minutes}m {}s", whole % 60),
        (0, ..) => format!("{hours}h {}m", minutes % 60),
        _ => format!("{days}d {}h", hours % 24),
    }
}

/// The checks whose conditions hold now: those that wake somebody up first.
pub(super) async fn current(context: &Context) -> Vec<Check> {
    let now = UnixMillis::now();
    let obstacle = context.obstacle().await;
    let stats = context.stats.get().await.ok();
    let configured = (context.state.targets)().unwrap_or_default();
    let fact = |target: super::ConfiguredTarget| {
        let found = (context.state.target)(&target.name)?.health.findings(now);
        let error = found.failures.first().map(|failure| failure.error.clone()).unwrap_or_default();
        Some(TargetFact { name: target.name, paused: target.paused, is_down: found.is_down, since: found.since, error })
    };
    let facts = Facts {
        now,
        obstacle,
        stats: stats.as_deref(),
        targets: configured.into_iter().filter_map(fact).collect(),
        gauges: context.state.metrics.gauges(),
        spooled: context.state.queue.spool().map_or(0, |spool| spool.events),
        history: &context.history,
    };
    let mut found = judge(&facts);
    context.since.note(&mut found, now);
    ordered::sort(&mut found, |one, other| other.rule.is_page.cmp(&one.rule.is_page));
    found
}

impl Since {
    /// Sets since when each check holds; one that does not hold any more begins anew.
    fn note(&self, found: &mut [Check], now: UnixMillis) {
        let mut known = self.0.lock();
        let before = std::mem::take(&mut *known);
        for check in found {
            let key = (check.rule.id, check.subject.clone());
            let since = check.since.or_else(|| before.get(&key).copied()).unwrap_or(now);
            check.since = Some(since);
            known.insert(key, since);
        }
    }
}

pub(super) async fn list(context: Context, _: Request) -> Result<Response, Error> {
    endpoint::json(&show(&context).await)
}

/// The answer to `/api/checks`.
pub(super) async fn show(context: &Context) -> Value {
    let (found, now) = (current(context).await, UnixMillis::now());
    json!({ "checks": found.iter().map(|check| check.json(now)).collect::<Vec<_>>() })
}
