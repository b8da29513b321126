//! One order: account, authorizations, challenges, certificate (RFC 8555, 7).
//!
//! Invariants: the account is kept before anything is ordered with it; a key leaves this machine never, and is made
//! afresh for every certificate; what the authority says goes to the operator in its own words, cut and without control
//! signs. Dropping the future gives the order up and leaves nothing behind that is served.

use std::time::Duration;

use instant_acme::{
    Account, AccountCredentials, AuthorizationStatus, ChallengeType, Identifier, NewAccount, NewOrder, Order,
    OrderStatus, Problem, RetryPolicy,
};
use zeroize::Zeroizing;

use super::challenge::{ChallengeError, Challenges};
use super::client::Client;
use super::state::{self, SaveError};
use super::{Settings, tls};
use crate::deliver::ClientError;

/// How long an authority may take to validate, and then to sign.
const PATIENCE: RetryPolicy =
    RetryPolicy::new().initial_delay(Duration::from_millis(500)).backoff(1.5).timeout(Duration::from_secs(90));
/// The most of an authority's words that is told on.
const TOLD: usize = 500;
/// What it says of an account that it does not know (RFC 8555, 6.7).
const NO_ACCOUNT: &str = "urn:ietf:params:acme:error:accountDoesNotExist";

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// TLS to the authority cannot be set up.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The authority cannot be asked, or is none.
    #[error("the authority cannot be asked: {0}")]
    Unreached(#[source] instant_acme::Error),
    /// It says no.
    #[error("the authority refuses: {0}")]
    Refused(String),
    /// It could not validate a domain.
    #[error("the authority could not validate {domain}: {said}")]
    Invalid {
        /// The domain.
        domain: String,
        /// Its words.
        said: String,
    },
    /// It wants another kind of challenge.
    #[error("the authority offers no TLS-ALPN-01 for {0}")]
    Unknown(String),
    /// A challenge cannot be answered.
    #[error("the challenge cannot be answered: {0}")]
    Challenge(#[from] ChallengeError),
    /// It took too long.
    #[error("the authority took too long")]
    Slow,
    /// The account cannot be kept.
    #[error(transparent)]
    Unkept(#[from] SaveError),
    /// The certificate cannot be served.
    #[error("the certificate that was given cannot be served: {0}")]
    Unfit(#[from] tls::Error),
    /// By our clock it wants to be renewed already.
    #[error("the certificate that was given is due for renewal already")]
    Stale,
}

impl Error {
    /// What an operator can do about it.
    pub(super) fn remedy(&self) -> &'static str {
        match self {
            Self::Client(_) | Self::Unreached(_) => {
                "check server.tls.acme.directory and .ca, and that this machine reaches that host by https"
            }
            Self::Refused(_) => "do as it says; too many tries are forgiven after a time",
            Self::Invalid { .. } => {
                "the domain's DNS must lead here, IPv6 too, and its port 443 to this listener, with TLS unbroken"
            }
            Self::Unknown(_) => "choose an authority that does, or give server.tls files that another client renews",
            Self::Challenge(_) => "does this machine give random numbers?",
            Self::Slow => "wait; if it stays so, look whether the authority has troubles",
            Self::Unkept(_) => "make room, or let this user write to queue.path",
            Self::Unfit(_) => "ask the authority: it is not what was ordered",
            Self::Stale => "is this machine's clock right?",
        }
    }
}

impl From<instant_acme::Error> for Error {
    fn from(error: instant_acme::Error) -> Self {
        match error {
            instant_acme::Error::Api(problem) => Self::Refused(words(&problem)),
            instant_acme::Error::Timeout(_) => Self::Slow,
            other => Self::Unreached(other),
        }
    }
}

/// Gets a certificate: its key and its chain, as one PEM text.
pub(super) async fn place(settings: &Settings, challenges: &Challenges) -> Result<Zeroizing<String>, Error> {
    let mut order = open(settings).await?;
    let mut offered = Vec::new();
    let mut authorizations = order.authorizations();
    while let Some(authorization) = authorizations.next().await {
        let mut authorization = authorization?;
        if authorization.status != AuthorizationStatus::Pending {
            // Validated lately; or it is no good, which the order's state tells below.
            continue;
        }
        let domain = authorization.identifier().to_string();
        let Some(mut challenge) = authorization.challenge(ChallengeType::TlsAlpn01) else {
            return Err(Error::Unknown(domain));
        };
        let sha256 = challenge.key_authorization().digest();
        let sha256 = sha256.as_ref().try_into().map_err(|_| Error::Unknown(domain.clone()))?;
        offered.push(challenges.offer(&domain, sha256)?);
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

/// Opens an order, with the account that there is or a new one.
async fn open(settings: &Settings) -> Result<Order, Error> {
    let identifiers: Vec<_> = settings.domains.iter().cloned().map(Identifier::Dns).collect();
    let wanted = NewOrder::new(&identifiers);
    let path = settings.file.with_file_name("account.json");
    if let Some(credentials) = state::account(&path).await {
        let http = Box::new(Client::new(settings)?);
        let account = Account::builder_with_http(http).from_credentials(credentials).await?;
        match account.new_order(&wanted).await {
            Err(instant_acme::Error::Api(problem)) if problem.r#type.as_deref() == Some(NO_ACCOUNT) => {
                tracing::warn!(path = %path.display(), "the authority does not know this account: a new one is made");
            }
            opened => return Ok(opened?),
        }
    }
    let (account, credentials) = create(settings).await?;
    let text = serde_json::to_vec(&credentials).map_err(instant_acme::Error::from)?;
    state::save(path, text.into()).await?;
    Ok(account.new_order(&wanted).await?)
}

async fn create(settings: &Settings) -> Result<(Account, AccountCredentials), Error> {
    let contact = settings.email.as_ref().map(|email| format!("mailto:{email}"));
    let contact: Vec<_> = contact.iter().map(String::as_str).collect();
    // That is said where `server.tls.acme` is documented.
    let new = NewAccount { contact: &contact, terms_of_service_agreed: true, only_return_existing: false };
    let http = Box::new(Client::new(settings)?);
    Ok(Account::builder_with_http(http).create(&new, settings.directory.clone(), None).await?)
}

/// What a domain was refused for, by the authority's own record.
async fn refusal(order: &mut Order) -> Option<Error> {
    let mut authorizations = order.authorizations();
    while let Some(Ok(mut authorization)) = authorizations.next().await {
        let state = authorization.refresh().await.ok()?;
        if let Some(problem) = state.challenges.iter().find_map(|challenge| challenge.error.as_ref()) {
            return Some(Error::Invalid { domain: state.identifier().to_string(), said: words(problem) });
        }
    }
    None
}

/// What the authority says, for a line of the log.
fn words(problem: &Problem) -> String {
    let text = problem.to_string();
    let text = text.trim_start_matches("API error: ");
    text.chars().filter(|sign| !sign.is_control()).take(TOLD).collect()
}
