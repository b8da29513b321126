//! One connection's bytes: a socket with its time limits, in TLS where there is a network between.
//!
//! The TLS handshake is made here and not by the crate, so that each failure is told apart, and no glue of its own kind
//! is needed: the crate gets a stream that is ready.

use std::future::{Ready, ready};
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use rustix::net::sockopt;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio_postgres::tls::{ChannelBinding, TlsConnect, TlsStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream as Rustls;

use super::problem::ServerProblem;

/// A cut of the network is noticed on an idle connection after this time and the probes of 3 s.
const KEEPALIVE: Duration = Duration::from_secs(5);
/// How long bytes that we sent may stay unacknowledged.
#[cfg(target_os = "linux")]
const UNACKNOWLEDGED: Duration = Duration::from_secs(3);
/// `SSLRequest` of PostgreSQL's protocol: its length, and a number that is no version.
const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 4, 210, 22, 47];

/// A connection to a server.
#[derive(Debug)]
pub(super) enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
    Tls(Box<Rustls<TcpStream>>),
}

impl Stream {
    /// Connects to an address.
    pub(super) async fn tcp(address: SocketAddr) -> io::Result<TcpStream> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        sockopt::set_socket_keepalive(&stream, true)?;
        sockopt::set_tcp_keepidle(&stream, KEEPALIVE)?;
        sockopt::set_tcp_keepintvl(&stream, Duration::from_secs(1))?;
        sockopt::set_tcp_keepcnt(&stream, 3)?;
        #[cfg(target_os = "linux")]
        sockopt::set_tcp_user_timeout(&stream, u32::try_from(UNACKNOWLEDGED.as_millis()).unwrap_or(u32::MAX))?;
        Ok(stream)
    }

    /// Connects to a Unix socket.
    pub(super) async fn unix(path: &Path) -> io::Result<Self> {
        UnixStream::connect(path).await.map(Self::Unix)
    }

    /// Begins TLS on a fresh connection.
    pub(super) async fn begin_tls(
        mut tcp: TcpStream,
        host: &str,
        config: Arc<ClientConfig>,
    ) -> Result<Self, ServerProblem> {
        let broken = |error: io::Error| ServerProblem::Broken(error.to_string());
        tcp.write_all(&SSL_REQUEST).await.map_err(broken)?;
        let reply = tcp.read_u8().await.map_err(broken)?;
        match reply {
            b'S' => {}
            // `E` is an error response, of a server that is older than TLS or has no connection free.
            b'N' | b'E' => return Err(ServerProblem::NoTls),
            _ => return Err(ServerProblem::NotPostgres),
        }
        let name = ServerName::try_from(host.to_owned()).map_err(|error| ServerProblem::Tls(error.to_string()))?;
        let tls = TlsConnector::from(config).connect(name, tcp).await;
        tls.map(|tls| Self::Tls(Box::new(tls))).map_err(|error| ServerProblem::of_handshake(&error))
    }
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_read(context, buffer),
            Self::Unix(stream) => Pin::new(stream).poll_read(context, buffer),
            Self::Tls(stream) => Pin::new(stream).poll_read(context, buffer),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_write(context, bytes),
            Self::Unix(stream) => Pin::new(stream).poll_write(context, bytes),
            Self::Tls(stream) => Pin::new(stream).poll_write(context, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_flush(context),
            Self::Unix(stream) => Pin::new(stream).poll_flush(context),
            Self::Tls(stream) => Pin::new(stream).poll_flush(context),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_shutdown(context),
            Self::Unix(stream) => Pin::new(stream).poll_shutdown(context),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(context),
        }
    }
}

impl TlsStream for Stream {
    fn channel_binding(&self) -> ChannelBinding {
        ChannelBinding::none()
    }
}

/// Says to the crate that a stream is ready as it is.
pub(super) struct Established;

impl TlsConnect<Stream> for Established {
    type Stream = Stream;
    type Error = io::Error;
    type Future = Ready<io::Result<Stream>>;

    fn connect(self, stream: Stream) -> Self::Future {
        ready(Ok(stream))
    }
}
