//! Storing outcomes: settlements, replies and notes share a statement, and so a commit.
//!
//! A settlement changes a delivery only while this replica holds it: one that another replica has taken over, or that an
//! operator has cancelled, stays as it is. Outcomes wait as long as PostgreSQL is away. One whose commit was cut off is
//! stored again: where it was committed after all, its attempt is counted already, and it changes nothing more.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep, timeout_at};
use tokio_postgres::types::Type;

use super::engine::Engine;
use super::failure::Failure;
use super::held_replies::{give_with, split_settled, states_of};
use super::locks::lock_users;
use super::pinned::{PinnedSession, Preparing};
use super::session::{BoundQuery, Session, Value};
use super::settle_columns::Columns;
use super::values::{event_id, id_of, text};
use crate::clock::UnixMillis;
use crate::event::EventId;
use crate::queue::checksum;
use crate::queue::encryption::SealContext;
use crate::queue::lease_table::Token;
use crate::queue::{AttemptNote, Error, GivenReply, ReplyState, Settlement};

/// The most changes of one statement.
const BATCH: usize = 256;
/// How long outcomes wait for others to share a commit, and how many are enough: no push waits for them.
const MAX_WAIT: Duration = Duration::from_millis(5);
const BATCH_ENOUGH: usize = 64;
/// The longest that one try may take, and the pause before the next one.
const TRY: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(200);

type Answer<T = ()> = oneshot::Sender<Result<T, Error>>;

/// A change of what is stored.
pub(super) enum Change {
    Settle {
        settlement: Settlement,
        /// Who must hold the delivery.
        holder: Option<i32>,
        /// The lease that it ends. By then another try may have freed the delivery, and it may be leased again.
        lease: Option<Token>,
        answer: Answer<Option<ReplyState>>,
    },
    /// The reply that an event was answered with; `None`: none comes any more.
    Reply {
        event: EventId,
        reply: Option<String>,
        /// The same for the ledger of replies, where the account keeps them.
        given: Option<Box<GivenReply>>,
        /// Told false if it was decided before that there is none.
        answer: Option<oneshot::Sender<Result<bool, Error>>>,
    },
    Annotate {
        note: AttemptNote,
        answer: Answer,
    },
}

pub(super) const SETTLE: &str = "WITH s AS (SELECT * FROM unnest($1::int8[], $2::int2[], $3::int4[], $4::int2[], $5::int8[], \
      $6::int4[], $7::int4[], $8::int8[], $9::int8[], $10::int2[], $11::text[], $12::bytea[]) \
      AS s(event, target, holder, state, due, number, failed, at, duration, status, error, answer)), \
    u AS (UPDATE delivery d SET state = s.state, holder = NULL, due = coalesce(s.due, d.due), \
            ended_at = CASE WHEN s.state = 0 THEN NULL ELSE $13::int8 END, attempts = coalesce(s.number, d.attempts), \
            failures = d.failures + s.failed \
          FROM s WHERE d.event = s.event AND d.target = s.target AND d.state = 0 \
             AND coalesce(d.holder, s.holder) IS NOT DISTINCT FROM s.holder \
             AND (s.number IS NULL OR d.attempts < s.number) \
          RETURNING d.event, d.target, d.usr, s.state), \
    a AS (INSERT INTO attempt (event, target, number, at, duration_us, status, error, answer) \
          SELECT s.event, s.target, s.number, s.at, s.duration, s.status, s.error, s.answer \
            FROM s JOIN u ON u.event = s.event AND u.target = s.target WHERE s.number IS NOT NULL \
          ON CONFLICT (event, target, number) DO UPDATE SET at = excluded.at, duration_us = excluded.duration_us, \
             status = excluded.status, error = excluded.error, answer = excluded.answer), \
    t AS (INSERT INTO tally_delta (target, state, count) SELECT target, state, sum(change) \
            FROM (SELECT target, 0::int2 AS state, -1 AS change FROM u UNION ALL SELECT target, state, 1 FROM u) c \
           GROUP BY target, state HAVING sum(change) <> 0) \
    SELECT event, target, usr, state FROM u";

