//! Puts the events of a damaged store together again from the rows that were found.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use rusqlite::types::Value;
use rusqlite::{OptionalExtension, params};

use super::SalvageFlaw;
use super::pages::DamagedPages;
use super::record;
use super::stage::Stage;
use crate::clock::UnixMillis;
use crate::event::{ContentKey, Event, EventId};
use crate::ordered;
use crate::queue::checksum::{self, Checksum};
use crate::queue::encryption::{DecryptError, EncryptionKeys, Fingerprint, SealContext};
use crate::queue::key_ring::KeyRing;
use crate::queue::sqlite::checksum::add;
use crate::queue::sqlite::import::{SalvagedDelivery, SalvagedEvent, SalvagedReply};
use crate::queue::stored::key_of;
use crate::queue::{AttemptRecord, DeliveryState, Error, NewEvent, ReplyState};
use crate::wechat::{Message, Mode};

/// The columns of an event, by their place in its row.
mod column {
    pub(super) const CONTENT_KEY: usize = 1;
    pub(super) const TARGETS: usize = 2;
    pub(super) const MODE: usize = 3;
    pub(super) const RECEIVED_AT: usize = 4;
    pub(super) const ACCOUNT: usize = 5;
    pub(super) const APP_ID: usize = 6;
    pub(super) const TRACEPARENT: usize = 11;
    pub(super) const REPLY: usize = 12;
    pub(super) const QUERY: usize = 13;
    pub(super) const BODY: usize = 14;
    pub(super) const CLEAR: usize = 15;
    pub(super) const KEY: usize = 16;
    pub(super) const CHECKSUM: usize = 17;
    pub(super) const REPLY_CHECKSUM: usize = 18;
    /// Those that the checksum covers, in the order of `checksum::COVERED`, but for the id.
    pub(super) const COVERED: [usize; 10] =
        [CONTENT_KEY, MODE, RECEIVED_AT, ACCOUNT, APP_ID, TRACEPARENT, QUERY, BODY, CLEAR, KEY];
}

/// Some events in the order of their ids.
#[derive(Default)]
pub(super) struct EventBatch {
    pub(super) events: Vec<SalvagedEvent>,
    pub(super) unreadable: Vec<SalvageFlaw>,
    pub(super) incomplete: Vec<SalvageFlaw>,
    /// The last id; `None` at the end.
    pub(super) last: Option<EventId>,
}

/// Reads events from the pages, by the places that the stage has noted.
pub(super) struct EventReader {
    pages: DamagedPages,
    stage: Stage,
    keys: KeyRing,
    targets: BTreeMap<i64, Arc<str>>,
    needs_key: bool,
}

/// The columns of an event's row.
struct EventColumns(Vec<Value>);

/// Why an event cannot be put together.
type Reason = String;

impl EventReader {
    pub(super) fn new(pages: DamagedPages, stage: Stage, configured: &EncryptionKeys) -> Result<Self, Error> {
        let mut find = stage.connection.prepare("SELECT no, fingerprint FROM key")?;
        let named = find.query_map([], |row| Ok((row.get(0)?, Fingerprint(row.get(1)?))))?;
        let keys = KeyRing::of(named.collect::<rusqlite::Result<Vec<_>>>()?, configured);
        drop(find);
        let mut find = stage.connection.prepare("SELECT no, name FROM target")?;
        let targets = find.query_map([], |row| Ok((row.get(0)?, row.get::<_, String>(1)?.into())))?;
        let targets = ordered::try_map(targets)?;
        drop(find);
        Ok(Self { pages, stage, keys, targets, needs_key: false })
    }

    pub(super) fn damaged_pages(&self) -> u64 {
        self.stage.damaged_pages
    }

    /// Whether an event was left out only because its key is not configured.
    pub(super) fn needs_key(&self) -> bool {
        self.needs_key
    }

