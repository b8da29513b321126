//! The server from outside: raw bytes on real sockets, as a client sees them.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::Path;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Full, Limited};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{CipherSuite, ClientConfig, HandshakeKind, RootCertStore};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream, UnixStream};
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinHandle;
use tokio_rustls::TlsConnector;

use super::stack::{Limits, around};
use super::tls::Acceptor;
use super::*;

const LIMITS: Limits = Limits { concurrency: 100, deadline: Duration::from_secs(30) };
const GET: &str = "GET / HTTP/1.1\r\nhost: x\r\n\r\n";
const LAST_GET: &str = "GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";

/// A server under test.
struct Running {
    address: SocketAddr,
    shutdown: CancellationToken,
    task: JoinHandle<()>,
}

impl Running {
    async fn send(&self, request: &str) -> TcpStream {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        stream
    }

    /// Sends a request; returns the bytes of the server until it closes.
    async fn ask(&self, request: &str) -> String {
        rest(&mut self.send(request).await).await
    }
}

async fn rest(stream: &mut (impl AsyncRead + Unpin)) -> String {
    let mut text = String::new();
    timeout(Duration::from_secs(10), stream.read_to_string(&mut text)).await.expect("closed in time").unwrap();
    text
}

/// One answer of a connection that stays open: its head, and a body of `length` bytes.
async fn one(stream: &mut TcpStream, length: usize) -> String {
    let mut text = String::new();
    while text.split_once("\r\n\r\n").is_none_or(|(_, body)| body.len() < length) {
        text.push(char::from(timeout(Duration::from_secs(10), stream.read_u8()).await.unwrap().unwrap()));
    }
    text
}

type Work = Result<Response<Full<Bytes>>, Infallible>;

/// Serves `work` with the layers around it.
async fn run<F>(
    work: impl Fn(Request<Incoming>) -> F + Clone + Send + Sync + 'static,
    limits: Limits,
    options: Options,
) -> Running
where
    F: Future<Output = Work> + Send + 'static,
{
    start(work, limits, options, None, Duration::from_secs(10)).await
}

async fn start<F>(
    work: impl Fn(Request<Incoming>) -> F + Clone + Send + Sync + 'static,
    limits: Limits,
    options: Options,
    tls: Option<Acceptor>,
    drain: Duration,
) -> Running
where
    F: Future<Output = Work> + Send + 'static,
{
    let bound = bind(&Listen::Tcp("127.0.0.1:0".parse().unwrap())).await.unwrap();
    let address = bound[0].tcp_address().unwrap();
    let shutdown = CancellationToken::new();
    let service = around(tower::service_fn(work), limits);
    let task = tokio::spawn(serve(bound, tls, service, options, shutdown.clone(), drain));
    Running { address, shutdown, task }
}

async fn hello(_: Request<Incoming>) -> Work {
    Ok(Response::new("hello".into()))
}

async fn who(request: Request<Incoming>) -> Work {
    Ok(Response::new(format!("{:?}", request.extensions().get::<Peer>()).into()))
}

async fn read(request: Request<Incoming>) -> Work {
    #[expect(clippy::disallowed_methods, reason = "limited to 4 KiB")]
    let body = Limited::new(request.into_body(), 4096).collect().await;
    Ok(Response::new(body.map_or_else(|_| Bytes::from("cut"), |body| body.to_bytes()).into()))
}

#[tokio::test]
async fn http_1_0_is_answered_as_such_with_a_length_and_closed() {
    let server = run(hello, LIMITS, Options::default()).await;
    let answer = server.ask("POST /x HTTP/1.0\r\ncontent-length: 2\r\n\r\nhi").await;
    assert!(answer.starts_with("HTTP/1.0 200 OK\r\n"), "{answer}");
    assert!(answer.contains("\r\ncontent-length: 5\r\n"), "{answer}");
    assert!(answer.contains("\r\nx-content-type-options: nosniff\r\n"), "{answer}");
    assert!(answer.ends_with("\r\n\r\nhello"), "{answer}");
    assert!(!answer.contains("transfer-encoding"), "{answer}");
}

#[tokio::test]
async fn a_connection_is_kept_for_further_requests() {
    let server = run(hello, LIMITS, Options::default()).await;
    let mut stream = server.send(GET).await;
    assert!(one(&mut stream, 5).await.ends_with("hello"));
    stream.write_all(LAST_GET.as_bytes()).await.unwrap();
    assert!(rest(&mut stream).await.ends_with("hello"));
}

#[tokio::test]
async fn pipelined_requests_are_each_answered() {
    let server = run(hello, LIMITS, Options::default()).await;
    let answers = server.ask(&format!("{GET}{GET}{LAST_GET}")).await;
    assert_eq!(answers.matches("HTTP/1.1 200 OK").count(), 3, "{answers}");
}

