//! The client of a request: the connection's remote address, or the one that trusted proxies name.

use std::net::{IpAddr, SocketAddr};

use http::HeaderMap;
use ipnet::IpNet;

/// The client's address, in each request's extensions; `None` on a Unix socket without `X-Forwarded-For`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Peer(pub Option<IpAddr>);

impl Peer {
    /// If this peer is a trusted proxy: the right-most address of `X-Forwarded-For` that is not one.
    ///
    /// Only entries that a trusted hop wrote are used: everything further left is the client's own claim. Peers on a
    /// Unix socket are trusted.
    pub(super) fn behind_proxies(self, headers: &HeaderMap, trusted: &[IpNet]) -> Self {
        if !self.is_trusted(trusted) {
            return self;
        }
        let lines = headers.get_all("x-forwarded-for").iter().rev();
        let mut peer = self;
        for hop in lines.flat_map(|line| line.to_str().unwrap_or_default().rsplit(',')) {
            let Some(address) = parse(hop.trim()) else { break };
            peer = Self(Some(address));
            if !peer.is_trusted(trusted) {
                break;
            }
        }
        peer
    }

    /// The unit that limits count by: an IPv4 address, or the /64 of an IPv6 address, as a subscriber has all of it.
    pub fn subscriber(self) -> Self {
        Self(self.0.map(|address| match address.to_canonical() {
            IpAddr::V6(address) => IpAddr::V6((address.to_bits() >> 64 << 64).into()),
            IpAddr::V4(address) => IpAddr::V4(address),
        }))
    }

    /// Whether this peer may name the client.
    pub(super) fn is_trusted(self, trusted: &[IpNet]) -> bool {
        self.0.is_none_or(|address| trusted.iter().any(|net| net.contains(&address)))
    }
}

/// Parses an address, with a port or without: some proxies add one.
fn parse(hop: &str) -> Option<IpAddr> {
    let address = hop.parse().or_else(|_| hop.parse().map(|socket: SocketAddr| socket.ip()));
    address.ok().map(|address: IpAddr| address.to_canonical())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn behind(peer: Option<&str>, lines: &[&str]) -> Option<String> {
        let headers = lines.iter().map(|line| ("x-forwarded-for".parse().unwrap(), line.parse().unwrap())).collect();
        let trusted = ["10.0.0.0/8".parse().unwrap(), "fd00::/8".parse().unwrap()];
        let peer = Peer(peer.map(|text| text.parse().unwrap()));
        peer.behind_proxies(&headers, &trusted).0.map(|address| address.to_string())
    }

    #[test]
    fn an_untrusted_peer_cannot_name_the_client() {
        assert_eq!(behind(Some("203.0.113.9"), &["192.0.2.1"]).as_deref(), Some("203.0.113.9"));
    }

    #[test]
    fn the_right_most_untrusted_address_counts() {
        let claimed = &["1.1.1.1, 192.0.2.1", "10.0.0.2"];
        assert_eq!(behind(Some("10.0.0.1"), claimed).as_deref(), Some("192.0.2.1"));
        assert_eq!(behind(Some("10.0.0.1"), &["10.0.0.3,10.0.0.2"]).as_deref(), Some("10.0.0.3"));
        assert_eq!(behind(Some("fd00::1"), &["[2001:db8::7]:4711"]).as_deref(), Some("2001:db8::7"));
    }

    #[test]
    fn anything_but_an_address_ends_the_search() {
        assert_eq!(behind(Some("10.0.0.1"), &["192.0.2.1, unknown"]).as_deref(), Some("10.0.0.1"));
        assert_eq!(behind(Some("10.0.0.1"), &["192.0.2.1, unknown, 10.0.0.2"]).as_deref(), Some("10.0.0.2"));
        assert_eq!(behind(Some("10.0.0.1"), &[]).as_deref(), Some("10.0.0.1"));
    }

    #[test]
    fn a_unix_socket_is_trusted() {
        assert_eq!(behind(None, &["192.0.2.1"]).as_deref(), Some("192.0.2.1"));
        assert_eq!(behind(None, &[]), None);
    }
}
