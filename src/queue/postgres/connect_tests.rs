//! Connecting over TLS, a slow network, a pooler, and across a failover, with real servers.

use std::collections::HashSet;
use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_postgres::types::Type;

use super::test_server::{self, Cluster};
use super::*;

const BUDGET: Duration = Duration::from_secs(20);

fn settings(url: &str) -> Settings {
    Settings { tls: TlsMode::Off, ..Settings::new(url).unwrap() }
}

/// A server's certificate and key, and the file that a client trusts it by.
struct Certificate {
    folder: tempfile::TempDir,
    pem: String,
    key: String,
}

impl Certificate {
    /// Self-signed, valid until the start of that year.
    fn new(name: &str, end: i32) -> Self {
        let mut params = rcgen::CertificateParams::new(vec![name.to_owned()]).unwrap();
        params.not_before = rcgen::date_time_ymd(2000, 1, 1);
        params.not_after = rcgen::date_time_ymd(end, 1, 1);
        let key = rcgen::KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("ca.pem"), &pem).unwrap();
        Self { folder, pem, key: key.serialize_pem() }
    }

    fn ca(&self) -> PathBuf {
        self.folder.path().join("ca.pem")
    }

    fn install(&self, cluster: &Cluster) {
        cluster.install("server.crt", &self.pem);
        cluster.install("server.key", &self.key);
        cluster.set("ssl", Some("on"));
    }
}

/// Connects until the outcome is the expected one: a server picks up new settings a moment after it was told.
async fn until<T>(settings: &Settings, expected: impl Fn(Result<Session, NoServer>) -> Result<T, String>) -> T {
    let connector = Connector::new(settings);
    let mut last = String::new();
    let trying = async {
        loop {
            match expected(connector.connect().await) {
                Ok(value) => return value,
                Err(other) => last = other,
            }
        }
    };
    let result = timeout(BUDGET, trying).await;
    result.unwrap_or_else(|_| panic!("{last}"))
}

fn refused(result: Result<Session, NoServer>, text: &str, remedy: &str) -> Result<(), String> {
    let error = result.map(|_| ()).err().ok_or("connected")?;
    let is_expected = error.to_string().contains(text) && error.remedy().is_some_and(|found| found.contains(remedy));
    if is_expected && error.is_configuration() { Ok(()) } else { Err(format!("{error}: {:?}", error.remedy())) }
}

#[tokio::test]
async fn a_server_is_verified_by_its_certificate_and_judged_by_its_durability() {
    let Some(cluster) = test_server::own("") else { return };
    let database = cluster.database();
    let (good, expired) = (Certificate::new(&cluster.host, 4096), Certificate::new(&cluster.host, 2020));
    let other_name = Certificate::new("pg.test", 4096);
    let with = |ca: Option<PathBuf>| {
        let tls = TlsMode::Verified { ca, client: None };
        Settings { tls, ..Settings::new(&database.url()).unwrap() }
    };

    good.install(&cluster);
    let session = until(&with(Some(good.ca())), |result| result.map_err(|error| error.to_string())).await;
    let is_encrypted = "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()";
    assert!(session.query(is_encrypted, &[]).await.unwrap()[0].get::<_, bool>(0));
    until(&with(None), |result| refused(result, "authority that is not trusted", "queue.tls.ca")).await;
    until(&with(Some(PathBuf::from("/none.pem"))), |result| refused(result, "/none.pem", "correct the file")).await;
    expired.install(&cluster);
    until(&with(Some(expired.ca())), |result| refused(result, "TLS failed", "renew")).await;
    other_name.install(&cluster);
    until(&with(Some(other_name.ca())), |result| refused(result, "TLS failed", "must be a name in it")).await;
    drop(session);

    for setting in ["fsync", "full_page_writes"] {
        cluster.set(setting, Some("off"));
        let text = format!("{setting} is off");
        until(&settings(&database.url()), |result| refused(result, &text, "accept_weak_durability")).await;
        cluster.set(setting, None);
    }
    until(&settings(&database.url()), |result| result.map_err(|error| error.to_string())).await;
}

