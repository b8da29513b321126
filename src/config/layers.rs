//! The layers of a configuration (file < environment < command line), merged by figment into one tree, and the tree
//! read into [`ConfigFile`].
//!
//! Invariants: no error hides another: serde stops at its first one, so a key that cannot be read is removed from the
//! tree and the rest is parsed again, until it can be. Values from the environment stay text unless they begin with `[`
//! or `{`. Values of the file or the environment are never quoted here, since they may be secret; the text of both is
//! zeroized, but the trees that figment and the TOML parser build from it cannot be.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use figment::error::{Actual, Kind};
use figment::providers::{Format as _, Toml};
use figment::value::{Dict, Map, Tag, Value};
use figment::{Figment, Metadata, Profile, Provider};
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use super::error::{ConfigError, Problem, nearest};
use super::file::ConfigFile;
use crate::bounded_file;

/// The prefix of environment variables that override keys.
const PREFIX: &str = "WXRELAY__";

/// The keys of a table that names where a secret is stored.
pub(super) const LOCATION_KEYS: [&str; 3] = ["env", "file", "credential"];

/// The process's environment, zeroized on drop.
pub(super) type Environment = BTreeMap<String, Zeroizing<String>>;

/// The name of the file's layer.
const FILE: &str = "file";

/// The merged layers.
pub(super) struct Layers {
    figment: Figment,
    tree: Value,
    /// The file's path.
    source: Option<String>,
    /// SHA-256 over the file and its overrides, in hex.
    pub(super) sha256: String,
}

/// The path of a key.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct KeyPath(Vec<KeyStep>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum KeyStep {
    Name(String),
    Index(usize),
}

/// Some tables of a file that may not be TOML as a whole.
pub(super) struct PartialLayers<'t> {
    pub(super) layers: Layers,
    /// The tables whose own lines are not TOML either.
    pub(super) lost: Vec<&'t str>,
    /// Why the file is not TOML.
    pub(super) syntax: Option<ConfigError>,
}

/// The tree, parsed as far as possible.
pub(super) struct ParsedLayers {
    pub(super) file: ConfigFile,
    /// The errors of keys that could not be read.
    pub(super) errors: Vec<ConfigError>,
    /// Keys that were removed, or that a misspelt key stands for: their absence is not a second error.
    pub(super) damaged: Vec<KeyPath>,
}

impl Layers {
    /// Reads the file and merges the environment and the overrides (`server.drain` = `5s`) over it.
    pub(super) fn read(
        file: Option<&Path>,
        env: &Environment,
        overrides: &[(&str, &str)],
    ) -> Result<Self, ConfigError> {
        let text = read_file(file)?;
        let lower = parse_file(file, &text)?;
        Ok(Self::merge(file, &text, lower, env, overrides))
    }

