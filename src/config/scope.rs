//! A place in the configuration from which values are read: it knows its key path, and notes what is wrong.
//!
//! Invariants: reading never stops at a mistake, it notes it and goes on; secrets come out as [`Secret`] and their
//! text goes into no message. Deliberately not here: what any one key means.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use super::error::{ConfigError, Problem};
use super::file::{Elsewhere, Scalar, SecretSource, SecretSources};
use super::layers::{Key, Layers};
use crate::secret::Secret;

/// What systemd's `LoadCredential=` tells its services.
const CREDENTIALS: &str = "CREDENTIALS_DIRECTORY";

/// The most of a wrong value that a message shows.
const SHOWN: usize = 60;

/// What all scopes of one configuration share.
pub(super) struct Ground<'a> {
    layers: &'a Layers,
    env: &'a BTreeMap<String, String>,
    /// Relative paths begin here: the file's folder.
    folder: PathBuf,
    damaged: Vec<Key>,
    errors: RefCell<Vec<ConfigError>>,
    warnings: RefCell<Vec<String>>,
}

/// One table.
#[derive(Clone)]
pub(super) struct Scope<'a> {
    ground: &'a Ground<'a>,
    key: Key,
}

impl<'a> Ground<'a> {
    /// `errors` and `damaged` are what reading the shape left behind.
    pub(super) fn new(
        layers: &'a Layers,
        env: &'a BTreeMap<String, String>,
        file: Option<&Path>,
        errors: Vec<ConfigError>,
        damaged: Vec<Key>,
    ) -> Self {
        let folder = file.and_then(Path::parent).unwrap_or(Path::new("")).to_owned();
        Self { layers, env, folder, damaged, errors: RefCell::new(errors), warnings: RefCell::default() }
    }

    /// The scope of the whole file.
    pub(super) fn root(&'a self) -> Scope<'a> {
        Scope { ground: self, key: Key::default() }
    }

    /// All mistakes and warnings.
    pub(super) fn finish(self) -> (Vec<ConfigError>, Vec<String>) {
        (self.errors.into_inner(), self.warnings.into_inner())
    }
}

impl Scope<'_> {
    /// The scope of the key `name`.
    pub(super) fn at(&self, name: &str) -> Self {
        Self { ground: self.ground, key: self.key.name(name) }
    }

    /// The scope of element `index` of this list.
    pub(super) fn nth(&self, index: usize) -> Self {
        Self { ground: self.ground, key: self.key.index(index) }
    }

    /// Notes that this key is wrong, unless that follows from a mistake already noted.
    pub(super) fn fault(&self, problem: Problem) {
        let known = |key: &Key| key.is_within(&self.key) || self.key.is_within(key);
        if !self.ground.damaged.iter().any(known) {
            self.ground.errors.borrow_mut().push(self.ground.layers.error(&self.key, problem));
        }
    }

    /// Notes something that is allowed but may not be meant.
    pub(super) fn warn(&self, text: fmt::Arguments<'_>) {
        self.ground.warnings.borrow_mut().push(format!("{}: {text}", self.key));
    }

    /// Reads the value of a key. `None` if it is absent, or wrong and noted.
    pub(super) fn read<T>(
        &self,
        name: &str,
        given: &Option<Scalar>,
        parse: impl FnOnce(&str) -> Result<T, &'static str>,
    ) -> Option<T> {
        let Scalar(text) = given.as_ref()?;
        self.at(name).parse(text, parse)
    }

    /// The same for a key that must be there.
    pub(super) fn demand<T>(
        &self,
        name: &str,
        given: &Option<Scalar>,
        expected: &'static str,
        parse: impl FnOnce(&str) -> Result<T, &'static str>,
    ) -> Option<T> {
        if given.is_none() {
            self.at(name).fault(Problem::Missing(expected));
        }
        self.read(name, given, parse)
    }

    /// Parses the text of this key.
    pub(super) fn parse<T>(&self, text: &str, parse: impl FnOnce(&str) -> Result<T, &'static str>) -> Option<T> {
        let shown = || text.chars().filter(|sign| !sign.is_control()).take(SHOWN).collect();
        parse(text).map_err(|expected| self.fault(Problem::Value { found: shown(), expected })).ok()
    }

    /// Reads the value of a key that must not be shown when it is wrong.
    pub(super) fn read_hidden<T>(
        &self,
        name: &str,
        given: &Option<Scalar>,
        parse: impl FnOnce(&str) -> Result<T, &'static str>,
    ) -> Option<T> {
        let Scalar(text) = given.as_ref()?;
        parse(text).map_err(|expected| self.at(name).fault(Problem::Hidden(expected))).ok()
    }

