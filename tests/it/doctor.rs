//! `wxrelay doctor`: working parts are ok, each other part is reported with the fix, and no secret is printed.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use rusqlite::Connection;
use serde_json::Value;
use tempfile::TempDir;

use crate::disk::SmallDisk;
use crate::support::authority::{Authority, Identity, ReverseProxy, Upstream, server_for};
use crate::support::command::{Finished, Running, free_address, run, wxrelay};
use crate::support::target::{Reaction, Reply, Target};
use crate::support::wechat::{PATH, WeChat};

/// The server URL, as entered in WeChat's console.
const URL: &str = "https://localhost/wechat/events";
/// Those that replace the ones of a folder and its disk where the store is in PostgreSQL.
pub(crate) const CHECKS_WITH_POSTGRES: [&str; 8] =
    ["postgres", "schema", "durability", "standby", "commit", "clock", "xmin", "replicas"];
/// The checks in the order in which they are printed.
const CHECKS: [&str; 22] = [
    "config",
    "key",
    "mode",
    "folder",
    "disk",
    "space",
    "store",
    "encryption",
    "sqlite",
    "files",
    "certificate",
    "listen",
    "admin",
    "dns",
    "port",
    "tls",
    "verification",
    "callback",
    "file",
    "login",
    "target",
    "clock",
];
const PREVIOUS: &str = "previous_token = \"formertoken\"\n";

#[tokio::test]
async fn a_sound_setup_passes_every_check() {
    let (crm, authority, sink) = (Target::start().await, Authority::new(), sink().await);
    let legacy = format!("[targets.legacy]\nurl = \"{}\"\nformat = \"wechat\"\n", sink.1);
    let setup = Setup::new(&(WeChat::secure().account() + PREVIOUS + &crm.config("crm", "") + &legacy));
    let _relay = setup.serve().await;
    let front =
        ReverseProxy::start(Some(&authority.issue(&server_for("localhost"))), Upstream::Relay(setup.push.clone()))
            .await;
    let ca = authority.file();
    let args = ["--url", URL, "--connect", &front.address, "--ca", ca.to_str().expect("a path of text")];
    let report = setup.doctor(&args).await;
    assert_eq!(report.code, Some(0), "{}", report.text);
    let names: Vec<_> = report.checks().iter().map(|line| line["check"].as_str().unwrap_or_default()).collect();
    let absent = ["certificate", "callback", "file", "login"];
    let expected = CHECKS.iter().filter(|name| !absent.contains(name)).flat_map(|name| {
        // `config` has another line for its warning, and there are two targets.
        let twice = ["config", "target"].contains(name);
        std::iter::repeat_n(*name, if twice { 2 } else { 1 })
    });
    assert_eq!(names, expected.collect::<Vec<_>>());
    for (check, text) in [
        ("key", "not canonical base64"),
        ("mode", "secure (and plaintext, compatible): verification, push and reply pass, with the previous token too"),
        ("store", "used by a running wxrelay, process "),
        ("sqlite", ", built with the tested options"),
        ("listen", "accepts WeChat's verification for shop"),
        ("admin", "a relay runs, ready, with this configuration"),
        ("tls", "TLS 1.3, 2 certificates, for localhost, expires on 4096-01-01"),
        ("verification", "accepted, with the token of accounts.shop"),
    ] {
        let line = report.line(check);
        assert!(line["result"] == "ok" && line["text"].as_str().is_some_and(|found| found.contains(text)), "{line}");
    }
    report.says("dns", "warning", "127.0.0.1 is a loopback address", "must resolve to a public address");
    report.says("clock", "warning", "only peers of this machine answered", "timedatectl");
    let asked = crm.deliveries();
    assert_eq!(asked.len(), 2, "once by each of two runs");
    assert!(asked.iter().all(|asked| asked.method == "HEAD" && asked.body.is_empty() && asked.query.is_none()));
}

