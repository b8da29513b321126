//! What a frame needs of `/metrics`, read once per snapshot. Pure.

use std::collections::{BTreeMap, BTreeSet};

use crate::cli::samples;
use crate::ordered;

/// The sums over all label sets that a frame does not tell apart.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Digest {
    /// By account.
    pub(super) pushes: BTreeMap<String, Pushes>,
    /// By target: delivered, and all other outcomes.
    pub(super) attempts: BTreeMap<String, [f64; 2]>,
    /// The targets whose breaker is open.
    pub(super) down: BTreeSet<String>,
    pub(super) latencies: Latencies,
}

/// The pushes of an account.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Pushes {
    pub(super) accepted: f64,
    pub(super) repeated: f64,
    /// By reason.
    pub(super) refused: BTreeMap<String, f64>,
}

impl Pushes {
    pub(super) fn refused(&self) -> f64 {
        self.refused.values().fold(0.0, |sum, count| sum + count)
    }

    pub(super) fn total(&self) -> f64 {
        self.accepted + self.repeated + self.refused()
    }
}

/// The time to answer WeChat, from a push to the identity provider's 2xx, and of an attempt.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Latencies(pub(super) [Histogram; 3]);

const HISTOGRAMS: [&str; 3] = [
    "wxrelay_push_duration_seconds_bucket",
    "wxrelay_identity_latency_seconds_bucket",
    "wxrelay_delivery_duration_seconds_bucket",
];

impl Digest {
    pub(super) fn new(metrics: &str) -> Self {
        let mut digest = Self::default();
        for sample in samples::of(metrics, "wxrelay_pushes_total") {
            let (Some(account), Some(result)) = (sample.label("account"), sample.label("result")) else { continue };
            let pushes = digest.pushes.entry(account.to_owned()).or_default();
            match result {
                "accepted" | "verified" => pushes.accepted += sample.value,
                "duplicate" => pushes.repeated += sample.value,
                reason => *pushes.refused.entry(reason.to_owned()).or_default() += sample.value,
            }
        }
        for sample in samples::of(metrics, "wxrelay_deliveries_total") {
            let (Some(target), Some(outcome)) = (sample.label("target"), sample.label("outcome")) else { continue };
            let counts = digest.attempts.entry(target.to_owned()).or_default();
            counts[usize::from(outcome != "delivered")] += sample.value;
        }
        let down = samples::of(metrics, "wxrelay_target_up").into_iter().filter(|sample| sample.value == 0.0);
        digest.down = down.filter_map(|sample| sample.label("target").map(str::to_owned)).collect();
        digest.latencies = Latencies(HISTOGRAMS.map(|name| Histogram::read(metrics, name)));
        digest
    }
}

impl Latencies {
    /// Those since `before`; of all time where the relay was restarted between.
    pub(super) fn since(&self, before: &Self) -> Self {
        let mut since = self.clone();
        for (now, before) in since.0.iter_mut().zip(&before.0) {
            now.subtract(before);
        }
        since
    }
}

/// The cumulative counts by the upper bound of a bucket, in seconds.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Histogram(Vec<(f64, f64)>);

impl Histogram {
    fn read(metrics: &str, name: &str) -> Self {
        let mut buckets: Vec<(f64, f64)> = Vec::new();
        for sample in samples::of(metrics, name) {
            let Some(bound) = sample.label("le").and_then(|bound| match bound {
                "+Inf" => Some(f64::INFINITY),
                bound => bound.parse().ok(),
            }) else {
                continue;
            };
            match buckets.iter_mut().find(|(of, _)| *of == bound) {
                Some((_, count)) => *count += sample.value,
                None => buckets.push((bound, sample.value)),
            }
        }
        ordered::sort(&mut buckets, |one: &(f64, f64), other| one.0.total_cmp(&other.0));
        Self(buckets)
    }

    fn subtract(&mut self, before: &Self) {
        let is_later = self.0.len() == before.0.len() && self.total() >= before.total();
        for ((_, now), (_, before)) in self.0.iter_mut().zip(&before.0).filter(|_| is_later) {
            *now -= before;
        }
    }

    fn total(&self) -> f64 {
        self.0.last().map_or(0.0, |(_, count)| *count)
    }

