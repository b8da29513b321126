//! A full disk is answered 503 and recovers by itself when there is room.
//!
//! Needs a file system of its own, so it mounts a small tmpfs where it may (root, or sudo without a password). Where it
//! may not, the test says SKIPPED; in CI that is a failure.

use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::path::Path;
use std::process::{Command, Stdio};

use tempfile::TempDir;

use crate::support::eventually;
use crate::support::relay::Setup;
use crate::support::target::Target;
use crate::support::wechat::{WeChat, text};

#[tokio::test]
async fn a_full_disk_is_answered_503_until_there_is_room() {
    let Some(disk) = SmallDisk::mount() else {
        assert!(std::env::var_os("CI").is_none(), "CI must be able to mount a tmpfs");
        println!("SKIPPED: a full disk: no tmpfs can be mounted here");
        return;
    };
    let (wechat, crm) = (WeChat::secure(), Target::start().await);
    let config = wechat.account() + &crm.config("crm", "");
    let mut relay = Setup::new(config).queue_at(&disk.path().join("queue")).start().await;
    relay.accept(&wechat, &text("o1", "while there is room")).await;
    let ballast = disk.path().join("ballast");
    fill(&ballast);

    // The store has some room of its own, so it takes a few more.
    let (mut stored, mut refused) = (1, None);
    for _ in 0..200 {
        let clear = text("o1", &"x".repeat(50_000));
        match wechat.push(&clear).send(&relay.push).await.status {
            200 => stored += 1,
            503 => {
                refused = Some(clear);
                break;
            }
            status => panic!("answered {status}"),
        }
    }
    let refused = refused.expect("a full disk refuses in the end");
    assert_eq!(relay.audit().await["events"], stored, "what was refused is not stored");
    assert_eq!(relay.get("/livez").await.status, 200, "the relay lives on");

    fs::remove_file(&ballast).expect("the ballast can be removed");
    let taken = async || (wechat.push(&refused).send(&relay.push).await.status == 200).then_some(());
    eventually("the retry is taken, without a restart", taken).await;
    let audit = relay.audited("delivered", stored + 1).await;
    assert_eq!(audit["events"], stored + 1);
    relay.stop().await;
}

/// 4 MiB of its own; unmounted when dropped.
struct SmallDisk(TempDir);

impl SmallDisk {
    fn mount() -> Option<Self> {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let mounted = privileged(&["mount", "-t", "tmpfs", "-o", "size=4m,mode=0777", "tmpfs"], dir.path());
        mounted.then(|| Self(dir))
    }

    fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: a relay that a failed test leaves is killed a moment later.
        privileged(&["umount", "-l"], self.path());
    }
}

/// Runs a command on a folder as root: directly, or by sudo without a password.
fn privileged(command: &[&str], folder: &Path) -> bool {
    [&[][..], &["sudo", "-n"]].iter().any(|prefix| {
        let words = [prefix, command].concat();
        let mut command = Command::new(words[0]);
        command.args(&words[1..]).arg(folder).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command.status().is_ok_and(|status| status.success())
    })
}

/// Writes a file until nothing more fits, to the last bytes.
fn fill(path: &Path) {
    let mut file = File::create(path).expect("a file can be made");
    for size in [64 << 10, 4 << 10, 1] {
        let block = vec![0; size];
        let error = loop {
            if let Err(error) = file.write_all(&block) {
                break error;
            }
        };
        assert_eq!(error.kind(), ErrorKind::StorageFull);
    }
}
