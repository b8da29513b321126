//! Creates collectors and registers them. Metric names and labels are constants of the caller.

use prometheus::core::Collector;
use prometheus::{HistogramOpts, HistogramVec, IntCounterVec, IntGaugeVec, Opts, Registry};

#[cfg(target_os = "linux")]
pub(super) fn describe_process(registry: &Registry) {
    let process = prometheus::process_collector::ProcessCollector::for_self();
    if let Err(error) = registry.register(Box::new(process)) {
        tracing::warn!(%error, "process metrics unavailable");
    }
}

#[cfg(not(target_os = "linux"))]
pub(super) fn describe_process(_registry: &Registry) {}

pub(super) fn counters(registry: &Registry, name: &str, help: &str, labels: &[&str]) -> IntCounterVec {
    registered(registry, IntCounterVec::new(Opts::new(name, help), labels))
}

pub(super) fn gauges(registry: &Registry, name: &str, help: &str, labels: &[&str]) -> IntGaugeVec {
    registered(registry, IntGaugeVec::new(Opts::new(name, help), labels))
}

pub(super) fn histograms(registry: &Registry, name: &str, help: &str, label: &str, buckets: &[f64]) -> HistogramVec {
    registered(registry, HistogramVec::new(HistogramOpts::new(name, help).buckets(buckets.to_vec()), &[label]))
}

#[expect(
    clippy::expect_used,
    reason = "names, labels and buckets are constants of this file; any test shows a bad one"
)]
pub(super) fn registered<C: Collector + Clone + 'static>(registry: &Registry, made: prometheus::Result<C>) -> C {
    let collector = made.expect("a metric's name and labels are constants");
    registry.register(Box::new(collector.clone())).expect("each metric is registered once");
    collector
}
