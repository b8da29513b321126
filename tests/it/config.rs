//! The configuration: all errors at once, with key path and exit code 78; the routing table of a valid one.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use crate::support::command::{Finished, run, wxrelay};
use crate::support::wechat::{Mode, WeChat};

const TEN_MISTAKES: &str = r#"
[server]
max_body = "huge"
[admin]
listen = "0.0.0.0:9180"
[queue]
type = "embedded"
retention = "soon"
[log]
format = "yaml"
[accounts.shop]
path = "wechat"
app_id = "wx0123456789abcdef"
token = "x"
encoding_aes_key = "short"
mode = "secure"
colour = "red"
[targets.crm]
url = "ftp://127.0.0.1/hook"
[[accounts.shop.routes]]
otherwise = true
to = ["nobody"]
"#;

/// The key paths of the mistakes above.
const PATHS: [&str; 10] = [
    "server.max_body",
    "admin.",
    "queue.retention",
    "log.format",
    "accounts.shop.path",
    "accounts.shop.token",
    "accounts.shop.encoding_aes_key",
    "accounts.shop.colour",
    "targets.crm.url",
    "accounts.shop.routes",
];

#[tokio::test]
async fn ten_mistakes_print_ten_errors_and_exit_78() {
    let file = Config::new(TEN_MISTAKES);
    for command in ["check", "serve"] {
        let finished = file.run(command).await;
        assert_eq!(finished.code, Some(78), "{command}: {finished:?}");
        for path in PATHS {
            let lines = finished.stderr.lines().filter(|line| line.contains(path)).count();
            assert_eq!(lines, 1, "{command}: {path} in\n{}", finished.stderr);
        }
        let mut lines: Vec<_> = PATHS.iter().filter_map(|path| position(&finished.stderr, path)).collect();
        lines.sort_unstable();
        lines.dedup();
        assert_eq!(lines.len(), 10, "{command}: each on a line of its own:\n{}", finished.stderr);
    }
}

#[tokio::test]
async fn each_error_names_its_key_and_its_file() {
    let good = good();
    let cases = [
        ("accounts.shop.path", good.replace("\"/wechat/events\"", "\"wechat\"")),
        ("accounts.shop.encoding_aes_key", good.replace("ABCDEFG\"", "ABCDEF\"")),
        ("accounts.shop.mode", good.replace("\"secure\"", "\"safe\"")),
        ("targets.crm.timeout", format!("{good}timeout = \"fast\"\n")),
        ("targets.crm.fromat", format!("{good}fromat = \"json\"\n")),
        ("targets.crm.format", format!("{good}format = \"yaml\"\n")),
        ("targets.crm.url", good.replace("http://127", "127")),
        ("accounts.shop.routes[0].to", format!("{good}[[accounts.shop.routes]]\notherwise = true\nto = [\"cmr\"]\n")),
    ];
    for (path, toml) in cases {
        let file = Config::new(&toml);
        let finished = file.run("check").await;
        assert_eq!(finished.code, Some(78), "{path}: {finished:?}");
        assert!(finished.stderr.contains(path), "{path} in {}", finished.stderr);
        assert!(finished.stderr.contains("config.toml"), "the file of {path} in {}", finished.stderr);
    }
}

#[tokio::test]
async fn a_file_that_is_not_there_is_an_error_with_a_remedy() {
    let file = Config::new("");
    fs::remove_file(&file.path).expect("the file can be removed");
    let finished = file.run("check").await;
    assert_eq!(finished.code, Some(78), "{finished:?}");
    assert!(finished.stderr.contains("config.toml") && finished.stderr.contains("wxrelay init"), "{}", finished.stderr);
}

#[tokio::test]
async fn a_good_file_prints_the_routing_table() {
    let file = Config::new(&format!("{}[[accounts.shop.routes]]\notherwise = true\nto = [\"crm\"]\n", good()));
    let finished = file.run("check").await;
    assert_eq!(finished.code, Some(0), "{finished:?}");
    for part in ["shop", "/wechat/events", "crm", "http://127.0.0.1:9000/wechat", "secure"] {
        assert!(finished.stdout.contains(part), "{part} in {}", finished.stdout);
    }
}

