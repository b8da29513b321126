//! The reference pages list every name in the sources, and no other: keys of the configuration, metrics, alerts, routes
//! of the API, commands. A new name needs a line in the page of its kind, in both languages.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use figment::providers::{Format as _, Toml};
use serde_json::{Map, Value};

use crate::support::command::{run, wxrelay};
use crate::support::pages::{all_pages, pages, prose, read};
use crate::support::relay::Relay;
use crate::support::wechat::WeChat;

/// English, Chinese.
const TAILS: [&str; 2] = [".md", ".zh-CN.md"];

/// The values of the column "takes effect", by language.
const EFFECTS: [[&str; 2]; 2] = [["reload", "restart"], ["重新加载", "重启"]];

/// The longest line of prose, in characters.
const WIDTH: usize = 120;

/// The most lines of the front page.
const FRONT_PAGE: usize = 180;

#[test]
fn every_key_of_the_configuration_is_in_the_reference() {
    let (example, text) = (example(), read("config.toml.example"));
    // Some keys are only in the text of a comment.
    let mentioned = |key: &str| text.contains(&format!("`{} = ", key.rsplit('.').next().unwrap_or_default()));
    let mut compared = 0;
    for (tail, effects) in TAILS.into_iter().zip(EFFECTS) {
        let page = format!("docs/configuration{tail}");
        let reference = reference(&page, effects);
        for (table, keys) in example.iter().filter(|(table, _)| !table.ends_with("routes")) {
            let known = reference.get(table).unwrap_or_else(|| panic!("{page} has no section [{table}]"));
            let known = known.keys().cloned().collect();
            let apart = keys.symmetric_difference(&known).filter(|key| keys.contains(*key) || !mentioned(key));
            let apart: Vec<_> = apart.collect();
            assert!(apart.is_empty(), "{page}, [{table}]: in the page or in the example only: {apart:?}");
            compared += keys.len();
        }
        assert_eq!(reference.len(), example.len() - 1, "{page}: sections");
    }
    assert!(compared > 130, "only {compared} keys");
}

/// Compares with the changes in a test of `needs_restart`: `("KEY", "OVERRIDE", "VALUE", None | Some("KEY")),`.
#[test]
fn each_key_takes_effect_when_the_reference_says_so() {
    let source = read("src/config/restart.rs");
    let changes: Vec<_> = source.lines().map(str::trim).filter(|line| line.starts_with("(\"")).collect();
    assert!(changes.len() > 25, "only {changes:?}");
    for (tail, effects) in TAILS.into_iter().zip(EFFECTS) {
        let page = format!("docs/configuration{tail}");
        let reference = reference(&page, effects);
        for change in &changes {
            let key = change.split('"').nth(1).unwrap_or_default();
            let (section, key) = key.rsplit_once('.').expect("a key is in a section");
            let expected = effects[usize::from(change.contains("Some("))];
            let effect = reference[&section.replace(".*", ".NAME")].get(key).map(String::as_str);
            assert_eq!(effect, Some(expected), "{page}: {section}.{key}");
        }
    }
}

#[test]
fn every_key_of_a_route_is_in_the_reference() {
    let keys = &example()["accounts.NAME.routes"];
    assert!(keys.len() > 20, "only {keys:?}");
    for tail in TAILS {
        let [routing, targets] = ["routing", "targets"].map(|page| read(&format!("docs/{page}{tail}")));
        for key in keys {
            let (page, found) = match key.split_once('.') {
                None => ("routing", row(&routing, key)),
                Some(("match", key)) => ("routing", row(&routing, key)),
                // Keys of a fixed reply are in the examples of their kind.
                Some((_, key)) => ("targets", key.split('.').all(|part| has_word(&targets, part))),
            };
            assert!(found, "docs/{page}{tail} has no {key}");
        }
    }
}

#[test]
fn every_metric_is_in_the_reference() {
    let source = read("src/metrics/mod.rs");
    let named: BTreeSet<_> = source.split('"').filter(|text| text.starts_with("wxrelay_")).collect();
    assert!(named.len() > 25, "only {named:?}");
    for tail in TAILS {
        let page = format!("docs/metrics{tail}");
        let rows: Vec<_> = rows(&read(&page)).into_iter().filter(|cells| cells.len() == 4).collect();
        let listed: BTreeSet<_> = rows.iter().filter_map(|cells| code(&cells[0])).collect();
        let listed: BTreeSet<_> = listed.iter().map(String::as_str).collect();
        let apart: Vec<_> = named.symmetric_difference(&listed).collect();
        assert!(apart.is_empty(), "{page}: in the page or in src/metrics/mod.rs only: {apart:?}");
    }
}

