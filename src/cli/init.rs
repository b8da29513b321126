//! `wxrelay init`: a first configuration with fresh secrets, and the next steps.
//!
//! Invariants: no file is overwritten; the new files are readable by their owner only, and pass `check`; secrets are
//! printed on a terminal only.

use std::fmt::{self, Write as _};
use std::fs::{DirBuilder, OpenOptions};
use std::io::Write;
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, ensure};

use super::console_paths::{APP_ID, ConsolePage, DEVELOPER_KEYS, SERVER_SETTINGS};
use super::fixable::fixable;
use super::keygen;
use super::output;
use super::simulate::{ServerUrl, secret};
use crate::config::PLACEHOLDER;
use crate::secret::Secret;
use crate::wechat::{AesKey, Mode};

/// `wxrelay init`
#[derive(clap::Args)]
pub struct Args {
    /// Write into this folder, which is created if it does not exist
    #[arg(long, default_value = ".")]
    dir: PathBuf,
    /// Name the account in the configuration
    #[arg(long, value_name = "NAME", default_value = "main", value_parser = name)]
    account: String,
    /// Set the account's AppID, such as wx0123456789abcdef [default: a placeholder]
    #[arg(long, value_parser = word)]
    app_id: Option<String>,
    /// Set the security mode: secure, compatible, or plaintext (test accounts)
    #[arg(long, default_value = "secure")]
    mode: Mode,
    /// Keep this token from WeChat's console [default: a fresh one]
    #[arg(long, value_parser = secret)]
    token: Option<Secret>,
    /// Keep this EncodingAESKey from WeChat's console [default: a fresh one]
    #[arg(long, value_parser = secret)]
    key: Option<Secret>,
    /// Set the path of the server URL
    #[arg(long, default_value = "/wechat/events", value_parser = url_path)]
    path: String,
    /// Listen on this address
    #[arg(long, value_name = "ADDR", default_value = "0.0.0.0:8080")]
    listen: SocketAddr,
    /// Print this scheme and host in the instructions, such as https://wx.example.com
    #[arg(long, value_name = "URL", default_value = "https://YOUR-DOMAIN")]
    public_url: String,
    /// Store events in this folder [default: /var/lib/wxrelay if DIR is in /etc, else DIR/data]
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Deliver events to the handler at this URL
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:9000/wechat")]
    handler: ServerUrl,
    /// Add a target for this identity provider
    #[arg(long, value_enum)]
    provider: Option<ProviderChoice>,
    /// Set the connection's identifier, such as my-connection (Authing, GenAuth)
    #[arg(long, value_name = "ID", value_parser = word, required_if_eq_any([("provider", "authing"), ("provider", "genauth")]))]
    identifier: Option<String>,
    /// Set the user pool's ID (Authing, GenAuth)
    #[arg(long, value_name = "ID", value_parser = word, required_if_eq_any([("provider", "authing"), ("provider", "genauth")]))]
    user_pool_id: Option<String>,
    /// Set the tenant's domain, such as tenant.example.com (BambooCloud)
    #[arg(long, value_parser = word, required_if_eq("provider", "bamboocloud"))]
    domain: Option<String>,
    /// Set the authentication source's ID (BambooCloud)
    #[arg(long, value_name = "ID", value_parser = word, required_if_eq("provider", "bamboocloud"))]
    idp_id: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum ProviderChoice {
    Authing,
    Genauth,
    Bamboocloud,
}

impl fmt::Display for ProviderChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Authing => "Authing",
            Self::Genauth => "GenAuth",
            Self::Bamboocloud => "BambooCloud",
        })
    }
}

/// Writes the files and prints the next steps.
pub async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let dir = std::path::absolute(&args.dir)?;
    let token = args.token.clone().map_or_else(keygen::token, Ok)?;
    let key = args.key.clone().map_or_else(keygen::encoding_aes_key, Ok)?;
    let sound = (3..=32).contains(&token.expose().len()) && token.expose().bytes().all(|b| b.is_ascii_alphanumeric());
    ensure!(sound, "--token: expected 3 to 32 letters and digits, as WeChat's console accepts them");
    AesKey::parse(key.expose()).context("--key")?;

    let mut files = vec![("config.toml", config(&args, &dir)), ("token", format!("{}\n", token.expose()))];
    if args.mode != Mode::Plaintext {
        files.push(("encoding_aes_key", format!("{}\n", key.expose())));
    }
    write(&dir, &files)?;
    let mut out = output::stdout();
    let show = output::is_terminal();
    let shown = |secret: &Secret, file: &str| match show {
        true => secret.expose().to_owned(),
        false => format!("the content of {}", dir.join(file).display()),
    };
    out.write_all(steps(&args, &dir, &shown(&token, "token"), &shown(&key, "encoding_aes_key")).as_bytes())?;
    Ok(ExitCode::SUCCESS)
}

