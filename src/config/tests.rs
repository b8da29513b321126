//! Loads whole files.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use super::routing_table::RoutingTable;
use super::*;
use crate::backoff::Schedule;
use crate::deliver::{Format, Role};
use crate::wechat::{Message, Mode};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");
const KEY: &str = "abcdefghijklmnopqrstuvwxyz0123456789ABCDEFG";
const SECRET: &str = "whsec_MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE=";

fn env(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    let secrets = [("SHOP_TOKEN", "0123"), ("SHOP_AES_KEY", KEY), ("CRM_SECRET", SECRET)];
    secrets.iter().chain(pairs).map(|&(name, text)| (name.to_owned(), text.to_owned())).collect()
}

fn data(name: &str) -> PathBuf {
    Path::new(ROOT).join("tests/data/config").join(name)
}

fn files(name: &str) -> Vec<PathBuf> {
    let mut files: Vec<_> = std::fs::read_dir(data(name)).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "toml"));
    // Without the engine, its only error is that it is not there.
    let is_of_postgres =
        |path: &PathBuf| path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"postgres"));
    files.retain(|path| cfg!(feature = "postgres") || !is_of_postgres(path));
    files.sort();
    files
}

fn loaded(path: &Path, pairs: &[(&str, &str)]) -> Config {
    load(Some(path), env(pairs), &[]).unwrap_or_else(|errors| panic!("{}: {errors:#?}", path.display()))
}

fn messages(result: Result<Config, Vec<ConfigError>>) -> Vec<String> {
    result.unwrap_err().iter().map(ToString::to_string).collect()
}

fn written(text: &str) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("config.toml");
    std::fs::write(&path, text).unwrap();
    close(&path);
    (folder, path)
}

/// Removes all permissions of group and others.
fn close(path: &Path) {
    std::fs::set_permissions(path, Permissions::from_mode(0o600)).unwrap();
}

fn target<'c>(config: &'c Config, name: &str) -> &'c TargetSettings {
    config.targets.iter().find(|settings| &*settings.target.name == name).unwrap()
}

#[test]
fn every_valid_file_loads() {
    let files = files("valid");
    assert!(files.len() >= 4);
    for path in files {
        loaded(&path, &[]);
    }
}

#[test]
fn every_invalid_file_reports_all_its_errors_and_no_secret() {
    let files = files("invalid");
    assert!(files.len() >= 12);
    for path in files {
        let text = std::fs::read_to_string(&path).unwrap();
        let expected: Vec<_> = text.lines().filter_map(|line| line.strip_prefix("# expect: ")).collect();
        assert!(!expected.is_empty(), "{} expects nothing", path.display());
        let reported = messages(load(Some(&path), env(&[]), &[]));
        for part in &expected {
            assert!(
                reported.iter().any(|line| line.contains(part)),
                "{}: no `{part}` in {reported:#?}",
                path.display()
            );
        }
        assert_eq!(reported.len(), expected.len(), "{}: {reported:#?}", path.display());
        assert!(reported.iter().all(|line| !line.contains("hunter2")), "{}: {reported:#?}", path.display());
        assert!(reported.iter().all(|line| !line.contains("271828")), "{}: {reported:#?}", path.display());
        let name = path.display().to_string();
        assert!(reported.iter().all(|line| line.contains(&name)), "no origin: {reported:#?}");
    }
}

#[test]
fn the_example_loads_without_a_warning() {
    let config = loaded(&Path::new(ROOT).join("config.toml.example"), &[]);
    assert_eq!(config.warnings, Vec::<String>::new());
}

