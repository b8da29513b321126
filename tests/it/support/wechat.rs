//! The tests' stand-in for WeChat: signs, encrypts and sends pushes, and decrypts replies.
//!
//! Written from WeChat's documentation with plain ciphers, never with `wxrelay::wechat`, so that the two cannot share
//! an error; `vectors.rs` tests it with published vectors.

use std::sync::atomic::{AtomicU64, Ordering};

use aes::Aes256;
use base64::Engine as _;
use base64::alphabet::STANDARD as ALPHABET;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig, STANDARD};
use cbc::cipher::block_padding::NoPadding;
use cbc::cipher::{BlockModeDecrypt, BlockModeEncrypt, KeyIvInit};
use jiff::Timestamp;
use serde_json::{Value, json};
use sha1::{Digest, Sha1};

use super::http::{Answer, exchange};

/// The path of [`WeChat::account`].
pub(crate) const PATH: &str = "/wechat/events";

/// The account's name at WeChat.
pub(crate) const GH: &str = "gh_0a1b2c3d4e5f";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    Plaintext,
    Compatible,
    Secure,
}

impl Mode {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Plaintext => "plaintext",
            Self::Compatible => "compatible",
            Self::Secure => "secure",
        }
    }
}

/// One official account, as WeChat knows it.
#[derive(Clone, Debug)]
pub(crate) struct WeChat {
    pub(crate) app_id: String,
    pub(crate) token: String,
    pub(crate) aes_key: String,
    pub(crate) mode: Mode,
}

/// A push, ready to be sent or modified.
#[derive(Clone, Debug)]
pub(crate) struct Push {
    pub(crate) query: String,
    pub(crate) body: Vec<u8>,
}

impl WeChat {
    /// An account with a key that is not canonical base64, as three in four are.
    pub(crate) fn new(mode: Mode) -> Self {
        Self {
            app_id: "wxb11529c136998cb6".to_owned(),
            token: "pamtest".to_owned(),
            aes_key: "abcdefghijklmnopqrstuvwxyz0123456789ABCDEFG".to_owned(),
            mode,
        }
    }

    pub(crate) fn secure() -> Self {
        Self::new(Mode::Secure)
    }

    /// Its `[accounts.shop]`; further keys of the table may be appended.
    pub(crate) fn account(&self) -> String {
        self.account_named("shop", PATH)
    }

    pub(crate) fn account_named(&self, name: &str, path: &str) -> String {
        let Self { app_id, token, aes_key, mode } = self;
        let mode = mode.name();
        format!(
            "[accounts.{name}]\npath = \"{path}\"\napp_id = \"{app_id}\"\ntoken = \"{token}\"\n\
             encoding_aes_key = \"{aes_key}\"\nmode = \"{mode}\"\n"
        )
    }

    /// A push of a clear text in this account's mode, with the current time.
    pub(crate) fn push(&self, clear: &str) -> Push {
        self.push_at(now(), clear)
    }

    pub(crate) fn push_at(&self, timestamp: i64, clear: &str) -> Push {
        if self.mode == Mode::Plaintext {
            let (query, _, _) = self.signed(timestamp, clear);
            return Push { query, body: clear.as_bytes().to_vec() };
        }
        self.push_encrypted(timestamp, clear, &self.seal(random(), clear.as_bytes()))
    }

    /// A push around a given Encrypt text, correctly signed, whether that text is valid or not.
    pub(crate) fn push_encrypted(&self, timestamp: i64, clear: &str, encrypt: &str) -> Push {
        let envelope = format!("<Encrypt><![CDATA[{encrypt}]]></Encrypt>");
        let body = match (json_of(clear), self.mode) {
            (Some(_), Mode::Compatible) => {
                let open = clear.trim_end().strip_suffix('}').expect("an object ends so");
                format!("{open},\"Encrypt\":\"{encrypt}\"}}")
            }
            (Some(push), _) => json!({ "ToUserName": push["ToUserName"], "Encrypt": encrypt }).to_string(),
            (None, Mode::Compatible) => clear.replacen("</xml>", &format!("{envelope}\n</xml>"), 1),
            (None, _) => {
                let to = element(clear, "ToUserName").unwrap_or_default();
                format!("<xml>\n<ToUserName><![CDATA[{to}]]></ToUserName>\n{envelope}\n</xml>")
            }
        };
        self.push_body(timestamp, clear, encrypt, &body)
    }

