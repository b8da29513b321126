//! The table `held_reply`: what became of the replies of accounts that keep them (`queue/held.rs`).
//!
//! Statements about one user's replies exclude each other by that user's lock, which comes before their snapshots.

use tokio_postgres::Row;
use tokio_postgres::types::Type;

use super::engine::{Engine, Postgres};
use super::failure::Failure;
use super::locks::lock_users;
use super::pinned::PinnedSession;
use super::session::{BoundQuery, Session, Value};
use super::settle::Change;
use super::values::{event_id, id_of, text};
use crate::clock::UnixMillis;
use crate::event::EventId;
use crate::queue::encryption::SealContext;
use crate::queue::held::{
    GivenReply, HeldQuery, HeldReply, HeldState, LateReply, ReplyState, ReplyUse, SettledReply, TakeReply,
};
use crate::queue::persons::user_number;
use crate::queue::{Error, checksum};

const TRY: std::time::Duration = std::time::Duration::from_secs(2);

/// Stores a reply, unless it is stored: `$5` is 0 for one that nobody waited for, 1 for one that was sent, 2 for one whose
/// beginning was sent, 3 for one that another was used for. Where another replica has decided that the event has none, it
/// was not sent. Returns its state, if it is new.
pub(super) const GIVE: &str = "WITH r AS MATERIALIZED (SELECT no, state, taken, \
        coalesce(target = $2 AND attempt = $3 AND at = $4, false) AS same FROM held_reply WHERE event = $1), \
    p AS MATERIALIZED (SELECT CASE WHEN EXISTS (SELECT FROM event WHERE id = $1 AND asking_until = -1) AND $5 < 3 THEN 0 \
        ELSE $5::int4 END AS used), \
    f AS MATERIALIZED (SELECT p.used, CASE \
        WHEN EXISTS (SELECT FROM r WHERE same) THEN NULL WHEN p.used = 3 THEN 4 \
        WHEN EXISTS (SELECT FROM r WHERE state NOT IN (0, 4, 7) AND NOT (p.used IN (1, 2) AND state = 2 AND taken = 0)) \
          THEN 4 \
        WHEN p.used IN (1, 2) THEN p.used \
        WHEN (SELECT count(*) FROM held_reply WHERE account = $8 AND usr = $9 AND expires_at > $12 AND state = 2) >= 5 \
          THEN 5 ELSE 2 END::int2 AS state FROM p), \
    i AS (INSERT INTO held_reply (event, no, target, state, attempt, at, taken, expires_at, account, usr, checksum, content) \
        SELECT $1, (SELECT coalesce(max(no), 0) + 1 FROM r), $2, f.state, $3, $4, CASE WHEN f.used = 2 THEN $6 ELSE 0 END, \
          CASE WHEN f.state = 2 THEN $7::int8 END, $8, $9, CASE WHEN f.state = 2 THEN $10::int8 END, \
          CASE WHEN f.state = 2 THEN $11::bytea END \
          FROM f WHERE f.state IS NOT NULL AND EXISTS (SELECT FROM event WHERE id = $1) RETURNING state), \
    v AS (UPDATE held_reply h SET state = CASE WHEN r.same THEN f.used ELSE 4 END::int2, \
          taken = CASE WHEN r.same AND f.used = 2 THEN $6 ELSE h.taken END, \
          expires_at = CASE WHEN r.same AND f.used = 2 THEN h.expires_at END, \
          checksum = CASE WHEN r.same AND f.used = 2 THEN h.checksum END, \
          content = CASE WHEN r.same AND f.used = 2 THEN h.content END \
        FROM r, f WHERE h.event = $1 AND h.no = r.no AND r.state = 2 AND r.taken = 0 AND f.used IN (1, 2) \
        RETURNING h.state), \
    d AS (DELETE FROM held_reply h USING i WHERE h.event = $1 AND h.state IN (0, 7) AND i.state <> 4), \
    c AS (SELECT 0::int2 AS state, 1 AS change FROM i UNION ALL SELECT state, 1 FROM i \
        UNION ALL SELECT 2::int2, -1 FROM v UNION ALL SELECT state, 1 FROM v), \
    t AS (INSERT INTO tally_delta (target, state, count) SELECT -1, state, sum(change) FROM c GROUP BY state \
        HAVING sum(change) <> 0) \
    SELECT state FROM i";

