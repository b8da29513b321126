//! Reading the table `held_reply`: the ledger of replies, and what became of those to an event.

use std::collections::BTreeMap;

use rusqlite::{Connection, OptionalExtension as _};

use super::inspect::count;
use crate::event::EventId;
use crate::ordered;
use crate::queue::ReplyState;
use crate::queue::view::{ReplyCounts, ReplyDetail};

/// How many replies are held, by account.
pub(super) fn held_by_account(connection: &Connection) -> rusqlite::Result<BTreeMap<String, u64>> {
    let mut find = connection.prepare_cached(
        "SELECT account, count(*) FROM held_reply INDEXED BY held_reply_user \
          WHERE expires_at IS NOT NULL AND state = 2 GROUP BY account",
    )?;
    ordered::try_map(find.query_map([], |row| Ok((row.get(0)?, count(row, 1)?)))?)
}

/// The given replies of each state. Those of no event or of an unknown state add to `unaccounted`.
pub(super) fn count_replies(connection: &Connection, unaccounted: &mut u64) -> rusqlite::Result<ReplyCounts> {
    let mut counts = ReplyCounts::default();
    let mut find = connection.prepare("SELECT state, count(*) FROM held_reply GROUP BY state")?;
    let mut rows = find.query([])?;
    while let Some(row) = rows.next()? {
        match ReplyState::of(row.get(0)?) {
            Some(ReplyState::Awaited | ReplyState::Ended) => {}
            Some(state) => {
                *counts.of(state) = count(row, 1)?;
                counts.given += count(row, 1)?;
            }
            None => *unaccounted += count(row, 1)?,
        }
    }
    let orphans = "SELECT count(*) FROM held_reply r WHERE NOT EXISTS (SELECT 1 FROM event WHERE id = r.event)";
    *unaccounted += connection.query_row(orphans, [], |row| count(row, 0))?;
    Ok(counts)
}

/// What became of the replies to an event.
pub(super) fn replies(connection: &Connection, event: EventId) -> rusqlite::Result<Vec<ReplyDetail>> {
    let mut find = connection.prepare_cached(
        "SELECT coalesce(t.name, ''), r.state, r.attempt, r.at, r.expires_at, r.picked_by \
           FROM held_reply r LEFT JOIN target t ON t.no = r.target WHERE r.event = ?1 ORDER BY r.no",
    )?;
    let found = find.query_map([event], |row| {
        Ok(ReplyDetail {
            target: row.get(0)?,
            state: row.get(1)?,
            attempt: row.get(2)?,
            at: row.get(3)?,
            expires_at: row.get(4)?,
            picked_up_by: row.get(5)?,
        })
    })?;
    found.collect()
}

/// The event whose reply was given last to this one.
pub(super) fn picked_up(connection: &Connection, by: EventId) -> rusqlite::Result<Option<EventId>> {
    let mut find = connection.prepare_cached(
        "SELECT event FROM held_reply INDEXED BY held_reply_picked WHERE picked_by = ?1 AND event <> ?1",
    )?;
    find.query_row([by], |row| row.get(0)).optional()
}
