//! The one reply of an event, wherever its tries arrive.
//!
//! `event.asking_until` is until when a target is asked, by PostgreSQL's clock: the replicas' own may be apart. 0 is an
//! event whose reply is known, -1 one that was answered without a target's. Whichever is stored first stays.

use std::time::Duration;

use tokio::time::sleep;
use tokio_postgres::types::Type;

use super::engine::Postgres;
use super::failure::Failure;
use super::session::{BoundQuery, Value};
use super::values::id_of;
use crate::clock::UnixMillis;
use crate::event::EventId;
use crate::queue::Error;

/// How often the store is asked.
const EVERY: Duration = Duration::from_millis(100);
const TRY: Duration = Duration::from_secs(2);

pub(super) const FIND: &str = "SELECT asking_until, reply, reply_checksum, key FROM event WHERE id = $1";

pub(super) const DECIDE: &str =
    "UPDATE event SET asking_until = -1 WHERE id = $1 AND reply IS NULL AND asking_until <> -1";

impl Postgres {
    /// See [`super::super::Queue::reply_of`].
    pub(in crate::queue) async fn reply_of(&self, event: EventId, until: UnixMillis) -> Result<Option<String>, Error> {
        let engine = &self.engine;
        let id = id_of(event);
        while UnixMillis::now() < until {
            let values: [Value<'_>; 1] = [(&id, Type::INT8)];
            let rows = engine.reading.call(TRY, async |session| session.query(FIND, &values).await).await?;
            let Some(row) = rows.first() else { return Ok(None) };
            if row.try_get::<_, i64>(0).map_err(Failure::from)? <= 0 {
                return Ok(engine.open_stored_reply(event, row, [1, 2, 3])?);
            }
            sleep(EVERY).await;
        }
        self.decide_no_reply(event).await
    }

    /// See [`super::super::Queue::decide_no_reply`].
    pub(in crate::queue) async fn decide_no_reply(&self, event: EventId) -> Result<Option<String>, Error> {
        let engine = &self.engine;
        let id = id_of(event);
        let values: [Value<'_>; 1] = [(&id, Type::INT8)];
        let queries = [BoundQuery { sql: DECIDE, values: &values }, BoundQuery { sql: FIND, values: &values }];
        let answers = engine.reading.call(TRY, async |session| session.transact("", &queries).await).await?;
        let Some(row) = answers.last().and_then(|rows| rows.first()) else { return Ok(None) };
        Ok(engine.open_stored_reply(event, row, [1, 2, 3])?)
    }
}
