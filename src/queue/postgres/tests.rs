//! Connections, sessions and the schema against a real PostgreSQL.

use std::time::Duration;

use tokio::io::AsyncReadExt as _;
use tokio::net::TcpListener;
use tokio_postgres::types::Type;

use super::test_server::{self, Cluster, Database};
use super::*;

const BUDGET: Duration = Duration::from_secs(20);

fn settings(url: &str) -> Settings {
    Settings { tls: TlsMode::Off, ..Settings::new(url).unwrap() }
}

async fn session(database: &Database<'_>) -> Session {
    Connector::new(&settings(&database.url())).connect().await.unwrap()
}

async fn refused(settings: &Settings) -> (String, &'static str, bool) {
    let error = Connector::new(settings).connect().await.unwrap_err();
    let text = error.to_string();
    assert!(!text.contains(test_server::PASSWORD) && !text.contains("postgres://"), "{text}");
    (text, error.remedy().unwrap_or_default(), error.is_configuration())
}

fn number(rows: &[tokio_postgres::Row]) -> i64 {
    rows[0].get(0)
}

#[tokio::test]
async fn a_session_is_set_up_as_the_engine_relies_on() {
    let Some(cluster) = test_server::shared() else { return };
    let database = cluster.database();
    // A role's own defaults, each of which would break something.
    database.sql(&format!(
        "ALTER ROLE {0} SET client_min_messages = error; ALTER ROLE {0} SET statement_timeout = 5000; \
         ALTER ROLE {0} SET default_transaction_isolation = serializable",
        database.role
    ));
    for pooler in [false, true] {
        let settings = Settings { pooler, ..settings(&database.url()) };
        let session = Connector::new(&settings).connect().await.unwrap();
        for (name, expected) in [
            ("search_path", "wxrelay"),
            ("synchronous_commit", "on"),
            ("client_min_messages", "warning"),
            ("statement_timeout", "0"),
            ("transaction_isolation", "read committed"),
            ("enable_seqscan", "off"),
        ] {
            let rows = session.query("SELECT current_setting($1)", &[(&name, Type::TEXT)]).await.unwrap();
            assert_eq!(rows[0].get::<_, String>(0), expected, "{name}, pooler = {pooler}");
        }
        assert!(session.facts().version >= 150_000 && !session.facts().has_standby);
    }
}

