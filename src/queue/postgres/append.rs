//! Storing fresh events: all pushes that wait share one statement, and so one commit.
//!
//! Two workers take turns, each with a connection: one commits while the other's batch fills. So a push that comes alone
//! waits for nothing, and many share a flush, without a timer.
//!
//! - A push is answered only after a commit of ours that the synchronous standby has confirmed, a duplicate too: the row
//!   that makes it one may have been committed by a transaction whose own wait was cut off.
//! - Where the outcome is unknown, the same events are tried again with the same ids, until [`BUDGET`] is over. An id of
//!   ours among the duplicates is a try of ours that was committed after all.
//! - A fresh delivery that has a place in its target's inbox is stored as held by this replica, and is handed over in
//!   memory after the commit. So it never enters the index that leases are looked for in.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep};
use tokio_postgres::Row;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::Type;

use super::append_columns::Columns;
use super::engine::Engine;
use super::failure::Failure;
use super::locks::lock_users;
use super::pinned::{PinnedSession, Preparing};
use super::session::{BoundQuery, Session, Value};
use super::spool::SPOOL_AFTER;
use super::values::{event_id, id_of, open_reply};
use crate::clock::UnixMillis;
use crate::event::EventId;
use crate::queue::checksum;
use crate::queue::key_ring::SealedColumns;
use crate::queue::lease_table::LeaseGuard;
use crate::queue::{Enqueued, Error, Known, Lease, NewEvent};

/// The most events of one statement: bounds how long the first of them waits for the last.
pub(super) const BATCH: usize = 256;
/// How long a push may wait to be stored: then WeChat is answered 503 in time, and pushes again.
pub(super) const BUDGET: Duration = Duration::from_millis(4400);
/// The longest that one try may take: so there is time for another one, on a fresh connection.
const TRY: Duration = Duration::from_secs(2);
/// How long a batch waits for the proof that this replica lives.
const RENEWAL: Duration = Duration::from_millis(300);
/// The pause before the next try.
const PAUSE: Duration = Duration::from_millis(50);

/// An event to be stored, and who waits for it.
pub(super) struct Append {
    pub(super) new: NewEvent,
    pub(super) sealed: Option<SealedColumns>,
    pub(super) began: Instant,
    pub(super) deadline: Instant,
    pub(super) answer: oneshot::Sender<Result<Enqueued, Error>>,
    /// The places in inboxes that its deliveries have; made at the first try.
    pub(super) places: Vec<Option<Place>>,
    /// Whether an earlier try may have been committed.
    pub(super) was_sent: bool,
}

/// A place in a target's inbox, with the memory that the event takes there.
pub(super) struct Place {
    permit: mpsc::OwnedPermit<Lease>,
    guard: LeaseGuard,
}

/// What the store says of an event.
pub(super) enum Stored {
    /// It is stored; these of its targets' deliveries are not held by this replica.
    Fresh(Vec<i16>),
    Duplicate(EventId, Known),
}

