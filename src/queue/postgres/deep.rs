//! Reading every stored event back, and checking the tables themselves: the base of `wxrelay audit --deep`.

use std::collections::HashMap;

use tokio_postgres::Row;
use tokio_postgres::types::Type;

use super::failure::Failure;
use super::inspect::first;
use super::session::{Session, Snapshot, Value};
use super::values::{event_id, id_of, is_intact, read_event, state_of};
use crate::event::{Event, EventId};
use crate::queue::DeliveryState;
use crate::queue::checksum;
use crate::queue::encryption::{DecryptError, SealContext};
use crate::queue::key_ring::KeyRing;
use crate::queue::read_back::{Flaw, OpenDelivery, StoredEvent, StoredPage, flaws_of_columns};
use crate::queue::stored::key_of;

/// Events of one page; it ends earlier at this many bytes.
pub(super) const PAGE: i64 = 500;
const PAGE_BYTES: i64 = 32 << 20;
/// The most findings of a check of the tables.
const MOST_FINDINGS: usize = 20;

/// The columns that an event is read from come first.
const EVENTS: &str = "WITH ids AS MATERIALIZED (SELECT id, octet_length(query) + octet_length(body) \
        + coalesce(octet_length(clear), 0) AS bytes FROM event WHERE id > $1 AND id <= $2 ORDER BY id LIMIT $3), \
    page AS MATERIALIZED (SELECT id FROM (SELECT id, sum(bytes) OVER (ORDER BY id) - bytes AS before FROM ids) i \
        WHERE before <= $4) \
    SELECT e.id, e.account, e.app_id, e.mode, e.received_at, e.query, e.body, e.clear, e.traceparent, e.key, \
           e.content_key, e.checksum, e.targets::int8, e.msg_type, e.event, e.event_key, e.from_user, e.reply, \
           coalesce((SELECT k.event = e.id FROM known k WHERE k.content_key = e.content_key), false) \
      FROM page JOIN event e ON e.id = page.id ORDER BY e.id";

const DELIVERIES: &str = "SELECT d.event, t.name, d.state FROM delivery d LEFT JOIN target t ON t.no = d.target \
    WHERE d.event >= $1 AND d.event <= $2 ORDER BY d.event, d.target";

const HELD_REPLIES: &str = "SELECT event, coalesce(at, 0), checksum, content FROM held_reply \
    WHERE event >= $1 AND event <= $2 AND state = 2";
const ANSWERS: &str = "SELECT event, target, number, answer FROM attempt \
    WHERE event >= $1 AND event <= $2 AND answer IS NOT NULL ORDER BY event, target, number";

/// Whether the failure is that of a row that cannot be read, not of the query.
pub(super) fn is_damage(failure: &Failure) -> bool {
    match failure {
        Failure::Data { .. } => true,
        // Corrupted data, an I/O error of the server, or an internal error, as of a value whose parts are gone.
        Failure::Refused { code, .. } => matches!(code.code().get(..2), Some("XX" | "58")),
        _ => false,
    }
}

/// The next event, by its number alone.
pub(super) async fn next_id(snapshot: &Snapshot<'_>, after: Option<EventId>) -> Result<Option<EventId>, Failure> {
    let after = after.map_or(i64::MIN, id_of);
    let next = snapshot.query("SELECT min(id) FROM event WHERE id > $1", &[(&after, Type::INT8)]).await?;
    Ok(first::<Option<i64>>(&next, None)?.map(event_id))
}

/// The page of one event that cannot be read.
pub(super) fn unreadable(id: EventId, failure: &Failure) -> StoredPage {
    let flaws = vec![Flaw::Unreadable(failure.to_string())];
    StoredPage { events: vec![StoredEvent { id, event: None, flaws, open: Vec::new() }], last: Some(id) }
}

