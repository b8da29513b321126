//! The reader: each answer is one snapshot, in a session of its own, so it works with and without running relays, and
//! delays nothing. It changes nothing, and creates nothing.

use std::collections::BTreeSet;
use std::fmt;
use std::time::Duration;

use parking_lot::Mutex;
use tokio_postgres::Row;
use tokio_postgres::types::Type;

use super::connect::Connector;
use super::failure::Failure;
use super::ledger::{self, OldestHeld, OldestPending};
use super::pinned::PinnedSession;
use super::selection::{self, Parameters};
use super::session::{Snapshot, Value};
use super::settings::Settings;
use super::values::{event_id, id_of, state_of};
use super::{deep, keys, schema};
use crate::clock::UnixMillis;
use crate::event::EventId;
use crate::ordered;
use crate::queue::columns::ColumnReader;
use crate::queue::encryption::{EncryptionKeys, SealContext};
use crate::queue::key_ring::{EncryptionStatus, KeyRing};
use crate::queue::persons::sender;
use crate::queue::replicas::{SILENT, mark_same};
use crate::queue::stored::mode_of;
use crate::queue::view::{
    AttemptDetail, Audit, DeadLetter, DeliveryDetail, DeliverySummary, EventDetail, EventFilter, EventSummary, Stats,
};
use crate::queue::{DeliveryState, Error, Replica, StoredPage, Sweep};

/// How long an answer that does not read whole tables may take, and one that does.
const SHORT: Duration = Duration::from_secs(30);
const LONG: Duration = Duration::from_secs(3600);

/// The largest number that a column holds: no event has it.
pub(super) const LAST_ID: EventId = EventId(i64::MAX as u64);

/// Reads one state of the tables: evaluates an expression with a [`Snapshot`] within a time. (Not a function: a future
/// that is generic over what it does with a borrowed snapshot is not known to be `Send`.)
macro_rules! read {
    ($session:expr, $budget:expr, |$snapshot:ident| $work:block) => {{
        let outcome = $session.call($budget, async |session| {
            let snapshot = session.snapshot().await?;
            let answer: Result<_, $crate::queue::postgres::Failure> = {
                let $snapshot = &snapshot;
                async { $work }.await
            };
            let answer = answer?;
            snapshot.end().await?;
            Ok(answer)
        });
        outcome.await.map_err($crate::queue::Error::from)
    }};
}
pub(super) use read;

/// A read-only view of the tables.
pub struct PostgresReader {
    session: PinnedSession,
    keys: EncryptionKeys,
    oldest: Mutex<OldestPending>,
}

impl PostgresReader {
    /// Connects, and checks that the tables are there. Values that need a key which is not among `keys` are left out of
    /// the answers, with the reason.
    ///
    /// # Errors
    /// If there are none, this release cannot read them, or PostgreSQL cannot be used.
    pub(in crate::queue) async fn open(settings: &Settings, keys: &EncryptionKeys) -> Result<Self, Error> {
        let session = PinnedSession::new(Connector::new(settings));
        session.call(SHORT, async |session| schema::expect(session, settings).await).await?;
        Ok(Self { session, keys: keys.clone(), oldest: Mutex::default() })
    }

    pub(in crate::queue) async fn encryption_status(&self) -> Result<EncryptionStatus, Error> {
        read!(self.session, LONG, |snapshot| {
            let used =
                "SELECT k.no, k.fingerprint FROM key k WHERE EXISTS (SELECT FROM event WHERE key = k.no) ORDER BY k.no";
            let keys = keys::named(snapshot.query(used, &[]).await?)?.into_iter().map(|(_, print)| print).collect();
            let in_clear = snapshot.query("SELECT EXISTS (SELECT FROM event WHERE key IS NULL)", &[]).await?;
            Ok(EncryptionStatus { keys, in_clear: first(&in_clear, false)? })
        })
    }

    pub(in crate::queue) async fn stats(&self) -> Result<Stats, Error> {
        stats(&self.session, &self.oldest, &OldestHeld::new()).await
    }

    pub(in crate::queue) async fn audit(&self) -> Result<Audit, Error> {
        read!(self.session, LONG, |snapshot| { ledger::audit(snapshot).await })
    }

