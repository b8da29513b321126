//! Broken set-ups: `check` and `serve` refuse each of them with exit code 78 and the same words. A supervisor does not
//! restart for ever what only a change of the configuration fixes.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use crate::support::command::{Finished, free_address, run, wxrelay};
use crate::support::wechat::{PATH, WeChat};
use crate::tls::Certificate;

/// A folder with a configuration and the files that it names.
pub(crate) struct Files(tempfile::TempDir);

impl Files {
    pub(crate) fn new() -> Self {
        Self(tempfile::tempdir().expect("a temporary folder"))
    }

    pub(crate) fn path(&self, name: &str) -> String {
        self.0.path().join(name).display().to_string()
    }

    /// Writes the lines of each table; what is not given is that of a relay that starts.
    pub(crate) fn write(&self, server: &str, admin: &str, queue: &str, more: &str) {
        let (server, admin) = (
            if server.contains("listen") { server.to_owned() } else { format!("listen = \"127.0.0.1:0\"\n{server}") },
            if admin.contains("listen") { admin.to_owned() } else { format!("listen = \"127.0.0.1:0\"\n{admin}") },
        );
        let queue = if queue.contains("path") { queue.to_owned() } else { format!("path = \"store\"\n{queue}") };
        let account = WeChat::secure().account();
        self.write_all(&format!("[server]\n{server}\n[admin]\n{admin}\n[queue]\n{queue}\n{account}\n{more}"));
    }

    pub(crate) fn write_all(&self, text: &str) {
        let path = self.0.path().join("config.toml");
        fs::write(&path, text).expect("the config can be written");
        fs::set_permissions(path, Permissions::from_mode(0o600)).expect("it holds secrets");
    }

    pub(crate) async fn run(&self, command: &str) -> Finished {
        let mut command = wxrelay([command, "-c", &self.path("config.toml")]);
        command.env_remove("CREDENTIALS_DIRECTORY");
        run(command).await
    }
}

