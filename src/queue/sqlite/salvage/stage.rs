//! Sorts the rows of a damaged store by what they are, into a scratch database beside it: so memory does not grow with
//! the store. Texts stay where they are, and only their places are noted.

use std::fs;
use std::path::{Path, PathBuf};

use rusqlite::types::Value::{self, Blob, Integer, Null, Text};
use rusqlite::{Connection, ToSql, params};

use super::pages::DamagedPages;
use super::record::{self, PageKind, RawRow};
use crate::queue::Error;
use crate::queue::encryption::Fingerprint;

/// The scratch database, in the damaged store's folder.
const SCRATCH: &str = "salvage.scratch";
const TABLES: &str = "
PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF; PRAGMA cache_size = -16000;
CREATE TABLE event (id INTEGER PRIMARY KEY, page INTEGER, back INTEGER, cell INTEGER);
CREATE TABLE delivery (event INTEGER, target INTEGER, state INTEGER, attempts INTEGER, failures INTEGER,
                       ended_at INTEGER, PRIMARY KEY (event, target)) WITHOUT ROWID;
CREATE TABLE open (event INTEGER, target INTEGER, state INTEGER, PRIMARY KEY (event, target)) WITHOUT ROWID;
CREATE TABLE attempt (event INTEGER, target INTEGER, number INTEGER, at INTEGER, duration_us INTEGER, status INTEGER,
                      error TEXT, answer BLOB, PRIMARY KEY (event, target, number)) WITHOUT ROWID;
CREATE TABLE reply (event INTEGER, no INTEGER, target INTEGER, state INTEGER, attempt INTEGER, at INTEGER, taken INTEGER,
                    expires_at INTEGER, picked_by INTEGER, account TEXT, user TEXT, checksum INTEGER, content BLOB,
                    PRIMARY KEY (event, no)) WITHOUT ROWID;
CREATE TABLE target (no INTEGER PRIMARY KEY, name TEXT);
CREATE TABLE key (no INTEGER PRIMARY KEY, fingerprint BLOB);
BEGIN;";

/// Ids of events are times: smaller numbers are counts, or damage.
const FIRST_ID: i64 = 1 << 40;
/// No store has more targets.
const MAX_TARGET: i64 = 1 << 20;
/// Moments are larger than numbers of attempts.
const FIRST_MOMENT: i64 = 1 << 32;
/// The columns of the first schema's events, and more than any later one has.
const EVENT_COLUMNS: std::ops::Range<usize> = 16..32;

/// The scratch database; removed when dropped.
pub(super) struct Stage {
    pub(super) connection: Connection,
    path: PathBuf,
    /// Pages of tables or indexes of which nothing, or not everything, could be read.
    pub(super) damaged_pages: u64,
}

impl Stage {
    /// Reads every page of the store.
    pub(super) fn fill(folder: &Path, pages: &DamagedPages) -> Result<Self, Error> {
        let path = folder.join(SCRATCH);
        drop(fs::remove_file(&path));
        let connection = Connection::open(&path)?;
        let mut stage = Self { connection, path, damaged_pages: 0 };
        stage.connection.execute_batch(TABLES)?;
        for page in 1..=pages.count() {
            if !pages.holds_no_rows(page) {
                stage.read_page(pages, page)?;
            }
        }
        stage.connection.execute_batch("COMMIT")?;
        Ok(stage)
    }

    /// Takes the newest version of a page; where that is doubted or damaged, what earlier versions add to it.
    fn read_page(&mut self, pages: &DamagedPages, page: u32) -> Result<(), Error> {
        let (mut back, mut is_whole) = (0, true);
        while let Some(version) = pages.version(page, back) {
            let kind = record::kind(page, &version.bytes);
            let mut failed = kind == PageKind::Other && pages.is_told_to_hold_rows(page) && version.bytes[0] != 0x05;
            if kind != PageKind::Other {
                for cell in 0..record::cells(page, &version.bytes) {
                    let row = record::read_cell(pages, page, &version.bytes, cell);
                    // An older copy of an index page still lists deliveries that have ended.
                    let is_told = match row {
                        Some(row) => self.take(kind, row, [page.into(), back as i64, cell.into()], back == 0)?,
                        None => false,
                    };
                    failed |= !is_told;
                }
            }
            is_whole &= !failed;
            if !version.is_doubted && !failed {
                break;
            }
            back += 1;
        }
        self.damaged_pages += u64::from(!is_whole);
        Ok(())
    }

