//! The server URL as WeChat sees it: name, port, TLS, verification. And a login's callback, as a browser sees it.
//!
//! Checked from this machine, whose view may differ from WeChat's: behind a NAT without hairpinning, `--connect` gives
//! another address. No push is sent.

use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::str::FromStr;

use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};
use tokio_rustls::client::TlsStream;
use tokio_util::either::Either;

use super::chain::{LeafCertificate, TrustPolicy, TrustStore};
use super::clock::is_local_address;
use super::exchange::{VerificationError, VerificationResult, handshake, verify};
use super::report::{CheckFailure, CheckResult, CheckResults, DoctorCheck, PeerClock};
use super::{LIMIT, join_ordered, run_detached};
use super::{answer, logins};
use crate::cli::simulate::{Http10Error, ServerUrl};
use crate::config::Config;
use crate::login::{Login, VerifyFile};
use crate::push::Account;
use crate::wechat::Mode;

/// The ports that WeChat's console accepts (developers.weixin.qq.com, guide/dev/push).
const PORTS: [u16; 2] = [80, 443];

/// `[ACCOUNT=]URL`
#[derive(Clone, Debug)]
pub(super) struct UrlArg {
    account: Option<String>,
    url: ServerUrl,
}

impl FromStr for UrlArg {
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

/// A URL, what it leads to, and the verification files at its root.
pub(super) struct PublicUrl {
    leads_to: Destination,
    url: ServerUrl,
    verify_files: Vec<VerifyFile>,
}

enum Destination {
    Account(Box<Account>),
    Login(Login),
}

/// A `--url` that matches no account.
#[derive(Debug, thiserror::Error)]
pub(super) enum UrlArgError {
    #[error("--url {account}=..: unknown account, expected one of: {known}")]
    Unknown { account: String, known: String },
    /// No account is named, and none has the path.
    #[error("--url {url}: no account has this path, expected --url ACCOUNT=URL with one of: {known}")]
    Ambiguous {
        /// The URL, without a query.
        url: String,
        known: String,
    },
}

impl PublicUrl {
    /// Selects what is named, else the account or login with the URL's path, else the only account.
    pub(super) fn of(named: &UrlArg, config: &Config) -> Result<Self, UrlArgError> {
        let url = named.url.clone();
        let known = || config.accounts.iter().map(|account| &*account.name).collect::<Vec<_>>().join(", ");
        let path = url.request_target("");
        let path = path.split('?').next().unwrap_or_default().trim_end_matches('/');
        let verify_files = config.logins.verify_files.clone();
        if let (None, Some(login)) = (&named.account, config.logins.logins.iter().find(|login| login.path == path)) {
            return Ok(Self { leads_to: Destination::Login(login.clone()), url, verify_files });
        }
        let account = match (&named.account, &config.accounts[..]) {
            (Some(name), accounts) => accounts
                .iter()
                .find(|account| *account.name == **name)
                .ok_or_else(|| UrlArgError::Unknown { account: name.clone(), known: known() })?,
            (None, [only]) => only,
            (None, accounts) => accounts
                .iter()
                .find(|account| account.path == path)
                .ok_or_else(|| UrlArgError::Ambiguous { url: without_query(&url), known: known() })?,
        };
        Ok(Self { leads_to: Destination::Account(Box::new(account.clone())), url, verify_files })
    }

