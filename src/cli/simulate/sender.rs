//! WeChat's sending side: one push or verification, its tries, and what WeChat makes of the answer.
//!
//! A push is tried again while there is no full answer of status 200; whatever a 200 says is final. WeChat's page says
//! three retries, field reports say three tries in all (WeRoBot #801): the default here. No source says whether a
//! retry is signed anew; here it is the same bytes.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use rustls_platform_verifier::BuilderVerifierExt;
use tokio::sync::OnceCell;
use tokio::time::{Instant, sleep, timeout};
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::{ClientConfig, crypto::ring};

use super::url::ServerUrl;
use super::verdict::{self, Fault, Verdict};
use super::wire::{self, Failure, Response};
use crate::cli::keygen;
use crate::clock::UnixMillis;
use crate::wechat::{Credentials, Salt};

/// How often and how fast WeChat tries.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// From the start of a try to the last byte of its answer.
    pub limit: Duration,
    /// Tries in all, at least 1.
    pub tries: u32,
    /// From the end of a failed try to the next.
    pub retry_after: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self { limit: Duration::from_secs(5), tries: 3, retry_after: Duration::from_secs(5) }
    }
}

/// Sends as WeChat does for one account.
pub struct Sender {
    credentials: Credentials,
    timing: Timing,
    tls: OnceCell<TlsConnector>,
}

/// How a push went.
#[derive(Debug)]
pub struct Answer {
    /// What WeChat makes of it.
    pub verdict: Verdict,
    /// The status of the last try; `None` if it had no full answer.
    pub status: Option<u16>,
    /// The body of the last try, as sent.
    pub body: Vec<u8>,
    /// How long the last try took.
    pub took: Duration,
    /// How many tries were made.
    pub tries: u32,
}

impl Answer {
    /// The clear XML of a legal reply.
    pub fn opened(&self) -> Option<&str> {
        match &self.verdict {
            Verdict::Replied(reply) => Some(reply),
            Verdict::Verified | Verdict::Received | Verdict::Fault(_) => None,
        }
    }
}

impl Sender {
    /// A sender with WeChat's own timing.
    pub fn new(credentials: Credentials) -> Self {
        Self { credentials, timing: Timing::default(), tls: OnceCell::new() }
    }

    /// The same with another timing.
    #[must_use]
    pub fn with_timing(mut self, timing: Timing) -> Self {
        self.timing = timing;
        self
    }

    /// The tries that a push has in all.
    pub fn tries(&self) -> u32 {
        self.timing.tries
    }

    /// Asks as the console does when a configuration is saved: once. Errors: as [`Sender::push`].
    pub async fn verify(&self, url: &ServerUrl) -> anyhow::Result<Answer> {
        let echostr = (1_000_000_000_000_000_000 + getrandom::u64()? % 8_000_000_000_000_000_000).to_string();
        let request = wire::get(url, &self.credentials.verification(&echostr, &salt()?));
        let (result, took) = self.one_try(url, &request).await?;
        Ok(answer(result, took, 1, |response| verdict::of_verification(response, &echostr)))
    }

    /// Sends a clear text, signed and sealed as the account's mode asks, until it is answered or the tries are up.
    ///
    /// That nobody answers is a verdict. Errors are on our side: no random numbers, no certificates to trust.
    pub async fn push(&self, url: &ServerUrl, clear: &str, openid: &str) -> anyhow::Result<Answer> {
        let push = self.credentials.push(clear, openid, &salt()?);
        let request = wire::post(url, &push.query, &push.body);
        let mut tries = 1;
        loop {
            let (result, took) = self.one_try(url, &request).await?;
            if tries >= self.timing.tries || result.as_ref().is_ok_and(|response| response.status == 200) {
                let judge = |response: &Response| verdict::of_push(response, &self.credentials, clear);
                return Ok(answer(result, took, tries, judge));
            }
            sleep(self.timing.retry_after).await;
            tries += 1;
        }
    }

    async fn one_try(&self, url: &ServerUrl, request: &[u8]) -> anyhow::Result<(Result<Response, Failure>, Duration)> {
        let tls = if url.is_https() { Some(self.tls.get_or_try_init(async || connector()).await?) } else { None };
        let start = Instant::now();
        let result = timeout(self.timing.limit, wire::exchange(url, tls, request)).await;
        Ok((result.unwrap_or(Err(Failure::Timeout)), start.elapsed()))
    }
}

fn answer(
    result: Result<Response, Failure>,
    took: Duration,
    tries: u32,
    judge: impl FnOnce(&Response) -> Verdict,
) -> Answer {
    match result {
        Ok(response) => {
            let verdict = judge(&response);
            Answer { verdict, status: Some(response.status), body: response.body, took, tries }
        }
        Err(failure) => {
            let verdict = Verdict::Fault(Fault::NoAnswer(failure));
            Answer { verdict, status: None, body: Vec::new(), took, tries }
        }
    }
}

/// What makes a sealing of this moment.
pub(crate) fn salt() -> Result<Salt, getrandom::Error> {
    Ok(Salt::new(UnixMillis::now().seconds(), keygen::random()?))
}

fn connector() -> anyhow::Result<TlsConnector> {
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_platform_verifier()
        .context("no certificate authorities to trust; install the system's ca-certificates or set SSL_CERT_FILE")?
        .with_no_client_auth();
    Ok(TlsConnector::from(Arc::new(config)))
}
