//! Which checks hold, from the figures. Pure.

use std::time::Duration;

use super::Check;
use super::rules::rule;
use crate::admin::history::{Field, History, STEP};
use crate::clock::UnixMillis;
use crate::metrics::{Gauges, Subject};
use crate::queue::Stats;

/// Of the answers: above this share of failures MarkFail is near.
pub(super) const MARK_FAIL_SHARE: f64 = 0.1;
/// The quantiles of what is too slow: answers and commits, and logins.
pub(super) const SLOW_QUANTILE: f64 = 0.99;
pub(super) const SLOW_LOGINS_QUANTILE: f64 = 0.95;

/// What is judged.
pub(super) struct Facts<'f> {
    pub(super) now: UnixMillis,
    /// Why pushes are not accepted.
    pub(super) obstacle: Option<&'static str>,
    /// `None` while the store does not answer.
    pub(super) stats: Option<&'f Stats>,
    /// The configured ones.
    pub(super) targets: Vec<TargetFact>,
    pub(super) gauges: Gauges,
    /// Events in the spool.
    pub(super) spooled: u64,
    pub(super) history: &'f History,
}

/// A configured target.
pub(super) struct TargetFact {
    pub(super) name: String,
    pub(super) paused: bool,
    pub(super) is_down: bool,
    pub(super) since: Option<UnixMillis>,
    /// The last one.
    pub(super) error: String,
}

/// The checks that hold, in the order of the rules.
pub(super) fn judge(facts: &Facts<'_>) -> Vec<Check> {
    let mut found = Vec::new();
    if let Some(obstacle) = facts.obstacle {
        found.push(Check { detail: obstacle.to_owned(), ..Check::new("not-ready", "", 1.0) });
    }
    for account in facts.history.names(Subject::Account) {
        judge_account(facts.history, &account, &mut found);
    }
    judge_store(facts, &mut found);
    judge_targets(facts, &mut found);
    for target in facts.history.names(Subject::Target) {
        judge_attempts(facts.history, &target, &mut found);
    }
    judge_gauges(facts, &mut found);
    judge_process(facts.history, &mut found);
    judge_certificates(facts, &mut found);
    found
}

/// Pushes the check if its value is above its limit.
fn above(found: &mut Vec<Check>, id: &'static str, subject: &str, value: f64) {
    if value > rule(id).limit {
        found.push(Check::new(id, subject, value));
    }
}

fn window(id: &str) -> Duration {
    Duration::from_secs(rule(id).window.into())
}

fn judge_account(history: &History, account: &str, found: &mut Vec<Check>) {
    let sum = |id: &str, fields: &[Field]| -> f64 {
        fields.iter().map(|field| history.sum(Subject::Account, account, *field, window(id))).sum()
    };
    above(found, "pushes-not-stored", account, sum("pushes-not-stored", &[Field::Failed]));
    let failed = sum("mark-fail-risk", &[Field::Failed, Field::HungUp]);
    if failed > MARK_FAIL_SHARE * sum("mark-fail-risk", &[Field::Timed]) {
        above(found, "mark-fail-risk", account, failed);
    }
    let refused = sum("pushes-refused", &[Field::Third, Field::Failed]);
    let other = sum("pushes-refused", &[Field::Done, Field::Second, Field::HungUp]);
    above(found, "pushes-refused", account, share(refused, refused + other));
    slow(history, (Subject::Account, account), "slow-answers", SLOW_QUANTILE, found);
    let closed = history.max(Subject::Account, account, Field::Gauge, window("reply-window-closed"));
    above(found, "reply-window-closed", account, closed.into());
}

/// Pushes the check if more than the rest above the quantile took longer than the limit, which the history counts.
fn slow(history: &History, of: (Subject, &str), id: &'static str, quantile: f64, found: &mut Vec<Check>) {
    let sum = |field: Field| history.sum(of.0, of.1, field, window(id));
    let value = share(sum(Field::Slow) / 10.0, sum(Field::Timed));
    if value > 1.0 - quantile {
        found.push(Check::new(id, of.1, value));
    }
}

