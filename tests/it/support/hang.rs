//! Makes calls of the relay hang: flushes, and the resolution of names (`hang.c`).
//!
//! Needs a C compiler; without one the test is skipped, and in CI that is a failure.

use std::fs::{self, File};
use std::path::Path;
use std::process::Command;

use tempfile::TempDir;

use super::program::is_missing;
use super::relay::Setup;

/// The library in the relay's process, and what it makes hang.
pub(crate) struct Hang(TempDir);

impl Hang {
    /// Builds the library; nothing hangs yet. `None` without a C compiler.
    pub(crate) fn build() -> Option<Self> {
        if is_missing("cc") {
            return None;
        }
        let folder = tempfile::tempdir().expect("a temporary folder");
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/support/hang.c");
        let mut compiler = Command::new("cc");
        compiler.args(["-O1", "-shared", "-fPIC", "-o"]).arg(folder.path().join("hang.so")).arg(source).arg("-ldl");
        assert!(compiler.status().expect("the compiler starts").success(), "hang.c can be compiled");
        Some(Self(folder))
    }

    /// A relay with the library.
    pub(crate) fn preload(&self, setup: Setup) -> Setup {
        self.environment().into_iter().fold(setup, |setup, (name, value)| setup.env(name, value))
    }

    /// The variables of a process that make it load the library.
    pub(crate) fn environment(&self) -> [(&'static str, String); 2] {
        let path = |name: &str| self.0.path().join(name).display().to_string();
        [("LD_PRELOAD", path("hang.so")), ("HANG_DIR", path(""))]
    }

    /// From now on, flushes hang.
    pub(crate) fn flushes(&self) {
        File::create(self.0.path().join("flush")).expect("a file can be made");
    }

    /// From now on, the resolution of names hangs.
    pub(crate) fn names(&self) {
        File::create(self.0.path().join("resolve")).expect("a file can be made");
    }

    /// Lets flushes continue.
    pub(crate) fn release_flushes(&self) {
        fs::remove_file(self.0.path().join("flush")).expect("flushes hang");
    }
}
