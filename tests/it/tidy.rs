//! House rules for the source, held by reading it.
//!
//! A loop that finds nothing to look at fails, so that a moved folder cannot silence a rule.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// The floor of every part: a part may name parts of lower floors, and none of its own beyond what
/// [`neighbours`] allows.
const FLOORS: [(u8, &[&str]); 6] = [
    (5, &["main", "cli"]),
    (4, &["app", "config", "simulation"]),
    (3, &["server", "admin", "push", "dispatcher", "otlp"]),
    (2, &["queue", "deliver", "tail"]),
    (1, &["wechat", "route", "backoff", "event", "trace"]),
    (0, &["secret", "reading", "clock", "metrics", "telemetry"]),
];

/// Whether a part may name another one of its own floor: the lines and the stores do not know each other, nor does the
/// ground; `admin` says by `server`'s type where it listens.
fn neighbours(floor: u8, part: &str, other: &str) -> bool {
    matches!(floor, 5 | 4 | 1) || (part, other) == ("admin", "server")
}

#[test]
fn parts_name_only_parts_of_lower_floors() {
    let mut looked_at = 0;
    for source in sources("src") {
        let part = source.part();
        if part == "lib" {
            continue;
        }
        let floor = floor(&part);
        for other in named_parts(&source.code()) {
            looked_at += 1;
            let below = self::floor(&other);
            let allowed = other == part || below < floor || below == floor && neighbours(floor, &part, &other);
            assert!(allowed, "{}: floor {floor} names crate::{other} of floor {below}", source.path.display());
        }
    }
    assert!(looked_at > 20, "only {looked_at} names: is the source where it was?");
}

#[test]
fn every_part_stands_on_a_floor() {
    let parts: BTreeSet<_> = sources("src").iter().map(Source::part).filter(|part| part != "lib").collect();
    assert!(parts.len() > 10, "only {parts:?}");
    for part in parts {
        floor(&part);
    }
}

#[test]
fn every_file_begins_by_saying_what_it_holds() {
    for source in all() {
        let first = source.text.lines().find(|line| !line.is_empty()).unwrap_or_default();
        assert!(first.starts_with("//! "), "{} has no `//!` head", source.path.display());
    }
}

#[test]
fn no_file_is_longer_than_500_lines() {
    for source in all() {
        let lines = source.text.lines().count();
        assert!(lines <= 500, "{} has {lines} lines", source.path.display());
    }
}

#[test]
fn nothing_is_left_to_do() {
    let marks = [
        concat!("TO", "DO"),
        concat!("FIX", "ME"),
        concat!("XX", "X"),
        concat!("todo", "!("),
        concat!("unimple", "mented!("),
    ];
    for source in all() {
        for mark in marks {
            assert!(!source.text.contains(mark), "{} has a {mark}", source.path.display());
        }
    }
}

#[test]
fn every_folder_shows_itself_as_mod_rs() {
    let mut looked_at = 0;
    for source in all() {
        let folder = source.path.parent().expect("a file is in a folder");
        if ["src", "tests/it", "benches"].iter().any(|top| folder.ends_with(top)) {
            continue;
        }
        looked_at += 1;
        // A program of its own begins with `main.rs`.
        let shows = ["mod.rs", "main.rs"].iter().any(|file| folder.join(file).is_file());
        assert!(shows, "{} has no mod.rs", folder.display());
        assert!(!folder.with_extension("rs").exists(), "{} is both a folder and a file", folder.display());
    }
    assert!(looked_at > 10, "only {looked_at} files in folders");
}

#[test]
fn no_part_is_a_drawer_for_everything() {
    let drawers = ["utils", "util", "common", "helpers", "core", "manager", "types", "misc"];
    for source in all() {
        let mut names = source.path.iter().map(|name| name.to_string_lossy());
        let drawer = names.find(|name| drawers.contains(&name.trim_end_matches(".rs")));
        assert_eq!(drawer, None, "{}", source.path.display());
    }
}

