//! A line of coloured texts, measured in columns of a terminal. Pure.
//!
//! Texts are escaped when they are added, so what is measured is what is shown, and a line may be written as it is.

use std::borrow::Cow;

use unicode_width::UnicodeWidthChar as _;

use crate::escape;

/// What stands for a text's middle. Not U+2026, which is two columns wide on many Chinese terminals.
const GAP: &str = "..";

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::cli) enum Color {
    #[default]
    Plain,
    Bold,
    Dim,
    Red,
    Green,
    Yellow,
    Magenta,
}

impl Color {
    fn code(self) -> &'static str {
        match self {
            Self::Plain => "",
            Self::Bold => "\x1b[1m",
            Self::Dim => "\x1b[2m",
            Self::Red => "\x1b[31m",
            Self::Green => "\x1b[32m",
            Self::Yellow => "\x1b[33m",
            Self::Magenta => "\x1b[35m",
        }
    }
}

/// The columns that a text without control characters takes.
pub(super) fn width(text: &str) -> usize {
    text.chars().map(sign_width).sum()
}

fn sign_width(sign: char) -> usize {
    sign.width().unwrap_or(0)
}

/// A line, or a part of one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::cli) struct StyledLine(Vec<(String, Color)>);

impl StyledLine {
    pub(in crate::cli) fn new(text: &str, color: Color) -> Self {
        Self::default().with(text, color)
    }

    pub(in crate::cli) fn plain(text: &str) -> Self {
        Self::new(text, Color::Plain)
    }

    /// Adds a text.
    pub(in crate::cli) fn with(mut self, text: &str, color: Color) -> Self {
        self.push(text, color);
        self
    }

    pub(in crate::cli) fn push(&mut self, text: &str, color: Color) {
        if !text.is_empty() {
            self.0.push((escape::line(text).into_owned(), color));
        }
    }

    pub(in crate::cli) fn append(&mut self, other: Self) {
        self.0.extend(other.0);
    }

    /// Adds blanks up to a width.
    pub(in crate::cli) fn pad_to(&mut self, columns: usize) {
        self.push(&" ".repeat(columns.saturating_sub(self.width())), Color::Plain);
    }

    pub(in crate::cli) fn width(&self) -> usize {
        self.0.iter().map(|(text, _)| width(text)).sum()
    }

    pub(in crate::cli) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The line in at most `limit` columns; `..` stands for what is left out of its middle.
    pub(in crate::cli) fn elide(self, limit: usize) -> Self {
        let kept = limit.saturating_sub(GAP.len());
        self.cut(limit, kept.div_ceil(2), kept / 2)
    }

    /// The same, with `..` for its end.
    pub(in crate::cli) fn truncate(self, limit: usize) -> Self {
        self.cut(limit, limit.saturating_sub(GAP.len()), 0)
    }

    fn cut(self, limit: usize, front: usize, back: usize) -> Self {
        if self.width() <= limit {
            return self;
        }
        let signs: Vec<(char, Color)> =
            self.0.iter().flat_map(|(text, color)| text.chars().map(|sign| (sign, *color))).collect();
        let mut cut = Self::default();
        let taken = fitting(signs.iter(), front);
        signs[..taken].iter().for_each(|(sign, color)| cut.push_sign(*sign, *color));
        cut.push(&GAP[..GAP.len().min(limit)], Color::Dim);
        let taken = fitting(signs.iter().rev(), back);
        signs[signs.len() - taken..].iter().for_each(|(sign, color)| cut.push_sign(*sign, *color));
        cut
    }

    fn push_sign(&mut self, sign: char, color: Color) {
        match self.0.last_mut() {
            Some((text, last)) if *last == color => text.push(sign),
            _ => self.0.push((sign.into(), color)),
        }
    }

    /// The text, with the codes of its colours if `color`.
    pub(in crate::cli) fn encode(&self, color: bool) -> String {
        let mut text = String::new();
        for (part, of) in &self.0 {
            let code = if color { of.code() } else { "" };
            text += code;
            text += part;
            text += if code.is_empty() { "" } else { "\x1b[0m" };
        }
        text.truncate(text.trim_end_matches(' ').len());
        text
    }
}

