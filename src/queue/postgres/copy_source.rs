//! Reading tables row by row, to copy them into a store of files (`queue/copy/`).

use std::time::Duration;

use tokio_postgres::Row;
use tokio_postgres::types::Type;

use super::connect::Connector;
use super::failure::Failure;
use super::inspect::{PostgresReader, first, read};
use super::keys;
use super::pinned::PinnedSession;
use super::session::Value;
use super::settings::Settings;
use crate::queue::copy::rows::{
    AttemptRow, CopyPage, DeliveryRow, EventRow, ReplyRow, RetiredKey, StoreHead, TargetRow,
};
use crate::queue::copy::{CopyError, PAGE_BYTES, PAGE_EVENTS};
use crate::queue::encryption::EncryptionKeys;
use crate::queue::{Audit, Error};

/// How long a page may take.
const PAGE: Duration = Duration::from_secs(600);

const TARGETS: &str = "SELECT no::int8, name, paused FROM target ORDER BY no";
const USED: &str = "SELECT k.no FROM key k WHERE EXISTS (SELECT FROM event WHERE key = k.no)";
const COUNTS: &str = "SELECT coalesce(min(id), 0), coalesce(max(id), 0), (SELECT count(*) FROM retired_key), \
    (SELECT coalesce(sum(attempts), 0)::int8 FROM delivery WHERE state = 0), (SELECT last_value FROM incarnation)::int8 \
    FROM event";
const TALLY: &str = "SELECT target::int8, state::int8, sum(count)::int8 FROM (SELECT target, state, count FROM tally \
    UNION ALL SELECT target, state, count FROM tally_delta) t GROUP BY 1, 2 HAVING sum(count) <> 0 ORDER BY 1, 2";
const EVENTS: &str = "WITH ids AS MATERIALIZED (SELECT id, octet_length(query) + octet_length(body) \
        + coalesce(octet_length(clear), 0) AS bytes FROM event WHERE id > $1 ORDER BY id LIMIT $2), \
    page AS MATERIALIZED (SELECT id FROM (SELECT id, sum(bytes) OVER (ORDER BY id) - bytes AS before FROM ids) i \
        WHERE before <= $3) \
    SELECT e.id, e.content_key, e.targets::int8, e.mode::int8, e.key::int8, e.received_at, e.checksum, e.reply_checksum, \
           e.account, e.app_id, e.msg_type, e.event, e.event_key, e.from_user, e.traceparent, e.reply, e.query, e.body, \
           e.clear FROM page JOIN event e ON e.id = page.id ORDER BY e.id";
/// Only of events that are there: what is of none is counted by the audit, and is of no use.
const DELIVERIES: &str = "SELECT d.event, d.target::int8, d.state::int8, d.attempts::int8, d.failures::int8, d.due, \
    d.ended_at, d.usr FROM delivery d JOIN event e ON e.id = d.event WHERE d.event >= $1 AND d.event <= $2 \
    ORDER BY d.event, d.target";
const ATTEMPTS: &str = "SELECT a.event, a.target::int8, a.number::int8, a.at, a.duration_us, a.status::int8, a.error, \
    a.answer FROM attempt a JOIN event e ON e.id = a.event WHERE a.event >= $1 AND a.event <= $2 \
    ORDER BY a.event, a.target, a.number";
const REPLIES: &str = "SELECT r.event, r.no::int8, r.target::int8, r.state::int8, r.attempt::int8, r.at, r.taken, \
    r.expires_at, r.picked_by, r.account, r.usr, r.checksum, r.content FROM held_reply r JOIN event e ON e.id = r.event \
    WHERE r.event >= $1 AND r.event <= $2 ORDER BY r.event, r.no";
const RETIRED: &str = "SELECT r.event, r.content_key FROM retired_key r JOIN known k ON k.content_key = r.content_key \
    AND k.event = r.event WHERE r.event > $1 ORDER BY r.event LIMIT $2";

/// Tables that are copied, while no replica lives.
pub(in crate::queue) struct PostgresSource {
    reader: PostgresReader,
    session: PinnedSession,
}

impl PostgresSource {
    pub(in crate::queue) async fn open(settings: &Settings) -> Result<Self, Error> {
        let reader = PostgresReader::open(settings, &EncryptionKeys::default()).await?;
        Ok(Self { reader, session: PinnedSession::new(Connector::new(settings)) })
    }

    /// Fails if a replica is alive.
    pub(in crate::queue) async fn expect_rest(&self) -> Result<(), CopyError> {
        let replicas = self.reader.replicas().await?.into_iter().filter(|replica| replica.live);
        let names: Vec<String> = replicas.map(|replica| replica.name).collect();
        if names.is_empty() { Ok(()) } else { Err(CopyError::ReplicasRun(names.join(", "))) }
    }

    pub(in crate::queue) async fn audit(&self) -> Result<Audit, Error> {
        self.reader.audit().await
    }

