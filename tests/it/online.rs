//! `check --online`: every target is probed, and errors are reported with the fix.

use std::fs;
use std::time::Duration;

use serde_json::{Value, json};

use crate::support::command::{Finished, Running, free_address, run, wxrelay};
use crate::support::target::{Reaction, Reply, Target};
use crate::support::wechat::{Mode, WeChat, parameter, sign};
use crate::tls::Certificate;

#[tokio::test]
async fn a_backend_that_takes_wechats_verification_passes_and_no_other_target_is_sent_anything() {
    let (backend, crm) = (backend("legacytoken").await, Target::start().await);
    let legacy = format!("[targets.legacy]\nurl = \"{}\"\nformat = \"wechat\"\ntoken = \"legacytoken\"\n", backend.url);
    let finished = check(&(WeChat::secure().account() + &legacy + &crm.config("crm", "")), &[]).await;
    assert_eq!(finished.code, Some(0), "{finished:?}");
    assert!(finished.stdout.contains("account shop"), "the routing table comes first: {}", finished.stdout);
    assert!(finished.stdout.contains("target legacy: ok, accepts WeChat's verification"), "{}", finished.stdout);
    assert!(finished.stdout.contains("target crm: ok, accepts connections"), "{}", finished.stdout);
    assert!(crm.deliveries().is_empty(), "{:?}", crm.deliveries());
}

#[tokio::test]
async fn the_verification_is_what_wechat_sends_with_the_targets_own_token() {
    let backend = Target::start().await;
    let settings = "format = \"wechat\"\ntoken = \"legacytoken\"\nheaders = { x-tenant = \"blue\" }";
    let toml = WeChat::secure().account() + &backend.config("legacy", settings);
    let finished = check(&toml.replace("/hook", "/hook?id=7"), &[]).await;
    assert_eq!(finished.code, Some(1), "{finished:?}");
    let asked = backend.delivery(0).await;
    assert_eq!((asked.method.as_str(), asked.path.as_str(), asked.header("x-tenant")), ("GET", "/hook", "blue"));
    let query = asked.query.as_deref().expect("a query");
    let part = |name| parameter(query, name).unwrap_or_else(|| panic!("no {name} in {query}"));
    assert_eq!(part("signature"), sign(&["legacytoken", part("timestamp"), part("nonce")]));
    assert_eq!((part("id"), part("echostr").len()), ("7", 19), "{query}");
    assert!(asked.body.is_empty() && parameter(query, "openid").is_none());
    assert_eq!(backend.deliveries().len(), 1, "asked once");
}

#[tokio::test]
async fn a_target_without_a_token_is_asked_with_that_of_every_account_whose_events_it_gets() {
    let shop = WeChat::new(Mode::Secure);
    let club = WeChat { token: "clubtoken".to_owned(), ..WeChat::new(Mode::Plaintext) };
    let backend = backend(&club.token).await;
    let toml = format!(
        "{}{}[targets.legacy]\nurl = \"{}\"\nformat = \"wechat\"\n",
        shop.account_named("shop", "/shop"),
        club.account_named("club", "/club"),
        backend.url
    );
    let finished = check(&toml, &["--json"]).await;
    assert_eq!(finished.code, Some(1), "one of two does not pass: {finished:?}");
    let online = online(&finished);
    let of = |account: &str| online.iter().find(|line| line["account"] == account).expect("a line for each account");
    assert_eq!((of("club")["ok"].clone(), of("shop")["ok"].clone()), (json!(true), json!(false)), "{online:?}");
    assert!(of("shop")["problem"].as_str().is_some_and(|output| output.contains("answered 403")), "{online:?}");
}

