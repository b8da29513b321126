//! The answer to a verification, in words: what WeChat's console would make of it, and what to do.

use std::time::Duration;

use super::LIMIT;
use super::exchange::Refused;
use super::report::{Check, Line};
use crate::cli::simulate::Failure;
use crate::deliver::Unverified;
use crate::push::Account;

const WHO: &str = "is it this relay, with this configuration, that answers there?";

/// The line of a verification that took so long.
pub(super) fn line(check: &Check, account: &Account, result: Result<(), Refused>, took: Duration) -> Line {
    let name = &account.name;
    match result {
        Ok(()) => check.ok(format!("taken, by the token of accounts.{name}, {} ms", took.as_millis())),
        Err(Refused::Answer(unverified)) => match told(&unverified, name) {
            Some((text, remedy)) => check.failed(text, remedy),
            None => check.failed_by(unverified),
        },
        Err(Refused::Chunked) => {
            check.failed(Refused::Chunked, "switch buffering on, or chunking off, in the proxy in front")
        }
        Err(Refused::NoAnswer(Failure::Timeout)) => {
            check.failed(format!("no full answer within the {LIMIT:?} that WeChat waits"), WHO)
        }
        Err(other @ (Refused::NoAnswer(_) | Refused::Random(_))) => check.failed_by(other),
    }
}

/// What a wrong answer means here; `None` where its own text says it all.
fn told(unverified: &Unverified, name: &str) -> Option<(String, String)> {
    let own = |text: &str, remedy: &str| Some((text.to_owned(), remedy.to_owned()));
    match unverified {
        Unverified::Redirect { status, to } => {
            let to = to.as_deref().map(|to| format!(" to {to}")).unwrap_or_default();
            own(
                &format!("answered {status}, a redirect{to}, which WeChat does not follow"),
                "enter the final URL in WeChat's console, or have this one answered without a redirect",
            )
        }
        Unverified::Refused(status) => own(
            &format!("answered {status}: the token of accounts.{name} is not taken"),
            &format!(
                "{WHO} A firewall that refuses HTTP/1.0 or `Mozilla/4.0` answers so too, and so does the relay when \
                 its clock is wrong"
            ),
        ),
        Unverified::NotFound => own(
            "answered 404: nothing is at this path",
            &format!("compare it with accounts.{name}.path and with what the proxy in front makes of it"),
        ),
        Unverified::NoGet => own("answered 405: GET is not taken", WHO),
        Unverified::Status(400) => {
            own("answered 400: our query did not arrive whole", "let the proxy in front pass the query on")
        }
        Unverified::Status(status @ 502..=504) => own(
            &format!("answered {status}: nobody behind it is ready"),
            "is the relay running, and does the proxy in front lead to server.listen?",
        ),
        Unverified::Status(status) => own(&format!("answered {status}, expected 200"), WHO),
        Unverified::Other(text) => own(&format!("answered 200 with something else than the echostr: `{text}`"), WHO),
        Unverified::Repeated => own("answered 200 with a page that repeats our request", WHO),
        Unverified::Empty => own("answered 200 without a body", WHO),
        Unverified::Account
        | Unverified::Random(_)
        | Unverified::Request(_)
        | Unverified::Exchange(_)
        | Unverified::Late(_)
        | Unverified::Broken
        | Unverified::Compressed
        | Unverified::Wrapped(_) => None,
    }
}
