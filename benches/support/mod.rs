//! What the benchmarks stand on: the built binary as a process of its own, a WeChat that sends, targets that answer.
//!
//! All over real sockets on ports that the system chooses. Sender and targets live in the benchmark's process and share
//! the machine with the relay, so what is measured is the whole of it. They are written on bare sockets, to take as
//! little of the machine as they can.

pub(crate) mod attack;
pub(crate) mod figures;
pub(crate) mod relay;
pub(crate) mod target;
pub(crate) mod tls;
pub(crate) mod wechat;

use std::sync::OnceLock;

use tokio::time::Instant;

/// Nanoseconds since this process first asked.
pub(crate) fn nanos() -> u64 {
    static START: OnceLock<Instant> = OnceLock::new();
    u64::try_from(START.get_or_init(Instant::now).elapsed().as_nanos()).unwrap_or(u64::MAX)
}

/// The number after `--name` on the command line, or the default. What `cargo bench` adds is passed over.
pub(crate) fn argument(name: &str, default: u64) -> u64 {
    let mut words = std::env::args().skip_while(|word| word != name).skip(1);
    words.next().map_or(default, |word| {
        word.replace('_', "").parse().unwrap_or_else(|_| panic!("{name} {word}: expected a number"))
    })
}
