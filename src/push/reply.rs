//! The passive reply: the first of the asked targets that gives one, or the route's fixed one.
//!
//! All targets are asked concurrently. Invariant: a target that replied in time learns whether its reply is used; the
//! offer of a target that replies later finds a closed channel.

use std::pin::pin;
use std::sync::Arc;

use tokio::sync::oneshot;
use tokio::sync::oneshot::error::TryRecvError;
use tokio::time::Instant;

use crate::clock::UnixMillis;
use crate::event::{Event, EventId};
use crate::metrics::AccountMetrics;
use crate::queue::{AwaitedReply, ReplyChoice, ReplyOffer};
use crate::route::ReplyRule;
use crate::telemetry::LogThrottle;
use crate::wechat::Reply;

/// How one push gets its reply.
pub(super) struct Replier {
    asked: Vec<AskedTarget>,
    fixed: Option<String>,
}

struct AskedTarget {
    target: Arc<str>,
    /// Pairs with [`AwaitedReply::sender`].
    offer: oneshot::Receiver<ReplyOffer>,
}

/// A push's clear reply.
pub(super) struct ChosenReply {
    pub(super) reply: Option<String>,
    /// Whether a target gave it.
    pub(super) by_target: bool,
    /// How it is counted; `None` where no target was asked, and where the illegal reply was counted.
    pub(super) result: Option<&'static str>,
}

/// Why a target gave no reply, in ascending order of weight for a push that gets none.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum NoReply {
    Declined,
    Failed,
    Illegal,
    Timeout,
}

impl Replier {
    /// The replier for `rule`, and what the queue passes to the targets that it asks. Their replies are useful until
    /// `deadline`.
    pub(super) fn new(
        rule: Option<&ReplyRule>,
        event: &Event,
        deadline: Instant,
    ) -> (Self, Vec<(Arc<str>, AwaitedReply)>) {
        let Some(rule) = rule else { return (Self { asked: Vec::new(), fixed: None }, Vec::new()) };
        let render = |body: &_| Reply::new(Clone::clone(body)).render(&event.message, event.received_at.seconds());
        let until = UnixMillis::now().after(deadline.saturating_duration_since(Instant::now()));
        let ask = |(index, target): (usize, &Arc<str>)| {
            let (sender, offer) = oneshot::channel();
            let awaited = AwaitedReply { until, first: index == 0, sender };
            (AskedTarget { target: target.clone(), offer }, (target.clone(), awaited))
        };
        let (asked, awaited) = rule.asked.iter().enumerate().map(ask).unzip();
        (Self { asked, fixed: rule.fixed.as_ref().map(render) }, awaited)
    }

    /// Whether a target is asked.
    pub(super) fn asks(&self) -> bool {
        !self.asked.is_empty()
    }

    /// The reply that is stored with the event.
    pub(super) fn fixed(&self) -> Option<String> {
        self.fixed.clone()
    }

    /// The reply of the first target in the list that gives one; once `over` completes, the first of those given so
    /// far.
    pub(super) async fn reply(
        self,
        event: EventId,
        metrics: &AccountMetrics,
        throttle: &LogThrottle,
        over: impl Future<Output = ()>,
    ) -> ChosenReply {
        let (mut over, mut is_over) = (pin!(over), false);
        let (mut given, mut weightiest) = (None, None);
        for AskedTarget { target, mut offer } in self.asked {
            let offered = if is_over || given.is_some() {
                offer
                    .try_recv()
                    .map_err(|error| if error == TryRecvError::Closed { NoReply::Failed } else { NoReply::Timeout })
            } else {
                tokio::select! {
                    biased;
                    offered = &mut offer => offered.map_err(|_| NoReply::Failed),
                    () = &mut over => {
                        is_over = true;
                        Err(NoReply::Timeout)
                    }
                }
            };
            let missed = match offered {
                Ok(ReplyOffer { reply: Ok(Some(clear)), choice }) => {
                    // It fails if the attempt was cut off meanwhile.
                    choice.send(if given.is_none() { ReplyChoice::Used } else { ReplyChoice::Outdone }).ok();
                    given.get_or_insert(clear);
                    continue;
                }
                Ok(ReplyOffer { reply: Ok(None), .. }) => NoReply::Declined,
                Ok(ReplyOffer { reply: Err(error), .. }) => {
                    if let Some(suppressed) = throttle.allow() {
                        tracing::warn!(%event, %target, %error, held_back = suppressed, "illegal reply ignored");
                    }
                    metrics.reply("illegal");
                    NoReply::Illegal
                }
                Err(missed) => missed,
            };
            weightiest = weightiest.max(Some(missed));
        }
        let given = given.map(|clear| ChosenReply { reply: Some(clear), by_target: true, result: Some("replied") });
        given.unwrap_or_else(|| ChosenReply::without_target(self.fixed, weightiest))
    }
}

impl ChosenReply {
    fn without_target(fixed: Option<String>, reason: Option<NoReply>) -> Self {
        let result = match (&fixed, reason) {
            (Some(_), _) => Some("fixed"),
            (None, Some(NoReply::Declined)) => Some("none"),
            (None, Some(NoReply::Failed)) => Some("failed"),
            (None, Some(NoReply::Timeout)) => Some("timeout"),
            (None, Some(NoReply::Illegal) | None) => None,
        };
        Self { reply: fixed, by_target: false, result }
    }
}

#[cfg(test)]
#[path = "reply_tests.rs"]
mod tests;
