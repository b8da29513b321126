//! Who an event is about: the column `from_user` holds its sender and every other person that the text names.
//!
//! Some pushes, of all those that ask for erasure, come from the platform and name the person in another element:
//! `OpenID`, `FriendUserName`. Events that an earlier release stored have the sender alone in that column: unless they
//! are encrypted, their texts are searched.

use std::borrow::Cow;

use sha2::{Digest as _, Sha256};

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

/// Identifies a user where order is kept. Should two users share a number, they only wait for each other.
pub(super) fn user_number(openid: &str) -> i64 {
    let hash = Sha256::new().chain_update(openid).finalize();
    let mut number = [0; 8];
    number.copy_from_slice(&hash[..8]);
    i64::from_be_bytes(number)
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