/// Notes that a target gave no reply, and that no attempt follows.
pub(super) const END_WAIT: &str = "UPDATE held_reply SET state = 7 WHERE event = $1 AND state = 0 AND target = $2";

const FIND: &str = "SELECT h.event, h.state, h.taken, h.at, h.checksum, h.content, e.key, h.no, \
      EXISTS (SELECT FROM delivery d WHERE d.event = h.event AND d.target = h.target AND d.state = 0) \
    FROM held_reply h JOIN event e ON e.id = h.event \
   WHERE h.account = $1 AND h.usr = $2 AND h.expires_at > $3 AND ($4::int8 IS NULL OR h.event = $4) \
   ORDER BY h.taken = 0, h.event, h.no";

const AWAIT_LATE: &str = "WITH w AS MATERIALIZED (SELECT d.target FROM target t JOIN delivery d ON d.event = $1 \
        AND d.target = t.no AND d.state = 0 WHERE t.name = ANY($2::text[]) \
        AND NOT EXISTS (SELECT FROM held_reply WHERE event = $1 AND state NOT IN (0, 7))), \
    u AS (UPDATE held_reply h SET expires_at = $3, state = 0 FROM w WHERE h.event = $1 AND h.target = w.target \
        AND h.state IN (0, 7) RETURNING h.target) \
    INSERT INTO held_reply (event, no, target, state, expires_at, account, usr) \
    SELECT $1, (SELECT coalesce(max(no), 0) FROM held_reply WHERE event = $1) + row_number() OVER (), w.target, 0, $3, $4, $5 \
      FROM w WHERE NOT EXISTS (SELECT FROM u WHERE u.target = w.target)";

const TAKE: &str = "WITH u AS (UPDATE held_reply SET state = $4, taken = $5, expires_at = $6, picked_by = $7, \
        content = CASE WHEN $4::int2 = 2 THEN content END, checksum = CASE WHEN $4::int2 = 2 THEN checksum END \
        WHERE event = $1 AND no = $2 AND taken = $3 AND state = 2 RETURNING 1), \
    e AS (UPDATE event SET reply = $8, reply_checksum = $9, asking_until = 0 WHERE id = $7 AND EXISTS (SELECT FROM u)), \
    t AS (INSERT INTO tally_delta (target, state, count) SELECT -1, c.state, c.change FROM u \
        CROSS JOIN (VALUES (2::int2, -1), ($4::int2, 1)) AS c(state, change) WHERE $4::int2 <> 2) \
    SELECT count(*) FROM u";

const FORGET_ENDED: &str = "DELETE FROM held_reply WHERE event = $1 AND state = 7";

const EXPIRE: &str = "WITH o AS MATERIALIZED (SELECT event, no, state FROM held_reply WHERE expires_at <= $1 \
        ORDER BY expires_at LIMIT 1000 FOR UPDATE SKIP LOCKED), \
    d AS (DELETE FROM held_reply h USING o WHERE h.event = o.event AND h.no = o.no AND o.state <> 2), \
    u AS (UPDATE held_reply h SET state = 6, expires_at = NULL, checksum = NULL, content = NULL FROM o \
        WHERE h.event = o.event AND h.no = o.no AND o.state = 2 RETURNING h.account), \
    t AS (INSERT INTO tally_delta (target, state, count) SELECT -1, c.state, c.change * n.count FROM (SELECT count(*) FROM u) n \
        CROSS JOIN (VALUES (2::int2, -1), (6::int2, 1)) AS c(state, change) WHERE n.count > 0) \
    SELECT account, count(*) FROM u GROUP BY account ORDER BY account";

