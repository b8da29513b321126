//! The query of a login callback: the Location begins with the configured URL, and has one code and one state at most,
//! as they came. Never a panic.

#![no_main]

use http::{HeaderValue, Uri};
use libfuzzer_sys::{Corpus, fuzz_target};
use wxrelay::login::{DEFAULT_PASS, Login, pass};

fuzz_target!(|query: &str| -> Corpus {
    let Ok(passed) = pass(query, &DEFAULT_PASS) else { return Corpus::Keep };
    for to in ["https://a.example/cb", "https://a.example/cb?x=1"] {
        let login = Login { name: "a".into(), path: "/a".into(), to: to.into(), pass: Vec::new(), home: None };
        let location = login.location(&passed.pairs);
        let added = location.strip_prefix(to).expect("it begins with the configured URL");
        assert!(HeaderValue::try_from(&location).is_ok() && !location.contains(['#', '\\', ' ']), "{location}");
        let read: Uri = location.parse().expect("it is a URL");
        assert_eq!((read.host(), read.path()), (Some("a.example"), "/cb"), "{location}");
        let keys: Vec<_> = added[1..].split('&').map(|pair| pair.split('=').next().unwrap_or_default()).collect();
        assert!(matches!(keys[..], ["code"] | ["state"] | ["code", "state"] | ["state", "code"]), "{keys:?}");
        for pair in added[1..].split('&').filter(|pair| pair.starts_with("code=")) {
            assert!(query.split('&').any(|given| given == pair), "{pair} is not what came");
        }
    }
    // A second reader, of the same text and one parameter more, must never see another code than the first.
    assert!(!passed.has_code || pass(&format!("{query}&code=other"), &DEFAULT_PASS).is_err(), "two codes");
    Corpus::Keep
});