/// Passes bytes on, each after a delay.
async fn pass_slowly(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, delay: Duration) {
    let (sender, mut receiver) = mpsc::unbounded_channel();
    let reading = async move {
        let mut buffer = vec![0; 64 << 10];
        while let Ok(length @ 1..) = from.read(&mut buffer).await {
            if sender.send((Instant::now() + delay, buffer[..length].to_vec())).is_err() {
                break;
            }
        }
    };
    let writing = async move {
        while let Some((moment, bytes)) = receiver.recv().await {
            sleep_until(moment).await;
            if to.write_all(&bytes).await.is_err() {
                break;
            }
        }
    };
    tokio::join!(reading, writing);
}

#[tokio::test]
async fn a_connection_over_tls_fits_its_time_limit_at_a_distance_of_300_ms() {
    let Some(cluster) = test_server::own("") else { return };
    let database = cluster.database();
    let listener = TcpListener::bind(format!("{}:0", cluster.host)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = (cluster.host.clone(), cluster.port);
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let (read, write) = client.into_split();
            let (server_read, server_write) = TcpStream::connect(&server).await.unwrap().into_split();
            tokio::spawn(pass_slowly(read, server_write, Duration::from_millis(150)));
            tokio::spawn(pass_slowly(server_read, write, Duration::from_millis(150)));
        }
    });
    let certificate = Certificate::new(&cluster.host, 4096);
    certificate.install(&cluster);
    let tls = TlsMode::Verified { ca: Some(certificate.ca()), client: None };
    let near = Settings { tls, ..Settings::new(&database.url()).unwrap() };
    until(&near, |result| result.map_err(|error| error.to_string())).await;
    // A call gives up before the connect can have ended; a later one has it.
    let far = Settings { server: Server::parse(&database.url_at(&address.to_string())).unwrap(), ..near };
    let pinned = PinnedSession::new(Connector::new(&far));
    let ask = async || {
        pinned.call(Duration::from_millis(900), async |session| session.query_once("SELECT 1", &[]).await).await
    };
    let first = ask().await;
    assert!(matches!(first, Err(Failure::Busy)), "{first:?}");
    timeout(BUDGET, async { while ask().await.is_err() {} }).await.unwrap();
}

#[tokio::test]
async fn a_server_that_hangs_does_not_take_the_budget_of_every_call() {
    let Some(cluster) = test_server::shared() else { return };
    let database = cluster.database();
    let hanging = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addresses = format!("{},{}:{}", hanging.local_addr().unwrap(), cluster.host, cluster.port);
    let pinned = PinnedSession::new(Connector::new(&settings(&database.url_at(&addresses))));
    let ask = async |budget| pinned.call(budget, async |session| session.query("SELECT 1", &[]).await).await;
    let first = ask(Duration::from_millis(200)).await;
    assert!(matches!(first, Err(Failure::Busy)), "{first:?}");
    ask(BUDGET).await.unwrap();
}

