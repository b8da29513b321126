//! Actions on many deliveries: they show the count, ask on a terminal, need `--yes` elsewhere, and name how to undo.

use std::process::Command;

use serde_json::Value;

use crate::support::command::{Finished, free_address, run, wxrelay};
use crate::support::eventually;
use crate::support::relay::{Relay, Setup};
use crate::support::target::{Reaction, Reply, Target};
use crate::support::wechat::{WeChat, text};
use crate::top::Screen;

/// The actions, and what each would do to the two events of [`relay`].
const ACTIONS: [(&[&str], &str); 8] = [
    (&["dead", "retry"], "retry 2 dead letters of crm"),
    (&["dead", "retry", "crm"], "retry 2 dead letters of crm"),
    (&["dead", "drop", "crm"], "drop 2 dead letters of crm"),
    (&["targets", "drop", "waits"], "drop 2 pending deliveries of waits"),
    (&["targets", "redirect", "waits", "--to", "crm"], "redirect 2 pending deliveries of waits"),
    (&["events", "replay", "--all"], "replay 2 deliveries"),
    (&["events", "replay", "--target", "crm", "--since", "1h"], "replay 2 deliveries"),
    (&["events", "replay", "--target", "crm", "--to", "bot"], "replay 2 deliveries to bot"),
];

#[tokio::test]
async fn without_a_terminal_an_action_on_many_deliveries_needs_yes() {
    let (mut relay, _targets) = relay().await;
    refuses_all(&relay, |command| with_config(&relay, command)).await;
    refuses_all(&relay, |command| by_address(&relay, command)).await;
    relay.stop().await;
    refuses_all(&relay, |command| with_config(&relay, command)).await;
    let named = relay.run(&["dead", "retry", "crm", "evt_0000000000000001"]).await;
    assert_eq!(named.code, Some(0), "{named:?}");
    let nothing = relay.run(&["dead", "retry", "bot"]).await;
    assert_eq!(nothing.code, Some(1), "a script must not fail on the first day that there is something: {nothing:?}");
}

async fn refuses_all(relay: &Relay, command: impl Fn(&[&str]) -> Command) {
    for (action, would) in ACTIONS {
        let refused = run(command(action)).await;
        assert_eq!(refused.code, Some(1), "{action:?}: {refused:?}");
        for part in [would, "no terminal for the confirmation", "--yes"] {
            assert!(refused.stderr.contains(part), "{action:?}: no `{part}` in {refused:?}");
        }
    }
    unchanged(relay).await;
}

#[tokio::test]
async fn a_dry_run_prints_the_count_alone() {
    let (relay, _targets) = relay().await;
    for make in [with_config, by_address] {
        for (action, would) in ACTIONS {
            let mut command = make(&relay, action);
            command.arg("--dry-run");
            let counted = run(command).await;
            assert_eq!(counted.code, Some(0), "{action:?}: {counted:?}");
            let line = format!("would {would}");
            assert!(counted.stdout.lines().any(|shown| shown == line), "{action:?}: no `{line}` in {counted:?}");
            let mut command = make(&relay, action);
            command.args(["--dry-run", "--json"]);
            let counted = run(command).await;
            let total: u64 =
                counted.stdout.lines().map(|line| json(line)["would_change"].as_u64().expect("a count")).sum();
            assert_eq!(total, 2, "{action:?}: {counted:?}");
            let both = run({
                let mut command = make(&relay, action);
                command.args(["--dry-run", "--yes"]);
                command
            });
            assert_eq!(both.await.code, Some(2), "{action:?}");
        }
    }
    let letters = relay.run(&["dead", "ls", "--json"]).await.stdout;
    let id = json(letters.lines().next().expect("a dead letter"))["id"].as_str().expect("its id").to_owned();
    for one in [&["dead", "retry", "crm", &id][..], &["events", "replay", &id]] {
        for make in [with_config, by_address] {
            let mut command = make(&relay, one);
            command.arg("--dry-run");
            let counted = run(command).await;
            assert!(counted.code == Some(0) && counted.stdout.contains(" 1 "), "{one:?}: {counted:?}");
        }
    }
    unchanged(&relay).await;
}

