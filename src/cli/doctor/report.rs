//! The results of the checks, as aligned text and as JSON.

use std::fmt;

use serde_json::{Value, json};

use crate::cli::simulate::Http10Error;
use crate::clock::UnixMillis;
use crate::deliver::TargetProblem;
use crate::escape;

/// The outcome of a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CheckStatus {
    Ok,
    /// It works or could not be checked, but deserves the operator's attention.
    Warning,
    /// It prevents pushes or deliveries.
    Failed,
}

impl CheckStatus {
    /// The name in text and JSON.
    fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warning => "warning",
            Self::Failed => "failed",
        }
    }
}

/// A check, and what it checks.
#[derive(Clone, Debug)]
pub(super) struct DoctorCheck {
    name: &'static str,
    of: String,
}

/// The result of one check. Its texts hold no token, key, signature, query or body of a push.
#[derive(Clone, Debug)]
pub(super) struct CheckResult {
    check: DoctorCheck,
    verdict: CheckStatus,
    text: String,
    remedy: Option<String>,
}

impl DoctorCheck {
    /// `of` is the key, file, URL or target that is checked; empty if the name is enough.
    pub(super) fn new(name: &'static str, of: impl fmt::Display) -> Self {
        Self { name, of: of.to_string() }
    }

    pub(super) fn ok(&self, text: impl fmt::Display) -> CheckResult {
        CheckResult { check: self.clone(), verdict: CheckStatus::Ok, text: text.to_string(), remedy: None }
    }

    pub(super) fn warning(&self, text: impl fmt::Display, remedy: impl fmt::Display) -> CheckResult {
        self.with_remedy(CheckStatus::Warning, &text, &remedy)
    }

    pub(super) fn failed(&self, text: impl fmt::Display, remedy: impl fmt::Display) -> CheckResult {
        self.with_remedy(CheckStatus::Failed, &text, &remedy)
    }

    pub(super) fn failed_with(&self, failure: impl Into<CheckFailure>) -> CheckResult {
        let CheckFailure { text, remedy } = failure.into();
        self.failed(text, remedy)
    }

    fn with_remedy(&self, verdict: CheckStatus, text: &dyn fmt::Display, remedy: &dyn fmt::Display) -> CheckResult {
        let remedy = Some(remedy.to_string()).filter(|remedy| !remedy.is_empty());
        CheckResult { check: self.clone(), verdict, text: text.to_string(), remedy }
    }

    /// The check's name and what it checks.
    fn title(&self) -> String {
        if self.of.is_empty() { self.name.to_owned() } else { format!("{} {}", self.name, self.of) }
    }
}

/// Why a check fails, and how to fix it.
#[derive(Clone, Debug)]
pub(super) struct CheckFailure {
    pub(super) text: String,
    pub(super) remedy: &'static str,
}

impl CheckFailure {
    pub(super) fn new(text: impl Into<String>, remedy: &'static str) -> Self {
        Self { text: text.into(), remedy }
    }
}

/// The remedy for an error that only the peer's log can explain.
const CHECK_LOG: &str = "check the log of what answers there";

impl From<TargetProblem> for CheckFailure {
    fn from(TargetProblem { text, remedy }: TargetProblem) -> Self {
        Self { text, remedy: remedy.unwrap_or(CHECK_LOG) }
    }
}

impl From<Http10Error> for CheckFailure {
    fn from(error: Http10Error) -> Self {
        Self { text: error.to_string(), remedy: error.remedy().unwrap_or(CHECK_LOG) }
    }
}

/// The results of a group of checks.
#[derive(Debug, Default)]
pub(super) struct CheckResults {
    /// In the order to print.
    pub(super) lines: Vec<CheckResult>,
    /// The clocks of the peers that answered.
    pub(super) clocks: Vec<PeerClock>,
}

impl CheckResults {
    pub(super) fn add(&mut self, more: Self) {
        self.lines.extend(more.lines);
        self.clocks.extend(more.clocks);
    }
}

impl From<Vec<CheckResult>> for CheckResults {
    fn from(lines: Vec<CheckResult>) -> Self {
        Self { lines, clocks: Vec::new() }
    }
}

impl From<CheckResult> for CheckResults {
    fn from(line: CheckResult) -> Self {
        vec![line].into()
    }
}

/// A peer's clock compared with ours.
#[derive(Clone, Debug)]
pub(super) struct PeerClock {
    pub(super) peer: String,
    /// Its `Date`, in whole seconds.
    pub(super) date: UnixMillis,
    /// Our clock, half of the exchange before the answer.
    pub(super) ours: UnixMillis,
    /// Whether it runs on this machine, with the same clock.
    pub(super) here: bool,
}

pub(super) struct DoctorReport<'a>(pub(super) &'a [CheckResult]);

impl DoctorReport<'_> {
    /// Whether nothing failed.
    pub(super) fn is_well(&self) -> bool {
        self.count(CheckStatus::Failed) == 0
    }

    fn count(&self, verdict: CheckStatus) -> usize {
        self.0.iter().filter(|line| line.verdict == verdict).count()
    }

    pub(super) fn to_json(&self) -> Value {
        let (failed, warnings) = (self.count(CheckStatus::Failed), self.count(CheckStatus::Warning));
        let worst = match (failed, warnings) {
            (0, 0) => CheckStatus::Ok,
            (0, _) => CheckStatus::Warning,
            _ => CheckStatus::Failed,
        };
        let line = |line: &CheckResult| {
            json!({
                "check": line.check.name, "of": line.check.of, "result": line.verdict.name(), "text": line.text,
                "remedy": line.remedy,
            })
        };
        let checks: Vec<_> = self.0.iter().map(line).collect();
        json!({ "result": worst.name(), "failed": failed, "warnings": warnings, "checks": checks })
    }
}

impl fmt::Display for DoctorReport<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = self.0.iter().map(|line| line.check.title().chars().count()).max().unwrap_or(0);
        for line in self.0 {
            let (title, text) = (line.check.title(), &line.text);
            writeln!(f, "{}", escape::line(&format!("{:<7}  {title:<width$}  {text}", line.verdict.name())))?;
            if let Some(remedy) = &line.remedy {
                writeln!(f, "         {:width$}  -> {}", "", escape::line(remedy))?;
            }
        }
        match (self.count(CheckStatus::Failed), self.count(CheckStatus::Warning)) {
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
    fn results_are_aligned_and_remedies_indented() {
        let lines = [
            DoctorCheck::new("disk", "").ok("fast"),
            DoctorCheck::new("target", "crm").failed_with(CheckFailure::new("can't connect: refused", "does it run?")),
        ];
        let text = DoctorReport(&lines).to_string();
        assert_eq!(
            text,
            "ok       disk        fast\n\
             failed   target crm  can't connect: refused\n                     -> does it run?\n\
             \nfailed: 1; warnings: 0\n"
        );
        let json = DoctorReport(&lines).to_json();
        assert_eq!(
            (json["result"].as_str(), json["checks"][1]["remedy"].as_str()),
            (Some("failed"), Some("does it run?"))
        );
    }
}
