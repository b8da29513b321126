//! Support of the benchmarks: the built binary as a process of its own, a WeChat that sends, targets that answer.
//!
//! All over real sockets on ports that the system chooses. Sender and targets run in the benchmark's process and share
//! the machine with the relay, so all of it is measured. They use plain sockets, to need little of the machine.

pub(crate) mod attack;
pub(crate) mod figures;
pub(crate) mod relay;
pub(crate) mod schedule;
pub(crate) mod target;
pub(crate) mod tls;
pub(crate) mod wechat;

use std::sync::OnceLock;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::time::Instant;

/// Nanoseconds since this process first asked.
pub(crate) fn nanos() -> u64 {
    static START: OnceLock<Instant> = OnceLock::new();
    u64::try_from(START.get_or_init(Instant::now).elapsed().as_nanos()).unwrap_or(u64::MAX)
}

/// The number after `--name` on the command line, or the default. Arguments of `cargo bench` are ignored.
pub(crate) fn argument(name: &str, default: u64) -> u64 {
    word(name).map_or(default, |word| {
        word.replace('_', "").parse().unwrap_or_else(|_| panic!("{name} {word}: expected a number"))
    })
}

/// The word after `--name` on the command line.
pub(crate) fn word(name: &str) -> Option<String> {
    std::env::args().skip_while(|word| word != name).nth(1)
}

/// Raises the limit of open files, here and in the relay: a benchmark needs more than most shells allow.
pub(crate) fn raise_descriptors() {
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }).expect("the soft limit may be raised");
}
