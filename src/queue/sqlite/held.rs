//! The table `held_reply`: what became of the replies of accounts that keep them (`queue/held.rs`).

use rusqlite::{OptionalExtension as _, Row, params};

use super::Sqlite;
use super::command::WriterCommand;
use super::key_table;
use super::store::Store;
use crate::clock::UnixMillis;
use crate::event::EventId;
use crate::queue::encryption::SealContext;
use crate::queue::held::{
    GivenReply, HeldQuery, HeldReply, HeldState, LateReply, ReplyState, ReplyUse, TakeReply, state_of,
};
use crate::queue::{Error, checksum};

/// Replies in the running ledger, where a target has its number: those given at state 0, and each state.
pub(super) const REPLIES: i64 = -1;

/// A command about held replies.
#[derive(Debug)]
pub(super) enum HeldCommand {
    Find(HeldQuery),
    AwaitLate(LateReply),
    Take(TakeReply),
    ForgetEnded(EventId),
    Expire(UnixMillis),
}

/// The answer to one.
#[derive(Debug)]
pub(super) enum HeldAnswer {
    State(HeldState),
    Done(bool),
    Expired(Vec<(String, u64)>),
}

impl Sqlite {
    async fn held_command(&self, command: HeldCommand) -> Result<HeldAnswer, Error> {
        self.execute(|waiter| WriterCommand::Held(command, waiter)).await
    }

    async fn held_state(&self, command: HeldCommand) -> Result<HeldState, Error> {
        let answer = self.held_command(command).await?;
        Ok(if let HeldAnswer::State(state) = answer { state } else { HeldState::Nothing })
    }

    pub(in crate::queue) async fn held(&self, query: HeldQuery) -> Result<HeldState, Error> {
        self.held_state(HeldCommand::Find(query)).await
    }

    pub(in crate::queue) async fn await_late(&self, late: LateReply) -> Result<HeldState, Error> {
        self.held_state(HeldCommand::AwaitLate(late)).await
    }

    pub(in crate::queue) async fn take(&self, take: TakeReply) -> Result<bool, Error> {
        Ok(matches!(self.held_command(HeldCommand::Take(take)).await?, HeldAnswer::Done(true)))
    }

    pub(in crate::queue) async fn forget_ended(&self, event: EventId) -> Result<(), Error> {
        self.held_command(HeldCommand::ForgetEnded(event)).await.map(drop)
    }

    pub(in crate::queue) async fn expire_held(&self, now: UnixMillis) -> Result<Vec<(String, u64)>, Error> {
        let answer = self.held_command(HeldCommand::Expire(now)).await?;
        Ok(if let HeldAnswer::Expired(expired) = answer { expired } else { Vec::new() })
    }
}

/// The columns of a reply that may be given.
const OPEN: &str = "SELECT event, no, state, target, taken, checksum, content, coalesce(at, 0) FROM held_reply";

struct OpenRow {
    event: EventId,
    no: i64,
    state: ReplyState,
    target: i64,
    taken: i64,
    checksum: Option<i64>,
    content: Option<Vec<u8>>,
    at: i64,
}

impl OpenRow {
    fn read(row: &Row<'_>) -> rusqlite::Result<Self> {
        Ok(Self {
            event: row.get(0)?,
            no: row.get(1)?,
            state: row.get(2)?,
            target: row.get(3)?,
            taken: row.get(4)?,
            checksum: row.get(5)?,
            content: row.get_ref(6)?.as_bytes_or_null()?.map(<[u8]>::to_vec),
            at: row.get(7)?,
        })
    }
}

impl Store {
    /// Executes one that is no write.
    pub(super) fn find_held(&self, command: &HeldCommand) -> rusqlite::Result<HeldAnswer> {
        Ok(match command {
            HeldCommand::Find(query) => HeldAnswer::State(self.held(query)?),
            _ => HeldAnswer::Done(false),
        })
    }

    /// Executes one inside a transaction.
    pub(super) fn change_held(&mut self, command: &HeldCommand) -> rusqlite::Result<HeldAnswer> {
        Ok(match command {
            HeldCommand::Find(query) => HeldAnswer::State(self.held(query)?),
            HeldCommand::AwaitLate(late) => HeldAnswer::State(self.await_late(late)?),
            HeldCommand::Take(take) => HeldAnswer::Done(self.take(take)?),
            HeldCommand::ForgetEnded(event) => {
                let ended = "DELETE FROM held_reply WHERE event = ?1 AND state = 7";
                HeldAnswer::Done(self.connection.prepare_cached(ended)?.execute([event])? > 0)
            }
            HeldCommand::Expire(now) => HeldAnswer::Expired(self.expire_held(*now)?),
        })
    }

