//! A full disk, and a read-only one: 503 for WeChat, the reason for the operator, and stored events are still
//! delivered.
//!
//! The tests need a separate file system: they mount a small tmpfs, as root or by sudo without a password. Without that
//! right they are skipped; in CI that is a failure.

use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rusqlite::Connection;
use tempfile::TempDir;

use crate::support::eventually;
use crate::support::program::skip;
use crate::support::relay::{Relay, Setup};
use crate::support::target::{Reaction, Reply, Target};
use crate::support::wechat::{WeChat, text};

/// A schedule that is longer than any outage in a test.
const PATIENT: &str = "retry = [\"100ms\", \"1s\", \"1s\", \"1s\", \"1s\", \"1s\", \"1s\", \"1s\", \"1s\", \"1s\"]";

#[tokio::test]
async fn a_full_disk_is_answered_503_until_there_is_room() {
    let Some(disk) = SmallDisk::mount() else { return };
    let (wechat, crm) = (WeChat::secure(), Target::start().await);
    let config = wechat.account() + &crm.config("crm", "");
    let mut relay = Setup::new(config).queue_at(&disk.queue()).start().await;
    relay.accept(&wechat, &text("o1", "while there is room")).await;
    disk.fill();
    let (stored, refused) = push_until_refused(&relay, &wechat, 50_000).await;
    assert_eq!(relay.audit().await["events"], stored + 1, "what was refused is not stored");
    assert_eq!(readiness(&relay).await, (503, "disk-full".to_owned()));
    assert_eq!(relay.get("/livez").await.status, 200, "the relay lives on");
    assert_eq!(relay.get("/api/status").await.json()["not_ready_because"], "disk-full");
    assert_eq!(relay.metric("wxrelay_ready", &[]).await, 0.0);
    let small = wechat.push(&text("o1", "small")).send(&relay.push).await;
    assert_eq!(small.status, 503, "what room there is is kept for what is stored");

    disk.free();
    is_ready(&relay).await;
    assert_eq!(relay.metric("wxrelay_ready", &[]).await, 1.0);
    relay.accept(&wechat, &refused).await;
    let audit = relay.audited("delivered", stored + 2).await;
    assert_eq!(audit["events"], stored + 2);
    let output = |what: &str| relay.lines().iter().filter(|line| line.contains(what)).count();
    assert_eq!(output("new events refused"), 1, "said once");
    assert_eq!(output("new events accepted again"), 1, "said once");
    relay.stop().await;
}

#[tokio::test]
async fn what_is_stored_is_delivered_and_settled_while_the_disk_is_full() {
    let Some(disk) = SmallDisk::mount() else { return };
    let (wechat, crm) = (WeChat::secure(), Target::always(Reaction::Answer(Reply::status(503))).await);
    let config = wechat.account() + &crm.config("crm", PATIENT);
    let mut relay = Setup::new(config).queue_at(&disk.queue()).start().await;
    for index in 0..100 {
        relay.accept(&wechat, &text("o1", &format!("small {index}"))).await;
    }
    disk.fill();
    let (more, refused) = push_until_refused(&relay, &wechat, 20_000).await;
    let stored = 100 + more;

    crm.then(Reaction::Answer(Reply::status(200)));
    let audit = relay.audited("delivered", stored).await;
    assert_eq!(audit["pending"], 0, "{audit}");
    assert_eq!(wechat.push(&refused).send(&relay.push).await.status, 503, "the disk is full all the while");
    assert_eq!(readiness(&relay).await, (503, "disk-full".to_owned()));

    disk.free();
    is_ready(&relay).await;
    relay.accept(&wechat, &refused).await;
    relay.audited("delivered", stored + 1).await;
    relay.stop().await;
}

#[tokio::test]
async fn a_relay_that_starts_on_a_full_disk_delivers_what_is_stored() {
    let Some(disk) = SmallDisk::mount() else { return };
    let (wechat, crm) = (WeChat::secure(), Target::always(Reaction::Answer(Reply::status(503))).await);
    let config = wechat.account() + &crm.config("crm", PATIENT);
    let mut relay = Setup::new(config).queue_at(&disk.queue()).start().await;
    for index in 0..50 {
        relay.accept(&wechat, &text("o1", &format!("small {index}"))).await;
    }
    relay.stop().await;
    disk.fill();

    crm.then(Reaction::Answer(Reply::status(200)));
    relay.restart().await;
    assert_eq!(readiness(&relay).await, (503, "disk-full".to_owned()));
    let refused = text("o1", "too late");
    assert_eq!(wechat.push(&refused).send(&relay.push).await.status, 503);
    relay.audited("delivered", 50).await;
    relay.kill().await;
    relay.restart().await;
    assert_eq!(readiness(&relay).await, (503, "disk-full".to_owned()), "after a crash too");

    disk.free();
    is_ready(&relay).await;
    relay.accept(&wechat, &refused).await;
    relay.audited("delivered", 51).await;
    relay.stop().await;
}

