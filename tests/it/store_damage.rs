//! A store that may be damaged is never believed: what was answered is delivered, or the damage is reported and the
//! store is kept aside.

use std::fs::{self, File};
use std::path::PathBuf;

use rusqlite::Connection;

use crate::support::http::try_exchange;
use crate::support::relay::Relay;
use crate::support::target::{Reaction, Reply, Target};
use crate::support::wechat::{PATH, WeChat, text};

/// What a relay of these tests has in its log.
const EVENTS: usize = 20;
const PAGE: usize = 4096;

#[tokio::test]
async fn a_log_without_its_database_is_moved_aside_and_reported() {
    for (reason, damage) in [
        ("missing-database", (|database| fs::remove_file(database).unwrap()) as fn(PathBuf)),
        ("empty-database", |database| File::create(database).map(drop).unwrap()),
    ] {
        let mut stand = Stand::killed().await;
        let log = fs::read(stand.relay.store().join("wxrelay.db-wal")).unwrap();
        damage(stand.relay.store().join("wxrelay.db"));
        let refused = stand.relay.run(&["serve"]).await;
        assert_eq!(refused.code, Some(74), "{refused:?}");
        assert!(refused.stderr.contains("store salvage"), "the remedy is named: {refused:?}");
        let folder = stand.moved_aside(reason);
        assert_eq!(fs::read(folder.join("wxrelay.db-wal")).unwrap(), log, "nothing of the log is lost");
        stand.is_reported().await;
        stand.takes_new_pushes().await;
    }
}

#[tokio::test]
async fn a_flipped_bit_of_the_log_is_never_a_silent_loss() {
    // In the log's header, and in a frame's; in a page near the start, and in one near the end.
    for place in [Place::From(18), Place::From(32 + 4120 + 9), Place::Tenths(1), Place::Tenths(9)] {
        let mut stand = Stand::killed().await;
        let log = stand.relay.store().join("wxrelay.db-wal");
        let mut bytes = fs::read(&log).unwrap();
        let at = match place {
            Place::From(at) => at,
            Place::Tenths(tenths) => bytes.len() / 10 * tenths,
        };
        bytes[at] ^= 1;
        fs::write(&log, bytes).unwrap();
        let audit = stand.relay.run(&["audit"]).await;
        assert!(audit.code != Some(0) && audit.stderr.contains("damaged-log"), "before the start too: {audit:?}");
        stand.takes_new_pushes().await;
        stand.moved_aside("damaged-log");
    }
}

#[tokio::test]
async fn a_log_that_is_removed_or_cut_short_is_never_a_silent_loss() {
    for (reason, damage) in [
        ("missing-log", (|log| fs::remove_file(log).unwrap()) as fn(PathBuf)),
        ("missing-log", |log| File::create(log).map(drop).unwrap()),
        ("damaged-log", |log| {
            let file = File::options().write(true).open(log).unwrap();
            file.set_len(file.metadata().unwrap().len() / 2).unwrap();
        }),
    ] {
        let mut stand = Stand::killed().await;
        damage(stand.relay.store().join("wxrelay.db-wal"));
        stand.takes_new_pushes().await;
        stand.moved_aside(reason);
    }
}

#[tokio::test]
async fn a_damaged_page_costs_one_restart_at_most() {
    let mut stand = Stand::killed().await;
    stand.relay.restart().await;
    stand.relay.stop().await;
    let good = fs::read(stand.relay.store().join("wxrelay.db")).unwrap();
    let pages = good.len() / PAGE;
    assert!(pages > 10, "{pages}");
    for page in (0..pages).step_by(pages / 6) {
        for moved in stand.damaged() {
            fs::remove_dir_all(moved).unwrap();
        }
        let mut bytes = good.clone();
        bytes[page * PAGE..(page + 1) * PAGE].fill(0xa5);
        // Into the same file: a replaced one would be an operator's work.
        fs::write(stand.relay.store().join("wxrelay.db"), bytes).unwrap();
        stand.relay.restart().await;
        let request = stand.wechat.push(&text("o1", &format!("after the damage of page {page}"))).request(PATH);
        if try_exchange(&stand.relay.push, &request).await.is_ok_and(|answer| answer.status == 200) {
            stand.relay.stop().await;
            continue;
        }
        assert_eq!(stand.relay.end().await, Some(74), "page {page}");
        stand.takes_new_pushes().await;
        stand.moved_aside("damaged-database");
        stand.relay.stop().await;
    }
}

