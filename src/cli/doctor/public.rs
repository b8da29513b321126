//! The server URL as WeChat sees it: name, port, TLS, verification.
//!
//! Seen from this machine, which may see it otherwise than WeChat does: behind a NAT without hairpin, `--connect` says
//! where to go instead. No push is sent.

use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::str::FromStr;

use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};
use tokio_rustls::client::TlsStream;

use super::answer;
use super::chain::{Authorities, Leaf, Trust};
use super::clock::is_here;
use super::exchange::{Refused, Verified, handshake, verify};
use super::report::{Check, Findings, Line, PeerClock};
use super::{LIMIT, all, aside};
use crate::cli::simulate::{Failure, ServerUrl};
use crate::config::Config;
use crate::push::Account;
use crate::wechat::Mode;

/// The ports that WeChat's console takes (developers.weixin.qq.com, guide/dev/push).
const PORTS: [u16; 2] = [80, 443];

/// `[ACCOUNT=]URL`
#[derive(Clone, Debug)]
pub(super) struct Named {
    account: Option<String>,
    url: ServerUrl,
}

impl FromStr for Named {
    type Err = <ServerUrl as FromStr>::Err;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.split_once('=') {
            Some((account, url)) if !account.contains([':', '/']) => {
                Ok(Self { account: Some(account.to_owned()), url: url.parse()? })
            }
            _ => Ok(Self { account: None, url: text.parse()? }),
        }
    }
}

/// A URL, and the account whose console it is entered in.
pub(super) struct Public {
    account: Account,
    url: ServerUrl,
}

/// A `--url` that fits no account.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unassigned {
    /// The name is none.
    #[error("--url {account}=..: no account of that name in the configuration; it has: {known}")]
    Unknown {
        /// The name.
        account: String,
        /// The accounts.
        known: String,
    },
    /// It may be anyone's.
    #[error("--url {url}: whose is it? No account has its path; write --url ACCOUNT=URL with one of: {known}")]
    Whose {
        /// The URL, without a query.
        url: String,
        /// The accounts.
        known: String,
    },
}

impl Public {
    /// The account is the one named, or else the one with the URL's path, or else the only one.
    pub(super) fn of(named: &Named, config: &Config) -> Result<Self, Unassigned> {
        let url = named.url.clone();
        let known = || config.accounts.iter().map(|account| &*account.name).collect::<Vec<_>>().join(", ");
        let path = url.request_target("");
        let path = path.split('?').next().unwrap_or_default().trim_end_matches('/');
        let account = match (&named.account, &config.accounts[..]) {
            (Some(name), accounts) => accounts
                .iter()
                .find(|account| *account.name == **name)
                .ok_or_else(|| Unassigned::Unknown { account: name.clone(), known: known() })?,
            (None, [only]) => only,
            (None, accounts) => accounts
                .iter()
                .find(|account| account.path == path)
                .ok_or_else(|| Unassigned::Whose { url: shown(&url), known: known() })?,
        };
        Ok(Self { account: account.clone(), url })
    }

    pub(super) fn host(&self) -> &str {
        self.url.host()
    }
}

/// The URL without its query, which is nobody's business.
fn shown(url: &ServerUrl) -> String {
    url.to_string().split('?').next().unwrap_or_default().to_owned()
}

/// Name, port, TLS, verification: a line each, up to the first that keeps the next from being looked at.
pub(super) async fn check(public: Public, connect: Option<SocketAddr>, trust: Authorities) -> Findings {
    let Public { account, url } = public;
    let mut findings = Findings::default();
    let of = |name| Check::new(name, shown(&url));
    let addresses = name(&of("dns"), &url, connect.is_some(), &mut findings).await;
    let addresses = connect.map_or(addresses, |instead| vec![instead]);
    let started = Instant::now();
    let Some(stream) = port(&of("port"), &url, addresses, connect, &mut findings).await else { return findings };
    let here = stream.peer_addr().is_ok_and(|peer| is_here(peer.ip()));
    let verified = if url.is_https() {
        let stream = match secured(&of("tls"), stream, url.host(), trust).await {
            Ok((stream, line)) => {
                findings.lines.extend(line);
                stream
            }
            Err(line) => {
                findings.lines.push(line);
                return findings;
            }
        };
        timeout(LIMIT, verify(stream, &url, &account.credentials)).await
    } else {
        findings.lines.push(in_clear(&of("tls"), account.credentials.mode));
        timeout(LIMIT, verify(stream, &url, &account.credentials)).await
    };
    let verified =
        verified.unwrap_or_else(|_| Verified { result: Err(Refused::NoAnswer(Failure::Timeout)), date: None });
    let took = started.elapsed();
    findings.lines.push(answer::line(&of("verification"), &account, verified.result, took));
    if let Some(date) = verified.date {
        findings.clocks.push(PeerClock::of(shown(&url), date, took, here));
    }
    findings
}

