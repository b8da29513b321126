//! The texts for what a probe of a target found: the problem and how to fix it.

use std::error::Error as _;
use std::fmt;

use crate::deliver::{ClientError, EchostrWrapping, ReachFailure, VerificationFailure};

const CHECK_URL_AND_NETWORK: &str = "is `url` right, and may this machine go there?";
const CHECK_BACKEND_AND_NETWORK: &str = "does it run, is `url` right, and may this machine go there?";

/// What is wrong with a target. The text contains its causes.
#[derive(Debug)]
pub struct TargetProblem {
    pub text: String,
    /// How to fix it, if the problem shows that.
    pub remedy: Option<&'static str>,
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
