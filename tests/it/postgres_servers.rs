//! Servers that do not do, as `postgres_start.rs` tells them, which need a server of the test's own: another version, a
//! standby, settings of the whole server, certificates, a pooler, all connections taken, names that hang. What was
//! stored before all of that is delivered after it.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;

use rcgen::date_time_ymd;

use crate::postgres_start::{Files, OFF};
use crate::support::authority::{Identity, server_for};
use crate::support::eventually;
use crate::support::hang::Hang;
use crate::support::postgres::{self, Cluster};
use crate::support::relay::Setup;
use crate::support::target::{Reaction, Reply, Target};
use crate::support::wechat::{WeChat, event};

/// As many connections as the small server has.
const CONNECTIONS: usize = 24;

#[tokio::test]
async fn whatever_is_wrong_with_the_server_is_said_and_what_was_stored_is_delivered_after_it() {
    let Some(cluster) = postgres::own(&format!("max_connections = {CONNECTIONS}")) else { return };
    let database = cluster.database();
    let url = database.url();
    let (wechat, crm) = (WeChat::secure(), Target::start().await);
    crm.then(Reaction::Answer(Reply::status(500)));
    let body = wechat.account() + &crm.config("crm", "retry = [\"2s\", \"2s\"]");
    let mut relay = Setup::new(body).postgres(&url).start().await;
    relay.accept_in_time(&wechat, &event("oOne", "CLICK", "one")).await;
    crm.wait_for(1).await;
    relay.stop().await;

    settings_of_the_server(&cluster, &url).await;
    all_connections_are_taken(&cluster, &url).await;
    certificates(&cluster, &url).await;
    let standby = cluster.standby("b");
    let at_standby = database.url_at(&format!("{}:{}", standby.host, standby.port));
    Files::new(&at_standby, OFF).is_refused("a standby", 1, "it is a standby", "name the primary").await;

    crm.then(Reaction::Answer(Reply::status(200)));
    relay.restart().await;
    relay.audited("delivered", 1).await;
}

/// Sets a setting of the server, and waits until new connections have it.
async fn set(cluster: &Cluster, name: &str, value: &str) {
    cluster.set(name, Some(value));
    let show = format!("SHOW {name}");
    eventually(&show, async || (cluster.sql("postgres", &show) == value).then_some(())).await;
}

async fn settings_of_the_server(cluster: &Cluster, url: &str) {
    for name in ["fsync", "full_page_writes"] {
        set(cluster, name, "off").await;
        let files = Files::new(url, OFF);
        files.is_refused(name, 78, &format!("{name} is off"), "queue.accept_weak_durability").await;
        set(cluster, name, "on").await;
    }
}

async fn all_connections_are_taken(cluster: &Cluster, url: &str) {
    // Each that has said who it is has one, whether it logs in or not.
    let mut startup = b"\0\0\0\0\0\x03\0\0user\0postgres\0database\0postgres\0\0".to_vec();
    startup[3] = u8::try_from(startup.len()).expect("it is short");
    let open = || {
        let mut stream = TcpStream::connect((cluster.host.as_str(), cluster.port)).expect("the server listens");
        stream.write_all(&startup).expect("the server reads");
        let mut kind = [0];
        stream.read_exact(&mut kind).expect("the server answers");
        (stream, kind[0])
    };
    let mut held = Vec::new();
    loop {
        let (stream, kind) = open();
        if kind == b'E' {
            break;
        }
        held.push(stream);
        assert!(held.len() < 2 * CONNECTIONS, "there is always one more");
    }
    let files = Files::new(url, OFF);
    files.is_refused("all connections are taken", 1, "no connection free", "raise max_connections").await;
    drop(held);
    eventually("a free connection", async || cluster.try_sql("postgres", "SELECT 1").ok()).await;
}

/// Self-signed, valid until the start of that year: as the authority's own file it is trusted.
fn certificate(cluster: &Cluster, end: i32) -> Identity {
    let mut params = server_for(&cluster.host);
    params.not_before = date_time_ymd(2000, 1, 1);
    params.not_after = date_time_ymd(end, 1, 1);
    Identity::self_signed(&params)
}

async fn certificates(cluster: &Cluster, url: &str) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let install = |name: &str, end: i32| -> PathBuf {
        let own = folder.path().join(name);
        std::fs::create_dir(&own).expect("a folder");
        certificate(cluster, end).written(&own);
        let read = |file: &str| std::fs::read_to_string(own.join(file)).expect("it is written");
        cluster.install("server.crt", &read("cert.pem"));
        cluster.install("server.key", &read("key.pem"));
        own.join("cert.pem")
    };
    let trusting = |ca: &PathBuf| Files::new(url, &format!("tls = {{ ca = \"{}\" }}\n", ca.display()));
    let expired = install("expired", 2020);
    set(cluster, "ssl", "on").await;
    trusting(&expired).is_refused("an expired certificate", 78, "expired", "renew the server's certificate").await;
    install("valid", 4096);
    // Read with the certificate.
    set(cluster, "work_mem", "5MB").await;
    let (name, problem) = ("another authority of the same name", "authority that is not trusted");
    trusting(&expired).is_refused(name, 78, problem, "queue.tls.ca").await;
    Files::new(url, "").is_refused("the system's authorities", 78, problem, "queue.tls.ca").await;
}

#[tokio::test]
async fn a_pooler_that_the_configuration_does_not_know_of_is_said() {
    let Some(cluster) = postgres::shared() else { return };
    let database = cluster.database();
    let Some(pooler) = database.pooler(2) else { return };
    eventually("PgBouncer", async || TcpStream::connect(&pooler.address).ok()).await;
    let url = database.url_at(&pooler.address);
    let files = Files::new(&url, OFF);
    files.is_refused("a pooler", 78, "a pooler between", "set queue.pooler = true").await;
}

#[tokio::test]
async fn a_server_that_is_too_old_is_said() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let url = format!("postgres://wx:hunter2@{}/x", listener.local_addr().expect("its address"));
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            // Trusted; its version; ready.
            stream.write_all(b"R\0\0\0\x08\0\0\0\0S\0\0\0\x19server_version\0").ok();
            stream.write_all(b"14.11\0Z\0\0\0\x05I").ok();
            let mut rest = Vec::new();
            let _ended = stream.read_to_end(&mut rest);
        }
    });
    let files = Files::new(&url, OFF);
    let problem = "PostgreSQL 14.11, and the relay needs 15 or newer";
    files.is_refused("version 14", 78, problem, "upgrade PostgreSQL to 15").await;
}

#[tokio::test]
async fn names_that_are_not_resolved_are_said_and_hold_up_no_command() {
    let url = "postgres://wx:hunter2@pg1.test/x";
    Files::new(url, "").is_refused("no such name", 1, "cannot be resolved", "this machine's resolver").await;
    let Some(hang) = Hang::build() else { return };
    hang.names();
    let files = Files::new(url, "").env(hang.environment());
    files.is_refused("names hang", 1, "the resolver did not answer within 1 s", "this machine's resolver").await;
}
