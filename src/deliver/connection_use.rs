//! A connection to a target, which records whether it was used before and whether the present request got any answer.
//!
//! Servers close idle connections, and a request may be sent just then: it fails although nothing is wrong. Such a
//! failure is told from others by three facts: an earlier request was answered on the connection, this one was
//! written, and no byte came back (neither a part of an answer, nor an interim one).

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use hyper_rustls::MaybeHttpsStream;
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// What is known of a connection; the pool passes it on with errors.
#[derive(Debug, Default)]
pub(super) struct ConnectionUse {
    /// Whether a request before the present one was answered.
    reused: AtomicBool,
    /// Whether a byte has come since the present request was written.
    heard: AtomicBool,
}

impl ConnectionUse {
    /// Whether a request that failed was sent on a connection that the target had probably closed.
    pub(super) fn is_stale(&self) -> bool {
        self.reused.load(Ordering::Relaxed) && !self.heard.load(Ordering::Relaxed)
    }
}

/// The stream of a connection, without its encryption.
pub(super) struct TargetStream {
    // By tokio's traits, whose read buffer shows how much was read.
    stream: TokioIo<MaybeHttpsStream<TokioIo<TcpStream>>>,
    state: Arc<ConnectionUse>,
    /// Whether the last write was short, so that the next one continues the same request.
    unfinished: bool,
}

impl TargetStream {
    pub(super) fn new(stream: MaybeHttpsStream<TokioIo<TcpStream>>) -> Self {
        Self { stream: TokioIo::new(stream), state: Arc::default(), unfinished: false }
    }

    /// A request is buffered and written as a whole, so a write after a complete one begins the next request.
    fn begin_write(&self) {
        if !self.unfinished && self.state.heard.swap(false, Ordering::Relaxed) {
            self.state.reused.store(true, Ordering::Relaxed);
        }
    }

    fn end_write(&mut self, length: usize, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if let Poll::Ready(Ok(written)) = &written {
            self.unfinished = *written < length;
        }
        written
    }
}

impl AsyncRead for TargetStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(context, buffer);
        if buffer.filled().len() > before {
            self.state.heard.store(true, Ordering::Relaxed);
        }
        read
    }
}

impl AsyncWrite for TargetStream {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.begin_write();
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.end_write(bytes.len(), written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.begin_write();
        let length = slices.iter().map(|slice| slice.len()).sum();
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, slices);
        self.end_write(length, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

impl Connection for TargetStream {
    fn connected(&self) -> Connected {
        self.stream.inner().connected().extra(self.state.clone())
    }
}
