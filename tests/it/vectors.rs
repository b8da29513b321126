//! Published test vectors: for the tests' own WeChat, and real pushes for the relay to decrypt.

use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::support::wechat::{Mode, WeChat, sign};

/// One entry of `tests/data/vectors.json`.
pub(crate) struct Vector(Value);

impl Vector {
    pub(crate) fn all() -> Vec<Self> {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/vectors.json");
        let mut file: Value = serde_json::from_slice(&fs::read(path).expect("the file is there")).expect("it is JSON");
        let Value::Array(entries) = file["vectors"].take() else { panic!("`vectors` is a list") };
        assert_eq!(file["count"], entries.len(), "the file is whole");
        entries.into_iter().map(Self).collect()
    }

    pub(crate) fn named(name: &str) -> Self {
        Self::all().into_iter().find(|vector| vector.get("name") == name).expect("the vector is there")
    }

    pub(crate) fn has(&self, key: &str) -> bool {
        self.0.get(key).is_some()
    }

    pub(crate) fn get(&self, key: &str) -> &str {
        self.0[key].as_str().unwrap_or_default()
    }

    pub(crate) fn value(&self, key: &str) -> &Value {
        &self.0[key]
    }

    /// The account of the entry; values that it lacks are made up.
    pub(crate) fn wechat(&self) -> WeChat {
        let mode = match self.get("kind") {
            "push_plain" => Mode::Plaintext,
            "push_compatible" => Mode::Compatible,
            _ => Mode::Secure,
        };
        let or_default = |key: &str, default: String| if self.has(key) { self.get(key).to_owned() } else { default };
        let made_up = WeChat::new(mode);
        WeChat {
            app_id: or_default("receive_id", made_up.app_id),
            token: or_default("token", made_up.token),
            aes_key: or_default("encoding_aes_key", made_up.aes_key),
            mode,
        }
    }
}

#[test]
fn the_tests_own_wechat_signs_as_published() {
    let mut checked = 0;
    for vector in Vector::all() {
        let parts = [vector.get("token"), vector.get("timestamp"), vector.get("nonce"), vector.get("ciphertext")];
        if vector.has("expected_signature") {
            assert_eq!(sign(&parts[..3]), vector.get("expected_signature"), "{}", vector.get("name"));
            checked += 1;
        }
        if vector.has("expected_msg_signature") {
            assert_eq!(sign(&parts), vector.get("expected_msg_signature"), "{}", vector.get("name"));
            checked += 1;
        }
    }
    assert!(checked >= 15, "only {checked} signatures");
}

#[test]
fn the_tests_own_wechat_opens_and_seals_as_published() {
    let mut checked = 0;
    for vector in Vector::all().iter().filter(|vector| vector.has("plaintext")) {
        let (wechat, name) = (vector.wechat(), vector.get("name"));
        assert_eq!(wechat.open(vector.get("ciphertext")).as_deref(), Ok(vector.get("plaintext")), "{name}");
        let random = vector.get("random_16").as_bytes().try_into().expect("16 bytes");
        assert_eq!(wechat.seal(random, vector.get("plaintext").as_bytes()), vector.get("ciphertext"), "{name}");
        checked += 1;
    }
    assert!(checked >= 10, "only {checked} envelopes");
}

#[test]
fn the_tests_own_wechat_refuses_another_app_id() {
    let vector = Vector::named("fangbei-secure-push-xml");
    let wechat = WeChat { app_id: "wx0000000000000000".to_owned(), ..vector.wechat() };
    assert_eq!(wechat.open(vector.get("ciphertext")), Err("another AppID"));
}

#[test]
fn a_push_and_a_reply_open_again() {
    let wechat = WeChat::secure();
    let clear = "<xml><ToUserName><![CDATA[gh_1]]></ToUserName><FromUserName><![CDATA[o1]]></FromUserName></xml>";
    let push = wechat.push(clear);
    let body = String::from_utf8(push.body).expect("a push is UTF-8");
    assert_eq!(wechat.open_push(&push.query, &body), clear);
    assert_eq!(wechat.open_reply(&wechat.seal_reply(clear)), clear);
}
