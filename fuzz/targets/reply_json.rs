//! A target's answer in JSON, `{"reply":{..}}` around the input: as for XML.

#![no_main]

mod reply;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    reply::check(bytes);
    reply::check(&[b"{\"reply\":", bytes, b"}"].concat());
});
