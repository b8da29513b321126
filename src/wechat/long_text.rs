//! Texts that are longer than WeChat takes: cut, or split into pieces.
//!
//! Invariants: no piece is longer than [`MAX_TEXT`] bytes or blank; none ends within a character; joined, without what is
//! appended, the pieces are the text, but for blanks that would make a piece of their own.

use std::borrow::Cow;
use std::sync::Arc;

use super::message::Message;
use super::reply::{MAX_TEXT, Reply, ReplyBody, legal};

/// The most bytes of a reply that are held.
pub const MAX_CONTENT: usize = 64 * 1024;
const ELLIPSIS: &str = "…";

/// What is done with a text that is too long.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum LongText {
    /// It ends with an ellipsis.
    #[default]
    Cut,
    /// It is sent in pieces; each but the last ends with this text.
    Split(Option<Arc<str>>),
}

/// A part of a text, as it is sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece<'a> {
    /// What is sent.
    pub text: Cow<'a, str>,
    /// Up to which byte the text is sent with it; `None`: to the end.
    pub end: Option<usize>,
    /// Whether the rest is left out.
    pub is_cut: bool,
}

/// A reply without what depends on the push that it answers, as it is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReplyContent {
    /// A text of any length.
    Text(String),
    /// A reply of another kind, rendered.
    Rendered(String),
}

impl ReplyContent {
    /// The content of a reply to this push.
    pub fn of(reply: Reply, message: &Message, now_seconds: i64) -> Self {
        match reply.body {
            ReplyBody::Text { content } => Self::Text(legal(&content)),
            _ => Self::Rendered(reply.render(message, now_seconds)),
        }
    }

    /// As it is stored.
    pub fn encode(&self) -> String {
        match self {
            Self::Text(text) => format!("t{text}"),
            Self::Rendered(text) => format!("r{text}"),
        }
    }

    /// Reads what [`ReplyContent::encode`] wrote.
    pub fn decode(stored: &str) -> Option<Self> {
        let text = stored.get(1..)?.to_owned();
        match stored.as_bytes().first()? {
            b't' => Some(Self::Text(text)),
            b'r' => Some(Self::Rendered(text)),
            _ => None,
        }
    }

    /// Cuts a text of more than [`MAX_CONTENT`] bytes; true if that was needed.
    pub fn limit(&mut self) -> bool {
        match self {
            Self::Text(text) if text.len() > MAX_CONTENT => {
                *text = cut(text, MAX_CONTENT).into_owned();
                true
            }
            Self::Text(_) | Self::Rendered(_) => false,
        }
    }

    /// The clear reply to this push with the next piece, behind the first `taken` bytes.
    pub fn next(&self, long_text: &LongText, taken: usize, message: &Message, now_seconds: i64) -> NextReply {
        match self {
            Self::Text(text) => {
                let Piece { text, end, is_cut } = long_text.piece(text, taken);
                let reply = Reply::new(ReplyBody::Text { content: text.into_owned() });
                NextReply { clear: reply.render(message, now_seconds), end, is_cut }
            }
            Self::Rendered(clear) => NextReply { clear: clear.clone(), end: None, is_cut: false },
        }
    }
}

/// What is sent of a reply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NextReply {
    /// The clear reply.
    pub clear: String,
    /// Up to which byte the content is sent with it; `None`: to the end.
    pub end: Option<usize>,
    /// Whether the rest is left out.
    pub is_cut: bool,
}

