//! Reads the values below one key of the configuration: it knows the key path, and collects errors and warnings.
//!
//! Invariants: reading records an error and continues; secrets are returned as [`Secret`], and their text goes into no
//! message; the permissions of every file that a secret is read from are checked, except systemd's credentials. Not
//! here: the meaning of any key.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt;
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use rustix::process::geteuid;

use super::error::{Advised, ConfigError, Problem};
use super::file::{Scalar, SecretLocation, SecretSource, SecretSources};
use super::fingerprint::{self, SecretPrint};
use super::key_changes;
use super::layers::{Environment, KeyPath, Layers};
use crate::bounded_file;
use crate::escape;
use crate::secret::Secret;

/// The variable that systemd sets for services with `LoadCredential=`.
const CREDENTIALS: &str = "CREDENTIALS_DIRECTORY";

/// The permission bits that let group or others read or change a file.
const GROUP_AND_OTHERS: u32 = 0o066;

/// The most characters of a wrong value that a message shows.
const MAX_SHOWN: usize = 60;

/// The state that all readers of one load share.
pub(super) struct LoadContext<'a> {
    layers: &'a Layers,
    env: &'a Environment,
    file: Option<&'a Path>,
    /// The configuration file's folder, which relative paths start from.
    folder: PathBuf,
    damaged: Vec<KeyPath>,
    errors: RefCell<Vec<ConfigError>>,
    warnings: RefCell<Vec<String>>,
    /// Hashes of what keys refer to: secrets elsewhere, and files.
    referred: RefCell<Vec<(String, u64)>>,
    /// What each secret adds to the fingerprint.
    secrets: RefCell<BTreeMap<String, SecretPrint>>,
    /// Files with secrets, and a store, that other users can access, each with the key that names it.
    exposed: RefCell<BTreeMap<PathBuf, (KeyPath, Problem)>>,
}

/// A key, and access to what is below it.
#[derive(Clone)]
pub(super) struct KeyReader<'a> {
    context: &'a LoadContext<'a>,
    key: KeyPath,
}

impl<'a> LoadContext<'a> {
    /// `errors` and `damaged` come from parsing the layers.
    pub(super) fn new(
        layers: &'a Layers,
        env: &'a Environment,
        file: Option<&'a Path>,
        errors: Vec<ConfigError>,
        damaged: Vec<KeyPath>,
    ) -> Self {
        let folder = file.and_then(Path::parent).unwrap_or(Path::new("")).to_owned();
        Self {
            layers,
            env,
            file,
            folder,
            damaged,
            errors: RefCell::new(errors),
            warnings: RefCell::default(),
            referred: RefCell::default(),
            secrets: RefCell::default(),
            exposed: RefCell::default(),
        }
    }

    /// The reader of the root table.
    pub(super) fn root(&'a self) -> KeyReader<'a> {
        KeyReader { context: self, key: KeyPath::default() }
    }

    /// The hashes of what keys refer to, each with its key.
    pub(super) fn referred(&self) -> Vec<(String, u64)> {
        self.referred.borrow().clone()
    }

    /// The fingerprint of what must be the same at all replicas, once every secret has been read.
    pub(super) fn fingerprint(&self) -> String {
        fingerprint::of_tables(self.layers.tree(), &self.secrets.borrow())
    }

    /// All errors and warnings. With `strict`, a file with a secret or a store that others can access is an error.
    pub(super) fn finish(self, strict: bool) -> (Vec<ConfigError>, Vec<String>) {
        let (mut errors, mut warnings) = (self.errors.into_inner(), self.warnings.into_inner());
        for (key, problem) in self.exposed.into_inner().into_values() {
            match strict {
                true => errors.push(self.layers.error(&key, problem)),
                false => warnings.push(format!("{key}: {}", Advised(&problem))),
            }
        }
        (errors, warnings)
    }
}

impl KeyReader<'_> {
    /// The reader of the key `name`.
    pub(super) fn at(&self, name: &str) -> Self {
        Self { context: self.context, key: self.key.name(name) }
    }

    /// The reader of element `index` of this list.
    pub(super) fn nth(&self, index: usize) -> Self {
        Self { context: self.context, key: self.key.index(index) }
    }

    /// Records an error at this key, unless it follows from one that parsing already reported.
    pub(super) fn report(&self, problem: Problem) {
        let follows = |key: &KeyPath| key.is_within(&self.key) || self.key.is_within(key);
        if !self.context.damaged.iter().any(follows) {
            self.context.errors.borrow_mut().push(self.context.layers.error(&self.key, problem));
        }
    }

    /// Records a warning: something that is allowed but is probably a mistake.
    pub(super) fn warn(&self, text: fmt::Arguments<'_>) {
        self.context.warnings.borrow_mut().push(format!("{}: {text}", self.key));
    }

