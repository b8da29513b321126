//! Looks at what this replica holds and at what is free, and how often an index is read from its beginning for them.
//!
//! While somebody holds an old snapshot, PostgreSQL removes no dead rows, and a scan from the beginning of an index
//! reads every row that was in it since. So a whole look is made with each proof of life only as
//! long as it is cheap. Later it takes a small part of the time, where nothing waits for it; between two of them, the rows
//! of the leases that are known are found by their keys, and free rows from where the last look has been.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;
use tokio_postgres::Row;
use tokio_postgres::types::Type;

use super::engine::Engine;
use super::failure::Failure;
use super::lease::GIVE_BACK;
use super::session::{BoundQuery, Session, Value};
use super::values::{event_id, id_of};
use crate::clock::UnixMillis;
use crate::event::EventId;

/// How many held rows one look compares.
const COMPARED: i64 = 4096;
/// Looks that are not cheap take at most one part in this many of the time.
const SHARE: u32 = 100;
/// What takes longer is not done with a proof of life: the next one would be late.
const LONG: Duration = Duration::from_millis(200);

pub(super) const HELD: &str = "SELECT event, target, attempts FROM delivery WHERE holder = $1 AND state = 0 AND holder IS NOT NULL \
    ORDER BY event LIMIT $2";

/// Of these alone.
pub(super) const HELD_OF: &str = "SELECT d.event, d.target, d.attempts FROM unnest($2::int8[], $3::int2[]) AS l(event, target) \
    JOIN delivery d ON d.event = l.event AND d.target = l.target WHERE d.holder = $1 AND d.state + 0 = 0";

/// The first due time of each target, behind a place where one is given; and how long the transaction has taken so far.
pub(super) const DUE: &str = "SELECT t.name, (SELECT d.due FROM delivery d WHERE d.target = t.no AND d.state = 0 AND d.holder IS NULL \
       AND (d.due, d.event) >= (coalesce(p.due, '-9223372036854775808'::int8), coalesce(p.event, 0)) \
       ORDER BY d.due, d.event LIMIT 1), extract(epoch FROM clock_timestamp() - transaction_timestamp())::float8 \
    FROM target t LEFT JOIN unnest($1::int2[], $2::int8[], $3::int8[]) AS p(target, due, event) ON p.target = t.no";

/// How often something is done that may take long.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Pace {
    last: Option<Instant>,
    took: Duration,
}

impl Pace {
    /// Whether it may be done now: what took at most `cheap` always.
    pub(super) fn is_due(&self, cheap: Duration) -> bool {
        self.took <= cheap || self.last.is_none_or(|last| last.elapsed() >= self.took * SHARE)
    }

    /// Notes how long it took.
    pub(super) fn note(&mut self, took: Duration) {
        *self = Self { last: Some(Instant::now()), took };
    }

    pub(super) fn took(&self) -> Duration {
        self.took
    }

    /// There is a reason to do it.
    pub(super) fn hurry(&mut self) {
        self.last = None;
    }
}

/// A delivery, by the number of its target.
type Delivery = (EventId, i16);

/// A row that this replica holds, as the attempt that it is held for: a later lease of the same delivery is another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct HeldRow {
    delivery: Delivery,
    attempts: i32,
}

/// What is known from look to look.
#[derive(Debug, Default)]
pub(super) struct Looks {
    pub(super) pace: Mutex<Pace>,
    /// Held rows that are unknown here: since which look.
    unknown: Mutex<HashMap<HeldRow, Instant>>,
    /// Leases that were not in the store at the last look.
    missing: Mutex<HashSet<Delivery>>,
}

impl Looks {
    /// A call has failed that may have left rows held without a lease.
    pub(super) fn hurry(&self) {
        self.pace.lock().hurry();
    }