impl LongText {
    /// The next piece of a text, behind its first `from` bytes.
    pub fn piece<'a>(&self, text: &'a str, from: usize) -> Piece<'a> {
        let rest = text.get(from..).unwrap_or_default();
        if rest.len() <= MAX_TEXT {
            return Piece { text: Cow::Borrowed(rest), end: None, is_cut: false };
        }
        let Self::Split(more) = self else {
            return Piece { text: cut(rest, MAX_TEXT), end: None, is_cut: true };
        };
        // A piece of blanks alone would be illegal: it goes with none.
        let blank = rest.len() - rest.trim_start().len();
        let (skipped, rest) = if blank >= MAX_TEXT / 4 { (blank, rest.trim_start()) } else { (0, rest) };
        if rest.trim_end().len() <= MAX_TEXT {
            let last = if rest.len() <= MAX_TEXT { rest } else { rest.trim_end() };
            return Piece { text: Cow::Borrowed(last), end: None, is_cut: false };
        }
        let more = more.as_deref().unwrap_or_default();
        let length = split_at(rest, MAX_TEXT.saturating_sub(more.len()).max(MAX_TEXT / 4));
        let piece = rest.get(..length).unwrap_or_default();
        if rest.get(length..).unwrap_or_default().trim().is_empty() {
            return Piece { text: Cow::Borrowed(piece), end: None, is_cut: false };
        }
        let text = if more.is_empty() { Cow::Borrowed(piece) } else { Cow::Owned(format!("{piece}{more}")) };
        Piece { text, end: Some(from + skipped + length), is_cut: false }
    }
}

/// The text; if it is longer than `most` bytes, cut to that at a character, with an ellipsis.
fn cut(text: &str, most: usize) -> Cow<'_, str> {
    if text.len() <= most {
        return Cow::Borrowed(text);
    }
    let end = text.floor_char_boundary(most - ELLIPSIS.len());
    Cow::Owned(format!("{}{ELLIPSIS}", text.get(..end).unwrap_or_default().trim_end()))
}

/// Where a text is split, at most at that byte: behind a paragraph, a line or a sentence of its second half, else behind a
/// blank, else behind a character.
fn split_at(text: &str, most: usize) -> usize {
    let end = text.floor_char_boundary(most);
    let window = text.get(..end).unwrap_or_default();
    let least = window.floor_char_boundary(end / 2);
    let late = window.get(least..).unwrap_or_default();
    let behind = |mark: &str| late.rfind(mark).map(|at| least + at + mark.len());
    behind("\n\n")
        .or_else(|| behind("\n"))
        .or_else(|| sentence_end(late).map(|at| least + at))
        .or_else(|| behind(" "))
        .unwrap_or(end)
}

