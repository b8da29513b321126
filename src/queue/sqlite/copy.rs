//! Copying a store of files row by row, out of it and into a new one (`queue/copy/`).

use std::fs;
use std::path::{Path, PathBuf};

use rusqlite::types::{ToSqlOutput, ValueRef};
use rusqlite::{Row, ToSql, params};

use super::inspect::SqliteReader;
use super::lock::StoreLock;
use super::store::Store;
use super::{files, key_table};
use crate::event::{ContentKey, EventId};
use crate::queue::copy::rows::{
    AttemptRow, CopyPage, DeliveryRow, EventRow, ReplyRow, RetiredKey, StoreHead, TargetRow,
};
use crate::queue::copy::{CopyError, PAGE_BYTES, PAGE_EVENTS};
use crate::queue::{Audit, DeliveryState, EncryptionKeys, Error, ReplyState};

/// A copy while it is made: a relay does not take it for a store.
const COPY: &str = "wxrelay.db.copy";

/// Whose copy a file is.
const MARK: &str = "CREATE TABLE IF NOT EXISTS copy (source BLOB NOT NULL)";

const EVENT: &str = "SELECT id, content_key, targets, mode, key, received_at, checksum, reply_checksum, account, app_id, \
    msg_type, event, event_key, from_user, traceparent, reply, query, body, clear FROM event WHERE id = ?1";
const DELIVERIES: &str = "SELECT event, target, state, attempts, failures, due, ended_at, user FROM delivery \
    WHERE event = ?1 ORDER BY target";
const ATTEMPTS: &str = "SELECT event, target, number, at, duration_us, status, error, answer FROM attempt \
    WHERE event = ?1 ORDER BY target, number";
const REPLIES: &str = "SELECT event, no, target, state, attempt, at, taken, expires_at, picked_by, account, user, checksum, \
    content FROM held_reply WHERE event = ?1 ORDER BY no";
/// What a relay still works on, or an operator may bring back, and what a push may be a repetition of.
const OPEN: &str = "SELECT event FROM delivery INDEXED BY delivery_pending WHERE state = 0 \
    UNION SELECT event FROM delivery INDEXED BY delivery_dead WHERE state = 2 \
    UNION SELECT event FROM held_reply WHERE expires_at IS NOT NULL \
    UNION SELECT id FROM event WHERE id >= ?1 ORDER BY 1";
const REST: &str = "SELECT id FROM event e WHERE id > ?1 AND id < ?2 \
    AND NOT EXISTS (SELECT 1 FROM delivery d WHERE d.event = e.id AND d.state IN (0, 2)) \
    AND NOT EXISTS (SELECT 1 FROM held_reply h WHERE h.event = e.id AND h.expires_at IS NOT NULL) ORDER BY id";
const RETIRED: &str = "SELECT r.event, r.content_key FROM retired_key r JOIN known k ON k.content_key = r.content_key \
    AND k.event = r.event ORDER BY r.event";

/// A store that is copied. No relay opens it meanwhile.
pub(in crate::queue) struct SqliteSource {
    reader: SqliteReader,
    _lock: StoreLock,
}

impl SqliteSource {
    pub(in crate::queue) fn open(folder: &Path) -> Result<Self, CopyError> {
        // Before the lock, which makes a file.
        drop(SqliteReader::open(folder)?);
        let lock = take_lock(folder)?;
        Ok(Self { reader: SqliteReader::open(folder)?, _lock: lock })
    }

    pub(in crate::queue) fn head(&self) -> Result<StoreHead, Error> {
        let connection = &self.reader.connection;
        let mut find = connection.prepare("SELECT no, name, paused FROM target ORDER BY no")?;
        let targets =
            find.query_map([], |row| Ok(TargetRow { number: row.get(0)?, name: row.get(1)?, paused: row.get(2)? }))?;
        let counts = "SELECT coalesce(min(id), 0), coalesce(max(id), 0), (SELECT count(*) FROM retired_key), \
            (SELECT coalesce(sum(attempts), 0) FROM delivery INDEXED BY delivery_pending WHERE state = 0) FROM event";
        let mut counts =
            connection.query_row(counts, [], |row| (0..4).map(|at| row.get(at)).collect::<Result<Vec<i64>, _>>())?;
        let mut tally = connection.prepare("SELECT target, state, count FROM tally WHERE count <> 0 ORDER BY 1, 2")?;
        let mut rows = tally.query([])?;
        while let Some(row) = rows.next()? {
            counts.extend([row.get::<_, i64>(0)?, row.get(1)?, row.get(2)?]);
        }
        let targets = targets.collect::<rusqlite::Result<_>>()?;
        Ok(StoreHead { targets, keys: key_table::named_with_use(connection)?, counts })
    }

