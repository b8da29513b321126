//! What commands print on a terminal of 80 columns and 24 lines: no line is wider, also with Chinese texts; states have
//! colours there and nowhere else; times are local, or UTC on request.

use std::process::Command;

use unicode_width::UnicodeWidthStr as _;

use crate::support::command::{Finished, free_address, run, wxrelay};
use crate::support::eventually;
use crate::support::relay::{Relay, Setup};
use crate::support::target::{Reaction, Reply, Target};
use crate::support::wechat::{WeChat, event, text};
use crate::top::Screen;

/// An EventKey that is wider than the terminal.
const KEY: &str = "菜单_订单查询_菜单_订单查询_菜单_订单查询_菜单_订单查询_菜单_订单查询";
/// A zone 8 hours before UTC that needs no file.
const ZONE: &str = "CST-8";

/// The lines that a terminal shows, without colours.
pub(crate) fn lines(shown: &str) -> Vec<String> {
    let mut plain = String::new();
    let mut rest = shown;
    while let Some((before, code)) = rest.split_once('\x1b') {
        plain += before;
        rest = code
            .trim_start_matches(['[', '?', ';'])
            .trim_start_matches(|sign: char| sign.is_ascii_digit() || sign == ';');
        rest = rest.get(1..).unwrap_or_default();
    }
    (plain + rest).split("\r\n").map(|line| line.trim_end_matches('\n').to_owned()).collect()
}

/// Fails if a line is wider than 80 columns.
#[track_caller]
pub(crate) fn assert_fits(of: &str, shown: &str) {
    let lines = lines(shown);
    assert!(lines.iter().any(|line| line.width() > 10), "{of} shows nothing: {shown:?}");
    for line in lines {
        assert!(line.width() <= 80, "{of}: {} columns: {line}", line.width());
    }
}

async fn shown(relay: &Relay, args: &[&str], variables: &[(&str, &str)]) -> String {
    let mut command = wxrelay(args);
    command.arg("-c").arg(relay.config()).env("TZ", ZONE).env("TERM", "xterm").env_remove("NO_COLOR");
    command.envs(variables.iter().copied());
    let (shown, errors) = Screen::open().run_to_end(command).await;
    assert!(!errors.contains("error"), "{args:?}: {errors}");
    shown
}

async fn piped(relay: &Relay, args: &[&str]) -> Finished {
    let mut command = wxrelay(args);
    command.arg("-c").arg(relay.config()).env("TZ", ZONE);
    let finished = run(command).await;
    assert_eq!(finished.code, Some(0), "{args:?}: {finished:?}");
    finished
}

fn failure() -> Reply {
    Reply { status: 500, ..Reply::body("text/plain", "失败".repeat(60)) }
}

/// A relay with an event whose key is Chinese and whose delivery is dead, and one that waits for a paused target.
async fn relay() -> (Relay, WeChat, Target) {
    let (wechat, crm) = (WeChat::secure(), Target::always(Reaction::Answer(failure())).await);
    let name = "a-target-with-a-name-that-is-as-long-as-one-could-reasonably-choose-it-to-be";
    let body = wechat.account() + &crm.config("crm", "retry = []\n") + &crm.config(name, "retry = [\"1h\"]\n");
    let relay = Setup::new(body).admin_at(free_address()).start().await;
    assert_eq!(relay.run(&["targets", "pause", name]).await.code, Some(0));
    relay.accept(&wechat, &event("o1", "CLICK", KEY)).await;
    relay.accept(&wechat, &text("o2", "hello")).await;
    relay.audited("dead", 2).await;
    (relay, wechat, crm)
}

#[tokio::test]
async fn tables_fit_the_terminal_and_nothing_is_shortened_elsewhere() {
    let (relay, ..) = relay().await;
    for args in [
        &["events", "ls"][..],
        &["events", "ls", "--utc"],
        &["dead", "ls"],
        &["targets", "ls"],
        &["status"],
        &["audit"],
        &["top", "--once"],
        &["check"],
    ] {
        let screen = shown(&relay, args, &[]).await;
        if args != ["check"] {
            assert_fits(&args.join(" "), &screen);
        }
    }
    let listed = shown(&relay, &["events", "ls"], &[]).await;
    assert!(lines(&listed)[0].starts_with("TIME      ID                    ACCOUNT"), "{listed}");
    assert!(listed.contains("..") && !listed.contains(KEY), "{listed}");
    let whole = piped(&relay, &["events", "ls"]).await.stdout;
    assert!(whole.contains(KEY) && whole.starts_with("TIME "), "{whole}");
    assert!(piped(&relay, &["dead", "ls"]).await.stdout.contains(&"失败".repeat(40)));
}