#[tokio::test]
async fn a_transaction_is_whole_or_nothing_with_a_pooler_too() {
    let Some(cluster) = test_server::shared() else { return };
    let database = cluster.database();
    for pooler in [false, true] {
        let settings = Settings { pooler, ..settings(&database.url()) };
        let mut session = Connector::new(&settings).connect().await.unwrap();
        session.execute_script("DROP SCHEMA IF EXISTS wxrelay CASCADE; CREATE SCHEMA wxrelay").await.unwrap();
        session.execute_script("CREATE TABLE wxrelay.t (n bigint PRIMARY KEY)").await.unwrap();
        let insert =
            |value: &'static i64| BoundQuery { sql: "INSERT INTO t VALUES ($1) RETURNING n", values: &[] }.with(value);
        let one = insert(&1);
        let two = insert(&2);
        let rows = session.transact("SELECT pg_advisory_xact_lock(1);", &[one.query(), two.query()]).await.unwrap();
        assert_eq!(rows.iter().map(|rows| number(rows)).collect::<Vec<_>>(), [1, 2]);
        let three = insert(&3);
        let failed = session.transact("", &[three.query(), one.query()]).await.unwrap_err();
        assert!(matches!(failed, Failure::Data { .. }), "{failed}");
        assert!(session.is_usable());
        let count = session.query("SELECT count(*) FROM t", &[]).await.unwrap();
        assert_eq!(number(&count), 2, "the third is not there");
        // A setup that fails leaves nothing either.
        let failed = session.transact("SELECT 1/0", &[three.query()]).await.unwrap_err();
        assert!(matches!(failed, Failure::Data { .. }), "{failed}");
        assert_eq!(number(&session.query("SELECT count(*) FROM t", &[]).await.unwrap()), 2);
        // What does not fit its statement is not sent, and what was sent before it is taken back.
        let text = "x";
        let values: [Value<'_>; 1] = [(&text, Type::INT8)];
        let wrong = BoundQuery { sql: "INSERT INTO t VALUES ($1) RETURNING n", values: &values };
        let failed = session.transact("", &[three.query(), wrong]).await.unwrap_err();
        assert!(matches!(failed, Failure::Internal(_)), "{failed}");
        assert!(!session.is_usable());
        session = Connector::new(&settings).connect().await.unwrap();
        assert_eq!(number(&session.query("SELECT count(*) FROM t", &[]).await.unwrap()), 2);
        let snapshot = session.snapshot().await.unwrap();
        assert_eq!(number(&snapshot.query("SELECT count(*) FROM t", &[]).await.unwrap()), 2);
        database.sql("INSERT INTO wxrelay.t VALUES (9)");
        assert_eq!(number(&snapshot.query("SELECT count(*) FROM t", &[]).await.unwrap()), 2);
        snapshot.end().await.unwrap();
        assert!(session.is_usable());
        assert_eq!(number(&session.query_once("SELECT count(*) FROM t", &[]).await.unwrap()), 3);
        drop(session.snapshot().await.unwrap());
        assert!(!session.is_usable(), "a transaction may be open in it");
        assert!(matches!(session.query("SELECT 1", &[]).await, Err(Failure::Away(_))));
    }
}

/// A value that lives as long as its statement.
struct Owned {
    sql: &'static str,
    values: [Value<'static>; 1],
}

impl BoundQuery<'_> {
    fn with(self, value: &'static i64) -> Owned {
        Owned { sql: self.sql, values: [(value, Type::INT8)] }
    }
}

impl Owned {
    fn query(&self) -> BoundQuery<'_> {
        BoundQuery { sql: self.sql, values: &self.values }
    }
}

#[tokio::test]
async fn what_a_server_lacks_is_said_with_the_setting_to_change() {
    let Some(cluster) = test_server::shared() else { return };
    let database = cluster.database();
    let url = database.url();
    let good = settings(&url);

    let (text, remedy, is_configuration) = refused(&settings(&url.replace("hunter2", "wrong"))).await;
    assert!(text.contains("password") && remedy.contains("queue.password") && is_configuration, "{text}: {remedy}");
    let (text, remedy, is_configuration) = refused(&settings(&url.replace(":hunter2", ""))).await;
    assert!(text.contains("none is set") && remedy == "set queue.password" && is_configuration, "{text}");
    let (text, remedy, is_configuration) = refused(&settings(&url.replace("/test_", "/none_"))).await;
    assert!(text.contains("does not exist") && remedy.contains("create the database") && is_configuration, "{text}");
    let (text, remedy, is_configuration) = refused(&settings(&database.socket_url().replace("role_", "nobody_"))).await;
    assert!(text.contains("let this user in") && remedy.contains("pg_hba.conf") && is_configuration, "{text}");
    let (text, remedy, is_configuration) = refused(&Settings { tls: TlsMode::default(), ..good.clone() }).await;
    assert!(text.contains("no TLS") && remedy.contains("ssl = on") && is_configuration, "{text}");

    database.sql(&format!("ALTER ROLE {} CONNECTION LIMIT 0", database.role));
    let (text, remedy, is_configuration) = refused(&good).await;
    assert!(text.contains("no connection free") && remedy.contains("max_connections") && !is_configuration, "{text}");
    database.sql(&format!("ALTER ROLE {} CONNECTION LIMIT -1", database.role));

    database.sql(&format!("ALTER ROLE {} SET synchronous_commit = off", database.role));
    let (text, remedy, is_configuration) = refused(&good).await;
    assert!(text.contains("synchronous_commit is off") && remedy.contains("accept_weak_durability"), "{text}");
    assert!(is_configuration);
    let weak = Settings { accept_weak_durability: true, ..good.clone() };
    let session = Connector::new(&weak).connect().await.unwrap();
    assert_eq!(session.facts().weakness, Some("synchronous_commit"));
    database.sql(&format!("ALTER ROLE {} RESET synchronous_commit", database.role));

    database.sql(&format!("ALTER ROLE {} SET default_transaction_read_only = on", database.role));
    let (text, remedy, is_configuration) = refused(&good).await;
    assert!(text.contains("no writes") && remedy.contains("primary") && !is_configuration, "{text}");
    database.sql(&format!("ALTER ROLE {} RESET default_transaction_read_only", database.role));

    cluster.sql("postgres", "CREATE DATABASE latin ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0");
    let (text, remedy, is_configuration) = refused(&settings(&url.replace(&database.name, "latin"))).await;
    assert!(text.contains("LATIN1") && remedy.contains("UTF8") && is_configuration, "{text}");
    Connector::new(&good).connect().await.unwrap();
}

