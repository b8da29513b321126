//! Encrypted payloads in the store: none is in its folder in clear, and the relay and its commands still work.

use std::fs;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rusqlite::Connection;
use rustix::process::Signal;

use crate::support::command::{free_address, run, wxrelay};
use crate::support::relay::{Relay, Setup};
use crate::support::target::{Reaction, Reply, Target};
use crate::support::wechat::{Mode, Push, WeChat, parameter, text};

const OPENID: &str = "oSomebody0123456789abcdefghi";
const CONTENT: &str = "a confession that nobody else shall read";
const ANSWER: &str = "an answer that a target gave with its 500";
const REPLY: &str = "a reply for one pair of eyes";

/// The line `queue.encryption_keys`, with keys made of these bytes.
fn keys(fills: &[u8]) -> String {
    let keys: Vec<_> = fills.iter().map(|fill| STANDARD.encode([*fill; 32])).collect();
    format!("encryption_keys = {keys:?}")
}

/// An account in compatible mode, whose pushes also have the clear text; one target replies, one refuses.
struct Fixture {
    wechat: WeChat,
    bot: Target,
    legacy: Target,
}

impl Fixture {
    async fn new() -> Self {
        let reply = format!("{{\"reply\":{{\"msg_type\":\"text\",\"content\":\"{REPLY}\"}}}}");
        let bot = Target::always(Reaction::Answer(Reply::body("application/json", reply))).await;
        let refusal = Reply { status: 500, ..Reply::body("text/plain", ANSWER) };
        let legacy = Target::always(Reaction::Answer(refusal)).await;
        Self { wechat: WeChat::new(Mode::Compatible), bot, legacy }
    }

    fn setup(&self, queue: &str) -> Setup {
        let routes = "[[accounts.shop.routes]]\notherwise = true\nto = [\"bot\", \"legacy\"]\nreply = \"bot\"\n";
        let targets = self.bot.config("bot", "") + &self.legacy.config("legacy", "retry = [\"20ms\"]");
        Setup::new(self.wechat.account() + routes + &targets).queue(queue).admin_at(free_address())
    }

    /// Pushes the confession, and waits until its deliveries have ended.
    async fn confess(&self, relay: &Relay) -> Push {
        let push = self.wechat.push(&text(OPENID, CONTENT));
        let answer = push.send(&relay.push).await;
        assert!(self.wechat.open_reply(answer.text()).contains(REPLY), "{answer:?}");
        relay.audited("dead", 1).await;
        relay.audited("delivered", 1).await;
        push
    }
}

/// Every byte in the store's folder, except the reserve file, which is filled before the first push.
fn bytes(folder: &Path) -> Vec<u8> {
    let files = fs::read_dir(folder).expect("the folder").map(|entry| entry.expect("an entry").path());
    let files: Vec<_> = files.filter(|file| !file.ends_with("wxrelay.ballast")).collect();
    assert!(files.iter().any(|file| file.ends_with("wxrelay.db")), "{files:?}");
    files.iter().flat_map(|file| fs::read(file).expect("a file of the store")).collect()
}

fn holds(bytes: &[u8], text: &str) -> bool {
    bytes.windows(text.len()).any(|window| window == text.as_bytes())
}

fn one(folder: &Path, sql: &str) -> String {
    let store = Connection::open(folder.join("wxrelay.db")).expect("the store");
    store.query_row(sql, [], |row| row.get(0)).expect("a row with a text")
}

#[tokio::test]
async fn no_byte_of_a_payload_is_in_the_folder_with_a_key_and_every_one_is_without() {
    for (queue, sealed) in [(keys(&[1]), true), (String::new(), false)] {
        let fixture = Fixture::new().await;
        let mut relay = fixture.setup(&queue).start().await;
        let push = fixture.confess(&relay).await;
        let signature = parameter(&push.query, "msg_signature").expect("a push in compatible mode has it");
        let store = relay.store();
        let check = |when: &str| {
            let bytes = bytes(&store);
            for payload in [CONTENT, ANSWER, REPLY, signature] {
                assert_ne!(holds(&bytes, payload), sealed, "{when}: {payload}");
            }
            assert!(holds(&bytes, OPENID), "{when}: what events are found by is in the clear");
        };
        check("while it runs");
        relay.stop().await;
        check("after it has stopped");
        let (text, answer) = ("SELECT text FROM events", "SELECT answer FROM attempts WHERE status = 500 LIMIT 1");
        let output = [one(&store, text), one(&store, answer)];
        assert_eq!(output.iter().all(|output| output == "sealed"), sealed, "{output:?}");
    }
}

#[tokio::test]
async fn what_is_sealed_is_delivered_after_kill_9_and_a_repeat_has_its_reply() {
    let fixture = Fixture::new().await;
    let mut relay = fixture.setup(&keys(&[1])).start().await;
    let push = fixture.confess(&relay).await;
    let late = fixture.wechat.push(&text(OPENID, "the second one"));
    fixture.bot.script([Reaction::Hang]);
    let pushing = relay.push.clone();
    let second = tokio::spawn(async move { late.send(&pushing).await });
    fixture.bot.wait_for(2).await;
    relay.kill().await;
    second.abort();

    relay.restart().await;
    let repeated = push.send(&relay.push).await;
    assert!(fixture.wechat.open_reply(repeated.text()).contains(REPLY), "{repeated:?}");
    let deliveries = fixture.bot.wait_for(3).await;
    assert_eq!(deliveries[1].header("wxrelay-event-id"), deliveries[2].header("wxrelay-event-id"));
    assert_eq!(deliveries[1].body, deliveries[2].body);
    relay.audited("delivered", 2).await;
    assert_eq!(relay.audited("dead", 2).await["events"], 2);
}

