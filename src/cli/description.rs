//! One event as text for people: the message, each delivery, every attempt.

use crate::escape;
use crate::queue::view::{AttemptDetail, DeliveryDetail, EventDetail, ReplyDetail};
use crate::queue::{MAX_HELD, ReplyState};

/// The width of a label, before the margin of a text's further lines.
const MARGIN: &str = "          ";

/// How the decrypted text, the reply and the answers of targets are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum EventTexts {
    LeftOut,
    /// For people: each line behind a margin.
    Escaped,
    /// For programs: as they are.
    Exact,
}

impl EventTexts {
    /// A text after `label`; its further lines have the margin.
    fn written(self, label: &str, margin: &str, text: &str) -> String {
        match self {
            Self::LeftOut => String::new(),
            Self::Escaped => format!("{label}{}\n", escape::block(text, &format!("{margin}| "))),
            Self::Exact => format!("{label}{text}\n"),
        }
    }
}

/// An event in full.
pub(super) fn description(detail: &EventDetail, texts: EventTexts) -> String {
    let EventDetail { id, received_at, account, app_id, mode, msg_type, event, event_key, from, .. } = detail;
    let mut out = String::new();
    let mut push_line = |line: &str| {
        out += &escape::line(line);
        out.push('\n');
    };
    push_line(&id.to_string());
    push_line(&format!("  received  {received_at}"));
    push_line(&format!("  account   {account} ({app_id}, {mode})"));
    push_line(&format!("  message   {msg_type} {event} {event_key}"));
    push_line(&format!("  from      {from}"));
    for delivery in &detail.deliveries {
        let DeliveryDetail { target, state, due, ended_at, attempts } = delivery;
        out += &escape::line(&format!("  {target:9} {}", state.name()));
        out += &ended_at.map(|at| format!(" at {at}")).unwrap_or_default();
        out += &due.map(|due| format!(", next attempt {due}")).unwrap_or_default();
        out.push('\n');
        for attempt in attempts {
            let given = |reply: &&ReplyDetail| reply.target == *target && reply.attempt == Some(attempt.number);
            let given = detail.replies.iter().find(given);
            out += &attempt_line(attempt, given, is_used(attempt, detail.reply.as_deref()));
            if let Some(answer) = &attempt.answer {
                out += &match texts {
                    EventTexts::Exact => format!("      {}\n", answer.replace('\n', "\n      ")),
                    texts => texts.written("      ", "      ", answer),
                };
            }
        }
    }
    for reply in detail.replies.iter().filter(|reply| reply.attempt.is_none()) {
        out += &escape::line(&format!("  {:9} reply {}", reply.target, reply_fate(reply)));
        out.push('\n');
    }
    if let Some(event) = detail.picked_up {
        out += &format!("  picked up the reply to {event}\n");
    }
    if let Some(why) = &detail.sealed {
        out += &format!("  sealed    {}\n", escape::line(why));
    }
    if let Some(reply) = &detail.reply {
        out += &texts.written("  reply     ", MARGIN, reply);
    }
    out + &texts.written("  text      ", MARGIN, &detail.text)
}

fn attempt_line(attempt: &AttemptDetail, reply: Option<&ReplyDetail>, is_used: bool) -> String {
    let AttemptDetail { number, at, duration_ms, status, error, answer } = attempt;
    let status = status.map_or_else(|| "no answer".to_owned(), |status| status.to_string());
    let fate = match reply {
        Some(reply) => Some(format!("reply {}", reply_fate(reply))),
        None => is_used.then(|| "reply used".to_owned()),
    };
    let shows_reply = fate.is_some();
    let remarks: Vec<_> = error.clone().into_iter().chain(fate).collect();
    let remarks = if remarks.is_empty() { String::new() } else { format!("  {}", remarks.join("; ")) };
    let answer = answer.as_deref().filter(|_| !shows_reply).map(excerpt).unwrap_or_default();
    let line = format!("    attempt {number}  {at}  {duration_ms:.1} ms  {status}{remarks}{answer}");
    escape::line(&line).into_owned() + "\n"
}

/// Whether WeChat got the reply of this attempt: its record has the beginning of the event's clear reply.
fn is_used(attempt: &AttemptDetail, reply: Option<&str>) -> bool {
    let answer = attempt.answer.as_deref().unwrap_or_default();
    // It may end within a character.
    let answer = answer.trim_end_matches(char::REPLACEMENT_CHARACTER);
    !answer.is_empty() && reply.is_some_and(|reply| reply.starts_with(answer))
}

/// What became of a reply.
fn reply_fate(reply: &ReplyDetail) -> String {
    let ReplyDetail { state, expires_at, picked_up_by, .. } = reply;
    let until = expires_at.map(|at| format!(" until {at}")).unwrap_or_default();
    let by = picked_up_by.map(|by| format!(" by {by}")).unwrap_or_default();
    match state {
        ReplyState::Awaited => format!("may still come{until}"),
        ReplyState::Sent => "sent".to_owned(),
        ReplyState::Held if by.is_empty() => format!("held{until}"),
        ReplyState::Held => format!("picked up in part{by}, the rest held{until}"),
        ReplyState::PickedUp => format!("picked up{by}"),
        ReplyState::Superseded => "superseded: the event had one before".to_owned(),
        ReplyState::Dropped => format!("dropped: the user had {MAX_HELD} held replies"),
        ReplyState::Expired => "expired: the user did not ask for it in time".to_owned(),
        ReplyState::Ended => "none".to_owned(),
    }
}

/// The beginning of a target's answer, on one line whatever is in it.
pub(super) fn excerpt(answer: &str) -> String {
    const SHOWN: usize = 80;
    let start: String = answer.chars().take(SHOWN).collect();
    let mut shown = escape::line(&start).into_owned();
    if answer.chars().nth(SHOWN).is_some() {
        shown += "..";
    }
    format!("  \"{shown}\"")
}
