//! The axes along which a relay grows, and its configuration at each size.
//!
//! Except for patterns, all begin at the same relay: one account with one route to one target, and an empty store.

use std::fmt::Write as _;

use super::support::wechat::account_marked;

/// What grows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Axis {
    /// Of one account.
    Routes,
    Accounts,
    /// Of which each push goes to one.
    Targets,
    /// Of each push.
    Deliveries,
    /// In the store.
    Events,
}

impl Axis {
    pub(crate) const ALL: [Self; 5] = [Self::Routes, Self::Accounts, Self::Targets, Self::Deliveries, Self::Events];

    /// For `--only`.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Routes => "routes",
            Self::Accounts => "accounts",
            Self::Targets => "targets",
            Self::Deliveries => "deliveries",
            Self::Events => "events",
        }
    }

    /// In the chart.
    pub(crate) fn label(self) -> &'static str {
        match self {
            Self::Routes => "routes",
            Self::Accounts => "accounts",
            Self::Targets => "targets",
            Self::Deliveries => "deliveries of a push, each",
            Self::Events => "stored events",
        }
    }

    pub(crate) fn explanation(self) -> &'static str {
        match self {
            Self::Routes => "a push is held against all of them, and the last one matches; microseconds a push",
            Self::Accounts => "pushes to each in turn; microseconds a push",
            Self::Targets => "a push goes to one of them, each in turn; microseconds a push",
            Self::Deliveries => "a push goes to all targets; microseconds a delivery",
            Self::Events => "stored before; microseconds a push",
        }
    }

    pub(crate) fn sizes(self, most: u64) -> Vec<u64> {
        match self {
            Self::Routes => vec![1, 10, 100, 1000],
            Self::Accounts => vec![1, 10, 100],
            Self::Targets | Self::Deliveries => vec![1, 10, 50],
            Self::Events => {
                [0, 10_000, 100_000, 1_000_000, 10_000_000].into_iter().filter(|size| *size <= most).collect()
            }
        }
    }

    pub(crate) fn accounts(self, size: u64) -> u64 {
        if self == Self::Accounts { size } else { 1 }
    }

    pub(crate) fn targets(self, size: u64) -> u64 {
        if matches!(self, Self::Targets | Self::Deliveries) { size } else { 1 }
    }

    /// How many targets each push goes to.
    pub(crate) fn fanout(self, size: u64) -> u64 {
        if self == Self::Deliveries { size } else { 1 }
    }

    /// Accounts with their routes.
    pub(crate) fn config(self, size: u64) -> String {
        (0..self.accounts(size)).map(|number| account_marked(&mark(number)) + &self.routes(number, size)).collect()
    }

    /// The routes of one account.
    fn routes(self, account: u64, size: u64) -> String {
        let table = format!("[[accounts.shop{}.routes]]\n", mark(account));
        let mut routes = String::new();
        let mut route = |when: &str, to: &str| {
            write!(routes, "{table}{when}\nto = [{to}]\n").expect("a string takes all");
        };
        match self {
            Self::Routes => {
                for number in 1..size {
                    route(
                        &format!("match = {{ event = [\"subscribe\", \"SCAN\"], {} }}", campaign(number)),
                        "\"app0\"",
                    );
                }
                route("match = { event = [\"subscribe\", \"SCAN\"], event_key = \"sent-at-*\" }", "\"app0\"");
            }
            // By the last two digits of the user's number: a hundred patterns whatever the number of targets.
            Self::Targets => {
                for target in 0..size {
                    let ends = (0..100).filter(|end| end % size == target).map(|end| format!("*{end:02}"));
                    let ends: Vec<String> = ends.collect();
                    route(&format!("match = {{ from = {ends:?} }}"), &format!("\"app{target}\""));
                }
            }
            Self::Deliveries => {
                let all: Vec<String> = (0..size).map(|target| format!("\"app{target}\"")).collect();
                route("otherwise = true", &all.join(", "));
            }
            Self::Accounts | Self::Events => route("otherwise = true", "\"app0\""),
        }
        routes
    }
}

/// The mark of an account's number; the first has none.
pub(crate) fn mark(number: u64) -> String {
    if number == 0 { String::new() } else { number.to_string() }
}

/// The purpose of one of many routes: a campaign's QR codes, by an exact key, a glob or a regular expression.
fn campaign(number: u64) -> String {
    match number % 3 {
        0 => format!("event_key = \"poster_{number}\""),
        1 => format!("event_key = \"shop{number}_*\""),
        _ => format!("event_key = \"re:^staff{number}_[0-9]+$\""),
    }
}