    /// A push of a given body, with the signatures that `encrypt` asks for.
    pub(crate) fn push_body(&self, timestamp: i64, clear: &str, encrypt: &str, body: &str) -> Push {
        let (query, timestamp, nonce) = self.signed(timestamp, clear);
        let msg_signature = sign(&[&self.token, &timestamp, &nonce, encrypt]);
        let query = format!("{query}&encrypt_type=aes&msg_signature={msg_signature}");
        Push { query, body: body.as_bytes().to_vec() }
    }

    /// The query of the GET that verifies the URL.
    pub(crate) fn verification(&self, timestamp: i64, echostr: &str) -> String {
        let (timestamp, nonce) = (timestamp.to_string(), nonce());
        let signature = sign(&[&self.token, &timestamp, &nonce]);
        format!("signature={signature}&echostr={echostr}&timestamp={timestamp}&nonce={nonce}")
    }

    /// The Encrypt text of a clear one: 16 random bytes, length, text, AppID, padded to 32.
    pub(crate) fn seal(&self, random: [u8; 16], clear: &[u8]) -> String {
        let length = u32::try_from(clear.len()).expect("a push is small").to_be_bytes();
        let mut text = [&random[..], &length, clear, self.app_id.as_bytes()].concat();
        let pad = 32 - text.len() % 32;
        text.resize(text.len() + pad, u8::try_from(pad).expect("1 to 32"));
        self.encrypt(&text)
    }

    /// Encrypts bytes that fill whole blocks, in base64: for envelopes with invalid contents.
    pub(crate) fn encrypt(&self, padded: &[u8]) -> String {
        let key = self.key();
        let cipher = cbc::Encryptor::<Aes256>::new_from_slices(&key, &key[..16]).expect("32 and 16 bytes");
        STANDARD.encode(cipher.encrypt_padded_vec::<NoPadding>(padded))
    }