/// TLS over a connection, and what is to be said of its certificate.
async fn secured(
    check: &Check,
    stream: TcpStream,
    host: &str,
    trust: Authorities,
) -> Result<(TlsStream<TcpStream>, Option<Line>), Line> {
    let trust = trust.map_err(|untrusting| check.failed_by(untrusting))?;
    let shaken = timeout(LIMIT, handshake(stream, host, Trust::Authorities(trust))).await;
    let late = |_| (format!("no handshake within {LIMIT:?}"), "is it a TLS server that listens there?");
    let (stream, chain) = shaken.map_err(late).flatten().map_err(|(text, remedy)| check.failed(text, remedy))?;
    let version = match stream.get_ref().1.protocol_version() {
        Some(rustls::ProtocolVersion::TLSv1_2) => "TLS 1.2",
        _ => "TLS 1.3",
    };
    let told = |leaf: Leaf| leaf.lasts(check, &format!("{version}, {} certificates, for {leaf}", chain.len()));
    let line = Leaf::of(&chain).map(told);
    Ok((stream, line))
}

fn in_clear(check: &Check, mode: Mode) -> Line {
    match mode {
        Mode::Plaintext => {
            check.warning("none: http, and in plaintext mode everybody on the way reads the pushes", "use https")
        }
        Mode::Compatible => check.warning(
            "none: http, and compatible mode has clear texts beside the sealed one",
            "use https, or secure mode",
        ),
        Mode::Secure => check.ok("none: http, which WeChat allows; the pushes are sealed by secure mode"),
    }
}

/// The addresses of the host, IPv4 first; empty if there is none.
async fn name(check: &Check, url: &ServerUrl, elsewhere: bool, findings: &mut Findings) -> Vec<SocketAddr> {
    let (host, port) = (url.host().to_owned(), url.port());
    let found = aside(LIMIT, move || (host.as_str(), port).to_socket_addrs().map(Vec::from_iter)).await;
    let mut addresses = match found {
        Some(Ok(addresses)) => addresses,
        Some(Err(error)) => {
            let remedy = "is the name right, and has it an A record? WeChat needs one that the whole Internet sees";
            findings.lines.push(check.failed(format!("{} has no address ({error})", url.host()), remedy));
            return Vec::new();
        }
        None => {
            findings.lines.push(check.failed(format!("no answer within {LIMIT:?}"), "look at this machine's resolver"));
            return Vec::new();
        }
    };
    addresses.sort_unstable_by_key(|address| (address.is_ipv6(), *address));
    addresses.dedup();
    let shown = addresses.iter().map(|address| address.ip().to_string()).collect::<Vec<_>>().join(", ");
    let hidden = addresses.iter().find_map(|address| Some((address.ip(), unreachable(address.ip())?)));
    findings.lines.push(match hidden {
        Some((address, why)) => check.warning(
            match addresses[..] {
                [_] => format!("{address} is {why} address, where WeChat cannot come"),
                _ => format!("{shown}: {address} is {why} address, where WeChat cannot come"),
            },
            "the name must lead to a public address; if that is so outside and only this network sees another, all is \
             well",
        ),
        None if addresses.iter().all(SocketAddr::is_ipv6) => {
            check.warning(format!("{shown}: IPv6 only"), "add an A record: no push of WeChat by IPv6 is known")
        }
        None => check.ok(if elsewhere { format!("{shown}, not gone to because of --connect") } else { shown }),
    });
    addresses
}

