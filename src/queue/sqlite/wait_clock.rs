//! Since when the oldest command waits for the writer.
//!
//! It is read from outside the writer's thread, which hangs where the disk does: in a flush, in a checkpoint, or while
//! it deletes. The simple version, a ping that the writer answers, waits as long as the writer does.
//!
//! Gain against a time in every command: a sender reads the clock only if no other command waits.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::Instant;

/// Two moments, in milliseconds since `epoch` plus one; zero is none.
pub(super) struct WaitClock {
    epoch: Instant,
    /// When the oldest command was sent that the writer has not taken.
    sent: AtomicU64,
    /// When the oldest command was sent that the writer has taken and not answered.
    taken: AtomicU64,
}

impl WaitClock {
    pub(super) fn new() -> Self {
        Self { epoch: Instant::now(), sent: AtomicU64::new(0), taken: AtomicU64::new(0) }
    }

    /// Notes that a command is being sent.
    ///
    /// The writer may take other commands between this and the arrival of the command. Then `taken` counts it early,
    /// and the next one that is sent counts for it: a difference of the time between two commands.
    pub(super) fn note_sent(&self) {
        if self.sent.load(Ordering::Relaxed) == 0 {
            // Fails if another sender was first, whose command is older.
            self.sent.compare_exchange(0, self.now(), Ordering::Relaxed, Ordering::Relaxed).ok();
        }
    }

    /// Notes that the writer has taken what was sent; also without a command, so that a sender that gave up counts for
    /// one round of the writer at most.
    pub(super) fn note_taken(&self) {
        self.taken.store(self.sent.swap(0, Ordering::Relaxed), Ordering::Relaxed);
    }

    /// Notes that the writer has answered what it had taken.
    pub(super) fn note_finished(&self) {
        self.taken.store(0, Ordering::Relaxed);
    }

    /// How long the oldest command has been waiting; zero if none waits.
    pub(super) fn oldest_wait(&self) -> Duration {
        let moments = [&self.sent, &self.taken].map(|moment| moment.load(Ordering::Relaxed));
        let oldest = moments.into_iter().filter(|moment| *moment != 0).min();
        oldest.map_or(Duration::ZERO, |oldest| Duration::from_millis(self.now().saturating_sub(oldest)))
    }

    fn now(&self) -> u64 {
        u64::try_from(self.epoch.elapsed().as_millis()).unwrap_or(u64::MAX).saturating_add(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[tokio::test(start_paused = true)]
    async fn the_oldest_command_counts_until_it_is_answered() {
        let clock = WaitClock::new();
        assert_eq!(clock.oldest_wait(), Duration::ZERO);
        clock.note_sent();
        tokio::time::advance(SECOND).await;
        clock.note_sent();
        assert_eq!(clock.oldest_wait(), SECOND, "in the channel");
        clock.note_taken();
        tokio::time::advance(SECOND).await;
        clock.note_sent();
        tokio::time::advance(SECOND).await;
        assert_eq!(clock.oldest_wait(), 3 * SECOND, "in the running batch");
        clock.note_finished();
        assert_eq!(clock.oldest_wait(), SECOND, "what came during the batch waits still");
        clock.note_taken();
        clock.note_finished();
        tokio::time::advance(SECOND).await;
        assert_eq!(clock.oldest_wait(), Duration::ZERO);
    }
}
