//! Due times that a clock wrote which was ahead: they are pulled in once it has been set back. As in the embedded engine
//! (`queue/sqlite/due.rs`), at a target's first lease and at the first one after the clock was set back.

use std::sync::Arc;

use tokio_postgres::types::Type;

use super::engine::Engine;
use super::failure::Failure;
use super::session::{Session, Value};
use crate::clock::UnixMillis;

/// How many due times one lease changes. The next lease continues.
const STEP: i64 = 512;
/// A step back of the clock that is looked after. Less delays a retry by less.
const SET_BACK: i64 = 1000;

/// A retry is due at the end of the last attempt plus a wait: if that attempt ended in the future, or the wait is longer
/// than the longest of the schedule, the wait starts again now. Without an attempt it is due at once.
const PULL_IN: &str = "WITH late AS (SELECT d.event, d.due, a.at + a.duration_us / 1000 AS ended FROM delivery d \
         LEFT JOIN attempt a ON a.event = d.event AND a.target = d.target AND a.number = d.attempts \
        WHERE d.target = $1 AND d.state = 0 AND d.holder IS NULL AND d.due > $5 AND d.due < 9223372036854775807 \
          AND (a.at IS NULL OR a.at + a.duration_us / 1000 > $5 OR d.due > $5 + $3) ORDER BY d.due, d.event LIMIT $4) \
    UPDATE delivery d SET due = $2 + CASE WHEN late.ended IS NULL OR late.due - late.ended > $3 THEN 0 \
                                          ELSE greatest(late.due - late.ended, 0) END \
      FROM late WHERE d.event = late.event AND d.target = $1 AND d.state = 0 AND d.holder IS NULL AND d.due = late.due \
    RETURNING d.event";

impl Engine {
    /// Pulls in the due times of a target that lie further ahead than its retries wait.
    pub(super) async fn pull_in_due(
        &self,
        session: &Session,
        target: &Arc<str>,
        number: i16,
        now: UnixMillis,
    ) -> Result<(), Failure> {
        let Some(longest) = self.inboxes.longest_wait(target) else { return Ok(()) };
        let offset = self.clock.wall_offset();
        let before = self.pulled_in.lock().get(target).copied();
        if before.is_some_and(|before| offset >= before.saturating_sub(SET_BACK)) {
            // The clock may have been set forward: a later step back counts from there.
            self.pulled_in.lock().insert(Arc::clone(target), offset);
            return Ok(());
        }
        let longest = i64::try_from(longest.as_millis()).unwrap_or(i64::MAX / 4);
        // Pushes come while the look waits for PostgreSQL.
        let ahead = now.0.saturating_add(SET_BACK);
        let values: [Value<'_>; 5] = [
            (&number, Type::INT2),
            (&now.0, Type::INT8),
            (&longest, Type::INT8),
            (&STEP, Type::INT8),
            (&ahead, Type::INT8),
        ];
        let count = session.query(PULL_IN, &values).await?.len();
        if count > 0 {
            self.cursors.reset(target);
            tracing::warn!(%target, deliveries = count, "clock was set back; due times pulled in");
        }
        if i64::try_from(count).is_ok_and(|count| count < STEP) {
            self.pulled_in.lock().insert(Arc::clone(target), offset);
        }
        Ok(())
    }
}
