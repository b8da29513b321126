//! The query of a request from WeChat.
//!
//! Invariants: a known key occurs at most once, so no later reader can choose another one than was checked; values are
//! UTF-8 without NUL; a value without escapes is borrowed, not copied. `+` stays `+`, because values may be base64 and
//! are never form text. Deliberately not here: what the values must look like (`account`).

use std::borrow::Cow;
use std::fmt;

use percent_encoding::percent_decode_str;

/// The parameters that WeChat sends; all of them may be absent.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Query<'a> {
    /// Over token, timestamp and nonce; covers no body.
    pub signature: Option<Cow<'a, str>>,
    /// Over token, timestamp, nonce and the encrypted text.
    pub msg_signature: Option<Cow<'a, str>>,
    /// Seconds since 1970.
    pub timestamp: Option<Cow<'a, str>>,
    /// Random text.
    pub nonce: Option<Cow<'a, str>>,
    /// The sender's OpenID. Not signed: use it for no decision.
    pub openid: Option<Cow<'a, str>>,
    /// `aes`, or `raw`, or absent.
    pub encrypt_type: Option<Cow<'a, str>>,
    /// The text to return when WeChat verifies the URL.
    pub echostr: Option<Cow<'a, str>>,
}

/// Why a query is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QueryError {
    /// A known key occurs twice.
    #[error("the query has `{0}` twice")]
    Repeated(&'static str),
    /// `%` without two hex digits after it.
    #[error("the query has a bad percent escape")]
    Escape,
    /// A value that is not UTF-8 once decoded, or holds NUL.
    #[error("the query has a value that is not text")]
    NotText,
}

impl<'a> Query<'a> {
    /// Parses a query, without its `?`. Unknown keys are skipped.
    pub fn parse(text: &'a str) -> Result<Self, QueryError> {
        let mut query = Self::default();
        // True for nearly every query, and one search of the whole is cheaper than one of each part.
        let literal = !text.contains('%') && !text.contains('\0');
        let decode = |text| if literal { Ok(Cow::Borrowed(text)) } else { decode(text) };
        for pair in text.split('&').filter(|pair| !pair.is_empty()) {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            let (name, slot) = match decode(key)?.as_ref() {
                "signature" => ("signature", &mut query.signature),
                "msg_signature" => ("msg_signature", &mut query.msg_signature),
                "timestamp" => ("timestamp", &mut query.timestamp),
                "nonce" => ("nonce", &mut query.nonce),
                "openid" => ("openid", &mut query.openid),
                "encrypt_type" => ("encrypt_type", &mut query.encrypt_type),
                "echostr" => ("echostr", &mut query.echostr),
                _ => continue,
            };
            if slot.replace(decode(value)?).is_some() {
                return Err(QueryError::Repeated(name));
            }
        }
        Ok(query)
    }
}

/// Signatures and OpenIDs are not for logs.
impl fmt::Debug for Query<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Query").finish_non_exhaustive()
    }
}

fn decode(text: &str) -> Result<Cow<'_, str>, QueryError> {
    if text.contains('\0') {
        return Err(QueryError::NotText);
    }
    if !text.contains('%') {
        return Ok(Cow::Borrowed(text));
    }
    // The crate keeps an invalid escape as it is; two readers that disagree about it would see two queries.
    let escapes = text.split('%').skip(1);
    for escape in escapes {
        if !escape.as_bytes().first_chunk::<2>().is_some_and(|hex| hex.iter().all(u8::is_ascii_hexdigit)) {
            return Err(QueryError::Escape);
        }
    }
    let decoded = percent_decode_str(text).decode_utf8().map_err(|_| QueryError::NotText)?;
    if decoded.contains('\0') { Err(QueryError::NotText) } else { Ok(decoded) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn reads_the_order_seen_on_the_wire_without_copying() {
        let query = Query::parse(
            "signature=s&timestamp=1&nonce=2&openid=o-_1&encrypt_type=aes&msg_signature=m&echostr=e&other=x",
        )
        .unwrap();
        assert!(matches!(query.signature, Some(Cow::Borrowed("s"))));
        assert!(matches!(query.timestamp, Some(Cow::Borrowed("1"))));
        assert!(matches!(query.nonce, Some(Cow::Borrowed("2"))));
        assert!(matches!(query.openid, Some(Cow::Borrowed("o-_1"))));
        assert!(matches!(query.encrypt_type, Some(Cow::Borrowed("aes"))));
        assert!(matches!(query.msg_signature, Some(Cow::Borrowed("m"))));
        assert!(matches!(query.echostr, Some(Cow::Borrowed("e"))));
    }

    #[test]
    fn escapes_are_decoded_and_a_plus_stays_a_plus() {
        let query = Query::parse("echostr=a%2Fb%2bc%3D+d&nonce=%E4%BD%A0&%74imestamp=7").unwrap();
        assert_eq!(query.echostr.as_deref(), Some("a/b+c=+d"));
        assert_eq!(query.nonce.as_deref(), Some("你"));
        assert_eq!(query.timestamp.as_deref(), Some("7"));
    }

    #[test]
    fn refuses_what_two_readers_could_read_differently() {
        for (text, error) in [
            ("nonce=1&nonce=1", QueryError::Repeated("nonce")),
            ("nonce=1&%6eonce=2", QueryError::Repeated("nonce")),
            ("signature=&signature=x", QueryError::Repeated("signature")),
            ("nonce=%", QueryError::Escape),
            ("nonce=%4", QueryError::Escape),
            ("nonce=%4g", QueryError::Escape),
            ("nonce=%%41", QueryError::Escape),
            ("nonce=%00", QueryError::NotText),
            ("nonce=\0", QueryError::NotText),
            ("nonce=%ff", QueryError::NotText),
        ] {
            assert_eq!(Query::parse(text), Err(error), "{text}");
        }
        assert_eq!(Query::parse("a=1&a=2&&nonce"), Ok(Query { nonce: Some("".into()), ..Query::default() }));
    }

    proptest! {
        #[test]
        fn no_query_makes_the_parser_panic(text in "(([a-z_]{0,3}|nonce|openid)=?(%[0-9a-fA-F]{0,2}|.){0,6}&?){0,5}") {
            if let Ok(query) = Query::parse(&text) {
                prop_assert!(query.nonce.is_none_or(|nonce| !nonce.contains('\0')));
            }
        }

        #[test]
        fn an_encoded_value_is_read_as_it_was(value in "[^\0]{0,40}") {
            let encoded = percent_encoding::utf8_percent_encode(&value, percent_encoding::NON_ALPHANUMERIC).to_string();
            let text = format!("x=1&openid={encoded}&y");
            let query = Query::parse(&text).unwrap();
            prop_assert_eq!(query.openid.as_deref(), Some(value.as_str()));
        }
    }
}
