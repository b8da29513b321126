//! The built binary, `wxrelay serve`, with a folder and a configuration of its own.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use rustix::process::Signal;
use serde_json::Value;
use tempfile::TempDir;

use super::command::{Finished, Running, limited, run, wxrelay};
use super::http::{self, Answer, Connection};
use super::{eventually, wechat};

/// The parts of a configuration; the others are port 0 and a temporary folder.
pub(crate) struct Setup {
    server: String,
    admin: String,
    admin_listen: String,
    queue: String,
    queue_path: Option<PathBuf>,
    database: Option<String>,
    log: String,
    body: String,
    env: Vec<(&'static str, String)>,
    ulimit: Option<&'static str>,
    files: Vec<(&'static str, &'static str)>,
}

impl Setup {
    /// Accounts and targets, as TOML.
    pub(crate) fn new(body: impl Into<String>) -> Self {
        let (server, admin, queue) = (String::new(), String::new(), String::new());
        Self {
            server,
            admin,
            admin_listen: "127.0.0.1:0".to_owned(),
            queue,
            queue_path: None,
            database: None,
            log: "level = \"debug\"".to_owned(),
            body: body.into(),
            env: Vec::new(),
            ulimit: None,
            files: Vec::new(),
        }
    }

    /// Replaces accounts and targets.
    pub(crate) fn body(mut self, body: impl Into<String>) -> Self {
        self.body = body.into();
        self
    }

    /// The arguments of the shell's `ulimit`, for its open files.
    pub(crate) fn ulimit(mut self, arguments: &'static str) -> Self {
        self.ulimit = Some(arguments);
        self
    }

    /// A variable of its environment.
    pub(crate) fn env(mut self, name: &'static str, value: String) -> Self {
        self.env.push((name, value));
        self
    }

    /// A file beside the configuration.
    pub(crate) fn file(mut self, name: &'static str, text: &'static str) -> Self {
        self.files.push((name, text));
        self
    }

    /// Further lines of `[server]`.
    pub(crate) fn server(mut self, lines: &str) -> Self {
        self.server = lines.to_owned();
        self
    }

    /// Further lines of `[admin]`.
    pub(crate) fn admin(mut self, lines: &str) -> Self {
        self.admin = lines.to_owned();
        self
    }

    /// Further lines of `[queue]`.
    pub(crate) fn queue(mut self, lines: &str) -> Self {
        self.queue = lines.to_owned();
        self
    }

    /// The address of the admin listener, for commands that need it.
    pub(crate) fn admin_at(mut self, address: String) -> Self {
        self.admin_listen = address;
        self
    }

    /// The lines of `[log]`; the default level is debug.
    pub(crate) fn log(mut self, lines: &str) -> Self {
        self.log = lines.to_owned();
        self
    }

    /// A folder for the store outside the relay's own.
    pub(crate) fn queue_at(mut self, path: &Path) -> Self {
        self.queue_path = Some(path.to_owned());
        self
    }

    /// Keeps the store in PostgreSQL, at this URL.
    pub(crate) fn postgres(mut self, url: &str) -> Self {
        self.database = Some(url.to_owned());
        self
    }

    /// Starts the relay and waits until it is ready.
    pub(crate) async fn start(self) -> Relay {
        let dir = tempfile::tempdir().expect("a temporary folder");
        for (name, text) in &self.files {
            fs::write(dir.path().join(name), text).expect("a file beside the config can be written");
        }
        let config = dir.path().join("config.toml");
        fs::write(&config, self.toml(dir.path())).expect("the config can be written");
        fs::set_permissions(&config, Permissions::from_mode(0o600)).expect("it holds secrets");
        let (running, push, admin) = serve(&config, &self).await;
        Relay { setup: self, dir, config, running: Some(running), push, admin }
    }

    fn toml(&self, dir: &Path) -> String {
        let Self { server, admin, admin_listen, queue, queue_path, database, log, body, .. } = self;
        let path = queue_path.clone().unwrap_or_else(|| dir.join("queue"));
        let engine = match database {
            None => format!("type = \"embedded\"\npath = \"{}\"", path.display()),
            Some(url) => format!("type = \"postgres\"\nurl = \"{url}\"\ntls = \"off\""),
        };
        format!(
            "[server]\nlisten = [\"127.0.0.1:0\"]\n{server}\n[admin]\nlisten = \"{admin_listen}\"\n{admin}\n\
             [queue]\n{engine}\n{queue}\n[log]\n{log}\n{body}"
        )
    }
}

/// A running relay; killed when dropped.
pub(crate) struct Relay {
    setup: Setup,
    dir: TempDir,
    config: PathBuf,
    running: Option<Running>,
    /// The address for pushes.
    pub(crate) push: String,
    /// The address of the admin listener.
    pub(crate) admin: String,
}

impl Relay {
    pub(crate) async fn start(body: impl Into<String>) -> Self {
        Setup::new(body).start().await
    }