    fn held(&self, query: &HeldQuery) -> rusqlite::Result<HeldState> {
        let HeldQuery { account, user, event, now } = query;
        let mut find = self.connection.prepare_cached(&format!(
            "{OPEN} WHERE account = ?1 AND user = ?2 AND expires_at > ?3 AND (?4 IS NULL OR event = ?4) \
             ORDER BY taken = 0, event, no"
        ))?;
        let rows = find.query_map(params![&**account, user, now, event], OpenRow::read)?;
        let mut rest = HeldState::Nothing;
        for row in rows.collect::<rusqlite::Result<Vec<_>>>()? {
            match row.state {
                ReplyState::Held => {
                    if let Some(held) = self.open_held(row) {
                        return Ok(HeldState::Held(held));
                    }
                }
                ReplyState::Awaited if self.is_pending(row.event, row.target)? => rest = HeldState::Running,
                ReplyState::Awaited | ReplyState::Ended if rest == HeldState::Nothing => {
                    rest = HeldState::Ended(row.event);
                }
                _ => {}
            }
        }
        Ok(rest)
    }

    /// A reply that is damaged, or cannot be decrypted, is passed over.
    fn open_held(&self, row: OpenRow) -> Option<HeldReply> {
        let OpenRow { event, no, taken, checksum, content, at, .. } = row;
        let stored = content?;
        if checksum.is_some_and(|checksum| checksum != checksum::of_held(event, at, &stored)) {
            tracing::error!(%event, "held reply damaged; not sent");
            return None;
        }
        let context = SealContext::Held(event, at);
        let mut find = self.connection.prepare_cached("SELECT key FROM event WHERE id = ?1").ok()?;
        let content = match find.query_row([event], |row| row.get::<_, Option<i64>>(0)).optional().ok()?.flatten() {
            Some(key) => {
                let opened = self.keys.open_text(key, context, &stored);
                opened.inspect_err(|error| tracing::error!(%event, %error, "held reply unreadable")).ok()?
            }
            None => String::from_utf8(stored).ok()?,
        };
        Some(HeldReply { event, no, content, taken: usize::try_from(taken).unwrap_or(0) })
    }

    fn is_pending(&self, event: EventId, target: i64) -> rusqlite::Result<bool> {
        let mut find =
            self.connection.prepare_cached("SELECT 1 FROM delivery WHERE event = ?1 AND target = ?2 AND state = 0")?;
        find.exists(params![event, target])
    }

    fn await_late(&mut self, late: &LateReply) -> rusqlite::Result<HeldState> {
        let LateReply { event, targets, account, user, until, now } = late;
        let mut find = self
            .connection
            .prepare_cached("SELECT EXISTS (SELECT 1 FROM held_reply WHERE event = ?1 AND state NOT IN (0, 7))")?;
        let is_given: bool = find.query_row([event], |row| row.get(0))?;
        drop(find);
        for target in targets.iter().filter(|_| !is_given) {
            let Some(number) = self.known_number(target)? else { continue };
            if !self.is_pending(*event, number)? {
                continue;
            }
            let mut update = self.connection.prepare_cached(
                "UPDATE held_reply SET expires_at = ?3, state = 0 WHERE event = ?1 AND target = ?2 AND state IN (0, 7)",
            )?;
            if update.execute(params![event, number, until])? == 0 {
                let mut insert = self.connection.prepare_cached(
                    "INSERT INTO held_reply (event, no, target, state, expires_at, account, user) \
                     SELECT ?1, (SELECT coalesce(max(no), 0) + 1 FROM held_reply WHERE event = ?1), ?2, 0, ?3, ?4, ?5",
                )?;
                insert.execute(params![event, number, until, &**account, user])?;
            }
        }
        let (account, user) = (account.clone(), user.clone());
        self.held(&HeldQuery { account, user, event: Some(*event), now: *now })
    }

