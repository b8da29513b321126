//! Clients of the admin listener that send or read nothing: they keep nobody else from it, and their requests end.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::Instant;

use crate::support::command::free_address;
use crate::support::http::Connection;
use crate::support::relay::{Relay, Setup};
use crate::support::target::Target;
use crate::support::wechat::WeChat;
use crate::support::{http, soon};

/// Less than the shortest deadline of the admin listener: what is answered in this time did not wait for one.
const AT_ONCE: Duration = Duration::from_secs(4);

#[tokio::test]
async fn bodies_that_do_not_come_block_neither_metrics_nor_commands() {
    let (relay, _crm) = relay("").await;
    let heads = [
        "POST /api/events/forget HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n{",
        "POST /api/targets/crm/pause HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n{",
        "GET /api/status HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n",
        "GET /metrics HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n",
    ];
    let mut slow = Vec::new();
    for head in heads.iter().cycle().take(60) {
        let mut connection = Connection::open(&relay.admin).await.expect("the relay listens");
        connection.write(head.as_bytes()).await.expect("the relay reads");
        slow.push(connection);
    }
    is_served(&relay).await;
    // The last ones were not given up for others: they end by the deadline.
    let begun = Instant::now();
    let late = slow.iter_mut().rev().nth(2).expect("there are sixty");
    let answer = soon("an answer", late.read()).await.expect("an answer");
    assert_eq!((answer.status, answer.text().contains("did not come in time")), (408, true), "{}", answer.text());
    println!("given up after {:?}", begun.elapsed());
}

#[tokio::test]
async fn a_body_that_comes_slowly_has_the_same_deadline() {
    let (relay, _crm) = relay("").await;
    let mut slow = TcpStream::connect(&relay.admin).await.expect("the relay listens");
    let head = "POST /api/events/forget HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n";
    slow.write_all(head.as_bytes()).await.expect("the relay reads");
    let (mut reader, mut writer) = slow.into_split();
    let drip = async {
        let mut pause = tokio::time::interval(Duration::from_millis(200));
        loop {
            pause.tick().await;
            if writer.write_all(b" ").await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    };
    let mut answer = [0; 12];
    let read = soon("an answer", reader.read_exact(&mut answer));
    tokio::select! {
        read = read => drop(read.expect("an answer")),
        () = drip => {}
    }
    assert_eq!(&answer, b"HTTP/1.1 408");
}

#[tokio::test]
async fn clients_that_read_nothing_block_neither_metrics_nor_commands() {
    let (relay, _crm) = relay("").await;
    // Far more than the buffers of a connection hold.
    let many = "GET /api/openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n".repeat(400);
    let tail = "GET /api/tail HTTP/1.1\r\nHost: localhost\r\n\r\n";
    let mut open = Vec::new();
    for request in [&*many; 20].into_iter().chain([tail; 16]) {
        let socket = TcpSocket::new_v4().expect("a socket");
        socket.set_recv_buffer_size(4096).expect("its buffer can be small");
        let address = relay.admin.parse().expect("an address");
        let mut connection = socket.connect(address).await.expect("the relay listens");
        connection.write_all(request.as_bytes()).await.expect("the relay reads");
        open.push(connection);
    }
    is_served(&relay).await;
}

#[tokio::test]
async fn connections_of_one_client_block_neither_metrics_nor_commands() {
    let (relay, _crm) = relay("token = \"the-admin-token\"").await;
    let guess = "GET /api/status HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer guessed\r\n\r\n";
    let mut open = Vec::new();
    for number in 0..600 {
        let Ok(mut connection) = TcpStream::connect(&relay.admin).await else { continue };
        // A third guesses tokens, a third sends half a head, a third nothing. The relay may have evicted it already.
        let sent = ["", "GET /metrics HTT", guess][number % 3];
        drop(connection.write_all(sent.as_bytes()).await);
        open.push(connection);
    }
    is_served(&relay).await;
}

#[tokio::test]
async fn forms_of_the_console_that_do_not_arrive_block_nobody_and_are_given_up() {
    let (relay, _crm) = relay("token = \"the-admin-token\"").await;
    let mut open = Vec::new();
    for path in ["/console/login", "/console/dead"].repeat(30) {
        let mut connection = TcpStream::connect(&relay.admin).await.expect("it listens");
        let head = format!(
            "POST {path} HTTP/1.1\r\nHost: {0}\r\nOrigin: http://{0}\r\nContent-Length: 99\r\n\r\nform=",
            relay.admin
        );
        connection.write_all(head.as_bytes()).await.expect("the relay reads");
        open.push(connection);
    }
    is_served(&relay).await;
    for mut connection in open {
        let mut status = [0; 12];
        connection.read_exact(&mut status).await.expect("an answer");
        assert_eq!(&status, b"HTTP/1.1 408");
    }
}

/// Health, metrics and a command are answered at once.
async fn is_served(relay: &Relay) {
    let token = "Authorization: Bearer the-admin-token\r\n";
    for path in ["/livez", "/readyz", "/metrics"] {
        let head = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n{token}Connection: close\r\n\r\n");
        let begun = Instant::now();
        let answer = http::exchange(&relay.admin, head.as_bytes()).await;
        assert_eq!((answer.status, begun.elapsed() < AT_ONCE), (200, true), "{path} after {:?}", begun.elapsed());
    }
    let begun = Instant::now();
    let finished = relay.run(&["targets", "pause", "crm"]).await;
    assert_eq!((finished.code, begun.elapsed() < AT_ONCE), (Some(0), true), "{:?}: {finished:?}", begun.elapsed());
}

async fn relay(admin: &str) -> (Relay, Target) {
    let (wechat, crm) = (WeChat::secure(), Target::start().await);
    let setup = Setup::new(wechat.account() + &crm.config("crm", "")).admin(admin).admin_at(free_address());
    (setup.start().await, crm)
}
