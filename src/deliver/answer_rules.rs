//! What the text of a 2xx answer means: `delivered_if`, `failed_if` and `no_reply_if` of a target.
//!
//! Many programs report an error with status 200. The text is the body as it came, up to [`super::ANSWER_CAP`] bytes,
//! without white space around it; bytes that are not UTF-8 are replaced.

use std::borrow::Cow;

use http::HeaderMap;
use http::header::CONTENT_ENCODING;
use serde_json::{Map, Value};

use super::ANSWER_CAP;
use super::client::{AnswerBody, BodyEnd};
use crate::route::Patterns;
use crate::wechat::message::trim;

/// What an answer's text must be, or must not be.
#[derive(Clone, Debug, Default)]
pub struct AnswerRules {
    /// If set, any other text is a failed attempt.
    pub delivered_if: Option<AnswerPatterns>,
    /// If set, such a text is a failed attempt.
    pub failed_if: Option<AnswerPatterns>,
    /// If set, such a reply counts as none.
    pub no_reply_if: Option<AnswerPatterns>,
}

/// Patterns for a text, any of which is enough.
#[derive(Clone, Debug)]
pub struct AnswerPatterns {
    /// Those of the text itself.
    pub texts: Patterns,
    /// Whether the word `json` is among them: JSON that reports an error, or in `delivered_if` JSON that reports none.
    pub json: bool,
}

impl AnswerRules {
    /// Why a 2xx answer is a failed attempt, if it is one.
    pub(super) fn failure(&self, body: &AnswerBody, headers: &HeaderMap) -> Option<String> {
        if self.delivered_if.is_none() && self.failed_if.is_none() {
            return None;
        }
        if body.end == BodyEnd::BrokenOff {
            return Some("broke off before its end".to_owned());
        }
        if let Some(coding) = content_encoding(headers).filter(|_| !body.bytes.is_empty()) {
            return Some(format!("has Content-Encoding {coding}; expected one without it"));
        }
        let text = text(&body.bytes);
        if self.delivered_if.as_ref().is_some_and(|patterns| !patterns.hold(&text, Some(false))) {
            return Some("with an error in the body: `delivered_if` does not match".to_owned());
        }
        let failed = self.failed_if.as_ref().is_some_and(|patterns| patterns.hold(&text, Some(true)));
        failed.then(|| "with an error in the body: `failed_if` matches".to_owned())
    }

    /// Whether a reply with this text counts as none.
    pub(super) fn rules_out(&self, reply: &str) -> bool {
        self.no_reply_if.as_ref().is_some_and(|patterns| patterns.hold(reply, Some(true)))
    }
}

impl AnswerPatterns {
    /// Whether a text matches; `json` holds for JSON whose report of an error is this one.
    fn hold(&self, text: &str, json: Option<bool>) -> bool {
        let text = trim(text);
        self.texts.hold(text) || self.json && reports_error(text) == json
    }
}

/// An answer's text, without a byte order mark and white space around it.
pub(super) fn text(body: &[u8]) -> Cow<'_, str> {
    let body = body.get(..ANSWER_CAP).unwrap_or(body);
    String::from_utf8_lossy(body.strip_prefix("\u{feff}".as_bytes()).unwrap_or(body).trim_ascii())
}

/// Whether an answer says something: most are empty or `success`.
pub(super) fn says_something(body: &[u8]) -> bool {
    let text = body.trim_ascii();
    !text.is_empty() && text != b"success"
}

/// How a body is compressed, by a name that we know; `None` where it is not.
pub(super) fn content_encoding(headers: &HeaderMap) -> Option<&'static str> {
    let given = headers.get(CONTENT_ENCODING)?.as_bytes();
    if given.is_empty() || given.eq_ignore_ascii_case(b"identity") {
        return None;
    }
    let known = ["gzip", "br", "deflate", "zstd"];
    Some(known.into_iter().find(|name| given.eq_ignore_ascii_case(name.as_bytes())).unwrap_or("unknown"))
}

/// Whether a JSON object reports an error, by what APIs usually do; `None` for any other text.
///
/// An error is one of these, in the outermost object: `errcode`, `errno`, `err_no`, `code` or `statusCode` with a
/// number other than 0 and 2xx; `success` or `ok` that is false; `status` that is `error` or `fail`, or a number of 400
/// or more; an `error` that is not empty.
fn reports_error(text: &str) -> Option<bool> {
    let object: Map<String, Value> = text.starts_with('{').then(|| serde_json::from_str(text).ok()).flatten()?;
    Some(object.iter().any(|(name, value)| match name.as_str() {
        "errcode" | "errno" | "err_no" | "code" | "statusCode" => {
            number(value).is_some_and(|code| code != 0 && !(200..300).contains(&code))
        }
        "success" | "ok" => *value == Value::Bool(false),
        "status" => {
            let word = value.as_str().unwrap_or_default().to_ascii_lowercase();
            matches!(word.as_str(), "error" | "fail" | "failed" | "failure")
                || number(value).is_some_and(|status| status >= 400)
        }
        "error" => match value {
            Value::Null | Value::Bool(false) => false,
            Value::String(text) => !text.is_empty(),
            Value::Object(inner) => !inner.is_empty(),
            Value::Array(list) => !list.is_empty(),
            Value::Bool(true) => true,
            Value::Number(_) => number(value) != Some(0),
        },
        _ => false,
    }))
}

