//! Overwriting unused bytes within the pages of the database with zeros.
//!
//! SQLite overwrites a row where it deletes it. But when it moves rows within a page, it leaves their old bytes in the
//! page's unused part, where a row that is deleted later can still be read. No statement reaches those bytes. So this
//! module writes the file itself, by the file format (<https://sqlite.org/fileformat2.html>), while nobody else can
//! write:
//!
//! - only bytes that no row and no index entry owns: the gap behind a b-tree page's cell pointers, and the insides of
//!   its free blocks. A reader looks at neither, and a write that is cut short changes nothing that counts;
//! - only while the log is empty; the writer's page cache is dropped afterwards, or it would write the old bytes again;
//! - by a handle that is never closed: closing any handle to the file would drop every lock that this process has on
//!   it.
//!
//! A page that does not follow the format is skipped; `audit --deep` reports it. One place is not reached: the unused
//! end of the last page of a text that takes several. SQLite clears it, unless that page once headed a part of the free
//! list.

use std::fs::{self, File};
use std::io;
use std::mem::ManuallyDrop;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rusqlite::ffi;

use super::files;
use super::removal::WipeProgress;
use super::store::Store;

/// Where SQLite takes its locks: the page that holds this byte is never used.
const LOCK_BYTE: u64 = 1 << 30;
/// The pointer map's words for b-tree pages, and the length of its entries.
const ROOT: u8 = 1;
const BTREE: u8 = 5;
const ENTRY: usize = 5;

/// A pass over the database's pages.
pub(super) struct Scrub {
    database: PathBuf,
    file: Option<ManuallyDrop<File>>,
    /// Pages per step.
    step: u64,
    /// How many pages the pass has finished, and how many the database had then.
    done: u64,
    pages: u64,
}

impl Scrub {
    /// For the store in a folder, `step` pages at a time.
    pub(super) fn new(folder: &Path, step: u64) -> Self {
        Self { database: folder.join(files::DATABASE), file: None, step, done: 0, pages: 0 }
    }

    /// Starts a pass. A pass in progress starts again.
    pub(super) fn restart(&mut self) {
        self.done = 0;
    }

    /// Makes a step of erasing deleted data. Does not wait for readers.
    pub(super) fn step(&mut self, store: &mut Store) -> rusqlite::Result<WipeProgress> {
        if store.shrink(0, usize::MAX)? {
            return Ok(WipeProgress::Partial);
        }
        if !store.empty_log()? {
            return Ok(WipeProgress::Blocked);
        }
        let mut scrubbed = Ok(true);
        // No other program writes meanwhile, and with an empty log there is nothing to be written back.
        store.transact(|store| {
            scrubbed = self.scrub_step(store);
            Ok(())
        })?;
        store.connection.execute_batch("PRAGMA shrink_memory")?;
        Ok(match scrubbed? {
            false => WipeProgress::Blocked,
            true if self.done < self.pages => WipeProgress::Partial,
            true => WipeProgress::Complete,
        })
    }

    /// False if another program has written since the log was emptied.
    fn scrub_step(&mut self, store: &Store) -> rusqlite::Result<bool> {
        if fs::metadata(files::log_of(&self.database)).map_err(as_sqlite_error(ffi::SQLITE_IOERR_READ))?.len() > 0 {
            return Ok(false);
        }
        let file = match &self.file {
            Some(file) => file,
            None => {
                let opened = files::open_own(&self.database, false);
                self.file.insert(ManuallyDrop::new(opened.map_err(as_sqlite_error(ffi::SQLITE_CANTOPEN))?))
            }
        };
        let pages = store.pragma("page_count")?.cast_unsigned();
        // If pages were returned meanwhile, a page that is not scrubbed yet may have moved before those that are.
        if pages < self.pages {
            self.done = 0;
        }
        self.pages = pages;
        let size = usize::try_from(store.pragma("page_size")?).map_err(|_| rusqlite::Error::InvalidQuery)?;
        let end = pages.min(self.done + self.step);
        let is_changed = scrub_pages(file, size, self.done, end)?;
        if is_changed {
            file.sync_data().map_err(as_sqlite_error(ffi::SQLITE_IOERR_FSYNC))?;
        }
        self.done = end;
        Ok(true)
    }
}

