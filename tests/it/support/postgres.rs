//! PostgreSQL for the tests: servers of their own, in memory where that is possible, and a database for each test.
//!
//! A server ends with the process that started it, however that ends: a shell waits for the end of a pipe, stops the
//! server and removes its folder. The same file is a part of the unit tests of the queue, so it names nothing of the
//! other helpers.
#![allow(dead_code, reason = "the unit tests and the door tests need different parts")]

use std::fs;
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::net::TcpListener;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, OnceLock};

/// The oldest version that the relay supports.
const OLDEST: u32 = 15;
/// The password of every role of a test.
pub(crate) const PASSWORD: &str = "hunter2";

/// Numbers servers and databases of this process.
static NUMBER: AtomicU32 = AtomicU32::new(0);

/// Creates the folder and the server, then obeys: `start` starts it. At the end of the input, stops it and removes all.
const KEEPER: &str = r#"
trap '' INT TERM HUP PIPE
umask 077
mkdir "$FOLDER" || exit 1
cd "$FOLDER"
clean() {
  "$BIN/pg_ctl" -D data -m immediate -w -t 60 stop >/dev/null 2>&1
  cd /
  rm -rf "$FOLDER"
}
trap clean EXIT
if [ -n "$PRIMARY" ]; then
  "$BIN/pg_basebackup" -D data -d "$PRIMARY" -R -X stream -c fast --no-sync >setup.log 2>&1
else
  "$BIN/initdb" -D data -U postgres -A trust -E UTF8 --locale=C.UTF-8 --no-sync >setup.log 2>&1
  printf '%s\n' 'local all all trust' 'local replication all trust' 'host all postgres 127.0.0.0/8 trust' \
    'host all all 127.0.0.0/8 scram-sha-256' >data/pg_hba.conf
fi || { cat setup.log; exit 1; }
printf '%s\n' "$SETTINGS" >>data/postgresql.conf
echo ready
while read -r command; do
  if "$BIN/pg_ctl" -D data -w -t 60 -l server.log start >setup.log 2>&1 </dev/null; then
    echo started
  else
    echo failed
  fi
done
"#;

/// Runs PgBouncer until the end of the input.
const POOLER_KEEPER: &str = r#"
trap '' INT TERM HUP
umask 077
cd "$FOLDER" && printf '%s\n' "$SETTINGS" >pgbouncer.ini && printf '%s\n' "$USERS" >pgbouncer.users || exit 1
"$BOUNCER" -q pgbouncer.ini >pgbouncer.log 2>&1 </dev/null &
pid=$!
read -r _
kill -KILL $pid
"#;

/// A server.
#[derive(Debug)]
pub(crate) struct Cluster {
    pub(crate) folder: PathBuf,
    /// An address of this machine that no other process uses.
    pub(crate) host: String,
    pub(crate) port: u16,
    bin: PathBuf,
    keeper: Mutex<Keeper>,
}

#[derive(Debug)]
struct Keeper {
    _process: Child,
    orders: ChildStdin,
    reports: BufReader<ChildStdout>,
}

impl Keeper {
    fn report(&mut self) -> String {
        let mut line = String::new();
        self.reports.read_line(&mut line).expect("a report of the shell");
        line.trim_end().to_owned()
    }
}

/// The server that the tests of this process share: they change nothing of it but their own databases. `None` where
/// PostgreSQL is not installed: the test prints that and passes; in CI it fails.
pub(crate) fn shared() -> Option<&'static Cluster> {
    static SHARED: OnceLock<Option<Cluster>> = OnceLock::new();
    SHARED.get_or_init(|| Cluster::start(&base(), "")).as_ref().or_else(|| {
        skip_postgres();
        None
    })
}

/// A server of the test's own, with further lines for `postgresql.conf`; `None` as for [`shared`].
pub(crate) fn own(settings: &str) -> Option<Cluster> {
    own_in(&base(), settings)
}

/// The same with its data in this folder.
pub(crate) fn own_in(folder: &Path, settings: &str) -> Option<Cluster> {
    Cluster::start(folder, settings).or_else(|| {
        skip_postgres();
        None
    })
}

fn skip_postgres() {
    skip(&format!("PostgreSQL {OLDEST} or newer"));
}

