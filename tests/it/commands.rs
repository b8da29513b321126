//! The commands other than `serve`, as an operator runs them.

use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::support::command::{Finished, Running, free_address, run, wxrelay};
use crate::support::http::try_exchange;
use crate::support::relay::{Relay, Setup};
use crate::support::target::{Reaction, Reply, Target};
use crate::support::wechat::{GH, PATH, WeChat, event, text, text_reply};

#[tokio::test]
async fn demo_once_runs_as_documented() {
    let finished = run(wxrelay(["demo", "--once"])).await;
    assert_eq!(finished.code, Some(0), "{finished:?}");
    let output = (finished.stdout + &finished.stderr).to_lowercase();
    for part in ["verif", "subscribe", "scan", "text", "click", "retry", "forged", "outage", "audit"] {
        assert!(output.contains(part), "{part} in\n{output}");
    }
}

#[tokio::test]
async fn completions_and_manual_pages_know_every_command() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let mut write = wxrelay(["man", "--dir"]);
    write.arg(dir.path());
    assert_eq!(run(write).await.code, Some(0));
    let page = run(wxrelay(["man"])).await;
    assert!(page.code == Some(0) && page.stdout.contains(".TH wxrelay 1"), "{page:?}");
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = run(wxrelay(["completions", shell])).await;
        assert_eq!(script.code, Some(0), "{script:?}");
        for command in ["serve", "check", "events", "healthcheck"] {
            assert!(script.stdout.contains(command), "{shell}: {command}");
            let page = dir.path().join(format!("wxrelay-{command}.1"));
            let text = fs::read_to_string(&page).unwrap_or_else(|error| panic!("{}: {error}", page.display()));
            assert!(text.contains(&format!("wxrelay\\-{command}")) && text.contains(".SH OPTIONS"), "{text}");
        }
    }
    assert_eq!(run(wxrelay(["completions", "tcsh"])).await.code, Some(2), "a shell that it does not know");
}

#[tokio::test]
async fn init_writes_a_config_that_check_takes() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let mut init = wxrelay(["init", "--dir"]);
    init.arg(dir.path());
    let finished = run(init).await;
    assert_eq!(finished.code, Some(0), "{finished:?}");
    let path = dir.path().join("config.toml");
    let written = fs::read_to_string(&path).expect("init writes config.toml");
    let mut check = wxrelay(["check", "-c"]);
    check.arg(&path).current_dir(dir.path());
    let checked = run(check).await;
    assert_eq!(checked.code, Some(0), "{checked:?}\n{written}");
    let output = finished.stdout.to_lowercase();
    assert!(output.contains("token") && output.contains("encodingaeskey"), "what to paste: {}", finished.stdout);

    let mut again = wxrelay(["init", "--dir"]);
    again.arg(dir.path());
    assert_ne!(run(again).await.code, Some(0), "a config that is there is not overwritten");
    assert_eq!(fs::read_to_string(&path).expect("it is still there"), written);
}

#[tokio::test]
async fn init_prints_the_same_console_paths_as_the_install_pages() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let mut init = wxrelay(["init", "--dir"]);
    init.arg(dir.path());
    let printed = run(init).await.stdout;
    let paths: Vec<_> = ["developers.weixin.qq.com/platform > ", "mp.weixin.qq.com > "]
        .iter()
        .filter_map(|start| {
            // The page with the server settings is the last one.
            let line = printed.lines().rev().find(|line| line.contains(start))?;
            Some(line[line.find(start)?..].trim_end_matches(')').to_owned())
        })
        .collect();
    assert_eq!(paths.len(), 2, "the new console and the old one: {printed}");
    for page in ["docs/install.md", "docs/install.zh-CN.md"] {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(page);
        let text = fs::read_to_string(path).expect("the page can be read");
        let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
        for path in &paths {
            assert!(text.contains(path.as_str()), "{page} lacks `{path}`");
        }
    }
}

