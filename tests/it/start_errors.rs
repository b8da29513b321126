//! Starts that fail by the configuration: `check` finds them before, and a supervisor does not restart for ever.

use std::fs;
use std::path::Path;

use crate::support::command::{Finished, free_address, run, wxrelay};
use crate::support::relay::Setup;
use crate::support::wechat::WeChat;
use crate::tls::Certificate;

/// A configuration in a folder of its own.
struct Files(tempfile::TempDir);

impl Files {
    fn new() -> Self {
        Self(tempfile::tempdir().expect("a temporary folder"))
    }

    fn path(&self, name: &str) -> String {
        self.0.path().join(name).display().to_string()
    }

    fn write(&self, server: &str, admin: &str, queue: &str, more: &str) {
        let (server, admin) = (
            if server.contains("listen") { server.to_owned() } else { format!("listen = \"127.0.0.1:0\"\n{server}") },
            if admin.is_empty() { "listen = \"127.0.0.1:0\"" } else { admin },
        );
        let queue = if queue.is_empty() { "path = \"store\"" } else { queue };
        let account = WeChat::secure().account();
        let text = format!("[server]\n{server}\n[admin]\n{admin}\n[queue]\n{queue}\n{account}\n{more}");
        fs::write(self.0.path().join("config.toml"), text).expect("the config can be written");
    }

    async fn run(&self, command: &str) -> Finished {
        run(wxrelay([command, "-c", &self.path("config.toml")])).await
    }
}

#[tokio::test]
async fn check_refuses_with_78_what_a_start_refuses_with_78() {
    let (one, other, files) = (Certificate::new(), Certificate::new(), Files::new());
    fs::write(files.path("text"), "no PEM").expect("a file");
    let tls = |cert: &str, key: &str| format!("tls = {{ cert = \"{cert}\", key = \"{key}\" }}");
    let target = |lines: &str| format!("[targets.crm]\nurl = \"https://127.0.0.1:9/\"\n{lines}\n");
    let text = files.path("text");
    let newer = files.path("newer");
    newer_store(Path::new(&newer));
    let cases: [(&str, String, String, String, String); 11] = [
        ("another certificate's key", tls(&one.cert(), &other.key()), "".into(), "".into(), "".into()),
        ("a certificate that is none", tls(&text, &one.key()), "".into(), "".into(), "".into()),
        ("a key that is none", tls(&one.cert(), &text), "".into(), "".into(), "".into()),
        ("a `ca` that is none", "".into(), "".into(), "".into(), target(&format!("ca = \"{text}\""))),
        (
            "a client certificate with another one's key",
            "".into(),
            "".into(),
            "".into(),
            target(&format!("client_cert = \"{}\"\nclient_key = \"{}\"", one.cert(), other.key())),
        ),
        ("an address of another machine", "listen = \"192.0.2.1:8080\"".into(), "".into(), "".into(), "".into()),
        ("a socket where a file is", format!("listen = \"unix:{text}\""), "".into(), "".into(), "".into()),
        (
            "a socket in no folder",
            "".into(),
            format!("listen = \"unix:{}\"", files.path("none/x")),
            "".into(),
            "".into(),
        ),
        ("one port twice", "listen = [\"0.0.0.0:18443\", \"127.0.0.1:18443\"]".into(), "".into(), "".into(), "".into()),
        ("a store in a file", "".into(), "".into(), format!("path = \"{text}\""), "".into()),
        ("a store of a newer release", "".into(), "".into(), format!("path = \"{newer}\""), "".into()),
    ];
    for (what, server, admin, queue, more) in cases {
        files.write(&server, &admin, &queue, &more);
        for command in ["check", "serve"] {
            let printed = files.run(command).await;
            assert_eq!(printed.code, Some(78), "{what}, {command}: {printed:?}");
            assert!(!printed.stderr.is_empty(), "{what}, {command}");
        }
    }
}

#[tokio::test]
async fn check_changes_nothing_and_accepts_what_is_in_use() {
    let config = WeChat::secure().account();
    let relay = Setup::new(config).admin_at(free_address()).server("").start().await;
    let checked = relay.run(&["check"]).await;
    assert_eq!(checked.code, Some(0), "beside the running relay: {checked:?}");
    let files = Files::new();
    files.write("", "", "", "");
    assert_eq!(files.run("check").await.code, Some(0));
    assert!(!Path::new(&files.path("store")).exists(), "the store is not made by a check");
}

#[tokio::test]
async fn what_a_restart_may_fix_ends_with_another_code() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = taken.local_addr().expect("it has an address");
    let files = Files::new();
    files.write(&format!("listen = \"{address}\""), "", "", "");
    let printed = files.run("serve").await;
    assert_eq!(printed.code, Some(1), "an address in use: {printed:?}");
    let relay = Setup::new(WeChat::secure().account()).start().await;
    files.write("", "", &format!("path = \"{}\"", relay.store().display()), "");
    let printed = files.run("serve").await;
    assert_eq!(printed.code, Some(1), "a store in use: {printed:?}");
}

#[tokio::test]
async fn a_target_that_is_the_relay_itself_is_refused() {
    let files = Files::new();
    let path = crate::support::wechat::PATH;
    let target = format!("[targets.loop]\nurl = \"http://localhost:18080{path}/\"\n");
    files.write("listen = \"0.0.0.0:18080\"", "", "", &target);
    for command in ["check", "serve"] {
        let printed = files.run(command).await;
        assert_eq!(printed.code, Some(78), "{command}: {printed:?}");
        assert!(printed.stderr.contains("targets.loop.url: this is the relay's own address"), "{printed:?}");
    }
}

#[tokio::test]
async fn what_is_probably_a_mistake_is_warned_of() {
    let files = Files::new();
    let account = "[accounts.other]\npath = \"/wx/$APPID$/*\"\napp_id = \"gh_0123456789ab\"\ntoken = \"abc\"\nmode = \"plaintext\"\n";
    files.write("", "", "", account);
    let printed = files.run("check").await;
    assert_eq!(printed.code, Some(0), "{printed:?}");
    for warning in [
        "accounts.other.path: `/wx/$APPID$/*` is compared as it is",
        "accounts.other.app_id: `gh_0123456789ab` is not `wx` and 16 hex digits",
    ] {
        assert!(printed.stderr.contains(warning), "{warning}: {}", printed.stderr);
    }
}

/// A store whose schema no release has yet.
fn newer_store(folder: &Path) {
    fs::create_dir(folder).expect("a folder");
    let store = format!("{}/tests/data/store/v1.db", env!("CARGO_MANIFEST_DIR"));
    let database = folder.join("wxrelay.db");
    fs::copy(store, &database).expect("a store");
    let connection = rusqlite::Connection::open(database).expect("it can be opened");
    connection.pragma_update(None, "user_version", 9_999).expect("it can be changed");
}
