//! Where log lines leave the process: a thread of their own writes them, so that no push waits for whoever reads the log.
//!
//! Invariants: putting a line down never waits for its reader. Lines go out whole and in order; a line that comes after a
//! pause goes out at once, a crowd of them together, [`PAUSE`] later at the most. What waits is bounded by [`ROOM`]: what
//! finds no room is lost, counted, and told of as soon as there is room again.

use std::io::{self, Write};
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use std::{mem, thread};

use parking_lot::{Condvar, Mutex, MutexGuard};
use tracing_subscriber::fmt::MakeWriter;

/// The bytes that may wait: the lines of some thousand pushes.
const ROOM: usize = 1 << 20;
/// After each write, so that lines that come in a crowd share one.
const PAUSE: Duration = Duration::from_millis(10);
/// How long the end of the process waits for a reader that takes nothing.
const PATIENCE: Duration = Duration::from_secs(1);

/// The outlet of this process.
static STDERR: OnceLock<Outlet> = OnceLock::new();

/// Takes lines; cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Outlet(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    waiting: Mutex<Waiting>,
    /// Told when there is something to write, or when it is to be written at once.
    more: Condvar,
    /// Told when everything is written.
    done: Condvar,
}

#[derive(Debug, Default)]
struct Waiting {
    lines: Vec<u8>,
    /// How many found no room since the last one that did.
    lost: u64,
    /// How many found no room since somebody asked for their number.
    uncounted: u64,
    /// Whether the thread has taken lines that it has not written yet.
    is_writing: bool,
    /// Whether somebody waits for `done`.
    is_hurried: bool,
}

impl Outlet {
    /// The outlet of this process, to stderr.
    pub(super) fn to_stderr() -> io::Result<Self> {
        let outlet = Self::to(io::stderr())?;
        Ok(STDERR.get_or_init(|| outlet).clone())
    }

    /// One whose thread writes there.
    fn to(mut reader: impl Write + Send + 'static) -> io::Result<Self> {
        let outlet = Self(Arc::default());
        let shared = Arc::clone(&outlet.0);
        thread::Builder::new().name("log-writer".to_owned()).spawn(move || shared.write_to(&mut reader))?;
        Ok(outlet)
    }

    fn put(&self, line: &[u8]) {
        let mut waiting = self.0.waiting();
        if waiting.lines.len() + line.len() > ROOM {
            waiting.lost += 1;
            waiting.uncounted += 1;
            return;
        }
        let is_first = waiting.lines.is_empty();
        waiting.lines.extend_from_slice(line);
        drop(waiting);
        if is_first {
            self.0.more.notify_one();
        }
    }

    fn take_lost(&self) -> u64 {
        mem::take(&mut self.0.waiting().uncounted)
    }

    /// Waits until what was put down is written, but not for ever.
    fn flush(&self) {
        let mut waiting = self.0.waiting();
        waiting.is_hurried = true;
        self.0.more.notify_one();
        let under_way = |waiting: &mut Waiting| waiting.is_writing || !waiting.lines.is_empty();
        self.0.done.wait_while_for(&mut waiting, under_way, PATIENCE);
        waiting.is_hurried = false;
    }
}

impl Shared {
    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock()
    }

    fn write_to(&self, reader: &mut impl Write) {
        let mut lines = Vec::new();
        let mut waiting = self.waiting();
        loop {
            let is_idle = |waiting: &mut Waiting| waiting.lines.is_empty();
            self.more.wait_while(&mut waiting, is_idle);
            mem::swap(&mut waiting.lines, &mut lines);
            let lost = mem::take(&mut waiting.lost);
            waiting.is_writing = true;
            drop(waiting);
            // Nobody could be told that it failed.
            reader.write_all(&lines).ok();
            lines.clear();
            if lost > 0 {
                tracing::warn!(lost, "log lines were lost: whoever reads stderr took none");
            }
            waiting = self.waiting();
            waiting.is_writing = false;
            self.done.notify_all();
            self.more.wait_while_for(&mut waiting, |waiting| !waiting.is_hurried, PAUSE);
        }
    }
}

/// Waits until this process's lines are written, a second at the most.
pub fn flush() {
    STDERR.get().into_iter().for_each(Outlet::flush);
}

/// How many lines of this process's log were lost since this was asked last, as their reader took none.
pub fn take_lost() -> u64 {
    STDERR.get().map_or(0, Outlet::take_lost)
}

/// A whole line comes in one piece.
impl Write for Outlet {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.put(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl MakeWriter<'_> for Outlet {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        self.clone()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, Sender, channel};

    use super::*;

    /// A reader that says when it is given something, and takes it once `leave` has no sender any more.
    struct Gate {
        reached: Sender<()>,
        leave: Receiver<()>,
        taken: Arc<Mutex<String>>,
    }

    impl Write for Gate {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.reached.send(()).ok();
            self.leave.recv().ok();
            self.taken.lock().push_str(std::str::from_utf8(bytes).unwrap());
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    struct Gated {
        outlet: Outlet,
        reached: Receiver<()>,
        /// Dropped to open the gate.
        closed: Sender<()>,
        taken: Arc<Mutex<String>>,
    }

    fn gated() -> Gated {
        let (reach, reached) = channel();
        let (closed, leave) = channel();
        let taken = Arc::default();
        let outlet = Outlet::to(Gate { reached: reach, leave, taken: Arc::clone(&taken) }).unwrap();
        Gated { outlet, reached, closed, taken }
    }

    #[test]
    fn lines_go_out_whole_and_in_order_and_the_end_waits_for_them() {
        let Gated { outlet, closed, taken, .. } = gated();
        drop(closed);
        let lines: Vec<String> = (0..1000).map(|number| format!("line {number}\n")).collect();
        lines.iter().for_each(|line| outlet.put(line.as_bytes()));
        outlet.flush();
        assert_eq!(*taken.lock(), lines.concat());
    }

    #[test]
    fn who_logs_never_waits_for_a_reader_that_takes_nothing_and_what_is_lost_is_counted() {
        let Gated { outlet, reached, closed, taken } = gated();
        let line = [b'x'; 1024];
        outlet.put(&line);
        // From here on the thread takes no lines, so it is known how many find room.
        reached.recv().unwrap();
        (0..ROOM / 1024 + 7).for_each(|_| outlet.put(&line));
        assert_eq!(outlet.0.waiting().lines.len(), ROOM);
        assert_eq!((outlet.take_lost(), outlet.take_lost()), (7, 0));
        drop(closed);
        outlet.flush();
        assert_eq!(taken.lock().len(), ROOM + 1024);
        assert_eq!(outlet.0.waiting().lost, 0, "told of");
    }
}