/// The values of [`GIVE`].
pub(super) struct GiveValues {
    event: i64,
    target: i16,
    attempt: i32,
    at: i64,
    used: i32,
    taken: i64,
    expires_at: i64,
    account: String,
    user: String,
    checksum: i64,
    content: Vec<u8>,
    now: i64,
    /// For the lock.
    pub(super) number: i64,
}

impl GiveValues {
    pub(super) fn values(&self) -> [Value<'_>; 12] {
        [
            (&self.event, Type::INT8),
            (&self.target, Type::INT2),
            (&self.attempt, Type::INT4),
            (&self.at, Type::INT8),
            (&self.used, Type::INT4),
            (&self.taken, Type::INT8),
            (&self.expires_at, Type::INT8),
            (&self.account, Type::TEXT),
            (&self.user, Type::TEXT),
            (&self.checksum, Type::INT8),
            (&self.content, Type::BYTEA),
            (&self.now, Type::INT8),
        ]
    }
}

impl Engine {
    /// The values for a reply of a target with that number.
    pub(super) async fn give_values(
        &self,
        session: &Session,
        given: &GivenReply,
        target: i16,
    ) -> Result<GiveValues, Failure> {
        let GivenReply { event, attempt: (number, at), account, user, content, keep, used, .. } = given;
        let now = UnixMillis::now();
        let content = self.seal_like(session, *event, SealContext::Held(*event, at.0), content.as_bytes()).await?;
        let (used, taken) = match used {
            ReplyUse::Late => (0, 0),
            ReplyUse::Sent(None) => (1, 0),
            ReplyUse::Sent(Some(end)) => (2, *end),
            ReplyUse::Outdone => (3, 0),
        };
        Ok(GiveValues {
            event: id_of(*event),
            target,
            attempt: i32::try_from(*number).unwrap_or(i32::MAX),
            at: at.0,
            used,
            taken: i64::try_from(taken).unwrap_or(i64::MAX),
            expires_at: now.after(*keep).0,
            account: text(account).into_owned(),
            user: text(user).into_owned(),
            checksum: checksum::of_held(*event, at.0, &content),
            content,
            now: now.0,
            number: user_number(user),
        })
    }

    /// A value as it is stored with an event: encrypted, if the event is.
    async fn seal_like(
        &self,
        session: &Session,
        event: EventId,
        context: SealContext,
        clear: &[u8],
    ) -> Result<Vec<u8>, Failure> {
        if self.keys().is_empty() {
            return Ok(clear.to_vec());
        }
        let keys = self.keys_of(session, std::iter::once(event)).await?;
        let Some(key) = keys.first().and_then(|(_, key)| *key) else { return Ok(clear.to_vec()) };
        self.keys().seal(key.into(), context, clear).map_err(|error| Failure::Internal(error.to_string()))
    }

    /// What the rows of [`FIND`] say.
    fn state_of_rows(&self, rows: &[Row]) -> Result<HeldState, Failure> {
        let mut rest = HeldState::Nothing;
        for row in rows {
            let event = event_id(row.try_get(0)?);
            let (state, is_pending): (i16, bool) = (row.try_get(1)?, row.try_get(8)?);
            match ReplyState::of(state.into()) {
                Some(ReplyState::Held) => {
                    if let Some(held) = self.open_held(event, row)? {
                        return Ok(HeldState::Held(held));
                    }
                }
                Some(ReplyState::Awaited) if is_pending => rest = HeldState::Running,
                Some(ReplyState::Awaited | ReplyState::Ended) if rest == HeldState::Nothing => {
                    rest = HeldState::Ended(event);
                }
                _ => {}
            }
        }
        Ok(rest)
    }

