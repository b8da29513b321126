//! Moving a store aside that may be damaged, so that a new one takes its place and nothing is lost for good.
//!
//! The files are renamed into a folder of their own beside the new store, `damaged-20261120T080000Z`, with a
//! `reason.json`: this works on a full disk and at any size. They are collected under `moving-...` first: if the
//! process or the power ends between two renames, the next start finishes the move. Nothing in such a folder is ever
//! deleted by the relay; `wxrelay store salvage` reads it, and renames it to `salvaged-...` when that is done.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::super::files;
use super::last_commit;
use crate::clock::UnixMillis;
use crate::queue::Error;

/// Folders of stores that were moved aside and not read back yet.
const DAMAGED: &str = "damaged-";
/// Folders of stores that were read back.
const SALVAGED: &str = "salvaged-";
/// A move that is not complete.
const MOVING: &str = "moving-";
/// Why the store was moved, within its folder.
const REASON: &str = "reason.json";
/// The most folders that one second can name.
const SAME_SECOND: u32 = 1000;

/// Why a store was moved aside: a closed list, as logs and `reason.json` name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DamageReason {
    /// The log is damaged before the end of what was committed.
    DamagedLog,
    /// The log with the last commits is gone.
    MissingLog,
    /// The database is gone.
    MissingDatabase,
    /// The database has no bytes.
    EmptyDatabase,
    /// SQLite cannot read the database.
    DamagedDatabase,
}

impl DamageReason {
    /// Its word in logs and in `reason.json`.
    pub fn word(self) -> &'static str {
        match self {
            Self::DamagedLog => "damaged-log",
            Self::MissingLog => "missing-log",
            Self::MissingDatabase => "missing-database",
            Self::EmptyDatabase => "empty-database",
            Self::DamagedDatabase => "damaged-database",
        }
    }
}

/// The content of `reason.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MoveRecord {
    /// Why the store was moved aside.
    pub reason: DamageReason,
    /// What was found, for people.
    pub detail: String,
    /// When it was moved, in milliseconds since 1970.
    pub moved_at: i64,
}

/// A store that was moved aside and not salvaged yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DamagedStore {
    /// The name of its folder within the store's folder.
    pub name: String,
    /// Its folder.
    pub path: PathBuf,
    /// Why and when; `None` if its `reason.json` cannot be read.
    pub record: Option<MoveRecord>,
}

impl DamagedStore {
    /// How an operator reads back what is in there.
    pub const REMEDY: &str = "read back what can be read with `wxrelay store salvage`";

    /// Renames the folder to `salvaged-...`: it no longer counts as damaged. Returns the new path.
    ///
    /// # Errors
    /// If the folder cannot be renamed.
    pub fn mark_salvaged(&self) -> Result<PathBuf, Error> {
        let stamp = self.name.strip_prefix(DAMAGED).unwrap_or(&self.name);
        let folder = self.path.parent().unwrap_or_else(|| Path::new("."));
        let salvaged = folder.join(format!("{SALVAGED}{stamp}"));
        fs::rename(&self.path, &salvaged).map_err(|source| Error::io(&self.path, source))?;
        files::flush(folder)?;
        Ok(salvaged)
    }
}

/// Moves database, log and record aside. Returns the path of the folder that they are in now.
///
/// Call it with the store's lock held and no connection open.
pub(super) fn move_aside(folder: &Path, reason: DamageReason, detail: &str) -> Result<PathBuf, Error> {
    let (moving, stamp) = make_folder(folder)?;
    let record = MoveRecord { reason, detail: detail.to_owned(), moved_at: UnixMillis::now().0 };
    write_record(&moving, &record)?;
    let damaged = complete(folder, &moving, &stamp)?;
    tracing::error!(
        path = %damaged.display(), reason = reason.word(), detail, remedy = DamagedStore::REMEDY,
        "damaged store moved aside"
    );
    Ok(damaged)
}

