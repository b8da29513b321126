//! Certificates by ACME, from a real authority: ordered, stored and renewed, while nothing else waits for the
//! authority.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Arc;

use rustix::process::Signal;
use rustls::crypto::ring;
use rustls::pki_types::CertificateDer;
use rustls::{ClientConfig, RootCertStore};
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpListener;

use crate::certificates::{connect, exchange, shown};
use crate::support::command::{run, wxrelay};
use crate::support::pebble::PebbleSetup;
use crate::support::program::is_missing;
use crate::support::relay::{Relay, Setup};
use crate::support::target::Target;
use crate::support::wechat::{PATH, WeChat, text};
use crate::support::{eventually, soon};
use crate::tls::{Certificate, over_tls};

const ORDERS: &str = "wxrelay_acme_orders_total";
/// 90 days.
const LONG: u32 = 90 * 86_400;

#[tokio::test]
async fn a_certificate_is_ordered_and_survives_a_restart() {
    if is_missing("pebble") {
        return;
    }
    let (wechat, crm, place) = (WeChat::secure(), Target::start().await, PebbleSetup::new());
    let mut relay = serve(&wechat, &crm, &acme(&place)).await;
    let line = relay.log("the failure", failure).await;
    assert!(line["error"].as_str().is_some_and(|error| error.contains("cannot be reached")), "{line}");
    assert!(line["remedy"].as_str().is_some_and(|remedy| remedy.contains("server.tls.acme.directory")), "{line}");
    assert!(relay.metric(ORDERS, &[("domain", "localhost"), ("result", "failed")]).await >= 1.0);
    connect(&relay, &trusting(&[]), "localhost").await.expect_err("there is no certificate yet");
    let output = doctor(&relay, &[]).await;
    assert!(output.contains("none yet: the relay orders it while it runs"), "{output}");
    assert!(output.contains("accepts connections; not verified, as no certificate can be read"), "{output}");

    let pebble = place.start(&relay.push, LONG).await;
    relay.signal(Signal::HUP);
    let line = relay.log("the certificate", |line| line["message"] == "certificate issued").await;
    assert!(line["ends"].as_str().is_some(), "{line}");
    let leaf = pushes(&relay, &wechat, &pebble.root).await;
    relay.audited("delivered", 1).await;
    assert_eq!(relay.metric(ORDERS, &[("domain", "localhost"), ("result", "issued")]).await, 1.0);
    let left = relay.metric("wxrelay_tls_expiry_timestamp_seconds", &[]).await
        - relay.metric("wxrelay_tls_renew_by_timestamp_seconds", &[]).await;
    assert_eq!(left, 21.0 * 86_400.0);
    let ca = relay.store().join("root.pem");
    fs::write(&ca, &pebble.pem).expect("it can be written");
    let output = doctor(&relay, &["--ca", &ca.display().to_string()]).await;
    assert!(
        output.contains("for localhost, expires on") && output.contains("accepts WeChat's verification"),
        "{output}"
    );

    let mut curious = ClientConfig::clone(&trusting(&[&pebble.root]));
    curious.alpn_protocols = vec![b"acme-tls/1".to_vec()];
    let error = connect(&relay, &Arc::new(curious), "localhost").await.expect_err("nothing is ordered now");
    assert!(error.to_string().contains("alert"), "{error}");

    let kept = relay.store().join(place.folder());
    let mode = |path: &Path| fs::metadata(path).expect("it is kept").permissions().mode() & 0o777;
    let files = ["account.json", "localhost.pem"].map(|name| kept.join(name));
    assert_eq!([mode(&kept), mode(&files[0]), mode(&files[1])], [0o700, 0o600, 0o600]);
    let root = pebble.root.clone();
    drop(pebble);
    relay.stop().await;
    relay.restart().await;
    assert_eq!(pushes(&relay, &wechat, &root).await, leaf, "the one that is kept");
    relay.signal(Signal::HUP);
    relay.log("the reload", |line| line["generation"] == 2).await;
    assert_eq!(relay.metric(ORDERS, &[]).await, 0.0, "and nothing is ordered");
}

