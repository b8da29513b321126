//! Reloads renewed certificates, and warns before certificates expire.
//!
//! Invariants: an unusable certificate does not replace the one in use; an expired one is still served, as some clients
//! do not check, and without it none could connect.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::Validity;
use super::tls::Acceptor;
use crate::clock::UnixMillis;
use crate::metrics::Metrics;

/// The interval of checks of the files.
const CHECK_INTERVAL: Duration = Duration::from_secs(30);
/// The interval of warnings about one certificate.
const WARN_INTERVAL: Duration = Duration::from_hours(24);
const DAY: i64 = 86_400;

/// Watches the served certificates until `stop`.
pub async fn watch(acceptor: Acceptor, metrics: Arc<Metrics>, stop: CancellationToken) {
    let mut warnings = ExpiryWarnings::default();
    loop {
        for reloaded in acceptor.reload_changed() {
            match reloaded {
                Ok(cert) => tracing::info!(cert = %cert.display(), "certificate reloaded"),
                Err(error) => {
                    let reason = std::error::Error::source(&error).map(tracing::field::display);
                    tracing::warn!(%error, reason, "changed certificate unusable, the old one stays in use");
                }
            }
        }
        publish_expiries(&acceptor, &metrics);
        for (cert, validity) in acceptor.validities() {
            if let Some(warning) = warnings.next(cert, validity, UnixMillis::now().seconds()) {
                warning.log(cert);
            }
        }
        tokio::select! {
            () = tokio::time::sleep(CHECK_INTERVAL) => {}
            () = stop.cancelled() => return,
        }
    }
}

/// Sets the expiry metrics of the certificates in use.
pub fn publish_expiries(acceptor: &Acceptor, metrics: &Metrics) {
    for (cert, validity) in acceptor.validities() {
        metrics.tls_expiry(&cert.to_string_lossy(), validity.until, validity.renew_by());
    }
}

/// The expiry that was last warned of, and when, by certificate file.
#[derive(Default)]
struct ExpiryWarnings(HashMap<PathBuf, (i64, Instant)>);

/// A certificate that expires soon or has expired.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ExpiryWarning {
    /// In this many whole days.
    ExpiresIn(i64),
    Expired,
}

impl ExpiryWarnings {
    /// The warning to log now: once a day, and at once for another certificate in the same file.
    fn next(&mut self, cert: &Path, validity: Validity, now: i64) -> Option<ExpiryWarning> {
        let end = validity.until;
        if now <= validity.renew_by() {
            self.0.remove(cert);
            return None;
        }
        let notice = match (end - now).div_euclid(DAY) {
            ..0 => ExpiryWarning::Expired,
            days => ExpiryWarning::ExpiresIn(days),
        };
        if self.0.get(cert).is_some_and(|(expiry, when)| *expiry == end && when.elapsed() < WARN_INTERVAL) {
            return None;
        }
        self.0.insert(cert.to_owned(), (end, Instant::now()));
        Some(notice)
    }
}

impl ExpiryWarning {
    fn log(self, cert: &Path) {
        let cert = cert.display();
        match self {
            Self::ExpiresIn(days) => {
                tracing::warn!(%cert, days, "certificate expires soon: renew it, or check why ACME does not");
            }
            Self::Expired => tracing::error!(%cert, "certificate expired, WeChat refuses it: renew it now"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::{Certificate, TlsFiles};

    #[tokio::test(start_paused = true)]
    async fn changed_files_are_reloaded_and_unusable_ones_are_not() {
        let folder = tempfile::tempdir().unwrap();
        let files = TlsFiles { cert: folder.path().join("cert.pem"), key: folder.path().join("key.pem") };
        let write = |year| {
            let mut params = rcgen::CertificateParams::new(["localhost".to_owned()]).unwrap();
            params.not_after = rcgen::date_time_ymd(year, 1, 1);
            let key = rcgen::KeyPair::generate().unwrap();
            std::fs::write(&files.cert, params.self_signed(&key).unwrap().pem()).unwrap();
            std::fs::write(&files.key, key.serialize_pem()).unwrap();
            // Set explicitly: the file system's clock may not have advanced since the last write.
            let written = std::time::UNIX_EPOCH + Duration::from_secs(year.unsigned_abs().into());
            std::fs::File::options().append(true).open(&files.key).unwrap().set_modified(written).unwrap();
        };
        write(2101);
        let (metrics, stop) = (Metrics::new(), CancellationToken::new());
        let acceptor = Acceptor::load(&[Certificate::Files(files.clone())], false).unwrap();
        let watching = tokio::spawn(watch(acceptor.clone(), metrics.clone(), stop.clone()));
        let end = async || {
            tokio::time::sleep(CHECK_INTERVAL).await;
            let text = metrics.render();
            let line = text.lines().find(|line| line.starts_with("wxrelay_tls_expiry_timestamp_seconds{")).unwrap();
            line.rsplit_once(' ').unwrap().1.parse::<f64>().unwrap()
        };
        let first = end().await;
        write(2102);
        let second = end().await;
        assert_eq!(second - first, 365.0 * DAY as f64);
        write(2103);
        std::fs::write(&files.key, "no key").unwrap();
        assert_eq!(end().await, second, "the old one stays");
        write(2104);
        assert!(end().await > second);
        stop.cancel();
        watching.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn an_expiry_is_warned_of_once_a_day_from_21_days_before() {
        let (mut warnings, cert) = (ExpiryWarnings::default(), Path::new("cert.pem"));
        let [until, renewed] = [100, 200].map(|days| Validity { from: 0, until: days * DAY });
        let end = until.until;
        assert_eq!(warnings.next(cert, until, 79 * DAY), None);
        assert_eq!(warnings.next(cert, until, 79 * DAY + 1), Some(ExpiryWarning::ExpiresIn(20)));
        assert_eq!(warnings.next(cert, until, 79 * DAY + 30), None);
        assert_eq!(
            warnings.next(Path::new("other"), until, 79 * DAY + 30),
            Some(ExpiryWarning::ExpiresIn(20)),
            "each by itself"
        );
        tokio::time::advance(WARN_INTERVAL).await;
        assert_eq!(warnings.next(cert, until, 80 * DAY), Some(ExpiryWarning::ExpiresIn(20)));
        tokio::time::advance(WARN_INTERVAL).await;
        assert_eq!(warnings.next(cert, until, end), Some(ExpiryWarning::ExpiresIn(0)));
        tokio::time::advance(WARN_INTERVAL).await;
        assert_eq!(warnings.next(cert, until, end + 1), Some(ExpiryWarning::Expired));
        assert_eq!(warnings.next(cert, renewed, end + 1), None, "renewed");
        assert_eq!(warnings.next(cert, until, end + 2), Some(ExpiryWarning::Expired), "and put back");
    }
}
