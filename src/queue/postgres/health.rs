//! Whether PostgreSQL answers: what readiness reports, and what the log says once.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;
use tokio_postgres::error::SqlState;

use super::failure::Failure;
use crate::queue::Obstacle;
use crate::telemetry::LogThrottle;

/// After this time without an answer the relay is not ready: a failover of a few seconds is survived by waiting.
const AWAY_AFTER: Duration = Duration::from_secs(5);
/// After this wait for a commit the store counts as stalled: long before a push is late. PostgreSQL must have answered
/// something else within this time, as it does to each heartbeat: if not, it is away, which is waited for.
const STALLED_AFTER: Duration = Duration::from_secs(2);

/// For this time after a push was refused the relay is not ready, unless another one is stored: then a balancer may try
/// again. Nothing but a push shows whether there is room for one.
const REFUSED_FOR: Duration = Duration::from_secs(10);

/// What the workers know of PostgreSQL.
#[derive(Debug)]
pub(super) struct Health {
    /// When each worker began what it is at.
    work: Vec<Mutex<Option<Instant>>>,
    /// When there was an answer last.
    answered: Mutex<Instant>,
    /// Since when there was no answer, once a call has failed for that.
    away: Mutex<Option<Instant>>,
    /// When a push was last refused, and why.
    refused: Mutex<Option<(Instant, Obstacle)>>,
    throttle: LogThrottle,
}

impl Health {
    pub(super) fn new(workers: usize) -> Self {
        Self {
            work: (0..workers).map(|_| Mutex::new(None)).collect(),
            answered: Mutex::new(Instant::now()),
            away: Mutex::default(),
            refused: Mutex::default(),
            throttle: LogThrottle::default(),
        }
    }

    pub(super) fn begin_work(&self, worker: usize) {
        *self.work[worker].lock() = Some(Instant::now());
    }

    pub(super) fn end_work(&self, worker: usize) {
        *self.work[worker].lock() = None;
    }

    /// Notes a call that was not answered.
    pub(super) fn note_away(&self, failure: &Failure) {
        let answered = *self.answered.lock();
        self.away.lock().get_or_insert(answered);
        if let Some(suppressed) = self.throttle.allow() {
            let remedy = failure.remedy();
            tracing::warn!(error = %failure, remedy, held_back = suppressed, "postgresql unavailable; retrying");
        }
    }

    /// Notes a call that was answered.
    pub(super) fn note_answer(&self) {
        *self.answered.lock() = Instant::now();
        if let Some(since) = self.away.lock().take() {
            let seconds = since.elapsed().as_secs_f64();
            tracing::info!(seconds, "postgresql available again");
        }
    }

    /// Notes that pushes are refused, whatever is in them.
    pub(super) fn note_refusal(&self, code: &SqlState) {
        let obstacle = if *code == SqlState::DISK_FULL { Obstacle::DiskFull } else { Obstacle::Failing };
        *self.refused.lock() = Some((Instant::now(), obstacle));
    }

    /// Notes that pushes are stored.
    pub(super) fn note_stored(&self) {
        *self.refused.lock() = None;
        self.note_answer();
    }

    /// How long there has been no answer.
    pub(super) fn away_for(&self) -> Option<Duration> {
        self.away.lock().map(|since| since.elapsed())
    }

    pub(super) fn obstacle(&self) -> Option<Obstacle> {
        if self.away_for().is_some_and(|away| away >= AWAY_AFTER) {
            return Some(Obstacle::Away);
        }
        let answers = self.answered.lock().elapsed() < STALLED_AFTER;
        if answers && self.oldest_wait() > STALLED_AFTER {
            return Some(Obstacle::Stalled);
        }
        let refused = *self.refused.lock();
        refused.filter(|(at, _)| at.elapsed() < REFUSED_FOR).map(|(_, obstacle)| obstacle)
    }

    /// How long the oldest change has been waiting for its commit.
    pub(super) fn oldest_wait(&self) -> Duration {
        let begun = self.work.iter().filter_map(|worker| *worker.lock());
        begun.map(|begun| begun.elapsed()).max().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_wait_is_a_stall_while_postgresql_answers_and_else_it_is_away_after_5_s() {
        let health = Health::new(1);
        let step = async || tokio::time::advance(Duration::from_millis(500)).await;
        health.begin_work(0);
        for _ in 0..5 {
            step().await;
            health.note_answer();
        }
        assert_eq!(health.obstacle(), Some(Obstacle::Stalled));
        let mut seen = Vec::new();
        for _ in 0..12 {
            step().await;
            health.note_away(&Failure::Busy);
            seen.push(health.obstacle());
        }
        assert_eq!(seen[3..9], [None; 6], "a failover of a few seconds is survived by waiting");
        assert_eq!(seen[9..], [Some(Obstacle::Away); 3]);
        health.note_answer();
        assert_eq!(health.obstacle(), Some(Obstacle::Stalled));
        health.end_work(0);
        assert_eq!(health.obstacle(), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_refusal_is_an_obstacle_until_a_push_is_stored_or_may_be_tried_again() {
        let health = Health::new(1);
        health.note_refusal(&SqlState::DISK_FULL);
        assert_eq!(health.obstacle(), Some(Obstacle::DiskFull));
        health.note_answer();
        assert_eq!(health.obstacle(), Some(Obstacle::DiskFull), "a heartbeat needs no room");
        health.note_stored();
        assert_eq!(health.obstacle(), None);
        health.note_refusal(&SqlState::INSUFFICIENT_PRIVILEGE);
        assert_eq!(health.obstacle(), Some(Obstacle::Failing));
        tokio::time::advance(REFUSED_FOR).await;
        assert_eq!(health.obstacle(), None);
    }
}
