//! The files of ACME beside the store: the account, and each certificate with its key in one file.
//!
//! Invariants: a file is always complete, in its old or its new version, since it is synced and then renamed; only the
//! relay's own user may read it.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use instant_acme::AccountCredentials;
use zeroize::Zeroizing;

/// The file of a certificate, named after its first domain, in the authority's folder below the store's: each authority
/// has its own account and certificates.
pub fn file(store: &Path, directory: &str, domain: &str) -> PathBuf {
    let plain = |sign: char| if sign.is_ascii_alphanumeric() || sign == '.' { sign } else { '-' };
    let authority: String = directory.trim_start_matches("https://").chars().map(plain).collect();
    store.join("acme").join(authority).join(format!("{domain}.pem"))
}

#[derive(Debug, thiserror::Error)]
#[error("cannot write {path}: {source}")]
pub struct SaveError {
    path: PathBuf,
    source: io::Error,
}

/// The stored account; `None` if there is none yet, or if it cannot be read.
pub(super) async fn account(path: &Path) -> Option<AccountCredentials> {
    let text = tokio::fs::read(path).await.map(Zeroizing::new).ok()?;
    let parsed = serde_json::from_slice(&text);
    // Without serde's error, which may quote the key.
    parsed
        .map_err(|_| tracing::warn!(path = %path.display(), "ACME account file unusable, creating another account"))
        .ok()
}

/// Replaces a file atomically.
pub(super) async fn save(path: PathBuf, bytes: Zeroizing<Vec<u8>>) -> Result<(), SaveError> {
    let to = path.clone();
    let saved = tokio::task::spawn_blocking(move || replace(&to, &bytes)).await;
    saved.map_err(io::Error::from).flatten().map_err(|source| SaveError { path, source })
}

fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    let fresh = path.with_extension("new");
    // A file that a crash has left may have other permissions.
    fs::remove_file(&fresh)
        .or_else(|error| if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) })?;
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&fresh)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&fresh, path)?;
    File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn each_authority_has_a_folder_of_its_own() {
        let of = |directory| file(Path::new("/store"), directory, "wx.example.com");
        let expected = "/store/acme/acme-v02.api.letsencrypt.org-directory/wx.example.com.pem";
        assert_eq!(of("https://acme-v02.api.letsencrypt.org/directory"), Path::new(expected));
        assert_eq!(of("https://[::1]:14000/../dir"), Path::new("/store/acme/---1--14000-..-dir/wx.example.com.pem"));
        assert_ne!(of("https://ca.internal/acme/one/directory"), of("https://ca.internal/acme/two/directory"));
    }

    #[test]
    fn what_is_kept_is_for_the_relay_s_own_user_and_is_replaced_whole() {
        let folder = tempfile::tempdir().unwrap();
        let path = file(folder.path(), "https://ca.internal/directory", "wx.example.com");
        replace(&path, b"one").unwrap();
        // The remains of a crash between writing and renaming.
        fs::write(path.with_extension("new"), "half").unwrap();
        replace(&path, b"two").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&path), 0o600);
        assert_eq!(path.ancestors().skip(1).take(2).map(mode).collect::<Vec<_>>(), [0o700, 0o700]);
        assert!(!path.with_extension("new").exists());
    }

    #[tokio::test]
    async fn an_account_that_cannot_be_read_is_none() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("account.json");
        assert!(account(&path).await.is_none());
        fs::write(&path, r#"{"id":"https://ca.internal/1","key_pkcs8":"no key"}"#).unwrap();
        assert!(account(&path).await.is_none());
    }
}
