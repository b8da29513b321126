//! The tries of one attempt: a target with `tries = "each"` gets an event as often as WeChat itself would send it.
//!
//! Bots that count on WeChat's retries do not answer before their reply is ready. They let the request time out, answer
//! an error, or `success` when nobody listens any more, and give the reply to a later request with the same MsgId. So a
//! try that brings no reply means "not yet", until one does or the target's timeout is reached. Tries may overlap, and
//! share the attempt's task: they end with it.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use http::StatusCode;
use tokio::time::{Instant, sleep_until, timeout_at};
use tokio_util::sync::CancellationToken;

use super::Policy;
use crate::clock::{UnixMillis, UnixNanos};
use crate::deliver::{AttemptReport, AttemptRequest, Outcome, ReplyNote};
use crate::event::Event;
use crate::queue::AwaitedReply;
use crate::trace::SpanId;
use crate::wechat::ReplyError;

/// From one try to the next, as WeChat makes them.
const RHYTHM: Duration = Duration::from_secs(5);
/// How much later than that WeChat's own try may arrive. Then the relay makes one in its place: WeChat's may have reached
/// another replica.
const SLACK: Duration = Duration::from_secs(1);

/// What the tries of an attempt came to.
pub(super) struct Tried {
    /// Of the try that decides: the one with the reply, or the last that says most.
    pub(super) report: AttemptReport,
    /// What the record says of them; `None` for a single one.
    pub(super) note: Option<String>,
    /// Whether all failed, although the target was reached: this says nothing about whether it is up.
    pub(super) not_yet: bool,
}

/// What the answer to one try means for the attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum TryVerdict {
    /// Here is the reply.
    Reply,
    /// No further try brings one; those in progress may.
    Final,
    NotYet,
}

type PendingReport<'a> = Pin<Box<dyn Future<Output = AttemptReport> + Send + 'a>>;

/// The attempt, while its tries are made.
pub(super) struct AttemptTries<'a> {
    policy: &'a Policy,
    event: &'a Event,
    attempt: u32,
    /// The push that waits for the reply, if one does.
    awaited: Option<&'a AwaitedReply>,
    /// An empty answer sooner than this is final.
    not_yet_after: Duration,
    started: Instant,
    /// When the last try began.
    last: Instant,
    /// How many were made.
    made: u32,
    in_progress: Vec<(u32, PendingReport<'a>)>,
    /// Whether another may be made.
    may_continue: bool,
    /// Whether the target was reached.
    reached: bool,
    decisive: Option<(u32, AttemptReport)>,
}

impl<'a> AttemptTries<'a> {
    pub(super) fn new(
        policy: &'a Policy,
        event: &'a Event,
        attempt: u32,
        awaited: Option<&'a AwaitedReply>,
        not_yet_after: Duration,
    ) -> Self {
        let started = Instant::now();
        Self {
            policy,
            event,
            attempt,
            awaited,
            not_yet_after,
            started,
            last: started,
            made: 0,
            in_progress: Vec::new(),
            may_continue: true,
            reached: false,
            decisive: None,
        }
    }

    /// Makes the tries. Once `stop` is cancelled only those in progress are waited for.
    pub(super) async fn run(mut self, stop: &CancellationToken) -> Tried {
        let (awaited, ends) = (self.awaited, self.ends());
        self.start();
        while self.may_continue || !self.in_progress.is_empty() {
            let (made, last) = (self.made, self.last);
            tokio::select! {
                biased;
                (number, report) = poll_fn(|context| poll_ended(&mut self.in_progress, context)) => {
                    if self.judge(number, report) == TryVerdict::Reply {
                        break;
                    }
                }
                () = sleep_until(ends) => break,
                () = stop.cancelled(), if self.may_continue => self.may_continue = false,
                () = next_due(awaited, made, last), if self.may_continue => self.start(),
            }
        }
        self.finish()
    }

    /// When no more tries are made or waited for.
    fn ends(&self) -> Instant {
        self.started + self.policy.upstream.target().timeout
    }

    fn start(&mut self) {
        (self.made, self.last) = (self.made + 1, Instant::now());
        let Self { policy, event, attempt, awaited, made: number, .. } = *self;
        let awaited_until = awaited.map(|awaited| awaited.until);
        let report = async move {
            // The first is within the rate already.
            if number > 1
                && let Some(rate) = &policy.rate
            {
                rate.until_ready().await;
            }
            let now = UnixMillis::now();
            let (try_number, reply_until) = (Some(number), awaited_until.filter(|until| now < *until));
            let request = AttemptRequest { event, attempt, try_number, reply_until, asked: true, now };
            policy.upstream.deliver(request).await
        };
        self.in_progress.push((number, Box::pin(report)));
    }

