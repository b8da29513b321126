//! The passive reply: the first of the asked targets that gives one, or the route's fixed one.
//!
//! All targets are asked concurrently. Invariant: a target that replied in time learns whether its reply is used; the
//! offer of a target that replies later finds a closed channel.

use std::pin::pin;
use std::sync::Arc;

use tokio::sync::oneshot;
use tokio::sync::oneshot::error::TryRecvError;
use tokio::time::Instant;

use super::inflight::Follower;
use super::{Pipeline, PushError};
use crate::clock::UnixMillis;
use crate::event::{Event, EventId};
use crate::metrics::AccountMetrics;
use crate::queue::{AwaitedReply, GivenReply, OfferedReply, PushTries, ReplyChoice, ReplyOffer, ReplyUse};
use crate::route::ReplyRule;
use crate::telemetry::LogThrottle;
use crate::wechat::{LongText, NextReply, Reply, ReplyBody, ReplyContent};

/// How one push gets its reply.
pub(super) struct Replier {
    asked: Vec<AskedTarget>,
    fixed: Option<NextReply>,
    /// Where the asked targets hear of WeChat's tries; `None` where no target is asked.
    tries: Option<Arc<PushTries>>,
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
    /// What was done with a text that is too long, as it is counted.
    pub(super) long: Option<&'static str>,
    /// For the ledger of replies, where the account keeps them.
    pub(super) given: Option<GivenReply>,
    /// Without a reply: whether one may still come.
    pub(super) can_come: bool,
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
        let Some(rule) = rule else { return (Self { asked: Vec::new(), fixed: None, tries: None }, Vec::new()) };
        let render = |body: &_| render_fixed(body, event);
        let until = UnixMillis::now().after(deadline.saturating_duration_since(Instant::now()));
        let tries = (!rule.asked.is_empty()).then(Arc::<PushTries>::default);
        let ask = |(index, target): (usize, &Arc<str>)| {
            let (sender, offer) = oneshot::channel();
            let tries = tries.clone().unwrap_or_default();
            let awaited = AwaitedReply { until, first: index == 0, tries, sender };
            (AskedTarget { target: target.clone(), offer }, (target.clone(), awaited))
        };
        let (asked, awaited) = rule.asked.iter().enumerate().map(ask).unzip();
        (Self { asked, fixed: rule.fixed.as_ref().map(render), tries }, awaited)
    }

    /// Where the asked targets hear of WeChat's tries.
    pub(super) fn tries(&self) -> Option<&Arc<PushTries>> {
        self.tries.as_ref()
    }

    /// Whether a target is asked.
    pub(super) fn asks(&self) -> bool {
        !self.asked.is_empty()
    }

    /// The reply that is stored with the event.
    pub(super) fn fixed(&self) -> Option<String> {
        self.fixed.as_ref().map(|fixed| fixed.clear.clone())
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
        let (mut given, mut weightiest, mut can_come) = (None, None, false);
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
                Ok(ReplyOffer { reply: Ok(Some(offered)), choice, .. }) => {
                    // It fails if the attempt was cut off meanwhile.
                    choice.send(if given.is_none() { ReplyChoice::Used } else { ReplyChoice::Outdone }).ok();
                    given.get_or_insert(offered);
                    continue;
                }
                Ok(ReplyOffer { reply: Ok(None), failed: None, .. }) => NoReply::Declined,
                Ok(ReplyOffer { reply: Ok(None), failed: Some(again), .. }) => {
                    can_come |= again;
                    NoReply::Failed
                }
                Ok(ReplyOffer { reply: Err(error), .. }) => {
                    if let Some(suppressed) = throttle.allow() {
                        tracing::warn!(%event, %target, %error, held_back = suppressed, "illegal reply ignored");
                    }
                    metrics.reply("illegal");
                    NoReply::Illegal
                }
                // Not offered yet, or not asked: its delivery is pending.
                Err(missed) => {
                    can_come = true;
                    missed
                }
            };
            weightiest = weightiest.max(Some(missed));
        }
        let given = given.map(ChosenReply::of_target);
        given.unwrap_or_else(|| ChosenReply { can_come, ..ChosenReply::without_target(self.fixed, weightiest) })
    }
}

/// A reply of the configuration to this event.
pub(super) fn render_fixed(body: &ReplyBody, event: &Event) -> NextReply {
    let seconds = event.received_at.seconds();
    let content = ReplyContent::of(Reply::new(body.clone()), &event.message, seconds);
    content.next(&LongText::Cut, 0, &event.message, seconds)
}

impl Pipeline {
    /// The reply that another process gets from a target, if it comes in time. `success` in its place would be WeChat's
    /// last word about the push: so it is stored before, and where that fails, WeChat tries again.
    pub(super) async fn reply_elsewhere(
        &self,
        event: EventId,
        until: UnixMillis,
        push: &Follower,
        deadline: Instant,
    ) -> Result<Option<String>, PushError> {
        let reply = tokio::select! {
            reply = self.queue.reply_of(event, until) => reply,
            _ = tokio::time::timeout_at(deadline, push.answer_now.cancelled()) => self.queue.decide_no_reply(event).await,
        };
        reply.map_err(|error| {
            tracing::warn!(%event, %error, "reply of another replica not read; WeChat will retry");
            PushError::Unavailable
        })
    }
}

impl ChosenReply {
    fn of_target(offered: OfferedReply) -> Self {
        let OfferedReply { clear, is_cut, end, given } = offered;
        Self {
            reply: Some(clear),
            by_target: true,
            result: Some("replied"),
            long: if is_cut { Some("cut") } else { end.map(|_| "split") },
            given: given.map(|given| GivenReply { used: ReplyUse::Sent(end), ..given }),
            can_come: false,
        }
    }

    fn without_target(fixed: Option<NextReply>, reason: Option<NoReply>) -> Self {
        let result = match (&fixed, reason) {
            (Some(_), _) => Some("fixed"),
            (None, Some(NoReply::Declined)) => Some("none"),
            (None, Some(NoReply::Failed)) => Some("failed"),
            (None, Some(NoReply::Timeout)) => Some("timeout"),
            (None, Some(NoReply::Illegal) | None) => None,
        };
        let long = fixed.as_ref().filter(|fixed| fixed.is_cut).map(|_| "cut");
        let reply = fixed.map(|fixed| fixed.clear);
        Self { reply, by_target: false, result, long, given: None, can_come: false }
    }
}

#[cfg(test)]
#[path = "reply_tests.rs"]
mod tests;
