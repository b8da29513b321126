//! Which addresses are not public: a target with `deny_private` must not resolve to them.
//!
//! By IANA's registries of special-purpose addresses (RFC 6890, 8215, 9637) and what clouds use beside them. IPv6 is an
//! allowlist: only global unicast (2000::/3) passes, without its special ranges; an address that embeds an IPv4 address
//! is classified by that one or refused. Pure: the caller passes the address that it is about to dial.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{Ipv4Net, Ipv6Net};

/// An address that `deny_private` refuses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("denied: {address} is {kind}, and the target has deny_private")]
pub struct Denied {
    address: IpAddr,
    kind: &'static str,
}

/// The first that contains an address names its kind.
const V4: [(Ipv4Net, &str); 17] = [
    (v4([255, 255, 255, 255], 32), "broadcast"),
    (v4([0, 0, 0, 0], 8), "unspecified"),
    (v4([10, 0, 0, 0], 8), "private"),
    (v4([100, 64, 0, 0], 10), "shared (CGNAT)"),
    (v4([127, 0, 0, 0], 8), "loopback"),
    // The metadata service of clouds, which gives out credentials.
    (v4([169, 254, 0, 0], 16), "link-local"),
    (v4([168, 63, 129, 16], 32), "the platform's (Azure)"),
    (v4([172, 16, 0, 0], 12), "private"),
    (v4([192, 0, 0, 0], 24), "reserved"),
    (v4([192, 0, 2, 0], 24), "for documentation"),
    (v4([192, 88, 99, 0], 24), "reserved (6to4)"),
    (v4([192, 168, 0, 0], 16), "private"),
    (v4([198, 18, 0, 0], 15), "for benchmarks"),
    (v4([198, 51, 100, 0], 24), "for documentation"),
    (v4([203, 0, 113, 0], 24), "for documentation"),
    (v4([224, 0, 0, 0], 4), "multicast"),
    (v4([240, 0, 0, 0], 4), "reserved"),
];

/// An address in none of these is reserved.
const V6: [(Ipv6Net, &str); 13] = [
    (v6([0, 0, 0, 0, 0, 0, 0, 0], 128), "unspecified"),
    (v6([0, 0, 0, 0, 0, 0, 0, 1], 128), "loopback"),
    (v6([0, 0, 0, 0, 0, 0, 0, 0], 96), "reserved (IPv4-compatible)"),
    (v6([0x64, 0xff9b, 1, 0, 0, 0, 0, 0], 48), "private (NAT64)"),
    (v6([0xfc00, 0, 0, 0, 0, 0, 0, 0], 7), "private"),
    (v6([0xfe80, 0, 0, 0, 0, 0, 0, 0], 10), "link-local"),
    (v6([0xfec0, 0, 0, 0, 0, 0, 0, 0], 10), "private"),
    (v6([0xff00, 0, 0, 0, 0, 0, 0, 0], 8), "multicast"),
    // Teredo, ORCHID and the like.
    (v6([0x2001, 0, 0, 0, 0, 0, 0, 0], 23), "reserved"),
    (v6([0x2001, 0xdb8, 0, 0, 0, 0, 0, 0], 32), "for documentation"),
    (v6([0x2002, 0, 0, 0, 0, 0, 0, 0], 16), "reserved (6to4)"),
    (v6([0x3fff, 0, 0, 0, 0, 0, 0, 0], 20), "for documentation"),
    (v6([0x2000, 0, 0, 0, 0, 0, 0, 0], 3), ""),
];

/// The well-known prefix of NAT64 (RFC 6052): the last 32 bits are an IPv4 address.
const NAT64: Ipv6Net = v6([0x64, 0xff9b, 0, 0, 0, 0, 0, 0], 96);

const fn v4([a, b, c, d]: [u8; 4], length: u8) -> Ipv4Net {
    Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, d), length)
}

const fn v6([a, b, c, d, e, f, g, h]: [u16; 8], length: u8) -> Ipv6Net {
    Ipv6Net::new_assert(Ipv6Addr::new(a, b, c, d, e, f, g, h), length)
}