#[test]
fn the_page_lists_every_check_in_both_languages() {
    for page in ["docs/trouble.md", "docs/trouble.zh-CN.md"] {
        let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(page)).expect("the page can be read");
        let text = text.split("## `wxrelay doctor`").nth(1).expect("the page has a section about it");
        let rows = text.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next());
        let report: Vec<_> = rows.filter(|name| !name.starts_with('-')).collect();
        assert_eq!(report, [&CHECKS[..], &CHECKS_WITH_POSTGRES].concat(), "{page}");
    }
}

#[tokio::test]
async fn json_holds_what_the_text_says() {
    let setup = Setup::new(&WeChat::secure().account());
    let [text, json] = [&[][..], &["--json"]].map(|args| setup.run(args));
    let (text, json) = (text.await, json.await);
    let report: Value = serde_json::from_str(&json.stdout).expect("JSON");
    assert_eq!((report["result"].as_str(), report["failed"].as_u64()), (Some("warning"), Some(0)), "{report}");
    let checks = report["checks"].as_array().expect("a list");
    let remedies = checks.iter().filter(|check| check["remedy"].is_string()).count();
    assert!(remedies > 2 && checks.len() > 10);
    assert_eq!(text.stdout.lines().count(), checks.len() + remedies + 2, "{}", text.stdout);
    for word in ["ok", "warning"] {
        let counted = checks.iter().filter(|check| check["result"] == word).count();
        assert_eq!(text.stdout.lines().filter(|line| line.starts_with(word)).count(), counted, "{word}");
    }
    assert!(text.stderr.is_empty() && json.stderr.is_empty(), "no progress without a terminal: {}", text.stderr);
    assert_eq!((text.code, json.code), (Some(0), Some(0)), "warnings are no failure");
}

#[tokio::test]
async fn what_a_target_answers_is_judged() {
    let moved = Reply { headers: vec![("location", "/there?token=hunter2".to_owned())], ..Reply::status(302) };
    let answer = Reaction::Answer;
    for (settings, reaction, verdict, text, remedy) in [
        ("format = \"wechat\"", answer(Reply::status(404)), "failed", "answered 404", "compare `url`"),
        (
            "format = \"wechat\"",
            answer(moved.clone()),
            "failed",
            "a redirect to /there,",
            "put the final URL into `url`",
        ),
        ("format = \"wechat\"", answer(Reply::body("text/plain", "hi")), "failed", "`hi`", "the `token` is wrong"),
        ("", answer(Reply::status(404)), "warning", "answered 404 to a HEAD", "compare `url`"),
        ("", answer(moved), "warning", "a redirect to /there,", "put the final URL into `url`"),
        ("", answer(Reply::status(503)), "failed", "answered 503", "is it running?"),
        ("", answer(Reply::status(500)), "warning", "answered 500", "log"),
        ("", answer(Reply::status(405)), "ok", "answered 405", ""),
        ("", Reaction::Close, "failed", "connection", "does it run"),
        ("timeout = \"300ms\"", Reaction::Hang, "failed", "no answer within 300ms", "does it run"),
    ] {
        let target = Target::always(reaction).await;
        let report = Setup::new(&(WeChat::secure().account() + &target.config("crm", settings))).doctor(&[]).await;
        report.says("target", verdict, text, remedy);
        assert_eq!(report.code, Some(i32::from(verdict == "failed")), "{}", report.text);
        assert!(!report.text.contains("hunter2"), "{}", report.text);
    }
    let gone = format!("[targets.crm]\nurl = \"http://{}/\"\nformat = \"json\"\n", free_address());
    let report = Setup::new(&(WeChat::secure().account() + &gone)).doctor(&[]).await;
    report.says("target", "failed", "refused", "does it run");
}

#[tokio::test]
async fn a_key_of_the_wrong_length_is_an_error_of_the_configuration() {
    let setup = Setup::new(&WeChat { aes_key: "TooShort".to_owned(), ..WeChat::secure() }.account());
    let finished = setup.run(&["--json"]).await;
    assert_eq!((finished.code, finished.stdout.as_str()), (Some(78), ""), "{finished:?}");
    assert!(finished.stderr.contains("accounts.shop.encoding_aes_key") && finished.stderr.contains("43"));
    assert!(!finished.stderr.contains("TooShort"), "{finished:?}");
}

