//! The checks agree with the alerts, and each holds exactly where its alert's condition does.

use std::collections::{BTreeMap, BTreeSet};

use super::judge::{Facts, MARK_FAIL_SHARE, SLOW_LOGINS_QUANTILE, SLOW_QUANTILE, TargetFact, judge};
use super::rules::RULES;
use super::{Check, Since};
use crate::admin::history::{History, SLOW};
use crate::clock::UnixMillis;
use crate::metrics::{Gauges, Reading, Subject};
use crate::queue::Stats;
use crate::queue::view::{Counts, TargetStats};

const ALERTS: &str = include_str!("../../../deploy/prometheus/alerts.yml");

/// The alerts that a process cannot judge of itself, and why.
const LEFT_OUT: [(&str, &str); 3] = [
    ("WxrelayDown", "a process that does not answer cannot say so"),
    ("WxrelayNoPushes", "compares with yesterday and with a week ago; the history is of an hour"),
    ("WxrelayCertificateNotIssued", "counts the orders of a day; the history is of an hour"),
];

struct Alert {
    expr: String,
    /// In seconds.
    hold: u32,
    severity: String,
    runbook: String,
}

/// The alerts of the file, by name.
fn alerts() -> BTreeMap<String, Alert> {
    let entries = ALERTS.split("\n      - alert: ").skip(1);
    let parse = |entry: &str| {
        let (name, body) = entry.split_once('\n').unwrap();
        let after = |key: &str| body.split_once(&format!("\n        {key}")).map(|(_, rest)| rest);
        let (expr, _) = body.split_once("\n        labels:").unwrap();
        let expr: Vec<_> = expr.split_once("expr:").unwrap().1.split_whitespace().collect();
        let hold = after("for: ").map_or(0, |rest| {
            let word = rest.lines().next().unwrap();
            let (number, unit) = word.split_at(word.len() - 1);
            number.parse::<u32>().unwrap()
                * [("m", 60), ("h", 3600), ("d", 86_400)].iter().find(|one| one.0 == unit).unwrap().1
        });
        let severity = body.split_once("severity: ").unwrap().1.split(' ').next().unwrap().to_owned();
        let runbook = body.split_once("runbook: ").unwrap().1.lines().next().unwrap();
        let alert = Alert { expr: expr.join(" "), hold, severity, runbook: serde_json::from_str(runbook).unwrap() };
        (name.trim().to_owned(), alert)
    };
    entries.map(parse).collect()
}

#[test]
fn every_alert_is_a_check_or_left_out_for_a_reason() {
    let known: BTreeSet<_> = RULES.iter().map(|rule| rule.alert).chain(LEFT_OUT.map(|(name, _)| name)).collect();
    assert_eq!(known.len(), RULES.len() + LEFT_OUT.len(), "one is named twice");
    let alerts = alerts();
    assert!(alerts.len() > 25, "only {} alerts are found in the file", alerts.len());
    assert_eq!(alerts.keys().map(String::as_str).collect::<BTreeSet<_>>(), known);
}

#[test]
fn a_check_has_the_thresholds_and_the_runbook_of_its_alert() {
    let alerts = alerts();
    for rule in &RULES {
        let alert = &alerts[rule.alert];
        let severity = if rule.is_page { "page" } else { "ticket" };
        assert_eq!((severity, rule.hold), (&*alert.severity, alert.hold), "{}", rule.alert);
        let mut runbook = alert.runbook.clone();
        for label in ["account", "target"] {
            runbook = runbook.replace(&format!("{{{{ $labels.{label} }}}}"), "{}");
        }
        assert_eq!(rule.runbook, runbook, "{}", rule.alert);
        for part in conditions(rule.id) {
            assert!(alert.expr.contains(&part), "{}: `{part}` is not in `{}`", rule.alert, alert.expr);
        }
    }
}

