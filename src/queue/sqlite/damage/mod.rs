//! What a store's folder looks like before SQLite opens it: whether something is missing or damaged that a commit left
//! there, and what is then done.
//!
//! SQLite takes a log without its database for a leftover and deletes it, and the first frame of a log that does not
//! verify for the log's end. Both are right after a power cut, and a silent loss of answered events after anything
//! else. What tells them apart:
//!
//! - [`last_commit`] knows from a second place how far the log must verify;
//! - [`log_file`] finds valid commits behind a frame that does not verify. One of them may belong to a transaction that
//!   a power cut tore, and that nobody was answered for: the last one, as each commit is flushed before the next begins.
//!   Two are rot.
//!
//! What remains: after a power cut that also loses the newest record, rot in the very last transaction looks like that
//! torn transaction.

pub(in crate::queue::sqlite) mod last_commit;
mod log_file;
pub(in crate::queue) mod quarantine;

use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::os::unix::fs::FileExt;
use std::path::Path;

use rusqlite::ErrorCode;

use self::last_commit::{CommitRecord, StoreState};
use self::log_file::{LogHeader, LogSurvey};
use self::quarantine::DamageReason;
use super::log_format::{HEADER, PAGE, number};
use super::{files, schema};
use crate::event::EventId;
use crate::queue::Error;

/// How many restarts of the log an older record may be behind: a restart adds one to the first salt, and a new log has
/// a random one.
const RESTARTS: u32 = 1 << 20;

/// What is to be done with a store before it is opened.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    /// Nothing.
    Sound,
    /// The log is damaged, and the database has all of it: SQLite must not read the old pages before the damage.
    LogWrittenBack,
    /// Answered events may be missing.
    Damaged(DamageReason, String),
    /// Somebody put another database in place, which lacks the last commits: a backup, most likely.
    Replaced(String),
}

/// Moves the store in the folder aside if it must not be opened. Call it with the lock held.
///
/// # Errors
/// [`Error::MovedAside`] if there was no database: the folder may be the wrong one, or somebody may be at work in it,
/// so the next start makes a new store, and not this one.
pub(super) fn prepare(folder: &Path) -> Result<(), Error> {
    quarantine::finish_moves(folder)?;
    let database = folder.join(files::DATABASE);
    match judge(folder)? {
        Verdict::Sound => Ok(()),
        Verdict::LogWrittenBack => {
            let log = files::log_of(&database);
            fs::remove_file(&log).map_err(|source| Error::io(&log, source))?;
            tracing::warn!(path = %log.display(), "damaged log removed; the database has all of it");
            files::flush(folder)
        }
        Verdict::Damaged(reason, detail) => {
            let path = quarantine::move_aside(folder, reason, &detail)?;
            match reason {
                DamageReason::MissingDatabase | DamageReason::EmptyDatabase => Err(Error::MovedAside { path, reason }),
                DamageReason::DamagedLog | DamageReason::MissingLog | DamageReason::DamagedDatabase => Ok(()),
            }
        }
        Verdict::Replaced(detail) => quarantine::report_replaced(folder, &detail),
    }
}

/// What a start would move aside, and why. Only for a store that is not in use.
///
/// # Errors
/// If the folder cannot be read.
pub fn find_damage(folder: &Path) -> Result<Option<(DamageReason, String)>, Error> {
    Ok(match judge(folder)? {
        Verdict::Damaged(reason, detail) => Some((reason, detail)),
        Verdict::Replaced(detail) => Some((DamageReason::MissingLog, detail)),
        Verdict::Sound | Verdict::LogWrittenBack => None,
    })
}

/// Moves aside a store that SQLite could not open, if the error says that it is damaged.
///
/// # Errors
/// The error itself, if it does not.
pub(super) fn replace_unreadable(folder: &Path, error: Error) -> Result<(), Error> {
    let is_ours = || {
        let record = CommitRecord::read(folder);
        record.is_some_and(|record| record.is_of(&folder.join(files::DATABASE)))
    };
    let is_damaged = match &error {
        Error::Engine(rusqlite::Error::SqliteFailure(failure, _)) => match failure.code {
            ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase => true,
            // A table or a column that is not there.
            ErrorCode::Unknown => is_ours(),
            _ => false,
        },
        // A value of another type, or a row that is missing.
        Error::Engine(_) | Error::Foreign { .. } => is_ours(),
        _ => false,
    };
    if !is_damaged {
        return Err(error);
    }
    quarantine::move_aside(folder, DamageReason::DamagedDatabase, &error.to_string()).map(drop)
}

