//! File descriptors: the limit of open files is raised at the start, and connections get what the other parts leave.
//!
//! Invariants: connections of clients leave enough descriptors for the store, the admin listener and, up to half of the
//! rest, the connections to targets; where the limit is too low for all, fewer clients are connected, as idle ones can
//! be evicted and a store that cannot open its files loses more.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::settings::MAX_CONNECTIONS;

/// How to get a higher limit.
pub const REMEDY: &str =
    "raise it: LimitNOFILE=65536 in the systemd unit, `ulimit -n 65536` in the shell, --ulimit nofile in Docker";

/// The store with the readers of its API, listeners, certificates, the log, the runtime, collector and authority.
const OTHER_FILES: usize = 64;
/// The most connections to the admin listener: more than it admits requests (`admin/admission.rs`), so that some are
/// always idle and make way.
const MAX_ADMIN: usize = 256;
/// The fewest connections of each kind, however low the limit is.
const MIN_CONNECTIONS: usize = 4;
/// Further descriptors of a target: the sockets of its resolver.
const RESOLVER_FILES: usize = 4;

/// Raises this process's limit of open files to the most that the system allows it. Most systems have a soft limit of
/// 1024 for programs that use `select`, which cannot handle more, and a far higher hard one.
pub fn raise_limit() {
    let limit = getrlimit(Resource::Nofile);
    if limit.current != limit.maximum {
        // Refused only by systems that have yet another limit: the budget goes by the one in force.
        setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }).ok();
    }
}

/// How many connections each side may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DescriptorBudget {
    /// The limit of open files.
    pub limit: usize,
    /// The most connections to the push listeners together.
    pub pushes: usize,
    /// The most connections to the admin listener.
    pub admin: usize,
}

impl DescriptorBudget {
    /// Divides the limit in force; `concurrencies` are those of the targets.
    pub fn of_process(concurrencies: impl Iterator<Item = usize>) -> Self {
        let limit = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
        Self::divide(usize::try_from(limit).unwrap_or(usize::MAX), concurrencies)
    }

    fn divide(limit: usize, concurrencies: impl Iterator<Item = usize>) -> Self {
        // Deliveries whose reply is awaited have the same number of slots again.
        let connections = |concurrency: usize| concurrency.saturating_mul(2).saturating_add(RESOLVER_FILES);
        let targets = concurrencies.map(connections).fold(0, usize::saturating_add);
        let admin = (limit / 8).clamp(MIN_CONNECTIONS, MAX_ADMIN);
        let rest = limit.saturating_sub(OTHER_FILES + admin);
        let pushes = rest.saturating_sub(targets.min(rest / 2)).clamp(MIN_CONNECTIONS, MAX_CONNECTIONS);
        Self { limit, pushes, admin }
    }

    /// Warns if the limit of open files allows fewer connections than a server may have.
    pub fn log(&self) {
        if self.pushes < MAX_CONNECTIONS {
            let (limit, places) = (self.limit, self.pushes);
            tracing::warn!(limit, places, wanted = MAX_CONNECTIONS, remedy = REMEDY, "few file descriptors");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn divided(limit: usize, concurrencies: &[usize]) -> (usize, usize) {
        let budget = DescriptorBudget::divide(limit, concurrencies.iter().copied());
        (budget.pushes, budget.admin)
    }

    #[test]
    fn clients_get_what_the_store_the_targets_and_the_admin_listener_leave() {
        assert_eq!(divided(65536, &[32, 32]), (4096, 256));
        assert_eq!(divided(usize::MAX, &[usize::MAX]), (4096, 256));
        assert_eq!(divided(1024, &[]), (832, 128));
        assert_eq!(divided(1024, &[32]), (764, 128));
        assert_eq!(divided(1024, &[32, 1024]), (416, 128), "targets reserve no more than half");
        assert_eq!(divided(256, &[32]), (92, 32));
        assert_eq!(divided(64, &[32]), (4, 8), "too low to be divided");
    }

    #[test]
    fn every_reserve_fits_in_the_limit() {
        for limit in 80..5000 {
            for concurrency in [0, 1, 32, 1000] {
                let (pushes, admin) = divided(limit, &[concurrency]);
                assert!(pushes + admin + OTHER_FILES <= limit, "{limit} {concurrency}: {pushes} {admin}");
            }
        }
    }
}
