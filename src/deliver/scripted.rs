//! Targets that answer by a script, without a network: for simulations.
//!
//! The timeout and the judgement of the answer are those of real attempts; the request is not written.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;

use http::{HeaderMap, StatusCode};
use tokio::time::Instant;

use super::client::{AnswerBody, BodyEnd, SystemRoots};
use super::{AttemptReport, AttemptRequest, ClientError, Outcome, Target, Upstream, outcome};
use crate::clock::UnixNanos;
use crate::trace::SpanId;

/// A target's answer.
pub(crate) enum ScriptedAnswer {
    Status(StatusCode, HeaderMap),
    /// The connection breaks.
    Broken,
}

pub(crate) type PendingAnswer = Pin<Box<dyn Future<Output = ScriptedAnswer> + Send>>;

/// What a target does with an attempt.
#[derive(Clone)]
pub(crate) struct Script(pub(crate) Arc<dyn Fn(&AttemptRequest<'_>) -> PendingAnswer + Send + Sync>);

impl fmt::Debug for Script {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Script")
    }
}

impl Upstream {
    /// A target that answers by the script.
    pub(crate) fn scripted(target: Target, script: Script) -> Result<Self, ClientError> {
        Ok(Self { script: Some(script), ..Self::new(target, [], &SystemRoots::default())? })
    }

    pub(super) async fn play(&self, script: &Script, order: &AttemptRequest<'_>, started: Instant) -> AttemptReport {
        let span = SpanId::new(order.event.id.0);
        match tokio::time::timeout_at(started + self.target.timeout, (script.0)(order)).await {
            Err(_) => AttemptReport::failed("timeout", "no answer".to_owned(), started, span),
            Ok(ScriptedAnswer::Broken) => {
                AttemptReport::failed("broken", "connection broken".to_owned(), started, span)
            }
            Ok(ScriptedAnswer::Status(status, headers)) => {
                let outcome = outcome::classify(status, &headers, order.now);
                let delivered = outcome == Outcome::Delivered;
                let body = AnswerBody { bytes: Vec::new(), end: BodyEnd::Whole };
                AttemptReport {
                    outcome,
                    status: Some(status),
                    error: (!delivered).then(|| format!("answered {}", status.as_u16())),
                    no_answer: None,
                    answer: None,
                    duration: started.elapsed(),
                    ended: UnixNanos::now(),
                    span,
                    reply: (delivered && order.asked).then(|| self.reply(&body, &headers, order.event).0),
                    reply_note: None,
                }
            }
        }
    }
}