/// Checks the metrics that a relay exports from its start.
#[tokio::test]
async fn every_metric_has_its_type() {
    let target = "[targets.crm]\nurl = \"http://127.0.0.1:9/\"\n";
    let relay = Relay::start(WeChat::secure().account() + target).await;
    let exported = relay.get("/metrics").await;
    let types: Vec<_> = exported.text().lines().filter_map(|line| line.strip_prefix("# TYPE wxrelay_")).collect();
    assert!(types.len() > 18, "only {types:?}");
    for tail in TAILS {
        let page = format!("docs/metrics{tail}");
        let listed = rows(&read(&page));
        for line in &types {
            let (name, kind) = line.split_once(' ').expect("a name and a type");
            let name = format!("wxrelay_{name}");
            let cells = listed.iter().find(|cells| cells.len() == 4 && code(&cells[0]).as_ref() == Some(&name));
            assert_eq!(cells.map(|cells| cells[1].as_str()), Some(kind), "{page}: the type of {name}");
        }
    }
}

#[test]
fn every_alert_is_in_the_reference_with_its_severity() {
    let rules = read("deploy/prometheus/alerts.yml");
    let alerts: BTreeMap<_, _> = rules
        .split("- alert: ")
        .skip(1)
        .filter_map(|rule| {
            let severity = rule.split("severity: ").nth(1)?.split([' ', '}']).next()?;
            Some((rule.lines().next()?.to_owned(), severity.to_owned()))
        })
        .collect();
    assert!(alerts.len() > 20, "only {alerts:?}");
    for tail in TAILS {
        let page = format!("docs/metrics{tail}");
        let rows = rows(&read(&page)).into_iter().filter(|cells| cells.len() == 3);
        let listed: BTreeMap<_, _> = rows
            .filter_map(|cells| Some((code(&cells[0]).filter(|name| name.starts_with("Wxrelay"))?, cells[1].clone())))
            .collect();
        assert_eq!(listed, alerts, "{page}");
    }
}

#[test]
fn every_metric_and_alert_that_a_page_names_exists() {
    let (metrics, alerts, mut looked_at) = (read("src/metrics/mod.rs"), read("deploy/prometheus/alerts.yml"), 0);
    for page in pages() {
        let text = read(&page);
        for word in text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_') {
            let known = if word.starts_with("wxrelay_") {
                metrics.contains(&format!("\"{word}\""))
            } else if word.starts_with("Wxrelay") {
                alerts.contains(&format!("alert: {word}\n"))
            } else {
                continue;
            };
            assert!(known, "{page} names {word}, which there is not");
            looked_at += 1;
        }
    }
    assert!(looked_at > 30, "only {looked_at} names");
}

/// Compares with the description that the relay itself serves.
#[tokio::test]
async fn every_route_of_the_api_is_in_the_reference() {
    let relay = Relay::start(WeChat::secure().account()).await;
    let described = relay.get("/api/openapi.json").await.json();
    let paths = described["paths"].as_object().expect("paths");
    let of_path = |(path, methods): (&String, &Value)| -> Vec<String> {
        let methods =
            methods.as_object().expect("methods").keys().filter(|key| ["get", "post"].contains(&key.as_str()));
        methods.map(|method| format!("{} {path}", method.to_uppercase())).collect()
    };
    let routes: BTreeSet<_> = paths.iter().flat_map(of_path).collect();
    assert!(routes.len() > 15, "only {routes:?}");
    for tail in TAILS {
        let page = format!("docs/api{tail}");
        let text = read(&page);
        let headings = prose(&text).into_iter().filter_map(|line| line.strip_prefix("### "));
        let listed: BTreeSet<_> = headings.filter_map(code).collect();
        assert_eq!(listed, routes, "{page}");
        for section in text.split("\n### ").skip(1) {
            let head = section.lines().next().unwrap_or_default();
            let path = head.trim_matches('`').split(['{', ' ']).nth(1).unwrap_or_default();
            let example = section.split("```sh").nth(1).and_then(|rest| rest.split("```").next()).unwrap_or_default();
            assert!(example.contains(path) && example.contains("curl"), "{page}: {head}: no example");
        }
    }
}

/// Compares with the manual, which has a page for each command.
#[tokio::test]
async fn every_command_is_in_the_reference() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut command = wxrelay(["man", "--dir"]);
    command.arg(folder.path());
    assert_eq!(run(command).await.code, Some(0), "the manual is written");
    let manual = fs::read_dir(folder.path()).expect("the folder can be read");
    let names = manual.map(|entry| entry.expect("a page").file_name().to_string_lossy().replace(".1", ""));
    let commands: BTreeSet<_> = names.filter(|name| name != "wxrelay").map(|name| name.replace('-', " ")).collect();
    assert!(commands.len() > 30, "only {commands:?}");
    for tail in TAILS {
        let page = format!("docs/commands{tail}");
        let text = read(&page);
        for command in &commands {
            // `wxrelay simulate --to URL click KEY` names `wxrelay simulate click`.
            let names = |line: &str| line.contains("wxrelay ") && command.split(' ').all(|word| has_word(line, word));
            let named = text.lines().any(names);
            assert!(named, "{page} has no `{command}`");
        }
    }
}

