//! Targets that are the relay itself: an event that is delivered to its own account comes back as a push.

use std::net::{IpAddr, SocketAddr, UdpSocket};

use http::Uri;

use super::error::Problem;
use super::key_reader::KeyReader;
use crate::deliver::address;
use crate::dispatcher::TargetSettings;
use crate::push::Account;
use crate::server::{self, Certificate, Listen};

/// Reports a target whose URL is the path of an account that routes to it, and warns of one of another account.
pub(super) fn check(
    reader: &KeyReader<'_>,
    server: &server::Settings,
    accounts: &[Account],
    targets: &[TargetSettings],
) {
    for target in targets.iter().map(|settings| &settings.target) {
        let is_own = server.listen.iter().any(|listen| is_at(&target.url, listen)) || is_named(&target.url, server);
        if target.proxy.is_some() || !is_own {
            continue;
        }
        let path = target.url.path().trim_end_matches('/');
        let Some(account) = accounts.iter().find(|account| account.path == path) else { continue };
        let routes = account.routes.routes();
        let reader = reader.at(&target.name).at("url");
        if routes.iter().any(|route| route.to.contains(&target.name)) {
            reader.report(Problem::action(
                "this is the relay's own address, with the path of an account whose events go to this target",
                "name the handler's address",
            ));
        } else {
            reader.warn(format_args!("this is the relay's own address, with the path of accounts.{}", account.name));
        }
    }
}

/// Whether a URL has a name that the relay orders certificates for, and that therefore leads to it.
fn is_named(url: &Uri, server: &server::Settings) -> bool {
    let host = url.host().unwrap_or_default().to_ascii_lowercase();
    let is_default = url.port_u16().is_none_or(|port| port == 443) && url.scheme_str() == Some("https");
    let has =
        |certificate: &Certificate| matches!(certificate, Certificate::Acme(acme) if acme.domains.contains(&host));
    is_default && server.tls.iter().any(has)
}

/// Whether this machine has an address: only then can a socket be bound to it.
fn is_of_this_machine(address: IpAddr) -> bool {
    address.is_loopback() || UdpSocket::bind((address, 0)).is_ok()
}

/// Whether a URL leads to a listener, as far as that can be known without DNS.
fn is_at(url: &Uri, listen: &Listen) -> bool {
    let Listen::Tcp(listen) = listen else { return false };
    let port = url.port_u16().unwrap_or(if url.scheme_str() == Some("https") { 443 } else { 80 });
    let host = url.host().unwrap_or_default();
    let addresses: Vec<IpAddr> = match address::literal(host) {
        Some(address) => vec![address],
        None if host.eq_ignore_ascii_case("localhost") => {
            vec![SocketAddr::from(([127, 0, 0, 1], 0)).ip(), std::net::Ipv6Addr::LOCALHOST.into()]
        }
        None => Vec::new(),
    };
    let is_local =
        |address: &IpAddr| *address == listen.ip() || listen.ip().is_unspecified() && is_of_this_machine(*address);
    port == listen.port() && addresses.iter().any(is_local)
}
