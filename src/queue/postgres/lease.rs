//! Leasing what is due: free rows of a target, by due time.
//!
//! Free rows alone are in the index that is looked in, and each target has a cursor there, at the last row that was
//! leased: rows that ended stay in the index as dead entries while a transaction anywhere keeps an old snapshot, and a
//! look from the beginning steps over all of them. The cursor goes back to what this replica frees, and to the beginning
//! when others may have freed something, and each second, as long as such looks take little of the time.
//!
//! What is free may still be attempted here: where this replica was frozen, others may have taken it over and given it
//! back. Then it is held again, for that attempt.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::{Instant, sleep};
use tokio_postgres::Row;
use tokio_postgres::types::Type;

use super::engine::{Engine, Postgres};
use super::failure::Failure;
use super::session::{BoundQuery, Session, Value};
use super::values::{event_id, id_of, read_verified};
use crate::clock::UnixMillis;
use crate::event::{Event, EventId};
use crate::queue::resume::Unanswered;
use crate::queue::stored::{HELD, key_of, unreadable};
use crate::queue::{AwaitedReply, Error, Flaw, Lease, Leases};

/// The longest that a lease may take: then the lane asks again.
const TRY: Duration = Duration::from_secs(3);
/// The least part of the time that lies between two looks from the beginning.
const RESET_SHARE: u32 = 20;
/// The longest that a look over dead entries is taken to be.
const LONGEST_SCAN: Duration = Duration::from_millis(100);
/// How often it is seen that leases were dropped, while nothing is leased.
const RETURN_EVERY: Duration = Duration::from_millis(200);
/// The most events that are read for [`Postgres::unanswered`], and about the most bytes of their bodies.
const MAX_UNANSWERED: i64 = 1024;
const MAX_BYTES: u64 = 32 << 20;

/// The rows that it has locked are as they were found. A condition on their state would let the planner look for them in
/// `delivery_free`, one by one, where the statistics are of an empty store.
pub(super) const LEASE: &str = "WITH l AS (SELECT event FROM delivery WHERE target = $1 AND state = 0 AND holder IS NULL \
          AND due <= $2 AND (due, event) >= ($3, $4) ORDER BY due, event LIMIT $5 FOR UPDATE SKIP LOCKED), \
    u AS (UPDATE delivery d SET holder = $6 FROM l \
           WHERE d.event = l.event AND d.target = $1 \
          RETURNING d.event, d.attempts, d.failures, d.due) \
    SELECT u.event, u.attempts, u.failures, u.due, e.id, e.account, e.app_id, e.mode, e.received_at, e.query, e.body, \
           e.clear, e.traceparent, e.key, e.content_key, e.checksum \
      FROM u LEFT JOIN event e ON e.id = u.event ORDER BY u.due, u.event";

pub(super) const NEXT_DUE: &str = "SELECT due FROM delivery WHERE target = $1 AND state = 0 AND holder IS NULL \
    AND due < 9223372036854775807 AND (due, event) >= ($2, $3) ORDER BY due, event LIMIT 1";

/// `state + 0`, here and elsewhere, is served by no index: rows of known keys are found by these.
pub(super) const GIVE_BACK: &str = "UPDATE delivery d SET holder = NULL FROM unnest($1::int8[], $2::int2[]) AS g(event, target) \
    WHERE d.event = g.event AND d.target = g.target AND d.state + 0 = 0 AND d.holder = $3 RETURNING d.target, d.due, d.event";

pub(super) const LEASE_AWAITED: &str = "UPDATE delivery SET holder = $3 WHERE event = $1 AND target = $2 AND state + 0 = 0 \
    AND attempts = 0 AND holder IS NULL AND due < 9223372036854775807 RETURNING event";

const UNANSWERED: &str = "SELECT e.reply, e.reply_checksum, e.id, e.account, e.app_id, e.mode, e.received_at, e.query, \
           e.body, e.clear, e.traceparent, e.key, e.content_key, e.checksum \
      FROM event e WHERE e.id >= $1 AND e.asking_until <> -1 AND EXISTS (SELECT FROM delivery d WHERE d.event = e.id AND d.state = 0 \
           AND d.attempts = 0 AND d.holder IS NULL) ORDER BY e.id DESC LIMIT $2";

