//! The reader of the embedded engine: a read-only connection of its own, so it works with and without a running relay,
//! and never delays a push. Each answer is one snapshot.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use rusqlite::{Connection, OpenFlags, OptionalExtension, Row, Transaction, params};

use super::damage::quarantine::list_damaged;
use super::held::REPLIES;
use super::key_table;
use super::selection::IS_ABOUT;
use super::{files, ledger, schema};
use crate::event::EventId;
use crate::ordered;
use crate::queue::columns::ColumnReader;
use crate::queue::encryption::{EncryptionKeys, SealContext};
use crate::queue::key_ring::{EncryptionStatus, KeyRing};
use crate::queue::persons::sender;
use crate::queue::view::{
    AttemptDetail, Audit, Counts, DeadLetter, DeliveryDetail, DeliverySummary, EventDetail, EventFilter, EventSummary,
    ReplyCounts, Stats, TargetCounts, TargetStats,
};
use crate::queue::{DeliveryState, Error};
use crate::wechat::Mode;

/// A read-only view of a store.
#[derive(Debug)]
pub(in crate::queue) struct SqliteReader {
    pub(super) connection: Connection,
    folder: PathBuf,
    keys: EncryptionKeys,
}

impl SqliteReader {
    /// Opens the store in a folder, if there is one that this release can read.
    pub(in crate::queue) fn open(folder: &Path) -> Result<Self, Error> {
        let path = folder.join(files::DATABASE);
        match fs::symlink_metadata(&path) {
            Err(_) => return Err(Error::Missing { path: folder.to_owned() }),
            Ok(metadata) if !metadata.is_file() => return Err(Error::NotAFile { path }),
            Ok(_) => {}
        }
        Self::open_file(&path, folder)
    }

    /// As [`SqliteReader::open`], of a file that is there, whatever its name.
    pub(super) fn open_file(path: &Path, folder: &Path) -> Result<Self, Error> {
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(path, flags)?;
        match schema::version(&connection, path)? {
            0 => return Err(Error::Missing { path: folder.to_owned() }),
            schema::VERSION => {}
            found => return Err(Error::Outdated { path: path.to_owned(), found, known: schema::VERSION }),
        }
        Ok(Self { connection, folder: folder.to_owned(), keys: EncryptionKeys::default() })
    }

    /// Adds the keys that payloads are decrypted with. Values that need another key are left out of the answers, with
    /// the reason.
    pub(in crate::queue) fn with_keys(self, keys: &EncryptionKeys) -> Self {
        Self { keys: keys.clone(), ..self }
    }

    /// The keys of the store, as far as they are configured.
    pub(super) fn key_ring(&self, snapshot: &Connection) -> rusqlite::Result<KeyRing> {
        key_table::load(snapshot, &self.keys)
    }

