//! What can be wrong with a configuration, and where.
//!
//! Invariant: no text here holds a value that may be secret. Tokens, keys and URLs are described, never quoted.

use std::fmt;
use std::io;
use std::path::PathBuf;

use crate::route::PatternError;
use crate::wechat::ReplyError;

/// One mistake: the key, what is wrong with it, and where the value came from.
#[derive(Debug, thiserror::Error)]
#[error("{key}: {problem}{}", Origin(origin.as_deref()))]
pub struct ConfigError {
    /// The path of the key (`accounts.shop.routes[2].match.event`), or of the file if none of it could be read.
    pub key: String,
    /// What is wrong, and what was expected.
    pub problem: Problem,
    /// The file, environment variable or command line that the value came from.
    pub origin: Option<String>,
}

/// What is wrong with the value of a key.
#[derive(Debug, thiserror::Error)]
pub enum Problem {
    /// The file is not there, or may not be read.
    #[error("cannot read this file: {0}; `wxrelay init` writes a first one, `-c FILE` names another")]
    File(#[source] io::Error),
    /// The file is no TOML.
    #[error("{0}")]
    Syntax(String),
    /// The key is needed.
    #[error("missing, expected {0}")]
    Missing(&'static str),
    /// No part of the configuration has a key of that name.
    #[error("unknown key, {}", Known(nearest.as_deref(), known))]
    UnknownKey {
        /// The known key that looks most like it.
        nearest: Option<String>,
        /// The keys that may stand here.
        known: &'static [&'static str],
    },
    /// A table where a text should be, and the like.
    #[error("found {found}, expected {expected}")]
    Shape {
        /// What was found.
        found: &'static str,
        /// What should be there.
        expected: String,
    },
    /// The value is out of range, not in the list, or not of the form.
    #[error("found `{found}`, expected {expected}")]
    Value {
        /// The value, shortened.
        found: String,
        /// What should be there.
        expected: &'static str,
    },
    /// The same for a value that must not be shown.
    #[error("expected {0}")]
    Hidden(&'static str),
    /// An EncodingAESKey of the wrong length.
    #[error("expected exactly 43 characters of A-Z, a-z and 0-9, found {0} characters")]
    KeyLength(usize),
    /// The key does not go together with another, or with a value elsewhere.
    #[error("{0}")]
    Rule(&'static str),
    /// No target of that name.
    #[error("there is no target `{name}`{}", Nearest(nearest.as_deref()))]
    UnknownTarget {
        /// The name that was found.
        name: String,
        /// The target whose name looks most like it.
        nearest: Option<String>,
    },
    /// Two accounts on one path.
    #[error("accounts.{0} has the same path, expected a path of its own for each account")]
    SamePath(String),
    /// Nothing in the environment for `{ env = ".." }`.
    #[error("the environment variable {0} is not set or empty; set it, or give the value by `file` or `credential`")]
    Environment(String),
    /// A file that a key names and that cannot be read.
    #[error("cannot read {}: {source}; it must be a file that this user may read", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A file with a secret that others than its owner may read or change.
    #[error("{} holds a secret that group or others may read or change (mode {mode:04o}): chmod 600 {}", path.display(), path.display())]
    Exposed {
        /// The file.
        path: PathBuf,
        /// Its rights.
        mode: u32,
    },
    /// What does not match.
    #[error("{0}{reason}", reason = Reason(.0))]
    Pattern(#[source] PatternError),
    /// A fixed reply that WeChat would not take.
    #[error("WeChat would not take this reply: {0}")]
    Reply(#[source] ReplyError),
}

struct Origin<'a>(Option<&'a str>);

impl fmt::Display for Origin<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.map_or(Ok(()), |origin| write!(f, " ({origin})"))
    }
}

struct Nearest<'a>(Option<&'a str>);

impl fmt::Display for Nearest<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(nearest) => write!(f, ", did you mean `{nearest}`?"),
            None => f.write_str(", expected the name of a [targets.NAME] table"),
        }
    }
}

struct Known<'a>(Option<&'a str>, &'a [&'a str]);

impl fmt::Display for Known<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(nearest) => write!(f, "did you mean `{nearest}`?"),
            None => write!(f, "expected one of: {}", self.1.join(", ")),
        }
    }
}

/// The last line of a regex error says what is wrong; those before it draw the pattern.
struct Reason<'a>(&'a PatternError);

impl fmt::Display for Reason<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = std::error::Error::source(self.0).map(ToString::to_string).unwrap_or_default();
        text.lines().last().map_or(Ok(()), |line| write!(f, ": {}", line.trim_start_matches("error: ")))
    }
}

/// The one of `known` that looks so much like `found` that a slip is likely.
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
    fn a_slip_of_the_pen_gets_a_suggestion_and_a_strange_word_none() {
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
    }
}