#[tokio::test]
async fn a_foreign_server_at_the_url_is_distinguished_from_the_relay() {
    let setup = Setup::new(&WeChat::secure().account());
    let echo =
        |line: &str| line.split("echostr=").nth(1).unwrap_or_default().split('&').next().unwrap_or_default().to_owned();
    let quoted = |line: &str| {
        let echostr = line.split("echostr=").nth(1).and_then(|rest| rest.split('&').next());
        format!("\"{}\"", echostr.unwrap_or_default())
    };
    for (head, page, text, remedy) in [
        (
            "200 OK",
            (|_| "123".to_owned()) as fn(&str) -> String,
            "something else than the echostr: `123`",
            "is it this relay",
        ),
        ("200 OK", |line| format!("no page for {line}"), "a page that repeats our request", "is it this relay"),
        ("200 OK", |_| String::new(), "without a body", "is it this relay"),
        ("200 OK", quoted, "came back in quotes", "bare"),
        ("200 OK\r\nTransfer-Encoding: chunked", echo, "chunked", "proxy"),
        ("301 Moved\r\nLocation: /wechat/events/?signature=00", echo, "a redirect to /wechat/events/,", "final URL"),
        ("403 Forbidden", echo, "the token of accounts.shop is not accepted", "is it this relay"),
        ("404 Not Found", echo, "nothing is at this path", "accounts.shop.path"),
        ("400 Bad Request", echo, "the query did not arrive", "pass the query on"),
        ("502 Bad Gateway", echo, "the server behind it is not ready", "server.listen"),
    ] {
        let front = ReverseProxy::start(None, Upstream::Page(head, page)).await;
        let report = setup.doctor(&["--url", "http://localhost/wechat/events", "--connect", &front.address]).await;
        report.says("verification", "failed", text, remedy);
        assert_eq!(report.code, Some(1), "{}", report.text);
    }
}

#[tokio::test]
async fn every_fault_of_the_chain_that_is_sent_is_named() {
    let (setup, authority) = (Setup::new(&WeChat::secure().account()), Authority::new());
    let ca = authority.file();
    for (identity, verdict, text, remedy) in chains(&authority) {
        let front = ReverseProxy::start(Some(&identity), Upstream::Page("503 Not Ready", |_| String::new())).await;
        // OpenSSL's variable works too.
        let mut command = setup.command(&["--url", URL, "--connect", &front.address, "--json"]);
        command.env("SSL_CERT_FILE", &ca);
        let report = Report::new(run(command).await, String::new());
        report.says("tls", verdict, text, remedy);
        assert_eq!(report.code, Some(1), "no relay is behind it: {}", report.text);
    }
    let plain = ReverseProxy::start(None, Upstream::Page("200 OK", |_| String::new())).await;
    let ca = ca.to_str().expect("a path of text");
    let report = setup.doctor(&["--url", URL, "--connect", &plain.address, "--ca", ca]).await;
    report.says("tls", "failed", "does not speak TLS", "http://");
    let mut command = setup.command(&["--url", URL, "--connect", &plain.address, "--json"]);
    command.env("SSL_CERT_FILE", "/nowhere").env("SSL_CERT_DIR", "/nowhere");
    let report = Report::new(run(command).await, String::new());
    report.says("tls", "failed", "no certificate authorities", "install ca-certificates");
}

