//! TLS on both sides, and HTTP/2 only where it is configured.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use http_body_util::Full;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::support::relay::{Relay, Setup};
use crate::support::target::Target;
use crate::support::wechat::{PATH, WeChat, text};
use crate::support::{http, soon};

#[tokio::test]
async fn pushes_are_taken_over_tls_and_a_renewed_certificate_without_a_restart() {
    let (wechat, crm, files) = (WeChat::secure(), Target::start().await, Certificate::new());
    let server = format!("tls = {{ cert = \"{}\", key = \"{}\" }}", files.cert(), files.key());
    let relay = Setup::new(wechat.account() + &crm.config("crm", "")).server(&server).start().await;
    let answer = over_tls(&relay.push, &files, &wechat.push(&text("o1", "one")).request(PATH)).await;
    assert!(answer.starts_with("HTTP/1.0 200 ") && answer.ends_with("\r\n\r\nsuccess"), "{answer}");
    assert_eq!(crm.delivery(0).await.json()["message"]["Content"], "one");

    files.renew();
    let reloaded = http::post(&relay.admin, "/api/reload").await;
    assert_eq!(reloaded.status, 200, "{reloaded:?}");
    let answer = over_tls(&relay.push, &files, &wechat.push(&text("o1", "two")).request(PATH)).await;
    assert!(answer.starts_with("HTTP/1.0 200 "), "{answer}");
    assert!(relay.metric("wxrelay_tls_expiry_timestamp_seconds", &[]).await > 1e9);
}

#[tokio::test]
async fn an_https_target_is_delivered_to_if_its_authority_is_trusted() {
    let (wechat, files) = (WeChat::secure(), Certificate::new());
    let crm = Target::secured(files.acceptor()).await;
    let trusted = format!("ca = \"{}\"", files.cert());
    let relay = Relay::start(wechat.account() + &crm.config("crm", &trusted)).await;
    relay.accept(&wechat, &text("o1", "hello")).await;
    assert_eq!(crm.delivery(0).await.json()["message"]["Content"], "hello");
}

#[tokio::test]
async fn an_https_target_of_an_unknown_authority_gets_nothing() {
    let (wechat, files) = (WeChat::secure(), Certificate::new());
    let crm = Target::secured(files.acceptor()).await;
    let other = Certificate::new();
    let settings = format!("ca = \"{}\"\nretry = []", other.cert());
    let relay = Relay::start(wechat.account() + &crm.config("crm", &settings)).await;
    relay.accept(&wechat, &text("o1", "hello")).await;
    relay.audited("dead", 1).await;
    assert!(crm.deliveries().is_empty());
}

#[tokio::test]
async fn a_handlers_own_certificate_is_trusted_as_openssl_makes_it() {
    let wechat = WeChat::secure();
    let own = Certificate::authority(&["localhost"], 4096);
    let crm = Target::secured(own.acceptor()).await;
    let trusted = format!("ca = \"{}\"", own.cert());
    let relay = Relay::start(wechat.account() + &crm.config("crm", &trusted)).await;
    relay.accept(&wechat, &text("o1", "hello")).await;
    assert_eq!(crm.delivery(0).await.json()["message"]["Content"], "hello");
}

#[tokio::test]
async fn a_certificate_that_names_itself_an_authority_is_trusted_only_if_it_is_the_named_one() {
    let wechat = WeChat::secure();
    let own = || Certificate::authority(&["localhost"], 4096);
    let shown = own();
    let other = own();
    let (expired, misnamed) =
        (Certificate::authority(&["localhost"], 2001), Certificate::authority(&["other.test"], 4096));
    for (shown, trusted, reason) in [
        (&shown, &other, "marked as an authority's"),
        (&expired, &expired, "certificate expired"),
        (&misnamed, &misnamed, "not valid for name \"localhost\""),
    ] {
        let crm = Target::secured(shown.acceptor()).await;
        let settings = format!("ca = \"{}\"\nretry = []", trusted.cert());
        let relay = Relay::start(wechat.account() + &crm.config("crm", &settings)).await;
        relay.accept(&wechat, &text("o1", "hello")).await;
        relay.audited("dead", 1).await;
        assert!(crm.deliveries().is_empty());
        let letters = relay.run(&["dead", "ls"]).await.stdout;
        assert!(letters.contains(reason) && !letters.contains("Other("), "{letters}");
    }
}

