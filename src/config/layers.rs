//! The layers of a configuration (file < environment < command line), merged by figment into one tree, and the tree
//! read into [`File`].
//!
//! Invariants: serde stops at its first mistake, so a key that cannot be read is taken out of the tree and the rest
//! is read again, until it can be; no mistake hides another. Values from the environment stay text unless they begin
//! with `[` or `{`. What stands in the file or the environment is never quoted here, since it may be secret; the
//! text of both is wiped, the trees that figment and the TOML parser make of it can't be.

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
use super::file::File;
use crate::reading;

/// What the environment variables that override keys begin with.
const PREFIX: &str = "WXRELAY__";

/// The keys of a table that tells where a secret is.
const ELSEWHERE: [&str; 3] = ["env", "file", "credential"];

/// The process's environment, wiped with the rest.
pub(super) type Environment = BTreeMap<String, Zeroizing<String>>;

/// The name of the layer that is the file.
const FILE: &str = "file";

/// The merged layers.
pub(super) struct Layers {
    figment: Figment,
    tree: Value,
    /// The file's path.
    source: Option<String>,
    /// SHA-256 over the file and whatever overrides it, in hex.
    pub(super) sha256: String,
}

/// The path of a key.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Key(Vec<Step>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Step {
    Name(String),
    Index(usize),
}

/// What came out of reading the tree.
pub(super) struct Shaped {
    /// All that could be read.
    pub(super) file: File,
    /// What could not.
    pub(super) errors: Vec<ConfigError>,
    /// Keys that had to be left out, or that are there with a slip: that they are missing is no second mistake.
    pub(super) damaged: Vec<Key>,
}

impl Layers {
    /// Reads the file and puts the environment and the overrides (`server.drain` = `5s`) over it.
    pub(super) fn read(
        file: Option<&Path>,
        env: &Environment,
        overrides: &[(&str, &str)],
    ) -> Result<Self, ConfigError> {
        let mut hash = Sha256::new();
        let mut lower = Dict::new();
        if let Some(path) = file {
            let fault = |problem| ConfigError { key: path.display().to_string(), problem, origin: None };
            let (text, _) = reading::text(path).map_err(|error| fault(Problem::File(error)))?;
            hash.update(text.as_bytes());
            let parsed = Toml::from_str(&text);
            lower = parsed.map_err(|error| fault(Problem::Syntax(toml_message(&error.to_string()))))?;
        }
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

        displace(&mut lower, &env);
        displace(&mut lower, &overrides);

        let source = file.map(|path| path.display().to_string());
        let shown = source.clone().unwrap_or_default();
        let file = Metadata::named(FILE).interpolater(move |_, _| shown.clone());
        let variable = Metadata::named("environment").interpolater(|_, keys| variable(keys));
        let argument = Metadata::named("command line").interpolater(|_, _| "the command line".to_owned());
        let figment = Figment::from(Layer(file, lower)).merge(Layer(variable, env)).merge(Layer(argument, overrides));
        let tree = figment.find_value("").unwrap_or_else(|_| Value::Dict(Tag::Default, Dict::new()));
        let sha256 = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        Ok(Self { figment, tree, source, sha256 })
    }

    /// Reads the tree, leaving out what cannot be read.
    pub(super) fn shape(&self) -> Shaped {
        let mut tree = self.tree.clone();
        let mut errors = Vec::new();
        let mut damaged = Vec::new();
        loop {
            let error = match tree.deserialize::<File>() {
                Ok(file) => return Shaped { file, errors, damaged },
                Err(error) => error,
            };
            let key = Key::of(&error.path, &self.tree);
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
                return Shaped { file: File::default(), errors, damaged };
            }
        }
    }

    /// A mistake at a key, with the origin of its value.
    pub(super) fn error(&self, key: &Key, problem: Problem) -> ConfigError {
        ConfigError { key: key.to_string(), problem, origin: self.origin(key) }
    }

    /// Where the value of a key came from; for a missing one the file, which is where to put it.
    fn origin(&self, key: &Key) -> Option<String> {
        let Some(value) = self.find(key) else { return self.source.clone() };
        let metadata = self.figment.get_metadata(value.tag())?;
        Some(metadata.interpolate(&Profile::Default, &key.names()))
    }

    /// Whether the value of a key stands in the file.
    pub(super) fn is_of_file(&self, key: &Key) -> bool {
        let metadata = self.find(key).and_then(|value| self.figment.get_metadata(value.tag()));
        metadata.is_some_and(|metadata| metadata.name == FILE)
    }

    fn find(&self, key: &Key) -> Option<&Value> {
        key.0.iter().try_fold(&self.tree, |value, step| match (step, value) {
            (Step::Name(name), Value::Dict(_, table)) => table.get(name),
            (Step::Index(index), Value::Array(_, list)) => list.get(*index),
            _ => None,
        })
    }
}