#[tokio::test]
async fn the_files_of_server_tls_are_checked_before_a_relay_serves_them() {
    let authority = Authority::new();
    let ca = authority.file();
    for (identity, verdict, text, remedy) in chains(&authority) {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let setup = Setup::with_server(&WeChat::secure().account(), &identity.written(dir.path()));
        let report = setup.doctor(&["--ca", ca.to_str().expect("a path of text"), "--url", URL]).await;
        // A proxy in front may trust these certificates.
        let vouched = !text.contains("self-signed") && !text.contains("authority that");
        let verdict = if vouched { verdict } else { "warning" };
        report.says("certificate", verdict, text, remedy);
    }
    let dir = tempfile::tempdir().expect("a temporary folder");
    let tls = authority.issue(&server_for("localhost")).written(dir.path());
    let setup = Setup::with_server(&WeChat::secure().account(), &tls);
    let relay = setup.serve().await;
    let report = setup.doctor(&["--ca", ca.to_str().expect("a path of text")]).await;
    report.says("certificate", "ok", "matches its key, 2 certificates, for localhost", "");
    report.says("listen", "ok", "accepts WeChat's verification for shop", "");
    drop(relay);
    let stranger = ReverseProxy::start(
        Some(&authority.issue(&server_for("localhost"))),
        Upstream::Page("200 OK", |_| String::new()),
    )
    .await;
    let setup = Setup { push: stranger.address.clone(), ..setup };
    fs::write(&setup.config, setup.toml(&WeChat::secure().account())).expect("it can be written");
    setup.doctor(&[]).await.says("listen", "failed", "another certificate is served", "reload");
    let other = authority.issue(&server_for("localhost"));
    let other_dir = tempfile::tempdir().expect("a temporary folder");
    other.written(other_dir.path());
    fs::copy(other_dir.path().join("key.pem"), dir.path().join("key.pem")).expect("it can be copied");
    setup.doctor(&[]).await.says("certificate", "failed", "cannot be served with the key", "another certificate's");
}

/// Chains for `localhost`, and the expected findings.
fn chains(authority: &Authority) -> Vec<(Identity, &'static str, &'static str, &'static str)> {
    let localhost = || server_for("localhost");
    let mut expired = localhost();
    expired.not_after = rcgen::date_time_ymd(2020, 2, 3);
    let mut soon = localhost();
    let day =
        jiff::Timestamp::now().to_zoned(jiff::tz::TimeZone::UTC).date().saturating_add(jiff::Span::new().days(10));
    soon.not_after = rcgen::date_time_ymd(day.year().into(), day.month().unsigned_abs(), day.day().unsigned_abs());
    let mut by_openssl = localhost();
    by_openssl.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    vec![
        (authority.issue(&expired), "failed", "expired on 2020-02-03", "renew"),
        (authority.issue(&soon), "warning", " days", "renew"),
        (Identity::self_signed(&localhost()), "failed", "self-signed", "public authority"),
        (Identity::self_signed(&by_openssl), "failed", "self-signed", "public authority"),
        (authority.issue(&localhost()).alone(), "failed", "without the intermediate", "full chain"),
        (authority.issue(&server_for("other.example")), "failed", "is for other.example, not for localhost", "SNI"),
        (Authority::new().issue(&localhost()), "failed", "authority that this machine does not trust", "--ca"),
    ]
}

#[tokio::test]
async fn a_url_that_wechat_cannot_use_or_reach_is_reported() {
    let setup = Setup::new(&WeChat::secure().account());
    let _relay = setup.serve().await;
    let report = setup.doctor(&["--url", "http://10.1.2.3/wechat/events", "--connect", &setup.push]).await;
    report.says("dns", "warning", "10.1.2.3 is a private address", "public address");
    report.says("verification", "ok", "accounts.shop", "");
    assert_eq!(report.code, Some(0), "{}", report.text);
    let report = setup.doctor(&["--url", &format!("http://{}{PATH}", setup.push)]).await;
    report.says("port", "failed", "80 and 443 only", "reverse proxy");
    assert_eq!(report.code, Some(1), "{}", report.text);
    let report = setup.doctor(&["--url", "http://localhost/wechat/events", "--connect", &free_address()]).await;
    report.says("port", "failed", "refused", "firewall");
    let finished = setup.run(&["--url", "nobody=http://localhost/"]).await;
    assert!(finished.code == Some(2) && finished.stderr.contains("one of: shop"), "{finished:?}");
}