/// Where the next look of each target begins.
#[derive(Debug)]
pub(super) struct Cursors {
    cursors: Mutex<HashMap<Arc<str>, Cursor>>,
    /// How often a look begins at the beginning without a reason.
    reset_every: Duration,
}

#[derive(Clone, Copy, Debug)]
struct Cursor {
    due: i64,
    event: i64,
    /// When a look last began at the beginning, and how long it took.
    reset_at: Instant,
    took: Duration,
    is_reset_due: bool,
    /// How often it went back: a look that began before does not advance it.
    returns: u64,
}

impl Cursors {
    pub(super) fn new(reset_every: Duration) -> Self {
        Self { cursors: Mutex::default(), reset_every }
    }

    /// Where to begin.
    fn start(&self, target: &Arc<str>) -> Start {
        let mut cursors = self.cursors.lock();
        let now = Instant::now();
        let begin =
            Cursor { due: i64::MIN, event: 0, reset_at: now, took: Duration::ZERO, is_reset_due: false, returns: 0 };
        let cursor = cursors.entry(Arc::clone(target)).or_insert(Cursor { is_reset_due: true, ..begin });
        let since = now.duration_since(cursor.reset_at);
        let is_due = cursor.is_reset_due || since >= self.reset_every;
        let from_beginning = is_due && since >= cursor.took * RESET_SHARE;
        if from_beginning {
            *cursor = Cursor { returns: cursor.returns, ..begin };
        }
        Start { place: (cursor.due, cursor.event), from_beginning, returns: cursor.returns }
    }

    /// Notes how long a look took, and the last row that it leased.
    fn advance(&self, target: &str, start: &Start, last: Option<(i64, i64)>, took: Duration) {
        if let Some(cursor) = self.cursors.lock().get_mut(target) {
            if let Some(last) = last
                && cursor.returns == start.returns
            {
                (cursor.due, cursor.event) = last;
            }
            if start.from_beginning {
                // More than this was spent on the way, or waiting for a lock.
                cursor.took = took.min(LONGEST_SCAN);
            }
        }
    }

    /// This row is free; the next look finds it.
    pub(super) fn lower(&self, target: &str, row: (i64, i64)) {
        if let Some(cursor) = self.cursors.lock().get_mut(target) {
            cursor.returns += 1;
            (cursor.due, cursor.event) = row.min((cursor.due, cursor.event));
        }
    }

    /// An operator has made something due: it is found at once.
    pub(super) fn restart(&self, target: &str) {
        if let Some(cursor) = self.cursors.lock().get_mut(target) {
            (cursor.is_reset_due, cursor.took) = (true, Duration::ZERO);
        }
    }

    /// Where each stands.
    pub(super) fn places(&self) -> Vec<(Arc<str>, i64, i64)> {
        let cursors = self.cursors.lock();
        let places = cursors.iter().map(|(target, cursor)| (Arc::clone(target), cursor.due, cursor.event));
        places.collect()
    }

    /// Something before the cursor may be due.
    pub(super) fn reset(&self, target: &str) {
        if let Some(cursor) = self.cursors.lock().get_mut(target) {
            cursor.is_reset_due = true;
        }
    }
}

/// Where a look begins.
struct Start {
    place: (i64, i64),
    from_beginning: bool,
    returns: u64,
}

/// A leased row: the delivery with its event, or why that is unreadable.
struct LeasedRow {
    id: EventId,
    attempts: u32,
    failures: u32,
    event: Result<Event, Flaw>,
}

