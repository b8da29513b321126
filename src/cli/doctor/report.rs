//! What the checks say: a line each, for people and for scripts.

use std::fmt;

use serde_json::{Value, json};

use crate::cli::target_problem::TargetProblem;
use crate::clock::UnixMillis;

/// How a check went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// As it should be.
    Ok,
    /// It works, or could not be looked at; something is to be done or known.
    Warning,
    /// It keeps pushes or deliveries from going through.
    Failed,
}

impl Verdict {
    /// The word for it.
    fn word(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warning => "warning",
            Self::Failed => "failed",
        }
    }
}

/// What is checked: the check, and of what.
#[derive(Clone, Debug)]
pub(super) struct Check {
    name: &'static str,
    of: String,
}

/// One check's line. Its texts hold no token, key, signature, query or body of a push.
#[derive(Clone, Debug)]
pub(super) struct Line {
    check: Check,
    verdict: Verdict,
    text: String,
    remedy: Option<String>,
}

impl Check {
    /// `of` is the key, file, URL or target that is looked at; empty where the name says it.
    pub(super) fn new(name: &'static str, of: impl fmt::Display) -> Self {
        Self { name, of: of.to_string() }
    }

    /// All is well.
    pub(super) fn ok(&self, text: impl fmt::Display) -> Line {
        Line { check: self.clone(), verdict: Verdict::Ok, text: text.to_string(), remedy: None }
    }

    /// Something is to be known or done.
    pub(super) fn warning(&self, text: impl fmt::Display, remedy: impl fmt::Display) -> Line {
        self.with_remedy(Verdict::Warning, &text, &remedy)
    }

    /// Something is wrong.
    pub(super) fn failed(&self, text: impl fmt::Display, remedy: impl fmt::Display) -> Line {
        self.with_remedy(Verdict::Failed, &text, &remedy)
    }

    /// Something is wrong, told by an error of the form `what; remedy`, or by one that only the other side can explain.
    pub(super) fn failed_by(&self, error: impl fmt::Display) -> Line {
        let told = error.to_string();
        let (text, remedy) = told.rsplit_once("; ").unwrap_or((&told, "look into the log of what answers there"));
        self.failed(text, remedy)
    }

    /// A target fails its check.
    pub(super) fn failed_with(&self, problem: TargetProblem) -> Line {
        let TargetProblem { text, remedy } = problem;
        self.failed(text, remedy.unwrap_or("look into the log of what answers there"))
    }

    fn with_remedy(&self, verdict: Verdict, text: &dyn fmt::Display, remedy: &dyn fmt::Display) -> Line {
        let remedy = Some(remedy.to_string()).filter(|remedy| !remedy.is_empty());
        Line { check: self.clone(), verdict, text: text.to_string(), remedy }
    }

    /// The check's name and what it is of, as a person reads it.
    fn title(&self) -> String {
        if self.of.is_empty() { self.name.to_owned() } else { format!("{} {}", self.name, self.of) }
    }
}

/// What a part of the checks found.
#[derive(Debug, Default)]
pub(super) struct Findings {
    /// In the order to print.
    pub(super) lines: Vec<Line>,
    /// The clocks of those who answered.
    pub(super) clocks: Vec<PeerClock>,
}

impl Findings {
    /// Puts others behind these.
    pub(super) fn add(&mut self, more: Self) {
        self.lines.extend(more.lines);
        self.clocks.extend(more.clocks);
    }
}

impl From<Vec<Line>> for Findings {
    fn from(lines: Vec<Line>) -> Self {
        Self { lines, clocks: Vec::new() }
    }
}

impl From<Line> for Findings {
    fn from(line: Line) -> Self {
        vec![line].into()
    }
}

/// A peer's clock beside ours.
#[derive(Clone, Debug)]
pub(super) struct PeerClock {
    /// Who.
    pub(super) peer: String,
    /// Its `Date`, in whole seconds.
    pub(super) date: UnixMillis,
    /// Our clock, half of the exchange before the answer was there.
    pub(super) ours: UnixMillis,
    /// Whether it runs on this machine, and so by our clock.
    pub(super) here: bool,
}

/// All lines.
pub(super) struct Report<'a>(pub(super) &'a [Line]);

impl Report<'_> {
    /// Whether nothing failed.
    pub(super) fn is_well(&self) -> bool {
        self.count(Verdict::Failed) == 0
    }

    fn count(&self, verdict: Verdict) -> usize {
        self.0.iter().filter(|line| line.verdict == verdict).count()
    }

    /// For scripts.
    pub(super) fn to_json(&self) -> Value {
        let (failed, warnings) = (self.count(Verdict::Failed), self.count(Verdict::Warning));
        let worst = match (failed, warnings) {
            (0, 0) => Verdict::Ok,
            (0, _) => Verdict::Warning,
            _ => Verdict::Failed,
        };
        let line = |line: &Line| {
            json!({
                "check": line.check.name, "of": line.check.of, "result": line.verdict.word(), "text": line.text,
                "remedy": line.remedy,
            })
        };
        let checks: Vec<_> = self.0.iter().map(line).collect();
        json!({ "result": worst.word(), "failed": failed, "warnings": warnings, "checks": checks })
    }
}

/// For people.
impl fmt::Display for Report<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = self.0.iter().map(|line| line.check.title().chars().count()).max().unwrap_or(0);
        for line in self.0 {
            writeln!(f, "{:<7}  {:<width$}  {}", line.verdict.word(), line.check.title(), line.text)?;
            if let Some(remedy) = &line.remedy {
                writeln!(f, "         {:width$}  -> {remedy}", "")?;
            }
        }
        match (self.count(Verdict::Failed), self.count(Verdict::Warning)) {
            (0, 0) => writeln!(f, "\nall {} checks are ok", self.0.len()),
            (0, warnings) => writeln!(f, "\nnothing failed; warnings: {warnings}"),
            (failed, warnings) => writeln!(f, "\nfailed: {failed}; warnings: {warnings}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_aligned_and_remedies_indented() {
        let lines = [
            Check::new("disk", "").ok("fast"),
            Check::new("target", "crm").failed_by("can't connect: refused; does it run?"),
        ];
        let text = Report(&lines).to_string();
        assert_eq!(
            text,
            "ok       disk        fast\n\
             failed   target crm  can't connect: refused\n                     -> does it run?\n\
             \nfailed: 1; warnings: 0\n"
        );
        let json = Report(&lines).to_json();
        assert_eq!(
            (json["result"].as_str(), json["checks"][1]["remedy"].as_str()),
            (Some("failed"), Some("does it run?"))
        );
    }
}
