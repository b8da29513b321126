//! The operators' pages stay correct: every command in `docs/*.md` is run, every configuration is checked, every link
//! resolves, and both languages have the same structure.
//!
//! The info string of a fenced block selects how it is checked: `sh` is run beside a running relay, `sh stopped` beside
//! a store whose relay is stopped. `sh root` would change the machine: it is only parsed, and each line begins with a
//! program of [`ROOT`]. Programs that a test cannot run are replaced ([`STAND_INS`]). Blocks of another language, such
//! as input for a console, are not commands.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::support::command::{Finished, free_address, run, wxrelay};
use crate::support::pages::{Block, all_pages, anchors, blocks, links, pages, read, root};
use crate::support::program::is_missing;
use crate::support::relay::{Relay, Setup};
use crate::support::target::{Reaction, Reply, Target};
use crate::support::wechat::{WeChat, text};
use crate::tls::Certificate;

/// The programs that a line of a `sh root` block may begin with.
const ROOT: [&str; 7] = ["cargo", "deploy/build.sh", "docker", "sha256sum", "sudo", "systemctl", "tar"];
/// Programs that do nothing in these tests. `sudo` runs its command.
const STAND_INS: [&str; 3] = ["systemctl", "journalctl", "docker"];

const URLS: [&str; 2] = ["https://relay.example.com", "https://your.domain"];
const EVENT: &str = "evt_1a1fe9c9a6a00000";
const AES_KEY: &str = "abcdefghijklmnopqrstuvwxyz0123456789ABCDEFG";
const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
/// A key for `queue.encryption_keys`.
const STORE_KEY: &str = "MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE=";

#[tokio::test]
async fn every_command_is_run() {
    if ["bash", "sqlite3", "curl"].into_iter().any(is_missing) {
        return;
    }
    let mut done = 0;
    for page in pages().into_iter().filter(|page| !page.ends_with(".zh-CN.md")) {
        for block in blocks(&read(&page), "sh") {
            let what = format!("{page}, line {}", block.line);
            let finished = match &*block.scene {
                "" => Scene::start().await.run(&block.text).await,
                "stopped" => Scene::stopped().await.run(&block.text).await,
                "root" => look_at(&what, &block.text).await,
                other => panic!("{what}: no scene is named {other}"),
            };
            assert_eq!(finished.code, Some(0), "{what}:\n{}\n{}\n{}", block.text, finished.stdout, finished.stderr);
            done += 1;
        }
    }
    assert!(done > 15, "only {done} blocks");
}

/// Commands in the text have placeholders for their values; `--help` checks their words and flags.
#[tokio::test]
async fn every_command_named_in_the_text_exists() {
    let mut named = BTreeSet::new();
    for line in pages().iter().flat_map(|page| read(page).lines().map(str::to_owned).collect::<Vec<_>>()) {
        let spans = line.split('`').skip(1).step_by(2);
        named.extend(spans.filter_map(|span| span.strip_prefix("wxrelay ")).map(str::to_owned));
    }
    for words in &named {
        let known = words.split(' ').map(|word| if word == "ID" { EVENT } else { word });
        let finished = run(wxrelay(known.chain(["--help"]))).await;
        assert_eq!(finished.code, Some(0), "wxrelay {words}: {}", finished.stderr);
    }
    assert!(named.len() > 10, "only {named:?}");
}

#[tokio::test]
async fn every_configuration_is_taken() {
    let (mut done, certificate) = (0, Certificate::new());
    for page in pages() {
        for block in blocks(&read(&page), "toml") {
            let folder = tempfile::tempdir().expect("a temporary folder");
            let finished = check(folder.path(), &block.text, &certificate).await;
            assert_eq!(finished.code, Some(0), "{page}, line {}: {}\n{}", block.line, block.text, finished.stderr);
            done += 1;
        }
    }
    assert!(done > 10, "only {done} blocks");
}

#[test]
fn each_page_says_the_same_in_both_languages() {
    for page in all_pages().into_iter().filter(|page| !page.ends_with(".zh-CN.md")) {
        let (english, chinese) = (read(&page), read(&page.replace(".md", ".zh-CN.md")));
        for kind in ["sh", "toml"] {
            let code = |text: &str| blocks(text, kind).iter().map(Block::code).collect::<Vec<_>>();
            assert_eq!(code(&english), code(&chinese), "{page}: blocks of {kind}");
        }
        let shape = |text: &str| ["| ", "## "].map(|head| text.lines().filter(|line| line.starts_with(head)).count());
        assert_eq!(shape(&english), shape(&chinese), "{page}: lines of tables, headings");
    }
}