/// What the expression of an alert says, with the figures of its check.
fn conditions(id: &str) -> Vec<String> {
    let rule = super::rules::rule(id);
    let (limit, window) = (rule.limit, window(rule.window));
    let of_pushes = |results: &str| format!("result=~\"{results}\"}}[{window}])) > {limit}");
    let quantile = |quantile: f64, limit: f64| {
        vec![format!("histogram_quantile({quantile}, "), format!("[{window}]))) > {limit}")]
    };
    let one = |part: String| vec![part];
    match id {
        "not-ready" => one(format!("(wxrelay_ready) == {limit}")),
        "pushes-not-stored" => one(of_pushes("unavailable|late|internal")),
        "mark-fail-risk" => {
            let all = format!("> {MARK_FAIL_SHARE} * sum by (account) (increase(wxrelay_push_duration_seconds_count");
            vec![of_pushes("unavailable|late|internal|hung_up"), all]
        }
        "pushes-refused" => {
            let refused = format!("result!~\"verified|accepted|duplicate|hung_up\"}}[{window}])) > {limit} * sum");
            one(refused)
        }
        "slow-answers" => [quantile(SLOW_QUANTILE, SLOW[0]), quantile(SLOW_QUANTILE, limit)].concat(),
        "logins-slow" => [quantile(SLOW_LOGINS_QUANTILE, SLOW[1]), quantile(SLOW_LOGINS_QUANTILE, limit)].concat(),
        "disk-slow" => [quantile(SLOW_QUANTILE, SLOW[2]), quantile(SLOW_QUANTILE, limit)].concat(),
        "reply-window-closed" => one(format!("(wxrelay_reply_window_open[{window}])) == {limit}")),
        "unaccounted" => one(format!("(wxrelay_unaccounted_deliveries) > {limit}")),
        "store-damaged" => one(format!("wxrelay_store_damaged > {limit}")),
        "target-down" => vec![
            "(wxrelay_target_up) == 0 and".to_owned(),
            format!("(wxrelay_pending) > {limit} unless max by (job, target) (wxrelay_target_paused) == 1"),
        ],
        "logins-expired" => one(format!("outcome=\"expired\"}}[{window}])) > {limit}")),
        "backlog" => vec![
            format!("(wxrelay_oldest_pending_seconds) > {limit} unless"),
            "(wxrelay_target_paused) == 1".to_owned(),
        ],
        "target-paused" => one(format!("(wxrelay_target_paused) == {limit}")),
        "dead-letters" => one(format!("(wxrelay_dead) > {limit}")),
        "dead-letters-growing" => one(format!("(delta(wxrelay_dead[{window}])) > {limit}")),
        "store-filling" => one(format!("(wxrelay_queue_bytes > {limit} * wxrelay_queue_max_bytes)")),
        "disk-filling" => {
            assert_eq!(limit, 1024.0 * 1024.0 * 1024.0);
            // The prediction from six hours is left out.
            one("wxrelay_disk_free_bytes < 1024 * 1024 * 1024 or predict_linear".to_owned())
        }
        "store-away" => one(format!("(wxrelay_store_up) == {limit}")),
        "spooling" => one(format!("(wxrelay_spool_events) > {limit}")),
        "no-standby" => one(format!("(wxrelay_store_standby) == {limit}")),
        "xmin-held" => one(format!("(wxrelay_store_xmin_age_seconds) > {limit}")),
        "replica-gone" => one(format!("< max by (job) (max_over_time(wxrelay_replicas[{window}]))")),
        "config-drift" => one(format!("(wxrelay_replicas_differ) > {limit}")),
        "clock-skew" => one(format!("(abs(wxrelay_clock_skew_seconds)) > {limit}")),
        "spans-lost" => one(format!("(wxrelay_spans_total{{result!=\"exported\"}}[{window}])) > {limit}")),
        "log-lines-lost" => one(format!("(wxrelay_log_lines_lost_total[{window}])) > {limit}")),
        "certificate-ends" => one("- time() < wxrelay_tls_expiry_timestamp_seconds - wxrelay_tls".to_owned()),
        "certificate-ends-soon" => one(format!("- wxrelay_tls_renew_by_timestamp_seconds) / {limit}")),
        other => panic!("the condition of {other} is not compared"),
    }
}

