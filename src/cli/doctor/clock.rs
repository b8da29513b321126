//! Our clock against those of all who answered, by the `Date` of their answers (RFC 9110, 6.6.1).
//!
//! A peer on this machine that agrees proves nothing: it has the same clock.

use std::net::{IpAddr, UdpSocket};
use std::time::Duration;

use super::report::{Check, Line, PeerClock};
use crate::clock::UnixMillis;
use crate::config::Config;

/// What whole seconds and the way of an answer explain.
const USUAL: i64 = 5_000;

impl PeerClock {
    /// Of an answer that has just come, `took` after it was asked for.
    pub(super) fn of(peer: String, date: UnixMillis, took: Duration, here: bool) -> Self {
        let half = i64::try_from(took.as_millis() / 2).unwrap_or(0);
        Self { peer, date, ours: UnixMillis(UnixMillis::now().0 - half), here }
    }

    /// How far we are behind, in milliseconds. Half a second for the part that `Date` cuts off.
    fn behind(&self) -> i64 {
        self.date.0 + 500 - self.ours.0
    }

    fn agrees(&self) -> bool {
        self.behind().abs() <= USUAL
    }
}

/// Whether an address is one of this machine: then a socket can be bound to it.
pub(super) fn is_here(address: IpAddr) -> bool {
    UdpSocket::bind((address, 0)).is_ok()
}

/// One line. Of several peers the one that agrees best counts, as a clock that is wrong is rarely wrong by as much as
/// ours.
pub(super) fn check(config: &Config, peers: &[PeerClock]) -> Line {
    let check = Check::new("clock", "");
    let telling = peers.iter().filter(|peer| !(peer.here && peer.agrees()));
    let Some(best) = telling.min_by_key(|peer| peer.behind().abs()) else {
        let why = if peers.is_empty() { "nobody answered with a Date" } else { "only peers of this machine answered" };
        let remedy = "see that `timedatectl` says \"System clock synchronized: yes\"";
        return check.warning(format!("not compared: {why}"), remedy);
    };
    if best.agrees() {
        return check.ok(format!("agrees with that of {}, within {} s", best.peer, USUAL / 1000));
    }
    let (seconds, way) = (best.behind().abs() / 1000, if best.behind() > 0 { "behind" } else { "ahead of" });
    let text = format!("{seconds} s {way} that of {}", best.peer);
    let remedy = "synchronise it by NTP (`timedatectl set-ntp true`), unless it is the other one that is wrong";
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
        assert!(is_here("127.0.0.1".parse().unwrap()) && !is_here("192.0.2.1".parse().unwrap()));
        assert!(peer(4_900, true).agrees() && peer(-4_900, true).agrees() && !peer(5_100, true).agrees());
    }
}
