//! Whether a lane's task still comes around its loop: asked from outside, answered at the next turn.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

/// Shared by the task of a lane and the watch over it.
#[derive(Debug, Default)]
pub(super) struct Heartbeat {
    asked: AtomicU64,
    answered: AtomicU64,
    /// When the open question was asked.
    since: Mutex<Option<Instant>>,
    wake: Notify,
}

impl Heartbeat {
    /// Answers; the task calls it at each turn of its loop.
    pub(super) fn beat(&self) {
        self.answered.store(self.asked.load(Ordering::Relaxed), Ordering::Relaxed);
    }

    /// Returns when the task is asked, so that an idle one comes around its loop too.
    pub(super) async fn asked(&self) {
        self.wake.notified().await;
    }

    /// How long the last question has been open; asks the next one if it is answered.
    pub(super) fn check(&self) -> Duration {
        let mut since = self.since.lock();
        if let Some(asked) = *since
            && self.answered.load(Ordering::Relaxed) != self.asked.load(Ordering::Relaxed)
        {
            return asked.elapsed();
        }
        *since = Some(Instant::now());
        self.asked.fetch_add(1, Ordering::Relaxed);
        self.wake.notify_one();
        Duration::ZERO
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[tokio::test(start_paused = true)]
    async fn an_unanswered_question_gets_older_and_an_answer_begins_the_next() {
        let heartbeat = Heartbeat::default();
        assert_eq!(heartbeat.check(), Duration::ZERO, "asks");
        heartbeat.asked().await;
        for age in 1..=3 {
            tokio::time::advance(SECOND).await;
            assert_eq!(heartbeat.check(), age * SECOND);
        }
        heartbeat.beat();
        assert_eq!(heartbeat.check(), Duration::ZERO, "asks again");
        heartbeat.asked().await;
        tokio::time::advance(SECOND).await;
        assert_eq!(heartbeat.check(), SECOND);
    }
}
