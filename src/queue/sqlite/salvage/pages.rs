//! The pages of a damaged store: its database with what its log holds over it, also behind damage in the log.
//!
//! SQLite ends a log at the first frame that does not verify. Here every frame of the log's last generation counts, up
//! to the last one that ends a transaction. A frame that does not verify is doubted: its page is read all the same, and
//! the version before it too.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::super::files;
use super::super::log_format::{
    FRAME, FRAME_HEADER, FrameHeader, HEADER, PAGE, checksum, frame_checksum, frame_place, number, pair,
};

/// Entries of a pointer map page, and so the distance of two such pages less one.
const POINTERS: u32 = PAGE as u32 / 5;

pub(super) type PageBytes = [u8; PAGE];

/// A version of a page.
pub(super) struct PageVersion {
    pub(super) bytes: Box<PageBytes>,
    /// Whether the checksum over it does not verify.
    pub(super) is_doubted: bool,
}

/// Where the log has a version of a page.
struct FramePlace {
    at: u64,
    is_doubted: bool,
}

/// The pages, by their numbers from 1.
pub(super) struct DamagedPages {
    database: Option<File>,
    log: Option<File>,
    frames: HashMap<u32, Vec<FramePlace>>,
    count: u32,
    /// The free pages, if the list of them is whole.
    free: Option<Vec<bool>>,
}

impl DamagedPages {
    /// Opens what is there of the store in the folder.
    pub(super) fn open(folder: &Path) -> io::Result<Self> {
        let database = open(&folder.join(files::DATABASE))?;
        let log = open(&files::log_of(&folder.join(files::DATABASE)))?;
        let size = database.as_ref().map_or(Ok(0), |file| file.metadata().map(|found| found.len()))?;
        let count = u32::try_from(size.div_ceil(PAGE as u64)).unwrap_or(u32::MAX);
        let mut pages = Self { database, log, frames: HashMap::new(), count, free: None };
        pages.read_log()?;
        pages.count = pages.frames.keys().copied().max().unwrap_or(0).max(pages.count);
        pages.free = pages.read_free();
        Ok(pages)
    }

    /// How many pages there are.
    pub(super) fn count(&self) -> u32 {
        self.count
    }

    /// A page as of the last commit, if it can be read.
    pub(super) fn newest(&self, page: u32) -> Option<PageVersion> {
        self.version(page, 0)
    }

    /// A version of a page: 0 is the newest.
    pub(super) fn version(&self, page: u32, back: usize) -> Option<PageVersion> {
        let frames = self.frames.get(&page).map_or(&[][..], Vec::as_slice);
        let (file, place) = match frames.len().checked_sub(back + 1) {
            Some(place) => (self.log.as_ref()?, &frames[place]),
            None if back == frames.len() => {
                let at = u64::from(page.checked_sub(1)?) * PAGE as u64;
                (self.database.as_ref()?, &FramePlace { at, is_doubted: false })
            }
            None => return None,
        };
        let mut bytes = Box::new([0; PAGE]);
        file.read_exact_at(&mut *bytes, place.at).ok()?;
        Some(PageVersion { bytes, is_doubted: place.is_doubted })
    }

    /// Whether the page is one of the file's own: free, or a map of pointers. It may hold old bytes of deleted rows.
    pub(super) fn holds_no_rows(&self, page: u32) -> bool {
        if is_pointer_map(page) {
            return true;
        }
        match &self.free {
            Some(free) => free.get(page as usize).copied().unwrap_or(false),
            None => self.pointer(page) == Some(2),
        }
    }

    /// Whether the map of pointers says that the page is one of a table or an index.
    pub(super) fn is_told_to_hold_rows(&self, page: u32) -> bool {
        matches!(self.pointer(page), Some(1 | 5))
    }