#[tokio::test]
async fn a_server_that_is_not_there_hangs_or_is_another_is_passed_by() {
    let Some(cluster) = test_server::shared() else { return };
    let database = cluster.database();
    let hanging = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let other = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let gone = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let other_address = other.local_addr().unwrap();
    let greeting = tokio::spawn(async move {
        loop {
            let (mut stream, _) = other.accept().await.unwrap();
            tokio::io::AsyncWriteExt::write_all(&mut stream, b"220 smtp\r\n").await.unwrap();
            let _read = stream.read_u8().await;
        }
    });
    let at = |addresses: &str| settings(&database.url_at(addresses));

    let (text, remedy, is_configuration) = refused(&at(&gone.to_string())).await;
    assert!(text.contains("cannot be reached") && remedy.contains("listen_addresses") && !is_configuration, "{text}");
    let (text, remedy, is_configuration) = refused(&at("name.invalid:5432")).await;
    assert!(text.contains("cannot be resolved") || text.contains("resolver"), "{text}");
    assert!(!is_configuration, "{remedy}");
    let (text, _, is_configuration) = refused(&at(&hanging.local_addr().unwrap().to_string())).await;
    assert!(text.contains("did not answer within 5 s") && !is_configuration, "{text}");
    let encrypted = Settings { tls: TlsMode::default(), ..at(&other_address.to_string()) };
    let (text, remedy, is_configuration) = refused(&encrypted).await;
    assert!(text.contains("not PostgreSQL") && remedy.contains("port") && is_configuration, "{text}");

    let addresses = format!("{gone},{}:{}", cluster.host, cluster.port);
    let session = Connector::new(&at(&addresses)).connect().await.unwrap();
    assert_eq!(session.address().port, cluster.port);
    greeting.abort();
}

#[tokio::test]
async fn the_password_file_is_read_at_every_connect() {
    let Some(cluster) = test_server::shared() else { return };
    let database = cluster.database();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("password");
    let settings = Settings { password: Some(PasswordSource::File(path.clone())), ..settings(&database.url()) };
    let connector = Connector::new(&settings);
    let missing = connector.connect().await.unwrap_err();
    assert!(missing.to_string().contains("password") && missing.is_configuration(), "{missing}");
    std::fs::write(&path, "wrong\n").unwrap();
    assert!(matches!(connector.connect().await.unwrap_err().main_problem(), Some(ServerProblem::Password(_))));
    std::fs::write(&path, format!("{}\n", test_server::PASSWORD)).unwrap();
    connector.connect().await.unwrap();
}

