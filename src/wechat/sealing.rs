//! Signs and encrypts what goes out: pushes as WeChat would send them, replies as WeChat expects them.
//!
//! Invariants: nothing goes out in clear for a mode that encrypts; `account` opens everything that is made here, if the
//! text has each field of the outer body at most once, as all of WeChat's. Timestamp and random bytes come in as a
//! [`Salt`]. Deliberately not here: clock and random bytes themselves.

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::json;

use super::account::{Credentials, KeyVersion, Mode, ReplySealing};
use super::envelope::AesKey;
use super::message::{Element, Syntax};
use super::outer::{OuterBody, OuterField};
use super::signature::signature;
use super::xml;

/// All characters but the unreserved ones of RFC 3986.
const ESCAPED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// The timestamp and the random parts of a push or a reply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Salt {
    /// Seconds since 1970.
    pub timestamp: i64,
    /// Ten digits, as WeChat's are.
    pub nonce: String,
    /// The first bytes of the envelope: ASCII hex digits, as WeChat's are.
    pub random: [u8; 16],
}

impl Salt {
    /// From the current time and fresh random bytes.
    pub fn new(now_seconds: i64, random: [u8; 24]) -> Self {
        let (number, rest) = random.split_at(8);
        let number = number.iter().fold(0, |sum, byte| sum << 8 | u64::from(*byte));
        let mut hex = [0; 16];
        for (digit, byte) in hex.iter_mut().zip(rest) {
            *digit = b"0123456789abcdef"[usize::from(byte & 15)];
        }
        Self { timestamp: now_seconds, nonce: (1_000_000_000 + number % 9_000_000_000).to_string(), random: hex }
    }
}

/// A push ready to be sent: the query without `?`, and the body. Not for logs.
#[derive(Clone, PartialEq, Eq)]
pub struct SealedPush {
    /// In the order that WeChat writes it.
    pub query: String,
    /// XML, or JSON if the text is JSON.
    pub body: String,
}

impl std::fmt::Debug for SealedPush {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SealedPush").finish_non_exhaustive()
    }
}

impl Credentials {
    /// The push that WeChat would make of a text. An empty `openid` is left out, as in pushes without one.
    ///
    /// `clear` must be the text of a push, well-formed XML or JSON.
    pub fn push(&self, clear: &str, openid: &str, salt: &Salt) -> SealedPush {
        let timestamp = salt.timestamp.to_string();
        let mut query = self.signed_query(&timestamp, &salt.nonce, None);
        if !openid.is_empty() {
            query.push_str("&openid=");
            query.extend(utf8_percent_encode(openid, ESCAPED));
        }
        if self.mode == Mode::Plaintext {
            return SealedPush { query, body: clear.to_owned() };
        }
        let encrypt = self.sealed(clear, KeyVersion::Current, salt);
        let signature = signature([self.token.expose(), &timestamp, &salt.nonce, &encrypt]);
        query.push_str("&encrypt_type=aes&msg_signature=");
        query.push_str(&signature);
        SealedPush { query, body: self.outer_body(clear, encrypt) }
    }

    /// The query of the GET by which WeChat verifies a URL.
    pub fn verification(&self, echostr: &str, salt: &Salt) -> String {
        self.signed_query(&salt.timestamp.to_string(), &salt.nonce, Some(echostr))
    }

