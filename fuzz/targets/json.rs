//! A JSON push: what handlers get of it is sound JSON whose own reading gives the same; its XML form is XML. Never a
//! panic.

#![no_main]

use libfuzzer_sys::fuzz_target;
use wxrelay::wechat::{Message, json, xml};

fuzz_target!(|bytes: &[u8]| {
    let Ok(root) = json::parse(bytes) else { return };
    assert!(serde_json::from_slice::<serde_json::Value>(bytes).is_ok(), "no JSON was taken");
    let given = json::message(&root);
    let again = json::parse(given.to_string().as_bytes()).expect("what handlers get is JSON");
    assert_eq!(json::message(&again), given);
    xml::parse(&xml::render(&root)).expect("its XML form is XML");
    if let Ok(message) = Message::parse(bytes) {
        assert!(message.root == root, "another tree");
    }
});