    /// Stores a reply that was given; `None` where it was stored before, or its event is gone.
    pub(super) fn give(&mut self, given: &GivenReply, now: UnixMillis) -> rusqlite::Result<Option<ReplyState>> {
        let GivenReply { event, target, attempt: (number, at), account, user, content, keep, used } = given;
        let target = self.number(target)?;
        if matches!(used, ReplyUse::Sent(_)) {
            self.supersede_others(*event, target)?;
        }
        let mut find = self.connection.prepare_cached(
            "SELECT state, target IS ?2 AND attempt IS ?3 AND at IS ?4 FROM held_reply WHERE event = ?1",
        )?;
        let rows = find.query_map(params![event, target, number, at], |row| Ok((row.get(0)?, row.get(1)?)))?;
        let known: Vec<(ReplyState, bool)> = rows.collect::<rusqlite::Result<_>>()?;
        drop(find);
        if let Some((state, _)) = known.iter().find(|(_, is_same)| *is_same) {
            // In reserve until now: it was settled before it was used.
            if let (ReplyState::Held, ReplyUse::Sent(end)) = (state, used) {
                self.use_reserve(*event, target, *end)?;
            }
            return Ok(None);
        }
        let stays = |state| !matches!(state, ReplyState::Awaited | ReplyState::Ended | ReplyState::Superseded);
        let mut count = self.connection.prepare_cached(
            "SELECT count(*) FROM held_reply WHERE account = ?1 AND user = ?2 AND expires_at > ?3 AND state = 2",
        )?;
        let held: i64 = count.query_row(params![&**account, user, now], |row| row.get(0))?;
        drop(count);
        let held = usize::try_from(held).unwrap_or(0);
        let state = state_of(*used, known.iter().any(|(state, _)| stays(*state)), held);
        let next_no = "SELECT coalesce(max(no), 0) + 1 FROM held_reply WHERE event = ?1";
        let no: i64 = self.connection.prepare_cached(next_no)?.query_row([event], |row| row.get(0))?;
        let is_held = state == ReplyState::Held;
        let stored = is_held.then(|| {
            let context = SealContext::Held(*event, at.0);
            key_table::seal_like_event(&self.keys, &self.connection, *event, context, content.as_bytes())
        });
        let stored = stored.transpose()?;
        let taken = if let ReplyUse::Sent(Some(end)) = used { *end } else { 0 };
        let mut insert = self.connection.prepare_cached(
            "INSERT INTO held_reply (event, no, target, state, attempt, at, taken, expires_at, account, user, checksum, \
                                     content) \
             SELECT ?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12 WHERE EXISTS (SELECT 1 FROM event WHERE id = ?1)",
        )?;
        let inserted = insert.execute(params![
            event,
            no,
            target,
            state,
            number,
            at,
            taken.cast_signed() as i64,
            is_held.then(|| now.after(*keep)),
            &**account,
            user,
            stored.as_ref().map(|stored| checksum::of_held(*event, at.0, stored)),
            stored,
        ])?;
        drop(insert);
        if inserted == 0 {
            return Ok(None);
        }
        self.count_given(state, 1);
        if state != ReplyState::Superseded {
            let waits = "DELETE FROM held_reply WHERE event = ?1 AND state IN (0, 7)";
            self.connection.prepare_cached(waits)?.execute([event])?;
        }
        Ok(Some(state))
    }

    /// Notes that a reply that was in reserve was sent, up to there.
    fn use_reserve(&mut self, event: EventId, target: i64, end: Option<usize>) -> rusqlite::Result<()> {
        let mut update = self.connection.prepare_cached(
            "UPDATE held_reply SET state = CASE WHEN ?3 IS NULL THEN 1 ELSE 2 END, taken = coalesce(?3, 0), \
                    expires_at = CASE WHEN ?3 IS NOT NULL THEN expires_at END, \
                    content = CASE WHEN ?3 IS NOT NULL THEN content END, \
                    checksum = CASE WHEN ?3 IS NOT NULL THEN checksum END \
              WHERE event = ?1 AND target = ?2 AND state = 2 AND taken = 0",
        )?;
        let taken = end.map(|end| end.cast_signed() as i64);
        let changed = update.execute(params![event, target, taken])?;
        drop(update);
        if changed > 0 && end.is_none() {
            self.move_reply(ReplyState::Held, ReplyState::Sent);
        }
        Ok(())
    }

    /// When a reply is sent, others of the event that no message has got yet are superseded.
    fn supersede_others(&mut self, event: EventId, target: i64) -> rusqlite::Result<()> {
        let mut update = self.connection.prepare_cached(
            "UPDATE held_reply SET state = 4, expires_at = NULL, content = NULL, checksum = NULL \
              WHERE event = ?1 AND target <> ?2 AND state = 2 AND taken = 0",
        )?;
        let superseded = update.execute(params![event, target])?;
        drop(update);
        (0..superseded).for_each(|_| self.move_reply(ReplyState::Held, ReplyState::Superseded));
        Ok(())
    }

