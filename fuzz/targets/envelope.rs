//! An encrypted push, and changes to it without the key: any text that is a push comes through unchanged, in every
//! mode; with any changed byte of envelope, timestamp, nonce or signature it is refused; and a signed envelope of
//! random bytes is no panic.

#![no_main]

mod account;

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use wxrelay::wechat::signature::signature;
use wxrelay::wechat::{Message, Mode, Query};

fuzz_target!(|bytes: &[u8]| {
    let Some((&place, text)) = bytes.split_first() else { return };
    rubbish(text);
    let Ok(clear) = std::str::from_utf8(text) else { return };
    let Ok(message) = Message::parse(text) else { return };
    // In compatible mode the clear elements are beside the envelope: WeChat's have none of its fields except
    // ToUserName.
    let named = |name| message.root.children.iter().filter(|child| child.name == name).count();
    // The receiver of a push is a text: with elements in it, envelope and tree would name different ones.
    let nested = message.root.child("ToUserName").is_some_and(|name| !name.children.is_empty());
    if nested
        || named("ToUserName") > 1
        || ["Encrypt", "MsgSignature", "TimeStamp", "Nonce"].iter().any(|name| named(name) > 0)
    {
        return;
    }
    for mode in [Mode::Compatible, Mode::Secure] {
        let account = account::in_mode(mode);
        let push = account.push(clear, "o1", &account::salt());
        let query = Query::parse(&push.query).expect("our own query");
        let opened = account.open(&query, &Bytes::from(push.body.clone())).expect("our own push");
        assert!(opened.clear == text && opened.message == message, "another text came out");

        let (query, body) = changed(&push.query, &push.body, place);
        let Ok(query) = Query::parse(&query) else { continue };
        if let Ok(opened) = account.open(&query, &Bytes::from(body)) {
            // Unsigned parts may change: names and layout around the envelope.
            assert!(opened.clear == text, "a changed envelope was opened");
        }
    }
});

/// Changes one byte of the signed parameters or of the body.
fn changed(query: &str, body: &str, place: u8) -> (String, String) {
    let (mut query, mut body) = (query.to_owned(), body.to_owned());
    let text = if place.is_multiple_of(2) { &mut query } else { &mut body };
    let at = usize::from(place) * text.len() / 256;
    if text.is_char_boundary(at) && text.is_char_boundary(at + 1) && at < text.len() {
        let other = if text.as_bytes()[at] == b'A' { "B" } else { "A" };
        text.replace_range(at..=at, other);
    }
    (query, body)
}

/// An `Encrypt` of arbitrary bytes, correctly signed: what a client with the token but without the key could send.
fn rubbish(bytes: &[u8]) {
    let account = account::in_mode(Mode::Secure);
    let encrypt = String::from_utf8_lossy(bytes).replace("]]>", "");
    let signed = signature([account::TOKEN, "1795161600", "1234567890", &encrypt]);
    let query = format!("timestamp=1795161600&nonce=1234567890&encrypt_type=aes&msg_signature={signed}");
    let body = format!("<xml><ToUserName>gh</ToUserName><Encrypt><![CDATA[{encrypt}]]></Encrypt></xml>");
    let query = Query::parse(&query).expect("our own query");
    account.open(&query, &Bytes::from(body)).expect_err("nobody has sealed this");
}
