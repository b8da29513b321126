//! Every metric of the relay, in one struct with its own registry; no other file knows a metric's name.
//!
//! Invariants: labels come from the configuration or from closed lists in the code, never from a request; the series of
//! an account or a target exist, at zero, from the moment its handles are created. Callers hold [`AccountMetrics`] or
//! [`TargetMetrics`], which are resolved once, so that a push looks up no account by name.

mod buckets;
mod reading;
mod registry;
mod replies;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use prometheus::{
    Gauge, GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts,
    Registry, TextEncoder,
};

use self::buckets::{COMMIT_BUCKETS, DELIVERY_BUCKETS, IDENTITY_BUCKETS, PUSH_BUCKETS};
pub use self::reading::{Buckets, Gauges, Reading, Subject};
use self::registry::{counters, describe_process, gauges, histograms, registered};

/// The labels of a gauge that is absent where it has no value.
pub const NO_LABEL: &[&str] = &[];

/// The outcomes of an attempt.
const OUTCOMES: [&str; 4] = ["delivered", "retry", "dead", "expired"];

/// All metrics.
pub struct Metrics {
    registry: Registry,
    pushes: IntCounterVec,
    push_duration: HistogramVec,
    from_elsewhere: IntCounterVec,
    duplicates: IntCounterVec,
    replies: IntCounterVec,
    reply_window_open: IntGaugeVec,
    reply_window_timeouts: IntCounterVec,
    held_replies: IntGaugeVec,
    /// The accounts that keep replies.
    keeping: Arc<Mutex<BTreeSet<Arc<str>>>>,
    deliveries: IntCounterVec,
    delivery_duration: HistogramVec,
    identity_latency: HistogramVec,
    pending: IntGaugeVec,
    oldest_pending: GaugeVec,
    dead: IntGaugeVec,
    up: IntGaugeVec,
    paused: IntGaugeVec,
    config_info: IntGaugeVec,
    tls_expiry: IntGaugeVec,
    spans: IntCounterVec,
    logins: IntCounterVec,
    tls_renew_by: IntGaugeVec,
    acme_orders: IntCounterVec,
    /// The targets of the last `set_backlogs`.
    backlogged: Mutex<BTreeSet<String>>,
    pub commit_duration: Histogram,
    pub ready: IntGauge,
    /// How long the oldest change has been waiting for its commit, in seconds.
    pub commit_wait: Gauge,
    pub queue_bytes: IntGauge,
    /// Absent where the store has no limit.
    pub queue_max_bytes: IntGaugeVec,
    pub queue_memory_bytes: IntGauge,
    pub queue_max_memory_bytes: IntGauge,
    /// Absent where the store has no disk of its own.
    pub disk_free_bytes: IntGaugeVec,
    /// Whether PostgreSQL answers; absent with the embedded engine.
    pub store_up: IntGaugeVec,
    /// Pushes that were answered from the spool; absent without one.
    pub spooled: IntCounterVec,
    /// Events in the spool.
    pub spool_events: IntGaugeVec,
    /// Whether commits wait for a synchronous standby; absent where none is wanted.
    pub store_standby: IntGaugeVec,
    /// The live replicas; absent with the embedded engine.
    pub replicas: IntGaugeVec,
    /// Those of them whose configuration differs from that of the most.
    pub replicas_differ: IntGaugeVec,
    /// PostgreSQL's, by table; absent with the embedded engine.
    pub store_dead_tuples: IntGaugeVec,
    /// PostgreSQL's; absent with the embedded engine.
    pub store_xmin_age: GaugeVec,
    pub unaccounted: IntGauge,
    /// Damaged stores that were moved aside and not salvaged yet.
    pub store_damaged: IntGauge,
    /// The last verified push's timestamp minus this machine's clock, in seconds.
    pub clock_skew: Gauge,
    /// 1 while there is evidence that this machine's clock is wrong.
    pub clock_suspect: IntGauge,
    pub log_lines_lost: IntCounter,
}

/// One account's metrics.
#[derive(Clone)]
pub struct AccountMetrics {
    name: Arc<str>,
    pushes: IntCounterVec,
    from_elsewhere: IntCounterVec,
    replies: IntCounterVec,
    reply_window_open: IntGaugeVec,
    pub reply_window_timeouts: IntCounter,
    held_replies: IntGaugeVec,
    keeping: Arc<Mutex<BTreeSet<Arc<str>>>>,
    /// Seconds from a push's arrival to its answer.
    pub push_duration: Histogram,
    pub duplicates: IntCounter,
}

