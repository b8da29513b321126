//! A stop takes at most `server.drain` and a second, whatever hangs; a signal before the relay is ready is honoured.

use std::fs::{self, File, Permissions};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use rustix::fs::{CWD, Mode, OFlags};
use rustix::process::Signal;
use serde_json::Value;
use tokio::time::Instant;

use crate::support::command::{Running, wxrelay};
use crate::support::eventually;
use crate::support::hang::Hang;
use crate::support::http::Connection;
use crate::support::relay::{Relay, Setup};
use crate::support::target::{Reaction, Target};
use crate::support::wechat::{PATH, WeChat, text};

const DRAIN: &str = "drain = \"1s\"";
/// `DRAIN`, and the second that a stop may take beyond it.
const LIMIT: Duration = Duration::from_secs(2);

/// Sends SIGTERM; returns the exit code. The end of the process must come in time: its parent waits for nothing else.
async fn stop(relay: &mut Relay) -> Option<i32> {
    let begun = Instant::now();
    relay.signal(Signal::TERM);
    let code = relay.end().await;
    let took = begun.elapsed();
    assert!(took <= LIMIT, "the process ends after {took:?}");
    code
}

#[tokio::test]
async fn a_name_that_hangs_does_not_hold_up_the_end() {
    let Some(hang) = Hang::build() else { return };
    let wechat = WeChat::secure();
    let config = wechat.account() + "[targets.crm]\nurl = \"http://hangs.test/\"\nformat = \"json\"\n";
    let mut relay = hang.preload(Setup::new(config).server(DRAIN)).start().await;
    hang.names();
    for number in 0..8 {
        relay.accept(&wechat, &text("o1", &format!("number {number}"))).await;
    }
    assert_eq!(stop(&mut relay).await, Some(0), "the store is closed, so all was stopped");
    assert_eq!(relay.audit().await["pending"], 8);
}

#[tokio::test]
async fn a_stalled_flush_does_not_hold_up_the_end_and_is_no_clean_stop() {
    let Some(hang) = Hang::build() else { return };
    let (wechat, crm) = (WeChat::secure(), Target::start().await);
    let config = wechat.account() + &crm.config("crm", "");
    let mut relay = hang.preload(Setup::new(config).server(DRAIN)).start().await;
    relay.accept(&wechat, &text("o1", "stored")).await;
    relay.audited("delivered", 1).await;
    hang.flushes();
    let mut waiting = Connection::open(&relay.push).await.expect("the relay listens");
    waiting.write(&wechat.push(&text("o1", "not stored")).request(PATH)).await.expect("the relay reads");
    let running = relay.id();
    let begun = Instant::now();
    relay.signal(Signal::TERM);
    let line = relay.log("the line about it", |line| line["message"] == "stop incomplete, exiting").await;
    assert!(line["level"] == "ERROR" && line["remedy"].is_string(), "{line}");
    assert!(!relay.lines().iter().any(|line| line.contains("\"stopped\"")), "it has not stopped");
    assert_eq!(relay.end().await, Some(74));
    assert!(begun.elapsed() <= LIMIT, "the process {running} ends after {:?}", begun.elapsed());
    let answer = waiting.read().await;
    assert!(
        answer.is_err() || answer.is_ok_and(|answer| answer.status == 503),
        "what is not flushed is never answered"
    );
    hang.release_flushes();
    relay.restart().await;
    assert!(relay.audit().await["events"].as_u64() >= Some(1), "what was answered is stored; the other one may be");
}