#[test]
fn no_line_of_prose_is_too_long() {
    let mut looked_at = 0;
    for page in all_pages() {
        let text = read(&page);
        for line in prose(&text).into_iter().filter(|line| !line.starts_with('|')) {
            assert!(line.chars().count() <= WIDTH, "{page}: more than {WIDTH} characters: {line}");
            looked_at += 1;
        }
    }
    assert!(looked_at > 1000, "only {looked_at} lines");
}

#[test]
fn the_front_page_is_short() {
    for page in ["README.md", "README.zh-CN.md"] {
        let lines = read(page).lines().count();
        assert!((60..=FRONT_PAGE).contains(&lines), "{page} has {lines} lines, at most {FRONT_PAGE} are wanted");
    }
}

/// The keys of each table of the example, including commented ones; keys of inline tables are dotted.
fn example() -> BTreeMap<String, BTreeSet<String>> {
    let mut found: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let (mut table, text) = (String::new(), read("config.toml.example"));
    for line in text.lines() {
        // A whole table may be a comment.
        let line = if line.starts_with("# [") && line.ends_with(']') { &line[2..] } else { line };
        if line.starts_with('[') {
            let name = line.trim_matches(['[', ']']);
            let parts: Vec<_> = name.split('.').collect();
            table = match parts[..] {
                [kind, _] => format!("{kind}.NAME"),
                [kind, _, rest] => {
                    found.entry(format!("{kind}.NAME")).or_default().insert(rest.to_owned());
                    format!("{kind}.NAME.{rest}")
                }
                _ => name.to_owned(),
            };
            found.entry(table.clone()).or_default();
            continue;
        }
        let line = line.strip_prefix("# ").unwrap_or(line);
        let is_key = line.split_once(" = ").is_some_and(|(key, _)| is_word(key));
        let Some(parsed) = Some(line).filter(|_| is_key).and_then(|line| Toml::from_str::<Map<_, _>>(line).ok()) else {
            continue;
        };
        flatten("", &parsed, found.get_mut(&table).expect("a key is in a table"));
    }
    found
}

fn flatten(before: &str, table: &Map<String, Value>, into: &mut BTreeSet<String>) {
    for (key, value) in table {
        let key = format!("{before}{key}");
        match value {
            Value::Object(inner) if !is_of_a_secret(inner) => flatten(&format!("{key}."), inner, into),
            _ => {}
        }
        into.insert(key);
    }
}

/// Whether a table is `{ env = ".." }` or the like, which is allowed in place of any secret.
fn is_of_a_secret(table: &Map<String, Value>) -> bool {
    table.keys().all(|key| ["env", "file", "credential"].contains(&key.as_str()))
}

/// The keys of the page by section, with their effect. Fails for a row without a type, a default or an effect.
fn reference(page: &str, effects: [&str; 2]) -> BTreeMap<String, BTreeMap<String, String>> {
    let mut found: BTreeMap<String, BTreeMap<String, String>> = BTreeMap::new();
    let (text, mut section, mut before) = (read(page), None, String::new());
    for line in prose(&text) {
        if let Some(heading) = line.strip_prefix("## ") {
            (section, before) = (code(heading).map(|name| name.trim_matches(['[', ']']).to_owned()), String::new());
        } else if let (Some(heading), Some(section)) = (line.strip_prefix("### ").and_then(code), &section) {
            before = heading.trim_start_matches(section.as_str()).trim_start_matches('.').to_owned() + ".";
        } else if let (Some(cells), Some(section)) = (cells(line), &section)
            && let Some(key) = code(&cells[0])
        {
            let [_, kind, default, effect, meaning] = &cells[..] else { panic!("{page}: five columns: {line}") };
            assert!([kind, default, meaning].iter().all(|cell| !cell.is_empty()), "{page}: an empty cell: {line}");
            assert!(effects.contains(&effect.as_str()), "{page}: {effects:?}: {line}");
            found.entry(section.clone()).or_default().insert(format!("{before}{key}"), effect.clone());
        }
    }
    found
}

/// Whether a table has a row that begins with this name.
fn row(text: &str, name: &str) -> bool {
    rows(text).iter().any(|cells| code(&cells[0]).as_deref() == Some(name))
}

fn has_word(text: &str, word: &str) -> bool {
    text.split(|sign: char| !sign.is_ascii_alphanumeric() && sign != '_').any(|found| found == word)
}

fn rows(text: &str) -> Vec<Vec<String>> {
    prose(text).into_iter().filter_map(cells).collect()
}

/// The cells of a row of a table.
fn cells(line: &str) -> Option<Vec<String>> {
    let inner = line.strip_prefix('|')?.strip_suffix('|')?;
    Some(inner.split(" |").map(|cell| cell.trim_matches(['|', ' ']).to_owned()).collect())
}

/// The text of a cell that is one code span.
fn code(text: &str) -> Option<String> {
    let inner = text.strip_prefix('`')?.strip_suffix('`')?;
    (!inner.contains('`')).then(|| inner.to_owned())
}

fn is_word(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_')
}