/// Checks that an address is public.
///
/// # Errors
/// The kind of address that it is instead.
pub fn check_public(address: IpAddr) -> Result<(), Denied> {
    let kind = match address {
        IpAddr::V4(address) => special_v4(address),
        IpAddr::V6(address) => special_v6(address),
    };
    kind.map_or(Ok(()), |kind| Err(Denied { address, kind }))
}

/// The address that a URL's host denotes without DNS, also in the forms that only the system's resolver reads, such as
/// `127.1`, `0x7f.0.0.1` and `2130706433`.
pub fn literal(host: &str) -> Option<IpAddr> {
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let v6 = || host.parse().ok().map(IpAddr::V6);
    host.parse().ok().map(IpAddr::V4).or_else(v6).or_else(|| numbers(host).map(IpAddr::V4))
}

fn special_v4(address: Ipv4Addr) -> Option<&'static str> {
    V4.iter().find(|(net, _)| net.contains(&address)).map(|(_, kind)| *kind)
}

fn special_v6(address: Ipv6Addr) -> Option<&'static str> {
    let [.., a, b, c, d] = address.octets();
    if address.to_ipv4_mapped().is_some() || NAT64.contains(&address) {
        return special_v4(Ipv4Addr::new(a, b, c, d));
    }
    let found = V6.iter().find(|(net, _)| net.contains(&address));
    found.map_or(Some("reserved"), |(_, kind)| Some(*kind).filter(|kind| !kind.is_empty()))
}

/// inet_aton(3): one to four numbers, each decimal, octal (`0..`) or hexadecimal (`0x..`); the last fills the rest.
fn numbers(host: &str) -> Option<Ipv4Addr> {
    let parts: Vec<_> = host.strip_suffix('.').unwrap_or(host).split('.').collect();
    let (last, bytes) = parts.split_last()?;
    let mut address = 0;
    for part in bytes {
        address = address << 8 | number(part).filter(|byte| *byte <= 0xff)?;
    }
    let left = 32_u32.checked_sub(8 * u32::try_from(bytes.len()).ok()?).filter(|left| *left > 0)?;
    let last = number(last).filter(|last| last >> left == 0)?;
    u32::try_from(address << left | last).ok().map(Ipv4Addr::from)
}

