//! Secrets at rest and in memory: files that others may read are reported or refused, only the owner can read the
//! store, and no other process can read the relay's memory.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::process::{Signal, geteuid};
use tempfile::TempDir;

use crate::support::command::{Finished, Running, run, wxrelay};
use crate::support::eventually;
use crate::support::http::{get, post};
use crate::support::program::skip;
use crate::support::relay::Relay;
use crate::support::target::Target;
use crate::support::wechat::{WeChat, text};
use crate::tls::Certificate;

/// An arbitrary user, for a process that does not run as root.
const OTHER_USER: u32 = 65_534;

#[tokio::test]
async fn a_secret_file_that_others_may_read_is_warned_of_with_the_chmod_to_do() {
    let files = Files::new("");
    assert_eq!(files.check().await.stderr, "", "all are their owner's alone");
    for name in Files::NAMES {
        let path = files.path(name).display().to_string();
        for mode in [0o640, 0o604, 0o620, 0o644] {
            files.set(name, mode);
            let printed = files.check().await;
            assert_eq!(printed.code, Some(0), "{printed:?}");
            let expected = format!(
                ": {path} holds a secret that group or others may read or change (mode {mode:04o}); chmod 600 {path}\n"
            );
            assert!(
                printed.stderr.starts_with("warning: ") && printed.stderr.ends_with(&expected),
                "{name}: {}",
                printed.stderr
            );
            assert_eq!(printed.stderr.lines().count(), 1, "{}", printed.stderr);
        }
        files.set(name, 0o400);
        assert_eq!(files.check().await.stderr, "", "{name}");
        files.set(name, 0o600);
    }
}

#[tokio::test]
async fn a_secret_file_may_have_a_byte_order_mark_and_blanks_around_its_secret() {
    let files = Files::new("");
    let texts = [
        ("token", "\u{feff}pamtest \r\n\r\n"),
        ("aes-key", "\u{feff} KEY\t\n"),
        ("signing-secret", "\u{feff}SECRET  "),
    ];
    for (name, text) in texts {
        let secret = fs::read_to_string(files.path(name)).expect("it was written");
        let text = text.replace("KEY", secret.trim()).replace("SECRET", secret.trim());
        fs::write(files.path(name), text).expect("it can be changed");
    }
    let config = fs::read_to_string(files.path("config.toml")).expect("it was written");
    fs::write(files.path("config.toml"), format!("\u{feff}{config}")).expect("it can be changed");
    let printed = files.check().await;
    assert_eq!((printed.code, printed.stderr.as_str()), (Some(0), ""), "{printed:?}");
    for mark in [&b"\xff\xfe"[..], b""] {
        let utf_16: Vec<u8> = "pamtest\n".encode_utf16().flat_map(u16::to_le_bytes).collect();
        fs::write(files.path("token"), [mark, &utf_16].concat()).expect("it can be changed");
        let printed = files.check().await;
        assert_eq!(printed.code, Some(78), "{printed:?}");
        assert!(printed.stderr.contains("it is not UTF-8 but probably UTF-16; save it as UTF-8"), "{printed:?}");
    }
}

#[tokio::test]
async fn with_strict_such_a_file_is_an_error() {
    let files = Files::new("strict = true\n");
    assert_eq!((files.check().await.code, files.check().await.stderr), (Some(0), String::new()));
    for name in Files::NAMES {
        files.set(name, 0o644);
        for command in ["check", "serve"] {
            let printed = files.run(command).await;
            assert_eq!(printed.code, Some(78), "{command}, {name}: {printed:?}");
            let path = files.path(name).display().to_string();
            assert!(printed.stderr.contains(&format!("chmod 600 {path}")), "{name}: {}", printed.stderr);
        }
        files.set(name, 0o600);
    }
}

#[tokio::test]
async fn all_files_that_others_may_read_are_reported_at_once() {
    let files = Files::new("strict = true\n");
    Files::NAMES.iter().for_each(|name| files.set(name, 0o644));
    let printed = files.check().await;
    assert_eq!((printed.code, printed.stderr.lines().count()), (Some(78), Files::NAMES.len()), "{}", printed.stderr);
}

