//! A user is forgotten: by command and API, in any state of the events. No trace is left in the bytes of the store.

use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::replay::multiply;
use crate::support::command::{Finished, free_address, wxrelay};
use crate::support::eventually;
use crate::support::http::{post_with, try_exchange};
use crate::support::relay::{Relay, Setup};
use crate::support::soon;
use crate::support::target::{Reaction, Reply, Target};
use crate::support::wechat::{WeChat, element, event, text, text_reply};
use crate::top::Screen;

const USER: &str = "oForgetMe6a8b7c6d5e4f3a2b1c0";
const OTHER: &str = "oKeepMe0a1b2c3d4e5f6a7b8c9d0";
const PAGE: usize = 4096;
const MARKER: &str = "meet me at nine by the fountain";

#[tokio::test]
async fn a_user_is_forgotten_with_and_without_a_running_relay_down_to_the_bytes() {
    for runs in [true, false] {
        let (mut relay, wechat, crm, bot) = relay("").await;
        let answers = |statuses: [u16; 3]| statuses.map(|status| Reaction::Answer(Reply::status(status)));
        crm.script(answers([200, 410, 200]));
        bot.script(answers([503, 200, 200]));
        for (n, user) in [USER, USER, OTHER].into_iter().enumerate() {
            relay.accept(&wechat, &text(user, &format!("{n}: {MARKER}, {user}"))).await;
            crm.wait_for(n + 1).await;
            bot.wait_for(n + 1).await;
        }
        relay.audited("delivered", 4).await;
        let audit = relay.audited("dead", 1).await;
        assert_eq!((&audit["events"], &audit["pending"]), (&3.into(), &1.into()));
        for bytes in [USER, MARKER, OTHER] {
            assert!(holds(&relay.store(), bytes), "{bytes} is stored");
        }
        if runs {
            let lines = relay.lines();
            assert!(!lines.iter().any(|line| line.contains(USER)));
        } else {
            relay.stop().await;
        }
        let forgotten = relay.run(&["events", "forget", "--openid", USER, "--yes"]).await;
        assert_eq!((forgotten.code, forgotten.stdout.as_str()), (Some(0), "forgot 2 events\n"), "{forgotten:?}");
        assert!(forgotten.stderr.contains("backups"), "{forgotten:?}");
        assert!(!holds(&relay.store(), USER), "runs: {runs}");
        let audit = relay.audit().await;
        assert_eq!((&audit["events"], &audit["delivered"]), (&1.into(), &2.into()), "{audit}");
        let again = relay.run(&["events", "forget", "--openid", USER, "--yes"]).await;
        assert_eq!((again.code, again.stdout.as_str()), (Some(0), ""), "{again:?}");
        assert!(again.stderr.contains("no event of this user"), "{again:?}");
        assert_eq!(json(&relay.run(&["events", "forget", "--openid", USER, "--yes", "--json"]).await)["forgotten"], 0);
        let other = relay.run(&["events", "forget", "--openid", OTHER, "--account", "club", "--yes", "--json"]).await;
        assert_eq!(json(&other)["forgotten"], 0, "another account");
        assert!(holds(&relay.store(), OTHER) && holds(&relay.store(), MARKER));
        let other = relay.run(&["events", "forget", "--openid", OTHER, "--account", "shop", "--yes", "--json"]).await;
        assert_eq!(json(&other)["forgotten"], 1);
        assert!(!holds(&relay.store(), OTHER) && !holds(&relay.store(), MARKER));
        assert_eq!(relay.audit().await["deliveries"], 0);
        if runs {
            let output = relay.log("the line about it", |line| line["count"] == 2).await;
            assert_eq!(output["message"], "events of a user forgotten");
            let lines = relay.lines();
            let clear = lines.iter().find(|line| line.contains(USER) || line.contains(MARKER));
            assert_eq!(clear, None, "in the log");
        }
    }
}

