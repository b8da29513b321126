//! The writer's statements: one function for each operation on an event or a delivery.
//!
//! All but the reads at the end run inside [`Store::transact`].

use std::borrow::Cow;
use std::sync::Arc;

use rusqlite::types::{Null, ToSql, ValueRef};
use rusqlite::{OptionalExtension, Row, ffi, params};

use super::checksum::is_intact;
use super::command::Settled;
use super::key_table;
use super::store::Store;
use crate::clock::UnixMillis;
use crate::event::{ContentKey, Event, EventId};
use crate::queue::checksum;
use crate::queue::encryption::SealContext;
use crate::queue::key_ring::{KeyRing, OpenedPayload, SealedColumns};
use crate::queue::persons::{self, user_number};
use crate::queue::stored::{HELD, StoredRow, key_of};
use crate::queue::{
    AttemptNote, DeliveryState, Disposition, Enqueued, Flaw, Known, NewEvent, SettledReply, Settlement,
};
use crate::wechat::{Credentials, Query};

/// A pending delivery, and when it is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct DueDelivery {
    pub(super) event: EventId,
    pub(super) due: UnixMillis,
}

/// A stored event with the count of attempts at one of its deliveries.
pub(super) struct LoadedEvent {
    /// The event, or why it is unreadable.
    pub(super) event: Result<Event, Flaw>,
    pub(super) attempts: u32,
    pub(super) failures: u32,
}

impl Store {
    /// Stores the event with its deliveries, unless it is a duplicate. `held` becomes the targets that keep order and
    /// have an earlier delivery of the user pending.
    pub(super) fn enqueue(
        &mut self,
        new: &NewEvent,
        sealed: Option<&SealedColumns>,
        in_order: impl Fn(&str) -> bool,
        held: &mut Vec<Arc<str>>,
    ) -> rusqlite::Result<Enqueued> {
        held.clear();
        if let Some(duplicate) = self.find_duplicate(new.key)? {
            return Ok(duplicate);
        }
        self.insert_event(new, sealed)?;
        self.newest = self.newest.max(new.event.id);
        self.dedup.insert(&self.connection, new.key, new.event.id)?;
        self.count_events(1, new.targets.len().cast_signed() as i64);
        for target in &new.targets {
            let user = in_order(target).then(|| user_number(new.event.message.from_user()));
            if self.insert_delivery(&new.event, target, user)? {
                held.push(Arc::clone(target));
            }
        }
        Ok(Enqueued::Fresh)
    }

    /// Returns whether the delivery is held behind an earlier one of its user.
    fn insert_delivery(&mut self, event: &Event, target: &Arc<str>, user: Option<i64>) -> rusqlite::Result<bool> {
        let number = self.number(target)?;
        let held = user.is_some() && self.first_pending(number, user)?.is_some();
        let due = if held { HELD } else { event.received_at };
        let mut insert = self.connection.prepare_cached(
            "INSERT INTO delivery (event, target, state, attempts, failures, due, user) \
             VALUES (?1, ?2, 0, 0, 0, ?3, ?4)",
        )?;
        insert.execute(params![event.id, number, due, user])?;
        drop(insert);
        self.count(number, DeliveryState::Pending, 1);
        Ok(held)
    }

    /// A user's first pending delivery to a target that keeps order.
    pub(super) fn first_pending(&self, target: i64, user: Option<i64>) -> rusqlite::Result<Option<DueDelivery>> {
        let mut find = self.connection.prepare_cached(
            "SELECT event, due FROM delivery INDEXED BY delivery_user \
              WHERE target = ?1 AND user = ?2 AND state = 0 AND user IS NOT NULL ORDER BY event LIMIT 1",
        )?;
        find.query_row(params![target, user], |row| Ok(DueDelivery { event: row.get(0)?, due: row.get(1)? })).optional()
    }

    /// Makes the user's next delivery due, as of its arrival, after the previous one has ended; returns whether there
    /// is one. The time in its id may be later than now: ids do not go back when the clock does.
    pub(super) fn release_next(&self, ended: EventId, target: i64, now: UnixMillis) -> rusqlite::Result<bool> {
        let next = self.first_of_user(ended, target)?.filter(|next| next.due == HELD);
        if let Some(next) = next {
            self.set_due(next.event, target, next.event.moment().min(now))?;
        }
        Ok(next.is_some())
    }

    /// Holds a delivery that is to be tried again, if an earlier one of its user has become pending meanwhile.
    fn wait_for_turn(&self, event: EventId, target: i64) -> rusqlite::Result<()> {
        match self.first_of_user(event, target)? {
            Some(first) if first.event < event => self.set_due(event, target, HELD),
            Some(_) | None => Ok(()),
        }
    }

