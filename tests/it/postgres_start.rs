//! What an operator sees of a PostgreSQL that does not do: each fault has its own error and its remedy, from `serve`,
//! `check --online` and `doctor`. Where only a change of the configuration or the server helps, `serve` ends with 78.

use std::fs;
use std::io::Write as _;
use std::net::TcpListener;

use crate::doctor::CHECKS_WITH_POSTGRES;
use crate::support::command::{Finished, free_address, run, wxrelay};
use crate::support::eventually;
use crate::support::postgres::{self, Cluster, PASSWORD};
use crate::support::relay::Setup;
use crate::support::target::Target;
use crate::support::wechat::{WeChat, event};

/// A configuration with these lines in `[queue]`.
pub(crate) struct Files {
    folder: tempfile::TempDir,
    environment: Vec<(&'static str, String)>,
}

impl Files {
    pub(crate) fn new(url: &str, lines: &str) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let queue = format!("type = \"postgres\"\nurl = \"{url}\"\n{lines}");
        let text = format!(
            "[server]\nlisten = \"127.0.0.1:0\"\n[admin]\nlisten = \"127.0.0.1:0\"\n[queue]\n{queue}\n{}",
            WeChat::secure().account()
        );
        fs::write(folder.path().join("config.toml"), text).expect("the config can be written");
        Self { folder, environment: Vec::new() }
    }