#[tokio::test]
async fn a_configuration_without_secrets_may_be_read_by_anybody() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("config.toml");
    let account = WeChat::secure().account().replace("\"pamtest\"", "{ env = \"SHOP_TOKEN\" }");
    let key = WeChat::secure().aes_key;
    let account = account.replace(&format!("\"{key}\""), "{ credential = \"key\" }");
    // A header that only identifies the client is no secret either.
    let target = "[targets.crm]\nurl = \"http://127.0.0.1:9000/\"\nheaders = { x-from = \"wxrelay\" }\n";
    let login = "[targets.login]\nrole = \"identity\"\nurl = \"http://127.0.0.1:9001/\"\n";
    fs::write(&path, account + target + login).expect("the config can be written");
    fs::set_permissions(&path, Permissions::from_mode(0o644)).expect("rights can be changed");
    fs::write(folder.path().join("key"), key).expect("the key can be written");
    let mut command = wxrelay(["check", "-c"]);
    command.arg(&path).env("SHOP_TOKEN", "pamtest").env("CREDENTIALS_DIRECTORY", folder.path());
    command.env("WXRELAY__ACCOUNTS__SHOP__PREVIOUS_TOKEN", "pamtest2");
    let printed = run(command).await;
    assert_eq!((printed.code, printed.stderr.as_str()), (Some(0), ""), "{printed:?}");
}

#[tokio::test]
async fn a_start_and_a_reload_warn_and_a_strict_reload_changes_nothing() {
    let (wechat, crm) = (WeChat::secure(), Target::start().await);
    let account = wechat.account().replace("\"pamtest\"", "{ file = \"token\" }");
    let mut relay = Relay::start(wechat.account() + &crm.config("crm", "")).await;
    let token = relay.config().with_file_name("token");
    let write = |mode| {
        fs::write(&token, "pamtest").expect("the token can be written");
        fs::set_permissions(&token, Permissions::from_mode(mode)).expect("rights can be changed");
    };
    write(0o644);
    relay.configure(account.clone() + &crm.config("crm", ""));
    assert_eq!(post(&relay.admin, "/api/reload").await.status, 200);
    let printed = format!("{} holds a secret", token.display());
    let warned = |line: &serde_json::Value| line["level"] == "WARN" && line.to_string().contains(&printed);
    relay.log("a warning at the reload", warned).await;
    relay.stop().await;
    relay.restart().await;
    relay.log("a warning at the start", warned).await;

    let generation = async |relay: &Relay| get(&relay.admin, "/api/status").await.json()["generation"].clone();
    let before = generation(&relay).await;
    let strict = fs::read_to_string(relay.config()).expect("the config can be read");
    fs::write(relay.config(), strict.replace("[admin]", "strict = true\n[admin]")).expect("it can be written");
    let refused = post(&relay.admin, "/api/reload").await;
    assert_eq!(refused.status, 422, "{}", refused.text());
    assert!(refused.text().contains("chmod 600"), "{}", refused.text());
    assert_eq!(generation(&relay).await, before);
    relay.accept(&wechat, &text("o1", "still served")).await;
    write(0o600);
    assert_eq!(post(&relay.admin, "/api/reload").await.status, 200);
}

#[tokio::test]
async fn the_store_is_its_owners_alone_whatever_the_umask() {
    let relay = Relay::start(WeChat::secure().account()).await;
    let (folder, config) = (tempfile::tempdir().expect("a temporary folder"), relay.config().to_owned());
    let store = folder.path().join("new/store");
    let mut shell = Command::new("sh");
    shell.args(["-c", "umask 0; exec \"$0\" serve -c \"$1\"", env!("CARGO_BIN_EXE_wxrelay")]).arg(config);
    shell.env("WXRELAY__QUEUE__PATH", &store);
    let running = Running::spawn(shell);
    let push = address(&running, "push").await;
    assert_eq!(WeChat::secure().push(&text("o1", "hello")).send(&push).await.status, 200);
    let mode = |path: &Path| fs::metadata(path).expect("it is there").permissions().mode() & 0o777;
    assert_eq!(mode(&store), 0o700);
    let mut looked_at = 0;
    for entry in fs::read_dir(&store).expect("the store can be read") {
        let path = entry.expect("an entry can be read").path();
        assert_eq!(mode(&path), 0o600, "{}", path.display());
        looked_at += 1;
    }
    assert!(looked_at >= 4, "database, log, index, lock: {looked_at}");
}