/// The rows of `event`, `known` and `delivery`, and the changes of the tally. `{held}` says which deliveries wait for an
/// earlier one of their user.
macro_rules! append {
    ($held:literal) => {
        concat!(
            "WITH n AS (SELECT * FROM unnest($1::bytea[], $2::int8[], $3::int2[], $4::int2[], $5::int2[], $6::int8[], \
               $7::int8[], $8::text[], $9::text[], $10::text[], $11::text[], $12::text[], $13::text[], $14::text[], \
               $15::bytea[], $16::bytea[], $17::bytea[], $18::bytea[], $19::int8[], $20::int8[]) \
               AS n(k, id, targets, mode, key, received_at, asked_ms, account, app_id, msg_type, event, event_key, \
               from_user, traceparent, reply, query, body, clear, checksum, reply_checksum)), \
             fresh AS (INSERT INTO known (content_key, event) SELECT k, id FROM n ORDER BY k \
               ON CONFLICT DO NOTHING RETURNING event), \
             e AS (INSERT INTO event (id, content_key, targets, mode, key, received_at, asking_until, account, app_id, \
               msg_type, event, event_key, from_user, traceparent, reply, query, body, clear, checksum, reply_checksum) \
               SELECT n.id, n.k, n.targets, n.mode, n.key, n.received_at, CASE WHEN n.asked_ms > 0 THEN \
               (extract(epoch FROM clock_timestamp()) * 1000)::int8 + n.asked_ms ELSE 0 END, n.account, n.app_id, \
               n.msg_type, n.event, n.event_key, n.from_user, n.traceparent, n.reply, n.query, n.body, n.clear, \
               n.checksum, n.reply_checksum FROM n JOIN fresh ON fresh.event = n.id), \
             f AS (SELECT f.* FROM unnest($21::int8[], $22::int2[], $23::int4[], $24::int8[], $25::int8[]) WITH ORDINALITY \
               AS f(event, target, holder, due, usr, place) JOIN fresh ON fresh.event = f.event), \
             h AS (SELECT f.*, ", $held, " AS held FROM f ORDER BY f.place), \
             d AS (INSERT INTO delivery (event, target, state, holder, attempts, failures, due, usr, turn) \
               SELECT event, target, 0, CASE WHEN held THEN NULL ELSE holder END, 0, 0, \
                      CASE WHEN held THEN 9223372036854775807 ELSE due END, usr, \
                      CASE WHEN usr IS NULL THEN NULL ELSE nextval('turn') END FROM h \
               RETURNING event, target, holder), \
             t AS (INSERT INTO tally_delta (target, state, count) \
               SELECT target, 0, count(*) FROM d GROUP BY target \
               UNION ALL SELECT 0, 0, count(*) FROM fresh HAVING count(*) > 0 \
               UNION ALL SELECT 0, 1, count(*) FROM d HAVING count(*) > 0) \
             SELECT fresh.event, d.target, d.holder FROM fresh LEFT JOIN d ON d.event = fresh.event"
        )
    };
}

/// Where no target keeps order.
pub(super) const APPEND: &str = append!("false");
/// Where one does: a delivery waits for any pending one of its user, and for an earlier one of the same batch.
pub(super) const APPEND_IN_ORDER: &str = append!(
    "f.usr IS NOT NULL AND (row_number() OVER (PARTITION BY f.target, f.usr ORDER BY f.place) > 1 \
     OR (SELECT p.event FROM delivery p WHERE p.target = f.target AND p.usr = f.usr AND p.state = 0 \
         AND p.usr IS NOT NULL ORDER BY p.turn LIMIT 1) IS NOT NULL)"
);

/// What is known of events that were stored before, with a write of our own, so that its commit is waited for: what the
/// rows stand on is in the log before it.
pub(super) const DUPLICATES: &str = "WITH m AS MATERIALIZED (SELECT pg_logical_emit_message(true, 'wxrelay', '') AS lsn) \
    SELECT n.place, k.event, e.reply, e.reply_checksum, e.key, \
           CASE WHEN e.asking_until > 0 THEN e.asking_until - (extract(epoch FROM clock_timestamp()) * 1000)::int8 END, \
           m.lsn::text FROM m, \
           unnest($1::bytea[]) WITH ORDINALITY AS n(k, place) \
           LEFT JOIN known k ON k.content_key = n.k LEFT JOIN event e ON e.id = k.event AND e.content_key = n.k";

pub(super) const FREE: &str =
    "SELECT target FROM delivery WHERE event = $1 AND (state <> 0 OR holder IS DISTINCT FROM $2)";

