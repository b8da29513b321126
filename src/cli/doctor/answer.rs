//! The answer to a verification, in words: what WeChat's console would make of it, and what to do.

use std::time::Duration;

use super::LIMIT;
use super::exchange::{CHUNKED, Refused};
use super::report::{Check, Line};
use crate::cli::simulate::Failure;
use crate::deliver::VerificationFailure;
use crate::push::Account;

const WHO: &str = "is it this relay, with this configuration, that answers there?";

/// The line of a verification that took so long.
pub(super) fn line(check: &Check, account: &Account, result: Result<(), Refused>, took: Duration) -> Line {
    let name = &account.name;
    match result {
        Ok(()) => check.ok(format!("taken, by the token of accounts.{name}, {} ms", took.as_millis())),
        Err(Refused::Answer(failure)) => match told(&failure, name) {
            Some((text, remedy)) => check.failed(text, remedy),
            None => check.failed_with(failure.into()),
        },
        Err(Refused::Chunked) => check.failed(CHUNKED, "switch buffering on, or chunking off, in the proxy in front"),
        Err(Refused::NoAnswer(Failure::Timeout)) => {
            check.failed(format!("no full answer within the {LIMIT:?} that WeChat waits"), WHO)
        }
        Err(Refused::NoAnswer(failure)) => check.failed_by(failure),
        Err(Refused::Random) => check.failed("the system gives no random bytes", ""),
    }
}

/// What a wrong answer means here; `None` where its own text says it all.
fn told(failure: &VerificationFailure, name: &str) -> Option<(String, String)> {
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
            &format!("answered {status}: the token of accounts.{name} is not taken"),
            &format!(
                "{WHO} A firewall that refuses HTTP/1.0 or `Mozilla/4.0` answers so too, and so does the relay when \
                 its clock is wrong"
            ),
        ),
        VerificationFailure::NotFound => own(
            "answered 404: nothing is at this path",
            &format!("compare it with accounts.{name}.path and with what the proxy in front makes of it"),
        ),
        VerificationFailure::MethodNotAllowed => own("answered 405: GET is not taken", WHO),
        VerificationFailure::Status(400) => {
            own("answered 400: our query did not arrive whole", "let the proxy in front pass the query on")
        }
        VerificationFailure::Status(status @ 502..=504) => own(
            &format!("answered {status}: nobody behind it is ready"),
            "is the relay running, and does the proxy in front lead to server.listen?",
        ),
        VerificationFailure::Status(status) => own(&format!("answered {status}, expected 200"), WHO),
        VerificationFailure::OtherBody(text) => {
            own(&format!("answered 200 with something else than the echostr: `{text}`"), WHO)
        }
        VerificationFailure::RequestEchoed => own("answered 200 with a page that repeats our request", WHO),
        VerificationFailure::EmptyBody => own("answered 200 without a body", WHO),
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
