//! Which certificate a client gets, sessions that resume, renewal while running, and unusable certificates.

use std::fs;
use std::io;
use std::sync::Arc;

use rustix::process::Signal;
use rustls::crypto::ring;
use rustls::pki_types::ServerName;
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, HandshakeKind, RootCertStore, SupportedProtocolVersion};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::support::command::{run, wxrelay};
use crate::support::relay::{Relay, Setup};
use crate::support::soon;
use crate::support::target::Target;
use crate::support::wechat::{PATH, WeChat, text};
use crate::tls::Certificate;

const BOTH: &[&SupportedProtocolVersion] = &[&TLS12, &TLS13];

#[tokio::test]
async fn a_client_gets_the_certificate_for_its_name_and_the_first_without_one() {
    let [one, two] = [Certificate::of(&["one.test"], 4096), Certificate::of(&["two.test", "*.two.test"], 4096)];
    let (wechat, crm) = (WeChat::secure(), Target::start().await);
    let relay = serve(&[&one, &two], &wechat, &crm).await;
    let client = client(&[&one, &two], BOTH);
    for (name, files) in [("one.test", &one), ("two.test", &two), ("a.two.test", &two)] {
        let stream = connect(&relay, &client, name).await.expect("a handshake");
        assert_eq!(shown(&stream), files.der(), "{name}");
    }
    let mut silent = ClientConfig::clone(&client);
    silent.enable_sni = false;
    let stream = connect(&relay, &Arc::new(silent), "one.test").await.expect("a handshake without a name");
    assert_eq!(shown(&stream), one.der());
    let error = connect(&relay, &client, "three.test").await.expect_err("it is for nobody of that name");
    assert!(error.to_string().contains("not valid for name"), "{error}");
    for files in [&one, &two] {
        let end = relay.metric("wxrelay_tls_expiry_timestamp_seconds", &[("cert", &files.cert())]).await;
        assert!(end > 6e10, "the end of {}: {end}", files.cert());
    }
}

#[tokio::test]
async fn sessions_resume_in_both_versions_also_after_a_renewal() {
    let files = Certificate::new();
    let (wechat, crm) = (WeChat::secure(), Target::start().await);
    let relay = serve(&[&files], &wechat, &crm).await;
    for versions in [&[&TLS12][..], &[&TLS13]] {
        let client = client(&[&files], versions);
        for expected in [HandshakeKind::Full, HandshakeKind::Resumed, HandshakeKind::Resumed] {
            let mut stream = connect(&relay, &client, "localhost").await.expect("a handshake");
            assert!(exchange(&mut stream, &wechat.push(&text("o1", "hello")).request(PATH)).await.contains(" 200 "));
            assert_eq!(stream.get_ref().1.handshake_kind(), Some(expected), "{versions:?}");
        }
        files.renew();
        relay.signal(Signal::HUP);
        let number = if versions == [&TLS12] { 2 } else { 3 };
        relay.log("the reload", |line| line["generation"] == number).await;
        let mut stream = connect(&relay, &client, "localhost").await.expect("a handshake");
        assert!(exchange(&mut stream, &wechat.push(&text("o1", "hello")).request(PATH)).await.contains(" 200 "));
        assert_eq!(stream.get_ref().1.handshake_kind(), Some(HandshakeKind::Resumed), "{versions:?}");
    }
}

#[tokio::test]
async fn a_renewal_by_sighup_breaks_no_connection() {
    let files = Certificate::new();
    let (wechat, crm) = (WeChat::secure(), Target::start().await);
    let relay = serve(&[&files], &wechat, &crm).await;
    let old = files.der();
    let mut kept = connect(&relay, &client(&[&files], BOTH), "localhost").await.expect("a handshake");
    kept.write_all(&wechat.push(&text("o1", "before")).kept_alive(PATH)).await.expect("it is open");
    crm.wait_for(1).await;
    files.renew();
    relay.signal(Signal::HUP);
    relay.log("the reload", |line| line["generation"] == 2).await;
    let fresh = connect(&relay, &client(&[&files], BOTH), "localhost").await.expect("a handshake");
    assert_eq!(shown(&fresh), files.der());
    assert_ne!(files.der(), old);
    let closing = String::from_utf8(wechat.push(&text("o1", "after")).kept_alive(PATH)).expect("text");
    let answers = exchange(&mut kept, closing.replace("keep-alive", "close").as_bytes()).await;
    assert_eq!(answers.matches("HTTP/1.1 200 OK").count(), 2, "on the connection from before: {answers}");
}

#[tokio::test]
async fn a_renewal_that_does_not_fit_changes_nothing() {
    let [files, other] = [Certificate::new(), Certificate::new()];
    let (wechat, crm) = (WeChat::secure(), Target::start().await);
    let relay = serve(&[&files], &wechat, &crm).await;
    let served = files.der();
    let client = client(&[&files], BOTH);
    fs::copy(other.key(), files.key()).expect("it can be written");
    let refused = crate::support::http::post(&relay.admin, "/api/reload").await;
    assert!(refused.status >= 400, "{refused:?}");
    assert!(refused.text().contains("key.pem"), "the answer names the file: {}", refused.text());
    let mut stream = connect(&relay, &client, "localhost").await.expect("a handshake");
    assert_eq!(shown(&stream), served);
    assert!(exchange(&mut stream, &wechat.push(&text("o1", "hello")).request(PATH)).await.contains(" 200 "));
}