/// Behind the last sentence.
fn sentence_end(text: &str) -> Option<usize> {
    let mut last = None;
    let mut chars = text.char_indices().peekable();
    while let Some((at, mark)) = chars.next() {
        let is_end = match mark {
            '。' | '！' | '？' | '；' | '…' => true,
            '.' | '!' | '?' => chars.peek().is_some_and(|(_, next)| next.is_whitespace()),
            _ => false,
        };
        if is_end {
            last = Some(at + mark.len_utf8());
        }
    }
    last
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn pieces(long_text: &LongText, text: &str) -> Vec<String> {
        let (mut from, mut all) = (0, Vec::new());
        loop {
            let piece = long_text.piece(text, from);
            all.push(piece.text.clone().into_owned());
            match piece.end {
                Some(end) => {
                    assert!(end > from, "it goes on");
                    from = end;
                }
                None => return all,
            }
        }
    }

    fn push() -> Message {
        let xml = "<xml><ToUserName>gh_1</ToUserName><FromUserName>o1</FromUserName><MsgType>text</MsgType></xml>";
        Message::parse(xml.as_bytes()).unwrap()
    }

    #[test]
    fn a_text_is_split_at_paragraphs_then_lines_then_sentences_then_characters() {
        let split = LongText::Split(None);
        let words = |end: &str| format!("{}{end}{}", "字".repeat(600), "尾".repeat(300));
        for (end, kept) in [("\n\n", 1802), ("\n", 1801), ("。", 1803), (". ", 1801), ("", 2046)] {
            let text = words(end);
            let all = pieces(&split, &text);
            assert_eq!((all.len(), all[0].len()), (2, kept), "{end:?}");
            assert_eq!(all.concat(), text);
        }
    }

    #[test]
    fn a_cut_text_ends_with_an_ellipsis_at_a_character() {
        let text = "字".repeat(700);
        let Piece { text, end, is_cut } = LongText::Cut.piece(&text, 0);
        assert!(is_cut && end.is_none() && text.ends_with("字…") && text.len() <= MAX_TEXT, "{}", text.len());
        assert!(text.len() > MAX_TEXT - 6);
        let short = LongText::Cut.piece("short", 0);
        assert_eq!((&*short.text, short.is_cut), ("short", false));
    }

    #[test]
    fn what_is_appended_counts_and_comes_with_each_piece_but_the_last() {
        let more: Arc<str> = "（回复 1 看后文）".into();
        let all = pieces(&LongText::Split(Some(more.clone())), &"好".repeat(2000));
        let (last, others) = all.split_last().unwrap();
        assert!(others.len() == 2 && others.iter().all(|piece| piece.ends_with(&*more) && piece.len() <= MAX_TEXT));
        assert!(!last.ends_with(&*more));
    }

    #[test]
    fn no_piece_is_blank() {
        let text = format!("a{}b{}", " ".repeat(9000), "\n".repeat(9000));
        let all = pieces(&LongText::Split(None), &text);
        assert!(all.iter().all(|piece| !piece.trim().is_empty() && piece.len() <= MAX_TEXT), "{all:?}");
        assert_eq!(all.concat().split_whitespace().collect::<String>(), "ab");
    }

    #[test]
    fn a_stored_content_is_read_as_it_was_written() {
        for content in [ReplyContent::Text("hi".into()), ReplyContent::Rendered("<xml/>".into())] {
            assert_eq!(ReplyContent::decode(&content.encode()), Some(content));
        }
        assert_eq!(ReplyContent::decode(""), None);
        let mut long = ReplyContent::Text("é".repeat(MAX_CONTENT));
        assert!(long.limit() && !long.limit());
    }

    proptest! {
        #[test]
        fn pieces_are_short_and_joined_are_the_text(
            text in prop::collection::vec(
                prop_oneof!["[a-z]{1,300}", "[\u{4e00}-\u{9fff}]{1,300}", Just("]]>".to_owned()), Just("。".to_owned()),
                    Just("\n\n".to_owned()), Just(". ".to_owned()), Just("👩‍👩‍👧".to_owned())], 1..60),
            more in prop::option::of("[a-z]{1,40}|（回复 1）"),
        ) {
            let text = text.concat();
            prop_assume!(!text.trim().is_empty());
            let more: Option<Arc<str>> = more.map(Into::into);
            let all = pieces(&LongText::Split(more.clone()), &text);
            let (last, others) = all.split_last().unwrap();
            let mut joined = String::new();
            for piece in others {
                let end = more.as_deref().unwrap_or_default();
                prop_assert!(piece.ends_with(end));
                joined.push_str(&piece[..piece.len() - end.len()]);
            }
            joined.push_str(last);
            prop_assert_eq!(joined.trim_end(), text.trim_end());
            for piece in &all {
                prop_assert!(piece.len() <= MAX_TEXT);
                // As WeChat reads it.
                let reply = Reply::new(ReplyBody::Text { content: piece.clone() });
                let read = Message::parse(reply.render(&push(), 1).as_bytes()).unwrap();
                prop_assert_eq!(read.root.text_of("Content"), Some(&**piece));
            }
        }

        #[test]
        fn a_cut_text_is_short_and_a_beginning(text in "\\PC{0,3000}") {
            let piece = LongText::Cut.piece(&text, 0);
            prop_assert!(piece.text.len() <= MAX_TEXT);
            let kept = if piece.is_cut { piece.text.trim_end_matches('…') } else { &piece.text };
            prop_assert!(text.starts_with(kept));
        }
    }
}