/// As Prometheus writes it.
fn window(seconds: u32) -> String {
    if seconds.is_multiple_of(3600) { format!("{}h", seconds / 3600) } else { format!("{}m", seconds / 60) }
}

fn at(step: i64) -> UnixMillis {
    UnixMillis(1_795_161_600_000 + step * 10_000)
}

fn quiet(history: &History) -> Facts<'_> {
    let (targets, gauges) = (Vec::new(), Gauges { queue_max_bytes: Some(1000.0), ..Gauges::default() });
    Facts { now: at(100), obstacle: None, stats: None, targets, gauges, spooled: 0, history }
}

fn ids(found: &[Check]) -> Vec<(&str, &str)> {
    found.iter().map(|check| (check.rule.id, &*check.subject)).collect()
}

/// A history of two readings of one subject, the first of zeros.
fn history(subject: Subject, counters: [u64; 5], gauges: [u64; 2], times: [u64; 3]) -> History {
    let history = History::new();
    let name = if subject == Subject::Process { "" } else { "one" };
    let [at_most_half, at_most_3, all] = times;
    let buckets = vec![(0.5, at_most_half), (3.0, at_most_3), (f64::INFINITY, all)];
    let reading =
        Reading { counters, gauges, times: buckets.clone(), logins: buckets, ..Reading::new(subject, name.to_owned()) };
    history.record(at(98), vec![Reading::new(subject, name.to_owned())]);
    history.record(at(99), vec![Reading::new(subject, name.to_owned())]);
    history.record(at(100), vec![reading]);
    history
}

#[test]
fn pushes_are_judged_by_what_was_counted() {
    let found = |counters: [u64; 5], times: [u64; 3]| {
        let history = history(Subject::Account, counters, [0, 0], times);
        ids(&judge(&quiet(&history)))
            .iter()
            .map(|(id, subject)| {
                assert_eq!(*subject, "one");
                (*id).to_owned()
            })
            .collect::<Vec<_>>()
    };
    assert!(found([100, 10, 20, 0, 5], [130, 130, 130]).is_empty());
    assert_eq!(found([100, 0, 0, 1, 0], [101, 101, 101]), ["pushes-not-stored"]);
    assert!(found([100, 0, 0, 0, 10], [100, 100, 100]).is_empty(), "10 are not more than 10");
    assert_eq!(found([100, 0, 0, 0, 11], [100, 100, 100]), ["mark-fail-risk"]);
    assert!(found([200, 0, 0, 0, 11], [200, 200, 200]).is_empty(), "a small share");
    assert_eq!(found([10, 0, 11, 0, 0], [21, 21, 21]), ["pushes-refused"]);
    assert!(found([100, 0, 0, 0, 0], [0, 99, 100]).is_empty(), "1 of 100");
    assert_eq!(found([100, 0, 0, 0, 0], [0, 98, 100]), ["slow-answers"]);
    let closed = history(Subject::Account, [0; 5], [1, 0], [0; 3]);
    assert_eq!(ids(&judge(&quiet(&closed))), [("reply-window-closed", "one")]);
}

