//! Texts in Rust sources: string literals with their context, and doc comments.

/// The macros that log.
const LOG_MACROS: [&str; 5] = ["trace!", "debug!", "info!", "warn!", "error!"];

/// Where a literal is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Context {
    Log,
    Error,
    Other,
}

/// The string literals of a source: line, context, text.
pub(crate) fn literals(source: &str) -> Vec<(usize, Context, String)> {
    let mut found = Vec::new();
    // The code so far without blanks, and the context of each open bracket.
    let (mut code, mut brackets) = (String::new(), Vec::new());
    let mut at = 0;
    while let Some(c) = source[at..].chars().next() {
        let rest = &source[at..];
        let length = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if let Some(length) = char_literal(rest) {
            length
        } else if let Some((text, length)) = string_literal(rest, &code) {
            let context = brackets.last().copied().unwrap_or(Context::Other);
            found.push((source[..at].matches('\n').count() + 1, context, text));
            length
        } else {
            match c {
                '(' | '[' | '{' => brackets.push(context_of(&code, brackets.last().copied())),
                ')' | ']' | '}' => drop(brackets.pop()),
                _ => {}
            }
            if !c.is_whitespace() {
                code.push(c);
            }
            c.len_utf8()
        };
        at += length;
    }
    found
}

/// The context inside a bracket that opens after this code.
fn context_of(code: &str, outer: Option<Context>) -> Context {
    if LOG_MACROS.iter().any(|name| code.ends_with(name)) {
        Context::Log
    } else if code.ends_with("#[error") {
        Context::Error
    } else {
        outer.unwrap_or(Context::Other)
    }
}

/// The length of a character literal at the start of the text, which is none for a lifetime.
fn char_literal(rest: &str) -> Option<usize> {
    let inner = rest.strip_prefix('\'')?;
    if let Some(escaped) = inner.strip_prefix('\\') {
        let end = escaped.char_indices().skip(1).find(|&(_, c)| c == '\'')?.0;
        return Some(2 + end + 1);
    }
    let c = inner.chars().next()?;
    inner[c.len_utf8()..].starts_with('\'').then(|| c.len_utf8() + 2)
}

/// The string literal at the start of the text, raw or not, with its length.
fn string_literal(rest: &str, code: &str) -> Option<(String, usize)> {
    let in_word = code.chars().next_back().is_some_and(|c| c.is_alphanumeric() || c == '_');
    if let Some(raw) = rest.strip_prefix('r').filter(|_| !in_word || code.ends_with('b')) {
        let hashes = raw.chars().take_while(|&c| c == '#').count();
        let inner = raw[hashes..].strip_prefix('"')?;
        let end = inner.find(&format!("\"{}", "#".repeat(hashes)))?;
        return Some((inner[..end].to_owned(), 1 + hashes + 1 + end + 1 + hashes));
    }
    let inner = rest.strip_prefix('"')?;
    let mut text = String::new();
    let mut chars = inner.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Some((text, at + 2)),
            // An escape counts as a blank between words; a continued line has its own.
            '\\' => {
                chars.next();
                text.push(' ');
            }
            c => text.push(c),
        }
    }
    None
}

/// The doc comments of a source, each as one text with its first line.
pub(crate) fn doc_comments(source: &str) -> Vec<(usize, String)> {
    let mut found: Vec<(usize, String)> = Vec::new();
    let mut is_open = false;
    for (index, line) in source.lines().enumerate() {
        let Some(text) = line.trim_start().strip_prefix("///") else {
            is_open = false;
            continue;
        };
        match found.last_mut().filter(|_| is_open) {
            Some((_, whole)) => whole.push_str(text),
            None => found.push((index + 1, text.to_owned())),
        }
        is_open = true;
    }
    found
}

/// A format string without its `{..}`, which name variables.
pub(crate) fn without_placeholders(text: &str) -> String {
    let mut pieces = text.split('{');
    let mut plain = pieces.next().unwrap_or_default().to_owned();
    for piece in pieces {
        plain.push_str(piece.split_once('}').map_or(piece, |(_, rest)| rest));
    }
    plain
}

/// A source up to its module of tests, which is always the last item.
pub(crate) fn without_tests(source: &str) -> String {
    source.split("\n#[cfg(test)]\nmod tests {").next().unwrap_or_default().to_owned()
}

#[test]
fn literals_are_read_with_their_context() {
    let source = r##"
        // "no" literal
        #[error("an error at {line}")]
        fn f<'a>(c: char) -> &'a str {
            tracing::warn!(field = %c, "a log \
                line");
            match c { '"' => "quote", '\'' => r#"raw "one""#, _ => concat!("x", "y") }
        }
    "##;
    let found: Vec<_> = literals(source).into_iter().map(|(_, context, text)| (context, text)).collect();
    let other = |text: &str| (Context::Other, text.to_owned());
    assert_eq!(found[0], (Context::Error, "an error at {line}".to_owned()));
    assert_eq!(found[1].0, Context::Log);
    assert_eq!(found[1].1.split_whitespace().collect::<Vec<_>>(), ["a", "log", "line"]);
    assert_eq!(found[2..], [other("quote"), other("raw \"one\""), other("x"), other("y")]);
    assert_eq!(without_placeholders("{twin} is {0:?}."), " is .");
    let docs = "/// One\n/// and two.\nfn f() {}\n    /// Three.\n";
    assert_eq!(doc_comments(docs), [(1, " One and two.".to_owned()), (4, " Three.".to_owned())]);
}