    /// Notes that a target gave no reply, and that no attempt follows.
    pub(super) fn end_wait(&mut self, event: EventId, target: i64) -> rusqlite::Result<()> {
        let update = "UPDATE held_reply SET state = 7 WHERE event = ?1 AND target = ?2 AND state = 0";
        self.connection.prepare_cached(update)?.execute(params![event, target])?;
        Ok(())
    }

    fn take(&mut self, take: &TakeReply) -> rusqlite::Result<bool> {
        let TakeReply { held, until, by, reply, expires_at } = take;
        let state = match until {
            Some(_) => ReplyState::Held,
            None if held.event == *by => ReplyState::Sent,
            None => ReplyState::PickedUp,
        };
        let taken = until.unwrap_or(held.content.len()).cast_signed() as i64;
        let expires_at = until.map(|_| *expires_at);
        let mut update = self.connection.prepare_cached(
            "UPDATE held_reply SET state = ?4, taken = ?5, expires_at = ?6, picked_by = ?7, \
                    content = CASE WHEN ?4 = 2 THEN content END, checksum = CASE WHEN ?4 = 2 THEN checksum END \
              WHERE event = ?1 AND no = ?2 AND taken = ?3 AND state = 2",
        )?;
        let from = held.taken.cast_signed() as i64;
        let found = update.execute(params![held.event, held.no, from, state, taken, expires_at, by])?;
        drop(update);
        if found == 0 {
            return Ok(false);
        }
        self.move_reply(ReplyState::Held, state);
        self.record_reply(*by, reply)?;
        Ok(true)
    }

    fn expire_held(&mut self, now: UnixMillis) -> rusqlite::Result<Vec<(String, u64)>> {
        let mut find = self
            .connection
            .prepare_cached("SELECT event, no, state, account FROM held_reply WHERE expires_at <= ?1 LIMIT 1000")?;
        let rows = find.query_map([now], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?)))?;
        let old: Vec<(EventId, i64, ReplyState, String)> = rows.collect::<rusqlite::Result<_>>()?;
        drop(find);
        let mut expired = Vec::<(String, u64)>::new();
        for (event, no, state, account) in old {
            if state != ReplyState::Held {
                let delete = "DELETE FROM held_reply WHERE event = ?1 AND no = ?2";
                self.connection.prepare_cached(delete)?.execute(params![event, no])?;
                continue;
            }
            let mut update = self.connection.prepare_cached(
                "UPDATE held_reply SET state = 6, expires_at = NULL, content = NULL, checksum = NULL \
                  WHERE event = ?1 AND no = ?2",
            )?;
            update.execute(params![event, no])?;
            drop(update);
            self.move_reply(state, ReplyState::Expired);
            match expired.iter_mut().find(|(known, _)| *known == account) {
                Some((_, count)) => *count += 1,
                None => expired.push((account, 1)),
            }
        }
        Ok(expired)
    }

    /// Deletes the replies to an event.
    pub(super) fn remove_replies(&mut self, event: EventId) -> rusqlite::Result<()> {
        let mut delete = self.connection.prepare_cached("DELETE FROM held_reply WHERE event = ?1 RETURNING state")?;
        let states = delete.query_map([event], |row| row.get::<_, i64>(0))?;
        let states: Vec<i64> = states.collect::<rusqlite::Result<_>>()?;
        drop(delete);
        for state in states.into_iter().filter_map(ReplyState::of) {
            self.count_given(state, -1);
        }
        Ok(())
    }

    /// Notes that a reply was given and is in this state, or (with -1) that it was deleted.
    pub(super) fn count_given(&mut self, state: ReplyState, change: i64) {
        if ReplyState::GIVEN.contains(&state) {
            for state in [0, state as i64] {
                *self.changes.entry((REPLIES, state)).or_default() += change;
            }
        }
    }

    /// Notes that a reply changed its state.
    pub(super) fn move_reply(&mut self, from: ReplyState, to: ReplyState) {
        *self.changes.entry((REPLIES, from as i64)).or_default() -= 1;
        *self.changes.entry((REPLIES, to as i64)).or_default() += 1;
    }
}