    fn judge(&mut self, number: u32, report: AttemptReport) -> TryVerdict {
        let verdict = verdict(&report, self.not_yet_after);
        self.reached |= report.status.is_some() || report.no_answer == Some("timeout");
        self.may_continue &= verdict == TryVerdict::NotYet;
        if self.decisive.as_ref().is_none_or(|(_, decisive)| weight(&report) >= weight(decisive)) {
            self.decisive = Some((number, report));
        }
        verdict
    }

    fn finish(self) -> Tried {
        let Self { policy, event, started, made, in_progress, reached, decisive, .. } = self;
        let timeout = policy.upstream.target().timeout;
        let unanswered = || (made, AttemptReport::timed_out(timeout, started, SpanId::random(event.id)));
        let (number, report) = decisive.unwrap_or_else(unanswered);
        let report = AttemptReport { duration: started.elapsed(), ended: UnixNanos::now(), ..report };
        let note = match report.reply {
            Some(Ok(Some(_))) => format!("reply at try {number} of {made}"),
            _ => format!("no reply in {made} tries"),
        };
        let not_yet = matches!(report.outcome, Outcome::Retry { .. }) && (reached || !in_progress.is_empty());
        Tried { report, note: (made > 1).then_some(note), not_yet }
    }
}

/// Waits until the next try is due: at WeChat's own one, or, once WeChat makes no further, at its rhythm.
async fn next_due(awaited: Option<&AwaitedReply>, made: u32, last: Instant) {
    let due = last + RHYTHM;
    if let Some(awaited) = awaited {
        match timeout_at(due + SLACK, awaited.tries.more_than(made)).await {
            Ok(true) | Err(_) => return,
            Ok(false) => {}
        }
    }
    sleep_until(due).await;
}

/// The first of the tries in progress that has ended.
fn poll_ended(
    in_progress: &mut Vec<(u32, PendingReport<'_>)>,
    context: &mut Context<'_>,
) -> Poll<(u32, AttemptReport)> {
    let ended =
        in_progress.iter_mut().enumerate().find_map(|(index, (number, report))| match report.as_mut().poll(context) {
            Poll::Ready(report) => Some((index, *number, report)),
            Poll::Pending => None,
        });
    let Some((index, number, report)) = ended else { return Poll::Pending };
    drop(in_progress.swap_remove(index));
    Poll::Ready((number, report))
}

fn verdict(report: &AttemptReport, not_yet_after: Duration) -> TryVerdict {
    match (report.outcome, &report.reply) {
        (Outcome::Delivered, Some(Ok(Some(_)))) => TryVerdict::Reply,
        (Outcome::Delivered, Some(Err(ReplyError::BrokenOff))) => TryVerdict::NotYet,
        (Outcome::Delivered, Some(Err(_))) | (Outcome::Reject, _) => TryVerdict::Final,
        (Outcome::Delivered, Some(Ok(None)) | None)
            if report.duration < not_yet_after && report.reply_note != Some(ReplyNote::RuledOut) =>
        {
            TryVerdict::Final
        }
        (Outcome::Delivered, Some(Ok(None)) | None) => TryVerdict::NotYet,
        // Another status than these is the target's verdict on the request, which the next try repeats.
        (Outcome::Retry { .. }, _) => match report.status {
            Some(StatusCode::TOO_MANY_REQUESTS) | None => TryVerdict::NotYet,
            // A success reports an error in its text.
            Some(status) if status.is_server_error() || status.is_success() => TryVerdict::NotYet,
            Some(_) => TryVerdict::Final,
        },
    }
}

/// How much a report says about the attempt: a reply most, a failure least.
fn weight(report: &AttemptReport) -> u8 {
    match (report.outcome, &report.reply) {
        (Outcome::Delivered, Some(Ok(Some(_)))) => 4,
        (Outcome::Delivered, Some(Err(_))) => 3,
        (Outcome::Delivered, Some(Ok(None)) | None) => 2,
        (Outcome::Reject, _) => 1,
        (Outcome::Retry { .. }, _) => 0,
    }
}

#[cfg(test)]
#[path = "tries_tests.rs"]
mod tests;