#[tokio::test]
async fn a_refused_order_is_reported_and_blocks_nothing_until_it_succeeds() {
    if is_missing("pebble") {
        return;
    }
    let (wechat, crm, place) = (WeChat::secure(), Target::start().await, PebbleSetup::new());
    let (files, closed) = (Certificate::of(&["other.test"], 4096), closed_port().await);
    let pebble = place.start(&closed, LONG).await;
    let tls = format!("[{}, {{ cert = \"{}\", key = \"{}\" }}]", acme(&place), files.cert(), files.key());
    let relay = serve(&wechat, &crm, &tls).await;
    let line = relay.log("the refusal", failure).await;
    let error = line["error"].as_str().expect("it says why");
    assert!(error.contains("could not validate localhost") && error.contains(&closed), "{line}");
    assert!(line["remedy"].as_str().is_some_and(|remedy| remedy.contains("port 443")), "{line}");
    assert_eq!((&line["level"], &line["served"]), (&"WARN".into(), &false.into()), "{line}");
    let mut stream = connect(&relay, &trusting(&[&files.der()]), "other.test").await.expect("the other one is served");
    assert!(exchange(&mut stream, &wechat.push(&text("o1", "hello")).request(PATH)).await.contains(" 200 "));

    // A new authority on the same address, without accounts.
    drop(pebble);
    let pebble = place.start(&relay.push, LONG).await;
    relay.signal(Signal::HUP);
    relay.log("the certificate", |line| line["message"] == "certificate issued").await;
    relay.log("the new account", |line| line["message"].as_str().is_some_and(|m| m.contains("creating another"))).await;
    pushes(&relay, &wechat, &pebble.root).await;
}

#[tokio::test]
async fn a_certificate_is_renewed_before_its_end_while_it_is_served() {
    if is_missing("pebble") {
        return;
    }
    let (wechat, crm, place) = (WeChat::secure(), Target::start().await, PebbleSetup::new());
    let relay = serve(&wechat, &crm, &acme(&place)).await;
    let pebble = place.start(&relay.push, 12).await;
    relay.log("the failure", failure).await;
    relay.signal(Signal::HUP);
    relay.log("the certificate", |line| line["message"] == "certificate issued").await;
    let first = pushes(&relay, &wechat, &pebble.root).await;
    let other = async || leaf(&relay, &pebble.root).await.filter(|leaf| *leaf != first);
    eventually("another certificate", other).await;
    pushes(&relay, &wechat, &pebble.root).await;
    // It is served before it is stored and counted.
    let counted = async || (relay.metric(ORDERS, &[("result", "issued")]).await >= 2.0).then_some(());
    eventually("two orders", counted).await;
    assert_eq!(relay.samples("wxrelay_tls_expiry_timestamp_seconds").await.len(), 1, "of the newer one");
}

#[tokio::test]
async fn a_certificate_that_cannot_be_kept_is_served_all_the_same() {
    if is_missing("pebble") {
        return;
    }
    let (wechat, crm, place) = (WeChat::secure(), Target::start().await, PebbleSetup::new());
    let relay = serve(&wechat, &crm, &acme(&place)).await;
    relay.log("the failure", failure).await;
    let kept = relay.store().join(place.folder());
    // The temporary file, before it is renamed.
    fs::create_dir_all(kept.join("localhost.new")).expect("a folder can be made");
    let pebble = place.start(&relay.push, LONG).await;
    relay.signal(Signal::HUP);
    let line =
        relay.log("the warning", |line| line["message"].as_str().is_some_and(|m| m.contains("not stored"))).await;
    assert!(line["error"].as_str().is_some_and(|error| error.contains("localhost.pem")), "{line}");
    relay.log("the certificate", |line| line["message"] == "certificate issued").await;
    pushes(&relay, &wechat, &pebble.root).await;
    assert!(!kept.join("localhost.pem").exists());
}

#[tokio::test]
async fn an_authority_that_is_not_trusted_gets_nothing() {
    if is_missing("pebble") {
        return;
    }
    let (wechat, crm, place, other) = (WeChat::secure(), Target::start().await, PebbleSetup::new(), Certificate::new());
    let pebble = place.start("127.0.0.1:1", LONG).await;
    let relay = serve(&wechat, &crm, &acme(&place).replace(&place.ca(), &other.cert())).await;
    let line = relay.log("the failure", failure).await;
    assert!(line["error"].as_str().is_some_and(|error| error.contains("authority that is not trusted")), "{line}");
    assert!(!relay.store().join(place.folder()).exists(), "no account is kept");
    drop(pebble);
}