    /// The kind of a page by the map of pointers, if that page of the map is not damaged.
    fn pointer(&self, page: u32) -> Option<u8> {
        let map = page.checked_sub(2)? / (POINTERS + 1) * (POINTERS + 1) + 2;
        let bytes = self.newest(map)?.bytes;
        let entry = (page - map).checked_sub(1)? as usize * 5;
        Some(bytes[entry]).filter(|kind| (1..=5).contains(kind))
    }

    /// Follows the list of free pages; `None` if it is damaged.
    fn read_free(&self) -> Option<Vec<bool>> {
        let header = self.newest(1)?.bytes;
        if !header.starts_with(b"SQLite format 3\0") {
            return None;
        }
        let (mut trunk, told) = (number(&*header, 32), number(&*header, 36));
        let (mut free, mut found) = (vec![false; self.count as usize + 1], 0);
        while trunk != 0 && told <= self.count {
            let bytes = self.newest(trunk)?.bytes;
            let leaves = number(&*bytes, 4) as usize;
            if leaves > PAGE / 4 - 2 || found > told {
                return None;
            }
            for page in (0..leaves).map(|leaf| number(&*bytes, 8 + leaf * 4)).chain([trunk]) {
                *free.get_mut(page as usize)? = true;
                found += 1;
            }
            trunk = number(&*bytes, 0);
        }
        (found == told).then_some(free)
    }

    /// Finds the frames of the last generation, up to the last that ends a transaction.
    fn read_log(&mut self) -> io::Result<()> {
        let Some(log) = &self.log else { return Ok(()) };
        let frames = log.metadata()?.len().saturating_sub(HEADER as u64) / FRAME as u64;
        let mut header = [0; HEADER];
        if frames == 0 || log.read_exact_at(&mut header, 0).is_err() {
            return Ok(());
        }
        let is_big_endian = number(&header, 0) & 1 == 1;
        let is_whole = checksum([0; 2], &header[..24], is_big_endian) == pair(&header, 24);
        let salts = if is_whole { pair(&header, 16) } else { common_salts(log, frames)? };
        let mut before = if is_whole { pair(&header, 24) } else { [0; 2] };
        // Each frame adds a page at most: a larger number is damage.
        let last = u64::from(self.count) + frames;
        let (mut open, mut bytes, mut foreign) = (Vec::new(), vec![0; FRAME], 0);
        for frame in 0..frames {
            let at = frame_place(frame);
            log.read_exact_at(&mut bytes, at)?;
            let FrameHeader { page, commit, salts: own, checksum: told } = FrameHeader::parse(&bytes);
            // One flipped bit is in one of the two salts; a frame of an earlier generation differs in both.
            if own[0] != salts[0] && own[1] != salts[1] {
                foreign += 1;
                before = told;
                if foreign > 1 {
                    break;
                }
                continue;
            }
            foreign = 0;
            let summed = frame_checksum(before, &bytes, is_big_endian);
            before = told;
            if page > 0 && u64::from(page) <= last {
                let is_doubted = summed != told || own != salts;
                open.push((page, FramePlace { at: at + FRAME_HEADER as u64, is_doubted }));
            }
            if commit != 0 {
                for (page, place) in open.drain(..) {
                    self.frames.entry(page).or_default().push(place);
                }
            }
        }
        Ok(())
    }
}

fn open(path: &Path) -> io::Result<Option<File>> {
    match File::open(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        opened => opened.map(Some),
    }
}

fn is_pointer_map(page: u32) -> bool {
    page >= 2 && (page - 2).is_multiple_of(POINTERS + 1)
}

/// The salts that the first frames agree on, where the header has none.
fn common_salts(log: &File, frames: u64) -> io::Result<[u32; 2]> {
    let mut seen = Vec::new();
    for frame in 0..frames.min(5) {
        let mut header = [0; FRAME_HEADER];
        log.read_exact_at(&mut header, frame_place(frame))?;
        seen.push(pair(&header, 8));
    }
    let first = seen.first().copied().unwrap_or_default();
    let agreed = seen.windows(2).find(|two| two[0] == two[1]).map(|two| two[0]);
    Ok(agreed.unwrap_or(first))
}