    /// The next events behind `after`. An id of which only deliveries are left counts as an event too.
    pub(super) fn next(&mut self, after: Option<EventId>, most: usize) -> Result<EventBatch, Error> {
        let ids: Vec<EventId> = {
            let mut find = self.stage.connection.prepare_cached(
                "SELECT id FROM event WHERE id > ?1 UNION SELECT event FROM delivery WHERE event > ?1 \
                 UNION SELECT event FROM open WHERE event > ?1 ORDER BY 1 LIMIT ?2",
            )?;
            let most = i64::try_from(most).unwrap_or(i64::MAX);
            find.query_map(params![after.unwrap_or(EventId(0)), most], |row| row.get(0))?
                .collect::<rusqlite::Result<_>>()?
        };
        let mut batch = EventBatch { last: ids.last().copied(), ..EventBatch::default() };
        for id in ids {
            let deliveries = self.deliveries(id)?;
            match self.event(id, deliveries)? {
                Ok((event, missing)) => {
                    if missing > 0 {
                        let reason =
                            format!("{missing} of its deliveries are gone; none of them is in an index of open ones");
                        batch.incomplete.push(SalvageFlaw { event: id, reason, open: open(&event.deliveries) });
                    }
                    batch.events.push(event);
                }
                Err((reason, deliveries)) => {
                    batch.unreadable.push(SalvageFlaw { event: id, reason, open: open(&deliveries) });
                }
            }
        }
        Ok(batch)
    }

    /// The event, and how many deliveries it lacks.
    #[expect(clippy::type_complexity, reason = "two outcomes within the failure of the scratch database")]
    fn event(
        &mut self,
        id: EventId,
        mut deliveries: Vec<SalvagedDelivery>,
    ) -> Result<Result<(SalvagedEvent, usize), (Reason, Vec<SalvagedDelivery>)>, Error> {
        let Some(columns) = self.columns(id)? else {
            return Ok(Err(("its row is gone".to_owned(), deliveries)));
        };
        let (event, reply) = match self.decode(id, &columns) {
            Ok(decoded) => decoded,
            Err(reason) => return Ok(Err((reason, deliveries))),
        };
        let stored = usize::try_from(columns.integer(column::TARGETS)).unwrap_or(0);
        let missing = stored.saturating_sub(deliveries.len());
        let key = columns.0.get(column::KEY).cloned().unwrap_or(Value::Null);
        for delivery in &mut deliveries {
            self.open_answers(id, &key, delivery);
        }
        let targets = deliveries.iter().map(|delivery| Arc::clone(&delivery.target)).collect();
        let new = NewEvent { key: key_of(&event), event: Arc::new(event), targets, reply, awaited: Vec::new() };
        let replies = self.replies(id, &key)?;
        Ok(Ok((SalvagedEvent { new, deliveries, replies }, missing)))
    }

    fn columns(&self, id: EventId) -> rusqlite::Result<Option<EventColumns>> {
        let mut find = self.stage.connection.prepare_cached("SELECT page, back, cell FROM event WHERE id = ?1")?;
        let place = find.query_row([id], |row| Ok((row.get(0)?, row.get::<_, i64>(1)?, row.get(2)?))).optional()?;
        Ok(place.and_then(|(page, back, cell)| {
            let version = self.pages.version(page, usize::try_from(back).ok()?)?;
            record::read_cell(&self.pages, page, &version.bytes, cell).map(|row| EventColumns(row.columns))
        }))
    }

