//! Half-closed connections: a client that ends its sending side after the request may still wait for the answer.
//!
//! `nc -N`, some HTTP/1.0 clients and some proxies do that, and nginx, HAProxy and Go answer them. But a client that
//! closes the connection looks the same to TCP until something is sent to it, and WeChat closes when it has waited for
//! 5 s. The difference is the time: an end that comes with the request, or up to [`HANG_UP_AFTER`] later, ends the
//! sending side only; a later one, and a reset at any time, means that the client is gone. Until the answer is due, a
//! client that closed at once costs no more than one that waits.
//!
//! hyper has the setting `half_close`, but then watches no more for clients that are gone. This stream does that while
//! hyper flushes, which it does whenever its connection is polled: it reads ahead into a small buffer, and fails the
//! flush if the client is gone, upon which hyper drops the request.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, ReadBuf};

use super::connection_slots::ConnectionSlot;
use super::transport::Transport;

/// How long after a request the end of the client's stream is not taken for a hang-up. Less than WeChat waits.
const HANG_UP_AFTER: Duration = Duration::from_secs(4);
/// Read ahead at most; a client that sends more is not watched until hyper has read this.
const READ_AHEAD: usize = 64;

/// A connection's transport that tells a half-closed client from one that is gone.
pub(super) struct HalfCloseStream {
    transport: Transport,
    slot: Arc<ConnectionSlot>,
    /// The bytes read ahead are `buffer[..ahead]`.
    buffer: [u8; READ_AHEAD],
    ahead: usize,
    /// Whether the client has ended its stream.
    ended: bool,
}

impl HalfCloseStream {
    pub(super) fn new(transport: Transport, slot: Arc<ConnectionSlot>) -> Self {
        Self { transport, slot, buffer: [0; READ_AHEAD], ahead: 0, ended: false }
    }

    /// Whether the client's first bytes are these, at most [`READ_AHEAD`]. They stay to be read.
    pub(super) async fn begins_with(&mut self, bytes: &[u8]) -> io::Result<bool> {
        while self.ahead < bytes.len() && bytes.starts_with(&self.buffer[..self.ahead]) {
            match self.transport.read(&mut self.buffer[self.ahead..]).await? {
                0 => break,
                read => self.ahead += read,
            }
        }
        Ok(self.buffer[..self.ahead].starts_with(bytes))
    }

    /// Fails if the client is gone.
    fn watch(&mut self, context: &mut Context<'_>) -> io::Result<()> {
        if self.ended || self.ahead > 0 {
            return Ok(());
        }
        // Between requests, hyper reads by itself.
        let Some(since) = self.slot.since_request() else { return Ok(()) };
        let mut buffer = ReadBuf::new(&mut self.buffer);
        match Pin::new(&mut self.transport).poll_read(context, &mut buffer) {
            Poll::Pending => return Ok(()),
            // TLS without its closing message.
            Poll::Ready(Err(error)) if error.kind() == io::ErrorKind::UnexpectedEof => {}
            Poll::Ready(Err(error)) => return Err(error),
            Poll::Ready(Ok(())) => {}
        }
        self.ahead = buffer.filled().len();
        self.ended = self.ahead == 0;
        if self.ended && since > HANG_UP_AFTER {
            return Err(io::ErrorKind::ConnectionAborted.into());
        }
        // hyper may have tried to read before these bytes came, and be waiting for them.
        context.waker().wake_by_ref();
        Ok(())
    }
}

impl AsyncRead for HalfCloseStream {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let stream = self.get_mut();
        if stream.ahead > 0 {
            let given = stream.ahead.min(buffer.remaining());
            buffer.put_slice(&stream.buffer[..given]);
            stream.buffer.copy_within(given..stream.ahead, 0);
            stream.ahead -= given;
            return Poll::Ready(Ok(()));
        }
        if stream.ended {
            return Poll::Ready(Ok(()));
        }
        let before = buffer.filled().len();
        let read = Pin::new(&mut stream.transport).poll_read(context, buffer);
        stream.ended = matches!(read, Poll::Ready(Ok(()))) && buffer.filled().len() == before && buffer.remaining() > 0;
        read
    }
}

impl AsyncWrite for HalfCloseStream {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().transport).poll_write(context, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let stream = self.get_mut();
        if let Err(error) = stream.watch(context) {
            return Poll::Ready(Err(error));
        }
        Pin::new(&mut stream.transport).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().transport).poll_shutdown(context)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().transport).poll_write_vectored(context, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.transport.is_write_vectored()
    }
}