    /// Notes a row by its form; false if it has none that is known.
    fn take(&self, kind: PageKind, row: RawRow, place: [i64; 3], is_newest: bool) -> Result<bool, Error> {
        match kind {
            PageKind::Table => self.take_row(&row, place),
            PageKind::Index { .. } => self.take_entry(&row.columns, is_newest),
            PageKind::Other => Ok(false),
        }
    }

    /// Notes a row of a table with row ids.
    fn take_row(&self, row: &RawRow, [page, back, cell]: [i64; 3]) -> Result<bool, Error> {
        match row.columns.as_slice() {
            columns if EVENT_COLUMNS.contains(&columns.len()) => {
                if row.id < FIRST_ID {
                    return Ok(false);
                }
                self.note("INSERT OR IGNORE INTO event VALUES (?1, ?2, ?3, ?4)", params![row.id, page, back, cell])?;
            }
            [Null, Text(name)] | [Null, Text(name), _] => {
                self.note("INSERT OR IGNORE INTO target VALUES (?1, ?2)", params![row.id, name])?;
            }
            [Null, Blob(print)] if print.len() == size_of::<Fingerprint>() => {
                self.note("INSERT OR IGNORE INTO key VALUES (?1, ?2)", params![row.id, print])?;
            }
            // The schema, and content keys: they are made anew.
            columns => return Ok(columns.len() <= 5),
        }
        Ok(true)
    }

    /// Notes an entry of an index, or a row of a table without row ids.
    fn take_entry(&self, columns: &[Value], is_newest: bool) -> Result<bool, Error> {
        let is_id = |id: i64| id >= FIRST_ID;
        let is_target = |target: i64| (1..MAX_TARGET).contains(&target);
        match columns {
            [Text(name), Integer(number)] => {
                self.note("INSERT OR IGNORE INTO target VALUES (?1, ?2)", params![number, name])?;
            }
            [Blob(print), Integer(number)] if print.len() == size_of::<Fingerprint>() => {
                self.note("INSERT OR IGNORE INTO key VALUES (?1, ?2)", params![number, print])?;
            }
            [Integer(target), Integer(event)] if is_id(*event) && is_target(*target) => {
                if is_newest {
                    self.note("INSERT OR IGNORE INTO open VALUES (?1, ?2, 2)", params![event, target])?;
                }
            }
            [Integer(target), Integer(_), Integer(event)] if is_id(*event) && is_target(*target) => {
                if is_newest {
                    self.note("INSERT OR REPLACE INTO open VALUES (?1, ?2, 0)", params![event, target])?;
                }
            }
            [Integer(event), Integer(target), rest @ ..] if rest.len() == 6 && is_id(*event) && is_target(*target) => {
                return self.take_delivery(*event, *target, rest);
            }
            [Integer(event), Integer(no), rest @ ..] if rest.len() == 11 && is_id(*event) && is_target(*no) => {
                return self.take_reply(columns);
            }
            // Content keys, users with held replies, and the tally: they are made anew.
            [Blob(_), Integer(_)]
            | [Text(_), Text(_), Integer(_), Integer(_)]
            | [Integer(_), Integer(_), Integer(_)] => {}
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// Notes a delivery or an attempt: both begin with event and target.
    fn take_delivery(&self, event: i64, target: i64, rest: &[Value]) -> Result<bool, Error> {
        match rest {
            [Integer(number), Integer(at), duration, status, error, answer] if *at >= FIRST_MOMENT => self.note(
                "INSERT OR IGNORE INTO attempt VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
                params![event, target, number, at, duration, status, error, answer],
            )?,
            [Integer(state), Integer(attempts), Integer(failures), Integer(_), ended_at, _]
                if (0..5).contains(state) =>
            {
                self.note(
                    "INSERT OR IGNORE INTO delivery VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
                    params![event, target, state, attempts, failures, ended_at],
                )?;
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// Notes what became of a reply.
    fn take_reply(&self, columns: &[Value]) -> Result<bool, Error> {
        let values: Vec<&dyn ToSql> = columns.iter().map(|value| value as &dyn ToSql).collect();
        self.note(
            "INSERT OR IGNORE INTO reply VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13)",
            &values,
        )?;
        Ok(true)
    }

    fn note(&self, sql: &str, values: &[&dyn ToSql]) -> rusqlite::Result<()> {
        self.connection.prepare_cached(sql)?.execute(values).map(drop)
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        drop(fs::remove_file(&self.path));
    }
}