#[test]
fn the_example_names_every_key() {
    let (_folder, path) = written(
        "x = 1\n[server]\nx = 1\ntls = { x = 1, acme = { x = 1 } }\n[admin]\nx = 1\ntoken = { x = 1 }\n[queue]\nx = 1\ntls = { x = 1 }\n[log]\nx = 1\n\
         [telemetry]\nx = 1\n[targets.a]\nx = 1\n[accounts.a]\nx = 1\nallow_from = { x = 1 }\n[logins.a]\nx = 1\n[[accounts.a.routes]]\nx = 1\nmatch = { x = 1 }\n\
         reply = { x = 1, image = { x = 1 }, video = { x = 1 }, music = { x = 1 }, news = { x = 1 }, \
         transfer_customer_service = { x = 1 } }\n",
    );
    let example = std::fs::read_to_string(Path::new(ROOT).join("config.toml.example")).unwrap();
    let errors = load(Some(&path), env(&[]), &[]).unwrap_err();
    let known = errors.iter().filter_map(|error| match &error.problem {
        Problem::UnknownKey { known, .. } => Some(*known),
        _ => None,
    });
    let known: Vec<_> = known.collect();
    assert_eq!(known.len(), 22, "one list for each kind of table");
    for key in known.concat() {
        let written = [format!("{key} = "), format!("[{key}"), format!(".{key}]"), format!("# {key}.")];
        assert!(written.iter().any(|text| example.contains(text)), "the example lacks `{key}`");
    }
}

#[test]
fn the_example_shows_the_defaults() {
    let (_folder, path) = written(
        "[accounts.shop]\npath = \"/wechat/events\"\napp_id = \"wx0123456789abcdef\"\ntoken = { env = \"SHOP_TOKEN\" }\n\
         encoding_aes_key = { env = \"SHOP_AES_KEY\" }\n\
         [targets.login]\nprovider = \"authing\"\nidentifier = \"my-connection\"\nuser_pool_id = \"0123456789abcdef\"\n\
         [targets.crm]\nurl = \"http://127.0.0.1:9000/wechat\"\nformat = \"json\"\nsecret = { env = \"CRM_SECRET\" }\n",
    );
    let (bare, mut full) = (loaded(&path, &[]), loaded(&Path::new(ROOT).join("config.toml.example"), &[]));
    full.accounts[0].routes = bare.accounts[0].routes.clone();
    let same = |name| format!("{:?}", target(&bare, name)) == format!("{:?}", target(&full, name));
    assert!(same("login") && same("crm"));
    assert_eq!(format!("{:?}", bare.accounts), format!("{:?}", full.accounts));
    let parts = |config: &Config| format!("{:?} {:?} {:?} {:?}", config.server, config.admin, config.queue, config.log);
    assert_eq!(parts(&bare), parts(&full));
    assert_eq!(bare.telemetry, full.telemetry);
}

#[test]
fn the_command_line_is_over_the_environment_and_that_over_the_file() {
    let (_folder, path) = written(
        "[server]\ndrain = \"1s\"\nmax_body = \"2KiB\"\n[log]\nformat = \"text\"\n[accounts.shop]\npath = \"/wx\"\n\
         app_id = \"wx0\"\ntoken = \"abc\"\nmode = \"plaintext\"\n",
    );
    let pairs = [("WXRELAY__SERVER__DRAIN", "2s"), ("WXRELAY__SERVER__MAX_BODY", "4096"), ("WXRELAY_CONFIG", "x")];
    let config = load(Some(&path), env(&pairs), &[("server.drain", "3s")]).unwrap();
    assert_eq!(config.server.drain, Duration::from_secs(3));
    assert_eq!(config.server.max_body, 4096);
    assert!(matches!(config.log.format, Some(telemetry::LogFormat::Text)));
    let plain = load(Some(&path), env(&[]), &[]).unwrap();
    assert_eq!(plain.sha256.len(), 64);
    assert_ne!(plain.sha256, config.sha256);
}

#[test]
fn digits_in_the_environment_stay_text() {
    let pairs = [
        ("WXRELAY__ACCOUNTS__SHOP__PATH", "/wx"),
        ("WXRELAY__ACCOUNTS__SHOP__APP_ID", "0123456789"),
        ("WXRELAY__ACCOUNTS__SHOP__TOKEN", "00123"),
        ("WXRELAY__ACCOUNTS__SHOP__MODE", "plaintext"),
        ("WXRELAY__TARGETS__CRM__URL", "http://a"),
        ("WXRELAY__TARGETS__CRM__CONCURRENCY", "7"),
        ("WXRELAY__TARGETS__CRM__RETRY", "[1s, 2s]"),
        ("WXRELAY__SERVER__HTTP2", "true"),
        ("WXRELAY__SERVER__LISTEN", "127.0.0.1:0"),
    ];
    let config = load(None, env(&pairs), &[]).unwrap();
    let account = &config.accounts[0];
    assert_eq!(account.credentials.token.expose(), "00123");
    assert_eq!(&*account.credentials.app_id, "0123456789");
    assert!(config.server.http2);
    let crm = target(&config, "crm");
    assert_eq!(crm.concurrency, 7);
    assert_eq!(crm.retry, Schedule::ending(vec![Duration::from_secs(1), Duration::from_secs(2)]));
}

