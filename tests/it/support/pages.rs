//! The pages of the documentation: their paths and their parts.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

pub(crate) struct Block {
    /// The word after the language in the info string.
    pub(crate) scene: String,
    pub(crate) line: usize,
    pub(crate) text: String,
}

impl Block {
    /// That word, and the lines without comments, which are in the page's language.
    pub(crate) fn code(&self) -> (String, Vec<String>) {
        let line = |line: &str| format!(" {line}").split(" #").next().unwrap_or_default().trim().to_owned();
        (self.scene.clone(), self.text.lines().map(line).filter(|line| !line.is_empty()).collect())
    }
}

/// The fenced blocks in a language.
pub(crate) fn blocks(text: &str, language: &str) -> Vec<Block> {
    let (mut found, mut open): (Vec<Block>, bool) = (Vec::new(), false);
    let mut wanted = false;
    for (line, number) in text.lines().zip(1..) {
        if let Some(info) = line.trim_start().strip_prefix("```") {
            open = !open;
            let mut words = info.split(' ');
            wanted = open && words.next() == Some(language);
            if wanted {
                let scene = words.next().unwrap_or_default().to_owned();
                found.push(Block { scene, line: number, text: String::new() });
            }
        } else if wanted && let Some(block) = found.last_mut() {
            block.text += line;
            block.text.push('\n');
        }
    }
    found
}

/// The targets of links, outside of fenced blocks.
pub(crate) fn links(text: &str) -> Vec<String> {
    let of_line = |line: &str| -> Vec<String> {
        line.split("](").skip(1).filter_map(|rest| rest.split(')').next()).map(str::to_owned).collect()
    };
    prose(text).into_iter().flat_map(of_line).collect()
}

/// The anchors of the headings, as links name them.
pub(crate) fn anchors(text: &str) -> BTreeSet<String> {
    let headings = prose(text).into_iter().filter(|line| line.starts_with('#'));
    let slug = |line: &str| {
        let kept = line.trim_start_matches('#').trim().to_lowercase();
        let kept = kept.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
        kept.map(|c| if c == ' ' { '-' } else { c }).collect()
    };
    headings.map(slug).collect()
}

pub(crate) fn prose(text: &str) -> Vec<&str> {
    let mut fenced = false;
    let outside = |line: &&str| {
        let fence = line.trim_start().starts_with("```");
        fenced ^= fence;
        !fenced && !fence
    };
    text.lines().filter(outside).collect()
}

/// The operators' pages, from the root of the repository.
pub(crate) fn pages() -> Vec<String> {
    let entries = fs::read_dir(root().join("docs")).expect("the pages are there");
    let names = entries.map(|entry| entry.expect("a folder can be read").file_name().to_string_lossy().into_owned());
    let mut pages: Vec<_> = names.filter(|name| name.ends_with(".md")).map(|name| format!("docs/{name}")).collect();
    pages.sort();
    assert!(pages.len() > 10, "only {pages:?}");
    pages
}

/// Also the pages outside that folder: the front page, the security policy, and those for authors of handlers.
pub(crate) fn all_pages() -> Vec<String> {
    let beside = ["README", "SECURITY", "docs/handlers/README", "docs/handlers/bots"];
    let both = |page: &str| [format!("{page}.md"), format!("{page}.zh-CN.md")];
    pages().into_iter().chain(beside.iter().flat_map(|page| both(page))).collect()
}

pub(crate) fn read(page: &str) -> String {
    fs::read_to_string(root().join(page)).unwrap_or_else(|error| panic!("{page}: {error}"))
}

/// The root of the repository.
pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}
