//! `wxrelay reload` and `wxrelay status`, on both engines.

use std::fs;

use rustix::process::Signal;
use serde_json::Value;

use crate::support::command::{free_address, run, wxrelay};
use crate::support::eventually;
use crate::support::postgres;
use crate::support::relay::{Relay, Setup};
use crate::support::target::{Reaction, Reply, Target};
use crate::support::wechat::{WeChat, text};

const TOKEN: &str = "0123456789abcdef0123456789abcdef";

#[tokio::test]
async fn reload_prints_what_changed_and_what_needs_a_restart() {
    let (wechat, crm, bot) = (WeChat::secure(), Target::start().await, Target::start().await);
    let account = wechat.account().replace(&format!("\"{}\"", wechat.token), "{ file = \"token\" }");
    let old = account.clone() + &crm.config("crm", "timeout = \"5s\"");
    let (admin, token): (String, &'static str) = (free_address(), wechat.token.clone().leak());
    let mut relay = Setup::new(old).admin_at(admin.clone()).file("token", token).start().await;
    let nothing = relay.run(&["reload"]).await;
    assert!(nothing.code == Some(0) && nothing.stdout.contains("no key changed"), "{nothing:?}");

    fs::write(relay.config().with_file_name("token"), "another0token").expect("it can be written");
    let new = account + &crm.config("crm", "timeout = \"6s\"\nconcurrency = 3") + &bot.config("bot", "");
    relay.configure_all(Setup::new(new).admin_at(admin).server("drain = \"3s\"").log("level = \"info\""));
    let reloaded = relay.run(&["reload"]).await;
    assert_eq!(reloaded.code, Some(0), "{reloaded:?}");
    for line in [
        "generation 3",
        "  changed  accounts.shop.token",
        "  changed  log.level",
        "  added    server.drain",
        "  added    targets.bot",
        "  added    targets.crm.concurrency",
        "  changed  targets.crm.timeout",
        "  server.drain: restart the relay to apply it",
    ] {
        assert!(reloaded.stdout.lines().any(|shown| shown.ends_with(line)), "{line}: {reloaded:?}");
    }
    assert!(!reloaded.stdout.contains("targets.crm.url") && !reloaded.stdout.contains("another0token"), "{reloaded:?}");
    let changed = WeChat { token: "another0token".to_owned(), ..wechat };
    relay.accept(&changed, &text("o1", "hello")).await;
    bot.wait_for(1).await;

    let json: Value = serde_json::from_str(&relay.run(&["reload", "--json"]).await.stdout).expect("JSON");
    assert_eq!((&json["generation"], &json["changes"]), (&4.into(), &Value::Array(Vec::new())), "{json}");
    assert_eq!(json["needs_restart"], serde_json::json!(["server.drain"]), "until the restart: {json}");
}

#[tokio::test]
async fn reload_prints_every_error_and_the_old_configuration_stays() {
    let (wechat, crm) = (WeChat::secure(), Target::start().await);
    let mut relay = setup(wechat.account() + &crm.config("crm", "")).start().await;
    relay.configure(wechat.account() + "[targets.crm]\nurl = \"nowhere\"\ntimeout = \"fast\"\n");
    for args in [&["reload"][..], &["reload", "--json"]] {
        let refused = relay.run(args).await;
        assert_eq!(refused.code, Some(78), "{refused:?}");
        for part in ["targets.crm.url: invalid value", "targets.crm.timeout: found `fast`"] {
            assert!(refused.stderr.contains(part) || refused.stdout.contains(part), "{part}: {refused:?}");
        }
    }
    let refused = relay.run(&["reload"]).await;
    assert!(refused.stderr.ends_with("not reloaded: 2 errors; the old configuration stays in use\n"), "{refused:?}");
    relay.accept(&wechat, &text("o1", "hello")).await;
    crm.wait_for(1).await;
    // SIGHUP finds the same.
    relay.signal(Signal::HUP);
    let line = relay.log("the error", |line| line["level"] == "ERROR").await;
    assert!(line["error"].as_str().is_some_and(|error| error.contains("targets.crm.timeout: found `fast`")), "{line}");
}

#[tokio::test]
async fn a_certificate_that_cannot_be_loaded_is_an_error_of_the_reload() {
    let (wechat, certificate) = (WeChat::secure(), crate::tls::Certificate::new());
    let lines = format!("tls = {{ cert = \"{}\", key = \"{}\" }}", certificate.cert(), certificate.key());
    let relay = setup(wechat.account()).server(&lines).start().await;
    fs::write(certificate.cert(), "no PEM").expect("it can be written");
    let refused = relay.run(&["reload"]).await;
    assert!(refused.code == Some(78) && refused.stderr.contains("server.tls"), "{refused:?}");
}

#[tokio::test]
async fn reload_and_status_need_the_relays_address_only() {
    let (wechat, nowhere) = (WeChat::secure(), tempfile::tempdir().expect("a temporary folder"));
    let relay = setup(wechat.account()).admin(&format!("token = \"{TOKEN}\"")).start().await;
    let asked = async |command: &str, token: Option<&str>| {
        let mut asked = wxrelay([command, "--admin", &relay.admin]);
        asked.current_dir(nowhere.path()).envs(token.map(|token| ("WXRELAY_ADMIN_TOKEN", token)));
        run(asked).await
    };
    for command in ["reload", "status"] {
        let done = asked(command, Some(TOKEN)).await;
        assert_eq!(done.code, Some(0), "{command}: {done:?}");
        let refused = asked(command, None).await;
        assert!(refused.code == Some(1) && refused.stderr.contains("--admin-token-file"), "{command}: {refused:?}");
        let mut nobody = wxrelay([command, "--admin", &free_address()]);
        nobody.current_dir(nowhere.path());
        let unanswered = run(nobody).await;
        assert!(unanswered.code == Some(1) && unanswered.stderr.contains("no relay answers"), "{unanswered:?}");
    }
    // A mistake elsewhere in the file is an error of the reload, not of the command.
    let text = fs::read_to_string(relay.config()).expect("it was written");
    fs::write(relay.config(), format!("{text}\n[targets.other]\nurll = \"http://a\"\n")).expect("it can be changed");
    let refused = relay.run(&["reload"]).await;
    assert!(refused.code == Some(78) && refused.stderr.contains("did you mean `url`?"), "{refused:?}");
    assert_eq!(relay.run(&["status"]).await.code, Some(0));
}

#[tokio::test]
async fn status_shows_the_relay_on_one_screen() {
    status_on(Setup::new(""), |relay| relay.store().display().to_string()).await;
}

#[tokio::test]
async fn status_shows_the_same_with_postgresql() {
    let Some(cluster) = postgres::shared() else { return };
    let database = cluster.database();
    status_on(Setup::new("").postgres(&database.url()), |_| "PostgreSQL at ".to_owned()).await;
}

async fn status_on(setup: Setup, store: impl Fn(&Relay) -> String) {
    let (wechat, crm) = (WeChat::secure(), Target::always(Reaction::Answer(Reply::status(500))).await);
    let waits = Target::always(Reaction::Answer(Reply::status(500))).await;
    let body = wechat.account() + &crm.config("crm", "retry = []\n") + &waits.config("waits", "retry = [\"1h\"]\n");
    let mut relay = setup.body(body).admin_at(free_address()).start().await;
    relay.accept(&wechat, &text("o1", "hello")).await;
    relay.audited("dead", 1).await;
    assert_eq!(relay.run(&["targets", "pause", "waits"]).await.code, Some(0));
    let shown = eventually("the pause in the status", async || {
        let shown = relay.run(&["status"]).await;
        shown.stdout.contains("waits   paused").then_some(shown)
    })
    .await;
    assert_eq!(shown.code, Some(0), "{shown:?}");
    for line in [
        format!("wxrelay   {}, up ", env!("CARGO_PKG_VERSION")),
        "config    ".to_owned(),
        "generation 1, in use since ".to_owned(),
        "ready     yes".to_owned(),
        format!("listen    {}", relay.push),
        "ACCOUNT  MODE    PATH            APPID\nshop     secure  /wechat/events  wx".to_owned(),
        "TARGET  STATE   WAITING  OLDEST  DEAD\n".to_owned(),
        "waits   paused        1      ".to_owned(),
        format!("store     {}", store(&relay)),
        "1 events, ".to_owned(),
        "warning   targets: none has role".to_owned(),
    ] {
        assert!(shown.stdout.contains(&line), "{line}: {shown:?}");
    }
    let json: Value = serde_json::from_str(&relay.run(&["status", "--json"]).await.stdout).expect("JSON");
    let target =
        |name: &str| json["targets"].as_array().expect("a list").iter().find(|one| one["name"] == name).cloned();
    let (crm, waits) = (target("crm").expect("a target"), target("waits").expect("a target"));
    assert_eq!((&crm["dead"], &waits["state"], &waits["pending"]), (&1.into(), &"paused".into(), &1.into()), "{json}");

    relay.log_settings("format = \"text\"");
    let reloaded = relay.run(&["reload"]).await;
    assert_eq!(reloaded.code, Some(0), "{reloaded:?}");
    let shown = relay.run(&["status"]).await;
    for line in ["generation 2", "warning   log.format: changed in the file; restart the relay to apply it"] {
        assert!(shown.stdout.contains(line), "{line}: {shown:?}");
    }
}

#[tokio::test]
async fn a_relay_that_is_not_ready_has_its_reason_in_the_status() {
    let relay = setup(WeChat::secure().account()).start().await;
    fs::remove_dir_all(relay.store()).expect("it can be removed");
    let shown = eventually("a relay that is not ready", async || {
        let shown = relay.run(&["status"]).await;
        (shown.code == Some(1)).then_some(shown)
    })
    .await;
    assert!(shown.stdout.contains("ready     NO: store-failing"), "{shown:?}");
    let json: Value = serde_json::from_str(&relay.run(&["status", "--json"]).await.stdout).expect("JSON");
    assert_eq!((&json["ready"], &json["not_ready_because"]), (&false.into(), &"store-failing".into()), "{json}");
}

fn setup(body: impl Into<String>) -> Setup {
    Setup::new(body).admin_at(free_address())
}
