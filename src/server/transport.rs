//! A connection's transport: TCP, a Unix socket, or TLS on TCP, each behind its PROXY header.
//!
//! One type for all, since hyper's HTTP/1 and HTTP/2 are compiled once for each type: as three types they took half a
//! megabyte more.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};

use proxy_header::io::ProxiedStream;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::server::TlsStream;

pub(super) enum Transport {
    Tcp(ProxiedStream<TcpStream>),
    Unix(ProxiedStream<UnixStream>),
    Tls(Box<TlsStream<ProxiedStream<TcpStream>>>),
}

/// Forwards a call to the stream of the variant.
macro_rules! each {
    ($transport:expr, $io:ident => $call:expr) => {
        match $transport {
            Self::Tcp($io) => $call,
            Self::Unix($io) => $call,
            Self::Tls($io) => $call,
        }
    };
}

impl AsyncRead for Transport {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        each!(self.get_mut(), io => Pin::new(io).poll_read(context, buffer))
    }
}

impl AsyncWrite for Transport {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        each!(self.get_mut(), io => Pin::new(io).poll_write(context, bytes))
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self.get_mut(), io => Pin::new(io).poll_flush(context))
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self.get_mut(), io => Pin::new(io).poll_shutdown(context))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        each!(self.get_mut(), io => Pin::new(io).poll_write_vectored(context, parts))
    }

    fn is_write_vectored(&self) -> bool {
        each!(self, io => io.is_write_vectored())
    }
}
