//! The ledger: the running tally, which is the sum of two tables, and the count of every row that it is compared with.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;
use tokio_postgres::Row;
use tokio_postgres::types::Type;

use super::failure::Failure;
use super::inspect::{first, unknown};
use super::looks::Pace;
use super::session::{Snapshot, Value};
use super::values::{event_id, id_of, state_of};
use crate::clock::UnixMillis;
use crate::event::EventId;
use crate::ordered;
use crate::queue::view::{Audit, Counts, ReplyCounts, ReplyDetail, Stats, TargetCounts, TargetStats};
use crate::queue::{DeliveryState, ReplyState};

const TALLY: &str = "SELECT target, state, greatest(sum(count), 0)::int8 FROM (SELECT target, state, count FROM tally \
    UNION ALL SELECT target, state, count FROM tally_delta) t GROUP BY target, state";

/// Replies in the running tally, where a target has its number: those given at state 0, and each state.
const REPLIES: i16 = -1;

const SIZE: &str = "SELECT coalesce(sum(pg_total_relation_size(c.oid)), 0)::int8 FROM pg_class c \
    WHERE c.relnamespace = current_schema()::regnamespace AND c.relkind = 'r'";

/// By the index of free deliveries alone. A bare `min(event)` could be read as "the first of the events in order that
/// fits", which is a walk over everything that ended.
const OLDEST_FREE: &str = "SELECT min(event + 0) FROM delivery WHERE target = $1 AND state = 0 AND holder IS NULL";
const OLDEST_HELD: &str =
    "SELECT target, min(event + 0) FROM delivery WHERE state = 0 AND holder IS NOT NULL GROUP BY target";
const OLDEST_BEHIND: &str = "SELECT event FROM (SELECT event, target, state FROM delivery WHERE event >= $2 \
    ORDER BY event LIMIT $3) d WHERE target = $1 AND state = 0 LIMIT 1";
/// More pending deliveries are not all read, if the oldest is found before.
const FEW: u64 = 10_000;
/// What it may take to find the oldest of all that are held, and still be done each time. It takes longer where a snapshot
/// is held, as everything that was held since is read.
const CHEAP: Duration = Duration::from_millis(100);

const EVENTS: &str = "SELECT count(*), coalesce(sum(e.targets), 0)::int8, \
    coalesce(sum(abs(e.targets - coalesce(d.found, 0))), 0)::int8 \
    FROM event e LEFT JOIN (SELECT event, count(*) AS found FROM delivery GROUP BY event) d ON d.event = e.id";
const ORPHANS: &str = "SELECT count(*) FROM delivery d WHERE NOT EXISTS (SELECT FROM event WHERE id = d.event)";
const STATES: &str = "SELECT target, state, count(*) FROM delivery GROUP BY target, state";
/// How many events the keys lead to, without those that are gone.
const KNOWN: &str = "SELECT (SELECT count(*) FROM known) - (SELECT count(*) FROM retired_key r \
    JOIN known k ON k.content_key = r.content_key AND k.event = r.event)";

/// The oldest pending delivery of each target by its number, as far as known: nothing older than it is pending until an
/// operator revives a dead letter, which is a change of `meta`. (A replica whose clock is behind may store an older one;
/// it is found when fewer are pending.)
#[derive(Clone, Debug, Default)]
pub(super) struct OldestPending {
    change: i64,
    events: BTreeMap<i16, EventId>,
    pace: Pace,
    /// Whether all that are held are known now.
    knows_held: bool,
}

/// The oldest held delivery of each target.
pub(super) type OldestHeld = BTreeMap<i16, EventId>;