/// Reports that another database was put in place, which lacks the last commits. It stays in use: an operator wants
/// it, and it holds all that there is. Only the record is moved aside, which shows what is missing.
pub(super) fn report_replaced(folder: &Path, detail: &str) -> Result<(), Error> {
    let (moving, stamp) = make_folder(folder)?;
    let damaged = folder.join(format!("{DAMAGED}{stamp}"));
    // Not by way of `moving-...`: finishing that move would take the database too.
    fs::rename(&moving, &damaged).map_err(|source| Error::io(&moving, source))?;
    let reason = DamageReason::MissingLog;
    write_record(&damaged, &MoveRecord { reason, detail: detail.to_owned(), moved_at: UnixMillis::now().0 })?;
    move_file(&folder.join(last_commit::FILE_NAME), &damaged.join(last_commit::FILE_NAME))?;
    files::flush(&damaged)?;
    files::flush(folder)?;
    tracing::error!(
        path = %damaged.display(), reason = reason.word(), detail, remedy = DamagedStore::REMEDY,
        "database replaced by one without the last commits"
    );
    Ok(())
}

/// Finishes the moves that an earlier process began.
pub(super) fn finish_moves(folder: &Path) -> Result<(), Error> {
    for name in names(folder, MOVING).map_err(|source| Error::io(folder, source))? {
        let moving = folder.join(&name);
        let stamp = name.strip_prefix(MOVING).unwrap_or(&name);
        if !moving.join(REASON).exists() {
            // Ended before its first step: nothing was moved.
            fs::remove_dir(&moving).map_err(|source| Error::io(&moving, source))?;
            continue;
        }
        let damaged = complete(folder, &moving, stamp)?;
        tracing::error!(
            path = %damaged.display(), remedy = DamagedStore::REMEDY, "damaged store moved aside, as begun before"
        );
    }
    Ok(())
}

/// The stores that were moved aside and not salvaged yet, the oldest first.
///
/// # Errors
/// If the folder cannot be read.
pub fn list_damaged(folder: &Path) -> Result<Vec<DamagedStore>, Error> {
    let names = names(folder, DAMAGED).map_err(|source| Error::io(folder, source))?;
    let store = |name: String| {
        let path = folder.join(&name);
        let record = fs::read(path.join(REASON)).ok().and_then(|text| serde_json::from_slice(&text).ok());
        DamagedStore { name, path, record }
    };
    Ok(names.into_iter().map(store).collect())
}

/// The folders of stores that were moved aside, salvaged or not.
pub(super) fn list_folders(folder: &Path) -> Vec<PathBuf> {
    let find = |start| names(folder, start).unwrap_or_default();
    [DAMAGED, SALVAGED].into_iter().flat_map(find).map(|name| folder.join(name)).collect()
}

fn names(folder: &Path, start: &str) -> io::Result<Vec<String>> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry?;
        if let Ok(name) = entry.file_name().into_string()
            && name.starts_with(start)
            && entry.file_type()?.is_dir()
        {
            names.push(name);
        }
    }
    names.sort_unstable();
    Ok(names)
}

/// Makes `moving-STAMP`, with a stamp that no folder has.
fn make_folder(folder: &Path) -> Result<(PathBuf, String), Error> {
    let second = files::stamp(UnixMillis::now());
    let mut last = ErrorKind::AlreadyExists.into();
    for number in 1..=SAME_SECOND {
        let stamp = if number == 1 { second.clone() } else { format!("{second}-{number}") };
        if [DAMAGED, SALVAGED].iter().any(|start| folder.join(format!("{start}{stamp}")).exists()) {
            continue;
        }
        let moving = folder.join(format!("{MOVING}{stamp}"));
        match DirBuilder::new().mode(0o700).create(&moving) {
            Ok(()) => return Ok((moving, stamp)),
            Err(error) if error.kind() == ErrorKind::AlreadyExists => last = error,
            Err(error) => return Err(Error::io(&moving, error)),
        }
    }
    Err(Error::io(folder, last))
}

