//! Where pushes come from: the networks that an account expects them from, and what happens to others.
//!
//! The address proves nothing, unlike the signature. It shows an operator that WeChat's addresses have changed, or that
//! another client has the token.

use std::net::IpAddr;

use ipnet::IpNet;

/// `allow_from` of an account.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AllowFrom {
    /// WeChat's addresses, as far as they are known.
    pub networks: Vec<IpNet>,
    /// Whether requests from elsewhere are refused, and not only logged.
    pub deny: bool,
}

impl AllowFrom {
    /// Whether a request from that address is refused.
    pub fn denies(&self, address: Option<IpAddr>) -> bool {
        self.deny && !self.lists(address)
    }

    /// Whether that address is listed; one that is not known (a Unix socket, no `X-Forwarded-For`) is not.
    pub(super) fn lists(&self, address: Option<IpAddr>) -> bool {
        address.is_some_and(|address| self.networks.iter().any(|network| network.contains(&address)))
    }
}
