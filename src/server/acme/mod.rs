//! Certificates from an ACME authority (RFC 8555), validated by TLS-ALPN-01 (RFC 8737).
//!
//! - `mod.rs`: [`spawn_renewals`], a task per entry of `server.tls` that decides when to order
//! - `order.rs`: one order; `client.rs`: HTTPS to the authority
//! - `shared.rs`: what replicas share in PostgreSQL; `state.rs`: the files of accounts and certificates
//!
//! Invariants: nothing else waits for an order, an order waits only for the authority, and it is cancelled when the
//! relay stops; orders run one after the other, so that entries of one authority share an account; after failures the
//! pauses grow, as authorities limit failures. Not supported: wildcards and addresses, which TLS-ALPN-01 cannot
//! validate, and external account binding.

mod client;
mod order;
mod shared;
mod state;

use std::sync::Arc;
use std::time::Duration;

use prometheus::IntCounter;
use tokio::sync::{Mutex, watch};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

pub use order::Error;
pub use shared::restore;
pub use state::{SaveError, file};

use self::shared::SharedStore;
use super::{AcmeSettings, certificate_watch, tls};
use crate::backoff::Schedule;
use crate::clock::UnixMillis;
use crate::metrics::Metrics;
use crate::queue::Queue;

/// The default authority: Let's Encrypt.
pub const LETS_ENCRYPT: &str = "https://acme-v02.api.letsencrypt.org/directory";
/// How often the renewal time is checked, in case the wall clock was set.
const CHECK_INTERVAL: Duration = Duration::from_hours(1);
const ORDER_TIMEOUT: Duration = Duration::from_secs(300);
/// The pauses after failures, in minutes; the last repeats. Let's Encrypt allows 5 failures an hour.
const PAUSES: [u64; 5] = [1, 5, 15, 60, 180];
/// How long an order is this replica's: while it takes, and what follows it.
const CLAIM: Duration = Duration::from_secs(360);
/// How often a replica looks whether the one that orders is gone.
const OTHER_ORDERS: Duration = Duration::from_secs(5);

/// Spawns a renewal task for every entry from ACME, until `stop`.
///
/// Where certificates are shared, all replicas serve what one of them has ordered, and answer its challenges.
pub fn spawn_renewals(acceptor: &tls::Acceptor, queue: &Queue, metrics: &Arc<Metrics>, stop: &CancellationToken) {
    let order_lock = Arc::new(Mutex::new(()));
    let store = acceptor.is_shared().then(|| SharedStore(queue.clone()));
    if let (Some(store), Some(changes)) = (&store, queue.operator_changes()) {
        let metrics = metrics.clone();
        let publish = move |acceptor: &tls::Acceptor| certificate_watch::publish_expiries(acceptor, &metrics);
        tokio::spawn(shared::follow(store.clone(), acceptor.clone(), changes, publish, stop.clone()));
    }
    for (index, settings) in acceptor.acme_entries() {
        let [issued, failed] = metrics.acme_orders(settings.domain());
        let renewal = Renewal {
            acceptor: acceptor.clone(),
            index,
            settings: settings.clone(),
            store: store.clone(),
            order_lock: order_lock.clone(),
            reloads: acceptor.subscribe_reloads(),
            metrics: metrics.clone(),
            issued,
            failed,
        };
        let stop = stop.clone();
        tokio::spawn(async move { stop.run_until_cancelled(renewal.run()).await });
    }
}

/// Orders and renews one entry's certificate.
struct Renewal {
    acceptor: tls::Acceptor,
    index: usize,
    settings: AcmeSettings,
    /// Where replicas share it.
    store: Option<SharedStore>,
    /// Held during an order; shared by all entries.
    order_lock: Arc<Mutex<()>>,
    reloads: watch::Receiver<()>,
    metrics: Arc<Metrics>,
    issued: IntCounter,
    failed: IntCounter,
}