    /// Ends it with SIGTERM; it must exit with 0.
    pub(crate) async fn stop(&mut self) {
        let running = self.running.take().expect("the relay runs");
        running.signal(Signal::TERM);
        assert_eq!(running.end().await, Some(0), "SIGTERM drains and exits 0");
    }

    /// Ends it with SIGKILL.
    pub(crate) async fn kill(&mut self) {
        let running = self.running.take().expect("the relay runs");
        running.signal(Signal::KILL);
        assert_eq!(running.end().await, None, "killed, not ended by itself");
    }

    /// Starts it again after [`Relay::stop`] or [`Relay::kill`], on new ports.
    pub(crate) async fn restart(&mut self) {
        assert!(self.running.is_none(), "the relay still runs");
        let (running, push, admin) = serve(&self.config, &self.setup).await;
        (self.running, self.push, self.admin) = (Some(running), push, admin);
    }

    pub(crate) fn signal(&self, signal: Signal) {
        self.running().signal(signal);
    }

    /// Starts it again after [`Relay::stop`] or [`Relay::kill`], without waiting for anything.
    pub(crate) fn launch(&self) -> Running {
        launch(&self.config, &self.setup)
    }

    /// Waits until it exits by itself or after a signal; returns the exit code.
    pub(crate) async fn end(&mut self) -> Option<i32> {
        self.running.take().expect("the relay runs").end().await
    }

    /// Replaces accounts and targets in the configuration file.
    pub(crate) fn configure(&mut self, body: impl Into<String>) {
        self.setup.body = body.into();
        self.write();
    }

    /// Replaces the whole configuration file.
    pub(crate) fn configure_all(&mut self, setup: Setup) {
        self.setup = setup;
        self.write();
    }

    fn write(&self) {
        fs::write(&self.config, self.setup.toml(self.dir.path())).expect("the config can be written");
    }

    /// The folder of its store.
    pub(crate) fn store(&self) -> PathBuf {
        self.setup.queue_path.clone().unwrap_or_else(|| self.dir.path().join("queue"))
    }

    /// Waits for a log line.
    pub(crate) async fn log(&self, what: &str, mut pick: impl FnMut(&Value) -> bool) -> Value {
        self.running().find(what, |line| serde_json::from_str(line).ok().filter(&mut pick)).await
    }

    /// The client address in the log line of a push, by the push's number from 0.
    pub(crate) async fn peer(&self, number: usize) -> String {
        let mut left = number;
        let nth = |line: &Value| {
            let push = line["message"] == "push";
            let found = push && left == 0;
            left = left.saturating_sub(usize::from(push));
            found
        };
        self.log("the line of a push", nth).await["peer"].as_str().unwrap_or_default().to_owned()
    }

    /// Stops reading its log until the result is dropped.
    pub(crate) fn stop_reading(&self) -> impl Drop + '_ {
        self.running().stop_reading()
    }

    /// Every line of its output so far.
    pub(crate) fn lines(&self) -> Vec<String> {
        self.running().lines()
    }

    /// Pushes a clear text as an account's WeChat; the answer must be 200.
    pub(crate) async fn accept(&self, wechat: &wechat::WeChat, clear: &str) -> Answer {
        let answer = wechat.push(clear).send(&self.push).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        answer
    }

    /// As [`Relay::accept`], trying again as WeChat does after a 503.
    pub(crate) async fn accept_again(&self, wechat: &wechat::WeChat, clear: &str) -> Answer {
        let push = async || Some(wechat.push(clear).send(&self.push).await).filter(|answer| answer.status == 200);
        eventually("a push is answered", push).await
    }

    /// As [`Relay::accept`], trying again as WeChat does: to a store that has no connection yet, or no more.
    #[cfg(feature = "postgres")]
    pub(crate) async fn accept_in_time(&self, wechat: &wechat::WeChat, clear: &str) {
        let status = async || wechat.push(clear).send(&self.push).await.status;
        eventually("a push is accepted", async || (status().await == 200).then_some(())).await;
    }

    /// Sends a push as an account's WeChat, whose answer the connection reads.
    pub(crate) async fn begin(&self, wechat: &wechat::WeChat, clear: &str) -> Connection {
        let mut connection = Connection::open(&self.push).await.expect("the relay listens");
        connection.write(&wechat.push(clear).request(wechat::PATH)).await.expect("the relay reads");
        connection
    }