/// Reads back one page of events behind `after`, up to `until`.
pub(super) async fn read_page(
    snapshot: &Snapshot<'_>,
    keys: &KeyRing,
    after: Option<EventId>,
    until: EventId,
    most: i64,
) -> Result<StoredPage, Failure> {
    let (after, until) = (after.map_or(i64::MIN, id_of), id_of(until));
    let values: [Value<'_>; 4] =
        [(&after, Type::INT8), (&until, Type::INT8), (&most, Type::INT8), (&PAGE_BYTES, Type::INT8)];
    let rows = snapshot.query(EVENTS, &values).await?;
    let (Some(begin), Some(end)) = (rows.first(), rows.last()) else { return Ok(StoredPage::default()) };
    let (begin, end): (i64, i64) = (begin.try_get(0)?, end.try_get(0)?);
    let range: [Value<'_>; 2] = [(&begin, Type::INT8), (&end, Type::INT8)];
    let mut deliveries: HashMap<i64, Deliveries> = HashMap::new();
    for row in snapshot.query(DELIVERIES, &range).await? {
        deliveries.entry(row.try_get(0)?).or_default().add(&row)?;
    }
    let answers = snapshot.query(ANSWERS, &range).await?;
    let mut answers_of: HashMap<i64, Vec<&Row>> = HashMap::new();
    for row in &answers {
        answers_of.entry(row.try_get(0)?).or_default().push(row);
    }
    let held = snapshot.query(HELD_REPLIES, &range).await?;
    let mut events = Vec::with_capacity(rows.len());
    for row in &rows {
        let id: i64 = row.try_get(0)?;
        let deliveries = deliveries.remove(&id).unwrap_or_default();
        let answers = answers_of.remove(&id).unwrap_or_default();
        events.push(match judge(row, keys, &answers, &deliveries) {
            Ok((event, mut flaws)) => {
                flaws.extend(find_held(row, id, keys, &held)?);
                StoredEvent { id: event_id(id), event, flaws, open: deliveries.open }
            }
            Err(failure) => {
                let flaws = vec![Flaw::Unreadable(failure.to_string())];
                StoredEvent { id: event_id(id), event: None, flaws, open: deliveries.open }
            }
        });
    }
    Ok(StoredPage { events, last: Some(event_id(end)) })
}

/// The deliveries of an event.
#[derive(Default)]
struct Deliveries {
    found: i64,
    open: Vec<OpenDelivery>,
}

impl Deliveries {
    fn add(&mut self, row: &Row) -> Result<(), Failure> {
        self.found += 1;
        // An unknown state is reported by the audit of the ledger.
        if let Ok(state @ (DeliveryState::Pending | DeliveryState::Dead)) = state_of(row.try_get(2)?) {
            self.open.push(OpenDelivery { target: row.try_get(1)?, state });
        }
        Ok(())
    }
}

/// The event, and how its rows agree with it.
fn judge(
    row: &Row,
    keys: &KeyRing,
    answers: &[&Row],
    deliveries: &Deliveries,
) -> Result<(Option<Event>, Vec<Flaw>), Failure> {
    let (event, mut flaws) = match read_event(row, 0, keys)? {
        Ok(event) => {
            let flaws = of_row(row, &event, keys, answers)?;
            (Some(event), flaws)
        }
        Err(flaw) => (None, vec![flaw]),
    };
    let stored: i64 = row.try_get(12)?;
    if deliveries.found != stored {
        flaws.push(Flaw::Deliveries { stored, found: deliveries.found });
    }
    Ok((event, flaws))
}

fn of_row(row: &Row, event: &Event, keys: &KeyRing, answers: &[&Row]) -> Result<Vec<Flaw>, Failure> {
    let texts = [row.try_get(13)?, row.try_get(14)?, row.try_get(15)?];
    let mut flaws = flaws_of_columns(event, texts, row.try_get(16)?);
    if row.try_get::<_, &[u8]>(10)? != key_of(event).0 {
        flaws.push(Flaw::ContentKey);
    }
    if !is_intact(row, 0)? {
        flaws.push(Flaw::Checksum);
    }
    if let Some(unopened) = find_sealed(row, event.id, keys, answers)? {
        flaws.push(Flaw::Encrypted(unopened));
    }
    if !row.try_get::<_, bool>(18)? {
        flaws.push(Flaw::Unknown);
    }
    Ok(flaws)
}

/// Why the reply to an encrypted event, or a target's answer, cannot be decrypted.
fn find_sealed(row: &Row, id: EventId, keys: &KeyRing, answers: &[&Row]) -> Result<Option<DecryptError>, Failure> {
    let Some(key) = row.try_get::<_, Option<i16>>(9)?.map(i64::from) else { return Ok(None) };
    let reply: Option<&[u8]> = row.try_get(17)?;
    if let Some(Err(unopened)) = reply.map(|reply| keys.open_text(key, SealContext::Reply(id), reply)) {
        return Ok(Some(unopened));
    }
    for row in answers {
        let (target, number, answer): (i16, i32, &[u8]) = (row.try_get(1)?, row.try_get(2)?, row.try_get(3)?);
        if let Err(unopened) = keys.open(key, SealContext::Answer(id, target.into(), number.into()), answer) {
            return Ok(Some(unopened));
        }
    }
    Ok(None)
}

/// What is wrong with a reply that is held for this event.
fn find_held(row: &Row, id: i64, keys: &KeyRing, held: &[Row]) -> Result<Option<Flaw>, Failure> {
    let (event, key) = (event_id(id), row.try_get::<_, Option<i16>>(9)?.map(i64::from));
    for row in held {
        if row.try_get::<_, i64>(0)? != id {
            continue;
        }
        let (at, sum): (i64, Option<i64>) = (row.try_get(1)?, row.try_get(2)?);
        let stored: &[u8] = row.try_get::<_, Option<&[u8]>>(3)?.unwrap_or_default();
        if sum != Some(checksum::of_held(event, at, stored)) {
            return Ok(Some(Flaw::HeldReply));
        }
        if let Some(Err(unopened)) = key.map(|key| keys.open_text(key, SealContext::Held(event, at), stored)) {
            return Ok(Some(Flaw::Encrypted(unopened)));
        }
    }
    Ok(None)
}

/// The rows that an index should have, counted in the table and by the index. The condition is the index's own.
const INDEXES: [(&str, &str, &str); 7] = [
    ("event_pkey", "event", "id >= -9223372036854775808"),
    ("known_pkey", "known", "content_key >= ''"),
    ("delivery_pkey", "delivery", "event >= -9223372036854775808"),
    ("delivery_free", "delivery", "state = 0 AND holder IS NULL AND target >= -32768"),
    ("delivery_held", "delivery", "state = 0 AND holder IS NOT NULL AND holder >= -2147483648"),
    ("delivery_user", "delivery", "state = 0 AND usr IS NOT NULL AND target >= -32768"),
    ("delivery_dead", "delivery", "state = 2 AND target >= -32768"),
];

/// Reads the tables, or their indexes, whatever the planner thinks of it.
const BY_TABLE: &str = "SELECT set_config('enable_seqscan', 'on', true), set_config('enable_indexscan', 'off', true), \
    set_config('enable_indexonlyscan', 'off', true), set_config('enable_bitmapscan', 'off', true)";
const BY_INDEX: &str = "SELECT set_config('enable_seqscan', 'off', true), set_config('enable_indexscan', 'on', true), \
    set_config('enable_indexonlyscan', 'on', true), set_config('enable_bitmapscan', 'off', true)";

/// The schema of `amcheck`, if the role may use it.
const AMCHECK: &str = "SELECT quote_ident(n.nspname) FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace \
    WHERE p.proname = 'bt_index_check' AND p.pronargs = 2 AND has_function_privilege(p.oid, 'execute') \
      AND has_schema_privilege(n.oid, 'usage')";
const INDEX_NAMES: &str = "SELECT c.relname::text, c.oid::int8 FROM pg_class c \
    WHERE c.relnamespace = current_schema()::regnamespace AND c.relkind = 'i' ORDER BY 1";

/// What an ordinary role can check: whether each index has every row of its table, and every page can be read. With
/// PostgreSQL's `amcheck`, where a superuser has installed it and lets the role use it, by that; else by counting the
/// rows both ways. A delivery that is in its table and not in an index would never be leased.
pub(super) async fn check_tables(session: &mut Session) -> Result<Vec<String>, Failure> {
    let mut findings = Vec::new();
    if let Some(schema) = first::<Option<String>>(&session.query_once(AMCHECK, &[]).await?, None)? {
        let sql = format!("SELECT {schema}.bt_index_check($1::oid::regclass, true)");
        for row in session.query_once(INDEX_NAMES, &[]).await? {
            let (name, index): (&str, i64) = (row.try_get(0)?, row.try_get(1)?);
            match session.query_once(&sql, &[(&index, Type::INT8)]).await {
                Ok(_) => {}
                Err(failure) if is_damage(&failure) => findings.push(format!("index {name}: {failure}")),
                Err(failure) => return Err(failure),
            }
            // Some of these failures cost the session.
            if findings.len() >= MOST_FINDINGS || !session.is_usable() {
                break;
            }
        }
        return Ok(findings);
    }
    for (index, table, condition) in INDEXES {
        match compare(session, table, condition).await {
            Ok((rows, entries)) if rows == entries => {}
            Ok((rows, entries)) => {
                findings.push(format!("index {index}: {entries} entries for {rows} rows of the table {table}"));
            }
            Err(failure) if is_damage(&failure) => findings.push(format!("table {table}: {failure}")),
            Err(failure) => return Err(failure),
        }
        if !session.is_usable() {
            break;
        }
    }
    Ok(findings)
}

async fn compare(session: &mut Session, table: &str, condition: &str) -> Result<(i64, i64), Failure> {
    let sql = format!("SELECT count(*) FROM {table} WHERE {condition}");
    let snapshot = session.snapshot().await?;
    snapshot.query(BY_TABLE, &[]).await?;
    let rows = first(&snapshot.query(&sql, &[]).await?, 0)?;
    snapshot.query(BY_INDEX, &[]).await?;
    let entries = first(&snapshot.query(&sql, &[]).await?, 0)?;
    snapshot.end().await?;
    Ok((rows, entries))
}