    pub(super) fn host(&self) -> &str {
        self.url.host()
    }
}

/// The URL without its query, which may hold secrets.
fn without_query(url: &ServerUrl) -> String {
    url.to_string().split('?').next().unwrap_or_default().to_owned()
}

/// Name, port, TLS, verification or callback, and verification files: one result each, up to the first failure that
/// prevents the next check.
pub(super) async fn check(public: PublicUrl, connect: Option<SocketAddr>, trust: TrustStore) -> CheckResults {
    let PublicUrl { leads_to, url, verify_files } = public;
    let mut findings = CheckResults::default();
    let of = |name| DoctorCheck::new(name, without_query(&url));
    let addresses = name(&of("dns"), &url, connect.is_some(), &mut findings).await;
    let addresses = connect.map_or(addresses, |instead| vec![instead]);
    let started = Instant::now();
    let Some(stream) = port(&of("port"), &url, addresses, connect, &mut findings).await else { return findings };
    let address = stream.peer_addr().ok();
    let stream = if url.is_https() {
        match check_tls(&of("tls"), stream, url.host(), trust.clone()).await {
            Ok((stream, line)) => {
                findings.lines.extend(line);
                Either::Left(stream)
            }
            Err(line) => {
                findings.lines.push(line);
                return findings;
            }
        }
    } else {
        findings.lines.push(check_plain_http(&of("tls"), &leads_to));
        Either::Right(stream)
    };
    match leads_to {
        Destination::Account(account) => {
            let verified = timeout(LIMIT, verify(stream, &url, &account.credentials)).await;
            let verified = verified.unwrap_or_else(|_| VerificationResult {
                result: Err(VerificationError::NoAnswer(Http10Error::Timeout)),
                date: None,
            });
            let took = started.elapsed();
            findings.lines.push(answer::verification_result(&of("verification"), &account, verified.result, took));
            if let Some(date) = verified.date {
                let here = address.is_some_and(|address| is_local_address(address.ip()));
                findings.clocks.push(PeerClock::of(without_query(&url), date, took, here));
            }
        }
        Destination::Login(login) => {
            findings.lines.push(logins::check_callback(&of("callback"), stream, &url, &login).await);
        }
    }
    for file in verify_files {
        findings.lines.extend(check_verify_file(&url, &file, address, trust.clone()).await);
    }
    findings
}

/// Fetches a verification file from the root, over a connection of its own.
async fn check_verify_file(
    url: &ServerUrl,
    file: &VerifyFile,
    address: Option<SocketAddr>,
    trust: TrustStore,
) -> Option<CheckResult> {
    let scheme = if url.is_https() { "https" } else { "http" };
    let url: ServerUrl = format!("{scheme}://{}/{}", url.authority(), file.name).parse().ok()?;
    let check = DoctorCheck::new("file", &url);
    let stream = match reach(address?).await {
        Ok(stream) if !url.is_https() => Either::Right(stream),
        Ok(stream) => match check_tls(&check, stream, url.host(), trust).await {
            Ok((stream, _)) => Either::Left(stream),
            Err(line) => return Some(line),
        },
        Err(why) => return Some(check.failed(format!("no connection ({why})"), "")),
    };
    Some(logins::check_file(&check, stream, &url, file).await)
}

/// A TLS handshake, and the result for the certificate.
pub(super) async fn check_tls(
    check: &DoctorCheck,
    stream: TcpStream,
    host: &str,
    trust: TrustStore,
) -> Result<(TlsStream<TcpStream>, Option<CheckResult>), CheckResult> {
    let trust = trust.map_err(|untrusting| check.failed_with(&*untrusting))?;
    let shaken = timeout(LIMIT, handshake(stream, host, TrustPolicy::Authorities(trust))).await;
    let late =
        |_| CheckFailure::new(format!("no handshake within {LIMIT:?}"), "is it a TLS server that listens there?");
    let (stream, chain) = shaken.map_err(late).flatten().map_err(|failure| check.failed_with(failure))?;
    let version = match stream.get_ref().1.protocol_version() {
        Some(rustls::ProtocolVersion::TLSv1_2) => "TLS 1.2",
        _ => "TLS 1.3",
    };
    let result = |leaf: LeafCertificate| {
        leaf.check_expiry(check, &format!("{version}, {} certificates, for {leaf}", chain.len()))
    };
    let line = LeafCertificate::of(&chain).map(result);
    Ok((stream, line))
}

fn check_plain_http(check: &DoctorCheck, leads_to: &Destination) -> CheckResult {
    let account = match leads_to {
        Destination::Account(account) => account,
        Destination::Login(_) => {
            return check.warning("none: http, and a code that crosses a network in clear logs others in", "use https");
        }
    };
    match account.credentials.mode {
        Mode::Plaintext => check
            .warning("none: http, and in plaintext mode anyone on the network path can read the pushes", "use https"),
        Mode::Compatible => check.warning(
            "none: http, and compatible mode sends clear text beside the encrypted one",
            "use https, or secure mode",
        ),
        Mode::Secure => check.ok("none: http, which WeChat allows; secure mode encrypts the pushes"),
    }
}

/// The addresses of the host, IPv4 first; empty if there is none.
async fn name(check: &DoctorCheck, url: &ServerUrl, elsewhere: bool, findings: &mut CheckResults) -> Vec<SocketAddr> {
    let addresses = match resolve(url).await {
        Ok(addresses) => addresses,
        Err(failure) => {
            findings.lines.push(check.failed_with(failure));
            return Vec::new();
        }
    };
    let shown = addresses.iter().map(|address| address.ip().to_string()).collect::<Vec<_>>().join(", ");
    let hidden = addresses.iter().find_map(|address| Some((address.ip(), unreachable(address.ip())?)));
    findings.lines.push(match hidden {
        Some((address, why)) => check.warning(
            match addresses[..] {
                [_] => format!("{address} is {why} address, which WeChat cannot reach"),
                _ => format!("{shown}: {address} is {why} address, which WeChat cannot reach"),
            },
            "the name must resolve to a public address; if it does so outside this network, nothing is wrong",
        ),
        None if addresses.iter().all(SocketAddr::is_ipv6) => {
            check.warning(format!("{shown}: IPv6 only"), "add an A record: WeChat is not known to push over IPv6")
        }
        None => check.ok(if elsewhere { format!("{shown}, not used because of --connect") } else { shown }),
    });
    addresses
}

/// The addresses of a URL's host, IPv4 first.
pub(super) async fn resolve(url: &ServerUrl) -> Result<Vec<SocketAddr>, CheckFailure> {
    let (host, port) = (url.host().to_owned(), url.port());
    let found = run_detached(LIMIT, move || (host.as_str(), port).to_socket_addrs().map(Vec::from_iter)).await;
    let mut addresses = match found {
        Some(Ok(addresses)) => addresses,
        Some(Err(error)) => {
            let text = format!("{} has no address ({error})", url.host());
            return Err(CheckFailure::new(text, "is the name right, and does it have a public A record?"));
        }
        None => {
            return Err(CheckFailure::new(format!("no answer within {LIMIT:?}"), "check this machine's resolver"));
        }
    };
    addresses.sort_unstable_by_key(|address| (address.is_ipv6(), *address));
    addresses.dedup();
    Ok(addresses)
}

/// Why an address is unreachable from the Internet.
fn unreachable(address: IpAddr) -> Option<&'static str> {
    match address.to_canonical() {
        IpAddr::V4(v4) => match v4.octets() {
            _ if v4.is_loopback() => Some("a loopback"),
            _ if v4.is_private() => Some("a private"),
            _ if v4.is_link_local() => Some("a link-local"),
            _ if v4.is_unspecified() || v4.is_broadcast() || v4.is_multicast() => Some("a reserved"),
            _ if v4.is_documentation() => Some("a documentation"),
            [100, 64..=127, ..] => Some("a carrier-grade NAT (100.64.0.0/10)"),
            _ => None,
        },
        IpAddr::V6(v6) if v6.is_loopback() => Some("a loopback"),
        IpAddr::V6(v6) if v6.is_unique_local() => Some("a private"),
        IpAddr::V6(v6) if v6.is_unicast_link_local() => Some("a link-local"),
        IpAddr::V6(v6) if v6.is_unspecified() || v6.is_multicast() => Some("a reserved"),
        IpAddr::V6(_) => None,
    }
}

