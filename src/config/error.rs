//! The errors of a configuration: what is wrong, where, and how to fix it.
//!
//! Invariant: no text here holds a value that may be secret. Tokens, keys and URLs are described, never quoted.

use std::borrow::Cow;
use std::fmt;
use std::io;
use std::path::PathBuf;

use crate::route::PatternError;
use crate::wechat::ReplyError;

/// One mistake: the key, what is wrong with its value, and where that value came from.
#[derive(Debug, thiserror::Error)]
pub struct ConfigError {
    /// The path of the key (`accounts.shop.routes[2].match.event`), or of the file if none of it could be read.
    pub key: String,
    pub problem: Problem,
    /// The file, environment variable or command line that the value came from.
    pub origin: Option<String>,
}

impl ConfigError {
    /// How to fix it.
    pub fn remedy(&self) -> Option<Remedy> {
        self.problem.remedy()
    }
}

/// One line: tools that parse the stderr of `check` rely on one error per line.
impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { key, problem, origin } = self;
        write!(f, "{key}: {}", Advised(problem))?;
        origin.as_ref().map_or(Ok(()), |origin| write!(f, " ({origin})"))
    }
}

#[derive(Debug, thiserror::Error)]
pub enum Problem {
    #[error("cannot read this file: {0}")]
    File(#[source] io::Error),
    #[error("{0}")]
    Syntax(String),
    #[error("missing")]
    Missing(&'static str),
    /// The table has no key of that name.
    #[error("unknown key")]
    UnknownKey {
        /// The known key with the smallest edit distance, if it is small.
        nearest: Option<String>,
        /// The keys that this table has.
        known: &'static [&'static str],
    },
    /// A value of the wrong type, such as a table in place of a text.
    #[error("found {found}")]
    Shape { found: &'static str, expected: String },
    /// The value is out of range, not in the list, or malformed.
    #[error("found `{found}`")]
    Value {
        /// Shortened.
        found: String,
        expected: &'static str,
    },
    /// The same for a value that may be secret; holds what was expected.
    #[error("invalid value")]
    Secret(&'static str),
    /// An EncodingAESKey with this length, which is wrong.
    #[error("found {0} characters")]
    KeyLength(usize),
    /// The key contradicts another key, or a value elsewhere.
    #[error("{0}")]
    Rule(&'static str, Remedy),
    #[error("there is no target `{name}`")]
    UnknownTarget {
        name: String,
        /// The target with the smallest edit distance, if it is small.
        nearest: Option<String>,
    },
    /// The path is taken by the key that is named.
    #[error("{0} has the same path")]
    SamePath(String),
    /// The variable of `{ env = ".." }` is not set.
    #[error("the environment variable {0} is not set or empty")]
    Environment(String),
    /// A credential that is neither given by systemd nor in the configuration's folder.
    #[error("the environment variable CREDENTIALS_DIRECTORY is not set, and cannot read {}: {source}", path.display())]
    Credential { path: PathBuf, source: io::Error },
    /// The file that a key names cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Unreadable { path: PathBuf, source: io::Error },
    /// A file with a secret that group or others may read or change.
    #[error("{} holds a secret that group or others may read or change (mode {mode:04o})", path.display())]
    Exposed { path: PathBuf, mode: u32 },
    /// The store's folder, which group or others may read or change.
    #[error("the store {} may be read or changed by group or others (mode {mode:04o})", path.display())]
    ExposedStore { path: PathBuf, mode: u32 },
    /// The store's folder, which another user may change.
    #[error("the store {} belongs to user {owner}", path.display())]
    ForeignStore { path: PathBuf, owner: u32 },
    #[error("{0}{reason}", reason = Reason(.0))]
    Pattern(#[source] PatternError),
    /// What is wrong with the settings of a database. Shows no part of its URL but hosts.
    #[error("{text}")]
    Database { text: String, remedy: &'static str },
    #[error("WeChat would not accept this reply: {0}")]
    Reply(#[source] ReplyError),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Remedy {
    /// The value should be this.
    Expected(Cow<'static, str>),
    /// This name was probably meant.
    DidYouMean(String),
    /// Do this.
    Action(Cow<'static, str>),
}

impl fmt::Display for Remedy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Expected(value) => write!(f, "expected {value}"),
            Self::DidYouMean(name) => write!(f, "did you mean `{name}`?"),
            Self::Action(action) => f.write_str(action),
        }
    }
}

impl Problem {
    /// A broken rule, and the value that would satisfy it.
    pub(super) fn expected(broken: &'static str, expected: &'static str) -> Self {
        Self::Rule(broken, Remedy::Expected(expected.into()))
    }

    /// A broken rule, and how to fix it.
    pub(super) fn action(broken: &'static str, action: &'static str) -> Self {
        Self::Rule(broken, Remedy::Action(action.into()))
    }

    /// How to fix it; `None` if the problem's own text shows that, as a parser's message does.
    pub fn remedy(&self) -> Option<Remedy> {
        let expected = |value: &'static str| Remedy::Expected(value.into());
        let nearest = |name: &Option<String>| name.clone().map(Remedy::DidYouMean);
        Some(match self {
            Self::File(_) => {
                Remedy::Action("write a first one with `wxrelay init`, or name another with `-c FILE`".into())
            }
            Self::Missing(value) | Self::Secret(value) | Self::Value { expected: value, .. } => expected(value),
            Self::Shape { expected, .. } => Remedy::Expected(expected.clone().into()),
            Self::UnknownKey { nearest: name, known } => {
                nearest(name).unwrap_or_else(|| Remedy::Expected(format!("one of: {}", known.join(", ")).into()))
            }
            Self::KeyLength(_) => expected("exactly 43 characters of A-Z, a-z and 0-9"),
            Self::Rule(_, remedy) => remedy.clone(),
            Self::Database { remedy, .. } => Remedy::Action((*remedy).into()),
            Self::UnknownTarget { nearest: name, .. } => {
                nearest(name).unwrap_or_else(|| expected("the name of a [targets.NAME] table"))
            }
            Self::SamePath(_) => expected("a different path for each"),
            Self::Environment(_) => Remedy::Action("set it, or give the value by `file` or `credential`".into()),
            Self::Credential { .. } => Remedy::Action(
                "run it as a user that may read this file, or set the variable to the folder of the credentials".into(),
            ),
            Self::Unreadable { .. } => expected("a file that this user may read"),
            Self::Exposed { path, .. } => Remedy::Action(format!("chmod 600 {}", path.display()).into()),
            Self::ExposedStore { path, .. } => Remedy::Action(format!("chmod 700 {}", path.display()).into()),
            Self::ForeignStore { path, .. } => Remedy::Action(
                format!("run the relay as that user, or chown -R {} to the relay's user", path.display()).into(),
            ),
            Self::Syntax(_) | Self::Pattern(_) | Self::Reply(_) => return None,
        })
    }
}

/// A problem with its remedy, on one line.
pub(super) struct Advised<'a>(pub(super) &'a Problem);

impl fmt::Display for Advised<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(problem) = self;
        match problem.remedy() {
            None => write!(f, "{problem}"),
            Some(remedy @ Remedy::Action(_)) => write!(f, "{problem}; {remedy}"),
            Some(remedy) => write!(f, "{problem}, {remedy}"),
        }
    }
}

/// The last line of a regex error is the reason; the lines before it quote the pattern.
struct Reason<'a>(&'a PatternError);

impl fmt::Display for Reason<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = std::error::Error::source(self.0).map(ToString::to_string).unwrap_or_default();
        text.lines().last().map_or(Ok(()), |line| write!(f, ": {}", line.trim_start_matches("error: ")))
    }
}

