//! One attempt: deliver, decide, log. It is settled separately, so that the target's next attempt need not wait for our
//! disk.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::offer::{Offered, OfferedAttempt};
use super::tries::{AttemptTries, Tried};
use super::{Policy, offer};
use crate::clock::{UnixMillis, UnixNanos};
use crate::deliver::{AttemptReport, AttemptRequest, Outcome, Role, TargetHealth, Tries};
use crate::event::{Event, EventId};
use crate::metrics::{Metrics, TargetMetrics};
use crate::queue::{
    AttemptNote, AttemptRecord, AwaitedReply, DeliveryState, Disposition, Lease, Queue, ReplyChoice, ReplyState,
    ReplyUse, SettledReply, Settlement,
};
use crate::tail::{self, Activity, Span, Tail, TracedKind};
use crate::telemetry::{self, LogThrottle};
use crate::trace::{SpanId, Trace};

/// The pause between two tries to settle while the store fails (a full disk).
const SETTLE_PAUSE: Duration = Duration::from_millis(500);

/// What the attempts of one lane share.
pub(super) struct AttemptContext {
    pub(super) queue: Queue,
    pub(super) metrics: TargetMetrics,
    pub(super) health: Arc<TargetHealth>,
    all_metrics: Arc<Metrics>,
    tail: Tail,
    /// The tasks that annotate the records of settled attempts.
    pub(super) annotations: TaskTracker,
    /// Limits log lines about attempts that the store does not take: each is settled again and again.
    unsettled_throttle: LogThrottle,
    stop: CancellationToken,
}

/// How an attempt ended, for the breaker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum AttemptEnd {
    /// The target took the event, or refused it for good.
    Answered,
    /// No answer, or one that asks for a retry.
    Failed(EventId),
    /// The target was reached, and gave no reply in any of its tries: it may be up.
    NotYet,
    /// No attempt was made: the delivery had expired or was cancelled, or the lane stops.
    NotMade,
}

/// An attempt that has ended, or was not made, and is not settled yet.
pub(super) struct UnsettledAttempt {
    settlement: Settlement,
    /// For a reply in reserve: the record to annotate, and the channel that says whether the reply was used.
    reserve: Option<(AttemptNote, oneshot::Receiver<ReplyChoice>)>,
    /// Held until the attempt is settled, so that it is made only once.
    lease: Lease,
}

impl AttemptContext {
    pub(super) fn new(
        queue: Queue,
        (metrics, health): (TargetMetrics, Arc<TargetHealth>),
        all_metrics: Arc<Metrics>,
        tail: Tail,
        stop: CancellationToken,
    ) -> Self {
        let (annotations, unsettled_throttle) = (TaskTracker::new(), LogThrottle::default());
        Self { queue, metrics, health, all_metrics, tail, annotations, unsettled_throttle, stop }
    }

    /// Makes the attempt that `lease` allows; the caller settles it. A `probe` of a target that is down does not count.
    pub(super) async fn attempt(
        self: Arc<Self>,
        policy: Arc<Policy>,
        mut lease: Lease,
        probe: bool,
    ) -> (AttemptEnd, Option<UnsettledAttempt>) {
        if let Some(rate) = &policy.rate {
            tokio::select! {
                biased;
                () = rate.until_ready() => {}
                // No attempt is in progress yet: the lease is released.
                () = self.stop.cancelled() => return (AttemptEnd::NotMade, None),
            }
        }
        if lease.is_revoked() {
            return (AttemptEnd::NotMade, None);
        }
        let now = UnixMillis::now();
        let reply = lease.reply.take();
        let Lease { event, target, attempt, failures, .. } = &lease;
        let settlement = |disposition, decided_at, attempt, reply| Settlement {
            event: event.id,
            target: target.clone(),
            disposition,
            decided_at,
            attempt,
            reply,
        };
        let keep = policy.replies.keep(event, target);
        // While the clock is not believed, nothing expires by it.
        let clock = self.queue.clock();
        let expire_after = policy.expire_after.filter(|_| !clock.holds_age());
        let expiry = expire_after.map(|span| event.received_at.after(span));
        if expire_after.is_some_and(|span| clock.age(event.received_at) >= span) {
            self.log_attempt(&policy, event, *attempt, "expired", None);
            let ended = keep.map(|_| SettledReply::None);
            let settlement = settlement(Disposition::End(DeliveryState::Expired), now, None, ended);
            return (AttemptEnd::NotMade, Some(UnsettledAttempt { settlement, reserve: None, lease }));
        }
        #[cfg(test)]
        super::simulated::set_probe(probe);
        let asked = reply.is_some() || keep.is_some();
        let tried = self.deliver(&policy, event, *attempt, asked, reply.as_ref(), now).await;
        let Tried { mut report, note, not_yet } = tried;
        let decided_at = UnixMillis::now();
        let disposition = decide(&policy, &report, *failures, probe, expiry, decided_at);
        let Offered { choice, reply } = if asked {
            let is_last = matches!(disposition, Disposition::End(_));
            let (number, long_text) = (*attempt, &policy.replies.long_text(&event.account));
            let attempt = OfferedAttempt { event, target, number, at: now, is_last, keep, long_text };
            self.offer_reply(reply, attempt, &mut report).await
        } else {
            Offered::default()
        };
        if let Some(note) = note {
            report.error = Some(report.error.map_or(note.clone(), |error| format!("{error}; {note}")));
        }
        self.record_metrics(&policy, event, *attempt, disposition, &report);
        let end = match report.outcome {
            Outcome::Delivered | Outcome::Reject => AttemptEnd::Answered,
            Outcome::Retry { .. } if not_yet && !probe => AttemptEnd::NotYet,
            Outcome::Retry { .. } => AttemptEnd::Failed(event.id),
        };
        let error = report.correction();
        let note = AttemptNote { event: event.id, target: target.clone(), attempt: *attempt, error };
        let record = AttemptRecord {
            number: *attempt,
            at: now,
            duration: report.duration,
            status: report.status.map(|status| status.as_u16()),
            error: report.error,
            answer: report.answer,
        };
        let reserve = choice.map(|choice| (note, choice));
        let settlement = settlement(disposition, decided_at, Some(record), reply);
        (end, Some(UnsettledAttempt { settlement, reserve, lease }))
    }

