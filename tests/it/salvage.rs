//! `wxrelay store salvage`: what a damaged store held goes on in the new one, beside the running relay or without it.

use std::fs;
use std::path::PathBuf;

use serde_json::Value;
use tempfile::TempDir;

use crate::support::command::free_address;
use crate::support::relay::{Relay, Setup};
use crate::support::target::{Reaction, Reply, Target};
use crate::support::wechat::{WeChat, event};

const EVENTS: usize = 40;

#[tokio::test]
async fn beside_the_relay_all_that_was_pending_is_delivered_with_its_id() {
    let mut store = DamagedStore::make().await;
    store.relay.restart().await;
    store.target.then(Reaction::Answer(Reply::status(200)));
    store.relay.accept(&store.wechat, &event("o1", "CLICK", "new")).await;
    let dry = store.salvage(&["--dry-run"], 0).await;
    assert_eq!((&dry["stores"][0]["events"], &dry["stores"][0]["stored"]), (&EVENTS.into(), &0.into()));
    let report = store.salvage(&[], 0).await;
    assert_eq!(report["stores"][0]["stored"], EVENTS, "{report}");
    store.relay.audited("delivered", EVENTS as u64 + 1).await;
    store.all_delivered_with_their_ids();
    assert_eq!(store.salvage(&[], 0).await["stores"], Value::Array(Vec::new()));
    assert!(store.folder.path().join("salvaged-20261120T080000Z/wxrelay.db").exists(), "nothing is deleted");
}

#[tokio::test]
async fn without_a_relay_the_command_does_it_itself() {
    let mut store = DamagedStore::make().await;
    let report = store.salvage(&[], 0).await;
    assert_eq!(report["stores"][0]["stored"], EVENTS, "{report}");
    store.target.then(Reaction::Answer(Reply::status(200)));
    store.relay.restart().await;
    store.relay.audited("delivered", EVENTS as u64).await;
    store.all_delivered_with_their_ids();
    // A repeated push is still a duplicate.
    store.relay.accept(&store.wechat, &store.first).await;
    assert_eq!(store.relay.audit().await["events"], EVENTS);
}

#[tokio::test]
async fn a_damaged_page_costs_what_was_on_it_and_that_is_named() {
    let mut store = DamagedStore::make().await;
    let path = store.damaged().join("wxrelay.db");
    let mut bytes = fs::read(&path).expect("the store can be read");
    let at = bytes.windows(6).position(|part| part == b"key-07").expect("it is in the file") / 4096 * 4096;
    bytes[at..at + 4096].fill(0xa5);
    fs::write(&path, bytes).expect("the store can be written");
    store.relay.restart().await;
    store.target.then(Reaction::Answer(Reply::status(200)));
    let report = store.salvage(&[], 3).await;
    let (stored, unreadable) = (&report["stores"][0]["stored"], &report["stores"][0]["unreadable"]);
    let (stored, unreadable) = (stored.as_u64().expect("a count"), unreadable.as_u64().expect("a count"));
    assert!(unreadable > 0 && stored + unreadable == EVENTS as u64, "{report}");
    let flaw = &report["stores"][0]["flaws"][0];
    assert!(flaw["event"].as_str().is_some_and(|id| id.starts_with("evt_")) && flaw["open"][0] == "crm", "{flaw}");
    store.relay.audited("delivered", stored).await;
}

/// A store with pending events that was moved aside; the relay is stopped.
struct DamagedStore {
    wechat: WeChat,
    relay: Relay,
    target: Target,
    folder: TempDir,
    ids: Vec<String>,
    first: String,
    /// How many attempts had failed before.
    tried: usize,
}

impl DamagedStore {
    async fn make() -> Self {
        let (wechat, folder) = (WeChat::secure(), tempfile::tempdir().expect("a temporary folder"));
        let target = Target::always(Reaction::Answer(Reply::status(500))).await;
        let body = wechat.account() + &target.config("crm", "retry = [\"1h\"]");
        let mut relay = Setup::new(body).queue_at(folder.path()).admin_at(free_address()).start().await;
        let first = event("o1", "CLICK", "first");
        for number in 0..EVENTS {
            let clear = if number == 0 { first.clone() } else { event("o1", "CLICK", &format!("key-{number:02}")) };
            relay.accept(&wechat, &clear).await;
        }
        let listed = relay.get("/api/events?limit=100").await.json();
        let id = |event: &Value| event["id"].as_str().expect("an id").to_owned();
        let ids: Vec<_> = listed["events"].as_array().expect("a list").iter().map(id).collect();
        assert_eq!(ids.len(), EVENTS);
        relay.stop().await;
        let tried = target.deliveries().len();
        let store = Self { wechat, relay, target, folder, ids, first, tried };
        let damaged = store.damaged();
        fs::create_dir(&damaged).expect("a folder");
        for name in ["wxrelay.db", "wxrelay.db-wal", "wxrelay.commit"] {
            let from = store.folder.path().join(name);
            if from.exists() {
                fs::rename(from, damaged.join(name)).expect("it can be moved");
            }
        }
        store
    }

    fn damaged(&self) -> PathBuf {
        self.folder.path().join("damaged-20261120T080000Z")
    }

    async fn salvage(&self, flags: &[&str], code: i32) -> Value {
        let finished = self.relay.run(&[&["store", "salvage", "--json"], flags].concat()).await;
        assert_eq!(finished.code, Some(code), "{finished:?}");
        serde_json::from_str(&finished.stdout).unwrap_or_else(|error| panic!("{error}: {finished:?}"))
    }

    fn all_delivered_with_their_ids(&self) {
        let after: Vec<_> = self.target.deliveries().split_off(self.tried);
        for id in &self.ids {
            assert!(after.iter().any(|one| one.header("wxrelay-event-id") == id), "{id} came again");
        }
    }
}
