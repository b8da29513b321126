//! The second place that knows the last durable commit: the file `wxrelay.commit` beside the database.
//!
//! A log cannot prove its own end: without this file, a log that was removed, cut short or damaged in its last frames
//! looks like one that ends earlier. After the flush of each commit the writer notes here which frame of the log is the
//! last, its checksum, and the one that it continues: with these the frame's page is known again, also in the database.
//! That costs two short reads and one write of the page cache and no flush: after a kill the record is exact, and after a
//! power cut it may be older than the log but never newer, a lower bound. Two slots in turn: a torn record fails its
//! checksum, and the other one counts.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;

use super::super::log_format::{self, FRAME_HEADER, FrameHeader};
use super::super::{files, schema};
use crate::event::EventId;

/// The file, in the store's folder.
pub(in crate::queue::sqlite) const FILE_NAME: &str = "wxrelay.commit";
/// The distance of the two slots, of a sector each; a record's length, and that of the part before its checksum.
const SLOT: u64 = 512;
const LENGTH: usize = 128;
const CHECKED: usize = 124;
const MAGIC: [u8; 8] = *b"wxcommit";
const VERSION: u32 = 1;

/// What the store was like after the last commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum StoreState {
    /// The log's frames up to the recorded one count.
    Open,
    /// The database has everything: the log was emptied, or the store was closed.
    WrittenBack,
    /// SQLite found the database damaged while the relay ran.
    Damaged,
}

/// The last durable commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct CommitRecord {
    pub(super) state: StoreState,
    /// Grows with each record.
    sequence: u64,
    /// The log that its frame is in.
    pub(super) salts: [u32; 2],
    /// Its frame, the number of frames up to it, and that frame's checksum.
    pub(super) frames: u32,
    pub(super) checksum: [u32; 2],
    /// What the frame's header begins with: its page, and the size of the database after it, in pages.
    pub(super) page: u32,
    size: u32,
    /// The checksum of the frame before it, or of the log's header.
    before: [u32; 2],
    /// The newest event id that was stored.
    pub(super) last_id: EventId,
    /// The database's device and inode: another file was put in its place by somebody.
    pub(super) database: [u64; 2],
    /// The schema's version.
    pub(super) schema: u32,
}

impl CommitRecord {
    fn first() -> Self {
        Self {
            state: StoreState::WrittenBack,
            sequence: 0,
            salts: [0; 2],
            frames: 0,
            checksum: [0; 2],
            page: 0,
            size: 0,
            before: [0; 2],
            last_id: EventId(0),
            database: [0; 2],
            schema: u32::try_from(schema::VERSION).unwrap_or(0),
        }
    }

    /// The newer of the two records in the folder; `None` if there is none that can be read, as in a store of an
    /// earlier release.
    pub(super) fn read(folder: &Path) -> Option<Self> {
        let file = File::open(folder.join(FILE_NAME)).ok()?;
        let slot = |number: u64| {
            let mut bytes = [0; LENGTH];
            file.read_exact_at(&mut bytes, number * SLOT).ok()?;
            Self::parse(&bytes)
        };
        [slot(0), slot(1)].into_iter().flatten().max_by_key(|record| record.sequence)
    }

    /// Whether the file is the database that the record is of, and not one that was put in its place.
    pub(super) fn is_of(&self, database: &Path) -> bool {
        identify(database).is_ok_and(|found| found == self.database)
    }

    /// Whether this is the page that the last commit ended with, as it was committed.
    pub(super) fn is_last_page(&self, page: &[u8]) -> bool {
        let frame = [&self.page.to_be_bytes(), &self.size.to_be_bytes(), &[0; FRAME_HEADER - 8][..], page].concat();
        // The record does not say how the log counts, which depends on the machine that began it.
        [false, true]
            .into_iter()
            .any(|is_big_endian| log_format::frame_checksum(self.before, &frame, is_big_endian) == self.checksum)
    }

    fn parse(bytes: &[u8; LENGTH]) -> Option<Self> {
        let word =
            |at: usize| bytes.get(at..).and_then(<[u8]>::first_chunk).map_or(0, |word| u32::from_le_bytes(*word));
        let long = |at: usize| u64::from(word(at)) | u64::from(word(at + 4)) << 32;
        let pair = |at: usize| [word(at), word(at + 4)];
        if !bytes.starts_with(&MAGIC) || word(8) != VERSION || crc32fast::hash(&bytes[..CHECKED]) != word(CHECKED) {
            return None;
        }
        let state = match word(12) {
            0 => StoreState::Open,
            1 => StoreState::WrittenBack,
            2 => StoreState::Damaged,
            _ => return None,
        };
        Some(Self {
            state,
            sequence: long(16),
            salts: pair(24),
            frames: word(32),
            checksum: pair(36),
            page: word(44),
            size: word(48),
            last_id: EventId(long(56)),
            database: [long(64), long(72)],
            schema: word(80),
            before: pair(84),
        })
    }

    fn to_bytes(self) -> [u8; LENGTH] {
        let mut bytes = [0; LENGTH];
        let state: u32 = match self.state {
            StoreState::Open => 0,
            StoreState::WrittenBack => 1,
            StoreState::Damaged => 2,
        };
        let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
        put(0, &MAGIC);
        for (at, value) in
            [(8, VERSION), (12, state), (32, self.frames), (44, self.page), (48, self.size), (80, self.schema)]
        {
            put(at, &value.to_le_bytes());
        }
        for (at, value) in [(16, self.sequence), (56, self.last_id.0), (64, self.database[0]), (72, self.database[1])] {
            put(at, &value.to_le_bytes());
        }
        for (at, [one, two]) in [(24, self.salts), (36, self.checksum), (84, self.before)] {
            put(at, &one.to_le_bytes());
            put(at + 4, &two.to_le_bytes());
        }
        let checksum = crc32fast::hash(&bytes[..CHECKED]);
        bytes[CHECKED..].copy_from_slice(&checksum.to_le_bytes());
        bytes
    }
}