/// The newest event id that stores of this folder are known to have given, those moved aside included.
fn newest_id(folder: &Path) -> EventId {
    let records = quarantine::list_folders(folder).into_iter().filter_map(|moved| CommitRecord::read(&moved));
    records.map(|record| record.last_id).max().unwrap_or(EventId(0))
}

fn judge(folder: &Path) -> Result<Verdict, Error> {
    let database = folder.join(files::DATABASE);
    let log = files::log_of(&database);
    let record = CommitRecord::read(folder);
    if files::is_missing(&database)? {
        return judge_missing(&database, &log, record.as_ref());
    }
    let open = record.as_ref().filter(|record| record.state == StoreState::Open);
    let survey = LogSurvey::read(&log, open.map(|record| record.salts)).map_err(|source| Error::io(&log, source))?;
    let judge = || -> io::Result<Verdict> {
        let file = DatabaseFile::open(&database)?;
        if let Some(record) = record.as_ref().filter(|record| record.is_of(&database)) {
            if record.state == StoreState::Damaged {
                let detail = "found damaged while the relay ran".to_owned();
                return Ok(Verdict::Damaged(DamageReason::DamagedDatabase, detail));
            }
            if let Some(flaw) = file.find_flaw(record, &survey)? {
                return Ok(Verdict::Damaged(DamageReason::DamagedDatabase, flaw));
            }
        }
        let verdict = judge_log(&survey, open, &file)?;
        Ok(match verdict {
            Verdict::Damaged(DamageReason::MissingLog, detail) if open.is_some_and(|open| !open.is_of(&database)) => {
                Verdict::Replaced(detail)
            }
            verdict => verdict,
        })
    };
    judge().map_err(|source| Error::io(&database, source))
}

fn judge_missing(database: &Path, log: &Path, record: Option<&CommitRecord>) -> Result<Verdict, Error> {
    let size = size(log)?.unwrap_or(0);
    let had_events = record.is_some_and(|record| record.last_id > EventId(0));
    if size <= HEADER as u64 && !had_events {
        return Ok(Verdict::Sound);
    }
    let reason = if database.exists() { DamageReason::EmptyDatabase } else { DamageReason::MissingDatabase };
    Ok(Verdict::Damaged(reason, format!("the log beside it has {size} bytes")))
}

/// `record`: the last commit, unless the database is known to have everything.
fn judge_log(log: &LogSurvey, record: Option<&CommitRecord>, database: &DatabaseFile) -> io::Result<Verdict> {
    let missing = |record: &CommitRecord, found: &str| {
        let detail = format!("{found}, and the database lacks the last commit of {} frames", record.frames);
        Verdict::Damaged(DamageReason::MissingLog, detail)
    };
    let damaged = |detail| Verdict::Damaged(DamageReason::DamagedLog, detail);
    Ok(match (log.header, record) {
        (LogHeader::Empty, Some(record)) if !database.has_commit(record)? => missing(record, "there is no log"),
        (LogHeader::Empty, _) => Verdict::Sound,
        (LogHeader::Damaged, Some(record)) if database.has_all(record, log)? => Verdict::LogWrittenBack,
        (LogHeader::Damaged, Some(record)) => {
            damaged(format!("its header does not verify, and {} frames were committed", record.frames))
        }
        (LogHeader::Damaged, None) if log.commits_behind > 0 => {
            damaged(format!("its header does not verify, and {} commits behind it do", log.commits_behind))
        }
        (LogHeader::Damaged, None) => Verdict::Sound,
        (LogHeader::Valid { salts }, Some(record)) if salts == record.salts => {
            let is_whole = log.valid >= record.frames && log.checksum_of(record.frames) == Some(record.checksum);
            if is_whole && log.commits_behind < 2 {
                Verdict::Sound
            } else if database.has_all(record, log)? {
                Verdict::LogWrittenBack
            } else {
                damaged(format!(
                    "frame {} of {} does not verify, {} were committed, and {} commits behind it verify",
                    log.valid + 1,
                    log.frames,
                    record.frames,
                    log.commits_behind
                ))
            }
        }
        (LogHeader::Valid { salts }, Some(record))
            if !(1..=RESTARTS).contains(&salts[0].wrapping_sub(record.salts[0]))
                && !database.has_commit(record)?
                && !is_in_log(record, log)? =>
        {
            missing(record, "the log is another one")
        }
        (LogHeader::Valid { .. }, _) if log.commits_behind > 1 => damaged(format!(
            "frame {} of {} does not verify, and {} commits behind it do",
            log.valid + 1,
            log.frames,
            log.commits_behind
        )),
        (LogHeader::Valid { .. }, _) => Verdict::Sound,
    })
}