#[tokio::test]
async fn on_a_full_disk_finished_events_make_room_for_new_ones() {
    let Some(disk) = SmallDisk::mount() else { return };
    let (wechat, crm) = (WeChat::secure(), Target::start().await);
    let config = wechat.account() + &crm.config("crm", "");
    let mut relay = Setup::new(config).queue_at(&disk.queue()).start().await;
    for _ in 0..12 {
        relay.accept(&wechat, &text("o1", &"x".repeat(40_000))).await;
    }
    relay.audited("delivered", 12).await;
    relay.stop().await;
    make_older(&disk.queue());
    relay.restart().await;
    disk.fill();
    let (stored, refused) = push_until_refused(&relay, &wechat, 40_000).await;
    let taken = async || (wechat.push(&refused).send(&relay.push).await.status == 200).then_some(());
    eventually("the push is accepted, on a disk as full as before", taken).await;
    let audit = relay.audited("pending", 0).await;
    let (events, stored) = (audit["events"].as_u64().expect("a number"), stored + 1);
    assert!((stored..stored + 12).contains(&events), "{events} events, {stored} of them new");
    relay.stop().await;
}

#[tokio::test]
async fn max_size_is_held_the_same_way() {
    let (wechat, crm) = (WeChat::secure(), Target::always(Reaction::Answer(Reply::status(503))).await);
    let config = wechat.account() + &crm.config("crm", PATIENT);
    let store = tempfile::tempdir().expect("a temporary folder");
    let mut relay = Setup::new(config).queue("max_size = \"16MiB\"").queue_at(store.path()).start().await;
    let (stored, refused) = push_until_refused(&relay, &wechat, 300_000).await;
    assert_eq!(readiness(&relay).await, (503, "queue-full".to_owned()));
    let size = fs::metadata(store.path().join("wxrelay.db")).expect("a database").len();
    assert!(size < 17 << 20, "{size} bytes");

    crm.then(Reaction::Answer(Reply::status(200)));
    relay.audited("delivered", stored).await;
    assert_eq!(wechat.push(&refused).send(&relay.push).await.status, 503, "all of them may be pushed again");
    relay.stop().await;
    make_older(store.path());
    relay.restart().await;
    is_ready(&relay).await;
    relay.accept(&wechat, &refused).await;
    let audit = relay.audited("pending", 0).await;
    let events = audit["events"].as_u64().expect("a number");
    assert!(
        (stored / 2..=stored).contains(&events),
        "{events} events are left of {stored} and one: as few go as needed"
    );
    relay.stop().await;
}

#[tokio::test]
async fn a_store_that_is_removed_while_the_disk_is_full_is_written_back_when_there_is_room() {
    let Some(disk) = SmallDisk::mount() else { return };
    let (wechat, crm) = (WeChat::secure(), Target::always(Reaction::Answer(Reply::status(503))).await);
    let config = wechat.account() + &crm.config("crm", PATIENT);
    let mut relay = Setup::new(config).queue_at(&disk.queue()).start().await;
    for _ in 0..10 {
        relay.accept(&wechat, &text("o1", &"x".repeat(40_000))).await;
    }
    disk.fill();
    for name in ["wxrelay.db", "wxrelay.db-wal", "wxrelay.db-shm"] {
        fs::remove_file(disk.queue().join(name)).expect("it is there");
    }
    let logged = |start: &'static str| {
        move |line: &serde_json::Value| line["message"].as_str().is_some_and(|text| text.starts_with(start))
    };
    let line = relay.log("that there is no room for a copy", logged("store not written back yet")).await;
    assert!(
        line["level"] == "ERROR" && line["remedy"].as_str().is_some_and(|text| text.contains("free some")),
        "{line}"
    );
    disk.free();
    relay.log("that the store is written back", logged("store written back")).await;
    relay.kill().await;
    crm.then(Reaction::Answer(Reply::status(200)));
    relay.restart().await;
    relay.audited("delivered", 10).await;
    relay.stop().await;
}

