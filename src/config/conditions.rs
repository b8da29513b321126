//! `match` of a route: its patterns, and whether a push can match all of them.
//!
//! A route that can never match is an error: it looks well, and its events go elsewhere. What may be a new name of
//! WeChat's passes, with a warning if it is nearly a known one.

use super::error::{Problem, nearest};
use super::file::{List, MatchSection};
use super::key_reader::KeyReader;
use crate::route::{Match, Pattern, Patterns};
use crate::wechat::Message;

/// Before the scene in the EventKey of a follow.
const SCENE_PREFIX: &str = "qrscene_";

/// Reads all keys, and reports those that exclude each other.
pub(super) fn read(reader: &KeyReader<'_>, file: &MatchSection) -> Match {
    // WeChat's own spelling of these varies in case.
    let (blind, exact) = (true, false);
    let read = |name: &str, list: &Option<List>, case_blind| patterns(&reader.at(name), list.as_ref()?, case_blind);
    let given = [&file.msg_type, &file.event, &file.event_key, &file.scene, &file.content, &file.from];
    if given.iter().all(|list| list.is_none()) {
        reader.report(Problem::Missing("at least one of msg_type, event, event_key, scene, content, from"));
    }
    let conditions = Match {
        msg_type: read("msg_type", &file.msg_type, blind),
        event: read("event", &file.event, blind),
        event_key: read("event_key", &file.event_key, exact),
        scene: read("scene", &file.scene, exact),
        content: read("content", &file.content, exact),
        from: read("from", &file.from, exact),
    };
    check_emptiness(reader, &conditions);
    check_names(reader, &conditions);
    check_scenes(reader, &conditions);
    check_together(reader, &conditions);
    conditions
}

/// The patterns of one key; reports those that are not valid.
pub(super) fn patterns(reader: &KeyReader<'_>, list: &List, case_blind: bool) -> Option<Patterns> {
    if list.0.is_empty() {
        reader.report(Problem::Missing("at least one pattern"));
    }
    let pattern = |(index, text): (usize, &String)| {
        let at = nth(reader, index, list.0.len());
        Pattern::parse(text, case_blind).map_err(|error| at.report(Problem::Pattern(error))).ok()
    };
    Some(Patterns(list.0.iter().enumerate().filter_map(pattern).collect()))
}

/// The reader of a pattern, which may be written without a list.
fn nth<'r>(reader: &KeyReader<'r>, index: usize, length: usize) -> KeyReader<'r> {
    if length == 1 { reader.clone() } else { reader.nth(index) }
}

/// The patterns of a key, each with its reader. The readers are right where every pattern could be read.
fn numbered<'r>(
    reader: &KeyReader<'r>,
    name: &str,
    patterns: Option<&'r Patterns>,
) -> impl Iterator<Item = (KeyReader<'r>, &'r Pattern)> {
    let (reader, all) = (reader.at(name), patterns.map_or(&[][..], |patterns| &patterns.0));
    all.iter().enumerate().map(move |(index, pattern)| (nth(&reader, index, all.len()), pattern))
}

/// An empty pattern is for the fields that a push may lack.
fn check_emptiness(reader: &KeyReader<'_>, conditions: &Match) {
    for (name, patterns) in
        [("msg_type", &conditions.msg_type), ("event", &conditions.event), ("from", &conditions.from)]
    {
        for (at, _) in numbered(reader, name, patterns.as_ref()).filter(|(_, pattern)| pattern.is_empty()) {
            at.report(Problem::expected(
                "empty",
                "a pattern that is not empty: only event_key, scene and content may be",
            ));
        }
    }
}