    /// The same for these tables alone, which are found even if the rest of the file is not TOML.
    pub(super) fn read_tables<'t>(
        file: Option<&Path>,
        tables: &[&'t str],
        env: &Environment,
    ) -> Result<PartialLayers<'t>, ConfigError> {
        let text = read_file(file)?;
        let (mut lower, mut lost, mut syntax) = (Dict::new(), Vec::new(), None);
        match parse_file(file, &text) {
            Ok(whole) => lower = whole,
            Err(error) => {
                syntax = Some(error);
                for table in tables {
                    match parse_file(file, &Zeroizing::new(lines_of(table, &text))) {
                        Ok(found) => lower.extend(found),
                        Err(_) => lost.push(*table),
                    }
                }
            }
        }
        Ok(PartialLayers { layers: Self::merge(file, &text, lower, env, &[]), lost, syntax })
    }

    fn merge(file: Option<&Path>, text: &str, mut lower: Dict, env: &Environment, overrides: &[(&str, &str)]) -> Self {
        let mut hash = Sha256::new();
        hash.update(text.as_bytes());
        let env = env.iter().filter_map(|(name, text)| Some((name.strip_prefix(PREFIX)?, text.as_str())));
        let env: Vec<_> = env.map(|(name, text)| (name.to_lowercase().replace("__", "."), text)).collect();
        for (key, text) in env.iter().map(|(key, text)| (key.as_str(), *text)).chain(overrides.iter().copied()) {
            hash.update([0]);
            hash.update(key);
            hash.update([0]);
            hash.update(text);
        }
        let env = nest(env.iter().map(|(key, text)| (key.as_str(), *text)));
        let overrides = nest(overrides.iter().copied());

        remove_overridden_secrets(&mut lower, &env);
        remove_overridden_secrets(&mut lower, &overrides);

        let source = file.map(|path| path.display().to_string());
        let shown = source.clone().unwrap_or_default();
        let file = Metadata::named(FILE).interpolater(move |_, _| shown.clone());
        let variable = Metadata::named("environment").interpolater(|_, keys| variable(keys));
        let argument = Metadata::named("command line").interpolater(|_, _| "the command line".to_owned());
        let figment = Figment::from(Layer(file, lower)).merge(Layer(variable, env)).merge(Layer(argument, overrides));
        let tree = figment.find_value("").unwrap_or_else(|_| Value::Dict(Tag::Default, Dict::new()));
        let sha256 = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        Self { figment, tree, source, sha256 }
    }

    /// Parses the tree without the keys that cannot be read.
    pub(super) fn parse(&self) -> ParsedLayers {
        let mut tree = self.tree.clone();
        let mut errors = Vec::new();
        let mut damaged = Vec::new();
        loop {
            let error = match tree.deserialize::<ConfigFile>() {
                Ok(file) => return ParsedLayers { file, errors, damaged },
                Err(error) => error,
            };
            let key = KeyPath::of(&error.path, &self.tree);
            let problem = problem(error.kind);
            match &problem {
                Problem::UnknownKey { nearest, .. } => {
                    let meant = nearest.iter().map(|name| key.sibling(name));
                    damaged.extend(meant.filter(|meant| self.find(meant).is_none()));
                }
                _ => damaged.push(key.clone()),
            }
            errors.push(self.error(&key, problem));
            if !remove(&mut tree, &error.path) {
                return ParsedLayers { file: ConfigFile::default(), errors, damaged };
            }
        }
    }

    /// An error at a key, with the origin of its value.
    pub(super) fn error(&self, key: &KeyPath, problem: Problem) -> ConfigError {
        ConfigError { key: key.to_string(), problem, origin: self.origin(key) }
    }

    /// Where the value of a key came from; for a missing key the file, where it belongs.
    fn origin(&self, key: &KeyPath) -> Option<String> {
        let Some(value) = self.find(key) else { return self.source.clone() };
        let metadata = self.figment.get_metadata(value.tag())?;
        Some(metadata.interpolate(&Profile::Default, &key.names()))
    }

    /// Whether the value of a key is from the file.
    pub(super) fn is_of_file(&self, key: &KeyPath) -> bool {
        let metadata = self.find(key).and_then(|value| self.figment.get_metadata(value.tag()));
        metadata.is_some_and(|metadata| metadata.name == FILE)
    }

    /// The merged tables.
    pub(super) fn tree(&self) -> &Value {
        &self.tree
    }

    /// Whether a table or key of this name is given.
    pub(super) fn has(&self, name: &str) -> bool {
        self.find(&KeyPath::default().name(name)).is_some()
    }

    fn find(&self, key: &KeyPath) -> Option<&Value> {
        key.0.iter().try_fold(&self.tree, |value, step| match (step, value) {
            (KeyStep::Name(name), Value::Dict(_, table)) => table.get(name),
            (KeyStep::Index(index), Value::Array(_, list)) => list.get(*index),
            _ => None,
        })
    }
}

/// The text of the file; empty without one.
fn read_file(file: Option<&Path>) -> Result<Zeroizing<String>, ConfigError> {
    let Some(path) = file else { return Ok(Zeroizing::default()) };
    let fault = |error| ConfigError { key: path.display().to_string(), problem: Problem::File(error), origin: None };
    bounded_file::read_text(path).map(|(text, _)| text).map_err(fault)
}

fn parse_file(file: Option<&Path>, text: &str) -> Result<Dict, ConfigError> {
    Toml::from_str(text).map_err(|error| {
        let problem = Problem::Syntax(toml_message(&error.to_string()));
        ConfigError { key: file.unwrap_or(Path::new("")).display().to_string(), problem, origin: None }
    })
}

/// The lines of a table, by its header or as dotted keys at the head of the file.
fn lines_of(table: &str, text: &str) -> String {
    let mut section = String::new();
    let is_of = |line: &&str| {
        let line = line.trim();
        if line.starts_with('[') {
            let header = line.split('#').next().unwrap_or_default();
            section = header.trim_matches(|sign: char| sign == '[' || sign == ']' || sign.is_whitespace()).to_owned();
        }
        let key = if section.is_empty() { line } else { &section };
        key.strip_prefix(table).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', ' ', '=']))
    };
    text.lines().filter(is_of).collect::<Vec<_>>().join("\n")
}

/// A table with the name of its source.
struct Layer(Metadata, Dict);

impl Provider for Layer {
    fn metadata(&self) -> Metadata {
        self.0.clone()
    }

    fn data(&self) -> figment::error::Result<Map<Profile, Dict>> {
        Ok(Profile::Default.collect(self.1.clone()))
    }
}

/// Dotted keys and their texts as a tree.
fn nest<'a>(pairs: impl Iterator<Item = (&'a str, &'a str)>) -> Dict {
    let mut root = Dict::new();
    for (key, text) in pairs {
        insert(&mut root, key, text);
    }
    root
}

fn insert(table: &mut Dict, key: &str, text: &str) {
    let Some((name, rest)) = key.split_once('.') else {
        table.insert(key.to_owned(), environment_value(text));
        return;
    };
    let mut inner = table.remove(name).and_then(Value::into_dict).unwrap_or_default();
    insert(&mut inner, rest, text);
    table.insert(name.to_owned(), inner.into());
}

/// Parses lists and tables in figment's notation; everything else stays text, so that `0123` keeps its zero.
fn environment_value(text: &str) -> Value {
    let parsed = if text.starts_with(['[', '{']) { text.parse().ok() } else { None };
    parsed.unwrap_or_else(|| Value::from(text))
}