    /// Decrypts an Encrypt text; fails unless all of it is valid.
    pub(crate) fn open(&self, encrypt: &str) -> Result<String, &'static str> {
        let key = self.key();
        let cipher = cbc::Decryptor::<Aes256>::new_from_slices(&key, &key[..16]).expect("32 and 16 bytes");
        let sealed = STANDARD.decode(encrypt).map_err(|_| "not base64")?;
        let text = cipher.decrypt_padded_vec::<NoPadding>(&sealed).map_err(|_| "not whole blocks")?;
        let pad = usize::from(*text.last().ok_or("empty")?);
        if !(1..=32).contains(&pad) || text.len() % 32 != 0 || !text.ends_with(&vec![text[text.len() - 1]; pad]) {
            return Err("wrong padding");
        }
        let (length, rest) = text[16..text.len() - pad].split_first_chunk::<4>().ok_or("too short")?;
        let (clear, app_id) = rest.split_at_checked(u32::from_be_bytes(*length) as usize).ok_or("wrong length")?;
        if app_id != self.app_id.as_bytes() {
            return Err("another AppID");
        }
        String::from_utf8(clear.to_vec()).map_err(|_| "not UTF-8")
    }

    /// The clear text of an encrypted push that was sent to this account's URL; checks msg_signature as an SDK does.
    pub(crate) fn open_push(&self, query: &str, body: &str) -> String {
        let part = |name| parameter(query, name).unwrap_or_else(|| panic!("a sealed push has {name}: {query}"));
        let encrypt = encrypt_of(body).unwrap_or_else(|| panic!("a sealed push has Encrypt: {body}"));
        let (timestamp, nonce) = (part("timestamp"), part("nonce"));
        assert_eq!(part("encrypt_type"), "aes");
        assert_eq!(part("signature"), sign(&[&self.token, timestamp, nonce]), "signature");
        assert_eq!(part("msg_signature"), sign(&[&self.token, timestamp, nonce, &encrypt]), "msg_signature");
        self.open(&encrypt).expect("the push opens with the account's key")
    }

    /// The clear text of a reply, encrypted unless the mode is plaintext; checks MsgSignature as WeChat does.
    pub(crate) fn open_reply(&self, reply: &str) -> String {
        if self.mode == Mode::Plaintext {
            return reply.to_owned();
        }
        let part = |name| element(reply, name).unwrap_or_else(|| panic!("a sealed reply has {name}: {reply}"));
        let (encrypt, timestamp, nonce) = (part("Encrypt"), part("TimeStamp"), part("Nonce"));
        assert_eq!(part("MsgSignature"), sign(&[&self.token, &timestamp, &nonce, &encrypt]), "MsgSignature");
        assert_eq!(timestamp.len(), 10, "TimeStamp is in seconds: {timestamp}");
        self.open(&encrypt).expect("the reply opens with the account's key")
    }

    /// A reply as a backend of this account would send it.
    pub(crate) fn seal_reply(&self, clear: &str) -> String {
        let (encrypt, timestamp, nonce) = (self.seal(random(), clear.as_bytes()), now().to_string(), nonce());
        let signature = sign(&[&self.token, &timestamp, &nonce, &encrypt]);
        format!(
            "<xml><Encrypt><![CDATA[{encrypt}]]></Encrypt><MsgSignature><![CDATA[{signature}]]></MsgSignature>\
             <TimeStamp>{timestamp}</TimeStamp><Nonce><![CDATA[{nonce}]]></Nonce></xml>"
        )
    }

    /// The shared beginning of a push's query, and the timestamp and nonce in it.
    fn signed(&self, timestamp: i64, clear: &str) -> (String, String, String) {
        let (timestamp, nonce) = (timestamp.to_string(), nonce());
        let signature = sign(&[&self.token, &timestamp, &nonce]);
        let openid = element(clear, "FromUserName").unwrap_or_default();
        let query = format!("signature={signature}&timestamp={timestamp}&nonce={nonce}&openid={openid}");
        (query, timestamp, nonce)
    }

    fn key(&self) -> [u8; 32] {
        let lenient = GeneralPurpose::new(&ALPHABET, GeneralPurposeConfig::new().with_decode_allow_trailing_bits(true));
        let key = lenient.decode(format!("{}=", self.aes_key)).expect("43 letters and digits");
        key.try_into().expect("43 characters are 32 bytes")
    }
}

impl Push {
    /// The request as WeChat writes it: HTTP/1.0, on a new connection.
    pub(crate) fn request(&self, path: &str) -> Vec<u8> {
        self.head(path, "HTTP/1.0", "close")
    }

    /// The same for a client that keeps its connection.
    pub(crate) fn kept_alive(&self, path: &str) -> Vec<u8> {
        self.head(path, "HTTP/1.1", "keep-alive")
    }

    /// The head of a request over HTTP/1.1 whose body is still to come, after `100 Continue`.
    pub(crate) fn announced(&self, path: &str) -> Vec<u8> {
        let Self { query, body } = self;
        let length = body.len();
        format!(
            "POST {path}?{query} HTTP/1.1\r\nHost: relay.test\r\nContent-Type: text/xml\r\n\
             Content-Length: {length}\r\nExpect: 100-continue\r\n\r\n"
        )
        .into_bytes()
    }

    /// Sends it as WeChat does.
    pub(crate) async fn send(&self, address: &str) -> Answer {
        exchange(address, &self.request(PATH)).await
    }