/// The users of deliveries, where order is kept.
pub(super) const USERS: &str = "SELECT d.target, d.usr FROM unnest($1::int8[], $2::int2[]) AS s(event, target) \
    JOIN delivery d ON d.event = s.event AND d.target = s.target WHERE d.usr IS NOT NULL";

/// Makes the users' next deliveries due, as of their arrival: the first of each that is pending.
pub(super) const RELEASE: &str = "WITH n AS MATERIALIZED (SELECT k.target, (SELECT f.event FROM delivery f \
          WHERE f.target = k.target AND f.usr = k.usr AND f.state = 0 AND f.usr IS NOT NULL \
          ORDER BY f.turn LIMIT 1) AS event \
      FROM (SELECT DISTINCT target, usr FROM unnest($1::int2[], $2::int8[]) AS u(target, usr)) k) \
    UPDATE delivery d SET due = least(d.event >> 20, $3::int8) FROM n \
     WHERE d.event = n.event AND d.target = n.target AND d.state + 0 = 0 AND d.due = 9223372036854775807 \
    RETURNING d.target, d.due, d.event";

/// Holds deliveries that are to be tried again, if an earlier one of their user has become pending meanwhile.
pub(super) const HOLD: &str = "UPDATE delivery d SET due = 9223372036854775807 \
    FROM unnest($1::int8[], $2::int2[]) AS s(event, target) \
   WHERE d.event = s.event AND d.target = s.target AND d.state + 0 = 0 AND d.holder IS NULL \
     AND (SELECT p.turn FROM delivery p WHERE p.target = d.target AND p.usr = d.usr AND p.state = 0 \
                    AND p.usr IS NOT NULL ORDER BY p.turn LIMIT 1) < d.turn";

pub(super) const REPLY: &str = "UPDATE event e SET asking_until = CASE WHEN r.reply IS NULL THEN -1 ELSE 0 END, \
          reply = coalesce(r.reply, e.reply), \
          reply_checksum = coalesce(r.checksum, e.reply_checksum) \
    FROM unnest($1::int8[], $2::bytea[], $3::int2[], $4::int8[]) AS r(event, reply, key, checksum) \
   WHERE e.id = r.event AND CASE WHEN r.reply IS NULL THEN e.reply IS NULL \
         ELSE e.key IS NOT DISTINCT FROM r.key AND (e.asking_until > 0 OR e.asking_until = 0 AND e.reply IS NULL) END";

/// The events that another replica has answered otherwise. A reply that is sealed anew meanwhile is none of these.
pub(super) const DECIDED: &str = "SELECT e.id FROM event e, unnest($1::int8[], $2::bytea[], $3::int2[]) AS r(event, reply, key) \
    WHERE e.id = r.event AND r.reply IS NOT NULL AND e.reply IS DISTINCT FROM r.reply AND e.key IS NOT DISTINCT FROM r.key";

pub(super) const KEYS: &str = "SELECT id, key FROM event WHERE id = ANY($1::int8[])";

pub(super) const ANNOTATE: &str = "UPDATE attempt a SET error = n.error \
    FROM unnest($1::int8[], $2::int2[], $3::int4[], $4::text[]) AS n(event, target, number, error) \
   WHERE a.event = n.event AND a.target = n.target AND a.number = n.number";

/// Prepares a session for outcomes.
pub(super) fn prepare(session: &Session) -> Preparing<'_> {
    Box::pin(async move {
        let columns = Columns::default();
        session.prepare_ahead(&[BoundQuery { sql: SETTLE, values: &columns.values(&0) }]).await
    })
}