fn share(part: f64, of: f64) -> f64 {
    if of > 0.0 { part / of } else { 0.0 }
}

fn judge_store(facts: &Facts<'_>, found: &mut Vec<Check>) {
    let Some(stats) = facts.stats else { return };
    above(found, "unaccounted", "", stats.unaccounted as f64);
    above(found, "store-damaged", "", stats.damaged.len() as f64);
    if let Some(most) = facts.gauges.queue_max_bytes {
        above(found, "store-filling", "", share(stats.bytes as f64, most));
    }
}

fn judge_targets(facts: &Facts<'_>, found: &mut Vec<Check>) {
    let stored = facts.stats.map_or(&[][..], |stats| &stats.targets);
    let pending = |name: &str| {
        let target = stored.iter().find(|target| target.target == name);
        target.map_or(0.0, |target| target.counts.pending as f64)
    };
    for target in &facts.targets {
        let value = pending(&target.name);
        if target.is_down && !target.paused && value > rule("target-down").limit {
            let (detail, since) = (target.error.clone(), target.since);
            found.push(Check { detail, since, ..Check::new("target-down", &target.name, value) });
        }
        if target.paused {
            found.push(Check { since: target.since, ..Check::new("target-paused", &target.name, value) });
        }
    }
    for target in stored {
        let is_paused = facts.targets.iter().any(|one| one.name == target.target && one.paused);
        let waited = target.oldest_pending.map_or(0.0, |received| facts.now.since(received).as_secs_f64());
        if !is_paused {
            above(found, "backlog", &target.target, waited);
        }
        above(found, "dead-letters", &target.target, target.counts.dead as f64);
    }
}

fn judge_attempts(history: &History, target: &str, found: &mut Vec<Check>) {
    let expired = history.sum(Subject::Target, target, Field::Third, window("logins-expired"));
    above(found, "logins-expired", target, expired);
    slow(history, (Subject::Target, target), "logins-slow", SLOW_LOGINS_QUANTILE, found);
    let grown = history.growth(Subject::Target, target, Field::Dead, window("dead-letters-growing"));
    above(found, "dead-letters-growing", target, grown);
}

fn judge_gauges(facts: &Facts<'_>, found: &mut Vec<Check>) {
    let gauges = &facts.gauges;
    if let Some(free) = gauges.disk_free.filter(|free| *free < rule("disk-filling").limit) {
        found.push(Check::new("disk-filling", "", free));
    }
    for (id, gauge) in [("store-away", gauges.store_up), ("no-standby", gauges.standby)] {
        if gauge.is_some_and(|value| value == rule(id).limit) {
            found.push(Check::new(id, "", 1.0));
        }
    }
    above(found, "spooling", "", facts.spooled as f64);
    above(found, "xmin-held", "", gauges.xmin_age.unwrap_or(0.0));
    above(found, "config-drift", "", gauges.replicas_differ.unwrap_or(0.0));
    above(found, "clock-skew", "", gauges.clock_skew.abs());
}

fn judge_process(history: &History, found: &mut Vec<Check>) {
    slow(history, (Subject::Process, ""), "disk-slow", SLOW_QUANTILE, found);
    let last = history.max(Subject::Process, "", Field::Gauge, STEP);
    let most = history.max(Subject::Process, "", Field::Gauge, window("replica-gone"));
    above(found, "replica-gone", "", f64::from(most) - f64::from(last));
    for (id, field) in [("spans-lost", Field::Done), ("log-lines-lost", Field::Second)] {
        above(found, id, "", history.sum(Subject::Process, "", field, window(id)));
    }
}

/// A certificate that expires soon is named once.
fn judge_certificates(facts: &Facts<'_>, found: &mut Vec<Check>) {
    for (cert, end, renew_by) in &facts.gauges.certificates {
        let (rest, margin) = (end - facts.now.0 as f64 / 1000.0, end - renew_by);
        let id = if rest < margin / rule("certificate-ends-soon").limit {
            "certificate-ends-soon"
        } else if rest < margin {
            "certificate-ends"
        } else {
            continue;
        };
        found.push(Check::new(id, cert, rest));
    }
}
