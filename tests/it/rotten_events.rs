//! What has changed on the disk since it was received is not delivered, not signed, and not sent as a reply.

use std::fs;
use std::path::PathBuf;

use rusqlite::Connection;
use tempfile::TempDir;

use crate::support::command::free_address;
use crate::support::relay::{Relay, Setup};
use crate::support::target::{Reaction, Reply, Target};
use crate::support::wechat::{Mode, WeChat, event, text, text_reply};

/// Every format, from a target that is down until [`Store::deliver`].
const FORMATS: [&str; 4] = ["json", "raw", "wechat", "cloudevents"];

#[tokio::test]
async fn a_rotten_text_is_never_delivered() {
    for mode in [Mode::Plaintext, Mode::Secure] {
        let mut store = Store::with(WeChat::new(mode)).await;
        store.flip(b"<EventKey><![CDATA[key-2");
        store.deliver().await;
    }
}

#[tokio::test]
async fn whatever_is_delivered_of_a_rotten_row_is_not() {
    let mut store = Store::with(WeChat::secure()).await;
    let changes = [
        "query = replace(query, 'openid=o', 'openid=p')",
        "body = CAST(replace(body, '</ToUserName>', '</ToUserNam3>') AS BLOB)",
        "account = 'shoq'",
        "app_id = 'wx0000000000000000'",
        "received_at = received_at + 1",
        "mode = 1",
        "mode = 77",
        "traceparent = '00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01'",
        "content_key = zeroblob(24)",
    ];
    for change in changes {
        store.change(&format!("UPDATE event SET {change} WHERE event_key = 'key-2'"));
        store.deliver().await;
    }
}

#[tokio::test]
async fn a_delivery_without_its_event_does_not_stop_its_target() {
    let mut store = Store::with(WeChat::secure()).await;
    store.change("DELETE FROM event WHERE event_key = 'key-2'");
    store.relay.restart().await;
    store.up();
    store.target.wait_for(2 * FORMATS.len()).await;
    store.relay.log("line about it", |line| line["flaw"] == "its row is gone").await;
    let audited = store.relay.run(&["audit", "--deep"]).await;
    assert!(audited.code == Some(1) && audited.stdout.contains("its row is gone"), "{audited:?}");
}

#[tokio::test]
async fn a_rotten_schema_does_not_stop_the_relay() {
    let mut store = Store::with(WeChat::secure()).await;
    store.flip(b"  traceparent");
    store.relay.restart().await;
    store.relay.accept(&WeChat::secure(), &event("o1", "CLICK", "new")).await;
    let damaged = fs::read_dir(store.path.parent().expect("a folder")).expect("it can be read");
    let names: Vec<_> = damaged.map(|entry| entry.expect("an entry").file_name()).collect();
    assert!(names.iter().any(|name| name.to_string_lossy().starts_with("damaged-")), "{names:?}");
}

#[tokio::test]
async fn a_rotten_text_of_an_earlier_schema_is_not_delivered() {
    let mut store = Store::with(WeChat::secure()).await;
    store.change(
        "UPDATE event SET checksum = NULL; \
         UPDATE event SET clear = CAST(replace(clear, 'key-2', 'kex-2') AS BLOB) WHERE event_key = 'key-2'",
    );
    store.deliver().await;
}

#[tokio::test]
async fn a_rotten_reply_is_not_sent_again() {
    let (wechat, crm) = (WeChat::secure(), Target::start().await);
    crm.then(Reaction::Answer(Reply::xml(text_reply("o1", "the first answer"))));
    let routes = "[[accounts.shop.routes]]\nmatch = { msg_type = \"text\" }\nto = [\"crm\"]\nreply = \"crm\"\n";
    let mut relay = Relay::start(wechat.account() + routes + &crm.config("crm", "")).await;
    let clear = text("o1", "hello");
    let first = relay.accept(&wechat, &clear).await;
    assert!(wechat.open_reply(first.text()).contains("the first answer"));
    relay.stop().await;
    let store = Connection::open(relay.store().join("wxrelay.db")).expect("the store");
    store.execute("UPDATE event SET reply = replace(reply, 'first', 'worst')", []).expect("it can be changed");
    drop(store);
    relay.restart().await;
    let again = relay.accept(&wechat, &clear).await;
    assert_eq!(again.text(), "success");
    relay.log("line about it", |line| line["message"] == "stored reply damaged; not sent").await;
}

/// Three events that are pending for a target of each format; the relay is stopped.
struct Store {
    relay: Relay,
    target: Target,
    good: Vec<u8>,
    _folder: TempDir,
    path: PathBuf,
}

impl Store {
    async fn with(wechat: WeChat) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let target = Target::always(Reaction::Answer(Reply::status(500))).await;
        let target_of = |format: &&str| target.config(format, &format!("format = \"{format}\"\nretry = [\"1s\"]"));
        let targets: String = FORMATS.iter().map(target_of).collect();
        let mut relay =
            Setup::new(wechat.account() + &targets).queue_at(folder.path()).admin_at(free_address()).start().await;
        for key in ["key-1", "key-2", "key-3"] {
            relay.accept(&wechat, &event("o1", "CLICK", key)).await;
        }
        relay.stop().await;
        let path = folder.path().join("wxrelay.db");
        // No attempt is on record, so that every restart finds them as they were received.
        let store = Connection::open(&path).expect("the store can be opened");
        store
            .execute_batch(
                "DELETE FROM attempt; UPDATE delivery SET state = 0, attempts = 0, failures = 0, due = 0, ended_at = NULL; \
                 DELETE FROM tally WHERE target > 0; INSERT INTO tally SELECT target, state, count(*) FROM delivery GROUP BY 1, 2",
            )
            .expect("it can be changed");
        drop(store);
        let good = fs::read(&path).expect("the store can be read");
        Self { relay, target, good, _folder: folder, path }
    }

    /// Changes one bit behind the first place where these bytes are.
    fn flip(&self, behind: &[u8]) {
        let mut bytes = self.good.clone();
        let at = bytes.windows(behind.len()).position(|part| part == behind).expect("it is in the file");
        bytes[at + behind.len() - 1] ^= 1;
        fs::write(&self.path, bytes).expect("the store can be written");
    }

    /// Changes the store as it was at first.
    fn change(&self, sql: &str) {
        fs::write(&self.path, &self.good).expect("the store can be put back");
        let store = Connection::open(&self.path).expect("the store can be opened");
        store.execute_batch(sql).unwrap_or_else(|error| panic!("{sql}: {error}"));
    }

    fn up(&self) {
        self.target.then(Reaction::Answer(Reply::status(200)));
    }

    /// Delivers what may be: the two other events. The changed one is a dead letter, also after a retry.
    async fn deliver(&mut self) {
        self.up();
        let before = self.target.deliveries().len();
        self.relay.restart().await;
        let (dead, delivered) = (FORMATS.len() as u64, 2 * FORMATS.len() as u64);
        self.relay.audited("dead", dead).await;
        self.relay.audited("delivered", delivered).await;
        let listed = self.relay.run(&["dead", "ls"]).await;
        let told = listed.stdout.contains("damaged: ") || listed.stdout.contains("cannot be read");
        assert!(told, "{listed:?}");
        assert_eq!(self.relay.run(&["dead", "retry", "--yes"]).await.code, Some(0));
        self.relay.audited("dead", dead).await;
        self.relay.stop().await;
        let came = self.target.deliveries().split_off(before);
        assert_eq!(came.len(), 2 * FORMATS.len(), "neither at first nor after the retry: {came:?}");
    }
}