#[tokio::test]
async fn a_wrong_clock_is_reported_with_its_difference() {
    for (behind, verdict, text) in [(3600, "failed", "accounts.shop refuses every push"), (-60, "warning", "ahead of")]
    {
        let then = jiff::Timestamp::now() + jiff::SignedDuration::from_secs(behind);
        let date = jiff::fmt::rfc2822::DateTimePrinter::new().timestamp_to_rfc9110_string(&then).expect("a date");
        let target =
            Target::always(Reaction::Answer(Reply { headers: vec![("date", date)], ..Reply::status(405) })).await;
        let report = Setup::new(&(WeChat::secure().account() + &target.config("crm", ""))).doctor(&[]).await;
        report.says("clock", verdict, text, "NTP");
        report.says("clock", verdict, "target crm", "NTP");
        assert_eq!(report.code, Some(i32::from(verdict == "failed")), "{}", report.text);
    }
}

#[tokio::test]
async fn an_unusable_folder_for_the_store_is_reported() {
    let setup = Setup::new(&WeChat::secure().account());
    setup.doctor(&[]).await.says("folder", "warning", "missing", "start it");
    assert!(!setup.queue().exists(), "nothing is made");
    fs::write(setup.queue(), "a file").expect("a file can be written");
    let report = setup.doctor(&[]).await;
    report.says("folder", "failed", "is not a folder", "queue.path");
    assert_eq!(report.code, Some(1), "{}", report.text);
    let Some(disk) = SmallDisk::mount() else { return };
    fs::create_dir(disk.queue()).expect("a folder can be made");
    let setup = Setup::new(&WeChat::secure().account()).with_queue(disk.queue());
    let report = setup.doctor(&[]).await;
    report.says("space", "failed", "free", "503");
    report.says("folder", "warning", "everybody on this machine", "chmod 700");
    report.says("disk", "ok", "a flush takes", "");
    assert_eq!(fs::read_dir(disk.queue()).expect("a folder").count(), 0, "nothing is left");
    disk.make_read_only();
    setup.doctor(&[]).await.says("folder", "failed", "not writable", "remount");
}

#[tokio::test]
async fn too_few_open_files_are_reported() {
    let setup = Setup::new(&WeChat::secure().account());
    for (limit, verdict) in [("64", "failed"), ("1024", "warning")] {
        let doctor = setup.command(&["--json"]);
        let mut command = Command::new("sh");
        command.arg("-c").arg(format!("ulimit -n {limit}; exec \"$0\" \"$@\"")).arg(doctor.get_program());
        command.args(doctor.get_args());
        let report = Report::new(run(command).await, String::new());
        report.says("files", verdict, &format!("is {limit} open files"), "LimitNOFILE");
    }
}

#[tokio::test]
async fn a_store_and_a_relay_of_another_kind_are_reported() {
    let wechat = WeChat::secure();
    let setup = Setup::new(&wechat.account());
    let relay = setup.serve().await;
    fs::write(&setup.config, setup.toml(&(wechat.account() + "max_skew = \"5m\"\n"))).expect("it can be written");
    setup.doctor(&[]).await.says("admin", "warning", "with another configuration", "reload");
    let other = WeChat { token: "anothertoken".to_owned(), ..wechat.clone() };
    fs::write(&setup.config, setup.toml(&other.account())).expect("it can be written");
    setup.doctor(&[]).await.says("listen", "failed", "answered 403", "is it this relay that listens there");
    drop(relay);
    let report = setup.doctor(&[]).await;
    report.says("listen", "ok", "nothing listens there now", "");
    report.says("admin", "warning", "no relay is running", "wxrelay serve");
    report.says("store", "ok", "not in use", "");
    let store = Connection::open(setup.queue().join("wxrelay.db")).expect("the store can be opened");
    store.execute_batch("PRAGMA user_version = 99").expect("it can be written");
    let report = setup.doctor(&[]).await;
    report.says("store", "failed", "schema 99", "run the newer release");
    assert_eq!(report.code, Some(1), "{}", report.text);
}

/// A `wxrelay sink` that verifies as a backend with the account's token does, and its address.
async fn sink() -> (Running, String) {
    let sink = Running::spawn(wxrelay(["sink", "--listen", "127.0.0.1:0", "--token", &WeChat::secure().token]));
    let find = |line: &str| line.split(' ').find(|word| word.starts_with("http://")).map(str::to_owned);
    let url = sink.find("line that says where the sink listens", find).await;
    (sink, format!("{url}/wx"))
}

