//! Commands that ask the running relay need its address only: neither a mistake elsewhere in the file nor a secret that
//! only the service has keeps an operator from it.

use std::fs;

use serde_json::Value;

use crate::support::command::{Finished, Running, free_address, run, wxrelay};
use crate::support::http;
use crate::support::relay::{Relay, Setup};
use crate::support::target::{Reaction, Reply, Target};
use crate::support::wechat::{WeChat, text};

const TOKEN: &str = "0123456789abcdef0123456789abcdef";

/// The commands, each with its exit code. They find one event with a dead letter for `crm`.
const COMMANDS: [(&[&str], i32); 12] = [
    (&["healthcheck"], 0),
    (&["targets", "ls"], 0),
    (&["events", "ls"], 0),
    (&["events", "ls", "--json", "--target", "crm", "--state", "dead", "--limit", "1"], 0),
    (&["dead", "ls"], 0),
    (&["dead", "ls", "--target", "crm", "--json"], 0),
    (&["top", "--once"], 0),
    (&["why", "[OpenID=o1]"], 0),
    (&["why", "[OpenID=nobody]"], 3),
    (&["targets", "pause", "crm"], 0),
    (&["targets", "resume", "crm"], 0),
    (&["events", "show", "evt_0000000000000001"], 1),
];

#[tokio::test]
async fn the_address_alone_is_enough() {
    let (relay, _crm) = relay("").await;
    let nowhere = tempfile::tempdir().expect("a temporary folder");
    for admin in [format!("http://{}", relay.admin), relay.admin.clone()] {
        for (command, code) in COMMANDS {
            let mut asked = wxrelay(command);
            asked.args(["--admin", &admin]).current_dir(nowhere.path());
            expect(run(asked).await, code, command);
        }
    }
    let mut by_variable = wxrelay(["events", "ls", "--json"]);
    by_variable.env("WXRELAY_ADMIN", &relay.admin).current_dir(nowhere.path());
    let listed = run(by_variable).await;
    expect(listed.clone(), 0, &["events", "ls"]);
    assert_eq!(listed.stdout, relay.run(&["events", "ls", "--json"]).await.stdout, "as from the store");
    let letters = ["dead", "ls", "--json"];
    let mut asked = wxrelay(letters);
    asked.args(["--admin", &relay.admin]);
    assert_eq!(run(asked).await.stdout, relay.run(&letters).await.stdout, "as from the store");
    let id = listed.stdout.lines().next().map(id_of).expect("an event");
    let mut shown = wxrelay(["events", "show", &id, "--text", "--admin", &relay.admin]);
    shown.current_dir(nowhere.path());
    let shown = run(shown).await;
    assert_eq!(shown.stdout, relay.run(&["events", "show", &id, "--text"]).await.stdout, "as from the store");
    for command in [
        &["dead", "retry", "crm", "--yes"][..],
        &["events", "replay", &id],
        &["events", "forget", "--yes", "--openid", "o1"],
    ] {
        let mut asked = wxrelay(command);
        asked.args(["--admin", &relay.admin]).current_dir(nowhere.path());
        expect(run(asked).await, 0, command);
    }
}

#[tokio::test]
async fn a_mistake_elsewhere_in_the_file_blinds_no_command() {
    let (relay, _crm) = relay("").await;
    let sound = fs::read_to_string(relay.config()).expect("it was written");
    let broken = [
        format!("{sound}\n[targets.other]\nurll = \"http://a\"\n"),
        format!("{sound}\n[accounts.shop\npath = \n"),
        sound.replace("[queue]", "[queu]").replace("[accounts.shop]", "[accounts.shop]\ntokn = 5\n"),
        format!("{sound}\n[accounts.other]\ntoken = {{ file = \"/nonexistent\" }}\nmode = {{ env = \"X\" }}\n"),
        format!("[admin]\nlisten = \"{}\"\n", relay.admin),
        format!("admin.listen = '{}'\nbroken", relay.admin),
    ];
    for text in broken {
        fs::write(relay.config(), &text).expect("it can be changed");
        for (command, code) in COMMANDS {
            expect(relay.run(command).await, code, command);
        }
        let tail = relay.spawn(&["events", "tail"]);
        followed(&relay, &tail).await;
    }
}

#[tokio::test]
async fn a_token_that_only_the_service_can_read_is_given_or_asked_for() {
    let (relay, _crm) = relay(&format!("token = \"{TOKEN}\"")).await;
    let text = fs::read_to_string(relay.config()).expect("it was written");
    let text = text.replace(&format!("\"{TOKEN}\""), "{ credential = \"admin-token\" }");
    fs::write(relay.config(), text).expect("it can be changed");
    expect(relay.run(&["healthcheck"]).await, 0, &["healthcheck"]);
    let refused = relay.run(&["targets", "pause", "crm"]).await;
    assert_eq!(refused.code, Some(1), "{refused:?}");
    assert!(refused.stderr.contains("401") && refused.stderr.contains("--admin-token-file"), "{refused:?}");
    let file = tempfile::NamedTempFile::new().expect("a file");
    fs::write(file.path(), format!("\u{feff}{TOKEN} \r\n")).expect("it can be written");
    for (command, code) in COMMANDS {
        let mut with_file = wxrelay(command);
        with_file.arg("-c").arg(relay.config()).arg("--admin-token-file").arg(file.path());
        expect(run(with_file).await, code, command);
        let mut by_variable = wxrelay(command);
        by_variable.env("WXRELAY_ADMIN", &relay.admin).env("WXRELAY_ADMIN_TOKEN", TOKEN);
        expect(run(by_variable).await, code, command);
    }
}

