//! A wrong clock deletes nothing, expires nothing and delays nothing: WeChat's signed timestamps are a second clock.
//!
//! libfaketime shows the relay a clock that the test sets while the relay runs.

use std::fs;
use std::path::{Path, PathBuf};

use crate::support::eventually;
use crate::support::program::skip;
use crate::support::relay::{Relay, Setup};
use crate::support::target::{Reaction, Reply, Target};
use crate::support::wechat::{WeChat, event};

/// Where Debian has it.
const LIBRARIES: [&str; 2] =
    ["/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1", "/usr/lib/aarch64-linux-gnu/faketime/libfaketimeMT.so.1"];

#[tokio::test]
async fn a_clock_that_contradicts_wechat_neither_deletes_nor_expires() {
    let Some(clock) = FakeClock::set("+0") else { return };
    let (wechat, crm) = (WeChat::secure(), Target::start().await);
    let login = Target::always(Reaction::Answer(Reply::status(503))).await;
    let settings = "role = \"identity\"\nretry = [\"100ms\"]\nexpire_after = \"1h\"";
    let targets = crm.config("crm", "") + &login.config("login", settings);
    let mut relay = clock.relay(wechat.account() + &targets, "retention = \"1d\"").await;
    for key in ["a", "b", "c"] {
        relay.accept(&wechat, &event("o1", "CLICK", key)).await;
    }
    relay.accept(&wechat, &event("o1", "SCAN", "login_7")).await;
    relay.audited("delivered", 3).await;
    assert_eq!(relay.get("/api/status").await.json()["clock"], "agrees");

    clock.show("+8d");
    relay.log("the warning", |line| line["message"] == "clock suspect").await;
    let attempts = login.deliveries().len();
    login.wait_for(attempts + 3).await;
    assert_eq!(wechat.push(&event("o1", "CLICK", "d")).send(&relay.push).await.status, 403, "by a clock that is wrong");
    assert_eq!(relay.metric("wxrelay_clock_suspect", &[]).await, 1.0);

    // At its start the relay looks for what is old.
    relay.kill().await;
    relay.restart().await;
    let attempts = login.deliveries().len();
    login.wait_for(attempts + 3).await;
    assert_eq!(wechat.push(&event("o1", "CLICK", "e")).send(&relay.push).await.status, 403);
    relay.log("the warning again", |line| line["message"] == "clock suspect").await;
    let audit = relay.audit().await;
    assert_eq!((&audit["events"], &audit["expired"], &audit["pending"]), (&4.into(), &0.into(), &1.into()), "{audit}");

    clock.show("+0");
    relay.log("the end of it", |line| line["message"] == "clock no longer suspect").await;
    relay.accept(&wechat, &event("o1", "CLICK", "f")).await;
    assert_eq!(relay.metric("wxrelay_clock_suspect", &[]).await, 0.0);
    assert_eq!(relay.get("/api/status").await.json()["clock"], "agrees");
}

#[tokio::test]
async fn a_retry_waits_no_longer_than_its_schedule_when_the_clock_is_set_back() {
    let Some(clock) = FakeClock::set("+1h") else { return };
    let (wechat, crm) = (WeChat::secure(), Target::start().await);
    crm.script([Reaction::Answer(Reply::status(500)), Reaction::Answer(Reply::status(500))]);
    let account = wechat.account() + "max_skew = \"off\"\n";
    let mut relay = clock.relay(account + &crm.config("crm", "retry = [\"1s\", \"1s\", \"1s\"]"), "").await;
    relay.accept(&wechat, &event("o1", "CLICK", "a")).await;
    crm.wait_for(1).await;
    clock.show("+0");
    crm.wait_for(2).await;
    let age = async || Some(relay.metric("wxrelay_oldest_pending_seconds", &[]).await).filter(|age| *age > 0.0);
    eventually("what was received in the future ages", age).await;

    // Once more, over a restart.
    crm.script([Reaction::Answer(Reply::status(500))]);
    clock.show("+1h");
    crm.wait_for(3).await;
    relay.kill().await;
    clock.show("+0");
    relay.restart().await;
    crm.wait_for(4).await;
    relay.audited("delivered", 1).await;
}

#[tokio::test]
async fn a_due_time_from_the_future_is_pulled_in_at_the_start() {
    let (wechat, crm) = (WeChat::secure(), Target::start().await);
    crm.script([Reaction::Answer(Reply::status(500))]);
    let mut relay = Relay::start(wechat.account() + &crm.config("crm", "retry = [\"1s\"]")).await;
    relay.accept(&wechat, &event("o1", "CLICK", "a")).await;
    relay.audited("pending", 1).await;
    crm.wait_for(1).await;
    eventually("the attempt is recorded", async || (made(&relay) == 1).then_some(())).await;
    relay.stop().await;
    let store = rusqlite::Connection::open(relay.store().join("wxrelay.db")).expect("the store");
    let ahead = "UPDATE attempt SET at = at + 86400000; UPDATE delivery SET due = due + 86400000 WHERE state = 0;";
    store.execute_batch(ahead).expect("as a clock would have written that was a day ahead");
    drop(store);
    relay.restart().await;
    crm.wait_for(2).await;
    relay.log("the warning", |line| line["message"] == "clock was set back; due times pulled in").await;
}

fn made(relay: &Relay) -> u64 {
    let store = rusqlite::Connection::open(relay.store().join("wxrelay.db")).expect("the store");
    let count: i64 = store.query_row("SELECT count(*) FROM attempt", [], |row| row.get(0)).expect("a count");
    count.cast_unsigned()
}

/// A wall clock that the test sets; the monotonic clock stays true.
struct FakeClock {
    folder: tempfile::TempDir,
    library: &'static str,
}

impl FakeClock {
    fn set(offset: &str) -> Option<Self> {
        let Some(library) = LIBRARIES.into_iter().find(|library| Path::new(library).exists()) else {
            skip("libfaketime is not installed");
            return None;
        };
        let clock = Self { folder: tempfile::tempdir().expect("a temporary folder"), library };
        clock.show(offset);
        Some(clock)
    }

    /// Sets the clock to that offset from the true time. Renamed: the relay never reads half of it.
    fn show(&self, offset: &str) {
        let (new, file) = (self.folder.path().join("new"), self.file());
        fs::write(&new, offset).expect("the offset can be written");
        fs::rename(new, file).expect("the offset can be put in place");
    }

    fn file(&self) -> PathBuf {
        self.folder.path().join("offset")
    }

    async fn relay(&self, body: String, queue: &str) -> Relay {
        let setup = Setup::new(body).queue(queue).env("LD_PRELOAD", self.library.to_owned());
        let setup = setup.env("FAKETIME_TIMESTAMP_FILE", self.file().display().to_string());
        let setup = setup.env("FAKETIME_NO_CACHE", "1".to_owned()).env("FAKETIME_DONT_FAKE_MONOTONIC", "1".to_owned());
        setup.start().await
    }
}
