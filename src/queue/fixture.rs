//! What the suites of the queue share: the engines that they run on, and a queue of each in a store of its own.
//!
//! Only this file knows how an engine is opened, how its process crashes, and how its store is reached from outside.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
#[cfg(feature = "postgres")]
use std::sync::{LazyLock, mpsc};
use std::time::Duration;

use bytes::Bytes;
#[cfg(feature = "postgres")]
use parking_lot::Mutex;
use rusqlite::Connection;

#[cfg(feature = "postgres")]
use super::postgres::{self, TlsMode, test_server};
use super::*;
use crate::event::Event;
use crate::wechat::{Message, Mode};

pub(super) const NOW: UnixMillis = UnixMillis(1_795_161_600_000);
pub(super) const DAY: Duration = Duration::from_secs(86_400);
/// Longer than anything here takes; only a failing test waits for it.
pub(super) const PATIENCE: Duration = Duration::from_secs(20);

/// An engine that the suites run on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TestEngine {
    Embedded,
    #[cfg(feature = "postgres")]
    Postgres,
}

impl TestEngine {
    /// How many cases of a property are tried, where an engine that opens fast tries `most`.
    pub(super) fn cases(self, most: u32) -> proptest::test_runner::Config {
        let cases = match self {
            Self::Embedded => most,
            #[cfg(feature = "postgres")]
            Self::Postgres => most / 4,
        };
        proptest::test_runner::Config { cases, failure_persistence: None, ..Default::default() }
    }
}

/// The suites on PostgreSQL take turns: each has a dozen connections, and budgets of seconds that a machine which is busy
/// with all of them at once does not keep.
#[cfg(feature = "postgres")]
pub(super) static ALONE: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

/// Makes a test of each function for each engine. A function that takes an engine and is in no list is unused, which is
/// a warning. What comes behind `properties` has a runtime of its own.
macro_rules! on_every_engine {
    ($($test:ident),* $(,)? $(; properties: $($property:ident),+ $(,)?)?) => {
        mod embedded {
            use crate::queue::fixture::TestEngine;

            $(
                #[tokio::test]
                async fn $test() {
                    super::$test(TestEngine::Embedded).await;
                }
            )*
            $($(
                #[test]
                fn $property() {
                    super::$property(TestEngine::Embedded);
                }
            )+)?
        }

        #[cfg(feature = "postgres")]
        mod postgres {
            use crate::queue::fixture::TestEngine;
            use crate::queue::postgres::test_server;

            $(
                #[tokio::test]
                async fn $test() {
                    let _alone = crate::queue::fixture::ALONE.lock().await;
                    if test_server::shared().is_some() {
                        super::$test(TestEngine::Postgres).await;
                    }
                }
            )*
            $($(
                #[test]
                fn $property() {
                    let _alone = crate::queue::fixture::ALONE.blocking_lock();
                    if test_server::shared().is_some() {
                        super::$property(TestEngine::Postgres);
                    }
                }
            )+)?
        }
    };
}
pub(super) use on_every_engine;

/// A queue in a store of its own.
pub(super) struct QueueFixture {
    pub(super) settings: Settings,
    pub(super) queue: Queue,
    commits: Arc<AtomicU64>,
    tuning: Tuning,
    store: Arc<TestStore>,
}

/// A store that is removed in the end.
enum TestStore {
    Folder(tempfile::TempDir),
    #[cfg(feature = "postgres")]
    Database(test_server::Database<'static>),
}

impl QueueFixture {
    /// With the shipped sizes.
    pub(super) async fn open(engine: TestEngine) -> Self {
        Self::open_tuned(engine, Tuning::patient()).await
    }

    pub(super) async fn open_tuned(engine: TestEngine, tuning: Tuning) -> Self {
        Self::open_with(engine, tuning, EncryptionKeys::default()).await
    }

    pub(super) async fn open_with(engine: TestEngine, tuning: Tuning, encryption_keys: EncryptionKeys) -> Self {
        let store = TestStore::new(engine);
        let settings = Settings { encryption_keys, ..store.settings() };
        Self::open_in(store.into(), settings, tuning).await.unwrap()
    }