    /// A reply that is damaged, or cannot be decrypted, is passed over.
    fn open_held(&self, event: EventId, row: &Row) -> Result<Option<HeldReply>, Failure> {
        let (taken, at): (i64, Option<i64>) = (row.try_get(2)?, row.try_get(3)?);
        let (sum, stored): (Option<i64>, Option<Vec<u8>>) = (row.try_get(4)?, row.try_get(5)?);
        let (Some(at), Some(stored)) = (at, stored) else { return Ok(None) };
        if sum.is_some_and(|sum| sum != checksum::of_held(event, at, &stored)) {
            tracing::error!(%event, "held reply damaged; not sent");
            return Ok(None);
        }
        let content = match row.try_get::<_, Option<i16>>(6)? {
            None => String::from_utf8(stored).ok(),
            Some(key) => {
                let opened = self.keys().open_text(key.into(), SealContext::Held(event, at), &stored);
                opened.inspect_err(|error| tracing::error!(%event, %error, "held reply unreadable")).ok()
            }
        };
        let (no, taken) = (row.try_get::<_, i32>(7)?.into(), usize::try_from(taken).unwrap_or(0));
        Ok(content.map(|content| HeldReply { event, no, content, taken }))
    }
}

/// Stores replies in the transaction of these queries, behind them; returns the rows of all.
pub(super) async fn give_with(
    session: &Session,
    lock: &str,
    queries: &[BoundQuery<'_>],
    gives: &[GiveValues],
    ends: &[(i64, i16)],
) -> Result<Vec<Vec<Row>>, Failure> {
    let values: Vec<[Value<'_>; 12]> = gives.iter().map(GiveValues::values).collect();
    let ended: Vec<[Value<'_>; 2]> =
        ends.iter().map(|(event, target)| [(event as _, Type::INT8), (target as _, Type::INT2)]).collect();
    let mut all: Vec<BoundQuery<'_>> =
        queries.iter().map(|query| BoundQuery { sql: query.sql, values: query.values }).collect();
    all.extend(values.iter().map(|values| BoundQuery { sql: GIVE, values }));
    all.extend(ended.iter().map(|values| BoundQuery { sql: END_WAIT, values }));
    session.transact(lock, &all).await
}

/// What became of these replies, by the rows of their statements.
pub(super) fn states_of(gives: &[GiveValues], rows: &[Vec<Row>]) -> Result<Vec<(EventId, ReplyState)>, Failure> {
    let mut became = Vec::new();
    for (give, rows) in gives.iter().zip(rows) {
        let Some(row) = rows.first() else { continue };
        became.extend(ReplyState::of(row.try_get::<_, i16>(0)?.into()).map(|state| (event_id(give.event), state)));
    }
    Ok(became)
}

/// The reply that an outcome gives, or the wait that it ends.
pub(super) fn split_settled(reply: Option<&SettledReply>) -> (Option<&GivenReply>, bool) {
    match reply {
        None => (None, false),
        Some(SettledReply::Given(given)) => (Some(given), false),
        Some(SettledReply::None) => (None, true),
    }
}

impl Postgres {
    fn session(&self) -> &PinnedSession {
        &self.engine.reading
    }

    /// See [`super::super::Queue::record_reply`].
    pub(in crate::queue) async fn record_reply(
        &self,
        event: EventId,
        reply: String,
        given: Option<GivenReply>,
    ) -> Result<bool, Error> {
        let given = given.map(Box::new);
        self.change(|answer| Change::Reply { event, reply: Some(reply), given, answer: Some(answer) }).await
    }

    /// See [`super::super::Queue::held`].
    pub(in crate::queue) async fn held(&self, query: HeldQuery) -> Result<HeldState, Error> {
        let (account, user) = (text(&query.account).into_owned(), text(&query.user).into_owned());
        let (event, now) = (query.event.map(id_of), query.now.0);
        let values: [Value<'_>; 4] =
            [(&account, Type::TEXT), (&user, Type::TEXT), (&now, Type::INT8), (&event, Type::INT8)];
        let rows = self.session().call(TRY, async |session| session.query(FIND, &values).await).await?;
        Ok(self.engine.state_of_rows(&rows)?)
    }

    /// See [`super::super::Queue::await_late`].
    pub(in crate::queue) async fn await_late(&self, late: LateReply) -> Result<HeldState, Error> {
        let LateReply { event, targets, account, user, until, now } = late;
        let lock = lock_users(std::iter::once(user_number(&user)));
        let (event, until, now) = (Some(id_of(event)), until.0, now.0);
        let names: Vec<&str> = targets.iter().map(|target| &**target).collect();
        let (account, user) = (text(&account).into_owned(), text(&user).into_owned());
        let wait: [Value<'_>; 5] = [
            (&event, Type::INT8),
            (&names, Type::TEXT_ARRAY),
            (&until, Type::INT8),
            (&account, Type::TEXT),
            (&user, Type::TEXT),
        ];
        let find: [Value<'_>; 4] =
            [(&account, Type::TEXT), (&user, Type::TEXT), (&now, Type::INT8), (&event, Type::INT8)];
        let queries = [BoundQuery { sql: AWAIT_LATE, values: &wait }, BoundQuery { sql: FIND, values: &find }];
        let rows = self.session().call(TRY, async |session| session.transact(&lock, &queries).await).await?;
        Ok(self.engine.state_of_rows(rows.last().map_or(&[], Vec::as_slice))?)
    }

    /// See [`super::super::Queue::take`].
    pub(in crate::queue) async fn take(&self, take: TakeReply) -> Result<bool, Error> {
        let TakeReply { held, until, by, reply, expires_at } = take;
        let state = match until {
            Some(_) => ReplyState::Held,
            None if held.event == by => ReplyState::Sent,
            None => ReplyState::PickedUp,
        };
        let state = state as i16;
        let number = |bytes: usize| i64::try_from(bytes).unwrap_or(i64::MAX);
        let (from, taken) = (number(held.taken), number(until.unwrap_or(held.content.len())));
        let (event, by_id) = (id_of(held.event), id_of(by));
        let no = i32::try_from(held.no).unwrap_or(i32::MAX);
        let expires_at = until.map(|_| expires_at.0);
        let taking = async |session: &mut Session| {
            let sealed = self.engine.seal_like(session, by, SealContext::Reply(by), reply.as_bytes()).await?;
            let sum = checksum::of_reply(by, &sealed);
            let values: [Value<'_>; 9] = [
                (&event, Type::INT8),
                (&no, Type::INT4),
                (&from, Type::INT8),
                (&state, Type::INT2),
                (&taken, Type::INT8),
                (&expires_at, Type::INT8),
                (&by_id, Type::INT8),
                (&sealed, Type::BYTEA),
                (&sum, Type::INT8),
            ];
            session.query(TAKE, &values).await
        };
        let rows = self.session().call(TRY, taking).await?;
        Ok(super::inspect::first(&rows, 0_i64)? > 0)
    }

    /// See [`super::super::Queue::forget_ended`].
    pub(in crate::queue) async fn forget_ended(&self, event: EventId) -> Result<(), Error> {
        let event = id_of(event);
        let values: [Value<'_>; 1] = [(&event, Type::INT8)];
        self.session().call(TRY, async |session| session.query(FORGET_ENDED, &values).await).await?;
        Ok(())
    }

    /// See [`super::super::Queue::expire_held`].
    pub(in crate::queue) async fn expire_held(&self, now: UnixMillis) -> Result<Vec<(String, u64)>, Error> {
        let now = now.0;
        let values: [Value<'_>; 1] = [(&now, Type::INT8)];
        let rows = self.session().call(TRY, async |session| session.query(EXPIRE, &values).await).await?;
        let read = |row: &Row| Ok((row.try_get(0)?, u64::try_from(row.try_get::<_, i64>(1)?).unwrap_or(0)));
        Ok(rows.iter().map(read).collect::<Result<_, Failure>>()?)
    }
}