    pub(in crate::queue) async fn replicas(&self) -> Result<Vec<Replica>, Error> {
        let mut replicas =
            read!(self.session, SHORT, |snapshot| { read_replicas(&snapshot.query(REPLICAS, &[]).await?) })?;
        mark_same(&mut replicas);
        Ok(replicas)
    }

    pub(in crate::queue) async fn paused(&self) -> Result<BTreeSet<String>, Error> {
        paused(&self.session).await
    }

    pub(in crate::queue) async fn events(&self, filter: &EventFilter) -> Result<Vec<EventSummary>, Error> {
        read!(self.session, LONG, |snapshot| {
            selection::use_order_of_indexes(snapshot).await?;
            let mut parameters = Parameters::default();
            let mut conditions = selection::of_event(filter, &mut parameters);
            conditions.extend(of_any_delivery(filter, &mut parameters));
            let end = filter.until.map_or(LAST_ID, EventId::first_at).min(filter.before.unwrap_or(LAST_ID));
            conditions.push(format!("e.id < {}", parameters.add(id_of(end.min(LAST_ID)), Type::INT8)));
            let start = filter.since.map_or(EventId(0), EventId::first_at).min(LAST_ID);
            conditions.push(format!("e.id >= {}", parameters.add(id_of(start), Type::INT8)));
            let limit = parameters.add(i64::try_from(filter.limit).unwrap_or(i64::MAX), Type::INT8);
            let sql = format!(
                "SELECT id, received_at, account, msg_type, event, event_key, from_user FROM event e WHERE {} \
                 ORDER BY id DESC LIMIT {limit}",
                conditions.join(" AND ")
            );
            let rows = snapshot.query(&sql, &parameters.values()).await?;
            let mut found = rows.iter().map(read_summary).collect::<Result<Vec<_>, Failure>>()?;
            let ids: Vec<i64> = found.iter().map(|event| id_of(event.id)).collect();
            let deliveries = "SELECT d.event, coalesce(t.name, ''), d.state, d.attempts FROM delivery d \
                LEFT JOIN target t ON t.no = d.target WHERE d.event = ANY($1) ORDER BY d.event DESC, coalesce(t.name, '') COLLATE \"C\"";
            let deliveries = snapshot.query(deliveries, &[(&ids, Type::INT8_ARRAY)]).await?;
            // Both are in the order of the ids.
            let mut events = found.iter_mut().peekable();
            for row in &deliveries {
                let id = event_id(row.try_get(0)?);
                while events.next_if(|event| event.id != id).is_some() {}
                if let Some(event) = events.peek_mut() {
                    let (target, state, attempts): (_, i16, i32) = (row.try_get(1)?, row.try_get(2)?, row.try_get(3)?);
                    let attempts = u32::try_from(attempts).unwrap_or(0);
                    event.deliveries.push(DeliverySummary { target, state: state_of(state)?, attempts });
                }
            }
            Ok(found)
        })
    }

    pub(in crate::queue) async fn event(&self, id: EventId) -> Result<Option<EventDetail>, Error> {
        read!(self.session, SHORT, |snapshot| {
            let ring = key_ring(snapshot, &self.keys).await?;
            let event = "SELECT received_at, account, app_id, mode, msg_type, event, event_key, from_user, \
                coalesce(clear, body), reply, traceparent, key, clear IS NULL FROM event WHERE id = $1";
            let number = id_of(id);
            let rows = snapshot.query(event, &[(&number, Type::INT8)]).await?;
            let Some(row) = rows.first() else { return Ok(None) };
            let mut reader = ColumnReader::new(&ring, row.try_get::<_, Option<i16>>(11)?.map(i64::from));
            let context = if row.try_get(12)? { SealContext::Body(id) } else { SealContext::Clear(id) };
            let text = reader.text(row.try_get(8)?, context).unwrap_or_default();
            let reply = reader.text(row.try_get(9)?, SealContext::Reply(id));
            let deliveries = read_deliveries(snapshot, id, &mut reader).await?;
            let (replies, picked_up) = ledger::replies(snapshot, id).await?;
            let mode: i16 = row.try_get(3)?;
            Ok(Some(EventDetail {
                id,
                received_at: UnixMillis(row.try_get(0)?),
                account: row.try_get(1)?,
                app_id: row.try_get(2)?,
                mode: mode_of(mode.into()).ok_or_else(|| unknown("mode", mode))?.to_string(),
                msg_type: row.try_get(4)?,
                event: row.try_get(5)?,
                event_key: row.try_get(6)?,
                from: sender(row.try_get(7)?).to_owned(),
                text,
                reply,
                sealed: reader.error_text(),
                traceparent: row.try_get(10)?,
                deliveries,
                replies,
                picked_up,
            }))
        })
    }