    /// Which of the rows that are held and unknown here have been so for `long`. Looks are dated by when they were sent.
    fn held_without_lease(
        &self,
        look: &Look,
        unknown: impl Iterator<Item = (Delivery, i32)>,
        sent: Instant,
        long: Duration,
    ) -> Vec<Delivery> {
        let mut since = self.unknown.lock();
        let now: HashMap<HeldRow, Instant> = unknown
            .map(|(delivery, attempts)| HeldRow { delivery, attempts })
            .map(|row| (row, since.get(&row).copied().unwrap_or(sent)))
            .collect();
        let is_due = |first: Instant| sent.duration_since(first) >= long;
        let unleased = now.iter().filter(|(_, first)| is_due(**first)).map(|(row, _)| row.delivery).collect();
        // What was not asked for may still be held.
        since.retain(|row, _| !look.is_about(&row.delivery));
        since.extend(now);
        unleased
    }
}

/// What a look reads.
#[derive(Debug, Default)]
pub(super) struct Look {
    /// The rows that it is about; `None`: all that this replica holds.
    about: Option<HashSet<Delivery>>,
    /// Their columns.
    events: Vec<i64>,
    targets: Vec<i16>,
    /// From where free rows are looked for: target, due time and event.
    places: (Vec<i16>, Vec<i64>, Vec<i64>),
}

impl Look {
    pub(super) fn sql(&self) -> &'static str {
        if self.about.is_some() { HELD_OF } else { HELD }
    }

    pub(super) fn held<'v>(&'v self, me: &'v i32) -> Vec<Value<'v>> {
        match self.about {
            Some(_) => vec![(me, Type::INT4), (&self.events, Type::INT8_ARRAY), (&self.targets, Type::INT2_ARRAY)],
            None => vec![(me, Type::INT4), (&COMPARED, Type::INT8)],
        }
    }

    pub(super) fn due(&self) -> [Value<'_>; 3] {
        let (targets, due, events) = &self.places;
        [(targets, Type::INT2_ARRAY), (due, Type::INT8_ARRAY), (events, Type::INT8_ARRAY)]
    }

    fn is_about(&self, delivery: &Delivery) -> bool {
        self.about.as_ref().is_none_or(|about| about.contains(delivery))
    }
}

/// What is seen now and was seen at the last look. Once may be a moment between a commit and what follows from it.
fn seen_twice<T: Copy + Eq + std::hash::Hash>(before: &Mutex<HashSet<T>>, now: HashSet<T>) -> HashSet<T> {
    let mut before = before.lock();
    let twice = now.intersection(&before).copied().collect();
    *before = now;
    twice
}

impl Engine {
    /// Whether a whole look takes longer than the next proof of life can wait.
    pub(super) fn is_look_long(&self) -> bool {
        self.membership.looks.pace.lock().took() > LONG
    }

    /// The look that goes with a proof of life.
    pub(super) fn next_look(&self) -> Look {
        let looks = &self.membership.looks;
        if looks.pace.lock().is_due(self.tuning.replica.cheap_look) && !self.is_look_long() {
            return Look::default();
        }
        let mut about: HashSet<Delivery> = self.outstanding().into_keys().collect();
        about.extend(looks.unknown.lock().keys().map(|row| row.delivery));
        let (events, targets) = about.iter().map(|(event, target)| (id_of(*event), *target)).unzip();
        let mut places = (Vec::new(), Vec::new(), Vec::new());
        for (target, due, event) in self.cursors.places() {
            if let Some(number) = self.targets.known(&target) {
                places.0.push(number);
                places.1.push(due);
                places.2.push(event);
            }
        }
        Look { about: Some(about), events, targets, places }
    }

    /// Notes how long a look took; returns the held rows with their attempts.
    pub(super) fn note_look(&self, look: &Look, held: &[Row], due: &[Row]) -> Result<HashMap<Delivery, i32>, Failure> {
        if look.about.is_none() {
            let mut took = 0.0;
            for row in due {
                took = f64::max(took, row.try_get(2)?);
            }
            self.membership.looks.pace.lock().note(Duration::try_from_secs_f64(took).unwrap_or_default());
        }
        held.iter().map(|row| Ok(((event_id(row.try_get(0)?), row.try_get(1)?), row.try_get(2)?))).collect()
    }

