//! Programs and rights that a test needs and a machine may lack: the test then says so and passes, and in CI it fails.

use std::io::Write;
use std::path::PathBuf;

/// Says that the running test ends here, for want of what is missing; with `CI` set that is a failure.
///
/// Straight to standard error: what a passing test prints by `println!` or `eprintln!` is captured and never seen.
pub(crate) fn skip(missing: &str) {
    assert!(std::env::var_os("CI").is_none(), "in CI nothing is skipped: {missing}");
    let thread = std::thread::current();
    let line = format!("skipped: {}: {missing}\n", thread.name().unwrap_or("a test"));
    std::io::stderr().write_all(line.as_bytes()).expect("standard error can be written");
}

/// Whether a program is not installed; if so, the test is skipped.
pub(crate) fn is_missing(name: &str) -> bool {
    let missing = find(name).is_none();
    if missing {
        skip(&format!("{name} is not installed"));
    }
    missing
}

/// Where a program is. Not everybody has `/usr/sbin` on the path.
pub(crate) fn find(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain([PathBuf::from("/usr/sbin")]);
    folders.map(|folder| folder.join(name)).find(|program| program.is_file())
}
