//! The machine that the numbers are measured on.

use std::fmt;
use std::fs::{self, File};
use std::io::Write;
use std::process::Command;
use std::thread::available_parallelism;

use super::support::figures::{Latency, millis};
use super::support::nanos;

/// Timed flushes.
const FLUSHES: usize = 300;

pub(crate) struct Machine {
    processor: String,
    cores: usize,
    /// In GiB.
    memory: u64,
    kernel: String,
    compiler: String,
    flush: Latency,
}

impl Machine {
    pub(crate) fn look() -> Self {
        let field = |file: &str, name: &str| {
            let text = fs::read_to_string(file).unwrap_or_default();
            let line = text.lines().find(|line| line.starts_with(name)).map(str::to_owned);
            line.and_then(|line| line.split_once(':').map(|(_, value)| value.trim().to_owned())).unwrap_or_default()
        };
        let kibibytes = field("/proc/meminfo", "MemTotal").trim_end_matches(" kB").parse::<u64>().unwrap_or_default();
        let version = Command::new("rustc").arg("--version").output().map(|output| output.stdout).unwrap_or_default();
        let version = String::from_utf8_lossy(&version).split(' ').take(2).collect::<Vec<_>>().join(" ");
        let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        Self {
            processor: field("/proc/cpuinfo", "model name"),
            cores: available_parallelism().map_or(1, usize::from),
            memory: (kibibytes + (1 << 19)) >> 20,
            kernel: release.split('-').next().unwrap_or_default().trim().to_owned(),
            compiler: version.trim().to_owned(),
            flush: flush(),
        }
    }
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { processor, cores, memory, kernel, compiler, flush } = self;
        let (middle, tail) = (millis(flush.p50), millis(flush.p99));
        write!(
            f,
            "{cores} cores ({processor}), {memory} GiB, Linux {kernel}, {compiler}, fsync {middle:.2} ms (p99 {tail:.2})"
        )
    }
}

/// The time to append and flush one page, on the disk of the stores.
fn flush() -> Latency {
    let mut file: File = tempfile::tempfile().expect("a temporary file");
    let page = [7; 4096];
    let times = (0..FLUSHES).map(|_| {
        let begun = nanos();
        file.write_all(&page).and_then(|()| file.sync_data()).expect("a temporary file can be flushed");
        nanos() - begun
    });
    Latency::of(times.collect())
}
