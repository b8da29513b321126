//! Rules for the sources, checked by reading them.
//!
//! A loop that finds nothing to check fails, so that a moved folder cannot disable a rule.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// The layer of every module: a module may name modules of lower layers, and of its own layer only what [`same_layer`]
/// allows.
const LAYERS: [(u8, &[&str]); 6] = [
    (5, &["main", "cli"]),
    (4, &["app", "config", "health", "simulation"]),
    (3, &["server", "admin", "push", "login", "dispatcher", "otlp"]),
    (2, &["queue", "deliver", "tail"]),
    (1, &["wechat", "route", "backoff", "event", "host", "trace", "trust", "alarm"]),
    (0, &["secret", "escape", "bounded_file", "certificate", "clock", "metrics", "ordered", "telemetry", "tuning"]),
];

/// Whether a module may name another one of its own layer: not in layers 3, 2 and 0, but `admin` uses the type of a
/// listen address of `server`, and `telemetry` escapes what it writes.
fn same_layer(layer: u8, module: &str, other: &str) -> bool {
    matches!(layer, 5 | 4 | 1) || [("admin", "server"), ("telemetry", "escape")].contains(&(module, other))
}

#[test]
fn modules_name_only_modules_of_lower_layers() {
    let mut checked = 0;
    for source in sources("src") {
        let module = source.module();
        if module == "lib" {
            continue;
        }
        let own = layer(&module);
        for other in named_modules(&source.code()) {
            checked += 1;
            let below = layer(&other);
            let allowed = other == module || below < own || below == own && same_layer(own, &module, &other);
            assert!(allowed, "{}: layer {own} names crate::{other} of layer {below}", source.path.display());
        }
    }
    assert!(checked > 20, "only {checked} names found: was the source moved?");
}

#[test]
fn every_module_has_a_layer() {
    let modules: BTreeSet<_> = sources("src").iter().map(Source::module).filter(|module| module != "lib").collect();
    assert!(modules.len() > 10, "only {modules:?}");
    for module in modules {
        layer(&module);
    }
}

#[test]
fn every_file_has_a_head_comment() {
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
fn no_file_has_a_mark_of_open_work() {
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
fn every_folder_has_a_mod_rs() {
    let mut checked = 0;
    for source in all() {
        let folder = source.path.parent().expect("a file is in a folder");
        if ["src", "tests/it", "benches"].iter().any(|top| folder.ends_with(top)) {
            continue;
        }
        checked += 1;
        // A separate program has `main.rs` instead.
        let found = ["mod.rs", "main.rs"].iter().any(|file| folder.join(file).is_file());
        assert!(found, "{} has no mod.rs", folder.display());
        assert!(!folder.with_extension("rs").exists(), "{} is both a folder and a file", folder.display());
    }
    assert!(checked > 10, "only {checked} files in folders");
}

#[test]
fn no_module_is_a_catch_all() {
    let catch_alls = ["utils", "util", "common", "helpers", "core", "manager", "types", "misc"];
    for source in all() {
        let mut names = source.path.iter().map(|name| name.to_string_lossy());
        let catch_all = names.find(|name| catch_alls.contains(&name.trim_end_matches(".rs")));
        assert_eq!(catch_all, None, "{}", source.path.display());
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

/// A source file of the project.
struct Source {
    /// Relative to the root of the repository.
    path: PathBuf,
    text: String,
}

impl Source {
    /// The module that it belongs to: the folder or the file under `src`.
    fn module(&self) -> String {
        let below = self.path.strip_prefix("src").expect("only sources have a module");
        let first = below.iter().next().expect("a file has a name").to_string_lossy();
        first.trim_end_matches(".rs").to_owned()
    }

    /// The text without comments.
    fn code(&self) -> String {
        let lines = self.text.lines().map(|line| line.split("//").next().unwrap_or_default());
        lines.collect::<Vec<_>>().join("\n")
    }
}

/// The modules that a text names: `crate::x` and `crate::{x::.., y::..}`, also by the crate's name.
fn named_modules(code: &str) -> BTreeSet<String> {
    let mut modules = BTreeSet::new();
    for prefix in ["crate::", "wxrelay::"] {
        for (at, _) in code.match_indices(prefix) {
            let rest = &code[at + prefix.len()..];
            match rest.strip_prefix('{') {
                Some(group) => modules.extend(group_heads(group)),
                None => modules.extend(Some(head(rest))),
            }
        }
    }
    modules.retain(|module| module.chars().next().is_some_and(char::is_lowercase));
    modules
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
    assert_eq!(named_modules(code), expected.into());
}

fn layer(module: &str) -> u8 {
    let layer = LAYERS.iter().find(|(_, modules)| modules.contains(&module));
    layer.unwrap_or_else(|| panic!("`{module}` is in no layer: add it to LAYERS and ARCHITECTURE.md")).0
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

/// The files below a folder with an extension, or all for an empty one, in order.
pub(crate) fn files(folder: &Path, extension: &str) -> Vec<PathBuf> {
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
    found.sort();
    found
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// A browser obeys markup in the texts of others, so one file of the console writes any without escaping it.
#[test]
fn markup_is_written_unescaped_in_one_file() {
    let found: Vec<_> = sources("src").into_iter().filter(|source| source.text.contains("PreEscaped")).collect();
    let paths: Vec<_> = found.iter().map(|source| source.path.as_path()).collect();
    assert_eq!(paths, [Path::new("src/admin/console/frame.rs")]);
}

/// A terminal obeys control characters in the texts of others, so one file escapes what every command prints.
#[test]
fn commands_print_through_one_file() {
    let exempt = ["src/cli/output.rs", "src/cli/top/terminal.rs"];
    let mut checked = 0;
    for source in sources("src").into_iter().filter(|source| source.path.starts_with("src/cli")) {
        if exempt.iter().any(|path| source.path == Path::new(path)) {
            continue;
        }
        checked += 1;
        let (code, _tests) = source.text.split_once("#[cfg(test)]\nmod tests").unwrap_or((&source.text, ""));
        for macro_or_stream in ["io::stdout", "io::stderr", "println!", "print!(", "use std::io::{stdout", "dbg!"] {
            let found = code.lines().find(|line| line.contains(macro_or_stream));
            assert_eq!(found, None, "{}: print with cli::output", source.path.display());
        }
    }
    assert!(checked > 30, "only {checked} files of commands");
}
