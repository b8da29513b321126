//! Certificates that the relay orders and renews itself, by ACME (RFC 8555) with TLS-ALPN-01 (RFC 8737).
//!
//! - `mod.rs`: [`keep`], a task per entry of `server.tls` that knows when to order
//! - `order.rs`: one order; `client.rs`: HTTPS to the authority
//! - `challenge.rs`: what an authority is shown that looks whether a domain is ours
//! - `state.rs`: what outlives the process
//!
//! Invariants: nothing else waits for an order, it waits for nothing but the authority, and it is given up when the relay
//! stops; one order at a time, so that entries of one authority share an account; after failures the pauses grow, as
//! authorities count them. Not here: wildcards and addresses, which TLS-ALPN-01 cannot show, external account binding.

mod challenge;
mod client;
mod order;
mod state;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use prometheus::IntCounter;
use tokio::sync::{Mutex, watch as news};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

pub use challenge::ChallengeError;
pub(super) use challenge::{Challenges, PROTOCOL, asks_for_validation, is_validation};
pub use order::Error;
pub use state::{SaveError, file};

use super::{tls, watch};
use crate::backoff::Schedule;
use crate::clock::UnixMillis;
use crate::metrics::Metrics;

/// The authority that is asked if none is named: Let's Encrypt.
pub const LETS_ENCRYPT: &str = "https://acme-v02.api.letsencrypt.org/directory";
/// How often it is looked whether a renewal is due, in case the wall clock was set.
const LOOK: Duration = Duration::from_hours(1);
/// The most time for one order.
const LIMIT: Duration = Duration::from_secs(300);
/// The pauses after failures, in minutes; the last repeats. Let's Encrypt takes 5 an hour.
const PAUSES: [u64; 5] = [1, 5, 15, 60, 180];

/// `acme` of an entry of `server.tls`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The names that the certificate is for, in lower case; at least one.
    pub domains: Vec<String>,
    /// Whom the authority may write to.
    pub email: Option<String>,
    /// The URL of the authority's directory.
    pub directory: String,
    /// A PEM file of the certificate authorities to trust for that URL instead of the system's.
    pub ca: Option<PathBuf>,
    /// Where the certificate is kept, by [`file()`].
    pub file: PathBuf,
}

impl Settings {
    /// What the certificate is called by.
    fn domain(&self) -> &str {
        self.domains.first().map_or("", String::as_str)
    }
}

/// Keeps a certificate for every entry that wants one, until `stop`.
pub fn keep(acceptor: &tls::Acceptor, metrics: &Arc<Metrics>, stop: &CancellationToken) {
    let turn = Arc::new(Mutex::new(()));
    for (place, settings) in acceptor.by_acme() {
        let [issued, failed] = metrics.acme_orders(settings.domain());
        let keeper = Keeper {
            acceptor: acceptor.clone(),
            place,
            settings: settings.clone(),
            turn: turn.clone(),
            reloads: acceptor.reloads(),
            metrics: metrics.clone(),
            issued,
            failed,
        };
        let stop = stop.clone();
        tokio::spawn(async move { stop.run_until_cancelled(keeper.run()).await });
    }
}

/// Who keeps one entry's certificate.
struct Keeper {
    acceptor: tls::Acceptor,
    place: usize,
    settings: Settings,
    /// Held during an order.
    turn: Arc<Mutex<()>>,
    reloads: news::Receiver<()>,
    metrics: Arc<Metrics>,
    issued: IntCounter,
    failed: IntCounter,
}

impl Keeper {
    async fn run(mut self) {
        let pauses = Schedule::repeating(PAUSES.map(|minutes| Duration::from_secs(60 * minutes)).into());
        let mut failures = 0;
        loop {
            let left = self.left();
            if !left.is_zero() {
                self.pause(left.min(LOOK)).await;
                continue;
            }
            match self.renew().await {
                Ok(()) => {
                    failures = 0;
                    self.issued.inc();
                }
                Err(error) => {
                    failures += 1;
                    self.failed.inc();
                    let pause = pauses.wait(failures, jitter(), None).unwrap_or(LOOK);
                    self.complain(&error, pause);
                    self.pause(pause).await;
                }
            }
        }
    }

    /// The time until the certificate in use is renewed; zero if that is due, or if there is none.
    fn left(&self) -> Duration {
        let Some(validity) = self.acceptor.validity(self.place) else { return Duration::ZERO };
        let seconds = validity.renewal().saturating_sub(UnixMillis::now().seconds());
        Duration::from_secs(u64::try_from(seconds).unwrap_or(0))
    }

    /// Until that is over, or the operator reloads: maybe the obstacle is gone.
    async fn pause(&mut self, pause: Duration) {
        tokio::select! {
            () = sleep(pause) => {}
            // The acceptor here holds the sender, so there is always a change to wait for.
            _ = self.reloads.changed() => {}
        }
    }

    async fn renew(&mut self) -> Result<(), Error> {
        let _turn = self.turn.lock().await;
        let Settings { domains, directory, file, .. } = &self.settings;
        tracing::info!(domains = domains.join(", "), directory, "ordering a certificate");
        let ordered = order::place(&self.settings, self.acceptor.challenges());
        let pem = timeout(LIMIT, ordered).await.map_err(|_| Error::Slow)??;
        self.acceptor.take(self.place, pem.as_bytes())?;
        // It is served all the same: an authority gives only so many for the same names.
        if let Err(error) = state::save(file.clone(), pem.as_bytes().to_vec().into()).await {
            tracing::warn!(%error, "the certificate is not kept, and ordered again after a restart: look at queue.path");
        }
        if self.left().is_zero() {
            return Err(Error::Stale);
        }
        let ends = self.acceptor.validity(self.place).map(|validity| UnixMillis(validity.until.saturating_mul(1000)));
        tracing::info!(cert = %file.display(), ends = ends.map(tracing::field::display), "a new certificate is in use");
        watch::tell_expiries(&self.acceptor, &self.metrics);
        Ok(())
    }

    fn complain(&self, error: &Error, pause: Duration) {
        let (domain, remedy) = (self.settings.domain(), error.remedy());
        let served = self.acceptor.validity(self.place).is_some();
        let again = humantime::format_duration(Duration::from_secs(pause.as_secs()));
        tracing::warn!(
            domain,
            %error,
            remedy,
            served,
            again_in = %again,
            "server.tls.acme: no new certificate; a reload tries again at once"
        );
    }
}

/// A random number of 0..1.
fn jitter() -> f64 {
    getrandom::u32().map_or(0.5, |random| f64::from(random) / f64::from(u32::MAX))
}

#[cfg(test)]
mod tests;
