//! `wxrelay top`: a live screen, as a terminal sees it.

use std::fs::File;
use std::io::{Read, Write};
use std::ops::{Deref, DerefMut};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;

use rustix::fs::OFlags;
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, Winsize, tcgetattr, tcsetwinsize};

use crate::support::command::{free_address, wxrelay};
use crate::support::relay::{Relay, Setup};
use crate::support::target::Target;
use crate::support::wechat::{WeChat, event, text};
use crate::support::{eventually, soon};

#[tokio::test]
async fn once_prints_one_frame_of_plain_text_that_fits_80_columns() {
    let (relay, wechat, _crm) = relay().await;
    relay.accept(&wechat, &text("o1", "hello")).await;
    relay.audited("delivered", 1).await;
    let shown = relay.run(&["top", "--once"]).await;
    assert_eq!(shown.code, Some(0), "{shown:?}");
    assert!(!shown.stdout.contains('\x1b'), "{shown:?}");
    assert!(shown.stdout.lines().all(|line| line.chars().count() <= 80), "{}", shown.stdout);
    let line = |name: &str| shown.stdout.lines().find(|line| line.starts_with(name)).map(str::to_owned);
    assert!(line("shop").is_some_and(|line| line.contains("secure")), "{}", shown.stdout);
    assert!(line("crm").is_some_and(|line| line.contains("up")), "{}", shown.stdout);
    assert!(shown.stdout.contains("delivered 1"), "{}", shown.stdout);
}

#[tokio::test]
async fn without_a_relay_once_fails_and_without_a_terminal_it_says_what_to_do() {
    let (mut relay, ..) = relay().await;
    let piped = relay.run(&["top"]).await;
    assert!(piped.code == Some(1) && piped.stderr.contains("--once"), "{piped:?}");
    relay.stop().await;
    let gone = relay.run(&["top", "--once"]).await;
    assert!(gone.code == Some(1) && gone.stderr.contains("no relay answers at admin.listen"), "{gone:?}");
}

#[tokio::test]
async fn the_screen_is_refreshed_outlives_its_relay_and_gives_the_terminal_back() {
    let (mut relay, wechat, _crm) = relay().await;
    let screen = Screen::open();
    let mut command = wxrelay(["top", "-c"]);
    command.arg(relay.config());
    let mut top = screen.run(command);
    screen.shows("waiting 0  delivered 0").await;
    assert!(screen.is_raw(), "keys are read one by one");
    relay.accept(&wechat, &event("o1", "SCAN", "login_7")).await;
    screen.shows("waiting 0  delivered 1").await;
    relay.stop().await;
    screen.shows("no relay answers at admin.listen").await;
    screen.shows("retrying every second").await;
    let before = screen.text().len();
    relay.restart().await;
    eventually("the frame again", async || screen.text()[before..].contains("TARGET").then_some(())).await;
    screen.press("q");
    let ended = tokio::task::spawn_blocking(move || top.wait().expect("it can be waited for"));
    assert!(soon("q ends it", ended).await.expect("no panic").success());
    screen.shows("\x1b[?1049l").await;
    assert!(!screen.is_raw(), "the terminal is as it was");
}

async fn relay() -> (Relay, WeChat, Target) {
    let (wechat, crm) = (WeChat::secure(), Target::start().await);
    let config = wechat.account() + &crm.config("crm", "");
    (Setup::new(config).admin_at(free_address()).start().await, wechat, crm)
}

/// A terminal of 80 columns and 24 lines, which keeps its output.
pub(crate) struct Screen {
    ours: File,
    theirs: File,
    shown: Arc<Mutex<Vec<u8>>>,
    reader: thread::JoinHandle<()>,
}

/// A program on a [`Screen`], killed where its test fails: it would hold the terminal, and with it the reader.
pub(crate) struct ShownProgram(Child);

impl Drop for ShownProgram {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

impl Deref for ShownProgram {
    type Target = Child;

    fn deref(&self) -> &Child {
        &self.0
    }
}

impl DerefMut for ShownProgram {
    fn deref_mut(&mut self) -> &mut Child {
        &mut self.0
    }
}

impl Screen {
    pub(crate) fn open() -> Self {
        let ours = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).expect("a terminal");
        grantpt(&ours).expect("it can be granted");
        unlockpt(&ours).expect("it can be unlocked");
        let name = ptsname(&ours, Vec::new()).expect("it has a name");
        let theirs = rustix::fs::open(name, OFlags::RDWR | OFlags::NOCTTY, rustix::fs::Mode::empty());
        let theirs = File::from(theirs.expect("it can be opened"));
        let size = Winsize { ws_row: 24, ws_col: 80, ws_xpixel: 0, ws_ypixel: 0 };
        tcsetwinsize(&theirs, size).expect("it takes a size");
        let (ours, shown) = (File::from(ours), Arc::<Mutex<Vec<u8>>>::default());
        let (mut reader, kept) = (ours.try_clone().expect("a second handle"), shown.clone());
        let reader = thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(length @ 1..) = reader.read(&mut bytes) {
                kept.lock().expect("no test panics with it").extend_from_slice(&bytes[..length]);
            }
        });
        Self { ours, theirs, shown, reader }
    }

    /// Runs a command to its end, with this terminal as its stdout; returns what was shown, and its stderr.
    pub(crate) async fn run_to_end(self, mut command: Command) -> (String, String) {
        let theirs = Stdio::from(self.theirs.try_clone().expect("a second handle"));
        let child = command.stdout(theirs).stderr(Stdio::piped()).spawn().expect("the binary starts");
        // Holds a handle of the terminal.
        drop(command);
        let ended = tokio::task::spawn_blocking(move || child.wait_with_output());
        let output = soon("the command ends", ended).await.expect("no panic").expect("it can be waited for");
        let Self { ours: _ours, theirs, shown, reader } = self;
        drop(theirs);
        soon("all of its output is read", tokio::task::spawn_blocking(|| reader.join())).await.ok();
        let shown = String::from_utf8_lossy(&shown.lock().expect("no reader panics")).into_owned();
        (shown, String::from_utf8_lossy(&output.stderr).into_owned())
    }

    pub(crate) fn run(&self, mut command: Command) -> ShownProgram {
        let theirs = || Stdio::from(self.theirs.try_clone().expect("a second handle"));
        ShownProgram(command.stdin(theirs()).stdout(theirs()).stderr(theirs()).spawn().expect("the binary starts"))
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.shown.lock().expect("no reader panics")).into_owned()
    }

    pub(crate) async fn shows(&self, what: &str) {
        eventually(&format!("`{what}` on the screen"), async || self.text().contains(what).then_some(())).await;
    }

    fn is_raw(&self) -> bool {
        !tcgetattr(&self.theirs).expect("it has settings").local_modes.contains(LocalModes::ICANON)
    }

    pub(crate) fn press(&self, keys: &str) {
        (&self.ours).write_all(keys.as_bytes()).expect("keys can be pressed");
    }
}
