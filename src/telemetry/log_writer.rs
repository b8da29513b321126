//! Writes log lines to stderr from a thread of its own, so that no push waits for the reader of the log.
//!
//! Invariants: logging a line never waits for stderr's reader. Lines are written whole and in order; a line after a pause
//! is written at once, further lines in batches, up to [`BATCH_PAUSE`] later. The buffer is bounded by [`CAPACITY`]:
//! lines that do not fit are dropped, counted, and reported as soon as there is free space again.
//!
//! The simple version wrote to stderr where a line was logged: with a full pipe and a stopped reader, answers to WeChat
//! stopped too.

use std::io::{self, Write};
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use std::{mem, thread};

use parking_lot::{Condvar, Mutex, MutexGuard};
use tracing_subscriber::fmt::MakeWriter;

/// The size of the buffer, in bytes: the lines of a few thousand pushes.
const CAPACITY: usize = 1 << 20;
/// The pause after each write, so that lines in quick succession share one.
const BATCH_PAUSE: Duration = Duration::from_millis(10);
/// The timeout of a flush, for a stopped reader.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(1);

/// The writer of this process.
static STDERR: OnceLock<LogWriter> = OnceLock::new();

/// Buffers lines for its thread; cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct LogWriter(Arc<LogBuffer>);

#[derive(Debug, Default)]
struct LogBuffer {
    pending: Mutex<PendingLines>,
    /// Notified by `push` for a first line and by `flush`; the thread waits for it in `write_to`.
    more: Condvar,
    /// Notified by the thread after each write; `flush` waits for it.
    written: Condvar,
}

#[derive(Debug, Default)]
struct PendingLines {
    bytes: Vec<u8>,
    /// Lines dropped since the log last reported it.
    dropped: u64,
    /// Lines dropped since [`take_dropped`] was last called.
    uncounted: u64,
    /// Whether the thread has taken lines that it has not written yet.
    is_writing: bool,
    /// Whether a `flush` waits for `written`.
    is_flushing: bool,
}

impl LogWriter {
    /// This process's writer to stderr.
    pub(super) fn to_stderr() -> io::Result<Self> {
        let writer = Self::to(io::stderr())?;
        Ok(STDERR.get_or_init(|| writer).clone())
    }

    /// Starts a thread that writes to `output`.
    fn to(mut output: impl Write + Send + 'static) -> io::Result<Self> {
        let writer = Self(Arc::default());
        let buffer = Arc::clone(&writer.0);
        thread::Builder::new().name("log-writer".to_owned()).spawn(move || buffer.write_to(&mut output))?;
        Ok(writer)
    }

    fn push(&self, line: &[u8]) {
        let mut pending = self.0.pending();
        if pending.bytes.len() + line.len() > CAPACITY {
            pending.dropped += 1;
            pending.uncounted += 1;
            return;
        }
        let is_first = pending.bytes.is_empty();
        pending.bytes.extend_from_slice(line);
        drop(pending);
        if is_first {
            self.0.more.notify_one();
        }
    }

    fn take_dropped(&self) -> u64 {
        mem::take(&mut self.0.pending().uncounted)
    }

    /// Waits until all pending lines are written, up to `limit`.
    fn flush(&self, limit: Duration) {
        let mut pending = self.0.pending();
        pending.is_flushing = true;
        self.0.more.notify_one();
        let is_unfinished = |pending: &mut PendingLines| pending.is_writing || !pending.bytes.is_empty();
        self.0.written.wait_while_for(&mut pending, is_unfinished, limit);
        pending.is_flushing = false;
    }
}

impl LogBuffer {
    fn pending(&self) -> MutexGuard<'_, PendingLines> {
        self.pending.lock()
    }

    fn write_to(&self, output: &mut impl Write) {
        let mut lines = Vec::new();
        let mut pending = self.pending();
        loop {
            let is_idle = |pending: &mut PendingLines| pending.bytes.is_empty();
            self.more.wait_while(&mut pending, is_idle);
            mem::swap(&mut pending.bytes, &mut lines);
            let dropped = mem::take(&mut pending.dropped);
            pending.is_writing = true;
            drop(pending);
            // An error of the log itself cannot be reported anywhere.
            output.write_all(&lines).ok();
            lines.clear();
            if dropped > 0 {
                tracing::warn!(lost = dropped, "log lines dropped, stderr was not read in time");
            }
            pending = self.pending();
            pending.is_writing = false;
            self.written.notify_all();
            self.more.wait_while_for(&mut pending, |pending| !pending.is_flushing, BATCH_PAUSE);
        }
    }
}

/// Waits until this process's lines are written, up to a second.
pub fn flush() {
    flush_within(FLUSH_TIMEOUT);
}

/// Waits until this process's lines are written, up to `limit`, or a second if that is less.
pub fn flush_within(limit: Duration) {
    STDERR.get().into_iter().for_each(|writer| writer.flush(limit.min(FLUSH_TIMEOUT)));
}

/// How many lines of this process's log were dropped since the last call.
pub fn take_dropped() -> u64 {
    STDERR.get().map_or(0, LogWriter::take_dropped)
}

/// Each call passes one whole line.
impl Write for LogWriter {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.push(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl MakeWriter<'_> for LogWriter {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        self.clone()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, Sender, channel};

    use super::*;

    /// An output that reports each write, and finishes it once the sender of `unblock` is dropped.
    struct BlockedOutput {
        reached: Sender<()>,
        unblock: Receiver<()>,
        written: Arc<Mutex<String>>,
    }

    impl Write for BlockedOutput {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.reached.send(()).ok();
            self.unblock.recv().ok();
            self.written.lock().push_str(std::str::from_utf8(bytes).unwrap());
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    struct Blocked {
        writer: LogWriter,
        reached: Receiver<()>,
        /// Dropped to unblock the output.
        block: Sender<()>,
        written: Arc<Mutex<String>>,
    }

    fn blocked() -> Blocked {
        let (reach, reached) = channel();
        let (block, unblock) = channel();
        let written = Arc::default();
        let output = BlockedOutput { reached: reach, unblock, written: Arc::clone(&written) };
        Blocked { writer: LogWriter::to(output).unwrap(), reached, block, written }
    }

    #[test]
    fn lines_are_written_whole_and_in_order_and_flush_waits_for_them() {
        let Blocked { writer, block, written, .. } = blocked();
        drop(block);
        let lines: Vec<String> = (0..1000).map(|number| format!("line {number}\n")).collect();
        lines.iter().for_each(|line| writer.push(line.as_bytes()));
        writer.flush(FLUSH_TIMEOUT);
        assert_eq!(*written.lock(), lines.concat());
    }

    #[test]
    fn logging_never_waits_for_the_reader_and_dropped_lines_are_counted() {
        let Blocked { writer, reached, block, written } = blocked();
        let line = [b'x'; 1024];
        writer.push(&line);
        // From here on the thread is blocked, so it is known how many lines fit.
        reached.recv().unwrap();
        (0..CAPACITY / 1024 + 7).for_each(|_| writer.push(&line));
        assert_eq!(writer.0.pending().bytes.len(), CAPACITY);
        assert_eq!((writer.take_dropped(), writer.take_dropped()), (7, 0));
        drop(block);
        writer.flush(FLUSH_TIMEOUT);
        assert_eq!(written.lock().len(), CAPACITY + 1024);
        assert_eq!(writer.0.pending().dropped, 0, "reported");
    }
}