/// A whole number, also as a text.
fn number(value: &Value) -> Option<i64> {
    value.as_i64().or_else(|| value.as_str()?.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::route::Pattern;

    fn patterns(texts: &[&str], json: bool) -> Option<AnswerPatterns> {
        let texts = texts.iter().map(|text| Pattern::parse(text, false).unwrap()).collect();
        Some(AnswerPatterns { texts: Patterns(texts), json })
    }

    fn failure(rules: &AnswerRules, body: &[u8], end: BodyEnd) -> Option<String> {
        rules.failure(&AnswerBody { bytes: body.to_vec(), end }, &HeaderMap::new())
    }

    #[test]
    fn an_answer_fails_that_does_not_match_or_that_must_not() {
        let none = AnswerRules::default();
        let delivered =
            AnswerRules { delivered_if: patterns(&["", "ok", "re:^done"], false), ..AnswerRules::default() };
        let failed = AnswerRules { failed_if: patterns(&["*error*"], false), ..AnswerRules::default() };
        for (body, fails) in [
            ("", [false, false, false]),
            (" \r\n", [false, false, false]),
            ("\u{feff}ok\n", [false, false, false]),
            ("OK", [false, true, false]),
            ("done.", [false, false, false]),
            ("an error", [false, true, true]),
        ] {
            let whole = |rules| failure(rules, body.as_bytes(), BodyEnd::Whole).is_some();
            assert_eq!([whole(&none), whole(&delivered), whole(&failed)], fails, "{body:?}");
        }
        assert!(failure(&failed, b"\xff error \xfe", BodyEnd::Capped).is_some(), "judged by what was read");
        assert!(failure(&failed, b"", BodyEnd::BrokenOff).is_some(), "what is missing may be the error");
        assert_eq!(failure(&none, b"", BodyEnd::BrokenOff), None);
    }

    #[test]
    fn a_compressed_answer_cannot_be_judged() {
        let failed = AnswerRules { failed_if: patterns(&["*error*"], false), ..AnswerRules::default() };
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_ENCODING, "GZIP".parse().unwrap());
        let body = |bytes: &[u8]| AnswerBody { bytes: bytes.to_vec(), end: BodyEnd::Whole };
        let why = failed.failure(&body(b"\x1f\x8b"), &headers);
        assert!(why.is_some_and(|why| why.contains("Content-Encoding gzip")));
        assert_eq!(failed.failure(&body(b""), &headers), None, "nothing to decompress");
        headers.insert(CONTENT_ENCODING, "identity".parse().unwrap());
        assert_eq!(failed.failure(&body(b"fine"), &headers), None);
    }

    #[test]
    fn json_reports_an_error_in_the_usual_ways() {
        for error in [
            r#"{"status":"error","msg":"ticket not found","data":null}"#,
            r#"{"status":"FAIL"}"#,
            r#"{"status":500}"#,
            r#"{"errcode":40001,"errmsg":"invalid credential"}"#,
            r#"{"errcode":"40001"}"#,
            r#"{"code":-1}"#,
            r#"{"code":404,"data":{}}"#,
            r#"{"statusCode":2003,"message":"x"}"#,
            r#"{"success":false}"#,
            r#"{"ok":false}"#,
            r#"{"error":"no"}"#,
            r#"{"error":{"code":1}}"#,
        ] {
            assert_eq!(reports_error(error), Some(true), "{error}");
        }
        for fine in [
            "{}",
            r#"{"status":"ok"}"#,
            r#"{"status":200}"#,
            r#"{"errcode":0,"errmsg":"ok"}"#,
            r#"{"code":0}"#,
            r#"{"code":"200"}"#,
            r#"{"code":"SUCCESS"}"#,
            r#"{"success":true,"error":null}"#,
            r#"{"error":""}"#,
            r#"{"data":{"code":500}}"#,
        ] {
            assert_eq!(reports_error(fine), Some(false), "{fine}");
        }
        for other in ["", "success", "[1]", "{", "<xml/>", r#""error""#] {
            assert_eq!(reports_error(other), None, "{other}");
        }
        let json = patterns(&[], true);
        let rules = AnswerRules { delivered_if: json.clone(), ..AnswerRules::default() };
        assert!(failure(&rules, b"<html>", BodyEnd::Whole).is_some(), "no JSON");
        assert_eq!(failure(&rules, br#"{"code":0}"#, BodyEnd::Whole), None);
        let rules = AnswerRules { failed_if: json, ..AnswerRules::default() };
        assert!(failure(&rules, br#"{"code":1}"#, BodyEnd::Whole).is_some());
        assert_eq!(failure(&rules, b"<html>", BodyEnd::Whole), None);
    }
}