    /// Which keys events are encrypted with. May read every event.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub(in crate::queue) fn encryption_status(&self) -> Result<EncryptionStatus, Error> {
        Ok(key_table::survey(&self.connection)?)
    }

    /// Events, deliveries and backlog by the running ledger: cheap at any size of the store, except for a search for
    /// the oldest pending delivery of each target.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub(in crate::queue) fn stats(&self) -> Result<Stats, Error> {
        self.stats_since(&mut OldestPending::default())
    }

    /// As [`SqliteReader::stats`], for repeated calls: the oldest pending deliveries that are known already shorten that
    /// search.
    pub(super) fn stats_since(&self, oldest: &mut OldestPending) -> Result<Stats, Error> {
        let snapshot = self.connection.unchecked_transaction()?;
        let Tally { events, accepted, targets: counts, .. } = tally(&snapshot)?;
        let targets = target_names(&snapshot)?.into_iter().map(|(number, target)| {
            let counts = counts.get(&number).copied().unwrap_or_default();
            let oldest = oldest.find(&snapshot, number, counts.pending)?;
            Ok(TargetStats { target, counts, oldest_pending: oldest.map(EventId::moment) })
        });
        let targets: Vec<TargetStats> = targets.collect::<rusqlite::Result<_>>()?;
        let unaccounted = targets.iter().map(|target| target.counts.total()).sum::<u64>().abs_diff(accepted);
        let damaged = list_damaged(&self.folder)?.into_iter().map(|store| store.name).collect();
        let bytes = files::size(&self.folder);
        Ok(Stats { events, unaccounted, bytes, targets, held_replies: ledger::held_by_account(&snapshot)?, damaged })
    }

    /// Counts the whole ledger again. Reads every row, but no bodies.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub(in crate::queue) fn audit(&self) -> Result<Audit, Error> {
        let snapshot = self.connection.unchecked_transaction()?;
        let (events, deliveries, missing) = snapshot.query_row(
            "SELECT count(*), coalesce(sum(targets), 0), \
                    coalesce(sum(abs(targets - (SELECT count(*) FROM delivery WHERE event = id))), 0) FROM event",
            [],
            |row| Ok((count(row, 0)?, count(row, 1)?, count(row, 2)?)),
        )?;
        let orphans = snapshot.query_row(
            "SELECT count(*) FROM delivery d WHERE NOT EXISTS (SELECT 1 FROM event WHERE id = d.event)",
            [],
            |row| count(row, 0),
        )?;
        let mut unaccounted = missing + orphans;
        let mut found: BTreeMap<i64, Counts> = BTreeMap::new();
        let mut states = snapshot.prepare("SELECT target, state, count(*) FROM delivery GROUP BY target, state")?;
        let mut rows = states.query([])?;
        while let Some(row) = rows.next()? {
            match row.get::<_, DeliveryState>(1) {
                Ok(state) => *found.entry(row.get(0)?).or_default().of(state) += count(row, 2)?,
                Err(_) => unaccounted += count(row, 2)?,
            }
        }
        let known = snapshot.query_row(
            "SELECT (SELECT count(*) FROM known) \
                    - (SELECT count(*) FROM retired_key r WHERE r.event IS \
                         (SELECT k.event FROM known k WHERE k.content_key = r.content_key)) \
                    + (SELECT count(*) FROM event WHERE id > until.event) FROM known_until until",
            [],
            |row| count(row, 0),
        )?;
        let tally = tally(&snapshot)?;
        let replies = ledger::count_replies(&snapshot, &mut unaccounted)?;
        let drift = events.abs_diff(tally.events)
            + deliveries.abs_diff(tally.accepted)
            + drift(&found, &tally.targets)
            + replies.drift(tally.replies)
            + events.abs_diff(known);
        let mut counts = Counts::default();
        for part in found.values() {
            DeliveryState::ALL.into_iter().for_each(|state| *counts.of(state) += *part.clone().of(state));
        }
        let targets = target_names(&snapshot)?.into_iter();
        let targets =
            targets.map(|(number, target)| TargetCounts { target, counts: found.remove(&number).unwrap_or_default() });
        let targets = targets.collect();
        // What is left are deliveries to a target that has no name.
        unaccounted += found.values().map(Counts::total).sum::<u64>();
        let replies = ReplyCounts { given: tally.replies.given, ..replies };
        Ok(Audit { events, deliveries, counts, unaccounted, drift, targets, replies })
    }

    /// The newest events that the filter lets through.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub(in crate::queue) fn events(&self, filter: &EventFilter) -> Result<Vec<EventSummary>, Error> {
        let snapshot = self.connection.unchecked_transaction()?;
        let sql = format!(
            "SELECT id, received_at, account, msg_type, event, event_key, from_user FROM event e \
              WHERE id < ?1 AND id >= ?2 AND (?3 IS NULL OR account = ?3) \
                AND (?4 IS NULL OR event = ?4 COLLATE NOCASE OR msg_type = ?4 COLLATE NOCASE) \
                AND (?5 IS NULL OR {IS_ABOUT}) \
                AND (?6 IS NULL AND ?7 IS NULL OR EXISTS (SELECT 1 FROM delivery d JOIN target t ON t.no = d.target \
                     WHERE d.event = e.id AND (?6 IS NULL OR t.name = ?6) AND (?7 IS NULL OR d.state = ?7))) \
              ORDER BY id DESC LIMIT ?8",
        );
        let mut find = snapshot.prepare(&sql)?;
        let end = filter.until.map_or(LAST_ID, EventId::first_at).min(filter.before.unwrap_or(LAST_ID));
        let start = filter.since.map_or(EventId(0), EventId::first_at);
        let limit = i64::try_from(filter.limit).unwrap_or(i64::MAX);
        let parameters =
            params![end, start, filter.account, filter.event, filter.from, filter.target, filter.state, limit];
        let mut deliveries = snapshot.prepare(
            "SELECT coalesce(t.name, ''), d.state, d.attempts FROM delivery d LEFT JOIN target t ON t.no = d.target \
              WHERE d.event = ?1 ORDER BY 1",
        )?;
        let found = find.query_map(parameters, |row| {
            let id: EventId = row.get(0)?;
            let deliveries = deliveries.query_map([id], |row| {
                Ok(DeliverySummary { target: row.get(0)?, state: row.get(1)?, attempts: row.get(2)? })
            })?;
            Ok(EventSummary {
                id,
                received_at: row.get(1)?,
                account: row.get(2)?,
                msg_type: row.get(3)?,
                event: row.get(4)?,
                event_key: row.get(5)?,
                from: sender(row.get_ref(6)?.as_str()?).to_owned(),
                deliveries: deliveries.collect::<rusqlite::Result<_>>()?,
            })
        })?;
        Ok(found.collect::<rusqlite::Result<_>>()?)
    }

    /// The targets that an operator has paused.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub(in crate::queue) fn paused(&self) -> Result<BTreeSet<String>, Error> {
        let mut find = self.connection.prepare("SELECT name FROM target WHERE paused")?;
        let names = find.query_map([], |row| row.get(0))?.collect::<rusqlite::Result<Vec<_>>>()?;
        Ok(ordered::set(names))
    }

    /// One event with its text, deliveries and every attempt.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub(in crate::queue) fn event(&self, id: EventId) -> Result<Option<EventDetail>, Error> {
        let snapshot = self.connection.unchecked_transaction()?;
        let keys = self.key_ring(&snapshot)?;
        let detail = snapshot.query_row(
            "SELECT id, received_at, account, app_id, mode, msg_type, event, event_key, from_user, \
                    coalesce(clear, body), reply, traceparent, key, clear IS NULL FROM event WHERE id = ?1",
            [id],
            |row| {
                let mut reader = ColumnReader::new(&keys, row.get(12)?);
                let context = if row.get(13)? { SealContext::Body(id) } else { SealContext::Clear(id) };
                let text = reader.text(row.get_ref(9)?.as_bytes_or_null()?, context).unwrap_or_default();
                let reply = reader.text(row.get_ref(10)?.as_bytes_or_null()?, SealContext::Reply(id));
                let deliveries = deliveries(&snapshot, id, &mut reader)?;
                Ok(EventDetail {
                    id: row.get(0)?,
                    received_at: row.get(1)?,
                    account: row.get(2)?,
                    app_id: row.get(3)?,
                    mode: row.get::<_, Mode>(4)?.to_string(),
                    msg_type: row.get(5)?,
                    event: row.get(6)?,
                    event_key: row.get(7)?,
                    from: sender(row.get_ref(8)?.as_str()?).to_owned(),
                    text,
                    reply,
                    sealed: reader.error_text(),
                    traceparent: row.get(11)?,
                    deliveries,
                    replies: ledger::replies(&snapshot, id)?,
                    picked_up: ledger::picked_up(&snapshot, id)?,
                })
            },
        );
        Ok(detail.optional()?)
    }

    /// Dead letters, those of the newest events first; `limit` counts events, so that a page never splits one.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub(in crate::queue) fn dead(
        &self,
        target: Option<&str>,
        limit: usize,
        before: Option<EventId>,
    ) -> Result<Vec<DeadLetter>, Error> {
        let snapshot = self.connection.unchecked_transaction()?;
        let keys = self.key_ring(&snapshot)?;
        let mut find = snapshot.prepare(
            "WITH letter AS (SELECT d.event, d.target, t.name, d.ended_at, d.attempts FROM delivery d \
                               LEFT JOIN target t ON t.no = d.target \
                              WHERE d.state = 2 AND d.event < ?1 AND (?2 IS NULL OR t.name = ?2)) \
             SELECT l.event, coalesce(l.name, ''), e.received_at, l.ended_at, e.account, e.msg_type, e.event, \
                    l.attempts, a.status, a.error, a.answer, e.key, l.target, a.number \
               FROM letter l JOIN event e ON e.id = l.event \
               LEFT JOIN attempt a ON a.event = l.event AND a.target = l.target AND a.number = l.attempts \
              WHERE l.event IN (SELECT DISTINCT event FROM letter ORDER BY event DESC LIMIT ?3) \
              ORDER BY l.event DESC, 2",
        )?;
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let found = find.query_map(params![before.unwrap_or(LAST_ID), target, limit], |row| {
            let id = row.get(0)?;
            let mut reader = ColumnReader::new(&keys, row.get(11)?);
            let number: Option<i64> = row.get(13)?;
            let context = SealContext::Answer(id, row.get(12)?, number.unwrap_or_default());
            let answer = reader.text(row.get_ref(10)?.as_bytes_or_null()?, context);
            Ok(DeadLetter {
                id,
                target: row.get(1)?,
                received_at: row.get(2)?,
                ended_at: row.get(3)?,
                account: row.get(4)?,
                msg_type: row.get(5)?,
                event: row.get(6)?,
                attempts: row.get(7)?,
                status: row.get(8)?,
                error: row.get(9)?,
                answer,
                sealed: reader.error_text(),
            })
        })?;
        Ok(found.collect::<rusqlite::Result<_>>()?)
    }
}

