//! WeChat's client: one push or verification with its attempts, and whether WeChat would accept the answer.
//!
//! A push is retried until it gets a full answer of status 200, which is final whatever its body. WeChat's page says
//! three retries; field reports say three attempts in all (WeRoBot #801), which is the default here. Each begins when the
//! one before has ended, so at most 5 s after it began. No source says whether a retry is signed again; here it has the
//! same bytes.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use rustls_platform_verifier::BuilderVerifierExt;
use tokio::sync::OnceCell;
use tokio::time::{Instant, sleep, timeout};
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::{ClientConfig, crypto::ring};

use super::http10::{self, Http10Error, RawResponse};
use super::url::ServerUrl;
use super::verdict::{self, AnswerError, AnswerVerdict};
use crate::cli::fixable::fixable;
use crate::cli::keygen;
use crate::clock::UnixMillis;
use crate::wechat::{Credentials, Salt};

/// WeChat's attempts and its timeouts.
#[derive(Clone, Copy, Debug)]
pub struct RetryTiming {
    /// From the start of an attempt to the last byte of its answer.
    pub limit: Duration,
    /// Attempts in all, at least 1.
    pub tries: u32,
    /// From the end of a failed attempt to the next.
    pub retry_after: Duration,
}

impl Default for RetryTiming {
    fn default() -> Self {
        Self { limit: Duration::from_secs(5), tries: 3, retry_after: Duration::ZERO }
    }
}

/// Sends what WeChat sends for one account.
pub struct WechatClient {
    credentials: Credentials,
    timing: RetryTiming,
    tls: OnceCell<TlsConnector>,
}

/// The outcome of a push or verification.
#[derive(Debug)]
pub struct PushAnswer {
    /// Whether WeChat accepts it.
    pub verdict: AnswerVerdict,
    /// The status of the last attempt's answer; `None` without a full answer.
    pub status: Option<u16>,
    /// The body of the last attempt's answer, as received.
    pub body: Vec<u8>,
    /// The Location header of the last attempt's answer.
    pub location: Option<String>,
    /// When the last attempt began, after the first did.
    pub started: Duration,
    /// How long the last attempt took.
    pub took: Duration,
    /// How many attempts were made.
    pub tries: u32,
    /// The attempts before the last one, in order: WeChat rejected their answers.
    pub earlier: Vec<Self>,
}

impl PushAnswer {
    /// The decrypted XML of a valid reply.
    pub fn opened(&self) -> Option<&str> {
        match &self.verdict {
            AnswerVerdict::Replied(reply) => Some(reply),
            AnswerVerdict::Verified | AnswerVerdict::Received | AnswerVerdict::Fault(_) => None,
        }
    }
}

impl WechatClient {
    /// Makes a client with WeChat's own timing.
    pub fn new(credentials: Credentials) -> Self {
        Self { credentials, timing: RetryTiming::default(), tls: OnceCell::new() }
    }

    #[must_use]
    pub fn with_timing(mut self, timing: RetryTiming) -> Self {
        self.timing = timing;
        self
    }

    pub fn tries(&self) -> u32 {
        self.timing.tries
    }

    /// Sends, once, the verification that the console sends when an operator saves the settings.
    ///
    /// # Errors
    /// As for [`WechatClient::push`].
    pub async fn verify(&self, url: &ServerUrl) -> anyhow::Result<PushAnswer> {
        let echostr = (1_000_000_000_000_000_000 + getrandom::u64()? % 8_000_000_000_000_000_000).to_string();
        let request = http10::get(url, &self.credentials.verification(&echostr, &salt()?));
        let (result, took) = self.send_once(url, &request).await?;
        Ok(answer(result, took, 1, |response| verdict::of_verification(response, &echostr)))
    }

    /// Sends a push, signed and encrypted by the account's mode, until it is answered 200 or the attempts are used up.
    ///
    /// # Errors
    /// Local failures only: no random numbers, no certificate authorities. A missing answer is a verdict.
    pub async fn push(&self, url: &ServerUrl, clear: &str, openid: &str) -> anyhow::Result<PushAnswer> {
        let push = self.credentials.push(clear, openid, &salt()?);
        let request = http10::post(url, &push.query, &push.body);
        let (first, mut tries, mut earlier) = (Instant::now(), 1, Vec::new());
        loop {
            let started = first.elapsed();
            let (result, took) = self.send_once(url, &request).await?;
            let is_last = tries >= self.timing.tries || result.as_ref().is_ok_and(|response| response.status == 200);
            let judge = |response: &RawResponse| verdict::of_push(response, &self.credentials, clear);
            let answer = PushAnswer { started, ..answer(result, took, tries, judge) };
            if is_last {
                return Ok(PushAnswer { earlier, ..answer });
            }
            earlier.push(answer);
            tries += 1;
            sleep(self.timing.retry_after).await;
        }
    }

    async fn send_once(
        &self,
        url: &ServerUrl,
        request: &[u8],
    ) -> anyhow::Result<(Result<RawResponse, Http10Error>, Duration)> {
        let tls = if url.is_https() { Some(self.tls.get_or_try_init(async || connector()).await?) } else { None };
        let start = Instant::now();
        let result = timeout(self.timing.limit, http10::exchange(url, tls, request)).await;
        Ok((result.unwrap_or(Err(Http10Error::Timeout)), start.elapsed()))
    }
}

fn answer(
    result: Result<RawResponse, Http10Error>,
    took: Duration,
    tries: u32,
    judge: impl FnOnce(&RawResponse) -> AnswerVerdict,
) -> PushAnswer {
    let location = result.as_ref().ok().and_then(|response| response.header("location").map(str::to_owned));
    let (verdict, status, body) = match result {
        Ok(response) => (judge(&response), Some(response.status), response.body),
        Err(failure) => (AnswerVerdict::Fault(AnswerError::NoAnswer(failure)), None, Vec::new()),
    };
    PushAnswer { verdict, status, body, location, started: Duration::ZERO, took, tries, earlier: Vec::new() }
}

/// The current time and new random bytes, for one signature.
pub(crate) fn salt() -> Result<Salt, getrandom::Error> {
    Ok(Salt::new(UnixMillis::now().seconds(), keygen::random()?))
}

fn connector() -> anyhow::Result<TlsConnector> {
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_platform_verifier()
        .context(fixable("no certificate authorities to trust", "install ca-certificates, or set SSL_CERT_FILE"))?
        .with_no_client_auth();
    Ok(TlsConnector::from(Arc::new(config)))
}
