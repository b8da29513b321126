//! Renewed certificates are taken up, and those that end soon are told of.
//!
//! Invariant: one that cannot be used leaves the one in use. A certificate that has ended is served all the same: a
//! client may not look, and no answer at all helps nobody.

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

/// How often the files are looked at.
const WATCH: Duration = Duration::from_secs(30);
/// How often an end that comes near is told of.
const REPEAT: Duration = Duration::from_hours(24);
const DAY: i64 = 86_400;

/// Watches until `stop`.
pub async fn certificates(acceptor: Acceptor, metrics: Arc<Metrics>, stop: CancellationToken) {
    let mut warned = Warned::default();
    loop {
        for reloaded in acceptor.reload_changed() {
            match reloaded {
                Ok(cert) => tracing::info!(cert = %cert.display(), "a renewed certificate is in use"),
                Err(error) => {
                    let reason = std::error::Error::source(&error).map(tracing::field::display);
                    tracing::warn!(%error, reason, "the changed certificate can't be used; the old one stays in use");
                }
            }
        }
        tell_expiries(&acceptor, &metrics);
        for (cert, validity) in acceptor.validities() {
            if let Some(notice) = warned.due(cert, validity, UnixMillis::now().seconds()) {
                notice.write(cert);
            }
        }
        tokio::select! {
            () = tokio::time::sleep(WATCH) => {}
            () = stop.cancelled() => return,
        }
    }
}

/// Puts the ends of the certificates in use into the metrics.
pub fn tell_expiries(acceptor: &Acceptor, metrics: &Metrics) {
    for (cert, validity) in acceptor.validities() {
        metrics.tls_expiry(&cert.to_string_lossy(), validity.until, validity.renew_by());
    }
}

/// Which ends were told of, and when.
#[derive(Default)]
struct Warned(HashMap<PathBuf, (i64, Instant)>);

/// What is wrong with a certificate's end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Notice {
    /// So many whole days are left.
    EndsIn(i64),
    Ended,
}

impl Warned {
    /// What to say now: once a day, and at once when another certificate is no better.
    fn due(&mut self, cert: &Path, validity: Validity, now: i64) -> Option<Notice> {
        let end = validity.until;
        if now <= validity.renew_by() {
            self.0.remove(cert);
            return None;
        }
        let notice = match (end - now).div_euclid(DAY) {
            ..0 => Notice::Ended,
            days => Notice::EndsIn(days),
        };
        if self.0.get(cert).is_some_and(|(told, when)| *told == end && when.elapsed() < REPEAT) {
            return None;
        }
        self.0.insert(cert.to_owned(), (end, Instant::now()));
        Some(notice)
    }
}

impl Notice {
    fn write(self, cert: &Path) {
        let cert = cert.display();
        match self {
            Self::EndsIn(days) => {
                tracing::warn!(%cert, days, "a served certificate ends soon: renew it, or see why ACME does not");
            }
            Self::Ended => tracing::error!(%cert, "a served certificate HAS ENDED and WeChat refuses it: renew it now"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::{Certificate, TlsFiles};

    #[tokio::test(start_paused = true)]
    async fn changed_files_are_taken_up_and_unusable_ones_are_not() {
        let folder = tempfile::tempdir().unwrap();
        let files = TlsFiles { cert: folder.path().join("cert.pem"), key: folder.path().join("key.pem") };
        let write = |year| {
            let mut params = rcgen::CertificateParams::new(["localhost".to_owned()]).unwrap();
            params.not_after = rcgen::date_time_ymd(year, 1, 1);
            let key = rcgen::KeyPair::generate().unwrap();
            std::fs::write(&files.cert, params.self_signed(&key).unwrap().pem()).unwrap();
            std::fs::write(&files.key, key.serialize_pem()).unwrap();
            // The file system's clock may not have moved since the last time.
            let written = std::time::UNIX_EPOCH + Duration::from_secs(year.unsigned_abs().into());
            std::fs::File::options().append(true).open(&files.key).unwrap().set_modified(written).unwrap();
        };
        write(2101);
        let (metrics, stop) = (Metrics::new(), CancellationToken::new());
        let acceptor = Acceptor::load(&[Certificate::Files(files.clone())], false).unwrap();
        let watching = tokio::spawn(certificates(acceptor.clone(), metrics.clone(), stop.clone()));
        let end = async || {
            tokio::time::sleep(WATCH).await;
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
    async fn an_end_is_told_of_from_21_days_before_once_a_day() {
        let (mut warned, cert) = (Warned::default(), Path::new("cert.pem"));
        let [until, renewed] = [100, 200].map(|days| Validity { from: 0, until: days * DAY });
        let end = until.until;
        assert_eq!(warned.due(cert, until, 79 * DAY), None);
        assert_eq!(warned.due(cert, until, 79 * DAY + 1), Some(Notice::EndsIn(20)));
        assert_eq!(warned.due(cert, until, 79 * DAY + 30), None);
        assert_eq!(warned.due(Path::new("other"), until, 79 * DAY + 30), Some(Notice::EndsIn(20)), "each by itself");
        tokio::time::advance(REPEAT).await;
        assert_eq!(warned.due(cert, until, 80 * DAY), Some(Notice::EndsIn(20)));
        tokio::time::advance(REPEAT).await;
        assert_eq!(warned.due(cert, until, end), Some(Notice::EndsIn(0)));
        tokio::time::advance(REPEAT).await;
        assert_eq!(warned.due(cert, until, end + 1), Some(Notice::Ended));
        assert_eq!(warned.due(cert, renewed, end + 1), None, "renewed");
        assert_eq!(warned.due(cert, until, end + 2), Some(Notice::Ended), "and put back");
    }
}