/// A set-up: its name, the lines of `[server]`, `[admin]` and `[queue]`, further tables, and the words of the error.
type Case = (&'static str, String, &'static str, String, String, &'static str);

#[tokio::test]
async fn check_and_serve_refuse_thirty_broken_set_ups_with_the_same_words() {
    let (one, other, files) = (Certificate::new(), Certificate::new(), Files::new());
    fs::write(files.path("text"), "no PEM").expect("a file");
    fs::write(files.path("open"), "0123456789abcdef0123456789abcdef").expect("a file");
    fs::set_permissions(files.path("open"), Permissions::from_mode(0o644)).expect("it can be opened to all");
    newer_store(Path::new(&files.path("newer")));
    let cases = [of_files(&files, &one, &other), of_addresses(&files), of_stores(&files), of_keys()].concat();
    assert!(cases.len() >= 30, "only {}", cases.len());
    let mut faults = Vec::new();
    for (what, server, admin, queue, more, words) in cases {
        files.write(&server, admin, &queue, &more);
        faults.extend(fault(&files, what, words).await);
    }
    files.write_all("[accounts.shop\npath = 1");
    faults.extend(fault(&files, "no TOML", "config.toml: ").await);
    fs::remove_file(files.path("config.toml")).expect("it is there");
    faults.extend(fault(&files, "no file", "cannot read this file").await);
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

/// Why not both refuse it with every word of the error, problem and remedy, the same.
async fn fault(files: &Files, what: &str, words: &str) -> Option<String> {
    let (checked, served) = (files.run("check").await, files.run("serve").await);
    let after = |prefix: &str| served.stderr.lines().find_map(|line| line.strip_prefix(prefix)).unwrap_or_default();
    let of_start = format!("{}; {}", after("wxrelay: the relay can't start: "), after("fix: "));
    let errors: Vec<_> = checked.stderr.lines().filter(|line| !line.starts_with("warning: ")).collect();
    let is_said = |error: &&str| served.stderr.lines().any(|line| line == *error) || of_start == *error;
    let is_refused = [&checked, &served].iter().all(|one| one.code == Some(78) && one.stderr.contains(words));
    let is_same = is_refused && !errors.is_empty() && errors.iter().all(is_said);
    (!is_same).then(|| format!("{what}: `{words}`\n  {checked:?}\n  {served:?}"))
}

fn case(what: &'static str, words: &'static str) -> Case {
    (what, String::new(), "", String::new(), String::new(), words)
}

fn server(what: &'static str, lines: impl Into<String>, words: &'static str) -> Case {
    (what, lines.into(), "", String::new(), String::new(), words)
}

fn queue(what: &'static str, lines: impl Into<String>, words: &'static str) -> Case {
    (what, String::new(), "", lines.into(), String::new(), words)
}

fn more(what: &'static str, lines: impl Into<String>, words: &'static str) -> Case {
    (what, String::new(), "", String::new(), lines.into(), words)
}

fn target(what: &'static str, lines: &str, words: &'static str) -> Case {
    more(what, format!("[targets.crm]\nurl = \"https://127.0.0.1:9/\"\n{lines}\n"), words)
}

fn of_files(files: &Files, one: &Certificate, other: &Certificate) -> Vec<Case> {
    let tls = |cert: &str, key: &str| format!("tls = {{ cert = \"{cert}\", key = \"{key}\" }}");
    let (text, none) = (files.path("text"), files.path("none"));
    vec![
        server("another certificate's key", tls(&one.cert(), &other.key()), "server.tls"),
        server("a certificate that is none", tls(&text, &one.key()), "server.tls"),
        server("a key that is none", tls(&one.cert(), &text), "server.tls"),
        server("a certificate that is not there", tls(&none, &one.key()), "server.tls.cert: cannot read"),
        target("a `ca` that is none", &format!("ca = \"{text}\""), "targets.crm"),
        target("a `ca` that is not there", &format!("ca = \"{none}\""), "targets.crm.ca: cannot read"),
        target(
            "a client certificate with another one's key",
            &format!("client_cert = \"{}\"\nclient_key = \"{}\"", one.cert(), other.key()),
            "targets.crm",
        ),
        server("a verification file that is not there", "verify_files = [\"MP_verify_a.txt\"]", "server.verify_files"),
        (
            "a secret that others may read, with `strict`",
            "strict = true".to_owned(),
            "token = { file = \"open\" }",
            String::new(),
            String::new(),
            "admin.token",
        ),
    ]
}

fn of_addresses(files: &Files) -> Vec<Case> {
    let admin = |what, lines, words| (what, String::new(), lines, String::new(), String::new(), words);
    let looped = format!("[targets.loop]\nurl = \"http://localhost:18080{PATH}/\"\n");
    let by_name = format!("[targets.loop]\nurl = \"https://wx.example.com{PATH}\"\n");
    let ordered =
        "listen = \"127.0.0.1:0\"\ntls = { acme = { domains = [\"wx.example.com\"], email = \"a@example.com\" } }";
    let with = |case: Case, lines: &str| (case.0, lines.to_owned(), case.2, case.3, case.4, case.5);
    vec![
        server("an address of another machine", "listen = \"192.0.2.1:8080\"", "cannot listen at 192.0.2.1:8080"),
        server("a socket where a file is", format!("listen = \"unix:{}\"", files.path("text")), "is not a socket"),
        server(
            "a socket in no folder",
            format!("listen = \"unix:{}\"", files.path("none/x")),
            "cannot listen at unix:",
        ),
        server(
            "a socket with a long path",
            format!("listen = \"unix:{}\"", files.path(&"x".repeat(120))),
            "cannot listen",
        ),
        server("one port twice", "listen = [\"0.0.0.0:18443\", \"127.0.0.1:18443\"]", "server.listen[1]"),
        server("a port that is none", "listen = \"127.0.0.1:99999\"", "server.listen[0]"),
        server("no address", "listen = []", "server.listen"),
        admin("an open admin listener without a token", "listen = \"0.0.0.0:9180\"", "admin.token: missing"),
        admin("an admin token with blanks", "token = \"a b\"", "admin.token: invalid value"),
        server("PROXY by nobody", "proxy_protocol = true", "server.trusted_proxies: missing"),
        with(
            more("the relay's own address as a target", looped, "targets.loop.url: this is the relay's own address"),
            "listen = \"0.0.0.0:18080\"",
        ),
        with(more("its own name as a target", by_name, "targets.loop.url: this is the relay's own address"), ordered),
    ]
}

fn of_stores(files: &Files) -> Vec<Case> {
    let folder = |name: &str| format!("path = \"{}\"", files.path(name));
    vec![
        queue("a store in a file", folder("text"), "queue.path"),
        queue("a store below a file", folder("text/store"), "queue.path"),
        queue("a store of a newer release", folder("newer"), "queue.path"),
        queue("an engine that is none", "type = \"sqlite\"", "queue.type: found `sqlite`"),
        queue("a key that is none", "encryption_keys = [\"short\"]", "queue.encryption_keys[0]"),
        queue("no time", "retention = \"soon\"", "queue.retention: found `soon`"),
    ]
}

fn of_keys() -> Vec<Case> {
    let account =
        |lines: &str| format!("[accounts.other]\npath = \"/other\"\napp_id = \"wx1\"\nmode = \"plaintext\"\n{lines}\n");
    vec![
        more("an unknown key", account("token = \"abc\"\ntokn = \"abc\""), "accounts.other.tokn: unknown key"),
        more(
            "a variable that is not set",
            account("token = { env = \"NOT_THERE\" }"),
            "accounts.other.token: the environment variable",
        ),
        more("a secret that is not there", account("token = { file = \"none\" }"), "accounts.other.token: cannot read"),
        more("a credential that is not there", account("token = { credential = \"none\" }"), "accounts.other.token: "),
        more(
            "an EncodingAESKey that is short",
            account("token = \"abc\"\nencoding_aes_key = \"short\""),
            "accounts.other.encoding_aes_key: found 5 characters",
        ),
        more("the path of another account", account("token = \"abc\"").replace("/other", PATH), "has the same path"),
        more(
            "a route to nobody",
            account("token = \"abc\"") + "[[accounts.other.routes]]\notherwise = true\nto = [\"nobody\"]\n",
            "there is no target `nobody`",
        ),
        target("a schedule that is none", "retry = [\"soon\"]", "targets.crm.retry[0]"),
        target("a rate that is none", "rate = \"fast\"", "targets.crm.rate"),
        more("a target without a host", "[targets.crm]\nurl = \"nowhere\"\n", "targets.crm.url: invalid value"),
        more("no collector", "[telemetry]\notlp = \"nowhere\"\n", "telemetry.otlp"),
        more("no level", "[log]\nlevel = \",\"\n", "log.level"),
        case_without_account(),
    ]
}

fn case_without_account() -> Case {
    let mut case = case("a login that leads nowhere", "logins.web");
    case.4 = "[logins.web]\npath = \"/login\"\nto = \"nowhere\"\n".to_owned();
    case
}

#[tokio::test]
async fn an_address_of_another_program_is_an_error_and_that_of_the_running_relay_is_none() {
    let (files, push, admin) = (Files::new(), free_address(), free_address());
    let listen = |address: &str| format!("listen = \"{address}\"");
    files.write(&listen(&push), &listen(&admin), "", "");
    assert_eq!(files.run("check").await.code, Some(0), "nobody listens there");
    let taken = std::net::TcpListener::bind(&push).expect("the port is free");
    let (checked, served) = (files.run("check").await, files.run("serve").await);
    for (printed, code) in [(&checked, 78), (&served, 1)] {
        assert_eq!(printed.code, Some(code), "{printed:?}");
        let words = format!("cannot listen at {push}: another process listens there");
        assert!(printed.stderr.contains(&words), "{printed:?}");
    }
    drop(taken);
    let relay = crate::support::command::Running::spawn(wxrelay(["serve", "-c", &files.path("config.toml")]));
    relay.find("line that says ready", |line| line.contains("\"ready\"").then_some(())).await;
    let beside = files.run("check").await;
    assert_eq!(beside.code, Some(0), "beside the running relay: {beside:?}");
    // A new address, that another program has, is no address of the running relay.
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let new = taken.local_addr().expect("its address").to_string();
    files.write(&format!("listen = [\"{push}\", \"{new}\"]"), &listen(&admin), "", "");
    let found = files.run("check").await;
    assert!(found.code == Some(78) && found.stderr.contains(&format!("cannot listen at {new}")), "{found:?}");
    assert!(!found.stderr.contains(&push), "{found:?}");
    // Another configuration with the same addresses and another store is another relay.
    files.write(&listen(&push), &listen(&admin), "path = \"another\"", "");
    let other = files.run("check").await;
    assert!(other.code == Some(78) && other.stderr.contains(&push) && other.stderr.contains(&admin), "{other:?}");
}

#[tokio::test]
async fn an_order_or_a_rate_that_cannot_hold_is_warned_of() {
    let files = Files::new();
    let target = |name: &str, lines: &str| format!("[targets.{name}]\nurl = \"http://127.0.0.1:9/a\"\n{lines}\n");
    let route = "[[accounts.shop.routes]]\notherwise = true\nto = [\"one\", \"two\"]\nreply = \"one\"\n";
    files.write("", "", "", &(target("one", "order = \"per_user\"") + &target("two", "rate = \"5/s\"")));
    let text = fs::read_to_string(files.path("config.toml")).expect("it was written");
    files.write_all(&text.replace("[targets.one]", &format!("{route}[targets.one]")));
    let printed = files.run("check").await;
    assert_eq!(printed.code, Some(0), "{printed:?}");
    for warning in [
        "targets.one.order: targets.two has the same url",
        "targets.two.rate: targets.one has the same url",
        "targets.one.order: accounts.shop waits for its replies",
    ] {
        assert!(printed.stderr.contains(warning), "{warning}: {printed:?}");
    }
}

/// A store whose schema no release has yet.
fn newer_store(folder: &Path) {
    fs::create_dir(folder).expect("a folder");
    let store = format!("{}/tests/data/store/v1.db", env!("CARGO_MANIFEST_DIR"));
    let database = folder.join("wxrelay.db");
    fs::copy(store, &database).expect("a store");
    let connection = rusqlite::Connection::open(database).expect("it can be opened");
    connection.pragma_update(None, "user_version", 9_999).expect("it can be changed");
}