#[tokio::test]
async fn an_order_under_way_does_not_hold_up_the_stop() {
    let (wechat, crm, place) = (WeChat::secure(), Target::start().await, PebbleSetup::new());
    let silent = TcpListener::bind(&place.address).await.expect("the place is free");
    let other = Certificate::new();
    let tls = format!("[{}, {{ cert = \"{}\", key = \"{}\" }}]", acme(&place), other.cert(), other.key());
    let mut relay = serve(&wechat, &crm, &tls).await;
    let (mut asked, _) = soon("the authority is asked", silent.accept()).await.expect("a connection");
    asked.read_u8().await.expect("and waited for");
    let answer = over_tls(&relay.push, &other, &wechat.push(&text("o1", "hello")).request(PATH)).await;
    assert!(answer.contains(" 200 "), "{answer}");
    relay.stop().await;
}

#[tokio::test]
async fn an_unusable_stored_certificate_is_ordered_again() {
    if is_missing("pebble") {
        return;
    }
    let (wechat, crm, place) = (WeChat::secure(), Target::start().await, PebbleSetup::new());
    let mut relay = serve(&wechat, &crm, &acme(&place)).await;
    let kept = relay.store().join(place.folder());
    relay.stop().await;
    fs::create_dir_all(&kept).expect("a folder can be made");
    for name in ["account.json", "localhost.pem"] {
        fs::write(kept.join(name), "noise").expect("it can be written");
    }
    relay.restart().await;
    relay.log("the warning", |line| line["message"].as_str().is_some_and(|m| m.contains("ordering another"))).await;
    let pebble = place.start(&relay.push, LONG).await;
    relay.log("the failure", failure).await;
    relay.signal(Signal::HUP);
    relay.log("the certificate", |line| line["message"] == "certificate issued").await;
    pushes(&relay, &wechat, &pebble.root).await;
}

/// Whether a log line is that of a failed order.
pub(crate) fn failure(line: &serde_json::Value) -> bool {
    line["message"].as_str().is_some_and(|message| message.starts_with("certificate order failed"))
}

pub(crate) fn acme(place: &PebbleSetup) -> String {
    format!("{{ acme = {{ domains = [\"localhost\"], email = \"ops@example.com\", {} }} }}", place.keys())
}

async fn serve(wechat: &WeChat, crm: &Target, tls: &str) -> Relay {
    Setup::new(wechat.account() + &crm.config("crm", "")).server(&format!("tls = {tls}")).start().await
}

fn trusting(roots: &[&CertificateDer<'static>]) -> Arc<ClientConfig> {
    let mut store = RootCertStore::empty();
    for root in roots {
        store.add(CertificateDer::clone(root)).expect("a sound certificate");
    }
    let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()));
    let builder = builder.with_safe_default_protocol_versions().expect("ring knows them");
    Arc::new(builder.with_root_certificates(store).with_no_client_auth())
}

/// Sends a push that must be answered 200; returns the certificate that was served.
pub(crate) async fn pushes(relay: &Relay, wechat: &WeChat, root: &CertificateDer<'static>) -> CertificateDer<'static> {
    let mut stream =
        connect(relay, &trusting(&[root]), "localhost").await.expect("a certificate that leads to the root");
    let leaf = shown(&stream);
    let answer = exchange(&mut stream, &wechat.push(&text("o1", "hello")).request(PATH)).await;
    assert!(answer.starts_with("HTTP/1.0 200 ") && answer.ends_with("\r\n\r\nsuccess"), "{answer}");
    leaf
}

/// The certificate that is served now, if it is valid.
pub(crate) async fn leaf(relay: &Relay, root: &CertificateDer<'static>) -> Option<CertificateDer<'static>> {
    connect(relay, &trusting(&[root]), "localhost").await.ok().map(|stream| shown(&stream))
}

/// Runs `doctor` with the address that the system chose, as if it were in the configuration.
async fn doctor(relay: &Relay, args: &[&str]) -> String {
    let config = fs::read_to_string(relay.config()).expect("it was written").replacen("127.0.0.1:0", &relay.push, 1);
    let path = relay.config().with_file_name("doctor.toml");
    fs::write(&path, config).expect("it can be written");
    let mut command = wxrelay(["doctor", "-c"]);
    command.arg(path).args(args);
    let finished = run(command).await;
    assert_eq!(finished.code, Some(0), "{finished:?}");
    finished.stdout
}

/// An address without a listener.
async fn closed_port() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    listener.local_addr().expect("a bound socket has an address").to_string()
}