    fn head(&self, path: &str, version: &str, connection: &str) -> Vec<u8> {
        let head = format!(
            "POST {path}?{} {version}\r\nUser-Agent: Mozilla/4.0\r\nAccept: */*\r\nHost: relay.test\r\n\
             Pragma: no-cache\r\nConnection: {connection}\r\nContent-Type: text/xml\r\nContent-Length: {}\r\n\r\n",
            self.query,
            self.body.len()
        );
        [head.as_bytes(), &self.body].concat()
    }
}

/// The Encrypt text of a body in either notation.
pub(crate) fn encrypt_of(body: &str) -> Option<String> {
    match json_of(body) {
        Some(push) => push["Encrypt"].as_str().map(str::to_owned),
        None => element(body, "Encrypt"),
    }
}

/// A body in JSON, as mini programs may have it.
fn json_of(body: &str) -> Option<Value> {
    serde_json::from_str(body.trim_start_matches('\u{feff}')).ok()
}

/// SHA-1 of the sorted and concatenated parts, in lower-case hex.
pub(crate) fn sign(parts: &[&str]) -> String {
    let mut parts = parts.to_vec();
    parts.sort_unstable();
    Sha1::digest(parts.concat()).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A text message that is different in each call.
pub(crate) fn text(openid: &str, content: &str) -> String {
    message(openid, "text", &format!("<Content><![CDATA[{content}]]></Content>\n<MsgId>{}</MsgId>\n", unique()))
}

/// An event that is different in each call; without EventKey where `key` is empty.
pub(crate) fn event(openid: &str, name: &str, key: &str) -> String {
    let mut inner = format!("<Event><![CDATA[{name}]]></Event>\n");
    if !key.is_empty() {
        inner += &format!("<EventKey><![CDATA[{key}]]></EventKey>\n<Ticket><![CDATA[gQ{}]]></Ticket>\n", unique());
    }
    message(openid, "event", &inner)
}

/// A reply text in clear XML, as a backend writes it.
pub(crate) fn text_reply(to: &str, content: &str) -> String {
    format!(
        "<xml><ToUserName><![CDATA[{to}]]></ToUserName><FromUserName><![CDATA[{GH}]]></FromUserName>\
         <CreateTime>{}</CreateTime><MsgType><![CDATA[text]]></MsgType><Content><![CDATA[{content}]]></Content></xml>",
        now()
    )
}

/// The text of the first element of that name, with or without CDATA.
pub(crate) fn element(xml: &str, name: &str) -> Option<String> {
    let (_, rest) = xml.split_once(&format!("<{name}>"))?;
    let (text, _) = rest.split_once(&format!("</{name}>"))?;
    Some(text.trim().trim_start_matches("<![CDATA[").trim_end_matches("]]>").to_owned())
}

/// A parameter of a query, still encoded.
pub(crate) fn parameter<'q>(query: &'q str, name: &str) -> Option<&'q str> {
    query.split('&').filter_map(|pair| pair.split_once('=')).find(|(key, _)| *key == name).map(|(_, value)| value)
}

/// Seconds since 1970.
pub(crate) fn now() -> i64 {
    Timestamp::now().as_second()
}

fn message(openid: &str, kind: &str, inner: &str) -> String {
    format!(
        "<xml><ToUserName><![CDATA[{GH}]]></ToUserName>\n<FromUserName><![CDATA[{openid}]]></FromUserName>\n\
         <CreateTime>{}</CreateTime>\n<MsgType><![CDATA[{kind}]]></MsgType>\n{inner}</xml>",
        now()
    )
}

fn unique() -> u64 {
    static LAST: AtomicU64 = AtomicU64::new(6_074_130_599_188_426_998);
    LAST.fetch_add(1, Ordering::Relaxed)
}

fn nonce() -> String {
    format!("{}", unique() % 10_000_000_000)
}

fn random() -> [u8; 16] {
    let mut bytes = *b"0000000000000000";
    let text = nonce();
    bytes[..text.len()].copy_from_slice(text.as_bytes());
    bytes
}