    pub(in crate::queue) async fn dead(
        &self,
        target: Option<&str>,
        limit: usize,
        before: Option<EventId>,
    ) -> Result<Vec<DeadLetter>, Error> {
        // The page is found in the index of dead letters, before anything of theirs is read.
        let sql = "WITH page AS MATERIALIZED (SELECT DISTINCT d.event FROM delivery d WHERE d.state = 2 AND d.event < $1 \
               AND ($2::text IS NULL OR d.target = (SELECT no FROM target WHERE name = $2)) \
              ORDER BY d.event DESC LIMIT $3) \
            SELECT d.event, coalesce(t.name, ''), e.received_at, d.ended_at, e.account, e.msg_type, e.event, d.attempts, \
                   a.status, a.error, a.answer, e.key, d.target, a.number \
              FROM page JOIN delivery d ON d.event = page.event AND d.state = 2 JOIN event e ON e.id = d.event \
              LEFT JOIN target t ON t.no = d.target \
              LEFT JOIN attempt a ON a.event = d.event AND a.target = d.target AND a.number = d.attempts \
             WHERE $2::text IS NULL OR t.name = $2 ORDER BY d.event DESC, coalesce(t.name, '') COLLATE \"C\"";
        read!(self.session, SHORT, |snapshot| {
            let ring = key_ring(snapshot, &self.keys).await?;
            let before = id_of(before.unwrap_or(LAST_ID).min(LAST_ID));
            let limit = i64::try_from(limit).unwrap_or(i64::MAX);
            let values: [Value<'_>; 3] = [(&before, Type::INT8), (&target, Type::TEXT), (&limit, Type::INT8)];
            let rows = snapshot.query(sql, &values).await?;
            rows.iter().map(|row| read_dead(row, &ring)).collect()
        })
    }

    pub(in crate::queue) async fn count(&self, sweep: &Sweep, after: Option<EventId>) -> Result<u64, Error> {
        let after = after.unwrap_or(EventId(0));
        read!(self.session, LONG, |snapshot| { selection::count(snapshot, sweep, after).await })
    }

    pub(in crate::queue) async fn end(&self) -> Result<UnixMillis, Error> {
        let newest = self.newest().await?.map_or(UnixMillis(0), EventId::moment);
        Ok(newest.max(UnixMillis::now()).after(Duration::from_millis(1)))
    }

    pub(in crate::queue) async fn check_file(&self) -> Result<Vec<String>, Error> {
        Ok(self.session.call(LONG, deep::check_tables).await?)
    }

    pub(in crate::queue) async fn newest(&self) -> Result<Option<EventId>, Error> {
        read!(self.session, SHORT, |snapshot| {
            let newest: Option<i64> = first(&snapshot.query("SELECT max(id) FROM event", &[]).await?, None)?;
            Ok(newest.map(event_id))
        })
    }

    pub(in crate::queue) async fn orphans(&self, most: usize) -> Result<Vec<EventId>, Error> {
        let sql = "SELECT DISTINCT event FROM delivery d WHERE NOT EXISTS (SELECT FROM event WHERE id = d.event) \
                   ORDER BY event LIMIT $1";
        let most = i64::try_from(most).unwrap_or(i64::MAX);
        read!(self.session, LONG, |snapshot| {
            let rows = snapshot.query(sql, &[(&most, Type::INT8)]).await?;
            rows.iter().map(|row| Ok(event_id(row.try_get(0)?))).collect()
        })
    }

    pub(in crate::queue) async fn read_back(
        &self,
        after: Option<EventId>,
        until: EventId,
    ) -> Result<StoredPage, Error> {
        let mut most = deep::PAGE;
        loop {
            let page = read!(self.session, LONG, |snapshot| {
                let ring = key_ring(snapshot, &self.keys).await?;
                deep::read_page(snapshot, &ring, after, until, most).await
            });
            match page {
                // A row that cannot be read fails the whole query: it is found by halves.
                Err(Error::Postgres(failure)) if deep::is_damage(&failure) => {
                    if most == 1 {
                        let next = read!(self.session, LONG, |snapshot| { deep::next_id(snapshot, after).await });
                        let Some(id) = next? else { return Err(Error::Postgres(failure)) };
                        return Ok(deep::unreadable(id, &failure));
                    }
                    most /= 2;
                }
                page => return page,
            }
        }
    }
}

impl fmt::Debug for PostgresReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PostgresReader").field("session", &self.session).finish_non_exhaustive()
    }
}

