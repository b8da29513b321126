//! Text that must not be shown: tokens, keys, signing secrets.
//!
//! Invariants: `Debug` prints a mask, the memory is wiped on drop, and the only way to the text is
//! [`Secret::expose`], so that a reader can find every use by searching for that word.
//!
//! Not wiped are: the process's environment; copies that the TOML parser and figment make of secrets in the
//! configuration itself; the values of `headers`, which the HTTP client keeps; keys inside the TLS library; remains of
//! moved values on the stack. [`seal_process`] protects all of these.

#![warn(missing_docs)]

use std::fmt;
use std::io;

use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

/// A secret text.
#[derive(Clone)]
pub struct Secret(Zeroizing<String>);

impl Secret {
    /// Wraps a text.
    pub fn new(text: impl Into<String>) -> Self {
        Self(Zeroizing::new(text.into()))
    }

    /// The text itself.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// Compares hashes, so that the duration reveals neither where the texts differ nor the length of the secret.
    pub fn matches(&self, other: &str) -> bool {
        Sha256::digest(self.0.as_bytes()).ct_eq(&Sha256::digest(other)).into()
    }
}

/// Compares with [`Secret::matches`].
impl PartialEq for Secret {
    fn eq(&self, other: &Self) -> bool {
        self.matches(other.expose())
    }
}

impl Eq for Secret {}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MASKED")
    }
}

/// Protects this process's memory: no core dump, and no other process of the same user can trace it or read its memory
/// and environment. Root still can.
///
/// # Errors
/// If the system refuses, for example by a seccomp filter.
#[cfg(target_os = "linux")]
pub fn seal_process() -> io::Result<()> {
    use rustix::process::{DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit};
    set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    // This limit does not apply if core_pattern is a pipe; the line above also covers that.
    setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) })?;
    Ok(())
}

/// Disables core dumps.
///
/// # Errors
/// If the system refuses.
#[cfg(not(target_os = "linux"))]
pub fn seal_process() -> io::Result<()> {
    use rustix::process::{Resource, Rlimit, setrlimit};
    Ok(setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) })?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_shows_a_mask() {
        assert_eq!(format!("{:?}", Secret::new("hunter2")), "MASKED");
    }

    #[test]
    fn matches_only_the_same_text() {
        let secret = Secret::new("abc");
        assert!(secret.matches("abc"));
        assert!(!secret.matches("abd"));
        assert!(!secret.matches("abcd"));
        assert!(!secret.matches(""));
    }
}