/// The words of a text on lines of at most `limit` columns, each after the first behind a margin of blanks.
pub(in crate::cli) fn wrap(text: &str, limit: usize, margin: usize) -> String {
    let text = escape::line(text);
    let limit = limit.max(margin + 2);
    let (mut wrapped, mut end) = (String::new(), 0);
    for (number, word) in text.split(' ').enumerate() {
        let needed = width(word) + usize::from(end > 0);
        if end > margin && end + needed > limit {
            wrapped.push('\n');
            wrapped += &" ".repeat(margin);
            end = margin;
        } else if number > 0 {
            wrapped.push(' ');
            end += 1;
        }
        for sign in word.chars() {
            // A word that is longer than a line is broken anywhere.
            if end + sign_width(sign) > limit {
                wrapped.push('\n');
                wrapped += &" ".repeat(margin);
                end = margin;
            }
            wrapped.push(sign);
            end += sign_width(sign);
        }
    }
    wrapped
}

impl From<&str> for StyledLine {
    fn from(text: &str) -> Self {
        Self::plain(text)
    }
}

impl From<String> for StyledLine {
    fn from(text: String) -> Self {
        Self::plain(&text)
    }
}

impl From<Cow<'_, str>> for StyledLine {
    fn from(text: Cow<'_, str>) -> Self {
        Self::plain(&text)
    }
}

/// How many of these characters fit into that many columns.
fn fitting<'s>(signs: impl Iterator<Item = &'s (char, Color)>, columns: usize) -> usize {
    let mut left = columns;
    signs
        .take_while(|(sign, _)| {
            let fits = sign_width(*sign) <= left;
            left = if fits { left - sign_width(*sign) } else { 0 };
            fits
        })
        .count()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn elided(text: &str, limit: usize) -> String {
        StyledLine::plain(text).elide(limit).encode(false)
    }

    #[test]
    fn the_middle_is_elided_by_columns_and_not_by_characters() {
        assert_eq!(elided("evt_1a1fe9c9a6a00000", 20), "evt_1a1fe9c9a6a00000");
        assert_eq!(elided("evt_1a1fe9c9a6a00000", 12), "evt_1..00000");
        assert_eq!(width("菜单_订单查询"), 13);
        assert_eq!(elided("菜单_订单查询", 13), "菜单_订单查询");
        assert_eq!(elided("菜单_订单查询", 9), "菜单..询", "half a character is none");
        assert_eq!([3, 2, 1, 0].map(|limit| elided("abcd", limit)), ["a..", "..", ".", ""]);
        assert_eq!(StyledLine::plain("订单abc").truncate(5).encode(false), "订..");
    }

    #[test]
    fn colours_follow_their_text_and_are_left_out_on_request() {
        let line = StyledLine::new("crm", Color::Plain).with(" ", Color::Plain).with("dead\x1b[2J", Color::Red);
        assert_eq!(line.encode(true), "crm \x1b[31mdead\\u001b[2J\x1b[0m");
        assert_eq!(line.encode(false), "crm dead\\u001b[2J");
        assert_eq!(line.elide(9).encode(true), "crm \x1b[2m..\x1b[0m\x1b[31m[2J\x1b[0m");
    }

    #[test]
    fn a_text_is_wrapped_at_blanks_and_long_words_anywhere() {
        assert_eq!(wrap("one two three", 8, 2), "one two\n  three");
        assert_eq!(wrap("a 订单系统的错误", 8, 2), "a 订单系\n  统的错\n  误");
        assert_eq!(wrap("a\nb", 80, 2), "a\\nb");
        assert_eq!(wrap("   ! one two", 8, 5), "   ! one\n     two");
    }

    proptest! {
        #[test]
        fn a_shortened_line_is_never_wider_than_its_limit(texts: Vec<String>, limit in 0_usize..40) {
            let line = texts.iter().fold(StyledLine::default(), |line, text| line.with(text, Color::Red));
            prop_assert!(line.clone().elide(limit).width() <= limit);
            prop_assert!(line.truncate(limit).width() <= limit);
        }

        #[test]
        fn a_wrapped_line_is_never_wider_than_its_limit(text: String, limit in 12_usize..40) {
            prop_assert!(wrap(&text, limit, 10).lines().all(|line| width(line) <= limit));
        }
    }
}