#[tokio::test]
async fn a_pooler_in_transaction_mode_is_used_when_the_settings_say_so_and_refused_otherwise() {
    let Some(cluster) = test_server::shared() else { return };
    let database = cluster.database();
    let Some(pooler) = database.pooler(2) else { return };
    let url = database.url_at(&pooler.address);
    let pooled = Settings { pooler: true, ..settings(&url) };
    let session = until(&pooled, |result| result.map_err(|error| error.to_string())).await;
    let other = Connector::new(&pooled).connect().await.unwrap();
    schema::prepare(&session, &pooled).await.unwrap();
    schema::check(&other, &pooled).await.unwrap();
    for number in 0..20_i64 {
        let values: [Value<'_>; 1] = [(&number, Type::INT8)];
        let insert = BoundQuery { sql: "INSERT INTO tally_delta VALUES (0, 0, $1)", values: &values };
        let count = BoundQuery { sql: "SELECT count(*) FROM tally_delta", values: &[] };
        let queries = [insert, count];
        let (a, b) = (session.transact("", &queries), other.query("SELECT count(*) FROM tally_delta", &[]));
        let (a, b) = tokio::join!(a, b);
        assert_eq!(a.unwrap()[1][0].get::<_, i64>(0), number + 1);
        b.unwrap();
    }
    until(&settings(&url), |result| refused(result, "pooler between", "queue.pooler = true")).await;
    until(&settings(&url.replace("hunter2", "wrong")), |result| {
        let error = result.map(|_| ()).err().ok_or("connected")?;
        if error.is_configuration() { Ok(()) } else { Err(error.to_string()) }
    })
    .await;
    drop(pooler);
    let gone = timeout(BUDGET, async { while session.query("SELECT 1", &[]).await.is_ok() {} }).await;
    gone.unwrap();
}

#[tokio::test]
async fn after_a_failover_the_new_primary_is_used_and_the_old_one_is_not() {
    let Some(primary) = test_server::own("") else { return };
    let standby = primary.standby("b");
    primary.set("synchronous_standby_names", Some("b"));
    let database = primary.database();
    let addresses = format!("{}:{},{}:{}", primary.host, primary.port, standby.host, standby.port);
    let settings = settings(&database.url_at(&addresses));
    let pinned = PinnedSession::new(Connector::new(&settings));
    pinned.call(BUDGET, async |session| schema::prepare(session, &settings).await).await.unwrap();
    let insert = async || {
        let insert = async |session: &mut Session| {
            session.query("INSERT INTO tally_delta VALUES (0, 0, 1)", &[]).await?;
            Ok(session.address().port)
        };
        pinned.call(BUDGET, insert).await
    };
    // Demoted: it answers, and refuses to write.
    let demote = async |session: &mut Session| session.execute_script("SET default_transaction_read_only = on").await;
    pinned.call(BUDGET, demote).await.unwrap();
    assert!(matches!(insert().await, Err(Failure::ReadOnly)));
    assert_eq!(insert().await.unwrap(), primary.port, "by a new session");

    primary.kill();
    let mut confirmed = 1;
    // Its processes notice the end of the first one after a moment.
    let lost = loop {
        match insert().await {
            Ok(_) => confirmed += 1,
            Err(failure) => break failure,
        }
    };
    assert!(matches!(lost, Failure::Unknown(_) | Failure::Away(_)), "{lost:?}");
    standby.promote();
    let moved = timeout(BUDGET, async {
        loop {
            if let Ok(port) = insert().await {
                return port;
            }
        }
    });
    assert_eq!(moved.await.unwrap(), standby.port);
    let count = standby.sql(&database.name, "SELECT count(*) FROM wxrelay.tally_delta");
    // And perhaps one whose outcome was unknown.
    let count: i32 = count.parse().unwrap();
    assert!((confirmed + 1..=confirmed + 2).contains(&count), "{count} of {confirmed} and one more");
}

#[tokio::test]
async fn a_call_that_is_dropped_leaves_no_transaction_open() {
    let Some(cluster) = test_server::shared() else { return };
    let database = cluster.database();
    let session = Connector::new(&settings(&database.url())).connect().await.unwrap();
    session.execute_script("CREATE SCHEMA wxrelay; CREATE TABLE wxrelay.t (n bigint)").await.unwrap();
    {
        let insert = BoundQuery { sql: "INSERT INTO t VALUES (1)", values: &[] };
        let wait = BoundQuery { sql: "SELECT pg_sleep(0.2)", values: &[] };
        // Prepared before, so that the next call sends at once.
        session.transact("", &[insert, wait]).await.unwrap();
        let queries = [insert, wait];
        let dropped = timeout(Duration::ZERO, session.transact("", &queries)).await;
        assert!(dropped.is_err());
    }
    let rows = session.query("SELECT count(*) FROM t", &[]).await.unwrap();
    assert_eq!(rows[0].get::<_, i64>(0), 2, "it was sent whole, its COMMIT too");
    let open =
        format!("SELECT count(*) FROM pg_stat_activity WHERE usename = '{}' AND state LIKE 'idle in%'", database.role);
    assert_eq!(database.sql(&open), "0");
}

#[tokio::test]
async fn a_server_that_is_too_old_is_said_so_before_it_is_set_up() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("postgres://wx:hunter2@{}/x", listener.local_addr().unwrap());
    let message = |kind: u8, content: &[u8]| {
        let length = u32::try_from(content.len() + 4).unwrap().to_be_bytes();
        [&[kind][..], &length, content].concat()
    };
    let greeting = [
        message(b'R', &0_u32.to_be_bytes()),
        message(b'S', b"server_version\x0013.23 (Debian)\0"),
        message(b'Z', b"I"),
    ]
    .concat();
    let serving = async {
        let (mut stream, _) = listener.accept().await.unwrap();
        let length = stream.read_u32().await.unwrap();
        let mut startup = vec![0; length as usize - 4];
        stream.read_exact(&mut startup).await.unwrap();
        stream.write_all(&greeting).await.unwrap();
        let mut rest = Vec::new();
        let _read = stream.read_to_end(&mut rest).await;
        rest
    };
    let settings = settings(&url);
    let connector = Connector::new(&settings);
    let (sent, connected) = tokio::join!(serving, connector.connect());
    let error = connected.unwrap_err();
    assert!(error.to_string().contains("PostgreSQL 13.23 (Debian), and the relay needs 15 or newer"), "{error}");
    assert!(error.is_configuration() && error.remedy().unwrap().contains("upgrade PostgreSQL"));
    assert!(!sent.starts_with(b"Q"), "{sent:?}");
}

