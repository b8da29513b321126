//! A copy of a store of files in these tables, while it is made (`queue/copy/`).
//!
//! The table `copy` says whose copy it is and how far it is; each page changes it in its own transaction, so that a copy
//! that was ended anywhere goes on with the next page. Until the first step is done `meta.oldest_reader` keeps every
//! replica out: one that began earlier would deliver, and take pushes again that are not copied yet.

use std::time::Duration;

use tokio_postgres::types::Type;

use super::connect::Connector;
use super::copy_columns::CopyColumns;
use super::failure::Failure;
use super::inspect::{PostgresReader, first};
use super::pinned::PinnedSession;
use super::schema::{self, COPYING, Found};
use super::session::{BoundQuery, Session, Value};
use super::settings::Settings;
use crate::event::EventId;
use crate::queue::copy::rows::{CopyPage, RetiredKey, StoreHead};
use crate::queue::copy::{CopyError, CopyStep};
use crate::queue::{Audit, EncryptionKeys};

/// How long a page may take, and what reads whole tables.
const PAGE: Duration = Duration::from_secs(120);

/// Whether something is there: rows, or a replica that may write some.
const IS_USED: &str = "SELECT EXISTS (SELECT FROM event) OR EXISTS (SELECT FROM known) OR EXISTS (SELECT FROM delivery) \
    OR EXISTS (SELECT FROM held_reply) OR EXISTS (SELECT FROM target) OR EXISTS (SELECT FROM key)";
const ALIVE: &str = "SELECT string_agg(name, ', ' ORDER BY name) FROM replica \
    WHERE alive_at > clock_timestamp() - interval '10 s'";

const ADD_TARGETS: &str = "INSERT INTO target (no, name, paused) \
    SELECT * FROM unnest($1::int2[], $2::text[], $3::bool[]) ON CONFLICT DO NOTHING";
const ADD_KEYS: &str =
    "INSERT INTO key (no, fingerprint) SELECT * FROM unnest($1::int2[], $2::bytea[]) ON CONFLICT DO NOTHING";
const ADD_RETIRED: &str = "WITH k AS (INSERT INTO known (content_key, event) SELECT k, event FROM \
       unnest($1::int8[], $2::bytea[]) n(event, k) ORDER BY k ON CONFLICT DO NOTHING RETURNING event, content_key) \
    INSERT INTO retired_key (event, content_key) SELECT event, content_key FROM k ON CONFLICT DO NOTHING";