#[tokio::test]
async fn the_address_may_be_a_unix_socket() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let socket = format!("unix:{}", folder.path().join("admin.sock").display());
    let relay = Setup::new(WeChat::secure().account()).admin_at(socket.clone()).start().await;
    for command in [&["healthcheck"][..], &["targets", "ls"], &["events", "ls"]] {
        let mut asked = wxrelay(command);
        asked.args(["--admin", &socket]);
        expect(run(asked).await, 0, command);
    }
    fs::write(relay.config(), format!("[admin]\nlisten = \"{socket}\"\n[oops")).expect("it can be changed");
    expect(relay.run(&["healthcheck"]).await, 0, &["healthcheck"]);
}

#[tokio::test]
async fn without_a_relay_the_mistakes_are_printed() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let config = folder.path().join("config.toml");
    fs::write(&config, format!("[admin]\nlisten = \"{}\"\n[oops]\n", free_address())).expect("it can be written");
    let mut ls = wxrelay(["events", "ls", "-c"]);
    ls.arg(&config);
    let printed = run(ls).await;
    assert!(printed.code == Some(78) && printed.stderr.contains("oops: unknown key"), "{printed:?}");
    let mut health = wxrelay(["healthcheck", "-c"]);
    health.arg(&config);
    let printed = run(health).await;
    assert!(printed.code == Some(1) && printed.stderr.contains("no relay answers"), "{printed:?}");
}

#[tokio::test]
async fn demo_survives_requests_to_its_stand_ins_and_its_file_has_the_real_ports() {
    let demo = Running::spawn(wxrelay(["demo"]));
    let mut stand_ins = Vec::new();
    for name in ["login", "crm", "stats"] {
        let find = |line: &str| {
            line.contains("─► ")
                .then(|| line.split("http://").nth(1).map(str::to_owned))?
                .filter(|_| line.contains(name))
        };
        stand_ins.push(demo.find(name, find).await);
    }
    // While its steps run, and after them.
    for stand_in in &stand_ins {
        strange_requests(stand_in).await;
    }
    let config =
        demo.find("the file", |line| line.trim().strip_prefix("export WXRELAY_CONFIG=").map(str::to_owned)).await;
    for stand_in in &stand_ins {
        strange_requests(stand_in).await;
    }
    for command in [
        &["healthcheck"][..],
        &["status"],
        &["events", "ls"],
        &["targets", "ls"],
        &["targets", "pause", "stats"],
        &["targets", "resume", "stats"],
        &["top", "--once"],
        &["simulate", "text", "hello"],
        &["simulate", "verify"],
        &["why", "[OpenID=oDemoUser_000000000000000001]"],
        &["check"],
        &["doctor"],
        &["audit"],
    ] {
        let mut asked = wxrelay(command);
        asked.env("WXRELAY_CONFIG", &config);
        expect(run(asked).await, 0, command);
    }
    demo.signal(rustix::process::Signal::INT);
    let lines = demo.lines().join("\n");
    assert_eq!(demo.end().await, Some(0), "{lines}");
}

/// What a browser, a scanner and a slow client send.
async fn strange_requests(address: &str) {
    for request in [
        "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
        "POST /wechat HTTP/1.0\r\nContent-Length: 2\r\n\r\n{}",
        "DELETE /x?y=%ff HTTP/1.1\r\nHost: a\r\nwxrelay-event-id: evt_0000000000000001\r\nwxrelay-attempt: 1\r\nConnection: close\r\n\r\n",
    ] {
        let answer = http::exchange(address, request.as_bytes()).await;
        assert_eq!(answer.status, 200, "{answer:?}");
    }
    let mut half = http::Connection::open(address).await.expect("it listens");
    half.write(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\nhalf").await.expect("it reads");
    drop(half);
}

#[track_caller]
fn expect(finished: Finished, code: i32, command: &[&str]) {
    assert_eq!(finished.code, Some(code), "{command:?}: {finished:?}");
}

/// Waits until the tail shows a push.
async fn followed(relay: &Relay, tail: &Running) {
    let shown = async { tail.find("a push", |line| line.contains("  accepted  ").then_some(())).await };
    let pushing = async {
        loop {
            relay.accept(&WeChat::secure(), &text("o2", "hello")).await;
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    };
    tokio::select! {
        () = shown => {}
        () = pushing => {}
    }
}

fn id_of(line: &str) -> String {
    let event: Value = serde_json::from_str(line).expect("an event");
    event["id"].as_str().expect("its id").to_owned()
}

/// A relay with one event, whose delivery is dead.
async fn relay(admin: &str) -> (Relay, Target) {
    let (wechat, crm) = (WeChat::secure(), Target::always(Reaction::Answer(Reply::status(500))).await);
    let config = wechat.account() + &crm.config("crm", "retry = []\n");
    let relay = Setup::new(config).admin(admin).admin_at(free_address()).start().await;
    relay.accept(&wechat, &text("o1", "hello")).await;
    crm.delivery(0).await;
    let settled = || async { relay.run(&["dead", "ls"]).await.stdout.contains("crm").then_some(()) };
    crate::support::eventually("the dead letter", async || settled().await).await;
    (relay, crm)
}
