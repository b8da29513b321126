//! Tests of `init` without the built binary.

use std::os::unix::fs::PermissionsExt;

use clap::Parser;
use figment::Figment;
use figment::providers::{Format, Toml};

use super::*;
use crate::config::PLACEHOLDER;

#[derive(Parser)]
struct InitCommand {
    #[command(flatten)]
    args: Args,
}

fn args(flags: &[&str]) -> Args {
    InitCommand::try_parse_from(["init"].iter().chain(flags)).map(|line| line.args).unwrap()
}

fn value(config: &str, key: &str) -> String {
    Figment::from(Toml::string(config)).extract_inner(key).unwrap()
}

#[tokio::test]
async fn files_are_written_once_and_for_the_owner_alone() {
    let dir = tempfile::tempdir().unwrap();
    let target = dir.path().join("new");
    let flags = ["--dir", target.to_str().unwrap()];
    run(args(&flags)).await.unwrap();
    for name in ["config.toml", "token", "encoding_aes_key"] {
        let mode = std::fs::metadata(target.join(name)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{name}");
    }
    let token = std::fs::read_to_string(target.join("token")).unwrap();
    std::fs::remove_file(target.join("config.toml")).unwrap();
    let error = run(args(&flags)).await.unwrap_err().to_string();
    assert!(error.contains("token exists already"), "{error}");
    assert!(!target.join("config.toml").exists());
    assert_eq!(std::fs::read_to_string(target.join("token")).unwrap(), token);
}

#[test]
fn the_configuration_has_what_the_flags_say() {
    let flags = ["--account", "shop", "--app-id", "wx1", "--path", "/in", "--listen", "127.0.0.1:81"];
    let provider = ["--provider", "authing", "--identifier", "my-conn", "--user-pool-id", "p1"];
    let text = config_text::config(&args(&[&flags[..], &provider].concat()), Path::new("/srv/wx \"1\""));
    assert_eq!(value(&text, "accounts.shop.app_id"), "wx1");
    assert_eq!(value(&text, "accounts.shop.path"), "/in");
    assert_eq!(value(&text, "accounts.shop.token.file"), "token");
    assert_eq!(value(&text, "accounts.shop.encoding_aes_key.file"), "encoding_aes_key");
    assert_eq!(value(&text, "targets.login.provider"), "authing");
    assert_eq!(value(&text, "targets.login.user_pool_id"), "p1");
    assert_eq!(value(&text, "queue.path"), "/srv/wx \"1\"/data");
    assert!(!text.contains("\n[[accounts.shop.routes]]"));
}

#[test]
fn without_provider_everything_goes_to_the_handler() {
    let text = config_text::config(&args(&["--mode", "plaintext"]), Path::new("/etc/wxrelay"));
    assert!(text.contains("[[accounts.main.routes]]\notherwise = true\nto = [\"handler\"]\n"));
    assert!(!text.contains("encoding_aes_key") && !text.contains("login"));
    assert_eq!(value(&text, "queue.path"), "/var/lib/wxrelay");
}

#[tokio::test]
async fn what_is_written_passes_check() {
    let bamboo = ["--provider", "bamboocloud", "--domain", "id.example.com", "--idp-id", "p1"];
    let authing = ["--provider", "authing", "--identifier", "my-conn", "--user-pool-id", "0123456789abcdef"];
    for flags in [&[][..], &["--mode", "plaintext"], &["--mode", "compatible"], &bamboo, &authing] {
        let dir = tempfile::tempdir().unwrap();
        run(args(&[&["--dir", dir.path().to_str().unwrap()], flags].concat())).await.unwrap();
        let config = crate::config::load(Some(&dir.path().join("config.toml")), [], &[]);
        let account = config.map(|config| config.accounts[0].credentials.app_id.to_string());
        assert_eq!(account.map_err(|errors| format!("{errors:?}")), Ok(PLACEHOLDER.to_owned()), "{flags:?}");
    }
}

#[test]
fn flags_that_would_be_ignored_are_named() {
    let authing = ["--provider", "authing", "--identifier", "i", "--user-pool-id", "p"];
    for (flags, named) in [
        (&["--mode", "plaintext", "--key", "k"][..], "--key"),
        (&["--identifier", "i"], "--identifier"),
        (&["--user-pool-id", "p"], "--user-pool-id"),
        (&["--domain", "d.example"], "--domain"),
        (&[&authing[..], &["--idp-id", "1"]].concat(), "--idp-id"),
    ] {
        let problem = args(flags).ignored();
        assert!(problem.as_ref().is_some_and(|problem| problem.starts_with(named)), "{flags:?}: {problem:?}");
    }
    for flags in [&["--mode", "compatible", "--key", "k"][..], &authing, &[]] {
        assert_eq!(args(flags).ignored(), None, "{flags:?}");
    }
    for flags in [["--systemd", "--dir", "x"], ["--systemd", "--data", "x"], ["--root", "x", "--account=a"]] {
        assert!(InitCommand::try_parse_from(["init"].iter().chain(&flags)).is_err(), "{flags:?}");
    }
}

#[test]
fn a_provider_asks_for_its_ids() {
    for flags in [&["--provider", "authing"][..], &["--provider", "bamboocloud", "--domain", "d.example"]] {
        assert!(InitCommand::try_parse_from(["init"].iter().chain(flags)).is_err(), "{flags:?}");
    }
}

#[test]
fn the_steps_name_the_consoles_fields() {
    let flags = ["--public-url", "https://wx.example.com/", "--provider", "genauth", "--identifier", "i"];
    let text =
        instructions::steps(&args(&[&flags[..], &["--user-pool-id", "p"]].concat()), Path::new("/d"), "TTT", "KKK");
    for part in ["https://wx.example.com/wechat/events", "令牌(Token)", "TTT", "KKK", "安全模式", "GenAuth", "AppID"]
    {
        assert!(text.contains(part), "{part}\n{text}");
    }
    assert!(text.find("5. ").is_some() && text.find("6. ").is_none());
}

#[tokio::test]
async fn secrets_that_the_console_would_refuse_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().to_str().unwrap();
    for flags in [["--token", "a-b-c"], ["--token", "ab"], ["--key", "short"]] {
        assert!(run(args(&[&["--dir", dir], &flags[..]].concat())).await.is_err(), "{flags:?}");
    }
    assert_eq!(std::fs::read_dir(dir).unwrap().count(), 0);
}

#[test]
fn the_commented_routes_let_the_handler_reply() {
    let provider = ["--provider", "authing", "--identifier", "my-conn", "--user-pool-id", "p1"];
    for (flags, route) in [(&[][..], "0"), (&provider[..], "1")] {
        let text = config_text::config(&args(flags), Path::new("/srv"));
        let is_setting =
            |line: &str| ["[[", "match", "otherwise", "to", "reply"].iter().any(|key| line.starts_with(key));
        let uncommented = |line: &str| line.strip_prefix("# ").filter(|rest| is_setting(rest)).map(str::to_owned);
        let lines = text.lines().map(|line| uncommented(line).unwrap_or_else(|| line.to_owned()));
        let text = lines.collect::<Vec<_>>().join("\n");
        let routes: Vec<figment::value::Dict> =
            Figment::from(Toml::string(&text)).extract_inner("accounts.main.routes").unwrap();
        let reply = routes.last().and_then(|route| route.get("reply")).and_then(|reply| reply.as_str());
        assert_eq!((reply, (routes.len() - 1).to_string().as_str()), (Some("handler"), route), "{text}");
    }
}