    /// Reads the value of a key. `None` if it is absent, or wrong and reported.
    pub(super) fn read<T>(
        &self,
        name: &str,
        given: &Option<Scalar>,
        parse: impl FnOnce(&str) -> Result<T, &'static str>,
    ) -> Option<T> {
        let Scalar(text) = given.as_ref()?;
        self.at(name).parse(text, parse)
    }

    /// The same for a required key.
    pub(super) fn require<T>(
        &self,
        name: &str,
        given: &Option<Scalar>,
        expected: &'static str,
        parse: impl FnOnce(&str) -> Result<T, &'static str>,
    ) -> Option<T> {
        if given.is_none() {
            self.at(name).report(Problem::Missing(expected));
        }
        self.read(name, given, parse)
    }

    /// Parses the text of this key.
    pub(super) fn parse<T>(&self, text: &str, parse: impl FnOnce(&str) -> Result<T, &'static str>) -> Option<T> {
        let shown = || escape::line(text).chars().take(MAX_SHOWN).collect();
        parse(text).map_err(|expected| self.report(Problem::Value { found: shown(), expected })).ok()
    }

    /// Reads the value of a key whose error message must not quote it.
    pub(super) fn read_secret_text<T>(
        &self,
        name: &str,
        given: &Option<Scalar>,
        parse: impl FnOnce(&str) -> Result<T, &'static str>,
    ) -> Option<T> {
        let Scalar(text) = given.as_ref()?;
        parse(text).map_err(|expected| self.at(name).report(Problem::Secret(expected))).ok()
    }

    /// Reads a path; a relative one starts from the file's folder.
    pub(super) fn path(&self, name: &str, given: &Option<Scalar>) -> Option<PathBuf> {
        let path = self.read(name, given, |text| if text.is_empty() { Err("a path") } else { Ok(PathBuf::from(text)) });
        Some(self.context.folder.join(path?))
    }

    /// Reads the path of a file that must exist.
    pub(super) fn existing_file(&self, name: &str, given: &Option<Scalar>) -> Option<PathBuf> {
        self.find_file(name, given).map(|(path, _)| path)
    }

    /// The same for a file with a private key.
    pub(super) fn private_file(&self, name: &str, given: &Option<Scalar>) -> Option<PathBuf> {
        let (path, metadata) = self.find_file(name, given)?;
        self.at(name).check_permissions(&path, &metadata);
        Some(path)
    }

    fn find_file(&self, name: &str, given: &Option<Scalar>) -> Option<(PathBuf, Metadata)> {
        let path = self.path(name, given)?;
        match fs::metadata(&path) {
            Ok(metadata) => {
                self.at(name).refer(key_changes::of_file(&metadata));
                Some((path, metadata))
            }
            Err(source) => {
                self.at(name).report(Problem::Unreadable { path, source });
                None
            }
        }
    }

    /// Records a file with a secret if group or others may read or change it.
    fn check_permissions(&self, path: &Path, metadata: &Metadata) {
        let mode = metadata.permissions().mode() & 0o7777;
        if metadata.is_file() && mode & GROUP_AND_OTHERS != 0 {
            self.expose(path, Problem::Exposed { path: path.to_owned(), mode });
        }
    }

    /// Records the folder of a store, if it exists and others may read or change it, or own it.
    ///
    /// Root's commands read the store of the service's user, so an owner is checked for other users only; a relay that
    /// runs as root checks it at the start.
    pub(super) fn check_store(&self, path: &Path) {
        let Ok(metadata) = fs::metadata(path) else { return };
        let (mode, owner, user) = (metadata.permissions().mode() & 0o7777, metadata.uid(), geteuid());
        if mode & GROUP_AND_OTHERS != 0 {
            self.expose(path, Problem::ExposedStore { path: path.to_owned(), mode });
        } else if !user.is_root() && ![0, user.as_raw()].contains(&owner) {
            self.expose(path, Problem::ForeignStore { path: path.to_owned(), owner });
        }
    }

    fn expose(&self, path: &Path, problem: Problem) {
        self.context.exposed.borrow_mut().entry(path.to_owned()).or_insert_with(|| (self.key.clone(), problem));
    }

    /// A path relative to the file's folder.
    pub(super) fn resolve(&self, path: &str) -> PathBuf {
        self.context.folder.join(path)
    }

    /// Reads a secret from where it is stored.
    pub(super) fn secret(&self, name: &str, given: &Option<SecretSource>) -> Option<Secret> {
        self.at(name).resolve_secret(given.as_ref()?)
    }

    /// Reads a secret and parses it; the message does not show it.
    pub(super) fn parse_secret<T>(
        &self,
        name: &str,
        given: &Option<SecretSource>,
        parse: impl FnOnce(&str) -> Result<T, Problem>,
    ) -> Option<T> {
        let secret = self.secret(name, given)?;
        parse(secret.expose()).map_err(|problem| self.at(name).report(problem)).ok()
    }