#[test]
fn every_link_leads_somewhere() {
    let mut looked_at = 0;
    for page in all_pages() {
        for link in links(&read(&page)).into_iter().filter(|link| !link.starts_with("http")) {
            let (file, anchor) = link.split_once('#').unwrap_or((link.as_str(), ""));
            let path = Path::new(&page).parent().expect("a page is in a folder").join(file);
            let path = if file.is_empty() { PathBuf::from(&page) } else { path };
            assert!(root().join(&path).exists(), "{page}: {link}: no such file");
            let found = anchor.is_empty() || anchors(&read(&path.to_string_lossy())).contains(anchor);
            assert!(found, "{page}: {link}: no such heading");
            looked_at += 1;
        }
    }
    assert!(looked_at > 50, "only {looked_at} links");
}

#[test]
fn every_page_is_found_from_the_index_and_the_index_from_the_front_page() {
    for (index, front, tail) in
        [("docs/README.md", "README.md", ".md"), ("docs/README.zh-CN.md", "README.zh-CN.md", ".zh-CN.md")]
    {
        let listed = read(index);
        for page in pages().iter().filter(|page| page.ends_with(".zh-CN.md") == (tail == ".zh-CN.md")) {
            let name = page.trim_start_matches("docs/");
            assert!(index == page || listed.contains(&format!("({name})")), "{index} has no {name}");
        }
        assert!(read(front).contains(&format!("({index})")), "{front} has no link to {index}");
    }
}

#[test]
fn anchors_are_made_as_github_makes_them() {
    let made =
        anchors("# Nothing arrives: why?\n## 1. 切换（立即生效）\n```sh\n# no heading\n```\n### `audit` exits 1\n");
    assert_eq!(made, ["nothing-arrives-why", "1-切换立即生效", "audit-exits-1"].map(str::to_owned).into());
}

/// A relay with three targets, one delivered event and one dead letter; and the folder that the pages call
/// `/etc/wxrelay`.
struct Scene {
    relay: Relay,
    /// They answer until they are dropped.
    _targets: [Target; 3],
    folder: PathBuf,
    dead: String,
}

impl Scene {
    async fn start() -> Self {
        let (wechat, login, crm) = (WeChat::secure(), Target::start().await, Target::start().await);
        let legacy = Target::start().await;
        let routes = "[[accounts.shop.routes]]\nmatch = { event = [\"subscribe\", \"SCAN\"] }\nto = [\"login\"]\n\
                      [[accounts.shop.routes]]\notherwise = true\nto = [\"crm\"]\n";
        let body = [
            wechat.account(),
            routes.to_owned(),
            login.config("login", "role = \"identity\"\n"),
            crm.config("crm", ""),
            legacy.config("legacy", ""),
        ];
        let relay = Setup::new(body.concat()).admin_at(free_address()).start().await;
        crm.script([200, 410].map(|status| Reaction::Answer(Reply::status(status))));
        relay.accept(&wechat, &text("o1", "well")).await;
        relay.audited("delivered", 1).await;
        relay.accept(&wechat, &text("o1", "refused")).await;
        relay.audited("dead", 1).await;
        let dead = relay.get("/api/events?state=dead").await.json();
        let dead = dead["events"][0]["id"].as_str().expect("a dead letter has an id").to_owned();
        let folder = relay.store().parent().expect("the store is in the relay's folder").to_owned();
        programs(&folder.join("bin"));
        fs::create_dir(folder.join("backups")).expect("a folder can be made");
        Self { relay, _targets: [login, crm, legacy], folder, dead }
    }

    async fn stopped() -> Self {
        let mut scene = Self::start().await;
        scene.relay.stop().await;
        let backup = scene.folder.join("backups/wxrelay.db");
        fs::copy(scene.relay.store().join("wxrelay.db"), backup).expect("a stopped store is one file");
        scene
    }

