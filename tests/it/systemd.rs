//! systemd: it accepts the units and rates them as hardened, passes sockets by name, and gets the relay's status.
//!
//! `systemd-socket-activate` starts the relay with a notify socket that the test reads. Where systemd's tools are
//! missing, the tests are skipped; in CI that is a failure.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rcgen::{CertifiedKey, generate_simple_self_signed};
use rustix::process::Signal;
use tempfile::TempDir;
use tokio::net::UnixDatagram;

use crate::support::command::{Running, free_address, run};
use crate::support::program::is_missing;
use crate::support::target::Target;
use crate::support::wechat::{PATH, WeChat, text};
use crate::support::{http, soon};

const UNITS: [&str; 3] = ["wxrelay.service", "wxrelay.socket", "wxrelay-http.socket"];
/// Those that tell a robot when the relay is not ready.
const WATCH: [&str; 3] = ["wxrelay-watch.timer", "wxrelay-watch.service", "wxrelay-notify@.service"];

#[tokio::test]
async fn systemd_takes_the_units_as_they_are_and_finds_them_hardened() {
    if is_missing("systemd-analyze") {
        return;
    }
    let folder = tempfile::tempdir().expect("a temporary folder");
    let script = folder.path().join("wxrelay-notify");
    fs::copy(Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/systemd/wxrelay-notify"), &script).expect("a copy");
    let mut units: Vec<_> = UNITS.iter().map(|name| unit(folder.path(), name)).collect();
    units.extend(WATCH.iter().map(|name| watch_unit(folder.path(), name, &script)));
    // A manual page that is not installed is no error of the unit.
    let mut verify = analyze();
    verify.args(["verify", "--man=no"]).args(&units);
    let finished = run(verify).await;
    let said = finished.stdout + &finished.stderr;
    // The check includes units of the machine that ours name; errors in those are not ours.
    let ours: Vec<_> = said.lines().filter(|line| line.contains("wxrelay")).collect();
    assert!(finished.code == Some(0) && ours.is_empty(), "{said}");

    let mut security = analyze();
    security.args(["security", "--offline=true", "--threshold=15"]).arg(&units[0]);
    let finished = run(security).await;
    assert_eq!(finished.code, Some(0), "exposure above 1.5: {}", finished.stdout);
    assert!(finished.stdout.contains("Overall exposure level"), "{finished:?}");
}

#[tokio::test]
async fn systemd_is_notified_from_start_to_stop() {
    if is_missing("systemd-socket-activate") {
        return;
    }
    let (wechat, crm) = (WeChat::secure(), Target::start().await);
    let relay = Service::start(&["http"], "", &(wechat.account() + &crm.config("crm", ""))).await;
    let answer = wechat.push(&text("o1", "hello")).send(&relay.addresses[0]).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    relay.printed("READY=1").await;
    relay.printed("STATUS=ready; 1 events, 0 pending, 0 dead").await;
    relay.printed("WATCHDOG=1").await;
    relay.printed("WATCHDOG=1").await;

    relay.running.signal(Signal::HUP);
    let reloading = relay.printed("RELOADING=1").await;
    let since = reloading.split_once("MONOTONIC_USEC=").expect("systemd wants the time beside it").1;
    assert!(since.trim().parse::<u64>().expect("a number") > 0, "{reloading}");
    relay.printed("READY=1").await;

    fs::write(&relay.config, "[server]\nlisten = 5").expect("the config can be written");
    relay.running.signal(Signal::HUP);
    relay.printed("RELOADING=1").await;
    relay.printed("READY=1").await;
    relay.printed("WATCHDOG=1").await;

    relay.running.signal(Signal::TERM);
    let stopping = relay.printed("STOPPING=1").await;
    assert!(stopping.contains("STATUS=draining"), "{stopping}");
    assert_eq!(relay.running.end().await, Some(0));
}

#[tokio::test]
async fn a_socket_named_http_stays_in_clear_beside_one_that_speaks_tls() {
    if is_missing("systemd-socket-activate") {
        return;
    }
    let (wechat, crm, folder) = (WeChat::secure(), Target::start().await, tempfile::tempdir().expect("a folder"));
    let (cert, key) = (folder.path().join("cert.pem"), folder.path().join("key.pem"));
    let CertifiedKey { cert: made, signing_key } =
        generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate can be made");
    fs::write(&cert, made.pem()).expect("the certificate can be written");
    fs::write(&key, signing_key.serialize_pem()).expect("the key can be written");
    let tls = format!("tls = {{ cert = \"{}\", key = \"{}\" }}", cert.display(), key.display());
    let relay = Service::start(&["https", "http"], &tls, &(wechat.account() + &crm.config("crm", ""))).await;
    let answer = wechat.push(&text("o1", "hello")).send(&relay.addresses[1]).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    let request = wechat.push(&text("o1", "hello again")).request(PATH);
    let answer = http::try_exchange(&relay.addresses[0], &request).await;
    assert!(answer.is_err(), "the other speaks TLS alone: {answer:?}");
    relay.running.signal(Signal::TERM);
    assert_eq!(relay.running.end().await, Some(0));
}

/// A relay that `systemd-socket-activate` starts with the first connection.
struct Service {
    running: Running,
    addresses: Vec<String>,
    notify: UnixDatagram,
    config: PathBuf,
    _folder: TempDir,
}

impl Service {
    /// Returns when the sockets of those names exist.
    async fn start(names: &[&str], server: &str, accounts_and_targets: &str) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let (config, socket) = (folder.path().join("config.toml"), folder.path().join("notify"));
        let queue = folder.path().join("queue");
        let text = format!(
            "[server]\nlisten = [\"systemd\"]\n{server}\n[admin]\nlisten = \"127.0.0.1:0\"\n[queue]\npath = \"{}\"\n\
             {accounts_and_targets}",
            queue.display()
        );
        fs::write(&config, text).expect("the config can be written");
        let notify = UnixDatagram::bind(&socket).expect("a socket can be bound");
        let addresses: Vec<_> = names.iter().map(|_| free_address()).collect();
        let mut command = Command::new("systemd-socket-activate");
        command.args(addresses.iter().flat_map(|address| ["-l", address]));
        command.arg(format!("--fdname={}", names.join(":")));
        command.arg(format!("-ENOTIFY_SOCKET={}", socket.display())).arg("-EWATCHDOG_USEC=400000");
        command.arg(env!("CARGO_BIN_EXE_wxrelay")).arg("serve").arg("-c").arg(&config).stdin(Stdio::null());
        let running = Running::spawn(command);
        for _ in names {
            running.find("the socket", |line| line.starts_with("Listening").then_some(())).await;
        }
        Self { running, addresses, notify, config, _folder: folder }
    }

    /// The next message with this prefix; others before it are skipped.
    async fn printed(&self, beginning: &str) -> String {
        let mut buffer = [0; 4096];
        soon(&format!("systemd is notified with {beginning}"), async {
            loop {
                let length = self.notify.recv(&mut buffer).await.expect("the socket can be read");
                let message = String::from_utf8_lossy(&buffer[..length]).into_owned();
                if message.starts_with(beginning) {
                    return message;
                }
            }
        })
        .await
    }
}