#[tokio::test]
async fn on_a_terminal_the_count_is_shown_and_asked_for() {
    let (relay, _targets) = relay().await;
    for (keys, code) in [("n\n", 1), ("\n", 1), ("y\n", 0)] {
        let screen = Screen::open();
        let mut asked = screen.run(with_config(&relay, &["dead", "drop", "crm"]));
        screen.shows("undo: `wxrelay events replay --target crm --state cancelled`").await;
        screen.shows("drop 2 dead letters of crm? [y/N]").await;
        screen.press(keys);
        let ended = tokio::task::spawn_blocking(move || asked.wait().expect("it can be waited for"));
        assert_eq!(ended.await.expect("no panic").code(), Some(code), "{}", screen.text());
        screen.shows(if code == 0 { "dropped 2 dead letters of crm" } else { "nothing is changed" }).await;
        if code == 1 {
            unchanged(&relay).await;
        }
    }
    relay.audited("cancelled", 2).await;
}

#[tokio::test]
async fn what_is_named_as_undo_undoes_it() {
    let (relay, _targets) = relay().await;
    let counts = async |pending: u64, dead: u64, cancelled: u64| {
        eventually("the counts", async || {
            let audit = relay.audit().await;
            let is = |key: &str, count: u64| audit[key] == count;
            (is("pending", pending) && is("dead", dead) && is("cancelled", cancelled)).then_some(())
        })
        .await;
    };
    let dropped = relay.run(&["targets", "drop", "waits", "--yes"]).await;
    counts(0, 2, 2).await;
    undo(&relay, &dropped).await;
    counts(2, 2, 0).await;
    // With a pause, what is made pending stays so.
    for target in ["waits", "bot"] {
        assert_eq!(relay.run(&["targets", "pause", target]).await.code, Some(0));
    }
    let moved = relay.run(&["targets", "redirect", "waits", "--to", "bot", "--yes"]).await;
    undo(&relay, &moved).await;
    counts(2, 2, 2).await;
    let listed = relay.run(&["targets", "ls", "--json"]).await.stdout;
    let waits = listed.lines().map(json).find(|one| one["name"] == "waits").expect("a target");
    assert_eq!(waits["pending"], 2, "{listed}");
    let dropped = relay.run(&["dead", "drop", "crm", "--yes"]).await;
    counts(2, 0, 4).await;
    undo(&relay, &dropped).await;
    // They fail again.
    counts(2, 2, 2).await;
}

/// Runs the commands that the output of another names.
async fn undo(relay: &Relay, done: &Finished) {
    assert_eq!(done.code, Some(0), "{done:?}");
    let (_, named) = done.stderr.split_once("undo: ").expect("how to undo it");
    let commands: Vec<_> = named.split('`').filter_map(|part| part.strip_prefix("wxrelay ")).collect();
    assert!(!commands.is_empty(), "{done:?}");
    for command in commands {
        let words: Vec<_> = command.split(' ').chain(["--yes"]).collect();
        let undone = relay.run(&words).await;
        assert_eq!(undone.code, Some(0), "{command}: {undone:?}");
    }
}

async fn unchanged(relay: &Relay) {
    let audit = relay.audit().await;
    assert_eq!((&audit["pending"], &audit["dead"], &audit["cancelled"]), (&2.into(), &2.into(), &0.into()), "{audit}");
}

fn with_config(relay: &Relay, words: &[&str]) -> Command {
    let mut command = wxrelay(words);
    command.arg("-c").arg(relay.config());
    command
}

fn by_address(relay: &Relay, words: &[&str]) -> Command {
    let mut command = wxrelay(words);
    command.args(["--admin", &relay.admin]);
    command
}

fn json(line: &str) -> Value {
    serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))
}

/// A relay with two events, each dead for `crm`, pending for `waits`, and nothing for `bot`.
async fn relay() -> (Relay, [Target; 3]) {
    let failing = async || Target::always(Reaction::Answer(Reply::status(500))).await;
    let (wechat, crm, waits, bot) = (WeChat::secure(), failing().await, failing().await, failing().await);
    let route = "[[accounts.shop.routes]]\notherwise = true\nto = [\"crm\", \"waits\"]\n";
    let targets = crm.config("crm", "retry = []\n")
        + &waits.config("waits", "retry = [\"1h\"]\n")
        + &bot.config("bot", "retry = [\"1h\"]\n");
    let relay = Setup::new(wechat.account() + route + &targets).admin_at(free_address()).start().await;
    for user in ["o1", "o2"] {
        relay.accept(&wechat, &text(user, "hello")).await;
    }
    relay.audited("dead", 2).await;
    (relay, [crm, waits, bot])
}
