//! Prints an answer, for people and for scripts.

use serde_json::{Value, json};

use super::client::PushAnswer;
use super::url::ServerUrl;
use super::verdict::{AnswerVerdict, USER_SEES};
use crate::escape;

/// The most characters of an illegal body that are shown.
const MAX_SHOWN: usize = 200;

/// The JSON object of one push.
pub(super) fn line(url: &ServerUrl, kind: &str, openid: &str, answer: &PushAnswer) -> Value {
    let reason = match &answer.verdict {
        AnswerVerdict::Fault(error) => Some(match error.remedy() {
            Some(remedy) => format!("{error}; {remedy}"),
            None => error.to_string(),
        }),
        AnswerVerdict::Verified | AnswerVerdict::Received | AnswerVerdict::Replied(_) => None,
    };
    json!({
        "to": url.to_string(),
        "kind": kind,
        "openid": openid,
        "ok": answer.verdict.is_ok(),
        "verdict": answer.verdict.name(),
        "reason": reason,
        "status": answer.status,
        "tries": answer.tries,
        "took_ms": u64::try_from(answer.took.as_millis()).unwrap_or(u64::MAX),
        "reply": answer.opened(),
        "body": String::from_utf8_lossy(&answer.body),
    })
}

/// The lines for people.
pub(super) fn text(url: &ServerUrl, kind: &str, of_tries: u32, answer: &PushAnswer) -> String {
    let status = answer.status.map_or_else(|| "no answer".to_owned(), |status| status.to_string());
    let url = url.to_string();
    let mut text = format!("{kind} -> {}\n  {status} in {} ms", escape::line(&url), answer.took.as_millis());
    if answer.tries > 1 {
        text += &format!(", try {} of {of_tries}", answer.tries);
    }
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
