//! Commands that work on the store need `[queue]` only: a mistake elsewhere in the file, or a secret that only the
//! service may read, keeps no operator from it, also while no relay runs.

use std::fs;

use crate::support::command::{run, wxrelay};
use crate::support::postgres;
use crate::support::relay::{Relay, Setup};
use crate::support::target::{Reaction, Reply, Target};
use crate::support::wechat::{WeChat, text};

/// The commands that read the store. They find one event with a dead letter for `crm`.
const READERS: [(&[&str], &str); 5] = [
    (&["events", "ls"], "crm dead"),
    (&["events", "ls", "--json", "--target", "crm", "--state", "dead"], "\"crm\""),
    (&["dead", "ls"], "crm"),
    (&["targets", "ls"], "crm     configured"),
    (&["audit"], "crm"),
];

/// A configuration with a mistake in every part but `[queue]`.
fn mistakes(sound: &str) -> [String; 5] {
    let (queue, _) = sound.split_once("[queue]").expect("it has a store");
    let table = sound[queue.len()..].split("\n[log]").next().expect("a table");
    [
        format!("{sound}\n[targets.other]\nurll = \"http://a\"\n"),
        format!("{sound}\n[accounts.shop\npath = \n"),
        sound.replace("[admin]", "[admn]").replace("[accounts.shop]", "[accounts.shop]\ntokn = 5\n"),
        sound.replace("token = \"", "token = { credential = \"only-the-service\" } # \""),
        format!("broken\n{table}\n[targets.crm]\nurl = \"http://a\"\n"),
    ]
}

#[tokio::test]
async fn a_mistake_elsewhere_in_the_file_keeps_no_command_from_the_store() {
    let mut relay = dead_letter(Setup::new("")).await;
    relay.stop().await;
    let sound = fs::read_to_string(relay.config()).expect("it was written");
    for text in mistakes(&sound) {
        fs::write(relay.config(), &text).expect("it can be changed");
        reads_all(&relay, &text).await;
        let retried = relay.run(&["dead", "retry", "crm", "evt_0000000000000001"]).await;
        assert_eq!(retried.code, Some(0), "{retried:?} with\n{text}");
        let salvaged = relay.run(&["store", "salvage"]).await;
        assert_eq!(salvaged.code, Some(0), "{salvaged:?} with\n{text}");
    }
}

#[tokio::test]
async fn the_same_holds_for_a_store_in_postgresql() {
    let Some(cluster) = postgres::shared() else { return };
    let database = cluster.database();
    let mut relay = dead_letter(Setup::new("").postgres(&database.url())).await;
    relay.stop().await;
    let sound = fs::read_to_string(relay.config()).expect("it was written");
    for text in mistakes(&sound) {
        fs::write(relay.config(), &text).expect("it can be changed");
        reads_all(&relay, &text).await;
    }
}

#[tokio::test]
async fn a_misspelt_queue_is_not_the_default_store() {
    let mut relay = dead_letter(Setup::new("")).await;
    relay.stop().await;
    let sound = fs::read_to_string(relay.config()).expect("it was written");
    let broken = [
        (sound.replace("[queue]", "[queu]"), "queu: unknown key, did you mean `queue`?"),
        (sound.replace("type = \"embedded\"", "type = \"sqlite\""), "queue.type: found `sqlite`"),
        (sound.replace("path = \"/", "pth = \"/"), "queue.pth: unknown key"),
        (format!("oops = 1\n{}", sound.replace("[queue]", "[queue]\npath =")), "config.toml: "),
    ];
    for (text, error) in broken {
        fs::write(relay.config(), &text).expect("it can be changed");
        for command in [&["events", "ls"][..], &["audit"], &["store", "salvage"]] {
            let printed = relay.run(command).await;
            assert!(printed.code == Some(78) && printed.stderr.contains(error), "{command:?}: {printed:?}");
        }
    }
}

#[tokio::test]
async fn an_order_that_cannot_be_read_keeps_the_deliveries_as_they_are() {
    let mut relay = dead_letter(Setup::new("")).await;
    relay.stop().await;
    let sound = fs::read_to_string(relay.config()).expect("it was written");
    let wrong = sound.replace("[targets.crm]", "[targets.crm]\norder = \"per-user\"");
    for text in [wrong, sound.replace("[targets.crm]", "[target.crm]"), format!("{sound}\n[targets.other\n")] {
        fs::write(relay.config(), &text).expect("it can be changed");
        let listed = relay.run(&["dead", "ls"]).await;
        assert!(listed.code == Some(0) && listed.stdout.contains("crm"), "{listed:?}");
        let retried = relay.run(&["dead", "retry", "crm", "--yes"]).await;
        assert!(retried.code == Some(1) && retried.stderr.contains("order of the targets"), "{retried:?}");
    }
    fs::write(relay.config(), sound).expect("it can be changed");
    assert_eq!(relay.audit().await["dead"], 1);
}

#[tokio::test]
async fn a_credential_is_found_beside_the_configuration() {
    let (wechat, folder) = (WeChat::secure(), tempfile::tempdir().expect("a temporary folder"));
    let account = wechat.account().replace(&format!("\"{}\"", wechat.token), "{ credential = \"shop-token\" }");
    let config = folder.path().join("config.toml");
    fs::write(&config, format!("[queue]\npath = \"store\"\n{account}")).expect("it can be written");
    let check = async |credentials: Option<&str>| {
        let mut command = wxrelay(["check", "-c"]);
        command.arg(&config).env_remove("CREDENTIALS_DIRECTORY");
        command.envs(credentials.map(|folder| ("CREDENTIALS_DIRECTORY", folder)));
        run(command).await
    };
    let missing = check(None).await;
    assert_eq!(missing.code, Some(78), "{missing:?}");
    for part in ["accounts.shop.token", "CREDENTIALS_DIRECTORY is not set", "shop-token"] {
        assert!(missing.stderr.contains(part), "{part}: {missing:?}");
    }
    fs::write(folder.path().join("shop-token"), &wechat.token).expect("it can be written");
    for credentials in [None, Some("/nonexistent")] {
        let checked = check(credentials).await;
        assert_eq!(checked.code, Some(0), "{checked:?}");
    }
}

/// Each reader finds what is stored.
async fn reads_all(relay: &Relay, text: &str) {
    for (command, part) in READERS {
        let read = relay.run(command).await;
        assert!(read.code == Some(0) && read.stdout.contains(part), "{command:?}: {read:?} with\n{text}");
        assert!(read.stderr.contains("only [queue] is used"), "{command:?}: {read:?} with\n{text}");
    }
}

/// A relay with one event, whose delivery is dead.
async fn dead_letter(setup: Setup) -> Relay {
    let (wechat, crm) = (WeChat::secure(), Target::always(Reaction::Answer(Reply::status(500))).await);
    let relay = setup.body(wechat.account() + &crm.config("crm", "retry = []\n")).start().await;
    relay.accept(&wechat, &text("o1", "hello")).await;
    relay.audited("dead", 1).await;
    relay
}