#[test]
fn targets_are_judged_by_their_state_and_their_deliveries() {
    let history = History::new();
    let counts = Counts { pending: 3, dead: 2, ..Counts::default() };
    let stored = |name: &str, waited: i64| TargetStats {
        target: name.to_owned(),
        counts,
        oldest_pending: Some(UnixMillis(at(100).0 - waited * 1000)),
    };
    let stats = Stats {
        events: 1,
        unaccounted: 0,
        bytes: 801,
        targets: vec![stored("crm", 900), stored("login", 901), stored("idle", 901)],
        held_replies: BTreeMap::new(),
        damaged: vec!["damaged-1".to_owned()],
    };
    let fact = |name: &str, paused: bool, is_down: bool| {
        let (name, since, error) = (name.to_owned(), Some(at(7)), "answered 503".to_owned());
        TargetFact { name, paused, is_down, since, error }
    };
    let facts = Facts {
        stats: Some(&stats),
        targets: vec![fact("crm", false, true), fact("login", true, true), fact("new", false, true)],
        ..quiet(&history)
    };
    let found = judge(&facts);
    assert_eq!(
        ids(&found),
        [
            ("store-damaged", ""),
            ("store-filling", ""),
            ("target-down", "crm"),
            ("target-paused", "login"),
            ("dead-letters", "crm"),
            ("dead-letters", "login"),
            ("backlog", "idle"),
            ("dead-letters", "idle"),
        ]
    );
    assert_eq!(
        (found[2].text(), found[2].since),
        ("down, and 3 deliveries are pending: answered 503".to_owned(), Some(at(7)))
    );
    assert_eq!(found[1].text(), "the store takes 80 % of queue.max_size");
    assert_eq!(found[6].text(), "a delivery has waited for 15m 1s");
    let attempts = super::tests::history(Subject::Target, [0, 0, 1, 0, 0], [0, 11], [0, 18, 20]);
    let expected = [("logins-expired", "one"), ("logins-slow", "one"), ("dead-letters-growing", "one")];
    assert_eq!(ids(&judge(&quiet(&attempts))), expected);
}

#[test]
fn the_machine_and_the_cluster_are_judged_by_their_gauges() {
    let process = history(Subject::Process, [1, 1, 0, 0, 0], [2, 0], [98, 100, 100]);
    let now = at(100).0 as f64 / 1000.0;
    let gauges = Gauges {
        certificates: vec![
            ("a".to_owned(), now + 699.0, now),
            ("b".to_owned(), now + 7000.0, now + 6000.0),
            ("c".to_owned(), now + 60.0, now - 700.0),
            ("d".to_owned(), now + 500.0, now - 200.0),
        ],
        clock_skew: -61.0,
        disk_free: Some(1_073_741_823.0),
        queue_max_bytes: None,
        store_up: Some(0.0),
        standby: Some(0.0),
        xmin_age: Some(601.0),
        replicas_differ: Some(1.0),
    };
    let facts = Facts { obstacle: Some("disk-full"), gauges, spooled: 1, ..quiet(&process) };
    let found = judge(&facts);
    let expected = [
        ("not-ready", ""),
        ("disk-filling", ""),
        ("store-away", ""),
        ("no-standby", ""),
        ("spooling", ""),
        ("xmin-held", ""),
        ("config-drift", ""),
        ("clock-skew", ""),
        ("disk-slow", ""),
        ("spans-lost", ""),
        ("log-lines-lost", ""),
        ("certificate-ends-soon", "c"),
        ("certificate-ends", "d"),
    ];
    assert_eq!(ids(&found), expected);
    assert_eq!(found[0].text(), "no pushes are accepted: disk-full");
    process.record(at(101), vec![Reading { gauges: [1, 0], ..Reading::new(Subject::Process, String::new()) }]);
    assert_eq!(ids(&judge(&quiet(&process))).first(), Some(&("disk-slow", "")));
    assert!(ids(&judge(&quiet(&process))).contains(&("replica-gone", "")));
}

#[test]
fn a_check_fires_when_it_has_held_for_as_long_as_its_alert_waits() {
    let since = Since::default();
    let held = |step: i64, holds: bool| {
        let mut found: Vec<_> = holds.then(|| Check::new("dead-letters", "crm", 1.0)).into_iter().collect();
        since.note(&mut found, at(step));
        found.pop().map(|check| (check.since, check.is_firing(at(step))))
    };
    assert_eq!(held(0, true), Some((Some(at(0)), false)));
    assert_eq!(held(29, true), Some((Some(at(0)), false)));
    assert_eq!(held(30, true), Some((Some(at(0)), true)));
    assert_eq!(held(31, false), None);
    assert_eq!(held(32, true), Some((Some(at(32)), false)), "it began anew");
    let mut at_once = [Check::new("store-damaged", "", 1.0)];
    since.note(&mut at_once, at(1));
    assert!(at_once[0].is_firing(at(1)));
}