/// Removes from a lower layer what a higher one sets as `{ file = ".." }` and the like: merged with a lower
/// `{ env = ".." }`, the secret would have two locations.
fn remove_overridden_secrets(lower: &mut Dict, upper: &Dict) {
    for (name, value) in upper {
        let Value::Dict(_, table) = value else { continue };
        if !table.is_empty() && table.keys().all(|key| LOCATION_KEYS.contains(&key.as_str())) {
            lower.remove(name);
        } else if let Some(Value::Dict(_, lower)) = lower.get_mut(name) {
            remove_overridden_secrets(lower, table);
        }
    }
}

fn variable(keys: &[&str]) -> String {
    format!("environment variable {PREFIX}{}", keys.join("__").to_uppercase())
}

/// The TOML parser's message, without the lines that it quotes.
fn toml_message(text: &str) -> String {
    let (quoted, said): (Vec<&str>, Vec<&str>) = text
        .lines()
        .partition(|line| line.trim_start_matches(|sign: char| sign.is_ascii_digit() || sign == ' ').starts_with('|'));
    // Without quoted lines the message has an unknown form and may quote a value anywhere.
    if quoted.is_empty() { "not valid TOML".to_owned() } else { said.join(", ") }
}

/// Removes the innermost named key of a path. Elements of lists stay, so that the others keep their numbers.
fn remove(value: &mut Value, path: &[String]) -> bool {
    let Some((first, rest)) = path.split_first() else { return false };
    match value {
        Value::Dict(_, table) => {
            let inner = table.get_mut(first).is_some_and(|inner| remove(inner, rest));
            inner || table.remove(first).is_some()
        }
        Value::Array(_, list) => {
            let element = first.parse().ok().and_then(|index: usize| list.get_mut(index));
            element.is_some_and(|element| remove(element, rest))
        }
        _ => false,
    }
}

fn problem(kind: Kind) -> Problem {
    match kind {
        Kind::UnknownField(name, known) => {
            Problem::UnknownKey { nearest: nearest(&name, known.iter().copied()), known }
        }
        Kind::InvalidType(found, expected) => {
            Problem::Shape { found: found_word(&found), expected: toml_term(expected) }
        }
        // Other kinds quote a value, which may be a secret.
        _ => Problem::Secret("a value of another kind"),
    }
}

fn found_word(found: &Actual) -> &'static str {
    match found {
        Actual::Bool(_) => "true or false",
        Actual::Unsigned(_) | Actual::Signed(_) | Actual::Float(_) => "a number",
        Actual::Char(_) | Actual::Str(_) => "text",
        Actual::Seq => "a list",
        Actual::Map => "a table",
        _ => "something else",
    }
}

/// Translates serde's terms to TOML's.
fn toml_term(expected: String) -> String {
    match expected.as_str() {
        "a map" => "a table".to_owned(),
        "a sequence" => "a list of tables".to_owned(),
        "a string" => "text in quotes".to_owned(),
        text if text.starts_with("struct ") => "a table".to_owned(),
        _ => expected,
    }
}

impl KeyPath {
    /// The key `name` below this one.
    pub(super) fn name(&self, name: &str) -> Self {
        self.step(KeyStep::Name(name.to_owned()))
    }

    /// The element `index` of this list, from 0.
    pub(super) fn index(&self, index: usize) -> Self {
        self.step(KeyStep::Index(index))
    }

    /// The names of the path up to its first list element.
    fn names(&self) -> Vec<&str> {
        let names = self.0.iter().map_while(|step| match step {
            KeyStep::Name(name) => Some(name.as_str()),
            KeyStep::Index(_) => None,
        });
        names.collect()
    }

    fn sibling(&self, name: &str) -> Self {
        Self(self.0.split_last().map_or(&[][..], |(_, above)| above).to_vec()).name(name)
    }

    /// Whether this is `other` or lies below it.
    pub(super) fn is_within(&self, other: &Self) -> bool {
        self.0.starts_with(&other.0)
    }

    fn step(&self, step: KeyStep) -> Self {
        Self(self.0.iter().cloned().chain([step]).collect())
    }

    /// Makes a path of figment's, which has the numbers of list elements as text; only the tree distinguishes them from
    /// names.
    fn of(path: &[String], tree: &Value) -> Self {
        let mut at = Some(tree);
        let mut key = Self::default();
        for text in path {
            let (step, next) = match (at, text.parse()) {
                (Some(Value::Array(_, list)), Ok(index)) => (KeyStep::Index(index), list.get(index)),
                (Some(Value::Dict(_, table)), _) => (KeyStep::Name(text.clone()), table.get(text)),
                _ => (KeyStep::Name(text.clone()), None),
            };
            key.0.push(step);
            at = next;
        }
        key
    }
}

impl fmt::Display for KeyPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, step) in self.0.iter().enumerate() {
            match step {
                KeyStep::Name(name) if index == 0 => f.write_str(name)?,
                KeyStep::Name(name) => write!(f, ".{name}")?,
                KeyStep::Index(index) => write!(f, "[{index}]")?,
            }
        }
        Ok(())
    }
}
