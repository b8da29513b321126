//! Prints an answer, for people and for scripts.

use std::time::Duration;

use serde_json::{Value, json};

use super::client::PushAnswer;
use super::url::ServerUrl;
use super::verdict::{AnswerVerdict, USER_SEES};
use crate::escape;

/// The most characters of an illegal body that are shown.
const MAX_SHOWN: usize = 200;

/// The JSON object of one push.
pub(super) fn line(url: &ServerUrl, kind: &str, openid: &str, answer: &PushAnswer) -> Value {
    let attempts = answer.earlier.iter().chain([answer]).map(|attempt| {
        json!({
            "try": attempt.tries,
            "started_ms": millis(attempt.started),
            "took_ms": millis(attempt.took),
            "status": attempt.status,
            "verdict": attempt.verdict.name(),
            "reason": reason(attempt),
        })
    });
    json!({
        "to": url.to_string(),
        "kind": kind,
        "openid": openid,
        "ok": answer.verdict.is_ok(),
        "verdict": answer.verdict.name(),
        "reason": reason(answer),
        "status": answer.status,
        "tries": answer.tries,
        "took_ms": millis(answer.took),
        "attempts": attempts.collect::<Vec<_>>(),
        "reply": answer.opened(),
        "body": String::from_utf8_lossy(&answer.body),
    })
}

/// Why WeChat rejects the answer, and the fix.
fn reason(answer: &PushAnswer) -> Option<String> {
    match &answer.verdict {
        AnswerVerdict::Fault(error) => Some(match error.remedy() {
            Some(remedy) => format!("{error}; {remedy}"),
            None => error.to_string(),
        }),
        AnswerVerdict::Verified | AnswerVerdict::Received | AnswerVerdict::Replied(_) => None,
    }
}

/// The status of an attempt, and how fast it came; with its number and its begin, if there are several.
fn outcome(attempt: &PushAnswer, several: Option<u32>) -> String {
    let status = attempt.status.map_or_else(|| "no answer".to_owned(), |status| status.to_string());
    let mut text = format!("\n  {status} in {} ms", attempt.took.as_millis());
    if let Some(of_tries) = several {
        text += &format!(", try {} of {of_tries}, begun at {} ms", attempt.tries, attempt.started.as_millis());
    }
    text
}

fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

/// The lines for people.
pub(super) fn text(url: &ServerUrl, kind: &str, of_tries: u32, answer: &PushAnswer) -> String {
    let url = url.to_string();
    let mut text = format!("{kind} -> {}", escape::line(&url));
    let several = (!answer.earlier.is_empty()).then_some(of_tries);
    for attempt in &answer.earlier {
        text += &outcome(attempt, several);
        text += &format!(": {}", escape::line(&reason(attempt).unwrap_or_default()));
    }
    text += &outcome(answer, several);
    text += "\n  ";
    match &answer.verdict {
        AnswerVerdict::Verified => text += "ok: the URL is verified",
        AnswerVerdict::Received => text += "ok: received, no reply",
        AnswerVerdict::Replied(reply) => {
            text += "ok: the user is shown this reply\n    ";
            text += &escape::block(reply, "    ");
        }
        AnswerVerdict::Fault(error) => {
            text += &format!("FAULT: {}", escape::line(&error.to_string()));
            if let Some(remedy) = error.remedy() {
                text += &format!("\n  -> {remedy}");
            }
            if kind != "verify" {
                text += &format!("\n  the user sees: {USER_SEES}");
            }
            if !answer.body.is_empty() {
                let body = String::from_utf8_lossy(&answer.body);
                let start: String = body.chars().take(MAX_SHOWN).collect();
                text += &format!("\n  the body: \"{}\"", escape::line(&start));
            }
        }
    }
    text
}
