//! A target's answer in XML: every accepted reply is rendered to XML with the same reply, which WeChat accepts. Never a
//! panic.

#![no_main]

mod reply;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| reply::check(bytes));