#[tokio::test]
async fn a_first_request_that_does_not_arrive_is_not_waited_for() {
    let options = Options { header_timeout: Duration::from_millis(50), ..Options::default() };
    let server = run(hello, LIMITS, options).await;
    assert_eq!(server.ask("").await, "");
    assert_eq!(server.ask("GET / HTTP/1.1\r\nhos").await, "");
}

#[tokio::test]
async fn an_idle_connection_outlives_the_first_limit_but_not_its_own() {
    let (header_timeout, idle_timeout) = (Duration::from_millis(50), Duration::from_millis(300));
    let server = run(hello, LIMITS, Options { header_timeout, idle_timeout, ..Options::default() }).await;
    let mut stream = server.send(GET).await;
    let idle_since = tokio::time::Instant::now();
    assert!(rest(&mut stream).await.ends_with("hello"));
    assert!(idle_since.elapsed() >= idle_timeout);
}

#[tokio::test]
async fn too_many_headers_are_refused() {
    let server = run(hello, LIMITS, Options::default()).await;
    let headers: String = (0..65).map(|n| format!("h{n}: x\r\n")).collect();
    let answer = server.ask(&format!("GET / HTTP/1.1\r\n{headers}\r\n")).await;
    assert!(answer.starts_with("HTTP/1.1 431 "), "{answer}");
}

#[tokio::test]
async fn what_is_not_http_is_answered_and_closed() {
    let server = run(hello, LIMITS, Options::default()).await;
    let answer = server.ask("\u{1}\u{2}\u{3} nonsense\r\n\r\nmore").await;
    assert!(answer.starts_with("HTTP/1.1 400 ") && answer.contains("content-length: 0"), "{answer}");
}

#[tokio::test]
async fn a_panic_costs_one_request_and_tells_nothing() {
    let work = async |request: Request<Incoming>| -> Work {
        assert_ne!(request.uri().path(), "/panic", "secret");
        hello(request).await
    };
    let server = run(work, LIMITS, Options::default()).await;
    let answers = server.ask(&format!("GET /panic HTTP/1.1\r\nhost: x\r\n\r\n{LAST_GET}")).await;
    assert!(answers.starts_with("HTTP/1.1 500 "), "{answers}");
    assert!(answers.contains("\r\n\r\nerrorHTTP/1.1 200 OK\r\n"), "{answers}");
    assert!(answers.contains("content-length: 5\r\n"), "{answers}");
    assert!(!answers.contains("secret"), "{answers}");
}

#[tokio::test]
async fn more_than_can_be_worked_on_is_refused_at_once() {
    let (began, mut begins) = mpsc::channel(1);
    let go_on = Arc::new(Notify::new());
    let gate = go_on.clone();
    let work = move |request| {
        let (began, gate) = (began.clone(), gate.clone());
        async move {
            began.send(()).await.unwrap();
            gate.notified().await;
            hello(request).await
        }
    };
    let server = run(work, Limits { concurrency: 1, ..LIMITS }, Options::default()).await;
    let mut first = server.send(LAST_GET).await;
    begins.recv().await.unwrap();
    let second = server.ask(LAST_GET).await;
    assert!(second.starts_with("HTTP/1.1 503 ") && second.ends_with("\r\n\r\nbusy"), "{second}");
    go_on.notify_one();
    assert!(rest(&mut first).await.ends_with("hello"));
}

#[tokio::test]
async fn a_body_that_does_not_arrive_is_not_waited_for() {
    let server = run(read, Limits { deadline: Duration::from_millis(50), ..LIMITS }, Options::default()).await;
    let answer = server.ask("POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\nh").await;
    assert!(answer.starts_with("HTTP/1.1 503 ") && answer.ends_with("\r\n\r\nbusy"), "{answer}");
}

#[tokio::test]
async fn drain_answers_active_requests_and_refuses_new_ones() {
    let (began, mut begins) = mpsc::channel(1);
    let go_on = Arc::new(Notify::new());
    let gate = go_on.clone();
    let work = move |request| {
        let (began, gate) = (began.clone(), gate.clone());
        async move {
            began.send(()).await.unwrap();
            gate.notified().await;
            hello(request).await
        }
    };
    let server = run(work, LIMITS, Options::default()).await;
    let mut under_way = server.send(GET).await;
    begins.recv().await.unwrap();
    server.shutdown.cancel();
    while TcpStream::connect(server.address).await.is_ok() {
        tokio::task::yield_now().await;
    }
    assert!(!server.task.is_finished());
    go_on.notify_one();
    let answer = rest(&mut under_way).await;
    assert!(answer.contains("connection: close") && answer.ends_with("hello"), "{answer}");
    server.task.await.unwrap();
}