/// Writes all files, or none if one of them exists.
fn write(dir: &Path, files: &[(&str, String)]) -> anyhow::Result<()> {
    for (name, _) in files {
        let file = dir.join(name);
        let exists =
            || fixable(format_args!("{} exists already", file.display()), "move it away, or choose another --dir");
        ensure!(!file.exists(), exists());
    }
    let created = DirBuilder::new().recursive(true).mode(0o700).create(dir);
    let failed = |verb, path: &Path| fixable(format_args!("can't {verb} {}", path.display()), "choose another --dir");
    created.with_context(|| failed("create", dir))?;
    for (name, text) in files {
        let file = dir.join(name);
        let opened = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&file);
        opened.and_then(|mut opened| opened.write_all(text.as_bytes())).with_context(|| failed("write", &file))?;
    }
    Ok(())
}

fn config(args: &Args, dir: &Path) -> String {
    let data = args.data.clone().unwrap_or_else(|| match dir.starts_with("/etc") {
        true => PathBuf::from("/var/lib/wxrelay"),
        false => dir.join("data"),
    });
    let mut text = format!(
        "# Written by `wxrelay init`. Check it with `wxrelay check`.\n\n\
         [server]\nlisten = [{}]\n\n\
         [admin]\nlisten = \"127.0.0.1:9180\"\n\n\
         [queue]\ntype = \"embedded\"\npath = {}\n\n\
         [accounts.{}]\npath = {}\n\
         # AppID: {}\n#   old console: {}\napp_id = {}\n\
         # Token, EncodingAESKey and mode, the same as in the console: {}\n#   old console: {}\n\
         token = {{ file = \"token\" }}\n",
        quoted(&args.listen.to_string()),
        quoted(&data.to_string_lossy()),
        args.account,
        quoted(&args.path),
        APP_ID.path,
        APP_ID.old_path,
        quoted(args.app_id.as_deref().unwrap_or(PLACEHOLDER)),
        SERVER_SETTINGS.path,
        SERVER_SETTINGS.old_path,
    );
    if args.mode != Mode::Plaintext {
        text += "encoding_aes_key = { file = \"encoding_aes_key\" }\n";
    }
    text += &format!("mode = \"{}\"\n", args.mode);
    match args.provider {
        // Without routes, follows and scans go to the identity provider and everything else to the handler.
        Some(provider) => {
            text += &reply_routes(&args.account);
            text += &identity_target(args, provider);
        }
        None => {
            text += &format!("\n[[accounts.{}.routes]]\notherwise = true\nto = [\"handler\"]\n", args.account);
            text += "# Take the # away, and the handler's answer becomes the user's reply.\n# reply = \"handler\"\n";
        }
    }
    text += &format!("\n[targets.handler]\nurl = {}\nformat = \"json\"\n", quoted(&args.handler.to_string()));
    text
}

/// The routes that an account with an identity provider has by default, with `reply`, as a comment.
fn reply_routes(account: &str) -> String {
    format!(
        "\n# Without routes, follows and scans go to `login` and all else to `handler`, whose answers reach no user.\n\
         # Take the # of these lines away, and the handler's answers become replies.\n\
         # [[accounts.{account}.routes]]\n\
         # match = {{ event = [\"subscribe\", \"SCAN\"] }}\n\
         # to = [\"login\"]\n\
         # [[accounts.{account}.routes]]\n\
         # otherwise = true\n\
         # to = [\"handler\"]\n\
         # reply = \"handler\"\n"
    )
}

fn identity_target(args: &Args, provider: ProviderChoice) -> String {
    let name = provider.to_string().to_ascii_lowercase();
    let mut text = format!("\n[targets.login]\nrole = \"identity\"\nprovider = {}\n", quoted(&name));
    let fields = match provider {
        ProviderChoice::Authing | ProviderChoice::Genauth => {
            [("identifier", &args.identifier), ("user_pool_id", &args.user_pool_id)]
        }
        ProviderChoice::Bamboocloud => [("domain", &args.domain), ("idp_id", &args.idp_id)],
    };
    for (key, value) in fields {
        text += &format!("{key} = {}\n", quoted(value.as_deref().unwrap_or_default()));
    }
    text
}

/// A TOML basic string: its escapes include all of JSON's.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// The operator's next steps, in order.
fn steps(args: &Args, dir: &Path, token: &str, key: &str) -> String {
    let file = dir.join("config.toml");
    let file = file.display();
    let mut text = format!("Written: {file}, and the secrets beside it. Only their owner can read them.\n");
    let mut number = 0;
    let mut step = |title: &str, body: &str| {
        number += 1;
        // Writing to a String cannot fail.
        writeln!(text, "\n{number}. {title}\n{body}").ok();
    };
    if args.app_id.is_none() {
        let page = console_page(&APP_ID);
        step("Set your AppID", &format!("   app_id in config.toml, instead of {PLACEHOLDER}. Find it at\n{page}"));
    }
    step(
        "Check, start and try it",
        &format!(
            "   wxrelay check -c {file}\n   wxrelay serve -c {file}\n   \
             In another terminal, instead of your handler:\n   \
             wxrelay sink\n   \
             In a third, instead of WeChat:\n   \
             wxrelay simulate -c {file} verify\n   \
             wxrelay simulate -c {file} text hello"
        ),
    );
    step(
        "Make it reachable",
        &format!(
            "   WeChat calls port 80 or 443 only. Forward {}{} to {}\n   \
             by a reverse proxy that keeps the query and does not redirect, or set `tls` in [server].",
            args.public_url.trim_end_matches('/'),
            args.path,
            args.listen
        ),
    );
    step("Enter it in WeChat's console while the relay runs: saving sends a verification", &console(args, token, key));
    step("Identity provider", &provider_step(args.provider));
    text
}