    /// A reply in the form that the mode asks for, sealed like its push.
    ///
    /// Compatible mode takes clear replies as well, but nothing is gained by them.
    pub fn seal_reply(&self, clear: &str, manner: ReplySealing, salt: &Salt) -> String {
        if self.mode == Mode::Plaintext {
            return clear.to_owned();
        }
        let token = match (manner.token, &self.previous_token) {
            (KeyVersion::Previous, Some(previous)) => previous,
            (KeyVersion::Previous, None) | (KeyVersion::Current, _) => &self.token,
        };
        let timestamp = salt.timestamp.to_string();
        let encrypt = self.sealed(clear, manner.key, salt);
        let signature = signature([token.expose(), &timestamp, &salt.nonce, &encrypt]);
        let nonce = &salt.nonce;
        match manner.syntax {
            Syntax::Xml => format!(
                "<xml><Encrypt><![CDATA[{encrypt}]]></Encrypt>\n<MsgSignature><![CDATA[{signature}]]></MsgSignature>\n\
                 <TimeStamp>{timestamp}</TimeStamp>\n<Nonce><![CDATA[{nonce}]]></Nonce>\n</xml>"
            ),
            Syntax::Json => json!({
                "Encrypt": encrypt, "MsgSignature": signature, "TimeStamp": salt.timestamp, "Nonce": nonce,
            })
            .to_string(),
        }
    }

    /// `signature=..[&echostr=..]&timestamp=..&nonce=..`, the order seen on the wire.
    fn signed_query(&self, timestamp: &str, nonce: &str, echostr: Option<&str>) -> String {
        let mut query = String::with_capacity(256);
        query.push_str("signature=");
        query.push_str(&signature([self.token.expose(), timestamp, nonce]));
        if let Some(echostr) = echostr {
            query.push_str("&echostr=");
            query.extend(utf8_percent_encode(echostr, ESCAPED));
        }
        query.push_str("&timestamp=");
        query.push_str(timestamp);
        query.push_str("&nonce=");
        query.extend(utf8_percent_encode(nonce, ESCAPED));
        query
    }

    /// The encrypted text. Empty without a key, which the configuration refuses: then the receiver will refuse it too.
    fn sealed(&self, clear: &str, key: KeyVersion, salt: &Salt) -> String {
        let key: Option<&AesKey> = match (key, &self.previous_aes_key) {
            (KeyVersion::Previous, Some(previous)) => Some(previous),
            (KeyVersion::Previous, None) | (KeyVersion::Current, _) => self.aes_key.as_ref(),
        };
        key.map(|key| key.seal(clear.as_bytes(), &self.app_id, salt.random)).unwrap_or_default()
    }

    /// What surrounds the encrypted text: the receiver's name, in compatible mode all the clear elements.
    fn outer_body(&self, clear: &str, encrypt: String) -> String {
        let outer = OuterBody::read(clear.as_bytes()).ok();
        let syntax = outer.as_ref().map_or(Syntax::Xml, |(_, syntax)| *syntax);
        if self.mode == Mode::Compatible
            && let Some(body) = beside_clear(clear, syntax, &encrypt)
        {
            return body;
        }
        let to_user = outer.as_ref().and_then(|(outer, _)| outer.get(OuterField::ToUserName));
        match syntax {
            Syntax::Xml => {
                let to_user = to_user.map(|name| Element::with_text(OuterField::ToUserName.name(), name));
                let encrypt = Element::with_text(OuterField::Encrypt.name(), encrypt);
                let children = to_user.into_iter().chain([encrypt]).collect();
                xml::render(&Element { children, ..Element::new("xml") })
            }
            Syntax::Json => match to_user {
                Some(name) => json!({ "ToUserName": name, "Encrypt": encrypt }).to_string(),
                None => json!({ "Encrypt": encrypt }).to_string(),
            },
        }
    }
}

/// The clear elements unchanged, with the encrypted text after them; `None` where the text does not end with its root.
///
/// Copies the text, not the tree: an SDK that reads the clear elements gets every byte of them.
fn beside_clear(clear: &str, syntax: Syntax, encrypt: &str) -> Option<String> {
    let clear = clear.trim_ascii_end();
    match syntax {
        Syntax::Xml => {
            let open = clear.strip_suffix("</xml>")?;
            Some(format!("{open}<Encrypt><![CDATA[{encrypt}]]></Encrypt>\n</xml>"))
        }
        Syntax::Json => {
            let open = clear.strip_suffix('}')?;
            let comma = if open.trim_ascii_end().ends_with('{') { "" } else { "," };
            Some(format!("{open}{comma}\"Encrypt\":\"{encrypt}\"}}"))
        }
    }
}