    /// Reads a path; a relative one begins at the file's folder.
    pub(super) fn path(&self, name: &str, given: &Option<Scalar>) -> Option<PathBuf> {
        let path = self.read(name, given, |text| if text.is_empty() { Err("a path") } else { Ok(PathBuf::from(text)) });
        Some(self.ground.folder.join(path?))
    }

    /// Reads the path of a file that must exist.
    pub(super) fn existing(&self, name: &str, given: &Option<Scalar>) -> Option<PathBuf> {
        let path = self.path(name, given)?;
        match std::fs::metadata(&path) {
            Ok(_) => Some(path),
            Err(source) => {
                self.at(name).fault(Problem::Unreadable { path, source });
                None
            }
        }
    }

    /// The path that a text of this file means.
    pub(super) fn resolve(&self, path: &str) -> PathBuf {
        self.ground.folder.join(path)
    }

    /// Reads a secret from where it is.
    pub(super) fn secret(&self, name: &str, given: &Option<SecretSource>) -> Option<Secret> {
        self.at(name).open(given.as_ref()?)
    }

    /// Reads a secret and parses it; the message does not show it.
    pub(super) fn secret_of<T>(
        &self,
        name: &str,
        given: &Option<SecretSource>,
        parse: impl FnOnce(&str) -> Result<T, Problem>,
    ) -> Option<T> {
        let secret = self.secret(name, given)?;
        parse(secret.expose()).map_err(|problem| self.at(name).fault(problem)).ok()
    }

    /// Reads one secret or a list of them, and parses each.
    pub(super) fn secrets_of<T>(
        &self,
        name: &str,
        given: &Option<SecretSources>,
        parse: impl Fn(&str) -> Result<T, Problem>,
    ) -> Vec<T> {
        let scope = self.at(name);
        let one = |scope: &Self, source| {
            let secret = scope.open(source)?;
            parse(secret.expose()).map_err(|problem| scope.fault(problem)).ok()
        };
        match given {
            None => Vec::new(),
            Some(SecretSources::One(source)) => one(&scope, source).into_iter().collect(),
            Some(SecretSources::Several(sources)) => {
                if sources.is_empty() {
                    scope.fault(Problem::Rule("expected at least one secret, or the key left out"));
                }
                let numbered = sources.iter().enumerate();
                numbered.filter_map(|(index, source)| one(&scope.nth(index), source)).collect()
            }
        }
    }

    /// The secret of this key.
    pub(super) fn open(&self, source: &SecretSource) -> Option<Secret> {
        let opened = match source {
            SecretSource::Text(secret) => Ok(secret.clone()),
            SecretSource::Elsewhere(Elsewhere { env: Some(name), file: None, credential: None }) => self.variable(name),
            SecretSource::Elsewhere(Elsewhere { env: None, file: Some(path), credential: None }) => {
                read_secret(self.resolve(path))
            }
            SecretSource::Elsewhere(Elsewhere { env: None, file: None, credential: Some(name) }) => {
                self.credential(name)
            }
            SecretSource::Elsewhere(_) => Err(Problem::Rule("expected exactly one of `env`, `file` and `credential`")),
        };
        opened.map_err(|problem| self.fault(problem)).ok()
    }

    fn variable(&self, name: &str) -> Result<Secret, Problem> {
        let text = self.ground.env.get(name).filter(|text| !text.is_empty());
        text.map(Secret::new).ok_or_else(|| Problem::Environment(name.to_owned()))
    }

    fn credential(&self, name: &str) -> Result<Secret, Problem> {
        if name.is_empty() || name.contains('/') || name.starts_with('.') {
            return Err(Problem::Rule("expected the name of a credential, without a path"));
        }
        let folder = self.ground.env.get(CREDENTIALS).ok_or_else(|| Problem::Environment(CREDENTIALS.to_owned()))?;
        read_secret(Path::new(folder).join(name))
    }
}

/// Without the line end that editors and `echo` leave.
fn read_secret(path: PathBuf) -> Result<Secret, Problem> {
    match std::fs::read_to_string(&path).map(zeroize::Zeroizing::new) {
        Ok(text) => Ok(Secret::new(text.trim_end_matches(['\r', '\n']))),
        Err(source) => Err(Problem::Unreadable { path, source }),
    }
}