/// If a process may dump its memory, its user owns its files in /proc; otherwise root owns them, and the user cannot
/// open them.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn no_core_is_dumped_and_nobody_but_root_looks_into_the_process() {
    let (folder, user) = (tempfile::tempdir().expect("a temporary folder"), user());
    fs::set_permissions(folder.path(), Permissions::from_mode(0o755)).expect("rights can be changed");
    // In a folder that this user may enter, as the build's folder may not be one.
    let binary = folder.path().join("wxrelay");
    fs::copy(env!("CARGO_BIN_EXE_wxrelay"), &binary).expect("the binary can be copied");
    let config = folder.path().join("config.toml");
    let listen = "[server]\nlisten = [\"127.0.0.1:0\"]\n[admin]\nlisten = \"127.0.0.1:0\"\n[queue]\npath = \"store\"\n";
    fs::write(&config, listen.to_owned() + &WeChat::secure().account()).expect("the config can be written");
    let store = folder.path().join("store");
    fs::create_dir(&store).expect("a folder can be made");
    for path in [&config, &store] {
        chown(path, Some(user), None).expect("an owner can be given");
    }
    let mut command = Command::new(&binary);
    command.args(["serve", "-c"]).arg(&config).current_dir(folder.path());
    let running = Running::spawn(as_user(command, user));
    let admin = address(&running, "admin").await;
    let mut sleep = Command::new("sleep");
    sleep.arg("600");
    let other = Running::spawn(as_user(sleep, user));

    let owner =
        |running: &Running, file: &str| fs::metadata(format!("/proc/{}/{file}", running.id())).expect("it runs").uid();
    let may_read = async |running: &Running, file: &str| {
        let mut cat = Command::new("cat");
        cat.arg(format!("/proc/{}/{file}", running.id())).current_dir("/");
        run(as_user(cat, user)).await.code == Some(0)
    };
    for file in ["environ", "mem", "maps"] {
        assert_eq!(owner(&running, file), 0, "{file} is root's");
        if user != 0 {
            assert_eq!(owner(&other, file), user, "the control: {file} is its user's");
        }
    }
    for file in ["environ", "maps"] {
        assert!(may_read(&other, file).await, "the control: {file} can be read by its user");
        assert!(!may_read(&running, file).await, "{file}");
    }
    let limits = fs::read_to_string(format!("/proc/{}/limits", running.id())).expect("it runs");
    let core = limits.lines().find(|line| line.starts_with("Max core file size")).expect("a limit");
    assert_eq!(core.split_whitespace().skip(4).collect::<Vec<_>>(), ["0", "0", "bytes"]);

    // It can still read its own process metrics.
    let metrics = get(&admin, "/metrics").await;
    for name in ["process_resident_memory_bytes", "process_open_fds", "process_max_fds", "process_start_time_seconds"] {
        assert!(metrics.text().contains(&format!("\n{name} ")), "{name}");
    }
    running.signal(Signal::TERM);
    assert_eq!(running.end().await, Some(0));
}

/// Reads the process's memory as root, the only user who may.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn secrets_of_files_that_a_reload_replaces_are_wiped_from_memory() {
    let (wechat, crm) = (WeChat::secure(), Target::start().await);
    let account = wechat.account().replace("\"pamtest\"", "{ file = \"token\" }");
    let account = account.replace(&format!("\"{}\"", wechat.aes_key), "{ file = \"aes-key\" }");
    let mut relay = Relay::start(wechat.account() + &crm.config("crm", "")).await;
    if in_memory(&relay, "").is_none() {
        skip("a process's memory cannot be read: neither root nor sudo without a password");
        return;
    }
    relay.configure(account + &crm.config("crm", "secret = { file = \"signing-secret\" }"));
    let old = [
        ("token", "AnOldTokenToBeWiped1234"),
        ("aes-key", "AnOldKeyToBeWipedefghijklmnopqrstuvwxyz0123"),
        ("signing-secret", "whsec_QW5PbGRTaWduaW5nU2VjcmV0VG9CZVdpcGVkISE="),
    ];
    let new = ["ANewToken", wechat.aes_key.as_str(), "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"];
    let reload = async |texts: [&str; 3]| {
        for ((name, _), text) in old.iter().zip(texts) {
            let path = relay.config().with_file_name(name);
            fs::write(&path, text).expect("a secret can be written");
            fs::set_permissions(&path, Permissions::from_mode(0o600)).expect("rights can be changed");
        }
        assert_eq!(post(&relay.admin, "/api/reload").await.status, 200);
    };
    reload(old.map(|(_, text)| text)).await;
    let found = |text: &str| in_memory(&relay, text).expect("it could be read before");
    assert!(found(old[0].1) > 0, "the control: the token in use is found");
    reload(new).await;
    for (name, text) in old {
        eventually(&format!("the old {name} is wiped"), async || (found(text) == 0).then_some(())).await;
    }
    assert!(found(new[0]) > 0, "the control: the new token in use is found");
}