/// Events with all that is theirs. One whose text was pushed again since the copy began, and stored as another event, is
/// left out, and counted. What is copied stands before all that comes later in its user's order, in the order of the ids.
pub(super) const ADD_PAGE: &str = "WITH n AS (SELECT * FROM unnest($1::bytea[], $2::int8[], $3::int2[], $4::int2[], \
       $5::int2[], $6::int8[], $7::int8[], $8::int8[], $9::text[], $10::text[], $11::text[], $12::text[], $13::text[], \
       $14::text[], $15::text[], $16::bytea[], $17::bytea[], $18::bytea[], $19::bytea[]) AS n(k, id, targets, mode, key, \
       received_at, checksum, reply_checksum, account, app_id, msg_type, event, event_key, from_user, traceparent, \
       reply, query, body, clear)), \
     fresh AS (INSERT INTO known (content_key, event) SELECT k, id FROM n ORDER BY k ON CONFLICT DO NOTHING \
       RETURNING event), \
     e AS (INSERT INTO event (id, content_key, targets, mode, key, received_at, checksum, reply_checksum, account, app_id, \
         msg_type, event, event_key, from_user, traceparent, reply, query, body, clear) \
       SELECT n.id, n.k, n.targets, n.mode, n.key, n.received_at, n.checksum, n.reply_checksum, n.account, n.app_id, \
         n.msg_type, n.event, n.event_key, n.from_user, n.traceparent, n.reply, n.query, n.body, n.clear \
         FROM n JOIN fresh ON fresh.event = n.id RETURNING id), \
     f AS (SELECT f.*, e.id IS NULL AS skipped FROM unnest($20::int8[], $21::int2[], $22::int2[], $23::int4[], \
         $24::int4[], $25::int8[], $26::int8[], $27::int8[]) f(event, target, state, attempts, failures, due, ended_at, \
         usr) LEFT JOIN e ON e.id = f.event), \
     d AS (INSERT INTO delivery (event, target, state, attempts, failures, due, ended_at, usr, turn) \
       SELECT event, target, state, attempts, failures, due, ended_at, usr, \
         CASE WHEN usr IS NULL THEN NULL ELSE event - 9223372036854775807 END FROM f WHERE NOT skipped), \
     a AS (INSERT INTO attempt (event, target, number, at, duration_us, status, error, answer) \
       SELECT a.* FROM unnest($28::int8[], $29::int2[], $30::int4[], $31::int8[], $32::int8[], $33::int2[], $34::text[], \
         $35::bytea[]) a(event, target, number, at, duration_us, status, error, answer) JOIN e ON e.id = a.event), \
     h AS (SELECT h.*, e.id IS NULL AS skipped FROM unnest($37::int8[], $38::int4[], $39::int2[], $40::int2[], $41::int4[], \
         $42::int8[], $43::int8[], $44::int8[], $45::int8[], $46::text[], $47::text[], $48::int8[], $49::bytea[]) h(event, \
         no, target, state, attempt, at, taken, expires_at, picked_by, account, usr, checksum, content) \
         LEFT JOIN e ON e.id = h.event), \
     r AS (INSERT INTO held_reply (event, no, target, state, attempt, at, taken, expires_at, picked_by, account, usr, \
         checksum, content) SELECT event, no, target, state, attempt, at, taken, expires_at, picked_by, account, usr, \
         checksum, content FROM h WHERE NOT skipped), \
     c AS (SELECT target, state, skipped, count(*) AS count FROM f GROUP BY target, state, skipped \
       UNION ALL SELECT -1, state, skipped, count(*) FROM h WHERE state NOT IN (0, 7) GROUP BY state, skipped \
       UNION ALL SELECT -1, 0, skipped, count(*) FROM h WHERE state NOT IN (0, 7) GROUP BY skipped \
       UNION ALL SELECT 0, 0, e.id IS NULL, count(*) FROM n LEFT JOIN e ON e.id = n.id GROUP BY e.id IS NULL \
       UNION ALL SELECT 0, 1, e.id IS NULL, sum(n.targets) FROM n LEFT JOIN e ON e.id = n.id GROUP BY e.id IS NULL), \
     t AS (INSERT INTO tally_delta (target, state, count) SELECT target, state, count FROM c \
       WHERE NOT skipped AND count <> 0), \
     u AS (INSERT INTO copy_tally AS u (target, state, skipped, count) SELECT target, state, skipped, count FROM c \
       ON CONFLICT (target, state, skipped) DO UPDATE SET count = u.count + excluded.count), \
     p AS (UPDATE copy SET after = $36) \
     SELECT count(*) FROM e";

/// The tables of one schema, as the place for a copy.
pub(in crate::queue) struct PostgresTarget {
    session: PinnedSession,
    settings: Settings,
}

/// How far a copy is.
#[derive(Clone, Copy, Debug)]
pub(in crate::queue) struct CopyState {
    pub(in crate::queue) step: CopyStep,
    /// The first event that counts as new in the first step.
    pub(in crate::queue) cutoff: EventId,
    /// The last event of this step that is copied.
    pub(in crate::queue) after: i64,
}

/// What was copied or left out, of a target's state; of target 0 the events (state 0) and their deliveries (state 1).
#[derive(Clone, Copy, Debug)]
pub(in crate::queue) struct CopiedCount {
    pub(in crate::queue) target: i16,
    pub(in crate::queue) state: i16,
    pub(in crate::queue) is_skipped: bool,
    pub(in crate::queue) count: i64,
}

impl PostgresTarget {
    /// Connects nothing yet.
    pub(in crate::queue) fn new(settings: &Settings) -> Self {
        Self { session: PinnedSession::new(Connector::new(settings)), settings: settings.clone() }
    }

    /// The place in words.
    pub(in crate::queue) fn name(&self) -> String {
        format!("schema {}", self.settings.schema)
    }

