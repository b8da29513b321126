//! Due times that a clock wrote which was ahead: they are pulled in once it has been set back.
//!
//! A retry is due at the end of the last attempt plus a wait. If that attempt ended in the future, the clock was set
//! back since, and the wait starts again now. A target's due times are compared with the clock at its first lease, and
//! at the first one after the clock was set back: the lane polls at least once a minute.

use std::sync::Arc;
use std::time::Duration;

use rusqlite::params;

use super::store::Store;
use super::writer::Writer;
use crate::clock::UnixMillis;
use crate::event::EventId;
use crate::queue::stored::HELD;

/// How many due times one lease changes: a few milliseconds. The next lease continues.
const STEP: i64 = 512;
/// A step back of the clock that is looked after. Less delays a retry by less.
const SET_BACK: i64 = 1000;

impl Writer {
    /// Pulls in the due times of a target that lie further ahead than its retries wait.
    pub(super) fn pull_in_due(&mut self, target: &Arc<str>, number: i64, now: UnixMillis) -> rusqlite::Result<()> {
        let Some(longest) = self.inboxes.longest_wait(target) else { return Ok(()) };
        let offset = self.clock.wall_offset();
        if self.pulled_in.get(target).is_some_and(|before| offset >= before.saturating_sub(SET_BACK)) {
            // The clock may have been set forward: a later step back counts from there.
            self.pulled_in.insert(Arc::clone(target), offset);
            return Ok(());
        }
        let late = self.store.list_late(number, now, longest)?;
        let count = late.len();
        if count > 0 {
            self.store
                .transact(|store| late.iter().try_for_each(|(event, due)| store.set_due(*event, number, *due)))?;
            tracing::warn!(%target, deliveries = count, "clock was set back; due times pulled in");
        }
        if i64::try_from(count).is_ok_and(|count| count < STEP) {
            self.pulled_in.insert(Arc::clone(target), offset);
        }
        Ok(())
    }
}

impl Store {
    /// Pending deliveries that are due later than they can be, each with the time at which it is to be due.
    fn list_late(
        &self,
        target: i64,
        now: UnixMillis,
        longest: Duration,
    ) -> rusqlite::Result<Vec<(EventId, UnixMillis)>> {
        let mut find = self.connection.prepare_cached(
            "SELECT d.event, d.due, a.at + a.duration_us / 1000 AS ended \
               FROM delivery d INDEXED BY delivery_pending \
               LEFT JOIN attempt a ON a.event = d.event AND a.target = d.target AND a.number = d.attempts \
              WHERE d.state = 0 AND d.target = ?1 AND d.due > ?2 AND d.due < ?3 \
                AND (ended IS NULL OR ended > ?2 OR d.due > ?4) LIMIT ?5",
        )?;
        let latest = now.after(longest);
        let found = find.query_map(params![target, now, HELD, latest, STEP], |row| {
            let (event, due, ended): (_, UnixMillis, Option<UnixMillis>) = (row.get(0)?, row.get(1)?, row.get(2)?);
            Ok((event, due_again(due, ended, now, longest)))
        })?;
        found.collect()
    }
}

/// When a delivery is to be due whose `due` was computed by a clock that has been set back; `ended` is the end of its
/// last attempt. Without an attempt it is due at once, as it was when it was stored; the same where the wait is none
/// of the schedule's.
fn due_again(due: UnixMillis, ended: Option<UnixMillis>, now: UnixMillis, longest: Duration) -> UnixMillis {
    let wait = ended.map(|ended| due.since(ended)).filter(|wait| *wait <= longest);
    wait.map_or(now, |wait| now.after(wait))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wait_starts_again_and_is_never_longer_than_the_longest() {
        let (now, ahead) = (UnixMillis(1_000_000), 3_600_000);
        let again = |due: i64, ended: Option<i64>| {
            due_again(UnixMillis(due), ended.map(UnixMillis), now, Duration::from_secs(10)).0 - now.0
        };
        assert_eq!(again(now.0 + ahead + 7_000, Some(now.0 + ahead)), 7_000);
        assert_eq!(again(now.0 + ahead, None), 0, "never attempted");
        assert_eq!(again(now.0 + ahead, Some(now.0 - 5)), 0, "made pending by an operator");
        assert_eq!(again(now.0 + 3_000, Some(now.0 + 4_000)), 0, "pulled in before");
    }
}
