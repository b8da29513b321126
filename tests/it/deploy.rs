//! Files in `deploy/` name only metrics that exist.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// The process metrics of the crate `prometheus`.
const PROCESS: [&str; 2] = ["process_resident_memory_bytes", "process_cpu_seconds_total"];

#[test]
fn dashboards_and_alerts_name_metrics_of_the_relay_and_leave_none_out() {
    let source = read("src/metrics/mod.rs");
    let is_name = |word: &&str| word.starts_with("wxrelay_") && !word.contains(['{', ' ']);
    let known: BTreeSet<_> = source.split('"').filter(is_name).map(str::to_owned).collect();
    assert!(known.len() > 20, "only {known:?}");
    let mut shown = BTreeSet::new();
    for file in ["deploy/prometheus/alerts.yml", "deploy/prometheus/alerts_test.yml", "deploy/grafana/dashboard.json"] {
        let text = read(file);
        let names: BTreeSet<_> = metrics(&text).collect();
        assert!(names.len() > 15, "{file}: only {names:?}");
        for name in names {
            let base = ["_bucket", "_count", "_sum"].iter().find_map(|part| name.strip_suffix(part)).unwrap_or(name);
            let is_known = known.contains(base) || known.contains(name) || PROCESS.contains(&name);
            assert!(is_known, "{file} names {name}, which src/metrics/mod.rs does not know");
            shown.insert(base.to_owned());
        }
    }
    let unseen: Vec<_> = known.difference(&shown).collect();
    assert!(unseen.is_empty(), "neither on the dashboard nor in an alert: {unseen:?}");
}

/// The names of metrics in a text, without values such as `job="wxrelay"`.
fn metrics(text: &str) -> impl Iterator<Item = &str> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    words.filter(|word| word.starts_with("wxrelay_") || word.starts_with("process_"))
}

fn read(file: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(file);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}
