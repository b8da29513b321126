//! Housekeeping: folds the tally, deletes what is old, frees what nobody holds.
//!
//! Whichever replica gets the lock does a step; none is elected. Each step repeats the condition that it was decided on,
//! and deleting excludes operators' actions by their lock, so that nothing that was made pending again is deleted.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::{Instant, sleep};
use tokio_postgres::types::Type;

use super::engine::{Engine, PATIENCE};
use super::failure::Failure;
use super::inspect::first;
use super::locks::LOCK_CHANGES;
use super::looks::Pace;
use super::pinned::PinnedSession;
use super::schema;
use super::session::{BoundQuery, Session, Value};
use super::values::id_of;
use crate::clock::UnixMillis;
use crate::event::EventId;
use crate::telemetry::LogThrottle;

/// The pause between two passes, and between two steps of one.
const PASS_PAUSE: Duration = Duration::from_secs(10);
const STEP_PAUSE: Duration = Duration::from_millis(100);
/// How many events, keys or users one step takes, and how many rows of the tally.
const STEP: i64 = 1000;
pub(super) const FOLD_STEP: i64 = 10_000;
/// Up to this size, the table of the tally's changes is scanned whole at each pass, which takes milliseconds. A larger
/// one is scanned whole each [`FOLD_ALL_EVERY`].
const FEW_PAGES: i64 = 2048;
pub(super) const FOLD_ALL_EVERY: Duration = Duration::from_secs(60);
/// What a step from the beginning of an index may take and still be made at each pass.
const CHEAP: Duration = Duration::from_millis(100);

/// Adds changes of the tally up, from a place in their table on. Rows that another replica is at are left to it.
pub(super) const FOLD: &str = "WITH d AS (DELETE FROM tally_delta WHERE ctid = ANY(ARRAY( \
        SELECT ctid FROM tally_delta WHERE ctid >= $2::text::tid LIMIT $1 FOR UPDATE SKIP LOCKED)) \
        RETURNING ctid AS place, target, state, count), \
    s AS (SELECT target, state, sum(count) AS count FROM d GROUP BY target, state ORDER BY target, state), \
    f AS (INSERT INTO tally (target, state, count) SELECT target, state, count FROM s \
          ON CONFLICT (target, state) DO UPDATE SET count = tally.count + excluded.count) \
    SELECT count(*), max(place)::text FROM d";
/// How many pages they have.
const PAGES: &str = "SELECT pg_relation_size('tally_delta') / current_setting('block_size')::int8";

/// Deletes events of a range that are finished, with all their rows. Returns the last event that was examined, and how
/// many were deleted. A key that is still needed stays.
pub(super) const DELETE_OLD: &str = "WITH c AS MATERIALIZED (SELECT id, content_key, targets FROM event WHERE id > $1 AND id < $2 \
        ORDER BY id LIMIT $4), \
    gone AS MATERIALIZED (SELECT c.* FROM c WHERE NOT EXISTS (SELECT FROM delivery d WHERE d.event = c.id \
        AND d.state IN (0, 2)) AND NOT EXISTS (SELECT FROM held_reply h WHERE h.event = c.id AND h.state = 2)), \
    e AS (DELETE FROM event USING gone WHERE event.id = gone.id), \
    d AS (DELETE FROM delivery USING gone WHERE delivery.event = gone.id RETURNING delivery.target, delivery.state), \
    a AS (DELETE FROM attempt USING gone WHERE attempt.event = gone.id), \
    h AS (DELETE FROM held_reply USING gone WHERE held_reply.event = gone.id RETURNING held_reply.state), \
    r AS (INSERT INTO retired_key (event, content_key) SELECT id, content_key FROM gone WHERE id >= $3 \
          ON CONFLICT DO NOTHING), \
    k AS (DELETE FROM known USING gone WHERE known.content_key = gone.content_key AND known.event = gone.id \
          AND gone.id < $3), \
    t AS (INSERT INTO tally_delta (target, state, count) \
          SELECT target, state, -count(*) FROM d GROUP BY target, state \
          UNION ALL SELECT -1, state, -count(*) FROM h WHERE state NOT IN (0, 7) GROUP BY state \
          UNION ALL SELECT -1, 0, -count(*) FROM h WHERE state NOT IN (0, 7) HAVING count(*) > 0 \
          UNION ALL SELECT 0, 0, -count(*) FROM gone HAVING count(*) > 0 \
          UNION ALL SELECT 0, 1, -sum(targets) FROM gone HAVING sum(targets) > 0) \
    SELECT (SELECT max(id) FROM c), (SELECT count(*) FROM gone)";

pub(super) const DELETE_KEYS: &str = "WITH r AS (DELETE FROM retired_key WHERE event = ANY(ARRAY( \
        SELECT event FROM retired_key WHERE event > $3 AND event < $1 ORDER BY event LIMIT $2)) RETURNING event, content_key), \
    k AS (DELETE FROM known USING r WHERE known.content_key = r.content_key AND known.event = r.event) \
    SELECT max(event) FROM r";