#[tokio::test]
async fn certificates_that_cannot_be_served_stop_the_start_with_the_file_and_the_remedy() {
    let [one, two] = [Certificate::new(), Certificate::new()];
    let folder = tempfile::tempdir().expect("a temporary folder");
    let noise = folder.path().join("noise.pem");
    fs::write(&noise, "-----BEGIN CERTIFICATE-----\nnoise\n").expect("it can be written");
    let noise = noise.to_str().expect("text").to_owned();
    for (cert, key, file, remedy) in [
        (one.cert(), two.key(), two.key(), "another certificate's"),
        (one.key(), one.cert(), one.key(), "swapped"),
        (noise.clone(), one.key(), noise, "not a PEM file"),
        (folder.path().to_str().expect("text").to_owned(), one.key(), "server.tls".to_owned(), "this user may read"),
    ] {
        let config = folder.path().join("config.toml");
        let (wechat, queue) = (WeChat::secure(), folder.path().join("queue"));
        // The second of two, as every entry is checked.
        let server = format!(
            "[server]\nlisten = [\"127.0.0.1:0\"]\ntls = [{}, {{ cert = \"{cert}\", key = \"{key}\" }}]\n[queue]\n\
             path = \"{}\"\n[admin]\nlisten = \"127.0.0.1:0\"\n",
            pair(&one),
            queue.display()
        );
        fs::write(&config, server + &wechat.account()).expect("it can be written");
        let mut command = wxrelay(["serve", "-c"]);
        command.arg(&config);
        let finished = run(command).await;
        assert_ne!(finished.code, Some(0));
        let said = finished.stderr + &finished.stdout;
        assert!(said.contains(&file) && said.contains(remedy), "{file}, {remedy}: {said}");
    }
}

#[tokio::test]
async fn an_expired_certificate_is_served_and_logged_as_an_error() {
    let files = Certificate::of(&["localhost"], 2020);
    let (wechat, crm) = (WeChat::secure(), Target::start().await);
    let relay = serve(&[&files], &wechat, &crm).await;
    let line = relay.log("the warning", |line| line["cert"] == files.cert()).await;
    assert_eq!(line["level"], "ERROR");
    assert!(line["message"].as_str().is_some_and(|message| message.contains("certificate expired")), "{line}");
    let error = connect(&relay, &client(&[&files], BOTH), "localhost").await.expect_err("clients see it");
    assert!(error.to_string().contains("expired"), "{error}");
}

#[tokio::test]
async fn silent_and_noisy_clients_block_no_others() {
    let files = Certificate::new();
    let (wechat, crm) = (WeChat::secure(), Target::start().await);
    let relay = serve(&[&files], &wechat, &crm).await;
    let mut held = Vec::new();
    for noise in [&b""[..], b"GET / HTTP/1.0\r\n\r\n", b"\x16\x03\x01\x02\x00\x01"].repeat(20) {
        let mut stream = TcpStream::connect(&relay.push).await.expect("the relay listens");
        stream.write_all(noise).await.expect("it can be sent");
        held.push(stream);
    }
    let mut stream = connect(&relay, &client(&[&files], BOTH), "localhost").await.expect("a handshake");
    assert!(exchange(&mut stream, &wechat.push(&text("o1", "hello")).request(PATH)).await.contains(" 200 "));
    for mut stream in held {
        // The handshake times out, whatever the client sends.
        soon("the relay gives the handshake up", stream.read_to_end(&mut Vec::new())).await.ok();
    }
}

#[tokio::test]
async fn a_half_closed_client_gets_its_answer_over_tls() {
    let (wechat, crm, files) = (WeChat::secure(), Target::start().await, Certificate::new());
    let relay = serve(&[&files], &wechat, &crm).await;
    let mut stream = connect(&relay, &client(&[&files], rustls::ALL_VERSIONS), "localhost").await.expect("TLS");
    stream.write_all(&wechat.push(&text("o1", "hello")).request(PATH)).await.expect("the relay reads");
    stream.shutdown().await.expect("the sending side can be closed");
    assert!(exchange(&mut stream, b"").await.contains(" 200 "));
    crm.wait_for(1).await;
}

async fn serve(files: &[&Certificate], wechat: &WeChat, crm: &Target) -> Relay {
    let list: Vec<_> = files.iter().map(|files| pair(files)).collect();
    // One certificate is written as a table, several as a list.
    let tls = if let [one] = &list[..] { format!("tls = {one}") } else { format!("tls = [{}]", list.join(", ")) };
    Setup::new(wechat.account() + &crm.config("crm", "")).server(&tls).start().await
}

fn pair(files: &Certificate) -> String {
    format!("{{ cert = \"{}\", key = \"{}\" }}", files.cert(), files.key())
}

fn client(trusted: &[&Certificate], versions: &[&'static SupportedProtocolVersion]) -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    for files in trusted {
        roots.add(files.der()).expect("a sound certificate");
    }
    let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()));
    let builder = builder.with_protocol_versions(versions).expect("ring knows them");
    Arc::new(builder.with_root_certificates(roots).with_no_client_auth())
}

pub(crate) async fn connect(relay: &Relay, client: &Arc<ClientConfig>, name: &str) -> io::Result<TlsStream<TcpStream>> {
    let name = ServerName::try_from(name.to_owned()).expect("a name");
    let stream = TcpStream::connect(&relay.push).await?;
    soon("the handshake", TlsConnector::from(client.clone()).connect(name, stream)).await
}

/// The leaf that the relay served.
pub(crate) fn shown(stream: &TlsStream<TcpStream>) -> rustls::pki_types::CertificateDer<'static> {
    stream.get_ref().1.peer_certificates().expect("a certificate").first().expect("a leaf").clone().into_owned()
}

/// Reads until the relay closes.
pub(crate) async fn exchange(stream: &mut TlsStream<TcpStream>, request: &[u8]) -> String {
    let mut answer = String::new();
    soon("an answer", async {
        stream.write_all(request).await?;
        stream.read_to_string(&mut answer).await
    })
    .await
    .expect("an answer and a clean end");
    answer
}
