//! The way to the writer: a bounded channel whose receiver may sleep until enough wait, instead of being woken by each.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering, fence};

use tokio::sync::{Notify, mpsc};
use tokio::time::{Instant, timeout_at};

use super::command::Command;
use crate::queue::Error;

/// A channel for so many commands; whoever finds no room waits for it.
pub(super) fn channel(room: usize) -> (Sender, Receiver) {
    let (commands, receiver) = mpsc::channel(room);
    let (enough, is_for_patient) = (AtomicUsize::new(NOBODY_SLEEPS), AtomicBool::new(false));
    let bell = Arc::new(Bell { enough, is_for_patient, rung: Notify::new() });
    (Sender { commands, bell: Arc::clone(&bell) }, Receiver { commands: receiver, bell })
}

/// The asking end; cheap to clone.
#[derive(Clone)]
pub(super) struct Sender {
    commands: mpsc::Sender<Command>,
    bell: Arc<Bell>,
}

/// The writer's end.
pub(super) struct Receiver {
    commands: mpsc::Receiver<Command>,
    bell: Arc<Bell>,
}

/// What ends the receiver's sleep.
struct Bell {
    /// How many commands have to wait; [`NOBODY_SLEEPS`] while the receiver is awake.
    enough: AtomicUsize,
    /// Whether one that is not patient does too.
    is_for_patient: AtomicBool,
    rung: Notify,
}

const NOBODY_SLEEPS: usize = usize::MAX;

impl Sender {
    /// Hands a command over; waits for room if there is none.
    pub(super) async fn send(&self, command: Command) -> Result<(), Error> {
        let is_patient = command.is_patient();
        self.commands.send(command).await.map_err(|_| Error::Closed)?;
        self.ring(is_patient);
        Ok(())
    }

    pub(super) fn is_closed(&self) -> bool {
        self.commands.is_closed()
    }

    fn ring(&self, is_patient: bool) {
        // With the fence of the one who sleeps: either he sees the command, or its sender that he sleeps.
        fence(Ordering::SeqCst);
        let enough = self.bell.enough.load(Ordering::Relaxed);
        if enough == NOBODY_SLEEPS {
            return;
        }
        let waiting = self.commands.max_capacity() - self.commands.capacity();
        if waiting >= enough || !is_patient && self.bell.is_for_patient.load(Ordering::Relaxed) {
            self.bell.rung.notify_one();
        }
    }
}

impl Receiver {
    /// Takes what waits, up to `most`; waits for the first. 0 when all senders are gone or it was closed.
    pub(super) async fn take(&mut self, batch: &mut Vec<Command>, most: usize) -> usize {
        self.commands.recv_many(batch, most).await
    }

    /// Takes more until there are `enough`, or until then; where they are for patient ones, until one comes that is not.
    pub(super) async fn gather(&mut self, batch: &mut Vec<Command>, enough: usize, for_patient: bool, until: Instant) {
        let bell = Arc::clone(&self.bell);
        bell.is_for_patient.store(for_patient, Ordering::Relaxed);
        while batch.len() < enough {
            bell.enough.store(enough - batch.len(), Ordering::Relaxed);
            fence(Ordering::SeqCst);
            let had = batch.len();
            while batch.len() < enough
                && let Ok(command) = self.commands.try_recv()
            {
                batch.push(command);
            }
            if for_patient && !batch[had..].iter().all(Command::is_patient) {
                break;
            }
            // None is there that the bell was not told of: only now is there nothing to do but sleep.
            if batch.len() == had && timeout_at(until, bell.rung.notified()).await.is_err() {
                break;
            }
        }
        bell.enough.store(NOBODY_SLEEPS, Ordering::Relaxed);
    }

    /// Takes no more; what is in it can still be taken.
    pub(super) fn close(&mut self) {
        self.commands.close();
    }
}
