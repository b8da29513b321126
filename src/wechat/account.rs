//! An account's credentials: whether a request is WeChat's, and what it contains.
//!
//! Invariants: the mode comes from the configuration and never from the request, so a clear body cannot pass where
//! encrypted ones are expected; every signed part has a pinned shape before a signature is compared, because the
//! signature has no delimiters and parts cut differently would pass; the AppID inside is always checked. The previous
//! token and key are accepted too while an operator rotates them.
//!
//! Deliberately not here: whether a timestamp is fresh and whether a push was seen before (`push`), and anything that
//! goes out (`sealing`).

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use bytes::Bytes;

use super::envelope::{AesKey, Ciphertext, EnvelopeError};
use super::message::{Message, MessageError, Syntax};
use super::outer::{OuterBody, OuterError, OuterField};
use super::query::{Query, QueryError};
use super::signature::ClaimedSignature;
use crate::secret::Secret;

/// WeChat's nonces have about 10 characters. Without a limit, a nonce could contain the other parts, cut differently.
const NONCE_LENGTH: usize = 128;

/// An account's security mode, as chosen in WeChat's console.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Mode {
    /// 明文: clear bodies, a signature that does not cover them.
    Plaintext,
    /// 兼容: clear elements beside the encrypted text; only the encrypted text counts.
    Compatible,
    /// 安全: encrypted text only.
    Secure,
}

impl Mode {
    const ALL: [Self; 3] = [Self::Plaintext, Self::Compatible, Self::Secure];

    /// Its name in configuration and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Plaintext => "plaintext",
            Self::Compatible => "compatible",
            Self::Secure => "secure",
        }
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// A text that is not a mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a mode is `plaintext`, `compatible` or `secure`, as set in WeChat's console")]
pub struct BadMode;

impl FromStr for Mode {
    type Err = BadMode;

    fn from_str(text: &str) -> Result<Self, BadMode> {
        Self::ALL.into_iter().find(|mode| mode.as_str() == text).ok_or(BadMode)
    }
}

/// What an account, or a target of format `wechat`, shares with its peer.
#[derive(Clone, Debug)]
pub struct Credentials {
    /// The AppID, at the end of every envelope.
    pub app_id: Arc<str>,
    /// The token of WeChat's console, which every signature is made with.
    pub token: Secret,
    /// The previous token, during a rotation.
    pub previous_token: Option<Secret>,
    /// The EncodingAESKey; an account in plaintext mode has none.
    pub aes_key: Option<AesKey>,
    /// The previous key: WeChat continues to use it for a while after a change.
    pub previous_aes_key: Option<AesKey>,
    /// The mode that the console is set to.
    pub mode: Mode,
}

/// Which of the two tokens or keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyVersion {
    /// The one in use.
    Current,
    /// The previous one.
    Previous,
}

/// A verified and decrypted push. `Debug` shows nothing of its contents.
pub struct Opened {
    /// The clear text; in plaintext mode the body as received.
    pub clear: Bytes,
    /// The clear text, parsed.
    pub message: Message,
    /// How its reply is encrypted and signed.
    pub manner: ReplySealing,
}

/// How a push was written, encrypted and signed; WeChat expects its reply in the same form.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReplySealing {
    /// The notation of the body around it.
    pub syntax: Syntax,
    /// The key that decrypted it.
    pub key: KeyVersion,
    /// The token that it was signed with.
    pub token: KeyVersion,
}

impl ReplySealing {
    /// With the token and key in use.
    pub fn current(syntax: Syntax) -> Self {
        Self { syntax, key: KeyVersion::Current, token: KeyVersion::Current }
    }
}

impl fmt::Debug for Opened {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { clear: _, message, manner } = self;
        let mut debug = f.debug_struct("Opened");
        debug.field("message", message).field("manner", manner);
        debug.finish_non_exhaustive()
    }
}