/// `leased`: the oldest lease of each target in this process.
pub(super) async fn stats(
    session: &PinnedSession,
    oldest: &Mutex<OldestPending>,
    leased: &OldestHeld,
) -> Result<Stats, Error> {
    let known = oldest.lock().clone();
    let (stats, known) = read!(session, SHORT, |snapshot| { ledger::stats(snapshot, known, leased).await })?;
    *oldest.lock() = known;
    Ok(stats)
}

/// The replicas with what they hold, those that live or are silent for not too long to be forgotten. The tables may be
/// those of an earlier release, without the column `started_at`.
const REPLICAS: &str = "SELECT r.incarnation, r.name, extract(epoch FROM clock_timestamp() - r.alive_at)::float8, r.slot, \
    r.release, r.schema, \
    (extract(epoch FROM coalesce((to_jsonb(r) ->> 'started_at')::timestamptz, r.alive_at)) * 1000)::int8, \
    r.config, r.admin, \
    (SELECT count(*) FROM delivery d WHERE d.holder = r.incarnation AND d.state = 0 AND d.holder IS NOT NULL) \
    FROM replica r ORDER BY r.name, r.incarnation";

/// The replicas of such rows.
pub(super) fn read_replicas(rows: &[Row]) -> Result<Vec<Replica>, Failure> {
    let read = |row: &Row| {
        let silent: f64 = row.try_get(2)?;
        let last_beat = Duration::try_from_secs_f64(silent).unwrap_or_default();
        let held: Option<i64> = row.try_get(9)?;
        Ok(Replica {
            incarnation: row.try_get(0)?,
            name: row.try_get(1)?,
            slot: row.try_get(3)?,
            release: row.try_get(4)?,
            schema: row.try_get(5)?,
            started_at: UnixMillis(row.try_get(6)?),
            last_beat_ms: u64::try_from(last_beat.as_millis()).unwrap_or(u64::MAX),
            live: last_beat <= SILENT,
            held: held.and_then(|held| u64::try_from(held).ok()),
            config_sha256: row.try_get(7)?,
            same_config: true,
            admin: row.try_get(8)?,
        })
    };
    rows.iter().map(read).collect()
}

pub(super) async fn paused(session: &PinnedSession) -> Result<BTreeSet<String>, Error> {
    read!(session, SHORT, |snapshot| {
        let rows = snapshot.query("SELECT name FROM target WHERE paused", &[]).await?;
        let names = rows.iter().map(|row| Ok(row.try_get(0)?)).collect::<Result<Vec<String>, Failure>>()?;
        Ok(ordered::set(names))
    })
}

/// The keys of the store, as far as they are configured.
async fn key_ring(snapshot: &Snapshot<'_>, configured: &EncryptionKeys) -> Result<KeyRing, Failure> {
    Ok(KeyRing::of(keys::named(snapshot.query(keys::NAMED, &[]).await?)?, configured))
}

/// The value of a query that has one.
pub(super) fn first<'r, T: tokio_postgres::types::FromSql<'r>>(rows: &'r [Row], none: T) -> Result<T, Failure> {
    rows.first().map_or(Ok(none), |row| Ok(row.try_get(0)?))
}

pub(super) fn unknown(what: &str, number: i16) -> Failure {
    Failure::Internal(format!("the {what} {number} is unknown"))
}

/// The condition that the event `e` has a delivery of the filter.
fn of_any_delivery(filter: &EventFilter, parameters: &mut Parameters) -> Option<String> {
    let mut conditions = vec!["d.event = e.id".to_owned()];
    if let Some(target) = &filter.target {
        let name = parameters.add(target.clone(), Type::TEXT);
        conditions.push(format!("d.target = (SELECT no FROM target WHERE name = {name})"));
    }
    if let Some(state) = filter.state {
        conditions.push(format!("d.state = {}", state as i16));
    }
    (conditions.len() > 1).then(|| format!("EXISTS (SELECT FROM delivery d WHERE {})", conditions.join(" AND ")))
}