#[tokio::test]
async fn drain_answers_connections_that_the_system_has_accepted() {
    let bound = bind(&Listen::Tcp("127.0.0.1:0".parse().unwrap())).await.unwrap();
    let address = bound[0].tcp_address().unwrap();
    let mut waiting = Vec::new();
    for _ in 0..300 {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(LAST_GET.as_bytes()).await.unwrap();
        waiting.push(stream);
    }
    let shutdown = CancellationToken::new();
    shutdown.cancel();
    let service = around(tower::service_fn(hello), Limits { concurrency: 300, ..LIMITS });
    let serving = tokio::spawn(serve(bound, None, service, Options::default(), shutdown, Duration::from_secs(10)));
    for stream in &mut waiting {
        assert!(rest(stream).await.ends_with("hello"));
    }
    serving.await.unwrap();
}

#[tokio::test]
async fn drain_ends_at_its_limit() {
    let (began, mut begins) = mpsc::channel(1);
    let work = move |_| {
        let began = began.clone();
        async move {
            began.send(()).await.unwrap();
            std::future::pending::<Work>().await
        }
    };
    let server = start(work, LIMITS, Options::default(), None, Duration::from_millis(50)).await;
    let mut stuck = server.send(GET).await;
    begins.recv().await.unwrap();
    server.shutdown.cancel();
    assert_eq!(rest(&mut stuck).await, "");
    server.task.await.unwrap();
}

#[tokio::test]
async fn an_idle_connection_is_evicted_for_a_new_one() {
    let server = run(hello, LIMITS, Options { max_connections: ConnectionLimit::new(1), ..Options::default() }).await;
    let mut silent = server.send("").await;
    let mut kept = server.send(GET).await;
    assert!(one(&mut kept, 5).await.ends_with("hello"));
    assert_eq!(rest(&mut silent).await, "");
    assert!(server.ask(LAST_GET).await.ends_with("hello"));
    assert_eq!(rest(&mut kept).await, "");
}

#[tokio::test]
async fn an_authenticated_address_keeps_its_connections_while_unauthenticated_clients_have_some() {
    let server = run(hello, LIMITS, Options { max_connections: ConnectionLimit::new(4), ..Options::default() }).await;
    let mut kept = server.send(GET).await;
    assert!(one(&mut kept, 5).await.ends_with("hello"));
    let (begin, end) = LAST_GET.split_at(9);
    // This address has the most connections.
    let half_sent = [server.send(begin).await, server.send(begin).await];
    let from_elsewhere = async |source: [u8; 4]| {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind((source, 0).into()).unwrap();
        socket.connect(server.address).await.unwrap()
    };
    let mut stranger = from_elsewhere([127, 0, 0, 2]).await;
    let _next = from_elsewhere([127, 0, 0, 3]).await;
    assert_eq!(rest(&mut stranger).await, "");
    for mut stream in half_sent {
        stream.write_all(end.as_bytes()).await.unwrap();
        assert!(rest(&mut stream).await.ends_with("hello"));
    }
}

#[tokio::test]
async fn an_active_request_is_not_evicted_for_another_connection() {
    let (begun, go) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let work = {
        let (begun, go) = (begun.clone(), go.clone());
        move |request| {
            let (begun, go) = (begun.clone(), go.clone());
            async move {
                begun.notify_one();
                go.notified().await;
                hello(request).await
            }
        }
    };
    let server = run(work, LIMITS, Options { max_connections: ConnectionLimit::new(1), ..Options::default() }).await;
    let mut first = server.send(LAST_GET).await;
    begun.notified().await;
    let mut second = server.send(LAST_GET).await;
    assert!(timeout(Duration::from_millis(50), second.read_u8()).await.is_err(), "answered beside the first");
    go.notify_one();
    assert!(rest(&mut first).await.ends_with("hello"));
    go.notify_one();
    assert!(rest(&mut second).await.ends_with("hello"));
}

#[tokio::test]
async fn the_peer_is_the_one_that_trusted_proxies_name() {
    let forwarded = "GET / HTTP/1.0\r\nx-forwarded-for: 1.1.1.1, 192.0.2.7\r\n\r\n";
    let server = run(who, LIMITS, Options::default()).await;
    assert!(server.ask(forwarded).await.ends_with("Some(Peer(Some(127.0.0.1)))"));
    let trusted_proxies = Arc::new(["127.0.0.0/8".parse().unwrap()]);
    let server = run(who, LIMITS, Options { trusted_proxies, ..Options::default() }).await;
    assert!(server.ask(forwarded).await.ends_with("Some(Peer(Some(192.0.2.7)))"));
}

