//! A minimal HTTP client: writes given bytes and reads one answer, so that tests see the bytes on the wire.

use std::io;
use std::net::SocketAddr;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpSocket, TcpStream};

use super::soon;

/// An answer as received.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) version: String,
    pub(crate) status: u16,
    /// Names in lower case, in the order received.
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.body).expect("the answer is UTF-8")
    }

    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("not JSON ({error}): {}", self.text()))
    }
}

/// One connection.
pub(crate) struct Connection(BufReader<TcpStream>);

impl Connection {
    pub(crate) async fn open(address: &str) -> io::Result<Self> {
        Ok(Self(BufReader::new(TcpStream::connect(address).await?)))
    }

    pub(crate) async fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.0.write_all(bytes).await
    }

    /// Closes the sending side.
    pub(crate) async fn finish(&mut self) -> io::Result<()> {
        self.0.shutdown().await
    }

    /// Closes both sides by a reset, which no half-closed client does.
    pub(crate) fn reset(self) {
        self.0.get_ref().set_zero_linger().expect("a socket has this option");
    }

    /// The next answer; an error of kind `UnexpectedEof` when the other side ends without one.
    pub(crate) async fn read(&mut self) -> io::Result<Answer> {
        let status_line = self.line().await?;
        let mut words = status_line.splitn(3, ' ');
        let version = words.next().unwrap_or_default().to_owned();
        let status = words.next().and_then(|word| word.parse().ok()).ok_or(io::ErrorKind::InvalidData)?;
        let mut headers = Vec::new();
        loop {
            let line = self.line().await?;
            let Some((name, value)) = line.split_once(':') else { break };
            headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
        }
        let mut answer = Answer { version, status, headers, body: Vec::new() };
        match answer.header("content-length").and_then(|length| length.parse().ok()) {
            Some(length) => {
                answer.body = vec![0; length];
                self.0.read_exact(&mut answer.body).await?;
            }
            None => {
                self.0.read_to_end(&mut answer.body).await?;
            }
        }
        Ok(answer)
    }

    /// Waits for `100 Continue`; anything else fails the test.
    pub(crate) async fn continued(&mut self) {
        let line = soon("100 Continue", self.line()).await.expect("a status line");
        assert!(line.ends_with("100 Continue"), "{line}");
        assert_eq!(self.line().await.expect("the end of the head"), "");
    }

    /// Whether the other side has ended the connection, without a byte more.
    pub(crate) async fn ends(&mut self) -> bool {
        matches!(soon("the relay ends the connection", self.0.read_u8()).await, Err(error) if error.kind() == io::ErrorKind::UnexpectedEof)
    }

    async fn line(&mut self) -> io::Result<String> {
        let mut line = String::new();
        if self.0.read_line(&mut line).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        line.truncate(line.trim_end().len());
        Ok(line)
    }
}

/// Sends one request on a connection of its own and reads the answer.
pub(crate) async fn try_exchange(address: &str, request: &[u8]) -> io::Result<Answer> {
    soon("an answer", async {
        let mut connection = Connection::open(address).await?;
        connection.write(request).await?;
        connection.read().await
    })
    .await
}

/// As [`try_exchange`], where a broken connection is a failure of the test.
pub(crate) async fn exchange(address: &str, request: &[u8]) -> Answer {
    try_exchange(address, request).await.unwrap_or_else(|error| panic!("no answer from {address}: {error}"))
}

/// As [`exchange`], from that loopback address.
pub(crate) async fn exchange_from(source: &str, address: &str, request: &[u8]) -> Answer {
    soon("an answer", async {
        let stream = connect_from(source, address).await.expect("somebody listens");
        let mut connection = Connection(BufReader::new(stream));
        connection.write(request).await.expect("the request can be sent");
        connection.read().await.expect("an answer")
    })
    .await
}

/// A connection from that loopback address.
pub(crate) async fn connect_from(source: &str, address: &str) -> io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.bind(SocketAddr::new(source.parse().expect("an address"), 0))?;
    socket.connect(address.parse().expect("an address and a port")).await
}

/// A GET as a script would send it.
pub(crate) async fn get(address: &str, path: &str) -> Answer {
    exchange(address, format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n").as_bytes()).await
}

/// A POST without a body.
pub(crate) async fn post(address: &str, path: &str) -> Answer {
    post_with(address, path, "").await
}

/// A POST with that body.
pub(crate) async fn post_with(address: &str, path: &str, body: &str) -> Answer {
    let length = body.len();
    let head = format!("POST {path} HTTP/1.1\r\nHost: {address}\r\nContent-Length: {length}\r\nConnection: close\r\n");
    exchange(address, format!("{head}\r\n{body}").as_bytes()).await
}
