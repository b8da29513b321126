//! Terminals: whatever a push, a target or another server sends, a command never passes on what a terminal would obey.

use std::process::Command;

use serde_json::json;

use crate::support::command::{Running, free_address, wxrelay};
use crate::support::http;
use crate::support::relay::{Relay, Setup};
use crate::support::target::{Reaction, Reply, Target};
use crate::support::wechat::{WeChat, event, text};
use crate::support::{eventually, soon};
use crate::top::Screen;

/// A window title, a cleared screen, a colour by C1, an override of direction, a hidden mark, and lines like ours.
const HOSTILE: &str =
    "A\x1b]0;pwned\x07\x1b[2J\u{9b}31m\u{202e}\u{2066}\u{200f}\u{feff}\u{7f}\u{2028}B\r\nFAKE LINE\nFAKE";

/// Fails if a terminal would obey any of it, or a line of others stands alone.
#[track_caller]
fn assert_harmless(of: &str, shown: &str) {
    let line_ends = shown.replace("\r\n", "\n");
    let bad = line_ends.chars().find(|sign| {
        let reorders =
            matches!(sign, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}');
        *sign != '\n' && (sign.is_control() || reorders)
    });
    assert_eq!(bad, None, "{of}: {shown:?}");
    assert!(!line_ends.lines().any(|line| line.trim_start().starts_with("FAKE")), "{of}: {shown:?}");
}

/// Runs a command with a terminal as its stdout, and checks both outputs.
async fn harmless(of: &str, mut command: Command) -> String {
    // Without the codes of our own colours, every code is one of others.
    command.env("NO_COLOR", "1");
    let (shown, errors) = Screen::open().run_to_end(command).await;
    assert_harmless(of, &shown);
    assert_harmless(of, &errors);
    shown + &errors
}

#[tokio::test]
async fn no_command_passes_on_what_a_terminal_would_obey() {
    let (relay, _crm) = relay_with_hostile_events().await;
    let ids: Vec<String> = relay.run(&["events", "ls", "--json"]).await.stdout.lines().map(id_of).collect();
    let mut runs: Vec<Vec<&str>> = vec![
        vec!["events", "ls"],
        vec!["events", "ls", "--json"],
        vec!["dead", "ls"],
        vec!["dead", "ls", "--json"],
        vec!["targets", "ls"],
        vec!["audit", "--deep"],
        vec!["top", "--once"],
        vec!["check"],
        vec!["why", "[OpenID=\u{9b}2J\u{202e}o1][Stamp=1]"],
        vec!["doctor"],
        vec!["check", "--online"],
    ];
    for id in &ids {
        runs.push(vec!["events", "show", id]);
        runs.push(vec!["events", "show", id, "--text"]);
        runs.push(vec!["events", "show", id, "--json"]);
    }
    // These change the events, so they are the last.
    runs.push(vec!["events", "replay", "--yes", "--event", HOSTILE]);
    runs.push(vec!["events", "forget", "--yes", "--openid", HOSTILE]);
    let mut all = String::new();
    for args in runs {
        let mut command = wxrelay(&args);
        command.arg("-c").arg(relay.config());
        all += &harmless(&args.join(" "), command).await;
    }
    for shown in ["\\u001b]0;pwned\\u0007", "\\u009b31m", "\\u202e", "| FAKE LINE", "\\r\\nFAKE LINE"] {
        assert!(all.contains(shown), "{shown} is shown as an escape: {all}");
    }
}

#[tokio::test]
async fn a_program_that_reads_the_text_of_an_event_gets_its_exact_bytes() {
    let (relay, _crm) = relay_with_hostile_events().await;
    for line in relay.run(&["events", "ls", "--json"]).await.stdout.lines() {
        let shown = relay.run(&["events", "show", &id_of(line), "--text"]).await;
        assert!(shown.stdout.contains("\x1b]0;pwned\x07\x1b[2J\u{9b}31m\u{202e}"), "{shown:?}");
    }
}

#[tokio::test]
async fn activity_as_it_happens_is_harmless_too() {
    let (relay, crm) = relay_with_hostile_events().await;
    let screen = Screen::open();
    let mut command = wxrelay(["events", "tail", "-c"]);
    command.arg(relay.config()).env("NO_COLOR", "1");
    let mut tail = screen.run(command);
    eventually("the attempts are followed", async || {
        accept_hostile(&relay.push, &event("hostile-user", HOSTILE, HOSTILE)).await;
        screen.text().contains("-> crm").then_some(())
    })
    .await;
    tail.kill().expect("it runs");
    tail.wait().expect("it can be waited for");
    assert_harmless("events tail", &screen.text());
    drop(crm);
}

