//! Judges the answer to a verification: whether WeChat's console would accept it, and the remedy if not.

use std::time::Duration;

use super::LIMIT;
use super::exchange::{CHUNKED, VerificationError};
use super::report::{CheckResult, DoctorCheck};
use crate::cli::simulate::Http10Error;
use crate::deliver::{TargetProblem, VerificationFailure};
use crate::push::Account;

const CHECK_SERVER: &str = "is it this relay, with this configuration, that answers there?";

/// The result of a verification.
pub(super) fn verification_result(
    check: &DoctorCheck,
    account: &Account,
    result: Result<(), VerificationError>,
    took: Duration,
) -> CheckResult {
    let name = &account.name;
    match result {
        Ok(()) => check.ok(format!("accepted, with the token of accounts.{name}, {} ms", took.as_millis())),
        Err(VerificationError::Answer(failure)) => match explain(&failure, name) {
            Some((text, remedy)) => check.failed(text, remedy),
            None => check.failed_with(TargetProblem::from(failure)),
        },
        Err(VerificationError::Chunked) => {
            check.failed(CHUNKED, "switch buffering on, or chunking off, in the proxy in front")
        }
        Err(VerificationError::NoAnswer(Http10Error::Timeout)) => {
            check.failed(format!("no full answer within the {LIMIT:?} that WeChat waits"), CHECK_SERVER)
        }
        Err(VerificationError::NoAnswer(failure)) => check.failed_with(failure),
        Err(VerificationError::Random) => check.failed("the system gives no random bytes", ""),
    }
}

/// Problem and remedy of a wrong answer; `None` where the failure's own text fits.
fn explain(failure: &VerificationFailure, name: &str) -> Option<(String, String)> {
    let own = |text: &str, remedy: &str| Some((text.to_owned(), remedy.to_owned()));
    match failure {
        VerificationFailure::Redirect { status, location } => {
            let to = location.as_deref().map(|to| format!(" to {to}")).unwrap_or_default();
            own(
                &format!("answered {status}, a redirect{to}, which WeChat does not follow"),
                "enter the final URL in WeChat's console, or have this one answered without a redirect",
            )
        }
        VerificationFailure::Unauthorized(status) => own(
            &format!("answered {status}: the token of accounts.{name} is not accepted"),
            &format!(
                "{CHECK_SERVER} A firewall that refuses HTTP/1.0 or `Mozilla/4.0` answers so too, and so does the relay when \
                 its clock is wrong"
            ),
        ),
        VerificationFailure::NotFound => own(
            "answered 404: nothing is at this path",
            &format!("compare it with accounts.{name}.path and with what the proxy in front makes of it"),
        ),
        VerificationFailure::MethodNotAllowed => own("answered 405: GET is not allowed", CHECK_SERVER),
        VerificationFailure::Status(400) => {
            own("answered 400: the query did not arrive complete", "let the proxy in front pass the query on")
        }
        VerificationFailure::Status(status @ 502..=504) => own(
            &format!("answered {status}: the server behind it is not ready"),
            "is the relay running, and does the proxy in front lead to server.listen?",
        ),
        VerificationFailure::Status(status) => own(&format!("answered {status}, expected 200"), CHECK_SERVER),
        VerificationFailure::OtherBody(text) => {
            own(&format!("answered 200 with something else than the echostr: `{text}`"), CHECK_SERVER)
        }
        VerificationFailure::RequestEchoed => own("answered 200 with a page that repeats our request", CHECK_SERVER),
        VerificationFailure::EmptyBody => own("answered 200 without a body", CHECK_SERVER),
        VerificationFailure::UnknownAccount
        | VerificationFailure::Random(_)
        | VerificationFailure::Request(_)
        | VerificationFailure::Exchange(_)
        | VerificationFailure::Timeout(_)
        | VerificationFailure::Interrupted
        | VerificationFailure::Compressed
        | VerificationFailure::Wrapped(_) => None,
    }
}