#[test]
fn a_list_of_secrets_may_come_from_the_environment_too() {
    let list = format!("[\"{SECRET}\", {{ env = \"CRM_SECRET\" }}]");
    let pairs = [("WXRELAY__TARGETS__CRM__SECRET", list.as_str())];
    let config = loaded(&Path::new(ROOT).join("config.toml.example"), &pairs);
    assert_eq!(target(&config, "crm").target.signing_keys.len(), 2);
}

#[test]
fn a_mistake_in_the_environment_names_the_variable() {
    let pairs = [("WXRELAY__TARGETS__CRM__TIMEOUT", "soon"), ("WXRELAY__TARGETS__CRM__TIMOUT", "1s")];
    let reported = messages(load(Some(&data("valid/mode2.toml")), env(&pairs), &[]));
    assert_eq!(reported.len(), 2, "{reported:#?}");
    let timeout = reported.iter().find(|line| line.starts_with("targets.crm.timeout: found `soon`")).unwrap();
    assert!(timeout.ends_with("(environment variable WXRELAY__TARGETS__CRM__TIMEOUT)"), "{timeout}");
    assert!(reported.iter().any(|line| line.ends_with("WXRELAY__TARGETS__CRM__TIMOUT)")), "{reported:#?}");
}

#[test]
fn secrets_come_from_files_and_credentials_without_their_line_end() {
    let (folder, path) = written(
        "[accounts.shop]\npath = \"/wx\"\napp_id = \"wx0\"\nmode = \"plaintext\"\n\
         token = { env = \"NOT_THERE\" }\nprevious_token = { credential = \"old\" }\n",
    );
    std::fs::write(folder.path().join("new"), "0123abc\r\n").unwrap();
    std::fs::write(folder.path().join("old"), "old\n").unwrap();
    let pairs =
        [("WXRELAY__ACCOUNTS__SHOP__TOKEN__FILE", "new"), ("CREDENTIALS_DIRECTORY", folder.path().to_str().unwrap())];
    let config = loaded(&path, &pairs);
    let credentials = &config.accounts[0].credentials;
    assert_eq!(credentials.token.expose(), "0123abc");
    assert_eq!(credentials.previous_token.as_ref().unwrap().expose(), "old");
    let beside = load(Some(&path), env(&pairs[..1]), &[]).unwrap();
    assert_eq!(beside.accounts[0].credentials.previous_token.as_ref().unwrap().expose(), "old");
    assert!(beside.warnings.iter().any(|line| line.contains("previous_token")), "its permissions are checked");
    std::fs::remove_file(folder.path().join("old")).unwrap();
    let reported = messages(load(Some(&path), env(&[]), &[])).join("\n");
    assert!(
        reported.contains("NOT_THERE is not set") && reported.contains("CREDENTIALS_DIRECTORY is not set"),
        "{reported}"
    );
}

#[test]
fn a_missing_file_is_an_error_with_a_remedy() {
    let reported = messages(load(Some(Path::new("/nowhere/wxrelay.toml")), env(&[]), &[]));
    assert!(reported[0].starts_with("/nowhere/wxrelay.toml: cannot read this file"), "{reported:?}");
    assert!(reported[0].contains("wxrelay init"), "{reported:?}");
}

#[test]
fn the_file_named_on_the_command_line_comes_first() {
    let given = Path::new("/a.toml");
    assert_eq!(locate(Some(given), Some("/b.toml")).as_deref(), Some(given));
    assert_eq!(locate(None, Some("/b.toml")).as_deref(), Some(Path::new("/b.toml")));
}