/// A message type is no event and an event no message type.
fn check_names(reader: &KeyReader<'_>, conditions: &Match) {
    let exact = |patterns| numbered(reader, "msg_type", patterns).filter_map(|(at, one)| Some((at, one.exact_text()?)));
    for (at, name) in exact(conditions.msg_type.as_ref()).filter(|(_, name)| !name.is_empty()) {
        match Message::known_as(name) {
            (false, true) => at.report(Problem::action(
                "this is the name of an event, and the msg_type of all events is `event`",
                "write it as `event`",
            )),
            (false, false) => warn_of_typo(&at, name, Message::message_types()),
            (true, _) => {}
        }
    }
    let exact = |patterns| numbered(reader, "event", patterns).filter_map(|(at, one)| Some((at, one.exact_text()?)));
    for (at, name) in exact(conditions.event.as_ref()).filter(|(_, name)| !name.is_empty()) {
        match Message::known_as(name) {
            (true, false) => {
                at.report(Problem::action("this is a type of messages, and no event", "write it as `msg_type`"));
            }
            (false, false) => warn_of_typo(&at, name, Message::event_names()),
            (_, true) => {}
        }
    }
}

fn warn_of_typo(reader: &KeyReader<'_>, name: &str, known: &[&str]) {
    if let Some(meant) = nearest(name, known.iter().copied()) {
        reader.warn(format_args!("`{name}` is not known; did you mean `{meant}`?"));
    }
}

fn check_scenes(reader: &KeyReader<'_>, conditions: &Match) {
    for (at, pattern) in numbered(reader, "scene", conditions.scene.as_ref()) {
        let text = pattern.to_string();
        let text = text.strip_prefix("re:^").or_else(|| text.strip_prefix("re:\\A")).unwrap_or(&text);
        if text.starts_with(SCENE_PREFIX) {
            at.report(Problem::action("a scene is compared without `qrscene_`", "remove this prefix"));
        }
    }
    let only_follows = conditions.event.as_ref().is_some_and(|events| {
        events.0.iter().all(|event| event.exact_text().is_some_and(|name| name.eq_ignore_ascii_case("subscribe")))
    });
    for (at, pattern) in numbered(reader, "event_key", conditions.event_key.as_ref()).filter(|_| only_follows) {
        let is_of_follow = |key: &str| key.is_empty() || key.contains('_') || key.contains('|');
        if pattern.exact_text().is_some_and(|key| !is_of_follow(key)) {
            at.warn(format_args!("the EventKey of a follow by QR code begins with `qrscene_`; `scene` is without it"));
        }
    }
}

/// Keys that no push has together.
fn check_together(reader: &KeyReader<'_>, conditions: &Match) {
    let Match { msg_type, event, event_key, scene, content, .. } = conditions;
    let asks = |patterns: &Option<Patterns>| {
        patterns.as_ref().is_some_and(|all| !all.0.is_empty() && !all.0.iter().any(Pattern::is_empty))
    };
    let allows = |patterns: &Option<Patterns>, names: &[&str]| {
        patterns.as_ref().is_none_or(|all| {
            all.0.is_empty() || all.0.iter().any(|pattern| names.iter().any(|name| pattern.holds(name)))
        })
    };
    let of_events = [("event", event), ("event_key", event_key), ("scene", scene)];
    if !allows(msg_type, &["event"]) {
        for (name, _) in of_events.iter().filter(|(_, patterns)| asks(patterns)) {
            let problem =
                Problem::action("only an event has it, and `msg_type` matches no event", "remove one of the two");
            reader.at(name).report(problem);
        }
    }
    if asks(scene) && !allows(event, &["subscribe", "SCAN"]) {
        let problem = Problem::action(
            "only `subscribe` and `SCAN` have a scene, and `event` matches neither",
            "remove one of the two, or write `event_key`",
        );
        reader.at("scene").report(problem);
    }
    if asks(content) && (of_events.iter().any(|(_, patterns)| asks(patterns)) || !may_have_content(msg_type.as_ref())) {
        let problem =
            Problem::action("only a text message has it, and the other keys match none", "remove one of the two");
        reader.at("content").report(problem);
    }
}

/// Whether a pattern matches texts, or what is not known.
fn may_have_content(msg_type: Option<&Patterns>) -> bool {
    let is_other = |pattern: &Pattern| pattern.exact_text().is_some_and(|name| Message::known_as(name).0);
    msg_type.is_none_or(|all| all.0.iter().any(|pattern| pattern.holds("text") || !is_other(pattern)))
}
