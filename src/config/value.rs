//! Parsers of single values: durations, sizes, addresses, URLs, names.
//!
//! The error of each parser is what it expected. Pure.

use std::net::SocketAddr;
use std::time::Duration;

use http::Uri;

use crate::server::Listen;
use crate::wechat::Mode;

/// The longest duration: a longer one is a typo, and this is far below the overflow of clocks.
const LONGEST: Duration = Duration::from_secs(10 * 366 * 86_400);

const MODES: &str = "\"plaintext\", \"compatible\" or \"secure\"";

/// The result of a parser: the value, or what was expected.
pub(super) type Parsed<T> = Result<T, &'static str>;

/// A duration such as `4.5s`.
pub(super) fn duration(text: &str) -> Parsed<Duration> {
    let duration = humantime::parse_duration(text).ok().filter(|duration| *duration <= LONGEST);
    duration.ok_or("a duration such as \"500ms\", \"4.5s\", \"2m\" or \"7d\"")
}

/// A duration that is not zero.
pub(super) fn some_duration(text: &str) -> Parsed<Duration> {
    duration(text).and_then(|some| if some.is_zero() { Err("a duration longer than zero") } else { Ok(some) })
}

/// `off`, or a duration of 10 seconds to a day.
pub(super) fn skew(text: &str) -> Parsed<Option<Duration>> {
    if text == "off" {
        return Ok(None);
    }
    let range = Duration::from_secs(10)..=Duration::from_secs(86_400);
    duration(text).ok().filter(|skew| range.contains(skew)).map(Some).ok_or("10s to 24h, or \"off\"")
}

/// The time that a push may wait for its reply.
pub(super) fn reply_budget(text: &str) -> Parsed<Duration> {
    let longest = Duration::from_millis(4900);
    let expected = "a duration of at most 4.9s, since WeChat closes the connection after 5s";
    some_duration(text).ok().filter(|budget| *budget <= longest).ok_or(expected)
}

/// `off`, or a time within WeChat's three tries: the last begins 10 s after the first, and has the longest usual budget.
pub(super) fn reply_window(text: &str) -> Parsed<Option<Duration>> {
    if text == "off" {
        return Ok(None);
    }
    let longest = Duration::from_millis(14_500);
    some_duration(text)
        .ok()
        .filter(|window| *window <= longest)
        .map(Some)
        .ok_or("a duration of at most 14.5s, or \"off\"")
}

/// `off`, or a time for which a reply waits for the user.
pub(super) fn held_replies(text: &str) -> Parsed<Option<Duration>> {
    if text == "off" {
        return Ok(None);
    }
    let range = Duration::from_secs(1)..=Duration::from_secs(86_400);
    duration(text).ok().filter(|keep| range.contains(keep)).map(Some).ok_or("1s to 24h, or \"off\"")
}

/// Failures in a time: `20/5m`.
pub(super) fn failures(text: &str) -> Parsed<(usize, Duration)> {
    let parts = text.split_once('/').and_then(|(count, period)| {
        let count = count.trim().parse().ok().filter(|count| (1..=1000).contains(count))?;
        let period = duration(period.trim()).ok().filter(|period| (1..=3600).contains(&period.as_secs()))?;
        Some((count, period))
    });
    parts.ok_or("a number of failures from 1 to 1000 and a time from 1s to 1h, such as \"20/5m\"")
}

/// A number of bytes such as `1MiB`.
pub(super) fn size(text: &str) -> Parsed<u64> {
    text.parse::<bytesize::ByteSize>().map(|size| size.as_u64()).map_err(|_| "a size such as \"1MiB\" or \"10GiB\"")
}

/// The largest size of a body.
pub(super) fn max_body(text: &str) -> Parsed<usize> {
    let size = size(text)?;
    let range = 1024..=16 * 1024 * 1024;
    let bytes = usize::try_from(size).ok().filter(|bytes| range.contains(bytes));
    bytes.ok_or("1KiB to 16MiB")
}

/// The largest size of the store.
pub(super) fn max_size(text: &str) -> Parsed<u64> {
    let size = size(text)?;
    if size < 16 * 1024 * 1024 { Err("at least 16MiB") } else { Ok(size) }
}

/// The memory for events that wait for targets.
pub(super) fn max_memory(text: &str) -> Parsed<u64> {
    let size = size(text)?;
    if size < 1024 * 1024 { Err("at least 1MiB") } else { Ok(size) }
}

/// `true` or `false`.
pub(super) fn boolean(text: &str) -> Parsed<bool> {
    text.parse().map_err(|_| "true or false")
}

/// The value of a key that can only be `true`.
pub(super) fn yes(text: &str) -> Parsed<()> {
    if text == "true" { Ok(()) } else { Err("true, or the key left out") }
}

/// A number of concurrent attempts.
pub(super) fn concurrency(text: &str) -> Parsed<usize> {
    text.parse().ok().filter(|count| (1..=1024).contains(count)).ok_or("a number from 1 to 1024")
}

