//! Traces to an OpenTelemetry collector: OTLP over HTTP, in protobuf.
//!
//! The push pipeline and the dispatcher put spans into a bounded queue; one task POSTs them in batches. A collector
//! that is down, is slow or refuses costs only spans, which are counted. The SDK's tracer and processor are not used:
//! our spans may end in another process than they began in, their ids are not random, and dropped spans must be
//! counted. The protocol types are the SDK's.

mod encode;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Uri};
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceResponse;
use prost::Message as _;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout_at};
use tokio_util::sync::CancellationToken;

use crate::backoff::Schedule;
use crate::deliver::{ClientError, PostClient, PostError};
use crate::metrics::{Metrics, SpanMetrics};
use crate::tail::{Span, Tail};
use crate::telemetry::LogThrottle;

/// The most spans of one request.
const BATCH: usize = 512;
/// How long the first span of a batch waits for more.
const MAX_WAIT: Duration = Duration::from_secs(1);
const TIMEOUT: Duration = Duration::from_secs(10);
/// The waits between the tries of one batch; then it is dropped.
const RETRY_WAITS: [Duration; 4] =
    [Duration::from_secs(1), Duration::from_secs(2), Duration::from_secs(4), Duration::from_secs(8)];
/// The longest `Retry-After` that is respected: spans that do not fit into the queue meanwhile are dropped.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(30);
/// The statuses after which a batch is retried (OTLP specification, "Retryable Response Codes").
const RETRYABLE: [u16; 4] = [429, 502, 503, 504];

/// `[telemetry]` of the configuration.
#[derive(Clone, PartialEq, Eq)]
pub struct Settings {
    /// The full URL of the collector; `None`: no export. May hold a secret.
    pub url: Option<Uri>,
    /// Extra request headers.
    pub headers: HeaderMap,
    /// `service.name` of every span.
    pub service_name: Arc<str>,
}

impl std::fmt::Debug for Settings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let host = self.url.as_ref().and_then(Uri::host);
        let Self { headers, service_name, .. } = self;
        f.debug_struct("Settings")
            .field("host", &host)
            .field("headers", headers)
            .field("service_name", service_name)
            .finish()
    }
}

/// A running export of spans.
pub struct Exporter {
    task: JoinHandle<()>,
    stop: CancellationToken,
}

impl Exporter {
    /// Checks that the export can start.
    ///
    /// # Errors
    /// As for [`Exporter::start`].
    pub fn check(settings: &Settings) -> Result<(), ClientError> {
        let Some(url) = settings.url.clone() else { return Ok(()) };
        PostClient::new(url, settings.headers.clone(), TIMEOUT).map(drop)
    }

    /// Starts the export, if the settings have a collector, and returns the tail that it gets its spans from.
    ///
    /// # Errors
    /// If TLS to the collector cannot be set up.
    pub fn start(settings: &Settings, metrics: &Metrics) -> Result<(Option<Self>, Tail), ClientError> {
        let Some(url) = settings.url.clone() else { return Ok((None, Tail::default())) };
        let post = PostClient::new(url, settings.headers.clone(), TIMEOUT)?;
        let (metrics, stop) = (metrics.spans(), CancellationToken::new());
        let (tail, spans) = Tail::traced(metrics.clone());
        let service_name = settings.service_name.clone();
        let sender =
            SpanSender { post, spans, metrics, stop: stop.clone(), service_name, failures: LogThrottle::default() };
        Ok((Some(Self { task: tokio::spawn(sender.run()), stop }), tail))
    }

    /// Sends the pending spans, without waiting for a collector that is down, by `deadline` at the latest.
    pub async fn stop(mut self, deadline: Instant) {
        self.stop.cancel();
        if timeout_at(deadline, &mut self.task).await.is_err() {
            self.task.abort();
            tracing::warn!("last spans dropped, the collector was too slow");
        }
    }
}