fn console(args: &Args, token: &str, key: &str) -> String {
    let mode = match args.mode {
        Mode::Plaintext => "明文模式 (plaintext)",
        Mode::Compatible => "兼容模式 (compatible)",
        Mode::Secure => "安全模式 (secure)",
    };
    let key = if args.mode == Mode::Plaintext { "any: not used in plaintext mode" } else { key };
    format!(
        "{}\n   \
         服务器地址(URL)                 {}{}\n   \
         令牌(Token)                     {token}\n   \
         消息加解密密钥(EncodingAESKey)  {key}\n   \
         消息加解密方式                  {mode}\n   \
         Saving switches off the auto-replies and menus that were made in the console.",
        console_page(&SERVER_SETTINGS),
        args.public_url.trim_end_matches('/'),
        args.path,
    )
}

/// The new and the old path of a page, one line each.
fn console_page(page: &ConsolePage) -> String {
    format!("   {}\n   (accounts that still see the old console: {})", page.path, page.old_path)
}

fn provider_step(provider: Option<ProviderChoice>) -> String {
    let Some(provider) = provider else {
        return "   None yet: your handler gets every event. For logins by Authing, GenAuth or BambooCloud run `init` again\n   \
                with --provider, or add [targets.login] with role = \"identity\"."
            .to_owned();
    };
    let page = match provider {
        ProviderChoice::Authing | ProviderChoice::Genauth => {
            "the connection \"WeChat Official Account QR code\" (微信公众号关注登录)"
        }
        ProviderChoice::Bamboocloud => {
            "the authentication source WeChat, scenario Official Account Authorization Login"
        }
    };
    format!(
        "   In {provider}: {page}.\n   \
         AppID, 令牌(Token), 消息加解密密钥(EncodingAESKey) and 消息加解密方式 are the same as in WeChat's console, letter for letter.\n   \
         Do not enter its callback URL in WeChat's console: the relay forwards follows and scans to it.\n   \
         Add {provider}'s outgoing addresses to WeChat's IP白名单 (IP list), at\n{}",
        console_page(&DEVELOPER_KEYS),
    )
}

fn name(text: &str) -> Result<String, &'static str> {
    let sound = !text.is_empty() && text.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'_' | b'-'));
    if sound { Ok(text.to_owned()) } else { Err("expected lower-case letters, digits, `_` and `-`") }
}

/// IDs and host names, without characters that have a meaning in URLs.
fn word(text: &str) -> Result<String, &'static str> {
    let sound = !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.:".contains(&b));
    if sound { Ok(text.to_owned()) } else { Err("expected letters, digits, `-`, `_`, `.` and `:`") }
}

fn url_path(text: &str) -> Result<String, &'static str> {
    let sound = text.starts_with('/') && text.bytes().all(|b| b.is_ascii_graphic() && !b"?#\"\\".contains(&b));
    if sound { Ok(text.to_owned()) } else { Err("expected a path such as /wechat/events") }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use clap::Parser;
    use figment::Figment;
    use figment::providers::{Format, Toml};

    use super::*;

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
        let text = config(&args(&[&flags[..], &provider].concat()), Path::new("/srv/wx \"1\""));
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
    fn the_commented_routes_let_the_handler_reply() {
        let provider = ["--provider", "authing", "--identifier", "my-conn", "--user-pool-id", "p1"];
        for (flags, route) in [(&[][..], "0"), (&provider[..], "1")] {
            let text = config(&args(flags), Path::new("/srv"));
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

    #[test]
    fn without_provider_everything_goes_to_the_handler() {
        let text = config(&args(&["--mode", "plaintext"]), Path::new("/etc/wxrelay"));
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
    fn a_provider_asks_for_its_ids() {
        for flags in [&["--provider", "authing"][..], &["--provider", "bamboocloud", "--domain", "d.example"]] {
            assert!(InitCommand::try_parse_from(["init"].iter().chain(flags)).is_err(), "{flags:?}");
        }
    }

    #[test]
    fn the_steps_name_the_consoles_fields() {
        let flags = ["--public-url", "https://wx.example.com/", "--provider", "genauth", "--identifier", "i"];
        let text = steps(&args(&[&flags[..], &["--user-pool-id", "p"]].concat()), Path::new("/d"), "TTT", "KKK");
        for part in
            ["https://wx.example.com/wechat/events", "令牌(Token)", "TTT", "KKK", "安全模式", "GenAuth", "AppID"]
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
}
