//! `authing-json`: the push's XML as Authing's Mode 2 sample forwards it.
//!
//! That sample (Authing/authing-wechat-official-account) parses the body with express-xml-bodyparser 0.3.0, that is
//! xml2js 0.4.23 with `explicitArray`, `normalize`, `normalizeTags` and `trim`, and posts what comes out: names in
//! lower case, every value in an array, texts trimmed with inner runs of blanks made one. The golden cases of
//! `tests/data/authing` were made by the package itself.

use serde_json::{Map, Value};

use super::{EncodeError, Encoded};
use crate::event::Event;
use crate::wechat::message::notation;
use crate::wechat::xml::{self, Token, Walker};
use crate::wechat::{MessageError, Syntax, XmlError, json};

pub(super) fn encode(event: &Event) -> Result<Encoded, EncodeError> {
    let tree = match notation(&event.body).map_err(EncodeError::Stored)? {
        (text, Syntax::Xml) => parse(text),
        (text, Syntax::Json) => {
            let root = json::parse(text.as_bytes()).map_err(|error| EncodeError::Stored(error.into()))?;
            parse(&xml::render(&root))
        }
    };
    let tree = tree.map_err(|error| EncodeError::Stored(MessageError::Xml(error)))?;
    Ok(Encoded { query: None, content_type: "application/json", body: serde_json::to_vec(&tree)?.into() })
}

/// An element under construction, as in xml2js.
#[derive(Default)]
struct PendingNode {
    name: String,
    text: String,
    has_cdata: bool,
    attributes: Map<String, Value>,
    children: Map<String, Value>,
}

fn parse(text: &str) -> Result<Value, XmlError> {
    let mut walker = Walker::new(text);
    let mut open: Vec<PendingNode> = Vec::new();
    while let Some(token) = walker.next()? {
        match token {
            Token::Open(tag) => {
                let attributes = xml::attributes(&tag).ok_or_else(|| walker.malformed())?;
                let attributes = attributes.into_iter().map(|(name, value)| (name, Value::String(value))).collect();
                open.push(PendingNode {
                    name: tag.name().into_inner().to_lowercase(),
                    attributes,
                    ..PendingNode::default()
                });
            }
            Token::Text(piece) | Token::Reference(piece) => append(&mut open, &piece, false),
            Token::Cdata(piece) => append(&mut open, &piece, true),
            Token::Close => {
                let Some(node) = open.pop() else { return Err(XmlError::Root) };
                let (name, value) = (node.name.clone(), node.value());
                let Some(parent) = open.last_mut() else {
                    walker.finish()?;
                    return Ok(Value::Object(Map::from_iter([(name, value)])));
                };
                parent.add(name, value);
            }
        }
    }
    Err(XmlError::Root)
}

fn append(open: &mut [PendingNode], piece: &str, cdata: bool) {
    if let Some(node) = open.last_mut() {
        node.text.push_str(piece);
        // An empty CDATA section is no event in sax, on which xml2js is based.
        node.has_cdata |= cdata && !piece.is_empty();
    }
}

impl PendingNode {
    /// Adds a value; one of a repeated name goes into the array of the first.
    fn add(&mut self, name: String, value: Value) {
        match self.children.get_mut(&name) {
            Some(Value::Array(values)) => values.push(value),
            _ => drop(self.children.insert(name, Value::Array(vec![value]))),
        }
    }

    fn value(self) -> Value {
        let blank = self.text.chars().all(is_js_space);
        let bare = self.attributes.is_empty() && self.children.is_empty();
        if blank && !self.has_cdata && bare {
            return Value::String(self.text);
        }
        let text = Value::String(normalize(&self.text));
        if bare {
            return text;
        }
        let mut object = Map::new();
        if !blank || self.has_cdata {
            object.insert("_".into(), text);
        }
        if !self.attributes.is_empty() {
            object.insert("$".into(), Value::Object(self.attributes));
        }
        object.extend(self.children);
        Value::Object(object)
    }
}

/// JavaScript's `text.trim().replace(/\s{2,}/g, " ").trim()`.
fn normalize(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text.trim_matches(is_js_space);
    while let Some(start) = rest.find(is_js_space) {
        let run = rest[start..].find(|c| !is_js_space(c)).unwrap_or(rest.len() - start);
        out.push_str(&rest[..start]);
        let single = rest[start..start + run].chars().nth(1).is_none();
        out.push_str(if single { &rest[start..start + run] } else { " " });
        rest = &rest[start + run..];
    }
    out.push_str(rest);
    out
}

/// What `\s` and `trim` mean in JavaScript: white space and line terminators, and the byte-order mark.
fn is_js_space(c: char) -> bool {
    (c.is_whitespace() && c != '\u{85}') || c == '\u{feff}'
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(serde::Deserialize)]
    struct Case {
        name: String,
        xml: String,
        json: String,
    }

    /// Each case was made by express-xml-bodyparser itself.
    #[test]
    fn writes_what_authings_own_parser_makes_of_a_push() {
        let cases: Vec<Case> = serde_json::from_str(include_str!("../../../tests/data/authing/cases.json")).unwrap();
        assert!(cases.len() >= 25);
        for case in cases {
            if case.name == "comments and processing instructions" {
                // No push that the relay accepts has one.
                assert!(parse(&case.xml).is_err());
                continue;
            }
            let json = serde_json::to_string(&parse(notation(case.xml.as_bytes()).unwrap().0).unwrap()).unwrap();
            assert_eq!(json, case.json, "{}", case.name);
        }
    }
}