/// Scrubs the pages behind the first `done`, up to the `end`th; returns whether any was changed.
fn scrub_pages(file: &File, size: usize, done: u64, end: u64) -> rusqlite::Result<bool> {
    let read = |page: u64| {
        let mut bytes = vec![0; size];
        file.read_exact_at(&mut bytes, (page - 1) * size as u64)
            .map_err(as_sqlite_error(ffi::SQLITE_IOERR_READ))
            .map(|()| bytes)
    };
    // Bytes at the end of each page that are not SQLite's.
    let usable = size - usize::from(read(1)?[20]);
    let lock_page = LOCK_BYTE / size as u64 + 1;
    let group = (usable / ENTRY) as u64 + 1;
    let (mut map, mut map_at, mut is_changed) = (Vec::new(), 0, false);
    // The first page has the schema alone.
    for page in done.max(1) + 1..=end {
        let first = (page - 2) / group * group + 2;
        let at = if first == lock_page { first + 1 } else { first };
        if page <= at || page == lock_page {
            continue;
        }
        if map_at != at {
            (map, map_at) = (read(at)?, at);
        }
        let entry = usize::try_from(page - at - 1).unwrap_or(usize::MAX).saturating_mul(ENTRY);
        if !matches!(map.get(entry), Some(&(ROOT | BTREE))) {
            continue;
        }
        let bytes = read(page)?;
        for (from, to) in find_unused(&bytes[..usable]).unwrap_or_default() {
            if bytes[from..to].iter().any(|byte| *byte != 0) {
                let place = (page - 1) * size as u64 + from as u64;
                file.write_all_at(&vec![0; to - from], place).map_err(as_sqlite_error(ffi::SQLITE_IOERR_WRITE))?;
                is_changed = true;
            }
        }
    }
    Ok(is_changed)
}

/// The ranges of a b-tree page that nothing owns; `None` if it is not as the format says.
fn find_unused(page: &[u8]) -> Option<Vec<(usize, usize)>> {
    let number = |at: usize| Some(usize::from(u16::from_be_bytes([*page.get(at)?, *page.get(at + 1)?])));
    let header = match page.first()? {
        2 | 5 => 12,
        10 | 13 => 8,
        _ => return None,
    };
    let content = match number(5)? {
        0 => 65_536,
        content => content,
    };
    let pointers = header + 2 * number(3)?;
    if pointers > content || content > page.len() {
        return None;
    }
    let mut ranges = vec![(pointers, content)];
    let (mut block, mut behind) = (number(1)?, content);
    while block != 0 {
        let (next, end) = (number(block)?, block + number(block + 2)?);
        // They come in order, and do not overlap.
        if block < behind || end < block + 4 || end > page.len() {
            return None;
        }
        ranges.push((block + 4, end));
        (block, behind) = (next, end);
    }
    Some(ranges)
}

