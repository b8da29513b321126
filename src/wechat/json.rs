//! JSON pushes to the tree that XML pushes give, and the tree to the JSON that handlers get.
//!
//! Invariants: a number keeps the digits it was sent with, whatever its size; depth and elements are bounded as in
//! `xml`; handlers get every text as a JSON string, since WeChat's ids are beyond what JavaScript's numbers hold.
//! Errors name a place, never the text.

use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;
use serde_json::{Map, Value};

use super::message::Element;
use super::xml::{DEPTH, ELEMENTS};

/// Why a text is not JSON that we take.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum JsonError {
    /// The grammar is broken, or the outermost value is no object.
    #[error("not a sound JSON object at line {line}, column {column}")]
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

/// Only the place is kept: the text of a serde error can quote what it found.
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
/// Attributes are `$`, and text beside attributes or children is `_`, as the JavaScript world's xml2js has it.
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
            // An element's own value is never an array, so this one is the list of its namesakes.
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
            let Entries(entries) = serde_json::from_str(raw)?;
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
struct Entries<'a>(Vec<(String, &'a RawValue)>);

impl<'de> Deserialize<'de> for Entries<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Collect;
        impl<'de> Visitor<'de> for Collect {
            type Value = Entries<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut entries = Vec::with_capacity(8);
                while let Some(entry) = map.next_entry()? {
                    entries.push(entry);
                }
                Ok(Entries(entries))
            }
        }
        deserializer.deserialize_map(Collect)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::wechat::xml;

    #[test]
    fn a_json_push_gives_the_tree_of_its_xml_twin() {
        let json = r#"{"ToUserName":"gh_1","CreateTime":1714037059,"List":[{"A":"1"},{"A":"2"}],"One":{"A":"你\n"},"None":null,"Empty":[]}"#;
        let xml = "<xml><ToUserName>gh_1</ToUserName><CreateTime>1714037059</CreateTime><List><A>1</A></List>\
            <List><A>2</A></List><One><A>你\n</A></One><None/><Empty/></xml>";
        assert_eq!(parse(json.as_bytes()).unwrap(), xml::parse(xml).unwrap());
    }

    #[test]
    fn numbers_keep_their_digits() {
        for number in ["18446744073709551615", "-9223372036854775808", "340282366920938463463374607431768211456"] {
            let root = parse(format!(r#"{{"MsgId":{number}}}"#).as_bytes()).unwrap();
            assert_eq!(root.text_of("MsgId"), Some(number));
        }
        let root = parse(br#"{"a":23.10,"b":1e5,"c":true,"d":false,"e":-0}"#).unwrap();
        let texts: Vec<_> = root.children.iter().map(|child| child.text.as_str()).collect();
        assert_eq!(texts, ["23.10", "1e5", "true", "false", "-0"]);
    }

    #[test]
    fn repeated_keys_and_lists_of_lists_keep_their_order() {
        let root = parse(br#"{"a":1,"b":2,"a":3,"l":[[1,2],[3]]}"#).unwrap();
        assert_eq!(message(&root), json!({"a":["1","3"],"b":"2","l":[{"item":["1","2"]},{"item":"3"}]}));
        let names: Vec<_> = root.children.iter().map(|child| child.name.as_str()).collect();
        assert_eq!(names, ["a", "b", "a", "l", "l"]);
    }

    #[test]
    fn what_is_no_object_or_broken_is_refused() {
        for text in ["", "[]", "1", "\"x\"", "null", "{", "{}x", "{} {}", r#"{"a":01}"#, r#"{"a":"\ud800"}"#, "{'a':1}"]
        {
            assert!(matches!(parse(text.as_bytes()), Err(JsonError::Malformed { .. })), "{text}");
        }
        assert!(parse(b"{\"a\":\"\xff\"}").is_err());
    }

    #[test]
    fn depth_and_count_are_bounded() {
        let nested = |depth: usize| format!("{}1{}", r#"{"a":"#.repeat(depth), "}".repeat(depth));
        assert!(parse(nested(DEPTH - 1).as_bytes()).is_ok());
        assert_eq!(parse(nested(DEPTH).as_bytes()), Err(JsonError::TooBig));
        let lists = format!(r#"{{"a":{}{}}}"#, "[".repeat(5000), "]".repeat(5000));
        assert_eq!(parse(lists.as_bytes()), Err(JsonError::TooBig));
        let wide = format!(r#"{{"a":[{}1]}}"#, "1,".repeat(ELEMENTS));
        assert_eq!(parse(wide.as_bytes()), Err(JsonError::TooBig));
    }

    #[test]
    fn handlers_get_every_element_with_texts_as_strings() {
        let root = xml::parse(
            "<xml><MsgId>6074130599188426998</MsgId><EventKey></EventKey><L><item>1</item><item><b k='v'>x</b></item></L>\
             <M>t<n/></M><A p='q'/></xml>",
        )
        .unwrap();
        assert_eq!(
            message(&root).to_string(),
            r#"{"MsgId":"6074130599188426998","EventKey":"","L":{"item":["1",{"b":{"$":{"k":"v"},"_":"x"}}]},"M":{"_":"t","n":""},"A":{"$":{"p":"q"}}}"#
        );
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parser_panic(text in "(\\{|\\}|\\[|\\]|\"|:|,|\"a\"|1|-|null|true|.){0,24}") {
            if let Ok(root) = parse(text.as_bytes()) {
                prop_assert_eq!(root.name, "xml");
            }
        }
    }
}