/// A shipped unit, with the built binary in place of the installed one. For a systemd without `notify-reload`, it is
/// changed as the drop-in does.
fn unit(folder: &Path, name: &str) -> PathBuf {
    let mut text = shipped(name).replace("ExecStart=wxrelay", concat!("ExecStart=", env!("CARGO_BIN_EXE_wxrelay")));
    if name.ends_with(".service") {
        assert!(text.contains("\nType=notify-reload\n") && text.contains(env!("CARGO_BIN_EXE_wxrelay")), "{text}");
        if systemd_version() < 253 {
            let older: Vec<_> = shipped("older-systemd.conf").lines().skip(2).map(str::to_owned).collect();
            text = text.replace("Type=notify-reload", &older.join("\n"));
        }
    }
    let path = folder.join(name);
    fs::write(&path, text).expect("the unit can be written");
    path
}

/// The same of a unit that runs a command of the relay, or the script that tells a robot.
fn watch_unit(folder: &Path, name: &str, script: &Path) -> PathBuf {
    let text = shipped(name)
        .replace("ExecStart=wxrelay", concat!("ExecStart=", env!("CARGO_BIN_EXE_wxrelay")))
        .replace("/usr/local/lib/wxrelay/wxrelay-notify", &script.to_string_lossy());
    let path = folder.join(name);
    fs::write(&path, text).expect("the unit can be written");
    path
}

fn shipped(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/systemd").join(name);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn systemd_version() -> u32 {
    let output = Command::new("systemd-analyze").arg("--version").output().expect("it runs");
    let text = String::from_utf8_lossy(&output.stdout);
    text.split_whitespace().nth(1).and_then(|word| word.parse().ok()).unwrap_or_else(|| panic!("no version in {text}"))
}

fn analyze() -> Command {
    let mut command = Command::new("systemd-analyze");
    command.env("SYSTEMD_PAGER", "");
    command
}
