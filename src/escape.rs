//! Text of others, made safe to print: what WeChat, a target, a certificate or another program sent must not be able to
//! move the cursor of a terminal, reorder or hide what stands beside it, or look like a line of ours.
//!
//! One rule for commands, errors and logs. An escape is written as JSON writes it (`\u001b`), so a JSON document may be
//! escaped as a whole and stays the same document. Deliberately not here: where a command prints (`cli::output`).

#![warn(missing_docs)]

use std::borrow::Cow;
use std::fmt::Write as _;
use std::io;

/// Whether a terminal might obey a character, or not show it, instead of showing it.
///
/// The joiner U+200D is shown: emoji are made with it.
fn is_unsafe(sign: char) -> bool {
    sign.is_control()
        || matches!(sign,
            // Soft hyphen, Arabic letter mark, Mongolian vowel separator.
            '\u{ad}' | '\u{61c}' | '\u{180e}'
            // Zero-width space and non-joiner, left-to-right and right-to-left mark.
            | '\u{200b}' | '\u{200c}' | '\u{200e}' | '\u{200f}'
            // Line and paragraph separator, embeddings and overrides of direction.
            | '\u{2028}'..='\u{202e}'
            // Invisible operators, isolates, deprecated format characters.
            | '\u{2060}'..='\u{206f}'
            // Byte order mark, interlinear annotations, tags.
            | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

/// The text on one line, whatever is in it.
pub fn line(text: &str) -> Cow<'_, str> {
    escape(text, is_unsafe)
}

/// The text on lines of its own, each after the first begun with `margin`, so that none looks like one of ours.
pub fn block(text: &str, margin: &str) -> String {
    let lines: Vec<_> = text.trim_end_matches('\n').split('\n').map(|one| line(one.trim_end_matches('\r'))).collect();
    lines.join(&format!("\n{margin}"))
}

/// Our own lines, with texts of others in them that were made lines before, or JSON.
fn lines(text: &str) -> Cow<'_, str> {
    escape(text, |sign| sign != '\n' && is_unsafe(sign))
}

fn escape(text: &str, is_escaped: impl Fn(char) -> bool) -> Cow<'_, str> {
    // Most texts. No early exit, so that the compiler vectorises it: a log line pays for it with every push.
    if !text.bytes().fold(false, |found, byte| found | !(0x20..0x7f).contains(&byte)) {
        return Cow::Borrowed(text);
    }
    let Some(first) = text.find(&is_escaped) else { return Cow::Borrowed(text) };
    let mut safe = String::with_capacity(text.len() + 16);
    safe.push_str(&text[..first]);
    for sign in text[first..].chars() {
        match sign {
            sign if !is_escaped(sign) => safe.push(sign),
            '\n' => safe.push_str("\\n"),
            '\r' => safe.push_str("\\r"),
            '\t' => safe.push_str("\\t"),
            sign => {
                for unit in sign.encode_utf16(&mut [0; 2]) {
                    // Writing to a String cannot fail.
                    write!(safe, "\\u{unit:04x}").ok();
                }
            }
        }
    }
    Cow::Owned(safe)
}

/// A writer to a terminal, or to a pager in front of one: everything but the line feed is escaped.
///
/// Write whole texts: a write is escaped by itself, and formatted text is written in one piece.
#[derive(Debug)]
pub struct EscapingWriter<W>(pub W);

impl<W: io::Write> EscapingWriter<W> {
    /// Writes a text of ours without escaping it, such as the codes of a colour.
    ///
    /// # Errors
    /// Those of the writer.
    pub fn write_own(&mut self, text: &'static str) -> io::Result<()> {
        self.0.write_all(text.as_bytes())
    }

    /// Writes a text on one line, whatever is in it.
    ///
    /// # Errors
    /// Those of the writer.
    pub fn write_line(&mut self, text: &str) -> io::Result<()> {
        let mut text = line(text).into_owned();
        text.push('\n');
        self.0.write_all(text.as_bytes())
    }
}

impl<W: io::Write> io::Write for EscapingWriter<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write_all(lines(&String::from_utf8_lossy(bytes)).as_bytes())?;
        Ok(bytes.len())
    }

    /// The simple version, the trait's own, writes each part by itself: others could print between them.
    fn write_fmt(&mut self, text: std::fmt::Arguments<'_>) -> io::Result<()> {
        self.0.write_all(lines(&text.to_string()).as_bytes())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_a_terminal_would_obey_is_shown() {
        for (text, shown) in [
            ("\x1b]0;pwned\x07", "\\u001b]0;pwned\\u0007"),
            ("\u{9b}31m\u{7f}\0", "\\u009b31m\\u007f\\u0000"),
            ("a\u{202e}b\u{2066}c\u{200e}", "a\\u202eb\\u2066c\\u200e"),
            ("a\r\nFAKE\tb\u{2028}c\u{85}d", "a\\r\\nFAKE\\tb\\u2028c\\u0085d"),
            ("\u{e0041}", "\\udb40\\udc41"),
            ("你好 \"é\" \\ 👩\u{200d}👧 ', '", "你好 \"é\" \\ 👩\u{200d}👧 ', '"),
        ] {
            assert_eq!(line(text), shown);
        }
    }

    #[test]
    fn no_line_of_a_block_begins_as_one_of_ours() {
        assert_eq!(block("a\r\nb\x1b\n\nc\n", "  | "), "a\n  | b\\u001b\n  | \n  | c");
    }

    #[test]
    fn a_writer_keeps_our_lines_and_a_document_of_json_its_meaning() {
        let mut written = EscapingWriter(Vec::new());
        let document = serde_json::json!({ "key": "\u{9b}2J\u{202e}\n\u{e0041}\x1b" });
        let clear_screen = "\u{1b}[2J";
        write!(written, "{document:#}\n{clear_screen}").unwrap();
        written.write_all(b"\xffz\x9b").unwrap();
        let text = String::from_utf8(written.0).unwrap();
        let (json, rest) = text.split_at(text.rfind('}').unwrap() + 1);
        assert!(json.lines().count() == 3 && !json.contains(is_unsafe_beside_line_feed), "{json:?}");
        assert_eq!(serde_json::from_str::<serde_json::Value>(json).unwrap(), document);
        assert_eq!(rest, "\n\\u001b[2J\u{fffd}z\u{fffd}");
    }

    fn is_unsafe_beside_line_feed(sign: char) -> bool {
        sign != '\n' && is_unsafe(sign)
    }

    proptest! {
        #[test]
        fn no_text_gets_through_unescaped(text: String) {
            prop_assert!(!line(&text).contains(is_unsafe));
            prop_assert!(!lines(&text).contains(is_unsafe_beside_line_feed));
            prop_assert!(block(&text, "| ").split('\n').skip(1).all(|line| line.starts_with("| ")));
        }
    }
}