#[tokio::test]
async fn states_have_colours_on_a_terminal_that_wants_them() {
    let (relay, ..) = relay().await;
    let red = "\x1b[31mdead\x1b[0m";
    assert!(shown(&relay, &["events", "ls"], &[]).await.contains(red));
    for no in [("NO_COLOR", "1"), ("TERM", "dumb")] {
        let plain = shown(&relay, &["events", "ls"], &[no]).await;
        assert!(plain.contains("dead") && !plain.contains('\x1b'), "{no:?}: {plain:?}");
    }
    assert!(shown(&relay, &["events", "ls"], &[("NO_COLOR", "")]).await.contains(red), "an empty value is none");
    assert!(!piped(&relay, &["events", "ls"]).await.stdout.contains('\x1b'));
}

#[tokio::test]
async fn times_are_local_or_utc_on_request() {
    let (relay, ..) = relay().await;
    let time = async |args: &[&str]| {
        let listed = piped(&relay, args).await.stdout;
        listed.lines().nth(1).and_then(|line| line.split(' ').next()).map(str::to_owned).expect("a time")
    };
    let (local, utc) = (time(&["events", "ls"]).await, time(&["events", "ls", "--utc"]).await);
    assert!(local.ends_with("+08:00") && utc.ends_with('Z'), "{local}, {utc}");
    let moment = |text: &str| text.parse::<jiff::Timestamp>().expect("RFC 3339");
    assert_eq!(moment(&local), moment(&utc));
}

#[tokio::test]
async fn serve_and_tail_show_one_line_per_push_and_attempt() {
    let (wechat, crm) = (WeChat::secure(), Target::start().await);
    let (folder, address, admin) = (tempfile::tempdir().expect("a folder"), free_address(), free_address());
    let config = folder.path().join("config.toml");
    let text_of_config = format!(
        "[server]\nlisten = \"{address}\"\n[admin]\nlisten = \"{admin}\"\n[queue]\npath = \"store\"\n{}{}",
        wechat.account(),
        crm.config("crm", "retry = [\"20ms\"]\n")
    );
    std::fs::write(&config, &text_of_config).expect("it can be written");
    let (log, tail) = (Screen::open(), Screen::open());
    let command = |args: &[&str]| {
        let mut command = wxrelay(args);
        command.arg("-c").arg(&config).env("TERM", "dumb").env("TZ", ZONE);
        command
    };
    let mut serve = log.run(command(&["serve"]));
    log.shows("  ready").await;
    let mut follow = tail.run(command(&["events", "tail"]));
    eventually("a line of the tail", async || {
        assert_eq!(wechat.push(&text("o1", "你好")).send(&address).await.status, 200);
        tail.text().contains("-> crm 200").then_some(())
    })
    .await;
    crm.script([Reaction::Answer(Reply::status(500))]);
    assert_eq!(wechat.push(&text("o1", "再见")).send(&address).await.status, 200);
    tail.shows("-> crm #2 200").await;
    log.shows("-> crm #2 200").await;
    assert_eq!(
        WeChat { token: "wrong".to_owned(), ..WeChat::secure() }.push(&text("o1", "no")).send(&address).await.status,
        403
    );
    log.shows("from 127.0.0.1").await;
    for child in [&mut serve, &mut follow] {
        child.kill().expect("it runs");
        child.wait().expect("it can be waited for");
    }
    for (of, screen) in [("serve", &log), ("events tail", &tail)] {
        assert_fits(of, &screen.text());
        assert!(!screen.text().contains('{'), "{of}: no JSON on a terminal: {}", screen.text());
        let all = lines(&screen.text());
        let line = |what: &str| {
            let found = all.iter().find(|line| line.contains(what));
            found
                .unwrap_or_else(|| panic!("{of}: {what} in {all:#?}"))
                .split_whitespace()
                .map(str::to_owned)
                .collect::<Vec<_>>()
        };
        let push = line("  accepted  ");
        assert_eq!((push[0].len(), &*push[1], push[2].len()), (8, "text", 8), "{push:?}");
        assert!(push[2].starts_with("o#") && push[2].ends_with(".."), "{push:?}");
        let failed = line("-> crm 500 retry");
        assert_eq!((&failed[1], &failed[2]), (&push[1], &push[2]), "the same columns");
        line("-> crm #2 200");
    }
    let mut explicit = command(&["serve"]);
    std::fs::write(&config, text_of_config + "[log]\nformat = \"json\"\n").expect("it can be written");
    let screen = Screen::open();
    explicit.env("TERM", "xterm");
    let mut serve = screen.run(explicit);
    screen.shows("\"message\":\"ready\"").await;
    serve.kill().expect("it runs");
    serve.wait().expect("it can be waited for");
}