/// An error of the system as SQLite would report it, so that it is judged by the same rules.
fn as_sqlite_error(code: i32) -> impl Fn(io::Error) -> rusqlite::Error {
    move |error| {
        let code = if error.kind() == io::ErrorKind::StorageFull { ffi::SQLITE_FULL } else { code };
        rusqlite::Error::SqliteFailure(ffi::Error::new(code), Some(error.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tuning::Tuning;

    /// A leaf with two cells at its end, a free block between them, and remains of others.
    fn leaf() -> Vec<u8> {
        let mut page = vec![0xee; 512];
        page[..12].copy_from_slice(&[13, 1, 194, 0, 2, 1, 144, 0, 1, 144, 1, 224]);
        page[450..454].copy_from_slice(&[0, 0, 0, 30]);
        page
    }

    #[test]
    fn the_gap_and_the_insides_of_free_blocks_are_nobodys() {
        assert_eq!(find_unused(&leaf()), Some(vec![(12, 400), (454, 480)]));
        let mut interior = leaf();
        interior[0] = 5;
        assert_eq!(find_unused(&interior).unwrap()[0], (16, 400));
    }

    #[test]
    fn a_page_that_is_not_as_the_format_says_is_left_alone() {
        for (at, bytes) in [
            (0, &[3][..]),         // no b-tree page
            (3, &[1, 0]),          // more pointers than there is room for
            (5, &[2, 1]),          // content behind the end
            (1, &[0, 100]),        // a free block in the gap
            (1, &[1, 255]),        // and one over the end
            (450, &[0, 0, 0, 3]),  // shorter than its head
            (450, &[0, 0, 0, 63]), // longer than the page
            (450, &[1, 200]),      // overlapping the next
            (450, &[1, 194]),      // in a circle
        ] {
            let mut page = leaf();
            page[at..at + bytes.len()].copy_from_slice(bytes);
            assert_eq!(find_unused(&page), None, "{at}: {bytes:?}");
        }
    }

    #[test]
    fn a_store_is_whole_after_its_pages_were_scrubbed_in_steps() {
        assert!(scrub_a_store(16) > 10);
        let steps = scrub_a_store(Tuning::default().scrub_pages);
        assert!(steps < 5, "{steps} steps at the shipped size");
    }

    /// Returns how many steps it took before the last one.
    fn scrub_a_store(step: u64) -> u32 {
        let folder = tempfile::tempdir().unwrap();
        let mut store = Store::open(folder.path()).unwrap();
        let fill = "WITH RECURSIVE n(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < 600) \
                    INSERT INTO event SELECT n, randomblob(24), 0, 0, 0, '', '', '', '', '', hex(randomblob(14)), NULL, \
                      NULL, '', randomblob(abs(random()) % 5000), NULL, NULL, NULL, NULL FROM n; \
                    UPDATE event SET reply = hex(randomblob(300)) WHERE id % 3 = 0; \
                    DELETE FROM event WHERE id % 2 = 0;";
        store.connection.execute_batch(fill).unwrap();
        let sum = |store: &Store| -> String {
            let all = "SELECT hex(group_concat(content_key || from_user || coalesce(reply, '') || body)) FROM event";
            store.connection.query_row(all, [], |row| row.get(0)).unwrap()
        };
        let (before, mut scrub, mut steps) = (sum(&store), Scrub::new(folder.path(), step), 0);
        while scrub.step(&mut store).unwrap() != WipeProgress::Complete {
            steps += 1;
        }
        assert_eq!(sum(&store), before);
        let check: String = store.connection.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
        assert_eq!(check, "ok");
        let (file, size) = (file_of(&scrub).try_clone().unwrap(), 4096);
        // Never closed, as the other is not.
        let file = ManuallyDrop::new(file);
        let pages = store.pragma("page_count").unwrap().cast_unsigned();
        assert!(!scrub_pages(&file, size, 0, pages).unwrap(), "all of them");
        // Bytes of old rows in the gap of a leaf, as SQLite leaves them there.
        let mut page = vec![0; size];
        let leaf = (2..=pages).rev().find_map(|number| {
            file.read_exact_at(&mut page, (number - 1) * size as u64).unwrap();
            let (from, to) = *find_unused(&page)?.first()?;
            (page[0] == 13 && to - from > 100).then_some((number, from))
        });
        let (number, from) = leaf.unwrap();
        file.write_all_at(&[0xee; 50], (number - 1) * size as u64 + from as u64 + 20).unwrap();
        scrub.restart();
        while scrub.step(&mut store).unwrap() != WipeProgress::Complete {}
        assert!(!scrub_pages(file_of(&scrub), size, 0, pages).unwrap());
        file_of(&scrub).read_exact_at(&mut page, (number - 1) * size as u64).unwrap();
        assert!(page[from..from + 100].iter().all(|byte| *byte == 0));
        assert_eq!(sum(&store), before);
        steps
    }

    fn file_of(scrub: &Scrub) -> &File {
        scrub.file.as_ref().unwrap()
    }
}