    /// Runs a block unchanged except for the paths and addresses of this scene.
    async fn run(&self, script: &str) -> Finished {
        let Self { relay, folder, dead, .. } = self;
        let [folder_text, store] = [folder.clone(), relay.store()].map(|path| path.display().to_string());
        let mut script = script
            .replace("/etc/wxrelay", &folder_text)
            .replace("/var/lib/wxrelay", &store)
            .replace("/var/backups/wxrelay", &format!("{folder_text}/backups"))
            .replace("127.0.0.1:9180", &relay.admin)
            .replace(EVENT, dead);
        for url in URLS {
            script = script.replace(url, &format!("http://{}", relay.push));
        }
        // The doctor reports ports other than 80 and 443.
        let lenient = "wxrelay() { command wxrelay \"$@\" || { code=$?; [[ $1 == doctor && $code == 1 ]]; }; }";
        let mut bash = Command::new("bash");
        bash.args(["-euo", "pipefail", "-c", &format!("{lenient}\n{script}")]).current_dir(folder).env_clear();
        let path = std::env::var("PATH").expect("there is a PATH");
        bash.env("PATH", format!("{}:{path}", folder.join("bin").display())).stdin(Stdio::null());
        run(bash).await
    }
}

/// Writes `wxrelay`, `sudo` and the stand-ins into a folder.
fn programs(folder: &Path) {
    fs::create_dir(folder).expect("a folder can be made");
    symlink(env!("CARGO_BIN_EXE_wxrelay"), folder.join("wxrelay")).expect("a link can be made");
    let nothing = STAND_INS.map(|name| (name, "#!/bin/sh\n"));
    for (name, text) in nothing.into_iter().chain([("sudo", "#!/bin/sh\nexec env \"$@\"\n")]) {
        let path = folder.join(name);
        fs::write(&path, text).expect("a script can be written");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("a script can be made runnable");
    }
}

/// Checks a block without running it: its syntax, its programs, and the files of `deploy/` that it names.
async fn look_at(what: &str, script: &str) -> Finished {
    for line in script.lines().filter(|line| !line.starts_with(['#', ' '])) {
        let program = line.split(' ').next().unwrap_or_default();
        assert!(ROOT.contains(&program), "{what}: {program} is not in ROOT");
        for file in line.split([' ', '"', '\'']).filter(|word| word.starts_with("deploy/")) {
            assert!(root().join(file).exists(), "{what}: no {file}");
        }
    }
    let mut bash = Command::new("bash");
    bash.args(["-n", "-c", script]);
    run(bash).await
}

/// Checks a block of TOML. Adds an account and a target if it has none, and the secrets that it names.
async fn check(folder: &Path, block: &str, certificate: &Certificate) -> Finished {
    let mut config = block
        .replace("/etc/wxrelay", &folder.display().to_string())
        .replace("/etc/letsencrypt/live/relay.example.com/fullchain.pem", &certificate.cert())
        .replace("/etc/letsencrypt/live/relay.example.com/privkey.pem", &certificate.key());
    if !config.lines().any(|line| line.starts_with("[accounts.")) {
        config += "\n[accounts.shop]\npath = \"/wechat/events\"\napp_id = \"wx0123456789abcdef\"\n\
                   token = \"abc123\"\nmode = \"plaintext\"\n";
    }
    if !config.contains("[targets.") {
        config += "\n[targets.crm]\nurl = \"http://127.0.0.1:9000/wechat\"\n";
    }
    for file in named(&config, "verify_files = [\"") {
        fs::write(folder.join(file), "AbCd1234").expect("a verification file can be written");
    }
    let secrets = ["env", "file", "credential"].map(|kind| named(&config, &format!("{{ {kind} = \"")));
    let path = folder.join("config.toml");
    fs::write(&path, &config).expect("the config can be written");
    let mut command = wxrelay(["check", "-c"]);
    command.arg(&path).env("CREDENTIALS_DIRECTORY", folder);
    for name in secrets.iter().flatten() {
        let kind = name.to_lowercase();
        let value = if kind.contains("aes_key") {
            AES_KEY
        } else if kind.contains("secret") {
            SECRET
        } else if kind.contains("store-key") {
            STORE_KEY
        } else {
            "abcdefghijklmnopqrstuvwxyz123456"
        };
        command.env(name.replace('/', "_"), value);
        fs::write(folder.join(name), value).expect("a secret can be written");
    }
    run(command).await
}

/// The texts between each `before` and the next quotation mark.
fn named(text: &str, before: &str) -> Vec<String> {
    text.split(before).skip(1).filter_map(|rest| rest.split('"').next()).map(str::to_owned).collect()
}