#[tokio::test]
async fn a_log_that_a_reader_holds_counts_against_max_size_and_the_reader_is_named() {
    let (wechat, crm) = (WeChat::secure(), Target::start().await);
    let setup = Setup::new(wechat.account() + &crm.config("crm", "")).queue("max_size = \"16MiB\"");
    let mut relay = setup.start().await;
    relay.accept(&wechat, &text("o1", "before")).await;
    let size = |name: &str| fs::metadata(relay.store().join(name)).expect("it is there").len();
    let shell = Connection::open(relay.store().join("wxrelay.db")).expect("the store can be opened");
    let reading = shell.unchecked_transaction().expect("a transaction begins");
    let count: i64 = reading.query_row("SELECT count(*) FROM event", [], |row| row.get(0)).expect("it is read");
    assert_eq!(count, 1);

    let (stored, _) = push_until_refused(&relay, &wechat, 300_000).await;
    assert_eq!(readiness(&relay).await, (503, "queue-full".to_owned()));
    let log = size("wxrelay.db-wal");
    assert!((8 << 20..28 << 20).contains(&log), "{log} bytes after {stored} pushes");
    let named = |line: &serde_json::Value| {
        line["level"] == "WARN" && line["message"].as_str().is_some_and(|text| text.contains("a reader keeps it"))
    };
    let line = relay.log("the warning that names the reader", named).await;
    let reader = format!("{} (", std::process::id());
    assert!(line["readers"].as_str().is_some_and(|readers| readers.contains(&reader)), "{line}");
    assert!(line["seconds"].as_u64().is_some_and(|seconds| seconds >= 10), "{line}");

    drop(reading);
    is_ready(&relay).await;
    eventually("the log is emptied", async || (size("wxrelay.db-wal") < log / 4).then_some(())).await;
    relay.accept(&wechat, &text("o1", "after")).await;
    relay.audited("delivered", stored + 2).await;
    relay.stop().await;
}

#[tokio::test]
async fn a_read_only_disk_is_named_at_the_start() {
    let Some(disk) = SmallDisk::mount() else { return };
    let (wechat, crm) = (WeChat::secure(), Target::start().await);
    let config = wechat.account() + &crm.config("crm", "");
    let mut relay = Setup::new(config).queue_at(&disk.queue()).start().await;
    relay.stop().await;
    disk.make_read_only();
    let refused = relay.run(&["serve"]).await;
    assert_eq!(refused.code, Some(78), "a restart does not remount it: {refused:?}");
    let folder = disk.queue().display().to_string();
    for part in ["queue.path", &folder, "read-only filesystem", "remount it"] {
        assert!(refused.stderr.contains(part), "{part} is not in {refused:?}");
    }
}

/// Pushes texts of that length until one is refused; returns how many were accepted, and the refused one.
async fn push_until_refused(relay: &Relay, wechat: &WeChat, length: usize) -> (u64, String) {
    for taken in 0..300 {
        let clear = text("o1", &"x".repeat(length));
        match wechat.push(&clear).send(&relay.push).await.status {
            200 => {}
            503 => return (taken, clear),
            status => panic!("answered {status}"),
        }
    }
    panic!("a full disk refuses in the end");
}

/// The answer of `/readyz`, which `wxrelay healthcheck` must repeat.
async fn readiness(relay: &Relay) -> (u16, String) {
    let answer = relay.get("/readyz").await;
    (answer.status, answer.text().to_owned())
}

async fn is_ready(relay: &Relay) {
    eventually("the relay is ready", async || (relay.get("/readyz").await.status == 200).then_some(())).await;
}

/// Makes all rows of a closed store a day older.
fn make_older(store: &Path) {
    let day = 86_400_000_i64 << 20;
    let database = Connection::open(store.join("wxrelay.db")).expect("the store can be opened");
    for column in ["event SET id = id", "delivery SET event = event", "attempt SET event = event"] {
        database.execute(&format!("UPDATE {column} - {day}"), []).expect("a row has room");
    }
}

/// A file system of 4 MiB, unmounted when dropped.
pub(crate) struct SmallDisk(TempDir);

impl SmallDisk {
    /// Mounts it; `None` if that is not permitted: then the test is skipped.
    pub(crate) fn mount() -> Option<Self> {
        let dir = tempfile::tempdir().expect("a temporary folder");
        if privileged(&["mount", "-t", "tmpfs", "-o", "size=4m,mode=0777", "tmpfs"], dir.path()) {
            return Some(Self(dir));
        }
        skip("no tmpfs can be mounted: neither root nor sudo without a password");
        None
    }

    pub(crate) fn queue(&self) -> PathBuf {
        self.0.path().join("queue")
    }

    fn fill(&self) {
        fill(&self.0.path().join("filler"));
    }

    fn free(&self) {
        fs::remove_file(self.0.path().join("filler")).expect("a file can be removed");
    }

    pub(crate) fn make_read_only(&self) {
        assert!(privileged(&["mount", "-o", "remount,ro"], self.0.path()), "the remount succeeds");
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily, as the relay of a failed test is killed a moment later.
        privileged(&["umount", "-l"], self.0.path());
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

/// Writes a file until the file system is full, to the last bytes.
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