fn number(text: &str) -> Option<u64> {
    let hex = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X"));
    let (digits, radix) = match (hex, text.strip_prefix('0')) {
        (Some(digits), _) => (digits, 16),
        (None, Some(digits)) if !digits.is_empty() => (digits, 8),
        (None, _) => (text, 10),
    };
    // `from_str_radix` accepts a sign, inet_aton does not.
    let plain = digits.bytes().all(|digit| digit.is_ascii_hexdigit());
    u64::from_str_radix(digits, radix).ok().filter(|number| plain && *number <= u64::from(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(address: &str) -> &'static str {
        check_public(address.parse().unwrap()).err().map_or("", |denied| denied.kind)
    }

    #[test]
    fn addresses_of_the_public_internet_pass() {
        for address in [
            "1.1.1.1",
            "9.255.255.255",
            "11.0.0.0",
            "100.63.255.255",
            "100.128.0.0",
            "126.255.255.255",
            "128.0.0.0",
            "169.253.255.255",
            "169.255.0.0",
            "168.63.129.15",
            "172.15.255.255",
            "172.32.0.0",
            "192.0.1.0",
            "192.167.255.255",
            "192.169.0.0",
            "198.17.255.255",
            "198.20.0.0",
            "223.255.255.255",
            "2400:3200::1",
            "2606:4700:4700::1111",
            "2001:200::1",
            "2001:4860:4860::8888",
            "2003::1",
            "3ffe::1",
            "::ffff:8.8.8.8",
            "64:ff9b::8.8.8.8",
        ] {
            assert_eq!(kind(address), "", "{address}");
        }
    }

    #[test]
    fn all_others_are_denied_by_name() {
        for (address, expected) in [
            ("0.0.0.0", "unspecified"),
            ("0.1.2.3", "unspecified"),
            ("10.0.0.0", "private"),
            ("10.255.255.255", "private"),
            ("100.64.0.1", "shared (CGNAT)"),
            ("100.100.100.200", "shared (CGNAT)"),
            ("100.127.255.255", "shared (CGNAT)"),
            ("127.0.0.1", "loopback"),
            ("127.255.255.254", "loopback"),
            ("169.254.169.254", "link-local"),
            ("169.254.0.23", "link-local"),
            ("168.63.129.16", "the platform's (Azure)"),
            ("172.16.0.1", "private"),
            ("172.31.255.255", "private"),
            ("192.0.0.8", "reserved"),
            ("192.0.2.1", "for documentation"),
            ("192.88.99.1", "reserved (6to4)"),
            ("192.168.0.1", "private"),
            ("198.18.0.1", "for benchmarks"),
            ("198.19.255.255", "for benchmarks"),
            ("198.51.100.7", "for documentation"),
            ("203.0.113.7", "for documentation"),
            ("224.0.0.1", "multicast"),
            ("239.255.255.250", "multicast"),
            ("240.0.0.1", "reserved"),
            ("255.255.255.255", "broadcast"),
            ("::", "unspecified"),
            ("::1", "loopback"),
            ("::127.0.0.1", "reserved (IPv4-compatible)"),
            ("::8.8.8.8", "reserved (IPv4-compatible)"),
            ("::ffff:127.0.0.1", "loopback"),
            ("::ffff:169.254.169.254", "link-local"),
            ("::ffff:0:127.0.0.1", "reserved"),
            ("64:ff9b::127.0.0.1", "loopback"),
            ("64:ff9b::10.0.0.1", "private"),
            ("64:ff9b::a9fe:a9fe", "link-local"),
            ("64:ff9b:1::1", "private (NAT64)"),
            ("64:ff9b:1:ffff::8.8.8.8", "private (NAT64)"),
            ("64:ff9b:2::1", "reserved"),
            ("100::1", "reserved"),
            ("2001::1", "reserved"),
            ("2001:0:4136:e378:8000:63bf:3fff:fdd2", "reserved"),
            ("2001:20::1", "reserved"),
            ("2001:db8::1", "for documentation"),
            ("2002:7f00:1::", "reserved (6to4)"),
            ("2002:808:808::1", "reserved (6to4)"),
            ("3fff::1", "for documentation"),
            ("4000::1", "reserved"),
            ("5f00::1", "reserved"),
            ("fc00::1", "private"),
            ("fd00:ec2::254", "private"),
            ("fe80::1", "link-local"),
            ("febf::1", "link-local"),
            ("fec0::1", "private"),
            ("ff02::1", "multicast"),
        ] {
            assert_eq!(kind(address), expected, "{address}");
        }
    }

    #[test]
    fn a_literal_is_known_in_every_form_that_the_system_dials() {
        let loopback = Some(IpAddr::from([127, 0, 0, 1]));
        for host in [
            "127.0.0.1",
            "127.1",
            "127.0.1",
            "0x7f.1",
            "0X7F.0.0.0x1",
            "0177.0.0.01",
            "2130706433",
            "0x7f000001",
            "017700000001",
            "127.0.0.1.",
        ] {
            assert_eq!(literal(host), loopback, "{host}");
        }
        assert_eq!(literal("[::1]"), Some(IpAddr::from(Ipv6Addr::LOCALHOST)));
        assert_eq!(literal("0"), Some(IpAddr::from([0, 0, 0, 0])));
        assert_eq!(literal("4294967295"), Some(IpAddr::from([255, 255, 255, 255])));
        for name in [
            "localhost",
            "a.example",
            "4294967296",
            "1.2.3.4.5",
            "256.1.1.1",
            "1.2.3.256",
            "127.+1",
            "0x",
            "08",
            "",
            ".",
        ] {
            assert_eq!(literal(name), None, "{name}");
        }
    }

    #[test]
    fn the_refusal_names_address_and_reason() {
        let denied = check_public(Ipv4Addr::LOCALHOST.into()).unwrap_err();
        assert_eq!(denied.to_string(), "denied: 127.0.0.1 is loopback, and the target has deny_private");
    }
}