#[tokio::test]
async fn errors_are_reported_with_the_fix() {
    let mut moved = Reply::status(301);
    moved.headers.push(("location", "/hook/?signature=hunter2".to_owned()));
    for (reaction, output) in [
        (Reaction::Answer(moved), "answered 301, a redirect to /hook/, which is not followed"),
        (
            Reaction::Answer(Reply::status(403)),
            "`token` of this target must be the token that the backend is set up with",
        ),
        (Reaction::Answer(Reply::status(200)), "answered 200 without a body"),
        (Reaction::Answer(Reply::body("text/html", "<h1>Welcome</h1>")), "`<h1>Welcome</h1>`"),
        (Reaction::Close, "connection"),
        (Reaction::Slow(Duration::from_secs(600), Reply::status(200)), "no whole answer within 300ms"),
    ] {
        let backend = Target::always(reaction).await;
        let toml = WeChat::secure().account() + &backend.config("legacy", "format = \"wechat\"\ntimeout = \"300ms\"");
        let finished = check(&toml, &[]).await;
        assert_eq!(finished.code, Some(1), "{output}: {finished:?}");
        assert!(finished.stdout.contains("target legacy: NOT OK"), "{output}: {}", finished.stdout);
        assert!(finished.stdout.contains(output), "{output}: {}", finished.stdout);
        assert!(!finished.stdout.contains("hunter2") && !finished.stdout.contains("pamtest"), "{}", finished.stdout);
    }
}

#[tokio::test]
async fn an_absent_or_untrusted_target_is_reported() {
    let (files, other) = (Certificate::new(), Certificate::new());
    let secured = Target::secured(files.acceptor()).await;
    let toml = format!(
        "{}[targets.gone]\nurl = \"http://{}/\"\nformat = \"json\"\n[targets.silent]\nurl = \"http://{}/\"\nformat = \"wechat\"\n{}{}",
        WeChat::secure().account(),
        free_address(),
        free_address(),
        secured.config("trusted", &format!("ca = \"{}\"", files.cert())),
        secured.config("untrusted", &format!("ca = \"{}\"", other.cert())),
    );
    let finished = check(&toml, &["--json"]).await;
    assert_eq!(finished.code, Some(1), "{finished:?}");
    let found: Vec<_> = online(&finished).iter().map(|line| (line["target"].clone(), line["ok"].clone())).collect();
    let expected = [("gone", false), ("silent", false), ("trusted", true), ("untrusted", false)];
    assert_eq!(found, expected.map(|(name, ok)| (json!(name), json!(ok))));
    let output = finished.stdout.to_lowercase();
    assert!(output.contains("refused") && output.contains("certificate"), "{output}");
}

#[tokio::test]
async fn without_online_no_target_is_contacted() {
    let backend = Target::start().await;
    let toml = WeChat::secure().account() + &backend.config("legacy", "format = \"wechat\"");
    let finished = run(command(&written(&toml), &[])).await;
    assert_eq!(finished.code, Some(0), "{finished:?}");
    assert!(backend.deliveries().is_empty() && !finished.stdout.contains("\nonline"));
}

/// A `wxrelay sink` that verifies as a backend with that token does.
struct Backend {
    url: String,
    _sink: Running,
}

async fn backend(token: &str) -> Backend {
    let sink = Running::spawn(wxrelay(["sink", "--listen", "127.0.0.1:0", "--token", token]));
    let find = |line: &str| line.split(' ').find(|word| word.starts_with("http://")).map(str::to_owned);
    let url = sink.find("line that says where the sink listens", find).await;
    Backend { url: format!("{url}/wx"), _sink: sink }
}

async fn check(toml: &str, flags: &[&str]) -> Finished {
    let dir = written(toml);
    let mut command = command(&dir, flags);
    command.arg("--online");
    run(command).await
}

fn written(toml: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("a temporary folder");
    fs::write(dir.path().join("config.toml"), toml).expect("the config can be written");
    dir
}

fn command(dir: &tempfile::TempDir, flags: &[&str]) -> std::process::Command {
    let mut command = wxrelay(["check", "-c"]);
    command.arg(dir.path().join("config.toml")).args(flags);
    command
}

/// The findings of `--json`.
fn online(finished: &Finished) -> Vec<Value> {
    let table: Value = serde_json::from_str(&finished.stdout).expect("check prints JSON");
    table["online"].as_array().expect("a list").clone()
}
