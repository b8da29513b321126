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
fn a_release_is_made_as_changes_are_checked() {
    let workflow = |name: &str| {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(".github/workflows").join(name);
        fs::read_to_string(path).expect("the workflow can be read")
    };
    let (ci, release) = (workflow("ci.yml"), workflow("release.yml"));
    let compiler = |text: &str| text.lines().find(|line| line.starts_with("  RUST: ")).map(str::to_owned);
    assert!(compiler(&ci).is_some() && compiler(&ci) == compiler(&release), "the compiler is another one: {release}");
    let actions = |text: &str| {
        let used = text.lines().filter_map(|line| line.trim_start_matches([' ', '-']).strip_prefix("uses: "));
        used.filter_map(|used| used.split_once('@'))
            .map(|(name, version)| (name.to_owned(), version.to_owned()))
            .collect()
    };
    let (known, used): (Vec<_>, Vec<_>) = (actions(&ci), actions(&release));
    for (name, version) in &used {
        assert!(version.starts_with('v') && version.len() > 1, "{name} is not pinned: {version}");
        let other = known.iter().find(|(known, _)| known == name);
        assert!(other.is_none_or(|(_, other)| other == version), "{name}: {version} and {other:?}");
    }
    assert!(!used.is_empty() && release.contains("deploy/release.sh --tag"), "{release}");
    // The versions of the programs that it installs are those of `.ci/run`.
    let script = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(".ci/run")).expect("it can be read");
    for name in ["DEB_VERSION", "CYCLONEDX_VERSION"] {
        assert!(script.contains(&format!("\n{name}=")) && release.contains(&format!("${name}")), "{name}");
    }
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
