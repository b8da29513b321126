//! Traces to an OpenTelemetry collector: OTLP over HTTP, in protobuf.
//!
//! The line and the dispatcher put spans into a bounded queue; one task takes them out by batches and POSTs them. A
//! collector that is down, slow or refuses costs spans, which are counted, and nothing else. Deliberately not the SDK's
//! tracer and processor: our spans end in other processes than they began in, their numbers are not random, and what is
//! lost has to be counted. The SDK's protocol types are what goes over the wire.

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
const LINGER: Duration = Duration::from_secs(1);
/// The longest that one request may take.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Between the tries to send one batch; then it is given up.
const WAITS: [Duration; 4] =
    [Duration::from_secs(1), Duration::from_secs(2), Duration::from_secs(4), Duration::from_secs(8)];
/// The longest wait that a collector can ask for: spans that pile up meanwhile are lost.
const LONGEST_WAIT: Duration = Duration::from_secs(30);
/// What a collector answers that may take the same spans later (OTLP specification, "Retryable Response Codes").
const BUSY: [u16; 4] = [429, 502, 503, 504];

/// `[telemetry]` of the configuration.
#[derive(Clone, PartialEq, Eq)]
pub struct Settings {
    /// The full URL that spans are sent to; `None` = they are not. May hold a secret.
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

/// What sends spans.
pub struct Exporter {
    task: JoinHandle<()>,
    stop: CancellationToken,
}

impl Exporter {
    /// Begins to export, if the settings say where to; and the news that it takes its spans from.
    ///
    /// # Errors
    /// If there can be no connection to such a collector.
    pub fn begin(settings: &Settings, metrics: &Metrics) -> Result<(Option<Self>, Tail), ClientError> {
        let Some(url) = settings.url.clone() else { return Ok((None, Tail::default())) };
        let post = PostClient::new(url, settings.headers.clone(), TIMEOUT)?;
        let (metrics, stop) = (metrics.spans(), CancellationToken::new());
        let (tail, spans) = Tail::traced(metrics.clone());
        let service_name = settings.service_name.clone();
        let sender = Sender { post, spans, metrics, stop: stop.clone(), service_name, trouble: LogThrottle::default() };
        Ok((Some(Self { task: tokio::spawn(sender.run()), stop }), tail))
    }

    /// Sends what is there, without waiting for a collector that is away, and ends by `deadline` at the latest.
    pub async fn end(mut self, deadline: Instant) {
        self.stop.cancel();
        if timeout_at(deadline, &mut self.task).await.is_err() {
            self.task.abort();
            tracing::warn!("the last spans could not be sent in time");
        }
    }
}

/// The task's own.
struct Sender {
    post: PostClient,
    spans: mpsc::Receiver<Span>,
    metrics: SpanMetrics,
    stop: CancellationToken,
    service_name: Arc<str>,
    /// How often the log tells of a collector that takes nothing.
    trouble: LogThrottle,
}

/// Why a batch was not taken.
#[derive(Debug, thiserror::Error)]
enum Refusal {
    #[error(transparent)]
    Unreached(#[from] PostError),
    #[error("answered {status}")]
    Status { status: u16, retry_after: Option<Duration> },
}

impl Sender {
    async fn run(mut self) {
        while let Some(batch) = self.batch().await {
            let count = batch.len() as u64;
            let body = Bytes::from(encode::request(batch, &self.service_name).encode_to_vec());
            let refused = self.export(body, count).await.unwrap_or(count).min(count);
            self.metrics.failed.inc_by(refused);
            self.metrics.exported.inc_by(count - refused);
        }
    }

    /// The next spans; `None` once it has to stop and there are no more.
    async fn batch(&mut self) -> Option<Vec<Span>> {
        let mut batch = Vec::new();
        tokio::select! {
            biased;
            _ = self.spans.recv_many(&mut batch, BATCH) => {}
            () = self.stop.cancelled() => self.spans.close(),
        }
        let linger = sleep(LINGER);
        tokio::pin!(linger);
        while batch.len() < BATCH {
            let room = BATCH - batch.len();
            tokio::select! {
                biased;
                taken = self.spans.recv_many(&mut batch, room) => if taken == 0 { break },
                () = self.stop.cancelled(), if !self.spans.is_closed() => self.spans.close(),
                () = &mut linger => break,
            }
        }
        (!batch.is_empty()).then_some(batch)
    }

    /// Tries to send a batch for as long as that may help. How many of its spans were refused; `None` for all.
    async fn export(&self, body: Bytes, count: u64) -> Option<u64> {
        let schedule = Schedule::ending(WAITS.to_vec());
        for attempt in 1.. {
            let refusal = match self.send(body.clone()).await {
                Ok(refused) => {
                    self.tell_of_refused(refused, count);
                    return Some(refused);
                }
                Err(refusal) => refusal,
            };
            if let Some(suppressed) = self.trouble.allow() {
                tracing::warn!(error = %refusal, held_back = suppressed, "span export failed");
            }
            let asked = match refusal {
                Refusal::Unreached(_) => None,
                Refusal::Status { status, retry_after } if BUSY.contains(&status) => retry_after,
                Refusal::Status { .. } => break,
            };
            let jitter = getrandom::u32().map_or(0.5, |random| f64::from(random) / f64::from(u32::MAX));
            let Some(wait) = schedule.wait(attempt, jitter, asked) else { break };
            if self.stop.is_cancelled() {
                break;
            }
            tokio::select! {
                () = sleep(wait.min(LONGEST_WAIT)) => {}
                () = self.stop.cancelled() => {}
            }
        }
        None
    }

    /// One try. How many spans the collector did not want though it took the request (OTLP's partial success).
    async fn send(&self, body: Bytes) -> Result<u64, Refusal> {
        let answer = self.post.send("application/x-protobuf", body).await?;
        if !(200..300).contains(&answer.status) {
            return Err(Refusal::Status { status: answer.status, retry_after: answer.retry_after });
        }
        let partial = ExportTraceServiceResponse::decode(&*answer.body).ok().and_then(|answer| answer.partial_success);
        Ok(partial.map_or(0, |partial| u64::try_from(partial.rejected_spans).unwrap_or(0)))
    }

    fn tell_of_refused(&self, refused: u64, count: u64) {
        if refused > 0
            && let Some(suppressed) = self.trouble.allow()
        {
            tracing::warn!(refused, of = count, held_back = suppressed, "collector rejected spans");
        }
    }
}