#[test]
fn identifiers_make_the_providers_urls() {
    let login = |path: &str| target(&loaded(&data(path), &[]), "login").target.clone();
    let genauth = login("valid/mode2.toml");
    let url = "https://core.genauth.ai/connections/social/my-connection/0123456789abcdef/events";
    assert_eq!(genauth.url.to_string(), url);
    assert_eq!((genauth.role, genauth.format), (Role::Identity, Format::AuthingJson));
    let bamboocloud = login("valid/two-accounts.toml");
    assert_eq!(bamboocloud.url, "https://tenant.example.com:8443/api/v1/callback/wechatmpqr/42");
    assert_eq!(bamboocloud.format, Format::Raw);
}

#[test]
fn a_provider_of_the_operator_gets_what_it_takes() {
    let config = loaded(&data("valid/own-providers.toml"), &[]);
    let login = &target(&config, "login").target;
    assert_eq!((login.url.to_string().as_str(), login.role), ("http://127.0.0.1:8000/api/webhook", Role::Identity));
    assert_eq!((login.format, login.credentials.mode), (Format::Wechat, Some(Mode::Plaintext)));
    assert!(login.bare_scene && login.answers.delivered_if.is_some());
    let codes = &target(&config, "codes").target;
    assert_eq!(codes.url, "http://127.0.0.1:3000/api/wechat");
    let plan = |text: &str| {
        let message = Message::parse(format!("<xml>{text}</xml>").as_bytes()).unwrap();
        let plan = config.accounts[0].routes.plan(&message);
        let asked = plan.reply.map(|rule| rule.asked.iter().map(|name| name.to_string()).collect::<Vec<_>>());
        (plan.targets.iter().map(|name| name.to_string()).collect::<Vec<_>>(), asked.unwrap_or_default())
    };
    let to =
        |target: &str, asked: &[&str]| (vec![target.to_owned()], asked.iter().map(|&name| name.to_owned()).collect());
    let scan = "<MsgType>event</MsgType><Event>SCAN</Event><EventKey>admin/provider_wechat</EventKey>";
    assert_eq!(plan(scan), to("login", &[]));
    let follow = "<MsgType>event</MsgType><Event>subscribe</Event><EventKey>qrscene_admin/provider_wechat</EventKey>";
    assert_eq!(plan(follow), to("login", &[]));
    assert_eq!(plan(&scan.replace("admin/", "shop/")), to("crm", &[]));
    assert_eq!(plan("<MsgType>text</MsgType><Content>验证码</Content>"), to("codes", &["codes"]));
    assert_eq!(plan("<MsgType>text</MsgType><Content>hello</Content>"), to("crm", &[]));
}

#[test]
fn a_fixed_text_that_is_cut_is_a_warning() {
    let text = std::fs::read_to_string(data("valid/own-providers.toml")).unwrap();
    for (bytes, is_warned) in [(2048, false), (2049, true)] {
        let route =
            format!("[[accounts.shop.routes]]\notherwise = true\nreply = {{ text = \"{}\" }}\n", "a".repeat(bytes));
        let (_folder, path) = written(&(text.clone() + &route));
        let warnings = loaded(&path, &[]).warnings.join("\n");
        assert_eq!(warnings.contains("reply.text: longer than 2048 bytes"), is_warned, "{bytes}: {warnings}");
    }
}

#[test]
fn a_route_to_a_provider_that_takes_something_else_is_a_warning() {
    let text = std::fs::read_to_string(data("valid/own-providers.toml")).unwrap();
    let routes = "[[accounts.shop.routes]]\nmatch = { event = \"SCAN\" }\nto = [\"login\"]\n\
                  [[accounts.shop.routes]]\notherwise = true\nto = [\"codes\", \"crm\"]\n";
    let (_folder, path) = written(&(text.clone() + routes));
    let warnings = loaded(&path, &[]).warnings.join("\n");
    assert!(warnings.contains("accounts.shop.routes[0]: Casdoor refuses"), "{warnings}");
    let with_scene = |scene: &str| routes.replace("\"SCAN\" }", &format!("\"SCAN\", scene = \"{scene}\" }}"));
    for (scene, is_warned) in [("admin/provider_wechat", false), ("provider_wechat", true)] {
        let (_folder, path) = written(&(text.clone() + &with_scene(scene)));
        let warnings = loaded(&path, &[]).warnings.join("\n");
        assert_eq!(warnings.contains("Casdoor refuses"), is_warned, "{scene}: {warnings}");
    }
    assert!(warnings.contains("accounts.shop.routes[1]: wechat-server sends its code as a reply"), "{warnings}");
}

