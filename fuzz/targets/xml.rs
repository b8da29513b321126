//! XML of a push: a parsed tree is rendered and parsed to the same tree; a push from it is the same event. Never a
//! panic, never more elements than the limit.

#![no_main]

use libfuzzer_sys::fuzz_target;
use wxrelay::wechat::{Element, Message, xml};

fuzz_target!(|text: &str| {
    let Ok(root) = xml::parse(text) else {
        assert!(!text.starts_with('<') || Message::parse(text.as_bytes()).is_err(), "a push of no XML");
        return;
    };
    assert!(elements(&root) <= 10_000 && depth(&root) <= 32, "more than is promised");
    assert!(!text.contains("<!DOCTYPE") || text.contains("<![CDATA[") || text.contains("<!--"), "a DOCTYPE was taken");
    let rendered = xml::render(&root);
    assert_eq!(xml::parse(&rendered).as_ref(), Ok(&root), "{rendered}");
    if let Ok(message) = Message::parse(text.as_bytes()) {
        let again = Message::parse(rendered.as_bytes()).expect("what is rendered is a push");
        assert!(message.kind() == again.kind() && message.scene() == again.scene(), "another event");
        assert!(message.from_user() == again.from_user() && message.msg_id() == again.msg_id(), "another event");
    }
});

fn elements(element: &Element) -> usize {
    1 + element.children.iter().map(elements).sum::<usize>()
}

fn depth(element: &Element) -> usize {
    1 + element.children.iter().map(depth).max().unwrap_or(0)
}
