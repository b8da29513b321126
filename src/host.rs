//! The `Host` of a request, by RFC 9112, 3.2: a request that two readers could take for requests to two hosts is refused.
//!
//! Invariants: HTTP/1.1 has exactly one `Host`, HTTP/1.0 and HTTP/2 at most one; its value is a host with a port or
//! without, and nothing else; the target has no user name. An empty value is allowed, as the RFC demands it of clients
//! whose target has no host.

use http::header::HOST;
use http::{Request, Version};

/// Whether the request names its host as the RFC demands.
pub fn is_valid<B>(request: &Request<B>) -> bool {
    // Deprecated in targets, and used to disguise them (RFC 9110, 4.2.4).
    if request.uri().authority().is_some_and(|authority| authority.as_str().contains('@')) {
        return false;
    }
    let mut hosts = request.headers().get_all(HOST).iter();
    match (hosts.next(), hosts.next()) {
        (Some(host), None) => is_host_and_port(host.as_bytes()),
        (None, _) => request.version() != Version::HTTP_11,
        (Some(_), Some(_)) => false,
    }
}

/// `uri-host [ ":" port ]` of RFC 3986.
fn is_host_and_port(text: &[u8]) -> bool {
    let (is_valid_host, rest) = if let Some(literal) = text.strip_prefix(b"[") {
        let Some(end) = literal.iter().position(|byte| *byte == b']') else { return false };
        (is_address(&literal[..end]), &literal[end + 1..])
    } else {
        let (name, rest) = text.split_at(text.iter().position(|byte| *byte == b':').unwrap_or(text.len()));
        (is_name(name), rest)
    };
    is_valid_host && (rest.is_empty() || rest[0] == b':' && rest[1..].iter().all(u8::is_ascii_digit))
}

/// The address in brackets: IPv6, or a later version's (`v1.x`).
fn is_address(text: &[u8]) -> bool {
    let is_later = |text: &str| {
        let Some((version, address)) = text.strip_prefix(['v', 'V']).and_then(|text| text.split_once('.')) else {
            return false;
        };
        let is_literal = |byte: u8| is_unreserved(byte) || is_sub_delimiter(byte) || byte == b':';
        !version.is_empty()
            && version.bytes().all(|byte| byte.is_ascii_hexdigit())
            && !address.is_empty()
            && address.bytes().all(is_literal)
    };
    std::str::from_utf8(text).is_ok_and(|text| text.parse::<std::net::Ipv6Addr>().is_ok() || is_later(text))
}

/// An IPv4 address or a name, which has more letters than names in the DNS.
fn is_name(mut text: &[u8]) -> bool {
    while let [first, rest @ ..] = text {
        text = match (first, rest) {
            (b'%', [high, low, rest @ ..]) if high.is_ascii_hexdigit() && low.is_ascii_hexdigit() => rest,
            _ if IN_NAME[usize::from(*first)] => rest,
            _ => return false,
        };
    }
    true
}

/// Which bytes a name may have as they are: looked up, as each push pays for it.
const IN_NAME: [bool; 256] = {
    let mut allowed = [false; 256];
    let mut byte: u8 = 0;
    while byte < 128 {
        allowed[byte as usize] = is_unreserved(byte) || is_sub_delimiter(byte);
        byte += 1;
    }
    allowed
};

const fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~')
}

const fn is_sub_delimiter(byte: u8) -> bool {
    matches!(byte, b'!' | b'$' | b'&' | b'\'' | b'(' | b')' | b'*' | b'+' | b',' | b';' | b'=')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn valid(version: Version, target: &str, hosts: &[&str]) -> bool {
        let mut request = Request::builder().version(version).uri(target);
        for host in hosts {
            request = request.header(HOST, *host);
        }
        is_valid(&request.body(()).unwrap())
    }

    #[test]
    fn http_1_1_names_its_host_exactly_once() {
        assert!(valid(Version::HTTP_11, "/wx", &["relay.test"]));
        assert!(!valid(Version::HTTP_11, "/wx", &[]));
        for version in [Version::HTTP_10, Version::HTTP_2] {
            assert!(valid(version, "/wx", &[]) && valid(version, "/wx", &["relay.test"]), "{version:?}");
        }
        for version in [Version::HTTP_10, Version::HTTP_11, Version::HTTP_2] {
            assert!(!valid(version, "/wx", &["relay.test", "relay.test"]), "{version:?}");
        }
    }

    #[test]
    fn a_host_is_a_name_or_an_address_with_a_port_or_without() {
        for host in [
            "relay.test",
            "relay.test:8080",
            "relay.test:",
            "",
            "192.0.2.1:80",
            "[2001:db8::1]",
            "[2001:db8::1]:443",
            "[v1.a:b]",
            "a_b.example",
            "caf%C3%A9.example",
            "wxrelay-1.default.svc",
        ] {
            assert!(valid(Version::HTTP_11, "/wx", &[host]), "{host}");
        }
        for host in [
            "user@relay.test",
            "user:secret@relay.test",
            "relay.test@evil.test:80",
            "relay.test/path",
            "relay.test?x",
            "relay.test#x",
            "http://relay.test",
            "a b",
            "a, b",
            "relay.test:80:80",
            "relay.test:port",
            "relay.test:-1",
            "[2001:db8::1",
            "[relay.test]",
            "[]",
            "[::1]x",
            "2001:db8::1",
            "relay%2",
            "relay%zz",
            "a\\b",
            "<a>",
            "\"a\"",
        ] {
            assert!(!valid(Version::HTTP_11, "/wx", &[host]), "{host}");
        }
    }

    #[test]
    fn a_target_has_no_user_name() {
        assert!(valid(Version::HTTP_11, "http://relay.test/wx", &["relay.test"]));
        assert!(!valid(Version::HTTP_11, "http://user@relay.test/wx", &["relay.test"]));
    }
}