impl Engine {
    /// Stores what comes through the channel, until it is closed.
    pub(super) async fn settle_all(
        self: Arc<Self>,
        changes: Arc<tokio::sync::Mutex<mpsc::Receiver<Change>>>,
        session: PinnedSession,
        worker: usize,
    ) {
        let mut batch = Vec::new();
        loop {
            {
                let mut changes = changes.lock().await;
                if batch.is_empty() {
                    tokio::select! {
                        biased;
                        _ = changes.recv_many(&mut batch, BATCH) => {}
                        () = self.stop.cancelled() => {
                            changes.close();
                            changes.recv_many(&mut batch, BATCH).await;
                        }
                    }
                }
                if batch.is_empty() {
                    return;
                }
                gather(&mut batch, &mut changes).await;
            }
            self.health.begin_work(worker);
            batch = self.store(&session, batch).await;
            self.health.end_work(worker);
        }
    }

    /// Stores a batch; returns what must wait for the next one.
    async fn store(&self, session: &PinnedSession, batch: Vec<Change>) -> Vec<Change> {
        let (batch, later) = split_repeated(batch);
        let mut was_sent = false;
        loop {
            let began = Instant::now();
            let failure = match self.try_store(session, &batch, was_sent).await {
                Ok(stored) => {
                    self.note_commit(began.elapsed());
                    self.health.note_answer();
                    batch.into_iter().for_each(|change| self.conclude(change, &stored));
                    return later;
                }
                Err(failure) => failure,
            };
            match &failure {
                Failure::Data { .. } | Failure::Internal(_) if batch.len() > 1 => {
                    for change in batch {
                        Box::pin(self.store(session, vec![change])).await;
                    }
                    return later;
                }
                Failure::Data { .. } | Failure::Internal(_) => {
                    let failure = Arc::new(failure);
                    batch.into_iter().for_each(|change| change.fail(&failure));
                    return later;
                }
                Failure::Refused { .. } => {
                    let failure = Arc::new(failure);
                    batch.into_iter().for_each(|change| change.fail(&failure));
                    sleep(PAUSE).await;
                    return later;
                }
                Failure::Away(_) | Failure::Busy | Failure::Unknown(_) | Failure::ReadOnly => {
                    was_sent |= matches!(failure, Failure::Unknown(_));
                    self.health.note_away(&failure);
                    if self.stop.is_cancelled() {
                        let failure = Arc::new(failure);
                        batch.into_iter().for_each(|change| change.fail(&failure));
                        return later;
                    }
                    sleep(PAUSE).await;
                }
            }
        }
    }

    /// Stores a batch.
    async fn try_store(
        &self,
        session: &PinnedSession,
        batch: &[Change],
        was_sent: bool,
    ) -> Result<StoredBatch, Failure> {
        let names = batch.iter().filter_map(Change::target).cloned().collect::<Vec<_>>();
        session
            .call(TRY, async |session| {
                self.targets.find(session, &names).await?;
                let (is_whole, replies) = self.store_settlements(session, batch).await?;
                let refused = self.store_replies(session, batch).await?;
                self.store_notes(session, batch).await?;
                if was_sent || !is_whole || !refused.is_empty() {
                    // What changed nothing now stands on commits that perhaps nobody has confirmed.
                    session.confirm_earlier().await?;
                }
                Ok(StoredBatch { refused, replies })
            })
            .await
    }