#[tokio::test]
async fn a_call_whose_session_is_ended_or_that_takes_too_long_is_of_unknown_outcome() {
    let Some(cluster) = test_server::shared() else { return };
    let database = cluster.database();
    let pinned = PinnedSession::new(Connector::new(&settings(&database.url())));
    let ask = async || pinned.call(BUDGET, async |session| session.query("SELECT 1::bigint", &[]).await).await;
    assert_eq!(number(&ask().await.unwrap()), 1);
    // Ended while idle: nothing is lost, and the next call has a new session.
    database.end_sessions();
    while database.sql(&format!("SELECT count(*) FROM pg_stat_activity WHERE usename = '{}'", database.role)) != "0" {}
    while matches!(ask().await, Err(Failure::Away(_) | Failure::Unknown(_))) {}

    for end in [Database::end_sessions, Database::cancel_sessions] {
        let waiting = pinned.call(BUDGET, async |session| session.query("SELECT pg_sleep(30)", &[]).await);
        let ending = async {
            let find = format!(
                "SELECT count(*) FROM pg_stat_activity WHERE usename = '{}' AND wait_event = 'PgSleep'",
                database.role
            );
            while database.sql(&find) != "1" {
                tokio::task::yield_now().await;
            }
            end(&database)
        };
        let (outcome, ended) = tokio::join!(waiting, ending);
        assert!(matches!(outcome, Err(Failure::Unknown(_))) && ended == 1, "{outcome:?}");
        ask().await.unwrap();
    }

    let slow = pinned.call(Duration::from_millis(50), async |session| session.query("SELECT pg_sleep(30)", &[]).await);
    let outcome = slow.await;
    assert!(matches!(outcome, Err(Failure::Unknown(_))), "{outcome:?}");
    ask().await.unwrap();
    let left = format!("SELECT count(*) FROM pg_stat_activity WHERE usename = '{}'", database.role);
    while database.sql(&left) != "1" {
        tokio::task::yield_now().await;
    }
}

/// A primary that waits for a standby, and the standby.
fn pair() -> Option<(Cluster, Cluster)> {
    let primary = test_server::own("")?;
    let standby = primary.standby("b");
    primary.set("synchronous_standby_names", Some("b"));
    Some((primary, standby))
}

