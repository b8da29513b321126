//! A target's reply, offered to the push that waits for it or held for the user, and what the attempt's record says
//! about it.
//!
//! The record's `answer` holds the clear reply, or the beginning of an unusable one; its `error` says why it was not
//! used. A reply in reserve may be used only after its delivery is settled: then the record is annotated, so that no
//! target's delivery stays open because another target is slow.

use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;

use crate::clock::UnixMillis;
use crate::deliver::{self, AttemptReport, ReplyNote};
use crate::event::Event;
use crate::queue::{
    AttemptNote, AwaitedReply, GivenReply, OfferedReply, Queue, ReplyChoice, ReplyOffer, ReplyUse, SettledReply,
};
use crate::wechat::{LongText, NextReply, Reply, ReplyContent};

const RESERVE: &str = "reply in reserve: another target's comes first";
const OUTDONE: &str = "reply not used: another target's was";
const LATE: &str = "reply too late";
const CUT: &str = "reply cut to 64 KiB";

/// The attempt that a reply belongs to.
#[derive(Clone, Copy)]
pub(super) struct OfferedAttempt<'a> {
    pub(super) event: &'a Event,
    pub(super) target: &'a Arc<str>,
    pub(super) number: u32,
    pub(super) at: UnixMillis,
    /// Whether no attempt follows it.
    pub(super) is_last: bool,
    /// How long a reply is held that no push waits for; `None`: not at all.
    pub(super) keep: Option<Duration>,
    pub(super) long_text: &'a LongText,
}

/// What became of an offer.
#[derive(Default)]
pub(super) struct Offered {
    /// Whether the reply is used, where that is known only later.
    pub(super) choice: Option<oneshot::Receiver<ReplyChoice>>,
    /// What the ledger of replies is told.
    pub(super) reply: Option<SettledReply>,
}

/// Offers the reply in `report` to the push that waits for it, if one does, and records there whether it was used. One
/// that comes too late is held, where the account keeps replies.
pub(super) async fn offer(
    awaited: Option<AwaitedReply>,
    attempt: OfferedAttempt<'_>,
    report: &mut AttemptReport,
) -> Offered {
    let ended = attempt.keep.filter(|_| attempt.is_last).map(|_| SettledReply::None);
    let Some(reply) = report.reply.take() else {
        if let Some(AwaitedReply { sender, .. }) = awaited {
            let (choice, _) = oneshot::channel();
            // It is no longer waited for if that fails.
            drop(sender.send(ReplyOffer { reply: Ok(None), failed: Some(!attempt.is_last), choice }));
        }
        return Offered { choice: None, reply: ended };
    };
    let mut was_cut = false;
    let reply = reply.map(|reply| {
        reply.map(|reply| {
            let (offered, is_limited) = attempt.offered(reply);
            was_cut = is_limited;
            offered
        })
    });
    match &reply {
        Ok(Some(offered)) => report.answer = Some(deliver::excerpt(offered.clear.as_bytes())),
        Ok(None) => report.error = report.reply_note.as_ref().map(ReplyNote::remark),
        Err(error) => report.error = Some(format!("reply breaks WeChat's rules: {}", causes(error))),
    }
    let given = reply.as_ref().ok().and_then(|offered| offered.as_ref()?.given.clone());
    let end = reply.as_ref().ok().and_then(|offered| offered.as_ref()?.end);
    let is_reply = matches!(reply, Ok(Some(_)));
    let (choice, chosen) = oneshot::channel();
    let offer = ReplyOffer { reply, failed: None, choice };
    let (waited_for, first, until) = match awaited {
        Some(AwaitedReply { until, first, sender, .. }) => (sender.send(offer).is_ok(), first, Some(until)),
        None => (false, true, None),
    };
    if !is_reply {
        return Offered { choice: None, reply: ended };
    }
    let (used, choice) = match (waited_for, first) {
        // The push has ended, or uses another target's: the ledger of replies shows which.
        (false, _) => (ReplyUse::Late, None),
        (true, true) => (used(chosen.await.ok(), end), None),
        (true, false) => (ReplyUse::Late, Some(chosen)),
    };
    let is_outdone = used == ReplyUse::Outdone || !waited_for && until.is_some_and(|until| UnixMillis::now() < until);
    report.error = match used {
        _ if choice.is_some() => Some(RESERVE.to_owned()),
        _ if given.is_some() || matches!(used, ReplyUse::Sent(_)) => {
            was_cut.then(|| CUT.to_owned()).or_else(|| report.correction())
        }
        _ => Some(if is_outdone { OUTDONE } else { LATE }.to_owned()),
    };
    Offered { choice, reply: given.map(|given| SettledReply::Given(Box::new(GivenReply { used, ..given }))) }
}

impl OfferedAttempt<'_> {
    /// The reply as WeChat may get it, and whether it was cut to what is held at most.
    fn offered(&self, reply: Reply) -> (OfferedReply, bool) {
        let Self { event, target, number, at, keep, long_text, .. } = self;
        let seconds = event.received_at.seconds();
        let mut content = ReplyContent::of(reply, &event.message, seconds);
        let is_limited = content.limit();
        let NextReply { clear, end, is_cut } = content.next(long_text, 0, &event.message, seconds);
        let given = keep.map(|keep| GivenReply {
            event: event.id,
            target: Arc::clone(target),
            attempt: (*number, *at),
            account: Arc::clone(&event.account),
            user: event.message.from_user().to_owned(),
            content: content.encode(),
            keep,
            used: ReplyUse::Late,
        });
        (OfferedReply { clear, is_cut: is_cut || is_limited, end, given }, is_limited)
    }
}

/// What the push did with a reply that ends at `end`; without a choice, it did not wait any more.
fn used(choice: Option<ReplyChoice>, end: Option<usize>) -> ReplyUse {
    match choice {
        Some(ReplyChoice::Used) => ReplyUse::Sent(end),
        Some(ReplyChoice::Outdone) => ReplyUse::Outdone,
        None => ReplyUse::Late,
    }
}

/// Records whether a reply in reserve was used. If that fails, the record continues to say that it is in reserve.
pub(super) async fn annotate(queue: Queue, mut note: AttemptNote, choice: oneshot::Receiver<ReplyChoice>) {
    note.error = remark(choice.await.ok()).or(note.error);
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
