//! Texts for people use the words of CONTRIBUTING.md's glossary, and none of the phrases below.
//!
//! The tests check string literals of the sources (log messages, errors, help, metric help, all others), doc comments
//! of commands, pages in both languages, and the files in `deploy/`. They do not check tests.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use crate::support::pages::{read, root};
use crate::support::rust_source::{Context, doc_comments, literals, without_placeholders, without_tests};
use crate::tidy::files;

/// Phrases that the glossary replaces, in lower case. Each matches whole words.
const ENGLISH: &[&str] = &[
    "taken up",
    "take up again",
    "takes up again",
    "took up",
    "looked at",
    "looks at",
    "told of",
    "tells",
    "tells of",
    "says so",
    "stands in",
    "stand in",
    "stood in",
    "mend",
    "mends",
    "mended",
    "mending",
    "no good",
    "certificate has ended",
    "comes too late",
    "came too late",
    "held back",
    "holds back",
    "let go of",
    "lets go of",
    "given back",
    "gives back",
    "handed back",
    "hands back",
    "kept back",
    "brought up to date",
    "brings up to date",
    "earlier releases refuse",
    "earlier release refuses",
    "release before refuses",
    "makes room",
    "make room",
    "made room",
    "finds no room",
    "found no room",
    "who waits",
    "who comes",
    "stranger",
    "strangers",
    "crowd",
    "crowds",
    "in company",
    "linger",
    "lingers",
    "patient",
    "hurried",
    "by hand",
    "person's hand",
    "hand of a person",
    "by a person",
    "wait for a person",
    "waits for a person",
    "deed",
    "deeds",
    "whoever",
    "wanted",
    "to be had",
    "be of use",
    "is of use",
    "are of use",
    "goes on",
    "anew",
    "stays out",
    "namesake",
    "namesakes",
    "the one before",
    "the other one",
    "so many at a time",
    "at most so long",
    "for so long",
    "bug of the relay itself",
    "its log says more",
    "watch already",
    "no more can",
    "none the worse",
    "ballast",
    "shortage",
    "door test",
    "door tests",
    "twin",
    "twins",
    "this house",
];

/// The same for Chinese: words that a native operator stumbles over, or second terms for one thing.
const CHINESE: &[&str] = &[
    "站在",
    "替身",
    "账目",
    "下落不明",
    "没能打开",
    "灌水",
    "进不来",
    "出不去",
    "活儿",
    "会留着",
    "身份提供方",
    "守护程序",
    "重载",
    "处理方",
    "本机回环",
];

#[test]
fn texts_for_people_use_the_words_of_the_glossary() {
    let mut counts = BTreeMap::new();
    let mut found = Vec::new();
    for text in sources().into_iter().chain(pages()).chain(shipped()) {
        *counts.entry(text.kind).or_insert(0) += 1;
        found.extend(phrases_in(&text.text).into_iter().map(|hit| format!("{}: {:?}: {hit}", text.origin, text.kind)));
    }
    for (kind, least) in LEAST {
        let count = counts.get(&kind).copied().unwrap_or(0);
        assert!(count >= least, "only {count} texts of kind {kind:?}: were they moved?");
    }
    assert!(found.is_empty(), "{} phrases (see CONTRIBUTING.md for the words):\n{}", found.len(), found.join("\n"));
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Log,
    Error,
    Help,
    MetricHelp,
    Literal,
    EnglishPage,
    ChinesePage,
    OpenApi,
    Alerts,
    Dashboard,
    ConfigExample,
    DeployFile,
}

/// The minimum number of texts of each kind.
const LEAST: [(Kind, usize); 12] = [
    (Kind::Log, 40),
    (Kind::Error, 40),
    (Kind::Help, 100),
    (Kind::MetricHelp, 20),
    (Kind::Literal, 500),
    (Kind::EnglishPage, 10),
    (Kind::ChinesePage, 8),
    (Kind::OpenApi, 1),
    (Kind::Alerts, 1),
    (Kind::Dashboard, 1),
    (Kind::ConfigExample, 1),
    (Kind::DeployFile, 10),
];

struct Text {
    kind: Kind,
    /// File, and line where it is known.
    origin: String,
    text: String,
}

impl Text {
    fn of_file(kind: Kind, path: &Path) -> Self {
        let origin = path.strip_prefix(root()).unwrap_or(path).display().to_string();
        Self { kind, text: read(&origin), origin }
    }
}

/// The phrases of both lists in a text, each with its context.
fn phrases_in(text: &str) -> Vec<String> {
    let plain = text.split_whitespace().collect::<Vec<_>>().join(" ").to_lowercase();
    let mut hits = Vec::new();
    for &phrase in ENGLISH {
        let matches = plain.match_indices(phrase).map(|(at, _)| at);
        hits.extend(matches.filter(|&at| is_whole(&plain, at, phrase.len())).map(|at| (at, phrase)));
    }
    for &phrase in CHINESE {
        hits.extend(plain.match_indices(phrase).map(|(at, _)| (at, phrase)));
    }
    hits.into_iter().map(|(at, phrase)| format!("\"{phrase}\" in \"{}\"", around(&plain, at, phrase.len()))).collect()
}

/// Whether a match is not part of a longer word or of a file name such as `wxrelay.ballast`.
fn is_whole(text: &str, at: usize, length: usize) -> bool {
    let in_word = |c: char| c.is_alphanumeric() || c == '_';
    let before = text[..at].chars().next_back();
    let after = text[at + length..].chars().next();
    !before.is_some_and(|c| in_word(c) || c == '.') && !after.is_some_and(in_word)
}