    /// Reads one secret or a list of them, and parses each.
    pub(super) fn parse_secrets<T>(
        &self,
        name: &str,
        given: &Option<SecretSources>,
        parse: impl Fn(&str) -> Result<T, Problem>,
    ) -> Vec<T> {
        let reader = self.at(name);
        let one = |reader: &Self, source| {
            let secret = reader.resolve_secret(source)?;
            parse(secret.expose()).map_err(|problem| reader.report(problem)).ok()
        };
        match given {
            None => Vec::new(),
            Some(SecretSources::One(source)) => one(&reader, source).into_iter().collect(),
            Some(SecretSources::Several(sources)) => {
                if sources.is_empty() {
                    reader.report(Problem::expected("an empty list", "at least one secret, or the key left out"));
                }
                let numbered = sources.iter().enumerate();
                numbered.filter_map(|(index, source)| one(&reader.nth(index), source)).collect()
            }
        }
    }

    /// The secret of this key.
    pub(super) fn resolve_secret(&self, source: &SecretSource) -> Option<Secret> {
        if let (SecretSource::Text(_), Some(file)) = (source, self.context.file)
            && self.context.layers.is_of_file(&self.key)
            && let Ok(metadata) = fs::metadata(file)
        {
            self.check_permissions(file, &metadata);
        }
        self.resolve_text(source)
    }

    /// The value of this key, where an inline one is not secret.
    pub(super) fn resolve_text(&self, source: &SecretSource) -> Option<Secret> {
        let opened = match source {
            SecretSource::Text(secret) => Ok(secret.clone()),
            SecretSource::Location(SecretLocation { env: Some(name), file: None, credential: None }) => {
                self.variable(name)
            }
            SecretSource::Location(SecretLocation { env: None, file: Some(path), credential: None }) => {
                let path = self.resolve(path);
                read(&path)
                    .map(|(secret, metadata)| {
                        self.check_permissions(&path, &metadata);
                        secret
                    })
                    .map_err(|source| Problem::Unreadable { path, source })
            }
            SecretSource::Location(SecretLocation { env: None, file: None, credential: Some(name) }) => {
                self.credential(name)
            }
            SecretSource::Location(_) => {
                Err(Problem::expected("no location, or several", "exactly one of `env`, `file` and `credential`"))
            }
        };
        let opened = opened.map_err(|problem| self.report(problem)).ok()?;
        let key = self.key.to_string();
        let print = fingerprint::of_secret(&key, &opened);
        self.context.secrets.borrow_mut().insert(key, print);
        if let SecretSource::Location(_) = source {
            self.refer(key_changes::of_secret(&opened));
        }
        Some(opened)
    }

    /// Records the state of what this key refers to.
    fn refer(&self, hash: u64) {
        self.context.referred.borrow_mut().push((self.key.to_string(), hash));
    }

    fn variable(&self, name: &str) -> Result<Secret, Problem> {
        // A line of an environment file may end in a blank or a carriage return.
        let text = self.context.env.get(name).map(|text| text.trim()).filter(|text| !text.is_empty());
        text.map(Secret::new).ok_or_else(|| Problem::Environment(name.to_owned()))
    }

    fn credential(&self, name: &str) -> Result<Secret, Problem> {
        if name.is_empty() || name.contains('/') || name.starts_with('.') {
            return Err(Problem::expected("a path", "the name of a credential"));
        }
        let folder = self.context.env.get(CREDENTIALS).map(|folder| Path::new(folder.as_str()).join(name));
        // No check of permissions: systemd sets them, and may use an access list, which looks like group access.
        let missing = match folder.map(|path| (read(&path), path)) {
            Some((Ok((secret, _)), _)) => return Ok(secret),
            Some((Err(source), path)) => Some((source, path)),
            None => None,
        };
        if self.context.file.is_none()
            || missing.as_ref().is_some_and(|(error, _)| error.kind() != io::ErrorKind::NotFound)
        {
            return Err(missing.map_or_else(
                || Problem::Environment(CREDENTIALS.to_owned()),
                |(source, path)| Problem::Unreadable { path, source },
            ));
        }
        // For commands outside the service: the file that systemd loads is usually beside the configuration.
        let path = self.context.folder.join(name);
        let (secret, metadata) = match (read(&path), missing) {
            (Ok(found), _) => found,
            (Err(_), Some((source, path))) => return Err(Problem::Unreadable { path, source }),
            (Err(source), None) => return Err(Problem::Credential { path, source }),
        };
        self.check_permissions(&path, &metadata);
        Ok(secret)
    }
}

/// A file's text, without the blanks and line ends around it that editors and `echo` add, and its metadata.
fn read(path: &Path) -> io::Result<(Secret, Metadata)> {
    let (text, metadata) = bounded_file::read_text(path)?;
    Ok((Secret::new(text.trim()), metadata))
}
