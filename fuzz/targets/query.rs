//! The query of a push: parsed, written, and parsed again it is the same, and it has no NUL. Never a panic.

#![no_main]

use libfuzzer_sys::{Corpus, fuzz_target};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use wxrelay::wechat::Query;

fuzz_target!(|text: &str| -> Corpus {
    let Ok(query) = Query::parse(text) else { return Corpus::Keep };
    let fields = [
        ("signature", &query.signature),
        ("msg_signature", &query.msg_signature),
        ("timestamp", &query.timestamp),
        ("nonce", &query.nonce),
        ("openid", &query.openid),
        ("encrypt_type", &query.encrypt_type),
        ("echostr", &query.echostr),
    ];
    let given = fields.iter().filter_map(|(name, value)| Some((name, value.as_deref()?)));
    let written: Vec<_> = given
        .map(|(name, value)| {
            assert!(!value.contains('\0'), "a NUL in {name}");
            format!("{name}={}", utf8_percent_encode(value, NON_ALPHANUMERIC))
        })
        .collect();
    assert!(Query::parse(&written.join("&")) == Ok(query.clone()), "what is written is not read as it was");
    // A second reader, of the same text and one parameter more, must never see another value than the first.
    for (name, value) in fields {
        let twice = format!("{text}&{name}=other");
        assert!(value.is_none() || Query::parse(&twice).is_err(), "{name} may stand twice");
    }
    Corpus::Keep
});
