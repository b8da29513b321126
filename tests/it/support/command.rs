//! Runs the built binary: to its end, or beside the test.
//!
//! Only children that were started here are ended, by handle.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Read};
use std::net::{IpAddr, Ipv4Addr, TcpListener};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

use rustix::process::{Pid, Signal, kill_process};
use tokio::sync::watch;
use tokio::time;

use super::{TIMEOUT, soon};

/// Exit code and output of a finished command.
#[derive(Clone, Debug)]
pub(crate) struct Finished {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// The built binary, without variables of this process that would configure it.
pub(crate) fn wxrelay<A: AsRef<OsStr>>(args: impl IntoIterator<Item = A>) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_wxrelay"));
    command.args(args).stdin(Stdio::null());
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("WXRELAY") || text.starts_with("LISTEN_") || text == "NOTIFY_SOCKET" || text == "RUST_LOG" {
            command.env_remove(&name);
        }
    }
    command
}

/// The command under the shell's `ulimit` with these arguments. The shell becomes the command, so the process id stays.
pub(crate) fn limited(command: Command, arguments: &str) -> Command {
    let mut shell = Command::new("sh");
    shell.arg("-c").arg(format!("ulimit {arguments}; exec \"$0\" \"$@\""));
    shell.arg(command.get_program()).args(command.get_args()).stdin(Stdio::null());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => shell.env(name, value),
            None => shell.env_remove(name),
        };
    }
    shell
}

/// Runs a command to its end.
pub(crate) async fn run(mut command: Command) -> Finished {
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the binary starts");
    let pid = Pid::from_child(&child);
    let end = tokio::task::spawn_blocking(move || child.wait_with_output());
    let Ok(output) = time::timeout(TIMEOUT * 3, end).await else {
        // The child is not reaped yet, so its id cannot be reused.
        kill_process(pid, Signal::KILL).expect("the command can be ended");
        panic!("{command:?} does not end");
    };
    let output = output.expect("the waiting thread lives").expect("the output can be read");
    Finished {
        code: output.status.code(),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// A command that runs beside the test; its output is kept line by line. Ended with SIGKILL when dropped.
pub(crate) struct Running {
    child: Child,
    lines: Arc<Mutex<Vec<String>>>,
    /// How many pipes are still open; a message for every line.
    activity: watch::Receiver<usize>,
}

impl Running {
    pub(crate) fn spawn(mut command: Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the binary starts");
        let (sender, activity) = watch::channel(2);
        let (sender, lines) = (Arc::new(sender), Arc::default());
        collect(child.stdout.take().expect("a pipe"), &sender, &lines);
        collect(child.stderr.take().expect("a pipe"), &sender, &lines);
        Self { child, lines, activity }
    }

    /// Its process id.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Every line so far, of both stdout and stderr.
    pub(crate) fn lines(&self) -> Vec<String> {
        self.lines.lock().expect("no reader panics").clone()
    }

    /// Stops reading its output until the result is dropped.
    pub(crate) fn stop_reading(&self) -> impl Drop + '_ {
        self.lines.lock().expect("no reader panics")
    }

    /// The first value that `pick` returns for a line; fails if the command ends without one.
    pub(crate) async fn find<T>(&self, what: &str, mut pick: impl FnMut(&str) -> Option<T>) -> T {
        let (mut activity, mut seen) = (self.activity.clone(), 0);
        let search = async {
            loop {
                let open = *activity.borrow_and_update();
                let lines = self.lines();
                if let Some(found) = lines[seen..].iter().find_map(|line| pick(line)) {
                    return Some(found);
                }
                seen = lines.len();
                if open == 0 || activity.changed().await.is_err() {
                    return None;
                }
            }
        };
        match time::timeout(TIMEOUT, search).await {
            Ok(Some(found)) => found,
            Ok(None) => panic!("ended without {what}:\n{}", self.lines().join("\n")),
            Err(_) => panic!("no {what} in {TIMEOUT:?}:\n{}", self.lines().join("\n")),
        }
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).expect("the child can be signalled");
    }

    /// Waits for the end and returns the exit code.
    pub(crate) async fn end(mut self) -> Option<i32> {
        let lines = Arc::clone(&self.lines);
        let what =
            move || format!("the command ends; its output:\n{}", lines.lock().expect("no reader panics").join("\n"));
        soon(&what(), self.activity.wait_for(|open| *open == 0)).await.expect("the readers report their end");
        self.child.wait().expect("the child can be waited for").code()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Both fail only if the child has ended already.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn collect(pipe: impl Read + Send + 'static, sender: &Arc<watch::Sender<usize>>, lines: &Arc<Mutex<Vec<String>>>) {
    let (sender, lines) = (Arc::clone(sender), Arc::clone(lines));
    thread::spawn(move || {
        for line in BufReader::new(pipe).split(b'\n').map_while(Result::ok) {
            lines.lock().expect("no test panics with it").push(String::from_utf8_lossy(&line).into_owned());
            sender.send_modify(|_| {});
        }
        sender.send_modify(|open| *open -= 1);
    });
}

/// An address that no other process uses, for commands that need to know an address beforehand.
///
/// Another process could take a free port first, so the host is an address of 127.0.0.0/8 that only this process uses.
pub(crate) fn free_address() -> String {
    static NEXT: AtomicU8 = AtomicU8::new(1);
    let [.., high, low] = std::process::id().to_be_bytes();
    let host = IpAddr::V4(Ipv4Addr::new(127, high | 1, low, NEXT.fetch_add(1, Ordering::Relaxed)));
    let listener = TcpListener::bind((host, 0)).expect("a loopback address can be bound");
    listener.local_addr().expect("a bound socket has an address").to_string()
}