/// The state of the export's task.
struct SpanSender {
    post: PostClient,
    spans: mpsc::Receiver<Span>,
    metrics: SpanMetrics,
    stop: CancellationToken,
    service_name: Arc<str>,
    failures: LogThrottle,
}

/// Why an export failed.
#[derive(Debug, thiserror::Error)]
enum ExportError {
    #[error(transparent)]
    Unreached(#[from] PostError),
    #[error("answered {status}")]
    Status { status: u16, retry_after: Option<Duration> },
}

impl SpanSender {
    async fn run(mut self) {
        while let Some(batch) = self.next_batch().await {
            let count = batch.len() as u64;
            let body = Bytes::from(encode::request(batch, &self.service_name).encode_to_vec());
            let refused = self.export(body, count).await.unwrap_or(count).min(count);
            self.metrics.failed.inc_by(refused);
            self.metrics.exported.inc_by(count - refused);
        }
    }

    /// The next batch of spans; `None` once the export has stopped and all spans are sent.
    async fn next_batch(&mut self) -> Option<Vec<Span>> {
        let mut batch = Vec::new();
        tokio::select! {
            biased;
            _ = self.spans.recv_many(&mut batch, BATCH) => {}
            () = self.stop.cancelled() => self.spans.close(),
        }
        let max_wait = sleep(MAX_WAIT);
        tokio::pin!(max_wait);
        while batch.len() < BATCH {
            let remaining = BATCH - batch.len();
            tokio::select! {
                biased;
                taken = self.spans.recv_many(&mut batch, remaining) => if taken == 0 { break },
                () = self.stop.cancelled(), if !self.spans.is_closed() => self.spans.close(),
                () = &mut max_wait => break,
            }
        }
        (!batch.is_empty()).then_some(batch)
    }

    /// Sends a batch, with retries. Returns how many of its spans were rejected; `None` if all were.
    async fn export(&self, body: Bytes, count: u64) -> Option<u64> {
        let schedule = Schedule::ending(RETRY_WAITS.to_vec());
        for attempt in 1.. {
            let refusal = match self.send(body.clone()).await {
                Ok(refused) => {
                    self.log_rejected(refused, count);
                    return Some(refused);
                }
                Err(refusal) => refusal,
            };
            if let Some(suppressed) = self.failures.allow() {
                tracing::warn!(error = %refusal, held_back = suppressed, "span export to telemetry.otlp failed");
            }
            let asked = match refusal {
                ExportError::Unreached(_) => None,
                ExportError::Status { status, retry_after } if RETRYABLE.contains(&status) => retry_after,
                ExportError::Status { .. } => break,
            };
            let jitter = getrandom::u32().map_or(0.5, |random| f64::from(random) / f64::from(u32::MAX));
            let Some(wait) = schedule.wait(attempt, jitter, asked) else { break };
            if self.stop.is_cancelled() {
                break;
            }
            tokio::select! {
                () = sleep(wait.min(MAX_RETRY_AFTER)) => {}
                () = self.stop.cancelled() => {}
            }
        }
        None
    }

    /// One try. Returns how many spans the collector rejected in a request that it accepted (OTLP's partial success).
    async fn send(&self, body: Bytes) -> Result<u64, ExportError> {
        let response = self.post.send("application/x-protobuf", body).await?;
        if !(200..300).contains(&response.status) {
            return Err(ExportError::Status { status: response.status, retry_after: response.retry_after });
        }
        let partial =
            ExportTraceServiceResponse::decode(&*response.body).ok().and_then(|response| response.partial_success);
        Ok(partial.map_or(0, |partial| u64::try_from(partial.rejected_spans).unwrap_or(0)))
    }

    fn log_rejected(&self, refused: u64, count: u64) {
        if refused > 0
            && let Some(suppressed) = self.failures.allow()
        {
            tracing::warn!(
                refused,
                of = count,
                held_back = suppressed,
                "spans rejected by the collector of telemetry.otlp"
            );
        }
    }
}
