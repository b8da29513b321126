//! One event as text for people: the message, each delivery, every attempt.

use crate::queue::view::{AttemptDetail, DeliveryDetail, EventDetail};

/// An event in full; `with_text` also the decrypted text, the reply, and the answers of targets.
pub(super) fn description(detail: &EventDetail, with_text: bool) -> String {
    let EventDetail { id, received_at, account, app_id, mode, msg_type, event, event_key, from, .. } = detail;
    let mut out = format!(
        "{id}\n  received  {received_at}\n  account   {account} ({app_id}, {mode})\n  message   {msg_type} {event} \
         {event_key}\n  from      {from}\n"
    );
    for delivery in &detail.deliveries {
        let DeliveryDetail { target, state, due, ended_at, attempts } = delivery;
        out += &format!("  {target:9} {}", state.name());
        out += &ended_at.map(|at| format!(" at {at}")).unwrap_or_default();
        out += &due.map(|due| format!(", next attempt {due}")).unwrap_or_default();
        out.push('\n');
        for attempt in attempts {
            out += &attempt_line(attempt);
            if let Some(answer) = attempt.answer.as_ref().filter(|_| with_text) {
                out += &format!("      {}\n", answer.replace('\n', "\n      "));
            }
        }
    }
    if let Some(why) = &detail.sealed {
        out += &format!("  sealed    {why}\n");
    }
    if let Some(reply) = detail.reply.as_ref().filter(|_| with_text) {
        out += &format!("  reply     {reply}\n");
    }
    if with_text {
        out += &format!("  text      {}\n", detail.text);
    }
    out
}

fn attempt_line(attempt: &AttemptDetail) -> String {
    let AttemptDetail { number, at, duration_ms, status, error, answer } = attempt;
    let success = status.is_some_and(|status| (200..300).contains(&status));
    let status = status.map_or_else(|| "no answer".to_owned(), |status| status.to_string());
    let used = if success && answer.is_some() { "reply used" } else { "" };
    let error = error.as_deref().unwrap_or(used);
    let answer = answer.as_deref().filter(|_| !success).map(excerpt).unwrap_or_default();
    format!("    attempt {number}  {at}  {duration_ms:.1} ms  {status}  {error}{answer}\n")
}

/// The beginning of a target's answer, on one line whatever is in it.
pub(super) fn excerpt(answer: &str) -> String {
    const SHOWN: usize = 80;
    let mut shown: String = answer.chars().take(SHOWN).flat_map(char::escape_debug).collect();
    if answer.chars().nth(SHOWN).is_some() {
        shown += "..";
    }
    format!("  \"{shown}\"")
}
