//! The report of an attempt that was answered: what the answer means, and the reply in it.

use std::sync::atomic::Ordering;

use http::{HeaderMap, Response};
use hyper::body::Incoming;
use tokio::time::Instant;

use super::answer_rules::{self, content_encoding, says_something};
use super::client::{AnswerBody, BodyEnd, read};
use super::{
    ANSWER_CAP, AttemptReport, AttemptRequest, Format, Outcome, REPLY_CAP, ReplyNote, Upstream, excerpt, format,
    outcome,
};
use crate::clock::UnixNanos;
use crate::event::Event;
use crate::trace::SpanId;
use crate::wechat::{Reply, ReplyBody, ReplyError};

/// What an attempt's record says of a reply that no route asks for.
const UNASKED: &str = "reply not used: no route of the account names this target in `reply`";
/// The same of one that came when nobody waited for it: for this event no route asks, or it is not the first attempt.
const UNAWAITED: &str = "reply not used: no reply was awaited";

type ReadReply = (Result<Option<Reply>, ReplyError>, Option<ReplyNote>);

impl Upstream {
    /// A 2xx status settles the delivery, unless the target's rules make its text an error; else the body matters only
    /// to a reply.
    pub(super) async fn report(
        &self,
        response: Response<Incoming>,
        order: &AttemptRequest<'_>,
        started: Instant,
        span: SpanId,
    ) -> AttemptReport {
        let (head, body) = response.into_parts();
        let (status, headers) = (head.status, head.headers);
        let cap = if order.asked { REPLY_CAP } else { ANSWER_CAP };
        let body = read(body, cap, started + self.target.timeout).await;
        let mut outcome = outcome::classify(status, &headers, order.now);
        let mut error = (outcome != Outcome::Delivered).then(|| format!("answered {}", status.as_u16()));
        if error.is_none()
            && let Some(why) = self.target.answers.failure(&body, &headers)
        {
            outcome = Outcome::Retry { after: outcome::retry_after(&headers, order.now) };
            error = Some(format!("answered {} {why}", status.as_u16()));
        }
        let mut answer = says_something(&body.bytes).then(|| excerpt(&body.bytes));
        let (mut reply, mut reply_note) = (None, None);
        if error.is_none() && (order.asked || answer.is_some()) {
            let (read, note) = self.reply(&body, &headers, order.event);
            // What may be another user's is not kept with this user's event, where `events forget` would not find it.
            answer = answer.filter(|_| !matches!(read, Err(ReplyError::OtherUser)));
            match read {
                read if order.asked => (reply, reply_note) = (Some(read), note),
                Ok(Some(_)) => error = Some(self.note_unawaited_reply(order.event).to_owned()),
                Ok(None) | Err(_) => {}
            }
        }
        AttemptReport {
            outcome,
            status: Some(status),
            error,
            no_answer: None,
            answer,
            duration: started.elapsed(),
            ended: UnixNanos::now(),
            span,
            reply,
            reply_note,
        }
    }

    /// The reply in an answer, addressed to the sender of the event.
    pub(super) fn reply(&self, body: &AnswerBody, headers: &HeaderMap, event: &Event) -> ReadReply {
        let parsed = self.parse_reply(body, headers, event);
        if self.target.answers.no_reply_if.is_some() && !matches!(parsed, Ok(None)) {
            let text = match &parsed {
                Ok(Some(Reply { body: ReplyBody::Text { content }, .. })) => content.as_str().into(),
                _ => answer_rules::text(&body.bytes),
            };
            if self.target.answers.rules_out(&text) {
                return (Ok(None), Some(ReplyNote::RuledOut));
            }
        }
        // In JSON the names are left to the relay.
        let may_omit = body.bytes.trim_ascii_start().starts_with(b"{");
        match parsed {
            Ok(Some(mut reply)) => match reply.address(&event.message, &event.app_id, may_omit) {
                Ok(wrong) => (Ok(Some(reply)), wrong.map(ReplyNote::Corrected)),
                Err(error) => (Err(error), None),
            },
            other => (other, None),
        }
    }

    fn parse_reply(&self, body: &AnswerBody, headers: &HeaderMap, event: &Event) -> Result<Option<Reply>, ReplyError> {
        match body.end {
            BodyEnd::Whole => {}
            BodyEnd::Capped => return Err(ReplyError::TooLarge),
            BodyEnd::BrokenOff => return Err(ReplyError::BrokenOff),
        }
        if !says_something(&body.bytes) {
            return Ok(None);
        }
        if let Some(coding) = content_encoding(headers) {
            return Err(ReplyError::Encoded(coding));
        }
        match (self.target.format, self.credentials.get(&event.account)) {
            // These pass WeChat's envelope on, or make one, so that the reply may be in one too.
            (Format::Wechat | Format::Raw | Format::AuthingJson, Some(credentials)) => {
                format::wechat::read_reply(credentials, &body.bytes)
            }
            _ => Reply::parse(&body.bytes),
        }
    }

    /// What the attempt's record says of a reply that was not awaited. If no route asks this target at all, the log has
    /// a line too, once until the next reload: nothing but `reply` of a route is missing.
    fn note_unawaited_reply(&self, event: &Event) -> &'static str {
        if self.asked_by.contains(&event.account) {
            return UNAWAITED;
        }
        if !self.told_unasked.swap(true, Ordering::Relaxed) {
            let (event, account, target) = (event.id, &event.account, &self.target.name);
            let remedy = "name the target in `reply` of the route, or let it answer `success`";
            tracing::warn!(%event, %account, %target, remedy, "reply not used; no route asks this target for one");
        }
        UNASKED
    }
}