#[tokio::test]
async fn the_environment_overrides_the_file() {
    let file = Config::new(&good());
    let mut command = wxrelay(["check", "-c"]);
    command.arg(&file.path).env("WXRELAY__TARGETS__CRM__URL", "http://127.0.0.1:9999/from-the-environment");
    let finished = run(command).await;
    assert_eq!(finished.code, Some(0), "{finished:?}");
    assert!(finished.stdout.contains("http://127.0.0.1:9999/from-the-environment"), "{}", finished.stdout);

    let mut command = wxrelay(["check", "-c"]);
    command.arg(&file.path).env("WXRELAY__TARGETS__CRM__TIMEOUT", "fast");
    let finished = run(command).await;
    assert_eq!(finished.code, Some(78), "{finished:?}");
    assert!(finished.stderr.contains("targets.crm.timeout"), "{}", finished.stderr);
}

#[tokio::test]
async fn a_number_from_the_environment_can_be_a_token() {
    let file = Config::new(&good().replace("token = \"pamtest\"\n", ""));
    let mut command = wxrelay(["check", "-c"]);
    command.arg(&file.path).env("WXRELAY__ACCOUNTS__SHOP__TOKEN", "00123456");
    let finished = run(command).await;
    assert_eq!(finished.code, Some(0), "{finished:?}");
}

#[tokio::test]
async fn secrets_come_from_the_environment_and_from_files() {
    let file = Config::new("");
    let key = WeChat::secure().aes_key;
    fs::write(file.dir.path().join("aes-key"), format!("{key}\n")).expect("the key can be written");
    let toml = good()
        .replace(&format!("\"{key}\""), "{ file = \"aes-key\" }")
        .replace("token = \"pamtest\"", "token = { env = \"SHOP_TOKEN\" }");
    fs::write(&file.path, toml).expect("the config can be written");
    let check = async |token: Option<&str>| {
        let mut command = wxrelay(["check", "-c"]);
        command.arg(&file.path).env_remove("SHOP_TOKEN").envs(token.map(|token| ("SHOP_TOKEN", token)));
        run(command).await
    };
    assert_eq!(check(Some("pamtest")).await.code, Some(0));
    let unset = check(None).await;
    assert_eq!(unset.code, Some(78), "{unset:?}");
    assert!(unset.stderr.contains("SHOP_TOKEN"), "{}", unset.stderr);
}

#[tokio::test]
async fn the_file_is_found_by_its_variable() {
    let file = Config::new(&good());
    let mut command = wxrelay(["check"]);
    command.env("WXRELAY_CONFIG", &file.path).current_dir("/");
    let finished = run(command).await;
    assert_eq!(finished.code, Some(0), "{finished:?}");
}

#[tokio::test]
async fn the_example_is_a_good_file() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("config.toml.example");
    let example = fs::read_to_string(&path).expect("config.toml.example is there");
    let mut command = wxrelay(["check", "-c"]);
    command.arg(&path).envs(variables(&example));
    let finished = run(command).await;
    assert_eq!(finished.code, Some(0), "{finished:?}");
}

/// A configuration file of its own.
struct Config {
    dir: TempDir,
    path: PathBuf,
}

impl Config {
    fn new(toml: &str) -> Self {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let path = dir.path().join("config.toml");
        fs::write(&path, toml).expect("the config can be written");
        Self { dir, path }
    }

    async fn run(&self, command: &str) -> Finished {
        let mut command = wxrelay([OsString::from(command), "-c".into()]);
        command.arg(&self.path);
        run(command).await
    }
}

/// One account and one handler; ends inside the handler's table.
fn good() -> String {
    WeChat::new(Mode::Secure).account() + "[targets.crm]\nurl = \"http://127.0.0.1:9000/wechat\"\n"
}

/// The number of the line that names a key.
fn position(text: &str, path: &str) -> Option<usize> {
    text.lines().position(|line| line.contains(path))
}

/// A value for every `{ env = "NAME" }` of a file, chosen by the name.
fn variables(toml: &str) -> Vec<(String, String)> {
    let names = toml.split("env = \"").skip(1).filter_map(|rest| rest.split_once('"')).map(|(name, _)| name);
    let value = |name: &str| match name {
        _ if name.contains("AES") => WeChat::secure().aes_key,
        _ if name.contains("SECRET") => "whsec_MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3".to_owned(),
        _ => "pamtest".to_owned(),
    };
    names.map(|name| (name.to_owned(), value(name))).collect()
}
