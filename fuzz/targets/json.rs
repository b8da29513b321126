//! A JSON push: handlers get valid JSON, which parses to the same push; its XML form is valid XML. Never a panic.

#![no_main]

use libfuzzer_sys::fuzz_target;
use wxrelay::wechat::{Message, json, xml};

fuzz_target!(|bytes: &[u8]| {
    let Ok(root) = json::parse(bytes) else { return };
    // Not as a value, which cannot hold every number that JSON allows: we keep their digits.
    assert!(serde_json::from_slice::<&serde_json::value::RawValue>(bytes).is_ok(), "no JSON was taken");
    let given = json::message(&root);
    let again = json::parse(given.to_string().as_bytes()).expect("what handlers get is JSON");
    assert_eq!(json::message(&again), given);
    xml::parse(&xml::render(&root)).expect("its XML form is XML");
    if let Ok(message) = Message::parse(bytes) {
        assert!(message.root == root, "another tree");
    }
});