#[tokio::test]
async fn kills_stops_and_other_programs_raise_no_alarm() {
    let mut stand = Stand::killed().await;
    for round in 0..4 {
        stand.relay.restart().await;
        stand.relay.accept(&stand.wechat, &text("o1", &format!("round {round}"))).await;
        if round % 2 == 0 {
            stand.relay.kill().await
        } else {
            stand.relay.stop().await
        }
        if round == 2 {
            // A shell that is the last to close the database writes the log back and removes it.
            let shell = Connection::open(stand.relay.store().join("wxrelay.db")).unwrap();
            shell.query_row("SELECT count(*) FROM event", [], |row| row.get::<_, i64>(0)).unwrap();
            drop(shell);
            assert!(!stand.relay.store().join("wxrelay.db-wal").exists());
        }
    }
    stand.relay.restart().await;
    assert_eq!(stand.relay.audit().await["events"], EVENTS + 4);
    assert!(stand.damaged().is_empty());
}

/// Where a bit flips.
enum Place {
    From(usize),
    Tenths(usize),
}

/// A relay whose pushes were answered and never delivered.
struct Stand {
    wechat: WeChat,
    relay: Relay,
    _crm: Target,
}

impl Stand {
    /// With [`EVENTS`] answered events in its log, ended by SIGKILL.
    async fn killed() -> Self {
        let (wechat, crm) = (WeChat::secure(), Target::always(Reaction::Answer(Reply::status(503))).await);
        let mut relay = Relay::start(wechat.account() + &crm.config("crm", "retry = [\"1h\"]")).await;
        for number in 0..EVENTS {
            relay.accept(&wechat, &text("o1", &format!("event {number}"))).await;
        }
        relay.kill().await;
        Self { wechat, relay, _crm: crm }
    }

    /// The one folder that the store was moved into, whose reason is this one.
    fn moved_aside(&self, reason: &str) -> PathBuf {
        let folders = self.damaged();
        assert_eq!(folders.len(), 1, "{folders:?}");
        let text = fs::read_to_string(folders[0].join("reason.json")).expect("it says why");
        let found: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        assert_eq!(found["reason"], reason, "{text}");
        folders[0].clone()
    }

    fn damaged(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.relay.store()).expect("the store is there").flatten().map(|entry| entry.path());
        let is_damaged =
            |path: &PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("damaged-"));
        entries.filter(is_damaged).collect()
    }

    /// Both audits end non-zero and name the folder.
    async fn is_reported(&self) {
        let folder = self.damaged()[0].display().to_string();
        for args in [&["audit"][..], &["audit", "--deep"]] {
            let audit = self.relay.run(args).await;
            assert!(audit.code.is_some_and(|code| code != 0), "{audit:?}");
            assert!(audit.stderr.contains(&folder) && audit.stderr.contains("store salvage"), "{audit:?}");
        }
    }

    /// Starts on what is there, and stores a push; status and metric show the damaged store.
    async fn takes_new_pushes(&mut self) {
        self.relay.restart().await;
        self.relay.accept(&self.wechat, &text("o1", "after the damage")).await;
        let status = self.relay.get("/api/status").await.json();
        let name = status["queue"]["damaged"][0].as_str().unwrap_or_else(|| panic!("{status}"));
        assert_eq!(self.damaged(), [self.relay.store().join(name)], "{status}");
        assert!(self.relay.metric("wxrelay_store_damaged", &[]).await >= 1.0);
        self.is_reported().await;
    }
}
