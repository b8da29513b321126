//! A store that may be damaged is never believed: what was answered is delivered, or the damage is reported and the
//! store is kept aside.

use std::fs::{self, File};
use std::path::PathBuf;

use crate::support::relay::Relay;
use crate::support::target::{Reaction, Reply, Target};
use crate::support::wechat::{WeChat, text};

/// What a relay of these tests has in its log.
const EVENTS: usize = 20;

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