/// The next users behind one, and whether the first pending delivery of each is held. One entry of the index is read for
/// each user, however many deliveries wait behind it.
pub(super) const FIRST_PENDING: &str = "WITH RECURSIVE f AS ( \
       (SELECT target, usr, due FROM delivery WHERE state = 0 AND usr IS NOT NULL AND (target, usr) > ($1, $2) \
         ORDER BY target, usr, turn LIMIT 1) \
     UNION ALL SELECT n.target, n.usr, n.due FROM f CROSS JOIN LATERAL ( \
        SELECT d.target, d.usr, d.due FROM delivery d WHERE d.state = 0 AND d.usr IS NOT NULL \
           AND (d.target, d.usr) > (f.target, f.usr) ORDER BY d.target, d.usr, d.turn LIMIT 1) n) \
    SELECT target, usr, due = 9223372036854775807 FROM f LIMIT $3";

/// A user of a target, and the one before all.
type User = (i16, i64);
const NOBODY: User = (i16::MIN, i64::MIN);

/// From where the changes of the tally are added up. Where a snapshot is held, those that were added up before are still
/// there, dead; new ones come behind them, but for a few. Those count in the tally all the same, until they are added up.
#[derive(Debug)]
pub(super) struct FoldPlace {
    /// The last page when the last pass began: what was stored since is there and behind.
    page: i64,
    /// When the last pass from the beginning began.
    pub(super) whole_at: Instant,
}

impl FoldPlace {
    pub(super) fn new() -> Self {
        Self { page: 0, whole_at: Instant::now() }
    }

    /// Where a pass begins.
    pub(super) fn start(&self) -> i64 {
        if self.page < FEW_PAGES || self.whole_at.elapsed() >= FOLD_ALL_EVERY { 0 } else { self.page }
    }
}

/// From where old rows are looked for: what was deleted stays in the index as long as a snapshot is held.
#[derive(Debug, Default)]
struct OldPlace {
    after: i64,
    pace: Pace,
}

/// What is remembered from pass to pass.
#[derive(Debug)]
struct Progress {
    /// The last user that [`Engine::release_stuck`] has examined.
    checked: User,
    stuck: Pace,
    orphans: Pace,
    fold: FoldPlace,
    events: OldPlace,
    keys: OldPlace,
}

impl Progress {
    fn new() -> Self {
        let (stuck, orphans) = (Pace::default(), Pace::default());
        let (events, keys) = (OldPlace::default(), OldPlace::default());
        Self { checked: NOBODY, stuck, orphans, fold: FoldPlace::new(), events, keys }
    }
}

impl OldPlace {
    /// Where a pass begins, and whether that is the beginning.
    fn start(&self) -> (i64, bool) {
        let is_whole = self.pace.is_due(CHEAP);
        (if is_whole { 0 } else { self.after }, is_whole)
    }
}

impl Engine {
    /// Keeps house until the end.
    pub(super) async fn keep_house(self: Arc<Self>, session: PinnedSession) {
        let throttle = LogThrottle::default();
        let mut progress = Progress::new();
        loop {
            tokio::select! {
                () = sleep(PASS_PAUSE) => {}
                () = self.stop.cancelled() => return,
            }
            if let Err(error) = self.make_pass(&session, &mut progress).await
                && let Some(suppressed) = throttle.allow()
            {
                let remedy = error.remedy();
                tracing::warn!(%error, remedy, held_back = suppressed, "housekeeping failed; trying again later");
            }
        }
    }

    /// Makes one pass.
    async fn make_pass(&self, session: &PinnedSession, progress: &mut Progress) -> Result<(), Failure> {
        // Its failure delays nothing.
        let observed = session.call(PATIENCE, async |session| self.observe(session).await).await;
        session.call(PATIENCE, async |session| schema::raise(session).await).await?;
        if self.is_look_long() {
            session.call(PATIENCE, async |session| self.look_at_all(session).await).await?;
        }
        if progress.orphans.is_due(CHEAP) {
            let began = Instant::now();
            session.call(PATIENCE, async |session| self.free_orphans(session).await).await?;
            progress.orphans.note(began.elapsed());
        }
        if progress.stuck.is_due(CHEAP) {
            let (began, checked) = (Instant::now(), progress.checked);
            progress.checked =
                session.call(PATIENCE, async |session| self.release_stuck(session, checked).await).await?;
            progress.stuck.note(began.elapsed());
        }
        self.fold_tally(session, &mut progress.fold).await?;
        self.delete_old(session, &mut progress.events).await?;
        self.delete_keys(session, &mut progress.keys).await?;
        observed
    }

    async fn pause_step(&self) {
        tokio::select! {
            () = sleep(STEP_PAUSE) => {}
            () = self.stop.cancelled() => {}
        }
    }