/// A match with some characters on both sides.
fn around(text: &str, at: usize, length: usize) -> String {
    let start = text[..at].char_indices().rev().nth(30).map_or(0, |(index, _)| index);
    let rest = &text[at + length..];
    let end = rest.char_indices().nth(30).map_or(rest.len(), |(index, _)| index);
    text[start..at + length + end].to_owned()
}

/// String literals of the sources outside tests, and doc comments of commands.
fn sources() -> Vec<Text> {
    let mut texts = Vec::new();
    for path in files(&root().join("src"), "rs") {
        let name = path.strip_prefix(root()).expect("it is below the root").display().to_string();
        let is_test = ["tests.rs", "conformance.rs", "queue/fixture.rs"].iter().any(|end| name.ends_with(end));
        if is_test || name.starts_with("src/simulation/") {
            continue;
        }
        let in_commands = name.starts_with("src/cli/");
        let source = without_tests(&read(&name));
        for (line, context, text) in literals(&source) {
            let kind = match context {
                Context::Log => Kind::Log,
                Context::Error => Kind::Error,
                Context::Other if name == "src/metrics/mod.rs" => Kind::MetricHelp,
                Context::Other if in_commands => Kind::Help,
                Context::Other => Kind::Literal,
            };
            texts.push(Text { kind, origin: format!("{name}:{line}"), text: without_placeholders(&text) });
        }
        if in_commands {
            let docs = doc_comments(&source).into_iter();
            texts.extend(docs.map(|(line, text)| Text { kind: Kind::Help, origin: format!("{name}:{line}"), text }));
        }
    }
    texts
}

/// The pages in both languages. The style table of CONTRIBUTING.md shows bad examples on purpose.
fn pages() -> Vec<Text> {
    let mut paths = files(&root().join("docs"), "md");
    paths.extend(files(&root().join("deploy"), "md"));
    let top = fs::read_dir(root()).expect("the root can be read").map(|entry| entry.expect("an entry").path());
    paths.extend(top.filter(|path| path.extension().is_some_and(|extension| extension == "md")));
    let page = |path: PathBuf| {
        let is_chinese = path.to_string_lossy().ends_with(".zh-CN.md");
        let kind = if is_chinese { Kind::ChinesePage } else { Kind::EnglishPage };
        let mut text = Text::of_file(kind, &path);
        if path.ends_with("CONTRIBUTING.md") {
            let (before, rest) = text.text.split_once("\n## Style\n").expect("CONTRIBUTING.md has a section Style");
            let (_, after) = rest.split_once("\n## ").expect("a section follows");
            text.text = format!("{before}\n{after}");
        }
        text
    };
    paths.into_iter().map(page).collect()
}

/// Files beside the sources that operators read.
fn shipped() -> Vec<Text> {
    let named = [
        (Kind::OpenApi, "src/admin/openapi.json"),
        (Kind::Alerts, "deploy/prometheus/alerts.yml"),
        (Kind::Dashboard, "deploy/grafana/dashboard.json"),
        (Kind::ConfigExample, "config.toml.example"),
    ];
    let one = |(kind, path)| Text::of_file(kind, &root().join(path));
    let mut texts: Vec<_> = named.into_iter().map(one).collect();
    let other = |path: &PathBuf| {
        named.iter().all(|(_, known)| !path.ends_with(known)) && !path.to_string_lossy().ends_with(".md")
    };
    let deploy = files(&root().join("deploy"), "").into_iter().filter(other);
    texts.extend(deploy.map(|path| Text::of_file(Kind::DeployFile, &path)));
    texts
}

#[test]
fn the_glossary_has_both_languages_and_the_recipes_exist() {
    let page = read("CONTRIBUTING.md");
    let (_, glossary) = page.split_once("\n## Glossary\n").expect("CONTRIBUTING.md has a glossary");
    let rows: Vec<_> = glossary.lines().filter(|line| line.starts_with("| ")).skip(1).collect();
    assert!(rows.len() >= 55, "only {} words", rows.len());
    for row in rows {
        let cells: Vec<_> = row.trim_matches('|').split(" | ").map(str::trim).collect();
        assert!(cells.len() == 3 && cells.iter().all(|cell| !cell.is_empty()), "{row}");
        assert!(cells[1].chars().any(|c| c > '\u{2e7f}'), "no Chinese in {row}");
    }
    let recipes = read("justfile");
    let named: Vec<_> = page.split("`just ").skip(1).filter_map(|rest| rest.split([' ', '`']).next()).collect();
    assert!(named.len() >= 8, "only {named:?}");
    for name in named {
        let defined = |line: &str| line.starts_with(&format!("{name}:")) || line.starts_with(&format!("{name} "));
        assert!(recipes.lines().any(defined), "the justfile has no {name}");
    }
}

#[test]
fn each_phrase_is_found_when_it_is_planted() {
    for &phrase in ENGLISH {
        let hits = phrases_in(&format!("Then it was {}, again.", phrase.to_uppercase().replacen(' ', "\n", 1)));
        assert!(hits.iter().any(|hit| hit.starts_with(&format!("\"{phrase}\""))), "{phrase}: {hits:?}");
    }
    for &phrase in CHINESE {
        assert_eq!(phrases_in(&format!("这是{phrase}。")).len(), 1, "{phrase}");
    }
}

#[test]
fn longer_words_and_file_names_are_no_hit() {
    for good in [
        "unwanted",
        "recommend",
        "indeed",
        "wxrelay.ballast",
        "held_back",
        "impatient",
        "foretells",
        "twinkle",
        "renewal",
    ] {
        assert_eq!(phrases_in(&format!("a {good} thing")), Vec::<String>::new(), "{good}");
    }
}
