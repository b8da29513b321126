//! Certificates of replicas: what is in PostgreSQL instead of files, where [`Queue`] keeps it sealed.
//!
//! The certificate and the account are there; one replica orders at a time; and the proof for a domain is told to every
//! replica before the authority is asked to look for it, so that any of them can answer.

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::queue::{Error, Queue, Seen};
use crate::server::{AcmeSettings, tls};

/// How long the other replicas may take to see a challenge.
const SEEN_WAIT: Duration = Duration::from_secs(15);
/// How long the start waits for PostgreSQL.
const START_WAIT: Duration = Duration::from_secs(5);
/// The pause before what could not be read is read again.
const RETRY: Duration = Duration::from_secs(1);

/// What is shared of the entries from ACME.
#[derive(Clone)]
pub(super) struct SharedStore(pub(super) Queue);

impl SharedStore {
    pub(super) async fn account(&self, settings: &AcmeSettings) -> Result<Option<Vec<u8>>, Error> {
        self.0.kept(&account_name(settings)).await
    }

    pub(super) async fn keep_account(&self, settings: &AcmeSettings, text: &[u8]) -> Result<(), Error> {
        self.0.keep(&account_name(settings), text).await
    }

    pub(super) async fn keep_certificate(&self, settings: &AcmeSettings, pem: &[u8]) -> Result<(), Error> {
        self.0.keep(&certificate_name(settings), pem).await
    }

    /// Whether this replica may order now; no other one does for so long.
    pub(super) async fn claim(&self, settings: &AcmeSettings, time: Duration) -> Result<bool, Error> {
        self.0.claim(&certificate_name(settings), time).await
    }

    pub(super) async fn release(&self, settings: &AcmeSettings) {
        // It ends by itself.
        drop(self.0.release(&certificate_name(settings)).await);
    }

    /// Tells every replica the proof for a domain; returns how many of those that live have seen it.
    pub(super) async fn offer(&self, domain: &str, sha256: &[u8; 32]) -> Result<Seen, Error> {
        self.0.offer(domain, sha256).await?;
        let seen = self.0.await_seen(SEEN_WAIT).await?;
        Ok(seen.unwrap_or(Seen { replicas: 0, seen: 0 }))
    }

    pub(super) async fn withdraw(&self, settings: &AcmeSettings) {
        // They end by themselves.
        drop(self.0.withdraw(&settings.domains).await);
    }

    /// Serves the certificate that is in PostgreSQL, if there is one for this entry that is not served yet.
    pub(super) async fn load(&self, acceptor: &tls::Acceptor, index: usize) -> Result<(), Error> {
        let Some(settings) = acceptor.acme_entries().find(|(entry, _)| *entry == index).map(|(_, settings)| settings)
        else {
            return Ok(());
        };
        if let Some(pem) = self.0.kept(&certificate_name(settings)).await?
            && let Err(error) = acceptor.install(index, &pem)
        {
            tracing::warn!(%error, "stored certificate unusable, ordering another");
        }
        Ok(())
    }

    async fn load_all(&self, acceptor: &tls::Acceptor) -> Result<(), Error> {
        acceptor.challenges().follow(&self.0.offered().await?);
        let entries: Vec<usize> = acceptor.acme_entries().map(|(index, _)| index).collect();
        for index in entries {
            self.load(acceptor, index).await?;
        }
        Ok(())
    }
}

/// Serves what is in PostgreSQL from the first connection on, if it answers.
pub async fn restore(acceptor: &tls::Acceptor, queue: &Queue) {
    if !acceptor.is_shared() {
        return;
    }
    let store = SharedStore(queue.clone());
    let loaded = timeout(START_WAIT, store.load_all(acceptor)).await.unwrap_or(Err(Error::Away));
    if let Err(error) = loaded {
        tracing::warn!(%error, remedy = error.remedy(), "certificates not read from postgresql, trying again");
    }
}

/// Serves what other replicas have stored, until `stop`.
pub(super) async fn follow(
    store: SharedStore,
    acceptor: tls::Acceptor,
    mut changes: watch::Receiver<i64>,
    publish: impl Fn(&tls::Acceptor) + Send,
    stop: CancellationToken,
) {
    let follow = async {
        loop {
            let change = *changes.borrow_and_update();
            if store.load_all(&acceptor).await.is_err() {
                // The queue logs why.
                sleep(RETRY).await;
                continue;
            }
            publish(&acceptor);
            store.0.note_offers_seen(change).await;
            if changes.changed().await.is_err() {
                return;
            }
        }
    };
    stop.run_until_cancelled(follow).await;
}

fn certificate_name(settings: &AcmeSettings) -> String {
    format!("certificate {}", settings.file.display())
}

fn account_name(settings: &AcmeSettings) -> String {
    format!("account {}", settings.directory)
}
