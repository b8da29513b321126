//! The store's folder as others may have left it: open to other users, with links in the place of files.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};

use rustix::process::geteuid;
use tempfile::TempDir;

use crate::support::command::{Finished, run, wxrelay};
use crate::support::program::skip;
use crate::support::relay::{Relay, Setup};
use crate::support::wechat::{WeChat, text};

/// The files that the relay writes beside the database.
const FILES: [&str; 6] =
    ["wxrelay.lock", "wxrelay.ballast", "wxrelay.db", "wxrelay.db-wal", "wxrelay.db-shm", "wxrelay.db.new"];

#[tokio::test]
async fn no_file_of_the_store_is_opened_through_a_link() {
    for name in FILES {
        let folder = Folder::new("");
        let victim = folder.0.path().join("victim");
        fs::write(&victim, "precious").expect("a file can be written");
        symlink(&victim, folder.store().join(name)).expect("a link can be made");
        let refused = folder.run("serve").await;
        assert_eq!(refused.code, Some(78), "{name}: {refused:?}");
        for part in [name, "symbolic link", "fix: "] {
            assert!(refused.stderr.contains(part), "{name}: {part} is not in {}", refused.stderr);
        }
        assert_eq!(fs::read_to_string(&victim).expect("it is there"), "precious", "{name}");
    }
}

#[tokio::test]
async fn a_file_that_has_a_second_name_is_not_written() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let victim = folder.path().join("victim");
    let store = folder.path().join("store");
    fs::create_dir(&store).expect("a folder can be made");
    fs::write(&victim, "precious").expect("a file can be written");
    for name in ["wxrelay.lock", "wxrelay.ballast"] {
        fs::hard_link(&victim, store.join(name)).expect("a link can be made");
    }
    let mut relay = Setup::new(WeChat::secure().account()).queue_at(&store).start().await;
    relay.accept(&WeChat::secure(), &text("o1", "hello")).await;
    relay.stop().await;
    assert_eq!(fs::read_to_string(&victim).expect("it is there"), "precious");
}

#[tokio::test]
async fn a_store_in_a_linked_folder_is_used() {
    let (wechat, folder) = (WeChat::secure(), tempfile::tempdir().expect("a temporary folder"));
    let (disk, link) = (folder.path().join("disk"), folder.path().join("queue"));
    fs::create_dir(&disk).expect("a folder can be made");
    symlink(&disk, &link).expect("a link can be made");
    let mut relay = Setup::new(wechat.account()).queue_at(&link).start().await;
    relay.accept(&wechat, &text("o1", "hello")).await;
    relay.stop().await;
    assert!(disk.join("wxrelay.db").is_file());
}

#[tokio::test]
async fn a_folder_that_others_may_read_or_change_is_warned_of_and_with_strict_refused() {
    for mode in [0o777, 0o770, 0o755, 0o704] {
        let folder = Folder::new("");
        fs::set_permissions(folder.store(), Permissions::from_mode(mode)).expect("rights can be changed");
        let printed = folder.run("check").await;
        let expected = format!("(mode {mode:04o}); chmod 700 {}", folder.store().display());
        assert_eq!(printed.code, Some(0), "{printed:?}");
        assert!(
            printed.stderr.starts_with("warning: queue.path: ") && printed.stderr.contains(&expected),
            "{printed:?}"
        );
        let strict = Folder(folder.0, "strict = true\n".to_owned());
        for command in ["check", "serve"] {
            let refused = strict.run(command).await;
            assert_eq!(refused.code, Some(78), "{command}: {refused:?}");
            assert!(refused.stderr.contains(&expected), "{command}: {refused:?}");
        }
        fs::set_permissions(strict.store(), Permissions::from_mode(0o711)).expect("rights can be changed");
        assert_eq!(strict.run("check").await.code, Some(0), "the names of the files are known to all anyway");
    }
}

#[tokio::test]
async fn the_warning_is_logged_at_the_start() {
    let store = tempfile::tempdir().expect("a temporary folder");
    fs::set_permissions(store.path(), Permissions::from_mode(0o777)).expect("rights can be changed");
    let relay = Setup::new(WeChat::secure().account()).queue_at(store.path()).start().await;
    let warned = |line: &serde_json::Value| line["level"] == "WARN" && line.to_string().contains("chmod 700");
    relay.log("a warning of the folder's mode", warned).await;
}

#[tokio::test]
async fn a_folder_of_another_user_is_warned_of_and_with_strict_refused() {
    if !geteuid().is_root() {
        return skip("only root can give a folder away");
    }
    let store = tempfile::tempdir().expect("a temporary folder");
    chown(store.path(), Some(65_534), None).expect("an owner can be given");
    let relay: Relay = Setup::new(WeChat::secure().account()).queue_at(store.path()).start().await;
    let warned = |line: &serde_json::Value| line["level"] == "WARN" && line["message"] == "store owned by another user";
    let line = relay.log("a warning of the folder's owner", warned).await;
    assert!(line["error"].as_str().is_some_and(|error| error.contains("user 65534")), "{line}");
    drop(relay);
    let folder = Folder::new("strict = true\n");
    chown(folder.store(), Some(65_534), None).expect("an owner can be given");
    let refused = folder.run("serve").await;
    assert!(refused.code == Some(78) && refused.stderr.contains("user 65534"), "{refused:?}");
}

/// A configuration and the folder of its store, for commands that are expected to end.
struct Folder(TempDir, String);

impl Folder {
    /// With further lines of `[server]`.
    fn new(server: &str) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let store = folder.path().join("store");
        fs::create_dir(&store).expect("a folder can be made");
        fs::set_permissions(&store, Permissions::from_mode(0o700)).expect("rights can be changed");
        Self(folder, server.to_owned())
    }

    fn store(&self) -> PathBuf {
        self.0.path().join("store")
    }

    async fn run(&self, command: &str) -> Finished {
        let config = self.0.path().join("config.toml");
        let text = format!(
            "[server]\nlisten = [\"127.0.0.1:0\"]\n{}[admin]\nlisten = \"127.0.0.1:0\"\n[queue]\npath = \"store\"\n{}\
             [targets.login]\nrole = \"identity\"\nurl = \"http://127.0.0.1:9/\"\n",
            self.1,
            WeChat::secure().account()
        );
        write_private(&config, &text);
        let mut program = wxrelay([command, "-c"]);
        program.arg(config);
        run(program).await
    }
}

fn write_private(path: &Path, text: &str) {
    fs::write(path, text).expect("a file can be written");
    fs::set_permissions(path, Permissions::from_mode(0o600)).expect("rights can be changed");
}