/// One target's metrics.
#[derive(Clone)]
pub struct TargetMetrics {
    name: Arc<str>,
    deliveries: IntCounterVec,
    /// Seconds that an attempt takes.
    pub delivery_duration: Histogram,
    /// Seconds from the push to the 2xx; observed for identity targets only.
    pub identity_latency: Histogram,
    pub pending: IntGauge,
    /// The age in seconds of the oldest pending delivery; 0 without one.
    pub oldest_pending: Gauge,
    pub dead: IntGauge,
    /// 1, or 0 while the circuit breaker is open and only probes are sent.
    pub up: IntGauge,
    /// 1 while it is paused.
    pub paused: IntGauge,
}

/// One login's results.
#[derive(Clone, Debug)]
pub struct LoginMetrics {
    results: [(&'static str, IntCounter); 3],
}

/// The results of exporting spans.
#[derive(Clone, Debug)]
pub struct SpanMetrics {
    pub exported: IntCounter,
    /// The buffer was full: the collector is too slow or down.
    pub dropped: IntCounter,
    /// The collector rejected them, or was unreachable for too long.
    pub failed: IntCounter,
}

/// The backlog of a target, as the queue counts it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Backlog {
    pub pending: u64,
    /// The age of the oldest pending delivery.
    pub oldest: Duration,
    pub dead: u64,
}

impl Metrics {
    /// Registers all metrics, including those of the process.
    #[expect(clippy::too_many_lines, reason = "a list: one entry for each metric")]
    pub fn new() -> Arc<Self> {
        let registry = Registry::new();
        let at = &registry;
        let metrics = Self {
            pushes: counters(at, "wxrelay_pushes_total", "Requests to a server URL.", &["account", "kind", "result"]),
            push_duration: histograms(
                at,
                "wxrelay_push_duration_seconds",
                "Time to answer a push.",
                "account",
                PUSH_BUCKETS,
            ),
            from_elsewhere: counters(
                at,
                "wxrelay_outside_allow_from_total",
                "Requests from outside the account's allow_from.",
                &["account", "result"],
            ),
            duplicates: counters(
                at,
                "wxrelay_duplicates_total",
                "Pushes of an event that is already stored.",
                &["account"],
            ),
            replies: counters(at, "wxrelay_replies_total", "Passive replies.", &["account", "result"]),
            reply_window_open: gauges(
                at,
                "wxrelay_reply_window_open",
                "0 while the reply window is closed because too many pushes failed.",
                &["account"],
            ),
            reply_window_timeouts: counters(
                at,
                "wxrelay_reply_window_timeouts_total",
                "Pushes that time out on purpose, for a late reply.",
                &["account"],
            ),
            held_replies: gauges(
                at,
                "wxrelay_held_replies",
                "Replies that wait for the user's next message.",
                &["account"],
            ),
            keeping: Arc::default(),
            deliveries: counters(at, "wxrelay_deliveries_total", "Attempts by outcome.", &["target", "outcome"]),
            delivery_duration: histograms(
                at,
                "wxrelay_delivery_duration_seconds",
                "Duration of one attempt.",
                "target",
                DELIVERY_BUCKETS,
            ),
            identity_latency: histograms(
                at,
                "wxrelay_identity_latency_seconds",
                "Time from a push to the identity provider's 2xx, over all attempts.",
                "target",
                IDENTITY_BUCKETS,
            ),
            pending: gauges(at, "wxrelay_pending", "Pending deliveries.", &["target"]),
            oldest_pending: registered(
                at,
                GaugeVec::new(
                    Opts::new("wxrelay_oldest_pending_seconds", "Age of the oldest pending delivery."),
                    &["target"],
                ),
            ),
            dead: gauges(at, "wxrelay_dead", "Dead letters.", &["target"]),
            paused: gauges(at, "wxrelay_target_paused", "1 while the target is paused by an operator.", &["target"]),
            up: gauges(
                at,
                "wxrelay_target_up",
                "0 while the circuit breaker of the target sends only probes.",
                &["target"],
            ),
            config_info: gauges(at, "wxrelay_config_info", "The configuration in use.", &["sha256", "generation"]),
            tls_expiry: gauges(
                at,
                "wxrelay_tls_expiry_timestamp_seconds",
                "Time when a served certificate expires.",
                &["cert"],
            ),
            logins: counters(at, "wxrelay_logins_total", "Login callbacks by result.", &["login", "result"]),
            spans: counters(at, "wxrelay_spans_total", "Trace spans by result.", &["result"]),
            tls_renew_by: gauges(
                at,
                "wxrelay_tls_renew_by_timestamp_seconds",
                "Time by which a served certificate should be renewed.",
                &["cert"],
            ),
            acme_orders: counters(
                at,
                "wxrelay_acme_orders_total",
                "ACME orders, by the first domain.",
                &["domain", "result"],
            ),
            backlogged: Mutex::default(),
            commit_duration: registered(
                at,
                Histogram::with_opts(
                    HistogramOpts::new("wxrelay_commit_duration_seconds", "Time to commit a batch durably.")
                        .buckets(COMMIT_BUCKETS.to_vec()),
                ),
            ),
            ready: registered(at, IntGauge::new("wxrelay_ready", "1 while pushes are accepted, as on /readyz.")),
            commit_wait: registered(
                at,
                Gauge::new(
                    "wxrelay_commit_wait_seconds",
                    "How long the oldest change has been waiting for its commit.",
                ),
            ),
            queue_bytes: registered(at, IntGauge::new("wxrelay_queue_bytes", "Size of the store on disk.")),
            queue_max_bytes: gauges(
                at,
                "wxrelay_queue_max_bytes",
                "Limit of the size of the store: queue.max_size.",
                NO_LABEL,
            ),
            queue_memory_bytes: registered(
                at,
                IntGauge::new("wxrelay_queue_memory_bytes", "Size of the events that wait in memory for targets."),
            ),
            queue_max_memory_bytes: registered(
                at,
                IntGauge::new("wxrelay_queue_max_memory_bytes", "Limit of that size: queue.max_memory."),
            ),
            disk_free_bytes: gauges(at, "wxrelay_disk_free_bytes", "Free space on the disk of the store.", NO_LABEL),
            store_up: gauges(at, "wxrelay_store_up", "1 while PostgreSQL answers.", NO_LABEL),
            spooled: counters(
                at,
                "wxrelay_spooled_total",
                "Pushes that were answered from the spool while PostgreSQL was away.",
                NO_LABEL,
            ),
            spool_events: gauges(at, "wxrelay_spool_events", "Events that wait in the spool for PostgreSQL.", NO_LABEL),
            store_standby: gauges(
                at,
                "wxrelay_store_standby",
                "1 while PostgreSQL's commits wait for a synchronous standby.",
                NO_LABEL,
            ),
            replicas: gauges(at, "wxrelay_replicas", "Live replicas that share the store.", NO_LABEL),
            replicas_differ: gauges(
                at,
                "wxrelay_replicas_differ",
                "Live replicas whose configuration differs from that of the most.",
                NO_LABEL,
            ),
            store_dead_tuples: gauges(
                at,
                "wxrelay_store_dead_tuples",
                "Dead rows that PostgreSQL has not removed yet, by table.",
                &["table"],
            ),
            store_xmin_age: registered(
                at,
                GaugeVec::new(
                    Opts::new(
                        "wxrelay_store_xmin_age_seconds",
                        "How long the oldest snapshot in PostgreSQL has been held.",
                    ),
                    NO_LABEL,
                ),
            ),
            unaccounted: registered(
                at,
                IntGauge::new("wxrelay_unaccounted_deliveries", "Deliveries in no known state; more than 0 is a bug."),
            ),
            store_damaged: registered(
                at,
                IntGauge::new("wxrelay_store_damaged", "Damaged stores that were moved aside and not salvaged yet."),
            ),
            clock_skew: registered(
                at,
                Gauge::new("wxrelay_clock_skew_seconds", "A verified push's timestamp minus this machine's clock."),
            ),
            clock_suspect: registered(
                at,
                IntGauge::new(
                    "wxrelay_clock_suspect",
                    "1 while nothing is deleted or expired by age: the clock is suspect.",
                ),
            ),
            log_lines_lost: registered(
                at,
                IntCounter::new(
                    "wxrelay_log_lines_lost_total",
                    "Log lines dropped, because the reader of stderr is stopped or too slow.",
                ),
            ),
            registry,
        };
        describe_build(&metrics.registry);
        describe_process(&metrics.registry);
        Arc::new(metrics)
    }