/// How often a text occurs in the relay's writable memory; `None` if the test cannot become root.
fn in_memory(relay: &Relay, text: &str) -> Option<usize> {
    let pid = relay.id();
    let maps = as_root(&["cat", &format!("/proc/{pid}/maps")])?;
    let Some(first) = text.bytes().next() else { return Some(0) };
    let mut found = 0;
    for line in String::from_utf8_lossy(&maps).lines().filter(|line| line.contains(" rw")) {
        let (from, to) = line.split_once(' ').and_then(|(range, _)| range.split_once('-')).expect("a range");
        let [from, to] = [from, to].map(|end| u64::from_str_radix(end, 16).expect("hex"));
        let (input, skip, count) =
            (format!("if=/proc/{pid}/mem"), format!("skip={from}"), format!("count={}", to - from));
        // A mapping that was removed meanwhile counts as empty.
        let words = ["dd", &input, &skip, &count, "bs=1M", "iflag=skip_bytes,count_bytes", "status=none"];
        let bytes = as_root(&words).unwrap_or_default();
        let mut rest = bytes.as_slice();
        while let Some(place) = rest.iter().position(|byte| *byte == first) {
            found += usize::from(rest[place..].starts_with(text.as_bytes()));
            rest = &rest[place + 1..];
        }
    }
    Some(found)
}

/// The output of a command as root: directly, or by sudo without a password.
fn as_root(command: &[&str]) -> Option<Vec<u8>> {
    [&[][..], &["sudo", "-n"]].iter().find_map(|prefix| {
        let words = [prefix, command].concat();
        let output = Command::new(words[0]).args(&words[1..]).stdin(Stdio::null()).output().ok()?;
        output.status.success().then_some(output.stdout)
    })
}

/// A user that is not root.
fn user() -> u32 {
    let own = geteuid().as_raw();
    if own == 0 { OTHER_USER } else { own }
}

fn as_user(mut command: Command, user: u32) -> Command {
    if geteuid().is_root() {
        command.uid(user).gid(user);
    }
    command.stdin(Stdio::null());
    command
}

async fn address(running: &Running, listener: &'static str) -> String {
    let listening = |line: &str| {
        let line: serde_json::Value = serde_json::from_str(line).ok()?;
        let found = line["message"] == "listening" && line["listener"] == listener;
        found.then(|| line["address"].as_str().map(str::to_owned))?
    };
    let found = running.find("an address", listening).await;
    running.find("ready", |line| line.contains("\"ready\"").then_some(())).await;
    found
}

/// A configuration with every kind of file that holds a secret, each of mode 600.
struct Files {
    folder: TempDir,
    certificate: Certificate,
}

impl Files {
    const NAMES: [&str; 6] = ["config.toml", "token", "aes-key", "signing-secret", "key.pem", "client.pem"];

    fn new(server: &str) -> Self {
        let (folder, certificate) = (tempfile::tempdir().expect("a temporary folder"), Certificate::new());
        let (wechat, cert) = (WeChat::secure(), certificate.cert());
        let account = wechat.account().replace("\"pamtest\"", "{ file = \"token\" }");
        let account = account.replace(&format!("\"{}\"", wechat.aes_key), "{ file = \"aes-key\" }");
        let config = format!(
            "[server]\n{server}tls = {{ cert = \"{cert}\", key = \"key.pem\" }}\n{account}\
             [targets.login]\nrole = \"identity\"\nurl = \"https://a.example/\"\nheaders = {{ authorization = \"Basic eDp5\" }}\n\
             client_cert = \"{cert}\"\nclient_key = \"client.pem\"\n\
             [targets.crm]\nurl = \"http://127.0.0.1:9000/\"\nsecret = [{{ file = \"signing-secret\" }}]\n"
        );
        let key = fs::read_to_string(certificate.key()).expect("the key can be read");
        let files = Self { folder, certificate };
        let texts = [&config, "pamtest\n", &wechat.aes_key, "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", &key, &key];
        for (name, text) in Self::NAMES.iter().zip(texts) {
            fs::write(files.path(name), text).expect("a file can be written");
            files.set(name, 0o600);
        }
        files
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn set(&self, name: &str, mode: u32) {
        fs::set_permissions(self.path(name), Permissions::from_mode(mode)).expect("rights can be changed");
    }

    async fn check(&self) -> Finished {
        self.run("check").await
    }

    async fn run(&self, command: &str) -> Finished {
        assert!(Path::new(&self.certificate.cert()).exists());
        let mut command = wxrelay([command, "-c"]);
        command.arg(self.path("config.toml"));
        run(command).await
    }
}