#[tokio::test]
async fn a_commit_whose_wait_for_the_standby_is_cut_is_of_unknown_outcome() {
    let Some((primary, standby)) = pair() else { return };
    let database = primary.database();
    let session = session(&database).await;
    assert!(session.facts().has_standby);
    session.execute_script("CREATE SCHEMA wxrelay; CREATE TABLE wxrelay.t (n bigint)").await.unwrap();
    session.query("INSERT INTO t VALUES (1)", &[]).await.unwrap();
    let (text, remedy, _) = {
        let at = format!("{}:{}", standby.host, standby.port);
        refused(&settings(&database.url_at(&at))).await
    };
    assert!(text.contains("it is a standby") && remedy.contains("primary"), "{text}");

    standby.stop("immediate");
    for end in [Database::cancel_sessions, Database::end_sessions] {
        let session = Connector::new(&settings(&database.url())).connect().await.unwrap();
        let values: [Value<'_>; 0] = [];
        let queries = [BoundQuery { sql: "INSERT INTO t VALUES (2)", values: &values }];
        let waiting = session.transact("", &queries);
        let cutting = async {
            let find = format!(
                "SELECT count(*) FROM pg_stat_activity WHERE usename = '{}' AND wait_event = 'SyncRep'",
                database.role
            );
            while database.sql(&find) != "1" {
                tokio::task::yield_now().await;
            }
            end(&database)
        };
        let (outcome, _) = tokio::join!(waiting, cutting);
        assert!(matches!(outcome, Err(Failure::Unknown(_))), "{outcome:?}");
        assert!(!session.is_usable());
    }
    // It is there all the same, which is why the outcome may not be called a success.
    assert_eq!(database.sql("SELECT count(*) FROM wxrelay.t"), "3");

    // However often a commit waits in vain, few processes wait at the server.
    let pinned = PinnedSession::new(Connector::new(&settings(&database.url())));
    for _ in 0..5 {
        let insert = pinned
            .call(Duration::from_millis(500), async |session| session.query("INSERT INTO t VALUES (3)", &[]).await);
        assert!(matches!(insert.await, Err(Failure::Unknown(_) | Failure::Busy)));
    }
    let count = format!("SELECT count(*) FROM pg_stat_activity WHERE usename = '{}'", database.role);
    let count: u32 = database.sql(&count).parse().unwrap();
    assert!(count <= 3, "{count}");
}

#[tokio::test]
async fn the_tables_are_created_once_and_checked() {
    let Some(cluster) = test_server::shared() else { return };
    let database = cluster.database();
    let settings = settings(&database.url());
    let (a, b) = (session(&database).await, session(&database).await);
    assert_eq!(schema::check(&a, &settings).await.unwrap(), schema::Found::Nothing);
    let (first, second) = tokio::join!(schema::prepare(&a, &settings), schema::prepare(&b, &settings));
    first.unwrap();
    second.unwrap();
    schema::prepare(&a, &settings).await.unwrap();
    assert_eq!(schema::check(&a, &settings).await.unwrap(), schema::Found::Tables);
    for view in ["events", "deliveries", "attempts"] {
        assert_eq!(database.sql(&format!("SELECT count(*) FROM wxrelay.{view}")), "0");
    }

    database.sql("UPDATE wxrelay.meta SET schema = 9");
    schema::prepare(&a, &settings).await.unwrap();
    database.sql("UPDATE wxrelay.meta SET oldest_reader = 9");
    let newer = schema::prepare(&a, &settings).await.unwrap_err();
    assert!(newer.to_string().contains("version 9") && newer.remedy().unwrap().contains("upgrade"), "{newer}");
    database.sql("DROP TABLE wxrelay.attempt CASCADE");
    let missing = schema::prepare(&a, &settings).await.unwrap_err();
    assert!(missing.to_string().contains("lacks attempt"), "{missing}");
}

#[tokio::test]
async fn releases_that_are_too_old_are_kept_away_once_none_of_them_is_alive() {
    let Some(cluster) = test_server::shared() else { return };
    let database = cluster.database();
    let session = session(&database).await;
    schema::prepare(&session, &settings(&database.url())).await.unwrap();
    let needed = || database.sql("SELECT oldest_reader FROM wxrelay.meta");
    schema::raise_oldest_reader(&session, 9).await.unwrap();
    assert_eq!(needed(), "1", "the tables are not that new");
    database.sql(
        "UPDATE wxrelay.meta SET schema = 9; INSERT INTO wxrelay.replica \
         VALUES (1, 'old', 0, '0.1.0', 8, clock_timestamp(), 0, '', '{}')",
    );
    schema::raise_oldest_reader(&session, 9).await.unwrap();
    assert_eq!(needed(), "1", "an older release is alive");
    database.sql("UPDATE wxrelay.replica SET alive_at = clock_timestamp() - interval '3 minutes'");
    schema::raise_oldest_reader(&session, 9).await.unwrap();
    assert_eq!(needed(), "9");
    schema::raise_oldest_reader(&session, 5).await.unwrap();
    assert_eq!(needed(), "9", "it is never lowered");
}

#[tokio::test]
async fn a_role_without_rights_is_told_of_the_command_that_prints_the_tables() {
    let Some(cluster) = test_server::shared() else { return };
    let database = cluster.database();
    let settings = settings(&database.url());
    database.sql(&format!("ALTER DATABASE {} OWNER TO postgres", database.name));
    let session = session(&database).await;
    let refused = schema::prepare(&session, &settings).await.unwrap_err();
    assert!(refused.to_string().contains("may not create the tables"), "{refused}");
    assert!(refused.remedy().unwrap().contains("wxrelay store sql"), "{refused}");
    assert!(session.is_usable());
    database.sql(&schema::script("wxrelay", &database.role));
    schema::prepare(&session, &settings).await.unwrap();
    session.query("INSERT INTO tally_delta VALUES (0, 0, 1)", &[]).await.unwrap();
    // The tables of somebody else.
    database.sql("ALTER TABLE wxrelay.meta OWNER TO postgres");
    let refused = schema::prepare(&session, &settings).await.unwrap_err();
    assert!(refused.to_string().contains("may not read the tables") && refused.remedy().is_some(), "{refused}");
}
