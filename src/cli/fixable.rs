//! Errors of commands that the operator can fix: what failed, and the remedy in a field of its own.

use std::fmt;

use super::BadConfig;
use crate::server::{BindError, tls};
use crate::{app, queue};

/// What failed, and how to fix it. `main` prints the remedy on a line of its own.
#[derive(Debug, thiserror::Error)]
#[error("{problem}")]
pub struct FixableError {
    problem: String,
    remedy: String,
}

/// Arguments that are wrong, as only the relay or the store can say.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct UsageError(pub(super) String);

pub(super) fn fixable(problem: impl fmt::Display, remedy: impl fmt::Display) -> FixableError {
    FixableError { problem: problem.to_string(), remedy: remedy.to_string() }
}

/// The remedy of an error: that of a [`FixableError`], else that of the store's or a listener's error in its chain.
pub fn remedy(error: &anyhow::Error) -> Option<&str> {
    let own = error.downcast_ref::<FixableError>().map(|error| error.remedy.as_str());
    own.or_else(|| error.chain().find_map(remedy_of))
}

/// An error with its causes and its remedy, on one line.
pub(super) fn on_one_line(error: &anyhow::Error) -> String {
    let remedy = remedy(error).map(|remedy| format!("; {remedy}")).unwrap_or_default();
    format!("{error:#}{remedy}")
}

/// The exit code of an error: 2 for wrong arguments, 78 (`EX_CONFIG` of sysexits.h) if only a change of the configuration fixes it, 74
/// (`EX_IOERR`) if the relay cannot start on a damaged store, else 1.
pub fn exit_code(error: &anyhow::Error) -> u8 {
    let of_start = error.chain().find_map(|cause| cause.downcast_ref::<app::StartError>());
    if error.downcast_ref::<UsageError>().is_some() {
        // As clap does.
        return 2;
    }
    let is_configuration = of_start.is_some_and(app::StartError::is_configuration);
    if is_configuration || error.downcast_ref::<BadConfig>().is_some() {
        BadConfig::EXIT_CODE
    } else if matches!(of_start, Some(app::StartError::Queue(store)) if store.is_damage()) {
        queue::EXIT_IO
    } else {
        1
    }
}

fn remedy_of(cause: &(dyn std::error::Error + 'static)) -> Option<&'static str> {
    // Transparent: the chain has the variants' sources, not the errors that they hold.
    let start = cause.downcast_ref::<app::StartError>();
    let bind = match start {
        Some(app::StartError::Bind(error)) => Some(error),
        _ => cause.downcast_ref::<BindError>(),
    };
    let of_client = matches!(start, Some(app::StartError::Target { .. } | app::StartError::Collector(_)));
    bind.map(BindError::remedy)
        .or(of_client.then_some("check the files with certificates that it names: ca, client_cert and client_key"))
        .or_else(|| cause.downcast_ref::<tls::Error>().map(tls::Error::remedy))
        .or_else(|| cause.downcast_ref::<queue::Error>()?.remedy())
}

#[cfg(test)]
mod tests {
    use std::io;

    use anyhow::Context as _;

    use super::*;

    #[test]
    fn a_remedy_is_found_under_and_over_other_errors() {
        let missing = || io::Error::from(io::ErrorKind::NotFound);
        let over: anyhow::Result<()> = Err(missing()).context(fixable("cannot read x", "create it"));
        let under = over.context("at the start").unwrap_err();
        assert_eq!(remedy(&under), Some("create it"));
        assert!(format!("{under:#}").starts_with("at the start: cannot read x: "), "{under:#}");
        assert_eq!(remedy(&anyhow::Error::from(missing())), None);
        let full = anyhow::Error::from(queue::Error::Full).context("at the start");
        assert!(remedy(&full).is_some_and(|remedy| remedy.contains("disk space")));
    }
}