    async fn open_in(store: Arc<TestStore>, settings: Settings, tuning: Tuning) -> Result<Self, Error> {
        let commits = Arc::new(AtomicU64::new(0));
        let counter = Arc::clone(&commits);
        let count = move |_| {
            counter.fetch_add(1, Ordering::Relaxed);
        };
        let queue = Queue::open_tuned(&settings, &tuning, count).await?;
        Ok(Self { settings, queue, commits, tuning, store })
    }

    /// With a database of this server.
    #[cfg(feature = "postgres")]
    pub(super) async fn open_on(cluster: &'static test_server::Cluster) -> Self {
        let store = TestStore::Database(cluster.database());
        let settings = store.settings();
        Self::open_in(store.into(), settings, Tuning::default()).await.unwrap()
    }

    /// Another process beside this one, where the engine allows that.
    pub(super) async fn beside(&self, engine: TestEngine) -> Option<Self> {
        match engine {
            TestEngine::Embedded => None,
            #[cfg(feature = "postgres")]
            TestEngine::Postgres => Some(self.another().await),
        }
    }

    /// Another process beside this one, on the same store.
    #[cfg(feature = "postgres")]
    pub(super) async fn another(&self) -> Self {
        Self::open_in(Arc::clone(&self.store), self.settings.clone(), self.tuning).await.unwrap()
    }

    pub(super) async fn reopen(self) -> Self {
        let keys = self.settings.encryption_keys.clone();
        self.reopen_with(keys).await.unwrap()
    }

    /// Closes it, and opens the store with other keys.
    pub(super) async fn reopen_with(&self, encryption_keys: EncryptionKeys) -> Result<Self, Error> {
        self.queue.clone().close().await;
        let settings = Settings { encryption_keys, ..self.settings.clone() };
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            match Self::open_in(Arc::clone(&self.store), settings.clone(), self.tuning).await {
                // Another test has just started a program, which has the lock's file until it is executed.
                Err(Error::Locked { .. }) if tokio::time::Instant::now() < deadline => tokio::task::yield_now().await,
                opened => return opened,
            }
        }
    }

    /// A copy of the store as a crash at this moment would leave it, opened by another process.
    pub(super) async fn crashed(&self) -> Self {
        let copy = self.store.copy();
        let engine = copy.settings().engine;
        Self::open_in(copy.into(), Settings { engine, ..self.settings.clone() }, self.tuning).await.unwrap()
    }

    pub(super) fn event(&self, content: &str, targets: &[&str]) -> NewEvent {
        new_event(self.queue.next_id(NOW), content, targets)
    }

    pub(super) async fn store(&self, content: &str, targets: &[&str]) -> EventId {
        let new = self.event(content, targets);
        let id = new.event.id;
        assert!(matches!(self.queue.enqueue(new).await.unwrap(), Enqueued::Fresh));
        id
    }

    pub(super) async fn end(&self, event: EventId, target: &str, state: DeliveryState) {
        self.queue.settle(settlement(event, target, Disposition::End(state), 1)).await.unwrap();
    }

    pub(super) async fn lease(&self, target: &str, max: usize, now: UnixMillis) -> Leases {
        self.queue.lease(target, max, now).await.unwrap()
    }

    pub(super) async fn inspect(&self) -> Inspect {
        Inspect::open(&self.settings).await.unwrap()
    }

    pub(super) async fn inspect_with(&self, encryption_keys: EncryptionKeys) -> Inspect {
        Inspect::open(&Settings { encryption_keys, ..self.settings.clone() }).await.unwrap()
    }

    /// The audit, after making sure that it adds up.
    pub(super) async fn audit(&self) -> Audit {
        let audit = self.inspect().await.audit().await.unwrap();
        assert!(audit.is_clean(), "{audit:?}");
        audit
    }

    /// How many commits there were.
    pub(super) fn commits(&self) -> u64 {
        self.commits.load(Ordering::Relaxed)
    }

    /// Executes SQL that every engine understands, as another program would.
    pub(super) fn execute(&self, sql: &str) {
        match &*self.store {
            TestStore::Folder(folder) => shell(folder.path()).execute_batch(sql).unwrap(),
            #[cfg(feature = "postgres")]
            TestStore::Database(database) => drop(database.sql(&format!("SET search_path TO wxrelay; {sql}"))),
        }
    }