    /// The event and its reply, if they are what was stored.
    fn decode(&mut self, id: EventId, columns: &EventColumns) -> Result<(Event, Option<String>), Reason> {
        if !columns.is_intact(id) {
            return Err("its row differs from its checksum".to_owned());
        }
        let key = columns.0.get(column::KEY).and_then(|key| match key {
            Value::Integer(number) => Some(*number),
            _ => None,
        });
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).map_err(|_| "a text is no UTF-8".to_owned());
        let query = text(self.open(key, SealContext::Query(id), columns.bytes(column::QUERY))?.unwrap_or_default())?;
        let body = Bytes::from(self.open(key, SealContext::Body(id), columns.bytes(column::BODY))?.unwrap_or_default());
        let clear = self.open(key, SealContext::Clear(id), columns.bytes(column::CLEAR))?;
        let clear = clear.map_or_else(|| body.clone(), Bytes::from);
        let message = Message::parse(&clear).map_err(|_| "its stored text does not parse".to_owned())?;
        let traceparent = columns.bytes(column::TRACEPARENT).map(text).transpose()?;
        let event = Event {
            id,
            account: text(columns.bytes(column::ACCOUNT).unwrap_or_default())?.into(),
            app_id: text(columns.bytes(column::APP_ID).unwrap_or_default())?.into(),
            mode: columns.mode().ok_or("its mode is unknown")?,
            received_at: UnixMillis(columns.integer(column::RECEIVED_AT)),
            query,
            body,
            clear,
            message,
            traceparent,
        };
        let ContentKey(content_key) = key_of(&event);
        if columns.bytes(column::CONTENT_KEY).as_deref() != Some(&content_key[..]) {
            return Err("its content key is not that of the stored text".to_owned());
        }
        // A damaged reply counts as none, as for WeChat's retries.
        let reply =
            columns.reply(id).and_then(|reply| self.open(key, SealContext::Reply(id), Some(reply)).ok().flatten());
        Ok((event, reply.and_then(|reply| String::from_utf8(reply).ok())))
    }

    /// A column in the clear.
    fn open(
        &mut self,
        key: Option<i64>,
        context: SealContext,
        stored: Option<Vec<u8>>,
    ) -> Result<Option<Vec<u8>>, Reason> {
        let (Some(number), Some(sealed)) = (key, &stored) else { return Ok(stored) };
        match self.keys.open(number, context, sealed) {
            Ok(clear) => Ok(Some(clear)),
            Err(error) => {
                self.needs_key |= matches!(error, DecryptError::KeyMissing(_));
                Err(error.to_string())
            }
        }
    }

    fn deliveries(&self, id: EventId) -> rusqlite::Result<Vec<SalvagedDelivery>> {
        let mut find = self.stage.connection.prepare_cached(
            "SELECT d.target, CASE WHEN o.state = 0 THEN 0 ELSE d.state END, d.attempts, d.failures, d.ended_at \
               FROM delivery d LEFT JOIN open o ON o.event = d.event AND o.target = d.target WHERE d.event = ?1 \
             UNION ALL \
             SELECT o.target, o.state, NULL, 0, NULL FROM open o WHERE o.event = ?1 \
                AND NOT EXISTS (SELECT 1 FROM delivery d WHERE d.event = o.event AND d.target = o.target)",
        )?;
        let mut rows = find.query([id])?;
        let mut found = Vec::new();
        while let Some(row) = rows.next()? {
            let number: i64 = row.get(0)?;
            let state: DeliveryState = row.get(1)?;
            let history = self.attempts(id, number)?;
            let made = history.iter().map(|attempt| attempt.number).max().unwrap_or(0);
            let count = |stored: Option<i64>| stored.and_then(|stored| u32::try_from(stored).ok());
            let ended_at = row.get::<_, Value>(4)?;
            found.push(SalvagedDelivery {
                number,
                // The names are gone: an operator redirects what is open.
                target: self.targets.get(&number).cloned().unwrap_or_else(|| format!("salvaged-{number}").into()),
                state,
                attempts: count(row.get(2)?).unwrap_or(made),
                failures: count(row.get(3)?).unwrap_or(0),
                ended_at: match ended_at {
                    Value::Integer(at) if state != DeliveryState::Pending => Some(UnixMillis(at)),
                    _ => None,
                },
                history,
            });
        }
        Ok(found)
    }

    fn attempts(&self, id: EventId, target: i64) -> rusqlite::Result<Vec<AttemptRecord>> {
        let mut find = self.stage.connection.prepare_cached(
            "SELECT number, at, duration_us, status, error, answer FROM attempt WHERE event = ?1 AND target = ?2",
        )?;
        let rows = find.query_map(params![id, target], |row| {
            let integer = |column| Ok::<_, rusqlite::Error>(row.get::<_, Option<i64>>(column).ok().flatten());
            Ok(AttemptRecord {
                number: row.get(0)?,
                at: row.get(1)?,
                duration: Duration::from_micros(integer(2)?.and_then(|micros| u64::try_from(micros).ok()).unwrap_or(0)),
                status: integer(3)?.and_then(|status| u16::try_from(status).ok()),
                error: row.get(4).ok(),
                answer: match row.get(5)? {
                    Value::Blob(answer) => Some(answer),
                    Value::Text(answer) => Some(answer.into_bytes()),
                    _ => None,
                },
            })
        })?;
        // A damaged record is left out: it is history, and no delivery depends on it.
        Ok(rows.filter_map(Result::ok).collect())
    }

    /// What became of the replies to an event. A held one that is damaged or cannot be decrypted counts as expired.
    fn replies(&self, id: EventId, key: &Value) -> rusqlite::Result<Vec<SalvagedReply>> {
        let mut find = self.stage.connection.prepare_cached(
            "SELECT target, state, attempt, at, taken, expires_at, picked_by, account, user, checksum, content FROM reply \
              WHERE event = ?1 ORDER BY no",
        )?;
        let rows = find.query_map([id], |row| {
            let (number, at): (i64, Option<i64>) = (row.get(0)?, row.get(3)?);
            let stored: Option<Vec<u8>> = row.get(10)?;
            let sum: Option<i64> = row.get(9)?;
            let intact = stored.filter(|stored| sum == Some(checksum::of_held(id, at.unwrap_or(0), stored)));
            let content = intact.and_then(|stored| match key {
                Value::Integer(key) => self.keys.open(*key, SealContext::Held(id, at.unwrap_or(0)), &stored).ok(),
                _ => Some(stored),
            });
            let mut reply = SalvagedReply {
                target: self.targets.get(&number).cloned().unwrap_or_else(|| format!("salvaged-{number}").into()),
                state: row.get(1)?,
                attempt: row.get(2)?,
                at,
                taken: row.get(4)?,
                expires_at: row.get(5)?,
                picked_by: row.get(6)?,
                account: row.get(7)?,
                user: row.get(8)?,
                content,
            };
            if reply.state == ReplyState::Held && reply.content.is_none() {
                (reply.state, reply.expires_at) = (ReplyState::Expired, None);
            }
            Ok(reply)
        })?;
        // A damaged row is left out: no delivery depends on it.
        Ok(rows.filter_map(Result::ok).collect())
    }

    /// Decrypts the answers of a delivery's attempts; what cannot be decrypted is left out.
    fn open_answers(&self, id: EventId, key: &Value, delivery: &mut SalvagedDelivery) {
        let Value::Integer(key) = key else { return };
        for attempt in &mut delivery.history {
            let context = SealContext::Answer(id, delivery.number, attempt.number.into());
            attempt.answer = attempt.answer.take().and_then(|sealed| self.keys.open(*key, context, &sealed).ok());
        }
    }
}