#[tokio::test]
async fn keygen_gives_a_new_token_and_key_each_time() {
    let keys = async || {
        let finished = run(wxrelay(["keygen"])).await;
        assert_eq!(finished.code, Some(0), "{finished:?}");
        let alphanumeric = |word: &&str| word.bytes().all(|byte| byte.is_ascii_alphanumeric());
        let line = finished.stdout.lines().find(|line| line.starts_with("encoding_aes_key")).unwrap_or_default();
        let words = line.split_whitespace().filter(alphanumeric);
        words.filter(|word| word.len() == 43).map(str::to_owned).collect::<Vec<_>>()
    };
    let (first, second) = (keys().await, keys().await);
    assert_eq!((first.len(), second.len()), (1, 1), "one EncodingAESKey of 43 letters and digits");
    assert_ne!(first, second);
}

#[tokio::test]
async fn simulate_sends_what_sink_receives() {
    let wechat = WeChat::secure();
    let sink = Running::spawn(wxrelay(["sink", "--listen", "127.0.0.1:0"]));
    let url = sink
        .find("line that says where the sink listens", |line| {
            line.split(' ').find(|word| word.starts_with("http://")).map(str::to_owned)
        })
        .await;
    let relay =
        Relay::start(format!("{}[targets.crm]\nurl = \"{url}/hook\"\nformat = \"json\"\n", wechat.account())).await;
    for kind in ["verify", "text", "subscribe", "scan", "unsubscribe", "click", "view"] {
        let finished = simulate(&relay, &wechat, &[kind]).await;
        assert_eq!(finished.code, Some(0), "{kind}: {finished:?}");
    }
    let audit = relay.audited("delivered", 6).await;
    assert_eq!(audit["events"], 6);
    sink.find("scan in what the sink prints", |line| line.contains("scan").then_some(())).await;
}

#[tokio::test]
async fn sink_takes_cloud_events_signed_with_one_of_its_secrets_and_refuses_others() {
    let secret = |fill: &str| format!("whsec_{}", fill.repeat(32));
    let sink = |keys: [String; 2]| {
        let [one, two] = keys;
        Running::spawn(wxrelay(["sink", "--listen", "127.0.0.1:0", "--secret", &one, "--secret", &two]))
    };
    let (good, bad) = (sink([secret("A"), secret("C")]), sink([secret("A"), secret("B")]));
    let find = |line: &str| line.split(' ').find(|word| word.starts_with("http://")).map(str::to_owned);
    let (wechat, what) = (WeChat::secure(), "line that says where the sink listens");
    let target = |name: &str, url: &str| {
        let secrets = format!("secret = [\"{}\", \"{}\"]", secret("D"), secret("C"));
        format!("[targets.{name}]\nurl = \"{url}/\"\nformat = \"cloudevents\"\nretry = []\n{secrets}\n")
    };
    let targets = target("good", &good.find(what, find).await) + &target("bad", &bad.find(what, find).await);
    let relay = Relay::start(wechat.account() + &targets).await;
    relay.accept(&wechat, &text("o1", "hello")).await;
    good.find("good signature", |line| {
        line.contains("text  ").then(|| assert!(line.contains("signature ok"), "{line}"))
    })
    .await;
    bad.find("bad signature", |line| line.contains("signature BAD").then(|| assert!(line.ends_with("-> 401")))).await;
    relay.audited("dead", 1).await;
}

#[tokio::test]
async fn simulate_sends_a_file_as_it_is() {
    let (wechat, crm) = (WeChat::secure(), Target::start().await);
    let relay = Relay::start(wechat.account() + &crm.config("crm", "")).await;
    let dir = tempfile::tempdir().expect("a temporary folder");
    let (file, clear) = (dir.path().join("push.xml"), event("o1", "CLICK", "from a file"));
    fs::write(&file, &clear).expect("the push can be written");
    let finished = simulate(&relay, &wechat, &["raw", file.to_str().expect("a path of text")]).await;
    assert_eq!(finished.code, Some(0), "{finished:?}");
    assert_eq!(crm.delivery(0).await.json()["xml"], clear.as_str());
}