impl OldestPending {
    async fn find(
        &mut self,
        snapshot: &Snapshot<'_>,
        target: i16,
        pending: u64,
        held: &OldestHeld,
    ) -> Result<Option<EventId>, Failure> {
        if pending > FEW {
            let known = id_of(self.events.get(&target).copied().unwrap_or(EventId(0)));
            let steps = i64::try_from(pending).unwrap_or(i64::MAX);
            let values: [Value<'_>; 3] = [(&target, Type::INT2), (&known, Type::INT8), (&steps, Type::INT8)];
            let found: Option<i64> = first(&snapshot.query(OLDEST_BEHIND, &values).await?, None)?;
            if let Some(found) = found {
                self.events.insert(target, event_id(found));
                return Ok(Some(event_id(found)));
            }
        }
        let free: Option<i64> = first(&snapshot.query(OLDEST_FREE, &[(&target, Type::INT2)]).await?, None)?;
        let found = free.map(event_id).into_iter().chain(held.get(&target).copied()).min();
        self.events.extend(found.filter(|_| self.knows_held).map(|found| (target, found)));
        Ok(found)
    }

    /// The oldest held deliveries; where it takes long to find them, mostly those of this process's leases alone.
    async fn find_held(&mut self, snapshot: &Snapshot<'_>, leased: &OldestHeld) -> Result<OldestHeld, Failure> {
        self.knows_held = self.pace.is_due(CHEAP);
        if !self.knows_held {
            return Ok(leased.clone());
        }
        let began = Instant::now();
        let rows = snapshot.query(OLDEST_HELD, &[]).await?;
        self.pace.note(began.elapsed());
        ordered::try_map(rows.iter().map(|row| Ok((row.try_get(0)?, event_id(row.try_get(1)?)))))
    }
}

/// The summary of the queue, and what it has found of the oldest pending deliveries. `leased`: the oldest lease of each
/// target in this process.
pub(super) async fn stats(
    snapshot: &Snapshot<'_>,
    mut oldest: OldestPending,
    leased: &OldestHeld,
) -> Result<(Stats, OldestPending), Failure> {
    let change: i64 = first(&snapshot.query("SELECT change FROM meta", &[]).await?, 0)?;
    if oldest.change != change {
        oldest = OldestPending { change, pace: oldest.pace, ..OldestPending::default() };
    }
    let tally = tally(snapshot).await?;
    let is_pending = tally.targets.values().any(|counts| counts.pending > 0);
    let held = if is_pending { oldest.find_held(snapshot, leased).await? } else { OldestHeld::new() };
    let mut targets = Vec::new();
    for (number, target) in target_names(snapshot).await? {
        let counts = tally.targets.get(&number).copied().unwrap_or_default();
        let first =
            if counts.pending == 0 { None } else { oldest.find(snapshot, number, counts.pending, &held).await? };
        targets.push(TargetStats { target, counts, oldest_pending: first.map(EventId::moment) });
    }
    let unaccounted = targets.iter().map(|target| target.counts.total()).sum::<u64>().abs_diff(tally.accepted);
    let bytes: i64 = first(&snapshot.query(SIZE, &[]).await?, 0)?;
    let bytes = u64::try_from(bytes).unwrap_or(0);
    let held_replies = held_by_account(snapshot).await?;
    let damaged = Vec::new();
    Ok((Stats { events: tally.events, unaccounted, bytes, targets, held_replies, damaged }, oldest))
}

/// Counts the whole ledger again.
pub(super) async fn audit(snapshot: &Snapshot<'_>) -> Result<Audit, Failure> {
    let rows = snapshot.query(EVENTS, &[]).await?;
    let Some(row) = rows.first() else { return Err(Failure::Internal("events were not counted".to_owned())) };
    let (events, deliveries, missing) = (count(row, 0)?, count(row, 1)?, count(row, 2)?);
    let orphans: i64 = first(&snapshot.query(ORPHANS, &[]).await?, 0)?;
    let mut unaccounted = missing + u64::try_from(orphans).unwrap_or(0);
    let mut found: BTreeMap<i16, Counts> = BTreeMap::new();
    for row in snapshot.query(STATES, &[]).await? {
        match state_of(row.try_get(1)?) {
            Ok(state) => *found.entry(row.try_get(0)?).or_default().of(state) += count(&row, 2)?,
            Err(_) => unaccounted += count(&row, 2)?,
        }
    }
    let known: i64 = first(&snapshot.query(KNOWN, &[]).await?, 0)?;
    let tally = tally(snapshot).await?;
    let replies = count_replies(snapshot, &mut unaccounted).await?;
    let drift = events.abs_diff(tally.events)
        + deliveries.abs_diff(tally.accepted)
        + drift(&found, &tally.targets)
        + replies.drift(tally.replies)
        + events.abs_diff(u64::try_from(known).unwrap_or(0));
    let mut counts = Counts::default();
    for part in found.values() {
        DeliveryState::ALL.into_iter().for_each(|state| *counts.of(state) += *part.clone().of(state));
    }
    let targets = target_names(snapshot).await?.into_iter();
    let targets =
        targets.map(|(number, target)| TargetCounts { target, counts: found.remove(&number).unwrap_or_default() });
    let targets = targets.collect();
    // What is left are deliveries to a target that has no name.
    unaccounted += found.values().map(Counts::total).sum::<u64>();
    let replies = ReplyCounts { given: tally.replies.given, ..replies };
    Ok(Audit { events, deliveries, counts, unaccounted, drift, targets, replies })
}

/// The running tally: how many events there are, and the counts of each target.
#[derive(Default)]
struct Tally {
    events: u64,
    /// Deliveries that came with them.
    accepted: u64,
    targets: BTreeMap<i16, Counts>,
    replies: ReplyCounts,
}

async fn tally(snapshot: &Snapshot<'_>) -> Result<Tally, Failure> {
    let mut tally = Tally::default();
    for row in snapshot.query(TALLY, &[]).await? {
        if row.try_get::<_, i16>(0)? == REPLIES {
            let number = row.try_get::<_, i16>(1)?;
            let state = ReplyState::of(number.into()).ok_or_else(|| unknown("state", number))?;
            *tally.replies.of(state) = count(&row, 2)?;
            continue;
        }
        match (row.try_get(0)?, state_of(row.try_get(1)?)?) {
            (0, DeliveryState::Pending) => tally.events = count(&row, 2)?,
            (0, _) => tally.accepted = count(&row, 2)?,
            (target, state) => *tally.targets.entry(target).or_default().of(state) = count(&row, 2)?,
        }
    }
    Ok(tally)
}

/// How many replies are held, by account.
async fn held_by_account(snapshot: &Snapshot<'_>) -> Result<BTreeMap<String, u64>, Failure> {
    let held = "SELECT account, count(*) FROM held_reply WHERE expires_at IS NOT NULL AND state = 2 GROUP BY account";
    let rows = snapshot.query(held, &[]).await?;
    ordered::try_map(rows.iter().map(|row| Ok((row.try_get(0)?, count(row, 1)?))))
}

/// The given replies of each state. Those of no event or of an unknown state add to `unaccounted`.
async fn count_replies(snapshot: &Snapshot<'_>, unaccounted: &mut u64) -> Result<ReplyCounts, Failure> {
    let mut counts = ReplyCounts::default();
    for row in snapshot.query("SELECT state, count(*) FROM held_reply GROUP BY state", &[]).await? {
        match ReplyState::of(row.try_get::<_, i16>(0)?.into()) {
            Some(ReplyState::Awaited | ReplyState::Ended) => {}
            Some(state) => {
                *counts.of(state) = count(&row, 1)?;
                counts.given += count(&row, 1)?;
            }
            None => *unaccounted += count(&row, 1)?,
        }
    }
    let orphans = "SELECT count(*) FROM held_reply r WHERE NOT EXISTS (SELECT FROM event WHERE id = r.event)";
    let orphans: i64 = first(&snapshot.query(orphans, &[]).await?, 0)?;
    *unaccounted += u64::try_from(orphans).unwrap_or(0);
    Ok(counts)
}

/// What became of the replies to an event, and the event whose reply was given last to this one.
pub(super) async fn replies(
    snapshot: &Snapshot<'_>,
    event: EventId,
) -> Result<(Vec<ReplyDetail>, Option<EventId>), Failure> {
    let find = "SELECT coalesce(t.name, ''), r.state, r.attempt, r.at, r.expires_at, r.picked_by \
        FROM held_reply r LEFT JOIN target t ON t.no = r.target WHERE r.event = $1 ORDER BY r.no";
    let id = id_of(event);
    let mut replies = Vec::new();
    for row in snapshot.query(find, &[(&id, Type::INT8)]).await? {
        let number = row.try_get::<_, i16>(1)?;
        replies.push(ReplyDetail {
            target: row.try_get(0)?,
            state: ReplyState::of(number.into()).ok_or_else(|| unknown("state", number))?,
            attempt: row.try_get::<_, Option<i32>>(2)?.and_then(|number| u32::try_from(number).ok()),
            at: row.try_get::<_, Option<i64>>(3)?.map(UnixMillis),
            expires_at: row.try_get::<_, Option<i64>>(4)?.map(UnixMillis),
            picked_up_by: row.try_get::<_, Option<i64>>(5)?.map(event_id),
        });
    }
    let picked = "SELECT event FROM held_reply WHERE picked_by = $1 AND event <> $1 LIMIT 1";
    let picked: Option<i64> = first(&snapshot.query(picked, &[(&id, Type::INT8)]).await?, None)?;
    Ok((replies, picked.map(event_id)))
}

async fn target_names(snapshot: &Snapshot<'_>) -> Result<Vec<(i16, String)>, Failure> {
    let rows = snapshot.query("SELECT no, name FROM target ORDER BY name COLLATE \"C\"", &[]).await?;
    rows.iter().map(|row| Ok((row.try_get(0)?, row.try_get(1)?))).collect()
}

fn drift(found: &BTreeMap<i16, Counts>, tallied: &BTreeMap<i16, Counts>) -> u64 {
    let mut targets: Vec<i16> = found.keys().chain(tallied.keys()).copied().collect();
    targets.sort_unstable();
    targets.dedup();
    let counts = |of: &BTreeMap<i16, Counts>, target| of.get(&target).copied().unwrap_or_default();
    let apart = |target| {
        let (mut found, mut tallied) = (counts(found, target), counts(tallied, target));
        DeliveryState::ALL.into_iter().map(|state| found.of(state).abs_diff(*tallied.of(state))).sum::<u64>()
    };
    targets.into_iter().map(apart).sum()
}

fn count(row: &Row, column: usize) -> Result<u64, Failure> {
    Ok(u64::try_from(row.try_get::<_, i64>(column)?).unwrap_or(0))
}