    /// Checks that a copy of this source can be begun, or gone on with; changes nothing. `None`: it is not begun yet.
    pub(in crate::queue) async fn check(&self, head: &StoreHead) -> Result<Option<CopyState>, CopyError> {
        let source = head.digest();
        let (settings, source) = (&self.settings, &source[..]);
        let found = self.session.call(PAGE, async |session| look(session, settings, source).await).await?;
        match found {
            Place::Empty => Ok(None),
            Place::Own(state) => Ok(Some(state)),
            Place::OfAnother => Err(CopyError::OtherCopy(self.name())),
            Place::Used => Err(CopyError::NotEmpty(self.name())),
            Place::Alive(names) => Err(CopyError::ReplicasRun(names)),
        }
    }

    /// Begins the copy.
    pub(in crate::queue) async fn begin(&self, head: &StoreHead, cutoff: EventId) -> Result<(), CopyError> {
        let settings = &self.settings;
        let digest: String = head.digest().iter().map(|byte| format!("{byte:02x}")).collect();
        // The lock that a replica takes to join: after it no replica is here, and later ones are kept out.
        let script = format!(
            "SELECT set_config('lock_timeout', '10s', true), set_config('search_path', '{}', true);\
             SELECT pg_advisory_xact_lock(2003, -4);\
             CREATE TABLE IF NOT EXISTS copy (source bytea NOT NULL, cutoff bigint NOT NULL, step smallint NOT NULL, \
               after bigint NOT NULL);\
             CREATE TABLE IF NOT EXISTS copy_tally (target smallint NOT NULL, state smallint NOT NULL, skipped bool NOT NULL, \
               count bigint NOT NULL, PRIMARY KEY (target, state, skipped));\
             INSERT INTO copy SELECT '\\x{digest}'::bytea, {}, 1, 0 WHERE NOT EXISTS (SELECT FROM copy) \
               AND NOT EXISTS (SELECT FROM replica WHERE alive_at > clock_timestamp() - interval '10 s');\
             UPDATE meta SET oldest_reader = {COPYING} WHERE EXISTS (SELECT FROM copy WHERE step = 1)",
            settings.schema,
            cutoff.0.cast_signed(),
        );
        let begun = self.session.call(PAGE, async |session| {
            let (_, is_copying) = schema::find(session, settings).await?;
            if !is_copying {
                schema::prepare(session, settings).await?;
            }
            session.execute_script(&script).await.map(drop)
        });
        Ok(begun.await?)
    }

