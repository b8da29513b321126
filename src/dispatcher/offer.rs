//! A target's reply, offered to the push that waits for it, and what the attempt's record says about it.
//!
//! The record's `answer` holds the clear reply, or the beginning of an unusable one; its `error` says why it was not
//! used. A reply in reserve may be used only after its delivery is settled: then the record is annotated, so that no
//! target's delivery stays open because another target is slow.

use std::error::Error;

use tokio::sync::oneshot;

use crate::clock::UnixMillis;
use crate::deliver::{self, AttemptReport};
use crate::event::Event;
use crate::queue::{AttemptNote, AwaitedReply, Queue, ReplyChoice, ReplyOffer};

const RESERVE: &str = "reply in reserve: another target's comes first";
const OUTDONE: &str = "reply not used: another target's was";
const LATE: &str = "reply too late";

/// Offers the reply in `report`, and records there whether it was used. `Some` where that is known only later.
pub(super) async fn offer(
    awaited: AwaitedReply,
    event: &Event,
    report: &mut AttemptReport,
) -> Option<oneshot::Receiver<ReplyChoice>> {
    // Without a usable answer, dropping `awaited` closes its channel, which says that there will be no reply.
    let reply = report.reply.take()?;
    let reply = reply.map(|reply| reply.map(|reply| reply.render(&event.message, event.received_at.seconds())));
    match &reply {
        Ok(Some(clear)) => report.answer = Some(deliver::excerpt(clear.as_bytes())),
        Ok(None) => {}
        Err(error) => report.error = Some(format!("reply breaks WeChat's rules: {}", causes(error))),
    }
    let AwaitedReply { until, first, sender } = awaited;
    let is_reply = matches!(reply, Ok(Some(_)));
    let (choice, chosen) = oneshot::channel();
    let waited_for = sender.send(ReplyOffer { reply, choice }).is_ok();
    if !is_reply {
        return None;
    }
    let late = if UnixMillis::now() < until { OUTDONE } else { LATE };
    report.error = match (waited_for, first) {
        (false, _) => Some(late.to_owned()),
        (true, true) => remark(chosen.await.ok()),
        (true, false) => {
            report.error = Some(RESERVE.to_owned());
            return Some(chosen);
        }
    };
    None
}

/// Records whether a reply in reserve was used. If that fails, the record continues to say that it is in reserve.
pub(super) async fn annotate(queue: Queue, mut note: AttemptNote, choice: oneshot::Receiver<ReplyChoice>) {
    note.error = remark(choice.await.ok());
    let (event, target) = (note.event, note.target.clone());
    if let Err(error) = queue.annotate(note).await {
        tracing::warn!(%event, %target, %error, "reply outcome not recorded");
    }
}

fn remark(choice: Option<ReplyChoice>) -> Option<String> {
    match choice {
        Some(ReplyChoice::Used) => None,
        Some(ReplyChoice::Outdone) => Some(OUTDONE.to_owned()),
        None => Some(LATE.to_owned()),
    }
}

/// With the causes, the innermost last: they say which of its credentials an encrypted reply does not match.
fn causes(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text.push_str(": ");
        text.push_str(&inner.to_string());
        cause = inner.source();
    }
    text
}