    pub(in crate::queue) fn audit(&self) -> Result<Audit, Error> {
        self.reader.audit()
    }

    /// The events that are not finished, or not older than `cutoff`.
    pub(in crate::queue) fn open_events(&self, cutoff: EventId) -> Result<Vec<i64>, Error> {
        self.ids(OPEN, &[&cutoff])
    }

    /// The other events behind `after`.
    pub(in crate::queue) fn finished_events(&self, after: i64, cutoff: EventId) -> Result<Vec<i64>, Error> {
        self.ids(REST, &[&after, &cutoff])
    }

    fn ids(&self, sql: &str, parameters: &[&dyn ToSql]) -> Result<Vec<i64>, Error> {
        let mut find = self.reader.connection.prepare(sql)?;
        Ok(find.query_map(parameters, |row| row.get(0))?.collect::<rusqlite::Result<_>>()?)
    }

    pub(in crate::queue) fn retired_keys(&self) -> Result<Vec<RetiredKey>, Error> {
        let mut find = self.reader.connection.prepare(RETIRED)?;
        let rows = find.query_map([], |row| Ok(RetiredKey { event: row.get(0)?, content_key: row.get(1)? }))?;
        Ok(rows.collect::<rusqlite::Result<_>>()?)
    }

    /// The first of these events, as many as make a page.
    pub(in crate::queue) fn page(&self, ids: &[i64]) -> Result<CopyPage, CopyError> {
        let connection = &self.reader.connection;
        let mut page = CopyPage::default();
        let mut bytes = 0;
        let mut read = || -> rusqlite::Result<Option<i64>> {
            let mut event = connection.prepare_cached(EVENT)?;
            let mut deliveries = connection.prepare_cached(DELIVERIES)?;
            let mut attempts = connection.prepare_cached(ATTEMPTS)?;
            for id in ids.iter().take(PAGE_EVENTS) {
                let Ok(row) = event.query_row([id], read_event) else { return Ok(Some(*id)) };
                bytes += row.query.len() + row.body.len() + row.clear.as_ref().map_or(0, Vec::len);
                page.events.push(row);
                for row in deliveries.query_map([id], read_delivery)? {
                    page.deliveries.push(row?);
                }
                for row in attempts.query_map([id], read_attempt)? {
                    page.attempts.push(row?);
                }
                for row in connection.prepare_cached(REPLIES)?.query_map([id], read_reply)? {
                    page.replies.push(row?);
                }
                if bytes > PAGE_BYTES {
                    break;
                }
            }
            Ok(None)
        };
        match read().map_err(Error::from)? {
            Some(id) => Err(CopyError::Unfit { event: EventId(id.cast_unsigned()), what: "the row" }),
            None => Ok(page),
        }
    }
}

fn take_lock(folder: &Path) -> Result<StoreLock, CopyError> {
    StoreLock::take(folder).map_err(|error| match error {
        Error::Locked { path, pid } => CopyError::RelayRuns { path, pid },
        other => other.into(),
    })
}

fn read_event(row: &Row<'_>) -> rusqlite::Result<EventRow> {
    let bytes = |at: usize| Ok::<_, rusqlite::Error>(row.get_ref(at)?.as_bytes_or_null()?.map(<[u8]>::to_vec));
    Ok(EventRow {
        id: row.get(0)?,
        content_key: row.get(1)?,
        targets: row.get(2)?,
        mode: row.get(3)?,
        key: row.get(4)?,
        received_at: row.get(5)?,
        checksum: row.get(6)?,
        reply_checksum: row.get(7)?,
        account: row.get(8)?,
        app_id: row.get(9)?,
        msg_type: row.get(10)?,
        event: row.get(11)?,
        event_key: row.get(12)?,
        from_user: row.get(13)?,
        traceparent: row.get(14)?,
        reply: bytes(15)?,
        query: bytes(16)?.unwrap_or_default(),
        body: bytes(17)?.unwrap_or_default(),
        clear: bytes(18)?,
    })
}

