//! CI: each step belongs to exactly one group, and the workflow runs every group.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use crate::support::program::is_missing;

#[test]
fn the_workflow_runs_each_group_of_the_check() {
    if is_missing("bash") {
        return;
    }
    let listed = String::from_utf8(check(&["--list"]).stdout).expect("text");
    let steps: Vec<_> = listed.lines().filter_map(|line| line.split_once(' ')).collect();
    assert!(steps.len() > 15, "only {listed}");
    let names: BTreeSet<_> = steps.iter().map(|(_, name)| name.trim_start()).collect();
    assert_eq!(names.len(), steps.len(), "a step is in two groups: {listed}");
    let groups: BTreeSet<_> = steps.iter().map(|(group, _)| *group).collect();

    let workflow = Path::new(env!("CARGO_MANIFEST_DIR")).join(".github/workflows/ci.yml");
    let workflow = fs::read_to_string(workflow).expect("the workflow can be read");
    let matrix = workflow.split_once("group: [").and_then(|(_, rest)| rest.split_once(']')).expect("a matrix").0;
    assert_eq!(matrix.split(", ").collect::<BTreeSet<_>>(), groups);
}

#[test]
fn an_unknown_group_is_refused_with_the_groups_there_are() {
    if is_missing("bash") {
        return;
    }
    let refused = check(&["format", "nonsense"]);
    let error = String::from_utf8_lossy(&refused.stderr);
    assert_eq!(refused.status.code(), Some(2), "{error}");
    assert!(error.contains("'nonsense'") && error.contains("format, test, crash"), "{error}");
    assert!(refused.stdout.is_empty(), "nothing has run");
}

fn check(arguments: &[&str]) -> Output {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join(".ci/run");
    Command::new("bash").arg(script).args(arguments).output().expect("bash runs")
}
