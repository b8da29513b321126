//! The deep audit: an undamaged store passes, and each kind of damage is reported, by event, with the fix.

use std::fs;
use std::path::PathBuf;

use rusqlite::Connection;
use serde_json::Value;
use tempfile::TempDir;

use crate::support::relay::{Relay, Setup};
use crate::support::target::{Reaction, Reply, Target};
use crate::support::wechat::{Mode, WeChat, event, text};

#[tokio::test]
async fn a_good_store_passes_while_the_relay_runs_and_after() {
    for mode in [Mode::Plaintext, Mode::Compatible, Mode::Secure] {
        let mut store = Store::with(WeChat::new(mode)).await;
        store.relay.restart().await;
        store.passes().await;
        store.relay.stop().await;
        let report = store.passes().await;
        assert_eq!(report["deep"]["events"], 3);
        assert_eq!(report["deep"]["deliverable"], 6, "what is pending can be written for its targets: {report}");
        let output = store.relay.run(&["audit", "--deep"]).await;
        assert!(output.stdout.contains("every event can be decrypted, parsed and delivered"), "{output:?}");
        assert_eq!(output.stderr, "", "no progress bar without a terminal");
        assert!(store.relay.audit().await.get("deep").is_none(), "the cheap audit reads nothing back");
    }
}

#[tokio::test]
async fn damage_to_a_row_is_found_and_the_event_is_named() {
    let store = Store::with(WeChat::secure()).await;
    let damages = [
        ("UPDATE event SET clear = CAST(replace(clear, 'second', 'forged') AS BLOB)", "row", "content key"),
        ("UPDATE event SET clear = CAST(replace(clear, 'second', 'forged') AS BLOB)", "push", "another text"),
        ("UPDATE event SET clear = substr(clear, 1, length(clear) - 3)", "text", "does not parse"),
        ("UPDATE event SET clear = x'ff'", "text", "does not parse"),
        ("UPDATE event SET content_key = zeroblob(24)", "row", "content key"),
        ("UPDATE event SET content_key = x'00'", "row", "content key"),
        ("UPDATE event SET body = substr(body, 1, length(body) - 9)", "push", "cannot be decrypted"),
        // As long as the original, so that only the signature reveals it.
        (
            "UPDATE event SET body = CAST(substr(body, 1, 200) || 'AAAA' || substr(body, 205) AS BLOB)",
            "push",
            "signature",
        ),
        ("UPDATE event SET body = x''", "push", "cannot be decrypted"),
        ("UPDATE event SET query = 'timestamp=1'", "push", "cannot be decrypted"),
        ("UPDATE event SET msg_type = 'image'", "row", "msg_type"),
        ("UPDATE event SET event = 'scan'", "row", "event"),
        ("UPDATE event SET event_key = 'k'", "row", "event_key"),
        ("UPDATE event SET from_user = 'somebody'", "row", "from_user"),
        ("UPDATE event SET app_id = 'wx0000000000000000'", "row", "content key"),
        ("UPDATE event SET mode = 7", "unreadable", "cannot be read"),
        ("UPDATE event SET account = x'ff00'", "unreadable", "cannot be read"),
        ("UPDATE event SET targets = 5", "row", "5 deliveries were stored with it, 3 are there"),
    ];
    for (sql, kind, reason) in damages {
        let report = store.damaged(&format!("{sql} WHERE id = {SECOND}")).await;
        let finding = finding(&report, kind, reason);
        assert_eq!(finding["event"], store.second, "{sql}: {finding}");
        assert!(finding["remedy"].as_str().is_some_and(|remedy| remedy.len() > 20), "{finding}");
        assert_eq!(report["deep"]["events"], 3, "the walk continues after it: {report}");
    }
}

#[tokio::test]
async fn an_index_of_content_keys_that_does_not_lead_to_its_events_is_found() {
    let store = Store::with(WeChat::secure()).await;
    let without = format!(
        "INSERT INTO known SELECT content_key, id FROM event WHERE id <> {SECOND}; \
         UPDATE known_until SET event = (SELECT max(id) FROM event)"
    );
    let report = store.damaged(&without).await;
    assert_eq!(finding(&report, "row", "not in the dedup index")["event"], store.second);
    assert_eq!(
        (&report["drift"], report["deep"]["findings"].as_array().map(Vec::len)),
        (&1.into(), Some(1)),
        "{report}"
    );

    // An entry without an event.
    let report = store.damaged("INSERT INTO known VALUES (x'77', 7)").await;
    assert_eq!(report["drift"], 1, "{report}");
}

