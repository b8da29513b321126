//! Reads a write-ahead log as SQLite does, and looks behind the place where SQLite stops.
//!
//! Each frame has the salts of the header, and a checksum over all frames up to it. SQLite takes the first frame that does not verify for
//! the end of the log: right for a write that a power cut tore, and a silent loss when the frame rotted. But a frame
//! also has the checksum that the next one continues from, so those behind a damaged one can be verified, each by the
//! frame before it.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufReader, ErrorKind, Read};
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::super::log_format::{
    FRAME, FRAME_HEADER, FrameHeader, HEADER, PAGE, checksum, frame_checksum, frame_place, number, pair,
};

/// The first word of a log; its last bit is set if checksums are over big-endian words.
const MAGIC: u32 = 0x377f_0682;

/// What a log's header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LogHeader {
    /// The log is missing, or not longer than a header: it holds nothing.
    Empty,
    /// It does not verify: SQLite ignores the whole log.
    Damaged,
    /// It verifies.
    Valid { salts: [u32; 2] },
}

/// What is in a log.
#[derive(Debug)]
pub(super) struct LogSurvey {
    pub(super) header: LogHeader,
    /// Whole frames in the file.
    pub(super) frames: u32,
    /// The frames that SQLite reads: up to the first one that does not verify.
    pub(super) valid: u32,
    /// Frames behind that one that verify by the frame before them and end a transaction.
    pub(super) commits_behind: u32,
    /// The checksums of the verified frames' headers, by number from 1.
    checksums: Vec<Option<[u32; 2]>>,
    /// Where the newest content of each page starts in the file, as far as that verifies.
    pub(super) pages: BTreeMap<u32, u64>,
    file: Option<File>,
}

impl LogSurvey {
    /// Reads a whole log. `salts` are those of the last durable commit, in case that the header has lost them.
    pub(super) fn read(path: &Path, salts: Option<[u32; 2]>) -> io::Result<Self> {
        let file = match File::open(path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Self::empty()),
            opened => opened?,
        };
        let mut reader = BufReader::with_capacity(64 * FRAME, file);
        let mut header = [0; HEADER];
        if read_full(&mut reader, &mut header)? < HEADER {
            return Ok(Self::empty());
        }
        let is_big_endian = number(&header, 0) & 1 == 1;
        let sum = checksum([0; 2], &header[..24], is_big_endian);
        let is_valid =
            number(&header, 0) & !1 == MAGIC && number(&header, 8) as usize == PAGE && sum == pair(&header, 24);
        let mut chain = FrameChain {
            salts: if is_valid { Some(pair(&header, 16)) } else { salts },
            is_big_endian: if is_valid { is_big_endian } else { cfg!(target_endian = "big") },
            // Without a header, the first frame has nothing before it to be verified by.
            before: is_valid.then_some(sum),
        };
        let mut survey = Self::empty();
        survey.header = match chain.salts {
            Some(salts) if is_valid => LogHeader::Valid { salts },
            _ => LogHeader::Damaged,
        };
        let mut is_unbroken = is_valid;
        let mut frame = vec![0; FRAME];
        while read_full(&mut reader, &mut frame)? == FRAME {
            let place = frame_place(survey.frames.into());
            survey.frames += 1;
            let verified = chain.verify(&frame);
            survey.checksums.push(verified.map(|header| header.checksum));
            is_unbroken &= verified.is_some();
            survey.valid += u32::from(is_unbroken);
            let Some(header) = verified else {
                // It may have been the newest content of that page.
                if let Some(page) = chain.claimed_page(&frame) {
                    survey.pages.remove(&page);
                }
                continue;
            };
            survey.commits_behind += u32::from(!is_unbroken && header.commit > 0);
            survey.pages.insert(header.page, place + FRAME_HEADER as u64);
        }
        if survey.frames == 0 && is_valid {
            survey.header = LogHeader::Empty;
        }
        survey.file = Some(reader.into_inner());
        Ok(survey)
    }

    fn empty() -> Self {
        Self {
            header: LogHeader::Empty,
            frames: 0,
            valid: 0,
            commits_behind: 0,
            checksums: Vec::new(),
            pages: BTreeMap::new(),
            file: None,
        }
    }

    /// The checksum of a frame, if it verifies.
    pub(super) fn checksum_of(&self, frame: u32) -> Option<[u32; 2]> {
        let index = usize::try_from(frame.checked_sub(1)?).ok()?;
        self.checksums.get(index).copied().flatten()
    }

    /// The newest content of a page, if it verifies.
    pub(super) fn page(&self, page: u32) -> io::Result<Option<Vec<u8>>> {
        let (Some(place), Some(file)) = (self.pages.get(&page), &self.file) else { return Ok(None) };
        let mut bytes = vec![0; PAGE];
        file.read_exact_at(&mut bytes, *place)?;
        Ok(Some(bytes))
    }
}

/// Verifies frames, each by the one before it.
struct FrameChain {
    salts: Option<[u32; 2]>,
    is_big_endian: bool,
    /// The checksum that the next frame continues from, as the frame before it has it.
    before: Option<[u32; 2]>,
}

