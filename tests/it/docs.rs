//! The pages of guarantees and threats stay correct: every test and script that they name exists, in both languages.
//!
//! Names on a line with a number that is not measured yet (`@@NAME@@`) are not checked.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use crate::support::pages::{read, root};

/// English, Chinese.
const PAGES: [[&str; 2]; 2] =
    [["docs/guarantees.md", "docs/guarantees.zh-CN.md"], ["SECURITY.md", "SECURITY.zh-CN.md"]];

#[test]
fn every_test_that_the_guarantees_name_exists() {
    let mut looked_at = 0;
    for page in PAGES.concat() {
        let before = looked_at;
        for reference in spans(&settled(page)).iter().filter_map(|span| span.split_once(".rs::")) {
            let (file, test) = (source(reference.0), reference.1);
            let text =
                fs::read_to_string(root().join(&file)).unwrap_or_else(|error| panic!("{page}: {file:?}: {error}"));
            assert!(is_test(&text, test), "{page} names {test}, which is no test of {}", file.display());
            looked_at += 1;
        }
        assert!(looked_at > before + 40, "{page} names only {} tests", looked_at - before);
    }
}

#[test]
fn every_command_that_the_guarantees_name_exists() {
    let mut looked_at = 0;
    for page in PAGES.concat() {
        for span in spans(&settled(page)) {
            let words: Vec<_> = span.split(' ').collect();
            match words[..] {
                [runner @ ("tests/crash/run.sh" | "tests/cluster/run.sh"), python, ..] => {
                    let path = root().join(runner).with_file_name(python);
                    let text = fs::read_to_string(path).unwrap_or_else(|error| panic!("{page}: {span}: {error}"));
                    let flags = words[2..].iter().filter(|word| word.starts_with("--"));
                    flags.for_each(|flag| assert!(text.contains(&format!("\"{flag}\"")), "{page}: {span}: {flag}"));
                    if let Some(kinds) = span.split_once("--kinds ").map(|(_, kinds)| kinds) {
                        assert!(text.contains(&format!("\"{kinds}\": (")), "{page}: {span}: {kinds}");
                    }
                }
                ["cargo", "bench", "--bench", name] if root().join("benches").is_dir() => {
                    assert!(root().join(format!("benches/{name}.rs")).is_file(), "{page}: {span}");
                }
                ["cargo", "test", "--test", "it", part, ..] if !part.contains("::") => {
                    assert!(root().join(format!("tests/it/{part}.rs")).is_file(), "{page}: {span}");
                }
                [path] if path.starts_with("tests/") || path.starts_with('.') && path.contains('/') => {
                    assert!(path.contains("::") || root().join(path).is_file(), "{page}: {span}");
                }
                _ => continue,
            }
            looked_at += 1;
        }
    }
    assert!(looked_at > 20, "only {looked_at} commands are named");
}

#[test]
fn both_languages_name_the_same() {
    for pages in PAGES {
        let [english, chinese] = pages.map(|page| {
            let text = read(page);
            let figures = text.split("@@").skip(1).step_by(2).map(|name| format!("@@{name}@@"));
            let shown = |span: &String| span.contains("::") || span.contains(' ') || span.contains('/');
            spans(&text).into_iter().filter(shown).chain(figures).collect::<BTreeSet<_>>()
        });
        let apart: Vec<_> = english.symmetric_difference(&chinese).collect();
        assert!(apart.is_empty(), "{pages:?}, in one language only: {apart:#?}");
        let [english, chinese] = pages.map(|page| read(page).lines().filter(|line| line.starts_with("| ")).count());
        assert_eq!(english, chinese, "{pages:?}: lines of tables");
    }
}

#[test]
fn the_guarantees_are_found_from_the_front_pages() {
    for (page, link) in [
        ("README.md", "(docs/guarantees.md)"),
        ("README.zh-CN.md", "(docs/guarantees.zh-CN.md)"),
        ("ARCHITECTURE.md", "(docs/guarantees.md)"),
        ("docs/guarantees.md", "(guarantees.zh-CN.md)"),
        ("docs/guarantees.zh-CN.md", "(guarantees.md)"),
        ("README.md", "(SECURITY.md)"),
        ("README.zh-CN.md", "(SECURITY.zh-CN.md)"),
        ("docs/security.md", "(../SECURITY.md)"),
        ("docs/security.zh-CN.md", "(../SECURITY.zh-CN.md)"),
    ] {
        assert!(read(page).contains(link), "{page} has no link {link}");
    }
}

#[test]
fn every_file_that_contributors_pages_name_exists() {
    for page in ["ARCHITECTURE.md", "CONTRIBUTING.md"] {
        let mut checked = 0;
        for span in spans(&read(page)) {
            let path = span.split([' ', ',']).next().unwrap_or_default();
            let is_file =
                [".rs", ".sql", ".py", ".sh", ".md"].iter().any(|end| path.ends_with(end)) || path.ends_with('/');
            if is_file && path.contains('/') {
                let found = ["", "src", "src/queue"].iter().any(|folder| root().join(folder).join(path).exists());
                assert!(found, "{page} names {path}, which does not exist");
                checked += 1;
            }
        }
        assert!(checked > 15, "{page} names only {checked} files");
    }
}

#[test]
fn names_of_tests_are_distinguished_from_other_functions() {
    let text = "#[test]\nfn one_is() {}\n#[tokio::test(flavor = \"x\")]\nasync fn two_is() {}\nfn three_is_not() {}\n    \
                #[test]\n    #[cfg(unix)]\n    fn four_is(a in b()) {}\nasync fn five_is(engine: E) {}\non_every_engine!(\n    \
                five_is,\n    six_is_not,\n);\n";
    let tests = [("one_is", true), ("two_is", true), ("three_is_not", false), ("four_is", true), ("one", false)];
    for (name, is) in tests.into_iter().chain([("five_is", true), ("six_is_not", false)]) {
        assert_eq!(is_test(text, name), is, "{name}");
    }
}

/// Whether a source has a test of that name: a function with a test attribute above it, or in the list of those that are
/// made a test for each engine.
fn is_test(text: &str, name: &str) -> bool {
    let head = format!("fn {name}(");
    let lines: Vec<_> = text.lines().map(str::trim_start).collect();
    let Some(at) = lines.iter().position(|line| line.trim_start_matches("async ").starts_with(&head)) else {
        return false;
    };
    let listed = text.split_once("\non_every_engine!(").map_or("", |(_, list)| list);
    if listed.split(|c: char| !c.is_alphanumeric() && c != '_').any(|word| word == name) {
        return true;
    }
    let attributes = lines[..at].iter().rev().take_while(|line| line.starts_with('#') || line.starts_with("//"));
    attributes.into_iter().any(|line| line.starts_with("#[test]") || line.starts_with("#[tokio::test"))
}

/// The texts in backquotes on a line.
fn spans(text: &str) -> Vec<String> {
    let of_line = |line: &str| line.split('`').skip(1).step_by(2).map(str::to_owned).collect::<Vec<_>>();
    // The line that explains the form names no test.
    text.lines().flat_map(of_line).filter(|span| !span.ends_with("::name") && !span.ends_with(" name")).collect()
}

/// A page without the lines that have no numbers yet.
fn settled(page: &str) -> String {
    let text = read(page);
    text.lines().filter(|line| !line.contains("@@")).collect::<Vec<_>>().join("\n")
}

/// The file of a reference; without a folder, it is in the folder of this file.
fn source(name: &str) -> PathBuf {
    let folder = if name.contains('/') { "" } else { "tests/it" };
    Path::new(folder).join(format!("{name}.rs"))
}