#[tokio::test]
async fn http_2_is_spoken_only_where_it_is_asked_for() {
    let (wechat, crm) = (WeChat::secure(), Target::start().await);
    for (server, spoken) in [("http2 = true", true), ("", false)] {
        let relay = Setup::new(wechat.account() + &crm.config("crm", "")).server(server).start().await;
        let status = over_http_2(&relay, &wechat).await;
        assert_eq!(status.is_some_and(|status| status == 200), spoken, "{server}: {status:?}");
    }
}

async fn over_http_2(relay: &Relay, wechat: &WeChat) -> Option<u16> {
    let push = wechat.push(&text("o1", "hello"));
    let stream = TcpStream::connect(&relay.push).await.expect("the relay listens");
    let exchange = async {
        let (mut sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.ok()?;
        let connection = tokio::spawn(connection);
        let uri = format!("http://{}{PATH}?{}", relay.push, push.query);
        let request = hyper::Request::post(uri).body(Full::new(Bytes::from(push.body))).expect("a sound request");
        let answer = sender.send_request(request).await.ok();
        connection.abort();
        answer.map(|answer| answer.status().as_u16())
    };
    soon("an answer or the connection's end", exchange).await
}

pub(crate) async fn over_tls(address: &str, files: &Certificate, request: &[u8]) -> String {
    over_tls_from("127.0.0.1", address, files, request).await
}

/// Sends a request over TLS from a loopback address.
pub(crate) async fn over_tls_from(source: &str, address: &str, files: &Certificate, request: &[u8]) -> String {
    let mut roots = RootCertStore::empty();
    roots.add(files.der()).expect("a sound certificate");
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("ring knows them")
        .with_root_certificates(roots)
        .with_no_client_auth();
    let exchange = async {
        let stream = http::connect_from(source, address).await?;
        let name = ServerName::try_from("localhost").expect("a name");
        let mut stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await?;
        stream.write_all(request).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        Ok::<_, std::io::Error>(answer)
    };
    soon("an answer over TLS", exchange).await.expect("TLS and an answer")
}

/// A self-signed certificate, for `localhost` by default, and its key, as files.
pub(crate) struct Certificate(TempDir);

impl Certificate {
    pub(crate) fn new() -> Self {
        let files = Self(tempfile::tempdir().expect("a temporary folder"));
        files.renew();
        files
    }

    /// A certificate for other names, valid until the start of that year.
    pub(crate) fn of(names: &[&str], end: i32) -> Self {
        let files = Self(tempfile::tempdir().expect("a temporary folder"));
        files.write(names, end);
        files
    }

    /// A certificate that is marked as an authority's, as `openssl req -x509` makes it.
    fn authority(names: &[&str], end: i32) -> Self {
        let files = Self(tempfile::tempdir().expect("a temporary folder"));
        files.write_as(names, end, rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained));
        files
    }

    pub(crate) fn renew(&self) {
        self.write(&["localhost"], 4096);
    }

    pub(crate) fn write(&self, names: &[&str], end: i32) {
        self.write_as(names, end, rcgen::IsCa::NoCa);
    }

    fn write_as(&self, names: &[&str], end: i32, is_ca: rcgen::IsCa) {
        let names: Vec<_> = names.iter().map(|&name| name.to_owned()).collect();
        let mut params = rcgen::CertificateParams::new(names).expect("sound names");
        params.not_before = rcgen::date_time_ymd(2000, 1, 1);
        params.not_after = rcgen::date_time_ymd(end, 1, 1);
        params.is_ca = is_ca;
        let key = rcgen::KeyPair::generate().expect("a key");
        let made = params.self_signed(&key).expect("a certificate");
        fs::write(self.cert(), made.pem()).expect("it can be written");
        fs::write(self.key(), key.serialize_pem()).expect("it can be written");
    }

    pub(crate) fn cert(&self) -> String {
        self.path("cert.pem")
    }

    pub(crate) fn key(&self) -> String {
        self.path("key.pem")
    }

    fn path(&self, name: &str) -> String {
        Path::join(self.0.path(), name).to_str().expect("a path of text").to_owned()
    }

    pub(crate) fn der(&self) -> CertificateDer<'static> {
        CertificateDer::from_pem_file(self.cert()).expect("it was written so")
    }

    pub(crate) fn acceptor(&self) -> TlsAcceptor {
        let key = PrivateKeyDer::from_pem_file(self.key()).expect("it was written so");
        let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("ring knows them")
            .with_no_client_auth()
            .with_single_cert(vec![self.der()], key)
            .expect("they fit");
        TlsAcceptor::from(Arc::new(config))
    }
}
