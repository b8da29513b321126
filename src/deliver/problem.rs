//! The texts for what a probe of a target found: the problem and how to fix it. Used by `check --online`, `doctor`, and
//! the admin API.

use std::error::Error as _;
use std::fmt;
use std::time::Duration;

use super::{ClientError, EchostrWrapping, HeadAnswer, ReachFailure, Role, Target, Upstream, VerificationFailure};
use crate::clock::UnixMillis;

const CHECK_URL_AND_NETWORK: &str = "is `url` right, and may this machine go there?";
const CHECK_BACKEND_AND_NETWORK: &str = "does it run, is `url` right, and may this machine go there?";

/// What is wrong with a target. The text contains its causes.
#[derive(Debug)]
pub struct TargetProblem {
    /// What was found.
    pub text: String,
    /// How to fix it, if the problem shows that.
    pub remedy: Option<&'static str>,
}

/// What a probe found.
#[derive(Debug)]
pub struct ProbeReport {
    /// Whether it works; `None` if it deserves the operator's attention.
    pub ok: Option<bool>,
    /// How long an answer took.
    pub took: Option<Duration>,
    /// What was found.
    pub text: String,
    /// How to fix it.
    pub remedy: Option<&'static str>,
}

impl From<TargetProblem> for ProbeReport {
    fn from(TargetProblem { text, remedy }: TargetProblem) -> Self {
        Self { ok: Some(false), took: None, text, remedy }
    }
}

impl ProbeReport {
    /// Judges the answer to a HEAD. No event was sent, so a refusal is not a failure; a redirect or a missing page may
    /// be.
    pub fn of_head(target: &Target, answer: &HeadAnswer) -> Self {
        let HeadAnswer { status, location, took, .. } = answer;
        let mut text = format!("answered {status} to a HEAD (no event sent), {} ms", took.as_millis());
        let (ok, remedy) = match status {
            300..=399 => {
                // An identity provider's path is secret.
                let to = location.as_deref().filter(|_| target.role == Role::Handler).map(|to| format!(" to {to}"));
                text += &format!(": a redirect{}, which the relay does not follow", to.unwrap_or_default());
                (None, Some("if it redirects POST as well, put the final URL into `url`"))
            }
            404 => (None, Some("normal if it accepts POST only; else compare `url` with its path")),
            410 => (None, Some("an event that is answered 410 is a dead letter at once; is `url` still right?")),
            502..=504 => (Some(false), Some("the proxy in front cannot reach it: is it running?")),
            500 => (None, Some("check its log: an event would be retried")),
            _ => (Some(true), None),
        };
        Self { ok, took: Some(*took), text, remedy }
    }
}

impl Upstream {
    /// Connects, and sends a request without a body or an event: with `account` the verification that WeChat would
    /// send, else a HEAD. Ends within 5 s. The circuit breaker does not learn of it.
    pub async fn probe(&self, account: Option<&str>, now: UnixMillis) -> ProbeReport {
        let Some(account) = account else {
            return match self.send_head().await {
                Ok(answer) => ProbeReport::of_head(&self.target, &answer),
                Err(failure) => TargetProblem::from(failure).into(),
            };
        };
        match self.verify(account, now).await {
            Ok(found) => {
                let text = format!("accepts WeChat's verification, {} ms", found.took.as_millis());
                ProbeReport { ok: Some(true), took: Some(found.took), text, remedy: None }
            }
            Err(failure) => {
                let TargetProblem { text, remedy } = failure.into();
                TargetProblem { text: format!("WeChat's verification: {text}"), remedy }.into()
            }
        }
    }
}

impl TargetProblem {
    fn new(text: impl fmt::Display, remedy: impl Into<Option<&'static str>>) -> Self {
        Self { text: text.to_string(), remedy: remedy.into() }
    }
}

/// Problem and remedy on one line.
impl fmt::Display for TargetProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)?;
        self.remedy.map_or(Ok(()), |remedy| write!(f, "; {remedy}"))
    }
}

impl From<ClientError> for TargetProblem {
    fn from(error: ClientError) -> Self {
        let cause = error.source().map(|cause| format!(": {cause}")).unwrap_or_default();
        Self::new(format_args!("{error}{cause}"), "check ca, client_cert and client_key")
    }
}

