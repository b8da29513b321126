//! One order: account, authorizations, challenges, certificate (RFC 8555, 7).
//!
//! Invariants: the account is stored before anything is ordered with it; a key never leaves this machine, and every
//! certificate has a new one; the authority's own error text is logged, truncated and without control characters.
//! Dropping the future cancels the order and withdraws its challenges.

use std::time::Duration;

use instant_acme::{
    Account, AccountCredentials, AuthorizationStatus, ChallengeType, Identifier, NewAccount, NewOrder, Order,
    OrderStatus, Problem, RetryPolicy,
};
use zeroize::Zeroizing;

use super::client::Client;
use super::shared::SharedStore;
use super::state::{self, SaveError};
use crate::deliver::ClientError;
use crate::escape;
use crate::queue::{self, Seen};
use crate::server::challenge::{ChallengeError, Challenges};
use crate::server::{AcmeSettings, tls};

/// How long an authority may take to validate, and then to sign.
const PATIENCE: RetryPolicy =
    RetryPolicy::new().initial_delay(Duration::from_millis(500)).backoff(1.5).timeout(Duration::from_secs(90));
/// The most characters of an authority's error text.
const MAX_ERROR_TEXT: usize = 500;
/// The error for an unknown account (RFC 8555, 6.7).
const NO_ACCOUNT: &str = "urn:ietf:params:acme:error:accountDoesNotExist";

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error("the authority cannot be reached: {0}")]
    Unreached(#[source] instant_acme::Error),
    #[error("the authority refuses: {0}")]
    Refused(String),
    #[error("the authority could not validate {domain}: {said}")]
    Invalid { domain: String, said: String },
    #[error("the authority offers no TLS-ALPN-01 for {0}")]
    Unknown(String),
    #[error("the challenge cannot be answered: {0}")]
    Challenge(#[from] ChallengeError),
    #[error("the authority took too long")]
    Slow,
    #[error("only {seen} of {replicas} replicas have seen the challenge for {domain}")]
    Unseen { domain: String, seen: u64, replicas: u64 },
    #[error("PostgreSQL: {0}")]
    Store(#[from] queue::Error),
    #[error(transparent)]
    Unkept(#[from] SaveError),
    #[error("the issued certificate cannot be served: {0}")]
    Unfit(#[from] tls::Error),
    #[error("the issued certificate is already due for renewal")]
    Stale,
}

impl Error {
    /// How to fix it.
    pub(super) fn remedy(&self) -> &'static str {
        match self {
            Self::Client(_) | Self::Unreached(_) => {
                "check server.tls.acme.directory and .ca, and that this machine reaches that host by https"
            }
            Self::Refused(_) => "fix what it names; rate limits end after a time",
            Self::Invalid { .. } => {
                "the domain's DNS must lead here, IPv6 too, and its port 443 to this listener, with TLS unbroken"
            }
            Self::Unknown(_) => "choose an authority that does, or set server.tls to files that another client renews",
            Self::Challenge(_) => "check that this machine has a source of random numbers",
            Self::Unseen { .. } => "see `wxrelay replicas`: start or stop the one that is cut off",
            Self::Store(error) => error.remedy().unwrap_or("read the log: it says what PostgreSQL refuses"),
            Self::Slow => "wait; if it persists, check the authority's status page",
            Self::Unkept(_) => "free disk space, or let this user write to queue.path",
            Self::Unfit(_) => "ask the authority: it is not the certificate that was ordered",
            Self::Stale => "check this machine's clock",
        }
    }
}

impl From<instant_acme::Error> for Error {
    fn from(error: instant_acme::Error) -> Self {
        match error {
            instant_acme::Error::Api(problem) => Self::Refused(error_text(&problem)),
            instant_acme::Error::Timeout(_) => Self::Slow,
            other => Self::Unreached(other),
        }
    }
}

/// Orders a certificate. Returns its key and its chain as one PEM text.
/// Where it is shared, every replica offers the proof for a domain before the authority is asked to look for it.
pub(super) async fn place(
    settings: &AcmeSettings,
    challenges: &Challenges,
    store: Option<&SharedStore>,
) -> Result<Zeroizing<String>, Error> {
    let mut order = open(settings, store).await?;
    let mut offered = Vec::new();
    let mut authorizations = order.authorizations();
    while let Some(authorization) = authorizations.next().await {
        let mut authorization = authorization?;
        if authorization.status != AuthorizationStatus::Pending {
            // Validated recently, or invalid: the order's state below shows the latter.
            continue;
        }
        let domain = authorization.identifier().to_string();
        let Some(mut challenge) = authorization.challenge(ChallengeType::TlsAlpn01) else {
            return Err(Error::Unknown(domain));
        };
        let sha256 = challenge.key_authorization().digest();
        let sha256 = sha256.as_ref().try_into().map_err(|_| Error::Unknown(domain.clone()))?;
        offered.push(challenges.offer(&domain, sha256)?);
        if let Some(store) = store {
            let Seen { replicas, seen } = store.offer(&domain, sha256).await?;
            if seen < replicas {
                return Err(Error::Unseen { domain, seen, replicas });
            }
        }
        challenge.set_ready().await?;
    }
    let ready = order.poll_ready(&PATIENCE).await;
    if !matches!(ready, Ok(OrderStatus::Ready)) {
        let unknown = || Error::Refused("the order is invalid".to_owned());
        let refused = refusal(&mut order).await;
        return Err(refused.unwrap_or_else(|| ready.map_or_else(Error::from, |_| unknown())));
    }
    drop(offered);
    let mut pem = Zeroizing::new(order.finalize().await?);
    pem.push_str(&order.poll_certificate(&PATIENCE).await?);
    Ok(pem)
}

/// Creates an order, with the stored account or a new one.
async fn open(settings: &AcmeSettings, store: Option<&SharedStore>) -> Result<Order, Error> {
    let identifiers: Vec<_> = settings.domains.iter().cloned().map(Identifier::Dns).collect();
    let new_order = NewOrder::new(&identifiers);
    let path = settings.file.with_file_name("account.json");
    let stored = match store {
        Some(store) => store.account(settings).await?.and_then(|text| serde_json::from_slice(&text).ok()),
        None => state::account(&path).await,
    };
    if let Some(credentials) = stored {
        let http = Box::new(Client::new(settings)?);
        let account = Account::builder_with_http(http).from_credentials(credentials).await?;
        match account.new_order(&new_order).await {
            Err(instant_acme::Error::Api(problem)) if problem.r#type.as_deref() == Some(NO_ACCOUNT) => {
                tracing::warn!(path = %path.display(), "ACME account unknown to the authority, creating another");
            }
            opened => return Ok(opened?),
        }
    }
    let (account, credentials) = create(settings).await?;
    let text = serde_json::to_vec(&credentials).map_err(instant_acme::Error::from)?;
    match store {
        Some(store) => store.keep_account(settings, &text).await?,
        None => state::save(path, text.into()).await?,
    }
    Ok(account.new_order(&new_order).await?)
}

async fn create(settings: &AcmeSettings) -> Result<(Account, AccountCredentials), Error> {
    let contact = settings.email.as_ref().map(|email| format!("mailto:{email}"));
    let contact: Vec<_> = contact.iter().map(String::as_str).collect();
    // The documentation of `server.tls.acme` states that the operator agrees to the terms.
    let new = NewAccount { contact: &contact, terms_of_service_agreed: true, only_return_existing: false };
    let http = Box::new(Client::new(settings)?);
    Ok(Account::builder_with_http(http).create(&new, settings.directory.clone(), None).await?)
}

/// Why a domain could not be validated, as the authority reports it.
async fn refusal(order: &mut Order) -> Option<Error> {
    let mut authorizations = order.authorizations();
    while let Some(Ok(mut authorization)) = authorizations.next().await {
        let state = authorization.refresh().await.ok()?;
        if let Some(problem) = state.challenges.iter().find_map(|challenge| challenge.error.as_ref()) {
            return Some(Error::Invalid { domain: state.identifier().to_string(), said: error_text(problem) });
        }
    }
    None
}

/// The authority's error text, for the log.
fn error_text(problem: &Problem) -> String {
    let text = problem.to_string();
    let text = text.trim_start_matches("API error: ");
    escape::line(text).chars().take(MAX_ERROR_TEXT).collect()
}