#[tokio::test]
async fn simulate_prints_the_opened_reply_and_fails_when_refused() {
    let (wechat, crm) = (WeChat::secure(), Target::start().await);
    crm.then(Reaction::Answer(Reply::xml(text_reply("o1", "a sealed greeting"))));
    let route = "[[accounts.shop.routes]]\notherwise = true\nto = [\"crm\"]\nreply = \"crm\"\n";
    let relay = Relay::start(wechat.account() + route + &crm.config("crm", "")).await;
    let finished = simulate(&relay, &wechat, &["text", "--openid", "o1", "--original-id", GH]).await;
    assert_eq!(finished.code, Some(0), "{finished:?}");
    assert!(finished.stdout.contains("a sealed greeting"), "{}", finished.stdout);

    let stranger = WeChat { token: "guessed".to_owned(), ..wechat };
    let refused = simulate(&relay, &stranger, &["verify"]).await;
    assert!(refused.code.is_some_and(|code| code != 0), "{refused:?}");
}

#[tokio::test]
async fn events_and_audit_tell_what_is_stored() {
    let (wechat, crm) = (WeChat::secure(), Target::start().await);
    crm.script([Reaction::Answer(Reply::status(500))]);
    let relay = Relay::start(wechat.account() + &crm.config("crm", "retry = [\"20ms\"]")).await;
    relay.accept(&wechat, &text("o1", "hello")).await;
    relay.audited("delivered", 1).await;
    let id = crm.delivery(0).await.header("wxrelay-event-id").to_owned();

    for args in [&["events", "ls"][..], &["events", "show", &id], &["events", "ls", "--json"]] {
        let finished = relay.run(args).await;
        assert_eq!(finished.code, Some(0), "{args:?}: {finished:?}");
        assert!(finished.stdout.contains(&id), "{args:?}: {}", finished.stdout);
    }
    let shown = relay.run(&["events", "show", &id, "--json"]).await;
    let shown: Value = serde_json::from_str(&shown.stdout).unwrap_or_else(|error| panic!("{error}: {shown:?}"));
    assert!(shown.to_string().contains("500"), "both attempts are told: {shown}");
    assert_ne!(relay.run(&["events", "show", "evt_0000000000000001"]).await.code, Some(0));

    let audit = relay.run(&["audit"]).await;
    assert_eq!(audit.code, Some(0), "{audit:?}");
    assert!(audit.stdout.contains("crm"), "{}", audit.stdout);
    let audit = relay.audit().await;
    let sum: u64 =
        ["delivered", "dead", "expired", "cancelled", "pending"].map(|state| count(&audit, state)).iter().sum();
    assert_eq!(count(&audit, "deliveries"), sum);
}

#[tokio::test]
async fn healthcheck_reports_whether_the_relay_is_ready() {
    let (wechat, crm) = (WeChat::secure(), Target::start().await);
    let mut relay = Setup::new(wechat.account() + &crm.config("crm", "")).admin_at(free_address()).start().await;
    let finished = relay.run(&["healthcheck"]).await;
    assert_eq!(finished.code, Some(0), "{finished:?}");
    relay.stop().await;
    assert!(try_exchange(&relay.push, b"").await.is_err(), "nothing listens any more");
    assert_ne!(relay.run(&["healthcheck"]).await.code, Some(0));
}

#[tokio::test]
async fn help_and_version_are_there_and_nonsense_is_not() {
    let help = run(wxrelay(["--help"])).await;
    assert_eq!(help.code, Some(0));
    for command in [
        "init",
        "check",
        "serve",
        "demo",
        "simulate",
        "sink",
        "keygen",
        "audit",
        "events",
        "dead",
        "targets",
        "why",
        "top",
        "healthcheck",
    ] {
        assert!(help.stdout.contains(command), "{command} in\n{}", help.stdout);
    }
    assert_eq!(run(wxrelay(["--version"])).await.stdout.trim(), concat!("wxrelay ", env!("CARGO_PKG_VERSION")));
    assert_ne!(run(wxrelay(["nonsense"])).await.code, Some(0));
}

async fn simulate(relay: &Relay, wechat: &WeChat, kind: &[&str]) -> Finished {
    let to = format!("http://{}{PATH}", relay.push);
    let WeChat { app_id, token, aes_key, mode } = wechat;
    let mut command = wxrelay(["simulate", "--to", &to, "--token", token, "--key", aes_key, "--app-id", app_id]);
    command.args(["--mode", mode.name()]).args(kind);
    run(command).await
}

fn count(audit: &Value, field: &str) -> u64 {
    audit[field].as_u64().unwrap_or_else(|| panic!("the audit counts {field}: {audit}"))
}