    /// Counts a request to a path of no account. Unauthenticated clients can send many, so no handles are allocated.
    pub fn push_to_unknown_path(&self) {
        self.pushes.with_label_values(&["", "none", "unknown_path"]).inc();
    }

    /// The metrics of an account.
    pub fn account(&self, name: &str) -> AccountMetrics {
        AccountMetrics {
            name: name.into(),
            pushes: self.pushes.clone(),
            from_elsewhere: self.from_elsewhere.clone(),
            replies: self.replies.clone(),
            reply_window_open: self.reply_window_open.clone(),
            reply_window_timeouts: self.reply_window_timeouts.with_label_values(&[name]),
            held_replies: self.held_replies.clone(),
            keeping: Arc::clone(&self.keeping),
            push_duration: self.push_duration.with_label_values(&[name]),
            duplicates: self.duplicates.with_label_values(&[name]),
        }
    }

    /// The metrics of a target, for its lane: sets the target to up.
    pub fn target(&self, name: &str) -> TargetMetrics {
        let metrics = TargetMetrics {
            name: name.into(),
            deliveries: self.deliveries.clone(),
            delivery_duration: self.delivery_duration.with_label_values(&[name]),
            identity_latency: self.identity_latency.with_label_values(&[name]),
            pending: self.pending.with_label_values(&[name]),
            oldest_pending: self.oldest_pending.with_label_values(&[name]),
            dead: self.dead.with_label_values(&[name]),
            up: self.up.with_label_values(&[name]),
            paused: self.paused.with_label_values(&[name]),
        };
        metrics.up.set(1);
        // Prometheus' `increase` misses the first event of a counter that appears with it.
        for outcome in OUTCOMES {
            self.deliveries.with_label_values(&[name, outcome]);
        }
        metrics
    }