/// Writes the records of an open store.
pub(in crate::queue::sqlite) struct CommitLog {
    folder: PathBuf,
    file: File,
    /// The log, kept open: SQLite keeps the file while the store is open.
    log: File,
    last: CommitRecord,
}

impl CommitLog {
    /// For the store in the folder, whose log exists. The database has everything, or the record that is there holds.
    pub(in crate::queue::sqlite) fn open(folder: &Path, last_id: EventId) -> io::Result<Self> {
        let database = folder.join(files::DATABASE);
        let last = CommitRecord::read(folder);
        let last = last.unwrap_or_else(|| CommitRecord { last_id: super::newest_id(folder), ..CommitRecord::first() });
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
        let file = options.custom_flags(OFlags::NOFOLLOW.bits().cast_signed()).open(folder.join(FILE_NAME))?;
        let log = File::open(files::log_of(&database))?;
        let last = CommitRecord {
            last_id: last.last_id.max(last_id),
            database: identify(&database)?,
            schema: u32::try_from(schema::VERSION).unwrap_or(0),
            ..last
        };
        let mut records = Self { folder: folder.to_owned(), file, log, last };
        records.write(|_| {})?;
        records.file.sync_all()?;
        Ok(records)
    }

    /// The newest event id that any store in this folder was given, as far as it is known.
    pub(in crate::queue::sqlite) fn last_id(&self) -> EventId {
        self.last.last_id
    }

    /// Notes the commit that ended with this frame of the log, after its flush and before anybody is answered.
    pub(in crate::queue::sqlite) fn note_commit(&mut self, frames: u32, last_id: EventId) -> io::Result<()> {
        let last = u64::from(frames.saturating_sub(1));
        let (mut header, mut before) = ([0; FRAME_HEADER], [0; 8]);
        self.log.read_exact_at(&mut header, log_format::frame_place(last))?;
        self.log.read_exact_at(&mut before, log_format::checksum_place(last))?;
        let header = FrameHeader::parse(&header);
        // Not the end of a transaction: this is not the log that SQLite wrote to. The earlier record is still right.
        if header.commit == 0 {
            return Err(ErrorKind::InvalidData.into());
        }
        self.write(|record| {
            record.state = StoreState::Open;
            (record.salts, record.frames, record.checksum) = (header.salts, frames, header.checksum);
            (record.page, record.size, record.before) = (header.page, header.commit, log_format::pair(&before, 0));
            record.last_id = record.last_id.max(last_id);
        })
    }

    /// Makes the record durable. Before the log is emptied, as a power cut could leave an older record, whose page has
    /// changed since; and after it, as a scrub changes pages.
    pub(in crate::queue::sqlite) fn flush(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    /// Notes that the database has everything, and that the log is empty.
    pub(in crate::queue::sqlite) fn note_written_back(&mut self) -> io::Result<()> {
        self.write(|record| record.state = StoreState::WrittenBack)
    }

    /// Notes that the database was found damaged: the next start moves it aside.
    pub(in crate::queue::sqlite) fn note_damage(&mut self) -> io::Result<()> {
        self.write(|record| record.state = StoreState::Damaged)?;
        self.file.sync_data()
    }

    /// Where the file is.
    pub(in crate::queue::sqlite) fn path(&self) -> PathBuf {
        self.folder.join(FILE_NAME)
    }

    fn write(&mut self, change: impl FnOnce(&mut CommitRecord)) -> io::Result<()> {
        let mut record = self.last;
        change(&mut record);
        record.sequence += 1;
        self.file.write_all_at(&record.to_bytes(), record.sequence % 2 * SLOT)?;
        self.last = record;
        Ok(())
    }
}

fn identify(database: &Path) -> io::Result<[u64; 2]> {
    database.metadata().map(|found| [found.dev(), found.ino()])
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn record(sequence: u64) -> CommitRecord {
        CommitRecord {
            state: StoreState::Open,
            sequence,
            salts: [1, u32::MAX],
            frames: 7,
            checksum: [3, 4],
            page: 9,
            size: 5,
            before: [6, 7],
            last_id: EventId(u64::MAX - 1),
            database: [1 << 40, 11],
            schema: 4,
        }
    }

    #[test]
    fn what_is_written_is_read_back_and_each_flipped_bit_is_noticed() {
        let bytes = record(5).to_bytes();
        assert_eq!(CommitRecord::parse(&bytes), Some(record(5)));
        for bit in 0..LENGTH * 8 {
            let mut flipped = bytes;
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(CommitRecord::parse(&flipped), None, "bit {bit}");
        }
    }

    #[test]
    fn the_newer_record_counts_and_the_older_one_when_that_is_torn() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(CommitRecord::read(folder.path()), None);
        let path = folder.path().join(FILE_NAME);
        let mut bytes = vec![0; 640];
        bytes[..LENGTH].copy_from_slice(&record(8).to_bytes());
        bytes[512..].copy_from_slice(&record(9).to_bytes());
        fs::write(&path, &bytes).unwrap();
        assert_eq!(CommitRecord::read(folder.path()), Some(record(9)));
        bytes[600] ^= 1;
        fs::write(&path, &bytes).unwrap();
        assert_eq!(CommitRecord::read(folder.path()), Some(record(8)));
        fs::write(&path, &bytes[..100]).unwrap();
        assert_eq!(CommitRecord::read(folder.path()), None);
    }
}