/// A folder with a configuration whose addresses are known beforehand.
pub(crate) struct Setup {
    dir: TempDir,
    pub(crate) config: PathBuf,
    pub(crate) push: String,
    admin: String,
    server: String,
    queue: Option<PathBuf>,
}

impl Setup {
    fn new(body: &str) -> Self {
        Self::with_server(body, "")
    }

    pub(crate) fn with_server(body: &str, server: &str) -> Self {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let config = dir.path().join("config.toml");
        let (push, admin) = (free_address(), free_address());
        let setup = Self { dir, config, push, admin, server: server.to_owned(), queue: None };
        fs::write(&setup.config, setup.toml(body)).expect("the config can be written");
        fs::set_permissions(&setup.config, fs::Permissions::from_mode(0o600)).expect("it holds secrets");
        setup
    }

    fn with_queue(mut self, queue: PathBuf) -> Self {
        self.queue = Some(queue);
        fs::write(&self.config, self.toml(&WeChat::secure().account())).expect("the config can be written");
        self
    }

    fn toml(&self, body: &str) -> String {
        let Self { push, admin, server, .. } = self;
        let queue = self.queue();
        format!(
            "[server]\nlisten = [\"{push}\"]\n{server}\n[admin]\nlisten = \"{admin}\"\n[queue]\npath = \"{}\"\n{body}",
            queue.display()
        )
    }

    fn queue(&self) -> PathBuf {
        self.queue.clone().unwrap_or_else(|| Path::join(self.dir.path(), "queue"))
    }

    pub(crate) async fn serve(&self) -> Running {
        let mut command = wxrelay(["serve", "-c"]);
        command.arg(&self.config);
        let running = Running::spawn(command);
        running.find("line that says ready", |line| line.contains("\"ready\"").then_some(())).await;
        running
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = wxrelay(["doctor", "-c"]);
        command.arg(&self.config).args(args).env_remove("SSL_CERT_FILE").env_remove("SSL_CERT_DIR");
        command
    }

    async fn run(&self, args: &[&str]) -> Finished {
        run(self.command(args)).await
    }

    /// The output as text and as JSON; neither holds a secret.
    pub(crate) async fn doctor(&self, args: &[&str]) -> Report {
        let text = self.run(args).await;
        Report::new(self.run(&[args, &["--json"]].concat()).await, text.stdout + &text.stderr)
    }
}

pub(crate) struct Report {
    pub(crate) code: Option<i32>,
    report: Value,
    pub(crate) text: String,
}

impl Report {
    fn new(json: Finished, text: String) -> Self {
        let text = text + &json.stdout + &json.stderr;
        let WeChat { token, aes_key, .. } = WeChat::secure();
        for secret in [token.as_str(), &aes_key, "formertoken", "anothertoken", "signature=", "echostr=", "nonce="] {
            assert!(!text.contains(secret), "{secret}: {text}");
        }
        let report = serde_json::from_str(&json.stdout).unwrap_or_else(|error| panic!("{error}: {json:?}"));
        Self { code: json.code, report, text }
    }

    fn checks(&self) -> &[Value] {
        self.report["checks"].as_array().expect("a list")
    }

    /// The worst line of a check.
    fn line(&self, check: &str) -> &Value {
        let lines = || self.checks().iter().filter(|line| line["check"] == check);
        let worst = ["failed", "warning", "ok"].iter().find_map(|word| lines().find(|line| line["result"] == *word));
        worst.unwrap_or_else(|| panic!("no {check}: {}", self.text))
    }

    /// Asserts that a check has this result, text and fix.
    pub(crate) fn says(&self, check: &str, verdict: &str, text: &str, remedy: &str) {
        let line = self.line(check);
        let holds = |key: &str, part: &str| line[key].as_str().unwrap_or_default().contains(part);
        assert!(line["result"] == verdict && holds("text", text) && holds("remedy", remedy), "{text}: {}", self.text);
    }
}
