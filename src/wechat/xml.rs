//! XML to a tree of elements and back.
//!
//! Invariants: one root; nothing is expanded or fetched (no DOCTYPE, no processing instructions, the five predefined
//! entities and character references alone); depth, elements and attributes are bounded; `parse(render(e)) == e`.
//! Control characters, which XML forbids and users send, are preserved, and so are line ends. Errors name a position,
//! never the text. Deliberately not here: what the elements mean.

use std::borrow::Cow;

use quick_xml::XmlVersion;
use quick_xml::escape::resolve_xml_entity;
use quick_xml::events::{BytesRef, BytesStart, Event};
use quick_xml::reader::Reader;

use super::message::Element;

/// How deep elements may nest, the root counted. WeChat's deepest push has five levels.
pub(super) const DEPTH: usize = 32;
/// How many elements a text may have.
pub(super) const ELEMENTS: usize = 10_000;
/// How many attributes an element may have; the check for repeats compares each with each.
const ATTRIBUTES: usize = 32;

/// Why a text is not accepted XML.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum XmlError {
    /// The grammar is broken.
    #[error("not well-formed at byte {at}")]
    Malformed {
        /// Bytes from the start.
        at: u64,
    },
    /// A DOCTYPE or a processing instruction: nothing WeChat sends, and a way to attack parsers.
    #[error("a DOCTYPE or processing instruction at byte {at}")]
    Instruction {
        /// Bytes from the start.
        at: u64,
    },
    /// A reference that is none of XML's own five, nor a character.
    #[error("an unknown entity at byte {at}")]
    Entity {
        /// Bytes from the start.
        at: u64,
    },
    /// Too deep, too many elements or too many attributes.
    #[error("too deep or too many elements or attributes")]
    TooBig,
    /// No element, a second root, or text outside the root.
    #[error("not exactly one root element")]
    Root,
    /// The text ends before its elements do.
    #[error("an element without an end")]
    Unclosed,
}

/// Parses a text into its root element.
pub fn parse(text: &str) -> Result<Element, XmlError> {
    let mut walker = Walker::new(text);
    let mut open: Vec<OpenElement> = Vec::with_capacity(4);
    while let Some(token) = walker.next()? {
        match token {
            Token::Open(tag) => {
                let element = Element {
                    name: tag.name().into_inner().to_owned(),
                    attributes: attributes(&tag).ok_or_else(|| walker.malformed())?,
                    ..Element::default()
                };
                if let Some(parent) = open.last_mut() {
                    parent.begin_child();
                }
                open.push(OpenElement { element, only_blank: true });
            }
            Token::Text(text) => {
                if let Some(frame) = open.last_mut() {
                    frame.text(&text);
                }
            }
            Token::Reference(text) | Token::Cdata(text) => {
                if let Some(frame) = open.last_mut() {
                    frame.exact(&text);
                }
            }
            Token::Close => {
                let Some(OpenElement { element, .. }) = open.pop() else { return Err(XmlError::Root) };
                let Some(parent) = open.last_mut() else {
                    walker.finish()?;
                    return Ok(element);
                };
                parent.element.children.push(element);
            }
        }
    }
    Err(XmlError::Root)
}

/// Writes an element as WeChat does: texts in CDATA, numbers bare, a line end after each child.
///
/// Of names that XML cannot have (JSON keys can be such), blanks around them go and other characters become `_`.
pub fn render(root: &Element) -> String {
    let mut out = String::with_capacity(512);
    write_element(&mut out, root);
    out
}

/// An element whose end tag is still to come.
struct OpenElement {
    element: Element,
    /// Only blank plain text so far.
    only_blank: bool,
}

impl OpenElement {
    /// Blank text before the first child was layout, not text.
    fn begin_child(&mut self) {
        if self.element.children.is_empty() {
            // As many as most pushes have.
            self.element.children.reserve(8);
        }
        if self.only_blank {
            self.element.text.clear();
        }
    }

    fn text(&mut self, text: &str) {
        let blank = text.trim_ascii().is_empty();
        if blank && !self.element.children.is_empty() {
            return;
        }
        self.only_blank &= blank;
        self.element.text.push_str(text);
    }