#[test]
fn every_folder_of_test_data_holds_files() {
    let folders = ["tests/data", "tests/data/config/valid", "tests/data/config/invalid", "tests/data/store"];
    for folder in folders {
        let files = files(&root().join(folder), "").len();
        assert!(files > 0, "{folder} is empty");
    }
    for path in files(&root().join("tests/data/config/invalid"), "toml") {
        let text = fs::read_to_string(&path).expect("a file can be read");
        assert!(text.starts_with("# expect: "), "{} does not say what is expected", path.display());
    }
    assert!(root().join("config.toml.example").is_file());
}

/// A source file of ours.
struct Source {
    /// From the root of the repository.
    path: PathBuf,
    text: String,
}

impl Source {
    /// The part of the house it belongs to: the folder or the file under `src`.
    fn part(&self) -> String {
        let below = self.path.strip_prefix("src").expect("only sources have a part");
        let first = below.iter().next().expect("a file has a name").to_string_lossy();
        first.trim_end_matches(".rs").to_owned()
    }

    /// The text without comments.
    fn code(&self) -> String {
        let lines = self.text.lines().map(|line| line.split("//").next().unwrap_or_default());
        lines.collect::<Vec<_>>().join("\n")
    }
}

/// The parts that a text names: `crate::x` and `crate::{x::.., y::..}`, also by the crate's name.
fn named_parts(code: &str) -> BTreeSet<String> {
    let mut parts = BTreeSet::new();
    for prefix in ["crate::", "wxrelay::"] {
        for (at, _) in code.match_indices(prefix) {
            let rest = &code[at + prefix.len()..];
            match rest.strip_prefix('{') {
                Some(group) => parts.extend(group_heads(group)),
                None => parts.extend(Some(head(rest))),
            }
        }
    }
    parts.retain(|part| part.chars().next().is_some_and(char::is_lowercase));
    parts
}

/// The first names of a use group's items, up to its closing brace.
fn group_heads(group: &str) -> Vec<String> {
    let (mut depth, mut heads, mut item) = (0, Vec::new(), String::new());
    for c in group.chars() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            ',' if depth == 0 => heads.push(head(&std::mem::take(&mut item))),
            _ if depth == 0 => item.push(c),
            _ => {}
        }
    }
    heads.push(head(&item));
    heads
}

fn head(path: &str) -> String {
    path.trim_start().chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()
}

#[test]
fn names_are_found_alone_and_in_groups() {
    let code = "use crate::queue::{Lease, DeliveryState};\nuse crate::{wechat::Mode, event::{Event, EventId},\n clock};\n\
                fn f(x: crate::route::Table) {}\nuse wxrelay::cli;\ncrate::Type::new();";
    let expected = ["cli", "clock", "event", "queue", "route", "wechat"].map(str::to_owned);
    assert_eq!(named_parts(code), expected.into());
}

fn floor(part: &str) -> u8 {
    let floor = FLOORS.iter().find(|(_, parts)| parts.contains(&part));
    floor.unwrap_or_else(|| panic!("`{part}` stands on no floor: put it into FLOORS and ARCHITECTURE.md")).0
}

fn all() -> Vec<Source> {
    [sources("src"), sources("tests"), sources("benches")].into_iter().flatten().collect()
}

fn sources(folder: &str) -> Vec<Source> {
    let paths = files(&root().join(folder), "rs");
    assert!(!paths.is_empty(), "no source in {folder}");
    let read = |path: PathBuf| {
        let text = fs::read_to_string(&path).expect("a source can be read");
        Source { path: path.strip_prefix(root()).expect("it is below the root").to_owned(), text }
    };
    paths.into_iter().map(read).collect()
}

/// The files below a folder whose names end so.
fn files(folder: &Path, extension: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut found = Vec::new();
    for entry in entries {
        let path = entry.expect("a folder can be read").path();
        if path.is_dir() {
            found.extend(files(&path, extension));
        } else if extension.is_empty() || path.extension().is_some_and(|have| have == extension) {
            found.push(path);
        }
    }
    found
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}