impl Renewal {
    async fn run(mut self) {
        let pauses = Schedule::repeating(PAUSES.map(|minutes| Duration::from_secs(60 * minutes)).into());
        let mut failures = 0;
        loop {
            let remaining = self.remaining();
            if !remaining.is_zero() {
                self.pause(remaining.min(CHECK_INTERVAL)).await;
                continue;
            }
            if !self.may_order().await {
                self.pause(OTHER_ORDERS).await;
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
                    let pause = pauses.wait(failures, jitter(), None).unwrap_or(CHECK_INTERVAL);
                    self.log_failure(&error, pause);
                    if let Some(store) = &self.store {
                        // The others would be refused like this one: they wait as long, while this one lives.
                        drop(store.claim(&self.settings, pause).await);
                    }
                    self.pause(pause).await;
                }
            }
        }
    }

    /// The time until the renewal of the certificate in use; zero if it is due, or if there is no certificate.
    fn remaining(&self) -> Duration {
        let Some(validity) = self.acceptor.validity(self.index) else { return Duration::ZERO };
        let seconds = validity.renewal().saturating_sub(UnixMillis::now().seconds());
        Duration::from_secs(u64::try_from(seconds).unwrap_or(0))
    }

    /// Waits for `pause`, or until the next reload, as the operator may have fixed the cause.
    async fn pause(&mut self, pause: Duration) {
        tokio::select! {
            () = sleep(pause) => {}
            // Pairs with the sender in `self.acceptor`, which outlives this: `changed` cannot fail and return at once.
            _ = self.reloads.changed() => {}
        }
    }

    /// Whether the order is this replica's. Another one may have made it meanwhile.
    async fn may_order(&self) -> bool {
        let Some(store) = &self.store else { return true };
        if !matches!(store.claim(&self.settings, CLAIM).await, Ok(true)) {
            return false;
        }
        if store.load(&self.acceptor, self.index).await.is_ok() && self.remaining().is_zero() {
            return true;
        }
        store.release(&self.settings).await;
        false
    }

    async fn renew(&mut self) -> Result<(), Error> {
        let _order = self.order_lock.lock().await;
        let AcmeSettings { domains, directory, file, .. } = &self.settings;
        tracing::info!(domains = domains.join(", "), directory, "ordering certificate");
        let store = self.store.as_ref();
        let ordered = timeout(ORDER_TIMEOUT, order::place(&self.settings, self.acceptor.challenges(), store)).await;
        if let Some(store) = store {
            store.withdraw(&self.settings).await;
        }
        let pem = ordered.map_err(|_| Error::Slow)??;
        self.acceptor.install(self.index, pem.as_bytes())?;
        // The certificate is served all the same: authorities limit the number of certificates for the same names.
        if let Some(store) = store {
            match store.keep_certificate(&self.settings, pem.as_bytes()).await {
                Ok(()) => store.release(&self.settings).await,
                Err(error) => tracing::warn!(%error, "certificate not stored in postgresql, the others order another"),
            }
        } else if let Err(error) = state::save(file.clone(), pem.as_bytes().to_vec().into()).await {
            tracing::warn!(%error, "certificate not stored, a restart orders it again: check queue.path");
        }
        if self.remaining().is_zero() {
            return Err(Error::Stale);
        }
        let ends = self.acceptor.validity(self.index).map(|validity| UnixMillis(validity.until.saturating_mul(1000)));
        tracing::info!(cert = %file.display(), ends = ends.map(tracing::field::display), "certificate issued");
        certificate_watch::publish_expiries(&self.acceptor, &self.metrics);
        Ok(())
    }

    fn log_failure(&self, error: &Error, pause: Duration) {
        let (domain, remedy) = (self.settings.domain(), error.remedy());
        let served = self.acceptor.validity(self.index).is_some();
        let again = humantime::format_duration(Duration::from_secs(pause.as_secs()));
        tracing::warn!(
            domain,
            %error,
            remedy,
            served,
            again_in = %again,
            "certificate order failed, a reload retries at once"
        );
    }
}

/// A random number in 0..1.
fn jitter() -> f64 {
    getrandom::u32().map_or(0.5, |random| f64::from(random) / f64::from(u32::MAX))
}

#[cfg(test)]
mod tests;