    /// Runs another command of the binary on the same configuration.
    pub(crate) async fn run(&self, args: &[&str]) -> Finished {
        let mut command = wxrelay(args);
        command.arg("-c").arg(&self.config);
        run(command).await
    }

    /// Replaces the lines of `[log]` in the file.
    pub(crate) fn log_settings(&mut self, lines: &str) {
        self.setup.log = lines.to_owned();
        self.write();
    }

    /// Its process id.
    pub(crate) fn id(&self) -> u32 {
        self.running().id()
    }

    /// Its configuration's file.
    pub(crate) fn config(&self) -> &Path {
        &self.config
    }

    /// Runs a command beside the test, with the relay's configuration.
    pub(crate) fn spawn(&self, args: &[&str]) -> Running {
        let mut command = wxrelay(args);
        command.arg("-c").arg(&self.config);
        Running::spawn(command)
    }

    /// The output of `wxrelay audit --json`, which must find everything accounted for.
    pub(crate) async fn audit(&self) -> Value {
        let finished = self.run(&["audit", "--json"]).await;
        assert_eq!(finished.code, Some(0), "the audit finds nothing missing: {finished:?}");
        serde_json::from_str(&finished.stdout).unwrap_or_else(|error| panic!("{error}: {finished:?}"))
    }

    /// Waits until a field of the audit has this count.
    pub(crate) async fn audited(&self, field: &str, count: u64) -> Value {
        let what = format!("the audit counts {count} {field}");
        eventually(&what, async || Some(self.audit().await).filter(|audit| audit[field] == count)).await
    }

    /// An answer of the admin listener.
    pub(crate) async fn get(&self, path: &str) -> Answer {
        http::get(&self.admin, path).await
    }

    /// Waits for the record of a target's attempt at an event, by number, that satisfies `pick`.
    pub(crate) async fn attempt(&self, event: &str, target: &str, number: u64, pick: impl Fn(&Value) -> bool) -> Value {
        let what = format!("the record of {target}'s attempt {number} at {event}");
        eventually(&what, async || {
            let detail = self.get(&format!("/api/events/{event}")).await.json();
            let deliveries = detail["deliveries"].as_array()?.clone();
            let delivery = deliveries.into_iter().find(|delivery| delivery["target"] == target)?;
            let attempts = delivery["attempts"].as_array()?.clone();
            attempts.into_iter().find(|attempt| attempt["number"] == number && pick(attempt))
        })
        .await
    }

    /// The sum of a metric's samples with all these labels; 0 if there is none.
    pub(crate) async fn metric(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let samples = self.samples(name).await;
        let labels: Vec<_> = labels.iter().map(|(key, value)| format!("{key}=\"{value}\"")).collect();
        samples
            .iter()
            .filter(|(have, _)| labels.iter().all(|label| have.contains(label)))
            .fold(0.0, |sum, (_, value)| sum + value)
    }

    /// A metric's samples: the labels as text, and the value.
    pub(crate) async fn samples(&self, name: &str) -> Vec<(String, f64)> {
        let answer = self.get("/metrics").await;
        assert_eq!(answer.status, 200);
        let sample = |line: &str| {
            let rest = line.strip_prefix(name)?;
            let (labels, value) = rest.rsplit_once(' ')?;
            (labels.is_empty() || labels.starts_with('{')).then(|| (labels.to_owned(), value.parse().ok()))
        };
        let samples = answer.text().lines().filter_map(sample);
        samples.map(|(labels, value)| (labels, value.expect("a sample is a number"))).collect()
    }

    fn running(&self) -> &Running {
        self.running.as_ref().expect("the relay runs")
    }
}

fn launch(config: &Path, setup: &Setup) -> Running {
    let mut command = wxrelay(["serve", "-c"]);
    command.arg(config).envs(setup.env.iter().cloned());
    if let Some(arguments) = setup.ulimit {
        command = limited(command, arguments);
    }
    Running::spawn(command)
}

/// Starts `wxrelay serve` and waits for its addresses and for `ready`.
async fn serve(config: &Path, setup: &Setup) -> (Running, String, String) {
    let running = launch(config, setup);
    let address = |listener: &'static str| {
        move |line: &str| {
            let line: Value = serde_json::from_str(line).ok()?;
            let listening = line["message"] == "listening" && line["listener"] == listener;
            listening.then(|| line["address"].as_str().expect("an address is a text").to_owned())
        }
    };
    let push = running.find("push address", address("push")).await;
    let admin = running.find("admin address", address("admin")).await;
    let ready = |line: &str| serde_json::from_str::<Value>(line).ok().filter(|line| line["message"] == "ready");
    running.find("line that says ready", ready).await;
    (running, push, admin)
}
