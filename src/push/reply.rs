//! The passive reply: the first of the asked targets that gives one, or the route's fixed one.
//!
//! All are asked at the same time. Invariant: a target that replied in time is told whether its reply is used; one that
//! replies later finds nobody.

use std::pin::pin;
use std::sync::Arc;

use tokio::sync::oneshot;
use tokio::sync::oneshot::error::TryRecvError;
use tokio::time::Instant;

use crate::clock::UnixMillis;
use crate::event::Event;
use crate::metrics::AccountMetrics;
use crate::queue::{AwaitedReply, ReplyChoice, ReplyOffer};
use crate::route::ReplyRule;
use crate::wechat::Reply;

/// How one push gets its reply.
pub(super) struct Replier {
    asked: Vec<Asked>,
    fixed: Option<String>,
}

/// A target that was asked for a reply.
struct Asked {
    target: Arc<str>,
    offer: oneshot::Receiver<ReplyOffer>,
}

/// A push's clear reply.
pub(super) struct Chosen {
    pub(super) reply: Option<String>,
    /// Whether a target gave it.
    pub(super) given: bool,
    /// How it is counted; `None` where nobody was asked, and where the illegal reply was counted.
    pub(super) result: Option<&'static str>,
}

/// Why a target gave no reply; a later one tells more about a push that gets none.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Miss {
    None,
    Failed,
    Illegal,
    Timeout,
}

impl Replier {
    /// The replier that `rule` names, and what the queue hands to the targets it asks. Their replies are of use until
    /// `deadline`.
    pub(super) fn new(
        rule: Option<&ReplyRule>,
        event: &Event,
        deadline: Instant,
    ) -> (Self, Vec<(Arc<str>, AwaitedReply)>) {
        let Some(rule) = rule else { return (Self { asked: Vec::new(), fixed: None }, Vec::new()) };
        let render = |body: &_| Reply::new(Clone::clone(body)).render(&event.message, event.received_at.seconds());
        let until = UnixMillis::now().after(deadline.saturating_duration_since(Instant::now()));
        let ask = |(place, target): (usize, &Arc<str>)| {
            let (sender, offer) = oneshot::channel();
            let awaited = AwaitedReply { until, first: place == 0, sender };
            (Asked { target: target.clone(), offer }, (target.clone(), awaited))
        };
        let (asked, awaited) = rule.asked.iter().enumerate().map(ask).unzip();
        (Self { asked, fixed: rule.fixed.as_ref().map(render) }, awaited)
    }

    /// The reply that is stored with the event.
    pub(super) fn fixed(&self) -> Option<String> {
        self.fixed.clone()
    }

    /// The reply of the first target that gives one; when it is `over`, of the first that has given one.
    pub(super) async fn reply(self, event: &Event, metrics: &AccountMetrics, over: impl Future<Output = ()>) -> Chosen {
        let (mut over, mut is_over) = (pin!(over), false);
        let (mut given, mut miss) = (None, None);
        for Asked { target, mut offer } in self.asked {
            let offered = if is_over || given.is_some() {
                offer
                    .try_recv()
                    .map_err(|error| if error == TryRecvError::Closed { Miss::Failed } else { Miss::Timeout })
            } else {
                tokio::select! {
                    biased;
                    offered = &mut offer => offered.map_err(|_| Miss::Failed),
                    () = &mut over => {
                        is_over = true;
                        Err(Miss::Timeout)
                    }
                }
            };
            let missed = match offered {
                Ok(ReplyOffer { reply: Ok(Some(clear)), choice }) => {
                    // Not heard if the attempt was cut off meanwhile.
                    choice.send(if given.is_none() { ReplyChoice::Used } else { ReplyChoice::Outdone }).ok();
                    given.get_or_insert(clear);
                    continue;
                }
                Ok(ReplyOffer { reply: Ok(None), .. }) => Miss::None,
                Ok(ReplyOffer { reply: Err(error), .. }) => {
                    tracing::warn!(event = %event.id, %target, %error, "the target's reply breaks WeChat's rules; it is not used");
                    metrics.reply("illegal");
                    Miss::Illegal
                }
                Err(missed) => missed,
            };
            miss = miss.max(Some(missed));
        }
        let given = given.map(|clear| Chosen { reply: Some(clear), given: true, result: Some("replied") });
        given.unwrap_or_else(|| Chosen::without_target(self.fixed, miss))
    }
}

impl Chosen {
    fn without_target(fixed: Option<String>, miss: Option<Miss>) -> Self {
        let result = match (&fixed, miss) {
            (Some(_), _) => Some("fixed"),
            (None, Some(Miss::None)) => Some("none"),
            (None, Some(Miss::Failed)) => Some("failed"),
            (None, Some(Miss::Timeout)) => Some("timeout"),
            (None, Some(Miss::Illegal) | None) => None,
        };
        Self { reply: fixed, given: false, result }
    }
}

#[cfg(test)]
#[path = "reply_tests.rs"]
mod tests;
