//! What the history and the checks of the admin listener read of the metrics, at one moment.

use std::collections::BTreeMap;

use prometheus::core::Collector;
use prometheus::proto::Metric;

use super::Metrics;

/// Answers that WeChat got to no pushes, and that it asks for again.
const NOT_STORED: [&str; 3] = ["unavailable", "late", "internal"];

/// What a reading is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Subject {
    Account,
    Target,
    /// The process, and the store that it writes to.
    Process,
}

/// The counters and gauges of one subject. A counter counts since the start of the process.
#[derive(Clone, Debug)]
pub struct Reading {
    pub subject: Subject,
    /// The account or the target; empty for the process.
    pub name: String,
    /// Of an account: accepted or verified, repeated, refused, not stored, hung up. Of a target: delivered, failed,
    /// expired. Of the process: lost spans, lost log lines.
    pub counters: [u64; 5],
    /// Of an account: 1 while its reply window is closed. Of a target: pending deliveries, dead letters. Of the process:
    /// live replicas.
    pub gauges: [u64; 2],
    /// Answers of an account, attempts at a target, commits.
    pub times: Buckets,
    /// Of a target that is an identity provider: from the push to its 2xx.
    pub logins: Buckets,
}

/// Upper bounds in seconds, and how many observations are at most as long; the last one counts all.
pub type Buckets = Vec<(f64, u64)>;

/// The gauges that the checks judge. `None` where the metric is absent.
#[derive(Clone, Debug, Default)]
pub struct Gauges {
    /// Certificates: when each expires and when it should be renewed, in seconds since the epoch.
    pub certificates: Vec<(String, f64, f64)>,
    pub clock_skew: f64,
    pub disk_free: Option<f64>,
    pub queue_max_bytes: Option<f64>,
    pub store_up: Option<f64>,
    pub standby: Option<f64>,
    pub xmin_age: Option<f64>,
    pub replicas_differ: Option<f64>,
}

impl Reading {
    /// All zeros.
    pub fn new(subject: Subject, name: String) -> Self {
        Self { subject, name, counters: [0; 5], gauges: [0; 2], times: Buckets::new(), logins: Buckets::new() }
    }
}

impl Metrics {
    /// Every account, every target, and the process.
    pub fn readings(&self) -> Vec<Reading> {
        let mut found = BTreeMap::new();
        for metric in samples(&self.pushes) {
            let result = label(&metric, "result");
            let index = match result {
                "accepted" | "verified" => 0,
                "duplicate" => 1,
                "hung_up" => 4,
                failed if NOT_STORED.contains(&failed) => 3,
                _ => 2,
            };
            // A request to no account's path has an empty label.
            if let Some(reading) = named(&mut found, Subject::Account, label(&metric, "account")) {
                reading.counters[index] += whole(metric.get_counter().get_value());
            }
        }
        for metric in samples(&self.reply_window_open) {
            if let Some(reading) = named(&mut found, Subject::Account, label(&metric, "account")) {
                reading.gauges[0] = u64::from(metric.get_gauge().get_value() == 0.0);
            }
        }
        for metric in samples(&self.deliveries) {
            let index = match label(&metric, "outcome") {
                "delivered" => 0,
                "expired" => 2,
                _ => 1,
            };
            if let Some(reading) = named(&mut found, Subject::Target, label(&metric, "target")) {
                reading.counters[index] += whole(metric.get_counter().get_value());
            }
        }
        for (index, vec) in [&self.pending, &self.dead].into_iter().enumerate() {
            for metric in samples(vec) {
                if let Some(reading) = named(&mut found, Subject::Target, label(&metric, "target")) {
                    reading.gauges[index] = whole(metric.get_gauge().get_value());
                }
            }
        }
        for (subject, key, vec, is_of_logins) in [
            (Subject::Account, "account", &self.push_duration, false),
            (Subject::Target, "target", &self.delivery_duration, false),
            (Subject::Target, "target", &self.identity_latency, true),
        ] {
            for metric in samples(vec) {
                if let Some(reading) = named(&mut found, subject, label(&metric, key)) {
                    *(if is_of_logins { &mut reading.logins } else { &mut reading.times }) = buckets(&metric);
                }
            }
        }
        let mut process = Reading::new(Subject::Process, String::new());
        let spans = samples(&self.spans);
        let lost = spans.iter().filter(|metric| label(metric, "result") != "exported");
        process.counters[0] = lost.map(|metric| whole(metric.get_counter().get_value())).sum();
        process.counters[1] = self.log_lines_lost.get();
        process.gauges[0] = first(&self.replicas).map_or(0, whole);
        process.times = samples(&self.commit_duration).first().map(buckets).unwrap_or_default();
        found.into_values().chain([process]).collect()
    }

    /// The gauges that the checks judge.
    pub fn gauges(&self) -> Gauges {
        let renew_by = samples(&self.tls_renew_by);
        let certificate = |metric: &Metric| {
            let cert = label(metric, "cert");
            let by = renew_by.iter().find(|other| label(other, "cert") == cert)?;
            Some((cert.to_owned(), metric.get_gauge().get_value(), by.get_gauge().get_value()))
        };
        Gauges {
            certificates: samples(&self.tls_expiry).iter().filter_map(certificate).collect(),
            clock_skew: self.clock_skew.get(),
            disk_free: first(&self.disk_free_bytes),
            queue_max_bytes: first(&self.queue_max_bytes),
            store_up: first(&self.store_up),
            standby: first(&self.store_standby),
            xmin_age: first(&self.store_xmin_age),
            replicas_differ: first(&self.replicas_differ),
        }
    }
}

/// The reading of that name; `None` without a name.
fn named<'r>(
    found: &'r mut BTreeMap<(Subject, String), Reading>,
    subject: Subject,
    name: &str,
) -> Option<&'r mut Reading> {
    let new = || Reading::new(subject, name.to_owned());
    (!name.is_empty()).then(|| found.entry((subject, name.to_owned())).or_insert_with(new))
}

fn samples(of: &dyn Collector) -> Vec<Metric> {
    of.collect().into_iter().flat_map(|mut family| family.take_metric()).collect()
}

/// The value of a gauge without labels; `None` while it is absent.
fn first(of: &dyn Collector) -> Option<f64> {
    samples(of).first().map(|metric| metric.get_gauge().get_value())
}

fn label<'m>(metric: &'m Metric, key: &str) -> &'m str {
    metric.get_label().iter().find(|label| label.name() == key).map_or("", |label| label.value())
}

fn buckets(metric: &Metric) -> Buckets {
    let histogram = metric.get_histogram();
    let bounded = histogram.get_bucket().iter().map(|bucket| (bucket.upper_bound(), bucket.cumulative_count()));
    bounded.chain([(f64::INFINITY, histogram.get_sample_count())]).collect()
}

/// A count; of a value that is none, 0.
fn whole(value: f64) -> u64 {
    if value > 0.0 { value as u64 } else { 0 }
}
