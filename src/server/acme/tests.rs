//! Handshakes as an authority makes them, and the stored files.

use std::fs;
use std::path::Path;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::ring;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{DigitallySignedStruct, SignatureScheme};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::*;
use crate::server::challenge::PROTOCOL;
use crate::server::tls::Acceptor;
use crate::server::{self, Certificate, TlsFiles};

#[tokio::test]
async fn a_client_of_acme_s_protocol_gets_the_challenge_of_its_domain_or_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let (cert, key) = (folder.path().join("cert.pem"), folder.path().join("key.pem"));
    fs::write(&cert, made.cert.pem()).unwrap();
    fs::write(&key, made.signing_key.serialize_pem()).unwrap();
    let files = Certificate::Files(TlsFiles { cert, key });
    let acceptor = Acceptor::load(&[files.clone(), ordered(folder.path(), "wx.test")], false).unwrap();
    let alone = &[PROTOCOL][..];
    assert!(matches!(seen(&acceptor, "wx.test", alone).await, Err(rustls::Error::AlertReceived(_))));
    let offered = acceptor.challenges().offer("wx.test", &[7; 32]).unwrap();
    let shown = acceptor.challenges().answer("wx.test").unwrap().end_entity_cert().unwrap().clone().into_owned();
    assert_eq!(seen(&acceptor, "WX.test", alone).await.unwrap(), (shown, Some(PROTOCOL.to_vec())));
    assert!(matches!(seen(&acceptor, "other.test", alone).await, Err(rustls::Error::AlertReceived(_))));
    for protocols in [&[][..], &[&b"http/1.1"[..]], &[PROTOCOL, b"http/1.1"]] {
        let (shown, agreed) = seen(&acceptor, "wx.test", protocols).await.unwrap();
        assert_eq!(shown, *made.cert.der(), "none was issued yet, so the first of all");
        assert_ne!(agreed.as_deref(), Some(PROTOCOL));
    }
    drop(offered);
    assert!(seen(&acceptor, "wx.test", alone).await.is_err());
    let without = Acceptor::load(&[files], false).unwrap();
    assert!(matches!(seen(&without, "localhost", alone).await, Err(rustls::Error::AlertReceived(_))));
}

#[tokio::test]
async fn an_authority_that_validated_a_domain_does_not_reach_http() {
    let folder = tempfile::tempdir().unwrap();
    let acceptor = Acceptor::load(&[ordered(folder.path(), "wx.test")], false).unwrap();
    let _offered = acceptor.challenges().offer("wx.test", &[7; 32]).unwrap();
    let bound = server::bind(&server::Listen::Tcp("127.0.0.1:0".parse().unwrap())).await.unwrap();
    let address = bound[0].address();
    let hello = tower::service_fn(|_: http::Request<hyper::body::Incoming>| async {
        Ok::<_, std::convert::Infallible>(http::Response::new("hello".to_owned()))
    });
    let stop = CancellationToken::new();
    let options = server::Options::default();
    let serving = tokio::spawn(server::serve(bound, Some(acceptor), hello, options, stop.clone(), Duration::ZERO));
    let near = TcpStream::connect(address).await.unwrap();
    let mut stream = client(&[PROTOCOL]).connect(ServerName::try_from("wx.test").unwrap(), near).await.unwrap();
    // The connection may be closed already.
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n").await.ok();
    let mut answer = Vec::new();
    timeout(Duration::from_secs(10), stream.read_to_end(&mut answer)).await.expect("closed in time").ok();
    assert_eq!(answer, b"");
    stop.cancel();
    serving.await.unwrap();
}

#[test]
fn a_stored_certificate_is_served_if_it_is_whole_and_for_every_domain() {
    let folder = tempfile::tempdir().unwrap();
    let Certificate::Acme(settings) = ordered(folder.path(), "localhost") else { unreachable!() };
    assert!(!tls::is_stored(&settings).unwrap());
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    fs::write(&settings.file, made.signing_key.serialize_pem() + &made.cert.pem()).unwrap();
    assert!(tls::is_stored(&settings).unwrap());
    let more = AcmeSettings { domains: vec!["localhost".to_owned(), "wx.test".to_owned()], ..settings.clone() };
    assert!(matches!(tls::is_stored(&more), Err(tls::Error::Misnamed { domain, .. }) if domain == "wx.test"));
    fs::write(&settings.file, made.cert.pem()).unwrap();
    assert!(matches!(tls::is_stored(&settings), Err(tls::Error::Missing { what: "private key", .. })));
    let acceptor = Acceptor::load(&[Certificate::Acme(settings)], false).unwrap();
    assert_eq!(acceptor.validities().count(), 0, "ACME orders another");
}

fn ordered(folder: &Path, domain: &str) -> Certificate {
    Certificate::Acme(AcmeSettings {
        domains: vec![domain.to_owned()],
        email: None,
        directory: LETS_ENCRYPT.to_owned(),
        ca: None,
        file: folder.join("acme.pem"),
        shared: false,
    })
}

type Seen = Result<(CertificateDer<'static>, Option<Vec<u8>>), rustls::Error>;

/// The certificate that a client receives, and the protocol that is agreed on.
async fn seen(acceptor: &Acceptor, name: &str, protocols: &[&[u8]]) -> Seen {
    let (near, far) = tokio::io::duplex(1 << 16);
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let (_, stream) = tokio::join!(acceptor.accept(far), client(protocols).connect(name, near));
    let stream = stream.map_err(|error| error.downcast::<rustls::Error>().unwrap())?;
    let tls = stream.get_ref().1;
    let shown = tls.peer_certificates().unwrap()[0].clone().into_owned();
    Ok((shown, tls.alpn_protocol().map(<[u8]>::to_vec)))
}

fn client(protocols: &[&[u8]]) -> TlsConnector {
    let mut config = rustls::ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anything))
        .with_no_client_auth();
    config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
    TlsConnector::from(Arc::new(config))
}

/// Trusts any certificate.
#[derive(Debug)]
struct Anything;

impl ServerCertVerifier for Anything {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        ring::default_provider().signature_verification_algorithms.supported_schemes()
    }
}