    /// A session of the superuser with its database.
    #[cfg(feature = "postgres")]
    pub(super) fn psql(&self) -> std::process::Command {
        let TestStore::Database(database) = &*self.store else { panic!("only of PostgreSQL") };
        database.cluster.psql(&database.name)
    }

    /// The rows of a query of one column of text.
    pub(super) fn texts(&self, sql: &str) -> Vec<Option<String>> {
        match &*self.store {
            TestStore::Folder(folder) => {
                let shell = shell(folder.path());
                let mut find = shell.prepare(sql).unwrap();
                find.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect()
            }
            #[cfg(feature = "postgres")]
            TestStore::Database(database) => {
                let rows = database.sql(&format!("\\pset null NULL\nSET search_path TO wxrelay; {sql};"));
                rows.lines().map(|row| (row != "NULL").then(|| row.to_owned())).collect()
            }
        }
    }

    /// Whether the store has those bytes: in any file, or in any value.
    pub(super) fn holds(&self, bytes: impl AsRef<[u8]>) -> bool {
        match &*self.store {
            TestStore::Folder(folder) => is_in_files(folder.path(), bytes.as_ref()),
            #[cfg(feature = "postgres")]
            TestStore::Database(database) => is_in_tables(database, bytes.as_ref()),
        }
    }
}

impl TestStore {
    fn new(engine: TestEngine) -> Self {
        match engine {
            TestEngine::Embedded => Self::Folder(tempfile::tempdir().unwrap()),
            #[cfg(feature = "postgres")]
            TestEngine::Postgres => Self::Database(test_server::shared().unwrap().database()),
        }
    }

    /// With no keys.
    fn settings(&self) -> Settings {
        match self {
            Self::Folder(folder) => Settings::for_tests(folder.path()),
            #[cfg(feature = "postgres")]
            Self::Database(database) => {
                // Without a password: its hash takes a tenth of a second a connection where nothing is optimised.
                let url = postgres::Settings::new(&database.socket_url()).unwrap();
                let engine = Engine::Postgres(Box::new(postgres::Settings { tls: TlsMode::Off, ..url }));
                Settings { engine, ..Settings::for_tests(Path::new("")) }
            }
        }
    }

    /// As it is on stable storage.
    fn copy(&self) -> Self {
        match self {
            Self::Folder(folder) => {
                let copy = tempfile::tempdir().unwrap();
                for file in ["wxrelay.db", "wxrelay.db-wal"] {
                    fs::copy(folder.path().join(file), copy.path().join(file)).unwrap();
                }
                Self::Folder(copy)
            }
            #[cfg(feature = "postgres")]
            Self::Database(database) => Self::Database(copy_database(database)),
        }
    }
}

#[cfg(feature = "postgres")]
impl Drop for TestStore {
    fn drop(&mut self) {
        // The server that holds it ends with the process.
        if let Self::Database(database) = self
            && !std::thread::panicking()
        {
            drop_later(database);
        }
    }
}

/// Drops a database beside the tests: each time the server writes all that it has in memory, for half a second.
#[cfg(feature = "postgres")]
fn drop_later(database: &test_server::Database<'static>) {
    static DROPS: LazyLock<Mutex<mpsc::Sender<(&'static test_server::Cluster, String)>>> = LazyLock::new(|| {
        let (sender, drops) = mpsc::channel::<(&test_server::Cluster, String)>();
        // It may end in the middle with the process, and the server with both.
        std::thread::spawn(move || {
            for (cluster, name) in drops {
                drop(cluster.try_sql("postgres", &format!("DROP DATABASE {name} WITH (FORCE)")));
            }
        });
        Mutex::new(sender)
    });
    drop(DROPS.lock().send((database.cluster, database.name.clone())));
}

/// A copy of a database, whose sessions are ended for that: all at once, as waiting for one takes a tenth of a second.
/// Its replicas died long ago, so what they held is free at once.
#[cfg(feature = "postgres")]
fn copy_database(database: &test_server::Database<'static>) -> test_server::Database<'static> {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    let test_server::Database { cluster, name, role } = database;
    let copy = format!("{name}_copy_{}", NUMBER.fetch_add(1, Ordering::Relaxed));
    let sql = format!(
        "ALTER DATABASE {name} ALLOW_CONNECTIONS false;
         SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}';
         SELECT pg_terminate_backend(pid, 20000) FROM pg_stat_activity WHERE datname = '{name}';
         CREATE DATABASE {copy} OWNER {role} TEMPLATE {name};
         ALTER DATABASE {name} ALLOW_CONNECTIONS true;
         \\connect {copy}
         DELETE FROM wxrelay.replica"
    );
    cluster.sql("postgres", &sql);
    test_server::Database { cluster, name: copy, role: role.clone() }
}