/// The oldest pending delivery of each target by its number, as far as known: nothing older than it is pending until an
/// operator revives a dead letter.
#[derive(Clone, Debug, Default)]
pub(super) struct OldestPending(BTreeMap<i64, EventId>);

impl OldestPending {
    /// Finds the oldest of a target's `pending` pending deliveries. No index is in that order (it is by due time, and a
    /// retry is due late). So the search goes forward from the last one known, over those that have ended since; if
    /// more have ended than are pending, all pending ones are read instead.
    fn find(&mut self, snapshot: &Transaction<'_>, target: i64, pending: u64) -> rusqlite::Result<Option<EventId>> {
        let known = self.0.get(&target).copied().unwrap_or(EventId(0));
        let mut walk = snapshot.prepare_cached(
            "SELECT event FROM (SELECT event, target, state FROM delivery WHERE event >= ?1 ORDER BY event LIMIT ?3) \
              WHERE target = ?2 AND state = 0 LIMIT 1",
        )?;
        let steps = i64::try_from(pending).unwrap_or(i64::MAX);
        let mut found: Option<EventId> = walk.query_row(params![known, target, steps], |row| row.get(0)).optional()?;
        if found.is_none() {
            let mut scan = snapshot.prepare_cached(
                "SELECT min(event) FROM delivery INDEXED BY delivery_pending WHERE state = 0 AND target = ?1",
            )?;
            found = scan.query_row([target], |row| row.get(0))?;
        }
        self.0.extend(found.map(|event| (target, event)));
        Ok(found)
    }
}