#[tokio::test]
async fn a_unix_socket_is_served() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("push.sock");
    let bound = bind(&Listen::Unix(path.clone())).await.unwrap();
    let service = around(tower::service_fn(who), LIMITS);
    let shutdown = CancellationToken::new();
    tokio::spawn(serve(bound, None, service, Options::default(), shutdown, Duration::ZERO));
    let mut stream = UnixStream::connect(path).await.unwrap();
    stream.write_all(LAST_GET.as_bytes()).await.unwrap();
    assert!(rest(&mut stream).await.ends_with("Some(Peer(None))"));
}

#[tokio::test]
async fn tls_is_spoken_sessions_resume_and_a_silent_client_holds_up_nobody() {
    let folder = tempfile::tempdir().unwrap();
    let (acceptor, connector) = certified(folder.path(), false);
    let server = start(hello, LIMITS, Options::default(), Some(acceptor), Duration::ZERO).await;
    let _silent = server.send("").await;
    for expected in [HandshakeKind::Full, HandshakeKind::Resumed] {
        let name = ServerName::try_from("localhost").unwrap();
        let mut stream = connector.connect(name, server.send("").await).await.unwrap();
        stream.write_all(LAST_GET.as_bytes()).await.unwrap();
        assert!(rest(&mut stream).await.ends_with("hello"));
        let session = stream.get_ref().1;
        assert_eq!(session.handshake_kind(), Some(expected));
        assert_eq!(session.alpn_protocol(), Some(&b"http/1.1"[..]), "h2 is not even offered");
        let suite = session.negotiated_cipher_suite().map(|suite| suite.suite());
        assert_eq!(suite, Some(CipherSuite::TLS13_AES_128_GCM_SHA256), "the client would rather have SHA-384");
    }
}

#[tokio::test]
async fn a_handshake_that_does_not_end_is_not_waited_for() {
    let folder = tempfile::tempdir().unwrap();
    let (acceptor, _) = certified(folder.path(), false);
    let options = Options { handshake_timeout: Duration::from_millis(50), ..Options::default() };
    let server = start(hello, LIMITS, options, Some(acceptor), Duration::ZERO).await;
    assert_eq!(server.ask("").await, "");
}

#[tokio::test]
async fn http_2_is_spoken_only_where_asked_for() {
    let server = run(hello, LIMITS, Options { http2: true, ..Options::default() }).await;
    assert!(server.ask(LAST_GET).await.ends_with("hello"), "HTTP/1.1 beside it");
    assert_eq!(ask_http_2(&server).await.unwrap(), "hello");
    let server = run(hello, LIMITS, Options::default()).await;
    assert!(ask_http_2(&server).await.is_err());
}

#[tokio::test]
async fn http_1_is_spoken_beside_http_2_however_its_bytes_arrive() {
    let options = Options { http2: true, header_timeout: Duration::from_millis(500), ..Options::default() };
    let server = run(read, LIMITS, options).await;
    // As HTTP/2's preface begins.
    for cut in [1, 2] {
        let request = "PRI / HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: 2\r\n\r\nhi";
        let mut stream = server.send(&request[..cut]).await;
        tokio::task::yield_now().await;
        stream.write_all(&request.as_bytes()[cut..]).await.unwrap();
        assert!(rest(&mut stream).await.ends_with("\r\n\r\nhi"));
    }
    assert_eq!(server.ask("").await, "", "a silent client is not waited for");
    assert_eq!(server.ask("PRI * HTTP/2.0\r\n\r\n").await, "", "nor one that stops in the preface");
}

async fn ask_http_2(server: &Running) -> hyper::Result<Bytes> {
    let io = TokioIo::new(server.send("").await);
    let (mut client, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await?;
    tokio::spawn(connection);
    let answer = client.send_request(Request::get("http://x/").body(Empty::<Bytes>::new()).unwrap()).await?;
    #[expect(clippy::disallowed_methods, reason = "our own server's answer")]
    answer.into_body().collect().await.map(|body| body.to_bytes())
}

/// A server's end of TLS with a fresh certificate, and a client's end that trusts it.
fn certified(folder: &Path, http2: bool) -> (Acceptor, TlsConnector) {
    let files = TlsFiles { cert: folder.join("cert.pem"), key: folder.join("key.pem") };
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    std::fs::write(&files.cert, made.cert.pem()).unwrap();
    std::fs::write(&files.key, made.signing_key.serialize_pem()).unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(&files.cert).unwrap()).unwrap();
    let mut client = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    client.alpn_protocols = vec![b"h2".into(), b"http/1.1".into()];
    (Acceptor::load(&[Certificate::Files(files)], http2).unwrap(), TlsConnector::from(Arc::new(client)))
}