/// The name in `known` that is so similar to `found` that a typo is likely.
pub(super) fn nearest<'k>(found: &str, known: impl IntoIterator<Item = &'k str>) -> Option<String> {
    let found = found.to_ascii_lowercase();
    let scored = known.into_iter().map(|known| (strsim::damerau_levenshtein(&found, known), known));
    let (distance, known) = scored.min()?;
    (distance <= 1 + known.len() / 4).then(|| known.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_typo_gets_a_suggestion_and_an_unrelated_word_none() {
        let known = ["timeout", "retry", "rate", "to"];
        assert_eq!(nearest("timout", known).as_deref(), Some("timeout"));
        assert_eq!(nearest("time_out", known).as_deref(), Some("timeout"));
        assert_eq!(nearest("Retry", known).as_deref(), Some("retry"));
        assert_eq!(nearest("colour", known), None);
        assert_eq!(nearest("x", []), None);
    }

    #[test]
    fn an_error_reads_key_problem_expectation_origin() {
        let problem = Problem::Value { found: "soon".into(), expected: "a duration such as \"5s\"" };
        let error = ConfigError { key: "server.drain".into(), problem, origin: Some("config.toml".into()) };
        assert_eq!(error.to_string(), "server.drain: found `soon`, expected a duration such as \"5s\" (config.toml)");
        assert_eq!(error.remedy(), Some(Remedy::Expected("a duration such as \"5s\"".into())));
    }

    #[test]
    fn an_action_follows_a_semicolon_and_a_suggestion_a_comma() {
        let error = |problem| ConfigError { key: "k".into(), problem, origin: None }.to_string();
        assert_eq!(error(Problem::action("unused", "remove it")), "k: unused; remove it");
        let problem = Problem::UnknownKey { nearest: Some("retry".into()), known: &[] };
        assert_eq!(error(problem), "k: unknown key, did you mean `retry`?");
    }
}
