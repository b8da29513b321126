//! The built binary, `wxrelay serve`, at its default log level with its log in a file, as an operator runs it.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout};

/// How long a start and a stop may take before the benchmark gives up.
const START_TIMEOUT: Duration = Duration::from_secs(60);

/// A running relay; killed when dropped.
pub(crate) struct Relay {
    child: Child,
    folder: PathBuf,
    /// The address for pushes.
    pub(crate) push: SocketAddr,
    /// The address of the admin listener.
    pub(crate) admin: SocketAddr,
    /// From the start of the process until `/readyz` answered 200.
    pub(crate) ready_after: Duration,
}

/// Resident memory, in bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Memory {
    pub(crate) now: u64,
    /// Its peak.
    pub(crate) peak: u64,
}

impl Relay {
    /// Starts it on the folder, which holds its store and log; `queue` are keys of `[queue]`, `config` is accounts and
    /// targets.
    pub(crate) async fn start(folder: &Path, queue: &str, config: &str) -> Self {
        Self::start_with(folder, "", queue, config).await
    }

    /// The same with keys of `[server]`.
    pub(crate) async fn start_with(folder: &Path, server: &str, queue: &str, config: &str) -> Self {
        Self::start_limited(folder, server, queue, config, None).await
    }

    /// The same with a limit of open files, soft and hard.
    pub(crate) async fn start_limited(
        folder: &Path,
        server: &str,
        queue: &str,
        config: &str,
        files: Option<u64>,
    ) -> Self {
        let queue = format!("path = \"{}\"\n{queue}", folder.join("queue").display());
        Self::run(folder, server, &queue, config, files).await
    }

    /// Starts it on PostgreSQL; the folder holds its log.
    pub(crate) async fn start_on_postgres(folder: &Path, url: &str, config: &str) -> Self {
        let queue = format!("type = \"postgres\"\nurl = \"{url}\"\ntls = \"off\"\nstandby = \"none\"\n");
        Self::run(folder, "", &queue, config, None).await
    }

    async fn run(folder: &Path, server: &str, queue: &str, config: &str, files: Option<u64>) -> Self {
        let file = folder.join("config.toml");
        let text = format!(
            "[server]\nlisten = [\"127.0.0.1:0\"]\n{server}[admin]\nlisten = \"127.0.0.1:0\"\n\
             [queue]\n{queue}\n{config}"
        );
        fs::write(&file, text).expect("the folder can be written");
        let log = folder.join("log");
        File::create(&log).expect("the folder can be written");
        let stderr = OpenOptions::new().append(true).open(&log).expect("the log can be opened");
        let mut command = match files {
            None => Command::new(binary()),
            Some(files) => {
                let mut shell = Command::new("sh");
                shell.arg("-c").arg(format!("ulimit -n {files}; exec \"$0\" \"$@\"")).arg(binary());
                shell
            }
        };
        command.args(["serve", "-c"]).arg(&file).stdin(Stdio::null()).stdout(Stdio::null()).stderr(stderr);
        let begun = Instant::now();
        let child = command.spawn().expect("the binary starts");
        let nowhere = SocketAddr::from(([127, 0, 0, 1], 0));
        let mut relay =
            Self { child, folder: folder.to_owned(), push: nowhere, admin: nowhere, ready_after: Duration::ZERO };
        let ready = timeout(START_TIMEOUT, relay.listening(&log)).await;
        ready.unwrap_or_else(|_| panic!("the relay does not get ready; see {}", log.display()));
        relay.ready_after = begun.elapsed();
        relay
    }

    async fn listening(&mut self, log: &Path) {
        while self.push.port() == 0 || self.admin.port() == 0 {
            sleep(Duration::from_millis(1)).await;
            let text = fs::read_to_string(log).expect("the log can be read");
            for line in text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok()) {
                let address = || line["address"].as_str().and_then(|text| text.parse().ok());
                match line["listener"].as_str() {
                    Some("push") => self.push = address().expect("a TCP address"),
                    Some("admin") => self.admin = address().expect("a TCP address"),
                    Some(_) | None => {}
                }
            }
        }
        while self.get("/readyz").await.is_none() {
            sleep(Duration::from_millis(1)).await;
        }
    }

    /// The body of the admin listener's answer, if that is 200.
    pub(crate) async fn get(&self, path: &str) -> Option<String> {
        self.ask("GET", path).await
    }

    /// The same for a request with this method, and no body.
    pub(crate) async fn ask(&self, method: &str, path: &str) -> Option<String> {
        let mut stream = TcpStream::connect(self.admin).await.ok()?;
        let request = format!("{method} {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", self.admin);
        stream.write_all(request.as_bytes()).await.ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.ok()?;
        let (head, body) = answer.split_once("\r\n\r\n")?;
        head.starts_with("HTTP/1.1 200").then(|| body.to_owned())
    }

    /// The sum of a metric's samples.
    pub(crate) async fn metric(&self, name: &str) -> f64 {
        let text = self.get("/metrics").await.expect("the metrics are there");
        let values = text.lines().filter(|line| line.starts_with(name)).filter_map(|line| line.rsplit_once(' '));
        values.filter_map(|(_, value)| value.parse::<f64>().ok()).sum()
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn memory(&self) -> Memory {
        memory(self.id())
    }

    /// The processor time that it has used so far.
    pub(crate) fn processor(&self) -> Duration {
        processor(self.id())
    }

    /// How many files and sockets it has open.
    pub(crate) fn descriptors(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.child.id())).expect("the relay runs on Linux").count()
    }

    /// The bytes that the store takes on disk.
    pub(crate) fn store_bytes(&self) -> u64 {
        let files = ["wxrelay.db", "wxrelay.db-wal"].map(|file| self.folder.join("queue").join(file));
        files.iter().filter_map(|file| fs::metadata(file).ok()).map(|metadata| metadata.len()).sum()
    }

    /// Ends it with a signal and waits for its end.
    pub(crate) async fn end(mut self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).expect("the relay runs");
        let gone = async {
            while self.child.try_wait().expect("the child can be waited for").is_none() {
                sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(START_TIMEOUT, gone).await.expect("the relay ends");
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        // Both fail only for a child that has ended, which is the goal.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

pub(crate) fn memory(process: u32) -> Memory {
    let status = fs::read_to_string(format!("/proc/{process}/status")).expect("it runs, on Linux");
    let kibibytes = |field: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(field)).expect("a field of proc(5)");
        line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") << 10
    };
    Memory { now: kibibytes("VmRSS:"), peak: kibibytes("VmHWM:") }
}

/// The processor time that a process has taken so far.
pub(crate) fn processor(process: u32) -> Duration {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).expect("it runs, on Linux");
    let (_, fields) = stat.rsplit_once(')').expect("a line of proc(5)");
    let ticks: u64 = fields.split_whitespace().skip(11).take(2).filter_map(|field| field.parse::<u64>().ok()).sum();
    // Linux reports 100 ticks a second to all programs.
    Duration::from_millis(ticks * 10)
}

/// Whether `wxrelay audit` finds everything accounted for, and its output.
pub(crate) fn audit(folder: &Path) -> (bool, String) {
    let mut command = Command::new(binary());
    let output = command.args(["audit", "-c"]).arg(folder.join("config.toml")).output().expect("the binary starts");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    (output.status.success(), text)
}

/// The binary of this build, or another one to compare it with.
pub(crate) fn binary() -> OsString {
    std::env::var_os("WXRELAY_BENCH_BINARY").unwrap_or_else(|| env!("CARGO_BIN_EXE_wxrelay").into())
}