fn read_delivery(row: &Row<'_>) -> rusqlite::Result<DeliveryRow> {
    Ok(DeliveryRow {
        event: row.get(0)?,
        target: row.get(1)?,
        state: row.get(2)?,
        attempts: row.get(3)?,
        failures: row.get(4)?,
        due: row.get(5)?,
        ended_at: row.get(6)?,
        user: row.get(7)?,
    })
}

fn read_attempt(row: &Row<'_>) -> rusqlite::Result<AttemptRow> {
    Ok(AttemptRow {
        event: row.get(0)?,
        target: row.get(1)?,
        number: row.get(2)?,
        at: row.get(3)?,
        duration_us: row.get(4)?,
        status: row.get(5)?,
        error: row.get(6)?,
        answer: row.get_ref(7)?.as_bytes_or_null()?.map(<[u8]>::to_vec),
    })
}

fn read_reply(row: &Row<'_>) -> rusqlite::Result<ReplyRow> {
    Ok(ReplyRow {
        event: row.get(0)?,
        no: row.get(1)?,
        target: row.get(2)?,
        state: row.get(3)?,
        attempt: row.get(4)?,
        at: row.get(5)?,
        taken: row.get(6)?,
        expires_at: row.get(7)?,
        picked_by: row.get(8)?,
        account: row.get(9)?,
        user: row.get(10)?,
        checksum: row.get(11)?,
        content: row.get_ref(12)?.as_bytes_or_null()?.map(<[u8]>::to_vec),
    })
}

/// A new store while it is filled.
pub(in crate::queue) struct SqliteTarget {
    store: Store,
    folder: PathBuf,
    _lock: StoreLock,
}

impl SqliteTarget {
    /// Whether a copy into this folder can be begun, or gone on with; changes nothing.
    pub(in crate::queue) fn check(folder: &Path) -> Result<(), CopyError> {
        if !files::is_missing(&folder.join(files::DATABASE))? {
            return Err(CopyError::NotEmpty(folder.display().to_string()));
        }
        Ok(super::startable::check(folder, &EncryptionKeys::default())?)
    }

    /// Begins a copy of that source, or goes on with it.
    pub(in crate::queue) fn open(folder: &Path, head: &StoreHead) -> Result<Self, CopyError> {
        files::make(folder)?;
        files::refuse_network_filesystem(folder)?;
        files::refuse_links(folder)?;
        let lock = take_lock(folder)?;
        Self::check(folder)?;
        let path = folder.join(COPY);
        let mut store = Store::at(&path, folder)?;
        let source = head.digest();
        store.connection.execute_batch(MARK).map_err(Error::from)?;
        let mut is_other = false;
        store
            .transact(|store| {
                let connection = &store.connection;
                connection.execute("INSERT INTO copy SELECT ?1 WHERE NOT EXISTS (SELECT 1 FROM copy)", [source])?;
                is_other =
                    !connection.query_row("SELECT source = ?1 FROM copy", [source], |row| row.get::<_, bool>(0))?;
                if is_other {
                    return Ok(());
                }
                for TargetRow { number, name, paused } in &head.targets {
                    let insert = "INSERT OR IGNORE INTO target (no, name, paused) VALUES (?1, ?2, ?3)";
                    connection.execute(insert, params![number, name, paused])?;
                }
                for (number, print, _) in &head.keys {
                    let insert = "INSERT OR IGNORE INTO key (no, fingerprint) VALUES (?1, ?2)";
                    connection.execute(insert, params![number, print.bytes()])?;
                }
                Ok(())
            })
            .map_err(Error::from)?;
        if is_other {
            return Err(CopyError::OtherCopy(path.display().to_string()));
        }
        Ok(Self { store, folder: folder.to_owned(), _lock: lock })
    }

    /// The last event that is copied.
    pub(in crate::queue) fn last(&self) -> Result<i64, Error> {
        Ok(self.store.last_id()?.0.cast_signed())
    }

    pub(in crate::queue) fn add(&mut self, page: &CopyPage) -> Result<(), Error> {
        Ok(self.store.transact(|store| add_page(store, page))?)
    }

    pub(in crate::queue) fn add_retired(&mut self, keys: &[RetiredKey]) -> Result<(), Error> {
        let added = self.store.transact(|store| {
            let mut known = store.connection.prepare_cached("INSERT OR IGNORE INTO known VALUES (?1, ?2)")?;
            let mut retired = store.connection.prepare_cached("INSERT OR IGNORE INTO retired_key VALUES (?1, ?2)")?;
            for RetiredKey { event, content_key } in keys {
                known.execute(params![content_key, event])?;
                retired.execute(params![event, content_key])?;
            }
            Ok(())
        });
        Ok(added?)
    }

