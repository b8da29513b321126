//! Published vectors (tests/data/vectors.json): worked examples of WeChat's pages, real pushes, SDK test suites.

use bytes::Bytes;
use serde_json::Value;

use super::envelope::Ciphertext;
use super::signature::{signature, verify};
use super::*;
use crate::secret::Secret;

struct Vector(Value);

impl Vector {
    fn has(&self, key: &str) -> bool {
        self.0.get(key).is_some()
    }

    fn text(&self, key: &str) -> &str {
        self.0[key].as_str().unwrap_or_else(|| panic!("{} has no {key}", self.0["name"]))
    }

    fn stamp(&self) -> [&str; 3] {
        [self.text("token"), self.text("timestamp"), self.text("nonce")]
    }

    fn credentials(&self, mode: Mode) -> Credentials {
        Credentials {
            app_id: self.0["receive_id"].as_str().unwrap_or("wx0").into(),
            token: Secret::new(self.text("token")),
            previous_token: None,
            aes_key: self.has("encoding_aes_key").then(|| AesKey::parse(self.text("encoding_aes_key")).unwrap()),
            previous_aes_key: None,
            mode,
        }
    }

    /// The query as published, or as WeChat makes it for these figures.
    fn query(&self) -> String {
        if self.has("query") {
            return self.text("query").to_owned();
        }
        let [_, timestamp, nonce] = self.stamp();
        let mut query = format!("timestamp={timestamp}&nonce={nonce}");
        for (key, name) in [("expected_signature", "signature"), ("echostr", "echostr")] {
            if self.has(key) {
                query.push_str(&format!("&{name}={}", self.text(key)));
            }
        }
        if self.has("expected_msg_signature") {
            query.push_str(&format!("&encrypt_type=aes&msg_signature={}", self.text("expected_msg_signature")));
        }
        query
    }

    fn check_signatures(&self) {
        if self.has("expected_signature") {
            assert_eq!(signature(self.stamp()), self.text("expected_signature"));
            assert!(verify(self.stamp(), self.text("expected_signature")));
        }
        if self.has("expected_msg_signature") {
            let [token, timestamp, nonce] = self.stamp();
            let parts = [token, timestamp, nonce, self.text("ciphertext")];
            assert!(verify(parts, self.text("expected_msg_signature")));
        }
    }

    /// Opens the envelope and seals it again with the published random bytes.
    fn check_envelope(&self) {
        let key = AesKey::parse(self.text("encoding_aes_key")).unwrap();
        let clear = key.open(Ciphertext::decode(self.text("ciphertext")).unwrap(), self.text("receive_id")).unwrap();
        assert_eq!(clear, self.text("plaintext"));
        let random: [u8; 16] = self.text("random_16").as_bytes().try_into().unwrap();
        assert_eq!(key.seal(&clear, self.text("receive_id"), random), self.text("ciphertext"));
    }

    fn check_push(&self, mode: Mode, body: &str) {
        let query = self.query();
        let query = Query::parse(&query).unwrap();
        let opened = self.credentials(mode).open(&query, &Bytes::copy_from_slice(body.as_bytes())).unwrap();
        assert_eq!(opened.clear, self.text("plaintext"));
        assert_eq!((opened.manner.key, opened.manner.token), (KeyVersion::Current, KeyVersion::Current));
        let first = if body.starts_with('{') { Syntax::Json } else { Syntax::Xml };
        assert_eq!(opened.manner.syntax, first);
        assert!(opened.message.create_time().is_some());
        assert_ne!(opened.message.kind(), "other");
    }

    fn body(&self, around: &str) -> String {
        let sealed = self.text("ciphertext");
        if self.text("plaintext").starts_with('{') {
            return format!(r#"{{"ToUserName":"gh_97417a04a28d","Encrypt":"{sealed}"}}"#);
        }
        format!("<xml>{around}<Encrypt><![CDATA[{sealed}]]></Encrypt></xml>")
    }
}

#[test]
fn every_published_vector_holds() {
    let file: Value = serde_json::from_str(include_str!("../../tests/data/vectors.json")).unwrap();
    let mut seen = 0;
    for vector in file["vectors"].as_array().unwrap().iter().cloned().map(Vector) {
        vector.check_signatures();
        match vector.text("kind") {
            "url_verification_get" => {
                let query = vector.query();
                let query = Query::parse(&query).unwrap();
                for mode in [Mode::Plaintext, Mode::Compatible, Mode::Secure] {
                    let echo = vector.credentials(mode).verify_url(&query).unwrap();
                    assert_eq!(echo, vector.text("expected_reply"));
                }
            }
            "push_plain" => {
                let (query, body) = (vector.query(), Bytes::from(vector.0["body_json"].to_string()));
                let opened = vector.credentials(Mode::Plaintext).open(&Query::parse(&query).unwrap(), &body).unwrap();
                assert_eq!((opened.clear, opened.manner.syntax), (body, Syntax::Json));
                assert_eq!(opened.message.create_time(), Some(1_714_037_059));
                assert!(opened.message.is_event("debug_demo"));
            }
            "push_secure" => {
                vector.check_envelope();
                vector.check_push(Mode::Secure, &vector.body(""));
            }
            "push_component_event" => {
                vector.check_envelope();
                let around = format!("<AppId><![CDATA[{}]]></AppId>", vector.text("receive_id"));
                vector.check_push(Mode::Secure, &vector.body(&around));
            }
            "push_compatible" => {
                vector.check_envelope();
                let siblings = vector.0["clear_siblings_of_Encrypt"].as_object().unwrap();
                let around: String = siblings
                    .iter()
                    .map(|(name, text)| format!("<{name}><![CDATA[{}]]></{name}>\n", text.as_str().unwrap()))
                    .collect();
                vector.check_push(Mode::Compatible, &vector.body(&around));
            }
            "url_verification_get_encrypted_echostr" => {
                vector.check_envelope();
                let query = vector.query();
                if query.contains("echostr=") {
                    let query = Query::parse(&query).unwrap();
                    assert_eq!(query.echostr.as_deref(), Some(vector.text("ciphertext")));
                }
            }
            "reply_encrypt" => {
                vector.check_envelope();
                let [_, timestamp, nonce] = vector.stamp();
                let random = vector.text("random_16").as_bytes().try_into().unwrap();
                let salt = Salt { timestamp: timestamp.parse().unwrap(), nonce: nonce.to_owned(), random };
                let credentials = vector.credentials(Mode::Secure);
                let reply =
                    credentials.seal_reply(vector.text("plaintext"), ReplySealing::current(Syntax::Json), &salt);
                let fields: Value = serde_json::from_str(&reply).unwrap();
                assert_eq!(fields["Encrypt"], vector.text("ciphertext"));
                assert_eq!(fields["MsgSignature"], vector.text("expected_msg_signature"));
                assert_eq!(credentials.open_reply(reply.as_bytes()).unwrap(), vector.text("plaintext"));
            }
            "encrypt_only" => vector.check_envelope(),
            "signature_only" => {}
            other => panic!("unknown kind {other}"),
        }
        seen += 1;
    }
    assert_eq!(seen, 15);
}
