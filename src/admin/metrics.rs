//! The metrics, for Prometheus to scrape.

use axum::extract::Request;
use axum::http::header;
use axum::response::{IntoResponse, Response};

use super::{Context, Error};
use crate::metrics::NO_LABEL;
use crate::telemetry;

pub(super) async fn scrape(context: Context, _: Request) -> Result<Response, Error> {
    // Refreshes the queue's gauges. If the store does not answer, the cache logs that, and the other metrics are served
    // all the same: they are needed most then.
    let is_ready = context.obstacle().await.is_none();
    context.state.metrics.ready.set(is_ready.into());
    context.state.metrics.commit_wait.set(context.state.queue.oldest_wait().as_secs_f64());
    if let Some(spool) = context.state.queue.spool() {
        let metrics = &context.state.metrics;
        let known = metrics.spooled.with_label_values(NO_LABEL);
        known.inc_by(spool.spooled.saturating_sub(known.get()));
        metrics.spool_events.with_label_values(NO_LABEL).set(i64::try_from(spool.events).unwrap_or(i64::MAX));
    }
    context.stats.get().await.ok();
    context.state.metrics.log_lines_lost.inc_by(telemetry::take_dropped());
    Ok(([(header::CONTENT_TYPE, prometheus::TEXT_FORMAT)], context.state.metrics.render()).into_response())
}