    /// Stores the settlements; returns whether each of them has changed its delivery, and what became of the replies.
    async fn store_settlements(
        &self,
        session: &Session,
        batch: &[Change],
    ) -> Result<(bool, Vec<(EventId, ReplyState)>), Failure> {
        let answers = self.sealed_answers(session, batch).await?;
        let (mut columns, mut gives, mut ends) = (Columns::default(), Vec::new(), Vec::new());
        let mut in_order = false;
        let now = UnixMillis::now();
        for (change, answer) in batch.iter().zip(answers) {
            let Change::Settle { settlement, holder, .. } = change else { continue };
            // A target without a number never had a delivery.
            let Some(target) = self.targets.known(&settlement.target) else { continue };
            in_order |= self.inboxes.in_order(&settlement.target);
            columns.add(settlement, target, *holder, answer, now);
            match split_settled(settlement.reply.as_ref()) {
                (Some(given), _) => gives.push(self.give_values(session, given, target).await?),
                (None, true) => ends.push((id_of(settlement.event), target)),
                (None, false) => {}
            }
        }
        if columns.event.is_empty() {
            return Ok((true, Vec::new()));
        }
        let now = now.0;
        let values = columns.values(&now);
        let settle = BoundQuery { sql: SETTLE, values: &values };
        let ids: [Value<'_>; 2] = [(&columns.event, Type::INT8_ARRAY), (&columns.target, Type::INT2_ARRAY)];
        let given_to = gives.iter().map(|give| give.number);
        if !in_order {
            let (rows, became) = if gives.is_empty() && ends.is_empty() {
                (session.query(settle.sql, settle.values).await?, Vec::new())
            } else {
                let rows = give_with(session, &lock_users(given_to), &[settle], &gives, &ends).await?;
                let became = states_of(&gives, rows.get(1..).unwrap_or_default())?;
                (rows.into_iter().next().unwrap_or_default(), became)
            };
            // Of a target that kept order until now.
            let users = rows.iter().map(|row| Ok((row.try_get(1)?, row.try_get(2)?)));
            let users: Vec<(i16, Option<i64>)> = users.collect::<Result<_, Failure>>()?;
            let users: Vec<_> = users.into_iter().filter_map(|(target, usr)| Some((target, usr?))).collect();
            self.release(session, &users, now).await?;
            return Ok((rows.len() == columns.event.len(), became));
        }
        let users = session.query(USERS, &ids).await?;
        let users = users.iter().map(|row| Ok((row.try_get(0)?, row.try_get(1)?)));
        let users: Vec<(i16, i64)> = users.collect::<Result<_, Failure>>()?;
        let (targets, numbers): (Vec<i16>, Vec<i64>) = users.iter().copied().unzip();
        let release: [Value<'_>; 3] = [(&targets, Type::INT2_ARRAY), (&numbers, Type::INT8_ARRAY), (&now, Type::INT8)];
        let queries = [settle, BoundQuery { sql: HOLD, values: &ids }, BoundQuery { sql: RELEASE, values: &release }];
        // The lock comes before the snapshot that looks for the next delivery: a push of the user waits for it, too.
        let lock = lock_users(numbers.iter().copied().chain(given_to));
        let rows = give_with(session, &lock, &queries, &gives, &ends).await?;
        self.wake_freed(rows.get(2).map_or(&[], Vec::as_slice))?;
        let became = states_of(&gives, rows.get(3..).unwrap_or_default())?;
        Ok((rows.first().map_or(0, Vec::len) == columns.event.len(), became))
    }

    /// Makes the next deliveries of these users due, in a transaction of its own.
    pub(super) async fn release(&self, session: &Session, users: &[(i16, i64)], now: i64) -> Result<(), Failure> {
        if users.is_empty() {
            return Ok(());
        }
        let (targets, numbers): (Vec<i16>, Vec<i64>) = users.iter().copied().unzip();
        let values: [Value<'_>; 3] = [(&targets, Type::INT2_ARRAY), (&numbers, Type::INT8_ARRAY), (&now, Type::INT8)];
        let queries = [BoundQuery { sql: RELEASE, values: &values }];
        let rows = session.transact(&lock_users(numbers.iter().copied()), &queries).await?;
        rows.iter().try_for_each(|rows| self.wake_freed(rows))
    }

    /// The answers of the batch as they are to be stored: each like its event.
    async fn sealed_answers(&self, session: &Session, batch: &[Change]) -> Result<Vec<Option<Vec<u8>>>, Failure> {
        let answer = |change: &Change| match change {
            Change::Settle { settlement, .. } => settlement.attempt.as_ref()?.answer.clone(),
            Change::Reply { .. } | Change::Annotate { .. } => None,
        };
        let mut answers: Vec<_> = batch.iter().map(answer).collect();
        if self.keys().is_empty() || answers.iter().all(Option::is_none) {
            return Ok(answers);
        }
        let keys = self.keys_of(session, batch.iter().filter_map(Change::event)).await?;
        for (change, answer) in batch.iter().zip(&mut answers) {
            let (Change::Settle { settlement, .. }, Some(clear)) = (change, answer.as_mut()) else { continue };
            let key = keys.iter().find(|(event, _)| *event == settlement.event).and_then(|(_, key)| *key);
            let (Some(key), Some(target)) = (key, self.targets.known(&settlement.target)) else { continue };
            let number = settlement.attempt.as_ref().map_or(0, |attempt| attempt.number);
            let context = SealContext::Answer(settlement.event, target.into(), number.into());
            let sealed = self.keys().seal(key.into(), context, clear);
            *clear = sealed.map_err(|error| Failure::Internal(error.to_string()))?;
        }
        Ok(answers)
    }

    pub(super) async fn keys_of(
        &self,
        session: &Session,
        events: impl Iterator<Item = EventId>,
    ) -> Result<Vec<(EventId, Option<i16>)>, Failure> {
        let ids: Vec<i64> = events.map(id_of).collect();
        let rows = session.query(KEYS, &[(&ids, Type::INT8_ARRAY)]).await?;
        rows.iter().map(|row| Ok((event_id(row.try_get(0)?), row.try_get(1)?))).collect()
    }

    async fn store_replies(&self, session: &Session, batch: &[Change]) -> Result<HashSet<EventId>, Failure> {
        let replies: Vec<_> = batch
            .iter()
            .filter_map(|change| match change {
                Change::Reply { event, reply, .. } => Some((*event, reply.as_deref())),
                Change::Settle { .. } | Change::Annotate { .. } => None,
            })
            .collect();
        if replies.is_empty() {
            return Ok(HashSet::new());
        }
        let is_given = replies.iter().any(|(_, reply)| reply.is_some());
        let keys = if is_given && !self.keys().is_empty() {
            self.keys_of(session, replies.iter().map(|reply| reply.0)).await?
        } else {
            Vec::new()
        };
        let (mut ids, mut stored, mut numbers, mut checksums) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for (event, reply) in replies {
            let key = keys.iter().find(|(id, _)| *id == event).and_then(|(_, key)| *key);
            let value = match (reply, key) {
                (Some(reply), Some(key)) => {
                    let sealed = self.keys().seal(key.into(), SealContext::Reply(event), reply.as_bytes());
                    Some(sealed.map_err(|error| Failure::Internal(error.to_string()))?)
                }
                (reply, _) => reply.map(|reply| reply.as_bytes().to_vec()),
            };
            ids.push(id_of(event));
            checksums.push(value.as_deref().map(|value| checksum::of_reply(event, value)));
            stored.push(value);
            numbers.push(key);
        }
        let values: [Value<'_>; 4] = [
            (&ids, Type::INT8_ARRAY),
            (&stored, Type::BYTEA_ARRAY),
            (&numbers, Type::INT2_ARRAY),
            (&checksums, Type::INT8_ARRAY),
        ];
        let mut gives = Vec::new();
        for change in batch {
            let Change::Reply { given: Some(given), .. } = change else { continue };
            let Some(target) = self.targets.known(&given.target) else { continue };
            gives.push(self.give_values(session, given, target).await?);
        }
        if gives.is_empty() {
            session.query(REPLY, &values).await?;
        } else {
            // Behind it: a reply that was refused is held.
            let reply = BoundQuery { sql: REPLY, values: &values };
            let lock = lock_users(gives.iter().map(|give| give.number));
            give_with(session, &lock, &[reply], &gives, &[]).await?;
        }
        if !is_given {
            return Ok(HashSet::new());
        }
        let decided = session.query(DECIDED, values.get(..3).unwrap_or_default()).await?;
        decided.iter().map(|row| Ok(event_id(row.try_get(0)?))).collect()
    }

    async fn store_notes(&self, session: &Session, batch: &[Change]) -> Result<(), Failure> {
        let (mut ids, mut targets, mut numbers, mut errors) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for change in batch {
            let Change::Annotate { note, .. } = change else { continue };
            let Some(target) = self.targets.known(&note.target) else { continue };
            ids.push(id_of(note.event));
            targets.push(target);
            numbers.push(i32::try_from(note.attempt).unwrap_or(i32::MAX));
            errors.push(note.error.as_deref().map(|error| text(error).into_owned()));
        }
        if ids.is_empty() {
            return Ok(());
        }
        let values: [Value<'_>; 4] = [
            (&ids, Type::INT8_ARRAY),
            (&targets, Type::INT2_ARRAY),
            (&numbers, Type::INT4_ARRAY),
            (&errors, Type::TEXT_ARRAY),
        ];
        session.query(ANNOTATE, &values).await.map(drop)
    }

    /// Does what follows from a committed change, and answers.
    fn conclude(&self, change: Change, stored: &StoredBatch) {
        match change {
            Change::Settle { settlement, lease, answer, .. } => {
                if let Some(lease) = lease {
                    self.leases.lock().end_lease(&settlement.target, settlement.event, lease);
                }
                if let Some(due) = settlement.next_due(UnixMillis::now()) {
                    self.wake_at(&settlement.target, due, settlement.event);
                }
                let became = stored.replies.iter().find(|(event, _)| *event == settlement.event);
                answer.send(Ok(became.map(|(_, state)| *state))).ok();
            }
            Change::Reply { event, answer, .. } => {
                answer.map(|answer| answer.send(Ok(!stored.refused.contains(&event))));
            }
            Change::Annotate { answer, .. } => {
                answer.send(Ok(())).ok();
            }
        }
    }
}

impl Change {
    fn target(&self) -> Option<&Arc<str>> {
        match self {
            Self::Settle { settlement, .. } => Some(&settlement.target),
            Self::Annotate { note, .. } => Some(&note.target),
            Self::Reply { given, .. } => given.as_ref().map(|given| &given.target),
        }
    }

    fn event(&self) -> Option<EventId> {
        match self {
            Self::Settle { settlement, .. } => Some(settlement.event),
            Self::Annotate { .. } | Self::Reply { .. } => None,
        }
    }

    fn fail(self, failure: &Arc<Failure>) {
        let error = Error::from(Arc::clone(failure));
        match self {
            Self::Settle { answer, .. } => drop(answer.send(Err(error))),
            Self::Annotate { answer, .. } => drop(answer.send(Err(error))),
            Self::Reply { answer, .. } => drop(answer.map(|answer| answer.send(Err(error)))),
        }
    }
}

/// What storing a batch did.
struct StoredBatch {
    /// The events whose reply was not stored, as it was decided before that they have none.
    refused: HashSet<EventId>,
    /// What became of replies that are new.
    replies: Vec<(EventId, ReplyState)>,
}

/// Waits for company, unless something in the batch is urgent: WeChat waits for a reply.
async fn gather(batch: &mut Vec<Change>, changes: &mut mpsc::Receiver<Change>) {
    let deadline = Instant::now() + MAX_WAIT;
    while batch.len() < BATCH_ENOUGH && !batch.iter().any(|change| matches!(change, Change::Reply { .. })) {
        match timeout_at(deadline, changes.recv()).await {
            Ok(Some(change)) => batch.push(change),
            Ok(None) | Err(_) => return,
        }
    }
}

/// One statement changes a row once: a second change of it waits for the next.
fn split_repeated(batch: Vec<Change>) -> (Vec<Change>, Vec<Change>) {
    let mut seen = HashSet::new();
    batch.into_iter().partition(|change| match change {
        Change::Settle { settlement, .. } => seen.insert((settlement.event, Some(settlement.target.clone()), false)),
        Change::Annotate { note, .. } => seen.insert((note.event, Some(note.target.clone()), true)),
        Change::Reply { event, .. } => seen.insert((*event, None, false)),
    })
}