#[test]
fn probable_mistakes_are_warnings() {
    let (_folder, path) = written(
        "[admin]\ntoken = \"short\"\n[accounts.shop]\npath = \"/wx\"\napp_id = \"wx0\"\ntoken = \"abc\"\nmode = \"plaintext\"\n\
         [[accounts.shop.routes]]\nmatch = { event = \"*\" }\nto = [\"a\"]\n\
         [accounts.twin]\npath = \"/twin\"\napp_id = \"wx0123456789abcdef\"\ntoken = \"abc\"\nmode = \"plaintext\"\n\
         [[accounts.twin.routes]]\notherwise = true\nto = [\"a\"]\n\
         [targets.a]\nurl = \"http://a\"\nexpire_after = \"1h\"\n[targets.b]\nurl = \"http://b\"\n",
    );
    let warnings = loaded(&path, &[]).warnings.join("\n");
    let expected = [
        "admin.token: a token of less than 16",
        "accounts.shop.mode: plaintext is",
        "accounts.shop.app_id: `wx0` is not `wx` and 16",
        "accounts.twin.mode: plaintext is",
        "accounts.twin.token: the same as accounts.shop.token",
        "accounts.shop.routes: without `otherwise",
        "targets.a.expire_after: a handler",
        "targets: none has role",
        "targets.b: no route names it",
    ];
    for part in expected {
        assert!(warnings.contains(part), "no `{part}` in {warnings}");
    }
    assert_eq!(warnings.lines().count(), expected.len(), "{warnings}");
}

#[test]
fn debug_shows_no_secret_of_any_key_that_may_hold_one() {
    const WORDS: [&str; 8] =
        ["hunter2a", "hunter2b", "hunter2c", "hunter2d", "hunter2e", "hunter2f", "hunter2g", "hunter2h"];
    let [admin, token, previous, own, header, id, collector, customer] = WORDS;
    let (old, legacy) = (KEY.replace("abc", "xyz"), KEY.replace("abc", "uvw"));
    let (new, second) = (SECRET, "whsec_YWJjZGVmZ2hpamtsbW5vcHFyc3R1dnd4eXowMTIzNDU=");
    let store = "YSBrZXkgb2YgdGhpcnR5LXR3byBieXRlcywgbm8gbGU=";
    let (_folder, path) = written(&format!(
        "[admin]\ntoken = \"{admin}{admin}\"\n[queue]\nencryption_keys = [\"{store}\"]\n[accounts.shop]\npath = \"/wx\"\napp_id = \"wx0\"\ntoken = \"{token}\"\n\
         previous_token = \"{previous}\"\nencoding_aes_key = \"{KEY}\"\nprevious_encoding_aes_key = \"{old}\"\n\
         [targets.legacy]\nurl = \"http://a\"\nformat = \"wechat\"\ntoken = \"{own}\"\nencoding_aes_key = \"{legacy}\"\n\
         secret = [\"{new}\", \"{second}\"]\nheaders = {{ x-api-key = \"{header}\" }}\n\
         [telemetry]\notlp = \"http://b/{customer}\"\nheaders = {{ authorization = \"{collector}\" }}\n"
    ));
    let env = env(&[]).into_iter().map(|(name, text)| (name, text.into())).collect();
    let layers = Layers::read(Some(&path), &env, &[]).unwrap();
    let config = loaded(&path, &[]);
    let shown = format!("{:?} {config:#?} {:?}", layers.parse().file, RoutingTable::of(&config));
    assert!(shown.contains("MASKED") && shown.contains("wx0") && !shown.contains(id));
    for secret in WORDS.into_iter().chain([KEY, &old, &legacy, new, second, store]) {
        assert!(!shown.contains(secret), "{secret} in {shown}");
    }
}