/// Why nobody outside can reach an address.
fn unreachable(address: IpAddr) -> Option<&'static str> {
    match address.to_canonical() {
        IpAddr::V4(v4) => match v4.octets() {
            _ if v4.is_loopback() => Some("a loopback"),
            _ if v4.is_private() => Some("a private"),
            _ if v4.is_link_local() => Some("a link-local"),
            _ if v4.is_unspecified() || v4.is_broadcast() || v4.is_multicast() => Some("no host's"),
            _ if v4.is_documentation() => Some("an example's"),
            [100, 64..=127, ..] => Some("a carrier's inner (100.64.0.0/10)"),
            _ => None,
        },
        IpAddr::V6(v6) if v6.is_loopback() => Some("a loopback"),
        IpAddr::V6(v6) if v6.is_unique_local() => Some("a private"),
        IpAddr::V6(v6) if v6.is_unicast_link_local() => Some("a link-local"),
        IpAddr::V6(v6) if v6.is_unspecified() || v6.is_multicast() => Some("no host's"),
        IpAddr::V6(_) => None,
    }
}

/// A connection, by the first address that takes one; all are tried.
async fn port(
    check: &Check,
    url: &ServerUrl,
    addresses: Vec<SocketAddr>,
    connect: Option<SocketAddr>,
    findings: &mut Findings,
) -> Option<TcpStream> {
    if !PORTS.contains(&url.port()) {
        let text = format!("{}, and WeChat's console takes 80 and 443 only", url.port());
        findings.lines.push(check.failed(text, "let a reverse proxy or systemd's socket take 80 or 443"));
    }
    if addresses.is_empty() {
        return None;
    }
    let tries = addresses.into_iter().map(|address| async move { (address, reach(address).await) });
    let tried = all(tries).await;
    let lost =
        tried.iter().filter_map(|(address, result)| result.as_ref().err().map(|why| format!("{address}: {why}")));
    let lost = lost.collect::<Vec<_>>().join("; ");
    let stream = tried.into_iter().find_map(|(_, result)| result.ok());
    findings.lines.push(match (&stream, connect) {
        (None, _) => check.failed(
            format!("no connection ({lost})"),
            "open it in every firewall and security group on the way; from behind a NAT that does not let you out and \
             in again, give --connect with the inner address, or ask from outside: wxrelay simulate verify --to URL",
        ),
        (Some(_), _) if !lost.is_empty() => {
            check.warning(format!("open, but not at {lost}"), "take that address out of the DNS, or let it answer")
        }
        (Some(_), Some(instead)) => check.ok(format!("{}: connected to {instead} instead", url.port())),
        (Some(_), None) => check.ok(format!("{} is open", url.port())),
    });
    stream
}

async fn reach(address: SocketAddr) -> Result<TcpStream, String> {
    match timeout(LIMIT, TcpStream::connect(address)).await {
        Ok(connected) => connected.map_err(|error| error.to_string()),
        Err(_) => Err(format!("nobody answers within {LIMIT:?}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_that_wechat_cannot_reach_are_known() {
        let hidden = |text: &str| unreachable(text.parse().unwrap()).is_some();
        for text in ["127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.1.1", "100.64.0.1", "0.0.0.0"] {
            assert!(hidden(text), "{text}");
        }
        for text in ["::1", "fd00::1", "fe80::1", "::", "::ffff:10.0.0.1"] {
            assert!(hidden(text), "{text}");
        }
        for text in ["1.1.1.1", "100.128.0.1", "172.32.0.1", "2606:4700::1"] {
            assert!(!hidden(text), "{text}");
        }
    }

    #[test]
    fn an_account_may_stand_before_the_url() {
        let named = |text: &str| text.parse::<Named>().unwrap();
        assert_eq!(named("shop=https://h/wx?a=b").account.as_deref(), Some("shop"));
        assert_eq!(named("https://h/wx?a=b").account, None);
        assert_eq!(shown(&named("https://h/wx?a=b").url), "https://h/wx");
        assert!("shop=h".parse::<Named>().is_err());
    }
}
