//! How an answer is printed, for people and for scripts.

use serde_json::{Value, json};

use super::sender::Answer;
use super::url::ServerUrl;
use super::verdict::{USER_SEES, Verdict};

/// The most of an illegal body that is shown, in characters.
const SHOWN: usize = 200;

/// One JSON object for one push.
pub(super) fn line(url: &ServerUrl, kind: &str, openid: &str, answer: &Answer) -> Value {
    let reason = match &answer.verdict {
        Verdict::Fault(fault) => Some(fault.to_string()),
        Verdict::Verified | Verdict::Received | Verdict::Replied(_) => None,
    };
    json!({
        "to": url.to_string(),
        "kind": kind,
        "openid": openid,
        "ok": answer.verdict.is_ok(),
        "verdict": answer.verdict.word(),
        "reason": reason,
        "status": answer.status,
        "tries": answer.tries,
        "took_ms": u64::try_from(answer.took.as_millis()).unwrap_or(u64::MAX),
        "reply": answer.opened(),
        "body": String::from_utf8_lossy(&answer.body),
    })
}

/// The same in a few lines for people.
pub(super) fn text(url: &ServerUrl, kind: &str, of_tries: u32, answer: &Answer) -> String {
    let status = answer.status.map_or_else(|| "no answer".to_owned(), |status| status.to_string());
    let mut text = format!("{kind} -> {url}\n  {status} in {} ms", answer.took.as_millis());
    if answer.tries > 1 {
        text += &format!(", try {} of {of_tries}", answer.tries);
    }
    text += "\n  ";
    match &answer.verdict {
        Verdict::Verified => text += "ok: the URL is verified",
        Verdict::Received => text += "ok: received, no reply",
        Verdict::Replied(reply) => {
            text += "ok: the user is shown this reply";
            reply.lines().for_each(|line| {
                text += "\n    ";
                text += line;
            });
        }
        Verdict::Fault(fault) => {
            text += &format!("FAULT: {fault}");
            if kind != "verify" {
                text += &format!("\n  a user who waits for a reply sees: {USER_SEES}");
            }
            if !answer.body.is_empty() {
                let body = String::from_utf8_lossy(&answer.body);
                text += &format!("\n  the body: {:?}", body.chars().take(SHOWN).collect::<String>());
            }
        }
    }
    text
}
