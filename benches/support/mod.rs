//! What the benchmarks stand on: the built binary as a process of its own, a WeChat that sends, targets that answer.
//!
//! All over real sockets on ports that the system chooses. Sender and targets live in the benchmark's process and share
//! the machine with the relay, so what is measured is the whole of it. They are written on bare sockets, to take as
//! little of the machine as they can.

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

/// The number after `--name` on the command line, or the default. What `cargo bench` adds is passed over.
pub(crate) fn argument(name: &str, default: u64) -> u64 {
    word(name).map_or(default, |word| {
        word.replace('_', "").parse().unwrap_or_else(|_| panic!("{name} {word}: expected a number"))
    })
}

/// The word after `--name` on the command line.
pub(crate) fn word(name: &str) -> Option<String> {
    std::env::args().skip_while(|word| word != name).nth(1)
}

/// Raises how many files may be open, here and in the relay: a benchmark's connections need more than most shells give.
pub(crate) fn raise_descriptors() {
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }).expect("the soft limit may be raised");
}