    /// The metrics of a login.
    pub fn login(&self, name: &str) -> LoginMetrics {
        let results = ["passed", "refused_by_user", "malformed"];
        LoginMetrics { results: results.map(|result| (result, self.logins.with_label_values(&[name, result]))) }
    }

    /// The metrics of spans, for the exporter; there is no series before the first call.
    pub fn spans(&self) -> SpanMetrics {
        let count = |result| self.spans.with_label_values(&[result]);
        SpanMetrics { exported: count("exported"), dropped: count("dropped"), failed: count("failed") }
    }

    /// Sets the backlog of each target; a target that is no longer listed gets 0.
    pub fn set_backlogs<'a>(&self, backlogs: impl IntoIterator<Item = (&'a str, Backlog)>) {
        let mut known = self.backlogged.lock();
        let mut gone = std::mem::take(&mut *known);
        for (target, backlog) in backlogs {
            self.set_backlog(target, backlog);
            gone.remove(target);
            known.insert(target.to_owned());
        }
        for target in gone {
            self.set_backlog(&target, Backlog::default());
        }
    }

    /// Sets the configuration in use; the previous one's series ends.
    pub fn config_info(&self, sha256: &str, generation: u64) {
        self.config_info.reset();
        self.config_info.with_label_values(&[sha256, &generation.to_string()]).set(1);
    }

    /// Sets when a served certificate expires and should be renewed, by its file, in seconds since the epoch; before
    /// the first call there is no series, so that no alert fires where a proxy terminates TLS.
    pub fn tls_expiry(&self, cert: &str, end: i64, renew_by: i64) {
        self.tls_expiry.with_label_values(&[cert]).set(end);
        self.tls_renew_by.with_label_values(&[cert]).set(renew_by);
    }

    /// The orders of a certificate: issued and failed.
    pub fn acme_orders(&self, domain: &str) -> [IntCounter; 2] {
        ["issued", "failed"].map(|result| self.acme_orders.with_label_values(&[domain, result]))
    }

    /// Everything in Prometheus' text format.
    pub fn render(&self) -> String {
        TextEncoder::new().encode_to_string(&self.registry.gather()).unwrap_or_else(|error| {
            tracing::error!(%error, "metrics cannot be rendered");
            String::new()
        })
    }

    fn set_backlog(&self, target: &str, backlog: Backlog) {
        let pending = i64::try_from(backlog.pending).unwrap_or(i64::MAX);
        self.pending.with_label_values(&[target]).set(pending);
        self.oldest_pending.with_label_values(&[target]).set(backlog.oldest.as_secs_f64());
        self.dead.with_label_values(&[target]).set(i64::try_from(backlog.dead).unwrap_or(i64::MAX));
    }
}

impl AccountMetrics {
    /// Counts a request by its kind (`text`, `scan`, `verify`, .. `none`) and its result.
    pub fn push(&self, kind: &'static str, result: &'static str) {
        self.pushes.with_label_values(&[&*self.name, kind, result]).inc();
    }

    /// Counts a request from outside `allow_from`, by the same result as [`AccountMetrics::push`].
    pub fn from_elsewhere(&self, result: &'static str) {
        self.from_elsewhere.with_label_values(&[&*self.name, result]).inc();
    }

    /// Counts a passive reply by its result.
    pub fn reply(&self, result: &'static str) {
        self.replies.with_label_values(&[&*self.name, result]).inc();
    }
}

impl LoginMetrics {
    /// Counts a callback by its result.
    pub fn count(&self, result: &'static str) {
        if let Some((_, counter)) = self.results.iter().find(|(known, _)| *known == result) {
            counter.inc();
        }
    }
}

impl TargetMetrics {
    /// Counts the end of an attempt, or of a delivery without one.
    pub fn delivery(&self, outcome: &'static str) {
        self.deliveries.with_label_values(&[&*self.name, outcome]).inc();
    }
}

fn describe_build(registry: &Registry) {
    let opts =
        Opts::new("wxrelay_build_info", "The version that runs.").const_label("version", env!("CARGO_PKG_VERSION"));
    registered(registry, IntGauge::with_opts(opts)).set(1);
}