fn skip(missing: &str) {
    assert!(std::env::var_os("CI").is_none(), "in CI nothing is skipped: {missing} is not installed");
    let test = std::thread::current().name().unwrap_or("a test").to_owned();
    // Not captured, unlike what `eprintln` prints.
    writeln!(io::stderr(), "skipped: {test}: {missing} is not installed").expect("a line on stderr");
}

/// The folder of the newest version's programs.
fn programs() -> Option<PathBuf> {
    let version = |folder: &Path| {
        let output = Command::new(folder.join("postgres")).arg("--version").output().ok()?;
        let text = String::from_utf8(output.stdout).ok()?;
        text.split_whitespace().find_map(|word| word.split('.').next()?.parse::<u32>().ok())
    };
    let debian =
        fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten().map(|entry| entry.path().join("bin"));
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = debian.chain(std::env::split_paths(&path)).filter(|folder| {
        ["initdb", "pg_ctl", "psql", "pg_basebackup"].iter().all(|program| folder.join(program).exists())
    });
    let found = found.filter_map(|folder| Some((version(&folder)?, folder)));
    found.filter(|(version, _)| *version >= OLDEST).max().map(|(_, folder)| folder)
}

/// Where a server's folder goes: memory, if it has room.
fn base() -> PathBuf {
    let memory = Path::new("/dev/shm");
    let has_room = rustix::fs::statvfs(memory).is_ok_and(|stat| stat.f_bavail * stat.f_frsize > 1 << 30);
    if has_room { memory.to_owned() } else { std::env::temp_dir() }
}

/// A shell as an ordinary user: PostgreSQL refuses to run as root.
fn shell() -> Command {
    if !rustix::process::getuid().is_root() {
        return Command::new("sh");
    }
    let users = fs::read_to_string("/etc/passwd").unwrap_or_default();
    let user = if users.contains("\npostgres:") { "postgres" } else { "nobody" };
    let mut command = Command::new("setpriv");
    command.args(["--reuid", user, "--regid", if user == "nobody" { "nogroup" } else { user }]);
    command.args(["--clear-groups", "sh"]);
    command
}

/// A free port of an address that no other process uses: another process could take a free port of 127.0.0.1 first.
fn free_address(number: u32) -> (String, u16) {
    let [.., high, low] = std::process::id().to_be_bytes();
    let host = format!("127.{}.{low}.{}", high | 1, 100 + number % 100);
    let listener = TcpListener::bind((host.as_str(), 0)).expect("a free port");
    let port = listener.local_addr().expect("an address").port();
    (host, port)
}

impl Cluster {
    fn start(base: &Path, settings: &str) -> Option<Self> {
        programs().map(|bin| Self::set_up(bin, base, settings, ""))
    }

    /// Starts a standby of this server, which has its data and follows it as `name`.
    pub(crate) fn standby(&self, name: &str) -> Self {
        let primary =
            format!("host={} port={} user=postgres application_name={name}", self.folder.display(), self.port);
        Self::set_up(self.bin.clone(), self.folder.parent().expect("a folder"), "", &primary)
    }

    fn set_up(bin: PathBuf, base: &Path, settings: &str, primary: &str) -> Self {
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let folder = base.join(format!("wxrelay-postgres-{}-{number}", std::process::id()));
        let (host, port) = free_address(number);
        let settings = format!(
            "port = {port}\nlisten_addresses = '{host}'\nunix_socket_directories = '{}'\nmax_connections = 200\n\
             shared_buffers = 64MB\nmax_wal_senders = 4\nwal_keep_size = 64MB\n{settings}\n",
            folder.display()
        );
        let mut command = shell();
        command.args(["-c", KEEPER]).env("FOLDER", &folder).env("BIN", &bin).env("PRIMARY", primary);
        command.env("SETTINGS", settings).env("LC_ALL", "C.UTF-8").current_dir("/");
        let spawned = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn();
        let mut process = spawned.expect("a shell can be started");
        let orders = process.stdin.take().expect("a pipe");
        let reports = BufReader::new(process.stdout.take().expect("a pipe"));
        let mut keeper = Keeper { _process: process, orders, reports };
        let report = keeper.report();
        assert_eq!(report, "ready", "PostgreSQL was not set up");
        let cluster = Self { folder, host, port, bin, keeper: Mutex::new(keeper) };
        cluster.restart();
        cluster
    }