/// Whether a log has the page that the last commit ended with.
fn is_in_log(record: &CommitRecord, log: &LogSurvey) -> io::Result<bool> {
    Ok(log.page(record.page)?.is_some_and(|page| record.is_last_page(&page)))
}

/// The database, read before SQLite opens it: closing a file later would drop the locks that this process has on it.
struct DatabaseFile {
    file: File,
    size: u64,
}

impl DatabaseFile {
    fn open(database: &Path) -> io::Result<Self> {
        let file = File::open(database)?;
        let size = file.metadata()?.len();
        Ok(Self { file, size })
    }

    /// `None` behind the end.
    fn page(&self, page: u32) -> io::Result<Option<Vec<u8>>> {
        let mut bytes = vec![0; PAGE];
        let place = u64::from(page.saturating_sub(1)) * PAGE as u64;
        match self.file.read_exact_at(&mut bytes, place) {
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => Ok(None),
            read => read.map(|()| Some(bytes)),
        }
    }

    /// Whether the page that the last commit ended with is here as it was committed.
    fn has_commit(&self, record: &CommitRecord) -> io::Result<bool> {
        Ok(self.page(record.page)?.is_some_and(|page| record.is_last_page(&page)))
    }

    /// Whether all that can be read of the log is here: then nothing is lost with it.
    fn has_all(&self, record: &CommitRecord, log: &LogSurvey) -> io::Result<bool> {
        if !self.has_commit(record)? {
            return Ok(false);
        }
        for page in log.pages.keys() {
            if self.page(*page)? != log.page(*page)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// What of the file's header cannot be that of the recorded store.
    fn find_flaw(&self, record: &CommitRecord, log: &LogSurvey) -> io::Result<Option<String>> {
        let Some(page) = self.page(1)? else { return Ok(Some(format!("it has {} bytes", self.size))) };
        let is_one = |at: usize, value: &[u8]| page.get(at..at + value.len()) == Some(value);
        // The format, the page size, WAL, and the constants behind them; incremental vacuum; UTF-8; whose it is.
        let is_ours = is_one(0, b"SQLite format 3\0\x10\0\x02\x02\0\x40\x20\x20")
            && number(&page, 52) > 0
            && number(&page, 56) == 1
            && number(&page, 64) > 0
            && i64::from(number(&page, 68)) == schema::APPLICATION_ID;
        if !is_ours {
            return Ok(Some("its header is not that of a wxrelay store".to_owned()));
        }
        if number(&page, 60) > record.schema {
            return Ok(Some(format!("its header has schema {}, of {}", number(&page, 60), record.schema)));
        }
        let (told, found) = (number(&page, 28), u32::try_from(self.size / PAGE as u64).unwrap_or(u32::MAX));
        // The size in the header counts if it was written with the change counter.
        let counts = number(&page, 24) == number(&page, 92);
        let missing = (found.saturating_add(1)..=told).find(|page| !log.pages.contains_key(page));
        Ok(missing.filter(|_| counts).map(|page| format!("it ends before page {page} of {told}")))
    }
}

/// The size of a file, if it exists.
fn size(path: &Path) -> Result<Option<u64>, Error> {
    match fs::metadata(path) {
        Ok(metadata) => Ok(Some(metadata.len())),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(source) => Err(Error::io(path, source)),
    }
}

#[cfg(test)]
#[path = "damage_tests.rs"]
mod tests;