    /// Copies names and keys; those that are there stay as they are.
    pub(in crate::queue) async fn add_head(&self, head: &StoreHead) -> Result<(), CopyError> {
        let number = |number: i64| i16::try_from(number).map_err(|_| CopyError::Number(number));
        let targets = head.targets.iter().map(|target| number(target.number)).collect::<Result<Vec<i16>, _>>()?;
        let names: Vec<&str> = head.targets.iter().map(|target| &*target.name).collect();
        let paused: Vec<bool> = head.targets.iter().map(|target| target.paused).collect();
        let keys = head.keys.iter().map(|(key, ..)| number(*key)).collect::<Result<Vec<i16>, _>>()?;
        let prints: Vec<Vec<u8>> = head.keys.iter().map(|(_, print, _)| print.bytes().to_vec()).collect();
        let of_targets: [Value<'_>; 3] =
            [(&targets, Type::INT2_ARRAY), (&names, Type::TEXT_ARRAY), (&paused, Type::BOOL_ARRAY)];
        let of_keys: [Value<'_>; 2] = [(&keys, Type::INT2_ARRAY), (&prints, Type::BYTEA_ARRAY)];
        let queries =
            [BoundQuery { sql: ADD_TARGETS, values: &of_targets }, BoundQuery { sql: ADD_KEYS, values: &of_keys }];
        self.session.call(PAGE, async |session| session.transact("", &queries).await).await?;
        Ok(())
    }

    pub(in crate::queue) async fn add_retired(&self, keys: &[RetiredKey]) -> Result<(), CopyError> {
        let events: Vec<i64> = keys.iter().map(|key| key.event).collect();
        let keys: Vec<&[u8]> = keys.iter().map(|key| &key.content_key[..]).collect();
        let values: [Value<'_>; 2] = [(&events, Type::INT8_ARRAY), (&keys, Type::BYTEA_ARRAY)];
        self.session.call(PAGE, async |session| session.query(ADD_RETIRED, &values).await).await?;
        Ok(())
    }

    /// Copies a page; the rest of the step is behind it.
    pub(in crate::queue) async fn add(&self, page: &CopyPage) -> Result<(), CopyError> {
        let Some(last) = page.last() else { return Ok(()) };
        let columns = CopyColumns::of(page)?;
        let values = columns.values(&last);
        self.session.call(PAGE, async |session| session.query(ADD_PAGE, &values).await).await?;
        Ok(())
    }

    /// Ends a step. After the first one, replicas may begin.
    pub(in crate::queue) async fn end_step(&self, step: CopyStep) -> Result<(), CopyError> {
        let settings = &self.settings;
        let done = match step {
            CopyStep::Open => format!(
                "UPDATE meta SET oldest_reader = {} WHERE oldest_reader = {COPYING};\
                 UPDATE copy SET step = 2, after = 0 WHERE step = 1",
                schema::OLDEST_READER
            ),
            CopyStep::Finished | CopyStep::Done => "UPDATE copy SET step = 3 WHERE step = 2".to_owned(),
        };
        let script = format!("SELECT set_config('search_path', '{}', true);{done}", settings.schema);
        self.session.call(PAGE, async |session| session.execute_script(&script).await.map(drop)).await?;
        Ok(())
    }

    /// What was copied by all runs together.
    pub(in crate::queue) async fn copied(&self) -> Result<Vec<CopiedCount>, CopyError> {
        let sql = "SELECT target, state, skipped, count FROM copy_tally WHERE count <> 0 ORDER BY target, state";
        let rows = self.session.call(PAGE, async |session| session.query_once(sql, &[]).await).await?;
        let read = |row: &tokio_postgres::Row| {
            let (target, state) = (row.try_get(0)?, row.try_get(1)?);
            Ok(CopiedCount { target, state, is_skipped: row.try_get(2)?, count: row.try_get(3)? })
        };
        Ok(rows.iter().map(read).collect::<Result<_, Failure>>()?)
    }

    /// Whether a replica has ever been here: then the contents are no longer what was copied.
    pub(in crate::queue) async fn was_used(&self) -> Result<bool, CopyError> {
        let sql = "SELECT is_called FROM incarnation";
        let rows = self.session.call(PAGE, async |session| session.query_once(sql, &[]).await).await?;
        Ok(first(&rows, true)?)
    }

    pub(in crate::queue) async fn audit(&self) -> Result<Audit, CopyError> {
        let reader = PostgresReader::open(&self.settings, &EncryptionKeys::default()).await?;
        Ok(reader.audit().await?)
    }
}

/// What there is in the place for a copy.
enum Place {
    Empty,
    /// A copy of this source.
    Own(CopyState),
    OfAnother,
    Used,
    Alive(String),
}

async fn look(session: &Session, settings: &Settings, source: &[u8]) -> Result<Place, Failure> {
    if schema::find(session, settings).await?.0 == Found::Nothing {
        schema::check_rights(session, settings, Found::Nothing).await?;
        return Ok(Place::Empty);
    }
    let table = format!("{}.copy", settings.schema);
    let is_begun = session.query_once("SELECT to_regclass($1) IS NOT NULL", &[(&table, Type::TEXT)]).await?;
    if first(&is_begun, false)? {
        let sql = "SELECT source = $1, cutoff, step, after FROM copy";
        if let Some(row) = session.query_once(sql, &[(&source, Type::BYTEA)]).await?.first() {
            let (is_own, cutoff, step, after): (bool, i64, i16, i64) =
                (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?, row.try_get(3)?);
            let step = match step {
                1 => CopyStep::Open,
                2 => CopyStep::Finished,
                _ => CopyStep::Done,
            };
            let cutoff = EventId(cutoff.cast_unsigned());
            return Ok(if is_own { Place::Own(CopyState { step, cutoff, after }) } else { Place::OfAnother });
        }
    }
    if let Some(names) = first::<Option<String>>(&session.query_once(ALIVE, &[]).await?, None)? {
        return Ok(Place::Alive(names));
    }
    Ok(if first(&session.query_once(IS_USED, &[]).await?, true)? { Place::Used } else { Place::Empty })
}