    /// The first pending delivery of the user whose delivery this is, where order is kept.
    fn first_of_user(&self, event: EventId, target: i64) -> rusqlite::Result<Option<DueDelivery>> {
        let mut find = self.connection.prepare_cached("SELECT user FROM delivery WHERE event = ?1 AND target = ?2")?;
        let user: Option<i64> = find.query_row(params![event, target], |row| row.get(0))?;
        Ok(user.map(|user| self.first_pending(target, Some(user))).transpose()?.flatten())
    }

    pub(super) fn set_due(&self, event: EventId, target: i64, due: UnixMillis) -> rusqlite::Result<()> {
        let mut update =
            self.connection.prepare_cached("UPDATE delivery SET due = ?3 WHERE event = ?1 AND target = ?2")?;
        update.execute(params![event, target, due])?;
        Ok(())
    }

    pub(super) fn insert_event(&self, new: &NewEvent, sealed: Option<&SealedColumns>) -> rusqlite::Result<()> {
        let event = &*new.event;
        let (body, clear) = (&*event.body, (event.clear != event.body).then_some(&*event.clear));
        let in_clear: [&dyn ToSql; 5] = [&new.reply, &event.query, &body, &clear, &Null];
        let [reply, query, body, clear, key] = sealed.map_or(in_clear, key_table::columns);
        let stored_reply = match sealed {
            None => new.reply.as_deref().map(str::as_bytes),
            Some(sealed) => sealed.reply(),
        };
        let mut insert = self.connection.prepare_cached(
            "INSERT INTO event (id, content_key, targets, mode, received_at, account, app_id, msg_type, event, \
                                event_key, from_user, traceparent, reply, query, body, clear, key, checksum, \
                                reply_checksum) \
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18, ?19)",
        )?;
        insert.execute(params![
            event.id,
            new.key.0,
            new.targets.len().cast_signed() as i64,
            event.mode,
            event.received_at,
            &*event.account,
            &*event.app_id,
            event.message.msg_type(),
            event.message.event(),
            event.message.event_key(),
            persons::column(event),
            event.traceparent,
            reply,
            query,
            body,
            clear,
            key,
            checksum::columns_of(new, sealed).checksum(),
            stored_reply.map(|reply| checksum::of_reply(event.id, reply)),
        ])?;
        Ok(())
    }

    /// The event of that content key, if it is or was stored, with its reply; a deleted event's reply is gone.
    pub(super) fn find_duplicate(&self, key: ContentKey) -> rusqlite::Result<Option<Enqueued>> {
        let Some(id) = self.dedup.find(&self.connection, key)? else { return Ok(None) };
        let mut find = self
            .connection
            .prepare_cached("SELECT reply, key, reply_checksum, content_key FROM event WHERE id = ?1")?;
        let found = find.query_row([id], |row| {
            // An entry of the index that leads elsewhere would give the user another one's reply.
            if row.get_ref(3)?.as_bytes_or_null()? != Some(&key.0[..]) {
                return Ok(None);
            }
            let reply = match row.get(1)? {
                _ if !is_reply_intact(id, row.get_ref(0)?, row.get_ref(2)?) => None,
                None => row.get(0)?,
                Some(number) => self.open_reply(id, number, row.get(0)?),
            };
            Ok(Some(reply))
        });
        Ok(match found.optional()? {
            None => Some(Enqueued::Duplicate { id, reply: Known::Answered(None) }),
            Some(found) => found.map(|reply| Enqueued::Duplicate { id, reply: Known::Answered(reply) }),
        })
    }

    /// A reply that cannot be decrypted counts as none, so that WeChat's retry is answered all the same.
    fn open_reply(&self, event: EventId, key: i64, sealed: Option<Vec<u8>>) -> Option<String> {
        let opened = self.keys.open_text(key, SealContext::Reply(event), &sealed?);
        opened.inspect_err(|error| tracing::error!(%event, %error, "stored reply unreadable")).ok()
    }

    /// Records the outcome of an attempt; a delivery that has ended already does not change.
    pub(super) fn settle(&mut self, settlement: &Settlement, now: UnixMillis) -> rusqlite::Result<Settled> {
        let released = self.settle_delivery(settlement, now)?;
        let reply = match &settlement.reply {
            None => None,
            Some(SettledReply::Given(given)) => self.give(given, now)?,
            Some(SettledReply::None) => {
                if let Some(target) = self.known_number(&settlement.target)? {
                    self.end_wait(settlement.event, target)?;
                }
                None
            }
        };
        Ok(Settled { released, reply })
    }