    /// The leases of this replica, by what the store calls them.
    pub(super) fn outstanding(&self) -> HashMap<Delivery, Arc<str>> {
        let outstanding = self.leases.lock().list().into_iter();
        outstanding.filter_map(|(target, event)| Some(((event, self.targets.known(&target)?), target))).collect()
    }

    /// Revokes leases that the store has no more.
    pub(super) fn revoke_missing(&self, look: &Look, rows: &HashMap<Delivery, i32>) {
        let is_complete = look.about.is_some() || i64::try_from(rows.len()).is_ok_and(|count| count < COMPARED);
        let outstanding = self.outstanding();
        let is_missing = |lease: &&Delivery| is_complete && look.is_about(lease) && !rows.contains_key(lease);
        let missing: HashSet<_> = outstanding.keys().filter(is_missing).copied().collect();
        let missing = if self.is_fenced() {
            // Nothing is leased behind the fence: what is missing was taken over.
            missing
        } else {
            seen_twice(&self.membership.looks.missing, missing)
        };
        for lease in missing {
            if let Some(target) = outstanding.get(&lease) {
                self.leases.lock().revoke(target, lease.0);
            }
        }
    }

    /// Frees rows that no lease here matches.
    pub(super) async fn free_unleased(
        &self,
        session: &Session,
        look: &Look,
        rows: HashMap<Delivery, i32>,
        sent: Instant,
    ) -> Result<(), Failure> {
        let outstanding = self.outstanding();
        let unknown = rows.into_iter().filter(|(row, _)| !outstanding.contains_key(row));
        let unleased = self.membership.looks.held_without_lease(look, unknown, sent, self.tuning.replica.orphaned);
        if unleased.is_empty() {
            return Ok(());
        }
        let (ids, numbers): (Vec<i64>, Vec<i16>) =
            unleased.iter().map(|(event, number)| (id_of(*event), *number)).unzip();
        let me = self.incarnation();
        let values: [Value<'_>; 3] = [(&ids, Type::INT8_ARRAY), (&numbers, Type::INT2_ARRAY), (&me, Type::INT4)];
        self.wake_freed(&session.query(GIVE_BACK, &values).await?)
    }

    /// Wakes the targets for which something is due.
    pub(super) fn wake_due(&self, due: &[Row]) -> Result<(), Failure> {
        let now = UnixMillis::now();
        for row in due {
            let (name, first): (&str, Option<i64>) = (row.try_get(0)?, row.try_get(1)?);
            if first.is_some_and(|first| UnixMillis(first) <= now) {
                self.wake(name);
            }
        }
        Ok(())
    }

    /// Makes a whole look, if it is its time. What is missing is left to the looks that go with a proof of life: seen by
    /// both, it would be seen twice in a moment.
    pub(super) async fn look_at_all(&self, session: &Session) -> Result<(), Failure> {
        if !self.membership.looks.pace.lock().is_due(self.tuning.replica.cheap_look) {
            return Ok(());
        }
        let (look, me, sent) = (Look::default(), self.incarnation(), Instant::now());
        let (held, due) = (look.held(&me), look.due());
        let queries = [BoundQuery { sql: look.sql(), values: &held }, BoundQuery { sql: DUE, values: &due }];
        let answers = session.transact("", &queries).await?;
        let [held, due] = answers.as_slice() else { return Ok(()) };
        let rows = self.note_look(&look, held, due)?;
        self.free_unleased(session, &look, rows, sent).await?;
        self.wake_due(due)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_takes_long_is_done_in_a_hundredth_of_the_time_and_at_once_for_a_reason() {
        let ms = Duration::from_millis;
        let (mut pace, cheap) = (Pace::default(), ms(20));
        assert!(pace.is_due(cheap), "the first time");
        pace.note(ms(20));
        assert!(pace.is_due(cheap), "it is cheap");
        pace.note(ms(30));
        assert!(!pace.is_due(cheap));
        tokio::time::advance(ms(2999)).await;
        assert!(!pace.is_due(cheap));
        tokio::time::advance(ms(1)).await;
        assert!(pace.is_due(cheap));
        pace.note(ms(5000));
        assert!(!pace.is_due(cheap));
        pace.hurry();
        assert!(pace.is_due(cheap));
    }
}