    /// The time that 99 of 100 stayed below, in seconds, as Prometheus estimates it; infinite if it is longer than the
    /// last bound, `None` if nothing was counted.
    pub(super) fn p99(&self) -> Option<f64> {
        let rank = self.total() * 0.99;
        let (mut below, mut bound_below) = (0.0, 0.0);
        for (bound, count) in &self.0 {
            if *count >= rank && *count > 0.0 {
                let share = if *count > below { (rank - below) / (count - below) } else { 1.0 };
                return Some(if bound.is_finite() { bound_below + (bound - bound_below) * share } else { *bound });
            }
            (below, bound_below) = (*count, *bound);
        }
        None
    }
}

/// A latency for people.
pub(super) fn latency(seconds: Option<f64>) -> String {
    match seconds {
        None => "-".to_owned(),
        Some(seconds) if seconds.is_infinite() => "very long".to_owned(),
        Some(seconds) if seconds < 0.1 => format!("{:.1} ms", seconds * 1e3),
        Some(seconds) if seconds < 1.0 => format!("{:.0} ms", seconds * 1e3),
        Some(seconds) => format!("{seconds:.1} s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const METRICS: &str = "\
        wxrelay_pushes_total{account=\"shop\",kind=\"text\",result=\"accepted\"} 3\n\
        wxrelay_pushes_total{account=\"shop\",kind=\"scan\",result=\"accepted\"} 2\n\
        wxrelay_pushes_total{account=\"shop\",kind=\"text\",result=\"duplicate\"} 1\n\
        wxrelay_pushes_total{account=\"shop\",kind=\"none\",result=\"signature\"} 4\n\
        wxrelay_deliveries_total{target=\"crm\",outcome=\"delivered\"} 5\n\
        wxrelay_deliveries_total{target=\"crm\",outcome=\"retry\"} 2\n\
        wxrelay_deliveries_total{target=\"crm\",outcome=\"dead\"} 1\n\
        wxrelay_target_up{target=\"crm\"} 0\nwxrelay_target_up{target=\"bot\"} 1\n\
        wxrelay_push_duration_seconds_bucket{account=\"a\",le=\"0.01\"} 90\n\
        wxrelay_push_duration_seconds_bucket{account=\"a\",le=\"0.1\"} 100\n\
        wxrelay_push_duration_seconds_bucket{account=\"a\",le=\"+Inf\"} 100\n\
        wxrelay_push_duration_seconds_bucket{account=\"b\",le=\"0.01\"} 100\n\
        wxrelay_push_duration_seconds_bucket{account=\"b\",le=\"0.1\"} 100\n\
        wxrelay_push_duration_seconds_bucket{account=\"b\",le=\"+Inf\"} 100\n";

    #[test]
    fn samples_are_summed_by_what_a_frame_shows() {
        let digest = Digest::new(METRICS);
        let shop = &digest.pushes["shop"];
        assert_eq!((shop.accepted, shop.repeated, shop.refused["signature"], shop.total()), (5.0, 1.0, 4.0, 10.0));
        assert_eq!(digest.attempts["crm"], [5.0, 3.0]);
        assert_eq!(digest.down, BTreeSet::from(["crm".to_owned()]));
    }

    #[test]
    fn a_quantile_is_estimated_within_its_bucket() {
        let Latencies([answer, identity, _]) = Digest::new(METRICS).latencies;
        // The 198th of 200, and the bucket up to 0.1 s has the 191st to the 200th.
        let expected = 0.01 + 0.09 * 8.0 / 10.0;
        assert!(answer.p99().is_some_and(|p99| (p99 - expected).abs() < 1e-9), "{answer:?}");
        assert_eq!((identity.p99(), latency(identity.p99())), (None, "-".to_owned()));
        let slow = Histogram(vec![(5.0, 1.0), (f64::INFINITY, 100.0)]);
        assert_eq!(latency(slow.p99()), "very long");
    }

    #[test]
    fn latencies_since_a_moment_leave_out_the_ones_before() {
        let now = Digest::new(METRICS).latencies;
        assert_eq!(now.since(&now).0[0].p99(), None, "nothing happened since");
        assert_eq!(now.since(&Latencies::default()), now, "a restarted relay counts from 0");
    }
}