    /// Returns whether a delivery that was held behind this one is due now.
    fn settle_delivery(&mut self, settlement: &Settlement, now: UnixMillis) -> rusqlite::Result<bool> {
        let Some(target) = self.known_number(&settlement.target)? else { return Ok(false) };
        let due = settlement.next_due(now);
        let (state, ended_at) = match settlement.disposition {
            Disposition::Retry(_) | Disposition::Postpone(_) => (DeliveryState::Pending, None),
            Disposition::End(state) => (state, Some(now)),
        };
        let number = settlement.attempt.as_ref().map(|attempt| attempt.number);
        let counts =
            !matches!(settlement.disposition, Disposition::Postpone(_) | Disposition::End(DeliveryState::Delivered));
        let failed = i64::from(number.is_some() && counts);
        let mut update = self.connection.prepare_cached(
            "UPDATE delivery SET state = ?3, due = coalesce(?4, due), ended_at = ?5, \
                                 attempts = coalesce(?6, attempts), failures = failures + ?7 \
              WHERE event = ?1 AND target = ?2 AND state = 0",
        )?;
        let changed = update.execute(params![settlement.event, target, state, due, ended_at, number, failed])?;
        drop(update);
        if changed == 0 {
            return Ok(false);
        }
        self.count(target, DeliveryState::Pending, -1);
        self.count(target, state, 1);
        let released = match state {
            DeliveryState::Pending => {
                self.wait_for_turn(settlement.event, target)?;
                false
            }
            DeliveryState::Delivered | DeliveryState::Dead | DeliveryState::Expired | DeliveryState::Cancelled => {
                self.release_next(settlement.event, target, now)?
            }
        };
        self.insert_attempt(settlement, target)?;
        Ok(released)
    }

    pub(super) fn insert_attempt(&self, settlement: &Settlement, target: i64) -> rusqlite::Result<()> {
        let Some(attempt) = &settlement.attempt else { return Ok(()) };
        let mut insert = self.connection.prepare_cached(
            "INSERT OR REPLACE INTO attempt (event, target, number, at, duration_us, status, error, answer) \
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
        )?;
        let context = SealContext::Answer(settlement.event, target, attempt.number.into());
        let answer = attempt
            .answer
            .as_deref()
            .map(|answer| key_table::seal_like_event(&self.keys, &self.connection, settlement.event, context, answer))
            .transpose()?;
        insert.execute(params![
            settlement.event,
            target,
            attempt.number,
            attempt.at,
            i64::try_from(attempt.duration.as_micros()).unwrap_or(i64::MAX),
            attempt.status,
            attempt.error,
            answer,
        ])?;
        Ok(())
    }

    /// Stores the clear reply that an event was answered with.
    pub(super) fn record_reply(&self, event: EventId, reply: &str) -> rusqlite::Result<()> {
        let mut update =
            self.connection.prepare_cached("UPDATE event SET reply = ?2, reply_checksum = ?3 WHERE id = ?1")?;
        let stored = key_table::seal_like_event(
            &self.keys,
            &self.connection,
            event,
            SealContext::Reply(event),
            reply.as_bytes(),
        )?;
        let checksum = checksum::of_reply(event, &stored);
        match stored {
            Cow::Borrowed(_) => update.execute(params![event, reply, checksum])?,
            Cow::Owned(sealed) => update.execute(params![event, sealed, checksum])?,
        };
        Ok(())
    }

    /// Changes the error of an attempt's record.
    pub(super) fn annotate(&mut self, note: &AttemptNote) -> rusqlite::Result<()> {
        let Some(target) = self.known_number(&note.target)? else { return Ok(()) };
        let mut update = self
            .connection
            .prepare_cached("UPDATE attempt SET error = ?4 WHERE event = ?1 AND target = ?2 AND number = ?3")?;
        update.execute(params![note.event, target, note.attempt, note.error])?;
        Ok(())
    }

    /// Stores whether a target is paused.
    pub(super) fn pause(&mut self, target: &Arc<str>, paused: bool) -> rusqlite::Result<()> {
        let number = self.number(target)?;
        let mut update = self.connection.prepare_cached("UPDATE target SET paused = ?2 WHERE no = ?1")?;
        update.execute(params![number, paused])?;
        Ok(())
    }

    /// The pending deliveries of a target, by due time.
    pub(super) fn list_due(&self, target: i64, limit: usize) -> rusqlite::Result<Vec<DueDelivery>> {
        let mut find = self.connection.prepare_cached(
            "SELECT event, due FROM delivery INDEXED BY delivery_pending \
              WHERE state = 0 AND target = ?1 ORDER BY due, event LIMIT ?2",
        )?;
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        find.query_map(params![target, limit], |row| Ok(DueDelivery { event: row.get(0)?, due: row.get(1)? }))?
            .collect()
    }