impl FrameChain {
    fn verify(&mut self, frame: &[u8]) -> Option<FrameHeader> {
        let read = FrameHeader::parse(frame);
        let before = self.before.replace(read.checksum)?;
        // A log whose header is damaged has the salts of its frames.
        let salts = *self.salts.get_or_insert(read.salts);
        let sum = frame_checksum(before, frame, self.is_big_endian);
        (read.page > 0 && read.salts == salts && read.checksum == sum).then_some(read)
    }

    /// The page that a frame of this log says that it holds.
    fn claimed_page(&self, frame: &[u8]) -> Option<u32> {
        let read = FrameHeader::parse(frame);
        (Some(read.salts) == self.salts).then_some(read.page)
    }
}

/// Fills the buffer as far as there are bytes; returns how many there were.
fn read_full(reader: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match reader.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::PathBuf;

    use proptest::prelude::*;
    use rusqlite::Connection;
    use tempfile::TempDir;

    use super::*;

    /// The bytes of a log that SQLite wrote, with some transactions of several frames.
    fn written(transactions: u32) -> Vec<u8> {
        let folder = tempfile::tempdir().unwrap();
        let database = folder.path().join("x.db");
        let connection = Connection::open(&database).unwrap();
        connection.execute_batch("PRAGMA journal_mode = WAL; CREATE TABLE t (x)").unwrap();
        for number in 0..transactions {
            connection.execute("INSERT INTO t VALUES (randomblob(?1))", [100 + number * 3000]).unwrap();
        }
        fs::read(folder.path().join("x.db-wal")).unwrap()
    }

    fn survey(bytes: &[u8], salts: Option<[u32; 2]>) -> (LogSurvey, TempDir) {
        let folder = tempfile::tempdir().unwrap();
        let path: PathBuf = folder.path().join("log");
        fs::write(&path, bytes).unwrap();
        (LogSurvey::read(&path, salts).unwrap(), folder)
    }

    #[test]
    fn a_log_of_sqlite_verifies_whole() {
        let bytes = written(4);
        let (survey, _folder) = survey(&bytes, None);
        let frames = u32::try_from((bytes.len() - HEADER) / FRAME).unwrap();
        assert_eq!((survey.frames, survey.valid, survey.commits_behind), (frames, frames, 0));
        assert!(matches!(survey.header, LogHeader::Valid { .. }));
        assert!(survey.checksum_of(frames).is_some() && survey.checksum_of(frames + 1).is_none());
        let last = survey.page(1).unwrap().unwrap();
        assert_eq!(&last[..16], b"SQLite format 3\0");
    }

    #[test]
    fn a_missing_log_and_a_header_alone_hold_nothing() {
        assert_eq!(LogSurvey::read(Path::new("/nonexistent/log"), None).unwrap().header, LogHeader::Empty);
        for length in [0, 10, HEADER] {
            assert_eq!(survey(&written(1)[..length], None).0.header, LogHeader::Empty, "{length}");
        }
    }

    #[test]
    fn frames_of_an_earlier_use_of_the_file_are_not_behind_a_damaged_one() {
        let bytes = written(6);
        let mut restarted = written(2);
        // As after a restart of the log: the rest of the file has the frames of the one before.
        let tail = bytes[restarted.len()..].to_vec();
        restarted.extend(tail);
        let (survey, _folder) = survey(&restarted, None);
        assert!(survey.valid < survey.frames);
        assert_eq!(survey.commits_behind, 0);
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

        #[test]
        fn one_flipped_bit_costs_its_frame_and_the_next_alone(transactions in 3u32..7, place in 0.0..1.0f64, bit in 0u8..8) {
            let good = written(transactions);
            let whole = survey(&good, None).0;
            let mut bytes = good.clone();
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss, reason = "a place in a small file")]
            let at = ((bytes.len() - 1) as f64 * place) as usize;
            bytes[at] ^= 1 << bit;
            let LogHeader::Valid { salts } = whole.header else { panic!("{whole:?}") };
            let (flipped, _folder) = survey(&bytes, Some(salts));
            prop_assert_eq!(flipped.frames, whole.frames);
            if at < HEADER {
                // Bytes of the header that no checksum covers do not exist; all frames but the first still verify.
                prop_assert_eq!(flipped.header, LogHeader::Damaged);
                prop_assert_eq!(flipped.valid, 0);
                prop_assert!(flipped.commits_behind > 0);
            } else {
                let frame = u32::try_from((at - HEADER) / FRAME).unwrap();
                prop_assert_eq!(flipped.valid, frame);
                let lost = (1..=whole.frames).filter(|number| flipped.checksum_of(*number).is_none()).count();
                prop_assert!((1..=2).contains(&lost), "{} frames", lost);
                // The last commits stand behind it, unless it is one of the last two frames.
                if frame + 2 < whole.frames {
                    prop_assert!(flipped.commits_behind > 0);
                }
            }
        }

        #[test]
        fn any_bytes_are_read_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..9000)) {
            let (survey, _folder) = survey(&bytes, None);
            prop_assert!(survey.valid <= survey.frames);
        }
    }
}