#[tokio::test]
async fn damage_to_a_delivery_is_found() {
    let store = Store::with(WeChat::secure()).await;
    let one = format!("WHERE event = {SECOND} AND target = (SELECT no FROM target WHERE name = 'down')");
    let report = store.damaged(&format!("DELETE FROM delivery {one}")).await;
    assert_eq!(finding(&report, "row", "3 deliveries were stored with it, 2 are there")["event"], store.second);
    assert_eq!(report["unaccounted"], 1);

    let report = store.damaged(&format!("UPDATE delivery SET target = 77 {one}")).await;
    assert_eq!(finding(&report, "target", "no name")["event"], store.second);

    let report = store.damaged("UPDATE target SET name = 'nobody' WHERE name = 'down'").await;
    let missing = finding(&report, "target", "pending, and the target is not configured");
    assert_eq!((&missing["target"], &report["deep"]["found"]["target"]), (&Value::from("nobody"), &Value::from(3)));

    // The ledger reports damage that belongs to no event.
    let report = store.damaged("UPDATE tally SET count = count + 1 WHERE target > 0 AND state = 1").await;
    assert_eq!((&report["drift"], &report["deep"]["found"]), (&Value::from(1), &serde_json::json!({})));
    let report = store.damaged(&format!("UPDATE delivery SET state = 9 {one}")).await;
    assert_eq!(report["unaccounted"], 1);
}

#[tokio::test]
async fn a_delivery_that_its_index_has_lost_is_found() {
    let store = Store::with(WeChat::secure()).await;
    // This delivery is in the table, but no lease would ever find it.
    let report = store
        .damaged(
            "PRAGMA writable_schema = ON; \
             UPDATE sqlite_schema SET sql = replace(sql, 'WHERE state = 0', 'WHERE state = 9') WHERE name = 'delivery_pending'; \
             PRAGMA writable_schema = RESET; REINDEX delivery_pending; PRAGMA writable_schema = ON; \
             UPDATE sqlite_schema SET sql = replace(sql, 'WHERE state = 9', 'WHERE state = 0') WHERE name = 'delivery_pending'",
        )
        .await;
    finding(&report, "file", "delivery_pending");
}

#[tokio::test]
async fn a_damaged_page_is_found_and_the_rest_is_still_read() {
    let store = Store::with(WeChat::secure()).await;
    let mut bytes = fs::read(store.path()).expect("the store can be read");
    // Within the pages that contain only the long text.
    let at = bytes.windows(64).position(|part| part == [b'L'; 64]).expect("the long text is in the file");
    let page = at / 4096 * 4096;
    bytes[page..page + 4096].fill(0xff);
    fs::write(store.path(), bytes).expect("the store can be written");
    let finished = store.relay.run(&["audit", "--deep", "--json"]).await;
    assert_eq!(finished.code, Some(1), "{finished:?}");
    let report: Value = serde_json::from_str(&finished.stdout).expect("a report");
    let found = &report["deep"]["found"];
    assert!(found.get("unreadable").is_some() || found.get("file").is_some(), "{report}");
    assert_eq!(report["deep"]["events"], 3, "{report}");
}

#[tokio::test]
async fn changed_keys_matter_to_raw_deliveries_that_are_open() {
    let mut store = Store::with(WeChat::secure()).await;
    let rotated = WeChat { token: "changed".to_owned(), ..store.wechat.clone() };
    // `previous_token` still verifies earlier pushes.
    store.relay.configure(rotated.account() + "previous_token = \"pamtest\"\n" + &store.targets());
    store.passes().await;
    store.relay.configure(rotated.account() + &store.targets());
    let report = store.fails().await;
    assert_eq!(report["deep"]["keys_changed"], 3);
    assert_eq!(report["deep"]["found"], serde_json::json!({ "raw_keys": 3 }), "the other format is encrypted again");
    let other_key =
        WeChat { aes_key: "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789abcdefg".to_owned(), ..store.wechat.clone() };
    store.relay.configure(other_key.account() + &store.targets());
    assert_eq!(store.fails().await["deep"]["found"], serde_json::json!({ "raw_keys": 3 }));

    // An encrypted push is decrypted, whatever the account's mode is now.
    let plaintext = WeChat { mode: Mode::Plaintext, ..store.wechat.clone() };
    store.relay.configure(plaintext.account() + &store.targets());
    assert_eq!(store.passes().await["deep"]["keys_changed"], 0);

    // After the raw deliveries have ended, only this check reveals it.
    store.relay.configure(rotated.account() + &store.targets());
    let end = "UPDATE delivery SET state = 1 WHERE target = (SELECT no FROM target WHERE name = 'raw'); \
               UPDATE tally SET count = CASE state WHEN 1 THEN 3 ELSE 0 END \
                WHERE target = (SELECT no FROM target WHERE name = 'raw'); \
               INSERT OR REPLACE INTO tally SELECT no, 1, 3 FROM target WHERE name = 'raw'";
    store.change(end);
    let report = store.passes().await;
    assert_eq!((&report["deep"]["keys_changed"], &report["deep"]["deliverable"]), (&Value::from(3), &Value::from(3)));
}