/// A table with the name of where it came from.
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

/// Lists and tables in figment's notation; everything else is text, so that `0123` stays what it is.
fn environment_value(text: &str) -> Value {
    let parsed = if text.starts_with(['[', '{']) { text.parse().ok() } else { None };
    parsed.unwrap_or_else(|| Value::from(text))
}

/// Takes out of a lower layer what a higher one gives as `{ file = ".." }` and the like: merged with a lower
/// `{ env = ".." }`, the secret would have two places.
fn displace(lower: &mut Dict, upper: &Dict) {
    for (name, value) in upper {
        let Value::Dict(_, table) = value else { continue };
        if !table.is_empty() && table.keys().all(|key| ELSEWHERE.contains(&key.as_str())) {
            lower.remove(name);
        } else if let Some(Value::Dict(_, lower)) = lower.get_mut(name) {
            displace(lower, table);
        }
    }
}

fn variable(keys: &[&str]) -> String {
    format!("environment variable {PREFIX}{}", keys.join("__").to_uppercase())
}

/// What the TOML parser says, without the lines that it quotes.
fn toml_message(text: &str) -> String {
    let (quoted, said): (Vec<&str>, Vec<&str>) = text
        .lines()
        .partition(|line| line.trim_start_matches(|sign: char| sign.is_ascii_digit() || sign == ' ').starts_with('|'));
    // Without the drawing this is no message of the kind known here, and the safe thing is to say less.
    if quoted.is_empty() { "this is no TOML".to_owned() } else { said.join(", ") }
}

/// Takes out the innermost named key of a path. Elements of lists stay, so that the others keep their numbers.
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
        Kind::InvalidType(found, expected) => Problem::Shape { found: found_word(&found), expected: plain(expected) },
        // Kinds that carry a value are not shown: it may be a secret.
        _ => Problem::Hidden("a value of another kind"),
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

/// serde's words in TOML's.
fn plain(expected: String) -> String {
    match expected.as_str() {
        "a map" => "a table".to_owned(),
        "a sequence" => "a list of tables".to_owned(),
        "a string" => "text in quotes".to_owned(),
        text if text.starts_with("struct ") => "a table".to_owned(),
        _ => expected,
    }
}

impl Key {
    /// The key `name` below this one.
    pub(super) fn name(&self, name: &str) -> Self {
        self.step(Step::Name(name.to_owned()))
    }

    /// The element `index` of this list, from 0.
    pub(super) fn index(&self, index: usize) -> Self {
        self.step(Step::Index(index))
    }

    /// The names that lead to it, or to the list that it is in.
    fn names(&self) -> Vec<&str> {
        let names = self.0.iter().map_while(|step| match step {
            Step::Name(name) => Some(name.as_str()),
            Step::Index(_) => None,
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

    fn step(&self, step: Step) -> Self {
        Self(self.0.iter().cloned().chain([step]).collect())
    }

    /// figment writes numbers of list elements as text; only the tree tells them from names.
    fn of(path: &[String], tree: &Value) -> Self {
        let mut at = Some(tree);
        let mut key = Self::default();
        for text in path {
            let (step, next) = match (at, text.parse()) {
                (Some(Value::Array(_, list)), Ok(index)) => (Step::Index(index), list.get(index)),
                (Some(Value::Dict(_, table)), _) => (Step::Name(text.clone()), table.get(text)),
                _ => (Step::Name(text.clone()), None),
            };
            key.0.push(step);
            at = next;
        }
        key
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, step) in self.0.iter().enumerate() {
            match step {
                Step::Name(name) if index == 0 => f.write_str(name)?,
                Step::Name(name) => write!(f, ".{name}")?,
                Step::Index(index) => write!(f, "[{index}]")?,
            }
        }
        Ok(())
    }
}