    /// Sends the event: once, or in several tries where the target is to get each and is asked for a reply.
    async fn deliver(
        &self,
        policy: &Policy,
        event: &Event,
        attempt: u32,
        asked: bool,
        awaited: Option<&AwaitedReply>,
        now: UnixMillis,
    ) -> Tried {
        if let Tries::Each { not_yet_after } = policy.upstream.target().tries
            && asked
        {
            let tries = AttemptTries::new(policy, event, attempt, awaited, not_yet_after);
            // Boxed: it is large, and few attempts have it.
            return Box::pin(tries.run(&self.stop)).await;
        }
        let reply_until = awaited.map(|awaited| awaited.until);
        let request = AttemptRequest { event, attempt, try_number: None, reply_until, asked, now };
        Tried { report: policy.upstream.deliver(request).await, note: None, not_yet: false }
    }

    async fn offer_reply(
        &self,
        awaited: Option<AwaitedReply>,
        attempt: OfferedAttempt<'_>,
        report: &mut AttemptReport,
    ) -> Offered {
        if report.is_misaddressed() {
            self.all_metrics.count_reply(&attempt.event.account, "misaddressed");
        }
        offer::offer(awaited, attempt, report).await
    }

    /// Settles, however long the store fails: until then the lease is held, and the delivery stays pending on disk.
    pub(super) async fn settle(self: Arc<Self>, UnsettledAttempt { settlement, reserve, lease }: UnsettledAttempt) {
        loop {
            let error = match self.queue.settle(settlement.clone()).await {
                Ok(became) => {
                    self.count_reply(&settlement, became);
                    break;
                }
                Err(error) => error,
            };
            if let Some(suppressed) = self.unsettled_throttle.allow() {
                let (event, target, remedy) = (settlement.event, &settlement.target, error.remedy());
                tracing::warn!(%event, %target, %error, remedy, held_back = suppressed, "attempt not settled; retrying");
            }
            tokio::select! {
                biased;
                () = tokio::time::sleep(SETTLE_PAUSE) => {}
                () = self.stop.cancelled() => break,
            }
        }
        drop(lease);
        if let Some((note, choice)) = reserve {
            self.annotations.spawn(offer::annotate(self.queue.clone(), note, choice));
        }
    }

    /// Counts a reply that is stored, but for one that was sent: the push counts it.
    fn count_reply(&self, settlement: &Settlement, became: Option<ReplyState>) {
        let (Some(SettledReply::Given(given)), Some(state)) = (&settlement.reply, became) else { return };
        if state != ReplyState::Sent && !matches!(given.used, ReplyUse::Sent(_)) {
            self.all_metrics.count_reply(&given.account, state.name());
        }
    }