    /// Adds text that is significant, blank or not.
    fn exact(&mut self, text: &str) {
        self.only_blank = false;
        self.element.text.push_str(text);
    }
}

/// A step through a text.
pub enum Token<'a> {
    /// An element begins.
    Open(BytesStart<'a>),
    /// Plain text, of which blanks may be layout.
    Text(Cow<'a, str>),
    /// A resolved reference.
    Reference(Cow<'a, str>),
    /// A CDATA section.
    Cdata(Cow<'a, str>),
    /// The innermost element ends.
    Close,
}

/// Steps through a text and refuses what this module refuses, for every reader of XML in the relay.
pub struct Walker<'a> {
    reader: Reader<&'a [u8]>,
    depth: usize,
    elements: usize,
    started: bool,
}

impl<'a> Walker<'a> {
    /// At the text's beginning.
    pub fn new(text: &'a str) -> Self {
        let mut reader = Reader::from_str(text);
        reader.config_mut().expand_empty_elements = true;
        Self { reader, depth: 0, elements: 0, started: false }
    }

    /// Whether no element came so far.
    pub(super) fn is_empty(&self) -> bool {
        self.elements == 0
    }

    /// How many elements are open.
    pub(super) fn depth(&self) -> usize {
        self.depth
    }

    /// The next step; `None` at the end of a sound text.
    #[inline]
    #[expect(clippy::should_implement_trait, reason = "it can fail, and nobody iterates past that")]
    pub fn next(&mut self) -> Result<Option<Token<'a>>, XmlError> {
        loop {
            let event = self.reader.read_event().map_err(|_| self.malformed())?;
            match event {
                Event::Start(tag) | Event::Empty(tag) => {
                    self.enter(&tag)?;
                    return Ok(Some(Token::Open(tag)));
                }
                Event::End(_) => {
                    self.depth = self.depth.checked_sub(1).ok_or(XmlError::Root)?;
                    return Ok(Some(Token::Close));
                }
                Event::Text(text) => {
                    let text = text.into_inner();
                    if self.depth > 0 {
                        return Ok(Some(Token::Text(text)));
                    }
                    if !text.trim_ascii().is_empty() {
                        return Err(XmlError::Root);
                    }
                }
                Event::CData(_) | Event::GeneralRef(_) if self.depth == 0 => return Err(XmlError::Root),
                Event::CData(text) => return Ok(Some(Token::Cdata(text.into_inner()))),
                Event::GeneralRef(reference) => {
                    let text = resolve(&reference).ok_or(XmlError::Entity { at: self.at() })?;
                    return Ok(Some(Token::Reference(text)));
                }
                // Nor may a `<` stand in the declaration: others could see a DOCTYPE in it.
                Event::Decl(declaration) if declaration.contains('<') => return Err(self.malformed()),
                Event::Decl(_) if !self.started => self.started = true,
                Event::Decl(_) | Event::PI(_) | Event::DocType(_) => {
                    return Err(XmlError::Instruction { at: self.at() });
                }
                Event::Comment(_) => {}
                Event::Eof if self.depth > 0 => return Err(XmlError::Unclosed),
                Event::Eof => return Ok(None),
            }
        }
    }

    /// Checks that nothing follows the root.
    pub fn finish(&mut self) -> Result<(), XmlError> {
        match self.next()? {
            None => Ok(()),
            Some(_) => Err(XmlError::Root),
        }
    }

    fn enter(&mut self, tag: &BytesStart<'_>) -> Result<(), XmlError> {
        if self.depth == 0 && self.elements > 0 {
            return Err(XmlError::Root);
        }
        // The parser accepts a `<` in an attribute's value; XML forbids it, and other readers see a tag.
        if !is_name(tag.name().into_inner()) || tag.attributes_raw().contains('<') {
            return Err(self.malformed());
        }
        self.started = true;
        self.depth += 1;
        self.elements += 1;
        if self.depth > DEPTH || self.elements > ELEMENTS { Err(XmlError::TooBig) } else { Ok(()) }
    }

    fn at(&self) -> u64 {
        self.reader.buffer_position()
    }

    /// A grammar error at this position.
    pub fn malformed(&self) -> XmlError {
        XmlError::Malformed { at: self.at() }
    }
}

fn resolve(reference: &BytesRef<'_>) -> Option<Cow<'static, str>> {
    if reference.is_char_ref() {
        return reference.resolve_char_ref().ok()?.map(|c| Cow::Owned(c.to_string()));
    }
    resolve_xml_entity(reference).map(Cow::Borrowed)
}

/// An element's attributes in order; `None` if they are malformed.
pub fn attributes(tag: &BytesStart<'_>) -> Option<Vec<(String, String)>> {
    if tag.attributes_raw().trim_ascii().is_empty() {
        return Some(Vec::new());
    }
    let mut found: Vec<(String, String)> = Vec::new();
    // The reader's own check for repeats has no bound.
    for attribute in tag.attributes().with_checks(false) {
        let attribute = attribute.ok()?;
        let name = attribute.key.into_inner();
        let repeated = found.iter().any(|(known, _)| known == name);
        if found.len() == ATTRIBUTES || repeated || !is_name(name) {
            return None;
        }
        let value = attribute.normalized_value(XmlVersion::Implicit1_0).ok()?;
        found.push((name.to_owned(), value.into_owned()));
    }
    Some(found)
}

/// A little wider than XML's rule: any character beyond ASCII is accepted.
#[inline]
fn is_name(name: &str) -> bool {
    name.bytes().next().is_some_and(begins_name) && name.bytes().all(continues_name)
}

fn begins_name(byte: u8) -> bool {
    NAME_BYTES[usize::from(byte)] == 2
}

fn continues_name(byte: u8) -> bool {
    NAME_BYTES[usize::from(byte)] >= 1
}

/// What a byte may do in a name: 2 start it, 1 continue it, 0 neither.
const NAME_BYTES: [u8; 256] = {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        table[byte] = match byte as u8 {
            b'A'..=b'Z' | b'a'..=b'z' | b'_' | b':' | 0x80.. => 2,
            b'0'..=b'9' | b'-' | b'.' => 1,
            _ => 0,
        };
        byte += 1;
    }
    table
};

fn write_element(out: &mut String, element: &Element) {
    out.push('<');
    write_name(out, &element.name);
    for (name, value) in &element.attributes {
        out.push(' ');
        write_name(out, name);
        out.push_str("=\"");
        write_value(out, value);
        out.push('"');
    }
    out.push('>');
    let number = !element.text.is_empty() && element.text.bytes().all(|byte| byte.is_ascii_digit());
    if number {
        out.push_str(&element.text);
    } else if element.children.is_empty() || !element.text.is_empty() {
        write_text(out, &element.text);
    }
    for child in &element.children {
        write_element(out, child);
        out.push('\n');
    }
    out.push_str("</");
    write_name(out, &element.name);
    out.push('>');
}

/// One CDATA section; where the text has `]]>`, which would end it, one more.
pub(super) fn write_text(out: &mut String, text: &str) {
    out.push_str("<![CDATA[");
    let mut parts = text.split("]]>");
    out.push_str(parts.next().unwrap_or_default());
    for part in parts {
        out.push_str("]]]]><![CDATA[>");
        out.push_str(part);
    }
    out.push_str("]]>");
}

fn write_name(out: &mut String, name: &str) {
    if is_name(name) {
        out.push_str(name);
        return;
    }
    let name = name.trim_ascii();
    if name.bytes().next().is_none_or(|first| continues_name(first) && !begins_name(first)) {
        out.push('_');
    }
    out.extend(name.chars().map(|c| if c.is_ascii() && !continues_name(c as u8) { '_' } else { c }));
}

fn write_value(out: &mut String, value: &str) {
    for c in value.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            // Unescaped, a reader would turn them into blanks.
            '\n' => out.push_str("&#10;"),
            '\r' => out.push_str("&#13;"),
            '\t' => out.push_str("&#9;"),
            _ => out.push(c),
        }
    }
}

#[cfg(test)]
#[path = "xml_tests.rs"]
mod tests;
