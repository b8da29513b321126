//! The channel to the writer: bounded. Its receiver can sleep until a batch waits, and need not wake up for each
//! command.
//!
//! Gain: with this, answers given by one task per commit, and two other changes of the same release, a sixth more
//! pushes are answered a second for a sixth less processor time (`CHANGELOG.md`). The simple version, a plain `mpsc`
//! channel, woke the writer's thread for each push of a batch that it waited for anyway.
//!
//! How: while the receiver sleeps in [`CommandReceiver::gather`] it publishes a threshold. A sender sends its command
//! first and then reads the threshold; the receiver publishes first and then polls the channel. The two SeqCst fences
//! pair, so that at least one side sees the other's step: no wake-up is lost.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering, fence};
use std::time::Duration;

use tokio::sync::{Notify, mpsc};
use tokio::time::{Instant, timeout_at};

use super::command::WriterCommand;
use super::wait_clock::WaitClock;
use crate::queue::Error;

/// A channel for `capacity` commands; a sender waits while it is full.
pub(super) fn channel(capacity: usize) -> (CommandSender, CommandReceiver) {
    let (commands, receiver) = mpsc::channel(capacity);
    let (threshold, urgent_ends) = (AtomicUsize::new(AWAKE), AtomicBool::new(false));
    let signal = Arc::new(WakeSignal { threshold, urgent_ends, wake: Notify::new(), clock: WaitClock::new() });
    (CommandSender { commands, signal: Arc::clone(&signal) }, CommandReceiver { commands: receiver, signal })
}

/// The callers' end; cheap to clone.
#[derive(Clone)]
pub(super) struct CommandSender {
    commands: mpsc::Sender<WriterCommand>,
    signal: Arc<WakeSignal>,
}

/// The writer's end.
pub(super) struct CommandReceiver {
    commands: mpsc::Receiver<WriterCommand>,
    signal: Arc<WakeSignal>,
}

/// What ends the receiver's sleep.
struct WakeSignal {
    /// How many commands must wait in the channel; [`AWAKE`] while the receiver does not sleep.
    threshold: AtomicUsize,
    /// Whether a single urgent command ends the sleep too.
    urgent_ends: AtomicBool,
    wake: Notify,
    clock: WaitClock,
}

const AWAKE: usize = usize::MAX;

impl CommandSender {
    /// Hands a command over; waits while the channel is full.
    pub(super) async fn send(&self, command: WriterCommand) -> Result<(), Error> {
        let is_deferrable = command.is_deferrable();
        self.signal.clock.note_sent();
        self.commands.send(command).await.map_err(|_| Error::Closed)?;
        self.wake_receiver(is_deferrable);
        Ok(())
    }

    /// How long the oldest command has been waiting for the writer; zero if none waits.
    pub(super) fn oldest_wait(&self) -> Duration {
        self.signal.clock.oldest_wait()
    }

    pub(super) fn is_closed(&self) -> bool {
        self.commands.is_closed()
    }

    fn wake_receiver(&self, is_deferrable: bool) {
        // Pairs with the SeqCst fence in `gather`: either the receiver's poll sees the command that was just sent, or
        // this load sees the receiver's threshold.
        fence(Ordering::SeqCst);
        let threshold = self.signal.threshold.load(Ordering::Relaxed);
        if threshold == AWAKE {
            return;
        }
        let waiting = self.commands.max_capacity() - self.commands.capacity();
        // Published before the threshold, by the same fence.
        if waiting >= threshold || !is_deferrable && self.signal.urgent_ends.load(Ordering::Relaxed) {
            self.signal.wake.notify_one();
        }
    }
}

impl CommandReceiver {
    /// Receives the waiting commands, up to `limit`; waits for the first. 0 when all senders are dropped or it was
    /// closed.
    pub(super) async fn recv_batch(&mut self, batch: &mut Vec<WriterCommand>, limit: usize) -> usize {
        self.commands.recv_many(batch, limit).await
    }

    /// Receives more until the batch has `enough` or the deadline passes; if `urgent_ends`, until an urgent command
    /// comes.
    pub(super) async fn gather(
        &mut self,
        batch: &mut Vec<WriterCommand>,
        enough: usize,
        urgent_ends: bool,
        deadline: Instant,
    ) {
        let signal = Arc::clone(&self.signal);
        signal.urgent_ends.store(urgent_ends, Ordering::Relaxed);
        while batch.len() < enough {
            signal.threshold.store(enough - batch.len(), Ordering::Relaxed);
            // Pairs with the SeqCst fence in `wake_receiver`.
            fence(Ordering::SeqCst);
            let had = batch.len();
            while batch.len() < enough
                && let Ok(command) = self.commands.try_recv()
            {
                batch.push(command);
            }
            if urgent_ends && !batch[had..].iter().all(WriterCommand::is_deferrable) {
                break;
            }
            // The channel was empty after the threshold was published: every later sender reads it. Only now is it safe
            // to sleep.
            if batch.len() == had && timeout_at(deadline, signal.wake.notified()).await.is_err() {
                break;
            }
        }
        signal.threshold.store(AWAKE, Ordering::Relaxed);
    }

    /// Notes that the commands received so far are being executed.
    pub(super) fn begin_batch(&self) {
        self.signal.clock.note_taken();
    }

    /// Notes that the commands of the batch are answered.
    pub(super) fn finish_batch(&self) {
        self.signal.clock.note_finished();
    }

    /// Accepts no more commands; those in the channel can still be received.
    pub(super) fn close(&mut self) {
        self.commands.close();
    }
}