    pub(in crate::queue) async fn head(&self) -> Result<StoreHead, Error> {
        read!(self.session, PAGE, |snapshot| {
            let rows = snapshot.query(TARGETS, &[]).await?;
            let target =
                |row: &Row| Ok(TargetRow { number: row.try_get(0)?, name: row.try_get(1)?, paused: row.try_get(2)? });
            let targets = rows.iter().map(target).collect::<Result<_, Failure>>()?;
            let mut used = Vec::new();
            for row in snapshot.query(USED, &[]).await? {
                used.push(i64::from(row.try_get::<_, i16>(0)?));
            }
            let named = keys::named(snapshot.query(keys::NAMED, &[]).await?)?.into_iter();
            let keys = named.map(|(number, print)| (number, print, used.contains(&number))).collect();
            let mut counts = Vec::new();
            for (sql, columns) in [(COUNTS, 5), (TALLY, 3)] {
                for row in snapshot.query(sql, &[]).await? {
                    for at in 0..columns {
                        counts.push(row.try_get::<_, i64>(at)?);
                    }
                }
            }
            Ok(StoreHead { targets, keys, counts })
        })
    }

    /// The page of events behind `after`.
    pub(in crate::queue) async fn page(&self, after: i64) -> Result<CopyPage, Error> {
        read!(self.session, PAGE, |snapshot| {
            let (most, bytes) = (PAGE_EVENTS as i64, PAGE_BYTES as i64);
            let values: [Value<'_>; 3] = [(&after, Type::INT8), (&most, Type::INT8), (&bytes, Type::INT8)];
            let events = snapshot.query(EVENTS, &values).await?;
            let events = events.iter().map(read_event).collect::<Result<Vec<_>, Failure>>()?;
            let (Some(begin), Some(end)) = (events.first(), events.last()) else { return Ok(CopyPage::default()) };
            let range: [Value<'_>; 2] = [(&begin.id, Type::INT8), (&end.id, Type::INT8)];
            let deliveries = snapshot.query(DELIVERIES, &range).await?;
            let deliveries = deliveries.iter().map(read_delivery).collect::<Result<_, Failure>>()?;
            let attempts = snapshot.query(ATTEMPTS, &range).await?;
            let attempts = attempts.iter().map(read_attempt).collect::<Result<_, Failure>>()?;
            let replies = snapshot.query(REPLIES, &range).await?;
            let replies = replies.iter().map(read_reply).collect::<Result<_, Failure>>()?;
            Ok(CopyPage { events, deliveries, attempts, replies })
        })
    }

    pub(in crate::queue) async fn retired_keys(&self, after: i64, most: i64) -> Result<Vec<RetiredKey>, Error> {
        read!(self.session, PAGE, |snapshot| {
            let rows = snapshot.query(RETIRED, &[(&after, Type::INT8), (&most, Type::INT8)]).await?;
            let key = |row: &Row| Ok(RetiredKey { event: row.try_get(0)?, content_key: row.try_get(1)? });
            rows.iter().map(key).collect()
        })
    }

    /// How many events there are.
    pub(in crate::queue) async fn events(&self) -> Result<u64, Error> {
        read!(self.session, PAGE, |snapshot| {
            let count: i64 = first(&snapshot.query("SELECT count(*) FROM event", &[]).await?, 0)?;
            Ok(u64::try_from(count).unwrap_or(0))
        })
    }
}

fn read_event(row: &Row) -> Result<EventRow, Failure> {
    Ok(EventRow {
        id: row.try_get(0)?,
        content_key: row.try_get(1)?,
        targets: row.try_get(2)?,
        mode: row.try_get(3)?,
        key: row.try_get(4)?,
        received_at: row.try_get(5)?,
        checksum: row.try_get(6)?,
        reply_checksum: row.try_get(7)?,
        account: row.try_get(8)?,
        app_id: row.try_get(9)?,
        msg_type: row.try_get(10)?,
        event: row.try_get(11)?,
        event_key: row.try_get(12)?,
        from_user: row.try_get(13)?,
        traceparent: row.try_get(14)?,
        reply: row.try_get(15)?,
        query: row.try_get(16)?,
        body: row.try_get(17)?,
        clear: row.try_get(18)?,
    })
}

fn read_delivery(row: &Row) -> Result<DeliveryRow, Failure> {
    Ok(DeliveryRow {
        event: row.try_get(0)?,
        target: row.try_get(1)?,
        state: row.try_get(2)?,
        attempts: row.try_get(3)?,
        failures: row.try_get(4)?,
        due: row.try_get(5)?,
        ended_at: row.try_get(6)?,
        user: row.try_get(7)?,
    })
}

fn read_attempt(row: &Row) -> Result<AttemptRow, Failure> {
    Ok(AttemptRow {
        event: row.try_get(0)?,
        target: row.try_get(1)?,
        number: row.try_get(2)?,
        at: row.try_get(3)?,
        duration_us: row.try_get(4)?,
        status: row.try_get(5)?,
        error: row.try_get(6)?,
        answer: row.try_get(7)?,
    })
}

fn read_reply(row: &Row) -> Result<ReplyRow, Failure> {
    Ok(ReplyRow {
        event: row.try_get(0)?,
        no: row.try_get(1)?,
        target: row.try_get(2)?,
        state: row.try_get(3)?,
        attempt: row.try_get(4)?,
        at: row.try_get(5)?,
        taken: row.try_get(6)?,
        expires_at: row.try_get(7)?,
        picked_by: row.try_get(8)?,
        account: row.try_get(9)?,
        user: row.try_get(10)?,
        checksum: row.try_get(11)?,
        content: row.try_get(12)?,
    })
}