impl EventColumns {
    fn bytes(&self, column: usize) -> Option<Vec<u8>> {
        match self.0.get(column)? {
            Value::Text(text) => Some(text.clone().into_bytes()),
            Value::Blob(bytes) => Some(bytes.clone()),
            Value::Null | Value::Integer(_) | Value::Real(_) => None,
        }
    }

    fn integer(&self, column: usize) -> i64 {
        match self.0.get(column) {
            Some(Value::Integer(number)) => *number,
            _ => 0,
        }
    }

    fn mode(&self) -> Option<Mode> {
        crate::queue::stored::mode_of(self.integer(column::MODE))
    }

    /// A row of an earlier schema has no checksum.
    fn is_intact(&self, id: EventId) -> bool {
        let Some(Value::Integer(stored)) = self.0.get(column::CHECKSUM) else { return true };
        let mut checksum = Checksum::default();
        checksum.add_number(id.0.cast_signed());
        for place in column::COVERED {
            add(&mut checksum, self.0.get(place).unwrap_or(&Value::Null).into());
        }
        checksum.value() == *stored
    }

    fn reply(&self, id: EventId) -> Option<Vec<u8>> {
        let reply = self.bytes(column::REPLY)?;
        match self.0.get(column::REPLY_CHECKSUM) {
            Some(Value::Integer(stored)) if checksum::of_reply(id, &reply) != *stored => None,
            _ => Some(reply),
        }
    }
}

/// The targets that an event is pending for or dead at.
fn open(deliveries: &[SalvagedDelivery]) -> Vec<String> {
    let is_open = |state| matches!(state, DeliveryState::Pending | DeliveryState::Dead);
    deliveries.iter().filter(|delivery| is_open(delivery.state)).map(|delivery| delivery.target.to_string()).collect()
}
