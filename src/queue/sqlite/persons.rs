//! Who an event is about: the column `from_user` holds its sender and every other person that the text names.
//!
//! Some pushes, of all those that ask for erasure, come from the platform and name the person in another element:
//! `OpenID`, `FriendUserName`. Events that an earlier release stored have the sender alone in that column: unless they
//! are encrypted, their texts are searched.

use std::borrow::Cow;

use crate::event::Event;
use crate::wechat::Element;

/// Stands between the persons; no XML has it.
const SEPARATOR: char = '\u{1f}';
/// The most other persons, and the longest name: the rest of a hostile text is not indexed.
const MAX_PERSONS: usize = 16;
const MAX_LENGTH: usize = 128;
/// What the names of elements end with that hold a person.
const NAMES: [&str; 3] = ["openid", "openpid", "username"];
/// Elements of that form that hold no person: the account.
const NO_PERSON: &str = "tousername";

/// The condition that the event `e` is about the person `?5`. The first look into a text is cheap, and few pass it.
pub(super) const IS_ABOUT: &str = "(instr(char(31) || e.from_user || char(31), char(31) || ?5 || char(31)) > 0 \
    OR e.key IS NULL AND e.msg_type <> 'text' AND instr(coalesce(e.clear, e.body), CAST(?5 AS BLOB)) > 0 AND EXISTS \
       (WITH text(t, p) AS MATERIALIZED (SELECT lower(CAST(coalesce(e.clear, e.body) AS TEXT)), lower(?5)) \
        SELECT 1 FROM text, (SELECT 'openid' AS n UNION ALL SELECT 'openpid' UNION ALL SELECT 'username') \
         WHERE instr(t, n || '><![cdata[' || p || ']') > 0 OR instr(t, n || '>' || p || '<') > 0 \
            OR instr(t, n || '\":\"' || p || '\"') > 0 OR instr(t, n || '\": \"' || p || '\"') > 0))";

/// The column of an event.
pub(super) fn column(event: &Event) -> Cow<'_, str> {
    let sender = event.message.from_user();
    let mut others: Vec<&str> = Vec::new();
    collect(&event.message.root, &mut |person| {
        if person != sender && others.len() < MAX_PERSONS && !others.contains(&person) {
            others.push(person);
        }
    });
    if others.is_empty() {
        return Cow::Borrowed(sender);
    }
    others.insert(0, sender);
    Cow::Owned(others.join(&SEPARATOR.to_string()))
}

/// The sender in a column.
pub(super) fn sender(column: &str) -> &str {
    column.split(SEPARATOR).next().unwrap_or_default()
}

/// Whether the column is one of this text: as it is written now, or as earlier releases wrote it.
pub(super) fn is_of(event: &Event, stored: &str) -> bool {
    stored == column(event) || stored == event.message.from_user()
}

fn collect<'e>(element: &'e Element, take: &mut impl FnMut(&'e str)) {
    for child in &element.children {
        if child.children.is_empty() && names_person(&child.name) {
            let person = child.text.trim();
            if !person.is_empty() && person.len() <= MAX_LENGTH {
                take(person);
            }
        }
        collect(child, take);
    }
}

fn names_person(name: &str) -> bool {
    let ends_with = |end: &str| {
        let start = name.len().checked_sub(end.len());
        start.is_some_and(|start| name.as_bytes()[start..].eq_ignore_ascii_case(end.as_bytes()))
    };
    NAMES.into_iter().any(ends_with) && !name.eq_ignore_ascii_case(NO_PERSON)
}
