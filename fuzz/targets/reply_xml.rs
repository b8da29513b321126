//! A target's answer in XML: whatever is let through is rendered to XML that is the same reply, and that WeChat takes.
//! Never a panic.

#![no_main]

mod reply;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| reply::check(bytes));