/// Whether a value of the tables has those bytes, as text or as they are.
#[cfg(feature = "postgres")]
fn is_in_tables(database: &test_server::Database<'_>, bytes: &[u8]) -> bool {
    use std::fmt::Write as _;

    let tables = ["event", "known", "retired_key", "key", "target", "delivery", "attempt"];
    let dump: String = tables.iter().map(|table| format!("SELECT t::text FROM wxrelay.{table} t;\n")).collect();
    let dump = database.sql(&dump);
    let mut hex = String::new();
    bytes.iter().for_each(|byte| write!(hex, "{byte:02x}").unwrap());
    // The number of a user is an integer there.
    let number = bytes.try_into().ok().map(|number| i64::from_be_bytes(number).to_string());
    let is_there = |part: &str| dump.contains(part);
    is_there(&hex) || number.is_some_and(|number| is_there(&number)) || str::from_utf8(bytes).is_ok_and(is_there)
}

fn shell(folder: &Path) -> Connection {
    Connection::open(folder.join("wxrelay.db")).unwrap()
}

fn is_in_files(folder: &Path, bytes: &[u8]) -> bool {
    const PAGE: usize = 4096;
    fs::read_dir(folder).unwrap().any(|entry| {
        let file = fs::read(entry.unwrap().path()).unwrap();
        let pages = (0..file.len()).step_by(PAGE).map(|at| &file[at..file.len().min(at + PAGE + bytes.len())]);
        // Most pages of the reserve file are zeros: those are excluded fast.
        let mut used = pages.filter(|page| page.get(..PAGE).is_none_or(|page| page != [0; PAGE]));
        used.any(|page| page.windows(bytes.len()).any(|part| part == bytes))
    })
}

pub(super) fn new_event(id: EventId, content: &str, targets: &[&str]) -> NewEvent {
    new_event_of(id, "o1", content, targets)
}

pub(super) fn new_event_of(id: EventId, user: &str, content: &str, targets: &[&str]) -> NewEvent {
    let clear = Bytes::from(format!(
        "<xml><ToUserName>gh</ToUserName><FromUserName>{user}</FromUserName><CreateTime>1</CreateTime>\
         <MsgType>text</MsgType><Content>{content}</Content></xml>"
    ));
    let message = Message::parse(&clear).unwrap();
    let key = ContentKey::of("wx1", &message, &clear);
    let event = Event {
        id,
        account: "shop".into(),
        app_id: "wx1".into(),
        mode: Mode::Secure,
        received_at: NOW,
        query: format!("timestamp=1&openid={user}"),
        body: Bytes::from_static(b"sealed"),
        clear,
        message,
        traceparent: None,
    };
    let targets = targets.iter().map(|name| Arc::from(*name)).collect();
    NewEvent { event: Arc::new(event), key, targets, reply: None, awaited: Vec::new() }
}

pub(super) fn settlement(event: EventId, target: &str, disposition: Disposition, number: u32) -> Settlement {
    let (status, error, answer) = (Some(503), Some("503".to_owned()), Some(b"busy".to_vec()));
    let attempt = AttemptRecord { number, at: NOW, duration: Duration::from_millis(7), status, error, answer };
    Settlement { event, target: target.into(), disposition, decided_at: NOW, attempt: Some(attempt), reply: None }
}

pub(super) fn ids(leases: &Leases) -> Vec<EventId> {
    leases.due.iter().map(|lease| lease.event.id).collect()
}

/// Polls all of them together on this task.
pub(super) async fn concurrently<F: Future<Output = ()>>(futures: impl Iterator<Item = F>) {
    let mut waiting: Vec<_> = futures.map(Box::pin).collect();
    std::future::poll_fn(|context| {
        waiting.retain_mut(|future| future.as_mut().poll(context).is_pending());
        if waiting.is_empty() { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
    })
    .await;
}