/// Connects to the first address that accepts a connection; all are tried, in order.
async fn port(
    check: &DoctorCheck,
    url: &ServerUrl,
    addresses: Vec<SocketAddr>,
    connect: Option<SocketAddr>,
    findings: &mut CheckResults,
) -> Option<TcpStream> {
    if !PORTS.contains(&url.port()) {
        let text = format!("{}, and WeChat's console accepts 80 and 443 only", url.port());
        findings.lines.push(check.failed(text, "let a reverse proxy or a systemd socket listen on 80 or 443"));
    }
    if addresses.is_empty() {
        return None;
    }
    let tries = addresses.into_iter().map(|address| async move { (address, reach(address).await) });
    let tried = join_ordered(tries).await;
    let lost =
        tried.iter().filter_map(|(address, result)| result.as_ref().err().map(|why| format!("{address}: {why}")));
    let lost = lost.collect::<Vec<_>>().join("; ");
    let stream = tried.into_iter().find_map(|(_, result)| result.ok());
    findings.lines.push(match (&stream, connect) {
        (None, _) => check.failed(
            format!("no connection ({lost})"),
            "open the port in every firewall and security group on the path; behind a NAT without hairpinning, give \
             --connect with the inner address, or test from outside: wxrelay simulate verify --to URL",
        ),
        (Some(_), _) if !lost.is_empty() => {
            check.warning(format!("open, but not at {lost}"), "remove that address from the DNS, or make it answer")
        }
        (Some(_), Some(instead)) => check.ok(format!("{}: connected to {instead} instead", url.port())),
        (Some(_), None) => check.ok(format!("{} is open", url.port())),
    });
    stream
}

pub(super) async fn reach(address: SocketAddr) -> Result<TcpStream, String> {
    match timeout(LIMIT, TcpStream::connect(address)).await {
        Ok(connected) => connected.map_err(|error| error.to_string()),
        Err(_) => Err(format!("no answer within {LIMIT:?}")),
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
    fn an_account_may_precede_the_url() {
        let named = |text: &str| text.parse::<UrlArg>().unwrap();
        assert_eq!(named("shop=https://h/wx?a=b").account.as_deref(), Some("shop"));
        assert_eq!(named("https://h/wx?a=b").account, None);
        assert_eq!(without_query(&named("https://h/wx?a=b").url), "https://h/wx");
        assert!("shop=h".parse::<UrlArg>().is_err());
    }
}