fn read_summary(row: &Row) -> Result<EventSummary, Failure> {
    Ok(EventSummary {
        id: event_id(row.try_get(0)?),
        received_at: UnixMillis(row.try_get(1)?),
        account: row.try_get(2)?,
        msg_type: row.try_get(3)?,
        event: row.try_get(4)?,
        event_key: row.try_get(5)?,
        from: sender(row.try_get(6)?).to_owned(),
        deliveries: Vec::new(),
    })
}

async fn read_deliveries(
    snapshot: &Snapshot<'_>,
    event: EventId,
    reader: &mut ColumnReader<'_>,
) -> Result<Vec<DeliveryDetail>, Failure> {
    let find = "SELECT d.target, coalesce(t.name, ''), d.state, d.due, d.ended_at FROM delivery d \
        LEFT JOIN target t ON t.no = d.target WHERE d.event = $1 ORDER BY coalesce(t.name, '') COLLATE \"C\"";
    let attempts = "SELECT target, number, at, duration_us, status, error, answer FROM attempt WHERE event = $1 \
        ORDER BY target, number";
    let id = id_of(event);
    let (rows, attempts) =
        (snapshot.query(find, &[(&id, Type::INT8)]).await?, snapshot.query(attempts, &[(&id, Type::INT8)]).await?);
    let mut found = Vec::with_capacity(rows.len());
    for row in &rows {
        let (target, state): (i16, i16) = (row.try_get(0)?, row.try_get(2)?);
        let state = state_of(state)?;
        let mut made = Vec::new();
        for row in &attempts {
            if row.try_get::<_, i16>(0)? == target {
                made.push(read_attempt(row, event, reader)?);
            }
        }
        found.push(DeliveryDetail {
            target: row.try_get(1)?,
            state,
            due: if state == DeliveryState::Pending { Some(UnixMillis(row.try_get(3)?)) } else { None },
            ended_at: row.try_get::<_, Option<i64>>(4)?.map(UnixMillis),
            attempts: made,
        });
    }
    Ok(found)
}

fn read_attempt(row: &Row, event: EventId, reader: &mut ColumnReader<'_>) -> Result<AttemptDetail, Failure> {
    let (target, number): (i16, i32) = (row.try_get(0)?, row.try_get(1)?);
    #[allow(clippy::cast_precision_loss, reason = "durations are far below 2^53 microseconds")]
    let duration_ms = row.try_get::<_, i64>(3)? as f64 / 1000.0;
    Ok(AttemptDetail {
        number: u32::try_from(number).unwrap_or(0),
        at: UnixMillis(row.try_get(2)?),
        duration_ms,
        status: row.try_get::<_, Option<i16>>(4)?.map(i16::cast_unsigned),
        error: row.try_get(5)?,
        answer: reader.text(row.try_get(6)?, SealContext::Answer(event, target.into(), number.into())),
    })
}

fn read_dead(row: &Row, keys: &KeyRing) -> Result<DeadLetter, Failure> {
    let id = event_id(row.try_get(0)?);
    let mut reader = ColumnReader::new(keys, row.try_get::<_, Option<i16>>(11)?.map(i64::from));
    let (target, number): (i16, Option<i32>) = (row.try_get(12)?, row.try_get(13)?);
    let context = SealContext::Answer(id, target.into(), number.unwrap_or_default().into());
    let answer = reader.text(row.try_get(10)?, context);
    Ok(DeadLetter {
        id,
        target: row.try_get(1)?,
        received_at: UnixMillis(row.try_get(2)?),
        ended_at: row.try_get::<_, Option<i64>>(3)?.map(UnixMillis),
        account: row.try_get(4)?,
        msg_type: row.try_get(5)?,
        event: row.try_get(6)?,
        attempts: u32::try_from(row.try_get::<_, i32>(7)?).unwrap_or(0),
        status: row.try_get::<_, Option<i16>>(8)?.map(i16::cast_unsigned),
        error: row.try_get(9)?,
        answer,
        sealed: reader.error_text(),
    })
}
