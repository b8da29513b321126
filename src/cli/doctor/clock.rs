//! Our clock compared with those of all peers that answered, by `Date` (RFC 9110, 6.6.1).
//!
//! A peer on this machine that agrees proves nothing: it has the same clock.

use std::net::{IpAddr, UdpSocket};
use std::time::Duration;

use super::report::{CheckResult, DoctorCheck, PeerClock};
use crate::clock::UnixMillis;
use crate::config::Config;

/// The difference that whole seconds and network latency explain.
const TOLERANCE_MS: i64 = 5_000;

impl PeerClock {
    /// Makes it from an answer that has just arrived, `took` after its request.
    pub(super) fn of(peer: String, date: UnixMillis, took: Duration, here: bool) -> Self {
        let half = i64::try_from(took.as_millis() / 2).unwrap_or(0);
        Self { peer, date, ours: UnixMillis(UnixMillis::now().0 - half), here }
    }

    /// How far our clock is behind, in milliseconds. Adds half a second for the fraction that `Date` truncates.
    fn behind(&self) -> i64 {
        self.date.0 + 500 - self.ours.0
    }

    fn agrees(&self) -> bool {
        self.behind().abs() <= TOLERANCE_MS
    }
}

/// Whether an address belongs to this machine: then a socket can be bound to it.
pub(super) fn is_local_address(address: IpAddr) -> bool {
    UdpSocket::bind((address, 0)).is_ok()
}

/// One result. Of several peers the one that agrees best counts: two wrong clocks rarely agree.
pub(super) fn check(config: &Config, peers: &[PeerClock]) -> CheckResult {
    let check = DoctorCheck::new("clock", "");
    let informative = peers.iter().filter(|peer| !(peer.here && peer.agrees()));
    let Some(best) = informative.min_by_key(|peer| peer.behind().abs()) else {
        let why = if peers.is_empty() { "no peer answered with a Date" } else { "only peers of this machine answered" };
        let remedy = "check that `timedatectl` prints \"System clock synchronized: yes\"";
        return check.warning(format!("not compared: {why}"), remedy);
    };
    if best.agrees() {
        return check.ok(format!("agrees with {} within {} s", best.peer, TOLERANCE_MS / 1000));
    }
    let (seconds, way) = (best.behind().abs() / 1000, if best.behind() > 0 { "behind" } else { "ahead of" });
    let text = format!("{seconds} s {way} {}", best.peer);
    let remedy = "synchronize it by NTP (`timedatectl set-ntp true`), unless the peer's clock is wrong";
    let strictest = config.accounts.iter().filter_map(|account| Some((account.max_skew?, &account.name))).min();
    match strictest {
        Some((skew, account)) if best.behind().unsigned_abs() > u64::try_from(skew.as_millis()).unwrap_or(u64::MAX) => {
            let limit = humantime::format_duration(skew);
            check.failed(format!("{text}: with max_skew = \"{limit}\", accounts.{account} refuses every push"), remedy)
        }
        _ => check.warning(text, remedy),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(behind: i64, here: bool) -> PeerClock {
        let ours = UnixMillis(1_795_161_600_000);
        PeerClock { peer: "p".to_owned(), date: UnixMillis(ours.0 + behind - 500), ours, here }
    }

    #[test]
    fn a_peer_with_our_own_clock_proves_nothing_unless_it_differs() {
        assert!(is_local_address("127.0.0.1".parse().unwrap()) && !is_local_address("192.0.2.1".parse().unwrap()));
        assert!(peer(4_900, true).agrees() && peer(-4_900, true).agrees() && !peer(5_100, true).agrees());
    }
}
