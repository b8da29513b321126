//! A place in the configuration from which values are read: it knows its key path, and notes what is wrong.
//!
//! Invariants: reading never stops at a mistake, it notes it and goes on; secrets come out as [`Secret`] and their
//! text goes into no message; every file that a secret is read from has its rights looked at. Deliberately not here:
//! what any one key means.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt;
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use super::error::{ConfigError, Problem};
use super::file::{Elsewhere, Scalar, SecretSource, SecretSources};
use super::layers::{Environment, Key, Layers};
use crate::reading;
use crate::secret::Secret;

/// What systemd's `LoadCredential=` tells its services.
const CREDENTIALS: &str = "CREDENTIALS_DIRECTORY";

/// The rights by which others than its owner read or change a file.
const OTHERS: u32 = 0o066;

/// The most of a wrong value that a message shows.
const SHOWN: usize = 60;

/// What all scopes of one configuration share.
pub(super) struct Ground<'a> {
    layers: &'a Layers,
    env: &'a Environment,
    file: Option<&'a Path>,
    /// Relative paths begin here: the file's folder.
    folder: PathBuf,
    damaged: Vec<Key>,
    errors: RefCell<Vec<ConfigError>>,
    warnings: RefCell<Vec<String>>,
    /// Files with secrets that are open to others than their owner: the key that names each, and its mode.
    exposed: RefCell<BTreeMap<PathBuf, (Key, u32)>>,
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
        env: &'a Environment,
        file: Option<&'a Path>,
        errors: Vec<ConfigError>,
        damaged: Vec<Key>,
    ) -> Self {
        let folder = file.and_then(Path::parent).unwrap_or(Path::new("")).to_owned();
        let (warnings, exposed) = (RefCell::default(), RefCell::default());
        Self { layers, env, file, folder, damaged, errors: RefCell::new(errors), warnings, exposed }
    }

    /// The scope of the whole file.
    pub(super) fn root(&'a self) -> Scope<'a> {
        Scope { ground: self, key: Key::default() }
    }

    /// All mistakes and warnings. With `strict`, a file with a secret that is open to others is a mistake.
    pub(super) fn finish(self, strict: bool) -> (Vec<ConfigError>, Vec<String>) {
        let (mut errors, mut warnings) = (self.errors.into_inner(), self.warnings.into_inner());
        for (path, (key, mode)) in self.exposed.into_inner() {
            let problem = Problem::Exposed { path, mode };
            match strict {
                true => errors.push(self.layers.error(&key, problem)),
                false => warnings.push(format!("{key}: {problem}")),
            }
        }
        (errors, warnings)
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
        self.found(name, given).map(|(path, _)| path)
    }

    /// The same for a file with a private key.
    pub(super) fn private(&self, name: &str, given: &Option<Scalar>) -> Option<PathBuf> {
        let (path, metadata) = self.found(name, given)?;
        self.at(name).look_at(&path, &metadata);
        Some(path)
    }

    fn found(&self, name: &str, given: &Option<Scalar>) -> Option<(PathBuf, Metadata)> {
        let path = self.path(name, given)?;
        match fs::metadata(&path) {
            Ok(metadata) => Some((path, metadata)),
            Err(source) => {
                self.at(name).fault(Problem::Unreadable { path, source });
                None
            }
        }
    }

    /// Notes a file with a secret that others than its owner may read or change.
    fn look_at(&self, path: &Path, metadata: &Metadata) {
        let mode = metadata.permissions().mode() & 0o7777;
        if metadata.is_file() && mode & OTHERS != 0 {
            self.ground.exposed.borrow_mut().entry(path.to_owned()).or_insert_with(|| (self.key.clone(), mode));
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
        if let (SecretSource::Text(_), Some(file)) = (source, self.ground.file)
            && self.ground.layers.is_of_file(&self.key)
            && let Ok(metadata) = fs::metadata(file)
        {
            self.look_at(file, &metadata);
        }
        self.open_any(source)
    }

    /// The value of this key, which is no secret where it stands in the configuration itself.
    pub(super) fn open_any(&self, source: &SecretSource) -> Option<Secret> {
        let opened = match source {
            SecretSource::Text(secret) => Ok(secret.clone()),
            SecretSource::Elsewhere(Elsewhere { env: Some(name), file: None, credential: None }) => self.variable(name),
            SecretSource::Elsewhere(Elsewhere { env: None, file: Some(path), credential: None }) => {
                let path = self.resolve(path);
                read(&path)
                    .map(|(secret, metadata)| {
                        self.look_at(&path, &metadata);
                        secret
                    })
                    .map_err(|source| Problem::Unreadable { path, source })
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
        text.map(|text| Secret::new(text.as_str())).ok_or_else(|| Problem::Environment(name.to_owned()))
    }

    fn credential(&self, name: &str) -> Result<Secret, Problem> {
        if name.is_empty() || name.contains('/') || name.starts_with('.') {
            return Err(Problem::Rule("expected the name of a credential, without a path"));
        }
        let folder = self.ground.env.get(CREDENTIALS).ok_or_else(|| Problem::Environment(CREDENTIALS.to_owned()))?;
        let path = Path::new(folder.as_str()).join(name);
        // Its rights are systemd's, which may let the service in by an access list that shows as the group's.
        read(&path).map(|(secret, _)| secret).map_err(|source| Problem::Unreadable { path, source })
    }
}

/// A file's text without the line end that editors and `echo` leave, and its rights.
fn read(path: &Path) -> io::Result<(Secret, Metadata)> {
    let (text, metadata) = reading::text(path)?;
    Ok((Secret::new(text.trim_end_matches(['\r', '\n'])), metadata))
}