/// A rate of attempts: `100/s`.
pub(super) fn rate(text: &str) -> Parsed<std::num::NonZeroU32> {
    let count = text.strip_suffix("/s").and_then(|count| count.trim().parse().ok());
    count.ok_or("a number of attempts per second such as \"100/s\"")
}

/// An address to listen on. A relative path is left as it is.
pub(super) fn listen(text: &str) -> Parsed<Listen> {
    let expected = "an address and port such as \"0.0.0.0:8080\" or \"[::]:8080\", \"unix:/PATH\", or \"systemd\"";
    match text.strip_prefix("unix:") {
        Some("") => Err(expected),
        Some(path) => Ok(Listen::Unix(path.into())),
        None if text == "systemd" => Ok(Listen::Systemd),
        None => text.parse::<SocketAddr>().map(Listen::Tcp).map_err(|_| expected),
    }
}

/// The path of an account's server URL, without a trailing slash: the root is the empty text.
pub(super) fn account_path(text: &str) -> Parsed<String> {
    let sound = text.starts_with('/') && text.bytes().all(|byte| byte.is_ascii_graphic() && !b"?#".contains(&byte));
    let expected = "a path that begins with `/`, without blanks, `?` and `#`, such as \"/wechat/events\"";
    if sound { Ok(text.trim_end_matches('/').to_owned()) } else { Err(expected) }
}

/// An AppID. Those of official accounts are `wx` and 16 hex digits; other products have other forms.
pub(super) fn app_id(text: &str) -> Parsed<String> {
    let sound = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    if sound { Ok(text.to_owned()) } else { Err("the AppID from WeChat's console, such as \"wx0123456789abcdef\"") }
}

/// The mode of an account.
pub(super) fn mode(text: &str) -> Parsed<Mode> {
    text.parse().map_err(|_| MODES)
}

/// The name of an account or target, in lower case, since environment variables can set no other.
pub(super) fn is_name(text: &str) -> bool {
    let sign = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"_-".contains(&byte);
    !text.is_empty() && text.bytes().all(sign)
}

/// An http or https URL with a host, without user and fragment.
pub(super) fn url(text: &str) -> Parsed<Uri> {
    if text.contains('#') {
        return Err("a URL without a fragment (`#`), which is never sent");
    }
    if !text.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err("a URL without blanks and with everything outside ASCII percent-encoded");
    }
    let expected = "a URL that begins with http:// or https:// and names a host";
    let uri: Uri = text.parse().map_err(|_| expected)?;
    let authority = uri.authority().ok_or(expected)?;
    if !matches!(uri.scheme_str(), Some("http" | "https")) {
        return Err(expected);
    }
    if authority.as_str().contains('@') {
        return Err("a URL without user and password, which belong in `headers`");
    }
    if !has_sound_port(authority) {
        return Err("a URL whose port, if it has one, is 1 to 65535");
    }
    Ok(uri)
}

/// The URL of an ACME directory.
pub(super) fn directory(text: &str) -> Parsed<String> {
    let https = |uri: &Uri| uri.scheme_str() == Some("https") && text.len() <= 200;
    let expected = "the https URL of an ACME directory, such as \"https://acme-v02.api.letsencrypt.org/directory\"";
    url(text).ok().filter(https).map(|_| text.to_owned()).ok_or(expected)
}

/// A DNS name that TLS-ALPN-01 can validate, in lower case.
pub(super) fn domain(text: &str) -> Parsed<String> {
    if text.contains('*') {
        return Err("a name without `*`: a wildcard can't be validated by TLS-ALPN-01");
    }
    if text.trim_matches(['[', ']']).parse::<std::net::IpAddr>().is_ok() {
        return Err("the name of a host, not its address");
    }
    let inner = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
    let label = |label: &str| {
        (1..=63).contains(&label.len()) && label.bytes().all(inner) && !label.starts_with('-') && !label.ends_with('-')
    };
    let sound = text.len() <= 253 && text.split('.').all(label);
    let expected = "a host name such as \"wx.example.com\", in punycode (\"xn--..\") where it has other letters";
    if sound { Ok(text.to_ascii_lowercase()) } else { Err(expected) }
}

/// An email address.
pub(super) fn email(text: &str) -> Parsed<String> {
    let graphic = text.bytes().all(|byte| byte.is_ascii_graphic() && !b",?:<>".contains(&byte));
    let parts = text.split_once('@').is_some_and(|(user, host)| !user.is_empty() && domain(host).is_ok());
    if graphic && parts { Ok(text.to_owned()) } else { Err("an address such as \"ops@example.com\"") }
}

/// The URL of an http proxy. Connections through it to https targets stay encrypted.
pub(super) fn proxy(text: &str) -> Parsed<Uri> {
    url(text).ok().filter(|uri| uri.scheme_str() == Some("http")).ok_or("a URL such as \"http://proxy.example:3128\"")
}

/// The URL of a collector. The default path is `/v1/traces`, as in OTLP.
pub(super) fn collector(text: &str) -> Parsed<Uri> {
    let expected = "a URL such as \"http://127.0.0.1:4318\", or with the whole path for traces";
    let url = url(text).map_err(|_| expected)?;
    if url.path() != "/" || url.query().is_some() {
        return Ok(url);
    }
    format!("{}/v1/traces", text.trim_end_matches('/')).parse().map_err(|_| expected)
}