/// Why a request is refused. No text quotes the request.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The query cannot be read.
    #[error("bad query")]
    BadQuery(#[from] QueryError),
    /// A required parameter or field is missing.
    #[error("`{0}` is missing")]
    Missing(&'static str),
    /// A parameter or field has the wrong form, or occurs twice.
    #[error("`{0}` is malformed")]
    Malformed(&'static str),
    /// There is no body: a scanner or a health check, never WeChat.
    #[error("the body is empty")]
    EmptyBody,
    /// The body is neither well-formed XML nor well-formed JSON.
    #[error("bad body")]
    Body(#[source] MessageError),
    /// The encrypted text is not base64 of a whole envelope.
    #[error("`Encrypt` is not base64 of a whole envelope")]
    NotBase64,
    /// The signature matches neither token.
    #[error("the signature does not match")]
    Signature,
    /// The request has the form of another mode than the account's.
    #[error("the request does not have the form of the account's mode")]
    ModeMismatch,
    /// The account's mode needs a key, and it has none.
    #[error("the account has no `aes_key`, which its mode needs")]
    NoKey,
    /// No key decrypts the envelope, it is for another AppID, or it is broken: deliberately one error.
    #[error(transparent)]
    Envelope(#[from] EnvelopeError),
    /// The text inside is neither well-formed XML nor well-formed JSON, though signature and envelope are valid.
    #[error("bad text in the envelope")]
    Clear(#[source] MessageError),
    /// The outer body names another receiver than the encrypted text.
    #[error("ToUserName outside and inside the envelope differ")]
    Addressee,
}

impl OpenError {
    /// What an operator can do about it, where that is known.
    pub fn remedy(&self) -> Option<&'static str> {
        match self {
            Self::Signature => Some("compare the account's token with WeChat's console"),
            Self::ModeMismatch => Some("compare `mode` with WeChat's console"),
            Self::Envelope(_) => Some("compare aes_key and app_id with WeChat's console"),
            _ => None,
        }
    }
}

impl From<OuterError> for OpenError {
    fn from(error: OuterError) -> Self {
        match error {
            OuterError::Body(error) => Self::Body(error),
            OuterError::Repeated(field) => Self::Malformed(field.name()),
        }
    }
}

impl Credentials {
    /// Checks WeChat's verification of the URL and gives the `echostr` to answer with.
    ///
    /// `signature` covers token, timestamp and nonce in every mode; `echostr` is signed by nobody, so the answer must
    /// be labelled as plain text.
    pub fn verify_url<'q>(&self, query: &'q Query<'_>) -> Result<&'q str, OpenError> {
        let stamp = PinnedStamp::of(query)?;
        let given = signature_in(query.signature.as_deref(), "signature")?;
        let echostr = present(query.echostr.as_deref(), "echostr")?;
        self.signer(|token| given.matches([token, stamp.timestamp, stamp.nonce]))?;
        Ok(echostr)
    }

    /// The query's timestamp in seconds, for the caller to compare with its clock once the signature has matched.
    pub fn timestamp(query: &Query<'_>) -> Result<i64, OpenError> {
        PinnedStamp::of(query)?.timestamp.parse().map_err(|_| OpenError::Malformed("timestamp"))
    }

    /// Whether `signature`, which covers no body, was made with one of the tokens. Enough to show that the sender knows
    /// the token, and to distinguish a damaged stored push from one whose token has changed since; for no other
    /// decision.
    pub fn signed(&self, query: &Query<'_>) -> Result<bool, OpenError> {
        let stamp = PinnedStamp::of(query)?;
        let given = signature_in(query.signature.as_deref(), "signature")?;
        Ok(self.signer(|token| given.matches([token, stamp.timestamp, stamp.nonce])).is_ok())
    }

    /// Verifies that a push is WeChat's and for this account, and decrypts it. Cheap checks come first.
    ///
    /// In compatible and secure mode `msg_signature` counts and `signature` is ignored, as WeChat's page says.
    pub fn open(&self, query: &Query<'_>, body: &Bytes) -> Result<Opened, OpenError> {
        let stamp = PinnedStamp::of(query)?;
        if body.trim_ascii().is_empty() {
            return Err(OpenError::EmptyBody);
        }
        match self.mode {
            Mode::Plaintext => self.open_clear(query, stamp, body),
            Mode::Compatible | Mode::Secure => self.open_sealed(query, stamp, body),
        }
    }

    /// Verifies and decrypts the reply of a target that shares these credentials.
    pub fn open_reply(&self, body: &[u8]) -> Result<Bytes, OpenError> {
        let (outer, _) = OuterBody::read(body)?;
        let timestamp = present(outer.get(OuterField::TimeStamp), OuterField::TimeStamp.name())?;
        let nonce = present(outer.get(OuterField::Nonce), OuterField::Nonce.name())?;
        let given = signature_in(outer.get(OuterField::MsgSignature), OuterField::MsgSignature.name())?;
        // 13 digits: the npm packages `wechat` and `co-wechat` write milliseconds (node-webot/wechat #243).
        let stamp = PinnedStamp::new(timestamp, nonce, &[10, 13])?;
        let encrypt = present(outer.get(OuterField::Encrypt), OuterField::Encrypt.name())?;
        self.decrypt(stamp, given, encrypt).map(|decrypted| decrypted.clear)
    }

    fn open_clear(&self, query: &Query<'_>, stamp: PinnedStamp<'_>, body: &Bytes) -> Result<Opened, OpenError> {
        if query.encrypt_type.as_deref().is_some_and(|kind| kind != "raw") {
            return Err(OpenError::ModeMismatch);
        }
        let given = signature_in(query.signature.as_deref(), "signature")?;
        let token = self.signer(|token| given.matches([token, stamp.timestamp, stamp.nonce]))?;
        let message = Message::parse(body).map_err(OpenError::Body)?;
        if message.root.child(OuterField::Encrypt.name()).is_some() {
            return Err(OpenError::ModeMismatch);
        }
        let manner = ReplySealing { syntax: message.syntax, key: KeyVersion::Current, token };
        Ok(Opened { clear: body.clone(), message, manner })
    }

    fn open_sealed(&self, query: &Query<'_>, stamp: PinnedStamp<'_>, body: &Bytes) -> Result<Opened, OpenError> {
        if query.encrypt_type.as_deref() != Some("aes") || query.msg_signature.is_none() {
            return Err(OpenError::ModeMismatch);
        }
        let given = signature_in(query.msg_signature.as_deref(), "msg_signature")?;
        let (outer, syntax) = OuterBody::read(body)?;
        let encrypt = outer.get(OuterField::Encrypt).ok_or(OpenError::ModeMismatch)?;
        let Decrypted { clear, key, token } = self.decrypt(stamp, given, encrypt)?;
        let message = Message::parse(&clear).map_err(OpenError::Clear)?;
        // Compatible mode's clear elements are signed by nobody: they are not even compared.
        if self.mode == Mode::Secure
            && let Some(outside) = outer.get(OuterField::ToUserName)
            && let Some(inside) = message.root.text_of(OuterField::ToUserName.name())
            && outside != inside.trim_ascii()
        {
            return Err(OpenError::Addressee);
        }
        Ok(Opened { clear, message, manner: ReplySealing { syntax, key, token } })
    }

    /// Signature, then envelope. That `encrypt` is a whole number of envelope blocks is part of its pinned shape, so
    /// it is decoded before the signature is compared.
    fn decrypt(&self, stamp: PinnedStamp<'_>, given: ClaimedSignature, encrypt: &str) -> Result<Decrypted, OpenError> {
        let current = self.aes_key.as_ref().ok_or(OpenError::NoKey)?;
        let sealed = Ciphertext::decode(encrypt).map_err(|_| OpenError::NotBase64)?;
        let token = self.signer(|token| given.matches([token, stamp.timestamp, stamp.nonce, encrypt]))?;
        let Some(previous) = &self.previous_aes_key else {
            let clear = current.open(sealed, &self.app_id)?;
            return Ok(Decrypted { clear, key: KeyVersion::Current, token });
        };
        if let Ok(clear) = current.open(sealed.clone(), &self.app_id) {
            return Ok(Decrypted { clear, key: KeyVersion::Current, token });
        }
        let clear = previous.open(sealed, &self.app_id)?;
        Ok(Decrypted { clear, key: KeyVersion::Previous, token })
    }

    /// The token for which `matches` holds.
    fn signer(&self, matches: impl Fn(&str) -> bool) -> Result<KeyVersion, OpenError> {
        if matches(self.token.expose()) {
            return Ok(KeyVersion::Current);
        }
        match &self.previous_token {
            Some(token) if matches(token.expose()) => Ok(KeyVersion::Previous),
            _ => Err(OpenError::Signature),
        }
    }
}

struct Decrypted {
    clear: Bytes,
    key: KeyVersion,
    token: KeyVersion,
}

/// A timestamp and a nonce of the shape they must have before a signature over them says anything.
#[derive(Clone, Copy)]
struct PinnedStamp<'a> {
    timestamp: &'a str,
    nonce: &'a str,
}

impl<'a> PinnedStamp<'a> {
    fn of(query: &'a Query<'_>) -> Result<Self, OpenError> {
        let timestamp = present(query.timestamp.as_deref(), "timestamp")?;
        let nonce = present(query.nonce.as_deref(), "nonce")?;
        Self::new(timestamp, nonce, &[10])
    }

    /// `lengths` are those that the timestamp may have.
    fn new(timestamp: &'a str, nonce: &'a str, lengths: &[usize]) -> Result<Self, OpenError> {
        if !lengths.contains(&timestamp.len()) || !timestamp.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(OpenError::Malformed("timestamp"));
        }
        if nonce.len() > NONCE_LENGTH || !nonce.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(OpenError::Malformed("nonce"));
        }
        Ok(Self { timestamp, nonce })
    }
}

/// A value that is there and not empty.
fn present<'a>(value: Option<&'a str>, name: &'static str) -> Result<&'a str, OpenError> {
    value.filter(|value| !value.is_empty()).ok_or(OpenError::Missing(name))
}

fn signature_in(value: Option<&str>, name: &'static str) -> Result<ClaimedSignature, OpenError> {
    ClaimedSignature::parse(present(value, name)?).ok_or(OpenError::Malformed(name))
}
