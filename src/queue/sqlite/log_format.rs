//! The format of SQLite's write-ahead log (<https://sqlite.org/fileformat2.html#walformat>): a header, and frames with one
//! page each.

/// The lengths of a log's header and of a frame's.
pub(super) const HEADER: usize = 32;
pub(super) const FRAME_HEADER: usize = 24;
/// The page size of our databases, which is SQLite's default.
pub(super) const PAGE: usize = 4096;
pub(super) const FRAME: usize = FRAME_HEADER + PAGE;

/// Where a frame begins, counted from 0.
pub(super) fn frame_place(frame: u64) -> u64 {
    HEADER as u64 + frame * FRAME as u64
}

/// Where the checksum over the log's header and its first `frames` frames is.
pub(super) fn checksum_place(frames: u64) -> u64 {
    let end = frames.checked_sub(1).map_or(HEADER as u64, |last| frame_place(last) + FRAME_HEADER as u64);
    end - 8
}

/// The words of a frame's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FrameHeader {
    /// The page that it holds.
    pub(super) page: u32,
    /// The size of the database after it, in pages, if it ends a transaction; else 0.
    pub(super) commit: u32,
    pub(super) salts: [u32; 2],
    pub(super) checksum: [u32; 2],
}

impl FrameHeader {
    pub(super) fn parse(bytes: &[u8]) -> Self {
        Self { page: number(bytes, 0), commit: number(bytes, 4), salts: pair(bytes, 8), checksum: pair(bytes, 16) }
    }
}

/// The checksum of a log, continued from `start` over whole pairs of words.
pub(super) fn checksum(start: [u32; 2], bytes: &[u8], is_big_endian: bool) -> [u32; 2] {
    let (pairs, _) = bytes.as_chunks::<8>();
    pairs.iter().fold(start, |[one, two], [a, b, c, d, e, f, g, h]| {
        let word = if is_big_endian { u32::from_be_bytes } else { u32::from_le_bytes };
        let one = one.wrapping_add(word([*a, *b, *c, *d])).wrapping_add(two);
        let two = two.wrapping_add(word([*e, *f, *g, *h])).wrapping_add(one);
        [one, two]
    })
}

/// The checksum of a frame that follows one with the checksum `before`.
pub(super) fn frame_checksum(before: [u32; 2], frame: &[u8], is_big_endian: bool) -> [u32; 2] {
    let (header, page) = frame.split_at(FRAME_HEADER);
    checksum(checksum(before, &header[..8], is_big_endian), page, is_big_endian)
}

/// The big-endian number at `at`, or 0 behind the end.
pub(super) fn number(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..).and_then(<[u8]>::first_chunk).map_or(0, |word| u32::from_be_bytes(*word))
}

/// Two numbers, one behind the other.
pub(super) fn pair(bytes: &[u8], at: usize) -> [u32; 2] {
    [number(bytes, at), number(bytes, at + 4)]
}