    /// With variables of the commands' environment.
    pub(crate) fn env(self, environment: impl Into<Vec<(&'static str, String)>>) -> Self {
        Self { environment: environment.into(), ..self }
    }

    async fn run(&self, args: &[&str]) -> Finished {
        let mut command = wxrelay(args);
        command.arg("-c").arg(self.folder.path().join("config.toml")).envs(self.environment.iter().cloned());
        run(command).await
    }

    /// The three commands say the same, and none shows the password.
    pub(crate) async fn is_refused(&self, name: &str, code: i32, problem: &str, remedy: &str) {
        for (args, expected) in [(&["check", "--online"][..], 1), (&["doctor"], 1), (&["serve"], code)] {
            let finished = self.run(args).await;
            let said = format!("{}{}", finished.stdout, finished.stderr);
            assert_eq!(finished.code, Some(expected), "{name}, {args:?}: {said}");
            assert!(said.contains(problem), "{name}, {args:?}: no `{problem}` in {said}");
            assert!(said.contains(remedy), "{name}, {args:?}: no `{remedy}` in {said}");
            assert!(!said.contains(PASSWORD), "{name}, {args:?}: {said}");
        }
    }
}

pub(crate) const OFF: &str = "tls = \"off\"\n";

#[tokio::test]
async fn each_server_that_does_not_do_has_its_own_error_and_remedy() {
    let Some(cluster) = postgres::shared() else { return };
    let database = cluster.database();
    let (url, role) = (database.url(), database.role.clone());
    let refused = async |name: &str, url: &str, lines: &str, code, problem: &str, remedy: &str| {
        Files::new(url, lines).is_refused(name, code, problem, remedy).await;
    };
    let wrong = url.replace(PASSWORD, "wrong");
    refused("a wrong password", &wrong, OFF, 78, "refused the user or the password", "correct queue.password").await;
    let none = url.replace(&format!("/{}", database.name), "/nowhere");
    refused("no such database", &none, OFF, 78, "no such database", "create the database").await;
    let nobody = database.url_at(&free_address());
    refused("nothing listens", &nobody, OFF, 1, "cannot be reached", "check that PostgreSQL runs").await;
    refused("no TLS", &url, "", 78, "offers no TLS", "set ssl = on").await;

    let web = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = web.local_addr().expect("its address").to_string();
    std::thread::spawn(move || {
        for stream in web.incoming() {
            let Ok(mut stream) = stream else { return };
            stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").ok();
        }
    });
    refused("a web server", &database.url_at(&address), "", 78, "is not PostgreSQL", "check the port").await;
    let silent = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = silent.local_addr().expect("its address").to_string();
    refused("a host that hangs", &database.url_at(&address), OFF, 1, "did not answer within", "check the network")
        .await;

    let faults = [
        ("synchronous_commit = off", 78, "synchronous_commit is off", "turn it on"),
        ("default_transaction_read_only = on", 1, "accepts no writes", "name the primary"),
    ];
    for (setting, code, problem, remedy) in faults {
        database.sql(&format!("ALTER ROLE {role} SET {setting}"));
        refused(setting, &url, OFF, code, problem, remedy).await;
        database.sql(&format!("ALTER ROLE {role} RESET ALL"));
    }
    database.sql(&format!("ALTER ROLE {role} CONNECTION LIMIT 0"));
    refused("no connection is free", &url, OFF, 1, "no connection free", "CONNECTION LIMIT").await;
    database.sql(&format!("ALTER ROLE {role} CONNECTION LIMIT -1"));
    database.sql(&format!("ALTER ROLE {role} NOLOGIN"));
    refused("no login", &url, OFF, 78, "does not let this user in", "needs LOGIN").await;
    database.sql(&format!("ALTER ROLE {role} LOGIN"));
    encoding(cluster, &role).await;
    rights_and_versions(cluster).await;
}

async fn encoding(cluster: &Cluster, role: &str) {
    let name = format!("ascii_{role}");
    cluster.sql(
        "postgres",
        &format!(
            "CREATE DATABASE {name} OWNER {role} ENCODING 'SQL_ASCII' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0"
        ),
    );
    let url = format!("postgres://{role}:{PASSWORD}@{}:{}/{name}", cluster.host, cluster.port);
    Files::new(&url, OFF).is_refused("an encoding", 78, "has the encoding SQL_ASCII", "ENCODING 'UTF8'").await;
}

async fn rights_and_versions(cluster: &Cluster) {
    let database = cluster.database();
    let (url, role) = (database.url(), database.role.clone());
    let files = Files::new(&url, OFF);
    database.sql(&format!("ALTER DATABASE {} OWNER TO postgres", database.name));
    files.is_refused("no right to create", 78, "may not create the tables", "`wxrelay store sql`").await;
    // A role that may runs the script.
    let script = files.run(&["store", "sql"]).await;
    assert_eq!(script.code, Some(0), "{script:?}");
    assert!(script.stdout.contains(&role), "{}", script.stdout);
    database.sql(&script.stdout);
    for args in [&["check", "--online"][..], &["doctor"]] {
        let finished = files.run(args).await;
        assert!(finished.stdout.contains("PostgreSQL 1"), "{args:?}: {finished:?}");
        assert!(!finished.stdout.contains("may not"), "{args:?}: {finished:?}");
    }
    database.sql("REVOKE DELETE ON wxrelay.delivery FROM PUBLIC");
    database.sql("UPDATE wxrelay.meta SET schema = 99, oldest_reader = 99");
    files.is_refused("a newer schema", 78, "has version 99", "upgrade this relay").await;
    database.sql("UPDATE wxrelay.meta SET schema = 1, oldest_reader = 1");
    database.sql("DROP TABLE wxrelay.known CASCADE");
    files.is_refused("a part of the tables", 78, "lacks known", "restore the tables").await;
}

#[tokio::test]
async fn a_start_that_fails_leaves_no_replica_behind() {
    let Some(cluster) = postgres::shared() else { return };
    let database = cluster.database();
    let files = Files::new(&database.url(), OFF);
    let other = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let path = files.folder.path().join("config.toml");
    let text = fs::read_to_string(&path).expect("the config");
    let taken = format!("[admin]\nlisten = \"{}\"", other.local_addr().expect("its address"));
    fs::write(&path, text.replace("[admin]\nlisten = \"127.0.0.1:0\"", &taken)).expect("the config can be written");
    let failed = files.run(&["serve"]).await;
    assert!(failed.code == Some(1) && failed.stderr.contains("in use"), "{failed:?}");
    assert_eq!(database.sql("SELECT count(*) FROM wxrelay.replica"), "0", "{failed:?}");
}

#[tokio::test]
async fn a_standby_that_is_required_and_missing_is_an_error_until_there_is_one() {
    let Some(cluster) = postgres::shared() else { return };
    let database = cluster.database();
    let required = Files::new(&database.url(), "tls = \"off\"\nstandby = \"required\"");
    let online = required.run(&["check", "--online"]).await;
    assert_eq!(online.code, Some(1), "{online:?}");
    assert!(online.stdout.contains("no synchronous standby") && online.stdout.contains("queue.standby = \"none\""));
    let warned = Files::new(&database.url(), OFF).run(&["doctor"]).await;
    assert!(warned.stdout.contains("no synchronous standby"), "{warned:?}");
    let accepted = Files::new(&database.url(), "tls = \"off\"\nstandby = \"none\"").run(&["doctor"]).await;
    assert!(accepted.stdout.contains("none, which queue.standby"), "{accepted:?}");
}

#[tokio::test]
async fn doctor_shows_what_it_found_of_the_database_and_no_folder() {
    let Some(cluster) = postgres::shared() else { return };
    let database = cluster.database();
    let finished = Files::new(&database.url(), "tls = \"off\"\nstandby = \"none\"").run(&["doctor", "--json"]).await;
    let report: serde_json::Value = serde_json::from_str(&finished.stdout).expect("JSON");
    let text = report.to_string();
    for part in ["connected in", "fsync, full_page_writes", "a commit takes", "this machine's", "snapshot"] {
        assert!(text.contains(part), "no `{part}` in {text}");
    }
    let checks = report["checks"].as_array().expect("a list");
    for name in CHECKS_WITH_POSTGRES {
        assert!(checks.iter().any(|check| check["check"] == name), "no {name} in {text}");
    }
    assert!(!text.contains("\"folder\"") && !text.contains("\"space\"") && !text.contains("\"sqlite\""), "{text}");
}

#[tokio::test]
async fn only_a_store_in_postgresql_has_a_script_and_only_one_of_files_can_be_salvaged() {
    let files = Files::new("postgres://wx@127.0.0.1/x", OFF);
    let salvaged = files.run(&["store", "salvage"]).await;
    assert!(salvaged.code == Some(1) && salvaged.stderr.contains("the store is in PostgreSQL"), "{salvaged:?}");
    let script = files.run(&["store", "sql", "--role", "ops"]).await;
    assert!(script.stdout.contains("CREATE SCHEMA IF NOT EXISTS wxrelay AUTHORIZATION \"ops\""), "{script:?}");
    let embedded = tempfile::tempdir().expect("a temporary folder");
    let path = embedded.path().join("config.toml");
    fs::write(&path, WeChat::secure().account()).expect("the config can be written");
    let refused = run(wxrelay([std::ffi::OsStr::new("store"), "sql".as_ref(), "-c".as_ref(), path.as_ref()])).await;
    assert!(refused.code == Some(1) && refused.stderr.contains("not in PostgreSQL"), "{refused:?}");
}

#[tokio::test]
async fn readiness_names_postgresql_while_it_is_away_and_the_metrics_name_what_holds_it_up() {
    let Some(cluster) = postgres::own("") else { return };
    let database = cluster.database();
    let (wechat, crm) = (WeChat::secure(), Target::start().await);
    let setup = Setup::new(wechat.account() + &crm.config("crm", "")).postgres(&database.url());
    let relay = setup.start().await;
    let standby = relay
        .log("the missing standby", |line| {
            line["message"].as_str().is_some_and(|text| text.starts_with("no synchronous standby"))
        })
        .await;
    assert!(standby["remedy"].as_str().is_some_and(|remedy| remedy.contains("queue.standby")), "{standby}");
    relay.accept(&wechat, &event("o1", "CLICK", "one")).await;
    crm.wait_for(1).await;
    assert!(relay.samples("wxrelay_queue_max_bytes").await.is_empty(), "there is no limit");
    assert!(relay.samples("wxrelay_disk_free_bytes").await.is_empty(), "the disk is another machine's");
    eventually("the metrics of the upkeep", async || {
        let tables = relay.samples("wxrelay_store_dead_tuples").await;
        let ages = relay.samples("wxrelay_store_xmin_age_seconds").await;
        let (up, standby) = (relay.samples("wxrelay_store_up").await, relay.samples("wxrelay_store_standby").await);
        let is_seen = up.iter().map(|(_, value)| *value).eq([1.0]) && standby.iter().map(|(_, value)| *value).eq([0.0]);
        (tables.len() == 7 && ages.len() == 1 && is_seen).then_some(())
    })
    .await;

    cluster.stop("immediate");
    let readiness = async || {
        let answer = relay.get("/readyz").await;
        (answer.status, answer.text().to_owned())
    };
    // With a push that waits for it: until 5 s are over the relay is ready, as a short failover is survived by waiting.
    let push = wechat.push(&event("o1", "CLICK", "away"));
    let away = eventually("store-away", async || {
        let (status, word) = readiness().await;
        assert!(status == 200 || word == "store-away", "{status} {word}");
        (status == 503).then_some(())
    });
    tokio::join!(push.send(&relay.push), away);
    assert_eq!(relay.get("/livez").await.status, 200);
    eventually("the metric", async || (relay.metric("wxrelay_store_up", &[]).await == 0.0).then_some(())).await;
    cluster.restart();
    eventually("ready again", async || (readiness().await.0 == 200).then_some(())).await;
    relay.accept(&wechat, &event("o1", "CLICK", "two")).await;
    crm.wait_for(2).await;
}

#[tokio::test]
async fn readiness_follows_the_setting_of_the_standby() {
    let Some(cluster) = postgres::own("") else { return };
    let standby = cluster.standby("b");
    cluster.set("synchronous_standby_names", Some("b"));
    let database = cluster.database();
    let setup = Setup::new(WeChat::secure().account()).queue("standby = \"required\"").postgres(&database.url());
    let relay = setup.start().await;
    for (names, expected) in [(None, (503, 0.0)), (Some("b"), (200, 1.0))] {
        cluster.set("synchronous_standby_names", names);
        eventually("readiness and the metric", async || {
            let answer = relay.get("/readyz").await;
            assert!(answer.status == 200 || answer.text() == "no-standby", "{}", answer.text());
            let is_so = (answer.status, relay.metric("wxrelay_store_standby", &[]).await) == expected;
            is_so.then_some(())
        })
        .await;
    }
    drop(standby);
}

#[tokio::test]
async fn readiness_says_that_pushes_are_refused_until_one_is_stored() {
    let Some(cluster) = postgres::shared() else { return };
    let database = cluster.database();
    let (wechat, crm) = (WeChat::secure(), Target::start().await);
    let setup = Setup::new(wechat.account() + &crm.config("crm", "")).postgres(&database.url());
    let relay = setup.start().await;
    relay.accept(&wechat, &event("o1", "CLICK", "one")).await;
    database.sql(&format!("REVOKE INSERT ON wxrelay.event FROM {}", database.role));
    assert_eq!(wechat.push(&event("o1", "CLICK", "two")).send(&relay.push).await.status, 503);
    let refused = relay.get("/readyz").await;
    assert_eq!((refused.status, refused.text()), (503, "store-failing"));
    database.sql(&format!("GRANT INSERT ON wxrelay.event TO {}", database.role));
    relay.accept(&wechat, &event("o1", "CLICK", "two")).await;
    assert_eq!(relay.get("/readyz").await.status, 200);
    crm.wait_for(2).await;
}