#[tokio::test]
async fn a_target_or_account_that_is_gone_is_told() {
    let mut store = Store::with(WeChat::secure()).await;
    store.relay.configure(store.wechat.account() + &store.crm.config("crm", "") + &store.down.config("down", WECHAT));
    let report = store.fails().await;
    assert_eq!(report["deep"]["found"], serde_json::json!({ "target": 3 }));
    assert_eq!(finding(&report, "target", "not configured")["target"], "raw");

    store.relay.configure(store.wechat.account_named("another", "/another") + &store.targets());
    let report = store.fails().await;
    assert_eq!(report["deep"]["account_gone"], 3);
    let finding = finding(&report, "format", "no longer configured");
    assert_eq!(finding["target"], "down", "only `wechat` needs the account: {report}");
}

#[tokio::test]
async fn twenty_findings_are_listed_and_all_are_counted() {
    let (wechat, crm, folder) = (WeChat::secure(), Target::start().await, tempfile::tempdir().expect("a folder"));
    let mut relay = Setup::new(wechat.account() + &crm.config("crm", "")).queue_at(folder.path()).start().await;
    for number in 0..25 {
        relay.accept(&wechat, &text("o1", &format!("number {number}"))).await;
    }
    relay.audited("delivered", 25).await;
    relay.stop().await;
    Connection::open(folder.path().join("wxrelay.db"))
        .and_then(|store| store.execute_batch("UPDATE event SET msg_type = 'image'"))
        .expect("the store can be changed");
    let finished = relay.run(&["audit", "--deep"]).await;
    assert_eq!(finished.code, Some(1));
    assert_eq!(finished.stdout.lines().filter(|line| line.starts_with("row: evt_")).count(), 20, "{finished:?}");
    assert!(finished.stdout.contains("and 5 more") && finished.stdout.contains("FOUND 25 row"), "{finished:?}");
}

/// The second of the three events.
const SECOND: &str = "(SELECT id FROM event ORDER BY id LIMIT 1 OFFSET 1)";
const WECHAT: &str = "format = \"wechat\"\nretry = [\"1h\"]";
const RAW: &str = "format = \"raw\"\nretry = [\"1h\"]";

/// Three events, each delivered to `crm`, and pending at `down` (format `wechat`) and `raw`; the relay is stopped.
struct Store {
    wechat: WeChat,
    crm: Target,
    down: Target,
    relay: Relay,
    folder: TempDir,
    good: Vec<u8>,
    second: String,
}

impl Store {
    async fn with(wechat: WeChat) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let (crm, down) = (Target::start().await, Target::always(Reaction::Answer(Reply::status(500))).await);
        let config =
            wechat.account() + &crm.config("crm", "") + &down.config("down", WECHAT) + &down.config("raw", RAW);
        let mut relay = Setup::new(config).queue_at(folder.path()).start().await;
        let long = "L".repeat(40_000);
        for clear in [event("o1", "CLICK", "menu"), text("o2", "the second"), text("o3", &long)] {
            relay.accept(&wechat, &clear).await;
        }
        relay.audited("delivered", 3).await;
        down.wait_for(6).await;
        relay.stop().await;
        let second = crm.deliveries().iter().find(|one| one.text().contains("the second")).expect("it came").json();
        let second = second["id"].as_str().expect("an id").to_owned();
        let good = fs::read(folder.path().join("wxrelay.db")).expect("the store can be read");
        Self { wechat, crm, down, relay, folder, good, second }
    }

    fn targets(&self) -> String {
        self.crm.config("crm", "") + &self.down.config("down", WECHAT) + &self.down.config("raw", RAW)
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("wxrelay.db")
    }

    /// Changes the store without the relay.
    fn change(&self, sql: &str) {
        let store = Connection::open(self.path()).expect("the store can be opened");
        store.execute_batch(sql).unwrap_or_else(|error| panic!("{sql}: {error}"));
    }

    /// The report of the deep audit on an undamaged store with that change.
    async fn damaged(&self, sql: &str) -> Value {
        fs::write(self.path(), &self.good).expect("the store can be put back");
        self.change(sql);
        self.fails().await
    }

    async fn passes(&self) -> Value {
        self.audit(0).await
    }

    async fn fails(&self) -> Value {
        self.audit(1).await
    }

    async fn audit(&self, code: i32) -> Value {
        let finished = self.relay.run(&["audit", "--deep", "--json"]).await;
        assert_eq!(finished.code, Some(code), "{finished:?}");
        serde_json::from_str(&finished.stdout).unwrap_or_else(|error| panic!("{error}: {finished:?}"))
    }
}

/// The finding of that kind whose reason contains these words.
fn finding<'r>(report: &'r Value, kind: &str, words: &str) -> &'r Value {
    let findings = report["deep"]["findings"].as_array().expect("a list of findings");
    let is_it = |finding: &&Value| {
        finding["kind"] == kind && finding["reason"].as_str().is_some_and(|reason| reason.contains(words))
    };
    findings.iter().find(is_it).unwrap_or_else(|| panic!("no {kind} that says `{words}`: {report:#}"))
}
