//! The PROXY protocol, versions 1 and 2: a load balancer names the client before anything else on the connection.
//!
//! Invariants: the header is accepted from trusted peers only, and never guessed: if it is configured, every connection
//! must begin with it. Only the client's address is kept.

use std::io;

use ipnet::IpNet;
use proxy_header::ParseConfig;
use proxy_header::io::ProxiedStream;
use tokio::io::AsyncRead;

use super::Peer;

/// Only the address is used; the rest is skipped.
const PARSE: ParseConfig = ParseConfig { include_tlvs: false, allow_v1: true, allow_v2: true };

/// Why a connection is refused.
#[derive(Debug, thiserror::Error)]
pub enum ProxyHeaderError {
    #[error("not from one of server.trusted_proxies, which alone may speak the PROXY protocol")]
    Untrusted,
    /// The connection begins with HTTP, TLS or noise.
    #[error(
        "no PROXY header; switch it on in the load balancer (send-proxy-v2, proxy_protocol on), or server.proxy_protocol off"
    )]
    Malformed,
    #[error("its PROXY header did not arrive in time")]
    Late,
    #[error("ended before its PROXY header")]
    Broken(#[source] io::Error),
}

/// Reads the header of a new connection. Returns the client that it names, or this peer if it names none (`LOCAL`,
/// `UNKNOWN`: the load balancer's own requests, such as health checks).
pub async fn read_header<I>(io: I, peer: Peer, trusted: &[IpNet]) -> Result<(ProxiedStream<I>, Peer), ProxyHeaderError>
where
    I: AsyncRead + Unpin,
{
    if !peer.is_trusted(trusted) {
        return Err(ProxyHeaderError::Untrusted);
    }
    let refused = |error: io::Error| match error.kind() {
        io::ErrorKind::InvalidData => ProxyHeaderError::Malformed,
        _ => ProxyHeaderError::Broken(error),
    };
    let stream = ProxiedStream::create_from_tokio(io, PARSE).await.map_err(refused)?;
    let behind = stream.proxy_header().proxied_address().map(|named| Peer(Some(named.source.ip().to_canonical())));
    Ok((stream, behind.unwrap_or(peer)))
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, SocketAddr};

    use proptest::prelude::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    const BALANCER: Peer = Peer(Some(IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 1))));

    /// Reads bytes that arrive in two parts before the end. Returns the client, and the bytes left to read.
    fn taken(bytes: &[u8], cut: usize) -> Result<(Peer, Vec<u8>), ProxyHeaderError> {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let (mut near, far) = tokio::io::duplex(64);
            let parts = bytes.split_at(cut.min(bytes.len()));
            let send = async move {
                // Fails if the reader has closed already.
                for part in [parts.0, parts.1] {
                    if near.write_all(part).await.is_err() {
                        return;
                    }
                    tokio::task::yield_now().await;
                }
            };
            let receive = async move {
                let (mut stream, peer) = read_header(far, BALANCER, &["10.0.0.0/8".parse().unwrap()]).await?;
                let mut rest = Vec::new();
                stream.read_to_end(&mut rest).await.unwrap();
                Ok((peer, rest))
            };
            tokio::join!(send, receive).1
        })
    }

    /// A header of version 2, as specified: signature, version and command, family, length, addresses, more.
    fn version_2(command: u8, from: SocketAddr, more: &[u8]) -> Vec<u8> {
        let (family, addresses) = match from {
            SocketAddr::V4(from) => (0x11, [from.ip().octets(), [192, 0, 2, 1]].concat()),
            SocketAddr::V6(from) => (0x21, [from.ip().octets(), [7; 16]].concat()),
        };
        let block = [&addresses, &from.port().to_be_bytes()[..], &[1, 187], more].concat();
        let length = u16::try_from(block.len()).unwrap().to_be_bytes();
        [b"\r\n\r\n\0\r\nQUIT\n", &[command, family][..], &length, &block].concat()
    }

    fn version_1(from: SocketAddr) -> Vec<u8> {
        let (family, to) = if from.is_ipv4() { ("TCP4", "192.0.2.1") } else { ("TCP6", "2001:db8::1") };
        format!("PROXY {family} {} {to} {} 443\r\n", from.ip(), from.port()).into_bytes()
    }

    #[test]
    fn both_versions_name_the_client() {
        for from in ["203.0.113.7:4711", "[2001:db8::7]:4711"] {
            let from: SocketAddr = from.parse().unwrap();
            // The third has a TLV of type NOOP with three bytes.
            for header in [version_1(from), version_2(0x21, from, b""), version_2(0x21, from, b"\x04\0\x03abc")] {
                let (peer, rest) = taken(&[&header, &b"GET"[..]].concat(), 0).unwrap();
                assert_eq!((peer.0, &rest[..]), (Some(from.ip()), &b"GET"[..]));
            }
        }
        let mapped = taken(&version_2(0x21, "[::ffff:203.0.113.7]:1".parse().unwrap(), b""), 0).unwrap().0;
        assert_eq!(mapped, Peer(Some("203.0.113.7".parse().unwrap())));
    }

    #[test]
    fn a_header_without_an_address_is_the_load_balancers_own() {
        let local = version_2(0x20, "203.0.113.7:1".parse().unwrap(), b"");
        let unspecified = [&b"\r\n\r\n\0\r\nQUIT\n\x21\0\0\0"[..]].concat();
        for header in [&b"PROXY UNKNOWN\r\n"[..], b"PROXY UNKNOWN ffff::1 ffff::2 1 2\r\n", &local, &unspecified] {
            let (peer, rest) = taken(&[header, b"GET"].concat(), 5).unwrap();
            assert_eq!((peer, &rest[..]), (BALANCER, &b"GET"[..]));
        }
    }

    #[test]
    fn what_is_no_header_is_refused() {
        for bytes in [
            &b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"[..],
            b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03 hello of a TLS client",
            b"PROXY TCP4 203.0.113.7 192.0.2.1 65536 443\r\n",
            b"PROXY TCP4 2001:db8::7 192.0.2.1 1 443\r\n",
            b"PROXY TCP5 203.0.113.7 192.0.2.1 1 443\r\n",
            b"\r\n\r\n\0\r\nQUIT\n\x31\x11\0\x0c203.0.113.7.",
            b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x02abGET / HTTP/1.0\r\n\r\n",
        ] {
            assert!(matches!(taken(bytes, 3), Err(ProxyHeaderError::Malformed)), "{}", bytes.escape_ascii());
        }
        let endless = [&b"PROXY TCP4 "[..], &[b'1'; 4096]].concat();
        assert!(matches!(taken(&endless, 0), Err(ProxyHeaderError::Malformed)));
        assert!(matches!(taken(b"PROXY TCP4 203.0.113.7 ", 3), Err(ProxyHeaderError::Broken(_))));
        assert!(matches!(taken(b"", 0), Err(ProxyHeaderError::Broken(_))));
    }

    #[tokio::test]
    async fn an_untrusted_peer_is_not_even_read() {
        let untrusted = Peer(Some("203.0.113.9".parse().unwrap()));
        let refused = read_header(tokio::io::empty(), untrusted, &["10.0.0.0/8".parse().unwrap()]).await;
        assert!(matches!(refused, Err(ProxyHeaderError::Untrusted)));
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(bytes: Vec<u8>, cut: u8) {
            taken(&bytes, cut.into()).ok();
        }

        #[test]
        fn any_bytes_after_a_signature_are_survived(bytes: Vec<u8>, first: bool, cut: u8) {
            let signature: &[u8] = if first { b"PROXY TCP" } else { b"\r\n\r\n\0\r\nQUIT\n\x21\x11" };
            taken(&[signature, &bytes].concat(), cut.into()).ok();
        }

        #[test]
        fn whatever_follows_a_header_is_left_as_it_is(
            ip: IpAddr, port: u16, more in prop::collection::vec(any::<u8>(), 0..600), rest: Vec<u8>, first: bool, cut: u16,
        ) {
            let from = SocketAddr::new(ip, port);
            let header = if first { version_1(from) } else { version_2(0x21, from, &more) };
            let (peer, left) = taken(&[&header[..], &rest].concat(), cut.into()).unwrap();
            prop_assert_eq!(peer.0, Some(ip.to_canonical()));
            prop_assert_eq!(left, rest);
        }
    }
}
