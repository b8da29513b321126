//! The query of a login callback: which parameters are passed on, undecoded. Pure.

use std::fmt::Write as _;

/// The parameters that WeChat's login adds.
pub const DEFAULT_PASS: [&str; 2] = ["code", "state"];

/// The longest query, in bytes.
pub const MAX_QUERY: usize = 8 * 1024;

/// The longest code, in bytes; WeChat's have 32 characters.
const MAX_CODE: usize = 512;

/// The query is not one that WeChat's login makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a login callback of WeChat")]
pub struct Malformed;

/// The parameters of one callback that are passed on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Passed {
    /// `key=value` pairs in their order, ready to be put behind a URL.
    pub pairs: String,
    /// Whether there is a `code`: without one, the person has refused.
    pub has_code: bool,
}

/// Picks the parameters named in `pass` out of a query; all others are dropped.
///
/// Keys and values are never decoded, so that the client reads exactly what this function has checked: `c%6fde` is not
/// `code`.
///
/// # Errors
/// [`Malformed`] if a parameter occurs twice, a value has a control character or a broken percent-encoding, the code is
/// not one, or there is neither `code` nor `state`.
pub fn pass<S: AsRef<str>>(query: &str, pass: &[S]) -> Result<Passed, Malformed> {
    if query.len() > MAX_QUERY {
        return Err(Malformed);
    }
    let mut seen: Vec<&str> = Vec::new();
    let mut pairs = String::new();
    for pair in query.split('&') {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        if !pass.iter().any(|name| name.as_ref() == key) {
            continue;
        }
        if seen.contains(&key) || key == "code" && !is_code(value) {
            return Err(Malformed);
        }
        seen.push(key);
        if !pairs.is_empty() {
            pairs.push('&');
        }
        pairs.push_str(key);
        pairs.push('=');
        write_value(&mut pairs, value)?;
    }
    let has_code = seen.contains(&"code");
    if has_code || seen.contains(&"state") { Ok(Passed { pairs, has_code }) } else { Err(Malformed) }
}

fn is_code(value: &str) -> bool {
    let unreserved = |byte: u8| byte.is_ascii_alphanumeric() || b"._~-".contains(&byte);
    (1..=MAX_CODE).contains(&value.len()) && value.bytes().all(unreserved)
}

/// Writes a value as it came, with what RFC 3986 does not allow in a query percent-encoded.
fn write_value(out: &mut String, value: &str) -> Result<(), Malformed> {
    let bytes = value.as_bytes();
    for (index, byte) in bytes.iter().copied().enumerate() {
        match byte {
            b'%' => {
                let decoded = bytes.get(index + 1..index + 3).and_then(decode_hex).ok_or(Malformed)?;
                if decoded.is_ascii_control() {
                    return Err(Malformed);
                }
                out.push('%');
            }
            _ if byte.is_ascii_control() => return Err(Malformed),
            _ if is_query_byte(byte) => out.push(char::from(byte)),
            _ => write!(out, "%{byte:02X}").map_err(|_| Malformed)?,
        }
    }
    Ok(())
}

/// RFC 3986, section 3.4, without `%` and `&`.
fn is_query_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~!$'()*+,;=:@/?".contains(&byte)
}

fn decode_hex(digits: &[u8]) -> Option<u8> {
    let [high, low] = digits else { return None };
    let digit = |byte: u8| char::from(byte).to_digit(16);
    u8::try_from(digit(*high)? * 16 + digit(*low)?).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn passed(query: &str) -> Option<(String, bool)> {
        pass(query, &DEFAULT_PASS).ok().map(|passed| (passed.pairs, passed.has_code))
    }

    #[test]
    fn code_and_state_are_passed_on_as_they_came_and_nothing_else() {
        let cases = [
            ("code=abc&state=xyz", "code=abc&state=xyz"),
            ("state=xyz&code=abc", "state=xyz&code=abc"),
            ("a=1&code=abc&b=2&state=x%2Fy&redirect_uri=https%3A%2F%2Fevil.example", "code=abc&state=x%2Fy"),
            ("code=abc&state=", "code=abc&state="),
            ("code=abc&state", "code=abc&state="),
            ("code=abc", "code=abc"),
            ("code=abc&state=a+b;c=d?e/f", "code=abc&state=a+b;c=d?e/f"),
            ("code=abc&c%6fde=other", "code=abc"),
            ("code=abc&Code=other&code[]=other", "code=abc"),
        ];
        for (query, expected) in cases {
            assert_eq!(passed(query), Some((expected.to_owned(), true)), "{query}");
        }
    }

    #[test]
    fn state_alone_means_that_the_person_refused() {
        assert_eq!(passed("state=xyz"), Some(("state=xyz".to_owned(), false)));
    }

    #[test]
    fn what_wechat_does_not_send_is_malformed() {
        let long = format!("code=abc&state={}", "x".repeat(MAX_QUERY));
        let long_code = format!("code={}", "x".repeat(MAX_CODE + 1));
        let cases = [
            "",
            "&",
            "a=1",
            "code=",
            "code",
            "code=abc&code=abc",
            "code=abc&code=other",
            "state=a&state=b",
            "code=abc&state=%",
            "code=abc&state=%4",
            "code=abc&state=%zz",
            "code=abc&state=%00",
            "code=abc&state=%0d%0a",
            "code=abc&state=%7f",
            "code=abc&state=a\u{1}b",
            "code=a%41",
            "code=a/b",
            "c%6fde=abc",
            &long,
            &long_code,
        ];
        for query in cases {
            assert_eq!(pass(query, &DEFAULT_PASS), Err(Malformed), "{query}");
        }
    }

    #[test]
    fn bytes_outside_a_query_are_encoded() {
        assert_eq!(passed("code=a&state=é<\"`"), Some(("code=a&state=%C3%A9%3C%22%60".to_owned(), true)));
    }

    proptest! {
        #[test]
        fn each_key_is_passed_at_most_once_and_every_byte_is_one_of_a_query(query in "(code|state|x|c%6fde|%|=|&|[ -~]|é){0,40}") {
            if let Ok(passed) = pass(&query, &DEFAULT_PASS) {
                let keys: Vec<_> = passed.pairs.split('&').map(|pair| pair.split('=').next().unwrap()).collect();
                prop_assert!(keys.len() <= 2 && (keys.len() == 1 || keys[0] != keys[1]), "{keys:?}");
                prop_assert!(keys.iter().all(|key| DEFAULT_PASS.contains(key)), "{keys:?}");
                prop_assert!(passed.pairs.bytes().all(|byte| is_query_byte(byte) || b"%&".contains(&byte)));
            }
        }
    }
}