    pub(in crate::queue) fn audit(&self) -> Result<Audit, Error> {
        SqliteReader::open_file(&self.folder.join(COPY), &self.folder)?.audit()
    }

    /// Makes the copy the store of its folder.
    pub(in crate::queue) fn finish(self) -> Result<(), Error> {
        self.store.connection.execute_batch("DROP TABLE copy")?;
        self.store.close()?;
        let (copy, database) = (self.folder.join(COPY), self.folder.join(files::DATABASE));
        for end in ["-wal", "-shm"] {
            files::remove(&files::beside(&copy, end))?;
            files::remove(&files::beside(&database, end))?;
        }
        files::flush(&copy)?;
        fs::rename(&copy, &database).map_err(|source| Error::io(&database, source))?;
        files::flush(&self.folder)
    }
}

fn add_page(store: &mut Store, page: &CopyPage) -> rusqlite::Result<()> {
    for event in &page.events {
        add_event(store, event)?;
    }
    for delivery in &page.deliveries {
        let DeliveryRow { event, target, state, attempts, failures, due, ended_at, user } = delivery;
        let mut insert = store.connection.prepare_cached(
            "INSERT INTO delivery (event, target, state, attempts, failures, due, ended_at, user) \
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
        )?;
        insert.execute(params![event, target, state, attempts, failures, due, ended_at, user])?;
        drop(insert);
        // An unknown state is reported by the audit, here as there.
        if let Some(state) = DeliveryState::ALL.into_iter().find(|known| *known as i64 == *state) {
            store.count(*target, state, 1);
        }
    }
    let mut insert = store.connection.prepare_cached(
        "INSERT INTO attempt (event, target, number, at, duration_us, status, error, answer) \
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
    )?;
    for attempt in &page.attempts {
        let AttemptRow { event, target, number, at, duration_us, status, error, answer } = attempt;
        insert.execute(params![event, target, number, at, duration_us, status, error, answer])?;
    }
    drop(insert);
    page.replies.iter().try_for_each(|reply| add_reply(store, reply))
}

fn add_reply(store: &mut Store, row: &ReplyRow) -> rusqlite::Result<()> {
    let mut insert = store.connection.prepare_cached(
        "INSERT INTO held_reply (event, no, target, state, attempt, at, taken, expires_at, picked_by, account, user, \
                                 checksum, content) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13)",
    )?;
    insert.execute(params![
        row.event,
        row.no,
        row.target,
        row.state,
        row.attempt,
        row.at,
        row.taken,
        row.expires_at,
        row.picked_by,
        row.account,
        row.user,
        row.checksum,
        row.content,
    ])?;
    drop(insert);
    if let Some(state) = ReplyState::of(row.state) {
        store.count_given(state, 1);
    }
    Ok(())
}

/// A value that is a text where its event is in the clear, as the relay writes it.
struct Written<'a> {
    bytes: &'a [u8],
    is_text: bool,
}

impl ToSql for Written<'_> {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        let Self { bytes, is_text } = *self;
        Ok(ToSqlOutput::Borrowed(if is_text { ValueRef::Text(bytes) } else { ValueRef::Blob(bytes) }))
    }
}

fn add_event(store: &mut Store, row: &EventRow) -> rusqlite::Result<()> {
    let mut insert = store.connection.prepare_cached(
        "INSERT INTO event (id, content_key, targets, mode, key, received_at, checksum, reply_checksum, account, app_id, \
         msg_type, event, event_key, from_user, traceparent, reply, query, body, clear) \
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18, ?19)",
    )?;
    insert.execute(params![
        row.id,
        row.content_key,
        row.targets,
        row.mode,
        row.key,
        row.received_at,
        row.checksum,
        row.reply_checksum,
        row.account,
        row.app_id,
        row.msg_type,
        row.event,
        row.event_key,
        row.from_user,
        row.traceparent,
        row.reply.as_deref().map(|reply| Written { bytes: reply, is_text: row.key.is_none() }),
        Written { bytes: &row.query, is_text: row.key.is_none() },
        row.body,
        row.clear,
    ])?;
    drop(insert);
    store.count_events(1, row.targets);
    if let Ok(key) = row.content_key.as_slice().try_into() {
        store.dedup.insert(&store.connection, ContentKey(key), EventId(row.id.cast_unsigned()))?;
    }
    Ok(())
}