impl Postgres {
    pub(in crate::queue) async fn lease(&self, target: &str, max: usize, now: UnixMillis) -> Result<Leases, Error> {
        let engine = &self.engine;
        let target: Arc<str> = target.into();
        engine.give_back_dropped().await?;
        if engine.is_fenced() {
            return Err(Error::Away);
        }
        let start = engine.cursors.start(&target);
        let began = Instant::now();
        let found = engine
            .leasing
            .call(TRY, async |session| engine.lease_rows(session, &target, max, now, start.place).await)
            .await;
        let (rows, next_due) = found.inspect_err(|_| engine.membership.looks.hurry())?;
        let last = rows.last().map(|(row, due)| (*due, id_of(row.id)));
        engine.cursors.advance(&target, &start, last, began.elapsed());
        let mut leases = Leases { next_due, ..Leases::default() };
        let mut refused = Vec::new();
        for (row, _) in rows {
            match row.event {
                Ok(event) => {
                    let (attempt, failures) = (row.attempts + 1, row.failures);
                    let mut table = engine.leases.lock();
                    if table.is_attempted(&target, row.id, attempt) {
                        continue;
                    }
                    match table.grant(&target, &event, attempt, false) {
                        Some(guard) => {
                            let (event, target) = (Arc::new(event), Arc::clone(&target));
                            leases.due.push(Lease { event, target, attempt, failures, reply: None, guard });
                        }
                        None => refused.push(row.id),
                    }
                }
                Err(flaw) => {
                    let settlement = unreadable(row.id, &target, row.attempts + 1, now, &flaw);
                    self.settle_held(settlement).await?;
                    // This look may yield no lease although more deliveries are due.
                    leases.next_due = Some(now);
                }
            }
        }
        if !refused.is_empty() {
            leases.is_short_of_memory = true;
            let given = refused.into_iter().map(|event| (event, Arc::clone(&target))).collect();
            engine.give_back(given).await?;
        }
        Ok(leases)
    }

