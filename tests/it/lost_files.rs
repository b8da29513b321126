//! The store's files are removed, renamed, replaced or truncated under the running relay: what was answered 200 is
//! there after a kill and a restart.

use std::fs::{self, File};
use std::path::Path;

use rusqlite::Connection;
use serde_json::Value;

use crate::support::eventually;
use crate::support::relay::{Relay, Setup};
use crate::support::target::{Reaction, Reply, Target};
use crate::support::wechat::{WeChat, text};

/// A schedule that is longer than the test.
const SCHEDULE: &str = "retry = [\"200ms\", \"1s\", \"1s\", \"1s\", \"1s\", \"1s\", \"1s\", \"1s\", \"1s\", \"1s\"]";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_that_are_removed_are_written_back_and_nothing_is_lost() {
    for names in [&["", "-wal", "-shm"][..], &[""], &["-wal"]] {
        survives(&format!("{names:?} removed"), |store| {
            names.iter().for_each(|name| remove(&store.join(format!("wxrelay.db{name}"))));
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_that_are_renamed_are_written_back_and_nothing_is_lost() {
    for name in ["wxrelay.db", "wxrelay.db-wal", "wxrelay.db-shm"] {
        survives(&format!("{name} renamed"), |store| {
            fs::rename(store.join(name), store.join(format!("{name}.old"))).expect("it is there");
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_that_are_replaced_are_kept_aside_and_nothing_is_lost() {
    for name in ["wxrelay.db", "wxrelay.db-wal"] {
        let relay = survives(&format!("{name} replaced"), |store| {
            fs::copy(store.join(name), store.join("other")).expect("it can be copied");
            fs::rename(store.join("other"), store.join(name)).expect("it can be renamed");
        })
        .await;
        let entries = fs::read_dir(relay.store()).expect("the store can be read");
        let aside = entries
            .map(|entry| entry.expect("an entry").path())
            .find(|path| path.file_name().is_some_and(|folder| folder.as_encoded_bytes().starts_with(b"replaced-")));
        assert!(aside.is_some_and(|aside| aside.join(name).is_file()), "the other {name} is kept");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_folder_that_is_removed_or_renamed_is_made_again_and_nothing_is_lost() {
    survives("folder removed", |store| fs::remove_dir_all(store).expect("it is there")).await;
    let moved = tempfile::tempdir().expect("a temporary folder");
    let place = moved.path().join("moved");
    let relay = survives("folder renamed", |store| fs::rename(store, &place).expect("it can be renamed")).await;
    assert!(Connection::open(place.join("wxrelay.db")).is_ok() && relay.store().is_dir());
}

#[tokio::test]
async fn files_that_are_removed_just_before_a_stop_are_written_back() {
    let (wechat, crm) = (WeChat::secure(), Target::always(Reaction::Answer(Reply::status(503))).await);
    let mut relay = Relay::start(wechat.account() + &crm.config("crm", SCHEDULE)).await;
    relay.accept(&wechat, &text("o1", "hello")).await;
    ["", "-wal", "-shm"].iter().for_each(|end| remove(&relay.store().join(format!("wxrelay.db{end}"))));
    relay.stop().await;
    crm.then(Reaction::Answer(Reply::status(200)));
    relay.restart().await;
    relay.audited("delivered", 1).await;
    relay.stop().await;
}

#[tokio::test]
async fn truncated_files_are_never_answered_success() {
    for name in ["wxrelay.db-wal", "wxrelay.db"] {
        let (wechat, crm) = (WeChat::secure(), Target::always(Reaction::Answer(Reply::status(503))).await);
        let mut relay = Relay::start(wechat.account() + &crm.config("crm", SCHEDULE)).await;
        for index in 0..20 {
            relay.accept(&wechat, &text("o1", &format!("{index} {}", "x".repeat(100_000)))).await;
        }
        File::options()
            .write(true)
            .open(relay.store().join(name))
            .and_then(|file| file.set_len(0))
            .expect("it is there");
        let lost = |line: &Value| {
            let message = line["message"].as_str().unwrap_or_default();
            // Whatever finds it first: a look at the files, or a read.
            line["level"] == "ERROR" && message.starts_with("store file lost while open")
        };
        let line = relay.log("the file is named", lost).await;
        assert!(line["path"].as_str().is_some_and(|path| path.ends_with(name)), "{line}");
        assert_eq!(relay.end().await, Some(74), "{name}: nothing is left to write back");
    }
}

#[tokio::test]
async fn another_program_that_empties_the_log_is_no_fault() {
    let (wechat, crm) = (WeChat::secure(), Target::start().await);
    let mut relay = Relay::start(wechat.account() + &crm.config("crm", "")).await;
    for index in 0..5 {
        relay.accept(&wechat, &text("o1", &format!("before {index}"))).await;
        let shell = Connection::open(relay.store().join("wxrelay.db")).expect("it can be opened");
        eventually("the log is emptied", async || {
            let busy = shell.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get::<_, i64>(0));
            busy.is_ok_and(|busy| busy == 0).then_some(())
        })
        .await;
    }
    relay.accept(&wechat, &text("o1", "after")).await;
    relay.audited("delivered", 6).await;
    assert!(!relay.lines().iter().any(|line| line.contains("store file lost")), "{:#?}", relay.lines());
    relay.stop().await;
}

/// Pushes before, during and after the deed; then the relay is killed and started again.
async fn survives(what: &str, deed: impl FnOnce(&Path)) -> Relay {
    let (wechat, crm) = (WeChat::secure(), Target::always(Reaction::Answer(Reply::status(503))).await);
    let place = tempfile::tempdir().expect("a temporary folder").keep();
    let setup = Setup::new(wechat.account() + &crm.config("crm", SCHEDULE)).queue_at(&place.join("queue"));
    let mut relay = setup.start().await;
    let mut answered = 0;
    for index in 0..5 {
        relay.accept(&wechat, &text("o1", &format!("before {index}"))).await;
        answered += 1;
    }
    deed(&relay.store());
    for index in 0..5 {
        let push = wechat.push(&text("o1", &format!("after {index}"))).send(&relay.push).await;
        answered += u64::from(push.status == 200);
    }
    let written = |line: &Value| line["message"].as_str().is_some_and(|text| text.starts_with("store written back"));
    relay.log(&format!("the store is written back: {what}"), written).await;
    relay.accept(&wechat, &text("o1", "at the end")).await;
    relay.kill().await;
    crm.then(Reaction::Answer(Reply::status(200)));
    relay.restart().await;
    let audit = relay.audited("delivered", answered + 1).await;
    assert_eq!(audit["events"], answered + 1, "{what}");
    relay
}

fn remove(path: &Path) {
    fs::remove_file(path).expect("it is there");
}
