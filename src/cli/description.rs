//! One event for people: what came in, each delivery, every attempt. From the shape that `--json` and the API print.

use serde_json::Value;

/// An event in full; `with_text` also the opened text, the reply, and what targets answered.
pub(super) fn description(event: &Value, with_text: bool) -> String {
    let text = |key: &str| event[key].as_str().unwrap_or_default();
    let mut out = format!(
        "{}\n  received  {}\n  account   {} ({}, {})\n  message   {} {} {}\n  from      {}\n",
        text("id"),
        text("received_at"),
        text("account"),
        text("app_id"),
        text("mode"),
        text("msg_type"),
        text("event"),
        text("event_key"),
        text("from")
    );
    for delivery in event["deliveries"].as_array().into_iter().flatten() {
        let text = |key: &str| delivery[key].as_str();
        out += &format!("  {:9} {}", text("target").unwrap_or_default(), text("state").unwrap_or_default());
        out += &text("ended_at").map(|at| format!(" at {at}")).unwrap_or_default();
        out += &text("due").map(|due| format!(", next attempt {due}")).unwrap_or_default();
        out.push('\n');
        for attempt in delivery["attempts"].as_array().into_iter().flatten() {
            out += &attempt_line(attempt);
            if let Some(answer) = attempt["answer"].as_str().filter(|_| with_text) {
                out += &format!("      {}\n", answer.replace('\n', "\n      "));
            }
        }
    }
    if let Some(why) = event["sealed"].as_str() {
        out += &format!("  sealed    {why}\n");
    }
    if let Some(reply) = event["reply"].as_str().filter(|_| with_text) {
        out += &format!("  reply     {reply}\n");
    }
    if with_text {
        out += &format!("  text      {}\n", text("text"));
    }
    out
}

fn attempt_line(attempt: &Value) -> String {
    let status = attempt["status"].as_u64();
    let success = status.is_some_and(|status| (200..300).contains(&status));
    let status = status.map_or_else(|| "no answer".to_owned(), |status| status.to_string());
    let answer = attempt["answer"].as_str();
    let used = if success && answer.is_some() { "reply used" } else { "" };
    let error = attempt["error"].as_str().unwrap_or(used);
    let answer = answer.filter(|_| !success).map(excerpt).unwrap_or_default();
    let (number, at) = (&attempt["number"], attempt["at"].as_str().unwrap_or_default());
    let took = attempt["duration_ms"].as_f64().unwrap_or_default();
    format!("    attempt {number}  {at}  {took:.1} ms  {status}  {error}{answer}\n")
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