#[tokio::test]
async fn nothing_that_was_confirmed_is_missing_after_a_failover_with_cancelled_waits() {
    let Some(primary) = test_server::own("") else { return };
    let standby = primary.standby("b");
    primary.set("synchronous_standby_names", Some("b"));
    let database = primary.database();
    let settings = settings(&database.url());
    until(&settings, |result| match result {
        Ok(session) if session.facts().has_standby => Ok(()),
        _ => Err("no standby".to_owned()),
    })
    .await;
    database.sql("CREATE TABLE t (n bigint PRIMARY KEY); GRANT INSERT ON t TO PUBLIC");
    let settings = Settings { schema: "public".to_owned(), ..settings };
    let (next, stop) = (Arc::new(AtomicI64::new(0)), Arc::new(AtomicBool::new(false)));
    let confirmed = Arc::new(Mutex::new(Vec::new()));
    let mut workers = JoinSet::new();
    for _ in 0..8 {
        let pinned = PinnedSession::new(Connector::new(&settings));
        let (next, stop, confirmed) = (next.clone(), stop.clone(), confirmed.clone());
        workers.spawn(async move {
            while !stop.load(Ordering::Relaxed) {
                let number = next.fetch_add(1, Ordering::Relaxed);
                let values: [Value<'_>; 1] = [(&number, Type::INT8)];
                let insert = async |session: &mut Session| session.query("INSERT INTO t VALUES ($1)", &values).await;
                if pinned.call(Duration::from_secs(2), insert).await.is_ok() {
                    confirmed.lock().push(number);
                }
            }
        });
    }
    for at_least in [100, 200, 300, 400] {
        while confirmed.lock().len() < at_least {
            tokio::task::yield_now().await;
        }
        if at_least % 200 == 0 {
            database.cancel_sessions()
        } else {
            database.end_sessions()
        };
    }
    standby.stop("immediate");
    let waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'";
    for round in 0..3 {
        while database.sql(waiting).parse::<u32>().unwrap() < 4 {
            tokio::task::yield_now().await;
        }
        // PostgreSQL says of each that it is committed.
        if round == 1 {
            database.end_sessions()
        } else {
            database.cancel_sessions()
        };
    }
    stop.store(true, Ordering::Relaxed);
    primary.kill();
    workers.join_all().await;
    let claimed = confirmed.lock().clone();
    standby.restart();
    standby.promote();
    let stored = standby.sql(&database.name, "SELECT n FROM t");
    let stored: HashSet<i64> = stored.lines().map(|line| line.parse().unwrap()).collect();
    let missing: Vec<_> = claimed.iter().filter(|number| !stored.contains(number)).collect();
    assert!(missing.is_empty() && claimed.len() >= 400, "{missing:?} of {}", claimed.len());
}
