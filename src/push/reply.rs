//! The passive reply: fixed by the route, or a target's answer that comes in time.

use std::sync::Arc;

use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::clock::UnixMillis;
use crate::event::Event;
use crate::metrics::AccountMetrics;
use crate::queue::{Awaited, Queue};
use crate::route::ReplyRule;
use crate::wechat::{Reply, ReplyError};

type Received = oneshot::Receiver<Result<Option<Reply>, ReplyError>>;

/// How one push gets its reply.
pub(super) enum Replier {
    /// No route asks for one.
    Nobody,
    /// It is known already: the clear XML.
    Fixed(String),
    /// A target is asked.
    Target(Received),
}

impl Replier {
    /// The replier that `rule` names, and what the queue hands to the target it asks.
    pub(super) fn new(
        rule: Option<&ReplyRule>,
        event: &Event,
        deadline: Instant,
    ) -> (Self, Option<(Arc<str>, Awaited)>) {
        match rule {
            None => (Self::Nobody, None),
            Some(ReplyRule::Fixed(body)) => {
                let reply = Reply::new(body.clone());
                (Self::Fixed(reply.render(&event.message, event.received_at.seconds())), None)
            }
            Some(ReplyRule::Target(name)) => {
                let (sender, received) = oneshot::channel();
                let until = UnixMillis::now().after(deadline.saturating_duration_since(Instant::now()));
                (Self::Target(received), Some((name.clone(), Awaited { until, sender })))
            }
        }
    }

    /// The reply that is stored with the event.
    pub(super) fn fixed(&self) -> Option<String> {
        match self {
            Self::Fixed(clear) => Some(clear.clone()),
            Self::Nobody | Self::Target(_) => None,
        }
    }

    /// The clear reply, if there is one by `deadline`. A target's is stored before WeChat sees it, so that a retry, even
    /// after a restart, is answered with the same.
    pub(super) async fn reply(
        self,
        queue: &Queue,
        event: &Event,
        metrics: &AccountMetrics,
        deadline: Instant,
    ) -> Option<Arc<str>> {
        let (result, clear) = match self {
            Self::Nobody => return None,
            Self::Fixed(clear) => ("fixed", Some(clear)),
            Self::Target(received) => match tokio::time::timeout_at(deadline, received).await {
                Err(_) => ("timeout", None),
                Ok(Err(_)) => ("failed", None),
                Ok(Ok(Ok(None))) => ("none", None),
                Ok(Ok(Ok(Some(reply)))) => (
                    "replied",
                    store(queue, event, reply.render(&event.message, event.received_at.seconds()), deadline).await,
                ),
                Ok(Ok(Err(error))) => {
                    tracing::warn!(event = %event.id, %error, "the target's reply breaks WeChat's rules; answered `success`");
                    ("illegal", None)
                }
            },
        };
        metrics.reply(result);
        clear.map(Into::into)
    }
}

/// A reply that can't be stored goes out all the same: the event is safe, only a retry would miss the reply.
async fn store(queue: &Queue, event: &Event, clear: String, deadline: Instant) -> Option<String> {
    let stored = tokio::time::timeout_at(deadline, queue.record_reply(event.id, clear.clone())).await;
    if !matches!(stored, Ok(Ok(()))) {
        tracing::warn!(event = %event.id, "the reply could not be stored in time");
    }
    Some(clear)
}
