//! The outer body: what surrounds an encrypted text, in pushes and in replies.
//!
//! Invariants: one pass, no tree for XML; the same rules as for any XML that the relay reads; each field at most once,
//! since two readers could choose different ones. None of it is authentic before a signature over `encrypt` matches.

use std::borrow::Cow;

use super::json;
use super::message::{MessageError, Syntax, notation};
use super::xml::{Token, Walker, XmlError};

/// A field of an outer body.
#[derive(Clone, Copy)]
pub(super) enum OuterField {
    ToUserName,
    Encrypt,
    MsgSignature,
    TimeStamp,
    Nonce,
}

impl OuterField {
    const ALL: [Self; 5] = [Self::ToUserName, Self::Encrypt, Self::MsgSignature, Self::TimeStamp, Self::Nonce];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::ToUserName => "ToUserName",
            Self::Encrypt => "Encrypt",
            Self::MsgSignature => "MsgSignature",
            Self::TimeStamp => "TimeStamp",
            Self::Nonce => "Nonce",
        }
    }

    fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|field| field.name() == name)
    }
}

/// The fields that matter; other elements (in compatible mode the clear ones) are skipped.
#[derive(Default)]
pub(super) struct OuterBody<'a>([Option<Cow<'a, str>>; OuterField::ALL.len()]);

/// Why a body is not an outer body.
pub(super) enum OuterError {
    Body(MessageError),
    Repeated(OuterField),
}

impl From<XmlError> for OuterError {
    fn from(error: XmlError) -> Self {
        Self::Body(error.into())
    }
}

impl<'a> OuterBody<'a> {
    /// Reads the fields of a body and its notation.
    pub(super) fn read(body: &'a [u8]) -> Result<(Self, Syntax), OuterError> {
        let (text, syntax) = notation(body).map_err(OuterError::Body)?;
        let outer = match syntax {
            Syntax::Xml => Self::of_xml(text)?,
            Syntax::Json => Self::of_json(text)?,
        };
        Ok((outer, syntax))
    }

    /// A field's text, without the line ends that a printer may put around a CDATA section.
    pub(super) fn get(&self, field: OuterField) -> Option<&str> {
        self.0[field as usize].as_deref().map(str::trim_ascii)
    }

    fn of_xml(text: &'a str) -> Result<Self, OuterError> {
        let mut outer = Self::default();
        let mut current = None;
        let mut walker = Walker::new(text);
        while let Some(token) = walker.next()? {
            match token {
                Token::Open(tag) => {
                    current = if walker.depth() == 2 { OuterField::named(tag.name().into_inner()) } else { None };
                    if let Some(field) = current {
                        outer.set(field, Cow::Borrowed(""))?;
                    }
                }
                Token::Text(text) | Token::Reference(text) | Token::Cdata(text) => {
                    if let Some(slot) = current.and_then(|field| outer.0[field as usize].as_mut()) {
                        append(slot, text);
                    }
                }
                Token::Close => current = None,
            }
        }
        if walker.is_empty() { Err(XmlError::Root.into()) } else { Ok(outer) }
    }

    fn of_json(text: &str) -> Result<Self, OuterError> {
        let root = json::parse(text.as_bytes()).map_err(|error| OuterError::Body(error.into()))?;
        let mut outer = Self::default();
        for child in root.children {
            if let Some(field) = OuterField::named(&child.name) {
                outer.set(field, Cow::Owned(child.text))?;
            }
        }
        Ok(outer)
    }

    fn set(&mut self, field: OuterField, text: Cow<'a, str>) -> Result<(), OuterError> {
        match self.0[field as usize].replace(text) {
            None => Ok(()),
            Some(_) => Err(OuterError::Repeated(field)),
        }
    }
}

fn append<'a>(slot: &mut Cow<'a, str>, text: Cow<'a, str>) {
    if slot.is_empty() {
        *slot = text;
    } else {
        slot.to_mut().push_str(&text);
    }
}