/// On a full disk the reason may not fit; the move is more important, and the log line has it.
fn write_record(moving: &Path, record: &MoveRecord) -> Result<(), Error> {
    let path = moving.join(REASON);
    let io = |source| Error::io(&path, source);
    let text = serde_json::to_vec(record).map_err(|error| io(error.into()))?;
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&path).map_err(io)?;
    match file.write_all(&text).and_then(|()| file.sync_all()).map_err(io) {
        Ok(()) | Err(Error::Full) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Moves what is left, and gives the folder its name.
fn complete(folder: &Path, moving: &Path, stamp: &str) -> Result<PathBuf, Error> {
    for end in ["", "-wal", "-journal"] {
        let name = format!("{}{end}", files::DATABASE);
        move_file(&folder.join(&name), &moving.join(&name))?;
    }
    move_file(&folder.join(last_commit::FILE_NAME), &moving.join(last_commit::FILE_NAME))?;
    // It only indexes the log, and SQLite would take it for the new store's.
    match fs::remove_file(folder.join(format!("{}-shm", files::DATABASE))) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(Error::io(folder, error)),
        _ => {}
    }
    files::flush(moving)?;
    let damaged = folder.join(format!("{DAMAGED}{stamp}"));
    fs::rename(moving, &damaged).map_err(|source| Error::io(moving, source))?;
    files::flush(folder)?;
    Ok(damaged)
}

fn move_file(from: &Path, to: &Path) -> Result<(), Error> {
    match fs::rename(from, to) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(Error::io(from, error)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fill(folder: &Path, names: &[&str]) {
        names.iter().for_each(|name| fs::write(folder.join(name), name).unwrap());
    }

    const PARTS: [&str; 3] = ["wxrelay.db", "wxrelay.db-wal", "wxrelay.commit"];

    #[test]
    fn the_files_keep_their_names_and_contents() {
        let folder = tempfile::tempdir().unwrap();
        fill(folder.path(), &PARTS);
        fill(folder.path(), &["wxrelay.db-shm", "wxrelay.lock"]);
        let damaged = move_aside(folder.path(), DamageReason::DamagedLog, "frame 3").unwrap();
        PARTS.iter().for_each(|name| assert_eq!(fs::read_to_string(damaged.join(name)).unwrap(), *name));
        let mut left: Vec<_> = fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, [damaged.file_name().unwrap(), "wxrelay.lock".as_ref()]);
        let listed = list_damaged(folder.path()).unwrap();
        assert_eq!(listed.len(), 1);
        let record = listed[0].record.as_ref().unwrap();
        assert_eq!((record.reason, &*record.detail), (DamageReason::DamagedLog, "frame 3"));
        let text = fs::read_to_string(damaged.join(REASON)).unwrap();
        assert!(text.contains(r#""reason":"damaged-log""#), "{text}");
    }

    #[test]
    fn two_in_one_second_have_folders_of_their_own_and_a_salvaged_one_no_longer_counts() {
        let folder = tempfile::tempdir().unwrap();
        for _ in 0..3 {
            fill(folder.path(), &PARTS);
            move_aside(folder.path(), DamageReason::MissingLog, "").unwrap();
        }
        let listed = list_damaged(folder.path()).unwrap();
        assert_eq!(listed.len(), 3);
        let salvaged = listed[0].mark_salvaged().unwrap();
        assert!(salvaged.join("wxrelay.db").exists());
        assert_eq!(list_damaged(folder.path()).unwrap(), listed[1..]);
        assert_eq!(list_folders(folder.path()).len(), 3);
    }

    #[test]
    fn a_move_that_was_cut_short_is_finished() {
        let folder = tempfile::tempdir().unwrap();
        fill(folder.path(), &PARTS);
        let (moving, _) = make_folder(folder.path()).unwrap();
        // Before the first step nothing was moved, and nothing is.
        finish_moves(folder.path()).unwrap();
        assert!(!moving.exists() && folder.path().join("wxrelay.db").exists());
        let (moving, _) = make_folder(folder.path()).unwrap();
        write_record(
            &moving,
            &MoveRecord { reason: DamageReason::DamagedDatabase, detail: String::new(), moved_at: 1 },
        )
        .unwrap();
        move_file(&folder.path().join("wxrelay.db"), &moving.join("wxrelay.db")).unwrap();
        finish_moves(folder.path()).unwrap();
        let listed = list_damaged(folder.path()).unwrap();
        assert_eq!(listed.len(), 1);
        PARTS.iter().for_each(|name| assert!(listed[0].path.join(name).exists(), "{name}"));
    }
}