#[tokio::test]
async fn the_demo_pauses_and_its_second_act_breaks_a_target_and_lets_it_recover() {
    let screen = Screen::open();
    let mut command = wxrelay(["demo"]);
    command.env("TERM", "xterm");
    let mut demo = screen.run(command);
    screen.shows("Enter: next step").await;
    assert!(!screen.text().contains("1. URL"), "it waits: {}", screen.text());
    screen.press("\n");
    screen.shows("1. URL").await;
    screen.press("f\n");
    screen.shows("0 unaccounted for").await;
    screen.shows("export WXRELAY_CONFIG=/").await;
    screen.shows("q   end").await;
    screen.press("b\n");
    screen.shows("the circuit breaker of crm is open").await;
    screen.press("f\n");
    screen.shows("the circuit breaker of crm is closed").await;
    screen.press("q\n");
    let ended = tokio::task::spawn_blocking(move || demo.wait()).await.expect("no panic").expect("it ends");
    assert!(ended.success(), "{}", screen.text());
    assert_fits("demo", &screen.text());
    assert_eq!(screen.text().matches("0 unaccounted for").count(), 2, "{}", screen.text());
}

/// A screen as `top` draws it last: what follows the last move of the cursor to the corner.
fn last_frame(shown: &str) -> String {
    let frames: Vec<_> = shown.split("\x1b[H").collect();
    // The last one may be drawn just now.
    frames[frames.len().saturating_sub(2)].to_owned()
}

#[tokio::test]
async fn top_fits_the_terminal_sorts_and_scrolls_with_200_targets() {
    let (wechat, crm) = (WeChat::secure(), Target::start().await);
    let many: String = (0..200).map(|number| crm.config(&format!("target-{number:03}"), "")).collect();
    let relay = Setup::new(wechat.account() + &many).admin_at(free_address()).start().await;
    assert_eq!(relay.run(&["targets", "pause", "target-150"]).await.code, Some(0));
    relay.accept(&wechat, &event("o1", "CLICK", KEY)).await;
    relay.audited("delivered", 199).await;
    let screen = Screen::open();
    let mut command: Command = wxrelay(["top", "-c"]);
    command.arg(relay.config()).env("TERM", "dumb");
    let mut top = screen.run(command);
    screen.shows(" of 200 targets").await;
    eventually("the paused one at the top", async || {
        let frame = lines(&last_frame(&screen.text()));
        let first = frame.iter().skip_while(|line| !line.starts_with("TARGET")).nth(1)?.clone();
        (first.starts_with("target-150") && first.contains("paused")).then_some(())
    })
    .await;
    screen.press("n");
    screen.shows("by name").await;
    screen.press("G");
    screen.shows(" to 200 of 200 targets").await;
    screen.shows("LAST EVENT").await;
    let frames = screen.text();
    for frame in frames.split("\x1b[H").skip(1) {
        assert_fits("top", frame);
        assert!(lines(frame).len() <= 24, "{frame:?}");
    }
    screen.press("q");
    tokio::task::spawn_blocking(move || top.wait()).await.expect("no panic").expect("it ends");
}
