//! The body of a request, as any client may send it: parsed in plaintext mode only, where the signature covers no body;
//! in other modes it would have to be encrypted. Never a panic.

#![no_main]

mod account;

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use wxrelay::wechat::{Mode, Query};

fuzz_target!(|bytes: &[u8]| {
    let body = Bytes::copy_from_slice(bytes);
    for mode in [Mode::Plaintext, Mode::Compatible, Mode::Secure] {
        let account = account::in_mode(mode);
        let push = account.push("<xml><ToUserName>gh</ToUserName></xml>", "o1", &account::salt());
        let query = Query::parse(&push.query).expect("our own query");
        let opened = account.open(&query, &body).is_ok();
        assert!(!opened || mode == Mode::Plaintext || bytes == push.body.as_bytes(), "opened, and not sealed");
    }
    account::in_mode(Mode::Secure).open_reply(bytes).expect_err("a reply that nobody sealed");
});
