//! The rows in one page of a database, read by the file format (<https://sqlite.org/fileformat2.html>) and without the
//! pages above it: whatever is damaged elsewhere, a whole page gives up all its rows.

use rusqlite::types::Value;

use super::super::log_format::{PAGE, number};
use super::pages::{DamagedPages, PageBytes};

/// The longest row that is believed: far more than the largest body and text take.
const MAX_ROW: usize = 16 << 20;

/// What a page holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PageKind {
    /// Rows of a table by their row ids.
    Table,
    /// Rows of an index, or of a table without row ids. Also pages that lead to others hold such rows.
    Index { is_leaf: bool },
    /// Something else, or nothing that can be read.
    Other,
}

/// A row: its row id, 0 in an index, and its columns.
pub(super) struct RawRow {
    pub(super) id: i64,
    pub(super) columns: Vec<Value>,
}

/// What kind of page this is.
pub(super) fn kind(page: u32, bytes: &PageBytes) -> PageKind {
    match bytes[start(page)] {
        0x0d => PageKind::Table,
        0x0a => PageKind::Index { is_leaf: true },
        0x02 => PageKind::Index { is_leaf: false },
        _ => PageKind::Other,
    }
}

/// How many cells the page says to have.
pub(super) fn cells(page: u32, bytes: &PageBytes) -> u16 {
    let at = start(page) + 3;
    u16::from_be_bytes([bytes[at], bytes[at + 1]]).min(PAGE as u16 / 4)
}

/// Reads a cell of the page; `None` if it is damaged, or a page that it continues on.
pub(super) fn read_cell(pages: &DamagedPages, page: u32, bytes: &PageBytes, cell: u16) -> Option<RawRow> {
    let kind = kind(page, bytes);
    let pointers = start(page) + if kind == (PageKind::Index { is_leaf: false }) { 12 } else { 8 };
    let pointer = bytes.get(pointers + usize::from(cell) * 2..)?.first_chunk()?;
    let mut rest = bytes.get(usize::from(u16::from_be_bytes(*pointer))..)?;
    if kind == (PageKind::Index { is_leaf: false }) {
        rest = rest.get(4..)?;
    }
    // A damaged length must not lead in circles through the pages.
    let most = MAX_ROW.min(pages.count() as usize * PAGE);
    let length = usize::try_from(varint(&mut rest)?).ok().filter(|length| *length <= most)?;
    let (id, most) = match kind {
        PageKind::Table => (varint(&mut rest)?, PAGE - 35),
        PageKind::Index { .. } => (0, (PAGE - 12) * 64 / 255 - 23),
        PageKind::Other => return None,
    };
    let least = (PAGE - 12) * 32 / 255 - 23;
    let local = if length <= most {
        length
    } else {
        Some(least + (length - least) % (PAGE - 4)).filter(|local| *local <= most).unwrap_or(least)
    };
    let mut payload = rest.get(..local)?.to_vec();
    let mut next = if length > local { number(rest, local) } else { 0 };
    while payload.len() < length {
        let more = pages.newest(next).filter(|_| next != 0)?.bytes;
        let take = (length - payload.len()).min(PAGE - 4);
        payload.extend_from_slice(&more[4..4 + take]);
        next = number(&*more, 0);
    }
    Some(RawRow { id, columns: columns(&payload)? })
}

fn start(page: u32) -> usize {
    if page == 1 { 100 } else { 0 }
}

/// The columns of a record: a header of types, then the values.
fn columns(record: &[u8]) -> Option<Vec<Value>> {
    let mut header = record;
    let length = usize::try_from(varint(&mut header)?).ok()?;
    let taken = record.len() - header.len();
    header = header.get(..length.checked_sub(taken)?)?;
    let mut body = record.get(length..)?;
    let mut columns = Vec::new();
    while !header.is_empty() {
        let kind = varint(&mut header)?;
        let length = match kind {
            0 | 8 | 9 => 0,
            1..=4 => usize::try_from(kind).ok()?,
            5 => 6,
            6 | 7 => 8,
            12.. => usize::try_from((kind - 12) / 2).ok()?,
            _ => return None,
        };
        let value = body.get(..length)?;
        body = body.get(length..)?;
        columns.push(match kind {
            0 => Value::Null,
            1..=6 => Value::Integer(integer(value)),
            7 => Value::Real(f64::from_be_bytes(*value.first_chunk()?)),
            8 | 9 => Value::Integer(kind - 8),
            _ if kind % 2 == 0 => Value::Blob(value.to_vec()),
            _ => Value::Text(String::from_utf8(value.to_vec()).ok()?),
        });
    }
    // A record ends where its last value does: anything else was read from a damaged place.
    body.is_empty().then_some(columns)
}

/// A signed big-endian number of up to 8 bytes.
fn integer(bytes: &[u8]) -> i64 {
    let sign = if bytes.first().is_some_and(|first| first & 0x80 != 0) { -1 } else { 0 };
    bytes.iter().fold(sign, |number, byte| number << 8 | i64::from(*byte))
}

/// A number of 1 to 9 bytes, 7 bits each, the ninth 8.
fn varint(bytes: &mut &[u8]) -> Option<i64> {
    let mut number = 0_u64;
    for place in 0..9 {
        let byte = *bytes.get(place)?;
        if place == 8 {
            number = number << 8 | u64::from(byte);
        } else {
            number = number << 7 | u64::from(byte & 0x7f);
        }
        if place == 8 || byte & 0x80 == 0 {
            *bytes = &bytes[place + 1..];
            return Some(number.cast_signed());
        }
    }
    None
}