/// Whether there is a host, and the port, if any, is valid.
pub(super) fn has_sound_port(authority: &http::uri::Authority) -> bool {
    let port = authority.as_str().strip_prefix(authority.host());
    let sound =
        |port: &str| port.strip_prefix(':').and_then(|port| port.parse().ok()).is_some_and(|port: u16| port > 0);
    !authority.host().is_empty() && port.is_some_and(|port| port.is_empty() || sound(port))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn durations_may_have_fractions() {
        assert_eq!(duration("4.5s"), Ok(Duration::from_millis(4500)));
        assert_eq!(duration("7d"), Ok(Duration::from_secs(7 * 86_400)));
        assert!(duration("5").is_err() && duration("99999y").is_err() && duration("-1s").is_err());
        assert!(some_duration("0s").is_err());
        assert_eq!(skew("off"), Ok(None));
        assert!(skew("9s").is_err() && skew("25h").is_err());
        assert!(reply_budget("5s").is_err());
        assert_eq!(reply_window("14.5s"), Ok(Some(Duration::from_millis(14_500))));
        assert!(reply_window("14.6s").is_err());
    }

    #[test]
    fn sizes_are_binary_or_decimal() {
        assert_eq!(size("1MiB"), Ok(1_048_576));
        assert_eq!(size("1MB"), Ok(1_000_000));
        assert!(size("lots").is_err());
        assert!(max_body("1023").is_err() && max_body("17MiB").is_err());
    }

    #[test]
    fn a_url_has_scheme_and_host_but_no_user_and_no_fragment() {
        for sound in ["http://a", "https://a:8443/x?y=z", "http://[::1]:9000/", "http://127.0.0.1:9000/wechat"] {
            assert!(url(sound).is_ok(), "{sound}");
        }
        let broken = [
            "",
            "a",
            "/a",
            "ftp://a",
            "a:80",
            "http://",
            "http:///x",
            "http://u:p@a/",
            "http://a/#b",
            "http://a:0/",
            "http://a:99999/",
            "http://a:x/",
            "http://a b/",
            "http://ä/",
            "http://:80/",
        ];
        for broken in broken {
            assert!(url(broken).is_err(), "{broken}");
        }
    }

    #[test]
    fn a_collector_without_a_path_has_the_default_one() {
        for (text, sent_to) in [
            ("http://127.0.0.1:4318", "http://127.0.0.1:4318/v1/traces"),
            ("https://otlp.example/", "https://otlp.example/v1/traces"),
            ("https://otlp.example/otlp/v1/traces", "https://otlp.example/otlp/v1/traces"),
            ("http://otlp.example/adapt_x/api/otlp/traces", "http://otlp.example/adapt_x/api/otlp/traces"),
        ] {
            assert_eq!(collector(text).map(|url| url.to_string()), Ok(sent_to.to_owned()));
        }
        assert!(collector("127.0.0.1:4318").is_err() && collector("grpc://a:4317").is_err());
    }

    #[test]
    fn a_domain_is_one_that_an_authority_can_validate() {
        assert_eq!(domain("WX.Example.com"), Ok("wx.example.com".to_owned()));
        assert!(domain("localhost").is_ok() && domain("xn--fiqs8s.cn").is_ok());
        let long = "a".repeat(64);
        for broken in ["", "*.example.com", "127.0.0.1", "[::1]", "::1", "a..b", "a.", "-a.b", "a_b.c", "a/b", &long] {
            assert!(domain(broken).is_err(), "{broken}");
        }
        assert!(email("ops@example.com").is_ok());
        for broken in ["", "ops", "@example.com", "ops@", "mailto:ops@example.com", "a@b,c@d", "o ps@example.com"] {
            assert!(email(broken).is_err(), "{broken}");
        }
        assert!(directory("http://ca.internal/directory").is_err() && directory("ca.internal").is_err());
    }

    #[test]
    fn a_trailing_slash_makes_no_difference() {
        assert_eq!(account_path("/wechat/"), Ok("/wechat".to_owned()));
        assert_eq!(account_path("/"), Ok(String::new()));
        assert!(account_path("wechat").is_err() && account_path("/a?b").is_err() && account_path("").is_err());
    }

    #[test]
    fn addresses_are_tcp_unix_or_systemd() {
        assert_eq!(listen("unix:/run/x"), Ok(Listen::Unix("/run/x".into())));
        assert_eq!(listen("systemd"), Ok(Listen::Systemd));
        assert!(matches!(listen("[::]:80"), Ok(Listen::Tcp(_))));
        assert!(listen(":8080").is_err() && listen("localhost:80").is_err() && listen("unix:").is_err());
    }

    proptest! {
        #[test]
        fn no_text_makes_a_parser_panic(text in "\\PC{0,30}", tail in "[a-z0-9:/@#.\\[\\]]{0,20}") {
            drop(url(&text));
            drop(url(&format!("http://{tail}")));
            drop((duration(&text), size(&text), rate(&text), account_path(&text)));
            drop(listen(&tail));
        }
    }
}