    /// Starts it again, after [`Cluster::stop`] or [`Cluster::kill`].
    pub(crate) fn restart(&self) {
        let mut keeper = self.keeper.lock().expect("no test panicked with it");
        for _ in 0..20 {
            writeln!(keeper.orders, "start").expect("the shell reads");
            if keeper.report() == "started" {
                return;
            }
            // The processes of a server that was killed end by themselves, after a moment; pg_ctl has waited for it.
        }
        let log = fs::read_to_string(self.folder.join("server.log")).unwrap_or_default();
        panic!("PostgreSQL did not start: {log}");
    }

    /// Stops it: `smart`, `fast` or `immediate`.
    pub(crate) fn stop(&self, mode: &str) {
        let mut command = self.as_owner(&self.bin.join("pg_ctl"));
        command.arg("-D").arg(self.folder.join("data")).args(["-m", mode, "-w", "stop"]);
        assert!(command.stdout(Stdio::null()).status().expect("pg_ctl runs").success());
    }

    /// Kills it, as a power failure would.
    pub(crate) fn kill(&self) {
        let pid = rustix::process::Pid::from_raw(self.pid()).expect("a process");
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).expect("it can be killed");
    }

    /// The first of its processes.
    pub(crate) fn pid(&self) -> i32 {
        let file = fs::read_to_string(self.folder.join("data/postmaster.pid")).expect("it runs");
        file.lines().next().and_then(|line| line.trim().parse().ok()).expect("a process")
    }

    /// Makes a standby a primary; returns when it accepts writes.
    pub(crate) fn promote(&self) {
        assert_eq!(self.sql("postgres", "SELECT pg_promote(true, 60)"), "t");
    }

    /// Sets a setting of the whole server, or with `None` resets it.
    pub(crate) fn set(&self, name: &str, value: Option<&str>) {
        let value = value.map_or("DEFAULT".to_owned(), |value| format!("'{value}'"));
        self.sql("postgres", &format!("ALTER SYSTEM SET {name} = {value}"));
        self.sql("postgres", "SELECT pg_reload_conf()");
    }

    /// Executes SQL as the superuser; the rows as lines, columns separated by `|`.
    pub(crate) fn sql(&self, database: &str, sql: &str) -> String {
        self.try_sql(database, sql).unwrap_or_else(|error| panic!("{sql}: {error}"))
    }

    /// As [`Cluster::sql`]; the server's words if it fails.
    pub(crate) fn try_sql(&self, database: &str, sql: &str) -> Result<String, String> {
        let mut process = self.psql(database).stderr(Stdio::piped()).spawn().expect("psql runs");
        let mut input = process.stdin.take().expect("a pipe");
        input.write_all(sql.as_bytes()).expect("psql reads");
        drop(input);
        let output = process.wait_with_output().expect("psql ends");
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("UTF-8").trim_end().to_owned();
        if output.status.success() { Ok(text(output.stdout)) } else { Err(text(output.stderr)) }
    }

    /// Executes the SQL of its input as the superuser.
    pub(crate) fn psql(&self, database: &str) -> Command {
        let mut command = Command::new(self.bin.join("psql"));
        command.args(["-X", "-A", "-t", "-q", "-v", "ON_ERROR_STOP=1", "-U", "postgres", "-h"]).arg(&self.folder);
        command.args(["-p", &self.port.to_string(), "-d", database, "-f", "-"]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).current_dir("/");
        command
    }

    /// Writes a file into its data folder, as its own user's.
    pub(crate) fn install(&self, name: &str, content: &str) {
        let data = self.folder.join("data");
        let owner = fs::metadata(&data).expect("its folder");
        let path = data.join(name);
        fs::write(&path, content).expect("a file");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("its rights");
        chown(&path, Some(owner.uid()), Some(owner.gid())).expect("its owner");
    }

    fn make_folder(&self, path: &Path) {
        let owner = fs::metadata(self.folder.join("data")).expect("its folder");
        fs::create_dir(path).expect("a folder");
        chown(path, Some(owner.uid()), Some(owner.gid())).expect("its owner");
    }

    /// A fresh database, with a role that owns it.
    pub(crate) fn database(&self) -> Database<'_> {
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let (name, role) = (format!("test_{number}"), format!("role_{number}"));
        let role_and_database = format!(
            "CREATE ROLE {role} LOGIN PASSWORD '{PASSWORD}';\nCREATE DATABASE {name} OWNER {role} TEMPLATE template0"
        );
        self.sql("postgres", &role_and_database);
        Database { cluster: self, name, role }
    }

    fn as_owner(&self, program: &Path) -> Command {
        if !rustix::process::getuid().is_root() {
            return Command::new(program);
        }
        let owner = fs::metadata(self.folder.join("data")).expect("its folder");
        let mut command = Command::new("setpriv");
        command.args(["--reuid", &owner.uid().to_string(), "--regid", &owner.gid().to_string(), "--clear-groups"]);
        command.arg(program).current_dir("/");
        command
    }
}