    fn record_metrics(
        &self,
        policy: &Policy,
        event: &Event,
        attempt: u32,
        disposition: Disposition,
        report: &AttemptReport,
    ) {
        let outcome = match disposition {
            Disposition::Retry(_) | Disposition::Postpone(_) => "retry",
            Disposition::End(state) => state.name(),
        };
        self.metrics.delivery(outcome);
        self.metrics.delivery_duration.observe(report.duration.as_secs_f64());
        let status = report.status.map(|status| status.as_u16());
        match disposition {
            Disposition::End(DeliveryState::Delivered) => self.health.note_success(UnixMillis::now()),
            _ => self.health.note_failure(UnixMillis::now(), status, report.error.as_deref().unwrap_or_default()),
        }
        if disposition == Disposition::End(DeliveryState::Delivered) && policy.upstream.target().role == Role::Identity
        {
            let latency = UnixMillis::now().since(event.received_at);
            self.metrics.identity_latency.observe(latency.as_secs_f64());
        }
        self.log_attempt(policy, event, attempt, outcome, Some(report));
    }

    fn log_attempt(
        &self,
        policy: &Policy,
        event: &Event,
        attempt: u32,
        outcome: &'static str,
        report: Option<&AttemptReport>,
    ) {
        let (status, took, error) = match report {
            Some(report) => (report.status, report.duration, report.error.as_deref()),
            None => {
                self.metrics.delivery(outcome);
                (None, Duration::ZERO, None)
            }
        };
        let status = status.map(|status| status.as_u16());
        let duration_ms = took.as_secs_f64() * 1e3;
        let kind = event.message.kind();
        let openid = telemetry::openid(policy.openids, event.message.from_user());
        let stamp = event.message.create_time().and_then(|stamp| i64::try_from(stamp).ok());
        tracing::info!(
            event = %event.id,
            account = %event.account,
            kind,
            target = %policy.upstream.target().name,
            attempt,
            outcome,
            status,
            duration_ms,
            error,
            openid = %openid,
            stamp,
            "attempt"
        );
        let activity = || {
            Activity::Attempt(tail::AttemptActivity {
                at: UnixMillis::now(),
                event: event.id,
                account: event.account.clone(),
                kind,
                target: policy.upstream.target().name.clone(),
                attempt,
                outcome,
                status,
                duration_ms,
                error: error.map(ToOwned::to_owned),
                openid: openid.clone().into_owned(),
                stamp,
            })
        };
        self.tail.publish(activity);
        self.tail.trace(
            || Trace::of(event).attempt(report.map_or_else(|| SpanId::random(event.id), |report| report.span)),
            |context| {
                let ended = report.map_or_else(UnixNanos::now, |report| report.ended);
                let failure = (outcome != DeliveryState::Delivered.name()).then(|| failure(report));
                let kind = if report.is_some() { TracedKind::Attempt } else { TracedKind::Expiry };
                let started = ended.before(took);
                Span { kind, context, event: event.id, started, ended, status, failure, activity: activity() }
            },
        );
    }
}

/// Why an attempt failed, or was not made, in one word.
fn failure(report: Option<&AttemptReport>) -> Cow<'static, str> {
    match report {
        None => Cow::Borrowed(DeliveryState::Expired.name()),
        Some(report) => match (report.status, report.no_answer) {
            (Some(status), _) => Cow::Owned(status.as_u16().to_string()),
            (None, word) => Cow::Borrowed(word.unwrap_or("unknown")),
        },
    }
}

/// 2xx delivers, 410 makes a dead letter, all else is retried until the schedule or the expiry ends it. A failed probe
/// leaves the delivery as it was.
fn decide(
    policy: &Policy,
    report: &AttemptReport,
    failures: u32,
    probe: bool,
    expiry: Option<UnixMillis>,
    now: UnixMillis,
) -> Disposition {
    let after = match report.outcome {
        Outcome::Delivered => return Disposition::End(DeliveryState::Delivered),
        Outcome::Reject => return Disposition::End(DeliveryState::Dead),
        Outcome::Retry { after } => after,
    };
    if probe {
        return Disposition::Postpone(now);
    }
    let Some(wait) = policy.retry.wait(failures + 1, jitter(), after) else {
        return Disposition::End(DeliveryState::Dead);
    };
    let due = now.after(wait);
    match expiry {
        Some(expiry) if due >= expiry => Disposition::End(DeliveryState::Expired),
        _ => Disposition::Retry(due),
    }
}

/// A random number from 0 to 1.
fn jitter() -> f64 {
    #[cfg(test)]
    if let Some(jitter) = super::simulated::jitter() {
        return jitter;
    }
    getrandom::u32().map_or(0.5, |random| f64::from(random) / f64::from(u32::MAX))
}
