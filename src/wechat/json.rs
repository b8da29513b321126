//! JSON pushes to the tree that XML pushes give, and the tree to the JSON that handlers get.
//!
//! Invariants: a number keeps the digits it was sent with, whatever its size; depth and elements are bounded as in
//! `xml`; handlers get every text as a JSON string, since WeChat's ids are beyond what JavaScript's numbers hold.
//! Errors name a position, never the text.

use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;
use serde_json::{Map, Value};

use super::message::Element;
use super::xml::{DEPTH, ELEMENTS};

/// Why a text is not accepted JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum JsonError {
    /// The grammar is broken, or the outermost value is not an object.
    #[error("not a well-formed JSON object at line {line}, column {column}")]
    Malformed {
        /// From 1.
        line: usize,
        /// From 1.
        column: usize,
    },
    /// Too deep or too many values.
    #[error("too deep or too many values")]
    TooBig,
}

/// Only the position is kept: the text of a serde error can quote what it found.
impl From<serde_json::Error> for JsonError {
    fn from(error: serde_json::Error) -> Self {
        Self::Malformed { line: error.line(), column: error.column() }
    }
}

/// Parses a JSON push. The root is named `xml`, as it is for pushes in XML.
///
/// An array becomes repeated elements, as in XML, where one item and a list of one look alike; an empty array one empty
/// element, and so does `null`. The items of an array within an array are named `item`.
pub fn parse(bytes: &[u8]) -> Result<Element, JsonError> {
    let raw: &RawValue = serde_json::from_slice(bytes)?;
    if !raw.get().starts_with('{') {
        return Err(JsonError::Malformed { line: 1, column: 1 });
    }
    let mut root = Element::new("xml");
    let mut left = ELEMENTS;
    fill(&mut root, raw.get(), 1, &mut left)?;
    Ok(root)
}

/// The element as JSON: an object of its children, repeated ones as an array, texts as strings, in order.
///
/// Attributes are `$`, and text beside attributes or children is `_`, as the JavaScript world's xml2js has it. Nothing
/// is lost but the order of elements with different names, where elements with the same name are not adjacent:
/// `<a/><b/><a/>` gives `a` twice, then `b`. An element that is itself called `_` can't be told from text. No known
/// push has either.
pub fn message(root: &Element) -> Value {
    let mut map = Map::with_capacity(root.children.len());
    if !root.attributes.is_empty() {
        let attributes = root.attributes.iter().map(|(name, value)| (name.clone(), Value::String(value.clone())));
        map.insert("$".into(), Value::Object(attributes.collect()));
    }
    if !root.text.is_empty() {
        map.insert("_".into(), Value::String(root.text.clone()));
    }
    for child in &root.children {
        let leaf = child.children.is_empty() && child.attributes.is_empty();
        let value = if leaf { Value::String(child.text.clone()) } else { message(child) };
        match map.get_mut(&child.name) {
            None => {
                map.insert(child.name.clone(), value);
            }
            // An element's own value is never an array, so this one is the list of elements with its name.
            Some(Value::Array(list)) => list.push(value),
            Some(first) => *first = Value::Array(vec![first.take(), value]),
        }
    }
    Value::Object(map)
}

/// Puts a value into the element that it is the value of.
fn fill(element: &mut Element, raw: &str, depth: usize, left: &mut usize) -> Result<(), JsonError> {
    *left = left.checked_sub(1).ok_or(JsonError::TooBig)?;
    if depth > DEPTH {
        return Err(JsonError::TooBig);
    }
    match raw.as_bytes().first() {
        Some(b'{') => {
            let ObjectEntries(entries) = serde_json::from_str(raw)?;
            for (name, raw) in entries {
                add(element, name, raw.get(), depth, left)?;
            }
        }
        Some(b'[') => add(element, "item".to_owned(), raw, depth, left)?,
        Some(b'"') => element.text = serde_json::from_str(raw)?,
        Some(b'n') => {}
        _ => raw.clone_into(&mut element.text),
    }
    Ok(())
}

/// Adds a child of that name; for an array one child for each item.
fn add(parent: &mut Element, name: String, raw: &str, depth: usize, left: &mut usize) -> Result<(), JsonError> {
    if raw.starts_with('[') {
        let items: Vec<&RawValue> = serde_json::from_str(raw)?;
        for item in &items {
            let mut child = Element::new(name.as_str());
            fill(&mut child, item.get(), depth + 1, left)?;
            parent.children.push(child);
        }
        if !items.is_empty() {
            return Ok(());
        }
    }
    let mut child = Element::new(name);
    let raw = if raw.starts_with('[') { "null" } else { raw };
    fill(&mut child, raw, depth + 1, left)?;
    parent.children.push(child);
    Ok(())
}

/// An object's entries in order, repeated keys included.
struct ObjectEntries<'a>(Vec<(String, &'a RawValue)>);

impl<'de> Deserialize<'de> for ObjectEntries<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct EntriesVisitor;
        impl<'de> Visitor<'de> for EntriesVisitor {
            type Value = ObjectEntries<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut entries = Vec::with_capacity(8);
                while let Some(entry) = map.next_entry()? {
                    entries.push(entry);
                }
                Ok(ObjectEntries(entries))
            }
        }
        deserializer.deserialize_map(EntriesVisitor)
    }
}

#[cfg(test)]
#[path = "json_tests.rs"]
mod tests;