    /// Reads an event for a lease of its delivery to a target.
    pub(super) fn load_event(&self, id: EventId, target: i64) -> rusqlite::Result<LoadedEvent> {
        // Two statements, not a join: SQLite plans a join on a parameter again for each value, which takes longer than
        // the rest of a lease.
        let event = self.load_verified(id)?;
        let mut count = self
            .connection
            .prepare_cached("SELECT attempts, failures FROM delivery WHERE event = ?1 AND target = ?2")?;
        let counts = count.query_row(params![id, target], |row| Ok((row.get(0)?, row.get(1)?))).optional()?;
        // Only an index of the table has led here: what it says is not to be believed.
        let (attempts, failures) = counts.ok_or_else(|| damaged("an index leads to a delivery that is not there"))?;
        let count = |stored: i64| u32::try_from(stored).unwrap_or(0);
        Ok(LoadedEvent { event, attempts: count(attempts), failures: count(failures) })
    }

    /// Reads an event that is what was received, or says why it is not.
    pub(super) fn load_verified(&self, id: EventId) -> rusqlite::Result<Result<Event, Flaw>> {
        let mut read = self.connection.prepare_cached(
            "SELECT id, account, app_id, mode, received_at, query, body, clear, traceparent, key, content_key, checksum \
               FROM event WHERE id = ?1",
        )?;
        match read.query_row([id], |row| Ok(read_verified(row, &self.keys))) {
            Ok(read) => flaw_of_row(read),
            Err(rusqlite::Error::QueryReturnedNoRows) => Ok(Err(Flaw::Missing)),
            Err(error) => Err(error),
        }
    }

    /// The signed timestamp of the newest event, in seconds, if it can be read.
    pub(super) fn newest_stamp(&self) -> Option<i64> {
        let event = self.load_verified(self.last_id().ok()?).ok()?.ok()?;
        Credentials::timestamp(&Query::parse(&event.query).ok()?).ok()
    }
}

/// See [`checksum::is_reply_intact`].
pub(super) fn is_reply_intact(event: EventId, reply: ValueRef<'_>, checksum: ValueRef<'_>) -> bool {
    let (ValueRef::Text(reply) | ValueRef::Blob(reply), ValueRef::Integer(stored)) = (reply, checksum) else {
        return true;
    };
    checksum::is_reply_intact(event, reply, Some(stored))
}

/// The failure by which a damaged file is known.
fn damaged(what: &str) -> rusqlite::Error {
    rusqlite::Error::SqliteFailure(ffi::Error::new(ffi::SQLITE_CORRUPT), Some(what.to_owned()))
}

/// A column of another type than it was written with is a flaw of that one event, and no failure of the store.
fn flaw_of_row(read: rusqlite::Result<Result<Event, Flaw>>) -> rusqlite::Result<Result<Event, Flaw>> {
    match read {
        Err(error) if error.sqlite_error().is_none() => Ok(Err(Flaw::Unreadable(error.to_string()))),
        read => read,
    }
}

/// As [`read_event`]; what is not what was received is an error.
fn read_verified(row: &Row<'_>, keys: &KeyRing) -> rusqlite::Result<Result<Event, Flaw>> {
    let event = match read_event(row, keys)? {
        Ok(_) if !is_intact(row)? => return Ok(Err(Flaw::Checksum)),
        Ok(event) => event,
        Err(flaw) => return Ok(Err(flaw)),
    };
    let is_keyed = row.get_ref("content_key")?.as_bytes_or_null()? == Some(&key_of(&event).0[..]);
    Ok(if is_keyed { Ok(event) } else { Err(Flaw::ContentKey) })
}

/// The event in the first ten columns that [`Store::load_event`] reads, or why it is unreadable.
pub(super) fn read_event(row: &Row<'_>, keys: &KeyRing) -> rusqlite::Result<Result<Event, Flaw>> {
    let id = row.get(0)?;
    let value = |column| Ok::<_, rusqlite::Error>(row.get_ref(column)?.as_bytes_or_null()?);
    let payload = match row.get(9)? {
        None => Ok(OpenedPayload { query: row.get(5)?, body: row.get(6)?, clear: row.get(7)? }),
        Some(key) => keys.open_payload(key, id, [value(5)?, value(6)?, value(7)?]),
    };
    let payload = match payload {
        Ok(payload) => payload,
        Err(unopened) => return Ok(Err(Flaw::Encrypted(unopened))),
    };
    Ok(StoredRow {
        id,
        account: row.get(1)?,
        app_id: row.get(2)?,
        mode: row.get(3)?,
        received_at: row.get(4)?,
        traceparent: row.get(8)?,
        payload,
    }
    .into_event())
}