impl From<ReachFailure> for TargetProblem {
    fn from(failure: ReachFailure) -> Self {
        match failure {
            ReachFailure::Client(error) => error.into(),
            ReachFailure::Connect(error) => Self::new(error, CHECK_URL_AND_NETWORK),
            ReachFailure::Exchange(error) => Self::new(error, CHECK_BACKEND_AND_NETWORK),
            ReachFailure::ConnectTimeout(limit) => {
                Self::new(format_args!("no connection within {limit:?}"), CHECK_URL_AND_NETWORK)
            }
            ReachFailure::AnswerTimeout(limit) => {
                Self::new(format_args!("no answer within {limit:?}"), CHECK_BACKEND_AND_NETWORK)
            }
        }
    }
}

impl From<VerificationFailure> for TargetProblem {
    fn from(failure: VerificationFailure) -> Self {
        use VerificationFailure as Failure;
        match failure {
            Failure::UnknownAccount => {
                Self::new("no account of that name shares its credentials with this target", None)
            }
            Failure::Random(_) => Self::new("the system gives no random bytes", None),
            Failure::Request(_) => Self::new("the request can't be made", "check `url`"),
            Failure::Exchange(error) => Self::new(error, "does the backend run, and is `url` right?"),
            Failure::Timeout(limit) => Self::new(
                format_args!("no whole answer within {limit:?}"),
                "make the backend answer sooner: WeChat waits 5s at most",
            ),
            Failure::Interrupted => Self::new("the connection broke within the answer", None),
            Failure::Redirect { status, location } => {
                let to = location.map(|location| format!(" to {location}")).unwrap_or_default();
                Self::new(
                    format_args!("answered {status}, a redirect{to}, which is not followed"),
                    "put the final URL into `url`",
                )
            }
            Failure::Unauthorized(status) => Self::new(
                format_args!("answered {status}: it does not accept our signature"),
                "`token` of this target must be the token that the backend is set up with",
            ),
            Failure::NotFound => Self::new(
                "answered 404: the backend has no such path",
                "compare `url` with the path that its SDK listens on",
            ),
            Failure::MethodNotAllowed => {
                Self::new("answered 405: the backend takes no GET here", "give its SDK's handler GET as well as POST")
            }
            Failure::Status(status) => {
                Self::new(format_args!("answered {status}, expected 200"), "check the backend's log")
            }
            Failure::Compressed => Self::new(
                "the answer is compressed, which WeChat does not read",
                "switch compression off for this path",
            ),
            Failure::EmptyBody => Self::new(
                "answered 200 without a body, expected the bare echostr",
                "is it the SDK's handler that answers at `url`?",
            ),
            Failure::Wrapped(wrapping) => Self::new(
                format_args!("the echostr came back {}", describe(wrapping)),
                "send it bare: no quotes, no JSON, no byte order mark, no line end",
            ),
            Failure::RequestEchoed => {
                Self::new("answered 200 with a page that repeats our request", "it is not the SDK that answers")
            }
            Failure::OtherBody(text) => Self::new(
                format_args!("answered 200 with something else than the echostr: `{text}`"),
                "the `token` is wrong, or it is not the SDK that answers",
            ),
        }
    }
}

fn describe(wrapping: EchostrWrapping) -> &'static str {
    match wrapping {
        EchostrWrapping::ByteOrderMark => "behind a byte order mark",
        EchostrWrapping::Quotes => "in quotes",
        EchostrWrapping::Json => "inside JSON",
        EchostrWrapping::Whitespace => "with blanks or a line end",
        EchostrWrapping::OtherText => "inside other text",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_has_its_remedy() {
        for (failure, remedy) in [
            (VerificationFailure::Unauthorized(401), "`token`"),
            (VerificationFailure::Unauthorized(403), "`token`"),
            (VerificationFailure::NotFound, "`url`"),
            (VerificationFailure::MethodNotAllowed, "GET as well as POST"),
            (VerificationFailure::Status(500), "log"),
        ] {
            let problem = TargetProblem::from(failure);
            assert!(problem.remedy.unwrap().contains(remedy), "{problem}");
        }
        let location = Some("https://a.example/wx/".to_owned());
        let redirect = TargetProblem::from(VerificationFailure::Redirect { status: 301, location });
        assert_eq!(
            redirect.to_string(),
            "answered 301, a redirect to https://a.example/wx/, which is not followed; put the final URL into `url`"
        );
        let redirect = TargetProblem::from(VerificationFailure::Redirect { status: 307, location: None });
        assert!(redirect.text.contains("a redirect, which"), "{redirect}");
    }
}