/// The largest number that a column holds: no event has it.
pub(super) const LAST_ID: EventId = EventId(i64::MAX as u64);

fn deliveries(
    snapshot: &Transaction<'_>,
    event: EventId,
    reader: &mut ColumnReader<'_>,
) -> rusqlite::Result<Vec<DeliveryDetail>> {
    let mut find = snapshot.prepare(
        "SELECT d.target, coalesce(t.name, ''), d.state, d.due, d.ended_at \
           FROM delivery d LEFT JOIN target t ON t.no = d.target WHERE d.event = ?1 ORDER BY 2",
    )?;
    let mut attempts = snapshot.prepare(
        "SELECT number, at, duration_us, status, error, answer FROM attempt \
          WHERE event = ?1 AND target = ?2 ORDER BY number",
    )?;
    let found = find.query_map([event], |row| {
        let state: DeliveryState = row.get(2)?;
        let target: i64 = row.get(0)?;
        let attempts = attempts.query_map(params![event, target], |row| {
            let answer =
                reader.text(row.get_ref(5)?.as_bytes_or_null()?, SealContext::Answer(event, target, row.get(0)?));
            Ok(AttemptDetail { answer, ..read_attempt(row)? })
        })?;
        Ok(DeliveryDetail {
            target: row.get(1)?,
            state,
            due: if state == DeliveryState::Pending { row.get(3)? } else { None },
            ended_at: row.get(4)?,
            attempts: attempts.collect::<rusqlite::Result<_>>()?,
        })
    })?;
    found.collect()
}

fn read_attempt(row: &Row<'_>) -> rusqlite::Result<AttemptDetail> {
    Ok(AttemptDetail {
        number: row.get(0)?,
        at: row.get(1)?,
        duration_ms: row.get::<_, f64>(2)? / 1000.0,
        status: row.get(3)?,
        error: row.get(4)?,
        answer: None,
    })
}

fn target_names(snapshot: &Transaction<'_>) -> rusqlite::Result<Vec<(i64, String)>> {
    let mut names = snapshot.prepare("SELECT no, name FROM target ORDER BY name")?;
    names.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?.collect()
}

/// The running ledger: how many events there are, and the counts of each target.
#[derive(Default)]
struct Tally {
    events: u64,
    /// Deliveries that came with them.
    accepted: u64,
    targets: BTreeMap<i64, Counts>,
    replies: ReplyCounts,
}

