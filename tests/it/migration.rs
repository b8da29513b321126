//! A store of an older release is migrated: its events are delivered, retried, and recognised as duplicates.

use std::fs;
use std::path::Path;

use crate::support::command::{free_address, run, wxrelay};
use crate::support::relay::{Relay, Setup};
use crate::support::target::Target;
use crate::support::wechat::{WeChat, text};

/// The stores are old files; their finished events must not be deleted for their age. Ten years are the maximum.
const FOR_EVER: &str = "retention = \"3650d\"";

/// A folder with the store of an earlier schema; `tests/data/store/README.md` lists its contents.
fn version(schema: i64) -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let stored = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/data/store/v{schema}.db"));
    fs::copy(stored, folder.path().join("wxrelay.db")).expect("the store can be copied");
    folder
}

#[tokio::test]
async fn what_a_store_of_schema_1_holds_is_delivered_in_order_and_retried() {
    let (folder, wechat) = (version(1), WeChat::secure());
    let (legacy, ordered) = (Target::start().await, Target::start().await);
    let body = wechat.account()
        + &legacy.config("legacy", "")
        + &ordered.config("ordered", "order = \"per_user\"")
        + "[targets.crm]\nurl = \"http://127.0.0.1:9/\"\n";
    let relay = Setup::new(body).queue(FOR_EVER).queue_at(folder.path()).admin_at(free_address()).start().await;
    relay.log("line about the migration", |line| line["schema"] == 2).await;

    let deliveries = ordered.wait_for(2).await;
    let at = |index: usize| deliveries[index].json()["received_at"].as_str().expect("a time").to_owned();
    assert!(at(0) < at(1), "{} before {}", at(0), at(1));
    let audit = relay.audited("delivered", 5).await;
    assert_eq!((&audit["events"], &audit["deliveries"], &audit["dead"]), (&3.into(), &7.into(), &2.into()));
    assert_eq!(relay.run(&["dead", "retry", "legacy", "--yes"]).await.code, Some(0));
    assert_eq!(legacy.wait_for(2).await.len(), 2);
    relay.audited("delivered", 7).await;

    let id = deliveries[0].header("wxrelay-event-id");
    let shown = relay.get(&format!("/api/events/{id}")).await.json();
    assert!(shown["reply"].as_str().is_some_and(|reply| reply.contains("stored by schema 1")), "{shown}");
    let text = shown["text"].as_str().expect("the opened text");
    repeated(&relay, &wechat, text, "stored by schema 1").await;
    assert_eq!(relay.audit().await["deliveries"], 7);
}

/// The first start with a key also migrates: stored events stay in clear and are delivered, new ones are encrypted.
#[tokio::test]
async fn a_store_of_schema_2_stays_in_clear_beside_newly_encrypted_events() {
    let (folder, wechat) = (version(2), WeChat::secure());
    let (crm, legacy, ordered) = (Target::start().await, Target::start().await, Target::start().await);
    let targets =
        crm.config("crm", "") + &legacy.config("legacy", "") + &ordered.config("ordered", "order = \"per_user\"");
    let body = wechat.account() + &targets + &crm.config("later", "");
    let key = "encryption_keys = \"MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE=\"";
    let queue = format!("{FOR_EVER}\n{key}");
    let relay = Setup::new(body).queue(&queue).queue_at(folder.path()).admin_at(free_address()).start().await;
    relay.log("line about the migration", |line| line["schema"] == 3).await;

    let deliveries = ordered.wait_for(3).await;
    relay.audited("delivered", 6).await;
    assert_eq!(relay.run(&["targets", "resume", "later"]).await.code, Some(0), "the pause is kept");
    assert_eq!(relay.run(&["dead", "retry", "legacy", "--yes"]).await.code, Some(0));
    relay.audited("delivered", 12).await;
    let id = deliveries[0].header("wxrelay-event-id");
    let shown = relay.get(&format!("/api/events/{id}")).await.json();
    repeated(&relay, &wechat, shown["text"].as_str().expect("the opened text"), "stored by schema 2").await;

    relay.accept(&wechat, &text("o1", "sealed from now on")).await;
    relay.audited("delivered", 16).await;
    assert_eq!(relay.run(&["audit", "--deep"]).await.code, Some(0));
    let store = rusqlite::Connection::open(folder.path().join("wxrelay.db")).expect("the store");
    let mut find = store.prepare("SELECT text = 'sealed' FROM events ORDER BY id").expect("the view");
    let sealed = find.query_map([], |row| row.get::<_, bool>(0)).expect("rows");
    assert_eq!(sealed.collect::<Result<Vec<_>, _>>().expect("rows"), [false, false, false, true]);
}

/// Repeats a push that the older release stored: it is a duplicate, and gets the same reply.
async fn repeated(relay: &Relay, wechat: &WeChat, text: &str, reply: &str) {
    let answer = relay.accept(wechat, text).await;
    assert!(wechat.open_reply(answer.text()).contains(reply));
    assert_eq!(relay.audit().await["events"], 3);
}

#[tokio::test]
async fn a_store_of_schema_1_is_not_read_before_the_relay_has_started() {
    let (folder, home) = (version(1), tempfile::tempdir().expect("a temporary folder"));
    let config = home.path().join("config.toml");
    fs::write(&config, format!("[queue]\npath = \"{}\"\n{}", folder.path().display(), WeChat::secure().account()))
        .expect("the config can be written");
    for args in [&["audit"][..], &["events", "ls"], &["dead", "ls"], &["targets", "ls"]] {
        let mut command = wxrelay(args);
        command.arg("-c").arg(&config);
        let finished = run(command).await;
        assert_eq!(finished.code, Some(1), "{finished:?}");
        assert!(finished.stderr.contains("start the relay once"), "{args:?}: {finished:?}");
    }
}
