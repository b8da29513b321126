//! One connection as WeChat makes it: TLS where the URL says so, and the GET by which it verifies a server URL.

use std::io;
use std::sync::Arc;

use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::chain::{Recorder, Trust, provider, refusal};
use crate::cli::simulate::{Failure, Response, ServerUrl, get, salt, talk};
use crate::cli::target_problem::TargetProblem;
use crate::clock::UnixMillis;
use crate::deliver::{VerificationFailure, VerificationRequest, date_header, judge_verification};
use crate::wechat::Credentials;

/// Why there is no TLS, and what to do.
pub(super) type Untold = (String, &'static str);

/// TLS 1.2 or 1.3 with SNI, and the chain that was shown.
pub(super) async fn handshake(
    stream: TcpStream,
    host: &str,
    trust: Trust,
) -> Result<(TlsStream<TcpStream>, Vec<rustls::pki_types::CertificateDer<'static>>), Untold> {
    let name = ServerName::try_from(host.to_owned()).map_err(|_| {
        ("a host that no certificate can be for".to_owned(), "use a name of letters, digits and dashes")
    })?;
    let recorder = Arc::new(Recorder::new(trust));
    let config = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(|error| (format!("no TLS here: {error}"), "this is a bug: please report it"))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::clone(&recorder) as _)
        .with_no_client_auth();
    match TlsConnector::from(Arc::new(config)).connect(name, stream).await {
        Ok(stream) => Ok((stream, recorder.shown())),
        Err(error) => Err(untold(&error, &recorder, host)),
    }
}

fn untold(error: &io::Error, recorder: &Recorder, host: &str) -> Untold {
    use rustls::AlertDescription as Alert;
    use rustls::Error;
    let Some(tls) = error.get_ref().and_then(|inner| inner.downcast_ref::<Error>()) else {
        let text = format!("the connection ends within the TLS handshake ({error})");
        return (text, "is it a TLS server that listens there, and has it a certificate for this name?");
    };
    if let Some(told) = refusal(tls, &recorder.shown(), host) {
        return told;
    }
    match tls {
        Error::AlertReceived(Alert::ProtocolVersion) | Error::PeerIncompatible(_) => {
            ("the server speaks neither TLS 1.2 nor 1.3 as we do".to_owned(), "switch TLS 1.2 and 1.3 on there")
        }
        Error::AlertReceived(Alert::UnrecognisedName) => {
            (format!("the server has no certificate for {host}"), "give it one for this name")
        }
        Error::InvalidMessage(_) => {
            ("what answers there does not speak TLS".to_owned(), "is it an http port? Then the URL begins with http://")
        }
        other => (format!("the TLS handshake failed: {other}"), "look into that server's log"),
    }
}

/// What a verification brought.
pub(super) struct Verified {
    /// What WeChat would make of it.
    pub(super) result: Result<(), Refused>,
    /// The answerer's clock, if there was an answer with one.
    pub(super) date: Option<UnixMillis>,
}

/// What is wrong with an answer in chunks.
pub(super) const CHUNKED: &str = "the answer is chunked, which WeChat's HTTP/1.0 does not know";

/// Why WeChat would not take it.
#[derive(Debug)]
pub(super) enum Refused {
    /// No random bytes.
    Random,
    /// No answer.
    NoAnswer(Failure),
    /// The answer has chunks.
    Chunked,
    /// Another answer than the bare echostr.
    Answer(VerificationFailure),
}

impl Refused {
    /// What is wrong, without how to fix it.
    pub(super) fn into_text(self) -> String {
        match self {
            Self::Random => "the system gives no random bytes".to_owned(),
            Self::NoAnswer(failure) => failure.to_string().split("; ").next().unwrap_or_default().to_owned(),
            Self::Chunked => CHUNKED.to_owned(),
            Self::Answer(failure) => TargetProblem::from(failure).text,
        }
    }
}

impl From<getrandom::Error> for Refused {
    fn from(_: getrandom::Error) -> Self {
        Self::Random
    }
}

impl From<Failure> for Refused {
    fn from(failure: Failure) -> Self {
        Self::NoAnswer(failure)
    }
}

/// Asks as WeChat does, with the account's token.
pub(super) async fn verify(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    url: &ServerUrl,
    credentials: &Credentials,
) -> Verified {
    match ask(stream, url, credentials).await {
        Err(refused) => Verified { result: Err(refused), date: None },
        Ok((response, echostr, query)) => {
            let headers = headers(&response);
            let request = VerificationRequest { echostr: &echostr, query: &query };
            let result = match (response.header("transfer-encoding"), StatusCode::from_u16(response.status)) {
                (Some(_), _) => Err(Refused::Chunked),
                (None, Err(_)) => Err(Failure::NotHttp.into()),
                (None, Ok(status)) => {
                    judge_verification(status, &headers, &response.body, &request).map_err(Refused::Answer)
                }
            };
            Verified { result, date: date_header(&headers) }
        }
    }
}

async fn ask(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    url: &ServerUrl,
    credentials: &Credentials,
) -> Result<(Response, String, String), Refused> {
    let echostr = (1_000_000_000_000_000_000 + getrandom::u64()? % 8_000_000_000_000_000_000).to_string();
    let query = credentials.verification(&echostr, &salt()?);
    let response = talk(stream, &get(url, &query)).await?;
    Ok((response, echostr, query))
}

fn headers(response: &Response) -> HeaderMap {
    let sound = |(name, value): &(String, String)| {
        Some((HeaderName::try_from(name.as_str()).ok()?, HeaderValue::try_from(value.as_str()).ok()?))
    };
    response.headers.iter().filter_map(sound).collect()
}