fn tally(snapshot: &Transaction<'_>) -> rusqlite::Result<Tally> {
    let mut tally = Tally::default();
    let mut find = snapshot.prepare("SELECT target, state, max(count, 0) FROM tally")?;
    let mut rows = find.query([])?;
    while let Some(row) = rows.next()? {
        if row.get::<_, i64>(0)? == REPLIES {
            *tally.replies.of(row.get(1)?) = count(row, 2)?;
            continue;
        }
        match (row.get(0)?, row.get(1)?) {
            (0, DeliveryState::Pending) => tally.events = count(row, 2)?,
            (0, _) => tally.accepted = count(row, 2)?,
            (target, state) => *tally.targets.entry(target).or_default().of(state) = count(row, 2)?,
        }
    }
    Ok(tally)
}

fn drift(found: &BTreeMap<i64, Counts>, tallied: &BTreeMap<i64, Counts>) -> u64 {
    let mut targets: Vec<i64> = found.keys().chain(tallied.keys()).copied().collect();
    targets.sort_unstable();
    targets.dedup();
    let counts = |of: &BTreeMap<i64, Counts>, target| of.get(&target).copied().unwrap_or_default();
    let apart = |target| {
        let (mut found, mut tallied) = (counts(found, target), counts(tallied, target));
        DeliveryState::ALL.into_iter().map(|state| found.of(state).abs_diff(*tallied.of(state))).sum::<u64>()
    };
    targets.into_iter().map(apart).sum()
}

pub(super) fn count(row: &Row<'_>, column: usize) -> rusqlite::Result<u64> {
    row.get::<_, i64>(column).map(|number| u64::try_from(number).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::store::Store;
    use super::*;
    use crate::clock::UnixMillis;

    /// An event of a moment of its own.
    fn nth(number: u64) -> EventId {
        EventId::first_at(UnixMillis(number.cast_signed()))
    }

    /// Makes events and their one delivery, or ends such deliveries.
    fn change(store: &mut Store, events: std::ops::Range<u64>, from: Option<DeliveryState>, to: DeliveryState) {
        let done = store.transact(|store| {
            let target = store.number(&Arc::from("crm"))?;
            for event in events.clone().map(nth) {
                match from {
                    None => {
                        let event_row = "INSERT INTO event VALUES (?1, randomblob(9), 1, 0, 0, '', '', '', '', '', '', NULL, NULL, '', '', NULL, NULL, NULL, NULL)";
                        store.connection.execute(event_row, [event])?;
                        let row = "INSERT INTO delivery VALUES (?1, ?2, ?3, 0, 0, 0, NULL, NULL)";
                        store.connection.execute(row, params![event, target, to])?;
                        store.count_events(1, 1);
                    }
                    Some(from) => {
                        store.connection.execute("UPDATE delivery SET state = ?2 WHERE event = ?1", params![event, to])?;
                        store.count(target, from, -1);
                    }
                }
                store.count(target, to, 1);
            }
            Ok(())
        });
        done.unwrap();
    }

    /// The oldest pending delivery by that search, compared with a scan of all of them.
    fn oldest(folder: &Path, known: &mut OldestPending) -> Option<UnixMillis> {
        let inspect = SqliteReader::open(folder).unwrap();
        let find = |known: &mut OldestPending| inspect.stats_since(known).unwrap().targets[0].oldest_pending;
        let found = find(known);
        assert_eq!(found, find(&mut OldestPending::default()));
        found
    }

    #[test]
    fn the_oldest_pending_delivery_is_found_from_the_last_one_known() {
        let folder = tempfile::tempdir().unwrap();
        let mut store = Store::open(folder.path()).unwrap();
        let mut known = OldestPending::default();
        let first = 1 << 20;
        let moment = |number| Some(nth(number).moment());
        change(&mut store, first..first + 100, None, DeliveryState::Pending);
        assert_eq!(oldest(folder.path(), &mut known), moment(first));
        change(&mut store, first..first + 10, Some(DeliveryState::Pending), DeliveryState::Delivered);
        assert_eq!(oldest(folder.path(), &mut known), moment(first + 10));
        change(&mut store, first + 10..first + 95, Some(DeliveryState::Pending), DeliveryState::Dead);
        assert_eq!(oldest(folder.path(), &mut known), moment(first + 95), "more has ended than is pending");
        change(&mut store, first + 95..first + 100, Some(DeliveryState::Pending), DeliveryState::Delivered);
        assert_eq!(oldest(folder.path(), &mut known), None);
        change(&mut store, first + 200..first + 201, None, DeliveryState::Pending);
        assert_eq!(oldest(folder.path(), &mut known), moment(first + 200));
    }
}
