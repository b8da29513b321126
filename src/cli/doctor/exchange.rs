//! One connection as WeChat makes it: TLS for an https URL, and the GET by which WeChat verifies a server URL.

use std::io;
use std::sync::Arc;

use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::chain::{ChainRecorder, TrustPolicy, explain_rejection, provider};
use super::report::CheckFailure;
use crate::cli::simulate::{ClientStream, Http10Error, RawResponse, ServerUrl, exchange_over, get, salt};
use crate::clock::UnixMillis;
use crate::deliver::{TargetProblem, VerificationFailure, VerificationRequest, date_header, judge_verification};
use crate::wechat::Credentials;

/// A handshake of TLS 1.2 or 1.3 with SNI; returns the server's chain too.
pub(super) async fn handshake(
    stream: TcpStream,
    host: &str,
    trust: TrustPolicy,
) -> Result<(TlsStream<TcpStream>, Vec<rustls::pki_types::CertificateDer<'static>>), CheckFailure> {
    let name = ServerName::try_from(host.to_owned()).map_err(|_| {
        CheckFailure::new("no certificate can have this host name", "use a name of letters, digits and dashes")
    })?;
    let recorder = Arc::new(ChainRecorder::new(trust));
    let config = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(|error| CheckFailure::new(format!("no TLS: {error}"), "internal error: please report it"))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::clone(&recorder) as _)
        .with_no_client_auth();
    match TlsConnector::from(Arc::new(config)).connect(name, stream).await {
        Ok(stream) => Ok((stream, recorder.chain())),
        Err(error) => Err(handshake_failure(&error, &recorder, host)),
    }
}

fn handshake_failure(error: &io::Error, recorder: &ChainRecorder, host: &str) -> CheckFailure {
    use rustls::AlertDescription as Alert;
    use rustls::Error;
    let Some(tls) = error.get_ref().and_then(|inner| inner.downcast_ref::<Error>()) else {
        let text = format!("the connection ends within the TLS handshake ({error})");
        return CheckFailure::new(text, "is it a TLS server that listens there, with a certificate for this name?");
    };
    if let Some(failure) = explain_rejection(tls, &recorder.chain(), host) {
        return failure;
    }
    let (text, remedy) = match tls {
        Error::AlertReceived(Alert::ProtocolVersion) | Error::PeerIncompatible(_) => (
            "the server supports neither TLS 1.2 nor TLS 1.3 with our cipher suites".to_owned(),
            "enable TLS 1.2 and 1.3 there",
        ),
        Error::AlertReceived(Alert::UnrecognisedName) => {
            (format!("the server has no certificate for {host}"), "give it one for this name")
        }
        Error::InvalidMessage(_) => {
            ("what answers there does not speak TLS".to_owned(), "if it is an http port, the URL begins with http://")
        }
        other => (format!("the TLS handshake failed: {other}"), "check that server's log"),
    };
    CheckFailure { text, remedy }
}

/// The outcome of a verification.
pub(super) struct VerificationResult {
    /// Whether WeChat would accept it.
    pub(super) result: Result<(), VerificationError>,
    /// The server's clock, if an answer has a `Date`.
    pub(super) date: Option<UnixMillis>,
}

pub(super) const CHUNKED: &str = "the answer is chunked, which WeChat's HTTP/1.0 does not support";

/// Why WeChat would not accept it.
#[derive(Debug)]
pub(super) enum VerificationError {
    /// The system gives no random bytes.
    Random,
    NoAnswer(Http10Error),
    Chunked,
    /// Another answer than the bare echostr.
    Answer(VerificationFailure),
}

impl VerificationError {
    /// What is wrong, without how to fix it.
    pub(super) fn into_text(self) -> String {
        match self {
            Self::Random => "the system gives no random bytes".to_owned(),
            Self::NoAnswer(failure) => failure.to_string(),
            Self::Chunked => CHUNKED.to_owned(),
            Self::Answer(failure) => TargetProblem::from(failure).text,
        }
    }
}

impl From<getrandom::Error> for VerificationError {
    fn from(_: getrandom::Error) -> Self {
        Self::Random
    }
}

impl From<Http10Error> for VerificationError {
    fn from(failure: Http10Error) -> Self {
        Self::NoAnswer(failure)
    }
}

/// Sends the verification that WeChat sends, with the account's token.
pub(super) async fn verify(stream: ClientStream, url: &ServerUrl, credentials: &Credentials) -> VerificationResult {
    match ask(stream, url, credentials).await {
        Err(refused) => VerificationResult { result: Err(refused), date: None },
        Ok((response, echostr, query)) => {
            let headers = headers(&response);
            let request = VerificationRequest { echostr: &echostr, query: &query };
            let result = match (response.header("transfer-encoding"), StatusCode::from_u16(response.status)) {
                (Some(_), _) => Err(VerificationError::Chunked),
                (None, Err(_)) => Err(Http10Error::NotHttp.into()),
                (None, Ok(status)) => {
                    judge_verification(status, &headers, &response.body, &request).map_err(VerificationError::Answer)
                }
            };
            VerificationResult { result, date: date_header(&headers) }
        }
    }
}

async fn ask(
    stream: ClientStream,
    url: &ServerUrl,
    credentials: &Credentials,
) -> Result<(RawResponse, String, String), VerificationError> {
    let echostr = (1_000_000_000_000_000_000 + getrandom::u64()? % 8_000_000_000_000_000_000).to_string();
    let query = credentials.verification(&echostr, &salt()?);
    let response = exchange_over(stream, &get(url, &query)).await?;
    Ok((response, echostr, query))
}

fn headers(response: &RawResponse) -> HeaderMap {
    let sound = |(name, value): &(String, String)| {
        Some((HeaderName::try_from(name.as_str()).ok()?, HeaderValue::try_from(value.as_str()).ok()?))
    };
    response.headers.iter().filter_map(sound).collect()
}