/// Pushes that ask for erasure come from the platform and name the person in another element.
#[tokio::test]
async fn a_person_is_known_by_every_element_that_names_one() {
    let named = |name: &str, element: &str| {
        let person = format!("<{element}><![CDATA[{USER}]]></{element}></xml>");
        event("oPlatform0a1b2c3d4e5f6a7b8c9", name, "").replace("</xml>", &person)
    };
    let key = "encryption_keys = \"MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE=\"";
    for queue in ["", key] {
        let (wechat, crm) = (WeChat::secure(), Target::start().await);
        let setup = Setup::new(wechat.account() + &crm.config("crm", "")).queue(queue).admin_at(free_address());
        let relay = setup.start().await;
        let revoked = named("user_authorization_revoke", "OpenID");
        let in_json = format!(
            r#"{{"ToUserName":"gh_1","FromUserName":"oPlatform","CreateTime":1700000000,"MsgType":"event","Event":"user_info_modified","OpenID":"{USER}"}}"#
        );
        let others =
            [named("user_gifting_card", "FriendUserName"), named("guide_qrcode_scan_event", "openid"), in_json];
        for clear in [&revoked].into_iter().chain(&others) {
            relay.accept(&wechat, clear).await;
        }
        relay.accept(&wechat, &text(OTHER, "hello")).await;
        relay.audited("delivered", 5).await;
        let listed = relay.run(&["events", "ls", "--from", USER, "--json"]).await.stdout;
        assert_eq!(listed.lines().count(), 4, "{listed}");
        assert!(listed.contains(r#""from":"oPlatform"#), "the sender is shown: {listed}");
        assert_eq!(relay.run(&["audit", "--deep"]).await.code, Some(0));
        let stamp = element(&revoked, "CreateTime").expect("it has one");
        let alarm = format!("[OpenID={USER}][Stamp={stamp}][Event=user_authorization_revoke]");
        let found = relay.run(&["why", &alarm]).await;
        assert!(found.code == Some(0) && found.stdout.contains("user_authorization_revoke"), "{found:?}");
        let forgotten = relay.run(&["events", "forget", "--openid", USER, "--yes", "--json"]).await;
        assert_eq!(json(&forgotten)["forgotten"], 4, "{forgotten:?}");
        assert!(!holds(&relay.store(), USER));
        assert_eq!(relay.audit().await["events"], 1);
    }
}

#[tokio::test]
async fn what_is_under_way_and_what_is_held_behind_it_is_forgotten_too() {
    let (relay, wechat, crm, bot) = relay("order = \"per_user\"\ntimeout = \"60s\"").await;
    crm.then(Reaction::Hold(Reply::xml(text_reply(USER, MARKER))));
    for content in ["one", "two", "three"] {
        relay.accept(&wechat, &text(USER, &format!("{content}: {MARKER}"))).await;
    }
    relay.accept(&wechat, &text(OTHER, "four")).await;
    let under_way = crm.wait_for(2).await.into_iter().find(|delivery| delivery.json()["from_user"] == USER);
    let under_way = under_way.expect("the user's first").header("wxrelay-event-id").to_owned();
    bot.wait_for(4).await;
    let forgotten = relay.run(&["events", "forget", "--openid", USER, "--yes", "--json"]).await;
    assert_eq!(json(&forgotten)["forgotten"], 3, "{forgotten:?}");
    crm.release(100);
    relay.log("the end of the attempt", |line| line["event"] == under_way.as_str() && line["target"] == "crm").await;
    relay.audited("delivered", 2).await;
    relay.accept(&wechat, &text(OTHER, "five")).await;
    let audit = relay.audited("delivered", 4).await;
    assert_eq!((&audit["events"], &audit["pending"]), (&2.into(), &0.into()));
    assert_eq!(crm.deliveries().len(), 3, "nothing that was held went out");
    assert!(!holds(&relay.store(), USER) && !holds(&relay.store(), MARKER));
}

#[tokio::test]
async fn a_kill_in_the_middle_leaves_a_clean_ledger_and_another_run_ends_it() {
    const EVENTS: u64 = 6000;
    let (mut relay, wechat, _crm, _bot) = relay("").await;
    relay.accept(&wechat, &text(USER, MARKER)).await;
    relay.audited("delivered", 2).await;
    relay.stop().await;
    multiply(&relay.store(), EVENTS);
    relay.restart().await;
    relay.accept(&wechat, &text(OTHER, "hello")).await;
    relay.audited("delivered", 2 * EVENTS + 2).await;
    let whom = format!(r#"{{"openid":"{USER}"}}"#);
    let answer = post_with(&relay.admin, "/api/events/forget", &whom).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    let first = answer.json();
    assert!(first["next"].as_str().is_some_and(|next| next.starts_with("evt_")), "{first}");
    let left = 1 + EVENTS - first["forgotten"].as_u64().expect("a count");
    relay.kill().await;
    assert_eq!(relay.audit().await["events"], left, "after a page");

    relay.restart().await;
    let request = format!(
        "POST /api/events/forget HTTP/1.1\r\nHost: {}\r\nContent-Length: {}\r\n\r\n{whom}",
        relay.admin,
        whom.len()
    );
    let admin = relay.admin.clone();
    let asking = tokio::spawn(async move { try_exchange(&admin, request.as_bytes()).await });
    eventually("a step is made", async || {
        relay.audit().await["events"].as_u64().filter(|events| *events < left).map(drop)
    })
    .await;
    relay.kill().await;
    drop(asking.await);
    let events = relay.audit().await["events"].as_u64().expect("a count");
    assert!(events > 1 && events < left, "{events} of {left}: killed between two steps");
    assert!(holds(&relay.store(), USER));

    let finished = relay.run(&["events", "forget", "--openid", USER, "--yes", "--json"]).await;
    assert_eq!(json(&finished)["forgotten"], events - 1, "{finished:?}");
    let audit = relay.audit().await;
    assert_eq!((&audit["events"], &audit["delivered"]), (&1.into(), &2.into()));
    assert!(!holds(&relay.store(), USER) && !holds(&relay.store(), MARKER) && holds(&relay.store(), OTHER));
}

#[tokio::test]
async fn forgetting_that_is_not_meant_is_refused() {
    let (relay, wechat, _crm, _bot) = relay("").await;
    relay.accept(&wechat, &text(USER, "hello")).await;
    let path = "/api/events/forget";
    for (query, body, output) in [
        ("?openid=o1", "", "send the OpenID in the body"),
        ("?openid=o1", r#"{"openid":"o1"}"#, "send the OpenID in the body"),
        ("", "", "EOF"),
        ("", "{}", "openid"),
        ("", r#"{"openid":""}"#, "openid"),
        ("", r#"{"from":"o1"}"#, "from"),
        ("", r#"["o1"]"#, "a map"),
        ("", r#"{"openid":"o1","cursor":"12"}"#, "evt_"),
        ("", r#"{"openid":"o1","until":"soon"}"#, "until"),
    ] {
        let answer = post_with(&relay.admin, &format!("{path}{query}"), body).await;
        assert_eq!(answer.status, 400, "{query} {body}: {}", answer.text());
        assert!(answer.text().contains(output), "{query} {body}: {}", answer.text());
    }
    let past = post_with(&relay.admin, path, &format!(r#"{{"openid":"{USER}","until":"1h"}}"#)).await;
    assert_eq!(past.text(), r#"{"forgotten":0,"next":null}"#);
    for (args, code, output) in [
        (&[][..], 2, "--openid"),
        (&["--openid", "", "--yes"], 2, "expected an OpenID"),
        (&["--openid", USER], 1, "add --yes"),
    ] {
        let finished = relay.run(&[&["events", "forget"], args].concat()).await;
        assert!(finished.code == Some(code) && finished.stderr.contains(output), "{args:?}: {finished:?}");
    }
    assert_eq!(relay.audit().await["events"], 1);
    let answer = post_with(&relay.admin, path, &format!(r#"{{"openid":"{USER}"}}"#)).await;
    assert_eq!(answer.text(), r#"{"forgotten":1,"next":null}"#);
}

#[tokio::test]
async fn on_a_terminal_it_asks_first() {
    let (relay, wechat, crm, _bot) = relay("").await;
    crm.then(Reaction::Answer(Reply::status(503)));
    relay.accept(&wechat, &text(USER, "one")).await;
    relay.accept(&wechat, &text(USER, "two")).await;
    relay.audited("delivered", 2).await;
    let screen = Screen::open();
    for (keys, shown, success) in [("n\n", "nothing is forgotten", false), ("y\n", "forgot 2 events", true)] {
        let mut command = wxrelay(["events", "forget", "--openid", USER, "-c"]);
        command.arg(relay.config());
        let mut child = screen.run(command);
        screen.press(keys);
        screen.shows("forget 2 events of oFor..., 2 of them with deliveries still pending? [y/N]").await;
        let ended = tokio::task::spawn_blocking(move || child.wait().expect("it can be waited for"));
        assert_eq!(soon("its end", ended).await.expect("no panic").success(), success);
        screen.shows(shown).await;
    }
    assert_eq!(relay.audit().await["events"], 0);
}

/// A relay that delivers every event to `crm` and `bot`.
async fn relay(crm_lines: &str) -> (Relay, WeChat, Target, Target) {
    let (wechat, crm, bot) = (WeChat::secure(), Target::start().await, Target::start().await);
    let targets = crm.config("crm", &format!("retry = [\"1h\"]\n{crm_lines}")) + &bot.config("bot", "retry = [\"1h\"]");
    let relay = Setup::new(wechat.account() + &targets).admin_at(free_address()).start().await;
    (relay, wechat, crm, bot)
}

/// Whether any file of a folder contains these bytes.
fn holds(folder: &Path, bytes: &str) -> bool {
    fs::read_dir(folder).expect("the folder is there").any(|entry| {
        let file = fs::read(entry.expect("an entry").path()).expect("a file can be read");
        let pages = (0..file.len()).step_by(PAGE).map(|at| &file[at..file.len().min(at + PAGE + bytes.len())]);
        // Pages of zeros, as most of the reserve file has, are skipped for speed.
        let mut used = pages.filter(|page| page.get(..PAGE).is_none_or(|page| page != [0; PAGE]));
        used.any(|page| page.windows(bytes.len()).any(|part| part == bytes.as_bytes()))
    })
}

fn json(finished: &Finished) -> Value {
    assert_eq!(finished.code, Some(0), "{finished:?}");
    serde_json::from_str(&finished.stdout).unwrap_or_else(|error| panic!("{error}: {finished:?}"))
}