#[tokio::test]
async fn the_log_for_people_is_harmless() {
    let (crm, wechat) = (hostile_target().await, WeChat::secure());
    let (folder, address) = (tempfile::tempdir().expect("a temporary folder"), free_address());
    let config = folder.path().join("config.toml");
    let text = format!(
        "[server]\nlisten = \"{address}\"\n[admin]\nlisten = \"127.0.0.1:0\"\n[queue]\npath = \"store\"\n\
         [log]\nformat = \"text\"\nlevel = \"debug\"\nopenid = \"clear\"\n{}{}",
        wechat.account(),
        crm.config("crm", "retry = []\n")
    );
    std::fs::write(&config, text).expect("the config can be written");
    let mut serve = wxrelay(["serve", "-c"]);
    serve.arg(&config);
    let relay = Running::spawn(serve);
    relay.find("ready line", |line| line.ends_with("ready").then_some(())).await;
    accept_hostile(&address, &event("hostile-user", "CLICK", HOSTILE)).await;
    crm.delivery(0).await;
    relay.find("the OpenID", |line| line.contains("\\u001b]0;pwned").then_some(())).await;
    relay.find("the attempt", |line| line.contains("-> crm").then_some(())).await;
    assert_harmless("serve", &relay.lines().join("\n"));
}

#[tokio::test]
async fn what_another_server_answers_is_harmless() {
    let server = Target::always(Reaction::Answer(Reply {
        status: 500,
        headers: vec![("content-type", "application/json".to_owned())],
        body: json!({ "error": HOSTILE }).to_string().into_bytes(),
    }))
    .await;
    let folder = tempfile::tempdir().expect("a temporary folder");
    let address = server.url().trim_start_matches("http://").split('/').next().expect("an address").to_owned();
    let config = folder.path().join("config.toml");
    let text = format!(
        "[server]\nlisten = \"127.0.0.1:0\"\n[admin]\nlisten = \"{address}\"\n[queue]\npath = \"store\"\n{}",
        WeChat::secure().account()
    );
    std::fs::write(&config, text).expect("the config can be written");
    for args in [&["healthcheck"][..], &["top", "--once"], &["events", "tail"], &["why", "[OpenID=o1]"]] {
        let mut command = wxrelay(args);
        command.arg("-c").arg(&config);
        let shown = harmless(&args.join(" "), command).await;
        assert!(shown.contains("\\u001b]0;pwned"), "{args:?}: {shown}");
    }
    let plain = Target::always(Reaction::Answer(Reply::body("text/plain", HOSTILE))).await;
    let to = format!("{}/{}", plain.url(), "wx");
    let options = ["--token", "0123", "--app-id", "wx0123456789abcdef", "--mode", "plaintext", "--tries", "1"];
    for kind in ["verify", "text"] {
        let command = wxrelay(["simulate", "--to", &to].iter().chain(&options).chain(&[kind]));
        let shown = harmless(kind, command).await;
        assert!(shown.contains("FAULT"), "{shown}");
    }
}

#[tokio::test]
async fn a_sink_prints_no_request_that_a_terminal_would_obey() {
    let address = free_address();
    let screen = Screen::open();
    let mut sink = screen.run(wxrelay(["sink", "--listen", &address]));
    screen.shows("listening on").await;
    let body = json!({ "event": HOSTILE }).to_string();
    let answer = soon("the sink answers", http::post_with(&address, "/x", &body)).await;
    assert_eq!(answer.status, 200);
    screen.shows("bytes").await;
    sink.kill().expect("it runs");
    sink.wait().expect("it can be waited for");
    assert_harmless("sink", &screen.text());
}

fn id_of(line: &str) -> String {
    let event: serde_json::Value = serde_json::from_str(line).expect("an event");
    event["id"].as_str().expect("its id").to_owned()
}

/// Pushes an event or a text of a user whose OpenID is hostile too.
async fn accept_hostile(address: &str, clear: &str) {
    let mut push = WeChat::secure().push(&clear.replace("hostile-user", HOSTILE));
    push.query = push.query.replace(HOSTILE, "o1");
    assert_eq!(push.send(address).await.status, 200);
}

async fn hostile_target() -> Target {
    let body = HOSTILE.as_bytes().to_vec();
    let headers = vec![("content-type", "text/plain".to_owned())];
    Target::always(Reaction::Answer(Reply { status: 500, headers, body })).await
}

/// A relay whose events and whose target's answers are hostile; each delivery is dead.
async fn relay_with_hostile_events() -> (Relay, Target) {
    let (wechat, crm) = (WeChat::secure(), hostile_target().await);
    let config = wechat.account() + &crm.config("crm", "retry = []\n");
    let relay = Setup::new(config).admin_at(free_address()).start().await;
    let user = "hostile-user";
    for clear in [event(user, "CLICK", HOSTILE), event(user, HOSTILE, HOSTILE), text(user, HOSTILE)] {
        accept_hostile(&relay.push, &clear).await;
    }
    relay.audited("dead", 3).await;
    (relay, crm)
}