#[tokio::test]
async fn commands_and_api_show_what_is_sealed_to_who_has_the_key() {
    let fixture = Fixture::new().await;
    let mut relay = fixture.setup(&keys(&[1])).start().await;
    fixture.confess(&relay).await;
    let id = fixture.bot.delivery(0).await.header("wxrelay-event-id").to_owned();
    let shown = relay.run(&["events", "show", &id, "--text"]).await.stdout;
    for part in [CONTENT, ANSWER, REPLY] {
        assert!(shown.contains(part), "{part}: {shown}");
    }
    let by_api = relay.get(&format!("/api/events/{id}")).await.json();
    assert!(by_api["text"].as_str().is_some_and(|text| text.contains(CONTENT)), "{by_api}");
    assert!(relay.run(&["dead", "ls"]).await.stdout.contains(ANSWER));
    let deep = relay.run(&["audit", "--deep"]).await;
    assert_eq!(deep.code, Some(0), "{deep:?}");
    assert!(
        encryption(&relay).await["text"].as_str().is_some_and(|text| text.starts_with("payloads are encrypted with "))
    );
    relay.stop().await;
    fixture.legacy.then(Reaction::Answer(Reply::status(200)));
    assert_eq!(relay.run(&["dead", "retry", "legacy", "--yes"]).await.code, Some(0), "in the store itself");
    relay.restart().await;
    relay.audited("delivered", 2).await;
}

#[tokio::test]
async fn keys_are_changed_by_two_at_a_time_and_a_missing_one_is_refused() {
    let fixture = Fixture::new().await;
    let mut relay = fixture.setup(&keys(&[1])).start().await;
    fixture.confess(&relay).await;
    let id = fixture.bot.delivery(0).await.header("wxrelay-event-id").to_owned();
    relay.configure_all(fixture.setup(&keys(&[2, 1])));
    relay.signal(Signal::HUP);
    relay.log("line about the restart", |line| line["key"] == "queue.encryption_keys").await;
    relay.stop().await;
    relay.restart().await;
    relay.accept(&fixture.wechat, &text(OPENID, "by the second key")).await;
    relay.audited("delivered", 2).await;
    relay.audited("dead", 2).await;
    assert!(relay.run(&["events", "show", &id, "--text"]).await.stdout.contains(CONTENT));
    assert_eq!(relay.run(&["audit", "--deep"]).await.code, Some(0));
    assert!(encryption(&relay).await["text"].as_str().is_some_and(|text| text.contains(", older ones with ")));
    relay.stop().await;

    for without in [keys(&[2]), String::new()] {
        relay.configure_all(fixture.setup(&without));
        let missing = encryption(&relay).await;
        assert_eq!(missing["result"], "failed", "{missing}");
        let refused = relay.run(&["serve"]).await;
        assert!(refused.code.is_some_and(|code| code != 0), "{refused:?}");
        let output = refused.stdout + &refused.stderr;
        assert!(output.contains("put that key back into queue.encryption_keys"), "{output}");
        assert!(!relay.run(&["dead", "retry", "legacy", "--yes"]).await.stderr.is_empty());
        // Commands that need no key still work.
        relay.audit().await;
        assert!(relay.run(&["events", "ls"]).await.stdout.contains(&id));
        let shown = relay.run(&["events", "show", &id, "--text"]).await;
        assert_eq!(shown.code, Some(0), "{shown:?}");
        assert!(shown.stdout.contains("which queue.encryption_keys lacks") && !shown.stdout.contains(CONTENT));
        let deep = relay.run(&["audit", "--deep"]).await;
        assert_eq!(deep.code, Some(1), "{deep:?}");
        assert!(deep.stdout.contains("key: evt_"), "{deep:?}");
    }
}

/// The line of `doctor`.
async fn encryption(relay: &Relay) -> serde_json::Value {
    let output = relay.run(&["doctor", "--json"]).await;
    let report: serde_json::Value =
        serde_json::from_str(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"));
    let checks = report["checks"].as_array().expect("a list of checks");
    checks.iter().find(|check| check["check"] == "encryption").expect("a line about encryption").clone()
}

#[tokio::test]
async fn a_key_of_the_wrong_form_is_an_error_that_says_how_to_make_one() {
    let fixture = Fixture::new().await;
    let mut relay = fixture.setup("").start().await;
    relay.configure_all(fixture.setup("encryption_keys = [\"NotAKeyButSecret\"]"));
    let checked = relay.run(&["check"]).await;
    assert_eq!(checked.code, Some(78), "{checked:?}");
    assert!(
        checked.stderr.contains("queue.encryption_keys[0]: invalid value, expected the base64 of 32 bytes"),
        "{checked:?}"
    );
    assert!(checked.stderr.contains("wxrelay keygen") && !checked.stderr.contains("NotAKey"), "{checked:?}");
    let made = run(wxrelay(["keygen"])).await.stdout;
    let key = made.lines().find_map(|line| line.strip_prefix("encryption_key")).expect("a key for the store").trim();
    relay.configure_all(fixture.setup(&format!("encryption_keys = \"{key}\"")));
    assert_eq!(relay.run(&["check"]).await.code, Some(0));
}