#[tokio::test]
async fn clients_and_targets_that_hang_do_not_hold_up_the_end() {
    let (wechat, crm) = (WeChat::secure(), Target::always(Reaction::Hang).await);
    let mut relay = Setup::new(wechat.account() + &crm.config("crm", "")).server(DRAIN).start().await;
    relay.accept(&wechat, &text("o1", "hello")).await;
    crm.wait_for(1).await;
    let request = wechat.push(&text("o1", "half")).request(PATH);
    let forget = b"POST /api/events/forget HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n{";
    let tail = b"GET /api/tail HTTP/1.1\r\nHost: localhost\r\n\r\n";
    let mut open = Vec::new();
    for (address, bytes) in
        [(&relay.push, &request[..request.len() - 9]), (&relay.admin, &forget[..]), (&relay.admin, &tail[..])]
    {
        let mut connection = Connection::open(address).await.expect("the relay listens");
        connection.write(bytes).await.expect("the relay reads");
        open.push(connection);
    }
    assert_eq!(stop(&mut relay).await, Some(0));
    assert_eq!(relay.audit().await["pending"], 1);
}

#[tokio::test]
async fn a_stop_during_a_long_start_ends_it_well() {
    let Some(hang) = Hang::build() else { return };
    let (wechat, crm) = (WeChat::secure(), Target::start().await);
    let mut relay = hang.preload(Setup::new(wechat.account() + &crm.config("crm", ""))).start().await;
    relay.accept(&wechat, &text("o1", "hello")).await;
    relay.audited("delivered", 1).await;
    relay.kill().await;
    hang.flushes();
    let starting = relay.launch();
    eventually("the store is being opened", async || {
        let threads = format!("/proc/{}/task", starting.id());
        let wait = |task: fs::DirEntry| fs::read_to_string(task.path().join("wchan")).unwrap_or_default();
        let tasks = fs::read_dir(threads).ok()?.filter_map(Result::ok).map(wait);
        tasks.into_iter().any(|wait| wait.contains("nanosleep")).then_some(())
    })
    .await;
    let begun = Instant::now();
    starting.signal(Signal::TERM);
    assert_eq!(starting.end().await, Some(0));
    assert!(begun.elapsed() < Duration::from_secs(1), "it ends after {:?}", begun.elapsed());
    hang.release_flushes();
    relay.restart().await;
    relay.audited("delivered", 1).await;
}

/// A secret's file is a pipe, so the relay waits for the test while it reads its configuration.
#[tokio::test]
async fn a_signal_before_the_configuration_is_read_is_honoured() {
    let (wechat, crm) = (WeChat::secure(), Target::start().await);
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (config, pipe) = (folder.path().join("config.toml"), folder.path().join("token"));
    rustix::fs::mkfifoat(CWD, &pipe, Mode::RUSR | Mode::WUSR).expect("a pipe can be made");
    let text = format!(
        "[server]\nlisten = \"127.0.0.1:0\"\n[admin]\nlisten = \"127.0.0.1:0\"\ntoken = {{ file = \"{}\" }}\n\
         [queue]\npath = \"{}\"\n{}{}",
        pipe.display(),
        folder.path().join("queue").display(),
        wechat.account(),
        crm.config("crm", "")
    );
    fs::write(&config, text).expect("the config can be written");
    fs::set_permissions(&config, Permissions::from_mode(0o600)).expect("it holds secrets");
    let start = async || {
        let mut command = wxrelay(["serve", "-c"]);
        command.arg(&config);
        let running = Running::spawn(command);
        // Opening it fails until somebody reads.
        let opened = eventually("the relay reads its configuration", async || {
            rustix::fs::open(&pipe, OFlags::WRONLY | OFlags::NONBLOCK, Mode::empty()).ok()
        });
        (running, File::from(opened.await))
    };

    let (stopped, open) = start().await;
    stopped.signal(Signal::TERM);
    assert_eq!(stopped.end().await, Some(0));
    // Else the next reader would not see the end of the pipe.
    drop(open);

    let (running, mut token) = start().await;
    running.signal(Signal::HUP);
    token.write_all(b"the-Admin-token-of-this-relay").expect("the pipe is read");
    drop(token);
    let is_ready = |line: &str| serde_json::from_str::<Value>(line).is_ok_and(|line| line["message"] == "ready");
    running.find("the line that says ready", |line| is_ready(line).then_some(())).await;
    running.signal(Signal::TERM);
    assert_eq!(running.end().await, Some(0));
}
