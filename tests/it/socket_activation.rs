//! With systemd's sockets, a restart under load refuses no connection and loses no event.
//!
//! `systemd-socket-activate` listens and passes the socket to a shell loop, which restarts the relay whenever it exits,
//! as systemd does. Where the tool is missing, the test is skipped; in CI that is a failure.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

use crate::support::command::{Running, free_address, run, wxrelay};
use crate::support::program::is_missing;
use crate::support::storm::{SENDERS, Storm};
use crate::support::target::Target;
use crate::support::wechat::WeChat;

#[tokio::test]
async fn a_restart_under_load_refuses_nothing_and_loses_nothing() {
    if is_missing("systemd-socket-activate") {
        return;
    }
    let (wechat, crm) = (WeChat::secure(), Target::start().await);
    let relay = Supervised::start(&(wechat.account() + &crm.config("crm", ""))).await;
    let storm = Storm::begin(&relay.address, &wechat);

    relay.ready(1).await;
    // Stops during the load, right after the start, and during the load again.
    for (life, pushes) in [(1, 40), (2, 40), (3, 0), (4, 1), (5, 40)] {
        storm.answered(pushes).await;
        relay.signal(life, Signal::TERM);
        assert_eq!(relay.ended(life).await, 0);
        relay.ready(life + 1).await;
    }
    storm.answered(40).await;
    assert_eq!(storm.failures(), Vec::<String>::new(), "every push is answered 200 at its first try");

    relay.signal(6, Signal::KILL);
    assert_eq!(relay.ended(6).await, 128 + 9);
    relay.ready(7).await;
    storm.answered(40).await;
    let failures = storm.failures();
    assert!(failures.len() <= SENDERS, "only what was under way at that moment may be cut off: {failures:?}");

    let (pushed, longest) = storm.end().await;
    println!("{} pushes, {} cut off by SIGKILL, the longest wait {longest:?}", pushed.len(), failures.len());
    let audit = relay.settled(pushed.len()).await;
    assert_eq!(audit["delivered"], pushed.len(), "each event once, whatever was pushed again: {audit}");
    let delivered = crm.deliveries();
    let delivered: BTreeSet<_> = delivered.iter().map(|one| one.json()["xml"].as_str().map(str::to_owned)).collect();
    assert_eq!(delivered, pushed.into_iter().map(Some).collect());
    relay.stop(7).await;
}

/// A relay that is restarted whenever it exits, behind a socket that stays open.
struct Supervised {
    address: String,
    folder: TempDir,
    running: Option<Running>,
}

/// A supervisor in place of systemd: the socket is descriptor 3, and LISTEN_PID is the relay's process.
const SUPERVISOR: &str = r#"
    while [ ! -e "$3" ]; do
        sh -c 'echo "life $$"; export LISTEN_PID=$$; exec "$0" serve -c "$1"' "$1" "$2"
        echo "ended $?"
    done
"#;

impl Supervised {
    /// Returns once the socket exists; the first connection starts the relay.
    async fn start(accounts_and_targets: &str) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let address = free_address();
        let queue = folder.path().join("queue");
        let config = format!(
            "[server]\nlisten = [\"systemd\"]\n[admin]\nlisten = \"127.0.0.1:0\"\n[queue]\npath = \"{}\"\n\
             {accounts_and_targets}",
            queue.display()
        );
        fs::write(config_in(folder.path()), config).expect("the config can be written");
        let mut command = Command::new("systemd-socket-activate");
        command.args(["-l", &address, "sh", "-c", SUPERVISOR, "sh", env!("CARGO_BIN_EXE_wxrelay")]);
        command.arg(config_in(folder.path())).arg(folder.path().join("stop")).stdin(Stdio::null());
        let running = Running::spawn(command);
        running.find("the socket", |line| line.starts_with("Listening").then_some(())).await;
        Self { address, folder, running: Some(running) }
    }

    /// Waits until the relay of that number, from 1, is ready.
    async fn ready(&self, life: usize) {
        self.nth(life, &format!("life {life} gets ready"), |line| {
            let line: Value = serde_json::from_str(line).ok()?;
            (line["message"] == "ready").then_some(())
        })
        .await;
    }

    /// Waits until the relay of that number exits; returns its exit code in the shell.
    async fn ended(&self, life: usize) -> i32 {
        self.nth(life, &format!("life {life} ends"), |line| line.strip_prefix("ended ")?.parse().ok()).await
    }

    fn signal(&self, life: usize, signal: Signal) {
        let pid = self.pids().get(life - 1).copied().expect("that relay was started");
        kill_process(pid, signal).expect("the relay can be signalled");
    }

    /// The relays so far; all but the last have ended.
    fn pids(&self) -> Vec<Pid> {
        let lines = self.running.as_ref().map(Running::lines).unwrap_or_default();
        lines.iter().filter_map(|line| Pid::from_raw(line.strip_prefix("life ")?.parse().ok()?)).collect()
    }

    async fn nth<T>(&self, number: usize, what: &str, mut pick: impl FnMut(&str) -> Option<T>) -> T {
        let mut left = number;
        let running = self.running.as_ref().expect("it runs");
        running
            .find(what, |line| {
                let found = pick(line)?;
                left -= 1;
                (left == 0).then_some(found)
            })
            .await
    }

    /// Waits until that many deliveries have ended; returns the audit.
    async fn settled(&self, count: usize) -> Value {
        let what = format!("{count} events are delivered");
        crate::support::eventually(&what, async || {
            let mut audit = wxrelay(["audit", "--json", "-c"]);
            audit.arg(config_in(self.folder.path()));
            let finished = run(audit).await;
            assert_eq!(finished.code, Some(0), "the audit is clean: {finished:?}");
            let audit: Value = serde_json::from_str(&finished.stdout).expect("the audit is JSON");
            (audit["pending"] == 0 && audit["events"].as_u64() >= Some(count as u64)).then_some(audit)
        })
        .await
    }

    /// Ends the last relay, and the supervisor with it.
    async fn stop(mut self, life: usize) {
        fs::write(self.folder.path().join("stop"), "").expect("the folder can be written to");
        self.signal(life, Signal::TERM);
        assert_eq!(self.ended(life).await, 0);
        assert_eq!(self.running.take().expect("it runs").end().await, Some(0));
    }
}

impl Drop for Supervised {
    fn drop(&mut self) {
        // After a failed test no relay may remain. The supervisor still runs, so no other process has its id.
        if self.running.is_some() {
            drop(fs::write(self.folder.path().join("stop"), ""));
            if let Some(last) = self.pids().pop() {
                kill_process(last, Signal::KILL).ok();
            }
        }
    }
}

fn config_in(folder: &Path) -> std::path::PathBuf {
    folder.join("config.toml")
}