    pub(in crate::queue) async fn unanswered(&self, since: UnixMillis) -> Result<Vec<Unanswered>, Error> {
        let engine = &self.engine;
        if !engine.is_joined() {
            return Ok(Vec::new());
        }
        let since = id_of(EventId::first_at(since));
        let values: [Value<'_>; 2] = [(&since, Type::INT8), (&MAX_UNANSWERED, Type::INT8)];
        let rows = engine.reading.call(TRY, async |session| session.query(UNANSWERED, &values).await).await?;
        let (mut found, mut bytes) = (Vec::new(), 0);
        for row in rows {
            // An unreadable event becomes a dead letter when its delivery is leased.
            let Ok(event) = read_verified(&row, 2, engine.keys())? else { continue };
            bytes += event.memory_bytes();
            if bytes > MAX_BYTES {
                break;
            }
            let key = key_of(&event);
            let reply = engine.open_stored_reply(event.id, &row, [0, 1, 11])?;
            found.push(Unanswered { event: Arc::new(event), key, reply });
        }
        Ok(found)
    }

    pub(in crate::queue) async fn lease_awaited(
        &self,
        event: Arc<Event>,
        awaited: Vec<(Arc<str>, AwaitedReply)>,
    ) -> Result<Vec<Lease>, Error> {
        let engine = &self.engine;
        let names: Vec<_> = awaited.iter().map(|(target, _)| Arc::clone(target)).collect();
        let mut leases = Vec::new();
        for (target, reply) in awaited {
            let id = id_of(event.id);
            let rows = engine
                .leasing
                .call(TRY, async |session| {
                    engine.targets.find(session, &names).await?;
                    let Some(number) = engine.targets.known(&target) else { return Ok(Vec::new()) };
                    let me = engine.incarnation();
                    let values: [Value<'_>; 3] = [(&id, Type::INT8), (&number, Type::INT2), (&me, Type::INT4)];
                    session.query(LEASE_AWAITED, &values).await
                })
                .await
                .inspect_err(|_| engine.membership.looks.hurry())?;
            if rows.is_empty() {
                continue;
            }
            let granted = {
                let mut table = engine.leases.lock();
                if table.is_attempted(&target, event.id, 1) {
                    continue;
                }
                table.grant(&target, &event, 1, true)
            };
            match granted {
                Some(guard) => {
                    let event = Arc::clone(&event);
                    leases.push(Lease { event, target, attempt: 1, failures: 0, reply: Some(reply), guard });
                }
                // Without memory for it, the delivery waits in the store, and the try for no reply.
                None => engine.give_back(vec![(event.id, target)]).await?,
            }
        }
        Ok(leases)
    }

    pub(in crate::queue) fn hand_over(&self, lease: Lease) {
        // A lease that does not fit is dropped, which returns its delivery.
        drop(self.engine.inboxes.offer(lease));
    }
}

impl Engine {
    async fn lease_rows(
        &self,
        session: &Session,
        target: &Arc<str>,
        max: usize,
        now: UnixMillis,
        (due, event): (i64, i64),
    ) -> Result<(Vec<(LeasedRow, i64)>, Option<UnixMillis>), Failure> {
        self.targets.find(session, std::slice::from_ref(target)).await?;
        let Some(number) = self.targets.known(target) else { return Ok((Vec::new(), None)) };
        self.pull_in_due(session, target, number, now).await?;
        // A target that may take nothing more leases nothing, but learns whether something is due.
        let max = if self.leases.lock().is_short_of_memory(target) { 0 } else { max };
        let (limit, me) = (i64::try_from(max).unwrap_or(i64::MAX), self.incarnation());
        let now = now.0.min(HELD.0 - 1);
        let lease: [Value<'_>; 6] = [
            (&number, Type::INT2),
            (&now, Type::INT8),
            (&due, Type::INT8),
            (&event, Type::INT8),
            (&limit, Type::INT8),
            (&me, Type::INT4),
        ];
        let next: [Value<'_>; 3] = [(&number, Type::INT2), (&due, Type::INT8), (&event, Type::INT8)];
        let queries = [BoundQuery { sql: LEASE, values: &lease }, BoundQuery { sql: NEXT_DUE, values: &next }];
        let mut answers = session.transact("", &queries).await?.into_iter();
        let (rows, next) = (answers.next().unwrap_or_default(), answers.next().unwrap_or_default());
        let rows = rows.iter().map(|row| self.read_leased(row)).collect::<Result<_, Failure>>()?;
        let next = next.first().map(|row| row.try_get(0)).transpose()?;
        Ok((rows, next.map(UnixMillis)))
    }

    fn read_leased(&self, row: &Row) -> Result<(LeasedRow, i64), Failure> {
        let count = |stored: i32| u32::try_from(stored).unwrap_or(0);
        let event = read_verified(row, 4, self.keys())?;
        let (id, attempts, failures) = (event_id(row.try_get(0)?), count(row.try_get(1)?), count(row.try_get(2)?));
        Ok((LeasedRow { id, attempts, failures, event }, row.try_get(3)?))
    }

    /// Frees the deliveries whose leases were dropped unsettled.
    pub(super) async fn give_back_dropped(&self) -> Result<(), Error> {
        let dropped = self.leases.lock().take_dropped();
        self.give_back(dropped).await
    }

    /// Frees deliveries that this replica holds.
    pub(super) async fn give_back(&self, given: Vec<(EventId, Arc<str>)>) -> Result<(), Error> {
        if given.is_empty() {
            return Ok(());
        }
        let me = self.incarnation();
        let of = |(event, target): &(EventId, Arc<str>)| Some((id_of(*event), self.targets.known(target)?));
        let (ids, numbers): (Vec<i64>, Vec<i16>) = given.iter().filter_map(of).unzip();
        let values: [Value<'_>; 3] = [(&ids, Type::INT8_ARRAY), (&numbers, Type::INT2_ARRAY), (&me, Type::INT4)];
        // If it fails, they are found as held by nobody.
        let rows = self.leasing.call(TRY, async |session| session.query(GIVE_BACK, &values).await).await;
        let rows = rows.inspect_err(|_| self.membership.looks.hurry())?;
        self.wake_freed(&rows)?;
        Ok(())
    }

    /// Wakes the targets of freed rows: `target, due, event`.
    pub(super) fn wake_freed(&self, rows: &[Row]) -> Result<(), Failure> {
        for row in rows {
            let (number, due, event): (i16, i64, i64) = (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?);
            if let Some(target) = self.targets.name(number) {
                self.wake_at(&target, UnixMillis(due), event_id(event));
            }
        }
        Ok(())
    }

    /// Frees what is dropped, also while nothing is leased, until the engine stops.
    pub(super) async fn return_dropped(self: Arc<Self>) {
        loop {
            tokio::select! {
                () = sleep(RETURN_EVERY) => {}
                () = self.stop.cancelled() => return,
            }
            if let Err(error) = self.give_back_dropped().await {
                // They are found as held without a lease.
                tracing::debug!(%error, "dropped leases not returned");
            }
        }
    }
}
