//! Programs and rights that a machine may lack: a test that needs them prints that and passes; in CI it fails.

use std::io::Write;
use std::path::PathBuf;

/// Prints that the running test is skipped, and why; with `CI` set that is a failure.
///
/// Writes to standard error directly: the output of `println!` and `eprintln!` in a passing test is captured.
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

/// The path of a program. Also searches `/usr/sbin`, which may not be on the path.
pub(crate) fn find(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain([PathBuf::from("/usr/sbin")]);
    folders.map(|folder| folder.join(name)).find(|program| program.is_file())
}
