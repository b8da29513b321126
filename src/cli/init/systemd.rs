//! `init --systemd`: the configuration and its secrets as the unit expects them, the unit itself and its drop-ins.
//!
//! The service runs as a user that exists only while it runs. So everybody may read the configuration, and systemd reads
//! the secrets as root and hands them to the service. Where the package has installed the unit, only the list of
//! credentials is written.

use std::fmt::Write as _;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context as _;

use super::{NewFile, PUBLIC, refuse_existing};
use crate::cli::fixable::fixable;

/// Where the unit looks for the configuration.
pub(super) const FOLDER: &str = "/etc/wxrelay";
const UNITS: &str = "/etc/systemd/system";
const UNIT: &str = include_str!("../../../deploy/systemd/wxrelay.service");
const OLDER_SYSTEMD: &str = include_str!("../../../deploy/systemd/older-systemd.conf");
/// Where packages install the unit; one folder on most systems.
const PACKAGED: [&str; 2] = ["/usr/lib/systemd/system/wxrelay.service", "/lib/systemd/system/wxrelay.service"];
/// The first systemd with `Type=notify-reload`.
const NOTIFY_RELOAD: u32 = 253;
/// Where systemd looks for a program that a unit names without a folder.
const PROGRAM_FOLDERS: [&str; 4] = ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin"];

/// A path of the system below another root.
pub(super) fn below(root: &Path, path: &str) -> PathBuf {
    root.join(path.trim_start_matches('/'))
}

/// Writes the files of [`FOLDER`] and those of the unit, and returns the list for the operator. `credentials` are the
/// names of the secrets.
pub(super) fn write(root: &Path, dir: &Path, mut files: Vec<NewFile>, credentials: &[&str]) -> anyhow::Result<String> {
    let units = below(&std::path::absolute(root)?, UNITS);
    let unit_file = |name: &str, text: String| NewFile { path: units.join(name), text, mode: PUBLIC };
    files.push(unit_file("wxrelay.service.d/credentials.conf", credentials_drop_in(credentials)));
    refuse_existing(&files, "move it away; `init` writes a first configuration only")?;
    if !PACKAGED.iter().any(|path| below(root, path).exists()) {
        files.push(unit_file("wxrelay.service", UNIT.to_owned()));
        if is_older(root) {
            files.push(unit_file("wxrelay.service.d/older-systemd.conf", OLDER_SYSTEMD.to_owned()));
        }
    }
    // An operator's own unit stays as it is.
    let (kept, new): (Vec<_>, Vec<_>) = files.into_iter().partition(|file| file.path.exists());
    super::write(&new, 0o755).map_err(as_root)?;
    open_folder(dir).map_err(as_root)?;
    let mut text = "Written:\n".to_owned();
    for NewFile { path, mode, .. } in &new {
        let note = if *mode == PUBLIC { "" } else { "   (root alone; systemd hands it to the service)" };
        // Writing to a String cannot fail.
        writeln!(text, "   {}{note}", path.display()).ok();
    }
    for NewFile { path, .. } in &kept {
        writeln!(text, "   {} was there already, and stays as it is", path.display()).ok();
    }
    Ok(text)
}

/// The commands that are left.
pub(super) fn commands(root: &Path) -> String {
    // For an operator who came by sudo; others may not have it.
    let sudo = if std::env::var_os("SUDO_UID").is_some() { "sudo " } else { "" };
    let mut text = String::new();
    let own = std::env::current_exe().unwrap_or_default();
    if !PROGRAM_FOLDERS.iter().any(|folder| below(root, folder).join("wxrelay").exists()) {
        text += &format!("   {sudo}install -m 755 {} /usr/local/bin/wxrelay\n", own.display());
    }
    text += &format!("   {sudo}systemctl daemon-reload\n   {sudo}systemctl enable --now wxrelay\n");
    text + &format!("   {sudo}wxrelay simulate -c {FOLDER}/config.toml verify")
}

/// The service's user must get through the folder to the configuration.
fn open_folder(dir: &Path) -> anyhow::Result<()> {
    let failed = || format!("can't let the service's user into {}", dir.display());
    let mode = fs::metadata(dir).with_context(failed)?.permissions().mode();
    fs::set_permissions(dir, Permissions::from_mode(mode | 0o055)).with_context(failed)
}

fn as_root(error: anyhow::Error) -> anyhow::Error {
    let remedy = "run it as root, such as by `sudo wxrelay init --systemd`";
    error.context(fixable("the service is not set up", remedy))
}

/// The credentials of this configuration: the unit's own list has an EncodingAESKey, which plaintext mode does not.
fn credentials_drop_in(names: &[&str]) -> String {
    let mut text = "# Written by `wxrelay init --systemd`: the secrets that config.toml names as `{ credential = \"..\" }`.\n\
                    # For another one, add its file in /etc/wxrelay (mode 600) and a line here. Then restart the service.\n\
                    [Service]\n\
                    # Instead of the unit's own list.\n\
                    LoadCredential=\n"
        .to_owned();
    for name in names {
        text += &format!("LoadCredential={name}:{FOLDER}/{name}\n");
    }
    text
}

/// Whether the systemd there may not know `Type=notify-reload`. What the drop-in sets is right for every systemd; only
/// `systemctl reload` returns earlier.
fn is_older(root: &Path) -> bool {
    // An image may have another systemd than this machine.
    if root != Path::new("/") {
        return true;
    }
    let printed = Command::new("systemctl").arg("--version").output();
    let printed = printed.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
    version(&printed.unwrap_or_default()).is_none_or(|version| version < NOTIFY_RELOAD)
}

/// The number in `systemd 252 (252.38-1~deb12u1)`.
fn version(printed: &str) -> Option<u32> {
    let number = printed.strip_prefix("systemd ")?.split(|sign: char| !sign.is_ascii_digit()).next()?;
    number.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_of_systemd_is_read_as_distributions_print_it() {
        assert_eq!(version("systemd 252 (252.38-1~deb12u1)\n+PAM +AUDIT"), Some(252));
        assert_eq!(version("systemd 257.7 (257.7-1.fc42)\n"), Some(257));
        assert_eq!(version("systemd 239\n"), Some(239));
        assert_eq!(version("systemctl: command not found"), None);
        assert_eq!(version(""), None);
    }
}