    /// Adds up what the tally has changed by.
    pub(super) async fn fold_tally(&self, session: &PinnedSession, place: &mut FoldPlace) -> Result<(), Failure> {
        let (began, start) = (Instant::now(), place.start());
        let pages = session.call(PATIENCE, async |session| session.query(PAGES, &[]).await).await?;
        let mut from = Some(format!("({start},0)"));
        while let Some(step) = from {
            let values: [Value<'_>; 2] = [(&FOLD_STEP, Type::INT8), (&step, Type::TEXT)];
            let rows = session.call(PATIENCE, async |session| session.query(FOLD, &values).await).await?;
            let Some(row) = rows.first() else { break };
            let (count, last): (i64, Option<String>) = (row.try_get(0)?, row.try_get(1)?);
            from = last.filter(|_| count >= FOLD_STEP);
            if from.is_some() {
                self.pause_step().await;
            }
        }
        place.page = first(&pages, 0)? - 1;
        if start == 0 {
            place.whole_at = began;
        }
        Ok(())
    }

    /// Deletes old events.
    async fn delete_old(&self, session: &PinnedSession, place: &mut OldPlace) -> Result<(), Failure> {
        let now = self.clock.earliest();
        let keep = self.settings.retention.max(self.settings.dedup_window);
        let until = id_of(EventId::first_at(now.before(keep)));
        let (mut after, mut is_first) = place.start();
        // Nothing is old enough while the clock is not believed.
        while !self.clock.holds_age() && !self.stop.is_cancelled() {
            let began = Instant::now();
            let last = session.call(PATIENCE, async |session| self.delete_some(session, after, until).await).await?;
            if std::mem::take(&mut is_first) {
                place.pace.note(began.elapsed());
            }
            let Some(last) = last else {
                place.after = until - 1;
                break;
            };
            after = last;
            self.pause_step().await;
        }
        Ok(())
    }

    /// One step of deleting old events of a range; the event to continue behind, if there is more.
    async fn delete_some(&self, session: &Session, after: i64, until: i64) -> Result<Option<i64>, Failure> {
        let kept = id_of(self.replay_start(self.clock.earliest()));
        let values: [Value<'_>; 4] =
            [(&after, Type::INT8), (&until, Type::INT8), (&kept, Type::INT8), (&STEP, Type::INT8)];
        let rows = session.transact(LOCK_CHANGES, &[BoundQuery { sql: DELETE_OLD, values: &values }]).await?;
        let Some(row) = rows.iter().flatten().next() else { return Ok(None) };
        let (last, deleted): (Option<i64>, i64) = (row.try_get(0)?, row.try_get(1)?);
        if deleted > 0 {
            tracing::debug!(events = deleted, "old events deleted");
        }
        Ok(last)
    }

    /// Deletes the keys of events that are gone, where no copy of their push is accepted any more.
    async fn delete_keys(&self, session: &PinnedSession, place: &mut OldPlace) -> Result<(), Failure> {
        let kept = id_of(self.replay_start(self.clock.earliest()));
        let (mut after, mut is_first) = place.start();
        while !self.clock.holds_age() && !self.stop.is_cancelled() {
            let began = Instant::now();
            let values: [Value<'_>; 3] = [(&kept, Type::INT8), (&STEP, Type::INT8), (&after, Type::INT8)];
            let rows = session.call(PATIENCE, async |session| session.query(DELETE_KEYS, &values).await).await?;
            if std::mem::take(&mut is_first) {
                place.pace.note(began.elapsed());
            }
            let Some(last) = first(&rows, None::<i64>)? else {
                place.after = kept - 1;
                break;
            };
            after = last;
            self.pause_step().await;
        }
        Ok(())
    }

    /// Releases users whose first pending delivery is held although nothing is before it, as after a settlement that was
    /// cut off between its two transactions. Looks at one step of users behind `after`; returns the last one.
    async fn release_stuck(&self, session: &Session, after: User) -> Result<User, Failure> {
        let values: [Value<'_>; 3] = [(&after.0, Type::INT2), (&after.1, Type::INT8), (&STEP, Type::INT8)];
        let rows = session.query(FIRST_PENDING, &values).await?;
        let (mut last, mut stuck) = (NOBODY, Vec::new());
        for row in &rows {
            last = (row.try_get(0)?, row.try_get(1)?);
            if row.try_get(2)? {
                stuck.push(last);
            }
        }
        self.release(session, &stuck, UnixMillis::now().0).await?;
        // Then the next pass begins anew.
        Ok(if i64::try_from(rows.len()).is_ok_and(|count| count < STEP) { NOBODY } else { last })
    }

    /// The first event whose key is still needed, should a copy of its push come.
    pub(super) fn replay_start(&self, now: UnixMillis) -> EventId {
        let window = Duration::from_millis(self.replay_window.load(Ordering::Relaxed));
        EventId::first_at(now.before(window))
    }
}