/// Prepares a session for pushes.
pub(super) fn prepare(session: &Session) -> Preparing<'_> {
    Box::pin(async move {
        let (columns, keys) = (Columns::default(), Vec::<&[u8]>::new());
        let (values, keys): (_, [Value<'_>; 1]) = (columns.values(), [(&keys, Type::BYTEA_ARRAY)]);
        let append = |sql| BoundQuery { sql, values: &values };
        let duplicates = BoundQuery { sql: DUPLICATES, values: &keys };
        session.prepare_ahead(&[append(APPEND), append(APPEND_IN_ORDER), duplicates]).await
    })
}

impl Engine {
    /// Stores what comes through the channel, until it is closed.
    pub(super) async fn append_all(
        self: Arc<Self>,
        appends: Arc<tokio::sync::Mutex<mpsc::Receiver<Append>>>,
        session: PinnedSession,
        worker: usize,
    ) {
        loop {
            let mut batch = Vec::new();
            {
                let mut appends = appends.lock().await;
                tokio::select! {
                    biased;
                    _ = appends.recv_many(&mut batch, BATCH) => {}
                    // What waits is stored; what comes later is refused.
                    () = self.stop.cancelled() => {
                        appends.close();
                        appends.recv_many(&mut batch, BATCH).await;
                    }
                }
            }
            if batch.is_empty() {
                return;
            }
            self.health.begin_work(worker);
            match self.spool.as_ref() {
                Some(spool) => match spool.enter().await {
                    Some(_spooling) => spool.take(batch).await,
                    None => self.append(&session, batch).await,
                },
                None => self.append(&session, batch).await,
            }
            self.health.end_work(worker);
        }
    }

    async fn append(&self, session: &PinnedSession, mut batch: Vec<Append>) {
        if self.is_fenced() {
            // Behind the fence no target would be asked for a reply: PostgreSQL may have come back just now.
            self.membership.renew_now(RENEWAL).await;
        }
        for append in &mut batch {
            append.places = self.reserve_places(&append.new);
            // The keys of the store may have become known while it waited.
            if append.sealed.is_none() {
                append.sealed = self.sealer().and_then(|sealer| sealer.seal(&append.new).ok());
            }
        }
        let mut is_alone = batch.len() == 1;
        loop {
            let now = Instant::now();
            let (alive, late): (Vec<_>, Vec<_>) = batch.into_iter().partition(|append| append.deadline > now);
            late.into_iter().for_each(|append| self.fail(append, Error::Away));
            batch = alive;
            let Some(deadline) = batch.iter().map(|append| self.last_try(append)).min() else { return };
            if deadline <= now {
                return self.spool_batch(batch).await;
            }
            let began = Instant::now();
            let failure = match self.try_append(session, &batch, TRY.min(deadline - now)).await {
                Ok(stored) => {
                    self.note_commit(began.elapsed());
                    if stored.iter().any(|stored| matches!(stored, Stored::Fresh(_))) {
                        self.health.note_stored();
                    } else {
                        self.health.note_answer();
                    }
                    return batch.into_iter().zip(stored).for_each(|(append, stored)| self.finish(append, stored));
                }
                Err(failure) => failure,
            };
            match &failure {
                Failure::Data { .. } | Failure::Internal(_) if !is_alone => {
                    // One cannot fail another.
                    for append in std::mem::take(&mut batch) {
                        Box::pin(self.append(session, vec![append])).await;
                    }
                    return;
                }
                Failure::Refused { code, .. } if is_passing(code) => {}
                Failure::Refused { code, .. } if self.spool.is_some() => {
                    self.health.note_refusal(code);
                    return self.spool_batch(batch).await;
                }
                Failure::Data { .. } | Failure::Internal(_) | Failure::Refused { .. } => {
                    if let Failure::Refused { code, .. } = &failure {
                        self.health.note_refusal(code);
                    }
                    let failure = Arc::new(failure);
                    return batch.into_iter().for_each(|append| self.fail(append, Arc::clone(&failure).into()));
                }
                Failure::Away(_) | Failure::Busy | Failure::Unknown(_) | Failure::ReadOnly => {
                    self.health.note_away(&failure);
                    self.membership.looks.hurry();
                }
            }
            is_alone = batch.len() == 1;
            batch.iter_mut().for_each(|append| append.was_sent = true);
            sleep(PAUSE).await;
        }
    }

    /// Until when a push is tried here: then it goes to the spool, or fails.
    fn last_try(&self, append: &Append) -> Instant {
        if self.spool.is_some() { append.began + SPOOL_AFTER } else { append.deadline }
    }

    /// Gives pushes that PostgreSQL does not store to the spool. It may have stored them: their ids stay.
    async fn spool_batch(&self, mut batch: Vec<Append>) {
        let Some(spool) = &self.spool else { return };
        let _spooling = spool.begin().await;
        for append in &mut batch {
            self.release_places(std::mem::take(&mut append.places));
        }
        spool.take(batch).await;
    }

    pub(super) async fn try_append(
        &self,
        session: &PinnedSession,
        batch: &[Append],
        budget: Duration,
    ) -> Result<Vec<Stored>, Failure> {
        let names: Vec<Arc<str>> = batch.iter().flat_map(|append| append.new.targets.iter().cloned()).collect();
        session
            .call(budget, async |session| {
                self.targets.find_or_add(session, &names).await?;
                let mut stored: HashMap<EventId, Stored> = HashMap::new();
                // A key that is deleted in between is looked up in vain: then the event is fresh.
                for _ in 0..3 {
                    let open: Vec<&Append> =
                        batch.iter().filter(|append| !stored.contains_key(&append.new.event.id)).collect();
                    if open.is_empty() {
                        break;
                    }
                    for row in self.insert(session, &open).await? {
                        let free = stored.entry(event_id(row.try_get(0)?)).or_insert(Stored::Fresh(Vec::new()));
                        let (target, holder): (Option<i16>, Option<i32>) = (row.try_get(1)?, row.try_get(2)?);
                        if let (Stored::Fresh(free), Some(target), None) = (free, target, holder) {
                            free.push(target);
                        }
                    }
                    let open: Vec<&Append> =
                        open.into_iter().filter(|append| !stored.contains_key(&append.new.event.id)).collect();
                    if !open.is_empty() {
                        self.find_duplicates(session, &open, &mut stored).await?;
                    }
                }
                let outcome = |append: &Append| stored.remove(&append.new.event.id);
                let all: Option<Vec<Stored>> = batch.iter().map(outcome).collect();
                all.ok_or_else(|| Failure::Internal("an event is neither fresh nor a duplicate".to_owned()))
            })
            .await
    }

    async fn insert(&self, session: &Session, open: &[&Append]) -> Result<Vec<Row>, Failure> {
        let mut columns = Columns::default();
        // The same text twice in one batch: the second one is a duplicate of the first.
        let mut keys = HashSet::new();
        for append in open.iter().filter(|append| keys.insert(append.new.key)) {
            columns.add(self, append);
        }
        let values = columns.values();
        let users: HashSet<i64> = columns.usr.iter().flatten().copied().collect();
        if users.is_empty() {
            return session.query(APPEND, &values).await;
        }
        // Before the snapshot that looks for earlier deliveries of the users.
        let lock = lock_users(users.into_iter());
        let query = BoundQuery { sql: APPEND_IN_ORDER, values: &values };
        Ok(session.transact(&lock, &[query]).await?.into_iter().next().unwrap_or_default())
    }

    async fn find_duplicates(
        &self,
        session: &Session,
        open: &[&Append],
        stored: &mut HashMap<EventId, Stored>,
    ) -> Result<(), Failure> {
        let keys: Vec<&[u8]> = open.iter().map(|append| &append.new.key.0[..]).collect();
        for row in session.query(DUPLICATES, &[(&keys, Type::BYTEA_ARRAY)]).await? {
            let place: i64 = row.try_get(0)?;
            let Some(event) = row.try_get::<_, Option<i64>>(1)?.map(event_id) else { continue };
            let Some(append) = usize::try_from(place - 1).ok().and_then(|place| open.get(place)) else { continue };
            let id = append.new.event.id;
            if event == id && append.was_sent {
                // It was committed after all.
                stored.insert(id, Stored::Fresh(self.free_deliveries(session, id).await?));
                continue;
            }
            // Also where the time is over: the reply may be on its way to the store, until somebody decides that there is none.
            let known = if let Some(asked) = row.try_get::<_, Option<i64>>(5)? {
                Known::Asking(UnixMillis::now().after(Duration::from_millis(u64::try_from(asked).unwrap_or(0))))
            } else {
                Known::Answered(self.open_stored_reply(event, &row, [2, 3, 4])?)
            };
            stored.insert(id, Stored::Duplicate(event, known));
        }
        Ok(())
    }

    /// The targets of an event's deliveries that this replica does not hold.
    async fn free_deliveries(&self, session: &Session, id: EventId) -> Result<Vec<i16>, Failure> {
        let values: [Value<'_>; 2] = [(&id_of(id), Type::INT8), (&self.incarnation(), Type::INT4)];
        let rows = session.query(FREE, &values).await?;
        rows.iter().map(|row| Ok(row.try_get(0)?)).collect()
    }

    /// The reply in the clear, of a row whose columns `reply`, `reply_checksum` and `key` are at these places. One that is
    /// damaged or cannot be decrypted counts as none, so that WeChat's retry is answered all the same.
    pub(super) fn open_stored_reply(
        &self,
        event: EventId,
        row: &Row,
        [reply, checksum, key]: [usize; 3],
    ) -> Result<Option<String>, Failure> {
        let Some(reply) = row.try_get::<_, Option<Vec<u8>>>(reply)? else { return Ok(None) };
        if !checksum::is_reply_intact(event, &reply, row.try_get(checksum)?) {
            return Ok(None);
        }
        let opened = open_reply(self.keys(), event, row.try_get(key)?, reply);
        Ok(opened.inspect_err(|error| tracing::error!(%event, %error, "stored reply unreadable")).ok())
    }

    /// Places for the event's deliveries, where there are any: in the order of its targets.
    fn reserve_places(&self, new: &NewEvent) -> Vec<Option<Place>> {
        let place = |target: &Arc<str>| {
            let is_awaited = new.awaited.iter().any(|(awaited, _)| awaited == target);
            if self.is_fenced() {
                return None;
            }
            let permit = self.inboxes.reserve(target, is_awaited)?;
            let guard = self.leases.lock().reserve(target, &new.event, is_awaited)?;
            Some(Place { permit, guard })
        };
        new.targets.iter().map(place).collect()
    }

    /// Does what follows from a commit, and answers.
    fn finish(&self, append: Append, stored: Stored) {
        let Append { new, answer, places, .. } = append;
        let outcome = match stored {
            Stored::Fresh(free) => {
                self.hand_over_fresh(new, places, &free);
                Enqueued::Fresh
            }
            Stored::Duplicate(id, reply) => {
                self.release_places(places);
                Enqueued::Duplicate { id, reply }
            }
        };
        answer.send(Ok(outcome)).ok();
    }

    /// Gives the first leases of a fresh event to its targets' inboxes; what has no place there waits in the store.
    fn hand_over_fresh(&self, mut new: NewEvent, places: Vec<Option<Place>>, free: &[i16]) {
        for (target, place) in new.targets.iter().zip(places) {
            let is_free = self.targets.known(target).is_some_and(|number| free.contains(&number));
            match place {
                // A delivery that waited for its turn may have been leased from the store, while it was not known whether
                // the push is stored.
                Some(Place { permit, guard }) if !is_free && self.leases.lock().confirm(&guard) => {
                    let awaited = new.awaited.iter().position(|(awaited, _)| awaited == target);
                    let reply = awaited.map(|place| new.awaited.swap_remove(place).1);
                    let (event, target) = (Arc::clone(&new.event), Arc::clone(target));
                    permit.send(Lease { event, target, attempt: 1, failures: 0, reply, guard });
                }
                Some(place) => self.leases.lock().drop_guard(place.guard),
                None => self.wake_at(target, new.event.received_at, new.event.id),
            }
        }
    }

    fn release_places(&self, places: Vec<Option<Place>>) {
        places.into_iter().flatten().for_each(|place| self.leases.lock().drop_guard(place.guard));
    }

    fn fail(&self, append: Append, error: Error) {
        let Append { answer, places, .. } = append;
        self.release_places(places);
        answer.send(Err(error)).ok();
    }
}

/// Whether another try may succeed: a conflict with another transaction, or too many connections.
fn is_passing(code: &SqlState) -> bool {
    code.code().starts_with("40") || *code == SqlState::LOCK_NOT_AVAILABLE || *code == SqlState::TOO_MANY_CONNECTIONS
}