/// The database of one test.
#[derive(Debug)]
pub(crate) struct Database<'a> {
    pub(crate) cluster: &'a Cluster,
    pub(crate) name: String,
    pub(crate) role: String,
}

impl Database<'_> {
    /// The URL for the role that owns it, over TCP.
    pub(crate) fn url(&self) -> String {
        self.url_at(&format!("{}:{}", self.cluster.host, self.cluster.port))
    }

    /// The same by way of other addresses.
    pub(crate) fn url_at(&self, addresses: &str) -> String {
        format!("postgres://{}:{PASSWORD}@{addresses}/{}", self.role, self.name)
    }

    /// The URL over the Unix socket, where no password is needed.
    pub(crate) fn socket_url(&self) -> String {
        let folder = self.cluster.folder.display();
        format!("postgres:///{}?host={folder}&port={}&user={}", self.name, self.cluster.port, self.role)
    }

    /// Executes SQL as the superuser.
    pub(crate) fn sql(&self, sql: &str) -> String {
        self.cluster.sql(&self.name, sql)
    }

    /// Ends all sessions of its role; returns how many there were.
    pub(crate) fn end_sessions(&self) -> usize {
        self.each_session("pg_terminate_backend")
    }

    /// Cancels what its role's sessions do; returns how many there were.
    pub(crate) fn cancel_sessions(&self) -> usize {
        self.each_session("pg_cancel_backend")
    }

    fn each_session(&self, function: &str) -> usize {
        let sql = format!("SELECT {function}(pid) FROM pg_stat_activity WHERE usename = '{}'", self.role);
        self.sql(&sql).lines().count()
    }
}

/// PgBouncer before one test's database, in transaction mode; ends with its handle.
#[derive(Debug)]
pub(crate) struct Pooler {
    /// Where it listens.
    pub(crate) address: String,
    _process: Child,
    _input: ChildStdin,
}

impl Database<'_> {
    /// Starts PgBouncer before it, with at most that many connections to PostgreSQL; `None` where it is not installed:
    /// the test passes, in CI it fails.
    pub(crate) fn pooler(&self, connections: u32) -> Option<Pooler> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let folders = std::env::split_paths(&path).chain([PathBuf::from("/usr/sbin")]);
        let Some(program) = folders.map(|folder| folder.join("pgbouncer")).find(|program| program.is_file()) else {
            skip("pgbouncer");
            return None;
        };
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let (host, port) = free_address(number);
        let folder = self.cluster.folder.display();
        let settings = format!(
            "[databases]\n* = host={folder} port={}\n[pgbouncer]\nlisten_addr = {host}\nlisten_port = {port}\n\
             unix_socket_dir =\nauth_type = md5\nauth_file = {folder}/pgbouncer-{number}/pgbouncer.users\n\
             pool_mode = transaction\ndefault_pool_size = {connections}\n",
            self.cluster.port
        );
        let own = self.cluster.folder.join(format!("pgbouncer-{number}"));
        self.cluster.make_folder(&own);
        let mut command = shell();
        command.args(["-c", POOLER_KEEPER]).env("FOLDER", &own).env("BOUNCER", program).env("SETTINGS", settings);
        command.env("USERS", format!("\"{}\" \"{PASSWORD}\"", self.role)).current_dir("/");
        let spawned = command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        let mut process = spawned.expect("a shell can be started");
        let input = process.stdin.take().expect("a pipe");
        Some(Pooler { address: format!("{host}:{port}"), _process: process, _input: input })
    }
}
